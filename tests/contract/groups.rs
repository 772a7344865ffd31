//! CREATE_GROUP_MSG, ADD_GROUP_MSG and GROUP_CHAT_MSG, as `docs/PROTOCOL.md#3-requests` has them; and a member counts from
//! the ack of the join on, promise 6 of `docs/PROTOCOL.md#8-order-and-other-promises`.

use serde_json::{Value, json};

use crate::support::{Client, Config, eventually, listed};

in_every_configuration! {
    a_groups_ack_bears_its_id,
    a_group_lists_its_members_with_state_and_role,
    a_taken_groupname_is_error_18_whatever_its_case,
    joining_twice_is_error_18_and_joining_nothing_error_16,
    create_and_join_without_seq_have_no_reply,
    a_group_chat_reaches_every_other_member,
    a_group_chat_is_forwarded_with_the_bytes_that_came,
    a_group_chat_of_one_who_is_no_member_is_error_17,
    a_group_chat_to_no_group_is_error_16,
    a_member_counts_from_the_ack_of_the_join,
    a_large_group_is_reached_whole_and_listed_with_its_first_500,
    groupdesc_may_be_empty_and_have_200_characters,
}

fn a_groups_ack_bears_its_id(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("creator");
    let request = json!({"msgid": 8, "id": client.id(), "groupname": world.name("group"), "groupdesc": "d"});
    let ack = client.request(request);
    let group = ack["groupid"].as_u64().expect("a groupid");
    assert_eq!(ack, json!({"msgid": 200, "seq": ack["seq"], "errno": 0, "groupid": group}));
}

fn a_group_lists_its_members_with_state_and_role(config: &'static Config) {
    let world = config.shared();
    let (mut creator, mut member) = (world.online("creator"), world.online_on(1, "member"));
    let (account, name) = (creator.me().clone(), world.name("group"));
    let group = creator.create_group(&name);
    member.join(group);
    let member_account = member.me().clone();
    member.logout();
    creator.logout();
    let greeting = creator.login(&account);
    let groups = listed(&greeting["groups"]);
    assert_eq!(groups.len(), 1);
    let outer = &groups[0];
    assert_eq!(
        (&outer["id"], &outer["groupname"], &outer["groupdesc"]),
        (&json!(group), &json!(name), &json!("of tests"))
    );
    assert!(outer.get("members").is_none(), "only beyond 500: {outer}");
    let expected = [
        json!({"id": account.id, "name": account.name, "state": "online", "role": "creator"}),
        json!({"id": member_account.id, "name": member_account.name, "state": "offline", "role": "normal"}),
    ];
    assert_eq!(listed(&outer["users"]), expected);
}

fn a_taken_groupname_is_error_18_whatever_its_case(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("creator");
    let name = world.name("Übung");
    client.create_group(&name);
    for taken in [name.clone(), name.to_uppercase(), name.to_lowercase()] {
        let request = json!({"msgid": 8, "id": client.id(), "groupname": taken, "groupdesc": ""});
        assert_eq!(client.refused(request), 18, "{taken}");
    }
}

fn joining_twice_is_error_18_and_joining_nothing_error_16(config: &'static Config) {
    let world = config.shared();
    let (mut creator, mut member) = (world.online("creator"), world.online_on(1, "member"));
    let group = creator.create_group(&world.name("group"));
    member.join(group);
    for client in [&mut creator, &mut member] {
        let request = json!({"msgid": 9, "id": client.id(), "groupid": group});
        assert_eq!(client.refused(request), 18);
    }
    for nothing in [2_000_000_000_i64, 0, -1, 1 << 40] {
        assert_eq!(member.refused(json!({"msgid": 9, "id": member.id(), "groupid": nothing})), 16, "{nothing}");
    }
}

fn create_and_join_without_seq_have_no_reply(config: &'static Config) {
    let world = config.shared();
    let (mut creator, mut member) = (world.online("creator"), world.online_on(1, "member"));
    creator.post(&json!({"msgid": 8, "id": creator.id(), "groupname": world.name("group"), "groupdesc": ""}));
    let mut groups = Vec::new();
    eventually("the group to be listed", || {
        groups = listed(&creator.must(json!({"msgid": 206}))["groups"]);
        groups.len() == 1
    });
    let group = groups[0]["id"].clone();
    member.post(&json!({"msgid": 9, "id": member.id(), "groupid": group}));
    member.post(&json!({"msgid": 7, "id": member.id(), "friendid": creator.id()}));
    eventually("the group and the friend to be listed", || {
        let list = member.must(json!({"msgid": 206}));
        listed(&list["groups"]).len() + listed(&list["friends"]).len() == 2
    });
    assert_eq!(creator.pushed(), [] as [Value; 0]);
    assert_eq!(member.pushed(), [] as [Value; 0]);
}

