//! Signals: whichever ends or stops the process, the terminal is given back before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;
use std::{io, panic, process, thread};

use libc::{SIGPWR, SIGRTMAX, SIGRTMIN, SIGSTKFLT};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGSYS, SIGTERM, SIGTRAP, SIGTSTP, SIGUSR1, SIGUSR2,
    SIGVTALRM, SIGWINCH, SIGXCPU, SIGXFSZ,
};
use signal_hook::iterator::Signals;

use crate::terminal::Terminal;
use crate::tty;

/// Those that ask a program to end. The first takes leave of the server.
const ENDS: [i32; 3] = [SIGHUP, SIGINT, SIGTERM];
/// The others whose default ends a process, at once here, too; besides these, the real-time ones.
const KILLS: [i32; 13] = [
    SIGQUIT, SIGALRM, SIGIO, SIGPROF, SIGPWR, SIGSTKFLT, SIGSYS, SIGTRAP, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
];
/// How long the leave may take.
const LEAVE: Duration = Duration::from_secs(2);

/// What the thread of the signals and the main thread share.
#[derive(Debug, Default)]
pub struct Leave {
    /// The main thread can take leave; before and after, a signal ends the process at once.
    possible: AtomicBool,
    /// By which signal the process ends; 0: by none.
    signal: AtomicI32,
}

impl Leave {
    pub fn make_possible(&self) {
        self.possible.store(true, Ordering::SeqCst);
    }

    /// Ends the process if a signal has asked for it, by that same signal, so that a shell sees it.
    pub fn end(&self) {
        self.possible.store(false, Ordering::SeqCst);
        match self.signal.load(Ordering::SeqCst) {
            0 => {}
            signal => die(signal),
        }
    }
}

/// Keeps signals from doing what they do by default. They wait until they are handled.
pub fn catch() -> io::Result<Signals> {
    tty::guard_against_crashes();
    let caught = ENDS.into_iter().chain(KILLS).chain(SIGRTMIN()..=SIGRTMAX()).chain([SIGTSTP, SIGCONT, SIGWINCH]);
    Signals::new(caught.filter(|signal| !tty::is_ignored(*signal)))
}

/// Handles signals in a thread of their own from now on. `leave` is called when the client is to
/// take leave; it must not block.
pub fn handle(
    mut signals: Signals,
    terminal: Arc<Terminal>,
    state: Arc<Leave>,
    leave: impl Fn() + Send + 'static,
) -> io::Result<()> {
    // Whichever thread panics, the client cannot go on without it.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tty::give_back();
        report(info);
        process::exit(101);
    }));
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGTSTP => {
                    terminal.hide();
                    tty::lend();
                    tty::act_by_default(signal);
                    go_on(&terminal);
                }
                SIGCONT => go_on(&terminal),
                SIGWINCH => terminal.redraw(),
                signal if ENDS.contains(&signal) && state.possible.swap(false, Ordering::SeqCst) => {
                    state.signal.store(signal, Ordering::SeqCst);
                    terminal.hide();
                    tty::give_back();
                    leave();
                    // The main thread may be kept from it by a terminal or a server that is stuck.
                    thread::spawn(move || {
                        thread::sleep(LEAVE);
                        die(signal);
                    });
                }
                signal => {
                    terminal.hide();
                    die(signal);
                }
            }
        }
    })?;
    Ok(())
}

/// Behind a stop, in the foreground.
fn go_on(terminal: &Terminal) {
    if tty::set() {
        terminal.show();
        tty::continued();
    }
}

fn die(signal: i32) {
    tty::give_back();
    tty::act_by_default(signal);
    // Not so. As a shell would report it:
    process::exit(128 + signal);
}
