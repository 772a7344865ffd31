//! The bus over Redis.
//!
//! ```text
//!              ToNode, ToUser, CountListeners, Confirm ┌───────────────┐ PUBLISH, in pipelines
//!              ┌──────────────────────────────────────▶│ bus-publisher ├──────────┐
//!  Bus::send ──┤                                       └───────┬───────┘          ▼
//!              │                               Reached, Unsent │              ┌───────┐
//!              │                         Listener::post ◀──────┤              │ Redis │
//!              │           events, Listening, Buried, Down, Up │              └───┬───┘
//!              │                                       ┌───────┴────────┐         │
//!              └──────────────────────────────────────▶│ bus-subscriber │◀────────┘
//!                          Listen, Unlisten            └────────────────┘ SUBSCRIBE, messages
//! ```
//!
//! | channel | listener | payload |
//! | --- | --- | --- |
//! | `chat:node:<node>` | that node | envelopes, see [`super::envelope`] |
//! | `<user>`, decimal | the node that has the user, ours or a C++ node | a chat, as JSON |
//!
//! Publishing waits for an answer, so it is done by a worker: a pool of one worker and one lane
//! sends everything that has piled up in one pipeline. Listening cannot wait: the next event may be a
//! message, a confirmation, or a request to listen to one more channel. A blocking connection would notice
//! the last only when Redis happens to send something; so the subscriber is a small reactor of its own, one
//! socket and a mailbox on one Poll, with the encoder and the parser of the `redis` crate.
//!
//! Redis keeps nothing of what is published. [`Down`](super::BusEvent::Down) and [`Up`](super::BusEvent::Up) follow
//! the subscriber's connection, because that is where messages get lost; what the publisher could not send is
//! reported to each sender.
//!
//! Nothing here is sent twice: if an operation may have reached Redis before a connection broke, its sender is
//! told that the outcome is not known. It may still be carried out: a Redis that stood still reads, when it goes
//! on, what was sent to it before the sender gave up. So every payload contains the number of the
//! publisher's connection, its *line*: a node that has seen a newer line drops what arrives on an older one, so what a
//! node publishes arrives in order, with gaps where a line broke.
//!
//! The queue to be published is not bounded here. Its senders bound it: each waits for the outcome
//! of its message, and a Redis that does not answer is given up after [`PATIENCE`], together with
//! everything that waits.
//!
//! A node's [beats](RedisBus::beat) show whether it can hear and be heard: they go the whole way, out by the
//! publisher's connection and in by the subscriber's.

mod address;
mod confirms;
mod counts;
mod error;
pub mod hearing;
mod inbox;
mod lease;
mod link;
mod posts;
mod publisher;
mod retry;
mod shared;
mod subscriber;
mod subscriptions;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::bounded;
use mio::Poll;

use address::Address;
pub use address::Setup;
use counts::{PublisherCounts, SubscriberCounts};
pub use error::StartError;
use inbox::Inbox;
pub use lease::{LEASE_TTL, Leases, Look, Renewed};
use posts::Posts;
pub use retry::PATIENCE;
use shared::Shared;

use super::envelope::Versions;
use super::{Bus, BusOp, Listener};
use crate::clock;
use crate::pool::{Pool, Queue, Submitter, WorkerCounts};
use crate::reactor::Mailbox;
use crate::store::NodeId;
use publisher::{Job, Publisher};
use subscriber::{Command, Subscriber};

/// The bus over Redis: see the [module](self).
///
/// Redis counts the listeners of a user's channel, including this node if it listens to the channel itself.
pub struct RedisBus {
    publisher: Submitter<Job>,
    listens: Arc<Mailbox<Command>>,
    shared: Arc<Shared>,
    counts: BusCounts,
    threads: Mutex<Option<Threads>>,
}

/// The counters of a bus, by the thread that counts.
#[derive(Clone)]
pub struct BusCounts {
    pub publisher: Arc<PublisherCounts>,
    pub worker: Vec<Arc<WorkerCounts>>,
    pub subscriber: Arc<SubscriberCounts>,
}

struct Threads {
    publisher: Pool<Job>,
    subscriber: JoinHandle<()>,
}

