//! Several clients of one node do anything at all, whole requests and broken ones; a model that reads what they
//! send by a parser of its own says what must come of it: which reply each request gets, and that
//! each message arrives once, in order, unchanged but for `name` and `time`.
//!
//! Whatever a client does has come to rest before the next thing is done, but for readers that stall. What
//! happens when things overlap, and when the store or another node fails, is the simulation's business.
//! `CHAT_TRACE=1` prints what every client does.

mod memory;
mod node;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use chat_server::password::normal;
use chat_server::service::Shard;
use chat_server::store::UserId;
use chat_server::wire::dialect::{DialectChoice, Hearing};
use chat_server::wire::{Request, Split, Splitter, name};
use serde_json::{Value, json};

use super::strict::{self, Json};
use memory::Memory;
use node::{AFTER_LOGIN, BEFORE_LOGIN, Node, SHARDS, SocketId};

const CLIENTS: usize = 4;
const USERS: u32 = 4;
/// Longer inputs only repeat what shorter ones do.
const MAX_STEPS: usize = 200;
const MAX_NESTING: u32 = 32;
/// A byte order mark, in UTF-8.
const MARK: &[u8] = &[0xef, 0xbb, 0xbf];

const IN_USE: i64 = 2;
const REJECTED: i64 = 1;
const UNFOLLOWABLE: i64 = 10;
const TOO_LARGE: i64 = 19;

pub fn run(data: &[u8]) {
    // Once as it is, with whatever clients may send; once with what they speak being found out.
    run_with(data, DialectChoice::Canon);
    run_with(data, DialectChoice::Auto);
}

fn run_with(data: &[u8], dialect: DialectChoice) {
    let mut world = World::new(Bytes(data), dialect);
    for _ in 0..MAX_STEPS {
        if world.bytes.0.is_empty() {
            break;
        }
        world.step();
    }
    world.finish();
}

/// The input, as a source of choices.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.next()) % n
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A reply that must come.
#[derive(Debug)]
struct Expected {
    msgid: i64,
    seq: Option<i64>,
    /// Any of these; if there is none, the reply has no `errno`.
    errno: Vec<i64>,
    /// Its other fields. Lists are opened: their strings are JSON.
    fields: Vec<(&'static str, Value)>,
    /// A group chat's recipients: `delivered` and `stored` add up to it.
    recipients: Option<usize>,
    /// It may come only when a client reads that does not read now.
    may_be_late: bool,
}

impl Expected {
    fn matches(&self, reply: &Value) -> bool {
        let errno = &reply["errno"];
        reply["msgid"] == self.msgid
            && reply.get("seq").and_then(Value::as_i64) == self.seq
            && if self.errno.is_empty() { errno.is_null() } else { self.errno.iter().any(|one| errno == one) }
            && self.fields.iter().all(|(key, value)| opened(&reply[key]) == *value)
            && self.recipients.is_none_or(|recipients| {
                let count = |key: &str| reply[key].as_u64().map(|n| n as usize);
                count("delivered").zip(count("stored")).is_some_and(|(one, other)| one + other == recipients)
                    && reply.get("failed").is_none()
            })
    }
}

/// A list of strings that are JSON, as what they say.
fn opened(value: &Value) -> Value {
    match value {
        Value::Array(items) => items
            .iter()
            .map(|item| match item.as_str().map(serde_json::from_str::<Value>) {
                Some(Ok(Value::Object(fields))) => {
                    fields.into_iter().map(|(key, value)| (key, opened(&value))).collect::<Value>()
                }
                _ => item.clone(),
            })
            .collect(),
        other => other.clone(),
    }
}

/// A message as it must arrive.
struct Mail {
    fields: Vec<(String, Json)>,
    /// The same bytes, if nothing had to change.
    bytes: Option<Vec<u8>>,
}

/// A connection, as the model has it.
struct Line {
    socket: SocketId,
    user: Option<UserId>,
    /// The user to whom the messages that the client reads now were sent.
    reads_as: Option<UserId>,
    /// An object that is not whole yet.
    partial: Vec<u8>,
    /// An object, or the mark before the first, has come.
    begun: bool,
    owed: Vec<Expected>,
    uses_seq: bool,
    /// The last unknown numbers that it was told of since its last known one.
    told: Vec<i64>,
    stalled: bool,
    /// It was sent what it cannot follow, or has finished: the node closes it.
    ends: bool,
}

#[derive(Default)]
struct Inbox {
    mail: Vec<Mail>,
    arrived: usize,
}

struct World<'a> {
    bytes: Bytes<'a>,
    /// Clients are taken for what their requests tell.
    guesses: bool,
    node: Node,
    lines: [Option<Line>; CLIENTS],
    /// Name and password, by id less one.
    accounts: Vec<(String, String)>,
    friends: BTreeSet<(UserId, UserId)>,
    groups: Vec<(String, String, Vec<UserId>)>,
    inboxes: HashMap<UserId, Inbox>,
    next_seq: i64,
    next_text: u32,
    /// Print what every client does.
    trace: bool,
}

