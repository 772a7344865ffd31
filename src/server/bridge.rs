//! Reactor thread: carries out in threads and sockets what the service wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;

use super::ending::{LOOK, Remains};
use super::notice::Notice;
use super::validity::Validity;
use crate::bus::{Bus, BusEvent, BusOp, Envelope, Listener};
use crate::clock::since_boot;
use crate::home::Homes;
use crate::pool::{Standing, Submitter, Worker};
use crate::reactor::{
    Body, CloseReason, ConnId, Handler, HangUp, Io, ListenerId, Mail, Mailbox, Message, Recall, Taken, Types, Unwritten,
};
use crate::service::{Effect, Effects, Job, JobRunner, Lane, Letter, Moved, Now, Payload, Reason, Shard, Tag, Timer};
use crate::store::NodeId;
use crate::wire::{Framing, trace};

/// The mailboxes of all reactors, by index.
pub(super) type Mailboxes = Arc<[Mailbox<Mail<Bridge>>]>;

/// One reactor's handler: a shard, and what its effects go to.
pub(super) struct Bridge {
    shard: Shard,
    effects: Effects,
    pool: Submitter<Job>,
    bus: Arc<dyn Bus>,
    /// What is sent to the bus at the end of this turn.
    bus_ops: BusOps,
    /// `None`: this node is alone, and may always act.
    validity: Option<Arc<Validity>>,
    reports: Reports,
    /// Once the server is to end: when what remains is counted next.
    count_at: Option<Instant>,
    clock: Clock,
}

/// Where a reactor reports what has become of its shard.
pub(super) struct Reports {
    /// Notified once, when the shard has wound up.
    pub wound_up: Sender<()>,
    /// What this reactor has left to deliver or store.
    pub remains: Arc<Remains>,
}

impl Bridge {
    pub fn new(
        shard: Shard,
        pool: Submitter<Job>,
        bus: Arc<dyn Bus>,
        validity: Option<Arc<Validity>>,
        reports: Reports,
    ) -> Self {
        Bridge {
            shard,
            effects: Effects::default(),
            pool,
            bus,
            bus_ops: BusOps::default(),
            validity,
            reports,
            count_at: None,
            clock: Clock(now_at(Instant::now())),
        }
    }

    /// Hands an event to the shard, and carries out what it wants.
    fn act<T>(&mut self, io: &mut Io<Self>, event: impl FnOnce(&mut Shard, Now, &mut Effects) -> T) -> T {
        let result = event(&mut self.shard, self.clock.now(io.now()), &mut self.effects);
        self.carry_out(io);
        result
    }

    fn carry_out(&mut self, io: &mut Io<Self>) {
        let Effects { list, bytes } = &mut self.effects;
        let traces_wire = self.shard.traces_wire();
        let mut wound_up = false;
        for effect in list.drain(..) {
            match effect {
                Effect::Send { conn, body, framing, tag, options } => {
                    let body = match &body {
                        Payload::Own(range) => Body::Borrowed(&bytes[range.clone()]),
                        Payload::Shared(bytes) => Body::Shared(bytes),
                    };
                    if traces_wire {
                        log_output(conn, &body, framing);
                    }
                    let prefix = framing.prefix(body.bytes().len());
                    io.send(conn, Message { prefix: &prefix, body, terminator: framing.terminator(), tag, options });
                }
                Effect::Pause(conn) => io.pause(conn),
                Effect::Resume(conn) => io.resume(conn),
                Effect::Pace(conn) => io.pace(conn),
                Effect::Unpace(conn) => io.unpace(conn),
                Effect::Recall(conn, how) => io.recall(conn, how),
                Effect::Close(conn, reason) => io.close(conn, reason),
                Effect::Abort(conn, reason) => io.abort(conn, reason),
                Effect::Move { conn, to, moved } => io.move_to(conn, to, moved),
                Effect::Post(shard, letter) => io.post(shard, letter),
                Effect::Submit(lane, job) => submit(&self.pool, lane, *job),
                Effect::Bus(op) => self.bus_ops.push(op),
                Effect::Timer(at, timer) => io.set_timer(at, timer),
                Effect::WoundUp => wound_up = true,
                // Nothing more is handled, written or published.
                Effect::Marked => self.validity.iter().for_each(|validity| validity.end()),
            }
        }
        self.effects.clear();
        io.set_held(self.shard.held());
        if wound_up {
            // The channel has room for every reactor's report.
            let _ = self.reports.wound_up.try_send(());
        }
    }
}

