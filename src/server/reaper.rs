//! Thread `reaper`: marks other nodes that are dead, and frees their claims, on a connection of its own.
//!
//! [`Reaping`] decides what is done when. A round follows each renewal of the lease, so that a node that has no
//! lease marks no other.
//!
//! How long a dead node's users wait, of at most 10 s:
//!
//! | | s |
//! | --- | --- |
//! | the lease expires, after its last renewal | 5 |
//! | another node's next renewal finds it missing, and marks its node | 0.5 |
//! | looks that the dead node has relied on are over, and all others have confirmed | 2 |
//!
//! A line that breaks meanwhile costs a repetition, 2 s. A node that is deaf, and so does not confirm, is marked
//! itself within 7.5 s of the moment when it last heard itself.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::failure_log::FailureLog;
use super::lease::{PERIOD, Suspects};
use super::notice::Notice;
use super::reaping::{Reaping, Step, Suspect};
use super::validity::Validity;
use crate::bus::redis::RedisBus;
use crate::bus::{Bus, BusOp, Envelope};
use crate::clock::since_boot;
use crate::store::{Membership, NodeId, StoreError};

/// A death that has not been freed for this long is reported in the log.
const OVERDUE: Duration = Duration::from_secs(10);

pub(super) struct Reaper {
    pub own: NodeId,
    pub membership: Box<dyn Membership>,
    pub bus: Arc<RedisBus>,
    pub validity: Arc<Validity>,
    pub reaping: Reaping,
    pub suspects: Suspects,
    /// C++ nodes may set all users offline.
    pub mixed: bool,
}

impl Reaper {
    /// Reaps until [`Notice::Stop`].
    pub fn run(mut self, notices: &Receiver<Notice>) {
        let mut failures = FailureLog::default();
        // A step that has failed is not tried again before this.
        let mut not_before = Duration::ZERO;
        loop {
            let now = since_boot();
            let due = self.reaping.next().map_or(now + OVERDUE, |at| at.max(not_before));
            let result = match notices.recv_timeout(due.saturating_sub(now)) {
                Ok(Notice::Renewed { missing }) => self.round(&missing),
                Ok(Notice::Confirmed { dead, by }) => {
                    self.reaping.confirmed(dead, by);
                    Ok(())
                }
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Ok(Notice::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            };
            if result.is_ok() && since_boot() < not_before {
                continue;
            }
            let result = result.and_then(|()| self.take_steps());
            if let Err(StoreError::Marked) = result {
                return self.validity.end();
            }
            if result.is_err() {
                not_before = since_boot() + PERIOD;
            }
            failures.note(
                result.as_ref().err(),
                "the store answers again which nodes are alive",
                "the store does not answer which nodes are alive",
            );
            self.complain_of_what_is_overdue(&mut failures);
        }
    }

    /// Marks the nodes that were found without a lease, all of them even if one fails, and reads the membership.
    fn round(&mut self, missing: &[Suspect]) -> Result<(), StoreError> {
        if self.mixed {
            let users = self.membership.reassert()?;
            if users > 0 {
                log::info!("{users} users of this node had been set offline by another node, and are online again");
            }
        }
        let suspects = self.reaping.missing(missing).into_iter();
        let marked = suspects.map(|suspect| self.mark(suspect)).fold(Ok(()), Result::and);
        let entries = self.membership.nodes()?;
        self.reaping.read(&entries, since_boot());
        *self.suspects.lock().unwrap_or_else(PoisonError::into_inner) = self.reaping.suspects();
        marked
    }

    fn mark(&mut self, Suspect { node, looks }: Suspect) -> Result<(), StoreError> {
        if self.membership.mark(node, looks)? {
            log::warn!("node {node} is dead: its lease has expired");
            self.reaping.marked(node, since_boot());
        }
        Ok(())
    }

    fn take_steps(&mut self) -> Result<(), StoreError> {
        let steps = self.reaping.steps(since_boot()).into_iter();
        let results = steps.map(|step| match step {
            Step::Tell { dead, to } => {
                self.tell(dead, &to);
                Ok(())
            }
            Step::Free(node) => self.free(node),
        });
        // All of them, even if one fails.
        results.fold(Ok(()), Result::and)
    }

    fn free(&mut self, node: NodeId) -> Result<(), StoreError> {
        let users = self.membership.free(node)?;
        // Another node may have been faster.
        let level = if users > 0 { log::Level::Info } else { log::Level::Debug };
        log::log!(level, "{users} users of the dead node {node} are offline");
        self.reaping.freed(node);
        Ok(())
    }

    fn tell(&self, dead: NodeId, to: &[NodeId]) {
        let (own, others): (Vec<_>, Vec<_>) = to.iter().partition(|node| **node == self.own);
        if !own.is_empty() {
            self.bus.bury(dead, Some(self.own));
        }
        let mut ops = others.into_iter().map(|node| BusOp::ToNode(node, Envelope::Dead { node: dead })).collect();
        self.bus.send(&mut ops);
    }

    fn complain_of_what_is_overdue(&self, failures: &mut FailureLog) {
        let late: Vec<String> = (self.reaping.overdue(since_boot(), OVERDUE))
            .map(|(dead, open)| {
                let open: Vec<String> = open.iter().map(NodeId::to_string).collect();
                format!("{dead} (not confirmed by {})", open.join(", "))
            })
            .collect();
        let late = (!late.is_empty()).then(|| late.join(", "));
        failures.note(
            late.as_ref(),
            "no users of dead nodes are waiting any more",
            "users of dead nodes are still waiting to be freed",
        );
    }
}
