//! What the kernel counts about this process, from `/proc`: under the names that Prometheus'
//! own clients use, and the processor time of each thread, which costs the threads nothing.

use std::collections::BTreeMap;
use std::fs;

use super::cell::Kind;
use super::watched::{Watched, label};

/// The clock ticks of `/proc/…/stat` in a second, on every architecture.
const TICKS_A_SECOND: f64 = 100.0;

pub(super) fn watched() -> Vec<Watched> {
    let watched =
        |name, help, kind, read: fn() -> Vec<(String, f64)>| Watched { name, help, kind, read: Box::new(read) };
    vec![
        watched(
            "chat_thread_cpu_seconds_total",
            "Processor time by thread, user and system.",
            Kind::Counter,
            thread_times,
        ),
        watched("process_cpu_seconds_total", "Processor time, user and system.", Kind::Counter, || {
            unlabelled(cpu_seconds("/proc/self/stat"))
        }),
        watched("process_resident_memory_bytes", "Resident memory.", Kind::Gauge, || unlabelled(resident_bytes())),
        watched("process_open_fds", "Open file descriptors.", Kind::Gauge, || {
            unlabelled(fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as f64))
        }),
        watched("process_max_fds", "How many file descriptors there may be.", Kind::Gauge, || {
            unlabelled(rlimit::Resource::NOFILE.get().ok().map(|(soft, _)| soft as f64))
        }),
    ]
}

/// What cannot be read is left out.
fn unlabelled(value: Option<f64>) -> Vec<(String, f64)> {
    value.map(|value| (String::new(), value)).into_iter().collect()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    let text = fs::read_to_string(stat).ok()?;
    // The second field, a name, may hold blanks and parentheses; the third is behind its end.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_A_SECOND)
}

fn resident_bytes() -> Option<f64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

/// By the threads' names; those of one name are added up.
fn thread_times() -> Vec<(String, f64)> {
    let mut times: BTreeMap<String, f64> = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let path = task.path();
        // A thread may end meanwhile.
        let (Ok(name), Some(seconds)) =
            (fs::read_to_string(path.join("comm")), cpu_seconds(&path.join("stat").to_string_lossy()))
        else {
            continue;
        };
        *times.entry(name.trim_end().to_owned()).or_default() += seconds;
    }
    times.into_iter().map(|(name, seconds)| (label("thread", &name), seconds)).collect()
}
