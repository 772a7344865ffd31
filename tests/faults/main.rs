//! Twelve pairs chat across three nodes, each message again until it is acked, while nodes, Redis
//! and MariaDB are killed and stopped. What all players saw is checked against the promises at the end.
//!
//! `soak.rs` does the like for longer and with fewer faults, and looks at what it costs.
//!
//! `CHAT_FAULTS=n` has n faults instead of 8; `scripts/faults` starts a long run. A seed repeats the
//! order of the faults and what the players want, though not which of them is faster.

mod checker;
mod harm;
mod history;
mod line;
mod moves;
mod player;
mod soak;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use harm::harm;
use history::{Fault, Harm, History, Target};
use player::{Game, NOWHERE};
use support::{Cluster, Rng};

const NODES: usize = 3;
const PLAYERS: usize = 24;
/// Every other player, so that they are of different pairs.
const MEMBERS: [usize; 6] = [0, 2, 4, 6, 8, 10];
/// Between two faults, and between an end and a new start, at most.
const PAUSE_MS: usize = 3000;
/// How long the next fault waits for the users of a killed node: longer than was promised.
const BACK: Duration = Duration::from_secs(15);
/// How long a fault that is over may still disturb.
const AFTERMATH: Duration = Duration::from_secs(7);
/// This number of repeats for each fault and player is expected: what was under way at that time.
const REPEATS: usize = 2;

#[test]
fn nothing_acked_is_lost_whoever_is_killed_or_stopped() {
    let faults = std::env::var("CHAT_FAULTS").map_or(8, |text| text.parse().expect("CHAT_FAULTS is a number"));
    let mut rng = Rng::new();
    let mut cluster = Cluster::with_own_mariadb(NODES);
    let game = Game::new(cluster.nodes[0].address, cluster.addresses(), PLAYERS, &MEMBERS);
    let players = Game::begin(&game, &mut rng);
    let faults = do_harm(&mut cluster, &game, &mut rng, faults);
    let (logs, recipients) = game.finish(players);
    let repeats_allowed = REPEATS * PLAYERS * faults.len().min(8);
    History { logs, faults, recipients, repeats_allowed }.judge();
}

/// One fault after the other. Eight in a row include one of each kind, and three that kill a node.
fn do_harm(cluster: &mut Cluster, game: &Game, rng: &mut Rng, count: usize) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut deck = Vec::new();
    while faults.len() < count {
        if deck.is_empty() {
            let node = Target::Node(0);
            deck.extend([(node, Harm::Kill, true), (node, Harm::Kill, false), (node, Harm::Kill, false)]);
            deck.extend([node, Target::Redis, Target::MariaDb].map(|target| (target, Harm::Stop, false)));
            deck.extend([Target::Redis, Target::MariaDb].map(|target| (target, Harm::Kill, false)));
        }
        // Alone: nothing else is amiss from before it until its users are back, and excuses a delay.
        let (mut target, kind, alone) = deck.swap_remove(rng.below(deck.len()));
        if let Target::Node(node) = &mut target {
            *node = rng.below(NODES);
        }
        let [before, between] = [(); 2].map(|()| Duration::from_millis(rng.below(PAUSE_MS) as u64));
        let quiet = faults.last().map_or(game.begin.elapsed(), |fault: &Fault| fault.over + AFTERMATH);
        let before = if alone { before.max(quiet.saturating_sub(game.begin.elapsed())) } else { before };
        sleep(before);
        let users: Vec<usize> = (0..PLAYERS).filter(|no| Target::Node(place(game, *no)) == target).collect();
        let began = game.begin.elapsed();
        harm(cluster, target, kind, between);
        let fault = Fault { target, harm: kind, began, over: game.begin.elapsed() };
        println!("{:4} {fault}", faults.len() + 1);
        faults.push(fault);
        if alone {
            let deadline = Instant::now() + BACK;
            while users.iter().any(|no| place(game, *no) == NOWHERE) && Instant::now() < deadline {
                sleep(Duration::from_millis(5));
            }
        }
    }
    faults
}

fn place(game: &Game, player: usize) -> usize {
    game.places[player].load(Ordering::SeqCst)
}
