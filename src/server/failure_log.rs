//! Any thread: what it reports in the log when something that it does again and again fails.

use std::fmt::Display;

/// Logs each failure once, and once more when it is over.
#[derive(Default)]
pub(super) struct FailureLog(Vec<&'static str>);

impl FailureLog {
    /// Notes whether something works; the two texts are for the log.
    pub fn note(&mut self, error: Option<&impl Display>, works: &'static str, fails: &'static str) {
        let at = self.0.iter().position(|told| *told == fails);
        match (error, at) {
            (Some(error), None) => {
                log::warn!("{fails}: {error}");
                self.0.push(fails);
            }
            (None, Some(at)) => {
                log::info!("{works}");
                self.0.swap_remove(at);
            }
            _ => {}
        }
    }
}
