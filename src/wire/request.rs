//! Reads the fields the server needs out of one object, and refuses what crashes C++ peers.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::reply::{Errno, Refusal};
use super::{integer, name};

/// Declares the fields the server reads, each with its place in [`Request`].
macro_rules! keys {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(non_camel_case_types)]
        pub(super) enum Key { $($name),* }
        const KEYS: usize = [$($text),*].len();
        impl Key {
            fn find(text: &str) -> Option<Key> {
                match text { $($text => Some(Key::$name),)* _ => None }
            }
            fn text(self) -> &'static str {
                match self { $(Key::$name => $text),* }
            }
        }
    };
}

keys! {
    msgid = "msgid", seq = "seq", id = "id", name = "name", toid = "toid", to = "to", msg = "msg", time = "time",
    password = "password", passwd = "passwd", pwd = "pwd", friendid = "friendid", groupid = "groupid",
    groupname = "groupname", groupdesc = "groupdesc",
}

/// Keys that some dialects have for those above, and that are read in no other way.
const ALIASES: [&str; 6] = ["msgId", "userid", "fromid", "friend", "friendId", "from"];

/// The keys of an object: one bit for each of [`Key`], behind them one for each of [`ALIASES`], and one for all others.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Keys(u32);

impl Keys {
    const OTHER: Keys = Keys(1 << (KEYS + ALIASES.len()));
    pub const ALL: Keys = Keys((Keys::OTHER.0 << 1) - 1);

    pub const fn of(keys: &[Key]) -> Keys {
        let (mut bits, mut at) = (0, 0);
        while at < keys.len() {
            bits |= 1 << keys[at] as u32;
            at += 1;
        }
        Keys(bits)
    }

    /// The key of this name, if it is one of these at all.
    pub fn named(name: &str) -> Option<Keys> {
        let alias = || ALIASES.iter().position(|alias| *alias == name).map(|at| KEYS + at);
        Key::find(name).map(|key| key as usize).or_else(alias).map(|bit| Keys(1 << bit))
    }

    pub const fn with(self, other: Keys) -> Keys {
        Keys(self.0 | other.0)
    }

    pub const fn without(self, other: Keys) -> Keys {
        Keys(self.0 & !other.0)
    }

    pub const fn has_all(self, of: Keys) -> bool {
        self.0 & of.0 == of.0
    }

    pub const fn has_any(self, of: Keys) -> bool {
        self.0 & of.0 != 0
    }
}

/// One field's value, as far as the server cares.
#[derive(Debug, Default)]
enum Field<'a> {
    #[default]
    Absent,
    Int(i64),
    /// A number with a fraction or an exponent, or past 64 bits. Only its text tells whether it is an integer.
    Float,
    Text(Cow<'a, str>),
    /// Valid JSON of another type.
    Other,
    /// It appears more than once, so it is unknown which one is meant.
    Twice,
}

/// One parsed object: its known fields, borrowed where they have no escapes.
///
/// Parsing checks the whole object, unknown fields included, because it may be forwarded: it must
/// be UTF-8 and strict JSON, without lone surrogates and without numbers outside double range.
/// (Nesting is the [`super::Splitter`]'s.) Whether a field is there and of the right type is
/// checked when it is asked for, since that depends on the message.
#[derive(Debug)]
pub struct Request<'a> {
    fields: [Field<'a>; KEYS],
    keys: Keys,
    /// What they were read from.
    object: &'a [u8],
}

impl<'a> Request<'a> {
    /// Parses one object. The error is the reply's text, for errno 10.
    pub fn parse(object: &'a [u8]) -> Result<Self, Refusal> {
        // `from_slice` would let invalid UTF-8 through in fields that are not read.
        let text =
            std::str::from_utf8(object).map_err(|_| Refusal::new(Errno::Unfollowable, "a message must be UTF-8"))?;
        let mut request: Request<'a> = serde_json::from_str(text)
            .map_err(|error| Refusal::new(Errno::Unfollowable, format!("not JSON: {error}")))?;
        request.object = object;
        Ok(request)
    }

