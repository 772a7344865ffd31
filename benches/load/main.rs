//! What a chat server carries, and what it costs: `cargo bench --bench load -- --help`.
//!
//! ```text
//! main: sets up users, says when, reads /proc ──▶ generator threads ──▶ the target, a process
//! ```
//! The target is a fresh server, any that speaks the contract (`--addr`), or the floor.

mod bytes;
mod floor;
mod generator;
mod target;
mod users;

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};
use generator::{Generator, Outcome, Plan, Shared, Traffic};
use serde_json::json;
use target::{Cpu, Target};
use users::User;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Workload {
    /// Users talk in pairs; each message is answered by one
    Pairs,
    /// One user of a group talks to all others; a delivery counts as a message
    Group,
    /// Sessions that do nothing: resident memory between a third of the users and all
    Idle,
    /// Messages to users who are not there, with acks
    Store,
    /// All users log out and in again, over and over
    Login,
}

/// Puts a chat server under load.
#[derive(Debug, Clone, Parser)]
#[command(name = "load")]
struct Flags {
    #[arg(long, value_enum, default_value = "pairs")]
    workload: Workload,
    /// Servers that run already, taken in turn; without it, a fresh one is started
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    addr: Vec<SocketAddr>,
    /// Their processes, for CPU and memory
    #[arg(long, requires = "addr", value_delimiter = ',')]
    pid: Vec<u32>,
    /// [default: 200; idle: 7500]
    #[arg(long)]
    users: Option<usize>,
    /// Messages in flight for each pair, group or sender
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    /// Ask for an ack for each message
    #[arg(long)]
    seq: bool,
    /// What a user sends in one turn leaves in one write; without it, each message in its own
    #[arg(long)]
    batch: bool,
    /// Messages a second, sent when due whatever the server does (pairs only); latency counts from then
    #[arg(long)]
    rate: Option<f64>,
    /// Both users of a pair on one reactor, where connections go to reactors in turn
    #[arg(long)]
    together: bool,
    /// Generator threads; each has its own share of the users, and its own group
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    threads: u16,
    /// How long each round is measured
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// The medians of so many rounds are shown
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Measure the least that a relay can do as well, in turn with the server (pairs, group); a group's
    /// delivery is compared with a message between its pairs
    #[arg(long)]
    floor: bool,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Of the fresh server
    #[arg(long, default_value = "2")]
    reactors: String,
    /// Of the fresh server
    #[arg(long, default_value = "4")]
    workers: String,
    /// Of the fresh server; cheap, unless passwords are what is to be measured
    #[arg(long, default_value = "8,1")]
    password_cost: String,
    /// Cargo passes it; without it this is a test
    #[arg(long, hide = true)]
    bench: bool,
    /// A moment of each workload
    #[arg(long, hide = true)]
    test: bool,
    /// Which benches or tests cargo was asked for
    #[arg(hide = true)]
    filter: Option<String>,
    /// Be the floor
    #[arg(long, hide = true)]
    relay: bool,
}

/// What one round has shown.
#[derive(Debug, Clone, Default)]
struct Figures {
    name: &'static str,
    /// Messages a second.
    rate: f64,
    /// Microseconds: p50, p99, p999, max.
    latency: [f64; 4],
    /// Of the target, in microseconds for each message; nothing without its pid.
    user: f64,
    system: f64,
    resident_kib: u64,
    lost: u64,
    disordered: u64,
    errors: u64,
    /// CPU of the generator: 1 is one thread that never waits.
    generator: f64,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    if flags.relay {
        return Ok(floor::run()?);
    }
    if let Some(filter) = flags.filter.as_ref().filter(|filter| !"load".contains(filter.as_str())) {
        eprintln!("load: not asked for by '{filter}'");
        return Ok(());
    }
    rlimit::increase_nofile_limit(u64::MAX)?;
    if flags.test || !flags.bench {
        return smoke(&flags);
    }
    if flags.workload == Workload::Idle { idle(&flags).map(drop) } else { measure(&flags).map(drop) }
}

