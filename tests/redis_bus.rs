//! The bus over Redis, with a real one.

mod support;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat_server::bus::envelope::{self, Payload};
use chat_server::bus::redis::{LEASE_TTL, Leases, PATIENCE, RedisBus, Setup, StartError};
use chat_server::bus::{Addressee, Answered, Bus, BusEvent, BusOp, Delivery, Envelope, Listener, Ticket};
use chat_server::clock;
use chat_server::home::Homes;
use chat_server::store::{NodeId, UserId};
use crossbeam_channel::{Sender, bounded};
use redis::Connection;
use support::{DEADLINE, Redis, eventually};

const SHARDS: usize = 3;

fn homes() -> Homes {
    Homes::new(7, SHARDS)
}

/// What a bus has reported, by shard, until a test takes it.
#[derive(Default)]
struct Heard {
    events: Mutex<Vec<(usize, BusEvent)>>,
    confirmed: Mutex<Vec<(NodeId, NodeId)>>,
    more: Condvar,
}

impl Listener for Heard {
    fn homes(&self) -> Homes {
        homes()
    }

    fn post(&self, shard: usize, events: &mut Vec<BusEvent>) {
        self.events.lock().unwrap().extend(events.drain(..).map(|event| (shard, event)));
        self.more.notify_all();
    }

    fn confirmed(&self, dead: NodeId, by: NodeId) {
        self.confirmed.lock().unwrap().push((dead, by));
    }
}

/// A node, as far as the bus knows one.
struct Node {
    id: NodeId,
    bus: RedisBus,
    heard: Arc<Heard>,
}

impl Node {
    fn start(redis: &Redis, id: u64) -> Node {
        Node::start_at(&redis.url(), id, Setup::default())
    }

    fn start_at(url: &str, id: u64, setup: Setup) -> Node {
        let (id, heard) = (NodeId(id), Arc::new(Heard::default()));
        let bus = RedisBus::start(url, id, heard.clone(), setup).expect("Redis is there");
        Node { id, bus, heard }
    }

    /// A build of other payload versions.
    fn start_as(redis: &Redis, id: u64, payload: &str) -> Node {
        Node::start_at(&redis.url(), id, Setup { payload: payload.parse().unwrap(), ..Setup::default() })
    }

    fn send(&self, op: BusOp) {
        self.send_all(vec![op]);
    }

    fn send_all(&self, mut ops: Vec<BusOp>) {
        self.bus.send(&mut ops);
        assert!(ops.is_empty());
    }

    /// Takes the first event that `choose` has something to make of; the others stay.
    #[track_caller]
    fn wait<T>(&self, what: &str, mut choose: impl FnMut(usize, &BusEvent) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut events = self.heard.events.lock().unwrap();
        loop {
            let found = events.iter().enumerate().find_map(|(i, (shard, event))| Some((i, choose(*shard, event)?)));
            if let Some((index, chosen)) = found {
                events.remove(index);
                return chosen;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "in vain: {what}; heard {events:?}");
            events = self.heard.more.wait_timeout(events, left).unwrap().0;
        }
    }

    /// The next envelope, and its sender; it came to the shard that it is for.
    #[track_caller]
    fn envelope(&self) -> (NodeId, Envelope) {
        self.wait("an envelope", |shard, event| match event {
            BusEvent::Envelope(from, envelope) => {
                assert_eq!(shard, shard_of(envelope));
                Some((*from, envelope.clone()))
            }
            _ => None,
        })
    }

    /// How many were reached, or listen.
    #[track_caller]
    fn reached(&self, ticket: Ticket) -> Option<u32> {
        self.wait("a count", |shard, event| match event {
            BusEvent::Reached(of, count) if *of == ticket => {
                assert_eq!(shard, usize::from(ticket.shard));
                Some(*count)
            }
            _ => None,
        })
    }

    #[track_caller]
    fn count_listeners(&self, user: UserId) -> Option<u32> {
        self.send(BusOp::CountListeners(user, ticket(77)));
        self.reached(ticket(77))
    }

    #[track_caller]
    fn chat_to(&self, user: UserId, chat: &str) -> Option<u32> {
        self.send(BusOp::ToUser(user, chat.as_bytes().into(), ticket(78)));
        self.reached(ticket(78))
    }

    /// Listens, and returns when that is effective.
    #[track_caller]
    fn listen(&self, user: UserId, epoch: u64) {
        self.send(listen(user, epoch));
        self.listening(user, epoch);
    }

    #[track_caller]
    fn listening(&self, user: UserId, epoch: u64) {
        self.wait("to be listening", |shard, event| match event {
            BusEvent::Listening { user: of, epoch: by } if (*of, *by) == (user, epoch) => {
                assert_eq!(shard, homes().of_user(user));
                Some(())
            }
            _ => None,
        });
    }

    /// The next chat on the channel of `user`.
    #[track_caller]
    fn foreign(&self, user: UserId) -> String {
        self.wait("a C++ node's chat", |shard, event| match event {
            BusEvent::FromForeign(to, chat) if *to == user => {
                assert_eq!(shard, homes().of_user(user));
                Some(String::from_utf8(chat.to_vec()).unwrap())
            }
            _ => None,
        })
    }

    /// Waits until all shards were notified.
    #[track_caller]
    fn all_told(&self, what: &str, is_it: impl Fn(&BusEvent) -> bool) {
        for shard in 0..SHARDS {
            self.wait(what, |to, event| (to == shard && is_it(event)).then_some(()));
        }
    }

    #[track_caller]
    fn down(&self) {
        self.all_told("Down", |event| matches!(event, BusEvent::Down));
    }

    #[track_caller]
    fn up(&self) {
        self.all_told("Up", |event| matches!(event, BusEvent::Up));
    }

    /// What comes back, of what was for `to`.
    #[track_caller]
    fn unsent(&self, to: NodeId) -> Envelope {
        self.wait("what was not sent", |shard, event| match event {
            BusEvent::Unsent(node, envelope) if *node == to => {
                assert_eq!(shard, shard_of(envelope));
                Some(envelope.clone())
            }
            _ => None,
        })
    }

    /// Waits until all shards were notified of a death, on behalf of `by`.
    #[track_caller]
    fn buried(&self, dead: NodeId, by: Option<NodeId>) {
        let is_it =
            |event: &BusEvent| matches!(event, BusEvent::Buried { node, asker } if (*node, *asker) == (dead, by));
        self.all_told("Buried", is_it);
    }

    /// All shards have done what is to be done at a death.
    fn confirm(&self, dead: NodeId, asker: NodeId) {
        (0..SHARDS as u16).for_each(|shard| self.send(BusOp::Confirm { dead, asker, shard }));
    }

    /// The deaths that were confirmed to this node, and the node that confirmed each.
    fn confirmed(&self) -> Vec<(NodeId, NodeId)> {
        self.heard.confirmed.lock().unwrap().clone()
    }

    /// Sends beats until the last of them is heard, and returns when that was sent.
    #[track_caller]
    fn beats(&self) -> Duration {
        let mut sent = None;
        let mut heard = Duration::ZERO;
        eventually("a beat that goes round", || {
            let now = clock::since_boot();
            // One may be lost, while there is no line.
            if sent.is_none_or(|sent| now - sent > Duration::from_millis(500)) {
                sent = Some(now);
                self.bus.beat();
            }
            heard = self.bus.heard().unwrap_or_default();
            Some(heard) >= sent
        });
        heard
    }

    /// What was reported and no test has taken.
    fn rest(&self) -> Vec<(usize, BusEvent)> {
        std::mem::take(&mut *self.heard.events.lock().unwrap())
    }
}

fn ticket(key: u64) -> Ticket {
    Ticket { shard: (key % SHARDS as u64) as u16, key }
}

fn seen(key: u64) -> Envelope {
    Envelope::Seen { ticket: ticket(key) }
}

