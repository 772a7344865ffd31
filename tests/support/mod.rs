//! What every test of the server over real sockets stands on: a [`Server`] as a child process,
//! a blocking [`Client`], and the [`World`] that a test gets its clients from, so that it need not
//! know how many nodes, reactors and databases are below.
//!
//! Nothing here sleeps for a time: everything waits for a condition, with a [`DEADLINE`].

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]

mod cable;
mod chat_client;
mod client;
mod cluster;
mod cpp_node;
mod mariadb;
mod network;
mod nginx;
mod process;
mod redis;
mod rng;
mod server;
mod world;

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

pub use self::redis::Redis;
pub use cable::{Cable, Line, Verdict, Way, contains};
pub use chat_client::{CHAT_CLIENT, ChatClient, script};
pub use client::{Account, Client, Ending, listed, login, parse, strings, text_of};
pub use cluster::Cluster;
pub use cpp_node::{COPY, CppClient, CppNode, Kind, REFERENCE};
pub use mariadb::MariaDb;
pub use network::Network;
pub use nginx::{Identity, Nginx, NginxOptions, nginx_in};
pub use process::Process;
pub use rng::Rng;
pub use server::{Launch, Server, refused_start};
pub use world::{Config, REAPED, StoreKind, World};

/// How long a test waits for what must come. Generous, because test machines are noisy.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until `condition` holds; `what` says what was waited for in vain.
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(DEADLINE, what, condition);
}

/// The same, for what takes its time.
#[track_caller]
pub fn eventually_within(time: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + time;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain for {time:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port that is free at the moment. A test that starts a server on it must be ready to try another.
pub fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

/// Several of them, of which no two are the same.
pub fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = [(); COUNT].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("an address").port())
}
