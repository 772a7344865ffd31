//! The bus over Redis.
//!
//! ```text
//!              ToNode, ToAll, ToUser, CountListeners   ┌───────────────┐ PUBLISH, in pipelines
//!              ┌──────────────────────────────────────▶│ bus-publisher ├──────────┐
//!  Bus::send ──┤                                       └───────┬───────┘          ▼
//!              │                                       Reached │               ┌───────┐
//!              │                         Listener::post ◀──────┤               │ Redis │
//!              │            events, Listening, Down, Up│       │               └───┬───┘
//!              │                                       ┌───────┴────────┐          │
//!              └──────────────────────────────────────▶│ bus-subscriber │◀─────────┘
//!                          Listen, Unlisten            └────────────────┘ SUBSCRIBE, messages
//! ```
//!
//! | channel | who listens | payload |
//! | --- | --- | --- |
//! | `chat:node:<node>` | that node | envelopes, see [`super::envelope`] |
//! | `chat:nodes` | all our nodes | the same |
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
//! Nothing here is sent twice: an operation that may have reached Redis before a connection broke
//! is answered `None`. It may still be carried out: a Redis that stood still reads, when it goes on,
//! what was sent to it before the sender gave up.
//!
//! What waits to be published is not bounded here. Its senders bound it: each waits for what
//! becomes of its message, and a Redis that does not answer is given up after [`PATIENCE`], with
//! all that waits.

mod counts;
pub mod hearing;
mod lease;
mod link;
mod publisher;
mod subscriber;
mod subscriptions;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mio::Poll;
use redis::io::tcp::TcpSettings;
use redis::{
    Client, Connection, ConnectionAddr, ErrorKind, IntoConnectionInfo, ProtocolVersion, RedisError, RedisResult,
};

use counts::{PublisherCounts, SubscriberCounts};
pub use lease::{LEASE_TTL, Leases};

use super::{Bus, BusEvent, BusOp, Listener};
use crate::pool::{Pool, Queue, Submitter, WorkerCounts};
use crate::reactor::Mailbox;
use crate::store::NodeId;
use publisher::Publisher;
use subscriber::{Mail, Subscriber};

/// A Redis that owes an answer for so long is as good as away.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two attempts to reach Redis.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The shortest one, behind the first attempt, which is made at once.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// At most one complaint of a kind in this time.
const COMPLAIN: Duration = Duration::from_secs(10);

/// The channel that all our nodes listen to.
const NODES: &str = "chat:nodes";

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
    ("NOPERM", "allow its user ~chat:* &* +@connection +@pubsub +@transaction +set +del +pttl +exists"),
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

/// The bus over Redis: see the [module](self).
///
/// What reaches all others is counted without this node. What reaches a user's channel is counted
/// by Redis: with this node, if it listens to that itself.
pub struct RedisBus {
    publisher: Submitter<Vec<BusOp>>,
    listens: Arc<Mailbox<Mail>>,
    /// See [`Publisher`].
    line: Arc<AtomicU64>,
    counts: BusCounts,
    threads: Mutex<Option<Threads>>,
}

/// What a bus counts, by the thread that does.
#[derive(Clone)]
pub struct BusCounts {
    pub publisher: Arc<PublisherCounts>,
    pub worker: Vec<Arc<WorkerCounts>>,
    pub subscriber: Arc<SubscriberCounts>,
}

struct Threads {
    publisher: Pool<Vec<BusOp>>,
    subscriber: JoinHandle<()>,
}

