//! What clients may not exceed, and what they are answered if they do.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::client::Hold;
use super::jobs::Login;
use super::reason::Reason;
use super::{Limit, Limits, Shard, Timer};
use crate::reactor::{ConnId, Origin};
use crate::store::{Quota, UserId};
use crate::wire::Refusal;

/// How long the unused part of a rate is kept, which bounds a burst.
const BURST: Duration = Duration::from_secs(10);
/// How long nothing is read of a connection that was too fast.
const TOO_FAST: Duration = Duration::from_secs(1);

/// Charges an amount to a rate: when it will be made up for; the error: when there will be room for it.
fn spend(until: Instant, amount: usize, rate: Option<NonZeroU32>, now: Instant) -> Result<Instant, Instant> {
    let Some(rate) = rate else { return Ok(until) };
    let cost = Duration::from_secs_f64(amount as f64 / f64::from(rate.get()));
    let until = until.max(now);
    // The largest message passes some time, however small the rate is.
    if until > now && until + cost > now + BURST { Err(until + cost - BURST.max(cost)) } else { Ok(until + cost) }
}

/// The reply to a client whose address has too many connections.
pub fn address_is_full() -> Refusal {
    Refusal::busy("too many connections from your address", 10)
}

/// The reply to a sender if the offline store of the recipient has no room.
pub(super) fn store_is_full() -> Refusal {
    Refusal::busy("the recipient has too many offline messages", 60)
}

/// The reply to a user if a quota of the user, or of the group, is used up.
pub(super) fn is_full(quota: Quota) -> Refusal {
    let text = match quota {
        Quota::Friends => "you have too many friends",
        Quota::Groups => "you are in too many groups",
        Quota::Members => "this group has too many members",
    };
    Refusal::busy(text, 60)
}

impl Shard {
    /// Whether a client sends faster than it may. If so, nothing more is read of it for a second, and so
    /// one refusal a second is all that a flood is worth.
    pub(super) fn is_too_fast(&mut self, conn: ConnId, bytes: usize) -> Option<Refusal> {
        let Limits { message_rate, byte_rate, .. } = self.settings.limits;
        if message_rate.is_none() && byte_rate.is_none() {
            return None;
        }
        let now = self.now.at;
        let client = self.clients.get_mut(conn)?;
        let tally = client.tally(now);
        let spent = spend(tally.messages, 1, message_rate, now)
            .and_then(|messages| Ok((messages, spend(tally.bytes, bytes, byte_rate, now)?)));
        match spent {
            Ok((messages, bytes)) => {
                (tally.messages, tally.bytes) = (messages, bytes);
                None
            }
            Err(at) => {
                self.counts.limits.of(Limit::MessageRate).add(1);
                let at = at.max(now + TOO_FAST);
                self.hold(conn, Hold::Rate);
                self.fx.timer(at, Timer::Rate(conn));
                let wait = u32::try_from((at - now).as_millis().div_ceil(1000)).unwrap_or(u32::MAX);
                Some(Refusal::busy("you are sending too fast", wait))
            }
        }
    }

    /// A login counts as failed until it is known to be none: many at once are no more than one after
    /// the other.
    pub(super) fn may_log_in(&self, user: UserId, from: Origin) -> Result<(), Refusal> {
        let Some(throttle) = &self.settings.limits.failed_logins else { return Ok(()) };
        let taken = throttle.take((user, from), self.now.at);
        taken.map_err(|wait| {
            self.counts.limits.of(Limit::FailedLogins).add(1);
            Refusal::busy("too many failed logins, try again later", wait)
        })
    }

    /// A password was right.
    pub(super) fn forgive_logins(&self, login: &Login) {
        if let Some(throttle) = &self.settings.limits.failed_logins {
            throttle.forgive((login.user, login.from));
        }
    }

    /// It is not known whether the password of a login was right.
    pub(super) fn forget_login(&self, login: &Login) {
        if let Some(throttle) = &self.settings.limits.failed_logins {
            throttle.give_back((login.user, login.from));
        }
    }

    pub(super) fn may_register(&self, from: Origin) -> Result<(), Refusal> {
        let Some(throttle) = &self.settings.limits.registrations else { return Ok(()) };
        let taken = throttle.take(from, self.now.at);
        taken.map_err(|wait| {
            self.counts.limits.of(Limit::Registrations).add(1);
            Refusal::busy("too many registrations from your address, try again later", wait)
        })
    }

    /// It is not known what became of a registration.
    pub(super) fn forget_registration(&self, from: Origin) {
        if let Some(throttle) = &self.settings.limits.registrations {
            throttle.give_back(from);
        }
    }

    /// A proxy has named the client's address: is there a place for one more connection of it?
    pub(super) fn admit_address(&mut self, conn: ConnId) {
        let Some(addresses) = &self.settings.limits.addresses else { return };
        let Some(client) = self.clients.get_mut(conn) else { return };
        match addresses.admit(client.peer.ip()) {
            Some(slot) => client.tally(self.now.at).address = Some(slot),
            None => self.refuse_and_close(conn, address_is_full(), Reason::AddressFull),
        }
    }
}
