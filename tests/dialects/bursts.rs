//! Clients that take each read for one message, and die of a long one: however much comes at once, they see all of it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::mixed::{online, place};
use crate::profiles::{B_OBJECTS, B_SINGULAR, C_USERID, CANON, CANON_DATA, CANON_USERID, Profile, ZERO};
use crate::steps::{logged_out, name};
use crate::support::{Config, World};

tests! { bursts_come_one_message_to_a_read }

/// In a login reply of 1023 bytes there is no room for all of these.
const MESSAGES: usize = 12;

fn bursts_come_one_message_to_a_read(config: &'static Config) {
    let world = place(config);
    for profile in [CANON, B_OBJECTS, B_SINGULAR, C_USERID, CANON_DATA, CANON_USERID, ZERO] {
        // Messages are apart in time, so a stalled machine may still join two: tried a few times.
        for attempts_left in (0..5).rev() {
            match catch_unwind(AssertUnwindSafe(|| burst(&world, &profile))) {
                Ok(()) => break,
                Err(why) if attempts_left > 0 && are_joined(&*why) => {}
                Err(why) => resume_unwind(why),
            }
        }
    }
}

/// Whether the client has died of two messages in one read, which are no JSON to a client that knows no NUL.
fn are_joined(why: &(dyn Any + Send)) -> bool {
    let why = why.downcast_ref::<String>();
    why.is_some_and(|why| ["two objects in one read", "trailing characters"].iter().any(|of| why.contains(of)))
}

fn burst(world: &World, profile: &Profile) {
    let mut canon = world.client();
    let account = canon.register(&name("c"), "secret");
    canon.login(&account);
    let mut theirs = online(world, 0, profile, "t");
    theirs.chat(account.id, "hello");
    canon.push();
    theirs.logout();
    logged_out(world, theirs.id());
    let text = |n: usize| format!("{n} {}", "x".repeat(100));
    (0..MESSAGES).for_each(|n| assert!(!canon.chat(theirs.id(), &text(n))));
    theirs.login();
    (0..MESSAGES).for_each(|n| _ = theirs.hears(&account, &text(n)));
    let burst: String = (0..MESSAGES).map(|n| canon.chat_to(theirs.id(), &text(n)).to_string()).collect();
    canon.send_raw(burst);
    (0..MESSAGES).for_each(|n| _ = theirs.hears(&account, &text(n)));
    theirs.quit();
}
