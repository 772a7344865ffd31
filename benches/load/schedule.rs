//! When the acts of an open loop are due.

/// A rate that may grow from nothing.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Nanoseconds of the clock.
    pub started: u64,
    /// Acts a second, once it has grown, …
    rate: f64,
    /// … for so many seconds.
    ramp: f64,
}

impl Schedule {
    /// `ramp`: in nanoseconds.
    pub fn new(rate: f64, ramp: u64) -> Schedule {
        Schedule { started: 0, rate, ramp: ramp as f64 / 1e9 }
    }

    /// The acts that are due while it grows.
    fn at_first(&self) -> f64 {
        self.rate * self.ramp / 2.0
    }

    /// When act `number` is due.
    pub fn at(&self, number: u64) -> u64 {
        let acts = (number + 1) as f64;
        let seconds = if acts <= self.at_first() {
            (2.0 * self.ramp * acts / self.rate).sqrt()
        } else {
            self.ramp + (acts - self.at_first()) / self.rate
        };
        self.started + (seconds * 1e9) as u64
    }

    /// How many are due by this time.
    pub fn due_by(&self, time: u64) -> u64 {
        let seconds = time.saturating_sub(self.started) as f64 / 1e9;
        let acts = if seconds < self.ramp {
            self.rate * seconds * seconds / (2.0 * self.ramp)
        } else {
            self.at_first() + self.rate * (seconds - self.ramp)
        };
        acts as u64
    }
}
