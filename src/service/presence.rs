//! Who lives on which shard, and how a session begins and ends without a gap.
//!
//! Every shard keeps its own table of all users of the node, so that a chat finds its way without
//! a lock. The tables agree through two handshakes, whose point is always the same: a change of
//! way is finished only when everything that took the old way has arrived.
//!
//! - **Join.** The user's shard S has the claim and tells the others. Each answers `JoinSeen`: what
//!   it had for the user is in the user's lane, what follows comes by letter. Then S reads the
//!   store, which by now holds all that ever took the old way, and replies.
//! - **Leave.** S tells the others. Each answers `LeaveSeen`, behind its last letter, and holds
//!   back what comes next. Then S has put all that reached it into the user's lane, says `Gone`,
//!   and the others follow with what they held, in the same lane.
//!
//! The claim is released last: not before everything that the user has sent is settled, and all
//! that was queued for it is written or stored. Then S says `Free`.

use std::time::Duration;

use super::chat::Text;
use super::letters::{Letter, Timer, Waiting};
use super::session::{Begun, Joining, Mode, Session};
use super::{Answer, Effect, Effects, Login, Now, Op, Path, Shard, Then};
use crate::bus::BusOp;
use crate::reactor::ConnId;
use crate::store::{StoreError, UserId, Write};
use crate::wire::reply;

/// How soon a claim that the store would not take back is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A session of this shard that is ending.
pub(super) struct Leaving {
    pub conn: ConnId,
    /// Of the session's claim.
    pub epoch: u64,
    /// Shards whose letters may still be on their way.
    unseen: usize,
    /// Nothing reaches it any more; only the claim is left.
    gone: bool,
    /// Messages queued before a logout are still being written; what comes now waits for them.
    pub barrier: bool,
    /// Chats of this user that are not settled.
    pub sends: u32,
    /// Of [`Session::debts`].
    debts: u32,
    /// The logout's `seq`. It is acked when the claim is released, so that it holds on all nodes.
    ack: Option<i64>,
    /// A message that is half written, and stored as well.
    pub begun: Begun,
    /// What came behind the barrier.
    pub queue: Vec<Waiting>,
}

impl Shard {
    /// The account is claimed for this connection.
    pub(super) fn join(&mut self, login: Login, fx: &mut Effects) {
        let Login { conn, user, seq, name, epoch, .. } = login;
        let Some(client) = self.clients.get_mut(conn) else { return };
        // All shards answer, this one too.
        let joining = Joining { seq, unseen: self.shards, ..Joining::default() };
        let joined = self.now.at;
        let mode = Mode::Joining(Box::new(joining));
        client.session =
            Some(Box::new(Session { user, name, sends: 0, debts: 0, epoch, joined, heard: Vec::new(), mode }));
        self.counts.sessions.add(1);
        self.presence.insert(user, conn);
        self.lost.remove(&user);
        // The end of the former session may be heard of later than the next one's begin.
        for (body, receipt) in self.held.remove(&user).into_iter().flatten() {
            self.count_message(receipt, Path::SameReactor, 1);
            self.deliver(user, Text::Shared(body), receipt, fx);
        }
        for early in self.claiming.remove(&epoch).into_iter().flatten() {
            self.deliver_early(user, epoch, early, fx);
        }
        self.broadcast(|| Letter::Join { user, conn, epoch }, fx);
        self.see_join(user, conn, epoch, fx);
    }

    /// Answers a join: at once, or when all that is on a way to the user is there.
    fn see_join(&mut self, user: UserId, conn: ConnId, epoch: u64, fx: &mut Effects) {
        if !self.way_joins(user, conn, epoch, fx) {
            self.join_is_seen(user, conn, epoch, fx);
        }
    }

    /// A user has joined another shard.
    pub(super) fn peer_joined(&mut self, user: UserId, conn: ConnId, epoch: u64, fx: &mut Effects) {
        // Of two sessions of a user only one can have the claim. The other shard hears of this one, too,
        // and does the same: the client logs in once more.
        let own = self.presence.get(&user).copied().filter(|conn| conn.reactor() == self.index);
        if let Some(own) = own {
            self.end_stale(user, own, fx);
        }
        self.presence.insert(user, conn);
        self.lost.remove(&user);
        // As in `join`.
        for (body, receipt) in self.held.remove(&user).into_iter().flatten() {
            self.count_message(receipt, Path::OtherReactor, 1);
            fx.push(Effect::Post(conn.reactor(), Letter::Chat { to: user, body, receipt }));
        }
        self.see_join(user, conn, epoch, fx);
    }

