//! Where one message ends, how replies are ended, and what is too much: `docs/PROTOCOL.md#1-connection-and-framing`.

use chat_server::wire::Framing;
use serde_json::json;

use crate::support::{Account, Client, Config, Rng, eventually, login, text_of};

in_every_configuration! {
    an_object_may_be_cut_at_any_byte,
    objects_of_one_segment_are_all_answered_in_order,
    any_run_of_separators_is_skipped,
    a_byte_order_mark_before_the_first_object_is_skipped,
    a_byte_order_mark_anywhere_else_is_error_10,
    five_hundred_objects_with_mixed_separators_cut_anywhere_arrive_in_order,
    replies_end_as_the_clients_objects_do,
    replies_follow_a_client_that_changes_its_terminator,
    until_the_terminator_is_known_there_is_none,
    pushes_end_as_the_recipients_objects_do,
    input_behind_a_login_waits_for_it,
    an_object_of_8_kib_is_read_before_login_and_one_byte_more_is_error_19,
    an_object_of_64_kib_is_read_after_login_and_one_byte_more_is_error_19,
    each_limit_on_messages_has_its_flag,
    after_logout_the_limit_is_that_before_login,
    nesting_of_32_is_read_and_33_is_error_10,
    a_request_and_fin_in_one_segment_is_answered_before_the_end,
    a_login_and_fin_in_one_segment_is_answered_before_the_end,
    a_stream_that_ends_between_objects_is_closed_without_a_word,
}

const PING: &str = r#"{"msgid":202}"#;
const PONG: &str = r#"{"msgid":203}"#;

