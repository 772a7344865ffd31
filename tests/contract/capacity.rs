//! Large numbers: connections that come and go leave nothing behind, idle ones cost little, and a
//! full descriptor table is survived. What a client sees of it is in `docs/PROTOCOL.md#7-limits`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;

use crate::support::{Account, Client, Config, DEADLINE, World, eventually, login};

// What thousands of sessions cost in memory does not depend on the store: where they come and go the
// soonest, to know it.
in_configurations! {
    sqlite_1: [
        five_thousand_connections_leave_no_descriptor_and_no_memory_behind,
        an_idle_session_costs_less_than_a_kib,
        at_the_descriptor_limit_those_who_are_in_are_served_and_others_when_some_leave,
        connections_that_send_and_close_at_once_leave_nothing_behind,
    ],
    sqlite_4: [
        five_thousand_connections_leave_no_descriptor_and_no_memory_behind,
        an_idle_session_costs_less_than_a_kib,
        at_the_descriptor_limit_those_who_are_in_are_served_and_others_when_some_leave,
        connections_that_send_and_close_at_once_leave_nothing_behind,
    ],
    mysql: [
        at_the_descriptor_limit_those_who_are_in_are_served_and_others_when_some_leave,
        connections_that_send_and_close_at_once_leave_nothing_behind,
    ],
    cluster: [
        at_the_descriptor_limit_those_who_are_in_are_served_and_others_when_some_leave,
        connections_that_send_and_close_at_once_leave_nothing_behind,
    ],
}

/// One test at a time holds thousands of descriptors. Returns how many there may be as well.
fn alone() -> (MutexGuard<'static, ()>, usize) {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = rlimit::increase_nofile_limit(u64::MAX).expect("the soft limit can be raised");
    // The rest of the suite runs beside it.
    (guard, usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(500))
}

/// Logs all of them in, each on a connection of its own.
fn log_in_all(world: &World, accounts: &[Account]) -> Vec<Client> {
    let mut clients = Vec::with_capacity(accounts.len());
    for portion in accounts.chunks(250) {
        let from = clients.len();
        clients.extend(portion.iter().map(|_| world.client()));
        let waiting = clients[from..].iter_mut().zip(portion);
        let seqs: Vec<i64> = waiting.map(|(client, account)| client.start(login(account))).collect();
        for (client, seq) in clients[from..].iter_mut().zip(seqs) {
            let reply = client.reply(seq);
            assert_eq!(reply["errno"], 0, "{reply}");
        }
    }
    clients
}

/// The server has noticed that all have left. What its workers open when they are first needed (a
/// read connection each: the database and its log) stays, and does not count.
fn wait_until_left(world: &World, descriptors: usize) {
    let opened_once = 2 * world.launch().workers;
    eventually("the descriptors to be closed", || world.server().descriptors() <= descriptors + opened_once);
    eventually("everyone to be offline", || world.online_in_store() == 0);
}

fn five_thousand_connections_leave_no_descriptor_and_no_memory_behind(config: &'static Config) {
    let (_alone, limit) = alone();
    let world = config.own(&[]);
    let accounts = world.accounts("one", 5000.min(limit));
    world.assert_alive();
    let before = world.server().descriptors();
    let mut resident = Vec::new();
    // The allocator takes some rounds to settle, the more the busier the machine is; of 200 bytes that a
    // session leaves behind, every round would show a MiB.
    let grown = |resident: &[usize]| resident.last_chunk().is_none_or(|[one, other]| *other > one + 1024);
    while grown(&resident) {
        assert!(resident.len() < 8, "KiB after each round: {resident:?}");
        let clients = log_in_all(&world, &accounts);
        assert_eq!(world.online_in_store(), accounts.len());
        assert!(world.server().descriptors() >= accounts.len());
        drop(clients);
        wait_until_left(&world, before);
        resident.push(world.server().resident_kib());
    }
}

fn an_idle_session_costs_less_than_a_kib(config: &'static Config) {
    let (_alone, limit) = alone();
    let world = config.own(&[]);
    let (few, many) = (2500.min(limit / 3), 7500.min(limit / 3 * 3));
    let accounts = world.accounts("idle", many);
    world.assert_alive();
    let before = world.server().descriptors();
    // A round of all of them first, so that what stays allocated for reuse is not counted.
    drop(log_in_all(&world, &accounts));
    wait_until_left(&world, before);
    let mut clients = log_in_all(&world, &accounts[..few]);
    let with_few = world.server().resident_kib();
    clients.extend(log_in_all(&world, &accounts[few..]));
    let with_many = world.server().resident_kib();
    assert_eq!(world.online_in_store(), many);
    let grown = with_many.saturating_sub(with_few);
    assert!(grown <= many - few, "{with_few} KiB with {few} sessions, {with_many} KiB with {many}");
}

fn at_the_descriptor_limit_those_who_are_in_are_served_and_others_when_some_leave(config: &'static Config) {
    let world = config.prepared("ulimit -n 128", &[]);
    let mut served = vec![world.online("first"), world.online("second")];
    let mut refused = Vec::new();
    // Some connections past the limit; a connection that is not accepted is silent, or ends.
    while refused.len() < 5 {
        let mut client = world.client();
        if is_served(&mut client) {
            served.push(client)
        } else {
            refused.push(client)
        }
        assert!(served.len() < 128, "the limit is reached before");
    }
    assert!(served.len() > 32, "a limit of 128 leaves room for more than {}", served.len());
    for client in &mut served {
        client.set_patience(DEADLINE);
        client.sync();
    }
    let (first, rest) = served.split_at_mut(1);
    assert!(first[0].chat(rest[0].id(), "still here"));
    assert_eq!(rest[0].texts(1), ["still here"]);
    served.truncate(served.len() - 10);
    let mut late = Vec::new();
    eventually("five new connections to be accepted", || {
        let mut client = world.client();
        if is_served(&mut client) {
            late.push(client);
        }
        late.len() == 5
    });
    served.iter_mut().chain(&mut late).for_each(|client| {
        client.set_patience(DEADLINE);
        client.sync();
    });
}

/// Whether the server answers within a second; a refused connection may also get an error.
fn is_served(client: &mut Client) -> bool {
    use std::io::{Read, Write};
    client.set_patience(Duration::from_secs(1));
    let mut answer = [0; 256];
    let sent = client.stream.write(format!("{}\n", json!({"msgid": 202})).as_bytes());
    let read = sent.and_then(|_| client.stream.read(&mut answer));
    read.is_ok_and(|n| answer[..n].starts_with(br#"{"msgid":203}"#))
}

fn connections_that_send_and_close_at_once_leave_nothing_behind(config: &'static Config) {
    let world = config.own(&[]);
    world.assert_alive();
    let before = world.server().descriptors();
    for n in 0..2000 {
        let mut client = world.client();
        client.send_raw([&b"bye"[..], b"{\"msgid\":202}", b"{\"msgid\":", b""][n % 4]);
        if n % 3 == 0 {
            client.reset();
        }
    }
    wait_until_left(&world, before);
    world.assert_alive();
}