    /// What it was read from.
    pub fn object(&self) -> &'a [u8] {
        self.object
    }

    /// Its number, if that can be read.
    pub fn number(&self) -> Option<i64> {
        match self.field(Key::msgid) {
            Field::Int(number) => Some(*number),
            Field::Absent => None,
            _ => self.msgid().ok(),
        }
    }

    /// Whether it has a `seq`, right or wrong.
    pub fn has_seq(&self) -> bool {
        self.keys.has_any(const { Keys::of(&[Key::seq]) })
    }

    /// Which keys it has.
    pub(super) fn keys(&self) -> Keys {
        self.keys
    }

    fn field(&self, key: Key) -> &Field<'a> {
        &self.fields[key as usize]
    }

    fn int(&self, key: Key) -> Result<Option<i64>, Refusal> {
        let value = match self.field(key) {
            Field::Absent => return Ok(None),
            Field::Int(value) => Some(*value),
            // The double that serde_json has made of it may be rounded.
            Field::Float => value_of(self.object, key).and_then(integer),
            // Some clients send numbers as strings.
            Field::Text(text) => text.parse().ok().or_else(|| integer(text)),
            Field::Other => None,
            Field::Twice => return Err(Refusal::field(key.text(), "appears twice")),
        };
        value.map(Some).ok_or_else(|| Refusal::field(key.text(), "must be a 64-bit integer"))
    }

    fn required_int(&self, key: Key) -> Result<i64, Refusal> {
        self.int(key)?.ok_or_else(|| Refusal::field(key.text(), "is missing"))
    }

    fn text(&self, key: Key) -> Result<Option<&str>, Refusal> {
        match self.field(key) {
            Field::Absent => Ok(None),
            Field::Text(text) => Ok(Some(text)),
            Field::Int(_) | Field::Float | Field::Other => Err(Refusal::field(key.text(), "must be a string")),
            Field::Twice => Err(Refusal::field(key.text(), "appears twice")),
        }
    }

    /// A required string of `min..=max` characters.
    fn sized_text(&self, key: Key, min: usize, max: usize) -> Result<&str, Refusal> {
        let text = self.text(key)?.ok_or_else(|| Refusal::field(key.text(), "is missing"))?;
        // Counting characters is only needed where the bytes leave doubt.
        if text.len() > max && text.chars().count() > max {
            return Err(Refusal::field(key.text(), &format!("is longer than {max} characters")));
        }
        if text.len() < min {
            return Err(Refusal::field(key.text(), "is empty"));
        }
        Ok(text)
    }

    pub fn msgid(&self) -> Result<i64, Refusal> {
        self.required_int(Key::msgid)
    }

    /// The number a client chose for this request's one reply.
    pub fn seq(&self) -> Result<Option<i64>, Refusal> {
        self.int(Key::seq)
    }

    pub fn id(&self) -> Result<i64, Refusal> {
        self.required_int(Key::id)
    }

    /// The recipient: `toid`, or `to` as the reference server reads it; `toid` wins.
    pub fn toid(&self) -> Result<i64, Refusal> {
        let (toid, to) = (self.int(Key::toid)?, self.int(Key::to)?);
        toid.or(to).ok_or_else(|| Refusal::field("toid", "is missing"))
    }

    pub fn friendid(&self) -> Result<i64, Refusal> {
        self.required_int(Key::friendid)
    }

    pub fn groupid(&self) -> Result<i64, Refusal> {
        self.required_int(Key::groupid)
    }

    /// An account's new name: 1 to 50 characters. A forbidden name is refused like a taken one: with the errno that
    /// clients know.
    pub fn name(&self) -> Result<&str, Refusal> {
        let text = self.sized_text(Key::name, 1, 50)?;
        match name::problem(text) {
            Some(problem) => Err(Refusal { errno: Errno::Rejected, ..Refusal::field(Key::name.text(), problem) }),
            None => Ok(text),
        }
    }

    /// 1 to 128 bytes; `password`, `passwd` or `pwd`, the first of them that is there.
    pub fn password(&self) -> Result<&str, Refusal> {
        let (password, passwd, pwd) = (self.text(Key::password)?, self.text(Key::passwd)?, self.text(Key::pwd)?);
        match password.or(passwd).or(pwd) {
            None => Err(Refusal::field("password", "is missing")),
            Some("") => Err(Refusal::field("password", "is empty")),
            Some(text) if text.len() > 128 => Err(Refusal::field("password", "is longer than 128 bytes")),
            Some(text) => Ok(text),
        }
    }

    /// A group's new name: 1 to 50 characters, as [`Request::name`].
    pub fn groupname(&self) -> Result<&str, Refusal> {
        let text = self.sized_text(Key::groupname, 1, 50)?;
        match name::problem(text) {
            Some(problem) => Err(Refusal::field(Key::groupname.text(), problem)),
            None => Ok(text),
        }
    }

    /// 0 to 200 characters.
    pub fn groupdesc(&self) -> Result<&str, Refusal> {
        self.sized_text(Key::groupdesc, 0, 200)
    }

    /// Checks what a chat is forwarded with: `msg` a string, `name` and `time` strings if there.
    pub fn chat(&self) -> Result<Chat<'_>, Refusal> {
        if self.text(Key::msg)?.is_none() {
            return Err(Refusal::field("msg", "is missing"));
        }
        Ok(Chat { name: self.text(Key::name)?, time: self.text(Key::time)?.is_some() })
    }
}

