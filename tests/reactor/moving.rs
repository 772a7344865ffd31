//! Rule 5, one Poll at a time, and what a connection takes along that moves to another reactor.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use chat_server::reactor::{CloseReason, ConnId, HangUp, Io, Limits, Mail, Mark, Message, Recall, Slowness, Taken};
use socket2::SockRef;

use crate::probe;
use crate::support::{Rng, eventually};
use crate::toy::{
    Event, FULL, Letter, Moved, Reactors, Script, Setup, Tag, Toy, UNCOUNTED, Why, echo, expect_bytes, expect_end,
    message, send,
};

const LIMITS: Limits = Limits { high_water: 256 * 1024, hard: 1 << 20, total: usize::MAX };
/// More than the sockets hold.
const JAM: usize = 8 << 20;

fn two(script: Script) -> Reactors {
    Setup { reactors: 2, limits: LIMITS, script, ..Setup::default() }.start()
}

/// A client of the first reactor.
fn connect(reactors: &Reactors) -> (TcpStream, ConnId) {
    loop {
        let (client, conn) = reactors.connect();
        if conn.reactor() == 0 {
            return (client, conn);
        }
        // They come in turn.
        drop(client);
        reactors.expect(&Event::Ended(conn, 0));
        reactors.closed(conn);
    }
}

/// Moves a connection to a reactor, and returns its new id there.
#[track_caller]
fn moved(reactors: &Reactors, conn: ConnId, to: usize) -> ConnId {
    let number = next_number();
    reactors.tell(conn.reactor(), move |_, io| io.move_to(conn, to, number));
    arrived(reactors, number)
}

#[track_caller]
fn arrived(reactors: &Reactors, number: Moved) -> ConnId {
    reactors.wait("an arrival", |event| match event {
        Event::Arrived(conn, moved) if *moved == number => Some(*conn),
        _ => None,
    })
}

fn next_number() -> Moved {
    static NEXT: AtomicU32 = AtomicU32::new(1000);
    NEXT.fetch_add(1, SeqCst)
}

fn jam(io: &mut Io<Toy>, conn: ConnId) {
    assert!(io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; JAM], None) }));
}

/// Sends whole lines back. One that begins with "go" has its connection moved to the other reactor.
fn lines(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
    let mut bytes = 0;
    while let Some(end) = input[bytes..].iter().position(|byte| *byte == b'\n') {
        let line = &input[bytes..=bytes + end];
        bytes += line.len();
        assert!(send(io, conn, line, None));
        if line.starts_with(b"go") {
            io.move_to(conn, 1 - io.index(), 0);
            return Taken { bytes, more: false };
        }
    }
    Taken { bytes, more: false }
}

#[test]
fn it_is_watched_by_one_poll_and_counted_once() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    let inode = probe::inode_of_accepted(&client);
    let counts = |what: fn(&Reactors, usize) -> u64| [what(&reactors, 0), what(&reactors, 1)];
    let accepted = |reactors: &Reactors, index: usize| reactors.threads[index].counts.accepted.get();
    let connections = |reactors: &Reactors, index: usize| reactors.threads[index].counts.connections.get();
    let queued = |reactors: &Reactors, index: usize| reactors.threads[index].counts.queued.get();
    reactors.ask(0, move |_, io| jam(io, conn));
    reactors.turns(0, 2);
    assert_eq!((counts(accepted), counts(connections)), ([1, 0], [1, 0]));
    assert!(counts(queued)[0] > 0 && counts(queued)[1] == 0, "{:?}", counts(queued));

    let conn = moved(&reactors, conn, 1);
    assert_eq!(conn.reactor(), 1);
    reactors.turns(0, 2);
    reactors.turns(1, 2);
    assert_eq!(probe::watched(reactors.threads[0].epoll, inode), None);
    assert!(probe::watched(reactors.threads[1].epoll, inode).is_some());
    assert_eq!(probe::polls_that_watch(inode), 1);
    assert_eq!((counts(accepted), counts(connections)), ([1, 0], [0, 1]));
    // The kernel may have found room for a little more.
    let sent: u64 = counts(|reactors, index| reactors.threads[index].counts.sent.get()).iter().sum();
    assert_eq!(counts(queued), [0, JAM as u64 - sent]);
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Opened(..))), "opened anew");
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    client.write_all(b"still served").unwrap();
    expect_bytes(&mut client, b"still served");
    reactors.turns(1, 1);
    assert_eq!(counts(queued), [0, 0]);
}

