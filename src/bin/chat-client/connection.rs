//! The connection: one thread reads it, and makes a new one whenever it is lost.

use std::borrow::Cow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chat_server::wire::dialect::{Dialect, FromServer, Length};
use chat_server::wire::{Split, Splitter, msgid};
use serde_json::json;

use crate::channel::{Channel, Target};
use crate::loss::Loss;
use crate::message::Message;

/// What befalls the connection.
pub enum LinkEvent {
    /// There is one again, and this is how to send on it.
    Up(Greeting, Link),
    Down(Loss),
    Message(Message),
    /// An object that the server's dialect does not have.
    Unknown(String),
}

/// How the server took the ping that a connection begins with, unless a dialect is given: other servers know no pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// It echoed the ping's `seq`: it confirms every request that bears one. A C++ node does not.
    pub confirms: bool,
}

/// How long the ping is waited for; a C++ node never answers it.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// After this time of silence, less by chance, a server that knows pings is asked for one...
const SILENCE: Duration = Duration::from_secs(12);
/// ...and has this time to answer. Together they bound how long the loss of a network goes unnoticed.
const PONG_TIMEOUT: Duration = Duration::from_secs(8);
/// How long to wait, less by chance, before the connection is made again. Twice as long each time...
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// ...until one has worked for this time.
const WORKED: Duration = Duration::from_secs(30);
/// The largest object that is taken from a server: a login reply lists every group's members.
const MAX_OBJECT: usize = 64 << 20;
/// The `seq` of pings. Requests count up from 1.
const PING_SEQ: i64 = 0;
/// A record by which TLS refuses what it does not understand begins so.
const TLS_ALERT: u8 = 21;

/// The sending half of one connection. What is sent when that is lost goes nowhere, and never onto
/// the next one, where the user is not logged in yet.
pub struct Link {
    channel: Arc<Channel>,
    dialect: Option<Arc<Dialect>>,
}

impl Link {
    /// Connects, and keeps connected for as long as the process runs; `sink` hears of everything
    /// that follows, in canon, whatever dialect the server speaks. Only this first attempt can fail.
    pub fn open(target: Target, sink: impl Fn(LinkEvent) + Send + 'static) -> Result<(Link, Greeting), Loss> {
        let first = Conversation::begin(&target)?;
        let opened = (first.link(), first.greeting);
        thread::Builder::new().name("connection".into()).spawn(move || keep_connected(first, &target, sink))?;
        Ok(opened)
    }

    /// Writes one object of canon, in the server's dialect, unless that has no such request. If that fails the reader
    /// hears of it, as of any other loss.
    pub fn send(&self, object: &[u8]) {
        let theirs = match &self.dialect {
            None => Some(Cow::Borrowed(object)),
            Some(dialect) => dialect.write_to_server(object).map(Cow::Owned),
        };
        if theirs.is_some_and(|object| self.channel.send(&object).is_err()) {
            self.channel.shut_down();
        }
    }

    /// Ends the connection, because the server does not do what it must; another is made.
    pub fn give_up(&self) {
        self.channel.give_up();
    }
}

fn keep_connected(mut conversation: Conversation, target: &Target, sink: impl Fn(LinkEvent)) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let since = Instant::now();
        let loss = conversation.listen(&sink);
        let loss = if conversation.channel.is_given_up() { Loss::Silent } else { loss };
        // The sending half may live on for a while.
        conversation.channel.shut_down();
        sink(LinkEvent::Down(loss));
        if since.elapsed() >= WORKED {
            backoff = FIRST_BACKOFF;
        }
        conversation = reconnect(target, &mut backoff);
        sink(LinkEvent::Up(conversation.greeting, conversation.link()));
    }
}

fn reconnect(target: &Target, backoff: &mut Duration) -> Conversation {
    loop {
        thread::sleep(jitter(*backoff));
        *backoff = (*backoff * 2).min(LAST_BACKOFF);
        if let Ok(conversation) = Conversation::begin(target) {
            return conversation;
        }
    }
}

/// Shortens a wait by chance, to a quarter of it at least: clients that were cut off together do not come
/// back together.
pub fn jitter(wait: Duration) -> Duration {
    // Without randomness from the system, which is never so, all wait for as long.
    let chance = getrandom::u32().unwrap_or(u32::MAX);
    wait.mul_f64(0.25 + 0.75 * f64::from(chance) / f64::from(u32::MAX))
}

/// One connection's incoming stream.
struct Conversation {
    channel: Arc<Channel>,
    splitter: Splitter,
    buffer: Vec<u8>,
    greeting: Greeting,
    dialect: Option<Arc<Dialect>>,
    /// What came before the greeting was answered.
    early: Vec<LinkEvent>,
}

