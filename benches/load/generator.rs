//! One generator thread: many connections on one poll.
//!
//! It competes with the server for the machine, so it does little: one read for what has come, one clock reading for
//! each read, and a comparison of bytes for each object. What is sent and what has come is the business of
//! [`Traffic`].

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::bytes::Piece;
use crate::clock::{self, Alarm, CpuClock};
use crate::dialect::Cutter;
use crate::measures::{Measure, Measures};
use crate::roles::{Role, Troupe};
use crate::schedule::Schedule;
use crate::series::Series;
use crate::tally::{Counts, Turnout};
use crate::timeline::Timeline;
use crate::tls::Stream;
use crate::traffic::{Plan, Traffic};
use crate::turns::Turns;

/// How long a thread waits, after the last thing it received, for what is still in flight; …
const QUIET: u64 = 5_000_000_000;
/// … how long if another thread waits for its end; …
const QUIET_IN_A_HURRY: u64 = 1_000_000_000;
/// … and how long while things do come.
const DRAIN: u64 = 30_000_000_000;
/// How often it looks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(20);
/// How often readers that do not always read check whether they may.
const READING: Duration = Duration::from_millis(5);
/// How often lost messages are looked for.
const SWEEP: u64 = 250_000_000;
/// An act this long after it was due, or later, is the generator's fault. Nanoseconds.
pub const LATE: u64 = 10_000_000;
/// Acts before the next look at what has come.
const ACTS: usize = 64;
/// How many bytes of one client may wait for the kernel; with more, the client does not act.
const FULL: usize = 256 * 1024;
const ALARM: Token = Token(usize::MAX);
pub const NOT_YET: u64 = u64::MAX;

/// What all threads share with the one that measures.
#[derive(Debug)]
pub struct Shared {
    /// An act that ends after the first of these times, and was due before the second, is timed.
    pub from: AtomicU64,
    pub to: AtomicU64,
    /// Nothing more is begun.
    pub stopping: AtomicBool,
    /// Another thread waits for the end.
    pub hurry: AtomicBool,
    /// Messages that have arrived, or requests that were answered.
    pub done: AtomicU64,
    /// Threads of a storm in which nobody is to come any more.
    pub calm: AtomicUsize,
    pub series: Series,
}

impl Shared {
    pub fn new() -> Shared {
        Shared {
            from: AtomicU64::new(NOT_YET),
            to: AtomicU64::new(NOT_YET),
            stopping: AtomicBool::new(false),
            hurry: AtomicBool::new(false),
            done: AtomicU64::new(0),
            calm: AtomicUsize::new(0),
            series: Series::default(),
        }
    }
}

#[derive(Debug)]
pub struct Outcome {
    pub measures: Measures,
    pub counts: Counts,
    /// The part of the measured time in which this thread used a core.
    pub busiest: f64,
    /// Acts of an open loop that came due, and how many of them were done late or not at all.
    pub due: u64,
    pub late: u64,
    /// Accounts that it has opened.
    pub opened: u64,
    /// Messages that it has had stored for those who never come.
    pub deposited: u64,
    /// How often each act of a mix was done while it was measured.
    pub acts: BTreeMap<String, f64>,
    pub timelines: [Timeline; 2],
    /// How a storm's users were served.
    pub turnout: Option<Turnout>,
    /// All its connections were closed by the server.
    pub is_alone: bool,
    /// It ended while objects still arrived.
    pub was_cut_off: bool,
}

/// A client's connection.
struct Line {
    stream: Stream<TcpStream>,
    cutter: Cutter,
    /// The beginning of an object whose end has not come yet.
    rest: Vec<u8>,
    output: Vec<u8>,
    is_sturdy: bool,
    is_gone: bool,
    /// There may be something to read. Used for readers that do not always read.
    is_ready: bool,
    /// The bytes that it may read, as of this time.
    allowance: f64,
    allowed_at: u64,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.stream.end(self.is_sturdy, TcpStream::shutdown);
    }
}

pub struct Generator<'a> {
    plan: Plan,
    /// When acts are due, if this is an open loop.
    schedule: Option<Schedule>,
    traffic: Traffic,
    lines: Vec<Line>,
    shared: &'a Shared,
    poll: Poll,
    alarm: Alarm,
    /// Clients with output that leaves at the end of the turn.
    dirty: Vec<usize>,
    /// Clients that do not always read.
    readers: Vec<usize>,
    /// Whose turn it is in an open loop, and how many acts there were.
    turns: Turns,
    scheduled: u64,
    late: u64,
}

