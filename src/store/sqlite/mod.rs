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
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | the store: how it is opened, and how it ends |
//! | `file.rs` | the file, its lock, and a connection to it |
//! | `migrate.rs` | the tables, and what brings them up to date |
//! | `writer.rs` | the one thread that writes |
//! | `write.rs` | what each write does |
//! | `read.rs` | a worker's connection, and what it reads |

mod file;
mod migrate;
mod read;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::unbounded;
use rusqlite::{OpenFlags, OptionalExtension, Params, Row};

use super::quota::Room;
use super::{Connection, GroupId, Quotas, Roll, Store, StoreError, UserId};
use file::{EXISTING, WRITER_CACHE, lock, open};
use migrate::{MIGRATIONS, migrate};
use read::SqliteConnection;
use write::release_all;
#[cfg(test)]
use writer::Fault;
use writer::{Queue, WAL_LIMIT, Work, Writer};

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
