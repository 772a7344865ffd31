//! Reactor thread: the contract between a reactor and what it serves.
//!
//! Every method of a [`Handler`] is called in that thread, and none may block.

use std::net::SocketAddr;

use super::connection::HangUp;
use super::id::{ConnId, ListenerId};
use super::io::Io;
use super::outbox::Unwritten;
use super::reason::CloseReason;
use super::types::{Recall, Types};

/// The business behind one reactor. What a handler need not care about has a default that does nothing.
pub trait Handler: Types {
    /// Whether the handler may act at this moment. The loop asks right before it hands over each thing
    /// that has come (input, a letter, a timer, a connection's end), before it writes a connection's queue, and
    /// before [`Handler::turn_ended`]: a process that is stopped between any two of them handles and writes
    /// nothing when it goes on, if the answer is no by then. It is asked twice or more for every message, so it
    /// should cost no more than reading a clock.
    ///
    /// Once the answer is no, nothing else is handed over or written in this turn, and nothing is lost: it all
    /// waits as it is and in order, and the question is asked again after at most 50 ms, or as soon as the loop
    /// is woken. Only [`Mail::Exit`](super::Mail::Exit) and [`Mail::Abandon`](super::Mail::Abandon) do not wait.
    fn may_act(&mut self) -> bool {
        true
    }

    /// A connection of `peer` has been accepted on one of the acceptor's listeners.
    fn opened(&mut self, _io: &mut Io<Self>, _conn: ConnId, _peer: SocketAddr, _listener: ListenerId) {}

    /// A connection has come from another reactor, whose handler gave it away with `moved`
    /// ([`Io::move_to`]). It may come after [`Handler::stopping`], too.
    fn arrived(&mut self, _io: &mut Io<Self>, _conn: ConnId, _moved: Self::Moved) {}

    /// Bytes have arrived, or input that waited may go on. `input` begins with what the last call
    /// left unconsumed.
    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken;

    /// The client has finished sending and all its input was given; `rest` bytes stay unconsumed.
    /// The connection stays open for replies until the handler closes it.
    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, rest: usize);

    /// The client has hung up while its input waits: whether what it asked for last is still worth
    /// the work. What it has sent besides is given once the input goes on, and then
    /// [`Handler::ended`] or [`Handler::closed`] follows. It may be called more than once.
    fn hung_up(&mut self, _io: &mut Io<Self>, _conn: ConnId, _how: HangUp) {}

    /// A letter from another reactor, from this one, or from another thread.
    fn letter(&mut self, _io: &mut Io<Self>, _letter: Self::Letter) {}

    /// The kernel has taken the last byte of a tagged message.
    fn written(&mut self, _io: &mut Io<Self>, _conn: ConnId, _tag: Self::Tag) {}

    /// Whether a message with this tag is taken back from a connection's queue in such a recall.
    fn recallable(_tag: &Self::Tag, _how: Recall) -> bool {
        false
    }

    /// The connection's queue has passed the high-water mark, or its share while memory is short, or the
    /// client has read nothing of it for a second, or [`Io::recall`] was called; `recalled` was taken back from it.
    /// A message that was partly written stays in the queue: what is handed back of it is a copy
    /// ([`Unwritten::begun`]).
    fn recalled(&mut self, _io: &mut Io<Self>, _conn: ConnId, _recalled: Vec<Unwritten<Self::Tag>>) {}

    /// The queue of a connection for which [`Handler::recalled`] was called is empty.
    fn drained(&mut self, _io: &mut Io<Self>, _conn: ConnId) {}

    /// The connection is gone; `unwritten` are the tagged messages that were not written whole.
    /// Nothing can be sent to it any more.
    fn closed(
        &mut self,
        _io: &mut Io<Self>,
        _conn: ConnId,
        _reason: CloseReason<Self::Reason>,
        _unwritten: Vec<Unwritten<Self::Tag>>,
    ) {
    }

    /// A timer set with [`Io::set_timer`] has fired.
    fn timer(&mut self, _io: &mut Io<Self>, _timer: Self::Timer) {}

    /// A turn ends: what it had to write is written (of a message for thousands, a part), and its letters are
    /// not posted yet. So clients have theirs before others learn what became of it. What the handler sends
    /// now is written in the next turn, which follows at once.
    fn turn_ended(&mut self, _io: &mut Io<Self>) {}

    /// The process is to end: take nothing new, finish what there is, and report that to the thread that will
    /// post [`Mail::Exit`](super::Mail::Exit).
    fn stopping(&mut self, _io: &mut Io<Self>) {}
}

/// How much of its input a handler has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Bytes consumed from the front.
    pub bytes: usize,
    /// It stopped for fairness, and wants the rest in the next turn.
    pub more: bool,
}

impl Taken {
    /// It has used all of `input`.
    pub fn all(input: &[u8]) -> Taken {
        Taken { bytes: input.len(), more: false }
    }
}
