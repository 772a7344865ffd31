//! Input that kills the C++ server, or that it may not be sent, is refused, and no other client notices:
//! `docs/PROTOCOL.md#what-cannot-be-followed`, `docs/PROTOCOL.md#11-what-is-new-beside-the-c-reference`.

use serde_json::{Value, json};

use crate::support::{Client, Config, eventually};

in_every_configuration! {
    hello_is_error_10,
    a_msgid_that_is_a_word_is_error_12,
    no_msgid_is_error_12,
    two_objects_in_one_segment_are_both_answered,
    half_an_object_and_the_streams_end_is_error_10,
    an_array_is_error_10,
    bytes_that_are_not_utf8_are_error_10,
    a_quote_in_a_name_is_a_name,
    an_id_past_64_bits_is_error_12,
    an_unknown_msgid_is_error_11,
    what_cannot_be_followed_is_error_10_also_in_fields_that_nobody_reads,
    what_came_before_the_error_is_still_done,
    what_came_before_the_error_is_still_answered,
    the_reply_to_an_error_survives_what_the_client_still_sends,
    a_session_that_ends_by_an_error_frees_its_account,
    a_client_that_cannot_be_followed_disturbs_nobody,
}

/// Error 10, once, and an orderly end.
#[track_caller]
fn error_10_then_close(world: &crate::support::World, input: &[u8]) {
    let mut client = world.client();
    client.send_raw(input);
    let error = client.recv();
    let shown = String::from_utf8_lossy(input);
    assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(10)), "{shown} got {error}");
    assert!(error["errmsg"].is_string() && error.get("request").is_none(), "{shown} got {error}");
    client.expect_end();
}

fn hello_is_error_10(config: &'static Config) {
    let world = config.shared();
    error_10_then_close(&world, b"hello");
    error_10_then_close(&world, b"\0\r\n hello\0");
    world.assert_alive();
}

fn a_msgid_that_is_a_word_is_error_12(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for msgid in [json!("login"), json!(""), json!(null), json!([1]), json!({"a": 1}), json!(1.5), json!(true)] {
        client.post(&json!({"msgid": msgid, "id": 1}));
        let error = client.recv();
        assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(12)), "{msgid} got {error}");
        assert!(error["errmsg"].as_str().unwrap().contains("msgid") && error.get("request").is_none(), "{error}");
    }
    world.assert_alive();
}

fn no_msgid_is_error_12(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for object in ["{}", r#"{"id":1}"#, r#"{"MSGID":1}"#] {
        client.send(object);
        let error = client.recv();
        assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(12)), "{object} got {error}");
    }
    assert_eq!(client.request(json!({"id": 1}))["errno"], 12);
    world.assert_alive();
}

