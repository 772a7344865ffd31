//! What each write does.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Row, Transaction, params};

use super::{execute, exists, group_exists, user_exists};
use crate::store::names;
use crate::store::quota::Room;
use crate::store::{Claim, GroupId, Holder, Kept, NodeId, Outcome, Parcel, Quota, Quotas, UserId, Write};

/// Who has an account that is online: a file has one server, so nobody asks which.
pub(super) const HERE: Holder = Holder::Node(Claim { node: NodeId(0), epoch: 0 });

pub(super) fn release_all(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    execute(connection, "UPDATE User SET state = 'offline' WHERE state = 'online'", []).map(drop)
}

/// Does one write. What a client can bring about is an outcome; an error is the disk's, or the
/// database refuses the write.
pub(super) fn apply(
    transaction: &Transaction,
    quotas: Quotas,
    room: &mut Room,
    write: &Write,
) -> rusqlite::Result<Outcome> {
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

/// The id of a new row. One that no client could name is an error, and so there will be no such row.
fn new_id(row: &Row) -> rusqlite::Result<u32> {
    let id = row.get(0)?;
    let named = i32::try_from(id).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, id))?;
    Ok(named.cast_unsigned())
}

fn register(transaction: &Transaction, name: &str, password: &str) -> rusqlite::Result<Outcome> {
    let key = names::hash(name);
    // Looked at first: an INSERT that finds its name taken could use up an id.
    if exists(transaction, "SELECT 1 FROM User WHERE namekey = ?1", [key])? {
        return Ok(Outcome::Already);
    }
    let sql = "INSERT INTO User (name, password, namekey) VALUES (?1, ?2, ?3) RETURNING id";
    let id = transaction.prepare_cached(sql)?.query_one(params![name, password, key], new_id)?;
    Ok(Outcome::Id(id))
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
    if !user_exists(transaction, friend)? {
        return Ok(Outcome::NoUser);
    }
    if exists(transaction, "SELECT 1 FROM Friend WHERE userid = ?1 AND friendid = ?2", [user, friend])? {
        return Ok(Outcome::Already);
    }
    if is_full(transaction, quotas.friends, FRIENDS_OF, user)? {
        return Ok(Outcome::Full(Quota::Friends));
    }
    execute(transaction, "INSERT INTO Friend (userid, friendid) VALUES (?1, ?2)", [user, friend])?;
    Ok(Outcome::Done)
}

// What a quota counts: as many rows as need be, of a user or a group.
const FRIENDS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM Friend WHERE userid = ?1 LIMIT ?2)";
const GROUPS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM GroupUser WHERE userid = ?1 LIMIT ?2)";
const MEMBERS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM GroupUser WHERE groupid = ?1 LIMIT ?2)";
const MESSAGES_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM OfflineMessage WHERE userid = ?1 LIMIT ?2)";

/// Whether there are as many as may be.
fn is_full(transaction: &Transaction, quota: Option<u32>, count: &str, of: u32) -> rusqlite::Result<bool> {
    let Some(quota) = quota else { return Ok(false) };
    let there: u32 = transaction.prepare_cached(count)?.query_one([of, quota], |row| row.get(0))?;
    Ok(there >= quota)
}

fn create_group(
    transaction: &Transaction,
    quotas: Quotas,
    creator: UserId,
    name: &str,
    description: &str,
) -> rusqlite::Result<Outcome> {
    let key = names::hash(name);
    if exists(transaction, "SELECT 1 FROM AllGroup WHERE namekey = ?1", [key])? {
        return Ok(Outcome::Already);
    }
    if is_full(transaction, quotas.groups, GROUPS_OF, creator)? {
        return Ok(Outcome::Full(Quota::Groups));
    }
    let sql = "INSERT INTO AllGroup (groupname, groupdesc, namekey) VALUES (?1, ?2, ?3) RETURNING id";
    let group = transaction.prepare_cached(sql)?.query_one(params![name, description, key], new_id)?;
    let sql = "INSERT INTO GroupUser (groupid, userid, grouprole) VALUES (?1, ?2, 'creator')";
    execute(transaction, sql, [group, creator])?;
    Ok(Outcome::Id(group))
}

fn join_group(transaction: &Transaction, quotas: Quotas, user: UserId, group: GroupId) -> rusqlite::Result<Outcome> {
    if !group_exists(transaction, group)? {
        return Ok(Outcome::NoGroup);
    }
    if exists(transaction, "SELECT 1 FROM GroupUser WHERE groupid = ?1 AND userid = ?2", [group, user])? {
        return Ok(Outcome::Already);
    }
    if is_full(transaction, quotas.members, MEMBERS_OF, group)? {
        return Ok(Outcome::Full(Quota::Members));
    }
    if is_full(transaction, quotas.groups, GROUPS_OF, user)? {
        return Ok(Outcome::Full(Quota::Groups));
    }
    execute(transaction, "INSERT INTO GroupUser (groupid, userid) VALUES (?1, ?2)", [group, user])?;
    Ok(Outcome::Done)
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
