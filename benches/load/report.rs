//! The HTML report: one file that needs no other.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use crate::figures::{Figures, Sample};
use crate::flags::Flags;
use crate::measures::Measure;
use crate::plot::{Line, Plot};
use crate::run::Run;
use crate::table;

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}\
    pre{background:#f5f5f5;padding:1em;overflow-x:auto;line-height:1.3}svg{max-width:100%;height:auto}\
    h1{font-size:1.4em}h2{font-size:1.1em}.wrong{color:#b00;white-space:pre-wrap}";

/// Writes it into the file that `--html` names, if it does.
pub fn write(flags: &Flags, run: &Run) -> anyhow::Result<()> {
    let Some(file) = &flags.html else { return Ok(()) };
    let page = page(run)?;
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

/// A page of another kind: a verdict first, then the text, and plots.
pub fn write_page(file: &Path, title: &str, verdict: &str, text: &str, svgs: &[String]) -> anyhow::Result<()> {
    let [title, verdict, text] = [title, verdict, text].map(escaped);
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style>\n\
         <h1>{title}</h1><p><strong>{verdict}</strong></p><pre>{text}</pre>\n{}</html>\n",
        svgs.join("\n")
    );
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

fn page(run: &Run) -> anyhow::Result<String> {
    let mut page = String::new();
    let title = escaped(&run.about.title);
    writeln!(page, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>")?;
    writeln!(page, "<style>{STYLE}</style><h1>{title}</h1>")?;
    writeln!(page, "<p><code>{}</code>", escaped(&run.about.command))?;
    writeln!(page, "<br>{}", escaped(&run.about.setting))?;
    writeln!(page, "<br>{}</p>", run.about.began)?;
    writeln!(page, "<pre>{}</pre>", escaped(&table::text(run)?))?;
    for problem in &run.problems {
        writeln!(page, "<p class=\"wrong\">{}</p>", escaped(problem))?;
    }
    for (title, plot) in plots(&run.shown) {
        writeln!(page, "<h2>{title}</h2>{}", plot.svg()?)?;
    }
    writeln!(page, "</html>")?;
    Ok(page)
}

/// A target's name, with the mark of what limited it.
fn marked(figures: &Figures) -> String {
    format!("{} {}", figures.name, figures.mark()).trim_end().to_owned()
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
            name: marked(figures),
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

/// Latency against the number of nines: each step to the right is ten times rarer. The last point is the maximum.
fn distribution(figures: &Figures, measure: Measure) -> Option<Line> {
    let count = figures.measures.count(measure);
    if count == 0 {
        return None;
    }
    let rarest = (count as f64).log10();
    let nines = (0..).map(|n| f64::from(n) * 0.05).take_while(|&nines| nines < rarest);
    let at = |nines: f64| (nines, figures.measures.quantile(measure, 1.0 - 10f64.powf(-nines)));
    let points = nines.map(at).chain([(rarest, figures.measures.quantile(measure, 1.0))]);
    Some(Line { name: marked(figures), points: points.collect() })
}

fn percent(nines: f64) -> String {
    let text = format!("{:.6}", 100.0 - 100.0 * 10f64.powf(-nines));
    // It has as many digits as there are nines.
    let digits = (nines.round() as usize).saturating_sub(2);
    let end = text.find('.').map_or(text.len(), |point| if digits == 0 { point } else { point + 1 + digits });
    text[..end.min(text.len())].to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
