//! One received object, read leniently.
//!
//! A pushed chat is the object its sender wrote: it may hold anything beside the fields that the
//! server vouches for. So nothing here fails because of a field: one of the wrong type counts as
//! absent.

use chat_server::wire::dialect::Verb;
use chat_server::wire::{integer, msgid};
use serde_json::{Map, Value};

use crate::plain;

#[derive(Debug, Clone)]
pub struct Message {
    members: Map<String, Value>,
    /// The request that it replies to, where the message itself tells.
    replies_to: Option<Verb>,
}

impl Message {
    /// `None` if it is not a JSON object.
    pub fn parse(object: &[u8]) -> Option<Message> {
        let mut message = Message { members: serde_json::from_slice(object).ok()?, replies_to: None };
        message.replies_to = match message.msgid() {
            msgid::LOGIN_ACK => Some(Verb::Login),
            msgid::REGISTER_ACK => Some(Verb::Register),
            _ => None,
        };
        Some(message)
    }

    /// The same for the reply to such a request, which its `msgid` in canon need not tell.
    pub fn parse_reply(object: &[u8], verb: Verb) -> Option<Message> {
        Some(Message { replies_to: Some(verb), ..Message::parse(object)? })
    }

    pub fn replies_to(&self) -> Option<Verb> {
        self.replies_to
    }

    pub fn msgid(&self) -> i64 {
        self.int("msgid").unwrap_or(0)
    }

    /// 0 where there is none: the message is no refusal.
    pub fn errno(&self) -> i64 {
        self.int("errno").unwrap_or(0)
    }

    /// A number, which may come as a numeric string.
    pub fn int(&self, key: &str) -> Option<i64> {
        match self.members.get(key)? {
            Value::Number(number) => number.as_i64().or_else(|| integer(&number.to_string())),
            Value::String(text) => text.parse().ok().or_else(|| integer(text)),
            _ => None,
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.members.contains_key(key)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.members.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Empty where there is none.
    pub fn text(&self, key: &str) -> &str {
        self.members.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The entries of a list: strings, each of them JSON itself. Anything else is passed over.
    pub fn list(&self, key: &str) -> impl Iterator<Item = Message> {
        let entries = self.members.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        entries.iter().filter_map(|entry| Message::parse(entry.as_str()?.as_bytes()))
    }

    /// The line that shows a chat or a group chat, live or stored; `None` for any other message.
    ///
    /// Its sender has written `time` and `msg`, and chosen `name`; the server vouches for the ids. So
    /// what stands before `said:` has one shape, and everything behind it is text.
    pub fn said(&self) -> Option<String> {
        let (time, id) = (plain::time(self.text("time")), self.number("id"));
        let said =
            format!("{time} [{id}]{} said: {}", plain::speaker(self.text("name")), plain::text(self.text("msg")));
        match self.msgid() {
            msgid::ONE_CHAT => Some(said),
            msgid::GROUP_CHAT => Some(format!("群消息[{}]:{said}", self.number("groupid"))),
            _ => None,
        }
    }

    /// `ID NAME STATE` for each friend.
    pub fn friend_lines(&self) -> Vec<String> {
        self.list("friends").map(|friend| friend.person()).collect()
    }

    /// `ID NAME DESCRIPTION` for each group, and below it `ID NAME STATE ROLE` for each member.
    pub fn group_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for group in self.list("groups") {
            let (name, description) = (group.name("groupname"), plain::text(group.text("groupdesc")));
            lines.push(format!("{} {name} {description}", group.number("id")));
            lines.extend(group.list("users").map(|member| format!("  {} {}", member.person(), member.name("role"))));
            if let Some(members) = group.int("members") {
                lines.push(format!("  ... ({members})"));
            }
        }
        lines
    }

    fn person(&self) -> String {
        format!("{} {} {}", self.number("id"), self.name("name"), self.name("state"))
    }

    /// A name, or a word, as it may be shown.
    fn name(&self, key: &str) -> String {
        plain::name(self.text(key))
    }

    /// A number as text, `?` where there is none.
    fn number(&self, key: &str) -> String {
        self.int(key).map_or_else(|| "?".into(), |number| number.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(json: &str) -> Message {
        Message::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn chats_are_shown_as_the_original_shows_them() {
        let chat = r#"{"msgid":6,"id":2,"name":"li si","toid":1,"msg":"hi","time":"2026-01-02 03:04:05"}"#;
        assert_eq!(message(chat).said().unwrap(), "2026-01-02 03:04:05 [2]li si said: hi");
        let group = r#"{"msgid":10,"id":"2","name":"li","groupid":"7","msg":"hi","time":"11:00:00"}"#;
        assert_eq!(message(group).said().unwrap(), "群消息[7]:11:00:00 [2]li said: hi");
        let floats = r#"{"msgid":10.0,"id":2.0,"name":"li","groupid":"7e0","msg":"hi","time":"11:00:00"}"#;
        assert_eq!(message(floats).said().unwrap(), "群消息[7]:11:00:00 [2]li said: hi");
        assert_eq!(message(r#"{"msgid":200,"msg":"hi"}"#).said(), None);
    }

    #[test]
    fn a_sender_cannot_break_a_message_with_fields_of_the_wrong_type() {
        let odd = r#"{"msgid":6,"id":2,"name":"x","msg":"hi","time":"t","errno":[],"friends":{"a":1},"seq":1.5}"#;
        assert_eq!(message(odd).said().unwrap(), "????-??-?? ??:??:?? [2]x said: hi");
        assert_eq!(message(r#"{"msgid":6}"#).said().unwrap(), "????-??-?? ??:??:?? [?] said: ");
    }

    #[test]
    fn what_a_sender_chooses_passes_for_nothing_else() {
        let forged = "2026-11-28 11:00:00 [1]boss said: pay";
        for (field, shown) in [
            ("time", "????-??-?? ??:??:?? [2]li said: hi".to_owned()),
            (
                "name",
                format!("11:00:00 [2]{} said: hi", r"2026-11-28 11\u{3a}00\u{3a}00 \u{5b}1\u{5d}boss said\u{3a} pay"),
            ),
            ("msg", format!("11:00:00 [2]li said: {forged}")),
        ] {
            let mut chat = json!({"msgid": 6, "id": 2, "name": "li", "msg": "hi", "time": "11:00:00"});
            chat[field] = forged.into();
            assert_eq!(message(&chat.to_string()).said().unwrap(), shown);
            chat[field] = format!("x\n{forged}").into();
            assert!(!message(&chat.to_string()).said().unwrap().contains('\n'));
        }
        let long = json!({"msgid": 6, "id": 2, "name": "n".repeat(10_000), "msg": "hi", "time": "9".repeat(65_536)});
        let shown = format!("????-??-?? ??:??:?? [2]{}… (+9936) said: hi", "n".repeat(64));
        assert_eq!(message(&long.to_string()).said().unwrap(), shown);
    }

    #[test]
    fn lists_are_strings_that_are_json_and_what_is_not_is_passed_over() {
        let friend = r#"{"id":2,"name":"li","state":"online"}"#;
        let member = r#"{"id":2,"name":"li","state":"offline","role":"creator"}"#;
        let group = json!({"id": 1, "groupname": "Rust", "groupdesc": "all", "users": [member], "members": 600});
        let list = json!({"friends": [friend, 3, "no"], "groups": [group.to_string()]});
        let list = message(&list.to_string());
        assert_eq!(list.friend_lines(), ["2 li online"]);
        assert_eq!(list.group_lines(), ["1 Rust all", "  2 li offline creator", "  ... (600)"]);
        assert!(message("{}").friend_lines().is_empty());
    }
}
