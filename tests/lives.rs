//! A node that others have taken for dead: it closes everything, and begins anew on the same ports, as soon as it
//! can. The mark is set in the database, as another node would.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use mysql::prelude::Queryable;
use serde_json::json;
use support::{Account, Client, Cluster, DEADLINE, MariaDb, REAPED, Server, eventually, eventually_within};

const METRICS: [&str; 2] = ["--metrics", "127.0.0.1:0"];

/// What is answered to a GET: status line and headers, and body.
#[track_caller]
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a time-out");
    stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).expect("it is taken");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("an answer");
    reply.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned())).expect("a head")
}

fn is_ready(monitor: SocketAddr) -> bool {
    get(monitor, "/readyz").0.starts_with("HTTP/1.1 200")
}

/// The nodes that stand in the membership, and whether they are marked.
fn membership(database: &mut mysql::Conn) -> Vec<(u64, bool)> {
    database.query("SELECT node, marked FROM NodeMark ORDER BY node").expect("the database answers")
}

fn mark(database: &mut mysql::Conn, node: u64) {
    database.query_drop(format!("UPDATE NodeMark SET marked = TRUE WHERE node = {node}")).expect("it is marked");
}

/// How often a node has begun anew.
fn lives(node: &Server) -> usize {
    node.log_tail().matches(" again\n").count()
}

fn threads(node: &Server) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.pid())).expect("it lives").map_while(Result::ok);
    let mut names: Vec<String> = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok()).collect();
    names.sort();
    names
}

/// One node, a Redis of its own, and a connection to its database.
fn start() -> (Cluster, mysql::Conn) {
    let url = MariaDb::shared().url(&MariaDb::shared().new_database());
    let cluster = Cluster::at(url.clone(), 1, &METRICS);
    (cluster, mysql::Conn::new(url.as_str()).expect("the database is there"))
}

#[test]
fn a_node_that_is_marked_ends_its_sessions_and_begins_anew_under_another_number_and_leaves_nothing_behind() {
    const LIVES: usize = 4;
    const READERS: usize = 24;
    /// Messages of 1,000 bytes for each of them: less than the high-water mark.
    const QUEUED: usize = 900;
    let (cluster, mut database) = start();
    let node = &cluster.nodes[0];
    let monitor = node.monitor();
    let account = Client::connect(node.address).register("someone", "secret");
    let readers: Vec<Account> = (0..READERS)
        .map(|reader| Client::connect(node.address).register(&format!("reader {reader}"), "secret"))
        .collect();
    let mut numbers = vec![membership(&mut database)[0].0];
    let (mut held, mut resident) = (Vec::new(), Vec::new());
    for life in 1..=LIVES {
        let (mut client, mut stranger) = (Client::connect(node.address), Client::connect(node.address));
        eventually_within(REAPED, "a login", || client.try_login(&account)["errno"] == 0);
        stranger.sync();
        // Some megabytes wait in memory for clients that do not read.
        let silent: Vec<Client> = readers
            .iter()
            .map(|reader| {
                let mut silent = Client::connect_with_receive_buffer(node.address, 4 << 10).expect("a client");
                eventually_within(REAPED, "a login", || silent.try_login(reader)["errno"] == 0);
                silent
            })
            .collect();
        let text = "x".repeat(1000);
        for reader in readers.iter().flat_map(|reader| std::iter::repeat_n(reader, QUEUED)) {
            client.post(&client.chat_to(reader.id, &text));
        }
        client.sync();
        mark(&mut database, numbers[life - 1]);
        client.expect_end();
        stranger.expect_end();
        drop(silent);
        eventually("the next life", || lives(node) == life);
        eventually("the node to be ready", || is_ready(monitor));
        // The new one frees what the old one had.
        eventually_within(REAPED, "the old one to be struck off", || {
            let left = membership(&mut database);
            left.len() == 1 && !left[0].1 && !numbers.contains(&left[0].0)
        });
        numbers.push(membership(&mut database)[0].0);
        held.push((threads(node), node.descriptors()));
        resident.push(node.resident_kib());
    }
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), LIVES + 1, "{numbers:?}");
    let threads: Vec<_> = held.iter().map(|(threads, _)| threads).collect();
    assert!(threads.iter().all(|one| *one == threads[0]), "{threads:#?}");
    let descriptors: Vec<_> = held.iter().map(|(_, descriptors)| *descriptors).collect();
    assert!(descriptors.iter().all(|n| n.abs_diff(descriptors[0]) < 6), "{descriptors:?}");
    println!("resident KiB at the beginning of each life: {resident:?}");
    // Together the lives leave behind less than what one of them had queued.
    let queued = READERS * QUEUED * 1000 / 1024;
    assert!(resident.iter().all(|kib| *kib < resident[0] + queued), "memory grows: {resident:?}");
    let log = node.log_tail();
    assert_eq!(log.matches("other nodes took this one for dead").count(), LIVES, "{log}");
}

