//! What goes out: one worker, one connection, all that is queued in one pipeline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::{Client, Connection, RedisResult, Value};

use super::{Complaints, MAX_PAUSE, NODES, Posts, PublisherCounts, channel_of, connect};
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

/// What one reply of Redis is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// Nobody waits for it.
    Nothing,
    /// The number of subscribers that a PUBLISH reached.
    Reached(Ticket),
    /// `PUBSUB NUMSUB` of one channel.
    Listeners(Ticket),
    /// Both of them, of which the second is this node itself.
    Others(Ticket),
}

/// Operations as commands for Redis, and whom their replies are for.
struct Pipeline {
    node: NodeId,
    own_channel: String,
    /// Payloads for nodes that more envelopes may be added to; few, so they are not hashed.
    open: Vec<(NodeId, Vec<u8>)>,
    open_bytes: usize,
    packed: Vec<u8>,
    owed: Vec<Owed>,
}

impl Pipeline {
    fn new(node: NodeId) -> Pipeline {
        let own_channel = channel_of(node);
        Pipeline { node, own_channel, open: Vec::new(), open_bytes: 0, packed: Vec::new(), owed: Vec::new() }
    }

    fn add(&mut self, op: BusOp) {
        match op {
            BusOp::ToNode(to, envelope) => self.for_node(to, &envelope),
            BusOp::ToAll(envelope, ticket) => self.for_all(&envelope, ticket),
            BusOp::ToUser(user, chat, ticket) => {
                self.publish(&user.to_string(), &chat, Owed::Reached(ticket));
            }
            BusOp::CountListeners(user, ticket) => {
                self.command(redis::cmd("PUBSUB").arg("NUMSUB").arg(user), Owed::Listeners(ticket));
            }
            // The subscriber's.
            BusOp::Listen { .. } | BusOp::Unlisten { .. } => {}
        }
    }

    fn for_node(&mut self, to: NodeId, envelope: &Envelope) {
        let index = self.open.iter().position(|(node, _)| *node == to).unwrap_or_else(|| {
            let mut payload = Vec::new();
            envelope::begin(self.node, &mut payload);
            self.open.push((to, payload));
            self.open.len() - 1
        });
        let payload = &mut self.open[index].1;
        let before = payload.len();
        envelope::append(envelope, payload);
        self.open_bytes += payload.len() - before;
        if payload.len() >= MAX_SHARED {
            let (node, payload) = self.open.remove(index);
            self.open_bytes = self.open_bytes.saturating_sub(payload.len());
            self.publish(&channel_of(node), &payload, Owed::Nothing);
        }
    }

    fn for_all(&mut self, envelope: &Envelope, ticket: Ticket) {
        // It must not overtake what was sent to one of them before.
        self.seal();
        let mut payload = Vec::new();
        envelope::begin(self.node, &mut payload);
        envelope::append(envelope, &mut payload);
        // The count has this node in it if its subscriber is connected at that moment, which
        // nobody here can know: so Redis is asked, in the same moment.
        self.command(&redis::cmd("MULTI"), Owed::Nothing);
        self.publish(NODES, &payload, Owed::Nothing);
        let own_channel = std::mem::take(&mut self.own_channel);
        self.command(redis::cmd("PUBSUB").arg("NUMSUB").arg(&own_channel), Owed::Nothing);
        self.own_channel = own_channel;
        self.command(&redis::cmd("EXEC"), Owed::Others(ticket));
    }

