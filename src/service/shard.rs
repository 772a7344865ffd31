//! A shard: its state, and its inputs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use chrono::{Local, TimeZone};

use super::call::Call;
use super::client::{Client, Hold, Moved, Web};
use super::cpp::Cpp;
use super::late::Late;
use super::letters::Translation;
use super::members::Groups;
use super::questions::{Burials, Questions};
use super::reason::Reason;
use super::receipts::Text;
use super::route::Routes;
use super::sums::Sums;
use super::users::Users;
use super::{Answer, Effect, Effects, Job, Lane, Letter, Now, Op, Settings, ShardCounts, Tag, Then, Timer};
use crate::home::Homes;
use crate::reactor::{CloseReason, ConnId, ConnMap, HangUp, ListenerId, Taken, Unwritten};
use crate::store::{StoreError, UserId, Write};
use crate::wire::proxy::BadHeader;
use crate::wire::{Broken, Errno, Refusal, Request, Split, http, msgid, reply, trace};

/// The number of objects, or frames, of one connection after which the others have their turn.
pub(super) const OBJECTS_A_TURN: usize = 32;
/// The number of unsettled requests of a connection at which it is not read any further…
const MAX_PENDING: u32 = 256;
/// …and the number of jobs in the pool and questions to other nodes at which no connection with any is read.
const MAX_JOBS: usize = 8192;
/// A claim's epoch bears in its upper bits the shard that has drawn it, so that no two are the same.
const EPOCH_BITS: u32 = 48;

/// The service's part that belongs to one reactor.
pub struct Shard {
    pub(super) index: usize,
    pub(super) settings: Settings,
    /// The connections of this reactor.
    pub(super) clients: ConnMap<Client>,
    /// The users whose home this is.
    pub(super) users: Users,
    /// How many of them are logged in.
    pub(super) sessions: usize,
    pub(super) routes: Routes,
    /// The groups whose home this is.
    pub(super) groups: Groups,
    pub(super) sums: Sums,
    /// The epoch of the last claim.
    pub(super) next_epoch: u64,
    /// The number of the last login or registration.
    pub(super) next_attempt: u64,
    pub(super) questions: Questions,
    pub(super) burials: Burials,
    /// The bus reaches others.
    pub(super) is_up: bool,
    /// Bytes that backlogs keep.
    pub(super) held: usize,
    /// Jobs in the pool.
    pub(super) jobs: usize,
    pub(super) shutting_down: bool,
    /// The number of shards that have begun to end, this one included: what their clients have sent is here by now.
    stopping: usize,
    wound_up: bool,
    /// The number of messages that were lost since then, since the store did not take them, and their senders.
    pub(super) lost: usize,
    pub(super) lost_by: BTreeSet<UserId>,
    /// The store has said that this node is taken for dead: nothing is done any more.
    is_marked: bool,
    /// The time of this input, and what is to be done about it.
    pub(super) now: Now,
    pub(super) fx: Effects,
    /// The last formatted time, and the second it is of.
    clock: (i64, String),
    /// The last chat that was translated.
    pub(super) translation: Option<Translation>,
    pub(super) counts: Arc<ShardCounts>,
}

impl Shard {
    /// Shard `index` of those that the homes tell of, at this time.
    pub fn new(index: usize, settings: Settings, now: Now) -> Self {
        Shard {
            index,
            settings,
            clients: ConnMap::default(),
            users: Users::default(),
            sessions: 0,
            routes: Routes::default(),
            groups: Groups::default(),
            sums: Sums::default(),
            next_epoch: (index as u64) << EPOCH_BITS,
            // So that shards give different times to the clients that they refuse.
            next_attempt: (index as u64) << 32,
            questions: Questions::default(),
            burials: Burials::default(),
            is_up: true,
            held: 0,
            jobs: 0,
            shutting_down: false,
            stopping: 0,
            wound_up: false,
            lost: 0,
            lost_by: BTreeSet::new(),
            is_marked: false,
            now,
            fx: Effects::default(),
            clock: (i64::MIN, String::new()),
            translation: None,
            counts: Arc::default(),
        }
    }

