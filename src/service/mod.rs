//! The chat: what the messages mean, and the promises about them.
//!
//! The service does no I/O and reads no clock. It is cut into shards, one for each reactor; a
//! [`Shard`] takes an input and the time and fills a list of [`Effects`], which somebody else
//! carries out: the server with sockets and threads, a test with a loop. Shards share nothing.
//! They write each other [`Letter`]s, and everything about order rests on those arriving in the
//! order in which they were sent.
//!
//! | file | what |
//! | --- | --- |
//! | `mod.rs` | inputs, and the table of handlers |
//! | `account.rs` | register, log in, log out |
//! | `attempts.rs` | that logins and registrations are answered in time |
//! | `hashing.rs` | the queue of password hashes |
//! | `memo.rs` | passwords that need no second hash |
//! | `presence.rs` | who lives on which shard: the handshakes around a session's begin and end |
//! | `session.rs` | one client, one session, and how a slow reader's messages are drained |
//! | `ways.rs` | messages to users who are not on this node |
//! | `cluster.rs` | what other nodes and the bus have to tell |
//! | `chat.rs` | one-to-one chat, and what becomes of a message |
//! | `groups.rs` | groups, their cached members, fan-out |
//! | `friends.rs` | friends and lists |
//! | `limits.rs` | what clients may not exceed |
//! | `throttle.rs` | so many an hour |
//! | `jobs.rs` | what blocks, for the workers |
//! | `counts.rs` | what is counted |

mod account;
mod attempts;
mod chat;
mod cluster;
mod counts;
mod effects;
mod friends;
mod groups;
mod hashing;
mod jobs;
mod letters;
mod limits;
mod memo;
mod presence;
mod session;
mod throttle;
mod ways;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{Local, TimeZone};
use ipnet::IpNet;

pub use counts::{Asks, Limit, MessageKind, PasswordWork, Path, ShardCounts};
pub use effects::{Effect, Effects, Payload};
pub use hashing::{HashQueue, Place};
pub use jobs::{Answer, Done, Job, JobRunner, Lane, Op, Then};
pub use letters::{Fate, Letter, Receipt, Tag, Timer};
pub use limits::{Limits, address_is_full};
pub use memo::Memo;
pub use throttle::Throttle;

use crate::bus::envelope;
use crate::reactor::{CloseReason, ConnId, ConnMap, HangUp, Taken, Unwritten};
use crate::store::{GroupId, NodeId, StoreError, UserId};
use crate::wire::proxy::BadHeader;
use crate::wire::{Broken, Errno, Refusal, Request, Split, msgid, reply};
use cluster::Early;
use groups::{FanOuts, GroupCache};
use jobs::{Keeping, Login};
use letters::Waiting;
use presence::Leaving;
use session::Client;
use ways::{Asked, Way};

/// What an operator can set, and who this node is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This node, by the name that it has in the store.
    pub node: NodeId,
    /// The largest object of a client that has not logged in, in bytes.
    pub max_message_before_login: usize,
    /// The largest object of one that has, in bytes.
    pub max_message: usize,
    /// How long a connection may stay without a login; `None`: for ever.
    pub login_timeout: Option<Duration>,
    /// How long a connection may stay silent; `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// The soft mark of a connection's queue, in bytes.
    pub high_water: usize,
    /// With so many ways to users who are not on this node, a shard forgets those that nothing uses.
    pub ways: usize,
    /// How many lanes the pool has.
    pub lanes: usize,
    /// Treat clients that end their objects with NUL and never use `seq` as the C++ client needs.
    pub legacy_client: bool,
    /// There are no other nodes.
    pub alone: bool,
    /// Somebody else may change who is in a group: members are read for every message.
    pub mixed: bool,
    /// Networks whose connections begin with a PROXY header, while all others are refused; none:
    /// there is no proxy.
    pub proxies: Arc<[IpNet]>,
    pub limits: Limits,
    /// Where passwords wait to be hashed, on the whole node.
    pub hashes: Arc<HashQueue>,
}

