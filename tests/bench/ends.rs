//! However it ends: what there is so far is shown, and nothing is left.

use std::collections::HashSet;
use std::fs;

use crate::support::eventually;
use crate::tool::{finish, is_alive, ours, signal, start};

/// The children of a process, and theirs.
fn descendants(pid: u32) -> HashSet<u32> {
    let mut found = HashSet::new();
    let mut open = vec![pid];
    while let Some(pid) = open.pop() {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            if found.insert(child) {
                open.push(child);
            }
        }
    }
    found
}

fn program_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Starts one with servers of its own, in a temporary folder of its own, and waits until they carry messages.
fn started(line: &str) -> (std::process::Child, tempfile::TempDir, HashSet<u32>) {
    let folder = tempfile::tempdir().unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = crate::tool::command(&words);
    command.env("TMPDIR", folder.path()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let is_busy = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let ticks =
            fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>();
        program_of(*pid) == "chat-server" && ticks > 20
    };
    eventually("the server to be busy", || descendants(child.id()).iter().any(is_busy));
    let all = descendants(child.id());
    (child, folder, all)
}

fn nothing_is_left(folder: &tempfile::TempDir, processes: &HashSet<u32>) {
    eventually("all children to be gone", || !processes.iter().any(|&pid| is_alive(pid)));
    eventually("the folder to be empty", || fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn a_signal_shows_what_there_is_so_far() {
    for (name, status) in [("INT", 130), ("TERM", 143)] {
        let (child, folder, processes) = started("--users 8 --seconds 60 --json");
        assert!(processes.len() >= 2, "a server, and who comes after: {processes:?}");
        signal(name, child.id());
        let said = finish(child);
        assert_eq!(said.status, status, "{said:?}");
        assert!(said.result()["delivered"].as_u64().unwrap() > 0, "{said:?}");
        nothing_is_left(&folder, &processes);
    }
}

#[test]
fn a_signal_to_the_whole_group_does_not_reach_the_server() {
    use std::os::unix::process::CommandExt;
    let mut command = crate::tool::command(&["--users", "8", "--seconds", "60", "--json"]);
    let child = command
        .process_group(0)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the server to be there", || {
        descendants(child.id()).into_iter().any(|pid| program_of(pid) == "chat-server")
    });
    std::thread::sleep(std::time::Duration::from_secs(2)); // it may as well be anywhere in its run
    let status = std::process::Command::new("kill").args(["-INT", "--", &format!("-{}", child.id())]).status();
    assert!(status.unwrap().success());
    let said = finish(child);
    assert_eq!(said.status, 130, "{said:?}");
}

#[test]
fn killed_it_leaves_neither_processes_nor_folders() {
    for line in ["--floor", "--nodes 2", "--tls"] {
        let (mut child, folder, processes) = started(&format!("--users 8 --seconds 60 {line}"));
        signal("KILL", child.id());
        child.wait().unwrap();
        nothing_is_left(&folder, &processes);
    }
}

#[test]
fn killed_while_its_servers_are_still_starting_it_leaves_none_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = crate::tool::command(&["--nodes", "2", "--users", "8", "--seconds", "60"]);
    let mut child = command.env("TMPDIR", folder.path()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let all = || descendants(child.id());
    eventually("MariaDB to begin", || all().into_iter().any(|pid| program_of(pid).starts_with("mariadb")));
    let processes = all();
    signal("KILL", child.id());
    child.wait().unwrap();
    // What one of them has started meanwhile is found by the folder in its command line.
    let name = folder.path().display().to_string();
    let is_of_it =
        |pid: u32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.contains(&name));
    let pids = || fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    eventually("everything to be gone", || !pids().any(is_of_it));
    nothing_is_left(&folder, &processes);
}

#[test]
fn a_server_that_dies_in_mid_run_leaves_the_figures_until_then() {
    let mut ours = ours(&[]);
    let (address, pid) = (ours.server.address, ours.server.pid());
    for with_pid in [format!(" --pid {pid}"), String::new()] {
        let child = start(&format!("--users 8 --seconds 60 --json --addr {address}{with_pid}"));
        ours.wait_for_users(8);
        let before = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        eventually("messages to pass", || fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default() != before);
        std::thread::sleep(std::time::Duration::from_secs(2)); // so that something was measured
        if with_pid.is_empty() {
            ours.server.kill();
        } else {
            signal("KILL", pid);
        }
        let said = finish(child);
        assert_eq!(said.status, 2, "{said:?}");
        let result = said.result();
        assert!(
            result["delivered"].as_u64().unwrap() > 0 && result["messages_per_s"].as_f64().unwrap() > 0.0,
            "{said:?}"
        );
        assert!(result["cut_short"].as_str().unwrap().contains("in mid-run"), "{said:?}");
        if !with_pid.is_empty() {
            return again_without_pid();
        }
    }
}

/// The same for a server whose process is not known.
fn again_without_pid() {
    let mut ours = ours(&[]);
    let child = start(&format!("--users 8 --seconds 60 --json --addr {}", ours.server.address));
    ours.wait_for_users(8);
    std::thread::sleep(std::time::Duration::from_secs(2)); // so that something was measured
    ours.server.kill();
    let said = finish(child);
    assert_eq!(said.status, 2, "{said:?}");
    assert!(said.result()["cut_short"].as_str().unwrap().contains("in mid-run"), "{said:?}");
}