#[test]
fn its_place_under_the_limit_goes_along() {
    let reactors = Setup { reactors: 2, max_connections: 1, ..Setup::default() }.start();
    let (client, conn) = reactors.connect();
    let conn = moved(&reactors, conn, 1 - conn.reactor());
    let mut refused = reactors.client();
    expect_bytes(&mut refused, FULL);
    expect_end(&mut refused);
    drop(client);
    reactors.closed(conn);
    (0..2).for_each(|reactor| reactors.wait_until_empty(reactor));
    let (mut next, _) = reactors.connect();
    next.write_all(b"in?").unwrap();
    expect_bytes(&mut next, b"in?");
}

#[test]
fn what_still_names_the_old_id_finds_nobody() {
    let reactors = two(echo);
    let (mut client, old) = connect(&reactors);
    let (first, second) = (next_number(), next_number());
    let queued = reactors.ask(0, move |_, io| {
        io.move_to(old, 1, first);
        let queued = send(io, old, b"to the old one", Some(Tag::Chat(1)));
        io.close(old, Why::IdleTimeout);
        io.abort(old, Why::IdleTimeout);
        io.pause(old);
        io.recall(old, Recall::All);
        io.move_to(old, 0, second);
        queued
    });
    assert!(!queued, "queued for nobody");
    let conn = arrived(&reactors, first);
    // The slot's next owner is not it, either.
    let (mut other, _) = connect(&reactors);
    reactors.ask(0, move |_, io| {
        assert!(!send(io, old, b"to the old one", None));
        io.close(old, Why::IdleTimeout);
    });
    for client in [&mut client, &mut other] {
        client.write_all(b"well").unwrap();
        expect_bytes(client, b"well");
    }
    let told = reactors.told();
    let is_wrong = |event: &Event| match event {
        Event::Arrived(_, number) => *number == second,
        Event::Recalled(..) | Event::Closed(..) => true,
        _ => false,
    };
    assert!(!told.iter().any(is_wrong), "{told:?}");
    drop(client);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::ByClient));
}

#[test]
fn letters_posted_after_it_do_not_come_before_it() {
    let reactors = two(echo);
    let (_client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| {
        let before: Letter = Box::new(|toy, _| toy.report(Event::Timer(1)));
        io.post(1, before);
        io.move_to(conn, 1, 2);
        let after: Letter = Box::new(|toy, _| toy.report(Event::Timer(3)));
        io.post(1, after);
    });
    let mut order = Vec::new();
    while order.len() < 3 {
        order.push(reactors.wait("a letter", |event| match event {
            Event::Timer(n) | Event::Arrived(_, n) => Some(*n),
            _ => None,
        }));
    }
    assert_eq!(order, [1, 2, 3]);
}

#[test]
fn it_may_move_to_where_it_is() {
    let reactors = two(echo);
    let (mut client, old) = connect(&reactors);
    let conn = moved(&reactors, old, 0);
    assert!(conn != old && conn.reactor() == 0);
    client.write_all(b"here").unwrap();
    expect_bytes(&mut client, b"here");
}

#[test]
fn unread_input_is_not_forgotten_and_a_pause_lasts() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| io.pause(conn));
    client.write_all(b"waits").unwrap();
    reactors.turns(0, 5);
    let conn = moved(&reactors, conn, 1);
    reactors.turns(1, 5);
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Input(..))), "the pause is over");
    reactors.ask(1, move |_, io| io.resume(conn));
    expect_bytes(&mut client, b"waits");
}

