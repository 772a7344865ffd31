//! Rounds: what the writer is asked to do, which of it shares a transaction, and what becomes of a round
//! in which a write is refused.

use std::convert::Infallible;

use crossbeam_channel::{Receiver, Sender, bounded};
use rusqlite::{ErrorCode, Transaction};

use super::write::{Cx, apply, release_all};
use super::{closed, execute};
use crate::store::{Kept, Outcome, Parcel, StoreError, Write};

/// The most rows that share a commit, give or take a batch: the first of them waits for the last.
pub(super) const ROUND_ROWS: usize = 4096;

/// What the writer is asked to do.
pub(super) enum Work {
    Batch(Vec<Write>),
    ReleaseAll,
    /// Finish what was queued before this, and end.
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

    pub fn apply(&self, transaction: &Transaction, cx: &mut Cx) -> rusqlite::Result<Vec<Outcome>> {
        match self {
            Work::Batch(writes) => writes.iter().map(|write| apply(transaction, cx, write)).collect(),
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

/// The queue of the writer. It needs no bound: each connection waits for the answer to its job,
/// so there is at most one per connection.
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

/// Everything that is queued, up to [`ROUND_ROWS`], and the stop that follows it, if there is one.
pub(super) fn take_round(first: Job, queue: &Receiver<Job>) -> (Vec<Job>, Option<Job>) {
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

/// What became of a part of a round; an error is why the database refuses it.
pub(super) type Done = Result<Vec<Outcome>, String>;

/// What can be done without the rest of a round.
pub(super) struct Part {
    work: Work,
    /// A further message of a parcel: it is left out if the one before it was not stored.
    further: bool,
}

impl From<Work> for Part {
    fn from(work: Work) -> Part {
        Part { work, further: false }
    }
}

impl Work {
    /// The same, in as many pieces as can be done one without the other.
    pub fn parts(&self) -> Vec<Part> {
        match self {
            Work::Batch(writes) => writes
                .iter()
                .flat_map(|write| match write {
                    Write::Keep(parcels) => parcels.iter().flat_map(messages).collect(),
                    write => vec![Work::Batch(vec![write.clone()]).into()],
                })
                .collect(),
            Work::ReleaseAll => vec![Work::ReleaseAll.into()],
            Work::Stop => Vec::new(),
        }
    }

    /// The outcomes of this, from those of its parts, which are next in `results`.
    pub fn put_together(&self, results: &mut impl Iterator<Item = Done>) -> Vec<Outcome> {
        let mut next = move || match results.next() {
            Some(Ok(mut outcomes)) => outcomes.pop().unwrap_or(Outcome::Done),
            Some(Err(why)) => Outcome::Refused(why),
            None => Outcome::Refused(String::new()),
        };
        match self {
            Work::Batch(writes) => writes
                .iter()
                .map(|write| match write {
                    Write::Keep(parcels) => {
                        Outcome::Kept(parcels.iter().map(|parcel| kept(parcel, &mut next)).collect())
                    }
                    _ => next(),
                })
                .collect(),
            Work::ReleaseAll => vec![next()],
            Work::Stop => Vec::new(),
        }
    }
}

/// A parcel message by message.
fn messages(parcel: &Parcel) -> impl Iterator<Item = Part> {
    let parts = parcel.one_by_one().into_iter().enumerate();
    parts.map(|(index, one)| Part { work: Work::Batch(vec![Write::Keep(vec![one])]), further: index > 0 })
}

/// What became of a parcel, of which each message was a part.
fn kept(parcel: &Parcel, next: &mut impl FnMut() -> Outcome) -> Kept {
    let outcomes: Vec<Outcome> = (0..parcel.messages.len().max(1)).map(|_| next()).collect();
    let Ok(kept) = Kept::of_each::<Infallible>(outcomes.into_iter().map(|outcome| {
        if let Outcome::Refused(why) = &outcome {
            log::warn!("an offline message for user {} is refused: {why}", parcel.to);
        }
        Ok(outcome.of_one_parcel())
    }));
    kept
}

fn is_stored(done: &Done) -> bool {
    match done.as_deref() {
        Ok([Outcome::Kept(kept)]) => matches!(kept[..], [Kept::Stored(_) | Kept::Past(_)]),
        _ => false,
    }
}

/// Does the parts, each after a savepoint; `before`: what became of the one before them. `None`: nothing was
/// done, since one was refused in a way that ended the transaction, and there were others.
pub(super) fn apart(
    transaction: &Transaction,
    cx: &mut Cx,
    before: Option<&Done>,
    parts: &[Part],
) -> rusqlite::Result<Option<Vec<Done>>> {
    let mut done: Vec<Done> = Vec::with_capacity(parts.len());
    for part in parts {
        if part.further && !done.last().or(before).is_some_and(is_stored) {
            done.push(Ok(Vec::new()));
            continue;
        }
        execute(transaction, "SAVEPOINT part", [])?;
        match part.work.apply(transaction, cx) {
            Ok(outcomes) => {
                execute(transaction, "RELEASE part", [])?;
                done.push(Ok(outcomes));
            }
            Err(error) if !is_refusal(&error, transaction) => return Err(error),
            Err(_) if transaction.is_autocommit() && parts.len() > 1 => return Ok(None),
            Err(error) => {
                if !transaction.is_autocommit() {
                    execute(transaction, "ROLLBACK TO part", [])?;
                    execute(transaction, "RELEASE part", [])?;
                }
                done.push(Err(why_refused(&error)));
            }
        }
    }
    Ok(Some(done))
}

/// Whether an error is about what was to be written, and not about the disk or the file.
pub(super) fn is_refusal(error: &rusqlite::Error, connection: &rusqlite::Connection) -> bool {
    match error.sqlite_error_code() {
        Some(
            ErrorCode::PermissionDenied
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory
            | ErrorCode::ReadOnly
            | ErrorCode::OperationInterrupted
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::CannotOpen
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::NoLargeFileSupport
            | ErrorCode::NotADatabase,
        ) => false,
        // SQLite says so, too, where a table has had the last of all ids.
        Some(ErrorCode::DiskFull) => {
            let last = "SELECT 1 FROM sqlite_sequence WHERE seq = 9223372036854775807";
            connection.query_row(last, [], |_| Ok(())).is_ok()
        }
        _ => true,
    }
}

fn why_refused(error: &rusqlite::Error) -> String {
    match error {
        rusqlite::Error::IntegralValueOutOfRange(_, id) => format!("no ids are left, the next would be {id}"),
        error if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => "no ids are left".into(),
        error => error.to_string(),
    }
}
