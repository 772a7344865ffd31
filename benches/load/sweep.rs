//! The same workload with several numbers of reactors and workers: in random order, until it is known which of them
//! differ, or the time is over. That none differs is an answer, too.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::about;
use crate::book::Book;
use crate::ending;
use crate::figures::{Figures, Limit, together};
use crate::find;
use crate::flags::Flags;
use crate::plot::{Line, Plot};
use crate::report;
use crate::round;
use crate::search::Care;
use crate::stats::{Ratio, Rng, Row, geometric_mean, ratios};
use crate::target::Target;

/// A setting with less than this part of the best one's score is worse; with more, it is as good.
const AS_GOOD: f64 = 0.95;
/// Fewer rounds say too little about noise.
const LEAST_ROUNDS: usize = 5;
const MOST_SETTINGS: usize = 100;
/// Of a search for the highest rate: nearer would cost more than it says.
const CARE: Care = Care { ratio: 1.1, times: 1 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    reactors: u16,
    workers: u16,
}

/// One setting, and what its rounds have shown.
struct Tried {
    setting: Setting,
    /// Of each round: the rate that it carried, or, with --slo, the highest that keeps it.
    scores: Vec<f64>,
    figures: Vec<Figures>,
    problems: Vec<String>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// It may be as good as the best, or worse.
    Open,
    Best,
    AsGood(Ratio),
    Worse(Ratio),
}

/// Tries them, shows them, and recommends. Returns what was wrong.
pub fn run(flags: &Flags) -> anyhow::Result<Vec<String>> {
    flags.check()?;
    let window = vec![flags.window.first().copied().unwrap_or(16)];
    let flags = &Flags { window, ..flags.clone() };
    let mut tried = settings(flags)?;
    let until = Instant::now() + Duration::from_secs_f64(flags.budget());
    let mut rng = Rng(flags.seed());
    for round in 0..flags.rounds.map_or(usize::MAX, usize::from) {
        // A noisy minute does not fall on the same ones each time.
        let mut order: Vec<usize> =
            (0..tried.len()).filter(|&n| !matches!(tried[n].verdict, Verdict::Worse(_))).collect();
        (1..order.len()).for_each(|n| order.swap(n, rng.below(n + 1)));
        for n in order {
            if ending::signal().is_none() && (round == 0 || Instant::now() < until) {
                tried[n].measure(flags, until)?;
            }
        }
        if ending::signal().is_some() || !judge(&mut tried, flags.seed()) || Instant::now() >= until {
            break;
        }
    }
    tried.retain(|it| !it.scores.is_empty());
    ensure!(!tried.is_empty(), "ended by a signal before anything was measured");
    judge(&mut tried, flags.seed());
    let shown = Shown::new(flags, &tried)?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", shown.json)?
    } else {
        write!(out, "{}", shown.text)?
    }
    if let Some(file) = &flags.svg {
        let svg = Plot::svg_of(&plots(&tried)?)?;
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &flags.html {
        let plots = plots(&tried)?.iter().map(Plot::svg).collect::<anyhow::Result<Vec<String>>>()?;
        report::write_page(file, &about::title(flags), &shown.advice, &shown.text, &plots)?;
    }
    Ok(tried.into_iter().flat_map(|it| it.problems).collect())
}

/// The settings that can make a difference for the workload.
fn settings(flags: &Flags) -> anyhow::Result<Vec<Tried>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let to_twice_the_cores = (0..8).map(|n| 1 << n).take_while(|&reactors| usize::from(reactors) <= 2 * cores);
    let or = |given: &[u16], matters: bool, usual: Vec<u16>, fixed: usize| match given {
        [] if matters => usual,
        [] => vec![fixed as u16],
        given => given.to_vec(),
    };
    let takes = |name: &str| flags.launch.as_ref().is_none_or(|command| command.contains(name));
    let all_reactors = or(&flags.reactors, takes("{reactors}"), to_twice_the_cores.collect(), flags.reactors());
    let has_work = takes("{workers}") && flags.workload.needs_workers();
    let all_workers = or(&flags.workers, has_work, vec![1, 2, 4], flags.workers());
    let mut tried = Vec::new();
    for &workers in &all_workers {
        tried.extend(all_reactors.iter().map(|&reactors| Tried {
            setting: Setting { reactors, workers },
            scores: Vec::new(),
            figures: Vec::new(),
            problems: Vec::new(),
            verdict: Verdict::Open,
        }));
    }
    ensure!(tried.len() > 1, "there is nothing to choose from: --reactors or --workers with several numbers");
    ensure!(tried.len() <= MOST_SETTINGS, "{} settings to try are too many: at most {MOST_SETTINGS}", tried.len());
    Ok(tried)
}

