//! Ways to users who are not on this node.
//!
//! Each shard keeps a [`Way`] for every such user that somebody of it has just written to. All
//! messages to the user go through it, so that it can hold them back whenever a later one could
//! overtake an earlier one:
//!
//! - Nothing is known of the user ([`Toward::Unknown`]): the messages go to the store, one job at a
//!   time, and what comes meanwhile waits. The store takes them if nobody has the user, in the
//!   same transaction in which it looks; else it says who has, and they go there.
//! - A node has the user ([`Toward::Away`]): each message goes there at once, and is confirmed when
//!   it is delivered. One that comes back, because the user has gone or reads slowly, or of which
//!   nothing is heard for 2 s, halts the way until that is known of everything under way.
//! - Then what was not delivered is stored past that node ([`Toward::Past`]), and so is all that
//!   follows, until the node has confirmed that it drained the store; otherwise the next message
//!   could arrive before the stored ones. If the store refuses a message of which nothing was heard, it
//!   may still arrive there, and what follows waits here for that confirmation.
//! - A C++ node has the user ([`Holder::Foreign`]): what waits here is published on the user's channel,
//!   and confirmed by Redis if somebody listens. The next messages ask the store again, for nobody
//!   tells when the user goes elsewhere.
//!
//! It is always the sender's node that stores: two that store messages of one sender could not keep
//! their order.
//!
//! A user who logs in on this node is told of by `Join`; the answer waits until the way is empty.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::chat::Text;
use super::letters::{Fate, Letter, Receipt, Waiting};
use super::{Answer, Effect, Effects, Lane, Limit, Login, Op, Path, Shard, Then, Timer};
use crate::bus::{Addressee, BusOp, Envelope, Ticket};
use crate::reactor::ConnId;
use crate::store::{Claim, GroupId, Holder, Kept, NodeId, Outcome, Parcel, StoreError, UserId, Write};
use crate::wire::Errno;
use crate::wire::reply::FanOut;

/// How long another node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the bus must be away before those who have stored something past a silent node may come
/// back elsewhere although nobody could tell that node: by then the others have taken this node for
/// dead and have looked into the store, or nobody hears anything.
const DEBTS_LAST: Duration = Duration::from_secs(10);
/// The most that one job stores for one user.
const BATCH_MESSAGES: usize = 256;
const BATCH_BYTES: usize = 1 << 20;

/// The way to one user.
#[derive(Default)]
pub(super) struct Way {
    toward: Toward,
    /// What waits here, oldest first.
    queue: VecDeque<Waiting>,
    /// In the list of ways whose queue is to be stored at the end of this input.
    marked: bool,
    /// What a job in the pool is storing, and past whom.
    keeping: Option<(Vec<Waiting>, Option<Holder>)>,
    /// Questions under way that bear a message for the user, and the last of them.
    afloat: u32,
    last: u64,
    /// Something came back: nothing more is sent until nothing is afloat.
    halted: bool,
    /// What came back, by the number of its question.
    returned: Vec<(u64, Waiting)>,
    /// A nudge under way.
    nudge: Option<u64>,
    /// Something was stored since the last nudge.
    stored: bool,
    /// A question that bore a message for the user was given up: that message may still arrive.
    unanswered: bool,
    /// Nothing is stored until the node has answered a nudge. The store did not take a message that may still
    /// arrive there: nothing that was sent later may come before it, and the nudge is read behind it.
    waits_for_nudge: bool,
    /// Who sent what was stored past a node that has not drained it yet. Their claims last until it
    /// has: what they send through another node must not overtake it.
    debtors: Vec<(ConnId, UserId)>,
    /// The user lives on this node by now, and its shard waits for this way to be empty.
    joined: Option<(ConnId, u64)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Toward {
    #[default]
    Unknown,
    Away(Holder),
    Past(Holder),
}

/// What was asked of another node, or of the bus.
pub(super) enum Question {
    /// What becomes of this chat?
    Chat(Flight),
    /// Has this user's store been drained?
    Nudge(UserId),
    /// Does a C++ node that went without a word still have this account?
    Listeners(Login),
    /// Does every node know that this user has joined this group? `join` is its number in the list of joins
    /// for which somebody waits; so many nodes have confirmed, of so many, once that is known.
    Member { group: GroupId, user: UserId, join: u64, seen: u32, of: Option<u32> },
}

/// A chat under way, and what is known of it.
pub(super) struct Flight {
    to: Vec<UserId>,
    body: Arc<[u8]>,
    receipt: Receipt,
    sum: FanOut,
    gone: Vec<UserId>,
}

impl Flight {
    fn new(to: Vec<UserId>, body: &Arc<[u8]>, receipt: Receipt) -> Flight {
        Flight { to, body: Arc::clone(body), receipt, sum: FanOut::default(), gone: Vec::new() }
    }
}

/// A question, and when it is given up.
pub(super) struct Asked {
    due: std::time::Instant,
    question: Question,
}

impl Way {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.keeping.is_none() && self.afloat == 0 && self.joined.is_none()
    }

