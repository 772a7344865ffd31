//! Reactor thread: what happens to a client that does not read: the marks of its queue, and where it stands with them.
//!
//! Everything here is a decision without an effect; the loop carries it out (`slow.rs`).
//!
//! # The state machine
//!
//! A queue that is full in the middle of a turn says nothing about the client yet. So the loop flushes it first, and
//! holds against the marks what the socket did not take.
//!
//! | state | event | next state | what the loop does |
//! | --- | --- | --- | --- |
//! | [`Pressure::None`] | the queue is above the soft mark | [`Pressure::Over`] | recalls what is [`Recall::Reroutable`](super::Recall::Reroutable), reads no more input, and looks again in 10 s |
//! | `None` | for 1 s the socket has taken nothing, or a tagged message waits | [`Pressure::Recalled`] | recalls what is reroutable |
//! | `None` | the handler asks for a recall | `Recalled` | recalls what the handler wants |
//! | `Recalled` | the handler queues a tagged message | `None` | watches anew whether the client stalls |
//! | `Over` | the handler queues a tagged message | `Over` | recalls it, if it is reroutable |
//! | `Recalled` | the queue is above the soft mark | `Over` | as from `None` |
//! | `Recalled`, `Over` | the queue is empty | `None` | tells the handler that it is drained, and reads on |
//! | `Over` | 10 s have passed since it came to be | | closes the connection, for that mark |
//! | any | the queue is above the hard mark | | closes the connection, for the hard mark |
//!
//! Half of a message on the wire could never be followed, so a message that was partly written stays in the queue; what
//! is recalled of it is a copy. That is why `Over` ends with an empty queue, and not when enough was recalled.
//!
//! # The marks
//!
//! | mark | value | what counts |
//! | --- | --- | --- |
//! | soft | [`Limits::high_water`] | messages that are not [`SendOptions::uncounted`](super::SendOptions::uncounted) |
//! | hard | [`Limits::hard`] | the same |
//! | soft, while all queues together hold more than [`Limits::total`] | an equal share of `total`, or `high_water` if that is less | all messages |
//! | hard, while they hold more than twice as much | an equal share of `total` | all messages |
//!
//! # Each way to be closed
//!
//! | the client | is closed | reason | in the log |
//! | --- | --- | --- | --- |
//! | has not emptied its queue since that passed the high-water mark | after 10 s | [`Mark::HighWater`] | at `info`, with bytes and limit |
//! | has not emptied its queue since that passed its share | after 10 s | [`Mark::Share`] | the same |
//! | has a queue above the hard mark | at once | [`Mark::Hard`] | the same |
//! | has a queue above its share, while all hold more than twice `total` | at once | [`Mark::HardShare`] | the same |
//! | is closed by the handler, and does not read the rest | 5 s after that | the handler's | as the handler logs it |
//! | has read the rest, and does not close its own side | 5 s after that | the handler has been told its own | |
//! | is aborted by the handler | at once | the handler's | as the handler logs it |
//! | acknowledges nothing for 30 s, or no keep-alive probe | by the kernel | [`CloseReason::SocketError`](super::CloseReason::SocketError) | at `debug` |
//!
//! Time in which the handler might not act is not the client's: both limits of 5 s and the 10 s begin anew with it.

use std::time::Duration;

use super::reason::Mark;

/// How long a queue may take to be emptied once it has passed the soft mark.
pub(super) const SLOW_CONSUMER: Duration = Duration::from_secs(10);
/// How long a client may take nothing, or a tagged message wait, before messages are recalled. Senders wait for their
/// outcome, also when the queue is far below the high-water mark and the client takes a little of it now and then.
pub(super) const STALLED: Duration = Duration::from_secs(1);

