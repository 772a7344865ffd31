//! Redis, and each node's lines to it.
//!
//! A node publishes on a line with a number, and a line that breaks may have its last commands executed late, behind
//! those of the next one, or never; how many were, the node does not learn. What is published to a node is a FIFO
//! for each pair of nodes, and has gaps where the receiver's subscription was broken: Redis may know of that
//! before the node does, or the node before Redis.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use chat_server::bus::{BusEvent, BusOp, Envelope};
use chat_server::service::Letter;
use chat_server::store::{NodeId, UserId};

use crate::node::{Item, Port};
use crate::world::World;

/// How long a lease lasts.
pub const LEASE_TTL: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Redis {
    pub is_away: bool,
    pub up_since: Duration,
    leases: BTreeMap<NodeId, Duration>,
    /// Publishers' connections, by node and number.
    lines: BTreeMap<(NodeId, u64), Line>,
    subscriptions: BTreeMap<NodeId, Subscription>,
    /// Channels that the C++ node listens to.
    pub foreign: BTreeSet<UserId>,
    /// What was published for it.
    pub for_foreign: Vec<(UserId, Arc<[u8]>)>,
}

/// A connection on which a node publishes, as Redis has it.
#[derive(Default)]
struct Line {
    commands: VecDeque<(u64, BusOp)>,
    /// How many were reached, by command; not read yet.
    replies: VecDeque<(u64, u32)>,
    /// Its node has given it up.
    is_broken: bool,
}

/// A connection on which a node listens, as Redis has it.
#[derive(Default)]
struct Subscription {
    is_attached: bool,
    /// Nothing that is sent on it arrives.
    is_dead: bool,
    channels: BTreeSet<UserId>,
    queues: BTreeMap<Source, VecDeque<Heard>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Node(NodeId),
    Channel(UserId),
}

#[derive(Debug, Clone)]
enum Heard {
    Payload { from: NodeId, line: u64, envelope: Envelope },
    Chat(UserId, Arc<[u8]>),
}

impl Redis {
    /// The node's lease, which lasts from now on.
    pub fn renew(&mut self, node: NodeId, now: Duration) {
        self.leases.insert(node, now + LEASE_TTL);
    }

    pub fn has_lease(&self, node: NodeId, now: Duration) -> bool {
        self.leases.get(&node).is_some_and(|end| *end > now)
    }

    pub fn drop_lease(&mut self, node: NodeId) {
        self.leases.remove(&node);
    }

    /// Redis has been started anew, and knows nothing of before.
    pub fn forget(&mut self, now: Duration) {
        self.leases.clear();
        self.up_since = now;
    }

    /// Nothing is under way on it.
    pub fn is_quiet(&self) -> bool {
        let is_idle = |line: &Line| line.commands.is_empty() && (line.is_broken || line.replies.is_empty());
        self.lines.values().all(is_idle)
            && self.subscriptions.values().all(|subscription| subscription.queues.values().all(VecDeque::is_empty))
    }

    /// A node is gone, and with it its connections; what it has sent may still be executed.
    pub fn node_is_gone(&mut self, node: NodeId) {
        self.subscriptions.remove(&node);
        self.lines.iter_mut().filter(|((of, _), _)| *of == node).for_each(|(_, line)| line.is_broken = true);
    }

    /// Executes one command; how many were reached.
    fn execute(&mut self, from: NodeId, line: u64, op: BusOp) -> u32 {
        match op {
            BusOp::ToNode(to, envelope) => {
                let Some(subscription) = self.subscriptions.get_mut(&to).filter(|sub| sub.is_attached) else {
                    return 0;
                };
                subscription.hear(Source::Node(from), Heard::Payload { from, line, envelope });
                1
            }
            BusOp::ToUser(user, body, _) => self.publish_on_channel(user, &body),
            BusOp::CountListeners(user, _) => self.listeners(user),
            other => panic!("no command of Redis: {other:?}"),
        }
    }

