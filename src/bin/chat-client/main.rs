//! The terminal client: the C++ client's menu and commands, for a person at a terminal and for a
//! script in a pipe.
//!
//! [`app`] decides everything and touches nothing. Three threads feed it through one channel: the
//! connection, the input, and this one's clock; `run` carries out what it decides.

mod app;
mod commands;
mod connection;
mod message;
mod terminal;
mod text;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use app::{App, Effect, Event, Setup};
use connection::{Link, LinkEvent, Loss};
use terminal::Console;
use text::{Lang, Text};

/// A client of the chat server.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Where the server is.
    #[arg(default_value = "127.0.0.1")]
    ip: String,
    #[arg(default_value_t = 6000, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The language; by default the locale's.
    #[arg(long, value_enum)]
    lang: Option<Lang>,
}

/// Events that may wait; past it the connection is read no faster than the terminal shows.
const EVENT_QUEUE: usize = 256;

fn main() -> ExitCode {
    let args = Args::parse();
    let lang = args.lang.unwrap_or_else(|| Lang::of_locale(|name| std::env::var(name).ok()));
    let server = format!("{}:{}", args.ip, args.port);
    let (events, queue) = bounded(EVENT_QUEUE);

    let from_link = events.clone();
    let sink = move |event| drop(from_link.send(in_words(event, lang)));
    let (link, greeting) = match Link::open((args.ip, args.port), sink) {
        Ok(opened) => opened,
        Err(loss) => {
            eprintln!("{}", Text::CannotConnect { server: &server, why: &why(&loss, lang) }.render(lang));
            return ExitCode::from(2);
        }
    };
    let console = match Console::open(move |line| drop(events.send(Event::Input(line)))) {
        Ok(console) => console,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let setup = Setup { lang, server, greeting, interactive: console.is_interactive(), clock: local_time };
    run(App::new(setup, Instant::now()), &queue, &link, &console);
    console.close();
    ExitCode::SUCCESS
}

/// Feeds the app until it is done, or until nobody reads its output any more.
fn run(mut app: App, queue: &Receiver<Event>, link: &Link, console: &Console) {
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
            Ok(event) => event,
            Err(RecvTimeoutError::Timeout) => Event::Tick,
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

fn in_words(event: LinkEvent, lang: Lang) -> Event {
    match event {
        LinkEvent::Up(greeting) => Event::Up(greeting),
        LinkEvent::Down(loss) => Event::Down(why(&loss, lang)),
        LinkEvent::Message(message) => Event::Message(message),
    }
}

fn why(loss: &Loss, lang: Lang) -> String {
    match loss {
        Loss::Io(error) => error.to_string(),
        Loss::Closed => Text::ServerClosed.render(lang),
        Loss::NotAChatServer => Text::NotAChatServer.render(lang),
    }
}

/// "YYYY-MM-DD HH:MM:SS".
fn local_time() -> String {
    chrono::Local::now().format("%Y-%m-%d %H:%M:%S").to_string()
}
