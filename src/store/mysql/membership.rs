//! What nodes that share the database see of each other: the membership, and the mark that keeps a node that was
//! taken for dead from writing.
//!
//! A node has two rows. Each of its transactions locks the one with the mark for sharing; a look locks the one
//! with the counter, and reads the mark. Marking a node locks the counter's row first, and then the
//! mark's, for which it waits until the node's open transactions are over: so a look waits for none of them.
//! If a node stops in the middle of a transaction, the database ends it; see `link.rs`.

use std::sync::Arc;

use mysql::Row;
use mysql::prelude::Queryable;

use super::link::{Failure, Link, Session, column};
use super::shared::Shared;
use super::sql::Sql;
use crate::store::{Entry, Membership, NodeId, StoreError, UserId};

/// Begins a transaction of this node: locks its mark until the end, and runs a `first` statement, in one round
/// trip. Returns the rows of that statement.
///
/// # Errors
/// [`Failure::Marked`]; the transaction is left open.
pub(super) fn begin<T>(
    session: &mut Session,
    sql: &Sql,
    first: Option<&str>,
    mut read: impl FnMut(&mut Row) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let statements =
        [sql.mark.as_deref(), first].into_iter().flatten().fold(String::new(), |all, one| all + "; " + one);
    let mut marked = sql.mark.is_some();
    let found = session.begin(&statements, |statement, row| match statement {
        0 if sql.mark.is_some() => {
            marked = column(row, 0)?;
            Ok(None)
        }
        _ => read(row).map(Some),
    })?;
    match marked {
        true => Err(Failure::Marked),
        false => Ok(found.into_iter().flatten().collect()),
    }
}

/// Checks whether this node is marked, and never waits.
pub(super) fn check(session: &mut Session, shared: &Shared) -> Result<(), Failure> {
    if shared.sql.mark.is_none() {
        return Ok(());
    }
    match session.list_text(&shared.sql.glance(shared.node), |row| column(row, 0))?[..] {
        [false] => Ok(()),
        _ => Err(Failure::Marked),
    }
}

/// The number of users that are set offline or online at a time, so that other transactions do not wait for long.
const USERS: usize = 500;

/// The membership, by a connection of its own.
pub(super) struct MySqlRoll {
    shared: Arc<Shared>,
    link: Link,
}

impl MySqlRoll {
    pub fn new(shared: &Arc<Shared>) -> MySqlRoll {
        MySqlRoll { shared: Arc::clone(shared), link: Link::default() }
    }

    /// Sets this node's users offline, and strikes the node off.
    pub fn leave(&mut self) -> Result<(), StoreError> {
        let Shared { gate, sql, node, .. } = &*self.shared;
        loop {
            let left = self.link.run(gate, |session, in_doubt| {
                match begin(session, sql, None, |_| Ok(())) {
                    // By an earlier try, which got no answer.
                    Err(Failure::Marked) if in_doubt => {
                        session.conn.query_drop("ROLLBACK")?;
                        return Ok(true);
                    }
                    begun => begun?,
                };
                let (_, all) = free_some(session, sql, *node)?;
                if all && sql.mark.is_some() {
                    strike(session, sql, *node)?;
                }
                session.commit("", |_| Ok(()))?;
                Ok(all)
            })?;
            if left {
                return Ok(());
            }
        }
    }
}

/// Within a transaction, sets some users of a node offline: how many, and whether those were all.
///
/// They are found first, and then changed by their ids: a change that had to find them by the index of nodes would
/// lock that before the rows, unlike all other statements.
fn free_some(session: &mut Session, sql: &Sql, node: NodeId) -> Result<(u64, bool), Failure> {
    let users: Vec<UserId> = session.list(&sql.claimed_by, (node.0, USERS), |row| column(row, 0))?;
    if users.is_empty() {
        return Ok((0, true));
    }
    session.conn.query_drop(sql.free(node, &users))?;
    Ok((session.conn.affected_rows(), users.len() < USERS))
}

/// Within a transaction, deletes a node's rows.
fn strike(session: &mut Session, sql: &Sql, node: NodeId) -> Result<(), Failure> {
    for strike in sql.strike(Some(node)) {
        session.conn.query_drop(strike)?;
    }
    Ok(())
}

