//! Groups: their cached members, and fan-out.

use std::collections::HashMap;
use std::sync::Arc;

use super::chat::Text;
use super::letters::{Letter, Receipt};
use super::{Answer, Call, Effect, Effects, Lane, Op, Shard, Then, group_id};
use crate::reactor::ConnId;
use crate::store::{GroupId, Outcome, Parcel, StoreError, UserId, Write};
use crate::wire::reply::FanOut;
use crate::wire::{Errno, Refusal, msgid, reply};

/// With more members than this in all, a shard's cache begins anew: 16 MiB.
const MAX_CACHED_MEMBERS: usize = 4 * 1024 * 1024;

/// The members of groups that somebody on this shard has written to.
#[derive(Default)]
pub(super) struct GroupCache {
    groups: HashMap<GroupId, Group>,
    /// Members in all of `groups`.
    cached: usize,
    /// Joins of users of this shard that other shards do not know of yet, by key.
    joins: HashMap<u64, PendingJoin>,
    next_key: u64,
}

enum Group {
    Loading {
        /// Chats that wait for the members, oldest first.
        waiting: Vec<GroupMessage>,
        /// Who has joined since the members were asked for.
        joined: Vec<UserId>,
    },
    /// In ascending order.
    Members(Arc<[UserId]>),
}

/// A group chat on its way to all members.
struct GroupMessage {
    conn: ConnId,
    sender: UserId,
    seq: Option<i64>,
    body: Arc<[u8]>,
}

struct PendingJoin {
    conn: ConnId,
    seq: Option<i64>,
    /// Shards that have not answered.
    unseen: usize,
}

/// Fan-outs whose recipients are not all settled, by key.
#[derive(Default)]
pub(super) struct FanOuts {
    fans: HashMap<u64, FanSum>,
    next_key: u64,
}

/// The sum of what has become of one group message, as far as it is known.
struct FanSum {
    /// Recipients that are not settled.
    left: u32,
    sum: FanOut,
    /// Who gets the sum.
    parent: Receipt,
}

impl FanOuts {
    fn add(&mut self, recipients: usize, parent: Receipt) -> u64 {
        self.next_key += 1;
        self.fans.insert(self.next_key, FanSum { left: recipients as u32, sum: FanOut::default(), parent });
        self.next_key
    }
}

impl GroupCache {
    fn insert(&mut self, group: GroupId, members: Arc<[UserId]>) {
        if self.cached + members.len() > MAX_CACHED_MEMBERS {
            self.groups.retain(|_, group| matches!(group, Group::Loading { .. }));
            self.cached = 0;
        }
        self.cached += members.len();
        self.groups.insert(group, Group::Members(members));
    }

    /// A user has joined: what is known of the group, or is just being read, must say so.
    fn joined(&mut self, group: GroupId, user: UserId) {
        match self.groups.get_mut(&group) {
            None => {}
            Some(Group::Loading { joined, .. }) => joined.push(user),
            Some(Group::Members(members)) => {
                if let Err(at) = members.binary_search(&user) {
                    *members = [&members[..at], &[user], &members[at..]].concat().into();
                    self.cached += 1;
                }
            }
        }
    }
}

impl Shard {
    pub(super) fn create_group(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let creator = self.me(call)?.user;
        let (name, description) = (call.request.groupname()?.to_owned(), call.request.groupdesc()?.to_owned());
        self.owe(call.conn, fx);
        let then = Then::GroupCreated { conn: call.conn, seq: call.seq };
        let write = Write::CreateGroup { creator, name, description };
        self.submit(self.user_lane(creator), then, Op::Write(write), fx);
        Ok(())
    }

    pub(super) fn group_created(
        &mut self,
        conn: ConnId,
        seq: Option<i64>,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        if let (Ok(Answer::Wrote(Outcome::Id(group))), Some(seq)) = (&answer, seq) {
            let group = *group;
            self.reply(conn, fx, |out| reply::ack_group_created(out, seq, group));
            return self.paid(conn, fx);
        }
        self.acked(conn, msgid::CREATE_GROUP, seq, answer, fx);
    }

