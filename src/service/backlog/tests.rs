//! The table of a backlog's stages: what happens, and the steps that are taken then.

use super::*;

const LIMIT: usize = 100;

struct Table {
    backlog: Backlog,
    now: Instant,
}

fn message(n: u64) -> Undelivered {
    Undelivered { body: Arc::from([n as u8]), receipt: Receipt::Node { node: NodeId(1 + n / 10), to: 1, number: n } }
}

fn name(receipt: Receipt) -> u64 {
    match receipt {
        Receipt::Node { number, .. } => number,
        other => panic!("{other:?}"),
    }
}

fn show(step: Step, half: bool) -> String {
    match step {
        Step::Store(parcels) => {
            let messages: Vec<u8> = parcels.iter().flat_map(|parcel| &parcel.messages).map(|body| body[0]).collect();
            let is_half = |parcel: &Parcel| parcel.messages.len() == 1;
            format!("store {messages:?}{}", if is_half(&parcels[0]) && half { " with a half" } else { "" })
        }
        Step::Page => "page".to_owned(),
        Step::Remove(rows) => format!("remove {rows:?}"),
        Step::Forget(rows) => format!("forget {rows:?}"),
        Step::Live => "live".to_owned(),
        Step::Deliver(message) => format!("deliver {}", message.body[0]),
        Step::Settle(receipt, delivery) => format!("{} {delivery:?}", name(receipt)),
        Step::Fence(node) => format!("fence {}", node.0),
        Step::Nudged(Nudger::Node(node, number)) => format!("nudged {} {number}", node.0),
        Step::Nudged(Nudger::Burial(number)) => format!("buried {number}"),
        Step::Watch(_) => "watch".to_owned(),
    }
}

impl Table {
    fn of(backlog: impl Fn(Instant) -> Backlog) -> Table {
        let now = Instant::now();
        Table { backlog: backlog(now), now }
    }

    /// One whose queue is empty, and of which a page is being read.
    fn reading() -> Table {
        let mut table = Table::of(|now| Backlog::behind(1, now));
        table.take(&[], |backlog, cx| backlog.recalled(Vec::new(), false, cx));
        table.take(&["page"], |backlog, cx| backlog.drained(cx));
        table
    }

    #[track_caller]
    fn take(&mut self, expected: &[&str], take: impl FnOnce(&mut Backlog, &mut Context)) {
        let mut cx = Context { now: self.now, steps: Vec::new() };
        take(&mut self.backlog, &mut cx);
        assert_eq!(cx.steps.into_iter().map(|step| show(step, self.backlog.has_half())).collect::<Vec<_>>(), expected);
        let bytes = self.backlog.held.iter().chain(&self.backlog.storing).map(|message| message.body.len());
        assert_eq!(self.backlog.bytes, bytes.sum::<usize>());
    }
    #[track_caller]
    fn hold(&mut self, n: u64, expected: &[&str]) {
        self.take(expected, |backlog, cx| backlog.hold(message(n), LIMIT, cx));
    }
    #[track_caller]
    fn stored(&mut self, kept: &[Kept], expected: &[&str]) {
        self.take(expected, |backlog, cx| backlog.stored(kept, cx));
    }
    #[track_caller]
    fn page(&mut self, messages: usize, expected: &[&str]) {
        self.take(expected, |backlog, cx| backlog.page(messages, cx));
    }
    #[track_caller]
    fn written(&mut self, row: RowId, expected: &[&str]) {
        self.take(expected, |backlog, cx| backlog.rows_written(&[row], cx));
    }
    #[track_caller]
    fn a_second(&mut self, expected: &[&str]) {
        self.now += HELD;
        self.take(expected, |backlog, cx| backlog.time(cx));
    }
    #[track_caller]
    fn recalled(&mut self, begun: Option<u64>, others: &[u64], expected: &[&str]) {
        let begun = begun.map(|n| (message(n), true));
        let list = begun.into_iter().chain(others.iter().map(|n| (message(*n), false))).collect();
        self.take(expected, |backlog, cx| backlog.recalled(list, false, cx));
    }
}

