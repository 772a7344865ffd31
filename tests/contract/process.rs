//! The server as a process: its start, its end, and what a crash leaves. Signals are in `docs/PROTOCOL.md#9-clusters`,
//! what is left by a crash in promises 3 and 4 of `docs/PROTOCOL.md#8-order-and-other-promises`.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Client, Config, Launch, eventually, listed, refused_start};

in_every_configuration! {
    sigint_and_sigterm_set_everyone_offline_and_exit_with_0,
    a_signal_ends_connections_in_order,
    after_a_kill_9_nobody_is_online_and_everything_acked_is_there,
    a_restart_on_the_same_port_is_possible_at_once,
    everything_survives_an_orderly_restart,
    a_bad_flag_is_told_in_one_line_and_exit_2,
    a_flag_may_be_set_by_the_environment,
    a_port_in_use_is_told_and_named,
    the_log_says_what_was_started,
}

fn sigint_and_sigterm_set_everyone_offline_and_exit_with_0(config: &'static Config) {
    for signal in ["INT", "TERM"] {
        let world = config.own(&[]);
        let mut sender = world.online("sender");
        let clients: Vec<Client> = (0..20).map(|_| world.online("someone")).collect();
        assert_eq!(world.online_in_store(), 21);
        let chat = sender.chat_to(clients[0].id(), "unread");
        sender.must(chat);
        let began = Instant::now();
        assert_eq!(world.stop(signal).code(), Some(0), "SIG{signal}");
        assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
        assert_eq!(world.online_in_store(), 0, "SIG{signal}");
    }
}

fn a_signal_ends_connections_in_order(config: &'static Config) {
    let world = config.own(&[]);
    let (mut sender, mut recipient) = (world.online("sender"), world.online("recipient"));
    for n in 0..100 {
        sender.chat(recipient.id(), &n.to_string());
    }
    world.stop("TERM");
    // What was delivered can still be read, then the end.
    let expected: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(recipient.texts(100), expected);
    recipient.expect_end();
    sender.expect_end();
}

fn after_a_kill_9_nobody_is_online_and_everything_acked_is_there(config: &'static Config) {
    let world = config.own(&[]);
    let (mut sender, mut friend) = (world.online("sender"), world.online("friend"));
    let absent = world.account("absent");
    let account = sender.me().clone();
    sender.befriend(friend.id());
    let group = sender.create_group("survivors");
    friend.join(group);
    for n in 0..50 {
        sender.chat(absent.id, &n.to_string());
    }
    world.kill();
    world.start_again();
    world.expect_nobody_online_after_kill();
    let mut sender = world.login(&account);
    let list = sender.must(json!({"msgid": 206}));
    assert_eq!(listed(&list["friends"])[0]["state"], "offline");
    let users = listed(&listed(&list["groups"])[0]["users"]);
    assert_eq!(users.len(), 2);
    let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!(world.login(&absent).texts(50), expected);
}

fn a_restart_on_the_same_port_is_possible_at_once(config: &'static Config) {
    let world = config.own(&[]);
    let address = world.server().address;
    for round in 0..3 {
        let clients: Vec<Client> = (0..20).map(|_| world.online("someone")).collect();
        if round % 2 == 0 {
            world.kill()
        } else {
            assert!(world.stop("TERM").success())
        }
        world.start_again();
        assert_eq!(world.server().address, address);
        assert!(clients.iter().all(|client| client.account.is_some()));
    }
    world.assert_alive();
}

fn everything_survives_an_orderly_restart(config: &'static Config) {
    let world = config.own(&[]);
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    let account = sender.me().clone();
    sender.befriend(absent.id);
    sender.create_group("keepers");
    sender.chat(absent.id, "kept");
    let list = sender.must(json!({"msgid": 206}));
    assert!(world.stop("INT").success());
    world.start_again();
    let greeting = world.login(&account).greeting;
    assert_eq!((&greeting["friends"], &greeting["groups"]), (&list["friends"], &list["groups"]));
    assert_eq!(world.login(&absent).texts(1), ["kept"]);
}

