//! Where a message goes, and what became of it.

use std::time::Duration;

use super::backlog::Backlog;
use super::cpp::Cpp;
use super::jobs::Stored;
use super::late::Late;
use super::letters::Timer;
use super::limits::store_is_full;
use super::questions::{Question, Waiter};
use super::receipts::{Receipt, SessionId, Text, Undelivered};
use super::route::{self, Context, Route};
use super::shard::Shard;
use super::users::{Place, Session};
use super::{Answer, Effect, Letter, Op, Path, Payload, Tag, Then};
use crate::bus::{Addressee, Answered, BusOp, Delivery, Envelope};
use crate::reactor::{ConnId, SendOptions};
use crate::store::{Claim, Holder, Kept, Outcome, Parcel, StoreError, UserId, Write};
use crate::wire::{Errno, msgid, reply};

/// How soon the store is asked again what became of a COMMIT.
const DOUBT: Duration = Duration::from_secs(1);

impl Shard {
    /// At its recipient's home a message goes to the session, if the user is here; else on the route. What is on
    /// the route comes first, also where the user is here by now.
    pub(super) fn deliver(&mut self, to: UserId, text: Text<'_>, receipt: Receipt) {
        let user = self.users.get(&to);
        match user.filter(|user| !user.has_route()).and_then(|user| user.place()) {
            Some(place) => self.take_at(place, text, receipt),
            None => {
                let message = Undelivered { body: text.into_shared(), receipt: self.owed(receipt) };
                let more = self.users.entry(to).or_default().with_more();
                more.route.get_or_insert_with(|| {
                    self.routes.count += 1;
                    Route::default()
                });
                self.with_route(to, |route, cx| route.push(message, cx));
            }
        }
    }

    /// The user's session, whatever is on the route, takes a message.
    pub(super) fn take(&mut self, to: UserId, text: Text<'_>, receipt: Receipt) {
        if let Some(place) = self.users.get(&to).and_then(|user| user.place()) {
            self.take_at(place, text, receipt);
        }
    }

    /// A session takes a message: it goes to the connection, or into the backlog.
    fn take_at(&mut self, place: Place, text: Text<'_>, receipt: Receipt) {
        let Place { conn, session, is_live } = place;
        let is_from_here = receipt.sender().is_none_or(|sender| self.homes().of_user(sender) == self.index);
        self.watch(conn, Cpp::came);
        self.counts.count_message(receipt, if is_from_here { Path::SameReactor } else { Path::OtherReactor });
        if !is_live {
            let message = Undelivered { body: text.into_shared(), receipt: self.owed(receipt) };
            let most = self.settings.high_water / 2;
            return self.with_backlog(session, |backlog, cx| backlog.hold(message, most, cx));
        }
        let body = match text {
            Text::Borrowed(bytes) => self.fx.write(|out| out.extend_from_slice(bytes)),
            Text::Shared(bytes) => Payload::Shared(bytes),
        };
        self.push(conn, Tag::Chat { session, receipt }, body);
    }

    /// Queues a message on a session's connection.
    pub(super) fn push(&mut self, conn: ConnId, tag: Tag, body: Payload) {
        let Some(client) = self.clients.get(conn) else { return };
        let (framing, has_dialect) = (client.framing(), client.dialect().is_some());
        let (tag, body) = if has_dialect { self.translated(conn, tag, body) } else { (tag, body) };
        self.fx.push(Effect::Send { conn, body, framing, tag: Some(tag), options: SendOptions::default() });
    }

    /// A message does not get out in this turn: its sender waits for it from now on, and is read no faster than
    /// such messages are settled.
    fn owed(&mut self, receipt: Receipt) -> Receipt {
        match receipt {
            Receipt::Sender { user, conn, seq, owed: false } => {
                self.send(conn.reactor(), Letter::Owed { conn, user });
                Receipt::Sender { user, conn, seq, owed: true }
            }
            receipt => receipt,
        }
    }

    /// Notes a chat for whose outcome the session of its sender waits.
    pub(super) fn owe_send(&mut self, conn: ConnId, user: UserId) {
        self.owe(conn);
        self.users.entry(user).or_default().sends += 1;
    }

    /// A chat, or a group message, that was owed is settled. By `open` messages its sender is a debtor.
    pub(super) fn pay_send(&mut self, conn: ConnId, user: UserId, open: u32) {
        let may_be_over = self.users.get_mut(&user).is_some_and(|user| {
            user.debts += open.cast_signed();
            user.sends -= 1;
            user.may_be_over()
        });
        self.paid(conn);
        if may_be_over {
            self.try_release(user);
        }
    }

    /// A user is a debtor by this number of messages less.
    pub(super) fn freed(&mut self, user: UserId, debts: u32) {
        let Some(sender) = self.users.get_mut(&user) else { return };
        sender.debts -= debts.cast_signed();
        if sender.may_be_over() {
            self.try_release(user);
        }
    }

