//! Two servers, or two files, beside each other.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::eventually;
use crate::tool::{Said, finish, load, run, start};

const SERVER: &str = env!("CARGO_BIN_EXE_chat-server");

/// A program that does this and starts the server with its words.
fn program(folder: &Path, name: &str, does: &str, further: &str) -> String {
    let file = folder.join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{does}\nexec {SERVER} \"$@\" {further}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file.display().to_string()
}

#[test]
fn a_binary_is_no_different_from_itself() {
    // An interval errs now and then, and more often on a machine with much else to do; but not always.
    let mut tries = (0..4).map(|_| load(&["compare", SERVER, SERVER, "--users", "8", "--seconds", "0.2", "--json"]));
    let is_the_same = |said: &Said| {
        let rows = said.json()["rows"].as_array().unwrap().clone();
        assert!(rows.len() >= 6, "{said:?}");
        said.status == 0 && rows.iter().all(|row| row["verdict"] == "no difference")
    };
    assert!(tries.any(|said| is_the_same(&said)), "in four tries there was a difference");
}

#[test]
fn a_server_that_does_much_more_is_worse() {
    // The same server, with password hashes that cost more than the benchmark was given.
    let folder = tempfile::tempdir().unwrap();
    let words = "set -- $(printf '%s ' \"$@\" | sed 's/--password-cost 8,1/--password-cost 4096,2/')";
    let slow = program(folder.path(), "slow", words, "");
    let said =
        load(&["compare", SERVER, &slow, "--workload", "register", "--users", "8", "--seconds", "0.3", "--json"]);
    let rows = said.json()["rows"].as_array().unwrap().clone();
    let cpu = rows.iter().find(|row| row["row"] == "CPU us").unwrap().clone();
    assert!(said.status == 2 && cpu["verdict"] == "worse", "{said:?}");
}

/// Refuses the flag that sets the users' homes, as servers do whose reactors take connections in turn.
const EARLIER: &str = "for word; do if [ \"$word\" = --home-seed ]; then exit 1; fi; done";

#[test]
fn an_earlier_server_to_whose_reactors_connections_come_in_turn_is_compared() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = program(folder.path(), "earlier", EARLIER, "");
    let said = load(&["compare", &earlier, SERVER, "--users", "8", "--seconds", "0.2", "--together", "--json"]);
    assert!(matches!(said.status, 0 | 2) && !said.err.contains(", round "), "{said:?}");
    assert!(said.json()["rows"].as_array().unwrap().len() >= 6, "{said:?}");
}

/// How many chats have stayed on a reactor, and have gone to another.
fn chats(port: u16) -> std::io::Result<[f64; 2]> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    let of = |path: &str| {
        let rows = page.lines().filter(|row| row.starts_with("chat_messages_total{") && row.contains(path));
        rows.filter_map(|row| row.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    Ok([of("path=\"same_reactor\""), of("path=\"other_reactor\"")])
}

#[test]
fn both_of_a_pair_are_where_they_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    for (n, (words, is_together)) in [
        ("--users 8", false),
        ("--users 8 --together", true),
        ("--users 12 --reactors 3", false),
        ("--users 12 --reactors 3 --together", true),
    ]
    .into_iter()
    .enumerate()
    {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let metered = program(folder.path(), &n.to_string(), "", &format!("--metrics 127.0.0.1:{port}"));
        let child = start(&format!("compare {metered} {metered} {words}"));
        let mut seen = [0.0; 2];
        eventually("messages to pass", || {
            seen = chats(port).unwrap_or(seen);
            seen.into_iter().sum::<f64>() > 100.0
        });
        let status = Command::new("kill").arg("-INT").arg(child.id().to_string()).status();
        assert!(status.unwrap().success());
        let said = finish(child);
        assert_eq!(seen[usize::from(is_together)], 0.0, "{words}: {seen:?}, {said:?}");
    }
}

#[test]
fn sessions_that_do_nothing_are_compared_by_their_memory() {
    let said = load(&["compare", SERVER, SERVER, "--workload", "idle", "--users", "600", "--seconds", "0.1", "--json"]);
    assert!(matches!(said.status, 0 | 2), "{said:?}");
    let rows = said.json()["rows"].as_array().unwrap().clone();
    assert!(rows.len() == 1 && rows[0]["row"] == "bytes a session", "{said:?}");
}

#[test]
fn a_part_of_what_the_first_one_carries_is_the_rate_of_both() {
    let said = load(&["compare", SERVER, SERVER, "--users", "8", "--seconds", "0.3", "--rate", "10%", "--json"]);
    assert!(matches!(said.status, 0 | 2), "{said:?}");
    let settings = &said.json()["settings"];
    assert!(settings["loop"] == "open" && settings["rate"].as_f64().unwrap() >= 1.0, "{said:?}");
}

#[test]
fn files_are_compared_if_they_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    for (name, words) in [
        ("a", "--users 4 --rounds 7"),
        ("b", "--users 4 --rounds 7"),
        ("c", "--users 8 --rounds 7"),
        ("d", "--users 4 --rounds 2"),
    ] {
        let said = run(&format!("--seconds 0.1 {words} --out {}", file(name)));
        assert_eq!(said.status, 0, "{said:?}");
    }
    let said = load(&["compare", &file("a"), &file("b")]);
    assert!(matches!(said.status, 0 | 2) && said.out.contains("95 %"), "{said:?}");
    let said = load(&["compare", &file("a"), &file("c")]);
    assert!(said.status == 1 && said.err.contains("users 4 and 8"), "{said:?}");
    let said = load(&["compare", &file("a"), &file("d")]);
    assert!(said.status == 1 && said.err.contains("2 rounds"), "{said:?}");
    let said = load(&["compare", &file("a"), &file("b"), "--users", "4"]);
    assert!(said.status == 1 && said.err.contains("--users"), "{said:?}");
    // A result with ten times the CPU time.
    let mut text: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file("a")).unwrap()).unwrap();
    for round in text["rounds"][0].as_array_mut().unwrap() {
        for part in ["user", "system"] {
            let cpu = &mut round["parts"][0]["cpu"][part];
            *cpu = (cpu.as_f64().unwrap() * 10.0).into();
        }
    }
    std::fs::write(file("e"), text.to_string()).unwrap();
    let said = load(&["compare", &file("a"), &file("e"), "--json"]);
    let rows = said.json()["rows"].as_array().unwrap().clone();
    for row in rows {
        let verdict = if row["row"] == "CPU us" { "worse" } else { "no difference" };
        assert_eq!(row["verdict"], verdict, "{said:?}");
    }
    assert_eq!(said.status, 2);
    // And in the reverse order.
    let said = load(&["compare", &file("e"), &file("a"), "--json"]);
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.out.contains("better"), "{said:?}");
}
