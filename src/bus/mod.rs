//! The bus: how the nodes of a cluster reach each other.
//!
//! Between our own nodes go [`Envelope`]s, on a channel for each node; to and from C++ nodes go
//! chats as they are, on a channel for each user. A [`Bus`] takes [`BusOp`]s and never blocks;
//! what it has to tell comes through the [`Listener`] it was made with. Nothing on it is certain:
//! what must arrive is confirmed by whom it reached, or stored.

pub mod alone;
pub mod envelope;
pub mod redis;

use std::sync::Arc;

pub use alone::Alone;
pub use envelope::{Addressee, Envelope, Ticket};
pub use redis::RedisBus;

use crate::store::{NodeId, UserId};

/// One thing to be sent, or asked. Those of one shard are done in their order.
#[derive(Debug, Clone)]
pub enum BusOp {
    /// To one of our nodes.
    ToNode(NodeId, Envelope),
    /// To all our nodes but this one; answered by [`BusEvent::Reached`].
    ToAll(Envelope, Ticket),
    /// A chat for a user whom a C++ node has; answered by [`BusEvent::Reached`].
    ToUser(UserId, Arc<[u8]>, Ticket),
    /// How many listen to this user's channel? Answered by [`BusEvent::Reached`].
    CountListeners(UserId, Ticket),
    /// Listen to this user's channel; answered by [`BusEvent::Listening`] on this shard once it is
    /// effective, or at once while the bus is away: it is made up for when that is back.
    Listen { user: UserId, epoch: u64, shard: u16 },
    /// Stop, unless another session (`epoch`) of the user listens by now.
    Unlisten { user: UserId, epoch: u64 },
}

/// What a bus has to tell.
#[derive(Debug, Clone)]
pub enum BusEvent {
    /// From one of our nodes; never from this one.
    Envelope(NodeId, Envelope),
    /// A C++ node's chat, on the channel of one of this node's users.
    FromForeign(UserId, Arc<[u8]>),
    /// How many others were reached, or listen; `None`: the bus is away, and it is not known.
    Reached(Ticket, Option<u32>),
    Listening {
        user: UserId,
        epoch: u64,
    },
    /// The bus is away: what others send does not arrive.
    Down,
    /// It is back, and listens to everything again: what was sent meanwhile is lost.
    Up,
}

/// Where events go: to the mailboxes of the shards. Called on the bus's threads; must not block.
pub trait Listener: Send + Sync {
    /// How many shards there are.
    fn shards(&self) -> usize;

    /// Hands the events to one shard, in order, and leaves the list empty.
    fn post(&self, shard: usize, events: &mut Vec<BusEvent>);
}

/// The way to other nodes.
pub trait Bus: Send + Sync {
    /// Takes all of `ops`, in order, and leaves the list empty. Does not block.
    fn send(&self, ops: &mut Vec<BusOp>);

    /// Whether it reaches others at the moment, as far as it knows.
    fn is_up(&self) -> bool;
}
