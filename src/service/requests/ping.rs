//! PING and PONG.

use crate::reactor::ConnId;
use crate::service::call::Call;
use crate::service::shard::Shard;
use crate::wire::{Refusal, reply};

impl Shard {
    pub(crate) fn ping(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        self.note_ping(call.conn);
        self.reply(call.conn, |out| reply::pong(out, call.seq));
        Ok(())
    }

    /// The answer to our ping; that it came is all it says.
    pub(crate) fn pong(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        self.note_ping(call.conn);
        Ok(())
    }

    fn note_ping(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(conn) {
            client.knows_ping = true;
        }
    }
}
