//! The highest rate, and settings beside each other: of servers of ours, and of others by their command.

use crate::tool::{load, run};

#[test]
fn the_highest_rate_is_found_and_what_limits_it_is_said() {
    let said = run("--find-max --slo chat.p99=60s --rate 200 --users 4 --seconds 0.2 --budget 2 --json");
    let json = said.json();
    let (kept, trials) = (json["max_rate"].as_f64(), json["trials"].as_array().unwrap());
    // On a machine with much else to do, the generator may be late at any rate, and says so.
    assert!(said.status == if kept.is_some() { 0 } else { 2 } && trials.len() >= 2, "{said:?}");
    let is_it = |rate: f64| trials.iter().any(|trial| trial["rate"] == rate && trial["kept"] == true);
    assert!(kept.is_none_or(is_it), "{said:?}");
    assert!(trials.iter().all(|trial| trial["kept"] == true || trial["limit"] == "generator"), "{said:?}");
    let said = run("--find-max --slo chat.p99=1ns --rate 100 --users 4 --seconds 0.2 --budget 0");
    assert!(said.status == 2 && said.err.contains("no rate keeps chat.p99=1ns"), "{said:?}");
    assert!(said.out.contains("no: chat.p99>1ns: it is") && said.out.contains("is the limit"), "{said:?}");
}

#[test]
fn servers_of_others_are_swept_by_what_their_command_takes() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("{port}.db").display().to_string();
    let server = env!("CARGO_BIN_EXE_chat-server");
    let command =
        format!("exec {server} --store sqlite:{store} --password-cost 8,1 --reactors {{reactors}} 127.0.0.1 {{port}}");
    let html = folder.path().join("sweep.html");
    let flags = ["--reactors", "1,2", "--users", "4", "--seconds", "0.2", "--rounds", "1", "--json", "--html"];
    let said = load(&[&["--sweep", "--launch", &command], &flags[..], &[html.to_str().unwrap()]].concat());
    let json = said.json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!((said.status, rows.len()), (0, 2), "{said:?}");
    assert!(rows.iter().all(|row| row["score"].as_f64().unwrap() > 10.0 && row["workers"] == 4), "{said:?}");
    // One round tells nothing, and is not said to.
    assert!(
        json["recommended"].is_null() && json["advice"].as_str().unwrap().contains("none is recommended"),
        "{said:?}"
    );
    assert!(std::fs::read_to_string(html).unwrap().contains("none is recommended"));
}
