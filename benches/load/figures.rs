//! What rounds have shown.

use crate::measures::{Measure, Measures};

/// One round, or the medians of several.
#[derive(Debug, Clone)]
pub struct Figures {
    pub name: &'static str,
    /// Messages a second.
    pub rate: f64,
    /// Of the target, in microseconds for each message; 0 without its pid.
    pub user: f64,
    pub system: f64,
    /// How many times as much CPU a message takes as with the floor; of several rounds, the median of
    /// what each round's two have shown, since they stood next to each other in a noisy time.
    pub to_floor: Option<f64>,
    pub resident_kib: u64,
    pub lost: u64,
    pub disordered: u64,
    pub errors: u64,
    /// The part of its time in which the busiest generator thread did not wait: at 1, it is what
    /// limits.
    pub busy: f64,
    /// The part of an open loop's messages that left late.
    pub late: f64,
    /// Of all rounds together.
    pub measures: Measures,
    pub latencies: Vec<Latency>,
    /// Of the last round.
    pub samples: Vec<Sample>,
}

/// How long one measure took, in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Latency {
    pub measure: Measure,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// A moment of a round.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Seconds since the round began to be measured.
    pub at: f64,
    /// Messages a second, since the sample before.
    pub rate: f64,
    /// The target's CPU since the sample before, in cores.
    pub cores: f64,
    pub resident_kib: u64,
}

impl Figures {
    /// Microseconds of the target for each message.
    pub fn cpu(&self) -> f64 {
        self.user + self.system
    }

    pub fn wrong(&self) -> u64 {
        self.lost + self.disordered + self.errors
    }

    pub fn latency(&self, measure: Measure) -> Option<&Latency> {
        self.latencies.iter().find(|latency| latency.measure == measure)
    }

    pub fn is_the_generators_limit(&self) -> bool {
        self.busy > 0.9 || self.late > 0.01
    }
}

impl Measures {
    pub fn latencies(&self) -> Vec<Latency> {
        let latencies = self.seen().map(|(measure, histogram)| {
            let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|q| histogram.value_at_quantile(q) as f64 / 1000.0);
            Latency { measure, p50, p99, p999, max }
        });
        latencies.collect()
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Each figure's own median; what must not happen is added up.
pub fn medians(rounds: &[Figures]) -> anyhow::Result<Figures> {
    let of = |figure: &dyn Fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
    let ratios: Vec<f64> = rounds.iter().filter_map(|round| round.to_floor).collect();
    let mut measures = Measures::new()?;
    rounds.iter().try_for_each(|round| measures.add(&round.measures))?;
    let latencies = measures.seen().map(|(measure, _)| {
        let of = |part: &dyn Fn(&Latency) -> f64| {
            median(rounds.iter().filter_map(|f| f.latency(measure)).map(part).collect())
        };
        Latency { measure, p50: of(&|l| l.p50), p99: of(&|l| l.p99), p999: of(&|l| l.p999), max: of(&|l| l.max) }
    });
    let latencies = latencies.collect();
    Ok(Figures {
        name: rounds[0].name,
        rate: of(&|f| f.rate),
        user: of(&|f| f.user),
        system: of(&|f| f.system),
        to_floor: (!ratios.is_empty()).then(|| median(ratios)),
        resident_kib: of(&|f| f.resident_kib as f64) as u64,
        lost: rounds.iter().map(|f| f.lost).sum(),
        disordered: rounds.iter().map(|f| f.disordered).sum(),
        errors: rounds.iter().map(|f| f.errors).sum(),
        busy: of(&|f| f.busy),
        late: of(&|f| f.late),
        measures,
        latencies,
        samples: rounds[rounds.len() - 1].samples.clone(),
    })
}
