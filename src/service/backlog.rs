//! What comes for a user of this node and does not go to the connection: the login reply is not out yet, the
//! client reads slowly, or the session is ending.
//!
//! A `Backlog` is a state machine and nothing else: it takes messages and results, and notes the [`Step`]s that
//! are to be taken. A session without one is *live*: its messages go to its connection.
//!
//! A client that has fallen behind is *drained*: once its connection's queue is empty, its offline messages are
//! read by the page, written, and removed, until there are none left. What comes meanwhile is *held* here, for
//! a second and up to a bound, so that a reader who has caught up goes live again under any load; past either
//! it goes to the store, all that is held in its order, by one job at a time.
//!
//! A [`Nudger`] is told when all that was taken before it came is delivered or committed, and the store will be
//! read before anything else is delivered. That never waits for the client to read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::receipts::{Receipt, Waiting};
use super::route::{BATCH_BYTES, BATCH_MESSAGES};
use crate::bus::Fate;
use crate::store::{Kept, NodeId, Parcel, RowId, UserId};
use crate::wire::Errno;

/// How long something is held.
const HELD: Duration = Duration::from_secs(1);
/// How soon what the store has refused to read or to remove is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What a backlog wants done, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// To take back what the connection has not begun to write: [`Backlog::recalled`].
    Recall,
    /// To store these: a half-written message in a parcel of its own, which comes first.
    Store(Vec<Parcel>),
    /// To read the oldest offline messages.
    Page,
    /// To remove these, and tell: [`Backlog::removed`].
    Remove(Vec<RowId>),
    /// To remove these; nobody waits for it.
    Forget(Vec<RowId>),
    /// The session is live: [`Step::Deliver`] follows for what was held.
    Live,
    Deliver(Waiting),
    Settle(Receipt, Fate),
    /// The store has refused a message of this node: nothing more of it is taken until its next nudge.
    Fence(NodeId),
    Nudged(Nudger),
    /// [`Backlog::time`] is due then.
    Watch(Instant),
}

/// Who waits until all that came before is delivered or committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nudger {
    /// Another node, by the number of its nudge.
    Node(NodeId, u64),
    /// The burial of a node, by its number on this shard.
    Burial(u64),
}