/// A chat for two users.
fn chat(number: u64) -> Envelope {
    let to = [1, 2].map(|user| Addressee { user, epoch: 1, number, after: 0 });
    Envelope::Chat { body: b"{}"[..].into(), to: to.to_vec() }
}

/// A chat for one user.
fn chat_for(user: UserId, number: u64, body: &[u8]) -> Envelope {
    Envelope::Chat { body: body.into(), to: vec![Addressee { user, epoch: 1, number, after: 0 }] }
}

fn nudge(number: u64) -> Envelope {
    Envelope::Nudge { user: 1, epoch: 1, number }
}

fn key_of(envelope: &Envelope) -> u64 {
    match envelope {
        Envelope::Seen { ticket } => ticket.key,
        Envelope::Chat { to, .. } => to[0].number,
        Envelope::Nudge { number, .. } => *number,
        other => panic!("{other:?}"),
    }
}

fn listen(user: UserId, epoch: u64) -> BusOp {
    BusOp::Listen { user, epoch }
}

fn unlisten(user: UserId, epoch: u64) -> BusOp {
    BusOp::Unlisten { user, epoch }
}

fn publish(connection: &mut Connection, channel: impl ToString, payload: &[u8]) -> u32 {
    redis::cmd("PUBLISH").arg(channel.to_string()).arg(payload).query(connection).unwrap()
}

fn channel_of(node: &Node) -> String {
    format!("chat:node:{}", node.id)
}

/// Where an envelope for one shard goes.
fn shard_of(envelope: &Envelope) -> usize {
    envelope.clone().split(&homes())[0].0
}

/// One direction of a connection through a [`Proxy`].
#[derive(Default)]
struct Flow {
    state: Mutex<FlowState>,
    changed: Condvar,
}

#[derive(Default)]
struct FlowState {
    waiting: VecDeque<u8>,
    ended: bool,
    held: bool,
}

impl Flow {
    fn change(&self, change: impl FnOnce(&mut FlowState)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    /// Takes what comes, however long that is held.
    fn fill(&self, mut from: TcpStream) {
        let mut buffer = [0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            self.change(|state| state.waiting.extend(&buffer[..n]));
        }
        self.change(|state| state.ended = true);
    }

    /// Hands it on, and its end behind it.
    fn drain(&self, mut to: TcpStream) {
        let mut state = self.state.lock().unwrap();
        loop {
            if state.held || (state.waiting.is_empty() && !state.ended) {
                state = self.changed.wait(state).unwrap();
                continue;
            }
            let bytes = Vec::from(std::mem::take(&mut state.waiting));
            let ended = state.ended;
            drop(state);
            let written = to.write_all(&bytes);
            if ended || written.is_err() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            state = self.state.lock().unwrap();
        }
    }

    fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting.len()
    }
}

/// A connection through a [`Proxy`].
struct Wire {
    client: TcpStream,
    server: TcpStream,
    /// The flow to Redis.
    up: Flow,
    /// The flow from Redis.
    down: Flow,
    subscribes: AtomicBool,
}

impl Wire {
    /// The client loses the connection; what it has sent and is held is not lost.
    fn cut(&self) {
        let _ = self.client.shutdown(Shutdown::Both);
    }

    fn run(self: &Arc<Wire>) -> Vec<JoinHandle<()>> {
        // The first bytes show what the connection is for.
        let mut first = [0; 64 << 10];
        let n = (&self.client).read(&mut first).unwrap_or(0);
        let subscribes = first[..n].windows(9).any(|word| word == b"SUBSCRIBE");
        self.subscribes.store(subscribes, Ordering::Release);
        self.up.change(|state| state.waiting.extend(&first[..n]));
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        let ends = [&self.client, &self.server, &self.client, &self.server].map(clone);
        let [client_in, server_out, client_out, server_in] = ends;
        let wires = [(); 4].map(|()| Arc::clone(self));
        let [a, b, c, d] = wires;
        vec![
            std::thread::spawn(move || a.up.fill(client_in)),
            std::thread::spawn(move || b.up.drain(server_out)),
            std::thread::spawn(move || c.down.fill(server_in)),
            std::thread::spawn(move || d.down.drain(client_out)),
        ]
    }
}

/// A relay to Redis on which each connection can be held up in either direction, and cut.
struct Proxy {
    port: u16,
    wires: Arc<Mutex<Vec<Arc<Wire>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    fn start(redis: &Redis) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, to) = (listener.local_addr().unwrap().port(), redis.port());
        let (wires, stop) = (Arc::<Mutex<Vec<Arc<Wire>>>>::default(), Arc::<AtomicBool>::default());
        let (all, is_over) = (Arc::clone(&wires), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut threads = Vec::new();
            while let Ok((client, _)) = listener.accept() {
                if is_over.load(Ordering::Acquire) {
                    break;
                }
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { continue };
                client.set_nodelay(true).and(server.set_nodelay(true)).unwrap();
                let (up, down) = Default::default();
                let wire = Arc::new(Wire { client, server, up, down, subscribes: AtomicBool::new(false) });
                threads.extend(wire.run());
                all.lock().unwrap().push(wire);
            }
            for wire in all.lock().unwrap().drain(..) {
                wire.cut();
                let _ = wire.server.shutdown(Shutdown::Both);
                for flow in [&wire.up, &wire.down] {
                    flow.change(|state| state.held = false);
                }
            }
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        Proxy { port, wires, stop, thread: Some(thread) }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn newest(&self, subscribes: bool) -> Arc<Wire> {
        let wires = self.wires.lock().unwrap();
        let newest = wires.iter().rfind(|wire| wire.subscribes.load(Ordering::Acquire) == subscribes);
        Arc::clone(newest.expect("there is one"))
    }

    /// The newest connection on which the only node behind this publishes.
    fn publisher(&self) -> Arc<Wire> {
        self.newest(false)
    }

    /// The newest one on which it listens.
    fn subscriber(&self) -> Arc<Wire> {
        self.newest(true)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Reads what is published to a node that there is not.
struct Reader {
    connection: Connection,
}

impl Reader {
    fn start(redis: &Redis, node: NodeId) -> Reader {
        let mut connection = redis.connect();
        let mut command = redis::cmd("SUBSCRIBE");
        connection.send_packed_command(&command.arg(format!("chat:node:{node}")).get_packed_command()).unwrap();
        connection.recv_response().unwrap();
        Reader { connection }
    }

    /// The next payload: its bytes.
    fn payload(&mut self) -> Vec<u8> {
        let (_, _, payload): (String, String, Vec<u8>) =
            redis::from_redis_value(self.connection.recv_response().unwrap()).unwrap();
        payload
    }

    fn decoded(&mut self) -> Payload {
        envelope::decode(&self.payload()).unwrap()
    }
}

/// A payload as another node might publish it.
fn payload(from: NodeId, line: u64, envelopes: &[Envelope]) -> Vec<u8> {
    let mut payload = Vec::new();
    envelope::begin(2, from, line, &mut payload);
    envelopes.iter().for_each(|envelope| envelope::append(envelope, &mut payload));
    payload
}

/// How often Redis has carried out a command.
fn calls(connection: &mut Connection, command: &str) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query(connection).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

// -- between our nodes ----------------------------------------------------------------------------

#[test]
fn envelopes_arrive_in_the_order_in_which_they_were_sent() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    const SENT: u64 = 5000;
    for key in 0..SENT {
        one.send(BusOp::ToNode(two.id, seen(key)));
    }
    let mut last = [None; SHARDS];
    for _ in 0..SENT {
        let (from, envelope) = two.envelope();
        let key = key_of(&envelope);
        assert_eq!(from, one.id);
        assert!(last[shard_of(&envelope)].replace(key) < Some(key), "{key} is late");
    }
    assert!(one.rest().is_empty() && two.rest().is_empty());
}

#[test]
fn what_is_queued_for_a_node_shares_a_publish() {
    let redis = Redis::start();
    let (one, two, three) = (Node::start(&redis, 1), Node::start(&redis, 2), Node::start(&redis, 3));
    let mut connection = redis.connect();
    let before = calls(&mut connection, "publish");
    let to = |key| if key % 2 == 0 { two.id } else { three.id };
    one.send_all((0..1000).map(|key| BusOp::ToNode(to(key), seen(key))).collect());
    for _ in 0..500 {
        two.envelope();
        three.envelope();
    }
    assert_eq!(calls(&mut connection, "publish") - before, 2);
}

#[test]
fn junk_on_our_channels_harms_nobody() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    let mut connection = redis.connect();
    let mut cut = Vec::new();
    envelope::begin(2, one.id, 1, &mut cut);
    envelope::append(&seen(1), &mut cut);
    cut.pop();
    let (mut newer, mut lies) = (cut.clone(), cut.clone());
    newer[0] = 3;
    lies[17] = 0xff; // the length of the envelope
    let junk: [&[u8]; 8] =
        [b"", b"{\"msgid\":6}", b"\x01", b"\x02\0\0\0\0\0\0\0\x01\xff", &cut, &newer, &lies, &[0xff; 100_000]];
    for payload in junk {
        publish(&mut connection, channel_of(&two), payload);
    }
    one.send(BusOp::ToNode(two.id, seen(2)));
    assert_eq!(two.envelope(), (one.id, seen(2)));
    assert!(one.rest().is_empty() && two.rest().is_empty());
}

