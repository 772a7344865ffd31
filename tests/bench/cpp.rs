//! The C++ server and its copies: stand-ins with their faults, of which they die.

use std::process::Command;
use std::time::Duration;

use mysql::Conn;
use mysql::prelude::Queryable;

use crate::support::{COPY, CppNode, Kind, MariaDb, REFERENCE, Redis};
use crate::tool::{Said, run};

struct World {
    url: String,
    redis: Redis,
}

impl World {
    fn new(tables: &str) -> World {
        let server = MariaDb::shared();
        let database = server.new_database();
        let mut conn = Conn::new(server.url("").as_str()).unwrap();
        conn.query_drop(format!("CREATE DATABASE {database} CHARACTER SET latin1")).unwrap();
        conn.query_drop(format!("USE {database}")).unwrap();
        tables.split(';').for_each(|sql| conn.query_drop(sql).unwrap());
        World { url: server.url(&database), redis: Redis::start() }
    }

    fn node(&self, kind: Kind) -> CppNode {
        CppNode::start_as(kind, &self.url, &self.redis.url(), 0)
    }

    /// The bench against one node; it lives on.
    fn load(&self, node: &CppNode, words: &str) -> Said {
        let said = run(&format!("--seconds 0.5 --addr {} {words}", node.address));
        assert!(node.is_alive(), "{said:?}");
        said
    }
}

#[test]
fn the_reference_is_loaded_without_its_death() {
    let world = World::new(REFERENCE);
    let node = world.node(Kind::Reference);
    let said = world.load(&node, "--users 8 --json --rounds 2");
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.result()["delivered"].as_u64().unwrap() > 100, "{said:?}");
    for part in [
        "no acks",
        "error for errno",
        "no msgid in login replies",
        "no errno in login replies",
        "to for toid",
        "friend for friends",
        "no logout",
        "no group ids",
        "keys sorted",
        "nothing behind objects",
        "one request at a time",
    ] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    // In an open loop one message of each connection is in flight, too; one behind it is timed from when it was due.
    let said = world.load(&node, "--users 8 --json --rate 5000");
    assert!(said.result()["lost"] == 0 && said.result()["delivered"].as_u64().unwrap() > 100, "{said:?}");
    let pids = format!("cpp={},redis={},mariadb={}", std::process::id(), world.redis.pid(), MariaDb::shared().pid());
    let said = world.load(&node, &format!("--users 4 --json --pid {pids}"));
    for name in ["cpp", "redis", "mariadb"] {
        assert!(said.result()["parts"][name]["cores"].is_number(), "{said:?}");
    }
}

#[test]
fn what_cannot_be_measured_there_is_refused_with_the_reason() {
    let world = World::new(REFERENCE);
    let node = world.node(Kind::Reference);
    for (words, reason) in [
        ("--workload group", "group"),
        ("--workload crowd", "group"),
        ("--workload store", "acks"),
        ("--workload drain", "acks"),
        ("--seq", "acks"),
        ("--workload login", "side by side"),
        ("--workload register", "side by side"),
        ("--window 2", "two objects in one read"),
        ("--batch", "two objects in one read"),
        ("--size 5000", "half an object"),
    ] {
        let said = world.load(&node, &format!("--users 4 {words}"));
        assert!(said.status == 1 && said.err.contains(reason), "{words}: {said:?}");
    }
}

#[test]
fn two_nodes_of_the_reference_have_one_sender_at_a_time() {
    let world = World::new(REFERENCE);
    let (first, second) = (world.node(Kind::Reference), world.node(Kind::Reference));
    let both = format!("--addr {},{}", first.address, second.address);
    let said = run(&format!("--seconds 0.5 --users 4 {both}"));
    assert!(said.status == 1 && said.err.contains("--users 2"), "{said:?}");
    let said = run(&format!("--seconds 0.5 --users 2 --json {both}"));
    assert!(said.status == 0 && said.result()["delivered"].as_u64().unwrap() > 10, "{said:?}");
    assert!(first.is_alive() && second.is_alive());
}

#[test]
fn a_copy_in_canon_is_found_out_and_has_groups() {
    let world = World::new(COPY);
    let node = world.node(Kind::Copy);
    let said = world.load(&node, "--users 6 --json --workload group --members 3");
    assert!(said.status == 0 && said.result()["delivered"].as_u64().unwrap() > 100, "{said:?}");
    for part in ["no acks", "toid", "group ids at login", "NUL behind objects"] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    let said = world.load(&node, "--users 6 --json");
    assert!(said.status == 0 && said.result()["delivered"].as_u64().unwrap() > 100, "{said:?}");
}

#[test]
fn a_signal_ends_it_without_the_references_death() {
    let world = World::new(REFERENCE);
    let node = world.node(Kind::Reference);
    let child = crate::tool::start(&format!("--seconds 60 --users 4 --json --addr {}", node.address));
    std::thread::sleep(Duration::from_secs(3)); // wherever it is
    let status = Command::new("kill").arg("-INT").arg(child.id().to_string()).status();
    assert!(status.unwrap().success());
    let said = crate::tool::finish(child);
    assert_eq!(said.status, 130, "{said:?}");
    assert!(node.is_alive(), "{said:?}");
}

/// In the process that the test below has the tool start, a stand-in, for as long as it lives.
fn be_the_rival() {
    let (Ok(port), Ok(url), Ok(redis)) =
        (std::env::var("STAND_IN_PORT"), std::env::var("STAND_IN_MYSQL"), std::env::var("STAND_IN_REDIS"))
    else {
        return;
    };
    let node = CppNode::start_as(Kind::Reference, &url, &redis, port.parse().unwrap());
    while node.is_alive() {
        std::thread::sleep(Duration::from_millis(50));
    }
    std::process::exit(1);
}

#[test]
fn any_server_of_the_family_is_measured_in_turn_with_ours() {
    be_the_rival();
    let world = World::new(REFERENCE);
    let own = std::env::current_exe().unwrap();
    let command = format!(
        "STAND_IN_PORT={{port}} STAND_IN_MYSQL={} STAND_IN_REDIS={} {} --exact cpp::any_server_of_the_family_is_measured_in_turn_with_ours",
        world.url,
        world.redis.url(),
        own.display()
    );
    let said = crate::tool::load(&["--users", "4", "--seconds", "0.5", "--json", "--rounds", "2", "--rival", &command]);
    assert_eq!(said.status, 0, "{said:?}");
    let results = said.json()["results"].as_array().unwrap().clone();
    let names: Vec<&str> = results.iter().map(|result| result["target"].as_str().unwrap()).collect();
    assert_eq!(names, ["server", "rival"], "{said:?}");
    assert!(results[1]["delivered"].as_u64().unwrap() > 10 && results[1]["cpu_us"].as_f64().unwrap() > 0.0, "{said:?}");
}
