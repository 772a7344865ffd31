//! Which shards have confirmed a death, for each node that asked for it. No I/O.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::store::NodeId;

/// The number of deaths, counted for each asking node, that may be under way. A process that can publish may invent any
/// number of them.
const UNDER_WAY: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// See the [module](self).
pub(super) struct Confirms {
    shards: usize,
    /// The shards that have confirmed, by the dead node and the one that asked.
    by: LruCache<(NodeId, NodeId), Vec<u16>>,
}

impl Confirms {
    /// For a node with this number of shards.
    pub fn new(shards: usize) -> Confirms {
        Confirms { shards, by: LruCache::sparse(UNDER_WAY) }
    }

    /// A shard confirms, perhaps not for the first time. True: now all have, and the asking node is to be told; if it
    /// asks again, all of them have to confirm again.
    pub fn add(&mut self, dead: NodeId, asker: NodeId, shard: u16) -> bool {
        let shards = self.by.get_or_insert_mut((dead, asker), Vec::new);
        if !shards.contains(&shard) {
            shards.push(shard);
        }
        let all = shards.len() >= self.shards;
        if all {
            self.by.pop(&(dead, asker));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: NodeId = NodeId(7);
    const ASKS: NodeId = NodeId(8);

    #[test]
    fn a_death_is_confirmed_when_every_shard_has_confirmed_it_to_the_node_that_asked() {
        let mut confirms = Confirms::new(3);
        assert!(!confirms.add(DEAD, ASKS, 0));
        assert!(!confirms.add(DEAD, ASKS, 0), "a shard counts once");
        assert!(!confirms.add(DEAD, ASKS, 2));
        assert!(!confirms.add(DEAD, NodeId(9), 1), "another node asked");
        assert!(!confirms.add(ASKS, DEAD, 1), "another death");
        assert!(confirms.add(DEAD, ASKS, 1));
        for (shard, all) in [(2, false), (0, false), (1, true)] {
            assert_eq!(confirms.add(DEAD, ASKS, shard), all, "asked again");
        }
    }

    #[test]
    fn what_is_never_confirmed_by_all_takes_no_more_room_than_its_bound() {
        let mut confirms = Confirms::new(2);
        (0..5000).for_each(|node| assert!(!confirms.add(NodeId(node), ASKS, 0)));
        assert_eq!(confirms.by.len(), UNDER_WAY.get());
        assert!(!confirms.add(NodeId(0), ASKS, 1), "it was forgotten");
        assert!(confirms.add(NodeId(4999), ASKS, 1));
    }
}
