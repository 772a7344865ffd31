//! One round: users come, generators run, and the target is watched. And all rounds of a run, in turn with the others
//! that are measured beside it.

use std::io::IsTerminal;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use crate::book::Book;
use crate::clock::{self, CpuClock};
use crate::detect;
use crate::ending;
use crate::figures::{Figures, Load, Part, Sample, Service, together};
use crate::flags::{Flags, Rate, Rival};
use crate::generator::{Generator, Outcome, Shared};
use crate::machine::{self, Cpu};
use crate::measures::Measures;
use crate::preflight;
use crate::roles;
use crate::stats::mix;
use crate::tally::Counts;
use crate::target::Target;
use crate::traffic::Plan;
use crate::users;
use crate::which::say;
use crate::workload::Workload;

const SAMPLE: Duration = Duration::from_millis(200);
/// How often the watching thread looks for a signal, and for the end of the target.
const GLANCE: Duration = Duration::from_millis(50);

/// What was measured.
pub struct Run {
    /// The flags as they were used: with a rate in place of a percentage.
    pub flags: Flags,
    /// Each target's rounds, the server's first.
    pub rounds: Vec<Vec<Figures>>,
    /// The same, taken together.
    pub shown: Vec<Figures>,
    /// What stays at a server that was there before.
    pub left: Option<String>,
    /// What was found out about each of its servers.
    pub speaks: Vec<String>,
    /// Why it is not all that was asked for.
    pub failed: Option<String>,
}

impl Run {
    /// Everything that makes the exit status 2, in words.
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.failed.iter().cloned().collect();
        for figures in &self.shown {
            problems.extend(figures.cut_short.iter().map(|why| format!("{}: {why}", figures.name)));
            let counts = &figures.counts;
            if counts.wrong(&self.flags.expect_errno) > 0 {
                problems.push(format!("{}: {}", figures.name, in_words(counts)));
            }
        }
        if let Some(server) = self.shown.first() {
            problems.extend(self.flags.fail_if.iter().filter_map(|condition| condition.met_by(server)));
        }
        problems
    }
}

/// What was not as it should be.
pub fn in_words(counts: &Counts) -> String {
    let mut words = Vec::new();
    let mut tell = |count: u64, what: &str| {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    };
    tell(counts.lost, "messages lost");
    tell(counts.repeated, "repeated");
    tell(counts.out_of_order, "out of order");
    tell(counts.changed, "changed");
    tell(counts.refusals(), "refused");
    tell(counts.acks_lost, "acks or replies lost");
    tell(counts.acks_repeated, "acks repeated");
    tell(counts.acks_changed, "acks changed");
    tell(counts.closed, "connections closed by the server");
    words.join(", ")
}

/// Runs all rounds, in turn with the floor and the rivals.
///
/// # Errors
/// Nothing could be measured.
pub fn measure(flags: &Flags) -> anyhow::Result<Run> {
    flags.check()?;
    preflight::check_rivals(flags)?;
    let mut book = Book::open(flags.accounts.as_deref())?;
    let flags = &with_rate(flags, Target::server, &mut book)?;
    let mut rounds: Vec<Vec<Figures>> = Vec::new();
    let mut failed = None;
    for round in 0..flags.rounds() {
        if let Err(error) = in_turn(flags, round, &mut book, &mut rounds) {
            if rounds.is_empty() {
                keep_book(flags, &book)?;
                left(flags, &book).iter().for_each(say);
                return Err(error);
            }
            failed = Some(format!("{error:#}"));
        }
        // Nothing is measured with what has ended.
        let has_ended = rounds.iter().flatten().any(|figures| figures.cut_short.is_some());
        if failed.is_some() || ending::signal().is_some() || (has_ended && !flags.addr.is_empty()) {
            break;
        }
    }
    if flags.clean && ending::signal().is_none() {
        let mut target = Target::server(flags)?;
        detect::find_out(&mut target, &mut book)?;
        book.messages = book.messages.saturating_sub(users::clean(&target, &book)?);
    }
    keep_book(flags, &book)?;
    let left = left(flags, &book);
    let speaks = book.known.iter().map(|(address, it)| format!("{address} speaks: {it}")).collect();
    let shown = rounds.iter().map(|rounds| together(rounds)).collect::<Result<_, _>>()?;
    let failed = failed.filter(|_| ending::signal().is_none());
    Ok(Run { flags: flags.clone(), rounds, shown, left, speaks, failed })
}

