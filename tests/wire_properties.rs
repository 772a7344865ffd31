//! The wire, by properties: whatever the stream and however it is cut, the same objects come out,
//! nothing panics, and nothing is changed that need not be.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use chat_server::wire::dialect::{self, Dialect, Hearing, Length, Speaker, To, Verb};
use chat_server::wire::proxy::BadHeader;
use chat_server::wire::reply::{Friend, Group, LoginReply, Member};
use chat_server::wire::{
    Broken, Errno, Framing, FramingMirror, MAX_NESTING, ProxyHeader, Request, Split, Splitter, rewrite_chat,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value};

const LIMIT: usize = 64 * 1024;

/// What a connection makes of its input: the objects, how it wants its replies ended, and what
/// broke it.
#[derive(Debug, PartialEq)]
struct Heard {
    objects: Vec<Vec<u8>>,
    framing: Framing,
    broken: Option<Broken>,
}

/// Reads a stream that comes in these pieces, as a connection does.
fn hear<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Heard {
    let (mut splitter, mut mirror) = (Splitter::default(), FramingMirror::default());
    let mut heard = Heard { objects: Vec::new(), framing: Framing::Bare, broken: None };
    let mut input = Vec::new();
    for piece in pieces {
        mirror.more(piece);
        input.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match splitter.next(&input[at..], LIMIT) {
                Ok(Split::Object { start, end }) => {
                    heard.objects.push(input[at + start..at + end].to_vec());
                    at += end;
                    mirror.object_ended(&input[at..]);
                }
                Ok(Split::Partial { skip }) => {
                    input.drain(..at + skip);
                    break;
                }
                Err(broken) => {
                    heard.broken = Some(broken);
                    heard.framing = mirror.framing();
                    return heard;
                }
            }
        }
    }
    heard.framing = mirror.framing();
    heard
}

/// Cuts `stream` into pieces whose lengths are `lengths`, again and again.
fn cut<'a>(stream: &'a [u8], lengths: &[usize]) -> Vec<&'a [u8]> {
    let (mut rest, mut pieces) = (stream, Vec::new());
    for &length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}

/// Text with what is awkward in JSON.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[{}\\[\\]\"\\\\:, \u{0}\n]{0,12}",
        "[a-z]{0,8}",
        Just("名\u{1F600}\u{10FFFF}".to_owned())
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no such number", |f| f.is_finite()).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            btree_map(text(), inner, 0..5).prop_map(Value::from_iter),
        ]
    })
}

fn object() -> impl Strategy<Value = Map<String, Value>> {
    btree_map(text(), value(), 0..6).prop_map(Map::from_iter)
}

/// An object as bytes, with or without blanks inside.
fn encoded() -> impl Strategy<Value = Vec<u8>> {
    (object(), any::<bool>()).prop_map(|(object, pretty)| {
        let encode = if pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
        encode(&object).expect("a Map can be written")
    })
}

fn separators() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0), Just(b' '), Just(b'\t'), Just(b'\r'), Just(b'\n')], 0..4)
}

/// What a stream of objects must be heard as, its separators and nothing else considered.
fn expected_framing(behind: &[Vec<u8>]) -> Framing {
    let of = |run: &[u8], is_last: bool| -> Option<Framing> {
        for (at, &byte) in run.iter().enumerate() {
            match byte {
                0 if at == 0 || run[at - 1] != b'\r' => return Some(Framing::Nul),
                b'\n' if at > 0 && run[at - 1] == b'\r' => return Some(Framing::CrLf),
                b'\n' => return Some(Framing::Lf),
                b'\r' => {}
                // A CR with something else behind it is no terminator.
                _ if at > 0 && run[at - 1] == b'\r' => return Some(Framing::Bare),
                _ => {}
            }
        }
        (!is_last).then_some(Framing::Bare)
    };
    let last = behind.len() - 1;
    behind.iter().enumerate().filter_map(|(n, run)| of(run, n == last)).next_back().unwrap_or_default()
}

/// What a header is heard as when its bytes come in pieces: the first answer that is not "more".
fn hear_header<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<ProxyHeader>, BadHeader> {
    let mut input = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        let heard = ProxyHeader::parse(&input);
        if heard != Ok(None) {
            return heard;
        }
    }
    Ok(None)
}

