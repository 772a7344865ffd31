//! Claims that a store does not give back at the first attempt.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rlimit::{INFINITY, Resource};

use crate::login;
use crate::support::{Account, Client, Config, World, eventually};

/// Until a release is tried again, and a little more.
const REPEATED: Duration = Duration::from_secs(3);

/// From now on the store's files take this number of bytes and no more.
fn limit_files(world: &World, bytes: u64) {
    let pid = world.server().pid().try_into().expect("a pid");
    rlimit::prlimit(pid, Resource::FSIZE, Some((bytes, INFINITY)), None).expect("a child's limit can be changed");
}

/// Writes to all of them, again and again, until `stop` is set.
fn write_to(mut sender: Client, recipients: &[Account], stop: &AtomicBool, acked: &AtomicUsize) {
    let mut seqs = VecDeque::new();
    for recipient in recipients.iter().cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
        seqs.push_back(sender.start(sender.chat_to(recipient.id, "nobody keeps this")));
        if seqs.len() > 64 {
            sender.reply(seqs.pop_front().expect("a window"));
            acked.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_release_that_is_tried_again_leaves_the_next_session_alone() {
    const USERS: usize = 4;
    let world = Config::new(2).own(&[]);
    let node = world.server().address;
    let (accounts, sender) = (world.accounts("user", USERS), world.online("sender"));
    let (stop, acked) = (AtomicBool::new(false), AtomicUsize::new(0));
    limit_files(&world, 0);
    thread::scope(|scope| {
        // Its messages are stored with all else that concerns these users: together, so that nothing is done.
        scope.spawn(|| write_to(sender, &accounts, &stop, &acked));
        // Whether these logins were committed is unknown, so they are taken back.
        for account in &accounts {
            assert_eq!(Client::connect(node).try_login(account)["errno"], 21);
        }
        let before = acked.load(Ordering::Relaxed);
        eventually("that to be tried", || acked.load(Ordering::Relaxed) > before + 64 + 8 * USERS);
        stop.store(true, Ordering::Relaxed);
    });
    limit_files(&world, INFINITY);
    let mut sessions: Vec<Client> = accounts.iter().map(|_| Client::connect(node)).collect();
    for (account, session) in accounts.iter().zip(&mut sessions) {
        eventually("a login", || session.try_login(account)["errno"] == 0);
    }
    let since = Instant::now();
    while since.elapsed() < REPEATED {
        for (account, session) in accounts.iter().zip(&mut sessions) {
            let reply = Client::connect(node).try_login(account);
            assert_ne!(reply["errno"], 0, "two sessions after {:?}: {reply}", since.elapsed());
            session.sync();
        }
    }
    // And they end as all others do.
    sessions.into_iter().for_each(|mut session| session.logout());
    accounts.iter().for_each(|account| drop(login(node, account)));
}