    pub(super) fn join_group(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let user = self.me(call)?.user;
        let group = group_id(call.request.groupid()?).ok_or(Errno::NoSuchGroup)?;
        self.owe(call.conn, fx);
        let then = Then::GroupJoined { conn: call.conn, seq: call.seq, user, group };
        self.submit(self.group_lane(group), then, Op::Write(Write::JoinGroup { user, group }), fx);
        Ok(())
    }

    /// A join is committed. It counts on every shard before it is acked.
    pub(super) fn group_joined(
        &mut self,
        conn: ConnId,
        seq: Option<i64>,
        user: UserId,
        group: GroupId,
        answer: Result<Answer, StoreError>,
        fx: &mut Effects,
    ) {
        let unseen = self.shards - 1;
        if !matches!(answer, Ok(Answer::Wrote(Outcome::Done))) || unseen == 0 {
            self.groups.joined(group, user);
            return self.acked(conn, msgid::JOIN_GROUP, seq, answer, fx);
        }
        self.groups.joined(group, user);
        self.groups.next_key += 1;
        let (key, shard) = (self.groups.next_key, self.index);
        self.groups.joins.insert(key, PendingJoin { conn, seq, unseen });
        self.broadcast(|| Letter::Member { group, user, shard, key }, fx);
    }

    pub(super) fn peer_joined_group(&mut self, group: GroupId, user: UserId, shard: usize, key: u64, fx: &mut Effects) {
        self.groups.joined(group, user);
        fx.push(Effect::Post(shard, Letter::MemberSeen { key }));
    }

    pub(super) fn member_seen(&mut self, key: u64, fx: &mut Effects) {
        let Some(join) = self.groups.joins.get_mut(&key) else { return };
        join.unseen -= 1;
        if join.unseen == 0
            && let Some(PendingJoin { conn, seq, .. }) = self.groups.joins.remove(&key)
        {
            self.acked(conn, msgid::JOIN_GROUP, seq, Ok(Answer::Wrote(Outcome::Done)), fx);
        }
    }

    pub(super) fn group_chat(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let sender = self.me(call)?.user;
        let group = call.request.groupid()?;
        let text = self.outgoing(call)?;
        let group = group_id(group).ok_or(Errno::NoSuchGroup)?;
        let message = GroupMessage { conn: call.conn, sender, seq: call.seq, body: Arc::from(&*text) };
        match self.groups.groups.get_mut(&group) {
            Some(Group::Members(members)) => {
                let members = Arc::clone(members);
                if members.binary_search(&sender).is_err() {
                    return Err(Errno::NotAMember.into());
                }
                self.owe_send(call.conn, sender, fx);
                self.fan_out(message, &members, fx);
            }
            Some(Group::Loading { waiting, .. }) => {
                waiting.push(message);
                self.owe_send(call.conn, sender, fx);
            }
            None => {
                let loading = Group::Loading { waiting: vec![message], joined: Vec::new() };
                self.groups.groups.insert(group, loading);
                self.owe_send(call.conn, sender, fx);
                self.submit(self.group_lane(group), Then::Members(group), Op::Members(group), fx);
            }
        }
        Ok(())
    }

    /// A group's members are read: what has waited for them goes out, in order.
    pub(super) fn members_loaded(&mut self, group: GroupId, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        let Some(Group::Loading { waiting, joined }) = self.groups.groups.remove(&group) else { return };
        let members = match answer {
            Ok(Answer::Members(Some(members))) => Ok(members),
            Ok(Answer::Members(None)) => Err(Errno::NoSuchGroup),
            _ => Err(Errno::StoreUnavailable),
        };
        let members = members.map(|mut members| {
            members.extend(joined);
            members.sort_unstable();
            members.dedup();
            let members: Arc<[UserId]> = members.into();
            self.groups.insert(group, Arc::clone(&members));
            members
        });
        for message in waiting {
            let allowed = members.as_ref().map_err(|errno| *errno).and_then(|members| {
                members.binary_search(&message.sender).map(|_| members).map_err(|_| Errno::NotAMember)
            });
            match allowed {
                Ok(members) => self.fan_out(message, members, fx),
                Err(errno) => {
                    self.refuse(message.conn, Some(msgid::GROUP_CHAT), message.seq, &errno.into(), fx);
                    self.pay_send(message.conn, message.sender, fx);
                }
            }
        }
    }

