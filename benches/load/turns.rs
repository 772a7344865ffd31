//! Who acts next in an open loop.

use std::collections::BTreeMap;

use crate::acts::{Act, Mix};
use crate::roles::Role;
use crate::stats;

/// The senders of a thread. In a mix they are divided by their acts; else they are all of one kind.
pub struct Turns {
    kinds: Vec<Kind>,
}

struct Kind {
    act: Option<Act>,
    weight: i64,
    /// Who has the most of it is next.
    credit: i64,
    senders: Vec<usize>,
    next: usize,
    /// Acts while it was measured.
    measured: u64,
}

impl Turns {
    pub fn new(roles: &[Role], mix: Option<Mix>, seed: u64) -> Turns {
        let acting = (0..roles.len()).filter(|&n| roles[n].acts());
        let kind = |act: Option<Act>, weight: u32, senders: Vec<usize>| {
            let senders = scattered(senders, seed);
            (!senders.is_empty()).then(|| Kind { act, weight: weight.into(), credit: 0, senders, next: 0, measured: 0 })
        };
        let kinds = match mix {
            None => kind(None, 1, acting.collect()).into_iter().collect(),
            Some(mix) => {
                let of = |act: Act| acting.clone().filter(|&n| roles[n].act() == Some(act)).collect();
                mix.acts().filter_map(|act| kind(Some(act), mix.weight(act), of(act))).collect()
            }
        };
        Turns { kinds }
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// The next sender: of each kind as often as its weight says and as evenly as can be, and of a kind each in turn.
    pub fn next(&mut self, is_measured: bool) -> Option<usize> {
        let total: i64 = self.kinds.iter().map(|kind| kind.weight).sum();
        self.kinds.iter_mut().for_each(|kind| kind.credit += kind.weight);
        let kind = self.kinds.iter_mut().max_by_key(|kind| kind.credit)?;
        kind.credit -= total;
        kind.measured += u64::from(is_measured);
        let sender = kind.senders[kind.next];
        kind.next = (kind.next + 1) % kind.senders.len();
        Some(sender)
    }

    /// How often each act of a mix was done while it was measured.
    pub fn measured(&self) -> BTreeMap<String, f64> {
        let acts = self.kinds.iter().filter_map(|kind| Some((kind.act?.name().to_owned(), kind.measured as f64)));
        acts.collect()
    }
}

/// Puts the senders into an order in which neighbours stand far apart, so that an open loop's roles mix.
fn scattered(mut senders: Vec<usize>, seed: u64) -> Vec<usize> {
    senders.sort_by_key(|&n| stats::mix(n as u64 ^ seed));
    senders
}
