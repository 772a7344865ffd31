//! Browsers: the HTTP request that their connection begins with, and the frames of their WebSocket.
//!
//! A WebSocket is one more way to send and to get the same objects. It speaks canon.

use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, Hold, Web};
use super::letters::Timer;
use super::reason::Reason;
use super::shard::{OBJECTS_A_TURN, Shard, log_input};
use super::{Effect, Payload};
use crate::reactor::{ConnId, SendOptions, Taken};
use crate::wire::http::{self, Asked, Head, Refused};
use crate::wire::websocket::{self, Failed, Found, Payload as Held, code};
use crate::wire::{Broken, Framing, Request, one_object};

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);

impl Shard {
    /// Input of a connection that began with an HTTP request, of which the first `taken` bytes are done with.
    pub(super) fn web_input(&mut self, conn: ConnId, input: &[u8], taken: usize) -> Taken {
        let Some(client) = self.clients.get_mut(conn) else { return Taken::all(input) };
        match client.web.as_deref() {
            None => {
                client.web = Some(Box::new(Web::Head));
                self.fx.timer(self.now.at + HEAD, Timer::Head(conn));
                self.http_request(conn, input, taken)
            }
            Some(Web::Head) => self.http_request(conn, input, taken),
            Some(Web::Socket { .. }) => self.frames(conn, input, taken),
            Some(Web::Closed) => Taken::all(input),
        }
    }

    fn http_request(&mut self, conn: ConnId, input: &[u8], taken: usize) -> Taken {
        let Some(browsers) = self.settings.browsers.as_ref().map(Arc::clone) else { return Taken::all(input) };
        let head = match Head::read(&input[taken..], &browsers.origins) {
            Ok(Some(head)) => head,
            Ok(None) => return Taken { bytes: taken, more: false },
            Err(refused) => {
                self.refuse_http(conn, refused);
                return Taken::all(input);
            }
        };
        let end = taken + head.length;
        if self.settings.trace_wire {
            log_input(conn, &input[taken..end], b"");
        }
        match head.asked {
            Asked::Page => {
                self.fx.push(Effect::Send {
                    conn,
                    body: Payload::Shared(Arc::clone(&browsers.page)),
                    framing: Framing::Bare,
                    tag: None,
                    // Its size is not the client's doing.
                    options: SendOptions { own_write: false, uncounted: true },
                });
                self.end_http(conn);
                Taken::all(input)
            }
            Asked::WebSocket { accept } => {
                self.fx.reply(conn, Framing::Bare, false, |out| http::write_switch(out, &accept));
                if let Some(client) = self.clients.get_mut(conn) {
                    log::debug!("{conn}: is a WebSocket");
                    client.becomes_socket();
                }
                self.frames(conn, input, end)
            }
        }
    }

    /// Says by HTTP why, then closes.
    pub(super) fn refuse_http(&mut self, conn: ConnId, refused: Refused) {
        self.fx.reply(conn, Framing::Bare, false, |out| http::write_refusal(out, refused));
        self.end_http(conn);
    }

