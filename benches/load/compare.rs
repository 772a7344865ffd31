//! Two servers in turn, or two files of earlier runs: which rows differ, and how sure that is.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};

use crate::about;
use crate::book::Book;
use crate::ending;
use crate::figures::Figures;
use crate::flags::{Flags, ROUNDS_TO_COMPARE};
use crate::idle;
use crate::round;
use crate::run::{Run, in_words};
use crate::stats::{Ratio, Row, geometric_mean, ratios};
use crate::target::Target;
use crate::which::say;
use crate::workload::Workload;

/// An interval must lie wholly beyond this for a row to differ.
const MATTERS: f64 = 1.02;
/// What two runs may differ in, and still be compared.
const FREE: [&str; 6] = ["rounds", "machine", "version", "bench_version", "seed", "addr"];

/// A row of one round.
#[derive(Debug, Clone)]
struct Entry {
    row: String,
    value: f64,
    more_is_better: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Better,
    Worse,
    NoDifference,
}

fn entries(figures: &Figures) -> Vec<Entry> {
    let rows = figures.rows().into_iter();
    rows.map(|(row, value, more_is_better)| Entry { row, value, more_is_better }).collect()
}

/// One of the two.
enum Side {
    Binary(String),
    File(Box<Run>),
}

fn side(name: &str) -> anyhow::Result<Side> {
    let bytes = std::fs::read(name).with_context(|| format!("cannot read {name}"))?;
    if bytes.starts_with(b"\x7fELF") || bytes.starts_with(b"#!") {
        let path = Path::new(name).canonicalize().with_context(|| format!("cannot find {name}"))?;
        return Ok(Side::Binary(path.display().to_string()));
    }
    let run = Run::parse(&bytes);
    Ok(Side::File(Box::new(run.with_context(|| format!("{name} is no program, nor a file that --out has written"))?)))
}

/// Compares, and shows it. Returns what was wrong or worse.
pub fn run(flags: &Flags) -> anyhow::Result<Vec<String>> {
    let [_, old_name, new_name] = &flags.words[..] else {
        bail!("compare OLD NEW: two server binaries, or two files that --out has written");
    };
    flags.check()?;
    let (old, new) = (side(old_name)?, side(new_name)?);
    let mut flags = flags.clone();
    let mut problems = Vec::new();
    let (title, old, new, is_paired) = match (&old, &new) {
        (Side::File(old), Side::File(new)) => {
            let unused = flags.given.iter().find(|id| !["words", "json", "seed", "bench"].contains(&id.as_str()));
            ensure!(
                unused.is_none(),
                "--{} would not be used: files tell what was measured",
                unused.map_or("", |id| id)
            );
            for (name, file) in [(old_name, old), (new_name, new)] {
                ensure!(file.about.phases.is_empty(), "{name} is of a scenario, and phases cannot be compared");
                let rounds = file.rounds[0].len();
                ensure!(
                    rounds >= usize::from(ROUNDS_TO_COMPARE),
                    "{name} has {rounds} rounds: --rounds {ROUNDS_TO_COMPARE}"
                );
            }
            let differ = old.about.differences(&new.about, &FREE);
            ensure!(differ.is_empty(), "the two were measured differently: {}", differ.join(", "));
            // The server's.
            let rounds = |run: &Run| run.rounds[0].iter().map(entries).collect::<Rounds>();
            (old.about.title.clone(), rounds(old), rounds(new), false)
        }
        (Side::Binary(old), Side::Binary(new)) => {
            // A part of what the old one carries, for both.
            let start = |flags: &Flags| Target::fresh(flags, "old", Path::new(old));
            flags = round::with_rate(&flags, start, &mut Book::default())?;
            let (old, new) = in_turn(&flags, [old, new], &mut problems)?;
            (about::title(&flags), old, new, true)
        }
        _ => bail!("compare two binaries, or two files"),
    };
    problems.extend(show(&flags, &title, [old_name, new_name], &old, &new, is_paired)?);
    Ok(problems)
}

type Rounds = Vec<Vec<Entry>>;

/// Rounds of both, one after the other, each of them first every other time.
fn in_turn(flags: &Flags, binaries: [&str; 2], problems: &mut Vec<String>) -> anyhow::Result<(Rounds, Rounds)> {
    let least = ROUNDS_TO_COMPARE;
    ensure!(flags.rounds() >= least, "a comparison takes at least {least} rounds: --rounds");
    let (mut rounds, mut limited): ([Rounds; 2], u16) = Default::default();
    for round in 0..flags.rounds() {
        let mut entries_of = [None, None];
        for turn in 0..2 {
            let which = usize::from(round % 2) ^ turn;
            let name = ["old", "new"][which];
            eprintln!("round {} of {}: {name}", round + 1, flags.rounds());
            let target = Target::fresh(flags, name, Path::new(binaries[which]))?;
            let Round { entries, wrong, is_limited } = measure(flags, target)?;
            problems.extend(wrong.map(|why| format!("{name}, round {}: {why}", round + 1)));
            limited += u16::from(is_limited);
            entries_of[which] = Some(entries);
            if ending::signal().is_some() {
                break;
            }
        }
        let [Some(old), Some(new)] = entries_of else { break };
        rounds[0].push(old);
        rounds[1].push(new);
        if ending::signal().is_some() {
            break;
        }
    }
    if limited > 0 {
        let of = 2 * flags.rounds();
        say(format_args!(
            "in {limited} of {of} rounds the machine or the generator was the limit: rates and latencies are its"
        ));
    }
    let [old, new] = rounds;
    ensure!(old.len() >= 2, "ended by a signal before two rounds were measured");
    Ok((old, new))
}

