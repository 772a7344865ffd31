//! What the service has others do: the jobs that a request comes to, and their lanes. Seen from outside these cost
//! time or none, which a test cannot distinguish from a slow machine. And schedules that the simulation has found,
//! step by step: a change of its dice must not lose them.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::bus::{Addressee, Answered, BusEvent, BusOp, Delivery, Envelope};
use chat_server::home::Homes;
use chat_server::password::{Cost, Hasher};
use chat_server::pool::Standing;
use chat_server::reactor::{CloseReason, ConnId, ConnIds, HangUp, ListenerId, Mark, Recall, Unwritten};
use chat_server::service::{
    Answer, Browsers, Done, Effect, Effects, HashQueue, Job, JobRunner, Lane, Letter, Memo, Moved, Now, Op,
    PasswordWork, Payload, Reason, Settings, Shard, Tag, Timer,
};
use chat_server::store::sqlite::SqliteStore;
use chat_server::store::{Claim, Holder, Kept, NodeId, Outcome, Quotas, Store, StoreError, UserId, Write};
use chat_server::wire::Framing;
use tempfile::TempDir;

const LANES: usize = 3;
/// The login of the first account.
const LOGIN: &str = r#"{"msgid":1,"id":1,"password":"p"}"#;
const LOGOUT: &str = r#"{"msgid":3,"id":1}"#;
/// Another node.
const THERE: NodeId = NodeId(9);

/// A node's shards and its store. Everything is done at once, and the jobs are noted.
struct Node {
    shards: Vec<Shard>,
    ids: Vec<ConnIds>,
    homes: Homes,
    runner: JobRunner,
    now: Now,
    lines: HashMap<ConnId, Line>,
    /// The new name of each connection that has moved.
    moved: HashMap<ConnId, ConnId>,
    jobs: Vec<(Lane, Op)>,
    /// What clients have read.
    sent: Vec<String>,
    /// How the last message that was queued ends.
    last_framing: Framing,
    /// What was published for other nodes, which do not answer.
    published: Vec<BusOp>,
    /// What Redis has yet to confirm; `None`: it does so at once.
    unconfirmed: Option<Vec<(usize, BusEvent)>>,
    /// Every job fails.
    store_is_away: bool,
    /// Jobs of this kind wait for a worker.
    waits: fn(&Op) -> bool,
    /// Jobs that wait are not with a worker yet.
    workers_are_busy: bool,
    waiting: Vec<Job>,
    timers: Vec<(Instant, usize, Timer)>,
    /// How often a shard has wound up.
    wound_up: usize,
    hashes: Arc<HashQueue>,
    store: SqliteStore,
    _folder: TempDir,
}

/// A connection.
#[derive(Default)]
struct Line {
    /// What waits to be read by a client that does not.
    queue: Vec<(String, Option<Tag>)>,
    is_stalled: bool,
    /// Half of the first message is on the wire.
    has_begun: bool,
    is_paused: bool,
    /// Messages to it are spaced out.
    is_paced: bool,
    /// It is to be closed, as soon as its client has read everything.
    closing: Option<Reason>,
    /// No queue is taken back for now.
    keeps_its_queue: bool,
}

/// One input for a shard.
type Input = Box<dyn FnOnce(&mut Shard, Now, &mut Effects)>;

/// What is to be done next.
enum Next {
    Effect(usize, Effect, Arc<[u8]>),
    Input(usize, Input),
    Arrival(usize, ConnId, Box<Moved>),
}

impl Node {
    fn new() -> Node {
        Node::with_shards(1)
    }

    /// A node of this number of shards. If there are two, each is the home of half of all users.
    fn with_shards(shards: usize) -> Node {
        Node::with_settings(shards, |_| {})
    }

    fn with_settings(shards: usize, set: impl FnOnce(&mut Settings)) -> Node {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = SqliteStore::open(&folder.path().join("chat.db"), NodeId(1), Quotas::default()).expect("a store");
        let cost: Cost = "8,1".parse().expect("a cost");
        let now = Now { at: Instant::now(), unix: 0 };
        let hashes = HashQueue::new(1);
        let homes = Homes::new(1, shards);
        let mut settings =
            Settings { homes, lanes: LANES, single_node: false, hashes: Arc::clone(&hashes), ..Settings::default() };
        set(&mut settings);
        let memo = Memo::new().expect("a secret");
        Node {
            shards: (0..shards).map(|index| Shard::new(index, settings.clone(), now)).collect(),
            ids: (0..shards).map(|index| ConnIds::new(index as u16)).collect(),
            homes,
            runner: JobRunner::new(store.connection(), Hasher::new(cost), false, Some(Arc::new(memo))),
            now,
            lines: HashMap::new(),
            moved: HashMap::new(),
            jobs: Vec::new(),
            sent: Vec::new(),
            last_framing: Framing::Bare,
            published: Vec::new(),
            unconfirmed: None,
            store_is_away: false,
            waits: |_| false,
            workers_are_busy: false,
            waiting: Vec::new(),
            timers: Vec::new(),
            wound_up: 0,
            hashes,
            store,
            _folder: folder,
        }
    }

    fn connect(&mut self) -> ConnId {
        self.connect_to(0)
    }

    fn connect_to(&mut self, shard: usize) -> ConnId {
        let conn = self.ids[shard].allocate();
        self.lines.insert(conn, Line::default());
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.call(shard, move |shard, now, fx| shard.opened(conn, peer, ListenerId::default(), now, fx));
        conn
    }

    /// What a connection is called now.
    fn name(&self, conn: ConnId) -> ConnId {
        self.moved.get(&conn).map_or(conn, |conn| self.name(*conn))
    }

    fn line(&mut self, conn: ConnId) -> &mut Line {
        let conn = self.name(conn);
        self.lines.get_mut(&conn).expect("a connection")
    }

    /// The jobs that a request comes to.
    #[track_caller]
    fn ask(&mut self, conn: ConnId, request: &str) -> Vec<(Lane, Op)> {
        assert_eq!(self.offer(conn, request), request.len(), "it waits: {request}");
        std::mem::take(&mut self.jobs)
    }

    /// How much of its input a client is rid of.
    fn offer(&mut self, conn: ConnId, input: impl AsRef<[u8]>) -> usize {
        let conn = self.name(conn);
        let mut fx = Effects::default();
        let taken = self.shards[conn.reactor()].input(conn, input.as_ref(), self.now, &mut fx).bytes;
        self.carry_out(conn.reactor(), fx);
        taken
    }

    /// A shard's input, and all that comes of it.
    fn call(&mut self, shard: usize, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        let mut fx = Effects::default();
        input(&mut self.shards[shard], self.now, &mut fx);
        self.carry_out(shard, fx);
    }

    /// The same of the shard of a connection, by its present name.
    fn call_for(&mut self, conn: ConnId, input: impl FnOnce(&mut Shard, ConnId, Now, &mut Effects)) {
        let conn = self.name(conn);
        self.call(conn.reactor(), |shard, now, fx| input(shard, conn, now, fx));
    }

    fn carry_out(&mut self, shard: usize, fx: Effects) {
        let mut todo: VecDeque<Next> = in_order(shard, fx).collect();
        while let Some(next) = todo.pop_front() {
            let (shard, fx) = match next {
                Next::Effect(shard, effect, bytes) => {
                    self.effect(shard, effect, &bytes, &mut todo);
                    continue;
                }
                Next::Input(shard, input) => {
                    let mut fx = Effects::default();
                    input(&mut self.shards[shard], self.now, &mut fx);
                    (shard, fx)
                }
                Next::Arrival(shard, old, moved) => {
                    let new = self.ids[shard].allocate();
                    let line = self.lines.remove(&old).expect("a connection");
                    self.lines.insert(new, line);
                    self.moved.insert(old, new);
                    let mut fx = Effects::default();
                    self.shards[shard].arrived(new, *moved, self.now, &mut fx);
                    (shard, fx)
                }
            };
            todo.extend(in_order(shard, fx));
        }
    }

    fn effect(&mut self, shard: usize, effect: Effect, bytes: &[u8], todo: &mut VecDeque<Next>) {
        match effect {
            Effect::Send { conn, tag, body, framing, .. } => {
                self.last_framing = framing;
                let text = match &body {
                    Payload::Own(range) => &bytes[range.clone()],
                    Payload::Shared(text) => text,
                };
                let text = String::from_utf8_lossy(text).into_owned();
                let line = self.lines.get_mut(&conn).expect("a connection");
                if line.is_stalled {
                    return line.queue.push((text, tag));
                }
                self.sent.push(text);
                todo.extend(tag.map(|tag| written(conn, tag)));
            }
            Effect::Pause(conn) => self.line(conn).is_paused = true,
            Effect::Resume(conn) => self.line(conn).is_paused = false,
            Effect::Pace(conn) => self.line(conn).is_paced = true,
            Effect::Unpace(conn) => self.line(conn).is_paced = false,
            Effect::Recall(conn, how) => {
                if !self.line(conn).keeps_its_queue {
                    todo.extend(self.recalled(conn, how));
                }
            }
            Effect::Close(conn, reason) => {
                let line = self.line(conn);
                line.closing = Some(reason);
                if line.queue.is_empty() {
                    todo.push_back(self.closed(conn, CloseReason::Handler(reason)));
                }
            }
            Effect::Abort(conn, reason) => todo.push_back(self.closed(conn, CloseReason::Handler(reason))),
            Effect::Move { conn, to, moved } => {
                assert!(self.line(conn).queue.iter().all(|(_, tag)| tag.is_none()), "it moves with what it names");
                todo.push_back(Next::Arrival(to, conn, moved));
            }
            Effect::Post(to, letter) => todo.push_back(letter_for(to, letter)),
            Effect::Submit(lane, job) => {
                self.jobs.push((lane, copy(&job.op)));
                if (self.waits)(&job.op) {
                    let mut job = *job;
                    if !self.workers_are_busy {
                        job.taken();
                    }
                    self.waiting.push(job);
                } else {
                    let done = self.work(*job);
                    todo.push_back(letter_for(shard, done));
                }
            }
            Effect::Bus(op) => self.bus(op, todo),
            Effect::Timer(at, timer) => self.timers.push((at, shard, timer)),
            Effect::WoundUp => self.wound_up += 1,
            Effect::Marked => panic!("nobody marks it"),
        }
    }

    fn bus(&mut self, op: BusOp, todo: &mut VecDeque<Next>) {
        let BusOp::Listen { user, epoch } = op else { return self.published.push(op) };
        let (home, event) = (self.homes.of_user(user), BusEvent::Listening { user, epoch });
        match &mut self.unconfirmed {
            Some(unconfirmed) => unconfirmed.push((home, event)),
            None => todo.push_back(letter_for(home, Letter::Bus(event))),
        }
    }

    /// What a worker does.
    fn work(&mut self, job: Job) -> Letter {
        if self.store_is_away {
            let answer = Err(StoreError::Unavailable("it is away".into()));
            return Letter::Done(Box::new(Done { then: job.then, answer }));
        }
        let mut answer = None;
        self.runner.run(&mut vec![job], |_, done| answer = Some(done));
        Letter::Done(Box::new(answer.expect("an answer")))
    }

    // -- clients ------------------------------------------------------------------------------------

    /// A client does not read any more.
    fn stall(&mut self, conn: ConnId) {
        self.line(conn).is_stalled = true;
    }

    /// It reads everything, and goes on reading.
    fn read(&mut self, conn: ConnId) {
        let line = self.line(conn);
        (line.is_stalled, line.has_begun) = (false, false);
        for (text, tag) in std::mem::take(&mut line.queue) {
            self.sent.push(text);
            if let Some(tag) = tag {
                self.call_for(conn, |shard, conn, now, fx| shard.written(conn, tag, now, fx));
            }
        }
        self.call_for(conn, |shard, conn, now, fx| shard.drained(conn, now, fx));
        if let Some(reason) = self.lines.get(&self.name(conn)).and_then(|line| line.closing) {
            self.hang_up(conn, CloseReason::Handler(reason));
        }
    }

    fn take_back(&mut self, conn: ConnId, how: Recall) -> Vec<Unwritten<Tag>> {
        let line = self.line(conn);
        let (mut recalled, mut kept) = (Vec::new(), Vec::new());
        for (i, (text, tag)) in std::mem::take(&mut line.queue).into_iter().enumerate() {
            let begun = line.has_begun && i == 0;
            let wanted = tag.as_ref().filter(|tag| tag.is_recallable(how)).cloned();
            if wanted.is_none() || begun {
                kept.push((text.clone(), tag));
            }
            recalled.extend(wanted.map(|tag| Unwritten { tag, body: Arc::from(text.as_bytes()), begun }));
        }
        line.queue = kept;
        recalled
    }

