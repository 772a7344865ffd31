//! The dialects that this build knows.

use std::sync::{Arc, LazyLock};

use super::Dialect;
use super::file::{self, FileError};

/// In the order of `profiles.toml`; canon comes first.
static PROFILES: LazyLock<Vec<Arc<Dialect>>> = LazyLock::new(|| {
    let read = file::read_all(include_str!("profiles.toml"));
    // A test reads the file, so that a build of which this is not true does not come to be.
    read.unwrap_or_default().into_iter().map(Arc::new).collect()
});

/// All of them.
pub fn list() -> impl Iterator<Item = &'static Dialect> + Clone {
    PROFILES.iter().map(|dialect| &**dialect)
}

/// The one of this name.
pub fn find(name: &str) -> Option<&'static Arc<Dialect>> {
    PROFILES.iter().find(|dialect| dialect.name() == name)
}

impl Dialect {
    /// Reads one dialect; `name` is its name unless the text has one.
    ///
    /// # Errors
    /// The text is no TOML, or has a key or a value that no dialect has.
    pub fn from_toml(text: &str, name: &str) -> Result<Dialect, FileError> {
        file::read_one(text, name, list())
    }
}
