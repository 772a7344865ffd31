//! The embedded store: one SQLite file, for one server process.
//!
//! All writes go through one thread, `store-writer`. It takes everything that is queued, does it
//! in one transaction, and answers each batch once that is on disk: a commit costs an fsync, which
//! many batches share in this way. Readers are connections of their own, which in WAL mode neither
//! wait for the writer nor delay it.
//!
//! ```text
//!   worker --batch--> queue --round--> store-writer --commit--> file --answers--> workers
//!   worker --------------------- its own read connection -----> file
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | the store: how it is opened, and how it ends |
//! | `file.rs` | the file, its lock, whether it is still there, and a connection to it |
//! | `migrate.rs` | the tables, and what brings them up to date |
//! | `writer.rs` | the one thread that writes |
//! | `round.rs` | what it is asked to do, and what is done together |
//! | `write.rs` | what each write does |
//! | `shrink.rs` | returning space |
//! | `read.rs` | a worker's connection, and what it reads |

mod file;
mod migrate;
mod read;
mod round;
mod shrink;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::unbounded;
use rusqlite::{ErrorCode, OptionalExtension, Params, Row};

use super::{Connection, GroupId, Membership, NodeId, Outcome, Quotas, Store, StoreError, UserId};
use file::{Place, Shown, Watch};
use migrate::{MIGRATIONS, migrate};
use read::{Slot, SqliteConnection};
use round::{Queue, Work};
use write::release_all;
#[cfg(test)]
use writer::Fault;
use writer::Writer;

/// Why the database cannot be opened. Each text names the path as it was given, and says once what
/// is wrong with it and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A second server at one file.
    #[error("sqlite:{} is in use by another server, which holds {}", Shown(.given), Shown(.lock))]
    InUse { given: PathBuf, lock: PathBuf },
    /// No database can be there.
    #[error("sqlite:{}: {what}", Shown(.given))]
    Path { given: PathBuf, what: String },
    /// The file is of a later version.
    #[error(
        "sqlite:{} is a database of version {found}, and this server knows none above {}: a newer server made it",
        Shown(.given), MIGRATIONS.len()
    )]
    Newer { given: PathBuf, found: i64 },
    /// SQLite would not open it.
    #[error("sqlite:{}: {what}", Shown(.given))]
    Database { given: PathBuf, what: String },
    #[error("cannot start the writer thread")]
    Thread(#[source] io::Error),
}

impl OpenError {
    fn database(place: &Place, error: &rusqlite::Error) -> OpenError {
        let advice = match error.sqlite_error_code() {
            Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                "; let this user write to it and to its folder"
            }
            Some(ErrorCode::NotADatabase) => "; name another path, or move this file away",
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "; end the other process that uses it",
            Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) => {
                "; look whether the disk is full, or a limit of size (ulimit -f) is reached"
            }
            Some(ErrorCode::DatabaseCorrupt) => "; put a backup in its place",
            _ => "",
        };
        OpenError::Database { given: place.given.clone(), what: format!("{}{advice}", sqlite_text(error)) }
    }
}

/// The text of SQLite's error, without the path that it may contain: the message that quotes it names the path.
fn sqlite_text(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::SqliteFailure(cause, _) if cause.code == ErrorCode::CannotOpen => "unable to open it".into(),
        error => error.to_string(),
    }
}

/// A SQLite file, open for this process alone.
///
/// Dropping it does what is queued, and closes it, as [`Store::close`] does.
pub struct SqliteStore {
    shared: Arc<Shared>,
    queue: Queue,
    commits: Arc<AtomicU64>,
    writer: Option<JoinHandle<()>>,
    /// Keeps every other process away for as long as it is open.
    _lock: File,
    #[cfg(test)]
    fault: Fault,
}

/// What the writer and all readers know.
struct Shared {
    place: Place,
    /// The files that are there since the start.
    watch: Watch,
    /// The file is not there any more, or is another one: why nothing is read or written until a
    /// restart.
    gone: OnceLock<StoreError>,
    closed: AtomicBool,
    /// The readers' connections, which the end closes.
    readers: Mutex<Vec<Arc<Slot>>>,
}

