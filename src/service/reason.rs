//! Why the service closes connections.

use crate::metrics::{Label, labels};

labels! {
    /// Why the service has a connection closed; counted and logged once.
    pub enum Reason as "reason" {
        /// The client closed, and everything it had sent is settled.
        ByClient = "closed by the client",
        /// The client had gone before its login or registration was answered.
        HungUp = "hung up",
        /// The stream could not be followed any further.
        Unfollowable = "input could not be followed",
        TooLarge = "message too large",
        /// The proxy that it comes from did not say whose it is.
        BadProxyHeader = "no PROXY header",
        /// It does not come from the proxy, and may not claim to.
        NotTheProxy = "not from the proxy",
        /// Its address has as many connections as it may.
        AddressFull = "too many connections of its address",
        LoginTimeout = "no login in time",
        IdleTimeout = "idle",
        /// Its session has ended, and the client has not read the rest of a message that it had begun to read.
        HalfWritten = "slow consumer half written",
        ShuttingDown = "shutting down",
        /// Its user may be logged in elsewhere.
        ClaimLost = "claim lost",
        /// Its HTTP request was answered.
        Http = "http",
    }
}

impl crate::reactor::Reason for Reason {
    const ALL: &'static [Reason] = <Reason as Label>::ALL;

    fn text(self) -> &'static str {
        Reason::text(self)
    }
}
