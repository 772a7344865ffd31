//! Keys, from canon's to a dialect's and back.

use super::members::{Members, Writer};
use super::{Dialect, Kind, Renamed};

/// Whose terms something is to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Canon,
    Theirs,
}

/// The keys that are renamed in one kind of object.
#[derive(Clone, Copy)]
pub(super) struct Renaming<'d>(&'d [Renamed]);

impl Dialect {
    pub(super) fn renaming(&self, kind: Kind) -> Renaming<'_> {
        Renaming(&self.keys[kind.index()])
    }
}

impl Renamed {
    /// The key that stands there, and the one that replaces it.
    fn ends(&self, to: To) -> (&str, &str) {
        match to {
            To::Canon => (&self.theirs, &self.canon),
            To::Theirs => (&self.canon, &self.theirs),
        }
    }
}

impl<'d> Renaming<'d> {
    /// Canon's key and theirs.
    pub fn pairs(self) -> impl Iterator<Item = (&'d str, &'d str)> {
        self.0.iter().map(|pair| pair.ends(To::Theirs))
    }

    pub fn theirs(self, key: &'d str) -> &'d str {
        self.pairs().find(|(canon, _)| *canon == key).map_or(key, |(_, theirs)| theirs)
    }

    /// Another key of canon's that is called the same as this one.
    pub fn other_called(self, canon: &str, theirs: &str) -> Option<&'d str> {
        let called = || self.pairs().filter(|(_, other)| *other == theirs).map(|(canon, _)| canon);
        called().find(|other| *other == canon)?;
        called().find(|other| *other != canon)
    }

    /// Writes the members, renamed. A key is replaced, never doubled: what stands under the new one already is left
    /// out. `value` writes the value of canon's key, and returns whether there is to be one.
    pub fn write(
        self,
        to: To,
        members: &Members,
        writer: &mut Writer,
        mut value: impl FnMut(&str, &str, &mut Vec<u8>) -> bool,
    ) {
        let ends = || self.0.iter().map(move |pair| pair.ends(to));
        for (key, text) in &members.0 {
            let renamed = ends().find(|(from, _)| from == key).map(|(_, into)| into);
            let is_replaced = || ends().any(|(from, into)| into == key && members.get(from).is_some());
            if renamed.is_none() && is_replaced() {
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
