//! The queue of password hashes: its places, what has become of them, and how long it takes.
//!
//! A hash is 20 to 40 ms of a core, so after an outage thousands of clients wait for theirs. Each has a
//! [`Place`], shared between the shard, which knows the client, and the job in the pool, which must
//! not be done if no client waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::pool::Standing;

/// The last hash counts for an eighth of the mean.
const WEIGHT: u64 = 8;

/// What is known of a node's queue. All its shards and workers share it.
#[derive(Debug)]
pub struct HashQueue {
    /// How many are hashed at a time.
    places: u64,
    /// How many wait, but for those in `last`.
    waiting: AtomicUsize,
    /// How many wait until no other one does.
    last: AtomicUsize,
    /// The time of a hash, in ns; 0: none has been measured yet. Workers that write it at once lose
    /// one of their figures, which does no harm to a mean.
    mean: AtomicU64,
}

impl HashQueue {
    /// An empty queue, of which `places` (at least one) are hashed at a time.
    pub fn new(places: usize) -> Arc<HashQueue> {
        let places = places.max(1) as u64;
        let [waiting, last] = [0, 0].map(AtomicUsize::new);
        Arc::new(HashQueue { places, waiting, last, mean: AtomicU64::new(0) })
    }

    /// How long it takes, as far as is known, until all that wait now and go before one more have been served;
    /// `is_last`: one more that lets others go first.
    pub fn length(&self, is_last: bool) -> Duration {
        let last = if is_last { self.last.load(Ordering::Relaxed) } else { 0 };
        let waiting = (self.waiting.load(Ordering::Relaxed) + last) as u64;
        Duration::from_nanos(self.mean.load(Ordering::Relaxed).saturating_mul(waiting) / self.places)
    }

    /// The number that a place in this state is part of.
    fn waiting_in(&self, state: u8) -> &AtomicUsize {
        if state == WAITS_LAST { &self.last } else { &self.waiting }
    }

    /// One more waits.
    pub(super) fn enter(self: &Arc<Self>) -> Arc<Place> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Arc::new(Place { queue: Arc::clone(self), state: AtomicU8::new(WAITS) })
    }

    /// Notes how long a hash took.
    pub fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean = match self.mean.load(Ordering::Relaxed) {
            0 => took,
            mean => mean - mean / WEIGHT + took / WEIGHT,
        };
        self.mean.store(mean, Ordering::Relaxed);
    }
}

/// It waits for its turn.
const WAITS: u8 = 0;
/// It waits until no other one does.
const WAITS_LAST: u8 = 1;
/// A worker has it.
const TAKEN: u8 = 2;
/// No client wants it any more.
const GIVEN_UP: u8 = 3;

/// A place in the queue. Its state only ever grows, and each change is made by one side.
#[derive(Debug)]
pub struct Place {
    queue: Arc<HashQueue>,
    state: AtomicU8,
}

impl Place {
    /// Lets all others go first.
    pub(super) fn step_back(&self) {
        // Counted first, so that a worker that takes it at once never finds less than there is.
        self.queue.last.fetch_add(1, Ordering::Relaxed);
        match self.state.compare_exchange(WAITS, WAITS_LAST, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => self.queue.waiting.fetch_sub(1, Ordering::Relaxed),
            // It has left the queue, or stepped back before.
            Err(_) => self.queue.last.fetch_sub(1, Ordering::Relaxed),
        };
    }

    /// Leaves the queue, unless a worker has it already: false.
    pub(super) fn give_up(&self) -> bool {
        self.leave(GIVEN_UP)
    }

    /// A worker takes it, unless no client wants it any more: false.
    fn take(&self) -> bool {
        self.leave(TAKEN)
    }

    fn leave(&self, to: u8) -> bool {
        let waits = |state| (state <= WAITS_LAST).then_some(to);
        let left = self.state.fetch_update(Ordering::Relaxed, Ordering::Relaxed, waits);
        left.is_ok_and(|from| {
            self.queue.waiting_in(from).fetch_sub(1, Ordering::Relaxed);
            true
        })
    }

    /// What the pool is to do with its job.
    pub(super) fn standing(&self) -> Standing {
        match self.state.load(Ordering::Relaxed) {
            WAITS_LAST => Standing::Last,
            GIVEN_UP => Standing::Abandoned,
            _ => Standing::Due,
        }
    }

    /// Hashes, if a client still wants it.
    pub(super) fn hash<R>(&self, hash: impl FnOnce() -> R) -> Option<R> {
        if !self.take() {
            return None;
        }
        let begun = Instant::now();
        let hashed = hash();
        self.queue.note(begun.elapsed());
        Some(hashed)
    }
}

/// Its job was dropped by a pool that ends.
impl Drop for Place {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_as_long_as_the_hashes_of_those_who_wait() {
        let queue = HashQueue::new(2);
        let places: Vec<_> = (0..10).map(|_| queue.enter()).collect();
        assert_eq!(queue.length(false), Duration::ZERO, "nothing is known of a hash");
        queue.note(Duration::from_millis(40));
        assert_eq!(queue.length(false), Duration::from_millis(200));
        assert!(places[0].give_up() && !places[0].give_up() && !places[0].take());
        assert!(places[1].take() && !places[1].give_up());
        assert_eq!(queue.length(false), Duration::from_millis(160));
        // A place that lets others go first keeps none of them waiting.
        (2..7).for_each(|n| places[n].step_back());
        places[2].step_back();
        assert_eq!([false, true].map(|is_last| queue.length(is_last)), [60, 160].map(Duration::from_millis));
        assert!(places[2].give_up() && places[3].take());
        assert_eq!([false, true].map(|is_last| queue.length(is_last)), [60, 120].map(Duration::from_millis));
        drop(places);
        assert_eq!(queue.length(true), Duration::ZERO);
        (0..100).for_each(|_| queue.note(Duration::from_millis(80)));
        let _place = queue.enter();
        assert!(queue.length(false).abs_diff(Duration::from_millis(40)) < Duration::from_millis(1), "{queue:?}");
    }

    #[test]
    fn what_is_given_up_is_not_hashed_and_who_steps_back_is() {
        let queue = HashQueue::new(1);
        let (given_up, last, taken) = (queue.enter(), queue.enter(), queue.enter());
        assert!(given_up.give_up());
        given_up.step_back();
        last.step_back();
        assert_eq!((given_up.standing(), last.standing()), (Standing::Abandoned, Standing::Last));
        assert_eq!(given_up.hash(|| panic!("a hash for nobody")), None::<()>);
        assert_eq!((last.hash(|| 1), taken.hash(|| 2)), (Some(1), Some(2)));
        taken.step_back();
        assert_eq!(taken.standing(), Standing::Due);
    }
}
