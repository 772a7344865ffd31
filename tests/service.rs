//! What the service has others do: the jobs that a request comes to, and their lanes. Seen from outside these cost
//! time or none, which a test cannot tell from a slow machine. And schedules that the simulation has found, step by
//! step: a change of its dice must not lose them.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::bus::{BusEvent, BusOp, Envelope};
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{CloseReason, ConnId, ConnIds, Unwritten};
use chat_server::service::{
    Answer, Done, Effect, Effects, Job, JobRunner, Lane, Letter, Now, Op, Payload, Settings, Shard, Tag, Timer,
};
use chat_server::store::sqlite::SqliteStore;
use chat_server::store::{Claim, Holder, Kept, NodeId, Outcome, Quotas, Store, StoreError, Write};
use tempfile::TempDir;

const LANES: usize = 3;

/// One shard and its store. Everything is done at once, and the jobs are noted.
struct Node {
    shard: Shard,
    ids: ConnIds,
    runner: JobRunner,
    now: Now,
    jobs: Vec<(Lane, Op)>,
    /// What was sent to clients.
    sent: Vec<String>,
    /// Who does not read, and what is noted on the messages that wait.
    stalled: Option<(ConnId, Vec<Tag>)>,
    /// Nobody's queue is taken back for now; else it is found empty.
    keeps_queues: bool,
    /// What was published for other nodes, who do not answer.
    published: Vec<BusOp>,
    /// How many other nodes Redis says that it has told; `None`: it says nothing.
    reached: Option<u32>,
    /// What Redis has yet to confirm; `None`: it does so at once.
    unconfirmed: Option<Vec<BusEvent>>,
    /// Every job fails.
    store_is_away: bool,
    /// Jobs of this kind wait for a worker.
    waits: fn(&Op) -> bool,
    waiting: Vec<Job>,
    store: SqliteStore,
    _folder: TempDir,
}

impl Node {
    fn new() -> Node {
        Node::with_shard(0, 1)
    }

    /// This shard of so many. What it posts to the others is thrown away.
    fn with_shard(index: usize, shards: usize) -> Node {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = SqliteStore::open(&folder.path().join("chat.db"), Quotas::default()).expect("a store");
        let cost: Cost = "8,1".parse().expect("a cost");
        let now = Now { at: Instant::now(), unix: 0 };
        let settings = Settings { lanes: LANES, alone: false, ..Settings::default() };
        Node {
            shard: Shard::new(index, shards, settings, now),
            ids: ConnIds::new(index as u16),
            runner: JobRunner::new(store.connection(), Hasher::new(cost), false),
            now,
            jobs: Vec::new(),
            sent: Vec::new(),
            stalled: None,
            keeps_queues: false,
            published: Vec::new(),
            reached: Some(0),
            unconfirmed: None,
            store_is_away: false,
            waits: |_| false,
            waiting: Vec::new(),
            store,
            _folder: folder,
        }
    }