    /// Whether what each connection sent and got is logged.
    pub fn traces_wire(&self) -> bool {
        self.settings.trace_wire
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<ShardCounts> {
        Arc::clone(&self.counts)
    }

    /// The number of this shard's connections, and how many users are logged in on it.
    pub fn population(&self) -> (usize, usize) {
        (self.clients.len(), self.sessions)
    }

    /// Bytes that are kept for sessions besides what stands in their connections' queues.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Messages that could not be stored since [`Shard::stop`], or still wait for it, and of how many users they
    /// are.
    pub fn lost(&self) -> (usize, usize) {
        let waiting = |user: &&UserId| self.users.get(user).is_some_and(|user| user.unsettled() > 0);
        let mut users = self.lost_by.clone();
        users.extend(self.users.keys().filter(waiting));
        (self.lost + self.users.values().map(|user| user.unsettled()).sum::<usize>(), users.len())
    }

    /// Which shard a user or a group belongs to.
    pub(super) fn homes(&self) -> &Homes {
        &self.settings.homes
    }

    /// A connection was accepted, from `peer`: the client, or a proxy that will name it.
    pub fn opened(&mut self, conn: ConnId, peer: SocketAddr, listener: ListenerId, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.connection_opened(conn, peer, listener));
    }

    /// Bytes have arrived; `input` begins with what the last call left.
    pub fn input(&mut self, conn: ConnId, input: &[u8], now: Now, fx: &mut Effects) -> Taken {
        self.handle(now, fx, |shard| shard.objects(conn, input))
    }

