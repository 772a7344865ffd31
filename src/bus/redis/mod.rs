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
pub mod hearing;
mod inbox;
mod lease;
mod link;
mod publisher;
mod subscriber;
mod subscriptions;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mio::Poll;
use redis::{ErrorKind, RedisError};

use address::{Address, Lookup};
use counts::{PublisherCounts, SubscriberCounts};
use inbox::Inbox;
pub use lease::{LEASE_TTL, Leases, Look, Renewed};

use super::envelope::{Dialect, Versions};
use super::{Bus, BusEvent, BusOp, Envelope, Listener};
use crate::clock;
use crate::home::Homes;
use crate::pool::{Pool, Queue, Submitter, WorkerCounts};
use crate::reactor::Mailbox;
use crate::store::NodeId;
use publisher::{Job, Publisher};
use subscriber::{Mail, Subscriber};

/// A Redis that has not answered for this long counts as away.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to reach Redis.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause, after the first attempt, which is made at once.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The period in which at most one warning of a kind is logged.
const COMPLAIN: Duration = Duration::from_secs(10);

/// The channel that only this node listens to.
fn channel_of(node: NodeId) -> String {
    format!("chat:node:{node}")
}

/// Why the bus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is not the address of a Redis that can be used: redis://[[USER]:PASSWORD@]HOST:PORT[/DATABASE]")]
    Url(RedisError),
    #[error("cannot reach Redis at {address}: {error}{}", advice(.error))]
    Unreachable { address: String, error: RedisError },
    #[error("cannot take a lease in Redis at {address}: {error}{}", advice(.error))]
    NoLease { address: String, error: RedisError },
    #[error("Redis at {0} accepts no subscription; allow its user &* +@pubsub")]
    NoSubscription(String),
    #[error("cannot start the bus")]
    System(#[from] io::Error),
}

/// What Redis replies when it does not serve us, and what an operator can do.
const ADVICE: [(&str, &str); 13] = [
    ("NOAUTH", "it requires a password: redis://:PASSWORD@HOST:PORT, in --redis or CHAT_REDIS"),
    ("WRONGPASS", "it does not accept the user or the password in --redis or CHAT_REDIS"),
    ("NOPERM", "allow its user ~chat:* &* +@connection +@pubsub +set +get +del +pttl +info"),
    ("DENIED", "its protected mode admits only its own machine: set a password there, or bind it to an address"),
    ("LOADING", "it is still loading its data: start again when it has finished"),
    ("READONLY", "it is a replica: name its master in --redis"),
    ("MASTERDOWN", "it is a replica: name its master in --redis"),
    ("OUT OF RANGE", "it has fewer databases: /0 always exists"),
    ("INCOMPATIBLE TYPE", "the server at that address is not a Redis"),
    ("MOVED", "it is a node of a Redis Cluster: name one that stands alone"),
    ("CLUSTERDOWN", "it is a node of a Redis Cluster: name one that stands alone"),
    ("MISCONF", "it accepts no writes while it cannot save its data: its log says why"),
    ("\"OOM\"", "its memory is full: raise its maxmemory"),
];

/// What an operator can do about an error of a start, to be appended to it.
fn advice(error: &RedisError) -> String {
    // The library shows some errors by the word that Redis replied, and some by its own name for it.
    let text = format!("{error} {}", error.detail().unwrap_or_default()).to_ascii_uppercase();
    let by_word = ADVICE.iter().find(|(word, _)| text.contains(word)).map(|(_, advice)| *advice);
    let by_kind = || match error.kind() {
        _ if error.is_timeout() => Some("it does not answer: is Redis listening there, and is it running?"),
        ErrorKind::Io => Some("is it running, and is that its address?"),
        ErrorKind::AuthenticationFailed => {
            Some("is the password in --redis or CHAT_REDIS the right one, or does it have none?")
        }
        _ => None,
    };
    by_word.or_else(by_kind).map_or(String::new(), |advice| format!("; {advice}"))
}

/// What tests change; the default otherwise.
#[derive(Clone)]
pub struct Setup {
    /// How payloads are written and read.
    pub dialect: Dialect,
    /// How the name of Redis is resolved.
    pub lookup: Lookup,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { dialect: Dialect::default(), lookup: address::system_lookup() }
    }
}

