use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use chat_server::wire::{Framing, Split, Splitter, msgid};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::DEADLINE;

/// An account as its owner knows it.
#[derive(Debug, Clone)]
pub struct Account {
    pub id: u32,
    pub name: String,
    pub password: String,
}

/// How the server ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// FIN: everything before it has arrived.
    Clean,
    Reset,
}

/// A blocking client. Replies are waited for by `seq`; what arrives meanwhile is kept, in order,
/// for [`Client::push`].
pub struct Client {
    pub stream: TcpStream,
    pub framing: Framing,
    /// The account of this session, after [`Client::login`].
    pub account: Option<Account>,
    /// The login reply.
    pub greeting: Value,
    input: Vec<u8>,
    /// Where the unread part of `input` begins.
    at: usize,
    splitter: Splitter,
    next_seq: i64,
    /// Replies that came before they were asked for: acks may come in any order.
    replies: HashMap<i64, Value>,
    pushes: VecDeque<String>,
}

/// Larger than any login reply.
const MAX_OBJECT: usize = 64 << 20;

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    pub fn try_connect(address: SocketAddr) -> std::io::Result<Client> {
        Client::connect_with(address, |_| Ok(()))
    }

    /// A client for which the kernel takes no more than about `bytes` while it does not read. That
    /// is set before it connects: a window that shrinks below what was offered has the kernel drop
    /// what it then receives, and the stream stalls.
    pub fn connect_with_receive_buffer(address: SocketAddr, bytes: usize) -> std::io::Result<Client> {
        Client::connect_with(address, |socket| socket.set_recv_buffer_size(bytes))
    }

    /// A client whose address is `source`, such as 127.0.0.2.
    pub fn connect_from(address: SocketAddr, source: Ipv4Addr) -> std::io::Result<Client> {
        Client::connect_with(address, |socket| socket.bind(&SocketAddr::from((source, 0)).into()))
    }

    fn connect_with(
        address: SocketAddr,
        prepare: impl FnOnce(&Socket) -> std::io::Result<()>,
    ) -> std::io::Result<Client> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        prepare(&socket)?;
        socket.connect_timeout(&address.into(), DEADLINE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Client {
            stream,
            framing: Framing::Lf,
            account: None,
            greeting: Value::Null,
            input: Vec::new(),
            at: 0,
            splitter: Splitter::default(),
            next_seq: 1,
            replies: HashMap::new(),
            pushes: VecDeque::new(),
        })
    }

    pub fn framed(mut self, framing: Framing) -> Client {
        self.framing = framing;
        self
    }

    /// Gives up a silent server after `timeout`, where silence is what a test looks for.
    pub fn set_patience(&self, timeout: Duration) {
        self.stream.set_read_timeout(Some(timeout)).unwrap();
    }

    pub fn id(&self) -> u32 {
        self.me().id
    }

    pub fn me(&self) -> &Account {
        self.account.as_ref().expect("logged in")
    }

    // -- bytes ------------------------------------------------------------------------------

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Sends an object with this client's terminator.
    #[track_caller]
    pub fn send(&mut self, object: impl AsRef<[u8]>) {
        self.send_raw([object.as_ref(), self.framing.terminator()].concat());
    }

    /// Sends without a `seq`.
    #[track_caller]
    pub fn post(&mut self, object: &Value) {
        self.send(object.to_string());
    }

    /// The stream's end, after which the server may still answer.
    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Resets the connection, as a client that dies does.
    pub fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Exactly these bytes must come next.
    #[track_caller]
    pub fn expect_bytes(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        while self.input.len() - self.at < expected.len() {
            if let Err(ending) = self.fill() {
                panic!("{ending:?} after {:?}", String::from_utf8_lossy(&self.input[self.at..]));
            }
        }
        let got = &self.input[self.at..self.at + expected.len()];
        assert_eq!(String::from_utf8_lossy(got), String::from_utf8_lossy(expected));
        self.at += expected.len();
    }

    /// Reads what is there; the error is the connection's end.
    #[track_caller]
    fn fill(&mut self) -> Result<(), Ending> {
        self.input.drain(..self.at);
        self.at = 0;
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Ending::Clean),
            Ok(n) => {
                self.input.extend_from_slice(&chunk[..n]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                Err(Ending::Reset)
            }
            Err(error) => panic!("nothing came: {error}; unread: {:?}", String::from_utf8_lossy(&self.input)),
        }
    }

    // -- objects ----------------------------------------------------------------------------

    /// The next object from the socket, as the bytes that came, or how the connection ended.
    #[track_caller]
    pub fn next_text(&mut self) -> Result<String, Ending> {
        loop {
            match self.splitter.next(&self.input[self.at..], MAX_OBJECT).expect("the server writes objects") {
                Split::Object { start, end } => {
                    let object = self.input[self.at + start..self.at + end].to_vec();
                    self.at += end;
                    return Ok(String::from_utf8(object).expect("the server writes UTF-8"));
                }
                Split::Partial { skip } => {
                    self.at += skip;
                    self.fill()?;
                }
            }
        }
    }

    /// The next object from the socket.
    #[track_caller]
    pub fn recv(&mut self) -> Value {
        let text = self.next_text().unwrap_or_else(|ending| panic!("{ending:?} end where an object was due"));
        parse(&text)
    }

    /// The server must have nothing more to say, and close in order.
    #[track_caller]
    pub fn expect_end(&mut self) {
        assert_eq!(self.next_text(), Err(Ending::Clean));
    }

    /// The next object that is no reply to this client: a chat, a 201.
    #[track_caller]
    pub fn push(&mut self) -> Value {
        parse(&self.push_text())
    }

    #[track_caller]
    pub fn push_text(&mut self) -> String {
        self.next_push().unwrap_or_else(|ending| panic!("{ending:?} end where a push was due"))
    }

    /// The next push, or how the connection ended.
    #[track_caller]
    pub fn next_push(&mut self) -> Result<String, Ending> {
        while self.pushes.is_empty() {
            let text = self.next_text()?;
            self.sort(text);
        }
        Ok(self.pushes.pop_front().expect("just seen"))
    }

    /// Puts an object where it will be looked for.
    #[track_caller]
    fn sort(&mut self, text: String) {
        match reply_seq(&parse(&text)) {
            Some((seq, reply)) => {
                let double = self.replies.insert(seq, reply);
                assert!(double.is_none(), "two replies for one seq: {double:?} and {text}");
            }
            None => self.pushes.push_back(text),
        }
    }

    /// What has been pushed until now and not been taken.
    #[track_caller]
    pub fn pushed(&mut self) -> Vec<Value> {
        self.sync();
        self.pushes.drain(..).map(|text| parse(&text)).collect()
    }

    // -- requests ---------------------------------------------------------------------------

    pub fn new_seq(&mut self) -> i64 {
        self.next_seq += 1;
        self.next_seq
    }

    /// Sends `request` with a fresh `seq`, which is returned.
    #[track_caller]
    pub fn start(&mut self, mut request: Value) -> i64 {
        let seq = self.new_seq();
        request["seq"] = seq.into();
        self.send(request.to_string());
        seq
    }

    /// The same, with the reply; `None`: the server has ended, or ends.
    pub fn try_request(&mut self, mut request: Value) -> Option<Value> {
        let seq = self.new_seq();
        request["seq"] = seq.into();
        let bytes = [request.to_string().as_bytes(), self.framing.terminator()].concat();
        // What came before the end is still to be read.
        let _ = self.stream.write_all(&bytes);
        self.next_reply(seq).ok()
    }

    /// Waits for the reply that bears `seq`.
    #[track_caller]
    pub fn reply(&mut self, seq: i64) -> Value {
        self.next_reply(seq).unwrap_or_else(|ending| panic!("{ending:?} end where a reply was due"))
    }

    /// The reply that bears `seq`, or how the connection ended.
    #[track_caller]
    pub fn next_reply(&mut self, seq: i64) -> Result<Value, Ending> {
        loop {
            if let Some(reply) = self.replies.remove(&seq) {
                return Ok(reply);
            }
            let text = self.next_text()?;
            self.sort(text);
        }
    }

    /// One request and its reply.
    #[track_caller]
    pub fn request(&mut self, request: Value) -> Value {
        let seq = self.start(request);
        self.reply(seq)
    }

    /// A request that must succeed.
    #[track_caller]
    pub fn must(&mut self, request: Value) -> Value {
        let reply = self.request(request.clone());
        assert_eq!(reply["errno"], 0, "{request} got {reply}");
        reply
    }

    /// A request that must be refused.
    #[track_caller]
    pub fn refused(&mut self, request: Value) -> i64 {
        let reply = self.request(request.clone());
        assert!(reply["errmsg"].is_string(), "{request} got {reply}");
        reply["errno"].as_i64().expect("errno")
    }

    /// All that the server wrote to this client before now has arrived when this returns.
    #[track_caller]
    pub fn sync(&mut self) {
        let pong = self.request(json!({"msgid": msgid::PING}));
        assert_eq!(pong["msgid"], msgid::PONG);
    }

    #[track_caller]
    pub fn register(&mut self, name: &str, password: &str) -> Account {
        let reply = self.must(json!({"msgid": msgid::REGISTER, "name": name, "password": password}));
        let id = reply["id"].as_u64().expect("an id").try_into().expect("an INT");
        Account { id, name: name.into(), password: password.into() }
    }

    /// Logs in. What `offlinemsg` brings is queued as the first pushes.
    #[track_caller]
    pub fn login(&mut self, account: &Account) -> Value {
        let reply = self.try_login(account);
        assert_eq!(reply["errno"], 0, "login of {account:?} got {reply}");
        reply
    }

    #[track_caller]
    pub fn try_login(&mut self, account: &Account) -> Value {
        let seq = self.start(login(account));
        let reply = self.reply(seq);
        if reply["errno"] == 0 {
            self.account = Some(account.clone());
            self.greeting = reply.clone();
            for message in strings(&reply["offlinemsg"]) {
                self.pushes.push_back(message);
            }
        }
        reply
    }

    #[track_caller]
    pub fn logout(&mut self) {
        let id = self.id();
        self.must(json!({"msgid": msgid::LOGOUT, "id": id}));
        self.account = None;
    }

    /// A chat as the project's clients send it.
    pub fn chat_to(&self, to: u32, text: &str) -> Value {
        json!({"msgid": msgid::ONE_CHAT, "id": self.id(), "name": self.me().name, "toid": to, "msg": text,
            "time": "2026-01-02 03:04:05"})
    }

    pub fn group_chat_to(&self, group: u32, text: &str) -> Value {
        json!({"msgid": msgid::GROUP_CHAT, "id": self.id(), "name": self.me().name, "groupid": group, "msg": text,
            "time": "2026-01-02 03:04:05"})
    }

    /// Sends a chat and returns whether it was delivered (or else stored).
    #[track_caller]
    pub fn chat(&mut self, to: u32, text: &str) -> bool {
        let chat = self.chat_to(to, text);
        self.must(chat)["delivered"].as_bool().expect("delivered")
    }

    /// Sends a group chat and returns its ack.
    #[track_caller]
    pub fn group_chat(&mut self, group: u32, text: &str) -> Value {
        let chat = self.group_chat_to(group, text);
        self.must(chat)
    }

    #[track_caller]
    pub fn create_group(&mut self, name: &str) -> u32 {
        let request =
            json!({"msgid": msgid::CREATE_GROUP, "id": self.id(), "groupname": name, "groupdesc": "of tests"});
        self.must(request)["groupid"].as_u64().expect("a groupid").try_into().expect("an INT")
    }

    #[track_caller]
    pub fn join(&mut self, group: u32) {
        let request = json!({"msgid": msgid::JOIN_GROUP, "id": self.id(), "groupid": group});
        self.must(request);
    }

    #[track_caller]
    pub fn befriend(&mut self, friend: u32) {
        let request = json!({"msgid": msgid::ADD_FRIEND, "id": self.id(), "friendid": friend});
        self.must(request);
    }

    /// The texts of the next `n` chats.
    #[track_caller]
    pub fn texts(&mut self, n: usize) -> Vec<String> {
        (0..n).map(|_| text_of(&self.push())).collect()
    }
}

