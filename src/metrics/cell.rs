//! Numbers that one thread writes and any may read.

use std::array;
use std::fmt::{Debug, Display, Write};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What counts up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to it. Only ever called by the one thread that owns it: a load and a store, since
    /// no other thread can come between.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What goes up and down, and never below zero. Only its own thread writes to it, too.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, n: usize) {
        self.0.store(n as u64, Relaxed);
    }

    pub fn add(&self, n: usize) {
        self.0.store(self.get().saturating_add(n as u64), Relaxed);
    }

    pub fn sub(&self, n: usize) {
        self.0.store(self.get().saturating_sub(n as u64), Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// The upper bounds of every histogram's buckets, in nanoseconds, and as the text has them, in seconds.
/// From a relayed message to a database that has to be given up.
const BOUNDS: [(u64, &str); 16] = [
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (10_000_000_000, "10"),
];

/// How long something took, in fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// By bucket, not summed up; the last is for what is above all bounds.
    counts: [Counter; BOUNDS.len() + 1],
    nanoseconds: Counter,
}

impl Histogram {
    /// Notes one time. Only ever called by the one thread that owns it.
    pub fn observe(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[BOUNDS.partition_point(|(bound, _)| *bound < nanoseconds)].add(1);
        self.nanoseconds.add(nanoseconds);
    }
}

/// The values of a label: an enum, made by `labels!`.
pub trait Label: Copy + 'static {
    const ALL: &'static [Self];

    /// Where it stands in `ALL`.
    fn index(self) -> usize;

    /// As in `reason="idle"`.
    fn label(self) -> String;
}

/// A cell of the same kind for each value of a label.
#[derive(Debug)]
pub struct By<L, C, const N: usize> {
    cells: [C; N],
    label: PhantomData<fn(L)>,
}

impl<L: Label, C: Default, const N: usize> Default for By<L, C, N> {
    fn default() -> Self {
        const { assert!(N == L::ALL.len()) };
        By { cells: array::from_fn(|_| C::default()), label: PhantomData }
    }
}

impl<L: Label, C, const N: usize> By<L, C, N> {
    pub fn of(&self, label: L) -> &C {
        &self.cells[label.index()]
    }
}

/// A cell of the same kind for each of some labels that are known only when it is made.
#[derive(Debug)]
pub struct Labelled<C> {
    cells: Box<[(String, C)]>,
}

impl<C> Default for Labelled<C> {
    fn default() -> Self {
        Labelled { cells: Box::default() }
    }
}

impl<C: Default> Labelled<C> {
    /// A cell for each of the labels, such as `reason="idle"`, in their order.
    pub fn new(labels: impl IntoIterator<Item = String>) -> Self {
        Labelled { cells: labels.into_iter().map(|label| (label, C::default())).collect() }
    }

    /// The cell of the label at `index`, if there are as many.
    pub fn at(&self, index: usize) -> Option<&C> {
        self.cells.get(index).map(|(_, cell)| cell)
    }
}

/// A label with the text of a value: in lower case and with `_` for every blank.
pub fn worded(name: &str, text: &str) -> String {
    format!("{name}=\"{}\"", text.replace(' ', "_").to_lowercase())
}

/// What a family of metrics is, for Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn text(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One or several numbers that are exported under one name.
pub trait Cell: Send + Sync {
    fn kind(&self) -> Kind;

    /// Appends its numbers, always as many. Those of several threads are added up one by one.
    fn read(&self, numbers: &mut Vec<u64>);

    /// Writes such numbers, its own or a sum, and takes them off the front.
    fn write(&self, numbers: &mut &[u64], series: &mut Series<'_>);
}

/// Takes the first number.
fn next(numbers: &mut &[u64]) -> u64 {
    numbers.split_off_first().copied().unwrap_or(0)
}

impl Cell for Counter {
    fn kind(&self) -> Kind {
        Kind::Counter
    }

    fn read(&self, numbers: &mut Vec<u64>) {
        numbers.push(self.get());
    }

    fn write(&self, numbers: &mut &[u64], series: &mut Series<'_>) {
        series.line("", "", next(numbers));
    }
}

impl Cell for Gauge {
    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn read(&self, numbers: &mut Vec<u64>) {
        numbers.push(self.get());
    }

    fn write(&self, numbers: &mut &[u64], series: &mut Series<'_>) {
        series.line("", "", next(numbers));
    }
}

impl Cell for Histogram {
    fn kind(&self) -> Kind {
        Kind::Histogram
    }

    fn read(&self, numbers: &mut Vec<u64>) {
        numbers.extend(self.counts.iter().map(Counter::get));
        numbers.push(self.nanoseconds.get());
    }

