//! The one thread that writes: many batches share a transaction.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::{Transaction, TransactionBehavior};

use super::file::{BUSY, EXISTING, WRITER_CACHE, open, sidecar};
use super::write::{apply, release_all};
use crate::store::quota::Room;
use crate::store::{Outcome, Quotas, StoreError, Write};

/// The most rows that share a commit, give or take a batch: the first of them waits for the last.
pub(super) const ROUND_ROWS: usize = 4096;

/// Past this size of the write-ahead log the writer makes a point of emptying it. SQLite does so
/// by itself at half of it, but never while readers overlap without a gap.
pub(super) const WAL_LIMIT: u64 = 16 << 20;

/// As [`BUSY`], for readers to leave the log: it can be emptied later just as well.
pub(super) const CHECKPOINT_BUSY: Duration = Duration::from_millis(100);

/// What the writer is asked for.
pub(super) enum Work {
    Batch(Vec<Write>),
    ReleaseAll,
    /// Do what stands before this, and end.
    Stop,
}

impl Work {
    /// About how many rows it writes.
    fn rows(&self) -> usize {
        let rows = |write: &Write| match write {
            Write::Keep(parcels) => parcels.iter().map(|parcel| parcel.messages.len()).sum(),
            Write::Remove { rows, .. } => rows.len(),
            _ => 1,
        };
        match self {
            Work::Batch(writes) => writes.iter().map(rows).sum(),
            Work::ReleaseAll | Work::Stop => 1,
        }
    }

    fn apply(&self, transaction: &Transaction, quotas: Quotas, room: &mut Room) -> rusqlite::Result<Vec<Outcome>> {
        match self {
            Work::Batch(writes) => writes.iter().map(|write| apply(transaction, quotas, room, write)).collect(),
            Work::ReleaseAll => release_all(transaction).map(|()| Vec::new()),
            Work::Stop => Ok(Vec::new()),
        }
    }
}

pub(super) type Answer = Result<Vec<Outcome>, StoreError>;

pub(super) struct Job {
    pub work: Work,
    pub answer: Sender<Answer>,
}

/// The way to the writer. Its length needs no bound: whoever queues a job waits for the answer,
/// so there is one per connection at most.
#[derive(Clone)]
pub(super) struct Queue(pub Sender<Job>);

impl Queue {
    /// Has the writer do it, and waits. A channel for each job, so that there is no waiting for a
    /// writer that is gone: the job is dropped with the queue, and the answer's sender with it.
    pub fn submit(&self, work: Work) -> Answer {
        let (answer, answered) = bounded(1);
        let _ = self.0.send(Job { work, answer });
        answered.recv().unwrap_or_else(|_| Err(StoreError::Unavailable("the store is closed".into())))
    }
}

/// The thread `store-writer`.
pub(super) struct Writer {
    pub path: Arc<Path>,
    /// `None` after a failure, until the next round opens another: what state SQLite leaves one
    /// in depends on what failed.
    pub connection: Option<rusqlite::Connection>,
    /// The size of the log at which it is next emptied.
    pub checkpoint_at: u64,
    pub quotas: Quotas,
    pub room: Room,
    pub commits: Arc<AtomicU64>,
    #[cfg(test)]
    pub fault: Fault,
}

impl Writer {
    pub fn run(mut self, queue: Receiver<Job>) {
        while let Ok(first) = queue.recv() {
            let round = take_round(first, &queue);
            match self.commit(&round) {
                Ok(outcomes) => {
                    for (job, outcomes) in round.iter().zip(outcomes) {
                        // Whoever asked may be gone; it is done all the same.
                        let _ = job.answer.send(Ok(outcomes));
                    }
                    self.bound_log();
                }
                Err(error) => {
                    self.connection = None;
                    let error = StoreError::from(error);
                    for job in &round {
                        let _ = job.answer.send(Err(error.clone()));
                    }
                }
            }
            if round.iter().any(|job| matches!(job.work, Work::Stop)) {
                return;
            }
        }
    }

    /// Does the round in one transaction; the outcomes are one list for each job.
    fn commit(&mut self, round: &[Job]) -> rusqlite::Result<Vec<Vec<Outcome>>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(open(&self.path, EXISTING, WRITER_CACHE)?),
        };
        #[cfg(test)]
        self.fault.strike(connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut apply = |job: &Job| job.work.apply(&transaction, self.quotas, &mut self.room);
        let outcomes = round.iter().map(&mut apply).collect::<rusqlite::Result<_>>()?;
        transaction.commit()?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(outcomes)
    }

    /// Empties the log where it has grown past its limit. Failing is no matter: it is tried again
    /// once the log has grown by as much, and not at every commit, for it may have to wait.
    fn bound_log(&mut self) {
        let size = || fs::metadata(sidecar(&self.path, "-wal")).map_or(0, |log| log.len());
        if let Some(connection) = &self.connection
            && size() >= self.checkpoint_at
        {
            let _ = connection.busy_timeout(CHECKPOINT_BUSY);
            let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
            let _ = connection.busy_timeout(BUSY);
            self.checkpoint_at = size() + WAL_LIMIT;
        }
    }
}

/// Everything that is queued, up to [`ROUND_ROWS`]; nothing that stands behind a stop.
pub(super) fn take_round(first: Job, queue: &Receiver<Job>) -> Vec<Job> {
    let (mut round, mut rows, mut next) = (Vec::new(), 0, Some(first));
    while let Some(job) = next {
        rows += job.work.rows();
        let last = rows >= ROUND_ROWS || matches!(job.work, Work::Stop);
        round.push(job);
        next = if last { None } else { queue.try_recv().ok() };
    }
    round
}

/// What ails the disk: SQL that the writer runs before each round.
#[cfg(test)]
#[derive(Clone, Default)]
pub(super) struct Fault(pub Arc<std::sync::Mutex<&'static str>>);

#[cfg(test)]
impl Fault {
    pub fn set(&self, sql: &'static str) {
        *self.0.lock().unwrap() = sql;
    }

    fn strike(&self, connection: &rusqlite::Connection) -> rusqlite::Result<()> {
        connection.execute_batch(&self.0.lock().unwrap())
    }
}
