//! The table of the route's states: what happens, and the steps that are taken then.

use super::*;
use crate::service::receipts::BATCH_MESSAGES;
use crate::store::NodeId;

const B: Holder = Holder::Node(Claim { node: NodeId(2), epoch: 7 });
const C: Holder = Holder::Node(Claim { node: NodeId(3), epoch: 9 });

/// A route, and the world around it. Message `n` is of user `n`, so that steps can be told apart.
struct Table {
    route: Route,
    here: bool,
    up: bool,
    now: Instant,
    next: u64,
    /// Closed, as of a job that a worker has at once.
    late: Late,
}

/// The sender, by whom messages are named.
fn message(n: u32) -> Undelivered {
    Undelivered { body: Arc::from([n as u8]), receipt: Receipt::Sum { user: n, shard: 0, key: 0 } }
}

fn show(step: &Step) -> String {
    match step {
        Step::Store => "store".to_owned(),
        Step::Launch { holder: Holder::Node(claim), number, after, body, .. } => {
            format!("launch {} to {} as {number} after {after}", body[0], claim.node.0)
        }
        Step::Launch { number, body, .. } => format!("publish {} as {number}", body[0]),
        Step::Nudge { claim, number } => format!("nudge {} as {number}", claim.node.0),
        Step::Look => "look".to_owned(),
        Step::Deliver(message) => format!("deliver {}", message.body[0]),
        Step::Settle { receipt, delivery, open } => {
            let open = if *open { ", open" } else { "" };
            format!("{} {delivery:?}{open}", receipt.sender().unwrap())
        }
        Step::Free(debtors) => format!("free {debtors:?}"),
        Step::Watch(_) => "watch".to_owned(),
    }
}

impl Table {
    fn new() -> Table {
        let late = Late::open();
        late.close();
        Table { route: Route::default(), here: false, up: true, now: Instant::now(), next: 0, late }
    }

    /// A route to B, on which the first message was delivered.
    fn via_b() -> Table {
        let mut table = Table::new();
        table.push(1, &["store"]);
        table.batch(&[1], None);
        table.stored(Some(Kept::Elsewhere(B)), &["watch", "launch 1 to 2 as 1 after 0"]);
        table.answered(1, Delivery::Delivered, &["1 Delivered"]);
        table
    }

    fn take(&mut self, expected: &[&str], take: impl FnOnce(&mut Route, &mut Context)) {
        let steps: Vec<String> = self.steps(take).iter().map(show).collect();
        assert_eq!(steps, expected);
    }
    fn steps(&mut self, take: impl FnOnce(&mut Route, &mut Context)) -> Vec<Step> {
        let (here, up, now, next) = (self.here, self.up, self.now, &mut self.next);
        let mut cx = Context { here, up, now, next, steps: Vec::new() };
        take(&mut self.route, &mut cx);
        cx.steps
    }
    #[track_caller]
    fn push(&mut self, n: u32, expected: &[&str]) {
        self.take(expected, |route, cx| route.push(message(n), cx));
    }
    fn take_batch(&mut self) -> Option<Parcel> {
        self.route.take_batch(1, &self.late, 0)
    }
    #[track_caller]
    fn batch(&mut self, expected: &[u8], past: Option<Holder>) {
        let parcel = self.take_batch().expect("a batch");
        assert_eq!(parcel.messages.iter().map(|body| body[0]).collect::<Vec<_>>(), expected);
        assert_eq!(parcel.past, past);
    }
    #[track_caller]
    fn stored(&mut self, kept: Option<Kept>, expected: &[&str]) {
        self.take(expected, |route, cx| route.stored(kept, cx));
    }
    #[track_caller]
    fn answered(&mut self, number: u64, delivery: Delivery, expected: &[&str]) {
        self.take(expected, |route, cx| _ = route.answered(number, delivery, cx));
    }
    #[track_caller]
    fn nudged(&mut self, number: u64, expected: &[&str]) {
        self.take(expected, |route, cx| route.nudged(number, cx));
    }
    #[track_caller]
    fn expire(&mut self, expected: &[&str]) {
        self.now += PATIENCE;
        self.take(expected, |route, cx| route.expire(cx));
    }
    #[track_caller]
    fn advance(&mut self, expected: &[&str]) {
        self.take(expected, |route, cx| route.advance(cx));
    }
    #[track_caller]
    fn look(&mut self, found: Option<Holder>, expected: &[&str]) {
        self.take(expected, |route, cx| route.still_has(found, cx));
    }
}

