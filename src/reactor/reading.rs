//! Reactor thread: how a loop reads. Readiness is remembered, shared out, and used up.

use std::io::{self, Read};

use mio::event::Event;

use super::connection::{HangUp, Life, StreamEnd};
use super::event_loop::{READ_BUDGET, Running};
use super::handler::{Handler, Taken};
use super::id::ConnId;
use super::io::CONGESTED;
use super::mailbox::WAKER;
use super::reason::CloseReason;

/// What is to happen to a connection's input next.
enum Next {
    /// The handler looks at what it has not seen yet.
    Handle,
    /// The socket is read.
    Read,
    /// The handler is told that the client has finished sending.
    End,
    /// The client's last bytes are dropped, since the connection is closed on our side.
    Drop,
    /// The handler is told of a hang-up, since it has input wait.
    TellHangUp(HangUp),
    /// Nothing for now.
    Wait,
}

impl<H: Handler> Running<H> {
    /// Notes what the events say, without acting on it.
    pub(super) fn note_readiness(&mut self) {
        let io = &mut self.io;
        for event in &self.events {
            if event.token() == WAKER {
                io.counts.wakes.add(1);
                continue; // the mailbox is looked into every turn
            }
            let Some(id) = io.connections.owner(event.token().0) else { continue };
            let Some(connection) = io.connections.get_mut(id) else { continue };
            if wants_read(event) {
                let input = &mut connection.input;
                input.readable = true;
                input.short_reads_lie |= event.is_read_closed() || event.is_error() || event.is_priority();
                input.hang_up = input.hang_up.max(hang_up(event));
                connection.mark_ready(&mut io.ready);
            }
            // Error and hang-up bits only mean "go and look": the system call reports.
            if event.is_writable() || event.is_error() {
                connection.output.blocked = false;
                connection.mark_dirty(&mut io.dirty);
            }
        }
    }

    /// Lets every connection in the ready list have its share of this turn.
    pub(super) fn read_ready(&mut self) {
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
        connection.listed.ready = false;
        let soft_mark = self.io.marks().soft;
        let mut budget = READ_BUDGET;
        loop {
            let goes_on = match self.next_input(id, soft_mark) {
                Next::Wait => return,
                Next::Drop => return self.drop_input(id),
                Next::Handle => !self.handle_input(id, 0),
                Next::Read if budget == 0 => false,
                Next::Read => self.read_socket(id, &mut budget),
                Next::TellHangUp(how) => {
                    if self.may_act() {
                        return self.handler.hung_up(&mut self.io, id, how);
                    }
                    false
                }
                Next::End => {
                    if self.may_act() {
                        return self.tell_end(id);
                    }
                    false
                }
            };
            if !goes_on {
                return self.requeue(id);
            }
        }
    }

    fn next_input(&mut self, id: ConnId, soft_mark: usize) -> Next {
        let Some(connection) = self.io.connections.get_mut(id) else { return Next::Wait };
        let queued = connection.output.queued();
        let input = &mut connection.input;
        match connection.life {
            Life::Open => {}
            Life::Lingering => return Next::Drop,
            Life::Flushing(_) | Life::Dead(_) => return Next::Wait,
        }
        if input.paused {
            // Nothing is read that would show a hang-up, for as long as this takes.
            return input.hang_up.map_or(Next::Wait, Next::TellHangUp);
        }
        if connection.pressure.is_over() {
            return Next::Wait;
        }
        // A client that asks for more than it reads must not fill the memory with replies.
        if queued > soft_mark {
            input.waits_for_output = true;
            return Next::Wait;
        }
        if input.unhandled {
            return Next::Handle;
        }
        match input.end {
            StreamEnd::Read => Next::End,
            StreamEnd::Told => Next::Wait,
            StreamEnd::NotSeen if input.readable => Next::Read,
            StreamEnd::NotSeen => Next::Wait,
        }
    }

    /// Tells the handler that the client has finished sending.
    fn tell_end(&mut self, id: ConnId) {
        if let Some(connection) = self.io.connections.get_mut(id) {
            connection.input.end = StreamEnd::Told;
            let rest = connection.input.unconsumed.len();
            self.handler.ended(&mut self.io, id, rest);
        }
    }

    /// Reads once, and has what came handled. False: the rest waits for another turn.
    fn read_socket(&mut self, id: ConnId, budget: &mut usize) -> bool {
        let Some(connection) = self.io.connections.get_mut(id) else { return true };
        let input = &mut connection.input;
        let room = self.scratch.len().min(*budget);
        match connection.stream.read(&mut self.scratch[..room]) {
            Ok(0) => {
                input.end = StreamEnd::Read;
                input.readable = false;
            }
            Ok(n) => {
                *budget -= n;
                self.io.counts.received.add(n as u64);
                // A short read has emptied the socket, unless the end of the stream has
                // arrived already (its event is this one, and there will be no other) or the
                // read has stopped before an urgent byte.
                if n < room && !input.short_reads_lie {
                    input.readable = false;
                }
                return !self.handle_input(id, n);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => input.readable = false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                log::debug!("{id}: {error}");
                self.io.kill(id, CloseReason::SocketError);
            }
        }
        true
    }

    fn requeue(&mut self, id: ConnId) {
        if let Some(connection) = self.io.connections.get_mut(id) {
            connection.mark_ready(&mut self.io.ready);
        }
    }

    /// Gives the handler what was left over plus the first `fresh` bytes of the scratch buffer.
    /// True: it goes on in another turn, for fairness or since the handler may not act.
    fn handle_input(&mut self, id: ConnId, fresh: usize) -> bool {
        let may_act = self.may_act();
        let Some(connection) = self.io.connections.get_mut(id) else { return false };
        connection.input.unhandled = false;
        let mut kept = std::mem::take(&mut connection.input.unconsumed);
        let input = if kept.is_empty() {
            &self.scratch[..fresh]
        } else {
            kept.extend_from_slice(&self.scratch[..fresh]);
            &kept[..]
        };
        let taken = if may_act { self.handler.input(&mut self.io, id, input) } else { Taken { bytes: 0, more: true } };
        let rest = input.len() - taken.bytes.min(input.len());
        if rest == 0 {
            return taken.more;
        }
        // It may belong to another reactor by now, whose handler has not seen the rest.
        let (connection, has_moved) = match self.io.connections.get_mut(id) {
            Some(connection) => (&mut **connection, false),
            None => match self.io.departing(id) {
                Some(connection) => (connection, true),
                None => return false,
            },
        };
        if connection.life == Life::Open {
            let to_keep = &mut connection.input;
            // Paused or out of turn: it has not seen all of the rest yet.
            to_keep.unhandled = to_keep.paused || taken.more || has_moved;
            if kept.is_empty() {
                to_keep.unconsumed = self.scratch[fresh - rest..fresh].to_vec();
            } else {
                kept.drain(..taken.bytes);
                to_keep.unconsumed = kept;
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
}

/// What an event says of the client's side, while ours is open.
fn hang_up(event: &Event) -> Option<HangUp> {
    // Both sides are shut, and ours was not by us: a reset, or nothing was acknowledged for too long.
    if event.is_error() || event.is_write_closed() {
        Some(HangUp::Gone)
    } else {
        event.is_read_closed().then_some(HangUp::HalfClosed)
    }
}

/// Hang-ups and errors show themselves to a read.
fn wants_read(event: &Event) -> bool {
    event.is_readable() || event.is_read_closed() || event.is_error() || event.is_priority()
}