impl Tried {
    /// One round more.
    fn measure(&mut self, flags: &Flags, until: Instant) -> anyhow::Result<()> {
        let Setting { reactors, workers } = self.setting;
        let here = Flags { reactors: vec![reactors], workers: vec![workers], ..flags.clone() };
        let mut book = Book { is_quiet: !self.scores.is_empty(), ..Book::default() };
        let score = if flags.slo.is_empty() {
            let figures = match round::once(&here, Target::server(&here)?, &mut book) {
                Err(_) if ending::signal().is_some() => return Ok(()),
                figures => figures?,
            };
            let wrong = figures.counts.wrong(&flags.expect_errno);
            let why = figures.cut_short.clone().or_else(|| (wrong > 0).then(|| format!("{wrong} were lost or wrong")));
            self.problems.extend(why.map(|why| format!("{reactors} reactors, {workers} workers: {why}")));
            let rate = figures.rate;
            self.figures.push(figures);
            rate
        } else {
            // It begins where the last one has ended.
            let first = self.scores.last().copied().or(flags.rate()).unwrap_or(1000.0);
            let found = match find::find(&here, first, CARE, until, &mut book) {
                Err(_) if ending::signal().is_some() => return Ok(()),
                found => found?,
            };
            let kept = found.bracket.kept.unwrap_or(0.0);
            self.figures.extend(found.figures_at(kept));
            kept
        };
        self.scores.push(score.max(1.0));
        Ok(())
    }

    fn score(&self) -> f64 {
        geometric_mean(&self.scores)
    }

    fn limit(&self) -> Option<Limit> {
        together(&self.figures).ok().and_then(|figures| figures.limit())
    }
}

/// Compares all that are not out with the best one, in the rounds that they share. Is anything still open?
fn judge(tried: &mut [Tried], seed: u64) -> bool {
    let alive: Vec<usize> = (0..tried.len()).filter(|&n| !matches!(tried[n].verdict, Verdict::Worse(_))).collect();
    let rounds = alive.iter().map(|&n| tried[n].scores.len()).min().unwrap_or(0);
    alive.iter().for_each(|&n| tried[n].verdict = Verdict::Open);
    let best = alive.iter().copied().max_by(|&one, &other| tried[one].score().total_cmp(&tried[other].score()));
    let Some(best) = best.filter(|_| rounds >= LEAST_ROUNDS) else { return true };
    let others: Vec<usize> = alive.into_iter().filter(|&n| n != best).collect();
    let of = |n: usize| tried[n].scores[..rounds].to_vec();
    let rows: Vec<Row> = others.iter().map(|&n| Row { old: of(best), new: of(n) }).collect();
    for (n, ratio) in others.iter().zip(ratios(&rows, true, seed)) {
        tried[*n].verdict = match ratio {
            ratio if ratio.high < 1.0 => Verdict::Worse(ratio),
            ratio if ratio.low > AS_GOOD => Verdict::AsGood(ratio),
            _ => Verdict::Open,
        };
    }
    tried[best].verdict = Verdict::Best;
    tried.iter().any(|it| it.verdict == Verdict::Open)
}

/// What is shown, in each form.
struct Shown {
    text: String,
    json: Value,
    advice: String,
}

