//! A non-blocking connection to Redis: commands out, replies and messages in.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use redis::{Cmd, RedisResult};
use socket2::{SockRef, TcpKeepalive};

use super::hearing::{Heard, Hearing};

const LINK: Token = Token(0);
/// The capacity that an empty buffer keeps, in bytes.
const SPARE: usize = 64 << 10;
/// Detects a dead peer while no question is outstanding; a question detects it much earlier.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// One socket, in RESP2. It is registered edge-triggered: after an event, [`Link::next`] must be
/// called until it has no more.
pub(super) struct Link {
    stream: TcpStream,
    hearing: Hearing,
    out: Vec<u8>,
    /// The number of bytes of `out` that are sent.
    sent: usize,
}

impl Link {
    /// Begins to connect, and to log in if there are credentials: a user name and a password. Reading shows whether
    /// that succeeds.
    ///
    /// # Errors
    /// The system has no more sockets.
    pub fn connect(
        address: SocketAddr,
        credentials: Option<(Option<&str>, &str)>,
        hearing: Hearing,
        registry: &Registry,
    ) -> io::Result<Link> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream)
            .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(5)))?;
        registry.register(&mut stream, LINK, Interest::READABLE | Interest::WRITABLE)?;
        let mut link = Link { stream, hearing, out: Vec::new(), sent: 0 };
        if let Some((user, password)) = credentials {
            link.send(redis::cmd("AUTH").arg(user).arg(password));
        }
        // No SELECT: channels belong to no database.
        Ok(link)
    }

    /// Queues a command.
    pub fn send(&mut self, command: &Cmd) {
        command.write_packed_command(&mut self.out);
    }

    /// Writes what is queued, as far as the socket takes it. An event follows when it takes more.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out.shrink_to(SPARE);
        self.sent = 0;
        Ok(())
    }

    /// What Redis sends next; `None`: nothing more for now.
    ///
    /// # Errors
    /// See [`Hearing::next`].
    pub fn next(&mut self) -> RedisResult<Option<Heard>> {
        self.hearing.next(&self.stream)
    }

    /// Whether anything was read since the last call.
    pub fn has_spoken(&mut self) -> bool {
        self.hearing.has_spoken()
    }
}
