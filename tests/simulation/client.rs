//! The clients: what they do, and what they make of what they get.

use std::collections::BTreeMap;
use std::time::Duration;

use chat_server::store::{GroupId, UserId};
use serde_json::Value;

use crate::check::{Key, To};
use crate::socket::{Side, Socket, SocketId};
use crate::world::{CLIENTS, GROUPS, World};

/// A login's deadline.
const IN_TIME: Duration = Duration::from_secs(10);
/// When it is refused if its password still waits to be hashed.
const IN_TIME_FOR_HASH: Duration = Duration::from_secs(7);

/// A client with an account; it cares for one connection at most.
#[derive(Default)]
pub struct Client {
    pub socket: Option<SocketId>,
    /// Tries to log in again no sooner than this.
    pub pauses_until: Duration,
}

/// The client's end of a connection.
#[derive(Default)]
pub struct Seat {
    pub client: usize,
    /// The user who is logged in, if the client has not asked for anything else since.
    pub account: Option<UserId>,
    /// The user whose messages it reads.
    reads_as: Option<UserId>,
    /// A LOGIN without a reply.
    asked: Option<Asked>,
    /// Some LOGIN was refused: what was sent behind it may have been, too.
    was_refused: bool,
    /// Requests with a `seq`, and without a reply.
    owed: BTreeMap<i64, Owed>,
    /// What was sent on it.
    sent: Vec<Key>,
    /// What of that was sent behind a LOGIN that has no reply yet.
    eager: Vec<Key>,
}

struct Asked {
    user: UserId,
    is_wrong: bool,
    since: Duration,
    /// A login as the user who is logged in already.
    is_same: bool,
    /// The session is given up behind it.
    is_last: bool,
    /// The client has not read all the time.
    may_be_late: bool,
}

enum Owed {
    Chat(Key),
    Join(GroupId, UserId),
    Logout,
}

impl Seat {
    /// Nothing is owed to it.
    pub fn is_paid(&self) -> bool {
        self.owed.is_empty() && self.asked.is_none()
    }

