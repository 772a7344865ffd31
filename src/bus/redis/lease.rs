//! Who lives: a key for each node, which its keeper renews and which runs out by itself.
//!
//! A key that is missing says that its node is dead only while Redis itself can be trusted. All
//! keys are gone after a restart of Redis; all have run out when it stood still for longer than
//! they last, or when its clock was set forward; and then every node looks dead to whoever asks
//! before the others have renewed theirs. All of that shows in a node's own key, which it knows to
//! have renewed. So the rule is: **another's missing key counts only behind an unbroken chain of
//! renewals of the own one, longer than a key lasts, on one connection.** A renewal continues the
//! chain if
//!
//! 1. it is answered on the connection of the last one: behind it stands the same Redis;
//! 2. it is answered within [`MAX_GAP`] since the last one was sent: in between, Redis did not stand
//!    still for longer, nor did this node;
//! 3. the own key had as much time left as it must have by this node's clock: it was not lost, and
//!    the clock of Redis did not run ahead.
//!
//! A look at the others is a link of the same chain: what it finds counts if it fulfils all three.
//!
//! Why that suffices: a node that lives and reaches Redis renews its key each second, so it has at
//! least 4 s left. What the chain lets pass takes at most [`MAX_GAP`] (2.5 s) or [`SLACK`] (0.5 s)
//! of that. What breaks the chain has everybody wait for a whole [`LEASE_TTL`], in which each living
//! node has renewed its key. A node that lives and does not reach Redis does look dead, on purpose:
//! its own look at its claims tells it.

use std::time::{Duration, Instant};

use redis::{Client, Connection, RedisError, RedisResult};

use super::{StartError, client, connect};
use crate::store::NodeId;

/// How long a lease lasts that is not renewed. It is to be renewed each second.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
/// The longest time between two renewals that continue a chain.
const MAX_GAP: Duration = Duration::from_millis(2500);
/// How far a key's time may be behind this node's clock.
const SLACK: Duration = Duration::from_millis(500);

/// This node's lease, and a look at others'. Every call blocks, for at most 4 s.
pub struct Leases {
    client: Client,
    connection: Option<Connection>,
    key: String,
    label: String,
    chain: Option<Chain>,
}

/// Renewals without a break.
#[derive(Debug, Clone, Copy)]
struct Chain {
    /// When the first of them was answered.
    since: Instant,
    /// When the last of them was sent.
    renewed: Instant,
}

impl Chain {
    /// Whether an answer at `now`, by which the own key had `left` ms (negative: there is none),
    /// continues it.
    fn holds(&self, left: i64, now: Instant) -> bool {
        let passed = now.duration_since(self.renewed);
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        passed <= MAX_GAP && left + SLACK + passed >= LEASE_TTL
    }

    /// Whether every living node has had the time to renew its key.
    fn is_long(&self, now: Instant) -> bool {
        now.duration_since(self.since) > LEASE_TTL
    }
}

fn key_of(node: NodeId) -> String {
    format!("chat:lease:{node}")
}

impl Leases {
    /// Of this node; it has no lease before [`Leases::renew`]. `label` is the value of its key, for
    /// whoever looks into Redis.
    ///
    /// # Errors
    /// The address is none.
    pub fn new(url: &str, node: NodeId, label: &str) -> Result<Leases, StartError> {
        let client = client(url)?;
        Ok(Leases { client, connection: None, key: key_of(node), label: label.to_owned(), chain: None })
    }

    /// Takes this node's lease, at its start.
    ///
    /// # Errors
    /// Redis is away, or refuses.
    pub fn take(&mut self) -> Result<(), StartError> {
        let address = self.client.get_connection_info().addr().to_string();
        self.renew().map_err(|error| StartError::NoLease { address, error })
    }

    /// Renews this node's lease, to last [`LEASE_TTL`] from now. Connects if it must.
    ///
    /// # Errors
    /// Redis is away, or refuses. The lease may be renewed or not.
    pub fn renew(&mut self) -> Result<(), RedisError> {
        let sent = Instant::now();
        let left = self.try_renew().inspect_err(|_| self.give_up())?;
        let now = Instant::now();
        self.chain = Some(match self.chain {
            Some(chain) if chain.holds(left, now) => Chain { renewed: sent, ..chain },
            _ => Chain { since: now, renewed: sent },
        });
        Ok(())
    }

