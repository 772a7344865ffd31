//! The line at the bottom of a terminal that shows how far it is. Elsewhere there is none.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::clock::CpuClock;
use crate::machine;

pub fn is_shown() -> bool {
    std::io::stderr().is_terminal()
}

/// Replaces the line.
pub fn show(words: &str) {
    if is_shown() {
        eprint!("\r{words}\x1b[K");
    }
}

pub fn end() {
    if is_shown() {
        eprint!("\r\x1b[K");
    }
}

/// Seconds as people read them.
pub fn time(seconds: f64) -> String {
    let seconds = seconds.max(0.0).ceil() as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}

/// Microseconds as people read them.
pub fn latency(microseconds: u64) -> String {
    match microseconds {
        0..10_000 => format!("{microseconds} us"),
        10_000..10_000_000 => format!("{} ms", microseconds / 1000),
        _ => format!("{} s", microseconds / 1_000_000),
    }
}

/// How fast a number of things is done, and with how much of the machine.
pub struct Pace {
    begun: Instant,
    generator: f64,
    all: f64,
}

impl Pace {
    pub fn new() -> Pace {
        Pace { begun: Instant::now(), generator: Pace::generator(), all: machine::busy() }
    }

    fn generator() -> f64 {
        CpuClock::PROCESS.seconds().unwrap_or(0.0)
    }

    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// "300/s; CPU: generator 0.10, all 1.20 of 2 cores; 12 s left".
    pub fn words(&self, done: usize, of: usize) -> String {
        let seconds = self.elapsed().as_secs_f64().max(0.001);
        let rate = done as f64 / seconds;
        let (generator, all) = ((Pace::generator() - self.generator) / seconds, (machine::busy() - self.all) / seconds);
        let left = if rate > 0.0 { time((of.saturating_sub(done)) as f64 / rate) } else { "?".to_owned() };
        let cores = machine::cores();
        format!("{rate:.0}/s; CPU: generator {generator:.2}, all {all:.2} of {cores:.0} cores; {left} left")
    }
}
