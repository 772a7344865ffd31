//! What was asked of other nodes and of the bus, and what other nodes have asked: for how long it is open.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use super::jobs::Login;
use super::receipts::ReplyTo;
use crate::store::{GroupId, NodeId, UserId};

/// What was asked of other nodes, or of the bus.
pub(super) enum Question {
    /// Does a C++ node that went without a word still have this account?
    Listeners(Login),
    /// Has this launch reached a C++ node?
    Published { user: UserId, number: u64 },
    /// Do these nodes, which have not confirmed it yet, know that this user has joined this group? `whose`: where the
    /// reply goes, and whether the user was a member before.
    Join { group: GroupId, user: UserId, nodes: Vec<NodeId>, whose: Option<(ReplyTo, bool)>, begun: Instant },
}

/// What was asked and is not answered.
#[derive(Default)]
pub(super) struct Questions {
    /// What no route asks, by ticket.
    pub open: BTreeMap<u64, Question>,
    pub last_ticket: u64,
    /// When answers have had their time.
    pub patience: BTreeSet<(Instant, Waiter)>,
    /// When the timer for the first of them fires; one that was set for later before is of no use any more.
    pub timer_at: Option<Instant>,
}

/// Nodes that are dead, by number, while something of them is open.
#[derive(Default)]
pub(super) struct Burials {
    pub open: HashMap<u64, Burial>,
    pub last: u64,
}

/// What waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Waiter {
    /// The route to a user.
    Route(UserId),
    /// A question, by its number.
    Question(u64),
}

/// A node that is dead, while something of it is open here.
pub(super) struct Burial {
    pub node: NodeId,
    /// The node that waits for it.
    pub asker: Option<NodeId>,
    /// Sessions with something from before.
    pub left: usize,
}