    /// One more shard sends letters instead of storing.
    pub(super) fn join_seen(&mut self, user: UserId, conn: ConnId, epoch: u64, fx: &mut Effects) {
        // A login that was given up may be followed by another one of the same connection.
        let session = self.session_mut(conn, user).filter(|session| session.epoch == epoch);
        let Some(session) = session else { return };
        let Mode::Joining(joining) = &mut session.mode else { return };
        joining.unseen -= 1;
        self.load_if_due(conn, fx);
    }

    /// Ends a session. `barrier`: the connection lives on, and what is queued on it goes out first;
    /// `ack`: the `seq` of a logout on it.
    pub(super) fn leave(&mut self, conn: ConnId, session: Session, barrier: bool, ack: Option<i64>, fx: &mut Effects) {
        let Session { user, sends, debts, mode, epoch, .. } = session;
        let begun = mode.begun();
        self.counts.sessions.sub(1);
        let mut waiting = mode.into_waiting();
        if !barrier {
            waiting.drain(..).for_each(|(body, receipt)| self.keep(user, body, receipt, fx));
        }
        let leaving = Leaving {
            conn,
            epoch,
            unseen: self.shards - 1,
            gone: false,
            barrier,
            sends,
            debts,
            ack,
            begun,
            queue: waiting,
        };
        self.leaving.insert(user, leaving);
        self.broadcast(|| Letter::Leave { user, conn }, fx);
        self.try_release(user, fx);
    }

    /// A session on another shard is ending.
    pub(super) fn peer_leaves(&mut self, user: UserId, conn: ConnId, fx: &mut Effects) {
        if self.presence.get(&user) == Some(&conn) {
            self.held.entry(user).or_default();
        }
        fx.push(Effect::Post(conn.reactor(), Letter::LeaveSeen { user, conn }));
    }

    /// One more shard holds its messages back.
    pub(super) fn leave_seen(&mut self, user: UserId, conn: ConnId, fx: &mut Effects) {
        if let Some(leaving) = self.leaving.get_mut(&user)
            && leaving.conn == conn
        {
            leaving.unseen -= 1;
            self.try_release(user, fx);
        }
    }

    /// What was queued before the logout is written, or stored: what waited behind it follows.
    pub(super) fn barrier_passed(&mut self, user: UserId, fx: &mut Effects) {
        let Some(leaving) = self.leaving.get_mut(&user) else { return };
        leaving.barrier = false;
        for (body, receipt) in std::mem::take(&mut leaving.queue) {
            self.keep(user, body, receipt, fx);
        }
        self.try_release(user, fx);
    }

    /// Something that `user` had sent on this connection is settled.
    pub(super) fn send_settled(&mut self, conn: ConnId, user: UserId, fx: &mut Effects) {
        if let Some(session) = self.session_mut(conn, user) {
            session.sends -= 1;
        } else if let Some(leaving) = self.leaving.get_mut(&user)
            && leaving.conn == conn
        {
            leaving.sends -= 1;
            self.try_release(user, fx);
        }
    }

    /// Something that `user` has sent on this connection was stored past another node.
    pub(super) fn add_debt(&mut self, conn: ConnId, user: UserId) {
        if let Some(session) = self.session_mut(conn, user) {
            session.debts += 1;
        } else if let Some(leaving) = self.leaving.get_mut(&user).filter(|leaving| leaving.conn == conn) {
            leaving.debts += 1;
        }
    }

    /// All of that has been drained, or nobody will know.
    pub(super) fn debt_paid(&mut self, conn: ConnId, user: UserId, fx: &mut Effects) {
        if let Some(session) = self.session_mut(conn, user) {
            session.debts -= 1;
        } else if let Some(leaving) = self.leaving.get_mut(&user).filter(|leaving| leaving.conn == conn) {
            leaving.debts -= 1;
            self.try_release(user, fx);
        }
    }