/// The fields of an object that was sent.
struct Fields<'a>(&'a [(String, Json)]);

impl Fields<'_> {
    /// `Err`: the field appears twice.
    fn get(&self, key: &str) -> Result<Option<&Json>, ()> {
        let mut found = self.0.iter().filter(|(name, _)| name == key).map(|(_, value)| value);
        match (found.next(), found.next()) {
            (first, None) => Ok(first),
            _ => Err(()),
        }
    }

    fn int(&self, key: &str) -> Result<Option<i64>, ()> {
        match self.get(key)? {
            None => Ok(None),
            Some(Json::Text(text)) => text.parse().ok().or_else(|| integral(text)).map(Some).ok_or(()),
            Some(Json::Number(number)) => integral(number).map(Some).ok_or(()),
            Some(_) => Err(()),
        }
    }

    fn required(&self, key: &str) -> Result<i64, ()> {
        self.int(key)?.ok_or(())
    }

    fn text(&self, key: &str) -> Result<Option<&str>, ()> {
        match self.get(key)? {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(()),
        }
    }

    fn sized(&self, key: &str, min: usize, max: usize) -> Result<&str, ()> {
        self.text(key)?.filter(|text| (min..=max).contains(&text.chars().count())).ok_or(())
    }

    fn password(&self) -> Result<&str, ()> {
        let (password, passwd, pwd) = (self.text("password")?, self.text("passwd")?, self.text("pwd")?);
        password.or(passwd).or(pwd).filter(|text| (1..=128).contains(&text.len())).ok_or(())
    }
}

/// The integer that is written here, with its point moved to where the exponent says: nothing but zeros may
/// be left behind it.
fn integral(text: &str) -> Option<i64> {
    let (sign, number) = if let Some(rest) = text.strip_prefix('-') { ("-", rest) } else { ("", text) };
    let number = number.to_ascii_lowercase();
    let (mantissa, exponent) = number.split_once('e').unwrap_or((&number, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if [whole, fraction, digits].iter().any(|part| part.is_empty() || !part.chars().all(|c| c.is_ascii_digit())) {
        return None;
    }
    let is_zero = |digits: &str| digits.chars().all(|c| c == '0');
    if is_zero(whole) && is_zero(fraction) {
        return Some(0);
    }
    // No message is long enough for its digits to make up for more.
    let moves: i32 = exponent.parse().ok().filter(|moves| (-10_000..10_000).contains(moves))?;
    let (mut whole, mut fraction) = (whole.to_owned(), fraction.to_owned());
    for _ in 0..moves.abs() {
        if moves > 0 {
            whole.push(if fraction.is_empty() { '0' } else { fraction.remove(0) });
        } else {
            fraction.insert(0, whole.pop().unwrap_or('0'));
        }
    }
    if is_zero(&fraction) { format!("{sign}{whole}").parse().ok() } else { None }
}

/// What stands at the front of a stream.
enum Front {
    Nothing,
    Object(Vec<u8>),
    Broken(i64),
}

fn drop_blanks(stream: &mut Vec<u8>) {
    let blank = stream.iter().take_while(|byte| b"\0 \t\r\n".contains(byte)).count();
    stream.drain(..blank);
}

/// Takes an object from the front of `stream`: the splitter's job, done byte by byte. `begun`: it is not the
/// first, or a byte order mark has stood before it.
fn take_object(stream: &mut Vec<u8>, begun: &mut bool, limit: usize) -> Front {
    drop_blanks(stream);
    if !*begun && stream.starts_with(MARK) {
        *begun = true;
        stream.drain(..MARK.len());
        drop_blanks(stream);
    }
    match &stream[..] {
        [] => return Front::Nothing,
        [b'{', ..] => *begun = true,
        [0xef] | [0xef, 0xbb] if !*begun => return Front::Nothing,
        _ => return Front::Broken(UNFOLLOWABLE),
    }
    let (mut depth, mut in_string, mut escaped) = (0_u32, false, false);
    for (at, byte) in stream.iter().enumerate().take(limit + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_NESTING {
                    return Front::Broken(UNFOLLOWABLE);
                }
            }
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 && at < limit {
                    return Front::Object(stream.drain(..=at).collect());
                }
                if depth == 0 {
                    return Front::Broken(TOO_LARGE);
                }
            }
            _ => {}
        }
    }
    if stream.len() > limit { Front::Broken(TOO_LARGE) } else { Front::Nothing }
}

