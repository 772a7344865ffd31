//! One round: users come, generators run, and the target is watched. And all rounds of a run, in turn with the others
//! that are measured beside it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, ensure};

use crate::about::About;
use crate::book::Book;
use crate::clock::{self, CpuClock};
use crate::detect;
use crate::ending;
use crate::figures::{Figures, Load, Part, Sample, Service};
use crate::flags::{After, Flags, Rate, Rival, workload_measures};
use crate::generator::{Generator, Outcome, Shared};
use crate::live;
use crate::machine::{self, Cpu};
use crate::measures::{Measure, Measures};
use crate::preflight;
use crate::roles;
use crate::run::Run;
use crate::scrape::Scrape;
use crate::series;
use crate::stats::mix;
use crate::storm;
use crate::strangers::Company;
use crate::tally::Counts;
use crate::target::Target;
use crate::traffic::Plan;
use crate::users;
use crate::which::say;
use crate::workload::Workload;

/// How often the watching thread looks for a signal, and for the end of the target.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs all rounds, in turn with the floor and the rivals.
///
/// # Errors
/// Nothing could be measured.
pub fn measure(flags: &Flags) -> anyhow::Result<Run> {
    flags.check()?;
    preflight::check_rivals(flags)?;
    let mut book = Book::open(flags.accounts.as_deref())?;
    let flags = &with_rate(flags, Target::server, &mut book)?;
    let about = About::of(flags);
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
        users::clean(&target, &mut book)?;
    }
    keep_book(flags, &book)?;
    let mut run = Run::new(flags, about, rounds)?;
    run.left = left(flags, &book);
    run.speaks = book.speaks();
    // Why it is not all that was asked for.
    run.problems.extend(failed.filter(|_| ending::signal().is_none()));
    Ok(run)
}

/// What stays at a server that was there before the run.
pub fn left(flags: &Flags, book: &Book) -> Option<String> {
    (!flags.addr.is_empty()).then(|| format!("left at {}: {}", flags.addr.join(", "), book.left()))
}

pub fn keep_book(flags: &Flags, book: &Book) -> anyhow::Result<()> {
    flags.accounts.as_ref().map_or(Ok(()), |file| book.save(file))
}

