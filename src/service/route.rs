//! The route to a user who is not on this node.
//!
//! All that this node's users write to such a user goes through one `Route`, at the user's home. It is a
//! state machine and nothing else: it takes a message, an answer or a result, and notes the [`Step`]s that
//! are to be taken.
//!
//! | state | what happens to a message |
//! | --- | --- |
//! | `Ask` | It goes to the store, one batch at a time. The store takes it if no node has the user, or names the node that has. |
//! | `Via` | A node has the user: each message is launched to it at once, under a number of its own. |
//! | `Halted` | Something came back, or nothing was heard of it: nothing is launched. When all that is under way is answered or given up, what is not settled goes to the store, past that node. |
//!
//! What is stored past a node is followed by a *nudge*, and the route is `Via` again: what is launched next
//! arrives behind the nudge. The senders of what was stored may not log in elsewhere until the nudge has been
//! answered; until then they are the route's *debtors*.
//!
//! If the store refuses something that may still arrive at that node, since it was given up, the route is
//! *fenced*: nothing is settled, stored or launched until a nudge has been answered, for by then it has arrived
//! or never will.
//!
//! Each launch names the last one before it, or the nudge, that is not answered yet. A node that does not have
//! that one takes nothing more of the route until its next nudge.
//!
//! C++ nodes answer nothing: what is published for them is confirmed by the number of listeners, and the next
//! message asks the store again, for nothing reports when the user goes elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::late::Late;
use super::receipts::{Bounds, Receipt, Undelivered};
use crate::bus::Delivery;
use crate::store::{Claim, Holder, Kept, NodeId, Parcel, UserId};
use crate::wire::Errno;

/// How long another node may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// What a route wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Store a batch: [`Route::take_batch`] at the end of the input.
    Store,
    /// Send a message to the node that has the user, or to the user's channel if that is a C++ node.
    Launch { holder: Holder, number: u64, after: u64, body: Arc<[u8]>, receipt: Receipt },
    /// Send a nudge, as told above, to the node that has the user.
    Nudge { claim: Claim, number: u64 },
    /// A nudge is not answered: does that node still have the user by that claim? See [`Route::still_has`].
    Look,
    /// The user lives here by now: the message goes to the session.
    Deliver(Undelivered),
    /// `open`: the sender is a debtor from now on.
    Settle { receipt: Receipt, delivery: Delivery, open: bool },
    /// They are debtors no more, each as often as it is in the list.
    Free(Vec<UserId>),
    /// [`Route::expire`] is due then.
    Watch(Instant),
}

/// What a route has to know of the world, and what it wants of it.
pub(super) struct Context<'a> {
    /// The user lives on this node.
    pub here: bool,
    /// The bus is there.
    pub up: bool,
    pub now: Instant,
    /// The last number of a launch or nudge that was given out.
    pub next: &'a mut u64,
    pub steps: Vec<Step>,
}

#[derive(Debug, Default)]
pub(super) struct Route {
    state: State,
    /// What has been neither launched nor stored, oldest first.
    queue: VecDeque<Undelivered>,
    /// What was launched and is not settled, in that order.
    launched: VecDeque<Launch>,
    /// How many of those may still be answered.
    flying: usize,
    /// What a job is storing.
    storing: Option<Batch>,
    nudge: Nudge,
    /// What the store has refused while some of it may still arrive.
    fenced: Vec<(Receipt, Errno)>,
    /// The senders of what was stored past a node that does not know it yet, once for each message.
    debtors: Vec<UserId>,
    /// It is in the list of routes with something to be stored.
    pub marked: bool,
    /// [`Step::Watch`] was noted.
    watched: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ask,
    Via(Holder),
    Halted(Holder),
}

#[derive(Debug)]
struct Launch {
    number: u64,
    message: Undelivered,
    /// When it is given up.
    due: Instant,
    state: Flight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    Flying,
    /// It did not arrive.
    Back,
    /// It is not known whether it will arrive.
    GivenUp,
}

/// Messages, each with whether it was given up, on their way into the store.
#[derive(Debug)]
struct Batch {
    messages: Vec<(Undelivered, bool)>,
    past: Option<Holder>,
    bounds: Bounds,
    /// Where more goes while the job waits for a worker, and which of its parcels this is.
    late: (Late, usize),
}

