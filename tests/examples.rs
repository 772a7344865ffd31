//! The examples, run as their first lines say.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An example that runs; it is killed at the end.
struct Example {
    process: Child,
    address: SocketAddr,
}

impl Example {
    fn start(name: &str) -> Example {
        let cargo = |what: &str| {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args([what, "--quiet", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
            cargo
        };
        // However long that takes.
        assert!(cargo("build").status().expect("cargo starts").success());
        // On Unix cargo becomes the example, so that there is one process to be killed.
        let mut process = cargo("run").args(["--", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).expect("a first line");
        let address = line.trim_end().strip_prefix("listening on ").map(str::parse);
        match address {
            Some(Ok(address)) => Example { process, address },
            _ => {
                let _ = process.kill();
                panic!("{name} says {line:?}, and ends with {:?}", process.wait());
            }
        }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).expect("it listens");
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn echo_sends_back_what_came_and_closes_behind_it() {
    let echo = Example::start("echo");
    // Enough clients that some land on each reactor.
    for text in ["hello\n", "again\n", "and again\n"] {
        let mut client = echo.client();
        client.write_all(text.as_bytes()).unwrap();
        let mut start = vec![0; text.len()];
        client.read_exact(&mut start).unwrap();
        assert_eq!(start, text.as_bytes());
        // More than any buffer on the path holds, so it has to be read and written in turns.
        let much: Vec<u8> = (0..2_000_000_u32).map(|n| n as u8).collect();
        let mut writer = client.try_clone().unwrap();
        let sent = much.clone();
        let thread = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("an end without a reset");
        thread.join().unwrap();
        assert!(rest == much, "{} bytes of {}", rest.len(), much.len());
    }
}

/// A client of the room.
struct Guest(BufReader<TcpStream>);

impl Guest {
    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// The next line that does not announce a new guest.
    fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).expect("a line comes") > 0, "the room has closed");
            if !line.ends_with("has come\n") {
                return line;
            }
        }
    }
}

#[test]
fn in_a_room_everybody_hears_everybody_whatever_reactor_they_are_at() {
    let room = Example::start("room");
    let mut guests: Vec<Guest> = (0..4).map(|_| Guest(BufReader::new(room.client()))).collect();
    // A guest that receives its own line is in the room.
    for (n, guest) in guests.iter_mut().enumerate() {
        guest.say(&format!("here is {n}\n"));
        while guest.hear() != format!("here is {n}\n") {}
    }
    for n in 0..guests.len() {
        // In two writes: a line is one whatever its pieces.
        guests[n].say(&format!("{n} says "));
        guests[n].say("something\n");
        for guest in &mut guests {
            while guest.hear() != format!("{n} says something\n") {}
        }
    }
    let leaves = guests.remove(0);
    let name = leaves.0.get_ref().local_addr().unwrap();
    drop(leaves);
    for guest in &mut guests {
        assert_eq!(guest.hear(), format!("* {name} is gone: has left\n"));
    }
    let mut loud = guests.remove(0);
    let name = loud.0.get_ref().local_addr().unwrap();
    loud.say(&"x".repeat(2000));
    let mut rest = String::new();
    loud.0.read_to_string(&mut rest).expect("an end without a reset");
    assert_eq!(rest, "");
    for guest in &mut guests {
        assert_eq!(guest.hear(), format!("* {name} is gone: line too long\n"));
    }
}
