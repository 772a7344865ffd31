use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Two network namespaces, a server's and a client's, and a cable between them. Dropping it takes all of
/// it away.
pub struct Network {
    server: String,
    client: String,
}

/// One end of the cable, in both.
const CABLE: &str = "cable";

impl Network {
    /// The server's address, as the client sees it.
    pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// `None`, and a line that says so, where namespaces may not be made: that takes root.
    ///
    /// # Panics
    /// If `ip`, of the package iproute2, cannot be started, or anything but the permission fails.
    pub fn new() -> Option<Network> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let name = format!("chat-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on it is dropped, however far this comes.
        let network = Network { server: format!("{name}-server"), client: format!("{name}-client") };
        if let Err(error) = ip(&["netns", "add", &network.server]) {
            let is_forbidden = ["Operation not permitted", "Permission denied"].iter().any(|text| error.contains(text));
            assert!(is_forbidden, "ip netns add: {error}");
            eprintln!("SKIPPED, since network namespaces are for root: {}", error.trim_end());
            return None;
        }
        let must = |arguments: &str| {
            let words: Vec<&str> = arguments.split(' ').collect();
            ip(&words).unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
        };
        let Network { server, client } = &network;
        must(&format!("netns add {client}"));
        must(&format!("link add {CABLE} netns {server} type veth peer name {CABLE} netns {client}"));
        for (namespace, address) in [(server, Network::SERVER), (client, Ipv4Addr::new(10, 77, 0, 2))] {
            must(&format!("-n {namespace} addr add {address}/24 dev {CABLE}"));
            must(&format!("-n {namespace} link set {CABLE} up"));
            must(&format!("-n {namespace} link set lo up"));
        }
        Some(network)
    }

    /// Runs `what` as the server's machine: what it starts is there, and stays there.
    pub fn at_server<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        inside(&self.server, what)
    }

    /// The same, as the client's.
    pub fn at_client<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        inside(&self.client, what)
    }

    /// The client's address vanishes: nothing comes from there any more, and what is sent there is lost.
    pub fn vanish(&self) {
        self.set_cable("down");
    }

    /// It is there again.
    pub fn come_back(&self) {
        self.set_cable("up");
    }

    fn set_cable(&self, state: &str) {
        ip(&["-n", &self.client, "link", "set", CABLE, state]).expect("the cable is there");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // With its namespaces the cable goes. One that was never made cannot be taken away.
        for namespace in [&self.server, &self.client] {
            let _ = ip(&["netns", "del", namespace]);
        }
    }
}

fn inside<T: Send>(namespace: &str, what: impl FnOnce() -> T + Send) -> T {
    // A namespace is a thread's, and its children's.
    let entered = || {
        let file = File::open(format!("/var/run/netns/{namespace}")).expect("the namespace is there");
        let entry = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
        entry.expect("who makes a namespace may enter it");
        what()
    };
    let result = thread::scope(|scope| scope.spawn(entered).join());
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `ip`; the error is what it says.
fn ip(arguments: &[&str]) -> Result<(), String> {
    // It stands in sbin, which is not on everyone's path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("ip").args(arguments).env("PATH", path).output();
    let output = output.expect("ip, of the package iproute2, can be started");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