/// What stays at a server that was there before the run.
fn left(flags: &Flags, book: &Book) -> Option<String> {
    (!flags.addr.is_empty()).then(|| format!("left at {}: {}", flags.addr.join(", "), book.left()))
}

fn keep_book(flags: &Flags, book: &Book) -> anyhow::Result<()> {
    flags.accounts.as_ref().map_or(Ok(()), |file| book.save(file))
}

/// One round of each.
fn in_turn(flags: &Flags, round: u16, book: &mut Book, rounds: &mut Vec<Vec<Figures>>) -> anyhow::Result<()> {
    // The floor and the packages know pairs only, and give no acks.
    let plain = Flags { workload: Workload::Pairs, seq: false, members: None, ..flags.clone() };
    if flags.addr.is_empty() {
        *book = Book::default(); // a fresh server knows no accounts
    }
    book.give_back();
    let mut here = vec![once(flags, Target::server(flags)?, book)?];
    if flags.floor {
        here.push(once(&plain, Target::floor()?, &mut Book::default())?);
    }
    for rival in flags.rivals() {
        let flags = if rival.is_family() { flags } else { &plain };
        let mut book = Book { is_quiet: round > 0, ..Book::default() };
        let mut figures = once(flags, rival.start()?, &mut book)?;
        let others = flags.rivals().filter(|other| matches!(other, Rival::Command(_))).count();
        if others > 1
            && let Rival::Command(command) = rival
        {
            figures.name = command.split_whitespace().next().unwrap_or("rival").to_owned();
        }
        here.push(figures);
    }
    let floor = if flags.floor { here[1].cpu() } else { 0.0 };
    rounds.resize_with(here.len(), Vec::new);
    for (mut figures, rounds) in here.into_iter().zip(rounds) {
        figures.to_floor = (floor > 0.0 && figures.cpu() > 0.0).then(|| figures.cpu() / floor);
        rounds.push(figures);
    }
    Ok(())
}

/// Replaces a rate that is a percentage by its value on this machine, with the target that is started so.
pub fn with_rate(
    flags: &Flags,
    start: impl Fn(&Flags) -> anyhow::Result<Target>,
    book: &mut Book,
) -> anyhow::Result<Flags> {
    let Some(Rate::Percent(percent)) = flags.rate else { return Ok(flags.clone()) };
    let closed = Flags { rate: None, window: vec![16], ..flags.clone() };
    let capacity = once(&closed, start(&closed)?, book)?;
    if let Some(limit) = capacity.limit() {
        say(format_args!("the capacity was measured with the {} as its limit", limit.name()));
    }
    Ok(Flags { rate: Some(Rate::PerSecond((capacity.rate * percent / 100.0).max(1.0))), ..flags.clone() })
}

/// One round against a target. If that fails, the error says what the target did last.
pub fn once(flags: &Flags, mut target: Target, book: &mut Book) -> anyhow::Result<Figures> {
    let name = target.name.clone();
    preflight::check(flags, &target)?;
    round(flags, &mut target, book).map_err(|failed| anyhow!("{name}: {failed:#}\n{}", target.last_words()))
}

