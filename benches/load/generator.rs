//! One generator thread: many connections on one poll.
//!
//! Every message bears its number and the time when it was sent (or due) in its text, and a stored
//! message bears that time as its `seq`. So the receiving end knows latency, loss and order
//! without asking the sender.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use chat_server::wire::{Split, Splitter};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::bytes::{msgid, number_after};
use crate::users::{MAX_OBJECT, User};

/// How long a thread waits, after its last message, for what is still on its way.
const DRAIN: Duration = Duration::from_secs(2);
/// epoll cannot wait for less.
const TICK: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Users 2n and 2n + 1 talk to each other.
    Pairs,
    /// The first user talks to all others.
    Group { id: u64 },
    /// User n sends to `recipients[n]`, who is not there.
    Store,
    /// Everybody logs out and in again.
    Login,
}

pub struct Plan {
    pub traffic: Traffic,
    pub recipients: Vec<u64>,
    pub window: usize,
    /// Ask for acks.
    pub seq: bool,
    /// What a client sends in one turn leaves in one write; else each message in its own.
    pub batch: bool,
    /// Messages a second from this thread, in time whatever the server does; else a closed loop.
    pub rate: Option<f64>,
}

/// What all threads share with whoever measures.
pub struct Shared {
    pub epoch: Instant,
    /// Latencies count.
    pub measuring: AtomicBool,
    /// Nothing more is sent.
    pub stopping: AtomicBool,
    /// Messages that have arrived, or requests that were answered.
    pub done: AtomicU64,
}

pub struct Outcome {
    /// In nanoseconds.
    pub latency: Histogram<u64>,
    pub lost: u64,
    pub disordered: u64,
    pub errors: u64,
}

struct Client {
    user: User,
    stream: TcpStream,
    splitter: Splitter,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: u64,
    /// The number of the next message that must arrive here.
    awaited: u64,
    /// When each unanswered login was asked for.
    asked: VecDeque<u64>,
}

pub struct Generator<'a> {
    plan: Plan,
    shared: &'a Shared,
    poll: Poll,
    clients: Vec<Client>,
    /// Deliveries and acks that are owed.
    owed: u64,
    received: u64,
    deliveries: u64,
    outcome: Outcome,
    /// Clients with output.
    dirty: Vec<usize>,
    /// Whose turn it is in the open loop.
    turn: usize,
    scheduled: u64,
}

