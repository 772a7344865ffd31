//! The value of `--dialect`.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use chat_server::wire::dialect::{Dialect, find, list};

pub enum Choice {
    Dialect(Arc<Dialect>),
    /// The names are to be printed.
    List(String),
}

/// A dialect by its name, or else of a file.
pub fn choose(text: &str) -> Result<Choice, String> {
    if text == "list" {
        return Ok(Choice::List(names()));
    }
    if let Some(dialect) = find(text) {
        return Ok(Choice::Dialect(Arc::clone(dialect)));
    }
    let path = Path::new(text);
    if !text.contains(['/', '.']) && !path.exists() {
        let known: Vec<&str> = list().map(Dialect::name).collect();
        return Err(format!("{text} is neither a file nor one of {}", known.join(", ")));
    }
    let name = path.file_stem().map_or_else(|| text.into(), OsStr::to_string_lossy);
    let read = std::fs::read_to_string(path).map_err(|error| error.to_string());
    let dialect = read.and_then(|toml| Dialect::from_toml(&toml, &name).map_err(|error| error.to_string()));
    dialect.map(|dialect| Choice::Dialect(Arc::new(dialect))).map_err(|why| format!("{text}: {why}"))
}

/// All dialects with what distinguishes them, one a line.
fn names() -> String {
    let width = list().map(|dialect| dialect.name().len()).max().unwrap_or(0);
    list().map(|dialect| format!("{:width$}  {}\n", dialect.name(), dialect.about())).collect()
}
