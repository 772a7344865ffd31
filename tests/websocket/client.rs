//! A WebSocket client that is as strict as a browser about what it gets, and sends what it is told to.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::{Account, DEADLINE, login};

/// Behind the head of a request for a WebSocket, with the key of RFC 6455's example.
pub const UPGRADE: &str = "Host: chat.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const ACCEPT: &str = "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

pub const TEXT: u8 = 0x81;
pub const FIRST: u8 = 0x01;
pub const MORE: u8 = 0x00;
pub const LAST: u8 = 0x80;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

/// A frame as a client sends it.
pub fn frame(first: u8, payload: impl AsRef<[u8]>) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0xab, 0x7b, 0xf0];
    let payload = payload.as_ref();
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What a server says by HTTP before it closes.
#[track_caller]
pub fn http(address: SocketAddr, request: impl AsRef<[u8]>) -> String {
    let mut stream = TcpStream::connect(address).expect("a server");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request.as_ref()).expect("the server reads");
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("the server closes");
    String::from_utf8(reply).expect("UTF-8")
}

pub struct Browser {
    pub stream: TcpStream,
    input: Vec<u8>,
    next_seq: i64,
    replies: HashMap<i64, Value>,
    pushes: VecDeque<String>,
}

impl Browser {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Browser {
        Browser::begin(TcpStream::connect(address).expect("a server"), b"", b"")
    }

    /// A browser, with what comes before its request and right behind it.
    #[track_caller]
    pub fn begin(mut stream: TcpStream, before: &[u8], behind: &[u8]) -> Browser {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let head = format!("GET /ws HTTP/1.1\r\n{UPGRADE}\r\n");
        stream.write_all(&[before, head.as_bytes(), behind].concat()).expect("the server reads");
        let mut browser =
            Browser { stream, input: Vec::new(), next_seq: 1, replies: HashMap::new(), pushes: VecDeque::new() };
        let end = loop {
            match browser.input.windows(4).position(|window| window == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => browser.read(),
            }
        };
        let head = String::from_utf8(browser.input.drain(..end).collect()).expect("UTF-8");
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
        browser
    }

    #[track_caller]
    fn read(&mut self) {
        let mut buffer = [0; 65_536];
        let n = self.stream.read(&mut buffer).expect("the server writes");
        assert!(n > 0, "the stream has ended, behind {}", self.input.escape_ascii());
        self.input.extend_from_slice(&buffer[..n]);
    }

    #[track_caller]
    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Sends a text message.
    #[track_caller]
    pub fn send(&mut self, text: impl ToString) {
        self.send_raw(frame(TEXT, text.to_string()));
    }

    /// The next frame: its first byte, and what it holds.
    #[track_caller]
    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            if let Some((size, length)) = header(&self.input)
                && self.input.len() >= size + length
            {
                let first = self.input[0];
                let mut whole: Vec<u8> = self.input.drain(..size + length).collect();
                return (first, whole.split_off(size));
            }
            self.read();
        }
    }

    /// The next message.
    #[track_caller]
    pub fn text(&mut self) -> String {
        let (first, payload) = self.frame();
        let text = String::from_utf8(payload).expect("UTF-8");
        assert_eq!(first, TEXT, "{first:02x} {text:?}");
        text
    }

    #[track_caller]
    pub fn recv(&mut self) -> Value {
        serde_json::from_str(&self.text()).expect("JSON")
    }

    /// Sends a request with a `seq`, and waits for the reply to it.
    #[track_caller]
    pub fn ask(&mut self, mut request: Value) -> Value {
        let seq = self.next_seq;
        self.next_seq += 1;
        request["seq"] = seq.into();
        self.send(request);
        loop {
            if let Some(reply) = self.replies.remove(&seq) {
                return reply;
            }
            let text = self.text();
            let object: Value = serde_json::from_str(&text).expect("JSON");
            match object["seq"].as_i64().filter(|_| object["msgid"] != 6 && object["msgid"] != 10) {
                Some(seq) => _ = self.replies.insert(seq, object),
                None => self.pushes.push_back(text),
            }
        }
    }

    /// The next message that is no reply.
    #[track_caller]
    pub fn push(&mut self) -> String {
        self.pushes.pop_front().unwrap_or_else(|| self.text())
    }

    #[track_caller]
    pub fn login(&mut self, account: &Account) -> Value {
        let reply = self.ask(login(account));
        assert_eq!(reply["errno"], 0, "{reply}");
        reply
    }

    /// Gets a refusal of this number.
    #[track_caller]
    pub fn expect_error(&mut self, errno: i64) {
        let error = self.recv();
        assert_eq!((&error["msgid"], &error["errno"]), (&201.into(), &errno.into()), "{error}");
    }

    /// The server closes with this code, and then the connection.
    #[track_caller]
    pub fn expect_close(&mut self, code: u16) {
        let (first, payload) = self.frame();
        assert_eq!((first, &payload[..]), (CLOSE, &code.to_be_bytes()[..]), "{}", payload.escape_ascii());
        // A browser answers, and waits for the server to close.
        let _ = self.stream.write_all(&frame(CLOSE, code.to_be_bytes()));
        let mut rest = std::mem::take(&mut self.input);
        self.stream.read_to_end(&mut rest).expect("a clean end");
        assert!(rest.is_empty(), "behind the close frame: {}", rest.escape_ascii());
    }

    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

/// The sizes of a frame's header and of its payload. No server masks.
fn header(input: &[u8]) -> Option<(usize, usize)> {
    match *input.get(1)? {
        126 => Some((4, u16::from_be_bytes(*input.get(2..)?.first_chunk()?).into())),
        127 => Some((10, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize)),
        length @ 0..126 => Some((2, length.into())),
        masked => panic!("a server has masked: {masked:02x}"),
    }
}
