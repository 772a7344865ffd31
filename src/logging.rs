//! The log, which never blocks a thread that writes to it.
//!
//! A line goes into a queue in memory, and a thread of its own, `log-writer`, writes what is queued to
//! stderr: a pipe that is not read, a terminal that was stopped or a full disk block that thread
//! alone. The queue is bounded in bytes. A line that finds no room in it is dropped and counted, and so
//! is one that could not be written; their number is reported in their place, as soon as a line can be written.
//!
//! ```text
//!   log::info!(…) ──▶ env_logger: filter, format ──▶ queue ──▶ log-writer ──▶ stderr
//! ```

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use env_logger::{DEFAULT_FILTER_ENV, DEFAULT_WRITE_STYLE_ENV, Target, WriteStyle};

/// What may wait to be written, in bytes.
const CAPACITY: usize = 1 << 20;
/// What an empty queue keeps, in bytes.
const SPARE: usize = 64 << 10;
/// How long the last lines may take when the process ends.
const LAST_LINES: Duration = Duration::from_millis(500);
/// How soon a stderr that another process made non-blocking is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// The filter of logged lines where RUST_LOG is not set.
const DEFAULT_FILTER: &str = "info";

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// Starts the log: what `RUST_LOG` asks for, from `info` up without it, in colour where stderr is a terminal.
///
/// To be called once.
///
/// # Errors
/// The system has no more threads or descriptors.
pub fn start() -> io::Result<()> {
    // Not `io::stderr`, whose lock the writer would hold while it waits.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let queue = Arc::<Queue>::default();
    let writer = Arc::clone(&queue);
    thread::Builder::new().name("log-writer".to_owned()).spawn(move || writer.write_to(stderr))?;
    let queue = Arc::clone(QUEUE.get_or_init(|| queue));

    let filters = std::env::var(DEFAULT_FILTER_ENV).unwrap_or_else(|_| DEFAULT_FILTER.to_owned());
    let (filters, unreadable) = readable(&filters);
    let style = std::env::var(DEFAULT_WRITE_STYLE_ENV).unwrap_or_default();
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(&filters).parse_write_style(&style).target(Target::Pipe(Box::new(Lines(queue))));
    if !matches!(style.as_str(), "always" | "never") {
        builder.write_style(WriteStyle::from(anstream::AutoStream::choice(&io::stderr())));
    }
    builder.init();
    for part in unreadable {
        log::warn!("{DEFAULT_FILTER_ENV}: '{part}' is no filter, such as info or chat_server=debug: it is left out");
    }
    Ok(())
}

/// The parts of a filter that can be read, and the others. The library would print the latter itself,
/// and end with a stderr that is closed.
fn readable(filters: &str) -> (String, Vec<String>) {
    let is_readable = |filter: &str| env_filter::Builder::new().try_parse(filter).is_ok();
    if is_readable(filters) {
        return (filters.to_owned(), Vec::new());
    }
    let (good, bad): (Vec<&str>, Vec<&str>) = filters.split(',').partition(|part| is_readable(part));
    let good = if good.is_empty() { DEFAULT_FILTER.to_owned() } else { good.join(",") };
    (good, bad.into_iter().map(str::to_owned).collect())
}

/// Writes a line whatever the filter is, and however much waits: why the process ends.
pub fn last_words(text: &str) {
    match QUEUE.get() {
        Some(queue) => queue.append_in_any_case(format!("{text}\n").as_bytes()),
        // Nothing else can be done with one that cannot be written.
        None => drop(writeln!(io::stderr(), "{text}")),
    }
}

/// Waits until everything is written, for at most half a second. To be called when the process ends.
pub fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.wait_until_written(LAST_LINES);
    }
}

/// Ends the process, with its last lines written.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}

/// How many lines were dropped since the start.
pub fn dropped() -> u64 {
    QUEUE.get().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
}

