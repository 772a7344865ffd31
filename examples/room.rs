//! A room: all clients get each line that one of them sends. Some of them are another reactor's, so a line goes there
//! by letter.
//!
//! ```text
//! cargo run --example room [ADDRESS]      127.0.0.1:7001 by default
//! nc 127.0.0.1 7001                       in two terminals
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use chat_server::reactor::{
    Acceptor, Admission, Budget, CloseReason, ConnId, ConnMap, EventLoop, Handler, Io, Limits, ListenerId, Message,
    Reason, Taken, Types, Unwritten, listen, mailboxes,
};

const REACTORS: usize = 2;
const LIMITS: Limits = Limits { high_water: 64 << 10, hard: 1 << 20, total: 64 << 20 };
/// The longest line, in bytes, with its end.
const LONGEST_LINE: usize = 1024;

/// The part of the room that is in one reactor. No other thread can reach it, so that it needs no lock.
#[derive(Default)]
struct Room {
    /// The clients of this reactor.
    members: ConnMap<SocketAddr>,
}

/// Why the room closes a connection.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Why {
    HasLeft,
    LineTooLong,
}

impl Reason for Why {
    const ALL: &'static [Why] = &[Why::HasLeft, Why::LineTooLong];

    fn text(self) -> &'static str {
        match self {
            Why::HasLeft => "has left",
            Why::LineTooLong => "line too long",
        }
    }
}

impl Types for Room {
    /// A line. It is never copied, however many clients get it.
    type Letter = Arc<[u8]>;
    type Tag = ();
    type Timer = ();
    type Moved = ();
    type Reason = Why;
}

impl Room {
    /// Sends a line to every reactor, this one included: one letter for each, whatever number of clients it has. They
    /// leave together when the turn ends.
    fn say(io: &mut Io<Self>, line: &[u8]) {
        let line: Arc<[u8]> = line.into();
        for reactor in 0..io.reactors() {
            io.post(reactor, Arc::clone(&line));
        }
    }
}

impl Handler for Room {
    fn opened(&mut self, io: &mut Io<Self>, conn: ConnId, peer: SocketAddr, _listener: ListenerId) {
        self.members.insert(conn, peer);
        Room::say(io, format!("* {peer} has come\n").as_bytes());
    }

    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        let mut bytes = 0;
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            if line.len() > LONGEST_LINE {
                io.close(conn, Why::LineTooLong);
            } else if line.ends_with(b"\n") {
                Room::say(io, line);
                bytes += line.len();
            }
        }
        // A line that has no end yet is given again, with what follows it.
        Taken { bytes, more: false }
    }

    fn letter(&mut self, io: &mut Io<Self>, line: Arc<[u8]>) {
        for conn in self.members.ids() {
            io.send(conn, Message::shared(&line));
        }
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, _rest: usize) {
        io.close(conn, Why::HasLeft);
    }

    fn closed(&mut self, io: &mut Io<Self>, conn: ConnId, reason: CloseReason<Why>, _unwritten: Vec<Unwritten<()>>) {
        if let Some(peer) = self.members.remove(conn) {
            Room::say(io, format!("* {peer} is gone: {}\n", reason.text()).as_bytes());
        }
    }
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:7001".to_owned());
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let (polls, mailboxes) = mailboxes(REACTORS)?;
    let budget = Budget::new();
    for (index, poll) in polls.into_iter().enumerate() {
        let (mailboxes, budget) = (Arc::clone(&mailboxes), Arc::clone(&budget));
        let event_loop = EventLoop::new(index, poll, mailboxes, LIMITS, budget, Room::default())?;
        thread::Builder::new().name(format!("reactor-{index}")).spawn(move || event_loop.run())?;
    }
    let listener = listen(address)?;
    println!("listening on {}", listener.local_addr()?);
    let admission = Admission { max: 1000, refusal: b"* the room is full\n".to_vec(), addresses: None };
    let (acceptor, _stop) = Acceptor::new([listener], mailboxes, admission)?;
    acceptor.run()
}
