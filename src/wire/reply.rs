//! What the server says: acks, errors, and the lists of a login reply.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::msgid;

/// The `errno` of a reply. 1 and 2 are the original's, from 10 up are this server's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u16", from = "u16")]
#[repr(i64)]
pub enum Errno {
    /// Login: no such user or a wrong password. Register: the name is taken.
    Rejected = 1,
    /// Login: the account is in use.
    InUse = 2,
    /// The stream cannot be followed; the connection is closed behind this.
    Unfollowable = 10,
    UnknownMsgid = 11,
    /// A field is missing, of the wrong type, empty, too long or appears twice.
    BadField = 12,
    NotLoggedIn = 13,
    /// `id` is not the logged-in user.
    NotYou = 14,
    NoSuchUser = 15,
    NoSuchGroup = 16,
    NotAMember = 17,
    /// The friend, the member or the group name exists already.
    AlreadySo = 18,
    /// The connection is closed behind this.
    TooLarge = 19,
    /// Too fast, full, or too many failed logins.
    Busy = 20,
    /// It may or may not have been done; trying again may repeat it.
    StoreUnavailable = 21,
    ShuttingDown = 22,
}

/// By its number, as on the wire.
impl From<Errno> for u16 {
    fn from(errno: Errno) -> u16 {
        errno as u16
    }
}

/// An unknown number is read as "may or may not have been done".
impl From<u16> for Errno {
    fn from(number: u16) -> Errno {
        match number {
            1 => Errno::Rejected,
            2 => Errno::InUse,
            10 => Errno::Unfollowable,
            11 => Errno::UnknownMsgid,
            12 => Errno::BadField,
            13 => Errno::NotLoggedIn,
            14 => Errno::NotYou,
            15 => Errno::NoSuchUser,
            16 => Errno::NoSuchGroup,
            17 => Errno::NotAMember,
            18 => Errno::AlreadySo,
            19 => Errno::TooLarge,
            20 => Errno::Busy,
            22 => Errno::ShuttingDown,
            _ => Errno::StoreUnavailable,
        }
    }
}

impl Errno {
    /// The text where the request adds nothing to it.
    pub fn text(self) -> &'static str {
        match self {
            Errno::Rejected => "id or password is invalid!",
            Errno::InUse => "this account is using, input another!",
            Errno::Unfollowable => "the stream cannot be followed",
            Errno::UnknownMsgid => "unknown msgid",
            Errno::BadField => "a field is wrong",
            Errno::NotLoggedIn => "log in first",
            Errno::NotYou => "id is not the logged-in user",
            Errno::NoSuchUser => "no such user",
            Errno::NoSuchGroup => "no such group",
            Errno::NotAMember => "you are not a member of this group",
            Errno::AlreadySo => "already done",
            Errno::TooLarge => "message too large",
            Errno::Busy => "too busy, try again later",
            Errno::StoreUnavailable => "storage is unavailable, try again later",
            Errno::ShuttingDown => "the server is shutting down",
        }
    }
}

/// Why a request is not carried out: what its reply says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub errno: Errno,
    pub text: Cow<'static, str>,
    /// With [`Errno::Busy`]: the number of seconds after which to try again.
    pub retry_after: u32,
}

impl Refusal {
    pub fn new(errno: Errno, text: impl Into<Cow<'static, str>>) -> Self {
        Refusal { errno, text: text.into(), retry_after: 1 }
    }

    /// Error 20: a limit is reached; try again after `retry_after` seconds.
    pub fn busy(text: impl Into<Cow<'static, str>>, retry_after: u32) -> Self {
        Refusal { retry_after: retry_after.max(1), ..Refusal::new(Errno::Busy, text) }
    }

    pub(super) fn field(name: &str, problem: &str) -> Self {
        Refusal::new(Errno::BadField, format!("{name} {problem}"))
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Refusal::new(errno, errno.text())
    }
}

/// One reply. Fields that are `None` are left out; serde keeps the order in which they stand here.
#[derive(Serialize, Default)]
struct Reply<'a> {
    msgid: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errno: Option<i64>,
    /// Register only: clients of the reference read `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    errmsg: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groupid: Option<u32>,
}

fn write(out: &mut Vec<u8>, reply: &impl Serialize) {
    // Writing plain data into a Vec cannot fail: no map keys, no I/O.
    let _ = serde_json::to_writer(out, reply);
}

/// `{"msgid":200,"seq":…,"errno":0}`: done.
pub fn ack(out: &mut Vec<u8>, seq: i64) {
    write(out, &Reply { msgid: msgid::ACK, seq: Some(seq), errno: Some(0), ..Reply::default() });
}

