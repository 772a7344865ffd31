//! The wiring: store, workers, reactors and acceptor, and the order in which they end.

mod advice;
mod bridge;
mod keeper;
mod monitor;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, bounded};
use mio::Poll;

use crate::bus::redis::Leases;
use crate::bus::{Alone, Bus, Listener, RedisBus};
use crate::config::{Config, Listen, StoreUrl};
use crate::password::Hasher;
use crate::pool::{self, Pool, Submitter};
use crate::reactor::{
    Acceptor, AcceptorHandle, Addresses, Admission, EventLoop, Limits, Mail, Mailbox, listen, listen_everywhere,
};
use crate::secret::SecretUrl;
use crate::service::{self, HashQueue, Job, JobRunner, Letter, Memo, Settings, Shard, Throttle};
use crate::store::mysql::{self, Lock, MySqlStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{NodeId, Quotas, Store, StoreCounts, Timed};
use crate::wire::{Errno, Refusal, reply};
use advice::enough_descriptors;
pub use advice::{CannotListen, advise, enough_memory};
use bridge::{Bridge, BusListener, StoreWorker, now_at};
use keeper::{Keeper, Waker};
use monitor::{Monitor, Sources};

type Mailboxes = Arc<[Mailbox<Mail<Letter>>]>;

/// Descriptors kept for everything that is no client: the store's files, polls, wakers, logs.
const RESERVED_DESCRIPTORS: u64 = 64;
/// How long users may take to be logged out when the server ends.
const WIND_UP: Duration = Duration::from_millis(3000);
/// How long the store may take after that. In all, an end takes less than 5 s.
const LAST_WRITES: Duration = Duration::from_millis(1200);
/// A few more lanes than workers: what piles up in one while the workers are busy is committed
/// together.
const LANES_PER_WORKER: usize = 2;

/// A server that runs.
pub struct Server {
    address: SocketAddr,
    store: Arc<dyn Store>,
    acceptor: AcceptorHandle,
    acceptor_thread: JoinHandle<()>,
    mailboxes: Mailboxes,
    reactor_threads: Vec<JoinHandle<()>>,
    pool: Pool<Job>,
    cluster: Option<Cluster>,
    /// Keeps the lock on the database.
    lock: Option<Sender<()>>,
    wound_up: Receiver<usize>,
    monitor: Option<Monitor>,
}

/// What a node has that is not alone.
struct Cluster {
    bus: Arc<RedisBus>,
    keeper: JoinHandle<()>,
}

impl Server {
    /// Opens the store, starts all threads, and listens.
    ///
    /// # Errors
    /// The store cannot be had, an address cannot be listened on ([`CannotListen`]), or the system has no
    /// more descriptors or threads; [`advise`] tells what to do then.
    pub fn start(config: &Config) -> Result<Server> {
        let monitored = config.metrics.map(monitor::bind).transpose()?;
        let descriptors = enough_descriptors(config)?;
        let node = NodeId(getrandom::u64().context("cannot draw a number")? >> 1 | 1);
        let (store, mut lock) = open_store(config, node)?;
        let listener = match config.listen {
            Listen::At(address) => listen(address),
            Listen::Everywhere(port) => listen_everywhere(port),
        };
        let listener = listener.map_err(|error| CannotListen::new(config.listen.to_string(), error))?;
        let address = listener.local_addr()?;

        // First the polls, then their mailboxes, then threads that know all mailboxes.
        let polls: Vec<Poll> = (0..config.reactors).map(|_| Poll::new()).collect::<std::io::Result<_>>()?;
        let mailboxes: Mailboxes =
            polls.iter().map(|poll| Mailbox::new(poll.registry())).collect::<std::io::Result<Vec<_>>>()?.into();
        let lanes = config.workers * LANES_PER_WORKER;
        let stores: Vec<Arc<StoreCounts>> = (0..config.workers).map(|_| Arc::default()).collect();
        let pool = start_pool(config, lanes, &store, &stores, &mailboxes)?;
        let (bus, keeper, cluster) = start_bus(config, node, address, &store, lock.as_mut(), &mailboxes)?;
        let lock = lock.map(keep_lock).transpose()?;
        let (report, wound_up) = bounded(config.reactors);
        // Behind a proxy a client's address is known only when the proxy has told it.
        let (at_the_door, behind_a_proxy) = match config.max_connections_per_address.map(Addresses::new) {
            Some(addresses) if config.proxies.is_empty() => (Some(addresses), None),
            addresses => (None, addresses),
        };
        let service_limits = service::Limits {
            addresses: behind_a_proxy,
            failed_logins: config.max_failed_logins.map(|an_hour| Arc::new(Throttle::new(an_hour))),
            registrations: config.max_registrations.map(|an_hour| Arc::new(Throttle::new(an_hour))),
            message_rate: config.max_message_rate,
            byte_rate: config.max_byte_rate,
        };
        let hashes = HashQueue::new(pool::free_places(config.workers, cores()));
        if !config.mixed {
            // Whoever comes first, thousands after an outage, is to be told how long it takes.
            let begun = Instant::now();
            Hasher::new(config.password_cost).hash("a password").context("cannot hash a password")?;
            hashes.note(begun.elapsed());
        }
        let settings = settings(config, node, lanes, service_limits, hashes);
        let limits = Limits {
            high_water: config.high_water,
            // Far enough above the soft mark for a page of offline messages and a large message.
            hard: config.high_water.saturating_mul(4).saturating_add(config.max_message.saturating_mul(2)),
            // Connections go to the reactors in turn, so each has its part of what they hold.
            total: config.max_buffered / config.reactors,
        };
        let (mut reactor_threads, mut reactors, mut shards) = (Vec::new(), Vec::new(), Vec::new());
        for (index, poll) in polls.into_iter().enumerate() {
            let shard = Shard::new(index, config.reactors, settings.clone(), now_at(Instant::now()));
            shards.push(shard.counts());
            let bridge = Bridge::new(shard, pool.submitter(), Arc::clone(&bus), keeper.clone(), report.clone());
            let event_loop = EventLoop::new(index, poll, Arc::clone(&mailboxes), limits, bridge)?;
            reactors.push(event_loop.counts());
            reactor_threads.push(thread(format!("reactor-{index}"), move || event_loop.run())?);
        }
        let watchers = monitored.as_ref().map_or(0, |_| monitor::MAX_CONNECTIONS.min(descriptors / 4));
        let reserved = RESERVED_DESCRIPTORS + watchers + (config.reactors * 4 + config.workers * 2) as u64;
        let room = descriptors.saturating_sub(reserved).max(1);
        let max = config.max_connections.unwrap_or(usize::MAX).min(usize::try_from(room).unwrap_or(usize::MAX));
        let refusal = refusal_of(&Refusal::new(Errno::Busy, "the server is full, try again later"));
        let addresses = at_the_door.map(|addresses| (addresses, refusal_of(&service::address_is_full())));
        let (acceptor, handle) =
            Acceptor::new(listener, Arc::clone(&mailboxes), Admission { max, refusal, addresses })?;
        let acceptor_counts = acceptor.counts();
        let acceptor_thread = thread("acceptor".to_owned(), move || acceptor.run())?;
        let monitor = match monitored {
            Some(listener) => {
                let sources = Sources {
                    mailboxes: Arc::clone(&mailboxes),
                    acceptor: acceptor_counts,
                    reactors,
                    shards,
                    pool: pool.submitter(),
                    workers: pool.counts(),
                    stores,
                    bus: cluster.as_ref().map(|cluster| Arc::clone(&cluster.bus)),
                };
                Some(Monitor::start(listener, watchers as usize, monitor::registry(sources), &store, bus)?)
            }
            None => None,
        };

        log::info!(
            "listening on {address}; store {}; bus {}; reactors {}; workers {}; file descriptors {descriptors}{}",
            config.store,
            config.redis.as_ref().map_or("in-process".to_owned(), SecretUrl::to_string),
            config.reactors,
            config.workers,
            monitor.as_ref().map_or_else(String::new, |monitor| format!("; metrics on http://{}/", monitor.address())),
        );
        let acceptor = handle;
        Ok(Server {
            address,
            store,
            acceptor,
            acceptor_thread,
            mailboxes,
            reactor_threads,
            pool,
            cluster,
            lock,
            wound_up,
            monitor,
        })
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more, finishes what is in flight, flushes, sets everybody offline, and returns
    /// when that is on disk: within 5 s.
    ///
    /// # Errors
    /// The store did not take it in time; the next start sets everybody offline.
    pub fn stop(self) -> Result<()> {
        let started = Instant::now();
        self.monitor.iter().for_each(Monitor::stopping);
        self.acceptor.stop();
        join(self.acceptor_thread);
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Stop));
        let deadline = started + WIND_UP;
        let wound_up = self.mailboxes.iter().filter(|_| self.wound_up.recv_deadline(deadline).is_ok()).count();
        if wound_up < self.mailboxes.len() {
            log::warn!(
                "{} of {} reactors did not wind up in time",
                self.mailboxes.len() - wound_up,
                self.mailboxes.len()
            );
        }
        self.mailboxes.iter().for_each(|mailbox| mailbox.post(Mail::Exit));
        self.reactor_threads.into_iter().for_each(join);
        self.monitor.iter().for_each(Monitor::end);
        // The store may hang; the process must not.
        let (pool, store, cluster, lock) = (self.pool, self.store, self.cluster, self.lock);
        let (done, released) = bounded(1);
        thread("last-writes".to_owned(), move || {
            pool.finish();
            let released = store.release_all().context("could not set everybody offline; the next start does it");
            let _ = done.send(released.and(store.close().context("could not close the store")));
            // The reactors have taken their wakers along, so the keeper ends, and the lease with it.
            if let Some(Cluster { bus, keeper }) = cluster {
                join(keeper);
                bus.stop();
            }
            drop(lock);
            Ok(())
        })?;
        // What the clients have left of their time is the store's.
        let deadline = (Instant::now() + LAST_WRITES).max(started + WIND_UP + LAST_WRITES);
        let outcome = released.recv_deadline(deadline);
        self.monitor.into_iter().for_each(Monitor::join);
        // Whoever is offline is so; that a lease then runs out instead of ending, where Redis hangs, is no
        // failure. The channel's end tells that this is done as well.
        let _ = released.recv_deadline(deadline);
        match outcome {
            Ok(outcome) => outcome,
            Err(_) => bail!("the store did not finish in time; the next start sets everybody offline"),
        }
    }
}

