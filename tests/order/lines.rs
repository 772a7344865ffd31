//! Lines between nodes, Redis and the database that break, fall silent or are slow, one at a time.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Cluster, REAPED, eventually, parse, text_of};
use crate::{Numbers, accounts, login, login_within};

/// How many users do the same, so that there are some on every reactor.
const USERS: usize = 4;

/// What this one is sent comes at last: there, or where it logs in when that connection has ended.
#[track_caller]
fn comes_at_last(mut client: Client, elsewhere: SocketAddr, text: &str) {
    client.set_patience(REAPED);
    loop {
        match client.next_push().map(|chat| parse(&chat)) {
            Ok(error) if error["msgid"] == 201 => {} // why it ends
            Ok(chat) => return assert_eq!(text_of(&chat), text),
            Err(_) => {
                let account = client.me().clone();
                client = login_within(REAPED, Instant::now(), elsewhere, &account);
            }
        }
    }
}

#[test]
fn who_has_written_to_a_user_of_a_node_that_hears_nothing_any_more_can_log_in_again() {
    let mut cluster = Cluster::start(2);
    let (redis, _database) = cluster.add_node_behind();
    let [here, other, deaf] = cluster.addresses()[..] else { unreachable!() };
    let (writers, readers): ([_; USERS], [_; USERS]) = (accounts(here, "writer"), accounts(here, "reader"));
    let mut clients = writers.each_ref().map(|account| login(here, account));
    let readers = readers.map(|account| login(deaf, &account));
    redis.deafen();
    for (client, reader) in clients.iter_mut().zip(&readers) {
        client.post(&client.chat_to(reader.id(), "hello"));
        client.sync();
    }
    drop(clients);
    let since = Instant::now();
    for (n, account) in writers.iter().enumerate() {
        login_within(REAPED, since, if n % 2 == 0 { here } else { other }, account);
    }
    redis.fix();
    readers.into_iter().for_each(|reader| comes_at_last(reader, other, "hello"));
}

#[test]
fn who_has_written_to_a_user_of_a_node_that_stood_still_and_has_no_database_can_log_in_again() {
    // Less than a lease lasts.
    const STILL: Duration = Duration::from_millis(3300);
    let mut cluster = Cluster::start(2);
    let (_redis, database) = cluster.add_node_behind();
    let [here, other, third] = cluster.addresses()[..] else { unreachable!() };
    let (writers, readers): ([_; USERS], [_; USERS]) = (accounts(here, "writer"), accounts(here, "reader"));
    let mut clients = writers.each_ref().map(|account| login(here, account));
    let readers = readers.map(|account| login(third, &account));
    database.pull();
    cluster.nodes[2].signal("STOP");
    thread::sleep(STILL);
    cluster.nodes[2].signal("CONT");
    for (client, reader) in clients.iter_mut().zip(&readers) {
        client.post(&client.chat_to(reader.id(), "hello"));
        client.sync();
    }
    drop(clients);
    let since = Instant::now();
    for (n, account) in writers.iter().enumerate() {
        login_within(REAPED, since, if n % 2 == 0 { here } else { other }, account);
    }
    database.fix();
    readers.into_iter().for_each(|reader| comes_at_last(reader, other, "hello"));
}

#[test]
fn a_node_whose_database_is_silent_keeps_its_users_and_nobody_else_has_them() {
    /// Longer than until a node that is dead is taken for it.
    const SILENT: Duration = Duration::from_secs(10);
    let mut cluster = Cluster::start(1);
    let (_redis, database) = cluster.add_node_behind();
    let [healthy, other] = cluster.addresses()[..] else { unreachable!() };
    let accounts: [_; USERS] = accounts(healthy, "user");
    let mut clients = accounts.each_ref().map(|account| login(other, account));
    let mut writer = login(healthy, &crate::accounts::<1>(healthy, "writer")[0]);
    // One round in which all nodes learn where the users are.
    let next = |n: usize| (n + 1) % USERS;
    for n in 0..USERS {
        assert!(writer.chat(accounts[n].id, "0"));
        assert!(clients[n].chat(accounts[next(n)].id, "0"));
    }
    database.freeze();
    let since = Instant::now();
    let mut rivals = accounts.each_ref().map(|_| Client::connect(healthy));
    let (mut rounds, mut delivered) = (1, 0);
    while since.elapsed() < SILENT {
        let text = rounds.to_string();
        for (n, (rival, account)) in rivals.iter_mut().zip(&accounts).enumerate() {
            let reply = rival.try_login(account);
            assert_eq!(reply["errno"], 2, "{} has two sessions after {:?}: {reply}", account.name, since.elapsed());
            delivered += usize::from(writer.chat(account.id, &text));
            clients[n].must(clients[n].chat_to(accounts[next(n)].id, &text));
        }
        rounds += 1;
        thread::sleep(Duration::from_millis(100));
    }
    // On a busy machine an answer may be late once.
    assert!(delivered > rounds * USERS / 2, "{delivered} were delivered in {rounds} rounds");
    database.fix();
    for (n, account) in accounts.iter().enumerate() {
        let (mut numbers, client) = (Numbers::default(), &mut clients[next(n)]);
        while numbers.count(writer.id()) < rounds || numbers.count(account.id) < rounds {
            numbers.take(&client.push());
        }
    }
}

