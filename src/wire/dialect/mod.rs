//! Dialects: what the clients of other copies of the ChatServer speak.
//!
//! Most copies renumber some messages and rename some keys, and their clients hang or die of a message in the
//! original's terms, which are called *canon* here. A [`Dialect`] is data: numbers, keys, acks and habits, as
//! `profiles.toml` lists them. A [`Speaker`] makes canon of what a client sends, and makes of canon what the client
//! reads, so everything behind the wire knows canon alone. [`Hearing`] finds out from a client's requests which
//! dialect that is. For a client of other servers there is the opposite direction, too: [`Dialect::write_to_server`] and
//! [`Dialect::read_from_server`].
//!
//! Canon itself is no dialect: what such a client sends and gets is never touched.

mod client;
mod file;
mod hearing;
mod members;
mod profiles;
mod renaming;
mod speaker;
#[cfg(test)]
mod tests;
mod translate;

pub use client::FromServer;
pub use file::FileError;
pub use hearing::Hearing;
pub(super) use members::{Members, elements, string};
pub use profiles::{find, list};
pub use renaming::To;
pub use speaker::{Heard, Me, Speaker};

use std::sync::Arc;

use serde::Deserialize;

use super::msgid;

/// What the original's client reads at a time, in bytes.
const READER: usize = 1024;
/// The largest object that it survives.
pub const LARGEST_REPLY: usize = READER - 1;

/// What is asked for, whatever number and keys a dialect has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Login,
    Logout,
    Register,
    Chat,
    AddFriend,
    CreateGroup,
    JoinGroup,
    GroupChat,
    /// The lists of friends and groups, which canon has as LIST.
    Update,
}

impl Verb {
    pub const ALL: [Verb; 9] = [
        Verb::Login,
        Verb::Logout,
        Verb::Register,
        Verb::Chat,
        Verb::AddFriend,
        Verb::CreateGroup,
        Verb::JoinGroup,
        Verb::GroupChat,
        Verb::Update,
    ];

    /// Its number in canon.
    pub fn msgid(self) -> i64 {
        match self {
            Verb::Login => msgid::LOGIN,
            Verb::Logout => msgid::LOGOUT,
            Verb::Register => msgid::REGISTER,
            Verb::Chat => msgid::ONE_CHAT,
            Verb::AddFriend => msgid::ADD_FRIEND,
            Verb::CreateGroup => msgid::CREATE_GROUP,
            Verb::JoinGroup => msgid::JOIN_GROUP,
            Verb::GroupChat => msgid::GROUP_CHAT,
            Verb::Update => msgid::LIST,
        }
    }

    pub fn from_msgid(msgid: i64) -> Option<Verb> {
        Some(match msgid {
            msgid::LOGIN => Verb::Login,
            msgid::LOGOUT => Verb::Logout,
            msgid::REGISTER => Verb::Register,
            msgid::ONE_CHAT => Verb::Chat,
            msgid::ADD_FRIEND => Verb::AddFriend,
            msgid::CREATE_GROUP => Verb::CreateGroup,
            msgid::JOIN_GROUP => Verb::JoinGroup,
            msgid::GROUP_CHAT => Verb::GroupChat,
            msgid::LIST => Verb::Update,
            _ => return None,
        })
    }
}

/// Where a key stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    /// At the top of every object.
    All,
    /// At the top of every request.
    Requests,
    Login,
    Logout,
    Register,
    /// A chat, in both directions and among the offline messages; so is a group chat.
    Chat,
    AddFriend,
    CreateGroup,
    JoinGroup,
    GroupChat,
    Update,
    /// At the top of every reply.
    Replies,
    LoginAck,
    RegisterAck,
    /// The elements of a reply's lists.
    Friend,
    Group,
    Member,
}

impl From<Verb> for Place {
    fn from(verb: Verb) -> Place {
        match verb {
            Verb::Login => Place::Login,
            Verb::Logout => Place::Logout,
            Verb::Register => Place::Register,
            Verb::Chat => Place::Chat,
            Verb::AddFriend => Place::AddFriend,
            Verb::CreateGroup => Place::CreateGroup,
            Verb::JoinGroup => Place::JoinGroup,
            Verb::GroupChat => Place::GroupChat,
            Verb::Update => Place::Update,
        }
    }
}

/// A kind of object, whose keys may be renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request(Verb),
    /// A chat, or a group chat, that comes for somebody.
    Chat(Verb),
    /// The reply to such a request.
    Reply(Verb),
    Friend,
    Group,
    Member,
}

const VERBS: usize = Verb::ALL.len();
const KINDS: usize = 3 * VERBS + 3;

impl Kind {
    fn all() -> impl Iterator<Item = Kind> {
        let of_verbs = [Kind::Request, Kind::Chat, Kind::Reply].into_iter();
        of_verbs.flat_map(|of| Verb::ALL.map(of)).chain([Kind::Friend, Kind::Group, Kind::Member])
    }

    /// Its index among all.
    fn index(self) -> usize {
        match self {
            Kind::Request(verb) => verb as usize,
            Kind::Chat(verb) => VERBS + verb as usize,
            Kind::Reply(verb) => 2 * VERBS + verb as usize,
            Kind::Friend => 3 * VERBS,
            Kind::Group => 3 * VERBS + 1,
            Kind::Member => 3 * VERBS + 2,
        }
    }

