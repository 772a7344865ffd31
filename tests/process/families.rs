//! IPv6 and IPv4: a port alone means both, and a peer of IPv4 is the same whichever socket it came by.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Client, eventually, free_port};
use crate::{Running, program, server_after};

fn by_ipv6(server: &Running) -> Client {
    Client::connect(SocketAddr::from((Ipv6Addr::LOCALHOST, server.address.port())))
}

#[test]
fn a_port_alone_is_listened_on_for_both_families() {
    for place in [&["0"][..], &["::", "0"]] {
        let server = Running::at("export RUST_LOG=debug", &[], place);
        let (mut four, mut six) = (server.client(), by_ipv6(&server));
        four.sync();
        six.sync();
        let [four, six] = [&four, &six].map(|client| client.stream.local_addr().unwrap().to_string());
        let (status, log) = server.end("TERM");
        assert_eq!(status.code(), Some(0));
        assert!(log.contains("listening on [::]:"), "{log}");
        // An address is logged as its owner knows it.
        assert!(
            log.contains(&format!("{four} has connected")) && log.contains(&format!("{six} has connected")),
            "{log}"
        );
        assert!(!log.contains("::ffff:"), "{log}");
    }
}

#[test]
fn limits_see_an_ipv4_address_whichever_socket_it_came_by() {
    let flags = ["--max-connections-per-address", "2", "--max-failed-logins", "2", "--max-registrations", "2"];
    let server = Running::at("", &flags, &["0"]);
    let mut clients = [server.client(), server.client()];
    let account = clients[0].register("someone", "secret");
    clients[1].register("another", "secret");
    let refused = clients[0].request(json!({"msgid": 4, "name": "third", "password": "secret"}));
    assert_eq!(refused["errno"], 20, "{refused}");
    for client in &mut clients {
        let wrong = client.request(json!({"msgid": 1, "id": account.id, "password": "wrong"}));
        assert_eq!(wrong["errno"], 1, "{wrong}");
    }
    let throttled = clients[0].request(json!({"msgid": 1, "id": account.id, "password": "wrong"}));
    assert_eq!(throttled["errno"], 20, "{throttled}");
    let mut third = server.client();
    assert_eq!(third.recv()["errno"], 20);
    third.expect_end();
    // Another address of IPv4 is another one, and so is one of IPv6: they share no /64 of mapped ones.
    Client::connect_from(server.address, Ipv4Addr::new(127, 0, 0, 2)).unwrap().sync();
    by_ipv6(&server).sync();
}

#[test]
fn a_proxy_of_ipv4_is_known_however_its_network_is_written() {
    for network in ["127.0.0.1", "127.0.0.0/8", "::ffff:127.0.0.1", "::ffff:127.0.0.0/104", "::1,127.0.0.1/32"] {
        let flags = ["--proxy-protocol", network, "--max-connections-per-address", "1"];
        let server = Running::at("export RUST_LOG=debug", &flags, &["0"]);
        let header = |source: &str, family: &str| format!("PROXY {family} {source} 56324 8000\r\n");
        let mut client = server.client();
        client.send_raw(header("192.0.2.7 127.0.0.1", "TCP4"));
        client.sync();
        // The same address, as reported by a proxy that listens for both families.
        let mut same = server.client();
        same.send_raw(header("::ffff:192.0.2.7 ::ffff:127.0.0.1", "TCP6"));
        assert_eq!(same.recv()["errno"], 20, "{network}");
        let (_, log) = server.end("TERM");
        assert_eq!(log.matches("192.0.2.7:56324 has connected").count(), 2, "{log}");
        assert!(!log.contains("::ffff:"), "{log}");
    }
}

#[test]
fn a_system_whose_sockets_are_for_ipv6_alone_by_default_changes_nothing() {
    // In a network of its own, so that no other program has that default.
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let setup = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/bindv6only";
    let mut command = program("unshare");
    command.args(["--user", "--map-root-user", "--net", "bash", "-c"]).arg(format!("{setup} && exec \"$0\" \"$@\""));
    let server = server_after("", &dir, &[&port.to_string()]);
    command.arg(server.get_program()).args(server.get_args()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = crate::support::Process(command.spawn().unwrap());
    for address in ["127.0.0.1", "::1"] {
        let ping = format!("exec 3<>/dev/tcp/{address}/{port} && echo '{{\"msgid\":202}}' >&3 && head -c 13 <&3");
        let target = process.pid().to_string();
        eventually("an answer over either family", || {
            let mut inside = Command::new("nsenter");
            inside.args(["--user", "--preserve-credentials", "--net", "--target", &target, "bash", "-c", &ping]);
            inside.output().is_ok_and(|output| output.stdout == b"{\"msgid\":203}")
        });
    }
    assert_eq!(process.stop("TERM").code(), Some(0));
}

/// Has this process's sockets of IPv6 refused, as by a kernel that has none.
fn without_ipv6() -> io::Result<()> {
    let [load, equal, give] =
        [libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_RET];
    let step = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, jt, jf, k };
    let (number, first_argument) = (mem::offset_of!(libc::seccomp_data, nr), mem::offset_of!(libc::seccomp_data, args));
    let mut filter = [
        step(load, number as u32, 0, 0),
        step(equal, libc::SYS_socket as u32, 0, 3),
        step(load, first_argument as u32, 0, 0),
        step(equal, libc::AF_INET6 as u32, 0, 1),
        step(give, libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32, 0, 0),
        step(give, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: two calls of the system; the filter outlives them, and the kernel keeps a copy.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn without_ipv6_a_port_alone_is_one_of_ipv4_and_an_address_of_ipv6_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = server_after("", &dir, &["0"]);
    // SAFETY: between fork and exec, it makes two calls of the system and allocates nothing.
    unsafe { command.pre_exec(without_ipv6) };
    let server = Running::spawn(command, dir);
    server.client().sync();
    let (status, log) = server.end("TERM");
    assert_eq!(status.code(), Some(0));
    assert!(log.contains("listening on 0.0.0.0:"), "{log}");

    let dir = tempfile::tempdir().unwrap();
    let mut command = server_after("", &dir, &["::1", "0"]);
    // SAFETY: as above.
    unsafe { command.pre_exec(without_ipv6) };
    let (status, text) = crate::outcome(command);
    assert_eq!(status.code(), Some(2), "{text}");
    assert!(text.contains("[::1]:0") && text.contains("IPv4"), "{text}");
}
