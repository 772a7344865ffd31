//! A cluster's shards in one thread, under a seeded scheduler: letters, jobs, reads and writes
//! happen in any order that threads and nodes could produce, clients come, go, stall and are cut
//! off, nodes are stopped, killed and cut off from each other, the store fails, hangs or loses its answers,
//! and what must hold is checked at the end:
//!
//! | promise of the contract | what must hold |
//! | --- | --- |
//! | order | what a user gets of one sender, or of one sender to the group, is in the order in which it was sent, repeats aside; so it is after all of it has been read, live and from the store |
//! | nothing is lost | everything that was acked without an error, as delivered or as stored, has reached every recipient once all have come back |
//! | nothing is repeated | without faults everything arrives exactly once |
//! | offline messages | once all is read, nothing is left in the store; nobody's rows are removed by another |
//! | one session | nothing is read any more by a claim that is gone; whoever is told to be logged in has the claim; after everybody has come back there is one for each user |
//! | nobody is locked out | every user can log in again, whatever has happened; without faults no login is refused |
//! | an answer to each `seq` | whoever is still logged in has got one for each, and no second one |
//! | an end | everything comes to rest, and every shard winds up when it is stopped, with nobody left online |
//!
//! Two things are excepted, because nobody can promise them. What was sent through a node that was taken for
//! dead, and not acked by then, may arrive late. And after a fault, what was not known to be done is done again,
//! so messages may be repeated.
//!
//! A seed that fails is printed; `CHAT_SEED=n cargo test --test simulation` runs it alone,
//! `CHAT_TRACE=1` prints every effect, `CHAT_SEEDS=n` runs so many, from `CHAT_FIRST_SEED` on;
//! `scripts/simulate` runs a million.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chat_server::bus::{BusEvent, BusOp};
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{CloseReason, ConnId, ConnIds, HangUp, Unwritten};
use chat_server::service::{
    Effect, Effects, HashQueue, Job, JobRunner, Lane, Letter, Memo, Now, Op, Payload, Settings, Shard, Tag, Timer,
};
use chat_server::store::{
    Account, Claim, Connection, Friend, Group, Holder, Kept, NodeId, Outcome, Page, Parcel, RowId, StoreError, UserId,
    Write,
};
use serde_json::Value;

const USERS: u32 = 5;
const GROUP: u32 = 1;
const LANES: usize = 3;
/// Where everybody comes from.
const PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A store in memory, with the semantics of the trait's documentation.
#[derive(Default)]
struct Memory {
    claims: HashMap<UserId, Claim>,
    rows: BTreeMap<RowId, (UserId, Arc<[u8]>)>,
    next_row: RowId,
    password: String,
    /// Of offline messages for one user.
    quota: Option<usize>,
    /// Every call fails.
    down: bool,
    /// Writes that fail are done all the same: only their answer is lost.
    loses_answers: bool,
}

/// One node's connection to it.
struct Memories(Arc<Mutex<Memory>>, NodeId);

impl Memories {
    fn get(&self) -> Result<std::sync::MutexGuard<'_, Memory>, StoreError> {
        let memory = self.0.lock().unwrap();
        if memory.down { Err(StoreError::Unavailable("down".into())) } else { Ok(memory) }
    }
}

impl Memory {
    fn keep(&mut self, node: NodeId, parcel: &Parcel) -> Kept {
        if let Some(claim) = self.claims.get(&parcel.to)
            && claim.node != node
            && parcel.past != Some(Holder::Node(*claim))
        {
            return Kept::Elsewhere(Holder::Node(*claim));
        }
        let first = self.next_row + 1;
        let kept = self.rows.values().filter(|(owner, _)| *owner == parcel.to).count();
        let room = self.quota.map_or(usize::MAX, |quota| quota.saturating_sub(kept));
        for message in parcel.messages.iter().take(room) {
            self.next_row += 1;
            self.rows.insert(self.next_row, (parcel.to, Arc::clone(message)));
        }
        if parcel.messages.len() > room { Kept::Full(room) } else { Kept::Stored(first) }
    }
}

impl Connection for Memories {
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError> {
        let node = self.1;
        let mut memory = self.0.lock().unwrap();
        if memory.down && !memory.loses_answers {
            return Err(StoreError::Unavailable("down".into()));
        }
        let one = |write: &Write| match write {
            Write::Claim { user, epoch, past } => {
                let claim = Claim { node, epoch: *epoch };
                match memory.claims.get(user) {
                    Some(holder) if *holder != claim && *past != Some(Holder::Node(*holder)) => {
                        Outcome::InUse(Holder::Node(*holder))
                    }
                    _ => {
                        memory.claims.insert(*user, claim);
                        Outcome::Done
                    }
                }
            }
            Write::Release { user, epoch } => {
                if memory.claims.get(user) == Some(&Claim { node, epoch: *epoch }) {
                    memory.claims.remove(user);
                }
                Outcome::Done
            }
            Write::Keep(parcels) => Outcome::Kept(parcels.iter().map(|parcel| memory.keep(node, parcel)).collect()),
            Write::Remove { user, epoch, .. } if memory.claims.get(user) != Some(&Claim { node, epoch: *epoch }) => {
                Outcome::Lost
            }
            Write::Remove { user, rows, .. } => {
                for row in rows {
                    let removed = memory.rows.remove(row);
                    assert!(removed.is_none_or(|(owner, _)| owner == *user));
                }
                Outcome::Done
            }
            other => panic!("not simulated: {other:?}"),
        };
        let outcomes = batch.iter().map(one).collect();
        if memory.down { Err(StoreError::Unavailable("its answer is lost".into())) } else { Ok(outcomes) }
    }
    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError> {
        Ok(Some(Account { name: format!("u{user}"), password: self.get()?.password.clone() }))
    }
    fn friends(&mut self, _: UserId) -> Result<Vec<Friend>, StoreError> {
        self.get().map(|_| Vec::new())
    }
    fn groups(&mut self, _: UserId) -> Result<Vec<Group>, StoreError> {
        self.get().map(|_| Vec::new())
    }
    fn members(&mut self, _: u32) -> Result<Option<Vec<UserId>>, StoreError> {
        self.get().map(|_| Some((1..=USERS).collect()))
    }
    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError> {
        let memory = self.get()?;
        let mut page = Page::default();
        let mut bytes = 0;
        for (row, (_, text)) in memory.rows.iter().filter(|(_, (owner, _))| *owner == user) {
            bytes += text.len();
            if !page.messages.is_empty() && bytes > max_bytes {
                page.more = true;
                break;
            }
            page.messages.push((*row, Box::from(&**text)));
        }
        Ok(page)
    }
}

