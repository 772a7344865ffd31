//! What the service has the pool do, and how a worker does it.

use std::fmt;
use std::sync::Arc;

use super::hashing::Place;
use super::late::Late;
use super::memo::Memo;
use super::receipts::{ReplyTo, SessionId};
use crate::password::{HashError, Hasher, Verdict};
use crate::pool::Standing;
use crate::reactor::{ConnId, Origin};
use crate::store::{self, Account, Connection, GroupId, Outcome, Page, RowId, StoreError, UserId, Write};
use crate::wire::Request;
use crate::wire::dialect::{Dialect, Hearing, LARGEST_REPLY};
use crate::wire::reply::{self, LoginReply, OFFLINE_IN_REPLY, ReplyLimit, Yields};

/// Which jobs a job must not overtake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The pool's lane of this number. All jobs about one user's account and offline messages
    /// share one.
    Number(usize),
    /// It needs no order, and may take long.
    None,
}

/// Something that blocks, for a worker.
#[derive(Debug)]
pub struct Job {
    /// The shard that gets the answer.
    pub shard: usize,
    /// What that shard does with it.
    pub then: Then,
    pub op: Op,
    /// What may still come for the parcels that it stores.
    pub(super) late: Option<Late>,
}

impl Job {
    /// A worker has the job: what has come for it meanwhile goes along, and nothing more.
    pub fn taken(&mut self) {
        if let Op::Write(Write::Keep(parcels)) = &mut self.op
            && let Some(late) = self.late.take()
        {
            for (parcel, body) in late.close() {
                parcels[parcel].messages.push(body);
            }
        }
    }
}

/// A job's answer, on its way back to its shard.
#[derive(Debug)]
pub struct Done {
    pub then: Then,
    pub answer: Result<Answer, StoreError>,
}

#[derive(Debug)]
pub enum Op {
    /// Change something; neighbouring writes share a transaction.
    Write(Write),
    /// Find out what became of a write of offline messages: see [`StoreError::InDoubt`].
    WriteAgain { write: Write, key: u64 },
    /// Read the account, and see whether this password was found right before.
    Account { user: UserId, password: Box<str> },
    /// Is this the password of the account? `None`: there is none, and that takes as long.
    Verify { user: UserId, account: Option<Account>, password: Box<str>, place: Arc<Place> },
    /// Hash the password, then create the account.
    Register { name: String, password: Box<str>, place: Arc<Place> },
    /// Everything a login reply says, as bytes. `yields`: what is left out of one that its client would die of.
    Load { user: UserId, name: Box<str>, seq: Option<i64>, yields: Option<Yields>, speaks: Speaks },
    /// The oldest offline messages.
    Page { user: UserId, max_bytes: usize },
    /// The reply to a request that only reads.
    Read(Read),
    /// The members of a group.
    Members(GroupId),
}

/// What the client that logs in is known to speak.
#[derive(Debug)]
pub struct Speaks {
    pub hearing: Hearing,
    /// `None`: canon.
    pub dialect: Option<Arc<Dialect>>,
}

/// Reads what a request asks for, and writes the reply.
pub struct Read(pub(super) Reading);

type Reading = Box<dyn FnOnce(&mut dyn Connection) -> Result<Vec<u8>, StoreError> + Send>;

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Read")
    }
}

impl Op {
    /// What has become of it while it waited for a worker.
    pub fn standing(&self) -> Standing {
        match self {
            Op::Verify { place, .. } | Op::Register { place, .. } => place.standing(),
            _ => Standing::Due,
        }
    }
}

/// What a job came to.
#[derive(Debug)]
pub enum Answer {
    Wrote(Outcome),
    /// The password was found right before; the account's name.
    Remembered(String),
    /// The password must be hashed.
    Unproven(Option<Account>, Box<str>),
    /// The account's name, if the password was right.
    Verified(Option<String>),
    /// No client has waited for the hash any more.
    Spared,
    Loaded(Loaded),
    Page(Page),
    Bytes(Vec<u8>),
    /// The members of a group in ascending order; `None` if there is no such group.
    Members(Option<Vec<UserId>>),
}

