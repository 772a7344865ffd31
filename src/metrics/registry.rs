//! All cells of a process, and their text.

use std::fmt::Write;
use std::sync::Arc;

use super::cell::{Cells, Kind, Series, escaped};
use super::process;

/// Structs of one type: each with its labels, which several may share. Their families stand
/// together in the text.
type Group = Vec<(String, Vec<Arc<dyn Cells>>)>;

/// A number that is looked at when somebody asks for it, instead of being counted.
pub struct Watched {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// Values, each behind its labels, such as `reactor="0"`.
    pub read: Box<dyn Fn() -> Vec<(String, f64)> + Send + Sync>,
}

/// Everything that is told.
#[derive(Default)]
pub struct Registry {
    groups: Vec<Group>,
    watched: Vec<Watched>,
}

/// One label.
pub fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}

impl Registry {
    /// Tells of structs of one type, each with its value of `name`. The numbers of those that share
    /// a value are added up, since Prometheus need not know how many threads share some work.
    pub fn add<C: Cells + 'static>(&mut self, name: &str, members: impl IntoIterator<Item = (String, Vec<Arc<C>>)>) {
        let of = |value: String, cells: Vec<Arc<C>>| {
            let labels = if name.is_empty() { String::new() } else { label(name, &value) };
            (labels, cells.into_iter().map(|cells| cells as Arc<dyn Cells>).collect())
        };
        self.groups.push(members.into_iter().map(|(value, cells)| of(value, cells)).collect());
    }

    pub fn watch(&mut self, watched: Watched) {
        self.watched.push(watched);
    }

    /// Prometheus' text format, version 0.0.4.
    pub fn text(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        for group in &self.groups {
            write_group(group, &mut out);
        }
        for watched in self.watched.iter().chain(&process::watched()) {
            let values = (watched.read)();
            if !values.is_empty() {
                head(&mut out, watched.name, watched.help, watched.kind);
            }
            for (labels, value) in values {
                Series { out: &mut out, name: watched.name, labels }.line("", "", value);
            }
        }
        out
    }
}

fn head(out: &mut String, name: &str, help: &str, kind: Kind) {
    // A String takes whatever is written.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.text());
}

fn write_group(group: &Group, out: &mut String) {
    let Some(first) = group.iter().find_map(|(_, cells)| cells.first()) else { return };
    for (index, family) in first.families().iter().enumerate() {
        head(out, family.name, family.help, family.cell.kind());
        for (labels, cells) in group {
            let mut sum: Vec<u64> = Vec::new();
            for cells in cells {
                let mut numbers = Vec::new();
                cells.families()[index].cell.read(&mut numbers);
                sum.resize(numbers.len(), 0);
                sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum = sum.wrapping_add(number));
            }
            let mut series = Series { out, name: family.name, labels: labels.clone() };
            family.cell.write(&mut &sum[..], &mut series);
        }
    }
}
