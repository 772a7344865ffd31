//! A C++ node: it writes `state` and knows of nothing else, publishes on users' channels what is for a user
//! who is online elsewhere, and stores the rest itself. It does each thing at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use chat_server::store::{GroupId, UserId};
use serde_json::Value;

use crate::check::{Key, To};
use crate::world::{CLIENTS, GROUPS, World};

/// Users who come to it only.
pub const USERS: usize = 2;

#[derive(Default)]
pub struct CppNode {
    online: BTreeSet<UserId>,
    /// It is not there.
    is_down: bool,
}

impl World {
    fn is_at_cpp_node(&self, user: UserId) -> bool {
        self.cpp.as_ref().is_some_and(|node| node.online.contains(&user))
    }

    /// One of its users does something, or it ends, or is started again.
    pub fn act_at_cpp_node(&mut self) -> bool {
        let Some(node) = &mut self.cpp else { return false };
        if node.is_down {
            if self.rng.one_in(50) {
                node.is_down = false;
                // Users who were online when it crashed cannot log in, so its operator does what it does at an end.
                self.database().set_everybody_offline();
            }
            return true;
        }
        let user = (CLIENTS + 1 + self.rng.below(USERS)) as UserId;
        if !self.is_at_cpp_node(user) {
            self.log_in_at_cpp_node(user);
            return true;
        }
        match self.rng.below(20) {
            0 => self.log_out_at_cpp_node(user),
            1 if self.rng.one_in(10) => self.end_cpp_node(),
            2..=4 => {
                let group = 1 + self.rng.below(GROUPS) as GroupId;
                self.chat_at_cpp_node(user, To::Group(group));
            }
            _ => {
                let to = 1 + self.rng.below(CLIENTS + USERS) as UserId;
                self.chat_at_cpp_node(user, To::User(to));
            }
        }
        true
    }

    fn log_in_at_cpp_node(&mut self, user: UserId) {
        self.trace(|| format!("{user} logs in at the C++ node"));
        let offline = self.database().take_all(user);
        offline.iter().for_each(|text| self.reads_at_cpp_node(user, text));
        self.redis.foreign.insert(user);
        self.database().set_foreign(user, true);
        if let Some(node) = &mut self.cpp {
            node.online.insert(user);
        }
    }

    fn log_out_at_cpp_node(&mut self, user: UserId) {
        self.trace(|| format!("{user} logs out at the C++ node"));
        if let Some(node) = &mut self.cpp {
            node.online.remove(&user);
        }
        self.redis.foreign.remove(&user);
        self.database().set_foreign(user, false);
    }

    /// It is stopped, which sets all users offline, or it crashes, which leaves its own users online.
    fn end_cpp_node(&mut self) {
        let crashes = self.rng.one_in(2);
        self.trace(|| format!("the C++ node ends; it crashes: {crashes}"));
        self.cpp = Some(CppNode { is_down: true, ..CppNode::default() });
        self.redis.foreign.clear();
        if !crashes {
            self.database().set_everybody_offline();
        }
    }

    /// What was published for it.
    pub fn deliver_at_cpp_node(&mut self) {
        for (user, text) in std::mem::take(&mut self.redis.for_foreign) {
            if self.is_at_cpp_node(user) {
                self.reads_at_cpp_node(user, &text);
            } else {
                self.database().insert(user, text, None);
            }
        }
    }

    fn reads_at_cpp_node(&mut self, user: UserId, text: &[u8]) {
        let Ok(value) = serde_json::from_slice::<Value>(text) else {
            panic!("a C++ node dies of {}", String::from_utf8_lossy(text));
        };
        self.record.receive(user, &value);
    }

    fn chat_at_cpp_node(&mut self, from: UserId, to: To) {
        let key = self.record.send(from, to, false, true);
        let (target, recipients) = match to {
            To::User(user) => (format!("\"msgid\":6,\"toid\":{user}"), vec![user]),
            To::Group(group) => {
                let members = self.database().group(group).iter().copied().filter(|user| *user != from).collect();
                (format!("\"msgid\":10,\"groupid\":{group}"), members)
            }
        };
        let number = key.number;
        let text = format!("{{{target},\"id\":{from},\"name\":\"u{from}\",\"time\":\"\",\"msg\":\"{number}\"}}");
        self.trace(|| format!("the C++ node sends {text}"));
        let text: Arc<[u8]> = text.into_bytes().into();
        recipients.into_iter().for_each(|to| self.pass_on_at_cpp_node(key, to, &text));
    }

    fn pass_on_at_cpp_node(&mut self, key: Key, to: UserId, text: &Arc<[u8]>) {
        if self.is_at_cpp_node(to) {
            return self.reads_at_cpp_node(to, text);
        }
        let is_online = self.database().is_online(to);
        let reached = if !is_online || self.redis.is_away { 0 } else { self.redis.publish_on_channel(to, text) };
        if !is_online {
            self.database().insert(to, Arc::clone(text), None);
        }
        // What it stores itself comes with the next login, and what has no listener is lost.
        if reached == 0 {
            self.record.is_uncertain(&key);
        }
    }
}
