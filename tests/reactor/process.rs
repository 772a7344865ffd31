//! Rules that only the whole server can keep: 9 at a full descriptor table, and 15.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rlimit::Resource;
use socket2::SockRef;
use tempfile::TempDir;

use crate::probe;
use crate::support::{Client, DEADLINE, Launch, Server, eventually, eventually_within};
use crate::toy::{expect_bytes, expect_end};

const PING: &[u8] = b"{\"msgid\":202}\n";
const PONG: &[u8] = b"{\"msgid\":203}\n";

fn server() -> (Server, TempDir) {
    server_with(&[])
}

fn server_with(flags: &[&str]) -> (Server, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(&Launch {
        store: format!("sqlite:{}", dir.path().join("chat.db").display()),
        reactors: 2,
        workers: 1,
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        setup: String::new(),
        port: 0,
    });
    (server, dir)
}

fn connect(server: &Server) -> TcpStream {
    connect_to(server.address)
}

fn connect_to(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("the backlog has room");
    client.set_nodelay(true).unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

#[track_caller]
fn ping(client: &mut TcpStream) {
    client.write_all(PING).unwrap();
    expect_bytes(client, PONG);
}

/// Sets the soft limit of a running server's descriptors.
fn limit_descriptors(server: &Server, soft: u64) {
    let (mut was_soft, mut hard) = (0, 0);
    let pid = server.pid() as i32;
    rlimit::prlimit(pid, Resource::NOFILE, None, Some((&mut was_soft, &mut hard))).unwrap();
    rlimit::prlimit(pid, Resource::NOFILE, Some((soft, hard)), None).unwrap();
}

#[test]
fn a_full_descriptor_table_is_told_once_and_accepting_goes_on_without_a_new_event() {
    let (server, _dir) = server_with(&["--listen", "127.0.0.1:0"]);
    let mut first = connect(&server);
    ping(&mut first);
    // No number is free below the limit: descriptors are given out from the lowest.
    limit_descriptors(&server, 10);
    // At both listeners: what one of them lacks is lacking for the other, too.
    let mut waiting = [server.address, server.further_address()].map(connect_to);
    waiting.iter_mut().for_each(|client| client.write_all(PING).unwrap());
    let complaints = || server.log_tail().matches("cannot accept").count();
    eventually("the lack to be told", || complaints() > 0);
    let (told, acceptor) = (Instant::now(), thread_named(&server, "acceptor"));
    let (spent, slept) = (probe::cpu(&acceptor), probe::sleeps(&acceptor));
    eventually("three tries", || probe::sleeps(&acceptor) >= slept + 3);
    assert!(told.elapsed() > Duration::from_millis(900), "three tries in {:?}", told.elapsed());
    assert!(probe::cpu(&acceptor) - spent < Duration::from_millis(200), "the acceptor spins");
    assert_eq!(complaints(), 1, "{}", server.log_tail());
    ping(&mut first);
    limit_descriptors(&server, 1000);
    waiting.iter_mut().for_each(|client| expect_bytes(client, PONG));
}

/// A thread's folder in /proc.
fn thread_named(server: &Server, name: &str) -> std::path::PathBuf {
    let threads = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("the server lives");
    let mut folders = threads.flatten().map(|entry| entry.path());
    let is_it = |path: &std::path::PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|c| c.trim() == name);
    folders.find(is_it).expect("a thread of that name")
}

#[test]
fn sigpipe_is_not_restored() {
    let (server, _dir) = server();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("the server lives");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask");
    const SIGPIPE: u64 = 13;
    assert_ne!(ignored & 1 << (SIGPIPE - 1), 0, "{ignored:x}");
}

#[test]
fn writing_to_a_client_that_has_reset_does_not_end_the_server() {
    let (mut server, _dir) = server();
    for _ in 0..300 {
        let mut client = connect(&server);
        // After a FIN a reset shows as a broken pipe, which is what raises the signal.
        client.write_all(&PING.repeat(50)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    }
    assert!(server.is_alive(), "{}", server.log_tail());
    ping(&mut connect(&server));
}

#[test]
fn an_error_reply_survives_a_mebibyte_that_nobody_reads() {
    let (server, _dir) = server();
    let mut client = connect(&server);
    client.write_all(&[b"hello", &vec![b'?'; 1 << 20][..]].concat()).expect("the server reads on");
    let mut reply = String::new();
    client.read_to_string(&mut reply).expect("an end without a reset");
    assert!(reply.contains("10"), "{reply}");
    expect_end(&mut client);
}

#[test]
fn a_client_that_asks_for_lists_and_never_reads_does_not_fill_the_memory() {
    const REQUESTS: usize = 10_000;
    const BOUND_KIB: usize = 32 * 1024;
    let (server, _dir) = server();
    let mut client = Client::connect(server.address);
    let account = client.register("asker", "secret");
    client.login(&account);
    for n in 0..60 {
        let friend = client.register(&format!("{n:-<40}"), "secret");
        client.befriend(friend.id);
    }
    let (before, descriptors) = (server.resident_kib(), server.descriptors());
    let stream = client.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        // It fails when the server has had enough.
        scope.spawn(|| (&stream).write_all(&b"{\"msgid\":206}\n".repeat(REQUESTS)));
        // Lists count towards no mark; what ends it is the 30 s that unread bytes may wait.
        eventually_within(2 * DEADLINE, "a client that does not read to be closed", || {
            let grown = server.resident_kib().saturating_sub(before);
            if grown > BOUND_KIB {
                let _ = stream.shutdown(Shutdown::Both);
                panic!("{grown} KiB of answers wait for one client");
            }
            server.descriptors() < descriptors
        });
    });
}
