//! Threads `monitor` and `monitor-accept`: `--metrics`, what an operator can look at, by HTTP.
//!
//! | path | what |
//! | --- | --- |
//! | `/` | a page that draws the most important numbers |
//! | `/metrics` | all of them, as Prometheus reads them |
//! | `/healthz` | 200: this process runs |
//! | `/readyz` | 200: it serves; 503 and the reason: it does not |
//!
//! It outlives a node that is taken for dead and begins anew; the counters then begin anew as well.
//!
//! It is one more [`EventLoop`] with an acceptor, separate from those of the clients: it handles slow readers,
//! half-closed connections and goodbyes as they do, and no request waits for another. All that is added is a minimum of
//! HTTP, parsed by `httparse`: GET and HEAD, one request for each connection. A whole HTTP library would have to be
//! as hard to hold up: `tiny_http`, the small one that is much used, has had no release since 2022 and sets no
//! time-outs on what it reads.
//!
//! What a peer can use is bounded: a request of 8 KiB that must arrive within 5 s, 64 connections that are not closed
//! (if there are more, the oldest is closed), and 5 s for a goodbye.

mod request;
mod sources;

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use mio::Poll;

pub use sources::Sources;

use request::{Refused, Request};

use super::door::Door;
use super::threads::{join, vital_thread};
use super::validity::Validity;
use crate::bus::Bus;
use crate::bus::redis::RedisBus;
use crate::clock::since_boot;
use crate::metrics::Registry;
use crate::pool::{Pool, Worker};
use crate::reactor::{
    Acceptor, Admission, Budget, CloseReason, ConnId, EventLoop, Handler, Io, Limits, ListenerId, Mail, Mailbox,
    Message, Taken, Types, Unwritten,
};
use crate::store::Connection;

const PAGE: &str = include_str!("page.html");

/// Connections that are not closed.
const MAX_OPEN: usize = 64;
/// The same, including those that say goodbye. Fewer if there are few descriptors.
pub const MAX_CONNECTIONS: u64 = 256;
/// How long a request may take to arrive.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// How long the store may take to answer.
const STORE_TIME: Duration = Duration::from_secs(1);
/// Larger than any answer.
const LIMITS: Limits = Limits { high_water: 64 << 20, hard: 128 << 20, total: usize::MAX };

/// The monitor's threads.
pub struct Monitor {
    address: SocketAddr,
    /// In seconds since 1970.
    started: f64,
    /// The server is shutting down.
    stopping: Arc<AtomicBool>,
    door: Door,
    mailboxes: Mailboxes,
    thread: JoinHandle<()>,
}

type Mailboxes = Arc<[Mailbox<Mail<Web>>]>;

impl Monitor {
    /// Starts the threads, for at most `max_connections` at a time.
    ///
    /// # Errors
    /// The system has no more of them, or no more descriptors.
    pub fn start(listener: TcpListener, max_connections: usize, sources: Sources) -> Result<Monitor> {
        let address = listener.local_addr()?;
        let poll = Poll::new()?;
        let mailboxes: Mailboxes = [Mailbox::new(poll.registry())?].into();
        let stopping = Arc::<AtomicBool>::default();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        let web = Web {
            idle: sources::process(started),
            node: Some(Box::new(View::new(sources, started, &mailboxes)?)),
            stopping: Arc::clone(&stopping),
            probing: false,
            open: VecDeque::new(),
            asking: HashMap::new(),
        };
        let event_loop = EventLoop::new(0, poll, Arc::clone(&mailboxes), LIMITS, Budget::new(), web)?;
        let admission = Admission { max: max_connections, refusal: Vec::new(), addresses: None };
        let (acceptor, handle) = Acceptor::new([listener], Arc::clone(&mailboxes), admission)?;
        let thread = vital_thread("monitor", move || event_loop.run())?;
        let door = Door::open("monitor-accept", acceptor, handle)?;
        Ok(Monitor { address, started, stopping, door, mailboxes, thread })
    }

    /// The address that it listens on, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on reports that this server is not ready, since there is no node.
    pub fn watch_no_node(&self) {
        self.tell(News::Node(None));
    }

