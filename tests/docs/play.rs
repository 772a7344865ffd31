//! Plays the examples of `docs/PROTOCOL.md` against a real server. The document explains their notation
//! itself, under "How to read the examples".

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use chat_server::wire::{Split, Splitter};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Client, DEADLINE, Launch, Server};

/// The connections that have logged in before an example begins, each as the user of this id and name.
const USERS: [(&str, u32, &str); 3] = [("zhang", 1, "zhang san"), ("li", 2, "li si"), ("wang", 3, "wang wu")];
const PASSWORD: &str = "123456";
/// Larger than any object of an example.
const MAX_OBJECT: usize = 1 << 20;
/// What ends a line that is sent, or comes, with exactly these bytes behind it.
const TERMINATORS: [(&str, &str); 4] = [("␀", "\0"), ("␍␊", "\r\n"), ("␊", "\n"), ("\\", "")];

/// One code block that is marked `chat`.
#[derive(Debug, Default)]
pub struct Example {
    pub flags: Vec<String>,
    pub steps: Vec<Step>,
}

#[derive(Debug)]
pub struct Step {
    /// Its line in the document.
    pub line: usize,
    /// The connection; empty for what happens to the server.
    pub name: String,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Sends(String),
    Gets(String),
    /// The client ends its half of the connection.
    Ends,
    /// The server closes the connection.
    IsClosed,
    /// The server gets SIGTERM.
    Sigterm,
    /// The file of the store is deleted.
    StoreIsGone,
}

/// The examples of a document, in their order.
pub fn examples(document: &str) -> Result<Vec<Example>, String> {
    let mut examples = Vec::new();
    let mut current: Option<Example> = None;
    for (number, line) in document.lines().enumerate().map(|(index, line)| (index + 1, line.trim())) {
        match current.as_mut() {
            None if line == "```chat" => current = Some(Example::default()),
            None => {}
            Some(_) if line == "```" => examples.extend(current.take()),
            Some(_) if line.is_empty() => {}
            Some(example) => match line.strip_prefix("server ") {
                Some(flags) => example.flags.extend(flags.split_whitespace().map(str::to_owned)),
                None => example.steps.push(step(number, line)?),
            },
        }
    }
    match current {
        Some(_) => Err("the last example does not end".to_owned()),
        None => Ok(examples),
    }
}

fn step(line: usize, text: &str) -> Result<Step, String> {
    let of = |name: &str, what| Ok(Step { line, name: name.to_owned(), what });
    match text {
        "(SIGTERM)" => return of("", What::Sigterm),
        "(the database is deleted)" => return of("", What::StoreIsGone),
        _ => {}
    }
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    match rest.trim_start().split_once(' ') {
        Some((">", "(end)")) => of(name, What::Ends),
        Some(("<", "(end)")) => of(name, What::IsClosed),
        Some((">", bytes)) => of(name, What::Sends(bytes.to_owned())),
        Some(("<", bytes)) => of(name, What::Gets(bytes.to_owned())),
        _ => Err(format!("line {line} is no step of an example: {text}")),
    }
}

/// A line without the sign for its end, and the bytes that follow it there, if it says so.
fn split_terminator(text: &str) -> (&str, Option<&'static str>) {
    let sign = TERMINATORS.iter().find_map(|(sign, bytes)| Some((text.strip_suffix(sign)?, Some(*bytes))));
    sign.unwrap_or((text, None))
}

/// What is sent for a line: `‹x × 100›` stands for a hundred times an x.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once('‹') {
        let (what, after) = behind.split_once('›').unwrap_or((behind, ""));
        let (unit, times) = what.split_once(" × ").unwrap_or((what, "1"));
        out.push_str(before);
        out.push_str(&unit.repeat(times.parse().unwrap_or(1)));
        rest = after;
    }
    out + rest
}

