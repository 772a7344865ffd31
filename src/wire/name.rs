//! Names of users and groups: which of them are the same, and which are none.
//!
//! Two names are the same if their [`key`]s are: neither case, nor the way in which a character is
//! encoded, nor blanks tell one from another, in the spirit of RFC 8266. Accents, voicing marks, joiners
//! and variation selectors do.

use icu_casemap::CaseMapper;
use icu_normalizer::ComposingNormalizer;
use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, PrependedConcatenationMark};
use icu_properties::{CodePointMapData, CodePointSetData};

/// What a name is known by: NFKC(casefold(NFKC(name))), without blanks at its ends, and with one
/// U+0020 for each run of them between. Blanks are what Unicode calls White_Space.
///
/// The key of a key is the same key. Unicode's promises of stability make it last for the characters of
/// today; a character that is not assigned yet stands for itself until this server knows it.
pub fn key(name: &str) -> String {
    let nfkc = ComposingNormalizer::new_nfkc();
    let folded = nfkc.normalize(name);
    let folded = CaseMapper::new().fold_string(&folded);
    let folded = nfkc.normalize(&folded);
    let mut key = String::with_capacity(folded.len());
    for word in folded.split_whitespace() {
        if !key.is_empty() {
            key.push(' ');
        }
        key.push_str(word);
    }
    key
}

/// What is wrong with a name that may not be taken, if anything is: the end of a sentence that the field
/// begins. Emoji, joiners within a name, and characters that this server does not know, are fine.
pub fn problem(name: &str) -> Option<&'static str> {
    if name.chars().any(char::is_control) {
        Some("contains a control character")
    } else if name.chars().all(is_invisible) {
        Some("has no visible character")
    } else {
        None
    }
}

