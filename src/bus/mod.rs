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
pub use envelope::{Addressee, Answered, Envelope, Fate, Ticket};

use crate::home::Homes;
use crate::store::{NodeId, UserId};

/// One thing to be sent, or asked. Those of one shard are done in their order.
#[derive(Debug, Clone)]
pub enum BusOp {
    /// To one of our nodes. If it is not known to have reached it, it comes back: [`BusEvent::Unsent`].
    ToNode(NodeId, Envelope),
    /// A chat for a user whom a C++ node has; answered by [`BusEvent::Reached`].
    ToUser(UserId, Arc<[u8]>, Ticket),
    /// How many listen to this user's channel? Answered by [`BusEvent::Reached`].
    CountListeners(UserId, Ticket),
    /// Listen to this user's channel; answered by [`BusEvent::Listening`] once it is effective, or at once
    /// while the bus is away: it is made up for when that is back.
    Listen { user: UserId, epoch: u64 },
    /// Stop, unless another session (`epoch`) of the user listens by now.
    Unlisten { user: UserId, epoch: u64 },
    /// This shard has done what [`BusEvent::Buried`] asked for. When all shards have, `asker` hears of it.
    Confirm { dead: NodeId, asker: NodeId, shard: u16 },
}

/// What a bus has to tell. Each goes to one shard, the home of the user or group that it names, or to the
/// shard of its ticket; `Buried`, `Down` and `Up` go to all.
#[derive(Debug, Clone)]
pub enum BusEvent {
    /// From one of our nodes; never from this one.
    Envelope(NodeId, Envelope),
    /// A C++ node's chat, on the channel of one of this node's users.
    FromForeign(UserId, Arc<[u8]>),
    /// How many others were reached, or listen; `None`: the bus is away, and it is not known.
    Reached(Ticket, Option<u32>),
    /// What was for this node has reached nobody, or it is not known whether it has.
    Unsent(NodeId, Envelope),
    Listening {
        user: UserId,
        epoch: u64,
    },
    /// A node is dead: nothing of it follows. Where another node asks, it waits for a [`BusOp::Confirm`] of
    /// every shard: what was taken from the dead one is delivered or committed, and every session reads its
    /// store before it takes anything else.
    Buried {
        node: NodeId,
        asker: Option<NodeId>,
    },
    /// The bus is away: what others send does not arrive.
    Down,
    /// It is back, and listens to everything again: what was sent meanwhile is lost.
    Up,
}

/// Where events go: to the mailboxes of the shards. Called on the bus's threads; must not block.
pub trait Listener: Send + Sync {
    /// Where users and groups live.
    fn homes(&self) -> Homes;

    /// Hands the events to one shard, in order, and leaves the list empty.
    fn post(&self, shard: usize, events: &mut Vec<BusEvent>);

    /// All shards of node `by` have done what was asked of them at the death of `dead`: for whoever asked.
    fn confirmed(&self, dead: NodeId, by: NodeId);
}

/// The way to other nodes.
pub trait Bus: Send + Sync {
    /// Takes all of `ops`, in order, and leaves the list empty. Does not block.
    fn send(&self, ops: &mut Vec<BusOp>);

    /// Whether it reaches others at the moment, as far as it knows.
    fn is_up(&self) -> bool;
}
