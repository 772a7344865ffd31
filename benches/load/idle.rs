//! The memory that an idle session takes.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;

use crate::about;
use crate::book::Book;
use crate::detect;
use crate::ending;
use crate::flags::Flags;
use crate::machine;
use crate::preflight;
use crate::target::Target;
use crate::users::{self, Arrival, User};
use crate::which::say;

/// Memory that has not changed for this long has settled…
const STILL: Duration = Duration::from_millis(300);
/// …or it never will.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many come at a time.
const AT_ONCE: usize = 64;

/// Resident memory in KiB, with few sessions and with all.
pub struct Idle {
    sessions: [usize; 2],
    resident_kib: [u64; 2],
}

impl Idle {
    /// Bytes for each session more.
    pub fn slope(&self) -> f64 {
        let ([few, all], [before, after]) = (self.sessions, self.resident_kib);
        (after as f64 - before as f64) * 1024.0 / (all - few) as f64
    }
}

/// Measures it, and shows it.
pub fn run(flags: &Flags) -> anyhow::Result<()> {
    flags.check()?;
    let idle = measure(flags, Target::server(flags)?)?;
    let (Idle { sessions, resident_kib }, slope) = (&idle, idle.slope());
    let mut out = std::io::stdout().lock();
    if flags.json {
        let all = json!({
            "title": about::title(flags), "settings": about::settings(flags), "sessions": sessions,
            "resident_kib": resident_kib, "bytes_per_session": slope,
        });
        writeln!(out, "{all}")?;
    } else {
        let ([few, all], [before, after]) = (sessions, resident_kib);
        writeln!(out, "{}\n{}", about::title(flags), about::setting(flags))?;
        writeln!(out, "idle: {before} KiB with {few} sessions, {after} KiB with {all}: {slope:.0} bytes a session")?;
    }
    Ok(())
}

pub fn measure(flags: &Flags, mut target: Target) -> anyhow::Result<Idle> {
    ensure!(target.pids().next().is_some(), "idle measures memory: --pid");
    let mut book = Book::open(flags.accounts.as_deref())?;
    preflight::check(flags, &target)?;
    if target.is_unknown {
        detect::find_out(&mut target, &mut book)?;
    }
    // All accounts are there from the start: sessions are measured, not the pages of the store that a server
    // keeps in its memory. The first third is the warm-up, too: what the server allocates once, it has then.
    let (all, few) = (flags.users(), flags.users() / 3);
    users::enroll(&target, &mut book, all)?;
    book.give_back();
    let target = &target;
    // A few connect at a time, as people do: a crowd that connects at once takes memory that it does not need later.
    let mut sessions = |count: usize| -> anyhow::Result<Vec<User>> {
        let mut users = Vec::with_capacity(count);
        while users.len() < count {
            let count = (count - users.len()).min(AT_ONCE);
            let arrival = Arrival { count, logs_in: true, in_turn: false, receive_buffer: &|_| None };
            users.extend(users::arrive(target, &mut book, &arrival)?);
        }
        Ok(users)
    };
    let _few = sessions(few)?;
    let rest = Duration::from_secs_f64(flags.seconds());
    let before = settled(target, rest)?;
    let _more = sessions(all - few)?;
    let after = settled(target, rest)?;
    if let Some(file) = &flags.accounts {
        book.save(file)?;
    }
    if target.is_foreign {
        say(format_args!("left at {}: {}", flags.addr.join(", "), book.left()));
    }
    Ok(Idle { sessions: [few, all], resident_kib: [before, after] })
}

/// Resident memory in KiB, once the sessions have had their rest and it has not changed for a while.
fn settled(target: &Target, rest: Duration) -> anyhow::Result<u64> {
    let rested = Instant::now() + rest;
    while Instant::now() < rested && ending::signal().is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let pids: Vec<u32> = target.pids().collect();
    let (mut resident, mut since) = (machine::resident(&pids)?, Instant::now());
    let deadline = since + PATIENCE;
    while since.elapsed() < STILL && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        let now = machine::resident(&pids)?;
        if now != resident {
            (resident, since) = (now, Instant::now());
        }
    }
    Ok(resident)
}
