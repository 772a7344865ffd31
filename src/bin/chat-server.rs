//! The server: flags, log, signals.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use chat_server::config::{Config, Stop};
use chat_server::server::{CannotListen, Server};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The exit status when a second signal cuts the end short, as a shell reports Ctrl-C.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(Stop::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Stop::Usage(line)) => return refuse(&line),
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    end_with_any_thread();
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<CannotListen>() => refuse(&error.to_string()),
        Err(error) => {
            log::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// For what an operator has to change in the command line.
fn refuse(line: &str) -> ExitCode {
    eprintln!("chat-server: {line} (--help tells more)");
    ExitCode::from(2)
}

fn run(config: &Config) -> anyhow::Result<()> {
    // Armed by the first signal, so that the second ends the process at once.
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED, Arc::clone(&stopping))?;
        signal_hook::flag::register(signal, Arc::clone(&stopping))?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let server = Server::start(config)?;
    tell_supervisor(NotifyState::Ready);
    signals.forever().next();
    log::info!("stopping; a second signal ends at once");
    tell_supervisor(NotifyState::Stopping);
    server.stop()?;
    log::info!("stopped");
    Ok(())
}

/// For systemd's `Type=notify`; without a supervisor that listens, nothing happens.
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("cannot tell the supervisor: {error}");
    }
}

/// A server that has lost one of its threads looks alive and serves only some: better none, and a
/// supervisor that notices.
fn end_with_any_thread() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_dead_thread_does_not_leave_a_process_that_looks_alive() {
        const CHILD: &str = "CHAT_SERVER_TEST_CHILD";
        const SIGABRT: i32 = 6;
        if std::env::var_os(CHILD).is_some() {
            end_with_any_thread();
            let _ = std::thread::spawn(|| panic!("a reactor dies")).join();
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "tests::a_dead_thread_does_not_leave_a_process_that_looks_alive"]).env(CHILD, "1");
        let status = child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), Some(SIGABRT), "{status}");
    }
}