/// Each workload for a moment, with few users.
fn smoke(flags: &Flags) -> anyhow::Result<()> {
    for workload in Workload::value_variants().iter().copied() {
        let floor = matches!(workload, Workload::Pairs | Workload::Group);
        let few = Flags { workload, floor, users: Some(12), seconds: 0.1, rounds: 1, ..flags.clone() };
        if workload == Workload::Idle {
            idle(&few)?;
            continue;
        }
        for round in measure(&few)? {
            let Figures { rate, lost, disordered, errors, .. } = round;
            ensure!(rate > 0.0 && lost + disordered + errors == 0, "{workload:?}: {round:?}");
        }
    }
    Ok(())
}

impl Flags {
    fn users(&self) -> usize {
        self.users.unwrap_or(if self.workload == Workload::Idle { 7500 } else { 200 })
    }

    fn target(&self) -> anyhow::Result<Target> {
        if !self.addr.is_empty() {
            return Ok(Target::running(self.addr.clone(), self.pid.clone()));
        }
        let flags =
            [("--reactors", &self.reactors), ("--workers", &self.workers), ("--password-cost", &self.password_cost)];
        Target::server(&flags.map(|(flag, value)| format!("{flag}={value}")))
    }

    fn check(&self) -> anyhow::Result<()> {
        let (users, threads) = (self.users(), usize::from(self.threads));
        ensure!(users >= 2 * threads && users % (2 * threads) == 0, "--users must be a multiple of twice --threads");
        ensure!(self.seconds > 0.0, "--seconds must be more than 0");
        ensure!(self.rate.is_none_or(|rate| rate > 0.0), "--rate must be more than 0");
        ensure!(self.rate.is_none() || self.workload == Workload::Pairs, "--rate goes with pairs");
        let has_floor = matches!(self.workload, Workload::Pairs | Workload::Group);
        ensure!(!self.floor || has_floor, "--floor goes with pairs and group");
        Ok(())
    }
}

/// Runs the rounds and shows their medians; returns those of the server and of the floor.
fn measure(flags: &Flags) -> anyhow::Result<Vec<Figures>> {
    flags.check()?;
    // The floor knows pairs only, and gives no acks.
    let plain = Flags { workload: Workload::Pairs, seq: false, ..flags.clone() };
    let (mut servers, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..flags.rounds {
        servers.push(round("server", flags, &flags.target()?)?);
        if flags.floor {
            floors.push(round("floor", &plain, &Target::floor()?)?);
        }
    }
    let mut shown = vec![median(&servers)];
    if flags.floor {
        shown.push(median(&floors));
    }
    show(flags, &shown)?;
    Ok(shown)
}

fn round(name: &'static str, flags: &Flags, target: &Target) -> anyhow::Result<Figures> {
    let count = flags.users();
    let mut users = users::arrive(&target.addresses, count, true)?;
    if flags.together {
        // Those who came half the users apart are on the same reactor, if there are 2 and half is even.
        let second = users.split_off(count / 2);
        users = users.into_iter().zip(second).flat_map(|(a, b)| [a, b]).collect();
    }
    let absent = if flags.workload == Workload::Store {
        users::arrive(&target.addresses[..1], count, false)?.iter().map(|user| user.id).collect()
    } else {
        Vec::new()
    };
    let shared = Shared {
        epoch: Instant::now(),
        measuring: AtomicBool::new(false),
        stopping: AtomicBool::new(false),
        done: AtomicU64::new(0),
    };
    let share = count / usize::from(flags.threads);
    let mut generators = Vec::new();
    for first in (0..count).step_by(share) {
        let mut mine: Vec<User> = users.drain(..share).collect();
        let recipients = absent.iter().skip(first).take(share).copied().collect();
        let traffic = match flags.workload {
            Workload::Group => Traffic::Group { id: users::make_group(&mut mine)? },
            Workload::Store => Traffic::Store,
            Workload::Login => Traffic::Login,
            Workload::Pairs | Workload::Idle => Traffic::Pairs,
        };
        let rate = flags.rate.map(|rate| rate / f64::from(flags.threads));
        let plan = Plan { traffic, recipients, window: flags.window.into(), seq: flags.seq, batch: flags.batch, rate };
        generators.push(Generator::new(plan, mine, &shared)?);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = generators.into_iter().map(|generator| scope.spawn(|| generator.run())).collect();
        let seen = watch(name, flags, target, &shared, || threads.iter().any(|thread| thread.is_finished()));
        shared.stopping.store(true, Relaxed);
        let outcomes: Result<Vec<Outcome>, _> =
            threads.into_iter().map(|thread| thread.join().expect("a generator does not panic")).collect();
        finish(seen?, &outcomes.context(name)?)
    })
}

