//! A client that is as strict as those of the family: it fails the test where a real one would die, hang, or lose a
//! message.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use serde_json::{Map, Value, json};

use crate::object;
use crate::profiles::*;
use crate::support::{Account, DEADLINE};

pub const TIME: &str = "2026-11-28 11:11:11";
const PASSWORD: &str = "secret";

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One of the acks that canon has not, of this request.
    Ack(Place),
    /// A reply of canon's, a chat or a group chat.
    Canon(Place),
    /// The client reads over it.
    Ignored,
}

pub struct Strict {
    pub profile: Profile,
    pub account: Account,
    /// What the last login ack, or the last update, has listed, in canon's keys.
    pub friends: Vec<Value>,
    pub groups: Vec<Value>,
    /// The chats of the login ack that nobody has looked at.
    missed: VecDeque<(Kind, Value)>,
    address: SocketAddr,
    stream: TcpStream,
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

impl Strict {
    /// A client of an account that there is.
    pub fn of(profile: &Profile, address: SocketAddr, account: &Account) -> Strict {
        Strict {
            profile: *profile,
            account: account.clone(),
            friends: Vec::new(),
            groups: Vec::new(),
            missed: VecDeque::new(),
            address,
            stream: connect(address),
        }
    }

    /// A client with an account that it has registered itself.
    pub fn register(profile: &Profile, address: SocketAddr, name: &str) -> Strict {
        let account = Account { id: 0, name: name.to_owned(), password: PASSWORD.to_owned() };
        let mut client = Strict::of(profile, address, &account);
        client.send(Register, &[("name", name.into()), ("password", PASSWORD.into())]);
        let ack = client.expect(RegisterAck);
        client.account.id = ack["id"].as_u64().and_then(|id| id.try_into().ok()).expect("an id");
        if client.profile.needs.contains(&(RegisterAck, "name")) {
            assert_eq!(ack["name"], name, "{ack}");
        }
        client
    }

    #[track_caller]
    fn dies(&self, why: &str, of: impl std::fmt::Display) -> ! {
        panic!("the client dies: {why}; {} as user {} has read {of}", self.profile.name, self.account.id)
    }

    pub fn id(&self) -> u32 {
        self.account.id
    }

    // -- out ---------------------------------------------------------------------------------

