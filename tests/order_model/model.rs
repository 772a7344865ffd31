//! One step of the model: an action applied to a state.

use crate::action::{Action, Kind};
use crate::bounds::Bounds;
use crate::rules::{Rule, Rules};
use crate::state::{Message, NODES, NodeName, Redis, State, Violation};

#[derive(Clone, Debug)]
pub struct OrderModel {
    pub rules: Rules,
    pub bounds: Bounds,
}

impl OrderModel {
    pub fn has(&self, rule: Rule) -> bool {
        self.rules.has(rule)
    }

    /// Whether writing transactions of the node pass.
    pub fn writes_pass(&self, state: &State, node: NodeName) -> bool {
        !state.marked.contains(node) || !self.has(Rule::WritesFailOnTheMark)
    }

    /// Applies an action, and looks whether what was acked is still there.
    pub fn step(&self, state: &mut State, action: Action) {
        self.apply(state, action);
        self.audit(state);
    }

    fn apply(&self, state: &mut State, action: Action) {
        let node = action.node;
        match action.kind {
            Kind::Deliver => self.deliver(state, node, action.other, true),
            Kind::LoseUnnoticed => self.deliver(state, node, action.other, false),
            Kind::DeliverStale => self.deliver_stale(state, node, action.other),
            Kind::LoseStale => self.lose_stale(state, node),
            Kind::BreakPublisher => {
                state.faults.all += 1;
                state.faults.publisher_breaks += 1;
                state.disturbed.insert(node);
                self.break_publisher(state, node);
                self.advance_route(state, node);
            }
            Kind::BreakLine => {
                state.faults.all += 1;
                state.faults.line_breaks += 1;
                state.disturbed.insert(node);
                self.drop_line(state, node);
            }
            Kind::NoticeBrokenLine => self.notice_broken_line(state, node),
            Kind::Reconnect => self.reconnect(state, node),
            Kind::HangRedis => self.lose_redis(state, Redis::Hung),
            Kind::RestartRedis => self.lose_redis(state, Redis::Restarting),
            Kind::ReturnRedis => self.return_redis(state),
            Kind::SettleRedis => state.recent = false,

            Kind::CommitRouteJob => self.end_route_job(state, node, 0, false),
            Kind::CommitSecondRouteJob => self.end_route_job(state, node, 1, false),
            Kind::RefuseRouteJob => {
                state.faults.all += 1;
                state.faults.refusals += 1;
                self.end_route_job(state, node, 0, true);
            }
            Kind::DoubtRouteJob => {
                state.faults.all += 1;
                state.faults.doubts += 1;
                self.doubt_route_job(state, node, false);
            }
            Kind::DelayRouteJob => {
                state.faults.all += 1;
                state.faults.doubts += 1;
                self.doubt_route_job(state, node, true);
            }
            Kind::CommitLate => {
                let (node, job) = state.late_commit.take().expect("a late commit");
                self.commit_route_job(state, node, &job);
            }
            Kind::CommitOrphan => self.end_orphan(state),
            Kind::HandleRouteResult => {
                let (job, outcome) = state.nodes[node].route.finished.take().expect("a finished job");
                self.handle_route_result(state, node, job, outcome);
            }
            Kind::CommitSessionJob => self.end_session_job(state, node, false),
            Kind::RefuseSessionJob => {
                state.faults.all += 1;
                state.faults.refusals += 1;
                self.end_session_job(state, node, true);
            }
            Kind::HandleSessionResult => {
                let session = state.nodes[node].session.as_mut().expect("a session");
                let (job, outcome) = session.finished.take().expect("a finished job");
                self.handle_session_result(state, node, job, outcome);
            }

            Kind::GiveUpLaunch => self.give_up_launch(state, node),
            Kind::LookAfterNudge => self.look_after_nudge(state, node),

            Kind::Flush => self.flush(state, node),
            Kind::ReadPage => self.read_page(state, node),
            Kind::Spill => {
                state.faults.spills += 1;
                self.spill(state, node);
            }
            Kind::RecipientLogsOut => self.recipient_logs_out(state, node),
            Kind::RecipientReleases => self.recipient_releases(state, node),
            Kind::RecipientLogsIn => self.recipient_logs_in(state, node),
            Kind::RecipientClaims => self.recipient_claims(state, node),
            Kind::RecipientReturns => self.recipient_returns(state, node),

            Kind::Send => self.send(state, node),
            Kind::SenderLogsOut => self.sender_logs_out(state, node),
            Kind::SenderReleases => self.sender_releases(state, node),
            Kind::SenderLogsIn => self.sender_logs_in(state, node),
            Kind::SenderReturns => self.sender_returns(state, node),

            Kind::Stop => self.stop(state, node),
            Kind::Resume => self.resume(state, node),
            Kind::LapseLease => self.lapse_lease(state, node),
            Kind::LapseOwnLease => self.lapse_own_lease(state, node),
            Kind::RenewLease => self.renew_lease(state, node),
            Kind::LookBehindRenewal => self.look_behind_renewal(state, node),
            Kind::LookWithoutLease => self.look_without_lease(state, node),
            Kind::EndLook => state.nodes[node].look = false,

            Kind::MissLease => state.missed.insert(node),
            Kind::Suspect => {
                state.suspected.insert(node);
                state.missed.remove(node);
            }
            Kind::Mark => self.mark(state, node),
            Kind::TellDeath => self.tell_death(state, node, action.other),
            Kind::ConfirmDeath => state.confirmed[action.other].insert(node),
            Kind::FreeClaims => self.free_claims(state, node),
        }
    }

    /// What was acked must have been read, or be in the store, or be about to be written to the client.
    fn audit(&self, state: &mut State) {
        let missing = state.acked.without(state.arrived);
        if missing.is_empty() {
            return;
        }
        for message in 1..=state.sent {
            if missing.contains(message) && !is_in(state.rows.as_slice(), message) && !is_held(state, message) {
                state.violate(Violation::AckedIsLost);
            }
        }
    }
}

fn is_in(rows: &[Message], message: Message) -> bool {
    for row in rows {
        if *row == message {
            return true;
        }
    }
    false
}

fn is_held(state: &State, message: Message) -> bool {
    NODES.iter().filter_map(|node| state.nodes[*node].session).any(|session| session.holds(message))
}
