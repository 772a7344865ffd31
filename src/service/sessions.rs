//! How a session begins, falls behind, is drained, and ends.

use std::time::Duration;

use super::backlog::{self, Backlog, Nudger};
use super::client::{Client, LoggedIn};
use super::jobs::Stored;
use super::letters::{Tag, Timer};
use super::reason::Reason;
use super::receipts::{Receipt, ReplyTo, SessionId, Undelivered};
use super::shard::Shard;
use super::users::{Ending, Entering, Session};
use super::{Answer, Effect, Limit, Op, Path, Payload, Then};
use crate::bus::{BusOp, Delivery, Envelope};
use crate::reactor::{ConnId, Recall, Unwritten};
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
        let Entering { login, session: id, early } = entering;
        let (user, conn, now) = (login.user, login.conn, self.now.at);
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.user = Some(Box::new(LoggedIn { session: id, name: login.name }));
        self.sessions += 1;
        self.counts.sessions.add(1);
        let entry = self.users.entry(user).or_default();
        // What has come for a former session while its claim was being replaced is this one's.
        let backlog = match entry.session.take() {
            Some(Session { id, backlog: Some(mut backlog), .. }) => {
                backlog.begin_anew(id.epoch, now);
                backlog
            }
            _ => Box::new(Backlog::loading(user, now)),
        };
        entry.session = Some(Session { conn, id, backlog: Some(backlog) });
        if let Some(more) = entry.more_mut() {
            more.peers.clear();
            more.ending = None;
            more.replaced_by.clear();
        }
        early.into_iter().for_each(|early| self.take_early(id, early));
        self.advance_route(user);
        self.load_if_due(user);
        self.let_in(user);
    }

    pub(super) fn session(&mut self, id: SessionId) -> Option<&mut Session> {
        self.users.get_mut(&id.user)?.session.as_mut().filter(|session| session.id == id)
    }

    /// Has a session's backlog take something, and takes the steps that it wants.
    pub(super) fn with_backlog(&mut self, id: SessionId, take: impl FnOnce(&mut Backlog, &mut backlog::Context)) {
        let mut cx = backlog::Context { now: self.now.at, steps: Vec::new() };
        let Some(backlog) = self.session(id).and_then(|session| session.backlog.as_deref_mut()) else { return };
        let before = backlog.bytes();
        take(backlog, &mut cx);
        let after = backlog.bytes();
        self.held = self.held + after - before;
        for step in cx.steps {
            self.take_backlog_step(id, step);
        }
        self.try_release(id.user);
    }

    fn take_backlog_step(&mut self, id: SessionId, step: backlog::Step) {
        let user = id.user;
        match step {
            backlog::Step::Store(parcels) => {
                self.write(user, Then::Stored(Stored::Backlog(id)), Write::Keep(parcels));
            }
            backlog::Step::Page => {
                let max_bytes = OFFLINE_IN_REPLY.min(self.settings.high_water / 2);
                self.submit(self.lane(user), Then::Page(id), Op::Page { user, max_bytes });
            }
            backlog::Step::Remove(rows) => self.remove(id, rows, Then::Removed(id)),
            backlog::Step::Forget(rows) => self.remove(id, rows, Then::Nothing),
            backlog::Step::Live => {
                let backlog = self.session(id).and_then(|session| session.backlog.take());
                self.held -= backlog.map_or(0, |backlog| backlog.bytes());
            }
            backlog::Step::Deliver(Undelivered { body, receipt }) => {
                if let Some(conn) = self.session(id).map(|session| session.conn) {
                    self.push(conn, Tag::Chat { session: id, receipt }, Payload::Shared(body));
                }
            }
            backlog::Step::Settle(receipt, delivery) => self.settle_and_count(receipt, delivery, false),
            backlog::Step::Fence(node) => {
                // What was settled before may have been the last thing that its end waited for.
                if let Some(user) = self.users.get_mut(&user).filter(|user| user.is_in(id)) {
                    user.peer(node).fenced = true;
                }
            }
            backlog::Step::Nudged(Nudger::Node(node, number)) => {
                self.fx.send_to_node(node, Envelope::Nudged { user, number });
            }
            backlog::Step::Nudged(Nudger::Burial(number)) => self.burial_goes_on(number),
            backlog::Step::Watch(at) => self.fx.timer(at, Timer::Backlog(id)),
        }
    }

    fn remove(&mut self, SessionId { user, epoch }: SessionId, rows: Vec<RowId>, then: Then) {
        self.write(user, then, Write::Remove { user, epoch, rows });
    }

    /// Something may stand in the store that must reach the user before what comes next; `nudger` waits until all
    /// that came before is delivered or committed.
    pub(super) fn drain(&mut self, user: UserId, nudger: Nudger) {
        let now = self.now.at;
        let Some(session) = self.users.get_mut(&user).and_then(|user| user.session.as_mut()) else { return };
        let id = session.id;
        if session.backlog.is_none() {
            session.backlog = Some(Box::new(Backlog::to_recall(user, now)));
            self.fx.push(Effect::Recall(session.conn, Recall::Reroutable));
        }
        self.with_backlog(id, |backlog, cx| backlog.nudge(nudger, cx));
    }

    /// The session of the user of this connection, whether it goes on or is ending.
    fn session_on(&mut self, conn: ConnId) -> Option<&mut Session> {
        let user = self.clients.get(conn)?.user_or_former()?;
        self.users.get_mut(&user)?.session.as_mut().filter(|session| session.conn == conn)
    }

    /// A reader falls behind, or the session ends: its messages go through the store. What was taken back from its
    /// queue goes first, so that the order holds.
    pub(super) fn queue_recalled(&mut self, conn: ConnId, unwritten: Vec<Unwritten<Tag>>) {
        let now = self.now.at;
        let Some(session) = self.session_on(conn) else { return };
        let (id, is_ending) = (session.id, session.is_ending());
        session.backlog.get_or_insert_with(|| {
            log::debug!("{conn}: user {} reads slowly; messages go through the store", id.user);
            Box::new(Backlog::behind(id.user, now))
        });
        let has_half_row = is_ending && unwritten.first().is_some_and(|first| first.begun && !first.tag.is_chat());
        let messages = chats(unwritten);
        self.with_backlog(id, |backlog, cx| backlog.recalled(messages, has_half_row, cx));
        if is_ending && self.session(id).is_some_and(|session| session.has_half()) {
            self.fx.timer(now + HALF, Timer::Half(id));
        }
    }

    /// The queue of a slow reader is empty.
    pub(super) fn queue_drained(&mut self, conn: ConnId) {
        if let Some(id) = self.session_on(conn).map(|session| session.id) {
            self.with_backlog(id, |backlog, cx| backlog.drained(cx));
        }
    }

    /// A message that was half written when its session ended has had its time: nothing waits for its reader.
    pub(super) fn half_timer(&mut self, id: SessionId) {
        let Some(session) = self.session(id) else { return };
        let (conn, has_half) = (session.conn, session.has_half());
        // Without its connection it is the store's already.
        if has_half && self.clients.get(conn).is_some() {
            self.fx.push(Effect::Abort(conn, Reason::HalfWritten));
        }
    }

    /// A page was read: it is pushed, or there is nothing left.
    pub(super) fn page_read(&mut self, id: SessionId, answer: Result<Answer, StoreError>) {
        let Ok(Answer::Page(page)) = answer else {
            return self.with_backlog(id, |backlog, cx| backlog.page_failed(cx));
        };
        let Some(conn) = self.session(id).filter(|session| !session.is_ending()).map(|session| session.conn) else {
            return;
        };
        let messages = page.messages.len();
        for (row, text) in page.messages {
            let body = self.fx.write(|out| out.extend_from_slice(&text));
            self.push(conn, Tag::Row { session: id, row }, body);
        }
        self.with_backlog(id, |backlog, cx| backlog.page(messages, cx));
    }

    /// Offline messages were written.
    pub(super) fn rows_written(&mut self, id: SessionId, rows: &[RowId]) {
        self.with_backlog(id, |backlog, cx| backlog.rows_written(rows, cx));
    }

    /// Rows were removed, or not.
    pub(super) fn removed(&mut self, id: SessionId, answer: Result<Answer, StoreError>) {
        if let Ok(Answer::Wrote(Outcome::Lost)) = answer
            && let Some(conn) = self.session(id).map(|session| session.conn)
        {
            let user = id.user;
            log::warn!("{conn}: the claim on user {user} is not in the store: somebody has changed the database");
            let refusal = Refusal::new(Errno::NotLoggedIn, "your session has ended, please log in again");
            return self.refuse_and_close(conn, refusal, Reason::ClaimLost);
        }
        let is_done = answer.is_ok();
        self.with_backlog(id, |backlog, cx| backlog.removed(is_done, cx));
    }

    /// A chat was written whole.
    pub(super) fn chat_written(&mut self, id: SessionId, receipt: Receipt) {
        let mut is_taken_over = false;
        if self.session(id).is_some_and(|session| session.backlog.is_some()) {
            self.with_backlog(id, |backlog, cx| is_taken_over = backlog.chat_written(cx));
        }
        if !is_taken_over {
            self.settle(receipt, Delivery::Delivered, false);
        }
    }

    /// Ends the session of a connection that stays. `ack`: the `seq` of the logout, if it is to be acknowledged.
    pub(super) fn log_out(&mut self, conn: ConnId, ack: Option<i64>) {
        let now = self.now.at;
        let Some(client) = self.clients.get_mut(conn) else { return };
        let Some(session) = client.leave() else { return };
        if let Some(tally) = &mut client.tally {
            tally.out_since = now;
        }
        if let Some(timeout) = self.settings.login_timeout {
            self.fx.timer(now + timeout, Timer::Login(conn));
        }
        self.fx.push(Effect::Recall(conn, Recall::All));
        self.end_session(session, Ending { stays: true, ack }, false);
    }

    /// Ends the session of a connection that is to be closed. The replies that are queued are still written.
    pub(super) fn end_with_connection(&mut self, conn: ConnId) {
        let Some(session) = self.clients.get_mut(conn).and_then(Client::leave) else { return };
        self.fx.push(Effect::Recall(conn, Recall::Reroutable));
        self.end_session(session, Ending { stays: true, ack: None }, true);
    }

    /// Ends a session: all that comes for it goes to the store. `closing`: the claim waits until the connection is
    /// gone, since offline messages that it still writes are removed by it.
    fn end_session(&mut self, id: SessionId, ending: Ending, closing: bool) {
        let now = self.now.at;
        let Some(entry) = self.users.get_mut(&id.user) else { return };
        entry.with_more().ending = Some(ending);
        let Some(session) = self.session(id) else { return };
        session.backlog.get_or_insert_with(|| Box::new(Backlog::behind(id.user, now)));
        self.sessions -= 1;
        self.counts.sessions.sub(1);
        self.with_backlog(id, |backlog, cx| backlog.end(closing, cx));
    }

    /// A connection is gone. What it did not write is stored, then the session ends.
    pub(super) fn connection_gone(&mut self, conn: ConnId, mut unwritten: Vec<Unwritten<Tag>>) {
        let Some(client) = self.clients.remove(conn) else { return };
        client.give_up();
        let Some(entry) = client.user_or_former().and_then(|user| self.users.get_mut(&user)) else { return };
        let Some(session) = entry.session.as_ref().filter(|session| session.conn == conn) else { return };
        let id = session.id;
        if !session.is_ending() {
            self.end_session(id, Ending { stays: false, ack: None }, false);
        } else if let Some(ending) = entry.more_mut().and_then(|more| more.ending.as_mut()) {
            ending.stays = false;
        }
        let mut refused = None;
        let begun = unwritten.first().filter(|first| first.begun).and_then(|first| first.tag.receipt());
        if let Some(backlog) = self.session(id).and_then(|session| session.backlog.as_deref_mut()) {
            match (backlog.cut(), begun) {
                (Ok(true), Some(_)) => _ = unwritten.remove(0), // the store has it, or is asked for it
                (Err(errno), Some(receipt)) => {
                    unwritten.remove(0);
                    refused = Some((receipt, errno));
                }
                _ => {}
            }
        }
        let messages = chats(unwritten).into_iter().map(|(message, _)| (message, false)).collect();
        self.with_backlog(id, |backlog, cx| backlog.recalled(messages, false, cx));
        if let Some((receipt, errno)) = refused {
            // Behind the above, since the sender may be the user who leaves.
            self.settle_and_count(receipt, Delivery::Failed(errno), false);
        }
        self.try_release(id.user);
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
        let Some(session) = entry.session.take_if(|session| session.is_over()) else { return self.tidy(user) };
        let more = entry.with_more();
        more.peers.clear();
        let stays = more.ending.take().filter(|ending| ending.stays);
        let replaced_by = std::mem::take(&mut more.replaced_by);
        if stays.is_some() {
            self.begin_change(session.conn);
            if let Some(client) = self.clients.get_mut(session.conn) {
                client.leaving = None;
            }
        }
        replaced_by.into_iter().for_each(|epoch| self.release(SessionId { user, epoch }, None));
        self.release(session.id, stays.map(|ending| ReplyTo { conn: session.conn, seq: ending.ack }));
        self.advance_route(user);
        // Behind the release, in the same lane.
        self.let_in(user);
        if stays.is_some() {
            self.goes_on(session.conn);
        }
    }

    /// Gives an account back to the store. `ended`: where a session has ended, and the `seq` of the logout.
    pub(super) fn release(&mut self, session: SessionId, ended: Option<ReplyTo>) {
        let SessionId { user, epoch } = session;
        self.write(user, Then::Released { session, ended }, Write::Release { user, epoch });
    }

    pub(super) fn released(&mut self, session: SessionId, ended: Option<ReplyTo>, answer: Result<Answer, StoreError>) {
        let SessionId { user, epoch } = session;
        if let Some(ReplyTo { conn, seq }) = ended {
            // The session is over even if the store is away.
            if let Some(seq) = seq {
                self.reply(conn, |out| reply::ack(out, seq));
            }
            self.end_change(conn);
            if seq.is_some() {
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
            // At the very end the server releases all claims at once.
            let more = self.users.entry(user).or_default().with_more();
            if !more.unreleased.contains(&epoch) {
                more.unreleased.push(epoch);
            }
            self.fx.timer(self.now.at + RETRY, Timer::Release(session));
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
    pub(super) fn settle_and_count(&mut self, receipt: Receipt, delivery: Delivery, open: bool) {
        match delivery {
            Delivery::Stored => self.counts.count_message(receipt, Path::Stored),
            Delivery::Failed(Errno::Busy) => self.counts.limits.of(Limit::Offline).add(1),
            Delivery::Failed(_) if self.shutting_down => {
                self.lost += 1;
                self.lost_by.extend(receipt.sender());
            }
            Delivery::Delivered | Delivery::Failed(_) | Delivery::Gone => {}
        }
        self.settle(receipt, delivery, open);
    }
}

/// The chats among what a connection has not written; `true`: some of the chat was. Offline messages are in the
/// store.
fn chats(unwritten: Vec<Unwritten<Tag>>) -> Vec<(Undelivered, bool)> {
    let chat = |Unwritten { tag, body, begun }| match tag {
        Tag::Chat { receipt, .. } => Some((Undelivered { body, receipt }, begun)),
        Tag::Translated(chat) => Some((Undelivered { body: chat.canon, receipt: chat.receipt }, begun)),
        Tag::Row { .. } | Tag::Reply { .. } => None,
    };
    unwritten.into_iter().filter_map(chat).collect()
}
