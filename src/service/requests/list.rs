//! LIST.

use crate::reactor::{ConnId, Manner};
use crate::service::jobs::{Answer, Op, Then};
use crate::service::shard::{Call, Shard};
use crate::service::{Effect, Payload};
use crate::store::StoreError;
use crate::wire::{Errno, Refusal, msgid};

impl Shard {
    pub(crate) fn list(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let client = self.clients.get(call.conn);
        let user = client.and_then(|client| client.user.as_deref()).ok_or(Errno::NotLoggedIn)?.session.user;
        // One at a time: the reply may be large, and input behind it waits until it is written.
        self.begin_waiting(call.conn);
        let then = Then::Listed { conn: call.conn, seq: call.seq };
        self.submit(self.lane(user), then, Op::Lists { user, seq: call.seq });
        Ok(())
    }

    pub(crate) fn listed(&mut self, conn: ConnId, seq: Option<i64>, answer: Result<Answer, StoreError>) {
        if let Ok(Answer::Bytes(bytes)) = answer {
            if let Some(client) = self.clients.get(conn) {
                let (framing, body) = (client.framing.framing(), Payload::Shared(bytes.into()));
                // As a login reply: its size is not the client's doing.
                self.fx.push(Effect::Send {
                    conn,
                    body,
                    framing,
                    tag: None,
                    manner: Manner { alone: false, exempt: true },
                });
            }
        } else {
            self.refuse(conn, Some(msgid::LIST), seq, &Errno::StoreUnavailable.into());
        }
        self.end_waiting(conn);
    }
}
