//! What other nodes and the bus report, and what is asked of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backlog::Nudger;
use super::letters::{Letter, Timer};
use super::questions::{Burial, Question, Waiter};
use super::receipts::{Receipt, SessionId, Text};
use super::route::PATIENCE;
use super::shard::Shard;
use super::users::{Early, User};
use super::{Answer, Effect, Then};
use crate::bus::{Addressee, Answered, BusEvent, BusOp, Delivery, Envelope, Ticket};
use crate::store::{NodeId, Outcome, StoreError, UserId, Write};
use crate::wire::Request;

/// When a join that some node has not confirmed is refused; it is still announced to that node.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);
/// When a node that was marked does nothing any more: all looks that it had begun before are over.
const LAST_LOOKS: Duration = Duration::from_secs(2);

impl Shard {
    pub(super) fn bus_event(&mut self, event: BusEvent) {
        match event {
            BusEvent::Envelope(from, envelope) => self.envelope(from, envelope),
            BusEvent::FromForeign(user, body) => match Request::parse(&body) {
                Ok(_) => {
                    self.counts.from_nodes.add(1);
                    self.deliver(user, Text::Shared(body), Receipt::Nobody);
                }
                Err(refusal) => log::warn!("a chat for user {user} on its channel is dropped: {}", refusal.text),
            },
            BusEvent::Reached(ticket, count) => self.reached(ticket.key, count),
            BusEvent::Unsent(_, Envelope::Chat { to, .. }) => {
                for Addressee { user, number, .. } in to {
                    self.with_route(user, |route, cx| route.unsent(number, cx));
                }
            }
            // All others are repeated.
            BusEvent::Unsent(..) => {}
            BusEvent::Listening { user, epoch } => self.listened(SessionId { user, epoch }),
            BusEvent::Buried { node, asker } => self.bury(node, asker),
            BusEvent::Down => self.bus_is_up(false),
            BusEvent::Up => self.bus_is_up(true),
        }
    }

    /// The bus has gone, or is back. Joins that others have announced meanwhile are not known here.
    fn bus_is_up(&mut self, is_up: bool) {
        self.is_up = is_up;
        self.groups.forget();
        self.users_with(User::has_route).into_iter().for_each(|user| self.advance_route(user));
    }

    /// The users for whom this is so, in the same order in every run of a simulation.
    fn users_with(&self, is_so: impl Fn(&User) -> bool) -> Vec<UserId> {
        let mut users: Vec<_> = self.users.iter().filter(|(_, user)| is_so(user)).map(|(id, _)| *id).collect();
        users.sort_unstable();
        users
    }

    fn envelope(&mut self, from: NodeId, envelope: Envelope) {
        match envelope {
            Envelope::Chat { body, to } => {
                for Addressee { user, epoch, number, after } in to {
                    let early = Early::Chat { body: Arc::clone(&body), from, number, after };
                    self.take_early(SessionId { user, epoch }, early);
                }
            }
            Envelope::Answer(answers) => {
                for Answered { user, number, delivery } in answers {
                    let mut took = None;
                    self.with_route(user, |route, cx| {
                        took = route.answered(number, delivery, cx);
                    });
                    if let Some(took) = took {
                        self.counts.answers.observe(took);
                    }
                }
            }
            Envelope::Nudge { user, epoch, number } => {
                self.take_early(SessionId { user, epoch }, Early::Nudge { from, number });
            }
            Envelope::Nudged { user, number } => {
                self.with_route(user, |route, cx| route.nudged(number, cx));
            }
            Envelope::Joined { group, user, ticket } => self.joined_elsewhere(group, user, from, ticket),
            Envelope::Seen { ticket } => self.join_seen(ticket.key, from),
            // The bus's own.
            Envelope::Dead { .. } | Envelope::Confirmed { .. } | Envelope::Beat { .. } => {}
        }
    }

