//! What the documents name, held against what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chat_server::metrics::Label;
use chat_server::wire::{Errno, msgid};

use crate::play::{Example, What};
use crate::support::CHAT_CLIENT;

/// Flags of cargo, which documents show in commands.
const OF_CARGO: [&str; 10] = [
    "--all-targets",
    "--bench",
    "--bin",
    "--example",
    "--features",
    "--no-run",
    "--path",
    "--release",
    "--test",
    "--workspace",
];
/// Flags of mysqldump, likewise.
const OF_MYSQLDUMP: [&str; 2] = ["--databases", "--single-transaction"];
/// Names that begin as those of metrics do, and are names of crates.
const CRATES: [&str; 2] = ["chat_server", "chat_client"];
/// What a file of the repository may end in; files of others, like `Acceptor.cc`, end otherwise.
const EXTENSIONS: [&str; 8] = ["rs", "md", "toml", "patch", "service", "svg", "sql", "html"];
/// Folders that hold no sources.
const GENERATED: [&str; 3] = ["target", "cluster", "corpus"];

/// The repository: its files by their paths, with the text of those that are text.
pub struct Repository {
    files: BTreeMap<String, String>,
    folders: BTreeSet<String>,
}

/// One document, with its path in the repository.
pub struct Document {
    pub path: String,
    pub text: String,
}

fn walk(root: &Path, folder: &Path, repository: &mut Repository) {
    for entry in fs::read_dir(folder).expect("a folder can be read") {
        let path = entry.expect("a folder can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".").to_owned();
        let inside = path.strip_prefix(root).expect("below the root").display().to_string();
        if name.starts_with('.') {
            continue;
        } else if path.is_dir() {
            repository.folders.insert(inside);
            if !GENERATED.contains(&name.as_str()) {
                walk(root, &path, repository);
            }
        } else {
            repository.files.insert(inside, fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

impl Repository {
    pub fn read() -> Repository {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut repository = Repository { files: BTreeMap::new(), folders: BTreeSet::new() };
        walk(&root, &root, &mut repository);
        repository
    }

    /// The documents: all of the root and of `docs/`.
    pub fn documents(&self) -> Vec<Document> {
        let is_document =
            |path: &str| path.ends_with(".md") && !path.strip_prefix("docs/").unwrap_or(path).contains('/');
        let found = self.files.iter().filter(|(path, _)| is_document(path));
        found.map(|(path, text)| Document { path: path.clone(), text: text.clone() }).collect()
    }

    /// One of them.
    #[track_caller]
    pub fn document(&self, path: &str) -> Document {
        let text = self.text(path).unwrap_or_else(|| panic!("no {path}"));
        Document { path: path.to_owned(), text: text.to_owned() }
    }

    /// The text of a file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    pub fn below<'a>(&'a self, folders: &'a [&str]) -> impl Iterator<Item = (&'a str, &'a str)> {
        let files = self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()));
        files.filter(|(path, _)| folders.iter().any(|folder| path.starts_with(folder)))
    }

    /// The files and folders of this path, or of this end of a path, as their texts; a folder has none.
    fn named<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        let path = path.trim_end_matches('/');
        let is_it =
            move |name: &str| name.strip_suffix(path).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
        let folders = self.folders.iter().filter(move |name| is_it(name)).map(|_| "");
        self.files.iter().filter(move |(name, _)| is_it(name)).map(|(_, text)| text.as_str()).chain(folders)
    }

    fn is_anchor(&self, path: &str, anchor: &str) -> bool {
        self.files.get(path).is_some_and(|text| anchors(text).contains(anchor))
    }
}

/// The lines of a document that are no code, with their numbers.
pub fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        (!is_code && !is_fence).then_some((index + 1, line))
    })
}

/// The anchors that GitHub makes of headings.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter_map(|(_, line)| {
        let heading = line.trim_start_matches('#');
        (heading.len() < line.len()).then(|| heading.trim().to_lowercase())
    });
    let slug = |heading: String| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(slug).collect()
}

/// The words of a text that begin with `start` and go on with what `is_part` accepts.
fn words<'a>(text: &'a str, start: &'a str, is_part: fn(char) -> bool) -> impl Iterator<Item = &'a str> {
    text.match_indices(start).filter_map(move |(at, _)| {
        let is_whole = !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        let rest = &text[at + start.len()..];
        let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        (is_whole && length > 0).then(|| &text[at..at + start.len() + length])
    })
}

