//! Logins and registrations on their way: what each waits for, and that it is answered in time.
//!
//! A login passes several stages, each of which may take long: its account is read, its password is
//! hashed, a session that is ending is waited for, the account is claimed, its channel is listened
//! to, and what its user missed is read. There is one deadline for all of them. What comes later
//! finds that no client waits for it any more; a claim is then given back.

use std::sync::Arc;

use super::client::{Attempt, DEADLINE, HASH_BY, Hold, Stage};
use super::hashing::Place;
use super::jobs::Login;
use super::letters::Timer;
use super::reason::Reason;
use super::{Limit, Shard};
use crate::reactor::{ConnId, HangUp};
use crate::store::UserId;
use crate::wire::{Errno, Refusal, msgid};

impl Shard {
    /// Input waits from here on, until the attempt is answered. Returns its number.
    pub(super) fn begin_attempt(&mut self, conn: ConnId, user: Option<UserId>, seq: Option<i64>) -> u64 {
        self.begin_waiting(conn);
        self.next_attempt += 1;
        let (number, begun) = (self.next_attempt, self.now.at);
        if let Some(client) = self.clients.get_mut(conn) {
            client.attempt = Some(Box::new(Attempt { number, user, seq, begun, stage: Stage::Store }));
        }
        self.fx.timer(begun + HASH_BY, Timer::Attempt { conn, number });
        number
    }

    /// It has been answered.
    pub(super) fn end_attempt(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.give_up();
            client.attempt = None;
        }
        self.end_waiting(conn);
    }

    /// The attempt, if its client still waits for the outcome.
    pub(super) fn waits_for(&mut self, conn: ConnId, number: u64) -> Option<&mut Attempt> {
        self.clients.get_mut(conn)?.waits_for(number)
    }

    /// Notes what an attempt waits for from here on.
    pub(super) fn enter_stage(&mut self, conn: ConnId, number: u64, stage: Stage) {
        if let Some(attempt) = self.waits_for(conn, number) {
            attempt.stage = stage;
        }
    }

    pub(super) fn is_waited_for(&mut self, login: &Login) -> bool {
        self.waits_for(login.conn, login.attempt).is_some()
    }

    /// Refuses what is on its way on this connection.
    pub(super) fn refuse_attempt(&mut self, conn: ConnId, refusal: &Refusal) {
        let Some(attempt) = self.clients.get(conn).and_then(|client| client.attempt.as_deref()) else { return };
        let (request, seq) = (if attempt.user.is_some() { msgid::LOGIN } else { msgid::REGISTER }, attempt.seq);
        self.refuse(conn, Some(request), seq, refusal);
        self.end_attempt(conn);
    }

    /// A place in the queue of hashes, unless its turn would come too late.
    pub(super) fn enter_hashing(&mut self, conn: ConnId) -> Result<Arc<Place>, Refusal> {
        let client = self.clients.get_mut(conn).ok_or(Errno::NotLoggedIn)?;
        let half_closed = client.half_closed;
        let attempt = client.attempt.as_deref_mut().ok_or(Errno::NotLoggedIn)?;
        let (number, by) = (attempt.number, attempt.begun + HASH_BY);
        if self.now.at + self.settings.hashes.length(half_closed) >= by {
            return Err(self.too_many_hashes(number, half_closed));
        }
        let place = self.settings.hashes.enter();
        if half_closed {
            place.step_back();
        }
        attempt.stage = Stage::Hashing(Arc::clone(&place));
        Ok(place)
    }

    /// Clients that are refused come back spread over as long a time again as the queue will take by then.
    fn too_many_hashes(&self, number: u64, is_last: bool) -> Refusal {
        self.counts.limits.of(Limit::Hashes).add(1);
        let length = self.settings.hashes.length(is_last).as_secs_f64().ceil().max(1.0) as u64;
        // Numbers in a row fall evenly, and far from each other: Fibonacci hashing.
        let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let wait = length.saturating_add(spread.saturating_mul(length.saturating_add(1)) >> 32);
        Refusal::busy("too many passwords are to be checked, try again later", u32::try_from(wait).unwrap_or(u32::MAX))
    }

    /// A client has hung up while its input waits.
    pub(super) fn client_hung_up(&mut self, conn: ConnId, how: HangUp) {
        let Some(client) = self.clients.get_mut(conn).filter(|client| !client.closing) else { return };
        let Some(attempt) = client.attempt.as_deref() else {
            client.half_closed = true;
            return; // what it has sent is done all the same
        };
        match how {
            HangUp::HalfClosed => {
                client.half_closed = true;
                attempt.place().iter().for_each(|place| place.step_back());
            }
            HangUp::Gone => {
                client.give_up();
                client.closing = true;
                self.close(conn, Reason::HungUp);
            }
        }
    }

    /// An attempt has been on its way for 7 s, or for 10 s.
    pub(super) fn attempt_timer(&mut self, conn: ConnId, number: u64) {
        let now = self.now.at;
        let is_last = self.clients.get(conn).is_some_and(|client| client.half_closed);
        let Some(attempt) = self.waits_for(conn, number) else { return };
        let due = attempt.begun + DEADLINE;
        if attempt.place().is_some_and(Place::give_up) {
            let refusal = self.too_many_hashes(number, is_last);
            self.refuse_attempt(conn, &refusal);
        } else if now < due {
            self.fx.timer(due, Timer::Attempt { conn, number });
        } else {
            self.give_attempt_up(conn, number);
        }
    }

    /// The deadline has come. Wherever the attempt is, it leaves nothing behind.
    fn give_attempt_up(&mut self, conn: ConnId, number: u64) {
        let Some(attempt) = self.waits_for(conn, number) else { return };
        let busy = Refusal::busy(Errno::Busy.text(), 1);
        let Some(user) = attempt.user else {
            // A registration's hash is stored by the same job, so it may be done.
            return self.refuse_attempt(conn, &Errno::StoreUnavailable.into());
        };
        let refusal = match attempt.stage {
            Stage::Leaving(..) | Stage::Hashing(_) | Stage::Moving(_) => return self.refuse_attempt(conn, &busy),
            Stage::Bus => busy.clone(),
            Stage::Store | Stage::Loading => Errno::StoreUnavailable.into(),
        };
        let more = self.users.get_mut(&user).and_then(|user| user.more_mut());
        let waits_for_an_end = more.is_some_and(|more| {
            let before = more.waiting.len();
            more.waiting.retain(|login| login.attempt != number);
            more.waiting.len() < before
        });
        if waits_for_an_end {
            return self.refuse_attempt(conn, &busy);
        }
        // The session that has begun ends; a claim that is still on its way is given back when it comes.
        self.log_out(conn, None);
        self.refuse_attempt(conn, &refusal);
    }

    /// Input waits from here on, until the request is answered.
    pub(super) fn begin_waiting(&mut self, conn: ConnId) {
        self.owe(conn);
        self.hold(conn, Hold::Request);
    }

    pub(super) fn end_waiting(&mut self, conn: ConnId) {
        self.unhold(conn, Hold::Request);
        self.paid(conn);
    }
}
