//! Figures as a table and as JSON.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::figures::{Figures, Limit, TOO_LATE};
use crate::measures::Measure;
use crate::run::Run;
use crate::tally::{Refusal, Strangers, Turnout};
use crate::timeline::{STEP, Step};

/// A row of a timeline is a second.
const STEPS_A_ROW: usize = (1_000_000_000 / STEP) as usize;

pub fn text(run: &Run) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    write!(out, "{}", run.about.title)?;
    if let Some(share) = run.about.share {
        write!(out, "; share {share} of it")?;
    }
    writeln!(out, "\n{}", run.about.setting)?;
    run.about.phases.iter().try_for_each(|phase| writeln!(out, "{phase}"))?;
    figures(&mut out, &run.shown)?;
    latencies(&mut out, &run.shown)?;
    acts(&mut out, &run.shown)?;
    counts(&mut out, &run.shown)?;
    for figures in &run.shown {
        services(&mut out, figures)?;
        turnout(&mut out, figures)?;
    }
    for figures in &run.shown {
        writeln!(out, "{}: {}", figures.name, verdict(figures))?;
    }
    if !run.about.is_open {
        writeln!(out, "closed loop: who waits sends nothing, so a stall counts once for each in flight; see --rate")?;
    }
    if run.shown.iter().any(|figures| figures.measures.count(Measure::Lag) > 0) {
        writeln!(
            out,
            "lag: how long after an act was due the generator had done it; all latencies count from when it was due"
        )?;
    }
    if let Some(left) = &run.left {
        writeln!(out, "{left}")?;
    }
    Ok(out)
}

/// The width of the names at the left.
fn width(shown: &[Figures]) -> usize {
    shown.iter().map(|figures| figures.name.chars().count()).max().unwrap_or(0).max(9)
}

fn figures(out: &mut String, shown: &[Figures]) -> std::fmt::Result {
    let width = width(shown);
    writeln!(out, "{:width$}     msg/s   CPU us    user  system  to floor   RSS MB", "")?;
    for figures in shown {
        let to_floor = figures.to_floor.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let or_none = |value: f64| if figures.parts.is_empty() { "-".to_owned() } else { format!("{value:.2}") };
        let (name, rate, mark) = (&figures.name, figures.rate, figures.mark());
        let [cpu, user, system] = [figures.cpu(), figures.user(), figures.system()].map(or_none);
        let mb = figures.resident_kib as f64 / 1024.0;
        writeln!(out, "{name:width$} {rate:9.0}{mark:1} {cpu:>7} {user:>7} {system:>7} {to_floor:>9} {mb:8.1}")?;
        if figures.parts.len() > 1 {
            let parts = figures.parts.iter().map(|part| format!("{} {:.2}", part.name, part.cpu.total()));
            writeln!(out, "          of that, us: {}", parts.collect::<Vec<_>>().join(", "))?;
        }
    }
    Ok(())
}

fn latencies(out: &mut String, shown: &[Figures]) -> std::fmt::Result {
    if shown.iter().all(|figures| figures.measures.seen().next().is_none()) {
        return Ok(());
    }
    let width = width(shown);
    let edge = width + 2;
    writeln!(out, "{:edge$}             p50       p99      p999       max     count", "latency, us")?;
    for figures in shown {
        for measure in figures.measures.seen() {
            let (name, what, mark) = (&figures.name, measure.name(), figures.mark());
            let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|part| figures.measures.quantile(measure, part));
            let count = figures.measures.count(measure);
            writeln!(out, "{name:width$} {what:11} {p50:6.0} {p99:9.0} {p999:9.0} {max:9.0}{mark:1} {count:8}")?;
        }
    }
    Ok(())
}

