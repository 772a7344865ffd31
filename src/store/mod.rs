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

/// A session's claim on its account: the node that has it, and which of that node's claims it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    pub node: NodeId,
    /// Never used twice by one node.
    pub epoch: u64,
}

/// The holder of a user that is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    Node(Claim),
    /// A C++ node, which writes `state` and no more.
    Foreign,
}

/// Offline messages for one user. Either all are stored, in this order, or none, except if the store is full or the
/// database refuses one of them. Without messages it is a question: which holder has the user?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    pub to: UserId,
    pub messages: Vec<Arc<[u8]>>,
    /// A holder that may have the user; no other may.
    pub past: Option<Holder>,
}

/// What became of a [`Parcel`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The first message's row, or 0 if there is no message. At that moment, no holder had the user, or only this
    /// node, by any claim.
    Stored(RowId),
    /// The same, but `past` had the user, and does not know of it.
    Past(RowId),
    /// There is no such account.
    NoUser,
    /// Nothing is stored: this one has the user.
    Elsewhere(Holder),
    /// This number of messages, from the first, are stored; there was no room for the others. If `past` was given, it
    /// may have the user, and not know of those that are stored.
    Full(usize),
    /// This number of messages, from the first, are stored, as above. The database refuses the next one, and would
    /// refuse it again; those after that were not tried.
    Refused(usize),
}

impl Parcel {
    /// Each message as a parcel of its own; without messages, the question itself.
    fn one_by_one(&self) -> Vec<Parcel> {
        let parcel = |messages: &[Arc<[u8]>]| Parcel { messages: messages.to_vec(), ..*self };
        match &self.messages[..] {
            [] => vec![parcel(&[])],
            messages => messages.chunks(1).map(parcel).collect(),
        }
    }
}

impl Kept {
    /// What became of a parcel, from what became of [each of its messages](Parcel::one_by_one), in order. Those
    /// after the first that was not stored are not asked for.
    fn of_each<E>(each: impl IntoIterator<Item = Result<Kept, E>>) -> Result<Kept, E> {
        let (mut first, mut past) = (None, false);
        for (stored, kept) in each.into_iter().enumerate() {
            match kept? {
                Kept::Stored(row) => _ = first.get_or_insert(row),
                Kept::Past(row) => {
                    past = true;
                    first.get_or_insert(row);
                }
                Kept::Full(_) => return Ok(Kept::Full(stored)),
                kept if stored == 0 => return Ok(kept),
                // Another holder has got the user meanwhile: a repetition of the message finds that out.
                _ => return Ok(Kept::Refused(stored)),
            }
        }
        let first = first.unwrap_or_default();
        Ok(if past { Kept::Past(first) } else { Kept::Stored(first) })
    }
}

/// The store could not do it. It is not known whether a write was done.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk is full or read-only, the database is away: it may work again later.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// The files of the database are no longer those that were opened. Nothing is read or written until
    /// a restart; the store has logged that once.
    #[error("storage is gone: {0}")]
    Gone(Arc<str>),
    /// There was no answer to the COMMIT: it may be done, or still be done later. [`Connection::write_again`] finds
    /// out.
    #[error("it is not known whether it was stored: {why}")]
    InDoubt { key: u64, why: Arc<str> },
    /// Other nodes took this one for dead, and have marked it as such: nothing was done, and nothing more will be done
    /// for it.
    #[error("this node was taken for dead")]
    Marked,
}

/// One write. Each variant names its possible [`Outcome`]s.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new account, offline: `Id`, or `Already` if the name is taken, as [`crate::wire::name`] has it; that
    /// costs no id.
    Register { name: String, password: String },
    /// Replaces the stored password: `Done`.
    SetPassword { user: UserId, password: String },
    /// Takes the account for this node, if it has no holder, or `past`, which may be another claim of
    /// this node: `Done`, `InUse`, or `NoUser`. Taking it twice by the same `epoch` is the same as taking it once. C++
    /// nodes, if there are any, do not see it yet.
    Claim { user: UserId, epoch: u64, past: Option<Holder> },
    /// Shows to C++ nodes that a user is online, if this node has the user by this `epoch`: `Done`.
    Show { user: UserId, epoch: u64 },
    /// Releases the account, if this node has it by this `epoch`: `Done`.
    Release { user: UserId, epoch: u64 },
    /// One row, user to friend: `Done`, `Already`, `Full`, or `NoUser` if there is no such friend.
    AddFriend { user: UserId, friend: UserId },
    /// A group with its creator as its first member: `Id`; `Full`, or `Already` if the name is taken, which
    /// cost no id.
    CreateGroup { creator: UserId, name: String, description: String },
    /// A "normal" member: `Joined`, `Full`, or `NoGroup`.
    JoinGroup { user: UserId, group: GroupId },
    /// Offline messages: `Kept`. The holder of each recipient is read in the same transaction, so that
    /// a claim comes before or after it.
    Keep(Vec<Parcel>),
    /// Removes exactly these of the user's offline messages: `Done`; or none of them, and `Lost`, if this
    /// node does not have the user by this `epoch`. Rows that are gone are no error.
    Remove { user: UserId, epoch: u64, rows: Vec<RowId> },
    /// Remembers what the account's client speaks, in at most 255 bytes of ASCII; `None`: canon. `Done`.
    SetDialect { user: UserId, dialect: Option<String> },
}

