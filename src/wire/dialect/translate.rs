//! Objects from a dialect to canon and back. What is no object, or has a number that is not known, is left as it is.

use std::borrow::Cow;

use super::members::{Members, Writer, array, string_of};
use super::renaming::To;
use super::{Dialect, Kind, Length, Verb};
use crate::wire::reply::{Listed, LoginReply};
use crate::wire::{integer, msgid};

/// The integer that a value is, also one that is written as a string, as canon takes it.
pub(super) fn number(value: &str) -> Option<i64> {
    // Its digits may be escaped.
    let text =
        if value.starts_with('"') { Cow::Owned(serde_json::from_str(value).ok()?) } else { Cow::Borrowed(value) };
    text.parse().ok().or_else(|| integer(&text))
}

pub(super) fn write_number(out: &mut Vec<u8>, number: i64) -> bool {
    out.extend_from_slice(number.to_string().as_bytes());
    true
}

pub(super) fn write_text(out: &mut Vec<u8>, text: &str) -> bool {
    out.extend_from_slice(text.as_bytes());
    true
}

impl Dialect {
    /// What this dialect calls `msgid`, in all objects.
    pub(super) fn msgid_key(&self) -> &str {
        self.renaming(Kind::Request(Verb::Login)).theirs("msgid")
    }

    /// The request that an object is, by its number in this dialect.
    pub(super) fn verb_of(&self, members: &Members) -> Option<Verb> {
        self.verb(number(members.get(self.msgid_key())?)?)
    }

    /// Writes canon's form of a request. After the login, an `id` that is missing or not above 0 is the user's own:
    /// some clients send none.
    pub(super) fn write_request(&self, verb: Verb, members: &Members, me: Option<u32>, out: &mut Vec<u8>) {
        let me = me.filter(|_| !matches!(verb, Verb::Login | Verb::Register));
        let mut has_id = false;
        let mut writer = Writer::new(out);
        let renaming = self.renaming(Kind::Request(verb));
        renaming.write(To::Canon, members, &mut writer, |key, value, out| match (key, me) {
            ("msgid", _) => write_number(out, verb.msgid()),
            ("id", Some(me)) => {
                has_id = true;
                if number(value).is_some_and(|id| id <= 0) {
                    write_number(out, me.into())
                } else {
                    write_text(out, value)
                }
            }
            _ => write_text(out, value),
        });
        if let Some(me) = me.filter(|_| !has_id) {
            writer.member_with("id", |out| write_number(out, me.into()));
        }
        writer.end();
    }

    /// Writes what this dialect makes of a chat, or a group chat, in canon; or the other way around.
    pub fn write_chat(&self, to: To, chat: &[u8], out: &mut Vec<u8>) {
        let known = Members::parse(chat).and_then(|members| {
            let verb = match to {
                To::Theirs => Verb::from_msgid(number(members.get("msgid")?)?)?,
                To::Canon => self.verb_of(&members)?,
            };
            Some((members, verb)).filter(|_| matches!(verb, Verb::Chat | Verb::GroupChat))
        });
        let Some((members, verb)) = known else { return out.extend_from_slice(chat) };
        let mut writer = Writer::new(out);
        let msgid = match to {
            To::Theirs => self.number(verb).unwrap_or(verb.msgid()),
            To::Canon => verb.msgid(),
        };
        self.renaming(Kind::Chat(verb)).write(to, &members, &mut writer, |key, value, out| match key {
            "msgid" => write_number(out, msgid),
            _ => write_text(out, value),
        });
        writer.end();
    }

    /// Writes what this dialect makes of the reply to a login or a registration. `seq`: whether the client has sent
    /// one.
    pub(super) fn write_ack(&self, verb: Verb, reply: &Members, seq: bool, also: &[(&str, &str)], out: &mut Vec<u8>) {
        let msgid = self
            .ack(verb)
            .map_or(if verb == Verb::Login { msgid::LOGIN_ACK } else { msgid::REGISTER_ACK }, |ack| ack.number);
        let mut writer = Writer::new(out);
        self.renaming(Kind::Reply(verb)).write(To::Theirs, reply, &mut writer, |key, value, out| match key {
            "msgid" => write_number(out, msgid),
            "seq" if !seq => false,
            _ => self.write_part(key, value, out),
        });
        for (key, value) in also {
            writer.member(key, value);
        }
        if self.data && verb == Verb::Login && reply.get("name").is_some() {
            writer.member_with("data", |out| self.write_data(reply, out));
        }
        writer.end();
    }

