//! Who lives: this node's lease, the nodes whose lease has run out, and the claims of both.
//!
//! One thread, `keeper`, two rounds a second, between Redis and the store:
//!
//! - This node's lease is renewed. When that did not work for so long that others may have taken
//!   this node for dead, its claims are read from the store and handed to the shards, in each round
//!   until that is over and for a while after it.
//! - A node whose lease has run out is told of to the shards, and a little later, when the keepers
//!   of all nodes have had the time to do the same, its users are set offline.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Mailboxes;
use crate::bus::redis::{LEASE_TTL, Leases, StartError};
use crate::reactor::Mail;
use crate::service::Letter;
use crate::store::mysql::Lock;
use crate::store::{NodeId, Roll, StoreError};

/// How often the lease is renewed and the others are looked at. Twice a second, so that little of the
/// 10 s in which a dead node's users can log in again is lost with waiting.
const PERIOD: Duration = Duration::from_millis(500);
/// Between the notice that a node is dead and the end of its claims: two rounds of every keeper.
const NOTICE: Duration = Duration::from_millis(1000);
/// A lease that was not renewed for so long may have run out before it was.
const LAPSE: Duration = Duration::from_secs(LEASE_TTL.as_secs() - 1);
/// How long claims are checked after a lapse: whoever took this node for dead in the last moment of
/// it has taken the claims by then.
const AFTERMATH: Duration = Duration::from_secs(8);

/// How often it is looked whether the lock on the database is held.
const LOCK_PERIOD: Duration = Duration::from_secs(1);

/// Has the keeper check this node's claims at once.
#[derive(Clone)]
pub(super) struct Waker(Sender<()>);

impl Waker {
    pub fn wake(&self) {
        // Full: it is about to check anyway.
        let _ = self.0.try_send(());
    }
}

/// A channel to wake a keeper by, which ends when all its wakers are gone.
pub(super) fn waker() -> (Waker, Receiver<()>) {
    let (sender, receiver) = bounded(1);
    (Waker(sender), receiver)
}

pub(super) struct Keeper {
    node: NodeId,
    roll: Box<dyn Roll>,
    leases: Leases,
    mailboxes: Mailboxes,
    /// C++ nodes may set everybody offline.
    mixed: bool,
    /// Every node that had claims at some time, and is not known to be dead.
    known: BTreeSet<NodeId>,
    /// Since when nodes are known to be dead.
    dying: HashMap<NodeId, Instant>,
    renewed: Instant,
    /// Claims are checked until then.
    doubt_until: Instant,
    complaints: Complaints,
}

impl Keeper {
    /// The keeper of this node, which has its lease from now on.
    ///
    /// # Errors
    /// Redis is away.
    pub fn new(
        node: NodeId,
        roll: Box<dyn Roll>,
        mut leases: Leases,
        mailboxes: Mailboxes,
        mixed: bool,
    ) -> Result<Keeper, StartError> {
        leases.take()?;
        let now = Instant::now();
        Ok(Keeper {
            node,
            roll,
            leases,
            mailboxes,
            mixed,
            known: BTreeSet::new(),
            dying: HashMap::new(),
            renewed: now,
            doubt_until: now,
            complaints: Complaints::default(),
        })
    }

