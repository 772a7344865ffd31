//! Keys, from canon's to a dialect's and back.

use super::members::{Members, Writer};
use super::{Dialect, Place};

/// Whose terms something is to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Canon,
    Theirs,
}

/// The keys that are renamed at some places; a handful at most.
pub(super) struct Renaming<'d> {
    pairs: Vec<Pair<'d>>,
}

struct Pair<'d> {
    canon: &'d str,
    theirs: &'d str,
    /// Whether the object has the key that is to be replaced.
    is_present: bool,
}

impl Dialect {
    /// What is renamed at these places; where two rename the same key, the later one counts.
    pub(super) fn renaming(&self, places: &[Place]) -> Renaming<'_> {
        let mut pairs: Vec<Pair> = Vec::new();
        for (canon, theirs) in places.iter().flat_map(|place| &self.keys[*place as usize]) {
            pairs.retain(|pair| pair.canon != &**canon);
            pairs.push(Pair { canon, theirs, is_present: false });
        }
        Renaming { pairs }
    }
}

impl<'d> Renaming<'d> {
    /// Canon's key and theirs.
    pub fn pairs(&self) -> impl Iterator<Item = (&'d str, &'d str)> {
        self.pairs.iter().map(|pair| (pair.canon, pair.theirs))
    }

    pub fn theirs(&self, key: &'d str) -> &'d str {
        self.pairs.iter().find(|pair| pair.canon == key).map_or(key, |pair| pair.theirs)
    }

    /// Another key of canon's that is called the same as this one.
    pub fn other_called(&self, canon: &str, theirs: &str) -> Option<&'d str> {
        let called = || self.pairs().filter(|(_, other)| *other == theirs).map(|(canon, _)| canon);
        called().find(|other| *other == canon)?;
        called().find(|other| *other != canon)
    }

    /// Writes the members, renamed. A key is replaced, never doubled: what stands under the new one already is left
    /// out. `value` writes the value of canon's key, and returns whether there is to be one.
    pub fn write(
        mut self,
        to: To,
        members: &Members,
        writer: &mut Writer,
        mut value: impl FnMut(&str, &str, &mut Vec<u8>) -> bool,
    ) {
        let ends = |pair: &Pair<'d>| match to {
            To::Canon => (pair.theirs, pair.canon),
            To::Theirs => (pair.canon, pair.theirs),
        };
        for (key, _) in &members.0 {
            for pair in &mut self.pairs {
                pair.is_present |= ends(pair).0 == key;
            }
        }
        for (key, text) in &members.0 {
            let renamed = self.pairs.iter().find(|pair| ends(pair).0 == key).map(|pair| ends(pair).1);
            let is_replaced = self.pairs.iter().any(|pair| ends(pair).1 == key && pair.is_present);
            if renamed.is_none() && is_replaced {
                continue;
            }
            let (from, into) = (&**key, renamed.unwrap_or(key));
            let canon = match to {
                To::Canon => into,
                To::Theirs => from,
            };
            writer.member_with(into, |out| value(canon, text, out));
        }
    }
}
