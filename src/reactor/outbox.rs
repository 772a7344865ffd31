//! Reactor thread: what waits to be written to one connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::time::Instant;

/// A message's bytes.
#[derive(Debug, Clone)]
pub enum Body<'a> {
    Borrowed(&'a [u8]),
    /// Encoded once, for many connections.
    Shared(&'a Arc<[u8]>),
}

impl Body<'_> {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Body::Borrowed(bytes) => bytes,
            Body::Shared(bytes) => bytes,
        }
    }
}

/// Below this size copying a shared body is cheaper than a reference and a place in the gathered
/// write of its own.
const COPY_BELOW: usize = 1024;

/// At most this many parts go into one `writev`.
const MAX_SLICES: usize = 64;

/// A queue of messages, each with a tag if the handler wants to know when it was written.
#[derive(Debug)]
pub struct Outbox<T> {
    messages: VecDeque<Queued<T>>,
    /// The bytes of the messages that were copied, and the prefixes of all others, in the messages' order.
    copied: Vec<u8>,
    /// How many bytes of `copied` belong to messages that are gone.
    copied_head: usize,
    /// How many bytes of the first message the kernel has taken.
    written: usize,
    /// What is queued and not written, in bytes.
    bytes: usize,
    /// The part of `bytes` that does not count towards the high-water mark.
    uncounted: usize,
    /// Messages that are not simply the next bytes of `copied`: shared ones, and those that stand
    /// alone.
    special: usize,
    /// When the kernel last took something, or the queue began to wait for it. The loop sets this
    /// and the next; they stand here since they mean nothing where nothing waits.
    pub(super) progress: Option<Instant>,
    /// When the queue went over the high-water mark.
    pub(super) over_since: Option<Instant>,
}

#[derive(Debug)]
struct Queued<T> {
    /// `None`: the bytes stand in `copied`.
    shared: Option<Arc<[u8]>>,
    /// Prefix, body and terminator.
    len: u32,
    /// The length of the prefix, which stands in `copied` in any case.
    prefix: u8,
    terminator: &'static [u8],
    /// Leaves in a write of its own.
    own_write: bool,
    /// Does not count towards the high-water mark.
    uncounted: bool,
    /// And since when it waits.
    tag: Option<(T, Instant)>,
}

impl<T> Queued<T> {
    fn is_special(&self) -> bool {
        self.shared.is_some() || self.own_write
    }

    /// How much of it stands in `copied`.
    fn copied(&self) -> usize {
        if self.shared.is_some() { self.prefix.into() } else { self.len as usize }
    }
}

/// How one message differs from others in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// It leaves in a write of its own, for clients that lose what shares a segment.
    pub own_write: bool,
    /// It does not count towards the high-water mark.
    pub uncounted: bool,
}

/// One message to be written.
pub struct Message<'a, T> {
    /// Precedes the body; 255 bytes at most. A message that is taken back comes without it.
    pub prefix: &'a [u8],
    pub body: Body<'a>,
    /// Follows the body.
    pub terminator: &'static [u8],
    /// Comes back through [`Handler::written`](super::Handler::written) once the kernel has taken the last byte, or
    /// through [`Handler::closed`](super::Handler::closed) if it never does.
    pub tag: Option<T>,
    pub options: SendOptions,
}

impl<'a, T> Message<'a, T> {
    /// Bytes as they are, with nothing around them and no tag.
    pub fn plain(bytes: &'a [u8]) -> Self {
        let body = Body::Borrowed(bytes);
        Message { prefix: b"", body, terminator: b"", tag: None, options: SendOptions::default() }
    }

    /// The same of bytes that many connections are sent.
    pub fn shared(bytes: &'a Arc<[u8]>) -> Self {
        Message { body: Body::Shared(bytes), ..Message::plain(b"") }
    }

    /// How many bytes are written.
    pub(super) fn len(&self) -> usize {
        self.prefix.len() + self.body.bytes().len() + self.terminator.len()
    }
}

/// A message that the kernel has not taken whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Unwritten<T> {
    pub tag: T,
    /// The body, with neither prefix nor terminator.
    pub body: Arc<[u8]>,
    /// Some of it was written: it is still in the outbox, and will be finished if it can.
    pub begun: bool,
}

