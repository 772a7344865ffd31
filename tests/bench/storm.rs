//! Storms: who comes is served or counted, phase by phase; and clients beside them that never log in.

use std::process::Child;

use serde_json::Value;

use crate::support::eventually;
use crate::tool::{Ours, Said, finish, load, ours, run, signal, start};

/// How many times there are of a phase.
fn count(result: &Value, phase: &str) -> u64 {
    result["latency"][phase]["count"].as_u64().unwrap_or(0)
}

#[track_caller]
fn all_are_served(said: &Said, users: u64) -> Value {
    let result = said.result();
    let storm = &result["storm"];
    assert_eq!((&storm["users"], &storm["served"]), (&users.into(), &users.into()), "{said:?}");
    assert!(storm["all_s"].as_f64().unwrap() > 0.0, "{said:?}");
    assert_eq!((said.status, count(&result, "served"), count(&result, "login")), (0, users, users), "{said:?}");
    result
}

/// The refusals of all kinds.
fn refusals(result: &Value) -> u64 {
    result["refusals"].as_u64().unwrap()
}

#[test]
fn as_many_log_in_as_are_to_at_the_rate_and_each_phase_is_timed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (out, csv, html) = (file("run.json"), file("run.csv"), file("run.html"));
    let said = run(&format!("--workload storm --users 40 --rate 50 --json --out {out} --csv {csv} --html {html}"));
    let result = all_are_served(&said, 40);
    for phase in ["lag", "connect", "accept"] {
        assert_eq!(count(&result, phase), 40, "{phase}: {said:?}");
    }
    // Jobs that are done together have waited as one.
    assert!(count(&result, "queue") > 0 && count(&result, "store") >= 40, "{said:?}");
    let all = result["storm"]["all_s"].as_f64().unwrap();
    assert!((0.8..30.0).contains(&all), "the last is due after 0.8 s: {said:?}");
    assert!((result["messages_per_s"].as_f64().unwrap() - 40.0 / all).abs() < 0.01, "{said:?}");
    let max = |phase: &str| result["latency"][phase]["max_us"].as_f64().unwrap();
    assert!(max("served") >= max("login") && max("served") >= max("connect"), "{said:?}");
    // The same again from the file, for people.
    let again = load(&["report", &out]);
    for part in ["storm: 40 users, 50 a second", "40 of 40 users were served", "accept", "queue", "s at most"] {
        assert!(again.out.contains(part), "{part}: {again:?}");
    }
    let (csv, html) = (std::fs::read_to_string(&csv).unwrap(), std::fs::read_to_string(&html).unwrap());
    for row in ["server,1,,all served ms,", "server,1,,accept.p99 us,", "server,1,,served,40", "served.p99 us,"] {
        assert!(csv.contains(row), "{row}: {csv}");
    }
    assert!(html.contains("Latency by percentile: served, all rounds"), "{html}");
}

#[test]
fn all_at_once_from_several_threads_over_web_sockets() {
    let said = run("--workload storm --users 20 --threads 2 --ws --json --fail-if back>60s");
    let result = all_are_served(&said, 20);
    assert_eq!((count(&result, "accept"), &result["closed"]), (20, &0.into()), "{said:?}");
    let said = run("--workload storm --users 10 --fail-if served.p50>1ns");
    assert!(said.status == 2 && said.err.contains("served.p50>1ns"), "{said:?}");
    assert!(said.out.contains("10 users, all at once"), "{said:?}");
}

#[test]
fn storms_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run.json").display().to_string();
    let said = run(&format!("--workload storm --users 8 --rounds 7 --out {out}"));
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.out.contains("56 of 56 users were served"), "{said:?}");
    let said = load(&["compare", &out, &out]);
    assert_eq!(said.status, 0, "{said:?}");
    for row in ["all served ms", "served.p99 us", "connect.p50 us", "accept.p50 us", "login.p99 us"] {
        assert!(said.out.contains(row), "{row}: {said:?}");
    }
}

#[test]
fn after_a_kill_all_come_back_to_the_server_that_starts_again() {
    let said = run("--workload storm --after kill --users 30 --json");
    let result = all_are_served(&said, 30);
    let storm = &result["storm"];
    let again = &storm["again"]["connect ECONNREFUSED"];
    assert!(again["count"].as_u64().unwrap() > 0, "nobody listens while it starts: {said:?}");
    assert_eq!((&result["closed"], refusals(&result)), (&0.into(), 0), "{said:?}");
    assert!(count(&result, "store") >= 30, "by the metrics of the new one: {said:?}");
    // A bound on it.
    let said = run("--workload storm --after kill --users 4 --fail-if back>1us");
    assert!(said.status == 2 && said.err.contains("back>1us") && said.out.contains("tried again"), "{said:?}");
}

#[test]
fn after_a_cut_all_come_back_at_once_or_at_a_rate() {
    let ours = ours(&["--metrics", "127.0.0.1:0"]);
    for further in ["", "--rate 40"] {
        let said =
            run(&format!("--workload storm --after cut --users 20 --json --addr {} {further}", ours.server.address));
        let result = all_are_served(&said, 20);
        assert_eq!(count(&result, "store"), 0, "nobody has said where its metrics are: {said:?}");
        let all = result["storm"]["all_s"].as_f64().unwrap();
        assert!(further.is_empty() || all >= 0.5, "{said:?}");
    }
}

