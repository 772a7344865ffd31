//! The PROXY header, against the real server: which clients must send one, which may not, and what it changes.

mod support;

use std::net::Ipv6Addr;
use std::time::Duration;

use chat_server::wire::{Framing, msgid};
use serde_json::json;
use support::{Client, Config, World, eventually};

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 8000\r\n";
const SOURCE: &str = "192.0.2.7:56324";
const PING: &[u8] = b"{\"msgid\":202,\"seq\":7}\n";
const PONG: &[u8] = b"{\"msgid\":203,\"seq\":7}\n";

/// A server behind proxies in `networks`, that logs everything.
fn behind(networks: &str, flags: &[&str]) -> World {
    let flags = [&["--proxy-protocol", networks][..], flags].concat();
    Config::new(2).prepared("export RUST_LOG=debug", &flags)
}

/// A header of version 2: command, family and what follows them.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// Version 2 of [`V1`], with an extension behind the addresses.
fn v2_of_source() -> Vec<u8> {
    v2(0x21, 0x11, &[192, 0, 2, 7, 127, 0, 0, 1, 0xdc, 0x04, 0x1f, 0x40, 4, 0, 3, 1, 2, 3])
}

fn logged(world: &World, text: &str) -> bool {
    world.server().log_tail().contains(text)
}

#[track_caller]
fn expect_logged(world: &World, text: &str) {
    eventually(&format!("{text:?} in the log"), || logged(world, text));
}

/// Refused with error 10, then closed.
#[track_caller]
fn expect_refused(client: &mut Client, why: &str) {
    let error = client.recv();
    assert_eq!((&error["msgid"], &error["errno"]), (&json!(201), &json!(10)), "{error}");
    assert!(error["errmsg"].as_str().is_some_and(|text| text.contains(why)), "{error}");
    client.expect_end();
}