/// How far one call of [`Outbox::write_to`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteResult {
    /// All is written.
    Empty,
    /// The socket takes no more; its writable event goes on.
    Blocked,
    /// A message that stands alone was written, and there is more.
    Boundary,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Outbox {
            messages: VecDeque::new(),
            copied: Vec::new(),
            copied_head: 0,
            written: 0,
            bytes: 0,
            uncounted: 0,
            special: 0,
            progress: None,
            over_since: None,
        }
    }
}

impl<T> Outbox<T> {
    /// Appends a message with what stands around it. An empty one with a tag is a barrier: it counts as
    /// written when all before it is.
    pub fn push(&mut self, message: Message<'_, T>, now: Instant) {
        let len = message.len();
        let Message { prefix, body, terminator, tag, options } = message;
        let SendOptions { own_write, uncounted } = options;
        let shared = match body {
            Body::Shared(bytes) if bytes.len() >= COPY_BELOW => Some(Arc::clone(bytes)),
            _ => None,
        };
        if !prefix.is_empty() {
            debug_assert!(prefix.len() <= u8::MAX.into());
            self.copied.extend_from_slice(prefix);
        }
        if shared.is_none() {
            self.copied.extend_from_slice(body.bytes());
            self.copied.extend_from_slice(terminator);
        }
        self.bytes += len;
        if uncounted {
            self.uncounted += len;
        }
        // An untagged message is never asked for again, so it joins its untagged neighbour.
        if let Some(last) = self.messages.back_mut()
            && shared.is_none()
            && last.shared.is_none()
            && last.tag.is_none()
            && tag.is_none()
            && !last.own_write
            && !last.uncounted
            && options == SendOptions::default()
            && let Ok(joined) = u32::try_from(last.len as usize + len)
        {
            last.len = joined;
            return;
        }
        let (prefix, tag) = (prefix.len() as u8, tag.map(|tag| (tag, now)));
        let message = Queued { shared, len: len as u32, prefix, terminator, own_write, uncounted, tag };
        self.special += usize::from(message.is_special());
        self.messages.push_back(message);
    }

