//! Every errno, and in which reply it stands: `docs/PROTOCOL.md#the-error-201`, `docs/PROTOCOL.md#what-is-read`.

use serde_json::{Value, json};

use crate::support::{Client, Config, eventually};

in_every_configuration! {
    every_request_before_login_is_error_13,
    every_request_under_another_id_is_error_14,
    a_missing_field_is_error_12_and_named,
    a_field_of_the_wrong_type_is_error_12_and_named,
    an_empty_field_is_error_12_and_named,
    a_field_that_is_too_long_is_error_12_and_named,
    a_field_that_stands_twice_is_error_12_and_named,
    a_refused_request_without_seq_is_told_by_201,
    a_refused_login_register_and_ping_have_their_own_replies,
    max_connections_refuses_with_error_20_until_one_leaves,
    login_timeout_closes_who_does_not_log_in,
    idle_timeout_closes_who_says_nothing,
}

/// One valid request of each kind that needs a login, but for `seq`.
fn requests(client: &Client, friend: u32, group: u32) -> Vec<Value> {
    let id = client.id();
    vec![
        client.chat_to(friend, "hi"),
        json!({"msgid": 7, "id": id, "friendid": friend}),
        json!({"msgid": 8, "id": id, "groupname": format!("g{id}"), "groupdesc": ""}),
        json!({"msgid": 9, "id": id, "groupid": group}),
        client.group_chat_to(group, "hi"),
        json!({"msgid": 3, "id": id}),
    ]
}

fn with(mut request: Value, field: &str, value: Value) -> Value {
    request[field] = value;
    request
}

#[track_caller]
fn assert_error_12(reply: &Value, field: &str, request: &Value) {
    assert_eq!(reply["errno"], 12, "{request} got {reply}");
    let errmsg = reply["errmsg"].as_str().expect("errmsg");
    assert!(errmsg.contains(field), "{request} got {reply}, which does not name {field}");
}

fn every_request_before_login_is_error_13(config: &'static Config) {
    let world = config.shared();
    let mut creator = world.online("creator");
    let group = creator.create_group(&world.name("group"));
    let mut all = requests(&creator, creator.id(), group);
    all.push(json!({"msgid": 206}));
    for request in all {
        assert_eq!(world.client().refused(request.clone()), 13, "{request}");
        let mut client = world.client();
        client.post(&request);
        let error = client.recv();
        let expected = (&json!(201), &json!(13), &request["msgid"]);
        assert_eq!((&error["msgid"], &error["errno"], &error["request"]), expected);
    }
    creator.sync();
}

fn every_request_under_another_id_is_error_14(config: &'static Config) {
    let world = config.shared();
    let (mut client, other) = (world.online("client"), world.account("other"));
    let group = client.create_group(&world.name("group"));
    for request in requests(&client, other.id, group) {
        for id in [json!(other.id), json!(0), json!(-1), json!(i64::MAX), json!(other.id.to_string())] {
            assert_eq!(client.refused(with(request.clone(), "id", id)), 14, "{request}");
        }
    }
    assert_eq!(client.must(json!({"msgid": 206}))["friends"], Value::Null, "nothing was done, nobody logged out");
}

fn a_missing_field_is_error_12_and_named(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    let required: [(i64, &[&str]); 6] = [
        (6, &["id", "toid", "msg"]),
        (7, &["id", "friendid"]),
        (8, &["id", "groupname"]),
        (9, &["id", "groupid"]),
        (10, &["id", "groupid", "msg"]),
        (3, &["id"]),
    ];
    let requests = requests(&client, 1, 1);
    for (msgid, fields) in required {
        for field in fields {
            let mut request = requests.iter().find(|request| request["msgid"] == msgid).unwrap().clone();
            request.as_object_mut().unwrap().remove(*field);
            let reply = client.request(request.clone());
            assert_error_12(&reply, field, &request);
        }
    }
    for (request, field) in [
        (json!({"msgid": 1, "password": "p"}), "id"),
        (json!({"msgid": 1, "id": 1}), "password"),
        (json!({"msgid": 4, "password": "p"}), "name"),
        (json!({"msgid": 4, "name": "n"}), "password"),
    ] {
        let reply = world.client().request(request.clone());
        assert_error_12(&reply, field, &request);
    }
}

