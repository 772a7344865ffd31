//! Acceptor thread and reactor threads: a connection's place under the limits on the number of connections.
//!
//! The acceptor makes it, the reactor of the connection drops it; the count is an atomic.

use std::sync::Arc;

use super::address::AddressSlot;

/// One connection's place under the limits, free again when it is dropped: a pointer to the place that all
/// connections have in common, or, where addresses have a limit, to a place of its own.
pub struct ConnectionSlot(#[expect(dead_code, reason = "it counts by being there")] Arc<Place>);

/// A place is counted by the references to it.
#[derive(Default)]
struct Place {
    /// The common place, if this is the place of a single connection.
    _common: Option<Arc<Place>>,
    _of_address: Option<AddressSlot>,
}

/// The place that all connections of an acceptor have in common.
#[derive(Default)]
pub(super) struct CommonPlace(Arc<Place>);

impl CommonPlace {
    /// How many connections there are, over all reactors.
    pub fn connections(&self) -> usize {
        Arc::strong_count(&self.0) - 1
    }

    /// A slot for one more connection.
    pub fn slot(&self, of_address: Option<AddressSlot>) -> ConnectionSlot {
        let common = Arc::clone(&self.0);
        match of_address {
            None => ConnectionSlot(common),
            Some(_) => ConnectionSlot(Arc::new(Place { _common: Some(common), _of_address: of_address })),
        }
    }
}
