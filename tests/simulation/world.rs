//! A run: its plan, its steps, its faults and its end.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{CloseReason, ConnId};
use chat_server::service::{Effect, Effects, Job, Lane, Letter, Now, Op, Payload, Settings, Shard};
use chat_server::store::{GroupId, UserId, Write};

use crate::bus::Redis;
use crate::check::{Promises, Record};
use crate::client::{Client, Habits};
use crate::cpp::{self, CppNode};
use crate::node::{Ghost, Item, Node, Port};
use crate::rng::Rng;
use crate::socket::{Side, Socket, SocketId};
use crate::store::{Database, Trouble};

/// Each has an account of its own, by its number plus 1.
pub const CLIENTS: usize = 5;
pub const GROUPS: usize = 4;
pub const LANES: usize = 3;
/// The address of all clients.
pub const PEER: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1));
/// How long it may take until all users can log in again: a lease runs out (5 s), its reaper has had its own
/// for as long, the claims are freed 2 s after the mark, others are asked every 2 s; and a login waits for 10 s.
const AFTER_FAULTS: Duration = Duration::from_secs(30);
/// The same where nothing was wrong.
const WITHOUT_FAULTS: Duration = Duration::from_secs(5);
/// How long a claim may outlast its connection while no client reads: a second until the queues are taken back, one for
/// what is half written, and the store.
const NOBODY_READS: Duration = Duration::from_secs(8);
/// When nothing has happened for this time, nothing will.
const REST: Duration = Duration::from_secs(15);

/// What a seed decides beforehand.
pub struct Plan {
    pub is_alone: bool,
    pub settings: Settings,
    pub high_water: usize,
    pub quota: Option<usize>,
    /// Some messages are refused by the database.
    pub poisons: bool,
    /// Things break.
    pub faults: bool,
    kinds: Vec<Kind>,
    /// Nodes are told to stop.
    terminates: bool,
    /// Clients may be gone before their login is answered.
    pub is_hasty: bool,
    pub habits: Habits,
    /// What a step takes.
    pace: Duration,
    /// How often time leaps.
    leaps: usize,
    weights: [usize; WHAT.len()],
}

impl Plan {
    /// Whether messages can be lost at a stop though the store is well.
    pub fn loses_by_itself(&self) -> bool {
        // What C++ nodes publish may come when a shard has wound up.
        self.quota.is_some() || self.poisons || self.settings.mixed
    }
}

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Letter,
    Job,
    Read,
    Write,
    Turn,
    Redis,
    Reply,
    Hear,
    Timer,
    Watch,
    Ghost,
    Act,
    ActAtCppNode,
}

const WHAT: [What; 13] = [
    What::Letter,
    What::Job,
    What::Read,
    What::Write,
    What::Turn,
    What::Redis,
    What::Reply,
    What::Hear,
    What::Timer,
    What::Watch,
    What::Ghost,
    What::Act,
    What::ActAtCppNode,
];

/// What can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Store,
    StoreLine,
    StoreStandsStill,
    Publisher,
    Subscriber,
    Lease,
    CutOff,
    Redis,
    Stop,
    Suspend,
    Kill,
    Leap,
}

/// With other nodes; those that concern a node that is alone come first.
const KINDS: [Kind; 12] = [
    Kind::Store,
    Kind::StoreStandsStill,
    Kind::Kill,
    Kind::Leap,
    Kind::StoreLine,
    Kind::Publisher,
    Kind::Subscriber,
    Kind::Lease,
    Kind::CutOff,
    Kind::Redis,
    Kind::Stop,
    Kind::Suspend,
];
const KINDS_ALONE: usize = 4;

/// Something that is broken.
struct Fault {
    kind: Kind,
    at: usize,
    since: Duration,
    until: Duration,
}