/// The store; and the lock on it, where other servers could reach it.
fn open_store(config: &Config, node: NodeId) -> Result<(Arc<dyn Store>, Option<Lock>)> {
    let quotas = Quotas {
        offline: config.max_offline,
        friends: config.max_friends,
        groups: config.max_groups,
        members: config.max_group_size,
    };
    match &config.store {
        StoreUrl::Sqlite(path) => Ok((Arc::new(SqliteStore::open(Path::new(path), quotas)?), None)),
        StoreUrl::MySql(url) => {
            let (url, charset, mixed) = (url.reveal().to_owned(), config.mysql_charset.clone(), config.mixed);
            let alone = config.redis.is_none();
            let store = MySqlStore::open(mysql::Options { url, node, charset, mixed, alone, quotas })?;
            let lock = store.lock()?;
            Ok((Arc::new(store), Some(lock)))
        }
    }
}

type BusParts = (Arc<dyn Bus>, Option<Waker>, Option<Cluster>);

/// The bus, and what goes with it where there are other nodes.
fn start_bus(
    config: &Config,
    node: NodeId,
    address: SocketAddr,
    store: &Arc<dyn Store>,
    lock: Option<&mut Lock>,
    mailboxes: &Mailboxes,
) -> Result<BusParts> {
    let listener: Arc<dyn Listener> = Arc::new(BusListener(Arc::clone(mailboxes)));
    let (Some(url), Some(roll)) = (&config.redis, store.roll()) else {
        return Ok((Arc::new(Alone::new(listener)), None, None));
    };
    let bus = Arc::new(RedisBus::start(url.reveal(), node, listener)?);
    let leases = Leases::new(url.reveal(), node, &address.to_string())?;
    let mut keeper = Keeper::new(node, roll, leases, Arc::clone(mailboxes), config.mixed)?;
    if let Some(lock) = lock {
        keeper.check_cluster(lock)?;
    }
    let (waker, wakes) = keeper::waker();
    let keeper = thread("keeper".to_owned(), move || {
        keeper.run(wakes);
        Ok(())
    })?;
    Ok((bus.clone(), Some(waker), Some(Cluster { bus, keeper })))
}

