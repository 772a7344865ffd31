//! The TCP connection: one thread reads it, and makes a new one whenever it is lost.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use chat_server::wire::{Split, Splitter, msgid};
use serde_json::json;
use socket2::{SockRef, TcpKeepalive};

use crate::message::Message;

/// What befalls the connection.
#[derive(Debug)]
pub enum LinkEvent {
    /// There is one again.
    Up(Greeting),
    Down(Loss),
    Message(Message),
}

/// How the server took the ping that every connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// It echoed the ping's `seq`: it confirms every request that bears one. A C++ node does not.
    pub confirms: bool,
}

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum Loss {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("closed by the server")]
    Closed,
    #[error("not a chat server")]
    NotAChatServer,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that takes nothing for so long is as good as gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the ping is waited for; a C++ node never answers it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(60);
/// The largest object that is taken from a server: a login reply lists every group's members.
const MAX_OBJECT: usize = 64 << 20;
/// The `seq` of the first ping. Requests count up from 1.
const GREETING_SEQ: i64 = 0;

/// The sending half, shared with the thread that reads.
pub struct Link {
    /// `None` while there is no connection.
    stream: Arc<Mutex<Option<TcpStream>>>,
}

impl Link {
    /// Connects, and keeps connected for as long as the process runs; `sink` hears of everything
    /// that follows. Only this first attempt can fail.
    pub fn open(server: (String, u16), sink: impl Fn(LinkEvent) + Send + 'static) -> Result<(Link, Greeting), Loss> {
        let first = Conversation::begin(&server)?;
        let greeting = first.greeting;
        let stream = Arc::new(Mutex::new(Some(first.stream.try_clone()?)));
        let link = Link { stream: stream.clone() };
        thread::Builder::new()
            .name("connection".into())
            .spawn(move || keep_connected(first, &server, &stream, sink))?;
        Ok((link, greeting))
    }

