//! The highest rate that a server carries and still keeps what is asked of it: `--find-max --slo chat.p99=5ms`.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::about;
use crate::book::Book;
use crate::ending;
use crate::figures::{Figures, Limit};
use crate::flags::{Flags, Rate};
use crate::measures::Measure;
use crate::round;
use crate::run::in_words;
use crate::search::{Bracket, Care, search};
use crate::target::Target;
use crate::which::say;

/// Where the steps begin, in messages a second, if that is not said.
const FIRST: f64 = 1000.0;
/// How far the highest rate that is kept and the lowest that is not may lie apart.
const CLOSE: f64 = 1.05;
/// What is said of the share of rounds that keep it is wrong once in so many times.
const SURE: f64 = 20.0;

/// One round at one rate.
struct Trial {
    rate: f64,
    figures: Figures,
    /// Why the rate was not kept.
    why: Option<String>,
}

/// The trials until a time, and what they have found.
pub struct Found {
    trials: Vec<Trial>,
    pub bracket: Bracket,
}

/// Searches until this time.
///
/// # Errors
/// Nothing could be measured.
pub fn find(flags: &Flags, first: f64, care: Care, until: Instant, book: &mut Book) -> anyhow::Result<Found> {
    let (mut trials, mut failed) = (Vec::new(), None);
    let bracket = search(first, care, |rate| {
        // At least one of each kind.
        if ending::signal().is_some() || (Instant::now() >= until && trials.len() > 1) {
            return None;
        }
        match trial(flags, rate, book) {
            Ok(trial) => {
                let is_kept = trial.why.is_none();
                trials.push(trial);
                Some(is_kept)
            }
            Err(error) => {
                failed = Some(error);
                None
            }
        }
    });
    match failed {
        Some(error) if trials.is_empty() => Err(error),
        Some(error) => {
            say(format_args!("{error:#}"));
            Ok(Found { trials, bracket })
        }
        None => Ok(Found { trials, bracket }),
    }
}

fn trial(flags: &Flags, rate: f64, book: &mut Book) -> anyhow::Result<Trial> {
    let here = Flags { rate: Some(Rate::PerSecond(rate)), ..flags.clone() };
    if flags.addr.is_empty() {
        *book = Book { is_quiet: book.is_quiet || !book.known.is_empty(), ..Book::default() };
    }
    book.give_back();
    let figures = round::once(&here, Target::server(&here)?, book)?;
    let counts = &figures.counts;
    let wrong = (counts.wrong(&flags.expect_errno) > 0).then(|| in_words(counts));
    let late = (figures.limit() == Some(Limit::Generator)).then(|| "the generator is late".to_owned());
    let met = || flags.slos().iter().find_map(|slo| slo.broken.met_by(&figures));
    let why = figures.cut_short.clone().or(wrong).or(late).or_else(met);
    Ok(Trial { rate, figures, why })
}

/// Finds it, and shows it. Returns what was wrong.
pub fn run(flags: &Flags) -> anyhow::Result<Vec<String>> {
    flags.check()?;
    let first = flags.rate().unwrap_or(FIRST);
    let care = Care { ratio: CLOSE, times: flags.rounds() };
    let mut book = Book::open(flags.accounts.as_deref())?;
    let until = Instant::now() + Duration::from_secs_f64(flags.budget());
    let found = find(flags, first, care, until, &mut book)?;
    if let Some(file) = &flags.accounts {
        book.save(file)?;
    }
    if !flags.addr.is_empty() {
        say(format_args!("left at {}: {}", flags.addr.join(", "), book.left()));
    }
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", found.json(flags))?;
    } else {
        writeln!(out, "{}\n{}", about::title(flags), about::setting(flags))?;
        write!(out, "{}", found.text(flags))?;
    }
    let none = format!("no rate keeps {}", flags.slos_in_words());
    Ok(found.bracket.kept.is_none().then_some(none).into_iter().collect())
}