    pub fn waits_for_login(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether the user's session may be on its connection.
    pub fn may_be(&self, user: UserId) -> bool {
        self.is_or_will_be() == Some(user) || self.reads_as == Some(user)
    }

    /// The user that it is, or will be if its LOGIN is right.
    pub fn is_or_will_be(&self) -> Option<UserId> {
        self.account.or(self.asked.as_ref().map(|asked| asked.user))
    }
}

/// What a client may do next.
#[derive(Debug, Clone, Copy)]
enum Habit {
    Chat,
    GroupChat,
    Join,
    Ping,
    Stall,
    Logout,
    LogoutAndLogin,
    LoginAsAnother,
    LoginAsTheSame,
    WrongPassword,
    FinishSending,
    HangUp,
    Reset,
    HangUpAndReturn,
}

const HABITS: [Habit; 14] = [
    Habit::Chat,
    Habit::GroupChat,
    Habit::Join,
    Habit::Ping,
    Habit::Stall,
    Habit::Logout,
    Habit::LogoutAndLogin,
    Habit::LoginAsAnother,
    Habit::LoginAsTheSame,
    Habit::WrongPassword,
    Habit::FinishSending,
    Habit::HangUp,
    Habit::Reset,
    Habit::HangUpAndReturn,
];

/// How often each of them is chosen in a run: some never.
pub struct Habits([usize; HABITS.len()]);

impl Habits {
    pub fn new(rng: &mut crate::rng::Rng) -> Habits {
        let mut weights = HABITS.map(|_| rng.pick(&[0, 1, 1, 4]));
        weights[Habit::Chat as usize] = rng.pick(&[20, 60, 120]);
        weights[Habit::GroupChat as usize] = rng.pick(&[0, 5, 30]);
        weights[Habit::Stall as usize] = rng.pick(&[0, 1, 6]);
        Habits(weights)
    }
}

fn login(user: UserId, is_wrong: bool) -> String {
    let password = if is_wrong { "wrong" } else { "p" };
    format!("{{\"msgid\":1,\"id\":{user},\"password\":\"{password}\"}}")
}

impl World {
    /// A client does something.
    pub fn act(&mut self, client: usize) -> bool {
        let Some(id) = self.clients[client].socket else { return self.come(client) };
        let Some(socket) = self.sockets.get_mut(&id) else { return false };
        if socket.side != Side::Open {
            return false;
        }
        // A client whose node is silent disconnects at some point.
        if !self.nodes[socket.node].is_started || self.nodes[socket.node].is_stopped {
            if self.rng.one_in(20) {
                self.hang_up(id, Side::Reset);
            }
            return true;
        }
        let own = client as UserId + 1;
        let Some(account) = socket.seat.account else {
            if socket.seat.waits_for_login() {
                return self.act_eagerly(id);
            }
            if self.clock >= self.clients[client].pauses_until {
                let is_wrong = self.rng.one_in(20);
                self.log_in(id, own, is_wrong);
                return true;
            }
            return false;
        };
        let Some(habit) = self.rng.weighted(&self.plan.habits.0) else { return false };
        match HABITS[habit] {
            Habit::Chat => {
                let to = 1 + self.rng.below(self.users()) as UserId;
                self.chat(id, account, To::User(to));
            }
            Habit::GroupChat => {
                let group = 1 + self.rng.below(GROUPS) as GroupId;
                if self.record.is_member(group, account) || self.rng.one_in(20) {
                    self.chat(id, account, To::Group(group));
                }
            }
            Habit::Join => self.join(id, account),
            Habit::Ping => self.say(id, "{\"msgid\":202}"),
            Habit::Stall => {
                let stalled = self.rng.one_in(2);
                self.stall(id, stalled);
            }
            Habit::Logout => self.log_out(id, account),
            Habit::LogoutAndLogin => {
                self.log_out(id, account);
                let user = if self.rng.one_in(3) { self.anybody() } else { account };
                self.log_in(id, user, false);
            }
            Habit::LoginAsAnother => {
                let user = self.anybody();
                self.log_in(id, user, false);
            }
            Habit::LoginAsTheSame => self.log_in(id, account, false),
            Habit::WrongPassword => {
                let user = self.anybody();
                self.log_in(id, user, true);
            }
            Habit::FinishSending => self.finish_sending(id),
            Habit::HangUp => self.hang_up(id, Side::Closed),
            Habit::Reset => self.hang_up(id, Side::Reset),
            Habit::HangUpAndReturn => {
                let at = self.sockets[&id].node;
                self.hang_up(id, Side::Closed);
                self.come_to(client, at, account);
            }
        }
        true
    }

    /// A client does not read any more, or reads again.
    pub fn stall(&mut self, id: SocketId, stalled: bool) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.stalled = stalled;
        if let Some(asked) = &mut socket.seat.asked {
            asked.may_be_late |= stalled;
        }
    }

    fn anybody(&mut self) -> UserId {
        1 + self.rng.below(CLIENTS) as UserId
    }

    /// A client that waits for its login's reply may not wait for it with what follows.
    fn act_eagerly(&mut self, id: SocketId) -> bool {
        let Some(asked) = &self.sockets[&id].seat.asked else { return false };
        let user = asked.user;
        let is_alone = self.sockets.iter().all(|(other, socket)| *other == id || !socket.seat.may_be(user));
        match self.rng.below(16) {
            0 if is_alone && !asked.is_wrong => {
                let to = 1 + self.rng.below(self.users()) as UserId;
                self.chat(id, user, To::User(to));
            }
            1 if self.plan.is_hasty => self.finish_sending(id),
            2 if self.plan.is_hasty => self.hang_up(id, Side::Closed),
            3 if self.plan.is_hasty && self.rng.one_in(2) => self.log_out(id, user),
            _ => return false,
        }
        true
    }

