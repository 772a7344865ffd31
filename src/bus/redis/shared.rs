//! What the publisher, the subscriber and the [`RedisBus`](super::RedisBus) share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::inbox::Inbox;
use crate::bus::envelope::{PayloadVersions, Versions};
use crate::store::NodeId;

/// The channel that only this node listens to.
pub(super) fn channel_of(node: NodeId) -> String {
    format!("chat:node:{node}")
}

/// What the bus's threads share.
pub(super) struct Shared {
    pub node: NodeId,
    pub payload: PayloadVersions,
    pub inbox: Mutex<Inbox>,
    /// The number of the subscriber's connection to Redis; 0: there is none.
    pub subscribed: AtomicU64,
    /// When the newest beat that has come back on that connection was sent, in ns since the machine was booted;
    /// 0: none has come back.
    pub beat: AtomicU64,
    /// Nothing more is to be published.
    pub abandoned: AtomicBool,
    /// The versions that other nodes read, as far as they are known.
    pub versions: Mutex<HashMap<NodeId, Versions>>,
}

impl Shared {
    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A panic has ended the process already.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn versions(&self) -> MutexGuard<'_, HashMap<NodeId, Versions>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
