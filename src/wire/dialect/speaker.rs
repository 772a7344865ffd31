//! One client that speaks a dialect: what it asks for, in canon, and what it is told, in its dialect.

use std::collections::VecDeque;
use std::sync::Arc;

use super::members::{Members, Writer, string};
use super::renaming::To;
use super::translate::{frame, number};
use super::{Dialect, Fact, Kind, Verb};
use crate::wire::msgid;

/// What a request is in canon.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// What it is as it stands: this server's own messages are the same in all dialects.
    Canon,
    Theirs(Verb, Vec<u8>),
    /// The dialect has no such number.
    Unknown,
}

impl Heard {
    /// The msgid in canon of the request, which bears this number.
    pub fn msgid(&self, number: Option<i64>) -> Option<i64> {
        match self {
            Heard::Theirs(verb, _) => Some(verb.msgid()),
            Heard::Canon => number,
            Heard::Unknown => None,
        }
    }
}

/// The user of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Me<'a> {
    pub id: u32,
    pub name: &'a str,
}

/// A client that speaks a dialect.
#[derive(Debug)]
pub struct Speaker {
    dialect: Arc<Dialect>,
    /// The requests whose acks will need something of them, oldest first.
    pub(super) asked: VecDeque<Asked>,
    last_seq: i64,
}

#[derive(Debug)]
pub(super) struct Asked {
    seq: i64,
    verb: Verb,
    /// What the request said of these, as JSON.
    facts: Vec<(Fact, Box<str>)>,
}

/// The `seq`s of requests that have none begin here, so that they are none of a client's.
const FIRST_SEQ: i64 = i64::MIN;
/// Each is replied to, and a client has fewer than this under way; without a reply, the oldest are forgotten.
const MAX_ASKED: usize = 1024;
/// This server's additions to the original's numbers.
const OURS: std::ops::Range<i64> = 200..1000;

impl Speaker {
    pub fn new(dialect: Arc<Dialect>) -> Speaker {
        Speaker { dialect, asked: VecDeque::new(), last_seq: FIRST_SEQ }
    }

    pub fn dialect(&self) -> &Arc<Dialect> {
        &self.dialect
    }

    /// The client turns out to speak another one, or canon.
    pub fn switch(&mut self, dialect: Arc<Dialect>) {
        self.dialect = dialect;
    }