/// What bounds a connection's queue, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The soft mark: past it, messages are recalled and the client has 10 s to catch up.
    pub high_water: usize,
    /// The hard mark: past it, the connection is closed at once.
    pub hard: usize,
    /// The bound of all queues of all reactors together, and of what their handlers hold besides
    /// ([`Io::set_held`](super::Io::set_held)). While they hold more, each connection may have an equal share of this
    /// waiting and no more: that is the soft mark then, also for what otherwise does not count. While they hold more
    /// than twice as much, it is the hard one. How exactly a reactor knows it: [`Budget`](super::Budget).
    pub total: usize,
}

/// The marks as they are at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    pub soft: usize,
    pub hard: usize,
    /// All queues together hold more than they may.
    pub tight: bool,
    /// More than twice as much.
    very_tight: bool,
}

impl Marks {
    /// The marks when all queues together hold `bytes`, for `connections` connections.
    pub fn new(limits: Limits, bytes: usize, connections: impl FnOnce() -> usize) -> Marks {
        let Limits { high_water, hard, total } = limits;
        if bytes <= total {
            return Marks { soft: high_water, hard, tight: false, very_tight: false };
        }
        let share = total / connections().max(1);
        let very_tight = bytes / 2 > total;
        Marks { soft: high_water.min(share), hard: if very_tight { share } else { hard }, tight: true, very_tight }
    }

    /// The mark for which a connection is closed at once, if its queue has this weight.
    pub fn hard_mark(&self, weight: usize) -> Option<Mark> {
        (weight > self.hard).then_some(if self.very_tight { Mark::HardShare } else { Mark::Hard })
    }
}

/// Where a connection stands with a client that may not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Pressure {
    /// Nothing is known against the client.
    #[default]
    None,
    /// Its messages were recalled, because the socket has not taken them for a second or the handler wanted them; the
    /// queue was not drained since.
    Recalled,
    /// Its queue has passed the soft mark, by its own bytes or by its share of all; it was not drained since.
    Over(Mark),
}

/// What becomes of a tagged message behind others that were recalled. It must not wait for as long as they have
/// the client to catch up: its sender would not hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anew {
    /// No others were.
    Nothing,
    /// A client that takes nothing is to be found anew.
    Watch,
    /// What is reroutable is recalled as well.
    Recall,
}

impl Pressure {
    /// The queue was flushed and still has this weight. True: it has just passed the soft mark.
    pub fn weighed(&mut self, weight: usize, marks: &Marks) -> bool {
        let has_passed = weight > marks.soft && !self.is_over();
        if has_passed {
            *self = Pressure::Over(if marks.tight { Mark::Share } else { Mark::HighWater });
        }
        has_passed
    }

    /// Whether a queue of such a weight has to be looked at: it may have just passed a mark.
    pub fn is_news(self, weight: usize, soft: usize, hard: usize) -> bool {
        weight > soft && (!self.is_over() || weight > hard)
    }

    /// Its messages are recalled, so that the handler is to be told when the rest is written.
    pub fn recalled(&mut self) {
        if *self == Pressure::None {
            *self = Pressure::Recalled;
        }
    }

    /// A tagged message is queued, and others may have been recalled: then the connection has another user by now.
    pub fn queued_anew(&mut self) -> Anew {
        match self {
            Pressure::None => Anew::Nothing,
            Pressure::Recalled => {
                *self = Pressure::None;
                Anew::Watch
            }
            Pressure::Over(_) => Anew::Recall,
        }
    }

    /// The queue is empty. True: the handler waits for that.
    pub fn drained(&mut self) -> bool {
        std::mem::take(self) != Pressure::None
    }

    /// Whether it makes a difference that the socket does not take what waits.
    pub fn watches_for_a_stall(self) -> bool {
        self == Pressure::None
    }

