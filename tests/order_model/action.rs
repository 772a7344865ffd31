//! What can happen next.

use std::fmt;

use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{
    Chat, Fate, Lease, Life, Line, Mode, NODES, Node, NodeName, Nudge, Number, Payload, Redis, Sender, SessionJob,
    State, Toward,
};

macro_rules! kinds {
    ($($(#[doc = $text:literal])* $kind:ident,)+) => {
        /// Kinds of steps. Each is one indivisible act of the node that an [`Action`] names, of Redis or of the store.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[doc = $text])* $kind,)+
        }

        pub const EVERY_KIND: &[Kind] = &[$(Kind::$kind),+];
    };
}

kinds! {
    // Redis and the lines to it.
    /// Redis passes on the node's oldest payload to another one, which reads it; or Redis answers that no node is
    /// subscribed there.
    Deliver,
    /// The same, to an addressee whose connection is dead, which Redis has not noticed: no node learns of it.
    LoseUnnoticed,
    /// Redis passes on the oldest payload of a publisher connection that the node has given up.
    DeliverStale,
    /// Payloads of such a connection are lost.
    LoseStale,
    /// The node's publisher connection breaks, and is made anew.
    BreakPublisher,
    /// The node's subscription breaks, and the node does not know yet.
    BreakLine,
    NoticeBrokenLine,
    Reconnect,
    HangRedis,
    RestartRedis,
    ReturnRedis,
    /// Redis has been back for longer than a lease's time.
    SettleRedis,

    // Transactions.
    CommitRouteJob,
    /// The second of two, before the first: only with that rule taken out.
    CommitSecondRouteJob,
    RefuseRouteJob,
    /// It is committed, and the node takes it for refused: only with that rule taken out.
    DoubtRouteJob,
    /// The node takes it for refused, and it is committed later: only with that rule taken out.
    DelayRouteJob,
    CommitLate,
    /// That of a session that another has replaced: only with that rule taken out.
    CommitOrphan,
    HandleRouteResult,
    CommitSessionJob,
    RefuseSessionJob,
    HandleSessionResult,

    // Timers.
    /// A launch has had no answer for two seconds.
    GiveUpLaunch,
    /// A nudge has had no answer for two seconds: the store is asked, and it is published again.
    LookAfterNudge,

    // The recipient's session.
    /// What is held is written to the client.
    Flush,
    /// The client reads a page of stored messages.
    ReadPage,
    /// The client has read too slowly: what is held is stored.
    Spill,
    RecipientLogsOut,
    RecipientReleases,
    RecipientLogsIn,
    /// He logs in where he is ending: the store replaces his claim.
    RecipientClaims,
    /// The node knows that it is replaced.
    RecipientReturns,

    // The sender.
    Send,
    SenderLogsOut,
    SenderReleases,
    SenderLogsIn,
    SenderReturns,

    // A node's life.
    Stop,
    Resume,
    /// The node's lease runs out, in Redis and by its own clock.
    LapseLease,
    /// The node's lease runs out by its own clock only, after Redis has lost it.
    LapseOwnLease,
    RenewLease,
    /// The look behind a renewal.
    LookBehindRenewal,
    LookWithoutLease,
    EndLook,

    // Reaping, by any node.
    /// The counter is read, then the lease is missing.
    Suspect,
    /// The lease is missing, the counter is not read yet: only with that rule taken out.
    MissLease,
    Mark,
    TellDeath,
    ConfirmDeath,
    FreeClaims,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Action {
    pub kind: Kind,
    pub node: NodeName,
    /// The addressee of what `node` has published, or the dead node of whose death `node` is notified.
    pub other: NodeName,
}

impl fmt::Debug for Action {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self.kind {
            Kind::Deliver | Kind::LoseUnnoticed | Kind::DeliverStale => {
                write!(formatter, "{:?}({:?} to {:?})", self.kind, self.node, self.other)
            }
            Kind::TellDeath | Kind::ConfirmDeath => {
                write!(formatter, "{:?}({:?} of {:?})", self.kind, self.node, self.other)
            }
            Kind::HangRedis | Kind::RestartRedis | Kind::ReturnRedis | Kind::SettleRedis => {
                write!(formatter, "{:?}", self.kind)
            }
            _ => write!(formatter, "{:?}({:?})", self.kind, self.node),
        }
    }
}

/// The actions that are possible in a state.
struct Possible<'a> {
    model: &'a OrderModel,
    state: &'a State,
    actions: &'a mut Vec<Action>,
}

