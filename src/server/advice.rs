//! Main thread: what an operator can change when a start fails.

use std::error::Error;
use std::io;

use anyhow::{Context, Result, anyhow, ensure};

use rlimit::Resource;

use super::monitor::MAX_CONNECTIONS;
use crate::config::Config;
use crate::wire::dialect::DialectChoice;

/// The server cannot listen on an address.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place}: {error}{}", advice_for_binding(.error))]
pub struct CannotListen {
    place: String,
    error: io::Error,
}

impl CannotListen {
    /// `place` is the address, and what it is for.
    pub fn new(place: String, error: io::Error) -> Self {
        CannotListen { place, error }
    }
}

fn advice_for_binding(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "; another program listens there: end it, or use another port",
        Some(libc::EACCES) => "; ports below 1024 need root or CAP_NET_BIND_SERVICE: use one from 1024",
        Some(libc::EADDRNOTAVAIL) => {
            "; this machine has no such address: use one of its own, or only a port for all of them"
        }
        Some(libc::EAFNOSUPPORT) => "; this machine has no IPv6: use an IPv4 address",
        _ => "",
    }
}

/// The file descriptors of this process, and what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptors {
    limit: u64,
    /// What is open before the first client comes, at most.
    own: u64,
    /// Connections of clients that ask for metrics.
    watchers: u64,
}

/// Descriptors that are needed only for a time: for a connection to the store beside the one that it replaces, for
/// resolving a name, for what is left of a node that begins anew.
const SPARE: u64 = 40;

impl Descriptors {
    /// Raises their limit as far as possible.
    ///
    /// # Errors
    /// The limit is lower than what the server itself needs.
    pub fn enough(config: &Config) -> Result<Descriptors> {
        let limit = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit of file descriptors")?;
        let descriptors = Descriptors::of(config, limit);
        let advice = descriptors.advice(config);
        ensure!(limit > descriptors.own, "the limit of file descriptors is {limit}, and {advice}");
        Ok(descriptors)
    }

    fn of(config: &Config, limit: u64) -> Descriptors {
        // A poll with its waker for each reactor, and a connection of two files to the store for each worker.
        let each = (config.reactors * 3 + config.workers * 2) as u64;
        let if_any = |wanted: bool, descriptors| if wanted { descriptors } else { 0 };
        // Each socket that is listened on is kept for the next life, beside the acceptor's.
        let further = config.listeners.len().saturating_sub(1) as u64 * 2;
        let own = 23 + each + further + if_any(config.redis.is_some(), 10) + if_any(config.metrics.is_some(), 12);
        let watchers = if_any(config.metrics.is_some(), MAX_CONNECTIONS.min(limit / 4));
        Descriptors { limit, own, watchers }
    }

    fn advice(&self, config: &Config) -> String {
        let (needed, Config { reactors, workers, .. }) = (self.own + 1, config);
        format!(
            "{reactors} reactors and {workers} workers need {needed}, and each further client one more: raise it, by \
             ulimit -n in a shell or LimitNOFILE in systemd, or start fewer with --reactors and --workers"
        )
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The number of clients that can ask for metrics at a time.
    pub fn watchers(&self) -> usize {
        usize::try_from(self.watchers).unwrap_or(usize::MAX)
    }

    /// The number of clients that there is room for: at least one.
    pub fn room(&self) -> usize {
        let room = self.limit.saturating_sub(self.own + self.watchers + SPARE).max(1);
        usize::try_from(room).unwrap_or(usize::MAX)
    }
}

/// Checks that a limit of memory, if there is one, leaves enough for the threads, so that none of
/// them ends the process for lack of it. To be called before any thread is started.
///
/// # Errors
/// The limit is too low.
pub fn enough_memory(config: &Config) -> Result<()> {
    for (resource, flag, setting) in [(Resource::AS, "-v", "LimitAS"), (Resource::DATA, "-d", "LimitDATA")] {
        let (limit, _) = resource.get().context("cannot read the limit of memory")?;
        if limit == rlimit::INFINITY {
            continue;
        }
        use_one_arena();
        let Config { reactors, workers, password_cost, .. } = config;
        let threads = (reactors + workers + OTHER_THREADS) as u64;
        let needed = BASE_KIB + threads * THREAD_KIB + u64::from(password_cost.kib());
        ensure!(
            limit / 1024 >= needed,
            "the limit of memory is {} KiB, and {reactors} reactors and {workers} workers need {needed}, in addition to \
             what clients take: raise it, by ulimit {flag} in a shell or {setting} in systemd, or start fewer with --reactors \
             and --workers",
            limit / 1024
        );
    }
    Ok(())
}

/// Uses one arena for all threads: by default each thread reserves 64 MiB of addresses, which count towards such a
/// limit.
fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only sets a parameter of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// A thread's stack, its guard page, and what it allocates at its start.
const THREAD_KIB: u64 = 2304;
/// The program, its libraries, and the store's caches.
const BASE_KIB: u64 = 24 * 1024;
/// All other threads: acceptor, signals, lives, log, and those of the store, the bus, the cluster and the metrics.
const OTHER_THREADS: usize = 16;

/// Adds to an error of a start what an operator can do, if it is an error of the system.
pub fn advise(error: anyhow::Error, config: &Config) -> anyhow::Error {
    let of_system = |cause: &(dyn Error + 'static)| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let advice = match error.chain().find_map(of_system) {
        _ if error.is::<CannotListen>() => return error,
        Some(libc::EMFILE) => {
            format!("the limit of file descriptors is too low: {}", Descriptors::of(config, u64::MAX).advice(config))
        }
        Some(libc::ENFILE) => "the system's table of files is full: raise fs.file-max with sysctl".to_owned(),
        Some(libc::EAGAIN | libc::ENOMEM) => "the system gives no more threads, or no memory for them: raise its limits, by \
             ulimit -u and ulimit -v in a shell or TasksMax and MemoryMax in systemd, or start fewer with --reactors and --workers".to_owned(),
        _ => return error,
    };
    anyhow!("{error:#}; {advice}")
}

/// Ports from 1024 up to which no browser connects: <https://fetch.spec.whatwg.org/#port-blocking>
const BLOCKED: [u16; 19] =
    [1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080];

/// What browsers make of the main listener, for the log.
pub fn about_browsers(config: &Config, port: u16) -> &'static str {
    let has_page = config.web && config.listeners.first().is_some_and(|main| main.dialect == DialectChoice::Auto);
    match has_page {
        true if BLOCKED.contains(&port) => "; for browsers, which refuse this port, add --listen 127.0.0.1:7000",
        true => "; a page for browsers",
        false => "",
    }
}