impl<'a> Generator<'a> {
    pub fn new(plan: Plan, users: Vec<User>, shared: &'a Shared) -> anyhow::Result<Generator<'a>> {
        let poll = Poll::new()?;
        let mut clients = Vec::with_capacity(users.len());
        for (n, user) in users.into_iter().enumerate() {
            let socket = user.stream.try_clone()?;
            socket.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(socket);
            poll.registry().register(&mut stream, Token(n), Interest::READABLE | Interest::WRITABLE)?;
            clients.push(Client {
                user,
                stream,
                splitter: Splitter::default(),
                input: Vec::new(),
                output: Vec::new(),
                sent: 0,
                awaited: 0,
                asked: VecDeque::new(),
            });
        }
        let latency = Histogram::new_with_bounds(1, 600_000_000_000, 3)?;
        let outcome = Outcome { latency, lost: 0, disordered: 0, errors: 0 };
        Ok(Generator {
            plan,
            shared,
            poll,
            clients,
            owed: 0,
            received: 0,
            deliveries: 0,
            outcome,
            dirty: Vec::new(),
            turn: 0,
            scheduled: 0,
        })
    }

    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 64 * 1024];
        let started = Instant::now();
        if self.plan.rate.is_none() {
            self.open_windows()?;
        }
        self.flush_all()?;
        let mut quiet_since = Instant::now();
        loop {
            match self.poll.poll(&mut events, Some(if self.plan.rate.is_some() { TICK } else { 20 * TICK })) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => done?,
            }
            for event in &events {
                self.dirty.push(event.token().0);
                if event.is_readable() {
                    self.read(event.token().0, &mut buffer)?;
                    quiet_since = Instant::now();
                }
            }
            let stopping = self.shared.stopping.load(Relaxed);
            if stopping && (self.received >= self.owed || quiet_since.elapsed() > DRAIN) {
                break;
            }
            if let (Some(rate), false) = (self.plan.rate, stopping) {
                self.send_what_is_due(rate, started)?;
            }
            self.flush_all()?;
        }
        self.outcome.lost = self.owed.saturating_sub(self.received);
        Ok(self.outcome)
    }

    fn now(&self) -> u64 {
        self.shared.epoch.elapsed().as_nanos() as u64
    }

    fn open_windows(&mut self) -> anyhow::Result<()> {
        let senders: Vec<usize> = match self.plan.traffic {
            Traffic::Pairs => (0..self.clients.len()).step_by(2).collect(),
            Traffic::Group { .. } => vec![0],
            Traffic::Store | Traffic::Login => (0..self.clients.len()).collect(),
        };
        // Of one connection's logins the second would only be refused.
        let window = if self.plan.traffic == Traffic::Login { 1 } else { self.plan.window };
        for sender in senders {
            for _ in 0..window {
                self.send(sender, self.now())?;
            }
        }
        Ok(())
    }

    /// Messages come due at whole milliseconds, from all users in turn.
    fn send_what_is_due(&mut self, rate: f64, started: Instant) -> anyhow::Result<()> {
        let due = (started.elapsed().as_millis() as f64 * rate / 1000.0) as u64;
        let offset = started.duration_since(self.shared.epoch).as_nanos() as u64;
        while self.scheduled < due {
            self.scheduled += 1;
            let at = (self.scheduled as f64 * 1000.0 / rate).ceil() as u64 * 1_000_000;
            self.send(self.turn, offset + at)?;
            self.turn = (self.turn + 1) % self.clients.len();
        }
        Ok(())
    }

    fn send(&mut self, sender: usize, at: u64) -> anyhow::Result<()> {
        if self.shared.stopping.load(Relaxed) {
            return Ok(());
        }
        let to = match self.plan.traffic {
            Traffic::Pairs => format!("\"toid\":{}", self.clients[sender ^ 1].user.id),
            Traffic::Group { id } => format!("\"groupid\":{id}"),
            Traffic::Store => format!("\"toid\":{}", self.plan.recipients[sender]),
            Traffic::Login => String::new(),
        };
        let others = self.clients.len() as u64 - 1;
        let client = &mut self.clients[sender];
        let (id, name, n) = (client.user.id, &client.user.name, client.sent);
        if client.output.is_empty() {
            self.dirty.push(sender);
        }
        client.sent += 1;
        // Writing to a vector cannot fail.
        let _ = match self.plan.traffic {
            Traffic::Login => {
                self.owed += 1;
                client.asked.push_back(at);
                writeln!(client.output, "{{\"msgid\":3,\"id\":{id}}}\n{}", client.user.login_request())
            }
            traffic => {
                let is_group = matches!(traffic, Traffic::Group { .. });
                self.owed += if is_group { others } else { 1 };
                let msgid = if is_group { 10 } else { 6 };
                let seq = if traffic == Traffic::Store || self.plan.seq {
                    self.owed += u64::from(traffic != Traffic::Store);
                    format!(",\"seq\":{at}")
                } else {
                    String::new()
                };
                writeln!(
                    client.output,
                    "{{\"msgid\":{msgid},\"id\":{id},\"name\":\"{name}\",{to},\
                     \"msg\":\"#{n} @{at} see you at the station\",\"time\":\"2026-01-02 03:04:05\"{seq}}}"
                )
            }
        };
        if self.plan.batch { Ok(()) } else { self.flush(sender) }
    }

    fn read(&mut self, n: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        loop {
            let client = &mut self.clients[n];
            let length = match client.stream.read(buffer) {
                Ok(0) => anyhow::bail!("the server has closed the connection of {}", client.user.name),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let mut input = std::mem::take(&mut client.input);
            input.extend_from_slice(&buffer[..length]);
            let mut at = 0;
            loop {
                match self.clients[n].splitter.next(&input[at..], MAX_OBJECT)? {
                    Split::Object { start, end } => {
                        self.receive(n, &input[at + start..at + end])?;
                        at += end;
                    }
                    Split::Partial { skip } => {
                        at += skip;
                        break;
                    }
                }
            }
            input.drain(..at);
            self.clients[n].input = input;
            // A short read has emptied the socket: what comes later is a new edge.
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    fn receive(&mut self, n: usize, object: &[u8]) -> anyhow::Result<()> {
        let is_refused = number_after(object, b"\"errno\":").is_some_and(|errno| errno != 0);
        self.outcome.errors += u64::from(is_refused);
        self.received += 1;
        match (self.plan.traffic, msgid(object)) {
            (Traffic::Pairs, Some(6)) => {
                self.delivered(n, object);
                if self.plan.rate.is_none() {
                    self.send(n, self.now())?;
                }
            }
            (Traffic::Group { .. }, Some(10)) => {
                let all = self.delivered(n, object);
                if all.is_multiple_of(self.clients.len() as u64 - 1) && self.plan.rate.is_none() {
                    self.send(0, self.now())?;
                }
            }
            (Traffic::Store, Some(200)) => {
                self.record(number_after(object, b"\"seq\":").unwrap_or(0));
                self.send(n, self.now())?;
            }
            (Traffic::Login, Some(2)) => {
                let asked = self.clients[n].asked.pop_front().unwrap_or(0);
                self.record(asked);
                self.send(n, self.now())?;
            }
            (_, Some(200)) if self.plan.seq => {}
            // A refusal, or what nobody asked for: it stands for no message.
            _ => {
                self.received -= 1;
                self.outcome.errors += u64::from(!is_refused);
            }
        }
        Ok(())
    }

    /// Checks the order; returns how many deliveries this thread has seen.
    fn delivered(&mut self, n: usize, object: &[u8]) -> u64 {
        let number = number_after(object, b"\"msg\":\"#").unwrap_or(0);
        let awaited = &mut self.clients[n].awaited;
        // A gap is a loss, which shows in what is owed; what comes after its successor is disorder.
        self.outcome.disordered += u64::from(number < *awaited);
        *awaited = (number + 1).max(*awaited);
        self.record(number_after(object, b" @").unwrap_or(0));
        self.deliveries += 1;
        self.deliveries
    }

    fn record(&mut self, at: u64) {
        if self.shared.measuring.load(Relaxed) {
            let latency = self.now().saturating_sub(at).max(1);
            self.outcome.latency.saturating_record(latency);
        }
        self.shared.done.fetch_add(1, Relaxed);
    }

    fn flush_all(&mut self) -> anyhow::Result<()> {
        std::mem::take(&mut self.dirty).into_iter().try_for_each(|n| self.flush(n))
    }

    /// Writes what the kernel takes; the rest waits for the socket to be writable.
    fn flush(&mut self, n: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[n];
        while !client.output.is_empty() {
            match client.stream.write(&client.output) {
                Ok(length) => drop(client.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
