//! What shards say to each other, and what they note on their own messages and timers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::jobs::Done;
use crate::bus::{BusEvent, Ticket};
use crate::reactor::ConnId;
use crate::store::{GroupId, NodeId, RowId, UserId};
use crate::wire::Errno;
use crate::wire::reply::FanOut;

/// From shard to shard (or from a worker). Letters between two shards arrive in the order in
/// which they were sent; all the rules on order rest on that.
#[derive(Debug)]
pub enum Letter {
    /// A chat for a user who lives on the receiving shard.
    Chat {
        to: UserId,
        body: Arc<[u8]>,
        receipt: Receipt,
    },
    /// A group chat for some users who live there; `receipt` is for all of them together.
    GroupChat {
        to: Vec<UserId>,
        body: Arc<[u8]>,
        receipt: Receipt,
    },
    /// What became of a message that a connection of the receiving shard has sent.
    Settled {
        receipt: Receipt,
        fate: Fate,
    },
    /// The same for a part of a fan-out.
    FanSettled {
        key: u64,
        part: FanOut,
    },
    /// `user` lives on the sending shard from now on; answered with `JoinSeen`.
    Join {
        user: UserId,
        conn: ConnId,
        epoch: u64,
    },
    /// The sending shard has submitted all it had for the user's store, and sends letters now.
    JoinSeen {
        user: UserId,
        conn: ConnId,
        epoch: u64,
    },
    /// The session is ending; answered with `LeaveSeen`.
    Leave {
        user: UserId,
        conn: ConnId,
    },
    /// The sending shard holds messages for the user back from now on: no letter follows.
    LeaveSeen {
        user: UserId,
        conn: ConnId,
    },
    /// The session has ended, and all that reached it is in the store or on its way there.
    Gone {
        user: UserId,
        conn: ConnId,
    },
    /// Its claim is being released: logins that have waited for that go on.
    Free {
        user: UserId,
    },
    /// A user has joined a group; answered with `MemberSeen`.
    Member {
        group: GroupId,
        user: UserId,
        shard: usize,
        key: u64,
    },
    MemberSeen {
        key: u64,
    },
    /// Something may stand in the store that must reach the user before what comes next.
    Drain {
        user: UserId,
    },
    /// The store has a claim of the receiving shard that it may know nothing of.
    Disown {
        user: UserId,
        epoch: u64,
    },
    /// The store does not know this session's claim any more.
    Stale {
        user: UserId,
        conn: ConnId,
    },
    /// From the bus.
    Bus(BusEvent),
    /// Another node is dead, or seems so. Its claims are taken from it after this.
    NodeDied,
    /// This node's claims, as the store had them at some moment after `as_of`.
    Claims {
        as_of: Instant,
        claims: Arc<HashMap<UserId, u64>>,
    },
    /// A job is done.
    Done(Box<Done>),
}

/// What became of a message to one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The kernel took its last byte for the recipient's connection.
    Delivered,
    /// It is committed to the store.
    Stored,
    /// It was not served; the sender is told.
    Failed(Errno),
}

impl From<Fate> for FanOut {
    fn from(fate: Fate) -> FanOut {
        let none = FanOut::default();
        match fate {
            Fate::Delivered => FanOut { delivered: 1, ..none },
            Fate::Stored => FanOut { stored: 1, ..none },
            Fate::Failed(_) => FanOut { failed: 1, ..none },
        }
    }
}

/// Who is to be told of a message's [`Fate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipt {
    /// The user who has sent it on this connection. Where it is `owed`, the sender's shard counts
    /// it as unsettled and must hear of it in any case; otherwise of a failure only.
    Sender { conn: ConnId, user: UserId, seq: Option<i64>, owed: bool },
    /// A fan-out that a shard adds up.
    Fan { shard: u16, key: u64 },
    /// Another node.
    Node(NodeId, Ticket),
    /// Nobody: a C++ node has sent it.
    Nobody,
}

/// A message that waits somewhere, and who is to be told what becomes of it.
pub(super) type Waiting = (Arc<[u8]>, Receipt);

/// What a shard notes on a message in a connection's queue.
#[derive(Debug, Clone)]
pub enum Tag {
    /// A chat: unless it gets out whole, it is stored.
    Chat { to: UserId, receipt: Receipt },
    /// The last of some offline messages: these rows may now be removed.
    Offline { user: UserId, rows: Arc<[RowId]> },
    /// All that was queued for a user who has logged out is written.
    Barrier { user: UserId },
}

/// Offline messages that were written to their recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub(super) conn: ConnId,
    pub(super) user: UserId,
    pub(super) rows: Arc<[RowId]>,
}

/// What a timer is for. Whoever it names may be gone when it fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timer {
    Login(ConnId),
    /// A login or a registration is on its way for long.
    Attempt {
        conn: ConnId,
        number: u64,
    },
    Idle(ConnId),
    /// A client that was too fast is read again.
    Rate(ConnId),
    /// The store would not read a session's next offline messages.
    Drain(ConnId),
    /// The store would not remove offline messages that were written.
    Remove(Box<Removal>),
    /// The store failed to take a claim back.
    Release {
        user: UserId,
        epoch: u64,
    },
    /// Other nodes have had their time to answer.
    Questions,
    /// The bus has been away for some time, or was.
    Debts,
}
