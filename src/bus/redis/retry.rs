//! How long Redis is waited for, when it is tried again, and how often that is logged.

use std::fmt;
use std::time::{Duration, Instant};

/// A Redis that has not answered for this long counts as away.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to reach Redis.
pub(super) const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause, after the first attempt, which is made at once.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The period in which at most one warning of a kind is logged.
const COMPLAIN: Duration = Duration::from_secs(10);

/// When to try again: at once, then after 50 ms, and twice as long each time, up to 1 s.
pub(super) struct BackOff {
    failures: u32,
    pub not_before: Instant,
    worked_since: Option<Instant>,
}

impl BackOff {
    pub fn new(now: Instant) -> BackOff {
        BackOff { failures: 0, not_before: now, worked_since: None }
    }

    pub fn worked(&mut self, now: Instant) {
        self.worked_since = Some(now);
    }

    pub fn failed(&mut self, now: Instant) {
        // A line that breaks as soon as it works counts as one that does not work.
        if self.worked_since.take().is_some_and(|since| now.duration_since(since) >= MAX_PAUSE) {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => (MIN_PAUSE * 2_u32.pow((failures - 1).min(10))).min(MAX_PAUSE),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + pause;
    }
}

/// Warnings of one kind, of which only some are logged.
#[derive(Default)]
pub(super) struct WarnLimiter {
    last: Option<Instant>,
    held_back: u64,
}

impl WarnLimiter {
    pub fn warn(&mut self, what: fmt::Arguments) {
        if self.last.is_some_and(|last| last.elapsed() < COMPLAIN) {
            self.held_back += 1;
            return;
        }
        match std::mem::take(&mut self.held_back) {
            0 => log::warn!("{what}"),
            held_back => log::warn!("{what} (and {held_back} more like this)"),
        }
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_made_at_once_and_no_pause_is_longer_than_a_second() {
        let now = Instant::now();
        let mut back_off = BackOff::new(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            back_off.failed(now);
            pauses.push(back_off.not_before.duration_since(now).as_millis());
        }
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn only_what_has_worked_for_a_while_begins_at_the_shortest_pause_again() {
        let now = Instant::now();
        let mut back_off = BackOff::new(now);
        (0..8).for_each(|_| back_off.failed(now));
        back_off.worked(now);
        back_off.failed(now);
        assert_eq!(back_off.not_before, now + MAX_PAUSE, "it broke at once");
        back_off.worked(now);
        back_off.failed(now + MAX_PAUSE);
        assert_eq!(back_off.not_before, now + MAX_PAUSE, "at once, a second later");
    }
}
