//! A handler acts only while it may: what comes meanwhile waits, and goes on in order.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use chat_server::clock;
use chat_server::reactor::{CloseReason, ConnId, Io, Mail, Message, Recall, Taken};

use crate::probe;
use crate::support::{DEADLINE, eventually};
use crate::toy::{
    Event, Letter, Reactors, Script, Setup, Tag, Toy, UNCOUNTED, Why, echo, expect_bytes, expect_end, message, send,
};

/// The reactor whose handler may not act sometimes. The other one has the clock.
const HELD: usize = 1;
/// Long enough for whatever does not wait.
const A_WHILE: Duration = Duration::from_millis(300);

fn reactors(script: Script) -> Reactors {
    Setup { reactors: 2, script, ..Setup::default() }.start()
}

/// A client of the reactor that is held.
fn connect(reactors: &Reactors) -> (TcpStream, ConnId) {
    loop {
        let (client, conn) = reactors.connect();
        if conn.reactor() == HELD {
            return (client, conn);
        }
        // They come in turn.
        drop(client);
        reactors.expect(&Event::Ended(conn, 0));
        reactors.closed(conn);
    }
}

fn may(reactors: &Reactors, may: bool) {
    reactors.threads[HELD].may.store(may, SeqCst);
}

/// What the held reactor has reported after a while, in which it looked several times.
fn told(reactors: &Reactors) -> Vec<Event> {
    let turns = || reactors.threads[HELD].counts.turns.get();
    let before = turns();
    reactors.pass(A_WHILE);
    eventually("some turns", || turns() > before + 3);
    reactors.told()
}

fn reporting(number: u32) -> Letter {
    Box::new(move |toy, _| toy.report(Event::Timer(number)))
}

#[test]
fn nothing_is_handled_or_written_while_it_may_not_act_and_all_of_it_after_in_order() {
    let reactors = reactors(echo);
    let (mut client, conn) = connect(&reactors);
    let (mut leaver, _) = connect(&reactors);
    let (mut closing, closed) = connect(&reactors);
    let moves = {
        let (client, conn) = reactors.connect();
        assert_eq!(conn.reactor(), 1 - HELD);
        (client, conn)
    };
    // All of this comes in one turn, in which it may act until the letter has ended.
    let stall = reactors.stall(HELD);
    reactors.tell(HELD, move |_, io| {
        assert!(send(io, conn, b"queued", Some(Tag::Chat(0))));
        io.set_timer(io.now(), 100);
        io.close(closed, Why::IdleTimeout);
    });
    let flag = Arc::clone(&reactors.threads[HELD].may);
    reactors.tell(HELD, move |_, _| flag.store(false, SeqCst));
    drop(stall);
    eventually("it to be held", || !reactors.threads[HELD].may.load(SeqCst));
    (1..=5).for_each(|n| reactors.mailboxes[HELD].post(Mail::Letter(reporting(n))));
    client.write_all(b"input").unwrap();
    leaver.write_all(b"last words").unwrap();
    leaver.shutdown(Shutdown::Write).unwrap();
    let newcomer = (0..2).map(|_| reactors.client()).collect::<Vec<_>>();
    reactors.ask(1 - HELD, move |_, io| io.move_to(moves.1, HELD, 6));
    reactors.turns(1 - HELD, 1); // it is posted at the end of the turn before
    reactors.mailboxes[HELD].post(Mail::Stop);

    let told = told(&reactors);
    let of_held = |event: &Event| match event {
        Event::Opened(conn, ..) => conn.reactor() == HELD,
        _ => true,
    };
    assert!(!told.iter().any(of_held), "{told:?}");
    for quiet in [&client, &leaver, &closing] {
        quiet.set_nonblocking(true).unwrap();
        let error = { quiet }.read(&mut [0]).expect_err("something was written, or it was closed");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        quiet.set_nonblocking(false).unwrap();
    }

    may(&reactors, true);
    let order: Vec<Event> = (0..7)
        .map(|_| {
            reactors.wait("what has waited in the mailbox", |event| match event {
                Event::Timer(n @ 1..=5) => Some(Event::Timer(*n)),
                Event::Arrived(conn, number) => Some(Event::Arrived(*conn, *number)),
                Event::Stopping => Some(Event::Stopping),
                _ => None,
            })
        })
        .collect();
    let numbers = (1..=5).map(Event::Timer).collect::<Vec<_>>();
    assert_eq!(order[..5], numbers);
    assert!(matches!(order[5..], [Event::Arrived(_, 6), Event::Stopping]), "{order:?}");
    reactors.expect(&Event::Timer(100));
    expect_bytes(&mut client, b"queuedinput");
    expect_bytes(&mut leaver, b"last words");
    expect_end(&mut leaver);
    expect_end(&mut closing);
    drop(newcomer);
    drop(moves.0);
}

