//! A stand-in for a node of the C++ ChatServer: what it asks of MySQL and Redis, word for word, and
//! what crashes it. There are two of them: a copy as most are, and the reference with all its faults.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat_server::wire::{Framing, msgid};
use mysql::prelude::Queryable;
use mysql::{Conn, Opts, OptsBuilder, Row};
use redis::{Parser, Value as Reply};
use serde_json::{Value, json};

use super::{Account, Client, DEADLINE, login};

/// The tables, as the reference's README makes them.
pub const REFERENCE: &str = "
    CREATE TABLE User (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(50) NOT NULL UNIQUE,
        password VARCHAR(50) NOT NULL, state ENUM('online', 'offline') DEFAULT 'offline');
    CREATE TABLE Friend (userid INT NOT NULL, friendid INT NOT NULL, PRIMARY KEY (userid, friendid));
    CREATE TABLE AllGroup (id INT PRIMARY KEY AUTO_INCREMENT, groupname VARCHAR(50) NOT NULL UNIQUE,
        groupdesc VARCHAR(200) DEFAULT '');
    CREATE TABLE GroupUser (groupid INT NOT NULL, userid INT NOT NULL,
        grouprole ENUM('creator', 'normal') DEFAULT 'normal', PRIMARY KEY (groupid, userid));
    CREATE TABLE OfflineMessage (userid INT PRIMARY KEY NOT NULL, message VARCHAR(50) NOT NULL)";

/// The same, as most copies have them.
pub const COPY: &str = "
    CREATE TABLE User (id INT NOT NULL AUTO_INCREMENT, name VARCHAR(50) DEFAULT NULL,
        password VARCHAR(50) DEFAULT NULL, state ENUM('online', 'offline') CHARACTER SET latin1 DEFAULT 'offline',
        PRIMARY KEY (id), UNIQUE KEY name (name));
    CREATE TABLE Friend (userid INT NOT NULL, friendid INT NOT NULL, KEY userid (userid, friendid));
    CREATE TABLE AllGroup (id INT NOT NULL AUTO_INCREMENT, groupname VARCHAR(50) CHARACTER SET latin1 NOT NULL,
        groupdesc VARCHAR(200) CHARACTER SET latin1 DEFAULT '', PRIMARY KEY (id));
    CREATE TABLE GroupUser (groupid INT NOT NULL, userid INT NOT NULL,
        grouprole ENUM('creator', 'normal') CHARACTER SET latin1 DEFAULT NULL, KEY groupid (groupid, userid));
    CREATE TABLE OfflineMessage (userid INT NOT NULL, message VARCHAR(500) NOT NULL)";

/// Its buffer for a statement, which sprintf writes into.
const SQL_BUFFER: usize = 1024;

/// Two logins or disconnects closer together than this spoil the one connection to Redis that all threads of the
/// reference share; …
const SIDE_BY_SIDE: Duration = Duration::from_millis(10);
/// … and so do messages of two clients to another node.
const AT_A_TIME: Duration = Duration::from_millis(50);
/// What one read of the reference takes.
const READ: usize = 64 * 1024;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In canon, and careful with what it shares.
    Copy,
    /// `error` for `errno`, `to` for `toid`, `friend` for `friends`; no msgid and no errno in a login's reply, no
    /// groups there, no logout; nothing behind its objects. Two objects in one read end it, and so do logins,
    /// disconnects, or senders to other nodes, that come side by side.
    Reference,
}

/// A node, on a port of its own. Whatever crashes the C++ one fails the test, at the latest when
/// this is dropped.
pub struct CppNode {
    pub address: SocketAddr,
    node: Arc<Node>,
    acceptor: Option<JoinHandle<()>>,
    subscriber: Option<JoinHandle<()>>,
}

struct Node {
    kind: Kind,
    mysql: Opts,
    state: Mutex<State>,
    /// It takes no more input: it is ending, or has died.
    ending: AtomicBool,
    died: AtomicBool,
}