impl OrderModel {
    pub fn possible(&self, state: &State, actions: &mut Vec<Action>) {
        actions.clear();
        if state.violation.is_some() {
            return;
        }
        let mut possible = Possible { model: self, state, actions };
        possible.of_the_cluster();
        for node in NODES {
            possible.of_redis(node);
            if state.nodes[node].life == Life::Running {
                possible.of_lease(node);
                possible.of_route(node);
                possible.of_session(node);
                possible.of_users(node);
            }
            possible.of_the_store(node);
            possible.of_reaping(node);
        }
        if !self.bounds.prompt.is_empty() {
            self.keep_prompt(actions);
        }
    }

    /// If one of the prompt steps is possible, it is the only one.
    fn keep_prompt(&self, actions: &mut Vec<Action>) {
        for prompt in self.bounds.prompt {
            for index in 0..actions.len() {
                if actions[index].kind == *prompt {
                    let chosen = actions[index];
                    actions.clear();
                    actions.push(chosen);
                    return;
                }
            }
        }
    }

    /// Whether the node may act on its claims.
    pub fn acts(&self, state: &State, node: NodeName) -> bool {
        let node = &state.nodes[node];
        node.life == Life::Running && (node.lease == Lease::Valid || node.look)
    }

    /// The same for a kind of input that is not checked if `rule` is taken out.
    pub fn acts_on(&self, state: &State, node: NodeName, rule: Rule) -> bool {
        self.acts(state, node) || !self.rules.has(rule) && state.nodes[node].life == Life::Running
    }

    /// Whether a nudge needs no answer any more.
    pub fn nudge_is_void(&self, state: &State, node: NodeName) -> bool {
        let (Toward::Via(claim) | Toward::Halted(claim)) = state.nodes[node].route.toward else { return true };
        if state.recipient_claim != Some(claim) {
            return self.rules.has(Rule::StoreEndsNudges);
        }
        state.marked.contains(claim.node)
            && self.rules.has(Rule::MarkEndsNudges)
            && (!state.nodes[claim.node].look || !self.rules.has(Rule::MarkEndsNudgesBehindLooks))
    }

    /// Whether a nudge or its answer is still on its way.
    fn nudge_is_under_way(&self, state: &State, node: NodeName, number: Number) -> bool {
        let (Toward::Via(claim) | Toward::Halted(claim)) = state.nodes[node].route.toward else { return false };
        for published in state.nodes[node].published.as_slice() {
            if matches!(published.payload, Payload::Nudge { number: other, .. } if other == number) {
                return true;
            }
        }
        let holder = &state.nodes[claim.node];
        for published in holder.published.as_slice() {
            let answers = matches!(published.payload, Payload::Nudged { number: other } if other == number);
            if answers && published.to == node {
                return true;
            }
        }
        holder.session.is_some_and(|session| session.nudges.as_slice().contains(&(node, number)))
    }
}

/// How much a node may have under way: a bound of the model, not of the design.
const MOST_PUBLISHED: usize = 3;
/// What it publishes in answer to others may be more, or two nodes would wait for each other.
const MOST_ANSWERED: usize = 8;
const MOST_HELD: usize = 3;
const MOST_WAITING: usize = 3;