impl Shown {
    fn new(flags: &Flags, tried: &[Tried]) -> anyhow::Result<Shown> {
        let score = if flags.slo.is_empty() { "msg/s" } else { "max rate" };
        let mut text = format!("{}\n{}\n", about::title(flags), about::setting(flags));
        writeln!(text, "reactors workers rounds {score:>10}   CPU us  to the best      limit")?;
        let mut rows = Vec::new();
        for it in tried {
            let Setting { reactors, workers } = it.setting;
            let figures = if it.figures.is_empty() { None } else { Some(together(&it.figures)?) };
            let (cpu, limit) = (figures.as_ref().map(Figures::cpu), it.limit().map(Limit::name));
            let (words, ratio) = match it.verdict {
                Verdict::Best => ("best", None),
                Verdict::AsGood(ratio) => ("as good", Some(ratio)),
                Verdict::Worse(ratio) => ("worse", Some(ratio)),
                Verdict::Open => ("not known", None),
            };
            let interval = ratio.map_or(words.to_owned(), |it| format!("{words}, {:.2} to {:.2}", it.low, it.high));
            let (rounds, score) = (it.scores.len(), it.score());
            write!(text, "{reactors:8} {workers:7} {rounds:6} {score:10.0} {:8.2}  ", cpu.unwrap_or(0.0))?;
            writeln!(text, "{interval:22} {}", limit.unwrap_or("-"))?;
            rows.push(json!({
                "reactors": reactors, "workers": workers, "rounds": rounds, "score": score, "cpu_us": cpu,
                "verdict": words, "low": ratio.map(|it| it.low), "high": ratio.map(|it| it.high), "limit": limit,
            }));
        }
        let (advice, recommended) = advice(flags, tried);
        writeln!(text, "{advice}")?;
        let recommended = recommended.map(|it| json!({ "reactors": it.reactors, "workers": it.workers }));
        let json = json!({
            "title": about::title(flags), "settings": about::settings(flags), "score": score, "rows": rows,
            "recommended": recommended, "advice": advice,
        });
        Ok(Shown { text, json, advice })
    }
}

/// What to do, and the setting, if there is one to recommend.
fn advice(flags: &Flags, tried: &[Tried]) -> (String, Option<Setting>) {
    let workload = flags.workload.name();
    if tried.iter().all(|it| it.limit().is_some()) {
        let why = "everywhere the machine or the generator was the limit: these are its figures, not the server's";
        return (format!("none is recommended for {workload}: {why}; see --pin"), None);
    }
    let is_good = |it: &&Tried| matches!(it.verdict, Verdict::Best | Verdict::AsGood(_));
    let good: Vec<Setting> = tried.iter().filter(is_good).map(|it| it.setting).collect();
    let is_open = tried.iter().any(|it| it.verdict == Verdict::Open);
    let least = good.iter().min_by_key(|it| (it.reactors + it.workers, it.reactors)).copied();
    let Some(least) = least.filter(|_| !is_open) else {
        let why = "the rounds that there were do not tell which settings differ";
        return (format!("none is recommended for {workload}: {why}; --budget or --rounds with more"), None);
    };
    let Setting { reactors, workers } = least;
    let how = match good.len() {
        all if all == tried.len() => "no difference between any of them: this one has the fewest threads".to_owned(),
        1 => "all others are worse".to_owned(),
        some => format!("{some} are equally good, and this one has the fewest threads"),
    };
    (format!("recommended for {workload}: --reactors {reactors} --workers {workers}; {how}"), Some(least))
}

fn plots(tried: &[Tried]) -> anyhow::Result<[Plot; 2]> {
    let (mut rates, mut costs): (Vec<Line>, Vec<Line>) = Default::default();
    for it in tried {
        let name = format!("workers {}", it.setting.workers);
        let cpu = if it.figures.is_empty() { 0.0 } else { together(&it.figures)?.cpu() };
        for (lines, value) in [(&mut rates, it.score()), (&mut costs, cpu)] {
            let point = (f64::from(it.setting.reactors), value);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name: name.clone(), points: vec![point] }),
            }
        }
    }
    let plot = |title: &str, y_label, lines| Plot {
        title: title.to_owned(),
        x_label: "reactors",
        y_label,
        x_text: |x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() },
        x_labels: 8,
        log: false,
        lines,
    };
    Ok([plot("Throughput", "messages/s", rates), plot("Cost", "microseconds of server CPU a message", costs)])
}