/// What a server that ended at its start has said.
#[track_caller]
fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(text.trim().lines().count(), 1, "{text}");
    text
}

/// A launch that gets as far as its flags.
fn launch(config: &Config, dir: &tempfile::TempDir, flags: &[&str]) -> Launch {
    Launch {
        store: config.new_store(dir.path()),
        reactors: config.reactors,
        workers: 1,
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        setup: String::new(),
        port: 0,
    }
}

fn a_bad_flag_is_told_in_one_line_and_exit_2(config: &'static Config) {
    let dir = tempfile::tempdir().unwrap();
    for (flags, named) in [
        (&["--max-message", "many"][..], "max-message"),
        (&["--max-connections", "-1"], "max-connections"),
        (&["--login-timeout", "soon"], "login-timeout"),
        (&["--idle-timeout", "5 parsecs"], "idle-timeout"),
        (&["--high-water", "high"], "high-water"),
        (&["--no-such-flag"], "no-such-flag"),
    ] {
        let output = refused_start(&launch(config, &dir, flags));
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(one_line(&output).contains(named), "{flags:?}");
    }
    let mut unknown_store = launch(config, &dir, &[]);
    unknown_store.store = "papyrus:scroll".into();
    let output = refused_start(&unknown_store);
    assert_eq!(output.status.code(), Some(2));
    assert!(one_line(&output).contains("papyrus"));
    let mut no_reactors = launch(config, &dir, &[]);
    no_reactors.reactors = 0;
    assert_eq!(refused_start(&no_reactors).status.code(), Some(2));
}

fn a_flag_may_be_set_by_the_environment(config: &'static Config) {
    let world = config.prepared("export CHAT_MAX_MESSAGE=10000", &[]);
    let mut client = world.online("someone");
    client.send(json!({"msgid": 202, "pad": "x".repeat(9900)}).to_string());
    assert_eq!(client.recv()["msgid"], 203);
    client.send(json!({"msgid": 202, "pad": "x".repeat(10_000)}).to_string());
    assert_eq!(client.recv()["errno"], 19);
    let dir = tempfile::tempdir().unwrap();
    let mut bad = launch(config, &dir, &[]);
    bad.setup = "export CHAT_MAX_MESSAGE=many".into();
    assert_eq!(refused_start(&bad).status.code(), Some(2));
}

fn a_port_in_use_is_told_and_named(config: &'static Config) {
    let world = config.shared();
    let dir = tempfile::tempdir().unwrap();
    let mut second = launch(config, &dir, &[]);
    second.port = world.launch().port;
    let output = refused_start(&second);
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}", output.status);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&second.port.to_string()) && !said.contains("panicked"), "{said}");
    world.assert_alive();
}

fn the_log_says_what_was_started(config: &'static Config) {
    let world = config.own(&[]);
    let words = ["store", "bus", "reactors", "workers", "descriptor"];
    eventually("the line to be logged", || {
        let log = world.server().log_tail();
        let line = log.lines().find(|line| line.contains("listening on")).unwrap_or_default();
        words.iter().all(|word| line.contains(word))
    });
    // Readers of the log need not know the passwords in `--store` and `--redis`.
    let secret = world.launch().store.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
    assert!(secret.is_none_or(|(secret, _)| !world.server().log_tail().contains(secret)));
}

#[test]
fn the_help_shows_no_password_that_the_environment_holds() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chat-server"));
    command.env("CHAT_STORE", "mysql://chat:swordfish@127.0.0.1/chat");
    command.env("CHAT_REDIS", "redis://chat:swordfish@127.0.0.1").arg("--help");
    let help = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(help.contains("[env: CHAT_STORE]") && help.contains("[env: CHAT_REDIS]"), "{help}");
    assert!(!help.contains("swordfish"), "{help}");
}
