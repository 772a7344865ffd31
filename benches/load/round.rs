//! One round: users come, generators run, and the target is watched.

use std::io::IsTerminal;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::figures::{Figures, Sample, medians};
use crate::flags::{Flags, Rate, Workload};
use crate::generator::{Generator, Outcome, Plan, Shared};
use crate::measures::Measures;
use crate::proc;
use crate::roles;
use crate::target::Target;

/// CPU time is counted in hundredths of a second: shorter samples would only show that.
const SAMPLE: Duration = Duration::from_millis(200);

/// Runs all rounds, in turn with the floor and the rivals; returns each one's medians, the server's
/// first.
pub fn measure(flags: &Flags) -> anyhow::Result<Vec<Figures>> {
    flags.check()?;
    let flags = &with_rate(flags)?;
    // The floor and the rivals know pairs only, and give no acks.
    let plain = Flags { workload: Workload::Pairs, seq: false, ..flags.clone() };
    let mut all: Vec<Vec<Figures>> = Vec::new();
    for _ in 0..flags.rounds {
        let mut round = vec![run(flags, Target::server(flags)?)?];
        if flags.floor {
            round.push(run(&plain, Target::floor()?)?);
        }
        for rival in &flags.rival {
            round.push(run(&plain, rival.start()?)?);
        }
        let floor = if flags.floor { round[1].cpu() } else { 0.0 };
        all.resize_with(round.len(), Vec::new);
        for (mut figures, rounds) in round.into_iter().zip(&mut all) {
            figures.to_floor = (floor > 0.0 && figures.cpu() > 0.0).then(|| figures.cpu() / floor);
            rounds.push(figures);
        }
    }
    all.iter().map(|rounds| medians(rounds)).collect()
}

/// With a rate that is a percentage replaced by what that is on this machine.
fn with_rate(flags: &Flags) -> anyhow::Result<Flags> {
    let Some(Rate::Percent(percent)) = flags.rate else { return Ok(flags.clone()) };
    let closed = Flags { rate: None, window: vec![16], ..flags.clone() };
    let capacity = run(&closed, Target::server(&closed)?)?.rate;
    Ok(Flags { rate: Some(Rate::PerSecond((capacity * percent / 100.0).max(1.0))), ..flags.clone() })
}

/// One round against a fresh target. If that fails, the error says what the target did last.
pub fn run(flags: &Flags, mut target: Target) -> anyhow::Result<Figures> {
    let name = target.name;
    round(flags, &target).map_err(|failed| anyhow!("{name}: {failed:#}\n{}", target.last_words()))
}

fn round(flags: &Flags, target: &Target) -> anyhow::Result<Figures> {
    let troupes = roles::cast(flags, target)?;
    let shared = Shared::new();
    let plan = Plan { window: flags.window(), seq: flags.seq, batch: flags.batch };
    let generators: Vec<Generator<'_>> =
        troupes.into_iter().map(|troupe| Generator::new(plan, troupe, &shared)).collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = generators.into_iter().map(|generator| scope.spawn(|| generator.run())).collect();
        let seen = watch(flags, target, &shared, || threads.iter().any(|thread| thread.is_finished()));
        shared.stopping.store(true, Relaxed);
        let outcomes: Result<Vec<Outcome>, _> =
            threads.into_iter().map(|thread| thread.join().expect("a generator does not panic")).collect();
        // That a generator gave up is why the target could not be watched, if both is so.
        let outcomes = outcomes?;
        finish(seen?, &outcomes)
    })
}

/// Warms up, then counts for `--seconds`. Ends early if a generator has given up.
fn watch(flags: &Flags, target: &Target, shared: &Shared, given_up: impl Fn() -> bool) -> anyhow::Result<Figures> {
    std::thread::sleep(Duration::from_secs_f64((flags.seconds / 4.0).min(1.0)));
    let length = Duration::from_secs_f64(flags.seconds);
    let (started, first) = (Instant::now(), shared.done.load(Relaxed));
    let cpu = proc::cpu(&target.pids)?;
    shared.measuring.store(true, Relaxed);
    let mut samples = Vec::new();
    let (mut last, mut last_done, mut last_cpu) = (0.0, first, cpu);
    while started.elapsed() < length && !given_up() {
        std::thread::sleep(SAMPLE.min(length.saturating_sub(started.elapsed())));
        let (at, done, cpu) = (started.elapsed().as_secs_f64(), shared.done.load(Relaxed), proc::cpu(&target.pids)?);
        let time = at - last;
        let resident_kib = proc::resident(&target.pids)?;
        let (rate, cores) = ((done - last_done) as f64 / time, cpu.since(last_cpu).total() / time);
        // What is left of the last sample may be too short to tell anything.
        if time > SAMPLE.as_secs_f64() / 2.0 || samples.is_empty() {
            samples.push(Sample { at, rate, cores, resident_kib });
        }
        (last, last_done, last_cpu) = (at, done, cpu);
        show_progress(flags, target, &Sample { at, rate, cores, resident_kib });
    }
    shared.measuring.store(false, Relaxed);
    let (seconds, messages) = (started.elapsed().as_secs_f64(), (shared.done.load(Relaxed) - first) as f64);
    let cpu = proc::cpu(&target.pids)?.since(cpu);
    end_progress();
    let each = |seconds: f64| if messages > 0.0 { seconds * 1e6 / messages } else { 0.0 };
    Ok(Figures {
        name: target.name,
        rate: messages / seconds,
        user: each(cpu.user),
        system: each(cpu.system),
        to_floor: None,
        resident_kib: proc::resident(&target.pids)?,
        lost: 0,
        disordered: 0,
        errors: 0,
        busy: 0.0,
        late: 0.0,
        measures: Measures::new()?,
        latencies: Vec::new(),
        samples,
    })
}

fn finish(mut figures: Figures, outcomes: &[Outcome]) -> anyhow::Result<Figures> {
    for outcome in outcomes {
        figures.measures.add(&outcome.measures)?;
        figures.lost += outcome.lost;
        figures.disordered += outcome.disordered;
        figures.errors += outcome.errors;
        figures.busy = figures.busy.max(outcome.busy);
        figures.late = figures.late.max(outcome.late);
    }
    figures.latencies = figures.measures.latencies();
    Ok(figures)
}

fn show_progress(flags: &Flags, target: &Target, sample: &Sample) {
    if std::io::stderr().is_terminal() {
        let Sample { at, rate, cores, resident_kib } = sample;
        let (workload, name, of, mib) = (flags.workload.name(), target.name, flags.seconds, resident_kib / 1024);
        eprint!("\r{workload}, {name}: {at:.1} of {of} s, {rate:.0} messages/s, {cores:.2} cores, {mib} MiB \x1b[K");
    }
}

fn end_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
