//! What comes in: one connection that listens, and may be told at any time to listen to more.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::{Events, Poll};
use redis::{ConnectionInfo, RedisError, Value};

use super::link::Link;
use super::{BackOff, Complaints, NODES, PATIENCE, Posts, channel_of};
use crate::bus::{BusEvent, BusOp, envelope};
use crate::reactor::Mailbox;
use crate::store::{NodeId, UserId};

/// A line that is silent for so long is asked whether it lives.
const QUIET: Duration = Duration::from_secs(2);
/// The longest sleep. Every wait has its own wake; this bounds the damage if one is missing.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// Values in a turn, before what they brought is handed over and the mailbox is looked into.
const VALUES_A_TURN: usize = 1024;
/// Channels in one SUBSCRIBE, when all are subscribed to again.
const CHANNELS_A_COMMAND: usize = 512;
/// The PING behind the first subscriptions of a line: its answer confirms them all.
const ALL_LISTENING: &str = "all";

/// What the subscriber is told.
pub(super) enum Mail {
    /// [`BusOp::Listen`] or [`BusOp::Unlisten`].
    Op(BusOp),
    Stop,
}

/// A user's channel.
#[derive(Default)]
struct Listened {
    /// The session that listens; `None`: none any more, but a confirmation is still to come.
    epoch: Option<u64>,
    /// SUBSCRIBEs that are not confirmed. Only behind the last one is it certain that no
    /// UNSUBSCRIBE between them is still to come.
    due: u32,
    /// Epoch and shard of those who wait for that.
    waiting: Vec<(u64, u16)>,
}

/// The thread that listens.
pub(super) struct Subscriber {
    poll: Poll,
    mailbox: Arc<Mailbox<Mail>>,
    info: ConnectionInfo,
    node: NodeId,
    own_channel: String,
    link: Option<Link>,
    /// The link's first subscriptions are confirmed.
    up: bool,
    /// When something was read last.
    heard: Instant,
    /// When the question was sent that must be answered next.
    asked: Option<Instant>,
    back_off: BackOff,
    attempts: u64,
    users: HashMap<UserId, Listened>,
    /// Of how many lines to Redis this is the last that came up.
    lines: u64,
    /// The same for the publisher, or 0 while the line is down.
    line: Arc<AtomicU64>,
    /// Told of the first line.
    started: Sender<()>,
    posts: Posts,
    failures: Complaints,
    junk: Complaints,
}

impl Subscriber {
    pub fn new(
        poll: Poll,
        mailbox: Arc<Mailbox<Mail>>,
        info: ConnectionInfo,
        node: NodeId,
        line: Arc<AtomicU64>,
        started: Sender<()>,
        posts: Posts,
    ) -> Subscriber {
        let now = Instant::now();
        Subscriber {
            poll,
            mailbox,
            info,
            node,
            own_channel: channel_of(node),
            link: None,
            up: false,
            heard: now,
            asked: None,
            back_off: BackOff::new(now),
            attempts: 0,
            users: HashMap::new(),
            lines: 0,
            line,
            started,
            posts,
            failures: Complaints::default(),
            junk: Complaints::default(),
        }
    }

    /// Listens until [`Mail::Stop`].
    ///
    /// # Errors
    /// The system polls no more.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(16);
        let mut mail = Vec::new();
        let mut more = false;
        loop {
            let sleep = if more { Duration::ZERO } else { self.sleep(Instant::now()) };
            match self.poll.poll(&mut events, Some(sleep)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            let now = Instant::now();
            self.mailbox.take(&mut mail);
            for mail in mail.drain(..) {
                match mail {
                    Mail::Op(BusOp::Listen { user, epoch, shard }) => self.listen(user, epoch, shard),
                    Mail::Op(BusOp::Unlisten { user, epoch }) => self.unlisten(user, epoch),
                    Mail::Op(_) => {}
                    Mail::Stop => return Ok(()),
                }
            }
            more = self.turn(now).unwrap_or_else(|error| {
                self.broken(&error, now);
                false
            });
            self.posts.post();
        }
    }

    fn sleep(&self, now: Instant) -> Duration {
        let next = match (&self.link, self.asked) {
            (None, _) => self.back_off.not_before,
            (Some(_), Some(asked)) => asked + PATIENCE,
            (Some(_), None) => self.heard + QUIET,
        };
        next.saturating_duration_since(now).min(MAX_SLEEP)
    }

