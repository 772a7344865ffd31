//! Main thread and thread `lives`: an acceptor with its thread, and what it says to clients that it turns away.

use std::thread::JoinHandle;

use anyhow::Result;

use super::threads::{join, vital_thread};
use crate::reactor::{Acceptor, AcceptorHandle, Handler};
use crate::wire::{Refusal, reply};

/// An acceptor and its thread.
pub(super) struct Door {
    handle: AcceptorHandle,
    thread: JoinHandle<()>,
}

impl Door {
    pub fn open<H: Handler + 'static>(name: &str, acceptor: Acceptor<H>, handle: AcceptorHandle) -> Result<Door> {
        Ok(Door { handle, thread: vital_thread(name, move || acceptor.run())? })
    }

    /// When this returns, no more connections are accepted.
    pub fn close(self) {
        self.handle.stop();
        join(self.thread);
    }
}

/// The message for a client that is turned away.
pub(super) fn refusal_of(refusal: &Refusal) -> Vec<u8> {
    let mut bytes = Vec::new();
    reply::refused(&mut bytes, None, None, refusal);
    bytes
}
