//! A request sees what the same connection has asked for before it, answered or not: `docs/PROTOCOL.md#3-requests`.

use serde_json::{Value, json};

use crate::support::{Account, Client, Config, listed, login};

in_every_configuration! {
    a_list_has_what_was_asked_for_right_before_it,
    a_list_has_all_of_many_that_were_asked_for_right_before_it,
    a_list_behind_what_is_refused_is_answered_behind_it,
    a_list_that_waits_keeps_its_framing_and_is_answered_before_the_end,
    a_group_chat_right_behind_its_join_is_a_members,
    a_group_may_be_joined_and_written_to_right_behind_its_creation,
    a_login_sees_what_the_session_before_it_has_done,
    a_login_sees_who_has_logged_out_right_before_it,
    of_two_groups_asked_for_at_once_a_limit_lets_the_first_pass,
}

/// Often enough for two jobs that run side by side to come out in the wrong order.
const ROUNDS: usize = 10;

/// Sends all of them at once, each with a `seq` of its own.
fn start_all(client: &mut Client, requests: impl IntoIterator<Item = Value>) -> Vec<i64> {
    let mut segment = String::new();
    let mut seqs = Vec::new();
    for mut request in requests {
        let seq = client.new_seq();
        request["seq"] = seq.into();
        segment += &format!("{request}\n");
        seqs.push(seq);
    }
    client.send_raw(segment);
    seqs
}

/// The replies to all of them, in the order in which they were asked.
#[track_caller]
fn ask_all(client: &mut Client, requests: impl IntoIterator<Item = Value>) -> Vec<Value> {
    start_all(client, requests).into_iter().map(|seq| client.reply(seq)).collect()
}

fn ids(list: &Value) -> Vec<u64> {
    listed(list).iter().map(|entry| entry["id"].as_u64().expect("an id")).collect()
}

fn add_friend(id: u32, friend: u32) -> Value {
    json!({"msgid": 7, "id": id, "friendid": friend})
}

fn create_group(id: u32, name: &str) -> Value {
    json!({"msgid": 8, "id": id, "groupname": name, "groupdesc": ""})
}

fn join(id: u32, group: u32) -> Value {
    json!({"msgid": 9, "id": id, "groupid": group})
}

fn list() -> Value {
    json!({"msgid": 206})
}

fn a_list_has_what_was_asked_for_right_before_it(config: &'static Config) {
    let world = config.shared();
    let mut creator = world.online_on(1, "creator");
    let mut client = world.online("client");
    let id = client.id();
    let (mut friends, mut groups) = (0, 0);
    for round in 0..ROUNDS {
        let friend = world.account("friend").id;
        let group = creator.create_group(&world.name("group"));
        for (request, more_friends, more_groups) in
            [(join(id, group), 0, 1), (add_friend(id, friend), 1, 0), (create_group(id, &world.name("own")), 0, 1)]
        {
            friends += more_friends;
            groups += more_groups;
            let list = if round % 2 == 0 {
                let replies = ask_all(&mut client, [request.clone(), list()]);
                assert_eq!(replies[0]["errno"], 0, "{request} got {}", replies[0]);
                replies[1].clone()
            } else {
                // Nothing reports when it is done.
                client.send_raw(request.to_string());
                client.must(list())
            };
            assert_eq!(
                (ids(&list["friends"]).len(), ids(&list["groups"]).len()),
                (friends, groups),
                "behind {request}"
            );
        }
    }
}

fn a_list_has_all_of_many_that_were_asked_for_right_before_it(config: &'static Config) {
    const MANY: usize = 40;
    let world = config.shared();
    let (mut creator, mut client) = (world.online_on(1, "creator"), world.online("client"));
    let groups: Vec<u32> = (0..MANY).map(|_| creator.create_group(&world.name("group"))).collect();
    let mut friends: Vec<u64> = world.accounts("friend", MANY).iter().map(|friend| u64::from(friend.id)).collect();
    let id = client.id();
    let mut requests: Vec<Value> = groups.iter().map(|group| join(id, *group)).collect();
    requests.extend(friends.iter().map(|friend| add_friend(id, *friend as u32)));
    requests.push(list());
    let seqs = start_all(&mut client, requests);
    let lists = client.reply(*seqs.last().unwrap());
    let mut found = ids(&lists["friends"]);
    found.sort_unstable();
    friends.sort_unstable();
    assert_eq!(found, friends);
    assert_eq!(ids(&lists["groups"]).len(), MANY);
}

