//! WebSocket (RFC 6455): the messages in what a browser sends, and the frames that it is sent.
//!
//! One object stands in one text message. There are no extensions, so nothing is compressed and no reserved bit is set.

use std::ops::Deref;

/// Codes of close frames.
pub mod code {
    pub const NORMAL: u16 = 1000;
    pub const PROTOCOL: u16 = 1002;
    pub const BINARY: u16 = 1003;
    pub const NOT_UTF8: u16 = 1007;
    pub const POLICY: u16 = 1008;
    pub const TOO_LARGE: u16 = 1009;
    pub const RESTART: u16 = 1012;
}

mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// In the first byte of a frame: the last one of its message; bits that extensions would use; the opcode.
const LAST: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
/// In the second byte: what follows is masked; the length, or how many bytes it takes.
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const LENGTH_IN_2: u8 = 126;
const LENGTH_IN_8: u8 = 127;
/// The most that a ping, a pong or a close frame may hold.
pub const MAX_CONTROL: usize = 125;
/// The longest header of a frame that is sent.
const MAX_HEADER: usize = 10;

/// What [`WebSocket::next`] has found. The first `taken` bytes of the input are done with.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing whole: the rest of the input must be given again, with more behind it.
    Partial {
        taken: usize,
    },
    /// A message. It is found again, in the same input, until it is fetched by [`WebSocket::take`].
    Text {
        taken: usize,
    },
    Ping {
        taken: usize,
        payload: Payload,
    },
    Pong {
        taken: usize,
    },
    /// The client closes, for this reason if it names one; nothing of it follows.
    Close {
        taken: usize,
        code: Option<u16>,
    },
}

/// Why the frames cannot be followed any further; the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    #[error("no WebSocket frame of a client")]
    Protocol,
    #[error("a message must be text")]
    Binary,
    #[error("a message must be UTF-8")]
    NotUtf8,
    #[error("message too large")]
    TooLarge,
}

impl Failed {
    /// What the close frame says.
    pub fn code(self) -> u16 {
        match self {
            Failed::Protocol => code::PROTOCOL,
            Failed::Binary => code::BINARY,
            Failed::NotUtf8 => code::NOT_UTF8,
            Failed::TooLarge => code::TOO_LARGE,
        }
    }
}

/// What a control frame holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    bytes: [u8; MAX_CONTROL],
    length: u8,
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The reading side of one connection.
///
/// The caller keeps the bytes of headers and of control frames until they are whole, 139 at most. Those of a message
/// are unmasked into a buffer as they come, which is there only while a message has begun: so fragments are joined, and
/// what is not UTF-8 is found with its first wrong byte.
#[derive(Debug, Default)]
pub struct WebSocket {
    /// What has come of a message.
    message: Vec<u8>,
    /// How many bytes of it are known to be UTF-8.
    checked: usize,
    /// How many bytes of its frame have yet to come…
    left: usize,
    /// …and what they are masked with, the first of them with the first.
    mask: [u8; 4],
    stage: Stage,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    BetweenMessages,
    /// A message has begun, and a frame of it has ended.
    BetweenFrames,
    InFrame {
        is_last: bool,
    },
    /// A message is whole, with so many bytes of the input, and waits to be taken.
    Whole {
        taken: usize,
    },
}

/// What stands before a payload.
struct Header {
    is_last: bool,
    opcode: u8,
    /// Within the limit.
    length: usize,
    mask: [u8; 4],
    /// Its own length.
    size: usize,
}

impl WebSocket {
    /// Looks for what comes next, in a message that may be `max_message` bytes long. After an error it must not be
    /// used again.
    ///
    /// # Errors
    /// The client does not keep to the protocol, or to what is allowed here.
    pub fn next(&mut self, input: &[u8], max_message: usize) -> Result<Found, Failed> {
        let mut at = 0;
        loop {
            match self.stage {
                Stage::Whole { taken } => return Ok(Found::Text { taken }),
                Stage::InFrame { is_last } => {
                    let rest = &input[at..];
                    at += self.read(&rest[..rest.len().min(self.left)])?;
                    match (self.left, is_last) {
                        (1.., _) => return Ok(Found::Partial { taken: at }),
                        (0, false) => self.stage = Stage::BetweenFrames,
                        // A character that was cut in two had its other part to come.
                        (0, true) if self.checked < self.message.len() => return Err(Failed::NotUtf8),
                        (0, true) => self.stage = Stage::Whole { taken: at },
                    }
                }
                Stage::BetweenMessages | Stage::BetweenFrames => {
                    let rest = &input[at..];
                    let Some(header) = self.header(rest, max_message)? else { return Ok(Found::Partial { taken: at }) };
                    if header.opcode & opcode::CLOSE != 0 {
                        let Some(masked) = rest.get(header.size..header.size + header.length) else {
                            return Ok(Found::Partial { taken: at });
                        };
                        return control(&header, masked, at + header.size + header.length);
                    }
                    at += header.size;
                    (self.left, self.mask) = (header.length, header.mask);
                    self.stage = Stage::InFrame { is_last: header.is_last };
                }
            }
        }
    }

