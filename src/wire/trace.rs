//! What a connection sent or got, as the log shows it: one message a line, and no password in it.

use super::dialect::{Members, elements, string};
use super::opening::is_separator;

/// What these lines have as their target in the log.
pub const TARGET: &str = "wire";
/// What is longer is cut, in bytes.
const LONGEST: usize = 4096;
/// So many objects, lists and strings with JSON are followed into each other.
const DEEPEST: usize = 32;
/// Bytes that are shown behind an object.
const BEHIND: usize = 8;
/// Bytes that are shown of what is no JSON.
const FIRST: usize = 4;
/// The value of a key with one of these in it is not shown.
const SECRETS: [&str; 4] = ["pass", "pw", "secret", "token"];
const HIDDEN: &str = "…";

/// One message, perhaps with its length before it; `rest` is what has come behind it, of which the separators are shown.
pub fn shown(message: &[u8], rest: &[u8]) -> String {
    let (length, object) = without_length(message);
    let Some(members) = Members::parse(object) else { return no_json(message) };
    let mut written = Vec::new();
    write_members(&members, 0, &mut written);
    let mut line = length.map_or_else(String::new, |length| format!("length {length} "));
    let longest = line.len() + LONGEST;
    for c in String::from_utf8_lossy(&written).chars() {
        if line.len() >= longest {
            line.push_str(&format!("… ({} bytes)", object.len()));
            break;
        }
        // JSON may hold these as they are, and a terminal would act on them.
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            line.extend(c.escape_unicode());
        } else {
            line.push(c);
        }
    }
    for byte in rest.iter().take_while(|byte| is_separator(**byte)).take(BEHIND) {
        match byte {
            0 => line.push_str("\\0"),
            b' ' => line.push_str("\\x20"),
            byte => line.extend(char::from(*byte).escape_default()),
        }
    }
    line
}

/// The length that stands before an object, and the object.
fn without_length(message: &[u8]) -> (Option<usize>, &[u8]) {
    let split = message.split_first_chunk().map(|(length, object)| (u32::from_be_bytes(*length) as usize, object));
    match split {
        Some((length, object)) if length == object.len() => (Some(length), object),
        _ => (None, message),
    }
}

fn no_json(bytes: &[u8]) -> String {
    let first: Vec<String> = bytes.iter().take(FIRST).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes that are no JSON: {}", bytes.len(), first.join(" "))
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    SECRETS.iter().any(|secret| key.contains(secret))
}

fn write_members(members: &Members, depth: usize, out: &mut Vec<u8>) {
    out.push(b'{');
    for (at, (key, value)) in members.0.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        string(out, key);
        out.push(b':');
        if is_secret(key) {
            string(out, HIDDEN);
        } else {
            write_value(value, depth + 1, out);
        }
        if out.len() > LONGEST {
            return; // the rest would be cut
        }
    }
    out.push(b'}');
}

fn write_elements(elements: &[&str], depth: usize, out: &mut Vec<u8>) {
    out.push(b'[');
    for (at, value) in elements.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_value(value, depth + 1, out);
        if out.len() > LONGEST {
            return;
        }
    }
    out.push(b']');
}

fn write_value(value: &str, depth: usize, out: &mut Vec<u8>) {
    if depth > DEEPEST {
        return string(out, HIDDEN);
    }
    if write_nested(value, depth, out) {
        return;
    }
    let Ok(text) = serde_json::from_str::<String>(value) else { return out.extend_from_slice(value.as_bytes()) };
    let mut nested = Vec::new();
    if write_nested(text.trim(), depth + 1, &mut nested) {
        string(out, &String::from_utf8_lossy(&nested));
    } else if text.contains('{') && is_secret(value) {
        string(out, HIDDEN); // a part of an object, or one among other text
    } else {
        out.extend_from_slice(value.as_bytes());
    }
}

