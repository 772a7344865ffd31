//! Flags at their bounds and past them: each value is refused in a line that says what is allowed, or the
//! server serves with it.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::thread;

use crate::support::{CHAT_CLIENT, Client, eventually};
use crate::{CHAT_SERVER, Running, outcome, program, server_after};

/// A flag that takes a number or a time.
struct Flag {
    name: &'static str,
    accepted: Vec<String>,
    refused: Vec<String>,
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

/// Past what any number can be, and what is none.
const NO_NUMBERS: [&str; 7] = ["", " ", "-1", "1e3", "1.0", "0x10", "18446744073709551616"];

fn count(name: &'static str, min: u64, max: u64) -> Flag {
    let mut refused = texts(&NO_NUMBERS);
    refused.extend([min - 1, max + 1, u64::MAX].map(|number| number.to_string()));
    Flag { name, accepted: [min, max].map(|number| number.to_string()).to_vec(), refused }
}

/// A number or "off".
fn bound(name: &'static str) -> Flag {
    let Flag { mut accepted, mut refused, .. } = count(name, 1, u32::MAX.into());
    accepted.push("off".to_owned());
    refused.push("-off".to_owned());
    Flag { name, accepted, refused }
}

fn time(name: &'static str) -> Flag {
    let mut refused = texts(&NO_NUMBERS);
    refused.extend(texts(&["0", "0s", "999us", "-1s", "10", "11years", "9223372036854775807s"]));
    refused.extend(texts(&["18446744073709551615s", "18446744073709551616s", "18446744073709551615years"]));
    Flag { name, accepted: texts(&["1ms", "10years", "off"]), refused }
}

fn numbers() -> Vec<Flag> {
    vec![
        count("--reactors", 1, 256),
        count("--workers", 1, 256),
        count("--max-connections", 1, 10_000_000),
        count("--max-message", 256, 16 << 20),
        count("--max-message-before-login", 256, 16 << 20),
        count("--high-water", 4096, 1 << 30),
        count("--max-buffered", 1 << 20, 1 << 40),
        bound("--max-connections-per-address"),
        bound("--max-offline"),
        bound("--max-friends"),
        bound("--max-groups"),
        bound("--max-group-size"),
        bound("--max-failed-logins"),
        bound("--max-registrations"),
        bound("--max-message-rate"),
        bound("--max-byte-rate"),
        time("--login-timeout"),
        time("--idle-timeout"),
        Flag {
            name: "--password-cost",
            accepted: texts(&["8,1", "8,16", "262144,1"]),
            refused: texts(&[
                "",
                "8",
                "7,1",
                "8,0",
                "-8,1",
                "262145,1",
                "8,17",
                "4294967304,1",
                "8,18446744073709551617",
            ]),
        },
        Flag {
            name: "--metrics",
            accepted: texts(&["127.0.0.1:0"]),
            refused: texts(&["", "127.0.0.1", "9100", "127.0.0.1:-1", "127.0.0.1:65536", "localhost:9100"]),
        },
        Flag {
            name: "--listen",
            accepted: texts(&["127.0.0.1:0", "127.0.0.1:0,dialect=b", "127.0.0.1:0 127.0.0.1:0,dialect=canon;"]),
            refused: texts(&[
                "127.0.0.1",
                "7000",
                "-1",
                "127.0.0.1:65536",
                "127.0.0.1:0,b",
                "127.0.0.1:0,dialect=none",
            ]),
        },
        Flag {
            name: "--web-origins",
            accepted: texts(&["*", "https://example.com", "http://10.0.0.7:8080,https://[::1]"]),
            refused: texts(&[
                "",
                "example.com",
                "https://",
                "ftp://example.com",
                "https://example.com/",
                "https://*.com",
            ]),
        },
        Flag {
            name: "--proxy-protocol",
            // No client comes from there.
            accepted: texts(&["10.0.0.0/0", "::/0"]),
            refused: texts(&["10.0.0.0/33", "10.0.0.0/-1", "::/129", "10.0.0.0/4294967296", "nginx"]),
        },
    ]
}

/// Flags that take neither a number nor a time.
const OTHERS: [&str; 12] = [
    "--store",
    "--redis",
    "--mixed",
    "--mysql-charset",
    "--limits",
    "--login-memo",
    "--legacy-client",
    "--trace-wire",
    "--dialect",
    "--web",
    "--help",
    "--version",
];

/// The flags that a program's own help names.
fn named_in_help(path: &str) -> BTreeSet<String> {
    let mut command = program(path);
    command.arg("--help");
    let (status, help) = outcome(command);
    assert_eq!(status.code(), Some(0), "{help}");
    let mut names = BTreeSet::new();
    for line in help.lines().map(str::trim_start).filter(|line| line.starts_with('-')) {
        let name = line.split("--").nth(1).unwrap();
        names.insert(format!("--{}", name.split([' ', '[', '=']).next().unwrap()));
    }
    names
}

#[test]
fn every_flag_is_tried_at_its_bounds() {
    let tried: BTreeSet<String> = numbers().iter().map(|flag| flag.name).chain(OTHERS).map(str::to_owned).collect();
    assert_eq!(named_in_help(CHAT_SERVER), tried, "a flag is not tried, or is none");
    let client = ["--lang", "--dialect", "--tls", "--tls-ca", "--tls-name", "--help", "--version"].map(str::to_owned);
    assert_eq!(named_in_help(CHAT_CLIENT), client.into(), "one that takes a number is to be tried");
}

#[test]
fn what_is_past_the_bounds_is_refused_in_a_line_that_names_the_flag_and_says_what_is_allowed() {
    for Flag { name, refused, .. } in numbers() {
        let variable = format!("CHAT_{}", name.trim_start_matches('-').replace('-', "_").to_uppercase());
        for value in refused {
            let ways = [
                (vec![name.to_owned(), value.clone()], None),
                (vec![format!("{name}={value}")], None),
                (Vec::new(), Some(&variable)),
            ];
            for (words, set) in ways {
                let mut command = program(CHAT_SERVER);
                command.args(&words).args(["127.0.0.1", "0"]);
                if let Some(variable) = set {
                    command.env(variable, &value);
                }
                let (status, text) = outcome(command);
                assert_eq!(status.code(), Some(2), "{name} {value:?} {words:?}: {text}");
                assert_eq!(text.trim().lines().count(), 1, "{name} {value:?}: {text}");
                assert!(text.contains(name) && text.contains("must be "), "{name} {value:?}: {text}");
                assert!(set.is_none_or(|variable| text.contains(variable.as_str())), "{text}");
            }
        }
    }
    for (path, words) in [
        (CHAT_SERVER, &["127.0.0.1", "65536"][..]),
        (CHAT_SERVER, &["65536"]),
        (CHAT_SERVER, &["-1"]),
        (CHAT_SERVER, &[""]),
        (CHAT_SERVER, &["127.0.0.1", "18446744073709551616"]),
        (CHAT_CLIENT, &["127.0.0.1", "0"]),
        (CHAT_CLIENT, &["127.0.0.1", "65536"]),
        (CHAT_CLIENT, &["127.0.0.1", "-1"]),
        (CHAT_CLIENT, &["127.0.0.1", ""]),
    ] {
        let mut command = program(path);
        command.args(words);
        let (status, text) = outcome(command);
        assert_eq!(status.code(), Some(2), "{words:?}: {text}");
        assert!(!text.contains("panicked"), "{words:?}: {text}");
    }
}

/// Registers and logs in on one connection, for there may be only one, then ends the server.
#[track_caller]
fn expect_to_serve(flags: &[&str]) {
    let server = Running::start("", flags);
    if flags.contains(&"1ms") {
        let mut client = server.client();
        assert_eq!(client.recv()["errno"], 20);
        client.expect_end();
    } else if flags[0] == "--proxy-protocol" && flags[1] == "10.0.0.0/0" {
        server.client().send_raw(b"PROXY UNKNOWN\r\n");
    } else if flags == ["--max-byte-rate", "1"] {
        server.client().sync(); // a login is too much for that
    } else if flags[0] != "--proxy-protocol" {
        let mut client = server.online("someone");
        client.sync();
    }
    // Whatever that was, it has not hurt the server.
    eventually("the server to take another one", || Client::try_connect(server.address).is_ok());
    let (status, log) = server.end("TERM");
    assert_eq!(status.code(), Some(0), "{flags:?}: {log}");
    assert!(!log.contains("panicked"), "{flags:?}: {log}");
}

#[test]
fn what_is_within_the_bounds_serves() {
    let flags = numbers();
    for Flag { name, accepted, .. } in &flags {
        thread::scope(|scope| {
            for value in accepted {
                scope.spawn(|| expect_to_serve(&[name, value]));
            }
        });
    }
    // All at their least, and all at their greatest: what is computed of several is within its bounds, too.
    let all = |which: fn(&[String]) -> &String, but: &[&str]| -> Vec<String> {
        let flags = flags.iter().filter(|flag| flag.name != "--proxy-protocol" && !but.contains(&flag.name));
        flags.flat_map(|flag| [flag.name.to_owned(), which(&flag.accepted).clone()]).collect()
    };
    let timeouts = ["--login-timeout", "--idle-timeout", "--max-message-rate", "--max-byte-rate"];
    let least = all(|values| &values[0], &timeouts);
    let most = all(|values| &values[1.min(values.len() - 1)], &["--password-cost"]);
    let mixed = ["--reactors", "256", "--max-buffered", "1048576", "--high-water", "4096", "--max-message", "16777216"];
    for flags in [least, most, texts(&mixed)] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        expect_to_serve(&flags);
    }
}

