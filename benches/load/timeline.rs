//! How a busy recipient is served over time, and when it is served as before once it has stood still.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The width of a step, in nanoseconds.
pub const STEP: u64 = 100_000_000;
/// The steps that are judged together: a second, as a moment says nothing about a rate.
const STEPS: usize = 10;
/// The share of the rate with which a recipient is served as before.
const AS_BEFORE: f64 = 0.95;

/// A step's messages that take one route.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Messages that were due in it.
    pub sent: u64,
    /// The part of these that was acked as delivered: they went to the recipient, and not through the store.
    pub live: u64,
    /// The part of these that was acked as stored.
    pub stored: u64,
    /// Messages that arrived in it.
    pub arrived: u64,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Timeline {
    steps: Vec<Step>,
}

impl Timeline {
    /// The step of a time, in nanoseconds since the first one.
    pub fn at(&mut self, time: u64) -> &mut Step {
        let step = (time / STEP) as usize;
        if step >= self.steps.len() {
            self.steps.resize(step + 1, Step::default());
        }
        &mut self.steps[step]
    }

    /// Ends at this time: a step that is not over by then says nothing.
    pub fn end(&mut self, time: u64) {
        self.steps.resize((time / STEP) as usize, Step::default());
    }

    /// The sums of this number of steps each, and of those that are left.
    pub fn by(&self, steps: usize) -> impl Iterator<Item = Step> {
        self.steps.chunks(steps.max(1)).map(sum)
    }

    /// How long after it stood still its recipient is served as before, in seconds: from then on what is sent in any
    /// second goes to it live, and what arrives keeps up with this rate, in messages a second. `None`: never, or for less
    /// than a second.
    pub fn back(&self, still: &Range<u64>, rate: f64) -> Option<f64> {
        let enough = |steps: usize| AS_BEFORE * rate * (steps as u64 * STEP) as f64 / 1e9;
        let first = still.end.div_ceil(STEP) as usize;
        let is_as_before = |rest: &[Step]| {
            let is_live = rest.windows(STEPS).all(|steps| sum(steps).live as f64 >= enough(STEPS));
            // Counted from there on, not in each second, and a step late: what noise holds up comes in the next one.
            let keeps_up = (STEPS..=rest.len()).all(|end| sum(&rest[..end]).arrived as f64 >= enough(end - 1));
            is_live && keeps_up
        };
        let last = self.steps.len().checked_sub(STEPS)?;
        let back = (first..=last).find(|&start| is_as_before(&self.steps[start..]))?;
        Some((back as u64 * STEP - still.end) as f64 / 1e9)
    }
}

fn sum(steps: &[Step]) -> Step {
    steps.iter().fold(Step::default(), |all, step| Step {
        sent: all.sent + step.sent,
        live: all.live + step.live,
        stored: all.stored + step.stored,
        arrived: all.arrived + step.arrived,
    })
}
