//! What clients may not exceed, and how they are told.

use std::sync::Arc;

use super::{Effects, Shard};
use crate::reactor::{Addresses, CloseReason, ConnId};
use crate::store::Quota;
use crate::wire::Refusal;

/// The limits that the service holds clients to; by default none.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The connections of each address, where a proxy tells it; all shards count in the same.
    pub addresses: Option<Arc<Addresses>>,
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
