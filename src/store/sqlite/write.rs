//! What each write does.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Transaction, params};

use super::{execute, find, group_exists, user_exists};
use crate::store::quota::Room;
use crate::store::{Claim, GroupId, Holder, Kept, NodeId, Outcome, Parcel, Quota, Quotas, UserId, Write};

/// Who has an account that is online: a file has one server, so nobody asks which.
pub(super) const HERE: Holder = Holder::Node(Claim { node: NodeId(0), epoch: 0 });

pub(super) fn release_all(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    execute(connection, "UPDATE User SET state = 'offline' WHERE state = 'online'", []).map(drop)
}

/// Does one write. What a client can bring about is an outcome; an error is the disk's, and ends
/// the transaction.
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
