//! One generator thread: many connections on one poll.
//!
//! Every message bears its number and the time when it was sent (or due) in its text, and a message
//! that is to be acked bears that time as its `seq`. So the receiving end knows latency, loss and
//! order without asking the sender.
//!
//! It competes with the server for the machine, so it does little: one read for what has come, one
//! clock reading for each read, and a byte search in each object.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::bail;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::dialect::{Cutter, Dialect, Piece};
use crate::measures::Measures;
use crate::roles::{Role, Troupe};
use crate::users::Account;

/// How long a thread waits, after its last message, for what is still on its way.
const DRAIN: Duration = Duration::from_secs(5);
/// epoll cannot wait for less.
const TICK: Duration = Duration::from_millis(1);
/// A message that leaves so long after it was due is the generator's fault.
const LATE: u64 = 10_000_000;

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub window: usize,
    /// Ask for acks.
    pub seq: bool,
    /// What a client sends in one turn leaves in one write; else each message in its own.
    pub batch: bool,
}

/// What all threads share with whoever measures.
#[derive(Debug)]
pub struct Shared {
    pub epoch: Instant,
    /// Latencies count.
    pub measuring: AtomicBool,
    /// Nothing more is begun.
    pub stopping: AtomicBool,
    /// Messages that have arrived, or requests that were answered.
    pub done: AtomicU64,
}

impl Shared {
    pub fn new() -> Shared {
        let (measuring, stopping) = (AtomicBool::new(false), AtomicBool::new(false));
        Shared { epoch: Instant::now(), measuring, stopping, done: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub measures: Measures,
    pub lost: u64,
    pub disordered: u64,
    pub errors: u64,
    /// The part of its time in which this thread did not wait for the server.
    pub busy: f64,
    /// The part of an open loop's messages that left late.
    pub late: f64,
}

/// Messages from one sender, as they arrive: a gap is a loss until the missing one comes after all,
/// which is disorder then.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Order {
    pub awaited: u64,
    pub missing: u64,
}

pub(super) struct Client {
    pub account: Account,
    pub role: Role,
    pub dialect: Dialect,
    /// Whom it writes to: the name of its neighbour.
    pub to: String,
    /// What all its messages begin with.
    pub head: Vec<u8>,
    pub sent: u64,
    /// Of chats, and of group messages.
    pub order: [Order; 2],
    /// When its login or registration was asked for.
    pub asked: u64,
    /// Of a speaker: deliveries to its group's members.
    pub heard: u64,
    /// Of a feeder: acks that are due. Of a sleeper: messages that it must still get.
    pub due: u64,
    /// Of a feeder and its sleeper: one has left, and has not had everything yet.
    pub is_away: bool,
    pub output: Vec<u8>,
    stream: TcpStream,
    cutter: Cutter,
    /// The beginning of an object whose end has not come yet.
    rest: Vec<u8>,
}

pub struct Generator<'a> {
    pub(super) plan: Plan,
    /// Messages a second, if this is an open loop.
    pub(super) rate: Option<f64>,
    pub(super) clients: Vec<Client>,
    /// Deliveries, acks and replies that are owed, and that have come.
    pub(super) owed: u64,
    pub(super) received: u64,
    pub(super) outcome: Outcome,
    /// As the threads' shared flags were at the beginning of this turn.
    pub(super) measuring: bool,
    pub(super) stopping: bool,
    /// What this turn has done.
    pub(super) done: u64,
    pub(super) scratch: Vec<u8>,
    shared: &'a Shared,
    poll: Poll,
    /// Clients with output.
    dirty: Vec<usize>,
    /// Who sends in an open loop, and how often that has been.
    senders: Vec<usize>,
    scheduled: u64,
}

