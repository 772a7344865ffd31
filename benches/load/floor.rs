//! The floor: the least that a relay can do. It reads, finds `toid` by a byte search, and writes
//! once for each destination and turn. It parses nothing and checks nothing, so what it costs is
//! what the kernel asks for. It believes that every object ends with LF, as the generator's do.
//!
//! A message in a turn of its own costs one recv and one send, and a share of an epoll_wait.

use std::io::{self, ErrorKind, Read, Write};

use memchr::{memchr_iter, memmem};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::bytes::{msgid, number, number_after};

const LISTENER: Token = Token(usize::MAX);

struct Connection {
    stream: TcpStream,
    /// The beginning of an object whose end has not come yet.
    rest: Vec<u8>,
    output: Vec<u8>,
}

struct Relay {
    /// The connections by their tokens. A connection that has ended leaves a gap.
    connections: Vec<Option<Connection>>,
    /// For each user id less 1, the token of the connection that logged in last.
    homes: Vec<usize>,
    /// The tokens of connections with output that leaves at the end of the turn.
    dirty: Vec<usize>,
    toid: memmem::Finder<'static>,
}

/// Serves until the process is killed. Its first line of output is its port.
pub fn run() -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("{}", listener.local_addr()?.port());
    let toid = memmem::Finder::new(b"\"toid\":");
    let mut relay = Relay { connections: Vec::new(), homes: Vec::new(), dirty: Vec::new(), toid };
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            done => done?,
        }
        for event in &events {
            let token = event.token();
            if token == LISTENER {
                relay.accept(&listener, &poll)?;
                continue;
            }
            // What a full socket had left over; nearly always there is nothing.
            if event.is_writable() {
                relay.flush(token.0);
            }
            if event.is_readable() {
                relay.read(token.0, &mut buffer);
            }
        }
        for n in 0..relay.dirty.len() {
            relay.flush(relay.dirty[n]);
        }
        relay.dirty.clear();
    }
}

impl Relay {
    fn accept(&mut self, listener: &TcpListener, poll: &Poll) -> io::Result<()> {
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_nodelay(true)?;
            let token = Token(self.connections.len());
            poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
            self.connections.push(Some(Connection { stream, rest: Vec::new(), output: Vec::new() }));
        }
        Ok(())
    }

    fn read(&mut self, token: usize, buffer: &mut [u8]) {
        while let Some(connection) = &mut self.connections[token] {
            let length = match connection.stream.read(buffer) {
                Ok(length) if length > 0 => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => {
                    self.connections[token] = None;
                    return;
                }
            };
            if connection.rest.is_empty() {
                let used = self.take(token, &buffer[..length]);
                self.keep(token, &buffer[used..length]);
            } else {
                let mut input = std::mem::take(&mut connection.rest);
                input.extend_from_slice(&buffer[..length]);
                let used = self.take(token, &input);
                self.keep(token, &input[used..]);
            }
            // A short read has emptied the socket: what comes later is a new edge.
            if length < buffer.len() {
                return;
            }
        }
    }

    fn keep(&mut self, token: usize, rest: &[u8]) {
        if let Some(connection) = &mut self.connections[token] {
            connection.rest.extend_from_slice(rest);
        }
    }

    /// Handles the whole objects in `input`; returns how many bytes they were.
    fn take(&mut self, token: usize, input: &[u8]) -> usize {
        let mut start = 0;
        for end in memchr_iter(b'\n', input) {
            let line = &input[start..=end];
            start = end + 1;
            let Some(toid) = self.toid.find(line) else {
                self.admit(token, line);
                continue;
            };
            if let Some((id, _)) = number(&line[toid + self.toid.needle().len()..])
                && let Some(&home) = self.homes.get((id as usize).wrapping_sub(1))
            {
                self.send(home, line);
            }
        }
        start
    }

    /// Registers or logs in every client that asks.
    fn admit(&mut self, token: usize, line: &[u8]) {
        if msgid(line) == Some(4) {
            self.homes.push(token);
            let id = self.homes.len();
            self.send(token, format!("{{\"msgid\":5,\"errno\":0,\"id\":{id}}}\n").as_bytes());
        } else if let Some(id) = number_after(line, b"\"id\":") {
            self.send(token, format!("{{\"msgid\":2,\"errno\":0,\"id\":{id}}}\n").as_bytes());
        }
    }

    fn send(&mut self, token: usize, line: &[u8]) {
        if let Some(connection) = &mut self.connections[token] {
            if connection.output.is_empty() {
                self.dirty.push(token);
            }
            connection.output.extend_from_slice(line);
        }
    }

    fn flush(&mut self, token: usize) {
        let Some(connection) = &mut self.connections[token] else { return };
        while !connection.output.is_empty() {
            match connection.stream.write(&connection.output) {
                Ok(length) if length == connection.output.len() => connection.output.clear(),
                Ok(length) => drop(connection.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.connections[token] = None;
                    return;
                }
            }
        }
    }
}
