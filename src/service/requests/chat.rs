//! ONE_CHAT: one user to another.

use std::borrow::Cow;
use std::sync::Arc;

use crate::service::call::{Call, user_id};
use crate::service::client::LoggedIn;
use crate::service::receipts::Text;
use crate::service::shard::Shard;
use crate::service::{Effect, Letter, Receipt};
use crate::wire::{Errno, Refusal, rewrite_chat};

impl Shard {
    pub(crate) fn one_chat(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let user = self.me(call)?.session.user;
        let to = call.request.toid()?;
        let text = self.outgoing(call)?;
        let to = user_id(to).ok_or(Errno::NoSuchUser)?;
        // What needs no ack is not waited for, unless it takes long: then the recipient's home says so. But a
        // sender who can go on at another node has to wait: what is sent from there must not come before it.
        let owed = call.seq.is_some() || !self.settings.single_node;
        if owed {
            self.owe_send(call.conn, user);
        }
        let receipt = Receipt::Sender { user, conn: call.conn, seq: call.seq, owed };
        let home = self.homes().of_user(to);
        if home == self.index {
            self.deliver(to, Text::Borrowed(&text), receipt);
        } else {
            self.fx.push(Effect::Post(home, Letter::Chat { to, body: Arc::from(&*text), receipt }));
        }
        Ok(())
    }

    /// The user that a request speaks for: `id` must be the one who is logged in.
    pub(crate) fn me(&self, call: &Call<'_>) -> Result<&LoggedIn, Refusal> {
        let client = self.clients.get(call.conn);
        let me = client.and_then(|client| client.user.as_deref()).ok_or(Errno::NotLoggedIn)?;
        if call.request.id()? == i64::from(me.session.user) { Ok(me) } else { Err(Errno::NotYou.into()) }
    }

    /// A chat as it is forwarded: as it came, unless `name` or `time` must be set.
    pub(crate) fn outgoing<'a>(&mut self, call: &Call<'a>) -> Result<Cow<'a, [u8]>, Refusal> {
        let chat = call.request.chat()?;
        let name = &self.me(call)?.name;
        if chat.is_complete(name) {
            return Ok(Cow::Borrowed(call.object));
        }
        let name = name.clone();
        let mut text = Vec::with_capacity(call.object.len() + 128);
        rewrite_chat(call.object, chat, &name, self.local_time(), &mut text);
        Ok(Cow::Owned(text))
    }
}