#[test]
fn half_an_object_is_not_lost() {
    let reactors = two(lines);
    let (mut client, conn) = connect(&reactors);
    client.write_all(b"half").unwrap();
    reactors.expect(&Event::Input(conn, 4));
    let conn = moved(&reactors, conn, 1);
    client.write_all(b" and half\n").unwrap();
    expect_bytes(&mut client, b"half and half\n");
    assert!(conn.reactor() == 1);
}

#[test]
fn what_follows_the_request_that_moves_it_is_handled_there_and_in_order() {
    let reactors = two(lines);
    let (mut client, _) = connect(&reactors);
    let stall = reactors.stall(0);
    client.write_all(b"first\ngo\nsecond\ngo\ngo\nthird\nhalf").unwrap();
    drop(stall);
    expect_bytes(&mut client, b"first\ngo\nsecond\ngo\ngo\nthird\n");
    client.write_all(b"\n").unwrap();
    expect_bytes(&mut client, b"half\n");
}

#[test]
fn input_that_waits_behind_a_job_is_handled_where_the_job_ends() {
    /// Takes a byte, and waits for a letter before the next, as behind a login.
    fn a_byte_a_job(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
        send(io, conn, &input[..1], None);
        io.pause(conn);
        Taken { bytes: 1, more: false }
    }
    let reactors = two(a_byte_a_job);
    let (mut client, mut conn) = connect(&reactors);
    let stall = reactors.stall(0);
    client.write_all(b"abcd").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    drop(stall);
    for byte in b"abcd" {
        expect_bytes(&mut client, &[*byte]);
        conn = moved(&reactors, conn, 1 - conn.reactor());
        reactors.ask(conn.reactor(), move |_, io| io.resume(conn));
    }
    expect_end(&mut client);
    reactors.expect(&Event::Ended(conn, 0));
}

#[test]
fn its_end_is_not_told_twice_nor_forgotten() {
    let reactors = two(echo);
    (0..2).for_each(|reactor| reactors.ask(reactor, |toy, _| toy.close_at_end = false));
    let (mut client, conn) = connect(&reactors);
    client.shutdown(Shutdown::Write).unwrap();
    reactors.expect(&Event::Ended(conn, 0));
    let conn = moved(&reactors, conn, 1);
    reactors.turns(1, 5);
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Ended(..))), "told twice");
    reactors.ask(1, move |_, io| {
        send(io, conn, b"the answer", None);
        io.close(conn, Why::ByClient);
    });
    expect_bytes(&mut client, b"the answer");
    expect_end(&mut client);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::ByClient));
}

#[test]
fn a_hang_up_before_the_move_is_told_while_its_input_waits() {
    let reactors = two(echo);
    let (client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| io.pause(conn));
    client.shutdown(Shutdown::Write).unwrap();
    reactors.expect(&Event::HungUp(conn, HangUp::HalfClosed));
    let conn = moved(&reactors, conn, 1);
    reactors.expect(&Event::HungUp(conn, HangUp::HalfClosed));
}

#[test]
fn a_full_socket_and_the_replies_behind_it_go_along() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    let inode = probe::inode_of_accepted(&client);
    reactors.ask(0, move |_, io| {
        jam(io, conn);
        send(io, conn, b"reply", None);
    });
    reactors.turns(0, 2);
    let conn = moved(&reactors, conn, 1);
    reactors.turns(1, 2);
    let mask = probe::watched(reactors.threads[1].epoll, inode).expect("it is watched");
    assert!(probe::waits_to_write(mask), "nobody will write the rest");
    reactors.ask(1, move |_, io| send(io, conn, b"another", None));
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    expect_bytes(&mut client, b"replyanother");
    eventually("WRITABLE to be disarmed", || {
        !probe::waits_to_write(probe::watched(reactors.threads[1].epoll, inode).expect("it is watched"))
    });
}

