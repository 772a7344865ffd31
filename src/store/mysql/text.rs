//! Text that C++ servers also read and write.
//!
//! Our own connections are UTF-8, and the tables hold text. A C++ server says `set names gbk`, yet
//! the bytes it passes on are its clients', and those are mostly UTF-8: a "你好" that is six bytes
//! of UTF-8 gets into the table as the three Chinese characters that the six bytes are in GBK. The
//! server gets its bytes back, since the database converts both ways; a client that asks for the text
//! gets nonsense. And real text in the table reaches the C++ server as bytes of GBK, which crash
//! it. So with a charset set,
//!
//! - what is read is taken as the bytes that a C++ server would get, if they are UTF-8, and else as
//!   the text that it is (a client's that really speaks GBK);
//! - names are written as the text whose bytes, to a C++ server, are the UTF-8 that was meant. Not
//!   every name has one: three Chinese characters are nine bytes, and four and a half of GBK; and
//!   GBK has no characters for some pairs of bytes. A C++ server's INSERT of those fails, and so does
//!   ours;
//! - messages are written as ASCII, which is the same to all (`ascii`): JSON has its escapes.

use std::borrow::Cow;
use std::fmt::Write;

use mysql::Row;

use super::link::{Failure, Session, column};

pub(super) struct Texts {
    /// What C++ servers say in `set names`; `None`: UTF-8, or they say nothing.
    charset: Option<String>,
    ascii: bool,
}

impl Texts {
    /// `charset` must be a name that the database knows: it becomes part of statements.
    pub fn new(charset: &str, ascii: bool) -> Self {
        let charset = charset.to_ascii_lowercase();
        let is_utf8 = matches!(&*charset, "utf8mb4" | "utf8mb3" | "utf8");
        Texts { charset: (!is_utf8).then_some(charset), ascii }
    }

    /// Two columns of a SELECT for one text, as [`read`] takes them: the text in UTF-8, and its bytes to
    /// a C++ server. Both have no collation, so that texts of several tables can be one list.
    pub fn columns(&self, name: &str) -> String {
        let text = format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)");
        match &self.charset {
            Some(charset) => format!("{text}, CAST(CONVERT({name} USING {charset}) AS BINARY)"),
            None => format!("{text}, NULL"),
        }
    }

    /// The same for a text that a C++ server has written if `foreign`, and for which there is no
    /// other way of reading if not.
    pub fn columns_if(&self, foreign: &str, name: &str) -> String {
        let text = format!("CAST(CONVERT({name} USING utf8mb4) AS BINARY)");
        match &self.charset {
            Some(charset) => format!("{text}, IF({foreign}, CAST(CONVERT({name} USING {charset}) AS BINARY), NULL)"),
            None => format!("{text}, NULL"),
        }
    }

    /// What to store for `text`; `None` if C++ servers could not read it, or it were longer than
    /// `max_chars` characters.
    pub fn encode<'a>(
        &self,
        session: &mut Session,
        text: &'a str,
        max_chars: usize,
    ) -> Result<Option<Cow<'a, str>>, Failure> {
        let Some(charset) = self.charset.as_ref().filter(|_| !text.is_ascii()) else {
            return Ok(Some(Cow::Borrowed(text)));
        };
        let sql = format!(
            "SELECT t, CAST(CONVERT(t USING {charset}) AS BINARY)
             FROM (SELECT CONVERT(CONVERT(CAST(? AS BINARY) USING {charset}) USING utf8mb4) AS t) AS x"
        );
        let read = |row: &mut Row| Ok((column::<Option<String>>(row, 0)?, column::<Option<Vec<u8>>>(row, 1)?));
        let found = session.find(&sql, (text,), read)?;
        // Bytes that are not of the charset, or are of a character that it does not have, come back as
        // a question mark, or nothing does.
        Ok(match found {
            Some((Some(stored), Some(bytes))) if bytes == text.as_bytes() && stored.chars().count() <= max_chars => {
                Some(Cow::Owned(stored))
            }
            _ => None,
        })
    }

    /// What to store for a message, which is JSON.
    pub fn message<'a>(&self, message: &'a [u8]) -> Cow<'a, [u8]> {
        if self.ascii { ascii_json(message) } else { Cow::Borrowed(message) }
    }
}

/// A text of two columns, from `index` on. NULL is an empty one.
pub(super) fn read(row: &mut Row, index: usize) -> Result<Vec<u8>, Failure> {
    let text: Option<Vec<u8>> = column(row, index)?;
    let bytes: Option<Vec<u8>> = column(row, index + 1)?;
    Ok(match bytes {
        Some(bytes) if !bytes.is_ascii() && std::str::from_utf8(&bytes).is_ok() => bytes,
        _ => text.unwrap_or_default(),
    })
}

/// The same for what is no message.
pub(super) fn read_string(row: &mut Row, index: usize) -> Result<String, Failure> {
    let bytes = read(row, index)?;
    // The connection is UTF-8; a replacement would be the database's fault.
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// JSON with everything that is not ASCII escaped. All of that stands in strings, where an escape
/// means the same.
pub fn ascii_json(json: &[u8]) -> Cow<'_, [u8]> {
    if json.is_ascii() {
        return Cow::Borrowed(json);
    }
    let mut escaped = String::with_capacity(json.len() * 2);
    for character in String::from_utf8_lossy(json).chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}"); // into a String: it does not fail
            }
        }
    }
    Cow::Owned(escaped.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaped_json_means_the_same() {
        let json = r#"{"msg":"你好 é 😀 \" \\","n":1}"#;
        let escaped = ascii_json(json.as_bytes());
        assert!(escaped.is_ascii());
        let value = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        assert_eq!(value(&escaped), value(json.as_bytes()));
        assert!(matches!(ascii_json(b"{}"), Cow::Borrowed(_)));
    }
}
