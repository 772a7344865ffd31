//! The store: accounts, friends, groups and offline messages.
//!
//! [`Store`] is the database; each worker holds one [`Connection`] of it, for as long as it runs.
//! Writes are data ([`Write`]) and come in batches, because a commit costs more than everything
//! in it: a worker hands over all that its lane has queued, and SQLite's one writer thread commits
//! together what all workers have handed over. Within a batch order holds; across batches it is
//! the caller's business (one lane per recipient or account).

pub mod mysql;
mod names;
mod quota;
pub mod sqlite;
mod timed;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use quota::{Quota, Quotas};

pub use crate::wire::reply::{Friend, Group, Member};
pub use timed::{StoreCounts, StoreOp, Timed};

/// `User.id`: 1 to 2^31-1, as MySQL's INT has it.
pub type UserId = u32;
/// `AllGroup.id`.
pub type GroupId = u32;
/// The key of one stored offline message. Rows of one recipient are ordered by it; it is never
/// used again.
pub type RowId = u64;

/// One life of one node: drawn at random when its process starts, 1 to 2^63-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A session's hold on its account: which node has it, and which of that node's claims it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    pub node: NodeId,
    /// Never used twice by one node.
    pub epoch: u64,
}

/// Who has a user that is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    Node(Claim),
    /// A C++ node, which writes `state` and no more.
    Foreign,
}

/// Offline messages for one user: all are stored, in this order, or none, but for a full store and a
/// message that the database refuses. Without messages it is a question: who has the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    pub to: UserId,
    pub messages: Vec<Arc<[u8]>>,
    /// Somebody else may have the user, but only this one.
    pub past: Option<Holder>,
}

/// What became of a [`Parcel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The first message's row, or 0 if there is no message. Nobody had the user at that moment, or this
    /// node, by whichever claim.
    Stored(RowId),
    /// The same, but `past` had the user, and does not know of it.
    Past(RowId),
    /// There is no such account.
    NoUser,
    /// Nothing is stored: this one has the user.
    Elsewhere(Holder),
    /// There was room for so many of them, from the first. The others are not stored. If `past` was given, it
    /// may have the user, and not know of those that are.
    Full(usize),
    /// So many of them are stored, from the first, as above; the next one the database refuses, and would
    /// refuse again. What stands behind that was not tried.
    Refused(usize),
}

/// The store could not do it. Nothing is known of whether a write was done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or read-only, the database is away: it may work again later.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// The files of the database are not those any more that were opened. Nothing is read or written until
    /// a restart; the store has said so in the log, once.
    #[error("storage is gone: {0}")]
    Gone(Arc<str>),
    /// There was no answer to the COMMIT: it may be done, or be done yet. [`Connection::write_again`] finds out.
    #[error("it is not known whether it was stored: {why}")]
    InDoubt { key: u64, why: Arc<str> },
    /// Other nodes took this one for dead, and have marked it so: nothing was done, and nothing will be
    /// done for it any more.
    #[error("this node was taken for dead")]
    Marked,
}

/// One write. What it can come to is the [`Outcome`] named beside it.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new account, offline: `Id`, or `Already` if the name is taken, as [`crate::wire::name`] has it; that
    /// costs no id.
    Register { name: String, password: String },
    /// Replaces the stored password: `Done`.
    SetPassword { user: UserId, password: String },
    /// Takes the account for this node, if nobody has it, or `past` has, which may be another claim of
    /// this node: `Done`, `InUse`, or `NoUser`. To take it twice by the same `epoch` is to take it once. C++
    /// nodes, if there are any, do not see it yet.
    Claim { user: UserId, epoch: u64, past: Option<Holder> },
    /// Has C++ nodes see a user online whom this node has by this `epoch`: `Done`.
    Show { user: UserId, epoch: u64 },
    /// Gives the account back, if this node has it by this `epoch`: `Done`.
    Release { user: UserId, epoch: u64 },
    /// One row, user to friend: `Done`, `Already`, `Full`, or `NoUser` if there is no such friend.
    AddFriend { user: UserId, friend: UserId },
    /// A group with its creator as its first member: `Id`; `Full`, or `Already` if the name is taken, which
    /// cost no id.
    CreateGroup { creator: UserId, name: String, description: String },
    /// A "normal" member: `Joined`, `Full`, or `NoGroup`.
    JoinGroup { user: UserId, group: GroupId },
    /// Offline messages: `Kept`. Who has a recipient is looked at in the same transaction, so that
    /// a claim comes before or after it.
    Keep(Vec<Parcel>),
    /// Removes exactly these of the user's offline messages: `Done`; or none of them, and `Lost`, if this
    /// node does not have the user by this `epoch`. Rows that are gone are no error.
    Remove { user: UserId, epoch: u64, rows: Vec<RowId> },
}

impl Write {
    /// How many offline messages it bears.
    pub fn messages(&self) -> u64 {
        match self {
            Write::Keep(parcels) => parcels.iter().map(|parcel| parcel.messages.len() as u64).sum(),
            _ => 0,
        }
    }
}

/// What a [`Write`] came to, once it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Id(u32),
    Already,
    InUse(Holder),
    Lost,
    NoUser,
    NoGroup,
    /// A member from now on, or `already` one before. `nodes`: all others that are not marked, which may
    /// have read the members before this.
    Joined {
        already: bool,
        nodes: Vec<NodeId>,
    },
    /// Nothing was done: there is as much as may be.
    Full(Quota),
    /// Nothing was done, because the database refuses this write, and would do so again: the ids are used
    /// up, or an administrator's trigger says no. Why, for the log.
    Refused(String),
    /// In the order of the parcels.
    Kept(Vec<Kept>),
}

