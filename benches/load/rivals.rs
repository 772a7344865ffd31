//! Other servers that pass messages on, from Debian's packages, with everything that would slow
//! them down turned off.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::ValueEnum;

use crate::dialect::Dialect;
use crate::support::Process;
use crate::target::{Target, is_installed, log_of, need, open_log};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Rival {
    /// An IRC server: PRIVMSG
    Inspircd,
    /// A message broker: PUB and SUB
    Nats,
}

impl Rival {
    fn name(self) -> &'static str {
        match self {
            Rival::Inspircd => "inspircd",
            Rival::Nats => "nats",
        }
    }

    /// Its program, which its package is named after.
    fn program(self) -> &'static str {
        match self {
            Rival::Inspircd => "inspircd",
            Rival::Nats => "nats-server",
        }
    }

    pub fn is_installed(self) -> bool {
        is_installed(self.program())
    }

    /// # Errors
    /// It is not installed; the message names its package.
    pub fn need(self) -> anyhow::Result<()> {
        need(self.program(), self.program())
    }

    pub fn start(self) -> anyhow::Result<Target> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_start()? {
                Ok(target) => return Ok(target),
                // Somebody may have been faster with the port.
                Err(log) if Instant::now() > deadline => bail!("{} does not start:\n{log}", self.name()),
                Err(_) => {}
            }
        }
    }

    /// Starts it on a port that is free now; else what it has logged.
    fn try_start(self) -> anyhow::Result<Result<Target, String>> {
        let folder = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(self.program());
        command.env("PATH", format!("{path}:/usr/sbin")).current_dir(folder.path());
        let (dialect, config) = match self {
            Rival::Inspircd => {
                command.args(["--nofork", "--nopid", "--runasroot", "--config"]);
                (Dialect::Irc, inspircd_config(address))
            }
            Rival::Nats => {
                command.arg("--config");
                (Dialect::Nats, nats_config(address))
            }
        };
        let file = folder.path().join("config");
        std::fs::write(&file, config)?;
        let (stdout, stderr) = open_log(folder.path())?;
        let child = command.arg(file).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()?;
        let mut process = Process(child);
        let deadline = Instant::now() + PATIENCE;
        while process.is_alive() && Instant::now() < deadline {
            if TcpStream::connect(address).is_ok() {
                return Ok(Ok(Target::program(self.name(), dialect, address, process, Some(folder))));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        process.kill();
        Ok(Err(log_of(folder.path())))
    }
}

/// No flood protection, no look-ups, no limit that a load would meet.
fn inspircd_config(address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        r#"<server name="irc.load.bench" description="load" network="load" id="0AA">
<admin name="load" nick="load" email="load@localhost">
<bind address="{ip}" port="{port}" type="clients">
<connect allow="*" timeout="60" pingfreq="600" recvq="1M" softsendq="16M" hardsendq="64M"
  commandrate="100000000" threshold="100000" fakelag="no" localmax="100000" globalmax="100000"
  resolvehostnames="no" useident="no">
<performance softlimit="100000" somaxconn="4096" clonesonconnect="no">
<options splitwhois="no">
"#
    )
}

fn nats_config(address: SocketAddr) -> String {
    format!("listen: \"{address}\"\nmax_connections: 100000\nmax_pending: 256MB\nwrite_deadline: \"60s\"\n")
}
