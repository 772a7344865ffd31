//! Random walks, for bounds that are too wide to be explored.

use std::time::{Duration, Instant};

use crate::action::{Action, Kind};
use crate::bounds::Bounds;
use crate::checking::Counterexample;
use crate::model::OrderModel;
use crate::rest::Known;
use crate::rules::Rules;
use crate::state::{Faults, NodeSet, State, Violation};

/// All of it: both users move, and everything fails, several times.
const WIDEST: Bounds = Bounds {
    messages: 4,
    sender_sessions: 4,
    sender_nodes: NodeSet::ALL,
    recipient_sessions: 4,
    recipient_nodes: NodeSet::ALL,
    most_rows: 6,
    faults: Faults {
        all: 5,
        line_breaks: 2,
        publisher_breaks: 2,
        stops: 2,
        lapses: 5,
        refusals: 2,
        doubts: 0,
        silences: 3,
        spills: 2,
        outages: 1,
    },
    faulty_nodes: NodeSet::ALL,
    prompt: &[],
};
const MOST_STEPS: u64 = 160;

/// How long to walk.
pub enum Until {
    Walks(u64),
    Passed(Duration),
}

#[derive(Default)]
pub struct Walked {
    pub walks: u64,
    pub steps: u64,
    /// What has happened at least once.
    pub kinds: Vec<Kind>,
}

pub struct Failure {
    pub seed: u64,
    pub counterexample: Counterexample,
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Walks from one seed after the other.
pub fn walk(first_seed: u64, until: Until) -> Result<Walked, Failure> {
    let model = OrderModel { rules: Rules::ALL, bounds: WIDEST };
    let begun = Instant::now();
    let mut walked = Walked::default();
    loop {
        let over = match until {
            Until::Walks(walks) => walked.walks >= walks,
            Until::Passed(time) => begun.elapsed() >= time,
        };
        if over {
            return Ok(walked);
        }
        let seed = first_seed.wrapping_add(walked.walks);
        let actions = one_walk(&model, seed);
        walked.walks += 1;
        walked.steps += actions.len() as u64;
        for action in &actions {
            if !walked.kinds.contains(&action.kind) {
                walked.kinds.push(action.kind);
            }
        }
        if let Some(violation) = outcome(&model, &actions) {
            let actions = shortened(&model, actions, violation);
            let state = replayed(&model, &actions).expect("a run");
            return Err(Failure { seed, counterexample: Counterexample::new(&model, &state, actions) });
        }
    }
}

/// One kind of step is likelier than another, differently in each walk: or what must come together would hardly ever.
fn one_walk(model: &OrderModel, seed: u64) -> Vec<Action> {
    let mut random = Random(seed);
    let mut weights = [0; 64];
    for weight in &mut weights {
        *weight = 1 << random.below(5);
    }
    let steps = 1 + random.below(MOST_STEPS);
    let mut state = State::initial();
    let (mut possible, mut taken) = (Vec::new(), Vec::new());
    for _ in 0..steps {
        model.possible(&state, &mut possible);
        let sum: u64 = possible.iter().map(|action| weights[action.kind as usize]).sum();
        if sum == 0 {
            break;
        }
        let mut left = random.below(sum);
        for action in &possible {
            let weight = weights[action.kind as usize];
            if left < weight {
                model.step(&mut state, *action);
                taken.push(*action);
                break;
            }
            left -= weight;
        }
    }
    taken
}

/// Where a run ends; nothing if it is none.
fn replayed(model: &OrderModel, actions: &[Action]) -> Option<State> {
    let mut state = State::initial();
    let mut possible = Vec::new();
    for action in actions {
        model.possible(&state, &mut possible);
        if !possible.contains(action) {
            return None;
        }
        model.step(&mut state, *action);
    }
    Some(state)
}

/// What goes wrong in a run or after its end.
fn outcome(model: &OrderModel, actions: &[Action]) -> Option<Violation> {
    let state = replayed(model, actions)?;
    state.violation.or_else(|| model.violation_at_rest(&state, &mut Known::default()))
}

/// Leaves out what the violation does not need.
fn shortened(model: &OrderModel, mut actions: Vec<Action>, violation: Violation) -> Vec<Action> {
    loop {
        let before = actions.len();
        for length in [6, 4, 3, 2, 1] {
            let mut at = 0;
            while at + length <= actions.len() {
                let mut fewer = actions.clone();
                fewer.drain(at..at + length);
                if outcome(model, &fewer) == Some(violation) {
                    actions = fewer;
                } else {
                    at += 1;
                }
            }
        }
        if actions.len() == before {
            return actions;
        }
    }
}
