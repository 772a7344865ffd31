//! The terminal client: the C++ client's menu and commands, for a person at a terminal and for a
//! script in a pipe.
//!
//! [`app`] decides everything and touches nothing. Three threads feed it through one channel: the
//! connection, the input, and this one's clock; `run` carries out what it decides.

mod app;
mod channel;
mod commands;
mod connection;
mod message;
mod terminal;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{CommandFactory, FromArgMatches, Parser};
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use app::{App, Effect, Event, Setup};
use channel::{Target, Tls};
use connection::{Link, LinkEvent, Loss};
use terminal::Console;
use text::{Lang, Text, help_in_chinese, tls_setup_text, tls_text};

/// A client of the chat server.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where the server is: an IP address or a name
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

/// What the threads tell this one.
enum Incoming {
    Line(Option<String>),
    Link(LinkEvent),
}

fn main() -> ExitCode {
    let args = Args::read();
    let lang = args.lang.unwrap_or_else(locale);
    let server = format!("{}:{}", args.ip, args.port);
    let cannot = |why: String| {
        eprintln!("{}", Text::CannotConnect { server: &server, why: &why }.render(lang));
        ExitCode::from(2)
    };
    let tls = match args.tls.then(|| Tls::new(args.tls_name.as_ref().unwrap_or(&args.ip), args.tls_ca.as_deref())) {
        None => None,
        Some(Ok(tls)) => Some(tls),
        Some(Err(error)) => return cannot(tls_setup_text(&error, lang)),
    };
    let (incoming, queue) = bounded(EVENT_QUEUE);
    let from_link = incoming.clone();
    let target = Target { host: args.ip, port: args.port, tls };
    let (link, greeting) = match Link::open(target, move |event| drop(from_link.send(Incoming::Link(event)))) {
        Ok(opened) => opened,
        // An nginx says no word to who speaks no TLS, nor when all its nodes are down.
        Err(Loss::Closed) if !args.tls => return cannot(Text::ClosedAtOnce.render(lang)),
        Err(loss) => return cannot(why(&loss, lang)),
    };
    let console = match Console::open(move |line| drop(incoming.send(Incoming::Line(line)))) {
        Ok(console) => console,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let setup = Setup { lang, server, greeting, interactive: console.is_interactive(), clock: local_time };
    run(App::new(setup, Instant::now()), &queue, link, &console, lang);
    console.close();
    ExitCode::SUCCESS
}

/// Feeds the app until it is done, or until nobody reads its output any more.
fn run(mut app: App, queue: &Receiver<Incoming>, mut link: Link, console: &Console, lang: Lang) {
    const IDLE: Duration = Duration::from_secs(3600);
    let mut event = Event::Tick;
    loop {
        for effect in app.handle(event, Instant::now()) {
            match effect {
                Effect::Print(line) => {
                    if console.print(line).is_err() {
                        return;
                    }
                }
                Effect::Ask(ask) => console.ask(ask),
                Effect::Send(object) => link.send(&object),
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
        Loss::NotAChatServer => Text::NotAChatServer.render(lang),
        Loss::SpeaksTls => Text::SpeaksTls.render(lang),
    }
}

/// "YYYY-MM-DD HH:MM:SS".
fn local_time() -> String {
    chrono::Local::now().format("%Y-%m-%d %H:%M:%S").to_string()
}
