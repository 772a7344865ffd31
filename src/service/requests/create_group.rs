//! CREATE_GROUP.

use crate::service::call::Call;
use crate::service::shard::Shard;
use crate::store::Write;
use crate::wire::Refusal;

impl Shard {
    pub(crate) fn create_group(&mut self, call: &Call<'_>) -> Result<(), Refusal> {
        let creator = self.me(call)?.session.user;
        let (name, description) = (call.request.groupname()?.to_owned(), call.request.groupdesc()?.to_owned());
        self.change(call, creator, Write::CreateGroup { creator, name, description });
        Ok(())
    }
}
