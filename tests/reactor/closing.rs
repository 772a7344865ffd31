//! Rule 10: half-close, and closing so that the last reply arrives.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use chat_server::reactor::{CloseReason, ConnId, Io, Message, Taken};

use crate::toy::{EXEMPT, Event, Toy, echo, expect_bytes, expect_end, message, refuse, send, start, swallow};

#[test]
fn a_request_and_fin_in_one_event_do_not_cost_the_reply() {
    let reactors = start(echo);
    for _ in 0..50 {
        let stall = reactors.stall(0);
        let mut client = reactors.client();
        client.write_all(b"last request").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        drop(stall);
        expect_bytes(&mut client, b"last request");
        expect_end(&mut client);
    }
}

#[test]
fn a_job_in_flight_at_the_clients_end_is_still_answered() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, |toy, _| toy.close_at_end = false);
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    reactors.expect(&Event::Ended(conn, 0));
    reactors.turns(0, 5);
    assert!(reactors.ask(0, move |_, io| send(io, conn, b"the answer", None)));
    expect_bytes(&mut client, b"the answer");
    reactors.ask(0, move |_, io| io.close(conn, CloseReason::ByClient));
    expect_end(&mut client);
    reactors.closed(conn);
    reactors.wait_until_empty(0);
}

#[test]
fn input_that_waits_for_a_job_is_handled_before_the_end() {
    let reactors = start(echo);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| io.pause(conn));
    client.write_all(b"waits").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    reactors.turns(0, 5);
    reactors.ask(0, move |_, io| io.resume(conn));
    expect_bytes(&mut client, b"waits");
    expect_end(&mut client);
}

/// Sends one byte back, and waits for a letter before the next, as behind a login.
fn a_byte_a_job(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
    send(io, conn, &input[..1], None);
    io.pause(conn);
    Taken { bytes: 1, more: false }
}

#[test]
fn input_kept_behind_a_job_is_handled_before_the_end() {
    let reactors = start(a_byte_a_job);
    let (mut client, conn) = reactors.connect();
    let stall = reactors.stall(0);
    client.write_all(b"abc").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    drop(stall);
    for byte in b"abc" {
        expect_bytes(&mut client, &[*byte]);
        reactors.ask(0, move |_, io| io.resume(conn));
    }
    expect_end(&mut client);
    reactors.expect(&Event::Ended(conn, 0));
}

#[test]
fn unread_input_does_not_destroy_the_reply_to_what_was_read() {
    let reactors = start(refuse);
    for _ in 0..20 {
        let (mut client, conn) = reactors.connect();
        client.write_all(&vec![b'?'; 1 << 20]).expect("the server reads on, if only to forget");
        expect_bytes(&mut client, b"no");
        expect_end(&mut client);
        drop(client);
        assert_eq!(reactors.closed(conn).0, CloseReason::Unfollowable);
    }
    reactors.wait_until_empty(0);
}

#[test]
fn a_client_that_never_says_goodbye_is_not_waited_for_longer_than_5_s() {
    let reactors = start(refuse);
    let (mut client, conn) = reactors.connect();
    let began = Instant::now();
    client.write_all(b"?").unwrap();
    expect_bytes(&mut client, b"no");
    expect_end(&mut client);
    assert!(began.elapsed() < Duration::from_secs(4), "our end was shut only when the socket was dropped");
    reactors.closed(conn);
    reactors.wait_until_empty(0);
    let took = began.elapsed();
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(10), "after {took:?}");
}

#[test]
fn a_slow_flush_does_not_shorten_the_goodbye() {
    const MUCH: usize = 6 << 20;
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        io.send(conn, Message { manner: EXEMPT, ..message(&vec![b'x'; MUCH], None) });
        io.close(conn, CloseReason::Unfollowable);
    });
    reactors.pass(Duration::from_secs(4));
    expect_bytes(&mut client, &vec![b'x'; MUCH]);
    expect_end(&mut client);
    let flushed = Instant::now();
    reactors.closed(conn);
    reactors.wait_until_empty(0);
    assert!(flushed.elapsed() > Duration::from_secs(3), "only {:?} for the goodbye", flushed.elapsed());
}

#[test]
fn a_message_sent_just_before_the_close_is_not_lost() {
    const MUCH: usize = 6 << 20;
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        io.send(conn, Message { manner: EXEMPT, ..message(&vec![b'x'; MUCH], None) });
        io.close(conn, CloseReason::IdleTimeout);
    });
    expect_bytes(&mut client, &vec![b'x'; MUCH]);
    expect_end(&mut client);
    assert_eq!(reactors.closed(conn).0, CloseReason::IdleTimeout);
}