/// The ack of CREATE_GROUP.
pub fn ack_group_created(out: &mut Vec<u8>, seq: i64, group: u32) {
    let reply = Reply { msgid: msgid::ACK, seq: Some(seq), errno: Some(0), groupid: Some(group), ..Reply::default() };
    write(out, &reply);
}

/// The ack of ONE_CHAT: delivered to the recipient's connection, or committed to the store.
pub fn ack_chat(out: &mut Vec<u8>, seq: i64, delivered: bool) {
    #[derive(Serialize)]
    struct ChatAck {
        msgid: i64,
        seq: i64,
        errno: i64,
        delivered: bool,
    }
    write(out, &ChatAck { msgid: msgid::ACK, seq, errno: 0, delivered });
}

/// How the members of a group got one message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FanOut {
    pub delivered: u32,
    pub stored: u32,
    pub failed: u32,
}

impl FanOut {
    pub fn total(self) -> u32 {
        self.delivered + self.stored + self.failed
    }
}

impl std::ops::AddAssign for FanOut {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.stored += other.stored;
        self.failed += other.failed;
    }
}

/// The ack of GROUP_CHAT; `failed` stands only where some could not be served.
pub fn ack_group_chat(out: &mut Vec<u8>, seq: i64, fan: FanOut) {
    #[derive(Serialize)]
    struct GroupAck {
        msgid: i64,
        seq: i64,
        errno: i64,
        delivered: u32,
        stored: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        failed: Option<u32>,
    }
    let failed = (fan.failed > 0).then_some(fan.failed);
    write(out, &GroupAck { msgid: msgid::ACK, seq, errno: 0, delivered: fan.delivered, stored: fan.stored, failed });
}

/// A chat whose text is what is left of one that a C++ server has stored.
///
/// It puts JSON between quotes of SQL, where MySQL takes the backslashes for its own, so that a text
/// with a quotation mark or a second line is no JSON any more; or a narrow column has cut it. No
/// client could follow what comes behind it, and C++ clients die of it.
pub fn damaged_chat(out: &mut Vec<u8>, text: &str) {
    #[derive(Serialize)]
    struct Chat<'a> {
        msgid: i64,
        id: u32,
        name: &'a str,
        msg: &'a str,
        time: &'a str,
    }
    write(out, &Chat { msgid: msgid::ONE_CHAT, id: 0, name: "(damaged message)", msg: text, time: "" });
}

/// PING, which asks whether a client is still there.
pub fn ping(out: &mut Vec<u8>) {
    write(out, &Reply { msgid: msgid::PING, ..Reply::default() });
}

/// The reply of PING.
pub fn pong(out: &mut Vec<u8>, seq: Option<i64>) {
    write(out, &Reply { msgid: msgid::PONG, seq, ..Reply::default() });
}

/// REG_MSG_ACK of success.
pub fn registered(out: &mut Vec<u8>, seq: Option<i64>, id: u32) {
    let reply =
        Reply { msgid: msgid::REGISTER_ACK, seq, errno: Some(0), error: Some(0), id: Some(id), ..Reply::default() };
    write(out, &reply);
}

/// The one reply of a refused request: LOGIN, REGISTER and PING have their own; for the rest it is
/// the 200 if they bear a `seq`, and the 201 if not. `request` is the `msgid`, where known.
pub fn refused(out: &mut Vec<u8>, request: Option<i64>, seq: Option<i64>, refusal: &Refusal) {
    let errno = refusal.errno as i64;
    let base = Reply {
        seq,
        errno: Some(errno),
        errmsg: Some(&refusal.text),
        retry_after: (refusal.errno == Errno::Busy).then_some(refusal.retry_after),
        ..Reply::default()
    };
    let reply = match (request, seq) {
        (Some(msgid::LOGIN), _) => Reply { msgid: msgid::LOGIN_ACK, ..base },
        (Some(msgid::REGISTER), _) => Reply { msgid: msgid::REGISTER_ACK, error: Some(errno), ..base },
        (Some(msgid::PING), _) => Reply { msgid: msgid::PONG, ..base },
        (_, Some(_)) => Reply { msgid: msgid::ACK, ..base },
        (_, None) => Reply { msgid: msgid::ERROR, request, ..base },
    };
    write(out, &reply);
}

/// A friend as the login reply lists one.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Friend {
    pub id: u32,
    pub name: String,
    pub state: &'static str,
}

/// A group's member as the login reply lists one.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Member {
    pub id: u32,
    pub name: String,
    pub state: &'static str,
    pub role: &'static str,
}

