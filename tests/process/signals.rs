//! What each signal does.

use std::ffi::c_int;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Client, Process, eventually, free_port};
use crate::{Running, online_in, program, server_after};

/// What a signal is to do; all others are ignored by default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Does {
    /// Ends in order.
    End,
    /// Nothing, and says so in the log.
    Tell,
    /// Nothing.
    Ignore,
    /// What the system has it do: stop and go on, or crash.
    Default,
}

fn does(signal: c_int) -> Does {
    match signal {
        libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT | libc::SIGXCPU | libc::SIGPWR => Does::End,
        libc::SIGUSR1 | libc::SIGUSR2 | libc::SIGALRM | libc::SIGVTALRM | libc::SIGPROF | libc::SIGIO => Does::Tell,
        libc::SIGSTKFLT | 34.. => Does::Tell,
        libc::SIGPIPE | libc::SIGXFSZ | libc::SIGCHLD | libc::SIGCONT | libc::SIGURG | libc::SIGWINCH => Does::Ignore,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU | libc::SIGKILL => Does::Default,
        libc::SIGABRT | libc::SIGBUS | libc::SIGFPE | libc::SIGILL | libc::SIGSEGV | libc::SIGSYS | libc::SIGTRAP => {
            Does::Default
        }
        32 | 33 => Does::Default, // the C library's own
        _ => panic!("signal {signal} is not thought of"),
    }
}

#[test]
fn no_signal_that_may_come_from_outside_ends_the_process_and_leaves_users_online() {
    let server = Running::start("", &[]);
    let mut client = server.online("someone");
    let mut told = 0;
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| matches!(does(*signal), Does::Tell | Does::Ignore)) {
        server.process.signal(&signal.to_string());
        told += usize::from(does(signal) == Does::Tell);
        client.sync();
    }
    let (status, log) = server.end("TERM");
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(told >= 7 + 30);
    assert_eq!(log.matches(" is ignored").count(), told, "{log}");
    assert!(log.contains("SIGUSR1 is ignored") && log.contains("SIGUSR2 is ignored"), "{log}");

    for signal in (1..=libc::SIGRTMAX()).filter(|signal| does(*signal) == Does::End) {
        let mut server = Running::start("", &[]);
        let clients = [server.online("one"), server.online("two")];
        assert_eq!(online_in(&server.dir), 2);
        assert_eq!(server.process.stop(&signal.to_string()).code(), Some(0), "signal {signal}");
        assert_eq!(online_in(&server.dir), 0, "signal {signal}");
        drop(clients);
    }
}

#[test]
fn signals_that_stop_a_process_stop_it_and_it_goes_on() {
    // In a process group whose parent is in another one: the system drops these signals for an orphaned
    // group, and the tests' own may be one.
    let dir = tempfile::tempdir().unwrap();
    let mut command = server_after("", &dir, &["127.0.0.1", "0"]);
    command.process_group(0);
    let server = Running::spawn(command, dir);
    let mut client = server.online("someone");
    for signal in ["TSTP", "TTIN", "TTOU"] {
        server.process.signal(signal);
        let stat = format!("/proc/{}/stat", server.process.pid());
        let is_stopped = || fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T');
        eventually("the process to be stopped", is_stopped);
        server.process.signal("CONT");
        client.sync();
    }
    assert_eq!(server.end("TERM").0.code(), Some(0));
}

#[test]
fn a_hangup_that_was_ignored_at_the_start_still_is() {
    let server = Running::start("trap '' HUP QUIT INT", &[]);
    let mut client = server.online("someone");
    for signal in ["HUP", "QUIT"] {
        server.process.signal(signal);
        client.sync();
    }
    // A shell ignores INT for what it starts behind its back: the C++ server takes it all the same.
    let (status, log) = server.end("INT");
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("SIGHUP") && !log.contains("SIGQUIT"), "{log}");
}

#[test]
fn a_second_signal_ends_at_once_but_a_terminal_that_closes_sends_two_hangups() {
    for (first, second, hurries) in [("TERM", "INT", true), ("HUP", "TERM", true), ("HUP", "HUP", false)] {
        let mut server = Running::start("", &[]);
        let _client = server.online("someone");
        let mut status = None;
        let database = rusqlite::Connection::open(server.dir.path().join("chat.db")).unwrap();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        server.process.signal(first);
        // The end has begun when no client can connect any more.
        eventually("the end to begin", || TcpStream::connect(server.address).is_err());
        server.process.signal(second);
        if hurries {
            let began = Instant::now();
            status = Some(server.process.wait());
            assert!(began.elapsed() < Duration::from_secs(3), "{first}, {second}: {:?}", began.elapsed());
        }
        drop(database); // and only the server has the file open, which it then closes
        let status = status.unwrap_or_else(|| server.process.wait());
        assert_eq!(status.code(), Some(if hurries { 130 } else { 0 }), "{first}, {second}");
    }
}

#[test]
fn what_a_second_signal_makes_lost_is_told() {
    let server = Running::start("", &[]);
    let mut sender = server.online("someone");
    let absent: Vec<u32> = ["one", "two"].iter().map(|name| server.client().register(name, "secret").id).collect();
    let database = rusqlite::Connection::open(server.dir.path().join("chat.db")).unwrap();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    for to in [absent[0], absent[1], absent[0]] {
        sender.post(&sender.chat_to(to, "hello"));
    }
    sender.sync();
    server.process.signal("TERM");
    eventually("the end to begin", || TcpStream::connect(server.address).is_err());
    let (status, log) = server.end("TERM");
    assert_eq!(status.code(), Some(130), "{log}");
    assert!(log.contains("3 messages for 2 users are lost"), "{log}");
}

#[test]
fn a_terminal_that_closes_under_the_server_leaves_nobody_online() {
    let dir = tempfile::tempdir().unwrap();
    let (port, pid_file) = (free_port(), dir.path().join("pid"));
    let setup = format!("echo $$ > {}; export RUST_LOG=debug", pid_file.display());
    let server = server_after(&setup, &dir, &["127.0.0.1", &port.to_string()]);
    // `script` has the terminal's other end, and takes one line for a shell.
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
    let line: Vec<String> = std::iter::once(server.get_program()).chain(server.get_args()).map(quoted).collect();
    let mut command = program("script");
    command.args(["--quiet", "--command", &format!("exec {}", line.join(" ")), "/dev/null"]);
    let mut terminal = Process(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    eventually("the server to listen", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    let mut client = Client::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let account = client.register("someone", "secret");
    client.login(&account);
    assert_eq!(online_in(&dir), 1);
    let process = format!("/proc/{}", fs::read_to_string(pid_file).unwrap().trim());
    assert!(fs::exists(&process).unwrap());
    terminal.kill();
    eventually("the server to end", || !fs::exists(&process).unwrap());
    assert_eq!(online_in(&dir), 0);
}
