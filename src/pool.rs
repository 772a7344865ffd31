//! The worker pool: everything that blocks.
//!
//! A job either belongs to a lane or to none. A lane's jobs run in the order in which they were
//! submitted, one worker at a time, and a worker takes all that its lane has queued: that keeps
//! one recipient's messages in order and lets a store commit them together. Jobs of no lane
//! (password hashing) run on any worker, but never on all of them, since they take long. What has
//! become of such a job while it waited is looked at when its turn has come ([`Standing`]).

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::metrics::{By, Counter, Histogram, cells, labels};

/// What has become of a job of no lane while it waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is done in its turn.
    Due,
    /// It is done when no other one waits.
    Last,
    /// Its answer is not wanted any more. It is handed to the worker all the same, beside the next one, since
    /// the answer may be counted on.
    Abandoned,
}

/// What one worker does with jobs. It lives in the worker's thread.
pub trait Worker: Send + 'static {
    type Job: Send + 'static;

    /// Does `batch`, in order, and empties it. May block.
    fn run(&mut self, batch: &mut Vec<Self::Job>);

    /// Asked of a job of no lane whose turn has come. Called under the pool's lock: must not block.
    fn standing(_job: &Self::Job) -> Standing {
        Standing::Due
    }
}

labels! {
    /// Where a job waits for a worker.
    pub enum Queue as "queue" {
        Lane = "lane",
        Free = "free",
    }
}

cells! {
    /// Counted by each worker.
    pub struct WorkerCounts {
        /// How long jobs waited for a worker: of a lane's, which are done together, the first; and each job of no lane.
        waits: By<Queue, Histogram, { Queue::COUNT }> = "chat_job_wait_seconds",
        /// Jobs done.
        jobs: By<Queue, Counter, { Queue::COUNT }> = "chat_jobs_total",
    }
}

struct Lane<J> {
    queue: Vec<J>,
    /// Since when there is a job in `queue`.
    since: Instant,
    /// A worker has it, or it stands in `ready`.
    scheduled: bool,
}

struct Queues<J> {
    lanes: Vec<Lane<J>>,
    /// Lanes with jobs that no worker has.
    ready: VecDeque<usize>,
    /// Jobs of no lane, each with the moment since when it waits.
    free: VecDeque<(Instant, J)>,
    /// Those of them that others go before.
    last: VecDeque<(Instant, J)>,
    /// Workers that run a job of no lane.
    free_running: usize,
    closed: bool,
}

struct Shared<J> {
    state: Mutex<Queues<J>>,
    work: Condvar,
    /// The number of jobs of no lane that may run at once.
    max_free: usize,
}

impl<J> Shared<J> {
    fn state(&self) -> MutexGuard<'_, Queues<J>> {
        // Jobs run outside the lock; nothing inside it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Submits jobs; cheap to clone, and never blocks on a job.
pub struct Submitter<J>(Arc<Shared<J>>);

impl<J> Clone for Submitter<J> {
    fn clone(&self) -> Self {
        Submitter(Arc::clone(&self.0))
    }
}

impl<J> Submitter<J> {
    /// Queues a job behind all others of its lane; a number past the last lane begins at the first
    /// again.
    pub fn in_lane(&self, number: usize, job: J) {
        let mut state = self.0.state();
        let index = number % state.lanes.len();
        let lane = &mut state.lanes[index];
        if lane.queue.is_empty() {
            lane.since = Instant::now();
        }
        lane.queue.push(job);
        if !lane.scheduled {
            lane.scheduled = true;
            state.ready.push_back(index);
            drop(state);
            self.0.work.notify_one();
        }
    }

    /// Queues a job that needs no order.
    pub fn anywhere(&self, job: J) {
        self.0.state().free.push_back((Instant::now(), job));
        self.0.work.notify_one();
    }