impl Conversation {
    /// Connects, and pings: a peer that answers with anything but a JSON object is no chat
    /// server, and a proxy whose backends are gone closes without a word.
    fn begin(target: &Target) -> Result<Conversation, Loss> {
        let has_lengths = target.dialect.as_deref().is_some_and(|dialect| dialect.length() != Length::Nowhere);
        let mut conversation = Conversation {
            channel: Arc::new(Channel::open(target)?),
            splitter: if has_lengths { Splitter::of_known(true) } else { Splitter::default() },
            buffer: Vec::new(),
            greeting: Greeting { confirms: false },
            dialect: target.dialect.clone(),
            early: Vec::new(),
        };
        if conversation.dialect.is_none() {
            conversation.channel.send(&ping())?;
            conversation.await_greeting()?;
        }
        Ok(conversation)
    }

    fn link(&self) -> Link {
        Link { channel: Arc::clone(&self.channel), dialect: self.dialect.clone() }
    }

    fn await_greeting(&mut self) -> Result<(), Loss> {
        let deadline = Instant::now() + GREETING_TIMEOUT;
        loop {
            while let Some(event) = self.next()? {
                if event.is_pong() {
                    self.greeting.confirms = true;
                    return Ok(());
                }
                self.early.push(event);
            }
            if !self.channel.receive(&mut self.buffer, Some(deadline))? {
                return Ok(());
            }
        }
    }

    /// Hands on every message until the connection is lost.
    fn listen(&mut self, sink: &impl Fn(LinkEvent)) -> Loss {
        self.early.drain(..).for_each(sink);
        let mut pinged = false;
        loop {
            match self.next() {
                Ok(Some(event)) => {
                    // Late, but it knows pings.
                    self.greeting.confirms |= event.is_pong();
                    sink(event);
                }
                Ok(None) => {
                    // Reckoned from now: while input was shown, the socket was not read.
                    let patience = if pinged { PONG_TIMEOUT } else { jitter(SILENCE) };
                    match self.channel.receive(&mut self.buffer, Some(Instant::now() + patience)) {
                        Ok(true) => pinged = false,
                        Ok(false) if pinged => return Loss::Silent,
                        // A C++ node answers no ping; there only TCP notices.
                        Ok(false) if !self.greeting.confirms => {}
                        Ok(false) => match self.channel.send_unless_sending(&ping()) {
                            Ok(()) => pinged = true,
                            Err(error) => return error.into(),
                        },
                        Err(loss) => return loss,
                    }
                }
                Err(loss) => return loss,
            }
        }
    }

    /// The next whole message in the buffer.
    fn next(&mut self) -> Result<Option<LinkEvent>, Loss> {
        match self.splitter.next(&self.buffer, MAX_OBJECT) {
            Ok(Split::Object { start, end }) => {
                let event = read(&self.buffer[start..end], self.dialect.as_deref()).ok_or(Loss::NotAChatServer)?;
                self.buffer.drain(..end);
                Ok(Some(event))
            }
            Ok(Split::Partial { skip }) => {
                self.buffer.drain(..skip);
                Ok(None)
            }
            Err(_) if self.buffer.first() == Some(&TLS_ALERT) => Err(Loss::SpeaksTls),
            Err(_) => Err(Loss::NotAChatServer),
        }
    }
}

/// Reads one object; `None`: it is no JSON.
fn read(object: &[u8], dialect: Option<&Dialect>) -> Option<LinkEvent> {
    let message = match dialect.map(|dialect| dialect.read_from_server(object)) {
        None => Message::parse(object)?,
        Some(FromServer::Chat(canon)) => Message::parse(&canon)?,
        Some(FromServer::Reply(verb, canon)) => Message::parse_reply(&canon, verb)?,
        Some(FromServer::Unknown) => {
            Message::parse(object)?;
            return Some(LinkEvent::Unknown(String::from_utf8_lossy(object).into_owned()));
        }
    };
    Some(LinkEvent::Message(message))
}

impl LinkEvent {
    fn is_pong(&self) -> bool {
        matches!(self, LinkEvent::Message(message) if is_pong(message))
    }
}

fn ping() -> Vec<u8> {
    encode(&json!({"msgid": msgid::PING, "seq": PING_SEQ}))
}

/// An answer to one of our pings.
pub fn is_pong(message: &Message) -> bool {
    message.msgid() == msgid::PONG && message.int("seq") == Some(PING_SEQ)
}

