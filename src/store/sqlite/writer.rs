//! The one thread that writes: many batches share a transaction.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use rusqlite::{Transaction, TransactionBehavior};

use super::file::{BUSY, EMPTIED, Shown, WRITER_CACHE, empty_log, open, remove_log, sidecar};
use super::round::{Done, Job, Part, apart, is_refusal, take_round};
use super::shrink::{Shrinker, Step};
use super::write::Cx;
use super::{Shared, closed};
use crate::store::{NodeId, Outcome, Quotas, StoreError};

/// Past this size of the write-ahead log the writer makes a point of emptying it. SQLite does so
/// by itself at half of it, but never while readers overlap without a gap.
pub(super) const WAL_LIMIT: u64 = 16 << 20;

/// As [`BUSY`], for readers to leave the log: it can be emptied later just as well.
pub(super) const CHECKPOINT_BUSY: Duration = Duration::from_millis(100);

/// The same at the end, when nothing else is left to be done.
const LAST_BUSY: Duration = Duration::from_millis(500);

/// How long no job must have come before the writer looks for space to return.
const IDLE: Duration = Duration::from_millis(20);
/// The pause between two steps of that.
const BREATH: Duration = Duration::from_millis(1);
/// How often an idle writer looks whether the file is still there.
const LOOK: Duration = Duration::from_secs(1);
/// A log of this size is emptied when nothing was written for as long.
const IDLE_LOG: u64 = 1 << 20;

/// Why a round is not done.
enum Failure {
    /// What became of the file.
    Lost(String),
    /// One of its writes cannot be done, whatever the state of the disk.
    Refused(rusqlite::Error),
    Store(StoreError),
}

impl Failure {
    /// The failure of a statement.
    fn of(error: rusqlite::Error, transaction: &Transaction) -> Failure {
        if is_refusal(&error, transaction) { Failure::Refused(error) } else { error.into() }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Store(error.into())
    }
}

