//! The same workload with several numbers of reactors, workers and messages in flight.

use std::io::Write;

use anyhow::{Context, ensure};

use crate::figures::{Figures, medians};
use crate::flags::Flags;
use crate::plot::{Line, Plot};
use crate::round;
use crate::target::Target;
use crate::{proc, table};

/// Throughput that is less than this part of the best is worse; more would be noise.
const AS_GOOD: f64 = 0.95;
/// A quarter of an hour at most, in one round of 3 s.
const MAX_POINTS: usize = 150;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    reactors: u16,
    workers: u16,
    window: u16,
}

impl Point {
    /// The server is started the same.
    fn is_like(&self, other: &Point) -> bool {
        (self.reactors, self.workers) == (other.reactors, other.workers)
    }
}

pub fn run(flags: &Flags) -> anyhow::Result<()> {
    flags.check()?;
    let points = points(flags)?;
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
            rounds.push(round::run(&here, Target::server(&here)?)?);
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

fn points(flags: &Flags) -> anyhow::Result<Vec<Point>> {
    let or = |given: &[u16], usual: Vec<u16>| if given.is_empty() { usual } else { given.to_vec() };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let to_twice_the_cores = (0..8).map(|n| 1 << n).take_while(|&reactors| usize::from(reactors) <= 2 * cores);
    let all_reactors = or(&flags.reactors, to_twice_the_cores.collect());
    let (all_workers, windows) = (or(&flags.workers, vec![1, 4]), or(&flags.window, vec![1, 16]));
    let mut points = Vec::new();
    for window in windows {
        for &workers in &all_workers {
            points.extend(all_reactors.iter().map(|&reactors| Point { reactors, workers, window }));
        }
    }
    ensure!(points.len() <= MAX_POINTS, "{} settings to try are too many: at most {MAX_POINTS}", points.len());
    Ok(points)
}

fn show(flags: &Flags, points: &[Point], figures: &[Figures]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let (workload, users) = (flags.workload.name(), flags.users());
    writeln!(out, "{workload}: {users} users, {} x {} s for each", flags.rounds, flags.seconds)?;
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
    let best = best(points, figures);
    let Point { reactors, workers, .. } = best;
    let machine = proc::machine();
    let rates = points.iter().zip(figures).filter(|(point, _)| point.is_like(&best)).map(|(_, figures)| figures.rate);
    let rate = rates.fold(0.0, f64::max);
    write!(out, "recommended for {workload} on {machine}: --reactors {reactors} --workers {workers}")?;
    writeln!(out, "; they carried {rate:.0}/s, as from {:.0} users with one in 10 s each", rate * 10.0)?;
    Ok(())
}

/// Of the settings that carry about as much as the best, over all windows, those with the fewest threads.
fn best(points: &[Point], figures: &[Figures]) -> Point {
    let windows = points.iter().filter(|point| point.is_like(&points[0])).count() as f64;
    let score = |of: &Point| {
        // Windows count alike, whatever they carry.
        let same = points.iter().zip(figures).filter(|(point, _)| point.is_like(of));
        same.map(|(_, figures)| figures.rate.max(1.0).ln()).sum::<f64>() / windows
    };
    let top = points.iter().map(&score).fold(f64::MIN, f64::max);
    let good = points.iter().filter(|&point| score(point) >= top + AS_GOOD.ln());
    *good.min_by_key(|point| (point.reactors + point.workers, point.reactors)).unwrap_or(&points[0])
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
