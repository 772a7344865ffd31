//! A cluster chat server: JSON over TCP on a hand-rolled main/sub reactor.
pub mod wire;
