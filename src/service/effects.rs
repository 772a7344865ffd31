//! What the service wants done: data, carried out by whoever drives it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::client::Moved;
use super::jobs::{Job, Lane};
use super::letters::{Letter, Tag, Timer};
use crate::bus::BusOp;
use crate::reactor::{CloseReason, ConnId, Manner, Recall};
use crate::wire::Framing;

/// One thing to be done, in the order of the list.
#[derive(Debug)]
pub enum Effect {
    /// Queue a message on a connection of this shard.
    Send { conn: ConnId, body: Payload, framing: Framing, tag: Option<Tag>, manner: Manner },
    /// Hand over no more input of this connection.
    Pause(ConnId),
    /// Input goes on.
    Resume(ConnId),
    /// Messages to this connection leave one by one, spaced out.
    Pace(ConnId),
    /// Take messages back from the connection's queue at once: [`super::Shard::recalled`] follows.
    Recall(ConnId, Recall),
    /// Flush, then close.
    Close(ConnId, CloseReason),
    /// Close at once; what is not written comes back.
    Abort(ConnId, CloseReason),
    /// The connection goes on at another shard, which knows it by a new id: [`super::Shard::arrived`]. This one
    /// knows it no more.
    Move { conn: ConnId, to: usize, moved: Box<Moved> },
    /// A letter to a shard.
    Post(usize, Letter),
    /// A job for the pool; its answer comes back as a letter.
    /// Boxed, as it is large and rare, and a list of effects is moved for every message.
    Submit(Lane, Box<Job>),
    /// Something for the bus.
    Bus(BusOp),
    /// Call back at this time.
    Timer(Instant, Timer),
    /// This shard has wound up: no client, no session, no message, no job is left.
    WoundUp,
    /// The store says that this node was taken for dead: nothing of it counts any more.
    Marked,
}

/// The bytes of an [`Effect::Send`].
#[derive(Debug, Clone)]
pub enum Payload {
    /// A part of [`Effects::bytes`].
    Own(Range<usize>),
    Shared(Arc<[u8]>),
}

/// A list of effects and the bytes they refer to. It is filled by one call into the service,
/// carried out, cleared, and used again: the hot path allocates nothing.
#[derive(Debug, Default)]
pub struct Effects {
    pub list: Vec<Effect>,
    /// What [`Payload::Own`] refers to.
    pub bytes: Vec<u8>,
}

impl Effects {
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes.clear();
        // One large login reply must not be paid for for ever.
        if self.bytes.capacity() > 256 * 1024 {
            self.bytes = Vec::new();
        }
    }

    pub(super) fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// Sends what `write` writes, as a reply.
    pub(super) fn reply(&mut self, conn: ConnId, framing: Framing, alone: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let from = self.bytes.len();
        write(&mut self.bytes);
        let body = Payload::Own(from..self.bytes.len());
        self.push(Effect::Send { conn, body, framing, tag: None, manner: Manner { alone, exempt: false } });
    }
}
