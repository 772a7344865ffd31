//! Reactor thread: lazy timers. None is cancelled; what fires looks again.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Instant;

/// Deadlines with a key each. A handler must check, when a timer fires, whether it still
/// means something: keys hold ids, never references, and a touch only writes a timestamp
/// elsewhere.
#[derive(Debug)]
pub struct Timers<K> {
    heap: BinaryHeap<Entry<K>>,
    set: u64,
}

#[derive(Debug)]
struct Entry<K> {
    at: Instant,
    /// Equal deadlines fire in the order in which they were set.
    number: u64,
    key: K,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Timers { heap: BinaryHeap::new(), set: 0 }
    }
}

impl<K> Timers<K> {
    pub fn set(&mut self, at: Instant, key: K) {
        self.set += 1;
        self.heap.push(Entry { at, number: self.set, key });
    }

    /// When the next timer fires.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// Takes one timer that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        // Memory goes back when a crowd has left.
        if self.heap.capacity() > 1024 && self.heap.len() < self.heap.capacity() / 4 {
            self.heap.shrink_to(self.heap.len() * 2);
        }
        self.heap.pop().map(|entry| entry.key)
    }
}

impl<K> Ord for Entry<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap's top is its greatest; the earliest must be on top.
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
impl<K> PartialOrd for Entry<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> PartialEq for Entry<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<K> Eq for Entry<K> {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_fire_by_deadline_then_by_age() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut timers = Timers::default();
        for (when, key) in [(2, 'c'), (1, 'a'), (2, 'd'), (1, 'b')] {
            timers.set(at(when), key);
        }
        assert_eq!(timers.pop_due(start), None);
        assert_eq!(timers.next(), Some(at(1)));
        let fired: String = std::iter::from_fn(|| timers.pop_due(at(2))).collect();
        assert_eq!(fired, "abcd");
    }
}
