//! A user who chats with a partner, and maybe with a group, whatever happens to the servers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chat_server::wire::msgid;
use mio::{Events, Poll};
use serde_json::{Value, json};

use crate::history::{Event, Kind, Log, Stream};
use crate::line::Line;
use crate::support::{Account, Client, Rng, login, parse, strings};

/// Between two messages, at most, if nothing else is said.
const THINK: Duration = Duration::from_millis(80);
/// How long a login may take before it is tried elsewhere.
const LOGIN_PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two requests on a connection whose session should have ended.
const PROBE: Duration = Duration::from_millis(200);
/// Stands for no node.
pub const NOWHERE: usize = usize::MAX;

/// How long everything may take to arrive once nothing is amiss any more.
const END: Duration = Duration::from_secs(60);

/// What all players know.
pub struct Game {
    pub begin: Instant,
    /// Where players connect to.
    pub nodes: Vec<SocketAddr>,
    pub accounts: Vec<Account>,
    pub group: u32,
    pub members: Vec<usize>,
    /// Set when it is time to end: until when everything must have arrived.
    pub end: OnceLock<Instant>,
    /// Players who may still send something.
    pub sending: AtomicUsize,
    /// Players to whom something may still come.
    pub waiting: AtomicUsize,
    /// By player: where it is logged in.
    pub places: Vec<AtomicUsize>,
    /// By player and kind: its last number that was acked.
    pub acked: Vec<[AtomicU32; 2]>,
    /// Between two messages of a player, at most, in µs.
    pub think: AtomicUsize,
}

impl Game {
    /// Accounts for all players and a group for some, registered at one node.
    pub fn new(node: SocketAddr, nodes: Vec<SocketAddr>, players: usize, members: &[usize]) -> Arc<Game> {
        let mut client = Client::connect(node);
        let accounts: Vec<_> = (0..players).map(|no| client.register(&format!("player {no}"), "secret")).collect();
        client.login(&accounts[members[0]]);
        let group = client.create_group("some");
        for member in &members[1..] {
            client.login(&accounts[*member]);
            client.join(group);
        }
        client.logout();
        Arc::new(Game {
            begin: Instant::now(),
            nodes,
            accounts,
            group,
            members: members.to_vec(),
            end: OnceLock::new(),
            sending: AtomicUsize::new(players),
            waiting: AtomicUsize::new(players),
            places: (0..players).map(|_| AtomicUsize::new(NOWHERE)).collect(),
            acked: (0..players).map(|_| [AtomicU32::new(0), AtomicU32::new(0)]).collect(),
            think: AtomicUsize::new(THINK.as_micros() as usize),
        })
    }

    pub fn begin(game: &Arc<Game>, rng: &mut Rng) -> Vec<JoinHandle<Log>> {
        let player = |no| Player::new(no, Arc::clone(game), rng.fork());
        let players: Vec<Player> = (0..game.accounts.len()).map(player).collect();
        players.into_iter().map(|player| std::thread::spawn(move || player.play())).collect()
    }

    /// Has all players end, when everything has arrived. Returns what they saw, and what each should have got.
    pub fn finish(&self, players: Vec<JoinHandle<Log>>) -> (Vec<Log>, HashMap<Stream, Vec<usize>>) {
        self.end.set(Instant::now() + END).expect("it ends once");
        let logs = players.into_iter().map(|player| player.join().expect("a player does not fail")).collect();
        (logs, self.streams().map(|stream| (stream, self.recipients(stream))).collect())
    }

    pub fn partner(&self, player: usize) -> usize {
        player ^ 1
    }

    pub fn recipients(&self, stream: Stream) -> Vec<usize> {
        match stream.kind {
            Kind::Chat => vec![self.partner(stream.from)],
            Kind::GroupChat if self.members.contains(&stream.from) => {
                self.members.iter().copied().filter(|member| *member != stream.from).collect()
            }
            Kind::GroupChat => Vec::new(),
        }
    }

    pub fn streams(&self) -> impl Iterator<Item = Stream> {
        let players = 0..self.accounts.len();
        players.flat_map(|from| [Kind::Chat, Kind::GroupChat].map(|kind| Stream { from, kind }))
    }

    fn player_of(&self, id: u64) -> Option<usize> {
        self.accounts.iter().position(|account| u64::from(account.id) == id)
    }
}

