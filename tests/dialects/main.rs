//! Every dialect over real sockets, as its own clients see it: [`client::Strict`] dies of what they die of, and is
//! written from what they do, not from `src/wire/dialect`.

/// Declares tests that run at one reactor and at four, or on two nodes as well.
macro_rules! tests {
    (at $configuration:ident $name:ident: $($test:ident),* $(,)?) => {
        mod $name {
            $(#[test] fn $test() { super::$test(&crate::$configuration) })*
        }
    };
    (everywhere: $($test:ident),* $(,)?) => {
        tests! { $($test),* }
        tests! { at CLUSTER two_nodes: $($test),* }
    };
    ($($test:ident),* $(,)?) => {
        tests! { at ONE one_reactor: $($test),* }
        tests! { at FOUR four_reactors: $($test),* }
    };
}

mod bursts;
mod client;
mod dying;
mod mixed;
mod object;
mod profiles;
mod recorded;
mod remembered;
mod steps;
#[path = "../support/mod.rs"]
mod support;

use std::thread;

use profiles::Profile;
use support::{Config, World};

static ONE: Config = Config::new(1);
static FOUR: Config = Config::new(4);
static CLUSTER: Config = Config::cluster(2, 2);

tests! {
    dialects_that_are_guessed,
    dialects_that_are_given,
}

/// Runs something for each profile, in a thread that has its name; all must succeed.
pub fn for_each(profiles: &[Profile], run: impl Fn(&Profile) + Sync) {
    let run = &run;
    thread::scope(|scope| {
        for profile in profiles {
            let named = thread::Builder::new().name(profile.name.to_owned());
            named.spawn_scoped(scope, move || run(profile)).expect("a thread can be started");
        }
    });
}

/// Those that a server finds out.
pub fn guessed() -> Vec<Profile> {
    profiles::ALL.into_iter().filter(|profile| !profile.is_given).collect()
}

/// The client as a server takes it that does not know it yet: what a login tells is canon's, or b's.
pub fn at_first(profile: &Profile) -> Profile {
    match profile.name {
        // A registration at 3 is b's, whose ack is 4. A login by the id that it tells goes well.
        "d" => Profile { register_ack: 4, ..*profile },
        // A new friend is as in canon, and so has no ack before something else has told the dialect.
        "f" => Profile { acks: &[], ..*profile },
        // A registration is canon's, and so is its ack, whose key is the last one of these.
        "canon-userid" => Profile { keys: &profile.keys[..profile.keys.len() - 1], ..*profile },
        // A group is made as in canon and in d; that one joins at 10 tells.
        "g" => Profile { acks: &profiles::G.acks[1..], ..*profile },
        _ => *profile,
    }
}

fn dialects_that_are_guessed(config: &'static Config) {
    let world = config.own(&[]);
    let address = world.server().address;
    for_each(&guessed(), |profile| steps::play(&world, address, profile, &at_first(profile)));
}

/// Each is given to a server of its own, also those that could be guessed: then nothing is missing from the start.
fn dialects_that_are_given(config: &'static Config) {
    for_each(&profiles::ALL, |profile| {
        let world: World = config.own(&["--dialect", profile.name]);
        let address = world.server().address;
        steps::play(&world, address, profile, profile);
    });
}
