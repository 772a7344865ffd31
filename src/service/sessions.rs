//! How a session begins, falls behind, is drained, and ends.

use std::time::Duration;

use super::backlog::{self, Backlog, Nudger};
use super::client::LoggedIn;
use super::letters::{Stored, Tag, Timer};
use super::reason::Reason;
use super::receipts::{Receipt, Waiting};
use super::shard::Shard;
use super::users::{Ending, Entering, Session};
use super::{Answer, Effect, Limit, Op, Path, Payload, Then};
use crate::bus::{BusOp, Envelope, Fate};
use crate::reactor::{ConnId, Manner, Recall, Unwritten};
use crate::store::{Outcome, RowId, StoreError, UserId, Write};
use crate::wire::reply::OFFLINE_IN_REPLY;
use crate::wire::{Errno, Refusal, reply};

/// How soon a claim that the store would not take back is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long the rest of a half-written message has, where its session is ending.
const HALF: Duration = Duration::from_secs(1);

impl Shard {
    /// The account is claimed for this connection. What has come for the session goes into its backlog, and the
    /// login reply before it.
    pub(super) fn begin_session(&mut self, entering: Entering) {
        let Entering { login, epoch, early } = entering;
        let (user, conn) = (login.user, login.conn);
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.user = Some(Box::new(LoggedIn { user, epoch, name: login.name }));
        self.sessions += 1;
        self.counts.sessions.add(1);
        let (entry, now) = (self.users.entry(user).or_default(), self.now.at);
        // What has come for a former session while its claim was being replaced is this one's.
        let backlog = entry.session.take().and_then(|former| Some((former.epoch, former.backlog?)));
        let backlog = match backlog {
            Some((epoch, mut backlog)) => {
                backlog.begin_anew(epoch, now);
                backlog
            }
            None => Box::new(Backlog::loading(user, now)),
        };
        entry.session = Some(Session { conn, epoch, backlog: Some(backlog) });
        if let Some(more) = entry.more_mut() {
            more.peers.clear();
            more.ending = None;
            more.replaced_by.clear();
        }
        early.into_iter().for_each(|early| self.take_early(user, epoch, early));
        self.advance_route(user);
        self.load_if_due(user);
        self.let_in(user);
    }

    /// Has a session's backlog take something, and takes the steps that it wants.
    pub(super) fn with_backlog(
        &mut self,
        user: UserId,
        epoch: u64,
        take: impl FnOnce(&mut Backlog, &mut backlog::Context),
    ) {
        let mut cx = backlog::Context { now: self.now.at, steps: Vec::new() };
        let Some(session) = self.users.get_mut(&user).and_then(|user| user.session_of(epoch)) else { return };
        let Some(backlog) = session.backlog.as_deref_mut() else { return };
        let before = backlog.bytes();
        take(backlog, &mut cx);
        self.held = self.held + backlog.bytes() - before;
        self.take_steps(user, epoch, cx.steps);
    }

    fn take_steps(&mut self, user: UserId, epoch: u64, steps: Vec<backlog::Step>) {
        for step in steps {
            match step {
                backlog::Step::Store(parcels) => {
                    let then = Then::Stored(Stored::Backlog { user, epoch });
                    self.submit(self.user_lane(user), then, Op::Write(Write::Keep(parcels)));
                }
                backlog::Step::Page => {
                    let max_bytes = OFFLINE_IN_REPLY.min(self.settings.high_water / 2);
                    self.submit(self.user_lane(user), Then::Page { user, epoch }, Op::Page { user, max_bytes });
                }
                backlog::Step::Remove(rows) => self.remove(user, epoch, rows, Then::Removed { user, epoch }),
                backlog::Step::Forget(rows) => self.remove(user, epoch, rows, Then::Nothing),
                backlog::Step::Live => {
                    if let Some(session) = self.users.get_mut(&user).and_then(|user| user.session_of(epoch)) {
                        self.held -= session.backlog.take().map_or(0, |backlog| backlog.bytes());
                    }
                }
                backlog::Step::Deliver(Waiting { body, receipt }) => {
                    if let Some(conn) = self.conn_of(user, epoch) {
                        self.push(conn, user, epoch, Payload::Shared(body), receipt);
                    }
                }
                backlog::Step::Settle(receipt, fate) => self.settle_and_count(receipt, fate, false),
                backlog::Step::Fence(node) => {
                    if let Some(user) = self.users.get_mut(&user) {
                        user.peer(node).fenced = true;
                    }
                }
                backlog::Step::Nudged(Nudger::Node(node, number)) => {
                    self.fx.send_to_node(node, Envelope::Nudged { user, number });
                }
                backlog::Step::Nudged(Nudger::Burial(number)) => self.burial_goes_on(number),
                backlog::Step::Watch(at) => self.fx.timer(at, Timer::Backlog { user, epoch }),
            }
        }
        self.try_release(user);
    }

