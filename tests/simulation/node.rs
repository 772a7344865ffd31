//! One node: its threads' state, what is under way between them, and how it lives and dies.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chat_server::bus::{BusOp, Envelope};
use chat_server::home::Homes;
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{ConnId, ConnIds};
use chat_server::server::reaping::{Reaping, Step, Suspect};
use chat_server::server::validity::Validity;
use chat_server::service::{HashQueue, Job, JobRunner, Letter, Memo, Moved, Settings, Shard, Timer};
use chat_server::store::{NodeId, StoreError};

use crate::bus::{Ends, LEASE_TTL};
use crate::socket::SocketId;
use crate::store::Line;
use crate::world::{LANES, World};

/// How often the lease is renewed, and the others are looked at.
const TICK: Duration = Duration::from_millis(250);
/// How long before the node may not act any more it looks into the store without a renewal.
const AHEAD: Duration = Duration::from_millis(700);
/// How long a beat counts.
const BEAT: Duration = Duration::from_secs(2);

/// A source whose letters arrive in the order in which they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    Shard(usize),
    /// A lane of the pool.
    Lane(usize),
    /// A worker with a job of no lane.
    Worker(u64),
    Publisher,
    Subscriber,
}

/// What a mailbox holds.
pub enum Item {
    Letter(Letter),
    /// A connection that moves.
    Moved(SocketId, Box<Moved>),
}

pub struct Node {
    pub id: NodeId,
    pub homes: Homes,
    pub shards: Vec<Shard>,
    pub ids: Vec<ConnIds>,
    pub conns: HashMap<ConnId, SocketId>,
    /// Ids of connections that have moved to another shard.
    pub moved_away: HashSet<ConnId>,
    pub links: BTreeMap<(Port, usize), VecDeque<Item>>,
    pub lanes: Vec<Vec<Job>>,
    /// Jobs of no lane.
    pub loose: Vec<Job>,
    pub timers: BTreeMap<(Duration, u64), (usize, Timer)>,
    next_timer: u64,
    pub runner: JobRunner,
    /// What each shard's turn has for the bus.
    pub turns: Vec<Vec<BusOp>>,
    pub ends: Ends,
    pub keeper: Keeper,
    /// Its rows stand in the membership, and it takes connections.
    pub is_started: bool,
    /// It was stopped by SIGSTOP, or together with its machine.
    pub is_stopped: bool,
    /// How much its own clock is behind: it stood still while the machine was suspended.
    pub lag: Duration,
    /// Its workers wait for the store until then.
    pub store_stands_still_until: Duration,
    /// It has been asked to stop.
    pub is_ending: bool,
    pub wound_up: Vec<bool>,
    /// It has learned that it was taken for dead.
    pub is_marked: bool,
}

/// Looks after a node's lease, and after the dead, with those parts of the server that decide.
pub struct Keeper {
    next: Duration,
    pub can_renew: bool,
    validity: Validity,
    pub reaping: Reaping,
    beat: Duration,
    /// Since when the lease has been without a gap.
    whole_since: Duration,
    /// Nodes whose lease was found missing, and about which nothing has been done yet.
    missing: Vec<Suspect>,
}

impl Keeper {
    fn new(own: NodeId, now: Duration) -> Keeper {
        Keeper {
            next: now,
            can_renew: true,
            validity: Validity::new(LEASE_TTL).0,
            reaping: Reaping::new(own),
            beat: Duration::ZERO,
            whole_since: Duration::ZERO,
            missing: Vec::new(),
        }
    }
}

impl Node {
    pub fn post(&mut self, port: Port, shard: usize, item: Item) {
        self.links.entry((port, shard)).or_default().push_back(item);
    }

    pub fn set_timer(&mut self, at: Duration, shard: usize, timer: Timer) {
        self.next_timer += 1;
        self.timers.insert((at, self.next_timer), (shard, timer));
    }

    /// No letter, job or answer is under way in it.
    pub fn is_quiet(&self) -> bool {
        self.links.values().all(VecDeque::is_empty)
            && self.lanes.iter().all(Vec::is_empty)
            && self.loose.is_empty()
            && self.turns.iter().all(Vec::is_empty)
    }

    pub fn takes_connections(&self) -> bool {
        self.is_started && !self.is_ending && !self.is_marked
    }
}

/// Transactions of a node that was killed, which are still open.
pub struct Ghost {
    pub runner: JobRunner,
    pub jobs: Vec<Job>,
}