    /// How many jobs wait, by where.
    pub fn waiting(&self) -> [(Queue, usize); Queue::COUNT] {
        let state = self.0.state();
        let free = state.free.len() + state.last.len();
        [(Queue::Lane, state.lanes.iter().map(|lane| lane.queue.len()).sum()), (Queue::Free, free)]
    }
}

/// The worker threads. Dropped, it drops what waits, and does not wait: a job that hangs is left behind.
pub struct Pool<J> {
    shared: Arc<Shared<J>>,
    threads: Vec<JoinHandle<()>>,
    counts: Vec<Arc<WorkerCounts>>,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts a thread for each of `workers`, for `lanes` lanes (at least one of both). A few more
    /// lanes than workers let jobs pile up while the workers are busy, so that a commit takes
    /// several. Jobs of no lane use at most `max_free` workers, and leave one for the lanes if
    /// there are several.
    ///
    /// # Errors
    /// The operating system starts no more threads.
    pub fn start<W: Worker<Job = J>>(workers: Vec<W>, lanes: usize, max_free: usize) -> io::Result<Self> {
        Pool::start_named("worker", workers, lanes, max_free)
    }

    /// The same, with threads of another name, of at most 13 bytes.
    ///
    /// # Errors
    /// The operating system starts no more threads.
    pub fn start_named<W: Worker<Job = J>>(
        name: &str,
        workers: Vec<W>,
        lanes: usize,
        max_free: usize,
    ) -> io::Result<Self> {
        let count = workers.len();
        let counts: Vec<Arc<WorkerCounts>> = workers.iter().map(|_| Arc::default()).collect();
        let since = Instant::now();
        let lanes = (0..lanes).map(|_| Lane { queue: Vec::new(), since, scheduled: false }).collect();
        let (ready, free, last) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let state = Queues { lanes, ready, free, last, free_running: 0, closed: false };
        let max_free = free_places(count, max_free);
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), max_free });
        let threads = workers
            .into_iter()
            .zip(&counts)
            .enumerate()
            .map(|(i, (worker, counts))| {
                let (shared, counts) = (Arc::clone(&shared), Arc::clone(counts));
                std::thread::Builder::new().name(format!("{name}-{i}")).spawn(move || work(&shared, worker, &counts))
            })
            .collect::<io::Result<_>>()?;
        Ok(Pool { shared, threads, counts })
    }

    pub fn submitter(&self) -> Submitter<J> {
        Submitter(Arc::clone(&self.shared))
    }

    /// What its workers count.
    pub fn counts(&self) -> Vec<Arc<WorkerCounts>> {
        self.counts.clone()
    }

    /// Finishes what the lanes hold, drops jobs of no lane, and ends the threads.
    pub fn finish(mut self) {
        {
            let mut state = self.shared.state();
            state.closed = true;
            state.free.clear();
            state.last.clear();
        }
        self.shared.work.notify_all();
        for thread in std::mem::take(&mut self.threads) {
            // A worker's panic has ended the process already.
            let _ = thread.join();
        }
    }
}

impl<J> Drop for Pool<J> {
    fn drop(&mut self) {
        let mut dropped: Vec<Vec<J>> = Vec::new();
        {
            let mut state = self.shared.state();
            state.closed = true;
            state.ready.clear();
            dropped.extend(state.lanes.iter_mut().map(|lane| std::mem::take(&mut lane.queue)));
            let Queues { free, last, .. } = &mut *state;
            dropped.push(free.drain(..).chain(last.drain(..)).map(|(_, job)| job).collect());
        }
        self.shared.work.notify_all();
    }
}

/// The number of jobs of no lane that `workers` workers do at once, where `max_free` are allowed.
pub fn free_places(workers: usize, max_free: usize) -> usize {
    max_free.min(workers.saturating_sub(1)).max(1)
}

/// What a worker takes next.
enum Turn {
    Lane(usize),
    Free,
}

fn next_turn<J>(state: &mut Queues<J>, max_free: usize) -> Option<Turn> {
    let free = !state.free.is_empty() || !state.last.is_empty();
    // Lanes first, since their jobs are short; yet hashing must go on, however busy the lanes are.
    if free && state.free_running == 0 {
        return Some(Turn::Free);
    }
    if let Some(lane) = state.ready.pop_front() {
        return Some(Turn::Lane(lane));
    }
    (free && state.free_running < max_free).then_some(Turn::Free)
}

