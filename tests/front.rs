//! Through the real nginx, with the repository's own `nginx.conf`, as clients of a cluster come.

// There are no faults here but a test's own.
#[allow(dead_code)]
#[path = "faults/history.rs"]
mod history;
#[path = "faults/line.rs"]
mod line;
#[path = "faults/player.rs"]
mod player;
mod support;
#[path = "front/vanished.rs"]
mod vanished;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use history::{Event, History, Log};
use player::Game;
use serde_json::json;
use support::{
    CHAT_CLIENT, ChatClient, Client, Cluster, Config, Identity, Nginx, NginxOptions, Rng, World, eventually, login,
    nginx_in, script,
};

/// One node that logs everything, and an nginx before it.
fn node_behind(options: NginxOptions) -> (World, Nginx) {
    let flags: &[&str] = if options.proxy_protocol { &["--proxy-protocol", "127.0.0.1/32"] } else { &[] };
    let world = Config::new(2).prepared("export RUST_LOG=debug", flags);
    let nginx = Nginx::start(&[world.server().address], options);
    (world, nginx)
}

fn node_behind_tls(names: &[&str]) -> (World, Nginx) {
    node_behind(NginxOptions { tls: Some(Identity::of(names)), ..NginxOptions::default() })
}

/// What the terminal client says of a server it cannot come to terms with.
fn complaint(port: u16, options: &[&str]) -> String {
    let mut command = Command::new(CHAT_CLIENT);
    command.args(options).args(["127.0.0.1", &port.to_string()]).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// Whether the kernel holds bytes that came to this port and that no process has read.
fn has_unread(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // "sl local_address rem_address st tx_queue:rx_queue", in hexadecimal.
    let unread = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns[1].ends_with(&format!(":{port:04X}")) && columns[3] == "01" && !columns[4].ends_with(":00000000")
    };
    table.lines().skip(1).any(unread)
}

#[test]
fn a_chat_through_nginx_is_a_chat() {
    let (world, nginx) = node_behind(NginxOptions::default());
    let mut zhang = Client::connect(nginx.address());
    let mut li = Client::connect(nginx.address());
    for client in [&mut zhang, &mut li] {
        let account = client.register(&world.name("front"), "secret");
        client.login(&account);
    }
    for n in 0..200 {
        assert!(zhang.chat(li.id(), &n.to_string()), "delivered");
    }
    assert_eq!(li.texts(200), (0..200).map(|n| n.to_string()).collect::<Vec<_>>());
    // The end comes through as well, and what follows it is stored.
    let id = li.id();
    li.finish();
    li.expect_end();
    eventually("the other end noticed", || !zhang.chat(id, "after the end"));
}

#[test]
fn a_message_of_the_largest_size_and_the_framing_come_through_unchanged() {
    let (world, nginx) = node_behind(NginxOptions::default());
    let mut client = Client::connect(nginx.address()).framed(chat_server::wire::Framing::Nul);
    let account = client.register(&world.name("front"), "secret");
    client.login(&account);
    let text = "x".repeat(60_000);
    assert!(client.chat(account.id, &text));
    assert_eq!(client.texts(1), [text]);
    client.post(&json!({"msgid": 202, "seq": 9000}));
    client.expect_bytes("\0{\"msgid\":203,\"seq\":9000}\0");
}

#[test]
fn a_client_that_has_finished_sending_still_gets_what_is_on_its_way() {
    let (world, nginx) = node_behind(NginxOptions::default());
    let mut zhang = Client::connect(nginx.address());
    let account = zhang.register(&world.name("front"), "secret");
    // A password is hashed for longer than the end takes to come through.
    zhang.post(&login(&account));
    zhang.finish();
    assert_eq!(zhang.recv()["errno"], 0);
    zhang.expect_end();
}

#[test]
fn the_nodes_learn_from_nginx_who_its_clients_are() {
    let (world, nginx) = node_behind(NginxOptions { proxy_protocol: true, ..NginxOptions::default() });
    let mut client = Client::connect(nginx.address());
    let account = client.register(&world.name("front"), "secret");
    client.login(&account);
    let here = client.stream.local_addr().unwrap();
    for line in [
        format!("{here} has connected, through 127.0.0.1:"),
        format!("user {} has logged in from {here}\n", account.id),
    ] {
        eventually(&line, || world.server().log_tail().contains(&line));
    }
}