    /// Nobody has the user any more, as far as is known.
    fn forget(&mut self) {
        self.toward = Toward::Unknown;
        self.nudge = None;
        self.stored = false;
        self.nothing_is_open();
    }

    /// What might still have arrived has arrived, or never will.
    fn nothing_is_open(&mut self) {
        self.unanswered = false;
        self.waits_for_nudge = false;
    }

    /// Takes what one job may store.
    fn take_batch(&mut self) -> Vec<Waiting> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(message) = self.queue.pop_front_if(|(body, _)| {
            bytes += body.len();
            batch.is_empty() || (batch.len() < BATCH_MESSAGES && bytes <= BATCH_BYTES)
        }) {
            batch.push(message);
        }
        batch
    }

    fn put_back(&mut self, messages: Vec<Waiting>) {
        for message in messages.into_iter().rev() {
            self.queue.push_front(message);
        }
    }
}

impl Shard {
    /// Sends a message to a user who is not on this node, or whose earlier messages still are on
    /// a way.
    pub(super) fn send_away(&mut self, to: UserId, body: Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        self.way(to).queue.push_back((body, receipt));
        self.advance_way(to, fx);
    }

    /// Sends one message to several such users: one envelope for each node.
    pub(super) fn send_all_away(&mut self, to: Vec<UserId>, body: &Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        let down = self.down_since.is_some();
        let mut by_node: Vec<(NodeId, Vec<(UserId, u64)>)> = Vec::new();
        let mut waiting = Vec::new();
        for user in to {
            let way = self.way(user);
            match way.toward {
                Toward::Away(Holder::Node(claim)) if !down && !way.halted && way.queue.is_empty() => {
                    match by_node.iter_mut().find(|(node, _)| *node == claim.node) {
                        Some((_, to)) => to.push((user, claim.epoch)),
                        None => by_node.push((claim.node, vec![(user, claim.epoch)])),
                    }
                }
                _ => {
                    way.queue.push_back((Arc::clone(body), receipt));
                    waiting.push(user);
                }
            }
        }
        for (node, to) in by_node {
            self.launch(node, &to, Arc::clone(body), receipt, fx);
        }
        waiting.into_iter().for_each(|user| self.advance_way(user, fx));
    }

    fn way(&mut self, user: UserId) -> &mut Way {
        self.ways.entry(user).or_default()
    }

    /// With many ways, those that nothing uses are forgotten, and again with twice as many as were left: finding
    /// one again costs a look into the store. In the middle of an input some are only just to be used.
    pub(super) fn forget_idle_ways(&mut self) {
        if self.ways.len() >= self.many_ways {
            self.ways.retain(|_, way| !(way.is_idle() && matches!(way.toward, Toward::Away(_))));
            self.many_ways = self.settings.ways.max(2 * self.ways.len());
        }
    }

