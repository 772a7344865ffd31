//! A request on its way to its handler, and what handlers make of its numbers and of answers that do not fit.

use super::receipts::ReplyTo;
use crate::reactor::ConnId;
use crate::store::{GroupId, UserId};
use crate::wire::{Errno, Refusal, Request};

/// One request on its way to its handler.
pub(crate) struct Call<'a> {
    pub conn: ConnId,
    pub msgid: i64,
    pub seq: Option<i64>,
    pub request: &'a Request<'a>,
    /// The object as it came.
    pub object: &'a [u8],
}

impl Call<'_> {
    pub fn to(&self) -> ReplyTo {
        ReplyTo { conn: self.conn, seq: self.seq }
    }
}

/// A user's id, if the number can be one.
pub(super) fn user_id(id: i64) -> Option<UserId> {
    i32::try_from(id).ok().filter(|id| *id > 0).map(|id| id as UserId)
}

/// A group's id, if the number can be one.
pub(super) fn group_id(id: i64) -> Option<GroupId> {
    user_id(id)
}

/// What is refused where the store gave an answer that its question does not have, or none.
pub(super) fn store_failure<T>(_: T) -> Refusal {
    Errno::StoreUnavailable.into()
}