    /// Something from another node for a session: it takes it, or will when it begins, or goes back.
    pub(super) fn take_early(&mut self, session: SessionId, early: Early) {
        let SessionId { user, epoch } = session;
        let Some(entry) = self.users.get_mut(&user) else { return self.refuse_early(user, early) };
        if entry.takes_by(epoch) {
            return self.take_from_node(user, early);
        }
        let entering = entry.more_mut().and_then(|more| more.entering.as_mut());
        match entering.filter(|entering| entering.session == session) {
            // The store has the claim, and this shard does not know it yet.
            Some(entering) => entering.early.push(early),
            None => self.refuse_early(user, early),
        }
    }

    /// There is no such session.
    pub(super) fn refuse_early(&mut self, user: UserId, early: Early) {
        match early {
            Early::Chat { from, number, .. } => {
                self.settle(Receipt::Node { node: from, to: user, number }, Delivery::Gone, false);
            }
            Early::Nudge { from, number } => {
                self.fx.send_to_node(from, Envelope::Nudged { user, number });
            }
        }
    }

    fn take_from_node(&mut self, user: UserId, early: Early) {
        let Some(entry) = self.users.get_mut(&user) else { return };
        match early {
            Early::Chat { body, from, number, after } => {
                let peer = entry.peer(from);
                // The one before it has not arrived, or has gone back: this one must not overtake it.
                peer.fenced |= after != 0 && after != peer.last;
                peer.last = number;
                let receipt = Receipt::Node { node: from, to: user, number };
                if peer.fenced {
                    return self.settle(receipt, Delivery::Gone, false);
                }
                self.counts.from_nodes.add(1);
                self.take(user, Text::Shared(body), receipt);
            }
            Early::Nudge { from, number } => {
                let peer = entry.peer(from);
                (peer.last, peer.fenced) = (number, false);
                self.drain(user, Nudger::Node(from, number));
            }
        }
    }

    // -- the dead ---------------------------------------------------------------------------

    /// A node is dead, and nothing of it follows. Every session reads the store before it takes anything else: the
    /// dead one may have stored something there without a nudge.
    fn bury(&mut self, node: NodeId, asker: Option<NodeId>) {
        self.groups.forget();
        // Its senders may come here and write before a session begins that would get this behind it.
        for entering in self.users.values_mut().filter_map(|user| user.more_mut()?.entering.as_mut()) {
            entering.early.retain(|early| early.from() != node);
        }
        let users = self.users_with(|user| user.session.is_some());
        self.burials.last += 1;
        let number = self.burials.last;
        // One more, until all of them have been drained.
        self.burials.open.insert(number, Burial { node, asker, left: users.len() + 1 });
        users.into_iter().for_each(|user| self.drain(user, Nudger::Burial(number)));
        self.burial_goes_on(number);
        let joins: Vec<u64> = self.questions.open.keys().copied().collect();
        joins.into_iter().for_each(|key| self.join_seen(key, node));
        self.fx.timer(self.now.at + LAST_LOOKS, Timer::Dead(node));
    }

    /// All that came to one session before a burial is delivered or committed.
    pub(super) fn burial_goes_on(&mut self, number: u64) {
        let Some(burial) = self.burials.open.get_mut(&number) else { return };
        burial.left -= 1;
        if burial.left > 0 {
            return;
        }
        if let Some(Burial { node: dead, asker: Some(asker), .. }) = self.burials.open.remove(&number) {
            self.fx.push(Effect::Bus(BusOp::Confirm { dead, asker, shard: self.index as u16 }));
        }
    }

    /// A node that was marked does nothing any more: its answers are not waited for.
    pub(super) fn holder_died(&mut self, node: NodeId) {
        for user in self.users_with(User::has_route) {
            self.with_route(user, |route, cx| route.holder_died(node, cx));
        }
    }

    // -- questions --------------------------------------------------------------------------

    /// Notes a question, which is looked at again after 2 s.
    pub(super) fn ask(&mut self, question: Question) -> Ticket {
        self.questions.last_ticket += 1;
        let key = self.questions.last_ticket;
        self.questions.open.insert(key, question);
        self.wait_until(self.now.at + PATIENCE, Waiter::Question(key));
        Ticket { shard: self.index as u16, key }
    }

