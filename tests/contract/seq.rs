//! Section 3: `seq`, and exactly one reply for each.

use serde_json::{Value, json};

use crate::support::{Config, login};

in_every_configuration! {
    every_request_with_seq_has_exactly_one_reply_with_the_same_seq,
    login_register_and_ping_echo_seq_in_their_own_replies,
    a_seq_may_be_any_64_bit_integer,
    a_chats_seq_is_forwarded_and_no_reply_to_the_recipient,
    many_requests_in_flight_are_each_answered_once,
}

fn every_request_with_seq_has_exactly_one_reply_with_the_same_seq(config: &'static Config) {
    let world = config.shared();
    let (mut client, friend) = (world.online("client"), world.account("friend"));
    let account = client.me().clone();
    let group = world.online("creator").create_group(&world.name("group"));
    let id = account.id;
    let requests = [
        client.chat_to(friend.id, "hi"),
        client.chat_to(2_000_000_000, "hi"),
        json!({"msgid": 7, "id": id, "friendid": friend.id}),
        json!({"msgid": 7, "id": id, "friendid": friend.id}),
        json!({"msgid": 8, "id": id, "groupname": world.name("g"), "groupdesc": ""}),
        json!({"msgid": 8, "id": id, "groupname": "", "groupdesc": ""}),
        json!({"msgid": 9, "id": id, "groupid": group}),
        json!({"msgid": 9, "id": id, "groupid": 0}),
        json!({"msgid": 10, "id": id, "groupid": group, "msg": "hi"}),
        json!({"msgid": 10, "id": id, "groupid": 0, "msg": "hi"}),
        json!({"msgid": 206}),
        json!({"msgid": 500}),
        json!({"id": 1}),
        json!({"msgid": 3, "id": 0}),
        json!({"msgid": 3, "id": id}),
        json!({"msgid": 3, "id": id}),
    ];
    for request in requests {
        let reply = client.request(request.clone());
        assert_eq!(reply["msgid"], 200, "{request}");
        assert!(reply["errno"].is_i64() && reply.get("request").is_none(), "{request} got {reply}");
    }
    assert_eq!(client.pushed(), [] as [Value; 0]);
}

fn login_register_and_ping_echo_seq_in_their_own_replies(config: &'static Config) {
    let world = config.shared();
    let account = world.account("someone");
    let mut client = world.client();
    let mut wrong = login(&account);
    wrong["password"] = "wrong".into();
    for (request, msgid) in [
        (json!({"msgid": 202}), 203),
        (json!({"msgid": 4, "name": world.name("new"), "password": "p"}), 5),
        (json!({"msgid": 4, "name": account.name, "password": "p"}), 5),
        (json!({"msgid": 4}), 5),
        (wrong, 2),
        (json!({"msgid": 1}), 2),
        (login(&account), 2),
        (login(&account), 2),
    ] {
        assert_eq!(client.request(request.clone())["msgid"], msgid, "{request}");
    }
    assert_eq!(client.pushed(), [] as [Value; 0]);
}

fn a_seq_may_be_any_64_bit_integer(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("client");
    for seq in [0, -1, i64::MAX, i64::MIN, 1 << 53] {
        client.post(&json!({"msgid": 206, "seq": seq}));
        assert_eq!(client.reply(seq)["seq"], seq);
    }
    client.send(r#"{"msgid":206,"seq":9223372036854775808}"#);
    assert_eq!(client.recv()["errno"], 12);
}

fn a_chats_seq_is_forwarded_and_no_reply_to_the_recipient(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let chat = sender.chat_to(recipient.id(), "hi");
    let seq = sender.start(chat);
    assert_eq!(recipient.push()["seq"], seq);
    assert_eq!(sender.reply(seq)["delivered"], true);
    assert_eq!(recipient.pushed(), [] as [Value; 0]);
}

fn many_requests_in_flight_are_each_answered_once(config: &'static Config) {
    let world = config.shared();
    let (mut client, absent) = (world.online("client"), world.account("absent"));
    let mut recipient = world.online_on(1, "recipient");
    let mut waiting = Vec::new();
    for n in 0..100 {
        let text = n.to_string();
        let chats = [client.chat_to(recipient.id(), &text), client.chat_to(absent.id, &text)];
        for request in chats.into_iter().chain([json!({"msgid": 206}), json!({"msgid": 202})]) {
            waiting.push(client.start(request));
        }
    }
    for seq in waiting {
        let reply = client.reply(seq);
        assert!(reply["errno"] == 0 || reply["msgid"] == 203, "{reply}");
    }
    assert_eq!(client.pushed(), [] as [Value; 0]);
    let expected: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    assert_eq!(recipient.texts(100), expected);
    assert_eq!(world.login(&absent).texts(100), expected);
}