/// Whether the character alone leaves no ink.
fn is_invisible(character: char) -> bool {
    match character {
        '!'..='~' => false,
        // Ordinary characters, but for their empty glyphs: a blank of Braille, two of hieroglyphs, a filler of
        // Khitan, a note without a head.
        '\u{2800}' | '\u{13441}' | '\u{13442}' | '\u{16FE4}' | '\u{1D159}' => true,
        _ if character.is_whitespace() || character.is_control() => true,
        // Joiners, variation selectors, directions, fillers of Hangul, tags.
        _ if CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(character) => true,
        // The rest of the format characters, but for those that enclose a number, and are drawn.
        _ => {
            CodePointMapData::<GeneralCategory>::new().get(character) == GeneralCategory::Format
                && !CodePointSetData::new::<PrependedConcatenationMark>().contains(character)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn case_encoding_and_blanks_do_not_tell_names_apart() {
        for same in [
            &["ΒΣ", "βσ", "βς", "Βς"][..],
            &["Straße", "STRASSE", "strasse", "STRAẞE", "ſtraſſe"],
            &["josé", "jose\u{301}", "JOSÉ", "JOSE\u{301}"],
            &["Ёж", "ёж", "Е\u{308}Ж"],
            &["ば", "は\u{3099}"],
            &["バ", "ハ\u{3099}", "ﾊﾞ"],
            &["ＢＯＢ", "bob", " bob", "bob\u{3000}", "\u{2009}BOB\u{A0}\u{2028}"],
            &["a b", "A  B", "a\u{A0}b", "a \u{3000}\u{202F}\u{1680} b"],
            &["ﬁn", "FIN"],
            &["한글", "\u{1112}\u{1161}\u{11AB}\u{1100}\u{1173}\u{11AF}"],
            &["ᾳ", "α\u{345}", "ᾼ", "αι", "ΑΙ"],
            &["K", "\u{212A}", "k"],
            &["ꭰ", "Ꭰ"],
            &["①", "1"],
            &["㎒", "mhz"],
            &["豈", "\u{F900}"],
            &["İ", "i\u{307}"],
        ] {
            let keys: Vec<_> = same.iter().map(|name| key(name)).collect();
            assert!(keys.iter().all(|key| *key == keys[0]), "{same:?}: {keys:?}");
        }
    }

    #[test]
    fn what_reads_otherwise_is_another_name() {
        let different = [
            "jose",
            "josé",
            "は",
            "ば",
            "ぱ",
            "ハ",
            "Е",
            "Ё",
            "И",
            "Й",
            "i",
            "ı",
            "o",
            "ø",
            "l",
            "ł",
            "n",
            "ñ",
            "0",
            "a b",
            "ab",
            "😀",
            "😁",
            "👩",
            "👩\u{200D}💻",
            "👩💻",
            "❤",
            "❤\u{FE0F}",
            "नमस\u{94D}ते",
            "नमसते",
            "می\u{200C}خواهم",
            "میخواهم",
            "\u{10FFFF}",
            "\u{378}",
            "你",
            "您",
            "aa",
            "ä",
            "ae",
            "æ",
            "ss",
            "s",
        ];
        let mut keys: Vec<_> = different.iter().map(|name| key(name)).collect();
        keys.sort();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "{keys:?}");
    }

    #[test]
    fn only_what_controls_or_cannot_be_seen_is_no_name() {
        for control in ["\0", "a\tb", "\n", "bob\r", "\u{1B}[2Jbob", "bob\u{7F}", "\u{85}bob", "b\u{9B}31mob"] {
            assert!(problem(control).is_some_and(|problem| problem.contains("control")), "{control:?}");
        }
        for unseen in [
            "",
            " ",
            "\u{3000}",
            "\u{A0}\u{2003} ",
            "\u{2028}",
            "\u{1680}",
            "\u{200B}",
            "\u{200D}",
            "\u{200C}\u{FEFF}",
            "\u{AD}",
            "\u{3164}",
            "\u{115F}\u{1160}",
            "\u{FFA0}",
            "\u{2800}",
            "\u{FE0F}",
            "\u{E0100}",
            "\u{E0041}",
            "\u{202E}",
            "\u{2066}",
            "\u{180E}",
            "\u{34F}",
            "\u{61C}",
            "\u{17B4}",
            "\u{FFF9}",
            "\u{1D159}",
            "\u{13441}",
            "\u{2065}",
            "\u{2064}\u{206A}",
        ] {
            assert!(problem(unseen).is_some_and(|problem| problem.contains("visible")), "{unseen:?}");
        }
        for name in [
            "b",
            " b ",
            "你好",
            "😀",
            "👩\u{200D}👩\u{200D}👧",
            "❤\u{FE0F}",
            "🏴\u{E0067}\u{E007F}",
            "می\u{200C}خواهم",
            "\u{202E}bob",
            "\u{3164}x",
            "\u{301}",
            "a\u{2028}b",
            "\u{378}",
            "\u{E000}",
            "\u{10FFFF}",
            "\u{FFFD}",
            "\u{600}",
            "\u{2801}",
            "\u{1F1E9}",
            ".",
        ] {
            assert_eq!(problem(name), None, "{name:?}");
        }
    }

    /// Characters that a step changes, and marks and jamo that combine with what stands before them.
    fn delicate() -> impl Strategy<Value = char> {
        prop_oneof![
            any::<char>(),
            prop::char::range('\u{A0}', '\u{587}'),
            prop::char::range('\u{300}', '\u{36F}'),
            prop::char::range('\u{1100}', '\u{11FF}'),
            prop::char::range('\u{1E00}', '\u{2200}'),
            prop::char::range('\u{3000}', '\u{33FF}'),
            prop::char::range('\u{F900}', '\u{FFFF}'),
            prop::char::range('\u{1D100}', '\u{1D7FF}'),
            prop::sample::select(vec![
                ' ', '\u{A8}', '\u{B4}', '\u{345}', 'ß', 'ẞ', 'ΐ', 'ᾳ', 'ǰ', 'İ', 'ſ', '\u{200D}', 'ﬃ', 'α', 'Σ'
            ]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

        #[test]
        fn the_key_of_a_key_is_the_same_key(name in prop::collection::vec(delicate(), 0..8)) {
            let name = String::from_iter(name);
            let once = key(&name);
            prop_assert_eq!(key(&once), &once[..], "{:?}", name);
            // What can be seen has a key, and no key has blanks but single ones between.
            prop_assert!(problem(&name).is_some() || !once.is_empty(), "{:?}", name);
            prop_assert!(once.split_whitespace().eq(once.split(' ').filter(|word| !word.is_empty())), "{:?}", name);
        }
    }
}
