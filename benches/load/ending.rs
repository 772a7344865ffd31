//! How a run ends: by a signal, or killed; and that nothing of it is left then.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static SIGNAL: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
static HEIR: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
/// The cores of what is started, if they are not those of this program.
static CORES: OnceLock<String> = OnceLock::new();

/// Outlives this process, however that ends: it reads which processes belong to it, and which do not any more, and
/// at the end of its input kills those that are left, with their groups, and every process that was started with something below the
/// folder, and removes the folder.
const HEIR_SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r sign pid; do
    case $sign in
        +) pids="$pids$pid " ;;
        -) case $pids in *" $pid "*) pids="${pids%%" $pid "*} ${pids#*" $pid "}" ;; esac ;;
    esac
done
for file in /proc/[0-9]*/cmdline; do
    pid=${file#/proc/}
    pid=${pid%/cmdline}
    if [ "$pid" != $$ ] && grep -qaF "$0" "$file" 2>/dev/null; then pids="$pids$pid "; fi
done
for pid in $pids; do kill -9 "-$pid" 2>/dev/null; kill -9 "$pid" 2>/dev/null; done
tries=0
until rm -rf "$0" 2>/dev/null || [ "$tries" -ge 50 ]; do tries=$((tries + 1)); sleep 0.1; done
"#;

/// Ctrl-C, SIGTERM and SIGHUP end what is measured; a second one ends this process at once.
pub fn listen() -> anyhow::Result<()> {
    let signal = SIGNAL.get_or_init(Arc::default);
    let armed = Arc::new(AtomicBool::new(false));
    for number in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(number, 128 + number, Arc::clone(&armed))?;
        signal_hook::flag::register(number, Arc::clone(&armed))?;
        signal_hook::flag::register_usize(number, Arc::clone(signal), number as usize)?;
    }
    Ok(())
}

/// The signal that has come, if one has.
pub fn signal() -> Option<u8> {
    let number = SIGNAL.get().map_or(0, |signal| signal.load(Relaxed));
    u8::try_from(number).ok().filter(|&number| number > 0)
}

/// Starts the process that outlives this one, removes this folder, and kills what [`adopt`] names.
pub fn leave_nothing(folder: &Path) -> anyhow::Result<()> {
    let mut shell = apart("sh", false);
    shell.args(["-c", HEIR_SCRIPT]).arg(folder);
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = shell.spawn().context("sh cannot be started")?;
    let input = child.stdin.take().context("its input is piped")?;
    let _ = HEIR.set(Mutex::new(input));
    Ok(())
}

/// The process is not to outlive this one.
pub fn adopt(pid: u32) {
    tell_heir(&format!("+ {pid}\n"));
}

/// It has ended.
pub fn release(pid: u32) {
    tell_heir(&format!("- {pid}\n"));
}

fn tell_heir(line: &str) {
    if let Some(heir) = HEIR.get() {
        // Without an heir, the kernel still ends most of them.
        let _ = heir.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// What is started from here on uses these cores alone.
///
/// # Errors
/// There is no program that can bring that about.
pub fn start_on(cores: &str) -> anyhow::Result<()> {
    ensure!(is_installed("taskset"), "taskset is not installed: apt-get install util-linux");
    let _ = CORES.set(cores.to_owned());
    Ok(())
}

/// A program in a session of its own, so that a Ctrl-C at the terminal reaches this process alone, which then still
/// can count what arrives. `dies_with_us`: killed by the kernel at the end of the thread that starts it.
pub fn apart(program: &str, dies_with_us: bool) -> Command {
    let mut words: Vec<String> = launcher(dies_with_us).split_whitespace().map(str::to_owned).collect();
    words.push(program.to_owned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let path = std::env::var("PATH").unwrap_or_default();
    // Daemons stand in sbin, which is not on every user's path.
    command.env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"));
    command
}

/// The words in front of a command that start it as [`apart`] does. Each program execs the next one in its place.
fn launcher(dies_with_us: bool) -> String {
    let mut words = CORES.get().map_or(String::new(), |cores| format!("taskset -c {cores} "));
    if is_installed("setsid") {
        words += "setsid ";
    }
    if dies_with_us && is_installed("setpriv") {
        words += "setpriv --pdeathsig KILL -- ";
    }
    words
}

pub fn is_installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut folders = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    folders.any(|folder| Path::new(folder).join(program).is_file())
}

/// A child that is killed, with all that it has started, when this is dropped.
pub struct Owned(pub Child);

impl Owned {
    pub fn new(child: Child) -> Owned {
        adopt(child.id());
        Owned(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Kills it with all that it has started, and waits until it is gone.
    pub fn kill(&mut self) {
        // It leads its session and group; if it could not be made the leader, there is no such group.
        let group = nix::unistd::Pid::from_raw(self.pid() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.0.kill();
        let _ = self.0.wait();
        release(self.pid());
    }

    /// Starts it anew, once it has been killed.
    pub fn start_again(&mut self, command: &mut Command) -> std::io::Result<()> {
        self.0 = command.spawn()?;
        adopt(self.pid());
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.kill();
    }
}