/// A PROXY header of either version, and the source that it names.
fn proxy_header() -> impl Strategy<Value = (Vec<u8>, Option<SocketAddr>)> {
    let four = || (any::<Ipv4Addr>(), any::<u16>());
    let six = || (any::<Ipv6Addr>(), any::<u16>());
    let extensions = || vec(any::<u8>(), 0..300);
    let v2 = |command: u8, family: u8, rest: Vec<u8>| {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, &rest].concat()
    };
    prop_oneof![
        (four(), four()).prop_map(|((a, p), (b, q))| {
            (format!("PROXY TCP4 {a} {b} {p} {q}\r\n").into_bytes(), Some(SocketAddr::from((a, p))))
        }),
        (six(), six()).prop_map(|((a, p), (b, q))| {
            (format!("PROXY TCP6 {a} {b} {p} {q}\r\n").into_bytes(), Some(SocketAddr::from((a, p))))
        }),
        "( [ -~]{0,80})?".prop_map(|rest| (format!("PROXY UNKNOWN{rest}\r\n").into_bytes(), None)),
        (four(), four(), extensions()).prop_map(move |((a, p), (b, q), more)| {
            let ports = [p.to_be_bytes(), q.to_be_bytes()].concat();
            let rest = [&a.octets()[..], &b.octets(), &ports, &more].concat();
            (v2(0x21, 0x11, rest), Some(SocketAddr::from((a, p))))
        }),
        (six(), six(), extensions()).prop_map(move |((a, p), (b, q), more)| {
            let ports = [p.to_be_bytes(), q.to_be_bytes()].concat();
            let rest = [&a.octets()[..], &b.octets(), &ports, &more].concat();
            (v2(0x21, 0x21, rest), Some(SocketAddr::from((a, p))))
        }),
        (any::<u8>(), extensions()).prop_map(move |(family, rest)| (v2(0x20, family, rest), None)),
    ]
}

/// The keys that a request of canon may have besides its own without being anything else.
fn more_keys(verb: Verb) -> Vec<&'static str> {
    let all = [
        "id",
        "name",
        "toid",
        "to",
        "msg",
        "time",
        "password",
        "pwd",
        "friendid",
        "groupid",
        "groupname",
        "groupdesc",
        "userid",
        "fromid",
        "from",
        "friend",
        "friendId",
        "msgId",
        "content",
    ];
    let never: &[&str] = match verb {
        Verb::Logout => &["password", "pwd", "msg"],
        Verb::JoinGroup | Verb::CreateGroup => &["msg"],
        _ => &[],
    };
    all.into_iter().filter(|key| !never.contains(key)).collect()
}

/// A valid request of canon: with more than it needs, and in odd spellings.
fn canon_request() -> impl Strategy<Value = String> {
    let verbs = Verb::ALL.into_iter().filter(|verb| *verb != Verb::Update).collect::<Vec<_>>();
    let more = vec((any::<prop::sample::Index>(), value()), 0..4);
    (prop::sample::select(verbs), 0..4usize, more, object(), any::<bool>(), proptest::option::of(any::<i64>()))
        .prop_map(|(verb, spelling, more, others, alias, seq)| {
            let mut fields: Map<String, Value> = others;
            let keys = more_keys(verb);
            fields.extend(more.into_iter().map(|(at, value)| (keys[at.index(keys.len())].to_owned(), value)));
            fields.retain(|key, _| key != "msgid" && key != "seq");
            let needed: &[(&str, Value)] = match verb {
                Verb::Login => &[("id", 1.into()), (if alias { "pwd" } else { "password" }, "x".into())],
                Verb::Logout => &[("id", 1.into())],
                Verb::Register => &[("name", "a".into()), ("password", "x".into())],
                Verb::Chat => &[("id", 1.into()), (if alias { "to" } else { "toid" }, "2".into()), ("msg", "x".into())],
                Verb::AddFriend => &[("id", 1.into()), ("friendid", 2.into())],
                Verb::CreateGroup => &[("id", 1.into()), ("groupname", "a".into()), ("groupdesc", "".into())],
                Verb::JoinGroup => &[("id", 1.into()), ("groupid", 3.into())],
                Verb::GroupChat | Verb::Update => &[("id", 1.into()), ("groupid", 3.into()), ("msg", "x".into())],
            };
            fields.extend(needed.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            fields.extend(seq.map(|seq| ("seq".to_owned(), seq.into())));
            let number = verb.msgid();
            let msgid = match spelling {
                0 => format!("\"msgid\":{number}"),
                1 => format!("\"msgid\" : \"{number}\""),
                2 => format!("\"m\\u0073gid\":{number}.0"),
                _ => format!("\"msgid\":{number}e0"),
            };
            // A request of canon needs something besides its number.
            format!("{{{msgid},{}", &Value::from(fields).to_string()[1..])
        })
}

/// What is in a frame of this dialect; `None`: it is none.
fn unframed<'a>(dialect: &Dialect, bytes: &'a [u8]) -> Option<&'a [u8]> {
    if dialect.length() == Length::Nowhere {
        return Some(bytes);
    }
    let (head, object) = bytes.split_first_chunk()?;
    (usize::try_from(u32::from_be_bytes(*head)).ok()? == object.len()).then_some(object)
}

