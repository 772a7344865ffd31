//! The messages that are sent, and whether one has arrived as it was sent.
//!
//! Every text bears the number of its message, the time when it was sent or due, and a check of both:
//! `#12 @345678 ~0a1b2c3d see you at the station`. The receiving end knows its sender, and so every byte that must
//! come.

use std::io::Write;

use memchr::memchr;
use serde_json::Value;

use crate::bytes::number;
use crate::flags::Sizes;
use crate::stats::mix;

/// What fills a text up to the size of its object.
const FILLER: &[u8] =
    b" see you at the station, and bring the others along; the train leaves at noon, so do not be late";
const TIME: &str = "2026-01-02 03:04:05";
/// A text's last bytes are cut to size; fewer than these would say nothing about where it ends.
const LEAST_FILLER: usize = 4;

/// What one sender's messages have in common.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Up to the text, …
    head: Vec<u8>,
    /// … and from its closing quote on, without the closing brace.
    tail: Vec<u8>,
    pub msgid: u64,
    id: u64,
    name: String,
    /// What the recipient or the group is called, and is.
    to: (&'static str, u64),
    /// The sizes of whole objects, in bytes, where their fields leave room.
    size: Sizes,
    /// The salt of this run: messages of another run do not match.
    salt: u64,
}

/// The number of a message and when it was sent or due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub number: u64,
    pub at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// It arrived as it was sent.
    Whole(Mark),
    /// Something about it is not as it was sent; which message it is can still be recognized.
    Changed(Mark),
    /// Not even that can be recognized.
    Unknown,
}

pub struct Sender<'a> {
    pub id: u64,
    pub name: &'a str,
    /// "toid", "to" or "groupid".
    pub key: &'static str,
    pub to: u64,
}

impl Shape {
    /// `is_sorted`: with keys in the alphabet's order, as servers write them that parse and print each message.
    pub fn new(sender: &Sender<'_>, is_sorted: bool, size: Sizes, salt: u64) -> Shape {
        let Sender { id, name, key, to } = *sender;
        let msgid = if key == "groupid" { 10 } else { 6 };
        let (head, tail) = match (is_sorted, key) {
            (false, _) => (
                format!("{{\"msgid\":{msgid},\"id\":{id},\"name\":\"{name}\",\"{key}\":{to},\"msg\":\""),
                format!("\",\"time\":\"{TIME}\""),
            ),
            (true, "groupid") => (
                format!("{{\"groupid\":{to},\"id\":{id},\"msg\":\""),
                format!("\",\"msgid\":{msgid},\"name\":\"{name}\",\"time\":\"{TIME}\""),
            ),
            (true, _) => (
                format!("{{\"id\":{id},\"msg\":\""),
                format!("\",\"msgid\":{msgid},\"name\":\"{name}\",\"time\":\"{TIME}\",\"{key}\":{to}"),
            ),
        };
        let (head, tail, name) = (head.into_bytes(), tail.into_bytes(), name.to_owned());
        Shape { head, tail, msgid, id, name, to: (key, to), size, salt }
    }

    /// Appends message `mark.number`.
    pub fn write(&self, out: &mut Vec<u8>, mark: Mark, seq: Option<u64>) {
        let start = out.len();
        out.extend_from_slice(&self.head);
        self.write_text(out, start, mark, seq);
        out.extend_from_slice(&self.tail);
        // Writing to a vector cannot fail.
        let _ = match seq {
            Some(seq) => write!(out, ",\"seq\":{seq}}}"),
            None => out.write_all(b"}"),
        };
    }

    /// `start`: where the object begins in `out`.
    fn write_text(&self, out: &mut Vec<u8>, start: usize, mark: Mark, seq: Option<u64>) {
        let Mark { number, at } = mark;
        let _ = write!(out, "#{number} @{at} ~{:08x}", self.check_code(mark));
        let seq = seq.map_or(0, |seq| 7 + digits(seq));
        let others = out.len() - start + self.tail.len() + seq + 1;
        let mut left = self.size_of(mark).saturating_sub(others).max(LEAST_FILLER);
        while left > 0 {
            let part = left.min(FILLER.len());
            out.extend_from_slice(&FILLER[..part]);
            left -= part;
        }
    }

    /// The size of a message is known from its number, also to the receiving end.
    fn size_of(&self, mark: Mark) -> usize {
        let Sizes { low, high } = self.size;
        low + (self.hash(mark) % (high - low + 1) as u64) as usize
    }

    fn check_code(&self, mark: Mark) -> u32 {
        (self.hash(mark) >> 32) as u32
    }

    fn hash(&self, mark: Mark) -> u64 {
        mix(self.salt ^ mix(self.id.wrapping_add(mix(mark.number ^ mix(mark.at)))))
    }

    /// Has this shape's message arrived as it was sent? `scratch` saves allocations.
    pub fn check(&self, object: &[u8], with_seq: bool, scratch: &mut Vec<u8>) -> Check {
        let Some(mark) = self.mark_of(object) else { return Check::Unknown };
        scratch.clear();
        // A server puts a message on as it came, nearly always.
        self.write(scratch, mark, with_seq.then_some(mark.number));
        let is_whole = object == &scratch[..] || self.says_the_same(object, mark, with_seq);
        if is_whole { Check::Whole(mark) } else { Check::Changed(mark) }
    }

    /// What the text says, if its check code agrees.
    fn mark_of(&self, object: &[u8]) -> Option<Mark> {
        let mut rest = object;
        loop {
            rest = &rest[memchr(b'#', rest)? + 1..];
            let parsed = || {
                let (number, rest) = number(rest)?;
                let (at, rest) = self::number(rest.strip_prefix(b" @")?)?;
                let code = std::str::from_utf8(rest.strip_prefix(b" ~")?.get(..8)?).ok()?;
                let mark = Mark { number, at };
                (u32::from_str_radix(code, 16).ok()? == self.check_code(mark)).then_some(mark)
            };
            if let Some(mark) = parsed() {
                return Some(mark);
            }
        }
    }

    /// The same fields with the same values, whatever their order and notation.
    fn says_the_same(&self, object: &[u8], mark: Mark, with_seq: bool) -> bool {
        let Ok(object) = serde_json::from_slice::<Value>(object) else { return false };
        let mut text = self.head.clone();
        self.write_text(&mut text, 0, mark, with_seq.then_some(mark.number));
        let (key, to) = self.to;
        object["msgid"] == self.msgid
            && object["id"] == self.id
            && object["name"] == *self.name
            && object[key] == to
            && object["time"] == TIME
            && object["msg"].as_str().map(str::as_bytes) == Some(&text[self.head.len()..])
            && (!with_seq || object["seq"] == mark.number)
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}