/// The flags in a text, like `--max-message`.
fn flags(text: &str) -> BTreeSet<String> {
    let found = words(text, "--", |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    found
        .map(|flag| flag.trim_end_matches('-').to_owned())
        .filter(|flag| flag.len() > 2 && !flag.starts_with("---"))
        .collect()
}

/// What a program says of its flags.
fn help(program: &str) -> String {
    let output = Command::new(program).arg("--help").output().expect("the program can be started");
    assert!(output.status.success(), "{program} --help");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The code spans of a line.
pub fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// The integers that follow one of the words, as in "error 21" or `"errno":21`.
fn numbers_behind(line: &str, names: &[&str]) -> Vec<i64> {
    let mut found = Vec::new();
    for (at, name) in names.iter().flat_map(|name| line.match_indices(name)) {
        let rest = line[at + name.len()..].trim_start_matches(['"', '`', ' ', ':']);
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        found.extend(rest[..digits].parse::<i64>());
    }
    found
}

/// The message numbers, as the code declares them.
fn msgids(repository: &Repository) -> BTreeSet<i64> {
    let text = &repository.files["src/wire/mod.rs"];
    let declared = text.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(": i64 = "));
    let found: BTreeSet<i64> = declared.filter_map(|(_, value)| value.trim_end_matches(';').parse().ok()).collect();
    assert!(found.len() >= 15, "how message numbers are found is wrong: {found:?}");
    found
}

fn errnos() -> BTreeSet<i64> {
    Errno::ALL.iter().map(|errno| *errno as i64).collect()
}

/// The metrics, as the code declares them.
fn metrics(repository: &Repository) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (_, text) in repository.below(&["src/"]) {
        for quoted in
            ["\"chat_", "\"process_"].iter().flat_map(|start| text.split(start).skip(1).map(move |rest| (start, rest)))
        {
            let (start, rest) = quoted;
            if let Some((name, _)) = rest.split_once('"')
                && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            {
                found.insert(format!("{}{name}", &start[1..]));
            }
        }
    }
    assert!(found.len() > 30, "how metrics are found is wrong: {found:?}");
    found
}

// -- what is named exists ---------------------------------------------------------------------------

/// Links, and their anchors.
pub fn dead_links(repository: &Repository, document: &Document) -> Vec<String> {
    let folder = Path::new(&document.path).parent().unwrap_or(Path::new(""));
    let mut dead = Vec::new();
    for (number, line) in prose(&document.text) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let mut path = PathBuf::new();
            for part in folder.join(file).components() {
                match part {
                    std::path::Component::ParentDir => _ = path.pop(),
                    other => path.push(other),
                }
            }
            let path = if file.is_empty() { document.path.clone() } else { path.display().to_string() };
            let is_there = repository.files.contains_key(&path) || repository.folders.contains(&path);
            if !is_there || !anchor.is_empty() && !repository.is_anchor(&path, anchor) {
                dead.push(format!("{}:{number}: no {target}", document.path));
            }
        }
    }
    dead
}

/// Files and folders of the repository, what is declared in them as in `pool.rs::Pool`, and functions and tests with
/// long names, in code spans.
pub fn missing_files(repository: &Repository, document: &Document) -> Vec<String> {
    let mut missing = Vec::new();
    for (number, line) in prose(&document.text) {
        for word in spans(line).flat_map(str::split_whitespace) {
            let word = word.trim_matches(|c: char| matches!(c, ',' | ';' | '(' | ')' | '"' | '\''));
            if !word.contains(['*', '…', '$', '<', ',']) && !is_there(repository, word) {
                missing.push(format!("{}:{number}: no {word}", document.path));
            }
        }
    }
    missing
}

/// Whether a word of a document names nothing of the repository, or what is there.
fn is_there(repository: &Repository, word: &str) -> bool {
    let (path, item) = word.split_once("::").unwrap_or((word, ""));
    let extension = path.rsplit_once('.').map_or("", |(_, extension)| extension);
    let top = path.split('/').next().unwrap_or("");
    if GENERATED.contains(&top) || path.starts_with(['/', '.', '-']) {
        return true;
    }
    if EXTENSIONS.contains(&extension) || path.contains('/') && repository.folders.contains(top) {
        let mut files = repository.named(path).peekable();
        return files.peek().is_some() && (item.is_empty() || files.any(|text| declares(text, item)));
    }
    let is_name = word.matches('_').count() > 2 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    !is_name || repository.below(&["src/", "tests/", "benches/", "fuzz/"]).any(|(_, text)| text.contains(word))
}