impl Batch {
    /// Whether one more message goes along: there is room for it, and the job still waits for a worker.
    fn takes(&mut self, message: &Undelivered) -> bool {
        let (late, parcel) = &self.late;
        self.bounds.admit(message) && late.add(*parcel, &message.body)
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Nudge {
    /// Nothing was stored past the node since its last answer.
    #[default]
    None,
    /// It is to be published as soon as the bus is there.
    Owed,
    /// It is published, under this number, and again when it is due.
    Asked { number: u64, due: Instant },
}

impl Route {
    /// Takes a message.
    pub fn push(&mut self, message: Undelivered, cx: &mut Context) {
        let is_next = !cx.here && self.queue.is_empty() && self.launched.is_empty();
        if is_next
            && let Some(batch) = &mut self.storing
            && batch.takes(&message)
        {
            return batch.messages.push((message, false));
        }
        self.queue.push_back(message);
        self.advance(cx);
    }

    /// Whether nothing is on it, and nothing waits for it.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && self.nudge == Nudge::None
    }

    /// Whether no message is on it.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.launched.is_empty() && self.storing.is_none() && self.fenced.is_empty()
    }

    /// Whether it is idle and knows nothing, either.
    pub fn is_nothing(&self) -> bool {
        self.is_idle() && self.state == State::Ask
    }

    /// Launches and nudges that may still be answered.
    pub fn open(&self) -> usize {
        self.flying + usize::from(matches!(self.nudge, Nudge::Asked { .. }))
    }

    /// Messages that are on it.
    pub fn len(&self) -> usize {
        let storing = self.storing.as_ref().map_or(0, |batch| batch.messages.len());
        self.queue.len() + self.launched.len() + storing + self.fenced.len()
    }

    /// Does what can be done next.
    pub fn advance(&mut self, cx: &mut Context) {
        if self.storing.is_some() || (cx.here && self.flying > 0) {
            return;
        }
        if cx.here {
            return self.go_home(cx);
        }
        if let State::Via(holder @ Holder::Node(_)) = self.state
            && !cx.up
            && (!self.queue.is_empty() || self.nudge == Nudge::Owed)
        {
            self.state = State::Halted(holder);
        }
        match self.state {
            State::Ask => self.store_what_waits(cx),
            State::Via(Holder::Foreign) if self.flying > 0 => {}
            State::Via(Holder::Foreign) if self.queue.is_empty() => self.state = State::Ask,
            State::Via(Holder::Foreign) if !cx.up => {
                self.state = State::Halted(Holder::Foreign);
                self.store_what_waits(cx);
            }
            State::Via(holder) => {
                if let Holder::Node(claim) = holder {
                    self.send_nudge(claim, cx);
                }
                while let Some(message) = self.queue.pop_front() {
                    self.launch(holder, message, cx);
                }
            }
            State::Halted(_) if self.flying > 0 => {}
            State::Halted(Holder::Node(claim)) if !self.fenced.is_empty() => {
                self.send_nudge(claim, cx);
            }
            State::Halted(_) if !self.launched.is_empty() || !self.queue.is_empty() => self.store_what_waits(cx),
            State::Halted(holder) if cx.up => {
                self.state = State::Via(holder);
                self.advance(cx);
            }
            State::Halted(_) => {}
        }
    }

    fn store_what_waits(&mut self, cx: &mut Context) {
        if (!self.queue.is_empty() || !self.launched.is_empty()) && !self.marked {
            self.marked = true;
            cx.steps.push(Step::Store);
        }
    }

    fn send_nudge(&mut self, claim: Claim, cx: &mut Context) {
        if self.nudge == Nudge::Owed && cx.up {
            *cx.next += 1;
            self.nudge = Nudge::Asked { number: *cx.next, due: cx.now + PATIENCE };
            cx.steps.push(Step::Nudge { claim, number: *cx.next });
            self.watch(cx.now + PATIENCE, cx);
        }
    }