    pub fn listeners(&self, user: UserId) -> u32 {
        let ours = self.subscriptions.values().filter(|sub| sub.is_attached && sub.channels.contains(&user)).count();
        ours as u32 + u32::from(self.foreign.contains(&user))
    }

    /// What is published on a user's channel.
    pub fn publish_on_channel(&mut self, user: UserId, body: &Arc<[u8]>) -> u32 {
        let listeners = self.listeners(user);
        for subscription in self.subscriptions.values_mut() {
            if subscription.is_attached && subscription.channels.contains(&user) {
                subscription.hear(Source::Channel(user), Heard::Chat(user, Arc::clone(body)));
            }
        }
        if self.foreign.contains(&user) {
            self.for_foreign.push((user, Arc::clone(body)));
        }
        listeners
    }
}

impl Subscription {
    fn hear(&mut self, source: Source, heard: Heard) {
        if !self.is_dead {
            self.queues.entry(source).or_default().push_back(heard);
        }
    }
}

/// A node's end of its connections.
#[derive(Default)]
pub struct Ends {
    /// Whether new connections can be made: to publish, to listen.
    pub can_publish: bool,
    pub can_listen: bool,
    /// The number of the connection on which it publishes.
    line: u64,
    pub publishes: bool,
    /// Commands without a reply.
    unanswered: VecDeque<(u64, BusOp)>,
    next_command: u64,
    pub listens: bool,
    /// The users to whose channels it listens, or would.
    channels: BTreeMap<UserId, u64>,
    /// `Listen` and `Unlisten` that Redis has yet to confirm.
    changes: VecDeque<BusOp>,
    /// The newest line of each node that has been seen.
    newest: BTreeMap<NodeId, u64>,
    buried: BTreeSet<NodeId>,
    /// The shards that have done what the death of a node asks for, by that node and the node that asked.
    confirmations: BTreeMap<(NodeId, NodeId), BTreeSet<u16>>,
}

impl World {
    /// A shard's turn ends: what it has for the bus is sent.
    pub fn end_turn(&mut self, at: usize, shard: usize) -> bool {
        let mut ops = std::mem::take(&mut self.nodes[at].turns[shard]);
        if ops.is_empty() {
            return false;
        }
        if self.rng.one_in(2) {
            merge_answers(&mut ops);
        }
        for op in ops {
            self.trace(|| format!("node {at}/{shard} to the bus: {op:?}"));
            self.send(at, op);
        }
        true
    }

    /// What a node's bus does with one operation.
    pub fn send(&mut self, at: usize, op: BusOp) {
        if self.plan.is_alone {
            match op {
                BusOp::Listen { user, epoch } => {
                    let event = BusEvent::Listening { user, epoch };
                    let home = self.nodes[at].homes.of_user(user);
                    return self.nodes[at].post(Port::Subscriber, home, Item::Letter(Letter::Bus(event)));
                }
                BusOp::Unlisten { .. } => return,
                other => panic!("a node that is alone asks its bus for {other:?}"),
            }
        }
        let node = &mut self.nodes[at];
        match op {
            BusOp::Confirm { dead, asker, shard } => {
                let shards = node.shards.len();
                let confirmed = node.ends.confirmations.entry((dead, asker)).or_default();
                confirmed.insert(shard);
                if confirmed.len() == shards {
                    node.ends.confirmations.remove(&(dead, asker));
                    let id = node.id;
                    if asker == id {
                        node.keeper.reaping.confirmed(dead, id);
                    } else {
                        self.send(at, BusOp::ToNode(asker, Envelope::Confirmed { node: dead }));
                    }
                }
            }
            BusOp::Listen { user, epoch } if node.ends.listens => {
                node.ends.changes.push_back(BusOp::Listen { user, epoch });
            }
            BusOp::Listen { user, epoch } => {
                node.ends.channels.insert(user, epoch);
                self.event(at, Port::Subscriber, BusEvent::Listening { user, epoch });
            }
            BusOp::Unlisten { .. } => node.ends.changes.push_back(op),
            op if node.ends.publishes => {
                node.ends.next_command += 1;
                let command = node.ends.next_command;
                let line = (node.id, node.ends.line);
                node.ends.unanswered.push_back((command, op.clone()));
                self.redis.lines.entry(line).or_default().commands.push_back((command, op));
            }
            op => self.not_known(at, op),
        }
    }

