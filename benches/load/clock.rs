//! Clocks: one that only goes on, those of CPU time, and an alarm that is exact.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as AlarmClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::Pid;

/// Nanoseconds of a clock that is never set.
pub fn now() -> u64 {
    // A clock that every kernel has can be read.
    ClockId::CLOCK_MONOTONIC.now().map_or(0, nanoseconds)
}

fn nanoseconds(time: TimeSpec) -> u64 {
    Duration::from(time).as_nanos() as u64
}

/// The CPU time of a process or a thread, to the nanosecond; /proc counts in hundredths of a second.
#[derive(Debug, Clone, Copy)]
pub struct CpuClock(ClockId);

impl CpuClock {
    /// The clock of this process, with all its threads.
    pub const PROCESS: CpuClock = CpuClock(ClockId::CLOCK_PROCESS_CPUTIME_ID);
    /// The clock of the thread that reads it.
    pub const THREAD: CpuClock = CpuClock(ClockId::CLOCK_THREAD_CPUTIME_ID);

    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> io::Result<CpuClock> {
        Ok(CpuClock(ClockId::pid_cpu_clock_id(Pid::from_raw(pid as i32))?))
    }

    /// # Errors
    /// The process has ended.
    pub fn seconds(self) -> io::Result<f64> {
        Ok(nanoseconds(self.0.now()?) as f64 / 1e9)
    }
}

/// Wakes a poll when its time has come. What epoll itself can wait for is whole milliseconds.
pub struct Alarm {
    timer: TimerFd,
    /// The time when it rings; `u64::MAX`: it is not set.
    at: u64,
}

impl Alarm {
    pub fn new(registry: &Registry, token: Token) -> io::Result<Alarm> {
        let timer = TimerFd::new(AlarmClock::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        registry.register(&mut SourceFd(&timer.as_fd().as_raw_fd()), token, Interest::READABLE)?;
        Ok(Alarm { timer, at: u64::MAX })
    }

    /// Rings once, at this time of [`now`], or at once if that is in the past.
    pub fn set(&mut self, at: u64) -> io::Result<()> {
        if at != self.at {
            let time = TimeSpec::from(Duration::from_nanos(at.max(1)));
            self.timer.set(Expiration::OneShot(time), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.at = at;
        }
        Ok(())
    }

    /// It has rung.
    pub fn rang(&mut self) {
        self.at = u64::MAX;
    }
}
