//! The file of `--scenario`: phases of a run, in TOML. Its keys are the command line's flags.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use clap::CommandFactory;
use clap::error::ContextKind;
use toml::de::{DeTable, DeValue};

use crate::flags::{Flags, Rate, Told, long_name};
use crate::workload::Workload;

/// What may differ from phase to phase. The server, its users' connections, and the outputs are those of all.
const OF_A_PHASE: [&str; 21] = [
    "workload",
    "users",
    "members",
    "window",
    "size",
    "seq",
    "batch",
    "rate",
    "think",
    "ramp",
    "pause",
    "read_rate",
    "mix",
    "threads",
    "seconds",
    "fail_if",
    "expect_errno",
    "after",
    "half_open",
    "slow_senders",
    "metrics",
];
/// What a run of phases has no use for.
const OF_OTHERS: [&str; 14] = [
    "words", "together", "rounds", "floor", "rival", "share", "start_at", "find_max", "slo", "budget", "sweep", "svg",
    "goals", "readme",
];

pub struct Scenario {
    /// The flags of the whole run. There are as many users as the largest phase has.
    pub whole: Flags,
    pub phases: Vec<Phase>,
}

pub struct Phase {
    pub name: String,
    pub flags: Flags,
}

/// A key of the file.
struct Key {
    /// Of the flag.
    id: String,
    line: usize,
    /// `None`: a flag without a value, and not given.
    values: Option<Vec<String>>,
}

impl Scenario {
    /// Reads a file. A phase's keys go before the command line's flags, and these before the keys above the first phase.
    ///
    /// # Errors
    /// It cannot be read, or a phase cannot be run: with the line of the file, if it is known.
    pub fn read(flags: &Flags, file: &Path) -> anyhow::Result<Scenario> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
        let line = |span: Range<usize>| text[..span.start.min(text.len())].matches('\n').count() + 1;
        let document = DeTable::parse(&text).map_err(|error| {
            anyhow!("{name}, line {}: {}", error.span().map_or(1, line), error.message().trim_end())
        })?;
        let mut tables = Vec::new();
        let mut above = Vec::new();
        for (key, value) in document.get_ref().iter() {
            match value.get_ref() {
                DeValue::Array(phases) if key.get_ref() == "phase" => {
                    tables.extend(phases.iter().map(|phase| (line(phase.span()), phase.get_ref())));
                }
                _ => above.push(
                    self::key(key.get_ref(), line(key.span()), value.get_ref())
                        .with_context(|| format!("{name}, line {}", line(key.span())))?,
                ),
            }
        }
        ensure!(!tables.is_empty(), "{name} has no phase: [[phase]], and below it flags such as seconds = 10");
        let of_others = flags.told.keys().find(|id| OF_OTHERS.contains(&id.as_str()));
        if let Some(id) = of_others {
            bail!("--{} would not be used: a scenario measures each of its phases once", long_name(id));
        }
        let mut told = Told::new();
        for key in &above {
            ensure!(
                !OF_OTHERS.contains(&&*key.id),
                "{name}, line {}: {} would not be used: a scenario measures each of its phases once",
                key.line,
                long_name(&key.id)
            );
            enter(&mut told, key);
        }
        told.extend(flags.told.clone());
        let mut whole = parsed(&told, &above).map_err(|(line, why)| anyhow!("{name}{}: {why}", at(line)))?;
        told.remove("scenario");
        let mut phases: Vec<Phase> = Vec::new();
        for (n, (line_of_phase, table)) in tables.into_iter().enumerate() {
            let DeValue::Table(table) = table else {
                bail!("{name}, line {line_of_phase}: a phase is a table: [[phase]]")
            };
            let (mut told, mut keys, mut phase_name) = (told.clone(), Vec::new(), format!("phase {}", n + 1));
            for (key, value) in table.iter() {
                let here = line(key.span());
                match value.get_ref() {
                    DeValue::String(text) if key.get_ref() == "name" => phase_name = text.to_string(),
                    value => {
                        let key = self::key(key.get_ref(), here, value);
                        let key = key.with_context(|| format!("{name}, line {here}"))?;
                        ensure!(
                            OF_A_PHASE.contains(&&*key.id),
                            "{name}, line {here}: {} is of the whole run: above the first phase, or on the command line",
                            long_name(&key.id)
                        );
                        enter(&mut told, &key);
                        keys.push(key);
                    }
                }
            }
            // An error is looked for in the phase first.
            keys.extend(above.iter().map(|key| Key { id: key.id.clone(), line: key.line, values: None }));
            let failed = |line: Option<usize>, why: String| {
                anyhow!("{name}{} ({phase_name}): {why}", at(Some(line.unwrap_or(line_of_phase))))
            };
            let mut flags = parsed(&told, &keys).map_err(|(line, why)| failed(line, why))?;
            (flags.seed, flags.nodes) = (whole.seed, flags.nodes.or(Some(1)));
            let checked = flags.check().and_then(|()| check(&flags));
            checked.map_err(|error| failed(line_named(&keys, &error.to_string()), error.to_string()))?;
            ensure!(
                phases.iter().all(|other| other.name != phase_name),
                "{name}, line {line_of_phase}: there is another phase of the name {phase_name}"
            );
            phases.push(Phase { name: phase_name, flags });
        }
        whole.users = phases.iter().map(|phase| phase.flags.users()).max();
        Ok(Scenario { whole, phases })
    }
}

