//! The user's side: a terminal with line editing, or a pipe with plain lines.
//!
//! Either way one thread reads, one line per [`Ask`], because both ways of reading block.

use std::borrow::Cow;
use std::env;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use rustyline::completion::Completer;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::Validator;
use rustyline::{Editor, ExternalPrinter, Helper};

use crate::app::{Ask, AskKind};

/// How long lines may take to reach the terminal before the next prompt, and at the end. A printer
/// that blocks until the next line is read does so only once this is over.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// Reads one line; `None` at the end of the input.
type Reader = Box<dyn FnMut(&Ask) -> Option<String> + Send>;

pub struct Console {
    asks: Sender<Ask>,
    output: Output,
}

#[derive(Clone)]
enum Output {
    Plain,
    /// Through the line editor, which redraws what is being typed below each line. Its printer
    /// may block until the next line is read, so it has a thread of its own.
    Editor(Sender<Job>),
}

/// What the output thread is told.
enum Job {
    Print(String),
    /// Everything before this has been printed.
    Flushed(Sender<()>),
}

impl Console {
    /// `on_line` gets one line for each [`Console::ask`], `None` at the end of the input.
    pub fn open(on_line: impl Fn(Option<String>) + Send + 'static) -> io::Result<Console> {
        let (asks, asked) = unbounded::<Ask>();
        let mut output = Output::Plain;
        let mut reader: Reader = Box::new(read_plain);
        if let Some((editor, printer)) = line_editor() {
            output = editor_output(printer)?;
            reader = editor_reader(editor);
        }
        let before = output.clone();
        thread::Builder::new().name("input".into()).spawn(move || {
            for ask in asked {
                // What was printed first must stand above the prompt.
                before.flush();
                on_line(reader(&ask));
            }
        })?;
        Ok(Console { asks, output })
    }

    /// Someone sits there and edits lines.
    pub fn is_interactive(&self) -> bool {
        matches!(self.output, Output::Editor(_))
    }

    pub fn ask(&self, ask: Ask) {
        // The reader lives as long as the console.
        let _ = self.asks.send(ask);
    }

    pub fn print(&self, line: String) -> io::Result<()> {
        match &self.output {
            Output::Plain => writeln_now(&line),
            Output::Editor(jobs) => jobs.send(Job::Print(line + "\n")).map_err(|_| io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Waits until everything is on the screen.
    pub fn close(self) {
        self.output.flush();
    }
}

impl Output {
    fn flush(&self) {
        let Output::Editor(jobs) = self else { return };
        let (flushed, done) = bounded(1);
        if jobs.send(Job::Flushed(flushed)).is_ok() {
            let _ = done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

fn writeln_now(line: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// The C++ client's prompts come as lines of their own: a script may wait for them.
fn read_plain(ask: &Ask) -> Option<String> {
    if ask.kind == AskKind::Password && io::stdin().is_terminal() {
        return rpassword::prompt_password(&ask.prompt).ok();
    }
    if ask.kind != AskKind::Command {
        writeln_now(&ask.prompt).ok()?;
    }
    let mut line = Vec::new();
    let read = io::stdin().lock().read_until(b'\n', &mut line).ok()?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    (read > 0).then(|| String::from_utf8_lossy(&line).into_owned())
}

type LineEditor = Editor<Mask, FileHistory>;

/// `None` unless both ends are a terminal that the editor can drive.
fn line_editor() -> Option<(LineEditor, impl ExternalPrinter + Send + 'static)> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return None;
    }
    let mut editor = LineEditor::new().ok()?;
    let printer = editor.create_external_printer().ok()?;
    Some((editor, printer))
}

fn editor_output(mut printer: impl ExternalPrinter + Send + 'static) -> io::Result<Output> {
    let (jobs, queue) = unbounded::<Job>();
    thread::Builder::new().name("output".into()).spawn(move || {
        for job in queue {
            match job {
                Job::Print(line) => {
                    if printer.print(line).is_err() {
                        return;
                    }
                }
                // Who waits may have given up.
                Job::Flushed(flushed) => drop(flushed.send(())),
            }
        }
    })?;
    Ok(Output::Editor(jobs))
}

fn editor_reader(mut editor: LineEditor) -> Reader {
    // Without a history file everything works, so its errors are nobody's business.
    let history = history_file();
    if let Some(path) = &history {
        let _ = editor.load_history(path);
    }
    Box::new(move |ask| {
        editor.set_helper(Some(Mask { on: ask.kind == AskKind::Password }));
        let line = editor.readline(&ask.prompt).ok()?;
        if ask.kind == AskKind::Command
            && editor.add_history_entry(&line).unwrap_or(false)
            && let Some(path) = &history
        {
            let _ = editor.append_history(path);
        }
        Some(line)
    })
}

/// Shows a password as asterisks. `rpassword` would prompt before it turns the echo off, so that
/// what is typed at once shows, and would not see what the editor has read ahead.
struct Mask {
    on: bool,
}

impl Highlighter for Mask {
    fn highlight<'l>(&self, line: &'l str, _: usize) -> Cow<'l, str> {
        if self.on { "*".repeat(line.chars().count()).into() } else { line.into() }
    }

    /// Without it, what is typed reaches the screen by a shorter way.
    fn highlight_char(&self, _: &str, _: usize, _: CmdKind) -> bool {
        self.on
    }
}

impl Completer for Mask {
    type Candidate = String;
}

impl Hinter for Mask {
    type Hint = String;
}

impl Validator for Mask {}

impl Helper for Mask {}

/// `chat-client/history` in the XDG state directory, whose default is `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    let directory = state.join("chat-client");
    fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}
