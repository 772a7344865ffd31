//! An nginx that speaks TLS, before a server that does not.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::ending::apart;
use crate::machine;
use crate::program::{self, Program, Ready, STARTING, need};
use crate::tls;
use crate::trust::Tls;

/// Where Debian's package has what nginx needs for streams. Elsewhere that is built in.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Connections of a worker besides those of clients and to the server.
const RESERVE: usize = 512;

pub struct Front {
    pub program: Program,
    /// Trusts its certificate, which has been made for it.
    pub tls: &'static Tls,
}

impl Front {
    /// Starts it before the server at `backend`, for this number of clients.
    ///
    /// # Errors
    /// nginx is not installed, or does not start.
    pub fn start(backend: SocketAddr, clients: usize) -> anyhow::Result<Front> {
        need("nginx", "nginx libnginx-mod-stream")?;
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([backend.ip().to_string()])?;
        let workers = machine::cores() as usize;
        let program = program::start("nginx", Ready::Accepts, |folder, address| {
            std::fs::write(folder.join("cert.pem"), cert.pem())?;
            std::fs::write(folder.join("key.pem"), signing_key.serialize_pem())?;
            std::fs::write(folder.join("nginx.conf"), configuration(address, backend, workers, clients))?;
            let mut command = apart("nginx", true);
            command.current_dir(folder).args(["-p", ".", "-c", "nginx.conf", "-e", "stderr"]);
            Ok(command)
        })?;
        // All its processes are there before anything is measured of them.
        let deadline = Instant::now() + STARTING;
        while program.session().len() <= workers {
            ensure!(Instant::now() < deadline, "nginx does not start its workers");
            std::thread::sleep(Duration::from_millis(5));
        }
        let ca = program.folder.path().join("cert.pem");
        let tls = tls::trusting(&backend.ip().to_string(), Some(&ca), false).context("nginx's certificate")?;
        Ok(Front { program, tls })
    }
}

fn configuration(address: SocketAddr, backend: SocketAddr, workers: usize, clients: usize) -> String {
    let module = if Path::new(MODULE).exists() { format!("load_module {MODULE};\n") } else { String::new() };
    // Each client has two: its own, and the one to the server.
    let connections = 2 * clients + RESERVE;
    format!(
        "{module}daemon off;\npid nginx.pid;\nerror_log stderr warn;\nworker_processes {workers};\n\
         events {{ worker_connections {connections}; }}\n\
         stream {{\n    server {{\n        listen {address} ssl;\n        ssl_certificate cert.pem;\n        \
         ssl_certificate_key key.pem;\n        ssl_protocols TLSv1.2 TLSv1.3;\n        tcp_nodelay on;\n        \
         proxy_timeout 24h;\n        proxy_half_close on;\n        proxy_pass {backend};\n    }}\n}}\n"
    )
}
