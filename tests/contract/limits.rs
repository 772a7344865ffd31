//! What clients may not exceed: the attack on each limit, what the attacker is told, and that others do
//! not feel it.

use serde_json::Value;

use crate::support::{Client, Config, World, eventually};

// Limits of a connection or an address do not know the store.
in_configurations! {
    sqlite_4: [
        a_crowd_from_one_address_is_refused_and_keeps_nobody_else_out,
        behind_a_proxy_a_crowd_is_known_by_the_address_that_the_proxy_tells,
    ],
}

const STRANGER: [u8; 4] = [127, 0, 0, 66];
const OWNER: [u8; 4] = [127, 0, 0, 7];

/// Error 20, which says after how many seconds it is worth another try.
#[track_caller]
fn expect_error_20(reply: &Value) {
    assert_eq!(reply["errno"], 20, "{reply}");
    assert!(reply["errmsg"].is_string() && reply["retry_after"].as_u64().is_some_and(|time| time > 0), "{reply}");
}

fn a_crowd_from_one_address_is_refused_and_keeps_nobody_else_out(config: &'static Config) {
    let world = config.own(&["--max-connections-per-address", "8", "--max-connections", "40"]);
    let mut crowd: Vec<Client> = (0..8).map(|_| world.client_from(STRANGER)).collect();
    crowd.iter_mut().for_each(Client::sync);
    // More than all places there are.
    for _ in 0..200 {
        let mut refused = world.client_from(STRANGER);
        expect_error_20(&refused.recv());
        refused.expect_end();
    }
    let mut others: Vec<Client> = (0..8).map(|_| world.client_from(OWNER)).collect();
    others.iter_mut().chain(&mut crowd).for_each(Client::sync);
    crowd.pop();
    eventually("a place for one more", || is_let_in(&mut world.client_from(STRANGER)));
    others.iter_mut().for_each(Client::sync);
}

/// Whether it is served; one that is refused may be answered by an RST as well, if it has sent
/// something.
fn is_let_in(client: &mut Client) -> bool {
    use std::io::Write;
    let _ = client.stream.write_all(b"{\"msgid\":202}\n");
    client.next_text().is_ok_and(|text| text.contains("203"))
}

fn behind_a_proxy_a_crowd_is_known_by_the_address_that_the_proxy_tells(config: &'static Config) {
    let world = config.own(&["--max-connections-per-address", "2", "--proxy-protocol", "127.0.0.1"]);
    let mut stranger: Vec<Client> = (0..2).map(|_| through_proxy(&world, "192.0.2.66")).collect();
    stranger.iter_mut().for_each(Client::sync);
    let mut refused = through_proxy(&world, "192.0.2.66");
    expect_error_20(&refused.recv());
    refused.expect_end();
    // Nor do those count together of whom the proxy tells nothing.
    for n in 0..8 {
        through_proxy(&world, &format!("192.0.2.{n}")).sync();
        let mut proxy = world.client();
        proxy.send_raw("PROXY UNKNOWN\r\n");
        proxy.sync();
        stranger.push(proxy);
    }
    stranger.remove(0);
    eventually("a place for one more", || is_let_in(&mut through_proxy(&world, "192.0.2.66")));
}

fn through_proxy(world: &World, source: &str) -> Client {
    let mut client = world.client();
    client.send_raw(format!("PROXY TCP4 {source} 127.0.0.1 1234 8000\r\n"));
    client
}
