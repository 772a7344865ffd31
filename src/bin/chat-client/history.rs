//! The commands of earlier sessions.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Entries that are kept.
const KEPT: usize = 500;
/// The longest entry, in bytes: longer ones are texts rather than commands to come back to.
const LONGEST: usize = 4096;

/// Commands, the newest last. In a file, each is a line. Without the file everything works, so its
/// errors are ignored.
#[derive(Debug, Default)]
pub struct History {
    entries: VecDeque<String>,
    path: Option<PathBuf>,
}

impl History {
    /// With what `path` holds, and appending there.
    pub fn open(path: Option<PathBuf>) -> History {
        let mut history = History { entries: VecDeque::new(), path };
        let Some(path) = history.path.clone() else { return history };
        let Ok(bytes) = fs::read(&path) else { return history };
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| !line.is_empty() && *line != "#V2");
        lines.clone().for_each(|line| history.keep(line));
        if lines.count() > 2 * KEPT {
            let _ = history.shorten(&path);
        }
        history
    }

    pub fn add(&mut self, line: &str) {
        if line.trim().is_empty() || line.len() > LONGEST || self.entries.back().is_some_and(|last| last == line) {
            return;
        }
        self.keep(line);
        if let Some(path) = &self.path
            && let Ok(mut file) = OpenOptions::new().append(true).create(true).mode(0o600).open(path)
        {
            // In one write, so that sessions side by side do not mix their lines.
            let _ = file.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// The entry `steps` steps back; 1 is the newest.
    pub fn back(&self, steps: usize) -> Option<&str> {
        let at = self.entries.len().checked_sub(steps)?;
        self.entries.get(at).map(String::as_str)
    }

    fn keep(&mut self, line: &str) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(line.into());
    }

    fn shorten(&self, path: &Path) -> std::io::Result<()> {
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        for entry in &self.entries {
            writeln!(file, "{entry}")?;
        }
        fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_over_sessions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history");
        fs::write(&path, b"#V2\nfriends\nchat:2:\xff\n").unwrap();
        let mut history = History::open(Some(path.clone()));
        assert_eq!(
            (history.back(1), history.back(2), history.back(3)),
            (Some("chat:2:\u{fffd}"), Some("friends"), None)
        );
        for line in ["groups", "groups", "  ", &"x".repeat(LONGEST + 1)] {
            history.add(line);
        }
        (0..2 * KEPT).for_each(|n| history.add(&format!("chat:2:{n}")));
        for _ in 0..2 {
            let history = History::open(Some(path.clone()));
            assert_eq!((history.back(1), history.back(KEPT + 1)), (Some("chat:2:999"), None));
        }
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), KEPT);
    }
}
