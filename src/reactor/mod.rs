//! The reactor: one acceptor, N sub-reactors, no chat.
//!
//! ```text
//!            ┌──────────┐ round robin  ┌────────────┐   letters    ┌────────────┐
//!  listener ─▶ acceptor ├──────┬──────▶│ reactor-0  │◀────────────▶│ reactor-1  │ …
//!            └──────────┘      └──────▶│ Poll, conns│              │            │
//!                                      └─────┬──────┘              └─────┬──────┘
//!                                            │ jobs           results ▲  │
//!                                            ▼                        │  ▼
//!                                      ┌───────────────────────────────────────┐
//!                                      │ worker pool: store, password hashing  │
//!                                      └───────────────────────────────────────┘
//! ```
//!
//! As in muduo, the acceptor owns the listening socket and hands each accepted one to a sub-reactor
//! in turn; from then on everything about a connection happens in that reactor's thread, until its
//! handler has it moved to another one, whole and by letter. Other threads reach a reactor only
//! through its [`Mailbox`]: what muduo calls `runInLoop` is a letter here. Unlike muduo, epoll is edge-triggered (mio's choice), which is why a reactor remembers
//! readiness that it has not used up.
//!
//! What the bytes mean is the business of a [`Handler`], one for each reactor.

mod acceptor;
mod address;
mod budget;
mod connection;
mod counts;
mod event_loop;
mod handler;
mod id;
mod io;
mod mailbox;
mod memory;
mod outbox;
mod pressure;
mod reading;
mod reason;
mod slot;
mod slow;
mod timers;
mod types;
mod writing;

pub use acceptor::{Acceptor, AcceptorHandle, Admission, listen, listen_everywhere};
pub use address::{AddressSlot, Addresses, Origin, canonical};
pub use budget::Budget;
pub use connection::HangUp;
pub use counts::{AcceptorCounts, ReactorCounts, Slowness};
pub use event_loop::EventLoop;
pub use handler::{Handler, Taken};
pub use id::{ConnId, ConnIds, ConnMap};
pub use io::Io;
pub use mailbox::{Mail, Mailbox, Moving, mailboxes};
pub use outbox::{Body, Manner, Message, Outbox, Progress, Unwritten};
pub use pressure::Limits;
pub use reason::{CloseReason, Mark, Reason};
pub use slot::ConnectionSlot;
pub use timers::Timers;
pub use types::{Recall, Types};
