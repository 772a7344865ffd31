//! A start that fails says what to change.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use crate::support::{MariaDb, Redis};
use crate::{CHAT_SERVER, Running, outcome, program, server_after};

#[track_caller]
fn refused(setup: &str, words: &[&str], said: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let (status, text) = outcome(server_after(setup, &dir, words));
    assert!(matches!(status.code(), Some(1 | 2)), "{setup} {words:?}: {status}: {text}");
    let last = text.trim().lines().last().unwrap_or_default().to_owned();
    for word in said {
        assert!(last.contains(word), "{setup} {words:?}: no {word:?} in: {text}");
    }
    last
}

/// How root becomes a user without other groups or capabilities; any user but root is without them already.
fn without_rights(user: u32) -> String {
    let become_user = format!("setpriv --reuid {user} --clear-groups --bounding-set -all");
    format!("[ \"$(id -u)\" -ne 0 ] || exec {become_user} \"$0\" \"$@\"")
}

#[test]
fn too_few_descriptors_are_told_with_how_many_are_needed_and_so_many_do() {
    for flags in [
        &["--reactors", "1", "--workers", "1"][..],
        &["--reactors", "2", "--workers", "4"],
        &["--reactors", "30", "--workers", "2"],
        &["--reactors", "2", "--workers", "60"],
        &["--reactors", "4", "--workers", "4", "--metrics", "127.0.0.1:0"],
    ] {
        let words = [flags, &["127.0.0.1", "0"]].concat();
        let text = refused("ulimit -n 16", &words, &["limit of file descriptors is 16", "ulimit -n", "LimitNOFILE"]);
        let needed: u32 = text.split(" need ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        refused(&format!("ulimit -n {}", needed - 1), &words, &["ulimit -n"]);
        let server = Running::start(&format!("ulimit -n {needed}"), flags);
        let mut client = server.online("someone");
        for _ in 0..50 {
            let chat = client.chat_to(client.id(), "to myself");
            client.request(chat);
        }
        client.sync();
        let (status, log) = server.end("TERM");
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("os error 24"), "{log}");
    }
    // Fewer than what it takes to see that.
    for few in 5..16 {
        refused(&format!("ulimit -n {few}"), &["127.0.0.1", "0"], &["ulimit -n"]);
    }
}

#[test]
fn threads_that_the_system_does_not_give_are_told_with_the_limits_that_keep_them() {
    for (reactors, workers) in [("200", "2"), ("2", "200"), ("100", "100"), ("1", "1")] {
        let flags = ["--reactors", reactors, "--workers", workers];
        let words = [&flags[..], &["127.0.0.1", "0"]].concat();
        for (limit, setting) in [("ulimit -v", "LimitAS"), ("ulimit -d", "LimitDATA")] {
            let text = refused(&format!("{limit} 40000"), &words, &[limit, setting, "40000 KiB", "--reactors"]);
            let needed: u64 = text.split(" need ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
            let server = Running::start(&format!("{limit} {needed}"), &flags);
            server.online("someone").sync();
            assert_eq!(server.end("TERM").0.code(), Some(0));
        }
    }
    // Root has no limit of threads; this user has no other ones.
    for (few, user) in [(1, 54_321), (4, 54_322), (8, 54_323)] {
        let become_nobody = format!("ulimit -u {few}; {}", without_rights(user));
        refused(&become_nobody, &["--workers", "8", "127.0.0.1", "0"], &["ulimit -u", "TasksMax"]);
    }
}

#[test]
fn an_address_that_cannot_be_listened_on_is_told_with_what_to_take_instead() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (place, port) = (taken.local_addr().unwrap().to_string(), taken.local_addr().unwrap().port().to_string());
    refused("", &["127.0.0.1", &port], &[&place, "another port"]);
    refused("", &[&port], &[&port, "another port"]);
    refused("", &["--metrics", &place, "127.0.0.1", "0"], &[&place, "--metrics", "another port"]);
    refused("", &["192.0.2.7", "6000"], &["192.0.2.7:6000", "this machine has no such address"]);
    refused("", &["2001:db8::7", "6000"], &["[2001:db8::7]:6000", "this machine has no such address"]);
    refused("", &["--metrics", "192.0.2.7:1", "127.0.0.1", "0"], &["192.0.2.7:1", "no such address"]);
    let lowest = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if lowest.trim() != "0" {
        refused(&without_rights(54_324), &["127.0.0.1", "80"], &["127.0.0.1:80", "CAP_NET_BIND_SERVICE"]);
    }
}

