//! Hours in short: at half of what they can do, with a fault a minute, the nodes are at the end as they were at
//! the beginning. `scripts/soak` lets it take half an hour; `CHAT_SOAK=n` n minutes instead of one.

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use crate::harm::harm;
use crate::history::{Event, Fault, Harm, History, Log, Target};
use crate::player::Game;
use crate::support::{Cluster, Rng, Server, eventually};
use crate::{MEMBERS, NODES, PLAYERS, REPEATS};

const MINUTE: Duration = Duration::from_secs(60);
/// How long it is looked for what the nodes can do at most.
const FULL_LOAD: Duration = Duration::from_secs(4);
/// A shorter run is too noisy for the bounds on latencies and processor use that are promised of a long one.
const LONG: u32 = 10;
/// How long after a fault everybody is back and what was late has come.
const CALM: Duration = Duration::from_secs(15);
/// What a node holds of descriptors once its workers have something to do: their connections and its keeper's.
const DATABASE: usize = 4;
/// Between a fault's end and what follows, at most.
const PAUSE_MS: usize = 1000;

/// What a node holds.
#[derive(Debug, Clone, Copy)]
struct Holding {
    pid: u32,
    kib: usize,
    descriptors: usize,
}

fn holdings(cluster: &Cluster) -> Vec<Holding> {
    let holding =
        |server: &Server| Holding { pid: server.pid(), kib: server.resident_kib(), descriptors: server.descriptors() };
    cluster.nodes.iter().map(holding).collect()
}

