//! The user's side: a terminal with line editing, or a pipe with plain lines.
//!
//! One thread reads all input, one line for each [`Ask`]. What has come beyond that line waits in
//! its buffers for the next ask: nothing that is pasted or typed ahead is lost, and the terminal
//! stays in one mode for as long as the client runs, so that only this program echoes it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::stdio::{stdin, stdout};
use rustix::termios::{Winsize, tcgetwinsize};

use crate::app::{Ask, AskKind};
use crate::charset::{Charset, Input};
use crate::editor::{Editor, Entered, Mode, Size};
use crate::history::History;
use crate::keys::Keys;
use crate::plain::rows;
use crate::tty;

/// Bytes that are read at a time.
const CHUNK: usize = 64 * 1024;
/// How long a signal waits for a thread that is drawing; a terminal that is stuck may keep it.
const DRAWING: Duration = Duration::from_millis(100);

pub struct Terminal {
    screen: Mutex<Screen>,
    /// It reads lines that are edited; otherwise the input is a pipe or a file.
    interactive: bool,
}

impl Terminal {
    /// Takes the terminal, if the standard input is one.
    pub fn open() -> Terminal {
        let variable = |name: &str| env::var(name).ok();
        let charset = Charset::of_locale(variable);
        let interactive = tty::take();
        let to_terminal = io::stdout().is_terminal();
        // What is typed is shown where it is typed, also if the output goes elsewhere.
        let own = || {
            let terminal = OpenOptions::new().write(true).open("/dev/tty");
            terminal.or_else(|_| stdin().try_clone_to_owned().map(File::from))
        };
        let screen = Screen {
            charset,
            to_terminal,
            edits_on: if interactive && !to_terminal { own().ok() } else { None },
            dumb: variable("TERM").is_some_and(|term| ["dumb", "cons25", "emacs"].contains(&term.as_str())),
            wide: ["LC_ALL", "LC_CTYPE", "LANG"]
                .into_iter()
                .filter_map(variable)
                .find(|value| !value.is_empty())
                .is_some_and(|locale| ["zh", "ja", "ko"].iter().any(|language| locale.starts_with(language))),
            editor: Editor::new(History::open(if interactive { history_file() } else { None })),
            asking: false,
            hidden: false,
        };
        Terminal { screen: Mutex::new(screen), interactive }
    }

    /// Begins to read: `on_line` gets one line for each ask, `None` at the end of the input.
    pub fn read(
        self: &Arc<Terminal>,
        on_line: impl Fn(Option<String>) + Send + 'static,
        interrupt: impl Fn() + Send + 'static,
    ) -> io::Result<Sender<Ask>> {
        let (asks, asked) = unbounded();
        let terminal = Arc::clone(self);
        let input = self.lock().charset.decoder();
        thread::Builder::new().name("input".into()).spawn(move || {
            if terminal.interactive {
                terminal.read_keys(input, &asked, on_line, interrupt);
            } else {
                terminal.read_lines(input, &asked, on_line);
            }
        })?;
        Ok(asks)
    }

    /// Someone sits there and edits lines.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Prints one line, above what is being typed.
    pub fn print(&self, line: &str) -> io::Result<()> {
        self.lock().print(line)
    }

    /// Takes what is being typed off the screen, because another program is to write there.
    pub fn hide(&self) {
        if let Some(mut screen) = self.lock_soon() {
            let _ = screen.hide();
        }
    }

    /// Draws what is being typed, on a screen that another program has written on.
    pub fn show(&self) {
        if !tty::is_given_back()
            && let Some(mut screen) = self.lock_soon()
        {
            screen.hidden = false;
            let _ = screen.draw();
        }
    }

    /// Draws it anew, on a screen of another size.
    pub fn redraw(&self) {
        if let Some(mut screen) = self.lock_soon() {
            let _ = screen.draw();
        }
    }

    /// Gives the terminal back.
    pub fn close(&self) {
        self.hide();
        tty::give_back();
    }

