//! Loads over TLS: the same messages, byte for byte, and no trust in a wrong certificate.

use crate::support::{Identity, Nginx, NginxOptions};
use crate::tool::{ours, run};

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