/// One round of each.
fn in_turn(flags: &Flags, round: u16, book: &mut Book, rounds: &mut Vec<Vec<Figures>>) -> anyhow::Result<()> {
    // The floor and the packages know pairs only, and give no acks.
    let plain = Flags { workload: Workload::Pairs, seq: false, members: None, ..flags.clone() };
    if flags.addr.is_empty() {
        // A fresh server knows no accounts.
        *book = Book { is_quiet: round > 0, ..Book::default() };
    }
    book.give_back();
    let mut here = vec![once(flags, Target::server(flags)?, book)?];
    if flags.floor {
        here.push(once(&plain, Target::floor()?, &mut Book::default())?);
    }
    for rival in flags.rivals() {
        let flags = if rival.is_family() { flags } else { &plain };
        let mut book = Book { is_quiet: round > 0, ..Book::default() };
        let mut figures = once(flags, rival.start(flags)?, &mut book)?;
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
    at(flags, &mut target, book)
}

/// The same, and the target stays.
pub fn at(flags: &Flags, target: &mut Target, book: &mut Book) -> anyhow::Result<Figures> {
    let name = target.name.clone();
    preflight::check(flags, target)?;
    round(flags, target, book).map_err(|failed| anyhow!("{name}: {failed:#}\n{}", target.last_words()))
}

fn round(flags: &Flags, target: &mut Target, book: &mut Book) -> anyhow::Result<Figures> {
    if target.is_unknown {
        detect::find_out(target, book)?;
    }
    preflight::check_capabilities(flags, target)?;
    let (mut troupes, mut calm) = (Vec::new(), None);
    match flags.workload {
        Workload::Storm => calm = Some(storm::gather(flags, target, book)?),
        _ => troupes = roles::cast(flags, target, book)?,
    }
    let company = Company::gather(flags, target)?;
    if let Some(start) = flags.start_at {
        wait_until(start.0)?;
    }
    let shared = Shared::new();
    let plan = Plan {
        window: flags.window(),
        mix: flags.acts(),
        seq: flags.seq,
        batch: flags.batch,
        size: flags.size(),
        think: flags.think.map_or([0; 2], |think| [think.low, think.high].map(nanoseconds)),
        ramp: nanoseconds(flags.ramp()),
        salt: mix(clock::now() ^ flags.seed()),
        seed: flags.seed(),
        one_at_a_time: !target.is_sturdy(),
        pause: if matches!(flags.workload, Workload::Paused | Workload::Busy) { nanoseconds(flags.pause()) } else { 0 },
        pauses_after: nanoseconds(flags.pauses_after()),
        step: nanoseconds(series::step(flags.seconds())),
        read_rate: if flags.workload == Workload::Slow { flags.read_rate() } else { 0 },
    };
    let generators: Vec<Generator<'_>> =
        troupes.into_iter().map(|troupe| Generator::new(plan, troupe, &shared)).collect::<Result<_, _>>()?;
    // What a killed server has counted is gone.
    let is_kill = flags.after == Some(After::Kill);
    let scraped = if is_kill { Some(Scrape::default()) } else { Scrape::of(&target.metrics(flags)?) };
    let storms = calm.map_or(Ok(Vec::new()), |calm| calm.end(flags, target, &shared))?;
    let mut figures = std::thread::scope(|scope| -> anyhow::Result<Figures> {
        let storms = storms.into_iter().map(|storm| scope.spawn(|| storm.run())).collect::<Vec<_>>();
        let generators = generators.into_iter().map(|generator| scope.spawn(|| generator.run()));
        let threads: Vec<_> = storms.into_iter().chain(generators).collect();
        let company = company.map(|company| scope.spawn(|| company.run(&shared.stopping)));
        let is_calm = || flags.workload == Workload::Storm && shared.calm.load(Relaxed) == threads.len();
        let mut seen = watch(flags, target, &shared, || is_calm() || threads.iter().any(|thread| thread.is_finished()));
        if let (Ok(seen), Some(before)) = (&mut seen, &scraped)
            && let Some(now) = Scrape::of(&target.metrics(flags)?)
        {
            now.record_since(before, &mut seen.measures);
        }
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
        if let Some(company) = company {
            figures.strangers = Some(company.join().expect("who never logs in does not panic")?);
        }
        let step = series::step(flags.seconds());
        for sample in &mut figures.samples {
            sample.times =
                figures.sampled.map_or_else(series::times, |measure| shared.series.of(sample.step(step), measure));
        }
        if flags.workload == Workload::Busy {
            figures.services = services(flags, target, &shared, &outcomes);
        }
        Ok(figures)
    })?;
    if figures.cut_short.is_some() {
        figures.cut_short =
            figures.cut_short.map(|why| format!("{why}\n{}", target.last_words()).trim_end().to_owned());
    }
    Ok(figures)
}

/// Waits for a time of the wall clock, which other generators wait for, too.
fn wait_until(start: f64) -> anyhow::Result<()> {
    let late = since_1970() - start;
    ensure!(late <= 0.0, "--start-at was {late:.1} s ago when all users had come");
    while since_1970() < start && ending::signal().is_none() {
        let left = (start - since_1970()).max(0.0);
        live::show(&format!("all users have come; {} until --start-at", live::time(left)));
        std::thread::sleep(GLANCE.min(Duration::from_secs_f64(left)));
    }
    Ok(())
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
    let warm_up = flags.warm_up();
    if warm_up > 0.0 {
        live::show(&format!("{}, {}: warming up for {}", flags.workload.name(), target.name, live::time(warm_up)));
    }
    wait(Duration::from_secs_f64(warm_up));
    let length = Duration::from_secs_f64(flags.seconds());
    let step = series::step(flags.seconds());
    let (began, started, first) = (since_1970(), Instant::now(), shared.done.load(Relaxed));
    let cpus = || target.processes.iter().map(|of| machine::cpu(&of.pids)).collect::<Result<Vec<Cpu>, _>>();
    let pids: Vec<u32> = target.pids().collect();
    let (before, generator, all) = (cpus(), CpuClock::PROCESS.seconds()?, machine::busy());
    // If the target ends, this is what was seen last.
    let mut now = before.as_ref().map_or(vec![Cpu::default(); target.processes.len()], Clone::clone);
    let before = now.clone();
    let mut resident_kib = machine::resident(&pids).unwrap_or(0);
    shared.from.store(clock::now(), Relaxed);
    let mut samples = Vec::new();
    let mut last = [0.0, first as f64, sum(&now), generator, all];
    while started.elapsed() < length && !is_over() {
        let next = (started.elapsed().as_secs_f64() / step).floor() + 1.0;
        wait(length.min(Duration::from_secs_f64(next * step)).saturating_sub(started.elapsed()));
        now = cpus().unwrap_or(now);
        resident_kib = machine::resident(&pids).unwrap_or(resident_kib);
        let (at, done) = (started.elapsed().as_secs_f64(), shared.done.load(Relaxed) as f64);
        let these = [at, done, sum(&now), CpuClock::PROCESS.seconds()?, machine::busy()];
        let time = (at - last[0]).max(1e-9);
        let [_, rate, cores, generator, all] = std::array::from_fn(|n| (these[n] - last[n]) / time);
        let sample = Sample { at, rate, cores, generator, all, resident_kib, times: series::times() };
        last = these;
        let p99s = p99s(flags, shared, sample.step(step).saturating_sub(1));
        live::show(&progress(flags, target, &sample, &p99s, shared.done.load(Relaxed)));
        // What is left of the last step may be too short to say anything.
        if time > step / 2.0 || samples.is_empty() {
            samples.push(sample);
        }
    }
    let (seconds, messages) = (started.elapsed().as_secs_f64().max(1e-9), (shared.done.load(Relaxed) - first) as f64);
    shared.to.store(clock::now(), Relaxed);
    now = cpus().unwrap_or(now);
    let load = Load {
        generator: (CpuClock::PROCESS.seconds()? - generator) / seconds,
        all: (machine::busy() - all) / seconds,
        cores: machine::cores(),
        busiest: 0.0,
        late: 0.0,
        is_apart: flags.is_apart(),
    };
    live::end();
    let each = |seconds: f64| if messages > 0.0 { seconds * 1e6 / messages } else { 0.0 };
    let parts = target.processes.iter().zip(before).zip(now).map(|((of, before), now)| {
        let cpu = now.since(before);
        let (cores, cpu) = (cpu.total() / seconds, Cpu { user: each(cpu.user), system: each(cpu.system) });
        Part { name: of.name.clone(), cpu, cores }
    });
    Ok(Figures {
        name: target.name.clone(),
        began,
        seconds,
        rate: messages / seconds,
        parts: parts.collect(),
        to_floor: None,
        resident_kib,
        counts: Counts::default(),
        acts: BTreeMap::new(),
        load,
        measures: Measures::new()?,
        sampled: workload_measures(flags).first().copied(),
        samples,
        services: Vec::new(),
        turnout: None,
        strangers: None,
        cut_short: target.ended().map(|pid| format!("process {pid} has ended in mid-run, after {seconds:.1} s")),
    })
}

fn since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
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
        if let Some(turnout) = &outcome.turnout {
            figures.turnout.get_or_insert_default().add(turnout);
        }
        book.opened += outcome.opened;
        book.messages += outcome.deposited;
        for (act, times) in &outcome.acts {
            *figures.acts.entry(act.clone()).or_default() += times / figures.seconds;
        }
    }
    figures.load.late = late as f64 / due.max(1) as f64;
    if let Some(turnout) = figures.turnout.as_ref().filter(|turnout| turnout.last > 0.0) {
        // It was watched a little longer.
        figures.rate = turnout.served as f64 / turnout.last;
    }
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
        (some > 0).then(|| Service { name: name.to_owned(), still: still.clone(), timeline, back, rest })
    });
    services.collect()
}

