//! Real reactors with a handler that does what a test says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use chat_server::reactor::{
    Acceptor, AcceptorHandle, Admission, Budget, CloseReason, ConnId, EventLoop, Handler, HangUp, Io, Limits,
    ListenerId, Mail, Mailbox, Message, ReactorCounts, Reason, Recall, SendOptions, Taken, Types, Unwritten, listen,
};
use mio::Poll;

use crate::support::DEADLINE;

/// What a test has done in a reactor's thread.
pub type Letter = Box<dyn FnOnce(&mut Toy, &mut Io<Toy>) + Send>;

/// What the toy does with input.
pub type Script = fn(&mut Toy, &mut Io<Toy>, ConnId, &[u8]) -> Taken;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// May be recalled.
    Chat(usize),
    Reply(usize),
}

/// The calls that the reactor made to its handler.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Opened(ConnId, SocketAddr, ListenerId),
    /// With what it was given away with.
    Arrived(ConnId, Moved),
    Input(ConnId, usize),
    Ended(ConnId, usize),
    HungUp(ConnId, HangUp),
    Written(ConnId, Tag, Instant),
    Recalled(ConnId, Vec<Unwritten<Tag>>),
    Drained(ConnId),
    Closed(ConnId, CloseReason<Why>, Vec<Unwritten<Tag>>),
    Timer(u32),
    Stopping,
}

/// Why the toy closes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    ByClient,
    Unfollowable,
    IdleTimeout,
    ClaimLost,
    ShuttingDown,
}

impl Reason for Why {
    const ALL: &'static [Why] =
        &[Why::ByClient, Why::Unfollowable, Why::IdleTimeout, Why::ClaimLost, Why::ShuttingDown];

    fn text(self) -> &'static str {
        match self {
            Why::ByClient => "by the client",
            Why::Unfollowable => "unfollowable",
            Why::IdleTimeout => "idle",
            Why::ClaimLost => "claim lost",
            Why::ShuttingDown => "shutting down",
        }
    }
}

/// What a toy passes on to another one with a connection.
pub type Moved = u32;

/// The handler: reports its calls, and answers by its script.
pub struct Toy {
    events: Sender<Event>,
    script: Script,
    /// Whether a client's end is answered with ours at once.
    pub close_at_end: bool,
    /// What it does with connections that arrive.
    pub on_arrival: fn(&mut Toy, &mut Io<Toy>, ConnId, Moved),
    /// What it does with tags that are written.
    pub on_written: fn(&mut Toy, &mut Io<Toy>, ConnId, Tag),
    /// What it does when something was recalled, and when a timer fires.
    pub on_recalled: fn(&mut Toy),
    pub on_timer: fn(&mut Toy),
    /// What it does when a timer fires, once.
    pub at_timer: Option<Letter>,
    /// What it does when a turn ends, once.
    pub at_turn_end: Option<Letter>,
    /// Whether it may act.
    may: Arc<AtomicBool>,
}

impl Toy {
    pub fn report(&self, event: Event) {
        // The test may have ended already.
        let _ = self.events.send(event);
    }

    /// From now on it may not act.
    pub fn may_no_longer(&mut self) {
        self.may.store(false, SeqCst);
    }
}

impl Types for Toy {
    type Letter = Letter;
    type Tag = Tag;
    type Timer = u32;
    type Moved = Moved;
    type Reason = Why;
}

impl Handler for Toy {
    fn may_act(&mut self) -> bool {
        self.may.load(SeqCst)
    }

    fn arrived(&mut self, io: &mut Io<Self>, conn: ConnId, moved: Moved) {
        self.report(Event::Arrived(conn, moved));
        (self.on_arrival)(self, io, conn, moved);
    }

    fn opened(&mut self, _io: &mut Io<Self>, conn: ConnId, peer: SocketAddr, listener: ListenerId) {
        self.report(Event::Opened(conn, peer, listener));
    }