impl Possible<'_> {
    fn push(&mut self, kind: Kind, node: NodeName) {
        self.actions.push(Action { kind, node, other: node });
    }

    fn has(&self, rule: Rule) -> bool {
        self.model.rules.has(rule)
    }

    fn room_for_one_more_fault(&self) -> bool {
        self.state.faults.all < self.model.bounds.faults.all
    }

    /// Whether there is room for more input: otherwise lists would run over.
    fn node_has_room(&self, node: &Node) -> bool {
        node.published.len() <= MOST_PUBLISHED && self.state.rows.len() <= self.model.bounds.most_rows
    }

    fn of_the_cluster(&mut self) {
        let (state, most) = (self.state, self.model.bounds.faults);
        match state.redis {
            Redis::Up => {
                if state.faults.outages < most.outages && self.room_for_one_more_fault() {
                    self.push(Kind::HangRedis, NodeName::A);
                    self.push(Kind::RestartRedis, NodeName::A);
                }
                if state.recent && NODES.iter().all(|node| self.has_come_back(*node)) {
                    self.push(Kind::SettleRedis, NodeName::A);
                }
            }
            Redis::Hung | Redis::Restarting => self.push(Kind::ReturnRedis, NodeName::A),
        }
        if state.late_commit.is_some() {
            self.push(Kind::CommitLate, NodeName::A);
        }
        if state.orphan.is_some() {
            self.push(Kind::CommitOrphan, NodeName::A);
        }
    }

    /// Whether the node has done, since Redis came back, what a healthy one does within a lease's time.
    fn has_come_back(&self, name: NodeName) -> bool {
        let state = self.state;
        let node = &state.nodes[name];
        let healthy = node.life == Life::Running && !state.disturbed.contains(name) && !state.marked.contains(name);
        if healthy {
            state.leases.contains(name) && node.line == Line::Up && node.lease == Lease::Valid
        } else {
            state.leases.contains(name) || node.lease != Lease::Valid
        }
    }

    fn of_redis(&mut self, name: NodeName) {
        let (state, most) = (self.state, self.model.bounds.faults);
        let node = &state.nodes[name];
        let mut has_stale = false;
        for published in node.published.as_slice() {
            has_stale |= published.connection != node.connection;
        }
        if has_stale {
            self.push(Kind::LoseStale, name);
        }
        if state.redis == Redis::Up && !node.published.is_empty() {
            for to in NODES {
                self.of_channel(name, to);
            }
        }
        let faulty = self.model.bounds.faulty_nodes.contains(name);
        if state.redis == Redis::Up {
            if node.life == Life::Running && node.line == Line::Down {
                self.push(Kind::Reconnect, name);
            }
            if faulty && node.life != Life::Over && node.line == Line::Up && self.room_for_one_more_fault() {
                if state.faults.line_breaks < most.line_breaks {
                    self.push(Kind::BreakLine, name);
                }
                let worth_it = node.life == Life::Running && !has_stale && !node.published.is_empty();
                if worth_it && state.faults.publisher_breaks < most.publisher_breaks {
                    self.push(Kind::BreakPublisher, name);
                }
            }
        }
        if node.life == Life::Running && node.line == Line::Dropped {
            self.push(Kind::NoticeBrokenLine, name);
        }
        if faulty && node.life == Life::Running && state.faults.stops < most.stops && self.room_for_one_more_fault() {
            self.push(Kind::Stop, name);
        }
        if node.life == Life::Stopped {
            self.push(Kind::Resume, name);
        }
        let silent = node.life == Life::Stopped || node.line != Line::Up && self.has(Rule::DeafNodeLosesItsLease);
        if silent && node.life != Life::Over && state.leases.contains(name) && state.faults.lapses < most.lapses {
            self.push(Kind::LapseLease, name);
        }
        let lost = !state.leases.contains(name) && (state.redis != Redis::Up || state.recent);
        if lost && node.lease == Lease::Valid {
            self.push(Kind::LapseOwnLease, name);
        }
        if node.look {
            self.push(Kind::EndLook, name);
        }
    }

    /// What Redis may pass on from one node to another. Order between the channels of different nodes means nothing.
    fn of_channel(&mut self, from: NodeName, to: NodeName) {
        let node = &self.state.nodes[from];
        if !self.can_be_read_by(to) {
            return;
        }
        let next = |stale| node.oldest_to(to, stale).filter(|at| !self.is_early(to, node.published[*at].payload));
        let (next, next_stale) = (next(false), next(true));
        if let Some(position) = next {
            self.actions.push(Action { kind: Kind::Deliver, node: from, other: to });
            let is_chat = matches!(node.published[position].payload, Payload::Chat(_));
            let addressee = &self.state.nodes[to];
            if is_chat && addressee.line != Line::Up && addressee.life != Life::Over {
                self.actions.push(Action { kind: Kind::LoseUnnoticed, node: from, other: to });
            }
        }
        if next_stale.is_some() {
            self.actions.push(Action { kind: Kind::DeliverStale, node: from, other: to });
        }
    }

    /// Whether a payload is for a session whose claim is in the store, and which its node does not know yet. It waits
    /// for it there; in the model it waits to be read, and what is behind it.
    fn is_early(&self, to: NodeName, payload: Payload) -> bool {
        let addressee = &self.state.nodes[to];
        let next = addressee.session.map_or(0, |session| session.next);
        let (Payload::Chat(Chat { epoch, .. }) | Payload::Nudge { epoch, .. }) = payload else { return false };
        addressee.line == Line::Up && next != 0 && epoch == next
    }

    /// Whether Redis may pass a payload on to the node now: if it is subscribed, it reads it in the same step.
    fn can_be_read_by(&self, name: NodeName) -> bool {
        let node = &self.state.nodes[name];
        if node.line != Line::Up {
            return true;
        }
        let has_room = node.published.len() <= MOST_ANSWERED;
        has_room && self.model.acts_on(self.state, name, Rule::PayloadsAreChecked)
    }

    fn of_lease(&mut self, name: NodeName) {
        let state = self.state;
        let node = &state.nodes[name];
        let leased = state.leases.contains(name);
        let hears = node.line == Line::Up || !self.has(Rule::DeafNodeLosesItsLease);
        match node.lease {
            Lease::Valid => {
                if !leased && state.redis == Redis::Up && hears {
                    self.push(Kind::RenewLease, name);
                }
            }
            Lease::Lapsed => {
                if state.redis == Redis::Up && hears {
                    self.push(Kind::RenewLease, name);
                }
                if !node.look && self.has(Rule::LookStandsInForTheLease) {
                    self.push(Kind::LookWithoutLease, name);
                }
            }
            Lease::Renewed => self.push(Kind::LookBehindRenewal, name),
        }
    }

    fn of_route(&mut self, name: NodeName) {
        let (state, most) = (self.state, self.model.bounds.faults);
        let node = &state.nodes[name];
        let route = &node.route;
        if route.finished.is_some() && self.model.acts_on(state, name, Rule::ResultsAreChecked) {
            self.push(Kind::HandleRouteResult, name);
        }
        if !self.model.acts_on(state, name, Rule::TimersAreChecked) {
            return;
        }
        let mut under_way = false;
        for launch in route.launches.as_slice() {
            under_way |= launch.fate == Fate::UnderWay;
        }
        if under_way && self.has(Rule::SilenceHaltsTheRoute) {
            let only_one_more = node.session.is_some() || matches!(route.toward, Toward::Halted(_));
            if only_one_more || state.faults.silences < most.silences {
                self.push(Kind::GiveUpLaunch, name);
            }
        }
        let ends = |possible: &Self| possible.model.nudge_is_void(state, name);
        match route.nudge {
            Nudge::None => {}
            Nudge::Owed => {
                if ends(self) {
                    self.push(Kind::LookAfterNudge, name);
                }
            }
            Nudge::Published(number) => {
                let repeats = node.line == Line::Up
                    && self.has(Rule::NudgeIsRepeated)
                    && node.published.len() <= MOST_PUBLISHED
                    && !self.model.nudge_is_under_way(state, name, number);
                if ends(self) || repeats {
                    self.push(Kind::LookAfterNudge, name);
                }
            }
        }
    }

    fn of_session(&mut self, name: NodeName) {
        let (state, bounds) = (self.state, &self.model.bounds);
        let node = &state.nodes[name];
        let Some(session) = &node.session else { return };
        let acts = self.model.acts(state, name);
        if session.finished.is_some() && self.model.acts_on(state, name, Rule::ResultsAreChecked) {
            self.push(Kind::HandleSessionResult, name);
        }
        if self.model.acts_on(state, name, Rule::FlushIsChecked) {
            if session.mode == Mode::Live && !session.held.is_empty() && !session.to_store {
                self.push(Kind::Flush, name);
            }
            if !session.page.is_empty() {
                self.push(Kind::ReadPage, name);
            }
        }
        if !acts {
            return;
        }
        let spills = matches!(session.mode, Mode::Draining | Mode::Live) && !session.held.is_empty();
        if spills && !session.to_store && state.faults.spills < bounds.faults.spills {
            self.push(Kind::Spill, name);
        }
        if session.next != 0 {
            return self.push(Kind::RecipientReturns, name);
        }
        let more_sessions = state.recipient_epoch < bounds.recipient_sessions;
        if session.mode != Mode::Ending {
            if more_sessions {
                self.push(Kind::RecipientLogsOut, name);
            }
            return;
        }
        let nothing_owed = session.held.is_empty()
            && session.job.is_none()
            && session.second_job.is_none()
            && session.finished.is_none()
            && session.nudges.is_empty();
        if state.late_commit.is_some() || !self.model.writes_pass(state, name) {
            return;
        }
        if nothing_owed {
            self.push(Kind::RecipientReleases, name);
        }
        let own = state.recipient_claim.is_some_and(|claim| claim.node == name && claim.epoch == session.epoch);
        let may_return = more_sessions && own && bounds.recipient_nodes.contains(name);
        if may_return
            && self.has(Rule::UserMayReturnAtOnce)
            && (nothing_owed || !self.has(Rule::ReturnWaitsForWhatIsOwed))
        {
            self.push(Kind::RecipientClaims, name);
        }
    }

    fn of_users(&mut self, name: NodeName) {
        let (state, bounds) = (self.state, &self.model.bounds);
        let node = &state.nodes[name];
        let acts = self.model.acts(state, name);
        let more_sessions = state.sender_epoch < bounds.sender_sessions;
        let may_log_in = more_sessions && bounds.sender_nodes.contains(name) && self.model.writes_pass(state, name);
        match node.sender {
            Sender::Absent => {
                if acts && may_log_in && state.sender_claim.is_none() {
                    self.push(Kind::SenderLogsIn, name);
                }
            }
            Sender::Online(_) => {
                let room = self.node_has_room(node)
                    && node.route.waiting.len() < MOST_WAITING
                    && node.session.is_none_or(|session| session.held.len() < MOST_HELD);
                if state.sent < bounds.messages && room && self.model.acts_on(state, name, Rule::InputIsChecked) {
                    self.push(Kind::Send, name);
                }
                if acts && more_sessions {
                    self.push(Kind::SenderLogsOut, name);
                }
            }
            Sender::Ending(epoch) => {
                if !acts {
                    return;
                }
                let settled = node.unsettled == 0 || !self.has(Rule::ClaimWaitsForSettlement);
                let answered = node.route.nudge == Nudge::None || !self.has(Rule::ClaimWaitsForNudges);
                if settled && answered && self.model.writes_pass(state, name) {
                    self.push(Kind::SenderReleases, name);
                }
                let own = state.sender_claim.is_some_and(|claim| claim.node == name && claim.epoch == epoch);
                if may_log_in && own && self.has(Rule::UserMayReturnAtOnce) {
                    self.push(Kind::SenderReturns, name);
                }
            }
        }
        let may_log_in = state.recipient_epoch < bounds.recipient_sessions
            && bounds.recipient_nodes.contains(name)
            && self.model.writes_pass(state, name)
            && state.late_commit.is_none();
        if acts && may_log_in && node.session.is_none() && state.recipient_claim.is_none() {
            self.push(Kind::RecipientLogsIn, name);
        }
    }

    /// Transactions that were begun go on while their node is stopped or may not act.
    fn of_the_store(&mut self, name: NodeName) {
        let (state, most) = (self.state, self.model.bounds.faults);
        let node = &state.nodes[name];
        if state.late_commit.is_some() {
            return;
        }
        let may_refuse = state.faults.refusals < most.refusals && self.room_for_one_more_fault();
        let has_room = state.rows.len() <= self.model.bounds.most_rows;
        if !node.route.jobs.is_empty() && node.route.finished.is_none() && has_room {
            self.push(Kind::CommitRouteJob, name);
            if node.route.jobs.len() > 1 {
                self.push(Kind::CommitSecondRouteJob, name);
            }
            if may_refuse {
                self.push(Kind::RefuseRouteJob, name);
            }
            let doubts = !self.has(Rule::DoubtIsLookedUp) && state.faults.doubts < most.doubts;
            if doubts && self.room_for_one_more_fault() {
                self.push(Kind::DoubtRouteJob, name);
                self.push(Kind::DelayRouteJob, name);
            }
        }
        if let Some(session) = &node.session
            && session.finished.is_none()
            && let Some(job) = session.job
            && (has_room || matches!(job, SessionJob::Read { .. }))
        {
            self.push(Kind::CommitSessionJob, name);
            if may_refuse && matches!(job, SessionJob::Store(_)) {
                self.push(Kind::RefuseSessionJob, name);
            }
        }
    }

    fn of_reaping(&mut self, dead: NodeName) {
        let state = self.state;
        let marked = state.marked.contains(dead);
        let missing = state.redis == Redis::Up && !state.leases.contains(dead) && !state.recent;
        if !marked {
            if self.has(Rule::CounterIsReadFirst) {
                if missing && !state.suspected.contains(dead) {
                    self.push(Kind::Suspect, dead);
                }
            } else if state.missed.contains(dead) {
                if !state.suspected.contains(dead) {
                    self.push(Kind::Suspect, dead);
                }
            } else if missing {
                self.push(Kind::MissLease, dead);
            }
            if state.suspected.contains(dead) {
                self.push(Kind::Mark, dead);
            }
        }
        let to_be_freed = marked || !self.has(Rule::OnlyTheMarkedAreFreed) && state.suspected.contains(dead);
        let has_claims = [state.sender_claim, state.recipient_claim].iter().flatten().any(|claim| claim.node == dead);
        if !to_be_freed || !has_claims {
            return;
        }
        let mut all_confirmed = true;
        for name in NODES {
            if name == dead {
                continue;
            }
            let node = &state.nodes[name];
            let confirmed = state.confirmed[dead].contains(name);
            let must_confirm = if self.has(Rule::AllUnmarkedConfirm) {
                !state.marked.contains(name) || node.look && self.has(Rule::MarkExcusesBehindLooks)
            } else {
                state.leases.contains(name)
            };
            all_confirmed &= confirmed || !must_confirm;
            if self.has(Rule::DeathIsTold)
                && !confirmed
                && state.redis == Redis::Up
                && node.line == Line::Up
                && self.model.acts(state, name)
            {
                if !node.told_dead.contains(dead) {
                    self.actions.push(Action { kind: Kind::TellDeath, node: name, other: dead });
                } else if self.model.can_confirm(state, name, dead) {
                    self.actions.push(Action { kind: Kind::ConfirmDeath, node: name, other: dead });
                }
            }
        }
        let looks_over = !state.nodes[dead].look || !self.has(Rule::FreeingWaitsForLooks);
        if (all_confirmed || !self.has(Rule::DeathIsTold)) && looks_over && state.late_commit.is_none() {
            self.push(Kind::FreeClaims, dead);
        }
    }
}
