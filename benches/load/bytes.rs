//! Fields found by a byte search. That is enough for objects whose form is known, and costs the
//! generator and the floor next to nothing.

use memchr::memmem;

/// The unsigned number that follows the first `key`.
pub fn number_after(object: &[u8], key: &[u8]) -> Option<u64> {
    let digits = &object[memmem::find(object, key)? + key.len()..];
    let mut number = None;
    for digit in digits.iter().take_while(|byte| byte.is_ascii_digit()) {
        number = Some(number.unwrap_or(0u64).wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    }
    number
}

pub fn msgid(object: &[u8]) -> Option<u64> {
    number_after(object, b"\"msgid\":")
}
