use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use super::DEADLINE;

pub const CHAT_CLIENT: &str = env!("CARGO_BIN_EXE_chat-client");

/// A client whose input is written line by line and whose output is watched.
pub struct ChatClient {
    child: Child,
    input: Option<ChildStdin>,
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
        let mut stdout = child.stdout.take().unwrap();
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut chunk) {
                if sender.send(chunk[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        ChatClient { child, input, output, seen: Vec::new(), read: 0 }
    }

    /// A client that is logged in.
    pub fn login(port: u16, id: u32) -> ChatClient {
        let mut client = ChatClient::start(port, &[]);
        client.line(&format!("1\n{id}\nsecret"));
        client.wait_for(&format!("current login user => id:{id} "));
        client
    }

    pub fn send(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub fn line(&mut self, line: &str) {
        self.send(&format!("{line}\n"));
    }

    /// Types a line when the prompt is there.
    pub fn answer(&mut self, prompt: &str, line: &str) {
        self.wait_for(prompt);
        self.send(&format!("{line}\r"));
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

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Ends the input, and returns all that was printed.
    pub fn finish(mut self) -> (String, ExitStatus) {
        drop(self.input.take());
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
