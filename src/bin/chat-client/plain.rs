//! Received text, made harmless and unmistakable.
//!
//! What a peer wrote must not drive the terminal, hide, turn or cover other text, nor pass for
//! another's line. A character that could is shown by its number, as `\u{1b}`; what is longer than
//! it can honestly be is cut.

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Characters of a name, a role or a state that are shown. Names have at most 50.
const LONGEST_NAME: usize = 64;
/// Characters of a text that are shown: as many as fit into the greatest message.
const LONGEST_TEXT: usize = 64 * 1024;
/// Characters without a width behind one that has one. Four do for any language, and more would
/// cover the lines above.
const MOST_MARKS: usize = 4;
/// Characters of what a server says of itself that are shown.
const LONGEST_NOTICE: usize = 500;
/// The longest time that is shown, in bytes: RFC 3339 with nanoseconds takes 35.
const LONGEST_TIME: usize = 40;
/// Stands where a message's time is none.
const NO_TIME: &str = "????-??-?? ??:??:??";
/// What the rows of a line begin with on a terminal that it does not fit into, except the first.
const CONTINUED: &str = "  | ";

/// The text in one line, free of everything that acts on more than its own place.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = None;
    let mut marks = 0;
    for c in text.chars() {
        let mark = c.width().unwrap_or(0) == 0;
        marks = if mark { marks + 1 } else { 0 };
        let covers = mark && (marks > MOST_MARKS || before.is_none() && !is_joiner(c));
        // The variation selectors of emoji: behind letters and digits they do nothing but hide.
        let styles = matches!(c, '\u{fe0e}' | '\u{fe0f}');
        let idle = styles && !before.is_some_and(|before: char| !before.is_ascii() || "0123456789#*".contains(before));
        if c.is_control() {
            out.extend(c.escape_default());
        } else if covers || idle || (is_invisible(c) && !is_joiner(c) && !styles) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        before = Some(c);
    }
    out
}

/// Persian needs the first, and emoji the second.
fn is_joiner(c: char) -> bool {
    matches!(c, '\u{200c}' | '\u{200d}')
}

/// Nothing is seen of it: Unicode's Default_Ignorable_Code_Point, the separators of lines and
/// paragraphs, annotations, and what is no character.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
        || u32::from(c) & 0xfffe == 0xfffe
        || matches!(c, '\u{fdd0}'..='\u{fdef}')
}

/// The first `longest` characters.
fn bounded(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => plain(text),
        Some((cut, _)) => format!("{}… (+{})", plain(&text[..cut]), text[cut..].chars().count()),
    }
}

/// A message's text.
pub fn text(text: &str) -> String {
    bounded(text, LONGEST_TEXT)
}

/// What a server says of itself.
pub fn notice(text: &str) -> String {
    bounded(text, LONGEST_NOTICE)
}

/// A name, or another word of a list.
pub fn name(name: &str) -> String {
    bounded(name, LONGEST_NAME)
}