/// The fields of a chat that may have to change before it is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chat<'a> {
    pub name: Option<&'a str>,
    /// Whether `time` is present.
    pub time: bool,
}

impl Chat<'_> {
    /// The object may go out as it came.
    pub fn is_complete(&self, account: &str) -> bool {
        self.time && self.name == Some(account)
    }
}

/// Writes `object` to `out` with `name` set to the account's and, where it is absent, `time`
/// added; every other byte stays as it was. `object` must have passed [`Request::parse`].
pub fn rewrite_chat(object: &[u8], chat: Chat<'_>, account: &str, time: &str, out: &mut Vec<u8>) {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut body = &object[..object.len() - 1]; // less the last brace
    if let Some(name) = chat.name
        && name != account
        && let Some(value) = value_of(object, Key::name)
    {
        // It is a part of the object that it was read from.
        let from = value.as_ptr() as usize - object.as_ptr() as usize;
        out.extend_from_slice(&object[..from]);
        out.extend_from_slice(quoted(account).as_bytes());
        body = &object[from + value.len()..object.len() - 1];
    }
    out.extend_from_slice(body);
    // A chat has fields before these, so a comma is always right.
    if chat.name.is_none() {
        out.extend_from_slice(format!(",\"name\":{}", quoted(account)).as_bytes());
    }
    if !chat.time {
        out.extend_from_slice(format!(",\"time\":{}", quoted(time)).as_bytes());
    }
    out.push(b'}');
}