/// Logs what is queued for a connection.
#[cold]
fn log_output(conn: ConnId, body: &Body, framing: Framing) {
    log::info!(target: trace::TARGET, "{conn}: -> {}", trace::shown(body.bytes(), framing.terminator()));
}

/// Submits an effect's job.
fn submit(pool: &Submitter<Job>, lane: Lane, job: Job) {
    match lane {
        Lane::Number(number) => pool.in_lane(number, job),
        Lane::None => pool.anywhere(job),
    }
}

impl Drop for Bridge {
    /// However its reactor ends, what is left is reported.
    fn drop(&mut self) {
        self.reports.remains.set(self.shard.lost());
    }
}

/// What goes to the bus at the end of a turn.
#[derive(Default)]
struct BusOps {
    list: Vec<BusOp>,
    /// The index in the list of each node's answers.
    answers: Vec<(NodeId, usize)>,
}

impl BusOps {
    /// Puts the answers to one node into one envelope, in the place of the first of them: nothing else that is sent to
    /// the node has to arrive before an answer.
    fn push(&mut self, op: BusOp) {
        if let BusOp::ToNode(node, Envelope::Answer(mut more)) = op {
            let first = self.answers.iter().find(|(answered, _)| *answered == node).map(|(_, first)| *first);
            match first.map(|first| &mut self.list[first]) {
                Some(BusOp::ToNode(_, Envelope::Answer(answers))) => answers.append(&mut more),
                _ => {
                    self.answers.push((node, self.list.len()));
                    self.list.push(BusOp::ToNode(node, Envelope::Answer(more)));
                }
            }
        } else {
            self.list.push(op);
        }
    }

    fn send(&mut self, bus: &dyn Bus) {
        if !self.list.is_empty() {
            bus.send(&mut self.list);
            self.answers.clear();
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
    // A clock before 1970 is no reason to stop, since the time is only displayed.
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    Now { at, unix }
}

impl Types for Bridge {
    type Letter = Letter;
    type Tag = Tag;
    type Timer = Timer;
    type Moved = Box<Moved>;
    type Reason = Reason;
}

impl Handler for Bridge {
    fn may_act(&mut self) -> bool {
        self.validity.as_ref().is_none_or(|validity| validity.may_act(since_boot()))
    }

    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, peer: SocketAddr, listener: ListenerId) {
        log::debug!("{conn}: {peer} has connected");
        self.act(io, |shard, now, fx| shard.opened(conn, peer, listener, now, fx));
    }

    fn arrived(&mut self, io: &mut Io<Self>, conn: ConnId, moved: Box<Moved>) {
        self.act(io, |shard, now, fx| shard.arrived(conn, *moved, now, fx));
    }

    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        self.act(io, |shard, now, fx| shard.input(conn, input, now, fx))
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, rest: usize) {
        self.act(io, |shard, now, fx| shard.ended(conn, rest, now, fx));
    }

    fn hung_up(&mut self, io: &mut Io<Self>, conn: ConnId, how: HangUp) {
        self.act(io, |shard, now, fx| shard.hung_up(conn, how, now, fx));
    }

    fn letter(&mut self, io: &mut Io<Self>, letter: Letter) {
        self.act(io, |shard, now, fx| shard.letter(letter, now, fx));
    }

    fn written(&mut self, io: &mut Io<Self>, conn: ConnId, tag: Tag) {
        self.act(io, |shard, now, fx| shard.written(conn, tag, now, fx));
    }

    fn recallable(tag: &Tag, how: Recall) -> bool {
        tag.is_recallable(how)
    }

    fn recalled(&mut self, io: &mut Io<Self>, conn: ConnId, recalled: Vec<Unwritten<Tag>>) {
        self.act(io, |shard, now, fx| shard.recalled(conn, recalled, now, fx));
    }

    fn drained(&mut self, io: &mut Io<Self>, conn: ConnId) {
        self.act(io, |shard, now, fx| shard.drained(conn, now, fx));
    }

    fn closed(&mut self, io: &mut Io<Self>, conn: ConnId, reason: CloseReason<Reason>, unwritten: Vec<Unwritten<Tag>>) {
        self.act(io, |shard, now, fx| shard.closed(conn, reason, unwritten, now, fx));
    }

