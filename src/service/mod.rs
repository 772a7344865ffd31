//! The chat: what the messages mean, and the promises about them.
//!
//! The service does no I/O and reads no clock. It is cut into shards, one for each reactor; a
//! [`Shard`] takes an input and the time and fills a list of [`Effects`], which the caller carries out: the server
//! with sockets and threads, a test with a loop. Shards share nothing. They write each other [`Letter`]s, and
//! everything about order rests on those arriving in the order in which they were sent.
//!
//! **A user belongs to a shard**, the user's *home*, which the id alone decides ([`crate::home`]). At login the
//! connection moves there. All that the node knows of the user stands in one `User` there, and there is no
//! copy; what others have for the user they send there. A group belongs to a shard in the same way.
//!
//! **The node that holds a user's claim decides** in which order messages reach the user. It delivers, or stores,
//! and says which. Other nodes send to it, and store only what it can no longer take.
//!
//! One message, step by step: `requests::chat` reads it, at its sender's home, and posts it to the recipient's
//! (`delivery`). There the user is here and live: it goes to the connection, and `Shard::written` settles it;
//! or reads slowly, or is leaving: it goes to the session's [backlog](backlog); or is not on this node: it goes to
//! the user's [route](route), and from there to another node or to the store.
//!
//! Each file imports only files above it, and `tests/house.rs` checks it. What a shard does is spread over the files
//! below `shard.rs`, which are all `impl Shard`:
//!
//! | file | what |
//! | --- | --- |
//! | `receipts.rs` | names of sessions and of replies; messages, and where their outcome is reported |
//! | `late.rs` | what comes for the parcels of a job while that waits for a worker |
//! | `route.rs` | the route to a user who is not on this node: a pure state machine |
//! | `backlog.rs` | what a slow reader's session, or one that begins or ends, keeps: a pure state machine |
//! | `hashing.rs`, `memo.rs`, `throttle.rs` | the queue of password hashes; passwords that need none; rates an hour |
//! | `jobs.rs` | what blocks, for the workers |
//! | `users.rs` | all that is known of a user |
//! | `reason.rs`, `cpp.rs`, `client.rs` | why connections are closed; what is noted of clients that may be C++ ones; one connection, with its login and what is counted for it |
//! | `letters.rs`, `effects.rs` | what shards say to each other; what they want done |
//! | `members.rs`, `sums.rs` | groups at their homes; what has become of group messages |
//! | `questions.rs` | what other nodes and the bus were asked, and what they have asked |
//! | `settings.rs`, `counts.rs`, `call.rs` | what an operator can set; what a shard counts; a request on its way to its handler |
//! | `shard.rs` | a shard: its state, and its inputs |
//! | `connections.rs`, `attempts.rs`, `limits.rs` | input that waits, PROXY headers and silence; logins and registrations on their way; what clients may not exceed |
//! | `web.rs` | browsers: their HTTP requests, and the frames of their WebSockets |
//! | `dialects.rs` | what clients speak: their requests in canon, and what they are told in their dialect |
//! | `groups.rs` | how group messages and joins go by the group's home |
//! | `requests/` | a file for each thing that a client can ask for, and the table of them |
//! | `sessions.rs` | how a session begins, falls behind, and ends |
//! | `delivery.rs` | where a message goes, and what became of it |
//! | `cluster.rs` | what other nodes and the bus report |

mod attempts;
mod backlog;
mod call;
mod client;
mod cluster;
mod connections;
mod counts;
mod cpp;
mod delivery;
mod dialects;
mod effects;
mod groups;
mod hashing;
mod jobs;
mod late;
mod letters;
mod limits;
mod members;
mod memo;
mod questions;
mod reason;
mod receipts;
mod requests;
mod route;
mod sessions;
mod settings;
mod shard;
mod sums;
mod throttle;
mod users;
mod web;

pub use client::Moved;
pub use counts::{Asks, Limit, MessageKind, PasswordWork, Path, ShardCounts};
pub use effects::{Effect, Effects, Payload};
pub use hashing::{HashQueue, Place};
pub use jobs::{Answer, Done, Job, JobRunner, Lane, Op, Then};
pub use letters::{GroupMessage, Letter, Tag, Timer};
pub use limits::address_is_full;
pub use memo::Memo;
pub use reason::Reason;
pub use receipts::{Receipt, ReplyTo, SessionId};
pub use settings::{Browsers, Limits, Now, Settings};
pub use shard::Shard;
pub use throttle::Throttle;