    /// Connects if it is time to, reads, asks, writes. True: there is more to be read.
    fn turn(&mut self, now: Instant) -> Result<bool, RedisError> {
        if self.link.is_none() {
            if now < self.back_off.not_before {
                return Ok(false);
            }
            self.connect(now)?;
        }
        let more = self.read(now)?;
        let Some(link) = &mut self.link else { return Ok(false) };
        match self.asked {
            Some(asked) if now.duration_since(asked) >= PATIENCE => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer").into());
            }
            None if now.duration_since(self.heard) >= QUIET => {
                link.send(&redis::cmd("PING"));
                self.asked = Some(now);
            }
            _ => {}
        }
        link.flush()?;
        Ok(more)
    }

    /// Begins a new line, on which everything is subscribed to.
    fn connect(&mut self, now: Instant) -> Result<(), RedisError> {
        self.attempts += 1;
        let mut link = Link::connect(&self.info, self.attempts, self.poll.registry())?;
        link.send(redis::cmd("SUBSCRIBE").arg(&self.own_channel).arg(NODES));
        let users: Vec<UserId> = self.users.keys().copied().collect();
        for users in users.chunks(CHANNELS_A_COMMAND) {
            link.send(redis::cmd("SUBSCRIBE").arg(users));
        }
        self.users.values_mut().for_each(|listened| listened.due = 1);
        link.send(redis::cmd("PING").arg(ALL_LISTENING));
        self.link = Some(link);
        self.heard = now;
        self.asked = Some(now);
        Ok(())
    }

    /// The line is gone, or did not come to be.
    fn broken(&mut self, error: &RedisError, now: Instant) {
        self.link = None;
        self.asked = None;
        self.back_off.failed(now);
        if std::mem::take(&mut self.up) {
            log::warn!("the line to Redis at {} is broken: {error}", self.info.addr());
            self.line.store(0, Ordering::Release);
            self.posts.push(BusEvent::Down);
        } else {
            self.failures.warn(format_args!("cannot reach Redis at {}: {error}", self.info.addr()));
        }
        let posts = &mut self.posts;
        self.users.retain(|user, listened| {
            listened.due = 0;
            tell(*user, listened, posts);
            listened.epoch.is_some()
        });
    }

    /// All that is subscribed to at the line's begin is confirmed.
    fn all_listening(&mut self) {
        if std::mem::replace(&mut self.up, true) {
            return;
        }
        self.back_off.worked(self.heard);
        self.lines += 1;
        self.line.store(self.lines, Ordering::Release);
        if self.lines == 1 {
            // Nobody waits any more: then the bus is being stopped.
            let _ = self.started.try_send(());
        } else {
            log::info!("the line to Redis at {} is back", self.info.addr());
            self.posts.push(BusEvent::Up);
        }
    }

    fn listen(&mut self, user: UserId, epoch: u64, shard: u16) {
        let listened = self.users.entry(user).or_default();
        let is_new = listened.epoch.replace(epoch).is_none();
        listened.waiting.push((epoch, shard));
        if let Some(link) = &mut self.link
            && is_new
        {
            link.send(redis::cmd("SUBSCRIBE").arg(user));
            listened.due += 1;
        }
        if listened.due == 0 {
            tell(user, listened, &mut self.posts);
        }
    }

    fn unlisten(&mut self, user: UserId, epoch: u64) {
        let Some(listened) = self.users.get_mut(&user).filter(|listened| listened.epoch == Some(epoch)) else { return };
        listened.epoch = None;
        if let Some(link) = &mut self.link {
            link.send(redis::cmd("UNSUBSCRIBE").arg(user));
        }
        if listened.due == 0 {
            self.users.remove(&user);
        }
    }

    fn confirmed(&mut self, user: UserId) {
        let Some(listened) = self.users.get_mut(&user) else { return };
        listened.due = listened.due.saturating_sub(1);
        if listened.due == 0 {
            tell(user, listened, &mut self.posts);
            if listened.epoch.is_none() {
                self.users.remove(&user);
            }
        }
    }

    fn read(&mut self, now: Instant) -> Result<bool, RedisError> {
        for _ in 0..VALUES_A_TURN {
            let Some(link) = &mut self.link else { return Ok(false) };
            let value = link.next();
            if link.has_spoken() {
                self.heard = now;
                self.asked = None;
            }
            match value? {
                Some(value) => self.value(value)?,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn value(&mut self, value: Value) -> Result<(), RedisError> {
        match value {
            // Whatever it refuses, this line does not hear what it should.
            Value::ServerError(error) => return Err(error.into()),
            Value::Array(items) => {
                let mut items = items.into_iter();
                match (items.next(), items.next(), items.next()) {
                    (
                        Some(Value::BulkString(kind)),
                        Some(Value::BulkString(channel)),
                        Some(Value::BulkString(payload)),
                    ) if kind == b"message" => self.message(&channel, &payload),
                    (Some(Value::BulkString(kind)), Some(Value::BulkString(channel)), _) if kind == b"subscribe" => {
                        user_of(&channel).into_iter().for_each(|user| self.confirmed(user));
                    }
                    (Some(Value::BulkString(kind)), Some(Value::BulkString(text)), _)
                        if kind == b"pong" && text == ALL_LISTENING.as_bytes() =>
                    {
                        self.all_listening();
                    }
                    _ => {} // an UNSUBSCRIBE is confirmed, a PING answered
                }
            }
            _ => {} // AUTH is answered
        }
        Ok(())
    }

    fn message(&mut self, channel: &[u8], payload: &[u8]) {
        if let Some(user) = user_of(channel) {
            return self.posts.push(BusEvent::FromForeign(user, payload.into()));
        }
        match envelope::decode(payload) {
            Ok((from, _)) if from == self.node => {}
            Ok((from, envelopes)) => {
                envelopes.into_iter().for_each(|envelope| self.posts.push(BusEvent::Envelope(from, envelope)));
            }
            Err(error) => self.junk.warn(format_args!(
                "{} bytes on the channel {} are dropped: {error}",
                payload.len(),
                String::from_utf8_lossy(channel)
            )),
        }
    }
}

/// Tells those who wait that the user's channel is listened to, or that nothing more can be done.
fn tell(user: UserId, listened: &mut Listened, posts: &mut Posts) {
    for (epoch, shard) in listened.waiting.drain(..) {
        posts.push_to(usize::from(shard), BusEvent::Listening { user, epoch });
    }
}

/// Whose channel it is; `None`: one of our own.
fn user_of(channel: &[u8]) -> Option<UserId> {
    std::str::from_utf8(channel).ok()?.parse().ok()
}