    /// What the next launch names as the one before it.
    fn last_unanswered(&self) -> u64 {
        match (self.launched.back(), self.nudge) {
            (Some(launch), _) => launch.number,
            (None, Nudge::Asked { number, .. }) => number,
            (None, _) => 0,
        }
    }

    fn launch(&mut self, holder: Holder, message: Undelivered, cx: &mut Context) {
        let after = self.last_unanswered();
        *cx.next += 1;
        let (number, due) = (*cx.next, cx.now + PATIENCE);
        let (body, receipt) = (Arc::clone(&message.body), message.receipt);
        self.launched.push_back(Launch { number, message, due, state: Flight::Flying });
        self.flying += 1;
        self.watch(due, cx);
        cx.steps.push(Step::Launch { holder, number, after, body, receipt });
    }

    fn watch(&mut self, due: Instant, cx: &mut Context) {
        if !self.watched {
            self.watched = true;
            cx.steps.push(Step::Watch(due));
        }
    }

    /// The user lives on this node: what is left goes to the session, and no other node has the user any more.
    fn go_home(&mut self, cx: &mut Context) {
        self.forget_holder(cx);
        cx.steps.extend(self.launched.drain(..).map(|launch| Step::Deliver(launch.message)));
        cx.steps.extend(self.queue.drain(..).map(Step::Deliver));
    }

    /// No node has the user, as far as is known.
    fn forget_holder(&mut self, cx: &mut Context) {
        self.state = State::Ask;
        self.void_nudge(cx);
    }

    /// The nudge was answered, or never will be: what it was for has come to pass.
    fn void_nudge(&mut self, cx: &mut Context) {
        self.nudge = Nudge::None;
        for (receipt, errno) in self.fenced.drain(..) {
            cx.steps.push(Step::Settle { receipt, delivery: Delivery::Failed(errno), open: false });
        }
        if !self.debtors.is_empty() {
            cx.steps.push(Step::Free(std::mem::take(&mut self.debtors)));
        }
    }

    /// What became of a launch. Returns how long that took, if it was still waited for.
    pub fn answered(&mut self, number: u64, delivery: Delivery, cx: &mut Context) -> Option<Duration> {
        let is_it = |launch: &Launch| launch.number == number && launch.state == Flight::Flying;
        let at = self.launched.iter().position(is_it)?;
        let took = (cx.now + PATIENCE).saturating_duration_since(self.launched[at].due);
        self.flying -= 1;
        if delivery == Delivery::Gone {
            self.launched[at].state = Flight::Back;
            self.halt();
        } else if let Some(launch) = self.launched.remove(at) {
            cx.steps.push(Step::Settle { receipt: launch.message.receipt, delivery, open: false });
        }
        if self.state == State::Via(Holder::Foreign) && self.flying == 0 {
            self.state = State::Ask;
        }
        self.advance(cx);
        Some(took)
    }

    fn halt(&mut self) {
        if let State::Via(holder) = self.state {
            self.state = State::Halted(holder);
        }
    }

    /// A launch is not known to have reached a node.
    pub fn unsent(&mut self, number: u64, cx: &mut Context) {
        self.give_up(|launch| launch.number == number);
        self.advance(cx);
    }

    fn give_up(&mut self, which: impl Fn(&Launch) -> bool) {
        let mut given_up = 0;
        for launch in self.launched.iter_mut().filter(|launch| launch.state == Flight::Flying && which(launch)) {
            launch.state = Flight::GivenUp;
            given_up += 1;
        }
        if given_up > 0 {
            self.flying -= given_up;
            self.halt();
        }
    }

    /// Gives up what has not been answered in time.
    pub fn expire(&mut self, cx: &mut Context) {
        self.watched = false;
        self.give_up(|launch| launch.due <= cx.now);
        if let Nudge::Asked { number, due } = self.nudge
            && due <= cx.now
        {
            self.nudge = Nudge::Asked { number, due: cx.now + PATIENCE };
            cx.steps.push(Step::Look);
            if let State::Via(Holder::Node(claim)) | State::Halted(Holder::Node(claim)) = self.state
                && cx.up
            {
                cx.steps.push(Step::Nudge { claim, number });
            }
        }
        let flying = self.launched.iter().find(|launch| launch.state == Flight::Flying).map(|launch| launch.due);
        let nudge = match self.nudge {
            Nudge::Asked { due, .. } => Some(due),
            Nudge::None | Nudge::Owed => None,
        };
        if let Some(due) = [flying, nudge].into_iter().flatten().min() {
            self.watch(due, cx);
        }
        self.advance(cx);
    }

