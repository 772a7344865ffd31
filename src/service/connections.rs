//! What holds up the input of connections, their PROXY headers, and how long they may be silent.

use std::time::Duration;

use super::client::{Hold, Moved};
use super::letters::Timer;
use super::reason::Reason;
use super::{Effect, Shard};
use crate::reactor::{ConnId, canonical};
use crate::wire::proxy::BadHeader;
use crate::wire::{Errno, Refusal, reply};

/// How soon a timer looks again if it has found the client busy.
const LATER: Duration = Duration::from_secs(1);

impl Shard {
    /// The input of a connection waits, for this reason among others.
    pub(super) fn hold(&mut self, conn: ConnId, hold: Hold) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.holds.add(hold);
            self.fx.push(Effect::Pause(conn));
        }
    }

    /// It does not wait for this reason any more.
    pub(super) fn unhold(&mut self, conn: ConnId, hold: Hold) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.holds.remove(hold);
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
        let attempt_due = client.attempt.as_deref().map(|attempt| (attempt.next_look(now.at), attempt.number));
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
        let is_proxy = proxies.iter().any(|network| network.contains(&ip));
        if is_proxy {
            client.splitter.expect_proxy();
        } else {
            client.closing = true;
            log::debug!("{conn}: {ip} is none of the proxies");
            self.fx.push(Effect::Close(conn, Reason::NotTheProxy));
        }
        is_proxy
    }

    /// Reads the header at the front of `input`, if one is due, and returns its length; `None`: it
    /// is not whole yet.
    pub(super) fn proxy_header(&mut self, conn: ConnId, input: &[u8]) -> Option<usize> {
        let client = self.clients.get_mut(conn).filter(|client| client.splitter.expects_proxy() && !client.closing);
        let Some(client) = client else { return Some(0) };
        match client.splitter.proxy_header(input) {
            Ok(header) => {
                let header = header?;
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
            if client.web.is_some() {
                self.ping_socket(conn);
            } else if client.uses_seq || client.knows_ping {
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
