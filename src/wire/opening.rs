//! What a connection begins with; all that may stand before its first object is told apart here.
//!
//! Where a proxy is expected, its PROXY header comes first. Then there may be blanks, and among them one byte order
//! mark; or the length of the first object, which then stands before every one. Or the connection is a browser's, and
//! begins with an HTTP request: `G` begins nothing else.

use super::proxy::{BadHeader, ProxyHeader};

/// The bytes of a length, of which the first is the most significant one.
pub(super) const LENGTH: usize = 4;
/// No object is shorter.
pub(super) const SHORTEST: usize = b"{}".len();

/// U+FEFF, which some put before the first byte of every text.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What may stand between objects, in any number: the C++ client sends NUL, telnet CR LF.
pub(super) fn is_separator(byte: u8) -> bool {
    matches!(byte, 0 | b' ' | b'\t' | b'\r' | b'\n')
}

/// The number that a length's bytes are.
pub(super) fn length(head: &[u8]) -> usize {
    head.iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// They do not tell yet. The first `skip` of them are blanks, or the mark, and may be dropped.
    Nothing { skip: usize },
    /// The first object, or what is none, behind `skip` bytes.
    Object { skip: usize },
    /// A length, if an object follows that is as long; otherwise blanks.
    Length,
    /// An HTTP request, and no object ever.
    Http,
}

/// How far the beginning of a connection has been read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening {
    /// A PROXY header is due.
    is_proxied: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was read. What has come is too short to tell a length from blanks; `begun`: it is not all blanks.
    First {
        begun: bool,
    },
    /// There is no length, but perhaps blanks; `marked`: the mark was among them, so no other one may come.
    Blanks {
        marked: bool,
    },
    /// An HTTP request has begun.
    Http,
    Over,
}

impl Default for Stage {
    fn default() -> Stage {
        Stage::First { begun: false }
    }
}

impl Opening {
    /// Of a client of which it is known whether it puts a length before each object.
    pub fn of_known(has_lengths: bool) -> Opening {
        let stage = if has_lengths { Stage::Over } else { Stage::Blanks { marked: false } };
        Opening { is_proxied: false, stage }
    }

    /// Behind what must be a PROXY header.
    pub fn proxied(self) -> Opening {
        Opening { is_proxied: true, ..self }
    }

    pub fn is_proxied(self) -> bool {
        self.is_proxied
    }

    /// What is left of a connection whose first object has begun.
    pub fn over() -> Opening {
        Opening { is_proxied: false, stage: Stage::Over }
    }

    pub fn is_over(self) -> bool {
        self == Opening::over()
    }

    /// Whether the stream may end behind what was left of it.
    pub fn may_end(self) -> bool {
        self.stage == Stage::First { begun: false }
    }

    /// Whether what was left is the beginning of something.
    pub fn is_begun(self) -> bool {
        self.stage == Stage::First { begun: true }
    }

    /// Reads the PROXY header, if one is due; `None`: none is, or it is not whole yet.
    pub fn proxy(&mut self, input: &[u8]) -> Result<Option<ProxyHeader>, BadHeader> {
        if !self.is_proxied {
            return Ok(None);
        }
        let header = ProxyHeader::parse(input)?;
        self.is_proxied = header.is_none();
        Ok(header)
    }

    /// Looks for the first object, which may be `max_object` bytes long.
    pub fn next(&mut self, input: &[u8], max_object: usize) -> Found {
        match self.stage {
            _ if self.is_proxied || input.is_empty() => Found::Nothing { skip: 0 },
            Stage::Over => Found::Object { skip: 0 },
            Stage::Http => Found::Http,
            Stage::First { .. } if input[0] == b'G' => {
                self.stage = Stage::Http;
                Found::Http
            }
            Stage::First { .. } if input[0] == 0 && input.len() <= LENGTH => {
                self.stage = Stage::First { begun: !input.iter().all(|byte| is_separator(*byte)) };
                Found::Nothing { skip: 0 }
            }
            // No limit is so large that the first byte of a length within it is not 0.
            Stage::First { .. } if input[0] == 0 && is_length(input, max_object) => {
                self.stage = Stage::Over;
                Found::Length
            }
            Stage::First { .. } => {
                self.stage = Stage::Blanks { marked: false };
                self.next(input, max_object)
            }
            Stage::Blanks { marked } => self.behind_blanks(input, marked),
        }
    }