/// Lines on their way to the writer.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// There is something to be written.
    filled: Condvar,
    /// There is nothing.
    written: Condvar,
    /// Lines, since the start.
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Whole lines.
    waiting: Vec<u8>,
    /// How many were dropped behind them. Until the writer has taken these, all others are, too: so the
    /// gap is one, and is reported in its place.
    missing: u64,
    /// The writer is at work.
    writing: bool,
}

impl State {
    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.missing == 0
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below can panic while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, line: &[u8]) {
        let mut state = self.state();
        if state.missing > 0 || state.waiting.len() + line.len() > CAPACITY {
            state.missing += 1;
            drop(state);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        } else {
            state.waiting.extend_from_slice(line);
            drop(state);
            self.filled.notify_one();
        }
    }

    fn append_in_any_case(&self, line: &[u8]) {
        self.state().waiting.extend_from_slice(line);
        self.filled.notify_one();
    }

    fn wait_until_written(&self, time: Duration) {
        let is_busy = |state: &mut State| state.writing || !state.is_empty();
        // Poisoned or late: what is not written by now is lost.
        let _ = self.written.wait_timeout_while(self.state(), time, is_busy);
    }

    /// The writer's thread.
    fn write_to(&self, out: impl Write) {
        let (mut output, mut lines) = (Output { out, unsaid: 0, is_cut: false }, Vec::new());
        let mut state = self.state();
        loop {
            state.writing = !state.is_empty();
            if !state.writing {
                self.written.notify_all();
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            std::mem::swap(&mut state.waiting, &mut lines);
            let missing = std::mem::take(&mut state.missing);
            drop(state);
            let lost = output.lines(&lines, missing);
            self.dropped.fetch_add(lost, Ordering::Relaxed);
            lines.clear();
            lines.shrink_to(SPARE);
            state = self.state();
        }
    }
}

/// Where lines are written, and the number of those that could not be.
struct Output<W> {
    out: W,
    /// Lines that were dropped or lost, and not reported yet.
    unsaid: u64,
    /// What was written last is no whole line.
    is_cut: bool,
}

impl<W: Write> Output<W> {
    /// Writes lines, behind which `missing` ones are missing. Returns the number that could not be written.
    fn lines(&mut self, lines: &[u8], missing: u64) -> u64 {
        self.tell();
        let rest = self.write(lines);
        let lost = memchr::memchr_iter(b'\n', rest).count() as u64;
        self.unsaid += missing + lost;
        if lost == 0 {
            self.tell();
        }
        lost
    }

    /// Reports how many lines are missing, since a reader may look for them.
    fn tell(&mut self) {
        if self.unsaid == 0 {
            return;
        }
        let (time, unsaid) = (humantime::format_rfc3339_seconds(SystemTime::now()), self.unsaid);
        let line = format!("[{time} WARN  {}] {unsaid} lines of the log were dropped here: ", module_path!())
            + "they were not read or written as fast as they came\n";
        if self.write(line.as_bytes()).is_empty() {
            self.unsaid = 0;
        }
    }

    /// Returns what could not be written.
    fn write<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while self.is_cut && !bytes.is_empty() {
            match self.out.write(b"\n") {
                Ok(1) => self.is_cut = false,
                result => {
                    if !may_go_on(&result) {
                        return bytes;
                    }
                }
            }
        }
        while !bytes.is_empty() {
            match self.out.write(bytes) {
                Ok(taken @ 1..) => {
                    self.is_cut = bytes[..taken].last() != Some(&b'\n');
                    bytes = &bytes[taken..];
                }
                result => {
                    if !may_go_on(&result) {
                        break;
                    }
                }
            }
        }
        bytes
    }
}

/// Whether a write that took nothing may take something when it is tried again; waits for that.
fn may_go_on(result: &io::Result<usize>) -> bool {
    match result.as_ref().map_err(io::Error::kind) {
        Err(io::ErrorKind::Interrupted) => true,
        Err(io::ErrorKind::WouldBlock) => {
            thread::sleep(RETRY);
            true
        }
        _ => false,
    }
}

