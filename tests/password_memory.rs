//! What hashing passwords leaves behind. A process of its own, since it looks at the whole of it.

use std::time::{Duration, Instant};

use chat_server::password::{Cost, Hasher};

#[test]
fn the_memory_is_given_back() {
    let before = resident_kib();
    std::thread::scope(|scope| {
        let (done, all_done) = crossbeam_channel::unbounded();
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        for _ in 0..4 {
            let (done, ended) = (done.clone(), ended.clone());
            scope.spawn(move || {
                let mut hasher = Hasher::new(Cost::default());
                done.send((0..4).all(|_| hasher.hash("secret").is_ok())).unwrap();
                // The thread stays, as a worker does, and its arena with it.
                let _ = ended.recv();
            });
        }
        assert!((0..4).all(|_| all_done.recv().unwrap()));
        // Each keeps less than one hash took.
        let deadline = Instant::now() + Duration::from_secs(10);
        while resident_kib() > before + 4 * 4096 {
            assert!(Instant::now() < deadline, "{before} KiB, then {} KiB", resident_kib());
            std::thread::yield_now();
        }
        drop(end);
    });
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
