//! An object's members as they stand, to be renamed and written again.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The members of one object in their order, each value as the text that came.
#[derive(Debug, Default)]
pub(in crate::wire) struct Members<'a>(pub Vec<(Cow<'a, str>, &'a str)>);

impl<'a> Members<'a> {
    /// `None`: it is no JSON object.
    pub fn parse(object: &'a [u8]) -> Option<Members<'a>> {
        serde_json::from_slice(object).ok()
    }

    /// The first value of this key.
    pub fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| *value)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Vec<(Cow<'de, str>, &'de str)>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    members.push((key, map.next_value::<&RawValue>()?.get()));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object).map(Members)
    }
}

/// `Cow` itself would always copy.
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// An object that is being written, without blanks.
pub(super) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Writer<'o> {
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Writer { out, is_empty: true }
    }

    pub fn member(&mut self, key: &str, value: &str) {
        self.member_with(key, |out| {
            out.extend_from_slice(value.as_bytes());
            true
        });
    }

    /// `value` writes the value, and returns whether there is one; if not, there is no member.
    pub fn member_with(&mut self, key: &str, value: impl FnOnce(&mut Vec<u8>) -> bool) {
        let from = self.out.len();
        if !self.is_empty {
            self.out.push(b',');
        }
        string(self.out, key);
        self.out.push(b':');
        let begin = self.out.len();
        if value(self.out) {
            self.is_empty = false;
            strip_blanks(self.out, begin);
        } else {
            self.out.truncate(from);
        }
    }

    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// Strips the blanks out of the array or the object that begins here; other values have none outside strings.
fn strip_blanks(out: &mut Vec<u8>, begin: usize) {
    if !matches!(out.get(begin), Some(b'[' | b'{')) {
        return;
    }
    let (mut end, mut in_string, mut is_escaped) = (begin, false, false);
    for at in begin..out.len() {
        let byte = out[at];
        if in_string {
            in_string = byte != b'"' || is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
        } else if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            continue;
        } else {
            in_string = byte == b'"';
        }
        out[end] = byte;
        end += 1;
    }
    out.truncate(end);
}

/// Writes `text` as a JSON string.
pub(in crate::wire) fn string(out: &mut Vec<u8>, text: &str) {
    // Writing a string into a Vec cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// Writes what `write` writes as a JSON string.
pub(super) fn string_of(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let mut text = Vec::new();
    write(&mut text);
    string(out, &String::from_utf8_lossy(&text));
}

/// Writes an array; `element` is called with each element of `list` as it stands. What is no array stays as it is.
pub(super) fn array(list: &str, out: &mut Vec<u8>, mut element: impl FnMut(&str, &mut Vec<u8>)) {
    let Some(elements) = elements(list) else { return out.extend_from_slice(list.as_bytes()) };
    out.push(b'[');
    for (at, text) in elements.into_iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        element(text, out);
    }
    out.push(b']');
}

/// The elements of a JSON array, as they stand; `None`: it is none.
pub(in crate::wire) fn elements(array: &str) -> Option<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(array).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
}
