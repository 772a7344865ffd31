//! REGISTER.

use crate::reactor::{ConnId, Origin};
use crate::service::call::{Call, store_failure};
use crate::service::jobs::{Answer, Lane, Op, Then};
use crate::service::shard::Shard;
use crate::store::{Outcome, StoreError};
use crate::wire::{Errno, Refusal, reply};

/// The width of the column that C++ nodes have for a password, in bytes.
const PLAIN_PASSWORD: usize = 50;

impl Shard {
    pub(crate) fn register(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let name = call.request.name()?.to_owned();
        let password = call.request.password()?;
        if self.settings.mixed && password.len() > PLAIN_PASSWORD {
            let text = "password is longer than 50 bytes, the most that the C++ nodes here can read";
            return Err(Refusal::new(Errno::BadField, text));
        }
        let password = password.into();
        let (conn, from) = (call.conn, self.origin(call.conn)?);
        self.may_register(from)?;
        let attempt = self.begin_attempt(conn, None, call.seq);
        match self.enter_hashing(conn) {
            Ok(place) => {
                let then = Then::Registered { conn, from, attempt };
                self.submit(Lane::None, then, Op::Register { name, password, place });
            }
            Err(refusal) => {
                self.forget_registration(from);
                self.refuse_attempt(conn, &refusal);
            }
        }
        Ok(())
    }

    pub(crate) fn registered(&mut self, conn: ConnId, from: Origin, attempt: u64, answer: Result<Answer, StoreError>) {
        self.counts.count_password(&answer);
        if !matches!(answer, Ok(Answer::Wrote(_))) {
            self.forget_registration(from);
        }
        let Some(seq) = self.waits_for(conn, attempt).map(|attempt| attempt.seq) else { return };
        match answer {
            Ok(Answer::Wrote(Outcome::Id(id))) => {
                self.reply_with(conn, true, |out| reply::registered(out, seq, id));
                self.end_attempt(conn);
            }
            Ok(Answer::Wrote(Outcome::Already)) => {
                self.refuse_attempt(conn, &Refusal::new(Errno::Rejected, "this name is taken!"));
            }
            other => self.refuse_attempt(conn, &store_failure(other)),
        }
    }
}
