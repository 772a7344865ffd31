//! The outgoing side: one worker, one connection, and everything that is queued in one pipeline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{Connection, RedisResult, Value};

use super::address::Address;
use super::confirms::Confirms;
use super::counts::PublisherCounts;
use super::posts::Posts;
use super::retry::{MAX_PAUSE, WarnLimiter};
use super::shared::{Shared, channel_of};
use crate::bus::{BusEvent, BusOp, Envelope, Ticket, envelope};
use crate::pool::Worker;
use crate::store::NodeId;

/// A payload of this size, in bytes, gets no more envelopes.
const MAX_SHARED: usize = 1 << 20;
/// A pipeline of this size, in bytes, is sent before more is added.
const MAX_PIPELINE: usize = 4 << 20;
/// A connection that has not been used for this long is checked with a PING: Redis may have
/// closed it, and what is then sent on it would be lost.
const STALE: Duration = Duration::from_secs(1);

/// What the publisher is sent.
pub(super) enum Job {
    Ops(Vec<BusOp>),
    /// A beat for this node itself, sent at this [`crate::clock::since_boot`].
    Beat(Duration),
}

/// What one reply of Redis is for.
#[derive(Debug, PartialEq, Eq)]
enum Owed {
    /// Nothing depends on it.
    Nothing,
    /// The number of subscribers that a PUBLISH to a node has reached, which is one or none; and the envelopes that
    /// come back to their sender if it is none.
    Node(NodeId, Vec<Envelope>),
    /// The number of subscribers that a PUBLISH has reached, or that `PUBSUB NUMSUB` has counted.
    Reached(Ticket),
}

/// Whether an envelope comes back to its sender if it may not have arrived. Senders repeat all others until they are
/// answered.
fn comes_back(envelope: &Envelope) -> bool {
    matches!(envelope, Envelope::Chat { .. } | Envelope::Nudge { .. })
}

/// A payload for a node, to which more envelopes can be added.
struct Open {
    to: NodeId,
    payload: Vec<u8>,
    come_back: Vec<Envelope>,
}

/// Operations as commands for Redis, and what each reply is for.
struct Pipeline {
    shared: Arc<Shared>,
    /// The line on which it will be sent.
    line: u64,
    /// They are few, so they are not hashed.
    open: Vec<Open>,
    packed: Vec<u8>,
    owed: Vec<Owed>,
}

impl Pipeline {
    fn new(shared: Arc<Shared>) -> Pipeline {
        Pipeline { shared, line: 0, open: Vec::new(), packed: Vec::new(), owed: Vec::new() }
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
                self.command(redis::cmd("PUBSUB").arg("NUMSUB").arg(user), Owed::Reached(ticket));
            }
            // The first two are for the subscriber; the last was turned into an envelope before.
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
        envelope::append(&envelope, &mut open.payload);
        if comes_back(&envelope) {
            open.come_back.push(envelope);
        }
        if open.payload.len() >= MAX_SHARED {
            let open = self.open.remove(index);
            self.seal(open);
        }
    }

    /// Begins a payload for a node, in the newest version that both read.
    fn begin(&self, to: NodeId) -> Vec<u8> {
        let Shared { node, payload: ours, .. } = &*self.shared;
        let theirs = self.shared.versions().get(&to).copied();
        let mut payload = Vec::new();
        envelope::begin(ours.versions.to_speak(theirs), *node, self.line, &mut payload);
        if let Some(kind) = ours.made_up {
            envelope::append(&(kind, "made up"), &mut payload);
        }
        payload
    }

    fn beat(&mut self, sent: Duration) {
        let node = self.shared.node;
        let mut payload = self.begin(node);
        let sent = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX);
        envelope::append(&Envelope::Beat { sent }, &mut payload);
        self.publish(&channel_of(node), &payload, Owed::Nothing);
    }

    fn seal(&mut self, open: Open) {
        self.publish(&channel_of(open.to), &open.payload, Owed::Node(open.to, open.come_back));
    }

    /// Closes the open payloads.
    fn seal_all(&mut self) {
        std::mem::take(&mut self.open).into_iter().for_each(|open| self.seal(open));
    }

    fn publish(&mut self, channel: &str, payload: &[u8], owed: Owed) {
        self.command(redis::cmd("PUBLISH").arg(channel).arg(payload), owed);
    }

    fn command(&mut self, command: &redis::Cmd, owed: Owed) {
        command.write_packed_command(&mut self.packed);
        self.owed.push(owed);
    }

    fn is_full(&self) -> bool {
        let open = self.open.iter().map(|open| open.payload.len()).sum::<usize>();
        self.packed.len() + open >= MAX_PIPELINE
    }

    fn clear(&mut self) {
        self.packed.clear();
        self.owed.clear();
        // The memory of a burst is not kept.
        self.packed.shrink_to(MAX_SHARED);
    }
}

