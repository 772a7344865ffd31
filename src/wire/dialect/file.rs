//! Reads dialects as they are written down, in TOML: those of this build, and that of a `--dialect` file.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{Ack, Dialect, Fact, Kind, Length, Place, Verb};

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
    like: Option<Spanned<String>>,
    #[serde(default)]
    numbers: BTreeMap<Verb, Spanned<i64>>,
    #[serde(default)]
    acks: BTreeMap<Verb, AckProfile>,
    #[serde(default)]
    keys: BTreeMap<Place, BTreeMap<String, Spanned<String>>>,
    objects: Option<Vec<List>>,
    data: Option<bool>,
    length: Option<Length>,
    reader: Option<Spanned<usize>>,
    spaced: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AckProfile {
    number: i64,
    #[serde(default)]
    says: BTreeMap<String, Spanned<Fact>>,
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
        Some(like) => known.clone().find(|dialect| dialect.name() == like.get_ref()).cloned().ok_or_else(|| {
            let names: Vec<&str> = known.map(Dialect::name).collect();
            wrong(text, like, &format!("there is no dialect {}; there are {}", like.get_ref(), names.join(", ")))
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
                .find(|dialect| dialect.name() == like.get_ref())
                .ok_or_else(|| wrong(text, like, &format!("{} does not stand before {name}", like.get_ref())))?
                .clone(),
        };
        all.push(profile.apply(like, name, text)?);
    }
    Ok(all)
}

fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or_else(String::new, |span| line(text, span.start));
        FileError(format!("{line}{}", error.message().trim().replace('\n', ", ")))
    })
}

/// The number of the line on which this byte stands, to begin a complaint with.
fn line(text: &str, at: usize) -> String {
    let before = text.bytes().take(at);
    format!("line {}: ", before.filter(|byte| *byte == b'\n').count() + 1)
}

fn wrong<T>(text: &str, value: &Spanned<T>, problem: &str) -> FileError {
    FileError(format!("{}{problem}", line(text, value.span().start)))
}

impl Profile {
    fn apply(self, mut dialect: Dialect, name: &str, text: &str) -> Result<Dialect, FileError> {
        dialect.name = self.name.as_deref().unwrap_or(name).into();
        dialect.about = self.about.map_or(dialect.about, Into::into);
        for (verb, number) in &self.numbers {
            dialect.numbers[*verb as usize] = Some(*number.get_ref());
        }
        // By its number alone a request is known.
        for (verb, number) in &self.numbers {
            let is_same = |other: &Verb| other != verb && dialect.number(*other) == Some(*number.get_ref());
            if let Some(other) = Verb::ALL.into_iter().find(is_same) {
                let problem = format!("{} is the number of two requests: {verb:?} and {other:?}", number.get_ref());
                return Err(wrong(text, number, &problem));
            }
        }
        for (verb, AckProfile { number, says }) in self.acks {
            if let Some((key, fact)) = says.iter().find(|(_, fact)| !fact.get_ref().is_known_to(verb)) {
                let problem = format!("the reply to {verb:?} cannot say {:?} in {key}", fact.get_ref());
                return Err(wrong(text, fact, &problem));
            }
            let says = says.into_iter().map(|(key, fact)| (key.into(), fact.into_inner())).collect();
            dialect.acks[verb as usize] = Some(Ack { number, says });
        }
        for (place, keys) in &self.keys {
            for (canon, theirs) in keys {
                dialect.rename(*place, canon, theirs.get_ref());
            }
        }
        for (place, keys) in &self.keys {
            for (canon, theirs) in keys {
                if canon == "msgid" && *place != Place::All {
                    return Err(wrong(text, theirs, "msgid has one name in all objects: it is renamed at all"));
                }
                if let Some(other) = dialect.other_called(*place, canon, theirs.get_ref()) {
                    let problem = format!("{canon} and {other} are both called {} at one place", theirs.get_ref());
                    return Err(wrong(text, theirs, &problem));
                }
            }
        }
        if let Some(objects) = self.objects {
            dialect.objects.friends = objects.contains(&List::Friend);
            dialect.objects.groups = objects.contains(&List::Group);
            dialect.objects.members = objects.contains(&List::Member);
        }
        dialect.data = self.data.unwrap_or(dialect.data);
        dialect.length = self.length.unwrap_or(dialect.length);
        dialect.spaced = self.spaced.unwrap_or(dialect.spaced);
        if let Some(reader) = self.reader {
            if !READER.contains(reader.get_ref()) {
                let problem = format!("reader must be from {} to {}", READER.start(), READER.end());
                return Err(wrong(text, &reader, &problem));
            }
            dialect.reader = reader.into_inner();
        }
        Ok(dialect)
    }
}

impl Fact {
    /// Whether the reply to such a request can say it. That to a login is written with the account, of which it says
    /// all there is; that to a registration has the id.
    fn is_known_to(self, verb: Verb) -> bool {
        match (verb, self) {
            (Verb::Login, _) => false,
            (Verb::Register, fact) => fact == Fact::Name,
            (_, Fact::Id | Fact::Name | Fact::Done) => true,
            (_, Fact::Friends | Fact::Groups) => verb == Verb::Update,
            (_, Fact::Friendid) => verb == Verb::AddFriend,
            (_, Fact::Groupid) => matches!(verb, Verb::CreateGroup | Verb::JoinGroup | Verb::GroupChat),
            (_, Fact::Groupname) => verb == Verb::CreateGroup,
        }
    }
}

impl Dialect {
    /// The other key of canon that this dialect calls the same in an object that has both.
    fn other_called(&self, place: Place, canon: &str, theirs: &str) -> Option<&str> {
        let kinds = Kind::all().filter(|kind| kind.is_at(place));
        kinds.map(|kind| self.renaming(kind)).find_map(|renaming| renaming.other_called(canon, theirs))
    }
}