    fn recalled(&mut self, conn: ConnId, how: Recall) -> Vec<Next> {
        let unwritten = self.take_back(conn, how);
        let is_drained = self.line(conn).queue.is_empty();
        let shard = conn.reactor();
        let mut next =
            vec![Next::Input(shard, Box::new(move |shard, now, fx| shard.recalled(conn, unwritten, now, fx)))];
        if is_drained {
            next.push(Next::Input(shard, Box::new(move |shard, now, fx| shard.drained(conn, now, fx))));
        }
        next
    }

    /// The client has taken nothing for too long: the reactor takes its chats back.
    fn falls_behind(&mut self, conn: ConnId) {
        let conn = self.name(conn);
        let next = self.recalled(conn, Recall::Reroutable);
        for next in next {
            if let Next::Input(shard, input) = next {
                self.call(shard, input);
            }
        }
    }

    fn closed(&mut self, conn: ConnId, reason: CloseReason<Reason>) -> Next {
        let line = self.lines.remove(&conn).expect("a connection");
        let unwritten = line.queue.into_iter().enumerate().filter_map(|(i, (text, tag))| {
            Some(Unwritten { tag: tag?, body: Arc::from(text.into_bytes()), begun: line.has_begun && i == 0 })
        });
        let unwritten = unwritten.collect();
        Next::Input(conn.reactor(), Box::new(move |shard, now, fx| shard.closed(conn, reason, unwritten, now, fx)))
    }

    /// A connection is gone.
    fn hang_up(&mut self, conn: ConnId, reason: CloseReason<Reason>) {
        let conn = self.name(conn);
        if let Next::Input(shard, input) = self.closed(conn, reason) {
            self.call(shard, input);
        }
    }