/// One object as it goes out: LF behind it, which the server then mirrors.
pub fn encode(object: &serde_json::Value) -> Vec<u8> {
    let mut bytes = object.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::net::{TcpListener, TcpStream};

    use chat_server::wire::dialect::{Verb, find};
    use crossbeam_channel::{Receiver, unbounded};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// A link to a server that plays one script per connection.
    fn link_to(scripts: Vec<fn(TcpStream)>) -> (Result<(Link, Greeting), Loss>, Receiver<LinkEvent>) {
        link_in(None, scripts)
    }

    /// The same, in a dialect.
    fn link_in(
        dialect: Option<&str>,
        scripts: Vec<fn(TcpStream)>,
    ) -> (Result<(Link, Greeting), Loss>, Receiver<LinkEvent>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || scripts.into_iter().for_each(|script| script(listener.accept().unwrap().0)));
        let (sender, events) = unbounded();
        let target = Target { host: "127.0.0.1".into(), port, tls: None, dialect: dialect.and_then(find).cloned() };
        (Link::open(target, move |event| drop(sender.send(event))), events)
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
            |mut stream| {
                pong(&stream);
                stream.write_all(read_line(&stream).as_bytes()).unwrap();
                read_line(&stream);
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
        let LinkEvent::Up(Greeting { confirms: true }, again) = next() else { panic!("it is not up again") };
        // What was meant for the old connection is not sent on the new one.
        link.send(&encode(&json!({"msgid": 7})));
        again.send(&encode(&json!({"msgid": 8})));
        assert!(matches!(next(), LinkEvent::Message(message) if message.msgid() == 8));
    }

    #[test]
    fn in_a_dialect_nothing_is_sent_but_its_own_requests_and_lengths_are_read() {
        let (link, events) = link_in(
            Some("framed"),
            vec![|mut stream| {
                let login = b"{\"id\":1,\"msgid\":1}\0";
                let mut first = vec![0; login.len()];
                io::Read::read_exact(&mut stream, &mut first).unwrap();
                assert_eq!(first, login);
                for object in [r#"{"msgid":10,"groupid":7}"#, r#"{"msgid":5,"to":1}"#, r#"{"msgid":77}"#] {
                    stream.write_all(&u32::try_from(object.len()).unwrap().to_be_bytes()).unwrap();
                    stream.write_all(object.as_bytes()).unwrap();
                }
                assert_eq!(io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
            }],
        );
        let (link, greeting) = link.unwrap();
        assert!(!greeting.confirms);
        link.send(&encode(&json!({"msgid": msgid::PONG})));
        link.send(&encode(&json!({"msgid": msgid::LOGIN, "id": 1, "seq": 1})));
        let next = || events.recv_timeout(DEADLINE).unwrap();
        let LinkEvent::Message(ack) = next() else { panic!("no ack") };
        assert_eq!((ack.msgid(), ack.replies_to(), ack.int("groupid")), (200, Some(Verb::CreateGroup), Some(7)));
        assert!(matches!(next(), LinkEvent::Message(chat) if chat.msgid() == 6 && chat.int("toid") == Some(1)));
        assert!(matches!(next(), LinkEvent::Unknown(object) if object == r#"{"msgid":77}"#));
        link.give_up();
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
    fn a_server_that_is_silent_is_pinged_and_lost_if_it_stays_so() {
        let (link, events) = link_to(vec![|stream| {
            pong(&stream);
            // One ping is answered, the next is not.
            pong(&stream);
            assert!(read_line(&stream).contains("202"));
            assert_eq!(read_line(&stream), "", "it is given up");
        }]);
        let link = link.unwrap();
        let bound = 2 * SILENCE + PONG_TIMEOUT + DEADLINE;
        assert!(matches!(events.recv_timeout(bound), Ok(LinkEvent::Message(message)) if is_pong(&message)));
        assert!(matches!(events.recv_timeout(bound), Ok(LinkEvent::Down(Loss::Silent))));
        drop(link);
    }

    #[test]
    fn a_connection_that_is_given_up_is_made_again() {
        let (link, events) = link_to(vec![
            |stream| {
                pong(&stream);
                assert_eq!(read_line(&stream), "");
            },
            |stream| pong(&stream),
        ]);
        link.unwrap().0.give_up();
        assert!(matches!(events.recv_timeout(DEADLINE), Ok(LinkEvent::Down(Loss::Silent))));
        assert!(matches!(events.recv_timeout(DEADLINE), Ok(LinkEvent::Up(..))));
    }

    #[test]
    fn a_server_that_knows_no_pings_is_sent_none_but_the_first() {
        let (link, events) = link_to(vec![|mut stream| {
            assert!(read_line(&stream).contains("202"));
            stream.set_read_timeout(Some(SILENCE + PONG_TIMEOUT)).unwrap();
            assert!(io::Read::read(&mut stream, &mut [0]).is_err(), "it would be something");
            stream.write_all(b"{\"msgid\":6}").unwrap();
        }]);
        assert!(link.is_ok());
        assert!(matches!(events.recv_timeout(3 * SILENCE), Ok(LinkEvent::Message(message)) if message.msgid() == 6));
    }

    #[test]
    fn waits_are_shortened_by_chance() {
        let wait = Duration::from_secs(10);
        let mut waits: Vec<Duration> = (0..100).map(|_| jitter(wait)).collect();
        waits.sort();
        assert!(waits[0] >= wait / 4 && waits[99] <= wait);
        assert!(waits[99] - waits[0] > wait / 2, "{waits:?}");
        waits.dedup();
        assert!(waits.len() > 90);
    }

    #[test]
    fn what_is_no_chat_server_is_told() {
        let (link, _) = link_to(vec![|mut stream| stream.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap()]);
        assert!(matches!(link, Err(Loss::NotAChatServer)));
        let (link, _) = link_to(vec![|stream| drop(read_line(&stream))]);
        assert!(matches!(link, Err(Loss::Closed)));
        let (link, _) = link_to(vec![|mut stream| stream.write_all(b"\x15\x03\x01\0\x02\x02\x46").unwrap()]);
        assert!(matches!(link, Err(Loss::SpeaksTls)));
    }
}
