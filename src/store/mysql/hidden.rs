//! Claims of this node that C++ servers do not see yet.
//!
//! A C++ server sets all users offline at its end, and [`Membership::reassert`](crate::store::Membership::reassert) sets this
//! node's users online again. The table does not distinguish a claim that was never shown from one that was, and a C++
//! server would publish for a user whose channel has no listener. So this node remembers which claims are hidden.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::store::{Holder, NodeId, Outcome, UserId, Write};

/// Claims that were made, or perhaps were, until they are shown, replaced or given back.
#[derive(Debug, Default)]
pub(super) struct Hidden(Mutex<HashSet<(UserId, u64)>>);

impl Hidden {
    fn claims(&self) -> MutexGuard<'_, HashSet<(UserId, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before claims are made: of one whose answer is lost it is not known whether it was.
    pub fn begin(&self, batch: &[Write]) {
        for write in batch {
            if let Write::Claim { user, epoch, .. } = write {
                self.claims().insert((*user, *epoch));
            }
        }
    }

    /// When it is known what they came to.
    pub fn end(&self, node: NodeId, batch: &[Write], outcomes: &[Outcome]) {
        for (write, outcome) in batch.iter().zip(outcomes) {
            let over = match (write, outcome) {
                (Write::Claim { user, epoch, past: Some(Holder::Node(past)) }, Outcome::Done)
                    if past.node == node && past.epoch != *epoch =>
                {
                    (*user, past.epoch)
                }
                (Write::Claim { .. }, Outcome::Done) => continue,
                (Write::Claim { user, epoch, .. }, _) => (*user, *epoch),
                (Write::Show { user, epoch } | Write::Release { user, epoch }, Outcome::Done) => (*user, *epoch),
                _ => continue,
            };
            self.claims().remove(&over);
        }
    }

    pub fn is_hidden(&self, user: UserId, epoch: u64) -> bool {
        self.claims().contains(&(user, epoch))
    }
}
