//! Browsers: the page, and the WebSocket beside it, against the real server.

mod autobahn;
mod client;
mod python;
#[path = "../support/mod.rs"]
mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use chat_server::wire::msgid;
use client::{BINARY, Browser, CLOSE, FIRST, LAST, MORE, PING, PONG, TEXT, UPGRADE, frame, http};
use serde_json::json;
use support::{Account, Client, Config, DEADLINE, World, eventually};

const PAGE: &str = include_str!("../../src/web/page.html");

fn browser(world: &World) -> Browser {
    Browser::connect(world.server().address)
}

fn account(world: &World) -> Account {
    world.client().register(&world.name("web"), "secret")
}

fn logged_in(world: &World) -> (Browser, Account) {
    let account = account(world);
    let mut browser = browser(world);
    browser.login(&account);
    (browser, account)
}

fn chat(from: &Account, to: u32, text: &str) -> serde_json::Value {
    json!({"msgid": msgid::ONE_CHAT, "id": from.id, "name": from.name, "toid": to, "msg": text, "time": "now"})
}

/// Two clients that chat over TCP, and must not notice what others do.
struct Pair(Client, Client);

impl Pair {
    fn new(world: &World) -> Pair {
        let [one, other] = [(), ()].map(|()| {
            let mut client = world.client();
            let account = client.register(&world.name("pair"), "secret");
            client.login(&account);
            client
        });
        Pair(one, other)
    }

