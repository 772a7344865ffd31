//! Acceptor thread and reactor threads: what each of them counts. Any thread may read it.

use super::reason::{CloseReason, Reason};
use crate::metrics::{By, Counter, Gauge, Labelled, cells, labels, worded};

labels! {
    /// How a reactor found out that a client does not read.
    pub enum Slowness as "cause" {
        /// More waits for it than the high-water mark allows.
        HighWater = "high water",
        /// All connections' queues together hold too much, and it has more than its share.
        Tight = "all buffers",
        /// It has taken nothing for a second.
        Stalled = "stalled",
    }
}

cells! {
    /// Counted by each reactor; what every message touches, in the first 64 bytes.
    pub struct ReactorCounts {
        /// Turns of the event loop.
        turns: Counter = "chat_reactor_turns_total",
        /// Wakes by letters from other threads.
        wakes: Counter = "chat_reactor_wakes_total",
        /// What came through the mailbox: letters from reactors, workers and the bus, and new connections.
        letters: Counter = "chat_reactor_letters_total",
        /// Bytes read from clients.
        received: Counter = "chat_received_bytes_total",
        /// Bytes that wait to be written to clients.
        queued: Gauge = "chat_queued_bytes",
        /// Bytes that the kernel has taken for clients.
        sent: Counter = "chat_sent_bytes_total",
        /// Open connections.
        connections: Gauge = "chat_connections",
        /// Connections that were taken over from the acceptor.
        accepted: Counter = "chat_connections_accepted_total",
        /// Connections that were closed, by reason.
        closed: Labelled<Counter> = "chat_connections_closed_total",
        /// How often a client was found not to read, so that its messages went through the store.
        slow: By<Slowness, Counter, { Slowness::COUNT }> = "chat_slow_consumers_total",
    }
}

impl ReactorCounts {
    /// Counts of a reactor whose handler has such reasons.
    pub(super) fn new<R: Reason>() -> Self {
        let reasons = CloseReason::<R>::all().map(|reason| worded("reason", reason.text()));
        ReactorCounts { closed: Labelled::new(reasons), ..ReactorCounts::default() }
    }

    /// Notes why a connection was closed.
    pub(super) fn note_closed<R: Reason>(&self, reason: CloseReason<R>) {
        let index = CloseReason::all().position(|each| each == reason);
        if let Some(count) = index.and_then(|index| self.closed.at(index)) {
            count.add(1);
        }
    }
}

cells! {
    /// Counted by the acceptor.
    pub struct AcceptorCounts {
        /// Pauses of 500 ms in which no client was accepted, since the system had no descriptors or memory.
        pauses: Counter = "chat_accept_pauses_total",
        /// Connections refused since all places were taken.
        refused: Counter = "chat_connections_refused_total",
        /// Connections refused since their address had as many as it may.
        refused_for_address: Counter = "chat_connections_refused_for_address_total",
    }
}