    fn lock(&self) -> MutexGuard<'_, Screen> {
        // A panic ends the process, so the lock is never poisoned for long.
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_soon(&self) -> Option<MutexGuard<'_, Screen>> {
        let end = Instant::now() + DRAWING;
        loop {
            match self.screen.try_lock() {
                Ok(screen) => return Some(screen),
                Err(_) if Instant::now() >= end => return None,
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn read_keys(
        &self,
        mut input: Input,
        asked: &Receiver<Ask>,
        on_line: impl Fn(Option<String>),
        interrupt: impl Fn(),
    ) {
        let mut keys = Keys::new();
        let mut chunk = vec![0; CHUNK];
        for ask in asked {
            self.lock().begin(&ask);
            let line = loop {
                let mut entered = None;
                let mut screen = self.lock();
                while entered.is_none()
                    && let Some(key) = keys.next()
                {
                    entered = screen.editor.press(key);
                }
                match entered {
                    Some(Entered::Line(line)) => {
                        let _ = screen.finish(&line);
                        break Some(line);
                    }
                    Some(Entered::EndOfInput) => {
                        let _ = screen.leave();
                        break None;
                    }
                    Some(Entered::Interrupt) => interrupt(),
                    None => {
                        let _ = screen.draw();
                        drop(screen);
                        match read_typed(&mut chunk) {
                            Ok(read @ 1..) => keys.push(&input.decode(&chunk[..read], false)),
                            _ => {
                                let _ = self.lock().leave();
                                break None;
                            }
                        }
                    }
                }
            };
            let ended = line.is_none();
            on_line(line);
            if ended {
                return;
            }
        }
    }

    fn read_lines(&self, input: Input, asked: &Receiver<Ask>, on_line: impl Fn(Option<String>)) {
        let mut lines = Lines::new(input);
        for ask in asked {
            // The C++ client's prompts come as lines of their own: a script may wait for them.
            if ask.kind != AskKind::Command && self.print(&ask.prompt).is_err() {
                return on_line(None);
            }
            on_line(lines.next(read));
        }
    }
}

/// What the threads write on.
struct Screen {
    charset: Charset,
    /// The standard output is a terminal.
    to_terminal: bool,
    /// Where lines are edited, if not on the standard output.
    edits_on: Option<File>,
    dumb: bool,
    wide: bool,
    editor: Editor,
    /// A line is being typed.
    asking: bool,
    /// The process is stopped, or about to end: the editor must not draw.
    hidden: bool,
}

impl Screen {
    fn begin(&mut self, ask: &Ask) {
        let mode = match ask.kind {
            AskKind::Dialogue => Mode::Plain,
            AskKind::Password => Mode::Secret,
            AskKind::Command => Mode::Recalled,
        };
        self.editor.begin(&self.charset.legible(&ask.prompt), mode);
        self.asking = true;
    }

    fn print(&mut self, line: &str) -> io::Result<()> {
        let line = self.charset.legible(line);
        let mut text =
            if self.to_terminal { on_rows(&line, self.size().columns, self.wide) } else { line.into_owned() } + "\n";
        let (mut erased, mut drawn) = (String::new(), String::new());
        if self.asking && !self.hidden {
            let size = self.size();
            (erased, drawn) = (self.editor.erase(size), self.editor.draw(size));
        }
        if self.edits_on.is_some() {
            self.write_edit(&erased)?;
            self.write(&text)?;
            return self.write_edit(&drawn);
        }
        // In one write, so that nothing flickers.
        text = erased + &text + &drawn;
        self.write(&text)
    }

    fn draw(&mut self) -> io::Result<()> {
        if !self.asking || self.hidden {
            return Ok(());
        }
        let drawn = self.editor.draw(self.size());
        self.write_edit(&drawn)
    }

    fn finish(&mut self, line: &str) -> io::Result<()> {
        let drawn = self.editor.finish(line, self.size());
        self.asking = false;
        if self.hidden { Ok(()) } else { self.write_edit(&drawn) }
    }

    /// Gives up the line that is being typed.
    fn leave(&mut self) -> io::Result<()> {
        let erased = self.editor.erase(self.size());
        if std::mem::take(&mut self.asking) && !self.hidden { self.write_edit(&erased) } else { Ok(()) }
    }

    /// Takes it off the screen, so that the next writer begins a row.
    fn hide(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.hidden, true) || !self.asking {
            return Ok(());
        }
        let size = self.size();
        let erased = self.editor.erase(size);
        self.write_edit(&erased)
    }

    /// The terminal's size; where it is unknown, the usual one.
    fn size(&self) -> Size {
        let told = match &self.edits_on {
            Some(file) => tcgetwinsize(file),
            None => tcgetwinsize(stdout()),
        };
        let (columns, rows) = match told {
            Ok(Winsize { ws_col: columns @ 1.., ws_row: rows @ 1.., .. }) => (columns.max(8), rows.max(2)),
            _ => (80, 24),
        };
        Size { columns: columns.into(), rows: rows.into(), wide: self.wide, dumb: self.dumb }
    }

    fn write(&self, text: &str) -> io::Result<()> {
        write_all(stdout(), &self.charset.encode(text))
    }

    fn write_edit(&self, text: &str) -> io::Result<()> {
        match &self.edits_on {
            Some(file) => write_all(file.as_fd(), &self.charset.encode(text)),
            None => self.write(text),
        }
    }
}

/// A line on rows that are marked. Terminals disagree about the width of many characters; so they
/// must not begin a row by themselves where one is taken for narrower than it is.
fn on_rows(line: &str, width: usize, wide: bool) -> String {
    let rows = rows(line, width, wide).join("\n");
    let widest = line.chars().map(|c| if c.is_ascii() { 1 } else { 2 }).sum::<usize>();
    if line.is_ascii() || widest <= width { rows } else { format!("\x1b[?7l{rows}\x1b[?7h") }
}

/// The lines of an input that is not edited.
struct Lines {
    input: Input,
    /// Whole lines, then what has come of the next one.
    ready: VecDeque<String>,
    partial: String,
    ended: bool,
}

impl Lines {
    fn new(input: Input) -> Lines {
        Lines { input, ready: VecDeque::new(), partial: String::new(), ended: false }
    }