impl Shared {
    fn readers(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes, and logs once, what became of the file.
    fn lose(&self, what: &str) -> StoreError {
        let error = self.gone_since(what);
        if self.gone.set(error.clone()).is_ok() {
            log::error!("{error}");
        }
        error
    }

    fn gone_since(&self, what: &str) -> StoreError {
        let path = Shown(&self.place.path);
        let advice = "nothing is read or written until a restart, when the right file is in its place";
        StoreError::Gone(format!("{path}: {what} while this server runs; {advice}").into())
    }

    /// Whether the files are still those that were opened.
    fn look(&self) -> Result<(), String> {
        self.watch.look(&self.place)
    }

    /// The error that replaces all answers, once there can be none any more.
    fn refusal(&self) -> Result<(), StoreError> {
        match self.gone.get() {
            Some(gone) => Err(gone.clone()),
            None if self.closed.load(Ordering::Acquire) => Err(closed()),
            None => Ok(()),
        }
    }
}

fn closed() -> StoreError {
    StoreError::Unavailable("the store is closed".into())
}

impl SqliteStore {
    /// Opens the database at `path`, or creates it, and sets everyone offline. `node`: this life of this process.
    ///
    /// # Errors
    /// See [`OpenError`]. A start that fails leaves no file behind that was not there before.
    pub fn open(path: &Path, node: NodeId, quotas: Quotas) -> Result<SqliteStore, OpenError> {
        let place = Place::find(path)?;
        let (lock, mut leftovers) = file::lock(&place)?;
        let is_new = !place.path.exists();
        if is_new {
            leftovers.add_database(&place);
        }
        let (connection, watch) = first_connection(&place, is_new)?;

        let shared = Arc::new(Shared {
            place,
            watch,
            gone: OnceLock::new(),
            closed: AtomicBool::new(false),
            readers: Mutex::default(),
        });
        let (sender, receiver) = unbounded();
        let writer = Writer::new(Arc::clone(&shared), connection, node, quotas);
        let store = SqliteStore {
            shared,
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
        };
        leftovers.stay();
        Ok(store)
    }

    /// How many transactions were committed. Batches written over this is how many share one.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

/// Opens the database, brings it up to date, and notes which file it is.
fn first_connection(place: &Place, is_new: bool) -> Result<(rusqlite::Connection, Watch), OpenError> {
    let no = |error: rusqlite::Error| OpenError::database(place, &error);
    let mut connection = file::open_first(&place.path, is_new).map_err(no)?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).map_err(no)?;
    if mode != "wal" {
        let what = "its file system cannot hold a database with a write-ahead log; name a path on a local disk".into();
        return Err(OpenError::Path { given: place.given.clone(), what });
    }
    let found = migrate(&mut connection).map_err(no)?;
    if !usize::try_from(found).is_ok_and(|found| found <= MIGRATIONS.len()) {
        return Err(OpenError::Newer { given: place.given.clone(), found });
    }
    shrink::make_shrinkable(&connection, &place.path).map_err(no)?;
    release_all(&connection).map_err(no)?;
    let watch = Watch::new(place).map_err(|what| OpenError::Path { given: place.given.clone(), what })?;
    file::keep_log(&connection, true).map_err(no)?;
    Ok((connection, watch))
}

impl Store for SqliteStore {
    fn connection(&self) -> Box<dyn Connection> {
        Box::new(SqliteConnection::new(Arc::clone(&self.shared), self.queue.clone()))
    }

    fn release_all(&self) -> Result<(), StoreError> {
        match self.queue.submit(Work::ReleaseAll)?.pop() {
            Some(Outcome::Refused(why)) => Err(StoreError::Unavailable(why)),
            _ => Ok(()),
        }
    }

    fn membership(&self) -> Option<Box<dyn Membership>> {
        None
    }

    /// The readers' connections first, so that the writer's is the last one, with which SQLite
    /// removes the log.
    fn close(&self) -> Result<(), StoreError> {
        self.shared.closed.store(true, Ordering::Release);
        // One that is reading is waited for; the next read finds that the store is closed.
        self.shared.readers().iter().for_each(|reader| drop(reader.lock().take()));
        self.queue.submit(Work::Stop).map(drop)
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // A caller that wants to know the outcome has closed it before.
        let _ = self.close();
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            log::error!("the thread store-writer had panicked");
        }
    }
}

fn user_exists(connection: &rusqlite::Connection, user: UserId) -> rusqlite::Result<bool> {
    exists(connection, "SELECT 1 FROM User WHERE id = ?1", [user])
}

fn group_exists(connection: &rusqlite::Connection, group: GroupId) -> rusqlite::Result<bool> {
    exists(connection, "SELECT 1 FROM AllGroup WHERE id = ?1", [group])
}

fn exists(connection: &rusqlite::Connection, sql: &str, params: impl Params) -> rusqlite::Result<bool> {
    connection.prepare_cached(sql)?.exists(params)
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
