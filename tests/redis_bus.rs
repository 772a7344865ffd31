//! The bus over Redis, with a real one.

mod support;

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat_server::bus::envelope;
use chat_server::bus::redis::{LEASE_TTL, Leases, PATIENCE, RedisBus, StartError};
use chat_server::bus::{Addressee, Bus, BusEvent, BusOp, Envelope, Listener, Ticket};
use chat_server::store::{NodeId, UserId};
use crossbeam_channel::{Sender, bounded};
use redis::Connection;
use support::{DEADLINE, Redis, eventually};

const SHARDS: usize = 3;

/// What a bus has told, by shard, until somebody takes it.
#[derive(Default)]
struct Heard {
    events: Mutex<Vec<(usize, BusEvent)>>,
    more: Condvar,
}

impl Listener for Heard {
    fn shards(&self) -> usize {
        SHARDS
    }

    fn post(&self, shard: usize, events: &mut Vec<BusEvent>) {
        self.events.lock().unwrap().extend(events.drain(..).map(|event| (shard, event)));
        self.more.notify_all();
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
        let (id, heard) = (NodeId(id), Arc::new(Heard::default()));
        let bus = RedisBus::start(&redis.url(), id, heard.clone()).expect("Redis is there");
        Node { id, bus, heard }
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

    /// The next envelope, and from whom; it came to the shard that it is for.
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
                assert_eq!(shard, user as usize % SHARDS);
                Some(())
            }
            _ => None,
        });
    }

    /// The next chat on the channel of `user`.
    #[track_caller]
    fn foreign(&self, user: UserId) -> String {
        self.wait("a C++ node's chat", |_, event| match event {
            BusEvent::FromForeign(to, chat) if *to == user => Some(String::from_utf8(chat.to_vec()).unwrap()),
            _ => None,
        })
    }

    /// Waits until all shards were told.
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

    /// What it was told and nobody has taken.
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

fn key_of(envelope: &Envelope) -> u64 {
    match envelope {
        Envelope::Seen { ticket } | Envelope::Chat { ticket, .. } => ticket.key,
        other => panic!("{other:?}"),
    }
}

