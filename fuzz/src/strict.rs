//! A strict JSON reader that shares nothing with the server's: RFC 8259 to the letter, and what C++
//! peers crash on besides: no invalid UTF-8, no lone surrogate, no number outside double range.

/// A value. Numbers stay as they are written, so that nothing is lost in comparing them.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    Array(Vec<Json>),
    /// The fields in the order in which they stand there, doubles too.
    Object(Vec<(String, Json)>),
}

/// The only value in `bytes`, if it is one.
pub fn read(bytes: &[u8]) -> Option<Json> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut reader = Reader { rest: text };
    let value = reader.value()?;
    reader.blank();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    /// Takes `token`, with blanks before it, if it comes next.
    fn take(&mut self, token: &str) -> bool {
        self.blank();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self) -> Option<Json> {
        self.blank();
        match self.rest.as_bytes().first()? {
            b'{' => self.object(),
            b'[' => self.array(),
            b'"' => self.text().map(Json::Text),
            b'-' | b'0'..=b'9' => self.number(),
            _ if self.take("null") => Some(Json::Null),
            _ if self.take("true") => Some(Json::Bool(true)),
            _ if self.take("false") => Some(Json::Bool(false)),
            _ => None,
        }
    }

    fn object(&mut self) -> Option<Json> {
        let mut fields = Vec::new();
        self.take("{");
        if self.take("}") {
            return Some(Json::Object(fields));
        }
        loop {
            self.blank();
            let key = self.text()?;
            if !self.take(":") {
                return None;
            }
            fields.push((key, self.value()?));
            if self.take("}") {
                return Some(Json::Object(fields));
            }
            if !self.take(",") {
                return None;
            }
        }
    }

    fn array(&mut self) -> Option<Json> {
        let mut items = Vec::new();
        self.take("[");
        if self.take("]") {
            return Some(Json::Array(items));
        }
        loop {
            items.push(self.value()?);
            if self.take("]") {
                return Some(Json::Array(items));
            }
            if !self.take(",") {
                return None;
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        self.rest = self.rest.strip_prefix('"')?;
        let mut text = String::new();
        loop {
            let c = self.next()?;
            match c {
                '"' => return Some(text),
                '\\' => text.push(self.escape()?),
                '\0'..='\u{1f}' => return None,
                c => text.push(c),
            }
        }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn escape(&mut self) -> Option<char> {
        Some(match self.next()? {
            c @ ('"' | '\\' | '/') => c,
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => match self.hex()? {
                high @ 0xd800..=0xdbff => {
                    self.rest = self.rest.strip_prefix("\\u")?;
                    let low = self.hex().filter(|low| (0xdc00..=0xdfff).contains(low))?;
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))?
                }
                code => char::from_u32(code)?, // none for a low surrogate
            },
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.rest.get(..4).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
        self.rest = &self.rest[4..];
        u32::from_str_radix(digits, 16).ok()
    }

    fn number(&mut self) -> Option<Json> {
        let all = self.rest;
        self.rest = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let whole = self.digits()?;
        if whole.len() > 1 && whole.starts_with('0') {
            return None;
        }
        if let Some(rest) = self.rest.strip_prefix('.') {
            self.rest = rest;
            self.digits()?;
        }
        if let Some(rest) = self.rest.strip_prefix(['e', 'E']) {
            self.rest = rest.strip_prefix(['+', '-']).unwrap_or(rest);
            self.digits()?;
        }
        let number = &all[..all.len() - self.rest.len()];
        number.parse::<f64>().ok().filter(|value| value.is_finite())?;
        Some(Json::Number(number.to_owned()))
    }

    /// At least one digit.
    fn digits(&mut self) -> Option<&'a str> {
        let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        (length > 0).then_some(digits)
    }
}
