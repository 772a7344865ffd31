//! The client as a state machine: events in, effects out. It knows no socket, no terminal and no
//! clock, so all of it can be tested without them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::wire::dialect::{Dialect, Verb};
use chat_server::wire::{Errno, msgid};
use serde_json::{Value, json};

use crate::commands::{self, Command};
use crate::connection::{Greeting, encode, is_pong};
use crate::message::Message;
use crate::plain::{self, plain};
use crate::text::{Lang, Text};

#[derive(Debug)]
pub enum Event {
    /// The line that was asked for; `None` is the end of the input.
    Input(Option<String>),
    Up(Greeting),
    /// The connection is lost, and why.
    Down(String),
    Message(Message),
    /// An object that the server's dialect does not have.
    Unknown(String),
    /// A signal asks for the end. A line that was asked for may never come.
    Leave,
    /// The [`App::deadline`] has come.
    Tick,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// One line, free of control characters.
    Print(String),
    /// Read one line of input and return it as [`Event::Input`]. Never asked twice at a time.
    Ask(Ask),
    Send(Vec<u8>),
    /// End the connection, so that another is made.
    GiveUp,
    Exit,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Ask {
    pub kind: AskKind,
    pub prompt: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskKind {
    /// A line of the menu's dialogue.
    Dialogue,
    /// To be read without echo, and to be kept nowhere.
    Password,
    /// A command, worth a place in the history.
    Command,
}

/// How long a reply is waited for before the user is told that there is none, and before the next
/// line of a pipe is read without it. Also how long a pipe waits for a lost connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the login after a reconnect is waited for before the connection is given up. A server
/// answers every login within 10 s, whichever it is; one that hangs still takes connections.
const LOGIN_PATIENCE: Duration = Duration::from_secs(20);
/// When a login that is refused for a passing reason is tried again, after a reconnect. Twice as long
/// after each refusal...
const FIRST_LOGIN_RETRY: Duration = Duration::from_secs(1);
const LAST_LOGIN_RETRY: Duration = Duration::from_secs(10);
/// ...and for how long. A server holds the session of a client that vanished until its TCP gives up:
/// if messages are written to it meanwhile, through a proxy that leaves Linux's retransmissions as they
/// are, up to 16 minutes.
const LOGIN_RETRIES: Duration = Duration::from_secs(20 * 60);

/// What the next line of input is.
#[derive(Clone, PartialEq, Eq)]
enum Stage {
    Menu,
    LoginId,
    LoginPassword { id: i64 },
    RegisterName,
    RegisterPassword { name: String },
    Chatting,
}

/// The logged-in user. The password stays in memory only, for the login after a reconnect.
#[derive(Clone)]
struct Account {
    id: i64,
    name: String,
    password: String,
}

/// Whether the server knows the account at the moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Session {
    Active,
    /// The connection was lost. Logs in again when it is back, or at `retry_at`, and gives up at
    /// `give_up_at`.
    Broken {
        retry_at: Option<Instant>,
        give_up_at: Option<Instant>,
        /// Before jitter, between the next refusal and the attempt behind it.
        backoff: Duration,
    },
}

enum Request {
    Login {
        id: i64,
        password: String,
    },
    /// The login after a reconnect.
    LoginAgain,
    Register {
        name: String,
        password: String,
    },
    Command(Command),
}

struct Pending {
    request: Request,
    /// As the user would recognise it.
    what: String,
    sent: Instant,
    /// The user has been told that there is no answer.
    overdue: bool,
}

/// What an [`App`] begins with.
pub struct Setup {
    pub lang: Lang,
    /// The server's name for the user.
    pub server: String,
    pub greeting: Greeting,
    /// The server's dialect, which tells what is replied to; `None`: the greeting does.
    pub dialect: Option<Arc<Dialect>>,
    /// On a terminal the user may type on while a command is under way; a pipe's next line waits.
    pub interactive: bool,
    /// The local time as a chat bears it.
    pub clock: fn() -> String,
    /// Shortens a wait by chance, so that many clients do not come at once.
    pub jitter: fn(Duration) -> Duration,
}

pub struct App {
    lang: Lang,
    server: String,
    interactive: bool,
    clock: fn() -> String,
    jitter: fn(Duration) -> Duration,
    now: Instant,
    stage: Stage,
    account: Option<Account>,
    session: Session,
    /// Why the login after a reconnect was refused, as the user knows already.
    retried_for: String,
    /// `Some(since)` while there is no connection.
    down: Option<Instant>,
    confirms: bool,
    dialect: Option<Arc<Dialect>>,
    next_seq: i64,
    /// By `seq`.
    pending: BTreeMap<i64, Pending>,
    /// A line has been asked for and has not come.
    asked: bool,
    /// What stood behind a number on its line; the original read tokens, not lines.
    leftover: Option<String>,
    /// The user wants to leave, or the input has ended.
    leaving: bool,
    effects: Vec<Effect>,
}

impl App {
    /// Connected. The first [`Event::Tick`] brings up the menu.
    pub fn new(setup: Setup, now: Instant) -> App {
        let Setup { lang, server, greeting, dialect, interactive, clock, jitter } = setup;
        App {
            lang,
            server,
            interactive,
            clock,
            jitter,
            now,
            stage: Stage::Menu,
            account: None,
            session: Session::Active,
            retried_for: String::new(),
            down: None,
            confirms: greeting.confirms,
            dialect,
            next_seq: 1,
            pending: BTreeMap::new(),
            asked: false,
            leftover: None,
            leaving: false,
            effects: Vec::new(),
        }
    }

