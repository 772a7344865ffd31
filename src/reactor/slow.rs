//! Reactor thread: what a loop does about clients that do not read. [`pressure`](super::pressure) decides it.

use std::time::{Duration, Instant};

use super::connection::Life;
use super::counts::Slowness;
use super::event_loop::Running;
use super::handler::Handler;
use super::id::ConnId;
use super::io::LoopTimer;
use super::pressure::{Pressure, SLOW_CONSUMER, STALLED};
use super::reason::{CloseReason, Mark};
use super::types::Recall;

/// How often all queues are looked at while they hold too much.
const RELIEF: Duration = Duration::from_millis(100);
/// When they begin to hold too much after such a time in which they did not, a warning is logged.
const COMPLAINT: Duration = Duration::from_secs(10);

impl<H: Handler> Running<H> {
    /// Acts on connections whose queue has just grown past a mark, or is to be recalled. A full queue in the middle of
    /// a turn says nothing about the client yet, so it is flushed first.
    pub(super) fn settle_over(&mut self) {
        while !self.io.over.is_empty() && self.may_act() {
            let Some(id) = self.io.over.pop() else { return };
            self.flush_one(id);
            if self.halted {
                return self.io.over.push(id);
            }
            self.recall_if_wanted(id);
            self.hold_against_marks(id);
        }
    }

    /// Recalls what the handler has asked for.
    fn recall_if_wanted(&mut self, id: ConnId) {
        if let Some(connection) = self.io.connections.get_mut(id)
            && let Some(how) = connection.to_recall.take()
        {
            connection.pressure.recalled();
            self.recall(id, how);
        }
    }

    /// Recalls what is queued for a client that has just passed the soft mark; closes one that is above the hard mark.
    fn hold_against_marks(&mut self, id: ConnId) {
        let (marks, now) = (self.io.marks(), self.io.now);
        let Some(connection) = self.io.connections.get_mut(id) else { return };
        let output = &mut connection.output;
        if connection.pressure.weighed(output.weight(marks.tight), &marks) {
            if let Some(outbox) = &mut output.outbox {
                outbox.over_since = Some(now);
            }
            self.io.counts.slow.of(if marks.tight { Slowness::Tight } else { Slowness::HighWater }).add(1);
            self.io.timers.set(now + SLOW_CONSUMER, LoopTimer::Slow(id));
            self.recall(id, Recall::Reroutable);
        }
        let connection = self.io.connections.get(id);
        if let Some(mark) = connection.and_then(|connection| marks.hard_mark(connection.output.weight(marks.tight))) {
            self.close_slow(id, mark);
        }
    }

    /// While all queues together hold too much: finds those of this reactor that hold more than their share. A
    /// queue that is full now was flushed in this turn, so its client does not read.
    pub(super) fn relieve(&mut self) {
        if self.halted || !self.io.is_tight() || self.io.now < self.relieved + RELIEF {
            return;
        }
        let marks = self.io.marks();
        if self.io.now > self.relieved + COMPLAINT {
            let (bytes, connections, share) = (self.io.all_bytes(), self.io.all_connections(), marks.soft);
            log::warn!("{bytes} bytes wait to be written to {connections} clients: none may hold more than {share}");
        }
        self.relieved = self.io.now;
        for id in self.io.connections.ids().collect::<Vec<_>>() {
            let Some(connection) = self.io.connections.get(id) else { continue };
            if connection.pressure.is_news(connection.output.weight(true), marks.soft, marks.hard) {
                self.io.over.push(id);
                self.settle_over();
            }
        }
    }

    /// Takes back those messages that the handler wants back in such a case.
    fn recall(&mut self, id: ConnId, how: Recall) {
        let Some(connection) = self.io.connections.get_mut(id) else { return };
        let output = &mut connection.output;
        let queued = output.queued();
        let wanted = |tag: &H::Tag| H::recallable(tag, how);
        let recalled = output.outbox.as_mut().map_or_else(Vec::new, |outbox| outbox.recall(wanted));
        self.io.counts.queued.sub(queued - output.queued());
        self.handler.recalled(&mut self.io, id, recalled);
        self.flush_one(id);
    }

    /// A socket was full, or a message had to wait for its time: is there one that has waited for too long?
    pub(super) fn check_stalled(&mut self, id: ConnId) {
        let io = &mut self.io;
        let Some(connection) = io.connections.get_mut(id) else { return };
        let output = &mut connection.output;
        output.stall_timer = false;
        if !output.waits() || !connection.pressure.watches_for_a_stall() || connection.life != Life::Open {
            return;
        }
        let due = output.stalls_since().unwrap_or(io.now).max(self.resumed) + STALLED;
        if due > io.now {
            output.stall_timer = true;
            io.timers.set(due, LoopTimer::Stalled(id));
        } else {
            connection.pressure.recalled();
            io.counts.slow.of(Slowness::Stalled).add(1);
            self.recall(id, Recall::Reroutable);
        }
    }

    /// A queue was above the soft mark 10 s ago: was it emptied since?
    pub(super) fn check_slow(&mut self, id: ConnId) {
        let Some(connection) = self.io.connections.get(id) else { return };
        // It may have been, and then have passed the mark anew.
        let has_had_its_time = |since: Instant| since + SLOW_CONSUMER <= self.io.now;
        if let Pressure::Over(mark) = connection.pressure
            && connection.output.over_since().is_some_and(has_had_its_time)
            && self.has_had_from_us(SLOW_CONSUMER, LoopTimer::Slow(id))
        {
            self.close_slow(id, mark);
        }
    }

    /// Whether a client whose time is over has had that time from us, too, since the handler may act. If not, `timer`
    /// looks again when it has.
    pub(super) fn has_had_from_us(&mut self, time: Duration, timer: LoopTimer<H::Timer>) -> bool {
        let at = self.resumed + time;
        let has_had = at <= self.io.now;
        if !has_had {
            self.io.timers.set(at, timer);
        }
        has_had
    }

    /// Closes a connection whose client does not read.
    fn close_slow(&mut self, id: ConnId, mark: Mark) {
        let Some(connection) = self.io.connections.get(id) else { return };
        if connection.life == Life::Open {
            let (bytes, marks) = (connection.output.queued(), self.io.marks());
            let (high_water, soft, hard) = (self.io.limits.high_water, marks.soft, marks.hard);
            let cause = match mark {
                Mark::HighWater => format!("10 s after its queue has passed the high-water mark of {high_water} bytes"),
                Mark::Share => format!("10 s after its queue has passed its share of all buffers, now {soft} bytes"),
                Mark::Hard => format!("above the hard mark of {hard} bytes"),
                Mark::HardShare => format!("above its share of all buffers, now {hard} bytes"),
            };
            log::info!("{id} is closed as a slow consumer: {bytes} bytes wait to be written, {cause}");
        }
        self.io.kill(id, CloseReason::SlowConsumer(mark));
    }
}
