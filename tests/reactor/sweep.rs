//! Rule 4: connections are freed at the end of the turn, in one place.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use chat_server::reactor::{CloseReason, ConnId, Limits, Mark, Message};
use socket2::SockRef;

use crate::toy::{Event, Setup, Tag, UNCOUNTED, Why, echo, expect_bytes, message, send, start, swallow};

#[test]
fn a_connection_that_dies_in_mid_turn_is_not_freed_before_the_turn_ends() {
    let limits = Limits { high_water: 64 * 1024, hard: 128 * 1024, total: usize::MAX };
    let reactors = Setup { script: swallow, limits, ..Setup::default() }.start();
    let (_client, conn) = reactors.connect();
    // More than the sockets take, and counting towards no mark.
    reactors.ask(0, move |_, io| io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; 8 << 20], None) }));
    let stall = reactors.stall(0);
    let over_the_hard_mark = vec![b'y'; 256 * 1024];
    reactors.tell(0, move |_, io| _ = send(io, conn, &over_the_hard_mark, None));
    reactors.tell(0, move |toy, io| {
        let taken = send(io, conn, b"late", Some(Tag::Chat(7)));
        toy.report(Event::Timer(u32::from(taken)));
    });
    drop(stall);
    reactors.expect(&Event::Timer(1));
    assert_eq!(reactors.closed(conn), (CloseReason::SlowConsumer(Mark::Hard), vec![(Tag::Chat(7), false)]));
    reactors.wait_until_empty(0);
}

#[test]
fn an_event_still_in_the_batch_does_not_reach_the_slots_new_owner() {
    const CLIENTS: usize = 64;
    let reactors = start(echo);
    for _ in 0..20 {
        let old: Vec<(TcpStream, ConnId)> = (0..CLIENTS).map(|_| reactors.connect()).collect();
        let stall = reactors.stall(0);
        let mut ids = Vec::new();
        for (n, (mut client, id)) in old.into_iter().enumerate() {
            ids.push(id);
            client.write_all(b"last words").unwrap();
            if n % 2 == 0 {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
            // Closed by us as well, in the turn in which its own end is noticed.
            reactors.tell(0, move |_, io| io.close(id, Why::IdleTimeout));
        }
        let mut new: Vec<TcpStream> = (0..CLIENTS).map(|_| reactors.client()).collect();
        drop(stall);
        for (n, client) in new.iter_mut().enumerate() {
            let text = format!("{n:03}");
            client.write_all(text.as_bytes()).unwrap();
            expect_bytes(client, text.as_bytes());
        }
        for id in ids {
            reactors.closed(id);
        }
        let ids: Vec<ConnId> = new.iter().map(|client| reactors.opened(client)).collect();
        for event in reactors.told() {
            assert!(!matches!(event, Event::Closed(..)), "closed twice, or a new one: {event:?}");
        }
        drop(new);
        ids.into_iter().for_each(|id| assert_eq!(reactors.closed(id).0, CloseReason::Handler(Why::ByClient)));
        reactors.wait_until_empty(0);
    }
}
