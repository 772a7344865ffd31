//! The embedded store: one SQLite file, for one server process.
//!
//! All writes go through one thread, `store-writer`. It takes everything that is queued, does it
//! in one transaction, and answers each batch once that is on disk: a commit costs an fsync, and
//! so many batches share one. Readers are connections of their own, which in WAL mode neither
//! wait for the writer nor hold it up.
//!
//! ```text
//!   worker --batch--> queue --round--> store-writer --commit--> file --answers--> workers
//!   worker --------------------- its own read connection -----> file
//! ```

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{OpenFlags, OptionalExtension, Params, Row, Transaction, TransactionBehavior, params};

use super::quota::Room;
use super::{
    Account, Claim, Connection, Friend, Group, GroupId, Holder, Kept, Member, NodeId, Outcome, Page, Parcel, Quota,
    Quotas, Roll, RowId, Store, StoreError, UserId, Write,
};
use crate::wire::reply::LISTED_MEMBERS;

/// What brings a database from each version (`PRAGMA user_version`) to the next. Only ever
/// appended to: files of every version are out there.
const MIGRATIONS: &[&str] = &[include_str!("sqlite.sql")];

/// Who has an account that is online: a file has one server, so nobody asks which.
const HERE: Holder = Holder::Node(Claim { node: NodeId(0), epoch: 0 });

/// The most rows that share a commit, give or take a batch: the first of them waits for the last.
const ROUND_ROWS: usize = 4096;

/// Past this size of the write-ahead log the writer makes a point of emptying it. SQLite does so
/// by itself at half of it, but never while readers overlap without a gap.
const WAL_LIMIT: u64 = 16 << 20;

/// How long to wait for someone else at the file, such as an administrator's shell.
const BUSY: Duration = Duration::from_secs(5);

/// As [`BUSY`], for readers to leave the log: it can be emptied later just as well.
const CHECKPOINT_BUSY: Duration = Duration::from_millis(100);

/// For every connection. `FULL` syncs the log at each commit: what is acked survives a power cut.
const PRAGMAS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 2048;
    PRAGMA journal_size_limit = 8388608;
";

/// Page caches, in KiB (that is what the minus says). The writer's holds the upper pages of every
/// index; a reader's only has to last for one query, the kernel caches the rest.
const WRITER_CACHE: &str = "PRAGMA cache_size = -8192";
const READER_CACHE: &str = "PRAGMA cache_size = -256";

/// Why the database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another server, which holds {}", .database.display(), .lock.display())]
    InUse { database: PathBuf, lock: PathBuf },
    #[error("{}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{} is a database of version {found}, and this server knows none above {}: a newer server made it",
        .path.display(), MIGRATIONS.len()
    )]
    Newer { path: PathBuf, found: i64 },
    #[error("{}: {source}", .path.display())]
    Database { path: PathBuf, source: rusqlite::Error },
    #[error("cannot start the writer thread: {0}")]
    Thread(io::Error),
}

/// A SQLite file, open for this process alone.
///
/// Dropping it does what is queued, and then stops the writer; a connection that is still there
/// can read on, and is told that the store is closed when it writes.
pub struct SqliteStore {
    path: Arc<Path>,
    queue: Queue,
    commits: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
    /// Keeps every other process away for as long as it is open.
    _lock: File,
    #[cfg(test)]
    fault: Fault,
}

impl SqliteStore {
    /// Opens the database at `path`, or creates it, and sets everyone offline.
    pub fn open(path: &Path, quotas: Quotas) -> Result<SqliteStore, OpenError> {
        let file_error = |source| OpenError::File { path: path.to_owned(), source };
        // Absolute, so that SQLite's names with a meaning (":memory:", "file:…") have none; and
        // resolved, so that a link to the database has the same lock as the database.
        let path = std::path::absolute(path).map_err(file_error)?;
        let path = fs::canonicalize(&path).unwrap_or(path);
        let lock = lock(&path)?;
        let database_error = |source| OpenError::Database { path: path.clone(), source };
        let mut connection =
            open(&path, EXISTING | OpenFlags::SQLITE_OPEN_CREATE, WRITER_CACHE).map_err(database_error)?;
        let found = migrate(&mut connection).map_err(database_error)?;
        if !usize::try_from(found).is_ok_and(|found| found <= MIGRATIONS.len()) {
            return Err(OpenError::Newer { path, found });
        }
        release_all(&connection).map_err(database_error)?;

        let path: Arc<Path> = path.into();
        let (sender, receiver) = unbounded();
        let writer = Writer {
            path: path.clone(),
            connection: Some(connection),
            checkpoint_at: WAL_LIMIT,
            quotas,
            room: Room::new(quotas.offline),
            commits: Arc::default(),
            #[cfg(test)]
            fault: Fault::default(),
        };
        Ok(SqliteStore {
            path,
            queue: Queue(sender),
            commits: writer.commits.clone(),
            #[cfg(test)]
            fault: writer.fault.clone(),
            writer: Some(
                thread::Builder::new()
                    .name("store-writer".into())
                    .spawn(|| writer.run(receiver))
                    .map_err(OpenError::Thread)?,
            ),
            _lock: lock,
        })
    }

    /// How many transactions were committed. Batches written over this is how many share one.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

impl Store for SqliteStore {
    fn connection(&self) -> Box<dyn Connection> {
        Box::new(SqliteConnection { path: self.path.clone(), queue: self.queue.clone(), reader: None })
    }

    fn release_all(&self) -> Result<(), StoreError> {
        self.queue.submit(Work::ReleaseAll).map(drop)
    }

    fn roll(&self) -> Option<Box<dyn Roll>> {
        None
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let _ = self.queue.submit(Work::Stop);
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            log::error!("the thread store-writer had panicked");
        }
    }
}

