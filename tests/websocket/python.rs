//! The other side is PyPI's `websockets`, also through nginx with TLS. `scripts/test` installs it.

use std::path::Path;
use std::process::Command;

use crate::support::{Config, Identity, Nginx, NginxOptions};

const PEER: &str = "tests/websocket/peer.py";
const LIBRARY: &str = "target/tools/python";

#[track_caller]
fn chats(url: &str, trusted: Option<&Path>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(root.join(LIBRARY).join("websockets").exists(), "there is no {LIBRARY}/websockets: run scripts/test");
    let mut command = Command::new("python3");
    command.current_dir(root).env("PYTHONPATH", LIBRARY).arg(PEER).arg(url).args(trusted);
    let output = command.output().expect("python3 can be started");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said == "ok\n", "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_library_of_others_chats() {
    let world = Config::new(2).own(&[]);
    chats(&format!("ws://{}/ws", world.server().address), None);
}

#[test]
fn it_does_through_nginx_with_tls_and_the_header_of_a_proxy() {
    let world = Config::new(2).own(&["--proxy-protocol", "127.0.0.1"]);
    let tls = Some(Identity::of(&["127.0.0.1"]));
    let nginx =
        Nginx::start(&[world.server().address], NginxOptions { tls, proxy_protocol: true, ..Default::default() });
    chats(&format!("wss://127.0.0.1:{}/ws", nginx.tls_port), Some(&nginx.certificate()));
    chats(&format!("ws://{}/ws", nginx.address()), None);
}