/// The value of a top-level field, as it stands in `object`.
fn value_of(object: &[u8], key: Key) -> Option<&str> {
    struct Find(Key);
    impl<'de> Visitor<'de> for Find {
        type Value = Option<&'de RawValue>;
        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = None;
            while let Some(Name(bit)) = map.next_key()? {
                if bit == self.0 as u8 {
                    found = Some(map.next_value()?);
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            Ok(found)
        }
    }
    let text = std::str::from_utf8(object).ok()?;
    Some(serde_json::Deserializer::from_str(text).deserialize_map(Find(key)).ok()??.get())
}

/// The name of a member, by its bit in [`Keys`]: those of the keys that are read come first.
struct Name(u8);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E>(self, text: &str) -> Result<Name, E> {
                Ok(Name(match Key::find(text) {
                    Some(key) => key as u8,
                    None => (KEYS + ALIASES.iter().position(|alias| *alias == text).unwrap_or(ALIASES.len())) as u8,
                }))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// Without the object, which [`Request::parse`] puts in.
impl<'de> Deserialize<'de> for Request<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Request<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: [Field<'de>; KEYS] = Default::default();
                let mut keys = Keys::default();
                while let Some(Name(bit)) = map.next_key()? {
                    keys = keys.with(Keys(1 << bit));
                    let value = map.next_value()?;
                    if let Some(field) = fields.get_mut(usize::from(bit)) {
                        *field = if matches!(field, Field::Absent) { value } else { Field::Twice };
                    }
                }
                Ok(Request { fields, keys, object: &[] })
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// Reads any JSON value strictly. `IgnoredAny` would be quicker, and would let `"\ud800"` and
/// `1e400` through, on which the C++ peers that this object may be forwarded to die.
impl<'de> Deserialize<'de> for Field<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Value;
        impl<'de> Visitor<'de> for Value {
            type Value = Field<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
                Ok(Field::Int(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
                Ok(i64::try_from(value).map_or(Field::Other, Field::Int))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Field::Float)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Field::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Field::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Field::Other)
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Field::Other)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<Field>()?.is_some() {}
                Ok(Field::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_key::<Name>()?.is_some() {
                    map.next_value::<Field>()?;
                }
                Ok(Field::Other)
            }
        }
        deserializer.deserialize_any(Value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Request<'_> {
        Request::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_cpp_peers_die_of_is_refused_also_in_fields_nobody_reads() {
        let bad: [&[u8]; 10] = [
            br#"{"x":"\ud800"}"#,
            br#"{"\udc00":1}"#,
            br#"{"x":1e400}"#,
            br#"{"x":[{"y":-1e999}]}"#,
            b"{\"x\":\"\xff\"}",
            b"{\"x\":\"\x01\"}",
            br#"{"x":01}"#,
            br#"{"x":1,}"#,
            br#"{"x":]}"#,
            br#"{'x':1}"#,
        ];
        for object in bad {
            let refusal = Request::parse(object).unwrap_err();
            assert_eq!(refusal.errno, Errno::Unfollowable, "{}", String::from_utf8_lossy(object));
        }
        for good in [r#"{"x":"\ud83d\ude00"}"#, r#"{"x":1e308}"#, r#"{"x":99999999999999999999}"#, "{}"] {
            Request::parse(good.as_bytes()).unwrap();
        }
    }

    #[test]
    fn a_field_that_is_read_and_stands_there_twice_is_refused_also_by_an_escaped_key() {
        let request = parse(r#"{"id":1,"\u0069d":1,"groupname":"a","groupname":"b","msg":""}"#);
        assert_eq!(request.id().unwrap_err().text, "id appears twice");
        assert!(request.chat().is_ok(), "a chat does not read groupname");
        assert_eq!(request.groupname().unwrap_err().errno, Errno::BadField);
    }

    #[test]
    fn numbers_may_be_strings_and_must_fit_64_bits() {
        assert_eq!(parse(r#"{"id":"7"}"#).id(), Ok(7));
        for bad in ["99999999999999999999", "9223372036854775808", "true", "null", "[]", "\"x\"", "\"\""] {
            let text = format!("{{\"id\":{bad}}}");
            assert_eq!(parse(&text).id().unwrap_err().text, "id must be a 64-bit integer", "{bad}");
        }
        assert_eq!(parse("{}").id().unwrap_err().text, "id is missing");
    }

    #[test]
    fn an_integral_number_is_an_integer_wherever_one_is_asked_for() {
        type Ask = fn(&Request) -> Result<i64, Refusal>;
        let ask: [(&str, Ask); 7] = [
            ("msgid", |request| request.msgid()),
            ("id", |request| request.id()),
            ("toid", |request| request.toid()),
            ("to", |request| request.toid()),
            ("friendid", |request| request.friendid()),
            ("groupid", |request| request.groupid()),
            ("seq", |request| request.seq().map(Option::unwrap)),
        ];
        for (field, ask) in ask {
            for (number, value) in [
                ("1.0", 1),
                ("-0", 0),
                ("1e2", 100),
                ("100e-2", 1),
                ("\"1.0\"", 1),
                ("\"1e2\"", 100),
                ("9007199254740993.0", 9_007_199_254_740_993),
            ] {
                let text = format!("{{\"x\":{{\"{field}\":2.0}}, \"{field}\" : {number} ,\"y\":3.0}}");
                assert_eq!(ask(&parse(&text)), Ok(value), "{text}");
            }
            for bad in ["1.5", "1e-400", "1e300", "\"1.5\"", "\"1e400\"", "9007199254740992.5"] {
                let text = format!("{{\"{field}\":{bad}}}");
                assert_eq!(ask(&parse(&text)).unwrap_err().errno, Errno::BadField, "{text}");
            }
        }
        // Where a text is asked for it is no more one than before.
        assert_eq!(parse(r#"{"name":1.0}"#).name().unwrap_err().text, "name must be a string");
        assert_eq!(parse(r#"{"id":1.0,"id":1}"#).id().unwrap_err().text, "id appears twice");
        assert_eq!(parse(r#"{"\u0069d":1.0}"#).id(), Ok(1));
    }

    #[test]
    fn the_aliases_of_a_field_may_stand_beside_each_other() {
        assert_eq!(parse(r#"{"to":1,"toid":2}"#).toid(), Ok(2));
        assert_eq!(parse(r#"{"to":1}"#).toid(), Ok(1));
        assert_eq!(parse(r#"{"pwd":"a","passwd":"b"}"#).password(), Ok("b"));
    }

    #[test]
    fn lengths_are_counted_in_characters_and_a_passwords_in_bytes() {
        let of = |n: usize| format!("{{\"name\":\"{0}\",\"password\":\"{0}\"}}", "名".repeat(n));
        assert!(parse(&of(50)).name().is_ok());
        assert!(parse(&of(51)).name().is_err());
        assert!(parse(&of(42)).password().is_ok());
        assert!(parse(&of(43)).password().is_err());
        assert!(parse(&of(0)).name().is_err());
    }

    #[test]
    fn a_chat_is_rewritten_only_where_it_must() {
        let cases = [
            (r#"{"id":1,"name":"x","msg":"a","time":""}"#, r#"{"id":1,"name":"né","msg":"a","time":""}"#),
            (r#"{"n\u0061me" : "\u0078" ,"msg":"a","time":"t"}"#, r#"{"n\u0061me" : "né" ,"msg":"a","time":"t"}"#),
            (r#"{"msg":"a" }"#, r#"{"msg":"a" ,"name":"né","time":"now"}"#),
        ];
        for (object, expected) in cases {
            let request = parse(object);
            let chat = request.chat().unwrap();
            assert!(!chat.is_complete("né"));
            let mut out = Vec::new();
            rewrite_chat(object.as_bytes(), chat, "né", "now", &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        assert!(parse(r#"{"name":"n\u00e9","msg":"","time":""}"#).chat().unwrap().is_complete("né"));
    }
}
