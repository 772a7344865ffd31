//! Thread `lives`: one life of this node, all its threads, from a start with nothing to its end.
//!
//! A life ends in order ([`Node::stop`]), or at once, when other nodes have taken this one for dead
//! ([`Node::abandon`]). Then another one begins as at a start, under a new id: it takes over nothing from the old one
//! except what is in [`Lasting`].

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, never, select};
use mio::Poll;

use super::advice::Descriptors;
use super::bridge::{Bridge, BusListener, Mailboxes, Reports, StoreWorker, now_at};
use super::cluster::{Cluster, Joined};
use super::door::{Door, refusal_of};
use super::ending::{self, Hurried, Hurry, Remains, Unfinished};
use super::monitor::Sources;
use super::opened::Opened;
use super::threads::{thread, vital_thread};
use crate::bus::{Bus, Local};
use crate::config::Config;
use crate::home::Homes;
use crate::password::Hasher;
use crate::pool::{self, Pool};
use crate::reactor::{Acceptor, Addresses, Admission, Budget, EventLoop, Limits, Mail, Origin, mailboxes};
use crate::service::{self, HashQueue, Job, JobRunner, Memo, Settings, Shard, Throttle};
use crate::store::mysql::Lock;
use crate::store::{NodeId, Store, StoreCounts, Timed, UserId};
use crate::wire::{Errno, Refusal, http};

/// How long the store may take to finish and close, after all users are logged out.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// The same, if the store has stopped taking anything before.
const LAST_CHANCE: Duration = Duration::from_millis(500);
/// A reactor that takes longer than this to end hangs; it says goodbye in half a second.
const HANGS: Duration = Duration::from_secs(5);
/// A few more lanes than workers: jobs that pile up in one lane while the workers are busy are committed
/// together.
const LANES_PER_WORKER: usize = 2;

/// How often the node checks whether it still holds the lock on the database.
const LOCK_PERIOD: Duration = Duration::from_secs(1);

/// What a browser gets.
const PAGE: &str = include_str!("../web/page.html");

/// What outlives a life.
pub(super) struct Lasting {
    pub config: Config,
    descriptors: Descriptors,
    homes: Homes,
    /// Connections by address, if their number is limited.
    addresses: Option<Arc<Addresses>>,
    failed_logins: Option<Arc<Throttle<(UserId, Origin)>>>,
    registrations: Option<Arc<Throttle<Origin>>>,
    memo: Option<Arc<Memo>>,
    /// How long hashing a password takes; `None`: passwords are not hashed.
    hash_time: Option<Duration>,
}

impl Lasting {
    /// Hashes a password, and takes as long as that takes.
    ///
    /// # Errors
    /// The system has no random numbers, or too little memory for a hash.
    pub fn new(config: &Config, descriptors: Descriptors) -> Result<Lasting> {
        let seed = match config.home_seed {
            Some(seed) => seed,
            None => getrandom::u64().context("cannot draw a number")?,
        };
        let hash_time = || -> Result<Duration> {
            let begun = Instant::now();
            Hasher::new(config.password_cost).hash("a password").context("cannot hash a password")?;
            Ok(begun.elapsed())
        };
        Ok(Lasting {
            config: config.clone(),
            descriptors,
            homes: Homes::new(seed, config.reactors),
            addresses: config.max_connections_per_address.map(Addresses::new),
            failed_logins: config.max_failed_logins.map(|an_hour| Arc::new(Throttle::new(an_hour))),
            registrations: config.max_registrations.map(|an_hour| Arc::new(Throttle::new(an_hour))),
            memo: config.login_memo.then(Memo::new).transpose().context("cannot draw a secret")?.map(Arc::new),
            hash_time: (!config.mixed).then(hash_time).transpose()?,
        })
    }

    /// A client's address is known only when its proxy has told it.
    fn is_behind_a_proxy(&self) -> bool {
        !self.config.proxies.is_empty()
    }
}

