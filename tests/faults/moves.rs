//! What chance finds too seldom.

use std::net::SocketAddr;

use crate::support::{Account, Client, Cluster};

#[test]
fn a_sender_who_moves_while_redis_is_away_overtakes_nothing_that_is_stored() {
    let mut cluster = Cluster::start(2);
    let [one, other] = cluster.addresses()[..] else { unreachable!() };
    let mut registrar = Client::connect(one);
    let [li, zhang] = ["li", "zhang"].map(|name| registrar.register(name, "secret"));
    // On both reactors, whichever the sender will be on.
    let wang: Vec<_> = (0..4).map(|n| registrar.register(&format!("wang {n}"), "secret")).collect();
    let mut recipients: Vec<Client> = [&li].into_iter().chain(&wang).map(|account| login(other, account)).collect();
    let mut sender = login(one, &zhang);
    recipients.iter().for_each(|recipient| assert!(sender.chat(recipient.id(), "before")));
    cluster.redis.kill();
    for recipient in &recipients {
        assert!(!sender.chat(recipient.id(), "stored"));
    }
    sender.logout();
    let mut sender = login(other, &zhang);
    for recipient in &mut recipients {
        sender.must(sender.chat_to(recipient.id(), "after"));
        assert_eq!(recipient.texts(3), ["before", "stored", "after"]);
    }
}

fn login(node: SocketAddr, account: &Account) -> Client {
    let mut client = Client::connect(node);
    client.login(account);
    client
}
