//! Any thread: names of connections, each with its reactor, which are never used again.

/// Names one connection for the life of the process. The serial is never used again, so what
/// arrives late (a letter, a store's result, a timer) finds its own connection or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    serial: u64,
    /// Where the connection stands in its reactor's tables; used again once it is closed.
    slot: u32,
    reactor: u16,
}

impl ConnId {
    /// The index of the reactor whose thread owns the connection.
    pub fn reactor(self) -> usize {
        usize::from(self.reactor)
    }

    pub(super) fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Names a listener of an acceptor, by its place among those that the acceptor was given.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ListenerId(pub u8);

impl ListenerId {
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl std::fmt::Display for ConnId {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}.{}", self.reactor, self.serial)
    }
}

/// Gives out the ids of one reactor's connections.
#[derive(Debug)]
pub struct ConnIds {
    reactor: u16,
    next_serial: u64,
    slots: u32,
    free: Vec<u32>,
}

impl ConnIds {
    /// The ids of the reactor with this index.
    pub fn new(reactor: u16) -> Self {
        ConnIds { reactor, next_serial: 0, slots: 0, free: Vec::new() }
    }

    /// The index of the reactor that gives them out.
    pub fn reactor(&self) -> usize {
        usize::from(self.reactor)
    }

    /// A new connection's id: its serial is new, its slot may have belonged to another one.
    pub fn allocate(&mut self) -> ConnId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.next_serial += 1;
        ConnId { serial: self.next_serial, slot, reactor: self.reactor }
    }

    /// The connection is gone from all tables.
    pub fn free(&mut self, id: ConnId) {
        self.free.push(id.slot);
    }
}

/// A table of things by connection: an index by slot, which is checked against the serial.
#[derive(Debug)]
pub struct ConnMap<T> {
    slots: Vec<Option<(ConnId, T)>>,
    len: usize,
}

impl<T> Default for ConnMap<T> {
    fn default() -> Self {
        ConnMap { slots: Vec::new(), len: 0 }
    }
}

impl<T> ConnMap<T> {
    /// Adds what belongs to a new connection. The slot's former owner must have been removed.
    pub fn insert(&mut self, id: ConnId, value: T) {
        if self.slots.len() <= id.slot() {
            self.slots.resize_with(id.slot() + 1, || None);
        }
        if self.slots[id.slot()].replace((id, value)).is_none() {
            self.len += 1;
        }
    }

    pub fn get(&self, id: ConnId) -> Option<&T> {
        match self.slots.get(id.slot()) {
            Some(Some((owner, value))) if *owner == id => Some(value),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        match self.slots.get_mut(id.slot()) {
            Some(Some((owner, value))) if *owner == id => Some(value),
            _ => None,
        }
    }

    pub fn remove(&mut self, id: ConnId) -> Option<T> {
        self.get(id)?;
        self.len -= 1;
        self.slots[id.slot()].take().map(|(_, value)| value)
    }

    /// The connection that owns a slot now: for an event, which knows no more than its token.
    pub(super) fn owner(&self, slot: usize) -> Option<ConnId> {
        self.slots.get(slot)?.as_ref().map(|(id, _)| *id)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn ids(&self) -> impl Iterator<Item = ConnId> + '_ {
        self.slots.iter().flatten().map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_id_does_not_find_the_slots_next_owner() {
        let (mut ids, mut map) = (ConnIds::new(3), ConnMap::default());
        let first = ids.allocate();
        map.insert(first, "first");
        map.remove(first);
        ids.free(first);
        let second = ids.allocate();
        map.insert(second, "second");
        assert_eq!(first.slot(), second.slot());
        assert_eq!((map.get(first), map.get(second)), (None, Some(&"second")));
        assert_eq!(map.remove(first), None);
        assert_eq!((map.len(), second.reactor()), (1, 3));
    }
}
