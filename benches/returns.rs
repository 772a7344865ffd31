//! A storm of returns: all clients of a node have lost their connections at once, and come back.
//!
//! `cargo bench --bench returns` starts a server with passwords at their default cost, logs all clients in once,
//! resets all connections, and measures how long it takes until all are logged in again. A client that is refused
//! because its account is still in use, since its last session has not ended yet, tries again; so does one that is
//! asked to come back later.

#[path = "../tests/support/mod.rs"]
mod support;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chat_server::password::Cost;
use clap::Parser;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};
use socket2::SockRef;
use support::{Client, Launch, Server};

const PASSWORD: &str = "correct horse";
/// How many register and log in side by side, before anything is measured.
const SIDE_BY_SIDE: usize = 8;
/// How soon a client tries again if its last session has not ended yet.
const IN_USE_RETRY: Duration = Duration::from_millis(200);
/// How long the clients may take to come back; then those that are not are given up.
const PATIENCE: Duration = Duration::from_secs(600);

/// How long until all clients are back after their connections were cut?
#[derive(Debug, Parser)]
#[command(name = "returns")]
struct Flags {
    #[arg(long, default_value_t = 10_000)]
    users: usize,
    /// How often they are cut off
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    #[arg(long, default_value_t = Cost::default())]
    password_cost: Cost,
    /// The server's: on or off
    #[arg(long, default_value = "on")]
    login_memo: String,
    #[arg(long, default_value_t = 2)]
    reactors: usize,
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Exit status 1 if it takes longer than this, in seconds
    #[arg(long)]
    within: Option<f64>,
    /// Cargo passes it; without it this is a test
    #[arg(long, hide = true)]
    bench: bool,
    /// A moment of it, with few users
    #[arg(long, hide = true)]
    test: bool,
    /// Which benches or tests cargo was asked for
    #[arg(hide = true)]
    filter: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let mut flags = Flags::parse();
    if flags.filter.as_ref().is_some_and(|filter| !"returns".contains(filter.as_str())) {
        return Ok(());
    }
    if flags.test || !flags.bench {
        (flags.users, flags.rounds, flags.password_cost) = (100, 1, "8,1".parse()?);
    }
    rlimit::increase_nofile_limit(u64::MAX)?;
    let folder = tempfile::tempdir()?;
    let mut launch = Launch {
        store: format!("sqlite:{}", folder.path().join("chat.db").display()),
        reactors: flags.reactors,
        workers: flags.workers,
        flags: vec!["--login-memo".to_owned(), flags.login_memo.clone()],
        setup: String::new(),
        port: 0,
    };
    // Registered at no password cost; the first login then hashes each password as it is to be.
    let ids = register(&launch, flags.users)?;
    launch.flags.extend(["--password-cost".to_owned(), flags.password_cost.to_string()]);
    let server = Server::start(&launch);
    let began = Instant::now();
    let mut connections = first_logins(server.address, &ids)?;
    println!("{} users have logged in for the first time, in {:.1} s", ids.len(), began.elapsed().as_secs_f64());
    let mut slowest = Duration::ZERO;
    for round in 1..=flags.rounds {
        let storm = Storm::new(server.address, &ids, connections)?.run()?;
        println!(
            "round {round}: all are back within {:.2} s (half of them within {:.2} s); {} connections, {} times in use, {} times too busy",
            storm.all.as_secs_f64(),
            storm.half.as_secs_f64(),
            storm.connections,
            storm.in_use,
            storm.busy,
        );
        (connections, slowest) = (storm.streams, slowest.max(storm.all));
    }
    if let Some(within) = flags.within {
        ensure!(slowest.as_secs_f64() <= within, "{:.2} s, and not within {within}", slowest.as_secs_f64());
    }
    Ok(())
}

fn register(launch: &Launch, users: usize) -> anyhow::Result<Vec<u64>> {
    let server = Server::start(launch);
    let mut clerks: Vec<Client> = (0..SIDE_BY_SIDE).map(|_| Client::connect(server.address)).collect();
    let mut ids = Vec::with_capacity(users);
    while ids.len() < users {
        let round = (users - ids.len()).min(clerks.len());
        for (n, clerk) in clerks[..round].iter_mut().enumerate() {
            clerk.post(&json!({"msgid": 4, "name": format!("user {}", ids.len() + n), "password": PASSWORD}));
        }
        for clerk in &mut clerks[..round] {
            let reply = clerk.recv();
            ids.push(reply["id"].as_u64().with_context(|| format!("no account: {reply}"))?);
        }
    }
    Ok(ids)
}

fn login_request(id: u64) -> String {
    format!("{{\"msgid\":1,\"id\":{id},\"password\":\"{PASSWORD}\"}}\n")
}

fn first_logins(address: SocketAddr, ids: &[u64]) -> anyhow::Result<Vec<std::net::TcpStream>> {
    let mut streams = Vec::with_capacity(ids.len());
    for some in ids.chunks(SIDE_BY_SIDE) {
        let mut clients: Vec<Client> = some.iter().map(|_| Client::connect(address)).collect();
        clients.iter_mut().zip(some).for_each(|(client, id)| client.send_raw(login_request(*id)));
        for (mut client, id) in clients.into_iter().zip(some) {
            let mut reply = client.recv();
            while reply["errno"] == 20 {
                // The machine is busy with something else.
                client.send_raw(login_request(*id));
                reply = client.recv();
            }
            ensure!(reply["errno"] == 0, "no login: {reply}");
            streams.push(client.stream);
        }
    }
    Ok(streams)
}