#[test]
fn what_is_queued_in_the_turn_of_the_move_is_written_there() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    for round in 0..10 {
        let old = if round == 0 { conn } else { arrived(&reactors, round - 1) };
        reactors.ask(old.reactor(), move |_, io| {
            assert!(send(io, old, b"before the move", None));
            io.move_to(old, 1 - old.reactor(), round);
        });
        expect_bytes(&mut client, b"before the move");
    }
}

#[test]
fn a_paced_connection_keeps_its_pace() {
    const MESSAGES: usize = 20;
    let reactors = two(echo);
    let (mut client, mut conn) = connect(&reactors);
    reactors.ask(0, move |_, io| {
        io.pace(conn);
        (0..MESSAGES).for_each(|n| assert!(send(io, conn, b".", Some(Tag::Reply(n)))));
    });
    let mut times = Vec::new();
    for n in 0..MESSAGES {
        times.push(reactors.wait("a message to be written", |event| match event {
            Event::Written(_, tag, at) if *tag == Tag::Reply(n) => Some(*at),
            _ => None,
        }));
        // While it waits for the moment of the next one.
        if n % 3 == 0 {
            conn = moved(&reactors, conn, 1 - conn.reactor());
        }
    }
    for pair in times.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(10), "only {:?} apart", pair[1] - pair[0]);
    }
    expect_bytes(&mut client, &[b'.'; MESSAGES]);
}

#[test]
fn a_client_that_reads_nothing_is_found_out_there() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| {
        jam(io, conn);
        assert!(send(io, conn, b"few", Some(Tag::Chat(0))));
    });
    reactors.turns(0, 2);
    let began = Instant::now();
    let conn = moved(&reactors, conn, 1);
    let recalled = reactors.wait("the message to be handed back", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => Some(recalled.len()),
        _ => None,
    });
    assert_eq!((recalled, reactors.threads[1].counts.slow.of(Slowness::Stalled).get()), (1, 1));
    assert!(began.elapsed() < Duration::from_secs(3), "after {:?}", began.elapsed());
    // And when it has caught up, that is reported where it is by then.
    let conn = moved(&reactors, conn, 0);
    reactors.turns(0, 2);
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Drained(_))), "nobody has read");
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    reactors.expect(&Event::Drained(conn));
}

#[test]
fn its_ten_seconds_over_the_mark_do_not_begin_anew() {
    let reactors = two(echo);
    let (_client, conn) = connect(&reactors);
    let began = Instant::now();
    reactors.ask(0, move |_, io| {
        jam(io, conn);
        assert!(send(io, conn, &vec![b'c'; LIMITS.high_water + 1], Some(Tag::Reply(0))));
    });
    reactors.wait("the mark to be passed", |event| match event {
        Event::Recalled(id, _) if *id == conn => Some(()),
        _ => None,
    });
    reactors.pass(Duration::from_secs(4));
    let conn = moved(&reactors, conn, 1);
    assert_eq!(reactors.closed(conn), (CloseReason::SlowConsumer(Mark::HighWater), vec![(Tag::Reply(0), false)]));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(9900) && took < Duration::from_secs(13), "after {took:?}");
}

#[test]
fn a_mark_that_was_passed_in_the_call_that_moves_it_is_acted_on_there() {
    let reactors = two(echo);
    let (_client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| jam(io, conn));
    reactors.turns(0, 2);
    reactors.ask(0, move |_, io| {
        assert!(send(io, conn, &vec![b'c'; LIMITS.high_water + 1], Some(Tag::Chat(0))));
        io.move_to(conn, 1, 7);
    });
    let conn = arrived(&reactors, 7);
    let recalled = reactors.wait("the mark to be passed", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => Some(recalled.len()),
        _ => None,
    });
    assert_eq!((recalled, reactors.threads[1].counts.slow.of(Slowness::HighWater).get()), (1, 1));
}