#[test]
fn a_node_that_cannot_begin_anew_is_not_ready_turns_clients_away_and_tries_until_it_can() {
    let (mut cluster, mut database) = start();
    let monitor = cluster.nodes[0].monitor();
    let mut client = Client::connect(cluster.nodes[0].address);
    let account = client.register("someone", "secret");
    client.login(&account);
    assert!(is_ready(monitor) && get(monitor, "/metrics").1.contains("chat_sessions"));
    let number = membership(&mut database)[0].0;
    cluster.redis.kill();
    mark(&mut database, number);
    client.expect_end();
    let node = &cluster.nodes[0];
    eventually("it to be told", || node.log_tail().contains("cannot begin anew yet"));
    let (head, body) = get(monitor, "/readyz");
    assert!(head.starts_with("HTTP/1.1 503") && body.contains("begins anew"), "{head} {body}");
    assert_eq!(get(monitor, "/healthz").1, "alive\n");
    let (_, metrics) = get(monitor, "/metrics");
    assert!(metrics.contains("process_start_time_seconds") && !metrics.contains("chat_sessions"), "{metrics}");
    eventually("clients to be turned away", || Client::connect(node.address).next_text().is_ok());
    let mut late = Client::connect(node.address);
    assert_eq!(late.recv()["errno"], 20);
    late.expect_end();
    cluster.redis.restart();
    let node = &cluster.nodes[0];
    eventually("the node to be ready", || is_ready(monitor));
    eventually_within(REAPED, "a login", || Client::connect(node.address).try_login(&account)["errno"] == 0);
    let node = &mut cluster.nodes[0];
    assert_eq!(node.stop("TERM").code(), Some(0));
    let log = node.log_tail();
    assert_eq!(log.matches("cannot begin anew yet").count(), 1, "{log}");
    assert_eq!(log.matches("can begin anew").count(), 1, "{log}");
}

#[test]
fn a_node_that_cannot_begin_anew_can_end() {
    let (mut cluster, mut database) = start();
    let mut client = Client::connect(cluster.nodes[0].address);
    client.sync();
    cluster.redis.kill();
    let number = membership(&mut database)[0].0;
    mark(&mut database, number);
    client.expect_end();
    eventually("it to be told", || cluster.nodes[0].log_tail().contains("cannot begin anew yet"));
    assert_eq!(cluster.nodes[0].stop("TERM").code(), Some(0));
}

#[test]
fn what_a_node_has_half_done_when_it_is_marked_is_not_acked() {
    let (cluster, mut database) = start();
    let node = &cluster.nodes[0];
    let mut client = Client::connect(node.address);
    let [me, absent] = ["someone", "absent"].map(|name| client.register(name, "secret"));
    client.login(&me);
    assert!(!client.chat(absent.id, "before"));
    let number = membership(&mut database)[0].0;
    // The transaction that marks it waits until nothing of it is open.
    database.query_drop("START TRANSACTION").expect("it begins");
    mark(&mut database, number);
    let seq = client.start(json!({"msgid": 6, "id": me.id, "name": "someone", "toid": absent.id, "msg": "in between",
        "time": "2026-01-02 03:04:05"}));
    database.query_drop("COMMIT").expect("it is committed");
    assert!(client.next_reply(seq).is_err(), "it is acked");
    let kept: Option<i64> = database.query_first("SELECT COUNT(*) FROM OfflineMessage").expect("an answer");
    assert_eq!(kept, Some(1));
}
