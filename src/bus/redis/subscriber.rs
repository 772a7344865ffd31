//! The incoming side: one connection that listens, and can be told at any time to listen to more channels.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use mio::{Events, Poll};
use redis::RedisError;

use super::address::{Address, slow_resolver};
use super::counts::SubscriberCounts;
use super::hearing::{ALL_LISTENING, Heard, Hearing};
use super::link::Link;
use super::retry::{BackOff, PATIENCE, WarnLimiter};
use super::shared::{Shared, channel_of};
use super::subscriptions::Subscriptions;
use crate::bus::envelope::Payload;
use crate::bus::{BusEvent, BusOp, Envelope};
use crate::clock;
use crate::reactor::Mailbox;
use crate::store::UserId;

/// A line that has been silent for this long is checked with a PING.
const QUIET: Duration = Duration::from_secs(2);
/// The longest sleep. Every wait has a wake-up of its own; this bounds the damage if one is missing.
const MAX_SLEEP: Duration = Duration::from_secs(1);
/// The number of values in a turn, before the events are handed over and the mailbox is read.
const VALUES_A_TURN: usize = 1024;
/// The number of channels in one SUBSCRIBE, on a new line.
const CHANNELS_A_COMMAND: usize = 512;

/// What the subscriber is sent.
pub(super) enum Command {
    /// [`BusOp::Listen`] or [`BusOp::Unlisten`].
    Op(BusOp),
    /// The name of Redis was resolved, or could not be.
    LookedUp,
    Stop,
}

/// The thread that listens.
pub(super) struct Subscriber {
    poll: Poll,
    mailbox: Arc<Mailbox<Command>>,
    address: Address,
    /// When the look-up began that the next attempt to connect waits for.
    looking_up: Option<Instant>,
    shared: Arc<Shared>,
    own_channel: String,
    link: Option<Link>,
    /// The number of outstanding answers to [`ALL_LISTENING`].
    unconfirmed: u32,
    /// All channels are confirmed, and all shards have been told.
    up: bool,
    /// When something was last read.
    heard: Instant,
    /// When the oldest unanswered question was sent.
    asked: Option<Instant>,
    back_off: BackOff,
    /// The address that the line connects to.
    connecting_to: Option<SocketAddr>,
    subscriptions: Subscriptions,
    /// The number of lines to Redis that have come up so far.
    lines: u64,
    /// Notified when the first one is up.
    started: Sender<()>,
    failures: WarnLimiter,
    junk: WarnLimiter,
    counts: Arc<SubscriberCounts>,
}

impl Subscriber {
    pub fn new(
        poll: Poll,
        mailbox: Arc<Mailbox<Command>>,
        address: Address,
        shared: Arc<Shared>,
        started: Sender<()>,
    ) -> Subscriber {
        let now = Instant::now();
        Subscriber {
            poll,
            mailbox,
            address,
            looking_up: None,
            own_channel: channel_of(shared.node),
            shared,
            link: None,
            unconfirmed: 0,
            up: false,
            heard: now,
            asked: None,
            back_off: BackOff::new(now),
            connecting_to: None,
            subscriptions: Subscriptions::new(),
            lines: 0,
            started,
            failures: WarnLimiter::default(),
            junk: WarnLimiter::default(),
            counts: Arc::default(),
        }
    }

    /// Its counters.
    pub fn counts(&self) -> Arc<SubscriberCounts> {
        Arc::clone(&self.counts)
    }

