//! What other nodes and the bus have to tell, and what a node must check about itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::chat::Text;
use super::letters::{Letter, Receipt};
use super::session::{Mode, Session, Spill};
use super::{Effect, Effects, Now, Shard};
use crate::bus::{Addressee, BusEvent, BusOp, Envelope, Ticket};
use crate::reactor::{CloseReason, ConnId};
use crate::store::{NodeId, UserId};
use crate::wire::reply::FanOut;
use crate::wire::{Errno, Refusal, Request};

/// A chat from another node for a user whose claim is on its way.
pub(super) struct Early {
    body: Arc<[u8]>,
    /// See [`Addressee`].
    after: u64,
    whose: (NodeId, Ticket),
}

impl Shard {
    pub(super) fn bus_event(&mut self, event: BusEvent, fx: &mut Effects) {
        match event {
            BusEvent::Envelope(from, envelope) => self.envelope(from, envelope, fx),
            BusEvent::FromForeign(user, body) => match Request::parse(&body) {
                Ok(_) => {
                    self.counts.from_nodes.add(1);
                    self.route(user, Text::Shared(body), Receipt::Nobody, fx);
                }
                Err(refusal) => log::warn!("a chat for user {user} on its channel is dropped: {}", refusal.text),
            },
            BusEvent::Reached(ticket, count) => self.reached(ticket.key, count, fx),
            BusEvent::Listening { epoch, .. } => self.listened(epoch, fx),
            BusEvent::Down => {
                self.bus_went_down(fx);
                self.groups.forget();
            }
            BusEvent::Up => {
                self.down_since = None;
                self.drain_all(fx);
                self.advance_all_ways(fx);
                self.tell_untold(fx);
            }
        }
    }

    fn envelope(&mut self, from: NodeId, envelope: Envelope, fx: &mut Effects) {
        match envelope {
            Envelope::Chat { to, body, ticket } => self.remote_chat(to, &body, (from, ticket), fx),
            Envelope::Settled { ticket, sum, gone } => self.settled_elsewhere(ticket.key, sum, &gone, fx),
            Envelope::Nudge { user, epoch, ticket } => self.nudged(user, epoch, (from, ticket), fx),
            Envelope::Member { group, user, ticket } => self.remote_joined(group, user, from, ticket, fx),
            Envelope::Seen { ticket } => self.seen_elsewhere(ticket.key, fx),
        }
    }

    /// A chat from another node, for users of whom it has read that this shard has them.
    fn remote_chat(&mut self, to: Vec<Addressee>, body: &Arc<[u8]>, whose: (NodeId, Ticket), fx: &mut Effects) {
        let (mut here, mut gone) = (Vec::new(), Vec::new());
        for Addressee { user, epoch, after } in to {
            if self.takes(user, epoch, after, whose) {
                here.push(user);
            } else if let Some(early) = self.claiming.get_mut(&epoch) {
                // The store has the claim, and this shard does not know it yet.
                early.push(Early { body: Arc::clone(body), after, whose });
            } else {
                gone.push(user);
            }
        }
        if !gone.is_empty() {
            self.answer_gone(gone, whose, fx);
        }
        let receipt = Receipt::Node(whose.0, whose.1);
        self.counts.from_nodes.add(here.len() as u64);
        if let [to] = here[..] {
            self.deliver(to, Text::Shared(Arc::clone(body)), receipt, fx);
        } else if !here.is_empty() {
            self.deliver_group(here, Arc::clone(body), receipt, fx);
        }
    }

    /// Whether a session of this shard has the user by this claim, and may take a chat that was sent
    /// `after` another one. None may while its claim is in doubt: the user may have gone elsewhere, and
    /// left a connection behind that takes everything and is read by nobody.
    fn takes(&mut self, user: UserId, epoch: u64, after: u64, (node, ticket): (NodeId, Ticket)) -> bool {
        let in_doubt = self.doubt.is_some();
        let Some(session) = self.session_of(user, epoch) else { return false };
        let heard = session.heard(node, ticket.shard);
        heard.fenced |= in_doubt || (after != 0 && after != heard.last);
        heard.last = ticket.key;
        !heard.fenced
    }

    pub(super) fn session_of(&mut self, user: UserId, epoch: u64) -> Option<&mut Session> {
        let conn = *self.presence.get(&user)?;
        self.session_mut(conn, user).filter(|session| session.epoch == epoch)
    }

    /// A chat that came before its recipient's session began.
    pub(super) fn deliver_early(&mut self, user: UserId, epoch: u64, early: Early, fx: &mut Effects) {
        let Early { body, after, whose } = early;
        if self.takes(user, epoch, after, whose) {
            self.counts.from_nodes.add(1);
            self.deliver(user, Text::Shared(body), Receipt::Node(whose.0, whose.1), fx);
        } else {
            self.answer_gone(vec![user], whose, fx);
        }
    }

