//! A connection to Redis that never waits: bytes in, values out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use redis::{Cmd, ConnectionAddr, ConnectionInfo, Parser, RedisResult, Value};
use socket2::{SockRef, TcpKeepalive};

const LINK: Token = Token(0);
/// The largest value that is read; Redis's own bound for a string is 512 MiB.
const MAX_VALUE: usize = 64 << 20;
/// What an empty buffer keeps, in bytes.
const SPARE: usize = 64 << 10;
/// Finds a dead peer while a question is under way nowhere; questions find it much earlier.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// One socket, in RESP2. It is registered edge-triggered: after an event, [`Link::next`] must be
/// called until it has no more.
pub(super) struct Link {
    stream: TcpStream,
    parser: Parser,
    /// What of the value that is being read may still come, in bytes.
    left: usize,
    /// Something was read since this was last asked.
    heard: bool,
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
        let mut link = Link { stream, parser: Parser::new(), left: MAX_VALUE, heard: false, out: Vec::new(), sent: 0 };
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

    /// The next value; `None`: no more for now.
    pub fn next(&mut self) -> RedisResult<Option<Value>> {
        let source = Source { stream: &self.stream, left: &mut self.left, heard: &mut self.heard };
        match self.parser.parse_value(source) {
            Ok(value) => {
                self.left = MAX_VALUE;
                Ok(Some(value))
            }
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether anything was read since the last call.
    pub fn has_spoken(&mut self) -> bool {
        std::mem::take(&mut self.heard)
    }
}

/// What the parser reads from.
struct Source<'a, S> {
    stream: S,
    left: &'a mut usize,
    heard: &'a mut bool,
}

impl<S: Read> Read for Source<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(n) if n > *self.left => return Err(io::Error::other("a value is larger than 64 MiB")),
                Ok(n) => {
                    *self.left -= n;
                    *self.heard |= n > 0;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has given up: to the parser's user that must not look like WouldBlock.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(io::Error::other(error)),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in portions, with `WouldBlock` between them.
    struct Portions<'a> {
        rest: &'a [u8],
        /// Where the next gap is, as long as it is not behind.
        gap: usize,
    }

    impl Read for Portions<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.gap == 0 || self.rest.is_empty() {
                self.gap = usize::MAX;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = buffer.len().min(self.gap).min(self.rest.len());
            buffer[..n].copy_from_slice(&self.rest[..n]);
            self.rest = &self.rest[n..];
            self.gap -= n;
            Ok(n)
        }
    }

    const STREAM: &[u8] = b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$10\r\nchat:nodes\r\n:1\r\n\
        *3\r\n$7\r\nmessage\r\n$2\r\n17\r\n$8\r\n{}\r\n\0\r\n$\r\n-ERR no such thing\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n";

    fn values(mut source: Portions, parser: &mut Parser) -> Vec<Value> {
        let (mut left, mut heard, mut values) = (MAX_VALUE, false, Vec::new());
        loop {
            match parser.parse_value(Source { stream: &mut source, left: &mut left, heard: &mut heard }) {
                Ok(value) => values.push(value),
                Err(error) if error.is_timeout() && source.rest.is_empty() => return values,
                Err(error) => assert!(error.is_timeout(), "{error}"),
            }
        }
    }

    #[test]
    fn a_value_may_be_cut_at_any_byte() {
        let whole = values(Portions { rest: STREAM, gap: usize::MAX }, &mut Parser::new());
        assert_eq!(whole.len(), 5);
        let text = |text: &str| Value::BulkString(text.into());
        assert_eq!(whole[2], Value::Array(vec![text("message"), text("17"), text("{}\r\n\0\r\n$")]));
        for gap in 0..STREAM.len() {
            let cut = values(Portions { rest: STREAM, gap }, &mut Parser::new());
            assert_eq!(cut, whole, "cut at {gap}");
        }
    }

    #[test]
    fn a_byte_at_a_time_is_as_good_as_all_at_once() {
        let mut parser = Parser::new();
        let one_by_one: Vec<Value> =
            STREAM.chunks(1).flat_map(|rest| values(Portions { rest, gap: usize::MAX }, &mut parser)).collect();
        assert_eq!(one_by_one, values(Portions { rest: STREAM, gap: usize::MAX }, &mut Parser::new()));
    }

    #[test]
    fn what_the_kernel_has_given_up_is_not_taken_for_a_pause() {
        struct GivenUp;
        impl Read for GivenUp {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::TimedOut.into())
            }
        }
        let source = Source { stream: GivenUp, left: &mut 100, heard: &mut false };
        assert!(!Parser::new().parse_value(source).unwrap_err().is_timeout());
    }

    #[test]
    fn a_value_past_the_bound_is_not_read_to_its_end() {
        let source = Source { stream: STREAM, left: &mut 20, heard: &mut false };
        let error = Parser::new().parse_value(source).unwrap_err();
        assert!(error.is_io_error() && !error.is_timeout(), "{error}");
    }
}
