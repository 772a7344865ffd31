//! Whatever the server would forward, a strict parser that shares nothing with it accepts, with the value
//! that was sent: as a push, as an offline message in a login reply, and as C++ nodes get it, in ASCII.
//! And whatever the server refuses as no JSON, that parser refuses, too.

use chat_server::store::mysql::ascii_json;
use chat_server::wire::reply::LoginReply;
use chat_server::wire::{Request, Split, Splitter, rewrite_chat};

use super::strict::{Json, read};

const MAX_OBJECT: usize = 4096;
const ACCOUNT: &str = "zhang \"san\" \u{1F600}";
const TIME: &str = "2026-01-02 03:04:05";

fn fields(object: &[u8]) -> Vec<(String, Json)> {
    match read(object) {
        Some(Json::Object(fields)) => fields,
        other => panic!("no strict JSON object: {other:?}"),
    }
}

fn without_name_and_time(object: &[u8]) -> Vec<(String, Json)> {
    fields(object).into_iter().filter(|(key, _)| key != "name" && key != "time").collect()
}

pub fn run(data: &[u8]) {
    let (mut splitter, mut rest) = (Splitter::default(), data);
    while let Ok(Split::Object { start, end }) = splitter.next(rest, MAX_OBJECT) {
        object(&rest[start..end]);
        rest = &rest[end..];
    }
}

fn object(object: &[u8]) {
    let Ok(request) = Request::parse(object) else {
        return assert!(!matches!(read(object), Some(Json::Object(_))), "refused, and strict JSON");
    };
    let before = fields(object);
    let Ok(chat) = request.chat() else { return };
    let mut push = Vec::new();
    rewrite_chat(object, chat, ACCOUNT, TIME, &mut push);
    let after = fields(&push);
    let of = |fields: &[(String, Json)], key: &str| -> Vec<Json> {
        fields.iter().filter(|(name, _)| name == key).map(|(_, value)| value.clone()).collect()
    };
    assert_eq!(of(&after, "name"), [Json::Text(ACCOUNT.to_owned())]);
    let time = of(&before, "time");
    assert_eq!(of(&after, "time"), if time.is_empty() { vec![Json::Text(TIME.to_owned())] } else { time });
    assert_eq!(without_name_and_time(&push), without_name_and_time(object));

    let ascii = ascii_json(&push);
    assert!(ascii.is_ascii() && read(&ascii) == read(&push), "{:?}", String::from_utf8_lossy(&ascii));

    let texts = [std::str::from_utf8(&push).expect("UTF-8")];
    let mut reply = Vec::new();
    LoginReply { seq: None, id: 1, name: ACCOUNT, friends: &[], groups: &[], offline: &texts, limit: None }
        .write(&mut reply);
    let offline = of(&fields(&reply), "offlinemsg");
    assert_eq!(offline, [Json::Array(vec![Json::Text(texts[0].to_owned())])]);
}
