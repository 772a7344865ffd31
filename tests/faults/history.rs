//! What all players have seen, and whether the promises were kept.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

/// Since the run's begin.
pub type At = Duration;

/// The promise for users of a killed node.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// A Redis that was just started reports no node dead before a lease could have expired.
const REDIS_IS_YOUNG: Duration = Duration::from_secs(6);
/// How many broken promises are reported at length.
const TOLD: usize = 5;
/// Refusals that a server may give a sound request: the session has ended, too fast, no store, the
/// server is ending.
const PASSING: [i64; 4] = [13, 20, 21, 22];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Chat,
    GroupChat,
}

/// One sender's messages to its partner, or to the group. They bear the numbers 1, 2, 3, …
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    pub from: usize,
    pub kind: Kind,
}

/// What a player did or saw, on which of its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    LoggedIn {
        line: u32,
        node: usize,
    },
    LoginRefused {
        line: u32,
        node: usize,
        errno: i64,
    },
    /// It asked for the session's end.
    Left {
        line: u32,
    },
    /// The connection's end.
    Ended {
        line: u32,
    },
    /// An error without a request.
    Told {
        line: u32,
        errno: i64,
    },
    Sent {
        line: u32,
        kind: Kind,
        number: u32,
    },
    Acked {
        line: u32,
        kind: Kind,
        number: u32,
        delivered: bool,
    },
    Refused {
        line: u32,
        kind: Kind,
        number: u32,
        errno: i64,
    },
    /// A reply that takes a session, to what was asked at that time.
    Served {
        line: u32,
        asked: At,
    },
    Arrived {
        line: u32,
        stream: Stream,
        number: u32,
    },
    /// Nothing more could be done in the time there was.
    GaveUp,
}

/// What one player did and saw, in order.
pub type Log = Vec<(At, Event)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Node(usize),
    Redis,
    MariaDb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// `kill -9`, and started again.
    Kill,
    /// STOP, and CONT 10 s later.
    Stop,
}

#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub target: Target,
    pub harm: Harm,
    pub began: At,
    /// Everything runs again.
    pub over: At,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { target, harm, began, over } = self;
        write!(f, "{harm:?} {target:?}, {:.3} to {:.3} s", began.as_secs_f64(), over.as_secs_f64())
    }
}

impl Fault {
    /// Whether it may have disturbed what happened between these times.
    fn touches(&self, from: At, to: At) -> bool {
        let aftermath = if self.target == Target::Redis { REDIS_IS_YOUNG } else { Duration::ZERO };
        self.began <= to && self.over + aftermath >= from
    }
}

/// A whole run.
#[derive(Debug, Default)]
pub struct History {
    /// By player.
    pub logs: Vec<Log>,
    pub faults: Vec<Fault>,
    pub recipients: HashMap<Stream, Vec<usize>>,
    /// This number of repeats is no fault, where 1 % would be fewer.
    pub repeats_allowed: usize,
}

/// A promise that was not kept: when, and which players saw it.
#[derive(Debug)]
pub struct Broken {
    pub text: String,
    pub at: At,
    pub players: Vec<usize>,
    pub about: Option<(Stream, u32)>,
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Figures {
    pub delivered: usize,
    pub stored: usize,
    pub refused: usize,
    pub arrived: usize,
    pub repeated: usize,
    /// Arrivals on a connection whose session had ended, as its player knew.
    pub strays: usize,
    pub logins: usize,
    /// How long users of killed nodes took to be logged in again, with nothing else amiss.
    pub back: Vec<Duration>,
    /// The same, where another fault came in between.
    pub excused: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures { delivered, stored, refused, arrived, repeated, strays, logins, back, excused } = self;
        let share = 100.0 * *repeated as f64 / (*arrived).max(1) as f64;
        let longest = back.iter().max().copied().unwrap_or_default();
        writeln!(f, "acked as delivered {delivered}, as stored {stored}; refused {refused}")?;
        writeln!(f, "arrived {arrived}, {repeated} of them again ({share:.2} %); strays {strays}")?;
        write!(f, "logins {logins}; {} users of killed nodes back within {longest:.1?}, ", back.len())?;
        write!(f, "{excused} more with another fault in between")
    }
}

impl History {
    /// Prints the figures; broken promises fail the test.
    #[track_caller]
    pub fn judge(&self) {
        let (figures, broken) = self.check();
        println!("{figures}");
        if let Some(first) = broken.first() {
            broken.iter().for_each(|broken| println!("{}", broken.text));
            broken.iter().take(TOLD).for_each(|broken| println!("\n{}", self.tell(broken)));
            panic!("{} promises are broken, of which the first: {}", broken.len(), first.text);
        }
    }

