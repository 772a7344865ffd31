//! How far the model goes.

use crate::action::Kind;
use crate::state::{Faults, NodeName, NodeSet};

/// What may happen, and how often. Everything is as often as it likes that is not named here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Messages that the sender writes.
    pub messages: u8,
    /// Sessions of the sender, the first included, and the nodes on which later ones may be.
    pub sender_sessions: u8,
    pub sender_nodes: NodeSet,
    /// The same of the recipient.
    pub recipient_sessions: u8,
    pub recipient_nodes: NodeSet,
    /// With more rows than this in the store nothing is stored until the recipient has read some.
    pub most_rows: usize,
    /// How often each kind of fault may happen, and `all` of them together, lapses, silences and spills aside.
    pub faults: Faults,
    /// Nodes that may be stopped, and whose lines may break.
    pub faulty_nodes: NodeSet,
    /// Steps that are taken as soon as they are possible, the first of this list first, whatever else could happen.
    /// That leaves out interleavings: what is found is a run of the model all the same.
    pub prompt: &'static [Kind],
}

impl Bounds {
    /// Two messages, no user moves, nothing fails.
    pub const CALM: Bounds = Bounds {
        messages: 2,
        sender_sessions: 1,
        sender_nodes: NodeSet::NONE,
        recipient_sessions: 1,
        recipient_nodes: NodeSet::NONE,
        most_rows: 6,
        faults: NO_FAULTS,
        faulty_nodes: NodeSet::of(&[NodeName::B]),
        prompt: &[],
    };

    pub const fn with_messages(mut self, messages: u8) -> Bounds {
        self.messages = messages;
        self
    }

    pub const fn with_faults(mut self, faults: Faults) -> Bounds {
        self.faults = faults;
        self
    }

    pub const fn at_nodes(mut self, nodes: &[NodeName]) -> Bounds {
        self.faulty_nodes = NodeSet::of(nodes);
        self
    }

    /// The sender has this number of sessions, the later ones on these nodes.
    pub const fn with_sender(mut self, sessions: u8, nodes: &[NodeName]) -> Bounds {
        self.sender_sessions = sessions;
        self.sender_nodes = NodeSet::of(nodes);
        self
    }

    /// The same of the recipient.
    pub const fn with_recipient(mut self, sessions: u8, nodes: &[NodeName]) -> Bounds {
        self.recipient_sessions = sessions;
        self.recipient_nodes = NodeSet::of(nodes);
        self
    }

    pub const fn with_prompt(mut self, prompt: &'static [Kind]) -> Bounds {
        self.prompt = prompt;
        self
    }
}

pub const NO_FAULTS: Faults = Faults {
    all: 0,
    line_breaks: 0,
    publisher_breaks: 0,
    stops: 0,
    lapses: 0,
    refusals: 0,
    doubts: 0,
    silences: 0,
    spills: 0,
    outages: 0,
};
