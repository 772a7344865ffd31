//! GROUP_CHAT: one user to all others of a group.

use std::sync::Arc;

use crate::service::call::{Call, group_id};
use crate::service::shard::Shard;
use crate::service::{GroupMessage, Letter, Receipt};
use crate::wire::{Errno, Refusal};

impl Shard {
    pub(crate) fn group_chat(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let sender = self.me(call)?.session.user;
        let group = call.request.groupid()?;
        let text = self.outgoing(call)?;
        let group = group_id(group).ok_or(Errno::NoSuchGroup)?;
        self.owe_send(call.conn, sender);
        let key = self.sums.of_message(sender, call.to());
        let receipt = Receipt::Sum { user: sender, shard: self.index as u16, key };
        let message = GroupMessage { group, sender, body: Arc::from(&*text), receipt };
        self.send(self.homes().of_group(group), Letter::GroupChat(message));
        Ok(())
    }
}