    /// Sends one message to all members but its sender: one letter for each shard, one job for
    /// each lane, with their lists of recipients.
    fn fan_out(&mut self, message: GroupMessage, members: &[UserId], fx: &mut Effects) {
        let GroupMessage { conn, sender, seq, body } = message;
        let parent = Receipt::Sender { conn, user: sender, seq, owed: true };
        let recipients = members.len() - 1;
        if recipients == 0 {
            return self.fan_finished(parent, FanOut::default(), fx);
        }
        let key = self.fans.add(recipients, parent);
        let receipt = Receipt::Fan { shard: self.index as u16, key };
        let mut by_shard = vec![Vec::new(); self.shards];
        let mut by_lane = vec![Vec::new(); self.settings.lanes];
        for &to in members.iter().filter(|member| **member != sender) {
            match self.presence.get_mut(&to) {
                None => by_lane[to as usize % self.settings.lanes].push(to),
                Some(place) => match &mut place.held {
                    Some(held) => held.push((Arc::clone(&body), receipt)),
                    None => by_shard[place.conn.reactor()].push(to),
                },
            }
        }
        for (shard, to) in by_shard.into_iter().enumerate().filter(|(_, to)| !to.is_empty()) {
            if shard == self.index {
                to.into_iter().for_each(|to| self.deliver(to, Text::Shared(Arc::clone(&body)), receipt, fx));
            } else {
                fx.push(Effect::Post(shard, Letter::GroupChat { to, body: Arc::clone(&body), receipt }));
            }
        }
        for (lane, to) in by_lane.into_iter().enumerate().filter(|(_, to)| !to.is_empty()) {
            let then = Then::Kept { receipt, recipients: to.len() as u32 };
            let parcel = |to| Parcel { to, messages: vec![Arc::clone(&body)], past: None };
            let write = Write::Keep(to.into_iter().map(parcel).collect());
            self.submit(Lane::Number(lane), then, Op::Write(write), fx);
        }
    }

    /// A group message for users of this shard.
    pub(super) fn deliver_group(&mut self, to: Vec<UserId>, body: Arc<[u8]>, parent: Receipt, fx: &mut Effects) {
        let key = self.fans.add(to.len(), parent);
        let receipt = Receipt::Fan { shard: self.index as u16, key };
        to.into_iter().for_each(|to| self.deliver(to, Text::Shared(Arc::clone(&body)), receipt, fx));
    }

    /// Adds to the sum of a fan-out, wherever that is kept.
    pub(super) fn fan_part(&mut self, shard: usize, key: u64, part: FanOut, fx: &mut Effects) {
        if shard == self.index {
            self.fan_settled(key, part, fx);
        } else {
            fx.push(Effect::Post(shard, Letter::FanSettled { key, part }));
        }
    }

    pub(super) fn fan_settled(&mut self, key: u64, part: FanOut, fx: &mut Effects) {
        let Some(fan) = self.fans.fans.get_mut(&key) else { return };
        fan.sum += part;
        fan.left = fan.left.saturating_sub(part.total());
        if fan.left == 0 {
            let FanSum { sum, parent, .. } = *fan;
            self.fans.fans.remove(&key);
            self.fan_finished(parent, sum, fx);
        }
    }

    fn fan_finished(&mut self, parent: Receipt, sum: FanOut, fx: &mut Effects) {
        match parent {
            Receipt::Fan { shard, key } => self.fan_part(usize::from(shard), key, sum, fx),
            Receipt::Sender { conn, user, seq, .. } => {
                match seq {
                    Some(seq) => self.reply(conn, fx, |out| reply::ack_group_chat(out, seq, sum)),
                    None if sum.failed > 0 => {
                        let text = format!("{} members could not be served: storage is unavailable", sum.failed);
                        let refusal = Refusal::new(Errno::StoreUnavailable, text);
                        self.refuse(conn, Some(msgid::GROUP_CHAT), None, &refusal, fx);
                    }
                    None => {}
                }
                self.pay_send(conn, user, fx);
            }
        }
    }
}
