//! Any thread: why connections are closed, by the reactor itself or by its handler.

use std::fmt::Debug;

/// Why a handler closes a connection, in its own words. The reactor carries it to
/// [`Handler::closed`](super::Handler::closed), and counts the connections that were closed for each.
pub trait Reason: Copy + PartialEq + Debug + Send + 'static {
    /// All of them; one that is missing here is not counted.
    const ALL: &'static [Self];

    /// For people, in lower case; with `_` for every blank it is the label `reason` of
    /// `chat_connections_closed_total`.
    fn text(self) -> &'static str;
}

/// For handlers that need not tell their reasons apart.
impl Reason for () {
    const ALL: &'static [()] = &[()];

    fn text(self) -> &'static str {
        "closed by the handler"
    }
}

/// Why a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason<R> {
    /// The handler closed it. It stays the reason, however long the client then took to read the rest.
    Handler(R),
    /// The system reported an error: the connection was reset, timed out, or became unreachable.
    SocketError,
    /// The client did not read, so that its queue stayed above a mark, or passed one that is absolute.
    SlowConsumer(Mark),
}

/// The mark for which a client that does not read is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// More than [`Limits::high_water`](super::Limits::high_water) was queued, and 10 s later its client had not read
    /// all of the rest.
    HighWater,
    /// The same with its share of [`Limits::total`](super::Limits::total), while all queues together held more.
    Share,
    /// More than [`Limits::hard`](super::Limits::hard) was queued.
    Hard,
    /// More than its share was queued, while all queues together held more than twice `total`.
    HardShare,
}

impl<R: Reason> CloseReason<R> {
    const OWN: [Self; 5] = [
        CloseReason::SocketError,
        CloseReason::SlowConsumer(Mark::HighWater),
        CloseReason::SlowConsumer(Mark::Share),
        CloseReason::SlowConsumer(Mark::Hard),
        CloseReason::SlowConsumer(Mark::HardShare),
    ];

    /// All of them: the reactor's, then the handler's.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::OWN.into_iter().chain(R::ALL.iter().copied().map(CloseReason::Handler))
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            CloseReason::Handler(reason) => reason.text(),
            CloseReason::SocketError => "socket error",
            CloseReason::SlowConsumer(Mark::HighWater) => "slow consumer high water",
            CloseReason::SlowConsumer(Mark::Share) => "slow consumer share",
            CloseReason::SlowConsumer(Mark::Hard) => "slow consumer hard mark",
            CloseReason::SlowConsumer(Mark::HardShare) => "slow consumer hard share",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_text_of_its_own() {
        let texts: Vec<_> = CloseReason::<()>::all().map(CloseReason::text).collect();
        let mut apart = texts.clone();
        apart.sort_unstable();
        apart.dedup();
        assert_eq!((texts.len(), apart.len()), (6, 6), "{texts:?}");
    }
}