    /// Reports what became of a message where that is waited for. `open`: its sender, of this node, is a debtor.
    pub(super) fn settle(&mut self, receipt: Receipt, delivery: Delivery, open: bool) {
        match receipt {
            Receipt::Sum { shard, key, .. } => {
                let letter = Letter::FanPart { key, part: delivery.into(), open: u32::from(open) };
                self.send(usize::from(shard), letter);
            }
            Receipt::Node { node, to, number } => {
                let answer = Envelope::Answer(vec![Answered { user: to, number, delivery }]);
                self.fx.send_to_node(node, answer);
            }
            Receipt::Nobody => {
                if let Delivery::Failed(errno) = delivery {
                    log::warn!("a chat of a C++ node is lost: {}", errno.text());
                }
            }
            Receipt::Sender { conn, owed, .. } if conn.reactor() != self.index => {
                if owed || matches!(delivery, Delivery::Failed(_)) {
                    self.fx.push(Effect::Post(conn.reactor(), Letter::Settled { receipt, delivery, open }));
                }
            }
            Receipt::Sender { user, conn, seq, owed } => {
                match (delivery, seq) {
                    (Delivery::Failed(errno), _) => {
                        let refusal = if errno == Errno::Busy { store_is_full() } else { errno.into() };
                        self.refuse(conn, Some(msgid::ONE_CHAT), seq, &refusal);
                    }
                    (_, Some(seq)) => {
                        self.reply(conn, |out| reply::ack_chat(out, seq, delivery == Delivery::Delivered))
                    }
                    (_, None) => {}
                }
                if owed {
                    self.pay_send(conn, user, u32::from(open));
                }
            }
        }
    }

    // -- routes -----------------------------------------------------------------------------

    /// Has the route to a user, if there is one, take something, and takes the steps that it wants.
    pub(super) fn with_route(&mut self, user: UserId, take: impl FnOnce(&mut Route, &mut Context)) {
        let Some(entry) = self.users.get_mut(&user) else { return };
        let here = entry.session.is_some();
        let Some(route) = entry.route() else { return };
        let next = &mut self.routes.last_number;
        let mut cx = Context { here, up: self.is_up, now: self.now.at, next, steps: Vec::new() };
        let before = route.open();
        take(route, &mut cx);
        self.routes.open = self.routes.open + route.open() - before;
        for step in cx.steps {
            self.take_route_step(user, step);
        }
        self.tidy_route(user);
    }

    fn take_route_step(&mut self, user: UserId, step: route::Step) {
        match step {
            route::Step::Store => self.routes.marked.push(user),
            route::Step::Launch { holder, number, after, body, receipt } => {
                self.counts.count_message(receipt, Path::OtherNode);
                match holder {
                    Holder::Node(Claim { node, epoch }) => {
                        self.fx.launch(node, Addressee { user, epoch, number, after }, body);
                    }
                    Holder::Foreign => {
                        let ticket = self.ask(Question::Published { user, number });
                        self.fx.push(Effect::Bus(BusOp::ToUser(user, body, ticket)));
                    }
                }
            }
            route::Step::Nudge { claim, number } => {
                let nudge = Envelope::Nudge { user, epoch: claim.epoch, number };
                self.fx.send_to_node(claim.node, nudge);
            }
            route::Step::Look => {
                // A parcel with nothing in it stores nothing, and is answered all the same.
                let question = Parcel { to: user, messages: Vec::new(), past: None };
                self.write(user, Then::Looked(user), Write::Keep(vec![question]));
            }
            route::Step::Deliver(Undelivered { body, receipt }) => self.take(user, Text::Shared(body), receipt),
            route::Step::Settle { receipt, delivery, open } => self.settle_and_count(receipt, delivery, open),
            route::Step::Free(mut debtors) => {
                debtors.sort_unstable();
                for debtors in debtors.chunk_by(|one, other| one == other) {
                    let letter = Letter::Freed { user: debtors[0], debts: debtors.len() as u32 };
                    self.send(self.homes().of_user(debtors[0]), letter);
                }
            }
            route::Step::Watch(at) => self.wait_until(at, Waiter::Route(user)),
        }
    }

    /// Forgets a route that is not needed any more. Then a session that has begun goes on.
    fn tidy_route(&mut self, user: UserId) {
        let is_last = self.shutting_down;
        let Some(entry) = self.users.get_mut(&user) else { return };
        let is_here = entry.session.is_some();
        let Some(more) = entry.more_mut() else { return };
        let is_over = |route: &mut Route| route.is_nothing() || ((is_here || is_last) && route.is_idle());
        if more.route.take_if(is_over).is_none() {
            return;
        }
        self.routes.count -= 1;
        if is_here {
            self.load_if_due(user);
        }
        self.tidy(user);
    }

