//! Stands between the bench and a server, and does harm to what the server sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What the harm is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// Chats of the bench, or group chats, or what a login's reply has of them.
    Messages,
    /// Acks of those.
    Acks,
}

/// What is done to one of them.
#[derive(Debug, Clone, Copy)]
pub enum Harm {
    Drop,
    Repeat,
    /// It comes after the next one on its connection.
    Swap,
    /// The first of these becomes the second.
    Change(&'static str, &'static str),
    /// The digits behind this become others.
    Number(&'static str),
    /// For this time nothing comes through on any connection.
    Stop(Duration),
    /// The connection ends.
    Cut,
}

/// Harm of one kind, `times` times.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub to: To,
    pub harm: Harm,
    pub times: usize,
}

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    plan: Plan,
    server: SocketAddr,
    /// What has passed of what the harm is for.
    passed: AtomicUsize,
    done: AtomicUsize,
    ending: AtomicBool,
    /// Until then nothing passes.
    closed_until: Mutex<Option<Instant>>,
    opened: Condvar,
}

/// The first that is harmed, …
const FIRST: usize = 40;
/// … and how many pass between two of them.
const APART: usize = 25;

impl Proxy {
    pub fn start(server: SocketAddr, plan: Plan) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            plan,
            server,
            passed: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            ending: AtomicBool::new(false),
            closed_until: Mutex::new(None),
            opened: Condvar::new(),
        });
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if all.ending.load(Relaxed) {
                    return;
                }
                all.serve(client);
            }
        });
        Proxy { address, shared }
    }

    /// How often the harm was done.
    pub fn done(&self) -> usize {
        self.shared.done.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ending.store(true, Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(self: &Arc<Shared>, client: TcpStream) {
        let server = TcpStream::connect(self.server).unwrap();
        for stream in [&client, &server] {
            stream.set_nodelay(true).unwrap();
        }
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
        let all = Arc::clone(self);
        std::thread::spawn(move || {
            all.pass_back(server, &client);
            let _ = client.shutdown(Shutdown::Both);
        });
    }

    fn pass_back(&self, server: TcpStream, mut client: &TcpStream) {
        let mut lines = BufReader::new(server);
        let mut line = Vec::new();
        // What comes after the next one of its kind.
        let mut held: Option<Vec<u8>> = None;
        while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
            self.wait_while_closed();
            let is_of_it = self.is_of_it(&line);
            let harm = if is_of_it && held.is_none() { self.harm_to_this() } else { None };
            let mut out = Vec::new();
            match harm {
                None => out.extend_from_slice(&line),
                Some(Harm::Drop) => {}
                Some(Harm::Repeat) => {
                    out.extend_from_slice(&line);
                    out.extend_from_slice(&line);
                }
                Some(Harm::Swap) => held = Some(line.clone()),
                Some(Harm::Change(from, to)) => {
                    let text = String::from_utf8(line.clone()).unwrap();
                    assert!(text.contains(from), "{from} is not in {text}");
                    out.extend_from_slice(text.replacen(from, to, 1).as_bytes());
                }
                Some(Harm::Number(key)) => {
                    let text = String::from_utf8(line.clone()).unwrap();
                    let (before, rest) = text.split_once(key).unwrap();
                    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
                    out.extend_from_slice(format!("{before}{key}9{}{}", &rest[..digits], &rest[digits..]).as_bytes());
                }
                Some(Harm::Stop(time)) => {
                    *self.closed_until.lock().unwrap() = Some(Instant::now() + time);
                    self.wait_while_closed();
                    out.extend_from_slice(&line);
                }
                Some(Harm::Cut) => return,
            }
            if is_of_it && !matches!(harm, Some(Harm::Swap)) {
                out.extend(held.take().unwrap_or_default());
            }
            if client.write_all(&out).is_err() {
                return;
            }
            line.clear();
        }
    }

    fn is_of_it(&self, line: &[u8]) -> bool {
        let text = String::from_utf8_lossy(line);
        match self.plan.to {
            // Not what the bench tries the server with before.
            To::Messages => (text.contains("\"msgid\":6") || text.contains("\"msgid\":10")) && text.contains("\"#"),
            To::Acks => text.contains("\"msgid\":200") && text.contains("\"delivered\""),
        }
    }

    /// What is to be done to the one that passes now.
    fn harm_to_this(&self) -> Option<Harm> {
        let passed = self.passed.fetch_add(1, Relaxed);
        let turn = passed.checked_sub(FIRST).filter(|since| since % APART == 0)? / APART;
        (turn < self.plan.times).then(|| {
            self.done.fetch_add(1, Relaxed);
            self.plan.harm
        })
    }

    fn wait_while_closed(&self) {
        let mut until = self.closed_until.lock().unwrap();
        while let Some(wait) = until.and_then(|until| until.checked_duration_since(Instant::now())) {
            until = self.opened.wait_timeout(until, wait).unwrap().0;
        }
    }
}
