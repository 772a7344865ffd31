//! One client, one session, and the draining of a slow reader's messages from the store.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempts::Attempt;
use super::chat::Text;
use super::letters::{Fate, Receipt, Removal, Tag, Timer, Waiting};
use super::limits::Tally;
use super::{Answer, Effect, Effects, GroupCache, Now, Op, Path, Payload, Shard, Then, group_id};
use crate::bus::Ticket;
use crate::reactor::{CloseReason, ConnId, Manner, Unwritten, canonical};
use crate::store::{Kept, NodeId, Outcome, Parcel, RowId, StoreError, UserId, Write};
use crate::wire::proxy::BadHeader;
use crate::wire::reply::OFFLINE_IN_REPLY;
use crate::wire::{Errno, FramingMirror, ProxyHeader, Refusal, Request, Splitter, msgid, reply};

/// How soon a drain that the store refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// A connection, as the service sees it.
pub(super) struct Client {
    /// The client's own address, once the PROXY header of a proxy has told it.
    pub peer: SocketAddr,
    /// It comes from a proxy, whose header must be read first.
    pub header_due: bool,
    pub splitter: Splitter,
    pub framing: FramingMirror,
    pub session: Option<Box<Session>>,
    /// Requests that are not settled: replies owed, and chats whose fate is open.
    pub pending: u32,
    /// Changes that its requests have made to what later ones read, and that are not settled: to
    /// friends, to groups, and to who is online.
    pub changes: u32,
    /// The next request reads what those change; input waits for them.
    pub behind_changes: bool,
    /// A login, a registration or a list is on its way; input waits behind it.
    pub waiting: bool,
    /// The login or the registration; a pointer, since it is short.
    pub attempt: Option<Box<Attempt>>,
    /// It has finished sending, and what it sent last is still on its way.
    pub half_closed: bool,
    /// Too many requests are unsettled; input waits.
    pub throttled: bool,
    /// Its claim is in doubt; input waits.
    pub doubted: bool,
    /// It has sent faster than it may; input waits.
    pub too_fast: bool,
    /// It has used `seq`, so it is no C++ client.
    pub uses_seq: bool,
    /// It has sent a PING or a PONG.
    pub knows_ping: bool,
    /// It has finished sending.
    pub ended: bool,
    /// We are closing it.
    pub closing: bool,
    /// We are, as soon as nothing is pending.
    pub close_when_paid: Option<CloseReason>,
    /// What is counted for it; a pointer, since most limits are off by default.
    pub tally: Option<Box<Tally>>,
}

impl Client {
    pub fn new(peer: SocketAddr) -> Self {
        Client {
            peer: canonical(peer),
            header_due: false,
            splitter: Splitter::default(),
            framing: FramingMirror::default(),
            session: None,
            pending: 0,
            changes: 0,
            behind_changes: false,
            waiting: false,
            attempt: None,
            half_closed: false,
            throttled: false,
            doubted: false,
            too_fast: false,
            uses_seq: false,
            knows_ping: false,
            ended: false,
            closing: false,
            close_when_paid: None,
            tally: None,
        }
    }

    /// Whether a request must wait for the changes that earlier ones have made, since it would not see them.
    pub fn reads_changes(&self, object: &[u8], groups: &GroupCache) -> bool {
        let Ok(request) = Request::parse(object) else { return false };
        match (request.msgid(), &self.session) {
            (Ok(msgid::LIST), _) => true,
            (Ok(msgid::GROUP_CHAT), Some(session)) => {
                let group = request.groupid().ok().and_then(group_id);
                group.is_some_and(|group| !groups.has_member(group, session.user))
            }
            _ => false,
        }
    }

    pub fn is_paused(&self) -> bool {
        self.waiting || self.behind_changes || self.throttled || self.doubted || self.too_fast
    }
}

