//! Returning space: pages that deleted rows have left free are returned to the file system.
//!
//! By default SQLite keeps them for later writes, for ever. With `auto_vacuum = INCREMENTAL` it can truncate the file
//! by a given number of pages; so the writer does that in steps of a few milliseconds
//! while no job waits for it, and one step a second while it is never idle.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::statvfs;

use super::file::{SHRINKABLE, Shown, empty_log};

/// It begins with more free pages than this, 4 MiB, and more than a part of the file: a few that come
/// and go are best left for what is written next.
const ENOUGH: u32 = 1024;
const PART: u32 = 16;
/// It ends with this number of free pages, 1 MiB.
const SPARE: u32 = 256;
/// How long a step may take: a write that comes meanwhile waits for it.
const STEP: Duration = Duration::from_millis(2);
/// The most pages of one step: 1 MiB.
const MOST_PAGES: u32 = 256;
/// The pause between the steps of a writer that is never idle.
const BUSY_PAUSE: Duration = Duration::from_secs(1);
/// A file from before this was thought of has to be written anew, once, before it can shrink. With
/// more than this in it that takes too long for a start: 1 GiB.
const MOST_REWRITTEN: u64 = 1 << 30;

/// Decides how much is given back when.
pub(super) struct Shrinker {
    /// There may be pages to give back.
    wanted: bool,
    /// There are, and some went already.
    begun: bool,
    /// The next step's pages: fewer after one that took long.
    pages: u32,
    last: Instant,
}

/// What came of a [`Shrinker::step`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There was nothing to do.
    Nothing,
    /// Some pages were cut off, and there may be more.
    More,
    /// All were: the file itself shrinks when the log is brought into it.
    Last,
}

impl Shrinker {
    pub fn new() -> Shrinker {
        Shrinker { wanted: true, begun: false, pages: MOST_PAGES / 4, last: Instant::now() }
    }

    /// Something was written.
    pub fn wake(&mut self) {
        self.wanted = true;
    }

    /// Whether a step is due although others wait.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.wanted && now - self.last >= BUSY_PAUSE
    }

    /// Gives some pages back, if there are any.
    pub fn step(&mut self, connection: &Connection) -> Step {
        if !self.wanted {
            return Step::Nothing;
        }
        let began = Instant::now();
        let cut = self.cut(connection).unwrap_or_else(|error| {
            log::debug!("no space is given back for now: {error}");
            0
        });
        self.last = Instant::now();
        let took = self.last - began;
        if took > STEP {
            self.pages = (self.pages / 2).max(1);
        } else if took < STEP / 2 {
            self.pages = (self.pages * 2).min(MOST_PAGES);
        }
        self.wanted = cut > 0;
        match (std::mem::replace(&mut self.begun, self.wanted), self.wanted) {
            (_, true) => Step::More,
            (true, false) => Step::Last,
            (false, false) => Step::Nothing,
        }
    }

    /// Cuts some free pages off; how many.
    fn cut(&self, connection: &Connection) -> rusqlite::Result<u32> {
        let free = number(connection, "freelist_count")?;
        if !self.begun && free <= ENOUGH.max(number(connection, "page_count")? / PART) {
            return Ok(0);
        }
        let pages = free.saturating_sub(SPARE).min(self.pages);
        if pages == 0 {
            return Ok(0);
        }
        // Where the pages are is nothing that a power cut could lose: they go to the disk with the next
        // commit. The log keeps the order.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let cut = cut_off(connection, pages);
        connection.pragma_update(None, "synchronous", "FULL")?;
        cut?;
        Ok(free.saturating_sub(number(connection, "freelist_count")?))
    }
}

fn cut_off(connection: &Connection, pages: u32) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.raw_query();
    // A row for each page: a statement that is not stepped to its end cuts off one.
    while rows.next()?.is_some() {}
    Ok(())
}

fn number(connection: &Connection, pragma: &str) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, pragma, |row| row.get(0))
}

/// Sees to it that the database can shrink. One that cannot is written anew; where that is out of
/// the question, it stays as it is, and the log says what to do.
pub(super) fn make_shrinkable(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    let number =
        |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0).map(i64::cast_unsigned));
    if number("auto_vacuum")? == 2 {
        return Ok(());
    }
    let bytes = number("page_count")?.saturating_sub(number("freelist_count")?) * number("page_size")?;
    let path_shown = Shown(path);
    let by_hand = "it keeps its size until that is done by hand: stop the server, then run \
                   sqlite3 FILE 'PRAGMA auto_vacuum = INCREMENTAL; VACUUM'";
    if bytes > MOST_REWRITTEN {
        log::warn!("{path_shown} is too large to be written anew at a start, so that it could shrink; {by_hand}");
        return Ok(());
    }
    // It is there twice for a while, and a third time in the log.
    let room = path.parent().and_then(|folder| statvfs(folder).ok());
    let room = room.map_or(u64::MAX, |room| room.f_bavail.saturating_mul(room.f_frsize));
    if room / 3 < bytes {
        log::warn!("{path_shown} cannot be written anew, so that it could shrink: the disk is too full; {by_hand}");
        return Ok(());
    }
    let began = Instant::now();
    let rewritten = connection.execute_batch(SHRINKABLE).and_then(|()| connection.execute_batch("VACUUM"));
    match rewritten.and_then(|()| empty_log(connection)) {
        Ok(_) => {
            log::info!("{path_shown} was written anew in {} ms, so that it can shrink", began.elapsed().as_millis())
        }
        Err(error) => log::warn!("{path_shown} cannot be written anew, so that it could shrink ({error}); {by_hand}"),
    }
    Ok(())
}
