//! Nodes of unlike builds on one store and one Redis, as they stand beside each other while a cluster is upgraded
//! node by node. The newer build is made up: it reads one more payload version, and puts an envelope of a kind that
//! the other does not know in front of all others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::{Value, json};

use crate::support::{Client, Cluster, Launch, eventually, parse};
use crate::{Numbers, accounts, login};

/// The two nodes that are not the witness, in either order.
const BOTH_WAYS: [(usize, usize); 2] = [(0, 1), (1, 0)];
/// A node of the newer build in every cluster.
const WITNESS: usize = 2;

const NEWER: [&str; 2] = ["--payload", "2-3+200"];
/// A word of the envelope of the made-up kind.
const MADE_UP: &str = "made up";

fn newer(launch: &mut Launch) {
    launch.flags.extend(NEWER.map(str::to_owned));
}

fn as_it_is(launch: &mut Launch) {
    launch.flags.retain(|flag| !NEWER.contains(&flag.as_str()));
}

/// The payloads that nodes publish to each other while `talk` runs: each begins with the digit of its version.
fn spoken(cluster: &Cluster, talk: impl FnOnce()) -> Vec<String> {
    /// MONITOR escapes what is no printable character.
    const BEFORE_THE_DIGIT: &str = "\" \"\\x0";
    let mut monitor = cluster.redis.connect();
    redis::cmd("MONITOR").exec(&mut monitor).expect("Redis answers");
    talk();
    redis::cmd("ECHO").arg("that is all").exec(&mut cluster.redis.connect()).expect("Redis answers");
    let mut spoken = Vec::new();
    loop {
        let line: String = redis::from_redis_value(monitor.recv_response().expect("a command")).expect("a text");
        if line.contains("that is all") {
            return spoken;
        }
        let payload = line.split_once("\"PUBLISH\" \"chat:node:").and_then(|(_, to)| to.split_once(BEFORE_THE_DIGIT));
        spoken.extend(payload.map(|(_, payload)| payload.to_owned()));
    }
}

/// Waits until a node of the newer build has learned from the leases which versions the others read: until it speaks
/// the newer one to the witness.
#[track_caller]
fn knows_the_others(cluster: &Cluster, node: usize, tag: &str) {
    let [one, other] = accounts(cluster.nodes[node].address, tag);
    let (mut one, mut other) =
        (login(cluster.nodes[node].address, &one), login(cluster.nodes[WITNESS].address, &other));
    eventually("the newer version to be spoken", || {
        let payloads = spoken(cluster, || {
            assert!(one.chat(other.id(), "to the witness"));
            assert_eq!(other.texts(1), ["to the witness"]);
        });
        payloads.iter().any(|payload| payload.starts_with('3') && payload.contains("to the witness"))
    });
}

#[test]
fn nodes_of_unlike_versions_are_one_cluster() {
    let mut cluster = Cluster::start(1);
    (0..2).for_each(|_| cluster.add_node_with(newer));
    knows_the_others(&cluster, 1, "witness");
    let nodes = cluster.addresses();
    let payloads = spoken(&cluster, || {
        for (here, there) in BOTH_WAYS.map(|(here, there)| (nodes[here], nodes[there])) {
            let [one, other] = accounts(here, &format!("user of {here}"));
            let (mut one, mut other) = (login(here, &one), login(there, &other));
            assert!(one.chat(other.id(), "live"));
            assert_eq!(other.texts(1), ["live"]);
            // A join that is acked counts on the other node at once.
            let group = one.create_group(&format!("group of {here}"));
            assert_eq!(one.group_chat(group, "alone")["delivered"], 0);
            other.join(group);
            assert_eq!(one.group_chat(group, "to all")["delivered"], 1);
            assert_eq!(other.texts(1), ["to all"]);
            // One session in the whole cluster.
            let (account, mut rival) = (other.me().clone(), Client::connect(here));
            assert_eq!(rival.try_login(&account)["errno"], 2);
            other.logout();
            assert!(!one.chat(account.id, "offline"), "it is stored");
            let stored = one.group_chat(group, "offline, to all");
            assert_eq!((&stored["delivered"], &stored["stored"]), (&json!(0), &json!(1)));
            let mut other = login(there, &account);
            assert_eq!(other.texts(2), ["offline", "offline, to all"]);
            // And wherever the user moves.
            other.logout();
            rival.login(&account);
            assert!(one.chat(account.id, "here"));
            assert_eq!(rival.texts(1), ["here"]);
            rival.logout();
            other.login(&account);
            assert!(one.chat(account.id, "there again"));
            assert_eq!(other.texts(1), ["there again"]);
        }
    });
    let chats: Vec<_> = payloads.iter().filter(|payload| payload.contains("there again")).collect();
    assert!(chats.iter().all(|payload| payload.starts_with('2')), "the newest that both nodes read: {chats:?}");
    let made_up: Vec<_> = chats.iter().map(|payload| payload.contains(MADE_UP)).collect();
    assert_eq!(made_up, [false, true], "the older node speaks first, and then the newer one: {chats:?}");
}