/// A PING of exactly `size` bytes.
fn ping_of(size: usize) -> String {
    let empty = r#"{"msgid":202,"pad":""}"#.len();
    format!(r#"{{"msgid":202,"pad":"{}"}}"#, "x".repeat(size - empty))
}

fn an_object_may_be_cut_at_any_byte(config: &'static Config) {
    let world = config.shared();
    let (mut client, mut witness) = (world.client(), world.client());
    let object = format!("{}\n", json!({"msgid": 202, "seq": 7, "x": "}\"{ \\ \u{1F600}"}));
    for cut in 1..object.len() {
        client.send_raw(&object.as_bytes()[..cut]);
        // A round trip in between: the first part has most likely been read by then.
        witness.sync();
        client.send_raw(&object.as_bytes()[cut..]);
        assert_eq!(client.recv(), json!({"msgid": 203, "seq": 7}), "cut at {cut}");
    }
    for byte in object.bytes() {
        client.send_raw([byte]);
    }
    assert_eq!(client.recv()["seq"], 7);
}

fn objects_of_one_segment_are_all_answered_in_order(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    let segment: String = (0..300).map(|seq| json!({"msgid": 202, "seq": seq}).to_string()).collect();
    client.send_raw(segment);
    for seq in 0..300 {
        assert_eq!(client.recv()["seq"], seq);
    }
}

fn any_run_of_separators_is_skipped(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for run in ["", "\0", "\n", "\r\n", " ", "\t", "\0\0\0\n\r \t\0", "\n\n\n\n"] {
        client.send_raw(format!("{run}{PING}{run}{PING}"));
        assert_eq!(client.recv(), json!({"msgid": 203}), "behind {run:?}");
        assert_eq!(client.recv(), json!({"msgid": 203}), "behind {run:?}");
    }
}

fn a_byte_order_mark_before_the_first_object_is_skipped(config: &'static Config) {
    let world = config.shared();
    let mut witness = world.client();
    for between in ["", "\r\n", " \0\t"] {
        let stream = format!("\u{feff}{between}{PING}\r\n");
        for cut in 0..=4 + between.len() {
            let mut client = world.client();
            client.send_raw(&stream.as_bytes()[..cut]);
            // A round trip in between: the first part has most likely been read by then.
            witness.sync();
            client.send_raw(&stream.as_bytes()[cut..]);
            client.expect_bytes(format!("{PONG}\r\n"));
            client.send_raw(format!("{PING}\r\n"));
            client.expect_bytes(format!("{PONG}\r\n"));
        }
    }
    // Alone it is nothing yet.
    let mut client = world.client();
    client.send_raw("\u{feff}");
    client.finish();
    client.expect_end();
}

fn a_byte_order_mark_anywhere_else_is_error_10(config: &'static Config) {
    let world = config.shared();
    for (stream, pongs) in [
        (format!("{PING}\u{feff}{PING}"), 1),
        (format!("\u{feff}{PING}\n\u{feff}{PING}"), 1),
        (format!("\u{feff}\u{feff}{PING}"), 0),
    ] {
        let mut client = world.client();
        client.send_raw(&stream);
        for _ in 0..pongs {
            assert_eq!(client.recv(), json!({"msgid": 203}), "{stream}");
        }
        assert_eq!(client.recv()["errno"], 10, "{stream}");
        client.expect_end();
    }
    // Cut off, or another character that begins alike.
    for bytes in [&b"\xef"[..], b"\xef\xbb", b"\xef\xbb{", b"\xef\xbb\xbe{}", b"\xfe\xff\0{\0}"] {
        let mut client = world.client();
        client.send_raw(bytes);
        client.finish();
        assert_eq!(client.recv()["errno"], 10, "{bytes:?}");
        client.expect_end();
    }
}

fn five_hundred_objects_with_mixed_separators_cut_anywhere_arrive_in_order(config: &'static Config) {
    let world = config.shared();
    let mut rng = Rng::new();
    let (mut sender, mut recipient) = (world.online("sender"), world.online_on(1, "recipient"));
    let separators = ["", "\0", "\n", "\r\n", " ", "\t", "\0\n\0", "\r\n\r\n "];
    let mut stream = String::new();
    for n in 0..500 {
        stream += &sender.chat_to(recipient.id(), &format!("{n} {}", "}{\"\\é".repeat(rng.below(20)))).to_string();
        stream += separators[rng.below(separators.len())];
    }
    let mut rest = stream.as_bytes();
    while !rest.is_empty() {
        let cut = rest.len().min(1 + rng.below(700));
        sender.send_raw(&rest[..cut]);
        rest = &rest[cut..];
    }
    for n in 0..500 {
        let text = text_of(&recipient.push());
        assert!(text.starts_with(&format!("{n} ")), "{text} instead of {n}");
    }
}

fn replies_end_as_the_clients_objects_do(config: &'static Config) {
    let world = config.shared();
    for framing in [Framing::Nul, Framing::Lf, Framing::CrLf] {
        let mut client = world.client().framed(framing);
        for _ in 0..3 {
            client.send(PING);
            client.expect_bytes([PONG.as_bytes(), framing.terminator()].concat());
        }
    }
}

fn replies_follow_a_client_that_changes_its_terminator(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    for framing in [Framing::Lf, Framing::Nul, Framing::CrLf, Framing::Lf, Framing::Nul] {
        client.framing = framing;
        client.send(PING);
        client.expect_bytes([PONG.as_bytes(), framing.terminator()].concat());
    }
    // The first of these is followed by nothing but the next object.
    client.send_raw(format!("{PING}{PING}"));
    client.expect_bytes(format!("{PONG}{PONG}"));
}

fn until_the_terminator_is_known_there_is_none(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client().framed(Framing::Bare);
    for _ in 0..3 {
        client.send(PING);
        client.expect_bytes(PONG);
    }
}

fn pushes_end_as_the_recipients_objects_do(config: &'static Config) {
    let world = config.shared();
    let mut sender = world.online("sender");
    for framing in [Framing::Nul, Framing::Lf, Framing::CrLf] {
        let account = world.account("recipient");
        let mut recipient = world.client_on(1).framed(framing);
        recipient.login(&account);
        recipient.expect_bytes(framing.terminator());
        let chat = sender.chat_to(account.id, "hi").to_string();
        sender.send(&chat);
        recipient.expect_bytes([chat.as_bytes(), framing.terminator()].concat());
    }
}

fn input_behind_a_login_waits_for_it(config: &'static Config) {
    let world = config.shared();
    let (first, second) = (world.account("first"), world.account("second"));
    let mut recipient = world.online_on(1, "recipient");
    let mut client = world.client();
    let login = |account: &Account, seq: i64| {
        let mut request = login(account);
        request["seq"] = seq.into();
        request.to_string()
    };
    let chat = |id: u32, seq: i64| {
        json!({"msgid": 6, "id": id, "toid": recipient.id(), "msg": format!("{seq}"), "seq": seq}).to_string()
    };
    let segment = [
        login(&first, 1),
        chat(first.id, 2),
        json!({"msgid": 206, "seq": 3}).to_string(),
        json!({"msgid": 3, "id": first.id, "seq": 4}).to_string(),
        login(&second, 5),
        chat(second.id, 6),
    ];
    client.send_raw(segment.concat());
    for seq in 1..=6 {
        assert_eq!(client.reply(seq)["errno"], 0, "request {seq}");
    }
    assert_eq!(recipient.texts(2), ["2", "6"]);
}

fn an_object_of_8_kib_is_read_before_login_and_one_byte_more_is_error_19(config: &'static Config) {
    let world = config.shared();
    let mut client = world.client();
    client.send(ping_of(8192));
    assert_eq!(client.recv(), json!({"msgid": 203}));
    // The object's end need not have come.
    client.send_raw(&ping_of(9000)[..8193]);
    let error = client.recv();
    assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(19)));
    client.expect_end();
}

