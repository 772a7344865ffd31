//! Register, log in, log out.

use std::sync::Arc;

use super::letters::{Letter, Tag, Timer};
use super::session::{Joining, Mode, Spill};
use super::ways::Question;
use super::{Answer, Call, Effect, Effects, Lane, Login, Now, Op, Payload, Shard, Then, user_id};
use crate::bus::{BusOp, envelope};
use crate::reactor::{ConnId, Manner, Origin};
use crate::store::{Holder, Outcome, StoreError, UserId, Write};
use crate::wire::{Errno, Framing, Refusal, reply};

/// The C++ client reads a reply with one `recv` into 1024 bytes, and needs the last one for a NUL.
const LEGACY_REPLY: usize = 1022;
/// The width of the column that C++ nodes have for a password, in bytes.
const PLAIN_PASSWORD: usize = 50;
/// How often a claim is tried when the account is in use, but not here: the last release may be on
/// its way.
const CLAIM_TRIES: u8 = 3;

impl Shard {
    pub(super) fn register(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let name = call.request.name()?.to_owned();
        let password = call.request.password()?;
        if self.settings.mixed && password.len() > PLAIN_PASSWORD {
            let text = "password is longer than 50 bytes, the most that the C++ nodes here can read";
            return Err(Refusal::new(Errno::BadField, text));
        }
        let password = password.into();
        let (conn, from) = (call.conn, self.origin(call.conn)?);
        self.may_register(from)?;
        let attempt = self.begin_attempt(conn, None, call.seq, fx);
        match self.enter_hashing(conn) {
            Ok(place) => {
                let then = Then::Registered { conn, from, attempt };
                self.submit(Lane::None, then, Op::Register { name, password, place }, fx);
            }
            Err(refusal) => {
                self.forget_registration(from);
                self.refuse_attempt(conn, &refusal, fx);
            }
        }
        Ok(())
    }

    pub(super) fn registered(
        &mut self,
        conn: ConnId,
        from: Origin,
        attempt: u64,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        self.count_password(&answer);
        if !matches!(answer, Ok(Answer::Wrote(_))) {
            self.forget_registration(from);
        }
        let Some(client) = self.clients.get(conn) else { return };
        let framing = client.framing.framing();
        let Some(seq) = self.waits_for(conn, attempt).map(|attempt| attempt.seq) else { return };
        match answer {
            Ok(Answer::Wrote(Outcome::Id(id))) => {
                fx.reply(conn, framing, true, |out| reply::registered(out, seq, id));
                self.end_attempt(conn, fx);
            }
            Ok(Answer::Wrote(Outcome::Already)) => {
                self.refuse_attempt(conn, &Refusal::new(Errno::Rejected, "this name is taken!"), fx);
            }
            other => self.refuse_attempt(conn, &super::store_failure(other), fx),
        }
    }

    pub(super) fn login(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let id = call.request.id()?;
        let password = call.request.password()?.into();
        let conn = call.conn;
        // No account has the id 0: it takes as long as any other wrong one.
        let (user, from) = (user_id(id).unwrap_or(0), self.origin(conn)?);
        let session = self.clients.get(conn).and_then(|client| client.session.as_deref());
        let logged_in = session.map(|session| session.user);
        if logged_in == Some(user) {
            return Err(Errno::InUse.into());
        }
        // Also if this one is refused untried: nobody is logged in after a login that has failed.
        if logged_in.is_some() {
            self.log_out(conn, None, call.now, fx);
        }
        self.may_log_in(user, from)?;
        let attempt = self.begin_attempt(conn, Some(user), call.seq, fx);
        let login = Login { conn, attempt, user, from, seq: call.seq, name: Box::default(), tries: 0, epoch: 0 };
        self.submit(self.user_lane(user), Then::AccountRead(login), Op::Account { user, password }, fx);
        Ok(())
    }

    /// The account was read. Who was here before with this password goes on at once; all others, also
    /// those who have no account, wait for a hash.
    pub(super) fn account_read(&mut self, mut login: Login, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        self.count_password(&answer);
        let is_waited_for = self.is_waited_for(&login);
        match answer {
            Ok(Answer::Remembered(name)) => {
                self.note_login(&login, Some(true));
                login.name = name.into();
                self.claim(login, None, fx);
            }
            Ok(Answer::Unproven(..)) if !is_waited_for => {
                self.count_password(&Ok(Answer::Spared));
                self.note_login(&login, None);
            }
            Ok(Answer::Unproven(account, password)) => match self.enter_hashing(login.conn) {
                Ok(place) => {
                    let op = Op::Verify { user: login.user, account, password, place };
                    self.submit(Lane::None, Then::Verified(login), op, fx);
                }
                Err(refusal) => {
                    self.note_login(&login, None);
                    self.refuse_login(&login, &refusal, fx);
                }
            },
            _ => {
                self.note_login(&login, None);
                self.refuse_login(&login, &Errno::StoreUnavailable.into(), fx);
            }
        }
    }

