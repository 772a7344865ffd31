//! A route: how a node gets the sender's messages to a recipient who is somewhere else.

use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{
    Chat, Fate, Held, Launch, Line, Message, Mode, NodeName, Nudge, Number, Origin, Payload, Route, RouteJob,
    RouteOutcome, State, Toward,
};

impl OrderModel {
    /// The outcome of a message is reported to the sender, and it no longer counts against the release of his claim.
    pub fn settle(&self, state: &mut State, name: NodeName, message: Message, acked: bool) {
        let node = &mut state.nodes[name];
        node.unsettled = node.unsettled.saturating_sub(1);
        if acked {
            state.acked.insert(message);
        }
    }

    /// What a node may not act on does not get here, unless it is not checked.
    fn may_advance(&self, state: &State, name: NodeName) -> bool {
        self.acts_on(state, name, Rule::PayloadsAreChecked)
            || self.acts_on(state, name, Rule::ResultsAreChecked)
            || self.acts_on(state, name, Rule::TimersAreChecked)
    }

    /// Does what the route's state allows, as far as it goes.
    pub fn advance_route(&self, state: &mut State, name: NodeName) {
        if !self.may_advance(state, name) {
            return;
        }
        if state.nodes[name].session.is_some() {
            self.end_route_for_session(state, name);
            return;
        }
        self.publish_owed_nudge(state, name);
        let node = &mut state.nodes[name];
        if node.route.toward == Toward::Ask {
            let most_jobs = if self.has(Rule::RouteHasOneJobAtATime) { 1 } else { 2 };
            if !node.route.waiting.is_empty() && node.route.is_idle_but_for(most_jobs - 1) {
                self.begin_route_job(state, name);
            }
            return;
        }
        if !node.route.is_idle_but_for(0) && self.has(Rule::GoneHaltsTheRoute) {
            return;
        }
        let idle = node.route.waiting.is_empty() && node.route.nudge != Nudge::Owed;
        if let Toward::Via(claim) = node.route.toward
            && node.line == Line::Down
            && !idle
        {
            node.route.toward = Toward::Halted(claim);
        }
        if let Toward::Halted(claim) = node.route.toward {
            if !node.route.is_idle_but_for(0)
                || node.route.fenced
                || (node.route.has_launch(Fate::UnderWay) && self.has(Rule::HaltedRouteWaitsForAnswers))
            {
                return;
            }
            let anything = !node.route.waiting.is_empty() || node.route.has_launch_not_under_way();
            if anything {
                self.begin_route_job(state, name);
                return;
            }
            if node.line == Line::Down || node.route.has_launch(Fate::UnderWay) {
                return;
            }
            node.route.toward = Toward::Via(claim);
        }
        self.launch_waiting(state, name);
    }

    /// A nudge goes before everything else, when nothing is under way.
    fn publish_owed_nudge(&self, state: &mut State, name: NodeName) {
        let node = &mut state.nodes[name];
        let (Toward::Via(claim) | Toward::Halted(claim)) = node.route.toward else { return };
        let idle = node.route.is_idle_but_for(0) && !node.route.has_launch(Fate::UnderWay);
        if node.route.nudge == Nudge::Owed && node.line != Line::Down && idle {
            let number = node.route.next_number();
            node.route.nudge = Nudge::Published(number);
            self.publish(state, name, claim.node, Payload::Nudge { epoch: claim.epoch, number });
        }
    }

    fn launch_waiting(&self, state: &mut State, name: NodeName) {
        let Toward::Via(claim) = state.nodes[name].route.toward else { return };
        if state.nodes[name].line == Line::Down {
            return;
        }
        if !self.has(Rule::GoneHaltsTheRoute) {
            let route = &state.nodes[name].route;
            if route.is_idle_but_for(0) && route.has_launch(Fate::NotTaken) {
                self.begin_route_job(state, name);
            }
        }
        let waiting = state.nodes[name].route.waiting.take();
        for message in waiting.as_slice() {
            let route = &mut state.nodes[name].route;
            let after = self.predecessor(route);
            let number = route.next_number();
            route.launches.push(Launch { message: *message, number, fate: Fate::UnderWay });
            let payload = Payload::Chat(Chat { message: *message, epoch: claim.epoch, number, after });
            self.publish(state, name, claim.node, payload);
        }
    }

