//! Everything once over, for a moment and with few users: `cargo bench --bench load -- --test`.

use anyhow::ensure;
use clap::ValueEnum;

use crate::flags::{Flags, Rate, Workload};
use crate::rivals::Rival;
use crate::target::is_installed;
use crate::{idle, report, round, sweep, table};

const SECONDS: f64 = 0.2;
const RATE: Rate = Rate::PerSecond(400.0);

pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let few = Flags { users: Some(12), seconds: SECONDS, rounds: 1, ..flags.clone() };
    for workload in Workload::value_variants().iter().copied() {
        let few = Flags { workload, window: vec![2], html: Some(folder.path().join("report.html")), ..few.clone() };
        match workload {
            Workload::Idle => idle::run(&few)?,
            Workload::Mix => clean(&Flags { users: Some(40), rate: Some(RATE), ..few })?,
            Workload::Pairs | Workload::Group => clean(&Flags { floor: true, threads: 2, ..few })?,
            _ => clean(&few)?,
        }
    }
    clean(&Flags { rate: Some(RATE), seq: true, batch: true, ..few.clone() })?;
    if is_installed("mariadbd") && is_installed("redis-server") {
        clean(&Flags { nodes: 2, ..few.clone() })?;
    } else {
        eprintln!("load: no cluster without mariadb-server and redis-server");
    }
    for rival in Rival::value_variants().iter().copied().filter(|rival| rival.is_installed()) {
        clean(&Flags { rival: vec![rival], ..few.clone() })?;
    }
    let svg = Some(folder.path().join("sweep.svg"));
    sweep::run(&Flags { sweep: true, reactors: vec![1, 2], workers: vec![1], window: vec![2], svg, ..few })
}

/// Messages went through, and nothing was lost, disordered or refused.
fn clean(flags: &Flags) -> anyhow::Result<()> {
    let shown = round::measure(flags)?;
    print!("{}", table::text(flags, &shown)?);
    report::write(flags, &shown)?;
    for figures in &shown {
        let (name, workload) = (figures.name, flags.workload.name());
        ensure!(figures.rate > 0.0 && figures.wrong() == 0, "{workload}, {name}: {figures:?}");
    }
    Ok(())
}
