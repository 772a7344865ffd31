//! What a client can ask for: a file for each, with what becomes of the answers that it waits for.

mod add_friend;
mod chat;
mod create_group;
mod group_chat;
mod join_group;
mod list;
mod login;
mod logout;
mod ping;
mod register;

use super::call::Call;
use super::jobs::{Answer, Op, Read, Then};
use super::receipts::ReplyTo;
use super::shard::Shard;
use super::{Asks, Effect, Payload};
use crate::reactor::{ConnId, SendOptions};
use crate::store::{Connection, StoreError, UserId};
use crate::wire::dialect::Heard;
use crate::wire::{Errno, Refusal, Request, msgid};

/// Carries a request out, or says why not.
type RequestHandler = fn(&mut Shard, &Call<'_>) -> Result<(), Refusal>;

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

impl Shard {
    /// Whether an object bears the number of a request; `None`: it bears no number, or an unknown one with a `seq`.
    pub(super) fn is_known(request: &Request, number: Option<i64>, heard: &Heard) -> Option<bool> {
        match heard {
            Heard::Theirs(..) => Some(true),
            Heard::Unknown => Some(false),
            Heard::Canon => {
                let number = number?;
                let is_known = HANDLERS.iter().any(|(id, ..)| *id == number);
                (is_known || !request.has_seq()).then_some(is_known)
            }
        }
    }

    /// Hands a request to its handler, and answers a refusal.
    pub(super) fn call(&mut self, call: &Call<'_>) {
        let (asks, handler) = match HANDLERS.iter().find(|(id, ..)| *id == call.msgid) {
            Some((_, asks, handler)) => (*asks, Some(*handler)),
            None => (Asks::Unknown, None),
        };
        self.counts.requests.of(asks).add(1);
        let result = match handler {
            None if call.seq.is_none() && self.was_told(call.conn, call.msgid) => return,
            None => Err(Errno::UnknownMsgid.into()),
            Some(_) if self.shutting_down => Err(Errno::ShuttingDown.into()),
            Some(handler) => handler(self, call),
        };
        if let Err(refusal) = result {
            self.refuse(call.conn, Some(call.msgid), call.seq, &refusal);
        }
    }

    /// Whether a client that does not use `seq` was told already that this number is unknown: it may be a heartbeat,
    /// and a C++ client dies of the answer.
    fn was_told(&mut self, conn: ConnId, msgid: i64) -> bool {
        let now = self.now.at;
        let Some(client) = self.clients.get_mut(conn).filter(|client| !client.uses_seq) else { return false };
        client.tally(now).cpp.get_or_insert_default().was_told(msgid)
    }
}

/// Requests that only read the store.
impl Shard {
    /// Has a worker read what a request of this user asks for, and write the reply. One at a time: the reply may be
    /// large, and input behind it waits until it is written.
    fn begin_read(
        &mut self,
        call: &Call<'_>,
        user: UserId,
        read: impl FnOnce(&mut dyn Connection) -> Result<Vec<u8>, StoreError> + Send + 'static,
    ) {
        self.begin_waiting(call.conn);
        let then = Then::Reply { to: call.to(), request: call.msgid };
        self.submit(self.lane(user), then, Op::Read(Read(Box::new(read))));
    }

    pub(super) fn was_read(&mut self, to: ReplyTo, request: i64, answer: Result<Answer, StoreError>) {
        let conn = to.conn;
        if let Ok(Answer::Bytes(mut bytes)) = answer {
            if let Some(client) = self.clients.get(conn).filter(|client| !client.is_closed_socket()) {
                let framing = client.framing();
                if client.speaker.is_some() {
                    bytes = self.reply_in_dialect(conn, &bytes);
                }
                let body = Payload::Shared(bytes.into());
                // As a login reply: its size is not the client's doing.
                let options = SendOptions { own_write: false, uncounted: true };
                self.fx.push(Effect::Send { conn, body, framing, tag: None, options });
            }
        } else {
            self.refuse(conn, Some(request), to.seq, &Errno::StoreUnavailable.into());
        }
        self.end_waiting(conn);
    }
}