#[test]
fn a_page_is_written_and_removed_before_the_next_is_read_and_what_came_meanwhile_is_delivered_last() {
    let mut table = Table::reading();
    table.page(2, &[]);
    table.hold(1, &["watch"]);
    table.written(11, &[]);
    table.written(12, &["remove [11, 12]"]);
    table.hold(2, &[]);
    table.take(&["page"], |backlog, cx| backlog.removed(true, cx));
    table.page(0, &["live", "deliver 1", "deliver 2"]);
}

#[test]
fn what_is_held_for_a_second_or_is_too_much_is_stored_and_then_the_store_is_read_again() {
    let mut table = Table::reading();
    table.hold(1, &["watch"]);
    table.a_second(&["store [1]"]);
    table.hold(2, &[]);
    table.page(0, &["watch"]);
    table.stored(&[Kept::Stored(5)], &["1 Stored", "page"]);
    table.page(0, &["live", "deliver 2"]);

    let mut table = Table::reading();
    let much = Undelivered { body: vec![1; LIMIT + 1].into(), ..message(1) };
    table.take(&["store [1]"], |backlog, cx| backlog.hold(much, LIMIT, cx));
}

#[test]
fn what_comes_for_a_client_that_reads_nothing_is_stored_at_once_by_one_job_at_a_time() {
    let mut table = Table::of(|now| Backlog::behind(1, now));
    table.recalled(None, &[1, 2], &["store [1, 2]"]);
    table.hold(3, &[]);
    table.stored(&[Kept::Stored(1)], &["1 Stored", "2 Stored", "store [3]"]);
    table.take(&[], |backlog, cx| backlog.drained(cx));
    table.stored(&[Kept::Stored(3)], &["3 Stored", "page"]);
}

#[test]
fn a_nudger_is_told_when_all_before_it_is_stored_and_not_when_it_is_read() {
    let mut table = Table::of(|now| Backlog::to_recall(1, now));
    table.take(&[], |backlog, cx| backlog.nudge(Nudger::Node(NodeId(9), 4), cx));
    table.hold(2, &[]);
    table.recalled(None, &[1], &["store [1, 2]"]);
    table.hold(3, &[]);
    table.stored(&[Kept::Stored(1)], &["1 Stored", "2 Stored", "nudged 9 4", "store [3]"]);
    // Nothing is held: at once.
    let mut table = Table::reading();
    table.take(&["nudged 9 5"], |backlog, cx| backlog.nudge(Nudger::Node(NodeId(9), 5), cx));
    table.page(0, &["page"]);
    table.take(&["buried 1"], |backlog, cx| backlog.nudge(Nudger::Burial(1), cx));
}

#[test]
fn a_half_written_message_is_stored_first_and_its_row_goes_when_the_rest_is_written() {
    let mut table = Table::of(|now| Backlog::behind(1, now));
    table.recalled(Some(1), &[2], &["store [1, 2] with a half"]);
    table.stored(&[Kept::Stored(5), Kept::Stored(6)], &["1 Stored", "2 Stored"]);
    table.take(&["forget [5]"], |backlog, cx| assert!(backlog.chat_written(cx)));
    table.take(&["page"], |backlog, cx| backlog.drained(cx));
    // The rest is written while it is being stored.
    let mut table = Table::of(|now| Backlog::behind(1, now));
    table.recalled(Some(1), &[], &["store [1] with a half"]);
    table.take(&[], |backlog, cx| assert!(backlog.chat_written(cx)));
    table.take(&[], |backlog, cx| backlog.drained(cx));
    table.stored(&[Kept::Stored(5)], &["forget [5]", "1 Stored", "page"]);
    // It was refused: it is written, or fails.
    let mut table = Table::of(|now| Backlog::behind(1, now));
    table.recalled(Some(1), &[12], &["store [1, 12] with a half"]);
    let then = ["fence 1", "12 Failed(Busy)", "fence 2"];
    table.stored(&[Kept::Full(0), Kept::Full(0)], &then);
    table.take(&[], |backlog, cx| assert!(!backlog.chat_written(cx)));
    // Its connection is gone.
    let mut table = Table::of(|now| Backlog::behind(1, now));
    table.recalled(Some(1), &[2], &["store [1, 2] with a half"]);
    assert_eq!(table.backlog.cut(), Ok(true));
    table.stored(&[Kept::Stored(5), Kept::Stored(6)], &["1 Stored", "2 Stored"]);
    assert!(!table.backlog.has_half());
}