    /// Fetches the message that was found.
    pub fn take(&mut self) -> Vec<u8> {
        (self.checked, self.stage) = (0, Stage::BetweenMessages);
        std::mem::take(&mut self.message)
    }

    /// Gives back what was fetched, of which the input still holds `taken` bytes: it is found again.
    pub fn put_back(&mut self, message: Vec<u8>, taken: usize) {
        (self.checked, self.stage) = (message.len(), Stage::Whole { taken });
        self.message = message;
    }

    /// Reads the next part of a frame, and returns its length.
    fn read(&mut self, masked: &[u8]) -> Result<usize, Failed> {
        let from = self.message.len();
        self.message.extend_from_slice(masked);
        unmask(&mut self.message[from..], self.mask);
        self.mask.rotate_left(masked.len() % 4);
        self.left -= masked.len();
        self.checked += match std::str::from_utf8(&self.message[self.checked..]) {
            Ok(text) => text.len(),
            // It may go on with the next byte.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Err(Failed::NotUtf8),
        };
        Ok(masked.len())
    }

    /// Reads a header; each byte of it is judged as soon as it is there. `None`: it is not whole.
    fn header(&self, input: &[u8], max_message: usize) -> Result<Option<Header>, Failed> {
        let Some(&first) = input.first() else { return Ok(None) };
        let (is_last, opcode) = (first & LAST != 0, first & OPCODE);
        let has_begun = self.stage == Stage::BetweenFrames;
        match opcode {
            _ if first & RESERVED != 0 => return Err(Failed::Protocol),
            opcode::CLOSE | opcode::PING | opcode::PONG if is_last => {}
            opcode::CONTINUATION if has_begun => {}
            opcode::TEXT if !has_begun => {}
            opcode::BINARY if !has_begun => return Err(Failed::Binary),
            _ => return Err(Failed::Protocol),
        }
        let is_control = opcode & opcode::CLOSE != 0;
        let Some(&second) = input.get(1) else { return Ok(None) };
        if second & MASKED == 0 {
            return Err(Failed::Protocol);
        }
        let (length, length_size) = match second & LENGTH {
            LENGTH_IN_2 | LENGTH_IN_8 if is_control => return Err(Failed::Protocol),
            LENGTH_IN_2 => (array(input, 2).map(|bytes| u16::from_be_bytes(bytes).into()), 2),
            LENGTH_IN_8 => (array(input, 2).map(u64::from_be_bytes), 8),
            short => (Some(u64::from(short)), 0),
        };
        let Some(length) = length else { return Ok(None) };
        let room = if is_control { MAX_CONTROL } else { max_message.saturating_sub(self.message.len()) };
        let length = usize::try_from(length).ok().filter(|length| *length <= room).ok_or(Failed::TooLarge)?;
        let Some(mask) = array(input, 2 + length_size) else { return Ok(None) };
        Ok(Some(Header { is_last, opcode, length, mask, size: 2 + length_size + 4 }))
    }
}

fn array<const N: usize>(input: &[u8], at: usize) -> Option<[u8; N]> {
    input.get(at..)?.first_chunk().copied()
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let (words, rest) = bytes.as_chunks_mut();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// A control frame that is whole.
fn control(header: &Header, masked: &[u8], taken: usize) -> Result<Found, Failed> {
    let mut payload = Payload { bytes: [0; MAX_CONTROL], length: masked.len() as u8 };
    let bytes = &mut payload.bytes[..masked.len()];
    bytes.copy_from_slice(masked);
    unmask(bytes, header.mask);
    Ok(match header.opcode {
        opcode::PING => Found::Ping { taken, payload },
        opcode::PONG => Found::Pong { taken },
        _ => Found::Close { taken, code: close_code(bytes)? },
    })
}

/// What the client's close frame says: nothing, or a code and a reason.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Failed> {
    if payload.is_empty() {
        return Ok(None);
    }
    let (code, reason) = payload.split_first_chunk().ok_or(Failed::Protocol)?;
    match u16::from_be_bytes(*code) {
        _ if std::str::from_utf8(reason).is_err() => Err(Failed::NotUtf8),
        // 1004 to 1006 and 1015 never stand in a frame; up to 2999 nothing else has a meaning.
        code @ (1000..=1003 | 1007..=1014 | 3000..=4999) => Ok(Some(code)),
        _ => Err(Failed::Protocol),
    }
}

/// What is written before an object; without a WebSocket, nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct Prefix {
    bytes: [u8; MAX_HEADER],
    length: u8,
}

