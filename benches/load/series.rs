//! Latency over time: the times of each measure, step by step.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;

use crate::measures::Measure;

/// The shortest step, in seconds, …
const SHORTEST: f64 = 0.2;
/// … and the most of them that a round has.
const MOST: f64 = 600.0;

/// The length of a step of a round of this length, both in seconds.
pub fn step(seconds: f64) -> f64 {
    (seconds / MOST).max(SHORTEST)
}

/// Times in microseconds. Two digits are enough for a plot, and make a step cheap.
pub fn times() -> Histogram<u64> {
    Histogram::new(2).expect("there may be two digits")
}

/// The steps of all threads, by the number of the step and by the measure.
#[derive(Debug, Default)]
pub struct Series(Mutex<BTreeMap<(usize, usize), Histogram<u64>>>);

impl Series {
    fn add(&self, step: usize, measure: usize, those: &Histogram<u64>) {
        let mut steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A histogram that grows takes every time.
        let _ = steps.entry((step, measure)).or_insert_with(times).add(those);
    }

    /// The times of one step, as far as the threads have told them.
    pub fn of(&self, step: usize, measure: Measure) -> Histogram<u64> {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        steps.get(&(step, measure as usize)).cloned().unwrap_or_else(times)
    }
}

/// One thread's own.
#[derive(Debug)]
pub struct Recorder {
    /// The length of a step, in nanoseconds.
    step: u64,
    current: usize,
    /// The times of each measure.
    times: Vec<Histogram<u64>>,
    /// Steps that are over, and that the other threads have not been told.
    over: Vec<(usize, usize, Histogram<u64>)>,
}

impl Recorder {
    pub fn new(step: u64) -> Recorder {
        let times = Measure::ALL.iter().map(|_| times()).collect();
        Recorder { step: step.max(1), current: 0, times, over: Vec::new() }
    }

    /// A time in nanoseconds, of what has ended `at` nanoseconds after the beginning of the measurement.
    pub fn record(&mut self, measure: Measure, at: u64, time: u64) {
        self.go_on(at);
        // A histogram that grows takes every time.
        let _ = self.times[measure as usize].record((time / 1000).max(1));
    }

    fn go_on(&mut self, at: u64) {
        let step = (at / self.step) as usize;
        if step > self.current {
            for (measure, recorded) in self.times.iter_mut().enumerate().filter(|(_, recorded)| !recorded.is_empty()) {
                self.over.push((self.current, measure, std::mem::replace(recorded, times())));
            }
            self.current = step;
        }
    }

    /// Tells the others which steps are over at this time.
    pub fn tell(&mut self, series: &Series, at: u64) {
        self.go_on(at);
        self.over.drain(..).for_each(|(step, measure, times)| series.add(step, measure, &times));
    }
}
