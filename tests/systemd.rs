//! The server as a service of systemd: its unit, and what it reports to its supervisor.
//!
//! `systemd-analyze` (Debian's package `systemd`) checks the unit; no systemd needs to run.

mod support;

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};

use support::{Client, DEADLINE, Launch, Server, refused_start};
use tempfile::TempDir;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systemd/chat-server.service");
/// The exposure that `systemd-analyze security` may find, in tenths; 100 is a service without any
/// hardening.
const EXPOSURE: &str = "15";

fn analyze(arguments: &[&str], unit: &Path) -> (Output, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
    let output = output.expect("systemd-analyze, of the package systemd, can be started");
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    (output, text)
}

#[test]
fn the_unit_is_one_that_systemd_has_nothing_to_say_against() {
    // It wants the program to be there.
    let installed = "/usr/local/bin/chat-server";
    let text = std::fs::read_to_string(UNIT).expect("the unit");
    assert!(text.contains(installed), "{text}");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let unit = folder.path().join("chat-server.service");
    std::fs::write(&unit, text.replace(installed, env!("CARGO_BIN_EXE_chat-server"))).expect("a file");
    let (output, said) = analyze(&["verify", "--man=no"], &unit);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_unit_leaves_little_to_whoever_takes_the_server_over() {
    let (output, said) = analyze(&["security", "--offline=true", "--threshold", EXPOSURE], Path::new(UNIT));
    assert!(output.status.success(), "{said}");
}

/// The supervisor's socket, to which a service sends its notifications.
struct Supervisor {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Supervisor {
    fn new() -> Supervisor {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        Supervisor { socket, folder }
    }

    fn launch(&self, port: u16) -> Launch {
        let folder = self.folder.path();
        Launch {
            store: format!("sqlite:{}", folder.join("chat.db").display()),
            reactors: 1,
            workers: 1,
            flags: Vec::new(),
            setup: format!("export NOTIFY_SOCKET={}", folder.join("notify").display()),
            port,
        }
    }

    fn hear(&self) -> String {
        let mut buffer = [0; 256];
        self.socket.set_read_timeout(Some(DEADLINE)).expect("a time-out");
        let length = self.socket.recv(&mut buffer).expect("the service tells something");
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    }

    /// Whether a notification was sent that no test has read.
    fn was_told(&self) -> bool {
        self.socket.set_nonblocking(true).expect("a socket");
        self.socket.recv(&mut [0]).is_ok()
    }
}

#[test]
fn a_server_says_that_it_is_ready_when_it_listens_and_that_it_stops_when_it_is_told_to() {
    let supervisor = Supervisor::new();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let mut server = std::thread::scope(|scope| {
        let start = scope.spawn(|| Server::start(&supervisor.launch(port)));
        assert_eq!(supervisor.hear(), "READY=1");
        TcpStream::connect(("127.0.0.1", port)).expect("who is ready listens");
        start.join().expect("the server starts")
    });
    server.signal("TERM");
    assert_eq!(supervisor.hear(), "STOPPING=1");
    assert!(server.wait().success());
}

#[test]
fn a_server_that_cannot_listen_is_never_ready() {
    let supervisor = Supervisor::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    assert!(!refused_start(&supervisor.launch(port)).status.success());
    assert!(!supervisor.was_told());
}

#[test]
fn a_supervisor_that_does_not_listen_keeps_no_server_from_its_work() {
    let supervisor = Supervisor::new();
    let launch = supervisor.launch(0);
    drop(supervisor.socket);
    let mut server = Server::start(&launch);
    Client::connect(server.address).register("someone", "secret");
    assert!(server.stop("TERM").success());
}
