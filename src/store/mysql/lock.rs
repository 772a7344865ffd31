//! Whether one server alone, or the nodes of one cluster, use the database.
//!
//! A server that is alone sets all users offline when it starts, and knows nothing of the users of other servers. So it
//! must not share a database with any other; and a cluster must not share one with another cluster, which
//! has its own Redis and so would take the nodes of the first for dead. The claims in the tables cannot show that: a
//! server that has crashed has left some there, and must not exclude others. `GET_LOCK` can, which ends with its
//! connection:
//!
//! | lock | held by |
//! | --- | --- |
//! | `chat-server alone` | the server that is alone |
//! | `chat-server member 0`, `1`, … | the nodes of a cluster, one each |
//! | `chat-server node N` | the node of a cluster that has the claims of N |
//!
//! Each takes its own lock first, and then looks for the other's, so that of two that start at once at least one
//! sees the other. The names include that of the database, since locks belong to the database server. The connection
//! that holds them does nothing else; the database ends it soon after its node falls silent.

use std::time::{Duration, Instant};

use mysql::Opts;
use mysql::prelude::Queryable;

use super::link::{Failure, Session};
use super::migrate::{OpenError, database, place};
use crate::store::{NodeId, StoreError};

/// After this number of seconds of silence the database ends the connection, and the lock with it.
const SILENCE: u64 = 6;
/// How long to wait at the start for a server that has just ended.
const WAIT: Duration = Duration::from_secs(3);
/// A lock that is still held by this node's own lost connection must be free after this time.
const GHOST: Duration = Duration::from_secs(4 * SILENCE);
/// The highest number of nodes of a cluster that a server can see that is to be alone.
const MEMBERS: u32 = 64;

const ALONE: &str = "alone";

/// A lock's name, as an expression: at most 64 characters.
fn name(what: &str) -> String {
    format!("CONCAT('chat-server {what} ', LEFT(MD5(DATABASE()), 16))")
}

fn member(number: u32) -> String {
    format!("member {number}")
}

fn of_node(node: NodeId) -> String {
    format!("node {node}")
}

/// Takes a lock, if it is free.
fn take(session: &mut Session, what: &str) -> Result<bool, Failure> {
    let taken: Option<Option<i64>> = session.conn.query_first(format!("SELECT GET_LOCK({}, 0)", name(what)))?;
    Ok(taken.flatten() == Some(1))
}

/// The connection that holds a lock.
fn holder(session: &mut Session, what: &str) -> Result<Option<u64>, Failure> {
    let holder: Option<Option<u64>> = session.conn.query_first(format!("SELECT IS_USED_LOCK({})", name(what)))?;
    Ok(holder.flatten())
}

/// From now on the connection is used each second, and the database ends it if it is not.
fn watched() -> String {
    format!("SET SESSION wait_timeout = {SILENCE}")
}

/// A node's locks, and the connection that holds them. They end with it.
pub struct Lock {
    opts: Opts,
    node: NodeId,
    alone: bool,
    session: Option<Session>,
    /// Whether [`Lock::check`] has begun: until then, for as long as a start takes, the connection is silent.
    watched: bool,
    /// Lost connections that may still hold them, and since when the database could be reached without a break: it
    /// notices the end of a lost connection with a delay.
    ghosts: Vec<u64>,
    reached: Instant,
}

/// Why they were not taken.
enum Refusal {
    /// What uses the database.
    InUse(String),
    /// Nothing is known.
    Failed(Failure),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal::Failed(failure)
    }
}

impl From<mysql::Error> for Refusal {
    fn from(error: mysql::Error) -> Self {
        Refusal::Failed(error.into())
    }
}

impl Lock {
    /// Takes the locks for a node that starts.
    ///
    /// # Errors
    /// Another server has the database, or it is away.
    pub(super) fn take(opts: Opts, node: NodeId, alone: bool) -> Result<Lock, OpenError> {
        let (begun, address, database) = (Instant::now(), place(&opts), database(&opts));
        let mut lock = Lock { opts, node, alone, session: None, watched: false, ghosts: Vec::new(), reached: begun };
        loop {
            match lock.connect() {
                Ok(()) => return Ok(lock),
                Err(Refusal::InUse(_)) if begun.elapsed() < WAIT => std::thread::sleep(WAIT / 30),
                Err(Refusal::InUse(by)) => return Err(OpenError::InUse { address, database, by }),
                Err(Refusal::Failed(failure)) => return Err(failure.into()),
            }
        }
    }

