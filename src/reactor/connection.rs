//! One client's socket and what the loop must remember about it.

use std::time::Instant;

use mio::net::TcpStream;

use super::acceptor::ConnectionSlot;
use super::event_loop::Recall;
use super::id::ConnId;
use super::outbox::Outbox;
use super::reason::{CloseReason, Mark};

/// One message to be written.
pub struct Message<'a, T> {
    pub body: super::outbox::Body<'a>,
    /// Follows the body.
    pub terminator: &'static [u8],
    /// Comes back through [`super::Handler::written`] once the kernel has taken the last byte, or
    /// through [`super::Handler::closed`] if it never does.
    pub tag: Option<T>,
    pub manner: super::outbox::Manner,
}

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
pub(super) enum State<R> {
    Open,
    /// The handler closes it: what is queued is flushed, nothing more is read.
    Flushing(R),
    /// Our side is shut; the client's last bytes are read and dropped, since closing a socket
    /// with unread input sends a reset, which can destroy the reply on its way.
    Lingering,
    /// To be swept at the end of the turn, after a word to the handler if there is a reason.
    Dead(Option<CloseReason<R>>),
}

pub(super) struct Connection<T, R> {
    pub id: ConnId,
    pub stream: TcpStream,
    pub state: State<R>,
    /// The kernel may have input: an event said so and no read has shown otherwise.
    pub readable: bool,
    /// An event said that the client has finished sending, or has sent an urgent byte: a short read
    /// is not the last one.
    pub short_reads_lie: bool,
    /// What an event has said of the client's side.
    pub hang_up: Option<HangUp>,
    /// The stream's end was read.
    pub eof: bool,
    /// The handler was told of `eof`.
    pub ended: bool,
    /// The handler wants no input for now.
    pub paused: bool,
    /// `input` holds bytes that the handler has not looked at since it stopped.
    pub unhandled: bool,
    /// The mark that its queue has passed without being drained since.
    pub over: Option<Mark>,
    /// In the loop's ready list.
    pub in_ready: bool,
    /// In the loop's dirty list.
    pub in_dirty: bool,
    /// Registered for WRITABLE.
    pub armed: bool,
    /// The last write found the socket full, and no event has said otherwise.
    pub blocked: bool,
    /// Its messages were recalled, because it has taken nothing for a second or the handler wanted
    /// it; not drained since.
    pub recalled: bool,
    /// The handler wants its messages recalled.
    pub to_recall: Option<Recall>,
    /// A timer will look whether it has stalled.
    pub stall_timer: bool,
    /// Its input waits until what is queued is written, exempt or not.
    pub stuffed: bool,
    /// Each message leaves alone and spaced out, for C++ clients.
    pub paced: bool,
    /// A timer will go on with a paced connection's queue.
    pub pacing: bool,
    /// When a connection that we close has had its time.
    pub close_by: Option<Instant>,
    /// Input that the handler has not consumed: the head of an object, or what waits behind a
    /// login. Empty and without memory while nothing is pending.
    pub input: Vec<u8>,
    /// `None` while there is nothing to write.
    pub outbox: Option<Box<Outbox<T>>>,
    /// Counts this connection for the acceptor; given back when dropped.
    pub _slot: ConnectionSlot,
}

impl<T, R> Connection<T, R> {
    pub fn new(id: ConnId, stream: TcpStream, slot: ConnectionSlot) -> Self {
        Connection {
            id,
            stream,
            state: State::Open,
            readable: false,
            short_reads_lie: false,
            hang_up: None,
            eof: false,
            ended: false,
            paused: false,
            unhandled: false,
            over: None,
            in_ready: false,
            in_dirty: false,
            armed: false,
            blocked: false,
            recalled: false,
            to_recall: None,
            stall_timer: false,
            stuffed: false,
            paced: false,
            pacing: false,
            close_by: None,
            input: Vec::new(),
            outbox: None,
            _slot: slot,
        }
    }

    /// The handler has been told of its end.
    pub fn is_over_for_the_handler(&self) -> bool {
        matches!(self.state, State::Lingering | State::Dead(None))
    }

    /// Bytes that wait to be written.
    pub fn queued(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.len())
    }

    /// What is held against a mark. Where memory is `tight`, all that waits counts.
    pub fn weight(&self, tight: bool) -> usize {
        if tight { self.queued() } else { self.counted() }
    }

    /// Bytes that wait to be written and count towards the high-water mark.
    pub fn counted(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.counted())
    }
}
