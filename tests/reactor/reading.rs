//! Rule 1: drain or remember.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use chat_server::reactor::CloseReason;
use socket2::SockRef;

use crate::toy::{Event, Why, expect_bytes, expect_end, fill, start, swallow};

#[test]
fn bye_and_fin_leave_no_connection_in_close_wait() {
    const EACH: usize = 10_000;
    let reactors = start(swallow);
    let address = reactors.address;
    let bye = |_| TcpStream::connect(address).and_then(|mut client| client.write_all(b"bye")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..EACH).for_each(bye));
        }
    });
    let mut closed = 0;
    while closed < 2 * EACH {
        closed += reactors.wait("every connection to end", |event| match event {
            Event::Closed(_, reason, _) => {
                assert_eq!(*reason, CloseReason::Handler(Why::ByClient));
                Some(1)
            }
            _ => Some(0),
        });
    }
    reactors.wait_until_empty(0);
}

#[test]
fn a_short_read_before_the_end_of_the_stream_is_not_the_last() {
    let reactors = start(swallow);
    let (mut client, conn) = reactors.connect();
    let stall = reactors.stall(0);
    client.write_all(b"bye").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    drop(stall);
    reactors.expect(&Event::Input(conn, 3));
    reactors.expect(&Event::Ended(conn, 0));
    expect_end(&mut client);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::ByClient));
}

#[test]
fn what_exceeds_one_read_is_not_left_in_the_socket() {
    let reactors = start(swallow);
    let (client, conn) = reactors.connect();
    let stall = reactors.stall(0);
    let sent = fill(&client, 1 << 20);
    assert!(sent > 128 * 1024, "the kernel took {sent} bytes only, which proves nothing");
    drop(stall);
    let mut got = 0;
    while got < sent {
        got += reactors.wait("the rest", |event| match event {
            Event::Input(id, n) if *id == conn => Some(*n),
            _ => None,
        });
    }
}

#[test]
fn input_that_came_while_paused_is_not_forgotten() {
    let reactors = start(crate::toy::echo);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| io.pause(conn));
    client.write_all(b"waits").unwrap();
    reactors.turns(0, 5);
    assert_eq!(reactors.told(), []);
    reactors.ask(0, move |_, io| io.resume(conn));
    expect_bytes(&mut client, b"waits");
}

#[test]
fn input_that_came_with_its_registration_is_not_missed() {
    let reactors = start(crate::toy::echo);
    let stall = reactors.stall(0);
    let mut client = reactors.client();
    client.write_all(b"early").unwrap();
    drop(stall);
    expect_bytes(&mut client, b"early");
}

#[test]
fn a_read_that_stops_at_an_urgent_byte_is_not_the_last() {
    let reactors = start(crate::toy::echo);
    let (mut client, _) = reactors.connect();
    let stall = reactors.stall(0);
    client.write_all(b"before").unwrap();
    SockRef::from(&client).send_out_of_band(b"!").unwrap();
    client.write_all(b"behind").unwrap();
    drop(stall);
    expect_bytes(&mut client, b"before");
    // The urgent byte itself may be among the others or not.
    assert!(client.read(&mut [0; 7]).expect("what stands behind the urgent byte is read") > 0);
}
