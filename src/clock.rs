//! The clock by which a lease lasts.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The time since the machine was booted. Unlike [`std::time::Instant`] it goes on while the machine is
/// suspended, as does the time of other machines: a process that wakes up has to see that a lease has expired.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // Neither is ever negative on this clock.
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let before = since_boot();
        std::thread::sleep(Duration::from_millis(2));
        assert!(since_boot() > before && before > Duration::ZERO);
    }
}
