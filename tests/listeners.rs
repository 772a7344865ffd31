//! Several listeners, each with the dialect of its clients.

mod support;

use std::io::Read;
use std::net::SocketAddr;

use chat_server::wire::msgid;
use serde_json::{Value, json};
use support::{Client, Config, Launch, World, free_port, refused_start};

/// A server with a further listener, where this dialect is spoken.
fn with_further(dialect: &str, flags: &[&str]) -> (World, SocketAddr) {
    let listen = format!("127.0.0.1:0,dialect={dialect}");
    let world = Config::new(2).own(&[&["--listen", &listen][..], flags].concat());
    let further = world.server().further_address();
    (world, further)
}

fn ask(client: &mut Client, request: &Value) -> Value {
    client.post(request);
    client.recv()
}

#[test]
fn clients_of_a_dialect_talk_to_those_of_canon_at_another_listener() {
    let (world, further) = with_further("b", &["--dialect", "canon"]);
    let mut canon = world.online("canon");
    let mut theirs = Client::connect(further);
    let registered = ask(&mut theirs, &json!({"msgid": 3, "name": world.name("b"), "password": "secret"}));
    assert_eq!((&registered["msgid"], &registered["errno"]), (&json!(4), &json!(0)), "{registered}");
    let id = registered["id"].as_u64().unwrap();
    let greeting = ask(&mut theirs, &json!({"msgid": 1, "id": id, "password": "secret"}));
    assert_eq!((&greeting["msgid"], &greeting["errno"]), (&json!(2), &json!(0)), "{greeting}");
    theirs.post(&json!({"msgid": 5, "id": id, "name": "b", "toid": canon.id(), "msg": "from b", "time": "now"}));
    let chat = canon.push();
    assert_eq!((&chat["msgid"], &chat["msg"]), (&json!(msgid::ONE_CHAT), &json!("from b")), "{chat}");
    assert!(canon.chat(id.try_into().unwrap(), "from canon"));
    let chat = theirs.recv();
    assert_eq!((&chat["msgid"], &chat["msg"]), (&json!(5), &json!("from canon")), "{chat}");
    // Where canon alone is spoken, the same registration is a logout without an id.
    let refused = ask(&mut world.client(), &json!({"msgid": 3, "name": "b", "password": "secret"}));
    assert_eq!(refused["msgid"], msgid::ERROR, "{refused}");
}

#[test]
fn a_dialect_that_is_given_is_spoken_from_the_first_byte_and_behind_a_proxy() {
    let (world, further) = with_further("canon-length", &["--proxy-protocol", "127.0.0.1"]);
    let mut client = Client::connect(further);
    client.send_raw(b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 8000\r\n");
    let request = json!({"msgid": msgid::REGISTER, "name": world.name("framed"), "password": "secret"}).to_string();
    client.send_raw([&u32::try_from(request.len()).unwrap().to_be_bytes()[..], request.as_bytes()].concat());
    let mut length = [0; 4];
    client.stream.read_exact(&mut length).unwrap();
    let mut reply = vec![0; u32::from_be_bytes(length) as usize];
    client.stream.read_exact(&mut reply).unwrap();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!((&reply["msgid"], &reply["errno"]), (&json!(msgid::REGISTER_ACK), &json!(0)), "{reply}");
    // Without a length, it is not what is spoken there.
    let mut other = Client::connect(further);
    other.send_raw(b"PROXY UNKNOWN\r\n{\"msgid\":202}\n");
    other.expect_end();
}

#[test]
fn what_no_request_tells_is_known_by_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "like = \"c\"\nkeys = { login_ack = { name = \"called\" } }\n").unwrap();
    let (world, further) = with_further(file.to_str().unwrap(), &[]);
    let account = world.account("someone");
    let login = json!({"msgid": msgid::LOGIN, "id": account.id, "password": account.password});
    let theirs = ask(&mut Client::connect(further), &login);
    assert_eq!((&theirs["msgid"], &theirs["called"]), (&json!(5), &json!(account.name)), "{theirs}");
    let canon = ask(&mut world.client(), &login);
    assert_eq!(canon["msgid"], msgid::LOGIN_ACK, "{canon}");
    let log = world.server().log_tail();
    assert!(log.contains(&format!("listening on {further}; dialect mine\n")), "{log}");
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = refused_start(&Launch {
        store: format!("sqlite:{}", dir.path().join("chat.db").display()),
        reactors: 1,
        workers: 1,
        flags: vec!["--listen".to_owned(), address.clone()],
        setup: String::new(),
        port: free_port(),
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains(&format!("cannot listen on {address}: ")) && text.contains("another program"), "{text}");
}
