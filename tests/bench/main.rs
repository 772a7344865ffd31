//! The load bench, tried as its users would: it must say what is so. Between it and a real server stands a proxy that
//! drops, repeats, swaps and changes what passes, a known number of times.

mod compare;
mod cpp;
mod ends;
mod faults;
mod files;
mod find;
mod flags;
mod mix;
mod numbers;
mod order;
mod proxy;
mod scenario;
mod storm;
mod tls;
mod tool;

#[path = "../support/mod.rs"]
mod support;

// What `benches/load/tls.rs` uses, which is tried on its own.
#[allow(dead_code)]
#[path = "../../benches/load/pace.rs"]
mod pace;
#[path = "../../src/bin/chat-client/trust.rs"]
mod trust;