/// What other runs can do.
fn check(flags: &Flags) -> anyhow::Result<()> {
    ensure!(flags.workload != Workload::Idle, "--workload idle measures memory, and has a run of its own");
    ensure!(!matches!(flags.rate, Some(Rate::Percent(_))), "--rate is a number in a scenario, such as 20k");
    Ok(())
}

fn at(line: Option<usize>) -> String {
    line.map_or(String::new(), |line| format!(", line {line}"))
}

fn key(name: &str, line: usize, value: &DeValue<'_>) -> anyhow::Result<Key> {
    let command = Flags::command();
    let mut flags = command.get_arguments().filter(|flag| !flag.is_hide_set() && flag.get_id() != "scenario");
    let flag = flags.find(|flag| flag.get_long() == Some(name));
    let flag = flag.with_context(|| format!("there is no flag --{name}, see --help"))?;
    let values = match (flag.get_action().takes_values(), value) {
        (false, DeValue::Boolean(is_given)) => is_given.then(Vec::new),
        (false, _) => bail!("{name} is true or false"),
        (true, DeValue::Array(several)) => {
            Some(several.iter().map(|value| text(name, value.get_ref())).collect::<anyhow::Result<_>>()?)
        }
        (true, value) => Some(vec![text(name, value)?]),
    };
    Ok(Key { id: flag.get_id().to_string(), line, values })
}

/// A value as it stands on the command line.
fn text(name: &str, value: &DeValue<'_>) -> anyhow::Result<String> {
    Ok(match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        _ => bail!("{name} is a number or a text, as on the command line"),
    })
}

fn enter(told: &mut Told, key: &Key) {
    match &key.values {
        Some(values) => drop(told.insert(key.id.clone(), values.clone())),
        None => drop(told.remove(&key.id)),
    }
}

/// The flags; or why not, and the line of the key that it is about.
fn parsed(told: &Told, keys: &[Key]) -> Result<Flags, (Option<usize>, String)> {
    Flags::of(told).map_err(|error| {
        let named = error.get(ContextKind::InvalidArg).map(ToString::to_string).unwrap_or_default();
        let text = error.to_string();
        let words = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        (line_named(keys, &named), words.split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

/// The line of the first key whose flag the words name.
fn line_named(keys: &[Key], words: &str) -> Option<usize> {
    let is_named = |key: &&Key| {
        let flag = format!("--{}", long_name(&key.id));
        words.split(|c: char| !(c == '-' || c.is_alphanumeric())).any(|word| word == flag)
    };
    keys.iter().find(is_named).map(|key| key.line)
}