impl Found {
    /// What the rounds at this rate have shown.
    pub fn figures_at(self, rate: f64) -> impl Iterator<Item = Figures> {
        let those = self.trials.into_iter().filter(move |trial| trial.rate == rate);
        those.map(|trial| trial.figures)
    }

    /// What made the lowest rate that was not kept too much.
    fn limit(&self) -> Option<&Trial> {
        let broken = self.trials.iter().filter(|trial| trial.why.is_some());
        broken.min_by(|one, other| one.rate.total_cmp(&other.rate))
    }

    /// The share of all rounds that keep the rate, at least, as sure as one in twenty.
    fn share(&self) -> f64 {
        SURE.recip().powf(1.0 / f64::from(self.bracket.times.max(1)))
    }

    fn text(&self, flags: &Flags) -> String {
        let main = |trial: &Trial| trial.figures.sampled.filter(|&measure| trial.figures.measures.count(measure) > 0);
        let mut out = "    rate/s      p50 us     p99 us    CPU us  limit      kept\n".to_owned();
        for trial in &self.trials {
            let of = |part: f64| main(trial).map_or(0.0, |measure| trial.figures.measures.quantile(measure, part));
            let limit = trial.figures.limit().map_or("-", Limit::name);
            let kept = trial.why.as_deref().map_or("yes".to_owned(), |why| format!("no: {why}"));
            let (rate, cpu) = (trial.rate, trial.figures.cpu());
            let [p50, p99] = [of(0.5), of(0.99)];
            out += &format!("{rate:10.0}  {p50:10.0} {p99:10.0} {cpu:9.2}  {limit:9}  {kept}\n");
        }
        let slos = flags.slos_in_words();
        out += &match self.bracket.kept {
            Some(kept) => format!(
                "{kept:.0} a second is the highest rate that keeps {slos}: {} of {} rounds at it did, so {:.0} % of all \
                 rounds do or more (95 % sure)\n",
                self.bracket.times,
                self.bracket.times,
                self.share() * 100.0
            ),
            None => format!("no rate that was tried keeps {slos}\n"),
        };
        out + &self.limit_in_words()
    }

    fn limit_in_words(&self) -> String {
        let Some(trial) = self.limit() else {
            return "nothing has limited it: more time (--budget) would find a higher one\n".to_owned();
        };
        let (rate, why) = (trial.rate, trial.why.as_deref().unwrap_or_default());
        let shares = trial.figures.shares();
        let limit = match trial.figures.limit() {
            Some(Limit::Generator) => {
                "the generator is the limit, and the server may carry more: more --threads, or more machines (--share)"
            }
            Some(Limit::Machine) => {
                "all cores were busy, also with the generator, so the machine is the limit: --pin, or another machine (--addr)"
            }
            None => "the server is the limit",
        };
        format!("at {rate:.0} a second: {why}; {shares}; {limit}\n")
    }

    fn json(&self, flags: &Flags) -> Value {
        let trials = self.trials.iter().map(|trial| {
            let figures = &trial.figures;
            let p99 = figures.sampled.map(|measure: Measure| figures.measures.quantile(measure, 0.99));
            json!({
                "rate": trial.rate, "kept": trial.why.is_none(), "why": trial.why, "p99_us": p99,
                "cpu_us": figures.cpu(), "limit": figures.limit().map(Limit::name),
            })
        });
        let limit = self.limit().map(|trial| trial.figures.limit().map_or("server", Limit::name));
        json!({
            "title": about::title(flags), "settings": about::settings(flags),
            "slo": flags.slos_in_words(), "max_rate": self.bracket.kept, "broken_rate": self.bracket.broken,
            "rounds_kept": self.bracket.times, "share_of_rounds_at_least": self.bracket.kept.map(|_| self.share()),
            "limit": limit, "trials": trials.collect::<Vec<_>>(),
        })
    }
}