    /// Whether replies are due whose `seq` is not the client's.
    pub fn is_asked(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Makes canon of a request. `me`: the user, after the login.
    pub fn hear(&self, object: &[u8], me: Option<u32>) -> Heard {
        if self.dialect.is_canon() {
            return Heard::Canon;
        }
        let Some(members) = Members::parse(object) else { return Heard::Canon };
        let Some(verb) = self.dialect.verb_of(&members) else {
            let is_ours = members.get("msgid").and_then(number).is_some_and(|msgid| OURS.contains(&msgid));
            return if is_ours { Heard::Canon } else { Heard::Unknown };
        };
        let mut canon = Vec::with_capacity(object.len() + 16);
        self.dialect.write_request(verb, &members, me, &mut canon);
        Heard::Theirs(verb, canon)
    }

    /// Notes that a request without `seq` is carried out, where the dialect has an ack for it that canon has not.
    /// Returns the `seq` by which the service is to report what becomes of it. It must not stand in the object,
    /// which may be forwarded.
    pub fn ask(&mut self, verb: Verb, canon: &[u8]) -> Option<i64> {
        let ack = self.dialect.ack(verb)?;
        if matches!(verb, Verb::Login | Verb::Register) && ack.says.is_empty() {
            return None;
        }
        let request = Members::parse(canon)?;
        let fact = |fact: Fact| {
            let key = match fact {
                Fact::Name => "name",
                Fact::Friendid => "friendid",
                Fact::Groupid => "groupid",
                Fact::Groupname => "groupname",
                Fact::Id | Fact::Done | Fact::Friends | Fact::Groups => return None,
            };
            Some((fact, request.get(key)?.into()))
        };
        let facts = ack.says.iter().filter_map(|(_, said)| fact(*said)).collect();
        if self.asked.len() == MAX_ASKED {
            self.asked.pop_front();
        }
        self.last_seq += 1;
        self.asked.push_back(Asked { seq: self.last_seq, verb, facts });
        Some(self.last_seq)
    }

    /// Writes what the client is told instead of a reply in canon; nothing, if its dialect has no words for that.
    pub fn write_reply(&mut self, reply: &[u8], me: Option<Me>, out: &mut Vec<u8>) {
        frame(self.dialect.length(), out, |out| self.write_reply_bare(reply, me, out));
    }

    /// Writes a chat or a group chat that comes for the client.
    pub fn write_chat(&self, chat: &[u8], out: &mut Vec<u8>) {
        frame(self.dialect.length(), out, |out| self.dialect.write_chat(To::Theirs, chat, out));
    }

    fn write_reply_bare(&mut self, reply: &[u8], me: Option<Me>, out: &mut Vec<u8>) {
        let Some(members) = Members::parse(reply) else { return };
        let seq = members.get("seq").and_then(number);
        let asked = self.asked.iter().position(|asked| Some(asked.seq) == seq);
        let asked = asked.and_then(|at| self.asked.remove(at));
        let is_from_client = seq.is_some() && asked.is_none();
        match (members.get("msgid").and_then(number), asked) {
            (Some(msgid::LOGIN_ACK), asked) => {
                self.write_login_or_register(Verb::Login, &members, is_from_client, asked, out);
            }
            (Some(msgid::REGISTER_ACK), asked) => {
                self.write_login_or_register(Verb::Register, &members, is_from_client, asked, out);
            }
            (Some(msgid::ACK), Some(asked)) => self.write_ack_of(&asked, &members, me, out),
            // Clients that do not know it die of it, or take it for the reply that they wait for.
            (Some(msgid::ERROR), _) if !self.dialect.is_canon() => {}
            _ => out.extend_from_slice(reply),
        }
    }

    fn write_login_or_register(&self, verb: Verb, reply: &Members, seq: bool, asked: Option<Asked>, out: &mut Vec<u8>) {
        let says = self.dialect.ack(verb).map_or(&[][..], |ack| &ack.says);
        let also: Vec<(&str, &str)> = says
            .iter()
            .filter_map(|(key, fact)| Some((&**key, asked.as_ref()?.fact(*fact)?)))
            .filter(|(key, _)| reply.get(key).is_none())
            .collect();
        self.dialect.write_ack(verb, reply, seq, &also, out);
    }

    /// Writes a dialect's own ack, made of canon's.
    fn write_ack_of(&self, asked: &Asked, reply: &Members, me: Option<Me>, out: &mut Vec<u8>) {
        let Some(ack) = self.dialect.ack(asked.verb) else { return };
        let renaming = self.dialect.renaming(Kind::Reply(asked.verb));
        let is_done = reply.get("errno").and_then(number) == Some(0);
        let mut writer = Writer::new(out);
        writer.member(renaming.theirs("msgid"), &ack.number.to_string());
        for key in ["errno", "errmsg"] {
            if let Some(value) = reply.get(key) {
                writer.member(renaming.theirs(key), value);
            }
        }
        for (key, fact) in &ack.says {
            writer.member_with(key, |out| {
                let written = match (fact, me) {
                    (Fact::Id, Some(me)) => me.id.to_string(),
                    (Fact::Name, Some(me)) if asked.fact(Fact::Name).is_none() => {
                        string(out, me.name);
                        return true;
                    }
                    (Fact::Done, _) => is_done.to_string(),
                    (Fact::Friends, _) => {
                        return reply.get("friends").is_some_and(|list| self.dialect.write_part("friends", list, out));
                    }
                    (Fact::Groups, _) => {
                        return reply.get("groups").is_some_and(|list| self.dialect.write_part("groups", list, out));
                    }
                    (fact, _) => {
                        // The id of a new group only the reply knows.
                        let said = reply.get("groupid").filter(|_| *fact == Fact::Groupid);
                        let Some(value) = said.or(asked.fact(*fact)) else { return false };
                        value.to_owned()
                    }
                };
                out.extend_from_slice(written.as_bytes());
                true
            });
        }
        writer.end();
    }
}

impl Asked {
    fn fact(&self, fact: Fact) -> Option<&str> {
        self.facts.iter().find(|(known, _)| *known == fact).map(|(_, value)| &**value)
    }
}
