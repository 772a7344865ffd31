use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use redis::{Client, Connection};
use tempfile::TempDir;

use super::process::{Process, is_a_process};
use super::{DEADLINE, free_port};

/// A real Redis as a child process, on a port of its own, that keeps nothing on disk. Dropping it
/// kills it.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    port: u16,
    password: Option<&'static str>,
    dir: TempDir,
}

impl Redis {
    pub fn start() -> Redis {
        Redis::start_with(None)
    }

    pub fn start_with(password: Option<&'static str>) -> Redis {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let port = free_port();
            let dir = tempfile::tempdir().expect("a temporary directory");
            let mut redis = Redis { process: launch(port, password, &dir), port, password, dir };
            if redis.comes_up() {
                return redis;
            }
            assert!(Instant::now() < deadline, "Redis did not start"); // another process was faster with the port
        }
    }

    /// Starts it again, empty, on the same port.
    pub fn restart(&mut self) {
        self.kill();
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.process = launch(self.port, self.password, &self.dir);
            if self.comes_up() {
                return;
            }
            assert!(Instant::now() < deadline, "Redis did not start again");
        }
    }

    /// Waits until it answers; false: it has ended instead.
    fn comes_up(&mut self) -> bool {
        let deadline = Instant::now() + DEADLINE;
        while self.is_alive() {
            if self.try_connect().is_some() {
                return true;
            }
            assert!(Instant::now() < deadline, "Redis does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    fn try_connect(&self) -> Option<Connection> {
        let mut connection = Client::open(self.url()).ok()?.get_connection_with_timeout(DEADLINE).ok()?;
        connection.set_read_timeout(Some(DEADLINE)).ok()?;
        redis::cmd("PING").exec(&mut connection).ok()?;
        Some(connection)
    }

    /// An ordinary client of it.
    pub fn connect(&self) -> Connection {
        self.try_connect().expect("Redis answers")
    }

    pub fn url(&self) -> String {
        let password = self.password.map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{password}127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

is_a_process!(Redis);

fn launch(port: u16, password: Option<&str>, dir: &TempDir) -> Process {
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(dir.path());
    if let Some(password) = password {
        command.args(["--requirepass", password]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process(command.spawn().expect("redis-server can be started"))
}