    pub fn handle(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        self.now = now;
        match event {
            Event::Input(line) => {
                self.asked = false;
                match line {
                    Some(line) => self.on_line(&line),
                    None => self.leaving = true,
                }
            }
            Event::Up(greeting) => self.on_up(greeting),
            Event::Down(why) => self.on_down(&why),
            Event::Message(message) => self.on_message(&message),
            Event::Unknown(object) => self.say(Text::NotInDialect { object: &plain::notice(&object) }),
            Event::Leave => (self.leaving, self.asked) = (true, false),
            Event::Tick => {}
        }
        self.look_at_the_clock();
        self.go_on();
        std::mem::take(&mut self.effects)
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let replies = self.pending.values().filter(|pending| !pending.overdue).map(|pending| pending.sent + PATIENCE);
        let logins = self.pending.values().filter(|pending| matches!(pending.request, Request::LoginAgain));
        let logins = logins.map(|pending| pending.sent + LOGIN_PATIENCE);
        let patience = self.down.map(|since| since + PATIENCE).filter(|end| *end > self.now);
        let retry = match self.session {
            Session::Broken { retry_at, .. } => retry_at,
            Session::Active => None,
        };
        replies.chain(logins).chain(patience).chain(retry).min()
    }

    // ---- What happens next ----

    /// Asks for the next line, or takes leave, if nothing stands in the way.
    fn go_on(&mut self) {
        if self.leaving {
            return self.leave();
        }
        while !self.asked && self.may_ask() {
            match self.leftover.take() {
                Some(line) => self.on_line(&line),
                None => self.ask(),
            }
            if self.leaving {
                return self.leave();
            }
        }
    }

    /// Logs out, so that the account is free and what comes from now on is stored, then exits.
    fn leave(&mut self) {
        if self.awaits_replies() || self.asked {
            return;
        }
        if self.account.is_some() && self.active() && self.is_confirmed(&Request::Command(Command::Logout)) {
            self.request(Request::Command(Command::Logout), "loginout".into());
            self.account = None;
        } else {
            self.effects.push(Effect::Exit);
        }
    }

    fn awaits_replies(&self) -> bool {
        self.pending.values().any(|pending| !pending.overdue)
    }

    fn may_ask(&self) -> bool {
        let waits_for = |pending: &Pending| !pending.overdue && (!self.interactive || pending.request.changes_stage());
        if self.pending.values().any(waits_for) {
            return false;
        }
        // A script's lines are not wasted on a connection that will be back in a moment.
        let settled = self.down.is_none() && (self.stage != Stage::Chatting || self.active());
        self.interactive || settled || self.down.is_some_and(|since| self.now >= since + PATIENCE)
    }

    fn ask(&mut self) {
        let (kind, prompt) = match &self.stage {
            Stage::Menu => {
                self.say(Text::Menu);
                (AskKind::Dialogue, Text::AskChoice.render(self.lang))
            }
            Stage::LoginId => (AskKind::Dialogue, Text::AskUserId.render(self.lang)),
            Stage::LoginPassword { .. } => (AskKind::Password, Text::AskLoginPassword.render(self.lang)),
            Stage::RegisterName => (AskKind::Dialogue, Text::AskUserName.render(self.lang)),
            Stage::RegisterPassword { .. } => (AskKind::Password, Text::AskNewPassword.render(self.lang)),
            Stage::Chatting => {
                let name = self.account.as_ref().map_or("", |account| &account.name);
                (AskKind::Command, format!("{}> ", plain::name(name)))
            }
        };
        self.asked = true;
        self.effects.push(Effect::Ask(Ask { kind, prompt }));
    }

    fn look_at_the_clock(&mut self) {
        let mut late = Vec::new();
        for pending in self.pending.values_mut() {
            if !pending.overdue && self.now >= pending.sent + PATIENCE {
                pending.overdue = true;
                late.push(pending.what.clone());
            }
        }
        for what in late {
            self.say(Text::NoAnswerYet { what: &what });
        }
        let hangs = |_: &i64, pending: &mut Pending| {
            matches!(pending.request, Request::LoginAgain) && self.now >= pending.sent + LOGIN_PATIENCE
        };
        if self.pending.extract_if(.., hangs).count() > 0 {
            self.effects.push(Effect::GiveUp);
        }
        if let Session::Broken { retry_at: Some(at), give_up_at, backoff } = self.session
            && self.now >= at
        {
            self.session = Session::Broken { retry_at: None, give_up_at, backoff };
            self.log_in_again();
        }
    }

    // ---- Input ----

    fn on_line(&mut self, line: &str) {
        match std::mem::replace(&mut self.stage, Stage::Menu) {
            Stage::Menu => match self.number(line) {
                Number::Blank => {}
                Number::Is(1) => self.stage = Stage::LoginId,
                Number::Is(2) => self.stage = Stage::RegisterName,
                Number::Is(3) => self.leaving = true,
                _ => self.say(Text::InvalidChoice),
            },
            Stage::LoginId => match self.number(line) {
                Number::Blank => self.stage = Stage::LoginId,
                Number::Is(id) => self.stage = Stage::LoginPassword { id },
                Number::None => self.say(Text::InvalidChoice),
            },
            Stage::LoginPassword { id } => {
                self.request(Request::Login { id, password: line.into() }, format!("login {id}"));
            }
            Stage::RegisterName => self.stage = Stage::RegisterPassword { name: line.into() },
            Stage::RegisterPassword { name } => {
                let what = format!("register {name}");
                self.request(Request::Register { name, password: line.into() }, what);
            }
            Stage::Chatting => {
                self.stage = Stage::Chatting;
                if !line.trim().is_empty() {
                    self.on_command(line);
                }
            }
        }
    }

    /// The number that a line begins with. What stands behind it counts as the next line.
    fn number(&mut self, line: &str) -> Number {
        let line = line.trim();
        let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if first.is_empty() {
            return Number::Blank;
        }
        let number = commands::number(first).map_or(Number::None, Number::Is);
        if !rest.trim().is_empty() && number != Number::None {
            self.leftover = Some(rest.trim().into());
        }
        number
    }

    fn on_command(&mut self, line: &str) {
        let command = match commands::parse(line) {
            Ok(command) => command,
            Err(mistake) => return self.say(mistake.text()),
        };
        match command {
            Command::Help => self.say(Text::Help),
            Command::WhoAmI => self.say_who(),
            Command::Status => self.say_status(),
            Command::Quit => self.leaving = true,
            Command::Logout if !self.active() => self.logged_out(),
            command => self.request(Request::Command(command), line.into()),
        }
    }

