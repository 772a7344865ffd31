//! All cells of a process, and their text.

use std::fmt::Write;
use std::sync::Arc;

use super::cell::{Cells, Kind, Series};
use super::process;
use super::watched::{Watched, label};

/// Structs of one type: each with its labels, which several may share. Their families stand
/// together in the text.
type Group = Vec<(String, Vec<Arc<dyn Cells>>)>;

/// Everything that is exported.
#[derive(Default)]
pub struct Registry {
    groups: Vec<Group>,
    watched: Vec<Watched>,
}

impl Registry {
    /// Tells of structs of one type, whose numbers are added up: Prometheus need not know how many
    /// threads share some work.
    pub fn add<C: Cells + 'static>(&mut self, cells: Vec<Arc<C>>) {
        self.groups.push(vec![(String::new(), shared(cells))]);
    }

    /// The same, apart for each value of a label.
    pub fn add_by<C: Cells + 'static>(&mut self, name: &str, members: impl IntoIterator<Item = (String, Vec<Arc<C>>)>) {
        let members = members.into_iter().map(|(value, cells)| (label(name, &value), shared(cells)));
        self.groups.push(members.collect());
    }

    /// Exports a number that is not counted.
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

fn shared<C: Cells + 'static>(cells: Vec<Arc<C>>) -> Vec<Arc<dyn Cells>> {
    cells.into_iter().map(|cells| cells as Arc<dyn Cells>).collect()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{By, Counter, Gauge, Histogram, cells, labels};

    labels! {
        enum Colour as "colour" {
            Red = "red",
            DarkBlue = "dark Blue",
        }
    }

    cells! {
        struct Counts {
            /// Seen,
            /// so far.
            seen: By<Colour, Counter, { Colour::COUNT }> = "seen_total",
            /// Here now.
            here: Gauge = "here",
            /// Time taken.
            times: Histogram = "taken_seconds",
        }
    }

    #[test]
    fn the_numbers_of_threads_that_share_a_label_are_added_up() {
        let counts: Vec<Arc<Counts>> = (0..3).map(|_| Arc::default()).collect();
        for (n, counts) in counts.iter().enumerate() {
            counts.seen.of(Colour::DarkBlue).add(n as u64 + 1);
            counts.here.set(10);
            counts.here.sub(n);
            counts.times.observe(Duration::from_millis(n as u64));
        }
        let mut registry = Registry::default();
        let [a, b, c] = counts.try_into().unwrap();
        registry.add_by("part", [("x\"y".to_owned(), vec![a, b]), ("z".to_owned(), vec![c])]);
        let text = registry.text();
        for line in [
            "# HELP seen_total Seen, so far.\n# TYPE seen_total counter\nseen_total{part=\"x\\\"y\",colour=\"red\"} 0",
            "seen_total{part=\"x\\\"y\",colour=\"dark_blue\"} 3",
            "seen_total{part=\"z\",colour=\"dark_blue\"} 3",
            "# TYPE here gauge\nhere{part=\"x\\\"y\"} 19\nhere{part=\"z\"} 8",
            // A bound belongs to its own bucket.
            "taken_seconds_bucket{part=\"x\\\"y\",le=\"0.0005\"} 1",
            "taken_seconds_bucket{part=\"x\\\"y\",le=\"0.001\"} 2",
            "taken_seconds_bucket{part=\"z\",le=\"0.001\"} 0",
            "taken_seconds_bucket{part=\"z\",le=\"+Inf\"} 1",
            "taken_seconds_sum{part=\"z\"} 0.002",
            "taken_seconds_count{part=\"x\\\"y\"} 2",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn what_one_thread_counts_another_reads_whole_and_never_less_than_before() {
        let counts = Arc::new(Counts::default());
        let (writer, all) = (Arc::clone(&counts), 1_000_000);
        let thread = std::thread::spawn(move || (0..all).for_each(|_| writer.seen.of(Colour::Red).add(1)));
        let mut last = 0;
        while last < all {
            let now = counts.seen.of(Colour::Red).get();
            assert!((last..=all).contains(&now));
            last = now;
        }
        thread.join().unwrap();
    }

    #[test]
    fn threads_do_not_share_cache_lines() {
        assert_eq!((align_of::<Counts>(), size_of::<Counts>() % 128), (128, 0));
    }
}
