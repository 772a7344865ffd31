//! One client: a connection of this shard, what its requests wait for, and what is counted for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cpp::Cpp;
use super::hashing::Place;
use super::jobs::Login;
use super::reason::Reason;
use super::receipts::SessionId;
use crate::reactor::{AddressSlot, canonical};
use crate::store::UserId;
use crate::wire::dialect::{Dialect, DialectChoice, Hearing, Length, Me, Speaker};
use crate::wire::websocket::WebSocket;
use crate::wire::{Framing, FramingMirror, Splitter, msgid};

/// A connection, as the service sees it.
#[derive(Debug)]
pub(super) struct Client {
    /// The client's own address, once the PROXY header of a proxy has told it.
    pub peer: SocketAddr,
    pub splitter: Splitter,
    pub framing: FramingMirror,
    /// Which dialect it may speak, as far as that is known.
    pub hearing: Hearing,
    /// It does not speak canon; a pointer, since most do.
    pub speaker: Option<Box<Speaker>>,
    /// It is a browser; a pointer, since most are not.
    pub web: Option<Box<Web>>,
    /// The user who is logged in; a pointer, since many connections never have one.
    pub user: Option<Box<LoggedIn>>,
    /// The user who was logged in and whose session is still ending.
    pub leaving: Option<UserId>,
    /// Requests that are not settled: replies owed, and chats whose delivery is open.
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
    /// It has used `seq`, or is a browser: so it is no C++ client.
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

/// How far a connection has come that began with an HTTP request.
#[derive(Debug)]
pub(super) enum Web {
    /// The head of the request is not whole.
    Head,
    /// It is a WebSocket. `code`: what its close frame is to say, if something else than the reason tells.
    Socket { frames: WebSocket, code: Option<u16> },
    /// It was a WebSocket: the close frame is queued, and nothing may follow.
    Closed,
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

    pub fn add(&mut self, hold: Hold) {
        self.0 |= hold as u8;
    }

    pub fn remove(&mut self, hold: Hold) {
        self.0 &= !(hold as u8);
    }
}

/// When an attempt is answered at the latest, from the moment when it was read.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);
/// When its password must be on a worker, so that the rest has its time, too.
pub(super) const HASH_BY: Duration = Duration::from_secs(7);

/// A login or a registration that is on its way.
#[derive(Debug)]
pub(super) struct Attempt {
    /// Which one: no other one of this shard has this number.
    pub number: u64,
    /// The user of a login; `None`: it is a registration.
    pub user: Option<UserId>,
    pub seq: Option<i64>,
    pub begun: Instant,
    pub stage: Stage,
}

/// What an attempt waits for.
#[derive(Debug, Default)]
pub(super) enum Stage {
    /// The end of the session that was on its connection before.
    Leaving(Login, Box<str>),
    /// The hash of its password.
    Hashing(Arc<Place>),
    /// Whatever else of the connection is under way, before that goes to the user's home.
    Moving(Login),
    /// The store, or another login or the end of a session of its user.
    #[default]
    Store,
    /// The bus, or another node.
    Bus,
    /// What its user missed, which is being read.
    Loading,
}

impl Attempt {
    pub fn place(&self) -> Option<&Place> {
        if let Stage::Hashing(place) = &self.stage { Some(place) } else { None }
    }