/// A group as the login reply lists one: at most the first [`LISTED_MEMBERS`] members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub id: u32,
    pub groupname: String,
    pub groupdesc: String,
    pub users: Vec<Member>,
    /// How many members the group has.
    pub members: u32,
}

/// A longer group is listed with its first members and a count.
pub const LISTED_MEMBERS: u32 = 500;

/// The most that `offlinemsg` may take of a login reply, in bytes as written.
pub const OFFLINE_IN_REPLY: usize = 256 * 1024;

fn json(value: &impl Serialize) -> String {
    // As in `write`: plain data into a String.
    serde_json::to_string(value).unwrap_or_default()
}

/// The C++ client reads every list as strings that are JSON themselves.
fn encode_friend(friend: &Friend) -> String {
    json(friend)
}

fn encode_group(group: &Group) -> String {
    #[derive(Serialize)]
    struct Listed<'a> {
        id: u32,
        groupname: &'a str,
        groupdesc: &'a str,
        users: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        members: Option<u32>,
    }
    json(&Listed {
        id: group.id,
        groupname: &group.groupname,
        groupdesc: &group.groupdesc,
        users: group.users.iter().map(json).collect(),
        members: (group.members > LISTED_MEMBERS).then_some(group.members),
    })
}

/// Appends `,"key":[…]` to an open object, unless there is nothing to list. Returns how many of
/// `items` fitted into `room` bytes.
fn append_list(out: &mut Vec<u8>, key: &str, items: impl Iterator<Item = String>, room: usize) -> usize {
    let from = out.len();
    let mut listed = 0;
    for item in items {
        let rewind = out.len();
        if listed == 0 {
            out.extend_from_slice(format!(",\"{key}\":[").as_bytes());
        } else {
            out.push(b',');
        }
        write(out, &item);
        if out.len() + 1 - from > room {
            out.truncate(rewind);
            break;
        }
        listed += 1;
    }
    if listed > 0 {
        out.push(b']');
    }
    listed
}

/// What a login reply says of the account.
#[derive(Clone, Copy)]
pub struct LoginReply<'a> {
    pub seq: Option<i64>,
    pub id: u32,
    pub name: &'a str,
    pub friends: &'a [Friend],
    pub groups: &'a [Group],
    /// The offline messages, oldest first, each the object that was sent.
    pub offline: &'a [&'a str],
    /// For C++ clients, which die of more.
    pub limit: Option<ReplyLimit>,
}

/// The largest login reply of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyLimit {
    pub bytes: usize,
    pub yields: Yields,
}

/// What a login reply leaves out to stay within its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yields {
    /// Offline messages, which follow as pushes. Friends and groups are listed in full.
    Offline,
    /// Those, and friends and groups, which nothing else tells the client.
    Everything,
}

/// How much of each list a login reply had room for; the lists' heads are in it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    pub offline: usize,
    pub friends: usize,
    pub groups: usize,
}

impl LoginReply<'_> {
    /// The reply in canon.
    pub fn written(&self) -> (Vec<u8>, Listed) {
        let mut out = Vec::new();
        let listed = self.write(&mut out);
        (out, listed)
    }

    /// Writes the LOGIN_MSG_ACK of success.
    pub fn write(&self, out: &mut Vec<u8>) -> Listed {
        #[derive(Serialize)]
        struct Head<'a> {
            msgid: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            seq: Option<i64>,
            errno: i64,
            id: u32,
            name: &'a str,
            state: &'a str,
        }
        let from = out.len();
        write(
            out,
            &Head { msgid: msgid::LOGIN_ACK, seq: self.seq, errno: 0, id: self.id, name: self.name, state: "online" },
        );
        out.pop(); // the brace; the lists follow
        let most = self.limit.map_or(usize::MAX, |limit| limit.bytes);
        let used = out.len() - from + 1;
        let mut lists = Vec::new();
        let mut listed = Listed::default();
        if !self.lists_yield() {
            (listed.friends, listed.groups) = self.write_lists(&mut lists, usize::MAX);
        }
        let fits = most.saturating_sub(used + lists.len()).min(OFFLINE_IN_REPLY);
        let offline = self.offline.iter().map(|text| (*text).to_owned());
        let begun = out.len();
        listed.offline = append_list(out, "offlinemsg", offline, fits);
        if self.lists_yield() {
            let room = most.saturating_sub(used + out.len() - begun);
            (listed.friends, listed.groups) = self.write_lists(&mut lists, room);
        }
        out.append(&mut lists);
        out.push(b'}');
        listed
    }

    fn lists_yield(&self) -> bool {
        self.limit.is_some_and(|limit| limit.yields == Yields::Everything)
    }

    /// Writes friends and groups, as many as there is room for, and returns how many.
    fn write_lists(&self, out: &mut Vec<u8>, room: usize) -> (usize, usize) {
        let friends = append_list(out, "friends", self.friends.iter().map(encode_friend), room);
        let room = room.saturating_sub(out.len());
        (friends, append_list(out, "groups", self.groups.iter().map(encode_group), room))
    }

    /// Whether a reply that lists so much may list less.
    pub fn may_shrink(&self, listed: Listed) -> bool {
        listed.offline > 0 || (self.lists_yield() && listed != Listed::default())
    }
}

