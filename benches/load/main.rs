//! What a chat server carries, and what it costs: `cargo bench --bench load -- --help`.
//!
//! ```text
//! main: sets up users, says when, reads /proc ──▶ generator threads ──▶ the target, a process
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `flags.rs` | the command line, and the workloads |
//! | `target.rs`, `rivals.rs`, `floor.rs` | what is put under load |
//! | `dialect.rs`, `bytes.rs` | what goes over the wire |
//! | `users.rs`, `roles.rs` | who comes, and who does what |
//! | `generator.rs`, `traffic.rs` | a thread full of clients: its loop, and what they send and get |
//! | `round.rs`, `idle.rs`, `sweep.rs`, `goals.rs` | what is measured |
//! | `measures.rs`, `figures.rs`, `proc.rs` | the results |
//! | `table.rs`, `report.rs`, `plot.rs` | how they are shown |

mod bytes;
mod dialect;
mod figures;
mod flags;
mod floor;
mod generator;
mod goals;
mod idle;
mod measures;
mod plot;
mod proc;
mod report;
mod rivals;
mod roles;
mod round;
mod smoke;
#[path = "../../tests/support/mod.rs"]
mod support;
mod sweep;
mod table;
mod target;
mod traffic;
mod users;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use flags::{Flags, Workload};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let flags = Flags::parse();
    if flags.relay {
        return floor::run().context("the floor has failed");
    }
    if let Some(filter) = flags.filter.as_ref().filter(|filter| !"load".contains(filter.as_str())) {
        eprintln!("load: not asked for by '{filter}'");
        return Ok(());
    }
    rlimit::increase_nofile_limit(u64::MAX)?;
    match &flags {
        flags if flags.test || !flags.bench => smoke::run(flags),
        flags if flags.goals => goals::run(flags),
        flags if flags.sweep => sweep::run(flags),
        flags if flags.workload == Workload::Idle => idle::run(flags),
        flags => measure(flags),
    }
}

fn measure(flags: &Flags) -> anyhow::Result<()> {
    let shown = round::measure(flags)?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", table::json(flags, &shown))?;
    } else {
        write!(out, "{}", table::text(flags, &shown)?)?;
    }
    report::write(flags, &shown)
}
