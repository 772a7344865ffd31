//! What is put under load: servers that run already, fresh ones, the floor, or a rival.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chat_server::home::Homes;
use ipnet::IpNet;

use crate::clock;
use crate::dialect::{Capabilities, Dialect};
use crate::ending::{Owned, apart, is_installed};
use crate::flags::Flags;
use crate::front::Front;
use crate::machine;
use crate::program::{self, Program, Ready, STARTING, open_log};
use crate::stores::{MariaDb, start_redis};
use crate::tls;
use crate::trust::Tls;
use crate::workload::Workload;

/// Given to every server that takes one, so that it is known which reactor each user belongs to.
const HOME_SEED: u64 = 1;

/// How long a command that is started again may take to start what it consists of, to be measured.
const STARTING_CHILDREN: Duration = Duration::from_millis(200);

/// Dropping it kills what it has started.
pub struct Target {
    pub name: String,
    pub servers: Vec<Endpoint>,
    /// The processes that are measured for CPU and memory; may be none.
    pub processes: Vec<Processes>,
    /// It was not started here, and stays.
    pub is_foreign: bool,
    /// What it speaks has not been found out yet.
    pub is_unknown: bool,
    /// The reactor that each user belongs to, by server; `None`: that depends on the connection, or is unknown.
    pub homes: Option<Homes>,
    keep: Keep,
    /// What speaks TLS for its servers.
    fronts: Vec<Front>,
}

#[derive(Clone, Copy)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub dialect: Dialect,
    /// Where connections to it come from, if that is not left to the system.
    pub source: Option<IpNet>,
    /// Connections to it speak TLS, and trust so.
    pub tls: Option<&'static Tls>,
}

/// The processes of one name: "server", "redis".
#[derive(Debug, Clone)]
pub struct Processes {
    pub name: String,
    pub pids: Vec<u32>,
}

enum Keep {
    /// The processes were not started here, and are left alone.
    Foreign,
    /// Our own nodes, and the Redis between them.
    Nodes {
        servers: Vec<Program>,
        _redis: Option<Program>,
    },
    Program(Program),
}

/// What is spoken with a server that is taken for one of ours.
fn ours(flags: &Flags) -> Dialect {
    Dialect::Chat(Capabilities { frames: flags.ws, ..Capabilities::OURS })
}

impl Target {
    /// The servers that the flags describe.
    pub fn server(flags: &Flags) -> anyhow::Result<Target> {
        if let Some(command) = &flags.launch {
            return Target::launched(flags, "server", command);
        }
        if flags.addr.is_empty() {
            return Target::fresh(flags, "server", &flags.server());
        }
        let mut processes: Vec<Processes> = Vec::new();
        for named in &flags.pid {
            ensure!(machine::is_alive(named.pid), "--pid {}: there is no such process", named.pid);
            match processes.iter_mut().find(|of| of.name == named.name) {
                Some(of) => of.pids.push(named.pid),
                None => processes.push(Processes { name: named.name.clone(), pids: vec![named.pid] }),
            }
        }
        let dialect = ours(flags);
        let addresses = flags.addresses()?.into_iter().zip(&flags.addr);
        let servers = addresses.map(|(address, named)| {
            let tls = flags.tls.then(|| {
                let host = named.rsplit_once(':').map_or(&**named, |(host, _)| host.trim_matches(['[', ']']));
                let name = flags.tls_name.as_deref().unwrap_or(host);
                tls::trusting(name, flags.tls_ca.as_deref(), flags.tls_insecure).context("--tls")
            });
            Ok(Endpoint { address, dialect, source: flags.source, tls: tls.transpose()? })
        });
        Ok(Target {
            name: "server".to_owned(),
            servers: servers.collect::<anyhow::Result<_>>()?,
            processes,
            is_foreign: true,
            is_unknown: true,
            homes: None,
            keep: Keep::Foreign,
            fronts: Vec::new(),
        })
    }

    /// Any server of the family, by a command that starts it on `{port}` of 127.0.0.1.
    pub fn launched(flags: &Flags, name: &str, command: &str) -> anyhow::Result<Target> {
        let program = program::start(name, Ready::Accepts, |_, address| {
            let numbers =
                [("{port}", address.port().into()), ("{reactors}", flags.reactors()), ("{workers}", flags.workers())];
            let fill = |words: String, (name, number): (&str, usize)| words.replace(name, &number.to_string());
            let mut shell = apart("sh", true);
            shell.arg("-c").arg(numbers.into_iter().fold(command.to_owned(), fill));
            Ok(shell)
        })?;
        let mut target = Target::program(name, ours(flags), program);
        target.servers[0].source = flags.source;
        target.is_unknown = true;
        target.behind_tls(flags)
    }

