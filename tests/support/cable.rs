use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::Launch;

/// What is read at a time, in bytes: a statement, or a short answer, comes as one piece.
const PIECE: usize = 16 << 10;
/// Parts of a second, for [`Cable::slow`].
const TICKS: u64 = 20;

/// A TCP proxy on a port of its own, for a test that breaks what passes: what connects to its address
/// reaches its target, until then. A fault holds for all lines, or for those that a [rule](Cable::rule)
/// picks, and ends with [`Cable::fix`].
pub struct Cable {
    pub address: SocketAddr,
    target: u16,
    shared: Arc<Shared>,
}

/// The direction of a piece of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the target.
    There,
    Back,
}

/// What becomes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// It waits, with all that follows it, until another rule lets it pass.
    Hold,
    /// It passes later by this time.
    Late(Duration),
    /// It is lost, and both ends of its line are closed.
    Cut,
}

/// What a rule knows of a line, and may note there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// It has sent a SUBSCRIBE to Redis.
    pub subscribes: bool,
    /// For a rule.
    pub is_marked: bool,
}

/// Asked of each piece, and of the end of each direction, which is an empty one; and again of what it
/// holds whenever the rule has changed.
type Rule = dyn FnMut(&mut Line, Way, &[u8]) -> Verdict + Send;

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes a second that come back, on each line; 0: as many as may be.
    rate: AtomicU64,
    /// Bytes that have come back.
    passed: AtomicUsize,
}

struct State {
    rule: Box<Rule>,
    lines: HashMap<usize, Ends>,
    next: usize,
    held: usize,
    cuts: usize,
    /// No further client is let in.
    is_gone: bool,
}

struct Ends {
    line: Line,
    near: TcpStream,
    far: TcpStream,
    /// Directions that have not ended.
    open: u8,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cable {
    /// A cable to a port of this machine.
    pub fn to(target: u16) -> Cable {
        Cable::with_buffer(target, None)
    }

    /// The same, of which the kernel takes no more than about `bytes` of what comes back while that does not
    /// pass: so the target notices.
    pub fn with_receive_buffer(target: u16, bytes: usize) -> Cable {
        Cable::with_buffer(target, Some(bytes))
    }

    fn with_buffer(target: u16, buffer: Option<usize>) -> Cable {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (rule, lines) = (Box::new(|_: &mut Line, _, _: &[u8]| Verdict::Pass), HashMap::new());
        let state = Mutex::new(State { rule, lines, next: 0, held: 0, cuts: 0, is_gone: false });
        let (rate, passed) = (AtomicU64::new(0), AtomicUsize::new(0));
        let shared = Arc::new(Shared { state, changed: Condvar::new(), rate, passed });
        let of_lines = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if of_lines.state().is_gone {
                    return;
                }
                // A target that is away ends the client's connection.
                if let Ok(far) = connect(target, buffer) {
                    of_lines.add(near, far);
                }
            }
        });
        Cable { address, target, shared }
    }

    /// Has a node that is still to be started reach the target through this.
    pub fn lead(&self, launch: &mut Launch) {
        let (from, to) = (format!("127.0.0.1:{}", self.target), self.address.to_string());
        for text in std::iter::once(&mut launch.store).chain(&mut launch.flags) {
            *text = text.replace(&from, &to);
        }
    }

    /// From now on this is asked what becomes of each piece.
    pub fn rule(&self, rule: impl FnMut(&mut Line, Way, &[u8]) -> Verdict + Send + 'static) {
        self.shared.state().rule = Box::new(rule);
        self.shared.changed.notify_all();
    }

    /// Everything passes, that is held as well.
    pub fn fix(&self) {
        self.shared.rate.store(0, Ordering::Relaxed);
        self.rule(|_, _, _| Verdict::Pass);
    }

    /// All lines are cut, and so are clients that connect later.
    pub fn pull(&self) {
        self.rule(|_, _, _| Verdict::Cut);
        self.cut(|_| true);
    }

    /// The same for clients that subscribe, and no others.
    pub fn deafen(&self) {
        self.rule(|line, _, _| if line.subscribes { Verdict::Cut } else { Verdict::Pass });
        self.cut(|line| line.subscribes);
    }

    /// Nothing passes any more, and no end of a line is passed on.
    pub fn freeze(&self) {
        self.rule(|_, _, _| Verdict::Hold);
    }

    /// What is sent there still passes, and what comes back waits.
    pub fn freeze_answers(&self) {
        self.rule(|_, way, _| if way == Way::Back { Verdict::Hold } else { Verdict::Pass });
    }

    /// What comes back is late.
    pub fn delay(&self, time: Duration) {
        self.rule(move |_, way, _| if way == Way::Back { Verdict::Late(time) } else { Verdict::Pass });
    }

    /// No more comes back than this number of bytes a second.
    pub fn slow(&self, bytes: u64) {
        self.shared.rate.store(bytes, Ordering::Relaxed);
    }

    /// Cuts lines once.
    pub fn cut(&self, whom: impl Fn(&Line) -> bool) {
        let state = &mut *self.shared.state();
        for Ends { near, far, .. } in state.lines.values().filter(|ends| whom(&ends.line)) {
            [near, far].map(|end| end.shutdown(Shutdown::Both)).into_iter().for_each(drop);
            state.cuts += 1;
        }
    }

    /// Marks lines.
    pub fn mark(&self, whom: impl Fn(&Line) -> bool) {
        for Ends { line, .. } in self.shared.state().lines.values_mut() {
            line.is_marked |= whom(line);
        }
    }

    /// Closes the target's ends of lines. A rule may keep the other ends from noticing.
    pub fn lose(&self, whom: impl Fn(&Line) -> bool) {
        for Ends { far, .. } in self.shared.state().lines.values().filter(|ends| whom(&ends.line)) {
            let _ = far.shutdown(Shutdown::Both);
        }
    }

    /// How many pieces wait.
    pub fn held(&self) -> usize {
        self.shared.state().held
    }

    /// How many lines were cut, one that two pieces were to pass perhaps twice.
    pub fn cuts(&self) -> usize {
        self.shared.state().cuts
    }

    /// How many lines there are of these.
    pub fn lines(&self, which: impl Fn(&Line) -> bool) -> usize {
        self.shared.state().lines.values().filter(|ends| which(&ends.line)).count()
    }

    /// How many bytes have come back, on all lines.
    pub fn passed(&self) -> usize {
        self.shared.passed.load(Ordering::Relaxed)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.shared.state().is_gone = true;
        self.pull();
        let _ = TcpStream::connect(self.address); // wakes the thread that waits for others
    }
}

