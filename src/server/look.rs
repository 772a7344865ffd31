//! Thread `look`: checks in the store, on a connection of its own, whether others have marked this node as dead.
//!
//! After each renewal of the lease a look raises this node's counter: a node that has found the lease missing
//! before can no longer mark this one. The look also returns the other nodes that are marked. When the lease is about
//! to expire and is not renewed, glances take the place of looks, one at a time. They raise nothing: otherwise a node
//! that is cut off from Redis could never be marked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::failure_log::FailureLog;
use super::validity::Validity;
use crate::bus::redis::RedisBus;
use crate::clock::since_boot;
use crate::store::{Membership, NodeId, StoreError};

/// A glance begins when the node may act for no longer than this.
const AHEAD: Duration = Duration::from_millis(700);
/// The shortest time from the beginning of one glance to that of the next.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Lookout {
    pub membership: Box<dyn Membership>,
    pub bus: Arc<RedisBus>,
    pub validity: Arc<Validity>,
    /// Other nodes that were marked at the last look.
    pub buried: BTreeSet<NodeId>,
}

/// When a glance is due, unless the lease is renewed before: computed from the time until which the node may act, and
/// the beginning of the last look or glance.
fn glance_at(may_act_until: Duration, begun: Duration) -> Duration {
    may_act_until.saturating_sub(AHEAD).max(begun + PAUSE)
}

impl Lookout {
    /// Looks after each renewal that `renewals` reports, until its other end is dropped.
    pub fn run(mut self, renewals: &Receiver<()>) {
        let mut failures = FailureLog::default();
        let mut begun = since_boot();
        loop {
            let pause = glance_at(self.validity.until(), begun).saturating_sub(since_boot());
            let renewed = match renewals.recv_timeout(pause) {
                Err(RecvTimeoutError::Disconnected) => return,
                renewal => renewal.is_ok(),
            };
            begun = since_boot();
            let result = if renewed { self.look(begun) } else { self.glance(begun) };
            if let Err(StoreError::Marked) = result {
                return self.validity.end();
            }
            failures.note(
                result.as_ref().err(),
                "the store confirms again that this node is not marked as dead",
                "the store does not answer whether this node is marked as dead",
            );
        }
    }

    fn glance(&mut self, begun: Duration) -> Result<(), StoreError> {
        self.membership.glance()?;
        self.validity.glanced(begun);
        Ok(())
    }

    /// One look, which began at `begun`.
    ///
    /// # Errors
    /// [`StoreError::Marked`]: this node is marked as dead.
    pub fn look(&mut self, begun: Duration) -> Result<(), StoreError> {
        let marked: BTreeSet<NodeId> = self.membership.look()?.into_iter().collect();
        self.validity.looked(begun);
        for node in marked.difference(&self.buried) {
            self.bus.bury(*node, None);
        }
        self.buried = marked;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn glances_begin_before_the_node_may_not_act_and_not_faster_than_one_after_the_other() {
        let ms = Duration::from_millis;
        assert_eq!(glance_at(ms(5750), ms(1000)), ms(5050), "a lease");
        assert_eq!(glance_at(ms(6050), ms(5050)), ms(5350), "a glance");
        assert_eq!(glance_at(ms(6050), ms(6000)), ms(6250), "one that has failed");
        assert_eq!(glance_at(ms(0), ms(0)), ms(250), "nothing yet");
    }
}
