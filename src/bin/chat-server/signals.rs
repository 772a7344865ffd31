//! What each signal does.
//!
//! | signal | what |
//! | --- | --- |
//! | TERM, INT, HUP, QUIT, XCPU, PWR | ends in order: this node's users are set offline. HUP and QUIT that were ignored at the start, by `nohup` or a shell's `&`, still are |
//! | a second TERM, INT or QUIT | cuts that short: the log says what is lost. A third one ends at once |
//! | USR1, USR2, ALRM, VTALRM, PROF, IO, STKFLT, the real-time ones | ignored, with a line in the log |
//! | PIPE, XFSZ | ignored: the write fails with an error |
//! | TSTP, TTIN, TTOU, STOP, CONT, CHLD, URG, WINCH | as the system has it: stop, go on, nothing |
//! | ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP, KILL | as the system has it: a crash. The next start, or another node, sets its users offline |
//!
//! A terminal that closes sends HUP, and its shell another one: so a second HUP does not hurry. Nor does
//! XCPU, which comes each second while the process is past its limit of processor time.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

/// The exit status when a second signal cuts the end short, as a shell reports Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// A second one of these, behind any that ends the process, cuts its end short.
const HURRY: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
/// These end it in order, too.
const END: [c_int; 3] = [libc::SIGHUP, libc::SIGXCPU, libc::SIGPWR];
/// The signals above that the parent process may have wanted ignored. A shell without job control also
/// ignores INT for background processes, but INT has always ended this server.
const LEFT_IGNORED: [c_int; 2] = [libc::SIGHUP, libc::SIGQUIT];
/// These would end it, and are not meant for it. Beside them, the real-time signals.
const UNMEANT: [c_int; 7] =
    [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO, libc::SIGSTKFLT];

/// Takes the signals of this process over, from now on. What is returned gets the name of the one that is to end it,
/// and then of each that is to cut the end short. To be called once, before a user can be online.
///
/// # Errors
/// The system has no more descriptors, or no more threads.
pub fn take() -> io::Result<Receiver<String>> {
    let ignored = ignored();
    let is_ours = |signal: &c_int| !(LEFT_IGNORED.contains(signal) && ignored & 1 << (signal - 1) != 0);
    // Set when the end has been cut short, so that one more ends the process whatever it waits for.
    let hurried = Arc::new(AtomicBool::new(false));
    for signal in HURRY.into_iter().filter(is_ours) {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&hurried))?;
    }
    // A write past the limit of a file's size then fails as one to a full disk does. Not
    // logged, since it may be the log's own.
    flag::register(libc::SIGXFSZ, Arc::default())?;
    let ends = HURRY.into_iter().chain(END).filter(is_ours);
    let unmeant = UNMEANT.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
    let signals = Signals::new(ends.chain(unmeant))?;
    let (tell, told) = unbounded();
    thread::Builder::new().name("signals".to_owned()).spawn(move || pass_on(signals, &tell, &hurried))?;
    Ok(told)
}

fn pass_on(mut signals: Signals, tell: &Sender<String>, hurried: &AtomicBool) {
    let mut is_ending = false;
    for signal in signals.forever() {
        let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
        let hurries = HURRY.contains(&signal);
        match is_ending {
            false if hurries || END.contains(&signal) => is_ending = true,
            true if hurries => hurried.store(true, Ordering::SeqCst),
            true if END.contains(&signal) => continue,
            _ => {
                log::info!("{name} is ignored");
                continue;
            }
        }
        // Its other end is gone when the process has ended.
        let _ = tell.send(name);
    }
}

/// The signals that are ignored, by bits, the lowest for the first. None where the system does not say.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
