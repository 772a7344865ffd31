//! Figures as CSV: a line for each figure of each round, and of each step of it.

use std::fmt::Write;

use anyhow::Context;
use serde_json::Value;

use crate::figures::Figures;
use crate::flags::Flags;
use crate::run::Run;

/// Writes the file that `--csv` names, if it does.
pub fn write(flags: &Flags, run: &Run) -> anyhow::Result<()> {
    let Some(file) = &flags.csv else { return Ok(()) };
    std::fs::write(file, text(run)?).with_context(|| format!("cannot write {}", file.display()))
}

/// `second` is empty where a figure is of a whole round.
fn text(run: &Run) -> anyhow::Result<String> {
    let mut out = "target,round,second,figure,value\n".to_owned();
    for (round, figures) in run.rounds.iter().flat_map(|rounds| rounds.iter().enumerate()) {
        let mut row = |second: Option<f64>, figure: &str, value: f64| {
            let second = second.map_or(String::new(), |second| format!("{second:.1}"));
            writeln!(out, "{},{},{second},{},{value}", quoted(&figures.name), round + 1, quoted(figure))
        };
        figures.rows().into_iter().try_for_each(|(figure, value, _)| row(None, &figure, value))?;
        figures.acts.iter().try_for_each(|(act, rate)| row(None, &format!("acts.{act}/s"), *rate))?;
        if let Value::Object(counts) = serde_json::to_value(&figures.counts)? {
            let mut numbers = counts.iter().filter_map(|(figure, value)| Some((figure, value.as_f64()?)));
            numbers.try_for_each(|(figure, value)| row(None, figure, value))?;
        }
        row(None, "refusals", figures.counts.refusals() as f64)?;
        for (why, refusal) in &figures.counts.refused {
            row(None, &format!("refused, {why}"), refusal.count as f64)?;
        }
        if let Some(turnout) = &figures.turnout {
            row(None, "served", turnout.served as f64)?;
            for (why, attempt) in &turnout.again {
                row(None, &format!("again, {why}"), attempt.count as f64)?;
            }
        }
        if let Some(strangers) = &figures.strangers {
            row(None, "strangers closed", strangers.closed as f64)?;
        }
        for (second, figure, value) in steps(figures) {
            row(Some(second), &figure, value)?;
        }
    }
    Ok(out)
}

fn steps(figures: &Figures) -> Vec<(f64, String, f64)> {
    let mut rows = Vec::new();
    for sample in &figures.samples {
        let mut row = |figure: &str, value: f64| rows.push((sample.at, figure.to_owned(), value));
        row("msg/s", sample.rate);
        if !figures.parts.is_empty() {
            row("target cores", sample.cores);
            row("RSS KiB", sample.resident_kib as f64);
        }
        row("generator cores", sample.generator);
        row("all cores", sample.all);
        if let Some(measure) = figures.sampled.filter(|_| !sample.times.is_empty()) {
            for (name, part) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
                row(&format!("{}.{name} us", measure.key()), sample.times.value_at_quantile(part) as f64);
            }
        }
    }
    rows
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
