//! LOGIN: the end of the session that was there before, the password, the move to the user's home, the claim, and
//! the reply.

use std::sync::Arc;

use crate::bus::BusOp;
use crate::reactor::{ConnId, Origin, SendOptions};
use crate::service::call::{Call, user_id};
use crate::service::client::{Moved, Stage};
use crate::service::jobs::{Answer, Lane, Login, Op, Speaks, Then};
use crate::service::questions::Question;
use crate::service::shard::Shard;
use crate::service::users::Entering;
use crate::service::{Effect, Payload, SessionId, Tag};
use crate::store::{Claim, Holder, Outcome, StoreError, UserId, Write};
use crate::wire::reply::Yields;
use crate::wire::{Errno, Refusal};

impl Shard {
    pub(crate) fn login(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let id = call.request.id()?;
        let password: Box<str> = call.request.password()?.into();
        let conn = call.conn;
        // No account has the id 0: it takes as long as any other wrong one.
        let (user, from) = (user_id(id).unwrap_or(0), self.origin(conn)?);
        let logged_in = self.clients.get(conn).and_then(|client| client.user.as_deref()).map(|me| me.session.user);
        if logged_in == Some(user) {
            return Err(Errno::InUse.into());
        }
        // Also if this one is refused untried: no user is logged in after a login that has failed.
        if logged_in.is_some() {
            self.log_out(conn, None);
        }
        self.may_log_in(user, from)?;
        let attempt = self.begin_attempt(conn, Some(user), call.seq);
        let login = Login { conn, attempt, user, from, seq: call.seq, name: Box::default() };
        let is_leaving = self.clients.get(conn).is_some_and(|client| client.leaving.is_some());
        match self.waits_for(conn, attempt) {
            Some(attempt) if is_leaving => attempt.stage = Stage::Leaving(login, password),
            _ => self.read_account(login, password),
        }
        Ok(())
    }

    fn read_account(&mut self, login: Login, password: Box<str>) {
        let user = login.user;
        self.submit(self.lane(user), Then::AccountRead(login), Op::Account { user, password });
    }

    /// Something that a login on this connection may have waited for is over.
    pub(crate) fn goes_on(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(conn).filter(|client| !client.closing) else { return };
        let (is_leaving, is_busy) = (client.leaving.is_some(), client.is_busy_besides_its_login());
        let Some(attempt) = client.attempt.as_deref_mut() else { return };
        match std::mem::take(&mut attempt.stage) {
            Stage::Leaving(login, password) if !is_leaving => self.read_account(login, password),
            Stage::Moving(login) if !is_busy => self.move_home(login),
            stage => {
                attempt.stage = stage;
                if let Some(me) = client.user.as_deref() {
                    let user = me.session.user;
                    self.load_if_due(user);
                }
            }
        }
    }

    /// The account was read. A password that was found right before is right at once; all others, also those for an
    /// id that has no account, wait for a hash.
    pub(crate) fn account_read(&mut self, login: Login, answer: Result<Answer, StoreError>) {
        self.counts.count_password(&answer);
        let refusal = match answer {
            Ok(Answer::Remembered(name)) => return self.go_home(login, name),
            Ok(Answer::Unproven(..)) if !self.is_waited_for(&login) => {
                self.counts.count_password(&Ok(Answer::Spared));
                return self.forget_login(&login);
            }
            Ok(Answer::Unproven(account, password)) => match self.enter_hashing(login.conn) {
                Ok(place) => {
                    let op = Op::Verify { user: login.user, account, password, place };
                    return self.submit(Lane::None, Then::Verified(login), op);
                }
                Err(refusal) => refusal,
            },
            _ => Errno::StoreUnavailable.into(),
        };
        self.forget_login(&login);
        self.refuse_login(&login, &refusal);
    }

    /// The password was checked.
    pub(crate) fn verified(&mut self, login: Login, answer: Result<Answer, StoreError>) {
        self.counts.count_password(&answer);
        self.enter_stage(login.conn, login.attempt, Stage::Store);
        match answer {
            Ok(Answer::Verified(Some(name))) => self.go_home(login, name),
            Ok(Answer::Verified(None)) => self.refuse_login(&login, &Errno::Rejected.into()),
            _ => {
                self.forget_login(&login);
                self.refuse_login(&login, &Errno::StoreUnavailable.into());
            }
        }
    }

    /// The password is right: the connection goes to its user's home, once nothing else of it is under way.
    fn go_home(&mut self, mut login: Login, name: String) {
        self.forgive_logins(&login);
        login.name = name.into();
        if self.homes().of_user(login.user) == self.index {
            return self.enter(login);
        }
        let conn = login.conn;
        if let Some(attempt) = self.waits_for(conn, login.attempt) {
            attempt.stage = Stage::Moving(login);
            self.goes_on(conn);
        }
    }

    fn move_home(&mut self, login: Login) {
        let (conn, to) = (login.conn, self.homes().of_user(login.user));
        if let Some(client) = self.clients.remove(conn) {
            self.fx.push(Effect::Move { conn, to, moved: Box::new(Moved { client, login }) });
        }
    }

