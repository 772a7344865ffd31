//! Reads dialects as they are written down, in TOML: those of this build, and that of a `--dialect` file.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Ack, Dialect, Fact, Length, Place, Verb};

/// What is wrong with a file; where there is a line to blame, the text begins with its number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FileError(String);

/// One dialect as it is written down. What it leaves out is as in the one that it is `like`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    name: Option<String>,
    about: Option<String>,
    like: Option<String>,
    #[serde(default)]
    numbers: BTreeMap<Verb, i64>,
    #[serde(default)]
    acks: BTreeMap<Verb, AckProfile>,
    #[serde(default)]
    keys: BTreeMap<Place, BTreeMap<String, String>>,
    objects: Option<Vec<List>>,
    data: Option<bool>,
    length: Option<Length>,
    reader: Option<usize>,
    spaced: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AckProfile {
    number: i64,
    #[serde(default)]
    says: BTreeMap<String, Fact>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum List {
    Friend,
    Group,
    Member,
}

/// Smaller readers could not hold a login reply at all.
const READER: std::ops::RangeInclusive<usize> = 128..=1 << 24;

/// Reads one dialect; `name` is its name unless the text has one. `known`: those that it may be like.
pub(super) fn read_one<'k>(
    text: &str,
    name: &str,
    known: impl Iterator<Item = &'k Dialect> + Clone,
) -> Result<Dialect, FileError> {
    let profile: Profile = read(text)?;
    let like = match &profile.like {
        None => Dialect::canon(),
        Some(like) => known.clone().find(|dialect| dialect.name() == like).cloned().ok_or_else(|| {
            let names: Vec<&str> = known.map(Dialect::name).collect();
            FileError(format!("{}there is no dialect {like}; there are {}", line_of(text, "like"), names.join(", ")))
        })?,
    };
    profile.apply(like, name, text)
}

/// Reads those of this build: each is a table with its name, and stands behind the one that it is like.
pub(super) fn read_all(text: &str) -> Result<Vec<Dialect>, FileError> {
    // In the order of the text.
    let names = text.lines().filter_map(|line| line.strip_prefix('[')?.strip_suffix(']'));
    let mut profiles: BTreeMap<String, Profile> = read(text)?;
    let mut all: Vec<Dialect> = Vec::new();
    for name in names {
        let Some(profile) = profiles.remove(name) else { continue };
        let like = match &profile.like {
            None => Dialect::canon(),
            Some(like) => all
                .iter()
                .find(|dialect| dialect.name() == like)
                .ok_or_else(|| FileError(format!("{name} is like {like}, which does not stand before it")))?
                .clone(),
        };
        all.push(profile.apply(like, name, text)?);
    }
    Ok(all)
}

fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or_else(String::new, |span| {
            let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
            format!("line {line}: ")
        });
        FileError(format!("{line}{}", error.message().trim().replace('\n', ", ")))
    })
}

/// The line on which `word` stands as a key, to begin a complaint with.
fn line_of(text: &str, word: &str) -> String {
    let is_key =
        |line: &str| line.trim_start().strip_prefix(word).is_some_and(|rest| rest.trim_start().starts_with(['=', '.']));
    text.lines().position(is_key).map_or_else(String::new, |line| format!("line {}: ", line + 1))
}

impl Profile {
    fn apply(self, mut dialect: Dialect, name: &str, text: &str) -> Result<Dialect, FileError> {
        dialect.name = self.name.as_deref().unwrap_or(name).into();
        dialect.about = self.about.map_or(dialect.about, Into::into);
        for (verb, number) in self.numbers {
            dialect.numbers[verb as usize] = Some(number);
        }
        for (verb, AckProfile { number, says }) in self.acks {
            let says = says.into_iter().map(|(key, fact)| (key.into(), fact)).collect();
            dialect.acks[verb as usize] = Some(Ack { number, says });
        }
        for (place, keys) in self.keys {
            let renamed = &mut dialect.keys[place as usize];
            for (canon, theirs) in keys {
                renamed.retain(|(known, _)| **known != *canon);
                renamed.push((canon.into(), theirs.into()));
            }
        }
        if let Some(objects) = self.objects {
            dialect.objects.friends = objects.contains(&List::Friend);
            dialect.objects.groups = objects.contains(&List::Group);
            dialect.objects.members = objects.contains(&List::Member);
        }
        dialect.data = self.data.unwrap_or(dialect.data);
        dialect.length = self.length.unwrap_or(dialect.length);
        dialect.reader = self.reader.unwrap_or(dialect.reader);
        dialect.spaced = self.spaced.unwrap_or(dialect.spaced);
        if !READER.contains(&dialect.reader) {
            let line = line_of(text, "reader");
            return Err(FileError(format!("{line}reader must be from {} to {}", READER.start(), READER.end())));
        }
        dialect.check_numbers(text)?;
        dialect.check_keys(text)?;
        Ok(dialect)
    }
}

impl Dialect {
    /// Each request has a number of its own: by that alone it is known.
    fn check_numbers(&self, text: &str) -> Result<(), FileError> {
        for verb in Verb::ALL {
            let same = Verb::ALL.into_iter().find(|other| *other != verb && self.number(*other) == self.number(verb));
            if let (Some(number), Some(same)) = (self.number(verb), same) {
                let line = line_of(text, "numbers");
                return Err(FileError(format!("{line}{number} is the number of two requests: {verb:?} and {same:?}")));
            }
        }
        Ok(())
    }

    /// Two keys of one place never become one.
    fn check_keys(&self, text: &str) -> Result<(), FileError> {
        for keys in &self.keys {
            for (at, (canon, theirs)) in keys.iter().enumerate() {
                if let Some((other, _)) = keys[at + 1..].iter().find(|(_, other)| other == theirs) {
                    let line = line_of(text, "keys");
                    return Err(FileError(format!("{line}{canon} and {other} are both called {theirs} at one place")));
                }
            }
        }
        Ok(())
    }
}