impl Write {
    /// The number of offline messages in it.
    pub fn messages(&self) -> u64 {
        match self {
            Write::Keep(parcels) => parcels.iter().map(|parcel| parcel.messages.len() as u64).sum(),
            _ => 0,
        }
    }
}

/// The result of a [`Write`], once it is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done,
    Id(u32),
    Already,
    InUse(Holder),
    Lost,
    NoUser,
    NoGroup,
    /// The user is a member from now on, or was `already` one before. `nodes`: all other nodes that are not marked;
    /// they may have read the members before this.
    Joined {
        already: bool,
        nodes: Vec<NodeId>,
    },
    /// Nothing was done: the quota is reached.
    Full(Quota),
    /// Nothing was done, because the database refuses this write, and would do so again: the ids are used
    /// up, or an administrator's trigger rejects it. The reason is for the log.
    Refused(String),
    /// In the order of the parcels.
    Kept(Vec<Kept>),
}

impl Outcome {
    /// The number of writes, or parcels, that the database has refused.
    fn refusals(&self) -> u64 {
        match self {
            Outcome::Refused(_) => 1,
            Outcome::Kept(kept) => kept.iter().filter(|kept| matches!(kept, Kept::Refused(_))).count() as u64,
            _ => 0,
        }
    }

    /// What became of the only parcel of a write; anything else counts as refused.
    fn of_one_parcel(self) -> Kept {
        match self {
            Outcome::Kept(kept) if kept.len() == 1 => kept[0],
            _ => Kept::Refused(0),
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

/// Everything that the reply to a login contains.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    pub friends: Vec<Friend>,
    pub groups: Vec<Group>,
    pub page: Page,
    /// What [`Write::SetDialect`] has last remembered of the account's client; `None`: canon, or nothing.
    pub dialect: Option<String>,
}

/// Some of a user's offline messages, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub messages: Vec<(RowId, Box<[u8]>)>,
    /// Whether there are more after these.
    pub more: bool,
}

/// A database. Shared by all workers.
pub trait Store: Send + Sync {
    /// A connection for one worker. It connects when first used, and again after a failure.
    fn connection(&self) -> Box<dyn Connection>;

    /// Sets this node's users offline, at its end.
    fn release_all(&self) -> Result<(), StoreError>;

    /// Closes the store: what is queued is done, and everything is left in order for the next process. Every
    /// connection is refused from now on. May wait for a read that is under way.
    ///
    /// # Errors
    /// What could not be left in order.
    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// The membership of nodes; `None`: several nodes cannot share this store.
    fn membership(&self) -> Option<Box<dyn Membership>>;
}

/// What the store says about a node that shares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub node: NodeId,
    /// The number of its looks since it was enlisted; see [`Membership::look`].
    pub looks: u64,
    /// It was taken for dead.
    pub marked: bool,
    /// Some accounts are claimed by it.
    pub has_claims: bool,
}

/// What nodes that share a store see of each other. Every call blocks.
///
/// Each node has two rows: one with its mark, which every transaction of the node locks for sharing and
/// finds unmarked, and one with a counter, which only looks raise. So a look never waits, and a mark waits
/// for those of the node's transactions that are not over yet. A node whose rows are gone is marked.
pub trait Membership: Send {
    /// Writes this node's rows. The node does this before anything else.
    fn enlist(&mut self) -> Result<(), StoreError>;

    /// A look after a renewal of the lease: raises this node's counter. Returns the other nodes that are marked.
    ///
    /// # Errors
    /// [`StoreError::Marked`]: this node is marked.
    fn look(&mut self) -> Result<Vec<NodeId>, StoreError>;

    /// A look without a renewal: raises nothing, and only checks whether this node is marked.
    ///
    /// # Errors
    /// [`StoreError::Marked`]: this node is marked.
    fn glance(&mut self) -> Result<(), StoreError>;

    /// All other nodes that are enlisted or have claims.
    fn nodes(&mut self) -> Result<Vec<Entry>, StoreError>;

    /// Marks a node, unless it has looked since its counter stood at `looks`: then `false`. Waits for its
    /// open transactions. No transaction of that node is committed afterwards.
    fn mark(&mut self, node: NodeId, looks: u64) -> Result<bool, StoreError>;

    /// Sets the users of a marked node offline, and deletes its rows; returns the number of users. A node that is not
    /// marked keeps them.
    fn free(&mut self, node: NodeId) -> Result<u64, StoreError>;

    /// Sets this node's users online again, if a C++ node has set all users offline at its end; returns the number
    /// of users.
    fn reassert(&mut self) -> Result<u64, StoreError>;
}

/// One worker's connection. Every call blocks.
pub trait Connection: Send {
    /// Does the writes, in order, in one transaction, and returns one outcome for each when they
    /// are on disk. If the database refuses one of them, they are done one by one, still in order, so
    /// that only that one is not done: [`Outcome::Refused`], or [`Kept::Refused`].
    ///
    /// # Errors
    /// The store is unavailable as a whole: none of them is known to be done.
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError>;

    /// Finds out what became of offline messages whose outcome is not known, and stores them if they are not stored.
    /// `key` is that of [`StoreError::InDoubt`], plus the number of messages before them in that batch. A store that
    /// always knows the outcome is never asked.
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

    /// [`Connection::friends`], [`Connection::groups`], [`Connection::page`] and the dialect in one call.
    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError>;
}
