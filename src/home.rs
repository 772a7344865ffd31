//! Where everything about a user, or a group, happens: on one reactor, which the id alone decides.

use crate::store::{GroupId, UserId};

/// Which reactor each user and each group belongs to.
///
/// The ids are hashed with a seed: ids in a row, in steps of any width and at random all spread evenly,
/// and without the seed, ids that load one reactor cannot be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Homes {
    seed: u64,
    reactors: u32,
}

impl Homes {
    /// Homes on `reactors` reactors, of which there is at least one. The same seed gives the same homes.
    ///
    /// # Panics
    /// There are more than 2^32 of them.
    pub const fn new(seed: u64, reactors: usize) -> Homes {
        assert!(reactors <= u32::MAX as usize);
        Homes { seed, reactors: if reactors == 0 { 1 } else { reactors as u32 } }
    }

    /// How many reactors there are.
    pub fn reactors(&self) -> usize {
        self.reactors as usize
    }

    /// The reactor of a user.
    pub fn of_user(&self, user: UserId) -> usize {
        self.place(self.seed ^ u64::from(user))
    }

    /// The reactor of a group, which has nothing to do with that of the user of the same id.
    pub fn of_group(&self, group: GroupId) -> usize {
        self.place(self.seed.rotate_left(32) ^ u64::from(group) ^ 1 << 63)
    }

    fn place(&self, mut x: u64) -> usize {
        // The finalizer of splitmix64: every bit of the id changes each bit of the hash half of the time.
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        // The upper half as a fraction of all reactors.
        (((x >> 32) * u64::from(self.reactors)) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reactor has its part of these ids, within six standard deviations.
    fn is_even(ids: impl Iterator<Item = u32> + Clone, home: impl Fn(&Homes, u32) -> usize, what: &str) {
        for (seed, reactors) in [(0, 2), (1, 3), (0xDEAD_BEEF, 4), (u64::MAX, 7), (42, 16)] {
            let homes = Homes::new(seed, reactors);
            let mut counts = vec![0_u32; reactors];
            ids.clone().for_each(|id| counts[home(&homes, id)] += 1);
            let all = f64::from(counts.iter().sum::<u32>());
            let mean = all / reactors as f64;
            let deviation = (mean * (1.0 - 1.0 / reactors as f64)).sqrt();
            for count in &counts {
                assert!((f64::from(*count) - mean).abs() < 6.0 * deviation, "{what}, {seed} x {reactors}: {counts:?}");
            }
        }
    }

    #[test]
    fn ids_in_a_row_in_steps_and_at_random_spread_evenly() {
        for home in [Homes::of_user, Homes::of_group] {
            is_even(1..=20_000, home, "in a row");
            for step in [2, 3, 7, 10, 16, 64, 100, 1000, 1024, 65_536] {
                is_even((0..20_000).map(move |n| 1 + n * step), home, "in steps");
            }
            let random = |n: u32| n.wrapping_mul(2_654_435_761).rotate_left(13) ^ n.wrapping_mul(40_503);
            is_even((0..20_000).map(random), home, "at random");
        }
    }

    #[test]
    fn a_seed_decides_and_one_reactor_has_all() {
        let homes = |seed| (1..=64).map(|user| Homes::new(seed, 2).of_user(user)).collect::<Vec<_>>();
        assert_eq!(homes(7), homes(7));
        assert_ne!(homes(7), homes(8));
        assert!((1..=1000).all(|id| Homes::new(7, 1).of_user(id) == 0 && Homes::new(7, 0).of_group(id) == 0));
        let both = |id| (Homes::new(7, 2).of_user(id), Homes::new(7, 2).of_group(id));
        assert!((1..=64).any(|id| both(id).0 != both(id).1), "a group's home is its user's");
    }
}