/// What env_logger writes to: a whole line at a time.
struct Lines(Arc<Queue>);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.append(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    /// Says what is written, and each time waits to be told what comes of it.
    struct Gate(Sender<Vec<u8>>, Receiver<io::Result<usize>>);

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.to_vec());
            let most = self.1.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
            Ok(most.min(bytes.len()))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate() -> (Arc<Queue>, Receiver<Vec<u8>>, Sender<io::Result<usize>>) {
        let (said, written) = channel();
        let (answer, taken) = channel();
        let queue = Arc::<Queue>::default();
        let writer = Arc::clone(&queue);
        thread::spawn(move || writer.write_to(Gate(said, taken)));
        (queue, written, answer)
    }

    fn text(written: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(written.recv_timeout(SOON).unwrap()).unwrap()
    }

    #[test]
    fn whoever_logs_goes_on_while_nobody_reads_and_what_is_missing_is_told_in_its_place() {
        let (queue, written, answer) = gate();
        queue.append(b"first\n");
        assert_eq!(text(&written), "first\n");
        // The writer waits, and no other thread does.
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let fit = CAPACITY / line.len();
        (0..fit + 7).for_each(|_| queue.append(&line));
        queue.append(b"short\n"); // would fit into nothing, and must not overtake
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 8);
        answer.send(Ok(usize::MAX)).unwrap();
        assert_eq!(text(&written).len(), fit * line.len());
        answer.send(Ok(usize::MAX)).unwrap();
        let told = text(&written);
        assert!(told.contains(" 8 lines of the log were dropped here") && told.ends_with('\n'), "{told}");
        answer.send(Ok(usize::MAX)).unwrap();
        queue.append(b"next\n");
        assert_eq!(text(&written), "next\n");
        answer.send(Ok(usize::MAX)).unwrap();
        queue.wait_until_written(SOON);
        assert!(queue.state().is_empty());
    }

    #[test]
    fn lines_that_could_not_be_written_are_told_when_something_can_be() {
        let (queue, written, answer) = gate();
        queue.append(b"one\ntwo\nthree\n");
        assert_eq!(text(&written), "one\ntwo\nthree\n");
        answer.send(Ok(6)).unwrap();
        assert_eq!(text(&written), "o\nthree\n");
        answer.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        queue.wait_until_written(SOON);
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 2);
        queue.append(b"four\n");
        assert_eq!(text(&written), "\n", "behind a line that was cut");
        answer.send(Ok(1)).unwrap();
        assert!(text(&written).contains(" 2 lines of the log were dropped here"));
        answer.send(Ok(usize::MAX)).unwrap();
        assert_eq!(text(&written), "four\n");
        answer.send(Ok(usize::MAX)).unwrap();
    }

    #[test]
    fn the_end_waits_for_the_last_lines_and_not_for_ever() {
        let (queue, written, answer) = gate();
        queue.append(b"last\n");
        assert_eq!(text(&written), "last\n");
        queue.wait_until_written(Duration::from_millis(10));
        assert!(queue.state().writing, "nobody has read it, and the end goes on");
        answer.send(Ok(usize::MAX)).unwrap();
        queue.wait_until_written(SOON);
        assert!(!queue.state().writing);
    }

    #[test]
    fn of_a_filter_what_can_be_read_is_kept() {
        let readable = |text| {
            let (good, bad) = readable(text);
            (good, bad.join("|"))
        };
        assert_eq!(readable("debug,chat_server=trace"), ("debug,chat_server=trace".to_owned(), String::new()));
        assert_eq!(readable("warn,chat_server=loud"), ("warn".to_owned(), "chat_server=loud".to_owned()));
        assert_eq!(readable("chat_server=loud"), ("info".to_owned(), "chat_server=loud".to_owned()));
    }
}
