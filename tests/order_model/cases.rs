//! Each rule beside what goes wrong without it, and the bounds within which that shows.

use Rule::*;
use Violation::*;

use crate::action::Kind;
use crate::bounds::{Bounds, NO_FAULTS};
use crate::rules::Rule;
use crate::state::NodeName::{A, B, C};
use crate::state::{Faults, Violation};

pub struct Case {
    /// What is taken out: one rule, or two of which each covers for the other.
    pub without: &'static [Rule],
    pub expected: Violation,
    /// With all rules in force, all holds within them.
    pub bounds: Bounds,
}

const fn case(without: &'static [Rule], expected: Violation, bounds: Bounds) -> Case {
    Case { without, expected, bounds }
}

const CALM: Bounds = Bounds::CALM;
const SILENCE: Faults = Faults { silences: 1, ..NO_FAULTS };
const SILENT: Bounds = CALM.with_faults(SILENCE);

const REFUSAL: Faults = Faults { all: 1, refusals: 1, ..SILENCE };
const REFUSAL_AND_SPILL: Faults = Faults { spills: 1, ..REFUSAL };
const DOUBT: Faults = Faults { all: 2, doubts: 1, line_breaks: 1, ..NO_FAULTS };
const BROKEN_LINE: Faults = Faults { all: 1, line_breaks: 1, ..SILENCE };
const BROKEN_PUBLISHER: Faults = Faults { all: 1, publisher_breaks: 1, ..SILENCE };
const BROKEN_PUBLISHER_AND_REFUSAL: Faults = Faults { all: 2, publisher_breaks: 1, refusals: 1, ..NO_FAULTS };

/// A node whose line breaks, and whose lease may run out.
const DEAF: Faults = Faults { all: 1, line_breaks: 1, lapses: 1, ..NO_FAULTS };
/// A node that stops, and may resume.
const STOPPED: Faults = Faults { all: 1, stops: 1, lapses: 1, ..NO_FAULTS };
const STOPPED_AND_SILENCE: Faults = Faults { silences: 1, ..STOPPED };
const TWO_STOPPED: Faults = Faults { all: 2, stops: 2, lapses: 2, ..NO_FAULTS };
/// Redis is away for all nodes.
const OUTAGE: Faults = Faults { all: 1, outages: 1, lapses: 3, ..NO_FAULTS };
const DEAF_AND_OUTAGE: Faults = Faults { all: 2, outages: 1, ..DEAF };

const SENDER_MOVES: Bounds = CALM.with_sender(2, &[C]);
/// The recipient returns to B, or moves elsewhere.
const RECIPIENT_MOVES: Bounds = SILENT.with_recipient(2, &[A, B, C]);
const WITHOUT_REDIS: Bounds = CALM.with_messages(1).with_faults(OUTAGE).with_prompt(&[
    Kind::NoticeBrokenLine,
    Kind::LookWithoutLease,
    Kind::LookBehindRenewal,
]);

/// The holder is deaf and reads slowly, so that it learns of its mark while it stores.
const MARKED_WHILE_STORING: Bounds = CALM.with_faults(Faults { spills: 1, ..DEAF }).with_prompt(&[
    Kind::NoticeBrokenLine,
    Kind::CommitRouteJob,
    Kind::ConfirmDeath,
    Kind::LookWithoutLease,
]);
/// Two nodes stop, and the sender logs in on the third.
const TWO_NODES_STOP: Bounds = SENDER_MOVES.with_faults(TWO_STOPPED).at_nodes(&[A, B]).with_prompt(&[
    Kind::CommitRouteJob,
    Kind::CommitSessionJob,
    Kind::ConfirmDeath,
    Kind::LookWithoutLease,
    Kind::LookBehindRenewal,
    Kind::FreeClaims,
]);