/// A login reply.
#[derive(Debug)]
pub struct Loaded {
    pub reply: Vec<u8>,
    /// The offline messages that are in it.
    pub rows: Vec<RowId>,
    /// Whether there are more.
    pub more: bool,
    /// What was remembered of the dialect of the account's client.
    pub remembered: Option<String>,
}

/// What a shard does with an answer. It names connections by id, and sessions by epoch, so that an answer that
/// comes too late reaches no other one.
#[derive(Debug)]
pub enum Then {
    /// The account of a login was read.
    AccountRead(Login),
    /// Its password was checked.
    Verified(Login),
    /// The account is claimed for a session, or not.
    Claimed(SessionId),
    /// Nothing: no shard waits for it.
    Nothing,
    /// The login reply is ready.
    Loaded(SessionId),
    /// An account is created, or not.
    Registered { conn: ConnId, from: Origin, attempt: u64 },
    /// Tell the client whether it was done.
    Ack { to: ReplyTo, request: i64 },
    /// At the group's home; the connection is its user's.
    GroupJoined { group: GroupId, user: UserId, to: ReplyTo },
    /// Send the client the reply that was read.
    Reply { to: ReplyTo, request: i64 },
    /// The members of a group were read.
    Members(GroupId),
    /// Offline messages are stored, or not.
    Stored(Stored),
    /// The store was asked which node has the user of a route.
    Looked(UserId),
    /// The nodes that must confirm a join were read.
    JoinLooked(u64),
    /// Offline messages were read.
    Page(SessionId),
    /// Offline messages that were written are removed, or not.
    Removed(SessionId),
    /// The dialect of the client on this connection is remembered, or not.
    Remembered(ConnId),
    /// `ended`: where a session has ended, with the `seq` of the logout that is to be acked there.
    Released { session: SessionId, ended: Option<ReplyTo> },
}

/// The messages that a job stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Those on the routes to these users.
    Routes(Vec<UserId>),
    /// Those of this session's backlog.
    Backlog(SessionId),
}

/// A login on its way.
#[derive(Debug, Clone)]
pub struct Login {
    pub conn: ConnId,
    /// Which of the shard's attempts it is.
    pub attempt: u64,
    pub user: UserId,
    /// Where the client is.
    pub from: Origin,
    pub seq: Option<i64>,
    /// The account's name, once it is known.
    pub name: Box<str>,
}

/// Does jobs: the blocking half of the service, with one worker's connection and hasher.
pub struct JobRunner {
    connection: Box<dyn Connection>,
    hasher: Hasher,
    /// C++ nodes read the passwords, so they stay plain text.
    plain: bool,
    /// What all of this node's workers have found right; `None`: every login is hashed.
    memo: Option<Arc<Memo>>,
}

impl JobRunner {
    pub fn new(connection: Box<dyn Connection>, hasher: Hasher, plain: bool, memo: Option<Arc<Memo>>) -> Self {
        JobRunner { connection, hasher, plain, memo }
    }

    /// Does the jobs in order; neighbouring writes go to the store together. Each answer is handed
    /// to `done`, in order.
    pub fn run(&mut self, batch: &mut Vec<Job>, mut done: impl FnMut(usize, Done)) {
        let (mut writes, mut waiting) = (Vec::new(), Vec::new());
        for mut job in batch.drain(..) {
            job.taken();
            let Job { shard, then, op, .. } = job;
            match op {
                Op::Write(write) => {
                    writes.push(write);
                    waiting.push((shard, then));
                }
                // No write changes what it reads but a new password, which no login waits for. In a storm the
                // claims of a batch are so committed together.
                op @ Op::Account { .. } => {
                    let answer = self.run_one(op);
                    done(shard, Done { then, answer });
                }
                op => {
                    self.write(&mut writes, &mut waiting, &mut done);
                    let answer = self.run_one(op);
                    done(shard, Done { then, answer });
                }
            }
        }
        self.write(&mut writes, &mut waiting, &mut done);
    }