/// The time from a message to its ack that 99 of 100 messages sent between these times kept to.
fn p99(logs: &[Log], from: Duration, to: Duration) -> Duration {
    let mut times = Vec::new();
    for log in logs {
        let mut sent = None;
        for (at, event) in log {
            match event {
                Event::Sent { kind, number, .. } => sent = Some((*at, *kind, *number)),
                Event::Acked { kind, number, .. } => {
                    if let Some((since, ..)) = sent.filter(|sent| (sent.1, sent.2) == (*kind, *number))
                        && (from..to).contains(&since)
                    {
                        times.push(*at - since);
                    }
                }
                _ => {}
            }
        }
    }
    times.sort_unstable();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

/// A part of the run in which nothing is amiss.
struct Calm {
    from: Duration,
    to: Duration,
    /// What the nodes used of the processors.
    cpu: Duration,
    messages: u64,
}

impl Calm {
    /// Lasts until this time of the game.
    fn until(end: Duration, cluster: &Cluster, game: &Game) -> Calm {
        let (from, before, acked) = (game.begin.elapsed(), cpu(cluster), messages(game));
        sleep(end.saturating_sub(from));
        let to = game.begin.elapsed();
        Calm { from, to, cpu: cpu(cluster).saturating_sub(before), messages: messages(game) - acked }
    }
}

fn cpu(cluster: &Cluster) -> Duration {
    cluster.nodes.iter().map(Server::cpu).sum()
}

/// Of some calm parts: the median of their 99th percentiles, and the processor time for a message.
fn costs(calm: &[Calm], logs: &[Log]) -> (Duration, Duration) {
    let mut times: Vec<Duration> = calm.iter().map(|calm| p99(logs, calm.from, calm.to)).collect();
    times.sort_unstable();
    let cpu: Duration = calm.iter().map(|calm| calm.cpu).sum();
    let messages: u64 = calm.iter().map(|calm| calm.messages).sum();
    (times[times.len() / 2], cpu.div_f64(messages.max(1) as f64))
}

/// How many messages have been acked.
fn messages(game: &Game) -> u64 {
    game.acked.iter().flatten().map(|acked| u64::from(acked.load(Ordering::SeqCst))).sum()
}

/// Has the players do half of what they did without thinking.
fn set_half_load(game: &Game) {
    game.think.store(0, Ordering::SeqCst);
    sleep(FULL_LOAD / 4); // until all are logged in
    let before = messages(game);
    sleep(FULL_LOAD);
    let messages = (messages(game) - before).max(1);
    // Each player's message takes this time, and the thinking the same time again, on average.
    let time = FULL_LOAD * PLAYERS as u32 / messages as u32;
    game.think.store(2 * time.as_micros() as usize, Ordering::SeqCst);
    println!("full load: {} messages/s, each player's in {time:?}", messages / FULL_LOAD.as_secs());
}

#[test]
fn what_a_cluster_costs_at_half_load_does_not_grow_with_time() {
    let minutes: u32 = std::env::var("CHAT_SOAK").map_or(1, |text| text.parse().expect("CHAT_SOAK is a number"));
    let mut rng = Rng::new();
    let mut cluster = Cluster::with_own_mariadb(NODES);
    let game = Game::new(cluster.nodes[0].address, cluster.addresses(), PLAYERS, &MEMBERS);
    let idle = holdings(&cluster);
    let players = Game::begin(&game, &mut rng);
    set_half_load(&game);

    // What is compared is the first and the last third of the calm parts between faults; and of what is held, the
    // first minute and the last, in which nothing is amiss. A run of one minute has quarters instead.
    let begin = game.begin.elapsed();
    let window = if minutes == 1 { MINUTE / 4 } else { MINUTE };
    let end = begin + MINUTE * minutes;
    let mut faults: Vec<Fault> = Vec::new();
    let mut calm = vec![Calm::until(begin + window, &cluster, &game)];
    let first = holdings(&cluster);
    let kinds = [
        (Target::Redis, Harm::Stop),
        (Target::MariaDb, Harm::Kill),
        (Target::Node(1), Harm::Stop),
        (Target::Redis, Harm::Kill),
        (Target::Node(2), Harm::Kill),
        (Target::MariaDb, Harm::Stop),
    ];
    let at = rng.below(kinds.len());
    for number in 0..minutes.saturating_sub(2).max(1) {
        let (target, kind) = kinds[(at + number as usize) % kinds.len()];
        let began = game.begin.elapsed();
        harm(&mut cluster, target, kind, Duration::from_millis(rng.below(PAUSE_MS) as u64));
        let fault = Fault { target, harm: kind, began, over: game.begin.elapsed() };
        let kib: Vec<usize> = holdings(&cluster).iter().map(|holding| holding.kib).collect();
        println!("{:4} {fault}; nodes take {kib:?} KiB", number + 1);
        let (is_over, next) = (fault.over, (begin + window + MINUTE * (number + 1)).min(end));
        faults.push(fault);
        sleep((is_over + CALM).saturating_sub(game.begin.elapsed()));
        calm.push(Calm::until(next, &cluster, &game));
    }
    calm.push(Calm::until(end, &cluster, &game));
    let last = holdings(&cluster);
    let (logs, recipients) = game.finish(players);

    calm.retain(|calm| calm.messages > 0);
    let third = calm.len().div_ceil(3);
    let [early, late] = [&calm[..third], &calm[calm.len() - third..]].map(|calm| costs(calm, &logs));
    println!("p99, and processor time for a message: at first {early:?}, at last {late:?}");
    println!("at first {first:?}\n at last {last:?}");
    let repeats_allowed = REPEATS * PLAYERS * faults.len().min(8);
    History { logs, faults, recipients, repeats_allowed }.judge();

    for (before, after) in first.iter().zip(&last).filter(|(before, after)| before.pid == after.pid) {
        assert!(after.kib <= before.kib * 11 / 10 + 8 * 1024, "memory grows: {before:?}, then {after:?}");
    }
    let descriptors = |holdings: &[Holding]| holdings.iter().map(|holding| holding.descriptors).sum::<usize>();
    assert!(descriptors(&last) <= descriptors(&first) + PLAYERS, "descriptors: {first:?}, then {last:?}");
    eventually("the nodes to hold no more descriptors than before anybody came, but to the database", || {
        descriptors(&holdings(&cluster)) <= descriptors(&idle) + NODES * DATABASE
    });
    println!("with nobody there {:?}, and before {idle:?}", holdings(&cluster));
    let is_long = minutes >= LONG;
    let latest = if is_long { early.0.mul_f64(1.5) } else { early.0 * 2 + Duration::from_millis(20) };
    assert!(late.0 <= latest, "p99 was {:?} at first, and {:?} at last", early.0, late.0);
    assert!(
        !is_long || late.1 <= early.1.mul_f64(1.05),
        "a message took {:?} at first, and {:?} at last",
        early.1,
        late.1
    );
}
