//! ONE_CHAT_MSG, and what is forwarded: `docs/PROTOCOL.md#one_chat_msg`, `docs/PROTOCOL.md#4-pushes`.

use serde_json::{Value, json};

use crate::support::{Config, parse};

in_every_configuration! {
    a_chat_is_forwarded_with_the_bytes_that_came,
    a_chat_without_seq_has_no_reply,
    the_recipient_may_be_called_to_and_toid_wins,
    a_name_that_is_not_the_accounts_is_replaced,
    an_absent_name_is_added,
    an_absent_time_is_added_as_local_time,
    a_chat_under_another_id_is_error_14_and_nothing_is_sent,
    a_chat_to_nobody_is_error_15,
    delivered_says_whether_the_recipient_was_online,
    a_chat_to_a_user_who_logged_out_is_stored_and_one_who_came_back_gets_it_live,
    long_and_odd_texts_arrive_as_they_were_sent,
}

fn a_chat_is_forwarded_with_the_bytes_that_came(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let (from, name, to) = (sender.id(), sender.me().name.clone(), recipient.id());
    let objects = [
        format!(r#"{{"msgid":6,"id":{from},"name":"{name}","toid":{to},"msg":"hi","time":"t"}}"#),
        format!(
            r#"{{ "time" : "" ,"msg":"\u4f60\u597d \ud83d\ude00 \/","toid":"{to}","name":"{name}","id":"{from}","msgid":"6" }}"#
        ),
        format!(
            r#"{{"msgid":6,"id":{from},"name":"{name}","to":{to},"msg":"","time":"t","x":{{"deep":[1,2.50,1e3,null]}}}}"#
        ),
        format!(r#"{{"msgid":6,"id":{from},"name":"{name}","toid":{to},"msg":"你好 😀","time":"t","seq":77}}"#),
        format!(
            "{{\t\"msgid\":6,\r\n\"id\":{from},\"name\":\"{name}\",\"toid\":{to},\"msg\":\"m\",\"time\":\"t\" ,\"y\":1,\"y\":2}}"
        ),
        format!(
            r#"{{"msgid":6,"id":{from},"n\u0061me":"{name}","toid":{to},"msg":"m","time":"t","big":123456789012345678901234567890}}"#
        ),
    ];
    for object in objects {
        sender.send(&object);
        assert_eq!(recipient.push_text(), object);
    }
}

fn a_chat_without_seq_has_no_reply(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let absent = world.account("absent");
    sender.post(&sender.chat_to(recipient.id(), "online"));
    sender.post(&sender.chat_to(absent.id, "offline"));
    assert_eq!(recipient.texts(1), ["online"]);
    // Acks of later requests are behind whatever the chats might have brought.
    sender.chat(absent.id, "with seq");
    assert_eq!(sender.pushed(), [] as [Value; 0]);
}

fn the_recipient_may_be_called_to_and_toid_wins(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut one) = (world.online("sender"), world.online_on(1, "one"));
    let mut other = world.online("other");
    sender.must(json!({"msgid": 6, "id": sender.id(), "to": one.id(), "msg": "to"}));
    assert_eq!(one.push()["to"], one.id());
    sender.must(json!({"msgid": 6, "id": sender.id(), "to": one.id(), "toid": other.id(), "msg": "both"}));
    let chat = other.push();
    assert_eq!((&chat["to"], &chat["toid"]), (&json!(one.id()), &json!(other.id())));
    assert_eq!(one.pushed(), [] as [Value; 0]);
}

fn a_name_that_is_not_the_accounts_is_replaced(config: &'static Config) {
    let world = config.shared();
    let account = world.client().register(&world.name("quo\"te"), "p");
    let (mut sender, mut recipient) = (world.login(&account), world.online_on(1, "recipient"));
    for name in ["someone else", "", "\\\"\n", &account.name.to_uppercase()] {
        let mut chat = sender.chat_to(recipient.id(), "hi");
        let expected = chat.clone();
        chat["name"] = name.into();
        sender.post(&chat);
        assert_eq!(recipient.push(), expected);
    }
}

fn an_absent_name_is_added(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let expected = sender.chat_to(recipient.id(), "hi");
    let mut chat = expected.clone();
    chat.as_object_mut().unwrap().remove("name");
    sender.post(&chat);
    assert_eq!(recipient.push(), expected);
}

fn an_absent_time_is_added_as_local_time(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let mut chat = sender.chat_to(recipient.id(), "hi");
    chat.as_object_mut().unwrap().remove("time");
    let before = chrono::Local::now().naive_local();
    sender.post(&chat);
    let got = recipient.push();
    let after = chrono::Local::now().naive_local();
    let text = got["time"].as_str().expect("time");
    let time = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S").expect(text);
    let second = chrono::TimeDelta::seconds(1);
    assert!(text.len() == 19 && before - second <= time && time <= after, "{before} {text} {after}");
    chat["time"] = text.into();
    assert_eq!(got, chat, "nothing else changes");
}

fn a_chat_under_another_id_is_error_14_and_nothing_is_sent(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let mut chat = sender.chat_to(recipient.id(), "forged");
    chat["id"] = recipient.id().into();
    assert_eq!(sender.refused(chat), 14);
    assert!(sender.chat(recipient.id(), "honest"));
    assert_eq!(recipient.texts(1), ["honest"]);
}

fn a_chat_to_nobody_is_error_15(config: &'static Config) {
    let world = config.shared();
    let mut sender = world.online("sender");
    for nobody in [2_000_000_000_i64, 0, -1, 1 << 32, i64::MAX] {
        let mut chat = sender.chat_to(1, "hi");
        chat["toid"] = nobody.into();
        assert_eq!(sender.refused(chat), 15, "{nobody}");
    }
}

fn delivered_says_whether_the_recipient_was_online(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let absent = world.account("absent");
    let chat = sender.chat_to(recipient.id(), "hi");
    let ack = sender.request(chat);
    assert_eq!(ack, json!({"msgid": 200, "seq": ack["seq"], "errno": 0, "delivered": true}));
    assert_eq!(recipient.texts(1), ["hi"]);
    assert!(!sender.chat(absent.id, "hi"));
    assert_eq!(world.kept_for(absent.id), 1);
}

fn a_chat_to_a_user_who_logged_out_is_stored_and_one_who_came_back_gets_it_live(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let account = recipient.me().clone();
    for round in 0..20 {
        assert!(sender.chat(account.id, "live"), "round {round}");
        assert_eq!(recipient.texts(1), ["live"]);
        recipient.logout();
        assert!(!sender.chat(account.id, "stored"), "round {round}");
        assert_eq!(recipient.pushed(), [] as [Value; 0]);
        let greeting = recipient.login(&account);
        assert_eq!(recipient.texts(1), ["stored"]);
        assert_eq!(parse(greeting["offlinemsg"][0].as_str().unwrap())["msg"], "stored");
    }
}

fn long_and_odd_texts_arrive_as_they_were_sent(config: &'static Config) {
    let world = config.shared();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let texts = ["", " ", "\"", "\\", "}{", "\u{0}", "\r\n", "\u{FEFF}", "\u{10FFFF}", &"长".repeat(20_000)];
    for text in texts {
        sender.chat(recipient.id(), text);
        assert_eq!(recipient.texts(1), [text]);
    }
}
