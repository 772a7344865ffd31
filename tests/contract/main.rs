//! The wire contract, `docs/PROTOCOL.md`, tested over real sockets against the real server.
//!
//! A test is a function of its [`Config`] and gets its clients from a [`World`]; it is named after
//! the promise it holds the server to. Every test runs in every configuration, as a test of its
//! own: `chats::cluster::a_chat_is_forwarded_with_the_bytes_that_came`. The few that make sense in
//! some only say why.
//!
//! [`Config`]: support::Config
//! [`World`]: support::World

#[path = "../support/mod.rs"]
mod support;

/// Named as the modules of their tests.
#[allow(non_upper_case_globals)]
mod configurations {
    use crate::support::Config;

    pub static sqlite_1: Config = Config::new(1);
    pub static sqlite_4: Config = Config::new(4);
    pub static mysql: Config = Config::mysql(2);
    /// Clients of "another node" are on another node.
    pub static cluster: Config = Config::cluster(2, 2);
}

/// Declares the tests of a module; one that is left out is dead code, and so a warning.
macro_rules! in_every_configuration {
    ($($test:ident),* $(,)?) => {
        in_configurations! { sqlite_1: [$($test),*], sqlite_4: [$($test),*], mysql: [$($test),*], cluster: [$($test),*] }
    };
}

/// The same for some configurations, each with its tests.
macro_rules! in_configurations {
    ($($configuration:ident: [$($test:ident),* $(,)?]),* $(,)?) => {
        $(mod $configuration {
            $(#[test] fn $test() { super::$test(&crate::configurations::$configuration) })*
        })*
    };
}

mod accounts;
mod capacity;
mod chats;
mod earlier;
mod errors;
mod framing;
mod groups;
mod legacy;
mod limits;
mod malformed;
mod names;
mod nodes;
mod offline;
mod order;
mod outage;
mod process;
mod seq;
mod storage;
mod storm;
