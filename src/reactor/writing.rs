//! Reactor thread: how a loop writes, once a turn, what the turn has queued, and how it says goodbye.

use std::net::Shutdown;

use super::connection::{Connection, Life, PACE, Pace, StreamEnd};
use super::event_loop::Running;
use super::handler::Handler;
use super::id::ConnId;
use super::io::{LINGER, LoopTimer, set_close_by};
use super::outbox::WriteResult;
use super::pressure::{Pressure, STALLED};
use super::reason::CloseReason;

/// The number of connections whose queue is written in a turn, and as many of those that were left over:
/// together about a millisecond.
const FLUSHES: usize = 64;

impl<H: Handler> Running<H> {
    /// Writes the queues that have got something, until no write has caused another message. A
    /// message for thousands is not written to all of them before other connections have a turn.
    pub(super) fn flush_dirty(&mut self) {
        let mut budget = FLUSHES;
        while !self.io.dirty.is_empty() && !self.halted {
            let mut dirty = std::mem::take(&mut self.io.dirty);
            for id in dirty.drain(..) {
                if self.halted {
                    self.io.dirty.push(id);
                    continue;
                }
                // Also of one that must wait: if it gets something more, it goes first again.
                if let Some(connection) = self.io.connections.get_mut(id) {
                    connection.listed.dirty = false;
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
    pub(super) fn flush_backlog(&mut self) {
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
    pub(super) fn flush_one(&mut self, id: ConnId) {
        if !self.io.connections.get(id).is_some_and(|connection| connection.may_be_written()) {
            return;
        }
        let may_act = self.may_act();
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        if !may_act {
            return connection.mark_dirty(&mut io.dirty);
        }
        let queued = connection.output.queued();
        let mut tags = std::mem::take(&mut self.tags);
        let result = connection.write(&mut tags);
        let written = queued - connection.output.queued();
        io.counts.queued.sub(written);
        io.counts.sent.add(written as u64);
        if let Err(error) = &result {
            log::debug!("{id}: {error}");
        }
        self.note_written(id, matches!(result, Ok(WriteResult::Blocked)), written > 0);
        let is_drained = matches!(result, Ok(WriteResult::Empty)) && self.note_empty(id);
        if result.is_err() {
            self.io.kill(id, CloseReason::SocketError);
        }
        for tag in tags.drain(..) {
            self.handler.written(&mut self.io, id, tag);
        }
        self.tags = tags;
        if is_drained {
            self.tell_drained(id);
        }
        self.say_goodbye(id);
    }

    /// Sets what goes on with a connection's queue: an event, a timer, or both.
    fn note_written(&mut self, id: ConnId, blocked: bool, moved: bool) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        let output = &mut connection.output;
        output.blocked = blocked;
        if let Some(outbox) = &mut output.outbox
            && (moved || (blocked && !output.armed))
        {
            outbox.progress = Some(io.now);
        }
        if output.pace == Pace::Ready && moved {
            output.pace = Pace::Waiting;
            io.timers.set(io.now + PACE, LoopTimer::Pace(id));
        }
        if output.waits() && !output.stall_timer && connection.pressure.watches_for_a_stall() {
            output.stall_timer = true;
            io.timers.set(output.stalls_since().unwrap_or(io.now) + STALLED, LoopTimer::Stalled(id));
        }
        if connection.arm(&io.registry).is_err() {
            io.kill(id, CloseReason::SocketError);
        }
    }

    /// A connection's queue is empty. True: the handler waits for that.
    fn note_empty(&mut self, id: ConnId) -> bool {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return false };
        let outbox = connection.output.outbox.take();
        let is_drained = connection.pressure.drained();
        if std::mem::take(&mut connection.input.waits_for_output) || is_drained {
            connection.mark_ready(&mut io.ready);
        }
        if let Some(outbox) = outbox {
            io.put_back(outbox);
        }
        is_drained
    }

    fn tell_drained(&mut self, id: ConnId) {
        if self.io.connections.get(id).is_some() {
            self.handler.drained(&mut self.io, id);
        } else if let Some(connection) = self.io.departing(id) {
            // The handler is told where the connection goes.
            connection.pressure = Pressure::Recalled;
        }
    }

    /// A paced connection may send its next message.
    pub(super) fn end_pace(&mut self, id: ConnId) {
        if let Some(connection) = self.io.connections.get_mut(id)
            && connection.output.pace == Pace::Waiting
        {
            connection.output.pace = Pace::Ready;
            connection.mark_dirty(&mut self.io.dirty);
        }
    }

    /// A connection that is being closed has been flushed: tells the handler, shuts our side, and waits for
    /// the client's.
    fn say_goodbye(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        let Life::Flushing(reason) = connection.life else { return };
        if connection.output.outbox.is_some() {
            return;
        }
        shut(connection);
        if connection.input.end == StreamEnd::NotSeen {
            set_close_by(connection, &mut io.timers, io.now + LINGER);
            connection.mark_ready(&mut io.ready);
        } else {
            io.end(id);
        }
        let reason = CloseReason::Handler(reason);
        io.counts.note_closed(reason);
        self.handler.closed(io, id, reason, Vec::new());
    }

    /// The time of a connection that is being closed may be over.
    pub(super) fn check_linger(&mut self, id: ConnId) {
        // A goodbye has begun its time anew.
        let close_by = self.io.connections.get(id).and_then(|connection| connection.close_by);
        if close_by.is_some_and(|at| at <= self.io.now) && self.has_had_from_us(LINGER, LoopTimer::Linger(id)) {
            self.io.end(id);
        }
    }
}

/// Shuts our side.
fn shut<H: Handler>(connection: &mut Connection<H>) {
    connection.life = Life::Lingering;
    // It fails if the client has gone already; reading will tell.
    let _ = connection.stream.shutdown(Shutdown::Write);
}