impl Owed {
    /// Reports a reply to the shard that waits for it. Without one, or with an error, the outcome is not known.
    fn answer(self, reply: Option<&Value>, posts: &mut Posts) {
        match self {
            Owed::Nothing => {}
            Owed::Node(to, envelopes) => {
                if reply.and_then(count).is_none_or(|reached| reached == 0) {
                    envelopes.into_iter().for_each(|envelope| posts.push(BusEvent::Unsent(to, envelope)));
                }
            }
            Owed::Reached(ticket) => posts.push(BusEvent::Reached(ticket, reply.and_then(count))),
        }
    }
}

/// Reports to the shard that waits for an operation that nothing was sent.
fn nothing_sent(op: BusOp, posts: &mut Posts) {
    match op {
        BusOp::ToNode(to, envelope) if comes_back(&envelope) => posts.push(BusEvent::Unsent(to, envelope)),
        BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => posts.push(BusEvent::Reached(ticket, None)),
        _ => {}
    }
}

/// The number in a reply: to PUBLISH, or in the `[channel, count]` of `PUBSUB NUMSUB`.
fn count(reply: &Value) -> Option<u32> {
    match reply {
        Value::Int(n) => u32::try_from(*n).ok(),
        Value::Array(items) => items.get(1).and_then(count),
        _ => None,
    }
}

struct Link {
    connection: Connection,
    /// The subscriber's connection when this one was made.
    subscribed: u64,
    /// When it was last used.
    used: Instant,
}

/// The worker that publishes.
pub(super) struct Publisher {
    address: Address,
    shared: Arc<Shared>,
    link: Option<Link>,
    /// The number of connections so far, which is the number of the current one.
    lines: u64,
    /// The subscriber's connection during which Redis last did not answer this one, and when that was. The
    /// subscriber keeps trying, so this one need not.
    failed: Option<(u64, Instant)>,
    pipeline: Pipeline,
    /// An operation was not even added to a pipeline.
    refused: bool,
    confirms: Confirms,
    posts: Posts,
    warnings: WarnLimiter,
    counts: Arc<PublisherCounts>,
}

impl Publisher {
    pub fn new(address: Address, connection: Connection, shared: Arc<Shared>, posts: Posts) -> Publisher {
        Publisher {
            address,
            // The subscriber's first connection will have the number 1.
            link: Some(Link { connection, subscribed: 1, used: Instant::now() }),
            lines: 1,
            failed: None,
            pipeline: Pipeline::new(Arc::clone(&shared)),
            shared,
            refused: false,
            confirms: Confirms::new(posts.homes.reactors()),
            posts,
            warnings: WarnLimiter::default(),
            counts: Arc::default(),
        }
    }

    /// Its counters.
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
                    self.posts.listener.confirmed(dead, asker);
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

    /// Sends the pipeline and hands out the replies. An operation that gets no reply is reported too, and
    /// never sent again: it may have been carried out.
    fn exchange(&mut self) {
        if self.shared.abandoned.load(Ordering::Acquire) {
            self.pipeline = Pipeline::new(Arc::clone(&self.shared));
            return;
        }
        self.pipeline.seal_all();
        self.counts.failures.add(u64::from(std::mem::take(&mut self.refused)));
        if let Some(link) = self.link.as_mut().filter(|_| !self.pipeline.owed.is_empty()) {
            self.counts.commands.add(self.pipeline.owed.len() as u64);
            let mut owed = std::mem::take(&mut self.pipeline.owed).into_iter();
            let (posts, warnings) = (&mut self.posts, &mut self.warnings);
            let began = Instant::now();
            let result = converse(&mut link.connection, &self.pipeline.packed, &mut owed, posts, warnings);
            link.used = Instant::now();
            self.counts.exchanges.observe(link.used - began);
            self.counts.sent.add(self.pipeline.packed.len() as u64);
            if let Err(error) = result {
                self.counts.failures.add(1);
                self.warnings.warn(format_args!("publishing to Redis failed: {error}"));
                if error.is_timeout() {
                    // What is queued after this must not wait as long again.
                    self.failed = Some((link.subscribed, link.used));
                }
                self.link = None;
            }
            owed.for_each(|owed| owed.answer(None, &mut self.posts));
            self.pipeline.clear();
        }
        self.posts.post();
    }