/// The thread `store-writer`.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// `None` once the file is left.
    connection: Option<rusqlite::Connection>,
    /// A round has failed. What state SQLite leaves a connection in depends on what failed, so the next
    /// round opens another; until then this one keeps SQLite's files where they are.
    failed: bool,
    shrinker: Shrinker,
    /// The size of the log at which it is next emptied.
    checkpoint_at: u64,
    /// When something was last written.
    last_round: Instant,
    /// Nothing was written since the log was last emptied for being idle.
    rested: bool,
    cx: Cx,
    pub commits: Arc<AtomicU64>,
    #[cfg(test)]
    pub fault: Fault,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, connection: rusqlite::Connection, node: NodeId, quotas: Quotas) -> Writer {
        Writer {
            shared,
            connection: Some(connection),
            failed: false,
            shrinker: Shrinker::new(),
            checkpoint_at: WAL_LIMIT,
            last_round: Instant::now(),
            rested: false,
            cx: Cx::new(node, quotas),
            commits: Arc::default(),
            #[cfg(test)]
            fault: Fault::default(),
        }
    }

    pub fn run(mut self, queue: Receiver<Job>) {
        while let Some(first) = self.next_job(&queue) {
            let (round, stop) = take_round(first, &queue);
            if !round.is_empty() {
                self.serve(&round);
            }
            if let Some(stop) = stop {
                let _ = stop.answer.send(self.end().map(|()| Vec::new()));
                return;
            }
        }
    }

    /// Waits for a job, and does meanwhile what can wait.
    fn next_job(&mut self, queue: &Receiver<Job>) -> Option<Job> {
        let mut pause = IDLE;
        loop {
            match queue.recv_timeout(pause) {
                Ok(job) => return Some(job),
                Err(RecvTimeoutError::Timeout) => pause = self.idle(),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    /// Does what can wait, while there is no job. Returns how long to wait for a job before the next time.
    fn idle(&mut self) -> Duration {
        if self.shared.gone.get().is_some() {
            return LOOK;
        }
        if let Err(what) = self.shared.look() {
            self.leave(&what);
            return LOOK;
        }
        let Some(connection) = self.connection.as_ref().filter(|_| !self.failed) else { return LOOK };
        match self.shrinker.step(connection) {
            Step::More => return BREATH,
            // The file is cut off when the log is in it. Readers are not waited for.
            Step::Last => _ = connection.execute_batch("PRAGMA wal_checkpoint(PASSIVE)"),
            Step::Nothing => {}
        }
        if !self.rested && self.last_round.elapsed() >= LOOK {
            self.rested = true;
            if self.log_size() >= IDLE_LOG {
                self.empty_log();
            }
        }
        LOOK
    }

    fn serve(&mut self, round: &[Job]) {
        match self.commit(round) {
            Ok(outcomes) => {
                for (job, outcomes) in round.iter().zip(outcomes) {
                    // If the receiver is gone, the job is done all the same.
                    let _ = job.answer.send(Ok(outcomes));
                }
                self.last_round = Instant::now();
                self.rested = false;
                self.shrinker.wake();
                if self.log_size() >= self.checkpoint_at {
                    self.empty_log();
                }
                if self.shrinker.is_overdue(self.last_round)
                    && let Some(connection) = &self.connection
                {
                    self.shrinker.step(connection);
                }
            }
            Err(failure) => {
                let error = match failure {
                    Failure::Lost(what) => self.leave(&what),
                    Failure::Refused(error) => error.into(),
                    Failure::Store(error) => error,
                };
                self.failed = true;
                for job in round {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Does the round; the outcomes are one list for each job. It is one transaction, unless a write in
    /// it is refused: then each is done for itself.
    fn commit(&mut self, round: &[Job]) -> Result<Vec<Vec<Outcome>>, Failure> {
        if let Some(gone) = self.shared.gone.get() {
            return Err(Failure::Store(gone.clone()));
        }
        let together =
            |transaction: &Transaction, cx: &mut Cx| round.iter().map(|job| job.work.apply(transaction, cx)).collect();
        match self.transact(together) {
            Err(Failure::Refused(error)) => {
                log::debug!("{} jobs are done write by write: {error}", round.len());
                self.one_by_one(round)
            }
            other => other,
        }
    }

    fn transact<T>(&mut self, work: impl FnOnce(&Transaction, &mut Cx) -> rusqlite::Result<T>) -> Result<T, Failure> {
        if self.failed {
            self.shared.look().map_err(Failure::Lost)?;
            self.connection = Some(open(&self.shared.place.path, WRITER_CACHE)?);
            self.failed = false;
        }
        let Some(connection) = &mut self.connection else { return Err(Failure::Store(closed())) };
        #[cfg(test)]
        self.fault.strike(connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction, &mut self.cx);
        let done = done.map_err(|error| {
            self.cx.room.forget_all();
            Failure::of(error, &transaction)
        })?;
        // Where SQLite has ended the transaction by itself, nothing was done.
        if !transaction.is_autocommit() {
            // As late as can be: what is acked went into the file that was there.
            self.shared.look().map_err(Failure::Lost)?;
            transaction.commit()?;
            self.commits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(done)
    }

    /// Does every write of the round, and every message of those that have some, after a savepoint of
    /// its own, and leaves out those that the database refuses. They still share a transaction, but
    /// for a refusal that ends that.
    fn one_by_one(&mut self, round: &[Job]) -> Result<Vec<Vec<Outcome>>, Failure> {
        let parts: Vec<Part> = round.iter().flat_map(|job| job.work.parts()).collect();
        let mut results: Vec<Done> = Vec::with_capacity(parts.len());
        let mut most = parts.len();
        while results.len() < parts.len() {
            let next = &parts[results.len()..];
            let next = &next[..most.min(next.len())];
            match self.transact(|transaction, cx| apart(transaction, cx, results.last(), next))? {
                Some(done) => results.extend(done),
                None => most = 1,
            }
        }
        let mut results = results.into_iter();
        Ok(round.iter().map(|job| job.work.put_together(&mut results)).collect())
    }

    fn log_size(&self) -> u64 {
        fs::metadata(sidecar(&self.shared.place.path, "-wal")).map_or(0, |log| log.len())
    }

    /// Empties the log. Failing is no matter: it is tried again once the log has grown by as much,
    /// and not at every commit, for it may have to wait.
    fn empty_log(&mut self) {
        if let Some(connection) = &self.connection {
            let _ = connection.busy_timeout(CHECKPOINT_BUSY);
            let _ = empty_log(connection);
            let _ = connection.busy_timeout(BUSY);
            self.checkpoint_at = self.log_size() + WAL_LIMIT;
        }
    }

    /// Leaves a file that is not where it was. What was acked goes from the log into it first,
    /// wherever it is now: so it lacks nothing, and the log is not taken for that of another file.
    fn leave(&mut self, what: &str) -> StoreError {
        // If the file was emptied, the log is all that is left.
        if let Some(connection) = self.connection.take()
            && what != EMPTIED
        {
            let emptied = connection.busy_timeout(LAST_BUSY).and_then(|()| empty_log(&connection));
            if !matches!(emptied, Ok(true)) {
                let path = &self.shared.place.path;
                log::error!("{}: the last writes are in {} alone", Shown(path), Shown(&sidecar(path, "-wal")));
            }
        }
        self.shared.lose(what)
    }

    /// Closes the file.
    fn end(mut self) -> Result<(), StoreError> {
        let place = &self.shared.place;
        if let Some(gone) = self.shared.gone.get() {
            return Err(gone.clone());
        }
        if let Err(what) = self.shared.look() {
            return Err(self.leave(&what));
        }
        if self.failed {
            self.connection = Some(open(&place.path, WRITER_CACHE)?);
        }
        let Some(connection) = self.connection.take() else { return Err(closed()) };
        connection.busy_timeout(LAST_BUSY)?;
        remove_log(connection, place).map_err(|what| StoreError::Unavailable(format!("{}: {what}", Shown(&place.path))))
    }
}

/// A simulated fault of the disk: SQL that the writer runs before each round.
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