fn a_list_behind_what_is_refused_is_answered_behind_it(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    let id = client.id();
    for (request, errno) in [(add_friend(id, 2_000_000_000), 15), (join(id, 2_000_000_000), 16), (join(id, 0), 16)] {
        let seqs = start_all(&mut client, [request, list()]);
        let (refusal, list) = (client.recv(), client.recv());
        assert_eq!((&refusal["seq"], &refusal["errno"]), (&json!(seqs[0]), &json!(errno)));
        assert_eq!((&list["seq"], &list["errno"]), (&json!(seqs[1]), &json!(0)));
        assert!(list.get("friends").is_none() && list.get("groups").is_none(), "{list}");
    }
}

fn a_list_that_waits_keeps_its_framing_and_is_answered_before_the_end(config: &'static Config) {
    let world = config.shared();
    let friend = world.account("friend").id;
    for end in ["\n", "\0", "\r\n"] {
        let mut client = world.online("client");
        let (add, list) = (add_friend(client.id(), friend), json!({"msgid": 206, "seq": 7}));
        // What ends the list has not come.
        client.send_raw(format!("{add}{end} {list}"));
        client.finish();
        let reply = client.recv();
        assert_eq!((&reply["seq"], ids(&reply["friends"])), (&json!(7), vec![u64::from(friend)]));
        client.expect_bytes(end);
        client.expect_end();
    }
}

fn a_group_chat_right_behind_its_join_is_a_members(config: &'static Config) {
    let world = config.shared();
    let (mut creator, mut other) = (world.online("creator"), world.online_on(1, "other"));
    for round in 0..ROUNDS {
        let group = creator.create_group(&world.name("group"));
        let mut client = world.online_on(round, "member");
        if round % 3 > 0 {
            // Its members are known where the client is, or are just being read.
            creator.group_chat(group, "before");
            other.join(group);
            other.start(other.group_chat_to(group, "before"));
        }
        let chat = client.group_chat_to(group, "right behind");
        let id = client.id();
        let replies = ask_all(&mut client, [join(id, group), chat]);
        assert_eq!((&replies[0]["errno"], &replies[1]["errno"]), (&json!(0), &json!(0)), "{replies:?}");
        while creator.push()["msg"] != "right behind" {}
    }
}

fn a_group_may_be_joined_and_written_to_right_behind_its_creation(config: &'static Config) {
    let world = config.own(&[]);
    let mut client = world.online("client");
    let id = client.id();
    let first = client.create_group("the first");
    for guess in (first + 1..).take(ROUNDS) {
        // Ids are assigned one after the other, and no other client is here.
        let chat = client.group_chat_to(guess, "to nobody else");
        let name = format!("group {guess}");
        let replies = ask_all(&mut client, [create_group(id, &name), join(id, guess), chat, list()]);
        let errnos: Vec<_> = replies.iter().map(|reply| reply["errno"].as_i64().unwrap()).collect();
        assert_eq!(errnos, [0, 18, 0, 0], "{replies:?}");
        assert_eq!(replies[0]["groupid"], guess);
    }
}

/// The group, as a login's reply has it.
#[track_caller]
fn members_in(reply: &Value, group: u32) -> Vec<(u64, Value)> {
    let groups = listed(&reply["groups"]);
    let group = groups.iter().find(|one| one["id"] == group).unwrap_or_else(|| panic!("no group {group} in {reply}"));
    listed(&group["users"]).iter().map(|user| (user["id"].as_u64().unwrap(), user["state"].clone())).collect()
}

