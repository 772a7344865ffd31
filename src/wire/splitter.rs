//! Finds where one JSON object ends in a stream that may be cut at any byte.

use memchr::memchr2;

use super::MAX_NESTING;
use super::opening::{Found, LENGTH, Opening, SHORTEST, is_separator, length};
use super::proxy::{BadHeader, ProxyHeader};

/// What [`Splitter::next`] found at the front of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// A balanced object stands at `start..end` of the input. It is not yet known to be valid
    /// JSON: only braces, brackets and strings were looked at.
    Object { start: usize, end: usize },
    /// No whole object yet. The first `skip` bytes are separators and may be dropped; the rest
    /// must be given again, with more behind it.
    Partial { skip: usize },
}

/// Why the input cannot be followed any further; the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("a message must be one JSON object")]
    NotAnObject,
    #[error("nesting is deeper than {MAX_NESTING}")]
    TooDeep,
    #[error("message too large")]
    TooLarge,
    #[error("a message must end where its length says")]
    WrongLength,
    /// An HTTP request has begun instead of the first object. This is said of all that follows, too.
    #[error("a message must be one JSON object")]
    Http,
}

/// Whether a length stands before each object.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Lengths {
    #[default]
    Never,
    /// The first object is being read, and begins as one with a length would.
    Perhaps,
    Always,
}

/// Resumable boundary search over one connection's input.
///
/// The state survives from call to call, so a byte is looked at once however finely the stream is
/// cut. The caller keeps the bytes: after [`Split::Partial`] it passes the same input again (less
/// the skipped separators), with whatever has come since appended.
#[derive(Debug, Default, Clone)]
pub struct Splitter {
    /// How far into the unfinished object the search has come.
    scanned: u32,
    /// Open braces and brackets; 0 means between objects.
    depth: u8,
    in_string: bool,
    /// The last byte looked at was a backslash inside a string.
    escaped: bool,
    opening: Opening,
    lengths: Lengths,
}

impl Splitter {
    /// For a client of which it is known whether it puts a length before each object.
    pub fn of_known(has_lengths: bool) -> Splitter {
        let lengths = if has_lengths { Lengths::Always } else { Lengths::Never };
        Splitter { opening: Opening::of_known(has_lengths), lengths, ..Splitter::default() }
    }

    /// A PROXY header must come before everything else, and be read by [`Splitter::proxy_header`].
    pub fn expect_proxy(&mut self) {
        self.opening = self.opening.proxied();
    }

    /// Whether that has still to come.
    pub fn expects_proxy(&self) -> bool {
        self.opening.is_proxied()
    }

    /// Reads the PROXY header at the front of `input`; `None`: none is due, or it is not whole yet.
    ///
    /// # Errors
    /// There is no header, though one is due. The connection must be closed.
    pub fn proxy_header(&mut self, input: &[u8]) -> Result<Option<ProxyHeader>, BadHeader> {
        self.opening.proxy(input)
    }

    /// True while an object has begun and not ended; the stream's end here is an error.
    pub fn inside_object(&self) -> bool {
        self.depth > 0 || self.opening.is_begun()
    }

    /// Whether the client puts a length before each object, as the first one has shown.
    pub fn has_lengths(&self) -> bool {
        self.lengths == Lengths::Always
    }

    /// Whether the stream may end here, behind `rest` bytes that were left.
    pub fn may_end(&self, rest: usize) -> bool {
        !self.inside_object() && (rest == 0 || self.opening.may_end())
    }

    /// Looks for the end of the first object in `input`, whose size may be `max_object` bytes at
    /// most. After an error the splitter must not be used again.
    pub fn next(&mut self, input: &[u8], max_object: usize) -> Result<Split, Broken> {
        if !self.opening.is_over() {
            return self.open(input, max_object);
        }
        match self.lengths {
            Lengths::Never => self.next_object(input, max_object),
            Lengths::Perhaps | Lengths::Always => self.behind_length(input, max_object),
        }
    }

