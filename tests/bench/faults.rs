//! What goes wrong is reported as what it was, with the right count.

use std::time::Duration;

use serde_json::Value;

use crate::proxy::{Harm, Plan, Proxy, To};
use crate::tool::{Said, load, ours, run};

/// What is counted when something is wrong.
const COUNTS: [&str; 10] = [
    "lost",
    "repeated",
    "out_of_order",
    "changed",
    "refusals",
    "acks_lost",
    "acks_repeated",
    "acks_changed",
    "missed",
    "closed",
];

/// Runs the bench through a proxy that does this harm; the result of the server.
fn harmed(to: To, harm: Harm, times: usize, words: &str) -> (Said, Value) {
    let ours = ours(&[]);
    let proxy = Proxy::start(ours.server.address, Plan { to, harm, times });
    let address = proxy.address.to_string();
    let mut all = vec!["--json", "--addr", &address];
    if !words.contains("--seconds") {
        all.extend(["--seconds", "0.5"]);
    }
    all.extend(words.split_whitespace());
    let said = load(&all);
    assert_eq!(proxy.done(), times, "{said:?}");
    let result = said.result();
    (said, result)
}

/// Just this went wrong, and so often.
#[track_caller]
fn is_all(said: &Said, result: &Value, expected: &[(&str, u64)]) {
    for name in COUNTS {
        let count = expected.iter().find(|(what, _)| *what == name).map_or(0, |(_, count)| *count);
        assert_eq!(result[name], count, "{name}: {said:?}");
    }
    let is_wrong = expected.iter().any(|(name, _)| *name != "missed");
    assert_eq!(said.status, if is_wrong { 2 } else { 0 }, "{said:?}");
    assert!(result["delivered"].as_u64().unwrap() > 40 || result["stored"].as_u64().unwrap() > 40, "{said:?}");
}

const PAIRS: &str = "--users 8 --window 4 --seq";

#[test]
fn nothing_is_wrong_when_nothing_is() {
    for words in
        [PAIRS, "--workload store --users 8 --window 4", "--workload group --users 6 --members 3 --seq --window 2"]
    {
        let (said, result) = harmed(To::Messages, Harm::Drop, 0, words);
        is_all(&said, &result, &[]);
    }
}

#[test]
fn messages() {
    let harms = [
        (Harm::Drop, "lost"),
        (Harm::Repeat, "repeated"),
        (Harm::Swap, "out_of_order"),
        (Harm::Change(" see", " sea"), "changed"),
        (Harm::Change("\"name\":\"u", "\"name\":\"v"), "changed"),
        (Harm::Change("\"msgid\":6", "\"msgid\":7"), "changed"),
        (Harm::Change("\"time\":\"2026", "\"time\":\"2027"), "changed"),
        (Harm::Change("~", "-"), "changed"),
        (Harm::Change("\"msg\":", "\"mgs\":"), "changed"),
        (Harm::Change("}", "]"), "changed"),
        (Harm::Number("\"id\":"), "changed"),
        (Harm::Number("\"toid\":"), "changed"),
        (Harm::Number("\"#"), "changed"),
        (Harm::Number(" @"), "changed"),
    ];
    for (harm, what) in harms {
        let (said, result) = harmed(To::Messages, harm, 3, PAIRS);
        is_all(&said, &result, &[(what, 3)]);
    }
}

#[test]
fn acks() {
    let harms = [
        (Harm::Drop, Some("acks_lost")),
        (Harm::Repeat, Some("acks_repeated")),
        (Harm::Number("\"seq\":"), Some("acks_changed")),
        (Harm::Change("\"msgid\":200", "\"msgid\":299"), Some("acks_changed")),
        (Harm::Change("seq", "seg"), Some("acks_changed")),
        // Acks may come in any order.
        (Harm::Swap, None),
    ];
    for words in [PAIRS, "--workload store --users 8 --window 8 --seconds 1"] {
        for (harm, what) in harms {
            let (said, result) = harmed(To::Acks, harm, 3, words);
            is_all(&said, &result, &what.map(|what| (what, 3)).into_iter().collect::<Vec<_>>());
        }
    }
    let (_, result) = harmed(To::Acks, Harm::Swap, 3, PAIRS);
    assert!(result["acks_out_of_order"].as_u64().unwrap() >= 1, "{result}");
}

#[test]
fn three_acks_dropped_and_three_doubled_are_six_faults() {
    let ours = ours(&[]);
    let dropping = Proxy::start(ours.server.address, Plan { to: To::Acks, harm: Harm::Drop, times: 3 });
    let doubling = Proxy::start(dropping.address, Plan { to: To::Acks, harm: Harm::Repeat, times: 3 });
    let said = run(&format!("--json --seconds 1 --addr {} {PAIRS}", doubling.address));
    is_all(&said, &said.result(), &[("acks_lost", 3), ("acks_repeated", 3)]);
}