/// A connection of some node.
type Address = (usize, ConnId);

/// A connection as the reactor would keep it.
struct Socket {
    user: UserId,
    /// What the client has sent and the shard has not read.
    input: Vec<u8>,
    queue: VecDeque<(Vec<u8>, Option<Tag>)>,
    /// Half of the first message is on the wire.
    begun: bool,
    paused: bool,
    closing: Option<CloseReason>,
    over: bool,
    /// The client does not read for now.
    stalled: bool,
}

/// What a user's client knows.
#[derive(Default)]
struct User {
    socket: Option<Address>,
    logged_in: bool,
    next_seq: i64,
    /// seq to the recipients and the number it is for each.
    unacked: HashMap<i64, (bool, UserId, u64)>,
    /// Numbers sent to each user, and to the group.
    sent: HashMap<(bool, UserId), u64>,
    /// Acked as delivered or stored.
    acked: Vec<(bool, UserId, u64)>,
    /// What was sent through which node.
    via: Vec<(NodeId, (bool, UserId, u64))>,
    /// Sent through nodes that were taken for dead, and not acked by then: they may arrive late,
    /// since nobody can ask such a node what is still under way.
    limbo: HashSet<(bool, UserId, u64)>,
    /// What arrived: by sender and way, in order, with repeats.
    got: HashMap<(bool, UserId), Vec<u64>>,
}

impl User {
    fn disconnected(&mut self) {
        self.socket = None;
        self.logged_in = false;
        self.unacked.clear();
    }
}

/// One node: its threads' state, and what is under way between them.
struct Node {
    id: NodeId,
    shards: Vec<Shard>,
    ids: Vec<ConnIds>,
    /// By sender (shards, then lanes, then loose workers) and receiver.
    links: BTreeMap<(usize, usize), VecDeque<Letter>>,
    lanes: Vec<Vec<Job>>,
    loose: Vec<Job>,
    timers: Vec<(usize, Duration, Timer)>,
    runner: JobRunner,
    /// By SIGSTOP.
    stopped: bool,
    wound_up: usize,
}