    /// The server knows who we are.
    fn active(&self) -> bool {
        self.down.is_none() && self.session == Session::Active
    }

    /// Sends it and remembers it, or says why not.
    fn request(&mut self, request: Request, what: String) {
        let for_session = matches!(request, Request::Command(_));
        if self.down.is_some() || (for_session && !self.active()) {
            return self.say(Text::NotConnected { what: &what });
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let Some(object) = request.object(seq, self.account.as_ref(), self.clock) else { return };
        let lacks = |dialect: &Dialect| request.verb().is_some_and(|verb| dialect.number(verb).is_none());
        if self.dialect.as_deref().is_some_and(lacks) {
            return self.say(Text::NoSuchRequest { what: &what });
        }
        self.effects.push(Effect::Send(encode(&object)));
        if self.is_confirmed(&request) {
            self.pending.insert(seq, Pending { request, what, sent: self.now, overdue: false });
        } else if matches!(request, Request::Command(Command::Logout)) {
            self.logged_out();
        } else {
            self.say(Text::Unconfirmed { what: &what });
        }
    }

    /// Whether there will be a reply to it.
    fn is_confirmed(&self, request: &Request) -> bool {
        match &self.dialect {
            Some(dialect) => request.verb().is_some_and(|verb| dialect.has_reply(verb)),
            None => self.confirms || !matches!(request, Request::Command(_)),
        }
    }

    // ---- The connection ----

    fn on_up(&mut self, greeting: Greeting) {
        self.confirms = greeting.confirms;
        self.down = None;
        self.say(Text::Reconnected);
        if let Session::Broken { .. } = self.session {
            let give_up_at = Some(self.now + LOGIN_RETRIES);
            self.session = Session::Broken { retry_at: None, give_up_at, backoff: FIRST_LOGIN_RETRY };
            self.log_in_again();
        }
    }

    fn on_down(&mut self, why: &str) {
        self.down = Some(self.now);
        self.say(Text::ConnectionLost { why });
        for pending in std::mem::take(&mut self.pending).into_values() {
            let what = pending.what.as_str();
            match pending.request {
                Request::LoginAgain => {}
                // The server that was to confirm it has forgotten the session with the connection.
                Request::Command(Command::Logout) => self.logged_out(),
                Request::Command(Command::Chat { .. } | Command::GroupChat { .. }) => {
                    self.say(Text::NotKnownDelivered { what });
                }
                _ => self.say(Text::NotKnownDone { what }),
            }
        }
        if self.account.is_some() {
            self.session = Session::Broken { retry_at: None, give_up_at: None, backoff: FIRST_LOGIN_RETRY };
            self.retried_for.clear();
        }
    }

    fn log_in_again(&mut self) {
        if let Some(account) = &self.account
            && self.down.is_none()
        {
            let what = format!("login {}", account.id);
            self.request(Request::LoginAgain, what);
        }
    }

    // ---- Messages ----

    fn on_message(&mut self, message: &Message) {
        match message.msgid() {
            msgid::ONE_CHAT | msgid::GROUP_CHAT => self.say_chat(message),
            msgid::PING => {
                let pong = match message.int("seq") {
                    Some(seq) => json!({"msgid": msgid::PONG, "seq": seq}),
                    None => json!({"msgid": msgid::PONG}),
                };
                self.effects.push(Effect::Send(encode(&pong)));
            }
            // A busy server answers the greeting late; until then it looked like one that confirms
            // nothing.
            msgid::PONG if is_pong(message) => self.confirms = true,
            // A pushed chat bears its sender's `seq`; only these three are replies to ours.
            msgid::LOGIN_ACK | msgid::REGISTER_ACK | msgid::ACK => {
                if let Some(pending) = self.take_pending(message) {
                    self.on_reply(pending, message);
                }
            }
            msgid::ERROR => self.say(Text::ServerSays { why: &plain::notice(message.text("errmsg")) }),
            _ => {}
        }
    }

    /// The request that this replies to. A C++ node returns no `seq`; there the kind must do, and what has been waited
    /// for in vain comes last.
    fn take_pending(&mut self, reply: &Message) -> Option<Pending> {
        let seq = reply.int("seq").or_else(|| {
            let verb = reply.replies_to()?;
            let asked = self.pending.iter().filter(|(_, pending)| pending.request.verb() == Some(verb));
            asked.min_by_key(|(_, pending)| pending.overdue).map(|(seq, _)| *seq)
        })?;
        self.pending.remove(&seq)
    }

    fn on_reply(&mut self, pending: Pending, reply: &Message) {
        if reply.errno() != 0 {
            return self.on_refusal(&pending, reply);
        }
        match pending.request {
            Request::Login { id, password } => {
                let name = reply.text("name").to_owned();
                self.account = Some(Account { id, name, password });
                self.session = Session::Active;
                self.stage = Stage::Chatting;
                self.say_login(reply);
            }
            Request::LoginAgain => {
                self.session = Session::Active;
                self.say(Text::LoggedInAgain { name: &plain::name(&self.name()) });
                self.say_offline(reply);
            }
            Request::Register { name, .. } => {
                self.say(Text::Registered { name: &name, id: reply.int("id").unwrap_or_default() });
            }
            Request::Command(command) => self.on_done(command, &pending.what, reply),
        }
    }

    fn on_done(&mut self, command: Command, what: &str, reply: &Message) {
        let count = |key| reply.int(key).unwrap_or_default();
        match command {
            // Other servers' acks may say no more than that.
            Command::Chat { .. } | Command::GroupChat { .. } if !reply.has("delivered") => {
                self.say(Text::Done { what })
            }
            Command::CreateGroup { .. } if !reply.has("groupid") => self.say(Text::Done { what }),
            Command::Chat { to, .. } if reply.flag("delivered") => self.say(Text::Delivered { to }),
            Command::Chat { to, .. } => self.say(Text::Stored { to }),
            Command::GroupChat { group, .. } => self.say(Text::GroupDelivered {
                group,
                delivered: count("delivered"),
                stored: count("stored"),
                failed: count("failed"),
            }),
            Command::AddFriend(id) => self.say(Text::FriendAdded { id }),
            Command::CreateGroup { name, .. } => self.say(Text::GroupCreated { name: &name, id: count("groupid") }),
            Command::JoinGroup(id) => self.say(Text::GroupJoined { id }),
            Command::Friends => self.say_list(Text::NoFriends, reply.friend_lines()),
            Command::Groups => self.say_list(Text::NoGroups, reply.group_lines()),
            Command::Logout => self.logged_out(),
            Command::Help | Command::WhoAmI | Command::Status | Command::Quit => {}
        }
    }

    fn on_refusal(&mut self, pending: &Pending, reply: &Message) {
        let why = match (reply.text("errmsg"), &pending.request) {
            ("", Request::Register { name, .. }) => Text::NameTaken { name }.render(self.lang),
            ("", _) => Text::RefusedFor { errno: reply.errno() }.render(self.lang),
            (text, _) => plain::notice(text),
        };
        let retry_after = reply.int("retry_after");
        match &pending.request {
            Request::LoginAgain => return self.on_login_lost(reply.errno(), &why, retry_after),
            Request::Login { .. } | Request::Register { .. } => self.say_line(&why),
            Request::Command(command) => {
                self.say(Text::Refused { why: &why, what: &pending.what });
                if *command == Command::Logout && reply.errno() == Errno::NotLoggedIn as i64 {
                    self.logged_out();
                }
            }
        }
        if let Some(seconds) = retry_after {
            self.say(Text::RetryAfter { seconds });
        }
    }

    /// The login after a reconnect was refused. A wrong password stays wrong; the rest may pass.
    fn on_login_lost(&mut self, errno: i64, why: &str, retry_after: Option<i64>) {
        let Session::Broken { give_up_at: Some(give_up_at), backoff, .. } = self.session else { return };
        let asked = Duration::from_secs(retry_after.and_then(|seconds| seconds.try_into().ok()).unwrap_or(0));
        // The server spreads whom it sends away; what is added serves those whom it does not.
        let wait = asked.saturating_add((self.jitter)(backoff));
        let retry_at = self.now.checked_add(wait).filter(|at| *at <= give_up_at);
        if errno == Errno::Rejected as i64 || retry_at.is_none() {
            self.say(Text::LoginLost { why });
            if let Some(seconds) = retry_after {
                self.say(Text::RetryAfter { seconds });
            }
            self.account = None;
            self.session = Session::Active;
            return self.open_menu();
        }
        if self.retried_for != why {
            self.retried_for = why.into();
            self.say(Text::LoginRetried { why });
        }
        let backoff = (backoff * 2).min(LAST_LOGIN_RETRY);
        self.session = Session::Broken { retry_at, give_up_at: Some(give_up_at), backoff };
    }

    fn logged_out(&mut self) {
        self.account = None;
        self.session = Session::Active;
        self.say(Text::LoggedOut);
        self.open_menu();
    }

    fn open_menu(&mut self) {
        self.stage = Stage::Menu;
        // A prompt that is open already will not show it.
        if self.asked {
            self.say(Text::Menu);
        }
    }

    // ---- Output ----

    fn say(&mut self, text: Text) {
        text.lines(self.lang).iter().for_each(|line| self.say_line(line));
    }

    /// The one place where lines leave: whatever was received is harmless behind it.
    fn say_line(&mut self, line: &str) {
        self.effects.push(Effect::Print(plain(line)));
    }

    fn say_chat(&mut self, message: &Message) {
        if let Some(line) = message.said() {
            self.say_line(&line);
        }
    }

    fn say_login(&mut self, reply: &Message) {
        self.say(Text::LoginHead);
        self.say_who();
        self.say(Text::FriendsHead);
        reply.friend_lines().iter().for_each(|line| self.say_line(line));
        self.say(Text::GroupsHead);
        reply.group_lines().iter().for_each(|line| self.say_line(line));
        self.say(Text::Foot);
        self.say_offline(reply);
    }

    fn say_offline(&mut self, reply: &Message) {
        reply.list("offlinemsg").for_each(|message| self.say_chat(&message));
    }

    fn say_list(&mut self, if_empty: Text, lines: Vec<String>) {
        if lines.is_empty() {
            self.say(if_empty);
        }
        lines.iter().for_each(|line| self.say_line(line));
    }

    fn say_who(&mut self) {
        if let Some(Account { id, name, .. }) = self.account.clone() {
            self.say(Text::CurrentUser { id, name: &plain::name(&name) });
        }
    }

    fn say_status(&mut self) {
        let server = self.server.clone();
        let text = match self.down {
            None => Text::StatusConnected { server: &server },
            Some(_) => Text::StatusDisconnected { server: &server },
        };
        self.say(text);
        self.say_who();
    }

    fn name(&self) -> String {
        self.account.as_ref().map(|account| account.name.clone()).unwrap_or_default()
    }
}

#[derive(PartialEq, Eq)]
enum Number {
    Is(i64),
    Blank,
    None,
}

impl Request {
    /// No line is read before it is settled, because what the line means depends on it.
    fn changes_stage(&self) -> bool {
        matches!(self, Request::Login { .. } | Request::Register { .. } | Request::Command(Command::Logout))
    }

