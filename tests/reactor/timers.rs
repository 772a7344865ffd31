//! Rule 13: timers are lazy. (`bounds` shows that a late one closes no connection.)

use std::time::{Duration, Instant};

use chat_server::reactor::Timers;

use crate::probe;
use crate::toy::{Event, start, swallow};

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
