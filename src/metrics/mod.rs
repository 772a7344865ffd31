//! What is counted, and how it is exported: cells, and Prometheus' text.
//!
//! A module declares what it counts beside the code that counts, with `cells!`: a struct of
//! [`Counter`]s, [`Gauge`]s and [`Histogram`]s, each with the name and the help that it has in
//! `/metrics`. Every thread that counts has a struct of its own, on cache lines of its own, and is
//! the only one that writes to it; so counting is a load, an addition and a store, without a lock, a
//! locked instruction, or a cache line that another core wants. A [`Registry`] knows all structs and
//! reads them when it is asked for them, in the asking thread.
//!
//! To count one thing more is one line in the module's `cells!`, the count itself, and a row in the
//! table of `docs/OPERATING.md` (and of its translation), which the tests compare with what a server exports.
//!
//! The crates for this (`prometheus`, `prometheus-client`) are not used, because their counters are
//! shared between threads and add with a locked instruction, their histograms take a lock, and what
//! remains of them, the text, is [`Registry::text`].

mod cell;
mod process;
mod registry;
mod watched;

pub use cell::{By, Cell, Cells, Counter, Family, Gauge, Histogram, Kind, Label, Labelled, Series, worded};
pub(crate) use cell::{cells, labels};
pub use registry::Registry;
pub use watched::Watched;
