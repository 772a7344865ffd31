//! Rule 8: how what is queued is taken back, on demand or with the connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use chat_server::reactor::{CloseReason, ConnId, Message, Recall};

use crate::toy::{Event, Reactors, Tag, UNCOUNTED, Why, echo, expect_bytes, message, send, start};

/// More than the sockets hold, in one message.
const MUCH: usize = 8 << 20;

/// A connection whose first message is partly written, with two behind it.
fn stuck() -> (Reactors, TcpStream, ConnId) {
    let reactors = start(echo);
    let (client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        let much = vec![b'x'; MUCH];
        assert!(io.send(conn, Message { options: UNCOUNTED, ..message(&much, Some(Tag::Chat(0))) }));
        assert!(send(io, conn, b"reply", Some(Tag::Reply(1))));
        assert!(send(io, conn, b"untagged", None));
        assert!(send(io, conn, b"chat", Some(Tag::Chat(2))));
    });
    reactors.turns(0, 1);
    (reactors, client, conn)
}

fn recalled(reactors: &Reactors, conn: ConnId, how: Recall) -> Vec<(Tag, Vec<u8>, bool)> {
    reactors.ask(0, move |_, io| io.recall(conn, how));
    reactors.wait("what was recalled", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => {
            let shortened = |body: &[u8]| body[..body.len().min(9)].to_vec();
            Some(recalled.iter().map(|message| (message.tag, shortened(&message.body), message.begun)).collect())
        }
        _ => None,
    })
}

#[test]
fn a_recall_takes_what_it_is_to_and_copies_what_is_begun_and_drained_follows() {
    let (reactors, mut client, conn) = stuck();
    let begun = (Tag::Chat(0), b"xxxxxxxxx".to_vec(), true);
    let chat = (Tag::Chat(2), b"chat".to_vec(), false);
    assert_eq!(recalled(&reactors, conn, Recall::Reroutable), [begun.clone(), chat]);
    let reply = (Tag::Reply(1), b"reply".to_vec(), false);
    assert_eq!(recalled(&reactors, conn, Recall::All), [begun.clone(), reply]);
    assert_eq!(recalled(&reactors, conn, Recall::All), [begun]);
    assert_eq!(reactors.told(), [], "drained although nobody has read");
    expect_bytes(&mut client, &vec![b'x'; MUCH]);
    expect_bytes(&mut client, b"untagged");
    reactors.wait("the message that was begun to be written", |event| {
        matches!(event, Event::Written(id, Tag::Chat(0), _) if *id == conn).then_some(())
    });
    reactors.expect(&Event::Drained(conn));
    client.write_all(b"nothing else").unwrap();
    expect_bytes(&mut client, b"nothing else");
}

#[test]
fn of_two_recalls_in_one_call_the_wider_one_counts() {
    for order in [[Recall::All, Recall::Reroutable], [Recall::Reroutable, Recall::All]] {
        let (reactors, _client, conn) = stuck();
        reactors.ask(0, move |_, io| order.into_iter().for_each(|how| io.recall(conn, how)));
        let tags = reactors.wait("what was recalled", |event| match event {
            Event::Recalled(id, recalled) if *id == conn => Some(recalled.iter().map(|m| m.tag).collect::<Vec<_>>()),
            _ => None,
        });
        assert_eq!(tags, [Tag::Chat(0), Tag::Reply(1), Tag::Chat(2)]);
    }
}

#[test]
fn a_recall_comes_back_before_anything_else_is_handled() {
    let (reactors, _client, conn) = stuck();
    let stall = reactors.stall(0);
    reactors.tell(0, move |_, io| io.recall(conn, Recall::All));
    // It may be the next message to the same client, which must find that one gone.
    reactors.tell(0, |toy, _| toy.report(Event::Timer(7)));
    drop(stall);
    let recalled = reactors.wait("what was recalled", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => Some(Ok(recalled.len())),
        Event::Timer(7) => Some(Err("the letter came first")),
        _ => None,
    });
    assert_eq!(recalled, Ok(3));
}

#[test]
fn an_aborted_connection_hands_back_all_that_is_unwritten_and_writes_nothing_more() {
    let (reactors, mut client, conn) = stuck();
    let began = Instant::now();
    reactors.ask(0, move |_, io| {
        io.abort(conn, Why::ClaimLost);
        assert!(send(io, conn, b"late", Some(Tag::Chat(3))), "nobody would hand it back");
    });
    let unwritten = vec![(Tag::Chat(0), true), (Tag::Reply(1), false), (Tag::Chat(2), false), (Tag::Chat(3), false)];
    assert_eq!(reactors.closed(conn), (CloseReason::Handler(Why::ClaimLost), unwritten));
    assert!(began.elapsed() < Duration::from_secs(2), "only after {:?}", began.elapsed());
    reactors.wait_until_empty(0);
    let mut got = Vec::new();
    // It may end with a reset.
    let _ = client.read_to_end(&mut got);
    assert!(got.len() < MUCH && got.iter().all(|byte| *byte == b'x'), "{} bytes", got.len());
    assert_eq!(reactors.told(), []);
}

#[test]
fn an_aborted_connection_whose_socket_has_room_writes_nothing_either() {
    let reactors = start(echo);
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        assert!(send(io, conn, b"queued", Some(Tag::Chat(0))));
        io.abort(conn, Why::ClaimLost);
    });
    assert_eq!(reactors.closed(conn), (CloseReason::Handler(Why::ClaimLost), vec![(Tag::Chat(0), false)]));
    assert_eq!(client.read(&mut [0; 8]).expect("an end without a reset"), 0, "it was written");
}

/// The connection may have another user by now, whose messages must not wait for as long as the client has to catch up.
#[test]
fn what_is_queued_behind_a_queue_above_its_mark_is_recalled_at_once() {
    let (reactors, mut client, conn) = stuck();
    reactors.ask(0, move |_, io| {
        let too_much = vec![b'y'; (1 << 20) + 1]; // for the mark of `start`
        assert!(send(io, conn, &too_much, Some(Tag::Chat(3))));
    });
    let tags = || {
        reactors.wait("what was recalled", |event| match event {
            Event::Recalled(id, recalled) if *id == conn => Some(recalled.iter().map(|m| m.tag).collect::<Vec<_>>()),
            _ => None,
        })
    };
    assert_eq!(tags(), [Tag::Chat(0), Tag::Chat(2), Tag::Chat(3)]);
    let began = Instant::now();
    reactors.ask(0, move |_, io| {
        assert!(send(io, conn, b"to another user", Some(Tag::Chat(4))));
        assert!(send(io, conn, b"its reply", Some(Tag::Reply(5))));
    });
    assert_eq!(tags(), [Tag::Chat(0), Tag::Chat(4)]);
    assert!(began.elapsed() < Duration::from_millis(900), "only after {:?}, as one that stalls", began.elapsed());
    expect_bytes(&mut client, &vec![b'x'; MUCH]);
    expect_bytes(&mut client, b"replyuntaggedits reply");
    reactors.wait("the queue to be drained", |event| (*event == Event::Drained(conn)).then_some(()));
}
