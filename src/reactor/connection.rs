//! Reactor thread: one client's socket, and what its loop must remember about it.
//!
//! A connection that moves to another reactor is a letter, so that it belongs to one thread at a time.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::id::ConnId;
use super::outbox::{Outbox, WriteResult};
use super::pressure::Pressure;
use super::reason::CloseReason;
use super::slot::ConnectionSlot;
use super::types::{Recall, Types};

/// The time between two messages to a paced connection: longer than a client takes to come back to `recv`.
pub(super) const PACE: Duration = Duration::from_millis(10);

/// What every connection waits for: input, and the news of urgent bytes, at which a read stops short.
const INPUT: Interest = Interest::READABLE.add(Interest::PRIORITY);

/// What has become of a client's side of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HangUp {
    /// It has finished sending. It may still read; or it has closed, which looks the same until
    /// something is sent to it.
    HalfClosed,
    /// It was reset, or has timed out: nothing reaches it any more.
    Gone,
}

/// Where a connection stands in its life. It only ever goes down this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life<R> {
    Open,
    /// The handler closes it: what is queued is flushed, nothing more is read.
    Flushing(R),
    /// Our side is shut; the client's last bytes are read and dropped, since closing a socket
    /// with unread input sends a reset, which can destroy the reply on its way.
    Lingering,
    /// To be swept at the end of the turn. The handler is told of it if there is a reason.
    Dead(Option<CloseReason<R>>),
}

/// How far the end of a client's stream has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// More may come.
    NotSeen,
    /// A read has returned it.
    Read,
    /// The handler was told.
    Told,
}

/// What is read from a client.
pub(super) struct Input {
    /// The kernel may have input: an event said so and no read has shown otherwise.
    pub readable: bool,
    /// An event said that the client has finished sending, or has sent an urgent byte: a short read
    /// is not the last one.
    pub short_reads_lie: bool,
    /// What an event has said of the client's side.
    pub hang_up: Option<HangUp>,
    pub end: StreamEnd,
    /// The handler wants no input for now.
    pub paused: bool,
    /// `unconsumed` holds bytes that the handler has not looked at since it stopped.
    pub unhandled: bool,
    /// No input is read until all output is written, whatever counts towards a mark: too many replies are queued.
    pub waits_for_output: bool,
    /// Input that the handler has not consumed: the head of an object, or what waits behind a
    /// login. Empty and without memory while nothing is pending.
    pub unconsumed: Vec<u8>,
}

/// Whether the messages to a connection are spaced out, for C++ clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// They are not: all that is queued is written together.
    Unpaced,
    /// They are, each in a write of its own, and the next one may be written.
    Ready,
    /// The last one was written less than 10 ms ago: a timer will go on.
    Waiting,
}

/// What is written to a client.
pub(super) struct Output<T> {
    /// `None` while there is nothing to write, so that an idle connection pays for a pointer only.
    pub outbox: Option<Box<Outbox<T>>>,
    /// The last write found the socket full, and no event has said otherwise.
    pub blocked: bool,
    /// Registered for WRITABLE.
    pub armed: bool,
    /// A timer will look whether the client has stalled.
    pub stall_timer: bool,
    pub pace: Pace,
}

/// In which lists of its loop a connection stands, each of which it is in once at most.
#[derive(Default)]
pub(super) struct Listed {
    pub ready: bool,
    pub dirty: bool,
}

pub(super) struct Connection<H: Types> {
    pub id: ConnId,
    pub stream: TcpStream,
    pub life: Life<H::Reason>,
    /// When a connection that is being closed has had its time.
    pub close_by: Option<Instant>,
    pub input: Input,
    pub output: Output<H::Tag>,
    pub pressure: Pressure,
    /// The handler wants its messages recalled.
    pub to_recall: Option<Recall>,
    pub listed: Listed,
    /// Counts this connection for the acceptor; given back when dropped.
    pub _slot: ConnectionSlot,
}