impl Membership for MySqlRoll {
    fn enlist(&mut self) -> Result<(), StoreError> {
        let Shared { gate, sql, node, .. } = &*self.shared;
        Ok(self.link.run(gate, |session, _| {
            let marked = session.begin(&sql.enlist(*node), |_, row| column(row, 0))?;
            match marked[..] {
                [false] => session.commit("", |_| Ok(())).map(drop),
                _ => Err(Failure::Marked),
            }
        })?)
    }

    fn look(&mut self) -> Result<Vec<NodeId>, StoreError> {
        let Shared { gate, sql, node, .. } = &*self.shared;
        Ok(self.link.run(gate, |session, _| {
            let (mut marked, mut own) = (Vec::new(), true);
            session.begin(&sql.look(*node), |_, row| {
                let (found, is_marked) = (NodeId(column(row, 0)?), column(row, 1)?);
                if found == *node {
                    own = is_marked;
                } else {
                    marked.push(found);
                }
                Ok(())
            })?;
            if own {
                return Err(Failure::Marked);
            }
            session.commit("", |_| Ok(()))?;
            Ok(marked)
        })?)
    }

    fn glance(&mut self) -> Result<(), StoreError> {
        let shared = &*self.shared;
        Ok(self.link.run(&shared.gate, |session, _| check(session, shared))?)
    }

    fn nodes(&mut self) -> Result<Vec<Entry>, StoreError> {
        let Shared { gate, sql, node, .. } = &*self.shared;
        Ok(self.link.run(gate, |session, _| {
            session.list_text(&sql.nodes(*node), |row| {
                Ok(Entry {
                    node: NodeId(column(row, 0)?),
                    looks: column::<Option<u64>>(row, 1)?.unwrap_or_default(),
                    marked: column(row, 2)?,
                    has_claims: column(row, 3)?,
                })
            })
        })?)
    }

    fn mark(&mut self, node: NodeId, looks: u64) -> Result<bool, StoreError> {
        let Shared { gate, sql, .. } = &*self.shared;
        Ok(self.link.run(gate, |session, _| {
            let there: Vec<u64> = begin(session, sql, Some(&sql.lock_looks(node)), |row| column(row, 0))?;
            match there[..] {
                [there] if there != looks => {
                    session.conn.query_drop("ROLLBACK")?;
                    Ok(false)
                }
                _ => {
                    session.conn.query_drop(sql.set_mark(node))?;
                    session.commit("", |_| Ok(()))?;
                    Ok(true)
                }
            }
        })?)
    }

    fn free(&mut self, node: NodeId) -> Result<u64, StoreError> {
        let Shared { gate, sql, .. } = &*self.shared;
        let mut freed = 0;
        loop {
            let (now, all) = self.link.run(gate, |session, _| {
                begin(session, sql, Some(&sql.lock_looks(node)), |_| Ok(()))?;
                let mark: Vec<bool> = session.list_text(&sql.lock_mark(node), |row| column(row, 0))?;
                if mark == [false] {
                    session.conn.query_drop("ROLLBACK")?;
                    return Ok((0, true));
                }
                let (now, all) = free_some(session, sql, node)?;
                if all {
                    strike(session, sql, node)?;
                }
                session.commit("", |_| Ok(()))?;
                Ok((now, all))
            })?;
            freed += now;
            if all {
                return Ok(freed);
            }
        }
    }

    fn reassert(&mut self) -> Result<u64, StoreError> {
        let Shared { gate, sql, node, hidden, .. } = &*self.shared;
        let (mut online, mut last) = (0, 0);
        loop {
            let (found, now) = self.link.run(gate, |session, _| {
                let read = |row: &mut Row| Ok((column::<UserId>(row, 0)?, column::<u64>(row, 1)?));
                let found = session.list(&sql.robbed, (node.0, last, USERS), read)?;
                // Checked only now: a user that was claimed meanwhile is hidden by now, or has been shown.
                let robbed: Vec<_> =
                    found.iter().copied().filter(|(user, epoch)| !hidden.is_hidden(*user, *epoch)).collect();
                if robbed.is_empty() {
                    return Ok((found, 0));
                }
                begin(session, sql, None, |_| Ok(()))?;
                session.conn.query_drop(sql.reassert(*node, &robbed))?;
                let now = session.conn.affected_rows();
                session.commit("", |_| Ok(()))?;
                Ok((found, now))
            })?;
            online += now;
            match found.last() {
                Some((user, _)) if found.len() == USERS => last = *user,
                _ => return Ok(online),
            }
        }
    }
}
