//! What clients send, and what becomes of what they get. Nothing here touches a socket: objects come in, objects to be
//! sent come out, and every message and ack is accounted for.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use memchr::{memchr, memmem, memrchr};
use serde_json::Value;

use crate::acts::Mix;
use crate::book::Account;
use crate::bytes::{errno, msgid, number_after};
use crate::dialect::Dialect;
use crate::flags::Sizes;
use crate::measures::{Measure, Measures};
use crate::message::{Check, Mark, Sender, Shape};
use crate::roles::Role;
use crate::series::Recorder;
use crate::stats::Rng;
use crate::tally::{Ack, Acks, Arrival, Counts, Order, sample};
use crate::timeline::{Step, Timeline};
use crate::users::{new_id, register_request};

/// A closed loop that has heard nothing of a message for these nanoseconds has lost it, if others go on, …
const LOST: u64 = 1_000_000_000;
/// … and for these if everything stands still.
const LOST_IN_SILENCE: u64 = 3_000_000_000;
/// Others have gone on if they did so lately.
const LATELY: u64 = 500_000_000;

#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub window: usize,
    /// What the users of a mix do.
    pub mix: Option<Mix>,
    /// Ask for acks.
    pub seq: bool,
    /// What a client sends in one turn leaves in one write; else each message in its own.
    pub batch: bool,
    /// The sizes of messages.
    pub size: Sizes,
    /// How long a user of a closed loop thinks, at least and at most, in nanoseconds.
    pub think: [u64; 2],
    /// How long the load grows, in nanoseconds.
    pub ramp: u64,
    /// The salt of this round: messages of another round do not match.
    pub salt: u64,
    pub seed: u64,
    /// A connection has one message in flight at most; what comes due meanwhile waits.
    pub one_at_a_time: bool,
    /// How long a reader does not read, and then reads, in nanoseconds; 0: always. A recipient does so once.
    pub pause: u64,
    /// When it does so, in nanoseconds after the start of the measurement.
    pub pauses_after: u64,
    /// What a reader reads at most, in bytes a second; 0: all.
    pub read_rate: u32,
    /// The length of a step in which times are gathered, in nanoseconds.
    pub step: u64,
}

/// Acts of a closed loop that have not had their answer.
#[derive(Debug, Default)]
struct Flight {
    out: u64,
    /// Given up, and done anew: if one of them is answered after all, nothing follows.
    excused: u64,
    /// When the last one began or was answered.
    progress: u64,
}

/// A group message in flight.
#[derive(Debug)]
struct Talk {
    number: u64,
    at: u64,
    /// The number of members that have not got it.
    left: u64,
    /// A member will not get it, or it has been given up: nothing is timed.
    spoiled: bool,
    /// Its place in the window has been filled again.
    excused: bool,
}

pub struct Client {
    account: Account,
    pub role: Role,
    dialect: Dialect,
    /// The recipient of what it writes: the name of its neighbour.
    to: String,
    shape: Shape,
    /// The number of its next message.
    sent: u64,
    acks: Acks,
    /// Messages that were refused: by number, and how many deliveries besides.
    refused: Vec<u64>,
    refused_unknown: u64,
    /// The order of what it receives; for a sender, of what the recipient has received from it.
    order: Order,
    /// Messages that came too changed to be recognized: in all, and not yet seen as a gap.
    unplaced: u64,
    unplaced_open: u64,
    unplaced_acks: u64,
    flight: Flight,
    talks: VecDeque<Talk>,
    /// When its login or registration was due, if that has not been answered.
    asked: Option<u64>,
    /// The same of the last login, until all that was stored is there.
    returning: u64,
    /// For a feeder, the acks that are due; for a sleeper, the messages that it must still get.
    due: u64,
    /// A sleeper has left. A feeder's sleeper has not had everything.
    is_away: bool,
    /// A sleeper: it has asked to leave, as of this time, and is not known to be gone.
    leaving: Option<u64>,
    /// An open loop's feeder: its sleeper comes back next.
    comes_back: bool,
    registered: u64,
    /// How many of its messages are in flight, and the due times of acts that wait: for a message where one at a time may be
    /// in flight, or for the reply to its last login or registration.
    in_air: u64,
    waiting: VecDeque<u64>,
    /// The server has closed its connection.
    pub is_gone: bool,
    /// The kernel takes no more from it.
    pub is_full: bool,
}