#[test]
fn a_letter_behind_one_in_which_its_time_ran_out_waits() {
    let reactors = reactors(echo);
    let stall = reactors.stall(HELD);
    reactors.mailboxes[HELD].post(Mail::Letter(reporting(1)));
    let flag = Arc::clone(&reactors.threads[HELD].may);
    reactors.tell(HELD, move |_, _| flag.store(false, SeqCst));
    reactors.mailboxes[HELD].post(Mail::Letter(reporting(2)));
    drop(stall);
    reactors.expect(&Event::Timer(1));
    assert_eq!(told(&reactors), []);
    may(&reactors, true);
    reactors.expect(&Event::Timer(2));
}

/// Takes everything; the time runs out meanwhile.
fn take_the_last(toy: &mut Toy, _: &mut Io<Toy>, _: ConnId, input: &[u8]) -> Taken {
    toy.may_no_longer();
    Taken { bytes: input.len(), more: false }
}

#[test]
fn input_behind_one_in_which_its_time_ran_out_waits_and_so_does_an_end() {
    for with_end in [false, true] {
        let reactors = reactors(take_the_last);
        let mut clients = [connect(&reactors), connect(&reactors), connect(&reactors)];
        let stall = reactors.stall(HELD);
        for (client, _) in &mut clients {
            client.write_all(b"input").unwrap();
            if with_end {
                client.shutdown(Shutdown::Write).unwrap();
            }
        }
        drop(stall);
        let mut seen = Vec::new();
        for _ in 0..clients.len() {
            let conn = reactors.wait("input", |event| match event {
                Event::Input(conn, 5) => Some(*conn),
                _ => None,
            });
            assert!(!seen.contains(&conn), "given twice");
            seen.push(conn);
            assert_eq!(told(&reactors), []);
            may(&reactors, true);
        }
        if with_end {
            for (client, conn) in &mut clients {
                reactors.expect(&Event::Ended(*conn, 0));
                expect_end(client);
            }
        }
    }
}

#[test]
fn a_timer_behind_one_in_which_its_time_ran_out_waits() {
    let reactors = reactors(echo);
    reactors.ask(HELD, |toy, io| {
        (1..=3).for_each(|n| io.set_timer(io.now(), n));
        toy.on_timer = Toy::may_no_longer;
    });
    for n in 1..=3 {
        reactors.expect(&Event::Timer(n));
        assert_eq!(told(&reactors), []);
        may(&reactors, true);
    }
}

#[test]
fn a_queue_behind_one_in_whose_write_its_time_ran_out_waits() {
    let reactors = reactors(echo);
    let mut clients = [connect(&reactors), connect(&reactors), connect(&reactors)];
    let conns = clients.each_ref().map(|(_, conn)| *conn);
    reactors.ask(HELD, move |toy, io| {
        conns.iter().for_each(|conn| assert!(send(io, *conn, b"text", Some(Tag::Chat(0)))));
        toy.on_written = |toy, _, _, _| toy.may_no_longer();
    });
    let mut written = Vec::new();
    for _ in 0..clients.len() {
        written.push(reactors.wait("a write", |event| match event {
            Event::Written(conn, ..) => Some(*conn),
            _ => None,
        }));
        assert_eq!(told(&reactors), []);
        for (client, conn) in &clients {
            client.set_nonblocking(true).unwrap();
            assert_eq!(client.peek(&mut [0]).is_ok(), written.contains(conn), "{conn} of {written:?}");
            client.set_nonblocking(false).unwrap();
        }
        may(&reactors, true);
    }
    clients.iter_mut().for_each(|(client, _)| expect_bytes(client, b"text"));
}

