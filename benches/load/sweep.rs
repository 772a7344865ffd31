//! The same workload with several numbers of reactors, workers and messages in flight.

use std::io::Write;

use anyhow::{Context, ensure};

use crate::about;
use crate::book::Book;
use crate::ending;
use crate::figures::{Figures, together};
use crate::flags::Flags;
use crate::machine;
use crate::plot::{Line, Plot};
use crate::round;
use crate::target::Target;

/// Throughput that is less than this part of the best is worse; more would be noise.
const AS_GOOD: f64 = 0.95;
/// The largest number of points: a quarter of an hour, with one round of 3 s.
const MAX_POINTS: usize = 150;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point {
    reactors: u16,
    workers: u16,
    window: u16,
}

impl Point {
    /// The server is started with the same flags.
    fn is_like(&self, other: &Point) -> bool {
        (self.reactors, self.workers) == (other.reactors, other.workers)
    }
}

/// Tries them, shows them, and recommends. Returns what was wrong.
pub fn run(flags: &Flags) -> anyhow::Result<Vec<String>> {
    flags.check()?;
    let points = points(flags)?;
    let mut rounds: Vec<Vec<Figures>> = vec![Vec::new(); points.len()];
    // The points are measured in turn, so that a noisy minute does not fall on one of them alone.
    'all: for _ in 0..flags.rounds() {
        for (point, rounds) in points.iter().zip(&mut rounds) {
            let here = Flags {
                reactors: vec![point.reactors],
                workers: vec![point.workers],
                window: vec![point.window],
                ..flags.clone()
            };
            match round::once(&here, Target::server(&here)?, &mut Book::default()) {
                Ok(figures) => rounds.push(figures),
                Err(_) if ending::signal().is_some() => break 'all,
                Err(error) => return Err(error),
            }
            if ending::signal().is_some() {
                break 'all;
            }
        }
    }
    let measured = points.iter().zip(&rounds).filter(|(_, rounds)| !rounds.is_empty());
    let (points, rounds): (Vec<Point>, Vec<&Vec<Figures>>) = measured.unzip();
    ensure!(!points.is_empty(), "ended by a signal before anything was measured");
    let figures: Vec<Figures> = rounds.iter().map(|rounds| together(rounds)).collect::<Result<_, _>>()?;
    show(flags, &points, &figures)?;
    if let Some(file) = &flags.svg {
        let svg = Plot::svg_of(&plots(&points, &figures))?;
        std::fs::write(file, svg).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let problems = points.iter().zip(&figures).filter_map(|(point, figures)| {
        let Point { reactors, workers, window } = point;
        let wrong = figures.counts.wrong(&flags.expect_errno);
        let why = figures.cut_short.clone().or_else(|| (wrong > 0).then(|| format!("{wrong} were lost or wrong")));
        Some(format!("{reactors} reactors, {workers} workers, window {window}: {}", why?))
    });
    Ok(problems.collect())
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
    writeln!(out, "{}", about::title(flags))?;
    let (version, machine) = (about::version(&flags.server()), machine::describe());
    writeln!(out, "{version}, password cost {}; {machine}; seed {}", flags.password_cost(), flags.seed())?;
    writeln!(out, "reactors workers window      msg/s   CPU us    p99 us   lost  disorder  refused  limit")?;
    for (Point { reactors, workers, window }, figures) in points.iter().zip(figures) {
        let p99 = figures.measures.seen().next().map_or(0.0, |measure| figures.measures.quantile(measure, 0.99));
        let (counts, mark) = (&figures.counts, figures.mark());
        let limit = figures.limit().map_or("-", |limit| limit.name());
        write!(
            out,
            "{reactors:8} {workers:7} {window:6}  {:9.0}{mark:1} {:7.2} {p99:9.0} ",
            figures.rate,
            figures.cpu()
        )?;
        writeln!(out, "{:6} {:9} {:8}  {limit}", counts.lost, counts.out_of_order, counts.refusals())?;
    }
    let workload = flags.workload.name();
    let Some(best) = best(points, figures) else {
        let why = "everywhere the machine or the generator was the limit, or something was lost";
        writeln!(out, "none is recommended for {workload}: {why}; the figures are of that, not of the server")?;
        return Ok(());
    };
    let Point { reactors, workers, .. } = best;
    let rates = points.iter().zip(figures).filter(|(point, _)| point.is_like(&best)).map(|(_, figures)| figures.rate);
    let rate = rates.fold(0.0, f64::max);
    write!(out, "recommended for {workload} on {machine}: --reactors {reactors} --workers {workers}")?;
    writeln!(out, "; they carried {rate:.0}/s, as from {:.0} users with one in 10 s each", rate * 10.0)?;
    Ok(())
}

/// The setting with the fewest threads among those that carry about as much as the best, over all windows. A setting
/// with a figure that is not the server's own is left out.
fn best(points: &[Point], figures: &[Figures]) -> Option<Point> {
    let like = |of: &Point| points.iter().zip(figures).filter(move |(point, _)| point.is_like(of)).collect::<Vec<_>>();
    let windows = points.iter().map(|of| like(of).len()).max().unwrap_or(0);
    let is_sound = |of: &Point| {
        let same = like(of);
        let sound = |figures: &Figures| figures.limit().is_none() && figures.counts.wrong(&[]) == 0;
        same.len() == windows && same.iter().all(|(_, figures)| sound(figures))
    };
    // Windows count alike, whatever they carry.
    let score =
        |of: &Point| like(of).iter().map(|(_, figures)| figures.rate.max(1.0).ln()).sum::<f64>() / windows as f64;
    let sound: Vec<&Point> = points.iter().filter(|of| is_sound(of)).collect();
    let top = sound.iter().map(|of| score(of)).fold(f64::MIN, f64::max);
    let good = sound.into_iter().filter(|of| score(of) >= top + AS_GOOD.ln());
    good.min_by_key(|point| (point.reactors + point.workers, point.reactors)).copied()
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
