//! The pure parts of the bench: its statistics, and what it makes of numbers that come.

#[allow(dead_code)]
#[path = "../../benches/load/schedule.rs"]
mod schedule;
#[path = "../../benches/load/search.rs"]
mod search;
#[allow(dead_code)]
#[path = "../../benches/load/stats.rs"]
mod stats;
#[allow(dead_code)]
#[path = "../../benches/load/tally.rs"]
mod tally;
#[allow(dead_code)]
#[path = "../../benches/load/timeline.rs"]
mod timeline;

use schedule::Schedule;
use search::{Care, search};
use stats::{Rng, Row, median, ratios};
use tally::{Ack, Acks, Arrival, Counts, Order};
use timeline::{STEP, Step, Timeline};

#[test]
fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
    assert_eq!(median(vec![4.0, 1.0]), 2.5);
    assert_eq!(median(vec![9.0, 1.0, 3.0, 5.0]), 4.0);
    assert_eq!(median(vec![7.0, 1.0, 3.0]), 3.0);
    assert_eq!(median(vec![5.0]), 5.0);
}

#[test]
fn a_repeated_message_does_not_stand_for_a_lost_one() {
    let mut order = Order::default();
    assert_eq!(order.arrive(0), Arrival::New { gap: 0 });
    assert_eq!(order.arrive(3), Arrival::New { gap: 2 });
    assert_eq!(order.arrive(3), Arrival::Repeated);
    assert_eq!(order.arrive(0), Arrival::Repeated);
    assert_eq!(order.missing(5), 3);
    assert_eq!(order.arrive(1), Arrival::Late);
    assert_eq!(order.arrive(1), Arrival::Repeated);
    assert_eq!(order.missing(5), 2);
    assert!(order.has(1) && !order.has(2) && order.has(3) && !order.has(4));
}

#[test]
fn any_order_of_arrival_is_accounted_for() {
    let mut rng = Rng(7);
    for _ in 0..200 {
        let (mut order, mut came) = (Order::default(), std::collections::BTreeSet::new());
        for _ in 0..60 {
            let number = rng.below(40) as u64;
            let is_highest = came.iter().next_back().is_none_or(|highest| number > *highest);
            let is_new = came.insert(number);
            match order.arrive(number) {
                Arrival::New { .. } => assert!(is_new && is_highest),
                Arrival::Late => assert!(is_new && !is_highest),
                Arrival::Repeated => assert!(!is_new),
            }
        }
        assert_eq!(order.missing(40), 40 - came.len() as u64);
        assert!((0..40).all(|number| order.has(number) == came.contains(&number)));
    }
}

#[test]
fn acks_are_matched_by_their_seq() {
    let mut acks = Acks::default();
    (0..4).for_each(|seq| acks.owe(seq, 100 + seq));
    assert_eq!(acks.come(2), Ack::Owed { at: 102, late: false });
    assert_eq!(acks.come(2), Ack::Repeated);
    assert_eq!(acks.come(0), Ack::Owed { at: 100, late: true });
    assert_eq!(acks.come(0), Ack::Repeated);
    assert_eq!(acks.come(9), Ack::Unknown);
    assert_eq!(acks.pending(), 2);
    assert_eq!(acks.come(1), Ack::Owed { at: 101, late: true });
    assert_eq!(acks.come(3), Ack::Owed { at: 103, late: false });
    assert_eq!((acks.come(3), acks.pending()), (Ack::Repeated, 0));
    acks.owe(4, 104);
    assert_eq!(acks.come(5), Ack::Unknown);
    assert_eq!(acks.come(4), Ack::Owed { at: 104, late: false });
}

#[test]
fn refusals_that_are_expected_are_no_failure() {
    let mut counts = Counts::default();
    counts.refuse("20", 3, b"{\"errno\":20}");
    counts.refuse("21", 1, b"{\"errno\":21}");
    counts.refuse("20", 1, b"another one");
    assert_eq!((counts.refusals(), counts.wrong(&[]), counts.wrong(&[20]), counts.wrong(&[20, 21])), (5, 5, 1, 0));
    assert_eq!(counts.refused["20"].sample, "{\"errno\":20}");
    // Acts that were not done, and acks in another order, are reported and do not count as wrong.
    counts.missed = 7;
    counts.acks_out_of_order = 7;
    assert_eq!(counts.wrong(&[20, 21]), 0);
}

