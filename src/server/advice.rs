//! What an operator can change where a start fails.

use std::error::Error;
use std::io;

use anyhow::{Context, Result, anyhow, ensure};

use rlimit::Resource;

use super::monitor::MAX_CONNECTIONS;
use crate::config::Config;

/// An address cannot be listened on.
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
        Some(libc::EADDRINUSE) => "; something else listens there: end that, or take another port",
        Some(libc::EACCES) => "; ports below 1024 need root or CAP_NET_BIND_SERVICE: take one from 1024",
        Some(libc::EADDRNOTAVAIL) => "; this machine has no such address: take one of its own, or a port alone for all",
        Some(libc::EAFNOSUPPORT) => "; this machine has no IPv6: take an address of IPv4",
        _ => "",
    }
}

/// The file descriptors of this process, and what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptors {
    limit: u64,
    /// What is open before the first client comes, at most.
    own: u64,
    /// Connections of who asks for metrics.
    watchers: u64,
}

/// For what comes and goes: a connection to the store beside the one that it replaces, a lookup of a name, what
/// is left of a node that begins anew.
const SPARE: u64 = 40;

impl Descriptors {
    /// Raises their limit as far as it goes.
    ///
    /// # Errors
    /// It is less than the server itself needs.
    pub fn enough(config: &Config) -> Result<Descriptors> {
        let limit = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit of file descriptors")?;
        let descriptors = Descriptors::of(config, limit);
        let (needed, Config { reactors, workers, .. }) = (descriptors.own + 1, config);
        ensure!(
            limit >= needed,
            "the limit of file descriptors is {limit}, and {reactors} reactors and {workers} workers need {needed}, \
             beside one for each further client: {RAISE_DESCRIPTORS}"
        );
        Ok(descriptors)
    }

    fn of(config: &Config, limit: u64) -> Descriptors {
        // A poll with its waker for each reactor, and a connection of two files to the store for each worker.
        let each = (config.reactors * 3 + config.workers * 2) as u64;
        let if_any = |wanted: bool, descriptors| if wanted { descriptors } else { 0 };
        let own = 23 + each + if_any(config.redis.is_some(), 10) + if_any(config.metrics.is_some(), 12);
        let watchers = if_any(config.metrics.is_some(), MAX_CONNECTIONS.min(limit / 4));
        Descriptors { limit, own, watchers }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// How many may ask for metrics at a time.
    pub fn watchers(&self) -> usize {
        usize::try_from(self.watchers).unwrap_or(usize::MAX)
    }

    /// How many clients there is room for: one at least.
    pub fn room(&self) -> usize {
        let room = self.limit.saturating_sub(self.own + self.watchers + SPARE).max(1);
        usize::try_from(room).unwrap_or(usize::MAX)
    }
}

/// Sees to it that a limit of memory, where there is one, leaves enough for the threads, so that none of
/// them ends the process for want of it. To be called before there are any.
///
/// # Errors
/// It does not.
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
            "the limit of memory is {} KiB, and {reactors} reactors and {workers} workers need {needed}, beside what \
             clients take: raise it, by ulimit {flag} in a shell or {setting} in systemd, or start fewer with --reactors \
             and --workers",
            limit / 1024
        );
    }
    Ok(())
}

/// By default each thread's allocator reserves 64 MiB of addresses, which count towards such a limit.
fn use_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the allocator's own.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// A thread's stack, what guards it, and what it allocates at its start.
const THREAD_KIB: u64 = 2304;
/// The program, its libraries, and what the store keeps at hand.
const BASE_KIB: u64 = 24 * 1024;
/// Beside reactors and workers: acceptor, signals, lives, log, those of the store, the bus, the cluster and the
/// metrics.
const OTHER_THREADS: usize = 16;

const RAISE_DESCRIPTORS: &str =
    "raise it, by ulimit -n in a shell or LimitNOFILE in systemd, or start fewer with --reactors and --workers";

/// An error of a start, with what can be done where it is the system's.
pub fn advise(error: anyhow::Error, config: &Config) -> anyhow::Error {
    let of_system = |cause: &(dyn Error + 'static)| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let advice = match error.chain().find_map(of_system) {
        _ if error.is::<CannotListen>() => return error,
        Some(libc::EMFILE) => {
            let needed = Descriptors::of(config, u64::MAX).own + 1;
            format!("{needed} file descriptors are needed: {RAISE_DESCRIPTORS}")
        }
        Some(libc::ENFILE) => "the system's table of files is full: raise fs.file-max with sysctl".to_owned(),
        Some(libc::EAGAIN | libc::ENOMEM) => "the system gives no more threads, or no memory for them: raise it, by \
             ulimit -u and ulimit -v in a shell or TasksMax and MemoryMax in systemd, or start fewer with --reactors and --workers".to_owned(),
        _ => return error,
    };
    anyhow!("{error:#}; {advice}")
}
