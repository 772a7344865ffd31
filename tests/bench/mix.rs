//! What the users of a mix do.

use crate::tool::run;

#[test]
fn the_acts_of_a_mix_come_as_often_as_their_weights_say() {
    let folder = tempfile::tempdir().unwrap();
    let csv = folder.path().join("run.csv");
    let (line, csv_name) = ("--workload mix --users 60 --rate 200 --seconds 2", csv.display().to_string());
    let mix = "chat=40,group=20,login=20,store=10,register=10";
    let said = run(&format!("{line} --mix {mix} --json --csv {csv_name}"));
    let (result, settings) = (said.result(), said.json()["settings"].clone());
    assert_eq!((said.status, settings["mix"].as_str()), (0, Some(mix)), "{said:?}");
    let acts = result["acts_per_s"].as_object().unwrap();
    let rate = |act: &str| acts[act].as_f64().unwrap();
    let all: f64 = acts.keys().map(|act| rate(act)).sum();
    assert!((120.0..210.0).contains(&all), "{said:?}");
    for (act, percent) in [("chat", 40.0), ("group", 20.0), ("login", 20.0), ("store", 10.0), ("register", 10.0)] {
        assert!((rate(act) / all * 100.0 - percent).abs() < 2.0, "{act}: {said:?}");
    }
    assert_eq!(acts.len(), 5, "{said:?}");
    // Each is timed as its kind is, and nothing else is.
    let mut timed: Vec<&String> = result["latency"].as_object().unwrap().keys().collect();
    timed.sort();
    assert_eq!(timed, ["chat", "lag", "last_member", "login", "member", "register", "stored"], "{said:?}");
    let count = |measure: &str| result["latency"][measure]["count"].as_f64().unwrap();
    assert!(timed.iter().all(|measure| count(measure) >= 10.0), "{said:?}");
    let rows = std::fs::read_to_string(&csv).unwrap();
    let has = |start: &str| rows.lines().any(|row| row.starts_with(start));
    assert!(has("server,1,,acts.login/s,") && has("server,1,,register.p99 us,"), "{rows}");
    let said = run(&format!("{line} --mix return=1"));
    assert!(said.status == 0 && said.out.contains("acts a second: return "), "{said:?}");
    assert!(said.out.contains("(100.0 %)") && said.out.contains(" return  "), "{said:?}");
}

#[test]
fn a_login_that_is_due_before_the_last_one_was_answered_counts_from_when_it_was_due() {
    // More than any server lets in: no login is done before the one before it, and those that are done have waited.
    let said = run("--workload mix --mix login=1 --users 20 --rate 500000 --seconds 0.5 --json");
    let result = said.result();
    assert_eq!(said.status, 0, "{said:?}");
    assert!(result["latency"]["login"]["max_us"].as_f64().unwrap() > 100_000.0, "{said:?}");
    assert!(result["missed"].as_u64().unwrap() > 0, "{said:?}");
}
