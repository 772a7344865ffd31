//! Rule 7: one write a turn, and WRITABLE only while something is left.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::reactor::{Body, ConnId, Io, Message, Outbox, Taken};

use crate::probe;
use crate::support::eventually;
use crate::toy::{Event, Tag, Toy, UNCOUNTED, expect_bytes, message, send, start, swallow};

/// Answers in sixteen messages.
fn sixteen_answers(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
    (0..16).for_each(|_| assert!(send(io, conn, input, None)));
    Taken { bytes: input.len(), more: false }
}

#[test]
fn the_messages_of_one_input_do_not_leave_in_a_write_each() {
    let reactors = start(sixteen_answers);
    let (mut client, _) = reactors.connect();
    client.write_all(b"again").unwrap();
    expect_bytes(&mut client, &b"again".repeat(16));
    assert_eq!(probe::segments(&client), 1, "writes");
}

#[test]
fn the_messages_of_many_letters_do_not_leave_in_a_write_each() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    let proc = &reactors.threads[0].proc;
    let shared: Arc<[u8]> = vec![b's'; 2000].into();
    let before = probe::writes(proc);
    let stall = reactors.stall(0);
    for _ in 0..16 {
        let shared = Arc::clone(&shared);
        reactors.tell(0, move |_, io| {
            send(io, conn, b"small", Some(Tag::Reply(0)));
            io.send(conn, Message { body: Body::Shared(&shared), ..message(b"", None) });
        });
    }
    drop(stall);
    expect_bytes(&mut client, &[b"small", &shared[..]].concat().repeat(16));
    reactors.turns(0, 1);
    assert_eq!(probe::writes(proc) - before, 1, "writes");
}

#[test]
fn what_is_sent_while_others_are_flushed_does_not_wait_for_an_event() {
    let reactors = start(swallow);
    let (leaver, left) = reactors.connect();
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        io.set_timer(io.now(), 1);
        io.post(0, Box::new(move |_, io| assert!(send(io, conn, b"by letter", None))));
    });
    expect_bytes(&mut client, b"by letter");
    drop(leaver);
    reactors.closed(left);
    reactors.expect(&Event::Timer(1));
}

#[test]
fn writable_is_armed_only_while_something_is_left() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    let (epoll, inode) = (reactors.threads[0].epoll, probe::inode_of_accepted(&client));
    let armed = || probe::waits_to_write(probe::watched(epoll, inode).expect("it is watched"));
    assert!(!armed(), "armed from the beginning");
    reactors.ask(0, move |_, io| send(io, conn, b"fits", None));
    expect_bytes(&mut client, b"fits");
    assert!(!armed(), "armed although all was written");
    const MUCH: usize = 6 << 20;
    reactors.ask(0, move |_, io| {
        let much = vec![b'x'; MUCH];
        io.send(conn, Message { options: UNCOUNTED, ..message(&much, None) })
    });
    reactors.turns(0, 1);
    assert!(armed(), "nobody will write the rest");
    // The socket stays full, and nothing is to be done.
    let spent = probe::cpu(&reactors.threads[0].proc);
    reactors.pass(Duration::from_millis(300));
    let spent = probe::cpu(&reactors.threads[0].proc) - spent;
    assert!(spent < Duration::from_millis(100), "it spins: {spent:?} of 300 ms");
    assert!(armed());
    expect_bytes(&mut client, &vec![b'x'; MUCH]);
    eventually("WRITABLE to be disarmed", || !armed());
}

/// Takes nothing and reports no error, as a broken socket might.
struct Stuck;

impl Write for Stuck {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Ok(0)
    }
    fn write_vectored(&mut self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(0)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_that_takes_nothing_is_an_error_not_a_loop() {
    let mut outbox: Outbox<()> = Outbox::default();
    outbox.push(Message::plain(b"something"), Instant::now());
    let error = outbox.write_to(&mut Stuck, &mut Vec::new()).expect_err("nothing was written");
    assert_eq!(error.kind(), io::ErrorKind::WriteZero);
}

#[test]
fn messages_to_a_paced_connection_are_not_closer_than_10_ms() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| io.pace(conn));
    let written = |n| {
        reactors.ask(0, move |_, io| send(io, conn, b".", Some(Tag::Reply(n))));
        reactors.wait("a message to be written", |event| match event {
            Event::Written(id, tag, at) if (*id, *tag) == (conn, Tag::Reply(n)) => Some(*at),
            _ => None,
        })
    };
    let times: Vec<_> = (0..20).map(written).collect();
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(10), "only {:?} apart", pair[1] - pair[0]);
    }
    let mut all = [0; 20];
    client.read_exact(&mut all).unwrap();
}

#[test]
fn what_is_queued_for_a_connection_that_is_paced_no_more_leaves_at_once_in_order() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        io.pace(conn);
        // At this pace they take 30 s.
        (0..3000).for_each(|n| assert!(send(io, conn, format!("{n}\n").as_bytes(), Some(Tag::Reply(n)))));
    });
    let written = |n| {
        reactors.wait("a message to be written", |event| match event {
            Event::Written(id, tag, _) if (*id, *tag) == (conn, Tag::Reply(n)) => Some(()),
            _ => None,
        })
    };
    written(2);
    reactors.ask(0, move |_, io| io.unpace(conn));
    let begun = Instant::now();
    let mut all = String::new();
    let expected: String = (0..3000).map(|n| format!("{n}\n")).collect();
    let mut buffer = vec![0; 1 << 16];
    while all.len() < expected.len() {
        let n = client.read(&mut buffer).expect("the rest comes");
        assert!(n > 0, "the connection has ended");
        all.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
    }
    assert!(all == expected, "they are out of order");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // The timer of the last message that was spaced out fires meanwhile, and begins nothing.
    let until = Instant::now() + Duration::from_millis(50);
    while Instant::now() < until {
        let begun = Instant::now();
        reactors.ask(0, move |_, io| (0..300).for_each(|_| assert!(send(io, conn, b".", Some(Tag::Reply(0))))));
        client.read_exact(&mut buffer[..300]).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
}
