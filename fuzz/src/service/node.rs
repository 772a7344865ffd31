//! A node as threads and sockets would drive it, in one thread and without either.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use chat_server::bus::{BusEvent, BusOp};
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{CloseReason, ConnId, ConnIds, Unwritten};
use chat_server::service::{Effect, Effects, Job, JobRunner, Letter, Memo, Now, Payload, Settings, Shard, Tag};

use super::memory::{Memories, Memory, NODE};

pub const SHARDS: usize = 2;
pub const BEFORE_LOGIN: usize = 400;
pub const AFTER_LOGIN: usize = 700;

/// A connection as the reactor would keep it.
#[derive(Default)]
pub struct Socket {
    /// What the client has sent and the shard has not read.
    pub input: Vec<u8>,
    queue: VecDeque<(Vec<u8>, Option<Tag>)>,
    paused: bool,
    /// The queue has passed the mark, and has not been empty since.
    over: bool,
    closing: bool,
    /// The client has finished sending.
    pub finished: bool,
    told_finished: bool,
    pub stalled: bool,
}

/// Shards, and what is under way between them, in one thread.
pub struct Node {
    now: Now,
    pub shards: Vec<Shard>,
    ids: Vec<ConnIds>,
    letters: VecDeque<(usize, Letter)>,
    jobs: VecDeque<Job>,
    runner: JobRunner,
    pub sockets: HashMap<ConnId, Socket>,
    /// What clients have read, in order.
    pub read: VecDeque<(ConnId, Vec<u8>)>,
    /// Connections that the node has closed.
    pub closed: Vec<ConnId>,
    pub high_water: usize,
}

impl Node {
    pub fn new(high_water: usize, memory: &Arc<Mutex<Memory>>) -> Node {
        let now = Now { at: Instant::now(), unix: 0 };
        let settings = Settings {
            node: NODE,
            max_message_before_login: BEFORE_LOGIN,
            max_message: AFTER_LOGIN,
            high_water,
            ..Settings::default()
        };
        let cost: Cost = "8,1".parse().unwrap();
        let memo = Arc::new(Memo::new().unwrap());
        Node {
            now,
            shards: (0..SHARDS).map(|index| Shard::new(index, SHARDS, settings.clone(), now)).collect(),
            ids: (0..SHARDS).map(|index| ConnIds::new(index as u16)).collect(),
            letters: VecDeque::new(),
            jobs: VecDeque::new(),
            // Plain passwords: hashing is not what is looked at here.
            runner: JobRunner::new(Box::new(Memories(Arc::clone(memory))), Hasher::new(cost), true, Some(memo)),
            sockets: HashMap::new(),
            read: VecDeque::new(),
            closed: Vec::new(),
            high_water,
        }
    }

    pub fn connect(&mut self, shard: usize) -> ConnId {
        let conn = self.ids[shard].allocate();
        self.sockets.insert(conn, Socket::default());
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.call(shard, |shard, now, fx| shard.opened(conn, peer, now, fx));
        conn
    }

    /// Calls a shard and carries out what it wants.
    pub fn call(&mut self, shard: usize, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        let mut fx = Effects::default();
        input(&mut self.shards[shard], self.now, &mut fx);
        // As the reactor does: when all effects are carried out, and before anything else comes.
        let mut to_recall = Vec::new();
        let mut sent = Vec::new();
        for effect in fx.list {
            match effect {
                Effect::Send { conn, body, tag, .. } => {
                    let Some(socket) = self.sockets.get_mut(&conn) else { continue };
                    let bytes = match body {
                        Payload::Own(range) => fx.bytes[range].to_vec(),
                        Payload::Shared(bytes) => bytes.to_vec(),
                    };
                    socket.queue.push_back((bytes, tag));
                    sent.push(conn);
                }
                Effect::Pause(conn) => _ = self.sockets.get_mut(&conn).map(|socket| socket.paused = true),
                Effect::Resume(conn) => _ = self.sockets.get_mut(&conn).map(|socket| socket.paused = false),
                Effect::Recall(conn) => to_recall.push(conn),
                Effect::Close(conn, _) => _ = self.sockets.get_mut(&conn).map(|socket| socket.closing = true),
                Effect::Post(to, letter) => self.letters.push_back((to, letter)),
                Effect::Submit(_, job) => self.jobs.push_back(*job),
                Effect::Bus(op) => self.publish(op),
                Effect::Pace(_) | Effect::Timer(..) | Effect::WoundUp | Effect::CheckClaims => {}
            }
        }
        to_recall.into_iter().for_each(|conn| self.recall(conn));
        sent.into_iter().for_each(|conn| self.check_mark(conn));
    }