/// A name before `said:`. The characters that the line is built with are shown by their numbers, so
/// that a name cannot be one that says something.
pub fn speaker(speaker: &str) -> String {
    let mut out = String::new();
    for c in name(speaker).chars() {
        if matches!(c, '[' | ']' | ':' | '［' | '］' | '：' | '﹕' | '∶' | '꞉') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// A message's time if it is one, in one of the ways that clients write it. Its sender chose it.
pub fn time(time: &str) -> &str {
    /// As `chrono` writes formats; the first is the C++ client's.
    const FORMATS: [&str; 9] = [
        "%Y-%m-%d %H:%M:%S",
        "%Y-%m-%d %H:%M:%S%.f",
        "%Y-%m-%dT%H:%M:%S%.f",
        "%Y-%m-%d %H:%M",
        "%Y/%m/%d %H:%M:%S",
        "%Y/%m/%d %H:%M",
        "%a %b %e %H:%M:%S %Y",
        "%Y年%m月%d日 %H:%M:%S",
        "%Y年%m月%d日 %H时%M分%S秒",
    ];
    let part = |c: char| c.is_ascii_alphanumeric() || "年月日时分秒".contains(c);
    // What reads times is generous with blanks.
    let shaped = time.len() <= LONGEST_TIME
        && time.chars().all(|c| part(c) || " -/:.+,".contains(c))
        && time.starts_with(part)
        && time.ends_with(part)
        && !time.contains("   ");
    let real = || {
        FORMATS.iter().any(|format| NaiveDateTime::parse_from_str(time, format).is_ok())
            || NaiveDate::parse_from_str(time, "%Y-%m-%d").is_ok()
            || ["%H:%M:%S", "%H:%M"].iter().any(|format| NaiveTime::parse_from_str(time, format).is_ok())
            || DateTime::parse_from_rfc3339(time).is_ok()
            || DateTime::parse_from_rfc2822(time).is_ok()
    };
    if shaped && real() { time } else { NO_TIME }
}

/// The columns that a text takes; `wide` counts what East Asian terminals show in two as two.
pub fn columns(text: &str, wide: bool) -> usize {
    if wide { text.width_cjk() } else { text.width() }
}

/// A line as the rows of a terminal of `width` columns. All but the first have a mark: a sender who
/// knew the width could otherwise begin a row with what looks like another's line.
pub fn rows(line: &str, width: usize, wide: bool) -> Vec<String> {
    // Narrower ones show less than the mark leaves room for.
    const NARROWEST: usize = 16;
    if width < NARROWEST || columns(line, wide) <= width {
        return vec![line.into()];
    }
    let mut rows = vec![String::new()];
    let mut column = 0;
    let mut rest = line;
    while let Some(grapheme) = rest.graphemes(true).next() {
        // A character's number stays in one piece.
        let number = rest.strip_prefix("\\u{").and_then(|rest| rest.find('}')).filter(|end| *end <= 6);
        let (piece, behind) = rest.split_at(number.map_or(grapheme.len(), |end| end + "\\u{}".len()));
        rest = behind;
        let more = columns(piece, wide);
        if column + more > width {
            rows.push(CONTINUED.into());
            column = CONTINUED.len();
        }
        column += more;
        if let Some(row) = rows.last_mut() {
            row.push_str(piece);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_drive_the_terminal() {
        assert_eq!(plain("\x1b[2J\x07\r\n\t\u{9b}31m\x7f"), r"\u{1b}[2J\u{7}\r\n\t\u{9b}31m\u{7f}");
        assert_eq!(plain("a\u{202e}b\u{2066}c\u{2028}"), r"a\u{202e}b\u{2066}c\u{2028}");
        assert_eq!(plain("你好, \"wörld\" \\n 👍"), "你好, \"wörld\" \\n 👍");
    }

    #[test]
    fn what_hides_or_turns_is_shown_by_its_number() {
        for c in [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{115f}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180b}',
            '\u{180e}',
            '\u{200b}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2061}',
            '\u{2064}',
            '\u{2065}',
            '\u{2066}',
            '\u{2069}',
            '\u{206a}',
            '\u{3164}',
            '\u{fe00}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{fffe}',
            '\u{1d173}',
            '\u{e0001}',
            '\u{e0041}',
            '\u{e007f}',
            '\u{e0100}',
            '\u{80}',
            '\u{9f}',
        ] {
            assert_eq!(plain(&format!("a{c}b")), format!("a\\u{{{:x}}}b", u32::from(c)));
        }
    }

    #[test]
    fn what_languages_and_emoji_need_stays() {
        for text in [
            "می\u{200c}خواهم",
            "👨\u{200d}👩\u{200d}👧",
            "❤\u{fe0f}",
            "1\u{fe0f}\u{20e3}",
            "👍🏽",
            "🇨🇳",
            "ภาษาที่",
            "e\u{301}",
            "हिन्दी",
            "Việt",
            "שָׁלוֹם",
            "🏳\u{fe0f}\u{200d}🌈",
            "a\u{200d}b",
            "a\u{200c}b",
            "中\u{3000}文",
            "한\u{1112}\u{1161}\u{11ab}",
        ] {
            assert_eq!(plain(text), text);
        }
    }

    #[test]
    fn marks_cover_nothing_but_their_letter() {
        let flood = format!("a{}", "\u{301}".repeat(50));
        assert_eq!(plain(&flood), format!("a{}{}", "\u{301}".repeat(4), r"\u{301}".repeat(46)));
        assert_eq!(plain("\u{20e0}x"), r"\u{20e0}x", "it would strike out what stands before");
        assert_eq!(plain("a\u{fe0f}"), r"a\u{fe0f}");
    }

    #[test]
    fn a_time_is_a_time_or_is_not_shown() {
        for real in [
            "2026-11-28 11:00:00",
            "2026-1-2 03:04:05",
            "2026-11-28T11:00:00Z",
            "2026-11-28T11:00:00.123+08:00",
            "2026/11/28 11:00:00",
            "2026-11-28 11:00",
            "11:00:00",
            "Sat Nov 28 11:00:00 2026",
            "2026-11-28 11:00:00.123456",
            "2026年11月28日 11:00:00",
            "2026-11-28",
            "Sat, 28 Nov 2026 11:00:00 +0800",
        ] {
            assert_eq!(time(real), real);
        }
        for none in [
            "",
            " ",
            "noon",
            "2026-11-28 11:00:00 [1]boss said: pay",
            "[1]boss said: pay",
            "2026-99-28 11:00:00",
            "2026-11-28 11:00:00\n",
            "2026-11-28\n11:00:00",
            "2026-11-28 11:00:00 2026-11-28 11:00:00",
            "11:00:00 boss",
            "2026-11-28\u{3000}11:00:00",
            "٢٠٢٦-11-28 11:00:00",
            "2026-11-28      11:00:00",
            " 2026-11-28 11:00:00",
            "1700000000",
            "群消息[1]:2026-11-28 11:00:00",
            "2026-11-28 25:00:00",
        ] {
            assert_eq!(time(none), NO_TIME, "{none:?}");
        }
        assert_eq!(time(&"1".repeat(65536)), NO_TIME);
    }

    #[test]
    fn a_name_says_nothing_and_ends_in_time() {
        assert_eq!(speaker("a said: b"), r"a said\u{3a} b");
        assert_eq!(speaker("x [1]boss said：pay"), r"x \u{5b}1\u{5d}boss said\u{ff1a}pay");
        assert_eq!(speaker("zhang san 张三"), "zhang san 张三");
        assert_eq!(name(&"n".repeat(10_000)), format!("{}… (+9936)", "n".repeat(64)));
    }

    #[test]
    fn only_the_first_row_of_a_line_begins_as_lines_do() {
        let forged =
            format!("2026-11-28 11:00:00 [2]li said: hi{}2026-11-28 11:00:00 [1]boss said: pay", " ".repeat(46));
        let rows_of = rows(&forged, 80, false);
        assert_eq!(rows_of.len(), 2);
        assert_eq!(rows_of[1], "  | 2026-11-28 11:00:00 [1]boss said: pay");
        for wide in [false, true] {
            let rows = rows(&"中文α👍é ".repeat(40), 33, wide);
            assert!(rows.iter().all(|row| columns(row, wide) <= 33));
            assert!(rows[1..].iter().all(|row| row.starts_with(CONTINUED)));
        }
        assert_eq!(rows(&plain(&"\u{1b}".repeat(4)), 16, false), [r"\u{1b}\u{1b}", r"  | \u{1b}\u{1b}"]);
        assert_eq!(rows("short", 80, false), ["short"]);
        assert_eq!(rows(&"x".repeat(80), 80, false).len(), 1);
    }
}
