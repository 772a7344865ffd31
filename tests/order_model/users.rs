//! What the sender does.

use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{Claim, Held, Mode, NodeName, Origin, Sender, State, Violation};

impl OrderModel {
    pub fn send(&self, state: &mut State, name: NodeName) {
        let Sender::Online(epoch) = state.nodes[name].sender else { return };
        if state.sender_claim != Some(Claim { node: name, epoch }) {
            state.violate(Violation::ClaimIsGone);
            return;
        }
        state.sent += 1;
        let message = state.sent;
        let node = &mut state.nodes[name];
        node.unsettled += 1;
        let here = node.session.is_some_and(|session| session.mode != Mode::Waiting) && node.route.is_empty();
        if here {
            self.take(state, name, Held { message, origin: Origin::Local });
        } else {
            node.route.waiting.push(message);
            self.advance_route(state, name);
        }
    }

    pub fn sender_logs_out(&self, state: &mut State, name: NodeName) {
        let node = &mut state.nodes[name];
        if let Sender::Online(epoch) = node.sender {
            node.sender = Sender::Ending(epoch);
        }
    }

    pub fn sender_releases(&self, state: &mut State, name: NodeName) {
        let node = &mut state.nodes[name];
        if let Sender::Ending(epoch) = node.sender
            && state.sender_claim == Some(Claim { node: name, epoch })
        {
            state.sender_claim = None;
        }
        node.sender = Sender::Absent;
    }

    pub fn sender_logs_in(&self, state: &mut State, name: NodeName) {
        state.sender_epoch += 1;
        let epoch = state.sender_epoch;
        state.sender_claim = Some(Claim { node: name, epoch });
        state.nodes[name].sender = Sender::Online(epoch);
    }

    /// He logs in where he is ending: his claim's epoch is replaced. The route and what is not settled stay.
    pub fn sender_returns(&self, state: &mut State, name: NodeName) {
        self.sender_logs_in(state, name);
        if !self.has(Rule::FormerSessionsCount) {
            state.nodes[name].unsettled = 0;
        }
    }
}
