//! A model of order between nodes: how messages of one user to another arrive in the order in which they were sent,
//! and none that was acked is lost, though nodes, lines, Redis and transactions fail, and users move from node to node.
//!
//! It is the design that is checked here, not the code of the server: every state that the model can reach within
//! small bounds is looked at, and each rule of the design is taken out to see that something goes wrong without it.
//!
//! # What is modelled
//!
//! * Three nodes, A, B and C. One sender, on A at first, and one recipient, on B, who reads as slowly as he likes. Both
//!   may log out and in again, on the same node at once or elsewhere when their claim is released.
//! * One Redis: payloads between nodes, which it passes on late, or to no node; publisher connections that break, and
//!   payloads of theirs that come afterwards or never; subscriptions that break; leases that run out; Redis away for
//!   all nodes, with the leases lost or kept.
//! * One store with the two users' claims, the recipient's messages, and the marks and counters of nodes. A transaction
//!   happens at once or is refused; its result may come while its node may not act on it.
//! * Nodes that stop and resume, that are deaf, that are suspected, marked, announced as dead and reaped.
//!
//! # What is not
//!
//! * Groups, nodes of the C++ server, and what a node's threads do among themselves.
//! * Time: a timer may run out whenever what it waits for has not come. What the design orders by time is ordered here
//!   by steps: claims are freed when the looks that were begun before the mark are over, and a Redis that is back is
//!   trusted when each healthy node has renewed its lease.
//! * More than one sender or recipient. Order is promised for the messages of one user to another, so others matter
//!   only in that they use the same lines.
//! * A node that begins anew after it was marked: it is a new node. A commit in doubt is one that takes longer.
//!
//! # What must hold
//!
//! In every state: the recipient has read what he has read in the order sent, repeats aside; what was acked is read,
//! stored or about to be written; no session has read or written by a claim that was gone; no node was marked because
//! Redis was away. And from every state, if nothing more fails, all comes to rest: no route is stuck, no user is locked
//! out, and the recipient gets what is stored. That is tried for three futures: what is broken is mended, it stays as
//! it is for good, Redis stays away for good.
//!
//! # Where to look
//!
//! | module | what it has |
//! | --- | --- |
//! | [`state`] | a cluster at one moment |
//! | [`action`] | what can happen next |
//! | [`model`] | a step: what happens then, in [`bus`], [`route`], [`session`], [`users`] and [`lives`] |
//! | [`rules`], [`cases`] | the rules, and what goes wrong without each |
//! | [`rest`] | what becomes of a state if nothing more fails |
//! | [`bounds`], [`checking`], [`walk`] | how far the model goes, and how it is explored |
//!
//! # Longer runs
//!
//! Explorations are exhaustive within their bounds and have the same result always. What is wider is walked at random,
//! from the same seeds always; `CHAT_MODEL_SECONDS=n` walks for n seconds instead, from the seed
//! `CHAT_MODEL_SEED` on, so that another seed sees other walks:
//!
//! ```sh
//! CHAT_MODEL_SECONDS=600 CHAT_MODEL_SEED=1000000 cargo test --test order_model random -- --nocapture
//! ```

mod action;
mod bounds;
mod bus;
mod cases;
mod checking;
mod list;
mod lives;
mod model;
mod rest;
mod route;
mod rules;
mod session;
mod state;
mod users;
mod walk;

use std::env;
use std::time::{Duration, Instant};

use action::Kind;
use bounds::Bounds;
use cases::{CASES, COVERED, WIDER};
use checking::{Explored, explore};
use rules::{EVERY_RULE, Rule, Rules};
use walk::{Until, walk};

/// Explores, and reports what it took.
fn explored(title: &str, without: &[Rule], bounds: Bounds) -> Explored {
    let mut rules = Rules::ALL;
    for rule in without {
        rules = rules.without(*rule);
    }
    let begun = Instant::now();
    let explored = explore(rules, bounds);
    let found = match &explored.counterexample {
        Some(found) => format!("{:?} in {} steps", found.violation, found.actions.len()),
        None => "all holds".to_owned(),
    };
    println!("{title}: {} states in {:.1} s, {found}", explored.states, begun.elapsed().as_secs_f32());
    explored
}

fn assert_holds(title: &str, without: &[Rule], bounds: Bounds) {
    if let Some(found) = explored(title, without, bounds).counterexample {
        panic!("{title}, {bounds:?}: {found}");
    }
}

#[test]
fn every_rule_is_taken_out_somewhere() {
    for rule in EVERY_RULE {
        let has_case = CASES.iter().any(|case| case.without.contains(rule));
        let is_covered = COVERED.iter().any(|covered| covered.rule == *rule);
        assert!(has_case || is_covered, "nothing shows what {rule:?} is for");
    }
}

#[test]
fn without_a_rule_something_goes_wrong() {
    let mut wrong = Vec::new();
    for case in CASES {
        let title = format!("without {:?}", case.without);
        let found = explored(&title, case.without, case.bounds).counterexample;
        let violation = found.as_ref().map(|found| found.violation);
        if violation != Some(case.expected) {
            let found = found.map_or("nothing".to_owned(), |found| found.to_string());
            wrong.push(format!("{title}: {:?} was expected, not {found}", case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_a_rule_that_others_cover_for_all_holds() {
    for covered in COVERED {
        assert_holds(&format!("without {:?}", covered.rule), &[covered.rule], covered.bounds);
    }
}

#[test]
fn with_all_rules_all_holds_within_the_bounds_of_each_case() {
    let mut seen = Vec::new();
    for case in CASES {
        if !seen.contains(&case.bounds) {
            seen.push(case.bounds);
            assert_holds(&format!("with {:?}", case.without), &[], case.bounds);
        }
    }
}

#[test]
fn with_all_rules_all_holds_within_wider_bounds() {
    for bounds in WIDER {
        assert_holds("wider", &[], *bounds);
    }
}

/// Steps that there are only with a rule taken out.
const NEVER: [Kind; 6] = [
    Kind::CommitSecondRouteJob,
    Kind::DoubtRouteJob,
    Kind::DelayRouteJob,
    Kind::CommitLate,
    Kind::CommitOrphan,
    Kind::MissLease,
];

#[test]
fn with_all_rules_all_holds_on_random_walks() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse().expect(name));
    let until = match number("CHAT_MODEL_SECONDS") {
        Some(seconds) => Until::Passed(Duration::from_secs(seconds)),
        None => Until::Walks(20_000),
    };
    let begun = Instant::now();
    match walk(number("CHAT_MODEL_SEED").unwrap_or(0), until) {
        Ok(walked) => {
            println!("{} walks, {} steps in {:.1} s", walked.walks, walked.steps, begun.elapsed().as_secs_f32());
            for kind in action::EVERY_KIND {
                let expected = !NEVER.contains(kind);
                assert_eq!(walked.kinds.contains(kind), expected, "whether {kind:?} has happened");
            }
        }
        Err(failure) => panic!("seed {}: {}", failure.seed, failure.counterexample),
    }
}
