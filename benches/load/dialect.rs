//! The languages that targets speak, and where their streams are to be cut.

use std::fmt;
use std::io::Write;

use chat_server::wire::{Broken, Split, Splitter};
use memchr::memchr;

use crate::bytes::Piece;
use crate::frames;

/// Larger than any reply.
const MAX_OBJECT: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The chat's own: JSON objects.
    Chat(Capabilities),
    /// An object is the text of a PRIVMSG.
    Irc,
    /// An object is the payload of a PUB.
    Nats,
}

/// What one server of the family supports. Each point is found out on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// A request with `seq` is acked.
    pub acks: bool,
    /// Replies say `errno`; else `error`.
    pub errno: bool,
    /// A login's reply has a msgid, and its errno.
    pub login_msgid: bool,
    pub login_errno: bool,
    /// The recipient is `toid`; else `to`.
    pub toid: bool,
    /// A login's reply lists `friends`; else `friend`.
    pub friends: bool,
    /// It handles LOGINOUT.
    pub logout: bool,
    pub group_ids: GroupIds,
    /// Messages arrive with their keys in the alphabet's order.
    pub sorted: bool,
    pub ending: Ending,
    /// It may get several requests at a time. The C++ server crashes on two objects in one read, and on logins or
    /// disconnects side by side.
    pub sturdy: bool,
    /// It is reached over WebSockets. That is not found out, but asked for.
    pub frames: bool,
}

/// How the id of a new group becomes known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupIds {
    /// The ack of its creation has the id.
    Ack,
    /// The reply to its creator's next login has the id.
    Login,
    Never,
}

/// What stands behind an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Nothing,
    Nul,
    Lf,
}

impl Capabilities {
    /// Ours, and what is measured beside it as if it were.
    pub const OURS: Capabilities = Capabilities {
        acks: true,
        errno: true,
        login_msgid: true,
        login_errno: true,
        toid: true,
        friends: true,
        logout: true,
        group_ids: GroupIds::Ack,
        sorted: false,
        ending: Ending::Lf,
        sturdy: true,
        frames: false,
    };
    /// A relay that supports pairs only.
    pub const FLOOR: Capabilities =
        Capabilities { acks: false, logout: false, group_ids: GroupIds::Never, ..Capabilities::OURS };
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or = |is_so: bool, yes: &'static str, no: &'static str| if is_so { yes } else { no };
        let words = [
            or(self.acks, "acks", "no acks"),
            or(self.errno, "errno", "error for errno"),
            or(self.login_msgid, "msgid in login replies", "no msgid in login replies"),
            or(self.login_errno, "errno in login replies", "no errno in login replies"),
            or(self.toid, "toid", "to for toid"),
            or(self.friends, "friends", "friend for friends"),
            or(self.logout, "logout", "no logout"),
            match self.group_ids {
                GroupIds::Ack => "group ids in acks",
                GroupIds::Login => "group ids at login",
                GroupIds::Never => "no group ids",
            },
            or(self.sorted, "keys sorted", "objects as they came"),
            match self.ending {
                Ending::Nothing => "nothing behind objects",
                Ending::Nul => "NUL behind objects",
                Ending::Lf => "LF behind objects",
            },
            or(self.sturdy, "several requests at a time", "one request at a time"),
        ];
        f.write_str(&words.join(", "))
    }
}

/// Where one stream is to be cut.
#[derive(Debug)]
pub enum Cutter {
    /// The stream is cut at each LF: nearly free.
    Lines,
    /// The stream is cut where an object ends, for servers that put nothing behind it.
    Objects(Splitter),
    /// Each object stands in a frame of its own.
    Frames,
}

impl Cutter {
    pub fn objects() -> Cutter {
        Cutter::Objects(Splitter::default())
    }

    /// For a stream of which nothing has come yet.
    pub fn of(dialect: Dialect) -> Cutter {
        match dialect {
            Dialect::Chat(it) if it.frames => Cutter::Frames,
            Dialect::Chat(_) => Cutter::objects(),
            Dialect::Irc | Dialect::Nats => Cutter::Lines,
        }
    }

    pub fn next(&mut self, input: &[u8]) -> Result<Piece, Broken> {
        match self {
            Cutter::Lines => Ok(match memchr(b'\n', input) {
                Some(end) => Piece::Whole { start: 0, end: end + 1 },
                None => Piece::Partial { skip: 0 },
            }),
            Cutter::Objects(splitter) => Ok(match splitter.next(input, MAX_OBJECT)? {
                Split::Object { start, end } => Piece::Whole { start, end },
                Split::Partial { skip } => Piece::Partial { skip },
            }),
            Cutter::Frames => Ok(frames::next(input)),
        }
    }
}

impl Dialect {
    /// The capabilities, if this is a server of the family.
    pub fn capabilities(self) -> Option<Capabilities> {
        match self {
            Dialect::Chat(capabilities) => Some(capabilities),
            Dialect::Irc | Dialect::Nats => None,
        }
    }

    /// It may get several requests at a time, from many clients.
    pub fn is_sturdy(self) -> bool {
        self.capabilities().is_none_or(|capabilities| capabilities.sturdy)
    }

    /// Nothing stands before an object.
    pub fn is_bare(self) -> bool {
        matches!(self, Dialect::Chat(it) if !it.frames)
    }

    pub fn has_frames(self) -> bool {
        self.capabilities().is_some_and(|it| it.frames)
    }

    /// Puts this in front of an object of `length` bytes to the user of this name.
    pub fn begin(self, out: &mut Vec<u8>, to: &str, length: usize) {
        // Writing to a vector cannot fail.
        let _ = match self {
            Dialect::Chat(_) => {
                if self.has_frames() {
                    frames::begin(out, length);
                }
                Ok(())
            }
            Dialect::Irc => write!(out, "PRIVMSG {to} :"),
            Dialect::Nats => write!(out, "PUB {to} {length}\r\n"),
        };
    }

    /// And this behind it.
    pub fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(match self {
            Dialect::Chat(it) if it.frames => b"",
            Dialect::Chat(_) => b"\n",
            Dialect::Irc | Dialect::Nats => b"\r\n",
        });
    }

    /// The answer to a question of the server's own, if `line` is one.
    pub fn answer(self, line: &[u8]) -> Option<Vec<u8>> {
        let rest = line.strip_prefix(b"PING").filter(|_| !matches!(self, Dialect::Chat(_)))?;
        Some([b"PONG", rest].concat())
    }
}