    /// The same with an nginx before each server, if that is asked for.
    fn behind_tls(mut self, flags: &Flags) -> anyhow::Result<Target> {
        if !flags.tls {
            return Ok(self);
        }
        for server in &mut self.servers {
            let front = Front::start(server.address, flags.users())?;
            (server.address, server.tls) = (front.program.address, Some(front.tls));
            self.fronts.push(front);
        }
        let pids = self.fronts.iter().flat_map(|front| front.program.session()).collect();
        self.processes.push(Processes { name: "nginx".to_owned(), pids });
        Ok(self)
    }

    /// Servers of this binary, and what they stand on.
    pub fn fresh(flags: &Flags, name: &str, binary: &Path) -> anyhow::Result<Target> {
        let program = binary.display().to_string();
        ensure!(
            binary.is_file() || is_installed(&program),
            "there is no server {program} to start: --server FILE, or --addr of one that runs"
        );
        let mut words: Vec<String> = vec!["--password-cost".to_owned(), flags.password_cost().to_owned()];
        words.extend(["--reactors".to_owned(), flags.reactors().to_string()]);
        words.extend(["--workers".to_owned(), flags.workers().to_string()]);
        if flags.workload == Workload::Storm || flags.scenario.is_some() {
            words.extend(["--metrics".to_owned(), "127.0.0.1:0".to_owned()]);
        }
        let homes = has_homes(binary)?.then(|| Homes::new(HOME_SEED, flags.reactors()));
        if homes.is_some() {
            words.extend(["--home-seed".to_owned(), HOME_SEED.to_string()]);
        }
        let (mut store, mut redis, mut beside) = (None, None, Vec::new());
        if flags.nodes() > 1 {
            let mariadb = MariaDb::shared()?;
            store = Some(mariadb.new_database());
            let redis = redis.insert(start_redis()?);
            words.extend(["--redis".to_owned(), format!("redis://{}", redis.address)]);
            beside.push(Processes { name: "mariadb".to_owned(), pids: vec![mariadb.pid()] });
            beside.push(Processes { name: "redis".to_owned(), pids: vec![redis.pid()] });
        }
        let start = |_| {
            program::start(name, Ready::Says("listening on 127.0.0.1:"), |folder, address| {
                let of_its_own = || format!("sqlite:{}", folder.join("chat.db").display());
                let mut command = apart(&program, true);
                command.arg("--store").arg(store.clone().unwrap_or_else(of_its_own)).args(&words);
                command.arg(address.ip().to_string()).arg(address.port().to_string());
                // The environment of this program must not change what is measured.
                std::env::vars().filter(|(name, _)| name.starts_with("CHAT_")).for_each(|(name, _)| {
                    command.env_remove(name);
                });
                command.env("RUST_LOG", "info");
                Ok(command)
            })
        };
        let servers = (0..flags.nodes()).map(start).collect::<anyhow::Result<Vec<Program>>>()?;
        let dialect = ours(flags);
        let mut processes = vec![Processes { name: name.to_owned(), pids: servers.iter().map(Program::pid).collect() }];
        processes.extend(beside);
        let target = Target {
            name: name.to_owned(),
            servers: servers
                .iter()
                .map(|server| Endpoint { address: server.address, dialect, source: flags.source, tls: None })
                .collect(),
            processes,
            is_foreign: false,
            is_unknown: false,
            homes,
            keep: Keep::Nodes { servers, _redis: redis },
            fronts: Vec::new(),
        };
        target.behind_tls(flags)
    }

    /// This program once more, as the floor.
    pub fn floor() -> anyhow::Result<Target> {
        let own = std::env::current_exe()?;
        let folder = tempfile::tempdir()?;
        let mut command = apart(&own.display().to_string(), true);
        let mut child = command.arg("--relay").stdout(Stdio::piped()).stderr(open_log(folder.path())?.1).spawn()?;
        let output = child.stdout.take().context("stdout is piped")?;
        let process = Owned::new(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let port: u16 = line.trim().parse().context("the floor has no port")?;
        let program = Program { process, folder, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), command };
        Ok(Target::program("floor", Dialect::Chat(Capabilities::FLOOR), program))
    }