    /// A nudge was answered.
    pub fn nudged(&mut self, number: u64, cx: &mut Context) {
        if matches!(self.nudge, Nudge::Asked { number: asked, .. } if asked == number) {
            self.void_nudge(cx);
            self.advance(cx);
        }
    }

    /// The store was asked which node has the user, because a nudge is not answered. If it is not the one that was
    /// nudged, that session has delivered or stored everything, and has ended.
    pub fn still_has(&mut self, found: Option<Holder>, cx: &mut Context) {
        if matches!(self.state, State::Via(holder) | State::Halted(holder) if found != Some(holder)) {
            self.void_nudge(cx);
            self.advance(cx);
        }
    }

    /// The time is over after which a marked node does nothing any more.
    pub fn holder_died(&mut self, node: NodeId, cx: &mut Context) {
        let (State::Via(Holder::Node(claim)) | State::Halted(Holder::Node(claim))) = self.state else { return };
        if claim.node != node {
            return;
        }
        self.void_nudge(cx);
        if self.launched.is_empty() && self.storing.is_none() {
            self.state = State::Ask;
        }
        self.advance(cx);
    }

    /// What the next job is to store for the user of this route; `None`: nothing any more. What came back goes first.
    /// It is the job's parcel of this place, and what follows may go into `late` while the job waits.
    pub fn take_batch(&mut self, to: UserId, late: &Late, place: usize) -> Option<Parcel> {
        self.marked = false;
        if self.storing.is_some() || self.flying > 0 || !self.fenced.is_empty() {
            return None;
        }
        let past = match self.state {
            State::Ask => None,
            State::Halted(holder) => Some(holder),
            State::Via(_) => return None,
        };
        let (mut messages, mut bounds) = (Vec::new(), Bounds::default());
        while let Some(launch) = self.launched.pop_front_if(|launch| bounds.admit(&launch.message)) {
            messages.push((launch.message, launch.state == Flight::GivenUp));
        }
        if self.launched.is_empty() {
            while let Some(message) = self.queue.pop_front_if(|message| bounds.admit(message)) {
                messages.push((message, false));
            }
        }
        if messages.is_empty() {
            return None;
        }
        self.storing = Some(Batch { messages, past, bounds, late: (late.clone(), place) });
        self.parcel(to)
    }

    /// What a job is storing.
    pub fn parcel(&self, to: UserId) -> Option<Parcel> {
        let Batch { messages, past, .. } = self.storing.as_ref()?;
        let messages = messages.iter().map(|(message, _)| Arc::clone(&message.body)).collect();
        Some(Parcel { to, messages, past: *past })
    }

    /// What the store has done with the batch; `None`: nothing, as far as is known.
    pub fn stored(&mut self, kept: Option<Kept>, cx: &mut Context) {
        let Some(Batch { messages, past, .. }) = self.storing.take() else { return };
        let all = messages.len();
        match kept {
            Some(Kept::Stored(_)) => {
                self.settle_stored(messages, false, cx);
                self.forget_holder(cx);
            }
            Some(Kept::Past(_)) => self.stored_past(messages, past, cx),
            Some(Kept::NoUser) => {
                self.forget_holder(cx);
                fail(messages, Errno::NoSuchUser, cx);
            }
            Some(Kept::Elsewhere(holder)) => {
                if !matches!(self.state, State::Via(was) | State::Halted(was) if was == holder) {
                    self.forget_holder(cx);
                }
                let left: Vec<Undelivered> = self.launched.drain(..).map(|launch| launch.message).collect();
                let back = messages.into_iter().map(|(message, _)| message).chain(left).collect::<Vec<_>>();
                back.into_iter().rev().for_each(|message| self.queue.push_front(message));
                self.state = State::Via(holder);
            }
            Some(Kept::Full(stored)) => {
                self.stored_in_part(messages, past, stored.min(all), all, Errno::Busy, cx);
            }
            Some(Kept::Refused(stored)) => {
                let stored = stored.min(all);
                let refused = (stored + 1).min(all);
                self.stored_in_part(messages, past, stored, refused, Errno::StoreUnavailable, cx);
            }
            None => self.stored_in_part(messages, past, 0, all, Errno::StoreUnavailable, cx),
        }
        self.advance(cx);
    }