    /// There is nobody else.
    fn publish(&mut self, op: BusOp) {
        let (to, event) = match op {
            BusOp::ToAll(_, ticket) | BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => {
                (usize::from(ticket.shard), BusEvent::Reached(ticket, Some(0)))
            }
            BusOp::Listen { user, epoch, shard } => (usize::from(shard), BusEvent::Listening { user, epoch }),
            BusOp::ToNode(..) => panic!("to which node?"),
            BusOp::Unlisten { .. } => return,
        };
        self.letters.push_back((to, Letter::Bus(event)));
    }

    fn check_mark(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get(&conn) else { return };
        let exempt = |tag: &Option<Tag>| matches!(tag, Some(Tag::Offline { .. }));
        let queued: usize = socket.queue.iter().filter(|(_, tag)| !exempt(tag)).map(|(bytes, _)| bytes.len()).sum();
        if !socket.over && queued > self.high_water {
            self.recall(conn);
        }
    }

    fn recall(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.get_mut(&conn) else { return };
        let mut recalled = Vec::new();
        socket.queue.retain(|(bytes, tag)| match tag {
            Some(chat @ Tag::Chat { .. }) => {
                recalled.push(Unwritten { tag: chat.clone(), body: Arc::from(&**bytes), begun: false });
                false
            }
            _ => true,
        });
        let is_empty = socket.queue.is_empty();
        socket.over = !is_empty;
        self.call(conn.reactor(), |shard, _, fx| shard.high_water(conn, recalled, fx));
        if is_empty {
            self.call(conn.reactor(), |shard, _, fx| shard.drained(conn, fx));
        }
    }

    /// Lets everything come to rest.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            if let Some((to, letter)) = self.letters.pop_front() {
                self.call(to, |shard, now, fx| shard.letter(letter, now, fx));
                continue;
            }
            if let Some(job) = self.jobs.pop_front() {
                let letters = &mut self.letters;
                self.runner.run(&mut vec![job], |shard, done| {
                    letters.push_back((shard, Letter::Done(Box::new(done))));
                });
                continue;
            }
            let mut conns: Vec<ConnId> = self.sockets.keys().copied().collect();
            conns.sort_unstable_by_key(ToString::to_string);
            if !conns.into_iter().any(|conn| self.advance(conn)) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// Reads or writes; false: there is nothing to be done.
    fn advance(&mut self, conn: ConnId) -> bool {
        let shard = conn.reactor();
        let Some(socket) = self.sockets.get_mut(&conn) else { return false };
        if !socket.stalled
            && let Some((bytes, tag)) = socket.queue.pop_front()
        {
            if !bytes.is_empty() {
                self.read.push_back((conn, bytes));
            }
            if let Some(tag) = tag {
                self.call(shard, |shard, _, fx| shard.written(conn, tag, fx));
            }
            let Some(socket) = self.sockets.get_mut(&conn) else { return true };
            if socket.queue.is_empty() && std::mem::take(&mut socket.over) {
                self.call(shard, |shard, _, fx| shard.drained(conn, fx));
            }
            return true;
        }
        if socket.closing && socket.queue.is_empty() {
            self.closed.push(conn);
            self.cut(conn);
            return true;
        }
        if socket.closing || socket.paused || socket.over {
            return false;
        }
        if !socket.input.is_empty() {
            let input = std::mem::take(&mut socket.input);
            let mut taken = 0;
            self.call(shard, |shard, now, fx| taken = shard.input(conn, &input, now, fx).bytes);
            if let Some(socket) = self.sockets.get_mut(&conn) {
                socket.input = input[taken..].to_vec();
            }
            if taken > 0 {
                return true;
            }
        }
        let Some(socket) = self.sockets.get_mut(&conn) else { return false };
        if socket.finished && !socket.paused && !socket.closing && !std::mem::replace(&mut socket.told_finished, true) {
            let rest = socket.input.len();
            self.call(shard, |shard, _, fx| shard.ended(conn, rest, fx));
            return true;
        }
        false
    }

    /// A connection is gone.
    pub fn cut(&mut self, conn: ConnId) {
        let Some(socket) = self.sockets.remove(&conn) else { return };
        let unwritten = socket
            .queue
            .into_iter()
            .filter_map(|(bytes, tag)| Some(Unwritten { tag: tag?, body: Arc::from(bytes), begun: false }))
            .collect();
        self.call(conn.reactor(), |shard, _, fx| shard.closed(conn, CloseReason::SocketError, unwritten, fx));
        self.ids[conn.reactor()].free(conn);
    }
}