/// A logged-in user.
pub(super) struct Session {
    pub user: UserId,
    pub name: Box<str>,
    /// Chats of this user that are not settled. The claim is not released while there are any.
    pub sends: u32,
    /// Users for whom something that this one has sent stands in the store although they are online
    /// elsewhere. Nor is the claim released while there are any.
    pub debts: u32,
    /// Of its claim.
    pub epoch: u64,
    /// When it began.
    pub joined: Instant,
    /// The shards of other nodes that have sent something to the user.
    pub heard: Vec<Heard>,
    pub mode: Mode,
}

/// What one shard of another node has sent to a user.
pub(super) struct Heard {
    pub node: NodeId,
    pub shard: u16,
    /// The last chat that was taken.
    pub last: u64,
    /// One went back, or did not arrive: what follows must not overtake it, and goes back, too, until
    /// that shard's nudge tells that it knows.
    pub fenced: bool,
}

impl Session {
    /// What this shard of another node has sent.
    pub fn heard(&mut self, node: NodeId, shard: u16) -> &mut Heard {
        let at = self.heard.iter().position(|heard| (heard.node, heard.shard) == (node, shard));
        let at = at.unwrap_or_else(|| {
            self.heard.push(Heard { node, shard, last: 0, fenced: false });
            self.heard.len() - 1
        });
        &mut self.heard[at]
    }
}

/// Where a session's incoming messages go.
pub(super) enum Mode {
    /// It has the claim; the login reply is not out yet, and messages queue behind it.
    Joining(Box<Joining>),
    /// To the connection.
    Live,
    /// To the store, behind what is there already, until all of it has been drained.
    Spill(Box<Spill>),
}

#[derive(Default)]
pub(super) struct Joining {
    /// The login's, for its reply.
    pub seq: Option<i64>,
    /// Shards that still send to the store.
    pub unseen: usize,
    /// The store is being read for the reply.
    pub loading: bool,
    pub queue: VecDeque<Waiting>,
    /// Bytes in `queue`.
    pub bytes: usize,
    /// The queue became too long and went to the store, and so does all that follows.
    pub spilled: bool,
    /// Something may have been stored since the store was read for the reply.
    pub outdated: bool,
    /// Nodes that have stored something, and wait for the drain.
    pub nudges: Vec<(NodeId, Ticket)>,
}

/// A drain: read a page, write it, remove it, until nothing is left.
pub(super) struct Spill {
    stage: Stage,
    /// Something was stored since the last page was asked for.
    dirty: bool,
    /// The message of which half is on the wire; it stands in the store too, in case the other
    /// half never gets out.
    begun: Begun,
    /// The connection's queue is just being taken back: what comes meanwhile goes to the store behind it.
    behind_recall: Option<Vec<Waiting>>,
    /// Nodes that have stored something, and wait for the end of the drain.
    nudges: Vec<(NodeId, Ticket)>,
}

enum Stage {
    /// The connection's queue must get empty.
    Queue,
    /// A page is being read.
    Reading,
    /// A page, or the login reply, is being written.
    Writing,
    /// What was written is being removed.
    Removing(Arc<[RowId]>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    None,
    /// It is being stored; `true`: the rest of it was written meanwhile.
    Storing(bool),
    Stored(RowId),
    /// The store did not take it, and what follows it may stand there by now. So it is not stored any
    /// more: it is written, or it fails for this reason.
    Refused(Errno),
}

impl Mode {
    /// What waits in a session that ends, to be stored behind what its connection has not written.
    pub fn into_waiting(self) -> Vec<Waiting> {
        match self {
            Mode::Joining(joining) => joining.queue.into(),
            Mode::Spill(spill) => spill.behind_recall.unwrap_or_default(),
            Mode::Live => Vec::new(),
        }
    }

    /// What a session that ends leaves half-written.
    pub fn begun(&self) -> Begun {
        match self {
            Mode::Spill(spill) => spill.begun,
            Mode::Joining(_) | Mode::Live => Begun::None,
        }
    }
}

impl Spill {
    fn new(stage: Stage) -> Self {
        Spill { stage, dirty: false, begun: Begun::None, behind_recall: None, nudges: Vec::new() }
    }