    /// From now on reports about this node.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn watch(&self, sources: Sources) -> Result<()> {
        let node = View::new(sources, self.started, &self.mailboxes)?;
        self.tell(News::Node(Some(Box::new(node))));
        Ok(())
    }

    fn tell(&self, news: News) {
        self.mailboxes[0].post(Mail::Letter(news));
    }

    /// From now on reports that this server is not ready, since it is shutting down.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Ends, which takes at most half a second.
    pub fn end(self) {
        self.door.close();
        self.mailboxes[0].post(Mail::Exit);
        join(self.thread);
    }
}

/// A node that is watched.
pub struct View {
    registry: Registry,
    bus: Option<Arc<RedisBus>>,
    validity: Option<Arc<Validity>>,
    /// Never waited for: a store that hangs must hold up no request.
    prober: Pool<()>,
}

impl View {
    fn new(sources: Sources, started: f64, mailboxes: &Mailboxes) -> Result<View> {
        let (bus, validity) = (sources.bus.clone(), sources.validity.clone());
        let prober = Prober { connection: sources.store.connection(), mailboxes: Arc::clone(mailboxes) };
        let prober = Pool::start_named("store-probe", vec![prober], 1, 1).context("cannot start the store's probe")?;
        Ok(View { registry: sources.registry(started), bus, validity, prober })
    }
}

/// What the monitor's thread is sent.
pub enum News {
    /// Whether the store is there.
    Probed(Result<(), String>),
    /// Which node is watched.
    Node(Option<Box<View>>),
}

struct Prober {
    connection: Box<dyn Connection>,
    mailboxes: Mailboxes,
}

impl Worker for Prober {
    type Job = ();

    fn run(&mut self, batch: &mut Vec<()>) {
        batch.clear();
        // An account that does not exist: any answer will do.
        let result = self.connection.account(0).map(drop).map_err(|error| error.to_string());
        self.mailboxes[0].post(Mail::Letter(News::Probed(result)));
    }
}

enum Late {
    Request(ConnId),
    Store(ConnId),
}

/// Answers requests.
struct Web {
    /// What there is to report without a node.
    idle: Registry,
    node: Option<Box<View>>,
    /// The server is shutting down.
    stopping: Arc<AtomicBool>,
    /// The node's store is being asked.
    probing: bool,
    /// Connections that are not closed, oldest first.
    open: VecDeque<ConnId>,
    /// Those of them that wait for the store; `true`: for a reply without a body.
    asking: HashMap<ConnId, bool>,
}

/// An answer.
struct Reply<'a> {
    status: &'static str,
    media: &'static str,
    body: &'a str,
}

const TEXT: &str = "text/plain; charset=utf-8";
const OK: &str = "200 OK";

impl<'a> Reply<'a> {
    fn text(status: &'static str, body: &'a str) -> Reply<'a> {
        Reply { status, media: TEXT, body }
    }

    fn send(&self, io: &mut Io<Web>, conn: ConnId, is_head: bool) {
        let mut bytes = String::new();
        let Reply { status, media, body } = self;
        let length = body.len();
        // A String takes whatever is written.
        let _ = write!(
            bytes,
            "HTTP/1.1 {status}\r\nContent-Type: {media}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
             Connection: close\r\nX-Content-Type-Options: nosniff\r\nContent-Security-Policy: default-src 'none'; \
             style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:\r\n\
             Allow: GET, HEAD\r\n\r\n"
        );
        if !is_head {
            bytes.push_str(body);
        }
        io.send(conn, Message::plain(bytes.as_bytes()));
        io.close(conn, ());
    }
}

impl Web {
    fn request(&mut self, io: &mut Io<Self>, conn: ConnId, Request { is_head, path }: Request<'_>) {
        match &*path {
            "/metrics" => {
                let text = self.node.as_ref().map_or(&self.idle, |node| &node.registry).text();
                let media = "text/plain; version=0.0.4; charset=utf-8";
                Reply { status: OK, media, body: &text }.send(io, conn, is_head);
            }
            "/healthz" => Reply::text(OK, "alive\n").send(io, conn, is_head),
            "/readyz" => self.ask_whether_ready(io, conn, is_head),
            "/" => {
                Reply { status: OK, media: "text/html; charset=utf-8", body: PAGE }.send(io, conn, is_head);
            }
            _ => Reply::text("404 Not Found", "try /, /metrics, /healthz or /readyz\n").send(io, conn, is_head),
        }
    }

