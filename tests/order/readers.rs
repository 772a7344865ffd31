//! Clients that read slowly, or not for a while: no other client waits for them.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    Account, Cable, Client, Cluster, Config, Launch, MariaDb, Server, Verdict, Way, contains, eventually,
    eventually_within, text_of,
};
use crate::{ANSWERED, Numbers, accounts, login, login_within, reader, rest_of, send_numbered, wait_for_login};

/// Bytes a second of a slow reader.
const SLOW: u64 = 10_000;

/// Within this time another user can log in, or has an ack, while such a reader is served: the time in which a login
/// is answered. Behind the reader they would be done in 40 s.
const SOON: Duration = Duration::from_secs(10);

/// Makes the chat of a client.
type Chat = Box<dyn Fn(&Client, &str) -> Value>;

/// Some write to a slow reader of another node, and leave: by hanging up, or by a logout on a connection that stays.
/// `prepare` decides how they make their messages.
fn leaves_behind_a_slow_reader(prepare: impl Fn(&mut Client, &mut [Client]) -> Chat) {
    const QUEUED: usize = 200;
    let cluster = Cluster::start(2);
    let [here, there] = cluster.addresses()[..] else { unreachable!() };
    let [slow, filler] = accounts(here, "on the other node");
    let writers: [_; 4] = accounts(here, "writer");
    let (cable, mut slow) = reader(there, &slow);
    let mut clients = writers.each_ref().map(|account| login(here, account));
    let chat = prepare(&mut slow, &mut clients);

    // What is queued takes about 40 s.
    cable.slow(SLOW);
    let mut filler = login(there, &filler);
    send_numbered(&mut filler, slow.id(), 0..QUEUED, 2000);
    for client in &mut clients {
        let chat = chat(client, "first");
        client.post(&chat);
        client.sync();
    }
    let since = Instant::now();
    let mut clients = thread::scope(|scope| {
        let [one, two, three, four] = clients;
        drop((one, two));
        let comes_back = |node, account| scope.spawn(move || login_within(SOON, since, node, account));
        let stays = |mut client: Client, account| {
            client.post(&json!({"msgid": 3, "id": client.id()}));
            scope.spawn(move || {
                wait_for_login(&mut client, SOON, since, account);
                client
            })
        };
        let [first, second, third, fourth] = &writers;
        let logins = [comes_back(here, first), comes_back(there, second), stays(three, third), stays(four, fourth)];
        logins.map(|login| login.join().expect("a login that succeeds"))
    });
    assert!(cable.passed() < 350_000, "the slow one has read everything: that shows nothing");

    let last = clients.each_mut().map(|client| client.start(chat(client, "second")));
    cable.fix();
    let (mut numbers, mut seen) = (Numbers::default(), writers.each_ref().map(|_| Vec::new()));
    while numbers.count(filler.id()) < QUEUED || seen.iter().any(|texts| !texts.contains(&"second".to_owned())) {
        let push = slow.push();
        match writers.iter().position(|writer| push["id"] == writer.id) {
            Some(writer) => seen[writer].push(text_of(&push)),
            None => numbers.take(&push),
        }
    }
    // The first may come again, if the other node has not heard of it in time, but not behind the second.
    for mut texts in seen {
        texts.dedup();
        assert_eq!(texts, ["first", "second"]);
    }
    clients.iter_mut().zip(last).for_each(|(client, seq)| assert_eq!(client.reply(seq)["errno"], 0));
}

#[test]
fn who_has_written_to_a_slow_reader_of_another_node_can_log_in_again_before_that_has_read() {
    leaves_behind_a_slow_reader(|slow, _| {
        let to = slow.id();
        Box::new(move |client, text| client.chat_to(to, text))
    });
}

#[test]
fn who_has_written_to_a_group_with_a_slow_reader_of_another_node_can_log_in_again_before_that_has_read() {
    leaves_behind_a_slow_reader(|slow, writers| {
        // One for each of them, or they would hear each other.
        let mut join = |writer: &mut Client| {
            let group = writer.create_group(&format!("with a slow reader, of {}", writer.id()));
            slow.join(group);
            (writer.id(), group)
        };
        let groups: HashMap<u32, u32> = writers.iter_mut().map(&mut join).collect();
        Box::new(move |client, text| client.group_chat_to(groups[&client.id()], text))
    });
}

