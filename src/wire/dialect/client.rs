//! The client's direction: what it writes to a server that speaks a dialect, and what it reads there.

use std::borrow::Cow;

use super::members::{Members, Writer, array, string_of};
use super::renaming::To;
use super::translate::{frame, number, write_number, write_text};
use super::{Ack, Dialect, Fact, Kind, Length, Verb};
use crate::wire::reply::Errno;
use crate::wire::{Framing, msgid};

/// What a message of the server is in canon.
#[derive(Debug, PartialEq, Eq)]
pub enum FromServer {
    /// A chat or a group chat.
    Chat(Vec<u8>),
    /// The reply to such a request.
    Reply(Verb, Vec<u8>),
    /// The dialect has no such message.
    Unknown,
}

impl Dialect {
    /// Whether its server replies to such a request.
    pub fn has_reply(&self, verb: Verb) -> bool {
        self.ack(verb).is_some()
    }

    /// What goes over the wire for a request of canon, with its length before it, or the NUL of the C++ clients behind
    /// it; `None`: the dialect has no such request. A `seq` is left out, since only this server knows it.
    pub fn write_to_server(&self, canon: &[u8]) -> Option<Vec<u8>> {
        let members = Members::parse(canon)?;
        let verb = Verb::from_msgid(number(members.get("msgid")?)?)?;
        let msgid = self.number(verb)?;
        let (length, framing) = match self.length() {
            Length::Both => (Length::Both, Framing::Bare),
            Length::Nowhere | Length::Replies => (Length::Nowhere, Framing::Nul),
        };
        let mut out = Vec::with_capacity(canon.len() + 16);
        frame(length, &mut out, |out| {
            let mut writer = Writer::new(out);
            let renaming = self.renaming(Kind::Request(verb));
            renaming.write(To::Theirs, &members, &mut writer, |key, value, out| match key {
                "msgid" => write_number(out, msgid),
                "seq" => false,
                _ => write_text(out, value),
            });
            writer.end();
        });
        out.extend_from_slice(framing.terminator());
        Some(out)
    }

    /// Makes canon of an object that the server has sent.
    pub fn read_from_server(&self, object: &[u8]) -> FromServer {
        let Some(members) = Members::parse(object) else { return FromServer::Unknown };
        let Some(msgid) = members.get(self.msgid_key()).and_then(number) else { return FromServer::Unknown };
        let mut canon = Vec::with_capacity(object.len() + 16);
        if [Verb::Chat, Verb::GroupChat].into_iter().any(|verb| self.number(verb) == Some(msgid)) {
            self.write_chat(To::Canon, object, &mut canon);
            return FromServer::Chat(canon);
        }
        let acks = Verb::ALL.into_iter().filter_map(|verb| Some((verb, self.ack(verb)?)));
        match acks.into_iter().find(|(_, ack)| ack.number == msgid) {
            Some((verb, ack)) => {
                self.write_canon_reply(verb, ack, members, &mut canon);
                FromServer::Reply(verb, canon)
            }
            None => FromServer::Unknown,
        }
    }