/// Every rule that something goes wrong without.
#[rustfmt::skip]
pub const CASES: &[Case] = &[
    // A route.
    case(&[AskingStoresOnlyForTheAbsent], LeftInStore, CALM),
    case(&[RouteHasOneJobAtATime], OutOfOrder, CALM),
    case(&[LaunchNamesItsPredecessor], OutOfOrder, CALM.with_faults(BROKEN_LINE)),
    case(&[NudgeIsAPredecessor], OutOfOrder, CALM.with_faults(BROKEN_PUBLISHER).at_nodes(&[A])),
    case(&[GapFencesUntilTheNudge], OutOfOrder, CALM.with_messages(3).with_faults(BROKEN_PUBLISHER).at_nodes(&[A])),
    case(&[GoneHaltsTheRoute], OutOfOrder, CALM.with_faults(BROKEN_LINE)),
    case(&[SilenceHaltsTheRoute], RouteIsStuck, CALM.with_faults(BROKEN_LINE)),
    case(&[HaltedRouteWaitsForAnswers], OutOfOrder, CALM.with_faults(BROKEN_LINE)),
    case(&[StoredPastOnlyThatSession], LeftInStore, RECIPIENT_MOVES),
    case(&[DoubtIsLookedUp], LeftInStore, CALM.with_faults(DOUBT)),
    case(&[StoredPastIsNudged], LeftInStore, SILENT),
    case(&[RefusalAfterSilenceIsFenced], OutOfOrder, SENDER_MOVES.with_faults(REFUSAL)),
    case(&[NumbersAreNotUsedAgain], AckedIsLost, RECIPIENT_MOVES),
    case(&[OldConnectionsAreDropped], OutOfOrder, CALM.with_faults(BROKEN_PUBLISHER_AND_REFUSAL).at_nodes(&[A])),

    // A holder.
    case(&[SessionTakesOnlyItsOwn], OutOfOrder, RECIPIENT_MOVES.with_faults(REFUSAL)),
    case(&[NudgeIsAnsweredBehindWhatWasTaken], OutOfOrder, CALM.with_faults(REFUSAL_AND_SPILL)),
    case(&[NudgedSessionReadsTheStoreFirst], OutOfOrder, SILENT),
    case(&[NudgeDoesNotWaitForTheReader], LockedOut, SILENT),
    case(&[NudgeIsDoneWhenAnswered], LeftInStore, CALM.with_faults(BROKEN_LINE)),
    case(&[NudgeIsRepeated], LockedOut, CALM.with_faults(BROKEN_LINE)),
    case(&[HolderStoresOneJobAtATime], OutOfOrder, RECIPIENT_MOVES.with_faults(REFUSAL)),
    case(&[RefusalFencesTheNode], OutOfOrder, CALM.with_faults(REFUSAL_AND_SPILL)),
    case(&[LoginWaitsForItsNodesRoute], LeftInStore, RECIPIENT_MOVES),

    // The sender's claim.
    case(&[ClaimWaitsForSettlement], OutOfOrder, SENDER_MOVES),
    case(&[ClaimWaitsForNudges], OutOfOrder, SENDER_MOVES.with_faults(SILENCE)),
    case(&[StoreEndsNudges], LockedOut, CALM.with_faults(DEAF)),
    case(&[MarkEndsNudges], LockedOut, WITHOUT_REDIS.with_faults(DEAF_AND_OUTAGE).with_prompt(&[
        Kind::NoticeBrokenLine, Kind::LookWithoutLease, Kind::LookBehindRenewal, Kind::LapseOwnLease, Kind::RenewLease,
        Kind::CommitRouteJob, Kind::CommitSessionJob,
    ])),
    case(&[MarkEndsNudgesBehindLooks], OutOfOrder, SENDER_MOVES.with_faults(STOPPED_AND_SILENCE).with_prompt(&[
        Kind::CommitRouteJob, Kind::CommitSessionJob, Kind::SenderReleases, Kind::Suspect,
    ])),
    case(&[UserMayReturnAtOnce], LockedOut, WITHOUT_REDIS),
    case(&[FormerSessionsCount], OutOfOrder, CALM.with_sender(3, &[A, C])),
    case(&[ReplacedSessionTakesNothing], OutOfOrder,
        RECIPIENT_MOVES.with_faults(Faults { silences: 2, ..REFUSAL })),
    case(&[ReturnWaitsForWhatIsOwed], LeftInStore, RECIPIENT_MOVES),

    // A node's right to act.
    case(&[DeafNodeLosesItsLease], LockedOut, CALM.with_faults(DEAF)),
    case(&[InputIsChecked], ClaimIsGone, CALM.with_messages(1).with_faults(DEAF).at_nodes(&[A])),
    case(&[FlushIsChecked], ClaimIsGone, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[ClientsAreWrittenFirst], AckedIsLost, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[LookStandsInForTheLease], LockedOut, WITHOUT_REDIS),
    case(&[LookFailsOnTheMark], ClaimIsGone, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[LookWithoutLeaseRaisesNothing], LockedOut, CALM.with_messages(1).with_faults(DEAF)),
    case(&[WritesFailOnTheMark], LeftInStore, CALM.with_messages(1).with_faults(DEAF).at_nodes(&[A])),
    case(&[PageReadsFailOnTheMark, NodeLearnsFromWrites], OutOfOrder, MARKED_WHILE_STORING),

    // Reaping.
    case(&[MarkComparesTheCounter], ClaimIsGone, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[CounterIsReadFirst], ClaimIsGone, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[OnlyTheMarkedAreFreed], ClaimIsGone, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[FreeingWaitsForLooks], ClaimIsGone, CALM.with_messages(1).with_faults(STOPPED)),
    case(&[DeathIsTold], OutOfOrder, SENDER_MOVES.with_faults(STOPPED).at_nodes(&[A])),
    case(&[AllUnmarkedConfirm], OutOfOrder, TWO_NODES_STOP),
    case(&[MarkExcusesBehindLooks], OutOfOrder, TWO_NODES_STOP),
    case(&[DeadNodesPayloadsAreDropped], OutOfOrder, SENDER_MOVES.with_faults(STOPPED).at_nodes(&[A])),
    case(&[DeathIsConfirmedBehindWhatWasTaken], OutOfOrder,
        SENDER_MOVES.with_faults(STOPPED_AND_SILENCE).at_nodes(&[A])),
    case(&[ToldSessionsReadTheStore], LeftInStore, CALM.with_messages(1).with_faults(DEAF).at_nodes(&[A])),
    case(&[RestartedRedisProvesNothing], HealthyNodeMarked, WITHOUT_REDIS),
    case(&[ReaperNeedsALeaseOfItsOwn], HealthyNodeMarked, WITHOUT_REDIS),
];

