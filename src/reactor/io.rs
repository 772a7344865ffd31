//! Reactor thread: what a handler may do with its reactor's connections.
//!
//! An [`Io`] is made in that thread and cannot be sent to another one, which the compiler checks. So a function that
//! takes one runs in the thread that owns the connections.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Registry;

use super::budget::Share;
use super::connection::{Connection, Life, PACE, Pace};
use super::counts::ReactorCounts;
use super::id::{ConnId, ConnIds, ConnMap};
use super::mailbox::{Mail, Mailbox, Moving};
use super::outbox::{Message, Outbox, SendOptions, Unwritten};
use super::pressure::{Anew, Limits, Marks, SLOW_CONSUMER, STALLED};
use super::reason::CloseReason;
use super::timers::Timers;
use super::types::{Recall, Types};

/// How long a connection that is being closed may take to be flushed, and then again to say goodbye.
pub(super) const LINGER: Duration = Duration::from_secs(5);
/// Outboxes that are kept for the next connections that have something to write.
const SPARE_OUTBOXES: usize = 64;
/// While some mailbox holds more letters than this, the connections that feed it are not read.
pub(super) const CONGESTED: usize = 64 * 1024;

/// What the loop's timers are for.
pub(super) enum LoopTimer<K> {
    Handler(K),
    /// A connection that is being closed has had its time.
    Linger(ConnId),
    /// A connection was above the soft mark at some moment.
    Slow(ConnId),
    /// A connection's socket was full at some moment.
    Stalled(ConnId),
    /// A paced connection may send its next message.
    Pace(ConnId),
}

/// The loop's side that a handler may use.
pub struct Io<H: Types> {
    pub(super) now: Instant,
    pub(super) index: usize,
    pub(super) registry: Registry,
    pub(super) ids: ConnIds,
    pub(super) connections: ConnMap<Box<Connection<H>>>,
    pub(super) limits: Limits,
    pub(super) share: Share,
    /// What the handler holds besides the queues, in bytes.
    pub(super) held: usize,
    pub(super) timers: Timers<LoopTimer<H::Timer>>,
    pub(super) mailboxes: Arc<[Mailbox<Mail<H>>]>,
    /// Letters of this turn, by reactor.
    pub(super) outgoing: Vec<Vec<Mail<H>>>,
    /// Connections with input to be read or handled.
    pub(super) ready: VecDeque<ConnId>,
    /// Connections with something to flush.
    pub(super) dirty: Vec<ConnId>,
    /// Connections that were too many to be flushed in the turn in which they had something to flush.
    pub(super) backlog: VecDeque<ConnId>,
    /// Connections that have just passed a mark, or whose queue is to be recalled.
    pub(super) over: Vec<ConnId>,
    /// Connections to be swept.
    pub(super) dead: Vec<ConnId>,
    /// Boxed as they are in their connections, so that an idle connection pays for a pointer only.
    #[expect(clippy::vec_box)]
    spare: Vec<Box<Outbox<H::Tag>>>,
    /// Some mailbox was filled faster than its reactor empties it.
    pub(super) congested: bool,
    pub(super) counts: Arc<ReactorCounts>,
    /// Makes it neither `Send` nor `Sync`.
    _own_thread: PhantomData<*const ()>,
}

impl<H: Types> Io<H> {
    /// To be called in the reactor's thread.
    pub(super) fn new(
        registry: Registry,
        ids: ConnIds,
        mailboxes: Arc<[Mailbox<Mail<H>>]>,
        limits: Limits,
        share: Share,
        counts: Arc<ReactorCounts>,
    ) -> Self {
        Io {
            now: Instant::now(),
            index: ids.reactor(),
            registry,
            ids,
            connections: ConnMap::default(),
            limits,
            share,
            held: 0,
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
            counts,
            _own_thread: PhantomData,
        }
    }

    /// The time of this turn.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// This reactor's index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many reactors there are, this one included.
    pub fn reactors(&self) -> usize {
        self.mailboxes.len()
    }

    /// The number of connections that this reactor owns.
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

    /// What this reactor holds, in bytes.
    fn own_bytes(&self) -> usize {
        self.buffered().saturating_add(self.held)
    }

    /// What all reactors hold, in bytes.
    pub(super) fn all_bytes(&self) -> usize {
        self.share.all_bytes(self.own_bytes())
    }

    /// The number of connections of all reactors.
    pub(super) fn all_connections(&self) -> usize {
        self.share.all_connections(self.connections.len())
    }

    /// Whether all reactors together hold more than they may.
    pub fn is_tight(&self) -> bool {
        self.all_bytes() > self.limits.total
    }

    /// The marks of a queue as they are now.
    pub(super) fn marks(&self) -> Marks {
        Marks::new(self.limits, self.all_bytes(), || self.all_connections())
    }