    pub fn check(&self) -> (Figures, Vec<Broken>) {
        let (mut figures, mut broken) = (Figures::default(), Vec::new());
        let mut arrivals = HashMap::new();
        for player in 0..self.logs.len() {
            self.check_player(player, &mut figures, &mut arrivals, &mut broken);
            self.check_back(player, &mut figures, &mut broken);
        }
        self.check_losses(&arrivals, &mut broken);
        if figures.repeated > self.repeats_allowed.max(figures.arrived / 100) {
            broken.push(self.too_many_repeats(&figures));
        }
        (figures, broken)
    }

    /// Reports a repeat in the second that had the most of them.
    fn too_many_repeats(&self, figures: &Figures) -> Broken {
        let mut seen = HashSet::new();
        let mut by_second: HashMap<u64, Vec<(At, usize, Stream, u32)>> = HashMap::new();
        for (player, log) in self.logs.iter().enumerate() {
            for &(at, event) in log {
                if let Event::Arrived { stream, number, .. } = event
                    && !seen.insert((player, stream, number))
                {
                    by_second.entry(at.as_secs()).or_default().push((at, player, stream, number));
                }
            }
        }
        let worst = by_second.into_values().max_by_key(Vec::len).unwrap_or_default();
        let (at, player, stream, number) = worst[worst.len() / 2];
        let text = format!(
            "{} of {} messages came again, {} of them in the second at {} s",
            figures.repeated,
            figures.arrived,
            worst.len(),
            at.as_secs()
        );
        Broken { text, at, players: vec![stream.from, player], about: Some((stream, number)) }
    }

    /// One session at a time, arrivals in order, no refusal without a reason.
    fn check_player(
        &self,
        player: usize,
        figures: &mut Figures,
        arrivals: &mut HashMap<(Stream, usize), HashSet<u32>>,
        broken: &mut Vec<Broken>,
    ) {
        // The last login: which connection, and when.
        let mut session: Option<(u32, At)> = None;
        let mut last: HashMap<Stream, u32> = HashMap::new();
        for &(at, event) in &self.logs[player] {
            let mut complain = |text: String, about: Option<(Stream, u32)>| {
                let sender = about.map(|(stream, _)| stream.from).filter(|from| *from != player);
                broken.push(Broken { text, at, players: sender.into_iter().chain([player]).collect(), about });
            };
            match event {
                Event::LoggedIn { line, .. } => {
                    figures.logins += 1;
                    session = Some((line, at));
                }
                Event::LoginRefused { errno, .. } if errno != 2 && !PASSING.contains(&errno) => {
                    complain(format!("player {player}: a login is refused with {errno}"), None);
                }
                Event::Refused { kind, number, errno, .. } => {
                    figures.refused += 1;
                    if !PASSING.contains(&errno) {
                        let about = (Stream { from: player, kind }, number);
                        complain(format!("player {player}: {kind:?} {number} is refused with {errno}"), Some(about));
                    }
                }
                Event::Acked { delivered: true, .. } => figures.delivered += 1,
                Event::Acked { delivered: false, .. } => figures.stored += 1,
                Event::Served { line, asked } => {
                    if let Some((newer, since)) = session
                        && line != newer
                        && asked > since
                    {
                        complain(format!("player {player}: line {line} has a session beside that of {newer}"), None);
                    }
                }
                // No player reads a connection that was given up.
                Event::Arrived { line, .. } if session.is_none_or(|(current, _)| current != line) => {
                    figures.strays += 1;
                }
                Event::Arrived { stream, number, .. } => {
                    figures.arrived += 1;
                    if !arrivals.entry((stream, player)).or_default().insert(number) {
                        figures.repeated += 1;
                    } else if let Some(before) = last.insert(stream, number)
                        && before > number
                    {
                        let text = format!("player {player}: {stream:?} {number} came after {before}");
                        complain(text, Some((stream, number)));
                    }
                }
                Event::GaveUp => complain(format!("player {player} could not finish"), None),
                _ => {}
            }
        }
    }