    /// A client without a connection connects, and logs in.
    pub fn come(&mut self, client: usize) -> bool {
        if self.clock < self.clients[client].pauses_until {
            return false;
        }
        let at = self.rng.below(self.nodes.len());
        let user = if self.rng.one_in(10) { self.anybody() } else { client as UserId + 1 };
        self.come_to(client, at, user)
    }

    pub fn come_to(&mut self, client: usize, at: usize, user: UserId) -> bool {
        if !self.nodes[at].takes_connections() || self.nodes[at].is_stopped {
            return false;
        }
        let shard = self.rng.below(self.nodes[at].shards.len());
        let id = self.accept(at, shard, Seat { client, ..Seat::default() });
        self.clients[client].socket = Some(id);
        self.trace(|| format!("client {client} connects to node {at}: socket {id}"));
        self.log_in(id, user, false);
        true
    }

    pub fn say(&mut self, id: SocketId, text: &str) {
        self.trace(|| format!("socket {id} says {text}"));
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.input.extend_from_slice(text.as_bytes());
        }
    }

    pub fn log_in(&mut self, id: SocketId, user: UserId, is_wrong: bool) {
        let since = self.clock;
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if socket.seat.asked.is_some() {
            return;
        }
        let (is_same, may_be_late) = (socket.seat.account == Some(user), socket.stalled);
        socket.seat.asked = Some(Asked { user, is_wrong, since, is_same, is_last: false, may_be_late });
        if !is_same {
            socket.seat.account = None;
        }
        // This session may come before another one that was asked for earlier.
        let is_rival = |socket: &&mut Socket| socket.seat.asked.as_ref().is_some_and(|asked| asked.user == user);
        let rivals = self.sockets.values_mut().filter(is_rival);
        let eager: Vec<Key> = rivals.flat_map(|socket| std::mem::take(&mut socket.seat.eager)).collect();
        eager.iter().for_each(|key| self.record.is_floating(key));
        self.say(id, &login(user, is_wrong));
    }

    fn log_out(&mut self, id: SocketId, account: UserId) {
        let seq = self.with_seq(id, Owed::Logout);
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.seat.account = None;
            socket.seat.asked.iter_mut().for_each(|asked| asked.is_last = true);
        }
        self.say(id, &format!("{{\"msgid\":3,\"id\":{account}{seq}}}"));
    }

    fn finish_sending(&mut self, id: SocketId) {
        self.trace(|| format!("socket {id} has finished sending"));
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.side = Side::Finished;
            socket.seat.account = None;
            socket.seat.asked.iter_mut().for_each(|asked| asked.is_last = true);
        }
    }

    /// The client has done with a connection, which its node will see.
    pub fn hang_up(&mut self, id: SocketId, side: Side) {
        self.trace(|| format!("socket {id} hangs up: {side:?}"));
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        socket.side = socket.side.max(side);
        let client = socket.seat.client;
        socket.seat.account = None;
        socket.seat.owed.clear();
        socket.seat.asked = None;
        let sent = std::mem::take(&mut socket.seat.sent);
        let eager = std::mem::take(&mut socket.seat.eager);
        sent.iter().for_each(|key| self.record.is_uncertain(key));
        eager.iter().for_each(|key| self.record.is_floating(key));
        if self.clients[client].socket == Some(id) {
            self.clients[client].socket = None;
        }
    }

    /// The client finds a connection closed.
    pub fn hears_of_its_end(&mut self, id: SocketId, seat: Seat) {
        if self.clients[seat.client].socket == Some(id) {
            self.clients[seat.client].socket = None;
        }
        seat.sent.iter().for_each(|key| self.record.is_uncertain(key));
    }

    /// For two of three requests: a `seq`, which is owed a reply.
    fn with_seq(&mut self, id: SocketId, owed: Owed) -> String {
        if self.rng.one_in(3) {
            return String::new();
        }
        self.next_seq += 1;
        let seq = self.next_seq;
        if let Some(socket) = self.sockets.get_mut(&id) {
            socket.seat.owed.insert(seq, owed);
        }
        format!(",\"seq\":{seq}")
    }

    pub fn chat(&mut self, id: SocketId, from: UserId, to: To) {
        let is_poisoned = self.plan.poisons && self.rng.one_in(30);
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let is_certain = socket.seat.account == Some(from) && !self.nodes[socket.node].is_ending;
        let key = self.record.send(from, to, is_poisoned, is_certain);
        socket.seat.sent.push(key);
        if socket.seat.account.is_none() {
            socket.seat.eager.push(key);
        }
        let target = match to {
            To::User(to) => format!("\"msgid\":6,\"toid\":{to}"),
            To::Group(to) => format!("\"msgid\":10,\"groupid\":{to}"),
        };
        let pad = " ".repeat(self.rng.below(200));
        let poison = if is_poisoned { "!" } else { "" };
        let seq = self.with_seq(id, Owed::Chat(key));
        let text = format!(
            "{{{target},\"id\":{from},\"name\":\"u{from}\",\"time\":\"\",\"msg\":\"{}{poison}{pad}\"{seq}}}",
            key.number
        );
        self.say(id, &text);
    }

    fn join(&mut self, id: SocketId, account: UserId) {
        let group = 1 + self.rng.below(GROUPS) as GroupId;
        if self.record.is_member(group, account) && !self.rng.one_in(10) {
            return;
        }
        self.record.asks_to_join(group, account);
        let seq = self.with_seq(id, Owed::Join(group, account));
        self.say(id, &format!("{{\"msgid\":9,\"id\":{account},\"groupid\":{group}{seq}}}"));
    }

    // -- what comes -----------------------------------------------------------------------------------

    /// What a client makes of a message.
    pub fn receive(&mut self, id: SocketId, bytes: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
            panic!("no JSON: {}", String::from_utf8_lossy(bytes));
        };
        self.trace(|| format!("socket {id} reads {}", value.to_string().replace("  ", "")));
        match value["msgid"].as_i64() {
            Some(2) => self.login_reply(id, &value),
            Some(6 | 10) => {
                let Some(user) = self.sockets[&id].seat.reads_as else { panic!("a chat for nobody: {value}") };
                self.record.receive(user, &value);
            }
            Some(200) => self.ack(id, &value),
            Some(201) => self.refusal(id, &value),
            Some(203) => {}
            _ => panic!("what is {value}"),
        }
    }

    fn login_reply(&mut self, id: SocketId, value: &Value) {
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        let Some(asked) = socket.seat.asked.take() else { panic!("a login reply for nobody: {value}") };
        let (at, user, client) = (socket.node, asked.user, socket.seat.client);
        socket.seat.eager.clear();
        let waited = self.clock - asked.since;
        if !self.plan.faults && !asked.may_be_late {
            assert!(waited <= IN_TIME + Duration::from_secs(2), "a login was answered after {waited:?}");
        }
        if value["errno"] != 0 {
            socket.seat.was_refused = true;
            self.clients[client].pauses_until = self.clock + Duration::from_millis(200);
            return self.login_is_refused(at, &asked, waited, value);
        }
        assert!(!asked.is_wrong && !asked.is_same, "user {user} is let in: {value}");
        assert_eq!(value["id"], user);
        socket.seat.reads_as = Some(user);
        if !asked.is_last {
            socket.seat.account = Some(user);
            let holder = self.database().claim(user).map(|claim| claim.node);
            let has_it = holder == Some(self.nodes[at].id) || self.nodes[at].is_ending;
            assert!(has_it, "user {user} is logged in without a claim");
            let is_other = |(other, seat): (&SocketId, &Seat)| *other != id && seat.account == Some(user);
            let other = self.sockets.iter().map(|(id, socket)| (id, &socket.seat)).find(|other| is_other(*other));
            // Where the node ends, the session has, before its connection.
            let is_live = |at: usize| self.may_act(at) && !self.nodes[at].is_ending;
            let is_twice = is_live(at) && other.is_some_and(|(other, _)| is_live(self.sockets[other].node));
            assert!(!is_twice, "{user} is there twice");
        }
        for offline in value["offlinemsg"].as_array().into_iter().flatten() {
            let inner: Option<Value> = offline.as_str().and_then(|text| serde_json::from_str(text).ok());
            let Some(inner) = inner else { panic!("no offline message: {offline}") };
            self.record.receive(user, &inner);
        }
    }

    /// Whether there is a reason for it.
    fn login_is_refused(&mut self, at: usize, asked: &Asked, waited: Duration, value: &Value) {
        let (user, database) = (asked.user, self.database());
        let is_right = match value["errno"].as_i64() {
            Some(1) => asked.is_wrong,
            Some(2) => asked.is_same || !database.is_unclaimed_since(user, asked.since),
            // Its time is counted from when it was read.
            Some(20) => waited + Duration::from_millis(50) >= IN_TIME_FOR_HASH,
            Some(21) => database.has_failed || waited + Duration::from_millis(50) >= IN_TIME,
            Some(22) => self.nodes[at].is_ending,
            _ => false,
        };
        assert!(is_right, "user {user} is refused after {waited:?}: {value}");
    }

    fn ack(&mut self, id: SocketId, value: &Value) {
        let seq = value["seq"].as_i64();
        let owed = self.sockets.get_mut(&id).zip(seq).and_then(|(socket, seq)| socket.seat.owed.remove(&seq));
        let Some(owed) = owed else { panic!("a second reply, or one for nobody: {value}") };
        let is_done = value["errno"] == 0;
        match owed {
            Owed::Logout => assert!(is_done || self.may_be_refused(id, value, None), "{value}"),
            Owed::Join(group, user) if is_done || value["errno"] == 18 => self.record.join_is_acked(group, user),
            Owed::Join(..) => assert!(self.may_be_refused(id, value, None), "{value}"),
            Owed::Chat(key) => {
                let count = |name: &str| value[name].as_u64().map_or(0, |n| n as usize);
                let failed = count("failed");
                if is_done && failed == 0 {
                    let counts = count("delivered") + count("stored");
                    let counts = matches!(key.to, To::Group(_)).then_some(counts);
                    self.record.is_acked(key, counts);
                } else {
                    assert!(is_done || self.may_be_refused(id, value, Some(key)), "{key:?}: {value}");
                    self.record.is_uncertain(&key);
                }
            }
        }
    }

    /// A request without `seq` was refused.
    fn refusal(&mut self, id: SocketId, value: &Value) {
        assert!(self.may_be_refused(id, value, None), "{value}");
        let Some(socket) = self.sockets.get_mut(&id) else { return };
        if value["request"] == 9 && value["errno"] == 18 {
            return;
        }
        let sent = std::mem::take(&mut socket.seat.sent);
        sent.iter().for_each(|key| self.record.is_uncertain(key));
    }

    /// Whether there may be a reason for an error.
    fn may_be_refused(&self, id: SocketId, value: &Value, key: Option<Key>) -> bool {
        let Some(socket) = self.sockets.get(&id) else { return true };
        let is_poisoned = key.is_none_or(|key| self.record.message(&key).is_poisoned) && self.plan.poisons;
        match value["errno"].as_i64() {
            // The session was not there any more, or not yet.
            Some(13 | 14) => socket.seat.was_refused || socket.seat.account.is_none() || self.plan.faults,
            Some(17) => match key {
                Some(key @ Key { to: To::Group(group), .. }) => !self.record.was_member(group, &key),
                _ => true,
            },
            Some(18) => value["request"] == 9,
            Some(20) => self.plan.quota.is_some() || self.plan.faults,
            // Some of a group were not served, for whatever reason.
            Some(21) if value["request"] == 10 && self.plan.quota.is_some() => true,
            // A join that is not confirmed when its node stops.
            Some(21) if key.is_none() && self.nodes[socket.node].is_ending => true,
            Some(21) => is_poisoned || self.plan.faults,
            Some(22) => self.nodes[socket.node].is_ending,
            _ => false,
        }
    }
}
