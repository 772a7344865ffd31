//! Acceptor thread: accepts, and hands each socket to the next reactor in turn.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::address::{Addresses, canonical};
use super::counts::AcceptorCounts;
use super::id::ListenerId;
use super::mailbox::{Mail, Mailbox, WAKER};
use super::memory::{self, Crowd};
use super::slot::{CommonPlace, ConnectionSlot};
use super::types::Types;

/// The number of clients that are accepted from each listener in a turn.
const ACCEPT_BUDGET: usize = 64;
/// The longest sleep.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// The pause after a failure that only time can mend, such as a lack of descriptors.
const RETRY: Duration = Duration::from_millis(500);
/// How often the acceptor checks whether a crowd has left.
const LOOK: Duration = Duration::from_secs(1);
/// The number of connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;
/// What the kernel buffers for a client, in bytes: which of them a client that died has received is not known.
const SEND_BUFFER: usize = 64 * 1024;
/// After this time of silence a client is probed, and again in steps of...
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_STEP: Duration = Duration::from_secs(3);
/// ...until this, from the last that was heard of it: five probes may be lost. It also bounds how long sent bytes may stay
/// unacknowledged. With a first probe later than this, Linux would end the connection as soon as a single one is lost.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Binds a listening socket. Its options are those of every accepted socket, which inherits them:
/// no delay, keep-alive after 15 s, 30 s until unanswered probes or unacknowledged data end the connection, a
/// send buffer of 64 KiB, and urgent bytes in line, as any others. `[::]` means all addresses of both
/// families, whatever the system's default for such a socket is.
///
/// # Errors
/// What the operating system says, such as an address in use.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_STEP))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_out_of_band_inline(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The same at a port of all addresses of this machine: of both families, or of IPv4 alone where the
/// system has no IPv6.
///
/// # Errors
/// As those of [`listen`].
pub fn listen_everywhere(port: u16) -> io::Result<std::net::TcpListener> {
    match listen(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        // No such sockets, none for both families, or no such addresses.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ENOPROTOOPT | libc::EADDRNOTAVAIL)
            ) =>
        {
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        result => result,
    }
}

/// How many clients are admitted, and what the others receive.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Connections at a time, over all reactors.
    pub max: usize,
    /// What a client gets if all places are taken, before its connection is closed.
    pub refusal: Vec<u8>,
    /// The limit on connections of one address at a time, and what a client gets whose address has as many.
    /// `None`: there is no such limit, or the addresses are not known yet.
    pub addresses: Option<(Arc<Addresses>, Vec<u8>)>,
}

/// Why a client is not let in.
enum NoPlace {
    Anywhere,
    ForItsAddress,
}

/// Why the acceptor does not accept although clients may wait. Each state names what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AcceptState {
    /// The listener was drained; its next event.
    Waiting,
    /// The budget of a turn was used up; the next turn.
    Ready,
    /// The system lacks something; this moment. All listeners are deregistered until then.
    Failed { until: Instant },
}

/// A listening socket, of which the token is its index.
struct Listener {
    id: ListenerId,
    socket: TcpListener,
    state: AcceptState,
}

impl Listener {
    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut self.socket, Token(self.id.index()), Interest::READABLE)
    }
}

/// The acceptor: its own Poll and the listeners. Client sockets are never registered here.
pub struct Acceptor<H: Types> {
    poll: Poll,
    listeners: Vec<Listener>,
    /// The listener whose turn is next: it need not be the first one, where a failure has cut a turn short.
    turn: usize,
    mailboxes: Arc<[Mailbox<Mail<H>>]>,
    next: usize,
    /// Referred to by every open connection, over all reactors, and by nothing else.
    common: CommonPlace,
    admission: Admission,
    stop: Arc<AtomicBool>,
    /// What is lacking now has been logged.
    complained: bool,
    crowd: Crowd,
    /// When it was last checked whether a crowd has left.
    looked: Instant,
    counts: Arc<AcceptorCounts>,
}

/// Stops an acceptor from another thread.
#[derive(Clone)]
pub struct AcceptorHandle {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl AcceptorHandle {
    /// Ends the acceptor's loop and closes the listeners.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // At worst it looks by itself, within its longest sleep.
        let _ = self.waker.wake();
    }
}