    /// Does what can be done next on a way.
    fn advance_way(&mut self, user: UserId, fx: &mut Effects) {
        self.pay_debts(user, fx);
        let is_here = self.presence.contains_key(&user) && !self.lost.contains(&user);
        let down = self.down_since.is_some();
        let Some(way) = self.ways.get_mut(&user) else { return };
        if way.keeping.is_some() || (way.afloat > 0 && (is_here || way.halted)) {
            return;
        }
        if std::mem::take(&mut way.halted) {
            way.returned.sort_unstable_by_key(|(number, _)| *number);
            let returned = std::mem::take(&mut way.returned).into_iter().map(|(_, message)| message).collect();
            way.put_back(returned);
            if let Toward::Away(holder) = way.toward {
                way.toward = Toward::Past(holder);
            }
        }
        if is_here {
            return self.end_way(user, fx);
        }
        match way.toward {
            Toward::Unknown | Toward::Past(Holder::Foreign) if way.queue.is_empty() => {
                self.ways.remove(&user); // no debts are left: there are none but to our nodes
            }
            // While the bus is away nobody could answer.
            Toward::Past(Holder::Node(claim)) if way.queue.is_empty() || (way.waits_for_nudge && !down) => {
                if (way.stored || way.waits_for_nudge) && way.nudge.is_none() && !down {
                    self.nudge(user, claim, fx);
                }
            }
            Toward::Away(Holder::Foreign) if !down && way.afloat > 0 => {} // see `arrived`
            Toward::Away(holder) if !down => {
                for (body, receipt) in std::mem::take(&mut way.queue) {
                    match holder {
                        Holder::Node(claim) => self.launch(claim.node, &[(user, claim.epoch)], body, receipt, fx),
                        Holder::Foreign => self.launch_foreign(user, body, receipt, fx),
                    }
                }
            }
            // It would only be given up 2 s later.
            Toward::Away(holder) if way.afloat == 0 && !way.queue.is_empty() => {
                way.toward = Toward::Past(holder);
                self.mark(user);
            }
            Toward::Away(_) => {}
            Toward::Unknown | Toward::Past(_) => self.mark(user),
        }
    }

    /// Frees those who waited for a drain, once nothing is left to be drained.
    fn pay_debts(&mut self, user: UserId, fx: &mut Effects) {
        if let Some(way) = self.ways.get_mut(&user)
            && !matches!(way.toward, Toward::Past(_))
        {
            for (conn, debtor) in std::mem::take(&mut way.debtors) {
                self.debt_paid(conn, debtor, fx);
            }
        }
    }

    /// Notes who sent what was stored past another node.
    fn note_debts(&mut self, user: UserId, messages: &[Waiting]) {
        for (_, receipt) in messages {
            let Some((conn, debtor)) = self.sender_of(*receipt) else { continue };
            let Some(way) = self.ways.get_mut(&user) else { return };
            if !way.debtors.contains(&(conn, debtor)) {
                way.debtors.push((conn, debtor));
                self.add_debt(conn, debtor);
            }
        }
    }

    /// The bus is away, and was 10 s ago: nobody waits for drains any more.
    pub(super) fn forgive_debts(&mut self, fx: &mut Effects) {
        if self.down_since.is_none_or(|since| since + DEBTS_LAST > self.now.at) {
            return;
        }
        let mut debtors: Vec<_> = self.ways.iter_mut().flat_map(|(_, way)| std::mem::take(&mut way.debtors)).collect();
        debtors.sort_unstable_by_key(|(_, user)| *user); // the same order in every run of a simulation
        debtors.into_iter().for_each(|(conn, user)| self.debt_paid(conn, user, fx));
    }

    /// The bus has gone away.
    pub(super) fn bus_went_down(&mut self, fx: &mut Effects) {
        self.down_since = Some(self.now.at);
        fx.push(Effect::Timer(self.now.at + DEBTS_LAST, Timer::Debts));
    }

    fn mark(&mut self, user: UserId) {
        if let Some(way) = self.ways.get_mut(&user)
            && !std::mem::replace(&mut way.marked, true)
        {
            self.marked.push(user);
        }
    }