#[test]
fn large_payloads_arrive_whole() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    let sizes = [16 << 20, 1, 300_000, 700_000, 1 << 20, 0, 8191, 8192, 8193];
    let chat = |(key, size): (usize, &usize)| {
        let body = (0..*size).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
        Envelope::Chat { body, to: vec![Addressee { user: 3, epoch: 1, number: key as u64, after: 0 }] }
    };
    let chats: Vec<Envelope> = sizes.iter().enumerate().map(chat).collect();
    one.send_all(chats.iter().map(|chat| BusOp::ToNode(two.id, chat.clone())).collect());
    for chat in &chats {
        let (_, envelope) = two.envelope();
        assert!(envelope == *chat, "number {} came as {}", key_of(chat), key_of(&envelope));
    }
}

// -- with C++ nodes -------------------------------------------------------------------------------

#[test]
fn a_cpp_nodes_channels_are_ours() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let (mut publisher, mut listener) = (redis.connect(), redis.connect());
    let mut subscription = listener.as_pubsub();
    subscription.subscribe("17").unwrap();
    assert_eq!(node.count_listeners(17), Some(1));
    assert_eq!(node.count_listeners(18), Some(0));
    let chat = r#"{"msgid":6,"id":18,"name":"李","toid":17,"msg":"你好","time":"2026-01-02 03:04:05"}"#;
    assert_eq!(node.chat_to(17, chat), Some(1));
    assert_eq!(subscription.get_message().unwrap().get_payload::<String>().unwrap(), chat);
    assert_eq!(node.chat_to(18, chat), Some(0));
    node.listen(18, 1);
    assert_eq!(publish(&mut publisher, 18, chat.as_bytes()), 1);
    assert_eq!(node.foreign(18), chat);
}

#[test]
fn who_listens_misses_nothing_that_is_published_afterwards() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let mut connection = redis.connect();
    for round in 0..3000 {
        // The first session of a user and the next one, which finds the channel still subscribed
        // to, or just left.
        node.listen(18, round);
        assert_eq!(publish(&mut connection, 18, round.to_string().as_bytes()), 1, "round {round}");
        assert_eq!(node.foreign(18), round.to_string());
        if round % 3 > 0 {
            node.send(unlisten(18, round));
        }
    }
}

#[test]
fn nobody_is_told_to_listen_before_redis_has_confirmed_it() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    node.listen(19, 1);
    redis.signal("STOP");
    // This node listens to 19 already, so that needs no Redis; and it is done behind the first.
    node.send_all(vec![listen(18, 1), listen(19, 2)]);
    node.listening(19, 2);
    let told = node.rest();
    assert!(told.is_empty(), "{told:?}");
    redis.signal("CONT");
    node.listening(18, 1);
}

#[test]
fn a_confirmation_is_never_that_of_an_earlier_session() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let mut connection = redis.connect();
    for round in 0..1000 {
        let (first, second) = (2 * round, 2 * round + 1);
        node.send_all(vec![listen(18, first), unlisten(18, first), listen(18, second)]);
        node.listening(18, second);
        assert_eq!(publish(&mut connection, 18, b"{}"), 1, "round {round}");
        node.foreign(18);
        node.listening(18, first);
        node.send(unlisten(18, second));
    }
}

#[test]
fn only_the_last_session_ends_the_listening() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let mut connection = redis.connect();
    node.listen(18, 1);
    node.listen(18, 2);
    node.send(unlisten(18, 1));
    node.listen(19, 1); // behind it
    assert_eq!(publish(&mut connection, 18, b"{}"), 1);
    node.send(unlisten(18, 2));
    eventually("nobody listens", || node.count_listeners(18) == Some(0));
}

#[test]
fn thousands_listen_at_once() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    node.send_all((0..5000).map(|user| listen(user, 1)).collect());
    (0..5000).for_each(|user| node.listening(user, 1));
    assert_eq!((node.count_listeners(0), node.count_listeners(4999)), (Some(1), Some(1)));
}

// -- outages --------------------------------------------------------------------------------------

#[test]
fn everything_is_as_before_when_a_killed_redis_is_back() {
    let mut redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    one.send_all((0..2000).map(|user| listen(user, 1)).collect());
    (0..2000).for_each(|user| one.listening(user, 1));
    one.send(unlisten(7, 1));
    redis.kill();
    one.down();
    two.down();
    // What cannot be done is not waited for.
    one.send_all(vec![
        BusOp::ToNode(two.id, seen(1)),
        BusOp::ToNode(two.id, chat_for(3, 2, b"{}")),
        BusOp::ToNode(two.id, nudge(3)),
        BusOp::ToUser(17, b"{}"[..].into(), ticket(2)),
        BusOp::CountListeners(17, ticket(3)),
        listen(5000, 1),
        listen(5001, 1),
        unlisten(5001, 1),
        unlisten(8, 1),
    ]);
    assert_eq!([2, 3].map(|key| one.reached(ticket(key))), [None; 2]);
    assert_eq!([2, 3].map(|_| key_of(&one.unsent(two.id))), [2, 3]);
    // There is no count either for what is not even tried.
    one.send_all(vec![BusOp::ToNode(two.id, chat_for(3, 4, b"{}")), BusOp::CountListeners(17, ticket(4))]);
    assert_eq!((one.reached(ticket(4)), key_of(&one.unsent(two.id))), (None, 4));
    one.listening(5000, 1);
    one.listening(5001, 1);
    redis.restart();
    one.up();
    two.up();
    for user in (0..2000).chain([5000, 5001]) {
        let listeners = u32::from(![7, 8, 5001].contains(&user));
        assert_eq!(one.count_listeners(user), Some(listeners), "user {user}");
    }
    assert_eq!(publish(&mut redis.connect(), 5000, b"{}"), 1);
    assert_eq!(one.foreign(5000), "{}");
    one.send(BusOp::ToNode(two.id, seen(3)));
    assert_eq!(two.envelope(), (one.id, seen(3)), "or what was lost has come");
    two.send(BusOp::ToNode(one.id, seen(4)));
    assert_eq!(one.envelope(), (two.id, seen(4)));
    assert!(one.rest().is_empty() && two.rest().is_empty());
}

