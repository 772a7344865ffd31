//! Why the bus cannot start, and what an operator can do about it.

use std::io;

use redis::{ErrorKind, RedisError};

/// Why the bus cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0} is not the address of a Redis that can be used: redis://[[USER]:PASSWORD@]HOST:PORT[/DATABASE]")]
    Url(RedisError),
    #[error("cannot reach Redis at {address}: {error}{}", advice(.error))]
    Unreachable { address: String, error: RedisError },
    #[error("cannot take a lease in Redis at {address}: {error}{}", advice(.error))]
    NoLease { address: String, error: RedisError },
    #[error("Redis at {0} accepts no subscription; allow its user &* +@pubsub")]
    NoSubscription(String),
    #[error("cannot start the bus")]
    System(#[from] io::Error),
}

/// What Redis replies when it does not serve us, and what an operator can do.
const ADVICE: [(&str, &str); 13] = [
    ("NOAUTH", "it requires a password: redis://:PASSWORD@HOST:PORT, in --redis or CHAT_REDIS"),
    ("WRONGPASS", "it does not accept the user or the password in --redis or CHAT_REDIS"),
    ("NOPERM", "allow its user ~chat:* &* +@connection +@pubsub +set +get +del +pttl +info"),
    ("DENIED", "its protected mode admits only its own machine: set a password there, or bind it to an address"),
    ("LOADING", "it is still loading its data: start again when it has finished"),
    ("READONLY", "it is a replica: name its master in --redis"),
    ("MASTERDOWN", "it is a replica: name its master in --redis"),
    ("OUT OF RANGE", "it has fewer databases: /0 always exists"),
    ("INCOMPATIBLE TYPE", "the server at that address is not a Redis"),
    ("MOVED", "it is a node of a Redis Cluster: name one that stands alone"),
    ("CLUSTERDOWN", "it is a node of a Redis Cluster: name one that stands alone"),
    ("MISCONF", "it accepts no writes while it cannot save its data: its log says why"),
    ("\"OOM\"", "its memory is full: raise its maxmemory"),
];

/// What an operator can do about an error of a start, to be appended to it.
fn advice(error: &RedisError) -> String {
    // The library shows some errors by the word that Redis replied, and some by its own name for it.
    let text = format!("{error} {}", error.detail().unwrap_or_default()).to_ascii_uppercase();
    let by_word = ADVICE.iter().find(|(word, _)| text.contains(word)).map(|(_, advice)| *advice);
    let by_kind = || match error.kind() {
        _ if error.is_timeout() => Some("it does not answer: is Redis listening there, and is it running?"),
        ErrorKind::Io => Some("is it running, and is that its address?"),
        ErrorKind::AuthenticationFailed => {
            Some("is the password in --redis or CHAT_REDIS the right one, or does it have none?")
        }
        _ => None,
    };
    by_word.or_else(by_kind).map_or(String::new(), |advice| format!("; {advice}"))
}