/// What all its threads share, behind its one lock.
struct State {
    /// The users who are logged in here, and from where.
    users: HashMap<i64, (SocketAddr, TcpStream)>,
    /// All connections, so that its end closes them.
    connections: Vec<TcpStream>,
    publisher: redis::Connection,
    /// The writing half of the connection that subscribes.
    subscriber: TcpStream,
    /// When a login or a disconnect last was over.
    changed: Option<Instant>,
    /// The user who last wrote to another node, and when.
    published: Option<(SocketAddr, Instant)>,
}

impl CppNode {
    pub fn start(mysql: &str, redis: &str) -> CppNode {
        CppNode::start_as(Kind::Copy, mysql, redis, 0)
    }

    /// On port 0: on a free one.
    pub fn start_as(kind: Kind, mysql: &str, redis: &str, port: u16) -> CppNode {
        let client = redis::Client::open(redis).unwrap();
        let subscriber = TcpStream::connect(client.get_connection_info().addr().to_string()).unwrap();
        let messages = subscriber.try_clone().unwrap();
        let publisher = client.get_connection().unwrap();
        publisher.set_read_timeout(Some(DEADLINE)).unwrap();
        let (users, connections, changed, published) = (HashMap::new(), Vec::new(), None, None);
        let state = State { users, connections, publisher, subscriber, changed, published };
        let mysql = OptsBuilder::from_opts(Opts::from_url(mysql).unwrap()).prefer_socket(false).into();
        let (ending, died) = (AtomicBool::new(false), AtomicBool::new(false));
        let node = Arc::new(Node { kind, mysql, state: Mutex::new(state), ending, died });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let address = listener.local_addr().unwrap();
        let subscriber = Arc::clone(&node).thread(move |node| node.hear(messages));
        let acceptor = Arc::clone(&node).thread(move |node| node.accept(&listener));
        CppNode { address, node, acceptor: Some(acceptor), subscriber: Some(subscriber) }
    }

    /// `kill -9`: users who are logged in here stay online.
    pub fn crash(self) {}

    /// Ctrl-C, which sets all users offline, wherever they are.
    pub fn interrupt(self) {
        self.node.update("update User set state = 'offline' where state = 'online'");
    }

    /// The moment between a user's leaving and the end of the subscription: what comes now is for
    /// no user here.
    pub fn lose(&self, user: u32) {
        self.node.state().users.remove(&user.into()).expect("is logged in here");
    }

    /// It has not died, so far.
    pub fn is_alive(&self) -> bool {
        !self.node.died.load(Ordering::Relaxed)
    }

    pub fn client(&self) -> CppClient {
        let client = Client::connect(self.address).framed(Framing::Nul);
        CppClient { client, account: None, pushes: VecDeque::new() }
    }
}

impl Drop for CppNode {
    fn drop(&mut self) {
        self.node.end();
        let _ = TcpStream::connect(self.address); // wakes the acceptor
        for thread in [self.acceptor.take(), self.subscriber.take()].into_iter().flatten() {
            let _ = thread.join();
        }
        let died = self.node.died.load(Ordering::Relaxed);
        assert!(!died || std::thread::panicking(), "the C++ node has died, see above");
    }
}