    /// Replies at once if it can; otherwise the store is asked, by a thread that may wait for it.
    fn ask_whether_ready(&mut self, io: &mut Io<Self>, conn: ConnId, is_head: bool) {
        let node = match self.ready_node() {
            Ok(node) => node,
            Err(reason) => return not_ready(io, conn, is_head, reason),
        };
        let prober = node.prober.submitter();
        self.asking.insert(conn, is_head);
        io.set_timer(io.now() + STORE_TIME, Late::Store(conn));
        if !std::mem::replace(&mut self.probing, true) {
            prober.in_lane(0, ());
        }
    }

    /// The node, or what it lacks, as far as that is known without asking the store.
    fn ready_node(&self) -> Result<&View, &'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("shutting down");
        }
        let Some(node) = &self.node else {
            return Err("other nodes took this one for dead: it begins anew");
        };
        if node.bus.as_ref().is_some_and(|bus| !bus.is_up()) {
            Err("the bus is down: Redis cannot be reached")
        } else if node.validity.as_ref().is_some_and(|validity| !validity.may_act(since_boot())) {
            Err("neither Redis nor the store confirms that other nodes do not take this one for dead")
        } else {
            Ok(node)
        }
    }
}

fn not_ready(io: &mut Io<Web>, conn: ConnId, is_head: bool, reason: &str) {
    Reply::text("503 Service Unavailable", &format!("not ready: {reason}\n")).send(io, conn, is_head);
}

impl Types for Web {
    type Letter = News;
    type Tag = ();
    type Timer = Late;
    type Moved = ();
    type Reason = ();
}

impl Handler for Web {
    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, _peer: SocketAddr, _listener: ListenerId) {
        self.open.push_back(conn);
        io.set_timer(io.now() + REQUEST_TIME, Late::Request(conn));
        // The slowest client makes room; one that is not slow has its reply by then.
        if self.open.len() > MAX_OPEN
            && let Some(oldest) = self.open.pop_front()
        {
            io.close(oldest, ());
        }
    }

    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        let all = Taken::all(input);
        if self.asking.contains_key(&conn) {
            return all; // no second request is read
        }
        match Request::read(input) {
            Ok(Some(request)) => self.request(io, conn, request),
            Ok(None) => return Taken { bytes: 0, more: false },
            Err(Refused { status, text, is_head }) => Reply::text(status, text).send(io, conn, is_head),
        }
        all
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, _rest: usize) {
        // A client that waits for the store still gets its reply; any other has sent no whole request.
        if !self.asking.contains_key(&conn) {
            io.close(conn, ());
        }
    }

    fn letter(&mut self, io: &mut Io<Self>, news: News) {
        let result = match news {
            News::Probed(result) => result,
            News::Node(node) => {
                self.node = node;
                // The former one will not answer any more.
                Err("it is another node".to_owned())
            }
        };
        self.probing = false;
        let obstacle = self.ready_node().err();
        for (conn, is_head) in std::mem::take(&mut self.asking) {
            match (&result, obstacle) {
                (_, Some(reason)) => not_ready(io, conn, is_head, reason),
                (Err(reason), None) => not_ready(io, conn, is_head, reason),
                (Ok(()), None) => Reply::text(OK, "ready\n").send(io, conn, is_head),
            }
        }
    }

    fn closed(&mut self, _io: &mut Io<Self>, conn: ConnId, _reason: CloseReason<()>, _unwritten: Vec<Unwritten<()>>) {
        self.open.retain(|open| *open != conn);
        self.asking.remove(&conn);
    }

    fn timer(&mut self, io: &mut Io<Self>, timer: Late) {
        match timer {
            // If it has asked by now, nothing is left to be closed.
            Late::Request(conn) => io.close(conn, ()),
            Late::Store(conn) => {
                if let Some(is_head) = self.asking.remove(&conn) {
                    not_ready(io, conn, is_head, "the store does not answer");
                }
            }
        }
    }
}
