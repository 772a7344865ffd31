//! Any thread: how the others are started, and how their end is waited for.

use std::thread::JoinHandle;

use anyhow::{Context, Result};

/// Starts a named thread.
pub(super) fn thread(name: impl Into<String>, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let name = name.into();
    std::thread::Builder::new().name(name.clone()).spawn(run).with_context(|| format!("cannot start {name}"))
}

/// Starts a thread without which the server cannot go on: if it fails, the process ends. A server without one of its
/// reactors would look alive, and serve only some of its users.
pub(super) fn vital_thread(
    name: impl Into<String>,
    run: impl FnOnce() -> std::io::Result<()> + Send + 'static,
) -> Result<JoinHandle<()>> {
    let name = name.into();
    thread(name.clone(), move || {
        if let Err(error) = run() {
            log::error!("{name} cannot go on: {error}");
            crate::logging::exit(70);
        }
    })
}

pub(super) fn join(thread: JoinHandle<()>) {
    // A panic has ended the process already.
    let _ = thread.join();
}
