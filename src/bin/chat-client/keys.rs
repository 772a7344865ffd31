//! What is typed: characters become keys.

use std::collections::VecDeque;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Enter,
    /// Ctrl-D: deletes, or ends the input.
    Eof,
    /// Ctrl-C on a terminal that makes no signal of it.
    Interrupt,
    Backspace,
    Delete,
    Left,
    Right,
    WordLeft,
    WordRight,
    Home,
    End,
    Up,
    Down,
    KillToEnd,
    KillToStart,
    KillWordLeft,
    KillWordRight,
    Yank,
    Transpose,
    ClearScreen,
}

/// What has begun and is not yet whole.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Ground,
    Escape,
    /// A control sequence, with its parameters so far.
    Csi(String),
    /// ESC O and one letter.
    Ss3,
    /// What a terminal answers to questions that this program did not ask; true behind an ESC.
    Answer(bool),
}

/// Takes characters as they come, however they are cut, and hands out keys in their order. Nothing
/// that has come is ever dropped: what was typed ahead is the answer to what will be asked.
#[derive(Debug)]
pub struct Keys {
    state: State,
    /// Between the marks of a bracketed paste: the terminal vouches that it was not typed.
    pasted: bool,
    /// The last key was a CR: a LF right behind it belongs to it.
    after_cr: bool,
    ready: VecDeque<Key>,
}

impl Keys {
    pub fn new() -> Keys {
        Keys { state: State::Ground, pasted: false, after_cr: false, ready: VecDeque::new() }
    }

    pub fn push(&mut self, text: &str) {
        text.chars().for_each(|c| self.take(c));
    }

    pub fn next(&mut self) -> Option<Key> {
        self.ready.pop_front()
    }

    fn take(&mut self, c: char) {
        let after_cr = std::mem::take(&mut self.after_cr);
        match std::mem::replace(&mut self.state, State::Ground) {
            State::Ground => self.ground(c, after_cr),
            State::Escape => match c {
                '[' => self.state = State::Csi(String::new()),
                'O' => self.state = State::Ss3,
                ']' | 'P' | '_' | '^' | 'X' => self.state = State::Answer(false),
                '\x1b' => self.state = State::Escape,
                'b' => self.ready.push_back(Key::WordLeft),
                'f' => self.ready.push_back(Key::WordRight),
                'd' => self.ready.push_back(Key::KillWordRight),
                '\x7f' | '\x08' => self.ready.push_back(Key::KillWordLeft),
                c if c.is_control() => self.ground(c, false),
                _ => {}
            },
            State::Csi(mut parameters) => match c {
                // Longer than any that exists: it is none.
                '\x20'..='\x3f' if parameters.len() < 32 => {
                    parameters.push(c);
                    self.state = State::Csi(parameters);
                }
                '\x40'..='\x7e' => self.csi(&parameters, c),
                _ => self.ground(c, false),
            },
            State::Ss3 => match c {
                '\x40'..='\x7e' => self.csi("", c),
                _ => self.ground(c, false),
            },
            State::Answer(escaped) => match c {
                '\r' | '\n' => self.ground(c, false),
                '\x07' | '\u{9c}' => {}
                '\\' if escaped => {}
                c => self.state = State::Answer(c == '\x1b'),
            },
        }
    }

    fn ground(&mut self, c: char, after_cr: bool) {
        let key = match c {
            '\n' if after_cr => return,
            '\r' | '\n' => {
                self.after_cr = c == '\r';
                Key::Enter
            }
            '\x1b' => {
                self.state = State::Escape;
                return;
            }
            // Pasted, it is text.
            c if self.pasted => Key::Char(c),
            '\x01' => Key::Home,
            '\x02' => Key::Left,
            '\x03' => Key::Interrupt,
            '\x04' => Key::Eof,
            '\x05' => Key::End,
            '\x06' => Key::Right,
            '\x08' | '\x7f' => Key::Backspace,
            '\t' => Key::Char('\t'),
            '\x0b' => Key::KillToEnd,
            '\x0c' => Key::ClearScreen,
            '\x0e' => Key::Down,
            '\x10' => Key::Up,
            '\x14' => Key::Transpose,
            '\x15' => Key::KillToStart,
            '\x17' => Key::KillWordLeft,
            '\x19' => Key::Yank,
            '\0'..='\x1f' => return,
            c => Key::Char(c),
        };
        self.ready.push_back(key);
    }

