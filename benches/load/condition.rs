//! What a user calls a failure: `--fail-if 'chat.p99>5ms'`.

use std::fmt;
use std::str::FromStr;

use crate::figures::Figures;
use crate::measures::Measure;
use crate::tally::Turnout;

#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    text: String,
    subject: Subject,
    is: Is,
    /// The bound of a latency is in microseconds.
    bound: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Subject {
    /// What this part of all times does not exceed.
    Latency(Measure, f64),
    Figure(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Is {
    More,
    AtLeast,
    Less,
    AtMost,
}

/// Names and units of the figures that are no latencies.
const FIGURES: [(&str, Unit); 18] = [
    ("rate", Unit::Count),
    ("back", Unit::Time),
    ("cpu", Unit::Time),
    ("cpu.user", Unit::Time),
    ("cpu.system", Unit::Time),
    ("to_floor", Unit::Count),
    ("rss", Unit::Size),
    ("delivered", Unit::Count),
    ("stored", Unit::Count),
    ("lost", Unit::Count),
    ("repeated", Unit::Count),
    ("out_of_order", Unit::Count),
    ("changed", Unit::Count),
    ("refused", Unit::Count),
    ("acks_lost", Unit::Count),
    ("acks_repeated", Unit::Count),
    ("missed", Unit::Count),
    ("closed", Unit::Count),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Unit {
    Count,
    /// Microseconds.
    Time,
    /// KiB.
    Size,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Condition, String> {
        let found = [(">=", Is::AtLeast), ("<=", Is::AtMost), (">", Is::More), ("<", Is::Less)];
        let found = found.into_iter().find_map(|(sign, is)| Some((text.split_once(sign)?, is)));
        let ((name, bound), is) = found.ok_or("a figure, one of > >= < <=, and a bound, as in chat.p99>5ms")?;
        let (subject, unit) = subject(name.trim())?;
        let bound = number(bound.trim(), unit)?;
        Ok(Condition { text: text.trim().to_owned(), subject, is, bound })
    }
}

fn subject(name: &str) -> Result<(Subject, Unit), String> {
    if let Some(&(name, unit)) = FIGURES.iter().find(|(figure, _)| *figure == name) {
        return Ok((Subject::Figure(name), unit));
    }
    let unknown = || {
        let measures = Measure::ALL.map(Measure::key).join(", ");
        let figures = FIGURES.map(|(name, _)| name).join(", ");
        format!("there is no '{name}': one of {measures}, with .p50, .p99, .p99.9 and the like, or .max; or {figures}")
    };
    let (measure, part) = name.split_once('.').ok_or_else(unknown)?;
    let measure = Measure::ALL.into_iter().find(|known| known.key() == measure).ok_or_else(unknown)?;
    let part = if part == "max" { Some(1.0) } else { part.strip_prefix('p').and_then(percentile) };
    let part = part.filter(|part| (0.0..=1.0).contains(part)).ok_or_else(unknown)?;
    Ok((Subject::Latency(measure, part), Unit::Time))
}

/// Parses `99`, `99.9`, `999` or `9999`: the last two are 99.9 and 99.99.
fn percentile(text: &str) -> Option<f64> {
    let digits = text.len();
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let percent: f64 = text.parse().ok()?;
    let is_short = digits > 2 && text != "100" && text.bytes().all(|byte| byte.is_ascii_digit());
    Some(if is_short { percent / 10f64.powi(digits as i32) } else { percent / 100.0 })
}

fn number(text: &str, unit: Unit) -> Result<f64, String> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (digits, suffix) = (&text[..end], text[end..].trim());
    let number: f64 = digits.parse().map_err(|_| format!("'{text}' is no bound"))?;
    let factor = match (unit, suffix) {
        (Unit::Time, "ns") => 1e-3,
        (Unit::Time, "us" | "µs") => 1.0,
        (Unit::Time, "ms") => 1e3,
        (Unit::Time, "s") => 1e6,
        (Unit::Time, _) => return Err(format!("'{text}' needs a unit: ns, us, ms or s")),
        (Unit::Size, "KiB") => 1.0,
        (Unit::Size, "MiB") => 1024.0,
        (Unit::Size, "GiB") => 1_048_576.0,
        (Unit::Size, _) => return Err(format!("'{text}' needs a unit: KiB, MiB or GiB")),
        (Unit::Count, "") => 1.0,
        (Unit::Count, "k") => 1e3,
        (Unit::Count, "M") => 1e6,
        (Unit::Count, _) => return Err(format!("'{text}' is a number, without a unit, or with k or M")),
    };
    Ok(number * factor)
}

impl Condition {
    /// The measure that must be timed for the condition to be decided.
    pub fn measure(&self) -> Option<Measure> {
        match self.subject {
            Subject::Latency(measure, _) => Some(measure),
            Subject::Figure(_) => None,
        }
    }

    pub fn needs_floor(&self) -> bool {
        self.subject == Subject::Figure("to_floor")
    }

    /// The condition is about how soon all is as before.
    pub fn needs_a_return(&self) -> bool {
        self.subject == Subject::Figure("back")
    }

    /// The condition is about the CPU or the memory of the target.
    pub fn needs_pid(&self) -> bool {
        matches!(self.subject, Subject::Figure("cpu" | "cpu.user" | "cpu.system" | "rss"))
    }

    /// The message, if these figures meet the condition or do not suffice to decide it.
    pub fn met_by(&self, figures: &Figures) -> Option<String> {
        let counts = &figures.counts;
        let value = match self.subject {
            Subject::Latency(measure, _) if figures.measures.count(measure) == 0 => {
                return Some(format!("{self}: no {} was timed", measure.name()));
            }
            Subject::Latency(measure, part) => figures.measures.quantile(measure, part),
            Subject::Figure(name) => match name {
                "rate" => figures.rate,
                "back" => {
                    let services = figures.services.iter().map(|service| service.back);
                    let backs = services.chain(figures.turnout.iter().map(Turnout::all));
                    backs.map(|back| back.map_or(f64::INFINITY, |seconds| seconds * 1e6)).fold(0.0, f64::max)
                }
                "cpu" => figures.cpu(),
                "cpu.user" => figures.user(),
                "cpu.system" => figures.system(),
                "rss" => figures.resident_kib as f64,
                "to_floor" => match figures.to_floor {
                    Some(ratio) => ratio,
                    None => return Some(format!("{self}: there is no figure to the floor")),
                },
                "delivered" => counts.delivered as f64,
                "stored" => counts.stored as f64,
                "lost" => counts.lost as f64,
                "repeated" => counts.repeated as f64,
                "out_of_order" => counts.out_of_order as f64,
                "changed" => counts.changed as f64,
                "refused" => counts.refusals() as f64,
                "acks_lost" => counts.acks_lost as f64,
                "acks_repeated" => counts.acks_repeated as f64,
                "missed" => counts.missed as f64,
                _ => counts.closed as f64,
            },
        };
        let is_met = match self.is {
            Is::More => value > self.bound,
            Is::AtLeast => value >= self.bound,
            Is::Less => value < self.bound,
            Is::AtMost => value <= self.bound,
        };
        let unit = match self.subject {
            Subject::Latency(..) | Subject::Figure("cpu" | "cpu.user" | "cpu.system" | "back") => " us",
            Subject::Figure("rss") => " KiB",
            Subject::Figure(_) => "",
        };
        is_met.then(|| format!("{self}: it is {value:.2}{unit}"))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
