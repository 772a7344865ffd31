use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator (splitmix64) whose seed is printed, so that a failure can be repeated with
/// `CHAT_TEST_SEED=seed`.
pub struct Rng(u64);

impl Rng {
    pub fn new() -> Self {
        let seed = match std::env::var("CHAT_TEST_SEED") {
            Ok(text) => text.parse().expect("CHAT_TEST_SEED is a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        };
        // Only shown when the test fails.
        println!("seed: CHAT_TEST_SEED={seed}");
        Rng(seed)
    }

    /// A generator for another purpose, seeded by this one.
    pub fn fork(&mut self) -> Rng {
        Rng(self.next())
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}
