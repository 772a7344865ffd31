//! Any thread: the types that reactors of one kind exchange, with their handlers, each other and other threads.

use super::reason::Reason;

/// What a [`Handler`](super::Handler) is parametrised by. It is a trait of its own, so that a mailbox and an
/// [`Io`](super::Io) can be named without the handler's methods.
pub trait Types: Sized {
    /// What reactors, and other threads, send to a reactor.
    type Letter: Send;
    /// Marks a message whose outcome matters to the handler.
    type Tag: Clone + Send;
    /// Names a timer. It should hold ids, never references: a timer is not cancelled.
    type Timer;
    /// What a handler tells the handler of another reactor about a connection that it gives to it.
    type Moved: Send;
    /// Why the handler closes connections.
    type Reason: Reason;
}

/// Which messages are taken back from a connection's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recall {
    /// Those that may take another route to a client that does not read.
    Reroutable,
    /// All that are tagged: its session ends.
    All,
}