/// The value of the first of these keys that is there.
fn pick<'a>(object: &'a Value, keys: &[&str]) -> &'a Value {
    keys.iter().find_map(|key| object.get(*key)).unwrap_or(&Value::Null)
}

/// An element of a list, which is an object, or a string that holds one.
fn element(element: &Value) -> Value {
    element.as_str().map_or_else(|| element.clone(), |text| text.parse().expect("JSON in a string"))
}

fn elements(list: &Value) -> Vec<Value> {
    list.as_array().map(|list| list.iter().map(element).collect()).unwrap_or_default()
}

/// The lists of a login reply, whatever their keys are called.
fn lists_of(reply: &Value) -> Value {
    const IDS: &[&str] = &["id", "userid", "groupid", "gid", "uid"];
    const NAMES: &[&str] = &["groupname", "gname", "name", "uname", "username"];
    let person = |person: &Value| -> Value {
        [IDS, NAMES, &["state", "status"], &["role"]].map(|keys| pick(person, keys).clone()).to_vec().into()
    };
    let people = |list: &Value| -> Value { elements(list).iter().map(person).collect() };
    let group = |group: &Value| -> Value {
        let users = pick(group, &["users", "user", "gusers", "groupusers", "members"]);
        let [id, name, about] = [IDS, NAMES, &["groupdesc", "gdesc", "desc"]].map(|keys| pick(group, keys).clone());
        vec![id, name, about, people(users)].into()
    };
    let groups: Value = elements(pick(reply, &["groups", "group"])).iter().map(group).collect();
    vec![people(pick(reply, &["friends", "friend"])), groups].into()
}

fn friends() -> impl Strategy<Value = Vec<Friend>> {
    vec((any::<u32>(), text()).prop_map(|(id, name)| Friend { id, name, state: "online" }), 0..4)
}

fn groups() -> impl Strategy<Value = Vec<Group>> {
    let member = (any::<u32>(), text());
    let member = member.prop_map(|(id, name)| Member { id, name, state: "offline", role: "normal" });
    let group = (any::<u32>(), text(), text(), vec(member, 0..3), 0..1000u32);
    vec(
        group.prop_map(|(id, groupname, groupdesc, users, members)| Group { id, groupname, groupdesc, users, members }),
        0..3,
    )
}

/// A chat or a group chat of canon, without the keys that some dialect has instead of canon's.
fn canon_chat() -> impl Strategy<Value = (Map<String, Value>, bool)> {
    (object(), text(), any::<bool>(), any::<bool>()).prop_map(|(mut fields, msg, is_group, is_pretty)| {
        let theirs = ["to", "friendid", "from", "userid", "fromid", "msgId", "toid", "groupid"];
        fields.retain(|key, _| !theirs.contains(&&**key));
        fields.insert(if is_group { "groupid" } else { "toid" }.to_owned(), 2.into());
        let own: [(&str, Value); 5] = [
            ("msgid", if is_group { 10 } else { 6 }.into()),
            ("id", 1.into()),
            ("name", "a".into()),
            ("msg", msg.into()),
            ("time", "".into()),
        ];
        fields.extend(own.map(|(key, value)| (key.to_owned(), value)));
        (fields, is_pretty)
    })
}

