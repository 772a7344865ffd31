//! `--legacy-client`: what the C++ client needs, which reads with one `recv` into 1024 bytes,
//! parses up to the first NUL, and forgets the rest: `docs/PROTOCOL.md#what-a-c-client-does-and-what-follows-from-it`.

use std::io::Read;
use std::time::{Duration, Instant};

use chat_server::wire::Framing;
use serde_json::Value;

use crate::support::{Account, Client, Config, World, eventually, login, parse, strings, text_of};

in_every_configuration! {
    a_login_reply_stays_under_1024_bytes_and_the_rest_follows_as_pushes,
    friends_that_do_not_fit_are_left_out,
    a_burst_reaches_a_cpp_client_one_object_to_a_recv,
    what_comes_faster_than_a_cpp_client_can_take_it_is_acked_soon_and_comes_once,
    a_client_that_uses_seq_is_not_held_back,
    without_the_flag_a_login_reply_lists_all_friends_and_offline_messages_follow,
}

fn legacy_world(config: &Config) -> World {
    config.own(&["--legacy-client"])
}

/// A client as the C++ one is: NUL behind its objects, no `seq`, nothing else sent before.
fn cpp_client(world: &World) -> Client {
    world.client_on(1).framed(Framing::Nul)
}

/// One `recv` of the C++ client: all that is there, up to 1024 bytes.
fn cpp_recv(client: &mut Client) -> Vec<u8> {
    let mut buffer = vec![0; 1024];
    let n = client.stream.read(&mut buffer).expect("something comes");
    assert!(n > 0, "the connection has ended");
    buffer.truncate(n);
    buffer
}

/// The objects of one `recv`, of which the C++ client would see the first.
fn objects(received: &[u8]) -> Vec<Value> {
    assert_eq!(received.last(), Some(&0), "cut off: {:?}", String::from_utf8_lossy(received));
    let parts = received.split(|&byte| byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| parse(std::str::from_utf8(part).unwrap())).collect()
}

fn store(world: &World, to: &Account, n: usize) {
    let mut sender = world.online("sender");
    for number in 0..n {
        assert!(!sender.chat(to.id, &format!("{number} {}", "x".repeat(100))));
    }
}

fn a_login_reply_stays_under_1024_bytes_and_the_rest_follows_as_pushes(config: &'static Config) {
    let world = legacy_world(config);
    let account = world.account("cpp");
    store(&world, &account, 30);
    let mut client = cpp_client(&world);
    client.post(&login(&account));
    let reply = client.next_text().expect("a login reply");
    assert!(reply.len() < 1024, "{} bytes", reply.len());
    let listed = strings(&parse(&reply)["offlinemsg"]);
    assert!(!listed.is_empty());
    let rest: Vec<String> = (listed.len()..30).map(|_| client.push_text()).collect();
    for (number, text) in listed.iter().chain(&rest).enumerate() {
        let message = parse(text);
        assert!(message["msg"].as_str().unwrap().starts_with(&format!("{number} ")), "{message}");
    }
    eventually("the rows' removal", || world.kept_for(account.id) == 0);
}

fn friends_that_do_not_fit_are_left_out(config: &'static Config) {
    let world = legacy_world(config);
    let mut owner = world.online("owner");
    let account = owner.me().clone();
    for friend in world.accounts("friend", 40) {
        owner.befriend(friend.id);
    }
    owner.create_group("the last in the reply");
    owner.logout();
    let mut client = cpp_client(&world);
    client.post(&login(&account));
    let reply = client.next_text().expect("a login reply");
    assert!(reply.len() < 1024, "{} bytes", reply.len());
    let reply = parse(&reply);
    assert_eq!(reply["errno"], 0);
    let friends = strings(&reply["friends"]).len();
    assert!((1..40).contains(&friends), "{friends} friends");
}

fn a_burst_reaches_a_cpp_client_one_object_to_a_recv(config: &'static Config) {
    let world = legacy_world(config);
    let mut sender = world.online("sender");
    // The writes are apart in time, so a stalled machine may still join two: tried a few times.
    let mut joined = Vec::new();
    for _ in 0..5 {
        let account = world.account("cpp");
        let mut client = cpp_client(&world);
        client.post(&login(&account));
        assert_eq!(objects(&cpp_recv(&mut client))[0]["errno"], 0);
        let receiving = std::thread::spawn(move || {
            let (mut received, mut most) = (0, 0);
            while received < 20 {
                let now = objects(&cpp_recv(&mut client));
                for chat in &now {
                    assert!(chat["msg"].as_str().unwrap().starts_with(&received.to_string()), "{chat}");
                    received += 1;
                }
                most = most.max(now.len());
            }
            most
        });
        let burst: String = (0..20).map(|n| sender.chat_to(account.id, &n.to_string()).to_string()).collect();
        sender.send_raw(burst);
        let most = receiving.join().expect("all have come, in order");
        if most == 1 {
            return;
        }
        joined.push(most);
    }
    panic!("objects in one recv, at most, in each attempt: {joined:?}");
}

fn what_comes_faster_than_a_cpp_client_can_take_it_is_acked_soon_and_comes_once(config: &'static Config) {
    /// They take 4 s. A node that hears nothing of a message for 2 s stores it.
    const BURST: usize = 400;
    let world = legacy_world(config);
    let mut sender = world.online("sender");
    let account = world.account("cpp");
    let mut client = cpp_client(&world);
    client.post(&login(&account));
    assert_eq!(client.recv()["errno"], 0);
    let mut burst = String::new();
    for n in 0..BURST {
        let mut chat = sender.chat_to(account.id, &n.to_string());
        chat["seq"] = n.into();
        burst += &chat.to_string();
    }
    let began = Instant::now();
    sender.send_raw(burst);
    (0..BURST).for_each(|_| assert_eq!(sender.recv()["errno"], 0));
    let took = began.elapsed();
    for n in 0..BURST {
        assert_eq!(text_of(&client.push()), n.to_string());
    }
    assert!(took < Duration::from_secs(3), "the last ack came after {took:?}");
    sender.chat(account.id, "the last");
    assert_eq!(client.push()["msg"], "the last", "something came twice");
}

fn a_client_that_uses_seq_is_not_held_back(config: &'static Config) {
    let world = legacy_world(config);
    let account = world.account("modern");
    store(&world, &account, 30);
    let mut client = world.client_on(1).framed(Framing::Nul);
    client.login(&account);
    assert_eq!(strings(&client.greeting["offlinemsg"]).len(), 30, "the reply is not cut");
}

fn without_the_flag_a_login_reply_lists_all_friends_and_offline_messages_follow(config: &'static Config) {
    let world = config.shared();
    for friends in [0, 40] {
        let mut owner = world.online("owner");
        let account = owner.me().clone();
        for friend in world.accounts("friend", friends) {
            owner.befriend(friend.id);
        }
        owner.logout();
        store(&world, &account, 30);
        let mut client = cpp_client(&world);
        client.post(&login(&account));
        let text = client.next_text().expect("a login reply");
        let reply = parse(&text);
        assert_eq!(strings(&reply["friends"]).len(), friends);
        let listed = reply["offlinemsg"].as_array().map_or(0, Vec::len);
        assert!(if friends == 0 { listed > 0 && text.len() < 1023 } else { listed == 0 }, "{listed} in {text}");
        for number in listed..30 {
            let message = parse(&client.push_text());
            assert!(message["msg"].as_str().unwrap().starts_with(&format!("{number} ")), "{message}");
        }
    }
}