    fn conn_of(&mut self, user: UserId, epoch: u64) -> Option<ConnId> {
        self.users.get_mut(&user)?.session_of(epoch).map(|session| session.conn)
    }

    fn remove(&mut self, user: UserId, epoch: u64, rows: Vec<RowId>, then: Then) {
        self.submit(self.user_lane(user), then, Op::Write(Write::Remove { user, epoch, rows }));
    }

    /// Something may stand in the store that must reach the user before what comes next; `nudger` waits until all
    /// that came before is delivered or committed.
    pub(super) fn drain(&mut self, user: UserId, nudger: Nudger) {
        let now = self.now.at;
        let Some(session) = self.users.get_mut(&user).and_then(|user| user.session.as_mut()) else { return };
        let epoch = session.epoch;
        if session.backlog.is_none() {
            session.backlog = Some(Box::new(Backlog::to_recall(user, now)));
            self.fx.push(Effect::Recall(session.conn, Recall::Reroutable));
        }
        self.with_backlog(user, epoch, |backlog, cx| backlog.nudge(nudger, cx));
    }

    /// The session of the user of this connection, whether it goes on or is ending.
    fn session_on(&mut self, conn: ConnId) -> Option<(UserId, &mut Session)> {
        let client = self.clients.get(conn)?;
        let user = client.user.as_deref().map(|me| me.user).or(client.leaving)?;
        let session = self.users.get_mut(&user)?.session.as_mut().filter(|session| session.conn == conn)?;
        Some((user, session))
    }

    /// A reader falls behind, or the session ends: its messages take the way through the store. What was taken
    /// back from its queue goes first, so that the order holds.
    pub(super) fn queue_recalled(&mut self, conn: ConnId, unwritten: Vec<Unwritten<Tag>>) {
        let now = self.now.at;
        let Some((user, session)) = self.session_on(conn) else { return };
        let epoch = session.epoch;
        if session.backlog.is_none() {
            log::debug!("{conn}: user {user} reads slowly; messages go through the store");
            session.backlog = Some(Box::new(Backlog::behind(user, now)));
        }
        let is_ending = session.is_ending();
        let has_half_row =
            is_ending && unwritten.first().is_some_and(|first| first.begun && !matches!(first.tag, Tag::Chat { .. }));
        let messages = chats(unwritten);
        self.with_backlog(user, epoch, |backlog, cx| backlog.recalled(messages, has_half_row, cx));
        let session = self.users.get_mut(&user).and_then(|user| user.session_of(epoch));
        if is_ending && session.and_then(|session| session.backlog.as_deref()).is_some_and(Backlog::has_half) {
            self.fx.timer(self.now.at + HALF, Timer::Half { user, epoch });
        }
    }

    /// The queue of a slow reader is empty.
    pub(super) fn queue_drained(&mut self, conn: ConnId) {
        if let Some((user, session)) = self.session_on(conn) {
            let epoch = session.epoch;
            self.with_backlog(user, epoch, |backlog, cx| backlog.drained(cx));
        }
    }

    /// A message that was half written when its session ended has had its time: nobody waits for its reader.
    pub(super) fn half_timer(&mut self, user: UserId, epoch: u64) {
        let Some(session) = self.users.get_mut(&user).and_then(|user| user.session_of(epoch)) else { return };
        let conn = session.conn;
        // Without its connection it is the store's already.
        if session.backlog.as_deref().is_some_and(Backlog::has_half) && self.clients.get(conn).is_some() {
            self.fx.push(Effect::Abort(conn, Reason::HalfWritten));
        }
    }

    pub(super) fn backlog_timer(&mut self, user: UserId, epoch: u64) {
        self.with_backlog(user, epoch, |backlog, cx| backlog.time(cx));
    }

    /// A page was read: it is pushed, or there is nothing left.
    pub(super) fn page_read(&mut self, user: UserId, epoch: u64, answer: Result<Answer, StoreError>) {
        let Ok(Answer::Page(page)) = answer else {
            return self.with_backlog(user, epoch, |backlog, cx| backlog.page_failed(cx));
        };
        let Some(session) = self.users.get_mut(&user).and_then(|user| user.session_of(epoch)) else { return };
        if session.is_ending() {
            return;
        }
        let conn = session.conn;
        let Some(client) = self.clients.get(conn) else { return };
        let framing = client.framing.framing();
        let messages = page.messages.len();
        for (row, text) in page.messages {
            let body = self.fx.write(|out| out.extend_from_slice(&text));
            let tag = Some(Tag::Row { user, epoch, row });
            self.fx.push(Effect::Send { conn, body, framing, tag, manner: Manner::default() });
        }
        self.with_backlog(user, epoch, |backlog, cx| backlog.page(messages, cx));
    }