#[test]
fn a_node_that_expects_a_header_and_an_nginx_that_sends_none_refuse_loudly() {
    let world = Config::new(1).own(&["--proxy-protocol", "127.0.0.1"]);
    let nginx = Nginx::start(&[world.server().address], NginxOptions::default());
    let mut client = Client::connect(nginx.address());
    client.send(r#"{"msgid":202}"#);
    let error = client.recv();
    assert_eq!((&error["errno"], &error["errmsg"]), (&json!(10), &json!("a PROXY header must come first")));
}

#[test]
fn the_terminal_client_talks_through_tls() {
    let (_world, nginx) = node_behind_tls(&["localhost", "127.0.0.1"]);
    let ca = nginx.certificate();
    let tls = ["--tls", "--tls-ca", ca.to_str().unwrap()];
    let mut zhang = ChatClient::start(nginx.tls_port, &tls);
    zhang.line("2\nzhang san\nsecret\n2\nli si\nsecret\n1\n1\nsecret");
    zhang.wait_for("current login user => id:1 ");
    let mut li = ChatClient::start(nginx.tls_port, &tls);
    li.line("1\n2\nsecret");
    li.wait_for("current login user => id:2 ");
    let long = "long ".repeat(2000);
    zhang.line(&format!("chat:2:hello\nchat:2:{long}"));
    zhang.wait_for("delivered to 2\ndelivered to 2\n");
    li.wait_for("[1]zhang san said: hello\n");
    li.wait_for(&format!("[1]zhang san said: {long}\n"));
    // A user without TLS is in the same chat.
    let plain = script(nginx.port, "2\nwang wu\nsecret\n1\n3\nsecret\nchat:1:from outside\n");
    assert!(plain.contains("delivered to 1\n"), "{plain}");
    zhang.wait_for("[3]wang wu said: from outside\n");
}

#[test]
fn what_is_wrong_with_tls_is_told_with_what_to_do() {
    let (_world, nginx) = node_behind_tls(&["chat.example"]);
    let ca = nginx.certificate();
    let ca = ca.to_str().unwrap();
    for (port, options, advice) in [
        (nginx.tls_port, &["--tls"][..], "use --tls-ca FILE"),
        (nginx.tls_port, &["--tls", "--tls-ca", ca], "--tls-name NAME"),
        (nginx.tls_port, &["--tls", "--tls-ca", ca, "--tls-name", "chat.example.org"], "--tls-name NAME"),
        (nginx.tls_port, &["--tls", "--tls-ca", ca, "--tls-name", "no name"], "no name is neither"),
        (nginx.tls_port, &["--tls", "--tls-ca", "/nonexistent.pem"], "cannot read /nonexistent.pem"),
        (nginx.tls_port, &["--tls", "--tls-ca", "/dev/null"], "/dev/null holds no certificate"),
        (nginx.tls_port, &[], "use --tls"),
        (nginx.port, &["--tls", "--tls-ca", ca], "leave out --tls"),
    ] {
        let text = complaint(port, options);
        assert!(text.contains(advice), "{options:?}: {text}");
    }
    let named = ["--tls", "--tls-ca", ca, "--tls-name", "chat.example"];
    let mut client = ChatClient::start(nginx.tls_port, &named);
    client.wait_for("choice:\n");
}

#[test]
fn a_client_whose_node_dies_is_soon_back_on_another_and_tells_what_is_not_known() {
    // Each has its own store, and user 1 in it.
    let nodes = [Config::new(1).own(&[]), Config::new(1).own(&[])];
    let backends = nodes.each_ref().map(|node| {
        assert_eq!(node.client().register("zhang san", "secret").id, 1);
        node.server().address
    });
    let nginx =
        Nginx::start(&backends, NginxOptions { tls: Some(Identity::of(&["127.0.0.1"])), ..NginxOptions::default() });
    let ca = nginx.certificate();
    for (port, options) in [(nginx.port, &[][..]), (nginx.tls_port, &["--tls", "--tls-ca", ca.to_str().unwrap()])] {
        let mut client = ChatClient::start(port, options);
        client.line("1\n1\nsecret");
        client.wait_for("current login user => id:1 ");
        let node = nodes.iter().find(|node| node.online_in_store() == 1).expect("it is on one of them");
        // A stopped node acks nothing.
        node.server().signal("STOP");
        client.line("chat:1:are you there?");
        eventually("the chat at the node", || has_unread(node.server().address.port()));
        let killed = Instant::now();
        node.kill();
        client.wait_for("connection lost");
        client.wait_for("not known to be delivered, and not sent again: chat:1:are you there?\n");
        client.wait_for("connected again\n");
        client.wait_for("logged in again as zhang san\n");
        assert!(killed.elapsed() < Duration::from_secs(5), "it took {:?}", killed.elapsed());
        client.line("chat:1:here again");
        client.wait_for("delivered to 1\n");
        node.start_again();
        drop(client);
        // Or the next one might be taken for being where this one was.
        eventually("an end of that session", || nodes.iter().all(|node| node.online_in_store() == 0));
    }
}

#[test]
fn a_reload_cuts_off_nobody_and_new_clients_go_by_the_new_file() {
    let (old, nginx) = node_behind(NginxOptions::default());
    let new = Config::new(1).own(&[]);
    let mut stays = Client::connect(nginx.address());
    let account = stays.register(&old.name("stays"), "secret");
    stays.login(&account);
    nginx.reload(&[new.server().address]);
    stays.sync();
    // The account is in the first node's store only.
    let mut comes = Client::connect(nginx.address());
    assert_eq!(comes.try_login(&account)["errno"], 1);
    assert!(stays.chat(account.id, "still here"), "delivered");
}

#[test]
fn the_file_is_sound_with_everything_switched_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx.conf")).unwrap();
    let identity = Identity::of(&["localhost"]);
    std::fs::write(directory.path().join("cert.pem"), identity.certificate).unwrap();
    std::fs::write(directory.path().join("key.pem"), identity.key).unwrap();
    // As the file says: take away each # that has no blank behind it.
    let switched_on: Vec<String> = file
        .lines()
        .map(|line| match line.trim_start().strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    for text in [file, switched_on.join("\n")] {
        std::fs::write(directory.path().join("nginx.conf"), &text).unwrap();
        let output = nginx_in(directory.path()).arg("-t").output().unwrap();
        assert!(output.status.success(), "{output:?}\n{text}");
    }
}

const NODES: usize = 3;
const PLAYERS: usize = 12;
const MEMBERS: [usize; 4] = [0, 2, 4, 6];

/// Three nodes that log everything, an nginx before them, and users who know of only
/// one server.
fn cluster_behind(options: NginxOptions) -> (Cluster, Nginx) {
    let flags: &[&str] = if options.proxy_protocol { &["--proxy-protocol", "127.0.0.1/32"] } else { &[] };
    let cluster = Cluster::prepared(NODES, "export RUST_LOG=debug", flags);
    let nginx = Nginx::start(&cluster.addresses(), options);
    (cluster, nginx)
}

/// Waits until all players have got some more acks.
fn await_progress(game: &Game) {
    const ACKS: u32 = 20;
    let acked = || -> Vec<u32> {
        game.acked.iter().map(|kinds| kinds.iter().map(|number| number.load(Ordering::SeqCst)).sum()).collect()
    };
    let before = acked();
    eventually("acks for everybody", || acked().iter().zip(&before).all(|(now, before)| *now >= before + ACKS));
}

/// How many sessions ended that their player had not ended.
fn cut_off(log: &Log) -> usize {
    let is_cut = |(index, line): (usize, u32)| {
        let before = log[..index].iter().rev().map(|(_, event)| event);
        let mut of_line = before.filter(
            |event| matches!(event, Event::LoggedIn { line: of, .. } | Event::Left { line: of } if *of == line),
        );
        matches!(of_line.next(), Some(Event::LoggedIn { .. }))
    };
    let ends = log.iter().enumerate().filter_map(|(index, (_, event))| match event {
        Event::Ended { line } => Some((index, *line)),
        _ => None,
    });
    ends.filter(|end| is_cut(*end)).count()
}

fn has_users(cluster: &Cluster, node: usize) -> bool {
    cluster.nodes[node].log_tail().contains("has logged in")
}

#[test]
fn a_backend_killed_and_back_under_load_loses_nothing_acked() {
    let (mut cluster, nginx) = cluster_behind(NginxOptions::default());
    let game = Game::new(nginx.address(), vec![nginx.address()], PLAYERS, &MEMBERS);
    let players = Game::begin(&game, &mut Rng::new());
    await_progress(&game);
    eventually("users on all nodes", || (0..NODES).all(|node| has_users(&cluster, node)));
    // Users come and go: where they are cannot be known before.
    let busiest = (0..NODES).max_by_key(|node| cluster.nodes[*node].descriptors()).expect("nodes");
    cluster.kill(busiest);
    await_progress(&game);
    cluster.start_again(busiest);
    await_progress(&game);
    let (logs, recipients) = game.finish(players);
    assert!(logs.iter().any(|log| cut_off(log) > 0), "nobody was on the killed node");
    History { logs, recipients, faults: Vec::new(), repeats_allowed: 2 * PLAYERS }.judge();
}

#[test]
fn a_fourth_node_joins_under_load_and_nobody_notices() {
    let (mut cluster, nginx) = cluster_behind(NginxOptions::default());
    let game = Game::new(nginx.address(), vec![nginx.address()], PLAYERS, &MEMBERS);
    let players = Game::begin(&game, &mut Rng::new());
    await_progress(&game);
    cluster.add_node();
    nginx.reload(&cluster.addresses());
    // Some always go and come back.
    eventually("users on the fourth node", || has_users(&cluster, NODES));
    await_progress(&game);
    let (logs, recipients) = game.finish(players);
    for log in &logs {
        for (at, event) in log {
            let is_harmless = match *event {
                Event::LoginRefused { errno, .. } => errno == 2, // a user who is logged in tries it again
                Event::Told { .. } | Event::Refused { .. } | Event::GaveUp => false,
                _ => true,
            };
            assert!(is_harmless, "{event:?} at {at:?}");
        }
        assert_eq!(cut_off(log), 0, "{log:?}");
    }
    History { logs, recipients, faults: Vec::new(), repeats_allowed: 0 }.judge();
}

#[test]
fn through_tls_and_with_proxy_headers_all_nodes_are_one_chat_and_know_their_clients() {
    let identity = Identity::of(&["127.0.0.1"]);
    let (cluster, nginx) =
        cluster_behind(NginxOptions { tls: Some(identity), proxy_protocol: true, ..NginxOptions::default() });
    let mut here = Client::connect(nginx.address());
    here.register("here", "secret");
    // Enough for all nodes, whichever worker of nginx takes them.
    let ca = nginx.certificate();
    let tls = ["--tls", "--tls-ca", ca.to_str().unwrap()];
    let mut clients: Vec<ChatClient> = Vec::new();
    let mut id = 1;
    while !(0..NODES).all(|node| has_users(&cluster, node)) {
        id += 1;
        assert!(id < 50, "nginx leaves a node out");
        let mut client = ChatClient::start(nginx.tls_port, &tls);
        client.line(&format!("2\nuser {id}\nsecret\n1\n{id}\nsecret"));
        client.wait_for(&format!("current login user => id:{id} "));
        for (of, other) in (2..).zip(&mut clients) {
            client.line(&format!("chat:{of}:hello"));
            client.wait_for(&format!("delivered to {of}\n"));
            other.wait_for(&format!("[{id}]user {id} said: hello\n"));
        }
        clients.push(client);
    }
    // And without TLS; its address is known.
    let account = here.register("plain", "secret");
    here.login(&account);
    let line = format!("user {} has logged in from {}\n", account.id, here.stream.local_addr().unwrap());
    eventually(&line, || cluster.logs().contains(&line));
    assert!(!cluster.logs().contains(&format!("has logged in from {}", nginx.address())));
}
