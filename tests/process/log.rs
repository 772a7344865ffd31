//! A log that no process reads, or that cannot be written, delays no client, and what is missing is counted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use chat_server::wire::Framing;
use serde_json::json;

use crate::support::{Client, Process, eventually, free_ports};
use crate::{Running, server_after};

/// What is logged of a client, where everything is, is a few hundred bytes.
const CLIENTS: usize = 1500;

/// Asks for as many log lines as overflow any pipe.
#[track_caller]
fn keep_busy(address: SocketAddr) {
    for _ in 0..CLIENTS {
        Client::connect(address).sync();
    }
}

/// A number in `/metrics`.
fn metric(monitor: SocketAddr, name: &str) -> f64 {
    let mut stream = TcpStream::connect(monitor).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let line = reply.lines().find(|line| line.starts_with(&format!("{name} "))).expect("it is told");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// A server whose log goes where `redirection` says, on ports that it was given.
fn started(redirection: &str, stderr: Stdio) -> (Process, SocketAddr, SocketAddr, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let [port, metrics] = free_ports().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let setup = format!("export RUST_LOG=trace; exec {redirection}");
    let words = ["--metrics", &metrics.to_string(), "127.0.0.1", &port.port().to_string()];
    let mut command = server_after(&setup, &dir, &words);
    let process = Process(command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap());
    eventually("the server to listen", || TcpStream::connect(port).is_ok());
    (process, port, metrics, dir)
}

#[track_caller]
fn expect_an_end_in_time(process: &mut Process) {
    let began = Instant::now();
    assert_eq!(process.stop("TERM").code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(8), "took {:?}", began.elapsed());
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_nobody() {
    let (mut process, address, _, _dir) = started("2>&2", Stdio::piped());
    keep_busy(address);
    let mut client = Client::connect(address);
    let account = client.register("someone", "secret");
    client.login(&account);
    expect_an_end_in_time(&mut process);
    let mut log = String::new();
    process.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    // It holds 64 KiB, less what the last line of each page leaves of it.
    assert!(log.contains("listening on") && log.len() > 48 << 10, "the pipe was not full: {} bytes", log.len());
    assert!(!log.contains("stopped"), "somebody has read it");
}

#[test]
fn what_a_pipe_and_the_memory_have_no_room_for_is_counted_and_told_when_it_is_read() {
    let (mut process, address, metrics, _dir) = started("2>&2", Stdio::piped());
    eventually("lines to be dropped", || {
        keep_busy(address);
        metric(metrics, "chat_log_lines_dropped_total") > 0.0
    });
    let (sender, lines) = mpsc::channel();
    let stderr = BufReader::new(process.0.stderr.take().unwrap());
    thread::spawn(move || stderr.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    let told = |line: &String| line.contains(" lines of the log were dropped here");
    let told = lines.iter().find(told).expect("it is told");
    let count: f64 = told.split("] ").nth(1).and_then(|text| text.split(' ').next()).unwrap().parse().unwrap();
    assert!(count > 0.0 && count <= metric(metrics, "chat_log_lines_dropped_total"), "{told}");
    // What comes now is there, to the last line.
    expect_an_end_in_time(&mut process);
    assert!(lines.iter().last().is_some_and(|line| line.ends_with("stopped")));
}

#[test]
fn a_log_that_cannot_be_written_holds_up_nobody_and_its_lines_are_counted() {
    for redirection in ["2>/dev/full", "2>&-", "2> >(exec <&-)"] {
        let (mut process, address, metrics, _dir) = started(redirection, Stdio::null());
        Client::connect(address).sync();
        // What goes nowhere because it was closed is thrown away by the system.
        if redirection != "2>&-" {
            eventually("lost lines to be counted", || metric(metrics, "chat_log_lines_dropped_total") > 0.0);
        }
        expect_an_end_in_time(&mut process);
    }
}

#[test]
fn what_is_missing_is_told_when_the_log_can_be_written_again() {
    // Past its limit of size nothing goes into the file, until it is emptied.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log");
    let (mut process, address, metrics, _dir) =
        started(&format!("2>>{}; ulimit -S -f 100", file.display()), Stdio::null());
    let dropped = || metric(metrics, "chat_log_lines_dropped_total");
    eventually("the file to be full", || {
        keep_busy(address);
        dropped() > 0.0
    });
    std::fs::File::create(&file).unwrap();
    eventually("it to be told", || {
        Client::connect(address).sync();
        std::fs::read_to_string(&file).is_ok_and(|log| log.contains(" lines of the log were dropped here"))
    });
    expect_an_end_in_time(&mut process);
}

#[test]
fn the_last_lines_are_written_and_in_order() {
    for setup in ["", "export RUST_LOG=debug"] {
        let (status, log) = Running::start(setup, &[]).end("TERM");
        assert_eq!(status.code(), Some(0));
        let last: Vec<&str> = log.lines().rev().take(1).collect();
        assert!(last[0].ends_with("stopped"), "{log}");
        assert!(log.find("listening on") < log.find("stopping"), "{log}");
    }
}

#[test]
fn a_filter_that_cannot_be_read_is_told_in_the_log() {
    let (_, log) = Running::start("export RUST_LOG=info,chat_server=loud", &[]).end("TERM");
    assert!(log.contains("'chat_server=loud' is no filter"), "{log}");
}

#[test]
fn what_connections_send_and_get_is_logged_where_it_is_asked_for_and_no_password() {
    for (flags, is_logged) in [(&["--trace-wire", "on"][..], true), (&[][..], false)] {
        let server = Running::start("", flags);
        let mut client = server.client().framed(Framing::Nul);
        client.send(r#"{"msgid":4,"name":"li","password":"hunter2"}"#);
        let id = client.recv()["id"].clone();
        client.send(json!({"msgid": 1, "id": id, "password": "hunter2"}).to_string());
        client.recv();
        client.send_raw("GET / HTTP/1.1 hunter2\r\n");
        client.recv();
        client.expect_end();
        let (_, log) = server.end("TERM");
        let lines: Vec<&str> = log
            .lines()
            .filter_map(|line| line.split_once(" wire] ")?.1.split_once(": "))
            .map(|(_, shown)| shown)
            .collect();
        assert!(!log.contains("hunter2"), "{log}");
        if !is_logged {
            assert!(lines.is_empty(), "{log}");
            continue;
        }
        assert_eq!(lines[0], r#"<- {"msgid":4,"name":"li","password":"…"}\0"#);
        assert!(lines[1].starts_with("-> {\"msgid\":5,") && lines[1].ends_with("}\\0"), "{log}");
        assert!(lines[2].starts_with("<- {") && lines[3].starts_with("-> {\"msgid\":2,"), "{log}");
        assert_eq!(lines[4], "<- 24 bytes that are no JSON: 47 45 54 20");
        assert!(lines[5].starts_with("-> {\"msgid\":201,") && lines.len() == 6, "{log}");
    }
}
