//! Sends back what its clients send: the smallest server on the reactor.
//!
//! ```text
//! cargo run --example echo [ADDRESS]      127.0.0.1:7000 by default
//! nc 127.0.0.1 7000
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use chat_server::reactor::{
    Acceptor, Admission, Budget, ConnId, EventLoop, Handler, Io, Limits, Message, Taken, Types, listen, mailboxes,
};

const REACTORS: usize = 2;
/// A client that does not read has 10 s once 64 KiB wait for it, and is closed at once at 1 MiB.
const LIMITS: Limits = Limits { high_water: 64 << 10, hard: 1 << 20, total: 64 << 20 };

/// One for each reactor. It has nothing to remember.
struct Echo;

impl Types for Echo {
    type Letter = ();
    type Tag = ();
    type Timer = ();
    type Moved = ();
    type Reason = ();
}

impl Handler for Echo {
    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        io.send(conn, Message::plain(input));
        Taken::all(input)
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, _rest: usize) {
        io.close(conn, ()); // behind all that is still to be sent back
    }
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:7000".to_owned());
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let (polls, mailboxes) = mailboxes(REACTORS)?;
    let budget = Budget::new();
    for (index, poll) in polls.into_iter().enumerate() {
        let event_loop = EventLoop::new(index, poll, Arc::clone(&mailboxes), LIMITS, Arc::clone(&budget), Echo)?;
        thread::Builder::new().name(format!("reactor-{index}")).spawn(move || event_loop.run())?;
    }
    let listener = listen(address)?;
    println!("listening on {}", listener.local_addr()?);
    let admission = Admission { max: 1000, refusal: b"all places are taken\n".to_vec(), addresses: None };
    let (acceptor, _stop) = Acceptor::new([listener], mailboxes, admission)?;
    acceptor.run()
}
