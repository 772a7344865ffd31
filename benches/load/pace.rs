//! One at a time, for servers that die of logins or disconnects side by side.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two of them.
const APART: Duration = Duration::from_millis(15);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Does this at once for a sturdy server; for others when nobody else does, and some time after whoever did last.
pub fn keep<T>(is_sturdy: bool, what: impl FnOnce() -> T) -> T {
    if is_sturdy {
        return what();
    }
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(wait) = last.and_then(|last| (last + APART).checked_duration_since(Instant::now())) {
        std::thread::sleep(wait);
    }
    let done = what();
    *last = Some(Instant::now());
    done
}