impl<'a> Generator<'a> {
    pub fn new(plan: Plan, troupe: Troupe, shared: &'a Shared) -> anyhow::Result<Generator<'a>> {
        let Troupe { users, roles, rate } = troupe;
        let poll = Poll::new()?;
        let (mut lines, mut accounts) = (Vec::with_capacity(users.len()), Vec::with_capacity(users.len()));
        for (n, user) in users.into_iter().enumerate() {
            let (cutter, dialect) = (user.cutter(), user.dialect);
            let (account, stream, rest) = user.into_parts()?;
            stream.socket.set_nonblocking(true)?;
            let mut stream = stream.map(TcpStream::from_std);
            poll.registry().register(&mut stream.socket, Token(n), Interest::READABLE | Interest::WRITABLE)?;
            lines.push(Line {
                stream,
                cutter,
                rest,
                output: Vec::new(),
                is_sturdy: dialect.is_sturdy(),
                is_gone: false,
                is_ready: true,
                allowance: 0.0,
                allowed_at: clock::now(),
            });
            accounts.push((account, dialect));
        }
        let turns = Turns::new(&roles, plan.mix, plan.seed);
        let readers = (0..roles.len()).filter(|&n| matches!(roles[n], Role::Reader | Role::Recipient)).collect();
        let traffic = Traffic::new(plan, rate.is_some(), accounts, &roles)?;
        let alarm = Alarm::new(poll.registry(), ALARM)?;
        Ok(Generator {
            plan,
            schedule: rate.map(|rate| Schedule::new(rate, plan.ramp)),
            traffic,
            lines,
            shared,
            poll,
            alarm,
            dirty: Vec::new(),
            readers,
            turns,
            scheduled: 0,
            late: 0,
        })
    }

    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let mut events = Events::with_capacity(1024);
        let mut buffer = vec![0; 64 * 1024];
        let started = clock::now();
        match &mut self.schedule {
            Some(schedule) => schedule.started = started,
            None => {
                self.traffic.open_windows(started);
                self.leave();
            }
        }
        self.flush_all();
        let mut cpu = Cpu::default();
        let (mut swept, mut heard, mut stopped, mut was_cut_off) = (started, started, NOT_YET, false);
        loop {
            let timeout = self.until_next()?;
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => done?,
            }
            (self.traffic.from, self.traffic.to) = (self.shared.from.load(Relaxed), self.shared.to.load(Relaxed));
            cpu.look(self.traffic.from, self.traffic.to)?;
            for event in &events {
                if event.token() == ALARM {
                    self.alarm.rang();
                    continue;
                }
                let n = event.token().0;
                if event.is_writable() {
                    self.flush(n);
                }
                if event.is_readable() {
                    self.lines[n].is_ready = true;
                    self.read(n, &mut buffer, started)?;
                    heard = clock::now();
                }
            }
            for which in 0..self.readers.len() {
                let n = self.readers[which];
                if self.lines[n].is_ready && self.read(n, &mut buffer, started)? {
                    heard = clock::now();
                }
            }
            let now = clock::now();
            if self.shared.stopping.load(Relaxed) && !self.traffic.stopping {
                self.end_in_time();
                self.traffic.stop(now);
                self.leave();
                (stopped, heard) = (now, now);
            }
            let is_alone = self.lines.iter().all(|line| line.is_gone);
            if self.traffic.stopping {
                let quiet = if self.shared.hurry.load(Relaxed) { QUIET_IN_A_HURRY } else { QUIET };
                was_cut_off = self.traffic.is_owed_anything() && now - stopped > DRAIN.min(6 * quiet);
                if !self.traffic.is_owed_anything() || now - heard > quiet || was_cut_off {
                    break;
                }
            }
            if is_alone {
                break;
            }
            match self.schedule {
                _ if self.traffic.stopping => {}
                Some(schedule) => self.send_what_is_due(schedule, NOT_YET),
                None => self.go_on_after_thought(),
            }
            if now - swept > SWEEP {
                swept = now;
                self.traffic.refill(now);
                self.leave();
            }
            self.flush_all();
            self.traffic.series.tell(&self.shared.series, now.saturating_sub(self.traffic.from));
            self.shared.done.fetch_add(std::mem::take(&mut self.traffic.done), Relaxed);
        }
        self.shared.done.fetch_add(std::mem::take(&mut self.traffic.done), Relaxed);
        self.traffic.series.tell(&self.shared.series, u64::MAX);
        self.traffic.finish();
        let is_alone = self.lines.iter().all(|line| line.is_gone);
        let (late, due) = (self.late + self.traffic.counts.missed, self.scheduled.max(1));
        Ok(Outcome {
            opened: self.traffic.opened(),
            deposited: self.traffic.deposited(),
            acts: self.turns.measured(),
            measures: self.traffic.measures,
            counts: self.traffic.counts,
            timelines: self.traffic.timelines,
            turnout: None,
            busiest: cpu.busy(),
            due,
            late,
            is_alone,
            was_cut_off,
        })
    }

    /// How long to wait for the sockets. The alarm rings when the next act is due.
    fn until_next(&mut self) -> anyhow::Result<Duration> {
        let glance = if self.readers.is_empty() { GLANCE } else { READING };
        let due = match &self.schedule {
            _ if self.traffic.stopping => None,
            Some(schedule) => (!self.turns.is_empty()).then(|| schedule.at(self.scheduled)),
            None => self.traffic.next_thought(),
        };
        let Some(due) = due else { return Ok(glance) };
        if due <= clock::now() {
            return Ok(Duration::ZERO);
        }
        self.alarm.set(due)?;
        Ok(glance)
    }

    /// Sends from all senders in turn, each at its own time; arrivals are read soon, however much is due.
    fn send_what_is_due(&mut self, schedule: Schedule, end: u64) {
        for _ in 0..ACTS {
            let (now, at) = (clock::now(), schedule.at(self.scheduled));
            if at > now || at >= end {
                break;
            }
            let is_measured = at >= self.traffic.from && at < self.traffic.to;
            let Some(sender) = self.turns.next(is_measured) else { break };
            self.traffic.act(sender, at);
            self.has_acted(at, now);
        }
    }

    /// In a closed loop, those act that have thought.
    fn go_on_after_thought(&mut self) {
        for _ in 0..ACTS {
            let now = clock::now();
            let Some(at) = self.traffic.next_thought().filter(|&at| at <= now) else { break };
            self.traffic.act_after_thought();
            self.has_acted(at, now);
        }
    }

    /// An act that was due `at` one time has begun at another.
    fn has_acted(&mut self, at: u64, now: u64) {
        self.scheduled += 1;
        self.late += u64::from(now - at > LATE);
        self.leave();
        self.traffic.time(Measure::Lag, at, clock::now());
    }

    /// Does the last acts that were due; if they are more than a moment's work, counts those that are not done.
    fn end_in_time(&mut self) {
        let Some(schedule) = self.schedule.filter(|_| !self.turns.is_empty()) else { return };
        self.traffic.to = self.shared.to.load(Relaxed);
        let end = self.traffic.to;
        self.send_what_is_due(schedule, end);
        let missed = schedule.due_by(end).saturating_sub(self.scheduled);
        self.traffic.counts.missed += missed;
        self.scheduled += missed;
    }

    /// May this one read now, and how much?
    fn allowance(&mut self, n: usize, started: u64) -> usize {
        if self.readers.is_empty() || self.traffic.stopping {
            return usize::MAX;
        }
        let Plan { pause, pauses_after, read_rate, .. } = self.plan;
        let now = clock::now();
        match self.traffic.clients[n].role {
            Role::Reader => {}
            Role::Recipient => {
                let measured = now.checked_sub(self.traffic.from);
                let is_still = measured.is_some_and(|time| (pauses_after..pauses_after + pause).contains(&time));
                return if is_still { 0 } else { usize::MAX };
            }
            _ => return usize::MAX,
        }
        // The readers do not all stop at the same time.
        let phase = now - started + n as u64 * pause / 7;
        if pause > 0 && (phase / pause).is_multiple_of(2) {
            return 0;
        }
        if read_rate == 0 {
            return usize::MAX;
        }
        let line = &mut self.lines[n];
        line.allowance += (now - line.allowed_at) as f64 / 1e9 * f64::from(read_rate);
        // What it did not use is not saved for more than a moment.
        line.allowance = line.allowance.min(f64::from(read_rate) / 10.0);
        line.allowed_at = now;
        line.allowance as usize
    }

    /// Reads what has come, or as much as may be. Was there anything?
    fn read(&mut self, n: usize, buffer: &mut [u8], started: u64) -> anyhow::Result<bool> {
        let mut any = false;
        while !self.lines[n].is_gone {
            let most = self.allowance(n, started).min(buffer.len());
            if most == 0 {
                return Ok(any);
            }
            let line = &mut self.lines[n];
            let length = match line.stream.read(&mut buffer[..most]) {
                Ok(0) => 0,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    line.is_ready = false;
                    return Ok(any);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            if length == 0 {
                self.hang_up(n);
                return Ok(any);
            }
            any = true;
            line.allowance -= length as f64;
            let now = clock::now();
            if line.rest.is_empty() {
                let used = self.take(n, &buffer[..length], now);
                self.lines[n].rest.extend_from_slice(&buffer[used..length]);
            } else {
                let mut input = std::mem::take(&mut line.rest);
                input.extend_from_slice(&buffer[..length]);
                let used = self.take(n, &input, now);
                input.drain(..used);
                self.lines[n].rest = input;
            }
            // A short read has emptied the socket: what comes later is a new edge.
            if length < most && self.lines[n].stream.is_emptied() {
                self.lines[n].is_ready = false;
                return Ok(any);
            }
        }
        Ok(any)
    }

    /// Handles what is whole in `input`; returns how many bytes are done with.
    fn take(&mut self, n: usize, input: &[u8], now: u64) -> usize {
        let mut at = 0;
        loop {
            match self.lines[n].cutter.next(&input[at..]) {
                Ok(Piece::Whole { start, end }) => {
                    self.traffic.receive(n, &input[at + start..at + end], now);
                    self.leave();
                    at += end;
                }
                Ok(Piece::Partial { skip }) => return at + skip,
                Err(_) => {
                    // No server of this language goes on so. Where the next object begins is unknown.
                    self.traffic.counts.change(&input[at..]);
                    self.hang_up(n);
                    return input.len();
                }
            }
        }
    }

    /// Sends what the traffic has to send: each message in a write of its own, or later, all of a turn in one.
    fn leave(&mut self) {
        let mut start = 0;
        for which in 0..self.traffic.sends.len() {
            let (n, end) = self.traffic.sends[which];
            let bytes = &self.traffic.out[start..end];
            start = end;
            let line = &mut self.lines[n];
            if line.is_gone {
                continue;
            }
            if self.plan.batch {
                if line.output.is_empty() {
                    self.dirty.push(n);
                }
                line.output.extend_from_slice(bytes);
                continue;
            }
            let mut written = 0;
            if line.output.is_empty() {
                match line.stream.write(bytes) {
                    Ok(length) => written = length,
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                    Err(_) => {
                        self.hang_up(n);
                        continue;
                    }
                }
            }
            if written < bytes.len() {
                line.output.extend_from_slice(&bytes[written..]);
                if line.output.len() > FULL {
                    self.traffic.clients[n].is_full = true;
                }
            }
        }
        self.traffic.sends.clear();
        self.traffic.out.clear();
    }

    fn flush_all(&mut self) {
        for which in 0..self.dirty.len() {
            self.flush(self.dirty[which]);
        }
        self.dirty.clear();
    }

    /// Writes what the kernel takes; the rest waits for the socket to be writable.
    fn flush(&mut self, n: usize) {
        let line = &mut self.lines[n];
        let mut has_room = match line.stream.flush() {
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return self.hang_up(n);
            }
            flushed => flushed.is_ok(),
        };
        while has_room && !line.output.is_empty() && !line.is_gone {
            match line.stream.write(&line.output) {
                Ok(length) if length == line.output.len() => line.output.clear(),
                Ok(length) => drop(line.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => has_room = false,
                Err(_) => return self.hang_up(n),
            }
        }
        self.traffic.clients[n].is_full = line.output.len() > FULL;
    }

    /// The server has closed the connection, or it cannot be followed any more.
    fn hang_up(&mut self, n: usize) {
        if !self.lines[n].is_gone {
            self.lines[n].is_gone = true;
            self.lines[n].output.clear();
            self.traffic.closed(n);
        }
    }
}

/// CPU time of this thread while it is measured.
#[derive(Debug, Default)]
pub struct Cpu {
    first: Option<(f64, u64)>,
    last: Option<(f64, u64)>,
}

impl Cpu {
    pub fn look(&mut self, from: u64, to: u64) -> anyhow::Result<()> {
        if from != NOT_YET && self.first.is_none() {
            self.first = Some((CpuClock::THREAD.seconds()?, clock::now()));
        }
        if to != NOT_YET && self.last.is_none() {
            self.last = Some((CpuClock::THREAD.seconds()?, clock::now()));
        }
        Ok(())
    }

    pub fn busy(&self) -> f64 {
        match (self.first, self.last) {
            (Some((first, from)), Some((last, to))) if to > from => (last - first) * 1e9 / (to - from) as f64,
            _ => 0.0,
        }
    }
}
