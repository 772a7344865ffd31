//! Reactor threads: what the queues of all reactors hold together, in atomics that they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What all reactors of a process hold for clients that have not read it yet. They share one budget, and each
/// publishes what it holds at most once a turn, when it has changed; so a message that is queued and written
/// in the same turn touches nothing that others use.
///
/// What a reactor reads of it is exact for itself. Of every other reactor it knows what that one held when its
/// last turn ended: it can be off by what the others have queued and written in the turns that they are in,
/// which is over in some milliseconds. A connection that moves counts nowhere until it has arrived. A reactor
/// that has nothing to do acts on what it knows within a second, since it sleeps no longer.
// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Budget {
    bytes: AtomicUsize,
    connections: AtomicUsize,
    /// Connections that have left one reactor and not arrived at another.
    moving: AtomicUsize,
}

impl Budget {
    /// An unused budget.
    pub fn new() -> Arc<Budget> {
        Arc::default()
    }
}

/// One reactor's part of what is held, which is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// What was published last.
    bytes: usize,
    connections: usize,
}

impl Share {
    pub fn new(budget: Arc<Budget>) -> Self {
        Share { budget, bytes: 0, connections: 0 }
    }

    /// Tells the others what this reactor holds now.
    pub fn publish(&mut self, bytes: usize, connections: usize) {
        let replace = |all: &AtomicUsize, old: &mut usize, new: usize| {
            if *old != new {
                // It wraps around for what has become less.
                all.fetch_add(new.wrapping_sub(*old), Relaxed);
                *old = new;
            }
        };
        replace(&self.budget.bytes, &mut self.bytes, bytes);
        replace(&self.budget.connections, &mut self.connections, connections);
    }

    /// What all reactors hold, when this one holds `own`.
    pub fn all_bytes(&self, own: usize) -> usize {
        self.budget.bytes.load(Relaxed).wrapping_sub(self.bytes).wrapping_add(own)
    }

    /// The connections of all reactors, when this one has `own`.
    pub fn all_connections(&self, own: usize) -> usize {
        self.budget.connections.load(Relaxed).wrapping_sub(self.connections).wrapping_add(own)
    }

    /// A connection leaves for another reactor; it has arrived when the result is dropped.
    pub fn departure(&self) -> InFlight {
        self.budget.moving.fetch_add(1, Relaxed);
        InFlight(Arc::clone(&self.budget))
    }

    /// Whether some connection has left a reactor and not arrived.
    pub fn is_one_moving(&self) -> bool {
        self.budget.moving.load(Relaxed) > 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.publish(0, 0);
    }
}

/// Counts one connection as moving.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Budget>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.moving.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_exact_for_itself_and_knows_what_others_have_published() {
        let budget = Budget::new();
        let (mut one, mut two) = (Share::new(Arc::clone(&budget)), Share::new(Arc::clone(&budget)));
        one.publish(1000, 3);
        assert_eq!((one.all_bytes(1500), two.all_bytes(0)), (1500, 1000));
        two.publish(10, 1);
        assert_eq!((one.all_bytes(1000), one.all_connections(2)), (1010, 3));
        one.publish(0, 2);
        assert_eq!((two.all_bytes(10), two.all_connections(1)), (10, 3));
        drop(one);
        assert_eq!((two.all_bytes(10), two.all_connections(1)), (10, 1));
    }

    #[test]
    fn a_connection_is_moving_until_it_has_arrived_or_is_dropped() {
        let share = Share::new(Budget::new());
        let (first, second) = (share.departure(), share.departure());
        drop(first);
        assert!(share.is_one_moving());
        drop(second);
        assert!(!share.is_one_moving());
    }
}