    /// Other nodes have, or may have, stored something. The connection's queue is to be recalled.
    pub fn for_nudges(nudges: Vec<(NodeId, Ticket)>) -> Self {
        Spill { nudges, behind_recall: Some(Vec::new()), ..Spill::new(Stage::Queue) }
    }

    /// The same, while it is drained anyway.
    pub fn nudge(&mut self, nudger: (NodeId, Ticket)) {
        self.nudges.push(nudger);
        self.stored_behind();
    }

    /// Something was stored that the page being read may not have.
    pub fn stored_behind(&mut self) {
        self.dirty = true;
    }

    /// After a login reply that could not carry everything. `reply_has_rows`: its rows must be
    /// removed before the next page is read.
    pub fn after_login(reply_has_rows: bool, nudges: Vec<(NodeId, Ticket)>) -> Self {
        Spill { nudges, ..Spill::new(if reply_has_rows { Stage::Writing } else { Stage::Queue }) }
    }
}

impl Shard {
    /// The session of `user` on this connection, if it still is.
    pub(super) fn session_mut(&mut self, conn: ConnId, user: UserId) -> Option<&mut Session> {
        self.clients.get_mut(conn)?.session.as_deref_mut().filter(|session| session.user == user)
    }

    fn spill_mut(&mut self, conn: ConnId) -> Option<(UserId, &mut Spill)> {
        let session = self.clients.get_mut(conn)?.session.as_deref_mut()?;
        match &mut session.mode {
            Mode::Spill(spill) => Some((session.user, spill)),
            Mode::Joining(_) | Mode::Live => None,
        }
    }

    /// Stores one message for a session that is being drained.
    pub(super) fn spill(&mut self, conn: ConnId, user: UserId, body: Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        if let Some((_, spill)) = self.spill_mut(conn) {
            spill.stored_behind();
            if let Some(waiting) = &mut spill.behind_recall {
                return waiting.push((body, receipt));
            }
        }
        self.keep(user, body, receipt, fx);
    }

    /// A reader falls behind: from now on its messages take the way through the store. What was
    /// taken back from its queue goes first, so that the order holds.
    pub(super) fn begin_spill(&mut self, conn: ConnId, recalled: Vec<Unwritten<Tag>>, fx: &mut Effects) {
        // A message that is begun stays in the queue, and so does its tag, which speaks for it.
        let Some(session) = self.clients.get_mut(conn).and_then(|client| client.session.as_deref_mut()) else {
            return self.recalled_after_logout(recalled, fx);
        };
        let user = session.user;
        if matches!(session.mode, Mode::Live) {
            log::debug!("{conn}: user {user} reads slowly; messages go through the store");
            session.mode = Mode::Spill(Box::new(Spill::new(Stage::Queue)));
        }
        let behind = self.spill_mut(conn).and_then(|(_, spill)| spill.behind_recall.take());
        let (recalled, former): (Vec<_>, Vec<_>) =
            recalled.into_iter().partition(|message| matches!(message.tag, Tag::Chat { to, .. } if to == user));
        self.recalled_after_logout(former, fx);
        for Unwritten { tag, body, begun } in recalled {
            let Tag::Chat { to, receipt } = tag else { continue };
            if !begun {
                self.spill(conn, to, body, receipt, fx);
                continue;
            }
            // Also where another node has sent it, which would store it 2 s later and so repeat it.
            // What follows has gone back there, and waits until this one is known to be stored.
            if let Some((_, spill)) = self.spill_mut(conn) {
                if spill.begun != Begun::None {
                    continue; // of an earlier recall
                }
                spill.begun = Begun::Storing(false);
            }
            let write = Write::Keep(vec![Parcel { to: user, messages: vec![body], past: None }]);
            self.submit(self.user_lane(user), Then::KeptBegun { conn, user, receipt }, Op::Write(write), fx);
        }
        for (body, receipt) in behind.into_iter().flatten() {
            self.spill(conn, user, body, receipt, fx);
        }
    }