#[test]
fn a_recall_behind_one_in_which_its_time_ran_out_waits_and_then_comes_first() {
    let reactors = reactors(echo);
    let clients = [connect(&reactors), connect(&reactors)];
    let conns = clients.each_ref().map(|(_, conn)| *conn);
    reactors.ask(HELD, move |_, io| {
        let much = vec![b'x'; 8 << 20];
        conns.iter().for_each(|conn| _ = io.send(*conn, Message { options: UNCOUNTED, ..message(&much, None) }));
    });
    // Nothing is to be written to them any more, which would be asked for.
    reactors.turns(HELD, 2);
    reactors.ask(HELD, move |toy, io| {
        conns.iter().for_each(|conn| io.recall(*conn, Recall::All));
        toy.on_recalled = Toy::may_no_longer;
    });
    reactors.wait("a recall", |event| matches!(event, Event::Recalled(..)).then_some(()));
    reactors.mailboxes[HELD].post(Mail::Letter(reporting(1)));
    assert_eq!(told(&reactors), []);
    may(&reactors, true);
    let first = reactors.wait("the other recall", |event| match event {
        Event::Recalled(..) => Some(Ok(())),
        Event::Timer(1) => Some(Err("the letter came first")),
        _ => None,
    });
    assert_eq!(first, Ok(()));
}

#[test]
fn the_end_of_a_connection_waits_when_its_time_ran_out_in_the_turn() {
    let reactors = reactors(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.ask(HELD, move |toy, io| {
        assert!(send(io, conn, b"unwritten", Some(Tag::Chat(0))));
        io.abort(conn, Why::ClaimLost);
        toy.may_no_longer();
    });
    assert_eq!(told(&reactors), []);
    may(&reactors, true);
    assert_eq!(reactors.closed(conn), (CloseReason::Handler(Why::ClaimLost), vec![(Tag::Chat(0), false)]));
    expect_end(&mut client);
}

#[test]
fn the_end_of_a_turn_waits_when_its_time_ran_out_in_the_turn() {
    let reactors = reactors(echo);
    reactors.ask(HELD, |toy, _| {
        toy.at_turn_end = Some(reporting(1));
        toy.may_no_longer();
    });
    assert_eq!(told(&reactors), []);
    may(&reactors, true);
    reactors.expect(&Event::Timer(1));
}

#[test]
fn while_it_may_not_act_it_looks_often_and_does_not_spin() {
    let reactors = reactors(echo);
    let (mut client, conn) = connect(&reactors);
    let thread = &reactors.threads[HELD];
    reactors.ask(HELD, move |toy, io| {
        // All that otherwise keeps a reactor from sleeping.
        assert!(send(io, conn, b"queued", None));
        io.set_timer(io.now(), 1);
        toy.may_no_longer();
    });
    client.write_all(b"input").unwrap();
    reactors.tell(HELD, |_, _| ());
    let (before, spent, began) = (thread.counts.turns.get(), probe::cpu(&thread.proc), Instant::now());
    eventually("ten looks", || thread.counts.turns.get() >= before + 10);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(300) && took < Duration::from_secs(3), "ten looks in {took:?}");
    assert!(probe::cpu(&thread.proc) - spent < took / 4, "it spins");
    may(&reactors, true);
    expect_bytes(&mut client, b"queuedinput");
}

#[test]
fn what_clients_send_meanwhile_stays_in_their_sockets() {
    let reactors = reactors(echo);
    let clients = [connect(&reactors), connect(&reactors), connect(&reactors), connect(&reactors)];
    reactors.ask(HELD, |toy, _| toy.may_no_longer());
    told(&reactors);
    let received = || reactors.threads[HELD].counts.received.get();
    let before = received();
    clients.iter().for_each(|(client, _)| assert!(crate::toy::fill(client, 256 << 10) > 64 << 10));
    told(&reactors);
    assert_eq!(received(), before, "it reads what it may not handle");
    may(&reactors, true);
    clients.iter().for_each(|(_, conn)| {
        reactors.wait("its input", |event| matches!(event, Event::Input(id, _) if id == conn).then_some(()));
    });
}