/// Users log out whose connections are not read, with half of a message written there and more behind it.
fn logs_out_without_reading(here: SocketAddr, there: SocketAddr) {
    const LEAVERS: usize = 3;
    const QUEUED: usize = 100;
    let [writer] = accounts(here, "writer");
    let (fillers, leavers): ([_; LEAVERS], [_; LEAVERS]) = (accounts(here, "filler"), accounts(here, "leaver"));
    let mut left = Vec::new();
    for (filler, leaver) in fillers.iter().zip(&leavers) {
        let (mut filler, (cable, mut client)) = (login(there, filler), reader(there, leaver));
        cable.freeze_answers();
        send_numbered(&mut filler, leaver.id, 0..QUEUED, 3000);
        client.post(&json!({"msgid": 3, "id": leaver.id}));
        left.push((filler, cable, client));
    }
    let mut client = login(here, &writer);
    client.set_patience(SOON);
    let since = Instant::now();
    let chats = leavers.each_ref().map(|leaver| client.start(client.chat_to(leaver.id, "0 behind the logout")));
    chats.into_iter().for_each(|seq| assert_eq!(client.reply(seq)["errno"], 0));
    let new = leavers.each_ref().map(|leaver| login_within(SOON, since, here, leaver));
    drop(client);
    let mut client = login_within(SOON, Instant::now(), there, &writer);
    for leaver in &leavers {
        client.must(client.chat_to(leaver.id, "1 from elsewhere"));
    }
    for ((filler, cable, old), mut new) in left.into_iter().zip(new) {
        // What was written before the logout came there, and the rest comes here.
        cable.fix();
        old.finish();
        let (mut numbers, before) = (Numbers::default(), rest_of(old, ANSWERED));
        assert!(before.len() < QUEUED, "all of it was written: that shows nothing");
        before.iter().for_each(|chat| numbers.take(chat));
        while numbers.count(filler.id()) < QUEUED || numbers.count(client.id()) < 2 {
            numbers.take(&new.push());
        }
    }
}

#[test]
fn a_logout_on_a_connection_that_is_not_read_holds_up_nobody() {
    let world = Config::new(2).own(&[]);
    let node = world.server().address;
    logs_out_without_reading(node, node);
}

#[test]
fn a_logout_on_a_connection_that_is_not_read_holds_up_nobody_on_another_node() {
    let cluster = Cluster::start(2);
    let [here, there] = cluster.addresses()[..] else { unreachable!() };
    logs_out_without_reading(here, there);
}

/// Senders that go on at a steady rate, and what becomes of their messages.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    stored: AtomicUsize,
    /// How many were delivered since the last one that was stored.
    delivered: AtomicUsize,
}

impl Load {
    const SENDERS: usize = 4;
    /// Between two messages of each.
    const PERIOD: Duration = Duration::from_millis(20);
    /// Messages of each that may wait for their acks.
    const WINDOW: usize = 50;
    /// A second's messages, of all.
    const SECOND: usize = 200;

    /// Sends until `stop` is set; returns how many there were.
    fn send(&self, sender: &mut Client, to: u32) -> usize {
        let (mut seqs, mut sent, mut due) = (VecDeque::new(), 0, Instant::now());
        while !self.stop.load(Ordering::Relaxed) {
            let chat = sender.chat_to(to, &format!("{sent} {}", "x".repeat(1000)));
            seqs.push_back(sender.start(chat));
            sent += 1;
            if seqs.len() > Load::WINDOW {
                self.note(&sender.reply(seqs.pop_front().expect("a window")));
            }
            // A load that was held up does not make up for it.
            due = (due + Load::PERIOD).max(Instant::now());
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        seqs.into_iter().for_each(|seq| self.note(&sender.reply(seq)));
        sent
    }

    fn note(&self, ack: &Value) {
        assert_eq!(ack["errno"], 0, "{ack}");
        if ack["delivered"] == true {
            self.delivered.fetch_add(1, Ordering::Relaxed);
        } else {
            self.stored.fetch_add(1, Ordering::Relaxed);
            self.delivered.store(0, Ordering::Relaxed);
        }
    }

    fn is_live(&self) -> bool {
        self.delivered.load(Ordering::Relaxed) >= Load::SECOND
    }
}

/// Stops a load, also when an assertion fails: else its senders would be waited for.
struct Stop<'a>(&'a Load);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// A client that reads well stands still once, under a load that goes on.
fn stands_still_under_load(here: SocketAddr, there: SocketAddr) {
    const STILL: Duration = Duration::from_millis(2600);
    let [account, marker] = accounts(here, "recipient");
    let (cable, mut recipient) = reader(there, &account);
    recipient.set_patience(ANSWERED);
    let mut senders = accounts::<{ Load::SENDERS }>(here, "sender").map(|account| login(here, &account));
    let (load, mut numbers) = (Load::default(), Numbers::default());
    let sent = thread::scope(|scope| {
        let stopper = Stop(&load);
        let sending = senders.each_mut().map(|sender| scope.spawn(|| load.send(sender, account.id)));
        let reading = scope.spawn(|| {
            loop {
                let chat = recipient.push();
                if chat["id"] == marker.id {
                    return;
                }
                numbers.take(&chat);
            }
        });
        eventually("messages that are delivered", || load.is_live());
        cable.freeze_answers();
        thread::sleep(STILL);
        eventually("messages that are stored", || load.stored.load(Ordering::Relaxed) > 0);
        cable.fix();
        eventually_within(Duration::from_secs(20), "messages that are delivered again", || load.is_live());
        drop(stopper);
        let sent = sending.map(|sending| sending.join().expect("acks"));
        login(here, &marker).chat(account.id, "no more will follow");
        reading.join().expect("everything in order");
        sent
    });
    while senders.iter().zip(sent).any(|(sender, sent)| numbers.count(sender.id()) < sent) {
        numbers.take(&recipient.push());
    }
}

