//! What each signal does.
//!
//! | signal | what |
//! | --- | --- |
//! | TERM, INT, HUP, QUIT, XCPU, PWR | ends in order: this node's users are set offline. HUP and QUIT that were ignored at the start, by `nohup` or a shell's `&`, still are |
//! | a second TERM, INT or QUIT | ends at once |
//! | USR1, USR2, ALRM, VTALRM, PROF, IO, STKFLT, the real-time ones | ignored, with a line in the log |
//! | PIPE, XFSZ | ignored: whoever writes is told |
//! | TSTP, TTIN, TTOU, STOP, CONT, CHLD, URG, WINCH | as the system has it: stop, go on, nothing |
//! | ABRT, BUS, FPE, ILL, SEGV, SYS, TRAP, KILL | as the system has it: a crash. The next start, or another node, sets its users offline |
//!
//! A terminal that closes sends HUP, and its shell another one: so a second HUP does not hurry. Nor does
//! XCPU, which comes each second while the process is past its limit of processor time.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::flag;
use signal_hook::iterator;
use signal_hook::low_level::signal_name;

/// The exit status when a second signal cuts the end short, as a shell reports Ctrl-C.
const INTERRUPTED: c_int = 130;

/// A second one of these, behind any that ends the process, ends it at once.
const HURRY: [c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];
/// These end it in order, too.
const END: [c_int; 3] = [libc::SIGHUP, libc::SIGXCPU, libc::SIGPWR];
/// Of those, the ones that whoever started the process may have meant it to ignore. A shell without job
/// control ignores INT as well for what it starts behind its back, but INT has always ended this server.
const LEFT_IGNORED: [c_int; 2] = [libc::SIGHUP, libc::SIGQUIT];
/// These would end it, and are not meant for it. Beside them, the real-time signals.
const UNMEANT: [c_int; 7] =
    [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, libc::SIGVTALRM, libc::SIGPROF, libc::SIGIO, libc::SIGSTKFLT];

/// The signals of this process, from now on.
pub struct Signals(iterator::Signals);

impl Signals {
    /// Takes them over. To be called once, before anybody can be online.
    ///
    /// # Errors
    /// The system has no more descriptors.
    pub fn take() -> io::Result<Signals> {
        let ignored = ignored();
        let is_ours = |signal: &c_int| !(LEFT_IGNORED.contains(signal) && ignored & 1 << (signal - 1) != 0);
        // Armed by the first signal, so that the second ends the process at once.
        let ending = Arc::new(AtomicBool::new(false));
        for signal in HURRY.into_iter().filter(is_ours) {
            flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&ending))?;
        }
        let ends: Vec<c_int> = HURRY.into_iter().chain(END).filter(is_ours).collect();
        for &signal in &ends {
            flag::register(signal, Arc::clone(&ending))?;
        }
        // A write past the limit of a file's size then fails as one to a full disk does. Not told in the
        // log, since it may be the log's own.
        flag::register(libc::SIGXFSZ, Arc::default())?;
        let unmeant = UNMEANT.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
        iterator::Signals::new(ends.into_iter().chain(unmeant)).map(Signals)
    }

    /// Waits for one that ends the process, and returns its name.
    pub fn wait_for_the_end(&mut self) -> String {
        loop {
            for signal in self.0.wait() {
                let name = signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned);
                if HURRY.contains(&signal) || END.contains(&signal) {
                    return name;
                }
                log::info!("{name} is ignored");
            }
        }
    }
}

/// The signals that are ignored, by bits, the lowest for the first. None where the system does not tell.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
