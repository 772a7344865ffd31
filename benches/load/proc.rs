//! What /proc tells about processes.

use std::io;

/// Of the clock in which /proc counts CPU time; the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    pub user: f64,
    pub system: f64,
}

impl Cpu {
    pub fn since(self, earlier: Cpu) -> Cpu {
        Cpu { user: self.user - earlier.user, system: self.system - earlier.system }
    }

    pub fn total(self) -> f64 {
        self.user + self.system
    }
}

/// Over all of `pids`.
pub fn cpu(pids: &[u32]) -> io::Result<Cpu> {
    pids.iter().try_fold(Cpu::default(), |sum, pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold blanks: count from the parenthesis that ends it.
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = |n: usize| fields.split_whitespace().nth(n).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
        Ok(Cpu { user: sum.user + ticks(11) / TICKS_PER_SECOND, system: sum.system + ticks(12) / TICKS_PER_SECOND })
    })
}

/// Resident memory over all of `pids`, in KiB.
pub fn resident(pids: &[u32]) -> io::Result<u64> {
    pids.iter().try_fold(0, |sum, pid| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        Ok(sum + line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0))
    })
}

/// What this machine is, in a line.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let kib = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kib = kib.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores of {model}, {:.0} GiB, Linux {}", kib / 1048576.0, kernel.trim())
}