impl Prefix {
    /// The header of a text message of this length.
    pub fn of_text(length: usize) -> Prefix {
        let mut bytes = [0; MAX_HEADER];
        bytes[0] = LAST | opcode::TEXT;
        let size = if length <= MAX_CONTROL {
            bytes[1] = length as u8;
            2
        } else if let Ok(length) = u16::try_from(length) {
            bytes[1] = LENGTH_IN_2;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            4
        } else {
            bytes[1] = LENGTH_IN_8;
            bytes[2..].copy_from_slice(&(length as u64).to_be_bytes());
            10
        };
        Prefix { bytes, length: size }
    }
}

impl Deref for Prefix {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// Asks the client for a sign of life; a browser answers by itself.
pub fn write_ping(out: &mut Vec<u8>) {
    write_control(out, opcode::PING, b"");
}

/// The answer to a ping, with what that held.
pub fn write_pong(out: &mut Vec<u8>, payload: &Payload) {
    write_control(out, opcode::PONG, payload);
}

/// Nothing may follow it.
pub fn write_close(out: &mut Vec<u8>, code: u16) {
    write_control(out, opcode::CLOSE, &code.to_be_bytes());
}

fn write_control(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_CONTROL);
    out.extend_from_slice(&[LAST | opcode, payload.len() as u8]);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A frame as a client sends it; `first`: its first byte.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let prefix = Prefix::of_text(payload.len());
        let mut frame = prefix.to_vec();
        frame[0] = first;
        frame[1] |= MASKED;
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// What is found in a stream that comes in these pieces, as a text, and how it fails.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, max: usize) -> (Vec<String>, Option<Failed>) {
        let (mut socket, mut input, mut found) = (WebSocket::default(), Vec::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                let (taken, text) = match socket.next(&input, max) {
                    Ok(Found::Partial { taken }) => break drop(input.drain(..taken)),
                    Ok(Found::Text { taken }) => (taken, format!("text {}", String::from_utf8(socket.take()).unwrap())),
                    Ok(Found::Ping { taken, payload }) => (taken, format!("ping {}", payload.escape_ascii())),
                    Ok(Found::Pong { taken }) => (taken, "pong".to_owned()),
                    Ok(Found::Close { taken, code }) => (taken, format!("close {code:?}")),
                    Err(failed) => return (found, Some(failed)),
                };
                input.drain(..taken);
                found.push(text);
            }
        }
        (found, None)
    }

    /// The same in one piece, byte by byte, and cut in two anywhere.
    #[track_caller]
    fn read_anyhow(stream: &[u8], max: usize) -> (Vec<String>, Option<Failed>) {
        let whole = read([stream], max);
        assert_eq!(read(stream.chunks(1), max), whole, "{}", stream.escape_ascii());
        for at in 0..stream.len() {
            let (front, behind) = stream.split_at(at);
            assert_eq!(read([front, behind], max), whole, "{at}: {}", stream.escape_ascii());
        }
        whole
    }

    fn found(list: &[&str]) -> (Vec<String>, Option<Failed>) {
        (list.iter().map(|text| (*text).to_owned()).collect(), None)
    }

    #[test]
    fn the_examples_of_the_rfc_are_read_and_written() {
        // Section 5.7: a masked "Hello", and a pong with it.
        assert_eq!(read_anyhow(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 100), found(&["text Hello"]));
        assert_eq!(read_anyhow(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 100), found(&["pong"]));
        let mut pong = Vec::new();
        write_control(&mut pong, opcode::PONG, b"Hello");
        assert_eq!(pong, b"\x8a\x05Hello");
        assert_eq!(*Prefix::of_text(5), *b"\x81\x05");
        assert_eq!(*Prefix::of_text(256), *b"\x81\x7e\x01\x00");
        assert_eq!(*Prefix::of_text(65_536), *b"\x81\x7f\x00\x00\x00\x00\x00\x01\x00\x00");
        assert_eq!([125, 126, 65_535].map(|length| Prefix::of_text(length).len()), [2, 4, 4]);
        assert!(Prefix::default().is_empty());
    }

    #[test]
    fn fragments_are_joined_around_control_frames() {
        let stream =
            [frame(0x01, "aé".as_bytes()), frame(0x89, b"?"), frame(0x00, b""), frame(0x80, b"b"), frame(0x81, b"")];
        assert_eq!(read_anyhow(&stream.concat(), 100), found(&["ping ?", "text aéb", "text "]));
        // A character may be cut by the end of a frame, and not by that of the message.
        let halves = [frame(0x01, b"\xc3"), frame(0x80, b"\xa9")].concat();
        assert_eq!(read_anyhow(&halves, 100), found(&["text é"]));
        assert_eq!(read_anyhow(&frame(0x81, b"a\xc3"), 100).1, Some(Failed::NotUtf8));
    }

    #[test]
    fn what_is_not_utf8_is_found_with_its_first_wrong_byte() {
        // U+110000 is past the last character: its second byte shows it.
        let frame = frame(0x01, b"ab\xf4\x90\x80\x80cd");
        assert_eq!(read([&frame[..9]], 100), (vec![], None));
        assert_eq!(read([&frame[..10]], 100), (vec![], Some(Failed::NotUtf8)));
    }

    #[test]
    fn a_message_has_its_limit_however_it_comes() {
        let text = |length: usize| "x".repeat(length).into_bytes();
        assert_eq!(read(frame(0x81, &text(100)).chunks(7), 100).1, None);
        assert_eq!(read_anyhow(&frame(0x81, &text(101))[..2], 100).1, Some(Failed::TooLarge));
        let cut = |last| [frame(0x01, &text(60)), frame(0x00, &text(40)), frame(0x80, &text(last))].concat();
        assert_eq!(read_anyhow(&cut(0), 100).1, None);
        assert_eq!(read_anyhow(&cut(1), 100).1, Some(Failed::TooLarge));
        for length in [1 << 16, 1 << 32, 1 << 63, u64::MAX] {
            let stream = [&b"\x81\xff"[..], &length.to_be_bytes()].concat();
            assert_eq!(read_anyhow(&stream, 1 << 15), (vec![], Some(Failed::TooLarge)), "{length}");
        }
        // Not written in as few bytes as it could be.
        assert_eq!(
            read_anyhow(b"\x81\xfe\0\x01\0\0\0\0a\x81\xff\0\0\0\0\0\0\0\x01\0\0\0\0b", 9),
            found(&["text a", "text b"])
        );
    }

    #[test]
    fn what_no_client_may_send_is_refused() {
        for (stream, failed) in [
            (&b"\x81\x02{}"[..], Failed::Protocol),
            (b"\xc1", Failed::Protocol),
            (b"\xa1", Failed::Protocol),
            (b"\x91", Failed::Protocol),
            (b"\x80", Failed::Protocol),
            (b"\x83", Failed::Protocol),
            (b"\x8b", Failed::Protocol),
            (b"\x82", Failed::Binary),
            (b"\x02", Failed::Binary),
            (b"\x09", Failed::Protocol),
            (b"\x89\xfe", Failed::Protocol),
            (b"\x88\xff", Failed::Protocol),
        ] {
            assert_eq!(read_anyhow(stream, 100), (vec![], Some(failed)), "{stream:?}");
        }
        for next in [0x81, 0x01, 0x82] {
            let stream = [frame(0x01, b"a"), frame(next, b"b")].concat();
            assert_eq!(read_anyhow(&stream, 100), (vec![], Some(Failed::Protocol)), "{next}");
        }
    }

    #[test]
    fn a_close_frame_says_nothing_or_a_code_and_a_reason() {
        let close = |payload: &[u8]| read_anyhow(&frame(0x88, payload), 100);
        assert_eq!(close(b""), found(&["close None"]));
        assert_eq!(close(b"\x03\xe8"), found(&["close Some(1000)"]));
        assert_eq!(close(&[&b"\x03\xe9"[..], &[b'r'; 123]].concat()), found(&["close Some(1001)"]));
        assert_eq!(close(b"\x03").1, Some(Failed::Protocol));
        assert_eq!(close(b"\x03\xe8\xff").1, Some(Failed::NotUtf8));
        for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
            assert_eq!(close(&code.to_be_bytes()).1, Some(Failed::Protocol), "{code}");
        }
        for code in [1003_u16, 1007, 1014, 3000, 4999] {
            assert_eq!(close(&code.to_be_bytes()).1, None, "{code}");
        }
        let mut out = Vec::new();
        write_close(&mut out, code::RESTART);
        write_ping(&mut out);
        assert_eq!(out, b"\x88\x02\x03\xf4\x89\x00");
    }

    #[test]
    fn a_message_that_is_not_taken_is_found_again() {
        let stream = [frame(0x01, b"{\"a\""), frame(0x80, b":1}"), frame(0x81, b"{}")].concat();
        let mut socket = WebSocket::default();
        let taken = stream.len() - 8;
        for _ in 0..2 {
            assert_eq!(socket.next(&stream, 100), Ok(Found::Text { taken }));
        }
        let message = socket.take();
        assert_eq!(message, b"{\"a\":1}");
        socket.put_back(message, taken);
        assert_eq!(socket.next(&stream, 100), Ok(Found::Text { taken }));
        assert_eq!(socket.take(), b"{\"a\":1}");
        assert_eq!(socket.next(&stream[taken..], 100), Ok(Found::Text { taken: 8 }));
        assert_eq!((socket.take(), socket.message.capacity()), (b"{}".to_vec(), 0), "nothing is kept");
    }
}