    /// Registers this number of users and logs them in; their ids begin with 1.
    fn log_in(&mut self, users: usize) -> Vec<ConnId> {
        let conns: Vec<ConnId> = (0..users).map(|_| self.connect()).collect();
        for (conn, id) in conns.iter().zip(1..) {
            self.ask(*conn, &format!(r#"{{"msgid":4,"name":"user {id}","password":"p"}}"#));
            self.ask(*conn, &format!(r#"{{"msgid":1,"id":{id},"password":"p"}}"#));
        }
        self.sent.clear();
        conns
    }

    /// An account of the password `p`, and a client that has just asked to log in to it.
    fn log_in_up_to(waits: fn(&Op) -> bool) -> (Node, ConnId) {
        let mut node = Node::new();
        let conn = node.connect();
        node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
        node.waits = waits;
        node.ask(conn, LOGIN);
        node.sent.clear();
        (node, conn)
    }

    /// The only thing that clients have read since the last time.
    #[track_caller]
    fn reply(&mut self) -> String {
        let [reply] = <[String; 1]>::try_from(std::mem::take(&mut self.sent)).expect("one reply");
        reply
    }

    // -- time, workers and Redis --------------------------------------------------------------------

    /// Time passes, and timers fire.
    fn pass(&mut self, time: Duration) {
        self.now.at += time;
        while let Some(due) = self.timers.iter().position(|(at, ..)| *at <= self.now.at) {
            let (_, shard, timer) = self.timers.remove(due);
            self.call(shard, |shard, now, fx| shard.timer(timer, now, fx));
        }
    }

    /// How many passwords have come to this.
    fn passwords(&self, work: PasswordWork) -> u64 {
        self.shards[0].counts().passwords.of(work).get()
    }

    /// A worker has come for the first job that waits, and is done with it; its answer is on the way.
    fn take_one(&mut self) -> (usize, Letter) {
        let job = self.waiting.remove(0);
        (job.shard, self.work(job))
    }

    fn answer(&mut self, (shard, done): (usize, Letter)) {
        self.letter(shard, done);
    }

    fn letter(&mut self, shard: usize, letter: Letter) {
        self.call(shard, |shard, now, fx| shard.letter(letter, now, fx));
    }

    /// A worker has come for the jobs that wait.
    fn wait_no_more(&mut self) {
        self.waits = |_| false;
        while !self.waiting.is_empty() {
            let done = self.take_one();
            self.answer(done);
        }
    }

    /// The store's answer to the first job that waits.
    fn answer_with(&mut self, answer: Result<Answer, StoreError>) {
        let Job { shard, then, .. } = self.waiting.remove(0);
        self.letter(shard, Letter::Done(Box::new(Done { then, answer })));
    }

    fn answer_kept(&mut self, kept: Kept) {
        self.answer_with(Ok(Answer::Wrote(Outcome::Kept(vec![kept]))));
    }

    /// From the bus, for the shards that it is for.
    fn hear(&mut self, event: BusEvent) {
        let parts: Vec<(usize, BusEvent)> = match event {
            BusEvent::Envelope(from, envelope) => {
                let parts = envelope.split(&self.homes).into_iter();
                parts.map(|(shard, part)| (shard, BusEvent::Envelope(from, part))).collect()
            }
            event => (0..self.shards.len()).map(|shard| (shard, event.clone())).collect(),
        };
        parts.into_iter().for_each(|(shard, event)| self.letter(shard, Letter::Bus(event)));
    }

    fn hear_from_there(&mut self, envelope: Envelope) {
        self.hear(BusEvent::Envelope(THERE, envelope));
    }

    /// What was published for the other node since the last time.
    fn published_there(&mut self) -> Vec<Envelope> {
        let published = std::mem::take(&mut self.published).into_iter();
        published
            .filter_map(|op| match op {
                BusOp::ToNode(THERE, envelope) => Some(envelope),
                _ => None,
            })
            .collect()
    }

    fn confirm_listening(&mut self) {
        for (shard, event) in self.unconfirmed.take().into_iter().flatten() {
            self.letter(shard, Letter::Bus(event));
        }
    }

    /// The epoch by which the store has a user.
    fn epoch_of(&self, user: UserId) -> u64 {
        let claim = Write::Claim { user, epoch: u64::MAX, past: None };
        match self.store.connection().write(&[claim]).expect("the store").pop() {
            Some(Outcome::InUse(Holder::Node(claim))) => claim.epoch,
            other => panic!("nobody has user {user}: {other:?}"),
        }
    }

    fn population(&self) -> (usize, usize) {
        self.shards.iter().map(Shard::population).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    fn held(&self) -> usize {
        self.shards.iter().map(Shard::held).sum()
    }
}

fn in_order(shard: usize, fx: Effects) -> impl Iterator<Item = Next> {
    // An effect's bytes stand in the list that it came with.
    let bytes: Arc<[u8]> = fx.bytes.into();
    fx.list.into_iter().map(move |effect| Next::Effect(shard, effect, Arc::clone(&bytes)))
}

fn letter_for(shard: usize, letter: Letter) -> Next {
    Next::Input(shard, Box::new(move |shard, now, fx| shard.letter(letter, now, fx)))
}

fn written(conn: ConnId, tag: Tag) -> Next {
    Next::Input(conn.reactor(), Box::new(move |shard, now, fx| shard.written(conn, tag, now, fx)))
}

/// What is looked at of a job.
fn copy(op: &Op) -> Op {
    match op {
        Op::Write(write) => Op::Write(write.clone()),
        Op::Account { user, password } => Op::Account { user: *user, password: password.clone() },
        Op::Verify { user, account, password, place } => {
            Op::Verify { user: *user, account: account.clone(), password: password.clone(), place: Arc::clone(place) }
        }
        Op::Register { name, password, place } => {
            Op::Register { name: name.clone(), password: password.clone(), place: Arc::clone(place) }
        }
        Op::Page { user, max_bytes } => Op::Page { user: *user, max_bytes: *max_bytes },
        other => Op::Members(u32::from(matches!(other, Op::Members(_)))),
    }
}

fn chat(from: UserId, to: UserId, text: &str) -> String {
    format!(r#"{{"msgid":6,"id":{from},"name":"user {from}","toid":{to},"time":"","msg":"{text}"}}"#)
}

fn chat_with_seq(from: UserId, to: UserId, text: &str, seq: u32) -> String {
    format!(r#"{{"msgid":6,"id":{from},"name":"user {from}","toid":{to},"time":"","msg":"{text}","seq":{seq}}}"#)
}

fn is_verify(op: &Op) -> bool {
    matches!(op, Op::Verify { .. })
}

fn is_claim(op: &Op) -> bool {
    matches!(op, Op::Write(Write::Claim { .. }))
}

fn is_keep(op: &Op) -> bool {
    matches!(op, Op::Write(Write::Keep(_)))
}

fn is_release(op: &Op) -> bool {
    matches!(op, Op::Write(Write::Release { .. }))
}

fn is_page(op: &Op) -> bool {
    matches!(op, Op::Page { .. })
}

/// The messages that a job stores.
fn stored_by(op: &Op) -> Vec<String> {
    let Op::Write(Write::Keep(parcels)) = op else { return Vec::new() };
    let messages = parcels.iter().flat_map(|parcel| &parcel.messages);
    messages.map(|message| String::from_utf8_lossy(message).into_owned()).collect()
}

#[track_caller]
fn assert_texts(messages: &[String], texts: &[&str]) {
    let have = |message: &String, text: &str| message.contains(&format!(r#""msg":"{text}""#));
    let equal = messages.len() == texts.len() && messages.iter().zip(texts).all(|(message, text)| have(message, text));
    assert!(equal, "{messages:?} are not {texts:?}");
}

// -- jobs and their lanes -----------------------------------------------------------------------------

#[test]
fn passwords_are_hashed_in_no_lane_and_the_claim_is_made_in_the_accounts() {
    let mut node = Node::new();
    let conn = node.connect();
    let jobs = node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    assert!(matches!(jobs[..], [(Lane::None, Op::Register { .. })]), "{jobs:?}");
    let jobs = node.ask(conn, LOGIN);
    let lane = Lane::Number(1 % LANES);
    assert!(matches!(&jobs[0], (at, Op::Account { .. }) if *at == lane), "{jobs:?}");
    assert!(matches!(jobs[1], (Lane::None, Op::Verify { .. })), "{jobs:?}");
    assert!(matches!(&jobs[2], (at, Op::Write(Write::Claim { .. })) if *at == lane), "{jobs:?}");
    assert!(jobs[2..].iter().all(|(at, _)| *at == lane), "{jobs:?}");
}

/// Whether it writes what lists are read from.
fn changes_lists(op: &Op) -> bool {
    matches!(op, Op::Write(Write::AddFriend { .. } | Write::CreateGroup { .. } | Write::JoinGroup { .. }))
}

#[test]
fn a_list_waits_for_what_its_own_connection_changes_and_holds_up_nobody_else() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.waits = changes_lists;
    let list = r#"{"msgid":206,"seq":9}"#;
    for change in [
        r#"{"msgid":7,"id":1,"friendid":2}"#,
        r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#,
        r#"{"msgid":9,"id":1,"groupid":1}"#,
    ] {
        (node.waits, node.sent) = (changes_lists, Vec::new());
        node.ask(conns[0], change);
        // Chats go on, and so do all other clients.
        node.ask(conns[0], r#"{"msgid":6,"id":1,"toid":2,"msg":"m","seq":5}"#);
        assert!(node.sent.iter().any(|text| text.contains(r#""seq":5,"errno":0"#)), "{:?}", node.sent);
        node.ask(conns[1], list);
        assert!(node.sent.iter().any(|text| text.contains(r#""seq":9,"errno":0"#)), "{:?}", node.sent);
        node.sent.clear();
        let asked = node.offer(conns[0], format!("\n {list}"));
        assert_eq!(asked, "\n ".len(), "it stays in the input behind {change}");
        assert!(node.sent.is_empty(), "{:?}", node.sent);
        node.wait_no_more();
        node.ask(conns[0], list);
        assert!(node.sent.iter().any(|text| text.contains(r#""seq":9,"errno":0"#)), "{:?}", node.sent);
    }
}

#[test]
fn a_list_of_a_browser_waits_though_its_beginning_was_unmasked_before() {
    // The mask changes nothing.
    let frame = |text: &str| [&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0], text.as_bytes()].concat();
    let browsers = Browsers { page: Arc::from(*b"page"), origins: Vec::new() };
    let mut node = Node::with_settings(1, |settings| settings.browsers = Some(Arc::new(browsers)));
    node.log_in(1);
    let conn = node.connect();
    let head =
        "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
    node.offer(conn, format!("{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"));
    node.offer(conn, frame(r#"{"msgid":4,"name":"browser","password":"p"}"#));
    node.offer(conn, frame(r#"{"msgid":1,"id":2,"password":"p"}"#));
    node.waits = changes_lists;
    node.offer(conn, frame(r#"{"msgid":7,"id":2,"friendid":1}"#));
    let list = frame(r#"{"msgid":206,"seq":9}"#);
    let (front, behind) = list.split_at(10);
    assert_eq!(node.offer(conn, front), front.len());
    node.sent.clear();
    assert_eq!(node.offer(conn, behind), 0, "it waits");
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.wait_no_more();
    assert_eq!(node.offer(conn, behind), behind.len());
    assert!(node.sent.iter().any(|text| text.contains(r#""seq":9,"errno":0,"friends""#)), "{:?}", node.sent);
    assert_eq!(node.last_framing, Framing::WebSocket);
}

#[test]
fn a_group_chat_waits_for_what_its_connection_changes_in_the_input_and_for_its_join_at_the_groups_home() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"one","groupdesc":""}"#);
    node.ask(conns[1], r#"{"msgid":8,"id":2,"groupname":"other","groupdesc":""}"#);
    node.waits = changes_lists;
    node.ask(conns[0], r#"{"msgid":9,"id":1,"groupid":2}"#);
    node.sent.clear();
    node.ask(conns[0], r#"{"msgid":10,"id":1,"groupid":1,"msg":"m","seq":5}"#);
    assert!(node.reply().contains(r#""seq":5,"errno":0"#));
    node.ask(conns[0], r#"{"msgid":10,"id":1,"groupid":2,"msg":"m","seq":6}"#);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.wait_no_more();
    assert!(node.sent.iter().any(|text| text.contains(r#""seq":6,"errno":0"#)), "{:?}", node.sent);
    assert!(node.sent.iter().any(|text| text.contains(r#""groupid":2"#)), "{:?}", node.sent);
    // The number of a new group is not known to a client that writes to it, so that has to wait, too.
    (node.waits, node.sent) = (changes_lists, Vec::new());
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"third","groupdesc":""}"#);
    let chat = r#"{"msgid":10,"id":1,"groupid":3,"msg":"m","seq":7}"#;
    assert_eq!(node.offer(conns[0], chat), 0);
    // Paused, it is not even looked at.
    assert_eq!(node.offer(conns[0], r#"{"msgid":202}"#), 0);
    node.wait_no_more();
    node.sent.clear();
    node.ask(conns[0], chat);
    assert!(node.reply().contains(r#""seq":7,"errno":0"#));
}

#[test]
fn what_waits_in_the_input_keeps_the_length_before_it() {
    let framed = |request: &str| format!("\0\0\0{}{request}", char::from(u8::try_from(request.len()).unwrap()));
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, &framed(r#"{"msgid":4,"name":"someone","password":"p"}"#));
    node.ask(conn, &framed(LOGIN));
    node.waits = changes_lists;
    node.ask(conn, &framed(r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#));
    let chat = framed(r#"{"msgid":10,"id":1,"groupid":1,"msg":"m","seq":7}"#);
    assert_eq!(node.offer(conn, &chat), 0);
    node.wait_no_more();
    node.sent.clear();
    node.ask(conn, &chat);
    assert!(node.reply().contains(r#""seq":7,"errno":0"#));
}

#[test]
fn a_login_waits_for_what_its_connection_has_changed() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[1], r#"{"msgid":3,"id":2}"#);
    node.waits = |op| changes_lists(op) || is_release(op);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":"","seq":1}"#);
    node.sent.clear();
    node.ask(conns[0], r#"{"msgid":1,"id":2,"password":"p","seq":2}"#);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.wait_no_more();
    let [first, second] = &node.sent[..] else { panic!("{:?}", node.sent) };
    assert!(first.contains(r#""seq":1"#) && second.contains(r#""seq":2,"errno":0"#), "{first}, {second}");
}

#[test]
fn a_session_begins_when_its_channel_is_listened_to() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    (node.sent, node.unconfirmed) = (Vec::new(), Some(Vec::new()));
    let jobs = node.ask(conn, LOGIN);
    // It has the claim, and has not looked into the store: what comes before the confirmation is still
    // published to no listener, or stored.
    assert!(matches!(jobs[..], [.., (_, Op::Write(Write::Claim { .. }))]), "{jobs:?}");
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.confirm_listening();
    assert!(node.reply().contains("\"errno\":0"));
}

#[test]
fn a_group_message_is_one_job_for_each_lane_with_all_its_recipients() {
    const MEMBERS: u32 = 20;
    let mut node = Node::new();
    let conn = node.connect();
    for id in 1..=MEMBERS {
        node.ask(conn, &format!(r#"{{"msgid":4,"name":"member {id}","password":"p"}}"#));
    }
    for id in (1..=MEMBERS).rev() {
        node.ask(conn, &format!(r#"{{"msgid":1,"id":{id},"password":"p"}}"#));
        let request = match id {
            MEMBERS => format!(r#"{{"msgid":8,"id":{id},"groupname":"g","groupdesc":""}}"#),
            _ => format!(r#"{{"msgid":9,"id":{id},"groupid":1}}"#),
        };
        node.ask(conn, &request);
    }
    let chat = r#"{"msgid":10,"id":1,"groupid":1,"msg":"m"}"#;
    node.ask(conn, chat); // reads the list of members
    let mut recipients = 0;
    let jobs = node.ask(conn, chat);
    assert_eq!(jobs.len(), LANES, "{jobs:?}");
    for (lane, op) in &jobs {
        let Op::Write(Write::Keep(parcels)) = op else { panic!("{op:?}") };
        assert!(parcels.iter().all(|parcel| *lane == Lane::Number(parcel.to as usize % LANES)));
        recipients += parcels.len();
    }
    assert_eq!(recipients, MEMBERS as usize - 1);
}

// -- members ------------------------------------------------------------------------------------------

fn is_join(op: &Op) -> bool {
    matches!(op, Op::Write(Write::JoinGroup { .. }))
}

/// Joins of which the other node was notified, by ticket, and what clients have read.
fn take_told(node: &mut Node) -> (Vec<chat_server::bus::Ticket>, Vec<String>) {
    let joins = node.published_there().into_iter().filter_map(|envelope| match envelope {
        Envelope::Joined { group: 1, user: 2, ticket } => Some(ticket),
        _ => None,
    });
    (joins.collect(), std::mem::take(&mut node.sent))
}

/// User 2 asks to join the group of user 1; the store names another node.
fn joins(node: &mut Node, conn: ConnId, already: bool) {
    node.waits = is_join;
    node.ask(conn, r#"{"msgid":9,"id":2,"groupid":1,"seq":1}"#);
    node.answer_with(joined(already, vec![THERE]));
}

fn joined(already: bool, nodes: Vec<NodeId>) -> Result<Answer, StoreError> {
    Ok(Answer::Wrote(Outcome::Joined { already, nodes }))
}

/// Two seconds pass, and the store answers, as it is asked, that the other node is still there.
fn two_seconds_of_a_join(node: &mut Node) {
    node.pass(Duration::from_secs(2));
    while !node.waiting.is_empty() {
        node.answer_with(joined(true, vec![THERE]));
    }
}

#[test]
fn a_join_is_acked_when_all_nodes_have_confirmed_it() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    joins(&mut node, conns[1], false);
    let (told, sent) = take_told(&mut node);
    assert!(matches!((&told[..], &sent[..]), ([_], [])), "{told:?}, {sent:?}");
    // It may not have arrived.
    two_seconds_of_a_join(&mut node);
    assert_eq!(take_told(&mut node), (told.clone(), vec![]));
    node.hear_from_there(Envelope::Seen { ticket: told[0] });
    assert_eq!(node.reply(), r#"{"msgid":200,"seq":1,"errno":0}"#);
    two_seconds_of_a_join(&mut node);
    assert_eq!(take_told(&mut node), (vec![], vec![]));
}

#[test]
fn a_join_that_a_node_does_not_confirm_is_refused_after_10_s_and_told_all_the_same() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    joins(&mut node, conns[1], false);
    (0..4).for_each(|_| two_seconds_of_a_join(&mut node));
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    two_seconds_of_a_join(&mut node);
    assert!(node.reply().starts_with(r#"{"msgid":200,"seq":1,"errno":21"#));
    take_told(&mut node);
    two_seconds_of_a_join(&mut node);
    let (told, _) = take_told(&mut node);
    assert_eq!(told.len(), 1);
    // A client that repeats it waits for the same, since the first one is not known to have been announced.
    joins(&mut node, conns[1], true);
    let (told, sent) = take_told(&mut node);
    assert!(matches!((&told[..], &sent[..]), ([_], [])), "{told:?}, {sent:?}");
    node.hear_from_there(Envelope::Seen { ticket: told[0] });
    assert!(node.reply().contains("\"errno\":18"));
}

#[test]
fn a_join_does_not_wait_for_a_node_that_has_died_or_ended() {
    for has_died in [true, false] {
        let mut node = Node::new();
        let conns = node.log_in(2);
        node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
        joins(&mut node, conns[1], false);
        if has_died {
            node.hear(BusEvent::Buried { node: THERE, asker: None });
        } else {
            node.pass(Duration::from_secs(2));
            node.answer_with(joined(true, vec![]));
        }
        assert_eq!(node.reply(), r#"{"msgid":200,"seq":1,"errno":0}"#);
    }
}

#[test]
fn a_join_that_is_not_confirmed_at_the_end_is_refused_and_keeps_nobody() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    joins(&mut node, conns[1], false);
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    node.sent.clear();
    node.pass(Duration::from_secs(2));
    assert!(node.reply().starts_with(r#"{"msgid":200,"seq":1,"errno":21"#));
    assert_eq!((node.wound_up, node.population()), (1, (0, 0)));
}

#[test]
fn members_that_were_read_before_a_node_died_or_the_bus_was_away_are_read_again() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    node.ask(conn, r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    let chat = r#"{"msgid":10,"id":1,"groupid":1,"msg":"m"}"#;
    let is_read = |jobs: &[(Lane, Op)]| jobs.iter().any(|(_, op)| matches!(op, Op::Members(1)));
    // Joins that could not be announced may have come in between.
    for event in [BusEvent::Buried { node: THERE, asker: None }, BusEvent::Down, BusEvent::Up] {
        let is_down = matches!(event, BusEvent::Down);
        node.hear(BusEvent::Up);
        node.waits = |op| matches!(op, Op::Members(_));
        assert!(is_read(&node.ask(conn, chat)));
        node.hear(event.clone());
        node.wait_no_more();
        node.jobs.clear();
        assert!(is_read(&node.ask(conn, chat)), "what was being read is kept: {event:?}");
        assert_eq!(is_read(&node.ask(conn, chat)), is_down, "what was read after that: {event:?}");
        node.hear(event.clone());
        assert!(is_read(&node.ask(conn, chat)), "what was kept is not forgotten: {event:?}");
    }
}

#[test]
fn a_join_on_another_node_counts_from_its_confirmation() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    let chat = r#"{"msgid":10,"id":1,"groupid":1,"msg":"m","seq":7}"#;
    node.ask(conns[0], chat);
    node.sent.clear();
    let ticket = chat_server::bus::Ticket { shard: 0, key: 77 };
    node.hear_from_there(Envelope::Joined { group: 1, user: 2, ticket });
    assert_eq!(node.published_there(), [Envelope::Seen { ticket }]);
    node.ask(conns[0], chat);
    assert!(node.sent.iter().any(|text| text.contains(r#""delivered":1,"stored":0"#)), "{:?}", node.sent);
}

// -- moves --------------------------------------------------------------------------------------------

/// A node of two shards with some accounts, and one of those at home on each shard.
fn two_homes() -> (Node, [UserId; 2]) {
    let mut node = Node::with_shards(2);
    let conn = node.connect();
    for id in 1..=10 {
        node.ask(conn, &format!(r#"{{"msgid":4,"name":"user {id}","password":"p"}}"#));
    }
    node.hang_up(conn, CloseReason::Handler(Reason::ByClient));
    node.sent.clear();
    let homes = [0, 1].map(|shard| (1..=10).find(|user| node.homes.of_user(*user) == shard).expect("a user"));
    (node, homes)
}

fn login_of(user: UserId) -> String {
    format!(r#"{{"msgid":1,"id":{user},"password":"p"}}"#)
}

#[test]
fn a_connection_moves_to_its_users_home_when_the_password_is_right() {
    let (mut node, [here, there]) = two_homes();
    let conn = node.connect();
    node.ask(conn, &format!(r#"{{"msgid":1,"id":{there},"password":"wrong"}}"#));
    assert!(node.reply().contains("\"errno\":1,"));
    assert_eq!(node.name(conn), conn, "a wrong password moves nothing");
    node.ask(conn, &login_of(there));
    assert!(node.reply().contains("\"errno\":0"));
    assert_eq!((node.shards[0].population(), node.shards[1].population()), ((0, 0), (1, 1)));
    // What still names the old id finds no connection.
    let mut fx = Effects::default();
    assert_eq!(node.shards[0].input(conn, b"{}", node.now, &mut fx).bytes, 2);
    node.shards[0].hung_up(conn, HangUp::Gone, node.now, &mut fx);
    node.shards[0].drained(conn, node.now, &mut fx);
    assert!(fx.list.is_empty(), "{:?}", fx.list);
    // It moves back for another user, and may stay there for the next one.
    let last = node.name(conn);
    node.ask(conn, &login_of(here));
    assert!(node.reply().contains("\"errno\":0"));
    assert_ne!(node.name(conn), last);
    assert_eq!((node.shards[0].population(), node.shards[1].population()), ((1, 1), (0, 0)));
}

#[test]
fn a_connection_moves_only_when_nothing_else_of_it_is_under_way() {
    let (mut node, [here, there]) = two_homes();
    let conn = node.connect();
    node.ask(conn, &login_of(here));
    node.waits = is_keep;
    node.ask(conn, &chat_with_seq(here, 9, "m", 5));
    node.sent.clear();
    node.ask(conn, &login_of(there));
    assert_eq!(node.name(conn), conn);
    node.wait_no_more();
    let [ack, reply] = &node.sent[..] else { panic!("{:?}", node.sent) };
    assert!(ack.contains("\"seq\":5,\"errno\":0") && reply.contains(&format!("\"id\":{there}")), "{ack}, {reply}");
    assert_ne!(node.name(conn), conn);
}

#[test]
fn a_claim_that_is_refused_leaves_the_connection_where_it_is() {
    let (mut node, [_, there]) = two_homes();
    let (first, second) = (node.connect(), node.connect());
    node.ask(first, &login_of(there));
    node.sent.clear();
    node.ask(second, &login_of(there));
    assert!(node.reply().contains("\"errno\":2,"));
    assert_eq!((node.shards[0].population(), node.shards[1].population()), ((0, 0), (2, 1)));
    node.ask(first, &format!(r#"{{"msgid":3,"id":{there}}}"#));
    node.ask(second, &login_of(there));
    assert!(node.reply().contains("\"errno\":0"));
}

#[test]
fn who_arrives_at_a_shard_that_is_stopping_is_told_so() {
    let (mut node, [_, there]) = two_homes();
    let conn = node.connect();
    node.call(1, |shard, now, fx| shard.stop(now, fx));
    node.ask(conn, &login_of(there));
    assert!(node.reply().contains("{\"msgid\":2,\"errno\":22,"), "{:?}", node.sent);
    assert_eq!(node.population(), (0, 0));
}

#[test]
fn the_deadline_of_a_login_goes_along() {
    let (mut node, [_, there]) = two_homes();
    let conn = node.connect();
    node.waits = is_claim;
    node.ask(conn, &login_of(there));
    assert_ne!(node.name(conn), conn);
    node.pass(IN_10_S);
    assert!(node.reply().contains("\"errno\":21"));
    node.wait_no_more();
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.ask(conn, &login_of(there));
    assert!(node.reply().contains("\"errno\":0"));
}

// -- slow readers -------------------------------------------------------------------------------------

/// Users 1 and 2, of whom the second has fallen behind with one message, which is in the store.
fn with_a_slow_reader() -> (Node, ConnId, ConnId) {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.stall(conns[1]);
    node.ask(conns[1], r#"{"msgid":202}"#); // what is not taken back
    node.ask(conns[0], &chat(1, 2, "first"));
    node.falls_behind(conns[1]);
    let jobs = std::mem::take(&mut node.jobs);
    assert!(matches!(&jobs[..], [(_, Op::Write(Write::Keep(_)))]), "{jobs:?}");
    (node, conns[0], conns[1])
}

/// The same, after the reader has read what was queued; its first page is being read.
fn with_somebody_who_is_drained() -> (Node, ConnId, ConnId) {
    let (mut node, sender, reader) = with_a_slow_reader();
    node.waits = |op| is_page(op) || matches!(op, Op::Write(Write::Remove { .. }));
    node.read(reader);
    let jobs = std::mem::take(&mut node.jobs);
    assert!(matches!(&jobs[..], [(_, Op::Page { user: 2, .. })]), "{jobs:?}");
    node.sent.clear();
    (node, sender, reader)
}

#[test]
fn what_comes_for_a_client_that_reads_nothing_is_stored_at_once() {
    let (mut node, sender, _) = with_a_slow_reader();
    let jobs = node.ask(sender, &chat(1, 2, "second"));
    let [(_, op)] = &jobs[..] else { panic!("{jobs:?}") };
    assert_texts(&stored_by(op), &["second"]);
    assert_eq!(node.held(), 0);
}

#[test]
fn who_has_fallen_behind_is_drained_from_the_store_and_what_comes_meanwhile_is_held() {
    let (mut node, sender, _) = with_somebody_who_is_drained();
    let jobs = node.ask(sender, &chat(1, 2, "second"));
    assert!(jobs.is_empty() && node.held() > 0, "{jobs:?}");
    let page = node.take_one();
    node.answer(page);
    assert_texts(&node.sent, &["first"]);
    // Written whole, it is removed; only then is it seen whether there is more.
    let jobs = std::mem::take(&mut node.jobs);
    assert!(matches!(&jobs[..], [(_, Op::Write(Write::Remove { user: 2, .. }))]), "{jobs:?}");
    node.wait_no_more();
    assert_texts(&node.sent, &["first", "second"]);
    assert_eq!(node.held(), 0);
    // It is live again.
    node.jobs.clear();
    let jobs = node.ask(sender, &chat(1, 2, "third"));
    assert!(jobs.is_empty(), "{jobs:?}");
    assert_texts(&node.sent, &["first", "second", "third"]);
}

#[test]
fn what_is_held_for_a_second_is_stored() {
    let (mut node, sender, _) = with_somebody_who_is_drained();
    node.ask(sender, &chat(1, 2, "second"));
    node.pass(Duration::from_millis(900));
    node.ask(sender, &chat(1, 2, "third"));
    assert!(node.jobs.is_empty(), "{:?}", node.jobs);
    node.pass(Duration::from_millis(100));
    let [(_, op)] = &node.jobs[..] else { panic!("{:?}", node.jobs) };
    assert_texts(&stored_by(op), &["second", "third"]);
    assert_eq!(node.held(), 0);
}

#[test]
fn what_is_held_beyond_half_of_the_mark_is_stored_at_once() {
    let (mut node, sender, _) = with_somebody_who_is_drained();
    let long = "x".repeat(60_000);
    for sent in 1..20 {
        let jobs = node.ask(sender, &chat(1, 2, &long));
        assert!(node.held() <= 600_000, "{} bytes are held", node.held());
        if !jobs.is_empty() {
            let [(_, op)] = &jobs[..] else { panic!("{jobs:?}") };
            assert!(sent > 8 && stored_by(op).len() == sent, "{sent} were sent, {} stored", stored_by(op).len());
            return;
        }
    }
    panic!("nothing is stored");
}

#[test]
fn what_comes_while_a_queue_is_taken_back_is_stored_behind_it() {
    let mut node = Node::new();
    let conns = node.log_in(3);
    node.stall(conns[1]);
    node.ask(conns[2], &chat(3, 2, "first"));
    node.line(conns[1]).keeps_its_queue = true;
    // Another node has stored something for the user.
    let epoch = node.epoch_of(2);
    node.hear_from_there(Envelope::Nudge { user: 2, epoch, number: 1 });
    let jobs = node.ask(conns[0], &chat(1, 2, "second"));
    assert!(jobs.is_empty(), "it overtakes what is queued: {jobs:?}");
    node.falls_behind(conns[1]);
    let stored: Vec<String> = node.jobs.iter().flat_map(|(_, op)| stored_by(op)).collect();
    assert_texts(&stored, &["first", "second"]);
}

/// User 2 does not read: the queue was taken back, with half of user `id`'s message on the wire, and the store
/// does not take it; later the connection ends. Returns the node, with what it then sent to clients, and its jobs.
fn half_written_and_refused(id: usize) -> (Node, Vec<(Lane, Op)>) {
    let mut node = Node::new();
    let conns = node.log_in(2);
    let (sender, recipient) = (conns[id - 1], conns[1]);
    node.stall(recipient);
    node.ask(sender, &chat_with_seq(id as UserId, 2, "first", 1));
    node.line(recipient).has_begun = true;
    node.store_is_away = true;
    node.falls_behind(recipient);
    node.store_is_away = false;
    node.jobs.clear();
    let jobs = node.ask(conns[0], &chat(1, 2, "second"));
    let stored: Vec<String> = jobs.iter().flat_map(|(_, op)| stored_by(op)).collect();
    assert_texts(&stored, &["second"]);
    (node.jobs, node.sent) = (Vec::new(), Vec::new());
    node.hang_up(recipient, CloseReason::Handler(Reason::ByClient));
    let jobs = std::mem::take(&mut node.jobs);
    (node, jobs)
}

#[test]
fn what_was_half_written_and_refused_by_the_store_is_not_stored_behind_what_follows_it() {
    let (mut node, jobs) = half_written_and_refused(1);
    assert!(matches!(jobs[..], [(_, Op::Write(Write::Release { user: 2, .. }))]), "{jobs:?}");
    let reply = node.reply();
    assert!(reply.contains("\"errno\":21") && reply.contains("\"seq\":1"), "{reply}");
}

#[test]
fn who_has_half_written_to_oneself_what_the_store_refused_can_log_in_again() {
    let (_, jobs) = half_written_and_refused(2);
    assert!(matches!(jobs[..], [(_, Op::Write(Write::Release { user: 2, .. }))]), "{jobs:?}");
}

#[test]
fn what_is_written_whole_after_it_was_stored_is_removed_and_what_is_cut_off_stays() {
    for is_cut in [false, true] {
        let mut node = Node::new();
        let conns = node.log_in(2);
        node.stall(conns[1]);
        node.ask(conns[0], &chat_with_seq(1, 2, "half", 1));
        node.line(conns[1]).has_begun = true;
        node.waits = is_keep;
        node.falls_behind(conns[1]);
        (node.jobs, node.sent) = (Vec::new(), Vec::new());
        // The rest goes out while the store takes it, or the connection goes with it.
        if is_cut {
            node.hang_up(conns[1], CloseReason::SocketError);
        } else {
            node.read(conns[1]);
        }
        node.wait_no_more();
        let removed = node.jobs.iter().any(|(_, op)| matches!(op, Op::Write(Write::Remove { user: 2, .. })));
        assert_eq!(removed, !is_cut, "{:?}", node.jobs);
        assert!(node.sent.iter().any(|text| text.contains("\"seq\":1,\"errno\":0")), "{:?}", node.sent);
        // And then the connection goes in both cases.
        if !is_cut {
            node.hang_up(conns[1], CloseReason::Handler(Reason::ByClient));
        }
        let conn = node.connect();
        node.sent.clear();
        node.ask(conn, r#"{"msgid":1,"id":2,"password":"p"}"#);
        assert_eq!(node.reply().contains("half"), is_cut);
    }
}

#[test]
fn what_comes_while_its_recipients_job_waits_for_a_worker_is_stored_by_that_job() {
    let mut node = Node::new();
    let conns = node.log_in(3);
    let conn = conns[0];
    conns[1..].iter().for_each(|conn| node.hang_up(*conn, CloseReason::Handler(Reason::ByClient)));
    (node.waits, node.workers_are_busy) = (is_keep, true);
    for (seq, (to, text)) in (1..).zip([(2, "a"), (3, "x"), (2, "b"), (3, "y"), (2, "c")]) {
        node.ask(conn, &chat_with_seq(1, to, text, seq));
    }
    assert_eq!(node.waiting.len(), 2, "one job for each recipient");
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.wait_no_more();
    for seq in 1..=5 {
        let ack = format!("\"seq\":{seq},\"errno\":0");
        assert_eq!(node.sent.iter().filter(|reply| reply.contains(&ack)).count(), 1, "{:?}", node.sent);
    }
    let login = |node: &mut Node, user: u32| {
        let conn = node.connect();
        node.sent.clear();
        node.ask(conn, &format!(r#"{{"msgid":1,"id":{user},"password":"p"}}"#));
        node.reply()
    };
    let (second, third) = (login(&mut node, 2), login(&mut node, 3));
    let at = |reply: &str, text: &str| reply.find(&format!(r#"\"msg\":\"{text}\""#)).expect("it is there");
    assert!(at(&second, "a") < at(&second, "b") && at(&second, "b") < at(&second, "c"), "{second}");
    assert!(at(&third, "x") < at(&third, "y"), "{third}");
}

#[test]
fn what_became_of_a_commit_is_asked_for_until_it_is_known_and_what_follows_waits() {
    let again = |op: &Op| match op {
        Op::WriteAgain { write: Write::Keep(parcels), key } => Some((parcels[0].messages.len(), *key)),
        _ => None,
    };
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    node.waits = |op| is_keep(op) || matches!(op, Op::WriteAgain { .. });
    node.ask(conn, &chat_with_seq(1, 2, "a", 1));
    for _ in 0..2 {
        node.answer_with(Err(StoreError::InDoubt { key: 7, why: "no answer".into() }));
        node.ask(conn, &chat_with_seq(1, 2, "b", 2));
        assert!(node.sent.is_empty() && node.waiting.is_empty(), "{:?}, {:?}", node.sent, node.waiting);
        node.pass(Duration::from_secs(1));
        assert_eq!(again(&node.waiting[0].op), Some((1, 7)));
    }
    node.answer_kept(Kept::Stored(1));
    assert!(node.reply().contains("\"seq\":1,\"errno\":0"));
    assert_texts(&stored_by(&node.waiting[0].op), &["b", "b"]);
}

#[test]
fn one_message_that_the_database_refuses_fails_alone_among_those_on_a_route() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    node.waits = is_keep;
    // Behind the first, which is being stored, the others wait for each other.
    for (seq, text) in (1..).zip(["a", "b", "c", "d", "e"]) {
        node.ask(conn, &chat_with_seq(1, 2, text, seq));
    }
    node.answer_kept(Kept::Stored(1));
    assert!(node.reply().contains("\"seq\":1,\"errno\":0"));
    let waiting = |node: &Node| match &node.waiting[..] {
        [job] => stored_by(&job.op).len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(waiting(&node), 4);
    node.answer_kept(Kept::Refused(1));
    let replies = std::mem::take(&mut node.sent);
    assert!(replies[0].contains("\"seq\":2,\"errno\":0"), "{replies:?}");
    assert!(replies[1].contains("\"seq\":3,\"errno\":21"), "{replies:?}");
    assert_eq!((replies.len(), waiting(&node)), (2, 2), "{replies:?}");
    node.answer_kept(Kept::Stored(3));
    let replies = std::mem::take(&mut node.sent);
    assert!(
        replies.iter().zip(4..).all(|(reply, seq)| reply.contains(&format!("\"seq\":{seq},\"errno\":0"))),
        "{replies:?}"
    );
    assert!(node.waiting.is_empty());
}

// -- the ends of sessions -----------------------------------------------------------------------------

#[test]
fn a_claim_is_kept_until_what_was_sent_is_delivered_or_stored_and_nobody_waits_for_a_reader() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    let (sender, recipient) = (conns[0], conns[1]);
    node.stall(recipient);
    node.ask(sender, &chat(1, 2, "m"));
    let jobs = node.ask(sender, LOGOUT);
    assert!(jobs.is_empty(), "what is sent from another node could overtake it: {jobs:?}");
    node.falls_behind(recipient);
    let at = |is_it: fn(&Op) -> bool| node.jobs.iter().position(|(_, op)| is_it(op));
    assert!(at(is_keep).is_some() && at(is_keep) < at(is_release), "{:?}", node.jobs);
}

#[test]
fn a_logout_stores_the_queue_and_gives_what_is_half_written_a_second() {
    for reads in [true, false] {
        let mut node = Node::new();
        let conns = node.log_in(2);
        node.stall(conns[1]);
        for text in ["half", "whole"] {
            node.ask(conns[0], &chat(1, 2, text));
        }
        node.line(conns[1]).has_begun = true;
        let jobs = node.ask(conns[1], r#"{"msgid":3,"id":2}"#);
        let stored: Vec<String> = jobs.iter().flat_map(|(_, op)| stored_by(op)).collect();
        assert_texts(&stored, &["half", "whole"]);
        assert!(!jobs.iter().any(|(_, op)| is_release(op)), "{jobs:?}");
        if reads {
            node.read(conns[1]);
        } else {
            node.pass(Duration::from_millis(999));
            assert!(node.jobs.is_empty(), "{:?}", node.jobs);
            node.pass(Duration::from_millis(1));
        }
        assert_eq!(node.lines.contains_key(&conns[1]), reads, "who does not read in time is cut off");
        assert!(node.jobs.iter().any(|(_, op)| is_release(op)), "{:?}", node.jobs);
        // What was written whole is not repeated.
        node.sent.clear();
        let conn = node.connect();
        node.ask(conn, r#"{"msgid":1,"id":2,"password":"p"}"#);
        let reply = node.reply();
        assert!(reply.contains("whole") && reply.contains("half") != reads, "{reply}");
    }
}

#[test]
fn a_login_waits_for_a_session_that_is_ending_though_the_store_knows_nothing_of_it() {
    let mut node = Node::new();
    let (first, second) = (node.log_in(1)[0], node.connect());
    node.stall(first);
    node.ask(first, &chat(1, 1, "half"));
    node.line(first).has_begun = true;
    node.store.release_all().expect("the store");
    node.ask(first, LOGOUT);
    let jobs = node.ask(second, LOGIN);
    assert!(!jobs.iter().any(|(_, op)| is_claim(op)), "{jobs:?}");
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.read(first);
    assert!(node.sent.last().is_some_and(|reply| reply.contains("\"errno\":0")), "{:?}", node.sent);
}

#[test]
fn of_two_logins_at_once_one_gets_the_account() {
    let mut node = Node::new();
    let (first, second) = (node.connect(), node.connect());
    node.ask(first, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.unconfirmed = Some(Vec::new());
    node.ask(first, LOGIN);
    node.ask(second, LOGIN);
    node.sent.clear();
    node.confirm_listening();
    // The other one has waited for it, whatever became of it.
    let how_many = |errno: &str| node.sent.iter().filter(|reply| reply.contains(errno)).count();
    assert_eq!((how_many("\"errno\":0,"), how_many("\"errno\":2,")), (1, 1), "{:?}", node.sent);
    assert_eq!(node.population(), (2, 1));
}

#[test]
fn who_waits_for_another_login_gets_the_account_when_that_fails() {
    let mut node = Node::new();
    let (first, second) = (node.connect(), node.connect());
    node.ask(first, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.unconfirmed = Some(Vec::new());
    node.ask(first, LOGIN);
    node.ask(second, LOGIN);
    node.sent.clear();
    node.hang_up(first, CloseReason::SocketError);
    node.confirm_listening();
    assert!(node.reply().contains("\"errno\":0"));
    assert_eq!(node.population(), (1, 1));
}

/// User 1 has sent something to user 2 of the other node, who does not answer, and has hung up.
fn waits_for_an_answer() -> (Node, u64) {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    node.waits = is_keep;
    node.ask(conn, &chat_with_seq(1, 2, "first", 1));
    node.answer_kept(Kept::Elsewhere(Holder::Node(Claim { node: THERE, epoch: 5 })));
    node.waits = |_| false;
    let published = node.published_there();
    let [Envelope::Chat { to, .. }] = &published[..] else { panic!("{published:?}") };
    let number = to[0].number;
    node.jobs.clear();
    node.hang_up(conn, CloseReason::Handler(Reason::ByClient));
    assert!(node.jobs.is_empty(), "it is not known what became of the message: {:?}", node.jobs);
    (node, number)
}

#[test]
fn who_waits_for_another_node_can_log_in_here_at_once_and_the_claim_waits_on() {
    let (mut node, number) = waits_for_an_answer();
    let before = node.epoch_of(1);
    let conn = node.connect();
    let jobs = node.ask(conn, LOGIN);
    let past = jobs.iter().find_map(|(_, op)| match op {
        Op::Write(Write::Claim { past, .. }) => *past,
        _ => None,
    });
    assert!(matches!(past, Some(Holder::Node(claim)) if claim.epoch == before), "{jobs:?}");
    assert!(node.reply().contains("\"errno\":0"));
    assert_ne!(node.epoch_of(1), before);
    // What was sent before counts on, and what is sent now goes behind it.
    node.ask(conn, &chat(1, 2, "second"));
    let published = node.published_there();
    assert!(
        matches!(&published[..], [Envelope::Chat { to, .. }] if to[0].after == number),
        "the first is not named: {published:?}"
    );
    let jobs = node.ask(conn, LOGOUT);
    assert!(jobs.is_empty(), "{jobs:?}");
    let answered = |number, delivery| Envelope::Answer(vec![Answered { user: 2, number, delivery }]);
    node.hear_from_there(answered(number, Delivery::Delivered));
    assert!(node.jobs.is_empty() && node.sent.is_empty(), "{:?}, {:?}", node.jobs, node.sent);
    node.hear_from_there(answered(number + 1, Delivery::Delivered));
    assert!(matches!(node.jobs[..], [(_, Op::Write(Write::Release { user: 1, .. }))]), "{:?}", node.jobs);
}

#[test]
fn a_return_that_fails_leaves_the_account_to_the_session_that_is_ending() {
    let (mut node, number) = waits_for_an_answer();
    let former = node.epoch_of(1);
    let conn = node.connect();
    node.unconfirmed = Some(Vec::new());
    node.ask(conn, LOGIN);
    let epoch = node.epoch_of(1);
    node.hang_up(conn, CloseReason::SocketError);
    node.jobs.clear();
    node.confirm_listening();
    assert!(node.jobs.is_empty(), "what was sent before is not settled: {:?}", node.jobs);
    // Others know the account by this claim now, not by the one that it may have replaced.
    node.published.clear();
    node.hear_from_there(launched("1", epoch, 1, 0));
    node.hear_from_there(launched("2", former, 2, 1));
    assert_eq!(node.published_there(), [answer(1, Delivery::Stored), answer(2, Delivery::Gone)]);
    node.jobs.clear();
    node.hear_from_there(Envelope::Answer(vec![Answered { user: 2, number, delivery: Delivery::Delivered }]));
    assert!(node.jobs.iter().all(|(_, op)| is_release(op)), "{:?}", node.jobs);
    let conn = node.connect();
    node.sent.clear();
    node.ask(conn, LOGIN);
    assert!(node.reply().contains("\"errno\":0"));
}

#[test]
fn a_shard_has_wound_up_when_it_has_what_the_clients_of_the_others_have_sent() {
    let mut node = Node::with_shards(2);
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    assert_eq!(node.wound_up, 0, "the other one's clients may still write to a user of this one");
    node.call(1, |shard, now, fx| shard.stop(now, fx));
    assert_eq!(node.wound_up, 2);
}

#[test]
fn who_returns_gets_nothing_more_by_the_former_session_as_soon_as_its_claim_may_be_replaced() {
    let (mut node, _) = waits_for_an_answer();
    let former = node.epoch_of(1);
    node.waits = is_claim;
    let conn = node.connect();
    node.ask(conn, LOGIN);
    node.published.clear();
    // The store may have the next claim by now: the node there reads so, and stores or launches what follows.
    node.hear_from_there(launched("late", former, 1, 0));
    node.hear_from_there(Envelope::Nudge { user: 1, epoch: former, number: 2 });
    assert_eq!(node.published_there(), [answer(1, Delivery::Gone), Envelope::Nudged { user: 1, number: 2 }]);
    node.hear_from_there(launched("to the next", former + 1, 3, 0));
    node.hear_from_there(launched("later", former, 4, 3));
    assert_eq!(node.published_there(), [answer(4, Delivery::Gone)]);
    node.sent.clear();
    node.wait_no_more();
    assert_eq!(node.epoch_of(1), former + 1);
    let all = node.sent.concat();
    assert!(all.contains("to the next") && !all.contains("late"), "{all}");
    assert!(!node.jobs.iter().any(|(_, op)| is_keep(op)), "{:?}", node.jobs);
}

#[test]
fn what_comes_for_a_session_while_its_user_returns_is_settled_and_arrives() {
    let mut node = Node::new();
    let conns = node.log_in(3);
    node.waits = is_keep;
    node.ask(conns[0], &chat(1, 9, "it is not known who has user 9"));
    node.hang_up(conns[0], CloseReason::Handler(Reason::ByClient));
    node.waits = |op| is_claim(op) || is_keep(op);
    let conn = node.connect();
    node.ask(conn, LOGIN);
    node.sent.clear();
    // It comes for the former session, of which nothing was left when the claim was asked for.
    node.ask(conns[1], &chat_with_seq(2, 1, "between two sessions", 5));
    while let Some(at) = node.waiting.iter().position(|job| is_claim(&job.op)) {
        let claim = node.waiting.remove(at);
        let shard = claim.shard;
        let done = node.work(claim);
        node.letter(shard, done);
    }
    node.wait_no_more();
    let all = node.sent.concat();
    assert!(all.contains("\"seq\":5,\"errno\":0"), "its sender hears nothing: {all}");
    assert!(all.contains("between two sessions"), "{all}");
    assert_eq!(node.held(), 0);
}

// -- other nodes --------------------------------------------------------------------------------------

/// User 1 is here, by this epoch.
fn with_somebody_here() -> (Node, ConnId, u64) {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    let epoch = node.epoch_of(1);
    node.jobs.clear();
    (node, conn, epoch)
}

/// User 1 has claimed the account by this epoch, and waits for Redis.
fn with_somebody_entering() -> (Node, u64) {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.unconfirmed = Some(Vec::new());
    node.ask(conn, LOGIN);
    let epoch = node.epoch_of(1);
    (node, epoch)
}

fn launched(text: &str, epoch: u64, number: u64, after: u64) -> Envelope {
    let body = Arc::from(chat(7, 1, text).into_bytes());
    Envelope::Chat { body, to: vec![Addressee { user: 1, epoch, number, after }] }
}

fn answer(number: u64, delivery: Delivery) -> Envelope {
    Envelope::Answer(vec![Answered { user: 1, number, delivery }])
}

#[test]
fn what_does_not_follow_on_the_last_that_came_goes_back_until_the_next_nudge() {
    let (mut node, _, epoch) = with_somebody_here();
    node.hear_from_there(launched("1", epoch, 1, 0));
    node.hear_from_there(launched("3", epoch, 3, 2));
    node.hear_from_there(launched("4", epoch, 4, 0));
    let published = node.published_there();
    assert_eq!(published, [answer(1, Delivery::Delivered), answer(3, Delivery::Gone), answer(4, Delivery::Gone)]);
    node.hear_from_there(Envelope::Nudge { user: 1, epoch, number: 5 });
    node.hear_from_there(launched("6", epoch, 6, 5));
    let published = node.published_there();
    assert_eq!(published, [Envelope::Nudged { user: 1, number: 5 }, answer(6, Delivery::Delivered)]);
    assert_texts(&node.sent, &["1", "6"]);
}

#[test]
fn what_is_for_a_session_that_is_not_there_goes_back_and_nobody_waits_for_its_nudge() {
    let (mut node, _, epoch) = with_somebody_here();
    node.hear_from_there(launched("1", epoch + 1, 1, 0));
    node.hear_from_there(Envelope::Nudge { user: 1, epoch: epoch + 1, number: 2 });
    assert_eq!(node.published_there(), [answer(1, Delivery::Gone), Envelope::Nudged { user: 1, number: 2 }]);
    assert!(node.sent.is_empty() && node.jobs.is_empty(), "{:?}, {:?}", node.sent, node.jobs);
}

#[test]
fn a_nudge_is_answered_when_all_before_it_is_stored_and_nobody_waits_for_the_reader() {
    let (mut node, conn, epoch) = with_somebody_here();
    node.stall(conn);
    node.hear_from_there(launched("queued", epoch, 1, 0));
    node.waits = is_keep;
    node.hear_from_there(Envelope::Nudge { user: 1, epoch, number: 2 });
    node.hear_from_there(launched("behind", epoch, 3, 2));
    assert_eq!(node.published_there(), []);
    assert_texts(&stored_by(&node.waiting[0].op), &["queued"]);
    node.wait_no_more();
    let published = node.published_there();
    assert_eq!(published[..2], [answer(1, Delivery::Stored), Envelope::Nudged { user: 1, number: 2 }], "{published:?}");
    // The store is read before what came behind the nudge.
    node.read(conn);
    node.pass(Duration::from_secs(1));
    assert_texts(&node.sent, &["queued", "behind"]);
}

#[test]
fn what_the_store_refuses_of_another_node_keeps_the_rest_of_it_out_until_a_nudge() {
    let (mut node, conn, epoch) = with_somebody_here();
    node.stall(conn);
    node.hear_from_there(launched("1", epoch, 1, 0));
    node.hear_from_there(launched("2", epoch, 2, 1));
    node.store_is_away = true;
    node.falls_behind(conn);
    node.store_is_away = false;
    let refused = Delivery::Failed(chat_server::wire::Errno::StoreUnavailable);
    assert_eq!(node.published_there(), [answer(1, refused), answer(2, refused)]);
    node.hear_from_there(launched("3", epoch, 3, 2));
    assert_eq!(node.published_there(), [answer(3, Delivery::Gone)]);
    node.hear_from_there(Envelope::Nudge { user: 1, epoch, number: 4 });
    node.hear_from_there(launched("5", epoch, 5, 4));
    node.read(conn);
    node.pass(Duration::from_secs(1));
    assert_texts(&node.sent, &["5"]);
}

#[test]
fn nothing_is_left_of_a_user_whose_end_waited_for_what_the_store_has_refused() {
    let (mut node, conn, epoch) = with_somebody_here();
    node.stall(conn);
    node.ask(conn, &chat(1, 1, "to myself"));
    node.hear_from_there(launched("1", epoch, 1, 0));
    node.waits = |op| is_keep(op) || matches!(op, Op::Write(Write::Claim { .. }));
    node.hang_up(conn, CloseReason::SocketError);
    // The next login waits for the end of that session, and its client does not wait for it.
    let next = node.connect();
    node.ask(next, LOGIN);
    assert_texts(&stored_by(&node.waiting[0].op), &["to myself", "1"]);
    node.answer_kept(Kept::Full(1));
    node.hang_up(next, CloseReason::SocketError);
    node.wait_no_more();
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    assert_eq!((node.wound_up, node.population()), (1, (0, 0)));
}

#[test]
fn what_comes_for_a_claim_before_its_session_has_begun_waits_for_it() {
    let (mut node, epoch) = with_somebody_entering();
    node.hear_from_there(launched("1", epoch, 1, 0));
    node.hear_from_there(Envelope::Nudge { user: 1, epoch, number: 2 });
    assert_eq!(node.published_there(), []);
    node.sent.clear();
    node.confirm_listening();
    node.pass(Duration::from_secs(1));
    assert!(node.sent[0].starts_with(r#"{"msgid":2"#), "{:?}", node.sent);
    assert_eq!(
        node.sent.concat().matches(r#"\"msg\":\"1\""#).count() + node.sent.concat().matches(r#""msg":"1""#).count(),
        1
    );
    let published = node.published_there();
    assert!(published.contains(&Envelope::Nudged { user: 1, number: 2 }), "{published:?}");
}

#[test]
fn what_a_node_has_sent_for_a_session_that_has_not_begun_when_it_is_dead_never_arrives() {
    let (mut node, epoch) = with_somebody_entering();
    node.hear_from_there(launched("of the dead", epoch, 1, 0));
    node.hear(BusEvent::Envelope(NodeId(THERE.0 + 1), launched("of the living", epoch, 1, 0)));
    node.hear(BusEvent::Buried { node: THERE, asker: None });
    node.sent.clear();
    node.confirm_listening();
    node.pass(Duration::from_secs(1));
    let all = node.sent.concat();
    assert!(all.contains("of the living") && !all.contains("of the dead"), "{all}");
}

#[test]
fn what_may_still_arrive_elsewhere_and_was_refused_by_the_store_is_waited_for() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    let there = Claim { node: THERE, epoch: 5 };
    node.waits = is_keep;
    node.ask(conn, &chat_with_seq(1, 2, "first", 1));
    node.answer_kept(Kept::Elsewhere(Holder::Node(there)));
    let published = node.published_there();
    assert!(matches!(published[..], [Envelope::Chat { .. }]), "{published:?}");
    // The other node says nothing for 2 s, and the user's store has no room.
    node.pass(Duration::from_secs(2));
    assert_texts(&stored_by(&node.waiting[0].op), &["first"]);
    node.answer_kept(Kept::Full(0));
    let published = node.published_there();
    let [Envelope::Nudge { user: 2, epoch: 5, number }] = published[..] else { panic!("{published:?}") };
    // There may be room by now: but there the second could be read before the first, which is under way. And
    // a sender that hears that the first was refused might send it again.
    node.ask(conn, &chat_with_seq(1, 2, "second", 2));
    assert!(node.waiting.is_empty() && node.sent.is_empty(), "{:?}, {:?}", node.waiting, node.sent);
    node.hear_from_there(Envelope::Nudged { user: 2, number });
    assert!(node.reply().contains("\"seq\":1,\"errno\":20"));
    let published = node.published_there();
    assert!(
        matches!(&published[..], [Envelope::Chat { .. }]) || stored_by(&node.waiting[0].op).len() == 1,
        "{published:?}, {:?}",
        node.waiting
    );
}

#[test]
fn what_was_stored_past_a_node_keeps_its_senders_claim_until_that_node_knows() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    let there = Claim { node: THERE, epoch: 5 };
    node.waits = is_keep;
    node.ask(conn, &chat_with_seq(1, 2, "first", 1));
    node.answer_kept(Kept::Elsewhere(Holder::Node(there)));
    node.published_there();
    node.pass(Duration::from_secs(2));
    node.answer_kept(Kept::Past(1));
    assert!(node.reply().contains("\"seq\":1,\"errno\":0,\"delivered\":false"));
    let published = node.published_there();
    let [Envelope::Nudge { user: 2, epoch: 5, number }] = published[..] else { panic!("{published:?}") };
    node.waits = |_| false;
    node.jobs.clear();
    let jobs = node.ask(conn, LOGOUT);
    assert!(jobs.is_empty(), "what is sent from another node could overtake it: {jobs:?}");
    // It is nudged again, under the same number, and the store is asked which node has the user.
    node.waits = is_keep;
    node.pass(Duration::from_secs(2));
    assert_eq!(node.published_there(), [Envelope::Nudge { user: 2, epoch: 5, number }]);
    assert!(matches!(&node.waiting[..], [job] if stored_by(&job.op).is_empty()), "{:?}", node.waiting);
    node.answer_kept(Kept::Elsewhere(Holder::Node(there)));
    assert!(!node.jobs.iter().any(|(_, op)| is_release(op)), "{:?}", node.jobs);
    node.hear_from_there(Envelope::Nudged { user: 2, number });
    assert!(matches!(node.jobs.last(), Some((_, Op::Write(Write::Release { user: 1, .. })))), "{:?}", node.jobs);
}

#[test]
fn what_may_be_stored_while_a_login_reads_the_store_is_drained_behind_the_reply() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.waits = |op| matches!(op, Op::Load { .. });
    node.ask(conn, LOGIN);
    // A node has died, which may have stored something meanwhile.
    node.hear(BusEvent::Buried { node: THERE, asker: None });
    assert!(node.jobs.is_empty(), "{:?}", node.jobs);
    node.wait_no_more();
    assert!(matches!(node.jobs[..], [(_, Op::Page { user: 1, .. })]), "{:?}", node.jobs);
}

#[test]
fn after_a_nodes_death_the_store_is_drained_for_everybody_and_that_is_confirmed() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.stall(conns[1]);
    node.ask(conns[0], &chat(1, 2, "queued"));
    node.jobs.clear();
    node.waits = is_keep;
    let asker = Some(NodeId(8));
    let buried = BusEvent::Buried { node: THERE, asker };
    node.hear(buried.clone());
    let pages = |node: &Node| node.jobs.iter().filter(|(_, op)| is_page(op)).count();
    assert_eq!(pages(&node), 1, "who reads is drained at once");
    let is_confirmed = |node: &mut Node| {
        let published = std::mem::take(&mut node.published);
        published.iter().any(|op| matches!(op, BusOp::Confirm { dead: THERE, asker: NodeId(8), shard: 0 }))
    };
    assert!(!is_confirmed(&mut node), "something is neither delivered nor stored");
    node.wait_no_more();
    assert!(is_confirmed(&mut node));
    // A node that is asked again confirms again, and one that has nothing open, at once.
    node.hear(buried);
    assert!(is_confirmed(&mut node));
    // While the bus is away no session is drained: what others have stored is followed by a nudge.
    node.jobs.clear();
    node.hear(BusEvent::Down);
    node.hear(BusEvent::Up);
    assert_eq!(pages(&node), 0);
}

#[test]
fn who_waits_for_a_node_that_has_died_waits_no_longer_than_its_last_look_lasts() {
    let (mut node, _) = waits_for_an_answer();
    node.waits = is_keep;
    node.pass(Duration::from_secs(1));
    node.hear(BusEvent::Buried { node: THERE, asker: None });
    node.pass(Duration::from_secs(1));
    node.pass(Duration::from_secs(1));
    // Given up, it is stored, past the node if the store has not freed its claims yet.
    assert_texts(&stored_by(&node.waiting[0].op), &["first"]);
    node.answer_kept(Kept::Stored(1));
    assert!(matches!(node.jobs.last(), Some((_, Op::Write(Write::Release { user: 1, .. })))), "{:?}", node.jobs);
}

// -- the end of the server ----------------------------------------------------------------------------

#[test]
fn at_the_end_what_is_queued_or_held_for_slow_readers_is_stored_and_its_senders_are_told() {
    let (mut node, sender, _) = with_somebody_who_is_drained();
    node.ask(sender, &chat_with_seq(1, 2, "second", 2));
    node.waits = is_keep;
    node.jobs.clear();
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    let stored: Vec<String> = node.jobs.iter().flat_map(|(_, op)| stored_by(op)).collect();
    assert_texts(&stored, &["second"]);
    assert_eq!(node.wound_up, 0);
    node.sent.clear();
    node.wait_no_more();
    assert!(node.sent.concat().contains("\"seq\":2,\"errno\":0,\"delivered\":false"), "{:?}", node.sent);
    assert_eq!((node.wound_up, node.population(), node.shards[0].lost()), (1, (0, 0), (0, 0)));
    let page = node.store.connection().page(2, 1 << 20).expect("the store");
    assert_eq!(page.messages.len(), 2);
}

#[test]
fn at_the_end_what_the_store_does_not_take_is_counted_as_lost() {
    let (mut node, sender, _) = with_somebody_who_is_drained();
    node.ask(sender, &chat(1, 2, "second"));
    node.store_is_away = true;
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    assert_eq!(node.shards[0].lost(), (1, 1));
    assert_eq!(node.population().0, 0);
}

// -- logins on their way ------------------------------------------------------------------------------

/// The number behind `"retry_after":`.
fn retry_after(reply: &str) -> u64 {
    let rest = reply.split_once("\"retry_after\":").unwrap_or_else(|| panic!("{reply}")).1;
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

const IN_7_S: Duration = Duration::from_secs(7);
const IN_10_S: Duration = Duration::from_secs(10);

#[test]
fn passwords_of_clients_that_are_gone_are_not_hashed() {
    let mut node = Node::new();
    let conns: Vec<ConnId> = (0..10).map(|_| node.connect()).collect();
    node.ask(conns[0], r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.waits = |op| is_verify(op) || matches!(op, Op::Register { .. });
    for conn in &conns {
        node.ask(*conn, r#"{"msgid":1,"id":1,"password":"wrong"}"#);
    }
    let newcomer = node.connect();
    node.ask(newcomer, r#"{"msgid":4,"name":"another","password":"p"}"#);
    // Reset while its input waits; closed by this server; still there.
    for conn in conns[..4].iter().chain([&newcomer]) {
        node.call_for(*conn, |shard, conn, now, fx| shard.hung_up(conn, HangUp::Gone, now, fx));
    }
    for conn in &conns[4..9] {
        node.hang_up(*conn, CloseReason::SlowConsumer(Mark::Hard));
    }
    let standings: Vec<Standing> = node.waiting.iter().map(|job| job.op.standing()).collect();
    assert_eq!(standings.iter().filter(|standing| **standing == Standing::Due).count(), 1, "{standings:?}");
    node.sent.clear();
    let before = node.passwords(PasswordWork::Hashed);
    node.wait_no_more();
    assert_eq!((node.passwords(PasswordWork::Spared), node.passwords(PasswordWork::Hashed)), (10, before + 1));
    assert!(node.reply().contains("\"errno\":1,"));
    assert_eq!(node.hashes.length(false), Duration::ZERO);
    // There is no hash either for a client that went while the account was read.
    node.waits = |op| matches!(op, Op::Account { .. });
    node.ask(conns[9], LOGIN);
    node.call_for(conns[9], |shard, conn, now, fx| shard.hung_up(conn, HangUp::Gone, now, fx));
    node.wait_no_more();
    assert!(!node.jobs.iter().any(|(_, op)| is_verify(op)), "{:?}", node.jobs);
}

#[test]
fn at_the_end_of_the_server_nothing_is_hashed_any_more() {
    let (mut node, _) = Node::log_in_up_to(is_verify);
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    assert!(node.reply().contains("{\"msgid\":2,\"errno\":22,"), "{:?}", node.sent);
    assert_eq!(node.waiting[0].op.standing(), Standing::Abandoned);
    // The hash for a client that is logged in and registers another account is given up, too.
    let (mut node, conn) = Node::log_in_up_to(|op| matches!(op, Op::Register { .. }));
    node.ask(conn, r#"{"msgid":4,"name":"another","password":"p","seq":9}"#);
    node.call(0, |shard, now, fx| shard.stop(now, fx));
    assert!(node.reply().contains("\"errno\":22"), "{:?}", node.sent);
    assert_eq!(node.waiting[0].op.standing(), Standing::Abandoned);
}

#[test]
fn who_is_half_closed_is_hashed_behind_all_others_and_served() {
    let (mut node, conn) = Node::log_in_up_to(is_verify);
    assert_eq!(node.waiting[0].op.standing(), Standing::Due);
    node.call_for(conn, |shard, conn, now, fx| shard.hung_up(conn, HangUp::HalfClosed, now, fx));
    assert_eq!(node.waiting[0].op.standing(), Standing::Last);
    node.wait_no_more();
    assert!(node.reply().contains("\"errno\":0"));
    // It has hung up before its account was read.
    let (mut node, conn) = Node::log_in_up_to(|op| is_verify(op) || matches!(op, Op::Account { .. }));
    node.call_for(conn, |shard, conn, now, fx| shard.hung_up(conn, HangUp::HalfClosed, now, fx));
    let read = node.take_one();
    node.answer(read);
    assert_eq!(node.waiting[0].op.standing(), Standing::Last);
    node.wait_no_more();
    assert!(node.reply().contains("\"errno\":0"));
}

#[test]
fn who_would_still_wait_for_a_hash_after_7_s_is_refused() {
    let (mut node, conn) = Node::log_in_up_to(is_verify);
    node.pass(IN_7_S - Duration::from_millis(1));
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.pass(Duration::from_millis(1));
    let reply = node.reply();
    assert!(reply.starts_with(r#"{"msgid":2,"errno":20"#) && retry_after(&reply) <= 2, "{reply}");
    let hashed = node.passwords(PasswordWork::Hashed);
    node.wait_no_more();
    assert_eq!(node.passwords(PasswordWork::Hashed), hashed);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.ask(conn, LOGIN);
    assert!(node.reply().contains("\"errno\":0"));
    // What is left of the first attempt's time is not held against the second one.
    node.pass(IN_10_S);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
}

#[test]
fn a_registration_that_waits_for_its_hash_is_refused_alike() {
    let mut node = Node::new();
    let conn = node.connect();
    node.waits = |op| matches!(op, Op::Register { .. });
    let register = r#"{"msgid":4,"name":"someone","password":"p","seq":5}"#;
    node.ask(conn, register);
    node.pass(IN_7_S);
    let reply = node.reply();
    assert!(reply.starts_with(r#"{"msgid":5,"seq":5,"errno":20"#) && retry_after(&reply) >= 1, "{reply}");
    node.wait_no_more();
    node.ask(conn, register);
    assert!(node.reply().contains("\"errno\":0"), "it was refused, and is there");
    // It is on a worker, and the store hangs.
    node.waits = |op| matches!(op, Op::Register { .. });
    node.ask(conn, r#"{"msgid":4,"name":"another","password":"p"}"#);
    let done = node.take_one();
    node.pass(IN_10_S);
    assert!(node.reply().starts_with(r#"{"msgid":5,"errno":21"#));
    node.answer(done);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
}

#[test]
fn those_who_would_wait_too_long_are_refused_at_once_and_told_different_times() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.waits = is_verify;
    let login = |node: &mut Node| {
        let conn = node.connect();
        node.ask(conn, LOGIN);
        conn
    };
    (0..100).for_each(|_| node.hashes.note(Duration::from_secs(1)));
    node.sent.clear();
    let first: Vec<ConnId> = (0..7).map(|_| login(&mut node)).collect();
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    assert_eq!(node.hashes.length(false).as_secs_f64().round(), 7.0);
    (0..200).for_each(|_| _ = login(&mut node));
    // The first hash was measured as well.
    let waiting = node.waiting.len();
    assert!((7..=8).contains(&waiting), "{waiting}");
    let length = node.hashes.length(false).as_secs_f64().ceil() as u64;
    let times: Vec<u64> = node.sent.iter().map(|reply| retry_after(reply)).collect();
    assert!(times.len() == 207 - waiting && times.iter().all(|time| (length..=2 * length).contains(time)), "{times:?}");
    for second in length..=2 * length {
        let share = times.iter().filter(|time| **time == second).count();
        assert!(share * (length as usize + 1) > 100, "{second} s: {share} of 200");
    }
    // A client that has half closed makes room for others, and so does one that gives up.
    node.sent.clear();
    for conn in &first[3..] {
        node.call_for(*conn, |shard, conn, now, fx| shard.hung_up(conn, HangUp::HalfClosed, now, fx));
    }
    login(&mut node);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    for conn in &first[..3] {
        node.hang_up(*conn, CloseReason::SocketError);
    }
    node.sent.clear();
    login(&mut node);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
}

/// After 10 s the login is answered with `errno`; a late answer is no second one, the account is free afterwards,
/// and the client can log in on the same connection.
#[track_caller]
fn is_answered_in_time(mut node: Node, conn: ConnId, errno: u32, late: impl FnOnce(&mut Node)) {
    node.pass(IN_10_S - Duration::from_millis(1));
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.pass(Duration::from_millis(1));
    let reply = node.reply();
    assert!(reply.starts_with(&format!(r#"{{"msgid":2,"errno":{errno},"#)), "{reply}");
    late(&mut node);
    node.waits = |_| false;
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    assert_eq!(node.population().1, 0);
    node.ask(conn, LOGIN);
    assert!(node.reply().contains("\"errno\":0"));
    node.pass(IN_10_S);
    assert_eq!((node.population().1, node.sent.len()), (1, 0), "{:?}", node.sent);
}

#[test]
fn a_login_is_answered_in_time_though_its_account_is_not_read() {
    let (node, conn) = Node::log_in_up_to(|op| matches!(op, Op::Account { .. }));
    is_answered_in_time(node, conn, 21, Node::wait_no_more);
}

#[test]
fn a_login_is_answered_in_time_though_a_worker_is_stuck_with_its_hash() {
    let (mut node, conn) = Node::log_in_up_to(is_verify);
    let done = node.take_one();
    is_answered_in_time(node, conn, 20, |node| node.answer(done));
}

#[test]
fn a_claim_that_is_won_after_the_deadline_is_given_back() {
    let (node, conn) = Node::log_in_up_to(is_claim);
    is_answered_in_time(node, conn, 21, |node| {
        node.jobs.clear();
        node.wait_no_more();
        assert!(matches!(node.jobs[..], [(_, Op::Write(Write::Release { user: 1, .. }))]), "{:?}", node.jobs);
    });
}

#[test]
fn a_login_is_answered_in_time_though_its_channel_is_never_listened_to() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.unconfirmed = Some(Vec::new());
    node.ask(conn, LOGIN);
    node.sent.clear();
    node.jobs.clear();
    is_answered_in_time(node, conn, 20, |node| {
        node.confirm_listening();
        assert!(matches!(node.jobs[..], [(_, Op::Write(Write::Release { user: 1, .. }))]), "{:?}", node.jobs);
    });
}

#[test]
fn a_login_is_answered_in_time_though_the_last_session_does_not_end() {
    let mut node = Node::new();
    let (conns, conn) = (node.log_in(2), node.connect());
    let first = conns[0];
    node.hang_up(conns[1], CloseReason::Handler(Reason::ByClient));
    // It has sent something that the store does not take.
    node.waits = is_keep;
    node.ask(first, &chat(1, 2, "m"));
    node.ask(first, LOGOUT);
    node.ask(conn, LOGIN);
    is_answered_in_time(node, conn, 20, Node::wait_no_more);
}

#[test]
fn a_login_is_answered_in_time_though_nothing_is_read_for_its_reply() {
    let (node, conn) = Node::log_in_up_to(|op| matches!(op, Op::Load { .. }));
    is_answered_in_time(node, conn, 21, Node::wait_no_more);
}

#[test]
fn what_was_read_for_a_login_that_was_given_up_is_not_the_next_ones_reply() {
    let (mut node, conn) = Node::log_in_up_to(|op| matches!(op, Op::Load { .. }));
    node.pass(IN_10_S);
    node.ask(conn, LOGIN);
    node.sent.clear();
    assert_eq!(node.waiting.len(), 2);
    let late = node.take_one();
    node.answer(late);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.wait_no_more();
    assert!(node.reply().contains("\"errno\":0"));
}

#[test]
fn who_was_here_before_with_this_password_costs_no_hash() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    let log_in = |node: &mut Node, request: &str| {
        node.ask(conn, r#"{"msgid":3,"id":1}"#);
        node.sent.clear();
        let jobs = node.ask(conn, request);
        let hashes = jobs.iter().filter(|(_, op)| is_verify(op)).count();
        (hashes, node.reply().contains("\"errno\":0"))
    };
    assert_eq!(log_in(&mut node, LOGIN), (0, true));
    for _ in 0..3 {
        assert_eq!(log_in(&mut node, r#"{"msgid":1,"id":1,"password":"wrong"}"#), (1, false));
        assert_eq!(log_in(&mut node, r#"{"msgid":1,"id":1,"password":"p"}"#), (0, true));
    }
    // It is changed: neither password is known for what is stored now.
    let cost: Cost = "8,1".parse().expect("a cost");
    let password = Hasher::new(cost).hash("new").expect("a hash");
    let set = Write::SetPassword { user: 1, password };
    node.store.connection().write(&[set]).expect("the store");
    assert_eq!(log_in(&mut node, LOGIN), (1, false));
    let new = r#"{"msgid":1,"id":1,"password":"new"}"#;
    assert_eq!([log_in(&mut node, new), log_in(&mut node, new)], [(1, true), (0, true)]);
    // Another cost: it is hashed anew, once, and known after that.
    let cost: Cost = "16,1".parse().expect("a cost");
    let password = Hasher::new(cost).hash("new").expect("a hash");
    let set = Write::SetPassword { user: 1, password: password.clone() };
    node.store.connection().write(&[set]).expect("the store");
    assert_eq!([log_in(&mut node, new), log_in(&mut node, new)], [(1, true), (0, true)]);
    let stored = node.store.connection().account(1).expect("the store").expect("an account").password;
    assert!(stored != password && stored.contains("m=8,"), "{stored}");
    assert_eq!(node.passwords(PasswordWork::Remembered), 6);
}

#[test]
fn nobody_is_remembered_without_a_memo() {
    let mut node = Node::new();
    let cost: Cost = "8,1".parse().expect("a cost");
    node.runner = JobRunner::new(node.store.connection(), Hasher::new(cost), false, None);
    let conn = node.log_in(1)[0];
    for _ in 0..3 {
        node.ask(conn, r#"{"msgid":3,"id":1}"#);
        let jobs = node.ask(conn, LOGIN);
        assert!(jobs.iter().any(|(_, op)| is_verify(op)), "{jobs:?}");
    }
}

#[test]
fn a_password_that_was_changed_while_it_waited_for_its_hash_is_not_overwritten() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    let set = |node: &Node, password: &str| {
        let set = Write::SetPassword { user: 1, password: password.to_owned() };
        node.store.connection().write(&[set]).expect("the store");
    };
    set(&node, "p"); // as a C++ server has it
    node.waits = is_verify;
    node.ask(conn, LOGIN);
    set(&node, "new");
    node.wait_no_more();
    assert_eq!(node.store.connection().account(1).expect("the store").expect("an account").password, "new");
}

// -- clients that may be C++ ones ----------------------------------------------------------------------

/// The accounts 1 and 2. The second one's client has logged in by this request, and what it ends its objects with.
fn with_a_reader(set: impl FnOnce(&mut Settings), login: &str, end: &str) -> (Node, [ConnId; 2]) {
    let mut node = Node::with_settings(1, set);
    let conns = node.log_in(2);
    node.ask(conns[1], r#"{"msgid":3,"id":2}"#);
    node.hang_up(conns[1], CloseReason::Handler(Reason::ByClient));
    let reader = node.connect();
    log_in_again(&mut node, reader, login, end);
    (node, [conns[0], reader])
}

const LOGIN_2: &str = r#"{"msgid":1,"id":2,"password":"p"}"#;

/// What stands behind the request is looked at, and waits.
fn log_in_again(node: &mut Node, conn: ConnId, login: &str, end: &str) {
    node.offer(conn, format!("{login}{end}"));
}

fn no_flag(_: &mut Settings) {}

fn legacy(settings: &mut Settings) {
    settings.legacy_client = true;
}

/// The client of user 2 sends this number of messages at once.
fn send_many(node: &mut Node, conn: ConnId, messages: usize) {
    (0..messages).for_each(|_| _ = node.ask(conn, &format!("{}\0", chat(2, 1, "typed"))));
}

/// So many messages come for user 2 in a second.
fn one_second(node: &mut Node, from: ConnId, messages: u32) {
    for n in 0..messages {
        node.ask(from, &chat(1, 2, &n.to_string()));
        node.pass(Duration::from_secs(1) / messages);
    }
}

#[test]
fn messages_are_spaced_out_where_objects_end_with_nul_and_seq_was_never_used() {
    let with_seq = r#"{"msgid":1,"id":2,"password":"p","seq":1}"#;
    for (login, end, is_paced) in
        [(LOGIN_2, "\0", true), (LOGIN_2, "\n", false), (LOGIN_2, "", false), (with_seq, "\0", false)]
    {
        let (mut node, [_, reader]) = with_a_reader(no_flag, login, end);
        assert_eq!(node.line(reader).is_paced, is_paced, "{login}{end:?}");
    }
}

#[test]
fn messages_are_spaced_out_no_more_once_seq_is_used() {
    let (mut node, [_, reader]) = with_a_reader(no_flag, LOGIN_2, "\0");
    node.ask(reader, "{\"msgid\":202}\0");
    assert!(node.line(reader).is_paced);
    node.ask(reader, "{\"msgid\":202,\"seq\":1}\0");
    assert!(!node.line(reader).is_paced);
}

#[test]
fn who_sends_more_than_50_messages_in_a_second_is_a_program() {
    let (mut node, [_, reader]) = with_a_reader(no_flag, LOGIN_2, "\0");
    for _ in 0..3 {
        send_many(&mut node, reader, 50);
        assert!(node.line(reader).is_paced);
        node.pass(Duration::from_secs(1));
    }
    send_many(&mut node, reader, 51);
    assert!(!node.line(reader).is_paced);
    // For the rest of the connection, also after another login.
    node.pass(Duration::from_secs(60));
    node.ask(reader, "{\"msgid\":3,\"id\":2}\0");
    log_in_again(&mut node, reader, LOGIN_2, "\0");
    assert!(node.sent.last().is_some_and(|reply| reply.contains(r#""errno":0,"id":2"#)), "{:?}", node.sent);
    assert!(!node.line(reader).is_paced);
}

#[test]
fn a_client_that_gets_more_than_100_live_messages_a_second_for_5_s_is_a_program() {
    let (mut node, [sender, reader]) = with_a_reader(no_flag, LOGIN_2, "\0");
    for messages in [1000, 200, 200, 200, 100, 200, 200, 200, 200, 200] {
        one_second(&mut node, sender, messages);
        assert!(node.line(reader).is_paced);
    }
    node.ask(sender, &chat(1, 2, "in the next second"));
    assert!(!node.line(reader).is_paced);
}

#[test]
fn what_comes_live_for_a_slow_reader_counts_though_the_store_takes_it() {
    let (mut node, [sender, reader]) = with_a_reader(no_flag, LOGIN_2, "\0");
    node.stall(reader);
    node.ask(sender, &chat(1, 2, "queued"));
    node.falls_behind(reader);
    (0..6).for_each(|_| one_second(&mut node, sender, 150));
    assert!(!node.line(reader).is_paced);
}

#[test]
fn offline_messages_do_not_make_a_program_of_their_reader() {
    let small_pages = |settings: &mut Settings| settings.high_water = 32 * 1024;
    let (mut node, [sender, reader]) = with_a_reader(small_pages, LOGIN_2, "\0");
    node.ask(reader, "{\"msgid\":3,\"id\":2}\0");
    (0..2000).for_each(|n| _ = node.ask(sender, &chat(1, 2, &n.to_string())));
    node.waits = is_page;
    log_in_again(&mut node, reader, LOGIN_2, "\0");
    for second in 0..7 {
        node.sent.clear();
        let page = node.take_one();
        node.answer(page);
        assert!(node.sent.len() > 100, "second {second}: {}", node.sent.len());
        node.ask(sender, &chat(1, 2, "live"));
        node.pass(Duration::from_secs(1));
    }
    assert!(node.line(reader).is_paced);
}

#[test]
fn with_the_flag_messages_stay_spaced_out() {
    let (mut node, [sender, reader]) = with_a_reader(legacy, LOGIN_2, "\0");
    send_many(&mut node, reader, 200);
    (0..7).for_each(|_| one_second(&mut node, sender, 200));
    assert!(node.line(reader).is_paced);
}

/// The login reply of user 2, who has missed 20 messages and has this number of friends, and what follows it.
fn login_reply(set: impl FnOnce(&mut Settings), end: &str, friends: u32) -> (serde_json::Value, Vec<String>, usize) {
    let (mut node, [sender, reader]) = with_a_reader(set, LOGIN_2, end);
    for friend in 0..friends {
        node.ask(sender, &format!(r#"{{"msgid":4,"name":"a friend of this name {friend}","password":"p"}}"#));
        node.ask(reader, &format!("{{\"msgid\":7,\"id\":2,\"friendid\":{}}}{end}", 3 + friend));
    }
    node.ask(reader, &format!("{{\"msgid\":3,\"id\":2}}{end}"));
    (0..20).for_each(|n| _ = node.ask(sender, &chat(1, 2, &format!("{n} {}", "x".repeat(30)))));
    node.sent.clear();
    log_in_again(&mut node, reader, LOGIN_2, end);
    let reply = node.sent.remove(0);
    (serde_json::from_str(&reply).expect("a reply"), std::mem::take(&mut node.sent), reply.len())
}

#[test]
fn offline_messages_follow_a_login_reply_that_would_be_too_large_and_friends_stay_in_it() {
    let listed = |reply: &serde_json::Value, key: &str| reply[key].as_array().map_or(0, Vec::len);
    for (friends, has_offline) in [(0, true), (5, true), (40, false)] {
        let (reply, pushes, bytes) = login_reply(no_flag, "\0", friends);
        let offline = listed(&reply, "offlinemsg");
        assert_eq!((listed(&reply, "friends"), offline > 0), (friends as usize, has_offline), "{reply}");
        assert!(bytes < 1023 || !has_offline, "{bytes} bytes");
        assert_eq!(offline + pushes.len(), 20);
        assert!(pushes[0].contains(&format!("\"{offline} x")), "{}", pushes[0]);
    }
    // Others get all at once, and with the flag friends are left out, too.
    let (reply, pushes, _) = login_reply(no_flag, "\n", 40);
    assert_eq!((listed(&reply, "friends"), listed(&reply, "offlinemsg"), pushes.len()), (40, 20, 0));
    let (_, _, bytes) = login_reply(legacy, "\0", 40);
    assert!(bytes < 1023, "{bytes} bytes");
}

#[test]
fn an_unknown_number_is_answered_once_until_there_is_a_known_request() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    let answered = |node: &mut Node, request: &str| {
        node.sent.clear();
        node.ask(conn, request);
        node.sent.iter().filter(|reply| reply.contains("\"errno\":11")).count()
    };
    let (heartbeat, other) = (r#"{"msgid":99,"id":1}"#, r#"{"msgid":98}"#);
    assert_eq!([heartbeat, heartbeat, other, heartbeat, other].map(|it| answered(&mut node, it)), [1, 0, 1, 0, 0]);
    assert_eq!(answered(&mut node, r#"{"msgid":203}"#), 0);
    assert_eq!([heartbeat, heartbeat].map(|it| answered(&mut node, it)), [1, 0]);
    // The last eight are remembered.
    let many = (300..309).map(|number| format!(r#"{{"msgid":{number}}}"#)).collect::<Vec<_>>();
    assert!(many.iter().all(|it| answered(&mut node, it) == 1));
    assert_eq!([answered(&mut node, &many[8]), answered(&mut node, &many[0])], [0, 1]);
    // Who uses `seq` knows this server.
    let with_seq = r#"{"msgid":99,"seq":1}"#;
    assert_eq!([with_seq, with_seq, heartbeat, heartbeat].map(|it| answered(&mut node, it)), [1, 1, 1, 1]);
}

#[test]
fn a_heartbeat_without_a_nul_does_not_change_what_ends_the_connections_objects() {
    let (mut node, [sender, reader]) = with_a_reader(no_flag, LOGIN_2, "\0");
    let end_of_a_chat = |node: &mut Node| {
        node.ask(sender, &chat(1, 2, "hello"));
        node.last_framing
    };
    for input in [
        r#"{"msgid":99,"id":2}"#,
        "{\"msgid\":99}{\"msgid\":99}",
        "{\"msgid\":98}\n",
        "{\"msgid\":202}\0{\"msgid\":99}",
    ] {
        node.ask(reader, input);
        node.ask(reader, r#"{"msgid":99,"id":2}"#);
        assert_eq!(end_of_a_chat(&mut node), Framing::Nul, "{input:?}");
    }
    // A request does, and with `seq` anything.
    node.ask(reader, "{\"msgid\":202}\n");
    assert_eq!(end_of_a_chat(&mut node), Framing::Lf);
    node.ask(reader, "{\"msgid\":202,\"seq\":1}\0");
    assert_eq!(end_of_a_chat(&mut node), Framing::Nul);
    node.ask(reader, "{\"msgid\":99}\n");
    assert_eq!(end_of_a_chat(&mut node), Framing::Lf);
}

#[test]
fn the_first_object_tells_what_ends_the_connections_objects_whatever_it_is() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, "{\"msgid\":99}\0");
    assert_eq!(node.last_framing, Framing::Nul);
}

#[test]
fn what_a_client_has_asked_in_a_dialect_is_not_answered_in_canon() {
    let mut node = Node::new();
    let client = node.log_in(2)[0];
    // f has an ack for a new friend; canon, without `seq`, has none.
    node.ask(client, r#"{"msgid":11,"id":1,"groupid":9,"msg":"a group chat of f"}"#);
    node.ask(client, r#"{"msgid":7,"id":1,"friendid":2}"#);
    assert_eq!(node.reply(), r#"{"msgid":8,"errno":0,"flag":true,"friendid":2}"#);
    node.waits = |op| matches!(op, Op::Write(Write::AddFriend { .. }));
    node.ask(client, r#"{"msgid":7,"id":1,"friendid":1}"#);
    node.ask(client, r#"{"msgid":8,"id":1,"groupname":"a group of canon","groupdesc":""}"#);
    node.wait_no_more();
    assert_eq!(node.sent, [""; 0]);
    // From now on it is refused as canon is.
    node.ask(client, r#"{"msgid":7,"id":1,"friendid":9}"#);
    assert_eq!(node.reply(), r#"{"msgid":201,"errno":15,"errmsg":"no such user","request":7}"#);
}
