//! Rule 10: half-close, and closing so that the last reply arrives.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use chat_server::reactor::{CloseReason, ConnId, HangUp, Io, Message, Taken};
use socket2::SockRef;

use crate::toy::{Event, Toy, UNCOUNTED, Why, echo, expect_bytes, expect_end, message, refuse, send, start, swallow};

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
    reactors.ask(0, move |_, io| io.close(conn, Why::ByClient));
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

/// Ends the connection by a reset.
fn reset(client: TcpStream) {
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Takes everything, and no more until a letter says so.
fn take_and_pause(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
    io.pause(conn);
    Taken { bytes: input.len(), more: false }
}

#[test]
fn a_client_that_hangs_up_while_its_input_waits_is_told_of() {
    let reactors = start(take_and_pause);
    let (mut client, conn) = reactors.connect();
    client.write_all(b"login").unwrap();
    reactors.expect(&Event::Input(conn, 5));
    client.write_all(b"more").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    reactors.expect(&Event::HungUp(conn, HangUp::HalfClosed));
    reset(client);
    reactors.expect(&Event::HungUp(conn, HangUp::Gone));
    // What came before that is given all the same, though no further event reports it.
    reactors.ask(0, move |_, io| io.resume(conn));
    reactors.expect(&Event::Input(conn, 4));
    reactors.ask(0, move |_, io| io.resume(conn));
    reactors.closed(conn);
    reactors.wait_until_empty(0);
}

#[test]
fn a_client_that_had_hung_up_before_its_input_waits_is_told_of_as_well() {
    let reactors = start(take_and_pause);
    for (how, hang_up) in [(HangUp::HalfClosed, None), (HangUp::Gone, Some(reset))] {
        let stall = reactors.stall(0);
        let mut client = reactors.client();
        client.write_all(b"login").unwrap();
        let kept = match hang_up {
            Some(reset) => {
                reset(client);
                None
            }
            None => {
                client.shutdown(Shutdown::Write).unwrap();
                Some(client)
            }
        };
        drop(stall);
        let conn = reactors.wait("a client that hangs up", |event| match event {
            Event::HungUp(conn, told) if *told == how => Some(*conn),
            _ => None,
        });
        reactors.ask(0, move |_, io| io.resume(conn));
        reactors.closed(conn);
        drop(kept);
    }
    reactors.wait_until_empty(0);
}

#[test]
fn a_client_that_hangs_up_while_its_input_is_read_is_not_told_of() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    client.write_all(b"request").unwrap();
    reactors.expect(&Event::Input(conn, 7));
    reset(client);
    reactors.closed(conn);
    let told = reactors.told();
    assert!(!told.iter().any(|event| matches!(event, Event::HungUp(..))), "{told:?}");
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
        assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::Unfollowable));
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
        io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; MUCH], None) });
        io.close(conn, Why::Unfollowable);
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
        io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; MUCH], None) });
        io.close(conn, Why::IdleTimeout);
    });
    expect_bytes(&mut client, &vec![b'x'; MUCH]);
    expect_end(&mut client);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::IdleTimeout));
}