#[test]
fn a_recall_that_was_asked_for_in_the_call_that_moves_it_is_carried_out_there() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| jam(io, conn));
    reactors.turns(0, 2);
    reactors.ask(0, move |_, io| {
        assert!(send(io, conn, b"chat", Some(Tag::Chat(0))) && send(io, conn, b"reply", Some(Tag::Reply(1))));
        io.recall(conn, Recall::All);
        io.move_to(conn, 1, 8);
    });
    let conn = arrived(&reactors, 8);
    let recalled = reactors.wait("what was recalled", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => Some(recalled.len()),
        _ => None,
    });
    assert_eq!(recalled, 2);
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    reactors.expect(&Event::Drained(conn));
}

#[test]
fn a_move_by_the_write_that_drains_it_does_not_swallow_that() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.ask(0, move |toy, io| {
        jam(io, conn);
        assert!(send(io, conn, b"the last", Some(Tag::Reply(0))));
        io.recall(conn, Recall::Reroutable);
        toy.on_written = |_, io, conn, _| io.move_to(conn, 1, 9);
    });
    reactors.expect(&Event::Recalled(conn, Vec::new()));
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    expect_bytes(&mut client, b"the last");
    let conn = arrived(&reactors, 9);
    reactors.expect(&Event::Drained(conn));
}

#[test]
fn one_that_is_being_closed_has_its_time_and_no_more() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    let began = Instant::now();
    reactors.ask(0, move |_, io| {
        jam(io, conn);
        io.close(conn, Why::IdleTimeout);
    });
    reactors.pass(Duration::from_secs(2));
    let conn = moved(&reactors, conn, 1);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::IdleTimeout));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(4900) && took < Duration::from_secs(7), "after {took:?}");
    client.read_to_end(&mut Vec::new()).expect("what the kernel had taken, and the end");
    reactors.wait_until_empty(1);
}

#[test]
fn one_that_is_being_closed_is_flushed_and_says_goodbye_there() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| {
        jam(io, conn);
        io.close(conn, Why::IdleTimeout);
    });
    reactors.turns(0, 2);
    let conn = moved(&reactors, conn, 1);
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    expect_end(&mut client);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::IdleTimeout));
    // Its end was reported by now, so it does not move any more.
    reactors.ask(1, move |_, io| io.move_to(conn, 0, 10));
    drop(client);
    (0..2).for_each(|reactor| reactors.wait_until_empty(reactor));
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Arrived(_, 10) | Event::Closed(..))));
}

#[test]
fn one_that_has_died_in_the_same_turn_is_told_of_there() {
    let reactors = two(echo);
    let (_client, conn) = connect(&reactors);
    reactors.ask(0, move |_, io| {
        jam(io, conn);
        assert!(send(io, conn, b"a chat", Some(Tag::Chat(0))));
        io.abort(conn, Why::ClaimLost);
        io.move_to(conn, 1, 11);
    });
    let conn = arrived(&reactors, 11);
    assert_eq!(reactors.closed(conn), (CloseReason::Handler(Why::ClaimLost), vec![(Tag::Chat(0), false)]));
    (0..2).for_each(|reactor| reactors.turns(reactor, 2));
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Closed(..))), "told twice");
}

#[test]
fn one_that_cannot_be_watched_arrives_and_is_closed() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    // The other Poll has it already, which the kernel refuses to take twice.
    probe::watch(reactors.threads[1].epoll, probe::descriptor_of_accepted(&client));
    let conn = moved(&reactors, conn, 1);
    assert_eq!(reactors.closed(conn), (CloseReason::SocketError, Vec::new()));
    expect_end(&mut client);
    reactors.wait_until_empty(1);
}

