//! What comes from other nodes, on its way to the shards, and whose payloads are not handed on any more.
//!
//! One lock is around all of it: whoever buries a node does that between two payloads, and what was
//! handed on before stands before [`BusEvent::Buried`] in every shard's mailbox.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::Posts;
use crate::bus::envelope::Payload;
use crate::bus::{BusEvent, Envelope};
use crate::store::NodeId;

/// Of how many nodes the newest line is known. A cluster has few at a time; whoever can publish may invent
/// any number of them.
const LINES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// How many dead nodes are known to be dead; the longest dead is forgotten first. One of which something may
/// still come has died in this hour, or was suspended since then; with a restart each second these last for 18 hours.
const BURIED: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// See the [module](self).
pub(super) struct Inbox {
    node: NodeId,
    pub posts: Posts,
    /// The newest line of each node from which something has come.
    lines: LruCache<NodeId, u64>,
    buried: LruCache<NodeId, ()>,
}

/// The inbox, for itself alone.
pub(super) fn lock(inbox: &Mutex<Inbox>) -> MutexGuard<'_, Inbox> {
    // A panic has ended the process already.
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    /// Of this node.
    pub fn new(node: NodeId, posts: Posts) -> Inbox {
        Inbox { node, posts, lines: LruCache::sparse(LINES), buried: LruCache::sparse(BURIED) }
    }

    /// Takes a payload of another node, unless it is too late: of an older line of that node than the newest, on
    /// which something else may have come already that was sent after it; or of a node that is dead.
    pub fn take(&mut self, payload: Payload) {
        let Payload { from, line, envelopes, .. } = payload;
        if self.buried.contains(&from) {
            log::debug!("{} envelopes of the dead node {from} are dropped", envelopes.len());
            return;
        }
        let newest = self.lines.get_or_insert_mut(from, || line);
        if line < *newest {
            log::debug!("{} envelopes of an old line of node {from} are dropped", envelopes.len());
            return;
        }
        *newest = line;
        for envelope in envelopes {
            match envelope {
                Envelope::Dead { node } => self.bury(node, Some(from)),
                Envelope::Confirmed { node } => self.posts.confirmed(node, from),
                envelope => self.posts.push(BusEvent::Envelope(from, envelope)),
            }
        }
    }

    /// From now on nothing of that node is taken, and all shards hear of it. Being told again is
    /// being asked again; this node itself hears of its end by other ways.
    pub fn bury(&mut self, node: NodeId, asker: Option<NodeId>) {
        if node == self.node {
            return;
        }
        self.lines.pop(&node);
        self.buried.put(node, ());
        self.posts.push(BusEvent::Buried { node, asker });
    }
}
