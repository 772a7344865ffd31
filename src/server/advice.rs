//! What an operator can change where a start fails.

use std::error::Error;
use std::io;

use anyhow::{Context, Result, anyhow, ensure};

use rlimit::Resource;

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

/// Raises the limit of file descriptors as far as it goes, and returns it.
///
/// # Errors
/// It is less than the server itself needs.
pub fn enough_descriptors(config: &Config) -> Result<u64> {
    let limit = rlimit::increase_nofile_limit(u64::MAX).context("cannot read the limit of file descriptors")?;
    let needed = descriptors_needed(config);
    let Config { reactors, workers, .. } = config;
    ensure!(
        limit >= needed,
        "the limit of file descriptors is {limit}, and {reactors} reactors and {workers} workers need {needed}, beside \
         one for each client: {RAISE_DESCRIPTORS}"
    );
    Ok(limit)
}

/// What is open before the first client comes, at most, and room for that one.
fn descriptors_needed(config: &Config) -> u64 {
    // A poll with its waker for each reactor, and a connection of two files to the store for each worker.
    let each = (config.reactors * 3 + config.workers * 2) as u64;
    let if_any = |wanted: bool, descriptors| if wanted { descriptors } else { 0 };
    24 + each + if_any(config.redis.is_some(), 8) + if_any(config.metrics.is_some(), 12)
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
/// Beside reactors and workers: acceptor, store, log, and those of the bus and the metrics.
const OTHER_THREADS: usize = 10;

const RAISE_DESCRIPTORS: &str =
    "raise it, by ulimit -n in a shell or LimitNOFILE in systemd, or start fewer with --reactors and --workers";

/// An error of a start, with what can be done where it is the system's.
pub fn advise(error: anyhow::Error, config: &Config) -> anyhow::Error {
    let of_system = |cause: &(dyn Error + 'static)| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    let advice = match error.chain().find_map(of_system) {
        _ if error.is::<CannotListen>() => return error,
        Some(libc::EMFILE) => format!("{} file descriptors are needed: {RAISE_DESCRIPTORS}", descriptors_needed(config)),
        Some(libc::ENFILE) => "the system's table of files is full: raise fs.file-max with sysctl".to_owned(),
        Some(libc::EAGAIN | libc::ENOMEM) => "the system gives no more threads, or no memory for them: raise it, by \
             ulimit -u and ulimit -v in a shell or TasksMax and MemoryMax in systemd, or start fewer with --reactors and --workers".to_owned(),
        _ => return error,
    };
    anyhow!("{error:#}; {advice}")
}
