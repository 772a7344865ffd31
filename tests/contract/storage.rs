//! A SQLite store that fails, and comes back: errno 21 and promise 5 of
//! `docs/PROTOCOL.md#8-order-and-other-promises`. MySQL's failures are in `outage.rs`.

use serde_json::{Value, json};

use crate::support::{Client, Config, Launch, World, eventually, login, refused_start};

// What a full disk does to a file, and which processes may open it, is nothing that a MySQL server shows.
in_configurations! {
    sqlite_1: [
        a_full_store_is_error_21_and_online_chat_goes_on,
        a_full_store_is_never_reported_as_a_wrong_password,
        what_was_acked_before_the_store_was_full_is_there_and_it_works_again_with_room,
        a_second_server_on_the_same_store_is_refused,
    ],
    sqlite_4: [
        a_full_store_is_error_21_and_online_chat_goes_on,
        a_full_store_is_never_reported_as_a_wrong_password,
        what_was_acked_before_the_store_was_full_is_there_and_it_works_again_with_room,
        a_second_server_on_the_same_store_is_refused,
    ],
}

/// A world whose store may not grow past about a megabyte. A file that would is refused as by a full
/// disk, and the signal that comes with it ends nothing.
fn cramped(config: &Config) -> World {
    config.prepared("ulimit -S -f 2000", &[])
}

/// Sends chats to `to`, who is offline, until the store takes no more; returns how many it took.
#[track_caller]
fn fill(sender: &mut Client, to: u32) -> usize {
    for number in 0..20_000 {
        let chat = sender.chat_to(to, &format!("{number} {}", "x".repeat(4000)));
        let ack = sender.request(chat);
        if ack["errno"] != 0 {
            assert_eq!((&ack["msgid"], &ack["errno"]), (&json!(200), &json!(21)), "{ack}");
            return number;
        }
        assert_eq!(ack["delivered"], false);
    }
    panic!("the store takes everything");
}

/// Repeats a write, which may be smaller than those of [`fill`] and still fit, until it does not.
#[track_caller]
fn until_full(mut write: impl FnMut(usize) -> Value) -> Value {
    for attempt in 0..1000 {
        let reply = write(attempt);
        if reply["errno"] != 0 {
            assert_eq!(reply["errno"], 21, "{reply}");
            return reply;
        }
    }
    panic!("the store takes everything");
}

fn a_full_store_is_error_21_and_online_chat_goes_on(config: &'static Config) {
    let world = cramped(config);
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let absent = world.account("absent");
    fill(&mut sender, absent.id);
    for n in 0..50 {
        assert!(sender.chat(recipient.id(), &n.to_string()));
        assert_eq!(recipient.texts(1), [n.to_string()]);
    }
    let register =
        until_full(|n| world.client().request(json!({"msgid": 4, "name": format!("new {n}"), "password": "p"})));
    assert_eq!((&register["msgid"], &register["error"]), (&json!(5), &json!(21)));
    let id = sender.id();
    until_full(|n| sender.request(json!({"msgid": 8, "id": id, "groupname": format!("g{n}"), "groupdesc": ""})));
    // Without a seq the refusal is a 201.
    let chat = sender.chat_to(absent.id, &"x".repeat(8000));
    sender.post(&chat);
    let error = sender.recv();
    assert_eq!((&error["msgid"], &error["errno"], &error["request"]), (&json!(201), &json!(21), &json!(6)));
    assert_eq!(sender.pushed(), [] as [Value; 0]);
}

fn a_full_store_is_never_reported_as_a_wrong_password(config: &'static Config) {
    let world = cramped(config);
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    fill(&mut sender, absent.id);
    let mut client = world.client();
    let reply = until_full(|_| {
        let reply = client.request(login(&absent));
        client.post(&json!({"msgid": 3, "id": absent.id}));
        reply
    });
    assert_eq!(reply["msgid"], 2);
}

fn what_was_acked_before_the_store_was_full_is_there_and_it_works_again_with_room(config: &'static Config) {
    let world = cramped(config);
    let (mut sender, absent) = (world.online("sender"), world.account("absent"));
    let leaver = world.online("leaver");
    let kept = fill(&mut sender, absent.id);
    let account = leaver.me().clone();
    drop(leaver); // its connection ends, while nothing can be written
    let pid = world.server().pid().try_into().expect("a pid");
    rlimit::prlimit(pid, rlimit::Resource::FSIZE, Some((rlimit::INFINITY, rlimit::INFINITY)), None)
        .expect("one's own child's limit can be raised");
    eventually("the store to take messages again", || {
        let chat = sender.chat_to(absent.id, "room");
        sender.request(chat)["errno"] == 0
    });
    eventually("the account to be free", || world.client().try_login(&account)["errno"] == 0);
    // Those that were refused may be there too ("not known to be done"); the acked ones must be.
    let texts = world.login(&absent).pushed();
    let numbers: Vec<&str> =
        texts.iter().map(|chat| chat["msg"].as_str().unwrap().split(' ').next().unwrap()).collect();
    assert!(numbers.len() > kept, "{} of {kept}", numbers.len());
    for (number, got) in numbers.iter().take(kept).enumerate() {
        assert_eq!(*got, number.to_string());
    }
    assert_eq!(numbers.last(), Some(&"room"));
}

fn a_second_server_on_the_same_store_is_refused(config: &'static Config) {
    let world = config.own(&[]);
    let mut client = world.online("someone");
    let second = Launch { port: 0, ..world.launch().clone() };
    let output = refused_start(&second);
    assert!(output.status.code().is_some_and(|code| code != 0), "{:?}", output.status);
    let said = String::from_utf8_lossy(&output.stderr);
    let path = second.store.strip_prefix("sqlite:").unwrap();
    assert!(said.contains(path) && !said.contains("panicked"), "{said}");
    assert_eq!(world.online_in_store(), 1, "the second must not set the first's users offline");
    client.sync();
    world.assert_alive();
}
