//! The strict client itself: it must die of what the real ones die of, or it shows nothing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use crate::client::Strict;
use crate::profiles::{CANON, CANON_DATA, CANON_USERID, FRAMED, G, Profile};

/// What a client says that registers and gets `reply`; empty: it lives.
fn dies_of(profile: &Profile, reply: &[u8]) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    let reply = reply.to_vec();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let _ = stream.read(&mut [0; 1024]);
        // A client that has died does not read it.
        let _ = stream.write_all(&reply);
    });
    let died = catch_unwind(AssertUnwindSafe(|| Strict::register(profile, address, "ann").id()));
    server.join().expect("it has written");
    match died {
        Ok(_) => String::new(),
        Err(why) => why.downcast_ref::<String>().cloned().unwrap_or_default(),
    }
}

#[test]
fn the_strict_client_dies_of_what_the_real_ones_die_of() {
    let long = format!(r#"{{"msgid":5,"errno":0,"id":1,"more":"{}"}}"#, "x".repeat(1024));
    let cases: [(&Profile, &[u8], &str); 14] = [
        (&CANON, b"{\"msgid\":5,\"errno\":0,\"id\":1}\0", ""),
        (&CANON, b"{\"msgid\":5,\"errno\":0,\"id\":1}", ""),
        (&CANON, b"{\"msgid\":5,\"errno\":0,\"id\":1}\0{\"msgid\":6}\0", "two objects in one read"),
        (&CANON, long.as_bytes(), "more bytes than it reads"),
        (&CANON, b"{\"msgid\":5,\"errno\":0,\"id\":1\0", "EOF while parsing"),
        (&CANON, b"{\"msgid\":5,\"errno\":0}\0", "id is missing"),
        (&CANON, b"{\"msgid\":5,\"errno\":0,\"id\":1,\"id\":1}\0", "id stands twice"),
        (&CANON, b"{\"msgid\":201,\"errno\":11,\"errmsg\":\"unknown msgid\"}\0", "a message that it does not know"),
        (&CANON, b"{\"msgid\":4,\"errno\":0,\"id\":1}\0", "a message that it does not know"),
        (&CANON_USERID, b"{\"msgid\":5,\"errno\":0,\"id\":1}\0", "userid is missing"),
        (&CANON_USERID, b"{\"msgid\":5,\"errno\":0,\"id\":1,\"userid\":1}\0", "id stands there beside userid"),
        (&CANON_DATA, b"{\"msgid\":5,\"errno\":0,\"id\":1}\0", "trailing characters"),
        (&FRAMED, b"{\"msgid\":4,\"errno\":0,\"id\":1,\"name\":\"ann\"}", "a length is none"),
        (&G, b"{\"msgid\":5,\"errno\":0,\"id\":1}\0", "a message that it does not know"),
    ];
    for (profile, reply, expected) in cases {
        let why = dies_of(profile, reply);
        let is_right = if expected.is_empty() { why.is_empty() } else { why.contains(expected) };
        assert!(is_right, "{} of {}: {why:?}", profile.name, reply.escape_ascii());
    }
}
