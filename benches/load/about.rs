//! What is measured, with what, and where.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::flags::{After, Flags, Rate, Share, Sizes};
use crate::machine;
use crate::scenario::Phase;
use crate::which;
use crate::workload::Workload;

/// What stands above the figures of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct About {
    pub title: String,
    pub setting: String,
    pub command: String,
    /// When it began, in local time.
    pub began: String,
    pub is_open: bool,
    /// This generator's share, if there are several.
    pub share: Option<Share>,
    /// The phases of a scenario: the name of each, and what is measured in it.
    #[serde(default)]
    pub phases: Vec<String>,
    pub settings: Value,
}

impl About {
    pub fn of(flags: &Flags) -> About {
        let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
        About {
            title: title(flags),
            setting: setting(flags),
            command: format!("{} {}", which::invocation(), words.join(" ")),
            began: chrono::Local::now().format("%F %T %:z").to_string(),
            is_open: is_open(flags),
            share: flags.share,
            phases: Vec::new(),
            settings: settings(flags),
        }
    }

    /// `whole`: the flags of all phases.
    pub fn of_phases(whole: &Flags, phases: &[Phase]) -> About {
        let file = whole.scenario.as_deref().map_or(String::new(), |file| file.display().to_string());
        About {
            title: format!("scenario {file}: {} phases", phases.len()),
            is_open: phases.iter().all(|phase| is_open(&phase.flags)),
            phases: phases.iter().map(|Phase { name, flags }| format!("{name}: {}", title(flags))).collect(),
            settings: phases.iter().map(|Phase { name, flags }| (name.clone(), settings(flags))).collect(),
            ..About::of(whole)
        }
    }

    /// The settings in which two runs differ, but for these: each with both values.
    pub fn differences(&self, other: &About, free: &[&str]) -> Vec<String> {
        let (one, other) = (&self.settings, &other.settings);
        let names = one.as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let differ = names.filter(|name| !free.contains(name) && one[*name] != other[*name]);
        differ.map(|name| format!("{name} {} and {}", one[name], other[name])).collect()
    }
}

fn is_open(flags: &Flags) -> bool {
    let is_searched = flags.find_max || !flags.slo.is_empty();
    let has_no_loop = matches!(flags.workload, Workload::Idle | Workload::Storm);
    is_searched || flags.rate.is_some() || flags.workload.is_always_open() || has_no_loop
}

/// What is measured.
pub fn title(flags: &Flags) -> String {
    let workload = flags.workload;
    let mut title = format!("{}: {} users", workload.name(), flags.all_users());
    if let Some(members) = flags.members() {
        title += &format!(" in groups of {members}");
    }
    if let Some(mix) = flags.mix {
        title += &format!(", {mix}");
    }
    if workload.has_window() && !is_open(flags) {
        title += &format!(", window {}", flags.window());
    }
    if let Some(Rate::Percent(percent)) = flags.rate {
        title += &format!(", {percent:.0} % of capacity");
    }
    if let Some(rate) = flags.rate().filter(|_| !flags.find_max) {
        title += &format!(", {:.0} a second", rate * flags.shares() as f64);
    }
    if workload.sends_messages() {
        title += &format!(", {} bytes each", flags.size());
    }
    if let Some(think) = flags.think {
        title += &format!(", thinking for {think} s");
    }
    if flags.ramp() > 0.0 {
        title += &format!(", after a ramp of {} s", flags.ramp());
    }
    let told = [
        (flags.seq, ", acked"),
        (flags.batch, ", batched"),
        (flags.together, ", each pair on one reactor"),
        (flags.ws, ", over WebSockets"),
        (flags.tls, ", over TLS"),
    ];
    told.iter().filter(|(is_so, _)| *is_so).for_each(|(_, words)| title += words);
    match workload {
        Workload::Paused => title += &format!(", readers pause for {} s", flags.pause()),
        Workload::Slow => title += &format!(", readers take {} bytes a second", flags.read_rate()),
        Workload::Storm => title += storm(flags),
        Workload::Busy => title += &format!(", the recipient stands still for {} s", flags.pause()),
        _ => {}
    }
    if flags.half_open + flags.slow_senders > 0 {
        let (half_open, slow) = (flags.half_open, flags.slow_senders);
        title += &format!(", beside {half_open} half-open connections and {slow} slow senders");
    }
    let threads = flags.threads + u16::from(workload.has_a_pair_beside());
    if workload != Workload::Idle {
        let s = if threads == 1 { "" } else { "s" };
        title += &format!(", {threads} generator thread{s}");
        title += &match flags.sweep || flags.find_max {
            true => format!(", rounds of {} s", flags.seconds()),
            false => format!(", {} x {} s", flags.rounds(), flags.seconds()),
        };
    }
    if workload == Workload::Storm {
        title += " at most";
    }
    title
}