pub struct World {
    pub rng: Rng,
    pub plan: Plan,
    start: Instant,
    pub clock: Duration,
    pub nodes: Vec<Node>,
    /// Ids are never used again.
    pub next_node: u64,
    pub ghosts: Vec<Ghost>,
    pub redis: Redis,
    pub database: Arc<Mutex<Database>>,
    pub sockets: BTreeMap<SocketId, Socket>,
    pub next_socket: SocketId,
    pub clients: Vec<Client>,
    pub next_seq: i64,
    pub cpp: Option<CppNode>,
    pub record: Record,
    faults: Vec<Fault>,
    is_traced: bool,
    /// The digest of all that happened.
    digest: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let nodes = 1 + rng.below(3);
        let is_alone = nodes == 1 && rng.one_in(2);
        let mixed = !is_alone && rng.one_in(6);
        let faults = rng.one_in(2);
        let high_water = rng.pick(&[300, 2_000, 1 << 20]);
        let quota = rng.one_in(5).then(|| 1 + rng.below(8));
        let settings = Settings {
            high_water,
            routes: rng.pick(&[1, usize::MAX]),
            lanes: LANES,
            single_node: is_alone,
            mixed,
            ..Settings::default()
        };
        let kinds = &KINDS[..if is_alone { KINDS_ALONE } else { KINDS.len() }];
        // Some of them, so that each is also seen without the others.
        let kinds: Vec<Kind> = kinds.iter().copied().filter(|_| rng.one_in(3)).collect();
        let pace = match faults {
            true => rng.pick(&[100, 500, 500, 2_000, 10_000]),
            false => 50,
        };
        let plan = Plan {
            is_alone,
            settings,
            high_water,
            quota,
            poisons: rng.one_in(8),
            faults,
            kinds,
            terminates: rng.one_in(3),
            is_hasty: rng.one_in(3),
            habits: Habits::new(&mut rng),
            pace: Duration::from_micros(pace),
            leaps: rng.pick(&[50, 200, 1000]),
            weights: WHAT.map(|what| match what {
                What::Watch | What::Ghost => 1,
                What::ActAtCppNode => 2,
                _ => rng.pick(&[1, 3, 8]),
            }),
        };
        let password = match mixed {
            true => "p".to_owned(),
            false => a_hash().to_owned(),
        };
        let database = Database::new(rng.next(), !is_alone, password, quota);
        let mut world = World {
            plan,
            start: Instant::now(),
            clock: Duration::from_secs(60),
            nodes: Vec::new(),
            next_node: 0,
            ghosts: Vec::new(),
            redis: Redis::default(),
            database: Arc::new(Mutex::new(database)),
            sockets: BTreeMap::new(),
            next_socket: 0,
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            next_seq: 0,
            cpp: mixed.then(CppNode::default),
            record: Record::default(),
            faults: Vec::new(),
            is_traced: std::env::var_os("CHAT_TRACE").is_some(),
            digest: 0,
            rng,
        };
        world.found_groups();
        for at in 0..nodes {
            let node = world.new_node();
            world.nodes.push(node);
            world.tick(at);
        }
        world
    }

    fn found_groups(&mut self) {
        if self.cpp.is_some() {
            self.record.foreign.extend((CLIENTS + 1..=CLIENTS + cpp::USERS).map(|user| user as UserId));
        }
        for group in 1..=GROUPS as GroupId {
            for user in 1..=self.users() as UserId {
                // Most groups are still to be joined, and each has at least one member.
                if user == 1 || (group == 1 && user != 2) || self.rng.one_in(5) {
                    self.database().add_member(group, user);
                    self.record.is_member_from_the_start(group, user);
                }
            }
        }
    }

    /// How many accounts there are.
    pub fn users(&self) -> usize {
        CLIENTS + if self.cpp.is_some() { cpp::USERS } else { 0 }
    }

    pub fn database(&self) -> MutexGuard<'_, Database> {
        self.database.lock().expect("a database")
    }

    pub fn trace(&self, what: impl FnOnce() -> String) {
        if self.is_traced {
            println!("{:.4?} {}", self.clock, readable(&what()));
        }
    }

    fn digest(&mut self, what: u64) {
        self.digest = (self.digest ^ what).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(17);
    }

    /// The time, by a clock that is behind by `lag`.
    pub fn now_with(&self, lag: Duration) -> Now {
        Now { at: self.start + (self.clock - lag), unix: 0 }
    }

    // -- a shard's inputs and effects -------------------------------------------------------------------

    /// Calls a shard and carries out what it wants.
    pub fn call(&mut self, at: usize, shard: usize, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        let now = self.now_with(self.nodes[at].lag);
        let mut fx = Effects::default();
        let before = self.nodes[at].shards[shard].held();
        input(&mut self.nodes[at].shards[shard], now, &mut fx);
        let held = self.nodes[at].shards[shard].held();
        if held != before {
            self.trace(|| format!("node {at}/{shard} holds {held} bytes"));
        }
        // As the reactor does: when all effects are carried out, and before anything else comes.
        let (mut to_recall, mut sent, mut to_abort) = (Vec::new(), Vec::new(), Vec::new());
        self.digest(((at as u64) << 32) + ((shard as u64) << 16) + fx.list.len() as u64);
        for effect in fx.list {
            self.trace(|| format!("node {at}/{shard}: {effect:?}"));
            match effect {
                Effect::Send { conn, body, tag, options, .. } => {
                    let id = self.socket_of(at, shard, conn);
                    let bytes = match body {
                        Payload::Own(range) => fx.bytes[range].to_vec(),
                        Payload::Shared(bytes) => bytes.to_vec(),
                    };
                    self.digest(bytes.len() as u64);
                    self.enqueue(id, bytes, tag, options);
                    sent.push(id);
                }
                Effect::Pause(conn) => self.socket(at, shard, conn).paused = true,
                Effect::Resume(conn) => self.socket(at, shard, conn).resume(),
                Effect::Pace(conn) | Effect::Unpace(conn) => _ = self.socket(at, shard, conn),
                Effect::Recall(conn, how) => to_recall.push((self.socket_of(at, shard, conn), how)),
                Effect::Close(conn, reason) => {
                    let clock = self.clock;
                    self.socket(at, shard, conn).close(reason, clock);
                }
                Effect::Abort(conn, reason) => to_abort.push((self.socket_of(at, shard, conn), reason)),
                Effect::Move { conn, to, moved } => self.depart(at, conn, to, moved),
                Effect::Post(to, letter) => self.nodes[at].post(Port::Shard(shard), to, Item::Letter(letter)),
                Effect::Submit(Lane::Number(lane), job) => self.nodes[at].lanes[lane % LANES].push(*job),
                Effect::Submit(Lane::None, job) => self.nodes[at].loose.push(*job),
                Effect::Bus(op) => self.nodes[at].turns[shard].push(op),
                Effect::Timer(time, timer) => {
                    let time = time.saturating_duration_since(self.start);
                    self.nodes[at].set_timer(time, shard, timer);
                }
                Effect::WoundUp => {
                    assert!(self.nodes[at].is_ending, "it winds up, and was not told to");
                    assert!(!std::mem::replace(&mut self.nodes[at].wound_up[shard], true), "it winds up twice");
                }
                Effect::Marked => self.nodes[at].is_marked = true,
            }
        }
        for (id, how) in to_recall {
            self.flush_and_recall(id, how);
        }
        sent.into_iter().for_each(|id| self.check_mark(id));
        for (id, reason) in to_abort {
            self.cut(id, CloseReason::Handler(reason));
        }
    }

    fn socket_of(&self, at: usize, shard: usize, conn: ConnId) -> SocketId {
        let node = &self.nodes[at];
        assert_eq!(conn.reactor(), shard, "{conn} is not a connection of shard {shard}");
        assert!(!node.moved_away.contains(&conn), "{conn} has moved away");
        let Some(id) = node.conns.get(&conn) else { panic!("{conn} is gone, and something is wanted of it") };
        *id
    }

    fn socket(&mut self, at: usize, shard: usize, conn: ConnId) -> &mut Socket {
        let id = self.socket_of(at, shard, conn);
        self.sockets.get_mut(&id).expect("a connection of the table")
    }

    // -- what happens -----------------------------------------------------------------------------------

    /// One thing happens, if anything can; `acting`: also what clients do by themselves.
    fn step(&mut self, acting: bool) -> bool {
        let first = self.rng.weighted(&self.plan.weights).unwrap_or(0);
        let happened = (first..first + WHAT.len()).any(|i| self.happens(WHAT[i % WHAT.len()], acting));
        if !self.redis.for_foreign.is_empty() {
            self.deliver_at_cpp_node();
        }
        self.check_removed();
        self.end_nodes();
        happened
    }

    fn happens(&mut self, what: What, acting: bool) -> bool {
        match what {
            What::Letter => self.some_node(|world, at| world.may_act(at) && world.take_letter(at)),
            What::Job => self.some_node(World::run_jobs),
            What::Read => self.some_socket(Socket::is_readable, World::read),
            What::Write => self.some_socket(Socket::is_writable, World::write),
            What::Turn => self.some_node(|world, at| {
                let shard = world.rng.below(world.nodes[at].shards.len());
                world.may_act(at)
                    && (0..world.nodes[at].shards.len()).any(|i| {
                        let shards = world.nodes[at].shards.len();
                        world.end_turn(at, (shard + i) % shards)
                    })
            }),
            What::Redis => self.run_redis(),
            What::Reply => self.some_node(|world, at| world.runs(at) && world.read_reply(at)),
            What::Hear => self.some_node(|world, at| world.runs(at) && world.hear(at)),
            What::Timer => self.some_node(|world, at| world.may_act(at) && world.fire_timer(at)),
            What::Watch => {
                let due: Vec<SocketId> = self.sockets.keys().copied().filter(|id| self.is_to_be_watched(*id)).collect();
                due.into_iter().any(|id| self.watch(id))
            }
            What::Ghost => self.run_ghost() || self.database().commit_late(),
            What::Act if acting => {
                let client = self.rng.below(CLIENTS);
                (0..CLIENTS).any(|i| self.act((client + i) % CLIENTS))
            }
            What::ActAtCppNode if acting => self.act_at_cpp_node(),
            What::Act | What::ActAtCppNode => false,
        }
    }

    /// Tries all nodes, beginning with any.
    fn some_node(&mut self, mut what: impl FnMut(&mut World, usize) -> bool) -> bool {
        let (count, first) = (self.nodes.len(), self.rng.below(self.nodes.len()));
        (first..first + count).any(|at| what(self, at % count))
    }

    fn some_socket(&mut self, is_due: impl Fn(&Socket) -> bool, what: impl FnOnce(&mut World, SocketId)) -> bool {
        let may_act: Vec<bool> = (0..self.nodes.len()).map(|at| self.may_act(at)).collect();
        let due = || self.sockets.iter().filter(|(_, socket)| is_due(socket) && may_act[socket.node]);
        let count = due().count();
        if count == 0 {
            return false;
        }
        let nth = self.rng.below(count);
        let Some((id, _)) = due().nth(nth) else { return false };
        what(self, *id);
        true
    }

    fn is_to_be_watched(&self, id: SocketId) -> bool {
        self.may_act(self.sockets[&id].node) && self.watch_at(id).is_some_and(|at| at < self.clock)
    }

    fn take_letter(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let busy = || node.links.iter().filter(|(_, queue)| !queue.is_empty()).map(|(link, _)| *link);
        let count = busy().count();
        if count == 0 {
            return false;
        }
        let nth = self.rng.below(count);
        let Some(link) = busy().nth(nth) else { return false };
        match node.links.get_mut(&link).and_then(VecDeque::pop_front) {
            Some(Item::Letter(letter)) => self.call(at, link.1, |shard, now, fx| shard.letter(letter, now, fx)),
            Some(Item::Moved(id, moved)) => self.arrive(at, link.1, id, moved),
            None => {}
        }
        if matches!(link.0, Port::Worker(_)) && self.nodes[at].links[&link].is_empty() {
            self.nodes[at].links.remove(&link);
        }
        true
    }

    /// A worker takes what a lane has, or a job of no lane.
    fn run_jobs(&mut self, at: usize) -> bool {
        if !self.runs(at) || self.nodes[at].store_stands_still_until > self.clock {
            return false;
        }
        let node = &mut self.nodes[at];
        let lanes = (0..LANES).filter(|lane| !node.lanes[*lane].is_empty()).map(Some);
        let busy: Vec<Option<usize>> = lanes.chain((!node.loose.is_empty()).then_some(None)).collect();
        if busy.is_empty() {
            return false;
        }
        let (port, mut batch) = match self.rng.pick(&busy) {
            Some(lane) => (Port::Lane(lane), std::mem::take(&mut node.lanes[lane])),
            None => {
                let job = self.rng.below(node.loose.len());
                (Port::Worker(self.rng.next()), vec![node.loose.swap_remove(job)])
            }
        };
        let links = &mut node.links;
        node.runner.run(&mut batch, |shard, done| {
            let letter = Letter::Done(Box::new(done));
            links.entry((port, shard)).or_default().push_back(Item::Letter(letter));
        });
        true
    }

    fn fire_timer(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let now = self.clock - node.lag;
        let Some(first) = node.timers.first_entry().filter(|first| first.key().0 <= now) else { return false };
        let (shard, timer) = first.remove();
        self.call(at, shard, |shard, now, fx| shard.timer(timer, now, fx));
        true
    }

    /// A transaction of a node that was killed is committed after its death.
    pub fn run_ghost(&mut self) -> bool {
        if self.ghosts.is_empty() {
            return false;
        }
        let at = self.rng.below(self.ghosts.len());
        let mut ghost = self.ghosts.swap_remove(at);
        ghost.runner.run(&mut ghost.jobs, |_, _| {});
        true
    }

    /// No message is removed before it has arrived.
    fn check_removed(&mut self) {
        let removed = self.database().take_removed();
        for (user, text) in removed {
            let text = String::from_utf8_lossy(&text);
            assert!(self.record.has_got(user, text.as_bytes()), "removed, and {user} has not got it: {text}");
        }
    }

    /// Nodes that have come to their end.
    fn end_nodes(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_marked {
                self.abandon(at);
            } else if self.has_ended(at) {
                self.finish(at);
            }
        }
    }

    /// Time passes.
    fn pass(&mut self, time: Duration) {
        self.clock += time;
        let clock = self.clock;
        self.database().clock = clock;
        (0..self.nodes.len()).for_each(|at| self.tick(at));
        self.end_nodes();
    }

    /// A while passes, in which not everything has its turn.
    fn leap(&mut self) {
        let time = self.rng.pick(&[200, 1100, 2500]);
        for _ in 0..1 + self.rng.below(time / 100) {
            if !self.plan.faults {
                // Nothing is late: what can happen has happened.
                for _ in 0..5000 {
                    if !self.step(false) {
                        break;
                    }
                }
            }
            (0..self.rng.below(20)).for_each(|_| _ = self.step(false));
            self.pass(Duration::from_millis(100));
        }
    }

    // -- faults -----------------------------------------------------------------------------------------

    fn begin_fault(&mut self) {
        if self.plan.kinds.is_empty() || self.faults.len() > 1 {
            return;
        }
        let (kind, at) = (self.rng.pick(&self.plan.kinds), self.rng.below(self.nodes.len()));
        let is_taken = |fault: &Fault| fault.kind == kind || (fault.at == at && kind == Kind::Kill);
        if self.faults.iter().any(is_taken) || !self.nodes[at].is_started {
            return;
        }
        self.trace(|| format!("fault {kind:?} at node {at}"));
        let id = self.nodes[at].id;
        let trouble = self.rng.pick(&[Trouble::Away, Trouble::ReadOnly, Trouble::LosesAnswers]);
        let longest = self.rng.pick(&[700, 3_000, 12_000]);
        let mut length = 300 + self.rng.below(longest);
        match kind {
            Kind::Store => self.database().set_trouble(trouble),
            Kind::StoreLine => self.database().set_line(id, trouble),
            Kind::StoreStandsStill => {
                let until = self.clock + Duration::from_millis(length as u64);
                self.database().has_failed = true;
                self.nodes[at].store_stands_still_until = until;
            }
            Kind::Publisher => {
                self.nodes[at].ends.can_publish = self.rng.one_in(2);
                self.break_publisher(at);
            }
            Kind::Subscriber => {
                self.nodes[at].ends.can_listen = self.rng.one_in(2);
                self.break_subscriber(at);
            }
            Kind::Lease => self.nodes[at].keeper.can_renew = false,
            Kind::CutOff => {
                self.nodes[at].keeper.can_renew = false;
                (self.nodes[at].ends.can_publish, self.nodes[at].ends.can_listen) = (false, false);
                self.break_publisher(at);
                self.break_subscriber(at);
            }
            Kind::Redis => self.redis_goes_away(),
            Kind::Stop | Kind::Suspend => self.stand_still(at),
            Kind::Kill => {
                let storing_past = if self.rng.one_in(2) { self.await_storing_past() } else { None };
                self.kill(storing_past.unwrap_or(at));
                length = 0;
            }
            Kind::Leap => {
                // Everything stands still at once.
                self.pass(Duration::from_millis(length as u64));
                length = 0;
            }
        }
        let until = self.clock + Duration::from_millis(length as u64);
        self.faults.push(Fault { kind, at, since: self.clock, until });
    }

    /// A node that is just storing something past another one, if there comes one soon.
    fn await_storing_past(&mut self) -> Option<usize> {
        let is_past = |job: &Job| match &job.op {
            Op::Write(Write::Keep(parcels)) => parcels.iter().any(|parcel| parcel.past.is_some()),
            _ => false,
        };
        for _ in 0..500 {
            self.step(true);
            self.pass(self.plan.pace);
            let stores = |node: &Node| !node.is_stopped && node.lanes.iter().flatten().any(is_past);
            if let Some(at) = self.nodes.iter().position(stores) {
                return Some(at);
            }
        }
        None
    }

    /// What was broken at a node is over with the node.
    pub fn forget_faults_at(&mut self, at: usize) {
        self.faults.retain(|fault| fault.at != at || matches!(fault.kind, Kind::Store | Kind::Redis));
    }

    fn end_faults(&mut self, all: bool) {
        let (over, left) =
            std::mem::take(&mut self.faults).into_iter().partition(|fault| all || fault.until <= self.clock);
        self.faults = left;
        let over: Vec<Fault> = over;
        for Fault { kind, at, since, .. } in over {
            self.trace(|| format!("fault {kind:?} at node {at} is over"));
            match kind {
                Kind::Store => self.database().set_trouble(Trouble::None),
                Kind::StoreLine => {
                    let id = self.nodes[at].id;
                    self.database().set_line(id, Trouble::None);
                }
                Kind::StoreStandsStill => self.nodes[at].store_stands_still_until = Duration::ZERO,
                Kind::Publisher => self.nodes[at].ends.can_publish = true,
                Kind::Subscriber => self.nodes[at].ends.can_listen = true,
                Kind::Lease => self.nodes[at].keeper.can_renew = true,
                Kind::CutOff => {
                    self.nodes[at].keeper.can_renew = true;
                    (self.nodes[at].ends.can_publish, self.nodes[at].ends.can_listen) = (true, true);
                }
                Kind::Redis => self.redis_comes_back(),
                Kind::Stop => self.go_on(at, Duration::ZERO),
                Kind::Suspend => self.go_on(at, self.clock - since),
                Kind::Kill | Kind::Leap => {}
            }
        }
    }

    // -- a run --------------------------------------------------------------------------------------------

    /// Runs it to the end. Returns a digest of what happened.
    pub fn run(mut self) -> u64 {
        let steps = 500 + self.rng.below(1200) * self.nodes.len();
        for _ in 0..steps {
            if self.plan.faults && self.rng.one_in(250) {
                self.begin_fault();
            }
            if self.plan.terminates && self.rng.one_in(800) {
                let at = self.rng.below(self.nodes.len());
                if self.may_act(at) && !self.nodes[at].is_ending {
                    self.terminate(at);
                }
            }
            if self.rng.one_in(self.plan.leaps) {
                self.leap();
            }
            self.step(true);
            self.pass(self.plan.pace);
            self.end_faults(false);
        }
        self.end_faults(true);
        self.database().mend();
        if self.rng.one_in(3) {
            self.nobody_reads();
        }
        self.sockets.values_mut().for_each(|socket| socket.stalled = false);
        let mut bound = AFTER_FAULTS;
        if !self.plan.faults || self.rng.one_in(2) {
            self.settle();
            bound = WITHOUT_FAULTS;
            self.check_replies();
        }
        self.everybody_comes_back(bound);
        self.settle();
        if !(0..CLIENTS).all(|client| self.is_logged_in(client)) {
            // A node that a fault had cut off was taken for dead after it, or one that had been told to stop has only
            // now disconnected its clients: they come back once more.
            assert!(self.plan.faults || self.plan.terminates, "a client was disconnected, and nothing was wrong");
            self.everybody_comes_back(bound);
            self.settle();
        }
        self.check_replies();
        self.check_rest();
        self.stop_all();
        self.digest
    }

    /// No client reads, and some hang up: their claims are released all the same.
    fn nobody_reads(&mut self) {
        self.trace(|| "nobody reads any more".to_owned());
        let all: Vec<SocketId> = self.sockets.keys().copied().collect();
        all.into_iter().for_each(|id| self.stall(id, true));
        for client in 0..CLIENTS {
            if let Some(id) = self.clients[client].socket
                && self.rng.one_in(2)
            {
                let side = self.rng.pick(&[Side::Closed, Side::Reset]);
                self.hang_up(id, side);
            }
        }
        // Users whose node was just killed, or stood still, wait longer.
        let time = if self.plan.faults { AFTER_FAULTS } else { NOBODY_READS };
        // Whom the server throws out meanwhile, it may have thrown out right now.
        let mut gone: Vec<UserId> = (1..=CLIENTS as UserId).filter(|user| !self.is_there(*user)).collect();
        self.run_for(time);
        gone.retain(|user| !self.is_there(*user));
        for user in gone {
            let claim = self.database().claim(user);
            assert!(claim.is_none(), "user {user} is gone, and {claim:?} is left");
        }
    }

    fn is_there(&self, user: UserId) -> bool {
        let mut left = self.sockets.values().filter(|socket| socket.side <= Side::Finished);
        left.any(|socket| socket.seat.may_be(user))
    }

    /// Everything happens that can, and time passes in between.
    fn run_for(&mut self, time: Duration) {
        let end = self.clock + time;
        while self.clock < end {
            let mut steps = 0;
            while self.step(false) && steps < 20_000 {
                steps += 1;
                if steps % 50 == 0 {
                    self.pass(Duration::from_millis(1));
                }
            }
            self.pass_until_due(end);
        }
    }

    /// Nothing can happen now: goes on to when something can.
    fn pass_until_due(&mut self, end: Duration) {
        let timers = self.nodes.iter().filter(|node| !node.is_stopped).filter_map(|node| {
            let ((at, _), _) = node.timers.first_key_value()?;
            Some(*at + node.lag)
        });
        let watches = self.sockets.keys().filter_map(|id| self.watch_at(*id)).map(|at| at + Duration::from_millis(1));
        let next = timers.chain(watches).min().unwrap_or(end).min(end);
        // In pieces, so that leases are renewed.
        let time = next.saturating_sub(self.clock).clamp(Duration::from_millis(1), Duration::from_millis(250));
        self.pass(time);
    }

    /// Lets everything come to rest: all clients read, none acts.
    fn settle(&mut self) {
        let begun = self.clock;
        let mut since = self.clock;
        let mut steps = 0_u32;
        while self.clock < since + REST {
            if self.step(false) {
                since = self.clock;
                steps += 1;
                if steps.is_multiple_of(50) {
                    self.pass(Duration::from_millis(1));
                }
            } else {
                self.pass_until_due(since + REST);
            }
            let is_late = steps > 400_000 || self.clock > begun + Duration::from_secs(600);
            assert!(!is_late, "it does not come to rest: {}", self.left());
        }
        assert!(self.nodes.iter().all(|node| node.is_quiet() && !node.is_ending), "at rest: {}", self.left());
        assert!(self.redis.is_quiet(), "commands are left");
        let is_idle = |socket: &Socket| socket.queue.is_empty() && socket.input.is_empty();
        assert!(self.sockets.values().all(is_idle), "at rest: {}", self.left());
        let held: Vec<_> = self.nodes.iter().map(|node| node.shards.iter().map(Shard::held).sum::<usize>()).collect();
        assert!(held.iter().all(|held| *held == 0), "all is read, and some is held: {held:?}");
    }

    /// What keeps it from coming to rest.
    fn left(&self) -> String {
        let sockets: Vec<_> = self
            .sockets
            .iter()
            .map(|(id, s)| {
                format!("{id}: {:?}, {} queued, {} unread, paused {}", s.side, s.queue.len(), s.input.len(), s.paused)
            })
            .collect();
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let population: Vec<_> = node.shards.iter().map(Shard::population).collect();
                format!("{}: quiet {}, ending {}, {population:?}", node.id, node.is_quiet(), node.is_ending)
            })
            .collect();
        format!("nodes {nodes:#?}, sockets {sockets:#?}")
    }

    /// Each client that is still there has a reply to each request.
    fn check_replies(&self) {
        for (id, socket) in &self.sockets {
            let is_there = self.clients[socket.seat.client].socket == Some(*id);
            assert!(!is_there || socket.seat.is_paid(), "socket {id} is at rest, and a reply is owed");
        }
    }

    /// Every user comes back, in this time.
    fn everybody_comes_back(&mut self, bound: Duration) {
        let begun = self.clock;
        self.trace(|| "everybody comes back".to_owned());
        for client in 0..CLIENTS {
            let own = client as UserId + 1;
            if let Some(id) = self.clients[client].socket
                && self.sockets[&id].seat.is_or_will_be().is_some_and(|user| user != own)
            {
                self.hang_up(id, Side::Closed);
            }
        }
        loop {
            let mut are_all_there = true;
            for client in 0..CLIENTS {
                are_all_there &= self.is_back(client);
            }
            if are_all_there {
                return;
            }
            let missing: Vec<usize> = (0..CLIENTS).filter(|client| !self.is_logged_in(*client)).collect();
            assert!(self.clock < begun + bound, "clients {missing:?} cannot log in any more: {}", self.left());
            if !self.step(false) {
                let end = self.clock + Duration::from_millis(50);
                self.pass_until_due(end);
            } else if self.rng.one_in(50) {
                self.pass(Duration::from_millis(1));
            }
        }
    }

    fn is_logged_in(&self, client: usize) -> bool {
        let own = client as UserId + 1;
        let socket = self.clients[client].socket.and_then(|id| self.sockets.get(&id));
        socket.is_some_and(|socket| socket.seat.account == Some(own) && !socket.seat.waits_for_login())
    }

    /// Whether it is logged in; if not, and if it can, it tries.
    fn is_back(&mut self, client: usize) -> bool {
        let own = client as UserId + 1;
        let Some(id) = self.clients[client].socket else {
            if self.clock >= self.clients[client].pauses_until {
                let at = self.rng.below(self.nodes.len());
                self.come_to(client, at, own);
            }
            return false;
        };
        if self.is_logged_in(client) {
            return true;
        }
        let (clock, pause) = (self.clock, self.clients[client].pauses_until);
        let Some(socket) = self.sockets.get_mut(&id) else { return false };
        if socket.side != Side::Open {
            self.hang_up(id, Side::Closed);
        } else if !socket.seat.waits_for_login() && clock >= pause {
            self.log_in(id, own, false);
        }
        false
    }

    /// What must hold when all users have read everything.
    fn check_rest(&self) {
        let promises = Promises {
            no_repeats: !self.plan.faults,
            all_arrives: !self.plan.faults && !self.plan.terminates && self.plan.quota.is_none(),
        };
        self.record.check(&promises);
        let database = self.database();
        let is_ours = |user: &UserId| !self.record.foreign.contains(user);
        // What a C++ node has stored unseen comes with the next login.
        if self.cpp.is_none() {
            let left: Vec<_> =
                database.rows().map(|(user, text)| (user, String::from_utf8_lossy(text).into_owned())).collect();
            assert!(left.is_empty(), "offline messages were left behind: {left:?}");
        }
        let claimed = (1..=CLIENTS as UserId).filter(|user| is_ours(user) && database.claim(*user).is_some()).count();
        assert_eq!(claimed, CLIENTS);
    }

    /// The end: all users are offline, and every shard says that it has wound up.
    fn stop_all(&mut self) {
        self.trace(|| "all are told to stop".to_owned());
        let last: Vec<_> = self.nodes.iter().map(|node| node.id).collect();
        for at in 0..self.nodes.len() {
            self.terminate(at);
        }
        let end = self.clock + Duration::from_secs(20);
        while self.nodes.iter().any(|node| last.contains(&node.id)) {
            assert!(self.clock < end, "a shard did not wind up: {}", self.left());
            if !self.step(false) {
                self.pass_until_due(end);
            }
        }
        assert_eq!(self.database().claims(), 0, "somebody was left online");
    }
}

/// Every account's password, hashed once for all runs.
fn a_hash() -> &'static str {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| {
        let cost: Cost = "8,1".parse().expect("a cost");
        Hasher::new(cost).hash("p").expect("a hash")
    })
}

/// The same, with lists of bytes as the texts that they are.
fn readable(what: &str) -> String {
    let (mut text, mut rest) = (String::new(), what);
    while let Some(at) = rest.find("[123, 34, ") {
        text.push_str(&rest[..at]);
        let (bytes, behind) = rest[at + 1..].split_once(']').unwrap_or((&rest[at + 1..], ""));
        let bytes: Vec<u8> = bytes.split(", ").filter_map(|byte| byte.parse().ok()).collect();
        text.push_str(&String::from_utf8_lossy(&bytes).replace("  ", ""));
        rest = behind;
    }
    text + rest
}