    fn end_http(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.closing = true;
            self.close(conn, Reason::Http);
        }
    }

    /// The head of a request has had its time.
    pub(super) fn head_timer(&mut self, conn: ConnId) {
        let client = self.clients.get(conn).filter(|client| !client.closing);
        if client.is_some_and(|client| matches!(client.web.as_deref(), Some(Web::Head))) {
            self.refuse_http(conn, Refused::Timeout);
        }
    }

    /// The browser has finished sending, without a word.
    pub(super) fn web_ended(&mut self, conn: ConnId) {
        let client = self.clients.get(conn).filter(|client| !client.closing);
        if client.is_some_and(|client| matches!(client.web.as_deref(), Some(Web::Head))) {
            self.refuse_http(conn, Refused::NoRequest);
        } else {
            self.close_if_done(conn);
        }
    }

    /// Reads the frames of a WebSocket behind the first `taken` bytes.
    fn frames(&mut self, conn: ConnId, input: &[u8], mut taken: usize) -> Taken {
        for _ in 0..OBJECTS_A_TURN {
            let Some(client) = self.clients.get_mut(conn) else { return Taken::all(input) };
            if client.closing || client.ended {
                return Taken::all(input);
            }
            if !client.holds.is_empty() {
                return Taken { bytes: taken, more: false };
            }
            let limit = self.settings.max_message_of(client.user.is_some());
            let Some(frames) = client.frames() else { return Taken::all(input) };
            taken += match frames.next(&input[taken..], limit) {
                Ok(Found::Partial { taken: done }) => return Taken { bytes: taken + done, more: false },
                Ok(Found::Text { taken: done }) if self.text_came(conn, done) => done,
                Ok(Found::Text { .. }) => return Taken { bytes: taken, more: false },
                Ok(Found::Ping { taken: done, payload }) => {
                    self.ping_came(conn, &payload);
                    done
                }
                // That it came is all it says.
                Ok(Found::Pong { taken: done }) => done,
                Ok(Found::Close { taken: done, code }) => {
                    self.close_came(conn, code);
                    done
                }
                Err(failed) => {
                    self.frames_failed(conn, failed);
                    0
                }
            };
        }
        Taken { bytes: taken, more: taken < input.len() }
    }

    /// A message is whole. False: it waits for what earlier ones have begun, with `taken` bytes of the input.
    fn text_came(&mut self, conn: ConnId, taken: usize) -> bool {
        let Some(frames) = self.clients.get_mut(conn).and_then(Client::frames) else { return true };
        let text = frames.take();
        let object = match one_object(&text) {
            Ok(object) => object,
            Err(broken) => {
                self.stream_broke(conn, &text, broken);
                return true;
            }
        };
        let request = Request::parse(object);
        let number = request.as_ref().ok().and_then(Request::number);
        let Some(client) = self.clients.get_mut(conn) else { return true };
        if client.changes > 0 && client.must_wait(number) {
            drop(request);
            if let Some(frames) = client.frames() {
                frames.put_back(text, taken);
            }
            self.hold(conn, Hold::Changes);
            return false;
        }
        if self.settings.trace_wire {
            log_input(conn, object, b"");
        }
        match &request {
            Ok(request) => self.request(conn, request, number, None),
            Err(refusal) => self.refuse_stream(conn, refusal.clone(), Reason::Unfollowable),
        }
        true
    }

    /// The client wants a sign of life, no more often than it may send anything.
    fn ping_came(&mut self, conn: ConnId, payload: &Held) {
        match self.is_too_fast(conn, payload.len()) {
            None => self.fx.reply(conn, Framing::Bare, false, |out| websocket::write_pong(out, payload)),
            Some(refusal) => self.refuse(conn, None, None, &refusal),
        }
    }

    /// Asks for a sign of life.
    pub(super) fn ping_socket(&mut self, conn: ConnId) {
        if self.clients.get_mut(conn).and_then(Client::frames).is_some() {
            self.fx.reply(conn, Framing::Bare, false, websocket::write_ping);
        }
    }

    /// The client closes: it gets what it is still owed, and the same code.
    fn close_came(&mut self, conn: ConnId, said: Option<u16>) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.ended = true;
        if let Some(Web::Socket { code, .. }) = client.web.as_deref_mut() {
            *code = said;
        }
        self.close_if_done(conn);
    }

    /// The frames cannot be followed. Requests before that still get their replies.
    fn frames_failed(&mut self, conn: ConnId, failed: Failed) {
        log::debug!("{conn}: {failed}");
        if failed == Failed::TooLarge {
            return self.refuse_broken(conn, Broken::TooLarge);
        }
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.closing = true;
        if let Some(Web::Socket { code, .. }) = client.web.as_deref_mut() {
            *code = Some(failed.code());
        }
        if client.pending > 0 {
            client.close_when_paid = Some(Reason::Unfollowable);
        } else {
            self.close(conn, Reason::Unfollowable);
        }
    }

    /// The last that a WebSocket is sent.
    pub(super) fn say_close(&mut self, conn: ConnId, reason: Reason) {
        let Some(web) = self.clients.get_mut(conn).and_then(|client| client.web.as_deref_mut()) else { return };
        let Web::Socket { code: said, .. } = *web else { return };
        let code = said.unwrap_or(match reason {
            Reason::ByClient | Reason::HungUp => code::NORMAL,
            Reason::TooLarge => code::TOO_LARGE,
            Reason::ShuttingDown => code::RESTART,
            _ => code::POLICY,
        });
        *web = Web::Closed;
        self.fx.reply(conn, Framing::Bare, false, |out| websocket::write_close(out, code));
    }
}
