//! Parsing panics on nothing and accepts only JSON; rewriting a chat changes `name` and `time`
//! and nothing else.

use chat_server::wire::{Request, rewrite_chat};
use serde_json::{Map, Value};

const ACCOUNT: &str = "zhang \"san\"";
const TIME: &str = "2026-01-02 03:04:05";

/// The fields of an object, by a parser that is not ours.
fn fields(object: &[u8]) -> Map<String, Value> {
    match serde_json::from_slice(object) {
        Ok(Value::Object(fields)) => fields,
        other => panic!("accepted, and no JSON object: {other:?}"),
    }
}

/// Asks for every field; whatever it says, it must not panic.
fn ask_for_everything(request: &Request) {
    let numbers = [request.msgid(), request.id(), request.toid(), request.friendid(), request.groupid()];
    let texts = [request.name(), request.password(), request.groupname(), request.groupdesc()];
    let _ = (numbers, texts, request.seq());
}

pub fn run(data: &[u8]) {
    // The splitter hands objects over like this: from brace to brace.
    let object = data.trim_ascii();
    let Ok(request) = Request::parse(object) else { return };
    let mut before = fields(object);
    ask_for_everything(&request);

    let Ok(chat) = request.chat() else { return };
    let mut rewritten = Vec::new();
    rewrite_chat(object, chat, ACCOUNT, TIME, &mut rewritten);
    let again = Request::parse(&rewritten).expect("a rewritten chat parses");
    let forwarded = again.chat().expect("a rewritten chat is one");
    assert!(forwarded.is_complete(ACCOUNT), "{forwarded:?}");
    if chat.is_complete(ACCOUNT) {
        assert_eq!(rewritten, object);
    }

    let mut after = fields(&rewritten);
    assert_eq!(after.remove("name"), Some(ACCOUNT.into()));
    let time = before.remove("time").unwrap_or_else(|| TIME.into());
    assert_eq!(after.remove("time"), Some(time));
    before.remove("name");
    assert_eq!(after, before);
}
