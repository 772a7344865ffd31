//! Rule 9: accept; rule 5: one Poll for each socket; rule 8: a socket's options.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use chat_server::reactor::listen;
use socket2::SockRef;

use crate::probe;
use crate::support::eventually;
use crate::toy::{FULL, Setup, echo, expect_bytes, start};

#[test]
fn more_than_one_budget_of_waiting_clients_is_accepted() {
    let mut reactors = Setup { reactors: 3, early: 300, ..Setup::default() }.start();
    let early = std::mem::take(&mut reactors.early);
    let mut owners = [0; 3];
    for client in &early {
        owners[reactors.opened(client).reactor()] += 1;
    }
    assert_eq!(owners, [100; 3], "not in turn");
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
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(30)));
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