    /// Looks whether this node comes to the right database: if nodes that live have claims there, one of
    /// them at least must have a lease in the same Redis. Those that are dead have left theirs behind, and
    /// tell nothing.
    ///
    /// # Errors
    /// They are another cluster's, which this one would take for dead; or Redis or the store is away.
    pub fn check_cluster(&mut self, lock: &mut Lock) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let nodes = self.roll.nodes()?;
            let living = lock.living(&nodes)?;
            if living.is_empty() || self.leases.any(&nodes)? {
                return Ok(());
            }
            // Redis may just have lost all leases: they are renewed in less.
            if begun.elapsed() > LEASE_TTL {
                bail!(
                    "the database is in use by {} nodes that have no lease in this Redis; all nodes that share a \
                     database need the same --redis",
                    living.len(),
                );
            }
            std::thread::sleep(PERIOD);
            self.leases.renew()?;
        }
    }

    /// Keeps until all wakers are gone.
    pub fn run(mut self, wakes: Receiver<()>) {
        let mut pause = PERIOD;
        loop {
            let woken = match wakes.recv_timeout(pause) {
                Ok(()) => true,
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.renew();
            let result = self.round(woken);
            self.complaints.note("the store", &result);
            pause = if result.is_ok() { self.pause() } else { PERIOD };
            if woken && result.is_err() {
                // Whoever woke it waits for an answer.
                self.doubt_until = self.doubt_until.max(Instant::now() + AFTERMATH);
            }
        }
        let _ = self.leases.drop_lease();
    }

    /// Until the next round: a node that is dead is not left to lie for longer than it must.
    fn pause(&self) -> Duration {
        let ends = self.dying.values().map(|since| (*since + NOTICE).saturating_duration_since(Instant::now()));
        ends.fold(PERIOD, Duration::min)
    }

    fn renew(&mut self) {
        let result = self.leases.renew();
        let now = Instant::now();
        if now - self.renewed > LAPSE {
            self.doubt_until = now + AFTERMATH;
        }
        if result.is_ok() {
            self.renewed = now;
        }
        self.complaints.note("Redis", &result);
    }

    fn round(&mut self, woken: bool) -> Result<(), StoreError> {
        if woken || Instant::now() < self.doubt_until {
            self.check_claims()?;
        }
        if self.mixed {
            let users = self.roll.reassert()?;
            if users > 0 {
                log::info!("{users} users of this node had been set offline by another, and are online again");
            }
        }
        self.known.extend(self.roll.nodes()?);
        self.known.remove(&self.node);
        let known: Vec<NodeId> = self.known.iter().copied().collect();
        // Without Redis nobody is known to be dead.
        let dead = self.leases.dead(&known).unwrap_or_default();
        self.dying.retain(|node, _| dead.contains(node));
        for node in dead {
            self.bury(node)?;
        }
        Ok(())
    }

    /// A node without a lease: first all shards hear of it, then its claims end.
    fn bury(&mut self, node: NodeId) -> Result<(), StoreError> {
        let now = Instant::now();
        let Some(since) = self.dying.get(&node) else {
            log::warn!("node {node} seems dead");
            self.dying.insert(node, now);
            self.tell_of_death();
            return Ok(());
        };
        if now - *since >= NOTICE {
            let users = self.roll.reap(node)?;
            log::info!("{users} users of the dead node {node} are offline");
            // Should it be alive, and only cut off from Redis, it may have gone on storing until now.
            self.tell_of_death();
            self.dying.remove(&node);
            self.known.remove(&node);
        }
        Ok(())
    }

    fn tell_of_death(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Letter(Letter::NodeDied)));
    }

    fn check_claims(&mut self) -> Result<(), StoreError> {
        let as_of = Instant::now();
        let claims = Arc::new(self.roll.claims()?.into_iter().collect::<HashMap<_, _>>());
        for mailbox in self.mailboxes.iter() {
            mailbox.post(Mail::Letter(Letter::Claims { as_of, claims: Arc::clone(&claims) }));
        }
        Ok(())
    }
}

/// Keeps the lock on the database until the other end of `stop` is gone.
///
/// # Errors
/// It was lost, and somebody else uses the database: their users are not ours to serve any more.
pub(super) fn keep_lock(mut lock: Lock, stop: &Receiver<()>) -> io::Result<()> {
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOCK_PERIOD) {
        lock.check().map_err(io::Error::other)?;
    }
    Ok(())
}

/// What does not work is told once, and once again when it works.
#[derive(Default)]
struct Complaints(BTreeSet<&'static str>);

impl Complaints {
    fn note<T, E: std::fmt::Display>(&mut self, what: &'static str, result: &Result<T, E>) {
        match result {
            Ok(_) if self.0.remove(what) => log::info!("{what} can be reached again"),
            Err(error) if self.0.insert(what) => log::warn!("{what} cannot be reached: {error}"),
            _ => {}
        }
    }
}
