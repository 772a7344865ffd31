//! What the model knows of a cluster at one moment.
//!
//! One sender writes messages 1, 2, … to one recipient. Each of the two is logged in on at most one of the three
//! nodes; the store says on which, in a claim. Everything is `Copy`, so a step copies a state and changes the copy.

use std::hash::{Hash, Hasher};
use std::ops::{Index, IndexMut};

use crate::list::List;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeName {
    #[default]
    A,
    B,
    C,
}

pub const NODES: [NodeName; 3] = [NodeName::A, NodeName::B, NodeName::C];

/// Something that there is once for each node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PerNode<T>([T; 3]);

impl<T> Index<NodeName> for PerNode<T> {
    type Output = T;
    fn index(&self, node: NodeName) -> &T {
        &self.0[node as usize]
    }
}

impl<T> IndexMut<NodeName> for PerNode<T> {
    fn index_mut(&mut self, node: NodeName) -> &mut T {
        &mut self.0[node as usize]
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct NodeSet(u8);

impl NodeSet {
    pub const NONE: NodeSet = NodeSet(0);
    pub const ALL: NodeSet = NodeSet(0b111);

    pub const fn of(nodes: &[NodeName]) -> NodeSet {
        let mut set = 0;
        let mut index = 0;
        while index < nodes.len() {
            set |= 1 << nodes[index] as u8;
            index += 1;
        }
        NodeSet(set)
    }

    pub fn contains(self, node: NodeName) -> bool {
        self.0 >> node as u8 & 1 == 1
    }

    pub fn insert(&mut self, node: NodeName) {
        self.0 |= 1 << node as u8;
    }

    pub fn remove(&mut self, node: NodeName) {
        self.0 &= !(1 << node as u8);
    }
}

impl std::fmt::Debug for NodeSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.debug_set().entries(NODES.iter().filter(|node| self.contains(**node))).finish()
    }
}

/// The sender's first message is 1, the next is 2, and so on.
pub type Message = u8;

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MessageSet(u8);

impl MessageSet {
    pub fn contains(self, message: Message) -> bool {
        self.0 >> message & 1 == 1
    }

    pub fn insert(&mut self, message: Message) {
        self.0 |= 1 << message;
    }

    pub fn has_later_than(self, message: Message) -> bool {
        self.0 >> (message + 1) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn without(self, other: MessageSet) -> MessageSet {
        MessageSet(self.0 & !other.0)
    }
}

impl std::fmt::Debug for MessageSet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.debug_set().entries((1..8).filter(|message| self.contains(*message))).finish()
    }
}

/// The name of a session, unique for good. 0 is no session's.
pub type Epoch = u8;

/// The name of a launch or a nudge, counted up by the node that publishes it. 0 is none's.
pub type Number = u8;

/// A user's row in the store: which node holds the user, by which session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Claim {
    pub node: NodeName,
    pub epoch: Epoch,
}

// What is published.

/// What became of a launch at the node that it was published to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    Delivered,
    Stored,
    /// The store there refused it: the client gets an error.
    Failed,
    /// It was not taken: no session of that epoch, or a gap before it.
    Gone,
}

/// A message that is launched to a session of the recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chat {
    pub message: Message,
    pub epoch: Epoch,
    pub number: Number,
    /// The launch or nudge before it that is unanswered; 0 if none is.
    pub after: Number,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Payload {
    /// The payload of a freed place in a list.
    #[default]
    Nothing,
    Chat(Chat),
    Answer {
        number: Number,
        verdict: Verdict,
    },
    Nudge {
        epoch: Epoch,
        number: Number,
    },
    Nudged {
        number: Number,
    },
}

/// A payload on its way through Redis, from its publisher's connection to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Published {
    pub to: NodeName,
    /// The publisher connection on which it was sent.
    pub connection: u8,
    pub payload: Payload,
}

