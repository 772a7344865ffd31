//! The bus: how the nodes of a cluster reach each other.
//!
//! Our own nodes exchange [`Envelope`]s, on a channel for each node; to and from C++ nodes go
//! plain chats, on a channel for each user. A [`Bus`] takes [`BusOp`]s and never blocks;
//! its events come through the [`Listener`] that it was made with. Nothing on it is certain:
//! what must arrive is confirmed by its recipient, or stored.

pub mod envelope;
pub mod local;
pub mod redis;

use std::sync::Arc;

pub use envelope::{Addressee, Answered, Delivery, Envelope, Ticket};
pub use local::Local;

use crate::home::Homes;
use crate::store::{NodeId, UserId};

/// One thing to be sent or asked. The operations of one shard are carried out in order.
#[derive(Debug, Clone)]
pub enum BusOp {
    /// Send an envelope to one of our nodes. If it is not known to have arrived, it comes back: [`BusEvent::Unsent`].
    ToNode(NodeId, Envelope),
    /// Send a chat to a user that a C++ node has; answered by [`BusEvent::Reached`].
    ToUser(UserId, Arc<[u8]>, Ticket),
    /// How many listen to this user's channel? Answered by [`BusEvent::Reached`].
    CountListeners(UserId, Ticket),
    /// Listen to this user's channel; answered by [`BusEvent::Listening`] once that is effective, or at once
    /// while the bus is away: it will listen when it is back.
    Listen { user: UserId, epoch: u64 },
    /// Stop listening, unless another session (`epoch`) of the user listens by now.
    Unlisten { user: UserId, epoch: u64 },
    /// This shard has done what [`BusEvent::Buried`] asks for. When all shards have, `asker` is told.
    Confirm { dead: NodeId, asker: NodeId, shard: u16 },
}

/// What a bus reports. Each event goes to one shard, the home of the user or group that it names, or to the
/// shard of its ticket; `Buried`, `Down` and `Up` go to all.
#[derive(Debug, Clone)]
pub enum BusEvent {
    /// An envelope from another one of our nodes.
    Envelope(NodeId, Envelope),
    /// A C++ node's chat, on the channel of one of this node's users.
    FromForeign(UserId, Arc<[u8]>),
    /// The number of others that were reached, or that listen; `None`: the bus is away, and it is not known.
    Reached(Ticket, Option<u32>),
    /// This envelope has not reached this node, or it is not known whether it has.
    Unsent(NodeId, Envelope),
    Listening {
        user: UserId,
        epoch: u64,
    },
    /// A node is dead: nothing of it follows. If a node asks, it waits for a [`BusOp::Confirm`] of
    /// every shard: everything that was taken from the dead node is delivered or committed, and every session reads its
    /// store before it takes anything else.
    Buried {
        node: NodeId,
        asker: Option<NodeId>,
    },
    /// The bus is away: what others send does not arrive.
    Down,
    /// The bus is back, and listens to everything again: what was sent meanwhile is lost.
    Up,
}

/// Receives the events, for the mailboxes of the shards. Called on the bus's threads; must not block.
pub trait Listener: Send + Sync {
    /// The homes of users and groups.
    fn homes(&self) -> Homes;

    /// Hands the events to one shard, in order, and leaves the list empty.
    fn post(&self, shard: usize, events: &mut Vec<BusEvent>);

    /// All shards of node `by` have done what is due at the death of `dead`, as this node asked.
    fn confirmed(&self, dead: NodeId, by: NodeId);
}

/// The connection to other nodes.
pub trait Bus: Send + Sync {
    /// Takes all of `ops`, in order, and leaves the list empty. Does not block.
    fn send(&self, ops: &mut Vec<BusOp>);

    /// Whether it reaches other nodes at the moment, as far as it knows.
    fn is_up(&self) -> bool;
}
