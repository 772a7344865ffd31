//! `scripts/cluster`: what it starts is a cluster, and nothing of it is left behind.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::Client;

/// A folder that the script runs a cluster in. Dropping it ends what is left of that.
struct Cluster(PathBuf);

impl Cluster {
    fn run(&self, command: &str, flags: &[&str]) -> (bool, String) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster");
        let output = Command::new(script)
            .args([command, "--dir"])
            .arg(&self.0)
            .args(flags)
            .env("CHAT_SERVER", env!("CARGO_BIN_EXE_chat-server"))
            .output()
            .expect("the script can be started");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.0.exists() {
            self.run("down", &["--purge"]);
        }
    }
}

/// The port that the script reports for a part; its line begins with the name.
fn port(status: &str, name: &str) -> u16 {
    let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {status}"));
    assert!(line.contains("alive"), "{line}");
    let rest = line.split("127.0.0.1:").nth(1).expect("an address");
    rest.split_whitespace().next().and_then(|port| port.parse().ok()).expect("a port")
}

fn client(port: u16) -> Client {
    Client::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

#[test]
fn what_the_script_starts_is_a_cluster_and_ends_without_a_trace() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let cluster = Cluster(folder.path().join("cluster"));
    let (up, told) = cluster.run("up", &[]);
    assert!(up, "{told}");
    let (_, status) = cluster.run("status", &[]);

    // From one node to another, and through nginx.
    let (mut one, mut other) = (client(port(&status, "node-1")), client(port(&status, "node-2")));
    let account = other.register("other", "secret");
    other.login(&account);
    let me = one.register("one", "secret");
    one.login(&me);
    assert!(one.chat(account.id, "hello"));
    assert_eq!(other.texts(1), ["hello"]);
    let mut third = client(port(&status, "nginx"));
    let me = third.register("third", "secret");
    third.login(&me);
    assert!(third.chat(account.id, "from behind nginx"));
    assert_eq!(other.texts(1), ["from behind nginx"]);

    // Up again changes nothing.
    let (up, told) = cluster.run("up", &[]);
    assert!(up, "{told}");
    assert_eq!(cluster.run("status", &[]).1, status);

    let (down, told) = cluster.run("down", &["--purge"]);
    assert!(down, "{told}");
    assert!(!cluster.0.exists());
    for name in ["mariadb", "redis", "node-1", "node-2", "node-3", "nginx"] {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port(&status, name)));
        assert!(std::net::TcpStream::connect(address).is_err(), "{name} still listens");
    }
}