/// Writes an object or a list; false: it is neither.
fn write_nested(text: &str, depth: usize, out: &mut Vec<u8>) -> bool {
    if let Some(members) = text.starts_with('{').then(|| Members::parse(text.as_bytes())).flatten() {
        write_members(&members, depth, out);
    } else if let Some(elements) = text.starts_with('[').then(|| elements(text)).flatten() {
        write_elements(&elements, depth, out);
    } else {
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_shown_as_it_stands_with_what_is_behind_it() {
        let message = r#"{"msgid":"6","toid":2.0,"msgid":6,"msg":"\u4f60 {}","list":[1,[],{"a":null}]}"#;
        assert_eq!(shown(message.as_bytes(), b""), message);
        assert_eq!(shown(message.as_bytes(), b"\0{\"msgid\""), format!("{message}\\0"));
        assert_eq!(shown(b"{ \"a\" : \"b c\" }", b"\r\n\t \0"), r#"{"a":"b c"}\r\n\t\x20\0"#);
        assert_eq!(shown(b"{}", &[0; 99]), format!("{{}}{}", "\\0".repeat(BEHIND)));
        assert_eq!(shown(b"\0\0\0\x07{\"a\":1}", b""), r#"length 7 {"a":1}"#);
    }

    #[test]
    fn no_password_is_shown_wherever_it_stands_and_whatever_it_is() {
        let keys = [
            "password",
            "PassWord",
            "passwd",
            "pwd",
            "userpwd",
            "pw",
            "old_pw",
            "secret",
            "Token",
            "access_token",
            "p\u{61}ss",
        ];
        for key in keys {
            for secret in [json!("hunter2"), json!(["hunter2"]), json!({"a": "hunter2"})] {
                let object = json!({"msgid": 1, key: secret, "z": "kept"});
                let list = json!([3, [object]]);
                for message in [
                    object.clone(),
                    json!({"a": {"b": list}}),
                    json!({"a": object.to_string()}),
                    json!({"a": [json!({"b": object.to_string()}).to_string()]}),
                    json!({"a": format!(" {list}\n"), "z": "kept"}),
                ] {
                    let line = shown(message.to_string().as_bytes(), b"\0");
                    assert!(!line.contains("hunter2") && line.contains('…') && line.contains("kept"), "{line}");
                }
                let text = object.to_string();
                for part in [&text[..text.len() - 1], &format!("{text}\0"), &format!("I am {text}")] {
                    let line = shown(json!({"msg": part}).to_string().as_bytes(), b"");
                    assert_eq!(line, r#"{"msg":"…"}"#);
                }
            }
        }
        assert_eq!(shown(br#"{"p\u0061ssword":"hunter2"}"#, b""), r#"{"password":"…"}"#);
        assert_eq!(shown(br#"{"msg":"my password is hunter2"}"#, b""), r#"{"msg":"my password is hunter2"}"#);
    }

    #[test]
    fn of_what_is_no_json_only_the_length_and_the_first_bytes_are_shown() {
        assert_eq!(shown(b"password=hunter2", b"\n"), "16 bytes that are no JSON: 70 61 73 73");
        assert_eq!(
            shown(b"{\"name\":\"\xd5\xc5\",\"password\":\"x\"}", b"\0"),
            "28 bytes that are no JSON: 7b 22 6e 61"
        );
        assert_eq!(shown(b"{]", b""), "2 bytes that are no JSON: 7b 5d");
        assert_eq!(shown(b"", b""), "0 bytes that are no JSON: ");
    }

    #[test]
    fn a_line_stays_a_line_and_short() {
        let line = shown("{\"a\":\"\u{9b}2J\u{85}\u{2028}\"}".as_bytes(), b"");
        assert_eq!(line, r#"{"a":"\u{9b}2J\u{85}\u{2028}"}"#);
        for long in [
            json!({"a": "你".repeat(9000)}),
            json!({"a": vec![1; 90_000], "password": "x"}),
            json!({"a": json!(vec!["x"; 9000]).to_string()}),
        ] {
            let line = shown(long.to_string().as_bytes(), b"\n");
            assert!((LONGEST..LONGEST + 40).contains(&line.len()), "{}", line.len());
            assert!(line.ends_with(&format!("… ({} bytes)\\n", long.to_string().len())), "{line}");
        }
    }

    #[test]
    fn what_is_nested_deeply_is_followed_so_far_and_no_further() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(shown(deep.as_bytes(), b"").contains(HIDDEN));
        let in_string = json!({"a": "[".repeat(100_000) + &"]".repeat(100_000)});
        assert!(shown(in_string.to_string().as_bytes(), b"").contains(HIDDEN));
        let mut nested = json!({"password": "hunter2"});
        for _ in 0..12 {
            nested = json!({"a": nested.to_string()});
        }
        let line = shown(nested.to_string().as_bytes(), b"");
        assert!(!line.contains("hunter2"), "{line}");
    }
}
