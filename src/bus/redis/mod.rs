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
//! | channel | who listens | payload |
//! | --- | --- | --- |
//! | `chat:node:<node>` | that node | envelopes, see [`super::envelope`] |
//! | `<user>`, decimal | whoever has the user, our nodes and C++ nodes | a chat, as JSON |
//!
//! Publishing waits for an answer, so it is a worker's business: a pool of one worker and one lane
//! sends all that has piled up in one pipeline. Listening cannot wait: what comes next is a
//! message, or a confirmation, or a wish to listen to one channel more. A blocking connection hears
//! the last only when Redis happens to speak; so the subscriber is a small reactor of its own, one
//! socket and a mailbox on one Poll, with the encoder and the parser of the `redis` crate.
//!
//! Redis keeps nothing of what is published. The subscriber's connection decides what is told as
//! [`Down`](super::BusEvent::Down) and [`Up`](super::BusEvent::Up), because what is lost is lost
//! there; what the publisher could not send is told to those who asked, one by one.
//!
//! Nothing here is sent twice: of an operation that may have reached Redis before a connection broke
//! it is told that this is not known. It may still be carried out: a Redis that stood still reads, when it goes
//! on, what was sent to it before the sender gave up. So every payload bears the number of the
//! publisher's connection, its *line*: who has seen a newer one drops what comes on an older one, and what a
//! node publishes arrives in its order, with gaps where a line broke.
//!
//! What waits to be published is not bounded here. Its senders bound it: each waits for what
//! becomes of its message, and a Redis that does not answer is given up after [`PATIENCE`], with
//! all that waits.
//!
//! Whether a node can be heard and can hear is what its [beats](RedisBus::beat) tell, which go the whole way: out
//! by the publisher's connection and in by the subscriber's.

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
use std::sync::{Arc, Mutex, PoisonError};
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
use super::{Bus, BusEvent, BusOp, Listener};
use crate::clock;
use crate::home::Homes;
use crate::pool::{Pool, Queue, Submitter, WorkerCounts};
use crate::reactor::Mailbox;
use crate::store::NodeId;
use publisher::{Job, Publisher};
use subscriber::{Mail, Subscriber};

/// A Redis that owes an answer for so long is as good as away.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to reach Redis.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The shortest one, behind the first attempt, which is made at once.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// At most one complaint of a kind in this time.
const COMPLAIN: Duration = Duration::from_secs(10);

/// The channel that only this node listens to.
fn channel_of(node: NodeId) -> String {
    format!("chat:node:{node}")
}

/// Why the bus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is no address of a Redis that can be used: redis://[[USER]:PASSWORD@]HOST:PORT[/DATABASE]")]
    Url(RedisError),
    #[error("cannot reach Redis at {address}: {error}{}", advice(.error))]
    Unreachable { address: String, error: RedisError },
    #[error("cannot take a lease in Redis at {address}: {error}{}", advice(.error))]
    NoLease { address: String, error: RedisError },
    #[error("Redis at {0} takes no subscription; allow its user &* +@pubsub")]
    NoSubscription(String),
    #[error("cannot start the bus")]
    System(#[from] io::Error),
}

/// What Redis says when it does not serve us, and what an operator can do.
const ADVICE: [(&str, &str); 13] = [
    ("NOAUTH", "it wants a password: redis://:PASSWORD@HOST:PORT, in --redis or CHAT_REDIS"),
    ("WRONGPASS", "the user or the password in --redis or CHAT_REDIS is not the one that it knows"),
    ("NOPERM", "allow its user ~chat:* &* +@connection +@pubsub +set +get +del +pttl +info"),
    ("DENIED", "its protected mode lets in this machine alone: set a password there, or bind it to an address"),
    ("LOADING", "it still reads its data: start again when it has"),
    ("READONLY", "it is a replica: name its master in --redis"),
    ("MASTERDOWN", "it is a replica: name its master in --redis"),
    ("OUT OF RANGE", "it has fewer databases: /0 is always there"),
    ("INCOMPATIBLE TYPE", "what answers there is no Redis"),
    ("MOVED", "it is a node of a Redis Cluster: name one that stands alone"),
    ("CLUSTERDOWN", "it is a node of a Redis Cluster: name one that stands alone"),
    ("MISCONF", "it takes no writes while it cannot save its data: its log says why"),
    ("\"OOM\"", "its memory is full: raise its maxmemory"),
];

/// How to go on, behind what a start could not do.
fn advice(error: &RedisError) -> String {
    // The library tells some by the word that Redis said, and some by a name of its own for it.
    let text = format!("{error} {}", error.detail().unwrap_or_default()).to_ascii_uppercase();
    let by_word = ADVICE.iter().find(|(word, _)| text.contains(word)).map(|(_, advice)| *advice);
    let by_kind = || match error.kind() {
        _ if error.is_timeout() => Some("it does not answer: is it Redis that listens there, and does it run?"),
        ErrorKind::Io => Some("is it running, and is that its address?"),
        ErrorKind::AuthenticationFailed => Some("is the password in --redis or CHAT_REDIS its own, or has it none?"),
        _ => None,
    };
    by_word.or_else(by_kind).map_or(String::new(), |advice| format!("; {advice}"))
}