    /// The same, for users who have logged out on this connection. Behind a message that is begun the
    /// others of its recipient wait for what becomes of it, as does what comes behind the logout.
    fn recalled_after_logout(&mut self, recalled: Vec<Unwritten<Tag>>, fx: &mut Effects) {
        let begun = recalled.iter().find(|message| message.begun).map(|message| message.tag.clone());
        let mut waiting = Vec::new();
        for message in recalled.into_iter().filter(|message| !message.begun) {
            match (&begun, message.tag) {
                (Some(Tag::Chat { to: first, .. }), Tag::Chat { to, receipt }) if *first == to => {
                    waiting.push((message.body, receipt));
                }
                (_, tag) => self.return_unwritten([Unwritten { tag, ..message }], fx),
            }
        }
        let Some(Tag::Chat { to, .. }) = begun else { return };
        match self.leaving.get_mut(&to) {
            Some(leaving) => _ = leaving.queue.splice(0..0, waiting),
            None => waiting.into_iter().for_each(|(body, receipt)| self.keep(to, body, receipt, fx)),
        }
    }

    /// The half-written message is stored as well, or could not be.
    pub(super) fn begun_kept(
        &mut self,
        conn: ConnId,
        user: UserId,
        receipt: Receipt,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        let (row, errno) = match &answer {
            Ok(Answer::Wrote(Outcome::Kept(kept))) => match kept[..] {
                [Kept::Stored(row)] => (Some(row), Errno::StoreUnavailable),
                [Kept::Full(_)] => (None, Errno::Busy),
                _ => (None, Errno::StoreUnavailable),
            },
            _ => (None, Errno::StoreUnavailable),
        };
        let Some(begun) = self.begun_mut(conn, user) else { return };
        match (row, *begun) {
            (Some(row), Begun::Storing(written)) => {
                *begun = if written { Begun::None } else { Begun::Stored(row) };
                if written {
                    self.remove_begun(conn, user, row, fx);
                }
                self.count_message(receipt, Path::Stored, 1);
                // Behind the removal, which needs the claim: this may release it.
                self.settle(receipt, Fate::Stored, fx);
            }
            (None, Begun::Storing(written)) => {
                *begun = if written { Begun::None } else { Begun::Refused(errno) };
                if written {
                    self.settle(receipt, Fate::Delivered, fx);
                } else if self.clients.get(conn).is_none() {
                    self.begun_failed(user, receipt, errno, fx);
                }
                // Otherwise its tag in the queue still speaks for it.
            }
            (_, Begun::None | Begun::Stored(_) | Begun::Refused(_)) => {}
        }
        self.advance_drain(conn, fx);
        self.try_release(user, fx);
    }

    /// A half-written message that the store has refused does not get out either.
    fn begun_failed(&mut self, user: UserId, receipt: Receipt, errno: Errno, fx: &mut Effects) {
        if self.is_of_another_node(receipt) {
            self.send_back(user, receipt, fx); // where what follows it waits
        } else {
            self.settle(receipt, Fate::Failed(errno), fx);
        }
    }

    /// The half-written message of a session that is being drained, or is ending.
    fn begun_mut(&mut self, conn: ConnId, user: UserId) -> Option<&mut Begun> {
        if let Some(leaving) = self.leaving.get_mut(&user)
            && leaving.conn == conn
        {
            return Some(&mut leaving.begun);
        }
        match self.clients.get_mut(conn)?.session.as_deref_mut() {
            Some(Session { user: owner, mode: Mode::Spill(spill), .. }) if *owner == user => Some(&mut spill.begun),
            _ => None,
        }
    }

    /// A chat was written whole. True: it was the half-written one of a slow reader, which the
    /// store has taken over.
    pub(super) fn begun_was_written(&mut self, conn: ConnId, to: UserId, fx: &mut Effects) -> bool {
        let Some(begun) = self.begun_mut(conn, to) else { return false };
        match *begun {
            Begun::None => false,
            Begun::Refused(_) => {
                *begun = Begun::None;
                false
            }
            Begun::Storing(_) => {
                *begun = Begun::Storing(true);
                true
            }
            Begun::Stored(row) => {
                *begun = Begun::None;
                self.remove_begun(conn, to, row, fx);
                true
            }
        }
    }