impl World {
    /// A node that has just been started.
    pub fn new_node(&mut self) -> Node {
        self.next_node += 1;
        let id = NodeId(self.next_node);
        let shards = 1 + self.rng.below(3);
        let homes = Homes::new(self.rng.next(), shards);
        let now = self.now_with(Duration::ZERO);
        let settings = Settings { node: id, homes, hashes: HashQueue::new(1), ..self.plan.settings.clone() };
        let cost: Cost = "8,1".parse().expect("a cost");
        let memo = Arc::new(Memo::new().expect("a secret"));
        let connection = Box::new(Line::new(&self.database, id));
        let keeper = Keeper::new(id, self.clock);
        Node {
            id,
            homes,
            shards: (0..shards).map(|index| Shard::new(index, settings.clone(), now)).collect(),
            ids: (0..shards).map(|index| ConnIds::new(index as u16)).collect(),
            conns: HashMap::new(),
            moved_away: HashSet::new(),
            links: BTreeMap::new(),
            lanes: (0..LANES).map(|_| Vec::new()).collect(),
            loose: Vec::new(),
            timers: BTreeMap::new(),
            next_timer: 0,
            runner: JobRunner::new(connection, Hasher::new(cost), self.plan.settings.mixed, Some(memo)),
            turns: (0..shards).map(|_| Vec::new()).collect(),
            ends: Ends::default(),
            keeper,
            is_started: false,
            is_stopped: false,
            lag: Duration::ZERO,
            store_stands_still_until: Duration::ZERO,
            is_ending: false,
            wound_up: vec![false; shards],
            is_marked: false,
        }
    }

    /// Writes a node's rows, which comes first, and has it listen. The store may be away.
    fn start(&mut self, at: usize) {
        let id = self.nodes[at].id;
        if self.database().enlist(id).is_ok() {
            self.trace(|| format!("node {at} is started as {id}"));
            self.nodes[at].is_started = true;
            if !self.plan.is_alone {
                self.connect_bus(at);
            }
        }
    }

    /// Whether its threads run.
    pub fn runs(&self, at: usize) -> bool {
        !self.nodes[at].is_stopped
    }

    /// Whether its reactors may act: by a lease that is valid, or else on a look into the store.
    pub fn may_act(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        let is_valid = self.plan.is_alone || node.keeper.validity.may_act(self.clock);
        let acts = node.is_started && !node.is_stopped && !node.is_marked && is_valid;
        assert!(!acts || !self.database().has_freed(node.id), "node {at} acts without its claims");
        acts
    }

    /// What a node does from time to time, if the time has come.
    pub fn tick(&mut self, at: usize) {
        if !self.runs(at) || self.nodes[at].keeper.next > self.clock {
            return;
        }
        self.nodes[at].keeper.next = self.clock + TICK;
        if !self.nodes[at].is_started {
            self.start(at);
        }
        if !self.nodes[at].is_started || self.plan.is_alone {
            return;
        }
        self.mind_the_lines(at);
        if self.hears_itself(at) {
            self.nodes[at].keeper.beat = self.clock;
        }
        for result in [self.renew_and_look(at), self.take_steps(at)] {
            self.nodes[at].is_marked |= matches!(result, Err(StoreError::Marked));
        }
    }

    fn renew_and_look(&mut self, at: usize) -> Result<(), StoreError> {
        let (id, clock) = (self.nodes[at].id, self.clock);
        let keeper = &self.nodes[at].keeper;
        if self.redis.is_away || !keeper.can_renew || keeper.beat + BEAT < clock {
            if keeper.validity.until() <= clock + AHEAD {
                self.database().glance(id)?;
                keeper.validity.glanced(clock);
            }
            return Ok(());
        }
        let existed = self.redis.has_lease(id, clock);
        self.redis.renew(id, clock);
        let keeper = &mut self.nodes[at].keeper;
        keeper.validity.renewed(clock, clock, existed);
        if !existed {
            keeper.whole_since = clock;
        }
        self.look_for_leases(at);
        // The threads that ask the store have connections of their own.
        let looked = self.look(at);
        let reaped = self.reap(at);
        looked.and(reaped)
    }

    fn look(&mut self, at: usize) -> Result<(), StoreError> {
        let marked = self.database().look(self.nodes[at].id)?;
        self.nodes[at].keeper.validity.looked(self.clock);
        for node in marked {
            if !self.has_buried(at, node) {
                self.bury(at, node, None);
            }
        }
        Ok(())
    }

    fn look_for_leases(&mut self, at: usize) {
        let (clock, keeper) = (self.clock, &mut self.nodes[at].keeper);
        // A missing lease says something only if it would be there: the Redis and this node have been well for long.
        let is_sure = clock > self.redis.up_since + LEASE_TTL && clock > keeper.whole_since + LEASE_TTL;
        if is_sure && keeper.missing.is_empty() {
            keeper.missing = keeper.reaping.suspects();
            keeper.missing.retain(|suspect| !self.redis.has_lease(suspect.node, clock));
        }
    }

