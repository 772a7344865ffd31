//! A storm: users that are not connected come, connect and log in, each when it is due. Their phases are timed apart.
//!
//! Each thread has a share of them. After a cut or a kill they try again until they are served; else each tries once,
//! unless its account's last session has not ended yet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream as Blocking;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use socket2::SockRef;

use crate::book::{Account, Book};
use crate::bytes::{Piece, errno, msgid, number_after};
use crate::clock::{self, Alarm};
use crate::dialect::Cutter;
use crate::flags::{After, Flags};
use crate::frames;
use crate::generator::{Cpu, LATE, NOT_YET, Outcome, Shared};
use crate::measures::{Measure, Measures};
use crate::schedule::Schedule;
use crate::series::{self, Recorder};
use crate::stats::mix;
use crate::tally::{Counts, Turnout};
use crate::target::{Endpoint, Target};
use crate::tls::Stream;
use crate::users::{self, Arrival, User, new_id};

/// A phase that has lasted for so many nanoseconds has failed.
const PATIENCE: u64 = 30_000_000_000;
/// How long a server may take for the PING that shows whether it answers any.
const ANSWER: Duration = Duration::from_secs(1);
/// The least and the most nanoseconds until a user tries again, where the server does not say when.
const AGAIN: [u64; 2] = [250_000_000, 750_000_000];
/// The same, if its account's last session has not ended yet.
const AGAIN_IN_USE: [u64; 2] = [150_000_000, 250_000_000];
const IN_USE: i64 = 2;
/// How often it is looked for phases that have lasted too long.
const SWEEP: u64 = 250_000_000;
/// Users that begin before the next look at what has come.
const ACTS: usize = 64;
const GLANCE: Duration = Duration::from_millis(20);
const ALARM: Token = Token(usize::MAX);
const PING: &str = "{\"msgid\":202}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is not its time, or not again.
    Waiting,
    Connect,
    Accept,
    Login,
    Served,
    /// It does not try again.
    Failed,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Phase::Connect => Measure::Connect.name(),
            Phase::Accept => Measure::Accept.name(),
            Phase::Login => Measure::Login.name(),
            Phase::Waiting | Phase::Served | Phase::Failed => "",
        }
    }
}

struct Visitor {
    account: Account,
    server: Endpoint,
    /// The `errno` of the server's answer to a PING; `None`: there is none.
    answer: Option<i64>,
    /// When it was to come.
    due: u64,
    has_tried: bool,
    stream: Option<Stream<TcpStream>>,
    phase: Phase,
    /// When the phase began.
    since: u64,
    cutter: Cutter,
    rest: Vec<u8>,
}

/// All users, before the storm.
pub struct Calm {
    accounts: Vec<Account>,
    /// Their connections, which are to be cut.
    streams: Vec<Stream<Blocking>>,
    /// How each server answers a PING.
    answers: Vec<Option<i64>>,
}

/// Sees to it that all users have accounts and, before a cut or a kill, are logged in.
pub fn gather(flags: &Flags, target: &Target, book: &mut Book) -> anyhow::Result<Calm> {
    let count = flags.users();
    let answers = target.servers.iter().map(|&server| answer_to_ping(server)).collect::<anyhow::Result<_>>()?;
    if flags.after.is_none() {
        users::enroll(target, book, count)?;
        let accounts: Vec<Account> = (0..count).filter_map(|_| book.take(|_| true)).collect();
        return Ok(Calm { accounts, streams: Vec::new(), answers });
    }
    let arrival = Arrival { count, logs_in: true, in_turn: false, receive_buffer: &|_| None };
    let (mut accounts, mut streams) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for user in users::arrive(target, book, &arrival)? {
        let (account, stream, _) = user.into_parts()?;
        accounts.push(account);
        streams.push(stream);
    }
    Ok(Calm { accounts, streams, answers })
}

/// Asks as somebody who never logs in.
fn answer_to_ping(server: Endpoint) -> anyhow::Result<Option<i64>> {
    let nobody = Account { id: 0, name: "nobody".to_owned(), password: String::new() };
    let mut user = User::connect(server, nobody, None)?;
    user.send(PING)?;
    Ok(user.next_within(ANSWER)?.map(|answer| errno(&answer)))
}