    fn behind_blanks(&mut self, input: &[u8], marked: bool) -> Found {
        let blanks = |bytes: &[u8]| bytes.iter().position(|byte| !is_separator(*byte)).unwrap_or(bytes.len());
        let mut skip = blanks(input);
        let rest = &input[skip..];
        if !marked && rest.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(rest) {
            return Found::Nothing { skip };
        }
        if !marked && rest.starts_with(BYTE_ORDER_MARK) {
            self.stage = Stage::Blanks { marked: true };
            skip += BYTE_ORDER_MARK.len();
            skip += blanks(&input[skip..]);
        }
        if skip == input.len() {
            return Found::Nothing { skip };
        }
        self.stage = Stage::Over;
        Found::Object { skip }
    }
}

/// Whether `input` begins with the length of an object, and with that object's brace behind it.
fn is_length(input: &[u8], max_object: usize) -> bool {
    input[LENGTH] == b'{' && (SHORTEST..=max_object).contains(&length(&input[..LENGTH]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_beginning_is_told_from_the_others() {
        let nothing = |skip| Found::Nothing { skip };
        let object = |skip| Found::Object { skip };
        for (input, found) in [
            (&b""[..], nothing(0)),
            (b"{", object(0)),
            (b"x", object(0)),
            (b"G", Found::Http),
            (b"GET / HTTP/1.1\r\n\r\n", Found::Http),
            (b"g", object(0)),
            (b" GET", object(1)),
            (b"\xef\xbb\xbfGET", object(3)),
            (b" \r\n", nothing(3)),
            (b"\n{", object(1)),
            (b"\xef\xbb", nothing(0)),
            (b" \xef\xbb\xbf", nothing(4)),
            (b"\xef\xbb\xbf\0{", object(4)),
            (b"\xef\xbb\xbf\xef\xbb\xbf{", object(3)),
            (b"\xef{", object(0)),
            (b"\0\0\0\x02", nothing(0)),
            (b"\0\0\0\x02{", Found::Length),
            (b"\0\0\0\x64{", Found::Length),
            (b"\0\0\0\x65{", object(3)),
            (b"\0\0\0\x01{", object(3)),
            (b"\0\0\0\x02x", object(3)),
            (b"\0\0\0\0{", object(4)),
            (b"\0\0\0\0\xef\xbb\xbf{", object(7)),
        ] {
            assert_eq!(Opening::default().next(input, 100), found, "{input:?}");
        }
        assert_eq!(Opening::of_known(false).next(b"\0\0\0\x02{", 100), object(3));
        assert_eq!(Opening::of_known(false).next(b"GET", 100), object(0), "where it is known what is spoken");
        assert_eq!(Opening::of_known(true).next(b"\0\0\0\x02{", 100), object(0));
    }

    #[test]
    fn nothing_is_read_before_the_header_of_a_proxy() {
        let mut opening = Opening::default().proxied();
        assert_eq!(opening.next(b"{}", 100), Found::Nothing { skip: 0 });
        assert_eq!(opening.proxy(b"PROXY UNKN"), Ok(None));
        assert_eq!(opening.proxy(b"PROXY UNKNOWN\r\n{}"), Ok(Some(ProxyHeader { length: 15, source: None })));
        assert_eq!(opening.proxy(b"PROXY UNKNOWN\r\n"), Ok(None), "a second one is none");
        assert_eq!(opening.next(b"{}", 100), Found::Object { skip: 0 });
        assert_eq!(Opening::default().proxied().proxy(b"{}"), Err(BadHeader::Missing));
        let mut opening = Opening::default().proxied();
        assert_eq!(opening.next(b"GET", 100), Found::Nothing { skip: 0 });
        assert!(opening.proxy(b"PROXY UNKNOWN\r\nGET").is_ok());
        assert_eq!([opening.next(b"G", 100), opening.next(b"GET", 100)], [Found::Http; 2]);
    }

    #[test]
    fn the_end_of_a_stream_is_told_from_a_beginning() {
        for (input, may_end, is_begun) in [(&b"\0\0"[..], true, false), (b"\0\0{", false, true), (b"{", false, false)] {
            let mut opening = Opening::default();
            opening.next(input, 100);
            assert_eq!((opening.may_end(), opening.is_begun()), (may_end, is_begun), "{input:?}");
        }
    }
}