/// A node that is alone, with the bounds that the flags have by default.
impl Default for Settings {
    fn default() -> Self {
        Settings {
            node: NodeId(1),
            max_message_before_login: 8 * 1024,
            max_message: 64 * 1024,
            login_timeout: None,
            idle_timeout: None,
            high_water: 1 << 20,
            ways: 64 * 1024,
            lanes: 1,
            legacy_client: false,
            alone: true,
            mixed: false,
            proxies: Arc::default(),
            limits: Limits::default(),
            hashes: HashQueue::new(1),
        }
    }
}

/// The time of an input.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub at: Instant,
    /// Seconds since 1970, UTC.
    pub unix: i64,
}

/// After so many objects of one connection the others have their turn.
const OBJECTS_A_TURN: usize = 32;
/// A connection with so many unsettled requests is not read any further…
const MAX_PENDING: u32 = 256;
/// …nor is one with any while a shard has so many jobs in the pool and questions to other nodes.
const MAX_JOBS: usize = 8192;

/// One request on its way to its handler.
struct Call<'a> {
    conn: ConnId,
    msgid: i64,
    seq: Option<i64>,
    request: &'a Request<'a>,
    /// The object as it came.
    object: &'a [u8],
    now: Now,
}

/// Carries a request out, or says why not.
type RequestHandler = fn(&mut Shard, &Call<'_>, &mut Effects) -> Result<(), Refusal>;

/// The handlers by msgid, as in the original: the network side knows none of them by name.
const HANDLERS: &[(i64, Asks, RequestHandler)] = &[
    (msgid::ONE_CHAT, Asks::Chat, Shard::one_chat),
    (msgid::GROUP_CHAT, Asks::GroupChat, Shard::group_chat),
    (msgid::LOGIN, Asks::Login, Shard::login),
    (msgid::LOGOUT, Asks::Logout, Shard::logout),
    (msgid::REGISTER, Asks::Register, Shard::register),
    (msgid::ADD_FRIEND, Asks::AddFriend, Shard::add_friend),
    (msgid::CREATE_GROUP, Asks::CreateGroup, Shard::create_group),
    (msgid::JOIN_GROUP, Asks::JoinGroup, Shard::join_group),
    (msgid::LIST, Asks::List, Shard::list),
    (msgid::PING, Asks::Ping, Shard::ping),
    (msgid::PONG, Asks::Pong, Shard::pong),
];

/// The service's part that belongs to one reactor.
pub struct Shard {
    index: usize,
    /// How many shards there are.
    shards: usize,
    settings: Settings,
    /// The connections of this reactor.
    clients: ConnMap<Client>,
    /// Where every user of this node lives, whichever shard it is.
    presence: HashMap<UserId, ConnId>,
    /// Of those, users whose session is ending on another shard: what comes now waits here for its
    /// end.
    held: HashMap<UserId, Vec<Waiting>>,
    /// Users of this shard whose session is ending.
    leaving: HashMap<UserId, Leaving>,
    /// Users of other shards whose session has ended, but for its claim.
    ending: HashSet<UserId>,
    /// Users whose claim the store would not take back yet, and which it is.
    unreleased: HashMap<UserId, u64>,
    /// Logins that wait for a session to end.
    waiting: HashMap<UserId, Vec<Login>>,
    /// Claims of this shard on their way, by epoch, and what other nodes have sent by them already.
    claiming: HashMap<u64, Vec<Early>>,
    /// Logins that have their claim, by its epoch, until the user's channel is listened to.
    listening: HashMap<u64, Login>,
    /// Of the last claim.
    next_epoch: u64,
    /// Of the last login or registration.
    next_attempt: u64,
    /// Ways to users who are not on this node.
    ways: HashMap<UserId, Way>,
    /// With so many, some are forgotten.
    many_ways: usize,
    /// What is to be stored at the end of this input, or before its next job.
    keeping: Vec<Keeping>,
    /// Ways whose queue is to be stored at the end of this input.
    marked: Vec<UserId>,
    /// What other nodes and the bus owe an answer to, in the order in which it was asked.
    asked: BTreeMap<u64, Asked>,
    next_question: u64,
    /// Users of this node, by what it knows, whom the store has elsewhere.
    lost: HashSet<UserId>,
    /// Since when the bus is away.
    down_since: Option<Instant>,
    /// This node was stopped for a while, at this moment: its claims are in doubt until they have
    /// been checked.
    doubt: Option<Instant>,
    groups: GroupCache,
    fans: FanOuts,
    /// Jobs in the pool.
    jobs: usize,
    shutting_down: bool,
    wound_up: bool,
    /// The time of this input.
    now: Now,
    /// The last formatted time, and the second it is of.
    clock: (i64, String),
    counts: Arc<ShardCounts>,
}

impl Shard {
    /// Shard `index` of `shards`, at this time.
    pub fn new(index: usize, shards: usize, settings: Settings, now: Now) -> Self {
        let many_ways = settings.ways;
        Shard {
            index,
            shards,
            settings,
            clients: ConnMap::default(),
            presence: HashMap::new(),
            held: HashMap::new(),
            leaving: HashMap::new(),
            ending: HashSet::new(),
            unreleased: HashMap::new(),
            waiting: HashMap::new(),
            claiming: HashMap::new(),
            listening: HashMap::new(),
            next_epoch: envelope::first_epoch(index),
            // So that shards tell those they refuse different times.
            next_attempt: (index as u64) << 32,
            ways: HashMap::new(),
            many_ways,
            keeping: Vec::new(),
            marked: Vec::new(),
            asked: BTreeMap::new(),
            next_question: 0,
            lost: HashSet::new(),
            down_since: None,
            doubt: None,
            groups: GroupCache::default(),
            fans: FanOuts::default(),
            jobs: 0,
            shutting_down: false,
            wound_up: false,
            now,
            clock: (i64::MIN, String::new()),
            counts: Arc::default(),
        }
    }

    /// What it counts.
    pub fn counts(&self) -> Arc<ShardCounts> {
        Arc::clone(&self.counts)
    }

    /// A connection was accepted, from `peer`: the client, or a proxy that will tell whose it is.
    pub fn opened(&mut self, conn: ConnId, peer: SocketAddr, now: Now, fx: &mut Effects) {
        self.now = now;
        let mut client = Client::new(peer);
        if self.settings.login_timeout.or(self.settings.idle_timeout).is_some() {
            client.tally(now.at);
        }
        self.clients.insert(conn, client);
        if !self.expect_proxy_header(conn, fx) {
            return;
        }
        if self.shutting_down {
            self.refuse_and_close(conn, Errno::ShuttingDown.into(), CloseReason::ShuttingDown, fx);
            return;
        }
        if let Some(timeout) = self.settings.login_timeout {
            fx.push(Effect::Timer(now.at + timeout, Timer::Login(conn)));
        }
        if let Some(timeout) = self.settings.idle_timeout {
            fx.push(Effect::Timer(now.at + timeout / 2, Timer::Idle(conn)));
        }
    }

    /// Bytes have arrived; `input` begins with what the last call left.
    pub fn input(&mut self, conn: ConnId, input: &[u8], now: Now, fx: &mut Effects) -> Taken {
        self.now = now;
        let taken = self.objects(conn, input, now, fx);
        self.end(fx);
        taken
    }

    fn objects(&mut self, conn: ConnId, input: &[u8], now: Now, fx: &mut Effects) -> Taken {
        let Some(mut taken) = self.proxy_header(conn, input, fx) else { return Taken { bytes: 0, more: false } };
        if let Some(client) = self.clients.get_mut(conn) {
            if let Some(tally) = &mut client.tally {
                tally.last_input = now.at;
            }
            if !client.splitter.inside_object() {
                client.framing.more(&input[taken..]);
            }
        }
        for _ in 0..OBJECTS_A_TURN {
            let Some(client) = self.clients.get_mut(conn) else { return Taken { bytes: input.len(), more: false } };
            if client.closing {
                return Taken { bytes: input.len(), more: false };
            }
            if client.is_paused() {
                return Taken { bytes: taken, more: false };
            }
            let limit = match client.session {
                Some(_) => self.settings.max_message,
                None => self.settings.max_message_before_login,
            };
            match client.splitter.next(&input[taken..], limit) {
                Ok(Split::Partial { skip }) => return Taken { bytes: taken + skip, more: false },
                Ok(Split::Object { start, end }) => {
                    let object = &input[taken + start..taken + end];
                    if client.changes > 0 && client.reads_changes(object, &self.groups) {
                        client.behind_changes = true;
                        fx.push(Effect::Pause(conn));
                        return Taken { bytes: taken + start, more: false };
                    }
                    taken += end;
                    client.framing.object_ended(&input[taken..]);
                    self.object(conn, object, now, fx);
                }
                Err(broken) => {
                    let (errno, reason) = match broken {
                        Broken::TooLarge => (Errno::TooLarge, CloseReason::TooLarge),
                        Broken::NotAnObject | Broken::TooDeep => (Errno::Unfollowable, CloseReason::Unfollowable),
                    };
                    self.refuse_stream(conn, Refusal::new(errno, broken.to_string()), reason, fx);
                }
            }
        }
        Taken { bytes: taken, more: taken < input.len() }
    }

    /// The client has finished sending; `rest` bytes of its input were left.
    pub fn ended(&mut self, conn: ConnId, rest: usize, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.ended = true;
        if rest > 0 && client.header_due {
            self.refuse_proxy_header(conn, BadHeader::Malformed, fx);
        } else if rest > 0 || client.splitter.inside_object() {
            let refusal = Refusal::new(Errno::Unfollowable, "the stream ended inside an object");
            self.refuse_stream(conn, refusal, CloseReason::Unfollowable, fx);
        } else {
            self.close_if_done(conn, fx);
        }
    }

    /// The client has hung up while its input waits.
    pub fn hung_up(&mut self, conn: ConnId, how: HangUp, fx: &mut Effects) {
        self.client_hung_up(conn, how, fx);
        self.end(fx);
    }

    /// A message with this tag was written whole.
    pub fn written(&mut self, conn: ConnId, tag: Tag, fx: &mut Effects) {
        match tag {
            Tag::Chat { to, receipt } => {
                if !self.begun_was_written(conn, to, fx) {
                    self.settle(receipt, Fate::Delivered, fx);
                }
            }
            Tag::Offline { user, rows } => self.offline_written(conn, user, rows, fx),
            Tag::Barrier { user } => self.barrier_passed(user, fx),
        }
        self.end(fx);
    }

    /// A slow reader's queue has passed the mark, and these were taken back from it.
    pub fn high_water(&mut self, conn: ConnId, recalled: Vec<Unwritten<Tag>>, fx: &mut Effects) {
        self.begin_spill(conn, recalled, fx);
        self.end(fx);
    }

    /// A slow reader has read all that was queued.
    pub fn drained(&mut self, conn: ConnId, fx: &mut Effects) {
        self.queue_drained(conn, fx);
        self.end(fx);
    }

    /// A connection is gone; `unwritten` did not get out.
    pub fn closed(&mut self, conn: ConnId, reason: CloseReason, unwritten: Vec<Unwritten<Tag>>, fx: &mut Effects) {
        log::debug!("{conn}: {}", reason.text());
        if let Some(client) = self.clients.remove(conn) {
            self.client_gone(conn, client, unwritten, fx);
        }
        self.end(fx);
    }

    /// A letter from another shard, or a job's answer.
    pub fn letter(&mut self, letter: Letter, now: Now, fx: &mut Effects) {
        self.now = now;
        match letter {
            Letter::Chat { to, body, receipt } => self.deliver(to, chat::Text::Shared(body), receipt, fx),
            Letter::GroupChat { to, body, receipt } => self.deliver_group(to, body, receipt, fx),
            Letter::Settled { receipt, fate } => self.settle(receipt, fate, fx),
            Letter::FanSettled { key, part } => self.fan_settled(key, part, fx),
            Letter::Join { user, conn, epoch } => self.peer_joined(user, conn, epoch, fx),
            Letter::JoinSeen { user, conn, epoch } => self.join_seen(user, conn, epoch, fx),
            Letter::Leave { user, conn } => self.peer_leaves(user, conn, fx),
            Letter::LeaveSeen { user, conn } => self.leave_seen(user, conn, fx),
            Letter::Gone { user, conn } => self.peer_gone(user, conn, fx),
            Letter::Free { user } => self.peer_free(user, fx),
            Letter::Member { group, user, shard, key } => self.peer_joined_group(group, user, shard, key, fx),
            Letter::MemberSeen { key } => self.member_seen(key, fx),
            Letter::Drain { user } => self.drain_one(user, fx),
            Letter::Disown { user, epoch } => self.disown(user, epoch, fx),
            Letter::Stale { user, conn } => self.end_stale(user, conn, fx),
            Letter::Bus(event) => self.bus_event(event, fx),
            Letter::NodeDied => self.node_died(fx),
            Letter::Claims { as_of, claims } => self.check_claims(as_of, &claims, fx),
            Letter::Done(done) => {
                self.jobs -= 1;
                self.done(done.then, done.answer, now, fx);
            }
        }
        self.end(fx);
    }

    /// A timer has fired.
    pub fn timer(&mut self, timer: Timer, now: Now, fx: &mut Effects) {
        self.now = now;
        match timer {
            Timer::Login(conn) => self.login_timer(conn, now, fx),
            Timer::Attempt { conn, number } => self.attempt_timer(conn, number, fx),
            Timer::Idle(conn) => self.idle_timer(conn, now, fx),
            Timer::Rate(conn) => self.rate_timer(conn, fx),
            Timer::Drain(conn) => self.retry_page(conn, fx),
            Timer::Remove(removal) => self.retry_remove(*removal, fx),
            Timer::Release { user, epoch } => self.release(user, epoch, fx),
            Timer::Questions => self.expire_questions(fx),
            Timer::Debts => self.forgive_debts(fx),
        }
        self.end(fx);
    }

    /// The process is to end: everybody is logged out and disconnected, once what they asked for
    /// is done. [`Effect::WoundUp`] follows.
    pub fn stop(&mut self, fx: &mut Effects) {
        self.shutting_down = true;
        for login in std::mem::take(&mut self.waiting).into_values().flatten() {
            self.refuse_login(&login, &Errno::ShuttingDown.into(), fx);
        }
        let conns: Vec<ConnId> = self.clients.ids().collect();
        for conn in conns {
            let Some(client) = self.clients.get_mut(conn) else { continue };
            // Its turn to be hashed may be a minute away.
            let would_be_hashed = client.give_up();
            if client.waiting && client.session.is_none() {
                self.refuse_and_close(conn, Errno::ShuttingDown.into(), CloseReason::ShuttingDown, fx);
                continue;
            }
            if would_be_hashed {
                self.refuse_attempt(conn, &Errno::ShuttingDown.into(), fx);
            }
            self.close_if_done(conn, fx);
        }
        self.end(fx);
    }

    /// What is left to be done at the end of every input.
    fn end(&mut self, fx: &mut Effects) {
        if !self.keeping.is_empty() {
            self.keep_all(fx);
        }
        self.keep_marked(fx);
        self.forget_idle_ways();
        self.counts.jobs.set(self.jobs);
        self.counts.questions.set(self.asked.len());
        self.check_wound_up(fx);
    }

    /// The number of this shard's connections, and how many of them are logged in.
    pub fn population(&self) -> (usize, usize) {
        let here = |conn: &&ConnId| conn.reactor() == self.index;
        (self.clients.len(), self.presence.values().filter(here).count())
    }

    /// One object: find its handler and answer a refusal.
    fn object(&mut self, conn: ConnId, object: &[u8], now: Now, fx: &mut Effects) {
        let request = match Request::parse(object) {
            Ok(request) => request,
            Err(refusal) => return self.refuse_stream(conn, refusal, CloseReason::Unfollowable, fx),
        };
        let (id, seq) = (request.msgid(), request.seq());
        if let Some(refusal) = self.is_too_fast(conn, object.len(), fx) {
            return self.refuse(conn, id.ok(), seq.ok().flatten(), &refusal, fx);
        }
        let (msgid, seq) = match (id, seq) {
            (Ok(msgid), Ok(seq)) => (msgid, seq),
            (msgid, Err(refusal)) => return self.refuse(conn, msgid.ok(), None, &refusal, fx),
            (Err(refusal), Ok(seq)) => return self.refuse(conn, None, seq, &refusal, fx),
        };
        if seq.is_some()
            && let Some(client) = self.clients.get_mut(conn)
        {
            client.uses_seq = true;
        }
        let (asks, handler) = match HANDLERS.iter().find(|(id, ..)| *id == msgid) {
            Some((_, asks, handler)) => (*asks, Some(*handler)),
            None => (Asks::Unknown, None),
        };
        self.counts.requests.of(asks).add(1);
        let call = Call { conn, msgid, seq, request: &request, object, now };
        let result = match handler {
            None => Err(Errno::UnknownMsgid.into()),
            Some(_) if self.shutting_down => Err(Errno::ShuttingDown.into()),
            Some(handler) => handler(self, &call, fx),
        };
        if let Err(refusal) = result {
            self.refuse(conn, Some(msgid), seq, &refusal, fx);
        }
    }

    /// Sends a reply in the connection's framing; nobody is there: nobody hears it.
    fn reply(&mut self, conn: ConnId, fx: &mut Effects, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(client) = self.clients.get(conn) {
            fx.reply(conn, client.framing.framing(), false, write);
        }
    }

    fn refuse(&mut self, conn: ConnId, request: Option<i64>, seq: Option<i64>, refusal: &Refusal, fx: &mut Effects) {
        self.counts.refusals.of(refusal.errno).add(1);
        if let Some(client) = self.clients.get(conn) {
            // Clients that read one object a time wait for exactly these two.
            let alone = matches!(request, Some(msgid::LOGIN | msgid::REGISTER));
            fx.reply(conn, client.framing.framing(), alone, |out| reply::refused(out, request, seq, refusal));
        }
    }

    /// For what no request can be blamed for: says why, then closes.
    fn refuse_and_close(&mut self, conn: ConnId, refusal: Refusal, reason: CloseReason, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        if !std::mem::replace(&mut client.closing, true) {
            client.give_up();
            log::debug!("{conn}: {}", refusal.text);
            self.refuse(conn, None, None, &refusal, fx);
            fx.push(Effect::Close(conn, reason));
        }
    }

    /// The same where the stream cannot be followed: requests before that still get their replies.
    fn refuse_stream(&mut self, conn: ConnId, refusal: Refusal, reason: CloseReason, fx: &mut Effects) {
        match self.clients.get_mut(conn) {
            Some(client) if client.pending > 0 && !client.waiting && !client.closing => {
                log::debug!("{conn}: {}", refusal.text);
                client.closing = true;
                client.close_when_paid = Some(reason);
                self.refuse(conn, None, None, &refusal, fx);
            }
            _ => self.refuse_and_close(conn, refusal, reason, fx),
        }
    }

    /// Notes that a request of this connection will be settled later.
    fn owe(&mut self, conn: ConnId, fx: &mut Effects) {
        let crowded = self.is_crowded();
        if let Some(client) = self.clients.get_mut(conn) {
            client.pending += 1;
            if !client.throttled && (client.pending >= MAX_PENDING || crowded) {
                client.throttled = true;
                fx.push(Effect::Pause(conn));
            }
        }
    }

    /// Notes that what a request of this connection changes will be settled later.
    fn begin_change(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.changes += 1;
        }
    }

    /// A change is settled. What is to see it goes on when it was the last: a list, a group chat, or the
    /// reply of a login.
    fn end_change(&mut self, conn: ConnId, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.changes -= 1;
        if client.changes > 0 {
            return;
        }
        if std::mem::take(&mut client.behind_changes) && !client.is_paused() {
            fx.push(Effect::Resume(conn));
        }
        self.load_if_due(conn, fx);
    }

    /// Whether the pool or other nodes are behind.
    fn is_crowded(&self) -> bool {
        self.jobs + self.asked.len() >= MAX_JOBS
    }

    /// A request of this connection is settled.
    fn paid(&mut self, conn: ConnId, fx: &mut Effects) {
        let crowded = self.is_crowded();
        let Some(client) = self.clients.get_mut(conn) else { return };
        client.pending -= 1;
        if client.throttled && client.pending <= MAX_PENDING / 2 && (!crowded || client.pending == 0) {
            client.throttled = false;
            if !client.is_paused() {
                fx.push(Effect::Resume(conn));
            }
        }
        if client.pending == 0
            && let Some(reason) = client.close_when_paid.take()
        {
            fx.push(Effect::Close(conn, reason));
        }
        self.close_if_done(conn, fx);
    }

    /// Closes a connection that has nothing more to say, once it is owed nothing more.
    fn close_if_done(&mut self, conn: ConnId, fx: &mut Effects) {
        let Some(client) = self.clients.get_mut(conn) else { return };
        if client.pending == 0 && (client.ended || self.shutting_down) && !std::mem::replace(&mut client.closing, true)
        {
            let reason = if client.ended { CloseReason::ByClient } else { CloseReason::ShuttingDown };
            fx.push(Effect::Close(conn, reason));
        }
    }

    fn submit(&mut self, lane: Lane, then: Then, op: Op, fx: &mut Effects) {
        // What was to be stored first, is.
        if !self.keeping.is_empty() {
            self.keep_all(fx);
        }
        self.jobs += 1;
        fx.push(Effect::Submit(lane, Box::new(Job { shard: self.index, then, op })));
    }

    /// A letter to every other shard.
    fn broadcast(&self, letter: impl Fn() -> Letter, fx: &mut Effects) {
        for shard in (0..self.shards).filter(|shard| *shard != self.index) {
            fx.push(Effect::Post(shard, letter()));
        }
    }

    /// A job's answer, for whoever asked.
    fn done(&mut self, then: Then, answer: Result<Answer, StoreError>, now: Now, fx: &mut Effects) {
        match then {
            Then::AccountRead(login) => self.account_read(login, answer, fx),
            Then::Verified(login) => self.verified(login, answer, fx),
            Then::Claimed(login) => self.claimed(login, answer, fx),
            Then::Shown => {}
            Then::Loaded { conn, user, epoch } => self.loaded(conn, user, epoch, answer, now, fx),
            Then::Registered { conn, from, attempt } => self.registered(conn, from, attempt, answer, fx),
            Then::Ack { conn, request, seq } => self.acked(conn, request, seq, answer, fx),
            Then::GroupCreated { conn, seq } => self.group_created(conn, seq, answer, fx),
            Then::GroupJoined { conn, seq, user, group } => self.group_joined(conn, seq, user, group, answer, fx),
            Then::Listed { conn, seq } => self.listed(conn, seq, answer, fx),
            Then::Members(group) => self.members_loaded(group, answer, fx),
            Then::Kept(messages) => self.kept(messages, answer, fx),
            Then::WaysKept(users) => self.ways_kept(users, answer, fx),
            Then::KeptBegun { conn, user, receipt } => self.begun_kept(conn, user, receipt, answer, fx),
            Then::Page { conn, user } => self.page_read(conn, user, answer, now, fx),
            Then::Removed { conn, user, rows } => self.removed(conn, user, rows, answer, now, fx),
            Then::Released { user, epoch, ended } => self.released(user, epoch, ended, answer, now, fx),
        }
    }

    fn check_wound_up(&mut self, fx: &mut Effects) {
        let is_done = || self.clients.is_empty() && self.leaving.is_empty() && self.jobs == 0 && self.ways_are_empty();
        if self.shutting_down && !self.wound_up && is_done() {
            self.wound_up = true;
            fx.push(Effect::WoundUp);
        }
    }

    /// The server's local time, as chats bear it.
    fn local_time(&mut self, now: Now) -> &str {
        if self.clock.0 != now.unix {
            let time = Local.timestamp_opt(now.unix, 0).earliest();
            let text = time.map(|time| time.format("%Y-%m-%d %H:%M:%S").to_string());
            self.clock = (now.unix, text.unwrap_or_default());
        }
        &self.clock.1
    }
}

/// A user's id, if the number can be one.
fn user_id(id: i64) -> Option<UserId> {
    i32::try_from(id).ok().filter(|id| *id > 0).map(|id| id as UserId)
}

/// A group's id, if the number can be one.
fn group_id(id: i64) -> Option<GroupId> {
    user_id(id)
}

/// What is refused where the store gave an answer that its question does not have, or none.
fn store_failure<T>(_: T) -> Refusal {
    Errno::StoreUnavailable.into()
}