    /// What it asks for; `None` where there is nothing to send.
    fn verb(&self) -> Option<Verb> {
        match self {
            Request::Login { .. } | Request::LoginAgain => Some(Verb::Login),
            Request::Register { .. } => Some(Verb::Register),
            Request::Command(command) => match command {
                Command::Chat { .. } => Some(Verb::Chat),
                Command::GroupChat { .. } => Some(Verb::GroupChat),
                Command::AddFriend(_) => Some(Verb::AddFriend),
                Command::CreateGroup { .. } => Some(Verb::CreateGroup),
                Command::JoinGroup(_) => Some(Verb::JoinGroup),
                Command::Friends | Command::Groups => Some(Verb::Update),
                Command::Logout => Some(Verb::Logout),
                Command::Help | Command::WhoAmI | Command::Status | Command::Quit => None,
            },
        }
    }

    /// What goes over the wire; `None` where there is nothing to send.
    fn object(&self, seq: i64, account: Option<&Account>, clock: fn() -> String) -> Option<Value> {
        let login =
            |id: i64, password: &str| json!({"msgid": msgid::LOGIN, "seq": seq, "id": id, "password": password});
        match self {
            Request::Login { id, password } => Some(login(*id, password)),
            Request::LoginAgain => account.map(|account| login(account.id, &account.password)),
            Request::Register { name, password } => {
                Some(json!({"msgid": msgid::REGISTER, "seq": seq, "name": name, "password": password}))
            }
            Request::Command(command) => {
                let Account { id, name, .. } = account?;
                match command {
                    Command::Chat { to, text } => Some(json!({
                        "msgid": msgid::ONE_CHAT, "seq": seq, "id": id, "name": name, "toid": to, "msg": text,
                        "time": clock(),
                    })),
                    Command::GroupChat { group, text } => Some(json!({
                        "msgid": msgid::GROUP_CHAT, "seq": seq, "id": id, "name": name, "groupid": group, "msg": text,
                        "time": clock(),
                    })),
                    Command::AddFriend(friend) => {
                        Some(json!({"msgid": msgid::ADD_FRIEND, "seq": seq, "id": id, "friendid": friend}))
                    }
                    Command::CreateGroup { name, description } => Some(json!({
                        "msgid": msgid::CREATE_GROUP, "seq": seq, "id": id, "groupname": name,
                        "groupdesc": description,
                    })),
                    Command::JoinGroup(group) => {
                        Some(json!({"msgid": msgid::JOIN_GROUP, "seq": seq, "id": id, "groupid": group}))
                    }
                    Command::Friends | Command::Groups => Some(json!({"msgid": msgid::LIST, "seq": seq, "id": id})),
                    Command::Logout => Some(json!({"msgid": msgid::LOGOUT, "seq": seq, "id": id})),
                    Command::Help | Command::WhoAmI | Command::Status | Command::Quit => None,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chat_server::wire::dialect::find;

    use super::*;

    /// Drives an app: it collects what is printed and sent, and notes what is asked for.
    struct Play {
        app: App,
        now: Instant,
        printed: Vec<String>,
        sent: Vec<Value>,
        asked: Option<AskKind>,
        exited: bool,
        given_up: bool,
    }

    impl Play {
        fn new(interactive: bool, confirms: bool) -> Play {
            Play::of(interactive, confirms, None)
        }

        fn of(interactive: bool, confirms: bool, dialect: Option<&str>) -> Play {
            let now = Instant::now();
            let setup = Setup {
                lang: Lang::En,
                server: "test:1".into(),
                greeting: Greeting { confirms },
                dialect: dialect.and_then(find).cloned(),
                interactive,
                clock: || "12:00:00".into(),
                jitter: |wait| wait,
            };
            let app = App::new(setup, now);
            let mut play =
                Play { app, now, printed: vec![], sent: vec![], asked: None, exited: false, given_up: false };
            play.feed(Event::Tick);
            play
        }

        /// Logged in as user 1.
        fn logged_in(interactive: bool, confirms: bool) -> Play {
            let mut play = Play::new(interactive, confirms);
            play.lines(&["1", "1", "secret"]);
            let ack = r#"{"msgid":2,"seq":1,"errno":0,"id":1,"name":"zhang"}"#;
            play.receive(if confirms { ack } else { r#"{"msgid":2,"errno":0,"id":1,"name":"zhang"}"# });
            (play.printed, play.sent) = (vec![], vec![]);
            play
        }

        fn feed(&mut self, event: Event) {
            if matches!(event, Event::Input(_)) {
                assert!(self.asked.take().is_some(), "a line came that nobody asked for");
            }
            for effect in self.app.handle(event, self.now) {
                match effect {
                    Effect::Print(line) => self.printed.push(line),
                    Effect::Send(object) => self.sent.push(serde_json::from_slice(&object).unwrap()),
                    Effect::Ask(ask) => {
                        assert_eq!(self.asked.replace(ask.kind), None, "asked twice");
                    }
                    Effect::GiveUp => self.given_up = true,
                    Effect::Exit => self.exited = true,
                }
            }
        }

        fn lines(&mut self, lines: &[&str]) {
            lines.iter().for_each(|line| self.feed(Event::Input(Some((*line).into()))));
        }

        fn receive(&mut self, json: &str) {
            self.feed(Event::Message(Message::parse(json.as_bytes()).unwrap()));
        }

        fn up(&mut self) {
            self.feed(Event::Up(Greeting { confirms: true }));
        }

        fn down(&mut self) {
            self.feed(Event::Down("gone".into()));
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.feed(Event::Tick);
        }

        fn last(&self) -> &str {
            self.printed.last().map_or("", String::as_str)
        }
    }

    #[test]
    fn the_menu_registers_and_logs_in_as_the_original_does() {
        let mut play = Play::new(false, true);
        assert_eq!(play.printed[1], "1. login");
        play.lines(&["7"]);
        assert!(play.printed.contains(&"invalid input!".to_owned()));
        play.lines(&["2", "zhang san"]);
        assert_eq!(play.asked, Some(AskKind::Password));
        play.lines(&["secret"]);
        assert_eq!(play.sent[0], json!({"msgid": 4, "seq": 1, "name": "zhang san", "password": "secret"}));
        play.receive(r#"{"msgid":5,"seq":1,"errno":0,"error":0,"id":13}"#);
        assert!(play.printed.contains(&"zhang san register success, userid is 13, do not forget it!".to_owned()));
        play.lines(&["", "1", " ", "13 ", "secret"]);
        assert_eq!(play.sent[1], json!({"msgid": 1, "seq": 2, "id": 13, "password": "secret"}));
        play.printed.clear();
        play.receive(
            r#"{"msgid":2,"seq":2,"errno":0,"id":13,"name":"zhang san","state":"online",
                "friends":["{\"id\":2,\"name\":\"li\",\"state\":\"offline\"}"],
                "offlinemsg":["{\"msgid\":6,\"id\":2,\"name\":\"li\",\"msg\":\"hi\",\"time\":\"12:00:00\"}"]}"#,
        );
        let shown: Vec<_> = play.printed.iter().filter(|line| !line.starts_with(['-', '='])).collect();
        assert_eq!(shown, ["current login user => id:13 name:zhang san", "2 li offline", "12:00:00 [2]li said: hi"]);
        assert_eq!(play.asked, Some(AskKind::Command));
    }

    #[test]
    fn numbers_may_share_a_line_because_the_original_reads_tokens() {
        let mut play = Play::new(false, true);
        play.lines(&["1 13", "secret"]);
        assert_eq!(play.sent[0], json!({"msgid": 1, "seq": 1, "id": 13, "password": "secret"}));
    }

    #[test]
    fn a_refused_login_shows_why_and_returns_to_the_menu() {
        let mut play = Play::new(true, true);
        play.lines(&["1", "1", "wrong"]);
        assert_eq!(play.asked, None, "what the next line means is not known yet");
        play.receive(r#"{"msgid":2,"seq":1,"errno":1,"errmsg":"id or password is invalid!"}"#);
        assert!(play.printed.contains(&"id or password is invalid!".to_owned()));
        assert_eq!(play.asked, Some(AskKind::Dialogue));
        play.lines(&["3"]);
        assert!(play.exited);
    }

    #[test]
    fn in_a_pipe_each_command_waits_for_its_reply_and_on_a_terminal_none_does() {
        let mut pipe = Play::logged_in(false, true);
        pipe.lines(&["chat:2:hi"]);
        let chat = json!({"msgid": 6, "seq": 2, "id": 1, "name": "zhang", "toid": 2, "msg": "hi", "time": "12:00:00"});
        assert_eq!((&pipe.sent[0], pipe.asked), (&chat, None));
        pipe.receive(r#"{"msgid":200,"seq":2,"errno":0,"delivered":true}"#);
        assert_eq!((pipe.last(), pipe.asked), ("delivered to 2", Some(AskKind::Command)));

        let mut terminal = Play::logged_in(true, true);
        terminal.lines(&["chat:2:one", "chat:3:two"]);
        terminal.receive(r#"{"msgid":200,"seq":3,"errno":0,"delivered":false}"#);
        assert_eq!(terminal.last(), "stored for 3, delivered at the next login");
        terminal.receive(r#"{"msgid":200,"seq":2,"errno":15,"errmsg":"no such user"}"#);
        assert_eq!(terminal.last(), "refused: no such user (chat:2:one)");
    }

    #[test]
    fn groups_report_what_became_of_them() {
        let mut play = Play::logged_in(false, true);
        play.lines(&["creategroup:Rust:all of it"]);
        assert_eq!(play.sent[0], json!({"msgid": 8, "seq": 2, "id": 1, "groupname": "Rust", "groupdesc": "all of it"}));
        play.receive(r#"{"msgid":200,"seq":2,"errno":0,"groupid":9}"#);
        assert_eq!(play.last(), "group Rust created, groupid is 9");
        play.lines(&["groupchat:9:hi"]);
        play.receive(r#"{"msgid":200,"seq":3,"errno":0,"delivered":2,"stored":1,"failed":1}"#);
        assert_eq!(play.last(), "group 9: delivered to 2, stored for 1, failed for 1");
        play.lines(&["groups"]);
        assert_eq!(play.sent[2], json!({"msgid": 206, "seq": 4, "id": 1}));
        play.receive(r#"{"msgid":200,"seq":4,"errno":0}"#);
        assert_eq!(play.last(), "no groups yet");
    }

    #[test]
    fn a_pushed_chat_is_no_reply_even_if_its_sender_chose_our_seq() {
        let mut play = Play::logged_in(false, true);
        play.lines(&["addfriend:2"]);
        play.receive(
            r#"{"msgid":6,"seq":2,"errno":0,"id":2,"name":"li","toid":1,"msg":"\u001b[2J","time":"12:00:00"}"#,
        );
        assert_eq!((play.last(), play.asked), (r"12:00:00 [2]li said: \u{1b}[2J", None));
        play.receive(r#"{"msgid":200,"seq":2,"errno":0}"#);
        assert_eq!(play.last(), "2 is your friend now");
    }

    #[test]
    fn a_ping_is_answered() {
        let mut play = Play::new(false, true);
        play.receive(r#"{"msgid":202,"seq":5}"#);
        play.receive(r#"{"msgid":202}"#);
        assert_eq!(play.sent, [json!({"msgid": 203, "seq": 5}), json!({"msgid": 203})]);
    }

    #[test]
    fn a_missing_reply_is_told_once_and_a_late_one_still_counts() {
        let mut play = Play::logged_in(false, true);
        play.lines(&["chat:2:hi"]);
        assert_eq!(play.app.deadline(), Some(play.now + PATIENCE));
        play.pass(PATIENCE);
        assert_eq!(play.printed, ["no answer yet, not known to be done: chat:2:hi"]);
        assert_eq!((play.asked, play.app.deadline()), (Some(AskKind::Command), None));
        play.receive(r#"{"msgid":200,"seq":2,"errno":0,"delivered":true}"#);
        assert_eq!(play.printed[1..], ["delivered to 2"]);
    }

    #[test]
    fn a_lost_connection_tells_what_became_of_each_command_and_logs_in_again() {
        let mut play = Play::logged_in(true, true);
        play.lines(&["chat:2:one", "addfriend:2"]);
        play.down();
        assert_eq!(
            play.printed,
            [
                "connection lost (gone), reconnecting",
                "not known to be delivered, and not sent again: chat:2:one",
                "not known to be done, and not sent again: addfriend:2",
            ]
        );
        play.lines(&["chat:2:two"]);
        assert_eq!(play.last(), "not connected, not sent: chat:2:two");
        play.sent.clear();
        play.up();
        assert_eq!(play.sent, [json!({"msgid": 1, "seq": 4, "id": 1, "password": "secret"})]);
        play.lines(&["chat:2:three"]);
        assert_eq!(play.last(), "not connected, not sent: chat:2:three", "not before the login is confirmed");
        let offline = r#""offlinemsg":["{\"msgid\":6,\"id\":2,\"name\":\"li\",\"msg\":\"hi\",\"time\":\"12:00:00\"}"]"#;
        play.receive(&format!(r#"{{"msgid":2,"seq":4,"errno":0,"id":1,"name":"zhang",{offline}}}"#));
        assert!(play.printed.ends_with(&["logged in again as zhang".into(), "12:00:00 [2]li said: hi".into()]));
        play.lines(&["chat:2:four"]);
        assert_eq!(play.sent[1]["msg"], "four");
    }

    #[test]
    fn an_account_that_is_still_taken_is_tried_again_for_longer_than_a_server_can_hold_it() {
        let mut play = Play::logged_in(true, true);
        play.down();
        play.up();
        let (since, mut seq, mut waits) = (play.now, 2, vec![]);
        loop {
            play.receive(&format!(r#"{{"msgid":2,"seq":{seq},"errno":2,"errmsg":"in use"}}"#));
            let Some(at) = play.app.deadline() else { break };
            waits.push((at - play.now).as_secs());
            play.pass(at - play.now);
            seq += 1;
            assert_eq!(play.sent.last().unwrap()["seq"], seq);
        }
        // Linux gives up after 15 retransmissions: 924.6 s.
        assert!(play.now - since > Duration::from_secs(925 + 90), "{:?}", play.now - since);
        assert_eq!(waits[..5], [1, 2, 4, 8, 10]);
        assert_eq!(play.printed.iter().filter(|line| *line == "cannot log in yet: in use").count(), 1);
        assert!(play.printed.contains(&"you are logged out: in use".to_owned()));
        play.lines(&["1"]);
        assert!(play.app.stage == Stage::LoginId);
    }

    #[test]
    fn a_server_that_takes_connections_and_answers_no_login_is_given_up() {
        let mut play = Play::logged_in(true, true);
        play.down();
        play.up();
        let since = play.now;
        while !play.given_up {
            play.pass(play.app.deadline().unwrap() - play.now);
        }
        assert_eq!((play.now - since, play.app.deadline()), (LOGIN_PATIENCE, None));
        play.down();
        play.up();
        play.receive(r#"{"msgid":2,"seq":3,"errno":0,"id":1,"name":"zhang"}"#);
        assert_eq!(play.last(), "logged in again as zhang");
    }

    #[test]
    fn a_server_that_says_when_to_come_again_is_obeyed() {
        let mut play = Play::logged_in(true, true);
        play.down();
        play.up();
        play.receive(r#"{"msgid":2,"seq":2,"errno":20,"errmsg":"busy","retry_after":90}"#);
        assert_eq!(play.app.deadline(), Some(play.now + Duration::from_secs(91)));
        play.pass(Duration::from_secs(91));
        for (errno, seq) in [(21, 3), (22, 4)] {
            assert_eq!(play.sent.last().unwrap()["seq"], seq);
            play.receive(&format!(r#"{{"msgid":2,"seq":{seq},"errno":{errno},"errmsg":"later"}}"#));
            play.pass(LAST_LOGIN_RETRY);
        }
        play.receive(r#"{"msgid":2,"seq":5,"errno":20,"errmsg":"busy","retry_after":9223372036854775807}"#);
        assert!(play.printed.contains(&"you are logged out: busy".to_owned()), "later than it will try");
        assert!(play.printed.contains(&"try again in 9223372036854775807 s".to_owned()));
    }

    #[test]
    fn nothing_that_was_received_begins_a_line() {
        let forged = r"x\n2026-11-28 11:00:00 [1]boss said: pay";
        let begins = |play: &Play| play.printed.iter().any(|line| line.starts_with("2026-11-28"));
        let mut play = Play::new(true, true);
        play.lines(&["1", "1", "secret"]);
        play.receive(&format!(r#"{{"msgid":2,"seq":1,"errno":1,"errmsg":"{forged}"}}"#));
        play.lines(&["1", "1", "secret"]);
        let list = format!(
            r#""friends":["{{\"id\":2,\"name\":\"{0}\",\"state\":\"{0}\"}}"],
               "groups":["{{\"id\":3,\"groupname\":\"{0}\",\"groupdesc\":\"{0}\"}}"]"#,
            forged.replace('\\', r"\\")
        );
        play.receive(&format!(r#"{{"msgid":2,"seq":2,"errno":0,"id":1,"name":"{forged}",{list}}}"#));
        assert!(play.printed.iter().any(|line| line.starts_with(r"2 x\n2026-11-28")), "{:#?}", play.printed);
        play.receive(&format!(r#"{{"msgid":201,"errno":12,"errmsg":"{forged}"}}"#));
        play.lines(&["addfriend:2", "whoami", "status"]);
        play.receive(&format!(r#"{{"msgid":200,"seq":3,"errno":15,"errmsg":"{forged}"}}"#));
        play.down();
        play.up();
        play.receive(&format!(r#"{{"msgid":2,"seq":4,"errno":2,"errmsg":"{forged}"}}"#));
        play.pass(FIRST_LOGIN_RETRY);
        play.receive(r#"{"msgid":2,"seq":5,"errno":0}"#);
        assert!(play.last().starts_with("logged in again as x"), "{:#?}", play.printed);
        assert!(!begins(&play), "{:#?}", play.printed);
        assert!(play.printed.iter().all(|line| !line.contains('\n')));
    }

    #[test]
    fn a_signal_takes_leave_although_a_line_is_being_typed() {
        let mut play = Play::logged_in(true, true);
        play.feed(Event::Leave);
        assert_eq!((play.sent[0]["msgid"].as_i64(), play.exited), (Some(msgid::LOGOUT), false));
        play.receive(r#"{"msgid":200,"seq":2,"errno":0}"#);
        assert!(play.exited);
        let mut play = Play::new(true, true);
        play.feed(Event::Leave);
        assert!(play.exited);
    }

    #[test]
    fn a_password_that_is_wrong_after_a_reconnect_ends_the_session_at_once() {
        let mut play = Play::logged_in(true, true);
        play.down();
        play.up();
        play.receive(r#"{"msgid":2,"seq":2,"errno":1,"errmsg":"id or password is invalid!"}"#);
        assert!(play.printed.contains(&"you are logged out: id or password is invalid!".to_owned()));
        assert_eq!(play.last(), "========================", "the menu");
    }

    #[test]
    fn a_pipe_waits_for_a_lost_connection_but_not_for_ever() {
        let mut play = Play::logged_in(false, true);
        play.lines(&["chat:2:one"]);
        play.down();
        assert_eq!(play.asked, None);
        assert_eq!(play.app.deadline(), Some(play.now + PATIENCE));
        play.pass(PATIENCE);
        assert_eq!((play.asked, play.app.deadline()), (Some(AskKind::Command), None));
        play.lines(&["chat:2:two"]);
        assert_eq!(play.last(), "not connected, not sent: chat:2:two");
        play.up();
        play.receive(r#"{"msgid":2,"seq":3,"errno":0,"id":1,"name":"zhang"}"#);
        assert_eq!(play.asked, Some(AskKind::Command));
    }

    #[test]
    fn the_end_of_the_input_waits_for_replies_and_logs_out() {
        let mut play = Play::logged_in(true, true);
        play.lines(&["chat:2:hi"]);
        play.feed(Event::Input(None));
        assert_eq!(play.sent.len(), 1);
        play.receive(r#"{"msgid":200,"seq":2,"errno":0,"delivered":true}"#);
        assert_eq!((play.sent[1]["msgid"].as_i64(), play.exited), (Some(msgid::LOGOUT), false));
        play.receive(r#"{"msgid":200,"seq":3,"errno":0}"#);
        assert_eq!((play.last(), play.exited), ("logged out", true));
    }

    #[test]
    fn a_server_that_is_silent_at_the_end_holds_nobody_up() {
        let mut play = Play::logged_in(true, true);
        play.lines(&["quit"]);
        assert!(!play.exited);
        play.pass(PATIENCE);
        assert!(play.exited);
        let mut play = Play::logged_in(false, true);
        play.lines(&["quit"]);
        play.down();
        assert!(play.exited);
    }

    #[test]
    fn loginout_returns_to_the_menu_and_another_may_log_in() {
        let mut play = Play::logged_in(true, true);
        play.lines(&["loginout"]);
        assert_eq!((play.sent[0]["msgid"].as_i64(), play.asked), (Some(msgid::LOGOUT), None));
        play.receive(r#"{"msgid":200,"seq":2,"errno":0}"#);
        assert_eq!(play.asked, Some(AskKind::Dialogue));
        play.lines(&["1", "2", "other"]);
        assert_eq!(play.sent[1]["id"], 2);
    }

    #[test]
    fn a_server_without_seq_is_not_waited_for() {
        let mut play = Play::logged_in(false, false);
        play.lines(&["chat:2:hi"]);
        assert_eq!(play.last(), "sent, this server sends no acks: chat:2:hi");
        assert_eq!(play.asked, Some(AskKind::Command));
        play.lines(&["loginout"]);
        assert_eq!(play.asked, Some(AskKind::Dialogue));
        play.lines(&["2", "li", "secret"]);
        play.receive(r#"{"msgid":5,"errno":1}"#);
        assert!(play.printed.contains(&"li is already exist, register error!".to_owned()));
    }

    #[test]
    fn in_a_dialect_what_it_has_a_reply_to_is_waited_for_and_what_it_does_not_have_is_not_sent() {
        let reply = |play: &mut Play, verb, json: &str| {
            play.feed(Event::Message(Message::parse_reply(json.as_bytes(), verb).unwrap()));
        };
        let mut play = Play::of(false, false, Some("framed"));
        play.lines(&["1", "1", "secret"]);
        reply(&mut play, Verb::Login, r#"{"msgid":2,"errno":0,"id":1,"name":"zhang"}"#);
        play.lines(&["creategroup:Rust:all"]);
        assert_eq!(play.asked, None);
        reply(&mut play, Verb::CreateGroup, r#"{"msgid":200,"errno":0,"groupid":7}"#);
        assert_eq!(play.last(), "group Rust created, groupid is 7");
        play.lines(&["chat:2:first"]);
        play.pass(PATIENCE);
        play.lines(&["chat:2:second"]);
        reply(&mut play, Verb::Chat, r#"{"msgid":200,"errno":0}"#);
        assert_eq!(play.last(), "done: chat:2:second");
        play.lines(&["groupchat:7:hi"]);
        assert_eq!(play.last(), "sent, this server sends no acks: groupchat:7:hi");
        let sent = play.sent.len();
        play.lines(&["friends"]);
        assert_eq!((play.last(), play.sent.len()), ("not sent, this dialect has no such request: friends", sent));
        play.feed(Event::Unknown("{\"msgid\":77}\u{7}".into()));
        assert_eq!(play.last(), r#"the server sent what this dialect does not have: {"msgid":77}\u{7}"#);
        play.lines(&["loginout"]);
        assert_eq!(play.asked, None);
        reply(&mut play, Verb::Logout, r#"{"msgid":200,"errno":0}"#);
        assert_eq!(play.asked, Some(AskKind::Dialogue));
    }

    #[test]
    fn a_server_that_answers_the_greeting_late_confirms_from_then_on() {
        let mut play = Play::logged_in(true, false);
        play.receive(r#"{"msgid":203,"seq":0}"#);
        play.lines(&["chat:2:hi"]);
        play.receive(r#"{"msgid":200,"seq":2,"errno":0,"delivered":true}"#);
        assert_eq!(play.printed, ["delivered to 2"]);
    }
}