    /// The last launch or nudge of the route that is unanswered.
    fn predecessor(&self, route: &Route) -> Number {
        if let Some(launch) = route.launches.as_slice().last() {
            return launch.number;
        }
        match route.nudge {
            Nudge::Published(number) if self.has(Rule::NudgeIsAPredecessor) => number,
            _ => 0,
        }
    }

    /// Everything that is not settled goes to the store, in the order sent.
    fn begin_route_job(&self, state: &mut State, name: NodeName) {
        let route = &mut state.nodes[name].route;
        let mut job = RouteJob::default();
        if let Toward::Via(claim) | Toward::Halted(claim) = route.toward {
            job.past = Some(claim);
        }
        let launches = route.launches.take();
        for launch in launches.as_slice() {
            if launch.fate == Fate::UnderWay {
                route.launches.push(*launch);
            } else {
                job.given_up |= launch.fate == Fate::GivenUp;
                job.messages.push(launch.message);
            }
        }
        // Without the rule that `Gone` halts the route, what was not taken is stored alone.
        if !matches!(route.toward, Toward::Via(_)) {
            let waiting = route.waiting.take();
            job.messages.extend(&waiting);
        }
        route.jobs.push(job);
    }

    pub fn give_up_launch(&self, state: &mut State, name: NodeName) {
        let node = &mut state.nodes[name];
        if node.session.is_none() && matches!(node.route.toward, Toward::Via(_)) {
            state.faults.silences += 1;
        }
        let route = &mut node.route;
        for launch in route.launches.as_mut_slice() {
            if launch.fate == Fate::UnderWay {
                launch.fate = Fate::GivenUp;
                break;
            }
        }
        route.toward = route.toward.halted();
        self.advance_route(state, name);
    }

    // Transactions.

    /// The transaction of a job ends; its result is handled at once if the node may act.
    pub fn end_route_job(&self, state: &mut State, name: NodeName, position: usize, refused: bool) {
        let job = state.nodes[name].route.jobs.remove(position);
        let outcome = if refused { RouteOutcome::Refused } else { self.commit_route_job(state, name, &job) };
        if self.acts(state, name) {
            self.handle_route_result(state, name, job, outcome);
        } else {
            state.nodes[name].route.finished = Some((job, outcome));
        }
    }

    /// The node takes it for refused, which it is not.
    pub fn doubt_route_job(&self, state: &mut State, name: NodeName, late: bool) {
        let job = state.nodes[name].route.jobs.remove(0);
        if late {
            state.late_commit = Some((name, job));
        } else {
            self.commit_route_job(state, name, &job);
        }
        if self.acts(state, name) {
            self.handle_route_result(state, name, job, RouteOutcome::Refused);
        } else {
            state.nodes[name].route.finished = Some((job, RouteOutcome::Refused));
        }
    }

    pub fn commit_route_job(&self, state: &mut State, name: NodeName, job: &RouteJob) -> RouteOutcome {
        if !self.writes_pass(state, name) {
            return RouteOutcome::Marked;
        }
        let outcome = match (state.recipient_claim, job.past) {
            (None, _) => RouteOutcome::Stored,
            (Some(claim), _) if claim.node == name => RouteOutcome::Stored,
            (Some(claim), Some(past)) if claim.node == past.node => {
                if claim.epoch == past.epoch || !self.has(Rule::StoredPastOnlyThatSession) {
                    RouteOutcome::StoredPast
                } else {
                    RouteOutcome::Elsewhere(claim)
                }
            }
            (Some(_), None) if !self.has(Rule::AskingStoresOnlyForTheAbsent) => RouteOutcome::Stored,
            (Some(claim), _) => RouteOutcome::Elsewhere(claim),
        };
        if !matches!(outcome, RouteOutcome::Elsewhere(_)) {
            state.rows.extend(&job.messages);
        }
        outcome
    }

