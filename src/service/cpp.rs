//! What is noted of clients that may be C++ ones: those that have never used `seq`.

use std::time::{Duration, Instant};

/// More messages than this in a second are sent by no person.
const TYPED: u32 = 50;
/// More messages than this in a second are read by no person…
const READ: u32 = 100;
/// …if they come for so many seconds on end. A burst is read later.
const SECONDS: u32 = 5;
/// The number of unknown msgids that are remembered of a connection.
const UNKNOWN: usize = 8;

/// What is noted of one client.
#[derive(Debug, Default)]
pub(super) struct Cpp {
    spacing: Spacing,
    /// The unknown msgids that it was told of since its last known request, oldest first.
    told: Vec<i64>,
}

/// Whether the messages to a client are spaced out without a flag.
#[derive(Debug, Default)]
enum Spacing {
    #[default]
    NotBegun,
    Watched(Rates),
    /// It is a program: never again on this connection.
    Over,
}

/// What distinguishes a program from a person.
#[derive(Debug)]
struct Rates {
    /// What the client has sent.
    sent: Second,
    /// The live messages that have come for it.
    came: Second,
    /// The number of seconds on end before this one in which too many of those have come.
    busy: u32,
}

/// A second, which begins with a message or with the end of the second before.
#[derive(Debug)]
struct Second {
    begun: Instant,
    messages: u32,
}

impl Second {
    /// Counts a message. Returns, if a second is over with it, the number of messages in that one, and how many
    /// seconds have passed since that one began.
    fn count(&mut self, now: Instant) -> Option<(u32, u64)> {
        let passed = now.saturating_duration_since(self.begun).as_secs();
        let over = (passed > 0).then_some((self.messages, passed));
        if over.is_some() {
            self.begun += Duration::from_secs(passed);
            self.messages = 0;
        }
        self.messages += 1;
        over
    }
}

impl Cpp {
    /// The messages to the client are spaced out from now on, and it is watched whether it is a program.
    pub fn begin_spacing(&mut self, now: Instant) {
        if matches!(self.spacing, Spacing::NotBegun) {
            let second = || Second { begun: now, messages: 0 };
            self.spacing = Spacing::Watched(Rates { sent: second(), came: second(), busy: 0 });
        }
    }

    pub fn is_spaced(&self) -> bool {
        matches!(self.spacing, Spacing::Watched(_))
    }

    /// Whether it has turned out to be a program.
    pub fn is_program(&self) -> bool {
        matches!(self.spacing, Spacing::Over)
    }

    /// The client has sent a message. True: so many that it is a program.
    pub fn sent(&mut self, now: Instant) -> bool {
        self.ends_spacing(|rates| {
            if let Some((_, seconds)) = rates.sent.count(now)
                && seconds > 1
            {
                rates.sent.begun = now;
            }
            rates.sent.messages > TYPED
        })
    }

    /// A live message has come for the client. True: so many have that it is a program.
    pub fn came(&mut self, now: Instant) -> bool {
        self.ends_spacing(|rates| {
            if let Some((messages, seconds)) = rates.came.count(now) {
                rates.busy = if messages > READ { rates.busy + 1 } else { 0 };
                if rates.busy < SECONDS && seconds > 1 {
                    // There was one without any.
                    (rates.busy, rates.came.begun) = (0, now);
                }
            }
            rates.busy >= SECONDS
        })
    }

    fn ends_spacing(&mut self, is_program: impl FnOnce(&mut Rates) -> bool) -> bool {
        let Spacing::Watched(rates) = &mut self.spacing else { return false };
        let ends = is_program(rates);
        if ends {
            self.spacing = Spacing::Over;
        }
        ends
    }

    /// The client has sent a request of an unknown number. True: it was told so already.
    pub fn was_told(&mut self, msgid: i64) -> bool {
        if self.told.contains(&msgid) {
            return true;
        }
        if self.told.len() == UNKNOWN {
            self.told.remove(0);
        }
        self.told.push(msgid);
        false
    }

    /// It has sent a known request.
    pub fn forget_told(&mut self) {
        self.told = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spaced(now: Instant) -> Cpp {
        let mut cpp = Cpp::default();
        cpp.begin_spacing(now);
        cpp
    }

    /// Whether a client for which so many messages a second come turns out to be a program within this time.
    fn is_program(a_second: u32, seconds: u32) -> bool {
        let begun = Instant::now();
        let mut cpp = spaced(begun);
        (0..a_second * seconds).any(|n| cpp.came(begun + Duration::from_secs(1) * n / a_second))
    }

    #[test]
    fn a_person_gets_no_more_than_100_messages_a_second_for_5_seconds() {
        assert!(!is_program(100, 60));
        assert!(!is_program(1000, 5));
        assert!(is_program(101, 6));
        assert!(is_program(1000, 6));
    }

    #[test]
    fn seconds_that_are_not_on_end_are_those_of_a_person() {
        let begun = Instant::now();
        let mut cpp = spaced(begun);
        for second in 0..100 {
            // Every fifth one is quiet, or has none at all.
            let messages = [200, 200, 200, 200, if second % 2 == 0 { 0 } else { 100 }][second % 5];
            for n in 0..messages {
                let at = begun + Duration::from_secs(second as u64) + Duration::from_secs(1) * n / messages;
                assert!(!cpp.came(at), "message {n} of second {second}");
            }
        }
    }

    #[test]
    fn more_than_50_messages_in_one_second_are_sent_by_a_program() {
        let begun = Instant::now();
        let mut cpp = spaced(begun);
        for second in [0, 1, 7] {
            let at = begun + Duration::from_millis(second * 1000 + 500);
            assert!(!(0..TYPED).any(|_| cpp.sent(at)));
        }
        assert!(cpp.sent(begun + Duration::from_millis(8499)));
        assert!(cpp.is_program() && !cpp.is_spaced());
        cpp.begin_spacing(begun);
        assert!(cpp.is_program(), "it does not begin again");
    }

    #[test]
    fn what_is_not_spaced_is_not_counted() {
        let now = Instant::now();
        let mut cpp = Cpp::default();
        assert!(!(0..1000).any(|_| cpp.sent(now)));
        cpp.begin_spacing(now);
        assert!(cpp.is_spaced());
    }

    #[test]
    fn the_last_8_unknown_numbers_are_remembered() {
        let mut cpp = Cpp::default();
        for number in 0..8 {
            assert!(!cpp.was_told(number));
        }
        assert!((0..8).all(|number| cpp.was_told(number)));
        assert!(!cpp.was_told(8));
        assert!(!cpp.was_told(0), "it was forgotten");
        assert!(cpp.was_told(8));
        cpp.forget_told();
        assert!(!cpp.was_told(8));
    }
}
