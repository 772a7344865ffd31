//! One sub-reactor: a Poll, its connections, timers and buffers, in one thread.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use super::acceptor::ConnectionSlot;
use super::connection::{CloseReason, Connection, HangUp, Message, State};
use super::counts::{ReactorCounts, Slowness};
use super::id::{ConnId, ConnIds, ConnMap};
use super::mailbox::{Mail, Mailbox, WAKER};
use super::outbox::{Manner, Outbox, Progress, Unwritten};
use super::timers::Timers;

/// What one connection may read in a turn before the others have theirs, in bytes.
const READ_BUDGET: usize = 64 * 1024;
/// Connections of which the queue is written in a turn, and as many of those that were left over:
/// together about a millisecond.
const FLUSHES: usize = 64;
/// The longest sleep. Every wait has its own wake; this bounds the damage if one is missing.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// A turn this much later than it was due says that the process was stopped meanwhile.
const STOPPED: Duration = Duration::from_secs(2);
/// How long a connection that we close may take to flush, and then again to say goodbye.
const LINGER: Duration = Duration::from_secs(5);
/// How long the last clients may take to say goodbye when the process ends.
const EXIT_LINGER: Duration = Duration::from_millis(500);
/// How long a connection may stay over the high-water mark.
const SLOW_CONSUMER: Duration = Duration::from_secs(10);
/// How long a connection may take nothing before its messages take another way. Senders wait for
/// what becomes of them, also while too few wait to pass the high-water mark.
const STALLED: Duration = Duration::from_secs(1);
/// Between two messages to a paced connection: longer than a client takes to come back to `recv`.
const PACE: Duration = Duration::from_millis(10);
/// How often all queues are looked at while they hold too much.
const RELIEF: Duration = Duration::from_millis(100);
/// After so long without that it is worth a line in the log.
const COMPLAINT: Duration = Duration::from_secs(10);
/// Outboxes kept for the next connection that has something to write.
const SPARE_OUTBOXES: usize = 64;
/// With so many letters waiting in some mailbox, its feeders stop reading for the moment.
const CONGESTED: usize = 64 * 1024;
/// How soon a reactor that stopped for a congested mailbox looks again.
const CONGESTED_RETRY: Duration = Duration::from_millis(1);

/// What every connection waits for: input, and to hear of urgent bytes, at which a read stops short.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// The business behind one reactor. Every method runs in the reactor's thread and must not block.
pub trait Handler: Sized {
    /// What reactors and workers send each other.
    type Letter: Send;
    /// Marks a message whose fate matters.
    type Tag: Clone;
    /// Names a timer.
    type Timer;

    /// A connection has been accepted.
    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, peer: SocketAddr);

    /// Bytes have arrived, or input that waited may go on. `input` begins with what the last call
    /// left unconsumed.
    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken;

    /// The client has finished sending and all its input was given; `rest` bytes stay unconsumed.
    /// The connection stays open for replies until the handler closes it.
    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, rest: usize);

    /// The client has hung up while its input waits: whether what it asked for last is still worth
    /// the work. What it has sent besides is given once the input goes on, and then
    /// [`Handler::ended`] or [`Handler::closed`] follows. It may be told more than once.
    fn hung_up(&mut self, io: &mut Io<Self>, conn: ConnId, how: HangUp);

    /// A letter from another thread.
    fn letter(&mut self, io: &mut Io<Self>, letter: Self::Letter);

    /// The kernel has taken the last byte of a tagged message.
    fn written(&mut self, io: &mut Io<Self>, conn: ConnId, tag: Self::Tag);

    /// Whether a message with this tag may be taken back from a slow connection's queue.
    fn recallable(tag: &Self::Tag) -> bool;

    /// The connection's queue has passed the high-water mark, or the client has read nothing of it
    /// for a second, or [`Io::recall`] was called; `recalled` was taken back from it.
    fn high_water(&mut self, io: &mut Io<Self>, conn: ConnId, recalled: Vec<Unwritten<Self::Tag>>);

    /// The queue of a connection that [`Handler::high_water`] told of is empty.
    fn drained(&mut self, io: &mut Io<Self>, conn: ConnId);

    /// The connection is gone; `unwritten` are the tagged messages that did not get out whole.
    /// Nothing can be sent to it any more.
    fn closed(&mut self, io: &mut Io<Self>, conn: ConnId, reason: CloseReason, unwritten: Vec<Unwritten<Self::Tag>>);

    /// A timer set with [`Io::set_timer`] has fired.
    fn timer(&mut self, io: &mut Io<Self>, timer: Self::Timer);

    /// The loop was kept from running for `gap`, far longer than it ever sleeps: the process was
    /// stopped, or its machine. It is called before anything that has come meanwhile.
    fn was_stopped(&mut self, io: &mut Io<Self>, gap: Duration);

    /// The process is to end: take nothing new, wind up what there is, and say so to whoever will
    /// post [`Mail::Exit`].
    fn stopping(&mut self, io: &mut Io<Self>);
}

