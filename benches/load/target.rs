//! What is put under load: servers that run already, fresh ones, the floor, or a rival.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::dialect::Dialect;
use crate::flags::Flags;
use crate::support::{Launch, MariaDb, Process, Redis, Server};

/// How long the end of a process may take to be seen, once its connections are gone.
const DYING: Duration = Duration::from_secs(1);
/// Of a dead server's log.
const LAST_LINES: usize = 20;

/// Dropping it kills what it has started.
pub struct Target {
    pub name: &'static str,
    pub dialect: Dialect,
    pub addresses: Vec<SocketAddr>,
    /// Whose CPU and memory are measured; may be none.
    pub pids: Vec<u32>,
    parts: Parts,
}

enum Parts {
    /// Somebody else's.
    Foreign,
    /// Our own nodes.
    Nodes(Vec<Server>),
    /// A single program, and where it has its log.
    Program(Process, Option<PathBuf>),
}

/// A fresh target, and what must outlive it.
pub struct Started {
    pub target: Target,
    _redis: Option<Redis>,
    _folder: Option<TempDir>,
}

impl Started {
    fn nodes(nodes: Vec<Server>, redis: Option<Redis>, folder: Option<TempDir>) -> Started {
        let addresses = nodes.iter().map(|node| node.address).collect();
        let pids = nodes.iter().map(|node| node.pid()).collect();
        let (name, dialect, parts) = ("server", Dialect::Chat, Parts::Nodes(nodes));
        Started { target: Target { name, dialect, addresses, pids, parts }, _redis: redis, _folder: folder }
    }

    /// The server that the flags describe.
    pub fn server(flags: &Flags) -> anyhow::Result<Started> {
        if !flags.addr.is_empty() {
            let (addresses, pids) = (flags.addr.clone(), flags.pid.clone());
            let target = Target { name: "server", dialect: Dialect::Chat, addresses, pids, parts: Parts::Foreign };
            return Ok(Started { target, _redis: None, _folder: None });
        }
        let mut launch = Launch {
            store: String::new(),
            reactors: flags.reactors(),
            workers: flags.workers(),
            flags: vec!["--password-cost".to_owned(), flags.password_cost.clone()],
            setup: "export RUST_LOG=info".to_owned(),
            port: 0,
        };
        if flags.nodes == 1 {
            let folder = tempfile::tempdir()?;
            launch.store = format!("sqlite:{}", folder.path().join("chat.db").display());
            return Ok(Started::nodes(vec![Server::start(&launch)], None, Some(folder)));
        }
        need("mariadbd", "mariadb-server")?;
        need("redis-server", "redis-server")?;
        let (mariadb, redis) = (MariaDb::shared(), Redis::start());
        launch.store = mariadb.url(&mariadb.new_database());
        launch.flags.extend(["--redis".to_owned(), redis.url()]);
        let nodes = (0..flags.nodes).map(|_| Server::start(&launch)).collect();
        Ok(Started::nodes(nodes, Some(redis), None))
    }

    /// This program once more, as the floor.
    pub fn floor() -> anyhow::Result<Started> {
        let mut child = Command::new(std::env::current_exe()?).arg("--relay").stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("stdout is piped")?;
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, line.trim().parse().context("the floor has no port")?));
        Ok(Started::program("floor", Dialect::Chat, address, process, None))
    }

    /// A server program that listens, and logs into `log.txt` of this folder.
    pub fn program(
        name: &'static str,
        dialect: Dialect,
        address: SocketAddr,
        process: Process,
        folder: Option<TempDir>,
    ) -> Started {
        let log = folder.as_ref().map(|folder| log_in(folder.path()));
        let pids = vec![process.pid()];
        let parts = Parts::Program(process, log);
        let target = Target { name, dialect, addresses: vec![address], pids, parts };
        Started { target, _redis: None, _folder: folder }
    }
}

fn log_in(folder: &Path) -> PathBuf {
    folder.join("log.txt")
}

/// Where a program's output is to go, so that it can be shown.
pub fn log_file(folder: &Path) -> anyhow::Result<(File, File)> {
    let file = File::create(log_in(folder))?;
    Ok((file.try_clone()?, file))
}

pub fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut folders = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    folders.any(|folder| Path::new(folder).join(program).is_file())
}

/// # Errors
/// The program is not installed; the message names the package that has it.
pub fn need(program: &str, package: &str) -> anyhow::Result<()> {
    if is_installed(program) {
        return Ok(());
    }
    bail!("{program} is not installed: apt-get install {package}")
}

impl Target {
    /// What can be said of a target that has failed: who has ended, how, and what was logged last.
    pub fn last_words(&mut self) -> String {
        let pids = std::mem::take(&mut self.pids);
        match &mut self.parts {
            Parts::Foreign => {
                let gone = pids.iter().filter(|pid| !Path::new(&format!("/proc/{pid}")).exists());
                gone.map(|pid| format!("process {pid} has ended\n")).collect()
            }
            Parts::Nodes(nodes) => {
                let words = nodes.iter_mut().map(|node| {
                    let (pid, state) = (node.pid(), state(node));
                    format!("server process {pid} {state}; its log ends with\n{}", tail(&node.log_tail()))
                });
                words.collect()
            }
            Parts::Program(process, log) => {
                let text = log.as_ref().and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default();
                let (name, pid, state) = (self.name, process.pid(), state(process));
                format!("{name}, process {pid}, {state}; its log ends with\n{}", tail(&text))
            }
        }
    }
}

/// Its exit status, or that it is alive. A process that is dying is given the time.
fn state(process: &mut Process) -> String {
    let deadline = Instant::now() + DYING;
    while process.is_alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    match process.0.try_wait() {
        Ok(Some(status)) => format!("has ended ({status})"),
        _ => "is alive".to_owned(),
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| format!("    {}\n", line.trim())).collect()
}