pub struct Traffic {
    plan: Plan,
    is_open: bool,
    pub clients: Vec<Client>,
    /// What is to be sent, one object after the other; and for each its sender and its end.
    pub out: Vec<u8>,
    pub sends: Vec<(usize, usize)>,
    pub counts: Counts,
    pub measures: Measures,
    pub series: Recorder,
    /// How the recipient is served by senders of its own node and of others.
    pub timelines: [Timeline; 2],
    /// Who acts later in a closed loop, and when.
    later: BinaryHeap<Reverse<(u64, usize)>>,
    rng: Rng,
    /// Senders by their ids.
    senders: HashMap<u64, usize>,
    /// An act that ends after the first of these times, and was due before the second, is timed.
    pub from: u64,
    pub to: u64,
    /// Nothing more is begun.
    pub stopping: bool,
    /// What has been done since the last look: messages that arrived, requests that were answered.
    pub done: u64,
    /// Deliveries, acks and replies that are owed, and that have come or cannot come any more.
    owed: u64,
    settled: u64,
    /// When anything was last received.
    heard: u64,
    scratch: Vec<u8>,
}

impl Traffic {
    pub fn new(plan: Plan, is_open: bool, users: Vec<(Account, Dialect)>, roles: &[Role]) -> anyhow::Result<Traffic> {
        let shape = |n: usize, role: Role| {
            let ((account, dialect), neighbour) = (&users[n], users.get(n ^ 1).map_or(0, |(user, _)| user.id));
            let it = dialect.capabilities();
            let toid = if it.is_none_or(|it| it.toid) { "toid" } else { "to" };
            let (key, to) = match role {
                Role::Speaker { group, .. } => ("groupid", group),
                Role::Depositor { to } => (toid, to),
                Role::Sender { .. } => (toid, users[0].0.id),
                _ => (toid, neighbour),
            };
            let sender = Sender { id: account.id, name: &account.name, key, to };
            Shape::new(&sender, it.is_some_and(|it| it.sorted), plan.size, plan.salt)
        };
        let clients = users.iter().zip(roles).enumerate().map(|(n, ((account, dialect), &role))| Client {
            account: account.clone(),
            role,
            dialect: *dialect,
            to: users.get(n ^ 1).map_or(String::new(), |(user, _)| user.name.clone()),
            shape: shape(n, role),
            sent: 0,
            acks: Acks::default(),
            refused: Vec::new(),
            refused_unknown: 0,
            order: Order::default(),
            unplaced: 0,
            unplaced_open: 0,
            unplaced_acks: 0,
            flight: Flight::default(),
            talks: VecDeque::new(),
            asked: None,
            returning: 0,
            due: 0,
            is_away: false,
            leaving: None,
            comes_back: false,
            registered: 0,
            in_air: 0,
            waiting: VecDeque::new(),
            is_gone: false,
            is_full: false,
        });
        let senders = users.iter().zip(roles).enumerate().filter(|(_, (_, role))| matches!(role, Role::Sender { .. }));
        Ok(Traffic {
            plan,
            timelines: Default::default(),
            later: BinaryHeap::new(),
            rng: Rng(plan.salt),
            senders: senders.map(|(n, ((account, _), _))| (account.id, n)).collect(),
            is_open,
            clients: clients.collect(),
            out: Vec::new(),
            sends: Vec::new(),
            counts: Counts::default(),
            measures: Measures::new()?,
            series: Recorder::new(plan.step),
            from: u64::MAX,
            to: u64::MAX,
            stopping: false,
            done: 0,
            owed: 0,
            settled: 0,
            heard: 0,
            scratch: Vec::new(),
        })
    }

    /// Something is still in flight, as far as is known.
    pub fn is_owed_anything(&self) -> bool {
        self.settled < self.owed
    }

    // -- sending --------------------------------------------------------------------------------

    /// What a closed loop begins with: its window.
    pub fn open_windows(&mut self, now: u64) {
        for n in 0..self.clients.len() {
            // The first of a pair begins; no client registers or logs in twice at a time.
            let window = match self.clients[n].role {
                Role::Partner if n % 2 == 1 => 0,
                Role::Feeder | Role::Visitor | Role::Registrar => 1,
                _ => self.plan.window,
            };
            for _ in 0..window {
                if self.plan.think == [0; 2] && self.plan.ramp == 0 {
                    self.act(n, now);
                } else {
                    // They begin one after the other while the load grows.
                    let begin = self.plan.ramp as f64 * n as f64 / self.clients.len() as f64;
                    self.think(n, now + begin as u64);
                }
            }
        }
    }

    /// Client `n` thinks from this time on, and then acts.
    fn think(&mut self, n: usize, now: u64) {
        let [low, high] = self.plan.think;
        let at = now + low + self.rng.next() % (high - low + 1);
        self.later.push(Reverse((at, n)));
    }

