//! What comes for a user of this node and does not go to the connection: the login reply is not out yet, the
//! client reads slowly, or the session is ending.
//!
//! A `Backlog` is a state machine and nothing else: it takes messages and results, and notes the [`Step`]s that
//! are to be taken. A session without one is *live*: its messages go to its connection.
//!
//! A client that has fallen behind is *drained*: once its connection's queue is empty, its offline messages are
//! read by the page, written, and removed, until there are none left. What comes while a page is read and written is
//! *held* here, for a second and up to a bound, so that a reader that has caught up goes live again under any load;
//! past either, and while the client reads nothing, it goes to the store, in its order, by one job at a time.
//!
//! A [`Nudger`] is told when all that was taken before it came is delivered or committed, and the store will be
//! read before anything else is delivered. That never waits for the client to read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::receipts::{Bounds, Receipt, Undelivered};
use crate::bus::Delivery;
use crate::store::{Kept, NodeId, Parcel, RowId, UserId};
use crate::wire::Errno;

/// How long something is held.
const HELD: Duration = Duration::from_secs(1);
/// How soon what the store has refused to read or to remove is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a backlog wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Store these: a half-written message in a parcel of its own, which comes first.
    Store(Vec<Parcel>),
    /// Read the oldest offline messages.
    Page,
    /// Remove these; [`Backlog::removed`] follows.
    Remove(Vec<RowId>),
    /// Remove these; nothing waits for it.
    Forget(Vec<RowId>),
    /// The session is live: [`Step::Deliver`] follows for what was held.
    Live,
    Deliver(Undelivered),
    Settle(Receipt, Delivery),
    /// The store has refused a message of this node: nothing more of it is taken until its next nudge.
    Fence(NodeId),
    Nudged(Nudger),
    /// [`Backlog::time`] is due then.
    Watch(Instant),
}

/// What waits until all that came before is delivered or committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nudger {
    /// Another node, by the number of its nudge.
    Node(NodeId, u64),
    /// The burial of a node, by its number on this shard.
    Burial(u64),
}

/// The time, and what a backlog wants.
pub(super) struct Context {
    pub now: Instant,
    pub steps: Vec<Step>,
}

#[derive(Debug)]
pub(super) struct Backlog {
    user: UserId,
    /// The epoch of the former session whose backlog this was, by which a job may still name it; 0: there was none.
    pub former: u64,
    stage: Stage,
    /// Something was stored, or may have been, since the last page was asked for.
    stale: bool,
    /// The connection's queue is being taken back: what is held stands behind that.
    recalling: bool,
    /// Oldest first.
    held: VecDeque<Undelivered>,
    /// When what is held is held no longer.
    until: Instant,
    /// What a job is storing.
    storing: Vec<Undelivered>,
    /// Bytes in `held` and `storing`.
    bytes: usize,
    /// What is held is to be stored, as soon as no job is storing anything.
    flush: bool,
    half: Option<Half>,
    /// They wait for what is held, and these for what is being stored.
    nudgers: Vec<Nudger>,
    nudgers_of_job: Vec<Nudger>,
    /// Offline messages that were written and are not removed.
    written: Vec<RowId>,
    /// [`Step::Watch`] was noted.
    watched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The login reply is not out yet.
    Loading,
    /// The connection's queue must get empty.
    Queue,
    /// A page is read as soon as nothing is being stored.
    Due,
    /// A page is being read.
    Reading,
    /// The login reply, with offline messages in it, is being written.
    Reply,
    /// This number of messages of a page are being written.
    Writing(usize),
    /// What was written is being removed.
    Removing,
    /// The store did not read a page, or remove one; it is tried again at this time.
    Failed(Instant),
    /// The session is ending.
    Ending,
    /// The same, and it is not over before its connection is gone.
    Closing,
}

/// A message of which some was written when the queue was taken back. What stood behind it goes to the store, so
/// this one must stand there before that, in case the rest of it never gets out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    /// It is the first of `held`.
    Held,
    /// It is the first of `storing`.
    Storing(Rest),
    Stored(RowId),
    /// The store did not take it, and what follows it may stand there by now. So it is not stored any more: it
    /// is written, or it fails.
    Refused(Errno),
    /// It is an offline message, or the login reply, of a session that is ending: it is in the store.
    Row,
}

