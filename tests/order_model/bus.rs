//! Redis, the lines to it, and what a node does with what it reads from its channel.
//!
//! A node's channel is one queue for it in the real system. Here each publisher's payloads to a node wait in the order
//! in which it published them, and the addressee reads in the same step in which Redis passes one on: what different
//! nodes publish may interleave as it likes, and what is lost in a broken line is what was passed on to no node.

use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{
    Chat, Fate, Life, Line, NODES, Node, NodeName, NodeSet, Nudge, Number, Payload, Published, Redis, State, Toward,
    Verdict,
};

impl OrderModel {
    /// Without a line nothing is published.
    pub fn publish(&self, state: &mut State, from: NodeName, to: NodeName, payload: Payload) {
        let node = &mut state.nodes[from];
        if node.line != Line::Down && node.life != Life::Over {
            node.published.push(Published { to, connection: node.connection, payload });
        }
    }

    pub fn deliver(&self, state: &mut State, from: NodeName, to: NodeName, loss_is_noticed: bool) {
        let node = &mut state.nodes[from];
        let Some(position) = node.oldest_to(to, false) else { return };
        let published = node.published.remove(position);
        self.nudge_is_passed_on(state, from, published.payload);
        if state.nodes[to].line == Line::Up {
            self.read(state, to, from, published);
        } else if loss_is_noticed
            && self.acts(state, from)
            && let Payload::Chat(Chat { number, .. }) = published.payload
        {
            self.not_taken(state, from, number);
            self.advance_route(state, from);
        }
    }

    /// Without the rule that a nudge is done when it is answered.
    fn nudge_is_passed_on(&self, state: &mut State, from: NodeName, payload: Payload) {
        let Payload::Nudge { number, .. } = payload else { return };
        let done = !self.has(Rule::NudgeIsDoneWhenAnswered) && !state.nodes[from].route.fenced;
        if done && state.nodes[from].route.nudge == Nudge::Published(number) {
            self.end_nudge(state, from);
        }
    }

    pub fn deliver_stale(&self, state: &mut State, from: NodeName, to: NodeName) {
        let node = &mut state.nodes[from];
        let Some(position) = node.oldest_to(to, true) else { return };
        let published = node.published.remove(position);
        if state.nodes[to].line == Line::Up {
            self.read(state, to, from, published);
        }
    }

    pub fn lose_stale(&self, state: &mut State, from: NodeName) {
        let node = &mut state.nodes[from];
        let connection = node.connection;
        node.published.retain(|published| published.connection == connection);
    }

    /// Launches on the connection are given up: they may still be passed on. A nudge will be published again.
    pub fn break_publisher(&self, state: &mut State, name: NodeName) {
        let node = &mut state.nodes[name];
        let connection = node.connection;
        let route = &mut node.route;
        for published in node.published.as_slice() {
            let Payload::Chat(Chat { number, .. }) = published.payload else { continue };
            if published.connection != connection {
                continue;
            }
            for launch in route.launches.as_mut_slice() {
                if launch.number == number && launch.fate == Fate::UnderWay {
                    launch.fate = Fate::GivenUp;
                    route.toward = route.toward.halted();
                }
            }
        }
        if !node.published.is_empty() {
            node.connection += 1;
        }
    }

    pub fn drop_line(&self, state: &mut State, name: NodeName) {
        state.nodes[name].line = Line::Dropped;
    }

    pub fn notice_broken_line(&self, state: &mut State, name: NodeName) {
        self.break_publisher(state, name);
        state.nodes[name].line = Line::Down;
        self.advance_route(state, name);
    }

    pub fn reconnect(&self, state: &mut State, name: NodeName) {
        state.nodes[name].line = Line::Up;
        self.advance_route(state, name);
    }

    pub fn lose_redis(&self, state: &mut State, how: Redis) {
        state.faults.all += 1;
        state.faults.outages += 1;
        state.redis = how;
        for name in NODES {
            if state.nodes[name].line == Line::Up {
                self.drop_line(state, name);
            }
        }
        if how == Redis::Restarting {
            state.leases = NodeSet::NONE;
        }
    }

    /// A restart shows in how long Redis has been up; that it hung shows in the reaper's own lease.
    pub fn return_redis(&self, state: &mut State) {
        let rule = match state.redis {
            Redis::Restarting => Rule::RestartedRedisProvesNothing,
            Redis::Hung | Redis::Up => Rule::ReaperNeedsALeaseOfItsOwn,
        };
        state.recent = self.has(rule);
        state.redis = Redis::Up;
    }

    fn read(&self, state: &mut State, name: NodeName, from: NodeName, published: Published) {
        let node = &mut state.nodes[name];
        if published.connection < node.newest_connection[from] && self.has(Rule::OldConnectionsAreDropped) {
            return;
        }
        if published.connection > node.newest_connection[from] {
            node.newest_connection[from] = published.connection;
        }
        if node.told_dead.contains(from) && self.has(Rule::DeadNodesPayloadsAreDropped) {
            return;
        }
        match published.payload {
            Payload::Nothing => {}
            Payload::Chat(chat) => self.read_chat(state, name, from, chat),
            Payload::Answer { number, verdict } => self.read_answer(state, name, number, verdict),
            Payload::Nudge { epoch, number } => self.read_nudge(state, name, from, epoch, number),
            Payload::Nudged { number } => {
                let route = &mut state.nodes[name].route;
                if route.nudge == Nudge::Published(number) {
                    self.end_nudge(state, name);
                }
            }
        }
    }

    /// A launch was not taken, and never will be.
    pub fn not_taken(&self, state: &mut State, name: NodeName, number: Number) {
        let route = &mut state.nodes[name].route;
        for launch in route.launches.as_mut_slice() {
            if launch.number == number && launch.fate == Fate::UnderWay {
                launch.fate = Fate::NotTaken;
                if self.has(Rule::GoneHaltsTheRoute) {
                    route.toward = route.toward.halted();
                }
            }
        }
    }

    /// An answer settles the launch that it names, if that is still under way.
    fn read_answer(&self, state: &mut State, name: NodeName, number: Number, verdict: Verdict) {
        let route = &mut state.nodes[name].route;
        let asked = route
            .launches
            .as_slice()
            .iter()
            .position(|launch| launch.number == number && launch.fate == Fate::UnderWay);
        let Some(position) = asked else { return };
        match verdict {
            Verdict::Gone => self.not_taken(state, name, number),
            Verdict::Delivered | Verdict::Stored | Verdict::Failed => {
                let launch = route.launches.remove(position);
                self.settle(state, name, launch.message, verdict != Verdict::Failed);
            }
        }
        self.advance_route(state, name);
    }
}

impl Node {
    /// Where the oldest payload to a node is, of the current publisher connection or of a stale one.
    pub fn oldest_to(&self, to: NodeName, stale: bool) -> Option<usize> {
        for (position, published) in self.published.as_slice().iter().enumerate() {
            if published.to == to && (published.connection != self.connection) == stale {
                return Some(position);
            }
        }
        None
    }
}

impl Toward {
    pub fn halted(self) -> Toward {
        match self {
            Toward::Ask => Toward::Ask,
            Toward::Via(claim) | Toward::Halted(claim) => Toward::Halted(claim),
        }
    }
}