fn two_objects_in_one_segment_are_both_answered(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    client.send_raw(r#"{"msgid":202,"seq":1}{"msgid":202,"seq":2}"#);
    assert_eq!((client.recv()["seq"].clone(), client.recv()["seq"].clone()), (json!(1), json!(2)));
}

fn half_an_object_and_the_streams_end_is_error_10(config: &'static Config) {
    let world = config.shared();
    for half in [r#"{"msgid":1,"id":"#, "{", r#"{"a":"}"#, r#"{"msgid":202"#] {
        let mut client = world.client();
        client.send_raw(half);
        client.finish();
        assert_eq!(client.recv()["errno"], 10, "{half}");
        client.expect_end();
    }
    world.assert_alive();
}

fn an_array_is_error_10(config: &'static Config) {
    let world = config.shared();
    for input in ["[1,2]", "1", "\"text\"", "null", "}", "]"] {
        error_10_then_close(&world, input.as_bytes());
    }
    world.assert_alive();
}

fn bytes_that_are_not_utf8_are_error_10(config: &'static Config) {
    let world = config.shared();
    for bytes in [&b"\xff"[..], b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"] {
        error_10_then_close(&world, &[b"{\"msgid\":202,\"x\":\"", bytes, b"\"}"].concat());
        error_10_then_close(&world, &[b"{\"msgid\":202,\"", bytes, b"\":1}"].concat());
    }
    world.assert_alive();
}

fn a_quote_in_a_name_is_a_name(config: &'static Config) {
    let world = config.shared();
    for odd in ["o'neil", "say \"hi\"", "a\\b", "'; DROP TABLE User; --", "%s%n", "\u{1F600}", "{\"id\":1}"] {
        let account = world.client().register(&world.name(odd), "it's \"secret\"");
        assert_eq!(world.login(&account).greeting["name"], account.name);
    }
    world.assert_alive();
}

fn an_id_past_64_bits_is_error_12(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for id in ["9223372036854775808", "99999999999999999999999", "-9223372036854775809", "1e30"] {
        client.send(format!(r#"{{"msgid":1,"id":{id},"password":"x"}}"#));
        let error = client.recv();
        assert_eq!((&error["msgid"], &error["errno"]), (&json!(2), &json!(12)), "{id} got {error}");
    }
    // An integer, but no user's.
    for id in ["9223372036854775807", "-1", "0", "4294967297"] {
        client.send(format!(r#"{{"msgid":1,"id":{id},"password":"x"}}"#));
        assert_eq!(client.recv()["errno"], 1, "{id}");
    }
    world.assert_alive();
}

fn an_unknown_msgid_is_error_11(config: &'static Config) {
    let world = config.shared();
    for mut client in [world.client(), world.online("someone")] {
        for msgid in [0, -1, 11, 99, 199, 204, 299, i64::MAX, i64::MIN] {
            client.post(&json!({"msgid": msgid}));
            let error = client.recv();
            assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(11)), "{msgid} got {error}");
            assert_eq!(error["request"], msgid);
            assert_eq!(client.refused(json!({"msgid": msgid})), 11);
        }
    }
    world.assert_alive();
}

fn what_cannot_be_followed_is_error_10_also_in_fields_that_nobody_reads(config: &'static Config) {
    let world = config.shared();
    for value in [
        r#""\ud800""#,
        r#""\udc00\ud800""#,
        "1e400",
        "-1e400",
        "01",
        "1.",
        "+1",
        "tru",
        "NaN",
        "'a'",
        "\"\u{1}\"",
        "[1,]",
        "[1}",
        "",
    ] {
        error_10_then_close(&world, format!(r#"{{"msgid":202,"x":{value}}}"#).as_bytes());
    }
    for object in [r#"{"msgid":202,}"#, r#"{"msgid" 202}"#, "{msgid:202}", r#"{"msgid":202]"#, r#"{"\ud800":1}"#] {
        error_10_then_close(&world, object.as_bytes());
    }
}

fn what_came_before_the_error_is_still_done(config: &'static Config) {
    let world = config.shared();
    let mut recipient = world.online_on(1, "recipient");
    let mut client = world.online("sender");
    let chat = client.chat_to(recipient.id(), "last words");
    client.send_raw(format!("{chat}{chat}hello"));
    assert_eq!(client.recv()["errno"], 10);
    client.expect_end();
    assert_eq!(recipient.texts(2), ["last words", "last words"]);
}

fn what_came_before_the_error_is_still_answered(config: &'static Config) {
    let world = config.shared();
    // Wherever they are.
    let recipients: Vec<Client> = (0..4).map(|node| world.online_on(node, "recipient")).collect();
    let mut client = world.online("sender");
    let mut chats = String::new();
    for (seq, recipient) in recipients.iter().enumerate() {
        let mut chat = client.chat_to(recipient.id(), "last words");
        chat["seq"] = (1000 + seq).into();
        chats += &chat.to_string();
    }
    client.send_raw(chats + "hello");
    let mut seqs: Vec<Value> = (0..=recipients.len()).map(|_| client.recv()["seq"].clone()).collect();
    client.expect_end();
    seqs.sort_by_key(|seq| seq.as_i64());
    assert_eq!(json!(seqs), json!([null, 1000, 1001, 1002, 1003]));
}

fn the_reply_to_an_error_survives_what_the_client_still_sends(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    client.send_raw([b"hello".as_slice(), &[b'x'; 1 << 20]].concat());
    assert_eq!(client.recv()["errno"], 10);
    client.expect_end();
}

fn a_session_that_ends_by_an_error_frees_its_account(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("someone");
    client.send_raw("hello");
    assert_eq!(client.recv()["errno"], 10);
    client.expect_end();
    let account = client.me().clone();
    eventually("the account to be free", || world.client_on(1).try_login(&account)["errno"] == 0);
}

fn a_client_that_cannot_be_followed_disturbs_nobody(config: &'static Config) {
    let world = config.shared();
    let (mut one, mut other) = (world.online("one"), world.online_on(1, "other"));
    for round in 0..100 {
        let mut vandal = world.client();
        vandal.send_raw(["hello", "[1,2]", "{]", "{\"a\":}"][round % 4]);
        assert!(one.chat(other.id(), &round.to_string()));
        assert_eq!(other.texts(1), [round.to_string()]);
    }
}
