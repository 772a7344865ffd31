//! What shards say to each other, and what they note on their own messages and timers.

use std::sync::Arc;

use super::jobs::{Done, Stored};
use super::receipts::{Receipt, ReplyTo, SessionId};
use crate::bus::{BusEvent, Delivery};
use crate::reactor::{ConnId, Recall};
use crate::store::{GroupId, NodeId, Outcome, RowId, StoreError, UserId};
use crate::wire::Errno;
use crate::wire::dialect::Dialect;
use crate::wire::reply::FanOut;

/// What comes from another shard, from a worker, or from the bus. Letters between two shards arrive in the order in which
/// they were sent; all the rules on order rest on that.
#[derive(Debug)]
pub enum Letter {
    /// A chat, to its recipient's home.
    Chat { to: UserId, body: Arc<[u8]>, receipt: Receipt },
    /// A group message, to the group's home.
    GroupChat(GroupMessage),
    /// The same, to the home of some of the members.
    Fan { to: Arc<[UserId]>, message: GroupMessage },
    /// A user's join is on its way to the store; to the group's home, where what the user sends to the group waits.
    Joining { group: GroupId, user: UserId },
    /// It is committed, or it is not.
    JoinStored { group: GroupId, user: UserId, to: ReplyTo, outcome: Result<Outcome, StoreError> },
    /// It counts on all nodes, or it is not known to; to the user's home.
    Joined { to: ReplyTo, outcome: Result<Outcome, StoreError> },
    /// What became of a message, to its sender's home. `open`: its sender is a debtor.
    Settled { receipt: Receipt, delivery: Delivery, open: bool },
    /// A message of which its sender need not hear takes long: it is owed from now on.
    Owed { conn: ConnId, user: UserId },
    /// How many recipients a group message has, or why it has none, to its sender's home.
    FanSize { key: u64, size: Result<u32, Errno> },
    /// What became of it for some of them; `open`: the number of those by which its sender is a debtor.
    FanPart { key: u64, part: FanOut, open: u32 },
    /// A user is a debtor by this number of messages less.
    Freed { user: UserId, debts: u32 },
    /// The process is to end, and nothing follows that a client of that shard has sent.
    Stopping,
    /// News from the bus.
    Bus(BusEvent),
    /// A job is done.
    Done(Box<Done>),
}

/// A group message on its way to the members.
#[derive(Debug, Clone)]
pub struct GroupMessage {
    pub(super) group: GroupId,
    pub(super) sender: UserId,
    pub(super) body: Arc<[u8]>,
    pub(super) receipt: Receipt,
}

/// What a shard notes on a message in a connection's queue. The session that it is for is named by its epoch.
#[derive(Debug, Clone)]
pub enum Tag {
    /// A chat: unless it gets out whole, it is stored.
    Chat { session: SessionId, receipt: Receipt },
    /// The same, in the dialect of its recipient.
    Translated(Box<Translated>),
    /// An offline message: it is removed when it is written.
    Row { session: SessionId, row: RowId },
    /// The login reply, with some.
    Reply { session: SessionId, rows: Arc<[RowId]> },
}

/// A chat that was translated: it is stored in canon.
#[derive(Debug, Clone)]
pub struct Translated {
    pub(super) session: SessionId,
    pub(super) receipt: Receipt,
    pub(super) canon: Arc<[u8]>,
}

/// A chat and what one dialect makes of it: members of a group that speak the same share it.
#[derive(Debug)]
pub(super) struct Translation {
    pub canon: Arc<[u8]>,
    pub dialect: Arc<Dialect>,
    pub theirs: Arc<[u8]>,
}

impl Tag {
    /// Where it is reported what became of the chat that this is on, if it is one.
    pub(super) fn receipt(&self) -> Option<Receipt> {
        match self {
            Tag::Chat { receipt, .. } => Some(*receipt),
            Tag::Translated(chat) => Some(chat.receipt),
            Tag::Row { .. } | Tag::Reply { .. } => None,
        }
    }

    /// Whether it is on a chat, which is stored unless it gets out whole.
    pub(super) fn is_chat(&self) -> bool {
        self.receipt().is_some()
    }

    /// Whether a message with this tag is taken back: for a slow reader, what can be stored; for a session that
    /// ends, all of its own but the reply to its LOGIN.
    pub fn is_recallable(&self, how: Recall) -> bool {
        match how {
            Recall::Reroutable => self.is_chat(),
            Recall::All => !matches!(self, Tag::Reply { .. }),
        }
    }
}

/// What a timer is for. The connection or session that it names may be gone when it fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timer {
    /// A connection may not stay longer without a login.
    Login(ConnId),
    /// A login or a registration is on its way for long.
    Attempt { conn: ConnId, number: u64 },
    /// It may not stay silent longer.
    Idle(ConnId),
    /// The head of its HTTP request must be whole.
    Head(ConnId),
    /// A client that was too fast is read again.
    Rate(ConnId),
    /// A session's backlog waits for something.
    Backlog(SessionId),
    /// A message that is half written when its session ends has had its time.
    Half(SessionId),
    /// It is not known whether offline messages were stored: the store is asked under this key.
    Doubt { whose: Stored, key: u64 },
    /// The store failed to take a claim back.
    Release(SessionId),
    /// Nodes, C++ nodes and the bus have had their time to answer.
    Patience,
    /// A node that was marked does nothing any more.
    Dead(NodeId),
}
