//! A connection to Redis that never waits: bytes out, and what it says in.

use std::io::{self, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use redis::{Cmd, ConnectionAddr, ConnectionInfo, RedisResult};
use socket2::{SockRef, TcpKeepalive};

use super::hearing::{Heard, Hearing};

const LINK: Token = Token(0);
/// What an empty buffer keeps, in bytes.
const SPARE: usize = 64 << 10;
/// Finds a dead peer while a question is under way nowhere; questions find it much earlier.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// One socket, in RESP2. It is registered edge-triggered: after an event, [`Link::next`] must be
/// called until it has no more.
pub(super) struct Link {
    stream: TcpStream,
    hearing: Hearing,
    out: Vec<u8>,
    /// How much of `out` is sent.
    sent: usize,
}

impl Link {
    /// Begins to connect to one of the addresses that the name stands for, another one at each
    /// attempt, and to log in. Whether that succeeds shows when it is read.
    ///
    /// # Errors
    /// The name stands for none, or the system has no more sockets.
    pub fn connect(info: &ConnectionInfo, attempt: u64, registry: &Registry) -> io::Result<Link> {
        let ConnectionAddr::Tcp(host, port) = info.addr() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // Blocks only on a name that no file of this machine knows, and only while Redis is away.
        let addresses: Vec<SocketAddr> = (host.as_str(), *port).to_socket_addrs()?.collect();
        let which = attempt.checked_rem(addresses.len() as u64).ok_or(io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect(addresses[which as usize])?;
        stream.set_nodelay(true)?;
        SockRef::from(&stream)
            .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(5)))?;
        registry.register(&mut stream, LINK, Interest::READABLE | Interest::WRITABLE)?;
        let mut link = Link { stream, hearing: Hearing::new(), out: Vec::new(), sent: 0 };
        let settings = info.redis_settings();
        if let Some(password) = settings.password() {
            link.send(redis::cmd("AUTH").arg(settings.username()).arg(password));
        }
        // No SELECT: channels belong to no database.
        Ok(link)
    }

    /// Queues a command.
    pub fn send(&mut self, command: &Cmd) {
        command.write_packed_command(&mut self.out);
    }

    /// Writes what is queued, as far as the socket takes it. An event tells when it takes more.
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

    /// What Redis says next; `None`: nothing more for now.
    pub fn next(&mut self) -> RedisResult<Option<Heard>> {
        self.hearing.next(&self.stream)
    }

    /// Whether anything was read since the last call.
    pub fn has_spoken(&mut self) -> bool {
        self.hearing.has_spoken()
    }
}
