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
//! Each file uses only those above it, but for the lists of what a shard does, which are all `impl Shard`:
//!
//! | file | what |
//! | --- | --- |
//! | `receipts.rs` | names of sessions and of replies; messages that wait, and where their outcome is reported |
//! | `route.rs` | the route to a user who is not on this node: a pure state machine |
//! | `backlog.rs` | what a slow reader's session, or one that begins or ends, keeps: a pure state machine |
//! | `hashing.rs`, `memo.rs`, `throttle.rs` | the queue of password hashes; passwords that need none; rates an hour |
//! | `jobs.rs` | what blocks, for the workers |
//! | `groups.rs` | groups at their homes, and the sums of group messages |
//! | `users.rs` | all that is known of a user |
//! | `letters.rs`, `effects.rs` | what shards say to each other; what they want done |
//! | `reason.rs`, `counts.rs` | why they close connections; what they count |
//! | `shard.rs` | a shard: its state, its inputs, the table of requests |
//! | `client.rs`, `attempts.rs`, `limits.rs` | one connection; logins and registrations on their way; what clients may not exceed |
//! | `requests/` | a file for each thing that a client can ask for |
//! | `sessions.rs` | how a session begins, falls behind, and ends |
//! | `delivery.rs` | where a message goes, and what became of it |
//! | `cluster.rs` | what other nodes and the bus report |

mod attempts;
mod backlog;
mod client;
mod cluster;
mod counts;
mod delivery;
mod effects;
mod groups;
mod hashing;
mod jobs;
mod letters;
mod limits;
mod memo;
mod reason;
mod receipts;
mod requests;
mod route;
mod sessions;
mod shard;
mod throttle;
mod users;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

pub use client::Moved;
pub use counts::{Asks, Limit, MessageKind, PasswordWork, Path, ShardCounts};
pub use effects::{Effect, Effects, Payload};
pub use groups::GroupMessage;
pub use hashing::{HashQueue, Place};
pub use jobs::{Answer, Done, Job, JobRunner, Lane, Op, Then};
pub use letters::{Letter, Tag, Timer};
pub use limits::{Limits, address_is_full};
pub use memo::Memo;
pub use reason::Reason;
pub use receipts::{Receipt, ReplyTo, SessionId};
pub use shard::Shard;
pub use throttle::Throttle;

use crate::home::Homes;
use crate::store::{GroupId, NodeId, UserId};
use crate::wire::{Errno, Refusal};

/// What an operator can set, and who this node is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node, by the name that it has in the store.
    pub node: NodeId,
    /// Which shard each user and each group belongs to, and so how many there are.
    pub homes: Homes,
    /// The largest object of a client that has not logged in, in bytes.
    pub max_message_before_login: usize,
    /// The largest object of one that has, in bytes.
    pub max_message: usize,
    /// How long a connection may stay without a login; `None`: for ever.
    pub login_timeout: Option<Duration>,
    /// How long a connection may stay silent; `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// The soft mark of a connection's queue, in bytes. Half as much is held for a slow reader.
    pub high_water: usize,
    /// The number of routes to users who are not on this node at which a shard forgets those that nothing uses.
    pub routes: usize,
    /// How many lanes the pool has.
    pub lanes: usize,
    /// Treat clients that end their objects with NUL and never use `seq` as the C++ client needs.
    pub legacy_client: bool,
    /// There are no other nodes.
    pub alone: bool,
    /// C++ nodes are part of the cluster and change groups, too: members are read for every message.
    pub mixed: bool,
    /// Networks whose connections begin with a PROXY header, while all others are refused; none:
    /// there is no proxy.
    pub proxies: Arc<[IpNet]>,
    pub limits: Limits,
    /// Where passwords wait to be hashed, on the whole node.
    pub hashes: Arc<HashQueue>,
}

/// A node that is alone, of one shard, with the bounds that the flags have by default.
impl Default for Settings {
    fn default() -> Self {
        Settings {
            node: NodeId(1),
            homes: Homes::new(0, 1),
            max_message_before_login: 8 * 1024,
            max_message: 64 * 1024,
            login_timeout: None,
            idle_timeout: None,
            high_water: 1 << 20,
            routes: 64 * 1024,
            lanes: 1,
            legacy_client: false,
            alone: true,
            mixed: false,
            proxies: Arc::default(),
            limits: Limits::default(),
            hashes: HashQueue::new(1),
        }
    }
}

/// The time of an input.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub at: Instant,
    /// Seconds since 1970, UTC.
    pub unix: i64,
}

/// A user's id, if the number can be one.
fn user_id(id: i64) -> Option<UserId> {
    i32::try_from(id).ok().filter(|id| *id > 0).map(|id| id as UserId)
}

/// A group's id, if the number can be one.
fn group_id(id: i64) -> Option<GroupId> {
    user_id(id)
}

/// What is refused where the store gave an answer that its question does not have, or none.
fn store_failure<T>(_: T) -> Refusal {
    Errno::StoreUnavailable.into()
}