    /// Has a waiter looked at again at this time.
    pub(super) fn wait_until(&mut self, at: Instant, waiter: Waiter) {
        self.questions.patience.insert((at, waiter));
        self.set_patience_timer();
    }

    /// One timer is set, for the first of the waiters.
    fn set_patience_timer(&mut self) {
        let Some((at, _)) = self.questions.patience.first().copied() else { return };
        if self.questions.timer_at.is_none_or(|timer| at < timer) {
            self.questions.timer_at = Some(at);
            self.fx.timer(at, Timer::Patience);
        }
    }

    /// Answers have had their time.
    pub(super) fn patience_timer(&mut self) {
        let now = self.now.at;
        if self.questions.timer_at.is_none_or(|timer| now < timer) {
            return;
        }
        while let Some((at, waiter)) = self.questions.patience.first().copied() {
            if at > now {
                break;
            }
            self.questions.patience.pop_first();
            match waiter {
                Waiter::Route(user) => self.with_route(user, |route, cx| route.expire(cx)),
                Waiter::Question(key) => self.ask_again(key),
            }
        }
        self.questions.timer_at = None;
        self.set_patience_timer();
    }

    /// No answer has come, or not all of them.
    fn ask_again(&mut self, key: u64) {
        let (now, ticket) = (self.now.at, Ticket { shard: self.index as u16, key });
        if let Some(Question::Join { group, user, nodes, whose, begun }) = self.questions.open.get_mut(&key) {
            let (group, user) = (*group, *user);
            let envelope = Envelope::Joined { group, user, ticket };
            self.fx.list.extend(nodes.iter().map(|node| Effect::Bus(BusOp::ToNode(*node, envelope.clone()))));
            // No client waits for it at the end of the server.
            let refused = whose.take_if(|_| self.shutting_down || *begun + JOIN_PATIENCE <= now);
            if self.shutting_down {
                self.questions.open.remove(&key);
            } else {
                // A node may have ended in the ordinary way. To join twice is to join once.
                self.write(user, Then::JoinLooked(key), Write::JoinGroup { user, group });
                self.wait_until(now + PATIENCE, Waiter::Question(key));
            }
            if let Some((to, _)) = refused {
                let outcome = Err(StoreError::Unavailable("some node has not confirmed it".into()));
                self.send(to.conn.reactor(), Letter::Joined { to, outcome });
            }
        } else {
            self.reached(key, None);
        }
    }

    /// The bus reports the number that it has reached; `None`: it is not known.
    fn reached(&mut self, key: u64, count: Option<u32>) {
        match self.questions.open.remove(&key) {
            Some(Question::Listeners(login)) => self.listeners_counted(login, count),
            Some(Question::Published { user, number }) => {
                let delivery = if matches!(count, Some(1..)) { Delivery::Delivered } else { Delivery::Gone };
                self.with_route(user, |route, cx| _ = route.answered(number, delivery, cx));
            }
            Some(join @ Question::Join { .. }) => _ = self.questions.open.insert(key, join),
            None => {}
        }
    }

    /// The store has named the nodes that there are: no others are waited for.
    pub(super) fn join_looked_up(&mut self, key: u64, answer: Result<Answer, StoreError>) {
        if let Ok(Answer::Wrote(Outcome::Joined { nodes: there, .. })) = answer {
            self.join_waits_for(key, |node| there.contains(&node));
        }
    }

    /// A node knows of a join, or is dead.
    fn join_seen(&mut self, key: u64, by: NodeId) {
        self.join_waits_for(key, |node| node != by);
    }

    fn join_waits_for(&mut self, key: u64, still: impl Fn(NodeId) -> bool) {
        let Some(Question::Join { nodes, .. }) = self.questions.open.get_mut(&key) else { return };
        nodes.retain(|node| still(*node));
        if !nodes.is_empty() {
            return;
        }
        if let Some(Question::Join { whose: Some((to, already)), .. }) = self.questions.open.remove(&key) {
            let outcome = Ok(Outcome::Joined { already, nodes: Vec::new() });
            self.send(to.conn.reactor(), Letter::Joined { to, outcome });
        }
    }
}