    /// The user lives on this node: what is left goes there.
    fn end_way(&mut self, user: UserId, fx: &mut Effects) {
        let Some(way) = self.ways.remove(&user) else { return };
        for (conn, debtor) in way.debtors {
            self.debt_paid(conn, debtor, fx);
        }
        for (body, receipt) in way.queue {
            self.route(user, Text::Shared(body), receipt, fx);
        }
        if let Some((conn, epoch)) = way.joined {
            self.join_is_seen(user, conn, epoch, fx);
        }
    }

    /// The user has joined this node. True: `JoinSeen` follows when the way is empty.
    pub(super) fn way_joins(&mut self, user: UserId, conn: ConnId, epoch: u64, fx: &mut Effects) -> bool {
        let Some(way) = self.ways.get_mut(&user) else { return false };
        way.joined = Some((conn, epoch));
        self.advance_way(user, fx);
        true
    }

    /// The user has left this node before its way was empty.
    pub(super) fn way_leaves(&mut self, user: UserId, fx: &mut Effects) {
        if let Some(way) = self.ways.get_mut(&user) {
            way.joined = None;
            self.advance_way(user, fx);
        }
    }

    /// Sends a message to users, with their epochs, who live on another node.
    fn launch(&mut self, node: NodeId, to: &[(UserId, u64)], body: Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        let users = to.iter().map(|(user, _)| *user).collect();
        self.count_message(receipt, Path::OtherNode, to.len());
        let ticket = self.ask(Question::Chat(Flight::new(users, &body, receipt)), fx);
        let to = to.iter().map(|&(user, epoch)| Addressee { user, epoch, after: self.set_afloat(user, ticket.key) });
        let to = to.collect();
        fx.push(Effect::Bus(BusOp::ToNode(node, Envelope::Chat { to, body, ticket })));
    }

    /// The same for a user whom a C++ node has.
    fn launch_foreign(&mut self, user: UserId, body: Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        self.count_message(receipt, Path::OtherNode, 1);
        let ticket = self.ask(Question::Chat(Flight::new(vec![user], &body, receipt)), fx);
        self.set_afloat(user, ticket.key);
        fx.push(Effect::Bus(BusOp::ToUser(user, body, ticket)));
    }

    /// Notes that a question bears a message for the user. Returns the one before it that is not
    /// answered; 0: there is none.
    fn set_afloat(&mut self, user: UserId, key: u64) -> u64 {
        let Some(way) = self.ways.get_mut(&user) else { return 0 };
        let after = if way.afloat > 0 { way.last } else { 0 };
        way.afloat += 1;
        way.last = key;
        after
    }

    fn nudge(&mut self, user: UserId, claim: Claim, fx: &mut Effects) {
        let ticket = self.ask(Question::Nudge(user), fx);
        if let Some(way) = self.ways.get_mut(&user) {
            way.nudge = Some(ticket.key);
            way.stored = false;
        }
        let envelope = Envelope::Nudge { user, epoch: claim.epoch, ticket };
        fx.push(Effect::Bus(BusOp::ToNode(claim.node, envelope)));
    }

    /// Submits what this input has put on ways to the store: one job for each lane.
    pub(super) fn keep_marked(&mut self, fx: &mut Effects) {
        if self.marked.is_empty() {
            return;
        }
        let mut by_lane: Vec<(Vec<UserId>, Vec<Parcel>)> = vec![Default::default(); self.settings.lanes];
        for to in std::mem::take(&mut self.marked) {
            let Some(way) = self.ways.get_mut(&to) else { continue };
            way.marked = false;
            if way.keeping.is_some() || way.queue.is_empty() {
                continue;
            }
            let past = match way.toward {
                Toward::Past(holder) => Some(holder),
                Toward::Unknown => None,
                Toward::Away(_) => continue,
            };
            let batch = way.take_batch();
            let messages = batch.iter().map(|(body, _)| Arc::clone(body)).collect();
            way.keeping = Some((batch, past));
            let (users, parcels) = &mut by_lane[to as usize % self.settings.lanes];
            users.push(to);
            parcels.push(Parcel { to, messages, past });
        }
        for (lane, (users, parcels)) in by_lane.into_iter().enumerate().filter(|(_, (users, _))| !users.is_empty()) {
            self.submit(Lane::Number(lane), Then::WaysKept(users), Op::Write(Write::Keep(parcels)), fx);
        }
    }

