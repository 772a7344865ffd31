//! LOGINOUT.

use crate::service::call::Call;
use crate::service::shard::Shard;
use crate::wire::Refusal;

impl Shard {
    pub(crate) fn logout(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        self.me(call)?;
        if call.seq.is_some() {
            self.owe(call.conn);
        }
        self.log_out(call.conn, call.seq);
        Ok(())
    }
}