/// `path` with `suffix` behind it: the lock file and SQLite's own are named so.
fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Takes the lock that one server at a time can have. It goes with the file, and so with the
/// process, however that ends.
fn lock(database: &Path) -> Result<File, OpenError> {
    let path = sidecar(database, ".lock");
    let file = match File::options().write(true).create(true).truncate(false).open(&path) {
        Ok(file) => file,
        Err(source) => return Err(OpenError::File { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { database: database.to_owned(), lock: path }),
        Err(TryLockError::Error(source)) => Err(OpenError::File { path, source }),
    }
}

/// Not to be created: if the file was taken away, an empty one in its place would help nobody.
/// Readers open it for writing too, since a reader may be the one to recover the log.
const EXISTING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE;

fn open(path: &Path, flags: OpenFlags, cache: &str) -> rusqlite::Result<rusqlite::Connection> {
    // No mutex: a connection stays with one thread at a time, which Rust sees to.
    let connection = rusqlite::Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(PRAGMAS)?;
    connection.execute_batch(cache)?;
    Ok(connection)
}

/// Brings the database up to date and returns the version it had. A version that is not known is
/// left as it is.
fn migrate(connection: &mut rusqlite::Connection) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let missing = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)).unwrap_or_default();
    if !missing.is_empty() {
        for migration in missing {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as i64)?;
    }
    transaction.commit()?;
    Ok(found)
}

/// What the writer is asked for.
enum Work {
    Batch(Vec<Write>),
    ReleaseAll,
    /// Do what stands before this, and end.
    Stop,
}

impl Work {
    /// About how many rows it writes.
    fn rows(&self) -> usize {
        let rows = |write: &Write| match write {
            Write::Keep(parcels) => parcels.iter().map(|parcel| parcel.messages.len()).sum(),
            Write::Remove { rows, .. } => rows.len(),
            _ => 1,
        };
        match self {
            Work::Batch(writes) => writes.iter().map(rows).sum(),
            Work::ReleaseAll | Work::Stop => 1,
        }
    }

    fn apply(&self, transaction: &Transaction, quotas: Quotas, room: &mut Room) -> rusqlite::Result<Vec<Outcome>> {
        match self {
            Work::Batch(writes) => writes.iter().map(|write| apply(transaction, quotas, room, write)).collect(),
            Work::ReleaseAll => release_all(transaction).map(|()| Vec::new()),
            Work::Stop => Ok(Vec::new()),
        }
    }
}

type Answer = Result<Vec<Outcome>, StoreError>;

struct Job {
    work: Work,
    answer: Sender<Answer>,
}

/// The way to the writer. Its length needs no bound: whoever queues a job waits for the answer,
/// so there is one per connection at most.
#[derive(Clone)]
struct Queue(Sender<Job>);

impl Queue {
    /// Has the writer do it, and waits. A channel for each job, so that there is no waiting for a
    /// writer that is gone: the job is dropped with the queue, and the answer's sender with it.
    fn submit(&self, work: Work) -> Answer {
        let (answer, answered) = bounded(1);
        let _ = self.0.send(Job { work, answer });
        answered.recv().unwrap_or_else(|_| Err(StoreError::Unavailable("the store is closed".into())))
    }
}

/// The thread `store-writer`.
struct Writer {
    path: Arc<Path>,
    /// `None` after a failure, until the next round opens another: what state SQLite leaves one
    /// in depends on what failed.
    connection: Option<rusqlite::Connection>,
    /// The size of the log at which it is next emptied.
    checkpoint_at: u64,
    quotas: Quotas,
    room: Room,
    commits: Arc<AtomicU64>,
    #[cfg(test)]
    fault: Fault,
}

impl Writer {
    fn run(mut self, queue: Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let round = take_round(first, &queue);
            match self.commit(&round) {
                Ok(outcomes) => {
                    for (job, outcomes) in round.iter().zip(outcomes) {
                        // Whoever asked may be gone; it is done all the same.
                        let _ = job.answer.send(Ok(outcomes));
                    }
                    self.bound_log();
                }
                Err(error) => {
                    self.connection = None;
                    let error = StoreError::from(error);
                    for job in &round {
                        let _ = job.answer.send(Err(error.clone()));
                    }
                }
            }
            if round.iter().any(|job| matches!(job.work, Work::Stop)) {
                return;
            }
        }
    }

    /// Does the round in one transaction; the outcomes are one list for each job.
    fn commit(&mut self, round: &[Job]) -> rusqlite::Result<Vec<Vec<Outcome>>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(open(&self.path, EXISTING, WRITER_CACHE)?),
        };
        #[cfg(test)]
        self.fault.strike(connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut apply = |job: &Job| job.work.apply(&transaction, self.quotas, &mut self.room);
        let outcomes = round.iter().map(&mut apply).collect::<rusqlite::Result<_>>()?;
        transaction.commit()?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(outcomes)
    }

    /// Empties the log where it has grown past its limit. Failing is no matter: it is tried again
    /// once the log has grown by as much, and not at every commit, for it may have to wait.
    fn bound_log(&mut self) {
        let size = || fs::metadata(sidecar(&self.path, "-wal")).map_or(0, |log| log.len());
        if let Some(connection) = &self.connection
            && size() >= self.checkpoint_at
        {
            let _ = connection.busy_timeout(CHECKPOINT_BUSY);
            let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
            let _ = connection.busy_timeout(BUSY);
            self.checkpoint_at = size() + WAL_LIMIT;
        }
    }
}

/// Everything that is queued, up to [`ROUND_ROWS`]; nothing that stands behind a stop.
fn take_round(first: Job, queue: &Receiver<Job>) -> Vec<Job> {
    let (mut round, mut rows, mut next) = (Vec::new(), 0, Some(first));
    while let Some(job) = next {
        rows += job.work.rows();
        let last = rows >= ROUND_ROWS || matches!(job.work, Work::Stop);
        round.push(job);
        next = if last { None } else { queue.try_recv().ok() };
    }
    round
}