fn round(flags: &Flags, target: &mut Target, book: &mut Book) -> anyhow::Result<Figures> {
    if target.is_unknown {
        detect::find_out(target, book)?;
        preflight::check_capabilities(flags, target)?;
    }
    let troupes = roles::cast(flags, target, book)?;
    let shared = Shared::new();
    let plan = Plan {
        window: flags.window(),
        seq: flags.seq,
        batch: flags.batch,
        size: flags.size(),
        salt: mix(clock::now() ^ flags.seed()),
        seed: flags.seed(),
        one_at_a_time: !target.is_sturdy(),
        pause: if matches!(flags.workload, Workload::Paused | Workload::Busy) { nanoseconds(flags.pause()) } else { 0 },
        pauses_after: nanoseconds(flags.pauses_after()),
        read_rate: if flags.workload == Workload::Slow { flags.read_rate() } else { 0 },
    };
    let generators: Vec<Generator<'_>> =
        troupes.into_iter().map(|troupe| Generator::new(plan, troupe, &shared)).collect::<Result<_, _>>()?;
    let mut figures = std::thread::scope(|scope| -> anyhow::Result<Figures> {
        let threads: Vec<_> = generators.into_iter().map(|generator| scope.spawn(|| generator.run())).collect();
        let seen = watch(flags, target, &shared, || threads.iter().any(|thread| thread.is_finished()));
        shared.hurry.store(ending::signal().is_some(), Relaxed);
        shared.stopping.store(true, Relaxed);
        while !threads.iter().all(|thread| thread.is_finished()) {
            std::thread::sleep(GLANCE / 10);
            shared.hurry.fetch_or(ending::signal().is_some(), Relaxed);
        }
        let outcomes: Result<Vec<Outcome>, _> =
            threads.into_iter().map(|thread| thread.join().expect("a generator does not panic")).collect();
        let outcomes = outcomes?;
        let mut figures = finish(seen?, &outcomes, book)?;
        if flags.workload == Workload::Busy {
            figures.services = services(flags, target, &shared, &outcomes);
        }
        Ok(figures)
    })?;
    if figures.cut_short.is_some() {
        figures.cut_short =
            figures.cut_short.map(|why| format!("{why}\n{}", target.last_words()).trim_end().to_owned());
    }
    if flags.workload == Workload::Store {
        book.messages += figures.counts.stored;
    }
    Ok(figures)
}

/// Warms up, then counts for `--seconds`. Ends early if a generator has given up, at a signal, and with the target.
fn watch(flags: &Flags, target: &Target, shared: &Shared, given_up: impl Fn() -> bool) -> anyhow::Result<Figures> {
    let is_over = || given_up() || ending::signal().is_some() || target.ended().is_some();
    let wait = |time: Duration| {
        let deadline = Instant::now() + time;
        while !is_over() && Instant::now() < deadline {
            std::thread::sleep(GLANCE.min(deadline.saturating_duration_since(Instant::now())));
        }
    };
    wait(Duration::from_secs_f64((flags.seconds() / 4.0).min(1.0)));
    let length = Duration::from_secs_f64(flags.seconds());
    let (started, first) = (Instant::now(), shared.done.load(Relaxed));
    let cpus = || target.processes.iter().map(|of| machine::cpu(&of.pids)).collect::<Result<Vec<Cpu>, _>>();
    let pids: Vec<u32> = target.pids().collect();
    let (before, generator, all) = (cpus(), CpuClock::PROCESS.seconds()?, machine::busy());
    // If the target ends, this is what was seen last.
    let mut now = before.as_ref().map_or(vec![Cpu::default(); target.processes.len()], Clone::clone);
    let before = now.clone();
    let mut resident_kib = machine::resident(&pids).unwrap_or(0);
    shared.from.store(clock::now(), Relaxed);
    let mut samples = Vec::new();
    let (mut last, mut last_done, mut last_cpu) = (0.0, first, sum(&now));
    while started.elapsed() < length && !is_over() {
        wait(SAMPLE.min(length.saturating_sub(started.elapsed())));
        now = cpus().unwrap_or(now);
        resident_kib = machine::resident(&pids).unwrap_or(resident_kib);
        let (at, done, cpu) = (started.elapsed().as_secs_f64(), shared.done.load(Relaxed), sum(&now));
        let time = at - last;
        let (rate, cores) = ((done - last_done) as f64 / time, (cpu - last_cpu) / time);
        // What is left of the last sample may be too short to say anything.
        if time > SAMPLE.as_secs_f64() / 2.0 || samples.is_empty() {
            samples.push(Sample { at, rate, cores, resident_kib });
        }
        (last, last_done, last_cpu) = (at, done, cpu);
        show_progress(flags, target, &Sample { at, rate, cores, resident_kib });
    }
    let (seconds, messages) = (started.elapsed().as_secs_f64(), (shared.done.load(Relaxed) - first) as f64);
    shared.to.store(clock::now(), Relaxed);
    now = cpus().unwrap_or(now);
    let load = Load {
        generator: (CpuClock::PROCESS.seconds()? - generator) / seconds,
        all: (machine::busy() - all) / seconds,
        cores: machine::cores(),
        busiest: 0.0,
        late: 0.0,
    };
    end_progress();
    let each = |seconds: f64| if messages > 0.0 { seconds * 1e6 / messages } else { 0.0 };
    let parts = target.processes.iter().zip(before).zip(now).map(|((of, before), now)| {
        let cpu = now.since(before);
        let (cores, cpu) = (cpu.total() / seconds, Cpu { user: each(cpu.user), system: each(cpu.system) });
        Part { name: of.name.clone(), cpu, cores }
    });
    Ok(Figures {
        name: target.name.clone(),
        rate: messages / seconds,
        parts: parts.collect(),
        to_floor: None,
        resident_kib,
        counts: Counts::default(),
        load,
        measures: Measures::new()?,
        samples,
        services: Vec::new(),
        cut_short: target.ended().map(|pid| format!("process {pid} has ended in mid-run, after {seconds:.1} s")),
    })
}

