//! The rules of order between nodes, each of which can be taken out to see what it is for.

macro_rules! rules {
    ($($(#[doc = $text:literal])+ $rule:ident,)+) => {
        /// A rule of the design. The text says what holds with it; the model says, at one place for each, what happens
        /// without it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Rule {
            $($(#[doc = $text])+ $rule,)+
        }

        /// Every rule, in the order in which they are declared.
        pub const EVERY_RULE: &[Rule] = &[$(Rule::$rule),+];
    };
}

rules! {
    // A route.
    /// A route that asks stores its messages only if no node has the recipient.
    AskingStoresOnlyForTheAbsent,
    /// A route has one transaction at a time; what comes meanwhile waits.
    RouteHasOneJobAtATime,
    /// A launch names the last launch of its route that is unanswered, and the holder takes it only behind
    /// that one.
    LaunchNamesItsPredecessor,
    /// An unanswered nudge is a predecessor, too.
    NudgeIsAPredecessor,
    /// Behind a gap everything is answered `Gone` until the route's next nudge.
    GapFencesUntilTheNudge,
    /// A launch that was not taken halts its route.
    GoneHaltsTheRoute,
    /// A launch that is not answered in two seconds halts its route.
    SilenceHaltsTheRoute,
    /// A halted route stores its messages when everything under way is answered or given up.
    HaltedRouteWaitsForAnswers,
    /// Messages are stored past a holder only if it has the recipient by the epoch that the route knows.
    StoredPastOnlyThatSession,
    /// A commit in doubt is looked up until it is known.
    DoubtIsLookedUp,
    /// A holder past which messages were stored is nudged.
    StoredPastIsNudged,
    /// If the store refuses messages that were given up, nothing of the route is settled, stored or launched
    /// until a nudge is answered.
    RefusalAfterSilenceIsFenced,
    /// Numbers of launches and nudges are never used again.
    NumbersAreNotUsedAgain,
    /// A payload of an older publisher connection than the newest that was seen of its node is dropped.
    OldConnectionsAreDropped,

    // A holder.
    /// A session takes only what was launched to its own epoch.
    SessionTakesOnlyItsOwn,
    /// A session that ends still takes what comes, and stores it.
    EndingSessionTakes,
    /// A nudge is answered when what was taken before it is delivered or committed.
    NudgeIsAnsweredBehindWhatWasTaken,
    /// A nudged session reads the store before it delivers what it takes afterwards.
    NudgedSessionReadsTheStoreFirst,
    /// A nudge's answer does not wait until the recipient has read what is stored.
    NudgeDoesNotWaitForTheReader,
    /// It is done when it is answered, not when it is published.
    NudgeIsDoneWhenAnswered,
    /// An unanswered nudge is published again.
    NudgeIsRepeated,
    /// A holder stores for a user by one transaction at a time.
    HolderStoresOneJobAtATime,
    /// If the holder's store refuses a node's message, what follows from that node is `Gone` until its nudge.
    RefusalFencesTheNode,
    /// A user who logs in where a route to him has messages under way reads the store only after them.
    LoginWaitsForItsNodesRoute,

    // The sender's claim.
    /// It is released when all that any of his sessions on the node sent is settled.
    ClaimWaitsForSettlement,
    /// It is released when the nudges that concern his messages are answered.
    ClaimWaitsForNudges,
    /// A nudge needs no answer when the store says that its holder no longer has the recipient by that epoch.
    StoreEndsNudges,
    /// A nudge needs no answer when its holder is marked dead.
    MarkEndsNudges,
    /// The mark ends a nudge only two seconds later, when every look begun before it is over.
    MarkEndsNudgesBehindLooks,
    /// A user whose connection is gone may log in again on the same node before his claim is released.
    UserMayReturnAtOnce,
    /// What a former session of the user on the node sent counts for the release.
    FormerSessionsCount,
    /// A session whose claim may be replaced by now takes nothing more: the store no longer says that its node has it.
    ReplacedSessionTakesNothing,
    /// A recipient returns at once only when nothing that he was to get is held, being stored or nudged.
    ReturnWaitsForWhatIsOwed,

    // A node's right to act.
    /// A lease is renewed only while the node hears its own channel.
    DeafNodeLosesItsLease,
    /// A client's input is handled only while the node's lease is valid, or a look is.
    InputIsChecked,
    /// So are payloads of other nodes.
    PayloadsAreChecked,
    /// So are results of transactions.
    ResultsAreChecked,
    /// So are timers.
    TimersAreChecked,
    /// So is what is written to clients at the end of a turn.
    FlushIsChecked,
    /// Messages are written to clients before other nodes hear that they are delivered.
    ClientsAreWrittenFirst,
    /// Without a lease, a look into the store lets a node act.
    LookStandsInForTheLease,
    /// A look fails on a node that is marked.
    LookFailsOnTheMark,
    /// A look without a renewal does not raise the node's counter.
    LookWithoutLeaseRaisesNothing,
    /// Writing transactions of a marked node fail.
    WritesFailOnTheMark,
    /// So do its reads of stored messages.
    PageReadsFailOnTheMark,
    /// A write that fails on the mark ends the node as a look does.
    NodeLearnsFromWrites,

    // Reaping.
    /// The mark fails if the counter was raised since it was read.
    MarkComparesTheCounter,
    /// The counter is read before the lease is seen to be missing.
    CounterIsReadFirst,
    /// Claims are freed only of a node that is marked.
    OnlyTheMarkedAreFreed,
    /// Claims are freed two seconds after the mark, when every look begun before it is over.
    FreeingWaitsForLooks,
    /// The other nodes are notified before claims are freed.
    DeathIsTold,
    /// All must confirm that are not marked, not only those with a lease.
    AllUnmarkedConfirm,
    /// A node that is marked itself need not confirm, but only two seconds after its own mark, when every look that it
    /// began before is over.
    MarkExcusesBehindLooks,
    /// What a node publishes is dropped by those that were notified of its death.
    DeadNodesPayloadsAreDropped,
    /// A death is confirmed when what was taken from that node is delivered or committed.
    DeathIsConfirmedBehindWhatWasTaken,
    /// A node that is notified of a death has its sessions read the store before they deliver more.
    ToldSessionsReadTheStore,
    /// A missing lease does not count on a Redis that has started anew.
    RestartedRedisProvesNothing,
    /// A missing lease does not count for a reaper that has itself been without one.
    ReaperNeedsALeaseOfItsOwn,
}

/// The rules that are in force.
#[derive(Clone, Copy, Debug)]
pub struct Rules(u64);

impl Rules {
    pub const ALL: Rules = Rules(u64::MAX);

    pub const fn without(self, rule: Rule) -> Rules {
        Rules(self.0 & !(1 << rule as u64))
    }

    pub fn has(self, rule: Rule) -> bool {
        self.0 >> rule as u64 & 1 == 1
    }
}
