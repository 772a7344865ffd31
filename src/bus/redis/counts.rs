//! The counters of the two threads of the bus.

use crate::metrics::{Counter, Histogram, cells};

cells! {
    /// Counted by the publisher.
    pub struct PublisherCounts {
        /// How long Redis took to answer one pipeline of what is published.
        exchanges: Histogram = "chat_bus_exchange_seconds",
        /// Commands in those pipelines.
        commands: Counter = "chat_bus_commands_total",
        /// Bytes of those pipelines.
        sent: Counter = "chat_bus_sent_bytes_total",
        /// Pipelines that were not sent, or not answered, since Redis was away.
        failures: Counter = "chat_bus_failures_total",
    }
}

cells! {
    /// Counted by the subscriber.
    pub struct SubscriberCounts {
        /// Payloads that came from other nodes.
        messages: Counter = "chat_bus_messages_total",
        /// Bytes of those payloads.
        received: Counter = "chat_bus_received_bytes_total",
        /// Times that the line to Redis broke.
        outages: Counter = "chat_bus_outages_total",
    }
}
