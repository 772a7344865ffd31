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
    /// Our own nodes, and what they stand on.
    Nodes { servers: Vec<Server>, _redis: Option<Redis>, _folder: Option<TempDir> },
    /// A single program. In its folder, if it has one, is its log.
    Program { process: Process, folder: Option<TempDir> },
}

impl Target {
    /// The servers that the flags describe.
    pub fn server(flags: &Flags) -> anyhow::Result<Target> {
        if !flags.addr.is_empty() {
            let (addresses, pids, parts) = (flags.addr.clone(), flags.pid.clone(), Parts::Foreign);
            return Ok(Target { name: "server", dialect: Dialect::Chat, addresses, pids, parts });
        }
        let mut launch = Launch {
            store: String::new(),
            reactors: flags.reactors(),
            workers: flags.workers(),
            flags: vec!["--password-cost".to_owned(), flags.password_cost.clone()],
            setup: "export RUST_LOG=info".to_owned(),
            port: 0,
        };
        let (mut folder, mut redis) = (None, None);
        if flags.nodes == 1 {
            let folder = folder.insert(tempfile::tempdir()?);
            launch.store = format!("sqlite:{}", folder.path().join("chat.db").display());
        } else {
            need("mariadbd", "mariadb-server")?;
            need("redis-server", "redis-server")?;
            let mariadb = MariaDb::shared();
            launch.store = mariadb.url(&mariadb.new_database());
            launch.flags.extend(["--redis".to_owned(), redis.insert(Redis::start()).url()]);
        }
        let servers: Vec<Server> = (0..flags.nodes).map(|_| Server::start(&launch)).collect();
        Ok(Target {
            name: "server",
            dialect: Dialect::Chat,
            addresses: servers.iter().map(|server| server.address).collect(),
            pids: servers.iter().map(|server| server.pid()).collect(),
            parts: Parts::Nodes { servers, _redis: redis, _folder: folder },
        })
    }

    /// This program once more, as the floor.
    pub fn floor() -> anyhow::Result<Target> {
        let mut child = Command::new(std::env::current_exe()?).arg("--relay").stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("stdout is piped")?;
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port: u16 = line.trim().parse().context("the floor has no port")?;
        Ok(Target::program("floor", Dialect::Chat, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), process, None))
    }

    /// A server program that listens. Its folder has its log.
    pub fn program(
        name: &'static str,
        dialect: Dialect,
        address: SocketAddr,
        process: Process,
        folder: Option<TempDir>,
    ) -> Target {
        let (addresses, pids) = (vec![address], vec![process.pid()]);
        Target { name, dialect, addresses, pids, parts: Parts::Program { process, folder } }
    }

    /// What can be said of a target that has failed: who has ended, how, and what was logged last.
    pub fn last_words(&mut self) -> String {
        match &mut self.parts {
            Parts::Foreign => {
                let gone = self.pids.iter().filter(|pid| !Path::new(&format!("/proc/{pid}")).exists());
                gone.map(|pid| format!("process {pid} has ended\n")).collect()
            }
            Parts::Nodes { servers, .. } => {
                let words = servers.iter_mut().map(|server| {
                    let (pid, state) = (server.pid(), state(server));
                    format!("server process {pid} {state}; its log ends with\n{}", tail(&server.log_tail()))
                });
                words.collect()
            }
            Parts::Program { process, folder } => {
                let log = folder.as_ref().map(|folder| log_of(folder.path())).unwrap_or_default();
                let (name, pid, state) = (self.name, process.pid(), state(process));
                format!("{name} process {pid} {state}; its log ends with\n{}", tail(&log))
            }
        }
    }
}

fn log_in(folder: &Path) -> PathBuf {
    folder.join("log.txt")
}

/// Where a program's output is to go, so that it can be shown: stdout and stderr.
pub fn open_log(folder: &Path) -> std::io::Result<(File, File)> {
    let file = File::create(log_in(folder))?;
    Ok((file.try_clone()?, file))
}

pub fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(log_in(folder)).unwrap_or_default()
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