/// Takes the next job of no lane whose answer is waited for, and all abandoned ones before it.
/// Returns since when it, or else the first of those, has waited.
fn take_free<W: Worker>(state: &mut Queues<W::Job>, batch: &mut Vec<W::Job>) -> Option<Instant> {
    let mut first = None;
    // Jobs that let all others go first may never have their turn; they are given up in their order.
    let is_abandoned = |(_, job): &mut (Instant, W::Job)| W::standing(job) == Standing::Abandoned;
    while let Some((since, job)) = state.last.pop_front_if(is_abandoned) {
        batch.push(job);
        first.get_or_insert(since);
    }
    while let Some((since, job)) = state.free.pop_front() {
        match W::standing(&job) {
            Standing::Last => state.last.push_back((since, job)),
            standing => {
                batch.push(job);
                if standing == Standing::Due {
                    return Some(since);
                }
                first.get_or_insert(since);
            }
        }
    }
    while let Some((since, job)) = state.last.pop_front() {
        let standing = W::standing(&job);
        batch.push(job);
        if standing != Standing::Abandoned {
            return Some(since);
        }
        first.get_or_insert(since);
    }
    first
}

fn work<W: Worker>(shared: &Shared<W::Job>, mut worker: W, counts: &WorkerCounts) {
    let mut batch = Vec::new();
    let mut state = shared.state();
    loop {
        let Some(turn) = next_turn(&mut state, shared.max_free) else {
            if state.closed {
                return;
            }
            state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let (queue, since) = match turn {
            Turn::Lane(lane) => {
                std::mem::swap(&mut state.lanes[lane].queue, &mut batch);
                (Queue::Lane, Some(state.lanes[lane].since))
            }
            Turn::Free => {
                let since = take_free::<W>(&mut state, &mut batch);
                state.free_running += 1;
                (Queue::Free, since)
            }
        };
        drop(state);
        since.into_iter().for_each(|since| counts.waits.of(queue).observe(since.elapsed()));
        counts.jobs.of(queue).add(batch.len() as u64);
        worker.run(&mut batch);
        batch.clear();
        state = shared.state();
        match turn {
            Turn::Lane(index) => {
                let lane = &mut state.lanes[index];
                if lane.queue.is_empty() {
                    lane.scheduled = false;
                } else {
                    state.ready.push_back(index); // this worker goes on with something anyway
                }
            }
            Turn::Free => state.free_running -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
    use std::time::Duration;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    enum Job {
        Number(usize, u32),
        Meet(Arc<Barrier>),
        Wait(Receiver<()>),
        Standing(u32, Standing),
    }

    struct Report(Sender<(usize, u32)>);

    impl Worker for Report {
        type Job = Job;
        fn run(&mut self, batch: &mut Vec<Job>) {
            let batch_of = batch.len();
            for job in batch.drain(..) {
                match job {
                    Job::Number(lane, n) => self.0.send((lane, n)).unwrap(),
                    Job::Meet(barrier) => _ = barrier.wait(),
                    Job::Wait(until) => _ = until.recv_timeout(SOON),
                    Job::Standing(n, _) => self.0.send((batch_of, n)).unwrap(),
                }
            }
        }
        fn standing(job: &Job) -> Standing {
            if let Job::Standing(_, standing) = job { *standing } else { Standing::Due }
        }
    }

    fn pool(workers: usize, max_free: usize) -> (Pool<Job>, Receiver<(usize, u32)>) {
        let (sender, receiver) = channel();
        let workers = (0..workers).map(|_| Report(sender.clone())).collect();
        (Pool::start(workers, 8, max_free).unwrap(), receiver)
    }

    #[test]
    fn a_lanes_jobs_keep_their_order_over_many_workers() {
        let (pool, done) = pool(4, 2);
        let submit = pool.submitter();
        let (keys, each) = (37, 500);
        for n in 0..each {
            (0..keys).for_each(|key| submit.in_lane(key, Job::Number(key, n)));
        }
        pool.finish();
        let mut next = vec![0; keys];
        for (key, n) in done {
            assert_eq!(n, next[key], "lane {key}");
            next[key] += 1;
        }
        assert!(next.iter().all(|&n| n == each), "finish dropped jobs");
    }

    #[test]
    fn long_jobs_of_no_lane_leave_a_worker_to_the_lanes() {
        let (pool, done) = pool(3, 8);
        let submit = pool.submitter();
        let stop: Vec<_> = (0..10)
            .map(|_| {
                let (stop, until) = channel();
                submit.anywhere(Job::Wait(until));
                stop
            })
            .collect();
        submit.in_lane(1, Job::Number(1, 1));
        assert_eq!(done.recv_timeout(SOON), Ok((1, 1)));
        drop(stop);
        pool.finish();
    }

    #[test]
    fn a_dropped_pool_drops_what_waits_and_waits_for_nobody() {
        let (pool, done) = pool(2, 1);
        let submit = pool.submitter();
        let (go_on, until) = channel();
        submit.in_lane(0, Job::Wait(until));
        while submit.waiting()[0].1 > 0 {
            std::thread::yield_now(); // until a worker has it
        }
        submit.in_lane(0, Job::Number(0, 1));
        submit.anywhere(Job::Wait(channel().1));
        drop(pool);
        assert_eq!(submit.waiting().map(|(_, jobs)| jobs), [0, 0]);
        drop(go_on);
        // Its workers have ended when none can report any more.
        assert_eq!(done.recv_timeout(SOON), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn who_has_stepped_back_comes_last_and_what_nobody_wants_takes_no_turn() {
        let (pool, done) = pool(1, 1);
        let submit = pool.submitter();
        let (go_on, until) = channel();
        submit.anywhere(Job::Wait(until));
        let due = |n| Job::Standing(n, Standing::Due);
        submit.anywhere(Job::Standing(1, Standing::Last));
        (2..100).for_each(|n| submit.anywhere(Job::Standing(n, Standing::Abandoned)));
        submit.anywhere(due(100));
        submit.anywhere(due(101));
        drop(go_on);
        let jobs: Vec<_> = (1..=101).map(|_| done.recv_timeout(SOON).unwrap()).collect();
        // All that are abandoned, and the first that is not, in one turn.
        let first = (2..=100).map(|n| (99, n));
        assert_eq!(jobs, first.chain([(1, 101), (1, 1)]).collect::<Vec<_>>());
        assert_eq!(submit.waiting()[1], (Queue::Free, 0));
        pool.finish();
    }

    #[test]
    fn who_has_stepped_back_and_is_given_up_makes_room_although_others_always_come() {
        let jobs = |jobs: &[(u32, Standing)]| {
            jobs.iter().map(|(n, standing)| (Instant::now(), Job::Standing(*n, *standing))).collect()
        };
        let last = jobs(&[(1, Standing::Abandoned), (2, Standing::Abandoned), (3, Standing::Last)]);
        let free = jobs(&[(4, Standing::Due), (5, Standing::Due)]);
        let (lanes, ready) = (Vec::new(), VecDeque::new());
        let mut state = Queues { lanes, ready, free, last, free_running: 0, closed: false };
        let mut batch = Vec::new();
        assert!(take_free::<Report>(&mut state, &mut batch).is_some());
        let taken = batch.iter().map(|job| if let Job::Standing(n, _) = job { *n } else { 0 });
        assert_eq!(taken.collect::<Vec<_>>(), [1, 2, 4]);
        assert_eq!((state.free.len(), state.last.len()), (1, 1));
    }

    #[test]
    fn jobs_of_no_lane_run_side_by_side_and_on_a_single_worker_too() {
        let (two, _done) = pool(3, 2);
        let barrier = Arc::new(Barrier::new(3));
        (0..2).for_each(|_| two.submitter().anywhere(Job::Meet(Arc::clone(&barrier))));
        barrier.wait(); // returns only when both run at once
        two.finish();
        let (one, done) = pool(1, 4);
        one.submitter().anywhere(Job::Number(0, 7));
        assert_eq!(done.recv_timeout(SOON), Ok((0, 7)));
        one.finish();
    }
}
