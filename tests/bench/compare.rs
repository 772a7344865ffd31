//! Two servers, or two files, beside each other.

use crate::tool::{load, run};

#[test]
fn a_binary_is_no_different_from_itself() {
    let server = env!("CARGO_BIN_EXE_chat-server");
    let said = load(&["compare", server, server, "--users", "8", "--seconds", "0.2", "--json"]);
    assert_eq!(said.status, 0, "{said:?}");
    let rows = said.json()["rows"].as_array().unwrap().clone();
    assert!(rows.len() >= 6, "{said:?}");
    for row in rows {
        assert_eq!(row["verdict"], "no difference", "{said:?}");
    }
}

#[test]
fn a_server_that_does_much_more_is_worse() {
    // The same server, whose passwords are dearer than it was told.
    let folder = tempfile::tempdir().unwrap();
    let slow = folder.path().join("slow");
    let words = "set -- $(printf '%s ' \"$@\" | sed 's/--password-cost 8,1/--password-cost 4096,2/')";
    let text = format!("#!/bin/sh\n{words}\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_chat-server"));
    std::fs::write(&slow, text).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let words = ["--workload", "register", "--users", "8", "--seconds", "0.3", "--json"];
    let mut all = vec!["compare", env!("CARGO_BIN_EXE_chat-server"), slow.to_str().unwrap()];
    all.extend(words);
    let said = load(&all);
    let rows = said.json()["rows"].as_array().unwrap().clone();
    let cpu = rows.iter().find(|row| row["row"] == "CPU us").unwrap().clone();
    assert!(said.status == 2 && cpu["verdict"] == "worse", "{said:?}");
}

#[test]
fn files_are_compared_if_they_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    for (name, words) in [
        ("a", "--users 4 --rounds 7"),
        ("b", "--users 4 --rounds 7"),
        ("c", "--users 8 --rounds 7"),
        ("d", "--users 4 --rounds 2"),
    ] {
        let said = run(&format!("--seconds 0.1 {words} --out {}", file(name)));
        assert_eq!(said.status, 0, "{said:?}");
    }
    let said = load(&["compare", &file("a"), &file("b")]);
    assert!(matches!(said.status, 0 | 2) && said.out.contains("95 %"), "{said:?}");
    let said = load(&["compare", &file("a"), &file("c")]);
    assert!(said.status == 1 && said.err.contains("users 4 and 8"), "{said:?}");
    let said = load(&["compare", &file("a"), &file("d")]);
    assert!(said.status == 1 && said.err.contains("2 rounds"), "{said:?}");
    let said = load(&["compare", &file("a"), &file("b"), "--users", "4"]);
    assert!(said.status == 1 && said.err.contains("--users"), "{said:?}");
    // One whose CPU is ten times as much.
    let mut text: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(file("a")).unwrap()).unwrap();
    for round in text["rounds"].as_array_mut().unwrap() {
        for entry in round.as_array_mut().unwrap() {
            if entry["row"] == "CPU us" {
                entry["value"] = (entry["value"].as_f64().unwrap() * 10.0).into();
            }
        }
    }
    std::fs::write(file("e"), text.to_string()).unwrap();
    let said = load(&["compare", &file("a"), &file("e"), "--json"]);
    let rows = said.json()["rows"].as_array().unwrap().clone();
    for row in rows {
        let verdict = if row["row"] == "CPU us" { "worse" } else { "no difference" };
        assert_eq!(row["verdict"], verdict, "{said:?}");
    }
    assert_eq!(said.status, 2);
    // And the other way round.
    let said = load(&["compare", &file("e"), &file("a"), "--json"]);
    assert_eq!(said.status, 0, "{said:?}");
    assert!(said.out.contains("better"), "{said:?}");
}
