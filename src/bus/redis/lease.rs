//! Which nodes are alive: each has a key, which it renews while all of it works, and which expires by itself. Its
//! value says which versions the node reads.
//!
//! A missing key says that its node is dead only while Redis itself can be trusted. All
//! keys are gone after a restart of Redis; all have expired when it stood still for longer than
//! they last, or when its clock was set forward; and then every node looks dead to one that asks
//! before the others have renewed theirs. All of that shows in a node's own key, which it knows to
//! have renewed. So the rule is: **another node's missing key counts only after an unbroken chain of
//! renewals of the own one, longer than a key lasts, on one connection.** A renewal continues the
//! chain if
//!
//! 1. it is answered on the same connection as the last one: the same Redis answers;
//! 2. it is answered within [`MAX_GAP`] since the last one was sent: in between, neither Redis nor this node stood
//!    still for longer;
//! 3. the own key had as much time left as it must have by this node's clock: it was not lost, and
//!    the clock of Redis did not run ahead.
//!
//! A look at the others is a link of the same chain: what it finds counts if it fulfils all three, and if
//! Redis says that it has been up for longer than a key lasts ([`Look::counts`]).
//!
//! Why that suffices: a node that is alive and reaches Redis renews its key at least each second, so it has at
//! least 4 s left. What the chain tolerates takes at most [`MAX_GAP`] (2.5 s) or [`SLACK`] (0.5 s)
//! of that. What breaks the chain makes every node wait for a whole [`LEASE_TTL`], in which each living
//! node has renewed its key. A node that is alive but does not reach Redis does look dead, on purpose:
//! its own look into the store shows it that it was taken for dead.

use std::io;
use std::time::{Duration, Instant};

use redis::{Connection, RedisError, RedisResult, Value};

use super::address::{Address, Setup};
use super::error::StartError;
use crate::bus::envelope::Versions;
use crate::store::NodeId;

/// How long a lease lasts unless it is renewed. It must be renewed at least each second.
pub const LEASE_TTL: Duration = Duration::from_secs(5);
/// The longest time between two renewals that continue a chain.
const MAX_GAP: Duration = Duration::from_millis(2500);
/// How much less time than by this node's clock a key may have left.
const SLACK: Duration = Duration::from_millis(500);

/// This node's lease, and a look at those of others. Every call blocks, for at most 4 s.
pub struct Leases {
    address: Address,
    connection: Option<Connection>,
    key: String,
    value: String,
    chain: Option<Chain>,
}

/// What a renewal has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// The lease had neither expired nor been lost: there is no gap between the last renewal and this one.
    pub existed: bool,
}

/// What a look at the leases has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The nodes that have a lease, each with the versions of the bus's encoding that it reads, if its lease says so.
    pub living: Vec<(NodeId, Option<Versions>)>,
    /// How long this Redis has been up, in whole seconds.
    pub uptime: Duration,
    /// How long this node has renewed its own lease without a break, up to this look.
    pub unbroken: Duration,
}

impl Look {
    /// Whether a missing lease says that its node is dead: both Redis and this node's own lease have lasted
    /// without a break for longer than [`LEASE_TTL`].
    pub fn counts(&self) -> bool {
        self.uptime > LEASE_TTL && self.unbroken > LEASE_TTL
    }
}

/// A series of renewals without a break.
#[derive(Debug, Clone, Copy)]
struct Chain {
    /// When the first of them was answered.
    since: Instant,
    /// When the last of them was sent.
    renewed: Instant,
}

impl Chain {
    /// Whether an answer at `now` continues the chain, if the own key then had `left` ms (negative: there is none).
    fn holds(&self, left: i64, now: Instant) -> bool {
        let passed = now.duration_since(self.renewed);
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        passed <= MAX_GAP && left + SLACK + passed >= LEASE_TTL
    }
}

fn key_of(node: NodeId) -> String {
    format!("chat:lease:{node}")
}