#[test]
fn who_waits_for_a_confirmation_when_redis_dies_is_answered() {
    let mut redis = Redis::start();
    let node = Node::start(&redis, 1);
    redis.signal("STOP");
    node.send_all(vec![listen(18, 1), listen(18, 2), unlisten(18, 2)]);
    redis.kill();
    node.down();
    node.listening(18, 1);
    node.listening(18, 2);
    redis.restart();
    node.up();
    assert_eq!(node.count_listeners(18), Some(0));
}

#[test]
fn a_redis_that_stands_still_blocks_nobody_and_is_taken_for_dead() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    one.listen(18, 1);
    redis.signal("STOP");
    let began = Instant::now();
    for key in 0..20 {
        one.send_all(vec![
            BusOp::ToUser(18, vec![b'x'; 500_000].into(), ticket(key)),
            BusOp::ToNode(two.id, seen(key)),
            listen(key as UserId, 1),
        ]);
    }
    assert!(began.elapsed() < PATIENCE / 4, "to send took {:?}", began.elapsed());
    assert_eq!(one.reached(ticket(0)), None);
    assert!(began.elapsed() < PATIENCE * 3, "an answer took {:?}", began.elapsed());
    (1..20).for_each(|key| assert_eq!(one.reached(ticket(key)), None));
    one.down();
    two.down();
    assert!(began.elapsed() < PATIENCE * 6, "it was noticed after {:?}", began.elapsed());
    (0..18).for_each(|user| one.listening(user, 1));
    let began = Instant::now();
    assert_eq!(one.count_listeners(18), None);
    // While it tries to reach it again, too.
    (100..110).for_each(|user| one.listen(user, 1));
    assert!(began.elapsed() < PATIENCE / 4, "answers took {:?} although it is known", began.elapsed());
    redis.signal("CONT");
    one.up();
    two.up();
    assert!((100..110).all(|user| one.chat_to(user, "{}") > Some(0)), "it is not up yet");
    eventually("the dead lines are gone", || one.count_listeners(18) == Some(1));
    one.send(BusOp::ToNode(two.id, seen(99)));
    // It reads now what it was sent while it stood still.
    eventually("what is sent now arrives", || key_of(&two.envelope().1) == 99);
}

#[test]
fn a_line_that_redis_cuts_is_back_at_once() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    one.listen(18, 1);
    let began = Instant::now();
    let cut: u32 = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").query(&mut redis.connect()).unwrap();
    assert_eq!(cut, 2);
    for node in [&one, &two] {
        node.down();
        node.up();
    }
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    assert_eq!(publish(&mut redis.connect(), 18, b"{}"), 1);
    one.send(BusOp::ToNode(two.id, seen(1)));
    assert_eq!(two.envelope(), (one.id, seen(1)));
}

#[test]
fn nothing_is_lost_on_a_publishers_line_that_redis_has_closed_for_being_idle() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    assert_eq!(node.chat_to(17, "{}"), Some(0));
    let mut connection = redis.connect();
    eventually("an idle line", || {
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
        list.lines().any(|line| line.contains("cmd=publish") && !line.contains("idle=0 ") && !line.contains("idle=1 "))
    });
    let cut: u32 = redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").query(&mut connection).unwrap();
    assert!(cut >= 1);
    assert_eq!(node.chat_to(17, "{}"), Some(0));
}

#[test]
fn a_chat_is_never_published_twice_and_a_count_is_never_invented() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let (mut connection, mut listener) = (redis.connect(), redis.connect());
    let mut subscription = listener.as_pubsub();
    subscription.subscribe("17").unwrap();
    const ROUNDS: u64 = 60;
    const EACH: u64 = 200;
    let (mut reached, mut unknown) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let keys = round * EACH..(round + 1) * EACH;
        for key in keys.clone() {
            node.send(BusOp::ToUser(17, key.to_string().as_bytes().into(), ticket(key)));
            if key % EACH == EACH / 2 {
                redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut connection).unwrap();
            }
        }
        for key in keys {
            match node.reached(ticket(key)) {
                Some(count) => {
                    assert_eq!(count, 1);
                    reached.push(key);
                }
                None => unknown += 1,
            }
        }
    }
    assert!(unknown > 0, "nothing was cut off");
    publish(&mut connection, 17, b"end");
    let chats = std::iter::from_fn(|| subscription.get_message().unwrap().get_payload().ok());
    let arrived: Vec<u64> = chats.map_while(|chat: String| chat.parse().ok()).collect();
    assert!(arrived.is_sorted_by(|a, b| a < b), "doubled, or out of order");
    let missing: Vec<_> = reached.iter().filter(|key| arrived.binary_search(key).is_err()).collect();
    assert!(missing.is_empty(), "counted, but not published: {missing:?}");
    println!("{} counted, {unknown} not known, {} arrived", reached.len(), arrived.len());
}

// -- what has not arrived --------------------------------------------------------------------------

#[test]
fn chats_and_nudges_for_a_node_that_is_not_there_come_back_in_order() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    const NOBODY: NodeId = NodeId(9);
    let answer = Envelope::Answer(vec![Answered { user: 1, number: 1, delivery: Delivery::Stored }]);
    let of = |number| match number % 4 {
        0 => seen(number),
        1 => chat_for(1, number, b"{}"),
        2 => nudge(number),
        _ => answer.clone(),
    };
    for round in 0..10 {
        node.send_all((0..40).map(|number| BusOp::ToNode(NOBODY, of(round * 40 + number))).collect());
        for number in (0..40).filter(|number| [1, 2].contains(&(number % 4))) {
            assert_eq!(node.unsent(NOBODY), of(round * 40 + number));
        }
    }
    // For two users, it comes back to the home of each.
    node.send(BusOp::ToNode(NOBODY, chat(7)));
    let mut users: Vec<UserId> = Vec::new();
    while users.len() < 2 {
        match node.unsent(NOBODY) {
            Envelope::Chat { to, .. } => users.extend(to.iter().map(|to| to.user)),
            other => panic!("{other:?}"),
        }
    }
    users.sort_unstable();
    assert_eq!(users, [1, 2]);
    assert!(node.rest().is_empty(), "the rest is repeated by who has sent it");
}

#[test]
fn nothing_that_has_arrived_comes_back() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    one.send_all((0..1000).map(|number| BusOp::ToNode(two.id, chat_for(1, number, b"{}"))).collect());
    (0..1000).for_each(|number| assert_eq!(key_of(&two.envelope().1), number));
    assert_eq!(one.chat_to(17, "{}"), Some(0), "and what was sent before is answered");
    assert!(one.rest().is_empty());
}

#[test]
fn what_was_sent_on_a_line_that_broke_comes_back_and_is_dropped_by_who_has_seen_the_next_line() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let one = Node::start_at(&proxy.url(), 1, Setup::default());
    let (two, three) = (Node::start(&redis, 2), Node::start(&redis, 3));
    for node in [&two, &three] {
        one.send(BusOp::ToNode(node.id, chat_for(1, 1, b"{}")));
        assert_eq!(key_of(&node.envelope().1), 1);
    }
    let old = proxy.publisher();
    old.up.change(|state| state.held = true);
    one.send_all(vec![
        BusOp::ToNode(two.id, chat_for(1, 2, b"{}")),
        BusOp::ToNode(three.id, chat_for(1, 2, b"{}")),
        BusOp::ToNode(two.id, nudge(3)),
        BusOp::ToNode(three.id, nudge(3)),
    ]);
    eventually("they are under way", || old.up.waiting() > 0);
    old.cut();
    for node in [&two, &three] {
        assert_eq!([(); 2].map(|()| key_of(&one.unsent(node.id))), [2, 3], "it is not known whether they have arrived");
    }
    // The next line, of which only one of them has seen something when Redis goes on with the old one.
    one.send(BusOp::ToNode(two.id, chat_for(1, 4, b"{}")));
    assert_eq!(key_of(&two.envelope().1), 4);
    let published = calls(&mut redis.connect(), "publish");
    old.up.change(|state| state.held = false);
    eventually("the old line is carried out", || calls(&mut redis.connect(), "publish") == published + 2);
    for node in [&two, &three] {
        one.send(BusOp::ToNode(node.id, chat_for(1, 5, b"{}")));
    }
    assert_eq!(key_of(&two.envelope().1), 5, "what was given up came behind what was sent later");
    assert_eq!([(); 3].map(|()| key_of(&three.envelope().1)), [2, 3, 5], "it came in order");
    assert!([one, two, three].iter().all(|node| node.rest().is_empty()));
}