    /// The store has taken what was on some ways, or not.
    pub(super) fn ways_kept(&mut self, users: Vec<UserId>, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        let mut kept = match answer {
            Ok(Answer::Wrote(Outcome::Kept(kept))) => kept,
            _ => Vec::new(),
        }
        .into_iter();
        for user in users {
            self.way_kept(user, kept.next(), fx);
        }
    }

    fn way_kept(&mut self, user: UserId, kept: Option<Kept>, fx: &mut Effects) {
        let Some(way) = self.ways.get_mut(&user) else { return };
        let Some((mut messages, past)) = way.keeping.take() else { return };
        // How many are stored, from the first, and what becomes of the others.
        let (stored, fate) = match kept {
            Some(kept @ (Kept::Stored(_) | Kept::Full(_) | Kept::Refused(_))) => {
                let (stored, fate) = match kept {
                    Kept::Full(stored) => (stored.min(messages.len()), Errno::Busy),
                    Kept::Refused(stored) => (stored.min(messages.len()), Errno::StoreUnavailable),
                    _ => (messages.len(), Errno::StoreUnavailable),
                };
                if let Kept::Refused(_) = kept {
                    // What stands behind the refused one is tried again without it.
                    way.put_back(messages.split_off((stored + 1).min(messages.len())));
                }
                match (way.toward, past) {
                    (Toward::Past(Holder::Node(_)), Some(_)) => {
                        // Also where nothing was: the drain that is waited for makes room.
                        way.stored = true;
                        self.note_debts(user, &messages[..stored]);
                    }
                    _ => way.forget(),
                }
                if let Kept::Full(_) = kept {
                    self.counts.limits.of(Limit::Offline).add((messages.len() - stored) as u64);
                }
                messages[..stored].iter().for_each(|(_, receipt)| self.count_message(*receipt, Path::Stored, 1));
                (stored, Fate::Failed(fate))
            }
            Some(Kept::NoUser) => {
                way.forget();
                (0, Fate::Failed(Errno::NoSuchUser))
            }
            Some(Kept::Elsewhere(holder)) => {
                way.put_back(messages);
                if way.toward == Toward::Past(holder) {
                    way.stored = true; // still there, and still silent: another nudge
                } else {
                    way.forget(); // the user is not where the nudge went
                    way.toward = Toward::Away(holder);
                }
                return self.advance_way(user, fx);
            }
            None => {
                // What was stored before may wait for a drain, so the nudges go on.
                way.stored |= matches!(way.toward, Toward::Past(Holder::Node(_)));
                (0, Fate::Failed(Errno::StoreUnavailable))
            }
        };
        // Where the way goes past a node; all others have just been forgotten.
        if let Some(way) = self.ways.get_mut(&user) {
            way.waits_for_nudge |= way.unanswered && stored < messages.len();
        }
        for (n, (_, receipt)) in messages.into_iter().enumerate() {
            self.settle(receipt, if n < stored { Fate::Stored } else { fate }, fx);
        }
        self.advance_way(user, fx);
    }

    // -- questions --------------------------------------------------------------------------

    /// Notes a question, which is given up after 2 s.
    pub(super) fn ask(&mut self, question: Question, fx: &mut Effects) -> Ticket {
        self.next_question += 1;
        let due = self.now.at + PATIENCE;
        if self.asked.is_empty() {
            fx.push(Effect::Timer(due, Timer::Questions));
        }
        self.asked.insert(self.next_question, Asked { due, question });
        Ticket { shard: self.index as u16, key: self.next_question }
    }