    /// The client has finished sending; `rest` bytes of its input were left.
    pub fn ended(&mut self, conn: ConnId, rest: usize, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.input_ended(conn, rest));
    }

    /// The client has hung up while its input waits.
    pub fn hung_up(&mut self, conn: ConnId, how: HangUp, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.client_hung_up(conn, how));
    }

    /// A message with this tag was written whole.
    pub fn written(&mut self, _: ConnId, tag: Tag, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| match tag {
            Tag::Chat { session, receipt } => shard.chat_written(session, receipt),
            Tag::Translated(chat) => shard.chat_written(chat.session, chat.receipt),
            Tag::Row { session, row } => shard.rows_written(session, &[row]),
            Tag::Reply { session, rows } => shard.rows_written(session, &rows),
        });
    }

    /// These were taken back from a connection's queue: its client reads slowly, or [`Effect::Recall`] has asked
    /// for them.
    pub fn recalled(&mut self, conn: ConnId, unwritten: Vec<Unwritten<Tag>>, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.queue_recalled(conn, unwritten));
    }

    /// All that was queued for a slow reader is written.
    pub fn drained(&mut self, conn: ConnId, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.queue_drained(conn));
    }

    /// A connection is gone; `unwritten` did not get out.
    pub fn closed(
        &mut self,
        conn: ConnId,
        reason: CloseReason<Reason>,
        unwritten: Vec<Unwritten<Tag>>,
        now: Now,
        fx: &mut Effects,
    ) {
        log::debug!("{conn}: {}", reason.text());
        // The reactor has told how it read too slowly, and knows no users.
        if let CloseReason::SlowConsumer(_) = reason
            && let Some(user) = self.clients.get(conn).and_then(|client| client.user.as_deref())
        {
            log::info!("{conn} was the connection of user {}", user.session.user);
        }
        self.handle(now, fx, |shard| shard.connection_gone(conn, unwritten));
    }

    /// A connection has come from another shard, for a login.
    pub fn arrived(&mut self, conn: ConnId, moved: Moved, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.connection_arrived(conn, moved));
    }

    /// A letter from another shard, a job's answer, or news from the bus.
    pub fn letter(&mut self, letter: Letter, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.receive(letter));
    }

    /// A timer has fired.
    pub fn timer(&mut self, timer: Timer, now: Now, fx: &mut Effects) {
        self.handle(now, fx, |shard| shard.timer_fired(timer));
    }

    /// The process is to end: all users are logged out, what waits for them is stored, and they are disconnected
    /// once what they asked for is done. [`Effect::WoundUp`] follows.
    pub fn stop(&mut self, now: Now, fx: &mut Effects) {
        self.handle(now, fx, Shard::begin_to_stop);
    }

    /// Handles one input; what is to be done about it is added to `fx`.
    fn handle<R>(&mut self, now: Now, fx: &mut Effects, input: impl FnOnce(&mut Self) -> R) -> R {
        self.now = now;
        std::mem::swap(&mut self.fx, fx);
        let result = input(self);
        self.end();
        std::mem::swap(&mut self.fx, fx);
        result
    }

    fn connection_opened(&mut self, conn: ConnId, peer: SocketAddr, listener: ListenerId) {
        let mut client = Client::new(peer);
        if let Some(choice) = self.settings.listeners.get(listener.index()) {
            client.speaks(choice);
        }
        if self.settings.login_timeout.or(self.settings.idle_timeout).is_some() {
            client.tally(self.now.at);
        }
        self.clients.insert(conn, client);
        if !self.expect_proxy_header(conn) {
            return;
        }
        if self.shutting_down {
            self.refuse_and_close(conn, Errno::ShuttingDown.into(), Reason::ShuttingDown);
            return;
        }
        self.set_timers(conn);
    }

    /// Takes the objects out of what has come, as many as are one connection's turn.
    fn objects(&mut self, conn: ConnId, input: &[u8]) -> Taken {
        let Some(mut taken) = self.proxy_header(conn, input) else { return Taken { bytes: 0, more: false } };
        if let Some(client) = self.clients.get_mut(conn) {
            if let Some(tally) = &mut client.tally {
                tally.last_input = self.now.at;
            }
            if !client.splitter.inside_object() && !client.splitter.has_lengths() {
                client.framing.more(&input[taken..]);
            }
        }
        for _ in 0..OBJECTS_A_TURN {
            let Some(client) = self.clients.get_mut(conn).filter(|client| !client.closing) else {
                return Taken::all(input);
            };
            if !client.holds.is_empty() {
                return Taken { bytes: taken, more: false };
            }
            let limit = self.settings.max_message_of(client.user.is_some());
            let rest = &input[taken..];
            match client.splitter.next(rest, limit) {
                Ok(Split::Partial { skip }) => return Taken { bytes: taken + skip, more: false },
                Ok(Split::Object { start, end }) => {
                    // Its length, if it has one, stays before an object that has to be taken again.
                    let skip = if client.splitter.has_lengths() { 0 } else { start };
                    if !self.object(conn, rest, start..end) {
                        return Taken { bytes: taken + skip, more: false };
                    }
                    taken += end;
                }
                Err(Broken::Http) if self.settings.browsers.is_some() => return self.web_input(conn, input, taken),
                Err(broken) => self.stream_broke(conn, rest, broken),
            }
        }
        Taken { bytes: taken, more: taken < input.len() }
    }

    /// Handles the object that stands there in what has come. Returns false if it must wait: then it has still to be
    /// handled.
    fn object(&mut self, conn: ConnId, input: &[u8], at: Range<usize>) -> bool {
        let request = Request::parse(&input[at.clone()]);
        let request = match &request {
            Ok(request) => request,
            Err(refusal) => {
                self.note_object(conn, input, at, None);
                self.refuse_stream(conn, refusal.clone(), Reason::Unfollowable);
                return true;
            }
        };
        let number = request.number();
        let heard = self.hear(conn, request, number);
        let Some(client) = self.clients.get(conn) else { return true };
        if client.changes > 0 && client.must_wait(heard.msgid(number)) {
            self.hold(conn, Hold::Changes);
            return false;
        }
        let is_known = if client.uses_seq { None } else { Self::is_known(request, number, &heard) };
        self.note_object(conn, input, at, is_known);
        self.heard(conn, request, number, heard);
        true
    }

    /// Notes that an object has come, before it is handled.
    fn note_object(&mut self, conn: ConnId, input: &[u8], at: Range<usize>, is_known: Option<bool>) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        let rest = &input[at.end..];
        if self.settings.trace_wire {
            let from = if client.splitter.has_lengths() { 0 } else { at.start };
            log_input(conn, &input[from..at.end], rest);
        }
        client.note_object(is_known, rest);
        if client.cpp().is_some() {
            self.watch(conn, Cpp::sent);
        }
    }

    /// No object can be found in what has come.
    pub(super) fn stream_broke(&mut self, conn: ConnId, input: &[u8], broken: Broken) {
        if self.settings.trace_wire {
            log_input(conn, input, b"");
        }
        self.refuse_broken(conn, broken);
    }

    fn input_ended(&mut self, conn: ConnId, rest: usize) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.ended = true;
        if rest > 0 && client.splitter.expects_proxy() {
            self.refuse_proxy_header(conn, BadHeader::Malformed);
        } else if client.web.is_some() {
            self.web_ended(conn);
        } else if !client.splitter.may_end(rest) {
            let refusal = Refusal::new(Errno::Unfollowable, "the stream ended inside an object");
            self.refuse_stream(conn, refusal, Reason::Unfollowable);
        } else {
            self.close_if_done(conn);
        }
    }

    fn receive(&mut self, letter: Letter) {
        match letter {
            Letter::Chat { to, body, receipt } => self.deliver(to, Text::Shared(body), receipt),
            Letter::GroupChat(message) => self.group_chat_came(message),
            Letter::Fan { to, message } => self.fan(&to, message),
            Letter::Joining { group, user } => self.joining(group, user),
            Letter::JoinStored { group, user, to, outcome } => self.join_stored(group, user, to, outcome),
            Letter::Joined { to, outcome } => self.joined(to, outcome),
            Letter::Settled { receipt, delivery, open } => self.settle(receipt, delivery, open),
            Letter::Stopping => self.stopping += 1,
            Letter::Owed { conn, user } => self.owe_send(conn, user),
            Letter::FanSize { key, size } => self.fan_size(key, size),
            Letter::FanPart { key, part, open } => self.fan_part(key, part, open),
            Letter::Freed { user, debts } => self.freed(user, debts),
            Letter::Bus(event) => self.bus_event(event),
            Letter::Done(done) => {
                self.jobs -= 1;
                self.done(done.then, done.answer);
            }
        }
    }

    fn timer_fired(&mut self, timer: Timer) {
        match timer {
            Timer::Login(conn) => self.login_timer(conn),
            Timer::Attempt { conn, number } => self.attempt_timer(conn, number),
            Timer::Idle(conn) => self.idle_timer(conn),
            Timer::Head(conn) => self.head_timer(conn),
            Timer::Rate(conn) => self.unhold(conn, Hold::Rate),
            Timer::Backlog(session) => self.with_backlog(session, |backlog, cx| backlog.time(cx)),
            Timer::Half(session) => self.half_timer(session),
            Timer::Doubt { whose, key } => self.look_what_was_stored(whose, key),
            Timer::Release(session) => self.release(session, None),
            Timer::Patience => self.patience_timer(),
            Timer::Dead(node) => self.holder_died(node),
        }
    }

    fn begin_to_stop(&mut self) {
        self.shutting_down = true;
        self.forget_idle_routes();
        (0..self.homes().reactors()).for_each(|shard| self.send(shard, Letter::Stopping));
        let mut waiting: Vec<_> = self.users.values_mut().flat_map(|user| user.end_of_service()).collect();
        self.users.retain(|_, user| !user.tidy());
        waiting.sort_unstable_by_key(|login| login.attempt); // the same order in every run of a simulation
        for login in waiting {
            self.refuse_login(&login, &Errno::ShuttingDown.into());
        }
        for conn in self.clients.ids().collect::<Vec<_>>() {
            let Some(client) = self.clients.get_mut(conn) else { continue };
            // Its turn to be hashed may be a minute away.
            let would_be_hashed = client.give_up();
            if would_be_hashed || client.holds.has(Hold::Request) && client.user.is_none() {
                self.refuse_attempt(conn, &Errno::ShuttingDown.into());
            }
            self.log_out(conn, None);
            self.close_if_done(conn);
        }
    }

    /// What is left to be done at the end of every input.
    pub(super) fn end(&mut self) {
        if !self.routes.marked.is_empty() {
            self.store_marked();
        }
        if self.routes.count >= self.routes.many {
            self.forget_idle_routes();
        }
        self.counts.jobs.set(self.jobs);
        self.counts.questions.set(self.questions_open());
        let is_done = self.clients.is_empty() && self.users.is_empty() && self.jobs == 0;
        if self.stopping == self.homes().reactors() && !self.wound_up && is_done {
            self.wound_up = true;
            self.fx.push(Effect::WoundUp);
        }
    }

    /// A request in canon, unless it has come too fast. `number`: its own, if that can be read. `asked`: the `seq` that
    /// its dialect needs for its ack.
    pub(super) fn request(&mut self, conn: ConnId, request: &Request, number: Option<i64>, asked: Option<i64>) {
        let seq = request.seq();
        if let Some(refusal) = self.is_too_fast(conn, request.object().len()) {
            return self.refuse(conn, number, seq.ok().flatten().or(asked), &refusal);
        }
        let (msgid, seq) = match (number.map_or_else(|| request.msgid(), Ok), seq) {
            (Ok(msgid), Ok(seq)) => (msgid, seq),
            (_, Err(refusal)) => return self.refuse(conn, number, None, &refusal),
            (Err(refusal), Ok(seq)) => return self.refuse(conn, None, seq, &refusal),
        };
        if seq.is_some()
            && let Some(client) = self.clients.get_mut(conn)
            && !std::mem::replace(&mut client.uses_seq, true)
            && client.stop_watching()
        {
            self.fx.push(Effect::Unpace(conn));
        }
        self.call(&Call { conn, msgid, seq: seq.or(asked), request, object: request.object() });
    }

    /// Notes a message of a client whose messages are spaced out, or one for it: is it a program, which needs no such
    /// thing?
    pub(super) fn watch(&mut self, conn: ConnId, is_program: impl FnOnce(&mut Cpp, Instant) -> bool) {
        let now = self.now.at;
        if self.clients.get_mut(conn).and_then(Client::cpp).is_some_and(|cpp| is_program(cpp, now)) {
            log::debug!("{conn}: is a program: its messages are not spaced out any more");
            self.fx.push(Effect::Unpace(conn));
        }
    }

    /// Sends a reply in the connection's dialect and framing, if the connection is still there.
    pub(super) fn reply(&mut self, conn: ConnId, write: impl FnOnce(&mut Vec<u8>)) {
        self.reply_with(conn, false, write);
    }

    /// `own_write`: the client reads one object a time, and waits for this one.
    pub(super) fn reply_with(&mut self, conn: ConnId, own_write: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(client) = self.clients.get(conn).filter(|client| !client.is_closed_socket()) else { return };
        let framing = client.framing();
        if client.speaker.is_none() {
            return self.fx.reply(conn, framing, own_write, write);
        }
        let mut canon = Vec::new();
        write(&mut canon);
        let theirs = self.reply_in_dialect(conn, &canon);
        if !theirs.is_empty() {
            self.fx.reply(conn, framing, own_write, |out| out.extend_from_slice(&theirs));
        }
    }

    pub(super) fn refuse(&mut self, conn: ConnId, request: Option<i64>, seq: Option<i64>, refusal: &Refusal) {
        self.counts.refusals.of(refusal.errno).add(1);
        // Clients that read one object a time wait for exactly these two.
        let alone = matches!(request, Some(msgid::LOGIN | msgid::REGISTER));
        self.reply_with(conn, alone, |out| reply::refused(out, request, seq, refusal));
    }

    /// For what no request can be blamed for: says why, then closes.
    pub(super) fn refuse_and_close(&mut self, conn: ConnId, refusal: Refusal, reason: Reason) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        if !std::mem::replace(&mut client.closing, true) {
            client.give_up();
            log::debug!("{conn}: {}", refusal.text);
            if matches!(client.web.as_deref(), Some(Web::Head)) {
                return self.refuse_http(conn, http::Refused::Timeout);
            }
            self.refuse(conn, None, None, &refusal);
            self.close(conn, reason);
        }
    }

    /// The same for input that is no message.
    pub(super) fn refuse_broken(&mut self, conn: ConnId, broken: Broken) {
        let (errno, reason) = match broken {
            Broken::TooLarge => (Errno::TooLarge, Reason::TooLarge),
            Broken::NotAnObject | Broken::TooDeep | Broken::WrongLength | Broken::Http => {
                (Errno::Unfollowable, Reason::Unfollowable)
            }
        };
        self.refuse_stream(conn, Refusal::new(errno, broken.to_string()), reason);
    }

    /// The same where the stream cannot be followed: requests before that still get their replies.
    pub(super) fn refuse_stream(&mut self, conn: ConnId, refusal: Refusal, reason: Reason) {
        match self.clients.get_mut(conn) {
            Some(client) if client.pending > 0 && !client.holds.has(Hold::Request) && !client.closing => {
                log::debug!("{conn}: {}", refusal.text);
                client.closing = true;
                client.close_when_paid = Some(reason);
                self.refuse(conn, None, None, &refusal);
            }
            _ => self.refuse_and_close(conn, refusal, reason),
        }
    }

    /// Notes that a request of this connection will be settled later.
    pub(super) fn owe(&mut self, conn: ConnId) {
        let crowded = self.is_crowded();
        if let Some(client) = self.clients.get_mut(conn) {
            client.pending += 1;
            if !client.holds.has(Hold::Pending) && (client.pending >= MAX_PENDING || crowded) {
                self.hold(conn, Hold::Pending);
            }
        }
    }

    /// Notes that what a request of this connection changes will be settled later.
    pub(super) fn begin_change(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.changes += 1;
        }
    }

    /// A change is settled. What is to see it goes on: a list, a group chat, or a login.
    pub(super) fn end_change(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.changes -= 1;
        if client.changes == client.joins && client.holds.has(Hold::Changes) {
            self.unhold(conn, Hold::Changes);
        }
        self.goes_on(conn);
    }

    /// Questions to other nodes and to the bus that are not answered.
    fn questions_open(&self) -> usize {
        self.routes.open + self.questions.open.len()
    }

    /// Whether the pool or other nodes are behind.
    fn is_crowded(&self) -> bool {
        self.jobs + self.questions_open() >= MAX_JOBS
    }

    /// A request of this connection is settled.
    pub(super) fn paid(&mut self, conn: ConnId) {
        let crowded = self.is_crowded();
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.pending -= 1;
        let close = client.close_when_paid.take_if(|_| client.pending == 0);
        let has_room = client.pending <= MAX_PENDING / 2 && (!crowded || client.pending == 0);
        if has_room && client.holds.has(Hold::Pending) {
            self.unhold(conn, Hold::Pending);
        }
        if let Some(reason) = close {
            self.close(conn, reason);
        }
        self.goes_on(conn);
        self.close_if_done(conn);
    }

    /// Closes a connection that has nothing more to say, once it is owed nothing more.
    pub(super) fn close_if_done(&mut self, conn: ConnId) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        if client.pending == 0 && (client.ended || self.shutting_down) && !std::mem::replace(&mut client.closing, true)
        {
            let reason = if client.ended { Reason::ByClient } else { Reason::ShuttingDown };
            self.close(conn, reason);
        }
    }

    /// Closes a connection behind what is queued for it. Its session ends before, so that nothing waits for its reader.
    pub(super) fn close(&mut self, conn: ConnId, reason: Reason) {
        self.end_with_connection(conn);
        self.say_close(conn, reason);
        self.fx.push(Effect::Close(conn, reason));
    }

    pub(super) fn submit(&mut self, lane: Lane, then: Then, op: Op) {
        self.submit_with(lane, then, op, None);
    }

    /// The same for a job to which more may come while it waits for a worker.
    pub(super) fn submit_with(&mut self, lane: Lane, then: Then, op: Op, late: Option<Late>) {
        self.jobs += 1;
        self.fx.push(Effect::Submit(lane, Box::new(Job { shard: self.index, then, op, late })));
    }

    /// A letter to a shard, or to this one, which has it at once.
    pub(super) fn send(&mut self, shard: usize, letter: Letter) {
        if shard == self.index {
            self.receive(letter);
        } else {
            self.fx.push(Effect::Post(shard, letter));
        }
    }

    /// A write that concerns this user's account or offline messages.
    pub(super) fn write(&mut self, user: UserId, then: Then, write: Write) {
        self.submit(self.lane(user), then, Op::Write(write));
    }

    /// The lane of everything about one user's account and offline messages, or about one group's members.
    pub(super) fn lane(&self, id: u32) -> Lane {
        Lane::Number(id as usize % self.settings.lanes)
    }

    /// Hands a job's answer to where it was asked for.
    fn done(&mut self, then: Then, answer: Result<Answer, StoreError>) {
        if matches!(answer, Err(StoreError::Marked)) {
            if !std::mem::replace(&mut self.is_marked, true) {
                self.fx.push(Effect::Marked);
            }
            return;
        }
        match then {
            Then::AccountRead(login) => self.account_read(login, answer),
            Then::Verified(login) => self.verified(login, answer),
            Then::Claimed(session) => self.claimed(session, answer),
            Then::Nothing => {}
            Then::Loaded(session) => self.loaded(session, answer),
            Then::Registered { conn, from, attempt } => self.registered(conn, from, attempt, answer),
            Then::Ack { to, request } => self.acked(to, request, answer),
            Then::GroupJoined { group, user, to } => self.group_joined(group, user, to, answer),
            Then::Reply { to, request } => self.was_read(to, request, answer),
            Then::Members(group) => self.members_loaded(group, answer),
            Then::Stored(whose) => self.stored(whose, answer),
            Then::JoinLooked(key) => self.join_looked_up(key, answer),
            Then::Looked(user) => self.holder_looked_up(user, answer),
            Then::Page(session) => self.page_read(session, answer),
            Then::Removed(session) => self.removed(session, answer),
            Then::Released { session, ended } => self.released(session, ended, answer),
            Then::Remembered(conn) => self.paid(conn),
        }
    }

    /// The server's local time, as chats bear it.
    pub(super) fn local_time(&mut self) -> &str {
        let now = self.now;
        if self.clock.0 != now.unix {
            let time = Local.timestamp_opt(now.unix, 0).earliest();
            let text = time.map(|time| time.format("%Y-%m-%d %H:%M:%S").to_string());
            self.clock = (now.unix, text.unwrap_or_default());
        }
        &self.clock.1
    }
}

/// Logs what has come from a connection; `rest` came behind it.
#[cold]
pub(super) fn log_input(conn: ConnId, message: &[u8], rest: &[u8]) {
    log::info!(target: trace::TARGET, "{conn}: <- {}", trace::shown(message, rest));
}
