//! The command line: what is used, what is refused, and what makes the exit status.

use serde_json::Value;

use crate::support::eventually;
use crate::tool::{finish, ours, run, start};

#[test]
fn flags_that_a_workload_does_not_use_are_refused() {
    let lines = [
        ("--workload idle --rounds 3", "--rounds"),
        ("--workload idle --seq", "--seq"),
        ("--workload login --window 4", "--window"),
        ("--workload register --size 400", "--size"),
        ("--workload register --batch", "--batch"),
        ("--workload store --seq", "--seq"),
        ("--workload store --together", "--together"),
        ("--workload mix --floor", "--floor"),
        ("--workload mix --members 3", "--members"),
        ("--workload login --rate 100", "--rate"),
        ("--mix chat=1", "--mix"),
        ("--workload mix --mix chat", "chat=10"),
        ("--workload mix --mix chat=0", "whole number"),
        ("--workload mix --mix chat=1,chat=2", "two weights"),
        ("--workload mix --mix chat=1,talk=2", "one of chat, group, return, login, store, register"),
        ("--workload mix --mix chat=1 --fail-if login.p99>1s", "--fail-if"),
        ("--tls-ca file", "--tls-ca"),
        ("--tls --tls-ca file", "--tls-ca"),
        ("--tls --floor", "--tls"),
        ("--tls --rival nats", "--tls"),
        ("--tls --workload idle", "--tls"),
        ("--addr 127.0.0.1:1 --tls --tls-insecure --tls-name a", "--tls-name"),
        ("--workload group --rate 50%", "--rate"),
        ("--workload drain --rate 50", "--rate"),
        ("--rate 100 --window 2", "--window"),
        ("--workload idle --seed 1", "--seed"),
        ("--workload idle --addr 127.0.0.1:1 --clean", "--clean"),
        ("--pause 2", "--pause"),
        ("--workload slow --pause 2", "--pause"),
        ("--read-rate 4096", "--read-rate"),
        ("--workload busy --read-rate 4096", "--read-rate"),
        ("--workload busy --window 2", "--window"),
        ("--workload busy --seq", "--seq"),
        ("--workload busy --threads 2", "--threads"),
        ("--workload busy --users 2", "--users"),
        ("--workload busy --seconds 4", "--seconds"),
        ("--pid 1", "--pid"),
        ("--accounts file", "--accounts"),
        ("--clean", "--clean"),
        ("--size 64-4096", "150"),
        ("--size 400-200", "--size"),
        ("--think 1 --rate 100", "--think"),
        ("--think 2-1", "--think"),
        ("--workload mix --think 1", "--think"),
        ("--workload idle --ramp 1", "--ramp"),
        ("--ramp=-1", "--ramp"),
        ("--pin 0-", "--pin"),
        ("--pin 0:9999", "--pin"),
        ("--addr 127.0.0.1:1 --pin 0:1", "--pin"),
        ("--source 10.0.0.0", "cannot connect from 10.0.0.0"),
        ("--source net", "--source"),
        ("--source 127.0.0.0/24 --floor", "--source"),
        ("--share 1/2", "--share"),
        ("--start-at 1", "--start-at"),
        ("--addr 127.0.0.1:1 --share 0/2", "--share"),
        ("--addr 127.0.0.1:1 --share 3/2", "--share"),
        ("--addr 127.0.0.1:1 --share 1/3", "--users"),
        ("--addr 127.0.0.1:1 --share 1/2 --rounds 2", "--share"),
        ("--addr 127.0.0.1:1 --share 1/2 --workload busy", "--share"),
        ("--addr 127.0.0.1:1 --start-at soon", "--start-at"),
        ("--addr 127.0.0.1:1 --server file", "--server"),
        ("--server no-such-server", "no-such-server"),
        ("report", "report FILE"),
        ("report file --users 4", "--users"),
        ("--addr 127.0.0.1:1 --reactors 2", "--reactors"),
        ("--addr 127.0.0.1:1 --nodes 2", "--nodes"),
        ("--addr 127.0.0.1:1 --password-cost 8,1", "--password-cost"),
        ("--svg file", "--svg"),
        ("--readme file", "--readme"),
        ("--goals --users 10", "--users"),
        ("--goals --json", "--json"),
        ("--sweep --out file", "--out"),
        ("--sweep --rate 100", "--slo"),
        ("--sweep --window 1,16", "--window"),
        ("--sweep --reactors 2", "nothing to choose"),
        ("--workload login --sweep --slo login.p99=5ms", "--slo"),
        ("--slo chat.p99=5ms", "--slo"),
        ("--find-max --slo chat.p99>5ms", "chat.p99=5ms"),
        ("--find-max --slo stored.p99=5ms", "--slo"),
        ("--find-max --window 2", "--window"),
        ("--find-max --rate 50%", "--rate"),
        ("--find-max --workload login", "--find-max"),
        ("--launch server", "{port}"),
        ("--sweep --fail-if lost>0", "--fail-if"),
        ("compare a b --html file", "--html"),
        ("--workload crowd --threads 2", "crowd"),
        ("--users 7", "--users"),
        ("--fail-if stored.p99>5ms", "--fail-if"),
        ("--fail-if to_floor>1", "--fail-if"),
        ("--fail-if back>3s", "--fail-if"),
        ("--addr 127.0.0.1:1 --fail-if cpu>1us", "--fail-if"),
        ("--fail-if chat.p99>5", "unit"),
        ("--fail-if chat.q99>5ms", "chat.q99"),
        ("--rival noone", "--rival"),
        ("--after cut", "--after"),
        ("--workload storm --after kill --addr 127.0.0.1:1", "--after"),
        ("--workload storm --find-max", "--find-max"),
        ("--workload storm --size 400", "--size"),
        ("--workload storm --think 1", "--think"),
        ("--workload storm --ramp 1", "--ramp"),
        ("--workload storm --window 2", "--window"),
        ("--workload storm --metrics 127.0.0.1:1", "--metrics"),
        ("--addr 127.0.0.1:1 --metrics 127.0.0.1:1", "--metrics"),
        ("--workload idle --half-open 3", "--half-open"),
        ("--slow-senders 3 --floor", "--slow-senders"),
    ];
    for (line, named) in lines {
        let said = run(line);
        assert!(said.status == 1 && said.err.contains(named), "{line}: {said:?}");
    }
}