    /// When the next client acts that has thought.
    pub fn next_thought(&self) -> Option<u64> {
        self.later.peek().map(|Reverse((at, _))| *at)
    }

    /// It acts, unless what it has thought about has been done meanwhile.
    pub fn act_after_thought(&mut self) {
        let Some(Reverse((at, n))) = self.later.pop() else { return };
        let holder = if self.clients[n].role == Role::Partner { n & !1 } else { n };
        if self.clients[holder].flight.out < self.window_of(holder) {
            self.act(n, at);
        }
    }

    /// One more time, client `n` does what its role is, as of this time.
    pub fn act(&mut self, n: usize, at: u64) {
        let client = &mut self.clients[n];
        if self.stopping || !client.role.acts() {
            return;
        }
        if client.is_gone || client.is_full {
            self.counts.missed += u64::from(self.is_open);
            return;
        }
        let seq = self.plan.seq;
        match client.role {
            Role::Partner if self.plan.one_at_a_time && client.in_air > 0 => client.waiting.push_back(at),
            Role::Partner => {
                self.launch(n & !1, at);
                self.send(n, at, seq);
            }
            Role::Speaker { first, end, .. } => {
                let (number, left) = (client.sent, (end - first) as u64);
                client.talks.push_back(Talk { number, at, left, spoiled: false, excused: false });
                self.launch(n, at);
                self.send(n, at, seq);
            }
            Role::Depositor { .. } | Role::Writer | Role::Sender { .. } => {
                self.launch(n, at);
                self.send(n, at, true);
                self.note(n, at, |step| step.sent += 1);
            }
            Role::Feeder => self.feed(n, at),
            Role::Visitor | Role::Registrar if client.asked.is_some() => client.waiting.push_back(at),
            Role::Visitor => {
                self.launch(n, at);
                self.log_out(n);
                self.log_in(n, at);
            }
            Role::Registrar => {
                client.registered += 1;
                client.asked = Some(at);
                let request = register_request(&format!("{}-{}", client.account.name, client.registered));
                self.owed += 1;
                self.launch(n, at);
                self.request(n, &request);
            }
            Role::Listener { .. } | Role::Sleeper | Role::Reader | Role::Recipient | Role::Idle => {}
        }
    }

    /// Writes into the timeline of sender `n`.
    fn note(&mut self, n: usize, time: u64, note: impl FnOnce(&mut Step)) {
        if let Role::Sender { is_elsewhere } = self.clients[n].role
            && let Some(time) = time.checked_sub(self.from)
        {
            note(self.timelines[usize::from(is_elsewhere)].at(time));
        }
    }

    fn launch(&mut self, n: usize, at: u64) {
        let flight = &mut self.clients[n].flight;
        flight.out += 1;
        flight.progress = flight.progress.max(at);
    }

    /// The number of recipients of a message of client `n`.
    fn recipients(&self, n: usize) -> u64 {
        match self.clients[n].role {
            Role::Speaker { first, end, .. } => (end - first) as u64,
            Role::Depositor { .. } | Role::Sleeper => 0,
            _ => 1,
        }
    }

    fn send(&mut self, n: usize, at: u64, seq: bool) {
        self.owed += self.recipients(n) + u64::from(seq);
        let client = &mut self.clients[n];
        let mark = Mark { number: client.sent, at };
        let seq = seq.then_some(mark.number);
        if seq.is_some() {
            client.acks.owe(mark.number, at);
        }
        client.sent += 1;
        client.in_air += 1;
        if client.dialect.is_bare() {
            client.shape.write(&mut self.out, mark, seq);
        } else {
            self.scratch.clear();
            client.shape.write(&mut self.scratch, mark, seq);
            client.dialect.begin(&mut self.out, &client.to, self.scratch.len());
            self.out.extend_from_slice(&self.scratch);
        }
        client.dialect.end(&mut self.out);
        self.sends.push((n, self.out.len()));
    }

    fn request(&mut self, n: usize, request: &str) {
        let client = &self.clients[n];
        client.dialect.begin(&mut self.out, &client.to, request.len());
        self.out.extend_from_slice(request.as_bytes());
        client.dialect.end(&mut self.out);
        self.sends.push((n, self.out.len()));
    }

    fn log_out(&mut self, n: usize) {
        let request = format!("{{\"msgid\":3,\"id\":{}}}", self.clients[n].account.id);
        self.request(n, &request);
    }

