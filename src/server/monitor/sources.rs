//! Thread `monitor`: what `/metrics` exports, and where it comes from.

use std::sync::Arc;

use crate::bus::Bus;
use crate::bus::redis::RedisBus;
use crate::logging;
use crate::metrics::{Kind, Registry, Watched};
use crate::pool::{Queue, Submitter, WorkerCounts};
use crate::reactor::{AcceptorCounts, ReactorCounts};
use crate::server::bridge::Mailboxes;
use crate::server::validity::Validity;
use crate::service::{Job, ShardCounts};
use crate::store::{Store, StoreCounts};

/// Everything in a node that has counters, or that readiness depends on.
pub struct Sources {
    pub mailboxes: Mailboxes,
    pub acceptor: Arc<AcceptorCounts>,
    /// By index, like the shards.
    pub reactors: Vec<Arc<ReactorCounts>>,
    pub shards: Vec<Arc<ShardCounts>>,
    pub pool: Submitter<Job>,
    pub workers: Vec<Arc<WorkerCounts>>,
    pub stores: Vec<Arc<StoreCounts>>,
    pub store: Arc<dyn Store>,
    pub bus: Option<Arc<RedisBus>>,
    pub validity: Option<Arc<Validity>>,
}

/// Each with its index.
fn by_index<C>(counts: Vec<Arc<C>>) -> impl Iterator<Item = (String, Vec<Arc<C>>)> {
    counts.into_iter().enumerate().map(|(index, counts)| (index.to_string(), vec![counts]))
}

impl Sources {
    /// All metrics of a node, in a process that began to serve at `started`, in seconds since 1970.
    pub fn registry(self, started: f64) -> Registry {
        let Sources { mailboxes, acceptor, reactors, shards, pool, workers, stores, bus, .. } = self;
        let mut registry = process(started);
        registry.add_by("reactor", by_index(reactors));
        registry.add_by("reactor", by_index(shards));
        registry.add(vec![acceptor]);
        registry.add(stores);
        let bus_counts = bus.as_ref().map(|bus| bus.counts());
        let publishers = bus_counts.iter().map(|counts| ("bus".to_owned(), counts.worker.clone()));
        registry.add_by("pool", [("store".to_owned(), workers)].into_iter().chain(publishers));
        if let Some(counts) = bus_counts {
            registry.add(vec![counts.publisher]);
            registry.add(vec![counts.subscriber]);
        }
        registry.watch(Watched {
            name: "chat_mailbox_letters",
            help: "Letters that wait for a reactor.",
            kind: Kind::Gauge,
            read: Box::new(move || {
                let waiting = mailboxes.iter().map(|mailbox| mailbox.len() as f64);
                waiting.enumerate().map(|(index, waiting)| (format!("reactor=\"{index}\""), waiting)).collect()
            }),
        });
        let up = bus.clone();
        registry.watch(Watched {
            name: "chat_jobs_waiting",
            help: "Jobs that wait for a worker.",
            kind: Kind::Gauge,
            read: Box::new(move || {
                let store = pool.waiting().map(|(queue, jobs)| ("store", queue, jobs));
                let bus = bus.iter().flat_map(|bus| bus.waiting()).map(|(queue, jobs)| ("bus", queue, jobs));
                let labels = |pool, queue: Queue| format!("pool=\"{pool}\",queue=\"{}\"", queue.text());
                store.into_iter().chain(bus).map(|(pool, queue, jobs)| (labels(pool, queue), jobs as f64)).collect()
            }),
        });
        registry.watch(Watched {
            name: "chat_bus_up",
            help: "Whether the line to Redis is up.",
            kind: Kind::Gauge,
            read: Box::new(move || up.iter().map(|bus| (String::new(), f64::from(u8::from(bus.is_up())))).collect()),
        });
        registry
    }
}

/// The metrics of the process alone.
pub fn process(started: f64) -> Registry {
    let mut registry = Registry::default();
    registry.watch(Watched {
        name: "chat_log_lines_dropped_total",
        help: "Lines of the log that were dropped: not read or written as fast as they came.",
        kind: Kind::Counter,
        read: Box::new(|| vec![(String::new(), logging::dropped() as f64)]),
    });
    registry.watch(Watched {
        name: "process_start_time_seconds",
        help: "When this process began to serve, in seconds since 1970.",
        kind: Kind::Gauge,
        read: Box::new(move || vec![(String::new(), started)]),
    });
    registry
}
