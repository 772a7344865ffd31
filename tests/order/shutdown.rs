//! Ends by SIGTERM: no message is lost that was queued for a client, or the exit status says so.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use chat_server::wire::Framing;
use tempfile::TempDir;

use crate::support::{self, Account, Cable, Client, Config, Launch, MariaDb, Server, eventually_within};
use crate::{Numbers, accounts, login, reader, rest_of, send_numbered};

/// How long an end may take while the store takes messages: 60 s, and half as much again for a noisy machine.
const LONGEST: Duration = Duration::from_secs(90);

const SENDERS: usize = 4;
/// Messages of each.
const EACH: usize = 150;

/// A node that is alone, and is ended and started again.
struct Place {
    launch: Launch,
    server: Server,
    _dir: TempDir,
}

impl Place {
    fn start(config: &Config, flags: &[&str], change: impl FnOnce(&mut Launch)) -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (store, flags) = (config.new_store(dir.path()), flags.iter().map(|&flag| flag.to_owned()).collect());
        let mut launch = Launch { store, reactors: 2, workers: 2, flags, setup: String::new(), port: 0 };
        change(&mut launch);
        Place { server: Server::start(&launch), launch, _dir: dir }
    }

    fn node(&self) -> SocketAddr {
        self.server.address
    }

    /// SIGTERM, and the exit status.
    #[track_caller]
    fn stop(&mut self) -> Option<i32> {
        self.server.signal("TERM");
        eventually_within(LONGEST, "the end", || !self.server.is_alive());
        self.server.wait().code()
    }

    fn start_again(&mut self) {
        self.server = Server::start(&self.launch);
    }

    fn senders(&self) -> [Client; SENDERS] {
        accounts::<SENDERS>(self.node(), "sender").map(|account| login(self.node(), &account))
    }
}

/// Whether what a user finds is the rest of what these have sent; what is missing otherwise.
fn finds_the_rest(place: &Place, account: &Account, mut numbers: Numbers, senders: &[Client]) -> Result<(), String> {
    let mut client = login(place.node(), account);
    // A message that comes behind all of them.
    let mut last = login(place.node(), &accounts::<1>(place.node(), "last")[0]);
    last.chat(account.id, "0 behind all of them");
    while numbers.count(last.id()) == 0 {
        numbers.take(&client.push());
    }
    let counts: Vec<usize> = senders.iter().map(|sender| numbers.count(sender.id())).collect();
    if counts == [EACH; SENDERS] { Ok(()) } else { Err(format!("of {EACH} messages of each there are {counts:?}")) }
}

/// A client reads slowly, or not at all, when the server ends.
#[track_caller]
fn ends_under_a_reader(hold_up: impl Fn(&Cable)) {
    let mut place = Place::start(&Config::new(2), &[], |_| {});
    let [account] = accounts(place.node(), "reader");
    let (cable, client) = reader(place.node(), &account);
    let mut senders = place.senders();
    hold_up(&cable);
    senders.iter_mut().for_each(|sender| send_numbered(sender, account.id, 0..EACH, 1000));
    let status = place.stop();
    cable.fix();
    let (mut numbers, before) = (Numbers::default(), rest_of(client, LONGEST));
    assert!(before.len() < SENDERS * EACH, "everything was written: that shows nothing");
    before.iter().for_each(|chat| numbers.take(chat));
    place.start_again();
    assert_eq!((status, finds_the_rest(&place, &account, numbers, &senders)), (Some(0), Ok(())));
}

#[test]
fn an_end_stores_what_is_queued_for_who_reads_slowly() {
    ends_under_a_reader(|cable| cable.slow(10_000));
}

#[test]
fn an_end_stores_what_is_queued_for_who_has_just_ceased_to_read() {
    ends_under_a_reader(Cable::freeze_answers);
}

/// A C++ client, whose messages leave one by one, and the clients that have just written to it.
fn cpp_reader(place: &Place) -> (Account, Client, [Client; SENDERS]) {
    let [account] = accounts(place.node(), "cpp");
    let mut client = Client::connect(place.node()).framed(Framing::Nul);
    client.post(&support::login(&account));
    assert_eq!(client.recv()["errno"], 0);
    let mut senders = place.senders();
    senders.iter_mut().for_each(|sender| send_numbered(sender, account.id, 0..EACH, 100));
    (account, client, senders)
}