    /// Gives up what has waited too long. Patience is the same for all, so the oldest come first.
    pub(super) fn expire_questions(&mut self, fx: &mut Effects) {
        while let Some(first) = self.asked.first_entry() {
            if first.get().due > self.now.at {
                return fx.push(Effect::Timer(first.get().due, Timer::Questions));
            }
            let (key, asked) = first.remove_entry();
            match asked.question {
                Question::Chat(flight) => {
                    for user in &flight.to {
                        if let Some(way) = self.ways.get_mut(user) {
                            way.unanswered = true;
                        }
                    }
                    self.came_back(key, &flight.to, &flight, fx);
                }
                Question::Nudge(user) => self.nudge_is_lost(user, key, fx),
                Question::Listeners(login) => self.listeners_counted(login, None, fx),
                Question::Member { group, user, join, .. } => {
                    self.member_seen(join, fx);
                    self.tell_again(group, user, fx);
                }
            }
        }
    }

    /// A node tells what became of a chat, or of a part of its recipients; or of a nudge, that the
    /// user is not there.
    pub(super) fn settled_elsewhere(&mut self, key: u64, sum: FanOut, gone: &[UserId], fx: &mut Effects) {
        match self.asked.get_mut(&key).map(|asked| &mut asked.question) {
            Some(Question::Chat(flight)) => {
                flight.sum += sum;
                flight.gone.extend_from_slice(gone);
                if (flight.sum.total() as usize).saturating_add(flight.gone.len()) < flight.to.len() {
                    return;
                }
                if let Some(Asked { question: Question::Chat(flight), due }) = self.asked.remove(&key) {
                    self.counts.answers.observe((self.now.at + PATIENCE).saturating_duration_since(due));
                    let (back, arrived): (Vec<_>, Vec<_>) =
                        flight.to.iter().partition(|user| flight.gone.contains(user));
                    self.arrived(&arrived, flight.receipt, flight.sum, fx);
                    self.came_back(key, &back, &flight, fx);
                }
            }
            Some(Question::Nudge(user)) => {
                let user = *user;
                self.asked.remove(&key);
                if let Some(way) = self.ways.get_mut(&user).filter(|way| way.nudge == Some(key)) {
                    way.forget();
                    self.advance_way(user, fx);
                }
            }
            // Given up meanwhile; or no answer to what was asked.
            Some(Question::Listeners(_) | Question::Member { .. }) | None => {}
        }
    }

    /// A node has done what it was asked for.
    pub(super) fn seen_elsewhere(&mut self, key: u64, fx: &mut Effects) {
        match self.asked.get_mut(&key).map(|asked| &mut asked.question) {
            Some(Question::Nudge(user)) => {
                let user = *user;
                self.asked.remove(&key);
                let Some(way) = self.ways.get_mut(&user).filter(|way| way.nudge == Some(key)) else { return };
                way.nudge = None;
                way.nothing_is_open();
                if let Toward::Past(holder) = way.toward
                    && !way.stored
                    && way.queue.is_empty()
                    && way.keeping.is_none()
                {
                    way.toward = Toward::Away(holder);
                }
                self.advance_way(user, fx);
            }
            Some(Question::Member { seen, .. }) => {
                *seen += 1;
                self.check_members_told(key, fx);
            }
            Some(Question::Chat(_) | Question::Listeners(_)) | None => {}
        }
    }

    /// The bus has told how many it reached.
    pub(super) fn reached(&mut self, key: u64, count: Option<u32>, fx: &mut Effects) {
        match self.asked.get_mut(&key).map(|asked| &mut asked.question) {
            Some(Question::Member { of, join, .. }) => match count {
                Some(_) => {
                    *of = count;
                    self.check_members_told(key, fx);
                }
                // It could not be told: nobody waits for that, and it is told again when this is given up.
                None => {
                    let join = std::mem::take(join);
                    self.member_seen(join, fx);
                }
            },
            Some(_) => match self.asked.remove(&key).map(|asked| asked.question) {
                Some(Question::Chat(flight)) => match count {
                    Some(1..) => self.arrived(&flight.to, flight.receipt, Fate::Delivered.into(), fx),
                    Some(0) | None => self.came_back(key, &flight.to, &flight, fx),
                },
                Some(Question::Listeners(login)) => self.listeners_counted(login, count, fx),
                _ => {}
            },
            None => {}
        }
    }