pub struct Player {
    no: usize,
    game: Arc<Game>,
    rng: Rng,
    log: Log,
    poll: Poll,
    /// Oldest first.
    lines: Vec<Line>,
    next_line: u32,
    /// The line that is logged in.
    session: Option<u32>,
    next_seq: i64,
    /// When what was asked, by `seq`.
    asked: HashMap<i64, Instant>,
    /// Replies by `seq`.
    replies: HashMap<i64, Value>,
    /// How long an ack may take before the player tries it elsewhere.
    patience: Duration,
    /// The number of the last message, by kind.
    numbers: [u32; 2],
    /// The highest number that has come, by stream.
    highest: HashMap<Stream, u32>,
}

impl Player {
    pub fn new(no: usize, game: Arc<Game>, mut rng: Rng) -> Player {
        // Half of them sit a stopped node out.
        let patience = if no % 4 < 2 { 30_000 } else { 2_500 + rng.below(2_000) as u64 };
        Player {
            no,
            game,
            rng,
            log: Log::new(),
            poll: Poll::new().expect("a poll"),
            lines: Vec::new(),
            next_line: 0,
            session: None,
            next_seq: 0,
            asked: HashMap::new(),
            replies: HashMap::new(),
            patience: Duration::from_millis(patience),
            numbers: [0; 2],
            highest: HashMap::new(),
        }
    }

