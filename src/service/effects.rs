//! What the service wants done: data, which the caller carries out.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::client::Moved;
use super::jobs::{Job, Lane};
use super::letters::{Letter, Tag, Timer};
use super::reason::Reason;
use crate::bus::{Addressee, BusOp, Envelope};
use crate::reactor::{ConnId, Recall, SendOptions};
use crate::store::NodeId;
use crate::wire::Framing;

/// The number of last effects that are searched for an envelope to which another recipient can be added.
const ENVELOPES_SEARCHED: usize = 64;

/// One thing to be done, in the order of the list.
#[derive(Debug)]
pub enum Effect {
    /// Queue a message on a connection of this shard.
    Send { conn: ConnId, body: Payload, framing: Framing, tag: Option<Tag>, options: SendOptions },
    /// Hand over no more input of this connection.
    Pause(ConnId),
    /// Input goes on.
    Resume(ConnId),
    /// Messages to this connection leave one by one, spaced out.
    Pace(ConnId),
    /// They do not any more, and what is queued leaves at once.
    Unpace(ConnId),
    /// Take messages back from the connection's queue at once: [`super::Shard::recalled`] follows.
    Recall(ConnId, Recall),
    /// Flush, then close.
    Close(ConnId, Reason),
    /// Close at once; what is not written comes back.
    Abort(ConnId, Reason),
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

    pub(super) fn timer(&mut self, at: Instant, timer: Timer) {
        self.push(Effect::Timer(at, timer));
    }

    pub(super) fn send_to_node(&mut self, node: NodeId, envelope: Envelope) {
        self.push(Effect::Bus(BusOp::ToNode(node, envelope)));
    }

    /// Sends a chat to a user of another node: in the envelope of the last one to that node, if it is the same chat.
    pub(super) fn launch(&mut self, node: NodeId, to: Addressee, body: Arc<[u8]>) {
        for effect in self.list.iter_mut().rev().take(ENVELOPES_SEARCHED) {
            match effect {
                Effect::Bus(BusOp::ToNode(other, Envelope::Chat { body: last, to: list })) if *other == node => {
                    if Arc::ptr_eq(last, &body) {
                        return list.push(to);
                    }
                    break;
                }
                Effect::Bus(BusOp::ToNode(other, _)) if *other == node => break,
                _ => {}
            }
        }
        self.send_to_node(node, Envelope::Chat { body, to: vec![to] });
    }

    /// Writes bytes that a message is to consist of.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Payload {
        let from = self.bytes.len();
        write(&mut self.bytes);
        Payload::Own(from..self.bytes.len())
    }

    /// Sends what `write` writes, as a reply.
    pub(super) fn reply(&mut self, conn: ConnId, framing: Framing, own_write: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let body = self.write(write);
        self.push(Effect::Send {
            conn,
            body,
            framing,
            tag: None,
            options: SendOptions { own_write, uncounted: false },
        });
    }
}