    /// Makes sure that there is a connection, if that is possible at the moment.
    fn has_connection(&mut self) -> bool {
        let subscribed = self.shared.subscribed.load(Ordering::Acquire);
        if let Some(link) = &mut self.link {
            // One that is older than the subscriber's may have broken together with the subscriber's previous one.
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
                self.warnings.warn(format_args!("cannot reach Redis to publish: {error}"));
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

/// Writes commands and reads their replies, one for each of `owed`, in which those without a reply remain.
fn converse(
    connection: &mut Connection,
    packed: &[u8],
    owed: &mut impl Iterator<Item = Owed>,
    posts: &mut Posts,
    warnings: &mut WarnLimiter,
) -> RedisResult<()> {
    connection.send_packed_command(packed)?;
    for owed in owed {
        let reply = connection.recv_response();
        if let Ok(Value::ServerError(error)) = &reply {
            warnings.warn(format_args!("Redis refuses to publish: {error}"));
        }
        owed.answer(reply.as_ref().ok(), posts);
        reply?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    use super::*;
    use crate::bus::redis::inbox::Inbox;
    use crate::bus::{Addressee, Answered, Delivery, Listener};
    use crate::home::Homes;

    const ME: NodeId = NodeId(1);

    struct Nobody;

    impl Listener for Nobody {
        fn homes(&self) -> Homes {
            Homes::new(0, 3)
        }
        fn post(&self, _: usize, _: &mut Vec<BusEvent>) {}
        fn confirmed(&self, _: NodeId, _: NodeId) {}
    }

    fn posts() -> Posts {
        Posts::new(Arc::new(Nobody))
    }

    fn pipeline_of(payload: &str, versions: &[(NodeId, &str)]) -> Pipeline {
        let shared = Shared {
            node: ME,
            payload: payload.parse().unwrap(),
            inbox: Mutex::new(Inbox::new(ME, posts())),
            subscribed: AtomicU64::new(0),
            beat: AtomicU64::new(0),
            abandoned: AtomicBool::new(false),
            versions: Mutex::new(versions.iter().map(|(node, text)| (*node, text.parse().unwrap())).collect()),
        };
        Pipeline { line: 5, ..Pipeline::new(Arc::new(shared)) }
    }

    fn pipeline() -> Pipeline {
        pipeline_of("2-2", &[])
    }

    fn ticket(key: u64) -> Ticket {
        Ticket { shard: 0, key }
    }

    fn seen(key: u64) -> Envelope {
        Envelope::Seen { ticket: ticket(key) }
    }

    fn chat(size: usize) -> Envelope {
        let to = vec![Addressee { user: 1, epoch: 1, number: 1, after: 0 }];
        Envelope::Chat { body: vec![b'x'; size].into(), to }
    }

    const NUDGE: Envelope = Envelope::Nudge { user: 1, epoch: 2, number: 3 };

    /// The commands, and for a PUBLISH to nodes the keys of its envelopes.
    fn commands(pipeline: &mut Pipeline) -> Vec<String> {
        pipeline.seal_all();
        let (mut packed, mut commands) = (pipeline.packed.as_slice(), Vec::new());
        let mut parser = redis::Parser::new();
        while commands.len() < pipeline.owed.len() {
            let Ok(Value::Array(words)) = parser.parse_value(&mut packed) else { panic!("no command") };
            let word = |value: &Value| match value {
                Value::BulkString(bytes) => match envelope::decode(bytes) {
                    Ok(payload) => {
                        assert_eq!((payload.from, payload.line), (ME, 5));
                        format!("{:?}", payload.envelopes.iter().map(key).collect::<Vec<_>>())
                    }
                    _ => String::from_utf8_lossy(bytes).into_owned(),
                },
                other => panic!("{other:?}"),
            };
            commands.push(words.iter().map(word).collect::<Vec<_>>().join(" "));
        }
        commands
    }

    fn key(envelope: &Envelope) -> u64 {
        match envelope {
            Envelope::Seen { ticket } => ticket.key,
            _ => panic!("{envelope:?}"),
        }
    }

    #[test]
    fn envelopes_for_one_node_share_a_publish() {
        let mut pipeline = pipeline();
        pipeline.add(BusOp::ToNode(NodeId(2), seen(1)));
        pipeline.add(BusOp::ToNode(NodeId(3), seen(2)));
        pipeline.add(BusOp::ToUser(17, b"{}"[..].into(), ticket(3)));
        pipeline.add(BusOp::ToNode(NodeId(2), seen(4)));
        pipeline.add(BusOp::CountListeners(18, ticket(8)));
        let expected = [
            "PUBLISH 17 {}",
            "PUBSUB NUMSUB 18",
            "PUBLISH chat:node:0000000000000002 [1, 4]",
            "PUBLISH chat:node:0000000000000003 [2]",
        ];
        assert_eq!(commands(&mut pipeline), expected);
        let nothing = |node| Owed::Node(NodeId(node), Vec::new());
        assert_eq!(
            pipeline.owed,
            [Owed::Reached(ticket(3)), Owed::Reached(ticket(8)), nothing(2), nothing(3)],
            "whoever repeats it needs nothing back",
        );
    }

    #[test]
    fn a_shared_payload_ends_at_its_bound_and_a_pipeline_at_its_own() {
        let mut pipeline = pipeline();
        let mut added = 0;
        while !pipeline.is_full() {
            pipeline.add(BusOp::ToNode(NodeId(2), chat(MAX_SHARED / 4)));
            added += 1;
        }
        pipeline.seal_all();
        assert_eq!((added, pipeline.owed.len()), (16, 4));
    }

    #[test]
    fn each_node_is_spoken_to_in_the_newest_version_that_it_reads() {
        let mut pipeline = pipeline_of("2-4+200", &[(NodeId(3), "2-3"), (NodeId(4), "4-7")]);
        let (old, made_up) = (pipeline.begin(NodeId(2)), pipeline.begin(NodeId(3)));
        assert_eq!((old[0], made_up[0], pipeline.begin(NodeId(4))[0]), (2, 3, 4));
        pipeline.add(BusOp::ToNode(NodeId(2), seen(1)));
        let payload = envelope::decode(&pipeline.open[0].payload).unwrap();
        assert_eq!((payload.skipped, payload.envelopes), (1, vec![seen(1)]));
    }

    /// What is told, without what each shard is told for itself.
    fn told(posts: &mut Posts) -> Vec<BusEvent> {
        posts.by_shard.iter_mut().flat_map(|events| events.drain(..)).collect()
    }

    #[test]
    fn of_what_reached_nobody_chats_and_nudges_come_back_in_order() {
        let mut pipeline = pipeline();
        let answer = Envelope::Answer(vec![Answered { user: 1, number: 1, delivery: Delivery::Gone }]);
        for envelope in [chat(1), answer.clone(), NUDGE, seen(1), chat(2)] {
            pipeline.add(BusOp::ToNode(NodeId(2), envelope));
        }
        pipeline.seal_all();
        let [Owed::Node(to, envelopes)] = &pipeline.owed[..] else { panic!("{:?}", pipeline.owed) };
        assert_eq!((*to, &envelopes[..]), (NodeId(2), &[chat(1), NUDGE, chat(2)][..]));
        let mut posts = posts();
        let mut unsent = |reply: Option<Value>| {
            Owed::Node(NodeId(2), vec![chat(1), NUDGE, chat(2)]).answer(reply.as_ref(), &mut posts);
            let unsent = |event| match event {
                BusEvent::Unsent(NodeId(2), envelope) => envelope,
                event => panic!("{event:?}"),
            };
            told(&mut posts).into_iter().map(unsent).collect::<Vec<_>>()
        };
        for reply in [None, Some(Value::Int(0)), Some(Value::Nil), Some(Value::Array(vec![]))] {
            assert_eq!(unsent(reply.clone()), [chat(1), NUDGE, chat(2)], "{reply:?}");
        }
        assert_eq!(unsent(Some(Value::Int(1))), []);
        let mut posts = self::posts();
        for envelope in [chat(1), answer, NUDGE] {
            nothing_sent(BusOp::ToNode(NodeId(2), envelope), &mut posts);
        }
        assert_eq!(told(&mut posts).len(), 2);
    }

    #[test]
    fn an_answer_that_is_none_says_that_it_is_not_known() {
        let mut posts = posts();
        let mut count = |owed: Owed, reply: Option<Value>| {
            owed.answer(reply.as_ref(), &mut posts);
            match told(&mut posts)[..] {
                [BusEvent::Reached(_, count)] => count,
                ref events => panic!("{events:?}"),
            }
        };
        let own = |n| Value::Array(vec![Value::BulkString("own".into()), Value::Int(n)]);
        assert_eq!(count(Owed::Reached(ticket(1)), Some(own(2))), Some(2));
        assert_eq!(count(Owed::Reached(ticket(1)), Some(Value::Int(0))), Some(0));
        for reply in [None, Some(Value::Nil), Some(Value::Okay), Some(Value::Array(vec![]))] {
            assert_eq!(count(Owed::Reached(ticket(1)), reply.clone()), None, "{reply:?}");
        }
    }
}