/// Whether a source declares an item of this name.
fn declares(text: &str, item: &str) -> bool {
    const KINDS: [&str; 8] = ["fn ", "struct ", "enum ", "trait ", "type ", "const ", "static ", "mod "];
    text.match_indices(item).any(|(at, _)| {
        let is_whole = !text[at + item.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        is_whole && KINDS.iter().any(|kind| text[..at].ends_with(kind))
    })
}

/// Flags, of the server, the client, the load bench, scripts and cargo; and variables of the environment.
pub fn unknown_flags(repository: &Repository, document: &Document) -> Vec<String> {
    let mut known = flags(&help(env!("CARGO_BIN_EXE_chat-server")));
    known.extend(flags(&help(CHAT_CLIENT)));
    known.extend(OF_CARGO.map(str::to_owned));
    known.extend(OF_MYSQLDUMP.map(str::to_owned));
    for (_, text) in repository.below(&["scripts/", "benches/", "tests/mutations/README.md"]) {
        known.extend(flags(text));
        // Derived from the names of fields.
        let fields = text.lines().filter(|_| text.contains("#[arg(")).filter_map(|line| line.trim().split_once(": "));
        known.extend(fields.map(|(name, _)| format!("--{}", name.trim_start_matches("pub ").replace('_', "-"))));
    }
    let unknown = flags(&document.text).into_iter().filter(|flag| !known.contains(flag));
    let mut unknown: Vec<String> = unknown.map(|flag| format!("{}: no flag {flag}", document.path)).collect();
    let variables = words(&document.text, "CHAT_", |c| c.is_ascii_uppercase() || c == '_');
    for variable in variables.map(|name| name.trim_end_matches('_')).filter(|name| name.len() > "CHAT_".len()) {
        let sources = &["src/", "scripts/", "benches/", "tests/", "systemd/"];
        if !repository.below(sources).any(|(_, text)| text.contains(variable)) {
            unknown.push(format!("{}: no variable {variable}", document.path));
        }
    }
    unknown
}

/// Metrics, with the endings that the lines of a histogram have.
pub fn unknown_metrics(repository: &Repository, document: &Document) -> Vec<String> {
    let known = metrics(repository);
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let named = ["chat_", "process_"].iter().flat_map(|start| words(&document.text, start, is_part));
    let is_known = |name: &str| {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
        CRATES.contains(&name) || known.contains(name) || family.is_some_and(|family| known.contains(family))
    };
    let unknown = named.filter(|name| !name.ends_with('_') && !is_known(name));
    unknown.map(|name| format!("{}: no metric {name}", document.path)).collect()
}

/// Errors and message numbers. In the examples, which are played, some may be wrong on purpose.
pub fn unknown_numbers(repository: &Repository, document: &Document) -> Vec<String> {
    let (msgids, errnos) = (msgids(repository), errnos());
    let mut unknown = Vec::new();
    for (number, line) in prose(&document.text) {
        let errors = numbers_behind(line, &["errno", "error ", "错误 ", "错误码 "]);
        // ERROR is the name of a message, too.
        let wrong = errors.into_iter().filter(|errno| ![0, msgid::ERROR].contains(errno) && !errnos.contains(errno));
        unknown.extend(wrong.map(|errno| format!("{}:{number}: no error {errno}", document.path)));
        let wrong = numbers_behind(line, &["msgid"]).into_iter().filter(|msgid| !msgids.contains(msgid));
        unknown.extend(wrong.map(|msgid| format!("{}:{number}: no msgid {msgid}", document.path)));
    }
    unknown
}

/// Sections of the wire contract that sources cite, and modules of the tests of the contract that cite none.
pub fn dead_citations(repository: &Repository) -> Vec<String> {
    const CITED: &str = "docs/PROTOCOL.md";
    let (mut dead, mut cited) = (Vec::new(), 0);
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    for (path, text) in
        repository.below(&["src/", "tests/", "benches/", "fuzz/"]).filter(|(path, _)| path.ends_with(".rs"))
    {
        for citation in words(text, "docs/PROTOCOL.md#", is_part) {
            cited += 1;
            if !repository.is_anchor(CITED, &citation[CITED.len() + 1..]) {
                dead.push(format!("{path}: no {citation}"));
            }
        }
        let is_of_the_contract = path.starts_with("tests/contract/") && path != "tests/contract/main.rs";
        let head = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
        if is_of_the_contract && !head.contains("docs/PROTOCOL.md#") {
            dead.push(format!("{path}: its first lines do not say which section it tests, as docs/PROTOCOL.md#…"));
        }
    }
    assert!(cited > 15, "only {cited} citations were seen: how they are found is wrong");
    dead
}

// -- what exists is named ---------------------------------------------------------------------------

/// Flags and metrics that no document names.
pub fn unnamed(repository: &Repository, documents: &[Document]) -> Vec<String> {
    let mut named = BTreeSet::new();
    for document in documents {
        named.extend(flags(&document.text));
        let is_part = |c: char| c.is_ascii_lowercase() || c == '_';
        named.extend(
            ["chat_", "process_"].iter().flat_map(|start| words(&document.text, start, is_part)).map(str::to_owned),
        );
    }
    let mut there = metrics(repository);
    for program in [env!("CARGO_BIN_EXE_chat-server"), CHAT_CLIENT] {
        // From a flag's own line, not from a text that names another flag.
        let help = help(program);
        let own = help.lines().filter(|line| line.trim_start().starts_with('-'));
        there.extend(own.flat_map(flags));
    }
    let unnamed = there.into_iter().filter(|name| !named.contains(name) && name != "--version");
    unnamed.map(|name| format!("no document names {name}")).collect()
}

/// Message numbers and errors that no example shows.
pub fn unshown(repository: &Repository, examples: &[Example]) -> Vec<String> {
    let (mut seen_msgids, mut seen_errnos) = (BTreeSet::new(), BTreeSet::new());
    for step in examples.iter().flat_map(|example| &example.steps) {
        if let What::Sends(text) | What::Gets(text) = &step.what {
            seen_msgids.extend(numbers_behind(text, &["\"msgid\":"]));
        }
        if let What::Gets(text) = &step.what {
            seen_errnos.extend(numbers_behind(text, &["\"errno\":"]));
        }
    }
    let msgids = msgids(repository).into_iter().filter(|msgid| !seen_msgids.contains(msgid));
    let errnos = errnos().into_iter().filter(|errno| !seen_errnos.contains(errno));
    let msgids = msgids.map(|msgid| format!("no example shows the msgid {msgid}"));
    msgids.chain(errnos.map(|errno| format!("no example shows the errno {errno}"))).collect()
}

/// Errors that a section on a request lists as its own, as in `- 15: there is no such user.`, and that no example shows
/// as the answer to that request.
pub fn unshown_refusals(repository: &Repository, examples: &[Example]) -> Vec<String> {
    let mut shown = BTreeSet::new();
    for example in examples {
        let mut last = BTreeMap::new();
        for step in &example.steps {
            match &step.what {
                What::Sends(text) => {
                    last.extend(numbers_behind(text, &["\"msgid\":"]).last().map(|msgid| (&step.name, *msgid)));
                }
                What::Gets(text) => {
                    let errnos = numbers_behind(text, &["\"errno\":"]);
                    shown
                        .extend(last.get(&step.name).into_iter().flat_map(|msgid| errnos.iter().map(|e| (*msgid, *e))));
                }
                _ => {}
            }
        }
    }
    let (mut listed, mut request, mut unshown) = (0, None, Vec::new());
    for (number, line) in prose(&repository.files["docs/PROTOCOL.md"]) {
        if line.starts_with('#') {
            request = None;
        }
        request = request.or_else(|| numbers_behind(line.strip_prefix('`')?, &["{\"msgid\":"]).first().copied());
        let errno = line.strip_prefix("- ").and_then(|item| item.split([':', ',']).next()?.parse().ok());
        if let (Some(request), Some(errno)) = (request, errno) {
            listed += 1;
            if !shown.contains(&(request, errno)) {
                unshown.push(format!("docs/PROTOCOL.md:{number}: no example shows errno {errno} of msgid {request}"));
            }
        }
    }
    assert!(listed > 20, "how the errors of a request are found is wrong: {listed}");
    unshown
}
