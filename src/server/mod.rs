//! Main thread, and thread `lives`: the wiring, and the order in which all of it ends.
//!
//! ```text
//!                       ┌────────────────────────── Server: the sockets that are listened on ──────────────────────────┐
//!  main ── stop ──────▶ │ lives: one Node after the other                                                              │
//!                       │   │ start, stop, abandon                                            monitor, monitor-accept  │
//!                       │   ▼                                                                                          │
//!                       │ Node: acceptor, reactors, workers ── marked ──▶ (abandon; begin anew)                        │
//!                       │  └─ Cluster: bus-publisher, bus-subscriber, lease ── renewed ──▶ look, reaper                │
//!                       └──────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Three threads find out which nodes of a cluster are alive:
//!
//! | thread | asks | what |
//! | --- | --- | --- |
//! | `lease` | Redis | renews this node's lease while it hears itself and its reactors turn; finds nodes without one |
//! | `look` | the store | checks whether this node is marked as dead, after each renewal, or several times a second without one |
//! | `reaper` | the store | marks nodes without a lease, tells all others, and frees the claims when all have confirmed |
//!
//! [`validity`] holds what the first two find out, and every reactor asks it before it does anything. Like [`reaping`],
//! which decides for the third, it knows neither Redis nor the store: `tests/simulation` runs both as they are.

mod advice;
mod bridge;
mod cluster;
mod door;
mod ending;
mod failure_log;
mod lease;
mod look;
mod monitor;
mod node;
mod notice;
mod opened;
mod reaper;
pub mod reaping;
mod threads;
pub mod validity;

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded, select};

use crate::config::{Config, Listen, Listener};
use crate::reactor::{Acceptor, Admission, bound_free_memory, give_back_memory, listen, listen_everywhere};
use crate::secret::SecretUrl;
use crate::wire::dialect::DialectChoice;
use crate::wire::{Errno, Refusal};
pub use advice::{CannotListen, advise, enough_memory};
use advice::{Descriptors, about_browsers};
use bridge::Mailboxes;
use door::{Door, refusal_of};
pub use ending::{Hurried, Hurry};
use failure_log::FailureLog;
use monitor::Monitor;
use node::{Lasting, Node, Ready};
use opened::Opened;

/// The pause before a new life that could not begin is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A server that runs.
pub struct Server {
    address: SocketAddr,
    stop: Sender<Hurry>,
    lives: JoinHandle<Result<()>>,
}

impl Server {
    /// Opens the store, starts all threads, and listens.
    ///
    /// # Errors
    /// The store cannot be opened, the server cannot listen on an address ([`CannotListen`]), or the system has no
    /// more descriptors or threads; [`advise`] says what to do then.
    pub fn start(config: &Config) -> Result<Server> {
        bound_free_memory();
        let monitored = config.metrics.map(listen_for_metrics).transpose()?;
        let descriptors = Descriptors::enough(config)?;
        let opened = Opened::new(config)?;
        let listeners: Vec<Listening> = config.listeners.iter().map(Listening::new).collect::<Result<_>>()?;
        let main = listeners.first().context("there is no listener")?;
        let address = main.address;
        let lasting = Lasting::new(config, descriptors)?;
        let (node, sources) = Ready::new(opened, &lasting, address)?.run(&lasting, sockets(&listeners)?)?;
        let monitor =
            monitored.map(|listener| Monitor::start(listener, descriptors.watchers(), sources)).transpose()?;
        log::info!(
            "listening on {main}; store {}; bus {}; reactors {}; workers {}; file descriptors {}{}{}",
            config.store,
            config.redis.as_ref().map_or("in-process".to_owned(), SecretUrl::to_string),
            config.reactors,
            config.workers,
            descriptors.limit(),
            monitor.as_ref().map_or_else(String::new, |monitor| format!("; metrics on http://{}/", monitor.address())),
            about_browsers(config, address.port()),
        );
        listeners[1..].iter().for_each(|further| log::info!("listening on {further}"));
        let (stop, stopping) = bounded(1);
        let lives = Lives { address, listeners, lasting, monitor };
        let lives = std::thread::Builder::new().name("lives".to_owned()).spawn(move || lives.run(node, &stopping));
        Ok(Server { address, stop, lives: lives.context("cannot start lives")? })
    }

