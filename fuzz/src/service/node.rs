//! A node as threads and sockets would drive it, in one thread and without either.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use chat_server::bus::{BusEvent, BusOp};
use chat_server::home::Homes;
use chat_server::password::{Cost, Hasher};
use chat_server::reactor::{CloseReason, ConnId, ConnIds, ListenerId, Recall, SendOptions, Unwritten};
use chat_server::service::{Effect, Effects, Job, JobRunner, Letter, Memo, Moved, Now, Payload, Settings, Shard, Tag};
use chat_server::wire::dialect::DialectChoice;

use super::memory::{Memories, Memory, NODE};

pub const SHARDS: usize = 2;
pub const BEFORE_LOGIN: usize = 400;
pub const AFTER_LOGIN: usize = 700;

/// Names a connection for good, at whichever shard it is.
pub type SocketId = u32;

/// A connection as the reactor would keep it.
#[derive(Default)]
pub struct Socket {
    /// `None`: between two shards.
    conn: Option<ConnId>,
    /// What the client has sent and the shard has not read.
    pub input: Vec<u8>,
    queue: VecDeque<Queued>,
    paused: bool,
    /// The queue has passed the mark, and has not been empty since.
    over: bool,
    /// Some of it was taken back, and it has not been empty since.
    drains: bool,
    closing: bool,
    /// The client has finished sending.
    pub finished: bool,
    told_finished: bool,
    pub stalled: bool,
}

struct Queued {
    bytes: Vec<u8>,
    tag: Option<Tag>,
    uncounted: bool,
}

/// What goes from shard to shard.
enum Mail {
    Letter(Letter),
    Moved(SocketId, Box<Moved>),
}

/// Shards, and what is in flight between them, in one thread.
pub struct Node {
    now: Now,
    pub shards: Vec<Shard>,
    homes: Homes,
    ids: Vec<ConnIds>,
    mail: VecDeque<(usize, Mail)>,
    jobs: VecDeque<Job>,
    runner: JobRunner,
    pub sockets: BTreeMap<SocketId, Socket>,
    conns: HashMap<ConnId, SocketId>,
    next_socket: SocketId,
    /// What clients have read, in order.
    pub read: VecDeque<(SocketId, Vec<u8>)>,
    /// Connections that the node has closed.
    pub closed: Vec<SocketId>,
    pub high_water: usize,
}

impl Node {
    pub fn new(high_water: usize, dialect: DialectChoice, memory: &Arc<Mutex<Memory>>) -> Node {
        let now = Now { at: Instant::now(), unix: 0 };
        let homes = Homes::new(1, SHARDS);
        let settings = Settings {
            node: NODE,
            homes,
            max_message_before_login: BEFORE_LOGIN,
            max_message: AFTER_LOGIN,
            high_water,
            listeners: [dialect].into(),
            ..Settings::default()
        };
        let cost: Cost = "8,1".parse().unwrap();
        let memo = Arc::new(Memo::new().unwrap());
        Node {
            now,
            shards: (0..SHARDS).map(|index| Shard::new(index, settings.clone(), now)).collect(),
            homes,
            ids: (0..SHARDS).map(|index| ConnIds::new(index as u16)).collect(),
            mail: VecDeque::new(),
            jobs: VecDeque::new(),
            // Plain passwords: hashing is not what is looked at here.
            runner: JobRunner::new(Box::new(Memories(Arc::clone(memory))), Hasher::new(cost), true, Some(memo)),
            sockets: BTreeMap::new(),
            conns: HashMap::new(),
            next_socket: 0,
            read: VecDeque::new(),
            closed: Vec::new(),
            high_water,
        }
    }

    pub fn connect(&mut self, shard: usize) -> SocketId {
        let conn = self.ids[shard].allocate();
        self.next_socket += 1;
        self.sockets.insert(self.next_socket, Socket { conn: Some(conn), ..Socket::default() });
        self.conns.insert(conn, self.next_socket);
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        self.call(shard, |shard, now, fx| shard.opened(conn, peer, ListenerId::default(), now, fx));
        self.next_socket
    }

