//! What was sent, acked and received, and whether that is as it was promised.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use chat_server::store::{GroupId, UserId};
use serde_json::Value;

/// The recipients of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum To {
    User(UserId),
    Group(GroupId),
}

/// A message: each user numbers what it sends to each user and to each group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub from: UserId,
    pub to: To,
    pub number: u64,
}

/// What is known of it.
#[derive(Debug, Clone)]
pub struct Message {
    /// When it was sent.
    at: u64,
    pub is_poisoned: bool,
    /// Nothing has come in between: it was read by a node that had its sender's session.
    pub is_certain: bool,
    is_acked: bool,
    /// It is not known which of several sessions comes first, of which one is to send it.
    is_floating: bool,
}

/// A user's membership.
#[derive(Debug, Clone, Copy, Default)]
struct Membership {
    is_asked_for: bool,
    /// When the ack of the join was read; 0: it was there from the start.
    counts_from: Option<u64>,
}

#[derive(Default)]
pub struct Record {
    /// Grows with everything that clients do and read.
    moment: u64,
    sent: BTreeMap<Key, Message>,
    numbers: BTreeMap<(UserId, To), u64>,
    /// What a user got of another, directly or by a group: in order, with repeats.
    got: BTreeMap<(UserId, UserId, Option<GroupId>), Vec<u64>>,
    members: BTreeMap<(GroupId, UserId), Membership>,
    /// Users of C++ nodes, between whom and others less is promised.
    pub foreign: BTreeSet<UserId>,
}

/// What is promised in a run.
pub struct Promises {
    /// Nothing happens that may repeat a message.
    pub no_repeats: bool,
    /// Everything that was sent arrives, whether it was acked or not.
    pub all_arrives: bool,
}

impl Record {
    /// The moment of something that happens now.
    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    // -- members ------------------------------------------------------------------------------------

    pub fn is_member_from_the_start(&mut self, group: GroupId, user: UserId) {
        self.members.insert((group, user), Membership { is_asked_for: true, counts_from: Some(0) });
    }

    pub fn asks_to_join(&mut self, group: GroupId, user: UserId) {
        self.members.entry((group, user)).or_default().is_asked_for = true;
    }

    pub fn join_is_acked(&mut self, group: GroupId, user: UserId) {
        let now = self.next_moment();
        self.members.entry((group, user)).or_default().counts_from.get_or_insert(now);
    }

    /// Whether every node must know of it.
    pub fn is_member(&self, group: GroupId, user: UserId) -> bool {
        self.members.get(&(group, user)).is_some_and(|member| member.counts_from.is_some())
    }

    /// Whether every node knew of it when this was sent.
    pub fn was_member(&self, group: GroupId, key: &Key) -> bool {
        let member = self.members.get(&(group, key.from));
        member.and_then(|member| member.counts_from).is_some_and(|from| from < self.sent[key].at)
    }

    /// The others in a group who must get what was sent at this moment.
    fn recipients(&self, group: GroupId, but: UserId, at: u64) -> Vec<UserId> {
        let counts = |member: &Membership| member.counts_from.is_some_and(|from| from < at);
        let members = self.members.iter().filter(|((of, user), _)| *of == group && *user != but);
        members.filter(|(_, member)| counts(member)).map(|((_, user), _)| *user).collect()
    }

    /// How many there may be at most.
    fn most_recipients(&self, group: GroupId, but: UserId) -> usize {
        let members = self.members.iter().filter(|((of, user), _)| *of == group && *user != but);
        members.filter(|(_, member)| member.is_asked_for).count()
    }

    // -- messages -----------------------------------------------------------------------------------

    pub fn send(&mut self, from: UserId, to: To, is_poisoned: bool, is_certain: bool) -> Key {
        let number = self.numbers.entry((from, to)).or_default();
        *number += 1;
        let key = Key { from, to, number: *number };
        let at = self.next_moment();
        self.sent.insert(key, Message { at, is_poisoned, is_certain, is_acked: false, is_floating: false });
        key
    }

    pub fn message(&self, key: &Key) -> &Message {
        &self.sent[key]
    }

