//! What the README states, measured with the very commands that stand beside it, in a quarter of an hour:
//! `cargo bench --bench load -- --goals --readme README.md,README.zh-CN.md`.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;

use crate::ending;
use crate::figures::{Figures, Limit};
use crate::flags::Flags;
use crate::measures::Measure;
use crate::target::Target;
use crate::workload::Workload;
use crate::{idle, machine, round};

/// What stands between these in a file is written anew.
const BEGIN: &str = "<!-- measured -->\n";
const END: &str = "<!-- /measured -->\n";

#[derive(Clone, Copy)]
enum Language {
    English = 0,
    Chinese = 1,
}

/// A row of the table; texts are in English and in Chinese.
struct Goal {
    what: [&'static str; 2],
    goal: [&'static str; 2],
    command: &'static str,
    told: fn(&[Figures]) -> Told,
}

/// What came out, and whether the goal is reached.
type Told = (String, bool);

/// A row's result: with what limited it, and what was wrong.
struct Row {
    told: Told,
    limit: Option<Limit>,
    problems: Vec<String>,
}

const GOALS: [Goal; 11] = [
    Goal {
        what: ["pairs, window 1, each over both reactors", "两两对话，窗口 1，分处两个 reactor"],
        goal: ["at most 1.3x the floor", "不超过下限的 1.3 倍"],
        command: "--floor --rival inspircd,nats --rounds 5",
        told: |shown| cost(shown, 1.3),
    },
    Goal {
        what: ["pairs, window 1, each on one reactor", "两两对话，窗口 1，同一 reactor"],
        goal: ["", ""],
        command: "--together --floor --rounds 5",
        told: |shown| cost(shown, f64::MAX),
    },
    Goal {
        what: ["pairs, window 16", "两两对话，窗口 16"],
        goal: ["at most 1.2x the floor", "不超过下限的 1.2 倍"],
        command: "--window 16 --floor --rival inspircd,nats --rounds 5",
        told: |shown| cost(shown, 1.2),
    },
    Goal {
        what: ["group of 200, per delivery", "200 人群，每次投递"],
        goal: ["at most 0.9x the floor's message", "不超过下限每条消息的 0.9 倍"],
        command: "--workload group --floor --rounds 5",
        told: |shown| cost(shown, 0.9),
    },
    Goal {
        what: ["groups of 3, per delivery", "3 人群，每次投递"],
        goal: ["", ""],
        command: "--workload group --members 3 --users 198 --rounds 3",
        told: |shown| (format!("{:.1} us, {:.0}/s", shown[0].cpu(), shown[0].rate), true),
    },
    Goal {
        what: ["groups of 10, per delivery", "10 人群，每次投递"],
        goal: ["", ""],
        command: "--workload group --members 10 --rounds 3",
        told: |shown| (format!("{:.1} us, {:.0}/s", shown[0].cpu(), shown[0].rate), true),
    },
    Goal {
        what: ["100 pairs between two nodes, over Redis", "两节点间 100 对，经 Redis"],
        goal: ["at most 25 us over both nodes, p99 under 10 ms", "两节点合计不超过 25 us，p99 低于 10 ms"],
        command: "--nodes 2 --rounds 3",
        told: |shown| {
            let (cpu, p99) = (shown[0].cpu_of("server"), p99(&shown[0], Measure::Chat));
            (format!("{cpu:.1} us, p99 {p99:.1} ms"), cpu <= 25.0 && p99 < 10.0)
        },
    },
    Goal {
        what: ["stored with ack (SQLite, full sync)", "存储并确认（SQLite，完全同步）"],
        goal: ["at least 20,000/s, p99 at most 100 ms", "不少于 20,000 条/秒，p99 不超过 100 ms"],
        command: "--workload store --users 400 --window 2 --rounds 3",
        told: |shown| {
            let (rate, p99) = (shown[0].rate, p99(&shown[0], Measure::Stored));
            (format!("{rate:.0}/s, p99 {p99:.1} ms"), rate >= 20_000.0 && p99 <= 100.0)
        },
    },
    Goal {
        what: ["group of 10,000 that is never silent, and a pair", "从不停歇的一万人群，旁有一对聊天"],
        goal: [
            "a message complete in 200 ms, the pair's p99 under 10 ms",
            "一条消息 200 ms 内送达全员，那一对的 p99 低于 10 ms",
        ],
        command: "--workload crowd --rounds 3",
        told: |shown| {
            let whole = shown[0].measures.quantile(Measure::LastMember, 0.5) / 1000.0;
            let (worst, pair) = (p99(&shown[0], Measure::LastMember), p99(&shown[0], Measure::Chat));
            (format!("p50 {whole:.0} ms, p99 {worst:.0} ms; pair p99 {pair:.1} ms"), worst <= 200.0 && pair < 10.0)
        },
    },
    Goal {
        what: ["open loop at half of capacity", "开环，容量的一半"],
        goal: ["p99 at most 5 ms", "p99 不超过 5 ms"],
        command: "--rate 50% --rounds 3",
        told: |shown| {
            let (rate, p99) = (shown[0].rate, p99(&shown[0], Measure::Chat));
            (format!("{rate:.0}/s, p99 {p99:.1} ms"), p99 <= 5.0)
        },
    },
    Goal {
        what: ["idle logged-in session", "已登录的空闲会话"],
        goal: ["at most 600 bytes resident", "常驻内存不超过 600 字节"],
        command: "--workload idle",
        told: |_| (String::new(), false), // no messages, no figures
    },
];

/// Measures every row, shows the table, and writes it into the files that the flags name. Returns what was wrong.
pub fn run(flags: &Flags) -> anyhow::Result<Vec<String>> {
    flags.check()?;
    let texts = flags.readme.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for (n, goal) in GOALS.iter().enumerate() {
        eprintln!("{} of {}: {}", n + 1, GOALS.len(), goal.command);
        match measure(goal) {
            Ok(row) => rows.push(row),
            Err(_) if ending::signal().is_some() => break,
            Err(error) => {
                let problems = vec![format!("{}: {error:#}", goal.command)];
                rows.push(Row { told: ("not measured".to_owned(), false), limit: None, problems });
            }
        }
        if ending::signal().is_some() {
            break;
        }
    }
    print!("{}", table(&rows, Language::English)?);
    let is_whole = rows.len() == GOALS.len() && ending::signal().is_none();
    for (file, (before, behind)) in flags.readme.iter().zip(&texts).filter(|_| is_whole) {
        let is_chinese = file.to_string_lossy().contains("zh");
        let language = if is_chinese { Language::Chinese } else { Language::English };
        let text = format!("{before}{BEGIN}{}{END}{behind}", table(&rows, language)?);
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(rows.into_iter().flat_map(|row| row.problems).collect())
}

/// What stands before and behind the marks of a file.
fn read(file: &Path) -> anyhow::Result<(String, String)> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let marked = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, behind) = marked.with_context(|| format!("{} has no {}", file.display(), BEGIN.trim()))?;
    Ok((before.to_owned(), behind.to_owned()))
}

fn measure(goal: &Goal) -> anyhow::Result<Row> {
    let words = ["load", "--bench"].into_iter().chain(goal.command.split_whitespace());
    let mut flags = Flags::read(words.map(str::to_owned))?;
    for rivals in &mut flags.rival {
        rivals.0.retain(|rival| rival.is_installed());
    }
    if flags.workload == Workload::Idle {
        let slope = idle::measure(&flags, Target::server(&flags)?)?.slope();
        return Ok(Row { told: (format!("{slope:.0}"), slope <= 600.0), limit: None, problems: Vec::new() });
    }
    let run = round::measure(&flags)?;
    let problems: Vec<String> = run.problems.iter().map(|why| format!("{}: {why}", goal.command)).collect();
    let mut told = (goal.told)(&run.shown);
    if run.shown[0].counts.wrong(&[]) > 0 || run.shown[0].cut_short.is_some() {
        told = (format!("{}; messages were lost or wrong", told.0), false);
    }
    // The generator's limit goes before any other one; those of the floor and the rivals count, too.
    let limits = || run.shown.iter().filter_map(Figures::limit);
    let limit = limits().find(|&limit| limit == Limit::Generator).or_else(|| limits().next());
    Ok(Row { told, limit, problems })
}

fn table(rows: &[Row], language: Language) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let (machine, date) = (machine::describe(), chrono::Local::now().format("%F"));
    match language {
        Language::English => {
            writeln!(
                out,
                "{date}, {machine}. Times in us are the CPU time, user and system, that the whole server takes for a message.\n"
            )?;
            writeln!(out, "| workload | goal | | measured | `cargo bench --bench load --` |")?;
        }
        Language::Chinese => {
            writeln!(out, "{date}，{machine}；us 指每条消息耗用的服务器 CPU（用户态加内核态）。\n")?;
            writeln!(out, "| 负载 | 目标 | | 实测 | `cargo bench --bench load --` |")?;
        }
    }
    writeln!(out, "| --- | --- | --- | --- | --- |")?;
    for (goal, Row { told: (told, reached), limit, .. }) in GOALS.iter().zip(rows) {
        let (what, aim) = (goal.what[language as usize], goal.goal[language as usize]);
        let sign = match (aim.is_empty(), reached) {
            (true, _) => "",
            (false, true) => "✓",
            (false, false) => "✗",
        };
        let told = format!("{told} {}", limit.map_or("", Limit::mark));
        let told = told.trim();
        writeln!(out, "| {what} | {aim} | {sign} | {told} | `{}` |", goal.command)?;
    }
    for limit in [Limit::Machine, Limit::Generator] {
        if rows.iter().any(|row| row.limit == Some(limit)) {
            let mark = limit.mark();
            let note = match (language, limit) {
                (Language::English, Limit::Machine) => {
                    "all cores were busy, the generator's share among them: rates and latencies are the machine's \
                     limit, not the server's"
                }
                (Language::English, Limit::Generator) => {
                    "the load generator was the limit: rates and latencies are its own"
                }
                (Language::Chinese, Limit::Machine) => {
                    "所有核心（连同负载发生器所占）都已占满：速率与延迟是机器的极限，而非服务器的"
                }
                (Language::Chinese, Limit::Generator) => "负载发生器已到极限：速率与延迟是它自己的",
            };
            writeln!(out, "\n{mark} {note}{}", if matches!(language, Language::English) { "." } else { "。" })?;
        }
    }
    Ok(out)
}

/// Milliseconds.
fn p99(figures: &Figures, measure: Measure) -> f64 {
    if figures.measures.count(measure) == 0 {
        return f64::INFINITY;
    }
    figures.measures.quantile(measure, 0.99) / 1000.0
}

/// CPU for each message, beside the floor's and the rivals'.
fn cost(shown: &[Figures], goal: f64) -> Told {
    let parts = shown.iter().map(|figures| {
        let (name, cpu) = (&figures.name, figures.cpu());
        match (name.as_str(), figures.to_floor) {
            ("server", Some(ratio)) => format!("**{ratio:.2}x** ({cpu:.1} us)"),
            ("floor", _) | (_, None) => format!("{name} {cpu:.1} us"),
            (_, Some(ratio)) => format!("{name} {ratio:.2}x"),
        }
    });
    (parts.collect::<Vec<_>>().join(", "), shown[0].to_floor.is_some_and(|ratio| ratio <= goal))
}