#[test]
fn what_arrives_is_in_order_and_what_does_not_comes_back_whatever_becomes_of_the_line() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let (one, two) = (Node::start_at(&proxy.url(), 1, Setup::default()), Node::start(&redis, 2));
    const ROUNDS: u64 = 40;
    const EACH: u64 = 50;
    let mut broken: Vec<Arc<Wire>> = Vec::new();
    for round in 0..ROUNDS {
        let wire = proxy.publisher();
        // The commands are held up, or the answers; Redis goes on with them some rounds later, or at once.
        let flow = if round % 3 == 0 { &wire.down } else { &wire.up };
        for number in 1..=EACH {
            if number == EACH / 2 {
                flow.change(|state| state.held = true);
            }
            one.send(BusOp::ToNode(two.id, chat_for(1, round * EACH + number, b"{}")));
        }
        eventually("something is held up", || flow.waiting() > 0);
        wire.cut();
        // The next line is up when something has come over it.
        eventually("the next line", || {
            one.send(BusOp::ToUser(99, b"{}"[..].into(), ticket(round)));
            one.reached(ticket(round)).is_some()
        });
        if round % 4 == 0 {
            // Something is seen of it.
            one.send(BusOp::ToNode(two.id, chat_for(1, (round + 1) * EACH, b"again")));
        }
        broken.push(wire);
        if round % 5 == 0 {
            broken.drain(..).for_each(|wire| wire.up.change(|state| state.held = false));
        }
    }
    broken.drain(..).for_each(|wire| wire.up.change(|state| state.held = false));
    let last = ROUNDS * EACH + 1;
    one.send(BusOp::ToNode(two.id, chat_for(1, last, b"{}")));
    let arrived: Vec<u64> = std::iter::from_fn(|| Some(key_of(&two.envelope().1)).filter(|key| *key != last)).collect();
    assert!(arrived.is_sorted(), "out of order");
    let is_unsent = |event: &BusEvent| match event {
        BusEvent::Unsent(_, envelope) => Some(key_of(envelope)),
        _ => None,
    };
    let unsent: Vec<u64> = one.rest().iter().filter_map(|(_, event)| is_unsent(event)).collect();
    let lost: Vec<u64> = (1..last).filter(|key| !arrived.contains(key) && !unsent.contains(key)).collect();
    assert!(lost.is_empty(), "neither here nor there: {lost:?}");
    println!("{} arrived, {} came back", arrived.len(), unsent.len());
}

#[test]
fn the_number_of_the_publishers_line_grows_with_each() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    const READER: NodeId = NodeId(9);
    let mut reader = Reader::start(&redis, READER);
    let mut connection = redis.connect();
    let mut last = 0;
    for round in 0..20 {
        // What is lost comes back, and is sent again.
        node.send(BusOp::ToNode(READER, chat_for(1, round, b"{}")));
        let payload = reader.decoded();
        assert_eq!((payload.from, key_of(&payload.envelopes[0])), (node.id, round));
        assert!(payload.line > last, "{} behind {last}", payload.line);
        last = payload.line;
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut connection).unwrap();
        let publisher = list.lines().find(|line| line.contains("cmd=publish")).expect("it is connected");
        let id = publisher.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
        redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec(&mut connection).unwrap();
        // Whatever is sent next finds the line broken.
        node.send(BusOp::ToNode(READER, chat_for(1, round, b"{}")));
        node.unsent(READER);
    }
}

#[test]
fn payloads_of_an_older_line_are_dropped() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let mut connection = redis.connect();
    const A: NodeId = NodeId(8);
    const B: NodeId = NodeId(9);
    let sent = [(A, 5, 1), (A, 4, 2), (B, 1, 3), (A, 5, 4), (A, 9, 5), (A, 8, 6), (A, 5, 7), (B, 1, 8), (A, 9, 9)];
    for (from, line, key) in sent {
        publish(&mut connection, channel_of(&node), &payload(from, line, &[seen(3 * key)]));
    }
    for (from, key) in [(A, 1), (B, 3), (A, 4), (A, 5), (B, 8), (A, 9)] {
        assert_eq!(node.envelope(), (from, seen(3 * key)));
    }
    assert!(node.rest().is_empty());
}

// -- deaths ---------------------------------------------------------------------------------------

/// A node that publishes to another one without a pause, until `stop` is set; but never far ahead of what
/// that has read, or Redis would throw it out.
fn talking(redis: &Redis, from: NodeId, to: &Node) -> (Arc<AtomicBool>, JoinHandle<()>) {
    let stop = Arc::<AtomicBool>::default();
    let (is_over, mut connection, channel) = (Arc::clone(&stop), redis.connect(), channel_of(to));
    let counts = to.bus.counts().subscriber;
    let mut published = counts.messages.get();
    let thread = std::thread::spawn(move || {
        let envelopes: Vec<_> = (0..SHARDS as u64).map(seen).collect();
        let mut pipe = redis::pipe();
        (0..20).for_each(|_| _ = pipe.cmd("PUBLISH").arg(&channel).arg(payload(from, 1, &envelopes)).ignore());
        while !is_over.load(Ordering::Acquire) {
            if counts.messages.get() + 200 > published {
                pipe.exec(&mut connection).unwrap();
                published += 20;
            }
        }
    });
    (stop, thread)
}

#[test]
fn nothing_of_a_node_is_handed_on_once_it_is_buried_and_what_was_stands_before_that() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    for dead in (100..130).map(NodeId) {
        let (stop, thread) = talking(&redis, dead, &node);
        node.wait("something of it", |_, event| {
            matches!(event, BusEvent::Envelope(from, _) if *from == dead).then_some(())
        });
        node.bus.bury(dead, None);
        let at_return = node.rest();
        let is_of = |event: &BusEvent| matches!(event, BusEvent::Envelope(from, _) if *from == dead);
        for shard in 0..SHARDS {
            let mut events = at_return.iter().filter(|(to, _)| *to == shard).map(|(_, event)| event);
            let last = events.next_back();
            assert!(matches!(last, Some(BusEvent::Buried { node, asker: None }) if *node == dead), "{last:?}");
            assert!(events.all(is_of));
        }
        // It goes on talking, and what comes behind it is heard.
        publish(&mut redis.connect(), channel_of(&node), &payload(NodeId(99), 1, &[seen(0)]));
        assert_eq!(node.envelope(), (NodeId(99), seen(0)));
        let rest = node.rest();
        assert!(rest.is_empty(), "{rest:?}");
        stop.store(true, Ordering::Release);
        thread.join().unwrap();
    }
}

#[test]
fn a_death_is_told_and_confirmed_when_every_shard_has() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    const DEAD: NodeId = NodeId(9);
    for round in 1..=3 {
        // Being asked again changes nothing.
        one.send(BusOp::ToNode(two.id, Envelope::Dead { node: DEAD }));
        two.buried(DEAD, Some(one.id));
        for shard in [0, 1, 1, 0] {
            two.send(BusOp::Confirm { dead: DEAD, asker: one.id, shard });
        }
        two.send(BusOp::ToNode(one.id, seen(round)));
        assert_eq!(one.envelope(), (two.id, seen(round)));
        assert_eq!(one.confirmed().len() as u64, round - 1, "a shard has not confirmed yet");
        two.send(BusOp::Confirm { dead: DEAD, asker: one.id, shard: 2 });
        eventually("a confirmation", || one.confirmed().len() as u64 == round);
        assert_eq!(one.confirmed().pop(), Some((DEAD, two.id)));
    }
    publish(&mut redis.connect(), channel_of(&two), &payload(DEAD, 1, &[seen(7)]));
    // This node's own confirmation is reported without Redis.
    redis.signal("STOP");
    one.bus.bury(DEAD, Some(one.id));
    one.buried(DEAD, Some(one.id));
    one.confirm(DEAD, one.id);
    eventually("its own confirmation", || one.confirmed().last() == Some(&(DEAD, one.id)));
    redis.signal("CONT");
    assert!(two.rest().is_empty(), "a dead node was heard");
}