    /// It may not have been read, or not been done.
    pub fn is_uncertain(&mut self, key: &Key) {
        self.sent.entry(*key).and_modify(|message| message.is_certain = false);
    }

    /// It has no place in the order.
    pub fn is_floating(&mut self, key: &Key) {
        self.sent.entry(*key).and_modify(|message| message.is_floating = true);
    }

    /// It was acked without an error. `counts`: of a group message, how many got it and for how many it is stored.
    pub fn is_acked(&mut self, key: Key, counts: Option<usize>) {
        let Some(message) = self.sent.get_mut(&key) else { panic!("nobody has sent {key:?}") };
        message.is_acked = true;
        let at = message.at;
        if let (To::Group(group), Some(counts)) = (key.to, counts) {
            let least = self.recipients(group, key.from, at).len();
            let most = self.most_recipients(group, key.from);
            assert!((least..=most).contains(&counts), "{key:?} has {counts} recipients, not {least} to {most}");
        }
    }

    pub fn receive(&mut self, user: UserId, what: &Value) {
        let Some(key) = key_of(what) else { panic!("no chat: {what}") };
        assert!(self.sent.contains_key(&key), "{user} got what nobody has sent: {what}");
        let group = match key.to {
            To::User(to) => {
                assert_eq!(to, user, "{user} got somebody else's message: {what}");
                None
            }
            To::Group(group) => {
                let is_asked_for = self.members.get(&(group, user)).is_some_and(|member| member.is_asked_for);
                assert!(is_asked_for && user != key.from, "{user} is no recipient of {what}");
                Some(group)
            }
        };
        self.next_moment();
        self.got.entry((user, key.from, group)).or_default().push(key.number);
    }

    /// Whether a user has got what stands in an offline message.
    pub fn has_got(&self, user: UserId, text: &[u8]) -> bool {
        let value: Option<Value> = serde_json::from_slice(text).ok();
        value.as_ref().and_then(key_of).is_some_and(|key| self.has_got_message(user, &key))
    }

    fn has_got_message(&self, user: UserId, key: &Key) -> bool {
        let group = match key.to {
            To::User(_) => None,
            To::Group(group) => Some(group),
        };
        self.got.get(&(user, key.from, group)).is_some_and(|got| got.contains(&key.number))
    }

    /// What must hold when all users have come back and have read everything.
    pub fn check(&self, promises: &Promises) {
        let ours = |user: &UserId| !self.foreign.contains(user);
        for ((to, from, group), numbers) in self.got.iter().filter(|((to, from, _), _)| ours(to) && ours(from)) {
            let mut seen = HashSet::new();
            let first: Vec<u64> = numbers.iter().copied().filter(|number| seen.insert(*number)).collect();
            let to_whom = group.map_or(To::User(*to), To::Group);
            let has_place = |number: &&u64| !self.sent[&Key { from: *from, to: to_whom, number: **number }].is_floating;
            assert!(
                first.iter().filter(has_place).is_sorted(),
                "from {from} to {to} (group {group:?}) out of order: {numbers:?}"
            );
            if promises.no_repeats {
                assert_eq!(first.len(), numbers.len(), "from {from} to {to} (group {group:?}) repeated: {numbers:?}");
            }
        }
        for (key, message) in &self.sent {
            let must_arrive = promises.all_arrives && message.is_certain && !message.is_poisoned;
            if !message.is_acked && !must_arrive {
                continue;
            }
            let recipients = match key.to {
                To::User(to) => vec![to],
                To::Group(group) => self.recipients(group, key.from, message.at),
            };
            for to in recipients.iter().filter(|to| ours(to)) {
                let what = if message.is_acked { "acked" } else { "sent, and nothing has happened to it," };
                assert!(self.has_got_message(*to, key), "{key:?} was {what} and is lost for {to}");
            }
        }
    }
}

/// Which message this is.
fn key_of(what: &Value) -> Option<Key> {
    let id = |key: &str| what[key].as_u64().and_then(|id| u32::try_from(id).ok());
    let to = if what["msgid"] == 10 { To::Group(id("groupid")?) } else { To::User(id("toid")?) };
    let number = what["msg"].as_str()?.trim_end_matches([' ', '!']).parse().ok()?;
    Some(Key { from: id("id")?, to, number })
}