/// The `msg` of a chat.
#[track_caller]
pub fn text_of(chat: &Value) -> String {
    chat["msg"].as_str().unwrap_or_else(|| panic!("{chat} is no chat")).to_owned()
}

pub fn login(account: &Account) -> Value {
    json!({"msgid": msgid::LOGIN, "id": account.id, "password": account.password})
}

/// A list of a login reply: strings, each itself JSON. An empty one is left out.
#[track_caller]
pub fn strings(list: &Value) -> Vec<String> {
    if list.is_null() {
        return Vec::new();
    }
    let items = list.as_array().unwrap_or_else(|| panic!("{list} is no array"));
    assert!(!items.is_empty(), "an empty list is left out");
    items.iter().map(|item| item.as_str().unwrap_or_else(|| panic!("{item} is no string")).to_owned()).collect()
}

/// The same, parsed.
#[track_caller]
pub fn listed(list: &Value) -> Vec<Value> {
    strings(list).iter().map(|text| parse(text)).collect()
}

#[track_caller]
pub fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

/// A reply with its `seq`. A forwarded chat may bear its sender's, and is none.
fn reply_seq(value: &Value) -> Option<(i64, Value)> {
    let replies = [msgid::LOGIN_ACK, msgid::REGISTER_ACK, msgid::ACK, msgid::PONG];
    let is_reply = value["msgid"].as_i64().is_some_and(|msgid| replies.contains(&msgid));
    let seq = value["seq"].as_i64().filter(|_| is_reply)?;
    Some((seq, value.clone()))
}