    fn input(&mut self, io: &mut Io<Self>, conn: ConnId, input: &[u8]) -> Taken {
        self.report(Event::Input(conn, input.len()));
        (self.script)(self, io, conn, input)
    }

    fn ended(&mut self, io: &mut Io<Self>, conn: ConnId, rest: usize) {
        self.report(Event::Ended(conn, rest));
        if self.close_at_end {
            io.close(conn, Why::ByClient);
        }
    }

    fn hung_up(&mut self, _io: &mut Io<Self>, conn: ConnId, how: HangUp) {
        self.report(Event::HungUp(conn, how));
    }

    fn letter(&mut self, io: &mut Io<Self>, letter: Letter) {
        letter(self, io);
    }

    fn written(&mut self, io: &mut Io<Self>, conn: ConnId, tag: Tag) {
        self.report(Event::Written(conn, tag, io.now()));
        (self.on_written)(self, io, conn, tag);
    }

    fn recallable(tag: &Tag, how: Recall) -> bool {
        how == Recall::All || matches!(tag, Tag::Chat(_))
    }

    fn recalled(&mut self, _io: &mut Io<Self>, conn: ConnId, recalled: Vec<Unwritten<Tag>>) {
        self.report(Event::Recalled(conn, recalled));
        (self.on_recalled)(self);
    }

    fn drained(&mut self, _io: &mut Io<Self>, conn: ConnId) {
        self.report(Event::Drained(conn));
    }

    fn closed(&mut self, _io: &mut Io<Self>, conn: ConnId, reason: CloseReason<Why>, unwritten: Vec<Unwritten<Tag>>) {
        self.report(Event::Closed(conn, reason, unwritten));
    }

    fn timer(&mut self, io: &mut Io<Self>, timer: u32) {
        self.report(Event::Timer(timer));
        (self.on_timer)(self);
        if let Some(what) = self.at_timer.take() {
            what(self, io);
        }
    }

    fn turn_ended(&mut self, io: &mut Io<Self>) {
        if let Some(what) = self.at_turn_end.take() {
            what(self, io);
        }
    }

    fn stopping(&mut self, _io: &mut Io<Self>) {
        self.report(Event::Stopping);
    }
}

/// Takes everything and says nothing.
pub fn swallow(_: &mut Toy, _: &mut Io<Toy>, _: ConnId, input: &[u8]) -> Taken {
    Taken { bytes: input.len(), more: false }
}

/// Sends back what came.
pub fn echo(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
    send(io, conn, input, None);
    Taken { bytes: input.len(), more: false }
}

/// Answers anything with "no" and closes.
pub fn refuse(_: &mut Toy, io: &mut Io<Toy>, conn: ConnId, input: &[u8]) -> Taken {
    send(io, conn, b"no", None);
    io.close(conn, Why::Unfollowable);
    Taken { bytes: input.len(), more: false }
}

/// Counts towards no mark.
pub const UNCOUNTED: SendOptions = SendOptions { own_write: false, uncounted: true };

pub fn message<'a>(bytes: &'a [u8], tag: Option<Tag>) -> Message<'a, Tag> {
    Message { tag, ..Message::plain(bytes) }
}

pub fn send(io: &mut Io<Toy>, conn: ConnId, bytes: &[u8], tag: Option<Tag>) -> bool {
    io.send(conn, message(bytes, tag))
}

/// What a client hears that finds all places taken.
pub const FULL: &[u8] = b"full";

/// What to start.
pub struct Setup {
    pub reactors: usize,
    pub limits: Limits,
    pub max_connections: usize,
    pub script: Script,
    /// Clients that connect before any acceptor runs, to each listener.
    pub early: Vec<usize>,
}

impl Default for Setup {
    fn default() -> Self {
        let limits = Limits { high_water: 1 << 20, hard: 8 << 20, total: usize::MAX };
        Setup { reactors: 1, limits, max_connections: usize::MAX, script: echo, early: vec![0] }
    }
}

impl Setup {
    pub fn start(self) -> Reactors {
        Reactors::start(self).expect("reactors start")
    }
}