#[test]
fn ask_what_nobody_has_is_stored_one_batch_at_a_time() {
    let mut table = Table::new();
    table.push(1, &["store"]);
    table.push(2, &[]);
    table.batch(&[1, 2], None);
    table.push(3, &[]);
    assert!(table.take_batch().is_none(), "two jobs at a time");
    table.stored(Some(Kept::Stored(1)), &["1 Stored", "2 Stored", "store"]);
    table.batch(&[3], None);
    table.stored(None, &["3 Failed(StoreUnavailable)"]);
    table.push(4, &["store"]);
    table.batch(&[4], None);
    table.stored(Some(Kept::NoUser), &["4 Failed(NoSuchUser)"]);
    assert!(table.route.is_nothing());
}

#[test]
fn what_comes_while_the_job_waits_for_a_worker_goes_along_up_to_the_bounds_and_not_when_the_user_is_here() {
    let mut table = Table::new();
    table.late = Late::open();
    table.push(1, &["store"]);
    table.batch(&[1], None);
    table.push(2, &[]);
    assert_eq!(table.late.close(), [(0, Arc::from([2]))]);
    table.push(3, &[]);
    table.stored(Some(Kept::Stored(1)), &["1 Stored", "2 Stored", "store"]);
    table.late = Late::open();
    table.batch(&[3], None);
    (0..BATCH_MESSAGES as u32).for_each(|n| table.push(n % 100, &[]));
    assert_eq!(table.late.close().len(), BATCH_MESSAGES - 1);
    assert!(table.steps(|route, cx| route.stored(Some(Kept::Stored(1)), cx)).ends_with(&[Step::Store]));
    table.late = Late::open();
    table.batch(&[(BATCH_MESSAGES - 1) as u8 % 100], None);
    table.here = true;
    table.push(4, &[]);
    table.stored(Some(Kept::Stored(1)), &["55 Stored", "deliver 4"]);
}

#[test]
fn ask_what_is_refused_fails_alone() {
    let mut table = Table::new();
    (1..=3).for_each(|n| table.push(n, if n == 1 { &["store"] } else { &[] }));
    table.batch(&[1, 2, 3], None);
    table.stored(Some(Kept::Refused(1)), &["1 Stored", "2 Failed(StoreUnavailable)", "store"]);
    table.batch(&[3], None);
    table.stored(Some(Kept::Full(0)), &["3 Failed(Busy)"]);
    assert!(table.route.is_nothing());
}

#[test]
fn via_each_is_launched_at_once_and_names_the_last_that_is_unanswered() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.push(3, &["launch 3 to 2 as 3 after 2"]);
    table.answered(3, Delivery::Stored, &["3 Stored"]);
    table.push(4, &["launch 4 to 2 as 4 after 2"]);
    table.answered(2, Delivery::Failed(Errno::Busy), &["2 Failed(Busy)"]);
    table.answered(4, Delivery::Delivered, &["4 Delivered"]);
    table.push(5, &["launch 5 to 2 as 5 after 0"]);
    assert!(!table.route.is_idle());
    table.answered(5, Delivery::Delivered, &["5 Delivered"]);
    assert!(table.route.is_idle() && !table.route.is_nothing());
}

