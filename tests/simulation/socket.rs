//! Connections as the reactor keeps them: what waits to be read and to be written, what is taken back from the
//! queue, moves from shard to shard, and ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use chat_server::reactor::{CloseReason, ConnId, HangUp, ListenerId, Mark, Recall, SendOptions, Unwritten};
use chat_server::service::{Moved, Reason, Tag};

use crate::client::Seat;
use crate::node::{Item, Port};
use crate::world::{PEER, World};

pub type SocketId = u64;

/// How long a client may read nothing, or a tagged message wait for it, before its messages go through the store.
const STALLED: Duration = Duration::from_secs(1);
/// How long a connection may stay over the mark.
const SLOW_CONSUMER: Duration = Duration::from_secs(10);
/// How long a connection that is being closed may take to flush.
const LINGER: Duration = Duration::from_secs(5);

/// What the client's side has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Open,
    /// It has finished sending, and still reads.
    Finished,
    /// It is closed: what it has sent is there to be read, and nothing more reaches it.
    Closed,
    /// It was reset.
    Reset,
}

pub struct Queued {
    bytes: Vec<u8>,
    tag: Option<Tag>,
    since: Duration,
    uncounted: bool,
}

pub struct Socket {
    /// Where it is.
    pub node: usize,
    /// `None`: between two shards.
    pub conn: Option<ConnId>,
    /// What the client has sent and the shard has not consumed.
    pub input: Vec<u8>,
    /// The number of these bytes that the shard has looked at.
    offered: usize,
    /// It may want to look again.
    again: bool,
    pub queue: VecDeque<Queued>,
    /// Half of the first message is on the wire.
    begun: bool,
    pub paused: bool,
    closing: Option<(Reason, Duration)>,
    /// Since when it is over the mark.
    over: Option<Duration>,
    /// Its messages were taken back, and nothing that could be was sent since.
    recalled: bool,
    /// Something tagged was sent, behind what is past the mark.
    anew: bool,
    /// The shard hears of it when it is drained.
    drains: bool,
    /// When it last took something, or its queue began to wait.
    progress: Duration,
    pub side: Side,
    told_ended: bool,
    told_hung_up: bool,
    /// The client does not read for now.
    pub stalled: bool,
    /// The client's end.
    pub seat: Seat,
}

impl Socket {
    pub fn new(node: usize, conn: ConnId, seat: Seat) -> Socket {
        Socket {
            node,
            conn: Some(conn),
            input: Vec::new(),
            offered: 0,
            again: false,
            queue: VecDeque::new(),
            begun: false,
            paused: false,
            closing: None,
            over: None,
            recalled: false,
            anew: false,
            drains: false,
            progress: Duration::ZERO,
            side: Side::Open,
            told_ended: false,
            told_hung_up: false,
            stalled: false,
            seat,
        }
    }

    fn counted(&self) -> usize {
        self.queue.iter().filter(|queued| !queued.uncounted).map(|queued| queued.bytes.len()).sum()
    }

    /// Whether a read would come to something.
    pub fn is_readable(&self) -> bool {
        self.conn.is_some()
            && self.closing.is_none()
            && match self.side {
                Side::Reset => !self.paused || !self.told_hung_up || !self.queue.is_empty(),
                _ if self.paused => self.side >= Side::Finished && !self.told_hung_up,
                _ => {
                    self.over.is_none()
                        && (self.again
                            || self.input.len() > self.offered
                            || (self.side >= Side::Finished && !self.told_ended))
                }
            }
    }

    /// Whether a write would come to something.
    pub fn is_writable(&self) -> bool {
        // A client that is gone is found to be, whether it has read before or not.
        let is_gone = self.side >= Side::Closed && (self.closing.is_some() || !self.queue.is_empty());
        self.conn.is_some() && (is_gone || self.is_closed() || (!self.queue.is_empty() && !self.stalled))
    }

    fn is_closed(&self) -> bool {
        self.closing.is_some() && self.queue.is_empty()
    }

    /// Since when it takes nothing, or not the first message with a tag, where that makes a difference.
    fn stalls_since(&self) -> Option<Duration> {
        let blocked = !self.queue.is_empty() && self.over.is_none() && !self.recalled;
        let tagged = self.queue.iter().find(|queued| queued.tag.is_some());
        blocked.then(|| tagged.map_or(self.progress, |queued| queued.since.min(self.progress)))
    }

    pub fn resume(&mut self) {
        self.paused = false;
        self.again = true;
    }

    pub fn close(&mut self, reason: Reason, now: Duration) {
        self.closing.get_or_insert((reason, now));
    }
}

impl World {
    /// A connection is accepted.
    pub fn accept(&mut self, at: usize, shard: usize, seat: Seat) -> SocketId {
        self.next_socket += 1;
        let (id, conn) = (self.next_socket, self.nodes[at].ids[shard].allocate());
        self.nodes[at].conns.insert(conn, id);
        self.sockets.insert(id, Socket::new(at, conn, seat));
        self.call(at, shard, |shard, now, fx| shard.opened(conn, PEER, ListenerId::default(), now, fx));
        id
    }