/// A life that has everything but its threads. Dropping it leaves nothing behind.
pub(super) struct Ready {
    opened: Opened,
    polls: Vec<Poll>,
    mailboxes: Mailboxes,
    bus: Arc<dyn Bus>,
    joined: Option<Joined>,
}

/// A node that runs.
pub(super) struct Node {
    store: Arc<dyn Store>,
    /// `None`: no more connections are accepted.
    door: Option<Door>,
    mailboxes: Mailboxes,
    /// Closed when all reactors have ended.
    reactors: Receiver<()>,
    pool: Pool<Job>,
    /// The number of jobs that the store has done.
    done: Arc<AtomicU64>,
    cluster: Option<Cluster>,
    /// The lock on the database is held until this is dropped.
    lock: Option<Sender<()>>,
    remains: Vec<Arc<Remains>>,
    wound_up: Receiver<()>,
    marked: Receiver<()>,
}

impl Ready {
    /// Joins the cluster, if there is one. `address` tells a reader of the leases in Redis which node this is.
    ///
    /// # Errors
    /// Redis or the store is not available, or the database belongs to another cluster; the system has no more
    /// descriptors or threads.
    pub fn new(mut opened: Opened, lasting: &Lasting, address: SocketAddr) -> Result<Ready> {
        // First the polls, then their mailboxes, then threads that know all mailboxes.
        let config = &lasting.config;
        let (polls, mailboxes): (_, Mailboxes) = mailboxes(config.reactors)?;
        let listener = |reaper| BusListener { mailboxes: Arc::clone(&mailboxes), homes: lasting.homes, reaper };
        let (bus, joined): (Arc<dyn Bus>, _) = match &config.redis {
            Some(url) => {
                let joined = Joined::new(url.reveal(), config, address, &mut opened, listener)?;
                (joined.bus(), Some(joined))
            }
            // A node that is alone is sent no confirmations, so its listener needs no reaper.
            None => (Arc::new(Local::new(Arc::new(listener(bounded(0).0)))), None),
        };
        Ok(Ready { opened, polls, mailboxes, bus, joined })
    }

    /// Starts all threads, with an acceptor on `listeners`.
    ///
    /// # Errors
    /// The system has no more descriptors or threads; those that have been started go on.
    pub fn run(self, lasting: &Lasting, listeners: Vec<TcpListener>) -> Result<(Node, Sources)> {
        let Ready { opened: Opened { node, store, lock }, polls, mailboxes, bus, joined } = self;
        let config = &lasting.config;
        let lock = lock.map(keep_lock).transpose()?;
        let lanes = config.workers * LANES_PER_WORKER;
        let stores: Vec<Arc<StoreCounts>> = (0..config.workers).map(|_| Arc::default()).collect();
        let done = Arc::<AtomicU64>::default();
        let worker = |counts: &Arc<StoreCounts>| {
            let connection = Box::new(Timed::new(store.connection(), Arc::clone(counts)));
            let hasher = Hasher::new(config.password_cost);
            let runner = JobRunner::new(connection, hasher, config.mixed, lasting.memo.clone());
            StoreWorker::new(runner, Arc::clone(&mailboxes), Arc::clone(&done))
        };
        let pool = Pool::start(stores.iter().map(worker).collect(), lanes, cores());
        let pool = pool.context("cannot start the workers")?;
        let validity = joined.as_ref().map(Joined::validity);
        let settings = settings(lasting, node, lanes);
        let limits = Limits {
            high_water: config.high_water,
            // Far enough above the high-water mark for a page of offline messages and a large message.
            hard: config.high_water.saturating_mul(4).saturating_add(config.max_message.saturating_mul(2)),
            total: config.max_buffered,
        };
        let budget = Budget::new();
        let (report, wound_up) = bounded(config.reactors);
        // Dropped with the last reactor.
        let (alive, reactors) = bounded::<()>(0);
        let (mut loops, mut shards, mut remains) = (Vec::new(), Vec::new(), Vec::new());
        for (index, poll) in polls.into_iter().enumerate() {
            let shard = Shard::new(index, settings.clone(), now_at(Instant::now()));
            shards.push(shard.counts());
            let left = Arc::<Remains>::default();
            remains.push(Arc::clone(&left));
            let reports = Reports { wound_up: report.clone(), remains: left };
            let bridge = Bridge::new(shard, pool.submitter(), Arc::clone(&bus), validity.clone(), reports);
            loops.push(EventLoop::new(index, poll, Arc::clone(&mailboxes), limits, Arc::clone(&budget), bridge)?);
        }
        let reactor_counts = loops.iter().map(EventLoop::counts).collect();
        let turns = loops.iter().map(EventLoop::beat).collect();
        for (index, event_loop) in loops.into_iter().enumerate() {
            let alive = alive.clone();
            vital_thread(format!("reactor-{index}"), move || {
                let _alive = alive;
                event_loop.run()
            })?;
        }
        let cluster = joined.map(|joined| joined.run(turns)).transpose()?;
        let (acceptor, handle) = Acceptor::new(listeners, Arc::clone(&mailboxes), admission(lasting))?;
        let sources = Sources {
            mailboxes: Arc::clone(&mailboxes),
            acceptor: acceptor.counts(),
            reactors: reactor_counts,
            shards,
            pool: pool.submitter(),
            workers: pool.counts(),
            stores,
            bus: cluster.as_ref().map(|cluster| Arc::clone(&cluster.bus)),
            validity,
            store: Arc::clone(&store),
        };
        let marked = cluster.as_ref().map_or_else(never, |cluster| cluster.marked.clone());
        let door = Some(Door::open("acceptor", acceptor, handle)?);
        let node = Node { store, door, mailboxes, reactors, pool, done, cluster, lock, remains, wound_up, marked };
        Ok((node, sources))
    }
}