    fn answer_gone(&self, gone: Vec<UserId>, (node, ticket): (NodeId, Ticket), fx: &mut Effects) {
        let settled = Envelope::Settled { ticket, sum: FanOut::default(), gone };
        fx.push(Effect::Bus(BusOp::ToNode(node, settled)));
    }

    /// Whether a message was sent by a client of another node of ours.
    pub(super) fn is_of_another_node(&self, receipt: Receipt) -> bool {
        match receipt {
            Receipt::Node(..) => true,
            Receipt::Fan { shard, key } => usize::from(shard) == self.index && self.fans.whose(key).is_some(),
            Receipt::Sender { .. } | Receipt::Nobody => false,
        }
    }

    /// A message of another node cannot be delivered to `user`.
    pub(super) fn send_back(&mut self, user: UserId, receipt: Receipt, fx: &mut Effects) {
        let whose = match receipt {
            Receipt::Node(node, ticket) => Some((node, ticket)),
            Receipt::Fan { key, .. } => self.fans.whose(key),
            Receipt::Sender { .. } | Receipt::Nobody => None,
        };
        let Some((node, ticket)) = whose else { return };
        if let Some(conn) = self.presence.get(&user).copied()
            && let Some(session) = self.session_mut(conn, user)
        {
            session.heard(node, ticket.shard).fenced = true;
        }
        match receipt {
            Receipt::Fan { key, .. } => self.fan_gone(key, user, fx),
            _ => self.answer_gone(vec![user], (node, ticket), fx),
        }
    }

    /// A claim came to nothing: what other nodes have sent by it goes back.
    pub(super) fn claim_failed(&mut self, user: UserId, epoch: u64, fx: &mut Effects) {
        for Early { whose, .. } in self.claiming.remove(&epoch).into_iter().flatten() {
            self.answer_gone(vec![user], whose, fx);
        }
    }

    /// Another node has stored messages for a user of this shard: they are drained. Where the
    /// session is just beginning or ending, or in doubt, there is no answer; the other node looks
    /// again.
    fn nudged(&mut self, user: UserId, epoch: u64, nudger: (NodeId, Ticket), fx: &mut Effects) {
        let in_doubt = self.doubt.is_some();
        let Some(session) = self.session_of(user, epoch) else {
            if !self.claiming.contains_key(&epoch) {
                self.answer_gone(vec![user], nudger, fx);
            }
            return;
        };
        if in_doubt {
            return;
        }
        session.heard(nudger.0, nudger.1.shard).fenced = false;
        match &mut session.mode {
            Mode::Joining(joining) => joining.nudges.push(nudger),
            Mode::Live => {
                session.mode = Mode::Spill(Box::new(Spill::for_nudges(vec![nudger])));
                if let Some(conn) = self.presence.get(&user).copied() {
                    fx.push(Effect::Recall(conn));
                }
            }
            Mode::Spill(spill) => spill.nudge(nudger),
        }
    }

    /// Sends word that a session has drained its store.
    pub(super) fn answer_nudges(&mut self, nudges: Vec<(NodeId, Ticket)>, fx: &mut Effects) {
        for (node, ticket) in nudges {
            fx.push(Effect::Bus(BusOp::ToNode(node, Envelope::Seen { ticket })));
        }
    }

    /// The client of this shard that has sent a message.
    pub(super) fn sender_of(&self, receipt: Receipt) -> Option<(ConnId, UserId)> {
        match receipt {
            Receipt::Sender { conn, user, .. } => Some((conn, user)),
            Receipt::Fan { shard, key } if usize::from(shard) == self.index => self.fans.sender(key),
            Receipt::Fan { .. } | Receipt::Node(..) | Receipt::Nobody => None,
        }
    }

    /// While the bus is away, somebody who comes from another node may have left messages in the
    /// store of which that node could tell nobody: then what he sends from here takes the way
    /// behind them.
    pub(super) fn must_drain_first(&mut self, receipt: Receipt) -> bool {
        let Some(since) = self.down_since else { return false };
        let Some((conn, user)) = self.sender_of(receipt) else { return false };
        self.session_mut(conn, user).is_some_and(|session| session.joined > since)
    }

    /// Has a user of this node drain the store before what comes next.
    pub(super) fn drain_first(&mut self, user: UserId, fx: &mut Effects) {
        let here = self.presence.get(&user).filter(|_| !self.held.contains_key(&user));
        match here.map(|conn| conn.reactor()) {
            Some(shard) if shard == self.index => self.drain_one(user, fx),
            Some(shard) => fx.push(Effect::Post(shard, Letter::Drain { user })),
            None => {}
        }
    }