/// A storm of 60 users of whom ten have come, and what keeps its accounts.
fn begun(ours: &Ours, further: &str) -> (Child, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let (accounts, before) = (folder.path().join("accounts").display().to_string(), ours.server.descriptors());
    let line = format!("--workload storm --users 60 --json --addr {} --accounts {accounts}", ours.server.address);
    all_are_served(&run(&line), 60);
    // What the store has opened meanwhile are fewer than 20. With accounts, nearly all who come belong to the storm.
    eventually("the first ones to have left", || ours.server.descriptors() < before + 20);
    let child = start(&format!("{line} --rate 20 {further}"));
    eventually("ten users", || ours.server.descriptors() >= before + 30);
    (child, folder)
}

#[test]
fn a_server_that_dies_in_a_storm_leaves_what_failed_by_its_kind() {
    let mut ours = ours(&[]);
    let (child, _folder) = begun(&ours, "");
    ours.server.kill();
    let said = finish(child);
    let result = said.result();
    assert_eq!((said.status, &result["storm"]["all_s"]), (2, &Value::Null), "{said:?}");
    assert!(result["refused"]["connect ECONNREFUSED"]["count"].as_u64().unwrap() > 0, "{said:?}");
    let served = result["storm"]["served"].as_u64().unwrap();
    assert_eq!(served + refusals(&result), 60, "{said:?}");
    assert_eq!(result["closed"], served, "those that were there: {said:?}");
}

#[test]
fn a_server_that_stands_still_in_a_storm_leaves_timeouts() {
    let ours = ours(&[]);
    let (child, _folder) = begun(&ours, "--seconds 6");
    signal("STOP", ours.server.pid());
    let said = finish(child);
    signal("CONT", ours.server.pid());
    let result = said.result();
    let served = result["storm"]["served"].as_u64().unwrap();
    // The kernel accepts connections for it.
    let timeouts =
        ["accept timeout", "login timeout"].map(|kind| result["refused"][kind]["count"].as_u64().unwrap_or(0));
    assert!(said.status == 2 && timeouts[0] > 0, "{said:?}");
    assert_eq!((served + timeouts[0] + timeouts[1], &result["closed"]), (60, &0.into()), "{said:?}");
}

#[test]
fn those_that_are_too_many_are_refused_and_counted() {
    // As many as register side by side, and a few.
    let ours = ours(&["--max-connections", "70"]);
    let line = format!("--workload storm --users 100 --json --addr {}", ours.server.address);
    let said = run(&line);
    let result = said.result();
    let served = result["storm"]["served"].as_u64().unwrap();
    assert!(said.status == 2 && served <= 70 && refusals(&result) == 100 - served, "{said:?}");
    assert!(result["refused"]["20"]["sample"].as_str().unwrap().contains("\"errno\":20"), "{said:?}");
    assert!(said.err.contains("refused"), "{said:?}");
}

#[test]
fn half_open_and_slow_clients_do_no_harm_to_those_beside_them() {
    let ours = ours(&[]);
    let line = format!("--half-open 6 --slow-senders 4 --json --addr {}", ours.server.address);
    let said = run(&format!("{line} --users 8 --seconds 0.5"));
    let result = said.result();
    let strangers = |result: &Value, what: &str| result["strangers"][what].as_u64().unwrap();
    assert_eq!(said.status, 0, "{said:?}");
    assert_eq!(["half_open", "slow", "closed"].map(|what| strangers(&result, what)), [6, 4, 0], "{said:?}");
    assert!(result["delivered"].as_u64().unwrap() > 10, "{said:?}");
    let said = run(&format!("{line} --workload storm --users 20"));
    let result = all_are_served(&said, 20);
    assert_eq!(strangers(&result, "half_open"), 6, "{said:?}");
}

#[test]
fn a_server_may_close_those_that_never_log_in() {
    let ours = ours(&["--login-timeout", "1s"]);
    let line = format!("--half-open 4 --slow-senders 2 --users 4 --seconds 3 --json --addr {}", ours.server.address);
    let child = start(&line);
    // Those who are logged in, and those who are not.
    ours.wait_for_users(10);
    let said = finish(child);
    let result = said.result();
    assert!(said.status == 0 && result["strangers"]["closed"].as_u64().unwrap() >= 6, "{said:?}");
    assert_eq!((refusals(&result), &result["closed"]), (0, &0.into()), "{said:?}");
}

#[test]
fn who_says_where_the_metrics_are_gets_what_the_server_says_of_its_store() {
    let at = crate::support::free_port();
    let ours = ours(&["--metrics", &format!("127.0.0.1:{at}")]);
    let address = ours.server.address;
    let said = run(&format!("--workload storm --users 10 --json --addr {address} --metrics 127.0.0.1:{at}"));
    let result = all_are_served(&said, 10);
    // What the logins needed, and not what the registrations before them did.
    assert!((10..200).contains(&count(&result, "store")), "{said:?}");
}
