//! Thread `lives`: what a node of a cluster has besides: the bus, a lease, and threads that watch other nodes.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::bridge::BusListener;
use super::lease::{LeaseKeeper, PERIOD};
use super::look::Lookout;
use super::notice::Notice;
use super::opened::Opened;
use super::reaper::Reaper;
use super::reaping::Reaping;
use super::threads::{join, thread};
use super::validity::Validity;
use crate::bus::redis::{LEASE_TTL, Leases, RedisBus, Setup};
use crate::clock::since_boot;
use crate::config::Config;
use crate::store::NodeId;
use crate::store::mysql::Lock;

/// A node that is part of the cluster: it hears the others, has a lease, and is listed in the store's membership. Its threads
/// are not started yet.
pub(super) struct Joined {
    keeper: LeaseKeeper,
    lookout: Lookout,
    reaper: Reaper,
    notices: Receiver<Notice>,
    renewals: Receiver<()>,
    marked: Receiver<()>,
}

impl Joined {
    /// Joins the cluster whose Redis is at `redis`.
    ///
    /// # Errors
    /// Redis or the store is away, or the database belongs to another cluster.
    pub fn new(
        redis: &str,
        config: &Config,
        address: SocketAddr,
        Opened { node, store, lock }: &mut Opened,
        listener: impl FnOnce(Sender<Notice>) -> BusListener,
    ) -> Result<Joined> {
        let node = *node;
        let membership = || store.membership().context("no nodes can share this store");
        let payload = config.payload.as_deref().map(str::parse).transpose().context("--payload cannot be read")?;
        let setup = Setup { payload: payload.unwrap_or_default(), ..Setup::default() };
        let (tell_reaper, notices) = unbounded();
        let (look, renewals) = bounded(1);
        let (validity, marked) = Validity::new(LEASE_TTL);
        let (validity, suspects) = (Arc::new(validity), Arc::default());
        let listener = Arc::new(listener(tell_reaper.clone()));
        let bus = Arc::new(RedisBus::start(redis, node, listener, setup.clone())?);
        let mut joined = Joined {
            keeper: LeaseKeeper {
                leases: Leases::new(redis, node, &address.to_string(), setup)?,
                bus: Arc::clone(&bus),
                validity: Arc::clone(&validity),
                turns: Vec::new(),
                suspects: Arc::clone(&suspects),
                look,
                reaper: tell_reaper,
            },
            lookout: Lookout {
                membership: membership()?,
                bus: Arc::clone(&bus),
                validity: Arc::clone(&validity),
                buried: BTreeSet::new(),
            },
            reaper: Reaper {
                own: node,
                membership: membership()?,
                bus,
                validity,
                reaping: Reaping::new(node),
                suspects,
                mixed: config.mixed,
            },
            notices,
            renewals,
            marked,
        };
        // So that it has come back by the time that the lease is renewed.
        joined.keeper.bus.beat();
        // The lease comes before the membership: a node that is listed there without a lease is dead.
        joined.keeper.take()?;
        joined.lookout.membership.enlist()?;
        if let Some(lock) = lock {
            joined.check_cluster(lock)?;
        }
        joined.lookout.look(since_boot())?;
        Ok(joined)
    }

    /// Checks that this node has been given the right database: if nodes that are alive have claims there, at least one
    /// of them must have a lease in the same Redis. Nodes that are dead have left their claims behind, which says nothing.
    fn check_cluster(&mut self, lock: &mut Lock) -> Result<()> {
        let begun = Instant::now();
        loop {
            let nodes: Vec<NodeId> = self.lookout.membership.nodes()?.iter().map(|entry| entry.node).collect();
            let living = lock.living(&nodes)?;
            if living.is_empty() || !self.keeper.leases.look(&nodes)?.living.is_empty() {
                return Ok(());
            }
            // Redis may just have lost all leases; they are renewed sooner than they expire.
            if begun.elapsed() > LEASE_TTL {
                bail!(
                    "the database is in use by {} nodes that have no lease in this Redis; all nodes that share a \
                     database need the same --redis",
                    living.len(),
                );
            }
            std::thread::sleep(PERIOD);
            self.keeper.renew()?;
        }
    }

    pub fn bus(&self) -> Arc<RedisBus> {
        Arc::clone(&self.keeper.bus)
    }

    pub fn validity(&self) -> Arc<Validity> {
        Arc::clone(&self.keeper.validity)
    }

    /// Starts the threads. `turns`: when each reactor completed its last turn.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn run(self, turns: Vec<Arc<AtomicU64>>) -> Result<Cluster> {
        let (bus, validity) = (self.bus(), self.validity());
        let Joined { mut keeper, lookout, reaper, notices, renewals, marked } = self;
        keeper.turns = turns;
        let tell_reaper = keeper.reaper.clone();
        let (stop, stopped) = bounded(1);
        let lease = thread("lease", move || keeper.run(&stopped))?;
        thread("look", move || lookout.run(&renewals))?;
        thread("reaper", move || reaper.run(&notices))?;
        Ok(Cluster { bus, validity, marked, stop, lease, reaper: tell_reaper })
    }
}

/// The running part of a node that connects it to its cluster.
pub(super) struct Cluster {
    pub bus: Arc<RedisBus>,
    validity: Arc<Validity>,
    /// Notified when other nodes have taken this one for dead.
    pub marked: Receiver<()>,
    /// Stops the lease's thread, and with it the one that looks.
    stop: Sender<()>,
    lease: JoinHandle<()>,
    reaper: Sender<Notice>,
}

impl Cluster {
    /// This node does not act any more.
    pub fn end(&self) {
        self.validity.end();
    }

    /// Stops, after this node's claims have been released: the others need not wait for its lease to expire. If Redis
    /// hangs, this takes some seconds.
    pub fn stop(self) {
        let _ = (self.reaper.send(Notice::Stop), self.stop.send(()));
        join(self.lease);
        self.bus.stop();
    }

    /// Stops at once. A thread that hangs is left behind, and does nothing when it goes on.
    pub fn abandon(self) {
        let _ = self.reaper.send(Notice::Stop);
        drop(self.stop);
        self.bus.abandon();
    }
}