    fn write(&mut self, writes: &mut Vec<Write>, waiting: &mut Vec<(usize, Then)>, done: &mut impl FnMut(usize, Done)) {
        if writes.is_empty() {
            return;
        }
        match self.connection.write(writes) {
            Ok(outcomes) => {
                for ((shard, then), outcome) in waiting.drain(..).zip(outcomes) {
                    let answer = wrote(outcome).inspect_err(|error| warn(error, format_args!("")));
                    done(shard, Done { then, answer });
                }
            }
            Err(mut error) => {
                warn(&error, format_args!("{} writes: ", writes.len()));
                for ((shard, then), write) in waiting.drain(..).zip(&*writes) {
                    done(shard, Done { then, answer: Err(error.clone()) });
                    if let StoreError::InDoubt { key, .. } = &mut error {
                        *key += write.messages();
                    }
                }
            }
        }
        writes.clear();
    }

    fn run_one(&mut self, op: Op) -> Result<Answer, StoreError> {
        let answer = match op {
            Op::Write(write) => {
                let outcome = self.connection.write(&[write])?.pop();
                wrote(outcome.unwrap_or(Outcome::Done))
            }
            Op::WriteAgain { write, key } => wrote(self.connection.write_again(&write, key)?),
            Op::Account { user, password } => self.account(user, password),
            Op::Verify { user, account, password, place } => {
                let Some(verdict) = place.hash(|| self.verify(account.as_ref(), &password)) else {
                    return Ok(Answer::Spared);
                };
                let right = account.zip(verdict?);
                Ok(Answer::Verified(right.map(|(account, upgrade)| self.right(user, account, &password, upgrade))))
            }
            Op::Register { name, password, place } => match place.hash(|| self.hash(&password)) {
                Some(password) => self.run_one(Op::Write(Write::Register { name, password: password? })),
                None => Ok(Answer::Spared),
            },
            Op::Load { user, name, seq, yields, speaks } => {
                self.load(user, &name, seq, yields, speaks).map(Answer::Loaded)
            }
            Op::Page { user, max_bytes } => {
                self.connection.page(user, max_bytes).map(|page| Answer::Page(readable(user, page)))
            }
            Op::Read(Read(read)) => read(&mut *self.connection).map(Answer::Bytes),
            Op::Members(group) => self.connection.members(group).map(Answer::Members),
        };
        answer.inspect_err(|error| warn(error, format_args!("")))
    }

    fn hash(&mut self, password: &str) -> Result<String, StoreError> {
        if self.plain {
            return Ok(password.to_owned());
        }
        self.hasher.hash(password).map_err(cannot_hash)
    }

    /// What is needed before a password is hashed, and whether it must be.
    fn account(&mut self, user: UserId, password: Box<str>) -> Result<Answer, StoreError> {
        let account = self.connection.account(user)?;
        match (&self.memo, account) {
            (Some(memo), Some(account)) if memo.knows(user, &account.password, &password) => {
                Ok(Answer::Remembered(account.name))
            }
            (_, account) => Ok(Answer::Unproven(account, password)),
        }
    }

    /// `None`: the password is wrong. Where it is right and the stored one is plain text or of
    /// another cost: what is to be stored instead.
    fn verify(&mut self, account: Option<&Account>, password: &str) -> Result<Option<Option<String>>, StoreError> {
        let Some(account) = account else {
            self.hasher.verify_nobody(password).map_err(cannot_hash)?;
            return Ok(None);
        };
        Ok(match self.hasher.verify(password, &account.password).map_err(cannot_hash)? {
            Verdict::Wrong => None,
            Verdict::RightButUpgrade if !self.plain => Some(Some(self.hash(password)?)),
            Verdict::Right | Verdict::RightButUpgrade => Some(None),
        })
    }