struct World {
    rng: Rng,
    start: Instant,
    clock: Duration,
    nodes: Vec<Node>,
    /// Ids are never used again.
    next_node: u64,
    shards: usize,
    settings: Settings,
    /// By sending and receiving node: what the bus has yet to deliver.
    bus: BTreeMap<(NodeId, usize), VecDeque<BusEvent>>,
    bus_is_down: bool,
    /// Nodes that are dead, or seem so, and whose claims are yet to be taken from them; true: the
    /// others have been told.
    to_reap: Vec<(NodeId, bool)>,
    reaped: Vec<NodeId>,
    /// What a node had not read yet when it was stopped and its claims were taken from it: by sender.
    never: HashSet<(UserId, (bool, UserId, u64))>,
    sockets: HashMap<Address, Socket>,
    users: HashMap<UserId, User>,
    memory: Arc<Mutex<Memory>>,
    high_water: usize,
    /// Connections may be cut, and the store may fail for a while: both may repeat messages.
    faults: bool,
    /// Print every effect.
    trace: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = Rng(seed);
        let (nodes, shards) = (1 + rng.below(3), 1 + rng.below(3));
        let high_water = [300, 2_000, 1 << 20][rng.below(3)];
        let ways = [1, usize::MAX][rng.below(2)];
        let settings = Settings { high_water, ways, lanes: LANES, alone: nodes == 1, ..Settings::default() };
        let cost: Cost = "8,1".parse().unwrap();
        let password = Hasher::new(cost).hash("p").unwrap();
        let quota = rng.one_in(4).then(|| 1 + rng.below(8));
        let memory = Arc::new(Mutex::new(Memory { password, quota, ..Memory::default() }));
        let mut world = World {
            start: Instant::now(),
            clock: Duration::ZERO,
            nodes: Vec::new(),
            next_node: 0,
            shards,
            settings,
            bus: BTreeMap::new(),
            bus_is_down: false,
            to_reap: Vec::new(),
            reaped: Vec::new(),
            never: HashSet::new(),
            sockets: HashMap::new(),
            users: (1..=USERS).map(|user| (user, User::default())).collect(),
            memory,
            high_water,
            faults: rng.one_in(2),
            trace: std::env::var_os("CHAT_TRACE").is_some(),
            rng,
        };
        world.nodes = (0..nodes).map(|_| world.node()).collect();
        world
    }

    /// A node that has just been started.
    fn node(&mut self) -> Node {
        self.next_node += 1;
        let id = NodeId(self.next_node);
        let now = self.now();
        let cost: Cost = "8,1".parse().unwrap();
        let settings = Settings { node: id, hashes: HashQueue::new(1), ..self.settings.clone() };
        let memo = Arc::new(Memo::new().unwrap());
        Node {
            id,
            shards: (0..self.shards).map(|i| Shard::new(i, self.shards, settings.clone(), now)).collect(),
            ids: (0..self.shards).map(|i| ConnIds::new(i as u16)).collect(),
            links: BTreeMap::new(),
            lanes: (0..LANES).map(|_| Vec::new()).collect(),
            loose: Vec::new(),
            timers: Vec::new(),
            runner: JobRunner::new(
                Box::new(Memories(Arc::clone(&self.memory), id)),
                Hasher::new(cost),
                false,
                Some(memo),
            ),
            stopped: false,
            wound_up: 0,
        }
    }

    fn now(&self) -> Now {
        Now { at: self.start + self.clock, unix: 0 }
    }

    /// Calls a shard and carries out what it wants.
    fn call(&mut self, node: usize, shard: usize, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        let now = self.now();
        let mut fx = Effects::default();
        input(&mut self.nodes[node].shards[shard], now, &mut fx);
        // As the reactor does: when all effects are carried out, and before anything else comes.
        let (mut to_recall, mut over) = (Vec::new(), Vec::new());
        for effect in fx.list {
            if self.trace {
                println!("{:?} {node}/{shard}: {effect:?}", self.clock);
            }
            match effect {
                Effect::Send { conn, body, tag, .. } => {
                    let Some(socket) = self.sockets.get_mut(&(node, conn)) else { continue };
                    let bytes = match body {
                        Payload::Own(range) => fx.bytes[range].to_vec(),
                        Payload::Shared(bytes) => bytes.to_vec(),
                    };
                    socket.queue.push_back((bytes, tag));
                    over.push((node, conn));
                }
                Effect::Pause(conn) => _ = self.sockets.get_mut(&(node, conn)).map(|socket| socket.paused = true),
                Effect::Resume(conn) => _ = self.sockets.get_mut(&(node, conn)).map(|socket| socket.paused = false),
                Effect::Pace(_) => {}
                Effect::Recall(conn) => to_recall.push((node, conn)),
                Effect::Close(conn, reason) => {
                    _ = self.sockets.get_mut(&(node, conn)).map(|socket| socket.closing = Some(reason));
                }
                Effect::Post(to, letter) => {
                    self.nodes[node].links.entry((shard, to)).or_default().push_back(letter);
                }
                Effect::Submit(Lane::Number(lane), job) => self.nodes[node].lanes[lane].push(*job),
                Effect::Submit(Lane::None, job) => self.nodes[node].loose.push(*job),
                Effect::Bus(op) => self.publish(node, op),
                Effect::CheckClaims => self.check_claims(node),
                Effect::Timer(at, timer) => self.nodes[node].timers.push((shard, at - self.start, timer)),
                Effect::WoundUp => self.nodes[node].wound_up += 1,
            }
        }
        to_recall.into_iter().for_each(|address| self.recall(address));
        over.into_iter().for_each(|address| self.check_mark(address));
    }

    /// What Redis does.
    fn publish(&mut self, from: usize, op: BusOp) {
        let sender = self.nodes[from].id;
        let mut send = |to: usize, event| self.bus.entry((sender, to)).or_default().push_back(event);
        let others: Vec<usize> = (0..self.nodes.len()).filter(|node| *node != from).collect();
        match op {
            BusOp::ToNode(..) if self.bus_is_down => {}
            BusOp::ToNode(id, envelope) => {
                if let Some(to) = self.nodes.iter().position(|node| node.id == id) {
                    send(to, BusEvent::Envelope(sender, envelope));
                }
            }
            BusOp::ToAll(envelope, ticket) => {
                let reached = (!self.bus_is_down).then_some(others.len() as u32);
                if reached.is_some() {
                    others.into_iter().for_each(|to| send(to, BusEvent::Envelope(sender, envelope.clone())));
                }
                send(from, BusEvent::Reached(ticket, reached));
            }
            BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => {
                send(from, BusEvent::Reached(ticket, Some(0)));
            }
            BusOp::Listen { user, epoch, shard } => {
                let letter = Letter::Bus(BusEvent::Listening { user, epoch });
                self.nodes[from].links.entry((5000, usize::from(shard))).or_default().push_back(letter);
            }
            BusOp::Unlisten { .. } => {}
        }
    }

    fn deliver_envelope(&mut self) {
        let busy: Vec<_> = self
            .bus
            .iter()
            .filter(|((_, to), queue)| !queue.is_empty() && !self.nodes[*to].stopped)
            .map(|(link, _)| *link)
            .collect();
        if busy.is_empty() {
            return;
        }
        let link = busy[self.rng.below(busy.len())];
        let event = self.bus.get_mut(&link).unwrap().pop_front().unwrap();
        // From the bus's thread to the shards' mailboxes.
        let parts = match event {
            BusEvent::Envelope(from, envelope) => {
                let parts = envelope.split(self.shards).into_iter();
                parts.map(|(shard, part)| (shard, BusEvent::Envelope(from, part))).collect()
            }
            BusEvent::Reached(ticket, _) => vec![(usize::from(ticket.shard), event)],
            other => panic!("not by the bus: {other:?}"),
        };
        for (shard, event) in parts {
            self.nodes[link.1].links.entry((5001, shard)).or_default().push_back(Letter::Bus(event));
        }
    }

    /// What the keeper does: reads the claims, and hands them to the shards.
    fn check_claims(&mut self, node: usize) {
        let as_of = self.now().at;
        let id = self.nodes[node].id;
        let memory = self.memory.lock().unwrap();
        let mine = memory.claims.iter().filter(|(_, claim)| claim.node == id);
        let claims: Arc<HashMap<UserId, u64>> = Arc::new(mine.map(|(user, claim)| (*user, claim.epoch)).collect());
        for shard in 0..self.shards {
            let letter = Letter::Claims { as_of, claims: Arc::clone(&claims) };
            self.nodes[node].links.entry((5002, shard)).or_default().push_back(letter);
        }
    }

    /// What the keepers do: the death of a node is told to all shards, then its users are set
    /// offline.
    fn reap(&mut self) {
        if self.bus_is_down {
            return; // without Redis nobody is known to be dead
        }
        let Some((dead, told)) = self.to_reap.pop() else { return };
        if !told {
            self.tell_of_death(dead);
            return self.to_reap.push((dead, true));
        }
        let has_heard =
            |node: &Node| node.stopped || node.links.iter().all(|((from, _), queue)| *from != 5003 || queue.is_empty());
        if !self.nodes.iter().all(has_heard) {
            return self.to_reap.push((dead, true));
        }
        if let Some(node) = self.nodes.iter().position(|node| node.id == dead && node.stopped) {
            let sockets = self.sockets.iter().filter(|(address, _)| address.0 == node);
            self.never.extend(sockets.flat_map(|(_, socket)| sent_in(socket)));
        }
        self.memory.lock().unwrap().claims.retain(|_, claim| claim.node != dead);
        for user in self.users.values_mut() {
            let through_it = user.via.iter().filter(|(node, _)| *node == dead).map(|(_, sent)| *sent);
            user.limbo.extend(through_it.filter(|sent| !user.acked.contains(sent)));
        }
        self.reaped.push(dead);
        self.tell_of_death(dead);
    }

    fn tell_of_death(&mut self, dead: NodeId) {
        for node in self.nodes.iter_mut().filter(|node| node.id != dead) {
            for shard in 0..self.shards {
                node.links.entry((5003, shard)).or_default().push_back(Letter::NodeDied);
            }
        }
    }

    /// Nodes that were taken for dead and are not go on looking at their claims for a while.
    fn look_again(&mut self) {
        self.clock += Duration::from_millis(1);
        for node in 0..self.nodes.len() {
            if !self.nodes[node].stopped && self.reaped.contains(&self.nodes[node].id) {
                self.check_claims(node);
            }
        }
    }

    /// Redis goes away, or comes back.
    fn toggle_bus(&mut self) {
        self.bus_is_down = !self.bus_is_down;
        self.bus.clear();
        let event = if self.bus_is_down { BusEvent::Down } else { BusEvent::Up };
        for node in &mut self.nodes {
            for shard in 0..self.shards {
                node.links.entry((5001, shard)).or_default().push_back(Letter::Bus(event.clone()));
            }
        }
    }

    /// A node that is just storing something past another one, if there comes one soon.
    fn await_storing_past(&mut self) -> Option<usize> {
        let stores_past = |job: &Job| match &job.op {
            Op::Write(Write::Keep(parcels)) => parcels.iter().any(|parcel| parcel.past.is_some()),
            _ => false,
        };
        for _ in 0..1000 {
            self.step(true);
            let node = self.nodes.iter().position(|node| node.lanes.iter().flatten().any(stores_past));
            if node.is_some() {
                return node;
            }
        }
        None
    }

    /// A node is killed, and another one started in its place.
    fn kill(&mut self, node: usize) {
        // What it is just writing may be done all the same.
        if self.rng.one_in(2) {
            let node = &mut self.nodes[node];
            node.lanes.iter_mut().for_each(|lane| node.runner.run(lane, |_, _| {}));
        }
        let mut lost: Vec<Address> = self.sockets.keys().filter(|address| address.0 == node).copied().collect();
        lost.sort_by_key(|(_, conn)| conn.to_string());
        for address in lost {
            if let Some(socket) = self.sockets.remove(&address)
                && let Some(user) = self.users.get_mut(&socket.user).filter(|user| user.socket == Some(address))
            {
                user.disconnected();
            }
        }
        self.bus.retain(|(_, to), _| *to != node);
        self.to_reap.push((self.nodes[node].id, false));
        self.nodes[node] = self.node();
        if self.bus_is_down {
            for shard in 0..self.shards {
                self.nodes[node].links.entry((5001, shard)).or_default().push_back(Letter::Bus(BusEvent::Down));
            }
        }
    }

    /// A node is stopped, or goes on. It may be taken for dead meanwhile.
    fn toggle_stop(&mut self, node: usize) {
        let stopped = !self.nodes[node].stopped;
        self.nodes[node].stopped = stopped;
        if stopped {
            if self.rng.one_in(2) {
                self.to_reap.push((self.nodes[node].id, false));
            }
        } else {
            // The kernel may know of the clock only that it has gone on.
            self.clock += Duration::from_secs(10);
            for shard in 0..self.shards {
                self.call(node, shard, |shard, now, fx| shard.was_stopped(now, fx));
            }
        }
    }

    /// What the reactor does when a queue has passed the mark: recall whole chats.
    fn check_mark(&mut self, address: Address) {
        let Some(socket) = self.sockets.get(&address) else { return };
        let exempt = |tag: &Option<Tag>| matches!(tag, Some(Tag::Offline { .. }));
        let queued: usize = socket.queue.iter().filter(|(_, tag)| !exempt(tag)).map(|(bytes, _)| bytes.len()).sum();
        if !socket.over && queued > self.high_water {
            self.recall(address);
        }
    }

    fn recall(&mut self, address: Address) {
        let Some(socket) = self.sockets.get_mut(&address) else { return };
        let begun = socket.begun;
        let mut recalled = Vec::new();
        let mut kept = VecDeque::new();
        for (i, (bytes, tag)) in std::mem::take(&mut socket.queue).into_iter().enumerate() {
            let begun = begun && i == 0;
            match &tag {
                Some(chat @ Tag::Chat { .. }) => {
                    recalled.push(Unwritten { tag: chat.clone(), body: Arc::from(&*bytes), begun });
                    if begun {
                        kept.push_back((bytes, tag));
                    }
                }
                _ => kept.push_back((bytes, tag)),
            }
        }
        let is_empty = kept.is_empty();
        socket.over = !is_empty;
        socket.queue = kept;
        let (node, conn) = address;
        self.call(node, conn.reactor(), |shard, _, fx| shard.high_water(conn, recalled, fx));
        if is_empty {
            self.call(node, conn.reactor(), |shard, _, fx| shard.drained(conn, fx));
        }
    }

    fn deliver_letter(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let busy: Vec<_> = node.links.iter().filter(|(_, queue)| !queue.is_empty()).map(|(link, _)| *link).collect();
        if busy.is_empty() {
            return;
        }
        let link = busy[self.rng.below(busy.len())];
        let letter = node.links.get_mut(&link).unwrap().pop_front().unwrap();
        self.call(at, link.1, |shard, now, fx| shard.letter(letter, now, fx));
    }

    fn run_jobs(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let (from, mut batch) = if !node.loose.is_empty() && self.rng.one_in(2) {
            let at = self.rng.below(node.loose.len());
            (100 + self.rng.below(1000), vec![node.loose.swap_remove(at)])
        } else {
            let lane = self.rng.below(LANES);
            (10 + lane, std::mem::take(&mut node.lanes[lane]))
        };
        let links = &mut node.links;
        node.runner.run(&mut batch, |shard, done| {
            links.entry((from, shard)).or_default().push_back(Letter::Done(Box::new(done)));
        });
    }

    /// Hands a connection's input over, in pieces.
    fn read(&mut self, address: Address) {
        let Some(socket) = self.sockets.get_mut(&address) else { return };
        if socket.paused || socket.over || socket.closing.is_some() || socket.input.is_empty() {
            return;
        }
        let input = socket.input.clone();
        let mut taken = 0;
        let (node, conn) = address;
        self.call(node, conn.reactor(), |shard, now, fx| taken = shard.input(conn, &input, now, fx).bytes);
        if let Some(socket) = self.sockets.get_mut(&address) {
            socket.input.drain(..taken);
        }
    }

    /// The client reads one message, or half of one.
    fn write(&mut self, address: Address) {
        let (node, conn) = address;
        let half = self.rng.one_in(3);
        let Some(socket) = self.sockets.get_mut(&address) else { return };
        let user = socket.user;
        match socket.queue.front() {
            Some((bytes, _)) if bytes.is_empty() || !half || socket.begun => {
                let (bytes, tag) = socket.queue.pop_front().unwrap();
                socket.begun = false;
                if !bytes.is_empty() {
                    self.receive(user, address, &bytes);
                }
                if let Some(tag) = tag {
                    self.call(node, conn.reactor(), |shard, _, fx| shard.written(conn, tag, fx));
                }
            }
            Some(_) => socket.begun = true,
            None => {}
        }
        let Some(socket) = self.sockets.get_mut(&address) else { return };
        if socket.queue.is_empty() {
            if std::mem::take(&mut socket.over) {
                return self.call(node, conn.reactor(), |shard, _, fx| shard.drained(conn, fx));
            }
            if socket.closing.is_some() {
                self.cut(address);
            }
        }
    }

    /// The user's client finds its connection gone.
    fn client_is_cut(&mut self, address: Address, socket: &Socket) {
        let user = self.users.get_mut(&socket.user).unwrap();
        if user.socket == Some(address) {
            user.disconnected();
        }
    }

    /// A connection is gone.
    fn cut(&mut self, address: Address) {
        let Some(socket) = self.sockets.remove(&address) else { return };
        self.client_is_cut(address, &socket);
        let (node, conn) = address;
        let reason = socket.closing.unwrap_or(CloseReason::SocketError);
        let begun = socket.begun;
        let unwritten = socket.queue.into_iter().enumerate().filter_map(|(i, (bytes, tag))| {
            Some(Unwritten { tag: tag?, body: Arc::from(bytes), begun: begun && i == 0 })
        });
        let unwritten = unwritten.collect();
        self.call(node, conn.reactor(), |shard, _, fx| shard.closed(conn, reason, unwritten, fx));
        self.nodes[node].ids[conn.reactor()].free(conn);
    }

    /// What a client makes of a message.
    fn receive(&mut self, user: UserId, address: Address, bytes: &[u8]) {
        let value: Value = serde_json::from_slice(bytes).unwrap();
        let client = self.users.get_mut(&user).unwrap();
        match value["msgid"].as_i64().unwrap() {
            2 if client.socket == Some(address) => {
                client.logged_in = value["errno"] == 0;
                // Nobody else has the account, and a logout holds at once for the next login.
                assert!(client.logged_in || self.faults, "user {user} is refused: {value}");
                if client.logged_in && !self.faults {
                    let holder = self.memory.lock().unwrap().claims.get(&user).map(|claim| claim.node);
                    assert_eq!(holder, Some(self.nodes[address.0].id), "user {user} is logged in without a claim");
                }
                for offline in value["offlinemsg"].as_array().into_iter().flatten() {
                    let inner: Value = serde_json::from_str(offline.as_str().unwrap()).unwrap();
                    Self::got_chat(client, &inner);
                }
            }
            2 => {}
            6 | 10 => Self::got_chat(client, &value),
            200 => {
                let Some(what) = client.unacked.remove(&value["seq"].as_i64().unwrap()) else {
                    assert!(client.socket != Some(address), "a second reply, or one for nobody: {value}");
                    return;
                };
                if value["errno"] == 0 && value.get("failed").is_none() {
                    client.acked.push(what);
                }
            }
            // The store was down or full, and nobody waits for a seq; or the claim was lost.
            201 if value["errno"] == 21 || value["errno"] == 20 || value["errno"] == 13 => {}
            other => panic!("message {other}: {value}"),
        }
    }

    fn got_chat(client: &mut User, value: &Value) {
        let group = value["msgid"] == 10;
        let from = value["id"].as_u64().unwrap() as UserId;
        client.got.entry((group, from)).or_default().push(value["msg"].as_str().unwrap().trim().parse().unwrap());
    }

    /// A user does something: connect, write, log out, stall.
    fn act(&mut self, id: UserId) {
        let (node, shard) = (self.rng.below(self.nodes.len()), self.rng.below(self.shards));
        let dice = self.rng.below(100);
        let to = 1 + self.rng.below(USERS as usize) as u32;
        let pad = " ".repeat(self.rng.below(200));
        let faults = self.faults;
        let user = self.users.get_mut(&id).unwrap();
        let Some(address) = user.socket else {
            let conn = self.nodes[node].ids[shard].allocate();
            user.socket = Some((node, conn));
            let input = format!("{{\"msgid\":1,\"id\":{id},\"password\":\"p\"}}").into_bytes();
            let socket = Socket {
                user: id,
                input,
                queue: VecDeque::new(),
                begun: false,
                paused: false,
                closing: None,
                over: false,
                stalled: false,
            };
            self.sockets.insert((node, conn), socket);
            return self.call(node, shard, |shard, now, fx| shard.opened(conn, PEER, now, fx));
        };
        let stopped = self.nodes[address.0].stopped;
        let socket = self.sockets.get_mut(&address).unwrap();
        // A client whose node is silent goes away some time; the node will find out.
        if faults && (dice == 0 || (stopped && dice < 10)) {
            if stopped {
                return user.disconnected();
            }
            return self.cut(address);
        }
        if dice < 4 {
            socket.stalled = !socket.stalled;
            return;
        }
        // While its input waits, the node hears how it hangs up.
        if socket.paused && !stopped && dice < 20 {
            let how = if faults && dice < 8 { HangUp::Gone } else { HangUp::HalfClosed };
            if how == HangUp::Gone {
                user.disconnected();
            }
            let (node, conn) = address;
            return self.call(node, conn.reactor(), |shard, _, fx| shard.hung_up(conn, how, fx));
        }
        if !user.logged_in {
            if !socket.paused && socket.input.is_empty() && socket.queue.is_empty() && dice < 30 {
                // Refused, because the last session had not ended; or logged out.
                socket.input = format!("{{\"msgid\":1,\"id\":{id},\"password\":\"p\"}}").into_bytes();
            }
            return;
        }
        if dice < 8 {
            user.logged_in = false;
            // What is not acked at the logout may be acked behind it; its seq stays valid.
            socket.input.extend_from_slice(format!("{{\"msgid\":3,\"id\":{id}}}").as_bytes());
            return;
        }
        let group = dice < 25;
        let to = if group { GROUP } else { to };
        let number = user.sent.entry((group, to)).or_default();
        *number += 1;
        user.next_seq += 1;
        let (seq, number) = (user.next_seq, *number);
        let target =
            if group { format!("\"msgid\":10,\"groupid\":{to}") } else { format!("\"msgid\":6,\"toid\":{to}") };
        let through = self.nodes[address.0].id;
        user.via.push((through, (group, to, number)));
        // The node may not know yet that this session's claim is gone.
        if self.reaped.contains(&through) {
            user.limbo.insert((group, to, number));
        }
        let with_seq = if dice.is_multiple_of(4) { String::new() } else { format!(",\"seq\":{seq}") };
        if !with_seq.is_empty() {
            user.unacked.insert(seq, (group, to, number));
        }
        let text =
            format!("{{{target},\"id\":{id},\"name\":\"u{id}\",\"time\":\"\",\"msg\":\"{number}{pad}\"{with_seq}}}");
        socket.input.extend_from_slice(text.as_bytes());
    }

    /// While all comes to rest, time passes more slowly: with every user on the way to every other, what was
    /// asked could not be answered in time otherwise, and would be asked again for ever.
    fn fire_timer(&mut self, acting: bool) {
        self.clock += Duration::from_millis(match (self.faults, acting) {
            (true, true) => 100,
            (true, false) => 10,
            (false, _) => 2,
        });
        let (clock, at) = (self.clock, self.rng.below(self.nodes.len()));
        let node = &mut self.nodes[at];
        if node.stopped {
            return;
        }
        let Some(due) = node.timers.iter().position(|(_, due, _)| *due <= clock) else { return };
        let (shard, _, timer) = node.timers.swap_remove(due);
        self.call(at, shard, |shard, now, fx| shard.timer(timer, now, fx));
    }

    fn random_socket(&mut self) -> Option<Address> {
        let mut all: Vec<_> = self
            .sockets
            .iter()
            .filter(|(address, _)| !self.nodes[address.0].stopped)
            .map(|(address, socket)| (socket.user, address.0, address.1.to_string(), *address))
            .collect();
        all.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
        (!all.is_empty()).then(|| all[self.rng.below(all.len())].3)
    }

    fn step(&mut self, acting: bool) {
        let at = self.rng.below(self.nodes.len());
        match self.rng.below(13) {
            0..=2 if !self.nodes[at].stopped => self.deliver_letter(at),
            3..=4 if !self.nodes[at].stopped => self.run_jobs(at),
            5..=6 => {
                if let Some(address) = self.random_socket() {
                    self.read(address);
                }
            }
            7..=9 => {
                if let Some(address) = self.random_socket()
                    && (!acting || !self.sockets[&address].stalled)
                {
                    self.cut_the_abandoned(address);
                    self.write(address);
                }
            }
            10 => self.fire_timer(acting),
            11 => self.deliver_envelope(),
            12 if acting => {
                let user = 1 + self.rng.below(USERS as usize) as u32;
                self.act(user);
            }
            _ => {}
        }
    }

    /// A node that goes on finds the clients gone that went away while it was stopped.
    fn cut_the_abandoned(&mut self, address: Address) {
        if self.sockets.get(&address).is_some_and(|socket| self.users[&socket.user].socket != Some(address)) {
            self.cut(address);
        }
    }

    /// Something breaks, for a while.
    fn fault(&mut self) {
        let at = self.rng.below(self.nodes.len());
        let steps = 30 + self.rng.below(300);
        let is_cluster = self.nodes.len() > 1;
        let dice = self.rng.below(if is_cluster { 5 } else { 2 });
        if self.trace {
            println!("{:?} fault {dice} at node {at}", self.clock);
        }
        match dice {
            0 => {
                let loses_answers = self.rng.one_in(2);
                let mut memory = self.memory.lock().unwrap();
                (memory.down, memory.loses_answers) = (true, loses_answers);
            }
            // Nothing goes on for so long that logins are given up.
            1 => self.clock += Duration::from_secs(7 + self.rng.below(5) as u64),
            2 => self.toggle_bus(),
            3 => self.toggle_stop(at),
            _ => {
                let node = if self.rng.one_in(2) { self.await_storing_past() } else { None };
                self.kill(node.unwrap_or(at));
            }
        }
        // Whoever has stored something that could not be told of may die before it can.
        let mut dies = is_cluster && matches!(dice, 2 | 3) && self.rng.one_in(3);
        for _ in 0..steps {
            self.step(true);
            if dies && self.rng.one_in(100) {
                dies = false;
                let other = self.rng.below(self.nodes.len());
                if !self.nodes[other].stopped {
                    self.kill(other);
                }
            }
            if self.rng.one_in(60) {
                self.reap();
            }
            if self.rng.one_in(200) {
                self.look_again();
            }
        }
        match dice {
            0 => self.memory.lock().unwrap().down = false,
            2 => self.toggle_bus(),
            3 => self.toggle_stop(at),
            _ => {}
        }
    }

    /// Lets everything come to rest: all clients read, nobody acts.
    fn settle(&mut self) {
        for _ in 0..400_000 {
            let quiet = |node: &Node| {
                node.links.values().all(VecDeque::is_empty)
                    && node.lanes.iter().all(Vec::is_empty)
                    && node.loose.is_empty()
            };
            if self.nodes.iter().all(quiet)
                && self.bus.values().all(VecDeque::is_empty)
                && self.sockets.values().all(|socket| socket.queue.is_empty() && socket.input.is_empty())
            {
                // Nothing else can happen any more.
                let due = self.nodes.iter().flat_map(|node| &node.timers).map(|(_, due, _)| *due).min();
                let Some(due) = due else { return };
                self.clock = self.clock.max(due);
            }
            self.step(false);
            if self.rng.one_in(20) {
                self.clock += Duration::from_millis(if self.faults { 5 } else { 1 });
            }
        }
        let sockets: Vec<_> =
            self.sockets.values().map(|s| (s.user, s.paused, s.over, s.queue.len(), s.input.len())).collect();
        panic!("it does not come to rest: sockets (user, paused, over, queue, input) {sockets:?}");
    }

    fn check(&self) {
        for (id, user) in &self.users {
            for ((group, from), numbers) in &user.got {
                let mut first = Vec::new();
                let mut seen = HashSet::new();
                let sender = &self.users[from];
                let to = if *group { GROUP } else { *id };
                let unread = numbers.iter().find(|number| self.never.contains(&(*from, (*group, to, **number))));
                assert!(unread.is_none(), "from {from} to {id} (group {group}): {unread:?} by a claim that was gone");
                numbers.iter().for_each(|number| {
                    if seen.insert(*number) && !sender.limbo.contains(&(*group, to, *number)) {
                        first.push(*number);
                    }
                });
                assert!(first.is_sorted(), "from {from} to {id} (group {group}) out of order: {numbers:?}");
                if !self.faults {
                    assert_eq!(seen.len(), numbers.len(), "from {from} to {id} (group {group}) repeated: {numbers:?}");
                }
            }
            for &(group, to, number) in &user.acked {
                let got = |to: UserId| self.users[&to].got.get(&(group, *id)).is_some_and(|got| got.contains(&number));
                let to = if group { (1..=USERS).filter(|to| to != id).collect() } else { vec![to] };
                for to in to {
                    assert!(got(to), "from {id} to {to} (group {group}): {number} was acked and is lost");
                }
            }
        }
    }

    fn run(mut self) {
        let steps = 500 + self.rng.below(1500) * self.nodes.len();
        for _ in 0..steps {
            if self.faults && self.rng.one_in(400) {
                self.fault();
            }
            self.step(true);
        }
        while !self.to_reap.is_empty() {
            self.reap();
            self.step(false);
        }
        for _ in 0..if self.reaped.is_empty() { 0 } else { 3 } {
            (0..500).for_each(|_| self.step(false));
            self.look_again();
        }
        self.settle();
        assert!(self.users.values().all(|user| !user.logged_in || user.unacked.is_empty()), "a seq got no reply");
        // Everybody comes back and reads what was missed.
        for id in 1..=USERS {
            for _ in 0..40_000 {
                let user = &self.users[&id];
                match user.socket {
                    Some(_) if user.logged_in => break,
                    Some(address) => {
                        let socket = self.sockets.get_mut(&address).unwrap();
                        if !socket.paused && socket.input.is_empty() && socket.queue.is_empty() {
                            socket.input = format!("{{\"msgid\":1,\"id\":{id},\"password\":\"p\"}}").into_bytes();
                        }
                    }
                    None => self.act(id),
                }
                self.step(false);
            }
            assert!(self.users[&id].logged_in, "user {id} cannot log in any more");
        }
        self.settle();
        self.check();
        let memory = Arc::clone(&self.memory);
        let left: Vec<_> = memory.lock().unwrap().rows.values().cloned().collect();
        assert!(left.is_empty(), "offline messages were left behind: {left:?}");
        assert_eq!(memory.lock().unwrap().claims.len(), USERS as usize);
        // The end: everybody is offline, and every shard says that it has wound up.
        for node in 0..self.nodes.len() {
            for shard in 0..self.shards {
                self.call(node, shard, |shard, _, fx| shard.stop(fx));
            }
        }
        for _ in 0..40_000 {
            if self.nodes.iter().all(|node| node.wound_up == self.shards) {
                break;
            }
            self.step(false);
        }
        let population = |node: &Node| node.shards.iter().map(Shard::population).collect::<Vec<_>>();
        let left: Vec<_> = self.nodes.iter().map(|node| (node.wound_up, population(node))).collect();
        assert!(self.nodes.iter().all(|node| node.wound_up == self.shards), "a shard did not wind up: {left:?}");
        assert!(memory.lock().unwrap().claims.is_empty(), "somebody was left online");
    }
}

