//! Rule 2: budgets.

use std::io::Write;

use chat_server::reactor::{ConnId, Io, Taken};

use crate::toy::{Event, Tag, Toy, expect_bytes, fill, send, start, swallow};

/// What a connection may have before another's turn.
const SHARE: usize = 64 * 1024;

#[test]
fn a_loud_client_does_not_keep_a_quiet_one_waiting() {
    let reactors = start(swallow);
    let (loud_client, loud) = reactors.connect();
    let (mut quiet_client, quiet) = reactors.connect();
    let stall = reactors.stall(0);
    let sent = fill(&loud_client, 1 << 20);
    quiet_client.write_all(b"me too").unwrap();
    drop(stall);
    let (mut before, mut got, mut quiet_was_heard) = (0, 0, false);
    while got < sent || !quiet_was_heard {
        let (id, n) = reactors.wait("input", |event| match event {
            Event::Input(id, n) => Some((*id, *n)),
            _ => None,
        });
        if id == loud {
            got += n;
        } else {
            assert_eq!(id, quiet);
            (before, quiet_was_heard) = (got, true);
        }
    }
    assert!(sent > SHARE, "{sent} bytes prove nothing");
    assert!(before <= SHARE, "{before} bytes of the loud client came before the quiet one's");
}

/// Takes one byte a turn, like a handler whose budget of messages is one.
fn one_byte_a_turn(_: &mut Toy, _: &mut Io<Toy>, _: ConnId, input: &[u8]) -> Taken {
    Taken { bytes: input.len().min(1), more: input.len() > 1 }
}

#[test]
fn a_handler_that_stops_for_fairness_is_not_asked_again_in_the_same_turn() {
    let reactors = start(one_byte_a_turn);
    let clients = [reactors.connect(), reactors.connect()];
    let stall = reactors.stall(0);
    for (mut client, _) in clients.iter().map(|(client, id)| (client, id)) {
        client.write_all(b"12345678").unwrap();
    }
    drop(stall);
    let order: Vec<ConnId> = (0..16)
        .map(|_| {
            reactors.wait("input", |event| match event {
                Event::Input(id, _) => Some(*id),
                _ => None,
            })
        })
        .collect();
    assert!(order.chunks(2).all(|turn| turn[0] != turn[1]), "not in turns: {order:?}");
}

#[test]
fn a_message_for_thousands_is_not_written_to_all_of_them_before_anybody_else_has_a_turn() {
    const MANY: usize = 1000;
    let reactors = start(swallow);
    let crowd: Vec<_> = (0..MANY).map(|_| reactors.connect()).collect();
    let (mut client, conn) = reactors.connect();
    let all: Vec<ConnId> = crowd.iter().map(|(_, id)| *id).collect();
    reactors.ask(0, move |_, io| {
        all.iter().for_each(|id| assert!(send(io, *id, b"to all", Some(Tag::Reply(0)))));
        io.post(0, Box::new(move |_, io| assert!(send(io, conn, b"to one", Some(Tag::Reply(1))))));
    });
    let mut before = None;
    for n in 0..=MANY {
        let tag = reactors.wait("a write", |event| match event {
            Event::Written(_, tag, _) => Some(*tag),
            _ => None,
        });
        if tag == Tag::Reply(1) {
            before = Some(n);
        }
    }
    assert!(before.expect("it was written") < MANY / 4, "{before:?} of {MANY} were written first");
    expect_bytes(&mut client, b"to one");
    for (mut member, _) in crowd {
        expect_bytes(&mut member, b"to all");
    }
}