    /// Calls a shard and carries out what it wants.
    pub fn call(&mut self, shard: usize, input: impl FnOnce(&mut Shard, Now, &mut Effects)) {
        let mut fx = Effects::default();
        input(&mut self.shards[shard], self.now, &mut fx);
        // These are done as in the reactor: when all effects are carried out, and before anything else comes.
        let (mut to_recall, mut sent, mut to_abort) = (Vec::new(), Vec::new(), Vec::new());
        for effect in fx.list {
            match effect {
                Effect::Send { conn, body, tag, options: SendOptions { uncounted, .. }, .. } => {
                    let id = self.conns[&conn];
                    let bytes = match body {
                        Payload::Own(range) => fx.bytes[range].to_vec(),
                        Payload::Shared(bytes) => bytes.to_vec(),
                    };
                    self.socket(conn).queue.push_back(Queued { bytes, tag, uncounted });
                    sent.push(id);
                }
                Effect::Pause(conn) => self.socket(conn).paused = true,
                Effect::Resume(conn) => self.socket(conn).paused = false,
                Effect::Recall(conn, how) => to_recall.push((self.conns[&conn], how)),
                Effect::Close(conn, _) => self.socket(conn).closing = true,
                Effect::Abort(conn, _) => to_abort.push(self.conns[&conn]),
                Effect::Move { conn, to, moved } => self.depart(conn, to, moved),
                Effect::Post(to, letter) => self.mail.push_back((to, Mail::Letter(letter))),
                Effect::Submit(_, job) => self.jobs.push_back(*job),
                Effect::Bus(op) => self.bus(op),
                Effect::Pace(_) | Effect::Unpace(_) | Effect::Timer(..) | Effect::WoundUp => {}
                Effect::Marked => panic!("marked by whom?"),
            }
        }
        for (id, how) in to_recall {
            // What the client reads at once is not taken back.
            while self.flush(id) {}
            self.recall(id, how);
        }
        sent.into_iter().for_each(|id| self.check_mark(id));
        for id in to_abort {
            self.closed.push(id);
            self.cut(id);
        }
    }

    fn socket(&mut self, conn: ConnId) -> &mut Socket {
        let id = self.conns.get(&conn).expect("a connection that is there");
        self.sockets.get_mut(id).expect("a connection that is there")
    }

    /// There is no other node.
    fn bus(&mut self, op: BusOp) {
        match op {
            BusOp::Listen { user, epoch } => {
                let event = BusEvent::Listening { user, epoch };
                self.mail.push_back((self.homes.of_user(user), Mail::Letter(Letter::Bus(event))));
            }
            BusOp::Unlisten { .. } => {}
            other => panic!("for whom? {other:?}"),
        }
    }

    fn depart(&mut self, conn: ConnId, to: usize, moved: Box<Moved>) {
        let id = self.conns.remove(&conn).expect("a connection that is there");
        let socket = self.sockets.get_mut(&id).expect("a connection that is there");
        assert!(socket.queue.iter().all(|queued| queued.tag.is_none()), "it moves with what it names");
        socket.conn = None;
        self.ids[conn.reactor()].free(conn);
        self.mail.push_back((to, Mail::Moved(id, moved)));
    }

