//! What several nodes stand on: a MariaDB and a Redis of their own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::{Context, ensure};

use crate::ending::apart;
use crate::program::{self, Program, Ready, need};

pub struct MariaDb {
    program: Program,
    databases: AtomicU32,
}

impl MariaDb {
    /// One for all rounds, started when it is first needed.
    pub fn shared() -> anyhow::Result<&'static MariaDb> {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        match SHARED.get() {
            Some(mariadb) => Ok(mariadb),
            None => {
                let program = start_mariadb()?;
                Ok(SHARED.get_or_init(|| MariaDb { program, databases: AtomicU32::new(0) }))
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The address of a database that nobody has used.
    pub fn new_database(&self) -> String {
        let number = self.databases.fetch_add(1, Relaxed);
        format!("mysql://root:123456@{}/chat_{number}", self.program.address)
    }
}

fn start_mariadb() -> anyhow::Result<Program> {
    need("mariadbd", "mariadb-server")?;
    // It runs as root only with this option.
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let user = is_root.then_some("--user=root");
    // Said when it listens and has done its init file.
    program::start("mariadb", Ready::Says("ready for connections"), |folder, address| {
        let path = |name: &str| folder.join(name).display().to_string();
        std::fs::create_dir(folder.join("tmp"))?;
        let folders = mariadb_folders(folder);
        let mut install = apart("mariadb-install-db", true);
        install.args(&folders).args(user);
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=8M"]);
        let installed = install.output().context("mariadb-install-db cannot be started")?;
        let said = String::from_utf8_lossy(&installed.stderr);
        ensure!(installed.status.success(), "mariadb-install-db has failed:\n{said}");
        let login = "GRANT ALL ON *.* TO root@'127.0.0.1' IDENTIFIED BY '123456' WITH GRANT OPTION;\n";
        std::fs::write(folder.join("login.sql"), login)?;
        let mut command = apart("mariadbd", true);
        command.args(&folders).args(user);
        command.arg(format!("--socket={}", path("socket"))).arg(format!("--pid-file={}", path("pid")));
        command.arg(format!("--init-file={}", path("login.sql")));
        command.args(["--bind-address=127.0.0.1", &format!("--port={}", address.port()), "--skip-name-resolve"]);
        // Small and quick to start, but as careful with commits as in earnest.
        command.args(["--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=32M"]);
        command.args(["--innodb-log-file-size=8M", "--skip-log-bin", "--performance-schema=OFF"]);
        command.args(["--innodb-buffer-pool-load-at-startup=OFF", "--innodb-fast-shutdown=2", "--max-connections=200"]);
        Ok(command)
    })
}

/// A server clears its folder for temporary tables when it starts: in one that it shares, the tables of others too.
fn mariadb_folders(folder: &Path) -> [String; 3] {
    let path = |name: &str| folder.join(name).display().to_string();
    ["--no-defaults".to_owned(), format!("--datadir={}", path("data")), format!("--tmpdir={}", path("tmp"))]
}

pub fn start_redis() -> anyhow::Result<Program> {
    need("redis-server", "redis-server")?;
    program::start("redis", Ready::Accepts, |folder, address| {
        let mut command = apart("redis-server", true);
        command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string(), "--save", ""]);
        command.args(["--appendonly", "no", "--dir"]).arg(folder);
        Ok(command)
    })
}