fn nanoseconds(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

fn sum(cpus: &[Cpu]) -> f64 {
    cpus.iter().map(|cpu| cpu.total()).sum()
}

fn finish(mut figures: Figures, outcomes: &[Outcome], book: &mut Book) -> anyhow::Result<Figures> {
    let (mut due, mut late) = (0, 0);
    for outcome in outcomes {
        figures.measures.add(&outcome.measures)?;
        figures.counts.add(&outcome.counts);
        figures.load.busiest = figures.load.busiest.max(outcome.busiest);
        (due, late) = (due + outcome.due, late + outcome.late);
        book.opened += outcome.opened;
    }
    figures.load.late = late as f64 / due.max(1) as f64;
    if figures.cut_short.is_none() && outcomes.iter().any(|outcome| outcome.is_alone) {
        figures.cut_short = Some("the server has closed all connections of a thread in mid-run".to_owned());
    }
    if figures.cut_short.is_none() && outcomes.iter().any(|outcome| outcome.was_cut_off) {
        let name = &figures.name;
        say(format_args!("{name}: what still came 30 s after the end was not waited for, and counts as lost"));
    }
    Ok(figures)
}

/// How the busy recipient was served.
fn services(flags: &Flags, target: &Target, shared: &Shared, outcomes: &[Outcome]) -> Vec<Service> {
    let (senders, nodes) = (1..flags.users(), target.servers.len());
    let measured = shared.to.load(Relaxed).saturating_sub(shared.from.load(Relaxed));
    let still = nanoseconds(flags.pauses_after());
    let still = still..still + nanoseconds(flags.pause());
    let timelines = outcomes.first().map_or(Default::default(), |outcome| outcome.timelines.clone());
    let ways = [("own node", false), ("other node", true)].into_iter().zip(timelines);
    let services = ways.filter_map(|((name, is_elsewhere), mut timeline)| {
        let some = senders.clone().filter(|n| (n % nodes != 0) == is_elsewhere).count();
        let rate = flags.rate().unwrap_or(0.0) * some as f64 / senders.len() as f64;
        timeline.end(measured);
        let back = timeline.back(&still, rate);
        let rest = measured.saturating_sub(still.end) as f64 / 1e9;
        (some > 0).then(|| Service { name, still: still.clone(), timeline, back, rest })
    });
    services.collect()
}

fn show_progress(flags: &Flags, target: &Target, sample: &Sample) {
    if std::io::stderr().is_terminal() {
        let Sample { at, rate, cores, resident_kib } = sample;
        let (workload, name, of, mib) = (flags.workload.name(), &target.name, flags.seconds(), resident_kib / 1024);
        eprint!("\r{workload}, {name}: {at:.1} of {of} s, {rate:.0} messages/s, {cores:.2} cores, {mib} MiB \x1b[K");
    }
}

fn end_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
