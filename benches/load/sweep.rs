//! The same workload with several numbers of reactors, workers and messages in flight.

use std::io::Write;

use anyhow::Context;

use crate::figures::{Figures, medians};
use crate::flags::Flags;
use crate::plot::{Line, Plot};
use crate::round;
use crate::target::Started;
use crate::{proc, table};

/// Throughput that is less than this part of the best is worse; more would be noise.
const AS_GOOD: f64 = 0.95;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    reactors: u16,
    workers: u16,
    window: u16,
}

pub fn run(flags: &Flags) -> anyhow::Result<()> {
    flags.check()?;
    let points = points(flags);
    let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); points.len()];
    // In turn, so that a noisy minute does not fall on one point alone.
    for _ in 0..flags.rounds {
        for (point, rounds) in points.iter().zip(&mut rounds) {
            let here = Flags {
                reactors: vec![point.reactors],
                workers: vec![point.workers],
                window: vec![point.window],
                ..flags.clone()
            };
            rounds.push(round::run(&here, Started::server(&here)?)?);
        }
    }
    let figures: Vec<Figures> = rounds.iter().map(|rounds| medians(rounds)).collect::<Result<_, _>>()?;
    show(flags, &points, &figures)?;
    if let Some(file) = &flags.svg {
        let svg = Plot::svg_of(&plots(&points, &figures))?;
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

fn points(flags: &Flags) -> Vec<Point> {
    let or = |given: &[u16], usual: &[u16]| if given.is_empty() { usual.to_vec() } else { given.to_vec() };
    let (all_reactors, all_workers) = (or(&flags.reactors, &[1, 2, 4]), or(&flags.workers, &[1, 4]));
    let mut points = Vec::new();
    for &window in &flags.window {
        for &workers in &all_workers {
            points.extend(all_reactors.iter().map(|&reactors| Point { reactors, workers, window }));
        }
    }
    points
}

fn show(flags: &Flags, points: &[Point], figures: &[Figures]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{}: {} users, {} x {} s for each",
        flags.workload.name(),
        flags.users(),
        flags.rounds,
        flags.seconds
    )?;
    writeln!(out, "reactors workers window      msg/s  CPU us    p99 us   lost  disorder  errors  generator")?;
    for (Point { reactors, workers, window }, figures) in points.iter().zip(figures) {
        let p99 = figures.latencies.first().map_or(0.0, |latency| latency.p99);
        let Figures { rate, lost, disordered, errors, busy, .. } = figures;
        write!(out, "{reactors:8} {workers:7} {window:6}  {rate:9.0} {:7.2} {p99:9.0} ", figures.cpu())?;
        writeln!(out, "{lost:6} {disordered:9} {errors:7} {:8.0} %", busy * 100.0)?;
    }
    if let Some(warning) = figures.iter().find_map(table::warning) {
        writeln!(out, "{warning}")?;
    }
    let Point { reactors, workers, .. } = best(points, figures);
    let machine = proc::machine();
    writeln!(out, "recommended for {} on {machine}: --reactors {reactors} --workers {workers}", flags.workload.name())?;
    Ok(())
}

/// Of the settings that carry about as much as the best, over all windows, those with the fewest threads.
fn best(points: &[Point], figures: &[Figures]) -> Point {
    let score = |of: &Point| {
        let same = points.iter().zip(figures).filter(|(p, _)| (p.reactors, p.workers) == (of.reactors, of.workers));
        // Windows count alike, whatever they carry.
        same.map(|(_, figures)| figures.rate.max(1.0).ln()).sum::<f64>() / windows(points) as f64
    };
    let top = points.iter().map(&score).fold(f64::MIN, f64::max);
    let good = points.iter().filter(|&point| score(point) >= top + AS_GOOD.ln());
    *good.min_by_key(|point| (point.reactors + point.workers, point.reactors)).unwrap_or(&points[0])
}

fn windows(points: &[Point]) -> usize {
    points.iter().filter(|p| (p.reactors, p.workers) == (points[0].reactors, points[0].workers)).count()
}

fn plots(points: &[Point], figures: &[Figures]) -> [Plot<'static>; 2] {
    let lines = |value: fn(&Figures) -> f64| {
        let mut lines: Vec<Line> = Vec::new();
        for (Point { reactors, workers, window }, figures) in points.iter().zip(figures) {
            let name = format!("workers {workers}, window {window}");
            let point = (f64::from(*reactors), value(figures));
            match lines.last_mut() {
                Some(line) if line.name == name => line.points.push(point),
                _ => lines.push(Line { name, points: vec![point] }),
            }
        }
        lines
    };
    let plot = |title, y_label, value| Plot {
        title,
        x_label: "reactors",
        y_label,
        x_text: |x| if x.fract() == 0.0 { format!("{x:.0}") } else { String::new() },
        x_labels: 8,
        log: false,
        lines: lines(value),
    };
    [
        plot("Throughput", "messages/s", |figures| figures.rate),
        plot("Cost", "microseconds of server CPU a message", Figures::cpu),
    ]
}
