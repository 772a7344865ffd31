//! How much of the store one user, or one group, may take.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::UserId;

/// What one user or group may have in the store; `None`: no limit. What exists already stays. If
/// several nodes, or several workers on MySQL, add to the same at once, each may exceed a quota by one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quotas {
    /// Offline messages for one user.
    pub offline: Option<u32>,
    /// Friends of one user.
    pub friends: Option<u32>,
    /// Groups that one user is in.
    pub groups: Option<u32>,
    /// Members of one group.
    pub members: Option<u32>,
}

/// Which quota is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    Friends,
    Groups,
    Members,
}

/// After a count, this part of the room that was found, one SHARE-th, may be used before the next count: several nodes
/// do so at once, and must not exceed the quota together.
const SHARE: u32 = 8;
/// A user whose store was found full is not counted again for this long. Only another node can make room in between.
const FULL_FOR: Duration = Duration::from_secs(1);
/// With more users than this, the count of all begins anew: 2 MiB.
const MAX_USERS: usize = 64 * 1024;

/// The room in users' offline stores, as far as it is known. To count before every message would cost
/// more than to store it, so a count holds for an eighth of the room that it has found.
#[derive(Debug, Default)]
pub(super) struct Room {
    quota: Option<u32>,
    users: HashMap<UserId, Known>,
}

#[derive(Debug)]
struct Known {
    /// The number of messages that may be stored before the next count.
    unchecked: u32,
    /// When there was no room left.
    full_at: Option<Instant>,
}

impl Room {
    pub fn new(quota: Option<u32>) -> Room {
        Room { quota, users: HashMap::new() }
    }

    /// How many of `wanted` messages there is room for, if that is known; they then count
    /// as stored. `None`: the user's messages must be counted.
    pub fn known(&mut self, user: UserId, wanted: usize) -> Option<usize> {
        if self.quota.is_none() || wanted == 0 {
            return Some(wanted);
        }
        let known = self.users.get_mut(&user)?;
        if let Some(unchecked) = (known.unchecked as usize).checked_sub(wanted) {
            known.unchecked = unchecked as u32;
            return Some(wanted);
        }
        known.full_at.is_some_and(|at| at.elapsed() < FULL_FOR).then_some(0)
    }

    /// The number up to which messages need to be counted.
    pub fn enough(&self) -> u32 {
        self.quota.unwrap_or(u32::MAX)
    }

    /// The same as [`Room::known`], after a count has found the number `there`.
    pub fn counted(&mut self, user: UserId, wanted: usize, there: u32) -> usize {
        let room = self.enough().saturating_sub(there);
        let granted = u32::try_from(wanted).map_or(room, |wanted| wanted.min(room));
        let left = room - granted;
        if self.users.len() >= MAX_USERS {
            self.users.clear();
        }
        let full_at = (left == 0).then(Instant::now);
        self.users.insert(user, Known { unchecked: left / SHARE, full_at });
        granted as usize
    }

    /// Messages that count as stored may not be.
    pub fn forget_all(&mut self) {
        self.users.clear();
    }

    /// Some of the user's messages are gone.
    pub fn forget(&mut self, user: UserId) {
        self.users.remove(&user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: UserId = 7;
    const BOB: UserId = 8;

    /// Stores one more, where `stored` are; whether there was room, and whether it had to be counted.
    fn store(room: &mut Room, stored: u32) -> (bool, bool) {
        match room.known(ANN, 1) {
            Some(granted) => (granted == 1, false),
            None => (room.counted(ANN, 1, stored) == 1, true),
        }
    }

    /// Stores until it is full; how many there were, and how often it was counted.
    fn fill(quota: u32, already: u32) -> (u32, u32) {
        let (mut room, mut stored, mut counts) = (Room::new(Some(quota)), already, 0);
        loop {
            let (granted, counted) = store(&mut room, stored);
            counts += u32::from(counted);
            if !granted {
                break;
            }
            stored += 1;
        }
        (0..1000).for_each(|_| assert_eq!(room.known(ANN, 1), Some(0), "a full one is not counted again at once"));
        (stored, counts)
    }

    #[test]
    fn a_quota_is_exact_for_one_node_and_seldom_counted() {
        assert_eq!(fill(1, 0).0, 1);
        assert_eq!(fill(10_000, 12_000).0, 12_000);
        let (stored, counts) = fill(10_000, 0);
        assert!(stored == 10_000 && counts < 100, "{stored} stored, {counts} times counted");
    }

    #[test]
    fn several_nodes_that_store_at_once_do_not_pass_it_together() {
        let mut nodes: Vec<Room> = (0..4).map(|_| Room::new(Some(1000))).collect();
        let mut stored = 0;
        for _ in 0..1000 {
            for room in &mut nodes {
                stored += u32::from(store(room, stored).0);
            }
        }
        assert_eq!(stored, 1000);
    }

    #[test]
    fn of_a_batch_the_first_are_taken_and_what_is_removed_makes_room_at_once() {
        let mut room = Room::new(Some(10));
        assert_eq!((room.known(ANN, 8), room.counted(ANN, 8, 5)), (None, 5));
        assert_eq!(room.known(ANN, 1), Some(0));
        assert_eq!((room.known(BOB, 1), room.counted(BOB, 1, 0)), (None, 1));
        room.forget(ANN);
        assert_eq!((room.known(ANN, 1), room.counted(ANN, 1, 0)), (None, 1));
        assert_eq!(Room::new(None).known(ANN, 256), Some(256));
    }
}
