//! What the service has others do: the jobs that a request comes to, and their lanes. Seen from outside these cost
//! time or none, which a test cannot tell from a slow machine.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use chat_server::bus::{BusEvent, BusOp};
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{ConnId, ConnIds};
use chat_server::service::{Effect, Effects, JobRunner, Lane, Letter, Now, Op, Settings, Shard, Tag};
use chat_server::store::sqlite::SqliteStore;
use chat_server::store::{Quotas, Store, Write};
use tempfile::TempDir;

const LANES: usize = 3;

/// One shard and its store. Everything is done at once, and the jobs are noted.
struct Node {
    shard: Shard,
    ids: ConnIds,
    runner: JobRunner,
    now: Now,
    jobs: Vec<(Lane, Op)>,
    /// How many messages were sent to clients.
    sent: usize,
    /// Who does not read, and what is noted on the messages that wait.
    stalled: Option<(ConnId, Vec<Tag>)>,
    /// What Redis has yet to confirm; `None`: it does so at once.
    unconfirmed: Option<Vec<BusEvent>>,
    _store: SqliteStore,
    _folder: TempDir,
}

impl Node {
    fn new() -> Node {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = SqliteStore::open(&folder.path().join("chat.db"), Quotas::default()).expect("a store");
        let cost: Cost = "8,1".parse().expect("a cost");
        let now = Now { at: Instant::now(), unix: 0 };
        let settings = Settings { lanes: LANES, alone: false, ..Settings::default() };
        Node {
            shard: Shard::new(0, 1, settings, now),
            ids: ConnIds::new(0),
            runner: JobRunner::new(store.connection(), Hasher::new(cost), false),
            now,
            jobs: Vec::new(),
            sent: 0,
            stalled: None,
            unconfirmed: None,
            _store: store,
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
        let mut effects = VecDeque::from(fx.list);
        while let Some(effect) = effects.pop_front() {
            let mut fx = Effects::default();
            match effect {
                Effect::Send { conn, tag, .. } => {
                    self.sent += 1;
                    match &mut self.stalled {
                        Some((stalled, tags)) if *stalled == conn => tags.extend(tag),
                        _ => tag.into_iter().for_each(|tag| self.shard.written(conn, tag, &mut fx)),
                    }
                }
                Effect::Submit(lane, job) => {
                    self.jobs.push((lane, copy(&job.op)));
                    let (shard, now) = (&mut self.shard, self.now);
                    self.runner.run(&mut vec![*job], |_, done| {
                        shard.letter(Letter::Done(Box::new(done)), now, &mut fx);
                    });
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
                        BusOp::ToAll(_, ticket) => BusEvent::Reached(ticket, Some(0)),
                        _ => continue,
                    };
                    self.shard.letter(Letter::Bus(event), self.now, &mut fx);
                }
                _ => {}
            }
            effects.extend(fx.list);
        }
    }
}

/// What is looked at of a job.
fn copy(op: &Op) -> Op {
    match op {
        Op::Write(write) => Op::Write(write.clone()),
        Op::Verify { user, password } => Op::Verify { user: *user, password: password.clone() },
        Op::Register { name, password } => Op::Register { name: name.clone(), password: password.clone() },
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
    (node.sent, node.unconfirmed) = (0, Some(Vec::new()));
    let jobs = node.ask(conn, r#"{"msgid":1,"id":1,"password":"p"}"#);
    // It has the claim, and has not looked into the store: what comes before the confirmation is still
    // published for nobody, or stored.
    assert!(matches!(jobs[..], [_, (_, Op::Write(Write::Claim { .. }))]), "{jobs:?}");
    assert_eq!(node.sent, 0);
    for event in node.unconfirmed.take().into_iter().flatten() {
        node.call(|shard, now, fx| shard.letter(Letter::Bus(event), now, fx));
    }
    assert_eq!(node.sent, 1);
}

#[test]
fn a_claim_is_kept_until_what_was_sent_without_seq_is_written_too() {
    let mut node = Node::new();
    let (sender, recipient) = (node.connect(), node.connect());
    for (id, conn) in [(1, sender), (2, recipient)] {
        node.ask(conn, &format!(r#"{{"msgid":4,"name":"user {id}","password":"p"}}"#));
        node.ask(conn, &format!(r#"{{"msgid":1,"id":{id},"password":"p"}}"#));
    }
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