fn start_pool(
    config: &Config,
    lanes: usize,
    store: &Arc<dyn Store>,
    counts: &[Arc<StoreCounts>],
    mailboxes: &Mailboxes,
) -> Result<Pool<Job>> {
    let memo = config.login_memo.then(Memo::new).transpose().context("cannot draw a secret")?.map(Arc::new);
    let worker = |counts: &Arc<StoreCounts>| {
        let connection = Box::new(Timed::new(store.connection(), Arc::clone(counts)));
        let runner = JobRunner::new(connection, Hasher::new(config.password_cost), config.mixed, memo.clone());
        StoreWorker::new(runner, Arc::clone(mailboxes))
    };
    Pool::start(counts.iter().map(worker).collect(), lanes, cores()).context("cannot start the workers")
}

/// More hashes at a time would only wait for each other, with 19 MiB each.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What a client is told that is not let in.
fn refusal_of(refusal: &Refusal) -> Vec<u8> {
    let mut bytes = Vec::new();
    reply::refused(&mut bytes, None, None, refusal);
    bytes
}

fn settings(config: &Config, node: NodeId, lanes: usize, limits: service::Limits, hashes: Arc<HashQueue>) -> Settings {
    Settings {
        node,
        max_message_before_login: config.max_message_before_login,
        max_message: config.max_message,
        login_timeout: config.login_timeout,
        idle_timeout: config.idle_timeout,
        high_water: config.high_water,
        lanes,
        legacy_client: config.legacy_client,
        alone: config.redis.is_none(),
        mixed: config.mixed,
        proxies: config.proxies.clone().into(),
        limits,
        hashes,
        ..Settings::default()
    }
}

/// Keeps the lock on the database for as long as what it returns is there. If it is lost, and somebody else
/// has the database by then, the process ends.
fn keep_lock(lock: Lock) -> Result<Sender<()>> {
    let (kept, stop) = bounded(0);
    thread("store-lock".to_owned(), move || keeper::keep_lock(lock, &stop))?;
    Ok(kept)
}

/// Starts a named thread. One that fails ends the process: a server without one of its reactors
/// would look alive and serve only some.
fn thread(name: String, run: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> Result<JoinHandle<()>> {
    let label = name.clone();
    let body = move || {
        if let Err(error) = run() {
            log::error!("{label} cannot go on: {error}");
            crate::logging::exit(70);
        }
    };
    std::thread::Builder::new().name(name.clone()).spawn(body).with_context(|| format!("cannot start {name}"))
}

fn join(thread: JoinHandle<()>) {
    // A panic has ended the process already.
    let _ = thread.join();
}

/// Submits an effect's job.
fn submit(pool: &Submitter<Job>, lane: crate::service::Lane, job: Job) {
    match lane {
        crate::service::Lane::Number(number) => pool.in_lane(number, job),
        crate::service::Lane::None => pool.anywhere(job),
    }
}
