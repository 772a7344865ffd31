//! What rounds have shown.

use std::collections::BTreeMap;
use std::ops::Range;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::hdr;
use crate::machine::Cpu;
use crate::measures::{Measure, Measures};
use crate::stats::median;
use crate::tally::{Counts, Strangers, Turnout};
use crate::timeline::{STEP, Timeline};

/// The share of all cores, or of one generator thread's time, above which nothing was left to wait with.
const FULL: f64 = 0.85;
/// The share of an open loop's acts that may be late or not done at all; with more, the loop was not open.
pub const TOO_LATE: f64 = 0.01;

/// One round, or several taken together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    pub name: String,
    /// When it began to be measured, in seconds since 1970, and for how many seconds it was.
    pub began: f64,
    pub seconds: f64,
    /// Messages a second.
    pub rate: f64,
    /// The target's CPU by its parts: the server, and a database or a Redis beside it; empty without a pid.
    pub parts: Vec<Part>,
    /// How many times as much CPU a message takes as with the floor; of several rounds, the median of
    /// what each round's two have shown, since they stood next to each other in a noisy time.
    pub to_floor: Option<f64>,
    pub resident_kib: u64,
    pub counts: Counts,
    /// What the users of a mix did, by the acts' names, in acts a second; else nothing.
    #[serde(default)]
    pub acts: BTreeMap<String, f64>,
    pub load: Load,
    /// The measures of all rounds together.
    pub measures: Measures,
    /// What the samples have timed, if anything.
    pub sampled: Option<Measure>,
    /// The samples of the last round.
    pub samples: Vec<Sample>,
    /// How a busy recipient was served; else none.
    pub services: Vec<Service>,
    /// How a storm's users were served; else none.
    pub turnout: Option<Turnout>,
    /// Who was there beside those that are measured, if anybody.
    pub strangers: Option<Strangers>,
    /// It ended before its time, and why.
    pub cut_short: Option<String>,
}

/// How a busy recipient was served with what was written on one kind of node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Service {
    /// "own node" or "other node".
    pub name: String,
    /// When it stood still, in nanoseconds.
    pub still: Range<u64>,
    /// The timeline of the last round.
    pub timeline: Timeline,
    /// How long after that it was served as before, in seconds; `None`: not any more. Of several rounds, the worst.
    pub back: Option<f64>,
    /// How long it was looked at after that, in seconds.
    pub rest: f64,
}

/// Processes of one name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    /// Microseconds for each message.
    pub cpu: Cpu,
    pub cores: f64,
}

/// What the generator and the machine had to do.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Load {
    /// Cores that this process used, …
    pub generator: f64,
    /// … that all processes used, and how many there are.
    pub all: f64,
    pub cores: f64,
    /// The part of its time in which the busiest generator thread used a core.
    pub busiest: f64,
    /// The part of an open loop's acts that were done late, or not at all.
    pub late: f64,
    /// The generator and the servers have cores of their own: who fills all of its cores takes none from the other.
    pub is_apart: bool,
}

/// What kept the target from doing more, other than itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Generator,
    Machine,
}

impl Limit {
    pub fn name(self) -> &'static str {
        match self {
            Limit::Generator => "generator",
            Limit::Machine => "machine",
        }
    }

    /// Stands beside every figure that it has touched.
    pub fn mark(self) -> &'static str {
        match self {
            Limit::Generator => "‡",
            Limit::Machine => "†",
        }
    }
}

/// A step of a round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// Its end, in seconds since the round began to be measured.
    pub at: f64,
    /// Messages a second.
    pub rate: f64,
    /// The CPU of the target, of this process, and of all, in cores.
    pub cores: f64,
    pub generator: f64,
    pub all: f64,
    pub resident_kib: u64,
    /// The times of the workload's first measure that ended in it, in microseconds.
    #[serde(with = "hdr")]
    pub times: Histogram<u64>,
}

impl Sample {
    /// Its number among the steps of this length, in seconds.
    pub fn step(&self, length: f64) -> usize {
        ((self.at / length).round() as usize).saturating_sub(1)
    }
}

impl Figures {
    /// Microseconds of the whole target for each message; 0 without a pid.
    pub fn cpu(&self) -> f64 {
        self.user() + self.system()
    }

    /// The same of one part.
    pub fn cpu_of(&self, name: &str) -> f64 {
        self.parts.iter().filter(|part| part.name == name).map(|part| part.cpu.total()).sum()
    }

    pub fn user(&self) -> f64 {
        self.parts.iter().map(|part| part.cpu.user).sum()
    }

    pub fn system(&self) -> f64 {
        self.parts.iter().map(|part| part.cpu.system).sum()
    }

    pub fn limit(&self) -> Option<Limit> {
        let Load { all, cores, busiest, late, is_apart, .. } = self.load;
        match () {
            () if busiest > FULL => Some(Limit::Generator),
            () if !is_apart && cores > 0.0 && all / cores > FULL => Some(Limit::Machine),
            () if late > TOO_LATE => Some(Limit::Generator),
            () => None,
        }
    }

