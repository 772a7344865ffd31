//! Numbers that are read when they are asked for, instead of being counted.

use super::cell::{Kind, escaped};

/// A number that is read when it is asked for, instead of being counted.
pub struct Watched {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// Values, each behind its labels, such as `reactor="0"`.
    pub read: Box<dyn Fn() -> Vec<(String, f64)> + Send + Sync>,
}

/// One label.
pub fn label(name: &str, value: &str) -> String {
    format!("{name}=\"{}\"", escaped(value))
}
