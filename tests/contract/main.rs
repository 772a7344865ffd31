//! The wire contract, tested over real sockets against the real server.
//!
//! A test is a function of its [`Config`] and gets its clients from a [`World`]; it is named after
//! the promise it holds the server to. Every test runs in every configuration, as a test of its
//! own: `chats::reactors_4::a_chat_is_forwarded_with_the_bytes_that_came`.
//!
//! [`Config`]: support::Config
//! [`World`]: support::World

#[path = "../support/mod.rs"]
mod support;

use support::Config;

static REACTORS_1: Config = Config::new(1);
static REACTORS_4: Config = Config::new(4);

/// Declares the tests of a module; one that is left out is dead code, and so a warning.
macro_rules! in_every_configuration {
    ($($test:ident),* $(,)?) => {
        mod reactors_1 {
            $(#[test] fn $test() { super::$test(&crate::REACTORS_1) })*
        }
        mod reactors_4 {
            $(#[test] fn $test() { super::$test(&crate::REACTORS_4) })*
        }
    };
}

mod accounts;
mod capacity;
mod chats;
mod errors;
mod framing;
mod groups;
mod legacy;
mod malformed;
mod offline;
mod order;
mod process;
mod seq;
mod storage;
