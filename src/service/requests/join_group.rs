//! JOIN_GROUP.

use crate::reactor::ConnId;
use crate::service::jobs::Answer;
use crate::service::shard::{Call, Shard};
use crate::service::{Effects, Letter, group_id};
use crate::store::{Outcome, StoreError};
use crate::wire::{Errno, Refusal, msgid};

impl Shard {
    pub(crate) fn join_group(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let user = self.me(call)?.user;
        let group = group_id(call.request.groupid()?).ok_or(Errno::NoSuchGroup)?;
        self.owe(call.conn, fx);
        self.begin_change(call.conn);
        if let Some(client) = self.clients.get_mut(call.conn) {
            client.joins += 1;
        }
        let letter = Letter::Join { group, user, conn: call.conn, seq: call.seq };
        self.send(self.homes().of_group(group), letter, fx);
        Ok(())
    }

    /// A join counts on all nodes, or it does not.
    pub(crate) fn joined(
        &mut self,
        conn: ConnId,
        seq: Option<i64>,
        outcome: Result<Outcome, StoreError>,
        fx: &mut Effects,
    ) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.joins -= 1;
        }
        self.acked(conn, msgid::JOIN_GROUP, seq, outcome.map(Answer::Wrote), fx);
    }
}