/// A client that comes back.
struct Returning {
    id: u64,
    stream: Option<TcpStream>,
    has_asked: bool,
    input: Vec<u8>,
}

/// What became of a storm.
struct Calm {
    all: Duration,
    half: Duration,
    connections: usize,
    in_use: usize,
    busy: usize,
    streams: Vec<std::net::TcpStream>,
}

struct Storm {
    address: SocketAddr,
    poll: Poll,
    clients: Vec<Returning>,
    /// The clients that try again later, with their times.
    later: BinaryHeap<Reverse<(Instant, usize)>>,
    began: Instant,
    back: Vec<Duration>,
    connections: usize,
    in_use: usize,
    busy: usize,
}

impl Storm {
    /// Cuts all connections, and has all clients connect at once.
    fn new(address: SocketAddr, ids: &[u64], cut: Vec<std::net::TcpStream>) -> anyhow::Result<Storm> {
        for stream in &cut {
            SockRef::from(stream).set_linger(Some(Duration::ZERO))?;
        }
        let began = Instant::now();
        drop(cut);
        let client = |&id: &u64| Returning { id, stream: None, has_asked: false, input: Vec::new() };
        Ok(Storm {
            address,
            poll: Poll::new()?,
            clients: ids.iter().map(client).collect(),
            later: (0..ids.len()).map(|at| Reverse((began, at))).collect(),
            began,
            back: Vec::with_capacity(ids.len()),
            connections: 0,
            in_use: 0,
            busy: 0,
        })
    }

    fn run(mut self) -> anyhow::Result<Calm> {
        let mut events = Events::with_capacity(1024);
        while self.back.len() < self.clients.len() {
            let now = Instant::now();
            ensure!(now < self.began + PATIENCE, "only {} of {} are back", self.back.len(), self.clients.len());
            // Only some of them, so that the first reply is read before all have begun.
            for _ in 0..256 {
                match self.later.peek() {
                    Some(Reverse((at, _))) if *at <= now => {}
                    _ => break,
                }
                if let Some(Reverse((_, at))) = self.later.pop() {
                    self.begin(at)?;
                }
            }
            let sleep = self
                .later
                .peek()
                .map_or(Duration::from_millis(100), |Reverse((at, _))| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, Some(sleep)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
                _ => {}
            }
            for event in &events {
                self.advance(event.token().0)?;
            }
        }
        let half = self.back[self.back.len() / 2];
        let all = self.back.last().copied().unwrap_or_default();
        let streams = self.clients.into_iter().filter_map(|client| client.stream).map(into_std).collect();
        Ok(Calm { all, half, connections: self.connections, in_use: self.in_use, busy: self.busy, streams })
    }

    /// Connects, or asks once more on the connection that there is.
    fn begin(&mut self, at: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[at];
        client.has_asked = false;
        if client.stream.is_none() {
            let mut stream = TcpStream::connect(self.address)?;
            self.poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
            client.stream = Some(stream);
            self.connections += 1;
            return Ok(());
        }
        self.advance(at)
    }

    /// Asks once it is connected, and reads what has come.
    fn advance(&mut self, at: usize) -> anyhow::Result<()> {
        let client = &mut self.clients[at];
        let Some(stream) = &mut client.stream else { return Ok(()) };
        if !client.has_asked {
            match stream.write(login_request(client.id).as_bytes()) {
                // So short a text is written whole.
                Ok(_) => client.has_asked = true,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return Ok(()),
                Err(error) => return self.again(at, Duration::from_millis(500), error.into()),
            }
        }
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return self.again(at, Duration::from_millis(500), anyhow::anyhow!("closed")),
                Ok(n) => client.input.extend_from_slice(&chunk[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return self.again(at, Duration::from_millis(500), error.into()),
            }
        }
        if client.input.last() != Some(&b'\n') {
            return Ok(());
        }
        let reply: Value = serde_json::from_slice(&std::mem::take(&mut client.input)).context("one reply")?;
        let now = Instant::now();
        match reply["errno"].as_i64() {
            Some(0) => self.back.push(now - self.began),
            Some(2) => {
                self.in_use += 1;
                self.later.push(Reverse((now + IN_USE_RETRY, at)));
            }
            Some(20) => {
                self.busy += 1;
                let wait = reply["retry_after"].as_u64().context("a time to come back")?;
                self.later.push(Reverse((now + Duration::from_secs(wait), at)));
            }
            _ => bail!("{reply}"),
        }
        Ok(())
    }

    /// A connection that came to nothing.
    fn again(&mut self, at: usize, wait: Duration, why: anyhow::Error) -> anyhow::Result<()> {
        ensure!(self.connections < 20 * self.clients.len(), "nobody gets through: {why}");
        self.clients[at].stream = None;
        self.clients[at].input.clear();
        self.later.push(Reverse((Instant::now() + wait, at)));
        Ok(())
    }
}

fn into_std(stream: TcpStream) -> std::net::TcpStream {
    std::net::TcpStream::from(std::os::fd::OwnedFd::from(stream))
}