#[test]
fn a_confirmation_is_for_who_asked() {
    let redis = Redis::start();
    let [one, two, three] = [1, 2, 3].map(|id| Node::start(&redis, id));
    const DEAD: NodeId = NodeId(9);
    for asker in [&one, &three] {
        asker.send(BusOp::ToNode(two.id, Envelope::Dead { node: DEAD }));
        two.buried(DEAD, Some(asker.id));
    }
    two.confirm(DEAD, one.id);
    eventually("one hears of it", || one.confirmed() == [(DEAD, two.id)]);
    two.send(BusOp::ToNode(three.id, seen(1)));
    three.envelope();
    assert!(three.confirmed().is_empty());
    two.confirm(DEAD, three.id);
    eventually("three hears of it", || three.confirmed() == [(DEAD, two.id)]);
    assert_eq!(one.confirmed().len(), 1);
}

#[test]
fn nobody_buries_himself_or_is_buried_by_a_dead_node() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    one.send(BusOp::ToNode(two.id, Envelope::Dead { node: two.id }));
    one.send(BusOp::ToNode(two.id, seen(1)));
    assert_eq!(two.envelope(), (one.id, seen(1)));
    two.bus.bury(one.id, None);
    two.buried(one.id, None);
    one.send(BusOp::ToNode(two.id, Envelope::Dead { node: NodeId(9) }));
    publish(&mut redis.connect(), channel_of(&two), &payload(NodeId(9), 1, &[seen(2)]));
    assert_eq!(two.envelope(), (NodeId(9), seen(2)));
    assert!(two.rest().is_empty());
}

// -- beats ----------------------------------------------------------------------------------------

#[test]
fn a_beat_tells_when_it_was_sent_and_no_shard_hears_of_it() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    assert_eq!(node.bus.heard(), None);
    let mut last = Duration::ZERO;
    for _ in 0..20 {
        let before = clock::since_boot();
        let sent = node.beats();
        assert!(before <= sent && sent <= clock::since_boot() && last < sent);
        last = sent;
    }
    let counts = node.bus.counts();
    assert!(node.rest().is_empty());
    assert_eq!(counts.subscriber.messages.get(), 0, "they are no other node's");
}

#[test]
fn a_beat_that_somebody_else_has_invented_does_not_count() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    let sent = node.beats();
    let in_an_hour = clock::since_boot() + Duration::from_secs(3600);
    for (from, moment) in [(node.id, in_an_hour), (NodeId(9), clock::since_boot()), (node.id, Duration::ZERO)] {
        let mut beat = payload(from, 1, &[]);
        envelope::append(&Envelope::Beat { sent: u64::try_from(moment.as_nanos()).unwrap() }, &mut beat);
        publish(&mut redis.connect(), channel_of(&node), &beat);
    }
    publish(&mut redis.connect(), channel_of(&node), &payload(NodeId(9), 1, &[seen(1)]));
    node.envelope();
    assert_eq!(node.bus.heard(), Some(sent));
}

#[test]
fn a_node_that_hears_nothing_or_cannot_be_heard_has_no_beat() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let node = Node::start_at(&proxy.url(), 1, Setup::default());
    for is_deaf in [true, false] {
        let last = node.beats();
        let (publisher, subscriber) = (proxy.publisher(), proxy.subscriber());
        let (name, flow) = if is_deaf { ("it is deaf", &subscriber.down) } else { ("it is dumb", &publisher.up) };
        flow.change(|state| state.held = true);
        node.bus.beat();
        eventually(name, || flow.waiting() > 0);
        assert_eq!(node.bus.heard(), Some(last), "{name}");
        flow.change(|state| state.held = false);
        eventually("what was held has come", || node.bus.heard() > Some(last));
    }
}

#[test]
fn a_beat_on_a_line_that_is_gone_does_not_count() {
    let redis = Redis::start();
    let node = Node::start(&redis, 1);
    node.beats();
    redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").exec(&mut redis.connect()).unwrap();
    node.down();
    node.up();
    assert_eq!(node.bus.heard(), None);
    node.beats();
}

// -- unlike versions ------------------------------------------------------------------------------

#[test]
fn a_node_speaks_the_newest_version_that_the_others_lease_tells() {
    let redis = Redis::start();
    let newer = Node::start_as(&redis, 1, "2-3+200");
    let (old, unknown) = (NodeId(8), NodeId(9));
    let (mut to_old, mut to_unknown) = (Reader::start(&redis, old), Reader::start(&redis, unknown));
    let version_for = |reader: &mut Reader, node| {
        newer.send(BusOp::ToNode(node, seen(1)));
        reader.payload()[0]
    };
    assert_eq!(version_for(&mut to_old, old), 2);
    let setup = |payload: &str| Setup { payload: payload.parse().unwrap(), ..Setup::default() };
    let lease = |node, payload| Leases::new(&redis.url(), node, "test", setup(payload)).unwrap();
    let (mut of_old, mut of_newer) = (lease(old, "2-2"), lease(newer.id, "2-3+200"));
    of_old.take().unwrap();
    of_newer.take().unwrap();
    redis::cmd("SET").arg(format!("chat:lease:{unknown}")).arg("127.0.0.1:6000").exec(&mut redis.connect()).unwrap();
    let mut living = of_newer.look(&[newer.id, unknown, NodeId(77), old]).unwrap().living;
    assert_eq!(living, [(newer.id, "2-3".parse().ok()), (unknown, None), (old, "2-2".parse().ok())]);
    newer.bus.learn(&living);
    assert_eq!((version_for(&mut to_old, old), version_for(&mut to_unknown, unknown)), (2, 2));
    // It is replaced by a newer build.
    living[2].1 = "2-9".parse().ok();
    newer.bus.learn(&living);
    assert_eq!((version_for(&mut to_old, old), version_for(&mut to_unknown, unknown)), (3, 2));
    newer.bus.learn(&[]);
    assert_eq!(version_for(&mut to_old, old), 2, "it is not known any more");
}

#[test]
fn nodes_of_unlike_versions_understand_each_other() {
    let redis = Redis::start();
    let (old, newer, newest) =
        (Node::start(&redis, 1), Node::start_as(&redis, 2, "2-3+200"), Node::start_as(&redis, 3, "2-4+201"));
    let nodes = [&old, &newer, &newest];
    let living = [(old.id, "2-2".parse().ok()), (newer.id, "2-3".parse().ok()), (newest.id, "2-4".parse().ok())];
    for learned in [false, true] {
        for from in nodes {
            if learned {
                from.bus.learn(&living);
            }
            for to in nodes.iter().filter(|to| to.id != from.id) {
                from.send_all((0..9).map(|key| BusOp::ToNode(to.id, seen(key))).collect());
                from.send(BusOp::ToNode(to.id, chat_for(1, 9, b"{}")));
                let mut keys: Vec<_> = (0..10).map(|_| key_of(&to.envelope().1)).collect();
                keys.sort_unstable();
                assert!(keys.into_iter().eq(0..10));
                to.send(BusOp::ToNode(from.id, Envelope::Dead { node: NodeId(9) }));
                from.buried(NodeId(9), Some(to.id));
            }
            from.beats();
        }
    }
    assert!(nodes.iter().all(|node| node.rest().is_empty()));
}

