//! What is timed, and how often each time came.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hdr;

/// The longest time that is distinguished from longer ones, in nanoseconds.
const LONGEST: u64 = 600_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The time from a chat's sending (or due time) to its arrival.
    Chat,
    /// The same for a group message, at each member.
    Member,
    /// The time from a group message's sending to its arrival at the last member.
    LastMember,
    /// The time from a chat's sending to the ack that it was delivered.
    Ack,
    /// The time from a chat's sending to the ack that it is stored.
    Stored,
    /// The time from when a storm's user was due to the reply to its login: all of what follows, and the lag.
    Served,
    /// The time from the beginning of a connection until it was there.
    Connect,
    /// The time from then to the server's first answer.
    Accept,
    /// The time from a login's sending (or due time) to its reply.
    Login,
    /// The time that the server's jobs waited for a worker, by its own account.
    Queue,
    /// The time that its store took for each of them, by its own account.
    Store,
    /// The time from the same to the last of the messages that were stored for the user.
    Return,
    /// The time from a registration to its reply.
    Register,
    /// The time from a chat's due time to its arrival at a reader that does not always read.
    CatchUp,
    /// The time from when an open loop's act was due until the generator had done it: its own delay.
    Lag,
}

impl Measure {
    pub const ALL: [Measure; 15] = [
        Measure::Chat,
        Measure::Member,
        Measure::LastMember,
        Measure::Ack,
        Measure::Stored,
        Measure::Served,
        Measure::Connect,
        Measure::Accept,
        Measure::Login,
        Measure::Queue,
        Measure::Store,
        Measure::Return,
        Measure::Register,
        Measure::CatchUp,
        Measure::Lag,
    ];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Measure::Chat => "chat",
            Measure::Member => "member",
            Measure::LastMember => "last member",
            Measure::Ack => "ack",
            Measure::Stored => "stored",
            Measure::Served => "served",
            Measure::Connect => "connect",
            Measure::Accept => "accept",
            Measure::Login => "login",
            Measure::Queue => "queue",
            Measure::Store => "store",
            Measure::Return => "return",
            Measure::Register => "register",
            Measure::CatchUp => "catch up",
            Measure::Lag => "lag",
        }
    }

    /// The name in JSON and conditions.
    pub fn key(self) -> String {
        self.name().replace(' ', "_")
    }
}

#[derive(Debug, Clone)]
struct Times {
    histogram: Histogram<u64>,
    max: u64,
}

/// The times of each measure, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Measures(Vec<Times>);

impl Measures {
    pub fn new() -> anyhow::Result<Measures> {
        let one = || Ok(Times { histogram: Histogram::new_with_bounds(1, LONGEST, 3)?, max: 0 });
        Ok(Measures(Measure::ALL.iter().map(|_| one()).collect::<anyhow::Result<_>>()?))
    }

    pub fn record(&mut self, measure: Measure, nanoseconds: u64) {
        self.record_many(measure, nanoseconds, 1);
    }

    /// The same time, so often.
    pub fn record_many(&mut self, measure: Measure, nanoseconds: u64, count: u64) {
        let times = &mut self.0[measure as usize];
        times.histogram.saturating_record_n(nanoseconds.max(1), count);
        times.max = times.max.max(nanoseconds);
    }

    pub fn add(&mut self, others: &Measures) -> anyhow::Result<()> {
        for (mine, other) in self.0.iter_mut().zip(&others.0) {
            mine.histogram.add(&other.histogram)?;
            mine.max = mine.max.max(other.max);
        }
        Ok(())
    }

    /// How many times there are.
    pub fn count(&self, measure: Measure) -> u64 {
        self.0[measure as usize].histogram.len()
    }

    /// Those that have anything.
    pub fn seen(&self) -> impl Iterator<Item = Measure> {
        Measure::ALL.into_iter().filter(|&measure| self.count(measure) > 0)
    }

    /// The time that this part of all times does not exceed, in microseconds. At 1 that is the maximum, exactly.
    pub fn quantile(&self, measure: Measure, part: f64) -> f64 {
        let times = &self.0[measure as usize];
        // The histogram returns the upper end of a step of 0.1 %.
        let nanoseconds = if part >= 1.0 { times.max } else { times.histogram.value_at_quantile(part).min(times.max) };
        nanoseconds as f64 / 1000.0
    }
}

/// The times of one measure in a file.
#[derive(Serialize, Deserialize)]
struct Saved {
    #[serde(with = "hdr")]
    nanoseconds: Histogram<u64>,
    max: u64,
}

impl Serialize for Measures {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.seen().map(|measure| {
            let Times { histogram, max } = &self.0[measure as usize];
            (measure.key(), Saved { nanoseconds: histogram.clone(), max: *max })
        }))
    }
}

impl<'de> Deserialize<'de> for Measures {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Measures, D::Error> {
        let mut measures = Measures::new().map_err(D::Error::custom)?;
        for (key, saved) in BTreeMap::<String, Saved>::deserialize(from)? {
            let known = Measure::ALL.into_iter().find(|measure| measure.key() == key);
            let measure = known.ok_or_else(|| D::Error::custom(format!("nothing is timed as {key}")))?;
            let times = &mut measures.0[measure as usize];
            times.histogram.add(&saved.nanoseconds).map_err(D::Error::custom)?;
            times.max = saved.max;
        }
        Ok(measures)
    }
}
