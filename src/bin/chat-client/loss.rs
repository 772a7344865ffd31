//! How a connection is lost.

use std::io;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum Loss {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("closed by the server")]
    Closed,
    /// It has not answered a ping.
    #[error("the server does not answer")]
    Silent,
    #[error("not a chat server")]
    NotAChatServer,
    /// It answered as TLS does, and was spoken to without.
    #[error("it uses TLS")]
    SpeaksTls,
}
