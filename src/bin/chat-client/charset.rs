//! The locale's character set: what the terminal and files speak.
//!
//! Whatever comes in becomes UTF-8, and a byte that is nothing there becomes U+FFFD.

use std::borrow::Cow;

use encoding_rs::{BIG5, Decoder, EUC_JP, EUC_KR, Encoding, GB18030, GBK, SHIFT_JIS, UTF_8, WINDOWS_874};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charset {
    encoding: &'static Encoding,
    /// One of ISO 8859: 0x80 to 0x9F are control characters to the terminal, whatever the encoding,
    /// which is Windows' superset of it, makes of them.
    iso: bool,
}

impl Charset {
    pub const UTF_8: Charset = Charset { encoding: UTF_8, iso: false };

    /// The character set that the locale names: the first of LC_ALL, LC_CTYPE and LANG that is set
    /// decides. UTF-8 where it names none, or one that is not known.
    pub fn of_locale(variable: impl Fn(&str) -> Option<String>) -> Charset {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().filter_map(variable).find(|value| !value.is_empty());
        // language_TERRITORY.CODESET@modifier
        let named = locale.as_deref().and_then(|locale| locale.split_once('.'));
        named.and_then(|(_, rest)| Charset::named(rest.split('@').next()?)).unwrap_or(Charset::UTF_8)
    }

    /// By the name that a C library knows it by, in any spelling: `GB18030`, `eucJP`, `ISO-8859-15`.
    fn named(name: &str) -> Option<Charset> {
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let name = name.to_ascii_lowercase();
        let encoding = match name.as_str() {
            "gb2312" | "euccn" | "cp936" => GBK,
            "gb18030" => GB18030,
            "big5hkscs" | "cp950" => BIG5,
            "eucjp" | "ujis" => EUC_JP,
            "euckr" | "cp949" | "uhc" => EUC_KR,
            "sjis" | "shiftjis" | "cp932" => SHIFT_JIS,
            "tis620" => WINDOWS_874,
            name => {
                let dashed = |prefix: &str, label: &str| Some(format!("{label}{}", name.strip_prefix(prefix)?));
                let label = dashed("iso8859", "iso-8859-")
                    .or_else(|| dashed("koi8", "koi8-"))
                    .or_else(|| dashed("cp125", "windows-125"))
                    .unwrap_or_else(|| name.into());
                Encoding::for_label(label.as_bytes())?
            }
        };
        // The others shift between sets, so that a byte alone would mean nothing.
        let usable = encoding.is_ascii_compatible();
        usable.then_some(Charset { encoding, iso: name.starts_with("iso8859") })
    }

    /// For a stream of input. A byte order mark at its start is left out.
    pub fn decoder(self) -> Input {
        Input(self.encoding.new_decoder_with_bom_removal())
    }

    /// The text with what this character set lacks as `\u{…}`.
    pub fn legible(self, text: &str) -> Cow<'_, str> {
        if self.encoding == UTF_8 || text.is_ascii() {
            return text.into();
        }
        let mut legible = String::with_capacity(text.len());
        for c in text.chars() {
            match self.encode_char(c) {
                Some(_) => legible.push(c),
                None => legible.extend(c.escape_unicode()),
            }
        }
        legible.into()
    }

    /// The bytes of a text. What this character set lacks becomes `?`.
    pub fn encode(self, text: &str) -> Cow<'_, [u8]> {
        if self.encoding == UTF_8 || text.is_ascii() {
            return text.as_bytes().into();
        }
        let bytes = text.chars().flat_map(|c| self.encode_char(c).unwrap_or_else(|| vec![b'?']));
        bytes.collect::<Vec<u8>>().into()
    }

    fn encode_char(self, c: char) -> Option<Vec<u8>> {
        let mut utf8 = [0; 4];
        let (bytes, _, lacks) = self.encoding.encode(c.encode_utf8(&mut utf8));
        let control = self.iso && bytes.iter().any(|byte| (0x80..0xa0).contains(byte));
        (!lacks && !control).then(|| bytes.into_owned())
    }
}

/// Decodes a stream of input, however it is cut.
pub struct Input(Decoder);

