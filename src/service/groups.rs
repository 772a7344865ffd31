//! Groups: their cached members, and fan-out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::chat::Text;
use super::letters::{Letter, Receipt};
use super::ways::Question;
use super::{Answer, Call, Effect, Effects, Op, Path, Shard, Then, group_id};
use crate::bus::{BusOp, Envelope, Ticket};
use crate::reactor::ConnId;
use crate::store::{GroupId, NodeId, Outcome, StoreError, UserId, Write};
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
    /// Joins that other nodes may not know of, until the bus is back.
    untold: BTreeSet<(GroupId, UserId)>,
}

enum Group {
    Loading {
        /// Chats that wait for the members, oldest first.
        waiting: Vec<GroupMessage>,
        /// Who has joined since the members were asked for.
        joined: Vec<UserId>,
        /// What is being read may not be true any more when it comes, and is not kept.
        outdated: bool,
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
    whose: Joiner,
    /// Shards that have not answered, and the other nodes, as one.
    unseen: usize,
}

/// Who is told that a join counts everywhere.
enum Joiner {
    /// With what the store has said: it may be no news there, and yet news to others.
    Client(ConnId, Option<i64>, Outcome),
    /// Another node, of which the join is.
    Node(NodeId, Ticket),
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
    /// Recipients of another node's message to whom it could not be delivered.
    gone: Vec<UserId>,
}

impl FanOuts {
    fn add(&mut self, recipients: usize, parent: Receipt) -> u64 {
        self.next_key += 1;
        self.fans.insert(
            self.next_key,
            FanSum { left: recipients as u32, sum: FanOut::default(), parent, gone: Vec::new() },
        );
        self.next_key
    }

    /// The client of this shard whose message it is.
    pub fn sender(&self, key: u64) -> Option<(ConnId, UserId)> {
        match self.fans.get(&key)?.parent {
            Receipt::Sender { conn, user, .. } => Some((conn, user)),
            _ => None,
        }
    }

    /// The other node whose message it is.
    pub fn whose(&self, key: u64) -> Option<(NodeId, Ticket)> {
        match self.fans.get(&key)?.parent {
            Receipt::Node(node, ticket) => Some((node, ticket)),
            _ => None,
        }
    }
}

impl GroupCache {
    fn insert(&mut self, group: GroupId, members: Arc<[UserId]>) {
        if self.cached + members.len() > MAX_CACHED_MEMBERS {
            self.forget();
        }
        self.cached += members.len();
        self.groups.insert(group, Group::Members(members));
    }

    /// Whether this user is known to be a member.
    pub fn has_member(&self, group: GroupId, user: UserId) -> bool {
        matches!(self.groups.get(&group), Some(Group::Members(members)) if members.binary_search(&user).is_ok())
    }

    /// What was read may not be true any more.
    pub fn forget(&mut self) {
        self.groups.retain(|_, group| matches!(group, Group::Loading { .. }));
        for group in self.groups.values_mut() {
            if let Group::Loading { outdated, .. } = group {
                *outdated = true;
            }
        }
        self.cached = 0;
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
        self.begin_change(call.conn);
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
            self.end_change(conn, fx);
            return self.paid(conn, fx);
        }
        self.acked(conn, msgid::CREATE_GROUP, seq, answer, fx);
    }

    pub(super) fn join_group(&mut self, call: &Call<'_>, fx: &mut Effects) -> Result<(), Refusal> {
        let user = self.me(call)?.user;
        let group = group_id(call.request.groupid()?).ok_or(Errno::NoSuchGroup)?;
        self.owe(call.conn, fx);
        self.begin_change(call.conn);
        let then = Then::GroupJoined { conn: call.conn, seq: call.seq, user, group };
        // The user's, as all that changes what the user's lists and quotas say.
        self.submit(self.user_lane(user), then, Op::Write(Write::JoinGroup { user, group }), fx);
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
        // A join that is not known to have failed may have been done.
        if !matches!(answer, Ok(Answer::Wrote(Outcome::Full(_)))) {
            self.groups.joined(group, user);
        }
        match answer {
            // Also of what was done before: then nobody may have been told, since the node died that did it, or
            // its answer was lost.
            Ok(Answer::Wrote(outcome @ (Outcome::Done | Outcome::Already))) => {
                let join = self.tell_shards(group, user, Joiner::Client(conn, seq, outcome), 1, fx);
                self.tell_nodes(group, user, join, fx);
            }
            answer => self.acked(conn, msgid::JOIN_GROUP, seq, answer, fx),
        }
    }

    fn tell_nodes(&mut self, group: GroupId, user: UserId, join: u64, fx: &mut Effects) {
        let ticket = self.ask(Question::Member { group, user, join, seen: 0, of: None }, fx);
        fx.push(Effect::Bus(BusOp::ToAll(Envelope::Member { group, user, ticket }, ticket)));
    }

    /// Some node has not confirmed a join, and may leave the member out. Nobody waits for it any more.
    pub(super) fn tell_again(&mut self, group: GroupId, user: UserId, fx: &mut Effects) {
        if self.down_since.is_some() {
            self.groups.untold.insert((group, user));
        } else if !self.shutting_down {
            self.tell_nodes(group, user, 0, fx);
        }
    }

    /// The bus is back.
    pub(super) fn tell_untold(&mut self, fx: &mut Effects) {
        for (group, user) in std::mem::take(&mut self.groups.untold) {
            self.tell_nodes(group, user, 0, fx);
        }
    }

    /// Tells the other shards of a join; `more` answers are waited for beside theirs.
    fn tell_shards(&mut self, group: GroupId, user: UserId, whose: Joiner, more: usize, fx: &mut Effects) -> u64 {
        self.groups.next_key += 1;
        let (key, shard) = (self.groups.next_key, self.index);
        self.groups.joins.insert(key, PendingJoin { whose, unseen: self.shards - 1 + more });
        self.broadcast(|| Letter::Member { group, user, shard, key }, fx);
        key
    }