impl RedisBus {
    /// Connects to Redis, listens to this node's channel, and returns when that is effective. From then on the bus
    /// outlives any outage; none of its events reports this start.
    ///
    /// # Errors
    /// The address cannot be used, or Redis cannot be reached there, refuses the password or the
    /// database, or accepts no subscription within 2 s; the system has no more threads.
    pub fn start(url: &str, node: NodeId, listener: Arc<dyn Listener>, setup: Setup) -> Result<RedisBus, StartError> {
        let address = || Address::parse(url, Arc::clone(&setup.lookup));
        let (mut to_publish, mut to_subscribe) = (address()?, address()?);
        let shown = to_publish.to_string();
        let connection =
            to_publish.connect().map_err(|error| StartError::Unreachable { address: shown.clone(), error })?;
        to_subscribe.begin_at(&to_publish);

        let poll = Poll::new()?;
        let listens = Arc::new(Mailbox::new(poll.registry())?);
        let (listening, started) = bounded(1);
        let shared = Arc::new(Shared {
            node,
            payload: setup.payload,
            inbox: Mutex::new(Inbox::new(node, Posts::new(Arc::clone(&listener)))),
            subscribed: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            versions: Mutex::default(),
        });
        let subscriber = Subscriber::new(poll, Arc::clone(&listens), to_subscribe, Arc::clone(&shared), listening);
        let publisher = Publisher::new(to_publish, connection, Arc::clone(&shared), Posts::new(listener));
        let (publisher_counts, subscriber_counts) = (publisher.counts(), subscriber.counts());
        let pool = Pool::start_named("bus-publisher", vec![publisher], 1, 1)?;
        let thread =
            std::thread::Builder::new().name("bus-subscriber".to_owned()).spawn(move || run_subscriber(subscriber))?;
        let bus = RedisBus {
            publisher: pool.submitter(),
            listens,
            shared,
            counts: BusCounts { publisher: publisher_counts, worker: pool.counts(), subscriber: subscriber_counts },
            threads: Mutex::new(Some(Threads { publisher: pool, subscriber: thread })),
        };
        match started.recv_timeout(PATIENCE) {
            Ok(()) => Ok(bus), // else dropping it stops it
            Err(_) => Err(StartError::NoSubscription(shown)),
        }
    }

    /// Buries a node that is dead: when this returns, nothing more of it is handed on, and every shard has been sent
    /// [`BusEvent::Buried`](super::BusEvent::Buried), after everything that was handed on. A repeated call only sends
    /// that event again.
    ///
    /// Any thread may call this, but not from within the [`Listener`].
    pub fn bury(&self, node: NodeId, asker: Option<NodeId>) {
        let mut inbox = self.shared.inbox();
        inbox.bury(node, asker);
        inbox.posts.post();
    }

    /// Sends a beat to this node itself, by way of Redis. One that cannot be sent is lost.
    pub fn beat(&self) {
        self.publisher.in_lane(0, Job::Beat(clock::since_boot()));
    }

    /// When the newest beat that has come back was sent, by [`clock::since_boot`]; `None`: none has come back on the
    /// line on which this node listens.
    pub fn heard(&self) -> Option<Duration> {
        match self.shared.beat.load(Ordering::Acquire) {
            0 => None,
            sent => Some(Duration::from_nanos(sent)),
        }
    }

    /// Learns which versions the nodes that are alive read, and forgets all others: see [`Look::living`]. The bus
    /// speaks the lowest version to a node that is not among them.
    pub fn learn(&self, living: &[(NodeId, Option<Versions>)]) {
        let known = living.iter().filter_map(|(node, versions)| Some((*node, (*versions)?))).collect();
        *self.shared.versions() = known;
    }

    /// Its counters.
    pub fn counts(&self) -> BusCounts {
        self.counts.clone()
    }

    /// How many batches of operations wait to be published.
    pub fn waiting(&self) -> [(Queue, usize); Queue::COUNT] {
        self.publisher.waiting()
    }

    /// Publishes what it was sent until now, ends the threads, and closes the connections: within
    /// twice [`PATIENCE`]. What is sent afterwards is lost, without an answer.
    pub fn stop(&self) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(threads) = threads {
            threads.publisher.finish();
            self.listens.post(Command::Stop);
            // A panic has ended the process already.
            let _ = threads.subscriber.join();
        }
    }

    /// Ends at once: only what is being written at this moment is still published, what waits is
    /// dropped, and the threads are not waited for. What they hear until they have ended is still handed on.
    pub fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::Release);
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The publisher's pool drops what waits.
        if threads.is_some() {
            self.listens.post(Command::Stop);
        }
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Bus for RedisBus {
    fn send(&self, ops: &mut Vec<BusOp>) {
        let is_listening = |op: &BusOp| matches!(op, BusOp::Listen { .. } | BusOp::Unlisten { .. });
        let mut listens: Vec<Command> = ops.extract_if(.., |op| is_listening(op)).map(Command::Op).collect();
        if !listens.is_empty() {
            self.listens.post_all(&mut listens);
        }
        if !ops.is_empty() {
            self.publisher.in_lane(0, Job::Ops(std::mem::take(ops)));
        }
    }

    fn is_up(&self) -> bool {
        self.shared.subscribed.load(Ordering::Acquire) != 0
    }
}

/// A node that hears nothing would look alive and receive no chats, so the process ends instead.
fn run_subscriber(subscriber: Subscriber) {
    if let Err(error) = subscriber.run() {
        log::error!("bus-subscriber cannot go on: {error}");
        crate::logging::exit(70);
    }
}