/// The p99 of what was timed in a step: of the workload's first measure, and of a mix of all.
fn p99s(flags: &Flags, shared: &Shared, step: usize) -> String {
    let (mut words, is_mix) = (String::new(), flags.acts().is_some());
    for measure in workload_measures(flags).into_iter().take(if is_mix { usize::MAX } else { 1 }) {
        let times = shared.series.of(step, measure);
        if !times.is_empty() && measure != Measure::Lag {
            let of = if is_mix { format!("{} ", measure.name()) } else { String::new() };
            words += &format!(", {of}p99 {}", live::latency(times.value_at_quantile(0.99)));
        }
    }
    words
}

/// How far it is, on a terminal. `served`: of a storm's users.
fn progress(flags: &Flags, target: &Target, sample: &Sample, p99s: &str, served: u64) -> String {
    let Sample { at, rate, cores, generator, all, resident_kib, .. } = sample;
    let (workload, name, time) = (flags.workload.name(), &target.name, live::time(flags.seconds() - at));
    let left = match flags.workload {
        Workload::Storm => format!("{served} of {} users served, {time} left at most", flags.users()),
        _ => format!("{time} left"),
    };
    let own = if target.processes.is_empty() { String::new() } else { format!("{name} {cores:.2}, ") };
    let (cores, mib) = (machine::cores(), resident_kib / 1024);
    format!(
        "{workload}, {name}: {rate:.0} messages/s{p99s}; CPU: {own}generator {generator:.2}, all {all:.2} of {cores:.0} \
         cores; {mib} MiB; {left}"
    )
}