impl Node {
    fn thread(self: Arc<Node>, run: impl FnOnce(Arc<Node>) + Send + 'static) -> JoinHandle<()> {
        std::thread::spawn(move || {
            let node = Arc::clone(&self);
            if catch_unwind(AssertUnwindSafe(|| run(node))).is_err() {
                self.died.store(true, Ordering::Relaxed);
                self.end();
            }
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let state = self.state();
        self.ending.store(true, Ordering::Relaxed);
        for stream in state.connections.iter().chain([&state.subscriber]) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn accept(self: Arc<Node>, listener: &TcpListener) {
        let mut threads = Vec::new();
        loop {
            let (stream, peer) = listener.accept().unwrap();
            let mut state = self.state();
            if self.is_ending() {
                break;
            }
            state.connections.push(stream.try_clone().unwrap());
            drop(state);
            threads.push(Arc::clone(&self).thread(move |node| node.serve(stream, peer)));
        }
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }

    // -- a client ---------------------------------------------------------------------------

    fn serve(&self, mut stream: TcpStream, peer: SocketAddr) {
        match self.kind {
            Kind::Copy => {
                let mut input = BufReader::new(stream.try_clone().unwrap());
                let mut object = Vec::new();
                while let Ok(Some(byte)) = next_byte(&mut input) {
                    // NUL from a C++ client, LF from others.
                    if !matches!(byte, 0 | b'\n') {
                        object.push(byte);
                    } else if !object.is_empty() {
                        self.request(&mut stream, peer, &object);
                        object.clear();
                    }
                }
            }
            Kind::Reference => {
                let mut buffer = vec![0; READ];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let end = buffer[..length].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                    self.request(&mut stream, peer, &buffer[..end]);
                }
            }
        }
        let begun = Instant::now();
        let mut state = self.state();
        if self.is_ending() {
            return;
        }
        state.touch(self.kind, begun);
        let user = state.users.iter().find(|(_, (from, _))| *from == peer).map(|(user, _)| *user);
        if let Some(user) = user {
            self.log_out(&mut state, user);
        }
        state.changed = Some(Instant::now());
        let _ = stream.shutdown(Shutdown::Both); // its client may be gone
    }

    fn request(&self, stream: &mut TcpStream, peer: SocketAddr, object: &[u8]) {
        let (js, begun) = (parsed(object), Instant::now());
        let mut state = self.state();
        if self.is_ending() {
            return;
        }
        match js["msgid"].as_i64().unwrap() {
            msgid::LOGIN => {
                let connection = (peer, stream.try_clone().unwrap());
                let reply = self.log_in(&mut state, connection, integer(&js, "id"), string(&js, "password"), begun);
                self.send(stream, &self.in_its_words(reply));
            }
            msgid::LOGOUT if self.kind == Kind::Reference => {} // no handler: a line in the log
            msgid::LOGOUT => self.log_out(&mut state, integer(&js, "id")),
            msgid::REGISTER => {
                let (name, password) = (string(&js, "name"), string(&js, "password"));
                let sql = format!("insert into User(name, password, state) values('{name}', '{password}', 'offline')");
                let reply = match self.update(&sql) {
                    Some(id) => json!({"msgid": msgid::REGISTER_ACK, "errno": 0, "id": id}),
                    // The reference does not look whether that has gone well.
                    None if self.kind == Kind::Reference => json!({"msgid": msgid::REGISTER_ACK, "errno": 0, "id": -1}),
                    None => json!({"msgid": msgid::REGISTER_ACK, "errno": 1}),
                };
                self.send(stream, &self.in_its_words(reply));
            }
            msgid::ONE_CHAT => {
                let to = if self.kind == Kind::Reference { "to" } else { "toid" };
                self.chat(&mut state, peer, integer(&js, to), &js);
            }
            msgid::ADD_FRIEND => {
                let (user, friend) = (integer(&js, "id"), integer(&js, "friendid"));
                self.update(&format!("insert into Friend values({user}, {friend})"));
            }
            msgid::CREATE_GROUP => {
                let (name, about) = (string(&js, "groupname"), string(&js, "groupdesc"));
                let sql = format!("insert into AllGroup(groupname, groupdesc) values('{name}', '{about}')");
                if let Some(group) = self.update(&sql) {
                    let group = if self.kind == Kind::Reference { -1 } else { group as i64 };
                    self.join_group(integer(&js, "id"), group, "creator");
                }
            }
            msgid::JOIN_GROUP => self.join_group(integer(&js, "id"), integer(&js, "groupid"), "normal"),
            msgid::GROUP_CHAT => {
                let (user, group) = (integer(&js, "id"), integer(&js, "groupid"));
                let sql = format!("select userid from GroupUser where groupid = {group} and userid != {user}");
                for row in self.query(&sql) {
                    self.chat(&mut state, peer, number(&row, 0), &js);
                }
            }
            other => panic!("no handler for msgid {other}"),
        }
    }

    fn log_in(
        &self,
        state: &mut State,
        connection: (SocketAddr, TcpStream),
        id: i64,
        password: &str,
        begun: Instant,
    ) -> Value {
        let Some(user) = self.user(id).filter(|user| user.password == password.as_bytes()) else {
            return json!({"msgid": msgid::LOGIN_ACK, "errno": 1, "errmsg": "id or password is invalid!"});
        };
        if user.state == b"online" {
            let errmsg = "this account is using, input another!";
            return json!({"msgid": msgid::LOGIN_ACK, "errno": 2, "errmsg": errmsg});
        }
        state.touch(self.kind, begun);
        state.users.insert(id, connection);
        state.tell_redis("SUBSCRIBE", id);
        self.update(&format!("update User set state = 'online' where id = {id}"));
        let mut reply = json!({"msgid": msgid::LOGIN_ACK, "errno": 0, "id": id, "name": dumped(user.name)});
        let messages = self.query(&format!("select message from OfflineMessage where userid={id}"));
        if !messages.is_empty() {
            reply["offlinemsg"] = messages.iter().map(|row| dumped(bytes(row, 0))).collect();
            self.update(&format!("delete from OfflineMessage where userid={id}"));
        }
        let friends = self.query(&format!(
            "select a.id,a.name,a.state from User a inner join Friend b on b.friendid = a.id where b.userid={id}"
        ));
        if !friends.is_empty() {
            let friend = |row: &Row| {
                json!({"id": number(row, 0), "name": dumped(bytes(row, 1)), "state": dumped(bytes(row, 2))}).to_string()
            };
            reply["friends"] = friends.iter().map(friend).collect();
        }
        let groups = self.query(&format!(
            "select a.id,a.groupname,a.groupdesc from AllGroup a inner join GroupUser b on a.id = b.groupid \
             where b.userid={id}"
        ));
        if !groups.is_empty() {
            reply["groups"] = groups.iter().map(|row| self.group(row)).collect();
        }
        state.changed = Some(Instant::now());
        reply
    }

    /// A reply in canon, as this kind says it.
    fn in_its_words(&self, mut reply: Value) -> Value {
        if let (Kind::Reference, Value::Object(fields)) = (self.kind, &mut reply) {
            let errno = fields.remove("errno").unwrap_or_default();
            fields.insert("error".into(), errno);
            if fields["msgid"] == msgid::LOGIN_ACK {
                fields.remove("msgid");
                fields.remove("groups");
                if let Some(friends) = fields.remove("friends") {
                    fields.insert("friend".into(), friends);
                }
            }
        }
        reply
    }

    fn group(&self, row: &Row) -> String {
        let id = number(row, 0);
        let member = |row: &Row| {
            let (name, state, role) = (dumped(bytes(row, 1)), dumped(bytes(row, 2)), dumped(bytes(row, 3)));
            json!({"id": number(row, 0), "name": name, "state": state, "role": role}).to_string()
        };
        let members = self.query(&format!(
            "select a.id,a.name,a.state,b.grouprole from User a inner join GroupUser b on b.userid = a.id \
             where b.groupid={id}"
        ));
        let members: Vec<String> = members.iter().map(member).collect();
        let (name, about) = (dumped(bytes(row, 1)), dumped(bytes(row, 2)));
        json!({"id": id, "groupname": name, "groupdesc": about, "users": members}).to_string()
    }

    fn log_out(&self, state: &mut State, user: i64) {
        state.users.remove(&user);
        state.tell_redis("UNSUBSCRIBE", user);
        self.update(&format!("update User set state = 'offline' where id = {user}"));
    }

    fn join_group(&self, user: i64, group: i64, role: &str) {
        self.update(&format!("insert into GroupUser values({group}, {user}, '{role}')"));
    }

    fn chat(&self, state: &mut State, from: SocketAddr, to: i64, js: &Value) {
        if let Some((_, stream)) = state.users.get_mut(&to) {
            self.send(stream, js);
        } else if self.user(to).is_some_and(|user| user.state == b"online") {
            if self.kind == Kind::Reference {
                let last = state.published.replace((from, Instant::now()));
                let spoiled = last.is_some_and(|(last, when)| last != from && when.elapsed() < AT_A_TIME);
                assert!(!spoiled, "hiredis: two threads publish over one context");
            }
            let _: i64 = redis::cmd("PUBLISH").arg(to).arg(js.to_string()).query(&mut state.publisher).unwrap();
        } else {
            self.keep(to, &js.to_string());
        }
    }

    fn keep(&self, user: i64, message: &str) {
        self.update(&format!("insert into OfflineMessage values({user}, '{message}')"));
    }

    fn send(&self, stream: &mut TcpStream, js: &Value) {
        self.write(stream, &js.to_string());
    }

    fn write(&self, stream: &mut TcpStream, text: &str) {
        let end: &[u8] = if self.kind == Kind::Reference { b"" } else { b"\0" };
        let _ = stream.write_all(&[text.as_bytes(), end].concat()); // its client may be gone
    }

    // -- MySQL and Redis --------------------------------------------------------------------

    /// A row of `select *`, by position.
    fn user(&self, id: i64) -> Option<User> {
        let rows = self.query(&format!("select * from User where id = {id}"));
        let row = rows.first()?;
        assert_eq!(number(row, 0), id);
        Some(User { name: bytes(row, 1), password: bytes(row, 2), state: bytes(row, 3) })
    }

    fn connect(&self, sql: &str) -> Conn {
        assert!(sql.len() < SQL_BUFFER, "sprintf overruns its buffer: {sql}");
        let mut conn = Conn::new(self.mysql.clone()).unwrap();
        conn.query_drop("set names gbk").unwrap();
        conn
    }

    fn query(&self, sql: &str) -> Vec<Row> {
        self.connect(sql).query(sql).unwrap_or_default()
    }

    /// The id of a new row; `None`, and no more than a line in the log, if it failed.
    fn update(&self, sql: &str) -> Option<u64> {
        let mut conn = self.connect(sql);
        conn.query_drop(sql).ok().map(|()| conn.last_insert_id())
    }

    /// The thread that waits for messages. What they say is passed on unread.
    fn hear(&self, mut messages: TcpStream) {
        let mut parser = Parser::new();
        while let Ok(reply) = parser.parse_value(&mut messages) {
            let Reply::Array(items) = reply else { panic!("{reply:?}") };
            let [Reply::BulkString(kind), Reply::BulkString(channel), Reply::BulkString(message)] = &items[..] else {
                continue;
            };
            assert_eq!(kind, b"message");
            let user = std::str::from_utf8(channel).unwrap().parse().unwrap();
            let message = std::str::from_utf8(message).expect("what is published is UTF-8");
            let mut state = self.state();
            match state.users.get_mut(&user) {
                _ if self.is_ending() => return,
                Some((_, stream)) => self.write(stream, message),
                None => self.keep(user, message),
            }
        }
    }
}

impl State {
    /// A login or a disconnect: the reference shares one connection to Redis between its threads.
    fn touch(&mut self, kind: Kind, begun: Instant) {
        let is_alone = self.changed.is_none_or(|last| begun >= last + SIDE_BY_SIDE);
        let since = self.changed.map(|last| begun.saturating_duration_since(last));
        assert!(kind == Kind::Copy || is_alone, "hiredis: two threads subscribe over one context, {since:?} apart");
    }

    /// The answer is not waited for.
    fn tell_redis(&mut self, command: &str, channel: i64) {
        self.subscriber.write_all(&redis::cmd(command).arg(channel).get_packed_command()).unwrap();
    }
}

struct User {
    name: Vec<u8>,
    password: Vec<u8>,
    state: Vec<u8>,
}

/// `None` at the end.
fn next_byte(input: &mut impl BufRead) -> std::io::Result<Option<u8>> {
    let byte = input.fill_buf()?.first().copied();
    input.consume(usize::from(byte.is_some()));
    Ok(byte)
}

/// What nlohmann makes of it; it throws, and the exception is not caught.
fn parsed(object: &[u8]) -> Value {
    let text = std::str::from_utf8(object).expect("json::parse: invalid UTF-8");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("json::parse: {error} in {text:?}"))
}

fn integer(js: &Value, key: &str) -> i64 {
    js[key].as_i64().unwrap_or_else(|| panic!("json: {key} is no integer in {js}"))
}

fn string<'a>(js: &'a Value, key: &str) -> &'a str {
    js[key].as_str().unwrap_or_else(|| panic!("json: {key} is no string in {js}"))
}