    /// Sends a request, of which the keys are canon's here.
    #[track_caller]
    fn send(&mut self, request: Place, fields: &[(&'static str, Value)]) {
        let profile = self.profile;
        let mut object = Map::new();
        object.insert(profile.msgid.to_owned(), profile.number(request).into());
        for (key, value) in fields.iter().filter(|(key, _)| !profile.omits(request, key)) {
            let is_nobody = profile.is_nobody && *key == "id" && request != Login;
            let value = if is_nobody { 0.into() } else { value.clone() };
            object.insert(profile.key(request, key).to_owned(), value);
        }
        let mut bytes = Value::from(object).to_string().into_bytes();
        let begins = matches!(request, Login | Register);
        match profile.framing {
            Framing::Nul | Framing::LengthOfReplies => bytes.push(0),
            Framing::Bare => {}
            Framing::Connections if begins => self.stream = connect(self.address),
            Framing::Connections => bytes.push(0),
            Framing::Lengths => {
                let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
                bytes.splice(..0, length);
            }
        }
        self.stream.write_all(&bytes).expect("the server reads");
    }

    fn me(&self) -> (&'static str, Value) {
        ("id", self.account.id.into())
    }

    pub fn login(&mut self) {
        let password = self.account.password.clone();
        self.send(Login, &[self.me(), ("password", password.into())]);
        let ack = self.expect(LoginAck);
        assert_eq!((&ack["id"], &ack["name"]), (&self.account.id.into(), &self.account.name.clone().into()), "{ack}");
        self.read_lists(&ack);
        let missed = ack.get("offlinemsg").cloned().unwrap_or(json!([]));
        for text in missed.as_array().unwrap_or_else(|| self.dies("offlinemsg is no array", &ack)) {
            let Some(text) = text.as_str() else { self.dies("an offline message is no string", text) };
            let chat = self.read_object(text);
            self.missed.push_back(chat);
        }
    }

    pub fn logout(&mut self) {
        self.send(Logout, &[self.me()]);
        self.expect_ack(Logout);
    }

    /// Asks for what cannot be. It learns of that only where its dialect has an ack for the request.
    pub fn add_nobody(&mut self) {
        self.send(AddFriend, &[self.me(), ("friendid", 999_999.into())]);
        if let Some(due) = self.profile.ack(AddFriend) {
            let text = self.read();
            let ack = object::parse(&text).unwrap_or_else(|error| self.dies(&error.to_string(), &text));
            let is_refused = if self.profile.name == "f" { ack["flag"] == false } else { ack["errno"] == 15 };
            assert!(is_refused && ack["msgid"] == due.number, "{ack}");
        }
    }

    pub fn add_friend(&mut self, friend: u32) {
        self.send(AddFriend, &[self.me(), ("friendid", friend.into())]);
        if let Some(ack) = self.expect_ack(AddFriend)
            && self.profile.name == "f"
        {
            assert_eq!((&ack["friendid"], &ack["flag"]), (&friend.into(), &true.into()), "{ack}");
        }
        self.update();
    }

    /// Returns the group's id, if the client is told it.
    pub fn create_group(&mut self, name: &str) -> Option<u32> {
        self.send(CreateGroup, &[self.me(), ("groupname", name.into()), ("groupdesc", "talk".into())]);
        let ack = self.expect_ack(CreateGroup);
        self.update();
        if let Some(ack) = &ack
            && let Some(named) = ack.get("groupname")
        {
            assert_eq!(named, name, "{ack}");
        }
        let listed = self.groups.iter().find(|group| group["groupname"] == name).map(|group| &group["id"]);
        let id = ack.as_ref().map(|ack| &ack["groupid"]).or(listed)?;
        Some(id.as_u64().and_then(|id| id.try_into().ok()).expect("a group's id"))
    }

    pub fn join_group(&mut self, group: u32) {
        self.send(JoinGroup, &[self.me(), ("groupid", group.into())]);
        if let Some(ack) = self.expect_ack(JoinGroup)
            && self.profile.name == "g"
        {
            assert_eq!((&ack["uid"], &ack["groupid"]), (&self.account.id.into(), &group.into()), "{ack}");
        }
        self.update();
    }

    /// Sends a chat, and does not wait for what comes of it.
    pub fn post_chat(&mut self, to: u32, text: &str) {
        self.send(Chat, &[self.me(), ("name", self.signs()), ("toid", to.into()), ("msg", text.into()), now()]);
    }

    pub fn chat(&mut self, to: u32, text: &str) {
        self.post_chat(to, text);
        self.expect_ack(Chat);
    }

    pub fn group_chat(&mut self, group: u32, text: &str) {
        let mut fields =
            vec![self.me(), ("name", self.signs()), ("groupid", group.into()), ("msg", text.into()), now()];
        if self.profile.names_groups {
            fields.push(("groupname", "of talk".into()));
        }
        self.send(GroupChat, &fields);
    }

    /// It quits, and the server must have nothing more to say.
    pub fn quit(mut self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection stands");
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).expect("the server closes in order");
        if !rest.is_empty() {
            self.dies("nothing was due", String::from_utf8_lossy(&rest));
        }
    }

    /// The name that its chats bear when it sends them; what is missing there, the server adds.
    fn signs(&self) -> Value {
        if self.profile.is_nameless { "".into() } else { self.account.name.clone().into() }
    }

    /// What it asks for after each change, if it does.
    fn update(&mut self) {
        if self.profile.update.is_some() {
            self.send(Update, &[self.me()]);
            let ack = self.expect_ack(Update).expect("an ack of this");
            assert_eq!((&ack["id"], &ack["name"]), (&self.account.id.into(), &self.account.name.clone().into()));
            self.read_lists(&ack);
        }
    }

    // -- in ----------------------------------------------------------------------------------

    /// One read of the client: what is there, as far as it reaches.
    #[track_caller]
    fn read(&mut self) -> String {
        let mut bytes = match self.profile.framing {
            Framing::LengthOfReplies | Framing::Lengths => {
                let mut length = [0; 4];
                self.stream.read_exact(&mut length).unwrap_or_else(|error| self.hangs(&error));
                let length = u32::from_be_bytes(length) as usize;
                if length > self.profile.reader {
                    self.dies("a length is none", length);
                }
                let mut bytes = vec![0; length];
                self.stream.read_exact(&mut bytes).unwrap_or_else(|error| self.hangs(&error));
                bytes
            }
            _ => {
                let mut bytes = vec![0; self.profile.reader];
                let read = self.stream.read(&mut bytes).unwrap_or_else(|error| self.hangs(&error));
                if read == 0 {
                    self.dies("the connection has ended", "nothing");
                }
                if read == self.profile.reader {
                    self.dies("more bytes than it reads", String::from_utf8_lossy(&bytes));
                }
                bytes.truncate(read);
                bytes
            }
        };
        let is_cut_at_nul = matches!(self.profile.framing, Framing::Nul | Framing::Connections);
        if let Some(end) = bytes.iter().position(|byte| *byte == 0).filter(|_| is_cut_at_nul) {
            if end + 1 < bytes.len() {
                self.dies("two objects in one read", String::from_utf8_lossy(&bytes));
            }
            bytes.truncate(end);
        }
        String::from_utf8(bytes).unwrap_or_else(|error| self.dies("no UTF-8", error))
    }

    #[track_caller]
    fn hangs(&self, error: &std::io::Error) -> ! {
        panic!("the client hangs: nothing came for {} as user {}: {error}", self.profile.name, self.account.id)
    }

    /// The next message that it does not read over.
    #[track_caller]
    fn next(&mut self) -> (Kind, Value) {
        loop {
            let text = self.read();
            let (kind, object) = self.read_object(&text);
            if kind != Kind::Ignored {
                return (kind, object);
            }
        }
    }

    /// An object with what it is, in canon's keys.
    #[track_caller]
    fn read_object(&self, text: &str) -> (Kind, Value) {
        let profile = &self.profile;
        let object = object::parse(text).unwrap_or_else(|error| self.dies(&error.to_string(), text));
        let Some(number) = object[profile.msgid].as_i64() else { self.dies("no number", text) };
        let (kind, place, needs): (Kind, Place, &[&'static str]) = match number {
            _ if number == profile.chat => (Kind::Canon(Chat), Chat, &["id", "name", "msg", "time"]),
            _ if number == profile.group_chat => {
                (Kind::Canon(GroupChat), GroupChat, &["id", "name", "groupid", "msg", "time"])
            }
            _ if number == profile.login_ack => (Kind::Canon(LoginAck), LoginAck, &["errno", "id", "name"]),
            _ if number == profile.register_ack => (Kind::Canon(RegisterAck), RegisterAck, &["errno", "id"]),
            _ if profile.ignores.contains(&number) => (Kind::Ignored, Acks, &[]),
            _ => match profile.acks.iter().find(|ack| ack.number == number) {
                Some(ack) => (Kind::Ack(ack.to), Acks, ack.needs),
                None => self.dies("a message that it does not know", text),
            },
        };
        let object = self.in_canon(place, &object, needs);
        if !matches!(place, Chat | GroupChat) && object.get("errno").is_some_and(|errno| *errno != 0) {
            panic!("{} as user {} is refused: {text}", profile.name, self.account.id);
        }
        (kind, object)
    }

    /// The object in canon's keys, of which it must have those that the client needs.
    #[track_caller]
    fn in_canon(&self, place: Place, object: &Value, needs: &[&'static str]) -> Value {
        let Some(members) = object.as_object() else { self.dies("no object", object) };
        let mut canon = members.clone();
        let own = self.profile.needs.iter().filter(|(at, _)| *at == place).map(|(_, key)| key);
        for key in needs.iter().filter(|key| !self.profile.omits(place, key)).chain(own) {
            let key = self.profile.key(place, key);
            if !canon.contains_key(key) {
                self.dies(&format!("{key} is missing"), object);
            }
        }
        for (key, theirs) in self.profile.replaced(place) {
            let Some(value) = canon.remove(theirs) else { continue };
            if canon.insert(key.to_owned(), value).is_some() {
                self.dies(&format!("{key} stands there beside {theirs}"), object);
            }
        }
        canon.into()
    }

    #[track_caller]
    fn expect(&mut self, place: Place) -> Value {
        let (kind, object) = self.next();
        assert_eq!(kind, Kind::Canon(place), "{} as user {} has got {object}", self.profile.name, self.account.id);
        object
    }

    /// The reply to a request, where the client waits for one.
    #[track_caller]
    fn expect_ack(&mut self, request: Place) -> Option<Value> {
        self.profile.ack(request)?;
        let (kind, object) = self.next();
        assert_eq!(kind, Kind::Ack(request), "{} as user {} has got {object}", self.profile.name, self.account.id);
        Some(object)
    }

    /// The next chat or group chat, be it one that the login ack has brought.
    #[track_caller]
    fn heard(&mut self) -> (Kind, Value) {
        match self.missed.pop_front() {
            Some(chat) => chat,
            None => self.next(),
        }
    }

    /// The next message must be this chat. Returns it with canon's keys.
    #[track_caller]
    pub fn hears(&mut self, from: &Account, text: &str) -> Value {
        let (kind, chat) = self.heard();
        self.check(kind, Chat, &chat, from, text);
        chat
    }

    #[track_caller]
    pub fn hears_in_group(&mut self, group: u32, from: &Account, text: &str) -> Value {
        let (kind, chat) = self.heard();
        self.check(kind, GroupChat, &chat, from, text);
        assert_eq!(chat["groupid"], group, "{chat}");
        chat
    }

    #[track_caller]
    fn check(&self, kind: Kind, place: Place, chat: &Value, from: &Account, text: &str) {
        let got = format!("{} as user {} has got {chat}", self.profile.name, self.account.id);
        assert_eq!(kind, Kind::Canon(place), "{got}");
        assert_eq!((&chat["id"], &chat["msg"]), (&from.id.into(), &text.into()), "{got}");
        assert_eq!(chat["name"], *from.name, "{got}");
    }

    /// Takes note of what a reply lists.
    #[track_caller]
    fn read_lists(&mut self, ack: &Value) {
        let has_data = self.profile.has_data;
        let from = if has_data {
            let Some(data) = ack.get("data") else { self.dies("data is missing", ack) };
            self.in_canon(LoginAck, data, &["id", "name", "state"])
        } else {
            ack.clone()
        };
        self.friends = self.elements(&from, "friends", Friend, has_data, &["id", "name", "state"]);
        let has_objects = self.profile.has_objects || has_data;
        let needs = &["id", "groupname", "groupdesc", "users"];
        let mut groups = self.elements(&from, "groups", Group, has_objects, needs);
        for group in &mut groups {
            let users = self.elements(group, "users", Member, has_objects, &["id", "name", "state", "role"]);
            group["users"] = users.into();
        }
        self.groups = groups;
    }

    /// The elements of a list, which is left out if it is empty.
    #[track_caller]
    fn elements(&self, of: &Value, key: &str, place: Place, as_objects: bool, needs: &[&'static str]) -> Vec<Value> {
        let Some(list) = of.get(key) else { return Vec::new() };
        let Some(list) = list.as_array() else { self.dies(&format!("{key} is no array"), of) };
        let parsed = list.iter().map(|element| match (element, as_objects) {
            (Value::String(text), false) => {
                object::parse(text).unwrap_or_else(|error| self.dies(&error.to_string(), text))
            }
            (Value::Object(_), true) => element.clone(),
            _ => self.dies(&format!("an element of {key} is of the wrong type"), of),
        });
        parsed.map(|element| self.in_canon(place, &element, needs)).collect()
    }
}

fn now() -> (&'static str, Value) {
    ("time", TIME.into())
}