fn release_all(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    execute(connection, "UPDATE User SET state = 'offline' WHERE state = 'online'", []).map(drop)
}

/// Does one write. What a client can bring about is an outcome; an error is the disk's, and ends
/// the transaction.
fn apply(transaction: &Transaction, quotas: Quotas, room: &mut Room, write: &Write) -> rusqlite::Result<Outcome> {
    match write {
        Write::Register { name, password } => register(transaction, name, password),
        Write::SetPassword { user, password } => {
            execute(transaction, "UPDATE User SET password = ?2 WHERE id = ?1", params![user, password])?;
            Ok(Outcome::Done)
        }
        Write::Claim { user, .. } => claim(transaction, *user),
        Write::Release { user, .. } => {
            let sql = "UPDATE User SET state = 'offline' WHERE id = ?1 AND state = 'online'";
            execute(transaction, sql, [user])?;
            Ok(Outcome::Done)
        }
        Write::AddFriend { user, friend } => add_friend(transaction, quotas, *user, *friend),
        Write::CreateGroup { creator, name, description } => {
            create_group(transaction, quotas, *creator, name, description)
        }
        Write::JoinGroup { user, group } => join_group(transaction, quotas, *user, *group),
        Write::Keep(parcels) => {
            parcels.iter().map(|parcel| keep(transaction, room, parcel)).collect::<Result<_, _>>().map(Outcome::Kept)
        }
        Write::Remove { user, rows, .. } => {
            room.forget(*user);
            for row in rows {
                let sql = "DELETE FROM OfflineMessage WHERE id = ?1 AND userid = ?2";
                execute(transaction, sql, params![row.cast_signed(), user])?;
            }
            Ok(Outcome::Done)
        }
    }
}

fn register(transaction: &Transaction, name: &str, password: &str) -> rusqlite::Result<Outcome> {
    let sql = "INSERT INTO User (name, password, namekey) VALUES (?1, ?2, ?3)
               ON CONFLICT (namekey) DO NOTHING RETURNING id";
    let id = find(transaction, sql, params![name, password, name.to_lowercase()], |row| row.get(0))?;
    Ok(id.map_or(Outcome::Already, Outcome::Id))
}

fn claim(transaction: &Transaction, user: UserId) -> rusqlite::Result<Outcome> {
    let sql = "UPDATE User SET state = 'online' WHERE id = ?1 AND state = 'offline'";
    Ok(match execute(transaction, sql, [user])? {
        0 if user_exists(transaction, user)? => Outcome::InUse(HERE),
        0 => Outcome::NoUser,
        _ => Outcome::Done,
    })
}

fn add_friend(transaction: &Transaction, quotas: Quotas, user: UserId, friend: UserId) -> rusqlite::Result<Outcome> {
    let sql = "INSERT INTO Friend (userid, friendid) SELECT ?1, id FROM User WHERE id = ?2 ON CONFLICT DO NOTHING";
    Ok(match execute(transaction, sql, [user, friend])? {
        0 if user_exists(transaction, friend)? => Outcome::Already,
        0 => Outcome::NoUser,
        _ if is_over(transaction, quotas.friends, FRIENDS_OF, user)? => {
            execute(transaction, "DELETE FROM Friend WHERE userid = ?1 AND friendid = ?2", [user, friend])?;
            Outcome::Full(Quota::Friends)
        }
        _ => Outcome::Done,
    })
}

// What a quota counts: as many rows as need be, of a user or a group.
const FRIENDS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM Friend WHERE userid = ?1 LIMIT ?2)";
const GROUPS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM GroupUser WHERE userid = ?1 LIMIT ?2)";
const MEMBERS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM GroupUser WHERE groupid = ?1 LIMIT ?2)";
const MESSAGES_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM OfflineMessage WHERE userid = ?1 LIMIT ?2)";

/// Whether there are more than the quota, now that one was added.
fn is_over(transaction: &Transaction, quota: Option<u32>, count: &str, of: u32) -> rusqlite::Result<bool> {
    let Some(quota) = quota else { return Ok(false) };
    let there: u32 = transaction.prepare_cached(count)?.query_one([of, quota.saturating_add(1)], |row| row.get(0))?;
    Ok(there > quota)
}

fn create_group(
    transaction: &Transaction,
    quotas: Quotas,
    creator: UserId,
    name: &str,
    description: &str,
) -> rusqlite::Result<Outcome> {
    let sql = "INSERT INTO AllGroup (groupname, groupdesc, namekey) VALUES (?1, ?2, ?3)
               ON CONFLICT (namekey) DO NOTHING RETURNING id";
    let id = find(transaction, sql, params![name, description, name.to_lowercase()], |row| row.get(0))?;
    let Some(group) = id else { return Ok(Outcome::Already) };
    let sql = "INSERT INTO GroupUser (groupid, userid, grouprole) VALUES (?1, ?2, 'creator')";
    execute(transaction, sql, [group, creator])?;
    if is_over(transaction, quotas.groups, GROUPS_OF, creator)? {
        remove_member(transaction, creator, group)?;
        execute(transaction, "DELETE FROM AllGroup WHERE id = ?1", [group])?;
        return Ok(Outcome::Full(Quota::Groups));
    }
    Ok(Outcome::Id(group))
}

fn remove_member(transaction: &Transaction, user: UserId, group: GroupId) -> rusqlite::Result<()> {
    let sql = "DELETE FROM GroupUser WHERE groupid = ?1 AND userid = ?2";
    execute(transaction, sql, [group, user]).map(drop)
}