fn listen(user: UserId, epoch: u64) -> BusOp {
    BusOp::Listen { user, epoch, shard: (user as usize % SHARDS) as u16 }
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
    envelope.clone().split(SHARDS)[0].0
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
fn all_others_are_reached_and_counted() {
    let redis = Redis::start();
    let one = Node::start(&redis, 1);
    one.send(BusOp::ToAll(seen(1), ticket(2)));
    assert_eq!(one.reached(ticket(2)), Some(0), "it is alone");
    let (two, three) = (Node::start(&redis, 2), Node::start(&redis, 3));
    // What was sent to one of them before is not overtaken.
    one.send_all(vec![
        BusOp::ToNode(two.id, seen(3)),
        BusOp::ToAll(seen(6), ticket(4)),
        BusOp::ToNode(two.id, seen(9)),
    ]);
    assert_eq!(one.reached(ticket(4)), Some(2));
    assert_eq!([3, 6, 9], [(); 3].map(|()| key_of(&two.envelope().1)));
    assert_eq!(three.envelope(), (one.id, seen(6)));
    two.bus.stop();
    one.send(BusOp::ToAll(seen(12), ticket(5)));
    assert_eq!(one.reached(ticket(5)), Some(1));
    assert_eq!(three.envelope(), (one.id, seen(12)));
    assert!(one.rest().is_empty(), "a node hears itself");
}

#[test]
fn junk_on_our_channels_harms_nobody() {
    let redis = Redis::start();
    let (one, two) = (Node::start(&redis, 1), Node::start(&redis, 2));
    let mut connection = redis.connect();
    let mut cut = Vec::new();
    envelope::begin(one.id, &mut cut);
    envelope::append(&seen(1), &mut cut);
    cut.pop();
    let junk: [&[u8]; 6] = [b"", b"{\"msgid\":6}", b"\x01", b"\x01\0\0\0\0\0\0\0\x01\xff", &cut, &[0xff; 100_000]];
    for payload in junk {
        publish(&mut connection, channel_of(&two), payload);
        publish(&mut connection, "chat:nodes", payload);
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
        Envelope::Chat { to: vec![Addressee { user: 3, epoch: 1, after: 0 }], body, ticket: ticket(key as u64) }
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
    // Nobody waits for what cannot be.
    one.send_all(vec![
        BusOp::ToNode(two.id, seen(1)),
        BusOp::ToAll(seen(2), ticket(1)),
        BusOp::ToUser(17, b"{}"[..].into(), ticket(2)),
        BusOp::CountListeners(17, ticket(3)),
        listen(5000, 1),
        listen(5001, 1),
        unlisten(5001, 1),
        unlisten(8, 1),
    ]);
    assert_eq!([1, 2, 3].map(|key| one.reached(ticket(key))), [None; 3]);
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
    two.send(BusOp::ToAll(seen(4), ticket(5)));
    assert_eq!(two.reached(ticket(5)), Some(1));
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
    one.send(BusOp::ToAll(seen(1), ticket(2)));
    assert_eq!(one.reached(ticket(2)), Some(1));
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

// -- start and stop -------------------------------------------------------------------------------

#[test]
fn a_redis_that_cannot_be_reached_is_an_error_at_the_start() {
    let mut redis = Redis::start();
    let start = |url: &str| RedisBus::start(url, NodeId(1), Arc::new(Heard::default())).err();
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
    let start = |url: &str, heard: Arc<Heard>| RedisBus::start(url, NodeId(1), heard);
    for wrong in [url("wrong"), format!("redis://127.0.0.1:{}", redis.port())] {
        let error = start(&wrong, Arc::default()).err().expect("a password is asked for");
        assert!(matches!(&error, StartError::Unreachable { .. }), "{error}");
        assert!(!error.to_string().contains("wrong"), "the password is shown: {error}");
    }
    let right = url("se%3Acret");
    let heard = Arc::new(Heard::default());
    let node = Node { id: NodeId(1), bus: start(&right, heard.clone()).unwrap(), heard };
    let mut leases = Leases::new(&right, node.id, "here").unwrap();
    leases.renew().unwrap();
    let mut connection = redis.connect();
    redis::cmd("SELECT").arg(3).exec(&mut connection).unwrap();
    let label: String = redis::cmd("GET").arg(format!("chat:lease:{}", node.id)).query(&mut connection).unwrap();
    assert_eq!(label, "here");
    node.listen(18, 1);
    redis.restart();
    node.down();
    node.up();
    assert_eq!(node.count_listeners(18), Some(1));
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
        let mut leases = Leases::new(&redis.url(), id, "test").unwrap();
        let (stop, stopped) = bounded::<()>(1);
        let look = Arc::clone(&found);
        let thread = std::thread::spawn(move || {
            let mut next = Instant::now();
            while stopped.recv_timeout(Duration::from_millis(20)).is_err_and(|error| error.is_timeout()) {
                if Instant::now() >= next {
                    next = Instant::now() + Duration::from_secs(1);
                    let _ = leases.renew();
                }
                if let Ok(dead) = leases.dead(nodes) {
                    look.lock().unwrap().push(dead);
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
/// One that never lived: whoever can judge finds it dead.
const NEVER: NodeId = NodeId(3);
const NODES: &[NodeId] = &[NodeId(1), LIVES, NEVER];

/// Nobody who lives is found dead, over all of what `disturb` does and until the keeper judges
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
    let mut ends = Leases::new(&redis.url(), LIVES, "test").unwrap();
    ends.renew().unwrap();
    judge.finds("that it lives again", |dead| dead == [NEVER]);
    ends.drop_lease().unwrap();
    let ended = Instant::now();
    judge.finds("the one that ended", |dead| dead == [LIVES, NEVER]);
    assert!(ended.elapsed() < LEASE_TTL / 2, "it took {:?}", ended.elapsed());
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
