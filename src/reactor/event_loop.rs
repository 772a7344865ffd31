//! Reactor thread: a Poll, its connections, timers and buffers, and the turn in which it serves them.
//!
//! An [`EventLoop`] is what another thread prepares. What it makes of itself when it runs, a [`Running`], cannot leave
//! its thread, since an [`Io`] cannot.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Poll, Registry};

use super::budget::{Budget, Share};
use super::connection::Connection;
use super::counts::ReactorCounts;
use super::handler::Handler;
use super::id::{ConnIds, ListenerId};
use super::io::{Io, LoopTimer};
use super::mailbox::{Mail, Mailbox, Moving};
use super::pressure::Limits;
use super::reason::CloseReason;
use super::slot::ConnectionSlot;
use crate::clock;

/// What one connection may read in a turn before the others have theirs, in bytes.
pub(super) const READ_BUDGET: usize = 64 * 1024;
/// The longest sleep. Every wait has its own wake; this bounds the damage if one is missing.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// The longest sleep while the handler may not act.
const HELD: Duration = Duration::from_millis(50);
/// How long the last clients may take to say goodbye when the process ends.
const EXIT_LINGER: Duration = Duration::from_millis(500);
/// How often it is noted that the loop has taken a turn: a clock costs as much as some letters.
const BEAT: Duration = Duration::from_millis(50);
/// How soon a reactor that waits for others looks again: for a congested mailbox to be emptied, or at the end for
/// a connection that moves to arrive.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// A sub-reactor's loop before it runs: whatever thread makes it, it is sent to its own.
pub struct EventLoop<H: Handler> {
    poll: Poll,
    registry: Registry,
    ids: ConnIds,
    mailboxes: Arc<[Mailbox<Mail<H>>]>,
    limits: Limits,
    budget: Arc<Budget>,
    handler: H,
    counts: Arc<ReactorCounts>,
    /// See [`EventLoop::beat`].
    beat: Arc<AtomicU64>,
}

impl<H: Handler> EventLoop<H> {
    /// A loop on `poll`, which the mailbox at `index` wakes. All reactors that have `limits.total` in common
    /// share one `budget`.
    ///
    /// # Errors
    /// The system has no more descriptors, or `index` is 65,536 or more.
    pub fn new(
        index: usize,
        poll: Poll,
        mailboxes: Arc<[Mailbox<Mail<H>>]>,
        limits: Limits,
        budget: Arc<Budget>,
        handler: H,
    ) -> io::Result<Self> {
        let reactor = u16::try_from(index).map_err(|_| io::Error::other("more than 65,536 reactors"))?;
        Ok(EventLoop {
            registry: poll.registry().try_clone()?,
            poll,
            ids: ConnIds::new(reactor),
            mailboxes,
            limits,
            budget,
            handler,
            counts: Arc::new(ReactorCounts::new::<H::Reason>()),
            beat: Arc::new(AtomicU64::new(clock::since_boot().as_millis() as u64)),
        })
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<ReactorCounts> {
        Arc::clone(&self.counts)
    }

    /// When the loop last completed a turn, in milliseconds since the machine was booted, and up to 50 ms less;
    /// at first, when it was made. A loop that is not stuck completes one a second at least, also while its
    /// handler may not act.
    pub fn beat(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.beat)
    }

    /// Runs until [`Mail::Exit`] or [`Mail::Abandon`], in the thread that calls it, which is the reactor's from then
    /// on.
    ///
    /// # Errors
    /// The system cannot wait for events.
    pub fn run(self) -> io::Result<()> {
        let share = Share::new(self.budget);
        let io = Io::new(self.registry, self.ids, self.mailboxes, self.limits, share, self.counts);
        let mut running = Running::new(self.poll, io, self.handler, self.beat);
        while !running.has_ended() {
            running.turn()?;
        }
        Ok(())
    }
}

/// A loop that runs.
pub(super) struct Running<H: Handler> {
    poll: Poll,
    pub(super) events: Events,
    pub(super) io: Io<H>,
    pub(super) handler: H,
    /// What a read goes into before it is known whether it must be kept.
    pub(super) scratch: Box<[u8]>,
    /// What has come, and what of it had to wait since the handler might not act.
    mail: Vec<Mail<H>>,
    /// Empty between two writes; here for its capacity.
    pub(super) tags: Vec<H::Tag>,
    /// In the last turn.
    had_events: bool,
    /// The handler might not act, so the rest of this turn waits.
    pub(super) halted: bool,
    /// When it could act again, or the loop began to run: no client is to blame for what was not written before.
    pub(super) resumed: Instant,
    /// Something was handled after the last turn had ended for the handler.
    has_gone_on: bool,
    /// All queues are looked at no sooner than some time after this, however much they hold.
    pub(super) relieved: Instant,
    /// The loop ends at this moment, or earlier when all connections have said goodbye.
    exit_by: Option<Instant>,
    /// The loop ends now.
    abandoned: bool,
    /// See [`EventLoop::beat`].
    beat: Arc<AtomicU64>,
    /// The turn in which the beat was noted last.
    noted: Instant,
}

