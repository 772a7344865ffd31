//! Thread `lives`: a life of this node at its beginning, with its id and its store.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::config::{Config, StoreUrl};
use crate::store::mysql::{self, Lock, MySqlStore};
use crate::store::sqlite::SqliteStore;
use crate::store::{NodeId, Quotas, Store};

/// A life that has its store.
pub(super) struct Opened {
    pub node: NodeId,
    pub store: Arc<dyn Store>,
    /// The lock on the database, if other servers could reach it.
    pub lock: Option<Lock>,
}

impl Opened {
    /// Opens the store.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn new(config: &Config) -> Result<Opened> {
        let node = NodeId(getrandom::u64().context("cannot draw a number")? >> 1 | 1);
        let quotas = Quotas {
            offline: config.max_offline,
            friends: config.max_friends,
            groups: config.max_groups,
            members: config.max_group_size,
        };
        let (store, lock): (Arc<dyn Store>, _) = match &config.store {
            StoreUrl::Sqlite(path) => (Arc::new(SqliteStore::open(Path::new(path), node, quotas)?), None),
            StoreUrl::MySql(url) => {
                let (url, charset, mixed) = (url.reveal().to_owned(), config.mysql_charset.clone(), config.mixed);
                let single_node = config.redis.is_none();
                let store = MySqlStore::open(mysql::Options { url, node, charset, mixed, single_node, quotas })?;
                let lock = store.lock()?;
                (Arc::new(store), Some(lock))
            }
        };
        Ok(Opened { node, store, lock })
    }
}