/// How much of its input a handler has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes consumed from the front.
    pub bytes: usize,
    /// It stopped for fairness, and wants the rest in the next turn.
    pub more: bool,
}

/// What bounds a connection's queue, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The soft mark: past it, messages are recalled and the client has 10 s to catch up.
    pub high_water: usize,
    /// The hard mark: past it, the connection is closed at once.
    pub hard: usize,
    /// All queues of a reactor together. While they hold more, each may hold its share of it and no more:
    /// that is the soft mark then, also for what otherwise does not count. While they hold twice as much,
    /// it is the hard one.
    pub total: usize,
}

enum LoopTimer<K> {
    Handler(K),
    /// A connection that we close has had its time.
    Linger(ConnId),
    /// A connection was over the mark at some moment.
    Slow(ConnId),
    /// A connection's socket was full at some moment.
    Stalled(ConnId),
    /// A paced connection may send its next message.
    Pace(ConnId),
}

/// The loop's side that a handler may use.
pub struct Io<H: Handler> {
    now: Instant,
    index: usize,
    registry: Registry,
    ids: ConnIds,
    connections: ConnMap<Box<Connection<H::Tag>>>,
    limits: Limits,
    /// All queues are looked at no sooner than this, however much they hold.
    relieved: Instant,
    timers: Timers<LoopTimer<H::Timer>>,
    mailboxes: Arc<[Mailbox<Mail<H::Letter>>]>,
    /// Letters of this turn, by reactor.
    outgoing: Vec<Vec<Mail<H::Letter>>>,
    /// Connections with input to be read or handled.
    ready: VecDeque<ConnId>,
    /// Connections with something to flush.
    dirty: Vec<ConnId>,
    /// Those that were too many to be flushed in the turn in which they got it.
    backlog: VecDeque<ConnId>,
    /// Connections that have just passed a mark, or whose queue is to be recalled.
    over: Vec<ConnId>,
    /// Connections to be swept.
    dead: Vec<ConnId>,
    /// Boxed as they are in their connections, so that an idle one pays for a pointer only.
    #[expect(clippy::vec_box)]
    spare: Vec<Box<Outbox<H::Tag>>>,
    /// Some mailbox was filled faster than its reactor empties it.
    congested: bool,
    counts: Arc<ReactorCounts>,
}

impl<H: Handler> Io<H> {
    /// The time of this turn.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// This reactor's index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Connections that this reactor owns.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// What all connections' queues hold, in bytes. A message for many counts for each of them.
    pub fn buffered(&self) -> usize {
        self.counts.queued.get() as usize
    }

    /// Whether all queues together hold more than they may.
    fn is_tight(&self) -> bool {
        self.buffered() > self.limits.total
    }

    /// The marks of a queue as they are now.
    fn marks(&self) -> Limits {
        let Limits { high_water, hard, total } = self.limits;
        if !self.is_tight() {
            return self.limits;
        }
        let share = total / self.connections.len().max(1);
        let hard = if self.buffered() / 2 > total { share } else { hard };
        Limits { high_water: high_water.min(share), hard, total }
    }

