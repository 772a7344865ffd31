//! The one thread that writes: many batches share a transaction.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rusqlite::{Transaction, TransactionBehavior};

use super::file::{BUSY, EMPTIED, Shown, WRITER_CACHE, Watch, empty_log, open, remove_log, sidecar};
use super::shrink::{Shrinker, Step};
use super::write::{apply, release_all};
use super::{Shared, closed};
use crate::store::quota::Room;
use crate::store::{Outcome, Quotas, StoreError, Write};

/// The most rows that share a commit, give or take a batch: the first of them waits for the last.
pub(super) const ROUND_ROWS: usize = 4096;

/// Past this size of the write-ahead log the writer makes a point of emptying it. SQLite does so
/// by itself at half of it, but never while readers overlap without a gap.
pub(super) const WAL_LIMIT: u64 = 16 << 20;

/// As [`BUSY`], for readers to leave the log: it can be emptied later just as well.
pub(super) const CHECKPOINT_BUSY: Duration = Duration::from_millis(100);

/// The same at the end, when nothing else is left to be done.
const LAST_BUSY: Duration = Duration::from_millis(500);

/// How long nobody has to have come for the writer to look for space to give back.
const IDLE: Duration = Duration::from_millis(20);
/// Between two steps of that.
const BREATH: Duration = Duration::from_millis(1);
/// How often an idle writer looks whether the file is still there.
const LOOK: Duration = Duration::from_secs(1);
/// A log of this size is emptied when nothing was written for as long.
const IDLE_LOG: u64 = 1 << 20;

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
        answered.recv().unwrap_or_else(|_| Err(closed()))
    }
}

/// Why a round is not done.
enum Failure {
    /// What became of the file.
    Lost(String),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Store(error.into())
    }
}

/// The thread `store-writer`.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// `None` after a failure, until the next round opens another: what state SQLite leaves one
    /// in depends on what failed.
    connection: Option<rusqlite::Connection>,
    watch: Watch,
    shrinker: Shrinker,
    /// The size of the log at which it is next emptied.
    checkpoint_at: u64,
    /// When something was last written.
    last_round: Instant,
    /// Nothing was written since the log was last emptied for being idle.
    rested: bool,
    quotas: Quotas,
    room: Room,
    pub commits: Arc<AtomicU64>,
    #[cfg(test)]
    pub fault: Fault,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, connection: rusqlite::Connection, watch: Watch, quotas: Quotas) -> Writer {
        Writer {
            shared,
            connection: Some(connection),
            watch,
            shrinker: Shrinker::new(),
            checkpoint_at: WAL_LIMIT,
            last_round: Instant::now(),
            rested: false,
            quotas,
            room: Room::new(quotas.offline),
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

    /// Nobody waits. How long to wait for somebody before the next time.
    fn idle(&mut self) -> Duration {
        if self.shared.gone.get().is_some() {
            return LOOK;
        }
        if let Err(what) = self.watch.look(&self.shared.place) {
            self.leave(&what);
            return LOOK;
        }
        let Some(connection) = &self.connection else { return LOOK };
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
                    // Whoever asked may be gone; it is done all the same.
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
                    Failure::Store(error) => error,
                };
                self.connection = None;
                for job in round {
                    let _ = job.answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Does the round in one transaction; the outcomes are one list for each job.
    fn commit(&mut self, round: &[Job]) -> Result<Vec<Vec<Outcome>>, Failure> {
        let place = &self.shared.place;
        if let Some(gone) = self.shared.gone.get() {
            return Err(Failure::Store(gone.clone()));
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                self.watch.forget_beside();
                self.watch.look(place).map_err(Failure::Lost)?;
                none.insert(open(&place.path, WRITER_CACHE)?)
            }
        };
        #[cfg(test)]
        self.fault.strike(connection)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.watch.note_beside(place).map_err(Failure::Lost)?;
        let mut apply = |job: &Job| job.work.apply(&transaction, self.quotas, &mut self.room);
        let outcomes = round.iter().map(&mut apply).collect::<rusqlite::Result<_>>()?;
        // As late as can be: what is acked went into the file that was there.
        self.watch.look(place).map_err(Failure::Lost)?;
        transaction.commit()?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(outcomes)
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
        if let Err(what) = self.watch.look(place) {
            return Err(self.leave(&what));
        }
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => open(&place.path, WRITER_CACHE)?,
        };
        connection.busy_timeout(LAST_BUSY)?;
        remove_log(connection, place).map_err(|what| StoreError::Unavailable(format!("{}: {what}", Shown(&place.path))))
    }
}

/// Everything that is queued, up to [`ROUND_ROWS`], and the stop that stands behind it.
fn take_round(first: Job, queue: &Receiver<Job>) -> (Vec<Job>, Option<Job>) {
    let (mut round, mut rows, mut next) = (Vec::new(), 0, Some(first));
    while let Some(job) = next {
        if matches!(job.work, Work::Stop) {
            return (round, Some(job));
        }
        rows += job.work.rows();
        round.push(job);
        next = if rows >= ROUND_ROWS { None } else { queue.try_recv().ok() };
    }
    (round, None)
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
