//! What a session takes that does nothing.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::json;

use crate::flags::Flags;
use crate::proc;
use crate::target::Target;
use crate::users;

/// Memory that has not changed for so long has settled…
const STILL: Duration = Duration::from_millis(300);
/// …or it never will.
const PATIENCE: Duration = Duration::from_secs(10);

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
    let idle = measure(flags)?;
    let (Idle { sessions, resident_kib }, slope) = (&idle, idle.slope());
    let mut out = std::io::stdout().lock();
    if flags.json {
        let all = json!({
            "workload": "idle", "sessions": sessions, "resident_kib": resident_kib, "bytes_per_session": slope,
        });
        writeln!(out, "{all}")?;
    } else {
        let ([few, all], [before, after]) = (sessions, resident_kib);
        writeln!(out, "idle: {before} KiB with {few} sessions, {after} KiB with {all}: {slope:.0} bytes a session")?;
    }
    Ok(())
}

pub fn measure(flags: &Flags) -> anyhow::Result<Idle> {
    ensure!(flags.users() >= 3, "--users must be 3 or more");
    let target = &Target::server(flags)?;
    if target.pids.is_empty() {
        bail!("idle measures memory: --pid");
    }
    // All accounts are there from the begin: sessions are measured, not the pages of the store that a
    // server keeps in its memory. The first third is the warm-up, too: what it allocates once, it has then.
    let (all, few) = (flags.users(), flags.users() / 3);
    let accounts = users::enroll(target, all)?;
    let _few = users::log_in(target, &accounts[..few])?;
    let before = settled(target)?;
    let _more = users::log_in(target, &accounts[few..])?;
    let after = settled(target)?;
    Ok(Idle { sessions: [few, all], resident_kib: [before, after] })
}

/// Resident memory in KiB, once it has not changed for a while.
fn settled(target: &Target) -> anyhow::Result<u64> {
    let (mut resident, mut since) = (proc::resident(&target.pids)?, Instant::now());
    let deadline = since + PATIENCE;
    while since.elapsed() < STILL && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        let now = proc::resident(&target.pids)?;
        if now != resident {
            (resident, since) = (now, Instant::now());
        }
    }
    Ok(resident)
}
