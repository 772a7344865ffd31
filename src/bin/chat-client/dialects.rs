//! The value of `--dialect`.

use std::sync::Arc;

use chat_server::config;
use chat_server::wire::dialect::{CANON, Dialect, DialectChoice, find};

pub enum Choice {
    /// `None`: that of this project's server.
    Dialect(Option<Arc<Dialect>>),
    /// The names are to be printed.
    List(String),
}

/// A dialect by its name, or else of a file, as the server takes it; `auto` is what there is without the flag.
pub fn choose(text: &str) -> Result<Choice, String> {
    if text == "list" {
        return Ok(Choice::List(config::dialects(&[])));
    }
    Ok(Choice::Dialect(match config::dialect(text)? {
        DialectChoice::Auto => None,
        DialectChoice::Canon => find(CANON).cloned(),
        DialectChoice::Other(dialect) => Some(dialect),
    }))
}
