//! Everything once over, for a moment and with few users: `cargo bench --bench load -- --test`.

use anyhow::ensure;
use clap::ValueEnum;

use crate::acts::Mix;
use crate::ending::is_installed;
use crate::flags::{After, Flags, Rate, Rival, Rivals, Sizes, Think};
use crate::which::say;
use crate::workload::Workload;
use crate::{idle, report, round, sweep, table};

const SECONDS: f64 = 0.2;
const RATE: Rate = Rate::PerSecond(400.0);

pub fn run(flags: &Flags) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let few = Flags { users: Some(12), seconds: Some(SECONDS), rounds: Some(1), ..flags.clone() };
    for workload in Workload::value_variants().iter().copied() {
        let few = Flags { workload, window: vec![2], html: Some(folder.path().join("report.html")), ..few.clone() };
        match workload {
            Workload::Idle => idle::run(&few)?,
            Workload::Mix => clean(&Flags { users: Some(40), rate: Some(RATE), ..few })?,
            Workload::Pairs | Workload::Group => clean(&Flags { floor: true, threads: 2, ..few })?,
            Workload::Paused => clean(&Flags { rate: Some(RATE), pause: Some(0.05), ..few })?,
            Workload::Storm => {
                let storm = Flags { seconds: None, half_open: 4, slow_senders: 4, ..few };
                clean(&storm)?;
                clean(&Flags { after: Some(After::Cut), ..storm.clone() })?;
                clean(&Flags { after: Some(After::Kill), ..storm })?;
            }
            Workload::Slow => clean(&Flags { rate: Some(RATE), ..few })?,
            Workload::Busy => {
                clean(&Flags { rate: Some(RATE), nodes: Some(1), seconds: Some(3.0), pause: Some(0.1), ..few })?;
            }
            _ => clean(&few)?,
        }
    }
    clean(&Flags {
        workload: Workload::Group,
        members: Some(3),
        size: Some(Sizes { low: 150, high: 1000 }),
        ..few.clone()
    })?;
    let mix: Mix = "chat=1,group=1,return=1,login=1,store=1,register=1".parse().map_err(anyhow::Error::msg)?;
    clean(&Flags { workload: Workload::Mix, mix: Some(mix), users: Some(40), rate: Some(RATE), ..few.clone() })?;
    clean(&Flags { rate: Some(RATE), seq: true, batch: true, ramp: Some(SECONDS), ..few.clone() })?;
    let think = Some(Think { low: 0.0, high: 0.02 });
    clean(&Flags { workload: Workload::Group, members: Some(3), think, ramp: Some(SECONDS), ..few.clone() })?;
    if is_installed("mariadbd") && is_installed("redis-server") {
        clean(&Flags { nodes: Some(2), ..few.clone() })?;
    } else {
        say("no cluster without mariadb-server and redis-server");
    }
    for rival in [Rival::Inspircd, Rival::Nats].into_iter().filter(Rival::is_installed) {
        clean(&Flags { rival: vec![Rivals(vec![rival])], ..few.clone() })?;
    }
    let svg = Some(folder.path().join("sweep.svg"));
    let sweep = Flags { sweep: true, reactors: vec![1, 2], workers: vec![1], window: vec![2], svg, ..few };
    let tried = sweep::run(&sweep)?;
    ensure!(tried.is_empty(), "{}", tried.join("\n"));
    Ok(())
}

/// Messages went through, and nothing was lost, disordered or refused.
fn clean(flags: &Flags) -> anyhow::Result<()> {
    let run = round::measure(flags)?;
    print!("{}", table::text(&run)?);
    report::write(flags, &run)?;
    let (workload, problems) = (flags.workload.name(), &run.problems);
    ensure!(problems.is_empty(), "{workload}: {}", problems.join("\n"));
    ensure!(run.shown.iter().all(|figures| figures.rate > 0.0), "{workload}: nothing went through");
    Ok(())
}