/// Whether what came is what a line says: `‹time›` stands for a date and a time, `‹seconds›` for a number.
fn matches(line: &str, got: &str) -> bool {
    let Some((before, behind)) = line.split_once('‹') else { return line == got };
    let Some((what, after)) = behind.split_once('›') else { return line == got };
    let Some(rest) = got.strip_prefix(before) else { return false };
    let length = match what {
        "time" => "YYYY-MM-DD HH:MM:SS".len(),
        "seconds" => rest.bytes().take_while(u8::is_ascii_digit).count(),
        _ => return false,
    };
    let Some((value, rest)) = rest.split_at_checked(length) else { return false };
    let is_right = match what {
        "time" => value
            .bytes()
            .zip(*b"0000-00-00 00:00:00")
            .all(|(byte, sign)| if sign == b'0' { byte.is_ascii_digit() } else { byte == sign }),
        _ => value.parse::<u32>().is_ok_and(|seconds| seconds > 0),
    };
    is_right && matches(after, rest)
}

/// A connection of an example. It reports what it does not get, where [`Client`] panics.
struct Connection {
    stream: TcpStream,
    splitter: Splitter,
    input: Vec<u8>,
    at: usize,
    is_closed: bool,
}

impl Connection {
    fn open(address: SocketAddr) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Connection { stream, splitter: Splitter::default(), input: Vec::new(), at: 0, is_closed: false })
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let (text, terminator) = split_terminator(line);
        let bytes = expand(text) + terminator.unwrap_or("\n");
        self.stream.write_all(bytes.as_bytes()).map_err(|error| error.to_string())
    }

    /// Reads what is there; `Ok(false)` is the orderly end of the connection.
    fn fill(&mut self) -> Result<bool, String> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(n) => {
                self.input.extend_from_slice(&chunk[..n]);
                Ok(n > 0)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err("nothing".to_owned()),
            Err(error) => Err(format!("an error of its connection: {error}")),
        }
    }

    /// The next object; `None` is the orderly end of the connection.
    fn object(&mut self) -> Result<Option<String>, String> {
        loop {
            match self.splitter.next(&self.input[self.at..], MAX_OBJECT) {
                Ok(Split::Object { start, end }) => {
                    let object = self.input[self.at + start..self.at + end].to_vec();
                    self.at += end;
                    return String::from_utf8(object).map(Some).map_err(|error| format!("no UTF-8: {error}"));
                }
                Ok(Split::Partial { skip }) => self.at += skip,
                Err(error) => return Err(format!("what is no object: {error}")),
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// The next object must be as the line has it, with the bytes behind it that it names.
    fn expect(&mut self, line: &str) -> Result<(), String> {
        let (text, terminator) = split_terminator(line);
        let got = self.object()?.ok_or("the end of its connection")?;
        if !matches(text, &got) {
            return Err(got);
        }
        let Some(terminator) = terminator else { return Ok(()) };
        while self.input.len() - self.at < terminator.len() {
            if !self.fill()? {
                break;
            }
        }
        // Behind an object that nothing follows, the next one may stand already.
        let behind = &self.input[self.at..];
        if behind.starts_with(terminator.as_bytes()) && (!terminator.is_empty() || !behind.starts_with(b"\n")) {
            return Ok(());
        }
        Err(format!("{got}, followed by {:?}", String::from_utf8_lossy(behind)))
    }

    fn expect_end(&mut self) -> Result<(), String> {
        self.is_closed = true;
        self.object()?.map_or(Ok(()), Err)
    }

    /// Nothing has come but what the example says: else it stands before the answer to a PING.
    fn expect_nothing_else(&mut self) -> Result<(), String> {
        if self.is_closed {
            return Ok(());
        }
        self.send("{\"msgid\":202}")?;
        match self.object()? {
            Some(pong) if pong.starts_with("{\"msgid\":203") => Ok(()),
            Some(other) => Err(other),
            None => Err("the end of its connection".to_owned()),
        }
    }
}

/// What every example begins with: accounts, a friend, and a group, in the file of a server that has ended.
pub struct Stage {
    file: PathBuf,
    _dir: TempDir,
}

fn launch(file: &Path, flags: &[String]) -> Launch {
    let store = format!("sqlite:{}", file.display());
    // With one worker, requests are carried out in one order.
    Launch { store, reactors: 1, workers: 1, flags: flags.to_vec(), setup: String::new(), port: 0 }
}

impl Stage {
    pub fn prepare() -> Stage {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("chat.db");
        let mut server = Server::start(&launch(&file, &[]));
        let mut clients = USERS.map(|(_, id, name)| {
            let mut client = Client::connect(server.address);
            let account = client.register(name, PASSWORD);
            assert_eq!(account.id, id);
            client.login(&account);
            client
        });
        clients[0].befriend(2);
        clients[0].must(json!({"msgid": 8, "id": 1, "groupname": "readers", "groupdesc": "of muduo"}));
        clients[1].join(1);
        assert!(server.stop("TERM").success());
        Stage { file, _dir: dir }
    }

    /// Plays one example on a server of its own, and returns what differs.
    fn play(&self, example: &Example) -> Vec<String> {
        let mut scene = Scene::set(&self.file, example);
        let mut differences: Vec<String> = example.steps.iter().filter_map(|step| scene.take(step).err()).collect();
        // After a step that failed the rest says nothing.
        if differences.is_empty() {
            differences = scene.expect_nothing_else(example);
        }
        if !differences.is_empty() {
            differences.push(scene.server.log_tail());
        }
        differences
    }

    /// Plays all, some at a time, since some of them wait for a server's timers.
    pub fn play_all(&self, examples: &[Example]) -> Vec<String> {
        let (next, differences) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(example) = examples.get(index) else { break };
                        let differs = self.play(example);
                        differences.lock().expect("no thread has panicked").insert(index, differs);
                    }
                });
            }
        });
        differences.into_inner().expect("no thread has panicked").into_values().flatten().collect()
    }
}