impl Leases {
    /// For this node, which has no lease before [`Leases::renew`]. The value of its key will be the versions of the
    /// bus's encoding that it reads, and then `label`, for a person that looks into Redis.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(url: &str, node: NodeId, label: &str, setup: Setup) -> Result<Leases, StartError> {
        let address = Address::parse(url, setup.lookup)?;
        let value = format!("{} {label}", setup.payload.versions);
        Ok(Leases { address, connection: None, key: key_of(node), value, chain: None })
    }

    /// Takes this node's lease, when the node starts; within 6 s.
    ///
    /// # Errors
    /// Redis is away, or refuses this, or a look at other leases.
    pub fn take(&mut self) -> Result<(), StartError> {
        let taken = self.renew().and_then(|_| self.look(&[]));
        taken.map(drop).map_err(|error| StartError::NoLease { address: self.address.to_string(), error })
    }

    /// Renews this node's lease, to last [`LEASE_TTL`] from now. Connects if necessary.
    ///
    /// # Errors
    /// Redis is away, or refuses. The lease may have been renewed or not.
    pub fn renew(&mut self) -> Result<Renewed, RedisError> {
        let sent = Instant::now();
        let left = self.try_renew().inspect_err(|_| self.give_up())?;
        let now = Instant::now();
        self.chain = Some(match self.chain {
            Some(chain) if chain.holds(left, now) => Chain { renewed: sent, ..chain },
            _ => Chain { since: now, renewed: sent },
        });
        Ok(Renewed { existed: left > 0 })
    }

    /// How much time the lease had left, in ms.
    fn try_renew(&mut self) -> RedisResult<i64> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.address.connect()?),
        };
        let (left, ()) = redis::pipe()
            .cmd("PTTL")
            .arg(&self.key)
            .cmd("SET")
            .arg(&self.key)
            .arg(&self.value)
            .arg("PX")
            .arg(LEASE_TTL.as_millis() as u64)
            .query(connection)?;
        Ok(left)
    }

    /// Looks which of `nodes` have a lease. To be called right after [`Leases::renew`].
    ///
    /// # Errors
    /// Redis is away, or refuses. If it was away at the last renewal, this fails at once.
    pub fn look(&mut self, nodes: &[NodeId]) -> Result<Look, RedisError> {
        let (mut look, left) = self.try_look(nodes).inspect_err(|_| self.give_up())?;
        let now = Instant::now();
        self.chain = self.chain.filter(|chain| chain.holds(left, now));
        look.unbroken = self.chain.map_or(Duration::ZERO, |chain| now.duration_since(chain.since));
        Ok(look)
    }

    /// What Redis answers to a look, and how much time the own lease has left, in ms.
    fn try_look(&mut self, nodes: &[NodeId]) -> RedisResult<(Look, i64)> {
        let connection = self.connection.as_mut().ok_or(io::Error::from(io::ErrorKind::NotConnected))?;
        let mut pipe = redis::pipe();
        for node in nodes {
            pipe.cmd("GET").arg(key_of(*node));
        }
        pipe.cmd("INFO").arg("server");
        // This comes last: what holds for the own key then held for the others before.
        pipe.cmd("PTTL").arg(&self.key);
        let mut answers: Vec<Value> = pipe.query(connection)?;
        let left = redis::from_redis_value(answers.pop().unwrap_or(Value::Nil))?;
        let info: String = redis::from_redis_value(answers.pop().unwrap_or(Value::Nil))?;
        let mut living = Vec::new();
        for (node, value) in nodes.iter().zip(answers) {
            let value: Option<Vec<u8>> = redis::from_redis_value(value)?;
            living.extend(value.map(|value| (*node, versions(&value))));
        }
        Ok((Look { living, uptime: uptime(&info), unbroken: Duration::ZERO }, left))
    }

    /// Gives up the lease: others need not wait for it to expire.
    ///
    /// # Errors
    /// Redis is away; the lease expires by itself.
    pub fn drop_lease(&mut self) -> Result<(), RedisError> {
        self.chain = None;
        match &mut self.connection {
            Some(connection) => redis::cmd("DEL").arg(&self.key).exec(connection),
            None => Ok(()), // there is no lease
        }
    }

    fn give_up(&mut self) {
        self.connection = None;
        self.chain = None;
    }
}

/// The versions that a node reads, according to the value of its lease.
fn versions(value: &[u8]) -> Option<Versions> {
    let text = std::str::from_utf8(value).ok()?;
    text.split(' ').next()?.parse().ok()
}

/// How long Redis has been up; zero if it does not say.
fn uptime(info: &str) -> Duration {
    let seconds = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:")?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
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
    fn a_missing_lease_counts_when_both_redis_and_the_own_lease_have_lasted_longer_than_one() {
        let counts = |uptime, unbroken| Look { living: Vec::new(), uptime, unbroken }.counts();
        assert!(counts(LEASE_TTL + ms(1000), LEASE_TTL + ms(1)));
        assert!(!counts(LEASE_TTL, LEASE_TTL + ms(1)), "leases that were lost may not be renewed yet");
        assert!(!counts(LEASE_TTL + ms(1000), LEASE_TTL));
    }

    #[test]
    fn what_is_no_lease_of_ours_says_nothing_of_versions() {
        assert_eq!(versions(b"2-3 127.0.0.1:6000"), "2-3".parse().ok());
        for value in [&b""[..], b"127.0.0.1:6000", b"2-3127.0.0.1", b"3-2 x", b"2-", b"-3 x", b"2-256 x", b"\xff-3 x"] {
            assert_eq!(versions(value), None, "{}", String::from_utf8_lossy(value));
        }
    }

    #[test]
    fn a_redis_that_does_not_tell_its_uptime_has_none() {
        assert_eq!(uptime("# Server\r\nuptime_in_seconds:17\r\nuptime_in_days:0\r\n"), ms(17_000));
        for info in ["", "# Server\r\n", "uptime_in_seconds:\r\n", "uptime_in_seconds:-4\r\n"] {
            assert_eq!(uptime(info), ms(0), "{info:?}");
        }
    }
}