// -- names ----------------------------------------------------------------------------------------

/// A resolver that can be stopped: a caller then waits for as long as that lasts.
#[derive(Default)]
struct Resolver {
    stopped: Mutex<bool>,
    goes_on: Condvar,
}

impl Resolver {
    fn change(&self, stopped: bool) {
        *self.stopped.lock().unwrap() = stopped;
        self.goes_on.notify_all();
    }

    fn setup(self: &Arc<Resolver>) -> Setup {
        let resolver = Arc::clone(self);
        let lookup = Arc::new(move |host: &str, port| {
            assert_eq!(host, "redis.test");
            let stopped = resolver.stopped.lock().unwrap();
            drop(resolver.goes_on.wait_while(stopped, |stopped| *stopped).unwrap());
            // No server listens at the first of them.
            Ok([2, 1].map(|last| SocketAddr::from(([127, 0, 0, last], port))).to_vec())
        });
        Setup { lookup, ..Setup::default() }
    }
}

#[test]
fn a_dead_resolver_holds_up_neither_the_bus_nor_the_lease() {
    let mut redis = Redis::start();
    let resolver = Arc::<Resolver>::default();
    let url = format!("redis://redis.test:{}", redis.port());
    let node = Node::start_at(&url, 1, resolver.setup());
    let mut leases = Leases::new(&url, node.id, "test", resolver.setup()).unwrap();
    leases.take().unwrap();
    let mut late = Leases::new(&url, NodeId(2), "test", resolver.setup()).unwrap();
    node.beats();
    resolver.change(true);
    redis.kill();
    node.down();
    let began = Instant::now();
    (0..100).for_each(|user| node.listen(user, 1));
    assert!(began.elapsed() < PATIENCE / 4, "who listens waits for the resolver: {:?}", began.elapsed());
    let renew = |leases: &mut Leases| {
        let began = Instant::now();
        let result = leases.renew();
        assert!(began.elapsed() < PATIENCE * 2, "the lease waits for the resolver: {:?}", began.elapsed());
        result.map(|renewed| renewed.existed)
    };
    assert!(renew(&mut leases).is_err());
    redis.restart();
    // It is where it was last.
    node.up();
    assert_eq!(renew(&mut leases).ok(), Some(false));
    node.beats();
    assert_eq!(node.count_listeners(99), Some(1));
    // A node that has never resolved the name has to wait, but not for ever.
    assert!(renew(&mut late).unwrap_err().is_timeout());
    let began = Instant::now();
    assert!(matches!(
        RedisBus::start(&url, NodeId(3), Arc::new(Heard::default()), resolver.setup()),
        Err(StartError::Unreachable { .. })
    ));
    assert!(began.elapsed() < PATIENCE * 2, "a start waits for the resolver: {:?}", began.elapsed());
    resolver.change(false);
    eventually("it is known again", || late.renew().is_ok());
}

// -- start and stop -------------------------------------------------------------------------------

#[test]
fn a_redis_that_cannot_be_reached_is_an_error_at_the_start() {
    let mut redis = Redis::start();
    let start = |url: &str| RedisBus::start(url, NodeId(1), Arc::new(Heard::default()), Setup::default()).err();
    assert!(matches!(start("chat.db"), Some(StartError::Url(_))));
    redis.signal("STOP");
    let began = Instant::now();
    assert!(matches!(start(&redis.url()), Some(StartError::Unreachable { .. })));
    assert!(began.elapsed() < PATIENCE * 2, "it took {:?}", began.elapsed());
    redis.kill();
    let error = start(&redis.url()).expect("nobody is there").to_string();
    assert!(error.contains(&format!("127.0.0.1:{}", redis.port())), "{error}");
}

#[test]
fn a_password_and_a_database_are_used() {
    let mut redis = Redis::start_with(Some("se:cret"));
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}/3", redis.port());
    let start = |url: &str, heard: Arc<Heard>| RedisBus::start(url, NodeId(1), heard, Setup::default());
    for wrong in [url("wrong"), format!("redis://127.0.0.1:{}", redis.port())] {
        let error = start(&wrong, Arc::default()).err().expect("a password is asked for");
        assert!(matches!(&error, StartError::Unreachable { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"), "the password is shown: {error}");
    }
    let right = url("se%3Acret");
    let heard = Arc::new(Heard::default());
    let node = Node { id: NodeId(1), bus: start(&right, heard.clone()).unwrap(), heard };
    let mut leases = Leases::new(&right, node.id, "here", Setup::default()).unwrap();
    leases.renew().unwrap();
    let mut connection = redis.connect();
    redis::cmd("SELECT").arg(3).exec(&mut connection).unwrap();
    let label: String = redis::cmd("GET").arg(format!("chat:lease:{}", node.id)).query(&mut connection).unwrap();
    assert_eq!(label, "2-2 here");
    node.listen(18, 1);
    redis.restart();
    node.down();
    node.up();
    assert_eq!(node.count_listeners(18), Some(1));
}

#[test]
fn a_user_of_redis_needs_no_more_rights_than_it_is_told_to() {
    let redis = Redis::start();
    let mut connection = redis.connect();
    redis::cmd("ACL")
        .arg(&["SETUSER", "chat", "on", ">secret", "~chat:lease:*", "&*"])
        .arg(&["+subscribe", "+unsubscribe", "+publish", "+pubsub", "+ping", "+select"])
        .arg(&["+set", "+get", "+pttl", "+del", "+info"])
        .exec(&mut connection)
        .unwrap();
    let url = format!("redis://chat:secret@127.0.0.1:{}/1", redis.port());
    let (one, two) = (Node::start_at(&url, 1, Setup::default()), Node::start_at(&url, 2, Setup::default()));
    one.send(BusOp::ToNode(two.id, seen(1)));
    assert_eq!(two.envelope(), (one.id, seen(1)));
    one.listen(18, 1);
    assert_eq!((two.chat_to(18, "{}"), two.count_listeners(18)), (Some(1), Some(1)));
    one.beats();
    let mut leases = Leases::new(&url, one.id, "test", Setup::default()).unwrap();
    leases.take().unwrap();
    assert_eq!(leases.look(&[one.id, two.id]).unwrap().living.len(), 1);
    leases.drop_lease().unwrap();
    for command in ["get", "set", "pttl", "info"] {
        redis::cmd("ACL").arg(&["SETUSER", "chat", &format!("-{command}")]).exec(&mut connection).unwrap();
        let error = Leases::new(&url, one.id, "test", Setup::default())
            .unwrap()
            .take()
            .and(leases.look(&[one.id]).map_err(|error| StartError::NoLease { address: String::new(), error }));
        let error = error.expect_err(command).to_string();
        assert!(error.contains(&format!("+{command}")), "{command}: {error}");
        redis::cmd("ACL").arg(&["SETUSER", "chat", &format!("+{command}")]).exec(&mut connection).unwrap();
    }
}

#[test]
fn a_stopped_bus_has_published_everything_and_listens_to_nothing() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    one.listen(18, 1);
    one.send_all((0..1000).map(|key| BusOp::ToNode(two.id, seen(key))).collect());
    one.bus.stop();
    (0..1000).for_each(|_| _ = two.envelope());
    eventually("its lines are closed", || two.count_listeners(18) == Some(0));
    assert_eq!(publish(&mut redis.connect(), channel_of(&one), b""), 0);
    one.bus.stop(); // once more does no harm
}

#[test]
fn an_abandoned_bus_publishes_nothing_more() {
    let redis = Redis::start();
    let proxy = Proxy::start(&redis);
    let node = Node::start_at(&proxy.url(), 1, Setup::default());
    const READER: NodeId = NodeId(9);
    let mut reader = Reader::start(&redis, READER);
    let publisher = proxy.publisher();
    // It waits for an answer to the first of several pipelines, behind which more is queued.
    publisher.down.change(|state| state.held = true);
    let large = vec![b'x'; 4 << 20];
    node.send_all((1..=3).map(|number| BusOp::ToNode(READER, chat_for(1, number, &large))).collect());
    assert_eq!(key_of(&reader.decoded().envelopes[0]), 1);
    node.send(BusOp::ToNode(READER, chat_for(1, 4, b"{}")));
    node.bus.abandon();
    publisher.down.change(|state| state.held = false);
    eventually("its lines are closed", || {
        [&publisher, &proxy.subscriber()].iter().all(|wire| wire.up.state.lock().unwrap().ended)
    });
    publish(&mut redis.connect(), format!("chat:node:{READER}"), &payload(NodeId(8), 1, &[seen(5)]));
    assert_eq!(reader.decoded().from, NodeId(8), "it went on");
    node.bus.abandon();
    node.bus.stop(); // once more does no harm
}

// -- leases ---------------------------------------------------------------------------------------

/// A node's keeper: renews each second, and looks at the others all the time if it is to.
struct Keeper {
    id: NodeId,
    /// What it has found.
    found: Arc<Mutex<Vec<Vec<NodeId>>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    fn start(redis: &Redis, id: u64, nodes: &'static [NodeId]) -> Keeper {
        let id = NodeId(id);
        let found = Arc::<Mutex<Vec<Vec<NodeId>>>>::default();
        let mut leases = Leases::new(&redis.url(), id, "test", Setup::default()).unwrap();
        let (stop, stopped) = bounded::<()>(1);
        let look = Arc::clone(&found);
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now();
            while stopped.recv_timeout(Duration::from_millis(20)).is_err_and(|error| error.is_timeout()) {
                if Instant::now() >= next {
                    next = Instant::now() + Duration::from_secs(1);
                    let _ = leases.renew();
                }
                if let Ok(seen) = leases.look(nodes) {
                    let is_missing = |node: &&NodeId| seen.living.iter().all(|(living, _)| living != *node);
                    let missing = nodes.iter().filter(is_missing).copied().collect();
                    look.lock().unwrap().push(if seen.counts() { missing } else { Vec::new() });
                }
            }
        });
        Keeper { id, found, stop: Some(stop), thread: Some(thread) }
    }

    /// What it finds from now on, until that holds.
    fn finds(&self, what: &str, is_it: impl Fn(&[NodeId]) -> bool) -> Vec<Vec<NodeId>> {
        self.found.lock().unwrap().clear();
        eventually(what, || self.found.lock().unwrap().iter().any(|dead| is_it(dead)));
        std::mem::take(&mut *self.found.lock().unwrap())
    }

    /// Dies without a word.
    fn die(&mut self) {
        self.stop = None;
        self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.die();
    }
}

