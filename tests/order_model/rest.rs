//! What becomes of a state if nothing more fails: everything must come to rest, and no user may be locked out.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

use crate::action::{Action, Kind};
use crate::bounds::Bounds;
use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{
    Faults, Lease, Life, Line, Mixer, Mode, NODES, NodeName, NodeSet, Nudge, Redis, Sender, State, Toward, Violation,
};

/// How a state goes on. In each, the sender logs out, no user logs in, and nothing more fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Future {
    /// What is broken is mended.
    Mended,
    /// Nodes that are stopped or have no line stay so for good.
    BrokenForGood,
    /// Redis, which is away, stays away for good.
    NoRedisForGood,
}

/// More steps than any run to rest takes.
const MOST_STEPS: usize = 300;

/// What was found for states that were already looked at. Runs from different states soon meet.
pub type Known = HashMap<u64, Option<Violation>, BuildHasherDefault<Mixer>>;

impl OrderModel {
    /// What goes wrong in one of the futures of a state.
    pub fn violation_at_rest(&self, state: &State, known: &mut Known) -> Option<Violation> {
        if state.violation.is_some() {
            return None;
        }
        let mut found = self.violation_in(state, Future::Mended, known);
        if found.is_none() && NODES.iter().any(|node| is_broken(state, *node)) {
            found = self.violation_in(state, Future::BrokenForGood, known);
        }
        if found.is_none() && state.redis != Redis::Up {
            found = self.violation_in(state, Future::NoRedisForGood, known);
        }
        found
    }

    fn violation_in(&self, state: &State, future: Future, known: &mut Known) -> Option<Violation> {
        let mut passed = Vec::new();
        let found = self.run_to_rest(state, future, known, &mut passed, &mut |_, _| {});
        for key in passed {
            known.insert(key, found);
        }
        found
    }

    /// The same, reporting each step.
    pub fn trace_to_rest(&self, state: &State, tell: &mut dyn FnMut(Future, Action)) -> Option<Violation> {
        for future in [Future::Mended, Future::BrokenForGood, Future::NoRedisForGood] {
            if self.violation_in(state, future, &mut Known::default()).is_some() {
                let (mut known, mut passed) = (Known::default(), Vec::new());
                return self.run_to_rest(state, future, &mut known, &mut passed, &mut |future, action| {
                    tell(future, action);
                });
            }
        }
        None
    }

