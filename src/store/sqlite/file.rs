//! The file: where it may be, its lock, whether it is still the one that was opened, and
//! connections to it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, FileType, Metadata, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;

use super::OpenError;

/// How long to wait for someone else at the file, such as an administrator's shell.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// For every connection. `FULL` syncs the log at each commit: what is acked survives a power cut.
const PRAGMAS: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA wal_autocheckpoint = 2048;
    PRAGMA journal_size_limit = 8388608;
";

/// Page caches, in KiB (that is what the minus says). The writer's holds the upper pages of every
/// index; a reader's only has to last for one query, the kernel caches the rest.
pub(super) const WRITER_CACHE: &str = "PRAGMA cache_size = -8192";
pub(super) const READER_CACHE: &str = "PRAGMA cache_size = -256";

/// Before anything else in a file that is made: it can shrink.
pub(super) const SHRINKABLE: &str = "PRAGMA auto_vacuum = INCREMENTAL";

/// The suffixes of the files that SQLite keeps next to a database: the log, and its index in shared memory.
const BESIDE: [&str; 2] = ["-wal", "-shm"];
/// The longest suffix that is ever appended to the database's name.
const LONGEST_SUFFIX: &str = "-journal";
/// The longest name of a file, in bytes.
const NAME_MAX: usize = 255;
/// What SQLite takes for a path, in bytes.
const PATH_MAX: usize = 511;

/// `path` with `suffix` appended: the lock file and SQLite's own are named in this way.
pub(super) fn sidecar(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// A path as it can stand in one line, whatever is in it.
pub(super) struct Shown<'a>(pub &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for c in self.0.to_string_lossy().chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

/// Where the database is.
pub(super) struct Place {
    /// As the user named it.
    pub given: PathBuf,
    /// The same from the root: its links are followed anew at each look.
    absolute: PathBuf,
    /// Where these led at the start. SQLite's own files and the lock stand beside it, so that a link
    /// to the database has the same ones as the database.
    pub path: PathBuf,
}

impl Place {
    /// Finds out whether a database can be at `given`, and touches nothing.
    ///
    /// # Errors
    /// [`OpenError::Path`]: what is there instead, and what to do.
    pub fn find(given: &Path) -> Result<Place, OpenError> {
        let no = |what: String| OpenError::Path { given: given.to_owned(), what };
        if let Some(what) = what_else(given.as_os_str().as_bytes()) {
            return Err(no(what.into()));
        }
        let absolute =
            std::path::absolute(given).map_err(|error| no(format!("{error}; write the whole path, from the root")))?;
        let names_a_folder = matches!(given.as_os_str().as_bytes(), [.., b'/'] | [.., b'/', b'.'] | b".");
        let (Some(folder), Some(name), false) = (absolute.parent(), absolute.file_name(), names_a_folder) else {
            return Err(no("this names a folder; name a file in it, such as chat.db".into()));
        };
        let room = NAME_MAX - LONGEST_SUFFIX.len();
        if name.len() > room {
            return Err(no(format!("the file's name has {} bytes; take one of at most {room}", name.len())));
        }
        let path = match fs::metadata(&absolute) {
            Ok(found) if found.is_dir() => {
                return Err(no("this is a folder; name a file in it, such as chat.db".into()));
            }
            Ok(found) if !found.is_file() => {
                let kind = kind(found.file_type());
                return Err(no(format!("this is {kind}, which cannot hold a database; name a regular file")));
            }
            Ok(_) => fs::canonicalize(&absolute),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Ok(target) = fs::read_link(&absolute) {
                    let target = Shown(&target);
                    return Err(no(format!(
                        "this is a link to {target}, which does not exist; remove it, or make that"
                    )));
                }
                if !folder.is_dir() {
                    let folder = Shown(folder);
                    return Err(no(format!("the folder {folder} does not exist; make it, or name another path")));
                }
                fs::canonicalize(folder).map(|folder| folder.join(name))
            }
            Err(error) => Err(error),
        };
        let path = path.map_err(|error| no(format!("{error}; {}", advice(&error))))?;
        let log = sidecar(&path, "-wal");
        let size = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
        if size(&path) == 0 && size(&log) > 0 {
            let log = Shown(&log);
            return Err(no(format!(
                "there is no database, but the log of one, {log}, in which its last writes may be; put the database \
                 back beside it, or remove the log"
            )));
        }
        let room = PATH_MAX - LONGEST_SUFFIX.len();
        if path.as_os_str().len() > room {
            let length = path.as_os_str().len();
            return Err(no(format!("the whole path has {length} bytes; take one of at most {room}")));
        }
        Ok(Place { given: given.to_owned(), absolute, path })
    }

    /// Where it is, and where it led at the start, if that is not the same.
    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&*self.path].into_iter().chain((self.absolute != self.path).then_some(&*self.absolute))
    }

    /// What of SQLite's own files is there.
    pub fn beside(&self) -> impl Iterator<Item = PathBuf> {
        BESIDE.map(|suffix| sidecar(&self.path, suffix)).into_iter().filter(|path| path.exists())
    }
}