    /// The same, with an ack when all others see that the client is gone.
    fn leave(&mut self, n: usize, at: u64) {
        self.owed += 1;
        let client = &mut self.clients[n];
        client.acks.owe(client.sent, at);
        let request = format!("{{\"msgid\":3,\"id\":{},\"seq\":{}}}", client.account.id, client.sent);
        client.sent += 1;
        client.leaving = Some(at);
        self.request(n, &request);
    }

    fn log_in(&mut self, n: usize, at: u64) {
        self.owed += 1;
        let client = &mut self.clients[n];
        client.asked = Some(at);
        client.returning = at;
        let request = client.account.login_request();
        self.request(n, &request);
    }

    /// Feeder `n` has its neighbour leave, to write to it then. In a closed loop that one comes back when all is acked,
    /// in an open one when the feeder's turn comes again.
    fn feed(&mut self, n: usize, at: u64) {
        let sleeper = n ^ 1;
        let is_still_here = self.clients[sleeper].leaving.is_some();
        if self.clients[n].comes_back && !is_still_here {
            self.clients[n].comes_back = false;
            return self.log_in(sleeper, at);
        }
        if self.clients[n].is_away || self.clients[sleeper].is_gone {
            self.counts.missed += u64::from(self.is_open);
            return;
        }
        for client in [n, sleeper] {
            self.clients[client].due = self.plan.window as u64;
            self.clients[client].is_away = true;
        }
        self.clients[n].comes_back = self.is_open;
        self.launch(n, at);
        self.leave(sleeper, at);
    }

    /// Sleeper `n` is gone: its feeder writes.
    fn has_left(&mut self, n: usize, now: u64) {
        if let Some(at) = self.clients[n].leaving.take() {
            let at = if self.is_open { at } else { now };
            (0..self.plan.window).for_each(|_| self.send(n ^ 1, at, true));
        }
    }

    /// Nothing more is begun; clients that are away come back for what was written.
    pub fn stop(&mut self, now: u64) {
        self.stopping = true;
        for n in 0..self.clients.len() {
            if std::mem::take(&mut self.clients[n].comes_back) && !self.clients[n ^ 1].is_gone {
                self.log_in(n ^ 1, now);
            }
        }
    }

    // -- closed loops ---------------------------------------------------------------------------

    /// An act of client `n`'s loop has been answered, or was refused: the next one is for client `next`.
    fn answered(&mut self, n: usize, next: usize, now: u64) {
        let window = self.window_of(n);
        let flight = &mut self.clients[n].flight;
        flight.progress = now;
        flight.out = flight.out.saturating_sub(1);
        if self.is_open || self.clients[n].flight.out >= window {
            return;
        }
        if self.plan.think == [0; 2] { self.act(next, now) } else { self.think(next, now) }
    }

    fn window_of(&self, n: usize) -> u64 {
        match self.clients[n].role {
            Role::Feeder | Role::Visitor | Role::Registrar => 1,
            _ => self.plan.window as u64,
        }
    }

    /// Whatever has been waited for in vain is begun anew, so that a loss does not thin out the load.
    pub fn refill(&mut self, now: u64) {
        // It is unknown whether a server that stands still would survive a second message.
        if self.is_open || self.stopping || self.plan.one_at_a_time {
            return;
        }
        let patience = if now.saturating_sub(self.heard) < LATELY { LOST } else { LOST_IN_SILENCE };
        for n in 0..self.clients.len() {
            let flight = &self.clients[n].flight;
            if flight.out > 0 && now.saturating_sub(flight.progress) > patience {
                self.give_up(n, now);
            }
        }
    }

    fn give_up(&mut self, n: usize, now: u64) {
        let window = self.plan.window;
        let is_leaving = self.clients.get(n ^ 1).is_some_and(|neighbour| neighbour.leaving.is_some());
        let client = &mut self.clients[n];
        let given_up = std::mem::take(&mut client.flight.out);
        client.flight.progress = now;
        match client.role {
            Role::Partner | Role::Depositor { .. } => {
                client.flight.excused += given_up;
                (0..window).for_each(|_| self.act(n, now));
            }
            Role::Speaker { .. } => {
                client.talks.iter_mut().for_each(|talk| (talk.excused, talk.spoiled) = (true, true));
                (0..window).for_each(|_| self.act(n, now));
            }
            Role::Visitor | Role::Registrar => {
                self.reply_lost(n);
                self.act(n, now);
            }
            Role::Feeder if is_leaving => {
                client.flight.out = 1;
                self.has_left(n ^ 1, now);
            }
            Role::Feeder if client.due > 0 => {
                // Its acks are lost: what they were for may be there.
                client.due = 0;
                client.flight.out = 1;
                self.log_in(n ^ 1, now);
            }
            Role::Feeder => {
                self.clients[n].is_away = false;
                self.clients[n ^ 1].due = 0;
                self.clients[n ^ 1].is_away = false;
                self.reply_lost(n ^ 1);
                self.act(n, now);
            }
            _ => {}
        }
    }