pub fn start(script: Script) -> Reactors {
    Setup { script, ..Setup::default() }.start()
}

/// Keeps what is logged, by the thread that did.
struct Log(Mutex<Vec<(ThreadId, String)>>);

static LOG: Log = Log(Mutex::new(Vec::new()));

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}", record.level(), record.args());
            self.0.lock().unwrap().push((std::thread::current().id(), line));
        }
    }

    fn flush(&self) {}
}

/// One sub-reactor as the system shows it.
pub struct Thread {
    handle: Option<JoinHandle<io::Result<()>>>,
    /// Its folder in /proc.
    pub proc: PathBuf,
    /// Its Poll's descriptor.
    pub epoll: RawFd,
    pub counts: Arc<ReactorCounts>,
    pub beat: Arc<AtomicU64>,
    /// Whether its handler may act.
    pub may: Arc<AtomicBool>,
}

type Running = (JoinHandle<io::Result<()>>, PathBuf);

/// Starts a thread, and returns its folder in /proc.
fn spawn(run: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Running> {
    let (tell, folder) = channel();
    let handle = std::thread::spawn(move || {
        tell.send(std::fs::read_link("/proc/thread-self")?).map_err(io::Error::other)?;
        run()
    });
    let folder = folder.recv_timeout(DEADLINE).map_err(io::Error::other)?;
    Ok((handle, PathBuf::from("/proc").join(folder)))
}

/// An acceptor and its reactors, which end with the test.
pub struct Reactors {
    /// The first listener.
    pub address: SocketAddr,
    pub addresses: Vec<SocketAddr>,
    pub mailboxes: Arc<[Mailbox<Mail<Toy>>]>,
    pub threads: Vec<Thread>,
    pub early: Vec<TcpStream>,
    acceptor: AcceptorHandle,
    acceptor_thread: Option<JoinHandle<io::Result<()>>>,
    /// The acceptor's folder in /proc.
    pub acceptor_proc: PathBuf,
    events: Receiver<Event>,
    /// Events that no test has waited for yet.
    seen: RefCell<VecDeque<Event>>,
}

impl Reactors {
    fn start(setup: Setup) -> io::Result<Reactors> {
        // Another test may have set it.
        if log::set_logger(&LOG).is_ok() {
            log::set_max_level(log::LevelFilter::Info);
        }
        let listeners: Vec<TcpListener> =
            setup.early.iter().map(|_| listen((Ipv4Addr::LOCALHOST, 0).into())).collect::<io::Result<_>>()?;
        let addresses: Vec<SocketAddr> = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        let polls: Vec<Poll> = (0..setup.reactors).map(|_| Poll::new()).collect::<io::Result<_>>()?;
        let mailboxes: Arc<[_]> =
            polls.iter().map(|poll| Mailbox::new(poll.registry())).collect::<io::Result<Vec<_>>>()?.into();
        let (sender, events) = channel();
        let (budget, mut threads) = (Budget::new(), Vec::new());
        for (index, poll) in polls.into_iter().enumerate() {
            let epoll = poll.as_raw_fd();
            let may = Arc::new(AtomicBool::new(true));
            let toy = Toy {
                events: sender.clone(),
                script: setup.script,
                close_at_end: true,
                on_arrival: |_, _, _, _| {},
                on_written: |_, _, _, _| {},
                on_recalled: |_| {},
                on_timer: |_| {},
                at_timer: None,
                at_turn_end: None,
                may: Arc::clone(&may),
            };
            let (mailboxes, budget) = (Arc::clone(&mailboxes), Arc::clone(&budget));
            let event_loop = EventLoop::new(index, poll, mailboxes, setup.limits, budget, toy)?;
            let (counts, beat) = (event_loop.counts(), event_loop.beat());
            let (handle, proc) = spawn(move || event_loop.run())?;
            threads.push(Thread { handle: Some(handle), proc, epoll, counts, beat, may });
        }
        let of_each = addresses.iter().zip(&setup.early);
        let early = of_each.flat_map(|(address, clients)| (0..*clients).map(move |_| TcpStream::connect(address)));
        let early = early.collect::<io::Result<_>>()?;
        let (acceptor, handle) = Acceptor::new(
            listeners,
            Arc::clone(&mailboxes),
            Admission { max: setup.max_connections, refusal: FULL.to_vec(), addresses: None },
        )?;
        let (thread, acceptor_proc) = spawn(move || acceptor.run())?;
        Ok(Reactors {
            address: addresses[0],
            addresses,
            mailboxes,
            threads,
            early,
            acceptor: handle,
            acceptor_thread: Some(thread),
            acceptor_proc,
            events,
            seen: RefCell::default(),
        })
    }

    /// A client, connected but perhaps not accepted.
    #[track_caller]
    pub fn client(&self) -> TcpStream {
        self.client_at(self.address)
    }

    /// The same, at one of the listeners.
    #[track_caller]
    pub fn client_at(&self, address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).expect("connect");
        stream.set_nodelay(true).unwrap();
        // Or else the kernel lets it hold more and more, the faster it has read, up to what the system allows.
        socket2::SockRef::from(&stream).set_recv_buffer_size(256 << 10).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// A client and its connection.
    #[track_caller]
    pub fn connect(&self) -> (TcpStream, ConnId) {
        let client = self.client();
        let id = self.opened(&client);
        (client, id)
    }

    #[track_caller]
    pub fn opened(&self, client: &TcpStream) -> ConnId {
        let own = client.local_addr().unwrap();
        self.wait("a connection", |event| match event {
            Event::Opened(id, peer, _) if *peer == own => Some(*id),
            _ => None,
        })
    }

    /// The first event that `wanted` picks, wherever it stands. The others are kept, in order.
    #[track_caller]
    pub fn wait<R>(&self, what: &str, mut wanted: impl FnMut(&Event) -> Option<R>) -> R {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = self.seen.borrow_mut();
        let mut at = 0;
        loop {
            if at == seen.len() {
                match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(event) => seen.push_back(event),
                    Err(RecvTimeoutError::Timeout) => panic!("in vain for {DEADLINE:?}: {what}; seen: {seen:?}"),
                    Err(RecvTimeoutError::Disconnected) => panic!("the reactors are dead; seen: {seen:?}"),
                }
            }
            if let Some(found) = wanted(&seen[at]) {
                seen.remove(at);
                return found;
            }
            at += 1;
        }
    }

    #[track_caller]
    pub fn expect(&self, expected: &Event) {
        self.wait(&format!("{expected:?}"), |event| (event == expected).then_some(()));
    }

    #[track_caller]
    pub fn closed(&self, conn: ConnId) -> (CloseReason<Why>, Vec<(Tag, bool)>) {
        self.wait(&format!("the end of {conn}"), |event| match event {
            Event::Closed(id, reason, unwritten) if *id == conn => {
                Some((*reason, unwritten.iter().map(|message| (message.tag, message.begun)).collect()))
            }
            _ => None,
        })
    }

    /// What a reactor has logged, in lines of a level and a text.
    pub fn log(&self, reactor: usize) -> Vec<String> {
        let own = self.threads[reactor].handle.as_ref().expect("it runs").thread().id();
        LOG.0.lock().unwrap().iter().filter(|(thread, _)| *thread == own).map(|(_, line)| line.clone()).collect()
    }

    /// What has been reported until now and no test has waited for.
    pub fn told(&self) -> Vec<Event> {
        let mut seen = self.seen.borrow_mut();
        seen.extend(self.events.try_iter());
        seen.drain(..).collect()
    }

    /// Has `what` done in a reactor's thread, some time.
    pub fn tell(&self, reactor: usize, what: impl FnOnce(&mut Toy, &mut Io<Toy>) + Send + 'static) {
        let letter: Letter = Box::new(what);
        self.mailboxes[reactor].post(Mail::Letter(letter));
    }

    /// Has `what` done in a reactor's thread, and waits for the result.
    #[track_caller]
    pub fn ask<R: Send + 'static>(
        &self,
        reactor: usize,
        what: impl FnOnce(&mut Toy, &mut Io<Toy>) -> R + Send + 'static,
    ) -> R {
        let (answer, result) = channel();
        self.tell(reactor, move |toy, io| _ = answer.send(what(toy, io)));
        result.recv_timeout(DEADLINE).expect("the reactor lives")
    }

    /// Waits until whole turns have passed: everything that was ready is done.
    #[track_caller]
    pub fn turns(&self, reactor: usize, turns: usize) {
        (0..turns).for_each(|_| self.ask(reactor, |_, _| ()));
    }

    /// Holds a reactor still until the result is dropped.
    #[track_caller]
    #[must_use]
    pub fn stall(&self, reactor: usize) -> Stall {
        let (go_on, wait) = channel::<()>();
        let (stalled, is_stalled) = channel();
        self.tell(reactor, move |_, _| {
            let _ = stalled.send(());
            let _ = wait.recv_timeout(DEADLINE);
        });
        is_stalled.recv_timeout(DEADLINE).expect("the reactor lives");
        Stall { _go_on: go_on }
    }

    /// Waits until a reactor has ended.
    #[track_caller]
    pub fn join(&mut self, reactor: usize) {
        let handle = self.threads[reactor].handle.take().expect("it was not waited for");
        crate::support::eventually("a reactor to end", || handle.is_finished());
        handle.join().expect("it does not panic").expect("it does not fail");
    }

    /// Waits for this time by a reactor's own clock.
    #[track_caller]
    pub fn pass(&self, time: Duration) {
        const PASSED: u32 = u32::MAX;
        self.tell(0, move |_, io| io.set_timer(io.now() + time, PASSED));
        self.expect(&Event::Timer(PASSED));
    }

    #[track_caller]
    pub fn wait_until_empty(&self, reactor: usize) {
        crate::support::eventually("all connections to be swept", || self.ask(reactor, |_, io| io.connections()) == 0);
    }
}