// The sender's side: a route.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Toward {
    /// The store is asked which node has the recipient.
    #[default]
    Ask,
    /// Messages are launched to the node that holds this claim.
    Via(Claim),
    /// Nothing is launched; what is not settled goes to the store.
    Halted(Claim),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Fate {
    #[default]
    UnderWay,
    /// No answer came: it may have been taken, or may still be.
    GivenUp,
    /// It is known that it was not taken and never will be.
    NotTaken,
    /// The store has refused it after it was given up; it waits behind a fence.
    Refused,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Launch {
    pub message: Message,
    pub number: Number,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Nudge {
    #[default]
    None,
    /// Messages were stored past the holder, which is to be notified.
    Owed,
    /// It was published and is unanswered.
    Published(Number),
}

/// One transaction that stores a route's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RouteJob {
    pub messages: List<Message, 6>,
    /// The claim that the route knows; the messages are stored past its holder if it is in force.
    pub past: Option<Claim>,
    /// One of the messages was launched and given up.
    pub given_up: bool,
}

/// What the transaction of a [`RouteJob`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteOutcome {
    /// Stored, since no other node has the recipient.
    Stored,
    /// Stored, although the holder that the route knows has the recipient.
    StoredPast,
    /// Not stored: this claim is in force.
    Elsewhere(Claim),
    Refused,
    /// This node is marked dead.
    Marked,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Route {
    pub toward: Toward,
    /// Messages of the sender for which nothing has been done yet.
    pub waiting: List<Message, 6>,
    /// Messages that were launched and are not settled, in the order sent.
    pub launches: List<Launch, 6>,
    /// At most one, unless that rule is taken out.
    pub jobs: List<RouteJob, 2>,
    /// A job whose transaction is over while the node may not act on it.
    pub finished: Option<(RouteJob, RouteOutcome)>,
    pub nudge: Nudge,
    /// Refused messages wait for the nudge's answer, and nothing else is done before it.
    pub fenced: bool,
    pub last_number: Number,
}

// The recipient's side: a session.

/// Where the outcome of a message is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The sender, who is on the same node.
    #[default]
    Local,
    /// Another node, under the number of its launch.
    Remote(NodeName, Number),
    /// Nowhere any more: only with a rule taken out.
    Answered,
}

/// A message in a session's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Held {
    pub message: Message,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Logged in while this node's route to where the recipient was has messages under way.
    #[default]
    Waiting,
    /// The store is read, page by page; what comes is held.
    Draining,
    /// What is held is written to the client.
    Live,
    /// The connection is gone; what comes is stored.
    Ending,
}

/// One transaction for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionJob {
    Store(List<Held, 8>),
    /// Removes what the client has read of the last page, and reads the next.
    Read {
        read: List<Message, 24>,
    },
}

/// What the transaction of a [`SessionJob`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SessionOutcome {
    Stored,
    Refused,
    Page(List<Message, 24>),
    /// This node is marked dead.
    Marked,
}

/// What a session knows of another node's route to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Heard {
    /// The last launch or nudge that came.
    pub last: Number,
    /// There was a gap or a refusal: all is `Gone` until that node's nudge.
    pub fenced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Session {
    pub epoch: Epoch,
    /// The epoch by which the store has the claim, once the recipient has logged in where he is ending, until the
    /// node knows; 0 otherwise.
    pub next: Epoch,
    pub mode: Mode,
    pub held: List<Held, 8>,
    /// What is held is to be stored, not delivered.
    pub to_store: bool,
    /// A page that the client has not read yet.
    pub page: List<Message, 24>,
    /// What the client has read of the last page and the store has not removed.
    pub read: List<Message, 24>,
    /// Something may have been stored since the last page was read.
    pub read_again: bool,
    pub job: Option<SessionJob>,
    /// A second one at the same time: only with that rule taken out.
    pub second_job: Option<SessionJob>,
    /// A job whose transaction is over while the node may not act on it.
    pub finished: Option<(SessionJob, SessionOutcome)>,
    pub heard: PerNode<Heard>,
    /// Nudges that are answered when what was taken before them is delivered or committed.
    pub nudges: List<(NodeName, Number), 6>,
}

// Nodes.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Life {
    #[default]
    Running,
    /// Suspended: it does nothing, but may resume.
    Stopped,
    /// It has learned that it is marked dead, and has closed everything.
    Over,
}

/// What a node's own clock says of its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lease {
    #[default]
    Valid,
    Lapsed,
    /// Renewed in Redis after a lapse; it is valid again behind a look into the store.
    Renewed,
}

/// A node's connection to Redis, on which it is subscribed to its channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Line {
    #[default]
    Up,
    /// Redis has dropped the subscription, and the node has not noticed.
    Dropped,
    Down,
}

/// The sender as one node knows him.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sender {
    #[default]
    Absent,
    Online(Epoch),
    /// Logged out, the claim not released.
    Ending(Epoch),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    pub life: Life,
    pub lease: Lease,
    /// A look into the store, less than a second old, found the node not marked.
    pub look: bool,
    pub line: Line,
    /// The number of the publisher connection.
    pub connection: u8,
    /// What this node has published and Redis has not passed on, oldest first.
    pub published: List<Published, 16>,
    /// For each other node, the newest publisher connection from which something came.
    pub newest_connection: PerNode<u8>,
    /// The nodes of whose death this one was notified.
    pub told_dead: NodeSet,
    pub sender: Sender,
    /// How many messages of the sender's sessions here are not settled.
    pub unsettled: u8,
    pub route: Route,
    pub session: Option<Session>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Redis {
    #[default]
    Up,
    /// It answers no node and forgets nothing; leases run out meanwhile.
    Hung,
    /// It is gone, and all leases with it.
    Restarting,
}

