//! Thousands of clients that mean harm or do not care, and the few who work beside them.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use socket2::{Domain, Protocol, Socket, Type};
use support::{Client, Config, eventually};

/// One test at a time, or they would measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    rlimit::increase_nofile_limit(u64::MAX).expect("the soft limit can be raised");
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const LORISES: usize = 15_000;
/// What each of them has sent of a message that never ends: half of what the server takes before a login.
const HEAD: usize = 4096;

/// Connects from some address of the loopback network that has ports left.
fn loris(address: SocketAddr, n: usize) -> TcpStream {
    let source = SocketAddr::from(([127, 0, 1, (n / 4096) as u8], 0));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.bind(&source.into()).expect("a port");
    socket.connect(&address.into()).expect("the server accepts");
    TcpStream::from(socket)
}

/// Chats back and forth for so long; how long each took until it was acked as delivered, in microseconds.
fn work(pair: &mut [Client; 2], time: Duration) -> Histogram<u64> {
    let (mut latencies, began) = (Histogram::new(3).unwrap(), Instant::now());
    for n in 0.. {
        if began.elapsed() >= time {
            break;
        }
        let [a, b] = pair;
        let (sender, recipient) = if n % 2 == 0 { (a, b) } else { (b, a) };
        let sent = Instant::now();
        assert!(sender.chat(recipient.id(), &n.to_string()));
        assert_eq!(recipient.texts(1), [n.to_string()]);
        latencies.record(sent.elapsed().as_micros() as u64).unwrap();
    }
    latencies
}

#[test]
fn fifteen_thousand_slow_lorises_beside_a_working_pair() {
    let _alone = alone();
    let world = Config::new(2).own(&["--login-timeout", "12s"]);
    let mut pair = [world.online("one"), world.online("other")];
    // What stays allocated for those who work is no growth.
    work(&mut pair, Duration::from_millis(300));
    let address = world.server().address;
    let before = world.server().resident_kib();
    let began = Instant::now();
    let head = format!("{{\"msgid\":1,\"id\":1,\"password\":\"{}", "x".repeat(HEAD));
    let mut lorises: Vec<TcpStream> = Vec::with_capacity(LORISES);
    for n in 0..LORISES {
        let mut stream = loris(address, n);
        stream.write_all(head.as_bytes()).expect("the server reads");
        lorises.push(stream);
    }
    let stop = AtomicBool::new(false);
    let latencies = thread::scope(|scope| {
        // A byte of each, again and again, so that none of them seems idle.
        scope.spawn(|| {
            for stream in lorises.iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let _ = (&*stream).write(b"x");
                thread::sleep(Duration::from_micros(20));
            }
        });
        let latencies = work(&mut pair, Duration::from_secs(4));
        stop.store(true, Ordering::Relaxed);
        latencies
    });
    let (p50, p99) = (latencies.value_at_quantile(0.5), latencies.value_at_quantile(0.99));
    let grown = world.server().resident_kib().saturating_sub(before);
    // As a table for whoever runs it with --nocapture.
    println!("{} chats, p50 {p50} us, p99 {p99} us; {grown} KiB for {LORISES} lorises", latencies.len());
    assert!(latencies.len() > 100 && p99 < 50_000, "{} chats, p50 {p50} us, p99 {p99} us", latencies.len());
    // 8 KiB are what a message may take before a login; the rest is what a connection costs.
    assert!(grown < LORISES * 10, "{grown} KiB for {LORISES} connections");
    eventually("the end of the lorises", || world.server().descriptors() < 100);
    for stream in lorises.iter_mut().step_by(1000) {
        let mut told = String::new();
        stream.read_to_string(&mut told).expect("an end without a reset");
        assert!(told.contains("\"errno\":20"), "{told:?}");
    }
    let kept = || world.server().resident_kib().saturating_sub(before);
    eventually("their memory to be given back", || kept() < 16 * 1024);
    println!("gone after {:?}, {} KiB kept", began.elapsed(), kept());
    work(&mut pair, Duration::from_millis(100));
}
