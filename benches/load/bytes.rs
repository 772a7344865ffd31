//! Fields found by a byte search. That is enough for objects whose form is known, and costs the
//! generator and the floor next to nothing.

use memchr::{memchr, memmem};

/// The unsigned number at the front of `bytes`, and what follows it.
pub fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = bytes.split_at(digits);
    let number = |all: u64, digit: &u8| all.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
    (!digits.is_empty()).then(|| (digits.iter().fold(0, number), rest))
}

/// The unsigned number that follows the first `key`.
pub fn number_after(object: &[u8], key: &[u8]) -> Option<u64> {
    let (number, _) = number(&object[memmem::find(object, key)? + key.len()..])?;
    Some(number)
}

pub fn msgid(object: &[u8]) -> Option<u64> {
    // Most objects begin with it.
    match object.strip_prefix(b"{\"msgid\":") {
        Some(rest) => number(rest).map(|(number, _)| number),
        None => number_after(object, b"\"msgid\":"),
    }
}

/// What the generator writes into every text: `#number @at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Of the message, among those from its sender to its recipient or group.
    pub number: u64,
    /// When it was sent, or due, in nanoseconds of the generator's clock.
    pub at: u64,
}

/// The first mark, and what follows it.
pub fn mark(bytes: &[u8]) -> Option<(Mark, &[u8])> {
    let mut rest = bytes;
    loop {
        rest = &rest[memchr(b'#', rest)? + 1..];
        if let Some((number, behind)) = number(rest)
            && let Some(behind) = behind.strip_prefix(b" @")
            && let Some((at, behind)) = self::number(behind)
        {
            return Some((Mark { number, at }, behind));
        }
    }
}