fn join_group(transaction: &Transaction, quotas: Quotas, user: UserId, group: GroupId) -> rusqlite::Result<Outcome> {
    let sql = "INSERT INTO GroupUser (groupid, userid) SELECT id, ?2 FROM AllGroup WHERE id = ?1
               ON CONFLICT DO NOTHING";
    Ok(match execute(transaction, sql, [group, user])? {
        0 if group_exists(transaction, group)? => Outcome::Already,
        0 => Outcome::NoGroup,
        _ if is_over(transaction, quotas.members, MEMBERS_OF, group)? => {
            remove_member(transaction, user, group)?;
            Outcome::Full(Quota::Members)
        }
        _ if is_over(transaction, quotas.groups, GROUPS_OF, user)? => {
            remove_member(transaction, user, group)?;
            Outcome::Full(Quota::Groups)
        }
        _ => Outcome::Done,
    })
}

fn keep(transaction: &Transaction, room: &mut Room, parcel: &Parcel) -> rusqlite::Result<Kept> {
    if !user_exists(transaction, parcel.to)? {
        return Ok(Kept::NoUser);
    }
    let wanted = parcel.messages.len();
    let granted = match room.known(parcel.to, wanted) {
        Some(granted) => granted,
        None => {
            let mut count = transaction.prepare_cached(MESSAGES_OF)?;
            let there = count.query_one([parcel.to, room.enough()], |row| row.get(0))?;
            room.counted(parcel.to, wanted, there)
        }
    };
    let mut first = None;
    for message in &parcel.messages[..granted] {
        let sql = "INSERT INTO OfflineMessage (userid, message) VALUES (?1, ?2)";
        // Text to SQLite, so that an administrator can read it, without looking at it for UTF-8
        // again.
        let message = ToSqlOutput::Borrowed(ValueRef::Text(message));
        execute(transaction, sql, params![parcel.to, message])?;
        first.get_or_insert(transaction.last_insert_rowid().cast_unsigned());
    }
    if granted < wanted {
        return Ok(Kept::Full(granted));
    }
    Ok(Kept::Stored(first.unwrap_or_default()))
}

fn user_exists(connection: &rusqlite::Connection, user: UserId) -> rusqlite::Result<bool> {
    find(connection, "SELECT 1 FROM User WHERE id = ?1", [user], |_| Ok(())).map(|found| found.is_some())
}

fn group_exists(connection: &rusqlite::Connection, group: GroupId) -> rusqlite::Result<bool> {
    find(connection, "SELECT 1 FROM AllGroup WHERE id = ?1", [group], |_| Ok(())).map(|found| found.is_some())
}

/// SQLite's keys are signed, and those it gives out are positive.
fn row_id(row: &Row) -> rusqlite::Result<RowId> {
    row.get(0).map(i64::cast_unsigned)
}

/// How many rows were changed.
fn execute(connection: &rusqlite::Connection, sql: &str, params: impl Params) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(params)
}

/// The one row, if there is one.
fn find<T>(
    connection: &rusqlite::Connection,
    sql: &str,
    params: impl Params,
    read: impl FnOnce(&Row) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    connection.prepare_cached(sql)?.query_one(params, read).optional()
}

/// All rows.
fn list<T>(
    connection: &rusqlite::Connection,
    sql: &str,
    params: impl Params,
    read: impl FnMut(&Row) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection.prepare_cached(sql)?.query_map(params, read)?.collect()
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        StoreError::Unavailable(error.to_string())
    }
}

// The queries that list. Each must come out of an index in its order, which a test holds.
const FRIENDS: &str = "SELECT User.id, name, state FROM Friend JOIN User ON User.id = friendid
                       WHERE userid = ?1 ORDER BY friendid";
const GROUPS: &str = "SELECT AllGroup.id, groupname, groupdesc FROM GroupUser JOIN AllGroup ON AllGroup.id = groupid
                      WHERE userid = ?1 ORDER BY groupid";
const LISTED: &str = "SELECT User.id, name, state, grouprole FROM GroupUser JOIN User ON User.id = userid
                      WHERE groupid = ?1 ORDER BY userid LIMIT ?2";
const MEMBERS: &str = "SELECT userid FROM GroupUser WHERE groupid = ?1 ORDER BY userid";
const PAGE: &str = "SELECT id, message FROM OfflineMessage WHERE userid = ?1 ORDER BY id";

/// One worker's: the queue for its writes, and a database connection for its reads.
struct SqliteConnection {
    path: Arc<Path>,
    queue: Queue,
    /// Opened when first used, and anew after a failure.
    reader: Option<rusqlite::Connection>,
}

impl SqliteConnection {
    fn read<T>(&mut self, read: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => open(&self.path, EXISTING, READER_CACHE)?,
        };
        let result = read(&reader)?;
        self.reader = Some(reader);
        Ok(result)
    }
}

impl Connection for SqliteConnection {
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.queue.submit(Work::Batch(batch.to_vec()))
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError> {
        self.read(|reader| {
            find(reader, "SELECT name, password FROM User WHERE id = ?1", [user], |row| {
                Ok(Account { name: row.get(0)?, password: row.get(1)? })
            })
        })
    }

    fn friends(&mut self, user: UserId) -> Result<Vec<Friend>, StoreError> {
        self.read(|reader| {
            list(reader, FRIENDS, [user], |row| Ok(Friend { id: row.get(0)?, name: row.get(1)?, state: state(row)? }))
        })
    }

    fn groups(&mut self, user: UserId) -> Result<Vec<Group>, StoreError> {
        self.read(|reader| {
            // One snapshot, so that a group's list and its count agree.
            let snapshot = reader.unchecked_transaction()?;
            let groups = list(&snapshot, GROUPS, [user], |row| {
                let id = row.get(0)?;
                let users = listed_members(&snapshot, id)?;
                let members = count_members(&snapshot, id, users.len())?;
                Ok(Group { id, groupname: row.get(1)?, groupdesc: row.get(2)?, users, members })
            })?;
            snapshot.commit()?;
            Ok(groups)
        })
    }

