//! What /proc reports about this machine and its processes.

use std::io;
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::clock::CpuClock;

/// The rate of the clock in which /proc/stat counts; the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu { user: (self.user - earlier.user).max(0.0), system: (self.system - earlier.system).max(0.0) }
    }

    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// The CPU time of all of `pids`. The sum of both parts is exact; how it is split is the kernel's estimate.
///
/// # Errors
/// One of them has ended.
pub fn cpu(pids: &[u32]) -> io::Result<Cpu> {
    pids.iter().try_fold(Cpu::default(), |sum, &pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let total = CpuClock::of(pid)?.seconds()?;
        // The name may hold blanks: count from the parenthesis that ends it.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        let (user, system) = (ticks(11), ticks(12));
        let share = if user + system > 0.0 { user / (user + system) } else { 0.5 };
        Ok(Cpu { user: sum.user + total * share, system: sum.system + total * (1.0 - share) })
    })
}

/// Resident memory over all of `pids`, in KiB.
///
/// # Errors
/// One of them has ended.
pub fn resident(pids: &[u32]) -> io::Result<u64> {
    pids.iter().try_fold(0, |sum, pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        Ok(sum + line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0))
    })
}

pub fn is_alive(pid: u32) -> bool {
    // A zombie is dead.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// What this program may use of the machine.
struct Mine {
    cores: f64,
    set: CpuSet,
}

/// As of when it is first asked: before this thread is pinned.
fn mine() -> &'static Mine {
    static MINE: OnceLock<Mine> = OnceLock::new();
    MINE.get_or_init(|| Mine {
        cores: std::thread::available_parallelism().map_or(1.0, |cores| usize::from(cores) as f64),
        set: sched_getaffinity(Pid::from_raw(0)).unwrap_or_else(|_| CpuSet::new()),
    })
}

/// The cores that this process and what it starts may use: by its affinity, and by the quota of its group.
pub fn cores() -> f64 {
    mine().cores
}

/// The same, as a list.
pub fn all_cores() -> String {
    let Mine { set, .. } = mine();
    let cores = (0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false));
    cores.map(|core| core.to_string()).collect::<Vec<_>>().join(",")
}

/// The numbers in a list such as `0,2-3`.
pub fn cores_in(list: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("'{list}' is no list of cores, such as 0,2-3");
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.parse::<usize>().ok().filter(|&core| core < CpuSet::count());
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// From here on, this thread and those that it starts use these cores alone.
///
/// # Errors
/// There is none of them, or it is not ours.
pub fn pin(list: &str) -> anyhow::Result<()> {
    let Mine { set: all, .. } = mine();
    let mut set = CpuSet::new();
    for core in cores_in(list).map_err(anyhow::Error::msg)? {
        ensure!(all.is_set(core).unwrap_or(false), "--pin {list}: this program may not use core {core}");
        set.set(core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("--pin {list}"))
}

/// CPU time that all processes have used on those cores, in seconds; what a hypervisor took for others is used, too.
pub fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.lines().filter_map(|line| {
        let (name, counts) = line.strip_prefix("cpu")?.split_once(' ')?;
        let core: usize = name.parse().ok()?; // the first line is the sum of all
        let counts: Vec<f64> = counts.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests are in user already
        let used = counts.iter().take(8).sum::<f64>() - counts.get(3)? - counts.get(4)?;
        mine().set.is_set(core).unwrap_or(false).then_some(used)
    });
    ticks.sum::<f64>() / TICKS_PER_SECOND
}

/// The soft limit of open descriptors of a process, and how many it has.
pub fn descriptors(pid: u32) -> Option<(u64, u64)> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft = line.split_whitespace().next()?;
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some((soft.parse().unwrap_or(u64::MAX), open))
}

/// The command line of a process, and its environment, if it may be seen.
pub fn command(pid: u32) -> (Vec<String>, Vec<(String, String)>) {
    let read = |file: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let words = bytes.split(|&byte| byte == 0).filter(|word| !word.is_empty());
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>()
    };
    let environment = read("environ").into_iter().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    (read("cmdline"), environment.collect())
}

/// How many connections can be made from one address to another.
pub fn ports() -> Option<u64> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u64>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    Some((last + 1).saturating_sub(first))
}

/// What this machine is, in a line.
pub fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let kib = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kib = kib.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{} cores of {model}, {:.0} GiB, Linux {}", cores(), kib / 1048576.0, kernel.trim())
}
