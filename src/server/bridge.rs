//! Carries out in threads and sockets what the service wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;

use super::keeper::Waker;
use super::{Mailboxes, submit};
use crate::bus::{Bus, BusEvent, BusOp, Listener};
use crate::pool::{Standing, Submitter, Worker};
use crate::reactor::{Body, CloseReason, ConnId, Handler, HangUp, Io, Mail, Message, Taken, Unwritten};
use crate::service::{Effect, Effects, Job, JobRunner, Letter, Now, Payload, Shard, Tag, Timer};

/// One reactor's handler: a shard, and what its effects go to.
pub(super) struct Bridge {
    shard: Shard,
    effects: Effects,
    pool: Submitter<Job>,
    bus: Arc<dyn Bus>,
    /// What this input wants of the bus.
    bus_ops: Vec<BusOp>,
    /// Where there are other nodes: has the claims checked.
    keeper: Option<Waker>,
    /// Told once, when the shard has wound up.
    report: Sender<usize>,
    clock: Clock,
}

impl Bridge {
    pub fn new(
        shard: Shard,
        pool: Submitter<Job>,
        bus: Arc<dyn Bus>,
        keeper: Option<Waker>,
        report: Sender<usize>,
    ) -> Self {
        Bridge {
            shard,
            effects: Effects::default(),
            pool,
            bus,
            bus_ops: Vec::new(),
            keeper,
            report,
            clock: Clock(now_at(Instant::now())),
        }
    }

    fn carry_out(&mut self, io: &mut Io<Self>) {
        let Effects { list, bytes } = &mut self.effects;
        for effect in list.drain(..) {
            match effect {
                Effect::Send { conn, body, framing, tag, manner } => {
                    let body = match &body {
                        Payload::Own(range) => Body::Borrowed(&bytes[range.clone()]),
                        Payload::Shared(bytes) => Body::Shared(bytes),
                    };
                    io.send(conn, Message { body, terminator: framing.terminator(), tag, manner });
                }
                Effect::Pause(conn) => io.pause(conn),
                Effect::Resume(conn) => io.resume(conn),
                Effect::Pace(conn) => io.pace(conn),
                Effect::Recall(conn) => io.recall(conn),
                Effect::Close(conn, reason) => io.close(conn, reason),
                Effect::Post(shard, letter) => io.post(shard, letter),
                Effect::Submit(lane, job) => submit(&self.pool, lane, *job),
                Effect::Bus(op) => self.bus_ops.push(op),
                Effect::CheckClaims => {
                    if let Some(keeper) = &self.keeper {
                        keeper.wake();
                    }
                }
                Effect::Timer(at, timer) => io.set_timer(at, timer),
                Effect::WoundUp => {
                    // The channel has room for every reactor's report.
                    let _ = self.report.try_send(io.index());
                }
            }
        }
        self.effects.clear();
        if !self.bus_ops.is_empty() {
            self.bus.send(&mut self.bus_ops);
        }
    }
}

/// Looks at the wall clock once a turn.
struct Clock(Now);

impl Clock {
    fn now(&mut self, at: Instant) -> Now {
        if self.0.at != at {
            self.0 = now_at(at);
        }
        self.0
    }
}

/// The wall clock beside the loop's own.
pub(super) fn now_at(at: Instant) -> Now {
    // A clock before 1970 is no reason to stop; the time is only shown.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    Now { at, unix }
}

impl Handler for Bridge {
    type Letter = Letter;
    type Tag = Tag;
    type Timer = Timer;

    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, peer: SocketAddr) {
        log::debug!("{conn}: {peer} has connected");
        self.shard.opened(conn, peer, self.clock.now(io.now()), &mut self.effects);
        self.carry_out(io);
    }

    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        let taken = self.shard.input(conn, input, self.clock.now(io.now()), &mut self.effects);
        self.carry_out(io);
        taken
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, rest: usize) {
        self.shard.ended(conn, rest, &mut self.effects);
        self.carry_out(io);
    }

    fn hung_up(&mut self, io: &mut Io<Self>, conn: ConnId, how: HangUp) {
        self.shard.hung_up(conn, how, &mut self.effects);
        self.carry_out(io);
    }

    fn letter(&mut self, io: &mut Io<Self>, letter: Letter) {
        self.shard.letter(letter, self.clock.now(io.now()), &mut self.effects);
        self.carry_out(io);
    }

    fn written(&mut self, io: &mut Io<Self>, conn: ConnId, tag: Tag) {
        self.shard.written(conn, tag, &mut self.effects);
        self.carry_out(io);
    }

    fn recallable(tag: &Tag) -> bool {
        matches!(tag, Tag::Chat { .. })
    }

    fn high_water(&mut self, io: &mut Io<Self>, conn: ConnId, recalled: Vec<Unwritten<Tag>>) {
        self.shard.high_water(conn, recalled, &mut self.effects);
        self.carry_out(io);
    }

    fn drained(&mut self, io: &mut Io<Self>, conn: ConnId) {
        self.shard.drained(conn, &mut self.effects);
        self.carry_out(io);
    }

    fn closed(&mut self, io: &mut Io<Self>, conn: ConnId, reason: CloseReason, unwritten: Vec<Unwritten<Tag>>) {
        self.shard.closed(conn, reason, unwritten, &mut self.effects);
        self.carry_out(io);
    }

    fn timer(&mut self, io: &mut Io<Self>, timer: Timer) {
        self.shard.timer(timer, self.clock.now(io.now()), &mut self.effects);
        self.carry_out(io);
    }

    fn was_stopped(&mut self, io: &mut Io<Self>, gap: Duration) {
        log::warn!("this process was stopped for {} s", gap.as_secs());
        // A node that is alone cannot have been taken for dead.
        if self.keeper.is_some() {
            self.shard.was_stopped(self.clock.now(io.now()), &mut self.effects);
            self.carry_out(io);
        }
    }

    fn stopping(&mut self, io: &mut Io<Self>) {
        self.shard.stop(&mut self.effects);
        self.carry_out(io);
    }
}

/// The bus's way to the shards: their mailboxes.
pub(super) struct BusListener(pub Mailboxes);

impl Listener for BusListener {
    fn shards(&self) -> usize {
        self.0.len()
    }

    fn post(&self, shard: usize, events: &mut Vec<BusEvent>) {
        let mut mail: Vec<_> = events.drain(..).map(|event| Mail::Letter(Letter::Bus(event))).collect();
        if !mail.is_empty() {
            self.0[shard].post_all(&mut mail);
        }
    }
}

/// A worker thread's business: jobs, whose answers go back as letters.
pub(super) struct StoreWorker {
    runner: JobRunner,
    mailboxes: Mailboxes,
    /// Answers of the batch that runs, by shard: one wake for each shard is enough.
    answers: Vec<Vec<Mail<Letter>>>,
}

impl StoreWorker {
    pub fn new(runner: JobRunner, mailboxes: Mailboxes) -> Self {
        let answers = mailboxes.iter().map(|_| Vec::new()).collect();
        StoreWorker { runner, mailboxes, answers }
    }
}

impl Worker for StoreWorker {
    type Job = Job;

    fn run(&mut self, batch: &mut Vec<Job>) {
        let answers = &mut self.answers;
        self.runner.run(batch, |shard, done| answers[shard].push(Mail::Letter(Letter::Done(Box::new(done)))));
        for (mailbox, answers) in self.mailboxes.iter().zip(answers) {
            if !answers.is_empty() {
                mailbox.post_all(answers);
            }
        }
    }

    fn standing(job: &Job) -> Standing {
        job.op.standing()
    }
}
