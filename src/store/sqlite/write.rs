//! What each write does.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Row, Transaction, params};

use super::{execute, exists, find, group_exists, user_exists};
use crate::store::names;
use crate::store::quota::Room;
use crate::store::{Claim, GroupId, Holder, Kept, NodeId, Outcome, Parcel, Quota, Quotas, UserId, Write};

/// What the writer needs for each write.
pub(super) struct Cx {
    /// The id of this life of this process.
    node: NodeId,
    quotas: Quotas,
    pub room: Room,
}

impl Cx {
    pub fn new(node: NodeId, quotas: Quotas) -> Cx {
        Cx { node, quotas, room: Room::new(quotas.offline) }
    }
}

pub(super) fn release_all(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    let sql = "UPDATE User SET state = 'offline', node = NULL, epoch = NULL
               WHERE state = 'online' OR node IS NOT NULL";
    execute(connection, sql, []).map(drop)
}

/// Does one write. What a client can bring about is an outcome; an error is the disk's, or the
/// database refuses the write.
pub(super) fn apply(transaction: &Transaction, cx: &mut Cx, write: &Write) -> rusqlite::Result<Outcome> {
    let Cx { node, quotas, .. } = *cx;
    match write {
        Write::Register { name, password } => register(transaction, name, password),
        Write::SetPassword { user, password } => {
            execute(transaction, "UPDATE User SET password = ?2 WHERE id = ?1", params![user, password])?;
            Ok(Outcome::Done)
        }
        Write::SetDialect { user, dialect } => {
            execute(transaction, "UPDATE User SET dialect = ?2 WHERE id = ?1", params![user, dialect])?;
            Ok(Outcome::Done)
        }
        Write::Claim { user, epoch, past } => claim(transaction, *user, Claim { node, epoch: *epoch }, *past),
        // There are no C++ nodes here.
        Write::Show { .. } => Ok(Outcome::Done),
        Write::Release { user, epoch } => {
            let sql = "UPDATE User SET state = 'offline', node = NULL, epoch = NULL
                       WHERE id = ?1 AND node = ?2 AND epoch = ?3";
            execute(transaction, sql, params![user, node.0.cast_signed(), epoch.cast_signed()])?;
            Ok(Outcome::Done)
        }
        Write::AddFriend { user, friend } => add_friend(transaction, quotas, *user, *friend),
        Write::CreateGroup { creator, name, description } => {
            create_group(transaction, quotas, *creator, name, description)
        }
        Write::JoinGroup { user, group } => join_group(transaction, quotas, *user, *group),
        Write::Keep(parcels) => {
            parcels.iter().map(|parcel| keep(transaction, cx, parcel)).collect::<Result<_, _>>().map(Outcome::Kept)
        }
        Write::Remove { user, epoch, rows } => {
            if holder(transaction, *user)? != Some(Some(Claim { node, epoch: *epoch })) {
                return Ok(Outcome::Lost);
            }
            cx.room.forget(*user);
            for row in rows {
                let sql = "DELETE FROM OfflineMessage WHERE id = ?1 AND userid = ?2";
                execute(transaction, sql, params![row.cast_signed(), user])?;
            }
            Ok(Outcome::Done)
        }
    }
}

/// The claim by which a user is taken, if there is one; `None`: there is no such account. `state` is only for people
/// that read the file.
fn holder(transaction: &Transaction, user: UserId) -> rusqlite::Result<Option<Option<Claim>>> {
    find(transaction, "SELECT node, epoch FROM User WHERE id = ?1", [user], |row| {
        let (node, epoch): (Option<i64>, Option<i64>) = (row.get(0)?, row.get(1)?);
        Ok(node
            .map(|node| Claim { node: NodeId(node.cast_unsigned()), epoch: epoch.unwrap_or_default().cast_unsigned() }))
    })
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

fn claim(transaction: &Transaction, user: UserId, mine: Claim, past: Option<Holder>) -> rusqlite::Result<Outcome> {
    match holder(transaction, user)? {
        None => Ok(Outcome::NoUser),
        Some(Some(other)) if other == mine => Ok(Outcome::Done),
        Some(Some(other)) if Some(Holder::Node(other)) != past => Ok(Outcome::InUse(Holder::Node(other))),
        Some(_) => {
            let sql = "UPDATE User SET state = 'online', node = ?2, epoch = ?3 WHERE id = ?1";
            execute(transaction, sql, params![user, mine.node.0.cast_signed(), mine.epoch.cast_signed()])?;
            Ok(Outcome::Done)
        }
    }
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

// What a quota counts: rows of a user or a group, up to a limit.
const FRIENDS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM Friend WHERE userid = ?1 LIMIT ?2)";
const GROUPS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM GroupUser WHERE userid = ?1 LIMIT ?2)";
const MEMBERS_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM GroupUser WHERE groupid = ?1 LIMIT ?2)";
const MESSAGES_OF: &str = "SELECT count(*) FROM (SELECT 1 FROM OfflineMessage WHERE userid = ?1 LIMIT ?2)";

/// Whether the quota is reached.
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
    let joined = |already| Outcome::Joined { already, nodes: Vec::new() };
    if !group_exists(transaction, group)? {
        return Ok(Outcome::NoGroup);
    }
    if exists(transaction, "SELECT 1 FROM GroupUser WHERE groupid = ?1 AND userid = ?2", [group, user])? {
        return Ok(joined(true));
    }
    if is_full(transaction, quotas.members, MEMBERS_OF, group)? {
        return Ok(Outcome::Full(Quota::Members));
    }
    if is_full(transaction, quotas.groups, GROUPS_OF, user)? {
        return Ok(Outcome::Full(Quota::Groups));
    }
    execute(transaction, "INSERT INTO GroupUser (groupid, userid) VALUES (?1, ?2)", [group, user])?;
    Ok(joined(false))
}

fn keep(transaction: &Transaction, cx: &mut Cx, parcel: &Parcel) -> rusqlite::Result<Kept> {
    let Some(holder) = holder(transaction, parcel.to)? else { return Ok(Kept::NoUser) };
    let other = holder.filter(|claim| claim.node != cx.node).map(Holder::Node);
    if let Some(other) = other
        && parcel.past != Some(other)
    {
        return Ok(Kept::Elsewhere(other));
    }
    let room = &mut cx.room;
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
    let first = first.unwrap_or_default();
    Ok(if other.is_some() { Kept::Past(first) } else { Kept::Stored(first) })
}