    /// The password was looked at.
    pub(super) fn verified(&mut self, mut login: Login, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        self.count_password(&answer);
        self.leave_hashing(login.conn, login.attempt);
        self.note_login(
            &login,
            match &answer {
                Ok(Answer::Verified(name)) => Some(name.is_some()),
                _ => None,
            },
        );
        match answer {
            Ok(Answer::Verified(Some(name))) => {
                login.name = name.into();
                self.claim(login, None, fx);
            }
            Ok(Answer::Verified(None)) => self.refuse_login(&login, &Errno::Rejected.into(), fx),
            _ => self.refuse_login(&login, &Errno::StoreUnavailable.into(), fx),
        }
    }

    /// Asks the store for the account, unless its last session is just ending here. `past`: who had
    /// it and has gone without a word.
    pub(super) fn claim(&mut self, mut login: Login, past: Option<Holder>, fx: &mut Effects) {
        if !self.is_waited_for(&login) {
            return;
        }
        if self.is_leaving(login.user) {
            self.waiting.entry(login.user).or_default().push(login);
            return;
        }
        self.next_epoch += 1;
        login.epoch = self.next_epoch;
        let (user, epoch) = (login.user, login.epoch);
        if let Some(attempt) = self.waits_for(login.conn, login.attempt) {
            attempt.epoch = epoch;
        }
        self.claiming.insert(epoch, Vec::new());
        self.submit(self.user_lane(user), Then::Claimed(login), Op::Write(Write::Claim { user, epoch, past }), fx);
    }

    pub(super) fn claimed(&mut self, mut login: Login, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        let (user, epoch) = (login.user, login.epoch);
        if matches!(answer, Ok(Answer::Wrote(Outcome::Done))) {
            if !self.may_begin(&login) {
                return self.give_claim_back(login, fx);
            }
            self.listening.insert(epoch, login);
            return fx.push(Effect::Bus(BusOp::Listen { user, epoch, shard: self.index as u16 }));
        }
        self.claim_failed(user, epoch, fx);
        match answer {
            Ok(Answer::Wrote(Outcome::InUse(Holder::Foreign))) => {
                let ticket = self.ask(Question::Listeners(login), fx);
                fx.push(Effect::Bus(BusOp::CountListeners(user, ticket)));
            }
            Ok(Answer::Wrote(Outcome::InUse(Holder::Node(claim)))) => {
                if claim.node == self.settings.node {
                    self.disown(user, claim.epoch, fx);
                }
                let may_come_free = !self.presence.contains_key(&user) && login.tries < CLAIM_TRIES;
                if may_come_free || self.is_leaving(user) {
                    login.tries += 1;
                    self.claim(login, None, fx);
                } else if self.unreleased.contains_key(&user) {
                    // Nobody uses it: the store has not taken the last session's end yet.
                    self.refuse_login(&login, &Errno::StoreUnavailable.into(), fx);
                } else {
                    self.refuse_login(&login, &Errno::InUse.into(), fx);
                }
            }
            Ok(Answer::Wrote(Outcome::NoUser)) => self.refuse_login(&login, &Errno::Rejected.into(), fx),
            _ => {
                // It may have been claimed all the same.
                self.release(user, epoch, fx);
                self.refuse_login(&login, &Errno::StoreUnavailable.into(), fx);
            }
        }
    }

    /// Whether somebody waits for this session, and no other one of the account has a place on this node.
    fn may_begin(&mut self, login: &Login) -> bool {
        let has_place = self.presence.contains_key(&login.user) || self.is_leaving(login.user);
        self.is_waited_for(login) && !has_place
    }

    /// A session with this claim may not begin.
    fn give_claim_back(&mut self, login: Login, fx: &mut Effects) {
        let user = login.user;
        self.claim_failed(user, login.epoch, fx);
        self.release(user, login.epoch, fx);
        // A session that the store does not know of any more, since this node seemed dead for a while, is ended.
        // If it is ending already, this login waits for that: what is under way to it must be in the store before
        // the next session begins. Where nobody waits, `claim` does nothing.
        let stale = self.presence.get(&user).filter(|_| !self.is_leaving(user)).copied();
        match stale {
            Some(conn) => {
                self.refuse_login(&login, &Errno::InUse.into(), fx);
                self.end_stale(user, conn, fx);
            }
            None => self.claim(login, None, fx),
        }
    }

    /// The store has this claim as one of this node's. If its shard knows nothing of it, it is the
    /// late success of a claim that was reported as failed, and is given back.
    pub(super) fn disown(&mut self, user: UserId, epoch: u64, fx: &mut Effects) {
        let shard = envelope::shard_of(epoch, self.shards);
        if shard != self.index {
            return fx.push(Effect::Post(shard, Letter::Disown { user, epoch }));
        }
        let is_known = self.claiming.contains_key(&epoch)
            || self.leaving.get(&user).is_some_and(|leaving| leaving.epoch == epoch)
            || self.unreleased.get(&user) == Some(&epoch)
            || self.session_of(user, epoch).is_some();
        if !is_known {
            self.release(user, epoch, fx);
        }
    }