    /// Bytes that wait to be written.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Bytes that count towards the high-water mark.
    pub fn counted(&self) -> usize {
        self.bytes - self.uncounted
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Since when the first of the messages with a tag waits.
    pub(super) fn waits_since(&self) -> Option<Instant> {
        self.messages.iter().find_map(|message| message.tag.as_ref()).map(|(_, since)| *since)
    }

    /// Writes until all is gone, the socket is full, or a message that stands alone was written.
    /// The tags of messages that were written whole are appended to `done`.
    pub fn write_to(&mut self, socket: &mut impl Write, done: &mut Vec<T>) -> io::Result<WriteResult> {
        self.finish_written(0, done); // barriers at the front
        while !self.messages.is_empty() {
            let own_write = self.messages[0].own_write;
            let (offered, wrote) = self.offer(socket);
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.finish_written(n, done);
                    if self.messages.is_empty() {
                        break;
                    }
                    if n < offered {
                        // A short write means a full socket, yet only WouldBlock promises an event.
                        continue;
                    }
                    if own_write {
                        return Ok(WriteResult::Boundary);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(WriteResult::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(WriteResult::Empty)
    }

    /// One write. Returns how many bytes it was offered, and took.
    fn offer(&self, socket: &mut impl Write) -> (usize, io::Result<usize>) {
        if self.special == 0 {
            // A plain write is a good part of a relayed message cheaper in the kernel.
            let bytes = &self.copied[self.copied_head + self.written..];
            return (bytes.len(), socket.write(bytes));
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (count, offered) = self.gather(&mut slices);
        (offered, socket.write_vectored(&slices[..count]))
    }

    /// Collects what one `writev` is offered: up to a message that stands alone, or just that one.
    fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; MAX_SLICES]) -> (usize, usize) {
        let (mut count, mut offered) = (0, 0);
        let mut add = |part: &'a [u8]| {
            slices[count] = IoSlice::new(part);
            count += 1;
            offered += part.len();
            count + 3 <= MAX_SLICES
        };
        // Neighbours in `copied` make one part.
        let (mut run_from, mut run_to) = (self.copied_head, self.copied_head);
        let mut skip = self.written;
        let mut room = true;
        for (i, message) in self.messages.iter().enumerate() {
            if !room || (message.own_write && i > 0) {
                break;
            }
            let copied = message.copied();
            run_from += skip.min(copied);
            run_to += copied;
            if let Some(body) = &message.shared {
                if run_to > run_from {
                    add(&self.copied[run_from..run_to]);
                    run_from = run_to;
                }
                let skip = skip.saturating_sub(copied);
                if skip < body.len() {
                    add(&body[skip..]);
                }
                room = add(&message.terminator[skip.saturating_sub(body.len())..]);
            }
            skip = 0;
            if message.own_write {
                break;
            }
        }
        if run_to > run_from {
            add(&self.copied[run_from..run_to]);
        }
        (count, offered)
    }

    /// The kernel has taken `n` more bytes.
    fn finish_written(&mut self, mut n: usize, done: &mut Vec<T>) {
        self.bytes -= n;
        while let Some(first) = self.messages.front() {
            let len = first.len as usize;
            let of_first = n.min(len - self.written);
            n -= of_first;
            self.written += of_first;
            if first.uncounted {
                self.uncounted -= of_first;
            }
            if self.written < len {
                break;
            }
            self.written = 0;
            self.copied_head += first.copied();
            if let Some(message) = self.messages.pop_front() {
                self.special -= usize::from(message.is_special());
                done.extend(message.tag.map(|(tag, _)| tag));
            }
        }
        if self.messages.is_empty() {
            self.copied.clear();
            self.copied_head = 0;
        } else if self.copied_head > 64 * 1024 && self.copied_head > self.copied.len() / 2 {
            self.copied.drain(..self.copied_head);
            self.copied_head = 0;
        }
    }

    /// Takes back the messages whose tag `wanted` picks. One that is begun stays queued, with its
    /// tag: half an object on the wire could never be followed; what is returned is a copy.
    pub fn recall(&mut self, wanted: impl Fn(&T) -> bool) -> Vec<Unwritten<T>>
    where
        T: Clone,
    {
        let (progress, over_since) = (self.progress, self.over_since);
        let (mut recalled, mut kept) = (Vec::new(), Outbox { progress, over_since, ..Outbox::default() });
        let mut at = self.copied_head;
        let mut begun = self.written;
        for message in std::mem::take(&mut self.messages) {
            let len = message.len as usize;
            let start = at;
            at += message.copied();
            let body = || match &message.shared {
                Some(body) => Arc::clone(body),
                None => Arc::from(&self.copied[start + usize::from(message.prefix)..at - message.terminator.len()]),
            };
            let is_begun = begun > 0;
            match &message.tag {
                Some((tag, _)) if wanted(tag) => {
                    recalled.push(Unwritten { tag: tag.clone(), body: body(), begun: is_begun });
                    if !is_begun {
                        continue;
                    }
                }
                _ => {}
            }
            kept.copied.extend_from_slice(&self.copied[start..at]);
            kept.bytes += len - begun;
            if message.uncounted {
                kept.uncounted += len - begun;
            }
            kept.special += usize::from(message.is_special());
            kept.messages.push_back(message);
            kept.written += begun;
            begun = 0;
        }
        *self = kept;
        recalled
    }

    /// No message that is queued stands alone any more.
    pub fn join(&mut self) {
        self.messages.iter_mut().for_each(|message| message.own_write = false);
        self.special = self.messages.iter().filter(|message| message.is_special()).count();
    }

    /// Makes an empty outbox ready for the next connection: large buffers are let go of.
    pub fn shrink(&mut self) {
        const KEEP: usize = 16 * 1024;
        if self.copied.capacity() > KEEP {
            self.copied = Vec::new();
        }
        if self.messages.capacity() > 256 {
            self.messages = VecDeque::new();
        }
        (self.progress, self.over_since) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes at most `room` bytes, then blocks.
    #[derive(Default)]
    struct Socket {
        room: usize,
        got: Vec<Vec<u8>>,
    }

    impl Write for Socket {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.write_vectored(&[IoSlice::new(bytes)])
        }
        fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let n = all.len().min(self.room);
            self.room -= n;
            self.got.push(all[..n].to_vec());
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const PLAIN: SendOptions = SendOptions { own_write: false, uncounted: false };

    fn own_write(own_write: bool) -> SendOptions {
        SendOptions { own_write, ..PLAIN }
    }

    fn push<T>(
        outbox: &mut Outbox<T>,
        prefix: &[u8],
        body: Body<'_>,
        terminator: &'static [u8],
        tag: Option<T>,
        options: SendOptions,
    ) {
        outbox.push(Message { prefix, body, terminator, tag, options }, Instant::now());
    }

    fn text(pieces: &[Vec<u8>]) -> Vec<u8> {
        pieces.concat()
    }

    #[test]
    fn everything_queued_leaves_in_one_write_wherever_the_bytes_lie() {
        let mut outbox = Outbox::default();
        let big: Arc<[u8]> = vec![b'x'; 5000].into();
        let mut expected = Vec::new();
        for i in 0..10 {
            push(&mut outbox, b"", Body::Borrowed(b"{small}"), b"\0", Some(i), PLAIN);
            push(&mut outbox, b"", Body::Shared(&big), b"\n", None, PLAIN);
            expected.extend_from_slice(b"{small}\0");
            expected.extend_from_slice(&big);
            expected.push(b'\n');
        }
        let (mut socket, mut done) = (Socket { room: usize::MAX, ..Socket::default() }, Vec::new());
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Empty);
        assert_eq!((socket.got.len(), done), (1, (0..10).collect()));
        assert_eq!(text(&socket.got), expected);
    }

    #[test]
    fn a_write_cut_at_every_byte_loses_and_repeats_nothing() {
        let big: Arc<[u8]> = vec![b'x'; 1030].into();
        for cut in 0..2200 {
            let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
            for i in 0..6 {
                let body = if i % 3 == 1 { Body::Shared(&big) } else { Body::Borrowed(b"0123456") };
                push(&mut outbox, b"", body.clone(), b"\r\n", (i % 2 == 0).then_some(i), own_write(i == 4));
                expected.extend_from_slice(match &body {
                    Body::Borrowed(bytes) => bytes,
                    Body::Shared(bytes) => bytes,
                });
                expected.extend_from_slice(b"\r\n");
            }
            let (mut socket, mut done) = (Socket { room: cut, ..Socket::default() }, Vec::new());
            let mut turns = 0;
            while outbox.write_to(&mut socket, &mut done).unwrap() != WriteResult::Empty {
                socket.room += 700;
                turns += 1;
                assert!(turns < 20);
            }
            assert_eq!((text(&socket.got), &done[..]), (expected, &[0, 2, 4][..]), "cut at {cut}");
        }
    }

    #[test]
    fn a_prefix_is_written_once_wherever_the_write_is_cut_and_is_not_handed_back() {
        let big: Arc<[u8]> = vec![b'x'; 1030].into();
        let bodies = || [Body::Shared(&big), Body::Borrowed(b"small"), Body::Shared(&big), Body::Borrowed(b"ack")];
        for cut in 0..2200 {
            let (mut outbox, mut expected) = (Outbox::default(), Vec::new());
            for (tag, body) in bodies().into_iter().enumerate() {
                let prefix = format!("<{}>", body.bytes().len());
                expected.extend_from_slice(&[prefix.as_bytes(), body.bytes()].concat());
                push(&mut outbox, prefix.as_bytes(), body, b"", (tag < 3).then_some(tag), own_write(tag == 2));
            }
            let (mut socket, mut done) = (Socket { room: cut, ..Socket::default() }, Vec::new());
            while outbox.write_to(&mut socket, &mut done).unwrap() == WriteResult::Boundary {}
            let (written, gone) = (text(&socket.got).len(), done.len());
            // What is begun is finished, and what is not is handed back; the rest stays.
            let recalled = outbox.recall(|_| true);
            for Unwritten { tag, body, .. } in &recalled {
                assert_eq!(**body, *bodies()[*tag].bytes(), "cut at {cut}");
            }
            let begun = recalled.iter().filter(|message| message.begun).count();
            assert_eq!((gone + recalled.len(), begun <= 1), (3, true), "cut at {cut}");
            socket.room = usize::MAX;
            while outbox.write_to(&mut socket, &mut done).unwrap() != WriteResult::Empty {}
            let (got, last) = (text(&socket.got), b"<3>ack");
            if written < expected.len() - last.len() {
                let (front, behind) = got.split_at(got.len() - last.len());
                assert_eq!((front, behind), (&expected[..front.len()], &last[..]), "cut at {cut}");
                let ends = [0, 1036, 1044, 2080];
                assert!(ends.contains(&front.len()) && front.len() >= written, "cut at {cut}: {}", front.len());
            } else {
                assert_eq!(got, expected, "cut at {cut}");
            }
            assert_eq!((outbox.len(), outbox.counted()), (0, 0));
        }
    }

    #[test]
    fn a_message_that_stands_alone_shares_its_write_with_nobody() {
        let mut outbox: Outbox<()> = Outbox::default();
        for (text, is_alone) in [("a", false), ("b", false), ("ACK", true), ("c", false), ("d", false)] {
            push(&mut outbox, b"", Body::Borrowed(text.as_bytes()), b"", None, own_write(is_alone));
        }
        let (mut socket, mut done) = (Socket { room: 100, ..Socket::default() }, Vec::new());
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Boundary);
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Empty);
        assert_eq!(socket.got, [b"ab".to_vec(), b"ACK".to_vec(), b"cd".to_vec()]);
    }

