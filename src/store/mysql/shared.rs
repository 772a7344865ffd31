//! What all connections of a node to its database have in common.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::hidden::Hidden;
use super::link::Gate;
use super::sql::Sql;
use super::text::Texts;
use crate::store::quota::Room;
use crate::store::{NodeId, Quotas};

/// What the workers' connections share.
pub(super) struct Shared {
    pub gate: Gate,
    pub node: NodeId,
    pub mixed: bool,
    pub hidden: Hidden,
    pub sql: Sql,
    pub texts: Texts,
    /// The next message's key.
    pub next_key: AtomicU64,
    pub quotas: Quotas,
    pub room: Mutex<Room>,
}

impl Shared {
    pub fn room(&self) -> MutexGuard<'_, Room> {
        // Nothing can panic while it is held.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A unique name of a message, for ever and for all nodes: no two lives have the same id.
    pub fn once(&self, key: u64) -> [u8; 16] {
        (u128::from(self.node.0) << 64 | u128::from(key)).to_be_bytes()
    }
}
