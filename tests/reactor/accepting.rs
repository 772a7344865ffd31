//! Rule 9: accept; rule 5: one Poll for each socket; rule 8: a socket's options.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use chat_server::reactor::listen;
use socket2::SockRef;

use crate::probe;
use crate::support::{DEADLINE, eventually};
use crate::toy::{Event, FULL, Setup, echo, expect_bytes, start};

#[test]
fn more_than_one_budget_of_waiting_clients_is_accepted() {
    let mut reactors = Setup { reactors: 3, early: vec![300], ..Setup::default() }.start();
    let early = std::mem::take(&mut reactors.early);
    let mut owners = [0; 3];
    for client in &early {
        owners[reactors.opened(client).reactor()] += 1;
    }
    assert_eq!(owners, [100; 3], "not in turn");
}

#[test]
fn several_listeners_are_served_under_load_and_each_client_is_known_by_its_own() {
    const CLIENTS: usize = 40;
    let reactors = Setup { reactors: 2, early: vec![0; 3], ..Setup::default() }.start();
    std::thread::scope(|scope| {
        for address in &reactors.addresses {
            // A new client each time, so that no listener is ever without one for long.
            scope.spawn(move || {
                for _ in 0..CLIENTS {
                    let mut client = TcpStream::connect(address).unwrap();
                    client.set_read_timeout(Some(DEADLINE)).unwrap();
                    client.write_all(b"served").unwrap();
                    expect_bytes(&mut client, b"served");
                }
            });
        }
    });
    let mut of_listeners = [0; 3];
    for event in reactors.told() {
        if let Event::Opened(_, _, listener) = event {
            of_listeners[listener.index()] += 1;
        }
    }
    assert_eq!(of_listeners, [CLIENTS; 3]);
    for (index, address) in reactors.addresses.iter().enumerate() {
        let client = reactors.client_at(*address);
        let own = client.local_addr().unwrap();
        let listener = reactors.wait("a connection", |event| match event {
            Event::Opened(_, peer, listener) if *peer == own => Some(*listener),
            _ => None,
        });
        assert_eq!(listener.index(), index);
    }
}

#[test]
fn a_flood_at_one_listener_does_not_keep_the_clients_of_another_waiting() {
    const BUDGET: usize = 64;
    let reactors = Setup { early: vec![4 * BUDGET, 1, 4 * BUDGET, 1], ..Setup::default() }.start();
    let mut order = Vec::new();
    while order.len() < reactors.early.len() {
        order.push(reactors.wait("a connection", |event| match event {
            Event::Opened(_, _, listener) => Some(listener.index()),
            _ => None,
        }));
    }
    let before = |listener| order.iter().position(|index| *index == listener).expect("it was accepted");
    assert!(before(1) <= BUDGET && before(3) <= 2 * BUDGET + 1, "{order:?}");
}

#[test]
fn the_end_of_an_acceptor_closes_all_its_listeners() {
    let mut reactors = Setup { early: vec![0; 3], ..Setup::default() }.start();
    for address in reactors.addresses.clone() {
        let mut client = reactors.client_at(address);
        client.write_all(b"open").unwrap();
        expect_bytes(&mut client, b"open");
    }
    assert!(reactors.accept_no_more(), "the acceptor failed");
    for address in &reactors.addresses {
        let error = TcpStream::connect(address).expect_err("it still listens");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn a_full_house_does_not_stay_closed_when_some_leave() {
    const MAX: usize = 4;
    let reactors = Setup { max_connections: MAX, script: echo, ..Setup::default() }.start();
    let mut inside: Vec<TcpStream> = (0..MAX).map(|_| reactors.connect().0).collect();
    for _ in 0..10 {
        let mut refused = reactors.client();
        expect_bytes(&mut refused, FULL);
        assert_eq!(refused.read(&mut [0]).unwrap(), 0, "a refused client is not let go");
        assert_eq!(reactors.ask(0, |_, io| io.connections()), MAX);
        drop(inside.remove(0));
        eventually("the leaver to be gone", || reactors.ask(0, |_, io| io.connections()) == MAX - 1);
        let mut next = reactors.client();
        next.write_all(b"in?").unwrap();
        expect_bytes(&mut next, b"in?");
        inside.push(next);
    }
}

#[test]
fn a_full_house_does_not_make_the_acceptor_spin() {
    let reactors = Setup { max_connections: 1, ..Setup::default() }.start();
    let _inside = reactors.connect();
    expect_bytes(&mut reactors.client(), FULL);
    let spent = probe::cpu(&reactors.acceptor_proc);
    reactors.pass(Duration::from_millis(300));
    let spent = probe::cpu(&reactors.acceptor_proc) - spent;
    assert!(spent < Duration::from_millis(100), "it spins: {spent:?} of 300 ms");
}

#[test]
fn the_acceptor_never_registers_a_client() {
    let reactors = Setup { reactors: 2, script: echo, ..Setup::default() }.start();
    for _ in 0..4 {
        let (client, conn) = reactors.connect();
        reactors.turns(conn.reactor(), 1);
        let inode = probe::inode_of_accepted(&client);
        for (index, thread) in reactors.threads.iter().enumerate() {
            assert_eq!(probe::watched(thread.epoll, inode).is_some(), index == conn.reactor());
        }
        assert_eq!(probe::polls_that_watch(inode), 1, "more than one Poll watches a client");
    }
}

#[test]
fn an_accepted_socket_has_the_listeners_options() {
    let listener: TcpListener = listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    listener.set_nonblocking(false).unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let socket = SockRef::from(&accepted);
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
    // From the first probe on, each that is not answered is followed by a look whether the time is over.
    let (first, step) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
    assert_eq!(first, Duration::from_secs(15));
    assert!(first + 4 * step < Duration::from_secs(30), "so many probes may be lost, and the next is answered");
    // Linux doubles what is asked for.
    assert_eq!(socket.send_buffer_size().unwrap(), 2 * 64 * 1024);
}

#[test]
fn a_client_that_has_left_before_it_was_accepted_does_not_stop_the_acceptor() {
    let reactors = start(echo);
    let stall = reactors.stall(0);
    for _ in 0..10 {
        SockRef::from(&reactors.client()).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(stall);
    let (mut client, _) = reactors.connect();
    client.write_all(b"still open?").unwrap();
    expect_bytes(&mut client, b"still open?");
}