    /// The user has come here, or has gone: a route that waited for that goes on.
    pub(super) fn advance_route(&mut self, user: UserId) {
        self.with_route(user, |route, cx| route.advance(cx));
    }

    /// With many routes, those that nothing uses are forgotten, and again with twice as many as were left:
    /// finding one again costs a look into the store.
    pub(super) fn forget_idle_routes(&mut self) {
        let mut routes = 0;
        self.users.retain(|_, user| {
            if let Some(more) = user.more_mut() {
                more.route.take_if(|route| route.is_idle());
                routes += usize::from(more.route.is_some());
            }
            !user.tidy()
        });
        self.routes.count = routes;
        self.routes.many = self.settings.routes.max(2 * routes);
    }

    /// Submits what this input has put on routes to the store: one job for each lane.
    pub(super) fn store_marked(&mut self) {
        let mut by_lane: Vec<(Vec<UserId>, Vec<Parcel>, Option<Late>)> = vec![Default::default(); self.settings.lanes];
        for to in std::mem::take(&mut self.routes.marked) {
            let (users, parcels, late) = &mut by_lane[to as usize % self.settings.lanes];
            let Some(route) = self.users.get_mut(&to).and_then(|user| user.route()) else { continue };
            if let Some(parcel) = route.take_batch(to, late.get_or_insert_with(Late::open), parcels.len()) {
                users.push(to);
                parcels.push(parcel);
            }
        }
        for (users, parcels, late) in by_lane {
            if let Some(user) = users.first().copied() {
                let then = Then::Stored(Stored::Routes(users));
                self.submit_with(self.lane(user), then, Op::Write(Write::Keep(parcels)), late);
            }
        }
    }

    /// The store has taken these messages, or not.
    pub(super) fn stored(&mut self, whose: Stored, answer: Result<Answer, StoreError>) {
        if let Err(StoreError::InDoubt { key, .. }) = answer {
            return self.fx.timer(self.now.at + DOUBT, Timer::Doubt { whose, key });
        }
        let kept = kept(answer);
        match whose {
            Stored::Routes(users) => {
                let mut kept = kept.into_iter();
                for user in users {
                    let kept = kept.next();
                    self.with_route(user, |route, cx| route.stored(kept, cx));
                }
            }
            Stored::Backlog(id) => {
                if let Some(Kept::Elsewhere(holder)) = kept.first() {
                    let user = id.user;
                    log::warn!(
                        "user {user} is here, but {holder:?} has the account: somebody has changed the database"
                    );
                }
                if let Some(id) = self.session_of_job(id).map(|session| session.id) {
                    self.with_backlog(id, |backlog, cx| backlog.stored(&kept, cx));
                }
            }
        }
    }

    /// The session whose backlog a job of this one stores: it may have taken that over.
    fn session_of_job(&self, SessionId { user, epoch }: SessionId) -> Option<&Session> {
        let former = |session: &Session| session.backlog.as_deref().map_or(0, |backlog| backlog.former);
        let session = self.users.get(&user)?.session.as_ref();
        session.filter(|session| session.id.epoch == epoch || former(session) == epoch)
    }

    /// Asks the store what became of messages of which that is not known. Nothing that follows them is stored, or
    /// delivered, before they are known to be.
    pub(super) fn look_what_was_stored(&mut self, whose: Stored, key: u64) {
        let (user, parcels) = match &whose {
            Stored::Routes(users) => {
                let mut parcels = Vec::new();
                for user in users {
                    let route = self.users.get_mut(user).and_then(|user| user.route());
                    parcels.extend(route.and_then(|route| route.parcel(*user)));
                }
                (users.first().copied(), parcels)
            }
            Stored::Backlog(id) => {
                let backlog = self.session_of_job(*id).and_then(|session| session.backlog.as_deref());
                (Some(id.user), backlog.map_or_else(Vec::new, Backlog::parcels))
            }
        };
        if let Some(user) = user.filter(|_| !parcels.is_empty()) {
            let write = Write::Keep(parcels);
            self.submit(self.lane(user), Then::Stored(whose), Op::WriteAgain { write, key });
        }
    }

    /// The store was asked which node has the user of a route.
    pub(super) fn holder_looked_up(&mut self, user: UserId, answer: Result<Answer, StoreError>) {
        let found: Option<Holder> = match kept(answer)[..] {
            [Kept::Elsewhere(holder)] => Some(holder),
            [_] => None,
            _ => return,
        };
        self.with_route(user, |route, cx| route.still_has(found, cx));
    }
}

/// What the store has done with some parcels; none, if it has not done anything.
fn kept(answer: Result<Answer, StoreError>) -> Vec<Kept> {
    match answer {
        Ok(Answer::Wrote(Outcome::Kept(kept))) => kept,
        _ => Vec::new(),
    }
}