const LIVES: NodeId = NodeId(2);
/// One that never lived: a node that can judge finds it dead.
const NEVER: NodeId = NodeId(3);
const NODES: &[NodeId] = &[LIVES, NEVER];

/// No node that lives is found dead, over all of what `disturb` does and until the keeper judges
/// again.
fn assert_nobody_looks_dead_after(what: &str, disturb: impl FnOnce(&mut Redis, &mut Connection)) {
    let mut redis = Redis::start();
    let (judge, lives) = (Keeper::start(&redis, 1, NODES), Keeper::start(&redis, LIVES.0, &[]));
    judge.finds("the one that never lived", |dead| dead == [NEVER]);
    let mut connection = redis.connect();
    disturb(&mut redis, &mut connection);
    // What it had found before that is old.
    let mut all = judge.finds("that it judges no more", <[_]>::is_empty);
    all.extend(judge.finds("that it judges again", |dead| dead.contains(&NEVER)));
    let wrong = all.iter().filter(|dead| dead.contains(&lives.id)).count();
    assert_eq!(wrong, 0, "after {what}, of {} looks so many found a node dead that lives", all.len());
}

#[test]
fn a_dead_nodes_lease_runs_out_and_an_ended_nodes_is_gone_at_once() {
    let redis = Redis::start();
    let (judge, mut dies) = (Keeper::start(&redis, 1, NODES), Keeper::start(&redis, LIVES.0, &[]));
    judge.finds("the one that never lived", |dead| dead == [NEVER]);
    dies.die();
    let died = Instant::now();
    judge.finds("the one that died", |dead| dead == [LIVES, NEVER]);
    assert!(died.elapsed() < LEASE_TTL + Duration::from_secs(3), "it took {:?}", died.elapsed());
    let mut ends = Leases::new(&redis.url(), LIVES, "test", Setup::default()).unwrap();
    ends.renew().unwrap();
    judge.finds("that it lives again", |dead| dead == [NEVER]);
    ends.drop_lease().unwrap();
    let ended = Instant::now();
    judge.finds("the one that ended", |dead| dead == [LIVES, NEVER]);
    assert!(ended.elapsed() < LEASE_TTL / 2, "it took {:?}", ended.elapsed());
}

#[test]
fn a_renewal_tells_whether_there_was_a_gap() {
    let redis = Redis::start();
    let mut leases = Leases::new(&redis.url(), NodeId(1), "test", Setup::default()).unwrap();
    assert!(leases.look(&[]).is_err(), "it is connected nowhere yet");
    assert!(!leases.renew().unwrap().existed, "it is the first");
    assert!(leases.renew().unwrap().existed);
    assert!(leases.look(&[]).unwrap().unbroken > Duration::ZERO);
    let mut connection = redis.connect();
    redis::cmd("DEL").arg(format!("chat:lease:{}", NodeId(1))).exec(&mut connection).unwrap();
    assert_eq!(leases.look(&[]).unwrap().unbroken, Duration::ZERO, "it is gone");
    assert!(!leases.renew().unwrap().existed);
    assert!(leases.renew().unwrap().existed);
    let left: u64 = redis::cmd("PTTL").arg(format!("chat:lease:{}", NodeId(1))).query(&mut connection).unwrap();
    assert!(Duration::from_millis(left) > LEASE_TTL - Duration::from_secs(2), "{left}");
}

#[test]
fn a_node_judges_nobody_before_it_has_renewed_for_longer_than_a_lease_lasts() {
    let redis = Redis::start();
    let began = Instant::now();
    let judge = Keeper::start(&redis, 1, NODES);
    judge.finds("that it judges", |dead| !dead.is_empty());
    assert!(began.elapsed() > LEASE_TTL, "after {:?}", began.elapsed());
}

#[test]
fn nobody_looks_dead_who_lives_whatever_happens_to_redis() {
    // Side by side, since each is mostly waiting.
    std::thread::scope(|scope| {
        scope.spawn(|| assert_nobody_looks_dead_after("a restart", |redis, _| redis.restart()));
        scope.spawn(|| {
            assert_nobody_looks_dead_after("standing still", |redis, _| {
                // Until all keys have run out, by the clock that Redis goes by.
                let began = Instant::now();
                redis.signal("STOP");
                eventually("that all leases have run out", || began.elapsed() > LEASE_TTL + Duration::from_millis(500));
                redis.signal("CONT");
            });
        });
        scope.spawn(|| {
            assert_nobody_looks_dead_after("the loss of all keys", |_, connection| {
                redis::cmd("FLUSHALL").exec(connection).unwrap();
            });
        });
        scope.spawn(|| {
            assert_nobody_looks_dead_after("its clock ran ahead", |_, connection| {
                // As if by 4.5 s: the judge, which has renewed a moment ago, still has its lease.
                let script = "for _, key in ipairs(redis.call('KEYS', 'chat:lease:*')) do \
                                  redis.call('PEXPIRE', key, key == ARGV[1] and 400 or 1) \
                              end";
                let judge = format!("chat:lease:{}", NodeId(1));
                redis::cmd("EVAL").arg(script).arg(0).arg(judge).exec(connection).unwrap();
            });
        });
    });
}