#[derive(Debug)]
pub(super) struct Backlog {
    user: UserId,
    /// The epoch of the former session whose backlog this was; 0: of none. A job may be named by it.
    pub former: u64,
    stage: Stage,
    /// Something was stored, or may have been, since the last page was asked for.
    stale: bool,
    /// It is ending, and not over before its connection is gone.
    closing: bool,
    /// The connection's queue is being taken back: what is held stands behind that.
    recalling: bool,
    /// Oldest first.
    held: VecDeque<Waiting>,
    /// Since when there is something in `held`.
    since: Option<Instant>,
    /// What a job is storing.
    storing: Vec<Waiting>,
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
    /// So many messages of a page, or the login reply, are being written.
    Writing(usize),
    /// What was written is being removed.
    Removing,
    /// The store did not read a page, or remove one; it is tried again at this time.
    Failed(Instant),
    /// The session is ending.
    Ending,
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
    fn new(user: UserId, stage: Stage) -> Backlog {
        Backlog {
            user,
            former: 0,
            stage,
            stale: false,
            closing: false,
            recalling: false,
            held: VecDeque::new(),
            since: None,
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

    /// Of a session whose login reply is not out yet.
    pub fn loading(user: UserId) -> Backlog {
        Backlog::new(user, Stage::Loading)
    }

    /// The user has come back while the session of this epoch was ending: the next one takes over what is here.
    pub fn begin_anew(&mut self, former: u64) {
        self.former = former;
        self.stage = Stage::Loading;
        self.stale |= self.len() > 0;
    }

    /// Of a session whose client has fallen behind. What was taken back from its queue follows.
    pub fn behind(user: UserId) -> Backlog {
        Backlog { stale: true, ..Backlog::new(user, Stage::Queue) }
    }

    /// The same of one whose queue is still to be taken back, since something may stand in its store.
    pub fn to_recall(user: UserId, steps: &mut Vec<Step>) -> Backlog {
        steps.push(Step::Recall);
        Backlog { recalling: true, flush: true, ..Backlog::behind(user) }
    }

    /// Bytes that are held, or on their way into the store.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_loading(&self) -> bool {
        self.stage == Stage::Loading
    }

    pub fn is_ending(&self) -> bool {
        self.stage == Stage::Ending
    }

    /// Whether nothing is left that a session which is ending must wait for.
    pub fn is_settled(&self) -> bool {
        self.has_nothing_to_store() && self.half.is_none() && !self.closing
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
    pub fn hold(&mut self, message: Waiting, most: usize, now: Instant, steps: &mut Vec<Step>) {
        self.bytes += message.body.len();
        self.held.push_back(message);
        if self.stage == Stage::Ending || self.bytes > most {
            self.flush = true;
        } else {
            self.watch_held(now, steps);
        }
        self.advance(steps);
    }

    fn watch_held(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let since = *self.since.get_or_insert(now);
        self.watch(since + HELD, steps);
    }

    fn watch(&mut self, at: Instant, steps: &mut Vec<Step>) {
        if !self.watched {
            self.watched = true;
            steps.push(Step::Watch(at));
        }
    }

    /// Some time has passed.
    pub fn time(&mut self, now: Instant, steps: &mut Vec<Step>) {
        self.watched = false;
        match self.since {
            Some(since) if since + HELD <= now => self.flush = true,
            Some(_) => self.watch_held(now, steps),
            None => {}
        }
        match self.stage {
            Stage::Failed(at) if at > now => self.watch(at, steps),
            Stage::Failed(_) if self.written.is_empty() => self.stage = Stage::Due,
            Stage::Failed(_) => self.remove_written(steps),
            _ => {}
        }
        self.advance(steps);
    }

    /// Does what can be done next.
    fn advance(&mut self, steps: &mut Vec<Step>) {
        if self.recalling {
            return;
        }
        if self.flush && self.storing.is_empty() {
            self.store_held(steps);
        }
        if self.stage == Stage::Due && self.half.is_none() && self.storing.is_empty() {
            self.stage = Stage::Reading;
            self.stale = false;
            steps.push(Step::Page);
        }
    }

    fn store_held(&mut self, steps: &mut Vec<Step>) {
        if self.held.is_empty() {
            self.flush = false;
            steps.extend(self.nudgers.drain(..).map(Step::Nudged));
            return;
        }
        let mut bytes = 0;
        while let Some(message) = self.held.pop_front_if(|message| {
            bytes += message.body.len();
            self.storing.is_empty() || (self.storing.len() < BATCH_MESSAGES && bytes <= BATCH_BYTES)
        }) {
            self.storing.push(message);
        }
        if self.held.is_empty() {
            self.flush = self.stage == Stage::Ending;
            self.since = None;
            self.nudgers_of_job.append(&mut self.nudgers);
        }
        self.stale = true;
        if self.half == Some(Half::Held) {
            self.half = Some(Half::Storing(Rest::Waits));
        }
        steps.push(Step::Store(self.parcels()));
    }

    /// What a job is storing.
    pub fn parcels(&self) -> Vec<Parcel> {
        let half = usize::from(matches!(self.half, Some(Half::Storing(_)))).min(self.storing.len());
        let (half, rest) = self.storing.split_at(half);
        let body = |message: &Waiting| Arc::clone(&message.body);
        let parcel =
            |messages: &[Waiting]| Parcel { to: self.user, messages: messages.iter().map(body).collect(), past: None };
        [half, rest].into_iter().filter(|messages| !messages.is_empty()).map(parcel).collect()
    }

    /// What the store has done with the messages of [`Step::Store`], by parcel; nothing, as far as is known, with
    /// those that have no answer.
    pub fn stored(&mut self, kept: &[Kept], steps: &mut Vec<Step>) {
        let mut messages = std::mem::take(&mut self.storing);
        self.bytes -= messages.iter().map(|message| message.body.len()).sum::<usize>();
        let mut kept = kept.iter().copied();
        if let Some(Half::Storing(rest)) = self.half
            && !messages.is_empty()
        {
            let half = messages.remove(0);
            self.half_stored(&half, rest, kept.next(), steps);
        }
        self.rest_stored(messages, kept.next(), steps);
        steps.extend(self.nudgers_of_job.drain(..).map(Step::Nudged));
        self.advance(steps);
    }

    fn half_stored(&mut self, half: &Waiting, rest: Rest, kept: Option<Kept>, steps: &mut Vec<Step>) {
        self.half = None;
        match (kept, rest) {
            (Some(Kept::Stored(row) | Kept::Past(row)), rest) => {
                match rest {
                    Rest::Waits => self.half = Some(Half::Stored(row)),
                    // The next page is read behind this. Should it fail, the message is repeated; it is never lost.
                    Rest::Written => steps.push(Step::Forget(vec![row])),
                    Rest::Cut => {}
                }
                steps.push(Step::Settle(half.receipt, Fate::Stored));
            }
            (_, Rest::Written) => steps.push(Step::Settle(half.receipt, Fate::Delivered)),
            (kept, Rest::Cut) => self.refuse(half, errno(kept), steps),
            (kept, Rest::Waits) => {
                self.half = Some(Half::Refused(errno(kept)));
                self.fence(half.receipt, steps);
            }
        }
    }

    fn rest_stored(&mut self, mut messages: Vec<Waiting>, kept: Option<Kept>, steps: &mut Vec<Step>) {
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
        steps.extend(messages.iter().map(|message| Step::Settle(message.receipt, Fate::Stored)));
        self.flush |= !untried.is_empty();
        for message in untried.into_iter().rev() {
            self.bytes += message.body.len();
            self.held.push_front(message);
        }
        failed.iter().for_each(|message| self.refuse(message, errno(kept), steps));
    }

    fn refuse(&mut self, message: &Waiting, errno: Errno, steps: &mut Vec<Step>) {
        steps.push(Step::Settle(message.receipt, Fate::Failed(errno)));
        self.fence(message.receipt, steps);
    }

    /// What follows a message that was refused must not overtake it, should its node store it: it goes back there.
    fn fence(&mut self, receipt: Receipt, steps: &mut Vec<Step>) {
        let Some(node) = receipt.node() else { return };
        steps.push(Step::Fence(node));
        let (bytes, half) = (&mut self.bytes, self.half == Some(Half::Held));
        let mut first = true;
        self.held.retain(|message| {
            let stays = message.receipt.node() != Some(node) || (std::mem::take(&mut first) && half);
            first = false;
            if !stays {
                *bytes -= message.body.len();
                steps.push(Step::Settle(message.receipt, Fate::Gone));
            }
            stays
        });
        if self.held.is_empty() {
            self.since = None;
        }
    }

    /// Something may stand in the store that must reach the user before anything else does.
    pub fn nudge(&mut self, nudger: Nudger, steps: &mut Vec<Step>) {
        self.stale = true;
        self.flush = true;
        self.nudgers.push(nudger);
        self.advance(steps);
    }

    /// What was taken back from the connection's queue; `true`: some of it was written. It stands before all that
    /// is held. `has_half_row`: some of an offline message of a session that is ending was.
    pub fn recalled(&mut self, messages: Vec<(Waiting, bool)>, has_half_row: bool, steps: &mut Vec<Step>) {
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
        self.advance(steps);
    }

    /// A chat was written whole. True: it is the one of which the store was asked to take it over; what becomes of
    /// it is told by a step.
    pub fn chat_written(&mut self, steps: &mut Vec<Step>) -> bool {
        let Some(half) = self.half.take() else { return false };
        let is_taken_over = match half {
            Half::Held => {
                if let Some(message) = self.held.pop_front() {
                    self.bytes -= message.body.len();
                }
                if self.held.is_empty() {
                    self.since = None;
                }
                false
            }
            Half::Storing(_) => {
                self.half = Some(Half::Storing(Rest::Written));
                true
            }
            Half::Stored(row) => {
                steps.push(Step::Forget(vec![row]));
                true
            }
            Half::Refused(_) | Half::Row => false,
        };
        self.advance(steps);
        is_taken_over
    }

    /// The connection is gone, and with it the rest of a half-written message. Returns whether there is one that
    /// the store has, or was asked for; the error: it has refused it.
    pub fn cut(&mut self) -> Result<bool, Errno> {
        self.closing = false;
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
    pub fn drained(&mut self, steps: &mut Vec<Step>) {
        if self.stage == Stage::Queue {
            self.stage = Stage::Due;
            self.advance(steps);
        }
    }

    /// The login reply goes out. `has_rows`: with offline messages, which are to be removed when it is written;
    /// `more`: there are others.
    pub fn loaded(&mut self, has_rows: bool, more: bool, steps: &mut Vec<Step>) {
        self.stale |= more;
        if has_rows {
            self.stage = Stage::Writing(1);
        } else {
            self.stage = Stage::Due;
            self.try_to_live(steps);
        }
    }

    /// A page was read; so many messages of it are written now.
    pub fn page(&mut self, messages: usize, steps: &mut Vec<Step>) {
        if self.stage != Stage::Reading {
            return;
        }
        if messages > 0 {
            self.stage = Stage::Writing(messages);
        } else {
            self.stage = Stage::Due;
            self.try_to_live(steps);
        }
    }

    /// The store did not read a page.
    pub fn page_failed(&mut self, now: Instant, steps: &mut Vec<Step>) {
        if self.stage == Stage::Reading {
            self.fail(now, steps);
        }
    }

    fn fail(&mut self, now: Instant, steps: &mut Vec<Step>) {
        self.stage = Stage::Failed(now + RETRY);
        self.watch(now + RETRY, steps);
    }

    /// Nothing is left in the store, as far as is known: the session is live, unless there is by now.
    fn try_to_live(&mut self, steps: &mut Vec<Step>) {
        if self.stale || self.flush || self.recalling || !self.has_stored_all() {
            return self.advance(steps);
        }
        steps.push(Step::Live);
        steps.extend(self.held.drain(..).map(Step::Deliver));
        self.bytes = 0;
    }

    fn has_stored_all(&self) -> bool {
        self.storing.is_empty() && self.half.is_none()
    }

    /// An offline message was written, or the login reply with several.
    pub fn rows_written(&mut self, rows: &[RowId], steps: &mut Vec<Step>) {
        self.written.extend_from_slice(rows);
        match self.stage {
            Stage::Writing(left) if left > 1 => self.stage = Stage::Writing(left - 1),
            Stage::Writing(_) => self.remove_written(steps),
            // Nobody waits for it any more: they go, or the next login repeats them.
            Stage::Ending => {
                self.half.take_if(|half| *half == Half::Row);
                steps.push(Step::Forget(std::mem::take(&mut self.written)));
            }
            _ => {}
        }
    }

    fn remove_written(&mut self, steps: &mut Vec<Step>) {
        self.stage = Stage::Removing;
        steps.push(Step::Remove(self.written.clone()));
    }

    /// What was written is removed, or is not: the next page would repeat it.
    pub fn removed(&mut self, is_done: bool, now: Instant, steps: &mut Vec<Step>) {
        if self.stage != Stage::Removing {
            return;
        }
        if is_done {
            self.written.clear();
            self.stage = Stage::Due;
            self.advance(steps);
        } else {
            self.fail(now, steps);
        }
    }

    /// The session is ending. Its connection's queue is taken back: see [`Backlog::recalled`].
    /// `closing`: it ends only when its connection is gone.
    pub fn end(&mut self, closing: bool, steps: &mut Vec<Step>) {
        self.closing = closing;
        if self.stage != Stage::Removing && !self.written.is_empty() {
            steps.push(Step::Forget(std::mem::take(&mut self.written)));
        }
        self.stage = Stage::Ending;
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