    #[test]
    fn recall_takes_whole_messages_and_copies_the_one_that_is_begun() {
        let mut outbox = Outbox::default();
        for i in 0..4 {
            push(&mut outbox, b"", Body::Borrowed(format!("message{i}").as_bytes()), b"\n", Some(i), PLAIN);
            push(&mut outbox, b"", Body::Borrowed(b"ack"), b"\n", None, PLAIN);
        }
        let (mut socket, mut done) = (Socket { room: 3, ..Socket::default() }, Vec::new());
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Blocked);
        let recalled = outbox.recall(|tag| *tag != 2);
        let seen: Vec<_> = recalled.iter().map(|m| (m.tag, &*m.body, m.begun)).collect();
        assert_eq!(seen, [(0, &b"message0"[..], true), (1, b"message1", false), (3, b"message3", false)]);
        socket.room = usize::MAX;
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Empty);
        assert_eq!(text(&socket.got), b"message0\nack\nack\nmessage2\nack\nack\n");
        assert_eq!((done, outbox.counted()), (vec![0, 2], 0));
    }

    #[test]
    fn a_barrier_counts_as_written_when_all_before_it_is() {
        let mut outbox = Outbox::default();
        let (mut socket, mut done) = (Socket { room: 2, ..Socket::default() }, Vec::new());
        push(&mut outbox, b"", Body::Borrowed(b""), b"", Some(1), PLAIN);
        outbox.write_to(&mut socket, &mut done).unwrap();
        assert_eq!(done, [1]);
        push(&mut outbox, b"", Body::Borrowed(b"abc"), b"", Some(2), PLAIN);
        push(&mut outbox, b"", Body::Borrowed(b""), b"", Some(3), PLAIN);
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Blocked);
        assert_eq!(done, [1]);
        socket.room = 1;
        assert_eq!(outbox.write_to(&mut socket, &mut done).unwrap(), WriteResult::Empty);
        assert_eq!(done, [1, 2, 3]);
    }

    #[test]
    fn exempt_bytes_do_not_count_wherever_they_stand() {
        let mut outbox = Outbox::default();
        push(&mut outbox, b"", Body::Borrowed(b"chat"), b"", Some(1), PLAIN);
        push(&mut outbox, b"", Body::Borrowed(&[b'r'; 1000]), b"", Some(2), SendOptions { uncounted: true, ..PLAIN });
        push(&mut outbox, b"", Body::Borrowed(b"more"), b"", Some(3), PLAIN);
        assert_eq!((outbox.counted(), outbox.len()), (8, 1008));
        let mut socket = Socket { room: 104, ..Socket::default() };
        outbox.write_to(&mut socket, &mut Vec::new()).unwrap();
        assert_eq!((outbox.counted(), outbox.len()), (4, 904));
        outbox.recall(|tag| *tag == 3);
        assert_eq!((outbox.counted(), outbox.len()), (0, 900));
        socket.room = usize::MAX;
        outbox.write_to(&mut socket, &mut Vec::new()).unwrap();
        assert_eq!((outbox.counted(), outbox.len()), (0, 0));
    }
}
