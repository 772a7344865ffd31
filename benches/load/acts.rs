//! What the users of the workload mix do, and how often: `--mix chat=10,group=1,return=1`.

use std::fmt;
use std::str::FromStr;

use crate::measures::Measure;

/// The largest weight.
const MOST: u32 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// One of a pair writes to the other.
    Chat,
    /// One of a group talks to all others.
    Group,
    /// A user leaves and is written to, or comes back for that, in turn.
    Return,
    /// A user logs out and in again.
    Login,
    /// A message to an account that never comes, with an ack.
    Store,
    /// A new account.
    Register,
}

impl Act {
    pub const ALL: [Act; 6] = [Act::Chat, Act::Group, Act::Return, Act::Login, Act::Store, Act::Register];

    pub fn name(self) -> &'static str {
        match self {
            Act::Chat => "chat",
            Act::Group => "group",
            Act::Return => "return",
            Act::Login => "login",
            Act::Store => "store",
            Act::Register => "register",
        }
    }

    /// What is timed of it.
    fn measures(self) -> &'static [Measure] {
        match self {
            Act::Chat => &[Measure::Chat],
            Act::Group => &[Measure::Member, Measure::LastMember],
            Act::Return => &[Measure::Stored, Measure::Login, Measure::Return],
            Act::Login => &[Measure::Login],
            Act::Store => &[Measure::Stored],
            Act::Register => &[Measure::Register],
        }
    }
}

/// The weight of each act; 0: nobody does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix([u32; Act::ALL.len()]);

impl Default for Mix {
    fn default() -> Mix {
        Mix([10, 1, 1, 0, 0, 0])
    }
}

impl Mix {
    pub fn weight(self, act: Act) -> u32 {
        self.0[act as usize]
    }

    pub fn has(self, act: Act) -> bool {
        self.weight(act) > 0
    }

    pub fn acts(self) -> impl Iterator<Item = Act> {
        Act::ALL.into_iter().filter(move |&act| self.has(act))
    }

    /// What is timed, each once.
    pub fn measures(self) -> Vec<Measure> {
        let is_timed = |measure: &Measure| self.acts().any(|act| act.measures().contains(measure));
        Measure::ALL.into_iter().filter(is_timed).collect()
    }
}

impl FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Mix, String> {
        let mut weights = [0; Act::ALL.len()];
        for part in text.split(',') {
            let (name, weight) =
                part.split_once('=').ok_or_else(|| format!("'{part}' is no act and its weight, as in chat=10"))?;
            let act = Act::ALL.into_iter().find(|act| act.name() == name.trim()).ok_or_else(|| {
                format!("there is no act '{}': one of {}", name.trim(), Act::ALL.map(Act::name).join(", "))
            })?;
            if weights[act as usize] > 0 {
                return Err(format!("{} has two weights", act.name()));
            }
            let weight = weight.trim().parse().ok().filter(|weight| (1..=MOST).contains(weight));
            weights[act as usize] =
                weight.ok_or_else(|| format!("'{part}': a weight is a whole number, 1 to {MOST}"))?;
        }
        Ok(Mix(weights))
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.acts().map(|act| format!("{}={}", act.name(), self.weight(act))).collect();
        f.write_str(&parts.join(","))
    }
}