#[test]
fn a_condition_that_is_met_makes_the_status_2() {
    let quick = "--users 8 --seconds 0.3 --json";
    for (condition, status) in [
        ("chat.p99>60s", 0),
        ("chat.p99>1ns", 2),
        ("chat.p50>=1ns", 2),
        ("chat.max<1ns", 0),
        ("chat.p99.9<60s", 2),
        ("chat.p9999<1ns", 0),
        ("rate<1", 0),
        ("rate>1", 2),
        ("lost>0", 0),
        ("lost>=0", 2),
        ("cpu>1s", 0),
        ("cpu>1ns", 2),
        ("rss>100GiB", 0),
        ("rss>1KiB", 2),
    ] {
        let said = run(&format!("{quick} --fail-if {condition}"));
        assert_eq!(said.status, status, "{condition}: {said:?}");
        let failures = said.json()["failures"].as_array().unwrap().len();
        assert_eq!(failures, usize::from(status == 2), "{condition}: {said:?}");
    }
    let said = run(&format!("{quick} --fail-if lost>0 --fail-if rate>1 --fail-if chat.max>1ns"));
    assert_eq!(said.json()["failures"].as_array().unwrap().len(), 2, "{said:?}");
}

#[test]
fn what_was_measured_and_where_is_said() {
    let line =
        "--users 12 --seconds 0.3 --size 700 --reactors 1 --workers 3 --threads 2 --password-cost 16,1 --seed 42";
    let said = run(&format!("{line} --json"));
    let settings = &said.json()["settings"];
    let expected = [
        ("users", Value::from(12)),
        ("size", 700.into()),
        ("reactors", 1.into()),
        ("workers", 3.into()),
        ("threads", 2.into()),
        ("password_cost", "16,1".into()),
        ("seed", 42.into()),
        ("loop", "closed".into()),
        ("version", concat!("chat-server ", env!("CARGO_PKG_VERSION")).into()),
    ];
    for (name, value) in expected {
        assert_eq!(settings[name], value, "{name}: {said:?}");
    }
    assert!(settings["machine"].as_str().unwrap().contains("cores"), "{said:?}");
    let said = run(line);
    for part in ["700 bytes", "2 generator threads", "1 reactors", "3 workers", "16,1", "seed 42", "closed loop"] {
        assert!(said.out.contains(part), "{part}: {said:?}");
    }
}

