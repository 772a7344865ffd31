//! The recipient's session: what its node, the holder, does with what comes for him.

use crate::model::OrderModel;
use crate::rules::Rule;
use crate::state::{
    Chat, Claim, Epoch, Heard, Held, Message, Mode, NodeName, Number, Origin, Payload, Session, SessionJob,
    SessionOutcome, State, Verdict, Violation,
};

impl OrderModel {
    /// Takes what was launched to the session that is here, behind what it names; answers `Gone` otherwise.
    pub fn read_chat(&self, state: &mut State, name: NodeName, from: NodeName, chat: Chat) {
        let Chat { message, epoch, number, after } = chat;
        let held = Held { message, origin: Origin::Remote(from, number) };
        let mut taken = false;
        if let Some(session) = &mut state.nodes[name].session
            && (session.takes_by(epoch, self.has(Rule::ReplacedSessionTakesNothing))
                || !self.has(Rule::SessionTakesOnlyItsOwn))
            && (session.mode != Mode::Ending || self.has(Rule::EndingSessionTakes))
        {
            let heard = &mut session.heard[from];
            let gap = after != 0 && after != heard.last && self.has(Rule::LaunchNamesItsPredecessor);
            heard.last = number;
            taken = !gap && !heard.fenced;
            if gap && self.has(Rule::GapFencesUntilTheNudge) {
                heard.fenced = true;
            }
        }
        if taken {
            self.take(state, name, held);
        } else {
            self.answer(state, name, held, Verdict::Gone);
        }
    }

    pub fn read_nudge(&self, state: &mut State, name: NodeName, from: NodeName, epoch: Epoch, number: Number) {
        let Some(session) = &mut state.nodes[name].session else {
            self.publish(state, name, from, Payload::Nudged { number });
            return;
        };
        if !session.takes_by(epoch, self.has(Rule::ReplacedSessionTakesNothing)) {
            self.publish(state, name, from, Payload::Nudged { number });
            return;
        }
        session.heard[from] = Heard { last: number, fenced: false };
        if !self.has(Rule::NudgeIsAnsweredBehindWhatWasTaken) {
            self.publish(state, name, from, Payload::Nudged { number });
        } else {
            if !session.nudges.as_slice().contains(&(from, number)) {
                session.nudges.push((from, number));
            }
            session.to_store = true;
        }
        self.read_the_store(state, name);
        self.proceed_with_session(state, name);
    }

    /// The session reads the store before it delivers what it takes from now on.
    pub fn read_the_store(&self, state: &mut State, name: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        session.read_again = true;
        if session.mode == Mode::Live && self.has(Rule::NudgedSessionReadsTheStoreFirst) {
            session.mode = Mode::Draining;
        }
    }

    /// A message for the recipient comes to be held; nothing before it can overtake.
    pub fn take(&self, state: &mut State, name: NodeName, mut held: Held) {
        let early = !self.has(Rule::ClientsAreWrittenFirst);
        let Some(session) = &mut state.nodes[name].session else { return };
        if early && session.mode == Mode::Live && matches!(held.origin, Origin::Remote(..)) {
            let answered = held;
            held.origin = Origin::Answered;
            session.held.push(held);
            self.answer(state, name, answered, Verdict::Delivered);
        } else {
            session.held.push(held);
        }
        self.proceed_with_session(state, name);
    }

    /// Reports the outcome of a message to where it came from.
    fn answer(&self, state: &mut State, name: NodeName, held: Held, verdict: Verdict) {
        match held.origin {
            Origin::Local => {
                let acked = matches!(verdict, Verdict::Delivered | Verdict::Stored);
                self.settle(state, name, held.message, acked);
            }
            Origin::Remote(from, number) => {
                self.publish(state, name, from, Payload::Answer { number, verdict });
            }
            Origin::Answered => {}
        }
    }

    /// Begins the next transaction of the session, if one is due, and answers nudges whose time has come.
    pub fn proceed_with_session(&self, state: &mut State, name: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        let nudged = !session.nudges.is_empty() && self.has(Rule::NudgeDoesNotWaitForTheReader);
        let storing = session.mode == Mode::Ending || session.to_store || nudged;
        if session.is_busy() {
            let may_have_two = !self.has(Rule::HolderStoresOneJobAtATime) && session.second_job.is_none();
            let first_stores = matches!(session.job, Some(SessionJob::Store(_)));
            if may_have_two && first_stores && storing && !session.held.is_empty() {
                session.second_job = Some(SessionJob::Store(session.held.take()));
            }
            return;
        }
        if storing && !session.held.is_empty() {
            session.to_store = false;
            session.job = Some(SessionJob::Store(session.held.take()));
            return;
        }
        session.to_store = false;
        let waits_for_reader = !self.has(Rule::NudgeDoesNotWaitForTheReader) && session.mode == Mode::Draining;
        if session.held.is_empty() && !waits_for_reader {
            let nudges = session.nudges.take();
            for (from, number) in nudges.as_slice() {
                self.publish(state, name, *from, Payload::Nudged { number: *number });
            }
        }
        let Some(session) = &mut state.nodes[name].session else { return };
        let reads_on = session.read_again || !session.read.is_empty();
        let reads = session.mode == Mode::Draining || session.mode == Mode::Live && reads_on;
        if reads && session.page.is_empty() {
            session.read_again = false;
            session.job = Some(SessionJob::Read { read: session.read.take() });
        }
    }

