//! A program that is started here, listens on 127.0.0.1, and ends with this one.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::ending::{self, Owned, is_installed};
use crate::pace;

/// How long the end of a process may take to be seen, once its connections are gone.
const DYING: Duration = Duration::from_secs(1);
pub const STARTING: Duration = Duration::from_secs(30);
/// The number of lines that are shown of a dead program's log.
const LAST_LINES: usize = 20;

/// In its folder is its log.
pub struct Program {
    pub process: Owned,
    pub folder: TempDir,
    pub address: SocketAddr,
    /// What has started it, and can do so again.
    pub command: Command,
}

/// How it is known that a program can be used.
#[derive(Debug, Clone, Copy)]
pub enum Ready {
    /// It accepts a connection.
    Accepts,
    /// Its log says so.
    Says(&'static str),
}

impl Program {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The address that follows these words in its log, the last time that they stand there.
    pub fn logged(&self, words: &str) -> Option<SocketAddr> {
        let log = log_of(self.folder.path());
        let (_, rest) = log.rsplit_once(words)?;
        rest.split(|c: char| c == '/' || c.is_whitespace()).next()?.parse().ok()
    }

    /// The processes of the session that it has begun.
    pub fn session(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_of_it = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // state, parent, group, session
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            rest.split_whitespace().nth(3).and_then(|session| session.parse().ok()) == Some(self.pid())
        };
        let mut pids: Vec<u32> = pids.filter(is_of_it).collect();
        if pids.is_empty() {
            pids.push(self.pid());
        }
        pids
    }

    /// How it has ended, if it has, and what it has logged last.
    pub fn last_words(&mut self, name: &str) -> String {
        let (pid, log) = (self.pid(), log_of(self.folder.path()));
        let process = &mut self.process.0;
        let deadline = Instant::now() + DYING;
        while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let state = match process.try_wait() {
            Ok(Some(status)) => format!("has ended ({status})"),
            _ => "is alive".to_owned(),
        };
        format!("{name} process {pid} {state}; its log ends with\n{}", tail(&log))
    }

    /// Is it ready, as far as it is known?
    fn is(&self, ready: Ready) -> anyhow::Result<bool> {
        match ready {
            Ready::Says(words) => Ok(log_of(self.folder.path()).contains(words)),
            Ready::Accepts => {
                let Ok(mut stream) = TcpStream::connect(self.address) else { return Ok(false) };
                // The C++ server takes the end of a connection badly when others come beside it.
                stream.set_read_timeout(Some(Duration::from_millis(100)))?;
                pace::farewell(false, &mut stream, TcpStream::shutdown);
                Ok(true)
            }
        }
    }
}

/// Starts a program on a port that is free now, until it is ready. `command` gets the folder and the address.
pub fn start(
    name: &str,
    ready: Ready,
    command: impl Fn(&Path, SocketAddr) -> anyhow::Result<Command>,
) -> anyhow::Result<Program> {
    let mut tries = 3;
    loop {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let (stdout, stderr) = open_log(folder.path())?;
        let mut command = command(folder.path(), address)?;
        let deadline = Instant::now() + STARTING;
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
        let process = Owned::new(child.with_context(|| format!("{name} cannot be started"))?);
        let mut program = Program { process, folder, address, command };
        while program.process.is_alive() && Instant::now() < deadline && ending::signal().is_none() {
            if program.is(ready)? {
                return Ok(program);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Another process may have been faster with the port.
        tries -= 1;
        if tries == 0 || ending::signal().is_some() || program.process.is_alive() {
            bail!("{name} does not listen on {address}:\n{}", tail(&log_of(program.folder.path())));
        }
        std::thread::sleep(Duration::from_millis(100));
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

fn log_of(folder: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(log_in(folder)).unwrap_or_default()).into_owned()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| format!("    {}\n", line.trim())).collect()
}

/// # Errors
/// The program is not installed; the message names the package that has it.
pub fn need(program: &str, package: &str) -> anyhow::Result<()> {
    if is_installed(program) {
        return Ok(());
    }
    bail!("{program} is not installed: apt-get install {package}")
}
