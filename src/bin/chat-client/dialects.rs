//! The value of `--dialect`.

use std::sync::Arc;

use chat_server::config;
use chat_server::wire::dialect::{Dialect, DialectChoice, find, list};

pub enum Choice {
    /// `None`: that of this project's server.
    Dialect(Option<Arc<Dialect>>),
    /// The names are to be printed.
    List(String),
}

/// A dialect by its name, or else of a file, as the server takes it; `auto` is what there is without the flag.
pub fn choose(text: &str) -> Result<Choice, String> {
    if text == "list" {
        return Ok(Choice::List(names()));
    }
    Ok(Choice::Dialect(match config::dialect(text)? {
        DialectChoice::Auto => None,
        DialectChoice::Canon => find("canon").cloned(),
        DialectChoice::Other(dialect) => Some(dialect),
    }))
}

/// All dialects with what distinguishes them, one a line.
fn names() -> String {
    let width = list().map(|dialect| dialect.name().len()).max().unwrap_or(0);
    list().map(|dialect| format!("{:width$}  {}\n", dialect.name(), dialect.about())).collect()
}