    pub fn handle_route_result(&self, state: &mut State, name: NodeName, job: RouteJob, outcome: RouteOutcome) {
        let has_session = state.nodes[name].session.is_some();
        let route = &mut state.nodes[name].route;
        match outcome {
            RouteOutcome::Marked if self.has(Rule::NodeLearnsFromWrites) => {
                self.learn_of_mark(state, name);
                return;
            }
            RouteOutcome::Refused if job.given_up && !has_session && self.has(Rule::RefusalAfterSilenceIsFenced) => {
                route.fenced = true;
                route.nudge = Nudge::Owed;
                route.toward = route.toward.halted();
                for message in job.messages.as_slice() {
                    route.launches.push(Launch { message: *message, number: 0, fate: Fate::Refused });
                }
            }
            RouteOutcome::Refused | RouteOutcome::Marked => {
                if let Toward::Halted(claim) = route.toward {
                    route.toward = Toward::Via(claim);
                }
                for message in job.messages.as_slice() {
                    self.settle(state, name, *message, false);
                }
            }
            RouteOutcome::Stored => {
                route.toward = Toward::Ask;
                route.nudge = Nudge::None;
                route.fenced = false;
                if !self.has(Rule::NumbersAreNotUsedAgain) && route.launches.is_empty() {
                    route.last_number = 0;
                }
                for message in job.messages.as_slice() {
                    self.settle(state, name, *message, true);
                }
            }
            RouteOutcome::StoredPast => {
                if self.has(Rule::StoredPastIsNudged) {
                    route.nudge = Nudge::Owed;
                }
                if let Toward::Halted(claim) = route.toward
                    && !route.has_launch_not_under_way()
                {
                    route.toward = Toward::Via(claim);
                }
                for message in job.messages.as_slice() {
                    self.settle(state, name, *message, true);
                }
            }
            RouteOutcome::Elsewhere(claim) => {
                let waiting = route.waiting.take();
                route.waiting.extend(&job.messages);
                route.waiting.extend(&waiting);
                route.nudge = Nudge::None;
                route.fenced = false;
                route.toward = Toward::Via(claim);
            }
        }
        self.advance_route(state, name);
    }

    // Nudges.

    /// The store is asked whether the nudge is still needed; if it is, it is published again under its number.
    pub fn look_after_nudge(&self, state: &mut State, name: NodeName) {
        if self.nudge_is_void(state, name) {
            self.end_nudge(state, name);
            return;
        }
        let route = &state.nodes[name].route;
        let (Toward::Via(claim) | Toward::Halted(claim)) = route.toward else { return };
        let Nudge::Published(number) = route.nudge else { return };
        self.publish(state, name, claim.node, Payload::Nudge { epoch: claim.epoch, number });
    }

    /// The nudge was answered or needs no answer: what waits behind it as behind a fence is settled.
    pub fn end_nudge(&self, state: &mut State, name: NodeName) {
        let route = &mut state.nodes[name].route;
        route.nudge = Nudge::None;
        if route.fenced {
            route.fenced = false;
            let launches = route.launches;
            route.launches.retain(|launch| launch.fate != Fate::Refused);
            for launch in launches.as_slice() {
                if launch.fate == Fate::Refused {
                    self.settle(state, name, launch.message, false);
                }
            }
        }
        self.advance_route(state, name);
    }

    // A route of a node on which the recipient has logged in.

    /// When nothing of the route is under way, the session takes over what it has, and reads the store.
    fn end_route_for_session(&self, state: &mut State, name: NodeName) {
        let node = &mut state.nodes[name];
        let busy =
            node.route.has_launch(Fate::UnderWay) || !node.route.jobs.is_empty() || node.route.finished.is_some();
        if busy {
            return;
        }
        let launches = node.route.launches.take();
        let waiting = node.route.waiting.take();
        node.route = Route { last_number: node.route.last_number, ..Route::default() };
        for launch in launches.as_slice() {
            if launch.fate == Fate::Refused {
                self.settle(state, name, launch.message, false);
            } else {
                self.take(state, name, Held { message: launch.message, origin: Origin::Local });
            }
        }
        for message in waiting.as_slice() {
            self.take(state, name, Held { message: *message, origin: Origin::Local });
        }
        let Some(session) = &mut state.nodes[name].session else { return };
        if session.mode == Mode::Waiting {
            session.mode = Mode::Draining;
            self.proceed_with_session(state, name);
        }
    }
}

impl Route {
    pub fn has_launch(&self, fate: Fate) -> bool {
        for launch in self.launches.as_slice() {
            if launch.fate == fate {
                return true;
            }
        }
        false
    }

    fn has_launch_not_under_way(&self) -> bool {
        for launch in self.launches.as_slice() {
            if launch.fate != Fate::UnderWay {
                return true;
            }
        }
        false
    }

    fn next_number(&mut self) -> Number {
        self.last_number += 1;
        self.last_number
    }

    /// Whether at most this number of transactions is under way, and no result waits to be handled.
    fn is_idle_but_for(&self, jobs: usize) -> bool {
        self.jobs.len() <= jobs && self.finished.is_none()
    }

    /// Whether nothing is on the route.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.launches.is_empty() && self.jobs.is_empty() && self.finished.is_none()
    }
}