    /// Ends a session for good, if nothing of it is left: first its place, then its claim. The place
    /// does not wait for what the user has sent; or two users who leave, each with a message to the
    /// other that is held, would wait for each other.
    pub(super) fn try_release(&mut self, user: UserId, fx: &mut Effects) {
        let Some(leaving) = self.leaving.get_mut(&user) else { return };
        let conn = leaving.conn;
        if !leaving.gone {
            let is_being_stored = matches!(leaving.begun, Begun::Storing(_));
            if leaving.unseen > 0 || leaving.barrier || is_being_stored {
                return;
            }
            // The lane holds everything that has reached this shard.
            leaving.gone = true;
            self.broadcast(|| Letter::Gone { user, conn }, fx);
            self.forget_place(user, conn, fx);
        }
        if let Some(Leaving { sends: 0, debts: 0, epoch, ack, .. }) = self.leaving.get(&user) {
            let (epoch, ack) = (*epoch, *ack);
            self.leaving.remove(&user);
            self.begin_change(conn);
            self.release_after(user, epoch, Some((conn, ack)), fx);
            self.broadcast(|| Letter::Free { user }, fx);
            self.resume_waiting(user, fx);
        }
    }

    /// A session on another shard has no place any more.
    pub(super) fn peer_gone(&mut self, user: UserId, conn: ConnId, fx: &mut Effects) {
        self.ending.insert(user);
        for (body, receipt) in self.forget_place(user, conn, fx) {
            self.route(user, Text::Shared(body), receipt, fx);
        }
    }

    /// A session has no place any more, unless the user has another one by now. Returns what was
    /// held for it.
    fn forget_place(&mut self, user: UserId, conn: ConnId, fx: &mut Effects) -> Vec<Waiting> {
        if self.presence.get(&user) != Some(&conn) {
            return Vec::new();
        }
        self.presence.remove(&user);
        let held = self.held.remove(&user);
        self.lost.remove(&user);
        self.way_leaves(user, fx);
        held.unwrap_or_default()
    }

    /// The claim of a session on another shard is being released.
    pub(super) fn peer_free(&mut self, user: UserId, fx: &mut Effects) {
        self.ending.remove(&user);
        self.resume_waiting(user, fx);
    }

    /// Logins that found the account's last session still ending.
    fn resume_waiting(&mut self, user: UserId, fx: &mut Effects) {
        for login in self.waiting.remove(&user).into_iter().flatten() {
            self.claim(login, None, fx);
        }
    }

    /// Whether a session of this user is just ending, anywhere on this node.
    pub(super) fn is_leaving(&self, user: UserId) -> bool {
        self.leaving.contains_key(&user) || self.ending.contains(&user) || self.held.contains_key(&user)
    }

    /// Gives an account back to the store.
    pub(super) fn release(&mut self, user: UserId, epoch: u64, fx: &mut Effects) {
        self.release_after(user, epoch, None, fx);
    }

    /// The same, where a session has ended.
    fn release_after(&mut self, user: UserId, epoch: u64, ended: Option<(ConnId, Option<i64>)>, fx: &mut Effects) {
        let then = Then::Released { user, epoch, ended };
        self.submit(self.user_lane(user), then, Op::Write(Write::Release { user, epoch }), fx);
    }

    pub(super) fn released(
        &mut self,
        user: UserId,
        epoch: u64,
        ended: Option<(ConnId, Option<i64>)>,
        answer: Result<Answer, StoreError>,
        now: Now,
        fx: &mut Effects,
    ) {
        if let Some((conn, ack)) = ended {
            // Nobody can help it that the store is away: the session is over.
            if let Some(seq) = ack {
                self.reply(conn, fx, |out| reply::ack(out, seq));
            }
            self.end_change(conn, fx);
            if ack.is_some() {
                self.paid(conn, fx);
            }
        }
        if answer.is_ok() {
            self.unreleased.remove(&user);
            // Until now C++ nodes saw the user online and published for it.
            fx.push(Effect::Bus(BusOp::Unlisten { user, epoch }));
        } else if !self.shutting_down {
            // At the very end the server releases everybody at once.
            self.unreleased.insert(user, epoch);
            fx.push(Effect::Timer(now.at + RETRY, Timer::Release { user, epoch }));
        }
    }
}
