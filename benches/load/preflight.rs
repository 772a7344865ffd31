//! Checks, before any user connects, what would stop users: descriptors, ports, limits, and what the target's servers
//! cannot do.

use std::net::SocketAddr;

use anyhow::{bail, ensure};

use crate::acts::Act;
use crate::dialect::{Capabilities, GroupIds};
use crate::flags::{Flags, Rival, workload_measures};
use crate::machine;
use crate::measures::Measure;
use crate::target::Target;
use crate::workload::Workload;

/// Descriptors that this process needs for itself.
const RESERVE: u64 = 64;
/// The largest object, in bytes, that is known to arrive in one piece at the server that half an object crashes.
const LARGEST_PIECE: usize = 1024;

/// The number of connections that the workload makes, with those of users that are absent later.
fn connections(flags: &Flags) -> u64 {
    let absent = if flags.workload == Workload::Store || flags.mixes_in(Act::Store) { 2 } else { 1 };
    (flags.users() * absent + flags.strangers().iter().sum::<usize>()) as u64
}

/// # Errors
/// A limit does not suffice for the workload; the message has its number.
pub fn check(flags: &Flags, target: &Target) -> anyhow::Result<()> {
    let users = connections(flags);
    if let Some((limit, _)) = machine::descriptors(std::process::id()) {
        ensure!(
            users + RESERVE <= limit,
            "{users} connections need more descriptors than this process may have, {limit}: ulimit -n"
        );
    }
    let nodes = target.servers.len() as u64;
    let each = users.div_ceil(nodes);
    if let Some(ports) = machine::ports().map(|ports| ports.saturating_mul(flags.sources())) {
        ensure!(
            each <= ports,
            "{each} connections to {} need more than the {ports} local ports there are for each address: --source with \
             a network, or a wider net.ipv4.ip_local_port_range",
            target.servers[0].address
        );
    }
    for of in target.processes.iter().filter(|of| !["mariadb", "mysql", "redis"].contains(&of.name.as_str())) {
        of.pids.iter().try_for_each(|&pid| check_process(flags, pid, each))?;
    }
    Ok(())
}

fn check_process(flags: &Flags, pid: u32, connections: u64) -> anyhow::Result<()> {
    let (words, environment) = machine::command(pid);
    let is_ours = words.first().is_some_and(|program| {
        program.ends_with("chat-server")
            || (program.ends_with("ChatServer") && words.iter().any(|w| w.starts_with("--")))
    });
    if let Some((limit, open)) = machine::descriptors(pid) {
        // Ours has raised its limit to what it may be.
        ensure!(
            open + connections <= limit,
            "{connections} connections need more descriptors than process {pid} may have, {limit}, of which {open} are \
             used: ulimit -n, where it is started"
        );
    }
    if !is_ours {
        return Ok(());
    }
    // The value in its command line, or in its environment.
    let told = |flag: &str| {
        let words = words.iter().enumerate().find_map(|(n, word)| {
            let rest = word.strip_prefix(flag)?;
            rest.strip_prefix('=').or_else(|| words.get(n + 1).filter(|_| rest.is_empty()).map(String::as_str))
        });
        let variable = format!("CHAT_{}", flag.trim_start_matches("--").replace('-', "_").to_uppercase());
        let environment = environment.iter().find(|(name, _)| *name == variable).map(|(_, value)| value.as_str());
        words.or(environment).map(str::to_owned)
    };
    let is_internet = told("--limits").as_deref() == Some("internet");
    let limit = |flag: &str, internet: Option<u64>| match told(flag).as_deref() {
        Some("off") => None,
        Some(number) => number.parse::<u64>().ok(),
        None => internet.filter(|_| is_internet),
    };
    let strangers = flags.strangers().iter().sum::<usize>() as u64;
    let new = connections.saturating_sub(strangers);
    let registrations = if flags.accounts.as_ref().is_some_and(|file| file.exists()) { 0 } else { new };
    let registers = flags.workload == Workload::Register || flags.mixes_in(Act::Register);
    let registrations = if registers { u64::MAX } else { registrations };
    let members = match flags.workload {
        Workload::Group => flags.members().unwrap_or(flags.users() / usize::from(flags.threads)) as u64,
        Workload::Crowd => connections - 2,
        _ => 0,
    };
    let message = if flags.workload.sends_messages() { flags.size().high as u64 } else { 0 };
    let from_one = connections.div_ceil(flags.sources());
    let limits = [
        ("--max-connections", limit("--max-connections", None), connections, "connections"),
        (
            "--max-connections-per-address",
            limit("--max-connections-per-address", Some(50)),
            from_one,
            "connections of an address",
        ),
        ("--max-registrations", limit("--max-registrations", Some(20)), registrations, "new accounts an hour"),
        ("--max-group-size", limit("--max-group-size", Some(1000)), members, "members of a group"),
        ("--max-message", limit("--max-message", None), message, "bytes of a message"),
    ];
    for (flag, limit, needed, what) in limits {
        let Some(limit) = limit.filter(|&limit| needed > limit) else { continue };
        let needed = if needed == u64::MAX { "any number of".to_owned() } else { needed.to_string() };
        bail!(
            "the server, process {pid}, allows {limit} {what}, and {needed} are needed: start it with another {flag}"
        );
    }
    let rate = limit("--max-message-rate", Some(20));
    if let Some(rate) = rate.filter(|_| flags.workload.sends_messages()) {
        let open = flags.rate().map(|all| all / flags.users() as f64);
        ensure!(
            open.is_some_and(|each| each <= rate as f64),
            "the server, process {pid}, allows each connection {rate} messages a second, and it would be the limit that \
             is measured: start it with --max-message-rate off, or keep below it with --rate"
        );
    }
    Ok(())
}