fn an_object_of_64_kib_is_read_after_login_and_one_byte_more_is_error_19(config: &'static Config) {
    let world = config.shared();
    let mut recipient = world.online_on(1, "recipient");
    let mut client = world.online("sender");
    let empty = client.chat_to(recipient.id(), "").to_string().len();
    let chat = client.chat_to(recipient.id(), &"x".repeat(65536 - empty)).to_string();
    client.send(&chat);
    assert_eq!(recipient.push_text(), chat);
    client.send_raw(&ping_of(70000)[..65537]);
    assert_eq!(client.recv()["errno"], 19);
    client.expect_end();
}

fn each_limit_on_messages_has_its_flag(config: &'static Config) {
    let world = config.own(&["--max-message", "100000", "--max-message-before-login", "300"]);
    let expect = |client: &mut Client, most: usize| {
        client.send(ping_of(most));
        assert_eq!(client.recv(), json!({"msgid": 203}));
        client.send(ping_of(most + 1));
        assert_eq!(client.recv()["errno"], 19);
        client.expect_end();
    };
    expect(&mut world.client(), 300);
    expect(&mut world.online("someone"), 100_000);
}

fn after_logout_the_limit_is_that_before_login(config: &'static Config) {
    let world = config.shared();
    let mut client = world.online("someone");
    client.send(ping_of(60_000));
    assert_eq!(client.recv(), json!({"msgid": 203}));
    client.logout();
    client.send(ping_of(8193));
    assert_eq!(client.recv()["errno"], 19);
    client.expect_end();
}

fn nesting_of_32_is_read_and_33_is_error_10(config: &'static Config) {
    let world = config.shared();
    let nested = |n: usize| format!(r#"{{"msgid":202,"x":{}{}}}"#, "[".repeat(n - 1), "]".repeat(n - 1));
    let mut client = world.client();
    client.send(nested(32));
    assert_eq!(client.recv(), json!({"msgid": 203}));
    client.send(nested(33));
    assert_eq!(client.recv()["errno"], 10);
    client.expect_end();
}

fn a_request_and_fin_in_one_segment_is_answered_before_the_end(config: &'static Config) {
    let world = config.shared();
    for _ in 0..50 {
        let mut client = world.client();
        client.send(json!({"msgid": 4, "name": world.name("fin"), "password": "p"}).to_string());
        client.finish();
        assert_eq!(client.recv()["errno"], 0);
        client.expect_end();
    }
}

fn a_login_and_fin_in_one_segment_is_answered_before_the_end(config: &'static Config) {
    let world = config.shared();
    let (account, mut recipient) = (world.account("fin"), world.online_on(1, "recipient"));
    let chat = |n: i64| json!({"msgid": 6, "id": account.id, "toid": recipient.id(), "msg": n.to_string(), "seq": n});
    let segment = format!("{}{}{}", login(&account), chat(1), chat(2));
    for _ in 0..20 {
        let mut client = world.client();
        let mut reply = json!(null);
        // The session before may still be about to end.
        eventually("the account to be free", || {
            client = world.client();
            client.send_raw(&segment);
            client.finish();
            reply = client.recv();
            reply["errno"] != 2
        });
        assert_eq!((&reply["msgid"], &reply["errno"]), (&json!(2), &json!(0)));
        for seq in [1, 2] {
            assert_eq!(client.reply(seq)["errno"], 0);
        }
        client.expect_end();
        assert_eq!(recipient.texts(2), ["1", "2"]);
    }
}

fn a_stream_that_ends_between_objects_is_closed_without_a_word(config: &'static Config) {
    let world = config.shared();
    for input in ["", " \r\n\0"] {
        let mut client = world.client();
        client.send_raw(input);
        client.finish();
        client.expect_end();
    }
}
