//! Thread `reaper`: how the claims of a dead node become free, without threads, clocks and databases.
//!
//! A node that is dead, or cannot be distinguished from a dead one, is reaped in four steps:
//!
//! 1. Its counter is read, and then its lease is found missing ([`Reaping::read`], [`Reaping::missing`]).
//! 2. It is marked in the store, if its counter is still the same. From then on the store accepts nothing of it.
//! 3. All nodes that are not marked are told, including this one. From then on each drops what arrives from the
//!    dead one, and confirms when what it took of it before is delivered or committed, and all its sessions
//!    will read the store before they take anything else. A node that cannot confirm is soon marked itself.
//! 4. When all have confirmed, and at the earliest 2 s after the mark, its claims are freed: by then every
//!    look into the store that it has relied on is over. A node that is marked itself need not confirm, but it may
//!    still rely on a look of its own: so it counts as unconfirmed until 2 s after its own mark.
//!
//! Every node does all of that for every other one, and the last two steps also for nodes that others have marked:
//! each step may be done twice. Times are those of [`crate::clock::since_boot`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::store::{Entry, NodeId};

/// The time from a mark to the end of the claims: twice as long as a look counts, [`super::validity::LOOK`].
const MARKED: Duration = Duration::from_secs(2);
/// The time after which a node that has not confirmed is told again.
const REPEAT: Duration = Duration::from_secs(2);

/// A node whose lease is to be looked for, with its counter as it was read before that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspect {
    pub node: NodeId,
    pub looks: u64,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Tell these nodes, which have not confirmed, that one is dead.
    Tell { dead: NodeId, to: Vec<NodeId> },
    /// Free the claims of a node.
    Free(NodeId),
}

/// The state of each death, as this node sees it.
pub struct Reaping {
    own: NodeId,
    /// The other nodes that are not marked, with their counters.
    living: BTreeMap<NodeId, u64>,
    dead: BTreeMap<NodeId, Death>,
}

struct Death {
    /// When it was found to be marked, which is not before it was.
    marked: Duration,
    told: Option<Duration>,
    confirmed: BTreeSet<NodeId>,
}

impl Reaping {
    /// For node `own`.
    pub fn new(own: NodeId) -> Reaping {
        Reaping { own, living: BTreeMap::new(), dead: BTreeMap::new() }
    }

    /// The membership was read.
    pub fn read(&mut self, entries: &[Entry], now: Duration) {
        let others = || entries.iter().filter(|entry| entry.node != self.own);
        self.living = others().filter(|entry| !entry.marked).map(|entry| (entry.node, entry.looks)).collect();
        let marked: BTreeSet<NodeId> = others().filter(|entry| entry.marked).map(|entry| entry.node).collect();
        // A node that is no longer listed was freed by another node.
        self.dead.retain(|node, _| marked.contains(node));
        marked.into_iter().for_each(|node| self.marked(node, now));
    }

    /// The nodes whose leases are to be looked for: all others that are not marked.
    pub fn suspects(&self) -> Vec<Suspect> {
        self.living.iter().map(|(&node, &looks)| Suspect { node, looks }).collect()
    }

    /// Those of the nodes without a lease that are to be marked. Their counters are those that were read before
    /// the lease was looked for, even if newer ones were read since.
    pub fn missing(&self, suspects: &[Suspect]) -> Vec<Suspect> {
        suspects.iter().filter(|suspect| self.living.contains_key(&suspect.node)).copied().collect()
    }

    /// A node is marked, and was so before `now`.
    pub fn marked(&mut self, node: NodeId, now: Duration) {
        self.living.remove(&node);
        let death = || Death { marked: now, told: None, confirmed: BTreeSet::new() };
        self.dead.entry(node).or_insert_with(death);
    }

    /// Node `by` has nothing from the dead node that is neither delivered nor stored.
    pub fn confirmed(&mut self, dead: NodeId, by: NodeId) {
        if let Some(death) = self.dead.get_mut(&dead) {
            death.confirmed.insert(by);
        }
    }

    /// The claims of a node are freed.
    pub fn freed(&mut self, node: NodeId) {
        self.dead.remove(&node);
    }

    /// The nodes that have not confirmed, of all that are not marked.
    fn open<'a>(&'a self, death: &'a Death) -> impl Iterator<Item = NodeId> + 'a {
        let all = std::iter::once(self.own).chain(self.living.keys().copied());
        all.filter(|node| !death.confirmed.contains(node))
    }

