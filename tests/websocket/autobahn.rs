//! Every case of the Autobahn test suite that needs no compression, by its number, against the parser and a handler that
//! sends back what it gets. What is expected is the suite's strictest result, except that a binary message is refused: 1003.

use chat_server::wire::websocket::{Found, WebSocket};

use crate::client::{BINARY, CLOSE, FIRST, LAST, MORE, PING, PONG, TEXT, frame};

/// What the handler answers.
#[derive(Debug, Clone, PartialEq)]
enum Out {
    Text(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
}

/// The suite allows larger messages than a server does.
const MAX_MESSAGE: usize = 16 << 20;

/// Feeds a stream that comes in these pieces to an echo handler.
fn echo<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Out> {
    let (mut socket, mut input, mut out) = (WebSocket::default(), Vec::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            let done = match socket.next(&input, MAX_MESSAGE) {
                Ok(Found::Partial { taken }) => break drop(input.drain(..taken)),
                Ok(Found::Text { taken }) => {
                    out.push(Out::Text(socket.take()));
                    taken
                }
                Ok(Found::Ping { taken, payload }) => {
                    out.push(Out::Pong(payload.to_vec()));
                    taken
                }
                Ok(Found::Pong { taken }) => taken,
                Ok(Found::Close { code, .. }) => {
                    out.push(Out::Close(code.unwrap_or(1000)));
                    return out;
                }
                Err(failed) => {
                    out.push(Out::Close(failed.code()));
                    return out;
                }
            };
            input.drain(..done);
        }
    }
    out
}

/// The cases so far.
#[derive(Default)]
struct Suite(Vec<String>);

impl Suite {
    /// A case: these frames are sent, and this is answered, however the stream is cut.
    #[track_caller]
    fn case(&mut self, number: impl Into<String>, frames: &[Vec<u8>], expected: &[Out]) {
        let number = number.into();
        let stream = frames.concat();
        let sizes: &[usize] = if stream.len() < 100_000 { &[1, 997, usize::MAX] } else { &[1 << 16, usize::MAX] };
        for size in sizes {
            assert!(echo(stream.chunks(*size)) == expected, "case {number} in pieces of {size}");
        }
        self.0.push(number);
    }

    /// The same where what comes last is not read any more: the frame before it is refused at once.
    #[track_caller]
    fn fails_early(&mut self, number: &str, front: &[u8], expected: &[Out]) {
        for size in [1, usize::MAX] {
            assert_eq!(echo(front[..front.len() - 1].chunks(size)), &expected[..expected.len() - 1], "case {number}");
            assert_eq!(echo(front.chunks(size)), expected, "case {number}");
        }
        self.0.push(number.to_owned());
    }
}

fn text(payload: impl AsRef<[u8]>) -> Out {
    Out::Text(payload.as_ref().to_vec())
}

fn pong(payload: impl AsRef<[u8]>) -> Out {
    Out::Pong(payload.as_ref().to_vec())
}

/// A message in frames of so many bytes.
fn fragments(first: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut frames: Vec<_> = payload.chunks(size).map(|part| frame(MORE, part)).collect();
    frames[0][0] = first & 0x0f;
    frames.last_mut().unwrap()[0] |= LAST;
    frames
}

const NORMAL: Out = Out::Close(1000);
const PROTOCOL: Out = Out::Close(1002);
const NO_TEXT: Out = Out::Close(1003);
const NOT_UTF8: Out = Out::Close(1007);

