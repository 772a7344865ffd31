//! A connection with counters.

use std::sync::Arc;
use std::time::Instant;

use super::{Account, Connection, Friend, Group, GroupId, Loaded, Outcome, Page, StoreError, UserId, Write};
use crate::metrics::{By, Counter, Histogram, cells, labels};

labels! {
    /// What a store is asked to do.
    pub enum StoreOp as "op" {
        Write = "write",
        Account = "account",
        Friends = "friends",
        Groups = "groups",
        Members = "members",
        Page = "page",
        Load = "load",
    }
}

cells! {
    /// Counted by each worker.
    pub struct StoreCounts {
        /// How long the store took; for writes, a whole transaction.
        times: By<StoreOp, Histogram, { StoreOp::COUNT }> = "chat_store_seconds",
        /// Times that the store was unavailable.
        failures: By<StoreOp, Counter, { StoreOp::COUNT }> = "chat_store_failures_total",
        /// Writes in all those transactions.
        writes: Counter = "chat_store_writes_total",
        /// Those of them that the database has refused, each alone.
        refusals: Counter = "chat_store_refusals_total",
    }
}

/// Any store's connection, with the time that it takes.
pub struct Timed {
    connection: Box<dyn Connection>,
    counts: Arc<StoreCounts>,
}

impl Timed {
    pub fn new(connection: Box<dyn Connection>, counts: Arc<StoreCounts>) -> Timed {
        Timed { connection, counts }
    }

    fn time<T>(
        &mut self,
        op: StoreOp,
        call: impl FnOnce(&mut dyn Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let result = call(&mut *self.connection);
        self.counts.times.of(op).observe(began.elapsed());
        if result.is_err() {
            self.counts.failures.of(op).add(1);
        }
        result
    }
}

impl Connection for Timed {
    fn write(&mut self, batch: &[Write]) -> Result<Vec<Outcome>, StoreError> {
        self.counts.writes.add(batch.len() as u64);
        let outcomes = self.time(StoreOp::Write, |connection| connection.write(batch))?;
        self.counts.refusals.add(outcomes.iter().map(Outcome::refusals).sum());
        Ok(outcomes)
    }

    fn write_again(&mut self, write: &Write, key: u64) -> Result<Outcome, StoreError> {
        self.time(StoreOp::Write, |connection| connection.write_again(write, key))
    }

    fn account(&mut self, user: UserId) -> Result<Option<Account>, StoreError> {
        self.time(StoreOp::Account, |connection| connection.account(user))
    }

    fn friends(&mut self, user: UserId) -> Result<Vec<Friend>, StoreError> {
        self.time(StoreOp::Friends, |connection| connection.friends(user))
    }

    fn groups(&mut self, user: UserId) -> Result<Vec<Group>, StoreError> {
        self.time(StoreOp::Groups, |connection| connection.groups(user))
    }

    fn members(&mut self, group: GroupId) -> Result<Option<Vec<UserId>>, StoreError> {
        self.time(StoreOp::Members, |connection| connection.members(group))
    }

    fn page(&mut self, user: UserId, max_bytes: usize) -> Result<Page, StoreError> {
        self.time(StoreOp::Page, |connection| connection.page(user, max_bytes))
    }

    fn load(&mut self, user: UserId, max_bytes: usize) -> Result<Loaded, StoreError> {
        self.time(StoreOp::Load, |connection| connection.load(user, max_bytes))
    }
}