/// How many passwords are hashed at a time: more would only wait for each other, with 19 MiB each.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn settings(lasting: &Lasting, node: NodeId, lanes: usize) -> Settings {
    let config = &lasting.config;
    let hashes = HashQueue::new(pool::free_places(config.workers, cores()));
    // So that the first clients, thousands after an outage, are told how long it takes.
    lasting.hash_time.into_iter().for_each(|time| hashes.note(time));
    Settings {
        node,
        homes: lasting.homes,
        max_message_before_login: config.max_message_before_login,
        max_message: config.max_message,
        login_timeout: config.login_timeout,
        idle_timeout: config.idle_timeout,
        high_water: config.high_water,
        lanes,
        legacy_client: config.legacy_client,
        trace_wire: config.trace_wire,
        single_node: config.redis.is_none(),
        mixed: config.mixed,
        proxies: config.proxies.clone().into(),
        listeners: config.listeners.iter().map(|listener| listener.dialect.clone()).collect(),
        browsers: config.web.then(|| {
            Arc::new(service::Browsers { page: http::page(PAGE).into(), origins: config.web_origins.clone() })
        }),
        limits: service::Limits {
            addresses: lasting.addresses.clone().filter(|_| lasting.is_behind_a_proxy()),
            failed_logins: lasting.failed_logins.clone(),
            registrations: lasting.registrations.clone(),
            message_rate: config.max_message_rate,
            byte_rate: config.max_byte_rate,
        },
        hashes,
        ..Settings::default()
    }
}

fn admission(lasting: &Lasting) -> Admission {
    let room = lasting.descriptors.room();
    let of_address = |addresses| (addresses, refusal_of(&service::address_is_full()));
    Admission {
        max: lasting.config.max_connections.map_or(room, |max| max.min(room)),
        refusal: refusal_of(&Refusal::new(Errno::Busy, "the server is full, try again later")),
        addresses: lasting.addresses.clone().filter(|_| !lasting.is_behind_a_proxy()).map(of_address),
    }
}

/// Holds the lock on the database until the returned sender is dropped. If the lock is lost, and another server
/// has taken the database by then, the process ends.
fn keep_lock(mut lock: Lock) -> Result<Sender<()>> {
    let (kept, stop) = bounded(0);
    vital_thread("store-lock", move || {
        while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(LOCK_PERIOD) {
            lock.check().map_err(std::io::Error::other)?;
        }
        Ok(())
    })?;
    Ok(kept)
}

