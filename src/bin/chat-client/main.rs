//! The terminal client: the C++ client's menu and commands, for a person at a terminal and for a
//! script in a pipe.
//!
//! [`app`] decides everything and touches nothing. Three threads feed it through one channel: the
//! connection, the input, and the signals; `run` adds the clock, and carries out what it decides.

mod app;
mod channel;
mod charset;
mod commands;
mod connection;
mod dialects;
mod editor;
mod history;
mod keys;
mod loss;
mod message;
mod plain;
mod signals;
mod terminal;
mod text;
mod trust;
mod tty;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{CommandFactory, FromArgMatches, Parser};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use signal_hook::consts::SIGINT;

use app::{App, Ask, Effect, Event, Setup};
use channel::Target;
use connection::{Link, LinkEvent, jitter};
use dialects::Choice;
use loss::Loss;
use plain::plain;
use signals::Leave;
use terminal::Terminal;
use text::{Lang, Text, help_in_chinese, tls_setup_text, tls_text};
use trust::Tls;

/// A client of the chat server.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The server: an IP address or a host name
    #[arg(default_value = "127.0.0.1")]
    ip: String,
    /// Its port
    #[arg(default_value_t = 6000, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The language; by default the locale's
    #[arg(long, value_enum)]
    lang: Option<Lang>,
    /// Speak TLS, and trust the certificates that the system trusts
    #[arg(long)]
    tls: bool,
    /// Trust the certificates in this PEM file as well
    #[arg(long, value_name = "FILE", requires = "tls")]
    tls_ca: Option<PathBuf>,
    /// The name that the server's certificate must be for, where it is not the address above
    #[arg(long, value_name = "NAME", requires = "tls")]
    tls_name: Option<String>,
    /// For a server of another make: speak its dialect, by name or as a file describes it; "list" lists the names
    #[arg(long, value_name = "NAME|FILE")]
    dialect: Option<String>,
}

impl Args {
    /// Reads the command line. Its help is in the language that it names, or the locale's.
    fn read() -> Args {
        let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
        let named =
            words.iter().any(|word| word == "--lang=zh") || words.windows(2).any(|pair| pair == ["--lang", "zh"]);
        let mut command = Args::command();
        if named || locale() == Lang::Zh {
            command = help_in_chinese(command);
        }
        Args::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }
}

fn locale() -> Lang {
    Lang::of_locale(|name| std::env::var(name).ok())
}

/// Events that may wait; past it the connection is read no faster than the terminal shows.
const EVENT_QUEUE: usize = 256;

/// What the threads send to this one.
enum Incoming {
    Line(Option<String>),
    Link(LinkEvent),
    /// A signal asks the client to end.
    Leave,
}

