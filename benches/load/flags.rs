//! The command line.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::acts::{Act, Mix};
use crate::condition::Condition;
use crate::machine;
use crate::measures::Measure;
use crate::which;
use crate::workload::Workload;

/// Smaller objects have no room for the fields, larger ones none in any server.
const SIZES: std::ops::RangeInclusive<usize> = 150..=1 << 20;
const USUAL_SIZE: Sizes = Sizes { low: 150, high: 150 };
/// What a fresh server takes.
const LARGEST_FOR_OURS: usize = 65_536;
/// In bits.
const LARGEST_NETWORK: u8 = 24;
/// Fewer say too little about noise.
pub const ROUNDS_TO_COMPARE: u16 = 7;

/// Messages a second, or a part of what the server can carry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    PerSecond(f64),
    Percent(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        let (number, of) = match text.strip_suffix('%') {
            Some(number) => (number, Rate::Percent as fn(f64) -> Rate),
            None => (text, Rate::PerSecond as fn(f64) -> Rate),
        };
        let (digits, factor) = match number.strip_suffix('k') {
            Some(digits) if !text.ends_with('%') => (digits, 1000.0),
            _ => (number, 1.0),
        };
        let number: f64 =
            digits.parse().map_err(|_| "a number such as 500 or 20k, or a percentage such as 50%".to_owned())?;
        let number = number * factor;
        if number > 0.0 && number.is_finite() { Ok(of(number)) } else { Err("more than 0".to_owned()) }
    }
}

/// Another server that is measured in turn with ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rival {
    /// An IRC server, from Debian's package.
    Inspircd,
    /// A message broker, from Debian's package.
    Nats,
    /// A command that starts a server of the family on `{port}` of 127.0.0.1.
    Command(String),
}

/// What one `--rival` names: a command, or packages with commas between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rivals(pub Vec<Rival>);

impl FromStr for Rivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Rivals, String> {
        if text.contains("{port}") {
            return Ok(Rivals(vec![Rival::Command(text.to_owned())]));
        }
        let rivals = text.split(',').map(|name| match name {
            "inspircd" => Ok(Rival::Inspircd),
            "nats" => Ok(Rival::Nats),
            _ => Err("inspircd, nats, or a command with {port} in it that starts a server there".to_owned()),
        });
        rivals.collect::<Result<_, _>>().map(Rivals)
    }
}

/// A process of the target, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPid {
    pub name: String,
    pub pid: u32,
}

impl FromStr for NamedPid {
    type Err = String;

    fn from_str(text: &str) -> Result<NamedPid, String> {
        let (name, pid) = text.split_once('=').unwrap_or(("server", text));
        let pid = pid.parse().ok().filter(|&pid| pid > 0);
        let pid = pid.ok_or_else(|| format!("'{text}' is no process id, nor NAME=ID as in redis=123"))?;
        Ok(NamedPid { name: name.to_owned(), pid })
    }
}

/// The sizes of messages, in bytes: all alike, or any between two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub low: usize,
    pub high: usize,
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<usize>().ok().filter(|size| SIZES.contains(size));
        let sizes = number(low).zip(number(high)).filter(|(low, high)| low <= high);
        let (least, most) = (SIZES.start(), SIZES.end());
        let why =
            format!("a size, or two as in 150-4096; an object with its fields has {least} bytes, and {most} at most");
        sizes.map(|(low, high)| Sizes { low, high }).ok_or(why)
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sizes { low, high } = self;
        if low == high { write!(f, "{low}") } else { write!(f, "{low}-{high}") }
    }
}

/// How long users think, in seconds: always alike, or anything between two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Think {
    pub low: f64,
    pub high: f64,
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Think, String> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<f64>().ok().filter(|time| (0.0..=3600.0).contains(time));
        let think = number(low).zip(number(high)).filter(|(low, high)| low <= high && *high > 0.0);
        think.map(|(low, high)| Think { low, high }).ok_or_else(|| "seconds, or two as in 0.5-2".to_owned())
    }
}

impl std::fmt::Display for Think {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Think { low, high } = self;
        if low == high { write!(f, "{low}") } else { write!(f, "{low}-{high}") }
    }
}

/// Cores by their numbers, as in `0,2-3`: those of this program, and those of the servers that it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub own: String,
    pub server: Option<String>,
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Pin, String> {
        let (own, server) = text.split_once(':').map_or((text, None), |(own, server)| (own, Some(server)));
        let known = |list: &str| machine::cores_in(list).map(drop);
        known(own)?;
        server.map_or(Ok(()), known)?;
        Ok(Pin { own: own.to_owned(), server: server.map(str::to_owned) })
    }
}

/// A network, or one address.
fn source(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let network = network.filter(|network| network.max_prefix_len() - network.prefix_len() <= LARGEST_NETWORK);
    network.ok_or_else(|| format!("'{text}' is no network, such as 127.0.0.0/24, and not larger than 10.0.0.0/8"))
}

/// What must be so at a rate, for --find-max.
#[derive(Debug, Clone, PartialEq)]
pub struct Slo {
    text: String,
    /// It is broken if this is met.
    pub broken: Condition,
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Slo, String> {
        let (name, bound) = text.split_once('=').ok_or("a figure and what it may be at most, as in chat.p99=5ms")?;
        Ok(Slo { text: text.to_owned(), broken: format!("{name}>{bound}").parse()? })
    }
}

