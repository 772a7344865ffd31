//! The HTML report: one file that needs no other.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use crate::advice::Advice;
use crate::figures::{Figures, Sample};
use crate::flags::Flags;
use crate::measures::Measure;
use crate::plot::{Line, Plot};
use crate::run::Run;
use crate::table;

const STYLE: &str = "body{font:16px/1.5 sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}\
    pre{background:#f5f5f5;padding:1em;overflow-x:auto;line-height:1.3}svg{max-width:100%;height:auto}\
    h1{font-size:1.4em}h2{font-size:1.1em}.wrong{color:#b00;white-space:pre-wrap}\
    dl{background:#eef4fa;padding:1em;border-left:4px solid #0072b2}dt{font-weight:bold}dd{margin:0 0 .5em}\
    .plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(520px,100%),1fr));gap:1em}\
    :root{color-scheme:light dark}@media(prefers-color-scheme:dark){body{background:#16181b;color:#ddd}\
    pre{background:#22262b}dl{background:#1d2833}.wrong{color:#f77}svg{filter:invert(.9) hue-rotate(180deg)}}";

/// What each page begins with; `title` is escaped.
fn head(title: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style>\n<h1>{title}</h1>"
    )
}

/// Writes it into the file that `--html` names, if it does.
pub fn write(flags: &Flags, run: &Run) -> anyhow::Result<()> {
    let Some(file) = &flags.html else { return Ok(()) };
    let page = page(run)?;
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

/// A page of another kind: a verdict first, then the text, and plots.
pub fn write_page(file: &Path, title: &str, verdict: &str, text: &str, svgs: &[String]) -> anyhow::Result<()> {
    let [title, verdict, text] = [title, verdict, text].map(escaped);
    let page =
        format!("{}<p><strong>{verdict}</strong></p><pre>{text}</pre>\n{}</html>\n", head(&title), svgs.join("\n"));
    std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))
}

fn page(run: &Run) -> anyhow::Result<String> {
    let mut page = String::new();
    let title = escaped(&run.about.title);
    let Advice { verdict, limit, next } = Advice::of(run);
    writeln!(page, "{}<dl>", head(&title))?;
    for (term, words) in [("Verdict", &*verdict), ("Limit", &limit), ("What to try next", next)] {
        writeln!(page, "<dt>{term}</dt><dd>{}</dd>", escaped(words))?;
    }
    writeln!(page, "</dl>")?;
    for problem in &run.problems {
        writeln!(page, "<p class=\"wrong\">{}</p>", escaped(problem))?;
    }
    writeln!(page, "<div class=\"plots\">")?;
    for plot in plots(&run.shown) {
        writeln!(page, "<div>{}</div>", plot.svg()?)?;
    }
    writeln!(page, "</div><h2>All figures</h2><pre>{}</pre>", escaped(&table::text(run)?))?;
    writeln!(page, "<h2>How it was measured</h2><p><code>{}</code>", escaped(&run.about.command))?;
    writeln!(page, "<br>{}", escaped(&run.about.setting))?;
    writeln!(page, "<br>{}</p>", run.about.began)?;
    writeln!(page, "</html>")?;
    Ok(page)
}

/// A target's name, with the mark of what limited it.
fn marked(figures: &Figures) -> String {
    format!("{} {}", figures.name, figures.mark()).trim_end().to_owned()
}

fn plots(shown: &[Figures]) -> Vec<Plot> {
    let mut plots = Vec::new();
    for measure in Measure::ALL {
        let lines: Vec<Line> = shown.iter().filter_map(|figures| distribution(figures, measure)).collect();
        if !lines.is_empty() {
            plots.push(Plot {
                title: format!("Latency by percentile: {}, all rounds", measure.name()),
                x_label: "percentile",
                y_label: "latency, microseconds",
                x_text: percent,
                x_labels: 6,
                log: true,
                lines,
            });
        }
    }
    plots.push(over_time("Throughput", "messages/s", shown, |figures| vec![line(figures, "", |sample| sample.rate)]));
    if shown.iter().any(|figures| figures.samples.iter().any(|sample| !sample.times.is_empty())) {
        let mut plot = over_time("Latency", "latency, microseconds", shown, latency_lines);
        plot.log = true;
        plots.push(plot);
    }
    plots.push(over_time("CPU", "cores", shown, |figures| {
        let known = |sample: &Sample| sample.cores + sample.generator;
        // The kernel counts all of the machine in steps of 10 ms, and misses what is shorter.
        let all = |sample: &Sample| sample.all.max(known(sample));
        if figures.parts.is_empty() {
            return vec![line(figures, "(generator)", known), line(figures, "(generator + others)", all)];
        }
        vec![
            line(figures, "", |sample| sample.cores),
            line(figures, "+ generator", known),
            line(figures, "+ generator + others", all),
        ]
    }));
    if shown.iter().any(|figures| !figures.parts.is_empty()) {
        plots.push(over_time("Resident memory", "MiB", shown, |figures| {
            vec![line(figures, "", |sample| sample.resident_kib as f64 / 1024.0)]
        }));
    }
    plots
}

fn over_time(what: &str, y_label: &'static str, shown: &[Figures], lines: impl Fn(&Figures) -> Vec<Line>) -> Plot {
    Plot {
        title: format!("{what} over time, last round"),
        x_label: "seconds since it began to be measured",
        y_label,
        x_text: |x| format!("{x:.1}"),
        x_labels: 8,
        log: false,
        lines: shown.iter().flat_map(lines).collect(),
    }
}

/// One line of a target over time; `what` is added to its name.
fn line(figures: &Figures, what: &str, value: impl Fn(&Sample) -> f64) -> Line {
    let points = figures.samples.iter().map(|sample| (sample.at, value(sample)));
    Line { name: format!("{} {what}", marked(figures)).trim_end().to_owned(), points: points.collect() }
}

fn latency_lines(figures: &Figures) -> Vec<Line> {
    let name = figures.sampled.map_or("", Measure::name);
    let lines = [("p50", 0.5), ("p99", 0.99), ("max", 1.0)].map(|(part_name, part)| {
        let timed = figures.samples.iter().filter(|sample| !sample.times.is_empty());
        let points = timed.map(|sample| (sample.at, sample.times.value_at_quantile(part) as f64));
        Line { name: format!("{}, {name} {part_name}", marked(figures)), points: points.collect() }
    });
    lines.into_iter().filter(|line| !line.points.is_empty()).collect()
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