    fn write(&self, numbers: &mut &[u64], series: &mut Series<'_>) {
        let mut count = 0;
        for bound in BOUNDS.map(|(_, text)| text).into_iter().chain(["+Inf"]) {
            count += next(numbers);
            series.line("_bucket", &format!("le=\"{bound}\""), count);
        }
        series.line("_sum", "", next(numbers) as f64 / 1e9);
        series.line("_count", "", count);
    }
}

impl<L: Label, C: Cell, const N: usize> Cell for By<L, C, N> {
    fn kind(&self) -> Kind {
        self.cells[0].kind()
    }

    fn read(&self, numbers: &mut Vec<u64>) {
        self.cells.iter().for_each(|cell| cell.read(numbers));
    }

    fn write(&self, numbers: &mut &[u64], series: &mut Series<'_>) {
        for (label, cell) in L::ALL.iter().zip(&self.cells) {
            let before = series.push_label(&label.label());
            cell.write(numbers, series);
            series.labels.truncate(before);
        }
    }
}

impl<C: Cell + Default> Cell for Labelled<C> {
    fn kind(&self) -> Kind {
        C::default().kind()
    }

    fn read(&self, numbers: &mut Vec<u64>) {
        self.cells.iter().for_each(|(_, cell)| cell.read(numbers));
    }

    fn write(&self, numbers: &mut &[u64], series: &mut Series<'_>) {
        for (label, cell) in &self.cells {
            let before = series.push_label(label);
            cell.write(numbers, series);
            series.labels.truncate(before);
        }
    }
}

/// A family's lines in Prometheus' text format, as they are written.
pub struct Series<'a> {
    pub(super) out: &'a mut String,
    pub(super) name: &'a str,
    /// `a="b",c="d"`
    pub(super) labels: String,
}

impl Series<'_> {
    /// Adds a label; returns how long the labels were without it.
    fn push_label(&mut self, label: &str) -> usize {
        let before = self.labels.len();
        if before > 0 && !label.is_empty() {
            self.labels.push(',');
        }
        self.labels.push_str(label);
        before
    }

    /// One line.
    pub(super) fn line(&mut self, suffix: &str, label: &str, value: impl Display) {
        let before = self.push_label(label);
        // A String takes whatever is written.
        let _ = match self.labels.as_str() {
            "" => writeln!(self.out, "{}{suffix} {value}", self.name),
            labels => writeln!(self.out, "{}{suffix}{{{labels}}} {value}", self.name),
        };
        self.labels.truncate(before);
    }
}

/// A cell with what it is called.
pub struct Family<'a> {
    pub name: &'static str,
    pub help: &'static str,
    pub cell: &'a dyn Cell,
}

/// What one thread counts, made by `cells!`.
pub trait Cells: Send + Sync {
    fn families(&self) -> Vec<Family<'_>>;
}

/// Declares what a thread counts: a struct, with the name of each cell; its doc is its help.
///
/// Cache lines come in pairs where the processor fetches the neighbour as well, hence 128 bytes. The
/// cells stand in memory as they are declared: what is counted for every message best shares a line
/// of 64 bytes, since a thread that has just woken up has to fetch it.
macro_rules! cells {
    (
        $(#[$meta:meta])*
        $vis:vis struct $cells:ident { $($(#[doc = $help:literal])+ $field:ident: $cell:ty = $name:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[repr(C, align(128))]
        $vis struct $cells { $(#[doc = concat!("`", $name, "`:", $($help),+)] pub $field: $cell,)* }

        impl $crate::metrics::Cells for $cells {
            fn families(&self) -> Vec<$crate::metrics::Family<'_>> {
                vec![$($crate::metrics::Family {
                    name: $name,
                    help: concat!($($help),+).trim_ascii(),
                    cell: &self.$field,
                },)*]
            }
        }
    };
}
pub(crate) use cells;

/// Declares an enum that is also a label, with a text for each value: as it is for people, and in a
/// label in lower case and with `_` for every blank.
macro_rules! labels {
    (
        $(#[$meta:meta])*
        $vis:vis enum $label:ident as $name:literal { $($(#[$doc:meta])* $value:ident = $text:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $label { $($(#[$doc])* $value,)* }

        impl $label {
            /// How many there are.
            $vis const COUNT: usize = [$($label::$value),*].len();

            $vis fn text(self) -> &'static str {
                match self { $($label::$value => $text,)* }
            }
        }

        impl $crate::metrics::Label for $label {
            const ALL: &'static [Self] = &[$($label::$value),*];

            fn index(self) -> usize {
                self as usize
            }

            fn label(self) -> String {
                $crate::metrics::worded($name, self.text())
            }
        }
    };
}
pub(crate) use labels;

/// Escapes what stands between the quotes of a label.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
