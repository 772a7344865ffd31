//! One client: a connection of this shard, and what its requests wait for.

use std::net::SocketAddr;
use std::time::Duration;

use super::attempts::Attempt;
use super::jobs::Login;
use super::letters::Timer;
use super::limits::Tally;
use super::reason::Reason;
use super::receipts::SessionId;
use super::{Effect, Shard};
use crate::reactor::{ConnId, canonical};
use crate::store::UserId;
use crate::wire::proxy::BadHeader;
use crate::wire::{Errno, FramingMirror, ProxyHeader, Refusal, Request, Splitter, msgid, reply};

/// How soon a timer looks again if it has found the client busy.
const LATER: Duration = Duration::from_secs(1);

/// A connection, as the service sees it.
#[derive(Debug)]
pub(super) struct Client {
    /// The client's own address, once the PROXY header of a proxy has told it.
    pub peer: SocketAddr,
    /// It comes from a proxy, whose header must be read first.
    pub header_due: bool,
    pub splitter: Splitter,
    pub framing: FramingMirror,
    /// The user who is logged in; a pointer, since many connections never have one.
    pub user: Option<Box<LoggedIn>>,
    /// The user who was logged in and whose session is still ending.
    pub leaving: Option<UserId>,
    /// Requests that are not settled: replies owed, and chats whose fate is open.
    pub pending: u32,
    /// Changes that its requests have made to what later ones read, and that are not settled: to
    /// friends, to groups, and to the users who are online.
    pub changes: u32,
    /// How many of those changes are joins of groups.
    pub joins: u32,
    /// Why its input waits.
    pub holds: Holds,
    /// The login or the registration; a pointer, since it is short.
    pub attempt: Option<Box<Attempt>>,
    /// It has finished sending, and what it sent last is still on its way.
    pub half_closed: bool,
    /// It has used `seq`, so it is no C++ client.
    pub uses_seq: bool,
    /// It has sent a PING or a PONG.
    pub knows_ping: bool,
    /// It has finished sending.
    pub ended: bool,
    /// We are closing it.
    pub closing: bool,
    /// We are, as soon as nothing is pending.
    pub close_when_paid: Option<Reason>,
    /// What is counted for it; a pointer, since most limits are off by default.
    pub tally: Option<Box<Tally>>,
}

/// The user of a connection.
#[derive(Debug)]
pub(crate) struct LoggedIn {
    pub session: SessionId,
    pub name: Box<str>,
}

/// A reason why the input of a connection waits.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hold {
    /// A login, a registration or a list is on its way.
    Request = 1,
    /// The next request reads what changes that are not settled have made.
    Changes = 2,
    /// Too many requests are unsettled.
    Pending = 4,
    /// It has sent faster than it may.
    Rate = 8,
}

/// A set of these.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Holds(u8);

impl Holds {
    pub fn has(self, hold: Hold) -> bool {
        self.0 & hold as u8 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// A connection on its way to its user's home, with the login that it goes there for.
#[derive(Debug)]
pub struct Moved {
    pub(super) client: Client,
    pub(super) login: Login,
}

impl Client {
    pub fn new(peer: SocketAddr) -> Self {
        Client {
            peer: canonical(peer),
            header_due: false,
            splitter: Splitter::default(),
            framing: FramingMirror::default(),
            user: None,
            leaving: None,
            pending: 0,
            changes: 0,
            joins: 0,
            holds: Holds::default(),
            attempt: None,
            half_closed: false,
            uses_seq: false,
            knows_ping: false,
            ended: false,
            closing: false,
            close_when_paid: None,
            tally: None,
        }
    }

    /// Whether a request must wait for the changes that earlier ones have made, since it would not see them. A
    /// join and what is sent to its group need not wait for each other: they take the same route.
    pub fn reads_changes(&self, object: &[u8]) -> bool {
        let Ok(request) = Request::parse(object) else { return false };
        match request.msgid() {
            Ok(msgid::LIST) => self.changes > 0,
            Ok(msgid::GROUP_CHAT) => self.changes > self.joins,
            _ => false,
        }
    }

    /// Whether something else of it is under way than its login, or messages of a former session are still queued.
    pub fn is_busy_besides_its_login(&self) -> bool {
        self.pending > 1 || self.changes > 0 || self.leaving.is_some()
    }

    /// The user who is logged in, or whose session is still ending.
    pub fn user_or_former(&self) -> Option<UserId> {
        self.user.as_deref().map(|me| me.session.user).or(self.leaving)
    }

    /// The session is to end; returns it, if there is one.
    pub fn leave(&mut self) -> Option<SessionId> {
        let session = self.user.take()?.session;
        self.leaving = Some(session.user);
        Some(session)
    }
}

impl Shard {
    /// The input of a connection waits, for this reason among others.
    pub(super) fn hold(&mut self, conn: ConnId, hold: Hold) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.holds.0 |= hold as u8;
            self.fx.push(Effect::Pause(conn));
        }
    }