    /// The reply to a login, and how much of the lists it has room for: the limit speaks of this dialect's bytes.
    pub fn login_ack(&self, login: &LoginReply) -> (Vec<u8>, Listed) {
        let mut limit = login.limit;
        loop {
            let (canon, listed) = LoginReply { limit, ..*login }.written();
            let mut theirs = Vec::with_capacity(canon.len() + 64);
            self.write_login_ack(&canon, login.seq.is_some(), &mut theirs);
            let over = login.limit.map_or(0, |most| theirs.len().saturating_sub(most.bytes));
            match &mut limit {
                // Its keys are longer than canon's: with so much less of canon it fits.
                Some(most) if over > 0 && login.may_shrink(listed) => most.bytes = canon.len().saturating_sub(over),
                _ => return (theirs, listed),
            }
        }
    }

    /// Writes what this dialect makes of the reply to a login, with its length before it where it has one. `seq`:
    /// whether the client has sent one.
    fn write_login_ack(&self, reply: &[u8], seq: bool, out: &mut Vec<u8>) {
        frame(self.length, out, |out| match Members::parse(reply) {
            Some(members) => self.write_ack(Verb::Login, &members, seq, &[], out),
            None => out.extend_from_slice(reply),
        });
    }

    /// Writes a value of a reply: lists are translated.
    pub(super) fn write_part(&self, key: &str, value: &str, out: &mut Vec<u8>) -> bool {
        match key {
            "friends" => self.write_list(value, Kind::Friend, self.objects.friends, out),
            "groups" => self.write_list(value, Kind::Group, self.objects.groups, out),
            "offlinemsg" => write_array(value, out, |message, out| {
                string_of(out, |out| self.write_chat(To::Theirs, message.as_bytes(), out));
            }),
            _ => write_text(out, value),
        }
    }

    /// Some clients read all of a login reply in an object within it.
    fn write_data(&self, reply: &Members, out: &mut Vec<u8>) -> bool {
        let parts = reply.0.iter().filter(|(key, _)| matches!(&**key, "id" | "name" | "state" | "friends" | "groups"));
        let parts = Members(parts.cloned().collect());
        let mut writer = Writer::new(out);
        let renaming = self.renaming(Kind::Reply(Verb::Login));
        renaming.write(To::Theirs, &parts, &mut writer, |key, value, out| match key {
            "friends" => self.write_list(value, Kind::Friend, true, out),
            "groups" => self.write_list(value, Kind::Group, true, out),
            _ => write_text(out, value),
        });
        writer.end();
        true
    }

    /// Writes a list of friends, groups or members. In canon its elements are strings that hold JSON.
    fn write_list(&self, list: &str, of: Kind, as_objects: bool, out: &mut Vec<u8>) -> bool {
        write_array(list, out, |element, out| {
            if as_objects {
                self.write_element(element, of, as_objects, out);
            } else {
                string_of(out, |out| self.write_element(element, of, as_objects, out));
            }
        })
    }

    fn write_element(&self, element: &str, of: Kind, as_objects: bool, out: &mut Vec<u8>) {
        let Some(members) = Members::parse(element.as_bytes()) else {
            return out.extend_from_slice(element.as_bytes());
        };
        let mut writer = Writer::new(out);
        self.renaming(of).write(To::Theirs, &members, &mut writer, |key, value, out| match key {
            "users" if of == Kind::Group => {
                let as_objects = self.objects.members || (self.data && as_objects);
                self.write_list(value, Kind::Member, as_objects, out)
            }
            _ => write_text(out, value),
        });
        writer.end();
    }
}

/// Writes an array; `element` is called with what each string of `list` holds.
fn write_array(list: &str, out: &mut Vec<u8>, mut element: impl FnMut(&str, &mut Vec<u8>)) -> bool {
    array(list, out, |text, out| match serde_json::from_str::<String>(text) {
        Ok(text) => element(&text, out),
        Err(_) => out.extend_from_slice(text.as_bytes()),
    });
    true
}

/// Writes an object, and before it its length where the dialect has one; nothing, if `write` writes nothing.
pub(super) fn frame(length: Length, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    if length == Length::Nowhere {
        return write(out);
    }
    let from = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let written = out.len() - from - 4;
    match u32::try_from(written) {
        Ok(written) if written > 0 => out[from..from + 4].copy_from_slice(&written.to_be_bytes()),
        _ => out.truncate(from),
    }
}
