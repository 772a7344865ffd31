//! What two users of one client do in a sitting, in any dialect: they register, log in, become friends, chat, make a
//! group, talk in it, miss what was sent while one was away, and find it again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::client::Strict;
use crate::profiles::*;
use crate::support::{World, eventually};

/// A name that no other account or group has. A short one: clients die of long replies.
pub fn name(tag: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{tag}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The id of the group that has this name, once it is stored.
#[track_caller]
pub fn group_named(world: &World, name: &str) -> u32 {
    let query = format!("SELECT COALESCE(MAX(id), 0) FROM AllGroup WHERE groupname = '{name}'");
    let mut id = 0;
    eventually("the group is stored", || {
        id = world.count(&query) as u32;
        id > 0
    });
    id
}

/// The user is offline on all nodes.
#[track_caller]
pub fn logged_out(world: &World, user: u32) {
    let query = format!("SELECT COUNT(*) FROM User WHERE id = {user} AND state = 'online'");
    eventually("the user is offline", || world.count(&query) == 0);
}

#[track_caller]
pub fn kept(world: &World, user: u32, messages: usize) {
    eventually("messages are kept", || world.kept_for(user) == messages);
}

/// Waits until a friend is stored; an ack that has come promises it.
#[track_caller]
fn befriended(world: &World, client: &Strict, friend: u32) {
    let query = format!("SELECT COUNT(*) FROM Friend WHERE userid = {} AND friendid = {friend}", client.id());
    if client.profile.ack(AddFriend).or(client.profile.ack(Update)).is_some() {
        assert_eq!(world.count(&query), 1, "{} was told too early", client.profile.name);
    }
    eventually("the friend is stored", || world.count(&query) == 1);
    if client.profile.ack(Update).is_some() {
        assert!(client.friends.iter().any(|listed| listed["id"] == friend), "{:?}", client.friends);
    }
}

/// Plays all steps on one server. `at_first`: the client as far as the server can know it before it has sent what
/// tells its dialect.
pub fn play(world: &World, address: SocketAddr, profile: &Profile, at_first: &Profile) {
    let mut ann = Strict::register(at_first, address, &name("a"));
    let mut bob = Strict::register(at_first, address, &name("b"));
    ann.login();
    bob.login();
    if !profile.only_chats {
        befriend(world, &mut ann, &mut bob);
    }
    chat(&mut ann, &mut bob, 1);
    let group = (!profile.only_chats).then(|| make_group(world, &mut ann, &mut bob));
    bob.logout();
    // What has been told by now holds from the next login on.
    ann.profile = *profile;
    bob.profile = *profile;
    logged_out(world, bob.id());
    ann.chat(bob.id(), "are you there?");
    // Nothing is promised about the order of a chat and a message to a group.
    kept(world, bob.id(), 1);
    if let Some(group) = group {
        ann.group_chat(group, "where is he?");
        kept(world, bob.id(), 2);
    }
    bob.login();
    bob.hears(&ann.account, "are you there?");
    if let Some(group) = group {
        bob.hears_in_group(group, &ann.account, "where is he?");
        check_lists(&bob, &ann, group);
    }
    kept(world, bob.id(), 0);
    ann.logout();
    logged_out(world, ann.id());
    ann.login();
    if let Some(group) = group {
        check_lists(&ann, &bob, group);
        more_acks(world, &mut ann, &mut bob);
        // What is refused is 201 in canon alone: other clients die of it, or take it for what they wait for.
        if profile.name != "canon" {
            ann.add_nobody();
        }
    }
    chat(&mut ann, &mut bob, 2);
    ann.logout();
    bob.logout();
    logged_out(world, ann.id());
    logged_out(world, bob.id());
    ann.quit();
    bob.quit();
}

fn befriend(world: &World, ann: &mut Strict, bob: &mut Strict) {
    ann.add_friend(bob.id());
    befriended(world, ann, bob.id());
    bob.add_friend(ann.id());
    befriended(world, bob, ann.id());
}

pub fn chat(ann: &mut Strict, bob: &mut Strict, round: u32) {
    let (there, back) = (format!("hello {round} \"你好\""), format!("hello back {round} \\ 😀"));
    ann.chat(bob.id(), &there);
    bob.hears(&ann.account, &there);
    bob.chat(ann.id(), &back);
    ann.hears(&bob.account, &back);
}

fn make_group(world: &World, ann: &mut Strict, bob: &mut Strict) -> u32 {
    let name = name("g");
    let told = ann.create_group(&name);
    let group = group_named(world, &name);
    assert!(told.is_none_or(|told| told == group), "{told:?} is {group}");
    bob.join_group(group);
    // Who has been told that he is a member can be written to. Without an ack, what he sends next is a member's.
    if bob.profile.ack(JoinGroup).is_some() {
        talk_in(group, ann, bob);
    } else {
        talk_in(group, bob, ann);
    }
    group
}

pub fn talk_in(group: u32, first: &mut Strict, second: &mut Strict) {
    first.group_chat(group, "hello all");
    second.hears_in_group(group, &first.account, "hello all");
    second.group_chat(group, "welcome");
    first.hears_in_group(group, &second.account, "welcome");
}

/// What a login has listed: the other one, who is online, as a friend, and the group of both.
#[track_caller]
fn check_lists(client: &Strict, other: &Strict, group: u32) {
    let account = &other.account;
    let friend = json!({"id": account.id, "name": account.name, "state": "online"});
    assert_eq!(client.friends, [friend], "friends of {}", client.profile.name);
    let [listed] = &client.groups[..] else { panic!("groups of {}: {:?}", client.profile.name, client.groups) };
    assert_eq!((&listed["id"], &listed["groupdesc"]), (&group.into(), &"talk".into()), "{listed}");
    let users = listed["users"].as_array().expect("an array");
    let mut ids: Vec<&Value> = users.iter().map(|user| &user["id"]).collect();
    ids.sort_by_key(|id| id.as_u64());
    let mut both = [client.id(), other.id()];
    both.sort_unstable();
    assert_eq!(ids, both, "{listed}");
    assert!(users.iter().all(|user| user["state"] == "online"), "{listed}");
    assert!(users.iter().any(|user| user["role"] == "creator"), "{listed}");
}

/// By now each of its acks is due, however the server knows the client.
fn more_acks(world: &World, ann: &mut Strict, bob: &mut Strict) {
    ann.add_friend(ann.id());
    befriended(world, ann, ann.id());
    let name = name("h");
    let told = ann.create_group(&name);
    let group = group_named(world, &name);
    assert!(told.is_none_or(|told| told == group), "{told:?} is {group}");
    bob.join_group(group);
}