    /// Whether no input is read, so that the client does not ask for more than it reads.
    pub fn is_over(self) -> bool {
        matches!(self, Pressure::Over(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { high_water: 100, hard: 1000, total: 4000 };
    const OWN: Pressure = Pressure::Over(Mark::HighWater);
    const SHARE: Pressure = Pressure::Over(Mark::Share);

    fn marks(bytes: usize) -> Marks {
        Marks::new(LIMITS, bytes, || 80)
    }

    #[test]
    fn marks_are_ones_own_until_all_hold_too_much() {
        let soft_and_hard = |bytes| (marks(bytes).soft, marks(bytes).hard, marks(bytes).tight);
        assert_eq!(soft_and_hard(4000), (100, 1000, false));
        assert_eq!(soft_and_hard(4001), (50, 1000, true));
        assert_eq!(soft_and_hard(8001), (50, 1000, true));
        assert_eq!(soft_and_hard(8002), (50, 50, true));
        // A share is never more than the own soft mark; without connections there is no division by zero.
        assert_eq!(Marks::new(LIMITS, 4001, || 0).soft, 100);
        assert_eq!([0, 1000, 1001].map(|weight| marks(0).hard_mark(weight)), [None, None, Some(Mark::Hard)]);
        assert_eq!([50, 51].map(|weight| marks(8002).hard_mark(weight)), [None, Some(Mark::HardShare)]);
    }

    #[test]
    fn each_state_goes_where_the_table_says() {
        type Event = fn(&mut Pressure) -> bool;
        /// Before, after, and the answer.
        type Cases = [(Pressure, Pressure, bool); 4];
        let at_the_mark: Event = |pressure| pressure.weighed(100, &marks(0));
        let above_the_mark: Event = |pressure| pressure.weighed(101, &marks(0));
        let above_its_share: Event = |pressure| pressure.weighed(51, &marks(4001));
        let recalled: Event = |pressure| {
            pressure.recalled();
            true
        };
        let watched: Event = |pressure| pressure.queued_anew() == Anew::Watch;
        let queued: Event = |pressure| pressure.queued_anew() == Anew::Recall;
        let (none, gone) = (Pressure::None, Pressure::Recalled);
        let rows: [(&str, Event, Cases); 7] = [
            ("at", at_the_mark, [(none, none, false), (gone, gone, false), (OWN, OWN, false), (SHARE, SHARE, false)]),
            ("above", above_the_mark, [(none, OWN, true), (gone, OWN, true), (OWN, OWN, false), (SHARE, SHARE, false)]),
            (
                "share",
                above_its_share,
                [(none, SHARE, true), (gone, SHARE, true), (OWN, OWN, false), (SHARE, SHARE, false)],
            ),
            ("recalled", recalled, [(none, gone, true), (gone, gone, true), (OWN, OWN, true), (SHARE, SHARE, true)]),
            ("queued", watched, [(none, none, false), (gone, none, true), (OWN, OWN, false), (SHARE, SHARE, false)]),
            ("queued", queued, [(none, none, false), (gone, none, false), (OWN, OWN, true), (SHARE, SHARE, true)]),
            (
                "drained",
                Pressure::drained,
                [(none, none, false), (gone, none, true), (OWN, none, true), (SHARE, none, true)],
            ),
        ];
        for (name, event, cases) in rows {
            for (before, after, answer) in cases {
                let mut pressure = before;
                assert_eq!((event(&mut pressure), pressure), (answer, after), "{before:?}, {name}");
            }
        }
    }

    #[test]
    fn a_client_whose_messages_were_recalled_is_not_watched_for_a_stall() {
        assert_eq!([Pressure::None, Pressure::Recalled, OWN].map(Pressure::watches_for_a_stall), [true, false, false]);
    }

    #[test]
    fn a_queue_is_looked_at_once_for_each_mark() {
        let news = |pressure: Pressure, weight| pressure.is_news(weight, 100, 1000);
        assert_eq!([100, 101, 1001].map(|weight| news(Pressure::None, weight)), [false, true, true]);
        assert_eq!([100, 101, 1001].map(|weight| news(OWN, weight)), [false, false, true]);
    }
}
