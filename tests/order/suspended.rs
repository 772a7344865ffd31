//! Nodes that stand still while others take them for dead: as a whole machine, at the worst moment, or in one of their
//! reactors.

use std::time::Instant;

use serde_json::Value;

use crate::machine::{HANG, HOST, Machine, STOP};
use crate::support::{
    Account, Client, Cluster, REAPED, eventually, eventually_within, login as login_request, text_of,
};
use crate::{ANSWERED, accounts, login, login_within, rest_of};

/// How many users do the same, so that there are some on every reactor.
const USERS: usize = 4;

/// A healthy node, and one on a machine of its own.
fn cluster() -> (Cluster, Machine) {
    let (mut cluster, machine) = (Cluster::start(1), Machine::new());
    cluster.add_node_with(|launch| machine.put_under(launch));
    (cluster, machine)
}

/// The users of a node that seems dead log in at another one.
fn take_over(cluster: &Cluster, accounts: &[Account], since: Instant) -> Vec<Client> {
    accounts.iter().map(|account| login_within(REAPED, since, cluster.nodes[0].address, account)).collect()
}

/// What a session that another one has replaced receives before it ends: nothing but that.
#[track_caller]
fn is_told_nothing(old: Client) {
    let told: Vec<Value> = rest_of(old, ANSWERED).into_iter().filter(|push| push["msgid"] != 201).collect();
    assert_eq!(told, [] as [Value; 0]);
}

#[test]
fn sessions_of_a_machine_that_was_suspended_end_when_others_have_taken_their_accounts() {
    let (cluster, machine) = cluster();
    let [healthy, suspended] = cluster.addresses()[..] else { unreachable!() };
    let users: [_; USERS] = accounts(healthy, "user");
    let mut writer = login(healthy, &accounts::<1>(healthy, "writer")[0]);
    let old = users.each_ref().map(|account| login(suspended, account));
    cluster.nodes[1].signal("STOP");
    let since = Instant::now();
    let mut new = take_over(&cluster, &users, since);
    machine.was_suspended(since.elapsed());
    cluster.nodes[1].signal("CONT");
    for client in &mut new {
        assert!(writer.chat(client.id(), "to the new session"));
        assert_eq!(client.texts(1), ["to the new session"]);
    }
    old.into_iter().for_each(is_told_nothing);
    new.iter_mut().for_each(|client| assert_eq!(client.pushed(), [] as [Value; 0]));
    // And the node begins anew.
    drop(new);
    eventually_within(REAPED, "a login there", || {
        let client = Client::try_connect(suspended).ok();
        client
            .and_then(|mut client| client.try_request(login_request(&users[0])))
            .is_some_and(|reply| reply["errno"] == 0)
    });
}

#[test]
fn what_a_reactor_was_about_to_read_when_its_node_stopped_is_not_handled_once_others_have_the_account() {
    let (cluster, _machine) = cluster();
    let [healthy, stops] = cluster.addresses()[..] else { unreachable!() };
    let [sender, reader] = accounts(healthy, "user");
    let mut reader = login(healthy, &reader);
    let mut old = login(stops, &sender);
    assert!(old.chat(reader.id(), "0"));
    old.post(&old.chat_to(reader.id(), STOP));
    let since = Instant::now();
    cluster.nodes[1].wait_until_still();
    let mut new = take_over(&cluster, &[sender], since).remove(0);
    assert!(new.chat(reader.id(), "1"));
    cluster.nodes[1].signal("CONT");
    is_told_nothing(old);
    assert!(new.chat(reader.id(), "2"));
    let texts: Vec<String> = reader.pushed().iter().map(text_of).collect();
    assert_eq!(texts, ["0", "1", "2"]);
}

#[test]
fn a_node_with_a_reactor_that_hangs_is_dead() {
    let (cluster, machine) = cluster();
    let [healthy, hangs] = cluster.addresses()[..] else { unreachable!() };
    let users: [_; USERS] = accounts(healthy, "user");
    let mut reader = login(healthy, &accounts::<1>(healthy, "reader")[0]);
    let mut old = users.each_ref().map(|account| login(hangs, account));
    machine.hang();
    let chat = old[0].chat_to(reader.id(), HANG);
    old[0].post(&chat);
    eventually("a reactor that hangs", || machine.is_hanging());
    let mut new = take_over(&cluster, &users, Instant::now());
    assert!(new[0].chat(reader.id(), "from the new session"));
    machine.unhang();
    old.into_iter().for_each(is_told_nothing);
    let texts: Vec<String> = reader.pushed().iter().map(text_of).collect();
    assert_eq!(texts, ["from the new session"]);
}

#[test]
fn logins_go_on_while_redis_is_away_and_nobody_can_tell_its_address() {
    let (mut cluster, machine) = (Cluster::start(0), Machine::new());
    cluster.add_node_with(|launch| {
        machine.put_under(launch);
        launch.flags.iter_mut().for_each(|flag| *flag = flag.replace("127.0.0.1", HOST));
    });
    let node = cluster.nodes[0].address;
    let users: [_; USERS] = accounts(node, "user");
    machine.mute_resolver();
    cluster.redis.kill();
    eventually("somebody to ask for the address", || machine.has_asked());
    let mut clients = users.each_ref().map(|account| {
        let mut client = Client::connect(node);
        client.set_patience(ANSWERED);
        client.login(account);
        client
    });
    for n in 0..USERS {
        let chat = clients[n].chat_to(clients[(n + 1) % USERS].id(), "hello");
        clients[n].must(chat);
    }
    clients.iter_mut().for_each(|client| assert_eq!(client.texts(1), ["hello"]));
}