impl RedisBus {
    /// Reaches Redis, listens to this node's channels, and returns when that is effective. From
    /// then on the bus outlives any outage; none of its events tells of this start.
    ///
    /// # Errors
    /// The address is none, or Redis cannot be reached there, refuses the password or the
    /// database, or takes no subscription within 2 s; the system has no more threads.
    pub fn start(url: &str, node: NodeId, listener: Arc<dyn Listener>) -> Result<RedisBus, StartError> {
        let client = client(url)?;
        let info = client.get_connection_info();
        let address = info.addr().to_string();
        let connection =
            connect(&client).map_err(|error| StartError::Unreachable { address: address.clone(), error })?;

        let poll = Poll::new()?;
        let listens = Arc::new(Mailbox::new(poll.registry())?);
        let line = Arc::new(AtomicU64::new(0));
        let (listening, started) = bounded(1);
        let post = Posts::new(Arc::clone(&listener));
        let subscriber =
            Subscriber::new(poll, Arc::clone(&listens), info.clone(), node, Arc::clone(&line), listening, post);
        let publisher = Publisher::new(client, connection, node, Arc::clone(&line), Posts::new(listener));
        let (publisher_counts, subscriber_counts) = (publisher.counts(), subscriber.counts());
        let pool = Pool::start_named("bus-publisher", vec![publisher], 1, 1)?;
        let thread =
            std::thread::Builder::new().name("bus-subscriber".to_owned()).spawn(move || run_subscriber(subscriber))?;
        let bus = RedisBus {
            publisher: pool.submitter(),
            listens,
            line,
            counts: BusCounts { publisher: publisher_counts, worker: pool.counts(), subscriber: subscriber_counts },
            threads: Mutex::new(Some(Threads { publisher: pool, subscriber: thread })),
        };
        match started.recv_timeout(PATIENCE) {
            Ok(()) => Ok(bus), // else dropping it stops it
            Err(_) => Err(StartError::NoSubscription(address)),
        }
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
            self.publisher.in_lane(0, std::mem::take(ops));
        }
    }

    fn is_up(&self) -> bool {
        self.line.load(Ordering::Acquire) != 0
    }
}

/// A node that hears nothing looks alive and gets no chat: better none.
fn run_subscriber(subscriber: Subscriber) {
    if let Err(error) = subscriber.run() {
        log::error!("bus-subscriber cannot go on: {error}");
        crate::logging::exit(70);
    }
}

/// A client for an address, that has connected nowhere yet.
fn client(url: &str) -> Result<Client, StartError> {
    let info = url.into_connection_info().map_err(StartError::Url)?;
    if !matches!(info.addr(), ConnectionAddr::Tcp(..)) {
        return Err(StartError::Url((ErrorKind::InvalidClientConfig, "only TCP is supported").into()));
    }
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2).set_skip_set_lib_name();
    let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true)).set_redis_settings(settings);
    Client::open(info).map_err(StartError::Url)
}

/// A blocking connection to a Redis that answers. Every wait on it ends after [`PATIENCE`].
fn connect(client: &Client) -> RedisResult<Connection> {
    // Half of it for the way there, so that a start or a stop against a Redis that stands still
    // takes no longer than an answer may.
    let mut connection = client.get_connection_with_timeout(PATIENCE / 2)?;
    // Half of it for good: a large write times out twice, once with what was taken and once with nothing.
    connection.set_write_timeout(Some(PATIENCE / 2))?;
    connection.set_read_timeout(Some(PATIENCE / 2))?;
    // A Redis that stands still accepts connections all the same.
    redis::cmd("PING").exec(&mut connection)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    Ok(connection)
}

/// Events on their way to the shards; a batch for each.
struct Posts {
    listener: Arc<dyn Listener>,
    by_shard: Vec<Vec<BusEvent>>,
}

impl Posts {
    fn new(listener: Arc<dyn Listener>) -> Posts {
        let by_shard = (0..listener.shards()).map(|_| Vec::new()).collect();
        Posts { listener, by_shard }
    }

    fn push(&mut self, event: BusEvent) {
        let shards = self.by_shard.len();
        match event {
            BusEvent::Envelope(from, envelope) => {
                for (shard, part) in envelope.split(shards) {
                    self.push_to(shard, BusEvent::Envelope(from, part));
                }
            }
            BusEvent::FromForeign(user, _) | BusEvent::Listening { user, .. } => {
                self.push_to(user as usize % shards, event)
            }
            BusEvent::Reached(ticket, _) => self.push_to(usize::from(ticket.shard) % shards, event),
            BusEvent::Down | BusEvent::Up => self.by_shard.iter_mut().for_each(|events| events.push(event.clone())),
        }
    }

    fn push_to(&mut self, shard: usize, event: BusEvent) {
        self.by_shard[shard].push(event);
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

    #[test]
    fn an_address_that_is_none_of_a_redis_over_tcp_is_refused() {
        for url in ["", "redis://", "http://127.0.0.1", "unix:/tmp/redis", "rediss://127.0.0.1", "redis://127.0.0.1/x"]
        {
            assert!(matches!(client(url), Err(StartError::Url(_))), "{url}");
        }
        let client = client("redis://some:p%40ss@127.0.0.1:7000/3").unwrap();
        let settings = client.get_connection_info().redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("some"), Some("p@ss"), 3));
    }
}