    /// Closes the open payloads.
    fn seal(&mut self) {
        for (node, payload) in std::mem::take(&mut self.open) {
            self.publish(&channel_of(node), &payload, Owed::Nothing);
        }
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
    /// What a reply says to whoever waits for it; an error says that it is not known.
    fn answer(self, reply: Option<&Value>) -> Option<BusEvent> {
        let (ticket, count) = match self {
            Owed::Nothing => return None,
            Owed::Reached(ticket) => (ticket, reply.and_then(integer)),
            Owed::Listeners(ticket) => (ticket, reply.and_then(listeners)),
            Owed::Others(ticket) => (ticket, reply.and_then(others)),
        };
        Some(BusEvent::Reached(ticket, count))
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

/// Of `[reached, [own channel, count]]`.
fn others(reply: &Value) -> Option<u32> {
    match reply {
        Value::Array(items) => Some(items.first().and_then(integer)?.saturating_sub(items.get(1).and_then(listeners)?)),
        _ => None,
    }
}

/// A connection, and which of the subscriber's lines it is as young as.
struct Open {
    connection: Connection,
    line: u64,
    used: Instant,
}

/// The worker that publishes.
pub(super) struct Publisher {
    client: Client,
    /// Which of the subscriber's lines to Redis is up; 0: none. It tries all the time, so this
    /// one need not.
    line: Arc<AtomicU64>,
    open: Option<Open>,
    /// On which line Redis did not answer this one, and when that was last.
    failed: Option<(u64, Instant)>,
    pipeline: Pipeline,
    posts: Posts,
    complaints: Complaints,
    counts: Arc<PublisherCounts>,
}

impl Publisher {
    pub fn new(client: Client, connection: Connection, node: NodeId, line: Arc<AtomicU64>, posts: Posts) -> Publisher {
        Publisher {
            client,
            line,
            // The first line is to be number 1.
            open: Some(Open { connection, line: 1, used: Instant::now() }),
            failed: None,
            pipeline: Pipeline::new(node),
            posts,
            complaints: Complaints::default(),
            counts: Arc::default(),
        }
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<PublisherCounts> {
        Arc::clone(&self.counts)
    }

    /// Sends the pipeline and hands out the replies. Whatever gets none is answered too, and
    /// never sent again: it may have been carried out.
    fn exchange(&mut self) {
        self.pipeline.seal();
        if self.pipeline.owed.is_empty() {
            return;
        }
        self.counts.commands.add(self.pipeline.owed.len() as u64);
        let mut owed = std::mem::take(&mut self.pipeline.owed).into_iter();
        let mut is_answered = false;
        if self.has_connection()
            && let Some(open) = &mut self.open
        {
            let (posts, complaints) = (&mut self.posts, &mut self.complaints);
            let began = Instant::now();
            let result = converse(&mut open.connection, &self.pipeline.packed, &mut owed, posts, complaints);
            open.used = Instant::now();
            self.counts.exchanges.observe(open.used - began);
            self.counts.sent.add(self.pipeline.packed.len() as u64);
            is_answered = result.is_ok();
            if let Err(error) = result {
                self.complaints.warn(format_args!("publishing to Redis failed: {error}"));
                if error.is_timeout() {
                    // What is queued behind this must not wait as long again.
                    self.failed = Some((open.line, open.used));
                }
                self.open = None;
            }
        }
        self.counts.failures.add(u64::from(!is_answered));
        owed.filter_map(|owed| owed.answer(None)).for_each(|event| self.posts.push(event));
        self.pipeline.clear();
        self.posts.post();
    }

    /// Makes sure of a connection, if there can be one at the moment.
    fn has_connection(&mut self) -> bool {
        let line = self.line.load(Ordering::Acquire);
        if let Some(open) = &mut self.open {
            // One that is older than the subscriber's may have broken with its predecessor.
            let older = line != 0 && line != open.line;
            let stale = open.used.elapsed() > STALE && (line == 0 || !is_alive(&mut open.connection));
            if !older && !stale {
                return true;
            }
            self.open = None;
        }
        let in_vain = |(on, at): (u64, Instant)| on == line && at.elapsed() < MAX_PAUSE;
        if line == 0 || self.failed.is_some_and(in_vain) {
            return false;
        }
        match connect(&self.client) {
            Ok(connection) => {
                self.open = Some(Open { connection, line, used: Instant::now() });
                true
            }
            Err(error) => {
                self.failed = Some((line, Instant::now()));
                self.complaints.warn(format_args!("cannot reach Redis to publish: {error}"));
                false
            }
        }
    }
}

impl Worker for Publisher {
    type Job = Vec<BusOp>;

    fn run(&mut self, batch: &mut Vec<Vec<BusOp>>) {
        for op in batch.drain(..).flatten() {
            self.pipeline.add(op);
            if self.pipeline.is_full() {
                self.exchange();
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
        owed.answer(reply.as_ref().ok()).into_iter().for_each(|event| posts.push(event));
        reply?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Addressee;

    const ME: NodeId = NodeId(1);

    fn ticket(key: u64) -> Ticket {
        Ticket { shard: 0, key }
    }

    fn seen(key: u64) -> Envelope {
        Envelope::Seen { ticket: ticket(key) }
    }

    /// The commands, and for a PUBLISH to nodes the keys of its envelopes.
    fn commands(pipeline: &mut Pipeline) -> Vec<String> {
        pipeline.seal();
        let (mut packed, mut commands) = (pipeline.packed.as_slice(), Vec::new());
        let mut parser = redis::Parser::new();
        while commands.len() < pipeline.owed.len() {
            let Ok(Value::Array(words)) = parser.parse_value(&mut packed) else { panic!("no command") };
            let word = |value: &Value| match value {
                Value::BulkString(bytes) => match envelope::decode(bytes) {
                    Ok((ME, envelopes)) => format!("{:?}", envelopes.iter().map(key).collect::<Vec<_>>()),
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
    fn envelopes_for_one_node_share_a_publish_and_none_is_overtaken_by_one_for_all() {
        let mut pipeline = Pipeline::new(ME);
        pipeline.add(BusOp::ToNode(NodeId(2), seen(1)));
        pipeline.add(BusOp::ToNode(NodeId(3), seen(2)));
        pipeline.add(BusOp::ToUser(17, b"{}"[..].into(), ticket(3)));
        pipeline.add(BusOp::ToNode(NodeId(2), seen(4)));
        pipeline.add(BusOp::ToAll(seen(5), ticket(6)));
        pipeline.add(BusOp::ToNode(NodeId(2), seen(7)));
        pipeline.add(BusOp::CountListeners(18, ticket(8)));
        let expected = [
            "PUBLISH 17 {}",
            "PUBLISH chat:node:0000000000000002 [1, 4]",
            "PUBLISH chat:node:0000000000000003 [2]",
            "MULTI",
            "PUBLISH chat:nodes [5]",
            "PUBSUB NUMSUB chat:node:0000000000000001",
            "EXEC",
            "PUBSUB NUMSUB 18",
            "PUBLISH chat:node:0000000000000002 [7]",
        ];
        assert_eq!(commands(&mut pipeline), expected);
        let waited: Vec<_> = pipeline.owed.iter().filter(|owed| **owed != Owed::Nothing).collect();
        assert_eq!(waited, [&Owed::Reached(ticket(3)), &Owed::Others(ticket(6)), &Owed::Listeners(ticket(8))]);
    }

    #[test]
    fn a_shared_payload_ends_at_its_bound_and_a_pipeline_at_its_own() {
        let mut pipeline = Pipeline::new(ME);
        let body: std::sync::Arc<[u8]> = vec![b'x'; MAX_SHARED / 4].into();
        let chat = Envelope::Chat { to: vec![Addressee { user: 1, epoch: 1, after: 0 }], body, ticket: ticket(1) };
        let mut added = 0;
        while !pipeline.is_full() {
            pipeline.add(BusOp::ToNode(NodeId(2), chat.clone()));
            added += 1;
        }
        pipeline.seal();
        assert_eq!((added, pipeline.owed.len()), (16, 4));
    }

    #[test]
    fn an_answer_that_is_none_says_that_it_is_not_known() {
        let count = |owed: Owed, reply: Option<Value>| match owed.answer(reply.as_ref()) {
            Some(BusEvent::Reached(_, count)) => count,
            event => panic!("{event:?}"),
        };
        let own = |n| Value::Array(vec![Value::BulkString("own".into()), Value::Int(n)]);
        let all = Owed::Others(ticket(1));
        assert_eq!(count(all, Some(Value::Array(vec![Value::Int(3), own(1)]))), Some(2));
        assert_eq!(count(all, Some(Value::Array(vec![Value::Int(3), own(0)]))), Some(3), "this node hears nothing");
        assert_eq!(count(Owed::Listeners(ticket(1)), Some(own(2))), Some(2));
        assert_eq!(count(Owed::Reached(ticket(1)), Some(Value::Int(0))), Some(0));
        for reply in [None, Some(Value::Nil), Some(Value::Okay), Some(Value::Array(vec![]))] {
            for owed in [all, Owed::Listeners(ticket(1)), Owed::Reached(ticket(1))] {
                assert_eq!(count(owed, reply.clone()), None, "{owed:?} {reply:?}");
            }
        }
    }
}