pub struct Covered {
    pub rule: Rule,
    pub bounds: Bounds,
}

const fn covered(rule: Rule, bounds: Bounds) -> Covered {
    Covered { rule, bounds }
}

/// Rules without which all holds, as others cover for them, alone at least.
///
/// * A session that ends could answer `Gone`: the route would store past it. That it takes what comes saves the detour.
/// * A node that may not act cannot write to clients, its jobs fail once it is marked, and what it publishes is dropped
///   by the nodes that were notified of its death: so it does no harm to handle payloads, results and timers before it
///   has looked.
/// * A marked node that learns nothing from a write learns from the page that it must read before it delivers more, and
///   vice versa.
#[rustfmt::skip]
pub const COVERED: &[Covered] = &[
    covered(EndingSessionTakes, RECIPIENT_MOVES.with_faults(REFUSAL)),
    covered(PayloadsAreChecked, SENDER_MOVES.with_faults(STOPPED).at_nodes(&[A])),
    covered(PayloadsAreChecked, CALM.with_recipient(2, &[C]).with_faults(STOPPED)),
    covered(ResultsAreChecked, SENDER_MOVES.with_faults(STOPPED).at_nodes(&[A])),
    covered(ResultsAreChecked, CALM.with_recipient(2, &[C]).with_faults(STOPPED)),
    covered(TimersAreChecked, SENDER_MOVES.with_faults(STOPPED_AND_SILENCE).at_nodes(&[A]).with_prompt(&[
        Kind::CommitRouteJob, Kind::CommitSessionJob, Kind::ConfirmDeath,
    ])),
    covered(PageReadsFailOnTheMark, MARKED_WHILE_STORING),
    covered(NodeLearnsFromWrites, MARKED_WHILE_STORING),
];

/// Wider bounds within which all holds with all rules in force.
#[rustfmt::skip]
pub const WIDER: &[Bounds] = &[
    // Both users move.
    SILENT.with_sender(2, &[A, B, C]).with_recipient(2, &[A, B, C]),
    // The recipient moves, the store refuses, and he reads slowly.
    RECIPIENT_MOVES.with_faults(REFUSAL_AND_SPILL),
    // Three messages on a line that breaks.
    CALM.with_messages(3).with_faults(Faults { silences: 2, spills: 1, ..BROKEN_PUBLISHER }).at_nodes(&[A]),
    // The recipient's node stops, and he logs in elsewhere.
    CALM.with_recipient(2, &[C]).with_faults(STOPPED_AND_SILENCE),
    // The sender's node stops, and he logs in elsewhere.
    SENDER_MOVES.with_faults(STOPPED_AND_SILENCE).at_nodes(&[A]),
    // The sender's node is deaf, and he logs in elsewhere.
    SENDER_MOVES.with_faults(DEAF).at_nodes(&[A]),
    // Redis is away, and the sender logs in elsewhere or returns.
    WITHOUT_REDIS.with_sender(2, &[A, C]),
];