    fn members(&mut self, group: GroupId) -> Result<Option<Vec<UserId>>, StoreError> {
        self.read(|reader| {
            // Two statements, two snapshots; but a group that is there stays.
            if !group_exists(reader, group)? {
                return Ok(None);
            }
            list(reader, MEMBERS, [group], |row| row.get(0)).map(Some)
        })
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError> {
        self.read(|reader| {
            let mut statement = reader.prepare_cached(PAGE)?;
            let mut rows = statement.query([user])?;
            let (mut page, mut bytes) = (Page::default(), 0);
            while let Some(row) = rows.next()? {
                let message = row.get_ref(1)?.as_bytes()?;
                bytes += message.len();
                if bytes > max_bytes && !page.messages.is_empty() {
                    page.more = true;
                    break;
                }
                page.messages.push((row_id(row)?, message.into()));
            }
            Ok(page)
        })
    }
}

fn listed_members(reader: &rusqlite::Connection, group: GroupId) -> rusqlite::Result<Vec<Member>> {
    list(reader, LISTED, [group, LISTED_MEMBERS], |row| {
        let role = if row.get_ref(3)?.as_bytes()? == b"creator" { "creator" } else { "normal" };
        Ok(Member { id: row.get(0)?, name: row.get(1)?, state: state(row)?, role })
    })
}

/// How many members the group has; they need only be counted where the list was cut.
fn count_members(reader: &rusqlite::Connection, group: GroupId, listed: usize) -> rusqlite::Result<u32> {
    match u32::try_from(listed) {
        Ok(listed) if listed < LISTED_MEMBERS => Ok(listed),
        _ => reader
            .prepare_cached("SELECT count(*) FROM GroupUser WHERE groupid = ?1")?
            .query_one([group], |row| row.get(0)),
    }
}

/// `state`, the third column of whoever lists people.
fn state(row: &Row) -> rusqlite::Result<&'static str> {
    Ok(if row.get_ref(2)?.as_bytes()? == b"online" { "online" } else { "offline" })
}