    /// The password is right, and this is the user's home: the account is claimed, unless it is in use here.
    pub(crate) fn enter(&mut self, login: Login) {
        if !self.is_waited_for(&login) {
            return;
        }
        let user = self.users.entry(login.user).or_default();
        if user.entering().is_some() {
            return user.with_more().waiting.push(login);
        }
        let past = match &user.session {
            // A former session of which nothing is left but what it has sent: this one takes its place.
            Some(session) if user.may_return() => Some(session.id.epoch),
            Some(session) if session.is_ending() => return user.with_more().waiting.push(login),
            Some(_) => return self.refuse_login(&login, &Errno::InUse.into()),
            None => user.more().and_then(|more| more.unreleased.last().copied()),
        };
        let past = past.map(|epoch| Holder::Node(Claim { node: self.settings.node, epoch }));
        self.claim(login, past);
    }

    /// Asks the store for the account. `past`: a holder that is known to be gone and has not released it.
    pub(crate) fn claim(&mut self, login: Login, past: Option<Holder>) {
        self.next_epoch += 1;
        let (user, epoch) = (login.user, self.next_epoch);
        let session = SessionId { user, epoch };
        self.enter_stage(login.conn, login.attempt, Stage::Store);
        let entry = self.users.entry(user).or_default();
        entry.with_more().entering = Some(Entering { login, session, early: Vec::new() });
        self.write(user, Then::Claimed(session), Write::Claim { user, epoch, past });
    }

    /// The login that has claimed, or is to claim, the account for this session, if it has not been given up.
    fn entering(&self, session: SessionId) -> Option<&Entering> {
        self.users.get(&session.user)?.entering().filter(|entering| entering.session == session)
    }

    fn take_entering(&mut self, session: SessionId) -> Option<Entering> {
        let more = self.users.get_mut(&session.user)?.more_mut()?;
        more.entering.take_if(|entering| entering.session == session)
    }

    pub(crate) fn claimed(&mut self, session: SessionId, answer: Result<Answer, StoreError>) {
        let SessionId { user, epoch } = session;
        let Some(entering) = self.users.get(&user).and_then(|user| user.entering()) else { return };
        let login = entering.login.clone();
        let outcome = match answer {
            Ok(Answer::Wrote(outcome)) => Some(outcome),
            _ => None,
        };
        if matches!(outcome, Some(Outcome::Done)) {
            if !self.is_waited_for(&login) {
                return self.give_claim_back(session);
            }
            self.enter_stage(login.conn, login.attempt, Stage::Bus);
            return self.fx.push(Effect::Bus(BusOp::Listen { user, epoch }));
        }
        self.claim_failed(session);
        match outcome {
            Some(Outcome::InUse(Holder::Foreign)) => self.ask_listeners(login),
            // No session of this node uses it, or this login would have waited: it is the late success of a claim
            // that was reported as failed.
            Some(Outcome::InUse(holder @ Holder::Node(claim))) if claim.node == self.settings.node => {
                self.claim(login, Some(holder));
            }
            Some(Outcome::InUse(Holder::Node(_))) => self.refuse_entering(&login, &Errno::InUse.into()),
            Some(Outcome::NoUser) => self.refuse_entering(&login, &Errno::Rejected.into()),
            _ => {
                // It may have been claimed all the same.
                self.release_failed(session);
                self.refuse_entering(&login, &Errno::StoreUnavailable.into());
            }
        }
    }

    /// A claim came to nothing: what other nodes have sent by it goes back.
    fn claim_failed(&mut self, session: SessionId) {
        if let Some(entering) = self.take_entering(session) {
            entering.early.into_iter().for_each(|early| self.refuse_early(session.user, early));
        }
    }

    fn refuse_entering(&mut self, login: &Login, refusal: &Refusal) {
        self.refuse_login(login, refusal);
        self.let_in(login.user);
    }

    /// No login waits for this session any more.
    fn give_claim_back(&mut self, session: SessionId) {
        self.claim_failed(session);
        self.release_failed(session);
        self.let_in(session.user);
    }

    /// Releases the claim of a login that has failed. Where it may have replaced that of a session which is
    /// ending, this is the session's: what its user has sent may not be settled yet.
    fn release_failed(&mut self, session: SessionId) {
        match self.users.get_mut(&session.user).filter(|user| user.session.is_some()) {
            Some(user) => user.with_more().replaced_by.push(session.epoch),
            None => self.release(session, None),
        }
    }

    /// Logins that have waited for another one, or for the end of a session, go on.
    pub(crate) fn let_in(&mut self, user: UserId) {
        let waiting = self.users.get_mut(&user).and_then(|user| user.more_mut());
        let waiting = waiting.map_or_else(Vec::new, |more| std::mem::take(&mut more.waiting));
        waiting.into_iter().for_each(|login| self.enter(login));
        self.tidy(user);
    }

    fn ask_listeners(&mut self, login: Login) {
        let user = login.user;
        self.enter_stage(login.conn, login.attempt, Stage::Bus);
        let ticket = self.ask(Question::Listeners(login));
        self.fx.push(Effect::Bus(BusOp::CountListeners(user, ticket)));
    }

