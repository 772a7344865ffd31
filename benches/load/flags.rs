//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::ensure;
use clap::{Parser, ValueEnum};

use crate::rivals::Rival;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Users talk in pairs; each message is answered by one. With several nodes, each pair is split
    Pairs,
    /// One user of a group talks to all others; a delivery counts as a message
    Group,
    /// One large group that is never silent, and beside it a pair that chats, 1000 times a second
    Crowd,
    /// Sessions that do nothing: resident memory between a third of the users and all
    Idle,
    /// Messages to users who are not there, with acks
    Store,
    /// The same, but each recipient comes back for them, again and again
    Drain,
    /// All users log out and in again, over and over
    Login,
    /// New accounts, over and over
    Register,
    /// Like people: most are idle, few talk, some in groups, some come and go
    Mix,
}

impl Workload {
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }
}

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
        let number: f64 = number.parse().map_err(|_| "a number, or a percentage such as 50%".to_owned())?;
        if number > 0.0 && number.is_finite() { Ok(of(number)) } else { Err("more than 0".to_owned()) }
    }
}

/// Puts a chat server under load.
#[derive(Debug, Clone, Parser)]
#[command(name = "load")]
pub struct Flags {
    #[arg(long, value_enum, default_value = "pairs")]
    pub workload: Workload,
    /// Servers that run already, taken in turn; without it, fresh ones are started
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',')]
    pub addr: Vec<SocketAddr>,
    /// Their processes, for CPU and memory
    #[arg(long, requires = "addr", value_delimiter = ',')]
    pub pid: Vec<u32>,
    /// Fresh servers to start; several make a cluster with a MariaDB and a Redis of its own
    #[arg(long, default_value_t = 1, conflicts_with = "addr", value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// [default: 200; idle: 7500; crowd: 10002; mix: 2000]
    #[arg(long)]
    pub users: Option<usize>,
    /// Messages in flight for each pair, group or sender; drain: messages for each return [default: 1;
    /// sweep: 1,16]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub window: Vec<u16>,
    /// Ask for an ack for each message
    #[arg(long)]
    pub seq: bool,
    /// What a user sends in one turn leaves in one write; without it, each message in its own
    #[arg(long)]
    pub batch: bool,
    /// Messages a second, sent when due whatever the server does; latency counts from then (pairs,
    /// group, store, mix). As 50%: of what a closed loop of window 16 is measured to carry (pairs)
    #[arg(long, value_name = "N|N%")]
    pub rate: Option<Rate>,
    /// Both users of a pair on one reactor, where connections go to reactors in turn
    #[arg(long)]
    pub together: bool,
    /// Generator threads; each has its own share of the users, and its own group
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: u16,
    /// How long each round is measured
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// The medians of so many rounds are shown
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Measure the least that a relay can do as well, in turn with the server (pairs, group); a group's
    /// delivery is compared with a message between its pairs
    #[arg(long)]
    pub floor: bool,
    /// Measure these as well, in turn with the server (pairs)
    #[arg(long, value_enum, value_delimiter = ',')]
    pub rival: Vec<Rival>,
    /// One JSON object instead of the table
    #[arg(long)]
    pub json: bool,
    /// Write a report with plots, in one file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Try the workload with each of several --reactors, --workers and --window, and recommend some
    #[arg(long, conflicts_with_all = ["addr", "floor", "rival", "json", "html"])]
    pub sweep: bool,
    /// Write the sweep's plot
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub svg: Option<PathBuf>,
    /// Measure all that the README states, as a Markdown table
    #[arg(long)]
    pub goals: bool,
    /// Write that table, and what this machine is, into these files, between their marks
    #[arg(long, value_name = "FILE", requires = "goals", value_delimiter = ',')]
    pub readme: Vec<PathBuf>,
    /// Of the fresh server [default: 2; sweep: 1,2,4 and so on, to twice the cores]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    pub reactors: Vec<u16>,
    /// Of the fresh server [default: 4; sweep: 1,4]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Vec<u16>,
    /// Of the fresh server; cheap, unless passwords are what is to be measured
    #[arg(long, default_value = "8,1")]
    pub password_cost: String,
    /// Cargo passes it; without it this is a test
    #[arg(long, hide = true)]
    pub bench: bool,
    /// A moment of each workload
    #[arg(long, hide = true)]
    pub test: bool,
    /// Which benches or tests cargo was asked for
    #[arg(hide = true)]
    pub filter: Option<String>,
    /// Be the floor
    #[arg(long, hide = true)]
    pub relay: bool,
}

impl Flags {
    pub fn users(&self) -> usize {
        self.users.unwrap_or(match self.workload {
            Workload::Idle => 7500,
            Workload::Crowd => 10_002,
            Workload::Mix => 2000,
            _ => 200,
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

    /// For all threads together, if this is an open loop.
    pub fn rate(&self) -> Option<f64> {
        match self.rate {
            Some(Rate::PerSecond(rate)) => Some(rate),
            Some(Rate::Percent(_)) => None,
            // People do not wait for each other: one action for every four users and second.
            None => (self.workload == Workload::Mix).then(|| self.users() as f64 / 4.0),
        }
    }

    pub fn check(&self) -> anyhow::Result<()> {
        use Workload::{Crowd, Group, Mix, Pairs, Store};
        let (users, threads) = (self.users(), usize::from(self.threads));
        ensure!(users >= 2 * threads && users % (2 * threads) == 0, "--users must be a multiple of twice --threads");
        ensure!(self.workload != Crowd || threads == 1, "crowd has a thread for the group and one for the pair");
        ensure!(self.workload != Crowd || users >= 4, "crowd needs a pair and two members");
        ensure!(self.workload != Mix || users >= 20 * threads, "mix needs 20 users for each thread");
        ensure!(self.seconds > 0.0, "--seconds must be more than 0");
        let is_open = matches!(self.workload, Pairs | Group | Store | Mix);
        ensure!(self.rate.is_none() || is_open, "--rate goes with pairs, group, store and mix");
        let is_part = matches!(self.rate, Some(Rate::Percent(_)));
        ensure!(!is_part || self.workload == Pairs, "a percentage as --rate goes with pairs");
        ensure!(!self.floor || matches!(self.workload, Pairs | Group), "--floor goes with pairs and group");
        ensure!(self.rival.is_empty() || self.workload == Pairs, "--rival goes with pairs");
        self.rival.iter().try_for_each(|rival| rival.need())?;
        ensure!(!self.sweep || self.workload != Workload::Idle, "--sweep goes with what sends messages");
        let lists = [self.reactors.len(), self.workers.len(), self.window.len()];
        ensure!(self.sweep || lists.iter().all(|&n| n <= 1), "several --reactors, --workers or --window: --sweep");
        Ok(())
    }
}