/// A string in an object that is to be dumped.
fn dumped(bytes: Vec<u8>) -> Value {
    String::from_utf8(bytes).unwrap_or_else(|error| panic!("json::dump: {error} in {:?}", error.as_bytes())).into()
}

/// A column, of which a C++ string is made.
fn bytes(row: &Row, index: usize) -> Vec<u8> {
    row.get::<Option<Vec<u8>>, _>(index).unwrap().expect("a string is made of a null pointer")
}

fn number(row: &Row, index: usize) -> i64 {
    std::str::from_utf8(&bytes(row, index)).unwrap().parse().unwrap()
}

/// A client of a C++ node, in canon: it gets no acks.
pub struct CppClient {
    client: Client,
    account: Option<Account>,
    pushes: VecDeque<Value>,
}

impl CppClient {
    #[track_caller]
    pub fn register(&mut self, name: &str, password: &str) -> Account {
        let reply = self.try_register(name, password);
        assert_eq!(reply["errno"], 0, "{name}: {reply}");
        let id = reply["id"].as_u64().expect("an id") as u32;
        Account { id, name: name.into(), password: password.into() }
    }

    #[track_caller]
    pub fn try_register(&mut self, name: &str, password: &str) -> Value {
        self.client.post(&json!({"msgid": msgid::REGISTER, "name": name, "password": password}));
        self.reply(msgid::REGISTER_ACK)
    }

