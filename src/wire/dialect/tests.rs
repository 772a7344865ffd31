//! The profiles against what was measured of the clients, and the rules of finding out and of translating.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Dialect, Heard, Hearing, Kind, Length, Me, Speaker, To, Verb, find, list};
use crate::wire::Request;
use crate::wire::reply::{self, Errno, Friend, Group, LoginReply, Member, Refusal, ReplyLimit, Yields};

const ME: u32 = 7;

fn dialect(name: &str) -> Arc<Dialect> {
    Arc::clone(find(name).unwrap_or_else(|| panic!("there is no {name}")))
}

fn speaker(name: &str) -> Speaker {
    Speaker::new(dialect(name))
}

/// The only JSON value in here; a length before it is taken off where the dialect has one.
fn read(dialect: &Dialect, bytes: &[u8]) -> Value {
    let object = match dialect.length() {
        Length::Nowhere => bytes,
        Length::Replies | Length::Both => {
            let (head, object) = bytes.split_at(4);
            assert_eq!(head, u32::try_from(object.len()).unwrap().to_be_bytes());
            object
        }
    };
    serde_json::from_slice(object).unwrap_or_else(|error| panic!("{error}: {}", bytes.escape_ascii()))
}

/// What the client is told of a reply in canon; `None`: nothing.
fn told(speaker: &mut Speaker, reply: &Value) -> Option<Value> {
    let mut out = Vec::new();
    speaker.write_reply(reply.to_string().as_bytes(), Some(Me { id: ME, name: "zhang" }), &mut out);
    (!out.is_empty()).then(|| read(speaker.dialect(), &out))
}

/// What a request of the client is in canon.
fn canon(speaker: &Speaker, request: &Value) -> Option<(Verb, Value)> {
    match speaker.hear(request.to_string().as_bytes(), Some(ME)) {
        Heard::Theirs(verb, object) => Some((verb, serde_json::from_slice(&object).unwrap())),
        Heard::Canon | Heard::Unknown => None,
    }
}

/// What the client is told of a request, whose reply in canon this is.
fn acked(name: &str, verb: Verb, request: &Value, mut reply: Value) -> Option<Value> {
    let mut speaker = speaker(name);
    if let Some(seq) = speaker.ask(verb, request.to_string().as_bytes()) {
        reply["seq"] = seq.into();
    } else if reply["msgid"] == 200 {
        return None;
    }
    told(&mut speaker, &reply)
}

fn chat() -> Value {
    json!({"msgid": 6, "id": 1, "name": "li", "toid": 7, "msg": "你好", "time": "now"})
}

fn group_chat() -> Value {
    json!({"msgid": 10, "id": 1, "name": "li", "groupid": 3, "msg": "a\"b", "time": "now"})
}

fn pushed(name: &str, chat: &Value) -> Value {
    let mut out = Vec::new();
    speaker(name).write_chat(chat.to_string().as_bytes(), &mut out);
    read(&dialect(name), &out)
}

fn lists() -> (Vec<Friend>, Vec<Group>) {
    let friend = |id| Friend { id, name: format!("friend {id}"), state: "online" };
    let member = |id| Member { id, name: format!("member {id}"), state: "offline", role: "normal" };
    let group = Group {
        id: 3,
        groupname: "rust".into(),
        groupdesc: "a \"group\"".into(),
        users: [8, 9].map(member).into(),
        members: 2,
    };
    ([4, 5].map(friend).into(), vec![group])
}

/// The login reply in this dialect; each list is as it stands, strings or objects.
fn login(name: &str, limit: Option<usize>) -> Vec<u8> {
    let (friends, groups) = lists();
    let offline = [chat().to_string(), group_chat().to_string()];
    let offline: Vec<&str> = offline.iter().map(String::as_str).collect();
    let limit = limit.map(|bytes| ReplyLimit { bytes, yields: Yields::Everything });
    let login =
        LoginReply { seq: None, id: ME, name: "zhang", friends: &friends, groups: &groups, offline: &offline, limit };
    dialect(name).login_ack(&login).0
}

fn logged_in(name: &str) -> Value {
    read(&dialect(name), &login(name, None))
}

/// An element of a list; in canon it is a string that holds JSON.
fn element(list: &Value, is_object: bool) -> Value {
    let element = &list[0];
    assert_eq!(element.is_object(), is_object, "{element}");
    element.as_str().map_or_else(|| element.clone(), |text| serde_json::from_str(text).unwrap())
}

