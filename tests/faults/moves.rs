//! What chance finds too seldom.

use std::net::SocketAddr;

use crate::support::{Account, Client, Cluster, eventually};

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

#[test]
fn a_node_that_was_taken_for_dead_takes_no_messages_along() {
    let cluster = Cluster::start(2);
    let [one, other] = cluster.addresses()[..] else { unreachable!() };
    let mut sender = Client::connect(one);
    let accounts: Vec<_> = (0..6).map(|n| sender.register(&format!("user {n}"), "secret")).collect();
    sender.login(&accounts[0]);
    let recipients = &accounts[1..];
    let stopped: Vec<Client> = recipients.iter().map(|account| login(other, account)).collect();
    cluster.nodes[1].signal("STOP");
    // Stored past the stopped node, which is told to look for it.
    let past: Vec<i64> = recipients.iter().map(|account| sender.start(sender.chat_to(account.id, "past"))).collect();
    past.into_iter().for_each(|seq| assert_eq!(sender.reply(seq)["delivered"], false));
    for account in recipients {
        let mut client = Client::connect(one);
        eventually("the end of the stopped node's claims", || client.try_login(account)["errno"] == 0);
        assert_eq!(client.texts(1), ["past"]);
        client.logout();
        assert!(!sender.chat(account.id, "later"));
    }
    cluster.nodes[1].signal("CONT");
    for mut client in stopped {
        while client.next_push().is_ok() {}
    }
    for account in recipients {
        assert_eq!(login(one, account).texts(1), ["later"]);
    }
}

fn login(node: SocketAddr, account: &Account) -> Client {
    let mut client = Client::connect(node);
    client.login(account);
    client
}
