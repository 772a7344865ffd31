//! Friends, lists, and ping.

use super::{Answer, Call, Effect, Effects, Op, Payload, Shard, Then, user_id};
use crate::reactor::{ConnId, Manner};
use crate::store::{Outcome, StoreError, Write};
use crate::wire::{Errno, Refusal, msgid, reply};

impl Shard {
    pub(super) fn add_friend(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let user = self.me(call)?.user;
        let friend = user_id(call.request.friendid()?).ok_or(Errno::NoSuchUser)?;
        self.owe(call.conn, fx);
        self.begin_change(call.conn);
        let then = Then::Ack { conn: call.conn, request: call.msgid, seq: call.seq };
        self.submit(self.user_lane(user), then, Op::Write(Write::AddFriend { user, friend }), fx);
        Ok(())
    }

    /// A change is done, or refused: the client is told.
    pub(super) fn acked(
        &mut self,
        conn: ConnId,
        request: i64,
        seq: Option<i64>,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        let refusal: Option<Refusal> = match answer {
            Ok(Answer::Wrote(Outcome::Done | Outcome::Id(_))) => None,
            Ok(Answer::Wrote(Outcome::Already)) => Some(Refusal::new(
                Errno::AlreadySo,
                match request {
                    msgid::ADD_FRIEND => "already a friend",
                    msgid::CREATE_GROUP => "this group name is taken",
                    _ => "already a member of this group",
                },
            )),
            Ok(Answer::Wrote(Outcome::Full(quota))) => {
                self.counts.limits.of(quota.into()).add(1);
                Some(super::limits::is_full(quota))
            }
            Ok(Answer::Wrote(Outcome::NoUser)) => Some(Errno::NoSuchUser.into()),
            Ok(Answer::Wrote(Outcome::NoGroup)) => Some(Errno::NoSuchGroup.into()),
            other => Some(super::store_failure(other)),
        };
        match (refusal, seq) {
            (Some(refusal), _) => self.refuse(conn, Some(request), seq, &refusal, fx),
            (None, Some(seq)) => self.reply(conn, fx, |out| reply::ack(out, seq)),
            (None, None) => {}
        }
        self.end_change(conn, fx);
        self.paid(conn, fx);
    }

    pub(super) fn list(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let session = self.clients.get(call.conn).and_then(|client| client.session.as_deref());
        let user = session.ok_or(Errno::NotLoggedIn)?.user;
        // One at a time: the reply may be large, and input behind it waits until it is written.
        self.begin_waiting(call.conn, fx);
        let then = Then::Listed { conn: call.conn, seq: call.seq };
        self.submit(self.user_lane(user), then, Op::Lists { user, seq: call.seq }, fx);
        Ok(())
    }

    pub(super) fn listed(
        &mut self,
        conn: ConnId,
        seq: Option<i64>,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        if let Ok(Answer::Bytes(bytes)) = answer {
            if let Some(client) = self.clients.get(conn) {
                let (framing, body) = (client.framing.framing(), Payload::Shared(bytes.into()));
                // As a login reply: its size is not the client's doing.
                fx.push(Effect::Send { conn, body, framing, tag: None, manner: Manner { alone: false, exempt: true } });
            }
        } else {
            self.refuse(conn, Some(msgid::LIST), seq, &Errno::StoreUnavailable.into(), fx);
        }
        self.end_waiting(conn, fx);
    }

    pub(super) fn ping(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        self.note_ping(call.conn);
        self.reply(call.conn, fx, |out| reply::pong(out, call.seq));
        Ok(())
    }

    /// The answer to our ping; that it came is all it says.
    pub(super) fn pong(&mut self, call: &Call<'_>, _: &mut Effects) -> Result<(), Refusal> {
        self.note_ping(call.conn);
        Ok(())
    }

    fn note_ping(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.knows_ping = true;
        }
    }
}
