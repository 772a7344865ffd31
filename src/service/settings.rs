//! What an operator can set, and the time of an input.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::hashing::HashQueue;
use super::throttle::Throttle;
use crate::home::Homes;
use crate::reactor::{Addresses, Origin};
use crate::store::{NodeId, UserId};
use crate::wire::dialect::DialectChoice;

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
    /// Clients that end their objects with NUL and never use `seq` are C++ ones, whatever they do, and get no large
    /// login reply.
    pub legacy_client: bool,
    /// Log what each connection sent and got.
    pub trace_wire: bool,
    /// There are no other nodes.
    pub single_node: bool,
    /// C++ nodes are part of the cluster and change groups, too: members are read for every message.
    pub mixed: bool,
    /// Networks whose connections begin with a PROXY header, while all others are refused; none:
    /// there is no proxy.
    pub proxies: Arc<[IpNet]>,
    /// What is spoken at each listener; at those that are not named here, it is found out.
    pub listeners: Arc<[DialectChoice]>,
    /// What browsers get; `None`: an HTTP request is no message.
    pub browsers: Option<Arc<Browsers>>,
    pub limits: Limits,
    /// Where passwords wait to be hashed, on the whole node.
    pub hashes: Arc<HashQueue>,
}

impl Settings {
    /// The largest object of a client, in bytes.
    pub(super) fn max_message_of(&self, is_logged_in: bool) -> usize {
        if is_logged_in { self.max_message } else { self.max_message_before_login }
    }
}

/// What browsers get.
#[derive(Debug)]
pub struct Browsers {
    /// The reply to a request for the page, whole.
    pub page: Arc<[u8]>,
    /// The other hosts whose pages may open a WebSocket, as browsers name them; `*`: all.
    pub origins: Vec<String>,
}

/// The limits that the service holds clients to; by default none.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// The connections of each address, where a proxy names it; all shards share one count.
    pub addresses: Option<Arc<Addresses>>,
    /// Failed logins of one account from one address. So a stranger can lock out no other address.
    pub failed_logins: Option<Arc<Throttle<(UserId, Origin)>>>,
    /// Attempts to register from one address.
    pub registrations: Option<Arc<Throttle<Origin>>>,
    /// Messages of one connection, a second.
    pub message_rate: Option<NonZeroU32>,
    /// Bytes of messages of one connection, a second.
    pub byte_rate: Option<NonZeroU32>,
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
            trace_wire: false,
            single_node: true,
            mixed: false,
            proxies: Arc::default(),
            listeners: Arc::default(),
            browsers: None,
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