/// LOGIN, its ack, LOGOUT, REG, its ack, CHAT, ADD_FRIEND, CREATE, JOIN, GROUP_CHAT; 0: it has none.
const NUMBERS: [(&str, [i64; 10]); 19] = [
    ("canon", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("b", [1, 2, 10, 3, 4, 5, 6, 7, 8, 9]),
    ("b-offlineMsg", [1, 2, 10, 3, 4, 5, 6, 7, 8, 9]),
    ("b-userid", [1, 2, 10, 3, 4, 5, 6, 7, 8, 9]),
    ("b-singular", [1, 2, 10, 3, 4, 5, 6, 7, 8, 9]),
    ("b-objects", [1, 2, 10, 3, 4, 5, 6, 7, 8, 9]),
    ("c", [1, 5, 2, 3, 4, 6, 7, 8, 9, 10]),
    ("c-userid", [1, 5, 2, 3, 4, 6, 7, 8, 9, 10]),
    ("d", [1, 2, 4, 3, 5, 6, 7, 8, 9, 10]),
    ("e", [1, 3, 2, 4, 5, 6, 7, 8, 9, 10]),
    ("f", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11]),
    ("g", [1, 2, 5, 3, 4, 6, 7, 8, 10, 12]),
    ("canon-999", [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009]),
    ("zero", [0, 1, 11, 2, 3, 7, 4, 5, 6, 8]),
    ("framed", [1, 2, 15, 3, 4, 5, 7, 9, 11, 13]),
    ("canon-userid", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("canon-to", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("canon-msgId", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ("canon-data", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
];

#[test]
fn each_dialect_has_the_numbers_that_its_clients_were_seen_to_send_and_to_read() {
    let names: Vec<&str> = list().map(Dialect::name).collect();
    assert_eq!(names[..19], NUMBERS.map(|(name, _)| name), "in the order of the table, canon first");
    assert_eq!(names[19..], ["canon-length"]);
    for (name, [login, login_ack, logout, register, register_ack, chat, add, create, join, group]) in NUMBERS {
        let dialect = dialect(name);
        for (verb, number) in [
            (Verb::Login, login),
            (Verb::Logout, logout),
            (Verb::Register, register),
            (Verb::Chat, chat),
            (Verb::AddFriend, add),
            (Verb::CreateGroup, create),
            (Verb::JoinGroup, join),
            (Verb::GroupChat, group),
        ] {
            assert_eq!(dialect.number(verb), Some(number), "{name}: {verb:?}");
        }
        let ack = |verb| dialect.ack(verb).unwrap().number;
        assert_eq!((ack(Verb::Login), ack(Verb::Register)), (login_ack, register_ack), "{name}");
        assert_eq!(dialect.number(Verb::Update), (name == "zero").then_some(9), "{name}");
        assert!(!dialect.about().is_empty() && !dialect.about().contains('\n'), "{name}");
    }
}

#[test]
fn other_requests_are_acknowledged_only_where_the_dialect_has_it_so() {
    let expected = [
        ("f", Verb::AddFriend, 8),
        ("g", Verb::CreateGroup, 9),
        ("g", Verb::JoinGroup, 11),
        ("zero", Verb::Logout, 12),
        ("zero", Verb::Update, 10),
        ("framed", Verb::Logout, 16),
        ("framed", Verb::Chat, 6),
        ("framed", Verb::AddFriend, 8),
        ("framed", Verb::CreateGroup, 10),
        ("framed", Verb::JoinGroup, 12),
    ];
    let mut seen = Vec::new();
    for dialect in list() {
        for verb in Verb::ALL.into_iter().filter(|verb| !matches!(verb, Verb::Login | Verb::Register)) {
            seen.extend(dialect.ack(verb).map(|ack| (dialect.name(), verb, ack.number)));
        }
    }
    seen.sort_unstable();
    let mut expected = expected.to_vec();
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

#[test]
fn acks_say_what_their_clients_read() {
    let done = json!({"msgid": 200, "errno": 0});
    let refused = json!({"msgid": 200, "errno": 15, "errmsg": "no such user"});
    let add = json!({"msgid": 7, "id": 7, "friendid": 4});
    let create = json!({"msgid": 8, "id": 7, "groupname": "rust", "groupdesc": ""});
    let join = json!({"msgid": 9, "id": 7, "groupid": 3});
    let created = json!({"msgid": 200, "errno": 0, "groupid": 30});
    for (name, verb, request, reply, ack) in [
        ("f", Verb::AddFriend, &add, &done, json!({"msgid": 8, "errno": 0, "friendid": 4, "flag": true})),
        (
            "f",
            Verb::AddFriend,
            &add,
            &refused,
            json!({"msgid": 8, "errno": 15, "errmsg": "no such user", "friendid": 4, "flag": false}),
        ),
        (
            "g",
            Verb::CreateGroup,
            &create,
            &created,
            json!({"msgid": 9, "errno": 0, "groupid": 30, "groupname": "rust"}),
        ),
        ("g", Verb::JoinGroup, &join, &done, json!({"msgid": 11, "errno": 0, "uid": 7, "groupid": 3})),
        ("zero", Verb::Logout, &json!({"msgid": 3, "id": 7}), &done, json!({"msgid": 12, "errid": 0})),
        ("framed", Verb::Chat, &chat(), &done, json!({"msgid": 6, "errno": 0})),
        ("framed", Verb::AddFriend, &add, &done, json!({"msgid": 8, "errno": 0})),
        ("framed", Verb::CreateGroup, &create, &created, json!({"msgid": 10, "errno": 0, "groupid": 30})),
        ("framed", Verb::JoinGroup, &join, &done, json!({"msgid": 12, "errno": 0})),
        ("framed", Verb::Logout, &json!({"msgid": 3, "id": 7}), &done, json!({"msgid": 16, "errno": 0})),
    ] {
        assert_eq!(acked(name, verb, request, reply.clone()), Some(ack), "{name}: {verb:?}");
    }
    let register = json!({"msgid": 4, "name": "zhang", "password": "x"});
    assert_eq!(
        acked("framed", Verb::Register, &register, json!({"msgid": 5, "errno": 0, "error": 0, "id": 9})),
        Some(json!({"msgid": 4, "errno": 0, "error": 0, "id": 9, "name": "zhang"}))
    );
    // The ack of an update is the lists.
    let mut reply = Vec::new();
    let (friends, groups) = lists();
    reply::lists(&mut reply, None, &friends, &groups);
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    let ack = acked("zero", Verb::Update, &json!({"msgid": 206, "id": 7}), reply.clone()).unwrap();
    assert_eq!(
        (&ack["msgid"], &ack["errid"], &ack["id"], &ack["name"]),
        (&10.into(), &0.into(), &7.into(), &"zhang".into())
    );
    assert_eq!((&ack["friends"], &ack["groups"]), (&reply["friends"], &reply["groups"]));
    // Who has none of these is told nothing of them.
    for name in ["b", "c", "d", "e", "canon-999", "canon-userid", "canon-to", "canon-msgId", "canon-data"] {
        assert_eq!(acked(name, Verb::AddFriend, &add, done.clone()), None, "{name}");
    }
}

#[test]
fn keys_of_requests_are_read_as_canons() {
    let group = |key: &str| json!({"id": 7, "groupid": 3, key: "x"});
    for (name, verb, theirs, expected) in [
        ("b-userid", Verb::CreateGroup, json!({"userid": 7, "groupname": "a"}), json!({"id": 7, "groupname": "a"})),
        ("b-userid", Verb::JoinGroup, json!({"userid": 7, "groupid": 3}), json!({"id": 7, "groupid": 3})),
        ("b-userid", Verb::GroupChat, json!({"userid": 7, "groupid": 3, "msg": "x"}), group("msg")),
        ("b-singular", Verb::CreateGroup, json!({"userid": 7, "groupname": "a"}), json!({"id": 7, "groupname": "a"})),
        ("b-singular", Verb::JoinGroup, json!({"userid": 7, "groupid": 3}), json!({"id": 7, "groupid": 3})),
        ("b-singular", Verb::Chat, json!({"id": 7, "to": 2, "msg": "x"}), json!({"id": 7, "toid": 2, "msg": "x"})),
        ("b-objects", Verb::Chat, json!({"id": 7, "friendid": 2, "msg": "x"}), json!({"id": 7, "toid": 2, "msg": "x"})),
        ("e", Verb::CreateGroup, json!({"userid": 7, "groupname": "a"}), json!({"id": 7, "groupname": "a"})),
        ("e", Verb::JoinGroup, json!({"userid": 7, "groupid": 3}), json!({"id": 7, "groupid": 3})),
        ("e", Verb::GroupChat, json!({"userid": 7, "groupid": 3, "msg": "x"}), group("msg")),
        ("g", Verb::Chat, json!({"id": 7, "to": 2, "msg": "x"}), json!({"id": 7, "toid": 2, "msg": "x"})),
        ("zero", Verb::Chat, json!({"id": 7, "to": 2, "msg": "x"}), json!({"id": 7, "toid": 2, "msg": "x"})),
        ("zero", Verb::AddFriend, json!({"id": 7, "friend": 2}), json!({"id": 7, "friendid": 2})),
        (
            "zero",
            Verb::GroupChat,
            json!({"id": 7, "groupid": 3, "groupname": "a", "msg": "x", "name": ""}),
            json!({"id": 7, "groupid": 3, "groupname": "a", "msg": "x", "name": ""}),
        ),
        (
            "framed",
            Verb::Chat,
            json!({"id": 7, "from": "zhang", "to": 2, "msg": "x"}),
            json!({"id": 7, "name": "zhang", "toid": 2, "msg": "x"}),
        ),
        (
            "framed",
            Verb::CreateGroup,
            json!({"id": 7, "name": "a", "desc": "b"}),
            json!({"id": 7, "groupname": "a", "groupdesc": "b"}),
        ),
        ("framed", Verb::JoinGroup, json!({"userid": 7, "groupid": 3}), json!({"id": 7, "groupid": 3})),
        ("canon-userid", Verb::Login, json!({"userid": 7, "password": "x"}), json!({"id": 7, "password": "x"})),
        ("canon-userid", Verb::AddFriend, json!({"userid": 7, "friendid": 2}), json!({"id": 7, "friendid": 2})),
        (
            "canon-userid",
            Verb::Chat,
            json!({"fromid": 7, "toid": 2, "msg": "x"}),
            json!({"id": 7, "toid": 2, "msg": "x"}),
        ),
        ("canon-userid", Verb::GroupChat, json!({"fromid": 7, "groupid": 3, "msg": "x"}), group("msg")),
        ("canon-to", Verb::Chat, json!({"id": 7, "to": 2, "msg": "x"}), json!({"id": 7, "toid": 2, "msg": "x"})),
        ("canon-msgId", Verb::Chat, json!({"id": 7, "to": 2, "msg": "x"}), json!({"id": 7, "toid": 2, "msg": "x"})),
        ("canon-msgId", Verb::AddFriend, json!({"id": 7, "friendId": 2}), json!({"id": 7, "friendid": 2})),
    ] {
        let (mut theirs, mut expected) = (theirs, expected);
        let key = if name == "canon-msgId" { "msgId" } else { "msgid" };
        theirs[key] = dialect(name).number(verb).into();
        expected["msgid"] = verb.msgid().into();
        assert_eq!(canon(&speaker(name), &theirs), Some((verb, expected)), "{name}");
    }
}

#[test]
fn keys_of_chats_are_those_that_the_recipient_reads() {
    for (name, renamed) in [
        ("canon", &[][..]),
        ("b", &[]),
        ("b-singular", &[("toid", "to")]),
        ("b-objects", &[("toid", "friendid")]),
        ("g", &[("toid", "to")]),
        ("zero", &[("toid", "to")]),
        ("framed", &[("toid", "to"), ("name", "from")]),
        ("canon-userid", &[("id", "fromid")]),
        ("canon-to", &[("toid", "to")]),
        ("canon-msgId", &[("msgid", "msgId"), ("toid", "to")]),
    ] {
        let mut expected = chat();
        expected["msgid"] = dialect(name).number(Verb::Chat).into();
        assert_eq!(pushed(name, &chat()), with_keys(&expected, renamed), "{name}");
    }
    for (name, renamed) in [
        ("canon", &[][..]),
        ("b-userid", &[("id", "userid")]),
        ("e", &[("id", "userid")]),
        ("framed", &[("name", "from")]),
        ("canon-userid", &[("id", "fromid")]),
        ("canon-msgId", &[("msgid", "msgId")]),
    ] {
        let mut expected = group_chat();
        expected["msgid"] = dialect(name).number(Verb::GroupChat).into();
        assert_eq!(pushed(name, &group_chat()), with_keys(&expected, renamed), "{name}");
    }
}

fn with_keys(object: &Value, renamed: &[(&str, &str)]) -> Value {
    let theirs =
        |key: &str| renamed.iter().find(|(canon, _)| *canon == key).map_or(key, |(_, theirs)| theirs).to_owned();
    object.as_object().unwrap().iter().map(|(key, value)| (theirs(key), value.clone())).collect()
}

#[test]
fn keys_of_a_login_ack_are_those_that_the_client_reads() {
    type Renamed = &'static [(&'static str, &'static str)];
    let (top, friend, group, member): (Renamed, Renamed, Renamed, Renamed) = (&[], &[], &[], &[]);
    for (name, top, friend, group, member) in [
        ("canon", top, friend, group, member),
        ("b", top, friend, group, member),
        ("b-offlineMsg", &[("offlinemsg", "offlineMsg")], friend, group, member),
        ("b-userid", top, friend, &[("id", "groupid")], &[("id", "userid")]),
        (
            "b-singular",
            &[("friends", "friend"), ("groups", "group"), ("offlinemsg", "offlinemessage")],
            friend,
            &[("users", "user")],
            member,
        ),
        ("c-userid", &[("errno", "error"), ("id", "userid"), ("name", "username")], friend, group, member),
        ("e", top, &[("state", "status")], &[("users", "groupusers")], &[("state", "status")]),
        (
            "g",
            &[("offlinemsg", "offlineMsg")],
            friend,
            &[("id", "gid"), ("groupname", "gname"), ("groupdesc", "gdesc"), ("users", "gusers")],
            &[("id", "uid"), ("name", "uname")],
        ),
        ("zero", &[("errno", "errid")], friend, group, member),
        ("framed", top, friend, &[("groupname", "name"), ("groupdesc", "desc"), ("users", "members")], member),
        (
            "canon-userid",
            &[("id", "userid")],
            &[("id", "userid")],
            &[("id", "groupid"), ("users", "groupusers")],
            &[("id", "userid"), ("name", "username")],
        ),
        ("canon-to", &[("offlinemsg", "offlinemessage")], friend, group, member),
        ("canon-msgId", &[("msgid", "msgId")], friend, group, member),
    ] {
        let called = |renamed: Renamed, key: &'static str| {
            renamed.iter().find(|(canon, _)| *canon == key).map_or(key, |(_, theirs)| theirs)
        };
        let keys = |object: &Value| -> Vec<String> {
            let mut keys: Vec<String> = object.as_object().unwrap().keys().cloned().collect();
            keys.sort_unstable();
            keys
        };
        let expected = |renamed: Renamed, keys: &[&'static str]| {
            let mut keys: Vec<String> = keys.iter().map(|key| called(renamed, key).to_owned()).collect();
            keys.sort_unstable();
            keys
        };
        let reply = logged_in(name);
        let head = ["msgid", "errno", "id", "name", "state", "offlinemsg", "friends", "groups"];
        assert_eq!(keys(&reply), expected(top, &head), "{name}");
        let is_friend = element(&reply[called(top, "friends")], false);
        assert_eq!(keys(&is_friend), expected(friend, &["id", "name", "state"]), "{name}");
        let is_group = element(&reply[called(top, "groups")], false);
        assert_eq!(keys(&is_group), expected(group, &["id", "groupname", "groupdesc", "users"]), "{name}");
        let is_member = element(&is_group[called(group, "users")], false);
        assert_eq!(keys(&is_member), expected(member, &["id", "name", "state", "role"]), "{name}");
    }
}

#[test]
fn keys_of_a_register_ack_and_of_a_refusal_are_those_that_the_client_reads() {
    let registered = json!({"msgid": 5, "errno": 0, "error": 0, "id": 9});
    let refused = json!({"msgid": 2, "errno": 1, "errmsg": "no"});
    for (name, ack, refusal) in [
        ("b", json!({"msgid": 4, "errno": 0, "error": 0, "id": 9}), json!({"msgid": 2, "errno": 1, "errmsg": "no"})),
        (
            "c-userid",
            json!({"msgid": 4, "errno": 0, "error": 0, "id": 9}),
            json!({"msgid": 5, "error": 1, "errmsg": "no"}),
        ),
        ("zero", json!({"msgid": 3, "errid": 0, "error": 0, "id": 9}), json!({"msgid": 1, "errid": 1, "errmsg": "no"})),
        ("canon-userid", json!({"msgid": 5, "errno": 0, "error": 0, "userid": 9}), refused.clone()),
        ("canon-to", registered.clone(), json!({"msgid": 2, "errno": 1, "errormsg": "no"})),
        (
            "canon-msgId",
            json!({"msgId": 5, "errno": 0, "error": 0, "id": 9}),
            json!({"msgId": 2, "errno": 1, "errmsg": "no"}),
        ),
        // It has `data` of nothing that is refused.
        ("canon-data", registered.clone(), refused.clone()),
    ] {
        assert_eq!(told(&mut speaker(name), &registered), Some(ack), "{name}");
        assert_eq!(told(&mut speaker(name), &refused), Some(refusal), "{name}");
    }
}

#[test]
fn lists_are_strings_but_where_the_client_reads_objects() {
    let reply = logged_in("b-objects");
    assert!(reply["friends"][0].is_string() && reply["offlinemsg"][0].is_string());
    let group = element(&reply["groups"], true);
    assert_eq!(element(&group["users"], true)["id"], 8);

    let (data, canon) = (logged_in("canon-data"), logged_in("canon"));
    for key in canon.as_object().unwrap().keys() {
        assert_eq!(data[key], canon[key], "{key}");
    }
    let data = &data["data"];
    assert_eq!((&data["id"], &data["name"], &data["state"]), (&7.into(), &"zhang".into(), &"online".into()));
    assert_eq!(data.as_object().unwrap().len(), 5, "{data}");
    assert_eq!(element(&data["friends"], true)["id"], 4);
    assert_eq!(element(&element(&data["groups"], true)["users"], true)["id"], 8);
}

#[test]
fn readers_lengths_and_reads_are_as_measured() {
    for dialect in list() {
        let (is_zero, name) = (dialect.name() == "zero", dialect.name());
        assert_eq!(dialect.largest_reply(), if is_zero { 4095 } else { 1023 }, "{name}");
        let length = match name {
            "framed" => Length::Replies,
            "canon-length" => Length::Both,
            _ => Length::Nowhere,
        };
        assert_eq!(dialect.length(), length, "{name}");
        assert_eq!(dialect.is_spaced(), matches!(name, "b-objects" | "canon-data"), "{name}");
    }
    let mut nothing = Vec::new();
    speaker("framed").write_reply(br#"{"msgid":201,"errno":11}"#, None, &mut nothing);
    assert_eq!(nothing, b"", "no length stands before nothing");
}

// What can be told without asking

fn hear(hearing: &mut Hearing, request: &Value, speaks: Option<&Dialect>) -> Option<Option<Arc<Dialect>>> {
    let text = request.to_string();
    hearing.hear(&Request::parse(text.as_bytes()).unwrap(), speaks)
}

/// What a client is taken for after these requests.
fn taken_for(requests: &[Value]) -> Option<Arc<Dialect>> {
    let (mut hearing, mut speaks) = (Hearing::default(), None);
    for request in requests {
        if let Some(told) = hear(&mut hearing, request, speaks.as_deref()) {
            speaks = told;
        }
    }
    speaks
}

fn name_after(requests: &[Value]) -> String {
    taken_for(requests).map_or("canon".to_owned(), |dialect| dialect.name().to_owned())
}

/// A request with what its kind needs, at another number.
fn at(number: i64, verb: Verb) -> Value {
    let mut request = match verb {
        Verb::Login => json!({"id": 7, "password": "x"}),
        Verb::Register => json!({"name": "zhang", "password": "x"}),
        Verb::Logout | Verb::Update => json!({"id": 7}),
        Verb::Chat => json!({"id": 7, "toid": 2, "msg": "x"}),
        Verb::AddFriend => json!({"id": 7, "friendid": 2}),
        Verb::CreateGroup => json!({"id": 7, "groupname": "a", "groupdesc": "b"}),
        Verb::JoinGroup => json!({"id": 7, "groupid": 3}),
        Verb::GroupChat => json!({"id": 7, "groupid": 3, "msg": "x"}),
    };
    request["msgid"] = number.into();
    request
}

#[test]
fn the_family_is_told_by_one_request() {
    for (number, verb, name) in [
        (3, Verb::Register, "b"),
        (4, Verb::Register, "canon"),
        (1000, Verb::Login, "canon-999"),
        (1003, Verb::Register, "canon-999"),
        (0, Verb::Login, "zero"),
        (2, Verb::Register, "zero"),
        (6, Verb::AddFriend, "b"),
        (7, Verb::AddFriend, "canon"),
        (7, Verb::CreateGroup, "b"),
        (8, Verb::CreateGroup, "canon"),
        (8, Verb::JoinGroup, "b"),
        (9, Verb::JoinGroup, "canon"),
        (5, Verb::Chat, "b"),
        (6, Verb::Chat, "canon"),
        (9, Verb::GroupChat, "b"),
        (10, Verb::GroupChat, "canon"),
        (10, Verb::JoinGroup, "f"),
        (11, Verb::GroupChat, "f"),
        (12, Verb::GroupChat, "g"),
        (10, Verb::Logout, "b"),
        (4, Verb::Logout, "d"),
        (5, Verb::Logout, "g"),
        // A login alone tells nothing.
        (1, Verb::Login, "canon"),
    ] {
        assert_eq!(name_after(&[at(number, verb)]), name, "{number} {verb:?}");
        assert_eq!(name_after(&[at(1, Verb::Login), at(number, verb)]), name, "{number} {verb:?} after a login");
    }
    // JOIN 10 is f or g; what comes next tells which.
    assert_eq!(name_after(&[at(10, Verb::JoinGroup), at(12, Verb::GroupChat)]), "g");
    assert_eq!(name_after(&[at(10, Verb::JoinGroup), at(11, Verb::GroupChat)]), "f");
    assert_eq!(name_after(&[at(3, Verb::Register), at(10, Verb::JoinGroup)]), "g");
    assert_eq!(name_after(&[at(3, Verb::Register), at(4, Verb::Logout)]), "d");
    // Their own keys.
    assert_eq!(name_after(&[json!({"msgId": 1, "id": 7, "password": "x"})]), "canon-msgId");
    assert_eq!(name_after(&[json!({"msgId": 6, "id": 7, "to": 2, "msg": "x"})]), "canon-msgId");
    assert_eq!(name_after(&[json!({"msgid": 1, "userid": 7, "password": "x"})]), "canon-userid");
    assert_eq!(name_after(&[json!({"msgid": 4, "id": 7, "friend": 2})]), "zero");
}

#[test]
fn a_shape_tells_what_is_meant_where_the_number_is_not_canons() {
    for (number, request, verb) in [
        (20, json!({"id": 7, "password": "x"}), Verb::Login),
        (20, json!({"id": 7, "pwd": "x", "name": "a"}), Verb::Login),
        (20, json!({"name": "a", "password": "x"}), Verb::Register),
        (20, json!({"id": 7, "groupid": 3, "msg": "x"}), Verb::GroupChat),
        (20, json!({"id": 7, "toid": 3, "msg": "x"}), Verb::Chat),
        (20, json!({"id": 7, "to": 3, "msg": "x"}), Verb::Chat),
        (20, json!({"id": 7, "friendid": 3, "msg": "x"}), Verb::Chat),
        (20, json!({"id": 7, "groupname": "a"}), Verb::CreateGroup),
        (20, json!({"id": 7, "groupid": 3}), Verb::JoinGroup),
        (20, json!({"id": 7, "friendid": 3}), Verb::AddFriend),
        (2, json!({"id": 7}), Verb::Logout),
        (15, json!({"id": 7}), Verb::Logout),
        // At a number that canon has for something else.
        (6, json!({"id": 7, "friendid": 3, "msg": "x"}), Verb::Chat),
        (10, json!({"id": 7, "friendid": 3}), Verb::AddFriend),
    ] {
        let mut request = request;
        request["msgid"] = number.into();
        let own = taken_for(std::slice::from_ref(&request)).unwrap_or_else(|| panic!("canon: {request}"));
        assert_eq!(own.number(verb), Some(number), "{request}");
        let (heard, canon) = canon(&Speaker::new(Arc::clone(&own)), &request).unwrap();
        assert_eq!((heard, &canon["msgid"]), (verb, &verb.msgid().into()), "{request}");
        assert!(verb != Verb::Chat || canon["toid"] == 3 || canon["to"] == 3, "{canon}");
        // Canon's ack of it has the number behind it, and the same request tells nothing new.
        if matches!(verb, Verb::Login | Verb::Register) {
            assert_eq!(own.ack(verb).unwrap().number, number + 1);
        }
        let mut hearing = Hearing::default();
        let told = hear(&mut hearing, &request, None).unwrap();
        assert_eq!(hear(&mut hearing, &request, told.as_deref()), None, "{request}");
        // Canon's other requests are not taken away from it.
        let other = if verb == Verb::CreateGroup { at(9, Verb::JoinGroup) } else { at(8, Verb::CreateGroup) };
        assert_eq!(hear(&mut hearing, &other, told.as_deref()), None, "{request}");
        // It is remembered with the account, under a memo that is read as it was written.
        let memo = own.memo();
        let remembered = Hearing::default().remember(&memo).unwrap_or_else(|| panic!("{memo}"));
        assert_eq!(remembered, own, "{memo}");
    }
}

#[test]
fn a_bare_id_is_a_logout_nowhere_else_and_a_login_by_name_is_none() {
    for number in (0..100).chain([99, 998, 999, 1000, 1001, 1003]) {
        if ![2, 4, 5, 10, 11, 15].contains(&number) {
            assert_eq!(name_after(&[at(number, Verb::Logout)]), "canon", "{number}");
        }
    }
    for number in [2, 4, 5, 10, 11, 15, 1002] {
        assert_ne!(name_after(&[at(number, Verb::Logout)]), "canon", "{number}");
        // With anything beside it, it is not bare.
        assert_eq!(name_after(&[json!({"msgid": number, "id": 7, "content": "x"})]), "canon", "{number}");
    }
    for number in [0, 1, 1000] {
        assert_eq!(name_after(&[at(number, Verb::Register)]), "canon", "{number}");
        assert_eq!(name_after(&[json!({"msgid": number, "username": "a", "password": "x"})]), "canon");
    }
    // This server's own numbers are never learned.
    for number in [200, 206, 999] {
        assert_eq!(name_after(&[at(number, Verb::Chat)]), "canon", "{number}");
    }
}

#[test]
fn some_are_never_guessed() {
    let never = ["c", "c-userid", "e", "framed", "b-userid", "b-singular", "b-objects", "canon-data", "canon-to"];
    let never = never.into_iter().chain(["b-offlineMsg", "canon-length"]);
    let theirs = |dialect: &Dialect| -> Vec<Value> {
        let requests = Verb::ALL.into_iter().filter_map(|verb| Some((verb, dialect.number(verb)?)));
        requests
            .map(|(verb, number)| {
                let mut out = Vec::new();
                let members = at(number, verb).to_string();
                let members = super::members::Members::parse(members.as_bytes()).unwrap();
                let mut writer = super::members::Writer::new(&mut out);
                let renaming = dialect.renaming(Kind::Request(verb));
                renaming.write(To::Theirs, &members, &mut writer, |_, text, out| {
                    out.extend_from_slice(text.as_bytes());
                    true
                });
                writer.end();
                serde_json::from_slice(&out).unwrap()
            })
            .collect()
    };
    for name in never {
        let requests = theirs(&dialect(name));
        for at in 0..requests.len() {
            let taken = name_after(&[&requests[at..], &requests[..at]].concat());
            assert_ne!(taken, name);
            assert_eq!(Hearing::default().remember(name), None);
        }
    }
    // The others are known by what they send, whatever comes first.
    for name in ["b", "canon-999", "zero", "canon-msgId", "canon-userid", "d", "f", "g"] {
        let requests = theirs(&dialect(name));
        for at in 0..requests.len() {
            assert_eq!(name_after(&[&requests[at..], &requests[..at]].concat()), name, "from {at}");
        }
    }
}

#[test]
fn what_is_remembered_counts_until_a_request_speaks_against_it() {
    for name in ["b", "d", "f", "g"] {
        let mut hearing = Hearing::default();
        assert_eq!(hear(&mut hearing, &at(1, Verb::Login), None), None);
        let speaks = hearing.remember(name).unwrap();
        assert_eq!(speaks.name(), name);
        let join = speaks.number(Verb::JoinGroup).unwrap();
        assert_eq!(hear(&mut hearing, &at(join, Verb::JoinGroup), Some(&speaks)), None, "{name}");
        assert_eq!(hear(&mut hearing, &at(7, Verb::AddFriend), Some(&speaks)), (name == "b").then_some(None), "{name}");
    }
    let logged_in = |requests: &[Value]| {
        let mut hearing = Hearing::default();
        requests.iter().for_each(|request| assert_eq!(hear(&mut hearing, request, None), None));
        hearing
    };
    let mut told = logged_in(&[at(1, Verb::Login), at(8, Verb::CreateGroup)]);
    assert_eq!(told.remember("b"), None, "the client has told itself that it is not");
    let mut logged_in = logged_in(&[at(1, Verb::Login)]);
    for memo in ["canon", "canon-999", "zero", "c", "", "own", "own canon 1", "own nobody 1 3 4 6 7 8 9 10 -"] {
        assert_eq!(logged_in.remember(memo), None, "{memo}");
    }
    // A database may hold what nobody has written there.
    for number in [i64::MAX, i64::MIN, -1, 100_000] {
        assert_eq!(logged_in.remember(&format!("own canon {number} 3 4 6 7 8 9 10 -")), None);
        assert_eq!(logged_in.remember(&format!("own canon 1 3 {number} 6 7 8 9 10 -")), None);
    }
    // The login was canon's, so this is no client with another login.
    assert_eq!(logged_in.remember("own canon 20 3 4 6 7 8 9 10 -"), None);
    let own = logged_in.remember("own g 1 5 3 21 7 8 10 12 -").unwrap();
    assert_eq!((own.number(Verb::Chat), own.ack(Verb::CreateGroup).unwrap().number), (Some(21), 9));
    assert_eq!(own.memo(), "own g 1 5 3 21 7 8 10 12 -");
}

#[test]
fn who_is_settled_is_never_guessed() {
    let mut hearing = Hearing::settled();
    assert!(hearing.is_settled() && !Hearing::default().is_settled());
    assert_eq!(hear(&mut hearing, &at(3, Verb::Register), None), None);
    assert_eq!(hearing.remember("b"), None);
}

// The rules of translating

#[test]
fn keys_are_replaced_and_never_doubled() {
    // Both spellings are there, in either order: what stands under the new one already goes.
    for request in [r#"{"msgid":5,"to":2,"toid":9,"msg":"x"}"#, r#"{"msgid":5,"toid":9,"to":2,"msg":"x"}"#] {
        let Heard::Theirs(_, canon) = speaker("b-singular").hear(request.as_bytes(), None) else { panic!("{request}") };
        assert_eq!(String::from_utf8(canon).unwrap(), r#"{"msgid":6,"toid":2,"msg":"x"}"#);
    }
    let mut chat = chat();
    chat["to"] = 99.into();
    let pushed = pushed("g", &chat);
    assert_eq!((&pushed["to"], pushed.as_object().unwrap().len()), (&7.into(), 6));
    // No dialect but the one that has it twice on purpose needs much more room than canon.
    let canon = login("canon", None).len();
    for dialect in list().filter(|dialect| dialect.name() != "canon-data") {
        let length = login(dialect.name(), None).len();
        assert!(length < canon + 64, "{}: {length} for {canon}", dialect.name());
    }
}

/// The time that this thread has had of a processor: others may need it as well.
fn busy() -> Duration {
    rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).try_into().unwrap()
}

#[test]
fn the_time_to_rename_grows_with_the_members_and_not_with_their_square() {
    let of = |count: usize| -> Duration {
        let mut members: Vec<String> = (0..count).map(|at| format!("\"key{at}\":{at}")).collect();
        members.push("\"msgid\":5,\"to\":2,\"toid\":3,\"msg\":\"x\"".to_owned());
        let object = format!("{{{}}}", members.join(",")).into_bytes();
        let speaker = speaker("b-singular");
        let once = || {
            let begin = busy();
            let Heard::Theirs(_, canon) = speaker.hear(&object, Some(ME)) else { panic!("not heard") };
            let mut theirs = Vec::new();
            speaker.write_chat(&canon, &mut theirs);
            assert!(canon.len() < object.len() + 16 && theirs.len() < object.len() + 16);
            busy() - begin
        };
        (0..5).map(|_| once()).min().unwrap()
    };
    let (few, many) = (of(1_000), of(10_000));
    assert!(many < few * 40, "{few:?} for 1000 members, {many:?} for 10000");
}

#[test]
fn json_inside_strings_has_no_blanks() {
    let message =
        "{ \"msgid\" : 6 , \"toid\":\t7,\r\n \"msg\" : \" a \\\" b \\\\\" , \"more\": [ 1 , { \"a b\" : \" \" } ] }";
    for dialect in list() {
        let login =
            LoginReply { seq: None, id: ME, name: "a b", friends: &[], groups: &[], offline: &[message], limit: None };
        let reply = read(dialect, &dialect.login_ack(&login).0);
        let (_, list) = reply.as_object().unwrap().iter().find(|(key, _)| key.starts_with("offline")).unwrap();
        let text = list[0].as_str().unwrap();
        let msgid = dialect.msgid_key();
        let number = dialect.number(Verb::Chat).unwrap();
        let to = dialect.renaming(Kind::Chat(Verb::Chat)).theirs("toid").to_owned();
        let expected = format!(r#"{{"{msgid}":{number},"{to}":7,"msg":" a \" b \\","more":[1,{{"a b":" "}}]}}"#);
        assert_eq!(text, expected, "{}", dialect.name());
    }
}

#[test]
fn who_speaks_another_dialect_gets_no_201() {
    for dialect in list().filter(|dialect| !dialect.is_canon()) {
        let mut speaker = Speaker::new(Arc::new(dialect.clone()));
        for (errno, request) in [(Errno::UnknownMsgid, None), (Errno::NotYou, Some(6)), (Errno::Unfollowable, None)] {
            let mut reply = Vec::new();
            reply::refused(&mut reply, request, None, &Refusal::from(errno));
            assert_eq!(told(&mut speaker, &serde_json::from_slice(&reply).unwrap()), None, "{}", dialect.name());
        }
        // Who uses `seq` knows this server: its replies are as canon has them.
        let mut reply = Vec::new();
        reply::refused(&mut reply, Some(6), Some(5), &Errno::NotYou.into());
        let reply = serde_json::from_slice(&reply).unwrap();
        assert_eq!(told(&mut speaker, &reply), Some(reply), "{}", dialect.name());
    }
}

#[test]
fn numbers_and_keys_are_translated_inside_offline_messages_too() {
    for dialect in list() {
        let name = dialect.name();
        let reply = logged_in(name);
        let (_, list) = reply.as_object().unwrap().iter().find(|(key, _)| key.starts_with("offline")).unwrap();
        let texts: Vec<Value> =
            list.as_array().unwrap().iter().map(|text| text.as_str().unwrap().parse().unwrap()).collect();
        let unframed = |chat: &Value| pushed(name, chat);
        assert_eq!(texts, [unframed(&chat()), unframed(&group_chat())], "{name}");
    }
}

#[test]
fn an_id_that_is_missing_or_not_above_0_is_the_sessions_own_after_the_login() {
    let speaker = speaker("canon-data");
    for id in [None, Some(json!(0)), Some(json!(-1)), Some(json!("0")), Some(json!(0.0)), Some(json!("-5"))] {
        for verb in Verb::ALL.into_iter().filter(|verb| *verb != Verb::Update) {
            let mut request = at(verb.msgid(), verb);
            request.as_object_mut().unwrap().remove("id");
            request.as_object_mut().unwrap().extend(id.clone().map(|id| ("id".to_owned(), id)));
            let (_, canon) = canon(&speaker, &request).unwrap();
            if matches!(verb, Verb::Login | Verb::Register) {
                assert_eq!(canon.get("id"), id.as_ref(), "{verb:?} is no request after a login");
            } else {
                assert_eq!(canon["id"], ME, "{request}");
            }
            let Heard::Theirs(_, before) = speaker.hear(request.to_string().as_bytes(), None) else { panic!() };
            let before: Value = serde_json::from_slice(&before).unwrap();
            assert_eq!(before.get("id"), id.as_ref(), "nobody is logged in");
        }
    }
    // Another's id is left to be refused.
    assert_eq!(canon(&speaker, &json!({"msgid": 3, "id": 8})).unwrap().1["id"], 8);
    assert_eq!(canon(&speaker, &json!({"msgid": 3, "id": "8"})).unwrap().1["id"], "8");
    assert_eq!(canon(&speaker, &json!({"msgid": 3, "id": "x"})).unwrap().1["id"], "x");
}

#[test]
fn bs_group_chat_joins_nobody_and_its_logout_logs_out() {
    assert_eq!(name_after(&[at(1, Verb::Login), at(9, Verb::GroupChat)]), "b");
    assert_eq!(canon(&speaker("b"), &at(9, Verb::GroupChat)).unwrap().0, Verb::GroupChat);
    assert_eq!(name_after(&[at(1, Verb::Login), at(10, Verb::Logout)]), "b");
    assert_eq!(canon(&speaker("b"), &at(10, Verb::Logout)).unwrap().0, Verb::Logout);
}

#[test]
fn a_number_may_be_written_in_any_way_that_canon_takes() {
    for number in ["5", "5.0", "50e-1", "\"5\"", "\"5.0\"", "\"\\u0035\""] {
        let request = format!("{{\"msgid\":{number},\"toid\":2,\"msg\":\"x\"}}");
        assert_eq!(Request::parse(request.as_bytes()).unwrap().msgid(), Ok(5), "{number}");
        let heard = speaker("b").hear(request.as_bytes(), None);
        assert_eq!(heard, Heard::Theirs(Verb::Chat, br#"{"msgid":6,"toid":2,"msg":"x"}"#.to_vec()), "{number}");
    }
    // This server's own requests are the same in all dialects; others are unknown.
    assert_eq!(speaker("b").hear(br#"{"msgid":202}"#, None), Heard::Canon);
    assert_eq!(speaker("b").hear(br#"{"msgid":99,"id":7}"#, None), Heard::Unknown);
    assert_eq!((Heard::Canon.msgid(Some(202)), Heard::Unknown.msgid(Some(99))), (Some(202), None));
}

#[test]
fn a_login_reply_keeps_the_limit_in_the_dialects_own_bytes() {
    for dialect in list() {
        let name = dialect.name();
        let (canon, whole) = (login("canon", None).len(), login(name, None).len());
        for limit in 0..whole + 2 {
            let reply = login(name, Some(limit));
            let is_bare = read(dialect, &reply).as_object().unwrap().keys().all(|key| !key.starts_with("offline"));
            assert!(reply.len() <= limit || is_bare, "{name}: {} of {limit}", reply.len());
            assert!(limit < whole.max(canon) || reply.len() == whole, "{name}: {} of {limit}", reply.len());
        }
    }
}

#[test]
fn what_was_asked_is_forgotten_with_its_reply_and_never_grows_without_bound() {
    let mut speaker = speaker("framed");
    for _ in 0..5000 {
        let seq = speaker.ask(Verb::Chat, chat().to_string().as_bytes()).unwrap();
        assert_eq!(told(&mut speaker, &json!({"msgid": 200, "seq": seq, "errno": 0})).unwrap()["msgid"], 6);
        assert_eq!(speaker.asked.len(), 0);
    }
    for _ in 0..5000 {
        speaker.ask(Verb::Chat, chat().to_string().as_bytes()).unwrap();
    }
    assert!(speaker.asked.len() <= 1024, "{}", speaker.asked.len());
    // A dialect without acks of its own asks for nothing; neither does one whose acks are canon's.
    for verb in [Verb::Chat, Verb::Login, Verb::Register] {
        assert_eq!(super::tests::speaker("b").ask(verb, at(0, verb).to_string().as_bytes()), None);
    }
}

// Files

fn problem(text: &str) -> String {
    Dialect::from_toml(text, "mine").map(drop).expect_err(text).to_string()
}

#[test]
fn a_file_is_read_as_the_profiles_are() {
    let text = r#"
about = "mine"
like = "g"
numbers = { chat = 20 }
objects = ["friend"]
reader = 2048
[keys.chat]
toid = "target"
[acks.add_friend]
number = 30
says = { who = "friendid", ok = "done" }
"#;
    let mine = Dialect::from_toml(text, "mine").unwrap();
    assert_eq!((mine.name(), mine.about(), mine.largest_reply()), ("mine", "mine", 2047));
    assert_eq!((mine.number(Verb::Chat), mine.number(Verb::JoinGroup)), (Some(20), Some(10)));
    assert_eq!(mine.renaming(Kind::Chat(Verb::Chat)).theirs("toid"), "target");
    assert_eq!(mine.ack(Verb::AddFriend).unwrap().says.len(), 2);
    assert_eq!(mine.ack(Verb::CreateGroup), dialect("g").ack(Verb::CreateGroup));
    assert!(mine.objects.friends && !mine.objects.groups);
    assert_eq!(Dialect::from_toml("name = \"other\"", "mine").unwrap().name(), "other");
    assert_eq!(Dialect::from_toml("", "canon").unwrap(), Dialect::canon());
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    for (text, line, word) in [
        ("about = \"a\"\nnumber = 1\n", 2, "number"),
        ("\n[numbers]\nping = 1\n", 3, "ping"),
        ("\n[keys.somewhere]\nid = \"x\"\n", 2, "somewhere"),
        ("\n[keys]\nlogin = { id = 1 }\n", 3, "string"),
        ("numbers = { login = \"1\" }", 1, "i64"),
        ("reader = 1024\nspaced = 1", 2, "boolean"),
        ("objects = [\"friend\",\n\"user\"]", 2, "user"),
        ("length = \"none\"", 1, "none"),
        ("[acks.chat]\nnumber = 1\nsays = { a = \"b\" }", 3, "b"),
        ("[acks.chat]\nsays = {}", 1, "number"),
        ("about = \"a\"\n\nlike = \"nobody\"", 3, "nobody"),
        ("reader = 127", 1, "128"),
        ("about = \"a\"\nreader = 99999999999", 2, "128"),
        ("[numbers]\nlogin = 20\nchat = 20\n", 2, "20 is the number of two requests"),
        ("like = \"b\"\n[numbers]\nlogin = 20\nchat = 6\n", 4, "Chat and AddFriend"),
        ("\n[keys.chat]\nid = \"x\"\nmsg = \"x\"", 3, "both called x"),
        ("[keys.requests]\nid = \"x\"\n[keys.chat]\nmsg = \"x\"", 2, "both called x"),
        // Requests have another name for the one, but not the chats that come.
        ("[keys.all]\nid = \"x\"\n[keys.requests]\nid = \"y\"\n[keys.chat]\ntoid = \"x\"", 2, "both called x"),
        ("like = \"g\"\n[keys.group]\ngroupname = \"gid\"", 3, "both called gid"),
        ("[keys.login]\nmsgid = \"type\"", 2, "msgid"),
        ("[acks.login]\nnumber = 2\nsays = { uid = \"id\" }", 3, "Login"),
        ("[acks]\n\nregister = { number = 2, says = { uid = \"id\" } }", 3, "Register"),
        ("[acks.chat]\nnumber = 2\nsays = { group = \"groups\" }", 3, "Chat"),
        ("about = \"a\"\nnumbers = {", 2, ""),
        ("about = \"a\"\nabout = \"b\"", 2, ""),
    ] {
        let problem = problem(text);
        assert!(problem.starts_with(&format!("line {line}: ")) && problem.contains(word), "{text}\n{problem}");
        assert!(!problem.contains('\n'), "{problem}");
    }
    assert!(problem("like = \"nobody\"").contains("canon-msgId"), "the known ones are listed");
    let twice = super::file::read_all("[a]\nlike = \"b\"\n[b]\nabout = \"\"\n").unwrap_err().to_string();
    assert_eq!(twice, "line 2: b does not stand before a");
}

#[test]
fn one_key_may_have_another_name_in_each_object() {
    let text = "[keys]\nrequests = { id = \"x\" }\nchat = { id = \"y\", toid = \"x\" }\ngroup = { id = \"x\" }\n";
    let mine = Speaker::new(Arc::new(Dialect::from_toml(text, "mine").unwrap()));
    let chat = json!({"msgid": 6, "y": 7, "x": 2, "msg": "a"});
    assert_eq!(canon(&mine, &chat), Some((Verb::Chat, json!({"msgid": 6, "id": 7, "toid": 2, "msg": "a"}))));
}

#[test]
fn what_is_renamed_at_the_narrower_place_counts_whichever_was_written_first() {
    let text = "like = \"canon-userid\"\nkeys = { requests = { id = \"x\" } }";
    let mine = Speaker::new(Arc::new(Dialect::from_toml(text, "mine").unwrap()));
    let chat = json!({"msgid": 6, "fromid": 7, "toid": 2, "msg": "a"});
    assert_eq!(canon(&mine, &chat), Some((Verb::Chat, json!({"msgid": 6, "id": 7, "toid": 2, "msg": "a"}))));
    let join = json!({"msgid": 9, "x": 7, "groupid": 3});
    assert_eq!(canon(&mine, &join), Some((Verb::JoinGroup, json!({"msgid": 9, "id": 7, "groupid": 3}))));
}

#[test]
fn two_keys_may_change_places() {
    let text = "keys = { chat = { id = \"toid\", toid = \"id\" } }";
    let mine = Speaker::new(Arc::new(Dialect::from_toml(text, "mine").unwrap()));
    let chat = json!({"msgid": 6, "toid": 7, "id": 2, "msg": "a"});
    assert_eq!(canon(&mine, &chat), Some((Verb::Chat, json!({"msgid": 6, "id": 7, "toid": 2, "msg": "a"}))));
}

#[test]
fn the_profiles_are_read() {
    let all = super::file::read_all(include_str!("profiles.toml")).unwrap();
    assert!(all.iter().eq(list()));
    assert_eq!(Dialect { about: "the original".into(), ..all[0].clone() }, Dialect::canon());
}
