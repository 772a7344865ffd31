//! Clients of different dialects on one server, and on two nodes: each hears the others in its own words.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::client::{Strict, TIME};
use crate::profiles::{self, Profile};
use crate::steps::{kept, logged_out, name};
use crate::support::{Account, Client, Config, World, eventually};
use crate::{at_first, for_each};

tests! { everywhere: clients_of_all_dialects_talk_with_each_other }

/// A server, or a cluster, that listens for each dialect which has to be given.
pub fn place(config: &Config) -> World {
    let given = profiles::ALL.iter().filter(|profile| profile.is_given);
    let listeners: Vec<String> =
        given.map(|profile| format!("--listen=127.0.0.1:0,dialect={}", profile.name)).collect();
    config.own(&listeners.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Where a node listens for these clients.
fn address_of(world: &World, node: usize, profile: &Profile) -> SocketAddr {
    let server = world.server_on(node);
    let mut address = (!profile.is_given).then_some(server.address);
    let end = format!("; dialect {}", profile.name);
    eventually(&format!("a line that ends in {end}"), || {
        let log = server.log_tail();
        let logged = log.lines().find_map(|line| line.strip_suffix(&*end)?.split("listening on ").nth(1)?.parse().ok());
        address = address.or(logged);
        address.is_some()
    });
    address.expect("just seen")
}

fn clients_of_all_dialects_talk_with_each_other(config: &'static Config) {
    let world = place(config);
    for_each(&profiles::ALL, |profile| {
        let at = profiles::ALL.iter().position(|other| other.name == profile.name).unwrap_or(0);
        let others = profiles::ALL.iter().cycle().skip(at + 1).filter(|other| !other.only_chats);
        let third = others.into_iter().next().expect("there are more");
        talk(&world, profile, third);
    });
}

/// Registers a client and logs it in.
pub fn online(world: &World, node: usize, profile: &Profile, tag: &str) -> Strict {
    let mut client = Strict::register(&at_first(profile), address_of(world, node, profile), &name(tag));
    client.login();
    client
}

/// A client of canon, with `seq`, on the first node; one of a dialect on the second one; a third one on the first.
fn talk(world: &World, profile: &Profile, other: &Profile) {
    let mut canon = world.client_on(0);
    let account = canon.register(&name("c"), "secret");
    canon.login(&account);
    let mut theirs = online(world, 1, profile, "t");
    let mut third = online(world, 0, other, "o");

    theirs.chat(account.id, "hello");
    // This one is known from its join on; canon's own clients may write `to`, and that is passed on.
    let to_key = if profile.name == "g" { "to" } else { "toid" };
    expect_chat(&mut canon, &theirs.account, to_key, account.id, "hello");
    assert!(canon.chat(theirs.id(), "hello back"));
    theirs.hears(&account, "hello back");
    third.chat(theirs.id(), "who are you?");
    theirs.hears(&third.account, "who are you?");
    theirs.chat(third.id(), "guess");
    third.hears(&theirs.account, "guess");

    let group = (!profile.only_chats).then(|| canon.create_group(&name("g")));
    if let Some(group) = group {
        theirs.join_group(group);
        theirs.group_chat(group, "one");
        expect_chat(&mut canon, &theirs.account, "groupid", group, "one");
        third.join_group(group);
        third.group_chat(group, "two");
        expect_chat(&mut canon, &third.account, "groupid", group, "two");
        theirs.hears_in_group(group, &third.account, "two");
        canon.group_chat(group, "three");
        theirs.hears_in_group(group, &account, "three");
        third.hears_in_group(group, &account, "three");
    }

    theirs.logout();
    logged_out(world, theirs.id());
    assert!(!canon.chat(theirs.id(), "gone?"));
    if let Some(group) = group {
        assert_eq!(canon.group_chat(group, "four")["stored"], 1);
        third.hears_in_group(group, &account, "four");
    }
    theirs.login();
    theirs.hears(&account, "gone?");
    if let Some(group) = group {
        theirs.hears_in_group(group, &account, "four");
    }

    canon.logout();
    theirs.chat(account.id, "you, too?");
    kept(world, account.id, 1);
    if let Some(group) = group {
        theirs.group_chat(group, "five");
        third.hears_in_group(group, &theirs.account, "five");
        kept(world, account.id, 2);
    }
    canon.login(&account);
    expect_chat(&mut canon, &theirs.account, "toid", account.id, "you, too?");
    if let Some(group) = group {
        expect_chat(&mut canon, &theirs.account, "groupid", group, "five");
    }
    theirs.quit();
    third.quit();
}

/// The next push must be this chat, in canon and in nothing else.
#[track_caller]
pub fn expect_chat(canon: &mut Client, from: &Account, to_key: &str, to: u32, text: &str) {
    let mut chat = canon.push();
    // What else a sender puts into a chat is passed on: its `seq`, or the group's name. Another one sends no time.
    for key in ["seq", "groupname"] {
        chat.as_object_mut().expect("an object").remove(key);
    }
    if chat["time"] != TIME {
        assert_eq!(chat["time"].as_str().map(str::len), Some(TIME.len()), "{chat}");
        chat["time"] = TIME.into();
    }
    let msgid = if to_key == "groupid" { 10 } else { 6 };
    let mut expected: Value = json!({"msgid": msgid, "id": from.id, "name": from.name, "msg": text, "time": TIME});
    expected[to_key] = to.into();
    assert_eq!(chat, expected);
}