#[test]
fn halted_what_came_back_is_stored_past_the_node_first_and_what_follows_goes_behind_the_nudge() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.push(3, &["launch 3 to 2 as 3 after 2"]);
    table.answered(2, Delivery::Gone, &[]);
    table.push(4, &[]);
    table.answered(3, Delivery::Gone, &["store"]);
    table.batch(&[2, 3, 4], Some(B));
    table.push(5, &[]);
    let then = ["2 Stored, open", "3 Stored, open", "4 Stored, open", "nudge 2 as 4", "launch 5 to 2 as 5 after 4"];
    table.stored(Some(Kept::Past(1)), &then);
    table.nudged(3, &[]);
    table.nudged(4, &["free [2, 3, 4]"]);
    table.push(6, &["launch 6 to 2 as 6 after 5"]);
}

#[test]
fn halted_nobody_has_the_user_any_more_or_somebody_else_has() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.answered(2, Delivery::Gone, &["store"]);
    table.batch(&[2], Some(B));
    table.stored(Some(Kept::Stored(1)), &["2 Stored"]);
    assert!(table.route.is_nothing());

    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.answered(2, Delivery::Gone, &["store"]);
    table.batch(&[2], Some(B));
    table.push(3, &[]);
    table.stored(Some(Kept::Elsewhere(C)), &["launch 2 to 3 as 3 after 0", "launch 3 to 3 as 4 after 3"]);
}

#[test]
fn what_is_not_answered_or_not_sent_is_given_up_and_stored() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.expire(&["store"]);
    table.batch(&[2], Some(B));
    table.stored(Some(Kept::Past(1)), &["2 Stored, open", "nudge 2 as 3", "watch"]);
    table.answered(2, Delivery::Delivered, &[]);

    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.take(&["store"], |route, cx| route.unsent(2, cx));
    table.batch(&[2], Some(B));
}

#[test]
fn fenced_nothing_is_done_until_the_nudge_is_answered() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.expire(&["store"]);
    table.batch(&[2], Some(B));
    table.push(3, &[]);
    table.stored(None, &["nudge 2 as 3", "watch"]);
    table.push(4, &[]);
    assert!(table.take_batch().is_none());
    table.nudged(3, &["2 Failed(StoreUnavailable)", "store"]);
    table.batch(&[3, 4], Some(B));
}

#[test]
fn what_came_back_and_is_refused_fails_at_once() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.answered(2, Delivery::Gone, &["store"]);
    table.batch(&[2], Some(B));
    table.push(3, &[]);
    table.stored(Some(Kept::Full(0)), &["2 Failed(Busy)", "launch 3 to 2 as 3 after 0"]);
}

#[test]
fn stored_in_part_past_a_node_owes_a_nudge_and_fences_what_was_given_up() {
    let mut table = Table::via_b();
    (2..=4).for_each(|n| table.take_launch(n));
    table.expire(&["store"]);
    table.batch(&[2, 3, 4], Some(B));
    table.stored(Some(Kept::Refused(1)), &["2 Stored, open", "nudge 2 as 5", "watch"]);
    table.nudged(5, &["3 Failed(StoreUnavailable)", "free [2]", "store"]);
    table.batch(&[4], Some(B));
}

impl Table {
    fn take_launch(&mut self, n: u32) {
        let steps = self.steps(|route, cx| route.push(message(n), cx));
        assert!(matches!(steps[..], [Step::Launch { .. }]), "{steps:?}");
    }
}

