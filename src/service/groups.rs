//! What groups do at their homes, and the sums of their messages.
//!
//! Whatever is sent to a group goes by its home, and from there to the homes of its members; so does each join,
//! and what its user sends to the group next waits there until the join is committed. What became of a group
//! message is added up at its sender's home, where the number of its recipients may come before or after that.

use std::sync::Arc;

use super::letters::GroupMessage;
use super::members::{Group, Loading, Members};
use super::questions::Question;
use super::receipts::{Receipt, ReplyTo, Text};
use super::shard::Shard;
use super::sums::{Sum, Whose};
use super::{Answer, Letter, Op, Then};
use crate::bus::{Envelope, Ticket};
use crate::store::{GroupId, NodeId, Outcome, StoreError, UserId};
use crate::wire::reply::FanOut;
use crate::wire::{Errno, Refusal, msgid, reply};

impl Shard {
    /// A group message has come to the group's home.
    pub(super) fn group_chat_came(&mut self, message: GroupMessage) {
        let id = message.group;
        let group = self.groups.groups.entry(id).or_default();
        if group.joining.contains(&message.sender) {
            return group.waiting.push(message);
        }
        match &group.members {
            Some(members) => {
                let members = members.clone();
                self.fan_out(&members, message);
            }
            None => {
                group.waiting.push(message);
                if group.loading.is_none() {
                    group.loading = Some(Loading::default());
                    self.submit(self.lane(id), Then::Members(id), Op::Members(id));
                }
            }
        }
    }

    /// A group's members are read: what has waited for them goes out, in order.
    pub(super) fn members_loaded(&mut self, id: GroupId, answer: Result<Answer, StoreError>) {
        let homes = *self.homes();
        let Some(group) = self.groups.groups.get_mut(&id) else { return };
        let Some(Loading { joined, outdated }) = group.loading.take() else { return };
        let waiting = std::mem::take(&mut group.waiting);
        let members = match answer {
            Ok(Answer::Members(Some(members))) => Ok(Members::new([members, joined].concat(), &homes)),
            Ok(Answer::Members(None)) => Err(Errno::NoSuchGroup),
            _ => Err(Errno::StoreUnavailable),
        };
        // Without the bus no join of another node is announced, and C++ nodes never announce theirs.
        let may_keep = !outdated && self.is_up && !self.settings.mixed;
        if let Some(members) = members.as_ref().ok().filter(|_| may_keep) {
            self.groups.keep(id, members.clone());
        }
        for message in waiting {
            let is_joining = |group: &Group| group.joining.contains(&message.sender);
            match (&members, self.groups.groups.get_mut(&id)) {
                (_, Some(group)) if is_joining(group) => group.waiting.push(message),
                (Ok(members), _) => self.fan_out(members, message),
                (Err(errno), _) => self.tell_size(message.receipt, Err(*errno)),
            }
        }
        self.tidy_group(id);
    }

    fn tidy_group(&mut self, id: GroupId) {
        if self.groups.groups.get(&id).is_some_and(|group| !group.is_in_use()) {
            self.groups.groups.remove(&id);
        }
    }

    /// Sends one message to all members but its sender: one letter for each shard that has some.
    fn fan_out(&mut self, members: &Members, message: GroupMessage) {
        if !members.has(message.sender, self.homes()) {
            return self.tell_size(message.receipt, Err(Errno::NotAMember));
        }
        self.tell_size(message.receipt, Ok(members.count as u32 - 1));
        for (shard, to) in members.by_home.iter().enumerate() {
            if to.iter().any(|member| *member != message.sender) {
                self.send(shard, Letter::Fan { to: Arc::clone(to), message: message.clone() });
            }
        }
    }

    fn tell_size(&mut self, receipt: Receipt, size: Result<u32, Errno>) {
        if let Receipt::Sum { shard, key, .. } = receipt {
            self.send(usize::from(shard), Letter::FanSize { key, size });
        }
    }

    /// A group message for those of its members whose home this is.
    pub(super) fn fan(&mut self, to: &[UserId], message: GroupMessage) {
        let GroupMessage { sender, body, receipt, .. } = message;
        let recipients = to.iter().filter(|member| **member != sender).count();
        let receipt = match receipt {
            // One sum less.
            Receipt::Sum { user, .. } if recipients > 1 => {
                let key = self.sums.of_part(recipients, receipt);
                Receipt::Sum { user, shard: self.index as u16, key }
            }
            receipt => receipt,
        };
        for member in to.iter().filter(|member| **member != sender) {
            self.deliver(*member, Text::Shared(Arc::clone(&body)), receipt);
        }
    }