/// How often each kind of fault has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    pub all: u8,
    pub line_breaks: u8,
    pub publisher_breaks: u8,
    pub stops: u8,
    pub lapses: u8,
    pub refusals: u8,
    pub doubts: u8,
    pub silences: u8,
    pub spills: u8,
    pub outages: u8,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// A message arrived for the first time after a later one of the same sender.
    OutOfOrder,
    /// A message was acked and is neither read nor in the store.
    AckedIsLost,
    /// A session read or wrote by a claim that is gone.
    ClaimIsGone,
    /// A node was marked dead because Redis was away for all nodes.
    HealthyNodeMarked,
    /// All has come to rest and a user can log in nowhere.
    LockedOut,
    /// All has come to rest and a route's messages are not settled.
    RouteIsStuck,
    /// All has come to rest, and the recipient, who is online and reads, does not get what is in the store.
    LeftInStore,
    /// It never comes to rest.
    Restless,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    // The store.
    pub sender_claim: Option<Claim>,
    pub recipient_claim: Option<Claim>,
    /// The recipient's stored messages, oldest first.
    pub rows: List<Message, 24>,
    pub marked: NodeSet,
    /// A commit that was given up and happens all the same: only with that rule taken out.
    pub late_commit: Option<(NodeName, RouteJob)>,
    /// A transaction of a session that another has replaced: only with that rule taken out.
    pub orphan: Option<(NodeName, List<Held, 8>)>,

    // Reaping.
    /// Nodes whose counter was read and whose lease was then missing; raising the counter ends it.
    pub suspected: NodeSet,
    /// Nodes whose lease was missing, the counter not read yet: only with that rule taken out.
    pub missed: NodeSet,
    /// For each marked node, the nodes that have confirmed its death.
    pub confirmed: PerNode<NodeSet>,

    // Redis.
    pub redis: Redis,
    pub leases: NodeSet,
    /// Redis came back less than a lease's time ago.
    pub recent: bool,

    pub nodes: PerNode<Node>,

    // What has happened so far.
    /// Messages that the sender has written.
    pub sent: u8,
    pub arrived: MessageSet,
    pub acked: MessageSet,
    pub sender_epoch: Epoch,
    pub recipient_epoch: Epoch,
    pub faults: Faults,
    /// Nodes that were stopped or had a line broken, apart from Redis being away for all.
    pub disturbed: NodeSet,
    pub violation: Option<Violation>,
}

impl State {
    /// The sender is on A, the recipient on B and reads; nothing has been sent.
    pub fn initial() -> State {
        let mut state = State {
            sender_claim: Some(Claim { node: NodeName::A, epoch: 1 }),
            recipient_claim: Some(Claim { node: NodeName::B, epoch: 1 }),
            leases: NodeSet::ALL,
            sender_epoch: 1,
            recipient_epoch: 1,
            ..State::default()
        };
        state.nodes[NodeName::A].sender = Sender::Online(1);
        state.nodes[NodeName::B].session = Some(Session { epoch: 1, mode: Mode::Live, ..Session::default() });
        state
    }

    /// Only the first violation counts: what follows it may be its consequence.
    pub fn violate(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }
}

/// A state has some two hundred fields. They are mixed into one word by a hasher that is fast without
/// optimisation, too, before the checker's own hasher gets it.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        let mut mixer = Mixer::default();
        self.sender_claim.hash(&mut mixer);
        self.recipient_claim.hash(&mut mixer);
        self.rows.hash(&mut mixer);
        self.marked.hash(&mut mixer);
        self.late_commit.hash(&mut mixer);
        self.orphan.hash(&mut mixer);
        self.suspected.hash(&mut mixer);
        self.missed.hash(&mut mixer);
        self.confirmed.hash(&mut mixer);
        self.redis.hash(&mut mixer);
        self.leases.hash(&mut mixer);
        self.recent.hash(&mut mixer);
        self.nodes.hash(&mut mixer);
        self.sent.hash(&mut mixer);
        self.arrived.hash(&mut mixer);
        self.acked.hash(&mut mixer);
        self.sender_epoch.hash(&mut mixer);
        self.recipient_epoch.hash(&mut mixer);
        self.faults.hash(&mut mixer);
        self.disturbed.hash(&mut mixer);
        self.violation.hash(&mut mixer);
        hasher.write_u64(mixer.finish());
    }
}

/// Multiplies each word with a large odd number and folds the two halves of the product.
pub struct Mixer(u64);

impl Default for Mixer {
    fn default() -> Self {
        Mixer(0x243F_6A88_85A3_08D3)
    }
}

impl Mixer {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.mix(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }
    fn write_usize(&mut self, value: usize) {
        self.mix(value as u64);
    }
    fn write_isize(&mut self, value: isize) {
        self.mix(value as u64);
    }
}