impl Calm {
    /// Cuts the connections or kills the servers, if that is asked for. The storm's threads, with their users.
    pub fn end<'a>(self, flags: &Flags, target: &mut Target, shared: &'a Shared) -> anyhow::Result<Vec<Storm<'a>>> {
        let Calm { mut accounts, streams, answers } = self;
        let began = match flags.after {
            None => NOT_YET,
            Some(After::Cut) => {
                streams.iter().try_for_each(|stream| SockRef::from(&stream.socket).set_linger(Some(Duration::ZERO)))?;
                clock::now()
            }
            Some(After::Kill) => target.kill_and_start_again()?,
        };
        drop(streams);
        let threads = usize::from(flags.threads);
        let each = accounts.len() / threads;
        let storm = |number: usize| {
            let visitors = accounts.drain(..each).enumerate().map(|(n, account)| {
                let which = (number * each + n) % target.servers.len();
                let (server, answer) = (target.servers[which], answers[which]);
                let cutter = Cutter::of(server.dialect);
                let (stream, phase) = (None, Phase::Waiting);
                Visitor {
                    account,
                    server,
                    answer,
                    due: 0,
                    has_tried: false,
                    stream,
                    phase,
                    since: 0,
                    cutter,
                    rest: Vec::new(),
                }
            });
            let poll = Poll::new()?;
            let alarm = Alarm::new(poll.registry(), ALARM)?;
            let ramp = (flags.ramp() * 1e9) as u64;
            let step = (series::step(flags.seconds()) * 1e9) as u64;
            Ok(Storm {
                visitors: visitors.collect(),
                later: BinaryHeap::new(),
                schedule: flags.rate().map(|rate| Schedule::new(rate / threads as f64, ramp)),
                tries_again: flags.after.is_some(),
                began,
                shared,
                poll,
                alarm,
                left: each,
                counts: Counts::default(),
                measures: Measures::new()?,
                series: Recorder::new(step),
                turnout: Turnout { users: each as u64, ..Turnout::default() },
                late: 0,
            })
        };
        (0..threads).map(storm).collect()
    }
}

/// One thread of it.
pub struct Storm<'a> {
    visitors: Vec<Visitor>,
    /// Those that wait, with their times.
    later: BinaryHeap<Reverse<(u64, usize)>>,
    /// When they are due, if not all at once.
    schedule: Option<Schedule>,
    tries_again: bool,
    /// When it began; [`NOT_YET`]: it begins with the measurement.
    began: u64,
    shared: &'a Shared,
    poll: Poll,
    alarm: Alarm,
    /// How many are still to be served, or to fail.
    left: usize,
    counts: Counts,
    measures: Measures,
    series: Recorder,
    turnout: Turnout,
    /// How many have begun late.
    late: u64,
}