impl Input {
    /// The text of the next bytes; `last` says that there are no more.
    pub fn decode(&mut self, bytes: &[u8], last: bool) -> String {
        let capacity = self.0.max_utf8_buffer_length(bytes.len()).unwrap_or(bytes.len() * 3 + 16);
        let mut text = String::with_capacity(capacity);
        // All of it is taken, since there is room for the longest that it can become.
        let _ = self.0.decode_to_string(bytes, &mut text, last);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(locale: &str) -> Charset {
        Charset::of_locale(|name| (name == "LANG").then(|| locale.into()))
    }

    #[test]
    fn the_locale_names_the_character_set() {
        for (locale, encoding) in [
            ("", "UTF-8"),
            ("C", "UTF-8"),
            ("POSIX", "UTF-8"),
            ("zh_CN", "UTF-8"),
            ("zh_CN.UTF-8", "UTF-8"),
            ("en_US.utf8", "UTF-8"),
            ("zh_CN.GBK", "GBK"),
            ("zh_CN.gb2312", "GBK"),
            ("zh_CN.eucCN", "GBK"),
            ("zh_CN.GB18030", "gb18030"),
            ("zh_TW.BIG5", "Big5"),
            ("zh_HK.Big5-HKSCS", "Big5"),
            ("ja_JP.eucJP", "EUC-JP"),
            ("ja_JP.SJIS", "Shift_JIS"),
            ("ko_KR.EUC-KR", "EUC-KR"),
            ("de_DE.ISO-8859-1", "windows-1252"),
            ("de_DE.iso885915@euro", "ISO-8859-15"),
            ("ru_RU.KOI8-R", "KOI8-R"),
            ("ru_RU.CP1251", "windows-1251"),
            ("th_TH.TIS-620", "windows-874"),
            ("C.ANSI_X3.4-1968", "UTF-8"),
            ("x.ISO-2022-JP", "UTF-8"),
            ("x.UTF-16", "UTF-8"),
            ("x.klingon", "UTF-8"),
        ] {
            assert_eq!(of(locale).encoding.name(), encoding, "{locale}");
        }
        let both = |name: &str| match name {
            "LC_ALL" => Some(String::new()),
            "LC_CTYPE" => Some("zh_CN.GBK".into()),
            "LANG" => Some("zh_CN.UTF-8".into()),
            _ => None,
        };
        assert_eq!(Charset::of_locale(both).encoding.name(), "GBK");
    }

    #[test]
    fn input_is_decoded_however_it_is_cut() {
        for charset in [of("zh_CN.UTF-8"), of("zh_CN.GBK"), of("zh_TW.BIG5"), of("ja_JP.eucJP")] {
            let text = "chat:2:日本\n";
            let bytes = charset.encode(text);
            for cut in 0..=bytes.len() {
                let mut input = charset.decoder();
                let (head, tail) = bytes.split_at(cut);
                assert_eq!(input.decode(head, false) + &input.decode(tail, false), text, "{charset:?}");
            }
        }
    }

    #[test]
    fn what_is_nothing_becomes_a_replacement_character() {
        let mut input = Charset::UTF_8.decoder();
        assert_eq!(input.decode(b"\xef\xbb\xbfa\xffb\xc3\n\xe4\xbd", false), "a\u{fffd}b\u{fffd}\n");
        assert_eq!(input.decode(b"", true), "\u{fffd}");
        assert_eq!(of("zh_CN.GBK").decoder().decode(b"\xff\xc4\xe3", true), "\u{fffd}你");
    }

    #[test]
    fn what_the_terminal_lacks_is_told_by_its_number() {
        let gbk = of("zh_CN.GBK");
        assert_eq!(gbk.legible("你👍"), r"你\u{1f44d}");
        assert_eq!(gbk.encode("你"), &b"\xc4\xe3"[..]);
        assert_eq!(Charset::UTF_8.legible("你👍"), "你👍");
        // 0x9B begins a control sequence on a terminal that speaks ISO 8859.
        let latin = of("de_DE.ISO-8859-1");
        assert_eq!(latin.legible("é›2J"), r"é\u{203a}2J");
        assert_eq!(of("ru_RU.CP1252").legible("é›2J"), "é›2J");
    }
}
