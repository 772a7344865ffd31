//! One sub-reactor: a Poll, its connections, timers and buffers, in one thread.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use super::acceptor::ConnectionSlot;
use super::budget::{Budget, Share};
use super::connection::{Connection, HangUp, Message, State};
use super::counts::{ReactorCounts, Slowness};
use super::id::{ConnId, ConnIds, ConnMap};
use super::mailbox::{Mail, Mailbox, Moving, WAKER};
use super::outbox::{Manner, Outbox, Progress, Unwritten};
use super::reason::{CloseReason, Mark, Reason};
use super::timers::Timers;
use crate::clock;

/// What one connection may read in a turn before the others have theirs, in bytes.
const READ_BUDGET: usize = 64 * 1024;
/// Connections of which the queue is written in a turn, and as many of those that were left over:
/// together about a millisecond.
const FLUSHES: usize = 64;
/// The longest sleep. Every wait has its own wake; this bounds the damage if one is missing.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// The longest sleep while the handler may not act.
const HELD: Duration = Duration::from_millis(50);
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
/// How often it is noted that the loop has taken a turn: a clock costs as much as some letters.
const BEAT: Duration = Duration::from_millis(50);
/// How soon a reactor that waits for others looks again: for a congested mailbox to be emptied, or at the end for
/// a connection that moves to arrive.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What every connection waits for: input, and to hear of urgent bytes, at which a read stops short.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// The business behind one reactor. Every method runs in the reactor's thread and must not block.
pub trait Handler: Sized {
    /// What reactors and workers send each other.
    type Letter: Send;
    /// Marks a message whose fate matters.
    type Tag: Clone + Send;
    /// Names a timer.
    type Timer;
    /// What a handler tells the one of another reactor of a connection that it gives to it.
    type Moved: Send;
    /// Why the handler closes connections.
    type Reason: Reason;

    /// Whether the handler may act at this moment. The loop asks right before it hands over each thing
    /// that has come (input, a letter, a timer, a connection's end), before it writes a connection's queue, and
    /// before [`Handler::turn_ended`]: a process that is stopped between any two of them handles and writes
    /// nothing when it goes on, if the answer is no by then. It is asked twice or more for every message, so it
    /// should cost no more than reading a clock.
    ///
    /// Once the answer is no, nothing else is handed over or written in this turn, and nothing is lost: it all
    /// waits as it is and in order, and the question is asked again after at most 50 ms, or as soon as the loop
    /// is woken. Only [`Mail::Exit`] and [`Mail::Abandon`] do not wait.
    fn may_act(&mut self) -> bool {
        true
    }

    /// A connection has been accepted.
    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, peer: SocketAddr);

    /// A connection has come from another reactor, whose handler gave it away with `moved`
    /// ([`Io::move_to`]). It may come after [`Handler::stopping`], too.
    fn arrived(&mut self, io: &mut Io<Self>, conn: ConnId, moved: Self::Moved);

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

    /// Whether a message with this tag is taken back from a connection's queue in such a recall.
    fn recallable(tag: &Self::Tag, how: Recall) -> bool;

    /// The connection's queue has passed the high-water mark, or its share while memory is short, or the
    /// client has read nothing of it for a second, or [`Io::recall`] was called; `recalled` was taken back from it.
    /// A message that was partly written stays in the queue: what is handed back of it is a copy
    /// ([`Unwritten::begun`]).
    fn recalled(&mut self, io: &mut Io<Self>, conn: ConnId, recalled: Vec<Unwritten<Self::Tag>>);

    /// The queue of a connection that [`Handler::recalled`] told of is empty.
    fn drained(&mut self, io: &mut Io<Self>, conn: ConnId);

    /// The connection is gone; `unwritten` are the tagged messages that did not get out whole.
    /// Nothing can be sent to it any more.
    fn closed(
        &mut self,
        io: &mut Io<Self>,
        conn: ConnId,
        reason: CloseReason<Self::Reason>,
        unwritten: Vec<Unwritten<Self::Tag>>,
    );

    /// A timer set with [`Io::set_timer`] has fired.
    fn timer(&mut self, io: &mut Io<Self>, timer: Self::Timer);

    /// A turn ends: what it had to write is written (of a message for thousands, a part), and its letters are
    /// not posted yet. So clients get theirs before others are told what became of it. What the handler sends
    /// now is written in the next turn, which follows at once.
    fn turn_ended(&mut self, io: &mut Io<Self>);

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