/// Like `Request::parse`, but by serde_json's own reading, which is strict in the same ways.
fn is_strict_object(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| serde_json::from_str::<Map<String, Value>>(text).is_ok())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_and_any_separators_give_the_same_objects(
        objects in vec((encoded(), separators()), 1..12),
        lengths in vec(1..40usize, 1..20),
        lead in separators(),
        mark in prop_oneof![Just(""), Just("\u{feff}"), Just("\u{feff}\r\n")],
    ) {
        // Behind a NUL it takes five bytes to tell that no length stands there.
        prop_assume!(lead.first() != Some(&0) || objects.len() > 1);
        let mut stream = [&lead[..], mark.as_bytes()].concat();
        for (object, behind) in &objects {
            stream.extend_from_slice(object);
            stream.extend_from_slice(behind);
        }
        let sent: Vec<Vec<u8>> = objects.iter().map(|(object, _)| object.clone()).collect();
        let whole = hear([&stream[..]]);
        prop_assert_eq!(&whole.objects, &sent);
        prop_assert_eq!(whole.broken, None);
        prop_assert_eq!(&hear(cut(&stream, &lengths)), &whole);
        prop_assert_eq!(hear(stream.chunks(1)), whole);
    }

    #[test]
    fn any_cut_of_any_bytes_is_heard_the_same(
        bytes in vec(prop_oneof![any::<u8>(), prop::sample::select(b"{}[]\"\\ \0\r\n\xef\xbb\xbf".to_vec())], 0..200),
        lengths in vec(1..20usize, 1..10),
    ) {
        let whole = hear([&bytes[..]]);
        let pieces = hear(cut(&bytes, &lengths));
        prop_assert_eq!(&whole.objects, &pieces.objects);
        prop_assert_eq!(whole.broken, pieces.broken);
    }

    #[test]
    fn the_mirror_hears_the_last_terminator_however_it_is_cut(
        runs in vec(separators(), 1..6),
        lengths in vec(1..8usize, 1..8),
    ) {
        let stream: Vec<u8> = runs.iter().flat_map(|run| [&b"{}"[..], run].concat()).collect();
        let expected = expected_framing(&runs);
        prop_assert_eq!(hear([&stream[..]]).framing, expected, "{:?}", runs);
        prop_assert_eq!(hear(cut(&stream, &lengths)).framing, expected, "{:?}", runs);
    }

    #[test]
    fn an_object_is_taken_up_to_its_limit(object in encoded(), behind in separators()) {
        let input = [&object[..], &behind].concat();
        let taken = Splitter::default().next(&input, object.len());
        prop_assert_eq!(taken, Ok(Split::Object { start: 0, end: object.len() }));
        prop_assert_eq!(Splitter::default().next(&input, object.len() - 1), Err(Broken::TooLarge));
    }

    #[test]
    fn nesting_is_counted_as_it_is(depth in 1..80usize, braces in any::<bool>()) {
        let (open, close) = if braces { ("{\"a\":", "}") } else { ("[", "]") };
        let inner = depth - 1;
        let text = format!("{{\"x\":{}0{}}}", open.repeat(inner), close.repeat(inner));
        let heard = hear([text.as_bytes()]);
        if depth <= MAX_NESTING as usize {
            prop_assert_eq!(heard.objects, [text.into_bytes()]);
        } else {
            prop_assert_eq!(heard.broken, Some(Broken::TooDeep));
        }
    }

    #[test]
    fn any_bytes_are_parsed_or_refused_as_unfollowable(bytes in vec(any::<u8>(), 0..100)) {
        if let Err(refusal) = Request::parse(&bytes) {
            prop_assert_eq!(refusal.errno, Errno::Unfollowable);
        }
    }

    /// Valid objects with a few bytes changed: near enough to JSON to reach every branch.
    #[test]
    fn what_is_parsed_is_what_a_strict_parser_takes(
        object in encoded(),
        changes in vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(),
            prop::sample::select(b"{}[]\"\\,:0123456789eE+-.u \ndD8".to_vec()),
        ]), 0..4),
    ) {
        let mut bytes = object;
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(Request::parse(&bytes).is_ok(), is_strict_object(&bytes), "{}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn escapes_and_numbers_are_taken_as_a_strict_parser_takes_them(
        inside in prop_oneof!["\"(\\\\u[dD][89abcdefABCDEF]{0,1}[0-9a-f]{0,3}|[a-z])*\"", "-?[0-9]{0,3}[.]?[0-9]{0,2}([eE][+-]?[0-9]{0,3})?"],
    ) {
        let text = format!("{{\"x\":{inside}}}");
        prop_assert_eq!(Request::parse(text.as_bytes()).is_ok(), is_strict_object(text.as_bytes()), "{}", text);
    }

    #[test]
    fn integers_are_read_as_they_are_however_they_are_written(
        number in prop_oneof![any::<i64>(), -1000..1000_i64],
        zeros in 0..30usize,
        point in 0..20usize,
        e in prop::sample::select(vec!["e", "E", "e+", "E+"]),
        quoted in any::<bool>(),
    ) {
        let quote = if quoted { "\"" } else { "" };
        let (sign, digits) = if number < 0 { ("-", number.unsigned_abs()) } else { ("", number as u64) };
        // As many digits as it takes to have a point so far to the left.
        let padded = format!("{digits:0>width$}", width = point + 1);
        let (whole, fraction) = padded.split_at(padded.len() - point);
        let (whole, zeros) = (whole.trim_start_matches('0'), "0".repeat(zeros));
        let whole = if whole.is_empty() { "0" } else { whole };
        for written in [
            number.to_string(),
            format!("{number}.0{zeros}"),
            format!("{sign}{whole}.{fraction}0{zeros}{e}{point}"),
            if number == 0 { "-0".to_owned() } else { format!("{number}{zeros}e-{}", zeros.len()) },
        ] {
            let text = format!("{{\"id\":{quote}{written}{quote}}}");
            prop_assert_eq!(Request::parse(text.as_bytes()).unwrap().id(), Ok(number), "{}", text);
            // With a digit more behind the point it is none.
            let (mantissa, exponent) = written.split_once(['e', 'E']).map_or((&*written, ""), |(m, _)| (m, &written[m.len()..]));
            if mantissa.contains('.') {
                let text = format!("{{\"id\":{quote}{mantissa}{}1{exponent}{quote}}}", "0".repeat(point));
                prop_assert!(Request::parse(text.as_bytes()).unwrap().id().is_err(), "{}", text);
            }
        }
    }

    #[test]
    fn rewriting_sets_name_and_time_and_keeps_every_other_value(
        mut chat in object(),
        name in prop::option::of(text()),
        time in prop::option::of(text()),
        account in text(),
        pretty in any::<bool>(),
    ) {
        const NOW: &str = "2026-01-02 03:04:05";
        chat.insert("msg".into(), "hi".into());
        chat.remove("name");
        chat.remove("time");
        chat.extend(name.map(|name| ("name".to_owned(), name.into())));
        chat.extend(time.map(|time| ("time".to_owned(), time.into())));
        let bytes = if pretty { serde_json::to_vec_pretty(&chat) } else { serde_json::to_vec(&chat) }.unwrap();
        let request = Request::parse(&bytes).unwrap();
        let read = request.chat().unwrap();
        let mut out = Vec::new();
        rewrite_chat(&bytes, read, &account, NOW, &mut out);
        if read.is_complete(&account) {
            prop_assert_eq!(&out, &bytes, "nothing has to change");
        }
        // Read back like the other one, because reading rounds some numbers.
        let mut expected: Map<String, Value> = serde_json::from_slice(&bytes).unwrap();
        expected.insert("name".into(), account.into());
        expected.entry("time").or_insert(NOW.into());
        let got: Map<String, Value> = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(got, expected);
        prop_assert!(Request::parse(&out).is_ok());
        prop_assert_eq!(hear([&out[..]]).objects, [out]);
    }

    #[test]
    fn a_client_of_canon_is_never_taken_for_another(requests in vec(canon_request(), 1..6)) {
        let mut hearing = Hearing::default();
        for text in &requests {
            let request = Request::parse(text.as_bytes()).expect("a request");
            prop_assert!(hearing.hear(&request, None).is_none(), "{}", text);
        }
    }

    #[test]
    fn a_chat_is_the_same_in_canon_again((chat, is_pretty) in canon_chat()) {
        let encode = if is_pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
        let canon = encode(&chat).expect("a Map can be written");
        // Reading rounds some numbers.
        let chat: Map<String, Value> = serde_json::from_slice(&canon).unwrap();
        for dialect in dialect::list() {
            let speaker = Speaker::new(dialect::find(dialect.name()).unwrap().clone());
            let mut theirs = Vec::new();
            speaker.write_chat(&canon, &mut theirs);
            let object = unframed(dialect, &theirs);
            prop_assert!(object.is_some(), "{}: {}", dialect.name(), theirs.escape_ascii());
            let object = object.unwrap();
            prop_assert!(Request::parse(object).is_ok(), "{}: {}", dialect.name(), theirs.escape_ascii());
            prop_assert_eq!(&hear([object]).objects, &[object.to_vec()]);
            let mut back = Vec::new();
            dialect.write_chat(To::Canon, object, &mut back);
            let back: Map<String, Value> = serde_json::from_slice(&back).unwrap();
            prop_assert_eq!(&back, &chat, "{}: {}", dialect.name(), theirs.escape_ascii());
        }
    }

    #[test]
    fn a_login_reply_lists_the_same_in_every_dialect(
        friends in friends(),
        groups in groups(),
        chats in vec(canon_chat(), 0..3),
        name in text(),
    ) {
        let chats: Vec<String> = chats.into_iter().map(|(chat, _)| Value::from(chat).to_string()).collect();
        let offline: Vec<&str> = chats.iter().map(String::as_str).collect();
        let login = LoginReply {
            seq: None,
            id: 7,
            name: &name,
            friends: &friends,
            groups: &groups,
            offline: &offline,
            limit: None,
        };
        let canon: Value = serde_json::from_slice(&login.written().0).unwrap();
        for dialect in dialect::list() {
            let (theirs, listed) = dialect.login_ack(&login);
            prop_assert_eq!((listed.friends, listed.groups, listed.offline), (friends.len(), groups.len(), chats.len()));
            let object = unframed(dialect, &theirs);
            prop_assert!(object.is_some_and(is_strict_object), "{}: {}", dialect.name(), theirs.escape_ascii());
            let reply: Value = serde_json::from_slice(object.unwrap()).unwrap();
            prop_assert_eq!(lists_of(&reply), lists_of(&canon), "{}", dialect.name());
            if let Some(data) = reply.get("data") {
                prop_assert_eq!(lists_of(data), lists_of(&canon), "{}", dialect.name());
            }
            let messages = pick(&reply, &["offlinemsg", "offlineMsg", "offlinemessage"]).as_array();
            for (message, chat) in messages.into_iter().flatten().zip(&chats) {
                let mut back = Vec::new();
                dialect.write_chat(To::Canon, message.as_str().unwrap().as_bytes(), &mut back);
                let (back, chat): (Value, Value) = (serde_json::from_slice(&back).unwrap(), chat.parse().unwrap());
                prop_assert_eq!(back, chat, "{}", dialect.name());
            }
        }
    }

    #[test]
    fn a_proxy_header_is_read_however_it_is_cut_and_what_follows_is_left(
        (header, source) in proxy_header(),
        behind in vec(any::<u8>(), 0..20),
        lengths in vec(1..40usize, 1..20),
    ) {
        let stream = [&header[..], &behind].concat();
        let expected = Ok(Some(ProxyHeader { length: header.len(), source }));
        prop_assert_eq!(ProxyHeader::parse(&stream), expected);
        prop_assert_eq!(hear_header(cut(&stream, &lengths)), expected);
        prop_assert_eq!(hear_header(stream.chunks(1)), expected);
        prop_assert_eq!(hear_header(header[..header.len() - 1].chunks(1)), Ok(None));
    }

    /// Headers with a few bytes changed: whatever is said of them is said at any cut.
    #[test]
    fn a_broken_proxy_header_is_broken_at_any_cut(
        (header, _) in proxy_header(),
        changes in vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(),
            prop::sample::select(b"\r\n 0.:TCP6".to_vec()),
        ]), 1..4),
        lengths in vec(1..40usize, 1..20),
    ) {
        let mut stream = header;
        for (at, byte) in changes {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        let whole = ProxyHeader::parse(&stream);
        prop_assert_eq!(hear_header(cut(&stream, &lengths)), whole);
        prop_assert_eq!(hear_header(stream.chunks(1)), whole);
    }
}