    fn reply_lost(&mut self, n: usize) {
        if self.clients[n].asked.take().is_some() {
            self.counts.acks_lost += 1;
            self.settled += 1;
        }
    }

    // -- receiving ------------------------------------------------------------------------------

    /// Client `n` has got an object or a line.
    pub fn receive(&mut self, n: usize, piece: &[u8], now: u64) {
        self.heard = now;
        let dialect = self.clients[n].dialect;
        let Dialect::Chat(_) = dialect else { return self.receive_line(n, piece, now) };
        let end = piece.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0 | b' ')).map_or(0, |at| at + 1);
        let object = &piece[..end];
        if object.is_empty() {
            return; // what stood behind the last one
        }
        match msgid(object) {
            Some(6 | 10) => self.message(n, object, now),
            Some(200) => self.ack(n, object, now),
            Some(201) => self.refusal(n, object, now),
            Some(202) => self.request(n, "{\"msgid\":203}"),
            Some(203) => {}
            Some(5) if self.clients[n].role == Role::Registrar => self.registered(n, object, now),
            Some(2) if matches!(self.clients[n].role, Role::Visitor | Role::Sleeper) => {
                self.logged_in(n, object, now);
            }
            _ => self.unknown(n, object, now),
        }
    }

    fn receive_line(&mut self, n: usize, line: &[u8], now: u64) {
        if let (Some(start), Some(end)) = (memchr(b'{', line), memrchr(b'}', line))
            && line[start..].starts_with(b"{\"msgid\":")
        {
            return self.message(n, &line[start..=end], now);
        }
        if line.starts_with(b"ERROR") || line.starts_with(b"-ERR") {
            self.counts.refuse("ERR", 1, line);
        }
        if let Some(answer) = self.clients[n].dialect.answer(line) {
            self.out.extend_from_slice(&answer);
            self.sends.push((n, self.out.len()));
        }
    }

    /// The only sender whose messages client `n` gets, if there is just one.
    fn speaker(&self, n: usize) -> Option<usize> {
        match self.clients[n].role {
            Role::Partner | Role::Sleeper | Role::Reader => Some(n ^ 1),
            Role::Listener { speaker } => Some(speaker),
            _ => None,
        }
    }

    fn asks_for_acks(&self, n: usize) -> bool {
        self.plan.seq
            || matches!(
                self.clients[n].role,
                Role::Depositor { .. } | Role::Feeder | Role::Writer | Role::Sender { .. }
            )
    }

    fn message(&mut self, n: usize, object: &[u8], now: u64) {
        let is_recipient = self.clients[n].role == Role::Recipient;
        let speaker = if is_recipient {
            number_after(object, b"\"id\":").and_then(|id| self.senders.get(&id).copied())
        } else {
            self.speaker(n)
        };
        let Some(speaker) = speaker else { return self.counts.change(object) };
        let with_seq = self.asks_for_acks(speaker);
        let check = self.clients[speaker].shape.check(object, with_seq, &mut self.scratch);
        let (mark, is_whole) = match check {
            Check::Whole(mark) => (mark, true),
            Check::Changed(mark) => {
                self.counts.change(object);
                (mark, false)
            }
            Check::Unknown => return self.unknown(n, object, now),
        };
        let arrival = self.clients[if is_recipient { speaker } else { n }].order.arrive(mark.number);
        match arrival {
            Arrival::Repeated => {
                self.counts.repeated += 1;
                return;
            }
            Arrival::Late => self.counts.out_of_order += 1,
            Arrival::New { .. } => {}
        }
        self.counts.delivered += 1;
        self.done += u64::from(is_whole);
        self.settled += 1;
        self.note(speaker, now, |step| step.arrived += 1);
        let measure = match self.clients[n].role {
            Role::Listener { .. } => Some(Measure::Member),
            Role::Reader | Role::Recipient => Some(Measure::CatchUp),
            Role::Sleeper => None,
            _ => Some(Measure::Chat),
        };
        if let Some(measure) = measure.filter(|_| is_whole) {
            self.time(measure, mark.at, now);
        }
        self.arrived(n, speaker, Some((mark.number, arrival)), now);
    }

    /// An object that is nothing that was sent, or not as it was.
    fn unknown(&mut self, n: usize, object: &[u8], now: u64) {
        let is_like_an_ack = memmem::find(object, b"\"errno\":").is_some();
        if is_like_an_ack && self.clients[n].acks.pending() > self.clients[n].unplaced_acks {
            return self.unknown_ack(n, object, now);
        }
        self.counts.change(object);
        let Some(speaker) = self.speaker(n) else { return };
        let client = &mut self.clients[n];
        client.unplaced += 1;
        client.unplaced_open += 1;
        self.settled += 1;
        self.arrived(n, speaker, None, now);
    }

    /// An ack of no request that was made: the ack of one that was made does not come.
    fn unknown_ack(&mut self, n: usize, object: &[u8], now: u64) {
        self.counts.acks_changed += 1;
        self.counts.changed_sample.get_or_insert_with(|| sample(object));
        self.clients[n].unplaced_acks += 1;
        self.settled += 1;
        self.acked(n, now);
    }

    /// Client `n` has got one message more; `None`: it is unknown which one.
    fn arrived(&mut self, n: usize, speaker: usize, which: Option<(u64, Arrival)>, now: u64) {
        let client = &mut self.clients[n];
        // Those before it have been lost, as far as is known, unless one of them came unrecognized.
        let gap = match which {
            Some((_, Arrival::New { gap })) => {
                let seen = gap.min(client.unplaced_open);
                client.unplaced_open -= seen;
                gap - seen
            }
            _ => 0,
        };
        let is_late = matches!(which, Some((_, Arrival::Late)));
        match client.role {
            Role::Partner => {
                let pair = n & !1;
                let flight = &mut self.clients[pair].flight;
                let lost = gap.min(flight.out.saturating_sub(1));
                flight.excused += lost;
                if is_late && flight.excused > 0 {
                    flight.excused -= 1;
                    flight.progress = now;
                } else {
                    (0..=lost).for_each(|_| self.answered(pair, n, now));
                }
                self.next_in_line(speaker, gap + 1);
            }
            Role::Listener { .. } => {
                client.flight.excused += gap;
                if is_late && client.flight.excused > 0 {
                    client.flight.excused -= 1;
                    return;
                }
                match which {
                    Some((number, _)) => {
                        (number - gap..number).for_each(|lost| self.heard_by_one(speaker, Some(lost), true, now));
                        self.heard_by_one(speaker, Some(number), false, now);
                    }
                    None => self.heard_by_one(speaker, None, true, now),
                }
            }
            Role::Sleeper => {
                client.due = client.due.saturating_sub(1 + gap);
                self.clients[speaker].flight.progress = now;
                self.check_return(n, now);
            }
            _ => {}
        }
    }

    /// `landed` messages of sender `n` are not in flight any more: what waits for that leaves.
    fn next_in_line(&mut self, n: usize, landed: u64) {
        let client = &mut self.clients[n];
        client.in_air = client.in_air.saturating_sub(landed);
        if self.plan.one_at_a_time
            && client.in_air == 0
            && let Some(at) = client.waiting.pop_front()
        {
            self.act(n, at);
        }
    }

    /// One delivery of the speaker's message `number`, or of its oldest one, is over; `is_lost`: it failed.
    fn heard_by_one(&mut self, speaker: usize, number: Option<u64>, is_lost: bool, now: u64) {
        let talks = &mut self.clients[speaker].talks;
        let Some(first) = talks.front().map(|talk| talk.number) else { return };
        let Some(index) = number.unwrap_or(first).checked_sub(first) else { return };
        let Some(talk) = talks.get_mut(index as usize) else { return };
        talk.left = talk.left.saturating_sub(1);
        talk.spoiled |= is_lost;
        self.check_talk(speaker, index as usize, now);
    }

    /// Have all members got it?
    fn check_talk(&mut self, speaker: usize, index: usize, now: u64) {
        let talks = &mut self.clients[speaker].talks;
        let Some(talk) = talks.get(index).filter(|talk| talk.left == 0) else { return };
        let (at, spoiled, excused) = (talk.at, talk.spoiled, talk.excused);
        while talks.front().is_some_and(|talk| talk.left == 0) {
            talks.pop_front();
        }
        if let Some(talk) = talks.get_mut(index) {
            // One that is not at the front stays there, and must not be done twice.
            if talk.left == 0 {
                (talk.excused, talk.spoiled) = (true, true);
            }
        }
        if !spoiled {
            self.time(Measure::LastMember, at, now);
        }
        if !excused {
            self.answered(speaker, speaker, now);
        }
    }

    fn ack(&mut self, n: usize, object: &[u8], now: u64) {
        let seq = number_after(object, b"\"seq\":");
        let come = seq.map_or(Ack::Unknown, |seq| self.clients[n].acks.come(seq));
        let (seq, at) = match (seq, come) {
            (_, Ack::Repeated) => {
                self.counts.acks_repeated += 1;
                return;
            }
            (Some(seq), Ack::Owed { at, late }) => {
                self.counts.acks_out_of_order += u64::from(late);
                (seq, at)
            }
            _ => return self.unknown_ack(n, object, now),
        };
        self.settled += 1;
        let errno = errno(object);
        if errno != 0 {
            self.counts.refuse(&errno.to_string(), 1, object);
            self.clients[n].refused.push(seq);
            self.settled += self.recipients(n);
            return self.refused(n, Some(seq), now);
        }
        let is_delivered = memmem::find(object, b"\"delivered\":true").is_some();
        let role = self.clients[n].role;
        match role {
            Role::Speaker { .. } => {
                self.counts.stored += number_after(object, b"\"stored\":").unwrap_or(0);
                let failed = number_after(object, b"\"failed\":").unwrap_or(0);
                if failed > 0 {
                    self.counts.refuse("failed", failed, object);
                    self.clients[n].refused_unknown += failed;
                    self.settled += failed;
                    (0..failed).for_each(|_| self.heard_by_one(n, Some(seq), true, now));
                }
            }
            Role::Depositor { .. } if is_delivered => {
                // The recipient was never there.
                self.counts.acks_changed += 1;
                self.counts.changed_sample.get_or_insert_with(|| sample(object));
            }
            Role::Sleeper => return self.acked(n, now),
            _ => self.counts.stored += u64::from(!is_delivered),
        }
        self.note(n, at, |step| *if is_delivered { &mut step.live } else { &mut step.stored } += 1);
        let measure = match role {
            Role::Depositor { .. } => Measure::Stored,
            Role::Writer | Role::Sender { .. } | Role::Feeder if !is_delivered => Measure::Stored,
            _ => Measure::Ack,
        };
        self.time(measure, at, now);
        self.done += u64::from(matches!(role, Role::Depositor { .. }));
        self.acked(n, now);
    }

    /// A client that waits for an ack goes on.
    fn acked(&mut self, n: usize, now: u64) {
        if self.clients[n].role == Role::Sleeper {
            self.clients[n ^ 1].flight.progress = now;
            return self.has_left(n, now);
        }
        let client = &mut self.clients[n];
        match client.role {
            Role::Depositor { .. } if client.flight.excused > 0 => client.flight.excused -= 1,
            Role::Depositor { .. } => self.answered(n, n, now),
            Role::Feeder => {
                client.flight.progress = now;
                client.due = client.due.saturating_sub(1);
                if client.due == 0 && !self.is_open && client.is_away && self.clients[n ^ 1].asked.is_none() {
                    self.log_in(n ^ 1, now);
                }
            }
            _ => {}
        }
    }

    /// A request without a `seq` was refused.
    fn refusal(&mut self, n: usize, object: &[u8], now: u64) {
        self.counts.refuse(&errno(object).to_string(), 1, object);
        if matches!(number_after(object, b"\"request\":"), Some(6 | 10)) && self.speaks(n) {
            let recipients = self.recipients(n);
            self.clients[n].refused_unknown += recipients;
            self.settled += recipients;
            self.refused(n, None, now);
        }
    }

    fn speaks(&self, n: usize) -> bool {
        self.clients[n].sent > 0
    }

    /// A message of client `n` goes nowhere.
    fn refused(&mut self, n: usize, number: Option<u64>, now: u64) {
        match self.clients[n].role {
            Role::Partner => {
                self.answered(n & !1, n, now);
                self.next_in_line(n, 1);
            }
            Role::Speaker { .. } => {
                let talks = &mut self.clients[n].talks;
                let Some(first) = talks.front().map(|talk| talk.number) else { return };
                let Some(index) = number.unwrap_or(first).checked_sub(first) else { return };
                let Some(talk) = talks.get_mut(index as usize).filter(|talk| talk.left > 0) else { return };
                (talk.left, talk.spoiled) = (0, true);
                self.check_talk(n, index as usize, now);
            }
            Role::Feeder => {
                self.clients[n ^ 1].due = self.clients[n ^ 1].due.saturating_sub(1);
                self.acked(n, now);
            }
            Role::Depositor { .. } | Role::Sleeper => self.acked(n, now),
            _ => {}
        }
    }

    /// The reply to a login: with what was stored meanwhile; what does not fit follows as chats.
    fn logged_in(&mut self, n: usize, reply: &[u8], now: u64) {
        let Some(at) = self.clients[n].asked.take() else {
            self.counts.acks_repeated += 1;
            return;
        };
        self.settled += 1;
        let is_sleeper = self.clients[n].role == Role::Sleeper;
        if errno(reply) != 0 || new_id(reply).is_none() {
            self.counts.refuse(&errno(reply).to_string(), 1, reply);
            if is_sleeper {
                // What was written to it comes with a later return.
                self.clients[n].due = 0;
            }
        } else {
            self.time(Measure::Login, at, now);
            self.done += u64::from(!is_sleeper);
        }
        if !is_sleeper {
            return self.replied(n, now);
        }
        self.clients[n].is_away = false;
        if memmem::find(reply, b"\"offlinemsg\"").is_some() {
            match serde_json::from_slice::<Value>(reply) {
                Ok(parsed) => {
                    let stored = parsed["offlinemsg"].as_array().into_iter().flatten();
                    stored.filter_map(Value::as_str).for_each(|object| self.message(n, object.as_bytes(), now));
                }
                Err(_) => self.counts.change(reply),
            }
        }
        self.check_return(n, now);
    }

    /// Is sleeper `n` back, and has it got everything?
    fn check_return(&mut self, n: usize, now: u64) {
        let sleeper = &self.clients[n];
        if sleeper.is_away || sleeper.due > 0 || sleeper.asked.is_some() || !self.clients[n ^ 1].is_away {
            return;
        }
        self.time(Measure::Return, sleeper.returning, now);
        let feeder = n ^ 1;
        self.clients[feeder].is_away = false;
        self.answered(feeder, feeder, now);
    }

    fn registered(&mut self, n: usize, reply: &[u8], now: u64) {
        let Some(at) = self.clients[n].asked.take() else {
            self.counts.acks_repeated += 1;
            return;
        };
        self.settled += 1;
        if errno(reply) == 0 && new_id(reply).is_some() {
            self.time(Measure::Register, at, now);
            self.done += 1;
        } else {
            self.counts.refuse(&errno(reply).to_string(), 1, reply);
        }
        self.replied(n, now);
    }

    /// Client `n` has the reply to its login or registration: the next one follows.
    fn replied(&mut self, n: usize, now: u64) {
        self.answered(n, n, now);
        if !self.stopping
            && let Some(at) = self.clients[n].waiting.pop_front()
        {
            self.act(n, at);
        }
    }

    pub fn time(&mut self, measure: Measure, since: u64, now: u64) {
        if now >= self.from && since < self.to {
            let time = now.saturating_sub(since);
            self.measures.record(measure, time);
            self.series.record(measure, now - self.from, time);
        }
    }

    /// The server has closed the connection of client `n`.
    pub fn closed(&mut self, n: usize) {
        self.clients[n].is_gone = true;
        self.counts.closed += 1;
    }

    // -- the end --------------------------------------------------------------------------------

    /// How many accounts were opened by requests that were answered.
    pub fn opened(&self) -> u64 {
        self.clients.iter().map(|client| client.registered).sum()
    }

    /// How many messages the server says it has stored for accounts that never come.
    pub fn deposited(&self) -> u64 {
        let depositors = self.clients.iter().filter(|client| matches!(client.role, Role::Depositor { .. }));
        depositors.map(|client| client.sent - client.acks.pending() - client.refused.len() as u64).sum()
    }

    /// Nothing more comes: what has not come by now is lost.
    pub fn finish(&mut self) {
        let mut missing = vec![0; self.clients.len()];
        for n in 0..self.clients.len() {
            // What was received from a sender is noted there.
            let speaker = if let Role::Sender { .. } = self.clients[n].role { Some(n) } else { self.speaker(n) };
            let Some(speaker) = speaker else { continue };
            let (client, from) = (&self.clients[n], &self.clients[speaker]);
            let refused = from.refused.iter().filter(|&&number| !client.order.has(number)).count() as u64;
            missing[speaker] += client.order.missing(from.sent).saturating_sub(refused + client.unplaced);
        }
        for (client, missing) in self.clients.iter().zip(missing) {
            self.counts.lost += missing.saturating_sub(client.refused_unknown);
            self.counts.acks_lost += client.acks.pending().saturating_sub(client.unplaced_acks);
            self.counts.acks_lost += u64::from(client.asked.is_some());
            self.counts.missed += client.waiting.len() as u64;
        }
    }
}
