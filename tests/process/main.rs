//! The server and the client as processes: C++ clients, what each signal does, a log that no process reads, outputs
//! that are closed, flags at their bounds, addresses with passwords, and the error of a start that fails.

#[path = "../support/mod.rs"]
mod support;

mod cpp_clients;
mod families;
mod flags;
mod log;
mod outputs;
mod secrets;
mod signals;
mod starts;

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use support::{Client, Process};
use tempfile::TempDir;

const CHAT_SERVER: &str = env!("CARGO_BIN_EXE_chat-server");

/// Either program, without the settings in the environment of the test run.
fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CHAT_") || name.starts_with("RUST_")) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

/// A shell that does `setup` and then becomes the server, on a store of its own in `dir`.
fn server_after(setup: &str, dir: &TempDir, words: &[&str]) -> Command {
    let mut command = program("bash");
    command.arg("-c").arg(format!("{setup}\nexec \"$0\" \"$@\"")).arg(CHAT_SERVER);
    if !words.contains(&"--store") {
        command.args(["--store", &store_in(dir)]);
    }
    if !words.contains(&"--password-cost") {
        command.args(["--password-cost", "8,1"]);
    }
    command.args(words);
    command
}

fn store_in(dir: &TempDir) -> String {
    format!("sqlite:{}", dir.path().join("chat.db").display())
}

/// Runs to the end, which must come.
#[track_caller]
fn outcome(mut command: Command) -> (ExitStatus, String) {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process(command.spawn().unwrap());
    let (stdout, stderr) = (process.0.stdout.take().unwrap(), process.0.stderr.take().unwrap());
    let texts = [thread::spawn(|| all(stdout)), thread::spawn(|| all(stderr))];
    let status = process.wait();
    (status, texts.map(|text| text.join().unwrap()).concat())
}

fn all(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A server that runs, on a store of its own, and what it logs.
struct Running {
    process: Process,
    address: SocketAddr,
    log: thread::JoinHandle<String>,
    dir: TempDir,
}

impl Running {
    /// At an address of 127.0.0.1.
    fn start(setup: &str, flags: &[&str]) -> Running {
        Running::at(setup, flags, &["127.0.0.1", "0"])
    }

    #[track_caller]
    fn at(setup: &str, flags: &[&str], place: &[&str]) -> Running {
        let dir = tempfile::tempdir().unwrap();
        Running::spawn(server_after(setup, &dir, &[flags, place].concat()), dir)
    }

    /// Starts the server by a command of [`server_after`].
    #[track_caller]
    fn spawn(mut command: Command, dir: TempDir) -> Running {
        let mut process = Process(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
        let mut log = BufReader::new(process.0.stderr.take().unwrap());
        let mut seen = String::new();
        let port = loop {
            let from = seen.len();
            assert!(log.read_line(&mut seen).unwrap() > 0, "it does not start: {command:?}: {seen}");
            let place = seen[from..].split_once("listening on ").and_then(|(_, rest)| rest.split(';').next());
            if let Some(address) = place {
                break address.parse::<SocketAddr>().unwrap().port();
            }
        };
        let log = thread::spawn(move || seen + &all(log));
        Running { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), log, dir }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    #[track_caller]
    fn online(&self, name: &str) -> Client {
        let mut client = self.client();
        let account = client.register(name, "secret");
        client.login(&account);
        client
    }

    /// Its end after a signal, and its whole log.
    #[track_caller]
    fn end(mut self, signal: &str) -> (ExitStatus, String) {
        let status = self.process.stop(signal);
        (status, self.log.join().unwrap())
    }
}

/// How many accounts are online in the store of a server.
fn online_in(dir: &TempDir) -> i64 {
    let database = rusqlite::Connection::open(dir.path().join("chat.db")).unwrap();
    database.query_row("SELECT COUNT(*) FROM User WHERE state = 'online'", (), |row| row.get(0)).unwrap()
}
