//! The server: flags, log, signals.

mod signals;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use chat_server::config::{Config, Stop};
use chat_server::logging;
use chat_server::server::{CannotListen, Hurried, Hurry, Server, advise, enough_memory};
use sd_notify::NotifyState;

fn main() -> ExitCode {
    let config = match Config::from_args(std::env::args_os()) {
        Ok(config) => config,
        Err(Stop::Help(text)) => {
            // A reader that is gone does not want it.
            let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
            return ExitCode::SUCCESS;
        }
        Err(Stop::Usage(line)) => return refuse(&line),
    };
    end_with_any_thread();
    let status = match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<CannotListen>() => refuse(&error.to_string()),
        Err(error) => {
            if log::log_enabled!(log::Level::Error) {
                log::error!("{error:#}");
            } else {
                logging::last_words(&format!("chat-server: {error:#}"));
            }
            if error.is::<Hurried>() { ExitCode::from(signals::INTERRUPTED) } else { ExitCode::FAILURE }
        }
    };
    logging::flush();
    status
}

/// For what an operator has to change in the command line.
fn refuse(line: &str) -> ExitCode {
    logging::last_words(&format!("chat-server: {line} (see --help)"));
    ExitCode::from(2)
}

fn run(config: &Config) -> anyhow::Result<()> {
    let start = || -> anyhow::Result<(Hurry, Server)> {
        enough_memory(config)?;
        logging::start().context("cannot start the log")?;
        let signals = signals::take().context("cannot take the signals")?;
        Ok((signals, Server::start(config)?))
    };
    let (signals, server) = start().map_err(|error| advise(error, config))?;
    tell_supervisor(NotifyState::Ready);
    let signal = signals.recv().context("the thread of the signals has ended")?;
    log::info!("{signal}: stopping; a second SIGTERM or SIGINT cuts that short");
    tell_supervisor(NotifyState::Stopping);
    server.stop(signals)?;
    log::info!("stopped");
    Ok(())
}

/// For systemd's `Type=notify`; without a supervisor that listens, nothing happens.
fn tell_supervisor(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("cannot notify the supervisor: {error}");
    }
}

/// A server that has lost one of its threads looks alive and serves only some clients: no server is better, and a
/// supervisor that notices. The message goes through the log's queue, since stderr may not be read.
fn end_with_any_thread() {
    std::panic::set_hook(Box::new(|info| {
        let backtrace = Backtrace::capture();
        let is_asked_for = backtrace.status() == BacktraceStatus::Captured;
        let backtrace = if is_asked_for { format!("\n{backtrace}") } else { String::new() };
        let thread = std::thread::current();
        logging::last_words(&format!("thread '{}' {info}{backtrace}", thread.name().unwrap_or("without a name")));
        logging::flush();
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