    fn remove_begun(&mut self, conn: ConnId, user: UserId, row: RowId, fx: &mut Effects) {
        // The next page is read behind this in the user's lane. Should it fail, the message is
        // repeated; it is never lost.
        self.remove(conn, user, Arc::from([row]), fx);
    }

    fn remove(&mut self, conn: ConnId, user: UserId, rows: Arc<[RowId]>, fx: &mut Effects) {
        let epoch = match self.session_mut(conn, user) {
            Some(session) => session.epoch,
            None => match self.leaving.get(&user) {
                Some(leaving) if leaving.conn == conn => leaving.epoch,
                _ => return, // the next login repeats them
            },
        };
        // Somebody who took this node for dead may have given the account to another one, whose they
        // are then.
        let write = Write::Remove { user, epoch, rows: rows.to_vec() };
        self.submit(self.user_lane(user), Then::Removed { conn, user, rows }, Op::Write(write), fx);
    }

    /// The queue of a slow reader is empty.
    pub(super) fn queue_drained(&mut self, conn: ConnId, fx: &mut Effects) {
        self.advance_drain(conn, fx);
    }

    /// Reads the next page, if nothing stands before it. While the claim is in doubt the messages may
    /// be another node's to deliver.
    pub(super) fn advance_drain(&mut self, conn: ConnId, fx: &mut Effects) {
        if self.doubt.is_some() {
            return;
        }
        let max_bytes = OFFLINE_IN_REPLY.min(self.settings.high_water / 2);
        let Some((user, spill)) = self.spill_mut(conn) else { return };
        if matches!(spill.stage, Stage::Queue) && matches!(spill.begun, Begun::None | Begun::Refused(_)) {
            spill.stage = Stage::Reading;
            spill.dirty = false;
            self.submit(self.user_lane(user), Then::Page { conn, user }, Op::Page { user, max_bytes }, fx);
        }
    }

    /// A page has been read: it is pushed, or the drain is over.
    pub(super) fn page_read(
        &mut self,
        conn: ConnId,
        user: UserId,
        answer: Result<Answer, StoreError>,
        now: Now,
        fx: &mut Effects,
    ) {
        if self.session_mut(conn, user).is_none() {
            return;
        }
        let Some(client) = self.clients.get_mut(conn) else { return };
        let framing = client.framing.framing();
        let in_doubt = self.doubt.is_some();
        let Some((_, spill)) = self.spill_mut(conn) else { return };
        if in_doubt {
            spill.stage = Stage::Queue; // it is read again
            return;
        }
        let Ok(Answer::Page(page)) = answer else {
            return fx.push(Effect::Timer(now.at + RETRY, Timer::Drain(conn)));
        };
        if page.messages.is_empty() {
            spill.stage = Stage::Queue;
            if spill.dirty {
                return self.advance_drain(conn, fx);
            }
            let nudges = std::mem::take(&mut spill.nudges);
            if let Some(session) = self.session_mut(conn, user) {
                session.mode = Mode::Live;
            }
            return self.answer_nudges(nudges, fx);
        }
        spill.stage = Stage::Writing;
        let rows: Arc<[RowId]> = page.messages.iter().map(|(row, _)| *row).collect();
        let last = page.messages.len() - 1;
        for (i, (_, text)) in page.messages.into_iter().enumerate() {
            let from = fx.bytes.len();
            fx.bytes.extend_from_slice(&text);
            let body = Payload::Own(from..fx.bytes.len());
            let tag = (i == last).then(|| Tag::Offline { user, rows: Arc::clone(&rows) });
            fx.push(Effect::Send { conn, body, framing, tag, manner: Manner::default() });
        }
    }

    /// The reply or push that carries these offline messages was written whole: now they go.
    pub(super) fn offline_written(&mut self, conn: ConnId, user: UserId, rows: Arc<[RowId]>, fx: &mut Effects) {
        if self.session_mut(conn, user).is_some()
            && let Some((_, spill)) = self.spill_mut(conn)
        {
            spill.stage = Stage::Removing(Arc::clone(&rows));
        }
        self.remove(conn, user, rows, fx);
    }

