//! Figures as a table and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::figures::Figures;
use crate::flags::{Flags, Rate};

pub fn text(flags: &Flags, shown: &[Figures]) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    writeln!(out, "{}", title(flags))?;
    writeln!(
        out,
        "              msg/s  CPU us    user  system  to floor   RSS MB   lost  disorder  errors  generator"
    )?;
    for figures in shown {
        let to_floor = figures.to_floor.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let Figures { name, rate, user, system, lost, disordered, errors, busy, .. } = figures;
        let (cpu, mb) = (figures.cpu(), figures.resident_kib as f64 / 1024.0);
        write!(out, "{name:9} {rate:9.0} {cpu:7.2} {user:7.2} {system:7.2} {to_floor:>9} {mb:8.1} ")?;
        writeln!(out, "{lost:6} {disordered:9} {errors:7} {:8.0} %", busy * 100.0)?;
    }
    writeln!(out, "latency, us             p50       p99      p999       max")?;
    for figures in shown {
        for latency in &figures.latencies {
            let (name, measure) = (figures.name, latency.measure.name());
            write!(out, "{name:9} {measure:11} {:6.0} {:9.0} ", latency.p50, latency.p99)?;
            writeln!(out, "{:9.0} {:9.0}", latency.p999, latency.max)?;
        }
    }
    for figures in shown {
        if let Some(warning) = warning(figures) {
            writeln!(out, "{warning}")?;
        }
    }
    Ok(out)
}

pub fn title(flags: &Flags) -> String {
    let mut title = format!("{}: {} users, window {}", flags.workload.name(), flags.users(), flags.window());
    if let Some(Rate::Percent(percent)) = flags.rate {
        title += &format!(", {percent:.0} % of capacity");
    }
    if let Some(rate) = flags.rate() {
        title += &format!(", {rate:.0} a second");
    }
    let nodes = flags.addr.len().max(flags.nodes.into());
    if nodes > 1 {
        title += &format!(", {nodes} nodes");
    }
    title + &format!(", {} x {} s", flags.rounds, flags.seconds)
}

/// What is wrong with these figures, if it is the generator's fault.
pub fn warning(figures: &Figures) -> Option<String> {
    let name = figures.name;
    if figures.late > 0.01 {
        return Some(format!(
            "{name}: the generator itself is the bottleneck: {:.0} % of its messages left late",
            figures.late * 100.0
        ));
    }
    figures.is_the_generators_limit().then(|| {
        format!("{name}: the generator itself is the bottleneck: more --threads, if there are cores, or other ones")
    })
}

pub fn json(flags: &Flags, shown: &[Figures]) -> Value {
    let results = shown.iter().map(|figures| {
        let latencies = figures.latencies.iter().map(|l| {
            let latency = json!({ "p50_us": l.p50, "p99_us": l.p99, "p999_us": l.p999, "max_us": l.max });
            (l.measure.name().replace(' ', "_"), latency)
        });
        json!({
            "target": figures.name, "messages_per_s": figures.rate, "cpu_user_us": figures.user,
            "cpu_system_us": figures.system, "cpu_to_floor": figures.to_floor,
            "resident_kib": figures.resident_kib, "lost": figures.lost, "disordered": figures.disordered,
            "errors": figures.errors, "generator_busy": figures.busy, "generator_late": figures.late,
            "generator_is_the_bottleneck": figures.is_the_generators_limit(),
            "latency": latencies.collect::<serde_json::Map<_, _>>(),
        })
    });
    json!({
        "workload": flags.workload.name(), "users": flags.users(), "window": flags.window(), "seq": flags.seq,
        "batch": flags.batch, "rate": flags.rate(), "nodes": flags.addr.len().max(flags.nodes.into()),
        "rounds": flags.rounds, "seconds": flags.seconds, "results": results.collect::<Vec<_>>(),
    })
}
