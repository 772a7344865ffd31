//! What a chat server carries, and what it costs: `cargo bench --bench load -- --help`.
//!
//! ```text
//! main: sets up users, says when, reads /proc ──▶ generator threads ──▶ the target, processes
//! ```
//!
//! Each file uses only those above it:
//!
//! | file | what |
//! | --- | --- |
//! | `stats.rs`, `bytes.rs`, `clock.rs`, `machine.rs` | numbers, bytes, clocks, /proc |
//! | `ending.rs`, `pace.rs` | how a run ends, and the pace for servers that support one request at a time |
//! | `measures.rs`, `tally.rs`, `timeline.rs` | the results: what is timed and counted |
//! | `figures.rs`, `condition.rs` | the same, of a round or of several, and what fails |
//! | `workload.rs`, `flags.rs` | the workloads, and the command line |
//! | `dialect.rs`, `message.rs` | what goes over the wire |
//! | `target.rs`, `rivals.rs`, `floor.rs` | what is put under load |
//! | `book.rs`, `users.rs`, `detect.rs`, `preflight.rs`, `roles.rs` | the users, what they find, and their roles |
//! | `traffic.rs`, `generator.rs` | a thread full of clients: what they send and get, and its loop |
//! | `round.rs` | what is measured |
//! | `table.rs`, `plot.rs`, `report.rs` | how it is shown |
//! | `idle.rs`, `sweep.rs`, `goals.rs`, `compare.rs`, `smoke.rs` | what else can be asked for |

mod book;
mod bytes;
mod clock;
mod compare;
mod condition;
mod detect;
mod dialect;
mod ending;
mod figures;
mod flags;
mod floor;
mod generator;
mod goals;
mod idle;
mod machine;
mod measures;
mod message;
mod pace;
mod plot;
mod preflight;
mod report;
mod rivals;
mod roles;
mod round;
mod smoke;
mod stats;
#[path = "../../tests/support/mod.rs"]
mod support;
mod sweep;
mod table;
mod tally;
mod target;
mod timeline;
mod traffic;
mod users;
mod workload;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use flags::{Flags, Mode};
use workload::Workload;

/// Something was measured, and is not as it should be.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let flags = match Flags::read(std::env::args()) {
        Ok(flags) => flags,
        Err(error) => {
            // Help is no error; there is nothing else to do if it cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let ended = run(&flags);
    match (ended, ending::signal()) {
        (Ok(problems), _) if !problems.is_empty() => {
            problems.iter().for_each(|problem| eprintln!("load: {problem}"));
            ExitCode::from(WRONG)
        }
        (Ok(_), None) => ExitCode::SUCCESS,
        (Ok(_), Some(signal)) => ExitCode::from(128 + signal),
        (Err(error), signal) => {
            eprintln!("load: {error:#}");
            signal.map_or(ExitCode::FAILURE, |signal| ExitCode::from(128 + signal))
        }
    }
}

/// Returns what was wrong with what was measured.
fn run(flags: &Flags) -> anyhow::Result<Vec<String>> {
    if flags.relay {
        floor::run().context("the floor has failed")?;
        return Ok(Vec::new());
    }
    if flags.mode() == Mode::NotAsked {
        eprintln!("load: not asked for by '{}'", flags.words.join(" "));
        return Ok(Vec::new());
    }
    rlimit::increase_nofile_limit(u64::MAX)?;
    ending::listen()?;
    // All that is started and written stands below one folder, which is gone at the end, however that comes.
    let folder = tempfile::Builder::new().prefix("load-").tempdir()?;
    ending::leave_nothing(folder.path())?;
    let _ = tempfile::env::override_temp_dir(folder.path());
    match flags.mode() {
        Mode::Test => smoke::run(flags).map(|()| Vec::new()),
        Mode::Goals => goals::run(flags),
        Mode::Sweep => sweep::run(flags),
        Mode::Compare => compare::run(flags),
        Mode::Measure | Mode::NotAsked if flags.workload == Workload::Idle => idle::run(flags).map(|()| Vec::new()),
        Mode::Measure | Mode::NotAsked => measure(flags),
    }
}

fn measure(flags: &Flags) -> anyhow::Result<Vec<String>> {
    let run = round::measure(flags)?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", table::json(&run))?;
    } else {
        write!(out, "{}", table::text(&run)?)?;
    }
    report::write(&run)?;
    compare::write(&run)?;
    Ok(run.problems())
}
