//! However the stream from Redis is cut, it is read the same; what is no RESP2 breaks the connection or is read
//! as something, and does nothing else; and what our nodes write to each other is what is read.
//!
//! The input is a list of chunk sizes, ended by 0 or by the 8th, and then the stream.

use std::io::{self, Read};

use chat_server::bus::redis::hearing::{Heard, Hearing};
use chat_server::bus::{Envelope, envelope};
use chat_server::home::Homes;
use chat_server::wire::Request;

const MAX_SIZES: usize = 8;

/// A socket: chunks, and between them `WouldBlock`.
struct Socket<'a> {
    rest: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, u8>>,
    chunk: usize,
}

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.chunk == 0 || self.rest.is_empty() {
            self.chunk = self.sizes.next().map_or(usize::MAX, |size| usize::from(*size));
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = buffer.len().min(self.chunk).min(self.rest.len());
        let (chunk, rest) = self.rest.split_at(length);
        buffer[..length].copy_from_slice(chunk);
        (self.rest, self.chunk) = (rest, self.chunk - length);
        Ok(length)
    }
}

/// All that is read, as text, and whether the connection broke.
fn hear(stream: &[u8], sizes: &[u8]) -> (Vec<String>, bool) {
    let mut socket = Socket { rest: stream, sizes: sizes.iter().cycle(), chunk: 0 };
    let (mut hearing, mut all) = (Hearing::default(), Vec::new());
    loop {
        match hearing.next(&mut socket) {
            Ok(Some(heard)) => {
                check(&heard);
                all.push(format!("{heard:?}"));
            }
            Ok(None) if socket.rest.is_empty() => return (all, false),
            Ok(None) => {}
            Err(_) => return (all, true),
        }
    }
}

fn check(heard: &Heard) {
    match heard {
        // The service forwards it if it parses.
        Heard::Chat(_, chat) => _ = Request::parse(chat),
        Heard::Payload { payload, .. } => {
            let mut written = Vec::new();
            envelope::begin(2, payload.from, payload.line, &mut written);
            payload.envelopes.iter().for_each(|envelope| envelope::append(envelope, &mut written));
            let again = envelope::decode(&written).expect("what was written can be read");
            assert_eq!((again.from, again.line, &again.envelopes), (payload.from, payload.line, &payload.envelopes));
            payload.envelopes.iter().for_each(check_split);
        }
        _ => {}
    }
}

/// Each part goes to a shard that there is, and no user is left out or addressed twice.
fn check_split(envelope: &Envelope) {
    let homes = Homes::new(7, 3);
    let users = |envelope: &Envelope| match envelope {
        Envelope::Chat { to, .. } => to.len(),
        Envelope::Answer(answers) => answers.len(),
        // These are for the whole node, and for no shard.
        Envelope::Dead { .. } | Envelope::Confirmed { .. } | Envelope::Beat { .. } => 0,
        _ => 1,
    };
    let parts = envelope.clone().split(&homes);
    assert!(parts.iter().all(|(shard, _)| *shard < homes.reactors()));
    let sum: usize = parts.iter().map(|(_, part)| users(part)).sum();
    assert_eq!(sum, users(envelope));
}

/// The length of the RESP2 value at the front of `stream`; `Some(None)`: it is not whole yet; `None`: it is
/// none. Only whole lines are looked at.
fn value(stream: &[u8], depth: usize) -> Option<Option<usize>> {
    let Some((kind, rest)) = stream.split_first() else { return Some(None) };
    if !b"+-:$*".contains(kind) {
        return None;
    }
    let Some(end) = stream.windows(2).position(|two| two == b"\r\n") else { return Some(None) };
    let line = std::str::from_utf8(&rest[..end.checked_sub(1)?]).ok()?;
    let mut length = end + 2;
    match kind {
        b'+' | b'-' => {}
        b':' => _ = line.parse::<i64>().ok()?,
        b'$' => {
            let size: usize = line.parse().ok().filter(|size| *size < 1000)?;
            length += size + 2;
            if stream.len() < length {
                return Some(None);
            }
            if &stream[length - 2..length] != b"\r\n" {
                return None;
            }
        }
        b'*' if depth < 8 => {
            for _ in 0..line.parse::<usize>().ok().filter(|items| *items < 100)? {
                match value(&stream[length..], depth + 1)? {
                    Some(item) => length += item,
                    None => return Some(None),
                }
            }
        }
        _ => return None,
    }
    Some(Some(length))
}

/// Whether that is RESP2 from its start to its end.
fn is_resp2(mut stream: &[u8]) -> bool {
    loop {
        match value(stream, 0) {
            Some(Some(length)) => stream = &stream[length..],
            Some(None) => return true,
            None => return false,
        }
    }
}

pub fn run(data: &[u8]) {
    let listed = data.iter().take(MAX_SIZES).take_while(|&&size| size != 0).count();
    let (sizes, rest) = data.split_at(listed);
    let stream = rest.strip_prefix(&[0]).unwrap_or(rest);
    let (whole, cut, bytes) = (hear(stream, &[]), hear(stream, sizes), hear(stream, &[1]));
    // How the parser fails on anything else may depend on the cuts.
    if is_resp2(stream) {
        assert_eq!(cut, whole);
        assert_eq!(bytes, whole);
    }
}
