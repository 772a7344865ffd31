//! Acceptor thread: memory that a crowd of clients has used goes back to the system.
//!
//! Thread `lives` gives back what a life of the node has used. The thread that starts the server sets the bounds.

use std::mem;

/// The least number of connections that are a crowd.
const CROWD: usize = 64;
/// Free memory that each thread's heap may keep at its end, in bytes.
#[cfg(target_env = "gnu")]
const AT_HEAPS_END: libc::c_int = 256 << 10;
/// The least that is taken from the system as a block of its own, in bytes.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 1 << 20;

/// Notices when most of a crowd has left. The allocator by itself keeps the memory that they used, wherever
/// something that is in use lies behind it.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    /// The most connections since memory was last given back.
    most: usize,
    /// Memory was given back at the last look.
    gave_back: bool,
}

impl Crowd {
    /// Whether most of a crowd has left, now that there are this many connections. True at the next look once more:
    /// what they have used may be freed a little after they are counted out.
    pub fn has_left(&mut self, connections: usize) -> bool {
        self.most = self.most.max(connections);
        let has_left = self.most >= CROWD && connections <= self.most / 4;
        if has_left {
            self.most = connections;
        }
        mem::replace(&mut self.gave_back, has_left) || has_left
    }
}

/// Bounds what the allocator keeps at the end of each thread's heap, which [`give_back`] does not reach. By itself it
/// keeps up to twice the largest block that was ever freed, and up to 64 MiB. To be called before threads start.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets two numbers of the allocator under the allocator's own lock.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, AT_HEAPS_END);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Has the allocator give free pages back, of all threads, also of those that have ended: what they have used it would
/// keep for later ones. It takes some milliseconds for 100 MB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_left_when_a_quarter_is_there_and_at_the_next_look() {
        let mut crowd = Crowd::default();
        assert!(!crowd.has_left(10) && !crowd.has_left(0), "ten are no crowd");
        assert!(!crowd.has_left(1000) && !crowd.has_left(251));
        assert!(crowd.has_left(250) && crowd.has_left(250) && !crowd.has_left(250) && !crowd.has_left(63));
        assert!(crowd.has_left(62) && crowd.has_left(0) && !crowd.has_left(0));
    }
}
