//! Any thread: how many connections each address has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a limit counts as one address: an IPv4 address, or the /64 network that a single IPv6 customer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    V4([u8; 4]),
    V6([u8; 8]),
}

/// A peer's own address: on a socket for both families, and in a proxy's header, an IPv4 peer appears inside an IPv6
/// address.
pub fn canonical(peer: SocketAddr) -> SocketAddr {
    match peer.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::from((ip, peer.port())),
        IpAddr::V6(_) => peer,
    }
}

impl From<IpAddr> for Origin {
    fn from(ip: IpAddr) -> Origin {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Origin::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, h, ..] = ip.octets();
                Origin::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// The connections of every address that has any. Its memory is bounded by their number.
#[derive(Debug)]
pub struct Addresses {
    max: u32,
    open: Mutex<HashMap<Origin, u32>>,
}

impl Addresses {
    /// At most `max` connections of one address at a time.
    pub fn new(max: u32) -> Arc<Addresses> {
        Arc::new(Addresses { max, open: Mutex::default() })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Origin, u32>> {
        // Nothing below can panic while it holds the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection of this address; `None`: it has as many as it may have.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<AddressSlot> {
        let origin = Origin::from(ip);
        let mut open = self.open();
        let count = open.entry(origin).or_default();
        // With a limit of at least one, an entry that was just made is never left at zero.
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(AddressSlot { addresses: Arc::clone(self), origin })
    }

    /// Addresses that have a connection.
    pub fn len(&self) -> usize {
        self.open().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One connection's place under its address's limit, free again when dropped.
#[derive(Debug)]
pub struct AddressSlot {
    addresses: Arc<Addresses>,
    origin: Origin,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut open = self.addresses.open();
        if let Entry::Occupied(mut count) = open.entry(self.origin) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        // A crowd's memory is not kept.
        if open.capacity() > 1024 && open.len() < open.capacity() / 8 {
            open.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_customer_is_one_address_and_an_ipv4_peer_is_the_same_in_both_families() {
        let of = |text: &str| Origin::from(ip(text));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.7"), of("192.0.2.7"));
        assert_ne!(of("192.0.2.7"), of("192.0.2.8"));
        let shown = |text: &str| canonical(text.parse().unwrap()).to_string();
        assert_eq!(shown("[::ffff:192.0.2.7]:6000"), "192.0.2.7:6000");
        assert_eq!(shown("[2001:db8::1]:6000"), "[2001:db8::1]:6000");
        assert_eq!(shown("[fe80::1%2]:6000"), "[fe80::1%2]:6000");
    }

    #[test]
    fn places_are_given_back_and_nothing_is_remembered_of_who_has_left() {
        let addresses = Addresses::new(2);
        let mut slots: Vec<_> = (0..2).map(|_| addresses.admit(ip("192.0.2.7")).unwrap()).collect();
        assert!(addresses.admit(ip("192.0.2.7")).is_none());
        assert!(addresses.admit(ip("192.0.2.8")).is_some());
        assert_eq!(addresses.len(), 1);
        slots.pop();
        slots.push(addresses.admit(ip("192.0.2.7")).unwrap());
        drop(slots);
        assert!(addresses.is_empty());
    }
}