/// Warms up, then counts for `--seconds`. Ends early if a generator has given up.
fn watch(
    name: &'static str,
    flags: &Flags,
    target: &Target,
    shared: &Shared,
    given_up: impl Fn() -> bool,
) -> anyhow::Result<Figures> {
    std::thread::sleep(Duration::from_secs_f64((flags.seconds / 4.0).min(1.0)));
    let (started, done) = (Instant::now(), shared.done.load(Relaxed));
    let (cpu, own) = (target.cpu()?, Cpu::of("self")?);
    shared.measuring.store(true, Relaxed);
    let length = Duration::from_secs_f64(flags.seconds);
    let is_terminal = std::io::stderr().is_terminal();
    while started.elapsed() < length && !given_up() {
        std::thread::sleep(Duration::from_millis(200).min(length.saturating_sub(started.elapsed())));
        if is_terminal {
            let rate = (shared.done.load(Relaxed) - done) as f64 / started.elapsed().as_secs_f64();
            eprint!("\r{name}: {:.1} s, {rate:.0} messages/s ", started.elapsed().as_secs_f64());
        }
    }
    shared.measuring.store(false, Relaxed);
    let (seconds, messages) = (started.elapsed().as_secs_f64(), (shared.done.load(Relaxed) - done) as f64);
    let (cpu, own) = (target.cpu()?.since(cpu), Cpu::of("self")?.since(own));
    if is_terminal {
        eprint!("\r\x1b[K");
    }
    let each = |seconds: f64| if messages > 0.0 { seconds * 1e6 / messages } else { 0.0 };
    Ok(Figures {
        name,
        rate: messages / seconds,
        user: each(cpu.user),
        system: each(cpu.system),
        resident_kib: target.resident()?,
        generator: own.total() / seconds,
        ..Figures::default()
    })
}

fn finish(mut figures: Figures, outcomes: &[Outcome]) -> anyhow::Result<Figures> {
    let (first, others) = outcomes.split_first().context("there is a thread")?;
    let mut latency = first.latency.clone();
    for other in others {
        latency.add(&other.latency)?;
    }
    figures.latency = [0.5, 0.99, 0.999, 1.0].map(|q| latency.value_at_quantile(q) as f64 / 1000.0);
    for outcome in outcomes {
        figures.lost += outcome.lost;
        figures.disordered += outcome.disordered;
        figures.errors += outcome.errors;
    }
    Ok(figures)
}

/// Each figure's own median; what must not happen is added up.
fn median(rounds: &[Figures]) -> Figures {
    let of = |figure: &dyn Fn(&Figures) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Figures {
        name: rounds[0].name,
        rate: of(&|f| f.rate),
        latency: [0, 1, 2, 3].map(|n| of(&|f| f.latency[n])),
        user: of(&|f| f.user),
        system: of(&|f| f.system),
        resident_kib: of(&|f| f.resident_kib as f64) as u64,
        lost: rounds.iter().map(|f| f.lost).sum(),
        disordered: rounds.iter().map(|f| f.disordered).sum(),
        errors: rounds.iter().map(|f| f.errors).sum(),
        generator: of(&|f| f.generator),
    }
}