    pub fn mark(&self) -> &'static str {
        self.limit().map_or("", Limit::mark)
    }

    /// The machine's use by its users: "server 0.95 + generator 0.82 + others 0.03 of 2 cores".
    pub fn shares(&self) -> String {
        let Load { generator, all, cores, .. } = self.load;
        let known = generator + self.parts.iter().map(|part| part.cores).sum::<f64>();
        let parts = self.parts.iter().map(|part| format!("{} {:.2} + ", part.name, part.cores)).collect::<String>();
        format!("{parts}generator {generator:.2} + others {:.2} of {cores:.0} cores", (all - known).max(0.0))
    }

    /// Names and values of what two runs can be compared by, and whether more of it is better.
    pub fn rows(&self) -> Vec<(String, f64, bool)> {
        let mut rows = vec![("msg/s".to_owned(), self.rate, true)];
        if !self.parts.is_empty() {
            rows.push(("CPU us".to_owned(), self.cpu(), false));
            if self.parts.len() > 1 {
                // The server alone, without a database or a Redis beside it.
                rows.push(("CPU us, server".to_owned(), self.parts[0].cpu.total(), false));
            }
            rows.push(("RSS KiB".to_owned(), self.resident_kib as f64, false));
        }
        for service in &self.services {
            // What is not back has taken all the time that there was, at least; nothing takes no time.
            let back = service.back.unwrap_or(service.rest).max(STEP as f64 / 1e9);
            rows.push((format!("back ms, {}", service.name), back * 1000.0, false));
        }
        if let Some(turnout) = &self.turnout {
            // Those that are not served have taken all the time that there was, at least.
            rows.push(("all served ms".to_owned(), turnout.all().unwrap_or(self.seconds) * 1000.0, false));
        }
        for measure in self.measures.seen().filter(|&measure| measure != Measure::Lag) {
            for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)] {
                rows.push((format!("{}.{name} us", measure.key()), self.measures.quantile(measure, part), false));
            }
        }
        rows
    }
}

/// Throughput, CPU and memory: each figure's own median. Latencies: of all rounds together, so that the maximum is
/// one, and a bad moment is not outvoted. What must not happen is added up.
pub fn together(rounds: &[Figures]) -> anyhow::Result<Figures> {
    let of = |figure: &dyn Fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
    let ratios: Vec<f64> = rounds.iter().filter_map(|round| round.to_floor).collect();
    let (mut measures, mut counts) = (Measures::new()?, Counts::default());
    let (mut turnout, mut strangers): (Option<Turnout>, Option<Strangers>) = (None, None);
    for round in rounds {
        measures.add(&round.measures)?;
        counts.add(&round.counts);
        if let Some(it) = &round.turnout {
            turnout.get_or_insert_default().add(it);
        }
        if let Some(it) = &round.strangers {
            let before = strangers.take().map_or(0, |before| before.closed);
            strangers = Some(Strangers { closed: before + it.closed, ..it.clone() });
        }
    }
    let last = &rounds[rounds.len() - 1];
    let services = last.services.iter().enumerate().map(|(n, service)| {
        let backs = rounds.iter().map(|round| round.services.get(n).and_then(|service| service.back));
        let back = backs.reduce(|worst, back| Some(worst?.max(back?))).flatten();
        Service { back, ..service.clone() }
    });
    let parts = last.parts.iter().enumerate().map(|(n, part)| {
        let of =
            |value: &dyn Fn(&Part) -> f64| median(rounds.iter().filter_map(|f| f.parts.get(n)).map(value).collect());
        let cpu = Cpu { user: of(&|part| part.cpu.user), system: of(&|part| part.cpu.system) };
        Part { name: part.name.clone(), cpu, cores: of(&|part| part.cores) }
    });
    let acts = last.acts.keys().map(|act| (act.clone(), of(&|f| f.acts.get(act).copied().unwrap_or(0.0))));
    Ok(Figures {
        name: last.name.clone(),
        began: rounds[0].began,
        seconds: last.seconds,
        rate: of(&|f| f.rate),
        parts: parts.collect(),
        to_floor: (!ratios.is_empty()).then(|| median(ratios)),
        resident_kib: of(&|f| f.resident_kib as f64) as u64,
        counts,
        acts: acts.collect(),
        load: Load {
            generator: of(&|f| f.load.generator),
            all: of(&|f| f.load.all),
            cores: last.load.cores,
            busiest: of(&|f| f.load.busiest),
            late: of(&|f| f.load.late),
            is_apart: last.load.is_apart,
        },
        measures,
        sampled: last.sampled,
        samples: last.samples.clone(),
        services: services.collect(),
        turnout,
        strangers,
        cut_short: rounds.iter().find_map(|round| round.cut_short.clone()),
    })
}
