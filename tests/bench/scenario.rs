//! Phases of a scenario, and what is said of a file that has a fault.

use crate::tool::{load, ours};

#[test]
fn phases_run_one_after_the_other_against_one_server() {
    let ours = ours(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (scenario, out, html) = (file("load.toml"), file("run.json"), file("run.html"));
    let text = "\
        # For all phases.\n\
        users = 8\n\
        seconds = 0.4\n\
        \n\
        [[phase]]\n\
        name = \"some are away\"\n\
        workload = \"store\"\n\
        size = \"150-900\"\n\
        fail-if = [\"stored.max>1ns\", \"lost>0\"]\n\
        \n\
        [[phase]]\n\
        rate = 200\n\
        seq = true\n\
        users = 16\n\
        \n\
        [[phase]]\n\
        workload = \"mix\"\n\
        users = 20\n\
        rate = 100\n\
        mix = \"chat=1,login=1\"\n\
        \n\
        [[phase]]\n\
        workload = \"storm\"\n\
        seconds = 60\n";
    std::fs::write(&scenario, text).unwrap();
    let address = ours.server.address.to_string();
    let words = ["--scenario", &scenario, "--addr", &address, "--out", &out, "--html", &html];
    let said = load(&words);
    // What was stored for the second phase's users is not taken for what they send.
    assert_eq!(said.status, 2, "{said:?}");
    assert!(said.err.contains("some are away: stored.max>1ns"), "{said:?}");
    assert_eq!(said.err.lines().filter(|line| line.contains(">1ns")).count(), 1, "{said:?}");
    for part in [
        "4 phases",
        "\nsome are away: store: 8 users, window 1, 150-900 bytes each",
        "\nphase 2: pairs: 16 users, 200 a second",
        "\nphase 3: mix: 20 users, chat=1,login=1",
        "\nphase 2             ",
        "\nphase 4: 8 of 8 users were served",
        "\nphase 3       acts a second: chat ",
    ] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
    let again = load(&["report", &out, "--json"]);
    let results = again.json()["results"].as_array().unwrap().clone();
    assert_eq!(results.len(), 4, "{again:?}");
    let names: Vec<&str> = results.iter().map(|result| result["target"].as_str().unwrap()).collect();
    assert_eq!(names, ["some are away", "phase 2", "phase 3", "phase 4"]);
    assert!(results[0]["latency"]["stored"]["count"].as_u64().unwrap() > 5, "{again:?}");
    let rate = results[1]["messages_per_s"].as_f64().unwrap();
    assert!((100.0..220.0).contains(&rate) && results[1]["latency"]["ack"].is_object(), "{again:?}");
    assert_eq!(again.json()["settings"]["phase 3"]["mix"].as_str(), Some("chat=1,login=1"), "{again:?}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("some are away") && page.contains("phase 3"), "{page}");
    let judged = load(&["report", &out, "--fail-if", "login.max>1ns"]);
    assert!(judged.status == 2 && judged.err.contains("phase 3: login.max>1ns"), "{judged:?}");
    let compared = load(&["compare", &out, &out]);
    assert!(compared.status == 1 && compared.err.contains("is of a scenario"), "{compared:?}");
}

#[test]
fn a_fresh_server_is_the_same_in_all_phases_and_the_command_line_goes_before_what_is_for_all() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("load.toml").display().to_string();
    std::fs::write(&scenario, "users = 4\nreactors = 1\n[[phase]]\n[[phase]]\nworkload = \"group\"\nusers = 6\n")
        .unwrap();
    let said = load(&["--scenario", &scenario, "--users", "8", "--seconds", "0.3"]);
    assert_eq!(said.status, 0, "{said:?}");
    for part in ["phase 1: pairs: 8 users", "phase 2: group: 6 users", "1 node, 1 reactors"] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
}

#[test]
fn a_fault_of_a_scenario_is_told_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("load.toml").display().to_string();
    let phase = "seconds = 0.3\n[[phase]]\n";
    for (text, line, why) in [
        ("users = 8\n[[phase]\n", 2, ""),
        ("users = 8\nseconds = 1\n", 0, "no phase"),
        ("\nuser = 8\n[[phase]]\n", 2, "--user"),
        ("rounds = 3\n[[phase]]\n", 1, "rounds"),
        ("size = 400\n[[phase]]\nworkload = \"login\"\n", 1, "--size would not be used"),
        (&format!("{phase}rate = \"fast\"\n"), 3, "a number such as 500"),
        (&format!("{phase}workload = \"talk\"\n"), 3, "possible values"),
        (&format!("{phase}users = 8\nusers = 9\n"), 4, "duplicate"),
        (&format!("{phase}users = 7\n"), 3, "--users must be"),
        (&format!("{phase}\n[[phase]]\nseq = 1\n"), 5, "seq is true or false"),
        (&format!("{phase}addr = \"127.0.0.1:1\"\n"), 3, "of the whole run"),
        (&format!("{phase}workload = \"mix\"\nmix = \"talk=1\"\n"), 4, "one of chat, group, return"),
        (&format!("{phase}workload = \"idle\"\nusers = 8\n"), 3, "measures memory"),
        (&format!("{phase}name = \"a\"\n[[phase]]\nname = \"a\"\n"), 4, "another phase"),
    ] {
        std::fs::write(&scenario, text).unwrap();
        let said = load(&["--scenario", &scenario]);
        let place = if line > 0 { format!("load.toml, line {line}") } else { "load.toml".to_owned() };
        assert!(said.status == 1 && said.err.contains(&place) && said.err.contains(why), "{text}: {said:?}");
    }
    let said = load(&["--scenario", "no-such-file"]);
    assert!(said.status == 1 && said.err.contains("no-such-file"), "{said:?}");
    std::fs::write(&scenario, phase).unwrap();
    let said = load(&["--scenario", &scenario, "--rounds", "2"]);
    assert!(said.status == 1 && said.err.contains("--rounds"), "{said:?}");
}
