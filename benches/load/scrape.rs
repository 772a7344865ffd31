//! What servers say of their own times: how long their jobs waited for a worker, and how long their store took.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::measures::{Measure, Measures};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The histograms, a label that their series must have, and what they time.
const HISTOGRAMS: [(&str, &str, Measure); 2] = [
    ("chat_job_wait_seconds_bucket{", "pool=\"store\"", Measure::Queue),
    ("chat_store_seconds_bucket{", "", Measure::Store),
];

/// Of each histogram, by the upper bound of a bucket in nanoseconds, how many times it or those below it have had.
#[derive(Debug, Default)]
pub struct Scrape([BTreeMap<u64, u64>; 2]);

impl Scrape {
    /// Of all these together. `None`: one of them does not tell it.
    pub fn of(addresses: &[SocketAddr]) -> Option<Scrape> {
        let mut scrape = Scrape::default();
        for &address in addresses {
            scrape.add(&get(address).ok()?);
        }
        (!addresses.is_empty() && scrape.0.iter().all(|buckets| !buckets.is_empty())).then_some(scrape)
    }

    fn add(&mut self, text: &str) {
        for ((start, label, _), buckets) in HISTOGRAMS.iter().zip(&mut self.0) {
            for line in text.lines().filter_map(|line| line.strip_prefix(start)).filter(|line| line.contains(label)) {
                let bound = line.split_once("le=\"").and_then(|(_, rest)| rest.split_once('"'));
                let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse::<u64>().ok());
                let Some((Ok(seconds), count)) = bound.map(|(bound, _)| bound.parse::<f64>()).zip(count) else {
                    continue;
                };
                *buckets.entry((seconds * 1e9) as u64).or_default() += count;
            }
        }
    }

    /// Records what has been added since an earlier one, each time as the upper bound of its bucket. What is above all
    /// bounds counts as the highest.
    pub fn record_since(&self, before: &Scrape, measures: &mut Measures) {
        for (((_, _, measure), now), before) in HISTOGRAMS.iter().zip(&self.0).zip(&before.0) {
            let highest = now.keys().copied().filter(|&bound| bound < u64::MAX).max().unwrap_or(0);
            let mut below = 0;
            for (&bound, &count) in now {
                let count = count.saturating_sub(before.get(&bound).copied().unwrap_or(0));
                let own = count.saturating_sub(below);
                if own > 0 {
                    measures.record_many(*measure, bound.min(highest), own);
                }
                below = count;
            }
        }
    }
}

fn get(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}