    /// How much time the lease had left, in ms.
    fn try_renew(&mut self) -> RedisResult<i64> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(&self.client)?),
        };
        let (left, ()) = redis::pipe()
            .cmd("PTTL")
            .arg(&self.key)
            .cmd("SET")
            .arg(&self.key)
            .arg(&self.label)
            .arg("PX")
            .arg(LEASE_TTL.as_millis() as u64)
            .query(connection)?;
        Ok(left)
    }

    /// Those of `nodes` that have no lease, this one never among them. Empty while that says
    /// nothing: until this has renewed its own lease for longer than [`LEASE_TTL`] without a break. To be
    /// asked right behind [`Leases::renew`].
    ///
    /// # Errors
    /// Redis is away, or refuses.
    pub fn dead(&mut self, nodes: &[NodeId]) -> Result<Vec<NodeId>, RedisError> {
        let (Some(connection), Some(chain)) = (&mut self.connection, self.chain) else { return Ok(Vec::new()) };
        if nodes.is_empty() || !chain.is_long(Instant::now()) {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for node in nodes {
            pipe.cmd("EXISTS").arg(key_of(*node));
        }
        // Last: what was true of the own key then was true of the others before.
        pipe.cmd("PTTL").arg(&self.key);
        let answers: Vec<i64> = pipe.query(connection).inspect_err(|_| self.give_up())?;
        match answers.split_last() {
            Some((left, exist)) if chain.holds(*left, Instant::now()) => {
                let missing =
                    nodes.iter().zip(exist).filter(|(node, exists)| **exists == 0 && key_of(**node) != self.key);
                Ok(missing.map(|(node, _)| *node).collect())
            }
            _ => {
                self.chain = None;
                Ok(Vec::new())
            }
        }
    }

    /// Whether any of `nodes` has a lease.
    ///
    /// # Errors
    /// Redis is away, or refuses.
    pub fn any(&mut self, nodes: &[NodeId]) -> Result<bool, RedisError> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        if nodes.is_empty() {
            return Ok(false);
        }
        let keys: Vec<String> = nodes.iter().map(|node| key_of(*node)).collect();
        let found: u64 = redis::cmd("EXISTS").arg(keys).query(connection).inspect_err(|_| self.give_up())?;
        Ok(found > 0)
    }

    /// Ends the lease: others need not wait for it to run out.
    ///
    /// # Errors
    /// Redis is away; it runs out.
    pub fn drop_lease(&mut self) -> Result<(), RedisError> {
        self.chain = None;
        match &mut self.connection {
            Some(connection) => redis::cmd("DEL").arg(&self.key).exec(connection),
            None => Ok(()), // there is none
        }
    }

    fn give_up(&mut self) {
        self.connection = None;
        self.chain = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_chain_holds_while_the_own_key_is_as_old_as_it_must_be() {
        let renewed = Instant::now();
        let chain = Chain { since: renewed, renewed };
        assert!(chain.holds(4000, renewed + ms(1000)));
        assert!(chain.holds(3600, renewed + ms(1000)), "a little less is the way's");
        assert!(!chain.holds(3000, renewed + ms(1000)), "the clock of Redis ran ahead");
        assert!(!chain.holds(-2, renewed + ms(1000)), "the key is gone");
        assert!(!chain.holds(-1, renewed + ms(1000)), "a key without an end is none of ours");
        assert!(!chain.holds(2400, renewed + ms(2600)), "somebody stood still");
    }

    #[test]
    fn a_chain_is_long_when_every_lease_of_its_begin_has_run_out() {
        let since = Instant::now();
        let chain = Chain { since, renewed: since };
        assert!(!chain.is_long(since + LEASE_TTL));
        assert!(chain.is_long(since + LEASE_TTL + ms(1)));
    }
}
