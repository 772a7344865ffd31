//! The model as `stateright` knows it, and what is asked of it.

use std::fmt;
use std::sync::Mutex;

use stateright::{Checker, HasDiscoveries, Model, Property};

use crate::action::Action;
use crate::bounds::Bounds;
use crate::model::OrderModel;
use crate::rest::Known;
use crate::rules::Rules;
use crate::state::{State, Violation};

pub struct Checked {
    pub order: OrderModel,
    known: Mutex<Known>,
}

impl Checked {
    pub fn new(rules: Rules, bounds: Bounds) -> Checked {
        Checked { order: OrderModel { rules, bounds }, known: Mutex::default() }
    }
}

impl Model for Checked {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::initial()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.order.possible(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        self.order.step(&mut next, action);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Checked>> {
        vec![
            Property::always(SAFE, |_, state: &State| state.violation.is_none()),
            Property::always(COMES_TO_REST, |checked: &Checked, state: &State| {
                let mut known = checked.known.lock().unwrap();
                checked.order.violation_at_rest(state, &mut known).is_none()
            }),
        ]
    }
}

const SAFE: &str = "nothing is out of order or lost, and nobody acts by a claim that is gone";
const COMES_TO_REST: &str = "when faults end, all comes to rest and nobody is locked out";

/// A run that ends in a violation.
pub struct Counterexample {
    pub violation: Violation,
    pub actions: Vec<Action>,
    /// How it goes on to rest, if the violation shows only there.
    pub rest: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        writeln!(formatter, "{:?}", self.violation)?;
        for action in &self.actions {
            writeln!(formatter, "    {action:?}")?;
        }
        for step in &self.rest {
            writeln!(formatter, "    {step}")?;
        }
        Ok(())
    }
}

pub struct Explored {
    pub states: usize,
    pub counterexample: Option<Counterexample>,
}

/// Explores every state within the bounds, breadth first, up to the first violation.
pub fn explore(rules: Rules, bounds: Bounds) -> Explored {
    let checker = Checked::new(rules, bounds).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let order = OrderModel { rules, bounds };
    let mut shortest: Option<Counterexample> = None;
    for path in checker.discoveries().into_values() {
        let state = *path.last_state();
        let actions = path.into_actions();
        if shortest.as_ref().is_none_or(|other| actions.len() < other.actions.len()) {
            shortest = Some(Counterexample::new(&order, &state, actions));
        }
    }
    Explored { states: checker.unique_state_count(), counterexample: shortest }
}

impl Counterexample {
    /// The counterexample of a run from the initial state that ends in `state`, which violates something, or whose
    /// future does.
    pub fn new(order: &OrderModel, state: &State, actions: Vec<Action>) -> Counterexample {
        let mut rest = Vec::new();
        let violation = state.violation.or_else(|| {
            order.trace_to_rest(state, &mut |future, action| rest.push(format!("then, {future:?}: {action:?}")))
        });
        Counterexample { violation: violation.expect("a violation"), actions, rest }
    }
}
