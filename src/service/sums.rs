//! Sums of group messages: what has become of each for its recipients, as far as it is known.

use std::collections::HashMap;

use super::receipts::{Receipt, ReplyTo};
use crate::store::UserId;
use crate::wire::reply::FanOut;

/// Sums of group messages that are not complete, by key. One is looked up for each recipient, so by the hash of
/// [`super::users::Users`].
#[derive(Default)]
pub(super) struct Sums {
    pub sums: HashMap<u64, Sum, foldhash::fast::RandomState>,
    next_key: u64,
}

/// What has become of a group message, or of a part of it, as far as it is known.
pub(super) struct Sum {
    pub whose: Whose,
    pub sum: FanOut,
    /// The number of those messages by which its sender is a debtor.
    pub open: u32,
    /// Recipients that are not settled; below 0 while their number is not known.
    pub left: i64,
    pub is_known: bool,
}

pub(super) enum Whose {
    /// The user who has sent it on this connection.
    Message { user: UserId, to: ReplyTo },
    /// The sum of the whole message.
    Part(Receipt),
}

impl Sums {
    /// A new one of a message, of which the number of recipients is not known yet.
    pub fn of_message(&mut self, user: UserId, to: ReplyTo) -> u64 {
        self.add(Sum { whose: Whose::Message { user, to }, sum: FanOut::default(), open: 0, left: 0, is_known: false })
    }

    /// A new one of some recipients.
    pub fn of_part(&mut self, recipients: usize, whole: Receipt) -> u64 {
        let left = recipients as i64;
        self.add(Sum { whose: Whose::Part(whole), sum: FanOut::default(), open: 0, left, is_known: true })
    }

    fn add(&mut self, sum: Sum) -> u64 {
        self.next_key += 1;
        self.sums.insert(self.next_key, sum);
        self.next_key
    }
}
