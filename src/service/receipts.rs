//! Names of sessions and of replies, messages that wait, and where what becomes of them is reported.

use std::sync::Arc;

use crate::bus::Delivery;
use crate::reactor::ConnId;
use crate::store::{NodeId, UserId};
use crate::wire::reply::FanOut;

/// The most that one job stores for one user.
pub(super) const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// A session's name. No other session has its epoch, so whatever bears it and comes late reaches no other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionId {
    pub user: UserId,
    /// The epoch of its claim.
    pub epoch: u64,
}

/// Where the reply to a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyTo {
    pub conn: ConnId,
    pub seq: Option<i64>,
}

/// Where it is reported what became of a message for one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The user that has sent it on this connection. Where it is `owed`, the sender's home counts it as
    /// unsettled and must hear of it in any case; otherwise of a failure only.
    Sender { user: UserId, conn: ConnId, seq: Option<i64>, owed: bool },
    /// A sum of a group message by this user, kept by this shard: of the whole message by the sender's home, of
    /// its recipients on one shard by that one.
    Sum { user: UserId, shard: u16, key: u64 },
    /// Another node, by the number of its launch to this user.
    Node { node: NodeId, to: UserId, number: u64 },
    /// Nowhere: a C++ node has sent it.
    Nobody,
}

impl Receipt {
    /// The user of this node who has sent it.
    pub(super) fn sender(&self) -> Option<UserId> {
        match self {
            Receipt::Sender { user, .. } | Receipt::Sum { user, .. } => Some(*user),
            Receipt::Node { .. } | Receipt::Nobody => None,
        }
    }

    /// The other node that has sent it.
    pub(super) fn node(&self) -> Option<NodeId> {
        match self {
            Receipt::Node { node, .. } => Some(*node),
            _ => None,
        }
    }
}

/// A message that waits somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undelivered {
    pub body: Arc<[u8]>,
    pub receipt: Receipt,
}

/// A chat's bytes: still in the read buffer, or on their way.
pub(super) enum Text<'a> {
    Borrowed(&'a [u8]),
    Shared(Arc<[u8]>),
}

impl Text<'_> {
    pub fn into_shared(self) -> Arc<[u8]> {
        match self {
            Text::Borrowed(bytes) => bytes.into(),
            Text::Shared(bytes) => bytes,
        }
    }
}

/// What one job stores for one user, as it is put together: up to 256 messages and 1 MiB, or one larger message.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    messages: usize,
    bytes: usize,
}

impl Bounds {
    /// Counts one more message, and returns whether there is still room for it.
    pub fn admit(&mut self, message: &Undelivered) -> bool {
        self.messages += 1;
        self.bytes += message.body.len();
        self.messages == 1 || (self.messages <= BATCH_MESSAGES && self.bytes <= BATCH_BYTES)
    }
}

impl From<Delivery> for FanOut {
    fn from(delivery: Delivery) -> FanOut {
        let none = FanOut::default();
        match delivery {
            Delivery::Delivered => FanOut { delivered: 1, ..none },
            Delivery::Stored => FanOut { stored: 1, ..none },
            Delivery::Failed(_) | Delivery::Gone => FanOut { failed: 1, ..none },
        }
    }
}