/// What other programs would take for something else than a path.
fn what_else(given: &[u8]) -> Option<&'static str> {
    match given {
        b"" => Some("this names no file; name one, such as sqlite:chat.db"),
        b":memory:" => Some("what is in memory alone ends with the process; name a file, such as sqlite:chat.db"),
        [b'f', b'i', b'l', b'e', b':', ..] => Some("this is a URI; write the path alone, such as sqlite:chat.db"),
        [b'/', b'/', b'/', ..] => None,
        [b'/', b'/', ..] => {
            Some("two slashes begin the name of a host; write sqlite:PATH, or sqlite:/PATH from the root")
        }
        _ => {
            let query = given.iter().position(|byte| *byte == b'?').map(|at| &given[at..]);
            query?.contains(&b'=').then_some("a path takes no options; leave away what begins with ?")
        }
    }
}

fn kind(found: FileType) -> &'static str {
    if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => "let this user write there, or name another path",
        ErrorKind::ReadOnlyFilesystem => "name a path on a disk that can be written",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on the disk",
        _ => "name another path",
    }
}

/// Takes the lock that one server at a time can have. It goes with the file, and so with the
/// process, however that ends. Whether the lock file is new is told as well.
pub(super) fn lock(place: &Place) -> Result<(File, Leftovers), OpenError> {
    let path = sidecar(&place.path, ".lock");
    let no = |error: io::Error| OpenError::Path {
        given: place.given.clone(),
        what: format!("cannot lock {}: {error}; {}", Shown(&path), advice(&error)),
    };
    loop {
        let mut leftovers = Leftovers::default();
        let file = match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => {
                leftovers.add(path.clone());
                file
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // Whatever it is, opening it is not waited for.
                match File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path) {
                    Ok(file) => file,
                    // Another start, which failed, has removed it in between.
                    Err(error) if error.kind() == ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {
                        continue;
                    }
                    Err(error) => return Err(no(error)),
                }
            }
            Err(error) => return Err(no(error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                leftovers.stay();
                return Err(OpenError::InUse { given: place.given.clone(), lock: path });
            }
            Err(TryLockError::Error(error)) => return Err(no(error)),
        }
        // A lock on a file that no longer has a name excludes no other process.
        let named = FileId::at(&path).ok();
        if named.is_some() && named == file.metadata().ok().map(|found| FileId::of(&found)) {
            return Ok((file, leftovers));
        }
        leftovers.stay();
    }
}

/// Files that a start has made. They are removed again if it fails: while the lock is held, so that no other process
/// uses them.
#[derive(Default)]
pub(super) struct Leftovers(Vec<PathBuf>);

impl Leftovers {
    pub fn add(&mut self, path: PathBuf) {
        self.0.push(path);
    }

    /// The start has succeeded, or the files belong to another process.
    pub fn stay(&mut self) {
        self.0.clear();
    }