/// What the users of a mix did.
fn acts(out: &mut String, shown: &[Figures]) -> std::fmt::Result {
    let width = width(shown);
    for figures in shown.iter().filter(|figures| !figures.acts.is_empty()) {
        let all = figures.acts.values().sum::<f64>().max(f64::MIN_POSITIVE);
        let acts = figures.acts.iter().map(|(act, rate)| format!("{act} {rate:.1} ({:.1} %)", rate / all * 100.0));
        writeln!(out, "{:width$} acts a second: {}", figures.name, acts.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn counts(out: &mut String, shown: &[Figures]) -> std::fmt::Result {
    let width = width(shown);
    writeln!(
        out,
        "{:width$}   delivered    stored  lost  repeated  disorder  changed  refused  missed  closed  acks lost  repeated  \
         changed",
        "counted"
    )?;
    for figures in shown {
        let (name, c, refused) = (&figures.name, &figures.counts, figures.counts.refusals());
        write!(out, "{name:width$} {:11} {:9} {:5} {:9} ", c.delivered, c.stored, c.lost, c.repeated)?;
        write!(out, "{:9} {:8} {refused:8} {:7} {:7} ", c.out_of_order, c.changed, c.missed, c.closed)?;
        writeln!(out, "{:10} {:9} {:8}", c.acks_lost, c.acks_repeated, c.acks_changed)?;
        for (errno, refusal) in &c.refused {
            refusal_row(out, errno, "refused", refusal)?;
        }
        if let Some(sample) = &c.changed_sample {
            writeln!(out, "          changed, as: {sample}")?;
        }
    }
    Ok(())
}

/// How a busy recipient was served, second by second.
fn services(out: &mut String, figures: &Figures) -> std::fmt::Result {
    let Some(first) = figures.services.first() else { return Ok(()) };
    let still = [first.still.start, first.still.end].map(|at| at as f64 / 1e9);
    writeln!(out, "{}: the recipient stands still from {:.1} s to {:.1} s", figures.name, still[0], still[1])?;
    write!(out, " from s")?;
    for service in &figures.services {
        write!(out, " | {:>15}: due  arrived     live   stored", service.name)?;
    }
    writeln!(out)?;
    let mut rows: Vec<String> = Vec::new();
    for service in &figures.services {
        for (n, Step { sent, live, stored, arrived }) in service.timeline.by(STEPS_A_ROW).enumerate() {
            if rows.len() <= n {
                rows.push(format!("{n:7}"));
            }
            write!(rows[n], " | {sent:20} {arrived:8} {live:8} {stored:8}")?;
        }
    }
    rows.iter().try_for_each(|row| writeln!(out, "{row}"))?;
    for service in &figures.services {
        let back = service.back.map_or("not back".to_owned(), |seconds| format!("back after {seconds:.1} s"));
        writeln!(out, "{}, messages from its {}: {back}, at 95 % of the rate and live", figures.name, service.name)?;
    }
    Ok(())
}

/// How a storm's users were served, and who was there beside those that are measured.
fn turnout(out: &mut String, figures: &Figures) -> std::fmt::Result {
    let name = &figures.name;
    if let Some(Turnout { users, served, last, again }) = &figures.turnout {
        let when = if *served > 0 { format!(", the last of them after {last:.2} s") } else { String::new() };
        writeln!(out, "{name}: {served} of {users} users were served{when}")?;
        for (why, refusal) in again {
            refusal_row(out, why, "tried again", refusal)?;
        }
    }
    if let Some(Strangers { half_open, slow, closed }) = &figures.strangers {
        writeln!(
            out,
            "{name}: {half_open} half-open and {slow} slow clients were beside; their connections were closed {closed} times"
        )?;
    }
    Ok(())
}

/// `why`: its errno, or what else went wrong.
fn refusal_row(out: &mut String, why: &str, what: &str, Refusal { count, sample }: &Refusal) -> std::fmt::Result {
    let errno = if why.parse::<i64>().is_ok() { "errno " } else { "" };
    let sample = if sample.is_empty() { String::new() } else { format!(", as with {sample}") };
    writeln!(out, "          {errno}{why}: {count} {what}{sample}")
}

/// The machine's use by its users, and what that says of the figures.
pub fn verdict(figures: &Figures) -> String {
    let (shares, late) = (figures.shares(), figures.load.late);
    let Some(limit) = figures.limit() else { return shares };
    let mut words = format!("{} {shares}: the {} is the limit", limit.mark(), limit.name());
    if late > TOO_LATE {
        words += &format!("; {:.1} % of its acts were late or not done", late * 100.0);
    } else if limit == Limit::Generator {
        words += ": more --threads";
    }
    words
}

pub fn json(run: &Run) -> Value {
    let results: Vec<Value> = run.shown.iter().map(result).collect();
    json!({
        "title": run.about.title, "share": run.about.share, "settings": run.about.settings, "results": results,
        "speaks": run.speaks, "left": run.left, "failures": run.problems,
    })
}

pub fn result(figures: &Figures) -> Value {
    let measures = &figures.measures;
    let latencies = measures.seen().map(|measure| {
        let [p50, p99, p999, max] = [0.5, 0.99, 0.999, 1.0].map(|part| measures.quantile(measure, part));
        let latency =
            json!({ "p50_us": p50, "p99_us": p99, "p999_us": p999, "max_us": max, "count": measures.count(measure) });
        (measure.key(), latency)
    });
    let parts = figures.parts.iter().map(|part| {
        let (user, system) = (part.cpu.user, part.cpu.system);
        (part.name.clone(), json!({ "cpu_user_us": user, "cpu_system_us": system, "cores": part.cores }))
    });
    let services = figures.services.iter().map(|service| {
        let seconds = service.timeline.by(STEPS_A_ROW).map(|Step { sent, live, stored, arrived }| {
            json!({ "due": sent, "arrived": arrived, "live": live, "stored": stored })
        });
        (service.name.replace(' ', "_"), json!({ "back_s": service.back, "seconds": seconds.collect::<Vec<_>>() }))
    });
    let storm = figures.turnout.as_ref().map(|turnout| {
        let Turnout { users, served, again, .. } = turnout;
        json!({ "users": users, "served": served, "all_s": turnout.all(), "again": again })
    });
    let load = &figures.load;
    let of_pids = |value: f64| (!figures.parts.is_empty()).then_some(value);
    let mut result = json!({
        "target": figures.name, "messages_per_s": figures.rate, "cpu_us": of_pids(figures.cpu()),
        "cpu_user_us": of_pids(figures.user()), "cpu_system_us": of_pids(figures.system()), "cpu_to_floor": figures.to_floor,
        "parts": parts.collect::<Map<_, _>>(), "resident_kib": of_pids(figures.resident_kib as f64),
        "latency": latencies.collect::<Map<_, _>>(), "service": services.collect::<Map<_, _>>(),
        "storm": storm, "strangers": figures.strangers,
        "acts_per_s": figures.acts,
        "load": { "generator_cores": load.generator, "all_cores": load.all, "cores": load.cores,
            "busiest_thread": load.busiest, "late": load.late },
        "limit": figures.limit().map(Limit::name), "cut_short": figures.cut_short,
    });
    if let (Value::Object(result), Ok(Value::Object(counts))) = (&mut result, serde_json::to_value(&figures.counts)) {
        result.extend(counts);
        result.insert("refusals".to_owned(), figures.counts.refusals().into());
    }
    result
}