/// What has become of the rest of such a message while the store was taking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Waits,
    Written,
    /// Its connection is gone.
    Cut,
}

impl Backlog {
    fn new(user: UserId, stage: Stage, now: Instant) -> Backlog {
        Backlog {
            user,
            former: 0,
            stage,
            stale: false,
            recalling: false,
            held: VecDeque::new(),
            until: now,
            storing: Vec::new(),
            bytes: 0,
            flush: false,
            half: None,
            nudgers: Vec::new(),
            nudgers_of_job: Vec::new(),
            written: Vec::new(),
            watched: false,
        }
    }

    /// The backlog of a session whose login reply is not out yet.
    pub fn loading(user: UserId, now: Instant) -> Backlog {
        Backlog::new(user, Stage::Loading, now + HELD)
    }

    /// The user has come back while the session of this epoch was ending: the next one takes over what is here.
    pub fn begin_anew(&mut self, former: u64, now: Instant) {
        self.former = former;
        self.stage = Stage::Loading;
        self.until = now + HELD;
        self.stale |= self.len() > 0;
        // The timer that it waits for names the former session.
        self.watched = false;
    }

    /// The backlog of a session whose client has fallen behind. What was taken back from its queue follows.
    pub fn behind(user: UserId, now: Instant) -> Backlog {
        Backlog { stale: true, ..Backlog::new(user, Stage::Queue, now) }
    }

    /// The same for a session whose queue is still to be taken back, since something may stand in its store.
    pub fn to_recall(user: UserId, now: Instant) -> Backlog {
        Backlog { recalling: true, flush: true, ..Backlog::behind(user, now) }
    }