    /// It is not known whether this was done.
    fn not_known(&mut self, at: usize, op: BusOp) {
        let event = match op {
            BusOp::ToNode(to, envelope) if comes_back(&envelope) => BusEvent::Unsent(to, envelope),
            BusOp::ToNode(..) => return,
            BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => BusEvent::Reached(ticket, None),
            other => panic!("not published: {other:?}"),
        };
        self.event(at, Port::Publisher, event);
    }

    /// From a thread of the bus to the shards' mailboxes.
    fn event(&mut self, at: usize, port: Port, event: BusEvent) {
        self.trace(|| format!("node {at} from the bus: {event:?}"));
        let node = &mut self.nodes[at];
        let homes = node.homes;
        let parts: Vec<(usize, BusEvent)> = match event {
            BusEvent::Envelope(from, envelope) => {
                let parts = envelope.split(&homes).into_iter();
                parts.map(|(shard, part)| (shard, BusEvent::Envelope(from, part))).collect()
            }
            BusEvent::Unsent(to, envelope) => {
                let parts = envelope.split(&homes).into_iter();
                parts.map(|(shard, part)| (shard, BusEvent::Unsent(to, part))).collect()
            }
            BusEvent::Reached(ticket, _) => vec![(usize::from(ticket.shard), event)],
            BusEvent::FromForeign(user, _) | BusEvent::Listening { user, .. } => vec![(homes.of_user(user), event)],
            BusEvent::Buried { .. } | BusEvent::Down | BusEvent::Up => {
                (0..homes.reactors()).map(|shard| (shard, event.clone())).collect()
            }
        };
        for (shard, event) in parts {
            node.post(port, shard, Item::Letter(Letter::Bus(event)));
        }
    }

    /// Nothing of this node is taken any more; all shards are notified, on behalf of `asker`, if there is one.
    pub fn bury(&mut self, at: usize, node: NodeId, asker: Option<NodeId>) {
        self.nodes[at].ends.buried.insert(node);
        self.event(at, Port::Subscriber, BusEvent::Buried { node, asker });
    }

    pub fn has_buried(&self, at: usize, node: NodeId) -> bool {
        self.nodes[at].ends.buried.contains(&node)
    }

    /// Redis executes a command.
    pub fn run_redis(&mut self) -> bool {
        if self.redis.is_away {
            return false;
        }
        let busy: Vec<_> =
            self.redis.lines.iter().filter(|(_, line)| !line.commands.is_empty()).map(|(key, _)| *key).collect();
        if busy.is_empty() {
            return false;
        }
        let key = self.rng.pick(&busy);
        let Some(line) = self.redis.lines.get_mut(&key) else { return false };
        let Some((command, op)) = line.commands.pop_front() else { return false };
        let reached = self.redis.execute(key.0, key.1, op);
        if let Some(line) = self.redis.lines.get_mut(&key) {
            if !line.is_broken {
                line.replies.push_back((command, reached));
            } else if line.commands.is_empty() {
                self.redis.lines.remove(&key);
            }
        }
        true
    }

    /// A node's publisher reads a reply.
    pub fn read_reply(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let Some(line) = self.redis.lines.get_mut(&(node.id, node.ends.line)) else { return false };
        let Some((command, reached)) = line.replies.pop_front() else { return false };
        let sent = node.ends.unanswered.pop_front();
        let Some((_, op)) = sent.filter(|(sent, _)| *sent == command) else { panic!("replies are out of order") };
        match op {
            BusOp::ToNode(to, envelope) if reached == 0 && comes_back(&envelope) => {
                self.event(at, Port::Publisher, BusEvent::Unsent(to, envelope));
            }
            BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => {
                self.event(at, Port::Publisher, BusEvent::Reached(ticket, Some(reached)));
            }
            _ => {}
        }
        true
    }

