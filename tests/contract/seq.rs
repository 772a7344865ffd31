//! `seq`, and exactly one reply for each: `docs/PROTOCOL.md#seq-and-the-ack-200`.

use serde_json::{Value, json};

use crate::support::{Config, login, text_of};

in_every_configuration! {
    every_request_with_seq_has_exactly_one_reply_with_the_same_seq,
    login_register_and_ping_echo_seq_in_their_own_replies,
    a_seq_may_be_any_64_bit_integer,
    a_number_that_is_integral_is_an_integer_in_every_request,
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

fn a_number_that_is_integral_is_an_integer_in_every_request(config: &'static Config) {
    let world = config.shared();
    let (account, mut friend) = (world.account("someone"), world.online_on(1, "friend"));
    let group = friend.create_group(&world.name("group"));
    let (id, to, name) = (account.id, friend.id(), &account.name);
    let mut client = world.client();
    let chat = format!(r#"{{"msgid":6.0,"id":{id}e0,"name":"{name}","toid":{to}.0,"msg":"m","time":"t","seq":4e1}}"#);
    let group_chat = format!(
        r#"{{"msgid":1e1,"id":"{id}.0","name":"{name}","groupid":{group}0e-1,"msg":"g","time":"t","seq":6e1}}"#
    );
    for (request, seq) in [
        (format!(r#"{{"msgid":1.0,"id":{id}.0,"password":"secret","seq":10.0}}"#), 10_i64),
        (format!(r#"{{"msgid":7.00,"id":{id}0e-1,"friendid":{to}E+0,"seq":2e1}}"#), 20),
        (format!(r#"{{"msgid":"9.0","id":{id},"groupid":"{group}e0","seq":"3e1"}}"#), 30),
        (chat.clone(), 40),
        (format!(r#"{{"msgid":6,"id":{id},"to":{to}.0,"msg":"to","seq":9007199254740993.0}}"#), 9_007_199_254_740_993),
        (group_chat.clone(), 60),
        (r#"{"msgid":206.0,"seq":-0}"#.to_owned(), 0_i64),
        (r#"{"msgid":2020e-1,"seq":-7.0}"#.to_owned(), -7),
        (format!(r#"{{"msgid":3.0,"id":{id}.000,"seq":1e18}}"#), 1_000_000_000_000_000_000),
    ] {
        client.send(&request);
        let reply = client.recv();
        assert_eq!(reply["seq"], json!(seq), "{request} got {reply}");
        assert!(reply["msgid"] == 203 || reply["errno"] == 0, "{request} got {reply}");
    }
    // What is forwarded are the bytes that came.
    assert_eq!(friend.push_text(), chat);
    assert_eq!(text_of(&friend.push()), "to");
    assert_eq!(friend.push_text(), group_chat);
    // What is not integral is none, however near it is.
    for (number, errno) in
        [("1.5", 12), ("1e-400", 12), ("1e300", 12), ("1.00000000000000000000001", 12), ("1e400", 10)]
    {
        let mut client = world.client();
        client.send(format!(r#"{{"msgid":1,"id":{number},"password":"x"}}"#));
        assert_eq!(client.recv()["errno"], errno, "{number}");
    }
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
