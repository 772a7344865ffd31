//! Any thread: whether this node may act on its claims.
//!
//! When a node has no lease any more, others mark it in the store, and free its claims 2 s after that at the
//! earliest. So it acts on them only
//!
//! - while its lease is valid, by a clock that goes on while the machine is suspended; or else
//! - for a second from the beginning of a look into the store by which it was not marked.
//!
//! A lease that has run out and was then renewed says nothing yet: the node may have been marked in between.
//! It counts again after a look that has raised the node's counter, since a node that has seen the lease
//! missing before that can no longer mark this one.
//!
//! All times are those of [`crate::clock::since_boot`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

/// How long a look is good for, from its beginning.
pub const LOOK: Duration = Duration::from_secs(1);
/// How much sooner than Redis this node considers its lease expired, since their clocks may run differently.
const MARGIN: Duration = Duration::from_millis(250);
/// The node may never act again.
const ENDED: u64 = 0;

/// Shared by the reactors, which ask, and the threads that renew the lease and look.
pub struct Validity {
    /// How long a lease lasts that is not renewed.
    ttl: Duration,
    /// Until when the node may act, in nanoseconds since the machine was booted, or [`ENDED`].
    until: AtomicU64,
    lease: Mutex<Lease>,
    /// Notified when the node was taken for dead.
    marked: Sender<()>,
}

#[derive(Default)]
struct Lease {
    /// When the first renewal of the current series without a gap was answered.
    since: Duration,
    until: Duration,
    /// A look has raised the node's counter since then.
    counts: bool,
}

impl Validity {
    /// For a node that has no lease yet; leases last for `ttl`. The receiver is notified when the node was taken
    /// for dead.
    pub fn new(ttl: Duration) -> (Validity, Receiver<()>) {
        let (marked, is_marked) = bounded(1);
        (Validity { ttl, until: AtomicU64::new(1), lease: Mutex::default(), marked }, is_marked)
    }

    /// Whether the node may act.
    pub fn may_act(&self, now: Duration) -> bool {
        nanos(now) < self.until.load(Ordering::Acquire)
    }

    /// Until when it may act, unless it is extended.
    pub fn until(&self) -> Duration {
        Duration::from_nanos(self.until.load(Ordering::Acquire))
    }

    /// The lease was renewed, by a request that was sent at `sent` and answered by `now`; `existed`: Redis still
    /// had it.
    pub fn renewed(&self, sent: Duration, now: Duration, existed: bool) {
        let mut lease = self.lease();
        if !existed || lease.until <= now {
            (lease.since, lease.counts) = (now, false);
        }
        lease.until = (sent + self.ttl).saturating_sub(MARGIN);
        if lease.counts {
            self.extend(lease.until);
        }
    }

    /// A look that has begun at `begun` has found the node unmarked, and has raised its counter.
    pub fn looked(&self, begun: Duration) {
        let mut lease = self.lease();
        if lease.since <= begun {
            lease.counts = true;
            self.extend(lease.until);
        }
        drop(lease);
        self.glanced(begun);
    }

    /// A look that has begun at `begun` has found the node unmarked.
    pub fn glanced(&self, begun: Duration) {
        self.extend(begun + LOOK);
    }

    /// Other nodes took this one for dead: it may never act again.
    pub fn end(&self) {
        self.until.store(ENDED, Ordering::Release);
        // If the channel is full, another thread has found this out, too.
        let _ = self.marked.try_send(());
    }

    fn extend(&self, until: Duration) {
        let longer = |old| (old != ENDED).then(|| nanos(until).max(old));
        // An error says that it has ended.
        let _ = self.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, longer);
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        // Nothing can panic while it is held.
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine is not up for the 584 years after which this is wrong.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    enum Event {
        /// Sent, answered.
        Renewed(u64, u64),
        /// The same, but Redis had lost it.
        Replaced(u64, u64),
        Looked(u64),
        Glanced(u64),
        /// From here on, up to but without the second moment, it may act, and then it may not.
        May(u64, u64),
        MayNot(u64),
        End,
    }
    use Event::*;

    fn check(what: &str, events: &[Event]) {
        let (validity, is_marked) = Validity::new(TTL);
        for event in events {
            match *event {
                Renewed(sent, answered) => validity.renewed(ms(sent), ms(answered), true),
                Replaced(sent, answered) => validity.renewed(ms(sent), ms(answered), false),
                Looked(begun) => validity.looked(ms(begun)),
                Glanced(begun) => validity.glanced(ms(begun)),
                May(from, until) => {
                    assert!((from..until).all(|at| validity.may_act(ms(at))), "{what}: {from} to {until}");
                    assert!(!validity.may_act(ms(until)) && validity.until() == ms(until), "{what}: at {until}");
                }
                MayNot(at) => assert!(!validity.may_act(ms(at)), "{what}: at {at}"),
                End => {
                    validity.end();
                    assert_eq!(is_marked.try_recv(), Ok(()));
                }
            }
        }
    }

    #[test]
    fn a_node_acts_while_its_lease_is_valid_or_for_a_second_after_a_look() {
        check("neither", &[MayNot(1), MayNot(1000)]);
        check("a lease without a look", &[Renewed(1000, 1010), MayNot(1010)]);
        check("a lease and a look", &[Renewed(1000, 1010), Looked(1010), May(1010, 5750)]);
        check(
            "a look that has begun before the lease was there",
            &[Renewed(1000, 1010), Looked(1009), May(1010, 2009)],
        );
        check("counted from when it was sent", &[Renewed(1000, 4000), Looked(4000), May(4000, 5750)]);
        check("a glance", &[Glanced(1000), May(1000, 2000)]);
        check("a glance is no look", &[Renewed(1000, 1010), Glanced(1020), May(1020, 2020)]);
        check("a late glance shortens nothing", &[Renewed(1000, 1010), Looked(1010), Glanced(1020), May(1020, 5750)]);
    }

    #[test]
    fn renewals_without_a_gap_need_no_more_looks() {
        let begin = || vec![Renewed(1000, 1010), Looked(1020)];
        let with = |more: Vec<Event>| begin().into_iter().chain(more).collect::<Vec<_>>();
        check("in time", &with(vec![Renewed(1500, 1510), Renewed(5000, 5749), May(1000, 9750)]));
        check("after a gap", &with(vec![Renewed(5000, 6250), MayNot(6250), Looked(6250), May(6250, 9750)]));
        check("lost", &with(vec![Replaced(1500, 1510), Looked(1509), May(1510, 5750), Looked(1510), May(1511, 6250)]));
        check(
            "after a gap, and by glances meanwhile",
            &with(vec![
                Glanced(5000),
                May(5750, 6000),
                Glanced(5900),
                Renewed(6000, 6100),
                Renewed(6500, 6600),
                May(6600, 6900),
                Looked(6099),
                May(6900, 7099),
                Looked(6100),
                May(7100, 11250),
            ]),
        );
    }

    #[test]
    fn an_end_is_for_good() {
        let more = || [Renewed(1500, 1510), Looked(1520), Glanced(1530), MayNot(0), MayNot(1540)];
        check("at once", &std::iter::once(End).chain(more()).collect::<Vec<_>>());
        let late = [Renewed(1000, 1010), Looked(1020), End];
        check("later", &late.into_iter().chain(more()).collect::<Vec<_>>());
    }
}