impl Storm<'_> {
    pub fn run(mut self) -> anyhow::Result<Outcome> {
        let mut measured = NOT_YET;
        while measured == NOT_YET && !self.shared.stopping.load(Relaxed) {
            std::thread::sleep(Duration::from_micros(100));
            measured = self.shared.from.load(Relaxed);
        }
        self.began = self.began.min(measured).min(clock::now());
        let began = self.began;
        self.schedule.iter_mut().for_each(|schedule| schedule.started = began);
        for (n, visitor) in self.visitors.iter_mut().enumerate() {
            visitor.due = self.schedule.map_or(began, |schedule| schedule.at(n as u64));
            self.later.push(Reverse((visitor.due, n)));
        }
        let (mut events, mut buffer, mut cpu) = (Events::with_capacity(1024), vec![0; 16 * 1024], Cpu::default());
        let (mut swept, mut is_calm) = (began, false);
        while !self.shared.stopping.load(Relaxed) {
            self.begin_those_due()?;
            let timeout = self.until_next()?;
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                done => done?,
            }
            cpu.look(self.shared.from.load(Relaxed), self.shared.to.load(Relaxed))?;
            for event in &events {
                match event.token() {
                    ALARM => self.alarm.rang(),
                    Token(n) => self.go_on(n, &mut buffer),
                }
            }
            let now = clock::now();
            if now.saturating_sub(swept) > SWEEP {
                swept = now;
                self.give_up_what_takes_too_long(now);
            }
            self.series.tell(&self.shared.series, now.saturating_sub(began));
            if self.left == 0 && !std::mem::replace(&mut is_calm, true) {
                self.shared.calm.fetch_add(1, Relaxed);
            }
        }
        cpu.look(self.shared.from.load(Relaxed), self.shared.to.load(Relaxed))?;
        self.series.tell(&self.shared.series, u64::MAX);
        if !self.shared.hurry.load(Relaxed) {
            self.count_the_unserved();
        }
        Ok(Outcome {
            measures: self.measures,
            counts: self.counts,
            busiest: cpu.busy(),
            due: self.turnout.users,
            late: self.late,
            opened: 0,
            deposited: 0,
            acts: BTreeMap::new(),
            timelines: Default::default(),
            turnout: Some(self.turnout),
            is_alone: false,
            was_cut_off: false,
        })
    }

    fn until_next(&mut self) -> anyhow::Result<Duration> {
        let Some(&Reverse((at, _))) = self.later.peek() else { return Ok(GLANCE) };
        if at <= clock::now() {
            return Ok(Duration::ZERO);
        }
        self.alarm.set(at)?;
        Ok(GLANCE)
    }

    fn begin_those_due(&mut self) -> anyhow::Result<()> {
        for _ in 0..ACTS {
            let now = clock::now();
            let Some(&Reverse((at, n))) = self.later.peek().filter(|Reverse((at, _))| *at <= now) else { break };
            self.later.pop();
            let is_first = !std::mem::replace(&mut self.visitors[n].has_tried, true);
            self.begin(n)?;
            if is_first {
                self.time(Measure::Lag, at, clock::now());
                // Nobody can begin with all of them in one moment.
                self.late += u64::from(self.schedule.is_some() && now - at > LATE);
            }
        }
        Ok(())
    }

    /// Connects, or asks once more on the connection that there is.
    fn begin(&mut self, n: usize) -> anyhow::Result<()> {
        if self.visitors[n].stream.is_some() {
            self.log_in(n);
            return Ok(());
        }
        let visitor = &mut self.visitors[n];
        (visitor.since, visitor.phase) = (clock::now(), Phase::Connect);
        visitor.cutter = Cutter::of(visitor.server.dialect);
        let mut stream = users::dial(visitor.server)?;
        self.poll.registry().register(&mut stream.socket, Token(n), Interest::READABLE | Interest::WRITABLE)?;
        visitor.stream = Some(stream);
        Ok(())
    }

    fn log_in(&mut self, n: usize) {
        let request = self.visitors[n].account.login_request();
        (self.visitors[n].since, self.visitors[n].phase) = (clock::now(), Phase::Login);
        self.send(n, &request);
    }

    /// Sends one object.
    fn send(&mut self, n: usize, object: &str) {
        let (dialect, mut bytes) = (self.visitors[n].server.dialect, Vec::with_capacity(object.len() + 16));
        dialect.begin(&mut bytes, "", object.len());
        bytes.extend_from_slice(object.as_bytes());
        dialect.end(&mut bytes);
        self.write(n, &bytes);
    }

    fn write(&mut self, n: usize, bytes: &[u8]) {
        let Some(stream) = &mut self.visitors[n].stream else { return };
        // What is so short is written whole, unless the connection is gone.
        if let Err(error) = stream.write(bytes) {
            self.lost(n, &error);
        }
    }

    /// Something has happened to the connection of client `n`.
    fn go_on(&mut self, n: usize, buffer: &mut [u8]) {
        let visitor = &mut self.visitors[n];
        let Some(stream) = &mut visitor.stream else { return };
        if visitor.phase == Phase::Connect {
            match stream.socket.take_error() {
                Ok(None) if stream.socket.peer_addr().is_ok() => self.connected(n),
                Ok(None) => return,
                Ok(Some(error)) | Err(error) => return self.lost(n, &error),
            }
        }
        while let Some(stream) = &mut self.visitors[n].stream {
            match stream.read(buffer) {
                Ok(0) => return self.broken(n, "closed"),
                Ok(length) => self.take(n, &buffer[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.lost(n, &error),
            }
        }
    }

    fn connected(&mut self, n: usize) {
        let (now, server) = (clock::now(), self.visitors[n].server);
        self.time(Measure::Connect, self.visitors[n].since, now);
        (self.visitors[n].since, self.visitors[n].phase) = (now, Phase::Accept);
        if server.dialect.has_frames() {
            self.write(n, frames::request(server.address).as_bytes());
        } else if self.visitors[n].answer.is_some() {
            self.send(n, PING);
        } else {
            self.log_in(n);
        }
    }

    fn accepted(&mut self, n: usize) {
        self.time(Measure::Accept, self.visitors[n].since, clock::now());
        self.log_in(n);
    }

    /// Handles what is whole of what client `n` has got.
    fn take(&mut self, n: usize, input: &[u8]) {
        self.visitors[n].rest.extend_from_slice(input);
        let mut rest = std::mem::take(&mut self.visitors[n].rest);
        if self.visitors[n].phase == Phase::Accept && self.visitors[n].server.dialect.has_frames() {
            match frames::answer(&rest) {
                Ok(None) => {
                    self.visitors[n].rest = rest;
                    return;
                }
                Ok(Some(end)) => {
                    rest.drain(..end);
                    self.accepted(n);
                }
                Err(_) => return self.failed(n, "no WebSocket", &rest),
            }
        }
        let mut at = 0;
        while self.visitors[n].stream.is_some() {
            match self.visitors[n].cutter.next(&rest[at..]) {
                Ok(Piece::Whole { start, end }) => {
                    self.receive(n, &rest[at + start..at + end]);
                    at += end;
                }
                Ok(Piece::Partial { skip }) => {
                    rest.drain(..at + skip);
                    self.visitors[n].rest = rest;
                    return;
                }
                Err(_) => return self.failed(n, "no object", &rest[at..]),
            }
        }
    }

    fn receive(&mut self, n: usize, object: &[u8]) {
        let (number, errno) = (msgid(object), errno(object));
        match (self.visitors[n].phase, number) {
            (_, Some(202)) => self.send(n, "{\"msgid\":203}"),
            (Phase::Accept, _) if Some(errno) == self.visitors[n].answer => self.accepted(n),
            // A reply without a msgid is one, too.
            (Phase::Login, None | Some(2)) if errno == 0 && new_id(object).is_some() => self.served(n),
            (Phase::Login, None | Some(2)) => self.refused(n, errno, object),
            (Phase::Accept | Phase::Login, Some(201 | 203)) => {
                self.visitors[n].stream = None;
                self.refused(n, errno, object);
            }
            // What others write to it meanwhile.
            _ => {}
        }
    }

    fn served(&mut self, n: usize) {
        let (now, visitor) = (clock::now(), &mut self.visitors[n]);
        visitor.phase = Phase::Served;
        let (due, since) = (visitor.due, visitor.since);
        self.time(Measure::Login, since, now);
        self.time(Measure::Served, due, now);
        self.turnout.served += 1;
        self.turnout.last = now.saturating_sub(self.began) as f64 / 1e9;
        self.left -= 1;
        self.shared.done.fetch_add(1, Relaxed);
    }

    /// The server has refused it.
    fn refused(&mut self, n: usize, errno: i64, said: &[u8]) {
        let wait = number_after(said, b"\"retry_after\":").map(|seconds| [seconds.saturating_mul(1_000_000_000); 2]);
        let wait = if errno == IN_USE { AGAIN_IN_USE } else { wait.unwrap_or(AGAIN) };
        self.end_attempt(n, &errno.to_string(), said, wait, errno == IN_USE);
    }

    /// The connection has come to nothing.
    fn lost(&mut self, n: usize, error: &std::io::Error) {
        let why = error.raw_os_error().map_or(format!("{:?}", error.kind()), |it| format!("{:?}", Errno::from_raw(it)));
        self.broken(n, &why);
    }

    fn broken(&mut self, n: usize, why: &str) {
        match self.visitors[n].phase {
            Phase::Served => {
                self.visitors[n].stream = None;
                self.counts.closed += 1;
            }
            // It waits with a connection that has been refused a login, and gets another one.
            Phase::Waiting | Phase::Failed => self.visitors[n].stream = None,
            phase => self.failed(n, &format!("{} {why}", phase.name()), b""),
        }
    }

    fn failed(&mut self, n: usize, why: &str, said: &[u8]) {
        self.visitors[n].stream = None;
        self.end_attempt(n, why, said, AGAIN, false);
    }

    /// An attempt has failed: another one follows in a while, or none.
    fn end_attempt(&mut self, n: usize, why: &str, said: &[u8], wait: [u64; 2], always_again: bool) {
        let visitor = &mut self.visitors[n];
        visitor.rest.clear();
        if self.tries_again || always_again {
            let ([least, most], now) = (wait, clock::now());
            visitor.phase = Phase::Waiting;
            self.later.push(Reverse((now + least + mix(now ^ n as u64) % (most - least + 1), n)));
            self.turnout.try_again(why, 1, said);
        } else {
            (visitor.phase, visitor.stream) = (Phase::Failed, None);
            self.counts.refuse(why, 1, said);
            self.left -= 1;
        }
    }

    fn give_up_what_takes_too_long(&mut self, now: u64) {
        for n in 0..self.visitors.len() {
            let visitor = &self.visitors[n];
            let is_on = matches!(visitor.phase, Phase::Connect | Phase::Accept | Phase::Login);
            if is_on && now.saturating_sub(visitor.since) > PATIENCE {
                self.broken(n, "timeout");
            }
        }
    }

    /// The time is over.
    fn count_the_unserved(&mut self) {
        for visitor in &self.visitors {
            match visitor.phase {
                Phase::Waiting if !visitor.has_tried => self.counts.missed += 1,
                Phase::Waiting => self.counts.refuse("not served", 1, b""),
                Phase::Connect | Phase::Accept | Phase::Login => {
                    self.counts.refuse(&format!("{} timeout", visitor.phase.name()), 1, b"");
                }
                Phase::Served | Phase::Failed => {}
            }
        }
    }

    fn time(&mut self, measure: Measure, since: u64, now: u64) {
        let time = now.saturating_sub(since);
        self.measures.record(measure, time);
        self.series.record(measure, now.saturating_sub(self.began), time);
    }
}