impl<H: Types> Connection<H> {
    pub fn new(id: ConnId, stream: TcpStream, slot: ConnectionSlot) -> Self {
        Connection {
            id,
            stream,
            life: Life::Open,
            close_by: None,
            input: Input {
                readable: false,
                short_reads_lie: false,
                hang_up: None,
                end: StreamEnd::NotSeen,
                paused: false,
                unhandled: false,
                waits_for_output: false,
                unconsumed: Vec::new(),
            },
            output: Output { outbox: None, blocked: false, armed: false, stall_timer: false, pace: Pace::Unpaced },
            pressure: Pressure::default(),
            to_recall: None,
            listed: Listed::default(),
            _slot: slot,
        }
    }

    /// Whether the handler has been told of its end.
    pub fn is_over_for_the_handler(&self) -> bool {
        matches!(self.life, Life::Lingering | Life::Dead(None))
    }

    /// Whether its queue can be written now, as far as is known.
    pub fn may_be_written(&self) -> bool {
        !self.output.blocked && self.output.pace != Pace::Waiting && !matches!(self.life, Life::Dead(_))
    }

    /// Writes its queue as far as the socket takes it; of a paced connection, one message. `tags` receives the tags of
    /// the messages that were written whole.
    pub fn write(&mut self, tags: &mut Vec<H::Tag>) -> io::Result<WriteResult> {
        loop {
            let Some(outbox) = &mut self.output.outbox else { return Ok(WriteResult::Empty) };
            match outbox.write_to(&mut self.stream, tags) {
                Ok(WriteResult::Boundary) if self.output.pace == Pace::Unpaced => {}
                other => return other,
            }
        }
    }

    /// Registers it with the Poll that is to watch it.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.output.armed = self.output.blocked;
        let interest = self.interest();
        registry.register(&mut self.stream, Token(self.id.slot()), interest)
    }

    /// Has WRITABLE watched while the socket is full, and only then.
    pub fn arm(&mut self, registry: &Registry) -> io::Result<()> {
        if self.output.armed == self.output.blocked {
            return Ok(());
        }
        self.output.armed = self.output.blocked;
        let interest = self.interest();
        registry.reregister(&mut self.stream, Token(self.id.slot()), interest)
    }

    fn interest(&self) -> Interest {
        if self.output.armed { INPUT | Interest::WRITABLE } else { INPUT }
    }

    /// Puts it into the list of those that have something to flush.
    pub fn mark_dirty(&mut self, dirty: &mut Vec<ConnId>) {
        if !std::mem::replace(&mut self.listed.dirty, true) {
            dirty.push(self.id);
        }
    }

    /// Puts it into the list of those with input to be read or handled.
    pub fn mark_ready(&mut self, ready: &mut VecDeque<ConnId>) {
        if !std::mem::replace(&mut self.listed.ready, true) {
            ready.push_back(self.id);
        }
    }
}

impl<T> Output<T> {
    /// Bytes that wait to be written.
    pub fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.len())
    }

    /// Bytes that wait to be written and count towards the high-water mark.
    pub fn counted(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.counted())
    }

    /// What is held against a mark. While memory is `tight`, everything that waits counts.
    pub fn weight(&self, tight: bool) -> usize {
        if tight { self.queued() } else { self.counted() }
    }

    /// Whether what is queued has to wait: for the kernel, or for its time.
    pub fn waits(&self) -> bool {
        let is_held_up = self.blocked || self.pace == Pace::Waiting;
        is_held_up && self.outbox.as_ref().is_some_and(|outbox| !outbox.is_empty())
    }

    /// Since when the kernel takes nothing, or a message with a tag waits for it.
    pub fn stalls_since(&self) -> Option<Instant> {
        let outbox = self.outbox.as_ref()?;
        [outbox.progress, outbox.waits_since()].into_iter().flatten().min()
    }

    /// When the queue passed the soft mark.
    pub fn over_since(&self) -> Option<Instant> {
        self.outbox.as_ref().and_then(|outbox| outbox.over_since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Types for Nothing {
        type Letter = ();
        type Tag = ();
        type Timer = ();
        type Moved = ();
        type Reason = ();
    }

    #[test]
    fn an_idle_connection_pays_for_no_more_than_before() {
        // In debug builds mio notes a socket's Poll.
        let debug = if cfg!(debug_assertions) { 8 } else { 0 };
        assert!(size_of::<Connection<Nothing>>() <= 104 + debug, "{}", size_of::<Connection<Nothing>>());
    }
}
