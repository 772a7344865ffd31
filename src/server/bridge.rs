//! Carries out in threads and sockets what the service wants.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;

use super::{Mailboxes, submit};
use crate::pool::{Submitter, Worker};
use crate::reactor::{Body, CloseReason, ConnId, Handler, Io, Mail, Message, Taken, Unwritten};
use crate::service::{Effect, Effects, Job, JobRunner, Letter, Now, Payload, Shard, Tag, Timer};

/// One reactor's handler: a shard, and what its effects go to.
pub(super) struct Bridge {
    shard: Shard,
    effects: Effects,
    pool: Submitter<Job>,
    /// Told once, when the shard has wound up.
    report: Sender<usize>,
}

impl Bridge {
    pub fn new(shard: Shard, pool: Submitter<Job>, report: Sender<usize>) -> Self {
        Bridge { shard, effects: Effects::default(), pool, report }
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
                Effect::Close(conn, reason) => io.close(conn, reason),
                Effect::Post(shard, letter) => io.post(shard, letter),
                Effect::Submit(lane, job) => submit(&self.pool, lane, job),
                Effect::Timer(at, timer) => io.set_timer(at, timer),
                Effect::WoundUp => {
                    // The channel has room for every reactor's report.
                    let _ = self.report.try_send(io.index());
                }
            }
        }
        self.effects.clear();
    }
}

fn now(io: &Io<Bridge>) -> Now {
    // A clock before 1970 is no reason to stop; the time is only shown.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    Now { at: io.now(), unix }
}

impl Handler for Bridge {
    type Letter = Letter;
    type Tag = Tag;
    type Timer = Timer;

    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, peer: SocketAddr) {
        log::debug!("{conn}: {peer} has connected");
        self.shard.opened(conn, peer, now(io), &mut self.effects);
        self.carry_out(io);
    }

    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        let taken = self.shard.input(conn, input, now(io), &mut self.effects);
        self.carry_out(io);
        taken
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, rest: usize) {
        self.shard.ended(conn, rest, &mut self.effects);
        self.carry_out(io);
    }

    fn letter(&mut self, io: &mut Io<Self>, letter: Letter) {
        self.shard.letter(letter, now(io), &mut self.effects);
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
        self.shard.timer(timer, now(io), &mut self.effects);
        self.carry_out(io);
    }

    fn stopping(&mut self, io: &mut Io<Self>) {
        self.shard.stop(&mut self.effects);
        self.carry_out(io);
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
        self.runner.run(batch, |shard, then, answer| answers[shard].push(Mail::Letter(Letter::Done { then, answer })));
        for (mailbox, answers) in self.mailboxes.iter().zip(answers) {
            if !answers.is_empty() {
                mailbox.post_all(answers);
            }
        }
    }
}
