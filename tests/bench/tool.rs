//! The bench as a child process.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::{Launch, Server, eventually};

/// The program, built once for all tests as they are built themselves.
pub fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--bench", "load", "--message-format=json", "--quiet"]);
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        // What cargo tells a test would have build scripts run again, and all that stands on them be built again.
        let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars().filter(|(name, _)| told.iter().any(|start| name.starts_with(start))) {
            cargo.env_remove(name);
        }
        let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo can be started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
        let messages = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut artifacts = messages.filter(|message| message["target"]["name"] == "load");
        let found = artifacts.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        found.expect("cargo names the program")
    })
}

pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("--bench").args(words).stdin(Stdio::null());
    command
}

/// What came out: the exit status, and both outputs.
#[derive(Debug)]
pub struct Said {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn new(output: Output) -> Said {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it writes UTF-8");
        Said { status, out: text(output.stdout), err: text(output.stderr) }
    }

    /// The object that `--json` writes.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The result of the only server that was measured.
    #[track_caller]
    pub fn result(&self) -> Value {
        self.json()["results"][0].clone()
    }
}

pub fn load(words: &[&str]) -> Said {
    Said::new(command(words).output().expect("the bench can be started"))
}

/// The words of one line.
pub fn run(line: &str) -> Said {
    load(&line.split_whitespace().collect::<Vec<_>>())
}

/// One that goes on while the test does something to it.
pub fn start(line: &str) -> Child {
    let words: Vec<&str> = line.split_whitespace().collect();
    command(&words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the bench can be started")
}

pub fn finish(child: Child) -> Said {
    Said::new(child.wait_with_output().expect("its output can be read"))
}

/// Sends a signal, by its name.
pub fn signal(name: &str, pid: u32) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.expect("kill can be started").success());
}

/// A server of ours, with a store of its own.
pub struct Ours {
    pub server: Server,
    _folder: tempfile::TempDir,
}

pub fn ours(flags: &[&str]) -> Ours {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let launch = Launch {
        store: format!("sqlite:{}", folder.path().join("chat.db").display()),
        reactors: 2,
        workers: 2,
        flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        setup: String::new(),
        port: 0,
    };
    Ours { server: Server::start(&launch), _folder: folder }
}

impl Ours {
    /// Waits until this number of users is logged in, or the server has at least that many descriptors for them.
    pub fn wait_for_users(&self, users: usize) {
        let before = 16;
        eventually("users to come", || self.server.descriptors() >= before + users);
    }
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}