/// One of several generators of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Counted from 1.
    pub number: u16,
    pub of: u16,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Share, String> {
        let parsed = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        let share = parsed.map(|(number, of)| Share { number, of });
        let share = share.filter(|share| (1..=share.of).contains(&share.number));
        share.ok_or_else(|| format!("'{text}' is no share, such as 2/3"))
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// A time of the wall clock, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StartAt(pub f64);

impl FromStr for StartAt {
    type Err = String;

    fn from_str(text: &str) -> Result<StartAt, String> {
        if let Ok(seconds) = text.parse::<u64>() {
            return Ok(StartAt(seconds as f64));
        }
        let time = chrono::DateTime::parse_from_rfc3339(text);
        let time = time.map_err(|_| "seconds since 1970, or a time such as 2026-12-01T12:00:00Z".to_owned())?;
        Ok(StartAt(time.timestamp_millis() as f64 / 1000.0))
    }
}

/// Flags by their ids, and what stands behind each: nothing, a value, or several.
pub type Told = BTreeMap<String, Vec<String>>;

const EXIT_STATUS: &str = "\
Exit status:
  0    everything arrived, once and in order
  1    it could not be measured, or the command line is wrong
  2    something was lost, repeated, out of order, changed or refused, a connection or the server ended, an
       interval of compare is worse, a --fail-if was met, or no rate keeps each --slo
  130  (143) ended by Ctrl-C (SIGTERM), and nothing was wrong until then

A storm's times: served, from when a user was due to the reply to its login, which is all that follows;
  lag, until this program had begun, its own delay; connect, until the connection was there; accept, from then to the
  first answer, of a PING, or with --ws to the upgrade, and with --tls the handshake before that; none where a server
  answers neither; login, from the LOGIN to its reply; and by the server's own metrics, in the steps of their buckets,
  rounded up, queue, what its jobs waited for a worker, and store, what the store took for each of its operations.
  These two are parts of login, of all users of the server meanwhile, and none where there are no metrics. What this
  program is busy with itself is in connect, accept and login, too: see the marks.

compare OLD NEW runs two server binaries in turn, at least 7 rounds each, and tells which rows differ; or it compares
two files that --out has written.

report FILE... shows a file that --out has written, also as --html, --csv or --json; several files, which several
generators have written with --share, become one run.";

// Under which heading of --help a flag stands.
const TARGET: &str = "What is put under load";
const LOAD: &str = "The load";
const CONNECTIONS: &str = "Its connections";
const GENERATOR: &str = "The generator";
const MEASUREMENT: &str = "What is measured";
const RESULTS: &str = "Where the results go";

/// The end of --help.
fn after_help() -> String {
    let command = which::invocation();
    format!(
        "\
Examples:
  a fresh server under a load like people's, with a report
    {command} --workload mix --users 2000 --html report.html
  a server that runs, with 20,000 messages a second
    {command} --addr 127.0.0.1:6000 --pid PID --rate 20000
  the highest rate at which 99 % of the messages take at most 5 ms
    {command} --find-max --slo chat.p99=5ms
  5,000 users who connect and log in, 500 a second
    {command} --workload storm --users 5000 --rate 500

{EXIT_STATUS}"
    )
}

/// Puts a chat server under load: this one, the muduo ChatServer, or any of its copies.
#[derive(Debug, Clone, Parser)]
#[command(name = which::name(), version, after_help = after_help())]
pub struct Flags {
    /// Servers that run already, taken in turn, each with what it is found to speak; without it, fresh ones of ours
    /// are started
    #[arg(long, help_heading = TARGET, value_name = "HOST:PORT", value_delimiter = ',')]
    pub addr: Vec<String>,
    /// The target's processes, for CPU and memory, with names if there are several kinds: cpp=1,mariadb=2,redis=3
    #[arg(long, help_heading = TARGET, value_name = "[NAME=]PID", value_delimiter = ',')]
    pub pid: Vec<NamedPid>,
    /// storm: where the servers of --addr serve their metrics. With --share, for one of the generators
    #[arg(long, help_heading = TARGET, value_name = "HOST:PORT", value_delimiter = ',')]
    pub metrics: Vec<String>,
    /// Keeps the accounts of a run in this file, and takes them from there in the next one. With --addr
    #[arg(long, help_heading = TARGET, value_name = "FILE")]
    pub accounts: Option<PathBuf>,
    /// At the end, logs in every user with stored messages, and reads them, so that none are left there. With --addr
    #[arg(long, help_heading = TARGET)]
    pub clean: bool,
    /// A command that starts another server of the family on {port} of 127.0.0.1, instead of ours; it may have {reactors}
    /// and {workers} in it
    #[arg(long, help_heading = TARGET, value_name = "COMMAND")]
    pub launch: Option<String>,
    /// The server to start [default: the one of this build; chat-bench: the chat-server beside it, or on the path]
    #[arg(long, help_heading = TARGET, value_name = "FILE")]
    pub server: Option<PathBuf>,
    /// Fresh servers to start; several make a cluster with a MariaDB and a Redis of its own [default: 1; busy: 2]
    #[arg(long, help_heading = TARGET, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: Option<u16>,
    /// Reactors of the fresh server [default: 2; sweep: 1,2,4 and so on, to twice the cores]
    #[arg(long, help_heading = TARGET, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    pub reactors: Vec<u16>,
    /// Workers of the fresh server [default: 4; sweep: 1,2,4 where the workload has work for them]
    #[arg(long, help_heading = TARGET, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Vec<u16>,
    /// Password cost of the fresh server; cheap, unless passwords are what is to be measured [default: 8,1]
    #[arg(long, help_heading = TARGET, value_name = "KIB,PASSES")]
    pub password_cost: Option<String>,
    #[arg(long, help_heading = LOAD, value_enum, default_value = "pairs")]
    pub workload: Workload,
    /// [default: 200; idle: 7500; crowd: 10002; mix: 2000; storm: 1000; paused, slow: 22; busy: 5]
    #[arg(long, help_heading = LOAD)]
    pub users: Option<usize>,
    /// Users of each group: --members 3, --members 10 [default: all]
    #[arg(long, help_heading = LOAD, value_parser = clap::value_parser!(u32).range(2..))]
    pub members: Option<u32>,
    /// Messages in flight for each pair, group or sender; drain, mix: messages for each return [default: 1;
    /// sweep: 16]
    #[arg(long, help_heading = LOAD, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub window: Vec<u16>,
    /// Size of each message, as the whole object that is sent, in bytes, or anything between two: 150-4096
    /// [default: 150]
    #[arg(long, help_heading = LOAD, value_name = "BYTES[-BYTES]")]
    pub size: Option<Sizes>,
    /// Ask for an ack for each message
    #[arg(long, help_heading = LOAD)]
    pub seq: bool,
    /// What a user sends in one turn leaves in one write; without it, each message in its own
    #[arg(long, help_heading = LOAD)]
    pub batch: bool,
    /// Messages a second, or users of a storm, sent when due whatever the server does; latency counts from then (pairs,
    /// group, store, storm, mix, paused, slow, busy). As 50%: of what a closed loop of window 16 is measured to carry (pairs)
    #[arg(long, help_heading = LOAD, value_name = "N|N%")]
    pub rate: Option<Rate>,
    /// In a closed loop, a user waits so long before it acts again, or anything between two: 0.5-2
    #[arg(long, help_heading = LOAD, value_name = "SECONDS[-SECONDS]")]
    pub think: Option<Think>,
    /// The load grows from nothing to all of it within this time, before anything is measured [default: 0]
    #[arg(long, help_heading = LOAD, value_name = "SECONDS")]
    pub ramp: Option<f64>,
    /// paused: how long a recipient does not read, and then reads, in seconds; busy: how long it does not read, a quarter
    /// of --seconds after the begin [default: 1; busy: 2.6]
    #[arg(long, help_heading = LOAD, value_name = "SECONDS")]
    pub pause: Option<f64>,
    /// slow: what each recipient reads, in bytes a second [default: 16384]
    #[arg(long, help_heading = LOAD, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1024..))]
    pub read_rate: Option<u32>,
    /// storm: all users have been logged in, and this has happened; they try until they are served, again when the server
    /// says, else after 0.25 to 0.75 s
    #[arg(long, help_heading = LOAD, value_enum)]
    pub after: Option<After>,
    /// mix: what its users do, by weight, and nothing else: chat, group, return, login, store, register. Weights that add up
    /// to 100 are per cent; of return, half of the acts leave and half come back [default: chat=10,group=1,return=1]
    #[arg(long, help_heading = LOAD, value_name = "ACT=WEIGHT,…")]
    pub mix: Option<Mix>,
    /// Beside the users, so many connections that send nothing, or half a request; those that the server closes come again
    #[arg(long, help_heading = LOAD, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub half_open: u32,
    /// Beside the users, so many clients that never log in and send PINGs slowly, a byte each 200 ms
    #[arg(long, help_heading = LOAD, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub slow_senders: u32,
    /// Both users of a pair on one reactor; without it, on two
    #[arg(long, help_heading = LOAD)]
    pub together: bool,
    /// Seed of the order in which users send in an open loop, and of the bootstrap [default: by the clock]
    #[arg(long, help_heading = LOAD)]
    pub seed: Option<u64>,
    /// Connect over WebSockets, as browsers do
    #[arg(long, help_heading = CONNECTIONS)]
    pub ws: bool,
    /// Connect with TLS. Before a fresh server stands an nginx with a certificate of its own, and is measured with it
    #[arg(long, help_heading = CONNECTIONS)]
    pub tls: bool,
    /// Trust the certificates in this PEM file, besides those that the system trusts. With --addr
    #[arg(long, help_heading = CONNECTIONS, value_name = "FILE", visible_alias = "cacert")]
    pub tls_ca: Option<PathBuf>,
    /// The name that the server's certificate is for, if not its name in --addr
    #[arg(long, help_heading = CONNECTIONS, value_name = "NAME")]
    pub tls_name: Option<String>,
    /// Trust any certificate, as for a test machine. With --addr
    #[arg(long, help_heading = CONNECTIONS, visible_alias = "insecure")]
    pub tls_insecure: bool,
    /// Connect from the addresses of this network in turn: one address has some 28,000 ports for all connections
    #[arg(long, help_heading = CONNECTIONS, value_name = "NETWORK", value_parser = source)]
    pub source: Option<IpNet>,
    /// Generator threads; each has its own share of the users, and its own group
    #[arg(long, help_heading = GENERATOR, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// Cores of this program, and behind a colon those of the servers that it starts: 0:1-3
    #[arg(long, help_heading = GENERATOR, value_name = "CORES[:CORES]")]
    pub pin: Option<Pin>,
    /// This is one of several generators, on as many machines: it takes this share of --users and --rate. With --addr
    #[arg(long, help_heading = GENERATOR, value_name = "N/OF")]
    pub share: Option<Share>,
    /// All users have come by then, and begin to act: seconds since 1970, or as in 2026-12-01T12:00:00Z. With --addr
    #[arg(long, help_heading = GENERATOR, value_name = "TIME")]
    pub start_at: Option<StartAt>,
    /// How long each round is measured [default: 3; busy: 20]; idle: how long sessions rest before their memory is read
    /// [default: 12]; how long a storm may take [default: 60 s after the last user is due]
    #[arg(long, help_heading = MEASUREMENT)]
    pub seconds: Option<f64>,
    /// Number of rounds: medians of throughput and CPU, latencies of all together [default: 1; compare: 7;
    /// find-max: 3, of the highest rate; sweep: as many as are needed]
    #[arg(long, help_heading = MEASUREMENT, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: Option<u16>,
    /// Measure the least that a relay can do as well, in turn with the server (pairs, group); it gives no acks, and
    /// a group's delivery is compared with a message between its pairs
    #[arg(long, help_heading = MEASUREMENT)]
    pub floor: bool,
    /// Measure these as well, in turn with the server: inspircd, nats (pairs), or 'COMMAND {port}', which starts any
    /// server of the family on 127.0.0.1. The packages give no acks
    #[arg(long, help_heading = MEASUREMENT, value_name = "NAMES|COMMAND")]
    pub rival: Vec<Rivals>,
    /// Run the phases of this TOML file, one after the other, against one server: each [[phase]] has flags as its keys, such as
    /// rate = "20k"; what stands above the first is for all
    #[arg(long, help_heading = MEASUREMENT, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Find the highest rate that keeps each --slo: an open loop, from --rate on in steps, then bisected, then confirmed by
    /// --rounds; and say what has limited it
    #[arg(long, help_heading = MEASUREMENT)]
    pub find_max: bool,
    /// Try the workload with several --reactors and --workers, in random order, until it is known which of them differ
    #[arg(long, help_heading = MEASUREMENT)]
    pub sweep: bool,
    /// What a figure may be at most, as in chat.p99=5ms; repeatable. With --find-max [default: the p99 of what is timed,
    /// 5 ms]; with --sweep, the settings are judged by the highest rate that keeps it, and not by a closed loop
    #[arg(long, help_heading = MEASUREMENT, value_name = "FIGURE=BOUND")]
    pub slo: Vec<Slo>,
    /// How long --find-max and --sweep may take, in seconds [default: 900]
    #[arg(long, help_heading = MEASUREMENT, value_name = "SECONDS")]
    pub budget: Option<f64>,
    /// Measure all that the README states, as a Markdown table
    #[arg(long, help_heading = MEASUREMENT)]
    pub goals: bool,
    /// Exit status 2 if the server's figures are so: 'chat.p99>5ms', 'rate<100k', 'cpu>8us', 'lost>0', of busy and storm
    /// 'back>3s'; repeatable
    #[arg(long, help_heading = MEASUREMENT, value_name = "CONDITION")]
    pub fail_if: Vec<Condition>,
    /// Refusals with this errno are what is expected: they are counted, and are no failure; repeatable
    #[arg(long, help_heading = MEASUREMENT, value_name = "ERRNO", value_delimiter = ',')]
    pub expect_errno: Vec<i64>,
    /// One JSON object instead of the table
    #[arg(long, help_heading = RESULTS)]
    pub json: bool,
    /// Write a report with plots, in one file
    #[arg(long, help_heading = RESULTS, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write every round, as JSON with HDR histograms, for `compare` and `report`
    #[arg(long, help_heading = RESULTS, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Write every figure of every round, and of each step of it, as CSV
    #[arg(long, help_heading = RESULTS, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Write the sweep's plot
    #[arg(long, help_heading = RESULTS, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write that table, and what this machine is, into these files, between their marks
    #[arg(long, help_heading = RESULTS, value_name = "FILE", value_delimiter = ',')]
    pub readme: Vec<PathBuf>,
    /// compare OLD NEW: two server binaries, or two files of --out; report FILE...: files of --out
    #[arg(value_name = "compare OLD NEW | report FILE")]
    pub words: Vec<String>,
    /// Cargo passes it; without it this is a test
    #[arg(long, hide = true)]
    pub bench: bool,
    /// A moment of each workload
    #[arg(long, hide = true)]
    pub test: bool,
    /// Be the floor
    #[arg(long, hide = true)]
    pub relay: bool,
    /// Which flags the command line has.
    #[arg(skip)]
    pub given: Vec<String>,
    /// The same with what stands behind them.
    #[arg(skip)]
    pub told: Told,
}

/// What has befallen a storm's users before they come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// All their connections were reset
    Cut,
    /// The servers were killed, and are starting again. Not with --addr
    Kill,
}

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Measure,
    Sweep,
    Find,
    Goals,
    Compare,
    Report,
    /// Cargo was asked for another bench or test.
    NotAsked,
    Test,
}

