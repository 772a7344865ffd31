//! The wire: what stands on the TCP stream, as pure functions over bytes.
//!
//! A message is one JSON object; few clients put a length before it. [`Splitter`] finds where an object
//! ends, [`Request`] reads the fields the server needs out of one, [`reply`] writes what the
//! server says, and [`Framing`] mirrors how a client ends its own objects. What may stand before the first
//! object, a [`ProxyHeader`] for one, `opening.rs` tells apart; what clients of other copies speak, [`dialect`]. Browsers
//! ask by [`http`], and then put each object into a message of a [`websocket`]. Nothing here knows a socket, a session or a clock.

pub mod dialect;
mod framing;
pub mod http;
mod integer;
pub mod name;
mod opening;
pub mod proxy;
pub mod reply;
mod request;
mod splitter;
pub mod trace;
pub mod websocket;

pub use framing::{Framing, FramingMirror};
pub use integer::integer;
pub use proxy::ProxyHeader;
pub use reply::{Errno, Refusal};
pub use request::{Request, rewrite_chat};
pub use splitter::{Broken, Split, Splitter, one_object};

/// The message numbers. 1 to 10 are the original's, from 200 up are this server's additions.
pub mod msgid {
    pub const LOGIN: i64 = 1;
    pub const LOGIN_ACK: i64 = 2;
    pub const LOGOUT: i64 = 3;
    pub const REGISTER: i64 = 4;
    pub const REGISTER_ACK: i64 = 5;
    pub const ONE_CHAT: i64 = 6;
    pub const ADD_FRIEND: i64 = 7;
    pub const CREATE_GROUP: i64 = 8;
    pub const JOIN_GROUP: i64 = 9;
    pub const GROUP_CHAT: i64 = 10;
    pub const ACK: i64 = 200;
    pub const ERROR: i64 = 201;
    pub const PING: i64 = 202;
    pub const PONG: i64 = 203;
    pub const LIST: i64 = 206;
}

/// The deepest nesting an object may have; past it a C++ peer's parser is at risk of its stack.
pub const MAX_NESTING: u32 = 32;
