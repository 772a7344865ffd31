//! What a run says in three sentences: whether all was well, what has limited it, and what to try next.

use crate::figures::{Figures, Limit};
use crate::run::Run;

/// The server's share of the cores beside the generator, above which it has no more to give.
const FULL: f64 = 0.85;
/// The share of others in what was used, above which it is theirs.
const OTHERS: f64 = 0.5;

pub struct Advice {
    pub verdict: String,
    pub limit: String,
    pub next: &'static str,
}

impl Advice {
    pub fn of(run: &Run) -> Advice {
        // Of phases, the last one that was limited says the most.
        let limited = run.shown.iter().rev().find(|figures| figures.limit().is_some()).or(run.shown.last());
        let phase = limited.filter(|_| !run.about.phases.is_empty());
        let server = phase.unwrap_or(&run.shown[0]);
        let measured = |measure| {
            let of = |part: f64| server.measures.quantile(measure, part) / 1000.0;
            format!("{}: p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms", measure.name(), of(0.5), of(0.99), of(1.0))
        };
        let first = server.sampled.filter(|&measure| server.measures.count(measure) > 0);
        let latency = first.map_or(String::new(), |measure| format!("; {}", measured(measure)));
        let state =
            if run.problems.is_empty() { "Nothing was lost or wrong" } else { "Something was wrong, see below" };
        let of_phase = phase.map_or(String::new(), |phase| format!(" in {}", phase.name));
        let verdict = format!("{state}{of_phase}: {:.0} messages/s{latency}.", server.rate);
        let (limit, next) = limit(run, server);
        Advice { verdict, limit: format!("{limit} ({}).", server.shares()), next }
    }
}

fn limit(run: &Run, server: &Figures) -> (&'static str, &'static str) {
    let own: f64 = server.parts.iter().map(|part| part.cores).sum();
    let left = (server.load.cores - server.load.generator).max(1.0);
    match server.limit() {
        _ if !run.problems.is_empty() => {
            ("What was wrong comes before any limit", "Find out why, with --rate and few --users; then measure again.")
        }
        Some(Limit::Generator) => (
            "The generator was the limit, so the figures are its own",
            "More --threads, cores of its own (--pin), or several machines (--share).",
        ),
        Some(Limit::Machine)
            if !server.parts.is_empty() && server.load.all - own - server.load.generator > OTHERS * server.load.all =>
        {
            (
                "Other programs have used most of the cores, so the figures are of a busy machine",
                "The same again while nothing else runs on it.",
            )
        }
        Some(Limit::Machine) => (
            "All cores were busy, so server and generator have slowed down each other",
            "The generator on another machine (--addr), or cores for each (--pin).",
        ),
        None if own > FULL * left => (
            "The server had all the CPU that it could get",
            "More cores for the server, --sweep, or a flame graph of where its time goes.",
        ),
        None if server.turnout.is_some() => (
            "The server has served all who came",
            "A higher --rate, until served.p99 is more than users bear; --after kill, for how they come back.",
        ),
        None if run.about.is_open => (
            "The server has kept up: the rate was the limit",
            "--find-max with an --slo, for the highest rate that keeps it.",
        ),
        None => (
            "The users' waiting was the limit, since in a closed loop they act only when they are answered",
            "A larger --window or more --users, until the rate does not grow any more; then --find-max.",
        ),
    }
}