    /// Logs in; the reply.
    #[track_caller]
    pub fn login(&mut self, account: &Account) -> Value {
        let reply = self.try_login(account);
        assert_eq!(reply["errno"], 0, "login of {account:?} got {reply}");
        self.account = Some(account.clone());
        reply
    }

    #[track_caller]
    pub fn try_login(&mut self, account: &Account) -> Value {
        self.client.post(&login(account));
        self.reply(msgid::LOGIN_ACK)
    }

    #[track_caller]
    pub fn logout(&mut self) {
        let id = self.id();
        self.client.post(&json!({"msgid": msgid::LOGOUT, "id": id}));
        self.account = None;
        self.sync();
    }

    pub fn id(&self) -> u32 {
        self.account.as_ref().expect("logged in").id
    }

    /// Sends a request, and waits until it is handled: requests of a connection are handled in order,
    /// and a login to a missing account has a reply.
    #[track_caller]
    pub fn request(&mut self, request: &Value) {
        self.client.post(request);
        self.sync();
    }

    /// Sends a request that the node does not survive.
    #[track_caller]
    pub fn is_cut_off_by(&mut self, request: &Value) {
        self.client.post(request);
        self.client.expect_end();
    }

    #[track_caller]
    fn sync(&mut self) {
        let nobody = Account { id: 0, name: String::new(), password: String::new() };
        assert_eq!(self.try_login(&nobody)["errno"], 1);
    }

