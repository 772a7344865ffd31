//! Who lives: this node's lease, and the nodes whose lease has run out.

use crossbeam_channel::{Receiver, Sender, bounded};

/// Has the keeper check this node's claims at once.
#[derive(Clone)]
pub(super) struct Waker(Sender<()>);

impl Waker {
    pub fn new() -> (Waker, Receiver<()>) {
        let (sender, receiver) = bounded(1);
        (Waker(sender), receiver)
    }

    pub fn wake(&self) {
        // Full: it is about to check anyway.
        let _ = self.0.try_send(());
    }
}