    fn connect(&mut self) -> ConnId {
        let conn = self.ids.allocate();
        self.call(|shard, now, fx| shard.opened(conn, SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), now, fx));
        conn
    }

    /// The jobs that a request comes to.
    fn ask(&mut self, conn: ConnId, request: &str) -> Vec<(Lane, Op)> {
        self.call(|shard, now, fx| assert_eq!(shard.input(conn, request.as_bytes(), now, fx).bytes, request.len()));
        std::mem::take(&mut self.jobs)
    }

    fn call(&mut self, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        let mut fx = Effects::default();
        input(&mut self.shard, self.now, &mut fx);
        // An effect's bytes stand in the list that it came with.
        let mut effects: VecDeque<_> = with_bytes(fx).collect();
        while let Some((effect, bytes)) = effects.pop_front() {
            let mut fx = Effects::default();
            match effect {
                Effect::Send { conn, tag, body, .. } => {
                    let text = match &body {
                        Payload::Own(range) => &bytes[range.clone()],
                        Payload::Shared(text) => text,
                    };
                    self.sent.push(String::from_utf8_lossy(text).into_owned());
                    match &mut self.stalled {
                        Some((stalled, tags)) if *stalled == conn => tags.extend(tag),
                        _ => tag.into_iter().for_each(|tag| self.shard.written(conn, tag, &mut fx)),
                    }
                }
                Effect::Submit(lane, job) => {
                    self.jobs.push((lane, copy(&job.op)));
                    if (self.waits)(&job.op) {
                        self.waiting.push(*job);
                    } else {
                        self.work(*job, &mut fx);
                    }
                }
                Effect::Bus(op) => {
                    let event = match op {
                        BusOp::Listen { user, epoch, .. } => {
                            let event = BusEvent::Listening { user, epoch };
                            if let Some(unconfirmed) = &mut self.unconfirmed {
                                unconfirmed.push(event);
                                continue;
                            }
                            event
                        }
                        BusOp::ToAll(_, ticket) => {
                            self.published.push(op);
                            BusEvent::Reached(ticket, self.reached)
                        }
                        op => {
                            self.published.push(op);
                            continue;
                        }
                    };
                    self.shard.letter(Letter::Bus(event), self.now, &mut fx);
                }
                Effect::Recall(conn) if !self.keeps_queues => {
                    self.shard.high_water(conn, Vec::new(), &mut fx);
                    self.shard.drained(conn, &mut fx);
                }
                _ => {}
            }
            effects.extend(with_bytes(fx));
        }
    }

    /// What a worker does.
    fn work(&mut self, job: Job, fx: &mut Effects) {
        let (shard, now) = (&mut self.shard, self.now);
        let mut answer = |done| shard.letter(Letter::Done(Box::new(done)), now, fx);
        if self.store_is_away {
            answer(Done { then: job.then, answer: Err(StoreError::Unavailable("it is away".into())) });
        } else {
            self.runner.run(&mut vec![job], |_, done| answer(done));
        }
    }

    /// A worker has come for the jobs that wait.
    fn wait_no_more(&mut self) {
        self.waits = |_| false;
        for job in std::mem::take(&mut self.waiting) {
            let mut fx = Effects::default();
            self.work(job, &mut fx);
            self.call(|_, _, later| *later = fx);
        }
    }

    /// The store's answer to the only job that waits.
    fn answer_kept(&mut self, kept: Kept) {
        let [Job { then, .. }] = <[Job; 1]>::try_from(std::mem::take(&mut self.waiting)).expect("one job");
        let answer = Ok(Answer::Wrote(Outcome::Kept(vec![kept])));
        self.call(|shard, now, fx| shard.letter(Letter::Done(Box::new(Done { then, answer })), now, fx));
    }

    /// Registers so many users and logs them in, by their ids from 1 on.
    fn log_in(&mut self, users: usize) -> Vec<ConnId> {
        let conns: Vec<ConnId> = (0..users).map(|_| self.connect()).collect();
        for (conn, id) in conns.iter().zip(1..) {
            self.ask(*conn, &format!(r#"{{"msgid":4,"name":"user {id}","password":"p"}}"#));
            self.ask(*conn, &format!(r#"{{"msgid":1,"id":{id},"password":"p"}}"#));
        }
        conns
    }
}

fn with_bytes(fx: Effects) -> impl Iterator<Item = (Effect, Arc<[u8]>)> {
    let bytes: Arc<[u8]> = fx.bytes.into();
    fx.list.into_iter().map(move |effect| (effect, Arc::clone(&bytes)))
}

/// What is looked at of a job.
fn copy(op: &Op) -> Op {
    match op {
        Op::Write(write) => Op::Write(write.clone()),
        Op::Verify { user, password } => Op::Verify { user: *user, password: password.clone() },
        Op::Register { name, password } => Op::Register { name: name.clone(), password: password.clone() },
        Op::Page { user, max_bytes } => Op::Page { user: *user, max_bytes: *max_bytes },
        other => Op::Members(u32::from(matches!(other, Op::Members(_)))),
    }
}

#[test]
fn passwords_are_hashed_in_no_lane_and_the_claim_is_made_in_the_accounts() {
    let mut node = Node::new();
    let conn = node.connect();
    let jobs = node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    assert!(matches!(jobs[..], [(Lane::None, Op::Register { .. })]), "{jobs:?}");
    let jobs = node.ask(conn, r#"{"msgid":1,"id":1,"password":"p"}"#);
    let lane = Lane::Number(1 % LANES);
    assert!(matches!(jobs[0], (Lane::None, Op::Verify { .. })), "{jobs:?}");
    assert!(matches!(&jobs[1], (at, Op::Write(Write::Claim { .. })) if *at == lane), "{jobs:?}");
    assert!(jobs[1..].iter().all(|(at, _)| *at == lane), "{jobs:?}");
}

#[test]
fn a_session_begins_when_its_channel_is_listened_to() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    (node.sent, node.unconfirmed) = (Vec::new(), Some(Vec::new()));
    let jobs = node.ask(conn, r#"{"msgid":1,"id":1,"password":"p"}"#);
    // It has the claim, and has not looked into the store: what comes before the confirmation is still
    // published for nobody, or stored.
    assert!(matches!(jobs[..], [_, (_, Op::Write(Write::Claim { .. }))]), "{jobs:?}");
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    for event in node.unconfirmed.take().into_iter().flatten() {
        node.call(|shard, now, fx| shard.letter(Letter::Bus(event), now, fx));
    }
    assert_eq!(node.sent.len(), 1);
}

#[test]
fn a_claim_is_kept_until_what_was_sent_without_seq_is_written_too() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    let (sender, recipient) = (conns[0], conns[1]);
    node.stalled = Some((recipient, Vec::new()));
    node.ask(sender, r#"{"msgid":6,"id":1,"toid":2,"msg":"m"}"#);
    let jobs = node.ask(sender, r#"{"msgid":3,"id":1}"#);
    assert!(jobs.is_empty(), "what is sent from another node could overtake it: {jobs:?}");
    let (_, tags) = node.stalled.take().expect("somebody who does not read");
    tags.into_iter().for_each(|tag| node.call(|shard, _, fx| shard.written(recipient, tag, fx)));
    assert!(matches!(node.jobs[..], [(_, Op::Write(Write::Release { user: 1, .. }))]), "{:?}", node.jobs);
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
    node.ask(conn, chat); // reads who the members are
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

/// The joins of which other nodes were told, and what clients were.
fn take_told(node: &mut Node) -> (usize, Vec<String>) {
    let is_join = |op: &BusOp| matches!(op, BusOp::ToAll(Envelope::Member { group: 1, user: 2, .. }, _));
    let joins = std::mem::take(&mut node.published).iter().filter(|op| is_join(op)).count();
    (joins, std::mem::take(&mut node.sent))
}

#[test]
fn a_join_is_told_until_every_node_knows_of_it() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    node.sent.clear();
    // Redis cannot be asked: nobody waits for it, and it is told later.
    node.reached = None;
    let join = r#"{"msgid":9,"id":2,"groupid":1,"seq":1}"#;
    node.ask(conns[1], join);
    let (joins, sent) = take_told(&mut node);
    assert!(joins == 1 && sent[..] == [r#"{"msgid":200,"seq":1,"errno":0}"#], "{joins}, {sent:?}");
    node.reached = Some(1);
    let wait = |node: &mut Node| {
        node.now.at += Duration::from_secs(3);
        node.call(|shard, now, fx| shard.timer(Timer::Questions, now, fx));
    };
    // Another node is there, and says nothing; then Redis goes away and comes back.
    wait(&mut node);
    wait(&mut node);
    assert_eq!(take_told(&mut node), (2, vec![]));
    node.call(|shard, now, fx| shard.letter(Letter::Bus(BusEvent::Down), now, fx));
    wait(&mut node);
    assert_eq!(take_told(&mut node), (0, vec![]));
    node.reached = Some(0);
    node.call(|shard, now, fx| shard.letter(Letter::Bus(BusEvent::Up), now, fx));
    assert_eq!(take_told(&mut node), (1, vec![]));
    wait(&mut node);
    assert_eq!(take_told(&mut node), (0, vec![]));
    // What was done before may be news to others: the node that did it may have died before it could tell.
    node.ask(conns[1], join);
    let (joins, sent) = take_told(&mut node);
    assert!(joins == 1 && matches!(&sent[..], [reply] if reply.contains("\"errno\":18")), "{joins}, {sent:?}");
}

#[test]
fn members_that_were_read_before_a_node_died_are_read_again() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    node.ask(conn, r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":""}"#);
    let chat = r#"{"msgid":10,"id":1,"groupid":1,"msg":"m"}"#;
    let is_read = |jobs: &[(Lane, Op)]| jobs.iter().any(|(_, op)| matches!(op, Op::Members(1)));
    node.waits = |op| matches!(op, Op::Members(_));
    assert!(is_read(&node.ask(conn, chat)));
    // It may have died between a join and the word of it.
    node.call(|shard, now, fx| shard.letter(Letter::NodeDied, now, fx));
    node.wait_no_more();
    node.jobs.clear();
    assert!(is_read(&node.ask(conn, chat)), "what was being read is kept");
    assert!(!is_read(&node.ask(conn, chat)), "what was read after that is not kept");
    node.call(|shard, now, fx| shard.letter(Letter::NodeDied, now, fx));
    assert!(is_read(&node.ask(conn, chat)), "what was kept is not forgotten");
}

/// User 2 does not read: the queue has passed the mark, with half of user `id`'s message on the wire, and the store
/// does not take it; later the connection ends. What was asked for when it did, and what clients were told.
fn half_written_and_refused(id: usize) -> (Node, Vec<(Lane, Op)>) {
    let mut node = Node::new();
    let conns = node.log_in(2);
    let (sender, recipient) = (conns[id - 1], conns[1]);
    node.stalled = Some((recipient, Vec::new()));
    node.ask(sender, &format!(r#"{{"msgid":6,"id":{id},"toid":2,"msg":"first","seq":1}}"#));
    let (_, tags) = node.stalled.take().expect("somebody who does not read");
    let [tag] = &tags[..] else { panic!("{tags:?}") };
    let half = || Unwritten { tag: tag.clone(), body: Arc::from(&b"{}"[..]), begun: true };
    node.store_is_away = true;
    node.call(|shard, _, fx| shard.high_water(recipient, vec![half()], fx));
    node.store_is_away = false;
    node.stalled = Some((recipient, Vec::new()));
    let jobs = node.ask(conns[0], r#"{"msgid":6,"id":1,"toid":2,"msg":"second"}"#);
    assert!(matches!(&jobs[..], [.., (_, Op::Write(Write::Keep(_)))]), "{jobs:?}");
    node.sent.clear();
    node.call(|shard, _, fx| shard.closed(recipient, CloseReason::ByClient, vec![half()], fx));
    let jobs = std::mem::take(&mut node.jobs);
    (node, jobs)
}

#[test]
fn what_was_half_written_and_refused_by_the_store_is_not_stored_behind_what_follows_it() {
    let (node, jobs) = half_written_and_refused(1);
    assert!(matches!(jobs[..], [(_, Op::Write(Write::Release { user: 2, .. }))]), "{jobs:?}");
    let [reply] = &node.sent[..] else { panic!("{:?}", node.sent) };
    assert!(reply.contains("\"errno\":21") && reply.contains("\"seq\":1"), "{reply}");
}

#[test]
fn who_has_half_written_to_oneself_what_the_store_refused_can_log_in_again() {
    let (_, jobs) = half_written_and_refused(2);
    assert!(matches!(jobs[..], [(_, Op::Write(Write::Release { user: 2, .. }))]), "{jobs:?}");
}

#[test]
fn a_login_waits_for_a_session_that_is_ending_though_the_store_knows_nothing_of_it() {
    let mut node = Node::with_shard(1, 2);
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    // A session of the other shard, whose claim was taken from this node.
    let (user, other) = (1, ConnIds::new(0).allocate());
    node.call(|shard, now, fx| shard.letter(Letter::Join { user, conn: other }, now, fx));
    node.waits = |op| matches!(op, Op::Write(Write::Claim { .. }));
    node.ask(conn, r#"{"msgid":1,"id":1,"password":"p"}"#);
    // It ends while the login asks the store, which has the account for free.
    node.call(|shard, now, fx| shard.letter(Letter::Leave { user, conn: other }, now, fx));
    node.sent.clear();
    node.wait_no_more();
    let jobs = std::mem::take(&mut node.jobs);
    assert!(matches!(jobs[..], [(_, Op::Write(Write::Release { user: 1, .. }))]), "{jobs:?}");
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    node.call(|shard, now, fx| shard.letter(Letter::Gone { user, conn: other }, now, fx));
    node.call(|shard, now, fx| shard.letter(Letter::Free { user }, now, fx));
    assert!(matches!(node.jobs[..], [(_, Op::Write(Write::Claim { user: 1, .. }))]), "{:?}", node.jobs);
}

#[test]
fn a_login_waits_for_such_a_session_of_its_own_shard_too() {
    let mut node = Node::new();
    let (first, second) = (node.log_in(1)[0], node.connect());
    node.store.release_all().expect("the store");
    node.waits = |op| matches!(op, Op::Write(Write::Claim { .. }));
    node.ask(second, r#"{"msgid":1,"id":1,"password":"p"}"#);
    // It ends, but what was queued for it is not written yet.
    node.stalled = Some((first, Vec::new()));
    node.ask(first, r#"{"msgid":3,"id":1}"#);
    node.sent.clear();
    node.wait_no_more();
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    let (_, tags) = node.stalled.take().expect("somebody who does not read");
    tags.into_iter().for_each(|tag| node.call(|shard, _, fx| shard.written(first, tag, fx)));
    assert!(matches!(&node.sent[..], [reply] if reply.contains("\"errno\":0")), "{:?}", node.sent);
}

#[test]
fn what_may_be_stored_while_a_login_reads_the_store_is_drained_behind_the_reply() {
    let mut node = Node::new();
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.waits = |op| matches!(op, Op::Load { .. });
    node.ask(conn, r#"{"msgid":1,"id":1,"password":"p"}"#);
    // Another node may have stored something meanwhile, of which it could not tell.
    node.call(|shard, now, fx| shard.letter(Letter::NodeDied, now, fx));
    assert!(node.jobs.is_empty(), "{:?}", node.jobs);
    node.wait_no_more();
    assert!(matches!(node.jobs[..], [(_, Op::Page { user: 1, .. })]), "{:?}", node.jobs);
}

#[test]
fn what_may_still_arrive_elsewhere_and_was_refused_by_the_store_is_waited_for() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    let there = Claim { node: NodeId(9), epoch: 5 };
    node.waits = |op| matches!(op, Op::Write(Write::Keep(_)));
    node.ask(conn, r#"{"msgid":6,"id":1,"toid":2,"msg":"first","seq":1}"#);
    node.answer_kept(Kept::Elsewhere(Holder::Node(there)));
    assert!(
        matches!(node.published[..], [.., BusOp::ToNode(NodeId(9), Envelope::Chat { .. })]),
        "{:?}",
        node.published
    );
    // The other node says nothing for 2 s, and the user's store has no room.
    node.now.at += Duration::from_secs(3);
    node.call(|shard, now, fx| shard.timer(Timer::Questions, now, fx));
    node.sent.clear();
    node.answer_kept(Kept::Full(0));
    assert!(matches!(&node.sent[..], [refusal] if refusal.contains("\"errno\":20")), "{:?}", node.sent);
    // There may be room by now: but there the second could be read before the first, which is under way.
    node.ask(conn, r#"{"msgid":6,"id":1,"toid":2,"msg":"second","seq":2}"#);
    assert!(node.waiting.is_empty(), "{:?}", node.waiting);
    let Some(BusOp::ToNode(NodeId(9), Envelope::Nudge { ticket, .. })) = node.published.last() else {
        panic!("{:?}", node.published)
    };
    let seen = BusEvent::Envelope(NodeId(9), Envelope::Seen { ticket: *ticket });
    node.call(|shard, now, fx| shard.letter(Letter::Bus(seen), now, fx));
    node.sent.clear();
    node.answer_kept(Kept::Stored(1));
    assert!(matches!(&node.sent[..], [ack] if ack.contains("\"seq\":2,\"errno\":0")), "{:?}", node.sent);
}

#[test]
fn of_two_logins_that_had_the_claim_one_after_the_other_no_session_is_left_behind() {
    let mut node = Node::new();
    let (first, second) = (node.connect(), node.connect());
    node.ask(first, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    node.unconfirmed = Some(Vec::new());
    let login = r#"{"msgid":1,"id":1,"password":"p"}"#;
    node.ask(first, login);
    // This node seems dead, and its claims are taken from it.
    node.store.release_all().expect("the store");
    node.ask(second, login);
    node.sent.clear();
    for event in node.unconfirmed.take().into_iter().flatten() {
        node.call(|shard, now, fx| shard.letter(Letter::Bus(event), now, fx));
    }
    node.call(|shard, _, fx| shard.closed(first, CloseReason::ClaimLost, Vec::new(), fx));
    let is_let_in = |sent: &[String]| sent.last().is_some_and(|reply| reply.contains("\"errno\":0"));
    assert!(!is_let_in(&node.sent), "{:?}", node.sent);
    node.ask(second, login);
    assert!(is_let_in(&node.sent), "{:?}", node.sent);
    assert_eq!(node.shard.population(), (1, 1));
}

#[test]
fn what_comes_while_a_queue_is_taken_back_is_stored_behind_it() {
    let mut node = Node::new();
    let conns = node.log_in(3);
    node.stalled = Some((conns[1], Vec::new()));
    node.ask(conns[2], r#"{"msgid":6,"id":3,"toid":2,"msg":"first"}"#);
    let (_, tags) = node.stalled.take().expect("somebody who does not read");
    node.keeps_queues = true;
    // Redis goes away. Who comes now may have left messages behind on another node, which go first.
    node.call(|shard, now, fx| shard.letter(Letter::Bus(BusEvent::Down), now, fx));
    node.now.at += Duration::from_secs(1);
    node.ask(conns[0], r#"{"msgid":3,"id":1}"#);
    node.ask(conns[0], r#"{"msgid":1,"id":1,"password":"p"}"#);
    let jobs = node.ask(conns[0], r#"{"msgid":6,"id":1,"toid":2,"msg":"second"}"#);
    assert!(jobs.is_empty(), "it overtakes what is queued: {jobs:?}");
    let body = Arc::from(&br#"{"msgid":6,"msg":"first"}"#[..]);
    let queued = vec![Unwritten { tag: tags[0].clone(), body, begun: false }];
    node.call(|shard, _, fx| shard.high_water(conns[1], queued, fx));
    let [(_, Op::Write(Write::Keep(parcels)))] = &node.jobs[..] else { panic!("{:?}", node.jobs) };
    let texts: Vec<_> =
        parcels.iter().flat_map(|parcel| &parcel.messages).map(|text| String::from_utf8_lossy(text)).collect();
    assert!(matches!(&texts[..], [a, b] if a.contains("first") && b.contains("second")), "{texts:?}");
}

#[test]
fn with_redis_back_and_after_a_nodes_death_the_store_is_drained_for_everybody() {
    let mut node = Node::new();
    node.log_in(2);
    node.jobs.clear();
    let mut drained_by = |letter: fn() -> Letter| {
        node.call(|shard, now, fx| shard.letter(letter(), now, fx));
        let jobs = std::mem::take(&mut node.jobs);
        jobs.iter().filter(|(_, op)| matches!(op, Op::Page { .. })).count()
    };
    assert_eq!(drained_by(|| Letter::Bus(BusEvent::Down)), 0);
    assert_eq!(drained_by(|| Letter::Bus(BusEvent::Up)), 2);
    assert_eq!(drained_by(|| Letter::NodeDied), 2);
}
