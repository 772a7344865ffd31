//! A run: all rounds of all that was measured. As a file, and what of it makes the exit status 2.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::about::About;
use crate::figures::{Figures, together};
use crate::flags::Flags;
use crate::tally::Counts;

/// The form of the file. What is written in another one is not read.
const FORMAT: u32 = 2;

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    format: u32,
    pub about: About,
    /// Each target's rounds, the server's first.
    pub rounds: Vec<Vec<Figures>>,
    /// The same, taken together.
    #[serde(skip)]
    pub shown: Vec<Figures>,
    /// What stays at a server that was there before.
    pub left: Option<String>,
    /// What was found out about each of its servers.
    pub speaks: Vec<String>,
    /// Everything that makes the exit status 2, in words.
    pub problems: Vec<String>,
}

impl Run {
    /// # Errors
    /// There are no rounds.
    pub fn new(flags: &Flags, about: About, rounds: Vec<Vec<Figures>>) -> anyhow::Result<Run> {
        let (left, speaks, problems) = (None, Vec::new(), Vec::new());
        let mut run = Run { format: FORMAT, about, rounds, shown: Vec::new(), left, speaks, problems };
        run.take_together()?;
        for figures in &run.shown {
            run.problems.extend(figures.cut_short.iter().map(|why| format!("{}: {why}", figures.name)));
            let counts = &figures.counts;
            if counts.wrong(&flags.expect_errno) > 0 {
                run.problems.push(format!("{}: {}", figures.name, in_words(counts)));
            }
        }
        run.judge(flags);
        Ok(run)
    }

    fn take_together(&mut self) -> anyhow::Result<()> {
        let is_whole = !self.rounds.is_empty() && self.rounds.iter().all(|rounds| !rounds.is_empty());
        ensure!(is_whole, "there are no rounds");
        self.shown = self.rounds.iter().map(|rounds| together(rounds)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Adds what the conditions of these flags say of it: of each phase that has what they are about, else of the server.
    pub fn judge(&mut self, flags: &Flags) {
        for condition in &flags.fail_if {
            let is_timed = |figures: &&Figures| condition.measure().is_none_or(|it| figures.measures.count(it) > 0);
            let phases: Vec<&Figures> = self.shown.iter().take(self.about.phases.len()).filter(is_timed).collect();
            if phases.is_empty() {
                self.problems.extend(condition.met_by(&self.shown[0]));
            }
            for phase in phases {
                self.problems.extend(condition.met_by(phase).map(|why| format!("{}: {why}", phase.name)));
            }
        }
    }

    /// Writes the file that `--out` names, if it does.
    pub fn write(&self, flags: &Flags) -> anyhow::Result<()> {
        let Some(file) = &flags.out else { return Ok(()) };
        let text = serde_json::to_string(self)?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
    }

    /// # Errors
    /// It cannot be read, or is not a file that `--out` has written.
    pub fn read(file: &Path) -> anyhow::Result<Run> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        Run::parse(&bytes).with_context(|| format!("{} is not a file that --out has written", file.display()))
    }

    pub fn parse(bytes: &[u8]) -> anyhow::Result<Run> {
        #[derive(Deserialize)]
        struct Format {
            format: Option<u32>,
        }
        let Format { format } = serde_json::from_slice(bytes)?;
        ensure!(format == Some(FORMAT), "another version of the bench has written it");
        let mut run: Run = serde_json::from_slice(bytes)?;
        run.take_together()?;
        Ok(run)
    }
}

/// What was not as it should be.
pub fn in_words(counts: &Counts) -> String {
    let mut words = Vec::new();
    let mut tell = |count: u64, what: &str| {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    };
    tell(counts.lost, "messages lost");
    tell(counts.repeated, "repeated");
    tell(counts.out_of_order, "out of order");
    tell(counts.changed, "changed");
    tell(counts.refusals(), "refused");
    tell(counts.acks_lost, "acks or replies lost");
    tell(counts.acks_repeated, "acks repeated");
    tell(counts.acks_changed, "acks changed");
    tell(counts.closed, "connections closed by the server");
    words.join(", ")
}