#[test]
fn who_moves_away_from_a_node_that_hears_nothing_any_more_does_not_overtake_himself() {
    let mut cluster = Cluster::start(1);
    let (redis, _database) = cluster.add_node_behind();
    let [here, deaf] = cluster.addresses()[..] else { unreachable!() };
    let (writers, readers): ([_; USERS], [_; USERS]) = (accounts(here, "writer"), accounts(here, "reader"));
    let mut readers = readers.map(|account| login(here, &account));
    let mut clients = writers.each_ref().map(|account| login(deaf, account));
    redis.deafen();
    eventually("the broken line to be noticed", || redis.lines(|line| line.subscribes) == 0);
    let seqs: Vec<i64> = clients
        .iter_mut()
        .zip(&readers)
        .map(|(client, reader)| client.start(client.chat_to(reader.id(), "first")))
        .collect();
    for (client, seq) in clients.iter_mut().zip(seqs) {
        assert_eq!(client.reply(seq)["errno"], 0);
        client.post(&json!({"msgid": 3, "id": client.id()}));
    }
    let since = Instant::now();
    for (writer, reader) in writers.iter().zip(&mut readers) {
        let mut client = login_within(REAPED, since, here, writer);
        client.must(client.chat_to(reader.id(), "second"));
        let mut texts = reader.texts(1);
        while texts.last().is_none_or(|text| text != "second") {
            texts.extend(reader.texts(1));
        }
        texts.dedup();
        assert_eq!(texts, ["first", "second"], "of {}", writer.name);
    }
}

#[test]
fn who_moves_away_from_a_node_without_redis_does_not_overtake_himself_at_one_whose_database_is_slow() {
    /// Less than is taken for silence.
    const LATE: Duration = Duration::from_millis(4400);
    let mut cluster = Cluster::start(1);
    let (redis, _of_cut_off) = cluster.add_node_behind();
    let (_of_slow, database) = cluster.add_node_behind();
    let [healthy, cut_off, slow] = cluster.addresses()[..] else { unreachable!() };
    // One writer for each of its workers, which all wait for the database.
    let (writers, readers): ([_; 2], [_; 2]) = (accounts(healthy, "writer"), accounts(healthy, "reader"));
    let mut readers = readers.map(|account| login(slow, &account));
    let mut clients = writers.each_ref().map(|account| login(cut_off, account));
    for (client, reader) in clients.iter_mut().zip(&mut readers) {
        assert!(client.chat(reader.id(), "before"));
        assert_eq!(reader.texts(1), ["before"]);
    }
    database.delay(LATE);
    redis.pull();
    let seqs: Vec<i64> = clients
        .iter_mut()
        .zip(&readers)
        .map(|(client, reader)| client.start(client.chat_to(reader.id(), "first")))
        .collect();
    for (client, seq) in clients.iter_mut().zip(seqs) {
        assert_eq!(client.reply(seq)["errno"], 0);
    }
    drop(clients);
    let since = Instant::now();
    let mut seconds = Vec::new();
    for (writer, reader) in writers.iter().zip(&readers) {
        let mut client = login_within(REAPED, since, healthy, writer);
        let seq = client.start(client.chat_to(reader.id(), "second"));
        seconds.push((client, seq));
    }
    for reader in &mut readers {
        assert_eq!(reader.texts(1), ["first"], "sent before");
    }
    database.fix();
    for (reader, (mut client, seq)) in readers.iter_mut().zip(seconds) {
        assert_eq!(client.reply(seq)["errno"], 0);
        while reader.texts(1) != ["second"] {}
    }
}
