//! What is put under load: servers that run already, fresh ones, the floor, or a rival.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chat_server::home::Homes;
use tempfile::TempDir;

use crate::dialect::{Capabilities, Dialect};
use crate::ending::{self, Owned, apart, is_installed};
use crate::flags::Flags;
use crate::machine;
use crate::pace;
use crate::support::{Launch, MariaDb, Server};

/// How long the end of a process may take to be seen, once its connections are gone.
const DYING: Duration = Duration::from_secs(1);
const STARTING: Duration = Duration::from_secs(15);
/// The number of lines that are shown of a dead server's log.
const LAST_LINES: usize = 20;
/// Given to every server that takes one, so that it is known which reactor each user belongs to.
const HOME_SEED: u64 = 1;
/// The server of this build.
pub const OURS: &str = env!("CARGO_BIN_EXE_chat-server");

/// Dropping it kills what it has started.
pub struct Target {
    pub name: String,
    pub servers: Vec<Endpoint>,
    /// The processes that are measured for CPU and memory; may be none.
    pub processes: Vec<Processes>,
    /// It was not started here, and stays.
    pub is_foreign: bool,
    /// What it speaks has not been found out yet.
    pub is_unknown: bool,
    /// The reactor that each user belongs to, by server; `None`: that depends on the connection, or is unknown.
    pub homes: Option<Homes>,
    keep: Keep,
}

#[derive(Debug, Clone, Copy)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub dialect: Dialect,
}

/// The processes of one name: "server", "redis".
#[derive(Debug, Clone)]
pub struct Processes {
    pub name: String,
    pub pids: Vec<u32>,
}

enum Keep {
    /// The processes were not started here, and are left alone.
    Foreign,
    /// Our own nodes, and what they stand on.
    Nodes {
        servers: Vec<Server>,
        _redis: Option<Program>,
        _folder: Option<TempDir>,
    },
    Program(Program),
}

/// A program that listens. In its folder is its log.
pub struct Program {
    process: Owned,
    folder: TempDir,
    pub address: SocketAddr,
}

impl Target {
    /// The servers that the flags describe.
    pub fn server(flags: &Flags) -> anyhow::Result<Target> {
        if flags.addr.is_empty() {
            return Target::fresh(flags, "server", Path::new(OURS));
        }
        let mut processes: Vec<Processes> = Vec::new();
        for named in &flags.pid {
            ensure!(machine::is_alive(named.pid), "--pid {}: there is no such process", named.pid);
            match processes.iter_mut().find(|of| of.name == named.name) {
                Some(of) => of.pids.push(named.pid),
                None => processes.push(Processes { name: named.name.clone(), pids: vec![named.pid] }),
            }
        }
        let dialect = Dialect::Chat(Capabilities::OURS);
        Ok(Target {
            name: "server".to_owned(),
            servers: flags.addresses()?.into_iter().map(|address| Endpoint { address, dialect }).collect(),
            processes,
            is_foreign: true,
            is_unknown: true,
            homes: None,
            keep: Keep::Foreign,
        })
    }

    /// Servers of this binary, and what they stand on.
    pub fn fresh(flags: &Flags, name: &str, binary: &Path) -> anyhow::Result<Target> {
        // The server replaces the shell that starts it, so that a signal at the terminal does not reach it.
        let start = format!("export RUST_LOG=info\nexec {}\"{}\" \"$@\"", ending::launcher(true), binary.display());
        let mut launch = Launch {
            store: String::new(),
            reactors: flags.reactors(),
            workers: flags.workers(),
            flags: vec!["--password-cost".to_owned(), flags.password_cost().to_owned()],
            setup: start,
            port: 0,
        };
        let homes = has_homes(binary)?.then(|| Homes::new(HOME_SEED, flags.reactors()));
        if homes.is_some() {
            launch.flags.extend(["--home-seed".to_owned(), HOME_SEED.to_string()]);
        }
        let (mut folder, mut redis, mut beside) = (None, None, Vec::new());
        if flags.nodes() == 1 {
            let folder = folder.insert(tempfile::tempdir()?);
            launch.store = format!("sqlite:{}", folder.path().join("chat.db").display());
        } else {
            need("mariadbd", "mariadb-server")?;
            let mariadb = MariaDb::shared();
            ending::adopt(mariadb.pid());
            launch.store = mariadb.url(&mariadb.new_database());
            let redis = redis.insert(start_redis()?);
            launch.flags.extend(["--redis".to_owned(), format!("redis://{}", redis.address)]);
            beside.push(Processes { name: "mariadb".to_owned(), pids: vec![mariadb.pid()] });
            beside.push(Processes { name: "redis".to_owned(), pids: vec![redis.process.pid()] });
        }
        let servers: Vec<Server> = (0..flags.nodes()).map(|_| Server::start(&launch)).collect();
        servers.iter().for_each(|server| ending::adopt(server.pid()));
        let dialect = Dialect::Chat(Capabilities::OURS);
        let mut processes =
            vec![Processes { name: name.to_owned(), pids: servers.iter().map(|server| server.pid()).collect() }];
        processes.extend(beside);
        Ok(Target {
            name: name.to_owned(),
            servers: servers.iter().map(|server| Endpoint { address: server.address, dialect }).collect(),
            processes,
            is_foreign: false,
            is_unknown: false,
            homes,
            keep: Keep::Nodes { servers, _redis: redis, _folder: folder },
        })
    }