    /// Writes what is held to the client.
    pub fn flush(&self, state: &mut State, name: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        let held = session.held.take();
        for held in held.as_slice() {
            self.write_to_client(state, name, held.message);
            self.answer(state, name, *held, Verdict::Delivered);
        }
        self.proceed_with_session(state, name);
    }

    pub fn read_page(&self, state: &mut State, name: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        let page = session.page.take();
        session.read = page;
        for message in page.as_slice() {
            self.write_to_client(state, name, *message);
        }
        self.proceed_with_session(state, name);
    }

    fn write_to_client(&self, state: &mut State, name: NodeName, message: Message) {
        let Some(session) = &state.nodes[name].session else { return };
        if state.recipient_claim != Some(Claim { node: name, epoch: session.epoch }) {
            state.violate(Violation::ClaimIsGone);
            return;
        }
        if !state.arrived.contains(message) {
            if state.arrived.has_later_than(message) {
                state.violate(Violation::OutOfOrder);
            }
            state.arrived.insert(message);
        }
    }

    pub fn spill(&self, state: &mut State, name: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        session.to_store = true;
        session.mode = Mode::Draining;
        session.read_again = true;
        self.proceed_with_session(state, name);
    }

    // Transactions.

    pub fn end_session_job(&self, state: &mut State, name: NodeName, refused: bool) {
        let Some(session) = &mut state.nodes[name].session else { return };
        let Some(job) = session.job.take() else { return };
        session.job = session.second_job.take();
        let outcome = if refused { SessionOutcome::Refused } else { self.commit_session_job(state, name, &job) };
        if self.acts(state, name) {
            self.handle_session_result(state, name, job, outcome);
        } else if let Some(session) = &mut state.nodes[name].session {
            session.finished = Some((job, outcome));
        }
    }

    fn learns_from(&self, job: &SessionJob) -> bool {
        matches!(job, SessionJob::Read { .. }) || self.has(Rule::NodeLearnsFromWrites)
    }

    fn commit_session_job(&self, state: &mut State, name: NodeName, job: &SessionJob) -> SessionOutcome {
        match job {
            SessionJob::Store(messages) => {
                if !self.writes_pass(state, name) {
                    return SessionOutcome::Marked;
                }
                for held in messages.as_slice() {
                    state.rows.push(held.message);
                }
                SessionOutcome::Stored
            }
            SessionJob::Read { read } => {
                if state.marked.contains(name) && self.has(Rule::PageReadsFailOnTheMark) {
                    return SessionOutcome::Marked;
                }
                let removed = if self.writes_pass(state, name) { read.as_slice() } else { &[] };
                for message in removed {
                    if let Some(position) = state.rows.as_slice().iter().position(|row| row == message) {
                        state.rows.remove(position);
                    }
                }
                SessionOutcome::Page(state.rows)
            }
        }
    }

    pub fn handle_session_result(&self, state: &mut State, name: NodeName, job: SessionJob, outcome: SessionOutcome) {
        if outcome == SessionOutcome::Marked && self.learns_from(&job) {
            self.learn_of_mark(state, name);
            return;
        }
        match job {
            SessionJob::Store(messages) => self.handle_stored(state, name, messages.as_slice(), outcome),
            SessionJob::Read { .. } => {
                let Some(session) = &mut state.nodes[name].session else { return };
                if let SessionOutcome::Page(page) = outcome
                    && session.mode != Mode::Ending
                {
                    session.page = page;
                    if page.is_empty() && !session.read_again && session.mode == Mode::Draining {
                        session.mode = Mode::Live;
                    }
                }
            }
        }
        self.proceed_with_session(state, name);
    }

    /// The transaction of a session that another has replaced ends.
    pub fn end_orphan(&self, state: &mut State) {
        let Some((name, messages)) = state.orphan.take() else { return };
        let outcome = self.commit_session_job(state, name, &SessionJob::Store(messages));
        let verdict = if outcome == SessionOutcome::Stored { Verdict::Stored } else { Verdict::Gone };
        for stored in messages.as_slice() {
            self.answer(state, name, *stored, verdict);
        }
    }