    /// Looks for the first object of the connection.
    #[cold]
    fn open(&mut self, input: &[u8], max_object: usize) -> Result<Split, Broken> {
        match self.opening.next(input, max_object) {
            Found::Nothing { skip } => Ok(Split::Partial { skip }),
            Found::Http => Err(Broken::Http),
            Found::Length => {
                self.lengths = Lengths::Perhaps;
                self.behind_length(input, max_object)
            }
            Found::Object { skip } => Ok(match self.next_object(&input[skip..], max_object)? {
                Split::Object { start, end } => Split::Object { start: skip + start, end: skip + end },
                Split::Partial { skip: more } => Split::Partial { skip: skip + more },
            }),
        }
    }

    /// Before the object stands its length.
    fn behind_length(&mut self, input: &[u8], max_object: usize) -> Result<Split, Broken> {
        let Some((head, object)) = input.split_at_checked(LENGTH) else { return Ok(Split::Partial { skip: 0 }) };
        let length = length(head);
        if length > max_object {
            return Err(Broken::TooLarge);
        }
        if length < SHORTEST {
            return Err(Broken::WrongLength);
        }
        if self.depth == 0 && object.first().is_some_and(|first| *first != b'{') {
            return Err(Broken::NotAnObject);
        }
        let found = self.next_object(&object[..object.len().min(length)], max_object)?;
        match found {
            Split::Object { end, .. } if end == length => {
                self.lengths = Lengths::Always;
                Ok(Split::Object { start: LENGTH, end: LENGTH + end })
            }
            Split::Partial { .. } if object.len() < length => Ok(Split::Partial { skip: 0 }),
            // What looked like a length was none: it is read again, as blanks and what follows them.
            _ if self.lengths == Lengths::Perhaps => {
                *self = Splitter::of_known(false);
                self.open(input, max_object)
            }
            _ => Err(Broken::WrongLength),
        }
    }

    #[inline]
    fn next_object(&mut self, input: &[u8], max_object: usize) -> Result<Split, Broken> {
        let mut start = 0;
        if self.depth == 0 {
            start = input.iter().position(|&b| !is_separator(b)).unwrap_or(input.len());
            match input.get(start) {
                None => return Ok(Split::Partial { skip: start }),
                Some(b'{') => {
                    self.depth = 1;
                    self.scanned = 1;
                }
                Some(_) => return Err(Broken::NotAnObject),
            }
        }
        let object = &input[start..];
        // One byte past the limit is enough to know that the object is too large.
        let window = &object[..object.len().min(max_object.saturating_add(1))];
        match self.scan(window)? {
            Some(end) if end <= max_object => Ok(Split::Object { start, end: start + end }),
            None if object.len() <= max_object => Ok(Split::Partial { skip: start }),
            _ => Err(Broken::TooLarge),
        }
    }

    /// Continues over `object`, which begins with the unfinished object's first byte. Returns the
    /// length of the object when its last brace is found.
    fn scan(&mut self, object: &[u8]) -> Result<Option<usize>, Broken> {
        let mut at = self.scanned as usize;
        while at < object.len() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                    at += 1;
                    continue;
                }
                match memchr2(b'"', b'\\', &object[at..]) {
                    None => {
                        at = object.len();
                        break;
                    }
                    Some(skip) => {
                        at += skip;
                        if object[at] == b'"' {
                            self.in_string = false;
                        } else {
                            self.escaped = true;
                        }
                    }
                }
            } else {
                match object[at] {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => {
                        self.depth += 1;
                        if u32::from(self.depth) > MAX_NESTING {
                            return Err(Broken::TooDeep);
                        }
                    }
                    b'}' | b']' => {
                        self.depth -= 1;
                        if self.depth == 0 {
                            *self = Splitter { opening: self.opening, lengths: self.lengths, ..Splitter::default() };
                            return Ok(Some(at + 1));
                        }
                    }
                    _ => {}
                }
            }
            at += 1;
        }
        // A flag sets the largest object; an offset past 4 GiB cannot come up.
        self.scanned = u32::try_from(at).map_err(|_| Broken::TooLarge)?;
        Ok(None)
    }
}