    fn check_members_told(&mut self, key: u64, fx: &mut Effects) {
        if let Some(Asked { question: Question::Member { join, seen, of: Some(of), .. }, .. }) = self.asked.get(&key)
            && seen >= of
        {
            let join = *join;
            self.asked.remove(&key);
            self.member_seen(join, fx);
        }
    }

    /// A chat was served by another node.
    fn arrived(&mut self, users: &[UserId], receipt: Receipt, sum: FanOut, fx: &mut Effects) {
        if users.is_empty() {
            return;
        }
        for user in users {
            if let Some(way) = self.ways.get_mut(user) {
                way.afloat -= 1;
                // A C++ node's user may be one of ours by the next message, and listen to the same
                // channel; so each time the store is asked.
                if way.toward == Toward::Away(Holder::Foreign) && way.afloat == 0 && !way.halted {
                    way.forget();
                }
            }
        }
        // Another node's sum is not to be trusted to add up.
        let count = users.len() as u32;
        let delivered = sum.delivered.min(count);
        let stored = sum.stored.min(count - delivered);
        self.settle_sum(receipt, FanOut { delivered, stored, failed: count - delivered - stored }, fx);
        users.iter().for_each(|user| self.advance_way(*user, fx));
    }

    /// A chat was not delivered by another node, or nobody knows.
    fn came_back(&mut self, key: u64, users: &[UserId], flight: &Flight, fx: &mut Effects) {
        for user in users {
            let message = (Arc::clone(&flight.body), flight.receipt);
            let Some(way) = self.ways.get_mut(user) else {
                self.send_away(*user, message.0, message.1, fx);
                continue;
            };
            way.afloat -= 1;
            way.returned.push((key, message));
            way.halted = true;
            self.advance_way(*user, fx);
        }
    }

    /// No answer to a nudge. Whether its node still has the user is asked of the store, by a parcel
    /// with nothing in it.
    fn nudge_is_lost(&mut self, user: UserId, key: u64, fx: &mut Effects) {
        let lane = self.user_lane(user);
        let Some(way) = self.ways.get_mut(&user).filter(|way| way.nudge == Some(key)) else { return };
        way.nudge = None;
        way.stored = true;
        if way.keeping.is_none() && (way.queue.is_empty() || way.waits_for_nudge) {
            way.keeping = Some((Vec::new(), None));
            let parcel = Parcel { to: user, messages: Vec::new(), past: None };
            self.submit(lane, Then::WaysKept(vec![user]), Op::Write(Write::Keep(vec![parcel])), fx);
        }
    }

    /// The bus is back, or gone: ways that waited for it go on.
    pub(super) fn advance_all_ways(&mut self, fx: &mut Effects) {
        let mut users: Vec<UserId> = self.ways.keys().copied().collect();
        users.sort_unstable(); // the same order in every run of a simulation
        users.into_iter().for_each(|user| self.advance_way(user, fx));
    }

    /// Whether a message of somebody is still on a way.
    pub(super) fn ways_are_empty(&self) -> bool {
        self.ways.values().all(|way| way.queue.is_empty() && way.keeping.is_none() && way.afloat == 0)
    }

    /// `JoinSeen`, to the user's shard.
    pub(super) fn join_is_seen(&mut self, user: UserId, conn: ConnId, epoch: u64, fx: &mut Effects) {
        if conn.reactor() == self.index {
            self.join_seen(user, conn, epoch, fx);
        } else {
            fx.push(Effect::Post(conn.reactor(), Letter::JoinSeen { user, conn, epoch }));
        }
    }
}
