//! What Redis sends to a subscriber: bytes in, meaning out. It knows no socket.

use std::io::{self, Read};
use std::sync::Arc;

use redis::{Parser, RedisError, RedisResult, Value};

use crate::bus::envelope::{self, Payload, Unreadable, Versions};
use crate::store::UserId;

/// The largest value that is read; Redis's own bound for a string is 512 MiB.
const MAX_VALUE: usize = 64 << 20;
/// The PING that follows all subscriptions without which a line is not up: its answer confirms them.
pub(super) const ALL_LISTENING: &str = "all";

/// One thing that Redis has sent.
#[derive(Debug)]
pub enum Heard {
    /// A chat on a user's channel.
    Chat(UserId, Arc<[u8]>),
    /// A payload of one of our nodes, perhaps this one.
    Payload { payload: Payload, bytes: usize },
    /// Bytes on this channel that none of our nodes has written.
    Junk { channel: String, bytes: usize, error: Unreadable },
    /// A user's channel is subscribed to.
    Subscribed(UserId),
    /// Everything that was requested before the PING [`ALL_LISTENING`] is subscribed to.
    AllListening,
    /// An answer that needs no action: to AUTH, UNSUBSCRIBE, or a PING that checks the line.
    Nothing,
}

impl Heard {
    /// The size of the message in bytes; `None`: it is not a message.
    pub fn message_bytes(&self) -> Option<usize> {
        match self {
            Heard::Chat(_, chat) => Some(chat.len()),
            Heard::Payload { bytes, .. } | Heard::Junk { bytes, .. } => Some(*bytes),
            Heard::Subscribed(_) | Heard::AllListening | Heard::Nothing => None,
        }
    }
}

/// Reads RESP2, and resumes wherever the stream was interrupted.
pub struct Hearing {
    versions: Versions,
    parser: Parser,
    /// How much longer the value that is being read may get, in bytes.
    left: usize,
    /// Something was read since the last call of [`Hearing::has_spoken`].
    spoken: bool,
}

impl Default for Hearing {
    fn default() -> Hearing {
        Hearing::of(Versions::OURS)
    }
}

impl Hearing {
    /// For a node that reads these versions.
    pub(super) fn of(versions: Versions) -> Hearing {
        Hearing { versions, parser: Parser::new(), left: MAX_VALUE, spoken: false }
    }

    /// What comes next; `None`: the stream would block.
    ///
    /// # Errors
    /// The stream has ended or failed, is not RESP2, or contains a value of more than 64 MiB; or Redis refuses
    /// something, so that this line does not receive what it should. Nothing more is to be read then.
    pub fn next(&mut self, stream: impl Read) -> RedisResult<Option<Heard>> {
        let versions = self.versions;
        self.value(stream)?.map(|value| meaning(value, versions)).transpose()
    }