    /// Offline messages were written.
    pub(super) fn rows_written(&mut self, user: UserId, epoch: u64, rows: &[RowId]) {
        self.with_backlog(user, epoch, |backlog, cx| backlog.rows_written(rows, cx));
    }

    /// Rows were removed, or not.
    pub(super) fn removed(&mut self, user: UserId, epoch: u64, answer: Result<Answer, StoreError>) {
        if let Ok(Answer::Wrote(Outcome::Lost)) = answer
            && let Some(conn) = self.conn_of(user, epoch)
        {
            log::warn!("{conn}: the claim on user {user} is not in the store: somebody has changed the database");
            let refusal = Refusal::new(Errno::NotLoggedIn, "your session has ended, please log in again");
            return self.refuse_and_close(conn, refusal, Reason::ClaimLost);
        }
        let is_done = answer.is_ok();
        self.with_backlog(user, epoch, |backlog, cx| backlog.removed(is_done, cx));
    }

    /// A chat was written whole.
    pub(super) fn chat_written(&mut self, user: UserId, epoch: u64, receipt: Receipt) {
        let session = self.users.get_mut(&user).and_then(|user| user.session_of(epoch));
        let mut is_taken_over = false;
        if session.is_some_and(|session| session.backlog.is_some()) {
            self.with_backlog(user, epoch, |backlog, cx| is_taken_over = backlog.chat_written(cx));
        }
        if !is_taken_over {
            self.settle(receipt, Fate::Delivered, false);
        }
    }

    /// Ends the session of a connection that stays. `ack`: the `seq` of who asked for it.
    pub(super) fn log_out(&mut self, conn: ConnId, ack: Option<i64>) {
        let now = self.now.at;
        let Some(client) = self.clients.get_mut(conn) else { return };
        let Some(me) = client.user.take() else { return };
        client.leaving = Some(me.user);
        if let Some(tally) = &mut client.tally {
            tally.out_since = now;
        }
        if let Some(timeout) = self.settings.login_timeout {
            self.fx.timer(now + timeout, Timer::Login(conn));
        }
        self.fx.push(Effect::Recall(conn, Recall::All));
        self.end_session(me.user, me.epoch, Ending { stays: true, ack }, false);
    }

    /// Ends the session of a connection that is to be closed. What it was told last is still written.
    pub(super) fn end_with_connection(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        let Some(me) = client.user.take() else { return };
        client.leaving = Some(me.user);
        self.fx.push(Effect::Recall(conn, Recall::Reroutable));
        self.end_session(me.user, me.epoch, Ending { stays: true, ack: None }, true);
    }

    /// Nobody reads any more what comes for this session: all of it goes to the store. `closing`: the claim waits
    /// until the connection is gone, since offline messages that it still writes are removed by it.
    fn end_session(&mut self, user: UserId, epoch: u64, ending: Ending, closing: bool) {
        let now = self.now.at;
        let Some(entry) = self.users.get_mut(&user) else { return };
        entry.with_more().ending = Some(ending);
        let Some(session) = entry.session_of(epoch) else { return };
        session.backlog.get_or_insert_with(|| Box::new(Backlog::behind(user, now)));
        self.sessions -= 1;
        self.counts.sessions.sub(1);
        self.with_backlog(user, epoch, |backlog, cx| backlog.end(closing, cx));
    }

    /// A connection is gone. What it did not write is stored, then the session ends.
    pub(super) fn connection_gone(&mut self, conn: ConnId, mut unwritten: Vec<Unwritten<Tag>>) {
        let Some(client) = self.clients.remove(conn) else { return };
        client.give_up();
        let Some(user) = client.user.as_deref().map(|me| me.user).or(client.leaving) else { return };
        let Some(entry) = self.users.get_mut(&user) else { return };
        let Some(session) = entry.session.as_ref().filter(|session| session.conn == conn) else { return };
        let (epoch, is_ending) = (session.epoch, session.is_ending());
        if is_ending {
            if let Some(ending) = entry.more_mut().and_then(|more| more.ending.as_mut()) {
                ending.stays = false;
            }
        } else {
            self.end_session(user, epoch, Ending { stays: false, ack: None }, false);
        }
        let mut refused = None;
        let begun = unwritten.first().filter(|first| first.begun).map(|first| first.tag.clone());
        let session = self.users.get_mut(&user).and_then(|user| user.session_of(epoch));
        if let Some(backlog) = session.and_then(|session| session.backlog.as_deref_mut()) {
            match (backlog.cut(), begun) {
                (Ok(true), Some(Tag::Chat { .. })) => _ = unwritten.remove(0), // the store has it, or is asked for it
                (Err(errno), Some(Tag::Chat { receipt, .. })) => {
                    unwritten.remove(0);
                    refused = Some((receipt, errno));
                }
                _ => {}
            }
        }
        let messages = chats(unwritten).into_iter().map(|(message, _)| (message, false)).collect();
        self.with_backlog(user, epoch, |backlog, cx| backlog.recalled(messages, false, cx));
        if let Some((receipt, errno)) = refused {
            // Behind the above, since the sender may be the one who leaves.
            self.settle_and_count(receipt, Fate::Failed(errno), false);
        }
        self.try_release(user);
    }

