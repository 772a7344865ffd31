//! A worker's connection, and what it reads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Row;

use super::file::{READER_CACHE, open};
use super::round::{Queue, Work};
use super::{Shared, find, group_exists, list};
use crate::store::{
    Account, Connection, Friend, Group, GroupId, Loaded, Member, Outcome, Page, RowId, StoreError, UserId, Write,
};
use crate::wire::reply::LISTED_MEMBERS;

// The queries that list. Each must come out of an index in its order, which a test holds.
pub(super) const FRIENDS: &str = "SELECT User.id, name, state FROM Friend JOIN User ON User.id = friendid
                       WHERE userid = ?1 ORDER BY friendid";
pub(super) const GROUPS: &str =
    "SELECT AllGroup.id, groupname, groupdesc FROM GroupUser JOIN AllGroup ON AllGroup.id = groupid
                      WHERE userid = ?1 ORDER BY groupid";
pub(super) const LISTED: &str = "SELECT User.id, name, state, grouprole FROM GroupUser JOIN User ON User.id = userid
                      WHERE groupid = ?1 ORDER BY userid LIMIT ?2";
pub(super) const MEMBERS: &str = "SELECT userid FROM GroupUser WHERE groupid = ?1 ORDER BY userid";
pub(super) const PAGE: &str = "SELECT id, message FROM OfflineMessage WHERE userid = ?1 ORDER BY id";
pub(super) const DIALECT: &str = "SELECT dialect FROM User WHERE id = ?1";

/// A reader's connection to the file, where the store's end can close it.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<rusqlite::Connection>>);

impl Slot {
    pub fn lock(&self) -> MutexGuard<'_, Option<rusqlite::Connection>> {
        // A panic ends the process.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's: the queue for its writes, and a database connection for its reads.
pub(super) struct SqliteConnection {
    shared: Arc<Shared>,
    queue: Queue,
    /// Opened when first used, and anew after a failure.
    reader: Arc<Slot>,
}

impl SqliteConnection {
    pub fn new(shared: Arc<Shared>, queue: Queue) -> SqliteConnection {
        let reader = Arc::<Slot>::default();
        shared.readers().push(Arc::clone(&reader));
        SqliteConnection { shared, queue, reader }
    }

    fn read<T>(&mut self, read: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut slot = self.reader.lock();
        let reader = slot.take();
        // After the lock is taken: so either closing the store finds this reader, or the reader finds the store closed.
        self.shared.refusal()?;
        let reader = match reader {
            Some(reader) => reader,
            None => {
                // Another file must not be opened, and its contents are no answer. The writer reports it in a
                // moment.
                let look = || self.shared.look().map_err(|what| self.shared.gone_since(&what));
                look()?;
                let reader = open(&self.shared.place.path, READER_CACHE)?;
                look()?;
                reader
            }
        };
        let result = read(&reader)?;
        *slot = Some(reader);
        Ok(result)
    }
}

impl Drop for SqliteConnection {
    fn drop(&mut self) {
        self.shared.readers().retain(|reader| !Arc::ptr_eq(reader, &self.reader));
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

    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        let (friends, groups) = (self.friends(user)?, self.groups(user)?);
        let page = self.page(user, max_bytes)?;
        let dialect = self.read(|reader| find(reader, DIALECT, [user], |row| row.get(0)))?.flatten();
        Ok(Loaded { friends, groups, page, dialect })
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

/// `state`, the third column of every list of users.
fn state(row: &Row) -> rusqlite::Result<&'static str> {
    Ok(if row.get_ref(2)?.as_bytes()? == b"online" { "online" } else { "offline" })
}

/// SQLite's keys are signed, and those it gives out are positive.
fn row_id(row: &Row) -> rusqlite::Result<RowId> {
    row.get(0).map(i64::cast_unsigned)
}
