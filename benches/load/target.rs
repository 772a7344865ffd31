//! What is put under load: a server that runs already, a fresh one, or the floor.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// Of the clock in which /proc counts CPU time; the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Dropping it kills what it has started.
pub struct Target {
    pub addresses: Vec<SocketAddr>,
    /// Whose CPU and memory are measured; may be none.
    pub pids: Vec<u32>,
    child: Option<Child>,
    _folder: Option<TempDir>,
}

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn of(process: &str) -> io::Result<Cpu> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may hold blanks: count from the parenthesis that ends it.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Cpu { user: ticks(11) / TICKS_PER_SECOND, system: ticks(12) / TICKS_PER_SECOND })
    }

    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu { user: self.user - earlier.user, system: self.system - earlier.system }
    }

    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

impl Target {
    pub fn running(addresses: Vec<SocketAddr>, pids: Vec<u32>) -> Target {
        Target { addresses, pids, child: None, _folder: None }
    }

    /// A fresh server with an empty SQLite store in a folder of its own.
    pub fn server(flags: &[String]) -> anyhow::Result<Target> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_chat-server"));
        command.arg("--store").arg(format!("sqlite:{}", folder.path().join("chat.db").display()));
        command.args(flags).args(["127.0.0.1", "0"]).env("RUST_LOG", "info").stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = child.stderr.take().context("stderr is piped")?;
        let mut target =
            Target { addresses: vec![], pids: vec![child.id()], child: Some(child), _folder: Some(folder) };
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        let mut seen = Vec::new();
        let port = loop {
            let Some(line) = lines.next() else { bail!("the server did not start:\n{}", seen.join("\n")) };
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                break rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?;
            }
            seen.push(line);
        };
        // The log is read on, so that the server never waits for its reader.
        std::thread::spawn(move || lines.for_each(drop));
        target.addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))];
        Ok(target)
    }

    /// This program once more, as the floor.
    pub fn floor() -> anyhow::Result<Target> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.arg("--relay").stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("stdout is piped")?;
        let mut target = Target { addresses: vec![], pids: vec![child.id()], child: Some(child), _folder: None };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        target.addresses = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, line.trim().parse()?))];
        Ok(target)
    }

    /// Over all processes.
    pub fn cpu(&self) -> io::Result<Cpu> {
        self.pids.iter().try_fold(Cpu::default(), |sum, pid| {
            let cpu = Cpu::of(&pid.to_string())?;
            Ok(Cpu { user: sum.user + cpu.user, system: sum.system + cpu.system })
        })
    }

    /// Over all processes, in KiB.
    pub fn resident(&self) -> io::Result<u64> {
        self.pids.iter().try_fold(0, |sum, pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
            Ok(sum + line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0))
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
