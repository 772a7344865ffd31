//! Looks into the store whether others have marked this node as dead, in a thread and on a connection of its own.
//!
//! Behind each renewal of the lease a look raises this node's counter: whoever has found the lease missing before
//! cannot mark it any more. It tells as well which other nodes are marked. Where the lease is about to run out and is
//! not renewed, glances take its place, one at a time, which raise nothing: or a node that is cut off from
//! Redis could never be marked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::Complaints;
use super::validity::Validity;
use crate::bus::redis::RedisBus;
use crate::clock::since_boot;
use crate::store::{NodeId, Roll, StoreError};

/// A glance begins when the node may act for no longer than this.
const AHEAD: Duration = Duration::from_millis(700);
/// From the beginning of a glance to that of the next one, at least.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Lookout {
    pub roll: Box<dyn Roll>,
    pub bus: Arc<RedisBus>,
    pub validity: Arc<Validity>,
    /// Told when this node is marked.
    pub marked: Sender<()>,
    /// Others that were marked at the last look.
    pub buried: BTreeSet<NodeId>,
}

/// When a glance is due, if the lease is not renewed until then: by the time until which the node may act, and when
/// the last look or glance has begun.
fn glance_at(may_act_until: Duration, begun: Duration) -> Duration {
    may_act_until.saturating_sub(AHEAD).max(begun + PAUSE)
}

impl Lookout {
    /// Looks behind each renewal that `renewals` tells of, until its other end is gone.
    pub fn run(mut self, renewals: &Receiver<()>) {
        let mut complaints = Complaints::default();
        let mut begun = since_boot();
        loop {
            let pause = glance_at(self.validity.until(), begun).saturating_sub(since_boot());
            let renewed = match renewals.recv_timeout(pause) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            begun = since_boot();
            let result = if renewed { self.look(begun) } else { self.glance(begun) };
            if let Err(StoreError::Marked) = result {
                self.validity.end();
                // Full: a shard has found it out as well.
                let _ = self.marked.try_send(());
                return;
            }
            complaints.note(
                result.as_ref().err(),
                "the store tells again whether this node lives",
                "the store does not tell whether this node lives",
            );
        }
    }

    fn glance(&mut self, begun: Duration) -> Result<(), StoreError> {
        self.roll.glance()?;
        self.validity.glanced(begun);
        Ok(())
    }

    fn look(&mut self, begun: Duration) -> Result<(), StoreError> {
        let marked: BTreeSet<NodeId> = self.roll.look()?.into_iter().collect();
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