    /// It does not wait for this reason any more.
    pub(super) fn unhold(&mut self, conn: ConnId, hold: Hold) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.holds.0 &= !(hold as u8);
            if client.holds.is_empty() {
                self.fx.push(Effect::Resume(conn));
            }
        }
    }

    pub(super) fn connection_arrived(&mut self, conn: ConnId, moved: Moved) {
        let now = self.now;
        let Moved { client, mut login } = moved;
        login.conn = conn;
        if client.holds.has(Hold::Rate) {
            self.fx.timer(now.at + LATER, Timer::Rate(conn));
        }
        let attempt_due = client.attempt.as_deref().map(|attempt| (attempt.next_look(now.at), attempt.number()));
        self.clients.insert(conn, client);
        self.set_timers(conn);
        if let Some((due, number)) = attempt_due {
            self.fx.timer(due, Timer::Attempt { conn, number });
        }
        if self.shutting_down {
            self.refuse_attempt(conn, &Errno::ShuttingDown.into());
        } else {
            self.enter(login);
        }
    }

    /// Sets the timers of a connection that is new here.
    pub(super) fn set_timers(&mut self, conn: ConnId) {
        let now = self.now.at;
        if let Some(timeout) = self.settings.login_timeout {
            self.fx.timer(now + timeout, Timer::Login(conn));
        }
        if let Some(timeout) = self.settings.idle_timeout {
            self.fx.timer(now + timeout / 2, Timer::Idle(conn));
        }
    }

    /// Where there is a proxy, every connection comes from it and names its client first. Any other peer
    /// may claim no address, and is closed: false.
    pub(super) fn expect_proxy_header(&mut self, conn: ConnId) -> bool {
        let proxies = &self.settings.proxies;
        let Some(client) = self.clients.get_mut(conn).filter(|_| !proxies.is_empty()) else { return true };
        let ip = client.peer.ip();
        client.header_due = proxies.iter().any(|network| network.contains(&ip));
        client.closing = !client.header_due;
        if client.closing {
            log::debug!("{conn}: {ip} is none of the proxies");
            self.fx.push(Effect::Close(conn, Reason::NotTheProxy));
        }
        client.header_due
    }

    /// Reads the header at the front of `input`, if one is due, and returns its length; `None`: it
    /// is not whole yet.
    pub(super) fn proxy_header(&mut self, conn: ConnId, input: &[u8]) -> Option<usize> {
        let client = self.clients.get_mut(conn).filter(|client| client.header_due && !client.closing);
        let Some(client) = client else { return Some(0) };
        match ProxyHeader::parse(input) {
            Ok(header) => {
                let header = header?;
                client.header_due = false;
                if let Some(source) = header.source.map(canonical) {
                    log::debug!("{conn}: {source} has connected, through {}", client.peer);
                    client.peer = source;
                    self.admit_address(conn);
                }
                Some(header.length)
            }
            Err(bad) => {
                self.refuse_proxy_header(conn, bad);
                Some(0)
            }
        }
    }

    pub(super) fn refuse_proxy_header(&mut self, conn: ConnId, bad: BadHeader) {
        let refusal = Refusal::new(Errno::Unfollowable, bad.to_string());
        self.refuse_and_close(conn, refusal, Reason::BadProxyHeader);
    }

    /// Closes a connection on which there was no login in time.
    pub(super) fn login_timer(&mut self, conn: ConnId) {
        let now = self.now;
        let Some(timeout) = self.settings.login_timeout else { return };
        let Some(client) = self.clients.get_mut(conn) else { return };
        if client.user.is_some() {
            return; // a logout sets it again
        }
        let due = client.tally(now.at).out_since + timeout;
        if client.holds.has(Hold::Request) || due > now.at {
            self.fx.timer(due.max(now.at + LATER), Timer::Login(conn));
        } else {
            self.refuse_and_close(conn, Refusal::busy("no login in time", 1), Reason::LoginTimeout);
        }
    }

    /// Asks a silent client for a sign of life, and closes its connection if there is none.
    pub(super) fn idle_timer(&mut self, conn: ConnId) {
        let now = self.now;
        let Some(timeout) = self.settings.idle_timeout else { return };
        let Some(client) = self.clients.get_mut(conn) else { return };
        let last_input = client.tally(now.at).last_input;
        let (ask, due) = (last_input + timeout / 2, last_input + timeout);
        if ask > now.at {
            self.fx.timer(ask, Timer::Idle(conn));
        } else if due > now.at {
            // Only clients that know a PING get one: all others get nothing that the original does not send.
            if client.uses_seq || client.knows_ping {
                self.reply(conn, reply::ping);
            }
            self.fx.timer(due, Timer::Idle(conn));
        } else if client.pending > 0 {
            self.fx.timer(now.at + LATER, Timer::Idle(conn));
        } else {
            self.refuse_and_close(conn, Refusal::new(Errno::Busy, "closed for being idle"), Reason::IdleTimeout);
        }
    }
}
