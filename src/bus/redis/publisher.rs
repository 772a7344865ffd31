//! What goes out: one worker, one connection, all that is queued in one pipeline.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, Value};

use super::address::Address;
use super::confirms::Confirms;
use super::{Complaints, MAX_PAUSE, Posts, PublisherCounts, Shared, channel_of};
use crate::bus::{BusEvent, BusOp, Envelope, Ticket, envelope};
use crate::pool::Worker;
use crate::store::NodeId;

/// The largest payload that several envelopes share, in bytes. One that is larger travels alone.
const MAX_SHARED: usize = 1 << 20;
/// Past so many bytes a pipeline is sent before more is added.
const MAX_PIPELINE: usize = 4 << 20;
/// A connection that was not used for so long is asked whether it still is one: Redis may have
/// closed it, and what is sent on it then would be lost.
const STALE: Duration = Duration::from_secs(1);

/// What the publisher is told.
pub(super) enum Job {
    Ops(Vec<BusOp>),
    /// To this node itself; when it was sent, by [`crate::clock::since_boot`].
    Beat(Duration),
}

/// What one reply of Redis is for.
#[derive(Debug, PartialEq, Eq)]
enum Owed {
    /// Nobody waits for it.
    Nothing,
    /// The number of subscribers that a PUBLISH to a node reached, which is one or none; and what comes back
    /// to its sender in the latter case.
    Node(NodeId, Vec<Envelope>),
    /// The number of subscribers that a PUBLISH reached.
    Reached(Ticket),
    /// `PUBSUB NUMSUB` of one channel.
    Listeners(Ticket),
}

/// Whether an envelope comes back to who has sent it, if it may not have arrived. The others are
/// repeated by their senders for as long as they are not answered.
fn comes_back(envelope: &Envelope) -> bool {
    matches!(envelope, Envelope::Chat { .. } | Envelope::Nudge { .. })
}

/// A payload for a node, that more envelopes may be added to.
struct Open {
    to: NodeId,
    payload: Vec<u8>,
    come_back: Vec<Envelope>,
}

/// Operations as commands for Redis, and whom their replies are for.
struct Pipeline {
    shared: Arc<Shared>,
    /// On which line it will be sent.
    line: u64,
    /// Few, so they are not hashed.
    open: Vec<Open>,
    open_bytes: usize,
    packed: Vec<u8>,
    owed: Vec<Owed>,
}

impl Pipeline {
    fn new(shared: Arc<Shared>) -> Pipeline {
        Pipeline { shared, line: 0, open: Vec::new(), open_bytes: 0, packed: Vec::new(), owed: Vec::new() }
    }

    fn is_empty(&self) -> bool {
        self.open.is_empty() && self.owed.is_empty()
    }

    fn add(&mut self, op: BusOp) {
        match op {
            BusOp::ToNode(to, envelope) => self.for_node(to, envelope),
            BusOp::ToUser(user, chat, ticket) => {
                self.publish(&user.to_string(), &chat, Owed::Reached(ticket));
            }
            BusOp::CountListeners(user, ticket) => {
                self.command(redis::cmd("PUBSUB").arg("NUMSUB").arg(user), Owed::Listeners(ticket));
            }
            // The subscriber's, and what was made an envelope before.
            BusOp::Listen { .. } | BusOp::Unlisten { .. } | BusOp::Confirm { .. } => {}
        }
    }

    fn for_node(&mut self, to: NodeId, envelope: Envelope) {
        let index = self.open.iter().position(|open| open.to == to).unwrap_or_else(|| {
            let payload = self.begin(to);
            self.open.push(Open { to, payload, come_back: Vec::new() });
            self.open.len() - 1
        });
        let open = &mut self.open[index];
        let before = open.payload.len();
        envelope::append(&envelope, &mut open.payload);
        self.open_bytes += open.payload.len() - before;
        if comes_back(&envelope) {
            open.come_back.push(envelope);
        }
        if open.payload.len() >= MAX_SHARED {
            let open = self.open.remove(index);
            self.open_bytes = self.open_bytes.saturating_sub(open.payload.len());
            self.seal(open);
        }
    }

    /// A payload for a node, in the newest version that it reads, too.
    fn begin(&self, to: NodeId) -> Vec<u8> {
        let Shared { node, dialect, versions, .. } = &*self.shared;
        let theirs = versions.lock().unwrap_or_else(PoisonError::into_inner).get(&to).copied();
        let mut payload = Vec::new();
        envelope::begin(dialect.versions.to_speak(theirs), *node, self.line, &mut payload);
        if let Some(kind) = dialect.made_up {
            envelope::append_body(kind, &"made up", &mut payload);
        }
        payload
    }