    fn connect(&mut self) -> Result<(), Refusal> {
        let opened = Session::open(self.opts.clone());
        let mut session = opened.inspect_err(|_| self.reached = Instant::now())?;
        match self.take_all(&mut session) {
            Ok(()) => {
                self.session = Some(session);
                self.ghosts.clear();
                Ok(())
            }
            Err(refusal) => {
                if let Refusal::Failed(_) = refusal {
                    self.ghosts.push(u64::from(session.conn.connection_id()));
                }
                Err(refusal)
            }
        }
    }

    fn take_all(&self, session: &mut Session) -> Result<(), Refusal> {
        if self.watched {
            session.conn.query_drop(watched())?;
        }
        if self.alone { self.take_alone(session) } else { self.take_membership(session) }
    }

    fn take_alone(&self, session: &mut Session) -> Result<(), Refusal> {
        self.must_take(session, ALONE, "another server that runs without --redis")?;
        let members: Vec<String> =
            (0..MEMBERS).map(|number| format!("IS_USED_LOCK({})", name(&member(number)))).collect();
        let found: Option<Option<u64>> =
            session.conn.query_first(format!("SELECT COALESCE({})", members.join(", ")))?;
        self.look_at(found.flatten(), "servers that run with --redis")
    }

    fn take_membership(&self, session: &mut Session) -> Result<(), Refusal> {
        self.must_take(session, &of_node(self.node), "another server of the same number")?;
        for number in 0..MEMBERS {
            if take(session, &member(number))? {
                break;
            }
        }
        self.look_at(holder(session, ALONE)?, "a server that runs without --redis")
    }

    fn must_take(&self, session: &mut Session, what: &str, by: &str) -> Result<(), Refusal> {
        while !take(session, what)? {
            self.look_at(holder(session, what)?, by)?; // no holder: it was released a moment ago
        }
        Ok(())
    }

    /// Fails if another server has a lock. `holder`: the connection that has it.
    fn look_at(&self, holder: Option<u64>, by: &str) -> Result<(), Refusal> {
        let Some(holder) = holder else { return Ok(()) };
        // After a restart of the database another connection may have that number.
        if self.ghosts.contains(&holder) && self.reached.elapsed() < GHOST {
            return Err(Failure::Lost("this node's lost connection still holds the lock".to_owned()).into());
        }
        Err(Refusal::InUse(format!("{by} (connection {holder} of the database)")))
    }
}

impl Lock {
    /// Whether they are held; after the connection was lost they are taken again. To be called each second.
    /// Blocks for at most a few seconds.
    ///
    /// # Errors
    /// Another server has the database by now. The text is for the log: which one, and what to do.
    pub fn check(&mut self) -> Result<(), String> {
        if let Some(session) = &mut self.session {
            let answer = if self.watched { session.conn.ping() } else { session.conn.query_drop(watched()) };
            self.watched = true;
            let Err(error) = answer else { return Ok(()) };
            log::warn!("the lock that excludes others from the database is lost: {}", Failure::from(error));
            self.ghosts.push(u64::from(session.conn.connection_id()));
            self.reached = Instant::now();
            self.session = None;
        }
        match self.connect() {
            Ok(()) => {
                log::info!("the lock that excludes others from the database is held again");
                Ok(())
            }
            Err(Refusal::Failed(_)) => Ok(()), // the workers report that the database is away
            Err(Refusal::InUse(by)) => Err(format!(
                "its lock on the database {} at {} was lost, and that is in use by {by} now; servers that share a \
                 database need the same --redis",
                database(&self.opts),
                place(&self.opts),
            )),
        }
    }

    /// Those of `nodes` that hold their locks on the database, and so are alive.
    ///
    /// # Errors
    /// The database is away.
    pub fn living(&mut self, nodes: &[NodeId]) -> Result<Vec<NodeId>, StoreError> {
        let Some(session) = &mut self.session else { return Ok(Vec::new()) };
        let mut living = Vec::new();
        for node in nodes {
            if holder(session, &of_node(*node))?.is_some() {
                living.push(*node);
            }
        }
        Ok(living)
    }
}