    pub fn program(name: &str, dialect: Dialect, program: Program) -> Target {
        // All that it may have started, too: they share its session.
        let pids = program.session();
        Target {
            name: name.to_owned(),
            servers: vec![Endpoint { address: program.address, dialect, source: None, tls: None }],
            processes: vec![Processes { name: name.to_owned(), pids }],
            is_foreign: false,
            is_unknown: false,
            homes: None,
            keep: Keep::Program(program),
            fronts: Vec::new(),
        }
    }

    pub fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().flat_map(|of| of.pids.iter().copied())
    }

    pub fn is_sturdy(&self) -> bool {
        self.servers.iter().all(|server| server.dialect.is_sturdy())
    }

    /// Where its servers tell what they do, as far as they do and it is known.
    pub fn metrics(&self, flags: &Flags) -> anyhow::Result<Vec<SocketAddr>> {
        match &self.keep {
            Keep::Foreign => flags.metrics(),
            Keep::Nodes { servers, .. } => {
                Ok(servers.iter().filter_map(|server| server.logged("metrics on http://")).collect())
            }
            Keep::Program(_) => Ok(Vec::new()),
        }
    }

    /// Kills its servers and starts them anew, with the same addresses and stores. They are not ready when this returns,
    /// with the time when they were dead, in nanoseconds.
    ///
    /// # Errors
    /// They were not started here, or cannot be started again.
    pub fn kill_and_start_again(&mut self) -> anyhow::Result<u64> {
        let is_one = matches!(self.keep, Keep::Program(_));
        let programs = match &mut self.keep {
            Keep::Foreign => &mut [],
            Keep::Nodes { servers, .. } => &mut servers[..],
            Keep::Program(program) => std::slice::from_mut(program),
        };
        ensure!(!programs.is_empty(), "a server that was not started here is not killed");
        programs.iter_mut().for_each(|program| program.process.kill());
        let dead = clock::now();
        for Program { process, command, .. } in &mut *programs {
            process.start_again(command).with_context(|| format!("{} cannot be started again", self.name))?;
        }
        if let Some(processes) = self.processes.first_mut() {
            let deadline = Instant::now() + STARTING_CHILDREN;
            let all = || -> Vec<u32> {
                match is_one {
                    true => programs.iter().flat_map(Program::session).collect(),
                    false => programs.iter().map(Program::pid).collect(),
                }
            };
            let mut pids = all();
            while pids.len() < processes.pids.len() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
                pids = all();
            }
            processes.pids = pids;
        }
        Ok(dead)
    }

    /// Which of its processes have ended.
    pub fn ended(&self) -> Option<u32> {
        self.pids().find(|&pid| !machine::is_alive(pid))
    }

    /// What can be said of a target that has failed: which process has ended, how, and what was logged last.
    pub fn last_words(&mut self) -> String {
        let of_fronts: String = self.fronts.iter_mut().map(|front| front.program.last_words("nginx")).collect();
        let of_servers = match &mut self.keep {
            Keep::Foreign => {
                let gone = self.processes.iter().flat_map(|of| &of.pids).filter(|&&pid| !machine::is_alive(pid));
                gone.map(|pid| format!("process {pid} has ended\n")).collect()
            }
            Keep::Nodes { servers, .. } => servers.iter_mut().map(|server| server.last_words("server")).collect(),
            Keep::Program(program) => program.last_words(&self.name),
        };
        of_servers + &of_fronts
    }
}

/// Does this server decide by a user's id where the user belongs? An earlier one, which gives its reactors the
/// connections in turn, knows no such flag, and refuses it before it does anything else.
fn has_homes(binary: &Path) -> anyhow::Result<bool> {
    let mut command = apart(&binary.display().to_string(), true);
    command.args(["--home-seed", "0", "--help"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("{} cannot be started", binary.display()))?;
    let (mut process, deadline) = (Owned::new(child), Instant::now() + STARTING);
    loop {
        if let Some(status) = process.0.try_wait()? {
            return Ok(status.success());
        }
        ensure!(Instant::now() < deadline, "{} does not end when it is asked for help", binary.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}
