//! Mirrors how a client ends its objects, so that its own reader recognises the server's.

use super::opening::is_separator;
use super::websocket::Prefix;

/// What the server writes before or behind each object for one connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// Nothing, also while nothing is known yet.
    #[default]
    Bare,
    /// The C++ client: it sends `strlen + 1` bytes.
    Nul,
    /// Python, `nc`.
    Lf,
    /// telnet.
    CrLf,
    /// A browser: each object is a text message.
    WebSocket,
}

impl Framing {
    /// The bytes that follow an object.
    pub fn terminator(self) -> &'static [u8] {
        match self {
            Framing::Bare | Framing::WebSocket => b"",
            Framing::Nul => b"\0",
            Framing::Lf => b"\n",
            Framing::CrLf => b"\r\n",
        }
    }

    /// The bytes that precede an object of this length.
    #[inline]
    pub fn prefix(self, length: usize) -> Prefix {
        if self == Framing::WebSocket { Prefix::of_text(length) } else { Prefix::default() }
    }
}

/// Learns a connection's [`Framing`] from what follows its objects. An object at the end of a
/// segment shows nothing yet: its terminator may come with the next one.
#[derive(Debug, Default, Clone)]
pub struct FramingMirror {
    known: Option<Framing>,
    state: Watch,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// What follows the last object has been seen, or there was no object yet.
    #[default]
    Idle,
    /// An object has ended and only blanks have followed.
    AfterObject,
    /// A CR has followed it; LF must come next.
    AfterCr,
}

impl FramingMirror {
    /// Of a client of which it is known, and which no object is to tell otherwise.
    pub fn of_known(framing: Framing) -> FramingMirror {
        FramingMirror { known: Some(framing), state: Watch::Idle }
    }

    pub fn framing(&self) -> Framing {
        self.known.unwrap_or_default()
    }

    /// An object has just ended; `rest` is what has arrived behind it.
    pub fn object_ended(&mut self, rest: &[u8]) {
        self.state = Watch::AfterObject;
        self.more(rest);
    }

    /// The same of an object that is no message of the protocol, such as a heartbeat: what follows it tells nothing
    /// where something is known.
    pub fn foreign_object_ended(&mut self, rest: &[u8]) {
        match self.known {
            Some(_) => self.state = Watch::Idle,
            None => self.object_ended(rest),
        }
    }

    /// More bytes have arrived. Only the separators at the front are looked at, and only until
    /// the framing of the last object is known.
    pub fn more(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let seen = match (self.state, byte) {
                (Watch::Idle, _) => return,
                (Watch::AfterObject, 0) => Framing::Nul,
                (Watch::AfterObject, b'\n') => Framing::Lf,
                (Watch::AfterCr, b'\n') => Framing::CrLf,
                (_, b'\r') => {
                    self.state = Watch::AfterCr;
                    continue;
                }
                (Watch::AfterObject, byte) if is_separator(byte) => continue,
                // The next object, or something that is none, stands right behind.
                _ => Framing::Bare,
            };
            self.known = Some(seen);
            self.state = Watch::Idle;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pieces: &[&[u8]]) -> Framing {
        let mut mirror = FramingMirror::default();
        mirror.object_ended(pieces[0]);
        pieces[1..].iter().for_each(|piece| mirror.more(piece));
        mirror.framing()
    }

    #[test]
    fn the_byte_behind_the_object_decides_wherever_the_segment_was_cut() {
        assert_eq!(after(&[b""]), Framing::Bare);
        assert_eq!(after(&[b"{"]), Framing::Bare);
        assert_eq!(after(&[b"\0{"]), Framing::Nul);
        assert_eq!(after(&[b"", b"\0"]), Framing::Nul);
        assert_eq!(after(&[b"\n\0"]), Framing::Lf);
        assert_eq!(after(&[b"\r", b"\n"]), Framing::CrLf);
        assert_eq!(after(&[b" \t", b"\n"]), Framing::Lf);
    }

    #[test]
    fn the_last_object_counts_and_silence_keeps_what_is_known() {
        let mut mirror = FramingMirror::default();
        mirror.object_ended(b"\0");
        mirror.object_ended(b"");
        assert_eq!(mirror.framing(), Framing::Nul);
        mirror.object_ended(b"\n");
        assert_eq!(mirror.framing(), Framing::Lf);
        mirror.object_ended(b"{");
        assert_eq!(mirror.framing(), Framing::Bare);
    }

    #[test]
    fn what_follows_a_foreign_object_tells_only_where_nothing_is_known() {
        let mut mirror = FramingMirror::default();
        mirror.foreign_object_ended(b"\n");
        assert_eq!(mirror.framing(), Framing::Lf);
        mirror.object_ended(b"");
        mirror.more(b"\0");
        mirror.foreign_object_ended(b"");
        mirror.more(b"{");
        assert_eq!(mirror.framing(), Framing::Nul);
        mirror.object_ended(b"{");
        assert_eq!(mirror.framing(), Framing::Bare);
    }
}