#[test]
fn a_nudge_is_repeated_until_it_is_answered_or_that_node_has_the_user_no_more() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.answered(2, Delivery::Gone, &["store"]);
    table.batch(&[2], Some(B));
    table.stored(Some(Kept::Past(1)), &["2 Stored, open", "nudge 2 as 3"]);
    table.expire(&["look", "nudge 2 as 3", "watch"]);
    table.look(Some(B), &[]);
    table.expire(&["look", "nudge 2 as 3", "watch"]);
    table.look(None, &["free [2]"]);

    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.answered(2, Delivery::Gone, &["store"]);
    table.batch(&[2], Some(B));
    table.stored(Some(Kept::Past(1)), &["2 Stored, open", "nudge 2 as 3"]);
    table.take(&[], |route, cx| route.holder_died(NodeId(3), cx));
    table.take(&["free [2]"], |route, cx| route.holder_died(NodeId(2), cx));
    assert!(table.route.is_nothing());
}

#[test]
fn while_the_bus_is_away_all_is_stored_past_the_node_and_the_nudge_is_owed() {
    let mut table = Table::via_b();
    table.up = false;
    table.advance(&[]);
    table.push(2, &["store"]);
    table.batch(&[2], Some(B));
    table.stored(Some(Kept::Past(1)), &["2 Stored, open"]);
    table.push(3, &["store"]);
    table.batch(&[3], Some(B));
    table.stored(Some(Kept::Past(2)), &["3 Stored, open"]);
    assert!(!table.route.is_idle());
    table.up = true;
    table.advance(&["nudge 2 as 2"]);
    table.push(4, &["launch 4 to 2 as 3 after 2"]);
    table.nudged(2, &["free [2, 3]"]);
}

#[test]
fn the_user_comes_here_and_gets_what_is_left_in_order_once_nothing_is_under_way() {
    let mut table = Table::via_b();
    table.push(2, &["launch 2 to 2 as 2 after 0"]);
    table.push(3, &["launch 3 to 2 as 3 after 2"]);
    table.here = true;
    table.push(4, &[]);
    table.answered(2, Delivery::Delivered, &["2 Delivered"]);
    table.answered(3, Delivery::Gone, &["deliver 3", "deliver 4"]);
    assert!(table.route.is_nothing());

    let mut table = Table::new();
    table.push(1, &["store"]);
    table.batch(&[1], None);
    table.here = true;
    table.push(2, &[]);
    table.stored(Some(Kept::Stored(1)), &["1 Stored", "deliver 2"]);
}

#[test]
fn cpp_nodes_are_published_to_and_asked_for_again_each_time() {
    let mut table = Table::new();
    table.push(1, &["store"]);
    table.batch(&[1], None);
    table.push(2, &[]);
    table.stored(Some(Kept::Elsewhere(Holder::Foreign)), &["watch", "publish 1 as 1", "publish 2 as 2"]);
    table.push(3, &[]);
    table.answered(1, Delivery::Delivered, &["1 Delivered"]);
    table.answered(2, Delivery::Delivered, &["2 Delivered", "store"]);
    table.batch(&[3], None);
    table.stored(Some(Kept::Elsewhere(Holder::Foreign)), &["publish 3 as 3"]);
    table.answered(3, Delivery::Gone, &["store"]);
    table.batch(&[3], Some(Holder::Foreign));
    table.stored(Some(Kept::Past(1)), &["3 Stored"]);
    assert!(table.route.is_nothing());
}

#[test]
fn a_batch_has_its_bounds_and_what_came_back_is_all_stored_before_anything_is_launched() {
    let mut table = Table::via_b();
    let all = BATCH_MESSAGES as u32 + 10;
    (0..all).for_each(|n| table.take_launch(n));
    table.take(&["store"], |route, cx| {
        route.give_up(|_| true);
        route.advance(cx);
    });
    assert_eq!(table.take_batch().unwrap().messages.len(), BATCH_MESSAGES);
    let steps = table.steps(|route, cx| route.stored(Some(Kept::Past(1)), cx));
    assert_eq!(steps.last(), Some(&Step::Store), "nothing is launched, nor nudged");
    assert!(!steps.iter().any(|step| matches!(step, Step::Nudge { .. } | Step::Launch { .. })));
    assert_eq!(table.take_batch().unwrap().messages.len(), 10);
}