    /// The address that it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends in order, unless a message on `hurry` cuts it short:
    ///
    /// 1. It is no longer ready, and accepts no connections.
    /// 2. Every shard logs its users out. Messages that are queued for them are recalled at once and stored; one that is
    ///    half written has a second to get out. What the users have sent is settled, and what other nodes have asked is
    ///    answered. This may take a minute while the store goes on taking something, and every 5 s the log reports what
    ///    is left. If there is no progress for 10 s, the end is given up.
    /// 3. The reactors end, and with them the connections, which have half a second to say goodbye.
    /// 4. The workers do the jobs that are left.
    /// 5. All users of this node are set offline, and the store is closed: within 5 s.
    /// 6. The lease is given up, and the bus ends: other nodes may take over what is left.
    /// 7. The lock on the database is released, and the metrics end.
    ///
    /// # Errors
    /// Messages were lost, or some users were not set offline; the error says how many messages of how many users.
    /// [`Hurried`]: `hurry` has cut the end short.
    pub fn stop(self, hurry: Hurry) -> Result<()> {
        let _ = self.stop.send(hurry);
        // A panic has ended the process already.
        self.lives.join().unwrap_or(Ok(()))
    }
}

/// Listens for `--metrics`, before anything else is done.
fn listen_for_metrics(address: SocketAddr) -> Result<TcpListener, CannotListen> {
    listen(address).map_err(|error| CannotListen::new(format!("{address} for --metrics"), error))
}

/// A socket that is listened on, and what is spoken there.
struct Listening {
    socket: TcpListener,
    /// With the real port.
    address: SocketAddr,
    dialect: DialectChoice,
}

impl Listening {
    fn new(Listener { place, dialect }: &Listener) -> Result<Listening> {
        let socket = match *place {
            Listen::At(address) => listen(address),
            Listen::Everywhere(port) => listen_everywhere(port),
        };
        let socket = socket.map_err(|error| CannotListen::new(place.to_string(), error))?;
        Ok(Listening { address: socket.local_addr()?, socket, dialect: dialect.clone() })
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.dialect.name().map_or(Ok(()), |name| write!(f, "; dialect {name}"))
    }
}

/// The same sockets once more, for an acceptor, which closes its own.
fn sockets(listeners: &[Listening]) -> Result<Vec<TcpListener>> {
    listeners.iter().map(|listener| Ok(listener.socket.try_clone()?)).collect()
}

/// One life after the other, on the same sockets.
struct Lives {
    address: SocketAddr,
    /// The main one first.
    listeners: Vec<Listening>,
    lasting: Lasting,
    monitor: Option<Monitor>,
}

impl Lives {
    /// Runs until the server is stopped.
    fn run(self, mut node: Node, stop: &Receiver<Hurry>) -> Result<()> {
        loop {
            select! {
                recv(stop) -> hurry => return self.end(node, &hurry?),
                recv(node.marked()) -> _ => {}
            }
            log::warn!(
                "other nodes took this one for dead: it closes all connections, loses what it has not stored or delivered \
                 yet, and begins anew"
            );
            self.monitor.iter().for_each(Monitor::watch_no_node);
            node.abandon();
            // The threads of the next life would take other parts of the heap than those of this one.
            give_back_memory();
            let Some(next) = self.begin_anew(stop)? else { return Ok(()) };
            node = next;
        }
    }

    /// Begins a new life, as soon as that is possible. `None`: the server is to end.
    ///
    /// # Errors
    /// The system has no more descriptors or threads.
    fn begin_anew(&self, stop: &Receiver<Hurry>) -> Result<Option<Node>> {
        let mut failures = FailureLog::default();
        let mut doorman: Option<Door> = None;
        let ready = loop {
            let opened = Opened::new(&self.lasting.config);
            let ready = opened.and_then(|opened| Ready::new(opened, &self.lasting, self.address));
            let error = ready.as_ref().err().map(|error| format!("{error:#}"));
            failures.note(error.as_ref(), "this node can begin anew", "this node cannot begin anew yet");
            if let Ok(ready) = ready {
                break ready;
            }
            if doorman.is_none() {
                doorman = Some(self.turn_clients_away()?);
            }
            if stop.recv_timeout(RETRY).is_ok() {
                return Ok(None);
            }
        };
        doorman.into_iter().for_each(Door::close);
        let (node, sources) = ready.run(&self.lasting, sockets(&self.listeners)?)?;
        if let Some(monitor) = &self.monitor {
            monitor.watch(sources)?;
        }
        log::info!("listening on {} again", self.address);
        Ok(Some(node))
    }

    fn turn_clients_away(&self) -> Result<Door> {
        let refusal = refusal_of(&Refusal::new(Errno::Busy, "this node is not ready, try again later"));
        let admission = Admission { max: 0, refusal, addresses: None };
        let (acceptor, handle) = Acceptor::new(sockets(&self.listeners)?, Mailboxes::default(), admission)?;
        Door::open("doorman", acceptor, handle)
    }

    fn end(self, node: Node, hurry: &Hurry) -> Result<()> {
        self.monitor.iter().for_each(Monitor::stopping);
        // From now on the system refuses connections.
        drop(self.listeners);
        let outcome = node.stop(hurry);
        self.monitor.into_iter().for_each(Monitor::end);
        outcome
    }
}
