//! What the service has others do: the jobs that a request comes to, and their lanes. Seen from outside these cost
//! time or none, which a test cannot tell from a slow machine. And schedules that the simulation has found, step by
//! step: a change of its dice must not lose them.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::bus::{BusEvent, BusOp, Envelope};
use chat_server::password::{Cost, Hasher};
use chat_server::pool::Standing;
use chat_server::reactor::{CloseReason, ConnId, ConnIds, HangUp, Unwritten};
use chat_server::service::{
    Answer, Done, Effect, Effects, HashQueue, Job, JobRunner, Lane, Letter, Memo, Now, Op, PasswordWork, Payload,
    Settings, Shard, Tag, Timer,
};
use chat_server::store::sqlite::SqliteStore;
use chat_server::store::{Claim, Holder, Kept, NodeId, Outcome, Quotas, Store, StoreError, Write};
use tempfile::TempDir;

const LANES: usize = 3;
/// Of the first account.
const LOGIN: &str = r#"{"msgid":1,"id":1,"password":"p"}"#;

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
    timers: Vec<(Instant, Timer)>,
    hashes: Arc<HashQueue>,
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
        let hashes = HashQueue::new(1);
        let settings = Settings { lanes: LANES, alone: false, hashes: Arc::clone(&hashes), ..Settings::default() };
        let memo = Memo::new().expect("a secret");
        Node {
            shard: Shard::new(index, shards, settings, now),
            ids: ConnIds::new(index as u16),
            runner: JobRunner::new(store.connection(), Hasher::new(cost), false, Some(Arc::new(memo))),
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
            timers: Vec::new(),
            hashes,
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

    /// How much of its input a client is rid of.
    fn offer(&mut self, conn: ConnId, input: &str) -> usize {
        let mut taken = 0;
        self.call(|shard, now, fx| taken = shard.input(conn, input.as_bytes(), now, fx).bytes);
        taken
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
                Effect::Timer(at, timer) => self.timers.push((at, timer)),
                _ => {}
            }
            effects.extend(with_bytes(fx));
        }
    }

    /// Time passes, and timers fire.
    fn pass(&mut self, time: Duration) {
        self.now.at += time;
        while let Some(due) = self.timers.iter().position(|(at, _)| *at <= self.now.at) {
            let (_, timer) = self.timers.remove(due);
            self.call(|shard, now, fx| shard.timer(timer, now, fx));
        }
    }

    /// How many passwords have come to this.
    fn passwords(&self, work: PasswordWork) -> u64 {
        self.shard.counts().passwords.of(work).get()
    }

    /// A worker has come for the first job that waits, and is done with it; its answer is on the way.
    fn take_one(&mut self) -> Done {
        let mut answer = None;
        self.runner.run(&mut vec![self.waiting.remove(0)], |_, done| answer = Some(done));
        answer.expect("an answer")
    }

    fn answer(&mut self, done: Done) {
        self.call(|shard, now, fx| shard.letter(Letter::Done(Box::new(done)), now, fx));
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

    /// The only thing that a client was sent since the last time.
    #[track_caller]
    fn reply(&mut self) -> String {
        self.sent.retain(|text| !text.is_empty()); // what is behind it has been written
        let [reply] = <[String; 1]>::try_from(std::mem::take(&mut self.sent)).expect("one reply");
        reply
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

#[test]
fn passwords_are_hashed_in_no_lane_and_the_claim_is_made_in_the_accounts() {
    let mut node = Node::new();
    let conn = node.connect();
    let jobs = node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    assert!(matches!(jobs[..], [(Lane::None, Op::Register { .. })]), "{jobs:?}");
    let jobs = node.ask(conn, r#"{"msgid":1,"id":1,"password":"p"}"#);
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
        // Chats go on, and so does everybody else.
        node.ask(conns[0], r#"{"msgid":6,"id":1,"toid":2,"msg":"m","seq":5}"#);
        assert!(node.sent.iter().any(|text| text.contains(r#""seq":5,"errno":0"#)), "{:?}", node.sent);
        node.ask(conns[1], list);
        assert!(node.sent.iter().any(|text| text.contains(r#""seq":9,"errno":0"#)), "{:?}", node.sent);
        node.sent.clear();
        let asked = node.offer(conns[0], &format!("\n {list}"));
        assert_eq!(asked, "\n ".len(), "it stays in the input behind {change}");
        assert!(node.sent.is_empty(), "{:?}", node.sent);
        node.wait_no_more();
        node.ask(conns[0], list);
        assert!(node.sent.iter().any(|text| text.contains(r#""seq":9,"errno":0"#)), "{:?}", node.sent);
    }
}

#[test]
fn a_group_chat_waits_for_a_join_unless_its_sender_is_known_as_a_member() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"one","groupdesc":""}"#);
    node.ask(conns[1], r#"{"msgid":8,"id":2,"groupname":"other","groupdesc":""}"#);
    for (conn, id, group) in [(conns[0], 1, 1), (conns[1], 2, 2)] {
        node.ask(conn, &format!(r#"{{"msgid":10,"id":{id},"groupid":{group},"msg":"known from now on"}}"#));
    }
    node.waits = changes_lists;
    node.ask(conns[0], r#"{"msgid":9,"id":1,"groupid":2}"#);
    node.sent.clear();
    node.ask(conns[0], r#"{"msgid":10,"id":1,"groupid":1,"msg":"m","seq":5}"#);
    assert!(node.sent[0].contains(r#""seq":5,"errno":0"#), "{:?}", node.sent);
    let chat = r#"{"msgid":10,"id":1,"groupid":2,"msg":"m","seq":6}"#;
    assert_eq!(node.offer(conns[0], chat), 0);
    // Paused, it is not even looked at.
    assert_eq!(node.offer(conns[0], r#"{"msgid":202}"#), 0);
    node.wait_no_more();
    node.sent.clear();
    node.ask(conns[0], chat);
    assert!(node.sent.iter().any(|text| text.contains(r#""seq":6,"errno":0"#)), "{:?}", node.sent);
}

#[test]
fn the_reply_of_a_login_is_read_when_what_its_connection_has_changed_is_settled() {
    let mut node = Node::new();
    let conns = node.log_in(2);
    node.ask(conns[1], r#"{"msgid":3,"id":2}"#);
    node.waits = |op| changes_lists(op) || matches!(op, Op::Write(Write::Release { .. }));
    node.ask(conns[0], r#"{"msgid":8,"id":1,"groupname":"g","groupdesc":"","seq":1}"#);
    node.sent.clear();
    let jobs = node.ask(conns[0], r#"{"msgid":1,"id":2,"password":"p","seq":2}"#);
    let claimed = matches!(jobs[..], [.., (_, Op::Write(Write::Claim { user: 2, .. }))]);
    assert!(claimed, "nothing waits but the reading: {jobs:?}");
    assert!(node.sent.iter().all(String::is_empty), "{:?}", node.sent);
    node.wait_no_more();
    let replies: Vec<&String> = node.sent.iter().filter(|text| !text.is_empty()).collect();
    assert!(
        replies.len() == 2 && replies[0].contains(r#""seq":1"#) && replies[1].contains(r#""seq":2"#),
        "{replies:?}"
    );
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
    assert!(matches!(jobs[..], [.., (_, Op::Write(Write::Claim { .. }))]), "{jobs:?}");
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
    node.call(|shard, now, fx| shard.letter(Letter::Join { user, conn: other, epoch: 1 }, now, fx));
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
fn one_message_that_the_database_refuses_fails_alone_among_those_on_a_way() {
    let mut node = Node::new();
    let conn = node.log_in(1)[0];
    node.waits = |op| matches!(op, Op::Write(Write::Keep(_)));
    // Behind the first, which is being stored, the others wait for each other.
    for (seq, text) in (1..).zip(["a", "b", "c", "d", "e"]) {
        node.ask(conn, &format!(r#"{{"msgid":6,"id":1,"toid":2,"msg":"{text}","seq":{seq}}}"#));
    }
    node.sent.clear();
    node.answer_kept(Kept::Stored(1));
    assert!(node.reply().contains("\"seq\":1,\"errno\":0"));
    let waiting = |node: &Node| match &node.waiting[..] {
        [Job { op: Op::Write(Write::Keep(parcels)), .. }] => parcels[0].messages.len(),
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

// -- logins on their way ------------------------------------------------------------------------------

fn is_verify(op: &Op) -> bool {
    matches!(op, Op::Verify { .. })
}

fn is_claim(op: &Op) -> bool {
    matches!(op, Op::Write(Write::Claim { .. }))
}

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
        node.call(|shard, _, fx| shard.hung_up(*conn, HangUp::Gone, fx));
    }
    for conn in &conns[4..9] {
        node.call(|shard, _, fx| shard.closed(*conn, CloseReason::SlowConsumer, Vec::new(), fx));
    }
    let standings: Vec<Standing> = node.waiting.iter().map(|job| job.op.standing()).collect();
    assert_eq!(standings.iter().filter(|standing| **standing == Standing::Due).count(), 1, "{standings:?}");
    node.sent.clear();
    let before = node.passwords(PasswordWork::Hashed);
    node.wait_no_more();
    assert_eq!((node.passwords(PasswordWork::Spared), node.passwords(PasswordWork::Hashed)), (10, before + 1));
    assert!(node.reply().contains("\"errno\":1,"));
    assert_eq!(node.hashes.length(false), Duration::ZERO);
    // Nor is anybody hashed for who went while the account was read.
    node.waits = |op| matches!(op, Op::Account { .. });
    node.ask(conns[9], LOGIN);
    node.call(|shard, _, fx| shard.hung_up(conns[9], HangUp::Gone, fx));
    node.wait_no_more();
    assert!(!node.jobs.iter().any(|(_, op)| is_verify(op)), "{:?}", node.jobs);
}

#[test]
fn at_the_end_of_the_server_nothing_is_hashed_any_more() {
    let (mut node, _) = Node::log_in_up_to(is_verify);
    node.call(|shard, _, fx| shard.stop(fx));
    assert!(node.reply().contains("\"errno\":22"));
    assert_eq!(node.waiting[0].op.standing(), Standing::Abandoned);
    // Nor for who is logged in and registers somebody.
    let (mut node, conn) = Node::log_in_up_to(|op| matches!(op, Op::Register { .. }));
    node.ask(conn, r#"{"msgid":4,"name":"another","password":"p","seq":9}"#);
    node.call(|shard, _, fx| shard.stop(fx));
    assert!(node.reply().contains("\"errno\":22"), "{:?}", node.sent);
    assert_eq!(node.waiting[0].op.standing(), Standing::Abandoned);
}

#[test]
fn who_is_half_closed_is_hashed_behind_all_others_and_served() {
    let (mut node, conn) = Node::log_in_up_to(is_verify);
    assert_eq!(node.waiting[0].op.standing(), Standing::Due);
    node.call(|shard, _, fx| shard.hung_up(conn, HangUp::HalfClosed, fx));
    assert_eq!(node.waiting[0].op.standing(), Standing::Last);
    node.wait_no_more();
    assert!(node.reply().contains("\"errno\":0"));
    // It has hung up before its account was read.
    let (mut node, conn) = Node::log_in_up_to(|op| is_verify(op) || matches!(op, Op::Account { .. }));
    node.call(|shard, _, fx| shard.hung_up(conn, HangUp::HalfClosed, fx));
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
    // Who has half closed makes room for others, and so does who gives up.
    node.sent.clear();
    for conn in &first[3..] {
        node.call(|shard, _, fx| shard.hung_up(*conn, HangUp::HalfClosed, fx));
    }
    login(&mut node);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
    for conn in &first[..3] {
        node.call(|shard, _, fx| shard.closed(*conn, CloseReason::SocketError, Vec::new(), fx));
    }
    node.sent.clear();
    login(&mut node);
    assert!(node.sent.is_empty(), "{:?}", node.sent);
}

/// After 10 s the login is answered with `errno`; a late answer is no second one, nobody is left behind
/// with the account, and the client can log in on the same connection.
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
    assert_eq!(node.shard.population().1, 0);
    node.ask(conn, LOGIN);
    assert!(node.reply().contains("\"errno\":0"));
    node.pass(IN_10_S);
    assert_eq!((node.shard.population().1, node.sent.len()), (1, 0), "{:?}", node.sent);
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
        assert!(matches!(node.jobs[..], [(_, Op::Write(Write::Release { user: 1, .. }))]), "{:?}", node.jobs);
        for event in node.unconfirmed.take().into_iter().flatten() {
            node.call(|shard, now, fx| shard.letter(Letter::Bus(event), now, fx));
        }
    });
}

#[test]
fn a_login_is_answered_in_time_though_the_last_session_does_not_end() {
    let mut node = Node::new();
    let (first, conn) = (node.log_in(1)[0], node.connect());
    node.stalled = Some((first, Vec::new()));
    node.ask(first, r#"{"msgid":3,"id":1}"#);
    node.ask(conn, LOGIN);
    node.sent.clear();
    is_answered_in_time(node, conn, 20, |node| {
        let (_, tags) = node.stalled.take().expect("somebody who does not read");
        tags.into_iter().for_each(|tag| node.call(|shard, _, fx| shard.written(first, tag, fx)));
    });
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
fn a_join_that_was_seen_for_a_login_that_was_given_up_is_not_the_next_ones() {
    let mut node = Node::with_shard(0, 2);
    let conn = node.connect();
    node.ask(conn, r#"{"msgid":4,"name":"someone","password":"p"}"#);
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let jobs = node.ask(conn, LOGIN);
        epochs.extend(jobs.iter().find_map(|(_, op)| match op {
            Op::Write(Write::Claim { epoch, .. }) => Some(*epoch),
            _ => None,
        }));
        node.pass(IN_10_S);
        node.call(|shard, now, fx| shard.letter(Letter::LeaveSeen { user: 1, conn }, now, fx));
    }
    node.ask(conn, LOGIN);
    node.jobs.clear();
    let seen = |epoch| Letter::JoinSeen { user: 1, conn, epoch };
    epochs.iter().for_each(|epoch| node.call(|shard, now, fx| shard.letter(seen(*epoch), now, fx)));
    assert!(epochs.len() == 2 && node.jobs.is_empty(), "{epochs:?}: {:?}", node.jobs);
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
