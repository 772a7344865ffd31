//! The terminal's modes: set while the client has the terminal, and given back however it ends.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios, tcgetattr, tcgetpgrp, tcsetattr,
};

/// The modes that the terminal had.
static BEFORE: OnceLock<Termios> = OnceLock::new();
/// The process is about to end: no thread may set the modes again.
static GIVEN_BACK: AtomicBool = AtomicBool::new(false);

/// Notified when the process was continued.
static CONTINUED: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

/// Takes the terminal on the standard input: from now on every key is read as it is typed, and
/// echoed by this program alone. False where there is no terminal.
pub fn take() -> bool {
    if !io::stdin().is_terminal() {
        return false;
    }
    let Ok(before) = tcgetattr(stdin()) else { return false };
    let _ = BEFORE.set(before);
    set()
}

/// Sets the modes, also after a stop in which the shell had the terminal. False where it has it
/// still: they are set when the process comes to the foreground.
pub fn set() -> bool {
    let Some(before) = BEFORE.get() else { return false };
    if is_given_back() || is_in_background() {
        return false;
    }
    let mut modes = before.clone();
    // CR and LF are told apart, and no byte is held back, changed or taken for flow control.
    modes.input_modes -= InputModes::BRKINT
        | InputModes::ICRNL
        | InputModes::INLCR
        | InputModes::IGNCR
        | InputModes::INPCK
        | InputModes::ISTRIP
        | InputModes::IXON;
    modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    modes.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN;
    // Ctrl-C and Ctrl-Z stay signals, so that they work while nothing is asked; what was typed ahead
    // is not lost by them.
    modes.local_modes |= LocalModes::ISIG | LocalModes::NOFLSH;
    modes.special_codes[SpecialCodeIndex::VMIN] = 1;
    modes.special_codes[SpecialCodeIndex::VTIME] = 0;
    // At once: the other ways wait for output, and one of them throws away what was typed ahead.
    tcsetattr(stdin(), OptionalActions::Now, &modes).is_ok()
}

/// Returns when the terminal is this process's. A process that reads from a terminal of another one takes
/// that one's input, or is stopped, in the middle of whatever its other threads do.
pub fn wait_for_foreground() {
    // The shell continues the process when it hands it the terminal. It need not, if that was never
    // stopped.
    const LOOK: Duration = Duration::from_secs(1);
    let mut continued = CONTINUED.0.lock().unwrap_or_else(PoisonError::into_inner);
    while is_in_background() {
        continued = CONTINUED.1.wait_timeout(continued, LOOK).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The process was continued.
pub fn continued() {
    let _continued = CONTINUED.0.lock().unwrap_or_else(PoisonError::into_inner);
    CONTINUED.1.notify_all();
}

/// The terminal belongs to another process at the moment: setting its modes would stop the process.
fn is_in_background() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != getpgrp())
}

/// Gives the modes back for a while.
pub fn lend() {
    if let Some(before) = BEFORE.get()
        && !is_in_background()
    {
        let _ = tcsetattr(stdin(), OptionalActions::Now, before);
    }
}

/// Gives the modes back for good. Needs no lock and no memory, and may be called twice.
pub fn give_back() {
    GIVEN_BACK.store(true, Ordering::SeqCst);
    lend();
}

pub fn is_given_back() -> bool {
    GIVEN_BACK.load(Ordering::SeqCst)
}

/// The parent process has made this one ignore the signal, as `nohup` does.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it only writes the present one, to memory that is large enough;
    // the zeroed one is valid, too.
    let action = unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}

/// Has the signal do to the process what it does by default, and returns if the process goes on. The
/// kernel does it by itself: it alone knows, say, if there is a shell that could continue what is stopped.
pub fn act_by_default(signal: i32) {
    let mut handled = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: both actions are whole and valid, the default one and that which was there.
    unsafe {
        let mut default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &default, handled.as_mut_ptr());
        libc::raise(signal);
        libc::sigaction(signal, handled.as_ptr(), std::ptr::null_mut());
    }
}

/// Gives the terminal back if the process crashes, too, or is sent such a signal.
pub fn guard_against_crashes() {
    extern "C" fn crashed(signal: i32) {
        give_back();
        // SAFETY: it only marks the signal, which by now does what it does by default.
        unsafe { libc::raise(signal) };
    }
    for signal in [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV] {
        // SAFETY: the action is whole and valid, and `crashed` makes system calls alone, as a handler
        // may. It acts once, on the stack that Rust keeps for threads that have used up theirs.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = crashed as extern "C" fn(i32) as usize;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}