    fn csi(&mut self, parameters: &str, last: char) {
        // "1;5": with Ctrl; "1;3": with Alt.
        let by_words = parameters.ends_with(";5") || parameters.ends_with(";3");
        let key = match (last, parameters) {
            ('~', "200") => {
                self.pasted = true;
                return;
            }
            ('~', "201") => {
                self.pasted = false;
                return;
            }
            ('A', _) => Key::Up,
            ('B', _) => Key::Down,
            ('C', _) if by_words => Key::WordRight,
            ('D', _) if by_words => Key::WordLeft,
            ('C', _) => Key::Right,
            ('D', _) => Key::Left,
            ('H', _) | ('~', "1" | "7") => Key::Home,
            ('F', _) | ('~', "4" | "8") => Key::End,
            ('~', "3") => Key::Delete,
            ('~', "3;5" | "3;3") => Key::KillWordRight,
            // The Enter of a keypad.
            ('M', "") => Key::Enter,
            _ => return,
        };
        self.ready.push_back(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(pieces: &[&str]) -> Vec<Key> {
        let mut keys = Keys::new();
        pieces.iter().for_each(|piece| keys.push(piece));
        std::iter::from_fn(|| keys.next()).collect()
    }

    fn typed(text: &str) -> Vec<Key> {
        text.chars().map(|c| if c == '\n' { Key::Enter } else { Key::Char(c) }).collect()
    }

    #[test]
    fn every_end_of_a_line_is_one_enter() {
        for text in ["a\rb\rc", "a\nb\nc", "a\r\nb\r\nc"] {
            assert_eq!(keys(&[text]), typed("a\nb\nc"), "{text:?}");
        }
        assert_eq!(keys(&["a\r", "\nb"]), typed("a\nb"), "a cut between CR and LF");
        assert_eq!(keys(&["\r\r\n\n"]), typed("\n\n\n"));
    }

    #[test]
    fn a_bracketed_paste_is_text_line_by_line() {
        let text = "\x1b[200~a\x01\tb\rc\n\x1b[201~d\x01";
        let mut expected = typed("a\x01\tb\nc\nd");
        expected.push(Key::Home);
        for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            assert_eq!(keys(&[&text[..cut], &text[cut..]]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn sequences_are_keys_or_nothing_and_never_take_a_line_with_them() {
        use Key::{Delete, Down, End, Home, Left, Right, Up, WordLeft, WordRight};
        assert_eq!(
            keys(&["\x1b[A\x1b[B\x1b[C\x1b[D\x1bOA\x1b[H\x1b[F\x1b[3~\x1b[1;5C\x1b[1;3D\x1bb\x1bf"]),
            [Up, Down, Right, Left, Up, Home, End, Delete, WordRight, WordLeft, WordLeft, WordRight]
        );
        for strange in ["\x1b[15~", "\x1b[?1;2c", "\x1b]11;rgb:0/0/0\x07", "\x1b]11;?\x1b\\", "\x1bP1$r\x1b\\", "\x1bz"]
        {
            assert_eq!(keys(&[strange, "a\r"]), typed("a\n"), "{strange:?}");
        }
        for unfinished in ["\x1b", "\x1b[", "\x1b[1;", "\x1bO", "\x1b]0;x"] {
            assert_eq!(keys(&[unfinished, "\ra\r"]), typed("\na\n"), "{unfinished:?}");
        }
    }
}
