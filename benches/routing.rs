//! What the service costs for a message, without sockets and threads: two shards. All their letters
//! and jobs are carried out on the spot.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use chat_server::bus::{BusEvent, BusOp};
use chat_server::home::Homes;
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{ConnId, ConnIds, ListenerId};
use chat_server::service::{Effect, Effects, Job, JobRunner, Letter, Now, Payload, Settings, Shard, Tag};
use chat_server::store::sqlite::SqliteStore;
use chat_server::store::{NodeId, Quotas, Store};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SHARDS: usize = 2;
const MEMBERS: u64 = 200;
const HOMES: Homes = Homes::new(0, SHARDS);
const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// What a node does, in one thread.
struct Node {
    shards: Vec<Shard>,
    ids: Vec<ConnIds>,
    runner: JobRunner,
    now: Now,
    effects: Effects,
    /// Letters that wait, and the shards that they are for.
    letters: VecDeque<(usize, Letter)>,
    /// The tags of messages that were written, and not yet reported as written.
    tags: VecDeque<(ConnId, Tag)>,
    jobs: Vec<Job>,
    /// Messages that were written to sockets, if there were any.
    written: u64,
    /// The last of them.
    last: Vec<u8>,
    _store: Arc<dyn Store>,
    _folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Node {
        let folder = tempfile::tempdir().expect("a folder");
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::open(&folder.path().join("chat.db"), NodeId(1), Quotas::default()).expect("a store"));
        let cost: Cost = "8,1".parse().expect("a cost");
        let runner = JobRunner::new(store.connection(), Hasher::new(cost), false, None);
        let settings = Settings { homes: HOMES, ..Settings::default() };
        let now = Now { at: Instant::now(), unix: 0 };
        Node {
            shards: (0..SHARDS).map(|index| Shard::new(index, settings.clone(), now)).collect(),
            ids: (0..SHARDS).map(|index| ConnIds::new(index as u16)).collect(),
            runner,
            now,
            effects: Effects::default(),
            letters: VecDeque::new(),
            tags: VecDeque::new(),
            jobs: Vec::new(),
            written: 0,
            last: Vec::new(),
            _store: store,
            _folder: folder,
        }
    }

    /// Calls a shard, and carries out all that comes of it.
    fn call(&mut self, shard: usize, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        input(&mut self.shards[shard], self.now, &mut self.effects);
        loop {
            self.carry_out();
            if let Some((conn, tag)) = self.tags.pop_front() {
                self.shards[conn.reactor()].written(conn, tag, self.now, &mut self.effects);
            } else if let Some((shard, letter)) = self.letters.pop_front() {
                self.shards[shard].letter(letter, self.now, &mut self.effects);
            } else {
                return;
            }
        }
    }

    fn carry_out(&mut self) {
        for effect in self.effects.list.drain(..) {
            match effect {
                Effect::Send { conn, body, tag, .. } => {
                    self.written += 1;
                    self.last.clear();
                    self.last.extend_from_slice(match &body {
                        Payload::Own(range) => &self.effects.bytes[range.clone()],
                        Payload::Shared(bytes) => bytes,
                    });
                    self.tags.extend(tag.map(|tag| (conn, tag)));
                }
                Effect::Post(to, letter) => self.letters.push_back((to, letter)),
                Effect::Submit(_, job) => self.jobs.push(*job),
                Effect::Bus(BusOp::Listen { user, epoch }) => {
                    let home = HOMES.of_user(user);
                    self.letters.push_back((home, Letter::Bus(BusEvent::Listening { user, epoch })));
                }
                _ => {}
            }
        }
        self.effects.clear();
        let letters = &mut self.letters;
        self.runner.run(&mut self.jobs, |shard, done| letters.push_back((shard, Letter::Done(Box::new(done)))));
    }

    fn input(&mut self, conn: ConnId, object: &[u8]) {
        self.call(conn.reactor(), |shard, now, effects| _ = black_box(shard.input(conn, object, now, effects)));
    }

    /// Logs a user in, at home. Ids count from 1.
    fn user(&mut self, id: u64) -> ConnId {
        let shard = HOMES.of_user(id as u32);
        let conn = self.ids[shard].allocate();
        self.call(shard, |shard, now, effects| shard.opened(conn, PEER, ListenerId::default(), now, effects));
        self.input(conn, format!("{{\"msgid\":4,\"name\":\"u{id}\",\"password\":\"p\"}}").as_bytes());
        self.input(conn, format!("{{\"msgid\":1,\"id\":{id},\"password\":\"p\"}}").as_bytes());
        let reply = String::from_utf8_lossy(&self.last);
        assert!(reply.contains("\"msgid\":2") && reply.contains("\"errno\":0"), "{reply}");
        conn
    }
}

fn chat(msgid: u32, id: u64, to: &str, seq: &str) -> String {
    format!(
        "{{\"msgid\":{msgid},\"id\":{id},\"name\":\"u{id}\",{to},\"msg\":\"see you at the station at half past seven, \
         platform two\",\"time\":\"2026-01-02 03:04:05\"{seq}}}\n"
    )
}

fn routing(criterion: &mut Criterion) {
    let mut node = Node::new();
    let conns: Vec<ConnId> = (1..=MEMBERS).map(|id| node.user(id)).collect();
    let home = HOMES.of_user(1);
    let mut at_home = (2_u64..).filter(|id| HOMES.of_user(*id as u32) == home);
    let (here, stranger) = (at_home.next().expect("one of many"), at_home.next().expect("one of many"));
    let elsewhere = (2_u64..).find(|id| HOMES.of_user(*id as u32) != home).expect("one of many");
    let sender = conns[0];
    // Whoever sends below has not used `seq`: what such a client speaks is found out from its requests.
    let founder = conns[elsewhere as usize - 1];
    let create = format!("{{\"msgid\":8,\"id\":{elsewhere},\"groupname\":\"g\",\"groupdesc\":\"\"}}\n");
    node.input(founder, create.as_bytes());
    for (id, conn) in (1..).zip(&conns).filter(|(_, conn)| **conn != founder) {
        node.input(*conn, format!("{{\"msgid\":9,\"id\":{id},\"groupid\":1}}\n").as_bytes());
    }
    let chats_of = |msgid, id: u64, to: u64| chat(msgid, id, &format!("\"toid\":{to}"), "");
    let mut group = criterion.benchmark_group("routing");
    let mut bench = |name: &str, from: ConnId, object: String, messages: u64| {
        // The first reads the members from the store, or tells what the client speaks.
        node.input(from, object.as_bytes());
        let before = node.written;
        node.input(from, object.as_bytes());
        assert_eq!(node.written - before, messages, "{name}");
        group.throughput(Throughput::Elements(messages));
        group.bench_function(name, |bencher| bencher.iter(|| node.input(from, object.as_bytes())));
    };
    bench("chat on one reactor", sender, chats_of(6, 1, here), 1);
    bench("chat between reactors", sender, chats_of(6, 1, elsewhere), 1);
    bench("group of 200", sender, chat(10, 1, "\"groupid\":1", ""), MEMBERS - 1);
    bench("chat from another dialect", conns[stranger as usize - 1], chats_of(5, stranger, 1), 1);
    bench("chat to another dialect", sender, chats_of(6, 1, stranger), 1);
    bench("chat on one reactor, with ack", sender, chat(6, 1, &format!("\"toid\":{here}"), ",\"seq\":7"), 2);
    group.finish();
}

criterion_group!(benches, routing);
criterion_main!(benches);