impl<'a> Generator<'a> {
    pub fn new(plan: Plan, troupe: Troupe, shared: &'a Shared) -> anyhow::Result<Generator<'a>> {
        let Troupe { users, roles, rate } = troupe;
        let poll = Poll::new()?;
        let accounts: Vec<Account> = users.iter().map(|user| user.account.clone()).collect();
        let mut clients = Vec::with_capacity(users.len());
        for (n, (user, role)) in users.into_iter().zip(roles).enumerate() {
            let (cutter, dialect) = (user.cutter(), user.dialect);
            user.stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(user.stream);
            poll.registry().register(&mut stream, Token(n), Interest::READABLE | Interest::WRITABLE)?;
            let neighbour = accounts.get(n ^ 1).unwrap_or(&accounts[n]);
            clients.push(Client {
                head: head(&accounts[n], role, neighbour.id),
                to: neighbour.name.clone(),
                account: user.account,
                role,
                dialect,
                cutter,
                sent: 0,
                order: Default::default(),
                asked: 0,
                heard: 0,
                due: 0,
                is_away: false,
                output: Vec::new(),
                stream,
                rest: Vec::new(),
            });
        }
        let measures = Measures::new()?;
        let senders = scattered((0..clients.len()).filter(|&n| clients[n].role.acts()).collect());
        Ok(Generator {
            plan,
            rate,
            clients,
            owed: 0,
            received: 0,
            outcome: Outcome { measures, lost: 0, disordered: 0, errors: 0, busy: 0.0, late: 0.0 },
            measuring: false,
            stopping: false,
            done: 0,
            scratch: Vec::new(),
            shared,
            poll,
            dirty: Vec::new(),
            senders,
            scheduled: 0,
        })
    }

    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 64 * 1024];
        let started = self.shared.now();
        if self.rate.is_none() {
            self.open_windows()?;
        }
        self.flush_all()?;
        let tick = if self.rate.is_some() { TICK } else { 20 * TICK };
        let (mut quiet_since, mut waited, mut late) = (Instant::now(), 0, 0);
        loop {
            let before = self.shared.now();
            match self.poll.poll(&mut events, Some(tick)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => done?,
            }
            if !self.stopping {
                let now = self.shared.now();
                waited += now - before;
                self.outcome.busy = 1.0 - waited as f64 / (now - started).max(1) as f64;
            }
            self.measuring = self.shared.measuring.load(Relaxed);
            self.stopping = self.shared.stopping.load(Relaxed);
            for event in &events {
                let n = event.token().0;
                if event.is_writable() {
                    self.flush(n)?;
                }
                if event.is_readable() {
                    self.read(n, &mut buffer)?;
                    quiet_since = Instant::now();
                }
            }
            if self.stopping && (self.received >= self.owed || quiet_since.elapsed() > DRAIN) {
                break;
            }
            if let (Some(rate), false) = (self.rate, self.stopping) {
                late += self.send_what_is_due(rate, started)?;
            }
            self.flush_all()?;
            self.shared.done.fetch_add(std::mem::take(&mut self.done), Relaxed);
        }
        self.outcome.late = late as f64 / self.scheduled.max(1) as f64;
        self.outcome.lost += self.owed.saturating_sub(self.received);
        Ok(self.outcome)
    }

    fn open_windows(&mut self) -> anyhow::Result<()> {
        for n in 0..self.clients.len() {
            // Of a pair the first begins; nobody registers or logs in twice at a time.
            let window = match self.clients[n].role {
                Role::Partner if n % 2 == 1 => 0,
                Role::Feeder | Role::Visitor | Role::Registrar => 1,
                _ => self.plan.window,
            };
            for _ in 0..window {
                self.act(n, self.shared.now())?;
            }
        }
        Ok(())
    }

    /// Messages come due at whole milliseconds, from all senders in turn. Returns how many were late.
    fn send_what_is_due(&mut self, rate: f64, started: u64) -> anyhow::Result<u64> {
        let now = self.shared.now();
        let due = (((now - started) / 1_000_000) as f64 * rate / 1000.0) as u64;
        let mut late = 0;
        while self.scheduled < due && !self.senders.is_empty() {
            let sender = self.senders[self.scheduled as usize % self.senders.len()];
            self.scheduled += 1;
            let at = started + (self.scheduled as f64 * 1000.0 / rate).ceil() as u64 * 1_000_000;
            late += u64::from(now.saturating_sub(at) > LATE);
            self.act(sender, at)?;
        }
        Ok(late)
    }

    fn read(&mut self, n: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        loop {
            let client = &mut self.clients[n];
            let length = match client.stream.read(buffer) {
                Ok(0) => bail!("the server has closed the connection of {}", client.account.name),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let now = self.shared.now();
            if client.rest.is_empty() {
                let used = self.take(n, &buffer[..length], now)?;
                self.clients[n].rest.extend_from_slice(&buffer[used..length]);
            } else {
                let mut input = std::mem::take(&mut client.rest);
                input.extend_from_slice(&buffer[..length]);
                let used = self.take(n, &input, now)?;
                input.drain(..used);
                self.clients[n].rest = input;
            }
            // A short read has emptied the socket: what comes later is a new edge.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Handles what is whole in `input`; returns how many bytes are done with.
    fn take(&mut self, n: usize, input: &[u8], now: u64) -> anyhow::Result<usize> {
        let mut at = 0;
        loop {
            match self.clients[n].cutter.next(&input[at..])? {
                Piece::Whole { start, end } => {
                    self.receive(n, &input[at + start..at + end], now)?;
                    at += end;
                }
                Piece::Partial { skip } => return Ok(at + skip),
            }
        }
    }

    /// To be called when a client has new output.
    pub(super) fn leave(&mut self, n: usize) -> anyhow::Result<()> {
        if self.plan.batch {
            self.dirty.push(n);
            return Ok(());
        }
        self.flush(n)
    }

    fn flush_all(&mut self) -> anyhow::Result<()> {
        for n in 0..self.dirty.len() {
            self.flush(self.dirty[n])?;
        }
        self.dirty.clear();
        Ok(())
    }

    /// Writes what the kernel takes; the rest waits for the socket to be writable.
    fn flush(&mut self, n: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[n];
        while !client.output.is_empty() {
            match client.stream.write(&client.output) {
                Ok(length) if length == client.output.len() => client.output.clear(),
                Ok(length) => drop(client.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn head(from: &Account, role: Role, neighbour: u64) -> Vec<u8> {
    let (msgid, to) = match role {
        Role::Speaker { group, .. } => (10, format!("\"groupid\":{group}")),
        Role::Depositor { to } => (6, format!("\"toid\":{to}")),
        _ => (6, format!("\"toid\":{neighbour}")),
    };
    format!("{{\"msgid\":{msgid},\"id\":{},\"name\":\"{}\",{to},\"msg\":\"#", from.id, from.name).into_bytes()
}

/// In an order in which neighbours stand far apart, so that an open loop's roles mix.
fn scattered(mut senders: Vec<usize>) -> Vec<usize> {
    senders.sort_by_key(|&n| (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    senders
}
