//! What clients may not exceed, and how they are told.

use std::sync::Arc;

use super::{Effects, Login, Shard, Throttle};
use crate::reactor::{Addresses, CloseReason, ConnId, Origin};
use crate::store::{Quota, UserId};
use crate::wire::Refusal;

/// The limits that the service holds clients to; by default none.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The connections of each address, where a proxy tells it; all shards count in the same.
    pub addresses: Option<Arc<Addresses>>,
    /// Failed logins of one account from one address. A stranger so locks nobody out but himself.
    pub failed_logins: Option<Arc<Throttle<(UserId, Origin)>>>,
    /// Attempts to register from one address.
    pub registrations: Option<Arc<Throttle<Origin>>>,
}

/// What a client is told whose address has too many connections.
pub fn address_is_full() -> Refusal {
    Refusal::busy("too many connections from your address", 10)
}

/// What a sender is told for whose message the recipient's offline store has no room.
pub(super) fn store_is_full() -> Refusal {
    Refusal::busy("the recipient has too many offline messages", 60)
}

/// What a user is told who, or whose group, has as much of something as may be.
pub(super) fn is_full(quota: Quota) -> Refusal {
    let text = match quota {
        Quota::Friends => "you have too many friends",
        Quota::Groups => "you are in too many groups",
        Quota::Members => "this group has too many members",
    };
    Refusal::busy(text, 60)
}

impl Shard {
    /// A login counts as failed until it is known to be none: many at once are no more than one after
    /// the other.
    pub(super) fn may_log_in(&self, user: UserId, from: Origin) -> Result<(), Refusal> {
        let Some(throttle) = &self.settings.limits.failed_logins else { return Ok(()) };
        let taken = throttle.take((user, from), self.now.at);
        taken.map_err(|wait| Refusal::busy("too many failed logins, try again later", wait))
    }

    /// Whether a password was right is known, or not.
    pub(super) fn note_login(&self, login: &Login, is_right: Option<bool>) {
        let Some(throttle) = &self.settings.limits.failed_logins else { return };
        match is_right {
            Some(true) => throttle.forgive((login.user, login.from)),
            Some(false) => {}
            None => throttle.give_back((login.user, login.from)),
        }
    }

    pub(super) fn may_register(&self, from: Origin) -> Result<(), Refusal> {
        let Some(throttle) = &self.settings.limits.registrations else { return Ok(()) };
        let taken = throttle.take(from, self.now.at);
        taken.map_err(|wait| Refusal::busy("too many registrations from your address, try again later", wait))
    }

    /// Nobody knows what became of a registration.
    pub(super) fn forget_registration(&self, from: Origin) {
        if let Some(throttle) = &self.settings.limits.registrations {
            throttle.give_back(from);
        }
    }

    /// A proxy has told whose connection it is: is there a place for one more of that address?
    pub(super) fn admit_address(&mut self, conn: ConnId, fx: &mut Effects) {
        let Some(addresses) = &self.settings.limits.addresses else { return };
        let Some(client) = self.clients.get_mut(conn) else { return };
        match addresses.admit(client.peer.ip()) {
            Some(slot) => client.address_slot = Some(Box::new(slot)),
            None => self.refuse_and_close(conn, address_is_full(), CloseReason::AddressFull, fx),
        }
    }
}
