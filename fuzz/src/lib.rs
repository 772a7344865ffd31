//! What the fuzz targets do with their input. `tests/fuzz.rs` runs the same over the corpora.

pub mod dialect;
pub mod differential;
pub mod http;
pub mod proxy;
pub mod redis;
pub mod request;
pub mod service;
pub mod splitter;
pub mod strict;
pub mod websocket;

/// The name of its corpus, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 9] = [
    ("dialect", dialect::run),
    ("differential", differential::run),
    ("http", http::run),
    ("proxy", proxy::run),
    ("redis", redis::run),
    ("request", request::run),
    ("service", service::run),
    ("splitter", splitter::run),
    ("websocket", websocket::run),
];
