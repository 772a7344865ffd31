//! Clients beside those that are measured, which never log in: half-open ones, and slow senders. They show what such
//! clients cost the others.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::ensure;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::flags::Flags;
use crate::tally::Strangers;
use crate::target::{Endpoint, Target};
use crate::tls::Stream;
use crate::users;

/// The time between two bytes of a slow sender.
const BYTE: Duration = Duration::from_millis(200);
/// How soon one that the server has closed comes again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long all of them may take to connect.
const PATIENCE: Duration = Duration::from_secs(30);
const GLANCE: Duration = Duration::from_millis(20);
const PING: &[u8] = b"{\"msgid\":202}\n";
const HALF: &[u8] = b"{\"msgid\":1,\"id\":1,\"passw";

struct Stranger {
    server: Endpoint,
    stream: Option<Stream<TcpStream>>,
    is_connected: bool,
    /// What it sends at once, and what it sends byte by byte, over and over.
    first: &'static [u8],
    slowly: &'static [u8],
    sent: usize,
    /// When it sends its next byte, or comes again.
    next: Instant,
}

/// All of them, in one thread.
pub struct Company {
    strangers: Vec<Stranger>,
    poll: Poll,
    events: Events,
    told: Strangers,
}

impl Company {
    /// Connects all of them, if there are to be any.
    ///
    /// # Errors
    /// They cannot be connected.
    pub fn gather(flags: &Flags, target: &Target) -> anyhow::Result<Option<Company>> {
        let [half_open, slow] = flags.strangers();
        if half_open + slow == 0 {
            return Ok(None);
        }
        let now = Instant::now();
        let strangers = (0..half_open + slow).map(|n| {
            // Every other half-open one sends nothing at all.
            let (first, slowly): (&[u8], &[u8]) = match n {
                _ if n >= half_open => (b"", PING),
                _ if n % 2 == 1 => (HALF, b""),
                _ => (b"", b""),
            };
            let server = target.servers[n % target.servers.len()];
            // They do not all send at the same time.
            let next = now + BYTE * (n % 16) as u32 / 16;
            Stranger { server, stream: None, is_connected: false, first, slowly, sent: 0, next }
        });
        let mut company = Company {
            strangers: strangers.collect(),
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            told: Strangers { half_open: half_open as u64, slow: slow as u64, closed: 0 },
        };
        (0..company.strangers.len()).try_for_each(|n| company.dial(n))?;
        while company.strangers.iter().any(|stranger| !stranger.is_connected) && company.told.closed == 0 {
            ensure!(now.elapsed() < PATIENCE, "the clients of --half-open and --slow-senders cannot connect");
            company.look()?;
        }
        Ok(Some(company))
    }

    /// They stay until it is over.
    pub fn run(mut self, is_over: &AtomicBool) -> anyhow::Result<Strangers> {
        while !is_over.load(Relaxed) {
            self.look()?;
            let now = Instant::now();
            for n in 0..self.strangers.len() {
                if self.strangers[n].next <= now {
                    self.act(n, now)?;
                }
            }
        }
        Ok(self.told)
    }

    fn dial(&mut self, n: usize) -> anyhow::Result<()> {
        let stranger = &mut self.strangers[n];
        let mut stream = users::dial(stranger.server)?;
        self.poll.registry().register(&mut stream.socket, Token(n), Interest::READABLE | Interest::WRITABLE)?;
        (stranger.stream, stranger.is_connected, stranger.sent) = (Some(stream), false, 0);
        Ok(())
    }

    /// Sends the next byte, or comes again.
    fn act(&mut self, n: usize, now: Instant) -> anyhow::Result<()> {
        let stranger = &mut self.strangers[n];
        let Some(stream) = &mut stranger.stream else { return self.dial(n) };
        stranger.next = now + BYTE;
        if !stranger.slowly.is_empty() && stranger.is_connected {
            let at = stranger.sent % stranger.slowly.len();
            match stream.write(&stranger.slowly[at..=at]) {
                Ok(length) => stranger.sent += length,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(_) => self.closed(n),
            }
        }
        Ok(())
    }

    /// Looks what has come. It is of no interest, unless it is the end.
    fn look(&mut self) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(GLANCE)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            done => done?,
        }
        let those: Vec<usize> = self.events.iter().map(|event| event.token().0).collect();
        for n in those {
            let stranger = &mut self.strangers[n];
            let Some(stream) = &mut stranger.stream else { continue };
            if !stranger.is_connected && stream.socket.peer_addr().is_ok() {
                stranger.is_connected = true;
                if !stranger.first.is_empty() {
                    // So short a text is written whole; if the connection is gone, reading says so.
                    let _ = stream.write(stranger.first);
                }
            }
            let mut buffer = [0; 1024];
            let is_closed = loop {
                match stream.read(&mut buffer) {
                    Ok(0) => break true,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                        break false;
                    }
                    Err(error) if error.kind() != ErrorKind::Interrupted => break true,
                    _ => {}
                }
            };
            if is_closed {
                self.closed(n);
            }
        }
        Ok(())
    }

    fn closed(&mut self, n: usize) {
        self.told.closed += 1;
        self.strangers[n].stream = None;
        self.strangers[n].next = Instant::now() + AGAIN;
    }
}