    fn write_canon_reply<'a>(&self, verb: Verb, ack: &Ack, mut members: Members<'a>, out: &mut Vec<u8>) {
        let msgid = match verb {
            Verb::Login => msgid::LOGIN_ACK,
            Verb::Register => msgid::REGISTER_ACK,
            _ => msgid::ACK,
        };
        let renaming = self.renaming(Kind::Reply(verb));
        if self.data {
            self.take_data(&mut members);
        }
        let has_errno = members.get(renaming.theirs("errno")).is_some();
        let mut is_done = None;
        members.0.retain_mut(|(key, value)| {
            let said = ack.says.iter().find(|(theirs, _)| **theirs == *key).map(|(_, fact)| *fact);
            match said.map(canon_key) {
                None => {}
                Some(Some(canon)) => *key = Cow::Borrowed(canon),
                Some(None) => {
                    is_done = Some(*value == "true");
                    return false;
                }
            }
            true
        });
        let mut writer = Writer::new(out);
        renaming.write(To::Canon, &members, &mut writer, |key, value, out| match key {
            "msgid" => write_number(out, msgid),
            "seq" => false,
            "friends" => self.write_canon_list(value, Kind::Friend, out),
            "groups" => self.write_canon_list(value, Kind::Group, out),
            "offlinemsg" => write_strings(value, out, |chat, out| self.write_chat(To::Canon, chat.as_bytes(), out)),
            _ => write_text(out, value),
        });
        if let Some(is_done) = is_done.filter(|_| !has_errno) {
            let errno = if is_done { 0 } else { Errno::Rejected.into() };
            writer.member("errno", &errno.to_string());
        }
        writer.end();
    }

    /// What stands in `data` of a login reply counts where it does not stand beside it.
    fn take_data<'a>(&self, members: &mut Members<'a>) {
        let Some(at) = members.0.iter().position(|(key, _)| key == "data") else { return };
        let Some(data) = Members::parse(members.0[at].1.as_bytes()) else { return };
        members.0.remove(at);
        for (key, value) in data.0 {
            if members.get(&key).is_none() {
                members.0.push((key, value));
            }
        }
    }

    /// Writes a list of friends, groups or members as canon has it, whose elements are strings that hold JSON.
    fn write_canon_list(&self, list: &str, of: Kind, out: &mut Vec<u8>) -> bool {
        write_strings(list, out, |element, out| {
            let Some(members) = Members::parse(element.as_bytes()) else {
                return out.extend_from_slice(element.as_bytes());
            };
            let mut writer = Writer::new(out);
            self.renaming(of).write(To::Canon, &members, &mut writer, |key, value, out| match key {
                "users" if of == Kind::Group => self.write_canon_list(value, Kind::Member, out),
                _ => write_text(out, value),
            });
            writer.end();
        })
    }
}

/// What canon's ack calls a fact; `None`: it has `errno` for that.
fn canon_key(fact: Fact) -> Option<&'static str> {
    match fact {
        Fact::Id => Some("id"),
        Fact::Name => Some("name"),
        Fact::Friendid => Some("friendid"),
        Fact::Groupid => Some("groupid"),
        Fact::Groupname => Some("groupname"),
        Fact::Friends => Some("friends"),
        Fact::Groups => Some("groups"),
        Fact::Done => None,
    }
}

