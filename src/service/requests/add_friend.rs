//! ADD_FRIEND; and the ack of all that changes something.

use crate::service::call::{Call, store_failure, user_id};
use crate::service::jobs::{Answer, Then};
use crate::service::limits::is_full;
use crate::service::receipts::ReplyTo;
use crate::service::shard::Shard;
use crate::store::{Outcome, StoreError, UserId, Write};
use crate::wire::{Errno, Refusal, msgid, reply};

impl Shard {
    pub(crate) fn add_friend(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let user = self.me(call)?.session.user;
        let friend = user_id(call.request.friendid()?).ok_or(Errno::NoSuchUser)?;
        self.change(call, user, Write::AddFriend { user, friend });
        Ok(())
    }

    /// Has the store change something for a user, who is told when that is done.
    pub(crate) fn change(&mut self, call: &Call<'_>, user: UserId, write: Write) {
        self.owe(call.conn);
        self.begin_change(call.conn);
        self.write(user, Then::Ack { to: call.to(), request: call.msgid }, write);
    }

    /// A change is done, or refused: the client is told.
    pub(crate) fn acked(&mut self, to: ReplyTo, request: i64, answer: Result<Answer, StoreError>) {
        let ReplyTo { conn, seq } = to;
        let group = match answer {
            Ok(Answer::Wrote(Outcome::Id(group))) => Some(group),
            _ => None,
        };
        let refusal: Option<Refusal> = match answer {
            Ok(Answer::Wrote(Outcome::Done | Outcome::Id(_) | Outcome::Joined { already: false, .. })) => None,
            Ok(Answer::Wrote(Outcome::Already | Outcome::Joined { .. })) => Some(Refusal::new(
                Errno::AlreadySo,
                match request {
                    msgid::ADD_FRIEND => "already a friend",
                    msgid::CREATE_GROUP => "this group name is taken",
                    _ => "already a member of this group",
                },
            )),
            Ok(Answer::Wrote(Outcome::Full(quota))) => {
                self.counts.limits.of(quota.into()).add(1);
                Some(is_full(quota))
            }
            Ok(Answer::Wrote(Outcome::NoUser)) => Some(Errno::NoSuchUser.into()),
            Ok(Answer::Wrote(Outcome::NoGroup)) => Some(Errno::NoSuchGroup.into()),
            other => Some(store_failure(other)),
        };
        match (refusal, seq) {
            (Some(refusal), _) => self.refuse(conn, Some(request), seq, &refusal),
            (None, Some(seq)) => self.reply(conn, |out| match group {
                Some(group) => reply::ack_group_created(out, seq, group),
                None => reply::ack(out, seq),
            }),
            (None, None) => {}
        }
        self.end_change(conn);
        self.paid(conn);
    }
}