    /// Tells the other reactors what this one holds.
    pub(super) fn publish(&mut self) {
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
        let output = &mut connection.output;
        let outbox = output.outbox.get_or_insert_with(|| self.spare.pop().unwrap_or_default());
        let own_write = message.options.own_write || output.pace != Pace::Unpaced;
        self.counts.queued.add(message.len());
        if message.tag.is_some() {
            match connection.pressure.queued_anew() {
                Anew::Watch if output.blocked && !output.stall_timer => {
                    output.stall_timer = true;
                    self.timers.set(self.now + STALLED, LoopTimer::Stalled(conn));
                }
                // A dead one hands it back when it is swept.
                Anew::Recall if connection.life == Life::Open => {
                    connection.to_recall = connection.to_recall.max(Some(Recall::Reroutable));
                    self.over.push(conn);
                }
                Anew::Watch | Anew::Recall | Anew::Nothing => {}
            }
        }
        outbox.push(Message { options: SendOptions { own_write, ..message.options }, ..message }, self.now);
        if connection.pressure.is_news(outbox.counted(), self.limits.high_water, self.limits.hard) {
            self.over.push(conn);
        }
        connection.mark_dirty(&mut self.dirty);
        true
    }

    /// Stops handing input to the handler; the socket is not read either, so the client feels it.
    pub fn pause(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.input.paused = true;
        }
    }

    /// Input goes on, with what was left unconsumed.
    pub fn resume(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            connection.input.paused = false;
            connection.mark_ready(&mut self.ready);
        }
    }

    /// Flushes what is queued, then closes.
    pub fn close(&mut self, conn: ConnId, reason: H::Reason) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.life == Life::Open
        {
            connection.life = Life::Flushing(reason);
            connection.input.unconsumed = Vec::new();
            connection.mark_dirty(&mut self.dirty);
            set_close_by(connection, &mut self.timers, self.now + LINGER);
        }
    }

    /// From now on every message to this connection leaves in a write of its own, 10 ms apart.
    pub fn pace(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.output.pace == Pace::Unpaced
        {
            connection.output.pace = Pace::Ready;
        }
    }

    /// Messages to this connection are not spaced out any more: what is queued leaves at once, in order.
    pub fn unpace(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn)
            && connection.output.pace != Pace::Unpaced
        {
            connection.output.pace = Pace::Unpaced;
            if let Some(outbox) = &mut connection.output.outbox {
                outbox.join();
            }
            connection.mark_dirty(&mut self.dirty);
        }
    }

    /// Closes at once. What is queued is not written; [`Handler::closed`](super::Handler::closed) gets those messages
    /// that are tagged, including the one that was partly written, and what is sent until then. A connection that was
    /// being closed keeps its reason.
    pub fn abort(&mut self, conn: ConnId, reason: H::Reason) {
        self.kill(conn, CloseReason::Handler(reason));
    }

    /// Has [`Handler::recalled`](super::Handler::recalled) called with what can be taken back from the connection's
    /// queue, before anything else is handled, and [`Handler::drained`](super::Handler::drained) once the rest is
    /// written.
    pub fn recall(&mut self, conn: ConnId, how: Recall) {
        if let Some(connection) = self.connections.get_mut(conn)
            && !connection.is_over_for_the_handler()
        {
            connection.to_recall = connection.to_recall.max(Some(how));
            self.over.push(conn);
        }
    }

    /// Gives a connection to another reactor (to this one, too), whose handler is told by
    /// [`Handler::arrived`](super::Handler::arrived), with `moved` and a new id. It gets there with all that it has:
    /// input that was not read or not consumed, what is queued, its pace, its pauses, its end if it is being closed or
    /// has died. Letters that are posted to that reactor afterwards come after it.
    ///
    /// The handler has forgotten the connection, so that it hears nothing about it here any more, except for tags
    /// that this turn's write has covered already. An old id that is still around finds no connection.
    /// Nothing happens, and `moved` is dropped, if the connection is gone, or
    /// [`Handler::closed`](super::Handler::closed) was called for it.
    pub fn move_to(&mut self, conn: ConnId, reactor: usize, moved: H::Moved) {
        if self.connections.get(conn).is_none_or(|connection| connection.is_over_for_the_handler()) {
            return;
        }
        let Some(mut connection) = self.connections.remove(conn) else { return };
        // All events of this turn are noted by now, so the slot can have a new owner.
        let _ = self.registry.deregister(&mut connection.stream);
        self.ids.free(conn);
        self.counts.connections.set(self.connections.len());
        self.counts.queued.sub(connection.output.queued());
        let in_flight = self.share.departure();
        self.outgoing[reactor].push(Mail::Moved(Box::new(Moving { connection, moved, in_flight })));
    }

    /// A connection that has been given away in this turn.
    pub(super) fn departing(&mut self, conn: ConnId) -> Option<&mut Connection<H>> {
        self.outgoing.iter_mut().flatten().find_map(|mail| match mail {
            Mail::Moved(moving) if moving.connection.id == conn => Some(&mut *moving.connection),
            _ => None,
        })
    }

    /// Takes a connection from another reactor into the lists and timers of this one, which named its old id there.
    /// False: this reactor's Poll cannot watch it.
    pub(super) fn adopt_moved(&mut self, mut connection: Box<Connection<H>>, id: ConnId) -> bool {
        connection.id = id;
        let registered = connection.register(&self.registry);
        if let Err(error) = &registered {
            log::warn!("{id} cannot be watched: {error}");
        }
        connection.listed = Default::default();
        connection.mark_ready(&mut self.ready);
        connection.mark_dirty(&mut self.dirty);
        if connection.to_recall.is_some() || connection.output.counted() > self.limits.high_water {
            self.over.push(id);
        }
        if matches!(connection.life, Life::Dead(_)) {
            self.dead.push(id);
        }
        let output = &connection.output;
        if output.pace == Pace::Waiting {
            self.timers.set(self.now + PACE, LoopTimer::Pace(id));
        }
        if output.stall_timer {
            self.timers.set(output.stalls_since().unwrap_or(self.now) + STALLED, LoopTimer::Stalled(id));
        }
        if connection.pressure.is_over() {
            self.timers.set(output.over_since().unwrap_or(self.now) + SLOW_CONSUMER, LoopTimer::Slow(id));
        }
        if let Some(at) = connection.close_by {
            self.timers.set(at, LoopTimer::Linger(id));
        }
        self.counts.queued.add(output.queued());
        self.connections.insert(id, connection);
        self.counts.connections.set(self.connections.len());
        registered.is_ok()
    }

    /// Has [`Handler::timer`](super::Handler::timer) called at `at` or a little later.
    pub fn set_timer(&mut self, at: Instant, timer: H::Timer) {
        self.timers.set(at, LoopTimer::Handler(timer));
    }

    /// Sends a letter to a reactor, itself included; it is posted at the end of the turn.
    pub fn post(&mut self, reactor: usize, letter: H::Letter) {
        self.outgoing[reactor].push(Mail::Letter(letter));
    }

    /// Ends a connection. One that was being closed keeps its reason: it says more than how that went.
    pub(super) fn kill(&mut self, conn: ConnId, reason: CloseReason<H::Reason>) {
        if let Some(connection) = self.connections.get_mut(conn) {
            if connection.life == Life::Open {
                connection.life = Life::Dead(Some(reason));
                self.dead.push(conn);
            } else {
                self.end(conn);
            }
        }
    }

    /// Ends a connection that is being closed.
    pub(super) fn end(&mut self, conn: ConnId) {
        if let Some(connection) = self.connections.get_mut(conn) {
            let reason = match connection.life {
                Life::Flushing(reason) => Some(CloseReason::Handler(reason)),
                Life::Lingering => None,
                Life::Open | Life::Dead(_) => return,
            };
            connection.life = Life::Dead(reason);
            self.dead.push(conn);
        }
    }

    /// Frees a connection that is dead: why, and what of it was not written, for the handler.
    #[expect(clippy::type_complexity)]
    pub(super) fn free(&mut self, conn: ConnId) -> Option<(Option<CloseReason<H::Reason>>, Vec<Unwritten<H::Tag>>)> {
        let mut connection = self.connections.remove(conn)?;
        let _ = self.registry.deregister(&mut connection.stream);
        self.ids.free(conn);
        self.counts.connections.set(self.connections.len());
        self.counts.queued.sub(connection.output.queued());
        let unwritten = connection.output.outbox.take().map_or_else(Vec::new, |mut outbox| outbox.recall(|_| true));
        let reason = if let Life::Dead(reason) = connection.life { reason } else { None };
        Some((reason, unwritten))
    }

    /// Gives an emptied outbox to the next connection.
    pub(super) fn put_back(&mut self, mut outbox: Box<Outbox<H::Tag>>) {
        if self.spare.len() < SPARE_OUTBOXES {
            outbox.shrink();
            self.spare.push(outbox);
        }
    }

    /// Posts this turn's letters, with at most one wake for each reactor.
    pub(super) fn post_outgoing(&mut self) {
        for (mailbox, letters) in self.mailboxes.iter().zip(&mut self.outgoing) {
            if !letters.is_empty() {
                self.congested |= mailbox.post_all(letters) > CONGESTED;
            }
        }
    }
}

/// Gives a connection that is being closed until `at`.
pub(super) fn set_close_by<H: Types>(
    connection: &mut Connection<H>,
    timers: &mut Timers<LoopTimer<H::Timer>>,
    at: Instant,
) {
    connection.close_by = Some(at);
    timers.set(at, LoopTimer::Linger(connection.id));
}