/// 64 MiB wait for clients that read nothing: on SQLite the end takes 5 s at most, where the server is optimised and
/// nothing runs beside it.
#[test]
fn an_end_stores_64_mib_in_seconds() {
    const READERS: usize = 64;
    const TOTAL: usize = 64 << 20;
    const TEXT: usize = 1000;
    let took_at_most = Duration::from_secs(if cfg!(debug_assertions) { 30 } else { 5 });
    let mut place = Place::start(&Config::new(2), &["--high-water", "4194304"], |_| {});
    let readers = accounts::<READERS>(place.node(), "reader");
    let mut clients = readers.each_ref().map(|account| {
        let mut client = Client::connect_with_receive_buffer(place.node(), 4 << 10).expect("a client");
        client.login(account);
        client
    });
    let [mut sender] = accounts::<1>(place.node(), "sender").map(|account| login(place.node(), &account));
    let mut sent = [0; READERS];
    let mut bytes = 0;
    while bytes < TOTAL {
        for (reader, sent) in readers.iter().zip(&mut sent) {
            let chat = sender.chat_to(reader.id, &format!("{sent} {}", "x".repeat(TEXT)));
            bytes += chat.to_string().len();
            sender.post(&chat);
            *sent += 1;
        }
    }
    sender.sync();
    let began = Instant::now();
    let status = place.stop();
    let took = began.elapsed();
    // What was written whole before the end has gone; the rest is in the store, in order behind it.
    let path = place.launch.store.trim_start_matches("sqlite:").to_owned();
    let database = rusqlite::Connection::open(&path).expect("the store");
    let mut rows = database.prepare("SELECT message FROM OfflineMessage WHERE userid = ?1 ORDER BY id").expect("rows");
    let mut stored = 0;
    for ((client, account), sent) in clients.iter_mut().zip(&readers).zip(sent) {
        let mut numbers = Numbers::default();
        client.set_patience(LONGEST);
        while let Ok(text) = client.next_push() {
            numbers.take(&support::parse(&text));
        }
        let messages = rows.query_map([account.id], |row| row.get::<_, String>(0)).expect("rows");
        for message in messages {
            let message = message.expect("a message");
            stored += message.len();
            numbers.take(&support::parse(&message));
        }
        assert_eq!(numbers.count(sender.id()), sent, "{}", account.name);
    }
    assert_eq!(status, Some(0));
    assert!(stored > TOTAL / 2, "{stored} bytes had to be stored: that shows nothing");
    println!("{stored} bytes in {took:?}");
    assert!(took < took_at_most, "it took {took:?}");
}

#[test]
fn an_end_stores_what_is_queued_for_a_cpp_client_that_reads_well() {
    let mut place = Place::start(&Config::new(2), &["--legacy-client"], |_| {});
    let (account, client, senders) = cpp_reader(&place);
    let reading = std::thread::spawn(move || rest_of(client, LONGEST));
    let status = place.stop();
    let mut numbers = Numbers::default();
    reading.join().expect("an end").iter().for_each(|chat| numbers.take(chat));
    place.start_again();
    assert_eq!((status, finds_the_rest(&place, &account, numbers, &senders)), (Some(0), Ok(())));
}

#[test]
fn an_end_that_cannot_store_what_is_queued_says_so_by_its_exit_status() {
    let mut place = Place::start(&Config::new(2), &["--legacy-client"], |_| {});
    let (account, client, senders) = cpp_reader(&place);
    // Only the server has the file open when it ends.
    let path = place.launch.store.trim_start_matches("sqlite:").to_owned();
    let alter = |sql: &str| rusqlite::Connection::open(&path).and_then(|database| database.execute_batch(sql));
    let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON OfflineMessage BEGIN SELECT RAISE(ABORT, 'no'); END";
    alter(refuse).expect("a trigger can be made");
    let reading = std::thread::spawn(move || rest_of(client, LONGEST));
    let status = place.stop();
    let mut numbers = Numbers::default();
    reading.join().expect("an end").iter().for_each(|chat| numbers.take(chat));
    alter("DROP TRIGGER refuse").expect("a trigger can be dropped");
    place.start_again();
    let rest = finds_the_rest(&place, &account, numbers, &senders);
    assert_eq!(status == Some(0), rest.is_ok(), "the exit status is {status:?}, and {rest:?}");
}

#[test]
fn an_end_lasts_until_a_slow_store_has_taken_everything_and_says_that_it_does() {
    /// Some forty answers are waited for: for longer than 5 s in all, but never for that time without progress.
    const LATE: Duration = Duration::from_millis(220);
    let database = Cable::to(MariaDb::shared().port());
    let mut place = Place::start(&Config::mysql(2), &[], |launch| database.lead(launch));
    let [account] = accounts(place.node(), "reader");
    let (cable, client) = reader(place.node(), &account);
    let mut senders = place.senders();
    cable.freeze_answers();
    senders.iter_mut().for_each(|sender| send_numbered(sender, account.id, 0..EACH, 1000));
    database.delay(LATE);
    let (began, before) = (Instant::now(), place.server.log_tail());
    let status = place.stop();
    let (took, log) = (began.elapsed(), place.server.log_tail().replace(&before, ""));
    database.fix();
    cable.fix();
    let mut numbers = Numbers::default();
    rest_of(client, LONGEST).iter().for_each(|chat| numbers.take(chat));
    place.start_again();
    assert_eq!((status, finds_the_rest(&place, &account, numbers, &senders)), (Some(0), Ok(())), "{log}");
    // That it stops, every 5 s what is left to be stored, and that it has stopped.
    assert!(took < Duration::from_secs(8) || log.lines().count() > 2, "it took {took:?}, and the log is\n{log}");
}