#[test]
fn what_follows_a_refused_message_of_a_node_goes_back_there() {
    let mut table = Table::of(|now| Backlog::behind(1, now));
    table.recalled(None, &[1, 2, 11], &["store [1, 2, 11]"]);
    table.hold(3, &[]);
    table.hold(12, &[]);
    let then = ["1 Stored", "2 Failed(StoreUnavailable)", "fence 1", "3 Gone", "store [11, 12]"];
    table.stored(&[Kept::Refused(1)], &then);
    table.stored(&[], &["11 Failed(StoreUnavailable)", "fence 2", "12 Failed(StoreUnavailable)", "fence 2"]);
}

#[test]
fn what_the_store_does_not_do_is_tried_again() {
    let mut table = Table::reading();
    table.take(&["watch"], |backlog, cx| backlog.page_failed(cx));
    table.a_second(&["page"]);
    table.page(1, &[]);
    table.written(7, &["remove [7]"]);
    table.take(&["watch"], |backlog, cx| backlog.removed(false, cx));
    table.a_second(&["remove [7]"]);
    table.take(&["page"], |backlog, cx| backlog.removed(true, cx));
}

#[test]
fn a_login_is_live_behind_its_reply_unless_there_is_more() {
    let mut table = Table::of(|now| Backlog::loading(1, now));
    table.hold(1, &["watch"]);
    table.take(&["live", "deliver 1"], |backlog, cx| backlog.loaded(false, false, cx));
    let mut table = Table::of(|now| Backlog::loading(1, now));
    table.take(&[], |backlog, cx| backlog.loaded(true, false, cx));
    table.take(&["remove [1, 2]"], |backlog, cx| backlog.rows_written(&[1, 2], cx));
    table.take(&["page"], |backlog, cx| backlog.removed(true, cx));
    table.page(0, &["live"]);
    let mut table = Table::of(|now| Backlog::loading(1, now));
    table.take(&["page"], |backlog, cx| backlog.loaded(false, true, cx));
    // What was stored while the reply was being read is read behind it.
    let mut table = Table::of(|now| Backlog::loading(1, now));
    table.hold(1, &["watch"]);
    table.a_second(&["store [1]"]);
    table.take(&[], |backlog, cx| backlog.loaded(false, false, cx));
    table.stored(&[Kept::Stored(1)], &["1 Stored", "page"]);
}

#[test]
fn an_end_stores_all_that_is_left_and_waits_for_nobody_who_reads() {
    let mut table = Table::reading();
    table.page(2, &[]);
    table.written(7, &[]);
    table.hold(1, &["watch"]);
    table.take(&["forget [7]"], |backlog, cx| backlog.end(false, cx));
    assert!(!table.backlog.is_settled());
    table.recalled(None, &[], &["store [1]"]);
    table.hold(2, &[]);
    table.stored(&[Kept::Stored(1)], &["1 Stored", "store [2]"]);
    table.stored(&[Kept::Stored(2)], &["2 Stored"]);
    assert!(table.backlog.is_settled());
    // Some of an offline message is written: that has its time.
    let mut table = Table::reading();
    table.page(1, &[]);
    table.take(&[], |backlog, cx| backlog.end(false, cx));
    table.take(&[], |backlog, cx| backlog.recalled(Vec::new(), true, cx));
    assert!(!table.backlog.is_settled());
    table.written(7, &["forget [7]"]);
    assert!(table.backlog.is_settled());
}

#[test]
fn the_backlog_of_a_user_who_has_come_back_is_watched_by_a_timer_of_the_new_session() {
    let mut table = Table::reading();
    table.hold(1, &["watch"]);
    table.take(&[], |backlog, cx| backlog.end(false, cx));
    table.recalled(None, &[], &["store [1]"]);
    table.stored(&[Kept::Stored(1)], &["1 Stored"]);
    let now = table.now;
    table.backlog.begin_anew(7, now);
    table.hold(2, &["watch"]);
    table.a_second(&["store [2]"]);
}
