//! What is timed, and how often each time came.

use hdrhistogram::Histogram;

/// The longest time that is told from longer ones, in nanoseconds.
const LONGEST: u64 = 600_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// From a chat's sending (or due time) to its arrival.
    Chat,
    /// The same for a group message, at each member.
    Member,
    /// From a group message's sending to its arrival at the last member.
    LastMember,
    /// From a chat's sending to the ack that it was delivered.
    Ack,
    /// From a chat's sending to the ack that it is stored.
    Stored,
    /// From a login to its reply.
    Login,
    /// From a login to the last of the messages that were stored for it.
    Return,
    /// From a registration to its reply.
    Register,
}

impl Measure {
    pub const ALL: [Measure; 8] = [
        Measure::Chat,
        Measure::Member,
        Measure::LastMember,
        Measure::Ack,
        Measure::Stored,
        Measure::Login,
        Measure::Return,
        Measure::Register,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Measure::Chat => "chat",
            Measure::Member => "member",
            Measure::LastMember => "last member",
            Measure::Ack => "ack",
            Measure::Stored => "stored",
            Measure::Login => "login",
            Measure::Return => "return",
            Measure::Register => "register",
        }
    }
}

/// A histogram for each measure, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Measures(Vec<Histogram<u64>>);

impl Measures {
    pub fn new() -> anyhow::Result<Measures> {
        let one = || Histogram::new_with_bounds(1, LONGEST, 3);
        Ok(Measures(Measure::ALL.iter().map(|_| one()).collect::<Result<_, _>>()?))
    }

    pub fn record(&mut self, measure: Measure, nanoseconds: u64) {
        self.0[measure as usize].saturating_record(nanoseconds.max(1));
    }

    pub fn add(&mut self, others: &Measures) -> anyhow::Result<()> {
        for (mine, other) in self.0.iter_mut().zip(&others.0) {
            mine.add(other)?;
        }
        Ok(())
    }

    /// Those that have anything.
    pub fn seen(&self) -> impl Iterator<Item = (Measure, &Histogram<u64>)> {
        Measure::ALL.into_iter().zip(&self.0).filter(|(_, histogram)| !histogram.is_empty())
    }
}