    /// Sends something, as one message.
    pub fn enqueue(&mut self, id: SocketId, bytes: Vec<u8>, tag: Option<Tag>, options: SendOptions) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if socket.queue.is_empty() {
            socket.progress = self.clock;
        }
        socket.recalled &= tag.is_none() || socket.over.is_some();
        socket.anew |= tag.is_some() && socket.over.is_some();
        socket.queue.push_back(Queued { bytes, tag, since: self.clock, uncounted: options.uncounted });
    }

    /// The reactor reads a connection, or sees what has become of it.
    pub fn read(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let (Some(conn), at) = (socket.conn, socket.node) else { return };
        if socket.closing.is_some() {
            return;
        }
        if socket.paused || socket.side == Side::Reset {
            let how = if socket.side == Side::Reset { HangUp::Gone } else { HangUp::HalfClosed };
            if !socket.paused || (how == HangUp::Gone && socket.told_hung_up && !socket.queue.is_empty()) {
                return self.cut(id, CloseReason::SocketError);
            }
            socket.told_hung_up = true;
            return self.call(at, conn.reactor(), |shard, now, fx| shard.hung_up(conn, how, now, fx));
        }
        if socket.over.is_some() {
            return;
        }
        socket.again = false;
        // Any part of what has come, but all that the shard has looked at before.
        let fresh = socket.input.len() - socket.offered;
        let some = if self.rng.one_in(4) { self.rng.below(fresh + 1) } else { fresh };
        let given = socket.offered + some;
        if given > 0 {
            let input = socket.input[..given].to_vec();
            let mut taken = 0;
            let mut more = false;
            self.call(at, conn.reactor(), |shard, now, fx| {
                let answer = shard.input(conn, &input, now, fx);
                (taken, more) = (answer.bytes, answer.more);
            });
            let Some(socket) = self.sockets.get_mut(&id) else { return };
            let taken = taken.min(given);
            socket.input.drain(..taken);
            socket.offered = given - taken;
            socket.again |= more;
        }
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let is_over = socket.offered == socket.input.len() && !socket.again && !socket.paused && socket.over.is_none();
        let is_due = is_over && socket.side >= Side::Finished && socket.closing.is_none() && socket.conn == Some(conn);
        if is_due && !std::mem::replace(&mut socket.told_ended, true) {
            let rest = socket.input.len();
            self.call(at, conn.reactor(), |shard, now, fx| shard.ended(conn, rest, now, fx));
        }
    }

    /// The reactor flushes a connection: the client takes one message, or half of one.
    pub fn write(&mut self, id: SocketId) {
        let half = self.rng.one_in(3);
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let (Some(conn), at) = (socket.conn, socket.node) else { return };
        if socket.side >= Side::Closed {
            return self.cut(id, CloseReason::SocketError);
        }
        socket.progress = self.clock;
        match socket.queue.front() {
            Some(first) if first.bytes.is_empty() || !half || socket.begun => {
                let Some(Queued { bytes, tag, .. }) = socket.queue.pop_front() else { return };
                socket.begun = false;
                if !bytes.is_empty() {
                    self.receive(id, &bytes);
                }
                if let Some(tag) = tag {
                    self.call(at, conn.reactor(), |shard, now, fx| shard.written(conn, tag, now, fx));
                }
            }
            Some(_) => socket.begun = true,
            None => {}
        }
        self.flushed(id);
    }

    /// What follows when a queue is empty.
    fn flushed(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| socket.queue.is_empty()) else { return };
        let (Some(conn), at) = (socket.conn, socket.node) else { return };
        (socket.over, socket.recalled) = (None, false);
        if std::mem::take(&mut socket.drains) {
            socket.again = true;
            self.call(at, conn.reactor(), |shard, now, fx| shard.drained(conn, now, fx));
        }
        let Some(socket) = self.sockets.get(&id) else { return };
        if let Some((reason, _)) = socket.closing.filter(|_| socket.queue.is_empty()) {
            self.cut(id, CloseReason::Handler(reason));
        }
    }

    /// What the reactor does when something was queued: past the mark, chats are taken back.
    pub fn check_mark(&mut self, id: SocketId) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if std::mem::take(&mut socket.anew) {
            self.flush_and_recall(id, Recall::Reroutable);
        }
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if socket.over.is_none() && socket.counted() > self.plan.high_water {
            socket.over = Some(self.clock);
            self.recall(id, Recall::Reroutable);
        }
        let hard = 4 * self.plan.high_water + 2 * self.plan.settings.max_message;
        if self.sockets.get(&id).is_some_and(|socket| socket.counted() > hard) {
            self.cut(id, CloseReason::SlowConsumer(Mark::Hard));
        }
    }

    /// The service wants something back. What the client's socket still takes is written before.
    pub fn flush_and_recall(&mut self, id: SocketId, how: Recall) {
        let is_flushed = self.rng.one_in(2);
        while is_flushed && self.sockets.get(&id).is_some_and(|socket| socket.is_writable() && !socket.queue.is_empty())
        {
            self.write(id);
        }
        self.recall(id, how);
    }

    /// The reactor takes something back, for the service or by itself.
    pub fn recall(&mut self, id: SocketId, how: Recall) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let (Some(conn), at) = (socket.conn, socket.node) else { return };
        (socket.recalled, socket.drains) = (true, true);
        let (mut recalled, mut kept) = (Vec::new(), VecDeque::new());
        for (i, queued) in std::mem::take(&mut socket.queue).into_iter().enumerate() {
            let begun = socket.begun && i == 0;
            let wanted = queued.tag.as_ref().filter(|tag| tag.is_recallable(how));
            if let Some(tag) = wanted {
                recalled.push(Unwritten { tag: tag.clone(), body: Arc::from(&*queued.bytes), begun });
            }
            if wanted.is_none() || begun {
                kept.push_back(queued);
            }
        }
        socket.queue = kept;
        self.call(at, conn.reactor(), |shard, now, fx| shard.recalled(conn, recalled, now, fx));
        self.flushed(id);
    }

    /// What time has come to: clients that take nothing, or too little.
    pub fn watch(&mut self, id: SocketId) -> bool {
        let Some(socket) = self.sockets.get(&id) else { return false };
        if socket.conn.is_none() {
            return false;
        }
        if let Some((reason, since)) = socket.closing {
            let is_late = since + LINGER < self.clock;
            if is_late {
                self.cut(id, CloseReason::Handler(reason));
            }
            return is_late;
        }
        if socket.over.is_some_and(|since| since + SLOW_CONSUMER < self.clock) {
            self.cut(id, CloseReason::SlowConsumer(Mark::HighWater));
            return true;
        }
        let is_late = socket.stalls_since().is_some_and(|since| since + STALLED < self.clock);
        if is_late {
            self.recall(id, Recall::Reroutable);
        }
        is_late
    }

    /// When `watch` is next to be called; `None`: nothing waits for time.
    pub fn watch_at(&self, id: SocketId) -> Option<Duration> {
        let socket = self.sockets.get(&id)?;
        let times = [
            socket.closing.map(|(_, since)| since + LINGER),
            socket.over.map(|since| since + SLOW_CONSUMER),
            socket.stalls_since().map(|since| since + STALLED),
        ];
        times.into_iter().flatten().min()
    }

    /// A connection is gone, and its shard is notified.
    pub fn cut(&mut self, id: SocketId, reason: CloseReason<Reason>) {
        let Some(socket) = self.sockets.remove(&id) else { return };
        let Some(conn) = socket.conn else { panic!("it is between two shards") };
        let at = socket.node;
        self.nodes[at].conns.remove(&conn);
        let begun = socket.begun;
        let unwritten = socket.queue.into_iter().enumerate().filter_map(|(i, Queued { bytes, tag, .. })| {
            Some(Unwritten { tag: tag?, body: Arc::from(bytes), begun: begun && i == 0 })
        });
        let unwritten = unwritten.collect();
        self.hears_of_its_end(id, socket.seat);
        let reason = socket.closing.map_or(reason, |(reason, _)| CloseReason::Handler(reason));
        self.trace(|| format!("socket {id}, {conn} of node {at}, is closed: {}", reason.text()));
        self.call(at, conn.reactor(), |shard, now, fx| shard.closed(conn, reason, unwritten, now, fx));
        self.nodes[at].ids[conn.reactor()].free(conn);
    }

    /// A connection is gone with its node.
    pub fn lose(&mut self, id: SocketId) {
        if let Some(socket) = self.sockets.remove(&id) {
            self.hears_of_its_end(id, socket.seat);
        }
    }

    // -- moves --------------------------------------------------------------------------------------

    /// A shard gives a connection to another one of its node.
    pub fn depart(&mut self, at: usize, conn: ConnId, to: usize, moved: Box<Moved>) {
        let Some(id) = self.nodes[at].conns.remove(&conn) else { panic!("{conn} moves, and is gone") };
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let tags: Vec<_> = socket.queue.iter().filter_map(|queued| queued.tag.as_ref()).collect();
        assert!(tags.is_empty(), "{conn} moves with messages that it names: {tags:?}");
        socket.conn = None;
        let node = &mut self.nodes[at];
        node.moved_away.insert(conn);
        node.ids[conn.reactor()].free(conn);
        node.post(Port::Shard(conn.reactor()), to, Item::Moved(id, moved));
    }

    /// It arrives there.
    pub fn arrive(&mut self, at: usize, shard: usize, id: SocketId, moved: Box<Moved>) {
        let conn = self.nodes[at].ids[shard].allocate();
        self.nodes[at].conns.insert(conn, id);
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.conn = Some(conn);
        socket.again = true;
        self.trace(|| format!("socket {id} of node {at} is now {conn}"));
        self.call(at, shard, |shard, now, fx| shard.arrived(conn, *moved, now, fx));
    }
}
