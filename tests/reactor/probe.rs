//! What the system and the allocator say about a thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashSet;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Counts what each thread allocates less what it frees.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may still free something.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: everything is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The bytes that this thread has allocated and not freed.
pub fn held() -> isize {
    HELD.get()
}

fn read(proc: &Path, file: &str) -> String {
    std::fs::read_to_string(proc.join(file)).expect("the thread lives")
}

fn number(line: &str) -> u64 {
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

/// How many segments with data have come to a socket: over loopback one for each write, if the peer
/// does not wait for more to send.
pub fn segments(stream: &TcpStream) -> u32 {
    // SAFETY: zeros are a valid `tcp_info`, which is integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `size` bytes to `info`.
    let done = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut size)
    };
    assert_eq!((done, size as usize), (0, size_of_val(&info)), "an older kernel");
    info.tcpi_data_segs_in
}

/// The `write` and `writev` calls of a thread: those that wake a Poll, and gathered ones to a socket.
pub fn writes(proc: &Path) -> u64 {
    let io = read(proc, "io");
    number(io.lines().find(|line| line.starts_with("syscw:")).expect("syscw"))
}

/// How often a thread has slept.
pub fn sleeps(proc: &Path) -> u64 {
    let status = read(proc, "status");
    number(status.lines().find(|line| line.starts_with("voluntary_ctxt_switches:")).expect("switches"))
}

/// The processor time of a thread.
pub fn cpu(proc: &Path) -> Duration {
    let nanos = read(proc, "schedstat").split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.expect("a number"))
}

/// The inode of the accepted socket whose peer is `client`; both ends live in this process.
pub fn inode_of_accepted(client: &TcpStream) -> u64 {
    let end = |address: std::net::SocketAddr| format!("0100007F:{:04X}", address.port());
    let (own, peer) = (end(client.peer_addr().unwrap()), end(client.local_addr().unwrap()));
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("a table of sockets");
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = line.into_iter().find(|words| words.get(1) == Some(&&*own) && words.get(2) == Some(&&*peer));
    line.expect("the accepted socket")[9].parse().expect("an inode")
}

/// The accepted socket's own descriptor whose peer is `client`.
pub fn descriptor_of_accepted(client: &TcpStream) -> RawFd {
    let name = format!("socket:[{}]", inode_of_accepted(client));
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let is_it = |path: &std::path::PathBuf| std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == &*name);
    let path = descriptors.flatten().map(|entry| entry.path()).find(is_it).expect("it is open");
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()).expect("a number")
}

/// Has an epoll instance watch a descriptor behind its owner's back, for nothing.
pub fn watch(epoll: RawFd, descriptor: RawFd) {
    let mut event = libc::epoll_event { events: 0, u64: u64::MAX };
    // SAFETY: both descriptors are open, and `event` outlives the call.
    let done = unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, descriptor, &raw mut event) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

/// The events that an epoll instance waits for on the socket with this inode.
pub fn watched(epoll: RawFd, inode: u64) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
    let needle = format!("ino:{inode:x}");
    let line = info.lines().find(|line| line.split_whitespace().any(|word| word == needle))?.to_owned();
    let mask = line.split("events:").nth(1)?.split_whitespace().next()?.to_owned();
    Some(u32::from_str_radix(&mask, 16).expect("a mask"))
}

/// How many of this process's epoll instances watch the socket with this inode. Descriptors of one
/// instance show the same table, and no two instances with a waker do.
pub fn polls_that_watch(inode: u64) -> usize {
    let needle = format!("ino:{inode:x}");
    let descriptors = std::fs::read_dir("/proc/self/fdinfo").expect("/proc");
    let tables = descriptors.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    let watching = tables.filter_map(|table| {
        let mut lines: Vec<&str> = table.lines().filter(|line| line.starts_with("tfd:")).collect();
        lines.sort_unstable();
        lines.iter().any(|line| line.split_whitespace().any(|word| word == needle)).then(|| lines.join("\n"))
    });
    watching.collect::<HashSet<String>>().len()
}

/// Whether EPOLLOUT is in a mask.
pub fn waits_to_write(mask: u32) -> bool {
    mask & 4 != 0
}