#[test]
fn an_exit_does_not_wait_until_it_may_act() {
    let mut reactors = reactors(echo);
    let (mut client, _) = connect(&reactors);
    reactors.ask(HELD, |toy, _| toy.may_no_longer());
    reactors.mailboxes[HELD].post(Mail::Letter(reporting(1)));
    reactors.mailboxes[HELD].post(Mail::Exit);
    reactors.join(HELD);
    expect_end(&mut client);
    assert_eq!(reactors.told(), []);
}

#[test]
fn an_abandoned_loop_ends_at_once_and_its_handler_is_not_called_any_more() {
    for may_act in [true, false] {
        let mut reactors = reactors(echo);
        let (mut client, conn) = connect(&reactors);
        let (mut other, _) = connect(&reactors);
        reactors.ask(HELD, move |_, io| {
            io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; 8 << 20], None) });
            assert!(send(io, conn, b"a chat", Some(Tag::Chat(0))));
        });
        reactors.turns(HELD, 2);
        may(&reactors, may_act);
        let stall = may_act.then(|| reactors.stall(HELD));
        other.write_all(b"input").unwrap();
        reactors.mailboxes[HELD].post(Mail::Letter(reporting(1)));
        reactors.mailboxes[HELD].post(Mail::Abandon);
        let began = Instant::now();
        drop(stall);
        reactors.join(HELD);
        assert!(began.elapsed() < Duration::from_secs(2), "only after {:?}", began.elapsed());
        let mut got = Vec::new();
        // It may end with a reset.
        let _ = client.read_to_end(&mut got);
        assert!(got.len() < 8 << 20, "it was flushed");
        let _ = other.read_to_end(&mut got);
        assert_eq!(reactors.told(), [], "may act: {may_act}");
    }
}

#[test]
fn clients_are_not_to_blame_for_what_was_not_written_while_it_might_not_act() {
    const MUCH: usize = 8 << 20;
    let reactors = reactors(echo);
    let (mut slow, conn) = connect(&reactors);
    let (mut closing, closed) = connect(&reactors);
    reactors.ask(HELD, move |_, io| _ = send(io, conn, &vec![b'x'; MUCH - 1], None));
    reactors.wait("the mark to be passed", |event| matches!(event, Event::Recalled(..)).then_some(()));
    reactors.ask(HELD, move |toy, io| {
        assert!(send(io, closed, b"the last reply", None));
        io.close(closed, Why::IdleTimeout);
        toy.may_no_longer();
    });
    // Longer than any of them may take.
    reactors.pass(Duration::from_secs(11));
    assert_eq!(reactors.told(), []);
    may(&reactors, true);
    expect_bytes(&mut closing, b"the last reply");
    expect_end(&mut closing);
    assert_eq!(reactors.closed(closed).0, CloseReason::Handler(Why::IdleTimeout));
    expect_bytes(&mut slow, &vec![b'x'; MUCH - 1]);
    reactors.expect(&Event::Drained(conn));
}

#[test]
fn a_loop_beats_every_second_unless_it_is_stuck() {
    let reactors = reactors(echo);
    let beat = || Duration::from_millis(reactors.threads[HELD].beat.load(Relaxed));
    let since = |beat: Duration| clock::since_boot().saturating_sub(beat);
    let is_young = || since(beat()) < Duration::from_millis(1500);
    for may_act in [true, false] {
        may(&reactors, may_act);
        let first = beat();
        for _ in 0..5 {
            reactors.pass(A_WHILE);
            eventually("a young beat", is_young);
        }
        assert!(beat() > first, "no beat, may act: {may_act}");
    }
    may(&reactors, true);
    let stall = reactors.stall(HELD);
    let last = beat();
    reactors.pass(Duration::from_secs(2));
    assert_eq!(beat(), last, "it beats although it is stuck");
    drop(stall);
    eventually("a beat", || beat() > last + Duration::from_secs(1));
    assert!(since(beat()) < DEADLINE);
}