    /// A node's subscriber takes what has come, or what it has been asked to listen to.
    pub fn hear(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let Some(subscription) = self.redis.subscriptions.get_mut(&node.id).filter(|_| node.ends.listens) else {
            // What is to be listened to is noted for the next connection.
            return match node.ends.changes.pop_front() {
                Some(BusOp::Listen { user, epoch }) => {
                    node.ends.channels.insert(user, epoch);
                    self.event(at, Port::Subscriber, BusEvent::Listening { user, epoch });
                    true
                }
                Some(BusOp::Unlisten { user, epoch }) => {
                    node.ends.channels.retain(|listened, by| *listened != user || *by != epoch);
                    true
                }
                _ => false,
            };
        };
        let mut busy: Vec<Option<Source>> =
            subscription.queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(from, _)| Some(*from)).collect();
        if !node.ends.changes.is_empty() && subscription.is_attached && !subscription.is_dead {
            busy.push(None);
        }
        if busy.is_empty() {
            return false;
        }
        let Some(source) = self.rng.pick(&busy) else {
            match node.ends.changes.pop_front() {
                Some(BusOp::Listen { user, epoch }) => {
                    node.ends.channels.insert(user, epoch);
                    subscription.channels.insert(user);
                    self.event(at, Port::Subscriber, BusEvent::Listening { user, epoch });
                }
                Some(BusOp::Unlisten { user, epoch }) if node.ends.channels.get(&user) == Some(&epoch) => {
                    node.ends.channels.remove(&user);
                    subscription.channels.remove(&user);
                }
                _ => {}
            }
            return true;
        };
        let heard = subscription.queues.get_mut(&source).and_then(VecDeque::pop_front);
        match heard {
            Some(Heard::Payload { from, line, envelope }) => self.payload(at, from, line, envelope),
            Some(Heard::Chat(user, body)) => self.event(at, Port::Subscriber, BusEvent::FromForeign(user, body)),
            None => {}
        }
        true
    }

    fn payload(&mut self, at: usize, from: NodeId, line: u64, envelope: Envelope) {
        let ends = &mut self.nodes[at].ends;
        let newest = ends.newest.entry(from).or_insert(line);
        if *newest > line || ends.buried.contains(&from) {
            return self.trace(|| format!("node {at} drops of {from:?}, line {line}: {envelope:?}"));
        }
        *newest = line;
        match envelope {
            Envelope::Dead { node } => self.bury(at, node, Some(from)),
            Envelope::Confirmed { node } => self.nodes[at].keeper.reaping.confirmed(node, from),
            envelope => self.event(at, Port::Subscriber, BusEvent::Envelope(from, envelope)),
        }
    }

    // -- what breaks --------------------------------------------------------------------------------

    /// The connection on which a node publishes is gone. Some of what is in flight on it may still be executed.
    pub fn break_publisher(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if !std::mem::take(&mut node.ends.publishes) {
            return;
        }
        let key = (node.id, node.ends.line);
        let unanswered = std::mem::take(&mut node.ends.unanswered);
        if let Some(line) = self.redis.lines.get_mut(&key) {
            line.is_broken = true;
            line.replies.clear();
            line.commands.truncate(self.rng.below(line.commands.len() + 1));
            if line.commands.is_empty() {
                self.redis.lines.remove(&key);
            }
        }
        unanswered.into_iter().for_each(|(_, op)| self.not_known(at, op));
    }

    /// The connection on which a node listens is gone. Redis, or the node, may not have noticed yet.
    pub fn break_subscriber(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(subscription) = self.redis.subscriptions.get_mut(&node.id).filter(|_| node.ends.listens) else {
            return;
        };
        match self.rng.below(3) {
            // The node reads what has come before, and then the end.
            0 => subscription.is_attached = false,
            // What has come is lost, and what still comes counts as received.
            1 => {
                subscription.is_dead = true;
                for queue in subscription.queues.values_mut() {
                    queue.truncate(self.rng.below(queue.len() + 1));
                }
            }
            _ => self.hears_of_the_end(at),
        }
    }

    /// A node's subscriber sees that its connection is gone.
    pub fn hears_of_the_end(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if std::mem::take(&mut node.ends.listens) {
            self.redis.subscriptions.remove(&node.id);
            self.event(at, Port::Subscriber, BusEvent::Down);
        }
    }

    /// Whether a node's own beat comes back to it.
    pub fn hears_itself(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        let subscription = self.redis.subscriptions.get(&node.id);
        node.ends.publishes && subscription.is_some_and(|sub| node.ends.listens && sub.is_attached && !sub.is_dead)
    }

    /// What a node's bus looks after from time to time.
    pub fn mind_the_lines(&mut self, at: usize) {
        if self.redis.is_away {
            return;
        }
        let node = &mut self.nodes[at];
        if !node.ends.publishes && node.ends.can_publish {
            node.ends.line += 1;
            node.ends.publishes = true;
        }
        let is_broken = self.redis.subscriptions.get(&node.id).is_some_and(|sub| !sub.is_attached || sub.is_dead);
        if node.ends.listens && is_broken && self.rng.one_in(4) {
            return self.hears_of_the_end(at);
        }
        if !node.ends.listens && node.ends.can_listen {
            node.ends.listens = true;
            let channels = node.ends.channels.keys().copied().collect();
            let subscription = Subscription { is_attached: true, channels, ..Subscription::default() };
            self.redis.subscriptions.insert(node.id, subscription);
            self.event(at, Port::Subscriber, BusEvent::Up);
        }
    }

    /// Connects a node that has just been started.
    pub fn connect_bus(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        (node.ends.can_publish, node.ends.can_listen) = (true, true);
        if self.redis.is_away {
            return self.event(at, Port::Subscriber, BusEvent::Down);
        }
        (node.ends.publishes, node.ends.listens, node.ends.line) = (true, true, 1);
        self.redis.subscriptions.insert(node.id, Subscription { is_attached: true, ..Subscription::default() });
    }

    /// Redis goes away, for all nodes.
    pub fn redis_goes_away(&mut self) {
        self.redis.is_away = true;
        for at in 0..self.nodes.len() {
            self.break_publisher(at);
            self.hears_of_the_end(at);
        }
        // A Redis that is gone executes nothing; one that hangs does, later.
        if self.rng.one_in(2) {
            self.redis.lines.clear();
        }
    }

    /// It is back: another one, or the same.
    pub fn redis_comes_back(&mut self) {
        self.redis.is_away = false;
        if self.rng.one_in(2) {
            self.redis.lines.clear();
            self.redis.forget(self.clock);
        }
    }
}

/// Whether its sender hears that it may not have arrived. The others are repeated while they are not answered.
fn comes_back(envelope: &Envelope) -> bool {
    matches!(envelope, Envelope::Chat { .. } | Envelope::Nudge { .. })
}

/// The answers for one node become a part of the first of them, as a turn's operations may have it.
fn merge_answers(ops: &mut Vec<BusOp>) {
    let mut merged: Vec<BusOp> = Vec::new();
    for op in ops.drain(..) {
        if let BusOp::ToNode(to, Envelope::Answer(answers)) = &op {
            let first = merged.iter_mut().find_map(|op| match op {
                BusOp::ToNode(node, Envelope::Answer(first)) if node == to => Some(first),
                _ => None,
            });
            if let Some(first) = first {
                first.extend_from_slice(answers);
                continue;
            }
        }
        merged.push(op);
    }
    *ops = merged;
}