    /// Releases the claim of a session that is ending, once nothing of it is left: what came for it is delivered
    /// or stored, what its user has sent is settled, and known wherever it is stored.
    pub(super) fn try_release(&mut self, user: UserId) {
        let Some(entry) = self.users.get_mut(&user) else { return };
        if entry.sends > 0 || entry.debts != 0 {
            if entry.may_return() {
                self.let_in(user);
            }
            return;
        }
        let is_over = |session: &mut Session| {
            session.backlog.as_deref().is_some_and(|backlog| backlog.is_ending() && backlog.is_settled())
        };
        let Some(session) = entry.session.take_if(is_over) else { return self.tidy(user) };
        let more = entry.with_more();
        more.peers.clear();
        let ending = more.ending.take().unwrap_or(Ending { stays: false, ack: None });
        let ended = ending.stays.then_some((session.conn, ending.ack));
        let replaced_by = std::mem::take(&mut more.replaced_by);
        if ending.stays {
            self.begin_change(session.conn);
            if let Some(client) = self.clients.get_mut(session.conn) {
                client.leaving = None;
            }
        }
        replaced_by.into_iter().for_each(|epoch| self.release(user, epoch, None));
        self.release(user, session.epoch, ended);
        self.advance_route(user);
        // Behind the release, in the same lane.
        self.let_in(user);
        if ending.stays {
            self.goes_on(session.conn);
        }
    }

    /// Gives an account back to the store. `ended`: where a session has ended, and the `seq` of the logout.
    pub(super) fn release(&mut self, user: UserId, epoch: u64, ended: Option<(ConnId, Option<i64>)>) {
        let then = Then::Released { user, epoch, ended };
        self.submit(self.user_lane(user), then, Op::Write(Write::Release { user, epoch }));
    }

    pub(super) fn released(
        &mut self,
        user: UserId,
        epoch: u64,
        ended: Option<(ConnId, Option<i64>)>,
        answer: Result<Answer, StoreError>,
    ) {
        if let Some((conn, ack)) = ended {
            // Nobody can help it that the store is away: the session is over.
            if let Some(seq) = ack {
                self.reply(conn, |out| reply::ack(out, seq));
            }
            self.end_change(conn);
            if ack.is_some() {
                self.paid(conn);
            }
        }
        if answer.is_ok() {
            if let Some(more) = self.users.get_mut(&user).and_then(|user| user.more_mut()) {
                more.unreleased.retain(|unreleased| *unreleased != epoch);
            }
            // Until now C++ nodes saw the user online and published for it.
            self.fx.push(Effect::Bus(BusOp::Unlisten { user, epoch }));
        } else if !self.shutting_down {
            // At the very end the server releases everybody at once.
            let more = self.users.entry(user).or_default().with_more();
            if !more.unreleased.contains(&epoch) {
                more.unreleased.push(epoch);
            }
            self.fx.timer(self.now.at + RETRY, Timer::Release { user, epoch });
        }
        self.tidy(user);
    }

    /// Forgets a user of whom nothing is known.
    pub(super) fn tidy(&mut self, user: UserId) {
        if self.users.get_mut(&user).is_some_and(|user| user.tidy()) {
            self.users.remove(&user);
        }
    }

    /// Tells what became of a message, and counts it where the store has taken or refused it.
    pub(super) fn settle_and_count(&mut self, receipt: Receipt, fate: Fate, open: bool) {
        match fate {
            Fate::Stored => self.count_message(receipt, Path::Stored, 1),
            Fate::Failed(Errno::Busy) => self.counts.limits.of(Limit::Offline).add(1),
            Fate::Failed(_) if self.shutting_down => {
                self.lost += 1;
                self.lost_by.extend(receipt.sender());
            }
            Fate::Delivered | Fate::Failed(_) | Fate::Gone => {}
        }
        self.settle(receipt, fate, open);
    }
}

/// Of what a connection has not written, the chats; `true`: some of it was. Offline messages are in the store.
fn chats(unwritten: Vec<Unwritten<Tag>>) -> Vec<(Waiting, bool)> {
    let chat = |Unwritten { tag, body, begun }| match tag {
        Tag::Chat { receipt, .. } => Some((Waiting { body, receipt }, begun)),
        Tag::Row { .. } | Tag::Reply { .. } => None,
    };
    unwritten.into_iter().filter_map(chat).collect()
}