    /// Listens until [`Command::Stop`].
    ///
    /// # Errors
    /// The system cannot poll any more.
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
                    Command::Op(BusOp::Listen { user, epoch }) => self.listen(user, epoch),
                    Command::Op(BusOp::Unlisten { user, epoch }) => self.unlisten(user, epoch),
                    Command::Op(_) | Command::LookedUp => {}
                    Command::Stop => return Ok(()),
                }
            }
            more = self.turn(now).unwrap_or_else(|error| {
                self.broken(&error, now);
                false
            });
            self.shared.inbox().posts.post();
        }
    }

    fn sleep(&self, now: Instant) -> Duration {
        let next = match (&self.link, self.asked) {
            (None, _) => self.looking_up.map_or(self.back_off.not_before, |since| since + PATIENCE),
            (Some(_), Some(asked)) => asked + PATIENCE,
            (Some(_), None) => self.heard + QUIET,
        };
        next.saturating_duration_since(now).min(MAX_SLEEP)
    }

    /// Connects if it is time to, reads, checks the line, writes. True: there is more to read.
    fn turn(&mut self, now: Instant) -> Result<bool, RedisError> {
        if self.link.is_none() && !self.connect(now)? {
            return Ok(false);
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

    /// Begins a new line, and subscribes to everything on it; false: not yet.
    fn connect(&mut self, now: Instant) -> io::Result<bool> {
        let since = match self.looking_up {
            Some(since) => since,
            None if now < self.back_off.not_before => return Ok(false),
            None => {
                let mailbox = Arc::clone(&self.mailbox);
                let since = self.address.look_up(move || mailbox.post(Command::LookedUp))?;
                *self.looking_up.insert(since)
            }
        };
        let looked_up = match self.address.looked_up(now) {
            Some(result) => result,
            None if now < since + PATIENCE => return Ok(false),
            None => Err(slow_resolver()),
        };
        self.looking_up = None;
        let address = self.address.choose(looked_up)?;
        self.connecting_to = Some(address);
        let hearing = Hearing::of(self.shared.payload.versions);
        let mut link = Link::connect(address, self.address.credentials(), hearing, self.poll.registry())?;
        link.send(redis::cmd("SUBSCRIBE").arg(&self.own_channel));
        for users in self.subscriptions.line_begins().chunks(CHANNELS_A_COMMAND) {
            link.send(redis::cmd("SUBSCRIBE").arg(users));
        }
        link.send(redis::cmd("PING").arg(ALL_LISTENING));
        self.unconfirmed = 1;
        self.link = Some(link);
        self.heard = now;
        self.asked = Some(now);
        Ok(true)
    }

    /// The line is gone, or could not be made.
    fn broken(&mut self, error: &RedisError, now: Instant) {
        self.link = None;
        self.looking_up = None;
        self.asked = None;
        self.back_off.failed(now);
        self.shared.beat.store(0, Ordering::Release);
        let posts = &mut self.shared.inbox().posts;
        if std::mem::take(&mut self.up) {
            log::warn!("the line to Redis at {} is broken: {error}", self.address);
            self.shared.subscribed.store(0, Ordering::Release);
            self.counts.outages.add(1);
            posts.push(BusEvent::Down);
        } else {
            self.failures.warn(format_args!("cannot reach Redis at {}: {error}", self.address));
        }
        self.subscriptions.line_ends(posts);
    }

    /// Everything that was subscribed to before one of the [`ALL_LISTENING`] is confirmed.
    fn all_listening(&mut self) {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
        if self.unconfirmed > 0 {
            return;
        }
        self.up = true;
        self.connecting_to.take().into_iter().for_each(|address| self.address.is_good(address));
        self.subscriptions.line_is_up();
        self.back_off.worked(self.heard);
        self.lines += 1;
        self.shared.subscribed.store(self.lines, Ordering::Release);
        if self.lines == 1 {
            // If nothing waits for it any more, the bus is being stopped.
            let _ = self.started.try_send(());
        } else {
            log::info!("the line to Redis at {} is back", self.address);
            self.shared.inbox().posts.push(BusEvent::Up);
        }
    }

    fn listen(&mut self, user: UserId, epoch: u64) {
        if self.subscriptions.listen(user, epoch, &mut self.shared.inbox().posts)
            && let Some(link) = &mut self.link
        {
            link.send(redis::cmd("SUBSCRIBE").arg(user));
            if !self.up {
                // The session was told already that it will listen once the line is up.
                link.send(redis::cmd("PING").arg(ALL_LISTENING));
                self.unconfirmed += 1;
            }
        }
    }

    fn unlisten(&mut self, user: UserId, epoch: u64) {
        if self.subscriptions.unlisten(user, epoch)
            && let Some(link) = &mut self.link
        {
            link.send(redis::cmd("UNSUBSCRIBE").arg(user));
        }
    }

    fn read(&mut self, now: Instant) -> Result<bool, RedisError> {
        for _ in 0..VALUES_A_TURN {
            let Some(link) = &mut self.link else { return Ok(false) };
            let heard = link.next();
            if link.has_spoken() {
                self.heard = now;
                self.asked = None;
            }
            match heard? {
                Some(heard) => self.heard(heard),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn heard(&mut self, heard: Heard) {
        if let Heard::Payload { payload, .. } = &heard
            && payload.from == self.shared.node
        {
            self.heard_itself(payload);
            return;
        }
        if let Some(bytes) = heard.message_bytes() {
            self.counts.messages.add(1);
            self.counts.received.add(bytes as u64);
        }
        match heard {
            Heard::Chat(user, chat) => self.shared.inbox().posts.push(BusEvent::FromForeign(user, chat)),
            Heard::Payload { payload, .. } => {
                if payload.skipped > 0 {
                    log::debug!("{} envelopes of node {} are of unknown kinds", payload.skipped, payload.from);
                }
                self.shared.inbox().take(payload);
            }
            Heard::Junk { channel, bytes, error } => {
                self.junk.warn(format_args!("{bytes} bytes on the channel {channel} are dropped: {error}"));
            }
            Heard::Subscribed(user) => {
                self.subscriptions.confirmed(user, &mut self.shared.inbox().posts);
            }
            Heard::AllListening => self.all_listening(),
            Heard::Nothing => {}
        }
    }

    /// Takes the beats out of one of this node's own payloads; anything else in it means nothing.
    fn heard_itself(&self, payload: &Payload) {
        let now = clock::since_boot().as_nanos();
        for envelope in &payload.envelopes {
            // Any process that can publish can invent one that was sent in the future, and would count for long.
            if let Envelope::Beat { sent } = envelope
                && u128::from(*sent) <= now
            {
                self.shared.beat.fetch_max(*sent, Ordering::AcqRel);
            }
        }
    }
}
