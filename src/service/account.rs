//! Register, log in, log out.

use std::sync::Arc;

use super::letters::{Tag, Timer};
use super::session::{Mode, Spill};
use super::{Answer, Call, Effect, Effects, Lane, Login, Now, Op, Payload, Shard, Then, user_id};
use crate::reactor::{ConnId, Manner};
use crate::store::{Outcome, StoreError, UserId, Write};
use crate::wire::{Errno, Framing, Refusal, msgid, reply};

/// The C++ client reads a reply with one `recv` into 1024 bytes, and needs the last one for a NUL.
const LEGACY_REPLY: usize = 1022;
/// How often a claim is tried when the account is in use, but not here: the last release may be on
/// its way.
const CLAIM_TRIES: u8 = 3;

impl Shard {
    pub(super) fn register(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let name = call.request.name()?.to_owned();
        let password = call.request.password()?.into();
        self.begin_waiting(call.conn, fx);
        let then = Then::Registered { conn: call.conn, seq: call.seq };
        self.submit(Lane::None, then, Op::Register { name, password }, fx);
        Ok(())
    }

    pub(super) fn registered(
        &mut self,
        conn: ConnId,
        seq: Option<i64>,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        let refusal = match answer {
            Ok(Answer::Wrote(Outcome::Id(id))) => {
                if let Some(client) = self.clients.get(conn) {
                    fx.reply(conn, client.framing.framing(), true, |out| reply::registered(out, seq, id));
                }
                return self.end_waiting(conn, fx);
            }
            Ok(Answer::Wrote(Outcome::Already)) => Refusal::new(Errno::Rejected, "this name is taken!"),
            other => super::store_failure(other),
        };
        self.refuse(conn, Some(msgid::REGISTER), seq, &refusal, fx);
        self.end_waiting(conn, fx);
    }

    pub(super) fn login(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let id = call.request.id()?;
        let password = call.request.password()?.into();
        let conn = call.conn;
        match self.clients.get(conn).and_then(|client| client.session.as_deref()) {
            Some(session) if i64::from(session.user) == id => return Err(Errno::InUse.into()),
            Some(_) => self.log_out(conn, call.now, fx),
            None => {}
        }
        // No account has the id 0: it takes as long as any other wrong one.
        let user = user_id(id).unwrap_or(0);
        self.begin_waiting(conn, fx);
        let login = Login { conn, user, seq: call.seq, name: Box::default(), tries: 0 };
        self.submit(Lane::None, Then::Verified(login), Op::Verify { user, password }, fx);
        Ok(())
    }

    /// The password was looked at.
    pub(super) fn verified(&mut self, mut login: Login, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        match answer {
            Ok(Answer::Verified(Some(name))) => {
                login.name = name.into();
                self.claim(login, fx);
            }
            Ok(Answer::Verified(None)) => self.refuse_login(&login, Errno::Rejected, fx),
            _ => self.refuse_login(&login, Errno::StoreUnavailable, fx),
        }
    }

    /// Asks the store for the account, unless its last session is just ending here.
    pub(super) fn claim(&mut self, login: Login, fx: &mut Effects) {
        if !self.is_waited_for(login.conn) {
            return;
        }
        if self.is_leaving(login.user) {
            self.waiting.entry(login.user).or_default().push(login);
            return;
        }
        let user = login.user;
        self.submit(
            self.user_lane(user),
            Then::Claimed(login),
            Op::Write(Write::Claim { user, epoch: 0, past: None }),
            fx,
        );
    }

    pub(super) fn claimed(&mut self, mut login: Login, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        match answer {
            Ok(Answer::Wrote(Outcome::Done)) if self.is_waited_for(login.conn) => self.join(login, fx),
            Ok(Answer::Wrote(Outcome::Done)) => self.release(login.user, fx),
            Ok(Answer::Wrote(Outcome::InUse(_))) => {
                let may_come_free = !self.presence.contains_key(&login.user) && login.tries < CLAIM_TRIES;
                if may_come_free || self.is_leaving(login.user) {
                    login.tries += 1;
                    self.claim(login, fx);
                } else if self.unreleased.contains(&login.user) {
                    // Nobody uses it: the store has not taken the last session's end yet.
                    self.refuse_login(&login, Errno::StoreUnavailable, fx);
                } else {
                    self.refuse_login(&login, Errno::InUse, fx);
                }
            }
            Ok(Answer::Wrote(Outcome::NoUser)) => self.refuse_login(&login, Errno::Rejected, fx),
            _ => self.refuse_login(&login, Errno::StoreUnavailable, fx),
        }
    }