    /// The account is online, but none of our nodes has it: does a C++ node listen for its user?
    pub(super) fn listeners_counted(&mut self, login: Login, count: Option<u32>, fx: &mut Effects) {
        match count {
            Some(0) => self.claim(login, Some(Holder::Foreign), fx),
            // Without the bus only the store tells, and there the account is in use.
            Some(_) | None => self.refuse_login(&login, &Errno::InUse.into(), fx),
        }
    }

    /// C++ nodes reach the user from now on: the session begins.
    pub(super) fn listened(&mut self, epoch: u64, fx: &mut Effects) {
        let Some(login) = self.listening.remove(&epoch) else { return };
        // Two may have had the claim, one after the other, while this node seemed dead.
        if !self.may_begin(&login) {
            return self.give_claim_back(login, fx);
        }
        if self.settings.mixed {
            // Before this they would have published to nobody. What they have stored is read
            // behind it, in the same lane.
            let (user, past) = (login.user, None);
            self.submit(self.user_lane(user), Then::Shown, Op::Write(Write::Claim { user, epoch, past }), fx);
        }
        self.join(login, fx);
    }

    /// Reads what was stored until now, and the lists, once all others know where the user lives, and
    /// what the connection's earlier requests change is settled.
    pub(super) fn load_if_due(&mut self, conn: ConnId, fx: &mut Effects) {
        let limit = self.is_legacy(conn).then_some(LEGACY_REPLY);
        let Some(client) = self.clients.get_mut(conn).filter(|client| client.changes == 0) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        let Mode::Joining(joining) = &mut session.mode else { return };
        if joining.unseen > 0 || std::mem::replace(&mut joining.loading, true) {
            return;
        }
        let (user, epoch) = (session.user, session.epoch);
        let op = Op::Load { user, name: session.name.clone(), seq: joining.seq, limit };
        self.submit(self.user_lane(user), Then::Loaded { conn, user, epoch }, op, fx);
    }

    /// The login reply is ready: out with it, then with what has come meanwhile.
    pub(super) fn loaded(
        &mut self,
        conn: ConnId,
        user: UserId,
        epoch: u64,
        answer: Result<Answer, StoreError>,
        now: Now,
        fx: &mut Effects,
    ) {
        let legacy = self.is_legacy(conn);
        let Some(client) = self.clients.get_mut(conn) else { return };
        let framing = client.framing.framing();
        let Some(session) = client.session.as_deref_mut().filter(|session| session.epoch == epoch) else { return };
        let Mode::Joining(joining) = &mut session.mode else { return };
        let Joining { spilled, outdated, queue, nudges, .. } = std::mem::take(&mut **joining);
        let Ok(Answer::Loaded(loaded)) = answer else {
            joining.queue = queue;
            self.log_out(conn, None, now, fx);
            return self.refuse_attempt(conn, &Errno::StoreUnavailable.into(), fx);
        };
        log::debug!("{conn}: user {user} has logged in from {}", client.peer);
        let reply_has_rows = !loaded.rows.is_empty();
        let drain = loaded.more || spilled || outdated || !nudges.is_empty();
        session.mode =
            if drain { Mode::Spill(Box::new(Spill::after_login(reply_has_rows, nudges))) } else { Mode::Live };
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
        self.end_attempt(conn, fx);
    }

    pub(super) fn logout(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        self.me(call)?;
        if call.seq.is_some() {
            self.owe(call.conn, fx);
        }
        self.log_out(call.conn, call.seq, call.now, fx);
        Ok(())
    }

    /// Ends the session of a connection that stays. `ack`: the `seq` of who asked for it.
    pub(super) fn log_out(&mut self, conn: ConnId, ack: Option<i64>, now: Now, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        let Some(session) = client.session.take() else { return };
        if let Some(tally) = &mut client.tally {
            tally.out_since = now.at;
        }
        if let Some(timeout) = self.settings.login_timeout {
            fx.push(Effect::Timer(now.at + timeout, Timer::Login(conn)));
        }
        // What is queued for the user must be out, or stored, before anybody may claim it again.
        let body = Payload::Own(0..0);
        let tag = Some(Tag::Barrier { user: session.user });
        fx.push(Effect::Send { conn, body, framing: Framing::Bare, tag, manner: Manner::default() });
        self.leave(conn, *session, true, ack, fx);
    }

    /// Refuses a login, if somebody still waits for it.
    pub(super) fn refuse_login(&mut self, login: &Login, refusal: &Refusal, fx: &mut Effects) {
        if self.is_waited_for(login) {
            self.refuse_attempt(login.conn, refusal, fx);
        }
    }

    /// Where the client of a request is.
    fn origin(&self, conn: ConnId) -> Result<Origin, Refusal> {
        let client = self.clients.get(conn).ok_or(Errno::NotLoggedIn)?;
        Ok(client.peer.ip().into())
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
        if !client.is_paused() {
            fx.push(Effect::Resume(conn));
        }
        self.paid(conn, fx);
    }

    fn is_legacy(&self, conn: ConnId) -> bool {
        let is_cpp = |client: &super::Client| client.framing.framing() == Framing::Nul && !client.uses_seq;
        self.settings.legacy_client && self.clients.get(conn).is_some_and(is_cpp)
    }
}
