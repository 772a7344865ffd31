//! Logins and disconnects one at a time, for servers that crash on several side by side.

use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time between two of them.
const APART: Duration = Duration::from_millis(15);
/// A request without a reply is read by then.
const SETTLING: Duration = Duration::from_millis(100);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Does this at once for a sturdy server; for others while no other thread does, and [`APART`] after the last one.
pub fn keep<T>(is_sturdy: bool, what: impl FnOnce() -> T) -> T {
    if is_sturdy {
        return what();
    }
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    // Another run may have ended a moment ago.
    let soonest = last.unwrap_or_else(Instant::now) + APART;
    std::thread::sleep(soonest.saturating_duration_since(Instant::now()));
    let done = what();
    *last = Some(Instant::now());
    done
}

/// How long the end of a connection may take to be answered. A server that does not answer it once never does.
const FAREWELL: Duration = Duration::from_secs(1);
static ANSWERS: AtomicBool = AtomicBool::new(true);

/// Ends a connection. Of a server that is not sturdy it waits for the other end: that one closes when it has done all
/// that a disconnect makes it do.
pub fn farewell<S: Read>(is_sturdy: bool, stream: &mut S, shutdown: impl Fn(&S, Shutdown) -> io::Result<()>) {
    if is_sturdy {
        let _ = shutdown(stream, Shutdown::Both); // it may have ended before
        return;
    }
    keep(false, || {
        let deadline = Instant::now() + FAREWELL;
        let mut is_open = shutdown(stream, Shutdown::Write).is_ok() && ANSWERS.load(Relaxed);
        let mut buffer = [0; 4096];
        while is_open && Instant::now() < deadline {
            is_open = match stream.read(&mut buffer) {
                Ok(length) => length > 0,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    std::thread::sleep(Duration::from_millis(1));
                    true
                }
                Err(_) => false,
            };
        }
        if is_open {
            ANSWERS.store(false, Relaxed);
        }
    });
}

/// Lets the server read what it was sent before anything else is sent over the same connection. Nothing reports that
/// it has.
pub fn settle(is_sturdy: bool) {
    if !is_sturdy {
        std::thread::sleep(SETTLING);
    }
}
