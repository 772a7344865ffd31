//! Gives keys to names that were written without one, by C++ servers or before there were keys.
//!
//! The unique index over `namekey` keeps names apart, and `name`'s own, which compares bytes, keeps C++
//! servers from exact doubles. If two rows have the same name already, the one that is found first has
//! its key, and `namesake` of the other is the first one's id: so it is not found again, except at a start,
//! since an administrator may have renamed one of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use mysql::prelude::Queryable;

use super::link::{Failure, Gate, Link, Session, column, is_duplicate};
use super::sql::{NAMES, Named, Sql};
use super::text;
use crate::store::names::{self, NameKey};

/// Two rows with the same name, which is logged when it is committed.
pub(super) struct Namesake {
    table: String,
    id: u64,
    name: String,
    owner: u64,
}

impl Namesake {
    pub fn warn(&self) {
        names::warn_of_same(&self.table, self.id, &self.name, self.owner);
    }
}

/// At a start: all that have none, a few in each transaction.
pub(super) fn fill_all(link: &mut Link, gate: &Gate, sql: &Sql) -> Result<(), Failure> {
    for named in [&sql.users, &sql.groups_by_name] {
        let (mut last, mut filled) = (0, 0);
        loop {
            let (ids, namesakes) = link.run(gate, |session, _| {
                session.conn.query_drop("START TRANSACTION")?;
                let ids: Vec<u64> = session.list(&named.keyless, (last,), |row| column(row, 0))?;
                let namesakes = fill(session, named, &ids)?;
                session.conn.query_drop("COMMIT")?;
                Ok((ids, namesakes))
            })?;
            namesakes.iter().for_each(Namesake::warn);
            filled += ids.len() - namesakes.len();
            match ids.last() {
                Some(id) => last = *id,
                None => break,
            }
        }
        if filled > 0 {
            log::info!("{filled} names of {} have got their keys", named.table);
        }
    }
    Ok(())
}

/// Within a transaction, before it inserts a name: those that C++ servers have inserted meanwhile.
pub(super) fn fill_unseen(session: &mut Session, named: &Named) -> Result<Vec<Namesake>, Failure> {
    let mut namesakes = Vec::new();
    loop {
        let ids: Vec<u64> = session.list(&named.unseen, (), |row| column(row, 0))?;
        namesakes.extend(fill(session, named, &ids)?);
        if ids.len() < NAMES {
            return Ok(namesakes);
        }
    }
}

/// Gives these rows their keys, in the order of their ids.
fn fill(session: &mut Session, named: &Named, ids: &[u64]) -> Result<Vec<Namesake>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    // One that was renamed by hand has left its old name to the next.
    let mut ids = ids.to_vec();
    ids.extend(session.list_text(&named.namesakes_of(&ids), |row| column::<u64>(row, 0))?);
    // Another node may have been quicker with some of them.
    let rows: Vec<(u64, String)> =
        session.list_text(&named.lock(&ids), |row| Ok((column(row, 0)?, text::read_string(row, 1)?)))?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let keys: Vec<NameKey> = rows.iter().map(|(_, name)| names::hash(name)).collect();
    let owners = session.list_text(&named.owners(&keys), |row| {
        Ok((column::<Vec<u8>>(row, 1)?.try_into().unwrap_or_default(), column::<u64>(row, 0)?))
    })?;
    let mut owners: HashMap<NameKey, u64> = owners.into_iter().collect();
    let (mut keyed, mut namesakes) = (Vec::new(), Vec::new());
    for ((id, name), key) in rows.into_iter().zip(keys) {
        match owners.entry(key) {
            Entry::Vacant(free) => {
                free.insert(id);
                keyed.push((id, key));
            }
            Entry::Occupied(owner) => {
                namesakes.push(Namesake { table: named.table.clone(), id, name, owner: *owner.get() });
            }
        }
    }
    let same: Vec<_> = namesakes.iter().map(|namesake| (namesake.id, namesake.owner)).collect();
    session.conn.query_drop(named.fill(&keyed, &same)).map_err(|error| match is_duplicate(&error) {
        // Another server has just registered it: it is found when it is looked for again.
        true => Failure::Conflict(super::link::plain(&error)),
        false => error.into(),
    })?;
    Ok(namesakes)
}