    /// The password is right: this is remembered for what is stored from now on. Returns the account's name.
    fn right(&mut self, user: UserId, account: Account, password: &str, upgrade: Option<String>) -> String {
        let Account { name, password: mut stored } = account;
        if let Some(upgraded) = upgrade {
            match self.replace_password(user, &stored, &upgraded) {
                Ok(()) => stored = upgraded,
                Err(error) => {
                    // The login does not depend on it; the next one tries again.
                    warn(&error, format_args!("the password of user {user} stays as it is: "));
                    return name;
                }
            }
        }
        if let Some(memo) = &self.memo {
            memo.remember(user, &stored, password);
        }
        name
    }

    /// Stores a password in place of `former`, which was read some seconds ago.
    fn replace_password(&mut self, user: UserId, former: &str, password: &str) -> Result<(), StoreError> {
        if self.connection.account(user)?.is_none_or(|account| account.password != former) {
            return Err(StoreError::Unavailable("it was changed meanwhile".into()));
        }
        let outcome = self.connection.write(&[Write::SetPassword { user, password: password.to_owned() }])?.pop();
        wrote(outcome.unwrap_or(Outcome::Done)).map(drop)
    }

    fn load(
        &mut self,
        user: UserId,
        name: &str,
        seq: Option<i64>,
        yields: Option<Yields>,
        Speaks { mut hearing, dialect }: Speaks,
    ) -> Result<Loaded, StoreError> {
        let store::Loaded { friends, groups, page, dialect: remembered } =
            self.connection.load(user, OFFLINE_IN_REPLY)?;
        // A client that uses `seq` is none of those that need to be guessed.
        let guessed = remembered.as_deref().filter(|_| seq.is_none()).and_then(|memo| hearing.remember(memo));
        let dialect = guessed.or(dialect);
        let page = readable(user, page);
        let largest = dialect.as_deref().map_or(LARGEST_REPLY, Dialect::largest_reply);
        // The NUL behind it is read with it.
        let limit = yields.map(|yields| ReplyLimit { bytes: largest.saturating_sub(1), yields });
        let texts: Vec<&str> = page.messages.iter().map_while(|(_, text)| std::str::from_utf8(text).ok()).collect();
        let login = LoginReply { seq, id: user, name, friends: &friends, groups: &groups, offline: &texts, limit };
        let (bytes, listed) = match dialect {
            None => login.written(),
            Some(dialect) => dialect.login_ack(&login),
        };
        if listed.friends < friends.len() || listed.groups < groups.len() {
            log::info!(
                "login of user {user}: {} friends and {} groups did not fit into a reply of {} bytes",
                friends.len() - listed.friends,
                groups.len() - listed.groups,
                bytes.len(),
            );
        }
        Ok(Loaded {
            reply: bytes,
            rows: page.messages[..listed.offline].iter().map(|(row, _)| *row).collect(),
            more: page.more || listed.offline < page.messages.len(),
            remembered,
        })
    }
}

/// Logs what the store could not do; of a store that is gone it has said so itself, and once is enough.
fn warn(error: &StoreError, what: fmt::Arguments) {
    if !matches!(error, StoreError::Gone(_)) {
        log::warn!("{what}{error}");
    }
}

/// A write that the database refuses is to its client what a store is that is away: error 21.
fn wrote(outcome: Outcome) -> Result<Answer, StoreError> {
    match outcome {
        Outcome::Refused(why) => {
            Err(StoreError::Unavailable(format!("for this write, which the database refuses: {why}")))
        }
        outcome => Ok(Answer::Wrote(outcome)),
    }
}

/// Offline messages, each an object that a client can read.
fn readable(user: UserId, mut page: Page) -> Page {
    for (row, message) in &mut page.messages {
        if Request::parse(message).is_err() {
            log::info!("offline message {row} of user {user} is no JSON: it becomes the text of a chat");
            let mut chat = Vec::new();
            reply::damaged_chat(&mut chat, &String::from_utf8_lossy(message));
            *message = chat.into();
        }
    }
    page
}

/// Hashing fails for lack of memory or randomness: nothing the client did, and worth another try.
fn cannot_hash(error: HashError) -> StoreError {
    StoreError::Unavailable(format!("cannot hash a password: {error}"))
}