    /// A user has joined a group on another node.
    pub(super) fn remote_joined(
        &mut self,
        group: GroupId,
        user: UserId,
        node: NodeId,
        ticket: Ticket,
        fx: &mut Effects,
    ) {
        self.groups.joined(group, user);
        // One answer more, its own, so that a single shard need not be told apart.
        let join = self.tell_shards(group, user, Joiner::Node(node, ticket), 1, fx);
        self.member_seen(join, fx);
    }

    pub(super) fn peer_joined_group(&mut self, group: GroupId, user: UserId, shard: usize, key: u64, fx: &mut Effects) {
        self.groups.joined(group, user);
        fx.push(Effect::Post(shard, Letter::MemberSeen { key }));
    }

    pub(super) fn member_seen(&mut self, key: u64, fx: &mut Effects) {
        let Some(join) = self.groups.joins.get_mut(&key) else { return };
        join.unseen -= 1;
        if join.unseen > 0 {
            return;
        }
        match self.groups.joins.remove(&key).map(|join| join.whose) {
            Some(Joiner::Client(conn, seq, outcome)) => {
                self.acked(conn, msgid::JOIN_GROUP, seq, Ok(Answer::Wrote(outcome)), fx);
            }
            Some(Joiner::Node(node, ticket)) => fx.push(Effect::Bus(BusOp::ToNode(node, Envelope::Seen { ticket }))),
            None => {}
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
                let loading = Group::Loading { waiting: vec![message], joined: Vec::new(), outdated: false };
                self.groups.groups.insert(group, loading);
                self.owe_send(call.conn, sender, fx);
                self.submit(self.group_lane(group), Then::Members(group), Op::Members(group), fx);
            }
        }
        Ok(())
    }

    /// A group's members are read: what has waited for them goes out, in order.
    pub(super) fn members_loaded(&mut self, group: GroupId, answer: Result<Answer, StoreError>, fx: &mut Effects) {
        let Some(Group::Loading { waiting, joined, outdated }) = self.groups.groups.remove(&group) else { return };
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
            // Without the bus nobody tells of another node's joins, and C++ nodes never do.
            if !outdated && self.down_since.is_none() && !self.settings.mixed {
                self.groups.insert(group, Arc::clone(&members));
            }
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
            return self.fan_finished(parent, FanOut::default(), Vec::new(), fx);
        }
        let key = self.fans.add(recipients, parent);
        let receipt = Receipt::Fan { shard: self.index as u16, key };
        let others = members.iter().copied().filter(|member| *member != sender);
        self.route_to_all(others, &body, receipt, fx);
    }

    /// Sends one message on its way to all of them: one letter for each shard, one envelope for
    /// each node, one job for each lane.
    fn route_to_all(&mut self, to: impl Iterator<Item = UserId>, body: &Arc<[u8]>, receipt: Receipt, fx: &mut Effects) {
        let mut by_shard = vec![Vec::new(); self.shards];
        let mut away = Vec::new();
        let drains = self.must_drain_first(receipt);
        for to in to {
            if self.ways.contains_key(&to) {
                away.push(to);
                continue;
            }
            if drains {
                self.drain_first(to, fx);
            }
            match self.presence.get(&to) {
                None => away.push(to),
                Some(conn) => match self.held.get_mut(&to) {
                    Some(held) => held.push((Arc::clone(body), receipt)),
                    None => by_shard[conn.reactor()].push(to),
                },
            }
        }
        for (shard, to) in by_shard.into_iter().enumerate().filter(|(_, to)| !to.is_empty()) {
            if shard == self.index {
                self.count_message(receipt, Path::SameReactor, to.len());
                to.into_iter().for_each(|to| self.deliver(to, Text::Shared(Arc::clone(body)), receipt, fx));
            } else {
                self.count_message(receipt, Path::OtherReactor, to.len());
                fx.push(Effect::Post(shard, Letter::GroupChat { to, body: Arc::clone(body), receipt }));
            }
        }
        self.send_all_away(away, body, receipt, fx);
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
        self.finish_fan(key, fx);
    }

    /// A message of another node could not be delivered to one of its recipients.
    pub(super) fn fan_gone(&mut self, key: u64, user: UserId, fx: &mut Effects) {
        let Some(fan) = self.fans.fans.get_mut(&key) else { return };
        fan.gone.push(user);
        fan.left = fan.left.saturating_sub(1);
        self.finish_fan(key, fx);
    }

    fn finish_fan(&mut self, key: u64, fx: &mut Effects) {
        if self.fans.fans.get(&key).is_some_and(|fan| fan.left == 0)
            && let Some(FanSum { sum, parent, gone, .. }) = self.fans.fans.remove(&key)
        {
            self.fan_finished(parent, sum, gone, fx);
        }
    }

    fn fan_finished(&mut self, parent: Receipt, sum: FanOut, gone: Vec<UserId>, fx: &mut Effects) {
        match parent {
            Receipt::Fan { shard, key } => self.fan_part(usize::from(shard), key, sum, fx),
            Receipt::Node(node, ticket) => {
                fx.push(Effect::Bus(BusOp::ToNode(node, Envelope::Settled { ticket, sum, gone })));
            }
            Receipt::Nobody => {}
            Receipt::Sender { conn, user, seq, .. } => {
                match seq {
                    Some(seq) => self.reply(conn, fx, |out| reply::ack_group_chat(out, seq, sum)),
                    None if sum.failed > 0 => {
                        let text = format!(
                            "{} members could not be served: they have too many offline messages, or storage is unavailable",
                            sum.failed
                        );
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