#[test]
fn who_used_the_machine_is_said() {
    let said = run("--users 8 --seconds 0.5 --json");
    let result = said.result();
    let load = &result["load"];
    let (generator, all) = (load["generator_cores"].as_f64().unwrap(), load["all_cores"].as_f64().unwrap());
    let server = result["parts"]["server"]["cores"].as_f64().unwrap();
    assert!(generator > 0.0 && server > 0.0, "{said:?}");
    // A closed loop has nothing to wait for but these two, and others.
    assert!(all > 0.5 * (generator + server), "{said:?}");
    let said = run("--users 8 --seconds 0.5");
    assert!(said.out.contains("server: ") && said.out.contains(" + generator "), "{said:?}");
}

#[test]
fn a_rate_beyond_all_means_ends_in_time_and_is_told() {
    let begun = std::time::Instant::now();
    let said = run("--users 8 --seconds 1 --rate 5000000 --json");
    assert!(begun.elapsed().as_secs() < 30, "{said:?}");
    let result = said.result();
    assert!(result["missed"].as_u64().unwrap() > 1_000_000, "{said:?}");
    assert!(!result["limit"].is_null(), "{said:?}");
    assert!(result["delivered"].as_u64().unwrap() > 100, "it reads while it sends: {said:?}");
}

#[test]
fn names_of_hosts_are_looked_up() {
    let ours = ours(&[]);
    let port = ours.server.address.port();
    let said = run(&format!("--users 4 --seconds 0.3 --json --addr localhost:{port}"));
    assert_eq!(said.status, 0, "{said:?}");
    let said = run("--users 4 --addr no.such.host.invalid:1");
    assert!(said.status == 1 && said.err.contains("no.such.host.invalid"), "{said:?}");
    let said = run("--users 4 --addr localhost");
    assert!(said.status == 1 && said.err.contains("HOST:PORT"), "{said:?}");
}

#[test]
fn limits_are_looked_at_before_anybody_comes() {
    let small = ours(&["--max-connections", "10"]);
    let (address, pid) = (small.server.address, small.server.pid());
    let said = run(&format!("--users 30 --addr {address} --pid {pid}"));
    assert!(said.status == 1 && said.err.contains("--max-connections"), "{said:?}");
    // Without its pid, the server is asked, and no account has been opened when it refuses.
    let said = run(&format!("--users 30 --addr {address}"));
    assert!(said.status == 1 && said.err.contains("user 30 of 30"), "{said:?}");
    let internet = ours(&["--limits", "internet"]);
    let (address, pid) = (internet.server.address, internet.server.pid());
    let said = run(&format!("--users 60 --addr {address} --pid {pid}"));
    assert!(said.status == 1 && said.err.contains("--max-connections-per-address"), "{said:?}");
    let said = run(&format!("--users 40 --addr {address} --pid {pid}"));
    assert!(said.status == 1 && said.err.contains("--max-registrations"), "{said:?}");
    let said = run(&format!("--users 4 --addr {address} --pid {pid}"));
    assert!(said.status == 1 && said.err.contains("--max-message-rate"), "{said:?}");
    let said = run("--users 100000000");
    assert!(said.status == 1 && said.err.contains("descriptors"), "{said:?}");
}