/// How a storm comes.
fn storm(flags: &Flags) -> &'static str {
    match (flags.after, flags.rate.is_some()) {
        (Some(After::Cut), _) => ", after their connections were cut",
        (Some(After::Kill), _) => ", after the server was killed",
        (None, true) => "",
        (None, false) => ", all at once",
    }
}

/// What it is measured with, and where.
pub fn setting(flags: &Flags) -> String {
    let server = if let Some(command) = &flags.launch {
        format!("{command}, {} reactors, {} workers", flags.reactors(), flags.workers())
    } else if flags.addr.is_empty() {
        format!(
            "{}, {} node{}, {} reactors, {} workers, password cost {}",
            version(&flags.server()),
            flags.nodes(),
            if flags.nodes() == 1 { "" } else { "s" },
            flags.reactors(),
            flags.workers(),
            flags.password_cost()
        )
    } else {
        flags.addr.join(", ")
    };
    let pinned = flags.pin.as_ref().map_or(String::new(), |pin| {
        let server = pin.server.as_ref().map_or(String::new(), |cores| format!(", servers on {cores}"));
        format!("; generator on cores {}{server}", pin.own)
    });
    format!("{server}; {}{pinned}; seed {}", machine::describe(), flags.seed())
}

/// What a server's binary says of itself.
pub fn version(binary: &Path) -> String {
    let said = Command::new(binary).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.ok().filter(|version| !version.is_empty()).unwrap_or_else(|| "version unknown".to_owned())
}

/// What two runs must share to be compared, and what else is known of one.
pub fn settings(flags: &Flags) -> Value {
    let is_fresh = flags.addr.is_empty();
    let is_ours = is_fresh && flags.launch.is_none();
    let whole = |rate: f64| rate * flags.shares() as f64;
    let Sizes { low, high } = flags.size();
    let size = if low == high { Value::from(low) } else { Value::from(flags.size().to_string()) };
    json!({
        "workload": flags.workload.name(), "users": flags.all_users(), "members": flags.members(),
        "mix": flags.acts().map(|mix| mix.to_string()),
        "window": flags.window(), "size": size, "seq": flags.seq, "batch": flags.batch,
        "together": flags.together, "ws": flags.ws, "tls": flags.tls, "rate": flags.rate().map(whole),
        "loop": if is_open(flags) { "open" } else { "closed" },
        "nodes": flags.nodes(), "reactors": is_fresh.then(|| flags.reactors()),
        "workers": is_fresh.then(|| flags.workers()), "threads": flags.threads,
        "password_cost": is_fresh.then(|| flags.password_cost()), "pause": flags.pause(),
        "read_rate": flags.read_rate(), "rounds": flags.rounds(), "seconds": flags.seconds(),
        "think": flags.think.map(|think| think.to_string()), "ramp": flags.ramp(),
        "pin": flags.pin.as_ref().map(|pin| [Some(pin.own.clone()), pin.server.clone()]),
        "source": flags.source.map(|source| source.to_string()),
        "after": flags.after,
        "half_open": (flags.half_open > 0).then_some(flags.half_open),
        "slow_senders": (flags.slow_senders > 0).then_some(flags.slow_senders),
        "addr": flags.addr, "machine": machine::describe(),
        "launch": flags.launch, "version": if is_ours { version(&flags.server()) } else { String::new() },
        "bench_version": env!("CARGO_PKG_VERSION"), "seed": flags.seed(),
    })
}