    /// Bytes that are held, or on their way into the store.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_loading(&self) -> bool {
        self.stage == Stage::Loading
    }

    pub fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending | Stage::Closing)
    }

    /// Whether nothing is left that a session which is ending must wait for.
    pub fn is_settled(&self) -> bool {
        self.has_nothing_to_store() && self.half.is_none() && self.stage != Stage::Closing
    }

    fn has_nothing_to_store(&self) -> bool {
        !self.recalling
            && self.held.is_empty()
            && self.storing.is_empty()
            && self.nudgers.is_empty()
            && self.nudgers_of_job.is_empty()
    }

    /// Whether some of a message was written, and the rest may follow.
    pub fn has_half(&self) -> bool {
        self.half.is_some()
    }

    /// Messages that are neither delivered nor stored.
    pub fn len(&self) -> usize {
        self.held.len() + self.storing.len()
    }

    /// Takes a message. With more bytes than `most` it is held no longer.
    pub fn hold(&mut self, message: Undelivered, most: usize, cx: &mut Context) {
        self.bytes += message.body.len();
        self.held.push_back(message);
        if self.bytes > most || !self.is_in_time(cx.now) {
            self.flush = true;
        } else {
            self.watch(self.until, cx);
        }
        self.advance(cx);
    }

    /// Whether the client is just getting something: then it may be live in a moment.
    fn is_in_time(&self, now: Instant) -> bool {
        let is_served = match self.stage {
            Stage::Loading | Stage::Reply | Stage::Due | Stage::Reading | Stage::Writing(_) | Stage::Removing => true,
            Stage::Queue | Stage::Failed(_) | Stage::Ending | Stage::Closing => false,
        };
        is_served && now < self.until
    }

    /// The next page is due, and what comes while it is read and written is held.
    fn begin_page(&mut self, cx: &mut Context) {
        self.stage = Stage::Due;
        self.until = cx.now + HELD;
        self.flush = !self.nudgers.is_empty();
        if !self.held.is_empty() {
            self.watch(self.until, cx);
        }
        self.advance(cx);
    }

    fn watch(&mut self, at: Instant, cx: &mut Context) {
        if !self.watched {
            self.watched = true;
            cx.steps.push(Step::Watch(at));
        }
    }

    /// Some time has passed.
    pub fn time(&mut self, cx: &mut Context) {
        self.watched = false;
        match self.stage {
            Stage::Failed(at) if at > cx.now => self.watch(at, cx),
            Stage::Failed(_) if self.written.is_empty() => self.begin_page(cx),
            Stage::Failed(_) => self.remove_written(cx),
            _ => {}
        }
        if !self.held.is_empty() {
            if self.is_in_time(cx.now) {
                self.watch(self.until, cx);
            } else {
                self.flush = true;
            }
        }
        self.advance(cx);
    }

    /// Does what can be done next.
    fn advance(&mut self, cx: &mut Context) {
        if self.recalling {
            return;
        }
        if self.flush && self.storing.is_empty() {
            self.store_held(cx);
        }
        if self.stage == Stage::Due && self.half.is_none() && self.storing.is_empty() {
            self.stage = Stage::Reading;
            self.stale = false;
            cx.steps.push(Step::Page);
        }
    }

    fn store_held(&mut self, cx: &mut Context) {
        if self.held.is_empty() {
            self.flush = false;
            cx.steps.extend(self.nudgers.drain(..).map(Step::Nudged));
            return;
        }
        let mut bounds = Bounds::default();
        while let Some(message) = self.held.pop_front_if(|message| bounds.admit(message)) {
            self.storing.push(message);
        }
        if self.held.is_empty() {
            self.flush = self.is_ending();
            self.nudgers_of_job.append(&mut self.nudgers);
        }
        self.stale = true;
        if self.half == Some(Half::Held) {
            self.half = Some(Half::Storing(Rest::Waits));
        }
        cx.steps.push(Step::Store(self.parcels()));
    }

    /// What a job is storing.
    pub fn parcels(&self) -> Vec<Parcel> {
        let half = usize::from(matches!(self.half, Some(Half::Storing(_)))).min(self.storing.len());
        let (half, rest) = self.storing.split_at(half);
        let body = |message: &Undelivered| Arc::clone(&message.body);
        let parcel = |messages: &[Undelivered]| Parcel {
            to: self.user,
            messages: messages.iter().map(body).collect(),
            past: None,
        };
        [half, rest].into_iter().filter(|messages| !messages.is_empty()).map(parcel).collect()
    }

    /// What the store has done with the messages of [`Step::Store`], by parcel; nothing, as far as is known, with
    /// those that have no answer.
    pub fn stored(&mut self, kept: &[Kept], cx: &mut Context) {
        let mut messages = std::mem::take(&mut self.storing);
        self.bytes -= messages.iter().map(|message| message.body.len()).sum::<usize>();
        let mut kept = kept.iter().copied();
        if let Some(Half::Storing(rest)) = self.half
            && !messages.is_empty()
        {
            let half = messages.remove(0);
            self.half_stored(&half, rest, kept.next(), cx);
        }
        self.rest_stored(messages, kept.next(), cx);
        cx.steps.extend(self.nudgers_of_job.drain(..).map(Step::Nudged));
        self.advance(cx);
    }

    fn half_stored(&mut self, half: &Undelivered, rest: Rest, kept: Option<Kept>, cx: &mut Context) {
        self.half = None;
        match (kept, rest) {
            (Some(Kept::Stored(row) | Kept::Past(row)), rest) => {
                match rest {
                    Rest::Waits => self.half = Some(Half::Stored(row)),
                    // The next page is read behind this. Should it fail, the message is repeated; it is never lost.
                    Rest::Written => cx.steps.push(Step::Forget(vec![row])),
                    Rest::Cut => {}
                }
                cx.steps.push(Step::Settle(half.receipt, Delivery::Stored));
            }
            (_, Rest::Written) => cx.steps.push(Step::Settle(half.receipt, Delivery::Delivered)),
            (kept, Rest::Cut) => self.refuse(half, errno(kept), cx),
            (kept, Rest::Waits) => {
                self.half = Some(Half::Refused(errno(kept)));
                self.fence(half.receipt, cx);
            }
        }
    }

    fn rest_stored(&mut self, mut messages: Vec<Undelivered>, kept: Option<Kept>, cx: &mut Context) {
        let all = messages.len();
        // How many are stored, and how many of those behind them were refused.
        let (stored, refused) = match kept {
            Some(Kept::Stored(_) | Kept::Past(_)) => (all, all),
            Some(Kept::Full(stored)) => (stored.min(all), all),
            Some(Kept::Refused(stored)) => (stored.min(all), stored.saturating_add(1).min(all)),
            Some(Kept::NoUser | Kept::Elsewhere(_)) | None => (0, all),
        };
        let untried = messages.split_off(refused);
        let failed = messages.split_off(stored);
        cx.steps.extend(messages.iter().map(|message| Step::Settle(message.receipt, Delivery::Stored)));
        self.flush |= !untried.is_empty();
        for message in untried.into_iter().rev() {
            self.bytes += message.body.len();
            self.held.push_front(message);
        }
        failed.iter().for_each(|message| self.refuse(message, errno(kept), cx));
    }

    fn refuse(&mut self, message: &Undelivered, errno: Errno, cx: &mut Context) {
        cx.steps.push(Step::Settle(message.receipt, Delivery::Failed(errno)));
        self.fence(message.receipt, cx);
    }

    /// What follows a message that was refused must not overtake it, should its node store it: it goes back there.
    fn fence(&mut self, receipt: Receipt, cx: &mut Context) {
        let Some(node) = receipt.node() else { return };
        cx.steps.push(Step::Fence(node));
        let (bytes, half) = (&mut self.bytes, self.half == Some(Half::Held));
        let mut first = true;
        self.held.retain(|message| {
            let stays = message.receipt.node() != Some(node) || (std::mem::take(&mut first) && half);
            first = false;
            if !stays {
                *bytes -= message.body.len();
                cx.steps.push(Step::Settle(message.receipt, Delivery::Gone));
            }
            stays
        });
    }

    /// Something may stand in the store that must reach the user before anything else does.
    pub fn nudge(&mut self, nudger: Nudger, cx: &mut Context) {
        self.stale = true;
        self.flush = true;
        self.nudgers.push(nudger);
        self.advance(cx);
    }

    /// What was taken back from the connection's queue; `true`: some of it was written. It stands before all that
    /// is held. `has_half_row`: some of an offline message of a session that is ending was.
    pub fn recalled(&mut self, messages: Vec<(Undelivered, bool)>, has_half_row: bool, cx: &mut Context) {
        self.recalling = false;
        if has_half_row {
            self.half = Some(Half::Row);
        }
        for (message, begun) in messages.into_iter().rev() {
            if begun && self.half.is_some() {
                continue; // of an earlier recall
            }
            if begun {
                self.half = Some(Half::Held);
            }
            self.flush = true;
            self.bytes += message.body.len();
            self.held.push_front(message);
        }
        self.advance(cx);
    }

    /// A chat was written whole. True: it is the one of which the store was asked to take it over; what becomes of
    /// it is told by a step.
    pub fn chat_written(&mut self, cx: &mut Context) -> bool {
        let Some(half) = self.half.take() else { return false };
        let is_taken_over = match half {
            Half::Held => {
                if let Some(message) = self.held.pop_front() {
                    self.bytes -= message.body.len();
                }
                false
            }
            Half::Storing(_) => {
                self.half = Some(Half::Storing(Rest::Written));
                true
            }
            Half::Stored(row) => {
                cx.steps.push(Step::Forget(vec![row]));
                true
            }
            Half::Refused(_) | Half::Row => false,
        };
        self.advance(cx);
        is_taken_over
    }

    /// The connection is gone, and with it the rest of a half-written message. Returns whether there is one that
    /// the store has, or was asked for; the error: it has refused it.
    pub fn cut(&mut self) -> Result<bool, Errno> {
        self.stage = Stage::Ending;
        match self.half.take() {
            None | Some(Half::Row) => Ok(false),
            Some(Half::Held | Half::Stored(_)) => Ok(true),
            Some(half @ Half::Storing(Rest::Written)) => {
                self.half = Some(half);
                Ok(false)
            }
            Some(Half::Storing(_)) => {
                self.half = Some(Half::Storing(Rest::Cut));
                Ok(true)
            }
            Some(Half::Refused(errno)) => Err(errno),
        }
    }

    /// The connection's queue is empty.
    pub fn drained(&mut self, cx: &mut Context) {
        if self.stage == Stage::Queue {
            self.begin_page(cx);
        }
    }

    /// The login reply goes out. `has_rows`: with offline messages, which are to be removed when it is written;
    /// `more`: there are others.
    pub fn loaded(&mut self, has_rows: bool, more: bool, cx: &mut Context) {
        self.stale |= more;
        if has_rows {
            self.stage = Stage::Reply;
        } else {
            self.try_to_live(cx);
        }
    }

    /// A page was read; this number of messages is written now.
    pub fn page(&mut self, messages: usize, cx: &mut Context) {
        if self.stage != Stage::Reading {
            return;
        }
        if messages > 0 {
            self.stage = Stage::Writing(messages);
        } else {
            self.try_to_live(cx);
        }
    }

    /// The store did not read a page.
    pub fn page_failed(&mut self, cx: &mut Context) {
        if self.stage == Stage::Reading {
            self.fail(cx);
        }
    }

    fn fail(&mut self, cx: &mut Context) {
        self.stage = Stage::Failed(cx.now + RETRY);
        self.watch(cx.now + RETRY, cx);
    }

    /// Nothing is left in the store, as far as is known: the session is live, unless there is by now.
    fn try_to_live(&mut self, cx: &mut Context) {
        if self.stale || self.flush || self.recalling || !self.has_stored_all() {
            return self.begin_page(cx);
        }
        cx.steps.push(Step::Live);
        cx.steps.extend(self.held.drain(..).map(Step::Deliver));
        self.bytes = 0;
    }

    fn has_stored_all(&self) -> bool {
        self.storing.is_empty() && self.half.is_none()
    }

    /// An offline message was written, or the login reply with several.
    pub fn rows_written(&mut self, rows: &[RowId], cx: &mut Context) {
        self.written.extend_from_slice(rows);
        match self.stage {
            Stage::Writing(left) if left > 1 => self.stage = Stage::Writing(left - 1),
            Stage::Reply | Stage::Writing(_) => self.remove_written(cx),
            // Nothing waits for this any more: they are removed, or the next login repeats them.
            Stage::Ending | Stage::Closing => {
                self.half.take_if(|half| *half == Half::Row);
                cx.steps.push(Step::Forget(std::mem::take(&mut self.written)));
            }
            _ => {}
        }
    }

    fn remove_written(&mut self, cx: &mut Context) {
        self.stage = Stage::Removing;
        cx.steps.push(Step::Remove(self.written.clone()));
    }

    /// What was written is removed, or is not: the next page would repeat it.
    pub fn removed(&mut self, is_done: bool, cx: &mut Context) {
        if self.stage != Stage::Removing {
            return;
        }
        if is_done {
            self.written.clear();
            self.begin_page(cx);
        } else {
            self.fail(cx);
        }
    }

    /// The session is ending. Its connection's queue is taken back: see [`Backlog::recalled`].
    /// `closing`: it ends only when its connection is gone.
    pub fn end(&mut self, closing: bool, cx: &mut Context) {
        if self.stage != Stage::Removing && !self.written.is_empty() {
            cx.steps.push(Step::Forget(std::mem::take(&mut self.written)));
        }
        if self.stage == Stage::Reply {
            self.half = Some(Half::Row);
        }
        self.stage = if closing { Stage::Closing } else { Stage::Ending };
        self.flush = true;
        self.recalling = true;
    }
}

/// What the store's refusal means for the sender.
fn errno(kept: Option<Kept>) -> Errno {
    match kept {
        Some(Kept::Full(_)) => Errno::Busy,
        Some(Kept::NoUser) => Errno::NoSuchUser,
        _ => Errno::StoreUnavailable,
    }
}

#[cfg(test)]
mod tests;