    fn value(&mut self, stream: impl Read) -> RedisResult<Option<Value>> {
        let source = Source { stream, left: &mut self.left, spoken: &mut self.spoken };
        match self.parser.parse_value(source) {
            Ok(value) => {
                self.left = MAX_VALUE;
                Ok(Some(value))
            }
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether anything was read since the last call.
    pub fn has_spoken(&mut self) -> bool {
        std::mem::take(&mut self.spoken)
    }
}

fn meaning(value: Value, versions: Versions) -> Result<Heard, RedisError> {
    let items = match value {
        Value::ServerError(error) => return Err(error.into()),
        Value::Array(items) => items,
        _ => return Ok(Heard::Nothing),
    };
    let mut items = items.into_iter();
    Ok(match (items.next(), items.next(), items.next()) {
        (Some(Value::BulkString(kind)), Some(Value::BulkString(channel)), Some(Value::BulkString(payload)))
            if kind == b"message" =>
        {
            message(&channel, &payload, versions)
        }
        (Some(Value::BulkString(kind)), Some(Value::BulkString(channel)), _) if kind == b"subscribe" => {
            user_of(&channel).map_or(Heard::Nothing, Heard::Subscribed)
        }
        (Some(Value::BulkString(kind)), Some(Value::BulkString(text)), _)
            if kind == b"pong" && text == ALL_LISTENING.as_bytes() =>
        {
            Heard::AllListening
        }
        _ => Heard::Nothing,
    })
}

fn message(channel: &[u8], payload: &[u8], versions: Versions) -> Heard {
    if let Some(user) = user_of(channel) {
        return Heard::Chat(user, payload.into());
    }
    let bytes = payload.len();
    match envelope::decode_as(versions, payload) {
        Ok(payload) => Heard::Payload { payload, bytes },
        Err(error) => Heard::Junk { channel: String::from_utf8_lossy(channel).into_owned(), bytes, error },
    }
}

/// The user that the channel belongs to; `None`: it is a node's.
fn user_of(channel: &[u8]) -> Option<UserId> {
    std::str::from_utf8(channel).ok()?.parse().ok()
}

/// What the parser reads from.
struct Source<'a, S> {
    stream: S,
    left: &'a mut usize,
    spoken: &'a mut bool,
}

impl<S: Read> Read for Source<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(n) if n > *self.left => return Err(io::Error::other("a value is larger than 64 MiB")),
                Ok(n) => {
                    *self.left -= n;
                    *self.spoken |= n > 0;
                    return Ok(n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel has given up: the parser's user must not take that for WouldBlock.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(io::Error::other(error)),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes in portions, with `WouldBlock` between them.
    struct Portions<'a> {
        rest: &'a [u8],
        /// Where the next gap is, as long as it is not behind.
        gap: usize,
    }

    impl Read for Portions<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.gap == 0 || self.rest.is_empty() {
                self.gap = usize::MAX;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let n = buffer.len().min(self.gap).min(self.rest.len());
            buffer[..n].copy_from_slice(&self.rest[..n]);
            self.rest = &self.rest[n..];
            self.gap -= n;
            Ok(n)
        }
    }

    const STREAM: &[u8] = b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$10\r\nchat:other\r\n:1\r\n\
        *3\r\n$7\r\nmessage\r\n$2\r\n17\r\n$8\r\n{}\r\n\0\r\n$\r\n-ERR no such thing\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n";

    fn values(mut source: Portions, hearing: &mut Hearing) -> Vec<Value> {
        let mut values = Vec::new();
        loop {
            match hearing.value(&mut source).expect("RESP2") {
                Some(value) => values.push(value),
                None if source.rest.is_empty() => return values,
                None => {}
            }
        }
    }

    #[test]
    fn a_value_may_be_cut_at_any_byte() {
        let whole = values(Portions { rest: STREAM, gap: usize::MAX }, &mut Hearing::default());
        assert_eq!(whole.len(), 5);
        let text = |text: &str| Value::BulkString(text.into());
        assert_eq!(whole[2], Value::Array(vec![text("message"), text("17"), text("{}\r\n\0\r\n$")]));
        for gap in 0..STREAM.len() {
            let cut = values(Portions { rest: STREAM, gap }, &mut Hearing::default());
            assert_eq!(cut, whole, "cut at {gap}");
        }
    }

    #[test]
    fn a_byte_at_a_time_is_as_good_as_all_at_once() {
        let mut hearing = Hearing::default();
        let one_by_one: Vec<Value> =
            STREAM.chunks(1).flat_map(|rest| values(Portions { rest, gap: usize::MAX }, &mut hearing)).collect();
        assert_eq!(one_by_one, values(Portions { rest: STREAM, gap: usize::MAX }, &mut Hearing::default()));
    }

    #[test]
    fn what_the_kernel_has_given_up_is_not_taken_for_a_pause() {
        struct GivenUp;
        impl Read for GivenUp {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::TimedOut.into())
            }
        }
        assert!(!Hearing::default().value(GivenUp).unwrap_err().is_timeout());
    }

    #[test]
    fn a_value_past_the_bound_is_not_read_to_its_end() {
        let mut hearing = Hearing { left: 20, ..Hearing::default() };
        let error = hearing.value(STREAM).unwrap_err();
        assert!(error.is_io_error() && !error.is_timeout(), "{error}");
    }
}
