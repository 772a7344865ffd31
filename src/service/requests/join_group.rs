//! JOIN_GROUP.

use crate::service::Letter;
use crate::service::call::{Call, group_id};
use crate::service::jobs::{Answer, Then};
use crate::service::receipts::ReplyTo;
use crate::service::shard::Shard;
use crate::store::{GroupId, Outcome, StoreError, UserId, Write};
use crate::wire::{Errno, Refusal, msgid};

impl Shard {
    pub(crate) fn join_group(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let user = self.me(call)?.session.user;
        let group = group_id(call.request.groupid()?).ok_or(Errno::NoSuchGroup)?;
        self.owe(call.conn);
        self.begin_change(call.conn);
        if let Some(client) = self.clients.get_mut(call.conn) {
            client.joins += 1;
        }
        self.send(self.homes().of_group(group), Letter::Joining { group, user });
        let then = Then::GroupJoined { group, user, to: call.to() };
        // The user's lane, as all that changes what the user's lists and quotas say.
        self.write(user, then, Write::JoinGroup { user, group });
        Ok(())
    }

    /// A join is committed, or not: the group's home tells all nodes.
    pub(crate) fn group_joined(
        &mut self,
        group: GroupId,
        user: UserId,
        to: ReplyTo,
        answer: Result<Answer, StoreError>,
    ) {
        let outcome = match answer {
            Ok(Answer::Wrote(outcome)) => Ok(outcome),
            Ok(_) => Err(StoreError::Unavailable("no answer to a join".into())),
            Err(error) => Err(error),
        };
        let letter = Letter::JoinStored { group, user, to, outcome };
        self.send(self.homes().of_group(group), letter);
    }

    /// A join counts on all nodes, or it does not.
    pub(crate) fn joined(&mut self, to: ReplyTo, outcome: Result<Outcome, StoreError>) {
        if let Some(client) = self.clients.get_mut(to.conn) {
            client.joins -= 1;
        }
        self.acked(to, msgid::JOIN_GROUP, outcome.map(Answer::Wrote));
    }
}