fn a_login_sees_what_the_session_before_it_has_done(config: &'static Config) {
    let world = config.shared();
    let mut creator = world.online_on(1, "creator");
    let creator_account = creator.me().clone();
    for _ in 0..ROUNDS {
        let [one, other]: [Account; 2] = ["one", "other"].map(|tag| world.account(tag));
        let group = creator.create_group(&world.name("group"));
        let mut client = world.client();
        client.login(&other);
        client.join(group);
        client.login(&one);
        // As itself, and as another user, who is in that group.
        let (logout, own) = (json!({"msgid": 3, "id": one.id}), create_group(one.id, &world.name("own")));
        let friend = add_friend(one.id, creator_account.id);
        let requests = [join(one.id, group), own, friend, logout, login(&one), login(&other)];
        let replies = ask_all(&mut client, requests);
        assert!(replies.iter().all(|reply| reply["errno"] == 0), "{replies:?}");
        let (again, as_other) = (&replies[4], &replies[5]);
        assert_eq!(ids(&again["friends"]), [u64::from(creator_account.id)], "{again}");
        assert_eq!(ids(&again["groups"]).len(), 2, "{again}");
        let members = members_in(as_other, group);
        assert!(members.contains(&(one.id.into(), json!("offline"))), "{as_other}");
    }
    for _ in 0..ROUNDS {
        // Without a logout of its own, and in one go.
        let [one, other]: [Account; 2] = ["one", "other"].map(|tag| world.account(tag));
        let group = creator.create_group(&world.name("group"));
        let mut client = world.client();
        client.login(&other);
        client.join(group);
        client.login(&one);
        let chat = json!({"msgid": 6, "id": one.id, "toid": other.id, "msg": "from before"});
        let replies = ask_all(&mut client, [join(one.id, group), chat, login(&other)]);
        assert!(members_in(&replies[2], group).contains(&(one.id.into(), json!("offline"))), "{replies:?}");
        let offline = listed(&replies[2]["offlinemsg"]);
        assert!(offline.len() == 1 && offline[0]["msg"] == "from before", "{replies:?}");
    }
}

fn a_login_sees_who_has_logged_out_right_before_it(config: &'static Config) {
    let world = config.shared();
    let [one, other]: [Account; 2] = ["one", "other"].map(|tag| world.account(tag));
    let mut client = world.client();
    client.login(&other);
    client.befriend(one.id);
    for round in 0..ROUNDS {
        client.login(&one);
        let logout = json!({"msgid": 3, "id": one.id});
        let requests = if round % 2 == 0 { vec![login(&other)] } else { vec![logout, login(&other)] };
        let replies = ask_all(&mut client, requests);
        let friends = listed(&replies.last().unwrap()["friends"]);
        assert_eq!((&friends[0]["id"], &friends[0]["state"]), (&json!(one.id), &json!("offline")), "{replies:?}");
    }
}

fn of_two_groups_asked_for_at_once_a_limit_lets_the_first_pass(config: &'static Config) {
    let world = config.own(&["--max-groups", "1"]);
    for _ in 0..ROUNDS {
        let groups = [(); 2].map(|()| world.online("creator").create_group(&world.name("group")));
        let mut client = world.online("client");
        let id = client.id();
        let own = create_group(id, &world.name("own"));
        for (first, second) in [(join(id, groups[0]), join(id, groups[1])), (own.clone(), join(id, groups[0]))] {
            let mut client = world.online("client");
            let id = client.id();
            let requests = [first, second].map(|mut request| {
                request["id"] = id.into();
                request
            });
            let replies = ask_all(&mut client, requests.clone());
            assert_eq!(
                (&replies[0]["errno"], &replies[1]["errno"]),
                (&json!(0), &json!(20)),
                "{requests:?}: {replies:?}"
            );
        }
        let replies = ask_all(&mut client, [join(id, groups[1]), create_group(id, &world.name("late"))]);
        assert_eq!((&replies[0]["errno"], &replies[1]["errno"]), (&json!(0), &json!(20)), "{replies:?}");
    }
}