/// An example while it is played.
struct Scene<'a> {
    server: Server,
    connections: BTreeMap<&'a str, Connection>,
    file: PathBuf,
    _dir: TempDir,
}

impl<'a> Scene<'a> {
    /// Starts the server, on a copy of `file`, and logs in the users that occur.
    fn set(file: &Path, example: &'a Example) -> Scene<'a> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let copy = dir.path().join("chat.db");
        std::fs::copy(file, &copy).expect("a file can be copied");
        let server = Server::start(&launch(&copy, &example.flags));
        let mut scene = Scene { server, connections: BTreeMap::new(), file: copy, _dir: dir };
        for (name, id, _) in USERS.iter().filter(|(name, ..)| example.steps.iter().any(|step| step.name == *name)) {
            let connection = scene.connection(name);
            connection.send(&json!({"msgid": 1, "id": id, "password": PASSWORD}).to_string()).expect("a login");
            let reply = connection.object().expect("a reply").expect("a reply");
            assert!(reply.starts_with("{\"msgid\":2,\"errno\":0,"), "{name} cannot log in: {reply}");
        }
        scene
    }

    /// The connection of this name, which is new if the name is.
    fn connection(&mut self, name: &'a str) -> &mut Connection {
        let address = self.server.address;
        self.connections.entry(name).or_insert_with(|| Connection::open(address).expect("the server accepts"))
    }

    /// The error says what should have come, and what has.
    fn take(&mut self, step: &'a Step) -> Result<(), String> {
        let Step { line, name, what } = step;
        let differs =
            |should: &str, got: String| format!("line {line}: {name} should get\n    {should}\n  but gets\n    {got}");
        match what {
            What::Sigterm => self.server.signal("TERM"),
            What::StoreIsGone => std::fs::remove_file(&self.file).expect("a file can be deleted"),
            What::Sends(text) => {
                self.connection(name)
                    .send(text)
                    .map_err(|error| format!("line {line}: {name} cannot send: {error}"))?;
            }
            What::Ends => {
                let ended = self.connection(name).stream.shutdown(Shutdown::Write);
                ended.map_err(|error| format!("line {line}: {name} cannot end: {error}"))?;
            }
            What::Gets(text) => self.connection(name).expect(text).map_err(|got| differs(text, got))?,
            What::IsClosed => {
                self.connection(name).expect_end().map_err(|got| differs("the end of its connection", got))?;
            }
        }
        Ok(())
    }

    fn expect_nothing_else(&mut self, example: &Example) -> Vec<String> {
        let line = example.steps.first().map_or(0, |step| step.line);
        let others = self.connections.iter_mut().filter_map(|(name, connection)| {
            let got = connection.expect_nothing_else().err()?;
            Some(format!("the example at line {line}: {name} also gets\n    {got}"))
        });
        others.collect()
    }
}