    /// The database and all that SQLite puts beside it.
    pub fn add_database(&mut self, place: &Place) {
        for suffix in ["", LONGEST_SUFFIX].into_iter().chain(BESIDE) {
            self.add(sidecar(&place.path, suffix));
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        // The lock file, which came first, goes last.
        for path in self.0.iter().rev() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Which file it is, wherever it is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(found: &Metadata) -> FileId {
        FileId { device: found.dev(), inode: found.ino() }
    }

    fn at(path: &Path) -> io::Result<FileId> {
        fs::metadata(path).map(|found| FileId::of(&found))
    }
}

/// Knows the files that were opened, and so whether one was moved, deleted or replaced.
///
/// SQLite does not look: it goes on with the files that it has open, and what it writes there is
/// lost with them. They stay the same for as long as the writer has a connection.
pub(super) struct Watch {
    database: FileId,
    /// SQLite's own.
    beside: [(PathBuf, FileId); 2],
}

impl Watch {
    /// For a database that has been opened and written to.
    ///
    /// # Errors
    /// Which of the files is not there.
    pub fn new(place: &Place) -> Result<Watch, String> {
        let database = FileId::at(&place.path).map_err(|error| format!("it was moved at once ({error})"))?;
        let [log, index] = BESIDE.map(|suffix| {
            let path = sidecar(&place.path, suffix);
            id_beside(&path).map(|id| (path, id))
        });
        Ok(Watch { database, beside: [log?, index?] })
    }

    /// Looks whether all is as it was: one system call for each file, which is nothing beside a
    /// commit.
    ///
    /// # Errors
    /// What became of the file.
    pub fn look(&self, place: &Place) -> Result<(), String> {
        for path in place.paths() {
            match fs::metadata(path) {
                Ok(found) if FileId::of(&found) != self.database => return Err("another file is in its place".into()),
                Ok(found) if found.len() == 0 => return Err(EMPTIED.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Err("it was moved or deleted".into()),
                Err(error) => return Err(format!("it cannot be reached any more ({error})")),
            }
        }
        for (path, known) in &self.beside {
            if id_beside(path)? != *known {
                return Err(format!("another file is in the place of {}", Shown(path)));
            }
        }
        Ok(())
    }
}

/// What [`Watch::look`] says of a file without anything in it.
pub(super) const EMPTIED: &str = "it was emptied";

fn id_beside(path: &Path) -> Result<FileId, String> {
    FileId::at(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{} was moved or deleted", Shown(path)),
        _ => format!("{} cannot be reached any more ({error})", Shown(path)),
    })
}

/// The file is not created: if it was removed, an empty one in its place would be of no use.
/// Readers open it for writing too, since a reader may be the one to recover the log.
const EXISTING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE;

/// One more connection to the database. When it is closed, the log stays: emptying and removing it
/// is for [`remove_log`], when the path is known to be the database's still.
pub(super) fn open(path: &Path, cache: &str) -> rusqlite::Result<rusqlite::Connection> {
    let connection = open_with(path, EXISTING, cache)?;
    keep_log(&connection, true)?;
    Ok(connection)
}

/// The same for the first connection, which may have to make the file. When it is closed, the log
/// goes, so that a start that fails leaves none.
pub(super) fn open_first(path: &Path, is_new: bool) -> rusqlite::Result<rusqlite::Connection> {
    if !is_new {
        return open_with(path, EXISTING, WRITER_CACHE);
    }
    open_with(path, EXISTING | OpenFlags::SQLITE_OPEN_CREATE, &format!("{SHRINKABLE}; {WRITER_CACHE}"))
}

fn open_with(path: &Path, flags: OpenFlags, setup: &str) -> rusqlite::Result<rusqlite::Connection> {
    // No mutex: a connection stays with one thread at a time, which Rust sees to.
    let connection = rusqlite::Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(setup)?;
    connection.execute_batch(PRAGMAS)?;
    Ok(connection)
}

/// Whether the log stays where it is when this connection is closed, even if it was the last one.
pub(super) fn keep_log(connection: &rusqlite::Connection, keep: bool) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop)
}

/// Brings all that is in the log into the database, and makes the log an empty file. Whether it did:
/// a reader that is in the middle of it is waited for as long as the connection is patient.
pub(super) fn empty_log(connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
    let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    Ok(busy == 0)
}

/// Closes the last connection, so that everything is in the database and no other file is left next to it.
///
/// # Errors
/// Why something does.
pub(super) fn remove_log(connection: rusqlite::Connection, place: &Place) -> Result<(), String> {
    let emptied = empty_log(&connection).map_err(|error| error.to_string());
    let closed = keep_log(&connection, false).and_then(|()| connection.close().map_err(|(_, error)| error));
    let closed = closed.map_err(|error| error.to_string());
    let left: Vec<_> = place.beside().map(|path| Shown(&path).to_string()).collect();
    match (emptied, closed) {
        _ if left.is_empty() => Ok(()),
        (Ok(true), Ok(())) => Err(format!(
            "everything is in it, but another process has it open, and so {} stayed; remove them when that has ended",
            left.join(" and ")
        )),
        (Ok(false), Ok(())) => Err(format!(
            "another process reads it, and so the last writes stayed in {}; they belong together until the next start",
            left.join(" and ")
        )),
        (Err(error), _) | (_, Err(error)) => Err(format!(
            "the last writes stayed in {} ({error}); they belong together until the next start",
            left.join(" and ")
        )),
    }
}