    pub(super) fn drain_one(&mut self, user: UserId, fx: &mut Effects) {
        let Some(conn) = self.presence.get(&user).copied() else { return };
        let Some(session) = self.session_mut(conn, user) else { return };
        match &mut session.mode {
            // Its store is read once all know where it is; what is stored after that may not be in the reply.
            Mode::Joining(joining) => joining.outdated |= joining.unseen == 0,
            Mode::Live => {
                session.mode = Mode::Spill(Box::new(Spill::for_nudges(Vec::new())));
                fx.push(Effect::Recall(conn));
            }
            Mode::Spill(spill) => spill.stored_behind(),
        }
    }

    /// Another node is dead, or seems so. It may have stored messages, and a join, of which it told nobody.
    pub(super) fn node_died(&mut self, fx: &mut Effects) {
        self.groups.forget();
        self.drain_all(fx);
    }

    /// Drains the store for all of this shard's users: something may stand there of which nobody
    /// could tell. This node heard nothing for a while; or another one is dead, which may have
    /// stored something without a nudge. The latter's users come back elsewhere only after this,
    /// so that nothing new of theirs overtakes it.
    pub(super) fn drain_all(&mut self, fx: &mut Effects) {
        if self.doubt.is_some() {
            return; // it comes when the claims have been looked at, for those who still have theirs
        }
        let users: Vec<UserId> = self.users().collect();
        users.into_iter().for_each(|user| self.drain_one(user, fx));
    }

    /// Who is logged in on this shard.
    fn users(&self) -> impl Iterator<Item = UserId> + '_ {
        self.clients.ids().filter_map(|conn| Some(self.clients.get(conn)?.session.as_deref()?.user))
    }

    /// The process was stopped for so long that others may have taken it for dead. Nothing more is
    /// read from anybody who is logged in until the claims have been looked at.
    pub fn was_stopped(&mut self, now: Now, fx: &mut Effects) {
        self.now = now;
        // What is still under way here goes by the store, which knows whose the users are.
        self.drain_all(fx);
        self.doubt = Some(now.at);
        self.groups.forget();
        for conn in self.clients.ids().collect::<Vec<_>>() {
            let Some(client) = self.clients.get_mut(conn) else { continue };
            if client.session.is_some() && !std::mem::replace(&mut client.doubted, true) {
                fx.push(Effect::Pause(conn));
            }
        }
        fx.push(Effect::CheckClaims);
        self.end(fx);
    }

    /// Closes the sessions whose claim the store does not know any more: this node was taken for
    /// dead, and the accounts may be in use elsewhere.
    pub(super) fn check_claims(&mut self, as_of: Instant, claims: &HashMap<UserId, u64>, fx: &mut Effects) {
        let is_certain = self.doubt.is_none_or(|since| since <= as_of);
        let was_stopped = self.doubt.is_some();
        if is_certain {
            self.doubt = None;
        }
        for conn in self.clients.ids().collect::<Vec<_>>() {
            self.check_claim(conn, as_of, claims, fx);
            let Some(client) = self.clients.get_mut(conn).filter(|_| is_certain) else { continue };
            if std::mem::take(&mut client.doubted) && !client.is_paused() {
                fx.push(Effect::Resume(conn));
            }
        }
        if was_stopped && is_certain {
            self.drain_all(fx);
            // Drains that have waited for this go on once their queue is empty.
            let spilling = |conn: &ConnId| {
                let session = self.clients.get(*conn).and_then(|client| client.session.as_deref());
                session.is_some_and(|session| matches!(session.mode, Mode::Spill(_)))
            };
            fx.list.extend(self.clients.ids().filter(spilling).map(Effect::Recall));
        }
    }

    fn check_claim(&mut self, conn: ConnId, as_of: Instant, claims: &HashMap<UserId, u64>, fx: &mut Effects) {
        let Some(session) = self.clients.get(conn).and_then(|client| client.session.as_deref()) else { return };
        let user = session.user;
        if session.joined < as_of && claims.get(&user) != Some(&session.epoch) {
            self.end_stale(user, conn, fx);
        }
    }

    /// The store says that another node has a user of this shard: this one was taken for dead.
    pub(super) fn claim_is_lost(&mut self, user: UserId, fx: &mut Effects) {
        if let Some(conn) = self.presence.get(&user).copied() {
            self.lost.insert(user);
            self.end_stale(user, conn, fx);
        }
    }

    /// Ends a session whose claim was lost.
    pub(super) fn end_stale(&mut self, user: UserId, conn: ConnId, fx: &mut Effects) {
        if conn.reactor() != self.index {
            return fx.push(Effect::Post(conn.reactor(), Letter::Stale { user, conn }));
        }
        if self.session_mut(conn, user).is_some() {
            log::warn!("{conn}: the claim on user {user} was lost, since this node seemed dead to others");
            let refusal = Refusal::new(Errno::NotLoggedIn, "your session has ended, please log in again");
            self.refuse_and_close(conn, refusal, CloseReason::ClaimLost, fx);
        }
    }
}