/// Writes an array of strings; `element` is called with each object of `list`, whether it stands there as it is or
/// within a string.
fn write_strings(list: &str, out: &mut Vec<u8>, mut element: impl FnMut(&str, &mut Vec<u8>)) -> bool {
    array(list, out, |text, out| {
        let text = serde_json::from_str::<String>(text).map_or(Cow::Borrowed(text), Cow::Owned);
        string_of(out, |out| element(&text, out));
    });
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::{Heard, Me, Speaker, list};
    use super::*;
    use crate::wire::{Split, Splitter};

    const ME: Me = Me { id: 1, name: "zhang" };

    fn value(object: &[u8]) -> Value {
        serde_json::from_slice(object).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(object)))
    }

    /// The one object that these bytes are, in a stream that has lengths or has none.
    fn object(stream: &[u8], has_lengths: bool) -> &[u8] {
        let mut splitter = if has_lengths { Splitter::of_known(true) } else { Splitter::default() };
        match splitter.next(stream, 1 << 16) {
            Ok(Split::Object { start, end }) => {
                assert!(stream.len() - end <= 1, "one object alone");
                assert_eq!(start, if has_lengths { 4 } else { 0 });
                &stream[start..end]
            }
            other => panic!("{other:?}"),
        }
    }

    fn request(verb: Verb) -> Value {
        let mut request = match verb {
            Verb::Login => json!({"id": 1, "password": "secret"}),
            Verb::Register => json!({"name": "zhang", "password": "secret"}),
            Verb::Logout | Verb::Update => json!({"id": 1}),
            Verb::Chat => json!({"id": 1, "name": "zhang", "toid": 2, "msg": "a\"b\n", "time": "12:00:00"}),
            Verb::AddFriend => json!({"id": 1, "friendid": 2}),
            Verb::CreateGroup => json!({"id": 1, "groupname": "Rust", "groupdesc": "all"}),
            Verb::JoinGroup => json!({"id": 1, "groupid": 7}),
            Verb::GroupChat => json!({"id": 1, "name": "zhang", "groupid": 7, "msg": "你好", "time": "12:00:00"}),
        };
        request["msgid"] = verb.msgid().into();
        request
    }

    fn lists() -> (Value, Value) {
        let friend = json!({"id": 2, "name": "li", "state": "online"}).to_string();
        let member = json!({"id": 2, "name": "li", "state": "online", "role": "normal"}).to_string();
        let group = json!({"id": 7, "groupname": "Rust", "groupdesc": "all", "users": [member]}).to_string();
        (json!([friend]), json!([group]))
    }

    fn dialects() -> impl Iterator<Item = &'static Dialect> {
        assert!(list().count() > 15);
        list()
    }

    #[test]
    fn what_a_server_hears_of_a_request_is_the_request_without_its_seq() {
        for dialect in dialects().filter(|dialect| !dialect.is_canon()) {
            let speaker = Speaker::new(Arc::new(dialect.clone()));
            for verb in Verb::ALL {
                let mut canon = request(verb);
                canon["seq"] = 5.into();
                let Some(written) = dialect.write_to_server(canon.to_string().as_bytes()) else {
                    assert_eq!(dialect.number(verb), None, "{}: {verb:?}", dialect.name());
                    continue;
                };
                let heard = speaker.hear(object(&written, dialect.length() == Length::Both), Some(1));
                let Heard::Theirs(known, heard) = heard else { panic!("{}: {verb:?}: {heard:?}", dialect.name()) };
                assert_eq!((known, value(&heard)), (verb, request(verb)), "{}", dialect.name());
            }
        }
    }

    #[test]
    fn a_request_ends_as_the_dialects_own_clients_end_it() {
        for dialect in dialects() {
            let written = dialect.write_to_server(request(Verb::Login).to_string().as_bytes()).unwrap();
            let is_framed = dialect.length() == Length::Both;
            assert_eq!((written[0] == 0, written.last() == Some(&0)), (is_framed, !is_framed), "{}", dialect.name());
        }
    }

    #[test]
    fn what_a_client_reads_of_a_login_or_a_registration_is_canons_reply() {
        let (friends, groups) = lists();
        let offline: Vec<String> = [Verb::Chat, Verb::GroupChat].map(|verb| request(verb).to_string()).into();
        let login = json!({"msgid": 2, "errno": 0, "id": 1, "name": "zhang", "friends": friends, "groups": groups,
            "offlinemsg": offline});
        for (verb, reply) in [
            (Verb::Login, login),
            (Verb::Login, json!({"msgid": 2, "errno": 1, "errmsg": "id or password is invalid!"})),
            (Verb::Register, json!({"msgid": 5, "errno": 0, "id": 9})),
            (Verb::Register, json!({"msgid": 5, "errno": 1})),
        ] {
            for dialect in dialects() {
                let mut written = Vec::new();
                let mut speaker = Speaker::new(Arc::new(dialect.clone()));
                speaker.write_reply(reply.to_string().as_bytes(), Some(ME), &mut written);
                let read = dialect.read_from_server(object(&written, dialect.length() != Length::Nowhere));
                let FromServer::Reply(known, read) = read else { panic!("{}: {read:?}", dialect.name()) };
                assert_eq!((known, value(&read)), (verb, reply.clone()), "{}", dialect.name());
            }
        }
    }

    #[test]
    fn what_a_client_reads_of_another_ack_is_canons_as_far_as_the_dialect_has_it() {
        let (friends, groups) = lists();
        let mut acks = 0;
        for dialect in dialects() {
            for verb in Verb::ALL.into_iter().filter(|verb| !matches!(verb, Verb::Login | Verb::Register)) {
                for errno in [0, 15] {
                    let mut speaker = Speaker::new(Arc::new(dialect.clone()));
                    let Some(seq) = speaker.ask(verb, request(verb).to_string().as_bytes()) else { continue };
                    let reply = json!({"msgid": 200, "seq": seq, "errno": errno, "groupid": 7, "friends": friends,
                        "groups": groups});
                    let mut written = Vec::new();
                    speaker.write_reply(reply.to_string().as_bytes(), Some(ME), &mut written);
                    let read = dialect.read_from_server(object(&written, dialect.length() != Length::Nowhere));
                    let FromServer::Reply(known, read) = read else { panic!("{}: {read:?}", dialect.name()) };
                    let read = value(&read);
                    assert_eq!((known, &read["msgid"], &read["errno"]), (verb, &json!(200), &json!(errno)));
                    for key in dialect.ack(verb).unwrap().says.iter().filter_map(|(_, fact)| canon_key(*fact)) {
                        let said = match key {
                            "id" => json!(1),
                            "name" => json!("zhang"),
                            "friendid" | "groupname" => request(verb)[key].clone(),
                            key => reply[key].clone(),
                        };
                        assert_eq!(read[key], said, "{}: {verb:?}: {key}", dialect.name());
                    }
                    acks += 1;
                }
            }
        }
        assert!(acks > 10, "{acks}");
    }

    #[test]
    fn what_a_client_reads_of_a_chat_is_canons_chat() {
        for dialect in dialects() {
            let speaker = Speaker::new(Arc::new(dialect.clone()));
            for verb in [Verb::Chat, Verb::GroupChat] {
                let mut written = Vec::new();
                speaker.write_chat(request(verb).to_string().as_bytes(), &mut written);
                let read = dialect.read_from_server(object(&written, dialect.length() != Length::Nowhere));
                let FromServer::Chat(read) = read else { panic!("{}: {read:?}", dialect.name()) };
                assert_eq!(value(&read), request(verb), "{}", dialect.name());
            }
        }
    }

    #[test]
    fn other_servers_may_have_lists_of_objects_or_all_in_data_and_no_errno() {
        let dialect = |text: &str| Dialect::from_toml(text, "test").unwrap();
        let read = |dialect: &Dialect, reply: Value| match dialect.read_from_server(reply.to_string().as_bytes()) {
            FromServer::Reply(_, canon) => value(&canon),
            other => panic!("{other:?}"),
        };
        let (friends, groups) = lists();
        let parsed = |list: &Value| -> Value {
            list.as_array().unwrap().iter().map(|entry| value(entry.as_str().unwrap().as_bytes())).collect()
        };
        let reply = json!({"msgid": 2, "errno": 0, "data": {"id": 1, "name": "zhang", "friends": parsed(&friends),
            "groups": parsed(&groups)}});
        let canon = json!({"msgid": 2, "errno": 0, "id": 1, "name": "zhang", "friends": friends, "groups": groups});
        assert_eq!(read(&dialect("data = true"), reply), canon);
        let done = dialect(
            "acks = { add_friend = { number = 8, says = { flag = 'done' } } }\nnumbers = { create_group = 11 }",
        );
        for (flag, errno) in [(true, 0), (false, 1)] {
            assert_eq!(read(&done, json!({"msgid": 8, "flag": flag})), json!({"msgid": 200, "errno": errno}));
        }
    }

    #[test]
    fn what_the_dialect_does_not_have_is_told_apart() {
        let c = super::super::find("c").unwrap();
        for object in
            [&b"{\"msgid\":2,\"errno\":0}"[..], b"{\"msgid\":201}", b"{\"msgid\":\"x\"}", b"{}", b"[]", b"{\"msgid\""]
        {
            assert_eq!(c.read_from_server(object), FromServer::Unknown, "{}", String::from_utf8_lossy(object));
        }
        for request in [&b"{\"msgid\":206,\"id\":1}"[..], b"{\"msgid\":202}", b"{}", b"x"] {
            assert_eq!(c.write_to_server(request), None);
        }
    }
}
