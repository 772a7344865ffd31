//! A turn: clients are written to first, what that answers to others is posted after.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::reactor::{Io, Message, Recall};

use crate::toy::{
    Event, Letter, Reactors, Setup, Tag, Toy, UNCOUNTED, Why, echo, expect_bytes, expect_end, message, send, start,
};

fn nothing() -> Letter {
    Box::new(|_, _| ())
}

const ROUNDS: u32 = 10;

/// Has something done at the end of a turn that no event or letter has begun, and behind which none comes.
fn at_the_end_of_a_quiet_turn(reactors: &Reactors, what: impl FnOnce(&mut Toy, &mut Io<Toy>) + Send + 'static) {
    reactors.ask(0, move |toy, io| {
        io.set_timer(io.now() + Duration::from_millis(50), u32::MAX);
        toy.at_timer = Some(Box::new(move |toy, _| toy.at_turn_end = Some(Box::new(what))));
    });
}

#[test]
fn a_turn_ends_after_its_writes_and_closes_and_before_its_letters_are_posted() {
    let reactors = Setup { reactors: 2, script: echo, ..Setup::default() }.start();
    let clients = [reactors.connect(), reactors.connect(), reactors.connect()];
    let [(_, conn), (_, other), (mut leaver, leaves)] = clients;
    let (own, to) = (conn.reactor(), other.reactor());
    assert!(leaves.reactor() == own && to != own, "they come in turn");
    let stall = reactors.stall(to);
    let mailboxes = Arc::clone(&reactors.mailboxes);
    reactors.ask(own, move |toy, io| {
        assert!(send(io, conn, b"text", Some(Tag::Reply(0))));
        io.abort(leaves, Why::IdleTimeout);
        io.post(to, nothing());
        toy.at_turn_end = Some(Box::new(move |toy, io| {
            toy.report(Event::Timer(mailboxes[to].len() as u32));
            io.post(to, nothing());
        }));
    });
    reactors.turns(own, 1);
    let told = reactors.told();
    let place = |wanted: fn(&Event) -> bool| told.iter().position(wanted).unwrap_or_else(|| panic!("{told:?}"));
    let ended = place(|event| *event == Event::Timer(0));
    assert!(place(|event| matches!(event, Event::Written(..))) < ended, "{told:?}");
    assert!(place(|event| matches!(event, Event::Closed(..))) < ended, "{told:?}");
    assert_eq!(reactors.mailboxes[to].len(), 2);
    expect_end(&mut leaver);
    drop(stall);
}

#[test]
fn what_is_sent_at_the_end_of_a_turn_does_not_wait_for_an_event() {
    let reactors = start(echo);
    let (mut client, conn) = reactors.connect();
    let began = Instant::now();
    for _ in 0..ROUNDS {
        at_the_end_of_a_quiet_turn(&reactors, move |_, io| assert!(send(io, conn, b"!", None)));
        expect_bytes(&mut client, b"!");
    }
    assert!(began.elapsed() < Duration::from_secs(1) * (ROUNDS / 2), "{:?}", began.elapsed());
}

#[test]
fn what_the_end_of_a_turn_leads_to_has_an_end_of_its_own_at_once() {
    let reactors = start(echo);
    let (_client, conn) = reactors.connect();
    // So that the recall has nothing to write, which would lead to another turn.
    reactors.ask(0, move |_, io| io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; 8 << 20], None) }));
    reactors.turns(0, 2);
    let began = Instant::now();
    for round in 0..ROUNDS {
        at_the_end_of_a_quiet_turn(&reactors, move |toy, io| {
            io.recall(conn, Recall::All);
            // What was recalled is known only then.
            toy.at_turn_end = Some(Box::new(move |toy, _| toy.report(Event::Timer(round))));
        });
        reactors.expect(&Event::Timer(round));
    }
    assert!(began.elapsed() < Duration::from_secs(1) * (ROUNDS / 2), "{:?}", began.elapsed());
}