fn a_group_chat_reaches_every_other_member(config: &'static Config) {
    let world = config.shared();
    let mut creator = world.online("creator");
    let group = creator.create_group(&world.name("group"));
    let mut online: Vec<Client> = (0..9).map(|node| world.online_on(node, "online")).collect();
    let mut offline: Vec<Client> = (0..5).map(|node| world.online_on(node, "offline")).collect();
    let absent: Vec<_> = offline.iter().map(|member| member.me().clone()).collect();
    online.iter_mut().chain(&mut offline).for_each(|member| member.join(group));
    let mut outsider = world.online("outsider");
    offline.iter_mut().for_each(Client::logout);
    let ack = creator.group_chat(group, "hi all");
    assert_eq!(ack, json!({"msgid": 200, "seq": ack["seq"], "errno": 0, "delivered": 9, "stored": 5}));
    for member in &mut online {
        let chat = member.push();
        assert_eq!(
            (&chat["msg"], &chat["groupid"], &chat["id"]),
            (&json!("hi all"), &json!(group), &json!(creator.id()))
        );
    }
    for account in &absent {
        assert_eq!(world.login(account).texts(1), ["hi all"]);
    }
    assert_eq!(creator.pushed(), [] as [Value; 0], "not to its sender");
    assert_eq!(outsider.pushed(), [] as [Value; 0]);
}

fn a_group_chat_is_forwarded_with_the_bytes_that_came(config: &'static Config) {
    let world = config.shared();
    let (mut creator, mut member) = (world.online("creator"), world.online_on(1, "member"));
    let group = creator.create_group(&world.name("group"));
    member.join(group);
    let (from, name) = (creator.id(), creator.me().name.clone());
    let object = format!(
        r#"{{ "msgid":10,"id":{from},"name":"{name}","groupid":"{group}","msg":"\u0041","time":"t","seq":1 }}"#
    );
    creator.send(&object);
    assert_eq!(member.push_text(), object);
    // Another name is replaced, and a time added, as for one recipient.
    creator.post(&json!({"msgid": 10, "id": from, "name": "forged", "groupid": group, "msg": "m"}));
    let chat = member.push();
    assert_eq!(chat["name"], name);
    assert_eq!(chat["time"].as_str().map(str::len), Some(19));
}

fn a_group_chat_of_one_who_is_no_member_is_error_17(config: &'static Config) {
    let world = config.shared();
    let (mut creator, mut outsider) = (world.online("creator"), world.online_on(1, "outsider"));
    let group = creator.create_group(&world.name("group"));
    let chat = outsider.group_chat_to(group, "let me in");
    assert_eq!(outsider.refused(chat), 17);
    assert_eq!(creator.pushed(), [] as [Value; 0]);
}

fn a_group_chat_to_no_group_is_error_16(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("sender");
    for nothing in [2_000_000_000_i64, 0, -1, 1 << 40] {
        let mut chat = client.group_chat_to(1, "hi");
        chat["groupid"] = nothing.into();
        assert_eq!(client.refused(chat), 16, "{nothing}");
    }
}

fn a_member_counts_from_the_ack_of_the_join(config: &'static Config) {
    let world = config.shared();
    let mut creator = world.online("creator");
    let group = creator.create_group(&world.name("group"));
    let mut members = Vec::new();
    for n in 1..=30 {
        let mut member = world.online_on(n, "member");
        // The members are known on every node by now; the next one must be added to them.
        creator.group_chat(group, "before");
        member.join(group);
        let ack = creator.group_chat(group, "after");
        assert_eq!((&ack["delivered"], &ack["stored"]), (&json!(n), &json!(0)));
        assert_eq!(member.texts(1), ["after"]);
        // And the new member may send at once.
        assert_eq!(member.group_chat(group, "hello")["delivered"], n);
        members.push(member);
    }
}

fn a_large_group_is_reached_whole_and_listed_with_its_first_500(config: &'static Config) {
    let world = config.shared();
    let mut creator = world.online("creator");
    let account = creator.me().clone();
    let group = creator.create_group(&world.name("group"));
    let accounts = world.accounts("member", 510);
    let mut client = world.client_on(1);
    for member in &accounts {
        // Each logs the one before out.
        client.login(member);
        client.join(group);
    }
    client.logout();
    let ack = creator.group_chat(group, "hi all");
    assert_eq!((&ack["delivered"], &ack["stored"]), (&json!(0), &json!(510)));
    for member in [&accounts[0], &accounts[255], &accounts[509]] {
        assert_eq!(world.login(member).texts(1), ["hi all"]);
    }
    creator.logout();
    let groups = listed(&creator.login(&account)["groups"]);
    assert_eq!(groups[0]["members"], 511);
    assert_eq!(listed(&groups[0]["users"]).len(), 500);
}

fn groupdesc_may_be_empty_and_have_200_characters(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("creator");
    for (length, errno) in [(0, 0), (200, 0), (201, 12)] {
        let desc = "述".repeat(length);
        let request = json!({"msgid": 8, "id": client.id(), "groupname": world.name("g"), "groupdesc": desc});
        assert_eq!(client.request(request)["errno"], errno, "{length}");
    }
}