/// The object that a text message is: there may be separators around it, and nothing else.
///
/// # Errors
/// It is not one object, or nests too deep.
pub fn one_object(text: &[u8]) -> Result<&[u8], Broken> {
    match Splitter::of_known(false).next(text, text.len())? {
        Split::Object { start, end } if text[end..].iter().copied().all(is_separator) => Ok(&text[start..end]),
        Split::Object { .. } | Split::Partial { .. } => Err(Broken::NotAnObject),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::opening::BYTE_ORDER_MARK;

    fn split_all(input: &[u8]) -> Result<Vec<&[u8]>, Broken> {
        let (mut splitter, mut at, mut found) = (Splitter::default(), 0, Vec::new());
        loop {
            match splitter.next(&input[at..], 100)? {
                Split::Object { start, end } => {
                    found.push(&input[at + start..at + end]);
                    at += end;
                }
                Split::Partial { .. } => return Ok(found),
            }
        }
    }

    #[test]
    fn objects_are_found_between_any_separators() {
        let found = split_all(b"\0 {\"a\":1}{\"b\":\"}\\\"{\"}\0\r\n\t{\"c\":[{}]}\n{").unwrap();
        assert_eq!(found, [&b"{\"a\":1}"[..], b"{\"b\":\"}\\\"{\"}", b"{\"c\":[{}]}"]);
    }

    #[test]
    fn what_is_no_object_is_broken() {
        for input in [&b"hello"[..], b"[1,2]", b" 1", b"\"{}\"", b"\xff{}"] {
            assert_eq!(split_all(input), Err(Broken::NotAnObject));
        }
    }

    #[test]
    fn a_text_message_is_one_object() {
        for text in ["{\"a\":\"}{\"}", "\r\n{}\n", "\u{feff} {}\0"] {
            assert_eq!(
                one_object(text.as_bytes()),
                Ok(text.trim_matches(['\u{feff}', '\r', '\n', ' ', '\0']).as_bytes())
            );
        }
        for text in ["", " ", "{", "{}{}", "{} x", "{}\u{feff}", "[]", "hello", "G", "GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(one_object(text.as_bytes()), Err(Broken::NotAnObject), "{text:?}");
        }
        assert_eq!(one_object("[".repeat(40).replacen('[', "{\"a\":", 1).as_bytes()), Err(Broken::TooDeep));
    }

    #[test]
    fn an_http_request_is_told_from_what_is_no_object() {
        let mut splitter = Splitter::default();
        for input in [&b"G"[..], b"GET", b"\x81\x80\0\0\0\0", b"{}"] {
            assert_eq!(splitter.next(input, 100), Err(Broken::Http), "{input:?}");
        }
        assert_eq!(split_all(b"{}GET"), Err(Broken::NotAnObject));
        assert_eq!(Splitter::of_known(false).next(b"GET", 100), Err(Broken::NotAnObject));
    }

    #[test]
    fn one_byte_order_mark_is_skipped_before_the_first_object_and_nowhere_else() {
        let mark = "\u{feff}";
        for (input, objects) in [
            (format!("{mark}{{}}{{}}"), 2),
            (format!("{mark}\r\n \0{{}}"), 1),
            (format!("\r\n{mark}{{}}"), 1),
            (mark.to_string(), 0),
            (format!("{mark} "), 0),
        ] {
            assert_eq!(split_all(input.as_bytes()).unwrap().len(), objects, "{input:?}");
        }
        for input in [
            format!("{mark}{mark}{{}}"),
            format!("{mark}\n{mark}{{}}"),
            format!("{{}}{mark}{{}}"),
            format!("{{}}\0{mark}"),
            format!("{mark}[]"),
            "\u{fefe}{}".to_string(),
            "\u{f000}{}".to_string(),
        ] {
            assert_eq!(split_all(input.as_bytes()), Err(Broken::NotAnObject), "{input:?}");
        }
        // What may become one waits for the rest of it, and counts towards no limit.
        assert_eq!(split_all(b"\xef\xbb").unwrap().len(), 0);
        assert_eq!(split_all(b"\xef{").unwrap_err(), Broken::NotAnObject);
        assert_eq!(split_all(b"\xef\xbb{").unwrap_err(), Broken::NotAnObject);
        let object = [BYTE_ORDER_MARK, b"{}"].concat();
        assert_eq!(Splitter::default().next(&object, 2), Ok(Split::Object { start: 3, end: 5 }));
    }

    #[test]
    fn nesting_of_32_is_followed_and_33_is_not() {
        let nested = |n: usize| [b"[".repeat(n), b"]".repeat(n)].concat();
        let object = |n: usize| [b"{\"a\":", &nested(n - 1)[..], b"}"].concat();
        assert_eq!(split_all(&object(32)).unwrap().len(), 1);
        assert_eq!(split_all(&object(33)), Err(Broken::TooDeep));
    }

    #[test]
    fn an_object_of_the_limit_passes_and_one_byte_more_is_refused_before_it_ends() {
        let object = |n: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(n - 8)).into_bytes();
        assert_eq!(split_all(&object(100)).unwrap().len(), 1);
        assert_eq!(split_all(&object(101)), Err(Broken::TooLarge));
        assert_eq!(Splitter::default().next(&object(200)[..101], 100), Err(Broken::TooLarge));
        assert_eq!(Splitter::default().next(&object(200)[..100], 100), Ok(Split::Partial { skip: 0 }));
    }

    /// What a connection makes of a stream that comes in these pieces: the objects, how it ends, and whether lengths
    /// were seen.
    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, mut splitter: Splitter) -> (Vec<Vec<u8>>, End, bool) {
        let (mut input, mut found) = (Vec::new(), Vec::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match splitter.next(&input, LIMIT) {
                    Ok(Split::Object { start, end }) => {
                        found.push(input[start..end].to_vec());
                        input.drain(..end);
                    }
                    Ok(Split::Partial { skip }) => break drop(input.drain(..skip)),
                    Err(broken) => return (found, End::Broken(broken), splitter.has_lengths()),
                }
            }
        }
        let end = if splitter.may_end(input.len()) { End::Between } else { End::Inside };
        (found, end, splitter.has_lengths())
    }

    #[derive(Debug, PartialEq)]
    enum End {
        Between,
        Inside,
        Broken(Broken),
    }

    const LIMIT: usize = 3000;

    /// The same in one piece, byte by byte, and cut in two anywhere.
    fn read_anyhow(stream: &[u8], splitter: &Splitter) -> (Vec<Vec<u8>>, End, bool) {
        let whole = read([stream], splitter.clone());
        assert_eq!(read(stream.chunks(1), splitter.clone()), whole, "{}", stream.escape_ascii());
        for at in 0..stream.len() {
            let (front, behind) = stream.split_at(at);
            assert_eq!(read([front, behind], splitter.clone()), whole, "{at}: {}", stream.escape_ascii());
        }
        whole
    }

    fn object(length: usize) -> Vec<u8> {
        format!("{{\"a\":\"{}\"}}", "}".repeat(length - 8)).into_bytes()
    }

    fn framed(length: usize, object: &[u8]) -> Vec<u8> {
        [&u32::try_from(length).unwrap().to_be_bytes()[..], object].concat()
    }

    #[test]
    fn a_length_and_an_object_that_is_as_long_begin_a_stream_of_them() {
        // 32 and 2573 are blanks as well: the four bytes of `\0\0\0 ` and of `\0\0\n\r`.
        for length in [8, 9, 32, 123, 256, 2573, LIMIT] {
            let stream = [framed(length, &object(length)), framed(2, b"{}"), framed(9, &object(9))].concat();
            let objects = vec![object(length), b"{}".to_vec(), object(9)];
            let undecided = Splitter::default();
            let (found, end, has_lengths) = if length < 300 {
                read_anyhow(&stream, &undecided)
            } else {
                assert_eq!(read(stream.chunks(1), undecided.clone()), read([&stream[..]], undecided.clone()));
                read([&stream[..]], undecided)
            };
            assert_eq!((found, end, has_lengths), (objects, End::Between, true), "{length}");
        }
        let given = read_anyhow(&framed(8, &object(8)), &Splitter::of_known(true));
        assert_eq!(given, (vec![object(8)], End::Between, true));
    }

    #[test]
    fn where_the_first_object_ends_elsewhere_there_was_no_length() {
        let undecided = Splitter::default();
        for object_length in [8, 31, 33, 60] {
            // `\0\0\0 ` may be blanks.
            let blanks = [framed(32, &object(object_length)), b"\0".to_vec(), object(10)].concat();
            let objects = vec![object(object_length), object(10)];
            assert_eq!(read_anyhow(&blanks, &undecided), (objects, End::Between, false));
            // `\0\0\0!` may not.
            let none = [framed(b'!'.into(), &object(if object_length == 33 { 34 } else { object_length })), object(10)];
            let broken = End::Broken(Broken::NotAnObject);
            assert_eq!(read_anyhow(&none.concat(), &undecided), (vec![], broken, false), "{object_length}");
        }
        // Neither is a length, though both are followed by a brace: 31,613 and 15,712,191.
        let empty = || vec![b"{}".to_vec(); 2];
        assert_eq!(read_anyhow(b"\0\0{}{}", &undecided), (empty(), End::Between, false));
        assert_eq!(read_anyhow(b"\0\xef\xbb\xbf{}{}", &undecided), (empty(), End::Between, false));
    }

    #[test]
    fn a_wrong_length_later_breaks_the_stream() {
        let wrong = || End::Broken(Broken::WrongLength);
        for (length, behind, end) in [
            (9, object(8), wrong()),
            (9, [object(8), object(8)].concat(), wrong()),
            (8, object(9), wrong()),
            (0, object(8), wrong()),
            (1, object(8), wrong()),
            (32, object(8), wrong()),
            (8, b" {\"a\":1}".to_vec(), End::Broken(Broken::NotAnObject)),
            (2, b"[]".to_vec(), End::Broken(Broken::NotAnObject)),
            (LIMIT + 1, object(8), End::Broken(Broken::TooLarge)),
            (0xffff_ffff, object(8), End::Broken(Broken::TooLarge)),
        ] {
            // Enough has come for it to be seen.
            let padded = [framed(length, &behind), object(40)].concat();
            let stream = [framed(8, &object(8)), padded.clone()].concat();
            let (found, broken, _) = read_anyhow(&stream, &Splitter::default());
            assert_eq!((found, &broken), (vec![object(8)], &end), "{length}: {}", behind.escape_ascii());
            assert_eq!(read_anyhow(&padded, &Splitter::of_known(true)).1, end, "{length}");
        }
        // What stands between objects without a length stands nowhere here.
        let stream = [framed(8, &object(8)), b"\0".to_vec(), framed(8, &object(8))].concat();
        assert_eq!(read_anyhow(&stream, &Splitter::default()).1, wrong());
    }

    #[test]
    fn nuls_before_an_object_are_blanks_as_ever() {
        for nuls in 0..9 {
            let stream = [vec![0; nuls], object(8), vec![0; nuls], object(9), vec![0; nuls]].concat();
            let objects = vec![object(8), object(9)];
            assert_eq!(read_anyhow(&stream, &Splitter::default()), (objects, End::Between, false), "{nuls}");
        }
        // Neither a length past the limit nor one of a byte is one, and a first byte that is not NUL is none's.
        for head in [&b"\0\0\0\n"[..3], b"\0 \r\n", b"\0\0\r\n", b"\n\0\0\x20", b" \0\0\t"] {
            let stream = [head, &object(20)].concat();
            assert_eq!(read_anyhow(&stream, &Splitter::default()), (vec![object(20)], End::Between, false));
        }
        for head in [&b"\0\0\0\x01"[..], b"\0\x01\0\0", b"\x01\0\0\0"] {
            let stream = [head, &object(20)].concat();
            assert_eq!(read_anyhow(&stream, &Splitter::default()).1, End::Broken(Broken::NotAnObject));
        }
    }

    #[test]
    fn a_stream_may_end_between_objects_and_not_inside_one_or_its_length() {
        let stream = [framed(8, &object(8)), framed(9, &object(9))].concat();
        for at in 0..=stream.len() {
            // One NUL, or three, are what a C++ client may have sent and no more.
            let may_end = at <= 3 || at == 12 || at == stream.len();
            let end = if may_end { End::Between } else { End::Inside };
            assert_eq!(read(stream[..at].chunks(1), Splitter::default()).1, end, "{at}");
            let end = if at == 0 || at == 12 || at == stream.len() { End::Between } else { End::Inside };
            assert_eq!(read(stream[..at].chunks(1), Splitter::of_known(true)).1, end, "{at}");
        }
        assert_eq!(read([&b"\0\0{"[..]], Splitter::default()).1, End::Inside);
        assert_eq!(read([&b"\0\0\0\x08"[..]], Splitter::default()).1, End::Inside);
    }
}
