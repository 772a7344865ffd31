//! Events on their way to the shards. No I/O.

use std::sync::Arc;

use crate::bus::{BusEvent, Envelope, Listener};
use crate::home::Homes;

/// Events for the shards, a batch for each.
pub(super) struct Posts {
    pub listener: Arc<dyn Listener>,
    pub homes: Homes,
    pub by_shard: Vec<Vec<BusEvent>>,
}

impl Posts {
    pub fn new(listener: Arc<dyn Listener>) -> Posts {
        let homes = listener.homes();
        Posts { listener, homes, by_shard: (0..homes.reactors()).map(|_| Vec::new()).collect() }
    }

    pub fn push(&mut self, event: BusEvent) {
        match event {
            BusEvent::Envelope(from, envelope) => self.push_parts(envelope, |part| BusEvent::Envelope(from, part)),
            BusEvent::Unsent(to, envelope) => self.push_parts(envelope, |part| BusEvent::Unsent(to, part)),
            BusEvent::FromForeign(user, _) | BusEvent::Listening { user, .. } => {
                self.by_shard[self.homes.of_user(user)].push(event);
            }
            BusEvent::Reached(ticket, _) => {
                let shards = self.by_shard.len();
                self.by_shard[usize::from(ticket.shard) % shards].push(event);
            }
            BusEvent::Buried { .. } | BusEvent::Down | BusEvent::Up => {
                self.by_shard.iter_mut().for_each(|events| events.push(event.clone()));
            }
        }
    }

    fn push_parts(&mut self, envelope: Envelope, event: impl Fn(Envelope) -> BusEvent) {
        for (shard, part) in envelope.split(&self.homes) {
            self.by_shard[shard].push(event(part));
        }
    }

    /// Hands over what has gathered.
    pub fn post(&mut self) {
        for (shard, events) in self.by_shard.iter_mut().enumerate() {
            if !events.is_empty() {
                self.listener.post(shard, events);
            }
        }
    }
}