    /// Queues a message; it is written at the end of the turn, together with what else is queued.
    /// False: the connection is gone, and nothing was queued.
    pub fn send(&mut self, conn: ConnId, message: Message<'_, H::Tag>) -> bool {
        let Some(connection) = self.connections.get_mut(conn) else { return false };
        // A dead one takes messages until it is swept: then they are handed back with the rest.
        if matches!(connection.state, State::Lingering | State::Dead(None)) {
            return false;
        }
        let outbox = connection.outbox.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        let manner = Manner { alone: message.manner.alone || connection.paced, ..message.manner };
        self.counts.queued.add(message.body.bytes().len() + message.terminator.len());
        outbox.push(message.body, message.terminator, message.tag, manner);
        let counted = outbox.counted();
        mark_dirty(connection, &mut self.dirty);
        if counted > self.limits.high_water && (!connection.over || counted > self.limits.hard) {
            self.over.push(conn);
        }
        true
    }

    /// Stops handing input to the handler; the socket is not read either, so the client feels it.
    pub fn pause(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.paused = true;
        }
    }

    /// Input goes on, with what was left unconsumed.
    pub fn resume(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.paused = false;
            mark_ready(connection, &mut self.ready);
        }
    }

    /// Flushes what is queued, then closes.
    pub fn close(&mut self, conn: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.state == State::Open
        {
            connection.state = State::Flushing(reason);
            connection.input = Vec::new();
            mark_dirty(connection, &mut self.dirty);
            set_close_by(connection, &mut self.timers, self.now + LINGER);
        }
    }

    /// From now on every message to this connection leaves in a write of its own, 10 ms apart.
    pub fn pace(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.paced = true;
        }
    }

    /// Has [`Handler::high_water`] called with what can be taken back from the connection's queue,
    /// before anything else is handled, and [`Handler::drained`] once the rest is written.
    pub fn recall(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.to_recall = true;
            self.over.push(conn);
        }
    }

    /// Has [`Handler::timer`] called at `at` or a little later.
    pub fn set_timer(&mut self, at: Instant, timer: H::Timer) {
        self.timers.set(at, LoopTimer::Handler(timer));
    }

    /// Sends a letter to a reactor, itself included; it is posted at the end of the turn.
    pub fn post(&mut self, reactor: usize, letter: H::Letter) {
        self.outgoing[reactor].push(Mail::Letter(letter));
    }

    fn kill(&mut self, conn: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(conn) {
            let reason = match connection.state {
                State::Open => Some(reason),
                // We were closing it anyway, and know a better reason than how that went.
                State::Flushing(reason) => Some(reason),
                State::Lingering => None,
                State::Dead(_) => return,
            };
            connection.state = State::Dead(reason);
            self.dead.push(conn);
        }
    }

    /// Gives an emptied outbox to the next connection.
    #[expect(clippy::vec_box)]
    fn put_back(spare: &mut Vec<Box<Outbox<H::Tag>>>, mut outbox: Box<Outbox<H::Tag>>) {
        if spare.len() < SPARE_OUTBOXES {
            outbox.shrink();
            spare.push(outbox);
        }
    }

    /// Posts this turn's letters, with at most one wake for each reactor.
    fn post_outgoing(&mut self) {
        for (mailbox, letters) in self.mailboxes.iter().zip(&mut self.outgoing) {
            if !letters.is_empty() {
                self.congested |= mailbox.post_all(letters) > CONGESTED;
            }
        }
    }
}

fn set_close_by<T, K>(connection: &mut Connection<T>, timers: &mut Timers<LoopTimer<K>>, at: Instant) {
    connection.close_by = Some(at);
    timers.set(at, LoopTimer::Linger(connection.id));
}

fn mark_dirty<T>(connection: &mut Connection<T>, dirty: &mut Vec<ConnId>) {
    if !connection.in_dirty {
        connection.in_dirty = true;
        dirty.push(connection.id);
    }
}

fn mark_ready<T>(connection: &mut Connection<T>, ready: &mut VecDeque<ConnId>) {
    if !connection.in_ready {
        connection.in_ready = true;
        ready.push_back(connection.id);
    }
}

/// A sub-reactor's loop.
pub struct EventLoop<H: Handler> {
    poll: Poll,
    events: Events,
    io: Io<H>,
    handler: H,
    /// What a read goes into before anybody knows whether it must be kept.
    scratch: Box<[u8]>,
    mail: Vec<Mail<H::Letter>>,
    tags: Vec<H::Tag>,
    /// In the last turn.
    had_events: bool,
    /// The loop ends at this moment, or earlier when all connections have said goodbye.
    exit_by: Option<Instant>,
}

