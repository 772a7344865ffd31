//! What became of every message and every ack, exactly.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How long a sample may be, in bytes.
const SAMPLE: usize = 300;

/// What has arrived of the messages 0, 1, 2, … from one sender.
#[derive(Debug, Default)]
pub struct Order {
    /// All messages before this one have arrived, or are missing.
    awaited: u64,
    /// Ranges in ascending order, without overlaps.
    missing: Vec<Range<u64>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The next one, after `gap` messages that have not come.
    New {
        gap: u64,
    },
    /// It came after one that was sent later.
    Late,
    Repeated,
}

impl Order {
    pub fn arrive(&mut self, number: u64) -> Arrival {
        if number >= self.awaited {
            let gap = number - self.awaited;
            if gap > 0 {
                self.missing.push(self.awaited..number);
            }
            self.awaited = number + 1;
            return Arrival::New { gap };
        }
        let Some(at) = self.missing.iter().position(|range| range.contains(&number)) else { return Arrival::Repeated };
        let Range { start, end } = self.missing[at].clone();
        let rest = [start..number, number + 1..end];
        self.missing.splice(at..=at, rest.into_iter().filter(|range| !range.is_empty()));
        Arrival::Late
    }

    /// How many of the first `sent` have not come.
    pub fn missing(&self, sent: u64) -> u64 {
        self.missing.iter().map(|range| range.end - range.start).sum::<u64>() + sent.saturating_sub(self.awaited)
    }

    pub fn has(&self, number: u64) -> bool {
        number < self.awaited && !self.missing.iter().any(|range| range.contains(&number))
    }
}

/// Acks that are owed for the requests 0, 1, 2, … They may come in any order.
#[derive(Debug, Default)]
pub struct Acks {
    /// The `seq` of the first entry.
    first: u64,
    /// When each was asked for; `None`: its ack has come.
    asked: VecDeque<Option<u64>>,
    pending: u64,
    /// One more than the highest `seq` that has come.
    highest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The ack of a request that was sent `at` this time. `late`: after one for a later request, as it may.
    Owed {
        at: u64,
        late: bool,
    },
    Repeated,
    /// The ack of a request that was never made.
    Unknown,
}

impl Acks {
    /// The ack of request `seq` is owed. Requests are numbered without gaps.
    pub fn owe(&mut self, seq: u64, at: u64) {
        if self.asked.is_empty() {
            self.first = seq;
        }
        self.asked.push_back(Some(at));
        self.pending += 1;
    }

    pub fn come(&mut self, seq: u64) -> Ack {
        let late = seq < self.highest;
        let Some(index) = seq.checked_sub(self.first) else { return Ack::Repeated };
        let Some(slot) = self.asked.get_mut(index as usize) else {
            return if late { Ack::Repeated } else { Ack::Unknown };
        };
        let Some(at) = slot.take() else { return Ack::Repeated };
        self.pending -= 1;
        self.highest = self.highest.max(seq + 1);
        while self.asked.front() == Some(&None) {
            self.asked.pop_front();
            self.first += 1;
        }
        Ack::Owed { at, late }
    }

    pub fn pending(&self) -> u64 {
        self.pending
    }
}

/// Requests that were refused with one errno.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub count: u64,
    /// What the server said, the first time.
    pub sample: String,
}

/// Counts over a whole round, from the first message to the last, also while nothing is timed.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that arrived, each counted once.
    pub delivered: u64,
    /// Messages that the server says it has stored.
    pub stored: u64,
    /// Messages that never arrived, and were not refused.
    pub lost: u64,
    /// Messages that arrived once more.
    pub repeated: u64,
    /// Messages that arrived after a later one of their sender.
    pub out_of_order: u64,
    /// Messages that arrived with another text, name, id or recipient, and objects that make no sense.
    pub changed: u64,
    pub changed_sample: Option<String>,
    /// The refusals by their errno; in a storm, also attempts that failed, by how they did.
    pub refused: BTreeMap<String, Refusal>,
    pub acks_lost: u64,
    pub acks_repeated: u64,
    /// Acks of requests that were never sent.
    pub acks_changed: u64,
    /// Acks after one for a later request, which is no fault.
    pub acks_out_of_order: u64,
    /// Acts of an open loop that were due, and were not done.
    pub missed: u64,
    /// Connections that the server has closed.
    pub closed: u64,
}

impl Counts {
    pub fn refuse(&mut self, errno: &str, times: u64, said: &[u8]) {
        refuse(&mut self.refused, errno, times, said);
    }

    pub fn change(&mut self, object: &[u8]) {
        self.changed += 1;
        self.changed_sample.get_or_insert_with(|| sample(object));
    }

    pub fn refusals(&self) -> u64 {
        self.refused.values().map(|refusal| refusal.count).sum()
    }

    /// The number of things that must not happen; refusals with an expected errno are left out.
    pub fn wrong(&self, expected: &[i64]) -> u64 {
        let is_expected = |errno: &str| errno.parse::<i64>().is_ok_and(|errno| expected.contains(&errno));
        let refused = self.refused.iter().filter(|(errno, _)| !is_expected(errno)).map(|(_, refusal)| refusal.count);
        self.lost
            + self.repeated
            + self.out_of_order
            + self.changed
            + refused.sum::<u64>()
            + self.acks_lost
            + self.acks_repeated
            + self.acks_changed
            + self.closed
    }

    pub fn add(&mut self, other: &Counts) {
        self.delivered += other.delivered;
        self.stored += other.stored;
        self.lost += other.lost;
        self.repeated += other.repeated;
        self.out_of_order += other.out_of_order;
        self.changed += other.changed;
        if self.changed_sample.is_none() {
            self.changed_sample.clone_from(&other.changed_sample);
        }
        for (errno, refusal) in &other.refused {
            self.refuse(errno, refusal.count, refusal.sample.as_bytes());
        }
        self.acks_lost += other.acks_lost;
        self.acks_repeated += other.acks_repeated;
        self.acks_changed += other.acks_changed;
        self.acks_out_of_order += other.acks_out_of_order;
        self.missed += other.missed;
        self.closed += other.closed;
    }
}

/// How a storm's users were served.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turnout {
    pub users: u64,
    pub served: u64,
    /// When the last of those was, in seconds since the storm began.
    pub last: f64,
    /// Attempts that came to nothing and were made again, by what went wrong.
    pub again: BTreeMap<String, Refusal>,
}

impl Turnout {
    /// How long it took until all were served, in seconds; `None`: not all were.
    pub fn all(&self) -> Option<f64> {
        (self.served == self.users).then_some(self.last)
    }

    pub fn try_again(&mut self, why: &str, times: u64, said: &[u8]) {
        refuse(&mut self.again, why, times, said);
    }

    pub fn add(&mut self, other: &Turnout) {
        self.users += other.users;
        self.served += other.served;
        self.last = self.last.max(other.last);
        other.again.iter().for_each(|(why, it)| self.try_again(why, it.count, it.sample.as_bytes()));
    }
}

/// Clients that never log in, beside those that are measured.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strangers {
    pub half_open: u64,
    pub slow: u64,
    /// How often the server has closed or refused the connection of one of them.
    pub closed: u64,
}

fn refuse(refused: &mut BTreeMap<String, Refusal>, why: &str, times: u64, said: &[u8]) {
    let refusal = refused.entry(why.to_owned()).or_default();
    if refusal.count == 0 {
        refusal.sample = sample(said);
    }
    refusal.count += times;
}

/// The beginning of what a server has said.
pub fn sample(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    match text.char_indices().nth(SAMPLE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
