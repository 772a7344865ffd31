//! The workloads, and what each of them uses and shows.

use clap::ValueEnum;

use crate::measures::Measure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Users talk in pairs; each message is answered by one. With several nodes, each pair is split
    Pairs,
    /// One user of a group talks to all others; a delivery counts as a message. All users are one group, or there
    /// are many of --members
    Group,
    /// One large group that is never silent, and beside it a pair that chats, 1000 times a second
    Crowd,
    /// Sessions that do nothing: resident memory between a third of the users and all
    Idle,
    /// Messages to users that are offline, with acks
    Store,
    /// The same, but each recipient comes back for them, again and again
    Drain,
    /// All users log out and in again, over and over
    Login,
    /// Users that are not connected come, at a --rate or all at once, connect, log in, and stay: each once, or --after
    /// a cut or a kill until it is served. It ends when all are; see below
    Storm,
    /// New accounts, over and over
    Register,
    /// Like people: most are idle, few talk, some in groups, some come and go
    Mix,
    /// Every other user is written to at a fixed rate, and does not read for --pause seconds at a time; beside
    /// them a pair chats, 1000 times a second
    Paused,
    /// The same, but they read all the time, no more than --read-rate bytes a second each
    Slow,
    /// One user is written to by all others, from its own node and from another, at a fixed rate; it reads all the time,
    /// but stands still once, for --pause seconds: how soon is it served as before?
    Busy,
}

impl Workload {
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
    }

    /// How many users there are, where nothing is said.
    pub fn usual_users(self) -> usize {
        match self {
            Workload::Idle => 7500,
            Workload::Crowd => 10_002,
            Workload::Mix => 2000,
            Workload::Storm => 1000,
            Workload::Paused | Workload::Slow => 22,
            Workload::Busy => 5,
            _ => 200,
        }
    }

    /// The number of nodes, where nothing is said.
    pub fn usual_nodes(self) -> u16 {
        if self == Workload::Busy { 2 } else { 1 }
    }

    /// How long a round is measured, in seconds, where nothing is said; a storm, after the last user is due, at most. Idle
    /// sessions rest: a server keeps what it needs for a login until the login's deadline, 10 s with ours.
    pub fn usual_seconds(self) -> f64 {
        match self {
            Workload::Busy => 20.0,
            Workload::Storm => 60.0,
            Workload::Idle => 12.0,
            _ => 3.0,
        }
    }

    /// Sends chats or group chats.
    pub fn sends_messages(self) -> bool {
        !matches!(self, Workload::Idle | Workload::Login | Workload::Storm | Workload::Register)
    }

    /// Keeps a window of messages in flight.
    pub fn has_window(self) -> bool {
        matches!(self, Workload::Pairs | Workload::Group | Workload::Crowd | Workload::Store | Workload::Drain)
    }

    /// Can send in time, whatever the server does.
    pub fn may_be_open(self) -> bool {
        matches!(self, Workload::Pairs | Workload::Group | Workload::Store | Workload::Storm) || self.is_always_open()
    }

    pub fn is_always_open(self) -> bool {
        matches!(self, Workload::Mix | Workload::Paused | Workload::Slow | Workload::Busy)
    }

    /// Every message is acked, without being asked.
    pub fn always_acks(self) -> bool {
        matches!(self, Workload::Store | Workload::Drain | Workload::Paused | Workload::Slow | Workload::Busy)
    }

    /// Has a second thread of its own, and no more.
    pub fn has_a_pair_beside(self) -> bool {
        matches!(self, Workload::Crowd | Workload::Paused | Workload::Slow)
    }

    pub fn uses_groups(self) -> bool {
        matches!(self, Workload::Group | Workload::Crowd | Workload::Mix)
    }

    /// Has work that blocks: hashes of passwords, the store.
    pub fn needs_workers(self) -> bool {
        matches!(self, Workload::Paused | Workload::Slow | Workload::Busy | Workload::Store) || self.is_a_storm()
    }

    /// Many log in, out or register side by side.
    pub fn is_a_storm(self) -> bool {
        matches!(self, Workload::Drain | Workload::Login | Workload::Storm | Workload::Register | Workload::Mix)
    }

    /// What is timed. `acks`: with --seq; `is_open`: at a rate.
    pub fn measures(self, acks: bool, is_open: bool) -> Vec<Measure> {
        let mut measures = match self {
            Workload::Pairs => vec![Measure::Chat],
            Workload::Group => vec![Measure::Member, Measure::LastMember],
            Workload::Crowd => vec![Measure::Chat, Measure::Member, Measure::LastMember],
            Workload::Idle => Vec::new(),
            Workload::Store => vec![Measure::Stored],
            Workload::Drain => vec![Measure::Stored, Measure::Login, Measure::Return],
            Workload::Login => vec![Measure::Login],
            Workload::Storm => {
                vec![Measure::Served, Measure::Connect, Measure::Accept, Measure::Login, Measure::Queue, Measure::Store]
            }
            Workload::Register => vec![Measure::Register],
            Workload::Mix => Vec::new(), // its acts are timed
            Workload::Paused | Workload::Slow => vec![Measure::Chat, Measure::CatchUp, Measure::Ack, Measure::Stored],
            Workload::Busy => vec![Measure::CatchUp, Measure::Ack, Measure::Stored],
        };
        if acks && !self.always_acks() {
            measures.push(Measure::Ack);
        }
        if is_open || self.has_a_pair_beside() || self == Workload::Storm {
            measures.push(Measure::Lag);
        }
        measures
    }
}