    fn run_to_rest(
        &self,
        state: &State,
        future: Future,
        known: &mut Known,
        passed: &mut Vec<u64>,
        tell: &mut dyn FnMut(Future, Action),
    ) -> Option<Violation> {
        let mut broken = NodeSet::NONE;
        if future == Future::BrokenForGood {
            for node in NODES {
                if is_broken(state, node) {
                    broken.insert(node);
                }
            }
        }
        let run = Run { model: self.for_the_rest(), future, broken };
        let mut state = *state;
        for node in NODES {
            if broken.contains(node) {
                state.disturbed.insert(node);
            }
        }
        state.faults = Faults { outages: state.faults.outages, ..Faults::default() };
        for node in NODES {
            if self.acts(&state, node) && matches!(state.nodes[node].sender, Sender::Online(_)) {
                run.model.sender_logs_out(&mut state, node);
            }
        }
        let mut actions = Vec::new();
        let mut last = None;
        for phase in [Phase::ClientsDoNotRead, Phase::ClientsRead] {
            loop {
                let forced = run.look_of_the_suspected(&state, last);
                let key = run.key(&state, phase, forced);
                if let Some(found) = known.get(&key) {
                    return *found;
                }
                if passed.len() > MOST_STEPS {
                    return run.who_is_stuck(&state).or(Some(Violation::Restless));
                }
                passed.push(key);
                let Some(action) = forced.or_else(|| run.next_action(&state, phase, &mut actions)) else { break };
                tell(future, action);
                run.model.step(&mut state, action);
                last = Some(action);
                if state.violation.is_some() {
                    return state.violation;
                }
            }
            let found = match phase {
                Phase::ClientsDoNotRead => run.who_is_stuck(&state),
                Phase::ClientsRead => run.what_is_left(&state),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The model with bounds within which a run comes to rest.
    fn for_the_rest(&self) -> OrderModel {
        let unlimited = Faults { silences: u8::MAX, spills: u8::MAX, lapses: u8::MAX, ..Faults::default() };
        let bounds = Bounds {
            messages: 0,
            sender_sessions: 0,
            recipient_sessions: 0,
            most_rows: usize::MAX,
            faults: unlimited,
            ..Bounds::CALM
        };
        OrderModel { rules: self.rules, bounds }
    }
}

fn is_broken(state: &State, node: NodeName) -> bool {
    let redis_is_up = state.redis == Redis::Up;
    let node_is = &state.nodes[node];
    match node_is.life {
        Life::Running => node_is.line != Line::Up && (redis_is_up || state.disturbed.contains(node)),
        Life::Stopped => true,
        Life::Over => false,
    }
}

/// Nothing waits for a reader: first the recipient's client reads nothing, and what must settle, settles.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    ClientsDoNotRead,
    ClientsRead,
}

struct Run {
    model: OrderModel,
    future: Future,
    broken: NodeSet,
}

impl Run {
    fn key(&self, state: &State, phase: Phase, forced: Option<Action>) -> u64 {
        let mut mixer = BuildHasherDefault::<Mixer>::default().build_hasher();
        state.hash(&mut mixer);
        (self.future, self.broken, phase, forced).hash(&mut mixer);
        mixer.finish()
    }

    fn next_action(&self, state: &State, phase: Phase, actions: &mut Vec<Action>) -> Option<Action> {
        self.model.possible(state, actions);
        let mut chosen = None;
        let mut chosen_rank = u8::MAX;
        for action in actions.iter() {
            if let Some(rank) = self.rank(state, phase, *action)
                && rank < chosen_rank
            {
                chosen = Some(*action);
                chosen_rank = rank;
            }
        }
        chosen
    }

    /// A node that is deaf for good looks into the store as often as it can, and so between any two steps of its
    /// reapers.
    fn look_of_the_suspected(&self, state: &State, last: Option<Action>) -> Option<Action> {
        let last = last?;
        let node = &state.nodes[last.node];
        let deaf = self.broken.contains(last.node)
            && node.life == Life::Running
            && node.line != Line::Up
            && node.lease == Lease::Lapsed
            && self.model.has(Rule::LookStandsInForTheLease);
        if deaf && last.kind == Kind::Suspect {
            let kind = if node.look { Kind::EndLook } else { Kind::LookWithoutLease };
            return Some(Action { kind, ..last });
        }
        let goes_on = deaf && last.kind == Kind::EndLook && state.suspected.contains(last.node);
        goes_on.then_some(Action { kind: Kind::LookWithoutLease, ..last })
    }

    /// Steps of a lower rank come first.
    fn rank(&self, state: &State, phase: Phase, action: Action) -> Option<u8> {
        let stays_broken = self.broken.contains(action.node);
        let rank = match action.kind {
            Kind::ReturnRedis if self.future == Future::NoRedisForGood => return None,
            Kind::Resume | Kind::Reconnect if stays_broken => return None,
            Kind::LapseLease if !stays_broken && self.future != Future::NoRedisForGood => return None,
            Kind::EndLook if !state.marked.contains(action.node) => return None,
            Kind::Flush | Kind::ReadPage if phase == Phase::ClientsDoNotRead => return None,
            Kind::Spill if phase == Phase::ClientsRead => return None,
            Kind::Resume | Kind::ReturnRedis => 0,
            Kind::HandleRouteResult | Kind::HandleSessionResult | Kind::RecipientReturns => 1,
            Kind::LoseStale => 2,
            Kind::NoticeBrokenLine
            | Kind::Reconnect
            | Kind::RenewLease
            | Kind::LookBehindRenewal
            | Kind::LookWithoutLease
            | Kind::LapseLease
            | Kind::LapseOwnLease
            | Kind::EndLook => 3,
            Kind::Deliver => 4,
            Kind::CommitRouteJob | Kind::CommitSessionJob | Kind::CommitLate | Kind::CommitOrphan => 5,
            Kind::Flush | Kind::ReadPage => 6,
            Kind::Spill => 7,
            Kind::SenderReleases | Kind::RecipientReleases => 8,
            Kind::SettleRedis
            | Kind::MissLease
            | Kind::Suspect
            | Kind::Mark
            | Kind::TellDeath
            | Kind::ConfirmDeath
            | Kind::FreeClaims => 9,
            Kind::LookAfterNudge => 10,
            Kind::GiveUpLaunch => 11,
            _ => return None,
        };
        Some(rank)
    }

    fn is_healthy(&self, state: &State, node: NodeName) -> bool {
        state.nodes[node].life == Life::Running && !self.broken.contains(node)
    }

    /// Without Redis a nudge cannot be answered. A node that waits for one waits on, as long as its holder may still
    /// have the recipient.
    fn waits_for_redis(&self, state: &State, node: NodeName) -> bool {
        let route = &state.nodes[node].route;
        let (Toward::Via(claim) | Toward::Halted(claim)) = route.toward else { return false };
        self.future == Future::NoRedisForGood
            && route.nudge != Nudge::None
            && state.recipient_claim == Some(claim)
            && !state.marked.contains(claim.node)
    }

    fn who_is_stuck(&self, state: &State) -> Option<Violation> {
        if NODES.iter().all(|node| !self.is_healthy(state, *node)) {
            return None;
        }
        for node in NODES {
            let route = &state.nodes[node].route;
            let settled = route.is_empty() && !route.fenced;
            if self.is_healthy(state, node) && !settled && !self.waits_for_redis(state, node) {
                return Some(Violation::RouteIsStuck);
            }
        }
        if let Some(claim) = state.sender_claim {
            let may_return = self.waits_for_redis(state, claim.node)
                && self.model.has(Rule::UserMayReturnAtOnce)
                && self.model.acts(state, claim.node);
            let online = matches!(state.nodes[claim.node].sender, Sender::Online(_));
            let crashed = self.future == Future::NoRedisForGood && !self.is_healthy(state, claim.node);
            let is_well = online && self.is_healthy(state, claim.node) && self.model.acts(state, claim.node);
            if !may_return && !crashed && !is_well {
                return Some(Violation::LockedOut);
            }
        }
        if let Some(claim) = state.recipient_claim {
            let online = state.nodes[claim.node].session.is_some_and(|session| session.mode != Mode::Ending);
            let crashed = self.future == Future::NoRedisForGood && !self.is_healthy(state, claim.node);
            let is_well = online && self.is_healthy(state, claim.node) && self.model.acts(state, claim.node);
            if !crashed && !is_well {
                return Some(Violation::LockedOut);
            }
        }
        None
    }

    fn what_is_left(&self, state: &State) -> Option<Violation> {
        let claim = state.recipient_claim?;
        let reads = self.is_healthy(state, claim.node) && self.future != Future::NoRedisForGood;
        (reads && !state.rows.is_empty()).then_some(Violation::LeftInStore)
    }
}