impl<H: Types> Acceptor<H> {
    /// An acceptor on these listeners, which it names by their order.
    ///
    /// # Errors
    /// The system has no more descriptors, or there are more than 256 listeners.
    pub fn new(
        listeners: impl IntoIterator<Item = std::net::TcpListener>,
        mailboxes: Arc<[Mailbox<Mail<H>>]>,
        admission: Admission,
    ) -> io::Result<(Self, AcceptorHandle)> {
        let poll = Poll::new()?;
        let listener = |(index, socket)| -> io::Result<Listener> {
            let id = ListenerId(u8::try_from(index).map_err(io::Error::other)?);
            let mut listener = Listener { id, socket: TcpListener::from_std(socket), state: AcceptState::Ready };
            listener.register(poll.registry())?;
            Ok(listener)
        };
        let listeners = listeners.into_iter().enumerate().map(listener).collect::<io::Result<_>>()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKER)?);
        let stop = Arc::new(AtomicBool::new(false));
        let handle = AcceptorHandle { stop: Arc::clone(&stop), waker };
        let acceptor = Acceptor {
            poll,
            listeners,
            turn: 0,
            mailboxes,
            next: 0,
            common: CommonPlace::default(),
            admission,
            stop,
            complained: false,
            crowd: Crowd::default(),
            looked: Instant::now(),
            counts: Arc::default(),
        };
        Ok((acceptor, handle))
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<AcceptorCounts> {
        Arc::clone(&self.counts)
    }

    /// Accepts until stopped.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(16);
        while !self.stop.load(Ordering::SeqCst) {
            let timeouts = self.listeners.iter().map(|listener| match listener.state {
                AcceptState::Ready => Duration::ZERO,
                AcceptState::Waiting => MAX_SLEEP,
                AcceptState::Failed { until } => until.saturating_duration_since(Instant::now()),
            });
            match self.poll.poll(&mut events, Some(timeouts.min().unwrap_or(MAX_SLEEP))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                // The waker has no listener.
                if let Some(listener) = self.listeners.get_mut(event.token().0)
                    && listener.state == AcceptState::Waiting
                {
                    listener.state = AcceptState::Ready;
                }
            }
            let now = Instant::now();
            self.resume(now)?;
            self.tidy(now);
            self.accept_in_turn()?;
        }
        Ok(())
    }

    /// Gives memory back, which takes time that a reactor does not have. It is checked once a second.
    fn tidy(&mut self, now: Instant) {
        if now - self.looked >= LOOK {
            self.looked = now;
            if self.crowd.has_left(self.common.connections()) {
                memory::give_back();
            }
        }
    }

    /// Ends a state whose cause is gone.
    fn resume(&mut self, now: Instant) -> io::Result<()> {
        for listener in &mut self.listeners {
            match listener.state {
                AcceptState::Failed { until } if until <= now => {
                    listener.register(self.poll.registry())?;
                    listener.state = AcceptState::Ready;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets each listener use its budget. What one of them fails for is lacking for all.
    fn accept_in_turn(&mut self) -> io::Result<()> {
        for _ in 0..self.listeners.len() {
            let index = self.turn;
            self.turn = (index + 1) % self.listeners.len();
            if self.listeners[index].state != AcceptState::Ready {
                continue;
            }
            let state = self.accept_some(index);
            if let AcceptState::Failed { .. } = state {
                self.counts.pauses.add(1);
                for listener in &mut self.listeners {
                    self.poll.registry().deregister(&mut listener.socket)?;
                    listener.state = state;
                }
                return Ok(());
            }
            self.listeners[index].state = state;
        }
        Ok(())
    }

    fn accept_some(&mut self, index: usize) -> AcceptState {
        for _ in 0..ACCEPT_BUDGET {
            let Listener { id, socket, .. } = &self.listeners[index];
            match socket.accept() {
                Ok((stream, peer)) => {
                    let peer = canonical(peer);
                    match self.admit(peer) {
                        Ok(slot) => {
                            self.complained = false;
                            self.mailboxes[self.next].post(Mail::Connection(stream, peer, *id, slot));
                            self.next = (self.next + 1) % self.mailboxes.len();
                        }
                        Err(why) => self.refuse(stream, peer, why),
                    }
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return AcceptState::Waiting,
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
                    _ => {
                        if !std::mem::replace(&mut self.complained, true) {
                            log::warn!("cannot accept: {error}; trying again every {} ms", RETRY.as_millis());
                        }
                        return AcceptState::Failed { until: Instant::now() + RETRY };
                    }
                },
            }
        }
        AcceptState::Ready
    }

    fn admit(&self, peer: SocketAddr) -> Result<ConnectionSlot, NoPlace> {
        if self.common.connections() >= self.admission.max {
            return Err(NoPlace::Anywhere);
        }
        let Some((addresses, _)) = &self.admission.addresses else { return Ok(self.common.slot(None)) };
        let of_address = addresses.admit(peer.ip()).ok_or(NoPlace::ForItsAddress)?;
        Ok(self.common.slot(Some(of_address)))
    }

    /// Tells a client that there is no place for it. A new socket's buffer has room for that, and
    /// should it fail, the client sees the connection end, which says the same.
    fn refuse(&mut self, mut stream: TcpStream, peer: SocketAddr, why: NoPlace) {
        let refusal = match (why, &self.admission.addresses) {
            (NoPlace::ForItsAddress, Some((_, refusal))) => {
                self.counts.refused_for_address.add(1);
                log::debug!("{peer} is refused: its address has too many connections");
                refusal
            }
            _ => {
                self.counts.refused.add(1);
                // Where no client is to be admitted, the reason has been logged before.
                if self.admission.max > 0 && !std::mem::replace(&mut self.complained, true) {
                    log::warn!("all {} connections are taken; {peer} and others are refused", self.admission.max);
                }
                &self.admission.refusal
            }
        };
        let _ = stream.write(refusal);
        let _ = stream.shutdown(Shutdown::Write);
    }
}
