//! Other servers that pass messages on: any of the family by its command, and two from Debian's packages, with
//! everything that would slow them down turned off.

use std::net::SocketAddr;

use crate::dialect::Dialect;
use crate::ending::{apart, is_installed};
use crate::flags::{Flags, Rival};
use crate::program::{self, Ready, need};
use crate::target::Target;

impl Rival {
    /// Its program, which its package is named after.
    fn program(&self) -> &'static str {
        match self {
            Rival::Inspircd => "inspircd",
            Rival::Nats => "nats-server",
            Rival::Command(_) => "sh",
        }
    }

    pub fn is_installed(&self) -> bool {
        is_installed(self.program())
    }

    /// It is of the family, and may be able to do more than pass messages between pairs.
    pub fn is_family(&self) -> bool {
        matches!(self, Rival::Command(_))
    }

    /// # Errors
    /// It is not installed; the message names its package.
    pub fn need(&self) -> anyhow::Result<()> {
        need(self.program(), self.program())
    }

    pub fn start(&self, flags: &Flags) -> anyhow::Result<Target> {
        match self {
            Rival::Inspircd => {
                let program = program::start("inspircd", Ready::Accepts, |folder, address| {
                    let file = folder.join("config");
                    std::fs::write(&file, inspircd_config(address))?;
                    let mut command = apart("inspircd", true);
                    command.current_dir(folder).args(["--nofork", "--nopid", "--runasroot", "--config"]).arg(file);
                    Ok(command)
                })?;
                Ok(Target::program("inspircd", Dialect::Irc, program))
            }
            Rival::Nats => {
                let program = program::start("nats", Ready::Accepts, |folder, address| {
                    let file = folder.join("config");
                    std::fs::write(&file, nats_config(address))?;
                    let mut command = apart("nats-server", true);
                    command.current_dir(folder).arg("--config").arg(file);
                    Ok(command)
                })?;
                Ok(Target::program("nats", Dialect::Nats, program))
            }
            Rival::Command(command) => Target::launched(flags, "rival", command),
        }
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
