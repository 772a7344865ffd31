//! Faults of the order in which messages are routed, each brought about on real servers: broken and
//! silent lines, machines that stand still, clients that read slowly, and ends. None of them may cost a
//! message, its place behind the earlier ones of its sender, or a user's account.
//!
//! Where users live on a node is up to the node: tests to which it matters have several users.

mod joins;
mod lines;
mod machine;
mod readers;
mod releases;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod suspended;
mod versions;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Account, Cable, Client, Cluster, DEADLINE, MariaDb, parse, text_of};

/// A login is answered within 10 s, and half as much again for a noisy machine.
const ANSWERED: Duration = Duration::from_secs(15);

fn login(node: SocketAddr, account: &Account) -> Client {
    let mut client = Client::connect(node);
    client.login(account);
    client
}

/// New accounts, offline.
fn accounts<const N: usize>(node: SocketAddr, tag: &str) -> [Account; N] {
    let mut client = Client::connect(node);
    std::array::from_fn(|n| client.register(&format!("{tag} {n}"), "secret"))
}

/// Logs in as soon as the account is free, which it must be within `time` of `since`.
#[track_caller]
fn login_within(time: Duration, since: Instant, node: SocketAddr, account: &Account) -> Client {
    let mut client = Client::connect(node);
    wait_for_login(&mut client, time, since, account);
    client
}

/// The same, on a connection that there is. Each login is answered, whatever it waits for.
#[track_caller]
fn wait_for_login(client: &mut Client, time: Duration, since: Instant, account: &Account) {
    client.set_patience(ANSWERED);
    loop {
        let reply = client.try_login(account);
        match reply["errno"].as_i64() {
            Some(0) => return client.set_patience(DEADLINE),
            Some(2 | 20) => {}
            _ => panic!("the login of {} got {reply}", account.name),
        }
        assert!(since.elapsed() < time, "{} cannot log in after {:?}: {reply}", account.name, since.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All that comes until the server ends the connection, which it must within `time` of silence.
#[track_caller]
fn rest_of(mut client: Client, time: Duration) -> Vec<Value> {
    client.set_patience(time);
    let mut rest = Vec::new();
    while let Ok(text) = client.next_push() {
        rest.push(parse(&text));
    }
    rest
}

/// Checks that what comes of each sender is 0, 1, 2, …: each for the first time in order, and none left out. What was
/// not known to have arrived may come again.
#[derive(Default)]
struct Numbers(HashMap<u32, usize>);

impl Numbers {
    #[track_caller]
    fn take(&mut self, chat: &Value) {
        let number: usize = text_of(chat).split(' ').next().and_then(|word| word.parse().ok()).expect("a number");
        let sender = chat["id"].as_u64().and_then(|id| u32::try_from(id).ok()).expect("a sender");
        let next = self.0.entry(sender).or_default();
        assert!(number <= *next, "{number} where {next} was due: what is between is lost, or was overtaken");
        *next = (*next).max(number + 1);
    }

    /// How many there were of this one.
    fn count(&self, sender: u32) -> usize {
        self.0.get(&sender).copied().unwrap_or_default()
    }
}

/// Numbered chats of about `bytes` bytes, without `seq`, that the server has read when this returns.
#[track_caller]
fn send_numbered(sender: &mut Client, to: u32, numbers: std::ops::Range<usize>, bytes: usize) {
    for number in numbers {
        let chat = sender.chat_to(to, &format!("{number} {}", "x".repeat(bytes)));
        sender.post(&chat);
    }
    sender.sync();
}

/// A client that reads through a cable, which decides how fast. Until then the server's side of its socket takes no
/// more than it must.
fn reader(node: SocketAddr, account: &Account) -> (Cable, Client) {
    let cable = Cable::with_receive_buffer(node.port(), 8 << 10);
    let client = login(cable.address, account);
    (cable, client)
}

impl Cluster {
    /// One more node, that reaches Redis through the first cable, and the database through the second.
    fn add_node_behind(&mut self) -> (Cable, Cable) {
        let redis = Cable::to(self.redis.port());
        let database = Cable::to(MariaDb::shared().port());
        self.add_node_with(|launch| [&redis, &database].into_iter().for_each(|cable| cable.lead(launch)));
        (redis, database)
    }

    /// The number of nodes that subscribe to what others publish.
    fn subscribers(&self) -> usize {
        let mut list = redis::cmd("CLIENT");
        list.arg("LIST").arg("TYPE").arg("PUBSUB");
        list.query::<String>(&mut self.redis.connect()).expect("Redis answers").lines().count()
    }
}