/// The delay of the database's answers, so that something always comes while a page of the store is read.
const DATABASE: Duration = Duration::from_millis(20);

#[test]
fn who_stands_still_once_is_served_live_again_although_the_load_goes_on() {
    let database = Cable::to(MariaDb::shared().port());
    let server = start_alone(&database, 2);
    database.delay(DATABASE);
    stands_still_under_load(server.address, server.address);
}

#[test]
fn who_stands_still_once_is_served_live_again_by_another_node_although_the_load_goes_on() {
    let mut cluster = Cluster::start(1);
    let (_redis, database) = cluster.add_node_behind();
    let [here, there] = cluster.addresses()[..] else { unreachable!() };
    database.delay(DATABASE);
    stands_still_under_load(here, there);
}

/// A node that is alone, on a database that it reaches through this cable.
fn start_alone(database: &Cable, workers: usize) -> Server {
    let mariadb = MariaDb::shared();
    let store = mariadb.url(&mariadb.new_database());
    let mut launch = Launch { store, reactors: 2, workers, flags: Vec::new(), setup: String::new(), port: 0 };
    database.lead(&mut launch);
    Server::start(&launch)
}

/// A user's page cannot be read, and his connection goes to another user, whose page is under way when the former one's
/// is due again. False: it came too late for that.
fn a_page_is_due_again(node: SocketAddr, database: &Cable, [former, next, sender]: &[Account; 3]) -> bool {
    const MESSAGES: usize = 12;
    /// Until a page that could not be read is asked for again.
    const RETRY: Duration = Duration::from_secs(1);
    // More than the reply of a login holds.
    let text = |n: usize| format!("{n} {}", "x".repeat(50_000));
    let mut sender = login(node, sender);
    (0..MESSAGES).for_each(|n| assert!(!sender.chat(next.id, &text(n))));

    // What the former one does not read goes to the store, and then he reads.
    let (cable, mut client) = reader(node, former);
    cable.freeze_answers();
    let seqs: Vec<i64> = (0..MESSAGES).map(|n| sender.start(sender.chat_to(former.id, &text(n)))).collect();
    assert!(seqs.into_iter().filter(|seq| sender.reply(*seq)["delivered"] == false).count() > 5);
    let asks =
        |way, piece: &[u8]| way == Way::There && contains(piece, b"SELECT") && contains(piece, b"OfflineMessage");
    let cuts = database.cuts();
    database.rule(move |_, way, piece| if asks(way, piece) { Verdict::Cut } else { Verdict::Pass });
    cable.fix();
    eventually("a page that cannot be read", || database.cuts() >= cuts + 2);
    let since = Instant::now();
    database.fix();
    client.logout();
    client.pushed();

    // Behind what the reply of the login has brought, which is removed.
    let (mut has_removed, mut has_asked) = (false, false);
    database.rule(move |_, way, piece| {
        has_removed |= way == Way::There && contains(piece, b"DELETE") && contains(piece, b"OfflineMessage");
        has_asked |= has_removed && asks(way, piece);
        if way == Way::Back && has_asked { Verdict::Hold } else { Verdict::Pass }
    });
    client.login(next);
    eventually("a page that is under way", || database.held() > 0);
    let is_in_time = since.elapsed() < RETRY;
    thread::sleep((RETRY * 3 / 2).saturating_sub(since.elapsed()));
    database.fix();
    sender.chat(next.id, &text(MESSAGES));
    let number = |text: String| text.split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
    let numbers: Vec<usize> = client.texts(MESSAGES + 1).into_iter().map(number).collect();
    assert_eq!(numbers, Vec::from_iter(0..=MESSAGES));
    is_in_time
}

#[test]
fn a_page_that_is_read_again_for_a_session_that_is_over_is_none_of_the_next_one() {
    // With one worker, so that one page is asked for behind the other.
    let database = Cable::to(MariaDb::shared().port());
    let server = start_alone(&database, 1);
    let is_in_time = |round| a_page_is_due_again(server.address, &database, &accounts(server.address, round));
    // On a busy machine it may take a few times.
    assert!(["one", "two", "three", "four", "five", "six"].into_iter().any(is_in_time), "each came too late");
}
