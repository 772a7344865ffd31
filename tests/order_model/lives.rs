//! Which nodes live: leases, looks into the store, and how a node that seems dead is reaped.

use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{Lease, Life, Line, NodeName, NodeSet, Route, Sender, State, Violation};

impl OrderModel {
    /// A look lasts for a second of the real clock, so it is over when the node resumes.
    pub fn stop(&self, state: &mut State, name: NodeName) {
        state.faults.all += 1;
        state.faults.stops += 1;
        state.disturbed.insert(name);
        let node = &mut state.nodes[name];
        node.life = Life::Stopped;
        node.look = false;
    }

    pub fn resume(&self, state: &mut State, name: NodeName) {
        state.nodes[name].life = Life::Running;
        self.advance_route(state, name);
    }

    pub fn lapse_lease(&self, state: &mut State, name: NodeName) {
        state.faults.lapses += 1;
        state.leases.remove(name);
        state.nodes[name].lease = Lease::Lapsed;
    }

    pub fn lapse_own_lease(&self, state: &mut State, name: NodeName) {
        state.nodes[name].lease = Lease::Lapsed;
    }

    pub fn renew_lease(&self, state: &mut State, name: NodeName) {
        state.leases.insert(name);
        let node = &mut state.nodes[name];
        if node.lease == Lease::Lapsed {
            node.lease = Lease::Renewed;
        }
    }

    /// Fails on the mark; otherwise raises the counter.
    pub fn look_behind_renewal(&self, state: &mut State, name: NodeName) {
        if state.marked.contains(name) && self.has(Rule::LookFailsOnTheMark) {
            self.learn_of_mark(state, name);
            return;
        }
        self.raise_counter(state, name);
        let leased = state.leases.contains(name);
        let node = &mut state.nodes[name];
        node.lease = if leased { Lease::Valid } else { Lease::Lapsed };
        node.look = !leased;
        self.advance_route(state, name);
    }

    /// Fails on the mark; otherwise the node may act for a second.
    pub fn look_without_lease(&self, state: &mut State, name: NodeName) {
        if state.marked.contains(name) && self.has(Rule::LookFailsOnTheMark) {
            self.learn_of_mark(state, name);
            return;
        }
        if !self.has(Rule::LookWithoutLeaseRaisesNothing) {
            self.raise_counter(state, name);
        }
        state.nodes[name].look = true;
        self.advance_route(state, name);
    }

    /// A node that has read the counter before cannot mark this one.
    fn raise_counter(&self, state: &mut State, name: NodeName) {
        if self.has(Rule::MarkComparesTheCounter) {
            state.suspected.remove(name);
        }
    }

    /// The node closes everything at once, and stores and publishes nothing more.
    pub fn learn_of_mark(&self, state: &mut State, name: NodeName) {
        state.leases.remove(name);
        let node = &mut state.nodes[name];
        node.life = Life::Over;
        node.lease = Lease::Lapsed;
        node.look = false;
        node.line = Line::Down;
        node.sender = Sender::Absent;
        node.unsettled = 0;
        node.session = None;
        node.route = Route::default();
    }

    pub fn mark(&self, state: &mut State, name: NodeName) {
        state.marked.insert(name);
        state.suspected.remove(name);
        if state.faults.outages > 0 && !state.disturbed.contains(name) {
            state.violate(Violation::HealthyNodeMarked);
        }
    }

    /// The node drops what comes from the dead one, stores what it holds of it, and has its sessions read the store.
    pub fn tell_death(&self, state: &mut State, name: NodeName, dead: NodeName) {
        let node = &mut state.nodes[name];
        node.told_dead.insert(dead);
        if let Some(session) = &mut node.session {
            session.to_store |= session.has_of(dead);
        }
        if self.has(Rule::ToldSessionsReadTheStore) {
            self.read_the_store(state, name);
        }
        self.proceed_with_session(state, name);
    }

    /// Whether the node may confirm that it was notified.
    pub fn can_confirm(&self, state: &State, name: NodeName, dead: NodeName) -> bool {
        if !self.has(Rule::DeathIsConfirmedBehindWhatWasTaken) {
            return true;
        }
        state.nodes[name].session.is_none_or(|session| !session.has_of(dead))
    }

    pub fn free_claims(&self, state: &mut State, dead: NodeName) {
        for claim in [&mut state.sender_claim, &mut state.recipient_claim] {
            if claim.is_some_and(|claim| claim.node == dead) {
                *claim = None;
            }
        }
        if !state.marked.contains(dead) {
            state.suspected.remove(dead);
            state.confirmed[dead] = NodeSet::NONE;
        }
    }
}
