//! Several generators' shares of one run, put together: `report 1.json 2.json 3.json`.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::figures::{Figures, Load, Part, Sample};
use crate::flags::Flags;
use crate::machine::Cpu;
use crate::run::Run;
use crate::series;
use crate::tally::Strangers;

/// What the shares of one run may differ in.
const FREE: [&str; 7] = ["machine", "seed", "addr", "version", "bench_version", "pin", "source"];
/// The part of the measured time that they may begin apart.
const APART: f64 = 0.1;

/// The run that these files are, or are the shares of.
pub fn read(flags: &Flags, files: &[String]) -> anyhow::Result<Run> {
    let runs = files.iter().map(|file| Run::read(Path::new(file))).collect::<anyhow::Result<Vec<Run>>>()?;
    if let [run] = &runs[..] {
        let mut run = run.clone();
        run.judge(flags);
        return Ok(run);
    }
    merged(flags, runs)
}

fn merged(flags: &Flags, runs: Vec<Run>) -> anyhow::Result<Run> {
    let first = runs.first().context("report FILE…: files that --out has written")?;
    let of = runs.len();
    let mut numbers = Vec::new();
    for run in &runs {
        let differ = first.about.differences(&run.about, &FREE);
        ensure!(differ.is_empty(), "they are not shares of one run: {}", differ.join(", "));
        let share = run.about.share.context("files of runs without --share cannot be added up")?;
        ensure!(usize::from(share.of) == of, "{of} files, and one is share {share}");
        numbers.push(share.number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(numbers.len() == of, "two files are the same share");
    let all: Vec<&Figures> = runs.iter().map(|run| &run.rounds[0][0]).collect();
    let apart = all.iter().map(|figures| (figures.began - all[0].began).abs()).fold(0.0, f64::max);
    ensure!(
        apart <= APART * all[0].seconds,
        "they began {apart:.1} s apart, so their rates do not add up: --start-at, and clocks that agree"
    );
    let mut about = first.about.clone();
    about.share = None;
    about.title += &format!(", from {of} generators");
    let mut merged = Run::new(flags, about, vec![vec![sum(&all)?]])?;
    // Those that speak of the whole are among them already.
    merged.problems.extend(runs.iter().flat_map(|run| run.problems.iter().cloned()));
    merged.problems.sort();
    merged.problems.dedup();
    merged.left = runs.iter().filter_map(|run| run.left.clone()).reduce(|all, one| format!("{all}\n{one}"));
    merged.speaks = first.speaks.clone();
    Ok(merged)
}

/// One round of all of them. The target's CPU and memory are those that the first one that knows its processes has seen.
fn sum(all: &[&Figures]) -> anyhow::Result<Figures> {
    let mut sum = all[0].clone();
    for other in &all[1..] {
        sum.measures.add(&other.measures)?;
        sum.counts.add(&other.counts);
        if let (Some(sum), Some(other)) = (&mut sum.turnout, &other.turnout) {
            sum.add(other);
        }
        if let (Some(sum), Some(other)) = (&mut sum.strangers, &other.strangers) {
            let Strangers { half_open, slow, closed } = other;
            *sum =
                Strangers { half_open: sum.half_open + half_open, slow: sum.slow + slow, closed: sum.closed + closed };
        }
        for (act, rate) in &other.acts {
            *sum.acts.entry(act.clone()).or_default() += rate;
        }
    }
    sum.rate = all.iter().map(|figures| figures.rate).sum();
    let seer = all.iter().find(|figures| !figures.parts.is_empty());
    // It has divided the time by its own messages.
    let share = seer.map_or(1.0, |seer| if sum.rate > 0.0 { seer.rate / sum.rate } else { 1.0 });
    let parts = seer.iter().flat_map(|seer| &seer.parts).map(|part| {
        let cpu = Cpu { user: part.cpu.user * share, system: part.cpu.system * share };
        Part { cpu, ..part.clone() }
    });
    sum.parts = parts.collect();
    sum.resident_kib = seer.map_or(0, |seer| seer.resident_kib);
    // What one of them could not do, all could not.
    let used = |load: &Load| load.all / load.cores.max(1.0);
    let fullest = all.iter().map(|figures| figures.load).max_by(|one, other| used(one).total_cmp(&used(other)));
    let worst = |of: fn(&Load) -> f64| all.iter().map(|figures| of(&figures.load)).fold(0.0, f64::max);
    sum.load = Load {
        busiest: worst(|load| load.busiest),
        late: worst(|load| load.late),
        ..fullest.context("there are shares")?
    };
    sum.cut_short = all.iter().find_map(|figures| figures.cut_short.clone());
    let length = series::step(sum.seconds);
    let samples = seer.unwrap_or(&all[0]).samples.iter().map(|sample| {
        let step = sample.step(length);
        let those = all.iter().map(|figures| figures.samples.iter().find(|other| other.step(length) == step));
        // A step that one of them has not seen has no sum.
        let Some(those) = those.collect::<Option<Vec<&Sample>>>() else { return Ok(None) };
        // What was read from a file does not grow.
        let (rate, times) = (those.iter().map(|sample| sample.rate).sum(), series::times());
        let mut sample = Sample { rate, times, ..sample.clone() };
        those.iter().try_for_each(|those| sample.times.add(&those.times))?;
        Ok(Some(sample))
    });
    let samples = samples.collect::<anyhow::Result<Vec<Option<Sample>>>>()?;
    sum.samples = samples.into_iter().flatten().collect();
    Ok(sum)
}