    fn timer(&mut self, io: &mut Io<Self>, timer: Timer) {
        self.act(io, |shard, now, fx| shard.timer(timer, now, fx));
    }

    fn turn_ended(&mut self, io: &mut Io<Self>) {
        self.bus_ops.send(&*self.bus);
        if self.count_at.is_some_and(|at| at <= io.now()) {
            self.count_at = Some(io.now() + LOOK);
            self.reports.remains.set(self.shard.lost());
        }
    }

    fn stopping(&mut self, io: &mut Io<Self>) {
        self.count_at = Some(io.now());
        self.act(io, |shard, now, fx| shard.stop(now, fx));
    }
}

/// What the bus hands its events to: the mailboxes of the shards, and the reaper.
pub(super) struct BusListener {
    pub mailboxes: Mailboxes,
    pub homes: Homes,
    pub reaper: Sender<Notice>,
}

impl Listener for BusListener {
    fn homes(&self) -> Homes {
        self.homes
    }

    fn post(&self, shard: usize, events: &mut Vec<BusEvent>) {
        let mut mail: Vec<_> = events.drain(..).map(|event| Mail::Letter(Letter::Bus(event))).collect();
        if !mail.is_empty() {
            self.mailboxes[shard].post_all(&mut mail);
        }
    }

    fn confirmed(&self, dead: NodeId, by: NodeId) {
        // An error says that the reaper is gone, since this node ends.
        let _ = self.reaper.send(Notice::Confirmed { dead, by });
    }
}

/// What a worker thread does: it runs jobs, whose answers go back as letters.
pub(super) struct StoreWorker {
    runner: JobRunner,
    mailboxes: Mailboxes,
    /// The answers of the current batch, by shard: one wake-up for each shard is enough.
    answers: Vec<Vec<Mail<Bridge>>>,
    /// The number of jobs, of all workers, that the store has done.
    done: Arc<AtomicU64>,
}

impl StoreWorker {
    pub fn new(runner: JobRunner, mailboxes: Mailboxes, done: Arc<AtomicU64>) -> Self {
        let answers = mailboxes.iter().map(|_| Vec::new()).collect();
        StoreWorker { runner, mailboxes, answers, done }
    }
}

impl Worker for StoreWorker {
    type Job = Job;

    fn run(&mut self, batch: &mut Vec<Job>) {
        let (answers, mut served) = (&mut self.answers, 0);
        self.runner.run(batch, |shard, done| {
            served += u64::from(done.answer.is_ok());
            answers[shard].push(Mail::Letter(Letter::Done(Box::new(done))));
        });
        self.done.fetch_add(served, Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Answered, Delivery};

    fn answer(node: u64, number: u64) -> BusOp {
        BusOp::ToNode(NodeId(node), Envelope::Answer(vec![Answered { user: 1, number, delivery: Delivery::Stored }]))
    }

    #[test]
    fn answers_to_a_node_share_an_envelope_in_their_order_and_all_else_is_as_it_was() {
        let nudge = |node| BusOp::ToNode(NodeId(node), Envelope::Nudge { user: 1, epoch: 1, number: 1 });
        let mut ops = BusOps::default();
        for op in [nudge(1), answer(1, 1), answer(2, 2), nudge(1), answer(1, 3), answer(2, 4), answer(1, 5)] {
            ops.push(op);
        }
        let shown = |op: &BusOp| match op {
            BusOp::ToNode(node, Envelope::Answer(answers)) => {
                (node.0, answers.iter().map(|answer| answer.number).collect())
            }
            BusOp::ToNode(node, _) => (node.0, Vec::new()),
            other => panic!("{other:?}"),
        };
        let list: Vec<(u64, Vec<u64>)> = ops.list.iter().map(shown).collect();
        assert_eq!(list, [(1, vec![]), (1, vec![1, 3, 5]), (2, vec![2, 4]), (1, vec![])]);

        struct Nowhere;
        impl Bus for Nowhere {
            fn send(&self, ops: &mut Vec<BusOp>) {
                ops.clear();
            }
            fn is_up(&self) -> bool {
                true
            }
        }
        ops.send(&Nowhere);
        ops.push(answer(2, 6));
        assert_eq!(ops.list.iter().map(shown).collect::<Vec<_>>(), [(2, vec![6])]);
    }
}