#[test]
fn whoever_comes_through_the_proxy_is_known_by_the_address_that_it_tells() {
    let world = behind("127.0.0.1", &[]);
    for header in [V1, &v2_of_source()] {
        let mut client = world.client();
        let here = client.stream.local_addr().unwrap();
        client.send_raw(header);
        let account = client.register(&world.name("proxied"), "secret");
        expect_logged(&world, &format!("{SOURCE} has connected, through {here}\n"));
        client.login(&account);
        expect_logged(&world, &format!("user {} has logged in from {SOURCE}\n", account.id));
    }
    let six = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 16], &[0xdc, 0x04, 0x1f, 0x40]].concat();
    for (header, source) in
        [(b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n".to_vec(), "[2001:db8::7]:1"), (v2(0x21, 0x21, &six), "[::1]:56324")]
    {
        let mut client = world.client();
        client.send_raw(header);
        client.sync();
        expect_logged(&world, &format!("{source} has connected, through 127.0.0.1:"));
    }
}

#[test]
fn a_proxy_that_speaks_for_itself_keeps_its_own_address() {
    let world = behind("127.0.0.0/8", &[]);
    for header in [b"PROXY UNKNOWN\r\n".to_vec(), v2(0x20, 0, b""), v2(0x20, 0x11, &[0; 12]), v2(0x21, 0, b"")] {
        let mut client = world.client();
        client.send_raw(header);
        let account = client.register(&world.name("local"), "secret");
        client.login(&account);
        let here = client.stream.local_addr().unwrap();
        expect_logged(&world, &format!("user {} has logged in from {here}\n", account.id));
    }
}

#[test]
fn a_byte_order_mark_may_follow_a_header_and_may_not_come_before_it() {
    let world = behind("127.0.0.1", &[]);
    for header in [V1, &v2_of_source()] {
        let stream = [header, "\u{feff}".as_bytes(), PING].concat();
        for cut in [header.len(), header.len() + 1, header.len() + 3, stream.len()] {
            let mut client = world.client();
            client.send_raw(&stream[..cut]);
            client.send_raw(&stream[cut..]);
            client.expect_bytes(PONG);
        }
    }
    let mut client = world.client();
    client.send_raw(["\u{feff}".as_bytes(), V1, PING].concat());
    expect_refused(&mut client, "must come first");
}

#[test]
fn a_header_may_be_cut_anywhere_and_disturbs_no_message() {
    let world = behind("127.0.0.1", &[]);
    for header in [V1, &v2_of_source()] {
        let stream = [header, PING].concat();
        for cut in 0..=header.len() + 1 {
            let mut client = world.client();
            client.send_raw(&stream[..cut]);
            client.send_raw(&stream[cut..]);
            client.expect_bytes(PONG);
        }
        let mut client = world.client();
        // What follows the object comes with its end, or the answer may be under way already.
        let (bytes, end) = stream.split_at(stream.len() - 2);
        for byte in bytes {
            client.send_raw([*byte]);
        }
        client.send_raw(end);
        client.expect_bytes(PONG);
    }
}

#[test]
fn the_framing_is_learnt_from_the_messages_alone() {
    let world = behind("127.0.0.1", &[]);
    for framing in [Framing::Bare, Framing::Nul, Framing::Lf, Framing::CrLf] {
        let mut client = world.client().framed(framing);
        client.send_raw(V1);
        // The second shows what was made of the first one's end.
        for seq in [1, 2] {
            client.post(&json!({"msgid": msgid::PING, "seq": seq}));
        }
        let terminator = String::from_utf8(framing.terminator().to_vec()).unwrap();
        client.expect_bytes(format!("{{\"msgid\":203,\"seq\":1}}{terminator}{{\"msgid\":203,\"seq\":2}}"));
    }
}

#[test]
fn a_stranger_may_claim_no_address_and_is_closed_without_a_word() {
    let world = behind("127.0.0.2,10.0.0.0/8", &[]);
    let mut silent = world.client();
    silent.expect_end();
    expect_logged(&world, "127.0.0.1 is none of the proxies\n");
    expect_logged(&world, "not from the proxy\n");
    // What it writes may meet a socket that is closed already.
    let mut liar = world.client();
    let _ = std::io::Write::write_all(&mut liar.stream, V1);
    assert!(liar.next_text().is_err(), "a stranger was answered");
    assert!(!logged(&world, SOURCE), "a stranger was believed");
}

#[test]
fn what_is_no_header_is_refused() {
    let world = behind("127.0.0.1", &[]);
    let mut udp = v2_of_source();
    udp[13] = 0x12;
    for (bytes, why) in [
        (PING, "must come first"),
        (b"GET / HTTP/1.1\r\n\r\n", "must come first"),
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 56324\r\n", "malformed"),
        (&udp, "malformed"),
        (&[b"PROXY UNKNOWN "[..].to_vec(), vec![b'x'; 200]].concat(), "too long"),
        (&v2(0x20, 0, &[0; 5000])[..16], "too long"),
        // The header stands once; behind it come messages.
        (&[V1, V1].concat(), "one JSON object"),
    ] {
        let mut client = world.client();
        client.send_raw(bytes);
        expect_refused(&mut client, why);
    }
    expect_logged(&world, "no PROXY header\n");
    let mut client = world.client();
    client.send_raw(&V1[..20]);
    client.finish();
    expect_refused(&mut client, "malformed");
    // A client that sends nothing at all has done nothing wrong: a proxy's probe.
    let mut probe = world.client();
    probe.finish();
    probe.expect_end();
}

#[test]
fn half_a_header_is_waited_for_no_longer_than_a_login() {
    let world = behind("127.0.0.1", &["--login-timeout", "200ms"]);
    let mut client = world.client();
    client.send_raw(&V1[..20]);
    client.set_patience(Duration::from_secs(10));
    assert_eq!(client.recv()["errno"], 20);
    client.expect_end();
    expect_logged(&world, "no login in time\n");
}

#[test]
fn without_the_flag_a_header_is_no_message() {
    let world = Config::new(1).own(&[]);
    for header in [V1, &v2_of_source()] {
        let mut client = world.client();
        client.send_raw(header);
        expect_refused(&mut client, "one JSON object");
    }
}