    /// Writes one object. If that fails the reader hears of it, as of any other loss.
    pub fn send(&self, object: &[u8]) {
        if let Some(stream) = lock(&self.stream).as_mut()
            && stream.write_all(object).is_err()
        {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn lock(stream: &Mutex<Option<TcpStream>>) -> MutexGuard<'_, Option<TcpStream>> {
    // A socket has no state that a panic could leave half-written.
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

fn keep_connected(
    mut conversation: Conversation,
    server: &(String, u16),
    shared: &Mutex<Option<TcpStream>>,
    sink: impl Fn(LinkEvent),
) {
    loop {
        let loss = conversation.listen(&sink);
        *lock(shared) = None;
        sink(LinkEvent::Down(loss));
        let writer;
        (conversation, writer) = reconnect(server);
        *lock(shared) = Some(writer);
        sink(LinkEvent::Up(conversation.greeting));
    }
}

/// The next connection, and its sending half.
fn reconnect(server: &(String, u16)) -> (Conversation, TcpStream) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        thread::sleep(backoff);
        if let Ok(conversation) = Conversation::begin(server)
            && let Ok(writer) = conversation.stream.try_clone()
        {
            return (conversation, writer);
        }
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

/// One connection's incoming stream.
struct Conversation {
    stream: TcpStream,
    splitter: Splitter,
    buffer: Vec<u8>,
    greeting: Greeting,
    /// What came before the greeting was answered.
    early: Vec<Message>,
}

impl Conversation {
    /// Connects, and pings: whoever answers with something that is no JSON object is no chat
    /// server, and a proxy whose backends are gone closes without a word.
    fn begin(server: &(String, u16)) -> Result<Conversation, Loss> {
        let mut conversation = Conversation {
            stream: connect(server)?,
            splitter: Splitter::default(),
            buffer: Vec::new(),
            greeting: Greeting { confirms: false },
            early: Vec::new(),
        };
        conversation.stream.write_all(&encode(&json!({"msgid": msgid::PING, "seq": GREETING_SEQ})))?;
        conversation.await_greeting()?;
        conversation.stream.set_read_timeout(None)?;
        Ok(conversation)
    }

    fn await_greeting(&mut self) -> Result<(), Loss> {
        let deadline = Instant::now() + GREETING_TIMEOUT;
        loop {
            while let Some(message) = self.next()? {
                if message.msgid() == msgid::PONG && message.int("seq") == Some(GREETING_SEQ) {
                    self.greeting.confirms = true;
                    return Ok(());
                }
                self.early.push(message);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.fill() {
                Err(Loss::Io(error)) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                filled => filled?,
            }
        }
    }

    /// Hands on every message until the connection is lost.
    fn listen(&mut self, sink: &impl Fn(LinkEvent)) -> Loss {
        self.early.drain(..).for_each(|message| sink(LinkEvent::Message(message)));
        loop {
            match self.next() {
                Ok(Some(message)) => sink(LinkEvent::Message(message)),
                Ok(None) => {
                    if let Err(loss) = self.fill() {
                        return loss;
                    }
                }
                Err(loss) => return loss,
            }
        }
    }

    /// The next whole message in the buffer.
    fn next(&mut self) -> Result<Option<Message>, Loss> {
        match self.splitter.next(&self.buffer, MAX_OBJECT) {
            Ok(Split::Object { start, end }) => {
                let message = Message::parse(&self.buffer[start..end]).ok_or(Loss::NotAChatServer)?;
                self.buffer.drain(..end);
                Ok(Some(message))
            }
            Ok(Split::Partial { skip }) => {
                self.buffer.drain(..skip);
                Ok(None)
            }
            Err(_) => Err(Loss::NotAChatServer),
        }
    }

    fn fill(&mut self) -> Result<(), Loss> {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Loss::Closed),
                Ok(read) => {
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn connect(server: &(String, u16)) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for address in (server.0.as_str(), server.1).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
                // Without it, a server that lost its power would never be missed.
                SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// One object as it goes out: LF behind it, which the server then mirrors.
pub fn encode(object: &serde_json::Value) -> Vec<u8> {
    let mut bytes = object.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A link to a server that plays one script per connection.
    fn link_to(scripts: Vec<fn(TcpStream)>) -> (Result<(Link, Greeting), Loss>, Receiver<LinkEvent>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || scripts.into_iter().for_each(|script| script(listener.accept().unwrap().0)));
        let (sender, events) = unbounded();
        (Link::open(("127.0.0.1".into(), port), move |event| drop(sender.send(event))), events)
    }

    fn read_line(stream: &TcpStream) -> String {
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(stream), &mut line).unwrap();
        line
    }

    fn pong(mut stream: &TcpStream) {
        assert!(read_line(stream).contains("202"));
        stream.write_all(b"{\"msgid\":203,\"seq\":0}").unwrap();
    }

    #[test]
    fn messages_arrive_however_they_are_cut_and_a_lost_connection_is_made_again() {
        let (link, events) = link_to(vec![
            |mut stream| {
                pong(&stream);
                for piece in [&b"{\"msgid\":6,\"msg\":\"a"[..], b"}\"}\0{\"msgid\":10}{\"ms", b"gid\":202}\r\n"] {
                    stream.write_all(piece).unwrap();
                }
                assert_eq!(read_line(&stream), "{\"bye\":1}\n");
            },
            |stream| {
                pong(&stream);
                assert_eq!(read_line(&stream), "", "the client closes last");
            },
        ]);
        let (link, greeting) = link.unwrap();
        assert!(greeting.confirms);
        let next = || events.recv_timeout(DEADLINE).unwrap();
        for expected in [6, 10, 202] {
            assert!(matches!(next(), LinkEvent::Message(message) if message.msgid() == expected));
        }
        link.send(&encode(&json!({"bye": 1})));
        assert!(matches!(next(), LinkEvent::Down(Loss::Closed)));
        assert!(matches!(next(), LinkEvent::Up(Greeting { confirms: true })));
    }

    #[test]
    fn a_server_that_ignores_the_ping_is_taken_for_one_that_confirms_nothing() {
        let (link, events) = link_to(vec![|mut stream| {
            stream.write_all(b"{\"msgid\":6}").unwrap();
            read_line(&stream);
            read_line(&stream);
        }]);
        assert!(!link.unwrap().1.confirms);
        assert!(matches!(events.recv_timeout(DEADLINE), Ok(LinkEvent::Message(message)) if message.msgid() == 6));
    }

    #[test]
    fn what_is_no_chat_server_is_told() {
        let (link, _) = link_to(vec![|mut stream| stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap()]);
        assert!(matches!(link, Err(Loss::NotAChatServer)));
        let (link, _) = link_to(vec![|stream| drop(read_line(&stream))]);
        assert!(matches!(link, Err(Loss::Closed)));
    }
}