    // -- sums -------------------------------------------------------------------------------

    /// The group's home reports the number of recipients of a group message, or why it has none.
    pub(super) fn fan_size(&mut self, key: u64, size: Result<u32, Errno>) {
        match (size, self.sums.sums.get_mut(&key)) {
            (Ok(size), Some(sum)) => {
                sum.left += i64::from(size);
                sum.is_known = true;
                self.finish_sum(key);
            }
            (Err(errno), Some(_)) => {
                if let Some(Sum { whose: Whose::Message { user, to: ReplyTo { conn, seq } }, .. }) =
                    self.sums.sums.remove(&key)
                {
                    self.refuse(conn, Some(msgid::GROUP_CHAT), seq, &errno.into());
                    self.pay_send(conn, user, 0);
                }
            }
            (_, None) => {}
        }
    }

    /// What became of a group message for some of its recipients.
    pub(super) fn fan_part(&mut self, key: u64, part: FanOut, open: u32) {
        let Some(sum) = self.sums.sums.get_mut(&key) else { return };
        sum.sum += part;
        sum.open += open;
        sum.left -= i64::from(part.total());
        self.finish_sum(key);
    }

    fn finish_sum(&mut self, key: u64) {
        if self.sums.sums.get(&key).is_none_or(|sum| sum.left > 0 || !sum.is_known) {
            return;
        }
        let Some(Sum { sum, open, whose, .. }) = self.sums.sums.remove(&key) else { return };
        let (user, conn, seq) = match whose {
            Whose::Part(Receipt::Sum { shard, key, .. }) => {
                return self.send(usize::from(shard), Letter::FanPart { key, part: sum, open });
            }
            Whose::Part(_) => return,
            Whose::Message { user, to } => (user, to.conn, to.seq),
        };
        match seq {
            Some(seq) => self.reply(conn, |out| reply::ack_group_chat(out, seq, sum)),
            None if sum.failed > 0 => {
                let text = format!(
                    "{} members could not be served: they have too many offline messages, or storage is unavailable",
                    sum.failed
                );
                let refusal = Refusal::new(Errno::StoreUnavailable, text);
                self.refuse(conn, Some(msgid::GROUP_CHAT), None, &refusal);
            }
            None => {}
        }
        self.pay_send(conn, user, open);
    }

    // -- joins ------------------------------------------------------------------------------

    /// A user's join of a group whose home this is is on its way to the store.
    pub(super) fn joining(&mut self, group: GroupId, user: UserId) {
        self.groups.groups.entry(group).or_default().joining.push(user);
    }

    /// A join is committed, or not. Before it is acked, all nodes that may have read the members before know of it.
    pub(super) fn join_stored(&mut self, id: GroupId, user: UserId, to: ReplyTo, outcome: Result<Outcome, StoreError>) {
        let homes = *self.homes();
        // A join that is not known to have failed may have been done.
        if matches!(outcome, Ok(Outcome::Joined { .. }) | Err(_)) {
            self.groups.joined(id, user, &homes);
        }
        match outcome {
            Ok(Outcome::Joined { already, nodes }) if !nodes.is_empty() => {
                // Also a join that was done before: it may not have been announced, since the node that did it died, or
                // the answer was lost.
                self.tell_nodes(id, user, (to, already), nodes);
            }
            outcome => self.send(to.conn.reactor(), Letter::Joined { to, outcome }),
        }
        let Some(group) = self.groups.groups.get_mut(&id) else { return };
        if let Some(at) = group.joining.iter().position(|joining| *joining == user) {
            group.joining.remove(at);
        }
        if group.loading.is_none() {
            let waiting = std::mem::take(&mut group.waiting);
            waiting.into_iter().for_each(|message| self.group_chat_came(message));
        }
        self.tidy_group(id);
    }

    fn tell_nodes(&mut self, group: GroupId, user: UserId, whose: (ReplyTo, bool), nodes: Vec<NodeId>) {
        let begun = self.now.at;
        let ticket = self.ask(Question::Join { group, user, nodes: nodes.clone(), whose: Some(whose), begun });
        for node in nodes {
            self.fx.send_to_node(node, Envelope::Joined { group, user, ticket });
        }
    }

    /// A user has joined a group on another node.
    pub(super) fn joined_elsewhere(&mut self, group: GroupId, user: UserId, from: NodeId, ticket: Ticket) {
        let homes = *self.homes();
        self.groups.joined(group, user, &homes);
        self.fx.send_to_node(from, Envelope::Seen { ticket });
    }
}