    /// Whether what is renamed at this place is renamed in it.
    fn is_at(self, place: Place) -> bool {
        match self {
            Kind::Request(verb) => place == Place::All || place == Place::Requests || place == verb.into(),
            Kind::Chat(verb) => place == Place::All || place == verb.into(),
            Kind::Reply(verb) => match place {
                Place::All | Place::Replies => true,
                Place::LoginAck => verb == Verb::Login,
                Place::RegisterAck => verb == Verb::Register,
                _ => false,
            },
            Kind::Friend => place == Place::Friend,
            Kind::Group => place == Place::Group,
            Kind::Member => place == Place::Member,
        }
    }
}

/// A key that a dialect calls otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renamed {
    place: Place,
    canon: Box<str>,
    theirs: Box<str>,
}

/// What an ack says besides `errno`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fact {
    /// The user's own id, and name.
    Id,
    Name,
    /// As the request names it.
    Friendid,
    /// As the request, or the reply, names it.
    Groupid,
    Groupname,
    /// Whether it was done: true or false.
    Done,
    /// The lists of an update.
    Friends,
    Groups,
}

/// The reply to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ack {
    pub number: i64,
    /// The dialect's key, and what stands there.
    pub says: Vec<(Box<str>, Fact)>,
}

/// Where a length stands before an object: four bytes, the most significant one first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    #[default]
    Nowhere,
    /// Before what the server sends.
    Replies,
    /// Before what the client sends, too.
    Both,
}

/// The lists whose elements are objects rather than strings that hold JSON.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Objects {
    pub friends: bool,
    pub groups: bool,
    pub members: bool,
}

/// The name of what the original's clients speak.
pub const CANON: &str = "canon";

/// What the clients of one copy of the ChatServer speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dialect {
    name: Box<str>,
    about: Box<str>,
    /// The number of each request; `None`: it has none.
    numbers: [Option<i64>; Verb::ALL.len()],
    /// The reply to each request; `None`: it has none.
    acks: [Option<Ack>; Verb::ALL.len()],
    /// By kind of object, in the order of their places; dialects that differ in numbers alone share them.
    keys: Arc<[Vec<Renamed>; KINDS]>,
    objects: Objects,
    data: bool,
    length: Length,
    reader: usize,
    spaced: bool,
}

/// What the clients of a listener speak.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum DialectChoice {
    /// It is found out from the requests of each client.
    #[default]
    Auto,
    Canon,
    Other(Arc<Dialect>),
}

impl DialectChoice {
    /// The one of this name, if there is one.
    pub fn named(name: &str) -> Option<DialectChoice> {
        match name {
            "auto" => Some(DialectChoice::Auto),
            CANON => Some(DialectChoice::Canon),
            _ => find(name).cloned().map(DialectChoice::Other),
        }
    }

    /// The name of what is spoken, unless that is to be found out.
    pub fn name(&self) -> Option<&str> {
        match self {
            DialectChoice::Auto => None,
            DialectChoice::Canon => Some(CANON),
            DialectChoice::Other(dialect) => Some(dialect.name()),
        }
    }
}

impl Dialect {
    /// Canon, to begin another one with.
    fn canon() -> Dialect {
        let ack = |number| Some(Ack { number, says: Vec::new() });
        let mut acks = [const { None }; Verb::ALL.len()];
        acks[Verb::Login as usize] = ack(msgid::LOGIN_ACK);
        acks[Verb::Register as usize] = ack(msgid::REGISTER_ACK);
        Dialect {
            name: CANON.into(),
            about: "the original".into(),
            numbers: Verb::ALL.map(|verb| (verb != Verb::Update).then(|| verb.msgid())),
            acks,
            keys: Arc::default(),
            objects: Objects::default(),
            data: false,
            length: Length::Nowhere,
            reader: READER,
            spaced: false,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_canon(&self) -> bool {
        &*self.name == CANON
    }

    /// What distinguishes it, in one line.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// Where its objects are framed by a length.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The largest login reply that its client survives, in bytes.
    pub fn largest_reply(&self) -> usize {
        self.reader - 1
    }

    /// Whether its client takes what one read returns for one object.
    pub fn is_spaced(&self) -> bool {
        self.spaced
    }

    /// The number of a request, if this dialect has it.
    pub fn number(&self, verb: Verb) -> Option<i64> {
        self.numbers[verb as usize]
    }

    /// The request of this number.
    fn verb(&self, number: i64) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| self.number(*verb) == Some(number))
    }

    /// A place has one name for each of canon's keys; of those of an object's places, the last one counts.
    fn rename(&mut self, place: Place, canon: &str, theirs: &str) {
        let by_kind = Arc::make_mut(&mut self.keys);
        for kind in Kind::all().filter(|kind| kind.is_at(place)) {
            let keys = &mut by_kind[kind.index()];
            if keys.iter().any(|known| *known.canon == *canon && known.place > place) {
                continue;
            }
            keys.retain(|known| *known.canon != *canon);
            let at = keys.partition_point(|known| known.place <= place);
            keys.insert(at, Renamed { place, canon: canon.into(), theirs: theirs.into() });
        }
    }

    fn ack(&self, verb: Verb) -> Option<&Ack> {
        self.acks[verb as usize].as_ref()
    }
}