fn connect(target: u16, buffer: Option<usize>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    // Before it connects: see `Client::connect_with_receive_buffer`.
    buffer.map_or(Ok(()), |bytes| socket.set_recv_buffer_size(bytes))?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, target)).into())?;
    Ok(socket.into())
}

impl Shared {
    fn add(self: &Arc<Shared>, near: TcpStream, far: TcpStream) {
        [&near, &far].map(|end| end.set_nodelay(true)).into_iter().for_each(drop);
        let clone = |end: &TcpStream| end.try_clone().expect("a descriptor");
        let [there, back] = [(clone(&near), clone(&far)), (clone(&far), clone(&near))];
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        state.lines.insert(number, Ends { line: Line::default(), near, far, open: 2 });
        drop(state);
        for (way, (from, to)) in [(Way::There, there), (Way::Back, back)] {
            let shared = Arc::clone(self);
            thread::spawn(move || {
                shared.carry(number, way, from, to);
                shared.end(number);
            });
        }
    }

    /// Carries what goes in one direction, until that ends.
    fn carry(&self, number: usize, way: Way, mut from: TcpStream, mut to: TcpStream) {
        let mut piece = Vec::new();
        loop {
            let rate = if way == Way::Back { self.rate.load(Ordering::Relaxed) } else { 0 };
            let room = if rate == 0 { PIECE } else { PIECE.min((rate / TICKS).max(1) as usize) };
            piece.clear();
            read(&mut from, room, &mut piece);
            match self.judge(number, way, &piece) {
                Verdict::Pass | Verdict::Hold => {}
                Verdict::Late(time) => {
                    thread::sleep(time);
                    // What has come meanwhile belongs to it: no client has got an answer.
                    let _ = from.set_read_timeout(Some(Duration::from_millis(1)));
                    while !piece.is_empty() && read(&mut from, PIECE, &mut piece) > 0 {}
                    let _ = from.set_read_timeout(None);
                }
                Verdict::Cut => break,
            }
            if piece.is_empty() {
                // The other direction may go on.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            if to.write_all(&piece).is_err() {
                break;
            }
            if way == Way::Back {
                self.passed.fetch_add(piece.len(), Ordering::Relaxed);
            }
            if rate > 0 {
                thread::sleep(Duration::from_secs(1) / TICKS as u32);
            }
        }
        for end in [&from, &to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Waits for as long as the piece is held.
    fn judge(&self, number: usize, way: Way, piece: &[u8]) -> Verdict {
        let mut guard = self.state();
        loop {
            let state = &mut *guard;
            let Some(Ends { line, .. }) = state.lines.get_mut(&number) else { return Verdict::Cut };
            line.subscribes |= way == Way::There && contains(piece, b"SUBSCRIBE");
            match (state.rule)(line, way, piece) {
                Verdict::Hold => {
                    state.held += 1;
                    guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
                    guard.held -= 1;
                }
                Verdict::Cut => {
                    state.cuts += 1;
                    return Verdict::Cut;
                }
                verdict => return verdict,
            }
        }
    }

    /// One direction has ended.
    fn end(&self, number: usize) {
        let mut state = self.state();
        let Some(ends) = state.lines.get_mut(&number) else { return };
        ends.open -= 1;
        if ends.open == 0 {
            state.lines.remove(&number);
        }
    }
}

/// Reads what there is, up to `room` bytes, behind what the piece has; how many bytes there were.
fn read(from: &mut TcpStream, room: usize, piece: &mut Vec<u8>) -> usize {
    let before = piece.len();
    piece.resize(before + room, 0);
    let read = loop {
        match from.read(&mut piece[before..]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => break result.unwrap_or(0),
        }
    };
    piece.truncate(before + read);
    read
}

/// Whether these bytes stand somewhere in a piece.
pub fn contains(piece: &[u8], text: &[u8]) -> bool {
    piece.windows(text.len()).any(|window| window == text)
}