#[test]
fn a_client_that_leaves_at_the_same_time_is_told_of_once_wherever_it_is() {
    let reactors = two(echo);
    let mut rng = Rng::new();
    for round in 0..300 {
        let (mut client, conn) = connect(&reactors);
        let resets = round % 2 == 0;
        reactors.tell(0, move |_, io| io.move_to(conn, 1, round));
        (0..rng.below(2000)).for_each(|_| std::hint::spin_loop());
        client.write_all(b"last words").unwrap();
        if resets {
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            drop(client);
        } else {
            client.shutdown(Shutdown::Write).unwrap();
            expect_bytes(&mut client, b"last words");
            expect_end(&mut client);
        }
        // It had gone before it moved, or after.
        let last = reactors.wait("its end", |event| match event {
            Event::Closed(id, ..) if *id == conn => Some(conn),
            Event::Arrived(id, number) if *number == round => Some(*id),
            _ => None,
        });
        if last != conn {
            reactors.closed(last);
        }
    }
    (0..2).for_each(|reactor| reactors.wait_until_empty(reactor));
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Closed(..))), "told twice");
}

#[test]
fn a_thousand_moves_under_traffic_lose_no_byte() {
    const MOVES: usize = 1000;
    /// Fewer prove nothing.
    const BYTES: usize = 1 << 20;
    let reactors = two(echo);
    let (client, mut conn) = connect(&reactors);
    let text = |n: usize| format!("{n}, ").into_bytes();
    let (sent, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let got = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(SeqCst) {
                let burst: Vec<u8> = (n..n + 100).flat_map(text).collect();
                (&client).write_all(&burst).expect("it is read");
                sent.fetch_add(burst.len(), SeqCst);
                n += 100;
            }
            client.shutdown(Shutdown::Write).unwrap();
        });
        let reader = scope.spawn(|| {
            let mut all = Vec::new();
            (&client).read_to_end(&mut all).expect("an end without a reset");
            all
        });
        let mut moves = 0;
        while moves < MOVES || sent.load(SeqCst) < BYTES {
            conn = moved(&reactors, conn, 1 - conn.reactor());
            moves += 1;
        }
        done.store(true, SeqCst);
        reader.join().unwrap()
    });
    let sent = sent.into_inner();
    assert_eq!(got.len(), sent);
    let expected: Vec<u8> = (0..).flat_map(text).take(sent).collect();
    assert!(got == expected, "not in order");
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::ByClient));
}

#[test]
fn a_reactor_that_is_stopping_takes_it_in() {
    let reactors = two(echo);
    let (mut client, conn) = connect(&reactors);
    reactors.mailboxes[1].post(Mail::Stop);
    reactors.ask(1, |toy, _| toy.on_arrival = turn_away);
    let conn = moved(&reactors, conn, 1);
    expect_bytes(&mut client, b"bye");
    expect_end(&mut client);
    assert_eq!(reactors.closed(conn).0, CloseReason::Handler(Why::ShuttingDown));
}

fn turn_away(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, _: Moved) {
    send(io, conn, b"bye", None);
    io.close(conn, Why::ShuttingDown);
}

#[test]
fn a_reactor_that_ends_waits_for_it() {
    let reactors = Setup { reactors: 2, ..Setup::default() }.start();
    let (mut client, conn) = reactors.connect();
    let (from, to) = (conn.reactor(), 1 - conn.reactor());
    reactors.ask(to, |toy, _| toy.on_arrival = turn_away);
    let (mailboxes, ends) = (Arc::clone(&reactors.mailboxes), reactors.threads[to].proc.clone());
    let counts = Arc::clone(&reactors.threads[to].counts);
    reactors.ask(from, move |_, io| {
        io.move_to(conn, to, 12);
        let turns = counts.turns.get();
        mailboxes[to].post(Mail::Exit);
        // It has nothing else to wait for.
        eventually("some turns, or its end", || counts.turns.get() > turns + 3 || !ends.exists());
    });
    expect_bytes(&mut client, b"bye");
    expect_end(&mut client);
}