    /// Rows were removed, or not: a page is read only when they are gone, or it would repeat them.
    pub(super) fn removed(
        &mut self,
        conn: ConnId,
        user: UserId,
        rows: Arc<[RowId]>,
        answer: Result<Answer, StoreError>,
        now: Now,
        fx: &mut Effects,
    ) {
        if self.session_mut(conn, user).is_none() {
            return; // the next login repeats them, should they still be there
        }
        match answer {
            Ok(Answer::Wrote(Outcome::Lost)) => return self.claim_is_lost(user, fx),
            Ok(_) => {}
            Err(_) => {
                return fx.push(Effect::Timer(now.at + RETRY, Timer::Remove(Box::new(Removal { conn, user, rows }))));
            }
        }
        let Some((_, spill)) = self.spill_mut(conn) else { return };
        if matches!(&spill.stage, Stage::Removing(removing) if *removing == rows) {
            spill.stage = Stage::Queue;
            self.advance_drain(conn, fx);
        }
    }

    pub(super) fn retry_remove(&mut self, Removal { conn, user, rows }: Removal, fx: &mut Effects) {
        if self.session_mut(conn, user).is_some() {
            self.remove(conn, user, rows, fx);
        }
    }

    pub(super) fn retry_page(&mut self, conn: ConnId, fx: &mut Effects) {
        let Some((_, spill)) = self.spill_mut(conn) else { return };
        if matches!(spill.stage, Stage::Reading) {
            spill.stage = Stage::Queue;
            self.advance_drain(conn, fx);
        }
    }

    /// A connection is gone. What did not get out is stored, then its session ends.
    pub(super) fn client_gone(
        &mut self,
        conn: ConnId,
        mut client: Client,
        mut unwritten: Vec<Unwritten<Tag>>,
        fx: &mut Effects,
    ) {
        client.give_up();
        let mut refused = None;
        // Only the first can be half-written. Its session is not among the clients any more.
        if let Some(Unwritten { tag: Tag::Chat { to, receipt }, begun: true, .. }) = unwritten.first() {
            let begun = match client.session.as_deref().filter(|session| session.user == *to) {
                Some(session) => Some(session.mode.begun()),
                None => self.leaving.get(to).filter(|leaving| leaving.conn == conn).map(|leaving| leaving.begun),
            };
            if let Some(Begun::Refused(errno)) = begun {
                refused = Some((*to, *receipt, errno));
            }
            if begun.is_some_and(|begun| begun != Begun::None) {
                unwritten.remove(0); // the store has it, is asked for it, or has refused it
            }
        }
        self.return_unwritten(unwritten, fx);
        if let Some(session) = client.session.take() {
            self.leave(conn, *session, false, None, fx);
        }
        if let Some((user, receipt, errno)) = refused {
            // Behind the above, since the sender may be the one who leaves.
            self.begun_failed(user, receipt, errno, fx);
        }
    }

    /// Messages that a connection did not take: each goes to its recipient's store, in order.
    pub(super) fn return_unwritten(&mut self, unwritten: impl IntoIterator<Item = Unwritten<Tag>>, fx: &mut Effects) {
        for Unwritten { tag, body, .. } in unwritten {
            match tag {
                Tag::Chat { to, receipt } => self.keep(to, body, receipt, fx),
                Tag::Offline { .. } => {} // they are still in the store
                Tag::Barrier { user } => self.barrier_passed(user, fx),
            }
        }
    }

    /// Where there is a proxy, every connection comes from it and says first whose it is. A stranger
    /// may claim no address, and is closed: false.
    pub(super) fn expect_proxy_header(&mut self, conn: ConnId, fx: &mut Effects) -> bool {
        let proxies = &self.settings.proxies;
        let Some(client) = self.clients.get_mut(conn).filter(|_| !proxies.is_empty()) else { return true };
        let ip = client.peer.ip();
        client.header_due = proxies.iter().any(|network| network.contains(&ip));
        client.closing = !client.header_due;
        if client.closing {
            log::debug!("{conn}: {ip} is none of the proxies");
            fx.push(Effect::Close(conn, CloseReason::NotTheProxy));
        }
        client.header_due
    }

