//! LIST.

use crate::service::call::Call;
use crate::service::shard::Shard;
use crate::wire::{Errno, Refusal, reply};

impl Shard {
    pub(crate) fn list(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let client = self.clients.get(call.conn);
        let user = client.and_then(|client| client.user.as_deref()).ok_or(Errno::NotLoggedIn)?.session.user;
        let seq = call.seq;
        self.begin_read(call, user, move |store| {
            let (friends, groups) = (store.friends(user)?, store.groups(user)?);
            let mut bytes = Vec::new();
            reply::lists(&mut bytes, seq, &friends, &groups);
            Ok(bytes)
        });
        Ok(())
    }
}
