//! Acceptor thread: memory that a crowd of clients has used goes back to the system.
//!
//! Thread `lives` gives back what a life of the node has used. The thread that starts the server sets the bounds.

use std::{fs, mem, ptr};

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
    #[cfg(target_os = "linux")]
    refuse_huge_pages();
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the kernel put no huge pages where memory is allocated now. Where it does so for all programs, Debian's default,
/// one page in use is enough for it to fill the 2 MiB around it: what was given back is resident again, seconds later.
/// Memory that is allocated anew is not concerned: a password is hashed faster in huge pages.
#[cfg(target_os = "linux")]
fn refuse_huge_pages() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, end) in maps.lines().filter_map(anonymous) {
        // SAFETY: it never changes what the memory holds, and fails where there is none any more.
        unsafe {
            libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_NOHUGEPAGE);
        }
    }
}

/// The bounds of a private mapping without a file, in a line of `/proc/self/maps`: addresses, permissions, offset,
/// device, inode, and a name or none.
#[cfg(target_os = "linux")]
fn anonymous(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_private = words.next()?.ends_with('p');
    let is_of_no_file = words.nth(2)? == "0" && words.next().is_none_or(|name| name == "[heap]");
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    Some((address(start)?, address(end)?)).filter(|_| is_private && is_of_no_file)
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

    #[test]
    #[cfg(target_os = "linux")]
    fn a_mapping_is_anonymous_if_it_is_private_and_has_no_file() {
        let of = |rest: &str| anonymous(&format!("7f00-7fff {rest}"));
        let is_it = Some((0x7f00, 0x7fff));
        assert_eq!(
            ["rw-p 00000000 00:00 0", "---p 00000000 00:00 0 ", "rw-p 00000000 00:00 0    [heap]"].map(of),
            [is_it; 3]
        );
        let others =
            ["rw-s 00000000 00:01 7  /dev/zero", "r--p 00001000 08:01 42  /bin/x", "rw-p 00000000 00:00 0 [stack]"];
        assert_eq!(others.map(of), [None; 3]);
        assert_eq!(["", "x", "7f00 rw-p", "z-z rw-p 0 00:00 0"].map(anonymous), [None; 4]);
    }
}