impl Node {
    /// Notified when other nodes have taken this one for dead.
    pub fn marked(&self) -> &Receiver<()> {
        &self.marked
    }

    fn accept_no_more(&mut self) {
        self.door.take().into_iter().for_each(Door::close);
    }

    /// Closes everything at once: nothing more is flushed, stored or published. A job that hangs is left behind.
    pub fn abandon(mut self) {
        // From here on no reactor acts, whatever is still in its mailbox.
        self.cluster.iter().for_each(Cluster::end);
        self.accept_no_more();
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Abandon));
        drop(self.pool);
        self.cluster.into_iter().for_each(Cluster::abandon);
        if let Err(RecvTimeoutError::Timeout) = self.reactors.recv_timeout(HANGS) {
            // Its clients would stay connected to a session that is over.
            log::error!("a reactor hangs");
            crate::logging::exit(70);
        }
        // Drop what was on its way to a reactor that had ended.
        self.mailboxes.iter().for_each(|mailbox| mailbox.take(&mut Vec::new()));
    }

    /// Ends in order: see [`Server::stop`](super::Server::stop).
    pub fn stop(mut self, hurry: &Hurry) -> Result<()> {
        self.accept_no_more();
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Stop));
        let wound_up = ending::wind_up(&self.wound_up, &self.marked, hurry, &self.remains, &self.done);
        if wound_up == Err(Unfinished::Marked) {
            let remains = std::mem::take(&mut self.remains);
            self.abandon();
            bail!("{}; {} are lost", Unfinished::Marked, ending::remaining(&remains));
        }
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Exit));
        let _ = self.reactors.recv_timeout(HANGS);
        let lost = ending::remaining(&self.remains);
        if wound_up == Err(Unfinished::Hurried) {
            // Closing the store could take as long as what the end has been waiting for.
            std::mem::forget(self);
            return Err(Hurried(lost).into());
        }
        let Node { pool, store, cluster, lock, .. } = self;
        // In a cluster, users that are not logged out keep their claims until the other nodes have done what is due at
        // the death of a node.
        let release = wound_up.is_ok() || cluster.is_none();
        let (done, released) = bounded(1);
        // The store may hang; the process must not.
        thread("last-writes", move || {
            pool.finish();
            let result = if release { store.release_all().context(NOT_OFFLINE) } else { Ok(()) };
            let _ = done.send(result.and(store.close().context("could not close the store")));
            cluster.into_iter().for_each(Cluster::stop);
            drop(lock);
        })?;
        let deadline = Instant::now() + if wound_up.is_ok() { LAST_WRITES } else { LAST_CHANCE };
        let wait = || {
            select! {
                recv(released) -> result => Ok(result),
                recv(hurry) -> _ => Err(Hurried(lost)),
                default(deadline.saturating_duration_since(Instant::now())) => Ok(Ok(Err(anyhow!(TOO_LATE)))),
            }
        };
        let outcome = wait()?.unwrap_or(Ok(()));
        // The users are offline by now; that the lease then expires instead of being given up, if Redis hangs, is no
        // failure. The channel is closed when this is done as well.
        let _ = wait()?;
        match wound_up {
            Err(why) if lost.messages == 0 => bail!("{why}; nothing is lost, but {NOT_OFFLINE}"),
            Err(why) => bail!("{why}; {lost} are lost, and {NOT_OFFLINE}"),
            Ok(()) if lost.messages > 0 => bail!("{lost} are lost: the store did not take them"),
            Ok(()) => outcome,
        }
    }
}

/// What it means that users were not set offline.
const NOT_OFFLINE: &str = "some users were not set offline: the next start, or the other nodes, will do that";
const TOO_LATE: &str = "the store did not finish in time, so some users may not have been set offline: the next start, \
                        or the other nodes, will do that";
