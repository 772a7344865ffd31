//! How a busy recipient is served over time, and when it is served as before once it has stood still.

use std::ops::Range;

/// The width of a step, in nanoseconds.
pub const STEP: u64 = 100_000_000;
/// What is looked at together: a second, as a moment says nothing about a rate.
const STEPS: usize = 10;
/// Of the rate: with so much of it, a recipient is served as before.
const AS_BEFORE: f64 = 0.95;

/// A step's messages, of one way that they take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Those that were due in it.
    pub sent: u64,
    /// Of these, those that were acked as delivered: they went to the recipient, and not through the store.
    pub live: u64,
    /// Of these, those that were acked as stored.
    pub stored: u64,
    /// Those that arrived in it.
    pub arrived: u64,
}

#[derive(Debug, Default, Clone)]
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

    /// The sums of so many steps each, and of those that are left.
    pub fn by(&self, steps: usize) -> impl Iterator<Item = Step> {
        self.steps.chunks(steps.max(1)).map(sum)
    }

    /// How long after it stood still its recipient is served as before, in seconds: live, at this rate (messages a
    /// second), and from then on to the end. `None`: never, or not for a second.
    pub fn back(&self, still: &Range<u64>, rate: f64) -> Option<f64> {
        let enough = rate * AS_BEFORE * (STEPS as u64 * STEP) as f64 / 1e9;
        let is_as_before = |steps: &[Step]| {
            let Step { live, arrived, .. } = sum(steps);
            live as f64 >= enough && arrived as f64 >= enough
        };
        let first = still.end.div_ceil(STEP) as usize;
        let rest = self.steps.get(first..)?;
        let bad = rest.windows(STEPS).rposition(|steps| !is_as_before(steps));
        let good = bad.map_or(0, |bad| bad + 1);
        (good + STEPS <= rest.len()).then(|| ((first + good) as u64 * STEP - still.end) as f64 / 1e9)
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