    fn beat(&mut self, sent: Duration) {
        let node = self.shared.node;
        let mut payload = self.begin(node);
        envelope::append_beat(sent, &mut payload);
        self.publish(&channel_of(node), &payload, Owed::Nothing);
    }

    fn seal(&mut self, open: Open) {
        self.publish(&channel_of(open.to), &open.payload, Owed::Node(open.to, open.come_back));
    }

    /// Closes the open payloads.
    fn seal_all(&mut self) {
        std::mem::take(&mut self.open).into_iter().for_each(|open| self.seal(open));
        self.open_bytes = 0;
    }

    fn publish(&mut self, channel: &str, payload: &[u8], owed: Owed) {
        self.command(redis::cmd("PUBLISH").arg(channel).arg(payload), owed);
    }

    fn command(&mut self, command: &redis::Cmd, owed: Owed) {
        command.write_packed_command(&mut self.packed);
        self.owed.push(owed);
    }

    fn is_full(&self) -> bool {
        self.packed.len() + self.open_bytes >= MAX_PIPELINE
    }

    fn clear(&mut self) {
        self.packed.clear();
        self.owed.clear();
        // A burst's memory is not kept.
        self.packed.shrink_to(MAX_SHARED);
    }
}

impl Owed {
    /// Tells whoever waits what a reply says; an error, or none, says that it is not known.
    fn answer(self, reply: Option<&Value>, posts: &mut Posts) {
        match self {
            Owed::Nothing => {}
            Owed::Node(to, envelopes) => {
                if reply.and_then(integer).is_none_or(|reached| reached == 0) {
                    envelopes.into_iter().for_each(|envelope| posts.push(BusEvent::Unsent(to, envelope)));
                }
            }
            Owed::Reached(ticket) => posts.push(BusEvent::Reached(ticket, reply.and_then(integer))),
            Owed::Listeners(ticket) => posts.push(BusEvent::Reached(ticket, reply.and_then(listeners))),
        }
    }
}

/// Tells whoever waits that nothing was sent.
fn nothing_sent(op: BusOp, posts: &mut Posts) {
    match op {
        BusOp::ToNode(to, envelope) if comes_back(&envelope) => posts.push(BusEvent::Unsent(to, envelope)),
        BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => posts.push(BusEvent::Reached(ticket, None)),
        _ => {}
    }
}

fn integer(reply: &Value) -> Option<u32> {
    match reply {
        Value::Int(n) => u32::try_from(*n).ok(),
        _ => None,
    }
}

/// Of `[channel, count]`.
fn listeners(reply: &Value) -> Option<u32> {
    match reply {
        Value::Array(items) => items.get(1).and_then(integer),
        _ => None,
    }
}

/// A connection, and which of the subscriber's connections it is as young as.
struct Link {
    connection: Connection,
    subscribed: u64,
    used: Instant,
}

/// The worker that publishes.
pub(super) struct Publisher {
    address: Address,
    shared: Arc<Shared>,
    link: Option<Link>,
    /// How many connections there were; the number of the one that there is.
    lines: u64,
    /// During which of the subscriber's connections Redis did not answer this one, and when that was last. The
    /// subscriber tries all the time, so this one need not.
    failed: Option<(u64, Instant)>,
    pipeline: Pipeline,
    /// Something was not even added to a pipeline.
    refused: bool,
    confirms: Confirms,
    posts: Posts,
    complaints: Complaints,
    counts: Arc<PublisherCounts>,
}