/// Checks that each server can do what this workload needs.
///
/// # Errors
/// A server cannot; the message has the reason.
pub fn check_capabilities(flags: &Flags, target: &Target) -> anyhow::Result<()> {
    let is_cluster = target.servers.len() > 1;
    for server in &target.servers {
        let Some(it) = server.dialect.capabilities() else { continue };
        if let Some(why) = missing(flags, &it, is_cluster) {
            bail!("{} cannot be measured at {}: {why}", flags.workload.name(), server.address as SocketAddr);
        }
    }
    Ok(())
}

fn missing(flags: &Flags, it: &Capabilities, is_cluster: bool) -> Option<String> {
    let workload = flags.workload;
    let why = |reason: &str| Some(reason.to_owned());
    let times = workload_measures(flags);
    if !it.acks && (flags.wants_acks() || times.contains(&Measure::Stored)) {
        return why("it gives no acks, so nobody knows what became of a message that no one is there for");
    }
    if workload.uses_groups() && it.group_ids == GroupIds::Never {
        return why("no reply of it tells the id of a group");
    }
    if it.sturdy {
        return None;
    }
    if workload.is_a_storm() {
        return why("logins and disconnects side by side end it");
    }
    if flags.strangers() != [0; 2] {
        return why("half a request ends it: without --half-open and --slow-senders");
    }
    if workload.is_always_open() || flags.window() > 1 {
        return why("two objects in one read end it, so each connection may have one in flight: --window 1");
    }
    if flags.batch {
        return why("two objects in one read end it: without --batch");
    }
    if flags.size().high > LARGEST_PIECE {
        return Some(format!("half an object in one read ends it: --size {LARGEST_PIECE} at most"));
    }
    if is_cluster && (flags.users() > 2 || flags.rate.is_some()) {
        return why("two nodes of it bear one sending connection at a time: --users 2, in a closed loop");
    }
    None
}

/// Checks that the rivals are installed.
///
/// # Errors
/// A rival is not installed; the message names its package.
pub fn check_rivals(flags: &Flags) -> anyhow::Result<()> {
    flags.rivals().try_for_each(Rival::need)
}
