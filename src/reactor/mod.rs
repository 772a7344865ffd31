//! Acceptor thread and N reactor threads, no chat.
//!
//! ```text
//!            ┌──────────┐ round robin  ┌────────────┐   letters    ┌────────────┐
//! listeners ─▶ acceptor ├──────┬──────▶│ reactor-0  │◀────────────▶│ reactor-1  │ …
//!            └──────────┘      └──────▶│ Poll, conns│              │            │
//!                                      └─────┬──────┘              └─────┬──────┘
//!                                            │ jobs           results ▲  │
//!                                            ▼                        │  ▼
//!                                      ┌───────────────────────────────────────┐
//!                                      │ worker pool: store, password hashing  │
//!                                      └───────────────────────────────────────┘
//! ```
//!
//! As in muduo, the acceptor owns the listening sockets and hands each accepted one to a sub-reactor
//! in turn; from then on everything about a connection happens in that reactor's thread, until its
//! handler has it moved to another one, whole and by letter. Other threads reach a reactor only
//! through its [`Mailbox`]: what muduo calls `runInLoop` is a letter here. Unlike in muduo, epoll is
//! edge-triggered (mio's choice), which is why a reactor remembers readiness that it has not used up.
//!
//! What the bytes mean is the business of a [`Handler`], one for each reactor. `examples/echo.rs` is the smallest one,
//! `examples/room.rs` has letters between reactors.
//!
//! | file | what | thread |
//! | --- | --- | --- |
//! | `handler.rs` | the contract with a handler | reactor |
//! | `io.rs` | what a handler may do | reactor |
//! | `event_loop.rs` | the turn: events, letters, input, timers, flushes, sweep | reactor |
//! | `reading.rs` | readiness, and how it is used up | reactor |
//! | `writing.rs` | one write a turn, and how a connection says goodbye | reactor |
//! | `pressure.rs`, `slow.rs` | clients that do not read: the decisions, and what carries them out | reactor |
//! | `connection.rs`, `outbox.rs`, `timers.rs` | one client; its queue; what happens later | reactor |
//! | `acceptor.rs`, `memory.rs` | new clients; memory that those who left have used | acceptor |
//! | `mailbox.rs` | letters, and what wakes a reactor | any |
//! | `slot.rs`, `address.rs`, `budget.rs` | limits over all reactors: connections, those of an address, bytes | any |
//! | `id.rs`, `types.rs`, `reason.rs`, `counts.rs` | names, types, reasons, metrics | any |

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
pub use id::{ConnId, ConnIds, ConnMap, ListenerId};
pub use io::Io;
pub use mailbox::{Mail, Mailbox, Moving, mailboxes};
pub use memory::{bound as bound_free_memory, give_back as give_back_memory};
pub use outbox::{Body, Message, Outbox, SendOptions, Unwritten, WriteResult};
pub use pressure::Limits;
pub use reason::{CloseReason, Mark, Reason};
pub use slot::ConnectionSlot;
pub use timers::Timers;
pub use types::{Recall, Types};
