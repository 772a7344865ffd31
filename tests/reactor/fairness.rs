//! Rule 2: budgets.

use std::io::Write;

use chat_server::reactor::{ConnId, Io, Taken};

use crate::toy::{Event, Toy, fill, start, swallow};

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