impl<H: Handler> Running<H> {
    fn new(poll: Poll, io: Io<H>, handler: H, beat: Arc<AtomicU64>) -> Self {
        let now = io.now;
        Running {
            poll,
            events: Events::with_capacity(1024),
            io,
            handler,
            scratch: vec![0; READ_BUDGET].into_boxed_slice(),
            mail: Vec::new(),
            tags: Vec::new(),
            had_events: false,
            halted: false,
            resumed: now,
            has_gone_on: false,
            relieved: now,
            exit_by: None,
            abandoned: false,
            beat,
            noted: now,
        }
    }

    fn has_ended(&self) -> bool {
        let no_more_come = || self.io.connections.is_empty() && !self.io.share.is_one_moving();
        self.abandoned || self.exit_by.is_some_and(|by| by <= self.io.now || no_more_come())
    }

    /// One turn: events, letters, input, timers, then every flush, then the sweep.
    fn turn(&mut self) -> io::Result<()> {
        let mut sleep = self.sleep();
        // A loop that has just had something to do lets the others run, and looks once more before it sleeps:
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

    /// How long the next turn may wait for events.
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
                Mail::Connection(stream, peer, listener, slot) => self.adopt(stream, peer, listener, slot),
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

    /// Asks whether the handler may act, unless it might not before in this turn.
    pub(super) fn may_act(&mut self) -> bool {
        self.halted = self.halted || !self.handler.may_act();
        !self.halted
    }

    /// Takes an accepted socket over.
    fn adopt(&mut self, stream: TcpStream, peer: SocketAddr, listener: ListenerId, slot: ConnectionSlot) {
        let io = &mut self.io;
        let id = io.ids.allocate();
        let mut connection = Box::new(Connection::new(id, stream, slot));
        if let Err(error) = connection.register(&io.registry) {
            log::warn!("{peer}: cannot be watched: {error}");
            io.ids.free(id);
            return;
        }
        io.connections.insert(id, connection);
        io.counts.accepted.add(1);
        io.counts.connections.set(io.connections.len());
        self.handler.opened(io, id, peer, listener);
    }

    /// Takes over a connection that another reactor gave away.
    fn take_in(&mut self, moving: Moving<H>) {
        let Moving { connection, moved, in_flight } = moving;
        let id = self.io.ids.allocate();
        log::debug!("{} is now {id}", connection.id);
        let is_watched = self.io.adopt_moved(connection, id);
        drop(in_flight);
        self.handler.arrived(&mut self.io, id, moved);
        if !is_watched {
            self.io.kill(id, CloseReason::SocketError);
        }
    }

    fn fire_timers(&mut self) {
        while self.io.timers.next().is_some_and(|at| at <= self.io.now) && self.may_act() {
            let Some(timer) = self.io.timers.pop_due(self.io.now) else { return };
            match timer {
                LoopTimer::Handler(timer) => self.handler.timer(&mut self.io, timer),
                LoopTimer::Linger(id) => self.check_linger(id),
                LoopTimer::Slow(id) => self.check_slow(id),
                LoopTimer::Stalled(id) => self.check_stalled(id),
                LoopTimer::Pace(id) => self.end_pace(id),
            }
            self.settle_over();
        }
    }

    /// Drops what was marked dead in this turn. It is the only place that frees a connection, so
    /// an event, letter or tag that was still on its way in this turn found it, or none.
    fn sweep(&mut self) {
        while !self.io.dead.is_empty() && self.may_act() {
            let Some(id) = self.io.dead.pop() else { return };
            let Some((reason, unwritten)) = self.io.free(id) else { continue };
            if let Some(reason) = reason {
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

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use super::*;
    use crate::reactor::{ConnId, Taken, Types};

    struct Nothing;

    impl Types for Nothing {
        type Letter = ();
        type Tag = ();
        type Timer = ();
        type Moved = ();
        type Reason = ();
    }

    impl Handler for Nothing {
        fn input(&mut self, _io: &mut Io<Self>, _conn: ConnId, input: &[u8]) -> Taken {
            Taken::all(input)
        }

        fn ended(&mut self, _io: &mut Io<Self>, _conn: ConnId, _rest: usize) {}
    }

    /// What the compiler knows of a type: the constant of the trait, unless there is one of its own.
    struct Known<T>(PhantomData<T>);

    trait Unless {
        const IS_SEND: bool = false;
    }

    impl<T> Unless for Known<T> {}

    impl<T: Send> Known<T> {
        const IS_SEND: bool = true;
    }

    #[test]
    fn a_loop_is_sent_to_its_thread_and_what_runs_there_cannot_leave_it() {
        let sent = [Known::<EventLoop<Nothing>>::IS_SEND, Known::<Mail<Nothing>>::IS_SEND];
        let stay =
            [Known::<Io<Nothing>>::IS_SEND, Known::<&mut Io<Nothing>>::IS_SEND, Known::<Running<Nothing>>::IS_SEND];
        assert_eq!((sent, stay), ([true; 2], [false; 3]));
    }
}
