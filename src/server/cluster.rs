//! What a node has that is not alone: the bus, a lease, and the threads that see to who lives.

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
use super::reaper::{Notice, Reaper};
use super::reaping::Reaping;
use super::validity::Validity;
use super::{join, thread};
use crate::bus::redis::{LEASE_TTL, Leases, RedisBus, Setup};
use crate::clock::since_boot;
use crate::store::mysql::Lock;
use crate::store::{NodeId, Roll, Store};

/// A node that is one of the cluster: it hears the others, has a lease, and stands in the store's roll.
pub(super) struct Joined {
    node: NodeId,
    bus: Arc<RedisBus>,
    leases: Leases,
    validity: Arc<Validity>,
    /// For looks, and for reaping.
    rolls: [Box<dyn Roll>; 2],
    buried: BTreeSet<NodeId>,
    reaper: Sender<Notice>,
    notices: Receiver<Notice>,
}

impl Joined {
    /// Joins.
    ///
    /// # Errors
    /// Redis or the store is away, or the database is another cluster's.
    pub fn new(
        redis: &str,
        setup: Setup,
        node: NodeId,
        address: SocketAddr,
        store: &dyn Store,
        lock: Option<&mut Lock>,
        listener: impl FnOnce(Sender<Notice>) -> BusListener,
    ) -> Result<Joined> {
        let roll = || store.roll().context("no nodes can share this store");
        let rolls = [roll()?, roll()?];
        let (reaper, notices) = unbounded();
        let bus = Arc::new(RedisBus::start_with(redis, node, Arc::new(listener(reaper.clone())), setup.clone())?);
        let leases = Leases::new_with(redis, node, &address.to_string(), setup)?;
        let validity = Arc::new(Validity::new(LEASE_TTL));
        let mut joined = Joined { node, bus, leases, validity, rolls, buried: BTreeSet::new(), reaper, notices };
        // To be heard by the time that the lease is renewed.
        joined.bus.beat();
        // First the lease: who stands in the roll without one is dead.
        let sent = since_boot();
        joined.leases.take()?;
        joined.validity.renewed(sent, since_boot(), false);
        joined.rolls[0].enlist()?;
        if let Some(lock) = lock {
            joined.check_cluster(lock)?;
        }
        let begun = since_boot();
        joined.buried = joined.rolls[0].look()?.into_iter().collect();
        joined.validity.looked(begun);
        joined.buried.iter().for_each(|node| joined.bus.bury(*node, None));
        Ok(joined)
    }

    /// Looks whether this node comes to the right database: if nodes that live have claims there, one of
    /// them at least must have a lease in the same Redis. Those that are dead have left theirs behind, and
    /// tell nothing.
    fn check_cluster(&mut self, lock: &mut Lock) -> Result<()> {
        let begun = Instant::now();
        loop {
            let nodes: Vec<NodeId> = self.rolls[0].nodes()?.iter().map(|entry| entry.node).collect();
            let living = lock.living(&nodes)?;
            if living.is_empty() || !self.leases.look(&nodes)?.living.is_empty() {
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
            let sent = since_boot();
            let renewed = self.leases.renew()?;
            self.validity.renewed(sent, since_boot(), renewed.existed);
        }
    }

    pub fn bus(&self) -> Arc<RedisBus> {
        Arc::clone(&self.bus)
    }

    pub fn validity(&self) -> Arc<Validity> {
        Arc::clone(&self.validity)
    }

    /// Starts the threads. `turns`: when each reactor completed its last turn.
    ///
    /// # Errors
    /// The system has no more of them.
    pub fn run(self, turns: Vec<Arc<AtomicU64>>, mixed: bool, marked: &Sender<()>) -> Result<Cluster> {
        let Joined { node, bus, leases, validity, rolls, buried, reaper, notices } = self;
        let [look_roll, reap_roll] = rolls;
        let suspects = Arc::default();
        let (stop, stopped) = bounded(1);
        let (look, renewals) = bounded(1);
        let keeper = LeaseKeeper {
            leases,
            bus: Arc::clone(&bus),
            validity: Arc::clone(&validity),
            turns,
            suspects: Arc::clone(&suspects),
            look,
            reaper: reaper.clone(),
        };
        let lookout = Lookout {
            roll: look_roll,
            bus: Arc::clone(&bus),
            validity: Arc::clone(&validity),
            marked: marked.clone(),
            buried,
        };
        let reaping = Reaper {
            own: node,
            roll: reap_roll,
            bus: Arc::clone(&bus),
            validity: Arc::clone(&validity),
            reaping: Reaping::new(node),
            suspects,
            mixed,
            marked: marked.clone(),
        };
        let lease = thread("lease".to_owned(), move || {
            keeper.run(&stopped);
            Ok(())
        })?;
        thread("look".to_owned(), move || {
            lookout.run(&renewals);
            Ok(())
        })?;
        thread("reaper".to_owned(), move || {
            reaping.run(&notices);
            Ok(())
        })?;
        Ok(Cluster { bus, validity, stop, lease, reaper })
    }
}

/// A cluster's node that runs.
pub(super) struct Cluster {
    bus: Arc<RedisBus>,
    validity: Arc<Validity>,
    /// Of the lease's thread, with which that of the looks ends.
    stop: Sender<()>,
    lease: JoinHandle<()>,
    reaper: Sender<Notice>,
}

impl Cluster {
    pub fn bus(&self) -> Arc<RedisBus> {
        Arc::clone(&self.bus)
    }

    /// This node does not act any more.
    pub fn end(&self) {
        self.validity.end();
    }

    /// Ends, when this node's claims have: others need not wait for its lease to run out. Where Redis hangs, that
    /// takes some seconds.
    pub fn stop(self) {
        let _ = (self.reaper.send(Notice::Stop), self.stop.send(()));
        join(self.lease);
        self.bus.stop();
    }

    /// Ends at once. Whatever hangs is left behind, and does nothing when it goes on.
    pub fn abandon(self) {
        let _ = self.reaper.send(Notice::Stop);
        drop(self.stop);
        self.bus.abandon();
    }
}