/// Sends numbered chats until `stop` is set, one at a time; returns how many there were.
fn stream(sender: &mut Client, to: u32, stop: &AtomicBool) -> usize {
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        let ack = sender.request(sender.chat_to(to, &sent.to_string()));
        assert_eq!(ack["errno"], 0, "{ack}");
        sent += 1;
    }
    sent
}

/// Ends a stream, also when an assertion fails: else it would be waited for.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Replaces a node by one of another build, under a stream from the other node to one of its users, who moves to the
/// other node meanwhile, and back.
fn replace(cluster: &mut Cluster, (node, other): (usize, usize), tag: &str, is_newer: bool) {
    const A_WHILE: usize = 200;
    let nodes = cluster.addresses();
    let [sender, account] = accounts(nodes[other], tag);
    let (mut sender, mut recipient) = (login(nodes[other], &sender), login(nodes[node], &account));
    let (from, stop) = (sender.id(), AtomicBool::new(false));
    let mut received = Vec::new();
    let sent = thread::scope(|scope| {
        let stopper = Stop(&stop);
        let streaming = scope.spawn(|| stream(&mut sender, account.id, &stop));
        received.extend((0..A_WHILE).map(|_| recipient.push()));
        cluster.nodes[node].signal("TERM");
        while let Ok(text) = recipient.next_push() {
            received.push(parse(&text));
        }
        assert!(cluster.nodes[node].wait().success());
        recipient = login(nodes[other], &account);
        received.extend((0..A_WHILE).map(|_| recipient.push()));
        cluster.start_again_with(node, if is_newer { newer } else { as_it_is });
        recipient.logout();
        received.extend(recipient.pushed());
        recipient = login(nodes[node], &account);
        received.extend((0..A_WHILE).map(|_| recipient.push()));
        if is_newer {
            knows_the_others(cluster, node, &format!("{tag} witness"));
            received.extend((0..A_WHILE).map(|_| recipient.push()));
        }
        drop(stopper);
        streaming.join().expect("acks")
    });
    while received.len() < sent {
        received.push(recipient.push());
    }
    let mut numbers = Numbers::default();
    received.iter().for_each(|chat| numbers.take(chat));
    assert_eq!((received.len(), numbers.count(from)), (sent, sent), "none is lost, and none repeated");
    assert_eq!(recipient.pushed(), [] as [Value; 0]);
}

#[test]
fn a_cluster_is_upgraded_node_by_node_and_back_without_a_message_lost_or_repeated() {
    let mut cluster = Cluster::start(2);
    cluster.add_node_with(newer);
    for (is_newer, tags) in [(true, ["first", "second"]), (false, ["third", "fourth"])] {
        for (pair, tag) in BOTH_WAYS.into_iter().zip(tags) {
            replace(&mut cluster, pair, tag, is_newer);
        }
    }
}
