//! One session of each client, byte for byte in both directions: `sessions/NAME.txt`.
//!
//! A first line `server` has the flags of the server, which is a new one: its first user is 1. `ann >` is what that
//! connection sends, `ann <` what it gets next. What stands before and behind an object is written as `\0` and `\x1f`.
//! `‹time›` is a date and a time of the server's clock. `= 2 GroupUser` waits until that table has two rows, `= 0 online` until no user is online. `#` begins a comment.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;

use crate::for_each;
use crate::profiles;
use crate::support::{Config, DEADLINE, World, eventually};

tests! { recorded_sessions_are_played_byte_for_byte }

fn recorded_sessions_are_played_byte_for_byte(config: &'static Config) {
    for_each(&profiles::ALL, |profile| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/dialects/sessions/{}.txt", profile.name));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        play(config, profile.name, &text);
    });
}

fn play(config: &Config, of: &str, text: &str) {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).peekable();
    let flags = lines.next_if(|(_, line)| line.starts_with("server")).map_or("", |(_, line)| &line["server".len()..]);
    let world = config.own(&flags.split_whitespace().collect::<Vec<_>>());
    let mut connections: BTreeMap<&str, TcpStream> = BTreeMap::new();
    for (number, line) in lines {
        let at = format!("{of}.txt:{}", number + 1);
        let mut words = line.splitn(3, ' ');
        let (name, sign, rest) = (words.next(), words.next(), words.next());
        match (name, sign, rest) {
            (Some("="), Some(rows), Some(table)) => wait_for(&world, &at, rows, table),
            (Some(name), Some(sign @ (">" | "<")), Some(object)) => {
                let stream = connections.entry(name).or_insert_with(|| connect(&world));
                if sign == ">" {
                    let object: Vec<u8> = bytes(object).into_iter().flatten().collect();
                    stream.write_all(&object).unwrap_or_else(|error| panic!("{at}: {error}"));
                } else {
                    expect(stream, &at, &bytes(object));
                }
            }
            _ => panic!("{at} is no step: {line}"),
        }
    }
    for (name, mut stream) in connections {
        let mut rest = Vec::new();
        stream.shutdown(Shutdown::Write).expect("the connection stands");
        stream.read_to_end(&mut rest).expect("the server closes in order");
        assert_eq!(String::from_utf8_lossy(&rest), "", "{of}.txt: {name} gets more");
    }
}

fn connect(world: &World) -> TcpStream {
    let stream = TcpStream::connect(world.server().address).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn wait_for(world: &World, at: &str, rows: &str, table: &str) {
    let rows: usize = rows.parse().unwrap_or_else(|_| panic!("{at}: {rows} is no number"));
    let query = match table {
        "online" => "SELECT COUNT(*) FROM User WHERE state = 'online'".to_owned(),
        table => format!("SELECT COUNT(*) FROM {table}"),
    };
    eventually(&format!("{at}: {rows} {table}"), || world.count(&query) == rows);
}

/// The next bytes must be these; `None`: any byte of a date and a time.
fn expect(stream: &mut TcpStream, at: &str, expected: &[Option<u8>]) {
    let mut got = Vec::new();
    while got.len() < expected.len() && got.iter().zip(expected).all(|(got, due)| due.is_none_or(|due| due == *got)) {
        let mut chunk = vec![0; expected.len() - got.len()];
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => got.extend_from_slice(&chunk[..read]),
            Err(error) => panic!("{at}: {error} behind {}", got.escape_ascii()),
        }
    }
    let is_time = |byte: u8| byte.is_ascii_digit() || b"-: ".contains(&byte);
    let due = expected.iter().enumerate().map(|(at, due)| match (due, got.get(at)) {
        (Some(byte), _) => *byte,
        (None, Some(byte)) if is_time(*byte) => *byte,
        (None, _) => b'?',
    });
    let due: Vec<u8> = due.collect();
    assert_eq!(got.escape_ascii().to_string(), due.escape_ascii().to_string(), "{at}");
}

/// A line's object with the bytes around it.
fn bytes(line: &str) -> Vec<Option<u8>> {
    let from = line.find('{').expect("an object");
    let to = line.rfind('}').expect("an object") + 1;
    let mut parts = line[from..to].split("‹time›");
    let literal = |part: &str| part.bytes().map(Some).collect::<Vec<_>>();
    let mut bytes = escaped(&line[..from]);
    bytes.extend(parts.next().map(literal).unwrap_or_default());
    for part in parts {
        bytes.extend([None; "2026-11-28 11:11:11".len()]);
        bytes.extend(literal(part));
    }
    bytes.extend(escaped(&line[to..]));
    bytes
}

fn escaped(text: &str) -> Vec<Option<u8>> {
    let byte = |escape: &str| match escape.strip_prefix('x') {
        Some(digits) => u8::from_str_radix(digits, 16).expect("two digits"),
        None => escape.parse().expect("a number"),
    };
    text.split('\\').skip(1).map(byte).map(Some).collect()
}