#[test]
fn accounts_are_kept_and_used_again_and_stored_messages_read() {
    let ours = ours(&[]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("accounts").display().to_string();
    let line = format!("--workload store --users 4 --seconds 0.3 --addr {} --accounts {file}", ours.server.address);
    let said = run(&line);
    assert!(said.status == 0 && said.out.contains("left at") && said.out.contains(": 8 new accounts"), "{said:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 8);
    assert!(!said.out.contains(", 0 stored messages"), "{said:?}");
    let said = run(&format!("{line} --clean"));
    assert!(said.status == 0 && said.out.contains("0 new accounts, 0 stored messages"), "{said:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 8);
    // Nothing is stored for any user: what pairs send next is all that arrives.
    let said = run(&format!("--users 8 --seconds 0.3 --addr {} --accounts {file} --json", ours.server.address));
    assert!(said.status == 0 && said.result()["delivered"].as_u64().unwrap() > 10, "{said:?}");
}

#[test]
fn readers_who_pause_or_are_slow_get_everything() {
    for line in
        ["--workload paused --users 8 --rate 400 --pause 0.3", "--workload slow --users 8 --rate 400 --read-rate 2048"]
    {
        let said = run(&format!("{line} --seconds 1 --json"));
        let result = said.result();
        assert_eq!(said.status, 0, "{said:?}");
        assert!(result["latency"]["catch_up"]["max_us"].as_f64().unwrap() > 100_000.0, "{said:?}");
        assert!(result["latency"]["chat"]["count"].as_u64().unwrap() > 900, "the pair beside them: {said:?}");
    }
}

#[test]
fn a_recipient_that_stands_still_once_is_served_as_before_soon_after() {
    // A load that makes it a slow reader.
    let load = "--rate 200 --size 2000 --seconds 12 --pause 2.6";
    let said = run(&format!("--workload busy {load} --json --fail-if back>60s"));
    let result = said.result();
    // What another node has not answered for in 2 s, as on a machine with much else to do, may come once more.
    for what in ["lost", "out_of_order", "changed", "refusals", "acks_lost", "closed"] {
        assert_eq!(result[what], 0, "{what}: {said:?}");
    }
    assert!(!said.out.contains("back>60s"), "{said:?}");
    for node in ["own_node", "other_node"] {
        let service = &result["service"][node];
        let seconds = service["seconds"].as_array().unwrap();
        let sum = |what: &str| seconds.iter().map(|second| second[what].as_u64().unwrap()).sum::<u64>();
        let (due, live, stored) = (sum("due"), sum("live"), sum("stored"));
        assert!(seconds.len() == 12 && due > 1000 && live + stored == due && stored > 0, "{node}: {said:?}");
        assert!(service["back_s"].is_number(), "{node}: {said:?}");
    }
}

#[test]
fn sizes_differ_users_think_and_the_load_grows() {
    let said = run("--users 8 --seconds 0.6 --size 150-900 --think 0.05-0.15 --ramp 0.3 --json");
    let (result, settings) = (said.result(), said.json()["settings"].clone());
    assert_eq!((said.status, settings["size"].as_str()), (0, Some("150-900")), "{said:?}");
    // Four pairs, and a message of each about ten times a second.
    let rate = result["messages_per_s"].as_f64().unwrap();
    assert!((10.0..60.0).contains(&rate), "{said:?}");
    // How late a user was, who had thought, is told beside the time that its message took.
    let [chats, lags] = ["chat", "lag"].map(|name| result["latency"][name]["count"].as_u64().unwrap());
    assert!(chats > 5 && lags > 5, "{said:?}");
    let said = run("--users 8 --seconds 0.5 --rate 400 --ramp 0.5 --json");
    assert_eq!((said.status, said.result()["missed"].as_u64()), (0, Some(0)), "{said:?}");
}

#[test]
fn connections_come_from_many_addresses_and_everybody_keeps_to_the_cores_given() {
    let ours = ours(&["--max-connections-per-address", "3"]);
    let line = format!("--users 8 --seconds 0.3 --addr {}", ours.server.address);
    let said = run(&line);
    assert_eq!(said.status, 1, "{said:?}");
    let said = run(&format!("{line} --source 127.0.0.8/29 --pid {}", ours.server.pid()));
    assert_eq!(said.status, 0, "{said:?}");
    let allowed = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        line.trim().to_owned()
    };
    let all = allowed(std::process::id());
    let (first, last) = (all.split([',', '-']).next().unwrap(), all.rsplit([',', '-']).next().unwrap());
    let child = start(&format!("--users 8 --seconds 30 --pin {first}:{last}"));
    eventually("a server on the last core", || {
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap_or_default();
        let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.any(|pid: u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "chat-server" && allowed(pid) == last
        })
    });
    assert_eq!(allowed(child.id()), first);
    let status = std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status();
    assert!(status.unwrap().success());
    let said = finish(child);
    assert!(matches!(said.status, 1 | 130), "{said:?}");
}

#[test]
fn on_a_terminal_a_line_shows_how_far_it_is() {
    // A pseudo-terminal of util-linux, which every Debian has.
    let line = format!("{} --bench --users 8 --seconds 1", crate::tool::program().display());
    let output = std::process::Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let is_whole = |line: &str| {
        ["messages/s, p99 ", "CPU: server ", "generator ", " s left"].iter().all(|part| line.contains(part))
    };
    assert!(said.contains("warming up") && said.split('\r').any(is_whole), "{said}");
}

#[test]
fn browsers_are_measured_as_other_clients_are() {
    for line in ["--users 8 --seq --size 150-60000", "--users 8 --workload group", "--users 20 --workload mix"] {
        let said = run(&format!("--seconds 0.3 --ws --json {line}"));
        assert_eq!((said.status, &said.json()["settings"]["ws"]), (0, &serde_json::json!(true)), "{line}: {said:?}");
    }
    let ours = ours(&["--web", "off"]);
    let said = run(&format!("--users 8 --seconds 0.3 --ws --addr {}", ours.server.address));
    assert!(said.status == 1 && said.err.contains("no WebSocket at"), "{said:?}");
}
