//! The phases of a scenario, one after the other: against the same server, with the same accounts.

use crate::about::{self, About};
use crate::book::Book;
use crate::ending;
use crate::flags::Flags;
use crate::round;
use crate::run::Run;
use crate::scenario::{Phase, Scenario};
use crate::target::Target;
use crate::users;
use crate::which::say;

/// # Errors
/// Nothing could be measured.
pub fn measure(scenario: &Scenario) -> anyhow::Result<Run> {
    let Scenario { whole, phases } = scenario;
    let about = About::of_phases(whole, phases);
    let mut book = Book::open(whole.accounts.as_deref())?;
    let mut target = Target::server(whole)?;
    let (mut rounds, mut problems) = (Vec::new(), Vec::new());
    for (n, Phase { name, flags }) in phases.iter().enumerate() {
        if n > 0 && book.messages > 0 {
            // Else they would come in the midst of what is measured next.
            users::clean(&target, &mut book)?;
        }
        book.give_back();
        target.name.clone_from(name);
        say(format_args!("{name}, {} of {}: {}", n + 1, phases.len(), about::title(flags)));
        match round::at(flags, &mut target, &mut book) {
            Ok(figures) => {
                let of_it = Run::new(flags, About::of(flags), vec![vec![figures.clone()]])?.problems;
                let named = |problem: String| {
                    if problem.starts_with(name) { problem } else { format!("{name}: {problem}") }
                };
                problems.extend(of_it.into_iter().map(named));
                let has_ended = figures.cut_short.is_some();
                rounds.push(vec![figures]);
                if has_ended || ending::signal().is_some() {
                    break;
                }
            }
            Err(error) if rounds.is_empty() => {
                round::keep_book(whole, &book)?;
                round::left(whole, &book).iter().for_each(say);
                return Err(error);
            }
            Err(error) => {
                problems.extend(ending::signal().is_none().then(|| format!("{error:#}")));
                break;
            }
        }
    }
    if whole.clean && ending::signal().is_none() {
        users::clean(&target, &mut book)?;
    }
    round::keep_book(whole, &book)?;
    // What is wrong in a phase has been found with its own flags.
    let mut run = Run::new(&Flags { fail_if: Vec::new(), ..whole.clone() }, about, rounds)?;
    run.problems = problems;
    run.left = round::left(whole, &book);
    run.speaks = book.speaks();
    Ok(run)
}
