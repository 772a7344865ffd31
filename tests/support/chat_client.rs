use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::{DEADLINE, eventually};

pub const CHAT_CLIENT: &str = env!("CARGO_BIN_EXE_chat-client");

/// A client whose input is written line by line and whose output is watched.
pub struct ChatClient {
    child: Child,
    input: Option<Box<dyn Write>>,
    /// Its terminal, if it has one.
    terminal: Option<File>,
    output: mpsc::Receiver<Vec<u8>>,
    /// Everything so far.
    seen: Vec<u8>,
    /// What has been waited for stands before this offset.
    read: usize,
}

impl ChatClient {
    pub fn start(port: u16, options: &[&str]) -> ChatClient {
        ChatClient::spawn(Command::new(CHAT_CLIENT).args(options).args(["127.0.0.1", &port.to_string()]))
    }

    pub fn spawn(command: &mut Command) -> ChatClient {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).env("LC_ALL", "C");
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let stdin = child.stdin.take().unwrap();
        ChatClient::watch(child, Box::new(stdin), stdout, None)
    }

    /// With a terminal of this number of columns, in a session of its own. The command begins with the
    /// program, or with a shell that starts it.
    pub fn spawn_on_terminal(command: &mut Command, columns: u16) -> ChatClient {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
        tcsetwinsize(&terminal, Winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        let mut in_session = Command::new("setsid");
        // Signals that leave a core dump are tested.
        in_session.args(["--ctty", "prlimit", "--core=0"]).arg(command.get_program()).args(command.get_args());
        in_session.env("TERM", "xterm").env("LC_ALL", "C");
        for (name, value) in command.get_envs() {
            in_session.env(name, value.unwrap());
        }
        let end = || Stdio::from(terminal.try_clone().unwrap());
        in_session.stdin(end()).stdout(end()).stderr(end());
        let child = in_session.spawn().unwrap();
        let master = File::from(master);
        ChatClient::watch(child, Box::new(master.try_clone().unwrap()), master, Some(terminal))
    }

    fn watch(
        child: Child,
        input: Box<dyn Write>,
        mut stdout: impl Read + Send + 'static,
        terminal: Option<File>,
    ) -> ChatClient {
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        ChatClient { child, input: Some(input), terminal, output, seen: Vec::new(), read: 0 }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The modes of its terminal.
    pub fn modes(&self) -> Termios {
        tcgetattr(self.terminal.as_ref().unwrap()).unwrap()
    }

    /// A client that is logged in.
    pub fn login(port: u16, id: u32) -> ChatClient {
        let mut client = ChatClient::start(port, &[]);
        client.line(&format!("1\n{id}\nsecret"));
        client.wait_for(&format!("current login user => id:{id} "));
        client
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let input = self.input.as_mut().unwrap();
        input.write_all(bytes.as_ref()).unwrap();
        input.flush().unwrap();
    }

    pub fn line(&mut self, line: &str) {
        self.send(format!("{line}\n"));
    }

    /// Types a line when the prompt is there.
    pub fn answer(&mut self, prompt: &str, line: &str) {
        self.wait_for(prompt);
        self.send(format!("{line}\r"));
    }

    /// Waits until `text` is printed behind what was waited for last.
    pub fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + DEADLINE;
        loop {
            let new = String::from_utf8_lossy(&self.seen[self.read..]).into_owned();
            if let Some(at) = new.find(text) {
                self.read += at + text.len();
                return;
            }
            match self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(_) => panic!("{text:?} does not come; there is {:?}", self.text()),
            }
        }
    }

    /// Everything so far, byte by byte.
    pub fn bytes(&self) -> &[u8] {
        &self.seen
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Ends the input, where that is not a terminal, and returns all that was printed.
    pub fn finish(mut self) -> (String, ExitStatus) {
        drop(self.input.take());
        if self.terminal.is_some() {
            eventually("the end of the client", || self.child.try_wait().unwrap().is_some());
            drop(self.terminal.take());
        }
        let end = Instant::now() + DEADLINE;
        while let Ok(chunk) = self.output.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.seen.extend(chunk);
        }
        assert!(Instant::now() < end, "the client does not end; there is {:?}", self.text());
        (self.text(), self.child.wait().unwrap())
    }
}

impl Drop for ChatClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a whole script through a pipe.
pub fn script(port: u16, lines: &str) -> String {
    let mut client = ChatClient::start(port, &[]);
    client.send(lines);
    let (text, status) = client.finish();
    assert_eq!(status.code(), Some(0), "{text}");
    text
}