    /// Marks the nodes without a lease, and reads the membership.
    fn reap(&mut self, at: usize) -> Result<(), StoreError> {
        // Some time may pass between what was seen and what is done about it.
        if self.rng.one_in(2) {
            return Ok(());
        }
        let (id, clock) = (self.nodes[at].id, self.clock);
        if self.plan.settings.mixed {
            self.database().reassert(id)?;
        }
        let missing = std::mem::take(&mut self.nodes[at].keeper.missing);
        for Suspect { node, looks } in self.nodes[at].keeper.reaping.missing(&missing) {
            let is_marked = self.database().mark(id, node, looks)?;
            self.trace(|| format!("node {at} marks {node}: {is_marked}"));
            if is_marked {
                self.nodes[at].keeper.reaping.marked(node, clock);
            }
        }
        let entries = self.database().nodes(id)?;
        self.nodes[at].keeper.reaping.read(&entries, clock);
        Ok(())
    }

    /// Announces deaths to all nodes, and then frees the claims.
    fn take_steps(&mut self, at: usize) -> Result<(), StoreError> {
        let (id, clock) = (self.nodes[at].id, self.clock);
        for step in self.nodes[at].keeper.reaping.steps(clock) {
            match step {
                Step::Tell { dead, to } => to.into_iter().for_each(|node| {
                    if node == id {
                        self.bury(at, dead, Some(id));
                    } else {
                        self.send(at, BusOp::ToNode(node, Envelope::Dead { node: dead }));
                    }
                }),
                Step::Free(dead) => {
                    self.database().free(id, dead)?;
                    self.trace(|| format!("node {at} frees the claims of {dead}"));
                    self.nodes[at].keeper.reaping.freed(dead);
                }
            }
        }
        Ok(())
    }

    // -- ends ---------------------------------------------------------------------------------------

    /// SIGTERM.
    pub fn terminate(&mut self, at: usize) {
        self.trace(|| format!("node {at} is told to stop"));
        self.nodes[at].is_ending = true;
        for shard in 0..self.nodes[at].shards.len() {
            self.call(at, shard, |shard, now, fx| shard.stop(now, fx));
        }
    }

    /// Whether all of its shards have wound up, and what they wanted of the bus is sent.
    pub fn has_ended(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        node.is_ending && node.wound_up.iter().all(|wound_up| *wound_up) && node.turns.iter().all(Vec::is_empty)
    }

    /// What the server does when its shards have wound up. Another one is started in its place.
    pub fn finish(&mut self, at: usize) {
        let node = &self.nodes[at];
        let population: Vec<_> = node.shards.iter().map(Shard::population).collect();
        // A connection may still have come from another shard.
        assert!(population.iter().all(|(_, sessions)| *sessions == 0), "wound up, and left behind: {population:?}");
        let lost: Vec<_> = node.shards.iter().map(Shard::lost).collect();
        assert!(
            lost.iter().all(|lost| *lost == (0, 0)) || self.database().has_failed || self.plan.loses_by_itself(),
            "a stop has lost something, though the store was well: {lost:?}"
        );
        let id = node.id;
        // What cannot be released now is freed by the others.
        let _ = self.database().release_all(id);
        self.redis.drop_lease(id);
        self.replace(at);
    }

    /// kill -9; another one is started in its place.
    pub fn kill(&mut self, at: usize) {
        self.trace(|| format!("node {at} is killed"));
        // What it is just writing may be done all the same.
        if self.rng.one_in(2) {
            let node = &mut self.nodes[at];
            let cost: Cost = "8,1".parse().expect("a cost");
            for jobs in node.lanes.iter_mut().filter(|jobs| !jobs.is_empty()) {
                let connection = Box::new(Line::new(&self.database, node.id));
                let runner = JobRunner::new(connection, Hasher::new(cost), false, None);
                self.ghosts.push(Ghost { runner, jobs: std::mem::take(jobs) });
            }
        }
        // A file is not opened anew before the process that had it has gone.
        while self.plan.is_alone && self.run_ghost() {}
        self.replace(at);
    }

    /// A node that was taken for dead closes everything at once.
    pub fn abandon(&mut self, at: usize) {
        self.trace(|| format!("node {at} begins anew"));
        self.replace(at);
    }

    fn replace(&mut self, at: usize) {
        let sockets: Vec<SocketId> =
            self.sockets.iter().filter(|(_, socket)| socket.node == at).map(|(id, _)| *id).collect();
        sockets.into_iter().for_each(|id| self.lose(id));
        let id = self.nodes[at].id;
        self.redis.node_is_gone(id);
        self.forget_faults_at(at);
        self.nodes[at] = self.new_node();
    }

    /// SIGSTOP, or the machine is suspended: then its own clock stands still, too.
    pub fn stand_still(&mut self, at: usize) {
        self.trace(|| format!("node {at} stands still"));
        self.nodes[at].is_stopped = true;
    }

    /// It goes on.
    pub fn go_on(&mut self, at: usize, lag: Duration) {
        self.trace(|| format!("node {at} goes on"));
        self.nodes[at].is_stopped = false;
        self.nodes[at].lag += lag;
    }
}
