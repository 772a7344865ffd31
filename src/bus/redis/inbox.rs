//! What comes from other nodes, on its way to the shards, and the nodes whose payloads are no longer handed on.
//!
//! One lock protects all of it: a node is buried between two payloads, and what was
//! handed on before precedes [`BusEvent::Buried`] in every shard's mailbox.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::posts::Posts;
use crate::bus::envelope::Payload;
use crate::bus::{BusEvent, Envelope};
use crate::store::NodeId;

/// The number of nodes whose newest line is remembered. A cluster has few at a time, but a process that can publish
/// may invent any number of them.
const LINES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// The number of dead nodes that are remembered; the one that was reported longest ago is forgotten first. A payload of
/// a dead node may come late: its machine was suspended, or Redis stood still. Even if a node died each second, a
/// payload would have to come 18 hours late to be accepted.
const BURIED: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// See the [module](self).
pub(super) struct Inbox {
    node: NodeId,
    pub posts: Posts,
    /// The newest line of each node that has sent something.
    lines: LruCache<NodeId, u64>,
    buried: LruCache<NodeId, ()>,
}

impl Inbox {
    /// The inbox of this node.
    pub fn new(node: NodeId, posts: Posts) -> Inbox {
        Inbox { node, posts, lines: LruCache::sparse(LINES), buried: LruCache::sparse(BURIED) }
    }

    /// Hands on a payload of another node, unless it is too late: because the node is dead, or because it came on an
    /// older line than that node's newest, on which something that was sent later may have come already.
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
                Envelope::Confirmed { node } => self.posts.listener.confirmed(node, from),
                envelope => self.posts.push(BusEvent::Envelope(from, envelope)),
            }
        }
    }

    /// From now on nothing of that node is handed on, and all shards are told so. Each further call asks them again.
    /// This node itself learns of its own end in other ways.
    pub fn bury(&mut self, node: NodeId, asker: Option<NodeId>) {
        if node == self.node {
            return;
        }
        self.lines.pop(&node);
        self.buried.put(node, ());
        self.posts.push(BusEvent::Buried { node, asker });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::bus::Listener;
    use crate::home::Homes;

    const ME: NodeId = NodeId(1);
    const A: NodeId = NodeId(2);
    const B: NodeId = NodeId(3);

    /// What was confirmed, by whom.
    #[derive(Default)]
    struct Confirmed(Mutex<Vec<(NodeId, NodeId)>>);

    impl Listener for Confirmed {
        fn homes(&self) -> Homes {
            Homes::new(0, 2)
        }
        fn post(&self, _: usize, _: &mut Vec<BusEvent>) {}
        fn confirmed(&self, dead: NodeId, by: NodeId) {
            self.0.lock().unwrap().push((dead, by));
        }
    }

    fn inbox() -> (Inbox, Arc<Confirmed>) {
        let listener = Arc::<Confirmed>::default();
        (Inbox::new(ME, Posts::new(listener.clone())), listener)
    }

    fn payload(from: NodeId, line: u64, envelopes: &[Envelope]) -> Payload {
        Payload { from, line, envelopes: envelopes.to_vec(), skipped: 0 }
    }

    fn nudged(number: u64) -> Envelope {
        Envelope::Nudged { user: 1, number }
    }

    /// What each shard is told: a number for an envelope, a name for a burial.
    fn told(inbox: &mut Inbox) -> [Vec<String>; 2] {
        let text = |event| match event {
            BusEvent::Envelope(_, Envelope::Nudged { number, .. }) => number.to_string(),
            BusEvent::Buried { node: A, asker } => asker.map_or("A".to_owned(), |asker| format!("A by {}", asker.0)),
            event => panic!("{event:?}"),
        };
        [0, 1].map(|shard| inbox.posts.by_shard[shard].drain(..).map(text).collect())
    }

    /// What the one shard is told that is [`nudged`].
    fn told_home(inbox: &mut Inbox) -> Vec<String> {
        let home = inbox.posts.homes.of_user(1);
        std::mem::take(&mut told(inbox)[home])
    }

    #[test]
    fn what_comes_on_an_older_line_than_the_newest_of_its_node_is_dropped() {
        let (mut inbox, _) = inbox();
        for (from, line, number) in
            [(A, 7, 1), (A, 7, 2), (A, 9, 3), (A, 8, 4), (B, 1, 5), (A, 7, 6), (A, 9, 7), (A, 10, 8)]
        {
            inbox.take(payload(from, line, &[nudged(number)]));
        }
        assert_eq!(told_home(&mut inbox), ["1", "2", "3", "5", "7", "8"]);
    }

    #[test]
    fn nothing_of_a_buried_node_is_handed_on_behind_its_burial() {
        let (mut inbox, _) = inbox();
        inbox.take(payload(A, 1, &[nudged(1)]));
        inbox.bury(A, None);
        inbox.take(payload(A, 1, &[nudged(2)]));
        inbox.take(payload(A, 2, &[nudged(3), Envelope::Dead { node: B }]));
        inbox.take(payload(B, 1, &[nudged(4)]));
        let home = inbox.posts.homes.of_user(1);
        let told = told(&mut inbox);
        assert_eq!(
            (&told[home][..], &told[1 - home][..]),
            (&["1", "A", "4"].map(String::from)[..], &["A".to_owned()][..])
        );
    }

    #[test]
    fn who_is_told_of_a_death_buries_and_who_is_told_again_asks_again() {
        let (mut inbox, listener) = inbox();
        let dead = Envelope::Dead { node: A };
        inbox.take(payload(B, 1, &[nudged(1), dead.clone(), nudged(2)]));
        inbox.take(payload(A, 1, &[nudged(3)]));
        inbox.take(payload(B, 1, std::slice::from_ref(&dead)));
        assert_eq!(told_home(&mut inbox), ["1", "A by 3", "2", "A by 3"]);
        inbox.take(payload(B, 1, &[Envelope::Confirmed { node: A }]));
        inbox.take(payload(A, 1, &[Envelope::Confirmed { node: B }]));
        assert_eq!(*listener.0.lock().unwrap(), [(A, B)], "a dead node confirms nothing");
    }

    #[test]
    fn a_node_does_not_bury_itself() {
        let (mut inbox, _) = inbox();
        inbox.take(payload(B, 1, &[Envelope::Dead { node: ME }, nudged(1)]));
        assert_eq!(told_home(&mut inbox), ["1"]);
    }

    #[test]
    fn who_invents_nodes_takes_no_more_memory_than_the_bounds() {
        let (mut inbox, _) = inbox();
        for node in 0..2 * BURIED.get() as u64 {
            inbox.take(payload(NodeId(node), 1, &[]));
            inbox.bury(NodeId(node + 10), None);
            inbox.posts.by_shard.iter_mut().for_each(Vec::clear);
        }
        assert_eq!(inbox.buried.len(), BURIED.get());
        assert!(inbox.lines.len() <= LINES.get());
    }
}
