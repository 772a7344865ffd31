//! The file, its lock, and a connection to it.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::OpenFlags;

use super::OpenError;

/// How long to wait for someone else at the file, such as an administrator's shell.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// For every connection. `FULL` syncs the log at each commit: what is acked survives a power cut.
pub(super) const PRAGMAS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 2048;
    PRAGMA journal_size_limit = 8388608;
";

/// Page caches, in KiB (that is what the minus says). The writer's holds the upper pages of every
/// index; a reader's only has to last for one query, the kernel caches the rest.
pub(super) const WRITER_CACHE: &str = "PRAGMA cache_size = -8192";
pub(super) const READER_CACHE: &str = "PRAGMA cache_size = -256";

/// `path` with `suffix` behind it: the lock file and SQLite's own are named so.
pub(super) fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Takes the lock that one server at a time can have. It goes with the file, and so with the
/// process, however that ends.
pub(super) fn lock(database: &Path) -> Result<File, OpenError> {
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
pub(super) const EXISTING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE;

pub(super) fn open(path: &Path, flags: OpenFlags, cache: &str) -> rusqlite::Result<rusqlite::Connection> {
    // No mutex: a connection stays with one thread at a time, which Rust sees to.
    let connection = rusqlite::Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(PRAGMAS)?;
    connection.execute_batch(cache)?;
    Ok(connection)
}