/// What ails the disk: SQL that the writer runs before each round.
#[cfg(test)]
#[derive(Clone, Default)]
struct Fault(Arc<std::sync::Mutex<&'static str>>);

#[cfg(test)]
impl Fault {
    fn set(&self, sql: &'static str) {
        *self.0.lock().unwrap() = sql;
    }

    fn strike(&self, connection: &rusqlite::Connection) -> rusqlite::Result<()> {
        connection.execute_batch(&self.0.lock().unwrap())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crossbeam_channel::TryRecvError;

    use super::*;

    /// A store in a directory of its own, with one connection.
    struct Fixture {
        connection: Box<dyn Connection>,
        store: SqliteStore,
        directory: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            Self::at(tempfile::tempdir().unwrap())
        }

        fn at(directory: tempfile::TempDir) -> Self {
            let store = SqliteStore::open(&directory.path().join("chat.db"), Quotas::default()).unwrap();
            Fixture { connection: store.connection(), store, directory }
        }

        /// As after a restart of the server.
        fn reopen(self) -> Self {
            let Fixture { connection, store, directory } = self;
            drop((connection, store));
            Self::at(directory)
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("chat.db")
        }

        fn write(&mut self, batch: &[Write]) -> Vec<Outcome> {
            self.connection.write(batch).unwrap()
        }

        fn one(&mut self, write: Write) -> Outcome {
            let mut outcomes = self.write(&[write]);
            assert_eq!(outcomes.len(), 1);
            outcomes.remove(0)
        }

        fn user(&mut self, name: &str) -> UserId {
            match self.one(register(name)) {
                Outcome::Id(id) => id,
                other => panic!("{name}: {other:?}"),
            }
        }

        fn group(&mut self, creator: UserId, name: &str) -> GroupId {
            match self.one(create_group(creator, name)) {
                Outcome::Id(id) => id,
                other => panic!("{name}: {other:?}"),
            }
        }

        fn keep(&mut self, to: &[UserId], message: &str) -> Vec<Option<RowId>> {
            match self.one(keep(to, message)) {
                Outcome::Kept(kept) => kept
                    .into_iter()
                    .map(|kept| match kept {
                        Kept::Full(_) => None,
                        Kept::Stored(row) => Some(row),
                        Kept::NoUser | Kept::Elsewhere(_) => None,
                    })
                    .collect(),
                other => panic!("{other:?}"),
            }
        }

        fn page(&mut self, user: UserId, max_bytes: usize) -> (Vec<String>, bool) {
            let page = self.connection.page(user, max_bytes).unwrap();
            let text = |(_, message): &(RowId, Box<[u8]>)| String::from_utf8(message.to_vec()).unwrap();
            (page.messages.iter().map(text).collect(), page.more)
        }
    }

    fn register(name: &str) -> Write {
        Write::Register { name: name.into(), password: format!("secret of {name}") }
    }

    fn create_group(creator: UserId, name: &str) -> Write {
        Write::CreateGroup { creator, name: name.into(), description: format!("about {name}") }
    }

    fn claim_of(user: UserId) -> Write {
        Write::Claim { user, epoch: 1, past: None }
    }

    fn keep(to: &[UserId], message: &str) -> Write {
        let message: Arc<[u8]> = message.as_bytes().into();
        Write::Keep(to.iter().map(|&to| Parcel { to, messages: vec![message.clone()], past: None }).collect())
    }

    #[test]
    fn an_account_is_registered_once_and_its_password_replaced() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("Ann");
        let account = fixture.connection.account(ann).unwrap();
        assert_eq!(account, Some(Account { name: "Ann".into(), password: "secret of Ann".into() }));
        assert_eq!(fixture.one(register("Ann")), Outcome::Already);
        assert_eq!(fixture.one(Write::SetPassword { user: ann, password: "new".into() }), Outcome::Done);
        assert_eq!(fixture.connection.account(ann).unwrap().unwrap().password, "new");
        assert_eq!(fixture.connection.account(ann + 1).unwrap(), None);
        assert_eq!(fixture.write(&[]), []);
    }

    #[test]
    fn names_are_unique_without_regard_to_case_in_every_script() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("Ünïcødé Жора ΣΑΣ");
        assert_eq!(fixture.one(register("üNÏCØDÉ жОРА σας")), Outcome::Already);
        fixture.user("Unicode");
        fixture.group(ann, "Élan");
        assert_eq!(fixture.one(create_group(ann, "éLAN")), Outcome::Already);
        // The name is kept as it was given, and groups and users do not share theirs.
        assert_eq!(fixture.connection.account(ann).unwrap().unwrap().name, "Ünïcødé Жора ΣΑΣ");
        fixture.group(ann, "unicode");
    }

    #[test]
    fn an_account_is_claimed_by_one_until_it_is_given_back() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        let (claim, release) = (claim_of(ann), Write::Release { user: ann, epoch: 1 });
        assert_eq!(fixture.one(claim.clone()), Outcome::Done);
        assert_eq!(fixture.one(claim.clone()), Outcome::InUse(HERE));
        assert_eq!(fixture.one(release.clone()), Outcome::Done);
        assert_eq!(fixture.one(release), Outcome::Done);
        assert_eq!(fixture.one(claim.clone()), Outcome::Done);
        assert_eq!(fixture.one(claim_of(ann + 1)), Outcome::NoUser);
        fixture.store.release_all().unwrap();
        assert_eq!(fixture.one(claim), Outcome::Done);
    }

    #[test]
    fn friends_go_one_way_and_are_listed_by_id() {
        let mut fixture = Fixture::new();
        let [ann, bob, eve] = ["ann", "bob", "eve"].map(|name| fixture.user(name));
        let add = |friend| Write::AddFriend { user: ann, friend };
        assert_eq!(
            fixture.write(&[add(eve), add(bob), add(bob), add(eve + 1), claim_of(bob)]),
            [Outcome::Done, Outcome::Done, Outcome::Already, Outcome::NoUser, Outcome::Done]
        );
        let friends = fixture.connection.friends(ann).unwrap();
        assert_eq!(
            friends,
            [
                Friend { id: bob, name: "bob".into(), state: "online" },
                Friend { id: eve, name: "eve".into(), state: "offline" }
            ]
        );
        assert_eq!(fixture.connection.friends(bob).unwrap(), []);
    }

    #[test]
    fn a_group_has_its_creator_and_those_who_join() {
        let mut fixture = Fixture::new();
        let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
        let group = fixture.group(bob, "readers");
        let join = |group| Write::JoinGroup { user: ann, group };
        assert_eq!(
            fixture.write(&[join(group), join(group), join(group + 1), create_group(ann, "Readers")]),
            [Outcome::Done, Outcome::Already, Outcome::NoGroup, Outcome::Already]
        );
        assert_eq!(fixture.connection.members(group).unwrap(), Some(vec![ann, bob]));
        assert_eq!(fixture.connection.members(group + 1).unwrap(), None);
        let member = |id, name: &str, role| Member { id, name: name.into(), state: "offline", role };
        let listed = Group {
            id: group,
            groupname: "readers".into(),
            groupdesc: "about readers".into(),
            users: vec![member(ann, "ann", "normal"), member(bob, "bob", "creator")],
            members: 2,
        };
        let second = fixture.group(ann, "writers");
        let groups = fixture.connection.groups(ann).unwrap();
        assert_eq!(groups[0], listed);
        assert_eq!((groups.len(), groups[1].id), (2, second));
        assert_eq!(fixture.connection.groups(bob).unwrap(), [listed]);
    }

    #[test]
    fn a_large_group_lists_its_first_500_members_and_the_count_of_all() {
        let mut fixture = Fixture::new();
        let names: Vec<_> = (0..503).map(|n| register(&format!("user {n}"))).collect();
        let outcomes = fixture.write(&names);
        let users: Vec<_> = outcomes.iter().map(|o| if let Outcome::Id(id) = o { *id } else { 0 }).collect();
        let group = fixture.group(users[0], "all");
        let joins: Vec<_> = users[1..].iter().rev().map(|&user| Write::JoinGroup { user, group }).collect();
        fixture.write(&joins[3..]);
        let listed = |fixture: &mut Fixture| fixture.connection.groups(users[0]).unwrap().remove(0);
        assert_eq!((listed(&mut fixture).users.len(), listed(&mut fixture).members), (500, 500));
        fixture.write(&joins);
        let all = listed(&mut fixture);
        assert_eq!(all.members, 503);
        assert_eq!(all.users.iter().map(|user| user.id).collect::<Vec<_>>(), users[..500]);
        assert_eq!(fixture.connection.members(group).unwrap(), Some(users));
    }

    #[test]
    fn messages_are_paged_in_order_within_the_bytes_allowed() {
        let mut fixture = Fixture::new();
        let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
        for message in ["één", "two", "three"] {
            fixture.keep(&[ann, bob], message);
        }
        let all = ["één", "two", "three"].map(String::from).to_vec();
        assert_eq!(fixture.page(ann, usize::MAX), (all.clone(), false));
        assert_eq!(fixture.page(ann, 13), (all.clone(), false));
        assert_eq!(fixture.page(ann, 12), (all[..2].to_vec(), true));
        assert_eq!(fixture.page(ann, 7), (all[..1].to_vec(), true));
        // One at least, or a message larger than a page would never be delivered.
        assert_eq!(fixture.page(ann, 0), (all[..1].to_vec(), true));
        assert_eq!(fixture.page(bob + 1, 100), (vec![], false));
    }

    #[test]
    fn a_kept_message_has_a_row_for_each_recipient_with_an_account() {
        let mut fixture = Fixture::new();
        let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
        let rows = fixture.keep(&[bob, bob + 1, ann, bob], "hello");
        assert!(matches!(rows[..], [Some(first), None, Some(second), Some(third)] if first < second && second < third));
        let page = fixture.connection.page(bob, 100).unwrap();
        assert_eq!(page.messages.iter().map(|(row, _)| Some(*row)).collect::<Vec<_>>(), [rows[0], rows[3]]);
    }

    #[test]
    fn removal_is_exact_and_rows_are_never_used_again() {
        let mut fixture = Fixture::new();
        let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
        let rows: Vec<_> = ["1", "2", "3"].iter().map(|message| fixture.keep(&[ann], message)[0].unwrap()).collect();
        let remove = |user, rows: &[RowId]| Write::Remove { user, epoch: 1, rows: rows.to_vec() };
        assert_eq!(fixture.one(remove(bob, &rows)), Outcome::Done);
        assert_eq!(fixture.page(ann, 100).0, ["1", "2", "3"]);
        assert_eq!(fixture.one(remove(ann, &[rows[0], rows[2], rows[2] + 99, u64::MAX])), Outcome::Done);
        assert_eq!(fixture.page(ann, 100).0, ["2"]);
        let mut fixture = fixture.reopen();
        assert!(fixture.keep(&[ann], "4")[0].unwrap() > rows[2]);
        assert_eq!(fixture.page(ann, 100).0, ["2", "4"]);
    }

    #[test]
    fn the_lists_come_out_of_an_index_in_order() {
        let fixture = Fixture::new();
        let reader = open(&fixture.path(), EXISTING, READER_CACHE).unwrap();
        for sql in [FRIENDS, GROUPS, LISTED, MEMBERS, PAGE] {
            let explain = format!("EXPLAIN QUERY PLAN {sql}");
            let mut statement = reader.prepare(&explain).unwrap();
            // Its parameters are left unbound: the plan does not depend on them.
            let mut rows = statement.raw_query();
            let mut plan = Vec::new();
            while let Some(row) = rows.next().unwrap() {
                plan.push(row.get::<_, String>(3).unwrap());
            }
            // A scan reads the whole table; a sort would be a line of its own.
            assert!(!plan.is_empty() && plan.iter().all(|line| line.starts_with("SEARCH")), "{sql}: {plan:?}");
        }
    }

    #[test]
    fn a_restart_keeps_everything_and_nobody_online() {
        let mut fixture = Fixture::new();
        let [ann, bob] = ["ann", "bob"].map(|name| fixture.user(name));
        let group = fixture.group(ann, "readers");
        fixture.write(&[
            claim_of(bob),
            Write::AddFriend { user: ann, friend: bob },
            Write::JoinGroup { user: bob, group },
        ]);
        fixture.keep(&[ann], "hello");
        assert_eq!(fixture.connection.friends(ann).unwrap()[0].state, "online");

        let mut fixture = fixture.reopen();
        assert_eq!(fixture.connection.friends(ann).unwrap()[0].state, "offline");
        assert_eq!(fixture.connection.members(group).unwrap(), Some(vec![ann, bob]));
        assert_eq!(fixture.page(ann, 100), (vec!["hello".into()], false));
        assert_eq!(fixture.one(register("ANN")), Outcome::Already);
        assert_eq!(fixture.one(claim_of(bob)), Outcome::Done);
    }

    #[test]
    fn a_second_server_is_refused_until_the_first_is_gone() {
        let fixture = Fixture::new();
        let link = fixture.directory.path().join("link.db");
        std::os::unix::fs::symlink(fixture.path(), &link).unwrap();
        for path in [fixture.path(), link] {
            let error = SqliteStore::open(&path, Quotas::default()).err().unwrap();
            assert!(matches!(error, OpenError::InUse { .. }), "{error}");
            assert!(error.to_string().contains("chat.db.lock"), "{error}");
        }
        fixture.reopen();
    }

    #[test]
    fn what_is_not_this_servers_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("newer.db");
        rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 7).unwrap();
        let error = SqliteStore::open(&path, Quotas::default()).err().unwrap();
        assert!(matches!(error, OpenError::Newer { found: 7, .. }), "{error}");

        let path = directory.path().join("other.db");
        rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE User (x)").unwrap();
        let error = SqliteStore::open(&path, Quotas::default()).err().unwrap().to_string();
        assert!(error.contains("other.db") && error.contains("already exists"), "{error}");

        let path = directory.path().join("text.db");
        fs::write(&path, "not a database at all, but long enough to be taken for one".repeat(99)).unwrap();
        assert!(matches!(SqliteStore::open(&path, Quotas::default()).err().unwrap(), OpenError::Database { .. }));
        let error = SqliteStore::open(&directory.path().join("missing/chat.db"), Quotas::default()).err().unwrap();
        assert!(matches!(error, OpenError::File { .. }), "{error}");
    }

    #[test]
    fn batches_that_come_together_share_a_commit() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        let before = fixture.store.commits();
        let queue = &fixture.store.queue;
        // The writer comes by here with its first round, and has to wait.
        let gate = fixture.store.fault.0.lock().unwrap();
        thread::scope(|scope| {
            let write = || {
                let mut connection = fixture.store.connection();
                scope.spawn(move || connection.write(&[keep(&[ann], "hello")]).unwrap());
            };
            let (answer, _) = bounded(1);
            queue.0.send(Job { work: Work::Batch(vec![keep(&[ann], "hello")]), answer }).unwrap();
            wait_for(|| queue.0.is_empty());
            (0..8).for_each(|_| write());
            wait_for(|| queue.0.len() == 8);
            drop(gate);
        });
        assert_eq!(fixture.store.commits() - before, 2, "the first alone, then eight in one");
        assert_eq!(fixture.page(ann, usize::MAX).0.len(), 9);
    }

    #[test]
    fn every_batch_of_many_threads_is_done_once_and_in_its_order() {
        let mut fixture = Fixture::new();
        let users: Vec<_> = (0..8).map(|n| fixture.user(&n.to_string())).collect();
        thread::scope(|scope| {
            for &user in &users {
                let mut connection = fixture.store.connection();
                scope.spawn(move || {
                    for n in 0..50 {
                        connection.write(&[keep(&[user], &n.to_string())]).unwrap();
                        assert_eq!(connection.page(user, usize::MAX).unwrap().messages.len(), n + 1);
                    }
                });
            }
        });
        let expected: Vec<_> = (0..50).map(|n| n.to_string()).collect();
        for user in users {
            assert_eq!(fixture.page(user, usize::MAX).0, expected);
        }
    }

    fn wait_for(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition() {
            assert!(Instant::now() < deadline, "it did not come about");
            thread::yield_now();
        }
    }

    /// A fault strikes every round until it is mended; none of what it struck is there.
    fn fails_and_recovers(fault: &'static str, text: &str) {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        fixture.keep(&[ann], "before");
        fixture.store.fault.set(fault);
        for _ in 0..3 {
            // The first would fit; but a batch is done whole or not at all.
            let batch = [keep(&[ann], "small"), keep(&[ann; 100], &"x".repeat(4000))];
            let StoreError::Unavailable(error) = fixture.connection.write(&batch).unwrap_err();
            assert!(error.contains(text), "{error}");
            assert_eq!(fixture.page(ann, 100).0, ["before"], "reading goes on");
        }
        assert!(fault.contains("max_page_count") || fixture.store.release_all().is_err());
        fixture.store.fault.set("");
        fixture.keep(&[ann], "after");
        assert_eq!(fixture.page(ann, 100).0, ["before", "after"]);
        assert_eq!(fixture.reopen().page(ann, 100).0, ["before", "after"]);
    }

    #[test]
    fn a_full_disk_is_an_error_until_there_is_room() {
        fails_and_recovers("PRAGMA max_page_count = 20", "full");
    }

    #[test]
    fn a_read_only_disk_is_an_error_until_it_is_writable() {
        fails_and_recovers("PRAGMA query_only = ON", "readonly");
    }

    #[test]
    fn a_reader_that_cannot_open_the_file_tries_again() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        let elsewhere = sidecar(&fixture.path(), ".away");
        fs::rename(fixture.path(), &elsewhere).unwrap();
        let StoreError::Unavailable(error) = fixture.connection.account(ann).unwrap_err();
        assert!(error.contains("unable to open"), "{error}");
        assert!(!fixture.path().exists(), "an empty one was put in its place");
        fs::rename(&elsewhere, fixture.path()).unwrap();
        assert!(fixture.connection.account(ann).unwrap().is_some());
    }

    #[test]
    fn a_connection_outlives_the_store_without_hanging() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        let Fixture { mut connection, store, directory } = fixture;
        assert!(connection.account(ann).unwrap().is_some());
        drop(store);
        let StoreError::Unavailable(error) = connection.write(&[register("bob")]).unwrap_err();
        assert!(error.contains("closed"), "{error}");
        assert!(connection.account(ann).unwrap().is_some());
        drop(directory);
    }

    #[test]
    fn what_was_queued_before_the_end_is_done() {
        let fixture = Fixture::new();
        let (answer, _) = bounded(1);
        for n in 0..2 * ROUND_ROWS {
            let work = Work::Batch(vec![register(&format!("user {n}"))]);
            fixture.store.queue.0.send(Job { work, answer: answer.clone() }).unwrap();
        }
        let mut fixture = fixture.reopen();
        assert!(fixture.connection.account(2 * ROUND_ROWS as u32).unwrap().is_some());
    }

    #[test]
    fn the_log_is_bounded_while_readers_overlap_without_a_gap() {
        let mut fixture = Fixture::new();
        let ann = fixture.user("ann");
        let log = sidecar(&fixture.path(), "-wal");
        let size = || fs::metadata(&log).unwrap().len();
        let two_megabytes = [keep(&[ann; 32], &"x".repeat(1 << 16))];
        let [one, other] = [(); 2].map(|()| open(&fixture.path(), EXISTING, READER_CACHE).unwrap());
        let begin = |reader: &rusqlite::Connection| reader.execute_batch("BEGIN; SELECT count(*) FROM User").unwrap();
        let end = |reader: &rusqlite::Connection| reader.execute_batch("COMMIT").unwrap();
        begin(&one);
        // A reader that stays keeps the log from being emptied, but nobody from writing.
        while size() < 2 * WAL_LIMIT {
            fixture.write(&two_megabytes);
        }
        let store = &fixture.store;
        let connection = &mut fixture.connection;
        let (stop, stopped) = bounded::<()>(0);
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut readers = [one, other];
                while stopped.try_recv() == Err(TryRecvError::Empty) {
                    // Each stays past a commit, so that none of them has it all in sight.
                    let (commits, begun) = (store.commits(), Instant::now());
                    while store.commits() == commits && begun.elapsed() < CHECKPOINT_BUSY / 20 {
                        thread::yield_now();
                    }
                    begin(&readers[1]);
                    end(&readers[0]);
                    readers.swap(0, 1);
                }
            });
            let mut sizes = Vec::new();
            for _ in 0..80 {
                connection.write(&two_megabytes).unwrap();
                sizes.push(size());
            }
            drop(stop);
            assert!(sizes[40..].iter().all(|&size| size < 3 * WAL_LIMIT), "{sizes:?}");
        });
    }
}