#[test]
fn a_message_lost_and_another_one_doubled_do_not_make_up_for_each_other() {
    let ours = ours(&[]);
    let dropping = Proxy::start(ours.server.address, Plan { to: To::Messages, harm: Harm::Drop, times: 4 });
    let doubling = Proxy::start(dropping.address, Plan { to: To::Messages, harm: Harm::Repeat, times: 4 });
    let said = run(&format!("--json --seconds 1 --addr {} {PAIRS}", doubling.address));
    is_all(&said, &said.result(), &[("lost", 4), ("repeated", 4)]);
}

#[test]
fn in_groups_each_delivery_counts() {
    let words = "--workload group --users 9 --members 3 --window 2 --seq";
    for (harm, what) in [(Harm::Drop, "lost"), (Harm::Repeat, "repeated"), (Harm::Swap, "out_of_order")] {
        let (said, result) = harmed(To::Messages, harm, 3, words);
        is_all(&said, &result, &[(what, 3)]);
    }
    let (said, result) = harmed(To::Acks, Harm::Drop, 3, words);
    is_all(&said, &result, &[("acks_lost", 3)]);
}

#[test]
fn an_open_loop_counts_the_same() {
    for (harm, what) in [(Harm::Drop, "lost"), (Harm::Repeat, "repeated"), (Harm::Number("\"#"), "changed")] {
        let (said, result) = harmed(To::Messages, harm, 3, "--users 8 --rate 2000 --seq");
        is_all(&said, &result, &[(what, 3)]);
    }
}

#[test]
fn a_loss_does_not_thin_out_a_closed_loop() {
    // Each of two pairs has one message in flight, and loses it again and again.
    let (said, result) = harmed(To::Messages, Harm::Drop, 4, "--users 4 --seconds 12");
    is_all(&said, &result, &[("lost", 4)]);
}

#[test]
fn a_stop_of_a_second_is_the_maximum_in_any_of_the_rounds() {
    for words in ["--users 8 --rounds 2 --seconds 1", "--users 8 --rounds 3 --seconds 1 --rate 1000"] {
        let (said, result) = harmed(To::Messages, Harm::Stop(Duration::from_secs(1)), 1, words);
        is_all(&said, &result, &[]);
        let max = result["latency"]["chat"]["max_us"].as_f64().unwrap();
        assert!(max >= 990_000.0, "{said:?}");
    }
}

#[test]
fn an_open_loop_counts_a_stop_for_all_that_were_due_in_it() {
    let (_, closed) = harmed(To::Messages, Harm::Stop(Duration::from_secs(1)), 1, "--users 8 --seconds 3");
    let words = "--users 8 --seconds 3 --rate 1000";
    let (_, open) = harmed(To::Messages, Harm::Stop(Duration::from_secs(1)), 1, words);
    let p99 = |result: &Value| result["latency"]["chat"]["p99_us"].as_f64().unwrap();
    assert!(p99(&open) > 500_000.0, "a third of them waited: {open}");
    assert!(p99(&closed) < 500_000.0, "one in flight for each pair waited: {closed}");
}

#[test]
fn connections_that_the_server_ends_are_told() {
    let (said, result) = harmed(To::Messages, Harm::Cut, 1, "--users 8");
    assert_eq!((said.status, &result["closed"]), (2, &1.into()), "{said:?}");
}

#[test]
fn what_is_refused_is_no_throughput_and_told_with_its_errno_and_a_sample() {
    let ours = ours(&["--max-offline", "5"]);
    let words = format!("--json --seconds 1 --workload store --users 4 --addr {}", ours.server.address);
    let said = run(&words);
    let result = said.result();
    assert_eq!((said.status, &result["stored"], &result["lost"]), (2, &20.into(), &0.into()), "{said:?}");
    let refused = &result["refused"]["20"];
    assert!(refused["count"].as_u64().unwrap() > 20, "{said:?}");
    assert!(refused["sample"].as_str().unwrap().contains("\"errno\":20"), "{said:?}");
    assert_eq!(result["messages_per_s"], 0.0, "{said:?}");
    // The same again, as what is expected.
    let said = run(&format!("{words} --expect-errno 20"));
    assert_eq!(said.status, 0, "{said:?}");
}

#[test]
fn refusals_without_a_seq_are_no_losses() {
    let ours = ours(&["--max-message-rate", "20"]);
    let said = run(&format!("--json --seconds 1 --users 4 --window 64 --rate 2000 --addr {}", ours.server.address));
    assert_eq!(said.status, 1, "a rate has no window: {said:?}");
    let said = run(&format!("--json --seconds 1 --users 4 --rate 2000 --addr {}", ours.server.address));
    let result = said.result();
    assert_eq!((said.status, &result["lost"]), (2, &0.into()), "{said:?}");
    assert!(result["refused"]["20"]["count"].as_u64().unwrap() > 0, "{said:?}");
}