    fn arrive(&mut self, shard: usize, id: SocketId, moved: Moved) {
        let conn = self.ids[shard].allocate();
        self.conns.insert(conn, id);
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.conn = Some(conn);
            self.call(shard, |shard, now, fx| shard.arrived(conn, moved, now, fx));
        }
    }

    fn check_mark(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let counted = socket.queue.iter().filter(|queued| !queued.uncounted);
        if !socket.over && counted.map(|queued| queued.bytes.len()).sum::<usize>() > self.high_water {
            socket.over = true;
            self.recall(id, Recall::Reroutable);
        }
    }

    fn recall(&mut self, id: SocketId, how: Recall) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let Some(conn) = socket.conn else { return };
        let mut recalled = Vec::new();
        socket.queue.retain(|Queued { bytes, tag, .. }| match tag {
            Some(tag) if tag.is_recallable(how) => {
                recalled.push(Unwritten { tag: tag.clone(), body: Arc::from(&**bytes), begun: false });
                false
            }
            _ => true,
        });
        socket.drains = true;
        self.call(conn.reactor(), |shard, now, fx| shard.recalled(conn, recalled, now, fx));
        self.drained(id);
    }

    /// What follows when a queue is empty.
    fn drained(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| socket.queue.is_empty()) else { return };
        socket.over = false;
        if let Some(conn) = socket.conn.filter(|_| std::mem::take(&mut socket.drains)) {
            self.call(conn.reactor(), |shard, now, fx| shard.drained(conn, now, fx));
        }
    }

    /// Lets everything come to rest.
    pub fn settle(&mut self) {
        for _ in 0..10_000 {
            match self.mail.pop_front() {
                Some((to, Mail::Letter(letter))) => {
                    self.call(to, |shard, now, fx| shard.letter(letter, now, fx));
                    continue;
                }
                Some((to, Mail::Moved(id, moved))) => {
                    self.arrive(to, id, *moved);
                    continue;
                }
                None => {}
            }
            if let Some(job) = self.jobs.pop_front() {
                let mail = &mut self.mail;
                self.runner.run(&mut vec![job], |shard, done| {
                    mail.push_back((shard, Mail::Letter(Letter::Done(Box::new(done)))));
                });
                continue;
            }
            let ids: Vec<SocketId> = self.sockets.keys().copied().collect();
            if !ids.into_iter().any(|id| self.advance(id)) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// The client reads one message; false: there is none, or it does not read.
    fn flush(&mut self, id: SocketId) -> bool {
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| !socket.stalled) else { return false };
        let Some(conn) = socket.conn else { return false };
        let Some(Queued { bytes, tag, .. }) = socket.queue.pop_front() else { return false };
        if !bytes.is_empty() {
            self.read.push_back((id, bytes));
        }
        if let Some(tag) = tag {
            self.call(conn.reactor(), |shard, now, fx| shard.written(conn, tag, now, fx));
        }
        self.drained(id);
        true
    }

    /// Reads or writes; false: there is nothing to be done.
    fn advance(&mut self, id: SocketId) -> bool {
        if self.flush(id) {
            return true;
        }
        let Some(socket) = self.sockets.get_mut(&id) else { return false };
        let Some(conn) = socket.conn else { return false };
        let shard = conn.reactor();
        if socket.closing && socket.queue.is_empty() {
            self.closed.push(id);
            self.cut(id);
            return true;
        }
        if socket.closing || socket.paused || socket.over {
            return false;
        }
        if !socket.input.is_empty() {
            let input = std::mem::take(&mut socket.input);
            let mut taken = 0;
            self.call(shard, |shard, now, fx| taken = shard.input(conn, &input, now, fx).bytes);
            if let Some(socket) = self.sockets.get_mut(&id) {
                socket.input = input[taken.min(input.len())..].to_vec();
            }
            if taken > 0 {
                return true;
            }
        }
        let Some(socket) = self.sockets.get_mut(&id) else { return false };
        if socket.finished && !socket.paused && !socket.closing && !std::mem::replace(&mut socket.told_finished, true) {
            let rest = socket.input.len();
            self.call(shard, |shard, now, fx| shard.ended(conn, rest, now, fx));
            return true;
        }
        false
    }

    /// A connection is gone.
    pub fn cut(&mut self, id: SocketId) {
        let Some(Socket { conn: Some(conn), queue, .. }) = self.sockets.remove(&id) else { return };
        self.conns.remove(&conn);
        let unwritten = queue
            .into_iter()
            .filter_map(|Queued { bytes, tag, .. }| Some(Unwritten { tag: tag?, body: Arc::from(bytes), begun: false }))
            .collect();
        self.call(conn.reactor(), |shard, now, fx| {
            shard.closed(conn, CloseReason::SocketError, unwritten, now, fx);
        });
        self.ids[conn.reactor()].free(conn);
    }
}