#[test]
fn a_cause_is_told_once() {
    let text = refused(&format!("ulimit -u 1; {}", without_rights(54_325)), &["127.0.0.1", "0"], &["os error 11"]);
    assert_eq!(text.matches("os error").count(), 1, "{text}");
    let text = refused("", &["--store", "sqlite:/no/such/folder/chat.db", "127.0.0.1", "0"], &[]);
    assert_eq!(text.matches("/no/such/folder").count() - text.matches("/no/such/folder/chat.db").count(), 1, "{text}");
}

#[test]
fn a_start_that_fails_says_why_whatever_is_logged() {
    for setup in ["export RUST_LOG=off", "export RUST_LOG=error", "export RUST_LOG=mio=info"] {
        refused(setup, &["--store", "sqlite:/no/such/folder/chat.db", "127.0.0.1", "0"], &["/no/such/folder"]);
    }
}

#[test]
fn a_redis_that_cannot_be_used_is_told_with_what_to_change() {
    let store = MariaDb::shared().url(&MariaDb::shared().new_database());
    let refused = |redis: &str, said: &[&str]| {
        let mut command = program(CHAT_SERVER);
        command.args(["--store", &store, "--redis", redis, "127.0.0.1", "0"]);
        let (status, text) = outcome(command);
        assert!(matches!(status.code(), Some(1 | 2)), "{redis}: {status}: {text}");
        let last = text.trim().lines().last().unwrap_or_default();
        said.iter().for_each(|word| assert!(last.contains(word), "{redis}: no {word:?} in: {text}"));
        assert!(!last.contains("s3cretpw"), "{text}");
    };
    refused("redis://127.0.0.1:1", &["127.0.0.1:1", "is it running"]);
    refused(&format!("redis://127.0.0.1:{}", MariaDb::shared().port()), &["not a Redis"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    refused(&format!("redis://{}", silent.local_addr().unwrap()), &["does not answer"]);

    let redis = Redis::start_with(Some("s3cretpw"));
    let at = |user: &str| format!("redis://{user}127.0.0.1:{}", redis.port());
    refused(&at(""), &["--redis or CHAT_REDIS", "PASSWORD"]);
    refused(&at(":wrong@"), &["password", "CHAT_REDIS"]);
    refused(&at("s3cretpw@"), &["--redis or CHAT_REDIS", "PASSWORD"]);

    let redis = Redis::start();
    let at = |rest: &str| format!("redis://127.0.0.1:{}{rest}", redis.port());
    refused(&format!("redis://:s3cretpw@127.0.0.1:{}", redis.port()), &["password", "CHAT_REDIS"]);
    refused(&at("/99"), &["/0"]);
    refused(&at("/database"), &["redis://"]);
    let mut connection = redis.connect();
    let mut told = |words: &[&str], advice: &[&str]| {
        redis::cmd(words[0]).arg(&words[1..]).exec(&mut connection).unwrap();
        refused(&at(""), advice);
    };
    told(&["ACL", "SETUSER", "default", "-set"], &["allow its user", "+set"]);
    told(&["ACL", "SETUSER", "default", "+set", "-subscribe"], &["allow its user", "+@pubsub"]);
    told(&["ACL", "SETUSER", "default", "+subscribe", "resetchannels"], &["allow its user", "&*"]);
    redis::cmd("ACL").arg(&["SETUSER", "default", "allchannels"]).exec(&mut redis.connect()).unwrap();
    told(&["CONFIG", "SET", "maxmemory", "1"], &["maxmemory"]);
    redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).exec(&mut redis.connect()).unwrap();
    told(&["REPLICAOF", "127.0.0.1", "1"], &["replica", "master"]);
}