    #[track_caller]
    fn chats(&mut self) {
        let Pair(one, other) = self;
        let begun = Instant::now();
        for n in 0..20 {
            let text = format!("undisturbed {n}");
            assert!(one.chat(other.id(), &text) && other.chat(one.id(), &text));
            assert_eq!((one.texts(1), other.texts(1)), (vec![text.clone()], vec![text]));
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

// -- the page ---------------------------------------------------------------------------------------

#[test]
fn the_page_is_served_at_the_address_of_the_chat() {
    let world = Config::new(1).own(&[]);
    let address = world.server().address;
    for target in ["/", "/index.html", "/?lang=zh"] {
        let reply = http(address, format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", PAGE.len())), "{head}");
        assert!(head.contains("script-src 'sha256-") && head.contains("connect-src 'self'"), "{head}");
        assert!(body == PAGE);
    }
}

#[test]
fn everything_else_is_a_short_error() {
    let world = Config::new(1).own(&[]);
    let mut pair = Pair::new(&world);
    let address = world.server().address;
    let long = "x".repeat(8 * 1024);
    let without = |line: &str| {
        let lines = UPGRADE.split_inclusive("\r\n").filter(|other| !other.starts_with(line));
        format!("GET /ws HTTP/1.1\r\n{}\r\n", lines.collect::<String>())
    };
    let from = |origin: &str| format!("GET /ws HTTP/1.1\r\nOrigin: {origin}\r\n{UPGRADE}\r\n");
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\n\r\n".to_owned(), 404),
        ("GET /ws HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 426),
        (without("Upgrade"), 426),
        (without("Connection"), 426),
        (without("Sec-WebSocket-Version"), 426),
        (without("Sec-WebSocket-Key"), 400),
        (without("Host"), 400),
        (from("https://elsewhere.example"), 403),
        (from("null"), 403),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
        ("GARBAGE\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nX: {}", &long[19..]), 431),
    ] {
        let reply = http(address, &request);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {reply}");
        assert!(reply.len() < 500, "{reply}");
    }
    // Only what begins like that is HTTP.
    for request in ["HEAD / HTTP/1.1\r\n\r\n", "POST / HTTP/1.1\r\n\r\n", " GET / HTTP/1.1\r\n\r\n"] {
        let reply = http(address, request);
        assert!(reply.starts_with(r#"{"msgid":201,"errno":10,"#), "{request}: {reply}");
    }
    pair.chats();
}

#[test]
fn pages_of_the_own_host_may_open_a_websocket_and_others_if_they_are_named() {
    let world = Config::new(1).own(&["--web-origins", "https://elsewhere.example,http://10.0.0.7:8080"]);
    for (origin, is_allowed) in [
        ("https://chat.example", true),
        ("https://elsewhere.example", true),
        ("http://10.0.0.7:8080", true),
        ("http://elsewhere.example", false),
        ("http://10.0.0.7", false),
    ] {
        let mut client = world.client();
        client.send_raw(format!("GET /ws HTTP/1.1\r\nOrigin: {origin}\r\n{UPGRADE}\r\n"));
        let status = if is_allowed { "HTTP/1.1 101 " } else { "HTTP/1.1 403 " };
        client.expect_bytes(status);
    }
}

#[test]
fn an_operator_can_do_without_browsers() {
    const ERROR: &str = r#"{"msgid":201,"errno":10,"errmsg":"a message must be one JSON object"}"#;
    let request = "GET / HTTP/1.1\r\n\r\n";
    let world = Config::new(1).own(&["--web", "off"]);
    assert_eq!(http(world.server().address, request), ERROR);
    let world = Config::new(1).own(&["--listen", "127.0.0.1:0,dialect=canon"]);
    assert!(http(world.server().address, request).starts_with("HTTP/1.1 200 "));
    assert_eq!(http(world.server().further_address(), request), ERROR);
}

#[test]
fn a_head_has_10_seconds() {
    let world = Config::new(1).own(&[]);
    let mut pair = Pair::new(&world);
    let begun = Instant::now();
    let slow: Vec<_> = (0..20)
        .map(|n| {
            let mut client = world.client();
            client.send_raw(&b"GET / HTTP/1.1\r\nX: "[..1 + n % 19]);
            client
        })
        .collect();
    let mut trickle = world.client();
    trickle.send_raw("GET / HTTP/1.1\r\nX: ");
    while begun.elapsed() < Duration::from_secs(8) {
        thread::sleep(Duration::from_millis(100));
        trickle.send_raw("x");
        pair.chats();
    }
    for mut client in slow.into_iter().chain([trickle]) {
        client.expect_bytes("HTTP/1.1 408 ");
        assert!(begun.elapsed() >= Duration::from_secs(10));
    }
    pair.chats();
    // What has become a WebSocket stays.
    let mut browser = browser(&world);
    browser.send(json!({"msgid": 202, "seq": 1}));
    assert_eq!(browser.text(), r#"{"msgid":203,"seq":1}"#);
}

// -- the WebSocket ----------------------------------------------------------------------------------

#[test]
fn an_object_is_a_message_and_both_sides_are_one_chat() {
    let world = Config::new(2).own(&[]);
    let (mut zhang, me) = logged_in(&world);
    let (mut li, Account { id: li_id, .. }) = logged_in(&world);
    let mut wang = world.client();
    let account = wang.register(&world.name("tcp"), "secret");
    wang.login(&account);
    let text = chat(&me, li_id, "hello, 李四").to_string();
    zhang.send(&text);
    assert_eq!(li.push(), text);
    let ack = zhang.ask(chat(&me, account.id, "to another kind"));
    assert_eq!(ack["delivered"], true, "{ack}");
    assert_eq!(wang.texts(1), ["to another kind"]);
    assert!(wang.chat(li_id, "and back"));
    assert!(li.push().contains("and back"));
    // A message of each size of header, and one that a group shares.
    let group =
        zhang.ask(json!({"msgid": msgid::CREATE_GROUP, "id": me.id, "groupname": world.name("g"), "groupdesc": ""}));
    let join = |id: u32| json!({"msgid": msgid::JOIN_GROUP, "id": id, "groupid": group["groupid"]});
    assert_eq!(li.ask(join(li_id))["errno"], 0);
    wang.must(join(account.id));
    for size in [1, 100, 126, 2000, 60_000] {
        let text = "x".repeat(size);
        let mut request = chat(&me, 0, &text);
        (request["msgid"], request["groupid"]) = (msgid::GROUP_CHAT.into(), group["groupid"].clone());
        assert_eq!(zhang.ask(request)["delivered"], 2);
        assert!(li.push().contains(&text));
        assert_eq!(wang.texts(1), [text]);
    }
    li.send_raw(frame(CLOSE, 1001_u16.to_be_bytes()));
    li.expect_close(1001);
    eventually("the session is over", || zhang.ask(chat(&me, li_id, "later"))["delivered"] == false);
    let mut again = browser(&world);
    let reply = again.ask(json!({"msgid": msgid::LOGIN, "id": li_id, "password": "secret"}));
    assert!(reply["offlinemsg"].to_string().contains("later"), "{reply}");
}

#[test]
fn fragments_are_joined_and_pings_answered_between_them() {
    let world = Config::new(1).own(&[]);
    let mut browser = browser(&world);
    let stream = [
        frame(FIRST, r#"{"msgid":2"#),
        frame(PING, b"are you there?"),
        frame(MORE, b""),
        frame(LAST, r#"02,"seq":1}"#),
        frame(PONG, b"unasked"),
        frame(TEXT, "\r\n {\"msgid\":202,\"seq\":2}\n"),
    ]
    .concat();
    let read = |browser: &mut Browser| {
        assert_eq!(browser.frame(), (PONG, b"are you there?".to_vec()));
        assert_eq!(browser.text(), r#"{"msgid":203,"seq":1}"#);
        assert_eq!(browser.text(), r#"{"msgid":203,"seq":2}"#);
    };
    browser.send_raw(&stream);
    read(&mut browser);
    for byte in &stream {
        browser.send_raw([*byte]);
    }
    read(&mut browser);
    // Also in the segment of the request that makes a WebSocket of it.
    read(&mut Browser::begin(TcpStream::connect(world.server().address).unwrap(), b"", &stream));
}

#[test]
fn a_connection_that_moves_at_its_login_takes_half_a_message_along() {
    let world = Config::new(4).own(&[]);
    for _ in 0..16 {
        let account = account(&world);
        let mut browser = browser(&world);
        let text = chat(&account, account.id, "to myself").to_string();
        let (front, behind) = text.split_at(20);
        let login = support::login(&account).to_string();
        let list = json!({"msgid": msgid::LIST, "seq": 5}).to_string();
        let rest = frame(LAST, behind);
        browser.send_raw([frame(TEXT, login), frame(FIRST, front), rest[..9].to_vec()].concat());
        assert_eq!(browser.recv()["errno"], 0);
        browser.send_raw([&rest[9..], &frame(TEXT, list)].concat());
        assert_eq!(browser.push(), text);
        assert_eq!(browser.recv()["seq"], 5);
    }
}

#[test]
fn what_waits_for_earlier_requests_is_not_lost() {
    let world = Config::new(2).own(&[]);
    let (mut browser, me) = logged_in(&world);
    let friend = account(&world);
    let add = json!({"msgid": msgid::ADD_FRIEND, "id": me.id, "friendid": friend.id, "seq": 1}).to_string();
    let list = |seq: i64| json!({"msgid": msgid::LIST, "seq": seq}).to_string();
    // It takes more than one read, so its beginning is unmasked before it is known that it has to wait.
    let large = json!({"msgid": msgid::LIST, "seq": 2, "x": "x".repeat(65_400)}).to_string();
    let (front, behind) = large.split_at(30_000);
    browser.send_raw([frame(TEXT, add), frame(FIRST, front), frame(LAST, behind), frame(TEXT, list(3))].concat());
    assert_eq!(browser.recv()["seq"], 1);
    for seq in [2, 3] {
        let reply = browser.recv();
        assert_eq!(reply["seq"], seq);
        assert!(reply["friends"].to_string().contains(&friend.name), "{reply}");
    }
}

#[test]
fn what_is_no_object_or_too_large_is_refused_as_ever_and_then_closed() {
    let world = Config::new(1).own(&[]);
    let mut pair = Pair::new(&world);
    for text in ["hello", "[]", "{}{}", r#"{"msgid":202"#, "", r#"{"msgid":202} x"#, "{\"msgid\":1e400}"] {
        let mut browser = browser(&world);
        browser.send(json!({"msgid": 202, "seq": 1}));
        browser.send(text);
        assert_eq!(browser.text(), r#"{"msgid":203,"seq":1}"#);
        browser.expect_error(10);
        browser.expect_close(1008);
    }
    let padded = |size: usize| format!(r#"{{"msgid":202,"seq":1,"x":"{}"}}"#, "x".repeat(size - 28));
    let mut fits = browser(&world);
    assert_eq!(padded(8192).len(), 8192);
    fits.send(padded(8192));
    assert_eq!(fits.text(), r#"{"msgid":203,"seq":1}"#);
    let long = |length: u64| [&[TEXT, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
    for stream in [
        frame(TEXT, padded(8193)),
        [frame(FIRST, vec![b' '; 8192]), frame(LAST, b" ")].concat(),
        long(1 << 32),
        long(1 << 63),
        long(u64::MAX),
    ] {
        let mut browser = browser(&world);
        browser.send_raw(&stream);
        browser.expect_error(19);
        browser.expect_close(1009);
    }
    let (mut browser, _) = logged_in(&world);
    browser.send(padded(65_536));
    assert_eq!(browser.text(), r#"{"msgid":203,"seq":1}"#);
    browser.send(padded(65_537));
    browser.expect_error(19);
    browser.expect_close(1009);
    pair.chats();
}

#[test]
fn frames_that_no_browser_sends_are_closed_with_the_code_for_it() {
    let world = Config::new(1).own(&[]);
    let mut pair = Pair::new(&world);
    for (stream, code) in [
        (frame(BINARY, b"{}"), 1003),
        (frame(TEXT, b"\xff"), 1007),
        (frame(FIRST, b"\xc3\x28"), 1007),
        (b"\x81\x02{}".to_vec(), 1002),
        (frame(TEXT | 0x40, b"{}"), 1002),
        (frame(0x83, b""), 1002),
        (frame(LAST, b"{}"), 1002),
        (frame(PING, [b'x'; 126]), 1002),
        (frame(PING & !LAST, b""), 1002),
        (frame(CLOSE, b"x"), 1002),
        (frame(CLOSE, 1006_u16.to_be_bytes()), 1002),
        (frame(CLOSE, b""), 1000),
        (frame(CLOSE, 4321_u16.to_be_bytes()), 4321),
    ] {
        let mut browser = browser(&world);
        // What was asked before is still answered.
        browser.send(json!({"msgid": 202, "seq": 1}));
        browser.send_raw(&stream);
        assert_eq!(browser.text(), r#"{"msgid":203,"seq":1}"#);
        browser.expect_close(code);
    }
    let mut gone = browser(&world);
    gone.send_raw(&frame(FIRST, b"{")[..5]);
    gone.finish();
    gone.expect_close(1000);
    pair.chats();
}

#[test]
fn replies_that_are_due_come_before_the_close_frame() {
    let world = Config::new(2).own(&[]);
    let friend = account(&world).id;
    for (behind, code) in [(frame(BINARY, b""), 1003), (frame(CLOSE, b""), 1000)] {
        let (mut browser, me) = logged_in(&world);
        let add = json!({"msgid": msgid::ADD_FRIEND, "id": me.id, "friendid": friend, "seq": 7}).to_string();
        browser.send_raw([frame(TEXT, add), behind].concat());
        assert_eq!(browser.recv()["seq"], 7);
        browser.expect_close(code);
    }
}

#[test]
fn a_server_that_ends_says_so() {
    let world = Config::new(2).own(&[]);
    let (mut browser, _) = logged_in(&world);
    let mut stranger = Browser::connect(world.server().address);
    stranger.send(json!({"msgid": 202, "seq": 1}));
    stranger.text();
    world.server().signal("TERM");
    browser.expect_close(1012);
    stranger.expect_close(1012);
}

#[test]
fn a_silent_browser_is_asked_for_a_sign_of_life() {
    let world = Config::new(1).own(&["--idle-timeout", "2s"]);
    let (mut browser, _) = logged_in(&world);
    for _ in 0..3 {
        let asked = Instant::now();
        assert_eq!(browser.frame(), (PING, Vec::new()));
        assert!(asked.elapsed() < Duration::from_millis(1900), "{:?}", asked.elapsed());
        browser.send_raw(frame(PONG, b""));
    }
    assert_eq!(browser.frame(), (PING, Vec::new()));
    browser.expect_error(20);
    browser.expect_close(1008);
}

#[test]
fn limits_hold_as_for_all() {
    let world = Config::new(1).own(&["--max-message-rate", "1", "--login-timeout", "3s"]);
    let mut browser = browser(&world);
    let mut stream = Vec::new();
    for _ in 0..6 {
        stream.extend(frame(PING, b""));
        stream.extend(frame(TEXT, r#"{"msgid":202}"#));
    }
    browser.send_raw(&stream);
    for _ in 0..5 {
        assert_eq!(browser.frame(), (PONG, Vec::new()));
        assert_eq!(browser.text(), r#"{"msgid":203}"#);
    }
    browser.expect_error(20);
    let late = browser.recv();
    assert_eq!(late["errno"].as_i64().unwrap_or(20), 20, "{late}");
    while let (TEXT, text) = browser.frame() {
        if String::from_utf8_lossy(&text).contains("no login in time") {
            browser.expect_close(1008);
            return;
        }
    }
    panic!("the login timeout did not come");
}

/// Who is refused before the first byte is told in JSON, as it may be any client.
#[test]
fn browsers_count_towards_the_limit_of_connections() {
    let world = Config::new(2).own(&["--max-connections", "2"]);
    let mut browser = browser(&world);
    let mut other = world.client();
    for _ in 0..2 {
        let told = http(world.server().address, "");
        let refusal: serde_json::Value = serde_json::from_str(told.trim_end_matches(['\0', '\n'])).expect("an object");
        assert_eq!((&refusal["msgid"], &refusal["errno"]), (&json!(201), &json!(20)), "{refusal}");
    }
    assert_eq!(other.request(json!({"msgid": 202}))["msgid"], 203);
    // A place is free again as soon as a browser has left it.
    browser.send_raw(frame(CLOSE, b""));
    browser.expect_close(1000);
    eventually("a browser is let in", || {
        let mut stream = TcpStream::connect(world.server().address).expect("a server");
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let begun = format!("GET /ws HTTP/1.1\r\n{UPGRADE}\r\n");
        let mut reply = [0; 12];
        stream.write_all(begun.as_bytes()).and_then(|()| stream.read_exact(&mut reply)).is_ok()
            && reply == *b"HTTP/1.1 101"
    });
}

/// A tab that sleeps.
#[test]
fn a_browser_that_does_not_read_gets_everything_later_and_no_frame_in_halves() {
    let world = Config::new(2).own(&["--high-water", "65536"]);
    let mut sender = world.client();
    let account = sender.register(&world.name("tcp"), "secret");
    sender.login(&account);
    let reader = self::account(&world);
    let stream = Client::connect_with_receive_buffer(world.server().address, 4096).unwrap().stream;
    let mut browser = Browser::begin(stream, b"", b"");
    browser.login(&reader);
    let text = |n: usize| format!("{n} {}", "x".repeat(3000));
    for n in 0..150 {
        sender.chat(reader.id, &text(n));
    }
    // It reads on: what was half written is whole, and the order is that in which it was sent.
    for n in 0..150 {
        let got: serde_json::Value = serde_json::from_str(&browser.push()).expect("an object");
        assert_eq!(got["msg"], text(n));
    }
    // What is stored for it is the object alone.
    browser.send_raw(frame(CLOSE, b""));
    browser.expect_close(1000);
    for n in 0..3 {
        eventually("it is stored", || !sender.chat(reader.id, &text(n)));
    }
    let mut plain = world.client();
    let greeting = plain.login(&reader);
    let first = greeting["offlinemsg"][0].as_str().expect("an object in a string");
    assert_eq!(support::text_of(&support::parse(first)), text(0));
}

#[test]
fn behind_a_proxy_its_header_comes_first() {
    let world = Config::new(1).own(&["--proxy-protocol", "127.0.0.1"]);
    let header = b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 8000\r\n";
    let mut browser = Browser::begin(TcpStream::connect(world.server().address).unwrap(), header, b"");
    browser.send(json!({"msgid": 202, "seq": 1}));
    assert_eq!(browser.text(), r#"{"msgid":203,"seq":1}"#);
    let reply = http(world.server().address, [&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat());
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
    let reply = http(world.server().address, "GET / HTTP/1.1\r\n\r\n");
    assert!(reply.contains("a PROXY header must come first"), "{reply}");
}
