//! One-to-one chat: its way to the recipient, and what became of it.

use std::borrow::Cow;
use std::sync::Arc;

use super::letters::{Fate, Letter, Receipt};
use super::limits::store_is_full;
use super::session::{Mode, Session};
use super::{Answer, Call, Effect, Effects, Keeping, Lane, Limit, Op, Path, Shard, Then, user_id};
use crate::bus::{BusOp, Envelope};
use crate::reactor::ConnId;
use crate::store::{GroupId, Kept, Outcome, Parcel, StoreError, UserId, Write};
use crate::wire::reply::FanOut;
use crate::wire::{Errno, Refusal, msgid, reply, rewrite_chat};

/// A chat's bytes: still in the read buffer, or on their way.
pub(super) enum Text<'a> {
    Borrowed(&'a [u8]),
    Shared(Arc<[u8]>),
}

impl Text<'_> {
    pub fn into_shared(self) -> Arc<[u8]> {
        match self {
            Text::Borrowed(bytes) => bytes.into(),
            Text::Shared(bytes) => bytes,
        }
    }
}

impl Shard {
    pub(super) fn one_chat(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let user = self.me(call)?.user;
        let to = call.request.toid()?;
        let text = self.outgoing(call)?;
        let to = user_id(to).ok_or(Errno::NoSuchUser)?;
        // Somebody who is there gets it in this turn; then a sender that asks for no ack need not be told
        // anything. But one who can go on at another node has to wait: what is sent from there and stored
        // must not come before what still waits here for a slow reader.
        let direct = self.presence.contains_key(&to)
            && !self.held.contains_key(&to)
            && !self.leaving.contains_key(&to)
            && !self.ways.contains_key(&to);
        let owed = call.seq.is_some() || !direct || !self.settings.alone;
        if owed {
            self.owe_send(call.conn, user, fx);
        }
        let receipt = Receipt::Sender { conn: call.conn, user, seq: call.seq, owed };
        self.route(to, Text::Borrowed(&text), receipt, fx);
        Ok(())
    }

    /// The session a request speaks for: `id` must be the logged-in user.
    pub(super) fn me(&self, call: &Call<'_>) -> Result<&Session, Refusal> {
        let session = self.clients.get(call.conn).and_then(|client| client.session.as_deref());
        let session = session.ok_or(Errno::NotLoggedIn)?;
        if call.request.id()? == i64::from(session.user) { Ok(session) } else { Err(Errno::NotYou.into()) }
    }