    fn settle_stored(&mut self, messages: Vec<(Undelivered, bool)>, open: bool, cx: &mut Context) {
        for (message, _) in messages {
            let debtor = message.receipt.sender().filter(|_| open);
            self.debtors.extend(debtor);
            cx.steps.push(Step::Settle {
                receipt: message.receipt,
                delivery: Delivery::Stored,
                open: debtor.is_some(),
            });
        }
    }

    /// These messages stand in the store of a user whom that node has.
    fn stored_past(&mut self, messages: Vec<(Undelivered, bool)>, past: Option<Holder>, cx: &mut Context) {
        match past {
            Some(Holder::Node(_)) => {
                self.settle_stored(messages, true, cx);
                self.nudge = Nudge::Owed;
                if self.launched.is_empty()
                    && let State::Halted(holder) = self.state
                {
                    self.state = State::Via(holder);
                }
            }
            Some(Holder::Foreign) | None => {
                self.settle_stored(messages, false, cx);
                self.forget_holder(cx);
            }
        }
    }

    /// The first `stored` of these messages are in the store, those behind them up to `refused` were refused, and
    /// the rest was not tried.
    fn stored_in_part(
        &mut self,
        mut messages: Vec<(Undelivered, bool)>,
        past: Option<Holder>,
        stored: usize,
        refused: usize,
        errno: Errno,
        cx: &mut Context,
    ) {
        self.put_back(messages.split_off(refused), cx.now);
        let failed = messages.split_off(stored);
        let is_past_a_node = matches!(past, Some(Holder::Node(_)));
        if !messages.is_empty() {
            self.stored_past(messages, past, cx);
        }
        if is_past_a_node && !cx.here && failed.iter().any(|(_, given_up)| *given_up) {
            self.fenced.extend(failed.into_iter().map(|(message, _)| (message.receipt, errno)));
            self.nudge = Nudge::Owed;
            if let State::Via(holder) = self.state {
                self.state = State::Halted(holder);
            }
            return;
        }
        fail(failed, errno, cx);
        match self.state {
            // What was not tried is stored before anything is launched.
            State::Halted(Holder::Node(_)) if !self.launched.is_empty() => {}
            State::Halted(holder @ Holder::Node(_)) => self.state = State::Via(holder),
            State::Halted(Holder::Foreign) if self.launched.is_empty() => self.state = State::Ask,
            State::Halted(Holder::Foreign) | State::Ask | State::Via(_) => {}
        }
    }

    /// Messages that the store was not asked for stand first again.
    fn put_back(&mut self, messages: Vec<(Undelivered, bool)>, now: Instant) {
        let is_asking = self.state == State::Ask;
        for (message, was_given_up) in messages.into_iter().rev() {
            if is_asking {
                self.queue.push_front(message);
            } else {
                let state = if was_given_up { Flight::GivenUp } else { Flight::Back };
                // Its number and its time are over.
                self.launched.push_front(Launch { number: 0, message, due: now, state });
            }
        }
    }
}

fn fail(messages: Vec<(Undelivered, bool)>, errno: Errno, cx: &mut Context) {
    for (message, _) in messages {
        cx.steps.push(Step::Settle { receipt: message.receipt, delivery: Delivery::Failed(errno), open: false });
    }
}

/// What is known of all routes of a shard together.
#[derive(Default)]
pub(super) struct Routes {
    pub count: usize,
    /// With this many, those that nothing uses are forgotten.
    pub many: usize,
    /// The number of the last launch or nudge.
    pub last_number: u64,
    /// Routes of which something is to be stored at the end of this input.
    pub marked: Vec<UserId>,
    /// Launches and nudges that may still be answered.
    pub open: usize,
}

#[cfg(test)]
mod tests;