    /// When it is next looked at how far it has come.
    pub fn next_look(&self, now: Instant) -> Instant {
        let hash_by = self.begun + HASH_BY;
        if hash_by > now { hash_by } else { self.begun + DEADLINE }
    }
}

/// What is counted for one connection, where anything is.
#[derive(Debug)]
pub(super) struct Tally {
    /// Its place under the limit of its address.
    pub address: Option<AddressSlot>,
    /// When the rate will have made up for the messages that have come, and for their bytes.
    pub messages: Instant,
    pub bytes: Instant,
    /// When it last sent anything.
    pub last_input: Instant,
    /// The time since which no user is logged in on it.
    pub out_since: Instant,
    /// What shows whether it is a C++ client; a pointer, since others have nothing of it.
    pub cpp: Option<Box<Cpp>>,
}

impl Tally {
    fn new(now: Instant) -> Self {
        Tally { address: None, messages: now, bytes: now, last_input: now, out_since: now, cpp: None }
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
            splitter: Splitter::default(),
            framing: FramingMirror::default(),
            hearing: Hearing::default(),
            speaker: None,
            web: None,
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

    /// What it speaks, before it has sent anything.
    pub fn speaks(&mut self, choice: &DialectChoice) {
        let dialect = match choice {
            DialectChoice::Auto => return,
            DialectChoice::Canon => None,
            DialectChoice::Other(dialect) => Some(dialect),
        };
        self.hearing = Hearing::settled();
        self.splitter = Splitter::of_known(dialect.is_some_and(|dialect| dialect.length() == Length::Both));
        self.speaker = dialect.map(|dialect| Box::new(Speaker::new(Arc::clone(dialect))));
    }

    /// It is a WebSocket from here on, and speaks canon.
    pub fn becomes_socket(&mut self) {
        self.web = Some(Box::new(Web::Socket { frames: WebSocket::default(), code: None }));
        self.hearing = Hearing::settled();
        self.framing = FramingMirror::of_known(Framing::WebSocket);
        self.uses_seq = true;
    }

    /// Its frames, if it is a WebSocket.
    pub fn frames(&mut self) -> Option<&mut WebSocket> {
        match self.web.as_deref_mut() {
            Some(Web::Socket { frames, .. }) => Some(frames),
            _ => None,
        }
    }

    /// Whether nothing may be sent to it any more.
    pub fn is_closed_socket(&self) -> bool {
        self.closing && matches!(self.web.as_deref(), Some(Web::Closed))
    }

    /// Whether a request must wait for the changes that earlier ones have made, since it would not see them. A
    /// join and what is sent to its group need not wait for each other: they take the same route.
    pub fn must_wait(&self, msgid: Option<i64>) -> bool {
        match msgid {
            Some(msgid::LIST) => self.changes > 0,
            Some(msgid::GROUP_CHAT) => self.changes > self.joins,
            _ => false,
        }
    }

    /// What stands around each object that is sent to it.
    pub fn framing(&self) -> Framing {
        match self.dialect().map(Dialect::length) {
            // What ends its own requests ends nothing that it reads.
            Some(Length::Replies | Length::Both) => Framing::Bare,
            Some(Length::Nowhere) | None => self.framing.framing(),
        }
    }

    /// An object of it has ended; `rest` is what has come behind it. `is_known`: whether its number is, where that
    /// matters.
    pub fn note_object(&mut self, is_known: Option<bool>, rest: &[u8]) {
        match is_known {
            Some(false) => self.framing.foreign_object_ended(rest),
            _ => self.framing.object_ended(rest),
        }
        if let Some(cpp) = self.cpp().filter(|_| is_known == Some(true)) {
            cpp.forget_told();
        }
    }

    /// Whether it takes what one read returns for one object, as C++ clients do, as far as is known.
    pub fn reads_one_by_one(&self) -> bool {
        let is_spaced = self.framing() == Framing::Nul || self.dialect().is_some_and(Dialect::is_spaced);
        is_spaced && !self.uses_seq
    }

    /// The dialect that it speaks; `None`: canon.
    pub fn dialect(&self) -> Option<&Dialect> {
        self.speaker.as_deref().map(|speaker| &**speaker.dialect()).filter(|dialect| !dialect.is_canon())
    }

    /// The user who is logged in, as acks name one.
    pub fn me(&self) -> Option<Me<'_>> {
        self.user.as_deref().map(|me| Me { id: me.session.user, name: &me.name })
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

    /// Gives up its place in the queue of hashes, if it has one; returns whether it had.
    pub fn give_up(&self) -> bool {
        self.attempt.as_deref().and_then(Attempt::place).is_some_and(Place::give_up)
    }

    /// The attempt of this number, if the client still waits for it.
    pub fn waits_for(&mut self, number: u64) -> Option<&mut Attempt> {
        self.attempt.as_deref_mut().filter(|attempt| attempt.number == number && !self.closing)
    }

    pub fn tally(&mut self, now: Instant) -> &mut Tally {
        self.tally.get_or_insert_with(|| Box::new(Tally::new(now)))
    }

    /// What is noted of it as a client that may be a C++ one, if anything is.
    pub fn cpp(&mut self) -> Option<&mut Cpp> {
        self.tally.as_deref_mut()?.cpp.as_deref_mut()
    }

    /// It is no C++ client. Returns whether its messages were spaced out.
    pub fn stop_watching(&mut self) -> bool {
        self.tally.as_deref_mut().and_then(|tally| tally.cpp.take()).is_some_and(|cpp| cpp.is_spaced())
    }

    /// Whether it has turned out to be a program.
    pub fn is_program(&self) -> bool {
        self.tally.as_deref().and_then(|tally| tally.cpp.as_deref()).is_some_and(Cpp::is_program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_costs_little_more_than_others_and_they_pay_for_a_pointer_only() {
        // With what the allocator adds to a block, and nothing else: an idle WebSocket has no buffer.
        assert!(size_of::<Web>() + 16 <= 200, "{}", size_of::<Web>());
        assert!(size_of::<Client>() <= 120, "{}", size_of::<Client>());
        assert_eq!(size_of::<Option<Box<Web>>>(), size_of::<usize>());
    }
}
