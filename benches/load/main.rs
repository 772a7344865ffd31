//! What a chat server carries, and what it costs: `cargo bench --bench load -- --help`, or `chat-bench --help`.
//!
//! ```text
//! main: sets up users, says when, reads /proc ──▶ generator threads ──▶ the target, processes
//! ```
//!
//! Each file uses only those above it:
//!
//! | file | what |
//! | --- | --- |
//! | `stats.rs`, `search.rs`, `bytes.rs`, `clock.rs`, `schedule.rs`, `machine.rs` | numbers, a search, bytes, clocks, when what is due, /proc |
//! | `which.rs`, `live.rs` | which program this is, and where the server is; how far it is |
//! | `ending.rs`, `pace.rs` | how a run ends, and the pace for servers that support one request at a time |
//! | `hdr.rs`, `measures.rs`, `series.rs`, `tally.rs`, `timeline.rs` | the results: what is timed and counted |
//! | `figures.rs`, `condition.rs` | the same, of a round or of several, and what fails |
//! | `workload.rs`, `acts.rs`, `flags.rs` | the workloads, what the users of a mix do, and the command line |
//! | `scenario.rs` | phases, each with flags |
//! | `about.rs`, `run.rs`, `shares.rs` | a run: what was measured and what came out, also as a file |
//! | `frames.rs`, `dialect.rs`, `message.rs` | what goes over the wire |
//! | `trust.rs` (the client's), `tls.rs` | what goes around that |
//! | `program.rs`, `stores.rs`, `front.rs`, `target.rs`, `rivals.rs`, `floor.rs` | what is put under load |
//! | `scrape.rs` | what servers tell of their own times |
//! | `book.rs`, `users.rs`, `detect.rs`, `preflight.rs`, `roles.rs` | the users, what they find, and their roles |
//! | `traffic.rs`, `turns.rs`, `generator.rs` | a thread full of clients: what they send and get, who acts next, and its loop |
//! | `storm.rs`, `strangers.rs` | users that come all at once or at a rate; clients that never log in |
//! | `round.rs`, `phases.rs` | what is measured |
//! | `table.rs`, `advice.rs`, `plot.rs`, `report.rs`, `csv.rs` | how it is shown |
//! | `idle.rs`, `find.rs`, `sweep.rs`, `goals.rs`, `compare.rs`, `smoke.rs` | what else can be asked for |

pub(crate) mod about;
pub(crate) mod acts;
pub(crate) mod advice;
pub(crate) mod book;
pub(crate) mod bytes;
pub(crate) mod clock;
pub(crate) mod compare;
pub(crate) mod condition;
pub(crate) mod csv;
pub(crate) mod detect;
pub(crate) mod dialect;
pub(crate) mod ending;
pub(crate) mod figures;
pub(crate) mod find;
pub(crate) mod flags;
pub(crate) mod floor;
pub(crate) mod frames;
pub(crate) mod front;
pub(crate) mod generator;
pub(crate) mod goals;
pub(crate) mod hdr;
pub(crate) mod idle;
pub(crate) mod live;
pub(crate) mod machine;
pub(crate) mod measures;
pub(crate) mod message;
pub(crate) mod pace;
pub(crate) mod phases;
pub(crate) mod plot;
pub(crate) mod preflight;
pub(crate) mod program;
pub(crate) mod report;
pub(crate) mod rivals;
pub(crate) mod roles;
pub(crate) mod round;
pub(crate) mod run;
pub(crate) mod scenario;
pub(crate) mod schedule;
pub(crate) mod scrape;
pub(crate) mod search;
pub(crate) mod series;
pub(crate) mod shares;
pub(crate) mod smoke;
pub(crate) mod stats;
pub(crate) mod stores;
pub(crate) mod storm;
pub(crate) mod strangers;
pub(crate) mod sweep;
pub(crate) mod table;
pub(crate) mod tally;
pub(crate) mod target;
pub(crate) mod timeline;
pub(crate) mod tls;
pub(crate) mod traffic;
#[path = "../../src/bin/chat-client/trust.rs"]
pub(crate) mod trust;
pub(crate) mod turns;
pub(crate) mod users;
pub(crate) mod which;
pub(crate) mod workload;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use flags::{Flags, Mode};
use run::Run;
use scenario::Scenario;
use which::say;
use workload::Workload;

/// Something was measured, and is not as it should be.
const WRONG: u8 = 2;

pub(crate) fn main() -> ExitCode {
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
            problems.iter().for_each(say);
            ExitCode::from(WRONG)
        }
        (Ok(_), None) => ExitCode::SUCCESS,
        (Ok(_), Some(signal)) => ExitCode::from(128 + signal),
        (Err(error), signal) => {
            say(format_args!("{error:#}"));
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
        let words = flags.words.join(" ");
        ensure!(!which::is_installed(), "there is no command '{words}'");
        say(format_args!("not asked for by '{words}'"));
        return Ok(Vec::new());
    }
    let scenario = flags.scenario.as_deref().map(|file| Scenario::read(flags, file)).transpose()?;
    let flags = scenario.as_ref().map_or(flags, |scenario| &scenario.whole);
    rlimit::increase_nofile_limit(u64::MAX)?;
    ending::listen()?;
    if let Some(pin) = &flags.pin {
        let all = machine::all_cores();
        machine::pin(&pin.own)?;
        ending::start_on(pin.server.as_deref().unwrap_or(&all))?;
    }
    // All that is started and written stands below one folder, which is gone at the end, however that comes.
    let folder = tempfile::Builder::new().prefix("load-").tempdir()?;
    ending::leave_nothing(folder.path())?;
    let _ = tempfile::env::override_temp_dir(folder.path());
    if let Some(scenario) = &scenario {
        return show(flags, phases::measure(scenario)?);
    }
    match flags.mode() {
        Mode::Test => smoke::run(flags).map(|()| Vec::new()),
        Mode::Goals => goals::run(flags),
        Mode::Sweep => sweep::run(flags),
        Mode::Find => find::run(flags),
        Mode::Compare => compare::run(flags),
        Mode::Report => {
            flags.check()?;
            show(flags, shares::read(flags, &flags.words[1..])?)
        }
        Mode::Measure | Mode::NotAsked if flags.workload == Workload::Idle => idle::run(flags).map(|()| Vec::new()),
        Mode::Measure | Mode::NotAsked => show(flags, round::measure(flags)?),
    }
}

/// Shows a run, and writes it where the flags name files.
fn show(flags: &Flags, run: Run) -> anyhow::Result<Vec<String>> {
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", table::json(&run))?;
    } else {
        write!(out, "{}", table::text(&run)?)?;
    }
    report::write(flags, &run)?;
    csv::write(flags, &run)?;
    run.write(flags)?;
    Ok(run.problems)
}