impl<H: Handler> EventLoop<H> {
    /// A loop on `poll`, which the mailbox at `index` wakes.
    pub fn new(
        index: usize,
        poll: Poll,
        mailboxes: Arc<[Mailbox<Mail<H::Letter>>]>,
        limits: Limits,
        handler: H,
    ) -> io::Result<Self> {
        let reactor = u16::try_from(index).map_err(|_| io::Error::other("more than 65,536 reactors"))?;
        let io = Io {
            now: Instant::now(),
            index,
            registry: poll.registry().try_clone()?,
            ids: ConnIds::new(reactor),
            connections: ConnMap::default(),
            limits,
            relieved: Instant::now(),
            timers: Timers::default(),
            outgoing: mailboxes.iter().map(|_| Vec::new()).collect(),
            mailboxes,
            ready: VecDeque::new(),
            dirty: Vec::new(),
            backlog: VecDeque::new(),
            over: Vec::new(),
            dead: Vec::new(),
            spare: Vec::new(),
            congested: false,
            counts: Arc::default(),
        };
        Ok(EventLoop {
            poll,
            events: Events::with_capacity(1024),
            io,
            handler,
            scratch: vec![0; READ_BUDGET].into_boxed_slice(),
            mail: Vec::new(),
            tags: Vec::new(),
            had_events: false,
            exit_by: None,
        })
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<ReactorCounts> {
        Arc::clone(&self.io.counts)
    }

    /// Runs until [`Mail::Exit`].
    pub fn run(mut self) -> io::Result<()> {
        loop {
            self.turn()?;
            if self.exit_by.is_some_and(|by| self.io.connections.is_empty() || by <= self.io.now) {
                return Ok(());
            }
        }
    }

    /// One turn: events, letters, input, timers, then every flush, then the sweep.
    fn turn(&mut self) -> io::Result<()> {
        let mut sleep = self.sleep();
        // Who has just had something to do lets the others run, and looks once more before it sleeps:
        // what they send meanwhile comes together, and needs no wake. A sleep and a wake for every few
        // messages cost a seventh of what a relayed message does.
        if std::mem::take(&mut self.had_events) && !sleep.is_zero() {
            std::thread::yield_now();
            sleep = Duration::ZERO;
        }
        match self.poll.poll(&mut self.events, Some(sleep)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.io.counts.turns.add(1);
        self.had_events = !self.events.is_empty();
        let now = Instant::now();
        let gap = now - self.io.now;
        self.io.now = now;
        if gap > MAX_SLEEP + STOPPED {
            self.handler.was_stopped(&mut self.io, gap);
            self.settle_over();
        }
        self.note_readiness();
        self.read_mail()?;
        self.read_ready();
        self.fire_timers();
        self.flush_dirty();
        self.flush_backlog();
        self.relieve();
        self.sweep();
        // What the sweep has caused (stored messages' acks) must not wait for the next event.
        self.flush_dirty();
        // Last: the others wake to all letters of this turn at once, and not while this reactor is
        // still busy, which costs 6 % of a relayed message more.
        self.io.post_outgoing();
        Ok(())
    }

    fn sleep(&self) -> Duration {
        if !self.io.ready.is_empty() {
            return if self.io.congested { CONGESTED_RETRY } else { Duration::ZERO };
        }
        if !self.io.dead.is_empty() || !self.io.dirty.is_empty() || !self.io.backlog.is_empty() {
            return Duration::ZERO;
        }
        let next = [self.io.timers.next(), self.exit_by].into_iter().flatten().min();
        next.map_or(MAX_SLEEP, |at| at.saturating_duration_since(self.io.now).min(MAX_SLEEP))
    }

    fn note_readiness(&mut self) {
        let io = &mut self.io;
        for event in &self.events {
            if event.token() == WAKER {
                io.counts.wakes.add(1);
                continue; // the mailbox is looked into every turn
            }
            let Some(id) = io.connections.owner(event.token().0) else { continue };
            let Some(connection) = io.connections.get_mut(id) else { continue };
            if wants_read(event) {
                connection.readable = true;
                connection.short_reads_lie |= event.is_read_closed() || event.is_error() || event.is_priority();
                connection.hang_up = connection.hang_up.max(hang_up(event));
                mark_ready(connection, &mut io.ready);
            }
            // Error and hang-up bits only mean "go and look": the system call reports.
            if event.is_writable() || event.is_error() {
                connection.blocked = false;
                mark_dirty(connection, &mut io.dirty);
            }
        }
    }

    fn read_mail(&mut self) -> io::Result<()> {
        let mut mail = std::mem::take(&mut self.mail);
        self.io.mailboxes[self.io.index].take(&mut mail);
        self.io.counts.letters.add(mail.len() as u64);
        for letter in mail.drain(..) {
            match letter {
                Mail::Letter(letter) => self.handler.letter(&mut self.io, letter),
                Mail::Connection(stream, peer, slot) => self.adopt(stream, peer, slot),
                Mail::Stop => self.handler.stopping(&mut self.io),
                Mail::Exit => self.exit_by = Some(self.io.now + EXIT_LINGER),
            }
            self.settle_over();
        }
        // A burst's memory is not kept.
        if mail.capacity() > 16 * 1024 {
            mail = Vec::new();
        }
        self.mail = mail;
        Ok(())
    }

    /// Takes an accepted socket over, for life.
    fn adopt(&mut self, mut stream: TcpStream, peer: SocketAddr, slot: ConnectionSlot) {
        let io = &mut self.io;
        let id = io.ids.allocate();
        if let Err(error) = io.registry.register(&mut stream, Token(id.slot()), INPUT) {
            log::warn!("{peer}: cannot be watched: {error}");
            io.ids.free(id);
            return;
        }
        io.connections.insert(id, Box::new(Connection::new(id, stream, slot)));
        io.counts.accepted.add(1);
        io.counts.connections.set(io.connections.len());
        self.handler.opened(io, id, peer);
    }

    /// Lets every connection in the ready list have its share of this turn.
    fn read_ready(&mut self) {
        if self.io.congested {
            self.io.congested = self.io.mailboxes.iter().any(|mailbox| mailbox.len() > CONGESTED);
            if self.io.congested {
                return;
            }
        }
        for _ in 0..self.io.ready.len() {
            let Some(id) = self.io.ready.pop_front() else { break };
            self.read_one(id);
            self.settle_over();
        }
    }

    /// Reads and handles one connection's input, until it waits, is paused, or has had its share.
    fn read_one(&mut self, id: ConnId) {
        let Some(connection) = self.io.connections.get_mut(id) else { return };
        connection.in_ready = false;
        let high_water = self.io.marks().high_water;
        let mut budget = READ_BUDGET;
        loop {
            let Some(connection) = self.io.connections.get_mut(id) else { return };
            match connection.state {
                State::Open if connection.paused => {
                    // Nothing is read that would show it, for as long as this takes.
                    if let Some(how) = connection.hang_up {
                        self.handler.hung_up(&mut self.io, id, how);
                    }
                    return;
                }
                State::Open if connection.over => return,
                // A client that asks for more than it reads must not fill the memory with replies.
                State::Open if connection.queued() > high_water => {
                    connection.stuffed = true;
                    return;
                }
                State::Open => {}
                State::Lingering => return self.drop_input(id),
                State::Flushing(_) | State::Dead(_) => return,
            }
            if connection.unhandled {
                if self.handle_input(id, 0) {
                    return self.requeue(id);
                }
                continue;
            }
            if connection.eof {
                if !connection.ended {
                    connection.ended = true;
                    let rest = connection.input.len();
                    self.handler.ended(&mut self.io, id, rest);
                }
                return;
            }
            if !connection.readable {
                return;
            }
            if budget == 0 {
                return self.requeue(id);
            }
            let room = self.scratch.len().min(budget);
            match connection.stream.read(&mut self.scratch[..room]) {
                Ok(0) => {
                    connection.eof = true;
                    connection.readable = false;
                }
                Ok(n) => {
                    budget -= n;
                    self.io.counts.received.add(n as u64);
                    // A short read has emptied the socket, unless the end of the stream has
                    // arrived already (its event is this one, and there will be no other) or the
                    // read has stopped before an urgent byte.
                    if n < room && !connection.short_reads_lie {
                        connection.readable = false;
                    }
                    if self.handle_input(id, n) {
                        return self.requeue(id);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::debug!("{id}: {error}");
                    return self.io.kill(id, CloseReason::SocketError);
                }
            }
        }
    }

    fn requeue(&mut self, id: ConnId) {
        if let Some(connection) = self.io.connections.get_mut(id) {
            mark_ready(connection, &mut self.io.ready);
        }
    }

    /// Gives the handler what was left over plus the first `fresh` bytes of the scratch buffer.
    /// True: it stopped for fairness.
    fn handle_input(&mut self, id: ConnId, fresh: usize) -> bool {
        let Some(connection) = self.io.connections.get_mut(id) else { return false };
        connection.unhandled = false;
        let mut kept = std::mem::take(&mut connection.input);
        let input = if kept.is_empty() {
            &self.scratch[..fresh]
        } else {
            kept.extend_from_slice(&self.scratch[..fresh]);
            &kept[..]
        };
        let taken = self.handler.input(&mut self.io, id, input);
        let rest = input.len() - taken.bytes.min(input.len());
        let Some(connection) = self.io.connections.get_mut(id) else { return false };
        if rest > 0 && connection.state == State::Open {
            // Paused or out of turn: it has not seen all of the rest yet.
            connection.unhandled = connection.paused || taken.more;
            if kept.is_empty() {
                connection.input = self.scratch[fresh - rest..fresh].to_vec();
            } else {
                kept.drain(..taken.bytes);
                connection.input = kept;
            }
        }
        taken.more
    }

    /// After our own end of a connection is shut: reads until the client has closed, too.
    fn drop_input(&mut self, id: ConnId) {
        let Some(connection) = self.io.connections.get_mut(id) else { return };
        let mut budget = READ_BUDGET;
        while budget > 0 {
            match connection.stream.read(&mut self.scratch) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(n) if n > 0 => budget = budget.saturating_sub(n),
                _ => return self.io.kill(id, CloseReason::ByClient),
            }
        }
        self.requeue(id);
    }

    fn fire_timers(&mut self) {
        while let Some(timer) = self.io.timers.pop_due(self.io.now) {
            match timer {
                LoopTimer::Handler(timer) => self.handler.timer(&mut self.io, timer),
                LoopTimer::Linger(id) => {
                    // A goodbye has begun its time anew.
                    let close_by = self.io.connections.get(id).and_then(|connection| connection.close_by);
                    if close_by.is_some_and(|at| at <= self.io.now) {
                        self.io.kill(id, CloseReason::SlowConsumer);
                    }
                }
                LoopTimer::Slow(id) => {
                    // It may have read everything since, and then fallen behind anew.
                    let over_since =
                        self.io.connections.get(id).filter(|c| c.over).and_then(|c| c.outbox.as_ref()?.over_since);
                    if over_since.is_some_and(|since| since + SLOW_CONSUMER <= self.io.now) {
                        self.io.kill(id, CloseReason::SlowConsumer);
                    }
                }
                LoopTimer::Stalled(id) => self.check_stalled(id),
                LoopTimer::Pace(id) => {
                    if let Some(connection) = self.io.connections.get_mut(id) {
                        connection.pacing = false;
                        mark_dirty(connection, &mut self.io.dirty);
                    }
                }
            }
            self.settle_over();
        }
    }

    /// Acts on connections whose queue has just grown past a mark, or is to be recalled. A full queue in the middle of a
    /// turn says nothing about the client yet, so it is flushed first.
    fn settle_over(&mut self) {
        while let Some(id) = self.io.over.pop() {
            self.flush_one(id);
            let (limits, now, tight) = (self.io.marks(), self.io.now, self.io.is_tight());
            let Some(connection) = self.io.connections.get_mut(id) else { continue };
            if std::mem::take(&mut connection.to_recall) {
                connection.recalled = true;
                self.recall(id);
            }
            let Some(connection) = self.io.connections.get_mut(id) else { continue };
            let counted = connection.weight(tight);
            if counted > limits.high_water && !connection.over {
                connection.over = true;
                if let Some(outbox) = &mut connection.outbox {
                    outbox.over_since = Some(now);
                }
                self.io.counts.slow.of(if tight { Slowness::Tight } else { Slowness::HighWater }).add(1);
                self.io.timers.set(now + SLOW_CONSUMER, LoopTimer::Slow(id));
                self.recall(id);
            }
            if self.io.connections.get(id).is_some_and(|connection| connection.weight(tight) > limits.hard) {
                self.io.kill(id, CloseReason::SlowConsumer);
            }
        }
    }

    /// While all queues together hold too much: finds those that hold more than their share. A queue that
    /// is full now was flushed in this turn, so its client does not read.
    fn relieve(&mut self) {
        if !self.io.is_tight() || self.io.now < self.io.relieved + RELIEF {
            return;
        }
        let marks = self.io.marks();
        if self.io.now > self.io.relieved + COMPLAINT {
            let (bytes, connections, share) = (self.io.buffered(), self.io.connections.len(), marks.high_water);
            log::warn!("{bytes} bytes wait to be written to {connections} clients: none may hold more than {share}");
        }
        self.io.relieved = self.io.now;
        for id in self.io.connections.ids().collect::<Vec<_>>() {
            let Some(connection) = self.io.connections.get(id) else { continue };
            let weight = connection.weight(true);
            if weight > marks.high_water && (!connection.over || weight > marks.hard) {
                self.io.over.push(id);
                self.settle_over();
            }
        }
    }

    /// Takes back what may take another way to a client that does not read.
    fn recall(&mut self, id: ConnId) {
        let Some(connection) = self.io.connections.get_mut(id) else { return };
        let queued = connection.queued();
        let recalled = connection.outbox.as_mut().map_or_else(Vec::new, |outbox| outbox.recall(H::recallable));
        self.io.counts.queued.sub(queued - connection.queued());
        self.handler.high_water(&mut self.io, id, recalled);
        self.flush_one(id);
    }

    /// A socket was full: has it taken anything since?
    fn check_stalled(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        connection.stall_timer = false;
        if !connection.blocked || connection.over || connection.recalled || connection.state != State::Open {
            return;
        }
        let due = connection.outbox.as_ref().and_then(|outbox| outbox.progress).unwrap_or(io.now) + STALLED;
        if due > io.now {
            connection.stall_timer = true;
            io.timers.set(due, LoopTimer::Stalled(id));
        } else {
            connection.recalled = true;
            io.counts.slow.of(Slowness::Stalled).add(1);
            self.recall(id);
        }
    }

    /// Writes the queues that have got something, until no write has caused another message. A
    /// message for thousands is not written to all of them before anybody else has a turn.
    fn flush_dirty(&mut self) {
        let mut budget = FLUSHES;
        while !self.io.dirty.is_empty() {
            let mut dirty = std::mem::take(&mut self.io.dirty);
            for id in dirty.drain(..) {
                // Also of what must wait: whoever gets something more goes first again.
                if let Some(connection) = self.io.connections.get_mut(id) {
                    connection.in_dirty = false;
                }
                if budget == 0 {
                    self.io.backlog.push_back(id);
                    continue;
                }
                budget -= 1;
                self.flush_one(id);
                self.settle_over();
            }
            if self.io.dirty.is_empty() {
                self.io.dirty = dirty; // its capacity
            }
        }
    }

    /// Goes on with what was too much for earlier turns.
    fn flush_backlog(&mut self) {
        for _ in 0..FLUSHES {
            let Some(id) = self.io.backlog.pop_front() else { return };
            self.flush_one(id);
            self.settle_over();
        }
    }

    fn flush_one(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        if connection.pacing || connection.blocked || matches!(connection.state, State::Dead(_)) {
            return;
        }
        let queued = connection.queued();
        let mut tags = std::mem::take(&mut self.tags);
        let progress = loop {
            let Some(outbox) = &mut connection.outbox else { break Ok(Progress::Empty) };
            match outbox.write_to(&mut connection.stream, &mut tags) {
                Ok(Progress::Boundary) if !connection.paced => {}
                other => break other,
            }
        };
        let blocked = matches!(progress, Ok(Progress::Blocked));
        connection.blocked = blocked;
        let written = queued - connection.queued();
        io.counts.queued.sub(written);
        io.counts.sent.add(written as u64);
        let moved = written > 0;
        if let Some(outbox) = &mut connection.outbox {
            if moved || (blocked && !connection.armed) {
                outbox.progress = Some(io.now);
            }
            if blocked && !connection.stall_timer && !connection.recalled {
                connection.stall_timer = true;
                io.timers.set(outbox.progress.unwrap_or(io.now) + STALLED, LoopTimer::Stalled(id));
            }
        }
        if connection.paced && moved {
            connection.pacing = true;
            io.timers.set(io.now + PACE, LoopTimer::Pace(id));
        }
        let interest = if blocked { INPUT | Interest::WRITABLE } else { INPUT };
        let mut failed = false;
        if connection.armed != blocked {
            connection.armed = blocked;
            failed = io.registry.reregister(&mut connection.stream, Token(id.slot()), interest).is_err();
        }
        let mut drained = false;
        match progress {
            Err(error) => {
                log::debug!("{id}: {error}");
                failed = true;
            }
            Ok(Progress::Blocked | Progress::Boundary) => {}
            Ok(Progress::Empty) => {
                if let Some(outbox) = connection.outbox.take() {
                    Io::<H>::put_back(&mut io.spare, outbox);
                }
                drained = std::mem::take(&mut connection.over) | std::mem::take(&mut connection.recalled);
                if std::mem::take(&mut connection.stuffed) || drained {
                    mark_ready(connection, &mut io.ready);
                }
            }
        }
        if failed {
            io.kill(id, CloseReason::SocketError);
        }
        for tag in tags.drain(..) {
            self.handler.written(&mut self.io, id, tag);
        }
        self.tags = tags;
        if drained {
            self.handler.drained(&mut self.io, id);
        }
        self.say_goodbye(id);
    }

    /// A connection that we close has been flushed: tell the handler, shut our side, and wait for
    /// the client's.
    fn say_goodbye(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        let State::Flushing(reason) = connection.state else { return };
        if connection.outbox.is_some() {
            return;
        }
        connection.state = State::Lingering;
        // It fails if the client has gone already; reading will tell.
        let _ = connection.stream.shutdown(Shutdown::Write);
        if connection.eof {
            io.kill(id, reason);
        } else {
            set_close_by(connection, &mut io.timers, io.now + LINGER);
            mark_ready(connection, &mut io.ready);
        }
        io.counts.closed.of(reason).add(1);
        self.handler.closed(io, id, reason, Vec::new());
    }

    /// Drops what was marked dead in this turn. It is the only place that frees a connection, so
    /// an event, letter or tag that was still on its way in this turn found it, or nobody.
    fn sweep(&mut self) {
        while let Some(id) = self.io.dead.pop() {
            let Some(mut connection) = self.io.connections.remove(id) else { continue };
            let _ = self.io.registry.deregister(&mut connection.stream);
            self.io.ids.free(id);
            self.io.counts.connections.set(self.io.connections.len());
            self.io.counts.queued.sub(connection.queued());
            let unwritten = match connection.outbox.take() {
                Some(mut outbox) => outbox.recall(|_| true),
                None => Vec::new(),
            };
            if let State::Dead(Some(reason)) = connection.state {
                self.io.counts.closed.of(reason).add(1);
                self.handler.closed(&mut self.io, id, reason, unwritten);
                self.settle_over();
            }
        }
    }
}

/// What an event says of the client's side, while ours is open.
fn hang_up(event: &Event) -> Option<HangUp> {
    // Both sides are shut, and ours was not by us: a reset, or nobody has answered for too long.
    if event.is_error() || event.is_write_closed() {
        Some(HangUp::Gone)
    } else {
        event.is_read_closed().then_some(HangUp::HalfClosed)
    }
}

/// Hang-ups and errors show themselves to whoever reads.
fn wants_read(event: &Event) -> bool {
    event.is_readable() || event.is_read_closed() || event.is_error() || event.is_priority()
}
