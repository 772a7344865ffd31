//! Objects in a stream, and fields found by a byte search. That is enough for objects whose form is known, and costs the
//! generator and the floor next to nothing.

use memchr::memmem;

/// What is in an input buffer.
pub enum Piece {
    /// One object or line, in this part of the buffer.
    Whole { start: usize, end: usize },
    /// Nothing whole is left; the first `skip` bytes are of no use.
    Partial { skip: usize },
}

/// The unsigned number at the front of `bytes`, and what follows it.
pub fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = bytes.split_at(digits);
    let number = |all: u64, digit: &u8| all.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
    (!digits.is_empty()).then(|| (digits.iter().fold(0, number), rest))
}

/// The number that follows the first `key`; one below 0 is `None`.
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

/// What a reply reports: 0 is success, also where it says nothing. Some servers write `error` for `errno`.
pub fn errno(reply: &[u8]) -> i64 {
    let after = |key: &[u8]| {
        let rest = &reply[memmem::find(reply, key)? + key.len()..];
        let (sign, rest) = rest.strip_prefix(b"-").map_or((1, rest), |rest| (-1, rest));
        number(rest).map(|(number, _)| sign * number as i64)
    };
    after(b"\"errno\":").or_else(|| after(b"\"error\":")).unwrap_or(0)
}
