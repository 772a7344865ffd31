//! Rule 6: mailboxes; rule 11: no thread waits for a reactor.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use chat_server::reactor::{ConnId, Io, Mail, Taken};

use crate::probe;
use crate::support::{DEADLINE, eventually};
use crate::toy::{Event, Letter, Setup, Toy, start, swallow};

fn nothing() -> Letter {
    Box::new(|_, _| {})
}

#[test]
fn letters_behind_the_first_wake_nobody() {
    let reactors = start(swallow);
    let _stall = reactors.stall(0);
    let before = probe::writes(Path::new("/proc/thread-self"));
    (0..1000).for_each(|_| reactors.mailboxes[0].post(Mail::Letter(nothing())));
    assert_eq!(probe::writes(Path::new("/proc/thread-self")) - before, 1, "wakes for a thousand letters");
}

#[test]
fn a_turns_letters_to_a_reactor_cost_no_wake_each() {
    let reactors = Setup { reactors: 2, script: swallow, ..Setup::default() }.start();
    reactors.turns(0, 2);
    let stall = reactors.stall(1);
    let proc = &reactors.threads[0].proc;
    let before = probe::writes(proc);
    reactors.ask(0, |_, io| (0..100).for_each(|_| io.post(1, nothing())));
    reactors.turns(0, 2);
    assert_eq!(probe::writes(proc) - before, 1, "wakes for a hundred letters");
    drop(stall);
    reactors.turns(1, 1);
}

#[test]
fn no_letter_stays_behind_in_a_turn() {
    let reactors = start(swallow);
    let (tell, told) = channel();
    let stall = reactors.stall(0);
    for n in 0..1000 {
        let tell = tell.clone();
        reactors.tell(0, move |_, io| _ = tell.send((n, io.now())));
    }
    drop((stall, tell));
    let turns: Vec<(usize, Instant)> = told.iter().collect();
    assert!(turns.iter().map(|(n, _)| *n).eq(0..1000), "out of order");
    assert_eq!(turns.iter().map(|(_, now)| now).collect::<HashSet<_>>().len(), 1, "it took several turns");
}

#[test]
fn a_sleeping_reactor_does_not_sleep_on_when_a_letter_comes() {
    const ROUNDS: u32 = 20;
    let reactors = Setup { reactors: 2, script: swallow, ..Setup::default() }.start();
    let began = Instant::now();
    for _ in 0..ROUNDS {
        let (arrived, arrival) = channel();
        reactors.tell(0, move |_, io| io.post(1, Box::new(move |_, _| _ = arrived.send(()))));
        arrival.recv_timeout(DEADLINE).expect("the letter arrives");
    }
    // Without wakes each round takes up to two of a reactor's longest sleeps.
    assert!(began.elapsed() < Duration::from_secs(1) * (ROUNDS / 2), "{ROUNDS} letters took {:?}", began.elapsed());
}

#[test]
fn an_idle_reactor_neither_sleeps_for_ever_nor_spins() {
    let reactors = start(swallow);
    reactors.turns(0, 2);
    let proc = &reactors.threads[0].proc;
    let (before, busy, began) = (probe::sleeps(proc), probe::cpu(proc), Instant::now());
    eventually("an idle reactor to look around", || probe::sleeps(proc) >= before + 3);
    assert!(began.elapsed() < Duration::from_secs(10), "it slept for {:?}", began.elapsed() / 3);
    assert!(began.elapsed() > Duration::from_millis(1500), "it wakes all the time");
    assert!(probe::cpu(proc) - busy < Duration::from_millis(200), "it spins");
}

#[test]
fn posting_to_a_busy_reactor_does_not_block() {
    let reactors = start(swallow);
    let (done, all_done) = channel();
    let stall = reactors.stall(0);
    for _ in 0..200_000 {
        let done = done.clone();
        reactors.tell(0, move |_, _| _ = done.send(()));
    }
    assert_eq!(reactors.mailboxes[0].len(), 200_000);
    drop((stall, done));
    assert_eq!(all_done.iter().count(), 200_000);
}

/// A letter to the other reactor for each byte.
fn a_letter_a_byte(_: &mut Toy, io: &mut Io<Toy>, _: ConnId, input: &[u8]) -> Taken {
    input.iter().for_each(|_| io.post(1, nothing()));
    Taken { bytes: input.len(), more: false }
}

#[test]
fn a_full_mailbox_stops_those_who_feed_it_and_nobody_else() {
    // Two turns' reading passes the mark of 65,536 letters, whatever the first one got.
    const MOST: usize = 3 * 65_536;
    const SENT: usize = 2 << 20;
    let reactors = Setup { reactors: 2, script: a_letter_a_byte, ..Setup::default() }.start();
    let (mut feeder, conn) = reactors.connect();
    assert_eq!(conn.reactor(), 0);
    let stall = reactors.stall(1);
    std::thread::scope(|scope| {
        scope.spawn(move || feeder.write_all(&vec![b'x'; SENT]).expect("it may go on in the end"));
        eventually("a full mailbox", || reactors.mailboxes[1].len() > 65_536);
        let spent = probe::cpu(&reactors.threads[0].proc);
        reactors.pass(Duration::from_millis(300));
        let spent = probe::cpu(&reactors.threads[0].proc) - spent;
        assert!(reactors.mailboxes[1].len() <= MOST, "{} letters wait", reactors.mailboxes[1].len());
        assert!(spent < Duration::from_millis(150), "it spins: {spent:?} of 300 ms");
        drop(stall);
    });
    let mut got = 0;
    while got < SENT {
        got += reactors.wait("all that was sent", |event| match event {
            Event::Input(_, n) => Some(*n),
            _ => None,
        });
    }
}
