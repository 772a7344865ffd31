//! The places in the source that documents cite, as `reactor/mailbox.rs::take`; and what the two documents about the
//! architecture name besides.

use std::collections::BTreeSet;

use crate::names::{Document, Repository, prose, spans};

/// Where a place that is cited may be: below these, in this order.
const BELOW: [&str; 3] = ["src/", "", "tests/reactor/"];
/// Names of muduo, of the ChatServer project, of C and of the system, which the documents about the architecture show.
const FOREIGN: [&str; 14] = [
    "ChatService::oneChat",
    "EAGAIN",
    "EventLoop::runInLoop",
    "_connMutex",
    "assertInLoopThread",
    "bye",
    "epoll_wait",
    "onMessage",
    "queueInLoop",
    "readv",
    "runInLoop",
    "sprintf",
    "timerfd",
    "weak_ptr",
];

fn is_in_a_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && text.chars().all(is_in_a_word)
}

/// Whether a line declares this name: as an item, or as a variant of an enum.
fn declares(line: &str, name: &str) -> bool {
    const KINDS: [&str; 8] = ["fn", "struct", "enum", "trait", "const", "static", "type", "mod"];
    let ends = |rest: &str| !rest.starts_with(is_in_a_word);
    let mut words = line.split_whitespace();
    let is_item = words.any(|word| KINDS.contains(&word))
        && line.match_indices(name).any(|(at, _)| line[..at].ends_with(' ') && ends(&line[at + name.len()..]));
    let is_variant = line
        .trim_start()
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with([',', '(']) || rest.starts_with(" {") || rest.starts_with(" ="));
    is_item || is_variant
}

/// The code spans of a document that cite a place: a file, `::`, a name.
fn cited(document: &Document) -> Vec<(usize, &str, &str)> {
    let of_line = |(number, line)| {
        spans(line).filter_map(move |span| {
            let (file, name) = span.split_once("::")?;
            (file.ends_with(".rs") && is_name(name)).then_some((number, file, name))
        })
    };
    prose(&document.text).flat_map(of_line).collect()
}

/// Places that are cited and are not there.
pub fn missing_places(repository: &Repository, document: &Document) -> Vec<String> {
    let is_there = |file: &str, name: &str| {
        let text = BELOW.iter().find_map(|folder| repository.text(&format!("{folder}{file}")));
        text.is_some_and(|text| text.lines().any(|line| declares(line, name)))
    };
    let missing = cited(document).into_iter().filter(|(_, file, name)| !is_there(file, name));
    missing.map(|(number, file, name)| format!("{}:{number}: no {file}::{name}", document.path)).collect()
}

/// Names that stand in a document without their file, and are nowhere in the sources nor those of their files.
pub fn missing_names(repository: &Repository, document: &Document) -> Vec<String> {
    let words: BTreeSet<&str> = repository
        .below(&["src/", "tests/", "benches/", "examples/"])
        .flat_map(|(path, text)| [path, text])
        .flat_map(|text| text.split(|c| !is_in_a_word(c)))
        .collect();
    let of_line = |(number, line)| spans(line).map(move |span| (number, span));
    let named = prose(&document.text).flat_map(of_line).filter(|(_, span)| span.split("::").all(is_name));
    let missing =
        named.filter(|(_, span)| !FOREIGN.contains(span) && !span.split("::").all(|name| words.contains(name)));
    missing.map(|(number, name)| format!("{}:{number}: no {name}", document.path)).collect()
}

/// What one of two documents cites and the other does not, or not as often.
pub fn differences(one: &Document, other: &Document) -> Vec<String> {
    let sorted = |document: &Document| {
        let mut places: Vec<String> =
            cited(document).into_iter().map(|(_, file, name)| format!("{file}::{name}")).collect();
        places.sort_unstable();
        places
    };
    let (mut left, mut right) = (sorted(one), sorted(other));
    assert!(left.len() > 50, "how places are found is wrong: {left:?}");
    let both = left.clone();
    for place in both {
        if let Ok(at) = right.binary_search(&place) {
            right.remove(at);
            let at = left.binary_search(&place).expect("it is there");
            left.remove(at);
        }
    }
    let only = |document: &Document, places: Vec<String>| {
        places.into_iter().map(|place| format!("only {} cites {place}", document.path)).collect::<Vec<_>>()
    };
    [only(one, left), only(other, right)].concat()
}

/// The server's threads, by the names that they are started with; of several, what their names begin with.
fn threads(repository: &Repository) -> BTreeSet<&str> {
    const STARTS: [&str; 5] = [".name(\"", "thread(\"", "thread(format!(\"", "start_named(\"", "Door::open(\""];
    let sources = repository.below(&["src/"]).filter(|(path, _)| !path.starts_with("src/bin/chat-client/"));
    let started = sources.flat_map(|(_, text)| STARTS.iter().flat_map(|start| text.split(start).skip(1)));
    let found: BTreeSet<&str> = started.filter_map(|rest| rest.split(['"', '{']).next()).collect();
    assert!(
        ["acceptor", "reactor-", "worker", "store-writer", "lease"].iter().all(|thread| found.contains(thread)),
        "how threads are found is wrong: {found:?}"
    );
    found
}

/// Threads that a document does not name.
pub fn unnamed_threads(repository: &Repository, document: &Document) -> Vec<String> {
    let named: Vec<&str> = prose(&document.text).flat_map(|(_, line)| spans(line)).collect();
    let is_named = |thread: &&str| named.iter().any(|span| span.starts_with(*thread));
    let unnamed = threads(repository).into_iter().filter(|thread| !is_named(thread));
    unnamed.map(|thread| format!("{}: no thread {thread}", document.path)).collect()
}
