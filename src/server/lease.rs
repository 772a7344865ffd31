//! Thread `lease`: keeps this node's lease in Redis, and waits for no other thread.
//!
//! The lease says that the node lives, so it is renewed only while all of it does: the line to the bus has
//! carried a beat of this node, and every reactor has completed a turn, within the last 2 s. To the others, a node
//! that hears nothing or has a hanging reactor is dead, and its users become free by that. The store is not
//! consulted: a database that stands still for all nodes must not make all of them look dead.
//!
//! Right after each renewal the thread looks for the leases of the others, for the [`reaper`](super::reaper).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use redis::RedisError;

use super::failure_log::FailureLog;
use super::notice::Notice;
use super::reaping::Suspect;
use super::validity::Validity;
use crate::bus::redis::{Leases, RedisBus, StartError};
use crate::clock::since_boot;

/// How often the lease is renewed. Twice a second, so that little of the 10 s after which a dead node's users can
/// log in again is spent waiting.
pub const PERIOD: Duration = Duration::from_millis(500);
/// How old the last sign of life may be.
const FRESH: Duration = Duration::from_secs(2);

pub(super) struct LeaseKeeper {
    pub leases: Leases,
    pub bus: Arc<RedisBus>,
    pub validity: Arc<Validity>,
    /// When each reactor completed its last turn, in ms since the machine was booted.
    pub turns: Vec<Arc<AtomicU64>>,
    pub suspects: Suspects,
    /// Triggers a look after each renewal, which raises the counter.
    pub look: Sender<()>,
    pub reaper: Sender<Notice>,
}

/// The nodes whose leases are to be looked for.
pub(super) type Suspects = Arc<Mutex<Vec<Suspect>>>;

/// Why the lease is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    Deaf,
    Hangs(usize),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Obstacle::Deaf => f.write_str("this node does not hear itself on the bus"),
            Obstacle::Hangs(reactor) => write!(f, "reactor {reactor} hangs"),
        }
    }
}

/// Whether a lease may be renewed at `now`. `heard`: when the newest beat that was heard on the bus was sent; `turns`:
/// when each reactor completed its last turn.
fn check(now: Duration, heard: Option<Duration>, turns: impl IntoIterator<Item = Duration>) -> Result<(), Obstacle> {
    let is_old = |at: Duration| at + FRESH < now;
    if heard.is_none_or(is_old) {
        return Err(Obstacle::Deaf);
    }
    turns.into_iter().position(is_old).map_or(Ok(()), |reactor| Err(Obstacle::Hangs(reactor)))
}

impl LeaseKeeper {
    /// Keeps the lease until a message on `stop`, then gives it up; if the other end is dropped, it expires by itself.
    pub fn run(mut self, stop: &Receiver<()>) {
        let mut failures = FailureLog::default();
        let mut begun = since_boot();
        loop {
            let pause = (begun + PERIOD).saturating_sub(since_boot());
            match stop.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            begun = since_boot();
            self.bus.beat();
            let turns = self.turns.iter().map(|turn| Duration::from_millis(turn.load(Relaxed)));
            let signs = check(since_boot(), self.bus.heard(), turns);
            failures.note(signs.as_ref().err(), "the lease is renewed again", "the lease is not renewed");
            if signs.is_ok() {
                let result = self.renew_and_look();
                failures.note(
                    result.as_ref().err(),
                    "the lease in Redis is renewed again",
                    "cannot renew the lease in Redis",
                );
            }
        }
        // If Redis is away, it expires by itself.
        let _ = self.leases.drop_lease();
    }

    fn renew_and_look(&mut self) -> Result<(), RedisError> {
        self.renew()?;
        // If the channel is full, a look is about to begin anyway.
        let _ = self.look.try_send(());
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nodes: Vec<_> = suspects.iter().map(|suspect| suspect.node).collect();
        let found = self.leases.look(&nodes)?;
        self.bus.learn(&found.living);
        let lives = |suspect: &Suspect| found.living.iter().any(|(node, _)| *node == suspect.node);
        let missing = suspects.into_iter().filter(|suspect| found.counts() && !lives(suspect)).collect();
        // The reaper is gone when this node ends.
        let _ = self.reaper.send(Notice::Renewed { missing });
        Ok(())
    }

    /// Takes the lease, when the node starts.
    ///
    /// # Errors
    /// Redis is away, or refuses.
    pub fn take(&mut self) -> Result<(), StartError> {
        let sent = since_boot();
        self.leases.take()?;
        self.validity.renewed(sent, since_boot(), false);
        Ok(())
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// Redis is away, or refuses.
    pub fn renew(&mut self) -> Result<(), RedisError> {
        let sent = since_boot();
        let renewed = self.leases.renew()?;
        self.validity.renewed(sent, since_boot(), renewed.existed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_renewed_while_the_node_hears_itself_and_all_reactors_turn() {
        let ms = Duration::from_millis;
        let check =
            |heard: Option<u64>, turns: &[u64]| check(ms(10_000), heard.map(ms), turns.iter().map(|&turn| ms(turn)));
        for (heard, turns, expected) in [
            (Some(10_000), &[10_000, 10_000][..], Ok(())),
            (Some(8000), &[8000, 8000], Ok(())),
            (Some(7999), &[10_000, 10_000], Err(Obstacle::Deaf)),
            (None, &[10_000], Err(Obstacle::Deaf)),
            (Some(10_000), &[10_000, 7999, 7999], Err(Obstacle::Hangs(1))),
            (Some(10_000), &[0], Err(Obstacle::Hangs(0))),
            // The clock was read a moment before they turned.
            (Some(10_001), &[10_001], Ok(())),
        ] {
            assert_eq!(check(heard, turns), expected, "{heard:?} {turns:?}");
        }
    }
}