fn main() -> ExitCode {
    let args = Args::read();
    let lang = args.lang.unwrap_or_else(locale);
    let dialect = match args.dialect.as_deref().map(dialects::choose) {
        None => None,
        Some(Ok(Choice::Dialect(dialect))) => dialect,
        Some(Ok(Choice::List(list))) => {
            // A reader that is gone does not want it.
            let _ = io::stdout().write_all(list.as_bytes());
            return ExitCode::SUCCESS;
        }
        Some(Err(why)) => {
            let _ = writeln!(io::stderr(), "--dialect: {}", plain(&why));
            return ExitCode::from(2);
        }
    };
    let server = format!("{}:{}", args.ip, args.port);
    // Before anything that takes its time: what is typed meanwhile is to be neither lost nor echoed.
    let signals = signals::catch();
    let terminal = Arc::new(Terminal::open());
    let cannot = |why: String| {
        terminal.close();
        // A reader that is gone does not want it.
        let _ = writeln!(io::stderr(), "{}", plain(&Text::CannotConnect { server: &server, why: &why }.render(lang)));
        ExitCode::from(2)
    };
    let (incoming, queue) = bounded(EVENT_QUEUE);
    let (from_link, from_signals) = (incoming.clone(), incoming.clone());
    let leave = Arc::new(Leave::default());
    let handled = signals.and_then(|signals| {
        let tell = move || drop(from_signals.try_send(Incoming::Leave));
        signals::handle(signals, Arc::clone(&terminal), Arc::clone(&leave), tell)
    });
    if let Err(error) = handled {
        return cannot(error.to_string());
    }
    let tls = match args.tls.then(|| Tls::new(args.tls_name.as_ref().unwrap_or(&args.ip), args.tls_ca.as_deref())) {
        None => None,
        Some(Ok(tls)) => Some(tls),
        Some(Err(error)) => return cannot(tls_setup_text(&error, lang)),
    };
    let target = Target { host: args.ip, port: args.port, tls, dialect: dialect.clone() };
    let (link, greeting) = match Link::open(target, move |event| drop(from_link.send(Incoming::Link(event)))) {
        Ok(opened) => opened,
        // An nginx sends nothing to a client without TLS, nor when all its nodes are down.
        Err(Loss::Closed) if !args.tls => return cannot(Text::ClosedAtOnce.render(lang)),
        Err(loss) => return cannot(why(&loss, lang)),
    };
    let interrupt = || drop(signal_hook::low_level::raise(SIGINT));
    let asks = match terminal.read(move |line| drop(incoming.send(Incoming::Line(line))), interrupt) {
        Ok(asks) => asks,
        Err(error) => return cannot(error.to_string()),
    };
    let interactive = terminal.is_interactive();
    let setup = Setup { lang, server: server.clone(), greeting, dialect, interactive, clock: local_time, jitter };
    leave.make_possible();
    run(App::new(setup, Instant::now()), &queue, link, &terminal, &asks, lang);
    terminal.close();
    leave.end();
    ExitCode::SUCCESS
}

/// Feeds the app until it is done, or until its output is not read any more.
fn run(mut app: App, queue: &Receiver<Incoming>, mut link: Link, terminal: &Terminal, asks: &Sender<Ask>, lang: Lang) {
    const IDLE: Duration = Duration::from_secs(3600);
    let mut event = Event::Tick;
    loop {
        for effect in app.handle(event, Instant::now()) {
            match effect {
                Effect::Print(line) => {
                    if terminal.print(&line).is_err() {
                        return;
                    }
                }
                // The reading thread lives until the end of the input, behind which nothing is asked.
                Effect::Ask(ask) => drop(asks.send(ask)),
                Effect::Send(object) => link.send(&object),
                Effect::GiveUp => link.give_up(),
                Effect::Exit => return,
            }
        }
        let wait = app.deadline().map_or(IDLE, |at| at.saturating_duration_since(Instant::now()));
        event = match queue.recv_timeout(wait) {
            Ok(Incoming::Line(line)) => Event::Input(line),
            Ok(Incoming::Link(LinkEvent::Up(greeting, new))) => {
                link = new;
                Event::Up(greeting)
            }
            Ok(Incoming::Link(LinkEvent::Down(loss))) => Event::Down(why(&loss, lang)),
            Ok(Incoming::Link(LinkEvent::Message(message))) => Event::Message(message),
            Ok(Incoming::Link(LinkEvent::Unknown(object))) => Event::Unknown(object),
            Ok(Incoming::Leave) => Event::Leave,
            Err(RecvTimeoutError::Timeout) => Event::Tick,
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

fn why(loss: &Loss, lang: Lang) -> String {
    match loss {
        Loss::Io(error) => error.to_string(),
        Loss::Tls(error) => tls_text(error, lang),
        Loss::Closed => Text::ServerClosed.render(lang),
        Loss::Silent => Text::ServerSilent.render(lang),
        Loss::NotAChatServer => Text::NotAChatServer.render(lang),
        Loss::SpeaksTls => Text::SpeaksTls.render(lang),
    }
}

/// "YYYY-MM-DD HH:MM:SS".
fn local_time() -> String {
    chrono::Local::now().format("%Y-%m-%d %H:%M:%S").to_string()
}
