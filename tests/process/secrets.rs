//! No password of a store or of Redis is ever printed, whatever is wrong with its address.

use crate::support::{Client, MariaDb};
use crate::{CHAT_SERVER, Running, outcome, program};

/// Addresses that contain it, right ones and wrong ones. No server listens at port 1.
const ADDRESSES: [&str; 34] = [
    "mysql://chat:SECRET@127.0.0.1:1/chat",
    "mariadb://chat:SECRET@127.0.0.1:1/chat",
    "MARIADB://chat:SECRET@127.0.0.1:1/chat",
    "mysql://SECRET@127.0.0.1:1/chat",
    "mysql://:SECRET@127.0.0.1:1/chat",
    "mysql://chat:x%40SECRET@127.0.0.1:1/chat",
    "mysql://chat:%zzSECRET@127.0.0.1:1/chat",
    "mysql://chat:x@SECRET@127.0.0.1:1/chat",
    "mysql://chat:x:SECRET@127.0.0.1:1/chat",
    "mysql://chat:12/SECRET@127.0.0.1:1/chat",
    "mysql://chat:12#SECRET@127.0.0.1:1/chat",
    "mysql://chat:12?SECRET@127.0.0.1:1/chat",
    "mysql://chat:SECRET#x@127.0.0.1:1/chat",
    "mysql://chat:SECRET@127.0.0.1:port/chat",
    "mysql://chat:SECRET@/chat",
    "mysql://chat:SECRET@127.0.0.1:1",
    "mysql://chat:SECRET",
    "mysql://127.0.0.1:1/chat?password=SECRET",
    "mysql://127.0.0.1:1/chat?pool_min=SECRET",
    "mysql:/x:SECRET@127.0.0.1:1/chat",
    "mysql//chat:SECRET@127.0.0.1:1/chat",
    "mysql:chat:SECRET@127.0.0.1:1/chat",
    "mysqll://chat:SECRET@127.0.0.1:1/chat",
    "chat:SECRET@127.0.0.1:1/chat",
    "'mysql://chat:SECRET@127.0.0.1:1/chat'",
    " mysql://chat:SECRET@127.0.0.1:1/chat",
    "postgres://chat:SECRET@127.0.0.1:1/chat",
    "sqlite://chat:SECRET@127.0.0.1:1/chat",
    "sqlite:mysql://chat:SECRET@127.0.0.1:1/chat",
    "redis://:SECRET@127.0.0.1:1",
    "rediss://user:SECRET@127.0.0.1:1/0",
    "redis://SECRET@127.0.0.1:1/database",
    "redis+unix:///tmp/socket?pass=SECRET",
    "redis:/SECRET@127.0.0.1:1",
];
const SECRET: &str = "s3cretpw";

#[test]
fn no_address_is_printed_with_its_password() {
    let store = "--store=mysql://127.0.0.1:1/chat";
    for address in ADDRESSES {
        let address = address.replace("SECRET", SECRET);
        let ways: [(&str, &[&str]); 10] = [
            ("CHAT_STORE", &[]),
            ("CHAT_REDIS", &[store]),
            ("", &["--store", &address]),
            ("", &["--redis", &address, store]),
            ("", &[&format!("--stor={address}")]),
            ("", &[&address]),
            ("", &["127.0.0.1", "0", &address]),
            ("", &["--store", "=", &address]),
            ("", &["--metrics", &address]),
            ("CHAT_LIMITS", &[]),
        ];
        for (variable, words) in ways {
            let mut command = program(CHAT_SERVER);
            command.env("RUST_LOG", "trace").env("RUST_BACKTRACE", "full").args(words);
            if !variable.is_empty() {
                command.env(variable, &address);
            }
            let (status, text) = outcome(command);
            assert!(matches!(status.code(), Some(1 | 2)), "{variable} {words:?}: {status}: {text}");
            assert!(!text.contains(SECRET) && !text.contains("panicked"), "{variable} {words:?}: {text}");
            assert!(!text.trim().is_empty(), "{variable} {words:?}");
            let named = [variable, "127.0.0.1:1", "needs a store", "it must be mysql://USER"];
            assert!(named.iter().any(|name| text.contains(name)), "{variable} {words:?}: {text}");
        }
    }
}

#[test]
fn mariadb_is_taken_for_mysql_and_what_is_shown_of_it_is_where_it_is() {
    let database = MariaDb::shared().new_database();
    let address = MariaDb::shared().url(&database).replace("mysql://", "mariadb://").replace("123456", "%3123456");
    let server = Running::start(&format!("export RUST_LOG=debug CHAT_STORE={address}"), &["--store", &address]);
    let mut client: Client = server.client();
    let account = client.register("someone", "secret");
    client.login(&account);
    let (status, log) = server.end("TERM");
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("23456") && log.contains(&format!("/{database};")), "{log}");
}
