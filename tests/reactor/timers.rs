//! Rule 13: timers are lazy. (That a late one closes nobody stands in `bounds`.)

use std::time::{Duration, Instant};

use chat_server::reactor::Timers;

use crate::probe;
use crate::toy::{Event, Setup, start, swallow};

#[test]
fn a_timer_does_not_fire_before_its_time_whatever_the_clock_shows() {
    let (mut timers, start) = (Timers::default(), Instant::now());
    let year = Duration::from_secs(365 * 24 * 3600);
    timers.set(start + year, "far");
    timers.set(start + Duration::from_nanos(1), "near");
    assert_eq!(timers.pop_due(start), None);
    assert_eq!(timers.pop_due(start + year / 2), Some("near"));
    assert_eq!(timers.pop_due(start + year / 2), None);
    assert_eq!(timers.pop_due(start + year), Some("far"));
}

#[test]
fn a_sleeping_reactor_does_not_sleep_through_a_timer() {
    let reactors = start(swallow);
    let began = Instant::now();
    for n in 0..20 {
        reactors.tell(0, move |_, io| io.set_timer(io.now() + Duration::from_millis(20), n));
        reactors.expect(&Event::Timer(n));
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400), "early: 20 timers of 20 ms took {took:?}");
    assert!(took < Duration::from_secs(10), "late: 20 timers of 20 ms took {took:?}");
}

#[test]
fn the_memory_of_a_crowds_timers_is_not_kept() {
    let (mut timers, start, before) = (Timers::default(), Instant::now(), probe::held());
    (0..100_000_u64).for_each(|n| timers.set(start + Duration::from_nanos(n), n));
    let most = probe::held() - before;
    while timers.pop_due(start + Duration::from_secs(1)).is_some() {}
    let kept = probe::held() - before;
    assert!(kept < most / 20, "{kept} of {most} bytes are kept for no timer");
}

#[test]
fn a_loop_that_was_kept_from_running_hears_of_it_before_anything_that_has_come_meanwhile() {
    let reactors = Setup { reactors: 2, ..Setup::default() }.start();
    // Time passes by the first one's clock, while the second one stands still.
    reactors.pass(Duration::from_millis(1500));
    let stall = reactors.stall(1);
    reactors.pass(Duration::from_millis(3500));
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::WasStopped(_))), "a sleep is no stop");
    reactors.tell(1, |toy, _| toy.report(Event::Timer(7)));
    drop(stall);
    let gap = reactors.wait("a word about it", |event| match event {
        Event::WasStopped(gap) => Some(Ok(*gap)),
        Event::Timer(7) => Some(Err("the letter came first")),
        _ => None,
    });
    assert!(gap.unwrap() >= Duration::from_millis(3400), "{gap:?}");
    reactors.expect(&Event::Timer(7));
}