/// Which messages are taken back from a connection's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recall {
    /// Of a client that does not read: those that may take another route to it.
    Reroutable,
    /// At the end of a session: all that are tagged.
    All,
}

/// What bounds a connection's queue, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The soft mark: past it, messages are recalled and the client has 10 s to catch up.
    pub high_water: usize,
    /// The hard mark: past it, the connection is closed at once.
    pub hard: usize,
    /// All queues of all reactors together, and what their handlers hold besides ([`Io::set_held`]). While
    /// that is more, each connection may have its share of this waiting and no more: that is the soft mark
    /// then, also for what otherwise does not count. While it is twice as much, it is the hard one.
    /// How exactly a reactor knows it: [`Budget`].
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
    connections: ConnMap<Box<Connection<H::Tag, H::Reason>>>,
    limits: Limits,
    share: Share,
    /// What the handler holds besides the queues, in bytes.
    held: usize,
    /// All queues are looked at no sooner than this, however much they hold.
    relieved: Instant,
    timers: Timers<LoopTimer<H::Timer>>,
    mailboxes: Arc<[Mailbox<Mail<H>>]>,
    /// Letters of this turn, by reactor.
    outgoing: Vec<Vec<Mail<H>>>,
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

    /// What the queues of this reactor's connections hold, in bytes. A message for many counts for each of them.
    pub fn buffered(&self) -> usize {
        self.counts.queued.get() as usize
    }

    /// Notes that the handler holds `bytes` for slow readers besides what is queued: they count as much
    /// towards [`Limits::total`].
    pub fn set_held(&mut self, bytes: usize) {
        self.held = bytes;
    }

    /// What this reactor holds.
    fn own_bytes(&self) -> usize {
        self.buffered().saturating_add(self.held)
    }

    /// What all reactors hold.
    fn all_bytes(&self) -> usize {
        self.share.all_bytes(self.own_bytes())
    }

    /// Whether all reactors together hold more than they may.
    pub fn is_tight(&self) -> bool {
        self.all_bytes() > self.limits.total
    }

    /// The marks of a queue as they are now.
    fn marks(&self) -> Limits {
        let Limits { high_water, hard, total } = self.limits;
        let all = self.all_bytes();
        if all <= total {
            return self.limits;
        }
        let share = total / self.share.all_connections(self.connections.len()).max(1);
        let hard = if all / 2 > total { share } else { hard };
        Limits { high_water: high_water.min(share), hard, total }
    }

    fn publish(&mut self) {
        self.share.publish(self.own_bytes(), self.connections.len());
    }

    /// Queues a message; it is written at the end of the turn, together with what else is queued.
    /// False: the connection is gone, and nothing was queued.
    pub fn send(&mut self, conn: ConnId, message: Message<'_, H::Tag>) -> bool {
        let Some(connection) = self.connections.get_mut(conn) else { return false };
        // A dead one takes messages until it is swept: then they are handed back with the rest.
        if connection.is_over_for_the_handler() {
            return false;
        }
        let outbox = connection.outbox.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        let manner = Manner { alone: message.manner.alone || connection.paced, ..message.manner };
        self.counts.queued.add(message.body.bytes().len() + message.terminator.len());
        // Tagged messages come again: by whoever has the connection now, a client that takes nothing is found anew.
        if connection.recalled && message.tag.is_some() {
            connection.recalled = false;
            if connection.blocked && !connection.stall_timer {
                connection.stall_timer = true;
                self.timers.set(self.now + STALLED, LoopTimer::Stalled(conn));
            }
        }
        outbox.push(message.body, message.terminator, message.tag, manner);
        let counted = outbox.counted();
        mark_dirty(connection, &mut self.dirty);
        if counted > self.limits.high_water && (connection.over.is_none() || counted > self.limits.hard) {
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
    pub fn close(&mut self, conn: ConnId, reason: H::Reason) {
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

    /// Closes at once. What is queued is not written; [`Handler::closed`] gets what of it is tagged, with the
    /// message that was partly written, and what is sent until then. A connection that was being closed keeps its reason.
    pub fn abort(&mut self, conn: ConnId, reason: H::Reason) {
        self.kill(conn, CloseReason::Handler(reason));
    }

    /// Has [`Handler::recalled`] called with what can be taken back from the connection's queue,
    /// before anything else is handled, and [`Handler::drained`] once the rest is written.
    pub fn recall(&mut self, conn: ConnId, how: Recall) {
        if let Some(connection) = self.connections.get_mut(conn)
            && !connection.is_over_for_the_handler()
        {
            connection.to_recall = connection.to_recall.max(Some(how));
            self.over.push(conn);
        }
    }

    /// Gives a connection to another reactor (to this one, too), whose handler is told by
    /// [`Handler::arrived`], with `moved` and a new id. It gets there with all that it has: input that was not
    /// read or not consumed, what is queued, its pace, its pauses, its end if it is being closed or has died.
    /// Letters that are posted to that reactor afterwards come after it.
    ///
    /// The handler has forgotten the connection, so that nothing is told of it here any more, except for tags
    /// that this turn's write has covered already. What still names the old id finds nobody.
    /// Nothing happens, and `moved` is dropped, if the connection is gone, or [`Handler::closed`] was called for it.
    pub fn move_to(&mut self, conn: ConnId, reactor: usize, moved: H::Moved) {
        if self.connections.get(conn).is_none_or(|connection| connection.is_over_for_the_handler()) {
            return;
        }
        let Some(mut connection) = self.connections.remove(conn) else { return };
        // All events of this turn are noted by now, so the slot can have a new owner.
        let _ = self.registry.deregister(&mut connection.stream);
        self.ids.free(conn);
        self.counts.connections.set(self.connections.len());
        self.counts.queued.sub(connection.queued());
        let in_flight = self.share.departure();
        self.outgoing[reactor].push(Mail::Moved(Box::new(Moving { connection, moved, in_flight })));
    }

    /// A connection that has been given away in this turn.
    fn departing(&mut self, conn: ConnId) -> Option<&mut Connection<H::Tag, H::Reason>> {
        self.outgoing.iter_mut().flatten().find_map(|mail| match mail {
            Mail::Moved(moving) if moving.connection.id == conn => Some(&mut *moving.connection),
            _ => None,
        })
    }

    /// Has [`Handler::timer`] called at `at` or a little later.
    pub fn set_timer(&mut self, at: Instant, timer: H::Timer) {
        self.timers.set(at, LoopTimer::Handler(timer));
    }

    /// Sends a letter to a reactor, itself included; it is posted at the end of the turn.
    pub fn post(&mut self, reactor: usize, letter: H::Letter) {
        self.outgoing[reactor].push(Mail::Letter(letter));
    }

    /// Ends a connection. One that was being closed keeps its reason: it says more than how that went.
    fn kill(&mut self, conn: ConnId, reason: CloseReason<H::Reason>) {
        if let Some(connection) = self.connections.get_mut(conn) {
            if connection.state == State::Open {
                connection.state = State::Dead(Some(reason));
                self.dead.push(conn);
            } else {
                self.end(conn);
            }
        }
    }

    /// Ends a connection that is being closed.
    fn end(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            let reason = match connection.state {
                State::Flushing(reason) => Some(CloseReason::Handler(reason)),
                State::Lingering => None,
                State::Open | State::Dead(_) => return,
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

/// Asks whether the handler may act, unless it might not before in this turn.
fn may_act<H: Handler>(halted: &mut bool, handler: &mut H) -> bool {
    *halted = *halted || !handler.may_act();
    !*halted
}

fn set_close_by<T, R, K>(connection: &mut Connection<T, R>, timers: &mut Timers<LoopTimer<K>>, at: Instant) {
    connection.close_by = Some(at);
    timers.set(at, LoopTimer::Linger(connection.id));
}

fn mark_dirty<T, R>(connection: &mut Connection<T, R>, dirty: &mut Vec<ConnId>) {
    if !connection.in_dirty {
        connection.in_dirty = true;
        dirty.push(connection.id);
    }
}

fn mark_ready<T, R>(connection: &mut Connection<T, R>, ready: &mut VecDeque<ConnId>) {
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
    /// What has come, and what of it had to wait since the handler might not act.
    mail: Vec<Mail<H>>,
    tags: Vec<H::Tag>,
    /// In the last turn.
    had_events: bool,
    /// The handler might not act, so the rest of this turn waits.
    halted: bool,
    /// When it could act again, or the loop was made: no client is to blame for what was not written before.
    resumed: Instant,
    /// Something was handled after the last turn had ended for the handler.
    has_gone_on: bool,
    /// The loop ends at this moment, or earlier when all connections have said goodbye.
    exit_by: Option<Instant>,
    /// The loop ends now.
    abandoned: bool,
    /// See [`EventLoop::beat`].
    beat: Arc<AtomicU64>,
    /// The turn in which that was noted last.
    noted: Instant,
}

impl<H: Handler> EventLoop<H> {
    /// A loop on `poll`, which the mailbox at `index` wakes. All reactors that have `limits.total` in common
    /// share one `budget`.
    pub fn new(
        index: usize,
        poll: Poll,
        mailboxes: Arc<[Mailbox<Mail<H>>]>,
        limits: Limits,
        budget: Arc<Budget>,
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
            share: Share::new(budget),
            held: 0,
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
            counts: Arc::new(ReactorCounts::new::<H::Reason>()),
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
            halted: false,
            resumed: Instant::now(),
            has_gone_on: false,
            exit_by: None,
            abandoned: false,
            beat: Arc::new(AtomicU64::new(clock::since_boot().as_millis() as u64)),
            noted: Instant::now(),
        })
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<ReactorCounts> {
        Arc::clone(&self.io.counts)
    }

    /// When the loop last completed a turn, in milliseconds since the machine was booted, and up to 50 ms less;
    /// at first, when it was made. A loop that is not stuck completes one a second at least, also while its
    /// handler may not act.
    pub fn beat(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.beat)
    }

    /// Runs until [`Mail::Exit`] or [`Mail::Abandon`].
    ///
    /// # Errors
    /// The system cannot wait for events.
    pub fn run(mut self) -> io::Result<()> {
        while !self.has_ended() {
            self.turn()?;
        }
        Ok(())
    }

    fn has_ended(&self) -> bool {
        let no_more_come = || self.io.connections.is_empty() && !self.io.share.is_one_moving();
        self.abandoned || self.exit_by.is_some_and(|by| by <= self.io.now || no_more_come())
    }

    /// One turn: events, letters, input, timers, then every flush, then the sweep.
    fn turn(&mut self) -> io::Result<()> {
        let mut sleep = self.sleep();
        // Who has just had something to do lets the others run, and looks once more before it sleeps:
        // what they send meanwhile comes together, and needs no wake. A sleep and a wake for every few
        // messages cost a seventh of what a relayed message does.
        if std::mem::take(&mut self.had_events) && !sleep.is_zero() && !self.halted {
            std::thread::yield_now();
            sleep = Duration::ZERO;
        }
        match self.poll.poll(&mut self.events, Some(sleep)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.io.counts.turns.add(1);
        self.io.now = Instant::now();
        self.had_events = !self.events.is_empty();
        self.has_gone_on = false;
        // While it may not, nothing is read either.
        if self.halted && self.handler.may_act() {
            (self.halted, self.resumed) = (false, self.io.now);
        }
        self.note_readiness();
        self.take_mail();
        if self.abandoned {
            return Ok(());
        }
        // What an earlier turn had to leave.
        self.settle_over();
        self.read_mail();
        self.read_ready();
        self.fire_timers();
        self.flush_dirty();
        self.flush_backlog();
        self.relieve();
        self.sweep();
        // What the sweep has caused (stored messages' acks) must not wait for the next event.
        self.flush_dirty();
        self.end_turn();
        // Last: the others wake to all letters of this turn at once, and not while this reactor is
        // still busy, which costs 6 % of a relayed message more.
        self.io.post_outgoing();
        self.io.publish();
        self.note_beat();
        Ok(())
    }

    fn note_beat(&mut self) {
        if self.io.now >= self.noted + BEAT {
            self.noted = self.io.now;
            self.beat.store(clock::since_boot().as_millis() as u64, Relaxed);
        }
    }

    fn sleep(&self) -> Duration {
        let exit = self.exit_by.map(|by| if self.io.connections.is_empty() { self.io.now + LOOK_AGAIN } else { by });
        if self.halted {
            return exit.map_or(HELD, |at| at.saturating_duration_since(self.io.now).min(HELD));
        }
        if !self.io.ready.is_empty() {
            return if self.io.congested { LOOK_AGAIN } else { Duration::ZERO };
        }
        let has_work = !self.io.dead.is_empty() || !self.io.dirty.is_empty() || !self.io.backlog.is_empty();
        if has_work || self.has_gone_on {
            return Duration::ZERO;
        }
        let next = [self.io.timers.next(), exit].into_iter().flatten().min();
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

    /// Takes what has come, and notes what must not wait for what lies before it.
    fn take_mail(&mut self) {
        let held = self.mail.len();
        let mailbox = &self.io.mailboxes[self.io.index];
        if held == 0 {
            mailbox.take(&mut self.mail);
        } else {
            let mut more = Vec::new();
            mailbox.take(&mut more);
            self.mail.append(&mut more);
        }
        let new = &self.mail[held..];
        self.io.counts.letters.add(new.len() as u64);
        for mail in new {
            match mail {
                Mail::Exit => self.exit_by = Some(self.io.now + EXIT_LINGER),
                Mail::Abandon => self.abandoned = true,
                _ => {}
            }
        }
    }

    fn read_mail(&mut self) {
        if self.mail.is_empty() || !self.may_act() {
            return;
        }
        let mut mail = std::mem::take(&mut self.mail);
        let mut waiting = mail.drain(..);
        while let Some(letter) = waiting.next() {
            match letter {
                Mail::Letter(letter) => self.handler.letter(&mut self.io, letter),
                Mail::Connection(stream, peer, slot) => self.adopt(stream, peer, slot),
                Mail::Moved(moving) => self.take_in(*moving),
                Mail::Stop => self.handler.stopping(&mut self.io),
                Mail::Exit | Mail::Abandon => {} // noted when it came
            }
            self.settle_over();
            if !waiting.as_slice().is_empty() && !self.may_act() {
                self.mail = waiting.collect();
                return;
            }
        }
        drop(waiting);
        // A burst's memory is not kept.
        if mail.capacity() > 16 * 1024 {
            mail = Vec::new();
        }
        self.mail = mail;
    }

    fn may_act(&mut self) -> bool {
        may_act(&mut self.halted, &mut self.handler)
    }

    /// Takes an accepted socket over.
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

    /// Takes over a connection that another reactor gave away.
    fn take_in(&mut self, moving: Moving<H>) {
        let Moving { mut connection, moved, in_flight } = moving;
        let io = &mut self.io;
        let (old, id) = (connection.id, io.ids.allocate());
        log::debug!("{old} is now {id}");
        connection.id = id;
        connection.armed = connection.blocked;
        let registered = io.registry.register(&mut connection.stream, Token(id.slot()), interest(connection.armed));
        // The lists and the timers of the other loop name the old id.
        (connection.in_ready, connection.in_dirty) = (false, false);
        mark_ready(&mut connection, &mut io.ready);
        mark_dirty(&mut connection, &mut io.dirty);
        if connection.to_recall.is_some() || connection.counted() > io.limits.high_water {
            io.over.push(id);
        }
        if matches!(connection.state, State::Dead(_)) {
            io.dead.push(id);
        }
        if connection.pacing {
            io.timers.set(io.now + PACE, LoopTimer::Pace(id));
        }
        let (progress, over_since) =
            connection.outbox.as_ref().map_or((None, None), |outbox| (outbox.progress, outbox.over_since));
        if connection.stall_timer {
            io.timers.set(progress.unwrap_or(io.now) + STALLED, LoopTimer::Stalled(id));
        }
        if connection.over.is_some() {
            io.timers.set(over_since.unwrap_or(io.now) + SLOW_CONSUMER, LoopTimer::Slow(id));
        }
        if let Some(at) = connection.close_by {
            io.timers.set(at, LoopTimer::Linger(id));
        }
        io.counts.queued.add(connection.queued());
        io.connections.insert(id, connection);
        io.counts.connections.set(io.connections.len());
        drop(in_flight);
        self.handler.arrived(io, id, moved);
        if let Err(error) = registered {
            log::warn!("{id}, which was {old}, cannot be watched: {error}");
            io.kill(id, CloseReason::SocketError);
        }
    }

    /// Lets every connection in the ready list have its share of this turn.
    fn read_ready(&mut self) {
        if self.halted {
            return;
        }
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
            if self.halted {
                return;
            }
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
                        if !self.may_act() {
                            return self.requeue(id);
                        }
                        self.handler.hung_up(&mut self.io, id, how);
                    }
                    return;
                }
                State::Open if connection.over.is_some() => return,
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
                    if !may_act(&mut self.halted, &mut self.handler) {
                        return self.requeue(id);
                    }
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
    /// True: it goes on in another turn, for fairness or since the handler may not act.
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
        let may_act = may_act(&mut self.halted, &mut self.handler);
        let taken = if may_act { self.handler.input(&mut self.io, id, input) } else { Taken { bytes: 0, more: true } };
        let rest = input.len() - taken.bytes.min(input.len());
        if rest == 0 {
            return taken.more;
        }
        // It may be somebody else's by now, who has not seen the rest.
        let (connection, has_moved) = match self.io.connections.get_mut(id) {
            Some(connection) => (&mut **connection, false),
            None => match self.io.departing(id) {
                Some(connection) => (connection, true),
                None => return false,
            },
        };
        if connection.state == State::Open {
            // Paused or out of turn: it has not seen all of the rest yet.
            connection.unhandled = connection.paused || taken.more || has_moved;
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
                _ => return self.io.end(id),
            }
        }
        self.requeue(id);
    }

    fn fire_timers(&mut self) {
        while self.io.timers.next().is_some_and(|at| at <= self.io.now) && self.may_act() {
            let Some(timer) = self.io.timers.pop_due(self.io.now) else { return };
            match timer {
                LoopTimer::Handler(timer) => self.handler.timer(&mut self.io, timer),
                LoopTimer::Linger(id) => {
                    // A goodbye has begun its time anew.
                    let close_by = self.io.connections.get(id).and_then(|connection| connection.close_by);
                    if close_by.is_some_and(|at| at <= self.io.now)
                        && self.has_had_from_us(LINGER, LoopTimer::Linger(id))
                    {
                        self.io.end(id);
                    }
                }
                LoopTimer::Slow(id) => {
                    // It may have read everything since, and then fallen behind anew.
                    let connection = self.io.connections.get(id);
                    let since = connection.and_then(|connection| connection.outbox.as_ref()?.over_since);
                    if let Some(mark) = connection.and_then(|connection| connection.over)
                        && since.is_some_and(|since| since + SLOW_CONSUMER <= self.io.now)
                        && self.has_had_from_us(SLOW_CONSUMER, LoopTimer::Slow(id))
                    {
                        self.close_slow(id, mark);
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

    /// Whether a client whose time is over has had that time from us, too, since the handler may act. If not, `timer`
    /// looks again when it has.
    fn has_had_from_us(&mut self, time: Duration, timer: LoopTimer<H::Timer>) -> bool {
        let at = self.resumed + time;
        let has_had = at <= self.io.now;
        if !has_had {
            self.io.timers.set(at, timer);
        }
        has_had
    }

    /// Closes a connection whose client does not read.
    fn close_slow(&mut self, id: ConnId, mark: Mark) {
        let Some(connection) = self.io.connections.get(id) else { return };
        if connection.state == State::Open {
            let (bytes, marks) = (connection.queued(), self.io.marks());
            let (soft, hard) = (marks.high_water, marks.hard);
            let cause = match mark {
                Mark::HighWater => format!("10 s after its queue has passed the high-water mark of {soft} bytes"),
                Mark::Share => format!("10 s after its queue has passed its share of all buffers, now {soft} bytes"),
                Mark::Hard => format!("above the hard mark of {hard} bytes"),
                Mark::HardShare => format!("above its share of all buffers, now {hard} bytes"),
            };
            log::info!("{id} is closed as a slow consumer: {bytes} bytes wait to be written, {cause}");
        }
        self.io.kill(id, CloseReason::SlowConsumer(mark));
    }

    /// Acts on connections whose queue has just grown past a mark, or is to be recalled. A full queue in the middle of a
    /// turn says nothing about the client yet, so it is flushed first.
    fn settle_over(&mut self) {
        while !self.io.over.is_empty() && self.may_act() {
            let Some(id) = self.io.over.pop() else { return };
            self.flush_one(id);
            if self.halted {
                return self.io.over.push(id);
            }
            let (limits, now, tight) = (self.io.marks(), self.io.now, self.io.is_tight());
            let Some(connection) = self.io.connections.get_mut(id) else { continue };
            if let Some(how) = connection.to_recall.take() {
                connection.recalled = true;
                self.recall(id, how);
            }
            let Some(connection) = self.io.connections.get_mut(id) else { continue };
            let counted = connection.weight(tight);
            if counted > limits.high_water && connection.over.is_none() {
                connection.over = Some(if tight { Mark::Share } else { Mark::HighWater });
                if let Some(outbox) = &mut connection.outbox {
                    outbox.over_since = Some(now);
                }
                self.io.counts.slow.of(if tight { Slowness::Tight } else { Slowness::HighWater }).add(1);
                self.io.timers.set(now + SLOW_CONSUMER, LoopTimer::Slow(id));
                self.recall(id, Recall::Reroutable);
            }
            if self.io.connections.get(id).is_some_and(|connection| connection.weight(tight) > limits.hard) {
                self.close_slow(id, if limits.hard < self.io.limits.hard { Mark::HardShare } else { Mark::Hard });
            }
        }
    }

    /// While all queues together hold too much: finds those of this reactor that hold more than their share. A
    /// queue that is full now was flushed in this turn, so its client does not read.
    fn relieve(&mut self) {
        if self.halted || !self.io.is_tight() || self.io.now < self.io.relieved + RELIEF {
            return;
        }
        let marks = self.io.marks();
        if self.io.now > self.io.relieved + COMPLAINT {
            let (bytes, connections) = (self.io.all_bytes(), self.io.share.all_connections(self.io.connections.len()));
            let share = marks.high_water;
            log::warn!("{bytes} bytes wait to be written to {connections} clients: none may hold more than {share}");
        }
        self.io.relieved = self.io.now;
        for id in self.io.connections.ids().collect::<Vec<_>>() {
            let Some(connection) = self.io.connections.get(id) else { continue };
            let weight = connection.weight(true);
            if weight > marks.high_water && (connection.over.is_none() || weight > marks.hard) {
                self.io.over.push(id);
                self.settle_over();
            }
        }
    }

    /// Takes back what the handler wants back in such a case.
    fn recall(&mut self, id: ConnId, how: Recall) {
        let Some(connection) = self.io.connections.get_mut(id) else { return };
        let queued = connection.queued();
        let wanted = |tag: &H::Tag| H::recallable(tag, how);
        let recalled = connection.outbox.as_mut().map_or_else(Vec::new, |outbox| outbox.recall(wanted));
        self.io.counts.queued.sub(queued - connection.queued());
        self.handler.recalled(&mut self.io, id, recalled);
        self.flush_one(id);
    }

    /// A socket was full: has it taken anything since?
    fn check_stalled(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        connection.stall_timer = false;
        if !connection.blocked || connection.over.is_some() || connection.recalled || connection.state != State::Open {
            return;
        }
        let progress = connection.outbox.as_ref().and_then(|outbox| outbox.progress).unwrap_or(io.now);
        let due = progress.max(self.resumed) + STALLED;
        if due > io.now {
            connection.stall_timer = true;
            io.timers.set(due, LoopTimer::Stalled(id));
        } else {
            connection.recalled = true;
            io.counts.slow.of(Slowness::Stalled).add(1);
            self.recall(id, Recall::Reroutable);
        }
    }

    /// Writes the queues that have got something, until no write has caused another message. A
    /// message for thousands is not written to all of them before anybody else has a turn.
    fn flush_dirty(&mut self) {
        let mut budget = FLUSHES;
        while !self.io.dirty.is_empty() && !self.halted {
            let mut dirty = std::mem::take(&mut self.io.dirty);
            for id in dirty.drain(..) {
                if self.halted {
                    self.io.dirty.push(id);
                    continue;
                }
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
            if self.halted {
                return;
            }
            let Some(id) = self.io.backlog.pop_front() else { return };
            self.flush_one(id);
            self.settle_over();
        }
    }

    /// Writes a connection's queue, as far as its socket takes it. If the handler may not act, it stays as it is
    /// and in the list of those that have got something.
    fn flush_one(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        if connection.pacing || connection.blocked || matches!(connection.state, State::Dead(_)) {
            return;
        }
        if !may_act(&mut self.halted, &mut self.handler) {
            return mark_dirty(connection, &mut io.dirty);
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
        let mut failed = false;
        if connection.armed != blocked {
            connection.armed = blocked;
            failed = io.registry.reregister(&mut connection.stream, Token(id.slot()), interest(blocked)).is_err();
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
                drained = connection.over.take().is_some() | std::mem::take(&mut connection.recalled);
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
            if self.io.connections.get(id).is_some() {
                self.handler.drained(&mut self.io, id);
            } else if let Some(connection) = self.io.departing(id) {
                // It is told where the connection goes.
                connection.recalled = true;
            }
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
            io.end(id);
        } else {
            set_close_by(connection, &mut io.timers, io.now + LINGER);
            mark_ready(connection, &mut io.ready);
        }
        let reason = CloseReason::Handler(reason);
        io.counts.note_closed(reason);
        self.handler.closed(io, id, reason, Vec::new());
    }

    /// Drops what was marked dead in this turn. It is the only place that frees a connection, so
    /// an event, letter or tag that was still on its way in this turn found it, or nobody.
    fn sweep(&mut self) {
        while !self.io.dead.is_empty() && self.may_act() {
            let Some(id) = self.io.dead.pop() else { return };
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
                self.io.counts.note_closed(reason);
                self.handler.closed(&mut self.io, id, reason, unwritten);
                self.settle_over();
            }
        }
    }

    /// Lets the handler end its turn. If that leads to anything, the next one follows at once, and so does its end.
    fn end_turn(&mut self) {
        if self.may_act() {
            self.handler.turn_ended(&mut self.io);
            self.has_gone_on = !self.io.over.is_empty();
            self.settle_over();
        }
    }
}

/// What a connection waits for.
fn interest(armed: bool) -> Interest {
    if armed { INPUT | Interest::WRITABLE } else { INPUT }
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