/// What a flag is called on the command line, behind its two dashes.
pub fn long_name(id: &str) -> String {
    id.replace('_', "-")
}

impl Flags {
    /// # Errors
    /// The errors of clap, of which `--help` is one.
    pub fn read<I: Iterator<Item = String>>(words: I) -> Result<Flags, clap::Error> {
        let matches = Flags::command().try_get_matches_from(words)?;
        let mut flags = Flags::from_arg_matches(&matches)?;
        for flag in Flags::command().get_arguments() {
            let id = flag.get_id().to_string();
            if matches.value_source(&id) == Some(ValueSource::CommandLine) {
                let values = matches.get_raw(&id).into_iter().flatten().filter(|_| flag.get_action().takes_values());
                flags.told.insert(id.clone(), values.map(|value| value.to_string_lossy().into_owned()).collect());
                flags.given.push(id);
            }
        }
        let by_the_clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_micros() as u64);
        flags.seed.get_or_insert_with(by_the_clock);
        Ok(flags)
    }

    /// The flags that these are.
    ///
    /// # Errors
    /// The errors of clap.
    pub fn of(told: &Told) -> Result<Flags, clap::Error> {
        let words = told.iter().flat_map(|(id, values)| {
            let flag = format!("--{}", long_name(id));
            let with_values: Vec<String> = values.iter().map(|value| format!("{flag}={value}")).collect();
            if values.is_empty() { vec![flag] } else { with_values }
        });
        Flags::read(std::iter::once(which::name().to_owned()).chain(words))
    }

    pub fn mode(&self) -> Mode {
        match self.words.first().map(String::as_str) {
            Some("compare") => Mode::Compare,
            Some("report") => Mode::Report,
            Some(filter) if !"load".contains(filter) => Mode::NotAsked,
            _ if self.test || !(self.bench || which::is_installed()) => Mode::Test,
            _ if self.goals => Mode::Goals,
            _ if self.sweep => Mode::Sweep,
            _ if self.find_max => Mode::Find,
            _ => Mode::Measure,
        }
    }

    /// The server that is started.
    pub fn server(&self) -> PathBuf {
        self.server.clone().unwrap_or_else(which::server)
    }

    pub fn rivals(&self) -> impl Iterator<Item = &Rival> {
        self.rival.iter().flat_map(|rivals| &rivals.0)
    }

    /// The users of all generators.
    pub fn all_users(&self) -> usize {
        self.users.unwrap_or(self.workload.usual_users())
    }

    /// The users of this one.
    pub fn users(&self) -> usize {
        self.all_users() / self.shares()
    }

    /// How many addresses its connections come from.
    pub fn sources(&self) -> u64 {
        self.source.map_or(1, |network| network.hosts().count() as u64).max(1)
    }

    /// How many generators there are.
    pub fn shares(&self) -> usize {
        self.share.map_or(1, |share| share.of.into())
    }

    /// The members of each group, if not all users are in one.
    pub fn members(&self) -> Option<usize> {
        self.members.map(|members| members as usize)
    }

    pub fn nodes(&self) -> usize {
        if self.addr.is_empty() { self.nodes.unwrap_or(self.workload.usual_nodes()).into() } else { self.addr.len() }
    }

    pub fn rounds(&self) -> u16 {
        self.rounds.unwrap_or(match self.mode() {
            Mode::Compare => ROUNDS_TO_COMPARE,
            Mode::Find => 3,
            _ => 1,
        })
    }

    pub fn reactors(&self) -> usize {
        self.reactors.first().map_or(2, |&n| n.into())
    }

    pub fn workers(&self) -> usize {
        self.workers.first().map_or(4, |&n| n.into())
    }

    pub fn window(&self) -> usize {
        self.window.first().map_or(1, |&n| n.into())
    }

    pub fn size(&self) -> Sizes {
        self.size.unwrap_or(USUAL_SIZE)
    }

    /// What must be so at a rate that is to be found.
    pub fn slos(&self) -> Vec<Slo> {
        let usual = || {
            let first = workload_measures(self).first().copied();
            first.and_then(|measure| format!("{}.p99=5ms", measure.key()).parse().ok())
        };
        if self.slo.is_empty() { usual().into_iter().collect() } else { self.slo.clone() }
    }

    pub fn slos_in_words(&self) -> String {
        self.slos().iter().map(|slo| slo.text.clone()).collect::<Vec<_>>().join(" and ")
    }

    pub fn budget(&self) -> f64 {
        self.budget.unwrap_or(900.0)
    }

    pub fn ramp(&self) -> f64 {
        self.ramp.unwrap_or(0.0)
    }

    /// The generator and the servers share no core.
    pub fn is_apart(&self) -> bool {
        let Some(Pin { own, server: Some(server) }) = &self.pin else { return false };
        let (own, server) = (machine::cores_in(own), machine::cores_in(server));
        own.is_ok_and(|own| server.is_ok_and(|server| !own.iter().any(|core| server.contains(core))))
    }

    pub fn password_cost(&self) -> &str {
        self.password_cost.as_deref().unwrap_or("8,1")
    }

    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(1)
    }

    pub fn seconds(&self) -> f64 {
        // The last user of a storm is due when all others have been.
        let until_due = match self.rate().filter(|_| self.workload == Workload::Storm) {
            Some(rate) => self.users() as f64 / rate + self.ramp() / 2.0,
            None => 0.0,
        };
        self.seconds.unwrap_or(until_due + self.workload.usual_seconds())
    }

    /// How long it goes on before anything is measured, in seconds.
    pub fn warm_up(&self) -> f64 {
        if self.workload == Workload::Storm { 0.0 } else { self.ramp() + (self.seconds() / 4.0).min(1.0) }
    }

    /// The clients of this generator that never log in: half-open ones, and slow senders.
    pub fn strangers(&self) -> [usize; 2] {
        [self.half_open, self.slow_senders].map(|count| count as usize / self.shares())
    }

    pub fn pause(&self) -> f64 {
        self.pause.unwrap_or(if self.workload == Workload::Busy { 2.6 } else { 1.0 })
    }

    /// When a busy recipient ceases to read, in seconds after the start of the measurement.
    pub fn pauses_after(&self) -> f64 {
        self.seconds() / 4.0
    }

    pub fn read_rate(&self) -> u32 {
        self.read_rate.unwrap_or(16_384)
    }

    /// What the users of a mix do.
    pub fn acts(&self) -> Option<Mix> {
        (self.workload == Workload::Mix).then(|| self.mix.unwrap_or_default())
    }

    /// Users of a mix do this.
    pub fn mixes_in(&self, act: Act) -> bool {
        self.acts().is_some_and(|mix| mix.has(act))
    }

    /// Some clients want an ack for each of their messages.
    pub fn wants_acks(&self) -> bool {
        self.seq || self.workload.always_acks() || self.workload == Workload::Mix
    }

    /// The rate of all threads of this generator together, if this is an open loop.
    pub fn rate(&self) -> Option<f64> {
        let users = self.users() as f64;
        match self.rate {
            Some(Rate::PerSecond(rate)) => Some(rate / self.shares() as f64),
            Some(Rate::Percent(_)) => None,
            // People do not wait for each other: one action for every four users and second.
            None if self.workload == Workload::Mix => Some(users / 4.0),
            // 2000 a second from each node.
            None if self.workload == Workload::Busy => Some(2000.0 * self.nodes() as f64),
            // 500 a second to each recipient.
            None if self.workload.is_always_open() => Some((users - 2.0) / 2.0 * 500.0),
            None => None,
        }
    }

    /// The servers that run already.
    ///
    /// # Errors
    /// A name is not known, or there is no port.
    pub fn addresses(&self) -> anyhow::Result<Vec<SocketAddr>> {
        self.addr.iter().map(|text| address("--addr", text)).collect()
    }

    /// Where servers that run already serve their metrics.
    ///
    /// # Errors
    /// A name is not known, or there is no port.
    pub fn metrics(&self) -> anyhow::Result<Vec<SocketAddr>> {
        self.metrics.iter().map(|text| address("--metrics", text)).collect()
    }

    /// # Errors
    /// Flags that exclude each other, and flags that would not be used: nothing is ignored.
    pub fn check(&self) -> anyhow::Result<()> {
        for id in &self.given {
            if let Err(why) = self.use_of(id) {
                bail!("--{} would not be used: {why}", long_name(id));
            }
        }
        let (users, threads, workload) = (self.users(), usize::from(self.threads), self.workload);
        if let Some(share) = self.share {
            ensure!(self.all_users().is_multiple_of(share.of.into()), "--users must be a multiple of {}", share.of);
            ensure!(self.rounds() == 1, "--share goes with one round: those of several generators do not stay in step");
        }
        ensure!(workload != Workload::Idle || users >= 3, "--users must be 3 or more for idle");
        ensure!(
            !workload.has_a_pair_beside() || threads == 1,
            "{} has a thread of its own for the pair",
            workload.name()
        );
        ensure!(workload != Workload::Busy || threads == 1, "busy has one recipient: --threads 1");
        ensure!(!workload.has_a_pair_beside() || users >= 4, "{} needs a pair and two more users", workload.name());
        let are_pairs =
            !matches!(workload, Workload::Group | Workload::Mix | Workload::Idle | Workload::Storm | Workload::Busy);
        let step = if are_pairs { 2 * threads } else { threads };
        let are_enough = users >= 2 * threads && users.is_multiple_of(step);
        ensure!(are_enough, "--users must be {} or more, and a multiple of {step}", 2 * threads);
        ensure!(workload != Workload::Mix || users >= 20 * threads, "mix needs 20 users for each thread");
        if let Some(members) = self.members() {
            let each = users / threads;
            ensure!(each.is_multiple_of(members), "{each} users of a thread do not make groups of {members}: --users");
        }
        let (seconds, pause) = (self.seconds(), self.pause());
        ensure!(seconds > 0.0 && seconds <= 86_400.0, "--seconds must be more than 0, and a day at most");
        ensure!(pause > 0.0 && pause <= 3600.0, "--pause must be more than 0, and an hour at most");
        if workload == Workload::Busy {
            ensure!(users > self.nodes(), "--users must be more than there are nodes: some on each write to one");
            let behind = seconds - self.pauses_after() - pause;
            ensure!(behind >= 2.0, "--seconds must leave 2 s behind the --pause, which comes when a quarter is over");
        }
        if self.together {
            let turn = self.reactors() * self.nodes();
            ensure!((users / 2).is_multiple_of(turn), "--together needs a multiple of {} --users here", 2 * turn);
        }
        ensure!((0.0..=3600.0).contains(&self.ramp()), "--ramp must be 0 or more, and an hour at most");
        let too_large = self.addr.is_empty() && self.size().high > LARGEST_FOR_OURS;
        ensure!(!too_large, "--size: a server takes {LARGEST_FOR_OURS} bytes, unless it is told otherwise: --addr");
        ensure!(self.window.len() <= 1, "several --window: one is enough to compare servers by");
        let lists = [self.reactors.len(), self.workers.len()];
        ensure!(self.sweep || lists.iter().all(|&n| n <= 1), "several --reactors or --workers: --sweep");
        ensure!((0.0..=86_400.0).contains(&self.budget()), "--budget must be 0 or more, and a day at most");
        let has_port = self.launch.as_ref().is_none_or(|command| command.contains("{port}"));
        ensure!(has_port, "--launch needs {{port}} in its command");
        // What a file has is not known from the flags.
        if self.mode() == Mode::Report { Ok(()) } else { self.check_conditions() }
    }

    fn check_conditions(&self) -> anyhow::Result<()> {
        let measures = workload_measures(self);
        let slos = self.slo.iter().map(|slo| (&slo.broken, "--slo"));
        for (condition, flag) in self.fail_if.iter().map(|condition| (condition, "--fail-if")).chain(slos) {
            let name = self.workload.name();
            ensure!(
                condition.measure().is_none_or(|measure| measures.contains(&measure)),
                "{flag} {condition}: {name} does not time that; it times {}",
                measures.iter().map(|measure| measure.key()).collect::<Vec<_>>().join(", ")
            );
            ensure!(!condition.needs_floor() || self.floor, "{flag} {condition} needs --floor");
            ensure!(
                !condition.needs_a_return() || matches!(self.workload, Workload::Busy | Workload::Storm),
                "{flag} {condition} needs --workload busy or storm"
            );
            ensure!(
                !condition.needs_pid() || self.addr.is_empty() || !self.pid.is_empty(),
                "{flag} {condition} needs --pid"
            );
        }
        Ok(())
    }

    /// Why a flag means nothing beside the others.
    fn use_of(&self, id: &str) -> Result<(), String> {
        use Workload::{Busy, Group, Idle, Mix, Pairs, Paused, Register, Slow, Storm};
        let (mode, workload, name) = (self.mode(), self.workload, self.workload.name());
        let is_foreign = !self.addr.is_empty();
        let only = |is_used: bool, why: &str| if is_used { Ok(()) } else { Err(why.to_owned()) };
        // The users of a storm all come, however few seconds they have for that.
        let is_searchable = workload.may_be_open() && !matches!(workload, Busy | Storm);
        let not_here = |is_used: bool| if is_used { Ok(()) } else { Err(format!("{name} has no use for it")) };
        match mode {
            Mode::Goals => {
                return only(["goals", "readme", "bench"].contains(&id), "--goals measures what the README states");
            }
            Mode::Sweep
                if [
                    "addr", "pid", "accounts", "clean", "nodes", "floor", "rival", "out", "csv", "fail_if", "together",
                    "find_max",
                ]
                .contains(&id) =>
            {
                return Err("--sweep starts servers of its own, and shows a table of them".to_owned());
            }
            Mode::Compare
                if [
                    "addr", "pid", "accounts", "clean", "server", "launch", "floor", "rival", "html", "out", "csv",
                    "fail_if", "sweep", "svg", "goals", "readme", "find_max", "slo", "budget",
                ]
                .contains(&id) =>
            {
                return Err("compare starts two servers, and shows how they differ".to_owned());
            }
            Mode::Find if id == "find_max" => return not_here(is_searchable),
            Mode::Find
                if [
                    "clean", "floor", "rival", "html", "out", "csv", "fail_if", "window", "think", "batch", "share",
                    "start_at",
                ]
                .contains(&id) =>
            {
                return Err("--find-max shows a table of the rates that it has tried".to_owned());
            }
            Mode::Report => {
                let used = ["words", "json", "html", "csv", "out", "fail_if", "bench", "seed"];
                return only(used.contains(&id), "report shows what was measured");
            }
            _ => {}
        }
        match id {
            "seed" if mode == Mode::Compare => Ok(()),
            "clean" | "seed" if workload == Idle => not_here(false),
            "pid" | "accounts" | "clean" => only(is_foreign, "it goes with --addr"),
            "launch" => only(!is_foreign, "--addr names a server that runs"),
            "server" | "nodes" | "password_cost" | "together" if self.launch.is_some() => {
                Err("it is of a fresh server of ours, and --launch starts another".to_owned())
            }
            "reactors" | "workers"
                if self.launch.as_ref().is_some_and(|command| !command.contains(&format!("{{{id}}}"))) =>
            {
                Err(format!("the command of --launch has no {{{id}}}"))
            }
            "slo" | "budget" if !(self.find_max || self.sweep) => Err("it goes with --find-max or --sweep".to_owned()),
            "slo" | "rate" if mode == Mode::Sweep => {
                not_here(is_searchable)?;
                only(!self.slo.is_empty(), "without --slo, a sweep is a closed loop")
            }
            "server" | "nodes" | "reactors" | "workers" | "password_cost" => {
                only(!is_foreign, "it is of a fresh server, and --addr names one that runs")
            }
            "members" => not_here(workload == Group),
            "window" if workload.may_be_open() && workload != Mix && self.rate.is_some() => {
                Err("at a --rate, messages do not wait for each other".to_owned())
            }
            "window" => not_here(workload.has_window() || workload == Mix),
            "size" => not_here(workload.sends_messages()),
            "seq" if workload.always_acks() => Err(format!("{name} asks for acks anyway")),
            "seq" => not_here(workload.sends_messages()),
            "batch" => not_here(!matches!(workload, Idle | Register | Storm)),
            "rate" if matches!(self.rate, Some(Rate::Percent(_))) => {
                only(mode != Mode::Find, "the search begins at a number")?;
                only(workload == Pairs, "a percentage goes with pairs, whose capacity can be measured")
            }
            "rate" => not_here(workload.may_be_open()),
            "tls" if workload == Idle => only(is_foreign, "it would measure the memory of nginx as well"),
            "tls" => {
                let are_plain = self.rivals().any(|rival| !matches!(rival, Rival::Command(_)));
                only(!self.floor && !are_plain, "the floor, inspircd and nats have none here")
            }
            "tls_ca" | "tls_name" | "tls_insecure" if !self.tls => Err("it goes with --tls".to_owned()),
            "tls_ca" | "tls_name" if self.tls_insecure => Err("--tls-insecure trusts anybody".to_owned()),
            "tls_ca" | "tls_name" | "tls_insecure" => {
                only(is_foreign, "the certificate of a fresh server is made here, and trusted")
            }
            "source" => {
                only(!self.floor && self.rival.is_empty(), "the floor and the rivals are reached from one address")
            }
            "think" if self.rate().is_some() => Err("in an open loop, nobody waits for an answer".to_owned()),
            "think" => not_here(!matches!(workload, Idle | Storm)),
            "ramp" if workload == Storm => only(self.rate.is_some(), "without a --rate, all users come at once"),
            "ramp" => not_here(workload != Idle),
            "pin" if is_foreign && self.pin.as_ref().is_some_and(|pin| pin.server.is_some()) => {
                Err("a server of --addr has its cores already: without the part behind the colon".to_owned())
            }
            "pause" => not_here(matches!(workload, Paused | Busy)),
            "read_rate" => not_here(workload == Slow),
            "after" => {
                not_here(workload == Storm)?;
                only(!is_foreign || self.after != Some(After::Kill), "a server of --addr was not started here")
            }
            "metrics" => {
                not_here(workload == Storm)?;
                only(is_foreign, "of a server that is started here, it is known where they are")
            }
            "half_open" | "slow_senders" => {
                not_here(workload != Idle)?;
                let is_family = !self.floor && self.rivals().all(|rival| matches!(rival, Rival::Command(_)));
                only(is_family, "the floor and the packages have no clients beside those that are measured")
            }
            "mix" => not_here(workload == Mix),
            "together" => {
                not_here(workload == Pairs)?;
                only(!is_foreign, "nobody knows how many reactors a server of --addr has")
            }
            "rounds" if mode == Mode::Compare => Ok(()),
            "share" | "start_at" => {
                only(is_foreign, "it goes with --addr")?;
                let is_percent = matches!(self.rate, Some(Rate::Percent(_)));
                only(!is_percent && !self.floor && self.rival.is_empty(), "the server is all that is measured so")?;
                not_here(!workload.has_a_pair_beside() && !matches!(workload, Idle | Busy))
            }
            "threads" | "rounds" | "html" | "out" | "csv" | "sweep" => not_here(workload != Idle),
            "fail_if" | "expect_errno" => not_here(workload != Idle),
            "floor" => not_here(matches!(workload, Pairs | Group)),
            "rival" => {
                not_here(workload != Idle)?;
                let are_plain = self.rivals().all(|rival| matches!(rival, Rival::Command(_)));
                only(workload == Pairs || are_plain, "inspircd and nats go with pairs")
            }
            "svg" => only(self.sweep, "it goes with --sweep"),
            "readme" => only(self.goals, "it goes with --goals"),
            _ => Ok(()),
        }
    }
}

fn address(flag: &str, text: &str) -> anyhow::Result<SocketAddr> {
    let found = text.to_socket_addrs().with_context(|| format!("{flag} {text}: HOST:PORT is asked for"))?;
    let mut found: Vec<SocketAddr> = found.collect();
    // Servers of the family listen on IPv4, and many names have both.
    found.sort_by_key(SocketAddr::is_ipv6);
    found.into_iter().next().with_context(|| format!("{flag} {text}: the name has no address"))
}

/// What this run times.
pub fn workload_measures(flags: &Flags) -> Vec<Measure> {
    let is_in_time = flags.rate.is_some() || flags.think.is_some() || flags.workload.is_always_open();
    let mut measures = flags.workload.measures(flags.seq, is_in_time);
    if let Some(mix) = flags.acts() {
        measures.splice(0..0, mix.measures());
    }
    measures
}
