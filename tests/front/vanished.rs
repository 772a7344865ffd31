//! Clients whose address vanishes, without a FIN: which accounts become free, and when.
//!
//! It takes network namespaces, and so root. The times are shorter there than in `nginx.conf`.

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{
    Account, Client, Config, Network, Nginx, NginxOptions, Process, World, eventually, eventually_within,
};

/// What `so_keepalive` says here: after 2 s of silence 3 probes, a second apart.
const KEEPALIVE: &str = "2s:1s:3";
/// What `tcp_retries2` says here: about 3 s, at 200 ms for the first.
const RETRIES: &str = "3";
/// Much longer than either takes, and much shorter than the kernel's 2 hours and 15 minutes.
const SOON: Duration = Duration::from_secs(40);

#[test]
fn the_file_has_keepalive_with_times_on_both_ports_and_names_the_kernels_retransmissions() {
    let file = include_str!("../../nginx.conf");
    let listens: Vec<&str> = file.lines().map(|line| line.trim_start().trim_start_matches('#')).collect();
    for listen in ["listen 8000 so_keepalive=60s:10s:3;", "listen 8443 ssl so_keepalive=60s:10s:3;"] {
        assert!(listens.contains(&listen), "{listen}");
    }
    assert_eq!(file.matches("so_keepalive=").count(), file.matches("so_keepalive=60s:10s:3").count());
    for text in [file, include_str!("../../docs/OPERATING.md"), include_str!("../../docs/OPERATING.zh-CN.md")] {
        assert!(text.contains("sysctl net.ipv4.tcp_retries2=8"));
    }
}

/// A node, and an nginx before it that the client's machine can reach.
fn node_behind_nginx() -> (World, Nginx) {
    std::fs::write("/proc/sys/net/ipv4/tcp_retries2", RETRIES).expect("of this namespace alone");
    let world = Config::new(2).own(&[]);
    let options =
        NginxOptions { address: Some(Network::SERVER), keepalive: Some(KEEPALIVE), ..NginxOptions::default() };
    let nginx = Nginx::start(&[world.server().address], options);
    (world, nginx)
}

/// A user on the client's machine, logged in, and a user who stays.
fn two_users(network: &Network, world: &World, nginx: &Nginx) -> (Client, Account, Client) {
    let mut vanishing = network.at_client(|| Client::connect(nginx.address()));
    let account = vanishing.register(&world.name("vanishing"), "secret");
    vanishing.login(&account);
    let stays = world.online("stays");
    (vanishing, account, stays)
}

/// Waits until the account can be logged in to, and returns that session.
#[track_caller]
fn comes_free(within: Duration, at: SocketAddr, account: &Account) -> Client {
    let mut client = Client::connect(at);
    eventually_within(within, "the account to come free", || {
        let errno = client.try_login(account)["errno"].clone();
        assert!(errno == 0 || errno == 2, "{errno}");
        errno == 0
    });
    client
}

#[test]
fn who_vanishes_in_silence_is_noticed_by_nginxs_keepalive() {
    let Some(network) = Network::new() else { return };
    network.at_server(|| {
        let (world, nginx) = node_behind_nginx();
        let (_vanishing, account, mut stays) = two_users(&network, &world, &nginx);
        network.vanish();
        let vanished = Instant::now();
        assert_eq!(Client::connect(nginx.address()).try_login(&account)["errno"], 2, "nobody can know it yet");
        eventually_within(SOON, "the session's end", || world.online_in_store() == 1);
        assert!(vanished.elapsed() > Duration::from_secs(2), "by what, after {:?}?", vanished.elapsed());
        assert!(!stays.chat(account.id, "while you were away"), "stored");
        assert_eq!(comes_free(SOON, nginx.address(), &account).texts(1), ["while you were away"]);
    });
}

#[test]
fn who_vanishes_while_somebody_writes_is_noticed_by_the_kernels_retransmissions() {
    let Some(network) = Network::new() else { return };
    network.at_server(|| {
        let (world, nginx) = node_behind_nginx();
        let (_vanishing, account, mut stays) = two_users(&network, &world, &nginx);
        network.vanish();
        // nginx's kernel takes what no client will read; from the end of the session on, all is stored.
        let (mut texts, mut stored) = ((0..).map(|n| n.to_string()), Vec::new());
        eventually_within(SOON, "messages to be stored", || {
            let text = texts.next().expect("another number");
            if stays.chat(account.id, &text) {
                assert!(stored.is_empty(), "{text} is delivered, behind what was stored");
            } else {
                stored.push(text);
            }
            stored.len() == 5
        });
        let mut back = comes_free(SOON, nginx.address(), &account);
        assert_eq!(back.texts(stored.len()), stored, "nothing that was acked as stored is lost");
        assert!(stays.chat(account.id, "live again"));
        assert_eq!(back.texts(1), ["live again"]);
    });
}

/// How many keepalive probes to the client's machine have gone out without an answer, in this namespace; `None` while
/// the kernel has something else to wait for.
fn unanswered_probes() -> Option<u32> {
    let found = Command::new("ss").args(["-Htno", "state", "established", "dst", "10.77.0.2"]).output();
    let text = String::from_utf8(found.expect("ss, of the package iproute2, can be started").stdout).expect("text");
    // timer:(keepalive,2.5sec,1)
    text.split_once("timer:(keepalive,")?.1.split([',', ')']).nth(1)?.parse().ok()
}

#[test]
fn who_is_silent_may_lose_some_probes_and_who_vanishes_without_nginx_is_noticed_by_the_nodes_own_timeout() {
    let Some(network) = Network::new() else { return };
    network.at_server(|| {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let store = format!("sqlite:{}", folder.path().join("chat.db").display());
        let at = SocketAddr::from((Network::SERVER, 6000));
        let mut server = Command::new(env!("CARGO_BIN_EXE_chat-server"));
        server.args(["--store", &store, "--password-cost", "8,1", &at.ip().to_string(), &at.port().to_string()]);
        let _server = Process(server.stderr(Stdio::null()).spawn().expect("the server can be started"));
        eventually("the server listening", || Client::try_connect(at).is_ok());
        let [(mut vanishing, account), (mut stays, _)] = [true, false].map(|vanishes| {
            let mut client = if vanishes { network.at_client(|| Client::connect(at)) } else { Client::connect(at) };
            let account = client.register(if vanishes { "vanishing" } else { "stays" }, "secret");
            client.login(&account);
            (client, account)
        });
        eventually("the login reply to be acknowledged", || unanswered_probes() == Some(0));
        network.vanish();
        eventually_within(SOON, "three probes to be lost", || unanswered_probes() == Some(3));
        network.come_back();
        eventually_within(SOON, "a probe to be answered", || unanswered_probes() == Some(0));
        assert!(stays.chat(account.id, "still there"));
        assert_eq!(vanishing.texts(1), ["still there"]);

        network.vanish();
        let vanished = Instant::now();
        stays.chat(account.id, "whom nobody hears");
        // 30 s without an answer to what was sent, whatever the kernel is set to.
        let mut back = comes_free(Duration::from_secs(60), at, &account);
        assert!(vanished.elapsed() > Duration::from_secs(20), "by what, after {:?}?", vanished.elapsed());
        assert!(stays.chat(account.id, "live again"));
        assert_eq!(back.texts(1), ["live again"]);
    });
}