impl Outcome {
    /// How many writes, or parcels, the database has refused.
    fn refusals(&self) -> u64 {
        match self {
            Outcome::Refused(_) => 1,
            Outcome::Kept(kept) => kept.iter().filter(|kept| matches!(kept, Kept::Refused(_))).count() as u64,
            _ => 0,
        }
    }
}

/// An account, as a login needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    /// A PHC string; plain text in rows that a C++ server has written.
    pub password: String,
}

/// All that the reply to a login tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    pub friends: Vec<Friend>,
    pub groups: Vec<Group>,
    pub page: Page,
}

/// Some of a user's offline messages, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub messages: Vec<(RowId, Box<[u8]>)>,
    /// Whether there were more behind these.
    pub more: bool,
}

/// A database. Shared by all workers.
pub trait Store: Send + Sync {
    /// A connection for one worker. It connects when first used, and again after a failure.
    fn connection(&self) -> Box<dyn Connection>;

    /// Sets this node's users offline, at its end.
    fn release_all(&self) -> Result<(), StoreError>;

    /// Ends: what is queued is done, and the store is left as whoever comes next should find it. Every
    /// connection is refused from now on. May wait for a read that is in the middle.
    ///
    /// # Errors
    /// What is not as it should be.
    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The roll of who has which account, where several nodes share the store.
    fn roll(&self) -> Option<Box<dyn Roll>>;
}

/// What the store says of a node that shares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub node: NodeId,
    /// How often it has looked since it was enlisted; see [`Roll::look`].
    pub looks: u64,
    /// It was taken for dead.
    pub marked: bool,
    /// Some accounts are claimed by it.
    pub has_claims: bool,
}

/// What nodes that share a store see of each other. Every call blocks.
///
/// Each node has two rows: one with its mark, which every transaction of the node locks for sharing and
/// finds unmarked, and one with a counter, which only looks raise. So a look waits for nobody, and the mark
/// for those of the node's transactions that are not over yet. A node whose rows are gone is marked.
pub trait Roll: Send {
    /// Writes this node's rows. It comes before everything else that the node does.
    fn enlist(&mut self) -> Result<(), StoreError>;

    /// A look behind a renewal of the lease: raises this node's counter. Returns the nodes that are marked.
    ///
    /// # Errors
    /// [`StoreError::Marked`]: so is this one.
    fn look(&mut self) -> Result<Vec<NodeId>, StoreError>;

    /// A look without one: raises nothing, and tells only whether this node is marked.
    ///
    /// # Errors
    /// [`StoreError::Marked`]: it is.
    fn glance(&mut self) -> Result<(), StoreError>;

    /// All nodes that are enlisted, and those that have claims, but this one.
    fn nodes(&mut self) -> Result<Vec<Entry>, StoreError>;

    /// Marks a node, unless it has looked since its counter stood at `looks`: then `false`. Waits for its
    /// open transactions. No transaction of that node is committed afterwards.
    fn mark(&mut self, node: NodeId, looks: u64) -> Result<bool, StoreError>;

    /// Sets the users of a marked node offline, and strikes it off; how many there were. A node that is not
    /// marked keeps them.
    fn free(&mut self, node: NodeId) -> Result<u64, StoreError>;

    /// Sets this node's users online again where a C++ node's end has set everybody offline; how
    /// many there were.
    fn reassert(&mut self) -> Result<u64, StoreError>;
}

/// One worker's connection. Every call blocks.
pub trait Connection: Send {
    /// Does the writes, in order, in one transaction, and returns one outcome for each when they
    /// are on disk. If the database refuses one of them, they are done one by one, still in order, so
    /// that it is the only one that is not done: [`Outcome::Refused`], or [`Kept::Refused`].
    ///
    /// # Errors
    /// The store is unavailable as a whole: none of them is known to be done.
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError>;

    /// Finds out what became of offline messages of which that is not known, and stores them if they are not. `key`
    /// is that of [`StoreError::InDoubt`], and more by one for each message that stood before them in that batch. A
    /// store that always knows is never asked.
    fn write_again(&mut self, write: &Write, _key: u64) -> Result<Outcome, StoreError> {
        Ok(self.write(std::slice::from_ref(write))?.pop().unwrap_or(Outcome::Done))
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError>;

    /// In the order of their ids.
    fn friends(&mut self, user: UserId) -> Result<Vec<Friend>, StoreError>;

    /// The groups `user` is in, in the order of their ids, each with its first
    /// [`crate::wire::reply::LISTED_MEMBERS`] members by id (the user among them) and a count.
    fn groups(&mut self, user: UserId) -> Result<Vec<Group>, StoreError>;

    /// All members in ascending order; `None` if there is no such group.
    fn members(&mut self, group: GroupId) -> Result<Option<Vec<UserId>>, StoreError>;

    /// The user's oldest offline messages: at least one, if there is any, then as many as fit
    /// into `max_bytes` in sum.
    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError>;

    /// [`Connection::friends`], [`Connection::groups`] and [`Connection::page`] in one call.
    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        let (friends, groups) = (self.friends(user)?, self.groups(user)?);
        Ok(Loaded { friends, groups, page: self.page(user, max_bytes)? })
    }
}