fn a_field_of_the_wrong_type_is_error_12_and_named(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    let integers = [("id", 6), ("toid", 6), ("friendid", 7), ("groupid", 9), ("groupid", 10), ("id", 3)];
    let requests = requests(&client, 1, 1);
    let of = |msgid: i64| requests.iter().find(|request| request["msgid"] == msgid).unwrap().clone();
    for (field, msgid) in integers {
        for value in [json!(1.5), json!("1.5"), json!("x"), json!(""), json!(true), json!(null), json!([1]), json!({})]
        {
            let request = with(of(msgid), field, value);
            let reply = client.request(request.clone());
            assert_error_12(&reply, field, &request);
        }
    }
    let texts = [
        ("msg", 6),
        ("name", 6),
        ("time", 6),
        ("msg", 10),
        ("name", 10),
        ("time", 10),
        ("groupname", 8),
        ("groupdesc", 8),
    ];
    for (field, msgid) in texts {
        for value in [json!(1), json!(true), json!(null), json!(["x"]), json!({"a": 1})] {
            let request = with(of(msgid), field, value);
            let reply = client.request(request.clone());
            assert_error_12(&reply, field, &request);
        }
    }
    for (field, msgid) in [("password", 1), ("password", 4), ("name", 4)] {
        let request = with(json!({"msgid": msgid, "id": 1, "name": "n", "password": "p"}), field, json!(5));
        let reply = world.client().request(request.clone());
        assert_error_12(&reply, field, &request);
    }
    // Without a seq that can be read, the refusal goes where those without one go.
    client.post(&with(of(6), "seq", json!("x")));
    let error = client.recv();
    assert_eq!((&error["msgid"], &error["request"]), (&json!(201), &json!(6)));
    assert_error_12(&error, "seq", &json!("seq"));
}

fn an_empty_field_is_error_12_and_named(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    for (request, field) in [
        (json!({"msgid": 4, "name": "", "password": "p"}), "name"),
        (json!({"msgid": 4, "name": "n", "password": ""}), "password"),
        (json!({"msgid": 8, "id": client.id(), "groupname": "", "groupdesc": ""}), "groupname"),
    ] {
        let reply = client.request(request.clone());
        assert_error_12(&reply, field, &request);
    }
}

fn a_field_that_is_too_long_is_error_12_and_named(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    for (request, field) in [
        (json!({"msgid": 4, "name": "名".repeat(51), "password": "p"}), "name"),
        (json!({"msgid": 4, "name": "n", "password": "密".repeat(43)}), "password"),
        (json!({"msgid": 1, "id": 1, "password": "p".repeat(129)}), "password"),
        (json!({"msgid": 8, "id": client.id(), "groupname": "g".repeat(51), "groupdesc": ""}), "groupname"),
        (json!({"msgid": 8, "id": client.id(), "groupname": "g", "groupdesc": "d".repeat(201)}), "groupdesc"),
    ] {
        let reply = client.request(request.clone());
        assert_error_12(&reply, field, &request);
    }
}

