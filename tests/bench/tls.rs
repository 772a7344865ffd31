//! Loads over TLS: the same messages, byte for byte, and no trust in a wrong certificate.

#[allow(dead_code)]
#[path = "../../benches/load/tls.rs"]
mod stream;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Identity, Nginx, NginxOptions, eventually};
use crate::tool::{ours, run};
use stream::{Stream, trusting};

type Served = StreamOwned<ServerConnection, TcpStream>;

/// A connection that does not block, to a server for this one client.
fn connected(serve: impl FnOnce(Served) + Send + 'static) -> (Stream<TcpStream>, std::thread::JoinHandle<()>) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let versions = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = versions.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let socket = listener.accept().unwrap().0;
        serve(StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket));
    });
    let stream = Stream::open(TcpStream::connect(address).unwrap(), Some(trusting("localhost", None, true).unwrap()));
    let stream = stream.unwrap();
    stream.socket.set_nonblocking(true).unwrap();
    (stream, server)
}

#[test]
fn what_the_socket_did_not_take_leaves_when_it_is_flushed() {
    let (go_on, told) = channel();
    let (tell, taken) = channel();
    let (mut stream, server) = connected(move |mut stream| {
        let mut all = Vec::new();
        stream.read_exact(&mut [0]).unwrap();
        told.recv().unwrap();
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            all.extend_from_slice(&buffer[..length]);
            tell.send(all.len()).unwrap();
        }
        assert!(all.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    });
    stream.write_all(b"!").unwrap();
    // The server reads nothing more for now.
    let mut sent: usize = 0;
    loop {
        let bytes: Vec<u8> = (sent..sent + 60_000).map(|n| n as u8).collect();
        match stream.write(&bytes) {
            Ok(length) => sent += length,
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(sent < 1 << 30, "a socket takes no more at some time");
    }
    assert_eq!(stream.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    go_on.send(()).unwrap();
    // Nothing more is written, and all that was taken comes.
    eventually("all to leave", || stream.flush().is_ok());
    eventually("all to come", || taken.try_iter().any(|length| length == sent));
    stream.end(true, TcpStream::shutdown);
    server.join().unwrap();
}

#[test]
fn a_read_says_whether_the_socket_may_have_more() {
    let (go_on, told) = channel();
    let (mut stream, server) = connected(move |mut stream| {
        stream.write_all(&[b'a'; 1000]).unwrap();
        told.recv().unwrap();
        stream.write_all(&[b'b'; 1000]).unwrap();
        let _ = stream.read(&mut [0]);
    });
    let mut buffer = [0; 4096];
    let mut first = 0;
    eventually("the beginning", || {
        first = stream.read(&mut buffer[..100]).unwrap_or(0);
        first > 0
    });
    assert_eq!(first, 100);
    go_on.send(()).unwrap();
    eventually("more", || stream.socket.peek(&mut [0]).is_ok());
    // What has been decrypted before is less than there is room for, and yet the socket has more.
    assert_eq!(stream.read(&mut buffer).unwrap(), 900);
    assert!(!stream.is_emptied());
    assert_eq!(stream.read(&mut buffer).unwrap(), 1000);
    assert!(stream.is_emptied());
    assert_eq!(stream.read(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    stream.end(true, TcpStream::shutdown);
    server.join().unwrap();
}

#[test]
fn everything_arrives_over_tls_as_it_was_sent() {
    for line in [
        "--users 8 --seq --size 150-60000",
        // More in flight than the sockets hold.
        "--users 8 --size 60000 --window 16 --batch",
        "--users 8 --ws --size 150-60000",
        "--users 8 --workload login --half-open 4 --slow-senders 2",
        "--users 40 --workload storm",
        "--users 40 --workload storm --ws --after cut",
        "--users 20 --workload mix --rate 200",
        // What has been decrypted waits until its reader goes on, while nothing more comes.
        "--users 8 --workload paused --rate 400 --pause 0.2",
        "--users 8 --workload slow --rate 400 --read-rate 2048",
    ] {
        // A storm takes as long as it does.
        let seconds = if line.contains("storm") { "" } else { "--seconds 0.5" };
        let said = run(&format!("--tls --json {seconds} {line}"));
        assert_eq!((said.status, &said.json()["settings"]["tls"]), (0, &true.into()), "{line}: {said:?}");
        let result = said.result();
        assert!(result["messages_per_s"].as_f64().unwrap() > 10.0, "{line}: {said:?}");
        assert!(result["parts"]["nginx"]["cores"].as_f64().unwrap() > 0.0, "{line}: {said:?}");
    }
}

#[test]
fn a_wrong_certificate_is_refused_with_words() {
    let ours = ours(&[]);
    let tls = Some(Identity::of(&["localhost"]));
    let nginx = Nginx::start(&[ours.server.address], NginxOptions { tls, ..NginxOptions::default() });
    let ca = nginx.certificate().display().to_string();
    let load = |host: &str, further: &str| {
        run(&format!("--users 4 --seconds 0.3 --addr {host}:{} --tls {further}", nginx.tls_port))
    };
    for (host, further) in [
        ("localhost", format!("--tls-ca {ca}")),
        ("localhost", format!("--cacert {ca}")),
        ("127.0.0.1", format!("--tls-ca {ca} --tls-name localhost")),
        ("127.0.0.1", "--tls-insecure".to_owned()),
        ("127.0.0.1", "--insecure --workload group".to_owned()),
    ] {
        let said = load(host, &further);
        assert!(said.status == 0 && said.out.contains("over TLS"), "{host} {further}: {said:?}");
    }
    let said = load("localhost", "");
    assert!(said.status == 1 && said.err.contains("not trusted") && said.err.contains("--tls-ca"), "{said:?}");
    let said = load("127.0.0.1", &format!("--tls-ca {ca}"));
    assert!(said.status == 1 && said.err.contains("not trusted") && said.err.contains("--tls-name"), "{said:?}");
    let said = load("localhost", "--tls-ca no-such-file");
    assert!(said.status == 1 && said.err.contains("no-such-file"), "{said:?}");
    let said = run(&format!("--users 4 --addr {} --tls --tls-insecure", ours.server.address));
    assert!(said.status == 1 && said.err.contains("does not speak TLS"), "{said:?}");
}