/// Rounds around `mean` that spread by `spread`, both as parts of it.
fn rounds(rng: &mut Rng, mean: f64, spread: f64) -> Vec<f64> {
    let uniform = |rng: &mut Rng| (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
    (0..7).map(|_| mean * (1.0 + spread * ((0..4).map(|_| uniform(rng)).sum::<f64>() - 2.0))).collect()
}

#[test]
fn the_intervals_of_all_rows_together_hold_the_truth_19_times_of_20() {
    let mut rng = Rng(42);
    for is_paired in [true, false] {
        let mut missed = 0;
        for seed in 0..30 {
            let rows: Vec<Row> = [0.01, 0.05, 0.2, 0.2, 0.3]
                .map(|spread| Row { old: rounds(&mut rng, 100.0, spread), new: rounds(&mut rng, 100.0, spread) })
                .to_vec();
            let wrong = ratios(&rows, is_paired, seed).into_iter().any(|ratio| ratio.low > 1.0 || ratio.high < 1.0);
            missed += u32::from(wrong);
        }
        assert!(missed <= 4, "{missed} of 30, paired: {is_paired}");
    }
}

#[test]
fn a_difference_that_is_there_is_seen() {
    let mut rng = Rng(1);
    let row = |old: f64, new: f64, rng: &mut Rng| Row { old: rounds(rng, old, 0.01), new: rounds(rng, new, 0.01) };
    let rows = [row(100.0, 110.0, &mut rng), row(100.0, 100.0, &mut rng), row(100.0, 90.0, &mut rng)];
    let found = ratios(&rows, true, 3);
    assert!(found[0].low > 1.02 && found[0].high < 1.2, "{found:?}");
    assert!(found[1].low < 1.0 && found[1].high > 1.0, "{found:?}");
    assert!(found[2].high < 1.0 / 1.02, "{found:?}");
    // The same seed says the same.
    assert_eq!(ratios(&rows, true, 3), found);
}

/// A second's steps of a timeline, all alike.
fn second(timeline: &mut Timeline, second: u64, step: Step) {
    (0..1_000_000_000 / STEP).for_each(|n| *timeline.at(second * 1_000_000_000 + n * STEP) = step);
}

#[test]
fn a_recipient_is_served_as_before_when_it_stays_so() {
    let step = |live: u64, arrived: u64| Step { sent: 100, live, stored: 100 - live, arrived };
    let (before, still, stored) = (step(100, 100), step(0, 0), step(0, 50));
    let back = |steps: &[Step]| {
        let mut timeline = Timeline::default();
        steps.iter().enumerate().for_each(|(n, &step)| second(&mut timeline, n as u64, step));
        timeline.end(steps.len() as u64 * 1_000_000_000);
        timeline.back(&(1_000_000_000..2_000_000_000), 1000.0)
    };
    let catches_up = step(50, 200);
    assert_eq!(back(&[before, still, before, before, before]), Some(0.0));
    // Not before enough of what is sent is live again.
    let late = back(&[before, still, catches_up, before, before]).unwrap();
    assert!((0.8..=1.0).contains(&late), "{late}");
    // Once is not enough: it must stay so, for a second at least.
    assert_eq!(back(&[before, still, before, before, stored]), None);
    assert!(back(&[before, still, before, stored, before]).unwrap() > 1.8);
    assert_eq!(back(&[before, still, stored, stored, stored]), None);
    // Live, but at less than 95 % of the rate; and at exactly 95 %.
    assert_eq!(back(&[before, still, step(94, 94), step(94, 94)]), None);
    assert_eq!(back(&[before, still, step(95, 95), step(95, 95)]), Some(0.0));
    assert_eq!(back(&[before, still, step(100, 80), step(100, 80)]), None);
    // A tenth of a second in which nothing comes is made up for by the next.
    let mut timeline = Timeline::default();
    [before, still, before, before, before].into_iter().enumerate().for_each(|(n, step)| {
        second(&mut timeline, n as u64, step);
    });
    timeline.at(3_500_000_000).arrived = 0;
    timeline.at(3_600_000_000).arrived = 200;
    assert_eq!(timeline.back(&(1_000_000_000..2_000_000_000), 1000.0), Some(0.0));
    // What is behind the end says nothing.
    timeline.end(2_950_000_000);
    assert_eq!(timeline.back(&(1_000_000_000..2_000_000_000), 1000.0), None);
}

#[test]
fn a_rate_grows_evenly_and_is_kept_then() {
    let second = 1_000_000_000;
    let mut grows = Schedule::new(1000.0, 2 * second);
    grows.started = 5 * second;
    // Half as many come in the two seconds as later in one.
    for (seconds, due) in [(0, 0), (1, 250), (2, 1000), (3, 2000), (4, 3000)] {
        assert_eq!(grows.due_by(5 * second + seconds * second), due);
    }
    for number in [0, 1, 17, 249, 998, 999, 1000, 5000] {
        let at = grows.at(number);
        assert_eq!((grows.due_by(at + 1000), grows.due_by(at - 1000)), (number + 1, number), "{number}");
    }
    let mut steady = Schedule::new(500.0, 0);
    steady.started = second;
    assert_eq!((steady.at(0), steady.at(499), steady.due_by(2 * second)), (1_002_000_000, 2 * second, 500));
}

#[test]
fn the_highest_value_that_is_kept_is_found_from_below_and_from_above() {
    let care = Care { ratio: 1.05, times: 3 };
    for first in [1.0, 1000.0, 41_000.0, 5e6] {
        let mut tries = 0;
        let found = search(first, care, |value| {
            tries += 1;
            Some(value <= 41_000.0)
        });
        let (kept, broken) = (found.kept.unwrap(), found.broken.unwrap());
        assert!(kept <= 41_000.0 && broken > 41_000.0 && broken / kept < 1.06, "{first}: {found:?}");
        assert!(found.times == 3 && tries < 40, "{first}: {found:?} in {tries}");
    }
    let none = search(1000.0, care, |_| Some(false));
    assert_eq!((none.kept, none.times), (None, 0));
    // It ends when it is told to, with what there is.
    let mut left = 3;
    let cut = search(1000.0, care, |_| {
        left -= 1;
        (left >= 0).then_some(true)
    });
    assert_eq!((cut.kept, cut.broken), (Some(4000.0), None));
}

#[test]
fn what_was_kept_by_chance_is_not_what_is_found() {
    let care = Care { ratio: 1.05, times: 3 };
    for seed in 0..50 {
        let mut rng = Rng(seed);
        // Below 900 always, above 1100 never, and between sometimes.
        let mut tries = 0;
        let found = search(100.0, care, |value| {
            tries += 1;
            let chance = ((1100.0 - value) / 200.0).clamp(0.0, 1.0);
            (tries < 200).then(|| (rng.below(1000) as f64) < chance * 1000.0)
        });
        let kept = found.kept.unwrap();
        assert!((800.0..1100.0).contains(&kept) && found.times == 3, "{seed}: {found:?} in {tries}");
    }
}
