//! Throttles: a rate an hour for each key.

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);
/// Keys that are remembered: half of them are the last ones that something was taken for. About 5 MiB.
const REMEMBERED: usize = 64 * 1024;

/// Lets a number pass for each key in an hour: all at once, or one now and then. All shards take from the
/// same, since a client's next connection may be another shard's.
#[derive(Debug)]
pub struct Throttle<K> {
    /// The time after which one more may pass.
    each: Duration,
    debts: Mutex<Debts<K>>,
}

/// When what was taken for a key will be made up for; then it need not be remembered any more. Two
/// generations: when the young one is full, the old one is forgotten. So too many
/// keys make the throttle forget, and the memory never grows.
#[derive(Debug)]
struct Debts<K> {
    young: HashMap<K, Instant>,
    old: HashMap<K, Instant>,
}

impl<K: Eq + Hash + Copy> Throttle<K> {
    /// `an_hour` for each key.
    pub fn new(an_hour: u32) -> Throttle<K> {
        let debts = Mutex::new(Debts { young: HashMap::new(), old: HashMap::new() });
        Throttle { each: HOUR / an_hour.max(1), debts }
    }

    fn debts(&self) -> MutexGuard<'_, Debts<K>> {
        // Nothing below can panic while it holds the lock.
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more for this key. The error: after how many seconds.
    pub fn take(&self, key: K, now: Instant) -> Result<(), u32> {
        let mut debts = self.debts();
        let until = debts.get(key).map_or(now, |until| until.max(now)) + self.each;
        let most = now + HOUR;
        if until > most {
            let wait = until - most;
            return Err(u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX));
        }
        debts.insert(key, until);
        Ok(())
    }

    /// What was taken last for this key does not count.
    pub fn give_back(&self, key: K) {
        let mut debts = self.debts();
        if let Some(until) = debts.get(key)
            && let Some(until) = until.checked_sub(self.each)
        {
            debts.insert(key, until);
        }
    }

    /// Nothing that was taken for this key counts any more.
    pub fn forgive(&self, key: K) {
        let mut debts = self.debts();
        debts.young.remove(&key);
        debts.old.remove(&key);
    }
}

impl<K: Eq + Hash + Copy> Debts<K> {
    fn get(&self, key: K) -> Option<Instant> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn insert(&mut self, key: K, until: Instant) {
        if self.young.len() >= REMEMBERED / 2 && !self.young.contains_key(&key) {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(key, until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_pass_at_once_and_one_more_when_its_time_has_come() {
        let (throttle, start) = (Throttle::new(6), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        (0..6).for_each(|_| assert_eq!(throttle.take(7, at(0)), Ok(())));
        assert_eq!(throttle.take(7, at(0)), Err(600));
        assert_eq!(throttle.take(8, at(0)), Ok(()), "another's");
        assert_eq!(throttle.take(7, at(599)), Err(1));
        assert_eq!((throttle.take(7, at(600)), throttle.take(7, at(600))), (Ok(()), Err(600)));
        let later = at(600 + 3600);
        (0..6).for_each(|_| assert_eq!(throttle.take(7, later), Ok(())));
        assert_eq!(throttle.take(7, later), Err(600));
    }

    #[test]
    fn what_is_given_back_or_forgiven_does_not_count() {
        let (throttle, now) = (Throttle::new(2), Instant::now());
        for _ in 0..10 {
            assert_eq!(throttle.take(7, now), Ok(()));
            throttle.give_back(7);
        }
        (0..2).for_each(|_| assert_eq!(throttle.take(7, now), Ok(())));
        assert!(throttle.take(7, now).is_err());
        throttle.forgive(7);
        (0..2).for_each(|_| assert_eq!(throttle.take(7, now), Ok(())));
        throttle.give_back(8);
        assert!(throttle.take(7, now).is_err());
    }

    #[test]
    fn a_million_keys_are_not_remembered_and_the_last_ones_are() {
        let (throttle, now) = (Throttle::new(1), Instant::now());
        for key in 0..1_000_000 {
            assert_eq!(throttle.take(key, now), Ok(()));
        }
        let debts = throttle.debts();
        assert!(debts.young.len() + debts.old.len() <= REMEMBERED);
        drop(debts);
        assert!(throttle.take(999_999 - REMEMBERED as u32 / 2 + 1, now).is_err());
    }
}