    fn handle_stored(&self, state: &mut State, name: NodeName, messages: &[Held], outcome: SessionOutcome) {
        let verdict = match outcome {
            SessionOutcome::Stored => Verdict::Stored,
            SessionOutcome::Refused => Verdict::Failed,
            SessionOutcome::Page(_) | SessionOutcome::Marked => Verdict::Gone,
        };
        if outcome == SessionOutcome::Stored {
            self.read_the_store(state, name);
        }
        for stored in messages {
            self.answer(state, name, *stored, verdict);
            let Origin::Remote(from, _) = stored.origin else { continue };
            if verdict == Verdict::Failed && self.has(Rule::RefusalFencesTheNode) {
                self.refuse_what_follows(state, name, from);
            }
        }
    }

    /// What is held of that node, and what comes from it, is `Gone` until its nudge.
    fn refuse_what_follows(&self, state: &mut State, name: NodeName, from: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        session.heard[from].fenced = true;
        let held = session.held.take();
        for held in held.as_slice() {
            if matches!(held.origin, Origin::Remote(node, _) if node == from) {
                self.answer(state, name, *held, Verdict::Gone);
            } else if let Some(session) = &mut state.nodes[name].session {
                session.held.push(*held);
            }
        }
    }

    // Logging in and out.

    /// What was to be delivered is stored.
    pub fn recipient_logs_out(&self, state: &mut State, name: NodeName) {
        let Some(session) = &mut state.nodes[name].session else { return };
        session.mode = Mode::Ending;
        session.page.clear();
        session.read.clear();
        session.read_again = false;
        self.proceed_with_session(state, name);
    }

    pub fn recipient_releases(&self, state: &mut State, name: NodeName) {
        let Some(session) = &state.nodes[name].session else { return };
        if state.recipient_claim == Some(Claim { node: name, epoch: session.epoch }) {
            state.recipient_claim = None;
        }
        state.nodes[name].session = None;
        self.advance_route(state, name);
    }

    pub fn recipient_logs_in(&self, state: &mut State, name: NodeName) {
        let epoch = self.claim_for_recipient(state, name);
        self.begin_session(state, name, Session { epoch, ..Session::default() });
    }

    fn claim_for_recipient(&self, state: &mut State, name: NodeName) -> Epoch {
        state.recipient_epoch += 1;
        state.recipient_claim = Some(Claim { node: name, epoch: state.recipient_epoch });
        state.recipient_epoch
    }

    fn begin_session(&self, state: &mut State, name: NodeName, session: Session) {
        state.nodes[name].session = Some(session);
        if !self.has(Rule::LoginWaitsForItsNodesRoute)
            && let Some(session) = &mut state.nodes[name].session
        {
            session.mode = Mode::Draining;
            self.proceed_with_session(state, name);
        }
        self.advance_route(state, name);
    }

    /// He logs in where he is ending: his claim's epoch is replaced. With the rule that he waits for what is owed,
    /// the former session has nothing any more.
    pub fn recipient_claims(&self, state: &mut State, name: NodeName) {
        let epoch = self.claim_for_recipient(state, name);
        let session = state.nodes[name].session.as_mut().expect("a session that ends");
        session.next = epoch;
        session.finished = None;
        let (job, held, nudges) = (session.job.take(), session.held.take(), session.nudges.take());
        if let Some(SessionJob::Store(messages)) = job {
            state.orphan = Some((name, messages));
        }
        for held in held.as_slice() {
            self.answer(state, name, *held, Verdict::Gone);
        }
        for (from, number) in nudges.as_slice() {
            self.publish(state, name, *from, Payload::Nudged { number: *number });
        }
    }

    /// His node knows that the claim is replaced: the next session begins with what has come for the former one
    /// meanwhile.
    pub fn recipient_returns(&self, state: &mut State, name: NodeName) {
        let Session { next, held, job, finished, nudges, .. } = state.nodes[name].session.expect("a session that ends");
        self.begin_session(state, name, Session { epoch: next, held, job, finished, nudges, ..Session::default() });
    }
}

impl Session {
    /// Whether it takes what is sent to this epoch. `unless_replaced`: not once the store has another claim.
    fn takes_by(&self, epoch: Epoch, unless_replaced: bool) -> bool {
        self.epoch == epoch && (self.next == 0 || !unless_replaced)
    }

    /// Whether a transaction is under way, or its result is not handled.
    pub fn is_busy(&self) -> bool {
        self.job.is_some() || self.finished.is_some()
    }

    fn holds_any(&self, wanted: impl Fn(&Held) -> bool) -> bool {
        if self.held.as_slice().iter().any(&wanted) {
            return true;
        }
        let finished = self.finished.map(|(job, _)| job);
        [self.job, self.second_job, finished].iter().flatten().any(|job| match job {
            SessionJob::Store(messages) => messages.as_slice().iter().any(&wanted),
            SessionJob::Read { .. } => false,
        })
    }

    /// Whether something that came from that node is held or being stored.
    pub fn has_of(&self, from: NodeName) -> bool {
        self.holds_any(|held| matches!(held.origin, Origin::Remote(node, _) if node == from))
    }

    /// Whether the message is held or being stored.
    pub fn holds(&self, message: Message) -> bool {
        self.holds_any(|held| held.message == message)
    }
}