impl Publisher {
    pub fn new(address: Address, connection: Connection, shared: Arc<Shared>, posts: Posts) -> Publisher {
        Publisher {
            address,
            // The subscriber's first connection is to be number 1.
            link: Some(Link { connection, subscribed: 1, used: Instant::now() }),
            lines: 1,
            failed: None,
            pipeline: Pipeline::new(Arc::clone(&shared)),
            shared,
            refused: false,
            confirms: Confirms::new(posts.homes.reactors()),
            posts,
            complaints: Complaints::default(),
            counts: Arc::default(),
        }
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<PublisherCounts> {
        Arc::clone(&self.counts)
    }

    fn add(&mut self, op: BusOp) {
        let op = match op {
            BusOp::Confirm { dead, asker, shard } => {
                if !self.confirms.add(dead, asker, shard) {
                    return;
                }
                if asker == self.shared.node {
                    self.posts.confirmed(dead, asker);
                    return;
                }
                BusOp::ToNode(asker, Envelope::Confirmed { node: dead })
            }
            op => op,
        };
        if self.can_send() {
            self.pipeline.add(op);
        } else {
            self.refused = true;
            nothing_sent(op, &mut self.posts);
        }
    }

    /// Whether there is a pipeline to add to, which begins with a connection.
    fn can_send(&mut self) -> bool {
        if !self.pipeline.is_empty() {
            return true;
        }
        let connected = self.has_connection();
        self.pipeline.line = self.lines;
        connected
    }

    /// Sends the pipeline and hands out the replies. Whatever gets none is answered too, and
    /// never sent again: it may have been carried out.
    fn exchange(&mut self) {
        self.pipeline.seal_all();
        self.counts.failures.add(u64::from(std::mem::take(&mut self.refused)));
        if let Some(link) = self.link.as_mut().filter(|_| !self.pipeline.owed.is_empty()) {
            self.counts.commands.add(self.pipeline.owed.len() as u64);
            let mut owed = std::mem::take(&mut self.pipeline.owed).into_iter();
            let (posts, complaints) = (&mut self.posts, &mut self.complaints);
            let began = Instant::now();
            let result = converse(&mut link.connection, &self.pipeline.packed, &mut owed, posts, complaints);
            link.used = Instant::now();
            self.counts.exchanges.observe(link.used - began);
            self.counts.sent.add(self.pipeline.packed.len() as u64);
            if let Err(error) = result {
                self.counts.failures.add(1);
                self.complaints.warn(format_args!("publishing to Redis failed: {error}"));
                if error.is_timeout() {
                    // What is queued behind this must not wait as long again.
                    self.failed = Some((link.subscribed, link.used));
                }
                self.link = None;
            }
            owed.for_each(|owed| owed.answer(None, &mut self.posts));
            self.pipeline.clear();
        }
        self.posts.post();
    }

    /// Makes sure of a connection, if there can be one at the moment.
    fn has_connection(&mut self) -> bool {
        let subscribed = self.shared.subscribed.load(Ordering::Acquire);
        if let Some(link) = &mut self.link {
            // One that is older than the subscriber's may have broken with its predecessor.
            let older = subscribed != 0 && subscribed != link.subscribed;
            let stale = link.used.elapsed() > STALE && (subscribed == 0 || !is_alive(&mut link.connection));
            if !older && !stale {
                return true;
            }
            self.link = None;
        }
        let in_vain = |(during, at): (u64, Instant)| during == subscribed && at.elapsed() < MAX_PAUSE;
        if subscribed == 0 || self.failed.is_some_and(in_vain) {
            return false;
        }
        match self.address.connect() {
            Ok(connection) => {
                self.lines += 1;
                self.link = Some(Link { connection, subscribed, used: Instant::now() });
                true
            }
            Err(error) => {
                self.failed = Some((subscribed, Instant::now()));
                self.complaints.warn(format_args!("cannot reach Redis to publish: {error}"));
                false
            }
        }
    }
}

impl Worker for Publisher {
    type Job = Job;

    fn run(&mut self, batch: &mut Vec<Job>) {
        for job in batch.drain(..) {
            match job {
                Job::Ops(ops) => {
                    for op in ops {
                        self.add(op);
                        if self.pipeline.is_full() {
                            self.exchange();
                        }
                    }
                }
                Job::Beat(sent) => {
                    if self.can_send() {
                        self.pipeline.beat(sent);
                    }
                }
            }
        }
        self.exchange();
    }
}

fn is_alive(connection: &mut Connection) -> bool {
    redis::cmd("PING").exec(connection).is_ok()
}

/// Writes commands and reads their replies, one for each of `owed`, which is left with those that
/// got none.
fn converse(
    connection: &mut Connection,
    packed: &[u8],
    owed: &mut impl Iterator<Item = Owed>,
    posts: &mut Posts,
    complaints: &mut Complaints,
) -> RedisResult<()> {
    connection.send_packed_command(packed)?;
    for owed in owed {
        let reply = connection.recv_response();
        if let Ok(Value::ServerError(error)) = &reply {
            complaints.warn(format_args!("Redis refuses to publish: {error}"));
        }
        owed.answer(reply.as_ref().ok(), posts);
        reply?;
    }
    Ok(())
}