    /// All others know where the user lives: read what was stored until now, and the lists.
    pub(super) fn load(&mut self, conn: ConnId, user: UserId, fx: &mut Effects) {
        let Some(client) = self.clients.get(conn) else { return };
        let Some(session) = client.session.as_deref() else { return };
        let Mode::Joining(joining) = &session.mode else { return };
        let limit = self.is_legacy(conn).then_some(LEGACY_REPLY);
        let op = Op::Load { user, name: session.name.clone(), seq: joining.seq, limit };
        self.submit(self.user_lane(user), Then::Loaded { conn, user }, op, fx);
    }

    /// The login reply is ready: out with it, then with what has come meanwhile.
    pub(super) fn loaded(
        &mut self,
        conn: ConnId,
        user: UserId,
        answer: Result<Answer, StoreError>,
        now: Now,
        fx: &mut Effects,
    ) {
        let legacy = self.is_legacy(conn);
        let Some(client) = self.clients.get_mut(conn) else { return };
        let framing = client.framing.framing();
        let Some(session) = client.session.as_deref_mut().filter(|session| session.user == user) else { return };
        let Mode::Joining(joining) = &mut session.mode else { return };
        let (seq, spilled, queue) = (joining.seq, joining.spilled, std::mem::take(&mut joining.queue));
        let Ok(Answer::Loaded(loaded)) = answer else {
            joining.queue = queue;
            self.log_out(conn, now, fx);
            let login = Login { conn, user, seq, name: Box::default(), tries: 0 };
            return self.refuse_login(&login, Errno::StoreUnavailable, fx);
        };
        log::debug!("{conn}: user {user} has logged in from {}", client.peer);
        let reply_has_rows = !loaded.rows.is_empty();
        let drain = loaded.more || spilled;
        session.mode = if drain { Mode::Spill(Spill::after_login(reply_has_rows)) } else { Mode::Live };
        if legacy {
            fx.push(Effect::Pace(conn));
        }
        let tag = reply_has_rows.then(|| Tag::Offline { user, rows: Arc::from(loaded.rows) });
        let body = Payload::Shared(loaded.reply.into());
        fx.push(Effect::Send { conn, body, framing, tag, manner: Manner { alone: true, exempt: true } });
        for (body, receipt) in queue {
            self.deliver(user, super::chat::Text::Shared(body), receipt, fx);
        }
        self.advance_drain(conn, fx);
        self.end_waiting(conn, fx);
    }

    pub(super) fn logout(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        self.me(call)?;
        self.log_out(call.conn, call.now, fx);
        if let Some(seq) = call.seq {
            self.reply(call.conn, fx, |out| reply::ack(out, seq));
        }
        Ok(())
    }

    /// Ends the session of a connection that stays.
    fn log_out(&mut self, conn: ConnId, now: Now, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        let Some(session) = client.session.take() else { return };
        client.out_since = now.at;
        if let Some(timeout) = self.settings.login_timeout {
            fx.push(Effect::Timer(now.at + timeout, Timer::Login(conn)));
        }
        // What is queued for the user must be out, or stored, before anybody may claim it again.
        let body = Payload::Own(0..0);
        let tag = Some(Tag::Barrier { user: session.user });
        fx.push(Effect::Send { conn, body, framing: Framing::Bare, tag, manner: Manner::default() });
        self.leave(conn, *session, true, fx);
    }

    pub(super) fn refuse_login(&mut self, login: &Login, errno: Errno, fx: &mut Effects) {
        self.refuse(login.conn, Some(msgid::LOGIN), login.seq, &errno.into(), fx);
        self.end_waiting(login.conn, fx);
    }

    /// Input waits from here on, until the request is answered.
    pub(super) fn begin_waiting(&mut self, conn: ConnId, fx: &mut Effects) {
        self.owe(conn, fx);
        if let Some(client) = self.clients.get_mut(conn) {
            client.waiting = true;
            fx.push(Effect::Pause(conn));
        }
    }

    pub(super) fn end_waiting(&mut self, conn: ConnId, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.waiting = false;
        if !client.throttled {
            fx.push(Effect::Resume(conn));
        }
        self.paid(conn, fx);
    }

    /// Whether somebody still waits for the outcome of a login on this connection.
    fn is_waited_for(&self, conn: ConnId) -> bool {
        self.clients.get(conn).is_some_and(|client| client.waiting && !client.closing)
    }

    fn is_legacy(&self, conn: ConnId) -> bool {
        let is_cpp = |client: &super::Client| client.framing.framing() == Framing::Nul && !client.uses_seq;
        self.settings.legacy_client && self.clients.get(conn).is_some_and(is_cpp)
    }
}