/// The bus over Redis: see the [module](self).
///
/// Redis counts the listeners of a user's channel, including this node if it listens to the channel itself.
pub struct RedisBus {
    publisher: Submitter<Job>,
    listens: Arc<Mailbox<Mail>>,
    shared: Arc<Shared>,
    counts: BusCounts,
    threads: Mutex<Option<Threads>>,
}

/// What the bus's threads share.
struct Shared {
    node: NodeId,
    dialect: Dialect,
    inbox: Mutex<Inbox>,
    /// The number of the subscriber's connection to Redis; 0: there is none.
    subscribed: AtomicU64,
    /// When the newest beat that has come back on that connection was sent, in ns since the machine was booted;
    /// 0: none has come back.
    beat: AtomicU64,
    /// Nothing more is to be published.
    abandoned: AtomicBool,
    /// The versions that other nodes read, as far as they are known.
    versions: Mutex<HashMap<NodeId, Versions>>,
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A panic has ended the process already.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn versions(&self) -> MutexGuard<'_, HashMap<NodeId, Versions>> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            dialect: setup.dialect,
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
    /// [`BusEvent::Buried`], after everything that was handed on. A repeated call only sends that event again.
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
            self.listens.post(Mail::Stop);
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
            self.listens.post(Mail::Stop);
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
        let mut listens: Vec<Mail> = ops.extract_if(.., |op| is_listening(op)).map(Mail::Op).collect();
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

/// Events for the shards, a batch for each.
struct Posts {
    listener: Arc<dyn Listener>,
    homes: Homes,
    by_shard: Vec<Vec<BusEvent>>,
}

impl Posts {
    fn new(listener: Arc<dyn Listener>) -> Posts {
        let homes = listener.homes();
        Posts { listener, homes, by_shard: (0..homes.reactors()).map(|_| Vec::new()).collect() }
    }

    fn push(&mut self, event: BusEvent) {
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
    fn post(&mut self) {
        for (shard, events) in self.by_shard.iter_mut().enumerate() {
            if !events.is_empty() {
                self.listener.post(shard, events);
            }
        }
    }
}

/// When to try again: at once, then after 50 ms, and twice as long each time, up to 1 s.
struct BackOff {
    failures: u32,
    not_before: Instant,
    worked_since: Option<Instant>,
}

impl BackOff {
    fn new(now: Instant) -> BackOff {
        BackOff { failures: 0, not_before: now, worked_since: None }
    }

    fn worked(&mut self, now: Instant) {
        self.worked_since = Some(now);
    }

    fn failed(&mut self, now: Instant) {
        // A line that breaks as soon as it works counts as one that does not work.
        if self.worked_since.take().is_some_and(|since| now.duration_since(since) >= MAX_PAUSE) {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => (MIN_PAUSE * 2_u32.pow((failures - 1).min(10))).min(MAX_PAUSE),
        };
        self.failures = self.failures.saturating_add(1);
        self.not_before = now + pause;
    }
}

/// Warnings of one kind, of which only some are logged.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    held_back: u64,
}

impl Complaints {
    fn warn(&mut self, what: fmt::Arguments) {
        if self.last.is_some_and(|last| last.elapsed() < COMPLAIN) {
            self.held_back += 1;
            return;
        }
        match std::mem::take(&mut self.held_back) {
            0 => log::warn!("{what}"),
            held_back => log::warn!("{what} (and {held_back} more like this)"),
        }
        self.last = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_made_at_once_and_no_pause_is_longer_than_a_second() {
        let now = Instant::now();
        let mut back_off = BackOff::new(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            back_off.failed(now);
            pauses.push(back_off.not_before.duration_since(now).as_millis());
        }
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn only_what_has_worked_for_a_while_begins_at_the_shortest_pause_again() {
        let now = Instant::now();
        let mut back_off = BackOff::new(now);
        (0..8).for_each(|_| back_off.failed(now));
        back_off.worked(now);
        back_off.failed(now);
        assert_eq!(back_off.not_before, now + MAX_PAUSE, "it broke at once");
        back_off.worked(now);
        back_off.failed(now + MAX_PAUSE);
        assert_eq!(back_off.not_before, now + MAX_PAUSE, "at once, a second later");
    }
}