    /// Users of a killed node are soon logged in again.
    fn check_back(&self, player: usize, figures: &mut Figures, broken: &mut Vec<Broken>) {
        let log = &self.logs[player];
        let kills = self.faults.iter().enumerate().filter(|(_, fault)| fault.harm == Harm::Kill);
        for (index, fault) in kills {
            let Target::Node(node) = fault.target else { continue };
            let began = log.partition_point(|(at, _)| *at < fault.began);
            let (before, after) = log.split_at(began);
            // Where the player is at that time.
            let mut place = None;
            for &(_, event) in before {
                match event {
                    Event::LoggedIn { line, node } => place = Some((line, node)),
                    Event::Left { line } | Event::Ended { line } if place.is_some_and(|(at, _)| at == line) => {
                        place = None;
                    }
                    _ => {}
                }
            }
            let Some((line, _)) = place.filter(|(_, at)| *at == node) else { continue };
            let next = after.iter().find(|(_, event)| match event {
                Event::LoggedIn { .. } => true,
                Event::Left { line: left } => *left == line,
                _ => false,
            });
            if matches!(next, Some((_, Event::Left { .. }))) {
                continue; // it was about to go anyway
            }
            let back = next.map_or(At::MAX, |(at, _)| *at) - fault.began;
            let until = fault.began + back.min(BACK_WITHIN);
            let others = self.faults.iter().enumerate().filter(|(other, _)| *other != index);
            if others.into_iter().any(|(_, other)| other.touches(fault.began, until)) {
                figures.excused += 1;
                continue;
            }
            if back > BACK_WITHIN {
                let text = format!("player {player} of the killed node {node} was back after {back:.1?}");
                broken.push(Broken { text, at: until, players: vec![player], about: None });
            }
            figures.back.push(back);
        }
    }

    /// What was acked has arrived.
    fn check_losses(&self, arrivals: &HashMap<(Stream, usize), HashSet<u32>>, broken: &mut Vec<Broken>) {
        for (sender, log) in self.logs.iter().enumerate() {
            for &(at, event) in log {
                let Event::Acked { kind, number, delivered, .. } = event else { continue };
                let stream = Stream { from: sender, kind };
                for recipient in self.recipients.get(&stream).into_iter().flatten() {
                    if !arrivals.get(&(stream, *recipient)).is_some_and(|numbers| numbers.contains(&number)) {
                        let how = if delivered { "delivered" } else { "stored" };
                        let text = format!("{stream:?} {number}, acked as {how}, never came to player {recipient}");
                        let about = Some((stream, number));
                        broken.push(Broken { text, at, players: vec![sender, *recipient], about });
                    }
                }
            }
        }
    }

    fn had_session(&self, player: usize, of: u32) -> bool {
        self.logs[player].iter().any(|(_, event)| matches!(event, Event::LoggedIn { line, .. } if *line == of))
    }

    /// Whether another connection of the player had the last login before that time.
    fn is_stale(&self, player: usize, line: u32, at: At) -> bool {
        let before = self.logs[player].iter().take_while(|(then, _)| *then < at);
        let logins = before.filter_map(|(_, event)| match event {
            Event::LoggedIn { line, .. } => Some(*line),
            _ => None,
        });
        logins.last().is_some_and(|last| last != line)
    }

    /// What those concerned saw around that time.
    pub fn tell(&self, broken: &Broken) -> String {
        const AROUND: Duration = Duration::from_secs(15);
        let near = |at: At| at + AROUND >= broken.at && at <= broken.at + AROUND;
        let mut lines: Vec<(At, String)> = Vec::new();
        for fault in self.faults.iter().filter(|fault| near(fault.began) || near(fault.over)) {
            lines.push((fault.began, fault.to_string()));
        }
        for &player in &broken.players {
            let told = self.logs[player].iter().filter(|(at, event)| match (about(player, event), event) {
                (Some((stream, number)), _) => {
                    broken.about.is_some_and(|(other, of)| stream == other && number.abs_diff(of) <= 3)
                }
                // There are many of these.
                (None, Event::Served { line, .. }) => near(*at) && self.is_stale(player, *line, *at),
                (None, Event::LoginRefused { errno: 2, .. }) => false,
                (None, Event::Ended { line }) => near(*at) && self.had_session(player, *line),
                (None, _) => near(*at),
            });
            lines.extend(told.map(|(at, event)| (*at, format!("player {player}: {event:?}"))));
        }
        lines.sort_by_key(|(at, _)| *at);
        let lines = lines.iter().map(|(at, text)| format!("    {:9.3} {text}\n", at.as_secs_f64()));
        format!("{:.3} {}\n{}", broken.at.as_secs_f64(), broken.text, lines.collect::<String>())
    }
}

/// Which message an event is of.
fn about(player: usize, event: &Event) -> Option<(Stream, u32)> {
    match *event {
        Event::Sent { kind, number, .. } | Event::Acked { kind, number, .. } | Event::Refused { kind, number, .. } => {
            Some((Stream { from: player, kind }, number))
        }
        Event::Arrived { stream, number, .. } => Some((stream, number)),
        _ => None,
    }
}