    /// The account is online, but none of our nodes has it: does a C++ node listen for its user?
    pub(crate) fn listeners_counted(&mut self, login: Login, count: Option<u32>) {
        let is_free =
            self.users.get(&login.user).is_none_or(|user| user.session.is_none() && user.entering().is_none());
        match count {
            Some(0) if !self.is_waited_for(&login) => {}
            Some(0) if is_free => self.claim(login, Some(Holder::Foreign)),
            Some(0) => self.enter(login),
            // Without the bus only the store knows, and there the account is in use.
            Some(_) | None => self.refuse_entering(&login, &Errno::InUse.into()),
        }
    }

    /// C++ nodes reach the user from now on: the session begins.
    pub(crate) fn listened(&mut self, session: SessionId) {
        let Some(login) = self.entering(session).map(|entering| entering.login.clone()) else { return };
        if !self.is_waited_for(&login) {
            return self.give_claim_back(session);
        }
        if self.settings.mixed {
            // Before this their messages would have reached no listener. What they have stored is read
            // behind it, in the same lane.
            let SessionId { user, epoch } = session;
            self.write(user, Then::Nothing, Write::Show { user, epoch });
        }
        if let Some(entering) = self.take_entering(session) {
            self.begin_session(entering);
        }
    }

    /// Reads what was stored until now, and the lists, once nothing is on the route to where the user was, and
    /// what the connection's earlier requests change is settled.
    pub(crate) fn load_if_due(&mut self, user: UserId) {
        let Some(entry) = self.users.get(&user).filter(|user| !user.has_route()) else { return };
        let Some(session) = entry.session.as_ref().filter(|session| session.is_loading()) else { return };
        let (conn, id) = (session.conn, session.id);
        let yields = self.yields(conn);
        let Some(client) = self.clients.get_mut(conn).filter(|client| client.changes == 0) else { return };
        let (Some(me), Some(attempt)) = (client.user.as_deref(), client.attempt.as_deref_mut()) else { return };
        if matches!(attempt.stage, Stage::Loading) {
            return;
        }
        attempt.stage = Stage::Loading;
        let speaks =
            Speaks { hearing: client.hearing, dialect: client.speaker.as_deref().map(|it| Arc::clone(it.dialect())) };
        let op = Op::Load { user, name: me.name.clone(), seq: attempt.seq, yields, speaks };
        self.submit(self.lane(user), Then::Loaded(id), op);
    }

    /// The login reply is ready: out with it, then with what has come meanwhile.
    pub(crate) fn loaded(&mut self, id: SessionId, answer: Result<Answer, StoreError>) {
        let session = self.session(id).filter(|session| !session.is_ending());
        let Some(conn) = session.map(|session| session.conn) else { return };
        let Ok(Answer::Loaded(loaded)) = answer else {
            self.log_out(conn, None);
            return self.refuse_attempt(conn, &Errno::StoreUnavailable.into());
        };
        self.remembered(conn, loaded.remembered.as_deref());
        let Some(client) = self.clients.get(conn) else { return };
        let framing = client.framing();
        log::debug!("{conn}: user {} has logged in from {}", id.user, client.peer);
        let has_rows = !loaded.rows.is_empty();
        if self.yields(conn).is_some() {
            self.space_out(conn);
        }
        let tag = has_rows.then(|| Tag::Reply { session: id, rows: loaded.rows.into() });
        let body = Payload::Shared(loaded.reply.into());
        self.fx.push(Effect::Send {
            conn,
            body,
            framing,
            tag,
            options: SendOptions { own_write: true, uncounted: true },
        });
        self.with_backlog(id, |backlog, cx| backlog.loaded(has_rows, loaded.more, cx));
        self.end_attempt(conn);
    }

    /// Refuses a login, if its client still waits for it.
    pub(crate) fn refuse_login(&mut self, login: &Login, refusal: &Refusal) {
        if self.is_waited_for(login) {
            self.refuse_attempt(login.conn, refusal);
        }
    }

    /// Where the client of a request is.
    pub(crate) fn origin(&self, conn: ConnId) -> Result<Origin, Refusal> {
        let client = self.clients.get(conn).ok_or(Errno::NotLoggedIn)?;
        Ok(client.peer.ip().into())
    }

    /// What a login reply leaves out where its client reads one object a time, and dies of a large one.
    fn yields(&self, conn: ConnId) -> Option<Yields> {
        let client = self.clients.get(conn).filter(|client| client.reads_one_by_one())?;
        match self.settings.legacy_client {
            true => Some(Yields::Everything),
            false => (!client.is_program()).then_some(Yields::Offline),
        }
    }

    /// Messages to such a client are spaced out: with `--legacy-client` to its end, without until it turns out to be
    /// a program.
    fn space_out(&mut self, conn: ConnId) {
        let now = self.now.at;
        if !self.settings.legacy_client
            && let Some(client) = self.clients.get_mut(conn)
        {
            client.tally(now).cpp.get_or_insert_default().begin_spacing(now);
        }
        self.fx.push(Effect::Pace(conn));
    }
}
