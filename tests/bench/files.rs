//! Runs as files: what is in them, and several generators' shares of one.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::tool::{Said, finish, load, ours, program, run, start};

#[test]
fn a_file_has_all_that_was_shown_and_can_be_shown_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (out, csv, html) = (file("run.json"), file("run.csv"), file("run.html"));
    let said = run(&format!("--users 8 --seconds 0.6 --rounds 2 --seed 7 --out {out}"));
    let again = load(&["report", &out, "--csv", &csv, "--html", &html]);
    assert_eq!((again.status, &again.out), (said.status, &said.out), "{again:?}");
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert!(saved["about"]["command"].as_str().unwrap().ends_with(&format!("--out {out}")), "{saved}");
    let rounds = saved["rounds"][0].as_array().unwrap();
    assert_eq!((rounds.len(), saved["about"]["settings"]["seed"].as_u64()), (2, Some(7)), "{saved}");
    for round in rounds {
        assert!(round["measures"]["chat"]["nanoseconds"].as_str().unwrap().starts_with("HISTFAAA"), "{round}");
        assert!(round["samples"].as_array().unwrap().len() >= 2, "{round}");
    }
    // The times of the steps are those of the round, but for what came after its end.
    let text = std::fs::read_to_string(&csv).unwrap();
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows[0], "target,round,second,figure,value");
    for figure in ["server,1,,msg/s,", "server,2,,chat.p99 us,", "server,1,,lost,0", "server,1,0.2,chat.p99 us,"] {
        assert!(rows.iter().any(|row| row.starts_with(figure)), "{figure}: {text}");
    }
    let page = std::fs::read_to_string(&html).unwrap();
    let parts = ["<dt>Verdict</dt>", "<dt>Limit</dt>", "<dt>What to try next</dt>", "Latency by percentile: chat"];
    for part in parts.into_iter().chain(["Throughput over time", "Latency over time", "CPU over time"]) {
        assert!(page.contains(part), "{part}: {page}");
    }
    // A bound is applied to what was measured before.
    let judged = load(&["report", &out, "--fail-if", "chat.p99>1ns"]);
    assert!(judged.status == 2 && judged.err.contains("chat.p99>1ns"), "{judged:?}");
    std::fs::write(&out, "{\"title\":\"\",\"rounds\":[]}").unwrap();
    let old = load(&["report", &out]);
    assert!(old.status == 1 && old.err.contains("another version"), "{old:?}");
}

#[test]
fn two_generators_are_one_run() {
    let ours = ours(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (address, pid) = (ours.server.address, ours.server.pid());
    program();
    let mut said: [Said; 2];
    let mut tries = 0;
    // On a machine with much else to do, users may come too late.
    let soon = loop {
        let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3;
        let line = |share: &str, further: &str| {
            let out = file(share.split('/').next().unwrap());
            let line = format!("--addr {address} --users 16 --rate 400 --seconds 2 --share {share} --start-at {soon}");
            start(&format!("{line} --json --out {out} {further}"))
        };
        said = [line("1/2", ""), line("2/2", &format!("--pid {pid}"))].map(finish);
        tries += 1;
        if tries == 3 || !said.iter().any(|said| said.err.contains("--start-at was")) {
            break soon;
        }
    };
    said.iter().for_each(|said| assert_eq!(said.status, 0, "{said:?}"));
    let whole = load(&["report", &file("1"), &file("2"), "--json"]);
    assert_eq!(whole.status, 0, "{whole:?}");
    let sum = |of: &dyn Fn(&Value) -> f64| said.iter().map(|said| of(&said.result())).sum::<f64>();
    let (result, settings) = (whole.result(), whole.json()["settings"].clone());
    let rate = |result: &Value| result["messages_per_s"].as_f64().unwrap();
    assert!((rate(&result) - sum(&rate)).abs() < 0.01 && (300.0..500.0).contains(&rate(&result)), "{whole:?}");
    let count = |result: &Value| result["latency"]["chat"]["count"].as_f64().unwrap();
    assert_eq!(count(&result), sum(&count), "{whole:?}");
    assert_eq!((settings["users"].as_u64(), settings["rate"].as_f64()), (Some(16), Some(400.0)), "{whole:?}");
    // The time of the server is divided by the messages of both.
    let cpu = |result: &Value| result["cpu_us"].as_f64().unwrap();
    let share = rate(&said[1].result()) / rate(&result);
    assert!((cpu(&result) - cpu(&said[1].result()) * share).abs() < 0.01, "{whole:?}");
    let twice = load(&["report", &file("1"), &file("1")]);
    assert!(twice.status == 1 && twice.err.contains("same share"), "{twice:?}");
    // It was to begin in the past by now.
    let late = run(&format!("--addr {address} --users 16 --share 1/2 --start-at {soon}"));
    assert!(late.status == 1 && late.err.contains("--start-at was"), "{late:?}");
}