/// What one round has shown.
struct Round {
    entries: Vec<Entry>,
    wrong: Option<String>,
    /// Something else than the server limited the round.
    is_limited: bool,
}

fn measure(flags: &Flags, target: Target) -> anyhow::Result<Round> {
    if flags.workload == Workload::Idle {
        let value = idle::measure(flags, target)?.slope();
        let entry = Entry { row: "bytes a session".to_owned(), value, more_is_better: false };
        return Ok(Round { entries: vec![entry], wrong: None, is_limited: false });
    }
    let figures = round::once(flags, target, &mut Book::default())?;
    let count = figures.counts.wrong(&flags.expect_errno);
    let wrong = figures.cut_short.clone();
    let wrong = wrong.or_else(|| (count > 0).then(|| in_words(&figures.counts)));
    Ok(Round { entries: entries(&figures), wrong, is_limited: figures.limit().is_some() })
}

fn show(
    flags: &Flags,
    title: &str,
    names: [&str; 2],
    old: &Rounds,
    new: &Rounds,
    is_paired: bool,
) -> anyhow::Result<Vec<String>> {
    let values = |rounds: &Rounds, row: &str| -> Vec<f64> {
        let of = rounds.iter().filter_map(|round| round.iter().find(|entry| entry.row == row));
        of.map(|entry| entry.value).collect()
    };
    // A row that one of them lacks in any round says nothing.
    let kinds: Vec<&Entry> = old.first().into_iter().flatten().collect();
    let kinds = kinds.into_iter().filter(|entry| {
        let [old_values, new_values] = [values(old, &entry.row), values(new, &entry.row)];
        let is_whole = old_values.len() == old.len() && new_values.len() == new.len();
        is_whole && old_values.iter().chain(&new_values).all(|&value| value > 0.0)
    });
    let kinds: Vec<&Entry> = kinds.collect();
    ensure!(!kinds.is_empty(), "there is no row that both have in every round");
    let rows: Vec<Row> =
        kinds.iter().map(|entry| Row { old: values(old, &entry.row), new: values(new, &entry.row) }).collect();
    let ratios = ratios(&rows, is_paired, flags.seed());
    let mut out = std::io::stdout().lock();
    let mut worse = Vec::new();
    let mut results = Vec::new();
    if !flags.json {
        writeln!(out, "{title}\nold: {}\nnew: {}", names[0], names[1])?;
        let how = if is_paired { "in turn" } else { "not in turn: what has changed on the machine counts, too" };
        writeln!(
            out,
            "{} and {} rounds, {how}; 95 % for all rows together; seed {}",
            old.len(),
            new.len(),
            flags.seed()
        )?;
        writeln!(out, "row                          old        new   ratio   95 % interval")?;
    }
    for ((entry, row), ratio) in kinds.iter().zip(&rows).zip(&ratios) {
        let verdict = verdict(ratio, entry.more_is_better);
        let [old, new] = [geometric_mean(&row.old), geometric_mean(&row.new)];
        let Ratio { ratio, low, high } = ratio;
        let words = match verdict {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NoDifference => "no difference",
        };
        if verdict == Verdict::Worse {
            worse.push(format!("{} is worse: {ratio:.3} times the old one, {low:.3} to {high:.3}", entry.row));
        }
        results.push(serde_json::json!({
            "row": entry.row, "old": old, "new": new, "ratio": ratio, "low": low, "high": high, "verdict": words,
        }));
        if !flags.json {
            writeln!(out, "{:20} {old:11.2} {new:10.2}   {ratio:.3}   {low:.3} to {high:.3}   {words}", entry.row)?;
        }
    }
    if flags.json {
        let all = serde_json::json!({ "title": title, "old": names[0], "new": names[1], "paired": is_paired,
            "rounds": [old.len(), new.len()], "settings": about::settings(flags), "rows": results });
        writeln!(out, "{all}")?;
    }
    Ok(worse)
}

fn verdict(ratio: &Ratio, more_is_better: bool) -> Verdict {
    let is_more = ratio.low > MATTERS;
    let is_less = ratio.high < 1.0 / MATTERS;
    match (is_more, is_less) {
        (true, _) if more_is_better => Verdict::Better,
        (true, _) => Verdict::Worse,
        (_, true) if more_is_better => Verdict::Worse,
        (_, true) => Verdict::Better,
        _ => Verdict::NoDifference,
    }
}