/// 6.5 to 6.23: texts, and whether they are UTF-8.
fn utf8() -> Vec<Vec<(bool, Vec<u8>)>> {
    let all = |is_valid: bool, texts: &[&[u8]]| -> Vec<(bool, Vec<u8>)> {
        texts.iter().map(|text| (is_valid, text.to_vec())).collect()
    };
    let greek = "κ\u{1f79}σμε".as_bytes();
    assert_eq!(greek.len(), 11, "its accent is one character");
    let prefixes = (1..=greek.len()).map(|end| (std::str::from_utf8(&greek[..end]).is_ok(), greek[..end].to_vec()));
    let run = |from: u8, to: u8| -> Vec<u8> { (from..to).collect() };
    let spaced = |from: u8, to: u8| -> Vec<u8> { (from..to).flat_map(|byte| [byte, b' ']).collect() };
    let incomplete: [&[u8]; 10] = [
        b"\xc0",
        b"\xe0\x80",
        b"\xf0\x80\x80",
        b"\xf8\x80\x80\x80",
        b"\xfc\x80\x80\x80\x80",
        b"\xdf",
        b"\xef\xbf",
        b"\xf7\xbf\xbf",
        b"\xfb\xbf\xbf\xbf",
        b"\xfd\xbf\xbf\xbf\xbf",
    ];
    // The last two characters of every plane.
    let last_of_planes = (0..=0x10_u32).flat_map(|plane| [0xfffe, 0xffff].map(|low| plane << 16 | low));
    let last_of_planes = last_of_planes.map(|code| (true, char::from_u32(code).unwrap().to_string().into_bytes()));
    vec![
        all(
            true,
            &[b"hello$world", "hello¢world".as_bytes(), "hello€world".as_bytes(), "hello𤭢world".as_bytes(), greek],
        ),
        prefixes.collect(),
        all(true, &[b"\0", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"]),
        all(false, &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
        all(true, &[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"]),
        all(false, &[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
        [
            all(true, &[b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"]),
            all(false, &[b"\xf4\x90\x80\x80"]),
        ]
        .concat(),
        [
            all(false, &[b"\x80", b"\xbf", b"\x80\xbf", b"\x80\xbf\x80", b"\x80\xbf\x80\xbf"]),
            all(false, &[b"\x80\xbf\x80\xbf\x80", b"\x80\xbf\x80\xbf\x80\xbf", &run(0x80, 0xbf)]),
        ]
        .concat(),
        all(
            false,
            &[&spaced(0xc0, 0xdf), &spaced(0xe0, 0xef), &spaced(0xf0, 0xf7), &spaced(0xf8, 0xfb), &spaced(0xfc, 0xfd)],
        ),
        all(false, &incomplete),
        all(false, &[&incomplete.concat()]),
        all(false, &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
        all(
            false,
            &[b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf", b"\xfc\x80\x80\x80\x80\xaf"],
        ),
        all(
            false,
            &[b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\xf8\x87\xbf\xbf\xbf", b"\xfc\x83\xbf\xbf\xbf\xbf"],
        ),
        all(
            false,
            &[b"\xc0\x80", b"\xe0\x80\x80", b"\xf0\x80\x80\x80", b"\xf8\x80\x80\x80\x80", b"\xfc\x80\x80\x80\x80\x80"],
        ),
        all(
            false,
            &[
                b"\xed\xa0\x80",
                b"\xed\xad\xbf",
                b"\xed\xae\x80",
                b"\xed\xaf\xbf",
                b"\xed\xb0\x80",
                b"\xed\xbe\x80",
                b"\xed\xbf\xbf",
            ],
        ),
        all(
            false,
            &[
                b"\xed\xa0\x80\xed\xb0\x80",
                b"\xed\xa0\x80\xed\xbf\xbf",
                b"\xed\xad\xbf\xed\xb0\x80",
                b"\xed\xad\xbf\xed\xbf\xbf",
                b"\xed\xae\x80\xed\xb0\x80",
                b"\xed\xae\x80\xed\xbf\xbf",
                b"\xed\xaf\xbf\xed\xb0\x80",
                b"\xed\xaf\xbf\xed\xbf\xbf",
            ],
        ),
        last_of_planes.collect(),
        (0xfff9..=0xffff_u32).map(|code| (true, char::from_u32(code).unwrap().to_string().into_bytes())).collect(),
    ]
}

#[test]
fn each_case_of_autobahn_has_its_strictest_result() {
    let mut suite = Suite::default();

    // 1: framing.
    let sizes = [0, 125, 126, 127, 128, 65_535, 65_536, 65_536];
    for (at, size) in sizes.into_iter().enumerate() {
        // The last ones differ in how they are cut, which is done with each of them here.
        let payload = vec![b'*'; size];
        suite.case(format!("1.1.{}", at + 1), &[frame(TEXT, &payload)], &[text(&payload)]);
        suite.case(format!("1.2.{}", at + 1), &[frame(BINARY, &payload)], &[NO_TEXT]);
    }

    // 2: pings and pongs.
    let binary = [0_u8, 255, 254, 253, 252, 251, 0, 255];
    suite.case("2.1", &[frame(PING, b"")], &[pong(b"")]);
    suite.case("2.2", &[frame(PING, b"Hello, world!")], &[pong(b"Hello, world!")]);
    suite.case("2.3", &[frame(PING, binary)], &[pong(binary)]);
    suite.case("2.4", &[frame(PING, [254_u8; 125])], &[pong([254_u8; 125])]);
    suite.case("2.5", &[frame(PING, [254_u8; 126])], &[PROTOCOL]);
    suite.case("2.6", &[frame(PING, [254_u8; 125])], &[pong([254_u8; 125])]);
    suite.case("2.7", &[frame(PONG, b"")], &[]);
    suite.case("2.8", &[frame(PONG, b"unsolicited pong payload")], &[]);
    suite.case("2.9", &[frame(PONG, b"unsolicited"), frame(PING, b"ping")], &[pong(b"ping")]);
    let pings: Vec<String> = (0..10).map(|n| format!("payload-{n}")).collect();
    let frames: Vec<_> = pings.iter().map(|payload| frame(PING, payload)).collect();
    let pongs: Vec<_> = pings.iter().map(pong).collect();
    suite.case("2.10", &frames, &pongs);
    suite.case("2.11", &frames, &pongs);

    // 3: reserved bits.
    let hello = b"Hello, world!";
    suite.case("3.1", &[frame(TEXT | 0x10, hello)], &[PROTOCOL]);
    for (number, bits) in [("3.2", 0x20), ("3.3", 0x30), ("3.4", 0x40)] {
        let frames = [frame(TEXT, hello), frame(TEXT | bits, hello), frame(PING, b"")];
        suite.case(number, &frames, &[text(hello), PROTOCOL]);
    }
    suite.case("3.5", &[frame(BINARY | 0x50, [0_u8, 255, 254])], &[PROTOCOL]);
    suite.case("3.6", &[frame(PING | 0x60, hello)], &[PROTOCOL]);
    suite.case("3.7", &[frame(CLOSE | 0x70, b"")], &[PROTOCOL]);

    // 4: reserved opcodes.
    for (kind, base) in [(1, 0x83), (2, 0x8b)] {
        suite.case(format!("4.{kind}.1"), &[frame(base, b"")], &[PROTOCOL]);
        suite.case(format!("4.{kind}.2"), &[frame(base + 1, b"reserved opcode payload")], &[PROTOCOL]);
        for at in 2..5 {
            let frames = [frame(TEXT, hello), frame(base + at, hello), frame(PING, b"")];
            suite.case(format!("4.{kind}.{}", at + 1), &frames, &[text(hello), PROTOCOL]);
        }
    }

    // 5: fragments.
    let (one, two) = (&b"fragment1"[..], &b"fragment2"[..]);
    let both = || text([one, two].concat());
    suite.case("5.1", &[frame(PING & !LAST, one), frame(LAST, two)], &[PROTOCOL]);
    suite.case("5.2", &[frame(PONG & !LAST, one), frame(LAST, two)], &[PROTOCOL]);
    for number in ["5.3", "5.4", "5.5"] {
        suite.case(number, &[frame(FIRST, one), frame(LAST, two)], &[both()]);
    }
    for number in ["5.6", "5.7", "5.8"] {
        suite.case(number, &[frame(FIRST, one), frame(PING, b"ping"), frame(LAST, two)], &[pong(b"ping"), both()]);
    }
    for (numbers, first) in [(["5.9", "5.10", "5.11"], LAST), (["5.12", "5.13", "5.14"], MORE)] {
        for number in numbers {
            suite.case(number, &[frame(first, b"non-continuation"), frame(TEXT, hello)], &[PROTOCOL]);
        }
    }
    let frames = [frame(FIRST, one), frame(LAST, two), frame(MORE, b"fragment3"), frame(TEXT, b"fragment4")];
    suite.case("5.15", &frames, &[both(), PROTOCOL]);
    for (number, first) in [("5.16", MORE), ("5.17", LAST)] {
        suite.case(number, &[frame(first, one), frame(FIRST, two), frame(LAST, b"fragment3")], &[PROTOCOL]);
    }
    suite.case("5.18", &[frame(FIRST, one), frame(TEXT, two)], &[PROTOCOL]);
    for number in ["5.19", "5.20"] {
        let frames = [
            frame(FIRST, b"1"),
            frame(MORE, b"2"),
            frame(PING, b"pongme 1!"),
            frame(MORE, b"3"),
            frame(MORE, b"4"),
            frame(PING, b"pongme 2!"),
            frame(LAST, b"5"),
        ];
        suite.case(number, &frames, &[pong(b"pongme 1!"), pong(b"pongme 2!"), text(b"12345")]);
    }

    // 6: UTF-8.
    suite.case("6.1.1", &[frame(TEXT, b"")], &[text(b"")]);
    suite.case("6.1.2", &[frame(FIRST, b""), frame(MORE, b""), frame(LAST, b"")], &[text(b"")]);
    suite.case("6.1.3", &[frame(FIRST, b""), frame(MORE, b"middle"), frame(LAST, b"")], &[text(b"middle")]);
    let valid = "Hello-µ@ßöäüàá-UTF-8!!".as_bytes();
    suite.case("6.2.1", &[frame(TEXT, valid)], &[text(valid)]);
    suite.case("6.2.2", &[frame(FIRST, &valid[..12]), frame(LAST, &valid[12..])], &[text(valid)]);
    suite.case("6.2.3", &fragments(TEXT, valid, 1), &[text(valid)]);
    let greek = "κ\u{1f79}σμε".as_bytes();
    suite.case("6.2.4", &fragments(TEXT, greek, 1), &[text(greek)]);
    let invalid = [greek, b"\xed\xa0\x80edited"].concat();
    suite.case("6.3.1", &[frame(TEXT, &invalid)], &[NOT_UTF8]);
    suite.case("6.3.2", &fragments(TEXT, &invalid, 1), &[NOT_UTF8]);
    // The byte behind F4 shows it, in a second frame or in the rest of the only one.
    let wrong = b"\xf4\x90\x80\x80";
    let in_two = [frame(FIRST, greek), frame(MORE, wrong)].concat();
    let in_one = frame(TEXT, [greek, wrong, b"edited"].concat());
    suite.fails_early("6.4.1", &in_two[..in_two.len() - 2], &[NOT_UTF8]);
    suite.fails_early("6.4.2", &[frame(FIRST, greek), frame(MORE, &wrong[..2])].concat(), &[NOT_UTF8]);
    for number in ["6.4.3", "6.4.4"] {
        suite.fails_early(number, &in_one[..6 + greek.len() + 2], &[NOT_UTF8]);
    }
    for (group, texts) in utf8().into_iter().enumerate() {
        for (at, (is_valid, payload)) in texts.into_iter().enumerate() {
            let expected = if is_valid { text(&payload) } else { NOT_UTF8 };
            suite.case(format!("6.{}.{}", group + 5, at + 1), &[frame(TEXT, payload)], &[expected]);
        }
    }

    // 7: closing. What follows a close frame is not looked at.
    let normal = || frame(CLOSE, 1000_u16.to_be_bytes());
    suite.case("7.1.1", &[frame(TEXT, hello), normal()], &[text(hello), NORMAL]);
    suite.case("7.1.2", &[normal(), normal()], &[NORMAL]);
    suite.case("7.1.3", &[normal(), frame(PING, b"")], &[NORMAL]);
    suite.case("7.1.4", &[normal(), frame(TEXT, hello)], &[NORMAL]);
    suite.case("7.1.5", &[frame(FIRST, one), normal(), frame(LAST, two)], &[NORMAL]);
    let much = b"BAsd7&jh23".repeat(26_215);
    let frames = [frame(TEXT, &much), frame(TEXT, hello), normal(), frame(PING, b"")];
    suite.case("7.1.6", &frames, &[text(&much), text(hello), NORMAL]);
    let close = |code: u16, reason: &[u8]| frame(CLOSE, [&code.to_be_bytes(), reason].concat());
    suite.case("7.3.1", &[frame(CLOSE, b"")], &[NORMAL]);
    suite.case("7.3.2", &[frame(CLOSE, b"a")], &[PROTOCOL]);
    suite.case("7.3.3", &[normal()], &[NORMAL]);
    suite.case("7.3.4", &[close(1000, hello)], &[NORMAL]);
    suite.case("7.3.5", &[close(1000, &[b'*'; 123])], &[NORMAL]);
    suite.case("7.3.6", &[close(1000, &[b'*'; 124])], &[PROTOCOL]);
    suite.case("7.5.1", &[close(1000, &invalid)], &[NOT_UTF8]);
    let valid = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    for (at, code) in valid.into_iter().enumerate() {
        suite.case(format!("7.7.{}", at + 1), &[close(code, b"")], &[Out::Close(code)]);
    }
    for (at, code) in [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999].into_iter().enumerate() {
        suite.case(format!("7.9.{}", at + 1), &[close(code, b"")], &[PROTOCOL]);
    }
    suite.case("7.13.1", &[close(5000, b"")], &[PROTOCOL]);
    suite.case("7.13.2", &[close(65_535, b"")], &[PROTOCOL]);

    // 9: sizes and cuts.
    for (at, size) in [1 << 16, 1 << 18, 1 << 20, 4 << 20, 8 << 20, 16 << 20].into_iter().enumerate() {
        let payload = vec![b'*'; size];
        suite.case(format!("9.1.{}", at + 1), &[frame(TEXT, &payload)], &[text(&payload)]);
        suite.case(format!("9.2.{}", at + 1), &[frame(BINARY, &payload)], &[NO_TEXT]);
    }
    let payload = vec![b'*'; 4 << 20];
    for at in 0..9 {
        let size = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20][at];
        suite.case(format!("9.3.{}", at + 1), &fragments(TEXT, &payload, size), &[text(&payload)]);
        suite.case(format!("9.4.{}", at + 1), &fragments(BINARY, &payload, size), &[NO_TEXT]);
    }
    let payload = vec![b'*'; 1 << 20];
    for at in 0..6 {
        for (group, first, expected) in [(5, TEXT, text(&payload)), (6, BINARY, NO_TEXT)] {
            let stream = frame(first, &payload);
            assert!(echo(stream.chunks(64 << at)) == [expected], "case 9.{group}.{}", at + 1);
            suite.0.push(format!("9.{group}.{}", at + 1));
        }
    }
    for (at, size) in [0, 16, 64, 256, 1024, 4096].into_iter().enumerate() {
        let payload = vec![b'*'; size];
        let frames: Vec<_> = (0..1000).map(|_| frame(TEXT, &payload)).collect();
        suite.case(format!("9.7.{}", at + 1), &frames, &vec![text(&payload); 1000]);
        suite.case(format!("9.8.{}", at + 1), &[frame(BINARY, &payload)], &[NO_TEXT]);
    }

    // 10: a message that its sender has cut by itself.
    let payload = vec![b'*'; 65_536];
    suite.case("10.1.1", &fragments(TEXT, &payload, 1300), &[text(&payload)]);

    let mut numbers = suite.0;
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 301, "so many cases has the suite without those of compression");
}
