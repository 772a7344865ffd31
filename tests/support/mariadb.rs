use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::{Process, is_a_process};
use super::{DEADLINE, eventually, free_port};

/// A MariaDB server of its own, in a temporary folder, on a free port of 127.0.0.1, that lets root
/// in with the password 123456. Dropping it kills it.
#[derive(Debug)]
pub struct MariaDb {
    process: Process,
    port: u16,
    databases: AtomicU32,
    dir: TempDir,
}

impl MariaDb {
    pub fn start() -> MariaDb {
        MariaDb::with(&[])
    }

    /// The same with further options, such as `--max-allowed-packet=64K`.
    pub fn with(options: &[&str]) -> MariaDb {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("tmp")).expect("a directory can be made");
        let output = command("mariadb-install-db")
            .args(folders(dir.path()))
            .args(["--auth-root-authentication-method=normal", "--skip-test-db", "--innodb-log-file-size=8M"])
            .args(user_option())
            .output()
            .expect("mariadb-install-db can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let login = "GRANT ALL ON *.* TO root@'127.0.0.1' IDENTIFIED BY '123456' WITH GRANT OPTION;\n";
        fs::write(dir.path().join("login.sql"), login).expect("a file can be written");
        fs::write(dir.path().join("options"), options.join("\n")).expect("a file can be written");
        // A free port may be taken again before the server has it.
        let deadline = Instant::now() + DEADLINE;
        loop {
            let port = free_port();
            match launch(dir.path(), port) {
                Ok(process) => return MariaDb { process, port, databases: AtomicU32::new(0), dir },
                Err(log) => assert!(Instant::now() < deadline, "MariaDB does not start:\n{log}"),
            }
        }
    }

    /// One for the whole process, started when it is first needed.
    pub fn shared() -> &'static MariaDb {
        static SHARED: OnceLock<(MariaDb, Child)> = OnceLock::new();
        let (mariadb, _) = SHARED.get_or_init(|| {
            let mariadb = MariaDb::start();
            let heir = end_with_this_process(&mariadb);
            (mariadb, heir)
        });
        mariadb
    }

    /// The address of a database, which need not exist.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root:123456@127.0.0.1:{}/{database}", self.port)
    }

    /// A name that no other test of this server has.
    pub fn new_database(&self) -> String {
        format!("chat_{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again, after its end, with its data and on its port.
    pub fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + DEADLINE;
        loop {
            match launch(self.dir.path(), self.port) {
                Ok(process) => break self.process = process,
                Err(log) => assert!(Instant::now() < deadline, "MariaDB does not start again:\n{log}"),
            }
        }
    }
}

is_a_process!(MariaDb);

impl Drop for MariaDb {
    /// If a server has ended by itself, nothing else is left that says why.
    fn drop(&mut self) {
        if std::thread::panicking() && !self.process.is_alive() {
            eprintln!("MariaDB has ended:\n{}", fs::read_to_string(self.dir.path().join("log")).unwrap_or_default());
        }
    }
}

/// Starts the server on what is in `dir` and waits until it can be used; else what it has logged.
fn launch(dir: &Path, port: u16) -> Result<Process, String> {
    let path = |name: &str| dir.join(name).display().to_string();
    let options = fs::read_to_string(dir.join("options")).unwrap_or_default();
    let log = File::create(dir.join("log")).expect("a file can be made");
    let child = command("mariadbd")
        .args(folders(dir))
        .arg(format!("--socket={}", path("socket")))
        .arg(format!("--pid-file={}", path("pid")))
        .arg(format!("--init-file={}", path("login.sql")))
        .args(["--bind-address=127.0.0.1", &format!("--port={port}"), "--skip-name-resolve"])
        // Small and quick to start, but as careful with commits as in earnest.
        .args(["--innodb-flush-log-at-trx-commit=1", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M"])
        .args(["--skip-log-bin", "--performance-schema=OFF", "--innodb-buffer-pool-load-at-startup=OFF"])
        .args(["--innodb-fast-shutdown=2", "--max-connections=200"])
        .args(options.lines())
        .args(user_option())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("mariadbd can be started");
    let mut process = Process(child);
    let deadline = Instant::now() + DEADLINE;
    while process.is_alive() && Instant::now() < deadline {
        // Said when it listens and has done its init file. That something listens would say little:
        // it could be another test's server.
        if fs::read_to_string(dir.join("log")).is_ok_and(|log| log.contains("ready for connections")) {
            return Ok(process);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    process.kill();
    Err(fs::read_to_string(dir.join("log")).unwrap_or_default())
}

/// A server clears its folder for temporary tables when it starts: in one that it shares, the tables
/// of others too.
fn folders(dir: &Path) -> [String; 3] {
    let path = |name: &str| dir.join(name).display().to_string();
    ["--no-defaults".into(), format!("--datadir={}", path("data")), format!("--tmpdir={}", path("tmp"))]
}

/// A static is never dropped. So a shell waits for the end of its input, which comes with the end
/// of this process, however that ends, and then kills the server and removes its folder.
fn end_with_this_process(mariadb: &MariaDb) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT TERM; read -r _; kill -9 \"$0\"; rm -rf \"$1\""]);
    shell.arg(mariadb.pid().to_string()).arg(mariadb.dir.path());
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().expect("sh can be started")
}

/// Daemons stand in sbin, which is not on everyone's path.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

/// MariaDB runs as root only with this option.
fn user_option() -> Option<&'static str> {
    let is_root = fs::metadata("/proc/self").expect("procfs").uid() == 0;
    is_root.then_some("--user=root")
}
