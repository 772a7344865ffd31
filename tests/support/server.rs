use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::process::{Process, is_a_process};
use super::{DEADLINE, eventually};

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Launch {
    /// `--store`.
    pub store: String,
    pub reactors: usize,
    pub workers: usize,
    /// Further flags. Passwords are cheap, unless `--password-cost` is among them.
    pub flags: Vec<String>,
    /// Shell commands to run before, in the same process: `ulimit -n 64`, `export A=b`.
    pub setup: String,
    /// 0 lets the system choose.
    pub port: u16,
}

impl Launch {
    fn command(&self) -> Command {
        // `exec` keeps the pid, so that signals and /proc reach the server itself.
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{}\nexec \"$0\" \"$@\"", self.setup));
        command.arg(env!("CARGO_BIN_EXE_chat-server"));
        command.args(["--store", &self.store]);
        if !self.flags.iter().any(|flag| flag == "--password-cost") {
            command.args(["--password-cost", "8,1"]);
        }
        command.args(["--reactors", &self.reactors.to_string(), "--workers", &self.workers.to_string()]);
        command.args(&self.flags).arg("127.0.0.1").arg(self.port.to_string());
        // The environment of the test run must not change what the tests see.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CHAT_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// The last lines a server has logged.
type LogTail = Arc<Mutex<VecDeque<String>>>;

/// A server as a child process. Dropping it kills it.
#[derive(Debug)]
pub struct Server {
    process: Process,
    pub address: SocketAddr,
    log: LogTail,
    /// The port of each line that has been logged and tells one. It ends with the log.
    listening: Receiver<u16>,
}

impl Server {
    /// Starts a server and waits until it listens. A fixed port may still be held by the server
    /// that a test has just killed, so that is tried again.
    pub fn start(launch: &Launch) -> Server {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Server::try_start(launch) {
                Ok(server) => return server,
                Err(log) if launch.port == 0 || Instant::now() > deadline => {
                    panic!("the server did not start: {launch:?}\n{log}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn try_start(launch: &Launch) -> Result<Server, String> {
        let mut child = launch.command().spawn().expect("sh can be started");
        let log = LogTail::default();
        let (ports, listening) = crossbeam_channel::unbounded();
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let tail = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let port = port_in(&line);
                let mut tail = tail.lock().unwrap();
                if tail.len() == 200 {
                    tail.pop_front();
                }
                tail.push_back(line);
                // Whoever is told of the port finds its line in the log.
                if let Some(port) = port {
                    let _ = ports.send(port);
                }
            }
        });
        let port = listening.recv_timeout(DEADLINE);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
        let server = Server { process: Process(child), address, log, listening };
        if port.is_ok() { Ok(server) } else { Err(server.log_tail()) }
    }

    /// Sends TERM or INT and waits for the exit.
    #[track_caller]
    pub fn stop(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Waits for the exit; all that the server has logged can be read behind this.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.process.wait();
        eventually("the end of the log", || {
            matches!(self.listening.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected))
        });
        status
    }

    /// What has come of the log: all that stood before a line which a test has waited for, all behind [`Server::wait`].
    pub fn log_tail(&self) -> String {
        let tail = self.log.lock().unwrap();
        tail.iter().map(|line| format!("    {line}\n")).collect()
    }

    /// The address of its first `--listen`, which must be of 127.0.0.1.
    #[track_caller]
    pub fn further_address(&self) -> SocketAddr {
        self.further_addresses(1)[0]
    }

    /// The same of the first `count`.
    #[track_caller]
    pub fn further_addresses(&self, count: usize) -> Vec<SocketAddr> {
        let ports = || -> Vec<u16> { self.log_tail().lines().filter_map(port_in).skip(1).collect() };
        eventually("the further listeners", || ports().len() >= count);
        ports().into_iter().take(count).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect()
    }

    /// Where its metrics are.
    #[track_caller]
    pub fn monitor(&self) -> SocketAddr {
        let log = self.log_tail();
        let (_, rest) = log.split_once("metrics on http://").expect("it serves metrics");
        rest.split('/').next().and_then(|address| address.parse().ok()).expect("an address")
    }

    /// How many descriptors the server holds.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("the server lives").count()
    }

    /// The processor time of all its threads that run, user and system.
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the server lives");
        let run = |task: std::io::Result<std::fs::DirEntry>| {
            let times = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            times.split_whitespace().next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.filter_map(run).sum())
    }

    /// The memory that the server has allocated and that is resident, in KiB. Pages of its program's file come and go
    /// as the system likes.
    pub fn resident_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server lives");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("RssAnon");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The memory that the kernel may fill with huge pages though only some of it is in use, in KiB.
    pub fn may_be_huge_kib(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid())).expect("the server lives");
        let (mut all, mut size, mut is_private) = (0, 0, false);
        for line in maps.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [_, permissions, _, _, "0"] => is_private = permissions.ends_with('p'),
                [_, _, _, _, _, _] => is_private = false,
                ["Size:", kib, "kB"] => size = kib.parse().expect("a number"),
                ["VmFlags:", ref flags @ ..] if is_private && !flags.contains(&"nh") => all += size,
                _ => {}
            }
        }
        all
    }

    /// Where the resident memory is: a line for each part of its address space that has some.
    pub fn residents(&self) -> String {
        let maps = std::fs::read_to_string(format!("/proc/{}/smaps", self.pid())).expect("the server lives");
        let mut residents = String::new();
        let mut place = "";
        for line in maps.lines() {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["Anonymous:", kib, "kB"] if kib != "0" => residents += &format!("{kib:>8} KiB in {place}\n"),
                [name, ..] if !name.ends_with(':') => place = line,
                _ => {}
            }
        }
        residents
    }
}

is_a_process!(Server);

/// The port in `… listening on 127.0.0.1:PORT …`.
fn port_in(line: &str) -> Option<u16> {
    let rest = line.split("listening on 127.0.0.1:").nth(1)?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Starts a server that is expected to refuse, and returns what it said. One that listens instead
/// fails the test.
#[track_caller]
pub fn refused_start(launch: &Launch) -> Output {
    let mut child = launch.command().spawn().expect("sh can be started");
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().expect("a child can be waited for").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("still running: {launch:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output can be read")
}