/// Whether the service would take the client for one that speaks another dialect, of which this model knows nothing.
fn is_no_canon(mut stream: &[u8]) -> bool {
    let mut splitter = Splitter::default();
    while let Ok(Split::Object { start, end }) = splitter.next(stream, AFTER_LOGIN) {
        if let Ok(request) = Request::parse(&stream[start..end])
            && matches!(request.seq(), Ok(None))
            && Hearing::default().hear(&request, None).is_some()
        {
            return true;
        }
        stream = &stream[end..];
    }
    splitter.has_lengths()
}

fn user_of(id: i64) -> Option<UserId> {
    UserId::try_from(id).ok().filter(|id| (1..=i32::MAX as u32).contains(id))
}

impl<'a> World<'a> {
    fn new(mut bytes: Bytes<'a>, dialect: DialectChoice) -> World<'a> {
        let high_water = bytes.pick(&[1 << 20, 300, 120]);
        let accounts: Vec<_> = (1..=USERS).map(|id| (format!("u{id}"), "p".to_owned())).collect();
        let memory = Memory::with(accounts.clone());
        World {
            bytes,
            guesses: matches!(dialect, DialectChoice::Auto),
            node: Node::new(high_water, dialect, &Arc::new(Mutex::new(memory))),
            lines: Default::default(),
            accounts,
            friends: BTreeSet::new(),
            groups: Vec::new(),
            inboxes: HashMap::new(),
            next_seq: 0,
            next_text: 0,
            trace: std::env::var_os("CHAT_TRACE").is_some(),
        }
    }

    fn connect(&mut self, client: usize) {
        self.lines[client] = Some(Line {
            socket: self.node.connect(client % SHARDS),
            user: None,
            reads_as: None,
            partial: Vec::new(),
            begun: false,
            owed: Vec::new(),
            uses_seq: false,
            told: Vec::new(),
            stalled: false,
            ends: false,
        });
    }

    /// A client does something, and it comes to rest.
    fn step(&mut self) {
        let client = self.bytes.below(CLIENTS);
        let what = self.bytes.below(16);
        if self.lines[client].is_none() {
            self.connect(client);
        }
        if self.trace {
            println!(
                "client {client} {}",
                ["hangs up", "has finished", "stalls, or reads again"].get(what).unwrap_or(&"sends")
            );
        }
        match what {
            0 => self.cut(client),
            1 => self.finish_sending(client),
            2 => {
                let stalls = self.lines[client].as_ref().is_some_and(|line| line.user.is_some() && !line.stalled);
                self.set_stalled(client, stalls);
            }
            _ => {
                let mut text = self.request(client);
                if client % 2 == 1 && self.lines[client].as_ref().is_some_and(|line| !line.begun) {
                    text.splice(0..0, MARK.iter().copied());
                }
                self.send(client, &text);
            }
        }
        self.settle();
    }

    fn set_stalled(&mut self, client: usize, stalled: bool) {
        if let Some(line) = &mut self.lines[client] {
            line.stalled = stalled;
            if let Some(socket) = self.node.sockets.get_mut(&line.socket) {
                socket.stalled = stalled;
            }
        }
        self.settle();
    }

    fn everybody_reads(&mut self) {
        (0..CLIENTS).for_each(|client| self.set_stalled(client, false));
    }

    fn cut(&mut self, client: usize) {
        if let Some(line) = self.lines[client].take() {
            self.node.cut(line.socket);
        }
    }

    fn finish_sending(&mut self, client: usize) {
        self.everybody_reads();
        let Some(line) = &mut self.lines[client] else { return };
        if !line.partial.is_empty() {
            line.owed.push(refusal(None, None, vec![UNFOLLOWABLE]));
        }
        (line.ends, line.user) = (true, None);
        if let Some(socket) = self.node.sockets.get_mut(&line.socket) {
            socket.finished = true;
        }
    }

    /// Everything that is in flight arrives, and is what it must be.
    fn settle(&mut self) {
        self.node.settle();
        while let Some((socket, bytes)) = self.node.read.pop_front() {
            assert!(strict::read(&bytes).is_some(), "no strict JSON: {:?}", String::from_utf8_lossy(&bytes));
            let client = (0..CLIENTS).find(|at| self.lines[*at].as_ref().is_some_and(|line| line.socket == socket));
            // A client that hung up reads nothing.
            if let Some(client) = client {
                self.arrived(client, &bytes);
            }
        }
        for socket in std::mem::take(&mut self.node.closed) {
            let at = (0..CLIENTS).find(|at| self.lines[*at].as_ref().is_some_and(|line| line.socket == socket));
            let line = at.and_then(|at| self.lines[at].take()).expect("the client's connection");
            assert!(line.ends, "closed for nothing");
            assert!(line.owed.is_empty(), "closed, and owed {:?}", line.owed);
        }
        let somebody_stalls = self.lines.iter().flatten().any(|line| line.stalled);
        for line in self.lines.iter().flatten().filter(|line| !line.stalled) {
            assert!(!line.ends, "it is not closed");
            let due = line.owed.iter().find(|expected| !expected.may_be_late || !somebody_stalls);
            assert!(due.is_none(), "no reply: {due:?}");
        }
    }

    fn arrived(&mut self, client: usize, bytes: &[u8]) {
        let value: Value = serde_json::from_slice(bytes).expect("JSON");
        let line = self.lines[client].as_mut().expect("a connection");
        // The msgid of a chat is as its sender wrote it: it may be 6.0.
        let is_chat = matches!(value["msgid"].as_f64(), Some(6.0 | 10.0));
        if is_chat && value.get("errno").is_none() {
            let user = line.reads_as.expect("a message for nobody");
            return self.got_mail(user, bytes);
        }
        let at = line.owed.iter().position(|expected| expected.matches(&value));
        let at = at.unwrap_or_else(|| panic!("nobody asked for {value}, but for {:?}", line.owed));
        line.owed.remove(at);
        if value["msgid"] == 2 && value["errno"] == 0 {
            let user = value["id"].as_u64().expect("an id") as UserId;
            line.reads_as = Some(user);
            for offline in value["offlinemsg"].as_array().into_iter().flatten() {
                self.got_mail(user, offline.as_str().expect("a string").as_bytes());
            }
        }
    }

    fn got_mail(&mut self, user: UserId, bytes: &[u8]) {
        let inbox = self.inboxes.get_mut(&user).expect("mail for somebody");
        let text = String::from_utf8_lossy(bytes);
        let mail = inbox.mail.get(inbox.arrived).unwrap_or_else(|| panic!("{user} was sent nothing more: {text}"));
        inbox.arrived += 1;
        if let Some(expected) = &mail.bytes {
            return assert_eq!(text, String::from_utf8_lossy(expected), "not the bytes that were sent to {user}");
        }
        let Some(Json::Object(mut fields)) = strict::read(bytes) else { panic!("{text}") };
        if mail.fields.len() < fields.len() {
            // It had no time, so it got one.
            let Some((key, Json::Text(time))) = fields.pop() else { panic!("{text}") };
            assert!(key == "time" && time.len() == 19, "{text}");
        }
        assert_eq!(fields, mail.fields, "not what was sent to {user}");
    }

    /// All clients read, come back, and have got everything.
    fn finish(&mut self) {
        self.everybody_reads();
        (0..CLIENTS).for_each(|client| self.cut(client));
        self.settle();
        for user in 1..=self.accounts.len() as UserId {
            let Some(client) = (0..CLIENTS).find(|client| self.lines[*client].is_none()) else { break };
            self.connect(client);
            let password = Value::from(&*self.accounts[user as usize - 1].1);
            self.send(client, format!("{{\"msgid\":1,\"id\":{user},\"password\":{password}}}").as_bytes());
            self.settle();
            let inbox = self.inboxes.entry(user).or_default();
            assert_eq!(inbox.arrived, inbox.mail.len(), "messages of {user} are lost");
            self.cut(client);
            self.settle();
        }
        for shard in 0..SHARDS {
            self.node.call(shard, |shard, now, fx| shard.stop(now, fx));
        }
        self.node.settle();
        let population: Vec<_> = self.node.shards.iter().map(Shard::population).collect();
        assert!(population.iter().all(|count| *count == (0, 0)), "left behind: {population:?}");
    }

    // -- what clients send ----------------------------------------------------------------------

    /// A request, right or wrong.
    fn request(&mut self, client: usize) -> Vec<u8> {
        let me = self.lines[client].as_ref().and_then(|line| line.user);
        let msgid = self.bytes.pick(&[1, 6, 6, 10, 8, 9, 3, 7, 4, 206, 202, 1, 6, 10, 203, 77]);
        let style = self.bytes.next();
        let any = 1 + self.bytes.below(USERS as usize + 2) as UserId;
        // A client that is not logged in uses any id; one that is logged in mostly uses its own.
        let id = if msgid == 1 || style & 0x0f == 1 { any } else { me.unwrap_or(any) };
        self.next_text += 1;
        let number = self.next_text;
        let to = 1 + self.bytes.below(USERS as usize + 1);
        // Some languages know no numbers but doubles.
        let point = ["", "", ".0", "e0", "0e-1"][number as usize % 5];
        let mut text = format!("{{\"msgid\":{msgid}{point},\"id\":{id}{point}");
        match msgid {
            1 => text += if style & 0x0f == 2 { ",\"passwd\":\"wrong\"" } else { ",\"password\":\"p\"" },
            4 => text += &format!(",\"name\":\"{}\",\"pwd\":\"p\"", self.bytes.pick(&["U1", "ann", "Ann", "bob", ""])),
            6 | 10 => {
                let pad = "x".repeat(4 * usize::from(self.bytes.next()) % 300);
                let key = if msgid == 10 { "groupid" } else { self.bytes.pick(&["toid", "to"]) };
                text += &format!(",\"{key}\":{to}{point},\"msg\":\"{number} {pad}\"");
                match style & 0x30 {
                    0x10 => text += &format!(",\"name\":\"u{id}\""),
                    0x20 => text += &format!(",\"name\":\"u{id}\",\"time\":\"now\""),
                    0x30 => text += ",\"name\":\"somebody\",\"time\":\"\",\"more\":[{\"\\u00e9\":1.50}]",
                    _ => {}
                }
            }
            7 => text += &format!(",\"friendid\":\"{to}{point}\""),
            8 => {
                text += &format!(",\"groupname\":\"{}\",\"groupdesc\":\"\"", self.bytes.pick(&["g", "G", "h", "i", ""]))
            }
            9 => text += &format!(",\"groupid\":{to}{point}"),
            _ => {}
        }
        if style & 0x40 != 0 {
            self.next_seq += 1;
            text += &format!(",\"seq\":{}{point}", self.next_seq);
        }
        text.push('}');
        let mut text = text.into_bytes();
        if style & 0x80 != 0 {
            self.damage(&mut text);
        }
        text
    }

    /// Changes a request a little: it may still be one.
    fn damage(&mut self, text: &mut Vec<u8>) {
        let at = usize::from(self.bytes.next()) % text.len();
        match self.bytes.below(6) {
            0 => text.truncate(at),
            1 => text[at] = self.bytes.next(),
            2 => _ = text.remove(at),
            3 => text.insert(at, self.bytes.pick(b"{}[]\",:\\0-e. \n")),
            4 => text.extend_from_slice(&text.clone()),
            _ => {
                let more = usize::from(self.bytes.next());
                let more: Vec<u8> =
                    (0..more).map_while(|_| (!self.bytes.0.is_empty()).then(|| self.bytes.next())).collect();
                text.splice(at..at, more);
            }
        }
    }

    fn send(&mut self, client: usize, bytes: &[u8]) {
        if self.trace {
            println!("client {client}: {}", bytes.escape_ascii());
        }
        // A client that sends reads as well.
        self.set_stalled(client, false);
        let Some(line) = &mut self.lines[client] else { return };
        if self.guesses && is_no_canon(&[&line.partial, bytes].concat()) {
            return;
        }
        line.partial.extend_from_slice(bytes);
        if let Some(socket) = self.node.sockets.get_mut(&line.socket) {
            socket.input.extend_from_slice(bytes);
        }
        while let Some(line) = self.lines[client].as_mut().filter(|line| !line.ends) {
            let limit = if line.user.is_some() { AFTER_LOGIN } else { BEFORE_LOGIN };
            match take_object(&mut line.partial, &mut line.begun, limit) {
                Front::Nothing => return,
                Front::Broken(errno) => self.broken(client, errno),
                Front::Object(object) => match strict::read(&object) {
                    Some(Json::Object(fields)) => self.object(client, &object, &fields),
                    _ => self.broken(client, UNFOLLOWABLE),
                },
            }
        }
    }

    fn broken(&mut self, client: usize, errno: i64) {
        self.everybody_reads_but_keep_input();
        if let Some(line) = &mut self.lines[client] {
            line.owed.push(refusal(None, None, vec![errno]));
            (line.ends, line.user) = (true, None);
        }
    }

    /// A session that ends waits for what it has sent, and so for clients that do not read.
    fn everybody_reads_but_keep_input(&mut self) {
        for line in self.lines.iter_mut().flatten() {
            line.stalled = false;
            if let Some(socket) = self.node.sockets.get_mut(&line.socket) {
                socket.stalled = false;
            }
        }
    }

    // -- what must come of it -------------------------------------------------------------------

    fn object(&mut self, client: usize, object: &[u8], fields: &[(String, Json)]) {
        let fields = Fields(fields);
        let (msgid, seq) = (fields.required("msgid"), fields.int("seq"));
        let is_known = matches!(msgid, Ok(1 | 3 | 4 | 6..=10 | 202 | 203 | 206));
        if let Some(line) = &mut self.lines[client] {
            line.told.retain(|_| !is_known);
            line.uses_seq |= msgid.is_ok() && matches!(seq, Ok(Some(_)));
        }
        let (Ok(msgid), Ok(seq)) = (msgid, seq) else {
            return self.owe(client, refusal(msgid.ok(), seq.unwrap_or(None), vec![12]));
        };
        if !matches!(msgid, 6 | 10 | 202 | 203) {
            self.everybody_reads_but_keep_input();
        }
        let me = self.lines[client].as_ref().and_then(|line| line.user);
        let mut wrong = Vec::new();
        if matches!(msgid, 3 | 6..=10) {
            match (me, fields.required("id")) {
                (None, _) => wrong.push(13),
                (_, Err(())) => wrong.push(12),
                (Some(me), Ok(id)) if id != i64::from(me) => wrong.push(14),
                _ => {}
            }
        }
        let me = me.unwrap_or(0);
        match msgid {
            1 => self.login(client, seq, &fields),
            3 => {
                if wrong.is_empty() {
                    self.set_user(client, None);
                }
                self.done(client, msgid, seq, wrong, Vec::new());
            }
            4 => self.register(client, seq, &fields),
            6 => self.chat(client, me, seq, &fields, object, wrong),
            7 => {
                let friend = fields.required("friendid").map(user_of);
                match friend {
                    Err(()) => wrong.push(12),
                    Ok(Some(friend)) if self.exists(friend) => {
                        if self.friends.contains(&(me, friend)) {
                            wrong.push(18);
                        } else if wrong.is_empty() {
                            self.friends.insert((me, friend));
                        }
                    }
                    Ok(_) => wrong.push(15),
                }
                self.done(client, msgid, seq, wrong, Vec::new());
            }
            8 => {
                let (name, description) = (fields.sized("groupname", 1, 50), fields.sized("groupdesc", 0, 200));
                let mut told = Vec::new();
                match (name, description) {
                    (Ok(name), Ok(description)) if name::problem(name).is_none() => {
                        if self.groups.iter().any(|(taken, _, _)| name::key(taken) == name::key(name)) {
                            wrong.push(18);
                        } else if wrong.is_empty() {
                            self.groups.push((name.to_owned(), description.to_owned(), vec![me]));
                            told.push(("groupid", json!(self.groups.len())));
                        }
                    }
                    _ => wrong.push(12),
                }
                self.done(client, msgid, seq, wrong, told);
            }
            9 => {
                match fields.required("groupid").map(|id| self.group(id)) {
                    Err(()) => wrong.push(12),
                    Ok(None) => wrong.push(16),
                    Ok(Some(group)) if self.groups[group].2.contains(&me) => wrong.push(18),
                    Ok(Some(group)) if wrong.is_empty() => self.groups[group].2.push(me),
                    Ok(Some(_)) => {}
                }
                self.done(client, msgid, seq, wrong, Vec::new());
            }
            10 => self.group_chat(client, me, seq, &fields, object, wrong),
            202 => self.owe(client, Expected { msgid: 203, errno: Vec::new(), ..refusal(None, seq, Vec::new()) }),
            203 => {}
            206 if me == 0 => self.done(client, msgid, seq, vec![13], Vec::new()),
            206 => {
                let fields = self.lists(me);
                self.owe(client, Expected { msgid: 200, errno: vec![0], fields, ..refusal(None, seq, Vec::new()) });
            }
            _ if seq.is_none() && self.was_told(client, msgid) => {}
            _ => self.done(client, msgid, seq, vec![11], Vec::new()),
        }
    }

    /// Whether a client that does not use `seq` was told already that this number is unknown.
    fn was_told(&mut self, client: usize, msgid: i64) -> bool {
        let Some(line) = self.lines[client].as_mut().filter(|line| !line.uses_seq) else { return false };
        let was_told = line.told.contains(&msgid);
        if !was_told {
            line.told.push(msgid);
            line.told = line.told.split_off(line.told.len().saturating_sub(8));
        }
        was_told
    }

    fn exists(&self, user: UserId) -> bool {
        user as usize <= self.accounts.len()
    }

    /// The index of a group.
    fn group(&self, id: i64) -> Option<usize> {
        user_of(id).map(|id| id as usize - 1).filter(|index| *index < self.groups.len())
    }

    fn set_user(&mut self, client: usize, user: Option<UserId>) {
        if let Some(line) = &mut self.lines[client] {
            line.user = user;
        }
    }

    fn is_online(&self, user: UserId) -> bool {
        self.lines.iter().flatten().any(|line| line.user == Some(user))
    }

    fn owe(&mut self, client: usize, expected: Expected) {
        if let Some(line) = &mut self.lines[client] {
            line.owed.push(expected);
        }
    }

    /// A request was refused for any of these reasons, or else done; without `seq` nothing reports that.
    fn done(
        &mut self,
        client: usize,
        msgid: i64,
        seq: Option<i64>,
        wrong: Vec<i64>,
        fields: Vec<(&'static str, Value)>,
    ) {
        if !wrong.is_empty() {
            self.owe(client, refusal(Some(msgid), seq, wrong));
        } else if seq.is_some() {
            self.owe(client, Expected { fields, ..refusal(None, seq, vec![0]) });
        }
    }

    fn login(&mut self, client: usize, seq: Option<i64>, fields: &Fields) {
        let (Ok(id), Ok(password)) = (fields.required("id"), fields.password()) else {
            return self.owe(client, refusal(Some(1), seq, vec![12]));
        };
        let me = self.lines[client].as_ref().and_then(|line| line.user);
        if me.map(i64::from) == Some(id) {
            return self.owe(client, refusal(Some(1), seq, vec![IN_USE]));
        }
        self.set_user(client, None);
        let user = user_of(id).filter(|user| self.exists(*user));
        let Some(user) = user.filter(|user| normal(&self.accounts[*user as usize - 1].1) == normal(password)) else {
            return self.owe(client, refusal(Some(1), seq, vec![REJECTED]));
        };
        if self.is_online(user) {
            return self.owe(client, refusal(Some(1), seq, vec![IN_USE]));
        }
        self.set_user(client, Some(user));
        self.inboxes.entry(user).or_default();
        // A user that was logged in here before is just being shown offline.
        let mut fields = if me.is_some() { Vec::new() } else { self.lists(user) };
        fields.push(("id", json!(user)));
        fields.push(("name", json!(self.accounts[user as usize - 1].0)));
        fields.push(("state", json!("online")));
        self.owe(client, Expected { msgid: 2, fields, ..refusal(None, seq, vec![0]) });
    }

    fn register(&mut self, client: usize, seq: Option<i64>, fields: &Fields) {
        let Ok(name) = fields.sized("name", 1, 50) else {
            return self.owe(client, refusal(Some(4), seq, vec![12]));
        };
        if name::problem(name).is_some() {
            return self.owe(client, refusal(Some(4), seq, vec![REJECTED]));
        }
        let Ok(password) = fields.password() else {
            return self.owe(client, refusal(Some(4), seq, vec![12]));
        };
        if self.accounts.iter().any(|(taken, _)| name::key(taken) == name::key(name)) {
            return self.owe(client, refusal(Some(4), seq, vec![REJECTED]));
        }
        self.accounts.push((name.to_owned(), password.to_owned()));
        let fields = vec![("id", json!(self.accounts.len()))];
        self.owe(client, Expected { msgid: 5, fields, ..refusal(None, seq, vec![0]) });
    }

    /// `friends` and `groups` of a login reply or a list, opened; null where there are none.
    fn lists(&self, user: UserId) -> Vec<(&'static str, Value)> {
        let name = |id: UserId| &self.accounts[id as usize - 1].0;
        let state = |id: UserId| if self.is_online(id) { "online" } else { "offline" };
        let friends: Vec<Value> = self
            .friends
            .range((user, 0)..=(user, UserId::MAX))
            .map(|&(_, id)| json!({"id": id, "name": name(id), "state": state(id)}))
            .collect();
        let mut groups = Vec::new();
        for (index, (groupname, groupdesc, members)) in self.groups.iter().enumerate() {
            if !members.contains(&user) {
                continue;
            }
            let role = |id: UserId| if id == members[0] { "creator" } else { "normal" };
            let mut sorted = members.clone();
            sorted.sort_unstable();
            let users: Vec<Value> = sorted
                .into_iter()
                .map(|id| json!({"id": id, "name": name(id), "state": state(id), "role": role(id)}))
                .collect();
            groups.push(json!({"id": index + 1, "groupname": groupname, "groupdesc": groupdesc, "users": users}));
        }
        let list = |items: Vec<Value>| if items.is_empty() { Value::Null } else { Value::Array(items) };
        vec![("friends", list(friends)), ("groups", list(groups))]
    }

    /// A chat as it must arrive, if it may be one.
    fn mail(&self, me: UserId, fields: &Fields, object: &[u8]) -> Result<Mail, ()> {
        fields.text("msg")?.ok_or(())?;
        let (name, time) = (fields.text("name")?, fields.text("time")?);
        if me == 0 {
            return Err(()); // it is refused anyway
        }
        let account = &self.accounts[me as usize - 1].0;
        let bytes = (name == Some(account) && time.is_some()).then(|| object.to_vec());
        let mut fields = fields.0.to_vec();
        match fields.iter_mut().find(|(key, _)| key == "name") {
            Some((_, value)) => *value = Json::Text(account.clone()),
            None => fields.push(("name".to_owned(), Json::Text(account.clone()))),
        }
        Ok(Mail { fields, bytes })
    }

    fn post(&mut self, to: UserId, mail: &Mail) {
        let mail = Mail { fields: mail.fields.clone(), bytes: mail.bytes.clone() };
        self.inboxes.entry(to).or_default().mail.push(mail);
    }

    /// Whether a message to this user is delivered; `None`: it may be delivered or go through the store, since what
    /// is sent in one turn passes a low mark, or since the user does not read.
    fn delivered(&self, user: UserId) -> Option<bool> {
        match self.lines.iter().flatten().find(|line| line.user == Some(user)) {
            None => Some(false),
            Some(line) if line.stalled || self.node.high_water < AFTER_LOGIN => None,
            Some(_) => Some(true),
        }
    }

    fn stalls(&self, user: UserId) -> bool {
        self.lines.iter().flatten().any(|line| line.user == Some(user) && line.stalled)
    }

    fn chat(
        &mut self,
        client: usize,
        me: UserId,
        seq: Option<i64>,
        fields: &Fields,
        object: &[u8],
        mut wrong: Vec<i64>,
    ) {
        let to = match (fields.int("toid"), fields.int("to")) {
            (Ok(toid), Ok(to)) => toid.or(to).ok_or(()),
            _ => Err(()),
        };
        let mail = self.mail(me, fields, object);
        if to.is_err() || mail.is_err() {
            wrong.push(if me == 0 { 13 } else { 12 });
        }
        let to = to.ok().and_then(user_of).filter(|to| self.exists(*to));
        if to.is_none() {
            wrong.push(15);
        }
        let (true, Some(to), Ok(mail)) = (wrong.is_empty(), to, mail) else {
            return self.done(client, 6, seq, wrong, Vec::new());
        };
        self.post(to, &mail);
        if seq.is_some() {
            let delivered = self.delivered(to);
            let fields = delivered.map(|delivered| ("delivered", json!(delivered))).into_iter().collect();
            let may_be_late = self.stalls(to);
            self.owe(client, Expected { fields, may_be_late, ..refusal(None, seq, vec![0]) });
        }
    }

    fn group_chat(
        &mut self,
        client: usize,
        me: UserId,
        seq: Option<i64>,
        fields: &Fields,
        object: &[u8],
        mut wrong: Vec<i64>,
    ) {
        let mail = self.mail(me, fields, object);
        let id = fields.required("groupid");
        if mail.is_err() || id.is_err() {
            wrong.push(if me == 0 { 13 } else { 12 });
        }
        let group = id.ok().and_then(|id| self.group(id));
        match group {
            None => wrong.push(16),
            Some(group) if !self.groups[group].2.contains(&me) => wrong.push(17),
            Some(_) => {}
        }
        let (true, Some(group), Ok(mail)) = (wrong.is_empty(), group, mail) else {
            return self.done(client, 10, seq, wrong, Vec::new());
        };
        let to: Vec<UserId> = self.groups[group].2.iter().copied().filter(|member| *member != me).collect();
        to.iter().for_each(|to| self.post(*to, &mail));
        if seq.is_some() {
            let may_be_late = to.iter().any(|to| self.stalls(*to));
            let delivered: Option<Vec<bool>> = to.iter().map(|to| self.delivered(*to)).collect();
            let delivered = delivered.map(|all| all.into_iter().filter(|delivered| *delivered).count());
            let fields = delivered.map(|delivered| ("delivered", json!(delivered))).into_iter().collect();
            let recipients = Some(to.len());
            self.owe(client, Expected { fields, recipients, may_be_late, ..refusal(None, seq, vec![0]) });
        }
    }
}

/// The one reply of a request that is refused.
fn refusal(request: Option<i64>, seq: Option<i64>, errno: Vec<i64>) -> Expected {
    let msgid = match (request, seq) {
        (Some(1), _) => 2,
        (Some(4), _) => 5,
        (Some(202), _) => 203,
        (_, Some(_)) => 200,
        (_, None) => 201,
    };
    let fields = match (msgid, request) {
        (201, Some(request)) => vec![("request", json!(request))],
        _ => Vec::new(),
    };
    Expected { msgid, seq, errno, fields, recipients: None, may_be_late: false }
}