    /// The next line without its end. The last one needs none. An input that fails has ended.
    fn next(&mut self, read: impl Fn(&mut [u8]) -> io::Result<usize>) -> Option<String> {
        let mut chunk = vec![0; CHUNK];
        while self.ready.is_empty() && !self.ended {
            let read = read(&mut chunk).unwrap_or(0);
            self.ended = read == 0;
            let text = self.input.decode(&chunk[..read], self.ended);
            let mut pieces = text.split('\n');
            self.partial += pieces.next().unwrap_or("");
            for piece in pieces {
                self.ready.push_back(std::mem::replace(&mut self.partial, piece.into()));
            }
        }
        let last = || (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial));
        let mut line = self.ready.pop_front().or_else(last)?;
        if line.ends_with('\r') {
            line.pop();
        }
        Some(line)
    }
}

/// Reads from the terminal when something has come, and while it is ours. When the output is not read any
/// more, that is the end of the input, too.
fn read_typed(chunk: &mut [u8]) -> io::Result<usize> {
    /// What has come: input, and what became of the output.
    fn events(timeout: Option<&Timespec>) -> io::Result<[PollFlags; 2]> {
        let input = PollFd::from_borrowed_fd(stdin(), PollFlags::IN);
        let mut both = [input, PollFd::from_borrowed_fd(stdout(), PollFlags::empty())];
        match poll(&mut both, timeout) {
            Ok(_) | Err(Errno::INTR) => Ok(both.map(|end| end.revents())),
            Err(error) => Err(error.into()),
        }
    }
    loop {
        let [typed, output] = events(None)?;
        if output.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
            return Ok(0);
        }
        if typed.is_empty() {
            continue;
        }
        tty::wait_for_foreground();
        // Meanwhile another may have read it.
        let [typed, _] = events(Some(&Timespec::default()))?;
        if !typed.is_empty() {
            return read(chunk);
        }
    }
}

/// Reads from the standard input, without Rust's buffer, which would keep what it holds from a
/// child, and waits even if it was set not to.
fn read(chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(stdin(), &mut *chunk) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(stdin(), PollFlags::IN)?,
            read => return Ok(read?),
        }
    }
}

fn write_all(to: BorrowedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            // Another program at the terminal may have set it so.
            Err(Errno::AGAIN) => wait(to, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait(on: BorrowedFd, until: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(on, until)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// `chat-client/history` in the XDG state directory, whose default is `~/.local/state`.
fn history_file() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    let directory = state.join("chat-client");
    fs::create_dir_all(&directory).ok()?;
    Some(directory.join("history"))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The lines of an input that comes in these pieces.
    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let pieces = RefCell::new(pieces.iter());
        let read = |chunk: &mut [u8]| {
            let piece = pieces.borrow_mut().next().copied().unwrap_or_default();
            chunk[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        };
        let mut lines = Lines::new(Charset::UTF_8.decoder());
        std::iter::from_fn(|| lines.next(read)).collect()
    }

    #[test]
    fn all_lines_of_a_pipe_are_read_however_they_are_cut() {
        let text = "\u{feff}1\r\n13\n\nsec\rret\nchat:2:你好\nlast".as_bytes();
        let expected = ["1", "13", "", "sec\rret", "chat:2:你好", "last"];
        for cut in 1..text.len() {
            assert_eq!(lines(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
        assert_eq!(lines(&[b"a\xff", b"b\n\xe4\xbd"]), ["a\u{fffd}b", "\u{fffd}"]);
        assert_eq!(lines(&[b"a\n"]), ["a"]);
    }
}