    /// Reads the header at the front of `input`, if one is due, and returns its length; `None`: it
    /// is not whole yet.
    pub(super) fn proxy_header(&mut self, conn: ConnId, input: &[u8], fx: &mut Effects) -> Option<usize> {
        let client = self.clients.get_mut(conn).filter(|client| client.header_due && !client.closing);
        let Some(client) = client else { return Some(0) };
        match ProxyHeader::parse(input) {
            Ok(header) => {
                let header = header?;
                client.header_due = false;
                if let Some(source) = header.source.map(canonical) {
                    log::debug!("{conn}: {source} has connected, through {}", client.peer);
                    client.peer = source;
                    self.admit_address(conn, fx);
                }
                Some(header.length)
            }
            Err(bad) => {
                self.refuse_proxy_header(conn, bad, fx);
                Some(0)
            }
        }
    }

    pub(super) fn refuse_proxy_header(&mut self, conn: ConnId, bad: BadHeader, fx: &mut Effects) {
        let refusal = Refusal::new(Errno::Unfollowable, bad.to_string());
        self.refuse_and_close(conn, refusal, CloseReason::BadProxyHeader, fx);
    }

    /// Has the login timer found somebody who has not logged in?
    pub(super) fn login_timer(&mut self, conn: ConnId, now: Now, fx: &mut Effects) {
        let Some(timeout) = self.settings.login_timeout else { return };
        let Some(client) = self.clients.get_mut(conn) else { return };
        if client.session.is_some() {
            return; // a logout sets it again
        }
        let due = client.tally(now.at).out_since + timeout;
        if client.waiting || due > now.at {
            fx.push(Effect::Timer(due.max(now.at + RETRY), Timer::Login(conn)));
        } else {
            self.refuse_and_close(conn, Refusal::busy("no login in time", 1), CloseReason::LoginTimeout, fx);
        }
    }

    /// Has the idle timer found somebody who has been silent?
    pub(super) fn idle_timer(&mut self, conn: ConnId, now: Now, fx: &mut Effects) {
        let Some(timeout) = self.settings.idle_timeout else { return };
        let Some(client) = self.clients.get_mut(conn) else { return };
        let last_input = client.tally(now.at).last_input;
        let (ask, due) = (last_input + timeout / 2, last_input + timeout);
        if ask > now.at {
            fx.push(Effect::Timer(ask, Timer::Idle(conn)));
        } else if due > now.at {
            // Only those who know what it is: to all others nothing is sent that the original does not send.
            if client.uses_seq || client.knows_ping {
                self.reply(conn, fx, reply::ping);
            }
            fx.push(Effect::Timer(due, Timer::Idle(conn)));
        } else if client.pending > 0 {
            fx.push(Effect::Timer(now.at + RETRY, Timer::Idle(conn)));
        } else {
            self.refuse_and_close(
                conn,
                Refusal::new(Errno::Busy, "closed for being idle"),
                CloseReason::IdleTimeout,
                fx,
            );
        }
    }

    /// Queues one chat on a live session's connection.
    pub(super) fn push_live(&mut self, conn: ConnId, to: UserId, text: Text<'_>, receipt: Receipt, fx: &mut Effects) {
        let Some(client) = self.clients.get(conn) else { return };
        let body = match text {
            Text::Borrowed(bytes) => {
                let from = fx.bytes.len();
                fx.bytes.extend_from_slice(bytes);
                Payload::Own(from..fx.bytes.len())
            }
            Text::Shared(bytes) => Payload::Shared(bytes),
        };
        let framing = client.framing.framing();
        let tag = Some(Tag::Chat { to, receipt });
        fx.push(Effect::Send { conn, body, framing, tag, manner: Manner::default() });
    }
}