const SWITCHES: [(&str, &str); 3] =
    [("--mixed", "CHAT_MIXED"), ("--legacy-client", "CHAT_LEGACY_CLIENT"), ("--login-memo", "CHAT_LOGIN_MEMO")];

#[test]
fn a_switch_is_on_or_off_in_the_words_that_people_use() {
    let on = ["1", "true", "yes", "on", "TRUE", "Yes", "oN"];
    let off = ["0", "false", "no", "off", "FALSE", "No", "oFF", ""];
    let none = ["2", "maybe", "enable", "y es", "t", "null", "-1", "01"];
    // Whatever is accepted goes on to this.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    for (flag, variable) in SWITCHES {
        for value in on.into_iter().chain(off).chain(none) {
            let word = format!("{flag}={value}");
            for (words, set) in [(&["127.0.0.1", &port][..], true), (&[&word, "127.0.0.1", &port], false)] {
                let mut command = server_after("", &dir, words);
                if set {
                    command.env(variable, value);
                }
                let (_, text) = outcome(command);
                let expected = if none.contains(&value) {
                    "must be 1, true, yes or on, or else 0, false, no or off"
                } else if flag == "--mixed" && on.contains(&value) {
                    "--mixed needs a store that nodes can share"
                } else {
                    "cannot listen on"
                };
                assert!(text.contains(expected), "{flag} {value:?}: {text}");
            }
        }
    }
    let (_, text) = outcome(server_after("", &dir, &["--mixed", "127.0.0.1", &port]));
    assert!(text.contains("--mixed needs a store"), "{text}");
    // The command line has the last word.
    let mut command = server_after("", &dir, &["--mixed=off", "127.0.0.1", &port]);
    command.env("CHAT_MIXED", "on");
    assert!(outcome(command).1.contains("cannot listen on"));
}