    /// A chat as it is forwarded: as it came, unless `name` or `time` must be set.
    pub(super) fn outgoing<'a>(&mut self, call: &Call<'a>) -> Result<Cow<'a, [u8]>, Refusal> {
        let chat = call.request.chat()?;
        let name = &self.me(call)?.name;
        if chat.is_complete(name) {
            return Ok(Cow::Borrowed(call.object));
        }
        let name = name.clone();
        let mut text = Vec::with_capacity(call.object.len() + 128);
        rewrite_chat(call.object, chat, &name, self.local_time(call.now), &mut text);
        Ok(Cow::Owned(text))
    }

    /// Notes a chat whose fate its sender's session waits for.
    pub(super) fn owe_send(&mut self, conn: ConnId, user: UserId, fx: &mut Effects) {
        self.owe(conn, fx);
        if let Some(session) = self.session_mut(conn, user) {
            session.sends += 1;
        }
    }

    /// A chat that was owed is settled.
    pub(super) fn pay_send(&mut self, conn: ConnId, user: UserId, fx: &mut Effects) {
        self.send_settled(conn, user, fx);
        self.paid(conn, fx);
    }

    /// Sends a message on its way: to the shard where the recipient lives, or away.
    pub(super) fn route(&mut self, to: UserId, text: Text<'_>, receipt: Receipt, fx: &mut Effects) {
        // What has not got through to a user who is here by now goes first.
        if self.ways.contains_key(&to) {
            return self.send_away(to, text.into_shared(), receipt, fx);
        }
        if self.must_drain_first(receipt) {
            self.drain_first(to, fx);
        }
        let Some(conn) = self.presence.get(&to).copied() else {
            return self.send_away(to, text.into_shared(), receipt, fx);
        };
        match self.held.get_mut(&to) {
            Some(held) => held.push((text.into_shared(), receipt)),
            None if conn.reactor() == self.index => {
                self.count_message(receipt, Path::SameReactor, 1);
                self.deliver_at(conn, to, text, receipt, fx);
            }
            None => {
                let letter = Letter::Chat { to, body: text.into_shared(), receipt };
                fx.push(Effect::Post(conn.reactor(), letter));
                self.count_message(receipt, Path::OtherReactor, 1);
            }
        }
    }

    /// Hands a message to a user of this shard, or to the store, if the session is ending.
    pub(super) fn deliver(&mut self, to: UserId, text: Text<'_>, receipt: Receipt, fx: &mut Effects) {
        match self.presence.get(&to).copied() {
            Some(conn) => self.deliver_at(conn, to, text, receipt, fx),
            None => self.send_away(to, text.into_shared(), receipt, fx),
        }
    }

    /// The same, where it is known where the user lives.
    fn deliver_at(&mut self, conn: ConnId, to: UserId, text: Text<'_>, receipt: Receipt, fx: &mut Effects) {
        let high_water = self.settings.high_water;
        let Some(session) = self.session_mut(conn, to) else {
            return match self.leaving.get_mut(&to) {
                Some(leaving) if leaving.barrier => leaving.queue.push((text.into_shared(), receipt)),
                _ => self.keep(to, text.into_shared(), receipt, fx),
            };
        };
        match &mut session.mode {
            Mode::Live => self.push_live(conn, to, text, receipt, fx),
            Mode::Spill(_) => self.spill(conn, to, text.into_shared(), receipt, fx),
            Mode::Joining(joining) if joining.spilled => self.keep(to, text.into_shared(), receipt, fx),
            Mode::Joining(joining) => {
                let text = text.into_shared();
                joining.bytes += text.len();
                joining.queue.push_back((text, receipt));
                if joining.bytes > high_water {
                    joining.spilled = true;
                    for (body, receipt) in std::mem::take(&mut joining.queue) {
                        self.keep(to, body, receipt, fx);
                    }
                }
            }
        }
    }

    /// Stores a message for a user of this shard whose session cannot take it; one from another
    /// node goes back, since its sender's node stores what it sends.
    pub(super) fn keep(&mut self, to: UserId, body: Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        if self.is_of_another_node(receipt) {
            return self.send_back(to, receipt, fx);
        }
        self.keeping.push(Keeping { to, body, receipt });
    }

    /// Submits what is to be stored to the pool: one job for each lane, since a group may have many members
    /// who read slowly.
    pub(super) fn keep_all(&mut self, fx: &mut Effects) {
        let messages = std::mem::take(&mut self.keeping);
        if let [message] = &messages[..] {
            return self.keep_in(self.user_lane(message.to), messages, fx);
        }
        let mut by_lane = vec![Vec::new(); self.settings.lanes];
        for message in messages {
            by_lane[message.to as usize % self.settings.lanes].push(message);
        }
        for (lane, messages) in by_lane.into_iter().enumerate().filter(|(_, messages)| !messages.is_empty()) {
            self.keep_in(Lane::Number(lane), messages, fx);
        }
    }

    fn keep_in(&mut self, lane: Lane, messages: Vec<Keeping>, fx: &mut Effects) {
        let parcel =
            |Keeping { to, body, .. }: &Keeping| Parcel { to: *to, messages: vec![Arc::clone(body)], past: None };
        let write = Write::Keep(messages.iter().map(parcel).collect());
        self.submit(lane, Then::Kept(messages), Op::Write(write), fx);
    }

    /// Messages are stored, or could not be.
    pub(super) fn kept(&mut self, messages: Vec<Keeping>, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        let mut kept = match answer {
            Ok(Answer::Wrote(Outcome::Kept(kept))) => kept,
            _ => Vec::new(),
        }
        .into_iter();
        for message in messages {
            self.one_kept(message, kept.next(), fx);
        }
    }

    fn one_kept(&mut self, message: Keeping, kept: Option<Kept>, fx: &mut Effects) {
        let Keeping { to, body, receipt } = message;
        let fate = match kept {
            Some(Kept::Stored(_)) => {
                self.count_message(receipt, Path::Stored, 1);
                Fate::Stored
            }
            Some(Kept::NoUser) => Fate::Failed(Errno::NoSuchUser),
            Some(Kept::Full(_)) => {
                self.counts.limits.of(Limit::Offline).add(1);
                Fate::Failed(Errno::Busy)
            }
            Some(Kept::Elsewhere(_)) => {
                self.claim_is_lost(to, fx);
                return self.send_away(to, body, receipt, fx);
            }
            Some(Kept::Refused(_)) | None => Fate::Failed(Errno::StoreUnavailable),
        };
        self.settle(receipt, fate, fx);
    }

    /// The same as [`Shard::settle`], for all recipients of a message together.
    pub(super) fn settle_sum(&mut self, receipt: Receipt, sum: FanOut, fx: &mut Effects) {
        match receipt {
            Receipt::Fan { shard, key } => self.fan_part(usize::from(shard), key, sum, fx),
            _ if sum.delivered > 0 => self.settle(receipt, Fate::Delivered, fx),
            _ if sum.stored > 0 => self.settle(receipt, Fate::Stored, fx),
            _ => self.settle(receipt, Fate::Failed(Errno::StoreUnavailable), fx),
        }
    }

    /// Tells whoever waits for it what became of a message.
    pub(super) fn settle(&mut self, receipt: Receipt, fate: Fate, fx: &mut Effects) {
        match receipt {
            Receipt::Fan { shard, key } => self.fan_part(usize::from(shard), key, fate.into(), fx),
            Receipt::Node(node, ticket) => {
                let settled = Envelope::Settled { ticket, sum: fate.into(), gone: Vec::new() };
                fx.push(Effect::Bus(BusOp::ToNode(node, settled)));
            }
            Receipt::Nobody => {
                if let Fate::Failed(errno) = fate {
                    log::warn!("a chat of a C++ node is lost: {}", errno.text());
                }
            }
            Receipt::Sender { conn, owed, .. } if conn.reactor() != self.index => {
                if owed || matches!(fate, Fate::Failed(_)) {
                    fx.push(Effect::Post(conn.reactor(), Letter::Settled { receipt, fate }));
                }
            }
            Receipt::Sender { conn, user, seq, owed } => {
                match (fate, seq) {
                    (Fate::Failed(errno), _) => {
                        let refusal = if errno == Errno::Busy { store_is_full() } else { errno.into() };
                        self.refuse(conn, Some(msgid::ONE_CHAT), seq, &refusal, fx);
                    }
                    (_, Some(seq)) => self.reply(conn, fx, |out| reply::ack_chat(out, seq, fate == Fate::Delivered)),
                    (_, None) => {}
                }
                if owed {
                    self.pay_send(conn, user, fx);
                }
            }
        }
    }

    /// The lane of everything about one user's account and offline messages.
    pub(super) fn user_lane(&self, user: UserId) -> Lane {
        Lane::Number(user as usize % self.settings.lanes)
    }

    pub(super) fn group_lane(&self, group: GroupId) -> Lane {
        Lane::Number(group as usize % self.settings.lanes)
    }
}