    /// When the claims of a dead node may be freed: once neither it, nor any other marked node that has not confirmed
    /// its death, can still rely on a look.
    fn freed_at(&self, death: &Death) -> Duration {
        let others = self.dead.iter().filter(|(node, _)| !death.confirmed.contains(node));
        others.map(|(_, other)| other.marked).max().unwrap_or(death.marked) + MARKED
    }

    /// What is to be done by `now`. A step that failed is repeated: [`Step::Free`] at once, [`Step::Tell`] after 2 s.
    pub fn steps(&mut self, now: Duration) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut told = Vec::new();
        for (&dead, death) in &self.dead {
            let open: Vec<NodeId> = self.open(death).collect();
            if open.is_empty() {
                if self.freed_at(death) <= now {
                    steps.push(Step::Free(dead));
                }
            } else if death.told.is_none_or(|told| told + REPEAT <= now) {
                told.push(dead);
                steps.push(Step::Tell { dead, to: open });
            }
        }
        for dead in told {
            if let Some(death) = self.dead.get_mut(&dead) {
                death.told = Some(now);
            }
        }
        steps
    }

    /// When [`Reaping::steps`] is to be called next, if nothing else happens.
    pub fn next(&self) -> Option<Duration> {
        let due = |death: &Death| match self.open(death).next() {
            None => self.freed_at(death),
            Some(_) => death.told.map_or(Duration::ZERO, |told| told + REPEAT),
        };
        self.dead.values().map(due).min()
    }

    /// Deaths that have not been freed for `time`, with the nodes that have not confirmed them, for the log.
    pub fn overdue(&self, now: Duration, time: Duration) -> impl Iterator<Item = (NodeId, Vec<NodeId>)> {
        let late = self.dead.iter().filter(move |(_, death)| death.marked + time <= now);
        late.map(|(&dead, death)| (dead, self.open(death).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const DEAD: NodeId = NodeId(9);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn living(node: NodeId, looks: u64) -> Entry {
        Entry { node, looks, marked: false, has_claims: true }
    }

    fn marked(node: NodeId) -> Entry {
        Entry { node, looks: 0, marked: true, has_claims: true }
    }

    fn tell(to: &[NodeId]) -> Step {
        Step::Tell { dead: DEAD, to: to.to_vec() }
    }

    enum Input {
        Read(Vec<Entry>),
        Marked,
        Confirmed(NodeId),
        Freed,
        /// Nothing but time.
        Wait,
    }
    use Input::*;

    /// At this time in ms comes this input, and then these steps are due, and the next moment is that one.
    type Row = (u64, Input, Vec<Step>, Option<u64>);

    fn check(what: &str, rows: Vec<Row>) {
        let mut reaping = Reaping::new(OWN);
        for (at, input, steps, next) in rows {
            match input {
                Read(entries) => reaping.read(&entries, ms(at)),
                Marked => reaping.marked(DEAD, ms(at)),
                Confirmed(by) => reaping.confirmed(DEAD, by),
                Freed => reaping.freed(DEAD),
                Wait => {}
            }
            assert_eq!(reaping.steps(ms(at)), steps, "{what}, at {at}");
            assert_eq!(reaping.next(), next.map(ms), "{what}, behind {at}");
        }
    }

    #[test]
    fn claims_are_freed_when_all_have_confirmed_and_two_seconds_are_over() {
        let all = || Read(vec![living(OTHER, 3), living(DEAD, 7)]);
        let free = || vec![Step::Free(DEAD)];
        check(
            "confirmed soon",
            vec![
                (0, all(), vec![], None),
                (100, Marked, vec![tell(&[OWN, OTHER])], Some(2100)),
                (110, Confirmed(OWN), vec![], Some(2100)),
                (120, Confirmed(OTHER), vec![], Some(2100)),
                (2099, Wait, vec![], Some(2100)),
                (2100, Wait, free(), Some(2100)),
                (2600, Wait, free(), Some(2100)),
                (2601, Freed, vec![], None),
            ],
        );
        check(
            "who does not confirm is marked itself",
            vec![
                (0, all(), vec![], None),
                (100, Marked, vec![tell(&[OWN, OTHER])], Some(2100)),
                (110, Confirmed(OWN), vec![], Some(2100)),
                (
                    1900,
                    Read(vec![marked(OTHER), marked(DEAD)]),
                    vec![Step::Tell { dead: OTHER, to: vec![OWN] }],
                    Some(3900),
                ),
                (2100, Wait, vec![], Some(3900)),
                (3900, Wait, vec![Step::Tell { dead: OTHER, to: vec![OWN] }, Step::Free(DEAD)], Some(3900)),
            ],
        );
        check(
            "confirmed late",
            vec![
                (0, all(), vec![], None),
                (100, Marked, vec![tell(&[OWN, OTHER])], Some(2100)),
                (110, Confirmed(OWN), vec![], Some(2100)),
                (2100, Wait, vec![tell(&[OTHER])], Some(4100)),
                (4099, Wait, vec![], Some(4100)),
                (4100, Wait, vec![tell(&[OTHER])], Some(6100)),
                (4200, Confirmed(OTHER), free(), Some(2100)),
            ],
        );
        check(
            "alone",
            vec![
                (100, Marked, vec![tell(&[OWN])], Some(2100)),
                (110, Confirmed(OTHER), vec![], Some(2100)),
                (120, Confirmed(OWN), vec![], Some(2100)),
                (2200, Wait, free(), Some(2100)),
            ],
        );
    }

    #[test]
    fn who_is_marked_need_not_confirm_and_who_has_come_must() {
        let came = NodeId(3);
        check(
            "marked",
            vec![
                (0, Read(vec![living(OTHER, 3), living(DEAD, 7)]), vec![], None),
                (100, Marked, vec![tell(&[OWN, OTHER])], Some(2100)),
                (200, Confirmed(OWN), vec![], Some(2100)),
                (500, Read(vec![living(OTHER, 3), living(came, 0), marked(DEAD)]), vec![], Some(2100)),
                (600, Confirmed(OTHER), vec![], Some(2100)),
                (2100, Wait, vec![tell(&[came])], Some(4100)),
                (2200, Read(vec![living(OTHER, 3), marked(DEAD)]), vec![Step::Free(DEAD)], Some(2100)),
            ],
        );
    }

    #[test]
    fn what_others_have_marked_is_seen_to_as_well_until_somebody_has_freed_it() {
        let found = || Read(vec![living(OTHER, 3), marked(DEAD)]);
        check(
            "found",
            vec![
                (700, found(), vec![tell(&[OWN, OTHER])], Some(2700)),
                (800, Confirmed(OWN), vec![], Some(2700)),
                (900, Confirmed(OTHER), vec![], Some(2700)),
                (1200, found(), vec![], Some(2700)),
                (2700, found(), vec![Step::Free(DEAD)], Some(2700)),
            ],
        );
        check(
            "freed by another",
            vec![
                (700, found(), vec![tell(&[OWN, OTHER])], Some(2700)),
                (1200, Read(vec![living(OTHER, 3)]), vec![], None),
                (1300, Confirmed(OTHER), vec![], None),
                (9000, Wait, vec![], None),
            ],
        );
    }

    #[test]
    fn a_node_is_marked_by_the_counter_that_was_read_before_its_lease_was_looked_for() {
        let mut reaping = Reaping::new(OWN);
        reaping.read(&[living(OTHER, 3), living(DEAD, 7), marked(NodeId(4)), living(OWN, 1)], ms(0));
        let suspects = reaping.suspects();
        assert_eq!(suspects, [Suspect { node: OTHER, looks: 3 }, Suspect { node: DEAD, looks: 7 }]);
        // It lives, and looks, before what was found is heard of.
        reaping.read(&[living(OTHER, 4), living(DEAD, 8)], ms(500));
        assert_eq!(reaping.missing(&suspects[1..]), suspects[1..]);
        reaping.marked(DEAD, ms(600));
        assert_eq!(reaping.missing(&suspects[1..]), [], "marked already");
        assert_eq!(reaping.suspects(), [Suspect { node: OTHER, looks: 4 }]);
    }

    #[test]
    fn what_nobody_confirms_is_told_in_the_log() {
        let mut reaping = Reaping::new(OWN);
        reaping.read(&[living(OTHER, 3), marked(DEAD)], ms(0));
        reaping.confirmed(DEAD, OWN);
        let overdue = |at| reaping.overdue(ms(at), ms(10_000)).collect::<Vec<_>>();
        assert_eq!(overdue(9999), []);
        assert_eq!(overdue(10_000), [(DEAD, vec![OTHER])]);
    }
}
