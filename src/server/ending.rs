//! Thread `lives`: what an end in order waits for.
//!
//! That is: all users are logged out, and the store has taken what was not delivered.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

/// Any message on this channel cuts an end short.
pub type Hurry = Receiver<String>;

/// How long there may be no progress: a database that answers at all has done a batch by then.
const STALLED: Duration = Duration::from_secs(10);
/// How long it may take in all.
const WIND_UP: Duration = Duration::from_secs(60);
/// How often the log reports what is left.
const PROGRESS: Duration = Duration::from_secs(5);
/// How often progress is checked.
pub const LOOK: Duration = Duration::from_millis(100);

/// A number of messages, and of the users that they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub messages: usize,
    pub users: usize,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} messages for {} users", self.messages, self.users)
    }
}

/// What one reactor has neither delivered nor stored yet, once it is to end. Its users belong to no other reactor.
#[derive(Default)]
pub(super) struct Remains {
    messages: AtomicUsize,
    users: AtomicUsize,
}

impl Remains {
    pub fn set(&self, (messages, users): (usize, usize)) {
        self.messages.store(messages, Relaxed);
        self.users.store(users, Relaxed);
    }

    fn get(&self) -> Count {
        Count { messages: self.messages.load(Relaxed), users: self.users.load(Relaxed) }
    }
}

/// What all reactors have neither delivered nor stored. When the end is no longer waited for, it is lost.
pub(super) fn remaining(remains: &[Arc<Remains>]) -> Count {
    let each = remains.iter().map(|remains| remains.get());
    each.fold(Count::default(), |sum, one| Count {
        messages: sum.messages + one.messages,
        users: sum.users + one.users,
    })
}

/// Why an end is not complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfinished {
    #[error("there has been no progress for {} s", STALLED.as_secs())]
    Stalled,
    #[error("the store has not taken everything in {} s", WIND_UP.as_secs())]
    TooSlow,
    #[error("other nodes took this one for dead")]
    Marked,
    #[error("a second signal has come")]
    Hurried,
}

/// A second signal has cut an end short, and this many messages are lost.
#[derive(Debug, thiserror::Error)]
#[error("a second signal has cut the end short; {0} are lost")]
pub struct Hurried(pub(super) Count);

/// Waits until every shard has reported that it has `wound_up`. `done`: the number of jobs that the store has done.
///
/// # Errors
/// The end is given up.
pub(super) fn wind_up(
    wound_up: &Receiver<()>,
    marked: &Receiver<()>,
    hurry: &Hurry,
    remains: &[Arc<Remains>],
    done: &AtomicU64,
) -> Result<(), Unfinished> {
    let begun = Instant::now();
    let (mut open, mut progress, mut told) = (remains.len(), Progress::new(done.load(Relaxed), begun), begun);
    while open > 0 {
        select! {
            recv(wound_up) -> _ => open -= 1,
            recv(marked) -> _ => return Err(Unfinished::Marked),
            recv(hurry) -> _ => return Err(Unfinished::Hurried),
            default(LOOK) => {}
        }
        let now = Instant::now();
        progress.check(done.load(Relaxed), now)?;
        if told + PROGRESS <= now {
            told = now;
            log::info!("stopping: {} are not delivered or stored yet", remaining(remains));
        }
    }
    Ok(())
}

/// Whether the store goes on doing the jobs that it is given.
struct Progress {
    begun: Instant,
    done: u64,
    since: Instant,
}

impl Progress {
    fn new(done: u64, now: Instant) -> Progress {
        Progress { begun: now, done, since: now }
    }

    /// `done`: the number of jobs that it has done by now.
    fn check(&mut self, done: u64, now: Instant) -> Result<(), Unfinished> {
        if self.done != done {
            (self.done, self.since) = (done, now);
        }
        if self.since + STALLED <= now {
            Err(Unfinished::Stalled)
        } else if self.begun + WIND_UP <= now {
            Err(Unfinished::TooSlow)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{bounded, never};

    use super::*;

    #[test]
    fn an_end_lasts_while_the_store_takes_something_and_not_for_more_than_a_minute() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut progress = Progress::new(7, begun);
        assert_eq!(progress.check(7, at(9_999)), Ok(()));
        assert_eq!(progress.check(8, at(9_999)), Ok(()));
        assert_eq!(progress.check(8, at(19_998)), Ok(()));
        assert_eq!(progress.check(8, at(19_999)), Err(Unfinished::Stalled));
        let mut progress = Progress::new(0, begun);
        assert!((1..600).all(|n| progress.check(n, at(n * 100)).is_ok()));
        assert_eq!(progress.check(600, at(60_000)), Err(Unfinished::TooSlow));
    }

    #[test]
    fn an_end_is_complete_when_all_have_wound_up() {
        let remains: Vec<Arc<Remains>> = (0..2).map(|_| Arc::default()).collect();
        remains[0].set((3, 2));
        remains[1].set((4, 1));
        assert_eq!(remaining(&remains), Count { messages: 7, users: 3 });

        let (report, wound_up) = bounded(2);
        let end =
            |marked: &Receiver<()>, hurry: &Hurry| wind_up(&wound_up, marked, hurry, &remains, &AtomicU64::new(0));
        (0..2).for_each(|_| report.send(()).unwrap());
        assert_eq!(end(&never(), &never()), Ok(()));
        report.send(()).unwrap();
        let (tell, told) = bounded(1);
        tell.send("SIGTERM".to_owned()).unwrap();
        assert_eq!(end(&never(), &told), Err(Unfinished::Hurried));
        let (mark, marked) = bounded(1);
        mark.send(()).unwrap();
        assert_eq!(end(&marked, &never()), Err(Unfinished::Marked));
    }
}