    /// This program once more, as the floor.
    pub fn floor() -> anyhow::Result<Target> {
        let own = std::env::current_exe()?;
        let folder = tempfile::tempdir()?;
        let mut command = apart(&own.display().to_string(), true);
        let mut child = command.arg("--relay").stdout(Stdio::piped()).stderr(open_log(folder.path())?.1).spawn()?;
        let output = child.stdout.take().context("stdout is piped")?;
        let process = Owned::new(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port: u16 = line.trim().parse().context("the floor has no port")?;
        let program = Program { process, folder, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) };
        Ok(Target::program("floor", Dialect::Chat(Capabilities::FLOOR), program))
    }

    pub fn program(name: &str, dialect: Dialect, program: Program) -> Target {
        // All that it may have started, too: they share its session.
        let pids = session(program.process.pid());
        Target {
            name: name.to_owned(),
            servers: vec![Endpoint { address: program.address, dialect }],
            processes: vec![Processes { name: name.to_owned(), pids }],
            is_foreign: false,
            is_unknown: false,
            homes: None,
            keep: Keep::Program(program),
        }
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().flat_map(|of| of.pids.iter().copied())
    }

    pub fn is_sturdy(&self) -> bool {
        self.servers.iter().all(|server| server.dialect.is_sturdy())
    }

    /// Which of its processes have ended.
    pub fn ended(&self) -> Option<u32> {
        self.pids().find(|&pid| !machine::is_alive(pid))
    }

    /// What can be said of a target that has failed: which process has ended, how, and what was logged last.
    pub fn last_words(&mut self) -> String {
        match &mut self.keep {
            Keep::Foreign => {
                let gone = self.processes.iter().flat_map(|of| &of.pids).filter(|&&pid| !machine::is_alive(pid));
                gone.map(|pid| format!("process {pid} has ended\n")).collect()
            }
            Keep::Nodes { servers, .. } => {
                let words = servers.iter_mut().map(|server| {
                    let (pid, state) = (server.pid(), state(&mut server.0));
                    format!("server process {pid} {state}; its log ends with\n{}", tail(&server.log_tail()))
                });
                words.collect()
            }
            Keep::Program(program) => {
                let log = log_of(program.folder.path());
                let (name, pid, state) = (&self.name, program.process.pid(), state(&mut program.process.0));
                format!("{name} process {pid} {state}; its log ends with\n{}", tail(&log))
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Keep::Nodes { servers, .. } = &mut self.keep {
            for server in servers {
                server.kill();
                ending::release(server.pid());
            }
        }
    }
}

/// Does this server decide by a user's id where the user belongs? An earlier one, which gives its reactors the
/// connections in turn, knows no such flag, and refuses it before it does anything else.
fn has_homes(binary: &Path) -> anyhow::Result<bool> {
    let mut command = apart(&binary.display().to_string(), true);
    command.args(["--home-seed", "0", "--help"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("{} cannot be started", binary.display()))?;
    let (mut process, deadline) = (Owned::new(child), Instant::now() + STARTING);
    loop {
        if let Some(status) = process.0.try_wait()? {
            return Ok(status.success());
        }
        ensure!(Instant::now() < deadline, "{} does not end when it is asked for help", binary.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts a program on a port that is free now, until it listens there. `command` gets the folder and the address.
pub fn start_program(
    name: &str,
    command: impl Fn(&Path, SocketAddr) -> anyhow::Result<Command>,
) -> anyhow::Result<Program> {
    let mut tries = 3;
    loop {
        let deadline = Instant::now() + STARTING;
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (stdout, stderr) = open_log(folder.path())?;
        let mut command = command(folder.path(), address)?;
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
        let mut process = Owned::new(child.with_context(|| format!("{name} cannot be started"))?);
        while process.is_alive() && Instant::now() < deadline && ending::signal().is_none() {
            if let Ok(mut stream) = TcpStream::connect(address) {
                // The C++ server takes the end of a connection badly when others come beside it.
                stream.set_read_timeout(Some(Duration::from_millis(100)))?;
                pace::farewell(false, &mut stream, TcpStream::shutdown);
                return Ok(Program { process, folder, address });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Another process may have been faster with the port.
        tries -= 1;
        if tries == 0 || ending::signal().is_some() || process.is_alive() {
            bail!("{name} does not listen on {address}:\n{}", tail(&log_of(folder.path())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn start_redis() -> anyhow::Result<Program> {
    need("redis-server", "redis-server")?;
    start_program("redis", |folder, address| {
        let mut command = apart("redis-server", true);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
        command.args(["--appendonly", "no", "--dir"]).arg(folder);
        Ok(command)
    })
}

/// The processes of the session that this one has begun.
fn session(first: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_of_it = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // state, parent, group, session
        let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        rest.split_whitespace().nth(3).and_then(|session| session.parse().ok()) == Some(first)
    };
    let mut pids: Vec<u32> = pids.filter(is_of_it).collect();
    if pids.is_empty() {
        pids.push(first);
    }
    pids
}

fn log_in(folder: &Path) -> PathBuf {
    folder.join("log.txt")
}

/// Where a program's output is to go, so that it can be shown: stdout and stderr.
fn open_log(folder: &Path) -> std::io::Result<(File, File)> {
    let file = File::create(log_in(folder))?;
    Ok((file.try_clone()?, file))
}

fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(log_in(folder)).unwrap_or_default()
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
fn state(process: &mut std::process::Child) -> String {
    let deadline = Instant::now() + DYING;
    while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    match process.try_wait() {
        Ok(Some(status)) => format!("has ended ({status})"),
        _ => "is alive".to_owned(),
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| format!("    {}\n", line.trim())).collect()
}
