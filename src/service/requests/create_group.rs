//! CREATE_GROUP.

use crate::reactor::ConnId;
use crate::service::jobs::{Answer, Then};
use crate::service::shard::{Call, Shard};
use crate::store::{Outcome, StoreError, Write};
use crate::wire::{Refusal, msgid, reply};

impl Shard {
    pub(crate) fn create_group(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let creator = self.me(call)?.session.user;
        let (name, description) = (call.request.groupname()?.to_owned(), call.request.groupdesc()?.to_owned());
        self.owe(call.conn);
        self.begin_change(call.conn);
        let then = Then::GroupCreated { conn: call.conn, seq: call.seq };
        let write = Write::CreateGroup { creator, name, description };
        self.write(creator, then, write);
        Ok(())
    }

    pub(crate) fn group_created(&mut self, conn: ConnId, seq: Option<i64>, answer: Result<Answer, StoreError>) {
        if let (Ok(Answer::Wrote(Outcome::Id(group))), Some(seq)) = (&answer, seq) {
            let group = *group;
            self.reply(conn, |out| reply::ack_group_created(out, seq, group));
            self.end_change(conn);
            return self.paid(conn);
        }
        self.acked(conn, msgid::CREATE_GROUP, seq, answer);
    }
}
