//! Rule 3: an id is never used again.

use std::collections::HashSet;
use std::io::Write;

use crate::toy::{Tag, Why, echo, expect_bytes, send, start, swallow};

#[test]
fn a_late_letter_does_not_reach_the_next_owner_of_a_slot() {
    let reactors = start(echo);
    let (first_client, first) = reactors.connect();
    drop(first_client);
    reactors.closed(first);
    reactors.wait_until_empty(0);
    // It is the only one, so it has the first one's slot.
    let (mut client, second) = reactors.connect();
    let queued = reactors.ask(0, move |_, io| {
        let queued = send(io, first, b"for the first", Some(Tag::Chat(1)));
        io.pause(first);
        io.close(first, Why::IdleTimeout);
        queued
    });
    assert!(!queued, "queued for somebody else");
    client.write_all(b"for the second").unwrap();
    expect_bytes(&mut client, b"for the second");
    assert!(reactors.ask(0, move |_, io| send(io, second, b"!", None)));
    expect_bytes(&mut client, b"!");
}

#[test]
fn no_id_is_given_twice() {
    let reactors = start(swallow);
    let ids: HashSet<_> = (0..300)
        .map(|_| {
            let (client, id) = reactors.connect();
            drop(client);
            reactors.closed(id);
            id
        })
        .collect();
    assert_eq!(ids.len(), 300);
}