/// The 200 of LIST: `friends` and `groups` as the login reply has them.
pub fn lists(out: &mut Vec<u8>, seq: Option<i64>, friends: &[Friend], groups: &[Group]) {
    write(out, &Reply { msgid: msgid::ACK, seq, errno: Some(0), ..Reply::default() });
    out.pop();
    append_list(out, "friends", friends.iter().map(encode_friend), usize::MAX);
    append_list(out, "groups", groups.iter().map(encode_group), usize::MAX);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_refusal_goes_where_its_client_looks() {
        let refusal = Refusal::from(Errno::Rejected);
        let of = |request, seq| text(|out| refused(out, request, seq, &refusal));
        assert_eq!(of(Some(1), None), r#"{"msgid":2,"errno":1,"errmsg":"id or password is invalid!"}"#);
        assert_eq!(of(Some(4), None), r#"{"msgid":5,"errno":1,"error":1,"errmsg":"id or password is invalid!"}"#);
        assert!(of(Some(6), Some(7)).starts_with(r#"{"msgid":200,"seq":7,"errno":1,"#));
        assert!(of(Some(6), None).ends_with(r#""request":6}"#));
        assert!(!of(None, None).contains("request"));
    }

    #[test]
    fn a_login_reply_leaves_empty_lists_out_and_nests_json_in_strings() {
        let friend = Friend { id: 2, name: "a\"b".into(), state: "online" };
        let mut reply =
            LoginReply { seq: None, id: 1, name: "x", friends: &[], groups: &[], offline: &[], limit: None };
        assert_eq!(text(|out| _ = reply.write(out)), r#"{"msgid":2,"errno":0,"id":1,"name":"x","state":"online"}"#);
        let friends = [friend];
        reply.friends = &friends;
        let value: serde_json::Value = serde_json::from_str(&text(|out| _ = reply.write(out))).unwrap();
        let inner: serde_json::Value = serde_json::from_str(value["friends"][0].as_str().unwrap()).unwrap();
        assert_eq!(inner["name"], "a\"b");
    }

    #[test]
    fn a_limited_reply_lists_what_fits_and_says_how_much() {
        let message = format!("{{\"msg\":\"{}\"}}", "x".repeat(200));
        let offline = vec![message.as_str(); 10];
        let limit = ReplyLimit { bytes: 1023, yields: Yields::Everything };
        let reply = LoginReply {
            seq: None,
            id: 1,
            name: "x",
            friends: &[],
            groups: &[],
            offline: &offline,
            limit: Some(limit),
        };
        let mut out = Vec::new();
        let listed = reply.write(&mut out);
        assert!(out.len() <= 1023 && listed.offline == 4, "{listed:?} in {}", out.len());
        serde_json::from_slice::<serde_json::Value>(&out).unwrap();
    }

    #[test]
    fn offline_messages_yield_to_friends_and_groups_where_those_are_listed_in_full() {
        let message = format!("{{\"msg\":\"{}\"}}", "x".repeat(200));
        let offline = vec![message.as_str(); 10];
        let friends: Vec<Friend> =
            (2..40).map(|id| Friend { id, name: format!("friend {id}"), state: "offline" }).collect();
        let group = Group { id: 1, groupname: "g".into(), groupdesc: String::new(), users: Vec::new(), members: 0 };
        let groups = [group];
        let limit = Some(ReplyLimit { bytes: 1022, yields: Yields::Offline });
        // The number of friends, and of the offline messages that there is room for beside them.
        for (count, expected) in [(0, 4), (5, 2), (30, 0)] {
            let friends = &friends[..count];
            let reply = LoginReply { seq: None, id: 1, name: "x", friends, groups: &groups, offline: &offline, limit };
            let (bytes, listed) = reply.written();
            assert_eq!(listed, Listed { offline: expected, friends: count, groups: 1 }, "{} bytes", bytes.len());
            assert!(bytes.len() <= 1022 || expected == 0);
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(value["friends"].as_array().map_or(0, Vec::len), count);
            let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            assert!(keys.contains(&"groups".to_owned()), "{keys:?}");
        }
    }
}
