//! What `--ws` puts around objects: the client's side of a WebSocket.

use std::io::{Read, Write};
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use memchr::memmem;

use crate::bytes::Piece;
use crate::tally::sample;

/// In the first byte of a frame: the last of its message; the opcode of text. In the second: it is masked.
const LAST: u8 = 0x80;
const OPCODE: u8 = 0x0f;
const TEXT: u8 = 1;
const MASKED: u8 = 0x80;
/// The server's answer is shorter.
const MAX_HEAD: usize = 8192;

/// What asks for a WebSocket.
pub fn request(address: SocketAddr) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// The length of the server's answer, once it is whole.
///
/// # Errors
/// It is no yes.
pub fn answer(input: &[u8]) -> anyhow::Result<Option<usize>> {
    let end = memmem::find(input, b"\r\n\r\n").map(|at| at + 4);
    let is_yes = if end.is_some() { input.starts_with(b"HTTP/1.1 101 ") } else { input.len() < MAX_HEAD };
    ensure!(is_yes, "{}", sample(input));
    Ok(end)
}

/// Asks for a WebSocket, and returns what has come behind the server's answer.
pub fn open(stream: &mut (impl Read + Write), address: SocketAddr) -> anyhow::Result<Vec<u8>> {
    stream.write_all(request(address).as_bytes())?;
    let mut input = Vec::new();
    loop {
        if let Some(end) = answer(&input).with_context(|| format!("no WebSocket at {address}"))? {
            return Ok(input.split_off(end));
        }
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).with_context(|| format!("no WebSocket at {address}"))?;
        ensure!(length > 0, "no WebSocket at {address}: it closes the connection");
        input.extend_from_slice(&buffer[..length]);
    }
}

/// What stands before an object of this length. Its mask changes nothing: the server has the same work with it, and the
/// generator none.
pub fn begin(out: &mut Vec<u8>, length: usize) {
    out.push(LAST | TEXT);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(length @ ..126), _) => out.push(MASKED | length),
        (_, Ok(length)) => {
            out.push(MASKED | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
}

/// The object in the first frame; frames that hold none are skipped.
pub fn next(input: &[u8]) -> Piece {
    let mut at = 0;
    while let Some((header, length)) = header(&input[at..]) {
        let Some(end) = (at + header).checked_add(length).filter(|end| *end <= input.len()) else { break };
        if input[at] & OPCODE == TEXT {
            return Piece::Whole { start: at + header, end };
        }
        at = end;
    }
    Piece::Partial { skip: at }
}

/// The lengths of a frame's header and of what it holds; `None`: the header is not whole.
fn header(input: &[u8]) -> Option<(usize, usize)> {
    Some(match input.get(1)? & !MASKED {
        126 => (4, u16::from_be_bytes(*input.get(2..)?.first_chunk()?).into()),
        127 => (10, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize),
        length => (2, length.into()),
    })
}
