use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use super::{DEADLINE, eventually, free_ports};

/// A certificate that signs itself, and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// For hosts by name or IP address.
    pub fn of(names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("the names are names");
        Identity { certificate: cert.pem(), key: signing_key.serialize_pem() }
    }
}

/// What is switched on in `nginx.conf`.
#[derive(Debug, Clone, Default)]
pub struct NginxOptions {
    pub tls: Option<Identity>,
    pub proxy_protocol: bool,
    /// Where it listens, if not on 127.0.0.1.
    pub address: Option<Ipv4Addr>,
    /// Other times for `so_keepalive`.
    pub keepalive: Option<&'static str>,
}

/// The real nginx with the repository's own `nginx.conf`, its ports and backends replaced, as a
/// child process. Dropping it ends it.
pub struct Nginx {
    child: Child,
    /// The port for clients without TLS.
    pub port: u16,
    /// The port for clients with TLS, where that is switched on.
    pub tls_port: u16,
    options: NginxOptions,
    log: Arc<Mutex<String>>,
    /// Its prefix.
    directory: TempDir,
}

/// How long a fast end may take before it is forced.
const END: Duration = Duration::from_secs(5);

impl Nginx {
    /// Starts it, and waits until it listens.
    pub fn start(backends: &[SocketAddr], options: NginxOptions) -> Nginx {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Nginx::try_start(backends, &options) {
                Ok(nginx) => return nginx,
                // The port is not reserved between its choice and nginx's bind.
                Err(log) => assert!(
                    log.contains("Address already in use") && Instant::now() < deadline,
                    "nginx did not start:\n{log}"
                ),
            }
        }
    }

    fn try_start(backends: &[SocketAddr], options: &NginxOptions) -> Result<Nginx, String> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [port, tls_port] = free_ports();
        fs::write(directory.path().join("nginx.conf"), configuration(backends, options, port, tls_port)).unwrap();
        if let Some(Identity { certificate, key }) = &options.tls {
            fs::write(directory.path().join("cert.pem"), certificate).unwrap();
            fs::write(directory.path().join("key.pem"), key).unwrap();
        }
        let child = nginx_in(directory.path()).stderr(Stdio::piped()).spawn().expect("nginx can be started");
        let mut nginx = Nginx { child, port, tls_port, options: options.clone(), log: Arc::default(), directory };
        let lines = BufReader::new(nginx.child.stderr.take().expect("stderr is piped")).lines();
        let log = Arc::clone(&nginx.log);
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *log.lock().unwrap() += &format!("    {line}\n");
            }
        });
        // It writes its pid once it listens, and before it has workers.
        let pid_file = nginx.directory.path().join("nginx.pid");
        let mut ended = false;
        eventually("nginx listening", || {
            ended = nginx.child.try_wait().expect("a child can be waited for").is_some();
            ended || (pid_file.exists() && !nginx.workers().is_empty())
        });
        if ended {
            let _ = reader.join();
            return Err(nginx.log());
        }
        Ok(nginx)
    }

    /// Has it read a configuration with these backends, and waits until all new connections go by
    /// it. Those that stand stay where they are.
    #[track_caller]
    pub fn reload(&self, backends: &[SocketAddr]) {
        let text = configuration(backends, &self.options, self.port, self.tls_port);
        fs::write(self.directory.path().join("nginx.conf"), text).unwrap();
        let old = self.workers();
        self.signal("HUP");
        // An old worker listens no more when it says that it is shutting down.
        eventually("nginx reloading", || {
            let new = self.workers();
            old.is_disjoint(&new) && !new.is_empty()
        });
    }

    /// The workers that take connections.
    fn workers(&self) -> HashSet<u32> {
        let is_worker = |pid: &u32| {
            let title = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            title.starts_with("nginx: worker process") && !title.contains("shutting down")
        };
        self.children().into_iter().filter(is_worker).collect()
    }

    fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.options.address.unwrap_or(Ipv4Addr::LOCALHOST), self.port))
    }

    /// The file to trust for TLS.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill can be started").success());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("nginx's log:\n{}", self.log());
        }
        // Killed outright, it would leave its workers behind.
        let workers = self.children();
        let _ = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let deadline = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let pids = workers.iter().map(u32::to_string);
                let _ = Command::new("kill").arg("-KILL").args(pids).stderr(Stdio::null()).status();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// `nginx -p . -c nginx.conf` in a folder, just as the file says.
pub fn nginx_in(prefix: &Path) -> Command {
    // Daemons stand in sbin, which is not on everyone's path.
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("nginx");
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command.current_dir(prefix).args(["-p", ".", "-c", "nginx.conf"]).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// The repository's `nginx.conf` with other ports and backends, and with what `options` switch on.
fn configuration(backends: &[SocketAddr], options: &NginxOptions, port: u16, tls_port: u16) -> String {
    const TEXT: &str = include_str!("../../nginx.conf");
    let mut servers = Vec::new();
    let mut lines = Vec::new();
    let mut switches = HashSet::new();
    for line in TEXT.lines() {
        let switch = line.trim_start().strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_alphabetic()));
        let directive = switch.unwrap_or_else(|| line.trim_start());
        if switch.is_some() {
            let on = match directive {
                _ if directive.starts_with("proxy_protocol") => options.proxy_protocol,
                _ if directive.starts_with("listen 8443 ssl") || directive.starts_with("ssl_") => options.tls.is_some(),
                other => panic!("nobody knows what this switches on: {other}"),
            };
            switches.insert(directive.split([' ', ';']).next());
            if !on {
                continue;
            }
        }
        if directive.starts_with("load_module") && !module_exists(directive) {
            continue; // it is built in
        } else if let Some(parameters) = directive.strip_prefix("server 127.0.0.1:") {
            let (port, parameters) = parameters.split_once(' ').expect("a server has parameters");
            if servers.is_empty() {
                lines.extend(backends.iter().map(|backend| format!("server {backend} {parameters}")));
            }
            servers.push(port);
        } else {
            let address = options.address.unwrap_or(Ipv4Addr::LOCALHOST);
            let listen = directive.replace("listen 8000", &format!("listen {address}:{port}"));
            let listen = listen.replace("listen 8443", &format!("listen {address}:{tls_port}"));
            lines.push(match options.keepalive {
                Some(times) => listen.replace("so_keepalive=60s:10s:3", &format!("so_keepalive={times}")),
                None => listen,
            });
        }
    }
    // What the file promises, whatever else is replaced here.
    assert_eq!(servers, ["6000", "6002", "6004"]);
    assert_eq!(switches.len(), 5, "{switches:?}");
    lines.join("\n")
}

fn module_exists(directive: &str) -> bool {
    let path = directive.trim_start_matches("load_module").trim_matches([' ', ';']);
    Path::new(path).exists()
}