    /// Plays to the end.
    pub fn play(mut self) -> Log {
        let kinds = if self.game.members.contains(&self.no) { 4 } else { 3 };
        while self.game.end.get().is_none() {
            match self.rng.below(400) {
                0..4 => self.go_away(),
                4..6 => self.rival_in_vain(),
                _ => {}
            }
            let kind = if self.rng.below(kinds) == 3 { Kind::GroupChat } else { Kind::Chat };
            self.send(kind);
            let think = self.rng.below(1 + self.game.think.load(Ordering::SeqCst)) as u64;
            self.pause(Duration::from_micros(think));
        }
        self.game.sending.fetch_sub(1, Ordering::SeqCst);
        let mut waits = true;
        while self.game.waiting.load(Ordering::SeqCst) > 0 && self.be_logged_in() {
            if waits && self.game.sending.load(Ordering::SeqCst) == 0 && self.has_all() {
                waits = false;
                self.game.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            self.pause(Duration::from_millis(20));
        }
        self.log
    }

    /// Whether everything that was acked to its sender has come.
    fn has_all(&self) -> bool {
        self.game.streams().filter(|stream| self.game.recipients(*stream).contains(&self.no)).all(|stream| {
            let acked = self.game.acked[stream.from][stream.kind as usize].load(Ordering::SeqCst);
            self.highest.get(&stream).copied().unwrap_or(0) >= acked
        })
    }

    fn note(&mut self, event: Event) {
        self.log.push((self.game.begin.elapsed(), event));
    }

    fn line(&mut self, no: u32) -> Option<&mut Line> {
        self.lines.iter_mut().find(|line| line.no == no)
    }

    fn set_session(&mut self, line: Option<u32>) {
        self.session = line;
        let node = line.and_then(|no| self.line(no)).map_or(NOWHERE, |line| line.node);
        self.game.places[self.no].store(node, Ordering::SeqCst);
    }

    // -- sending ----------------------------------------------------------------------------

    /// Sends the next message of its kind until it is acked.
    fn send(&mut self, kind: Kind) {
        self.numbers[kind as usize] += 1;
        let number = self.numbers[kind as usize];
        let mut pause = Duration::from_millis(50);
        while self.be_logged_in() {
            let Some(line) = self.session else { continue };
            let me = &self.game.accounts[self.no];
            let mut chat = json!({"msgid": msgid::ONE_CHAT, "id": me.id, "name": me.name, "msg": number.to_string(),
                "time": "2026-01-02 03:04:05"});
            match kind {
                Kind::Chat => chat["toid"] = self.game.accounts[self.game.partner(self.no)].id.into(),
                Kind::GroupChat => {
                    chat["msgid"] = msgid::GROUP_CHAT.into();
                    chat["groupid"] = self.game.group.into();
                }
            }
            self.note(Event::Sent { line, kind, number });
            let seq = self.ask(line, chat);
            let Some(ack) = self.outcome(line, seq) else { continue };
            let errno = ack["errno"].as_i64().expect("errno");
            if errno == 0 && ack["failed"].as_u64().unwrap_or(0) == 0 {
                let delivered = match kind {
                    Kind::Chat => ack["delivered"] == true,
                    Kind::GroupChat => ack["stored"] == 0,
                };
                self.note(Event::Acked { line, kind, number, delivered });
                self.game.acked[self.no][kind as usize].store(number, Ordering::SeqCst);
                return;
            }
            // Some members of the group could not be served: counts as if the store were away.
            let errno = if errno == 0 { 21 } else { errno };
            self.note(Event::Refused { line, kind, number, errno });
            self.pause(pause);
            // A group's living members get each try.
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Sends a request, with a `seq` that is returned.
    fn ask(&mut self, line: u32, mut request: Value) -> i64 {
        self.next_seq += 1;
        let seq = self.next_seq;
        request["seq"] = seq.into();
        self.asked.insert(seq, Instant::now());
        if let Some(line) = self.line(line) {
            line.send(&request);
        }
        seq
    }

    /// The reply, if the session lives until then. When that takes too long, the player hangs up, or
    /// tries to log in elsewhere while this connection stands.
    fn outcome(&mut self, line: u32, seq: i64) -> Option<Value> {
        let mut patience = Instant::now() + self.patience;
        let mut rival: Option<(u32, i64)> = None;
        loop {
            if let Some(reply) = self.replies.remove(&seq) {
                if let Some((rival, _)) = rival {
                    self.finish(rival);
                }
                return Some(reply);
            }
            if self.session != Some(line) || self.is_out_of_time() {
                return None;
            }
            if let Some((other, login)) = rival
                && (self.replies.remove(&login).is_some() || self.line(other).is_none())
            {
                self.finish(other);
                rival = None;
            }
            let now = Instant::now();
            if now >= patience && rival.is_none() {
                if self.rng.below(3) == 0 {
                    self.hang_up(line);
                    return self.replies.remove(&seq);
                }
                rival = self.knock();
                patience = now + Duration::from_millis(200);
            }
            let until = if rival.is_some() { now + PROBE } else { patience };
            self.pump(until);
        }
    }

    // -- sessions ---------------------------------------------------------------------------

    /// Logs in wherever it is possible; false: there is no more time.
    fn be_logged_in(&mut self) -> bool {
        while self.session.is_none() {
            if self.is_out_of_time() {
                self.note(Event::GaveUp);
                return false;
            }
            match self.knock() {
                Some((line, seq)) => self.await_login(line, seq),
                None => self.pause(Duration::from_millis(50)),
            }
        }
        if self.is_out_of_time() {
            self.note(Event::GaveUp);
            return false;
        }
        true
    }

    fn is_out_of_time(&self) -> bool {
        self.game.end.get().is_some_and(|end| Instant::now() > *end)
    }

    /// Connects to some node and asks for a session.
    fn knock(&mut self) -> Option<(u32, i64)> {
        let node = self.rng.below(self.game.nodes.len());
        let line = Line::connect(self.next_line, node, self.game.nodes[node], &self.poll)?;
        self.next_line += 1;
        let no = line.no;
        self.lines.push(line);
        Some((no, self.ask_login(no)))
    }

    fn ask_login(&mut self, line: u32) -> i64 {
        self.ask(line, login(&self.game.accounts[self.no]))
    }

    fn await_login(&mut self, line: u32, seq: i64) {
        let patience = Instant::now() + LOGIN_PATIENCE;
        while self.session.is_none() && self.line(line).is_some() && Instant::now() < patience {
            if self.replies.remove(&seq).is_some_and(|reply| reply["errno"] != 0) {
                self.finish(line);
                return self.pause(Duration::from_millis(100));
            }
            self.pump(patience);
        }
        if self.session.is_none() {
            self.finish(line);
        }
    }

    /// Logs out, either by a request or by hanging up, and stays away for a while.
    fn go_away(&mut self) {
        let Some(line) = self.session else { return };
        let mut stays = false;
        if self.rng.below(2) == 0 {
            self.hang_up(line);
        } else {
            self.note(Event::Left { line });
            let seq = self.ask(line, json!({"msgid": msgid::LOGOUT, "id": self.game.accounts[self.no].id}));
            let acked = self.outcome(line, seq).is_some();
            if self.session == Some(line) {
                self.set_session(None);
            }
            stays = acked && self.session.is_none() && self.rng.below(2) == 0;
            if !stays {
                self.finish(line);
            }
        }
        let away = self.rng.below(1000) as u64;
        self.pause(Duration::from_millis(away));
        if stays && self.line(line).is_some() {
            let seq = self.ask_login(line);
            self.await_login(line, seq);
        }
    }

    /// Ends a connection, and reads what is still on it, if the node lets it go.
    fn hang_up(&mut self, line: u32) {
        self.note(Event::Left { line });
        self.finish(line);
        self.set_session(None);
        let patience = Instant::now() + Duration::from_secs(1);
        while self.line(line).is_some() && Instant::now() < patience {
            self.pump(patience);
        }
    }

    /// Signals to the server that nothing more comes on this line, unless it is the session's.
    fn finish(&mut self, line: u32) {
        if let Some(line) = self.line(line).filter(|line| !line.finished) {
            line.finish();
        }
    }

    /// A second login of an account that is in use.
    fn rival_in_vain(&mut self) {
        if self.session.is_none() {
            return;
        }
        let Some((line, seq)) = self.knock() else { return };
        let patience = Instant::now() + LOGIN_PATIENCE;
        while !self.replies.contains_key(&seq) && self.line(line).is_some() && Instant::now() < patience {
            self.pump(patience);
        }
        if self.session != Some(line) {
            self.finish(line);
        }
    }

    // -- receiving --------------------------------------------------------------------------

    /// Reads for this time.
    fn pause(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.pump(until);
        }
    }

    /// Reads what comes first, or until that time.
    fn pump(&mut self, until: Instant) {
        self.probe();
        let mut wait = until.saturating_duration_since(Instant::now());
        if self.lines.iter().any(|line| line.replaced.is_some()) {
            wait = wait.min(PROBE);
        }
        // Longer than any of this could take: a player sees the end of the run.
        let wait = wait.min(Duration::from_secs(1));
        match self.poll.poll(&mut Events::with_capacity(16), Some(wait)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => panic!("{error}"),
            _ => {}
        }
        // Taken from the newest first, and looked at from the oldest: nothing on an older line can
        // then seem later than what came after it on a newer one.
        self.lines.iter_mut().rev().for_each(Line::read);
        for index in 0..self.lines.len() {
            let (line, node) = (self.lines[index].no, self.lines[index].node);
            for object in self.lines[index].objects() {
                self.object(line, node, object);
            }
            if self.lines[index].ended {
                self.note(Event::Ended { line });
                if self.session == Some(line) {
                    self.set_session(None);
                }
            }
        }
        self.lines.retain(|line| !line.ended);
    }

    fn object(&mut self, line: u32, node: usize, object: Value) {
        match object["msgid"].as_i64().expect("a msgid") {
            msgid::ONE_CHAT | msgid::GROUP_CHAT => self.arrived(line, &object),
            msgid::LOGIN_ACK => {
                let errno = object["errno"].as_i64().expect("errno");
                if errno == 0 {
                    self.logged_in(line, node, &object);
                } else {
                    self.note(Event::LoginRefused { line, node, errno });
                }
                self.reply(object);
            }
            msgid::ACK => {
                let asked = object["seq"].as_i64().and_then(|seq| self.asked.get(&seq));
                let asked = asked.expect("an answer to a question").duration_since(self.game.begin);
                if object["errno"] == 0 {
                    self.note(Event::Served { line, asked });
                }
                self.reply(object);
            }
            msgid::ERROR => {
                let errno = object["errno"].as_i64().expect("errno");
                self.note(Event::Told { line, errno });
            }
            other => panic!("nobody asked for a {other}: {object}"),
        }
    }

    fn reply(&mut self, object: Value) {
        let seq = object["seq"].as_i64().expect("the seq that was sent");
        assert!(self.asked.remove(&seq).is_some(), "a second reply: {object}");
        self.replies.insert(seq, object);
    }

    fn logged_in(&mut self, line: u32, node: usize, greeting: &Value) {
        self.note(Event::LoggedIn { line, node });
        let former = self.session;
        if self.line(line).is_some_and(|line| !line.finished) {
            self.set_session(Some(line));
            if let Some(former) = former.filter(|former| *former != line).and_then(|former| self.line(former)) {
                former.replaced = Some(Instant::now());
            }
        }
        for message in strings(&greeting["offlinemsg"]) {
            self.arrived(line, &parse(&message));
        }
    }

    fn arrived(&mut self, line: u32, chat: &Value) {
        let from = chat["id"].as_u64().and_then(|id| self.game.player_of(id)).expect("a player's id");
        let kind = if chat["msgid"] == msgid::ONE_CHAT { Kind::Chat } else { Kind::GroupChat };
        let number = chat["msg"].as_str().and_then(|text| text.parse().ok()).expect("a number");
        let stream = Stream { from, kind };
        self.note(Event::Arrived { line, stream, number });
        let highest = self.highest.entry(stream).or_default();
        *highest = number.max(*highest);
    }

    /// Sends requests that need a session on lines whose session should have ended.
    fn probe(&mut self) {
        let now = Instant::now();
        let due = |line: &Line| !line.finished && line.replaced.is_some_and(|at| now >= at);
        for no in self.lines.iter().filter(|line| due(line)).map(|line| line.no).collect::<Vec<_>>() {
            self.ask(no, json!({"msgid": msgid::LIST, "id": self.game.accounts[self.no].id}));
            if let Some(line) = self.line(no) {
                line.replaced = Some(now + PROBE);
            }
        }
    }
}