fn a_field_that_stands_twice_is_error_12_and_named(config: &'static Config) {
    let world = config.shared();
    let (mut client, mut friend) = (world.online("client"), world.online_on(1, "friend"));
    let (id, to) = (client.id(), friend.id());
    for (object, field) in [
        (format!(r#"{{"msgid":6,"id":{id},"id":{id},"toid":{to},"msg":"m","seq":9}}"#), "id"),
        (format!(r#"{{"msgid":6,"id":{id},"toid":{to},"to\u0069d":{to},"msg":"m","seq":9}}"#), "toid"),
        (format!(r#"{{"msgid":6,"id":{id},"toid":{to},"msg":"m","msg":"n","seq":9}}"#), "msg"),
        (format!(r#"{{"msgid":6,"id":{id},"toid":{to},"msg":"m","name":"a","name":"a","seq":9}}"#), "name"),
        (format!(r#"{{"msgid":6,"id":{id},"toid":{to},"msg":"m","time":"a","t\u0069me":"a","seq":9}}"#), "time"),
        (format!(r#"{{"msgid":6,"msgid":6,"id":{id},"toid":{to},"msg":"m","seq":9}}"#), "msgid"),
        (format!(r#"{{"msgid":6,"id":{id},"toid":{to},"msg":"m","seq":9,"seq":9}}"#), "seq"),
        (r#"{"msgid":4,"name":"x","password":"p","passw\u006frd":"p"}"#.to_owned(), "password"),
    ] {
        client.send(&object);
        assert_error_12(&client.recv(), field, &json!(object));
    }
    assert_eq!(friend.pushed(), [] as [Value; 0]);
}

fn a_refused_request_without_seq_is_told_by_201(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    let id = client.id();
    for (request, errno) in [
        (client.chat_to(2_000_000_000, "hi"), 15),
        (client.group_chat_to(2_000_000_000, "hi"), 16),
        (json!({"msgid": 7, "id": id, "friendid": 2_000_000_000}), 15),
        (json!({"msgid": 9, "id": id, "groupid": 2_000_000_000}), 16),
        (json!({"msgid": 9, "id": id}), 12),
        (json!({"msgid": 3, "id": id + 1}), 14),
        (json!({"msgid": 77}), 11),
    ] {
        client.post(&request);
        let error = client.recv();
        let expected = json!({"msgid": 201, "errno": errno, "errmsg": error["errmsg"], "request": request["msgid"]});
        assert_eq!(error, expected);
        assert!(error["errmsg"].is_string());
    }
}

fn a_refused_login_register_and_ping_have_their_own_replies(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for (object, msgid) in [(r#"{"msgid":1}"#, 2), (r#"{"msgid":4}"#, 5), (r#"{"msgid":202,"seq":"x"}"#, 203)] {
        client.send(object);
        let reply = client.recv();
        assert_eq!((&reply["msgid"], &reply["errno"]), (&json!(msgid), &json!(12)), "{object}");
    }
    let register = client.request(json!({"msgid": 4, "name": "", "password": "p"}));
    assert_eq!((&register["msgid"], &register["error"]), (&json!(5), &json!(12)), "error repeats errno");
}

fn max_connections_refuses_with_error_20_until_one_leaves(config: &'static Config) {
    let world = config.own(&["--max-connections", "4"]);
    let mut seated: Vec<Client> = (0..4).map(|_| world.client()).collect();
    seated.iter_mut().for_each(Client::sync);
    let mut late = world.client();
    let error = late.recv();
    assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(20)));
    assert!(error["retry_after"].as_u64().is_some_and(|seconds| seconds > 0), "{error}");
    late.expect_end();
    seated.iter_mut().for_each(Client::sync);
    seated.pop();
    eventually("a free place", || {
        let mut client = world.client();
        // Refused ones may be answered by an RST as well, since they have sent something.
        client.post(&json!({"msgid": 202}));
        client.next_text().is_ok_and(|text| text.contains("203"))
    });
}

fn login_timeout_closes_who_does_not_log_in(config: &'static Config) {
    let world = config.own(&["--login-timeout", "1s"]);
    let (mut guest, mut member) = (world.client(), world.online("member"));
    // Talking is not logging in.
    guest.sync();
    let error = guest.recv();
    assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(20)));
    guest.expect_end();
    member.sync();
}

fn idle_timeout_closes_who_says_nothing(config: &'static Config) {
    let world = config.own(&["--idle-timeout", "2s"]);
    let (mut idle, mut active) = (world.online("idle"), world.online("active"));
    let account = idle.me().clone();
    idle.set_patience(std::time::Duration::from_millis(100));
    let mut byte = [0];
    eventually("the idle connection's end", || {
        active.sync();
        matches!(std::io::Read::read(&mut idle.stream, &mut byte), Ok(0))
    });
    active.sync();
    eventually("the account to be free", || world.client().try_login(&account)["errno"] == 0);
}
