use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use chat_server::wire::{Split, Splitter};
use mio::net::TcpStream;
use mio::{Interest, Poll, Token};
use serde_json::Value;

/// Larger than any login reply.
const MAX_OBJECT: usize = 64 << 20;
/// What is listened to is there at once, stopped or not.
const CONNECT: Duration = Duration::from_secs(1);

/// A connection of a player. It does not block, and its end is no failure.
pub struct Line {
    pub no: u32,
    pub node: usize,
    /// It has had a session, and another one has the account by now.
    pub replaced: Option<Instant>,
    /// The client's half of the connection has been closed.
    pub finished: bool,
    /// There is nothing more to come.
    pub ended: bool,
    stream: TcpStream,
    input: Vec<u8>,
    splitter: Splitter,
}

impl Line {
    pub fn connect(no: u32, node: usize, address: SocketAddr, poll: &Poll) -> Option<Line> {
        let stream = std::net::TcpStream::connect_timeout(&address, CONNECT).ok()?;
        // A connection to a port without a listener may be connected to itself.
        if stream.local_addr().ok()? == address {
            return None;
        }
        stream.set_nodelay(true).ok()?;
        stream.set_nonblocking(true).ok()?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(no as usize), Interest::READABLE).ok()?;
        let (input, splitter) = (Vec::new(), Splitter::default());
        Some(Line { no, node, replaced: None, finished: false, ended: false, stream, input, splitter })
    }

    /// Sends an object. A failure is noticed when the line is read.
    pub fn send(&mut self, object: &Value) {
        let _ = self.stream.write_all(format!("{object}\n").as_bytes());
    }

    pub fn finish(&mut self) {
        self.finished = true;
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Takes all that is there.
    pub fn read(&mut self) {
        let mut chunk = [0; 16 * 1024];
        while !self.ended {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(read) => self.input.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.ended = true,
            }
        }
    }

    /// The objects in what was taken.
    pub fn objects(&mut self) -> Vec<Value> {
        let (mut at, mut objects) = (0, Vec::new());
        loop {
            match self.splitter.next(&self.input[at..], MAX_OBJECT).expect("the server writes objects") {
                Split::Object { start, end } => {
                    let object = &self.input[at + start..at + end];
                    objects.push(serde_json::from_slice(object).expect("the server writes JSON"));
                    at += end;
                }
                Split::Partial { skip } => {
                    self.input.drain(..at + skip);
                    return objects;
                }
            }
        }
    }
}