/// The messages in what a shard has not read yet: by sender.
fn sent_in(socket: &Socket) -> Vec<(UserId, (bool, UserId, u64))> {
    let number = |value: &Value| value.as_str()?.trim().parse().ok();
    let message = |object: Value| {
        let group = object["msgid"] == 10;
        let to = if group { GROUP } else { object["toid"].as_u64()? as UserId };
        Some((socket.user, (group, to, number(&object["msg"])?)))
    };
    let objects = serde_json::Deserializer::from_slice(&socket.input).into_iter::<Value>();
    objects.map_while(Result::ok).filter_map(message).collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

#[test]
fn the_promises_hold_under_every_schedule() {
    if let Some(seed) = number("CHAT_SEED") {
        return World::new(seed).run();
    }
    let first = number("CHAT_FIRST_SEED").unwrap_or(0);
    let end = first + number("CHAT_SEEDS").unwrap_or(2500);
    let next = AtomicU64::new(first);
    let failed = AtomicU64::new(u64::MAX);
    let run_seeds = || {
        while failed.load(Ordering::Relaxed) == u64::MAX {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            if std::panic::catch_unwind(|| World::new(seed).run()).is_err() {
                failed.fetch_min(seed, Ordering::Relaxed);
            }
            if (seed + 1 - first).is_multiple_of(50_000) {
                println!("{} seeds hold", seed + 1 - first);
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (0..cores).for_each(|_| _ = scope.spawn(run_seeds));
    });
    let seed = failed.into_inner();
    assert!(seed == u64::MAX, "seed {seed} fails: CHAT_SEED={seed} cargo test --test simulation");
}