/// What tests change: how payloads are written and read, and how names are looked up.
#[doc(hidden)]
#[derive(Clone)]
pub struct Setup {
    pub dialect: Dialect,
    pub lookup: Lookup,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { dialect: Dialect::default(), lookup: address::system_lookup() }
    }
}

/// The bus over Redis: see the [module](self).
///
/// What reaches a user's channel is counted by Redis: with this node, if it listens to that itself.
pub struct RedisBus {
    publisher: Submitter<Job>,
    listens: Arc<Mailbox<Mail>>,
    shared: Arc<Shared>,
    counts: BusCounts,
    threads: Mutex<Option<Threads>>,
}

/// What the bus's threads know of each other.
struct Shared {
    node: NodeId,
    dialect: Dialect,
    inbox: Mutex<Inbox>,
    /// The number of the subscriber's connection to Redis; 0: none is up.
    subscribed: AtomicU64,
    /// When the newest beat was sent that has come back on that connection, in ns since the machine was booted;
    /// 0: none has.
    beat: AtomicU64,
    /// Nothing is to be published any more.
    abandoned: AtomicBool,
    /// What other nodes read, as far as it is known.
    versions: Mutex<HashMap<NodeId, Versions>>,
}

/// What a bus counts, by the thread that does.
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
    /// Reaches Redis, listens to this node's channel, and returns when that is effective. From
    /// then on the bus outlives any outage; none of its events tells of this start.
    ///
    /// # Errors
    /// The address is none, or Redis cannot be reached there, refuses the password or the
    /// database, or takes no subscription within 2 s; the system has no more threads.
    pub fn start(url: &str, node: NodeId, listener: Arc<dyn Listener>) -> Result<RedisBus, StartError> {
        RedisBus::start_with(url, node, listener, Setup::default())
    }

    #[doc(hidden)]
    pub fn start_with(
        url: &str,
        node: NodeId,
        listener: Arc<dyn Listener>,
        setup: Setup,
    ) -> Result<RedisBus, StartError> {
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

    /// Buries a node that is dead: when this returns, nothing of it is handed on any more, and every shard was
    /// told, behind all that was: [`BusEvent::Buried`]. Being asked again changes nothing, but the shards are told again.
    ///
    /// Any thread may do this, but not from within the [`Listener`].
    pub fn bury(&self, node: NodeId, asker: Option<NodeId>) {
        let mut inbox = inbox::lock(&self.shared.inbox);
        inbox.bury(node, asker);
        inbox.posts.post();
    }

    /// Sends a beat to this node itself, by way of Redis. One that cannot be sent is lost.
    pub fn beat(&self) {
        self.publisher.in_lane(0, Job::Beat(clock::since_boot()));
    }

    /// When the newest beat was sent that has come back, by [`clock::since_boot`]; `None`: none has, since the
    /// line to Redis on which this node listens was made.
    pub fn heard(&self) -> Option<Duration> {
        match self.shared.beat.load(Ordering::Acquire) {
            0 => None,
            sent => Some(Duration::from_nanos(sent)),
        }
    }

    /// What the nodes that live read, in place of all that was known of it: see [`Look::living`]. To one that
    /// is not among them the lowest version is spoken.
    pub fn learn(&self, living: &[(NodeId, Option<Versions>)]) {
        let known = living.iter().filter_map(|(node, versions)| Some((*node, (*versions)?))).collect();
        *self.shared.versions.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// What it counts.
    pub fn counts(&self) -> BusCounts {
        self.counts.clone()
    }

    /// How many batches of operations wait to be published.
    pub fn waiting(&self) -> [(Queue, usize); Queue::COUNT] {
        self.publisher.waiting()
    }

    /// Publishes what was taken until now, ends the threads, and closes the connections: within
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

    /// Ends at once: nothing is published any more but what is being written at this moment, what waits is
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

/// A node that hears nothing looks alive and gets no chat: better none.
fn run_subscriber(subscriber: Subscriber) {
    if let Err(error) = subscriber.run() {
        log::error!("bus-subscriber cannot go on: {error}");
        crate::logging::exit(70);
    }
}

/// Events on their way to the shards; a batch for each.
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
            BusEvent::Envelope(from, envelope) => {
                for (shard, part) in envelope.split(&self.homes) {
                    self.by_shard[shard].push(BusEvent::Envelope(from, part));
                }
            }
            BusEvent::Unsent(to, envelope) => {
                for (shard, part) in envelope.split(&self.homes) {
                    self.by_shard[shard].push(BusEvent::Unsent(to, part));
                }
            }
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

    /// Hands over what has gathered.
    fn post(&mut self) {
        for (shard, events) in self.by_shard.iter_mut().enumerate() {
            if !events.is_empty() {
                self.listener.post(shard, events);
            }
        }
    }

    /// Tells whoever asked that all shards of `by` have done what is to be done when `dead` is dead.
    fn confirmed(&self, dead: NodeId, by: NodeId) {
        self.listener.confirmed(dead, by);
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
        // What breaks as soon as it works is no better than what does not work.
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