impl Reactors {
    /// Ends the acceptor; false: it failed.
    pub fn accept_no_more(&mut self) -> bool {
        self.acceptor.stop();
        self.acceptor_thread.take().is_none_or(|thread| matches!(thread.join(), Ok(Ok(()))))
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        let accepted = self.accept_no_more();
        for mail in [|| Mail::Stop, || Mail::Exit] {
            self.mailboxes.iter().for_each(|mailbox| mailbox.post(mail()));
        }
        let ended: Vec<_> =
            self.threads.iter_mut().filter_map(|thread| thread.handle.take()).map(JoinHandle::join).collect();
        if !std::thread::panicking() {
            assert!(accepted, "the acceptor failed");
            assert!(ended.iter().all(|end| matches!(end, Ok(Ok(())))), "a reactor failed: {ended:?}");
        }
    }
}

/// Holds a reactor still.
pub struct Stall {
    _go_on: Sender<()>,
}

/// Exactly these bytes must come.
#[track_caller]
pub fn expect_bytes(client: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).expect("the reply comes");
    assert!(got == expected, "got {:?}", String::from_utf8_lossy(&got[..got.len().min(200)]));
}

/// The stream must end here, in order.
#[track_caller]
pub fn expect_end(client: &mut TcpStream) {
    assert_eq!(client.read(&mut [0]).expect("an end without a reset"), 0);
}

/// Writes until the kernel takes no more, and returns how much that was.
#[track_caller]
pub fn fill(client: &TcpStream, at_most: usize) -> usize {
    use std::io::Write;
    client.set_nonblocking(true).unwrap();
    let (chunk, mut written) = (vec![b'x'; 64 * 1024], 0);
    while written < at_most {
        match (&*client).write(&chunk[..chunk.len().min(at_most - written)]) {
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    client.set_nonblocking(false).unwrap();
    written
}
