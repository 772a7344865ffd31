//! The HTML report: one file that needs no other.

use std::fmt::Write;

use anyhow::Context;

use crate::figures::{Figures, Sample};
use crate::flags::Flags;
use crate::measures::Measure;
use crate::plot::{Line, Plot};
use crate::{proc, table};

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}\
    pre{background:#f5f5f5;padding:1em;overflow-x:auto;line-height:1.3}svg{max-width:100%;height:auto}\
    h1{font-size:1.4em}h2{font-size:1.1em}";

/// Writes it into the file that `--html` names, if it does.
pub fn write(flags: &Flags, shown: &[Figures]) -> anyhow::Result<()> {
    let Some(file) = &flags.html else { return Ok(()) };
    let page = page(flags, shown)?;
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

fn page(flags: &Flags, shown: &[Figures]) -> anyhow::Result<String> {
    let mut page = String::new();
    let title = escaped(&table::title(flags));
    let command: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    writeln!(page, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>")?;
    writeln!(page, "<style>{STYLE}</style><h1>{title}</h1>")?;
    writeln!(page, "<p><code>cargo bench --bench load -- {}</code>", escaped(&command.join(" ")))?;
    writeln!(page, "<br>{}, {}</p>", escaped(&proc::machine()), chrono::Local::now().format("%F %T"))?;
    writeln!(page, "<pre>{}</pre>", escaped(&table::text(flags, shown)?))?;
    for (title, plot) in plots(shown) {
        writeln!(page, "<h2>{title}</h2>{}", plot.svg()?)?;
    }
    writeln!(page, "</html>")?;
    Ok(page)
}

fn plots(shown: &[Figures]) -> Vec<(String, Plot<'static>)> {
    let mut plots = Vec::new();
    for measure in Measure::ALL {
        let lines: Vec<Line> = shown.iter().filter_map(|figures| distribution(figures, measure)).collect();
        if !lines.is_empty() {
            let plot = Plot {
                title: "so many percent took at most…",
                x_label: "percent",
                y_label: "microseconds",
                x_text: percent,
                x_labels: 6,
                log: true,
                lines,
            };
            plots.push((format!("Latency: {}", measure.name()), plot));
        }
    }
    let over_time = |title, y_label, value: fn(&Sample) -> f64| {
        let line = |figures: &Figures| Line {
            name: figures.name.to_owned(),
            points: figures.samples.iter().map(|sample| (sample.at, value(sample))).collect(),
        };
        let lines = shown.iter().map(line).collect();
        let x_text = |x: f64| format!("{x:.1}");
        let plot = Plot { title: "last round", x_label: "seconds", y_label, x_text, x_labels: 8, log: false, lines };
        (String::from(title), plot)
    };
    plots.push(over_time("Throughput", "messages/s", |sample| sample.rate));
    plots.push(over_time("CPU of the target", "cores", |sample| sample.cores));
    plots.push(over_time("Resident memory of the target", "MiB", |sample| sample.resident_kib as f64 / 1024.0));
    plots
}

/// Latency against the number of nines: each step to the right is ten times rarer.
fn distribution(figures: &Figures, measure: Measure) -> Option<Line> {
    let (_, histogram) = figures.measures.seen().find(|(seen, _)| *seen == measure)?;
    let rarest = (histogram.len() as f64).log10();
    let nines = (0..).map(|n| f64::from(n) * 0.05).take_while(|&nines| nines <= rarest);
    let points = nines.map(|nines| {
        let latency = histogram.value_at_quantile(1.0 - 10f64.powf(-nines)) as f64 / 1000.0;
        (nines, latency)
    });
    Some(Line { name: figures.name.to_owned(), points: points.collect() })
}

fn percent(nines: f64) -> String {
    let text = format!("{:.6}", 100.0 - 100.0 * 10f64.powf(-nines));
    // As many digits as there are nines.
    let digits = (nines.round() as usize).saturating_sub(2);
    let end = text.find('.').map_or(text.len(), |point| if digits == 0 { point } else { point + 1 + digits });
    text[..end.min(text.len())].to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
