//! The languages that targets speak. In all of them the generator sends the same objects.

use std::io::Write;

use chat_server::wire::{Broken, Split, Splitter};
use memchr::memchr;

use crate::users::MAX_OBJECT;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// The chat's own: JSON objects.
    Chat,
    /// An object is the text of a PRIVMSG.
    Irc,
    /// An object is the payload of a PUB.
    Nats,
}

/// What is in an input buffer.
pub enum Piece {
    /// One object or line, in this part of the buffer.
    Whole { start: usize, end: usize },
    /// Nothing whole is left; so many bytes are of no use.
    Partial { skip: usize },
}

/// Where one stream is to be cut.
#[derive(Debug)]
pub enum Cutter {
    /// At each LF: nearly free.
    Lines,
    /// Where an object ends, for servers that put nothing behind it.
    Objects(Splitter),
}

impl Cutter {
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
        }
    }
}

impl Dialect {
    /// Appends `object`, to the user of this name.
    pub fn write(self, out: &mut Vec<u8>, to: &str, object: &[u8]) {
        // Writing to a vector cannot fail.
        let _ = match self {
            Dialect::Chat => Ok(()),
            Dialect::Irc => write!(out, "PRIVMSG {to} :"),
            Dialect::Nats => write!(out, "PUB {to} {}\r\n", object.len()),
        };
        out.extend_from_slice(object);
        out.extend_from_slice(if self == Dialect::Chat { b"\n" } else { b"\r\n" });
    }

    /// What a server's own question wants to hear, if `line` is one.
    pub fn answer(self, line: &[u8]) -> Option<Vec<u8>> {
        let rest = line.strip_prefix(b"PING").filter(|_| self != Dialect::Chat)?;
        Some([b"PONG", rest].concat())
    }
}