fn show(flags: &Flags, shown: &[Figures]) -> anyhow::Result<()> {
    let cpu = |f: &Figures| f.user + f.system;
    let ratio = match shown {
        [server, floor] if cpu(floor) > 0.0 && cpu(server) > 0.0 => Some(cpu(server) / cpu(floor)),
        _ => None,
    };
    let is_bottleneck = shown.iter().any(|f| f.generator > 0.9 * f64::from(flags.threads));
    let mut out = std::io::stdout().lock();
    if flags.json {
        let rounds = shown.iter().map(|f| {
            json!({
                "target": f.name, "messages_per_s": f.rate, "p50_us": f.latency[0], "p99_us": f.latency[1],
                "p999_us": f.latency[2], "max_us": f.latency[3], "cpu_user_us": f.user, "cpu_system_us": f.system,
                "resident_kib": f.resident_kib, "lost": f.lost, "disordered": f.disordered, "errors": f.errors,
                "generator_cpu": f.generator,
            })
        });
        let rounds: Vec<_> = rounds.collect();
        let workload = format!("{:?}", flags.workload).to_lowercase();
        let all = json!({
            "workload": workload, "users": flags.users(), "window": flags.window, "seq": flags.seq, "batch": flags.batch,
            "rate": flags.rate, "rounds": flags.rounds, "results": rounds, "cpu_to_floor": ratio,
            "generator_is_the_bottleneck": is_bottleneck,
        });
        writeln!(out, "{all}")?;
        return Ok(());
    }
    let (users, window) = (flags.users(), flags.window);
    writeln!(
        out,
        "{:?}: {users} users, window {window}, {} rounds of {} s",
        flags.workload, flags.rounds, flags.seconds
    )?;
    writeln!(
        out,
        "           msg/s    p50 us    p99 us   p999 us    max us  CPU us    user  system   RSS MB    lost disorder  errors  generator"
    )?;
    for f in shown {
        let [p50, p99, p999, max] = f.latency;
        write!(out, "{:6} {:9.0} {p50:9.0} {p99:9.0} {p999:9.0} {max:9.0} ", f.name, f.rate)?;
        write!(out, "{:7.2} {:7.2} {:7.2} {:8.1} ", cpu(f), f.user, f.system, f.resident_kib as f64 / 1024.0)?;
        writeln!(out, "{:7} {:8} {:7} {:10.2}", f.lost, f.disordered, f.errors, f.generator)?;
    }
    if let Some(ratio) = ratio {
        writeln!(out, "CPU per message: {ratio:.2} times the floor")?;
    }
    if is_bottleneck {
        writeln!(out, "the generator itself is the bottleneck: more --threads, if there are cores")?;
    }
    Ok(())
}

/// Resident memory for each session, in bytes.
fn idle(flags: &Flags) -> anyhow::Result<f64> {
    ensure!(flags.users() >= 3, "--users must be 3 or more");
    let target = flags.target()?;
    if target.pids.is_empty() {
        bail!("idle measures memory: --pid");
    }
    // The first third is the warm-up, too: what a server allocates once, it has then.
    let (all, few) = (flags.users(), flags.users() / 3);
    let _few = users::arrive(&target.addresses, few, true)?;
    let before = settled(&target)?;
    let _more = users::arrive(&target.addresses, all - few, true)?;
    let after = settled(&target)?;
    let slope = (after as f64 - before as f64) * 1024.0 / (all - few) as f64;
    let mut out = std::io::stdout().lock();
    if flags.json {
        let all = json!({
            "workload": "idle", "sessions": [few, all], "resident_kib": [before, after], "bytes_per_session": slope,
        });
        writeln!(out, "{all}")?;
    } else {
        writeln!(out, "Idle: {before} KiB with {few} sessions, {after} KiB with {all}: {slope:.0} bytes a session")?;
    }
    Ok(slope)
}

/// Resident memory in KiB, once it has not changed for a while.
fn settled(target: &Target) -> anyhow::Result<u64> {
    let (mut resident, mut since) = (target.resident()?, Instant::now());
    let deadline = since + Duration::from_secs(10);
    while since.elapsed() < Duration::from_millis(300) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        let now = target.resident()?;
        if now != resident {
            (resident, since) = (now, Instant::now());
        }
    }
    Ok(resident)
}