    #[track_caller]
    fn reply(&mut self, msgid: i64) -> Value {
        loop {
            let object = self.client.recv();
            if object["msgid"] == msgid {
                return object;
            }
            self.pushes.push_back(object);
        }
    }

    #[track_caller]
    pub fn push(&mut self) -> Value {
        self.pushes.pop_front().unwrap_or_else(|| self.client.recv())
    }

    #[track_caller]
    pub fn chat(&mut self, to: u32, text: &str) {
        let mut chat = self.chat_with(msgid::ONE_CHAT, text);
        chat["toid"] = to.into();
        self.request(&chat);
    }

    #[track_caller]
    pub fn group_chat(&mut self, group: u32, text: &str) {
        let mut chat = self.chat_with(msgid::GROUP_CHAT, text);
        chat["groupid"] = group.into();
        self.request(&chat);
    }

    fn chat_with(&self, msgid: i64, text: &str) -> Value {
        let me = self.account.as_ref().expect("logged in");
        json!({"msgid": msgid, "id": me.id, "name": me.name, "msg": text, "time": "2026-01-02 03:04:05"})
    }

    #[track_caller]
    pub fn befriend(&mut self, friend: u32) {
        self.request(&json!({"msgid": msgid::ADD_FRIEND, "id": self.id(), "friendid": friend}));
    }

    #[track_caller]
    pub fn create_group(&mut self, name: &str, about: &str) {
        let id = self.id();
        self.request(&json!({"msgid": msgid::CREATE_GROUP, "id": id, "groupname": name, "groupdesc": about}));
    }

    #[track_caller]
    pub fn join(&mut self, group: u32) {
        self.request(&json!({"msgid": msgid::JOIN_GROUP, "id": self.id(), "groupid": group}));
    }
}
