//! A cluster chat server: JSON over TCP on a hand-rolled main/sub reactor.
//!
//! The modules, lowest layer first; a module imports only those listed before it:
//!
//! | module | what |
//! | --- | --- |
//! | [`password`] | Argon2id |
//! | [`secret`] | addresses that contain a password, and what is shown of them |
//! | [`wire`] | bytes to messages and back; pure |
//! | [`config`] | the command line |
//! | [`logging`] | the log, which never blocks a thread that writes to it |
//! | [`metrics`] | what is counted, and how it is exported |
//! | [`clock`] | the clock by which a lease lasts |
//! | [`reactor`] | the acceptor, the event loops, their mailboxes; knows bytes and connections, no chat |
//! | [`pool`] | workers for what blocks, in lanes that keep order |
//! | [`store`] | accounts, groups, offline messages: a trait, SQLite, and MySQL |
//! | [`home`] | which reactor a user or a group belongs to |
//! | [`bus`] | how the nodes of a cluster reach each other |
//! | [`service`] | the chat: inputs and time in, effects out; no I/O |
//! | [`server`] | the wiring, and the order in which things end |

pub mod bus;
pub mod clock;
pub mod config;
pub mod home;
pub mod logging;
pub mod metrics;
pub mod password;
pub mod pool;
pub mod reactor;
pub mod secret;
pub mod server;
pub mod service;
pub mod store;
pub mod wire;
