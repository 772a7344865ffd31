//! The line that is being typed: keys change it, and it draws itself. It touches no terminal.

use unicode_segmentation::UnicodeSegmentation;

use crate::history::History;
use crate::keys::Key;
use crate::plain::{columns, plain};

/// What the terminal can do.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub columns: usize,
    pub rows: usize,
    /// Characters of ambiguous width take two columns.
    pub wide: bool,
    /// It knows no control sequences.
    pub dumb: bool,
}

/// What a key has led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Entered {
    Line(String),
    EndOfInput,
    Interrupt,
}

/// How a line is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Plain,
    /// Shown as asterisks, and kept nowhere.
    Secret,
    /// With earlier lines at hand.
    Recalled,
}

pub struct Editor {
    prompt: String,
    mode: Mode,
    text: String,
    /// The byte in `text` before which the cursor stands.
    cursor: usize,
    history: History,
    /// How many steps back in the history the text is from.
    steps: usize,
    /// What was typed before the history was looked into.
    draft: String,
    /// What was cut last.
    cut: String,
    drawn: Drawn,
}

/// What is on the screen of it.
#[derive(Debug, Default)]
struct Drawn {
    /// Above the cursor.
    rows: usize,
    /// On a terminal without control sequences, the text.
    text: Option<String>,
}

impl Editor {
    pub fn new(history: History) -> Editor {
        Editor {
            prompt: String::new(),
            mode: Mode::Plain,
            text: String::new(),
            cursor: 0,
            history,
            steps: 0,
            draft: String::new(),
            cut: String::new(),
            drawn: Drawn::default(),
        }
    }

    /// Begins a new line.
    pub fn begin(&mut self, prompt: &str, mode: Mode) {
        self.prompt = plain(prompt);
        self.mode = mode;
        self.text.clear();
        self.cursor = 0;
        self.steps = 0;
        self.draft.clear();
        self.drawn = Drawn::default();
    }

    pub fn press(&mut self, key: Key) -> Option<Entered> {
        match key {
            Key::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            Key::Enter => {
                let line = std::mem::take(&mut self.text);
                self.cursor = 0;
                if self.mode == Mode::Recalled {
                    self.history.add(&line);
                }
                return Some(Entered::Line(line));
            }
            Key::Interrupt => return Some(Entered::Interrupt),
            Key::Eof if self.text.is_empty() => return Some(Entered::EndOfInput),
            Key::Eof | Key::Delete => drop(self.text.drain(self.cursor..self.right())),
            Key::Backspace => {
                let from = self.left();
                drop(self.text.drain(from..self.cursor));
                self.cursor = from;
            }
            Key::Left => self.cursor = self.left(),
            Key::Right => self.cursor = self.right(),
            Key::WordLeft => self.cursor = self.word_left(),
            Key::WordRight => self.cursor = self.word_right(),
            Key::Home => self.cursor = 0,
            Key::End => self.cursor = self.text.len(),
            Key::Up => self.recall(self.steps + 1),
            Key::Down => self.recall(self.steps.saturating_sub(1)),
            Key::KillToEnd => self.kill(self.cursor, self.text.len()),
            Key::KillToStart => self.kill(0, self.cursor),
            Key::KillWordLeft => self.kill(self.word_left(), self.cursor),
            Key::KillWordRight => self.kill(self.cursor, self.word_right()),
            Key::Yank => self.insert(&self.cut.clone()),
            Key::Transpose => self.transpose(),
            Key::ClearScreen => {}
        }
        None
    }

    fn insert(&mut self, text: &str) {
        self.text.insert_str(self.cursor, text);
        self.cursor += text.len();
    }

    /// The cursor's place one character, as people count them, to the left.
    fn left(&self) -> usize {
        self.text[..self.cursor].grapheme_indices(true).next_back().map_or(0, |(at, _)| at)
    }

    fn right(&self) -> usize {
        self.cursor + self.text[self.cursor..].graphemes(true).next().map_or(0, str::len)
    }

    fn word_left(&self) -> usize {
        let before = &self.text[..self.cursor];
        let words = before.trim_end_matches(|c: char| !c.is_alphanumeric());
        words.trim_end_matches(char::is_alphanumeric).len()
    }

    fn word_right(&self) -> usize {
        let behind = &self.text[self.cursor..];
        let words = behind.trim_start_matches(|c: char| !c.is_alphanumeric());
        self.text.len() - words.trim_start_matches(char::is_alphanumeric).len()
    }

    fn kill(&mut self, from: usize, to: usize) {
        let cut = self.text.drain(from..to).collect();
        // A password is not to come back at another prompt.
        if self.mode != Mode::Secret {
            self.cut = cut;
        }
        self.cursor = from;
    }

    /// Exchanges the characters around the cursor, or the last two.
    fn transpose(&mut self) {
        if self.cursor == self.text.len() {
            self.cursor = self.left();
        }
        let (from, to) = (self.left(), self.right());
        if from < self.cursor {
            let moved: String = self.text.drain(from..self.cursor).collect();
            self.text.insert_str(to - moved.len(), &moved);
            self.cursor = to;
        }
    }

    fn recall(&mut self, steps: usize) {
        if self.mode != Mode::Recalled {
            return;
        }
        if self.steps == 0 {
            self.draft.clone_from(&self.text);
        }
        let text = if steps == 0 { Some(self.draft.as_str()) } else { self.history.back(steps) };
        if let Some(text) = text.map(str::to_owned) {
            self.text = text;
            self.steps = steps;
            self.cursor = self.text.len();
        }
    }

    // ---- On the screen ----

    /// What removes it from the screen, so that something else can stand there.
    pub fn erase(&mut self, size: Size) -> String {
        let drawn = std::mem::take(&mut self.drawn);
        if size.dumb {
            return if drawn.text.is_some() { "\n".into() } else { String::new() };
        }
        up(drawn.rows) + "\r\x1b[J"
    }

    /// What draws it anew, in place of what was drawn before.
    pub fn draw(&mut self, size: Size) -> String {
        let before = self.prompt.clone() + &self.shown(&self.text[..self.cursor]);
        let behind = self.shown(&self.text[self.cursor..]);
        if size.dumb {
            return self.draw_on(before + &behind);
        }
        let erased = self.erase(size);
        let (mut rows, column) = fold(&before, size);
        let row = rows.len() - 1;
        // The rest begins where the cursor stands.
        let (mut rest, _) = fold(&(" ".repeat(column) + &behind), size);
        let first = rest.remove(0).split_off(column);
        rows[row] += &first;
        rows.append(&mut rest);
        // More rows than the screen has could not be erased again: those around the cursor are shown.
        let from = (row + 1).saturating_sub(size.rows);
        let to = rows.len().min(from + size.rows);
        let back = up(to - 1 - row);
        self.drawn.rows = row - from;
        let place = match column {
            _ if behind.is_empty() => String::new(),
            0 => "\r".into(),
            column => format!("\r\x1b[{column}C"),
        };
        format!("{erased}{}{back}{place}", rows[from..to].join("\n"))
    }

    /// What draws `line` as the finished line, for ever.
    pub fn finish(&mut self, line: &str, size: Size) -> String {
        let shown = self.prompt.clone() + &self.shown(line);
        if size.dumb {
            return self.draw_on(shown) + "\n";
        }
        self.erase(size) + &fold(&shown, size).0.join("\n") + "\n"
    }

    fn shown(&self, text: &str) -> String {
        if self.mode == Mode::Secret { "*".repeat(text.chars().count()) } else { plain(text) }
    }

    /// Without control sequences, a line can grow and shrink at its end.
    fn draw_on(&mut self, line: String) -> String {
        let drawn = match self.drawn.text.as_deref() {
            None => line.clone(),
            Some(old) => match (line.strip_prefix(old), old.strip_prefix(line.as_str())) {
                (Some(more), _) => more.into(),
                (None, Some(less)) => "\x08 \x08".repeat(columns(less, false)),
                (None, None) => format!("\n{line}"),
            },
        };
        self.drawn.text = Some(line);
        drawn
    }
}

fn up(rows: usize) -> String {
    if rows == 0 { String::new() } else { format!("\x1b[{rows}A") }
}

/// The rows that a line takes, and the column behind it. The ends of the rows are sent to the
/// terminal, rather than left to it: terminals differ in where a full row leaves the cursor.
fn fold(line: &str, size: Size) -> (Vec<String>, usize) {
    let (mut rows, mut row, mut column) = (Vec::new(), String::new(), 0);
    for grapheme in line.graphemes(true) {
        let more = columns(grapheme, size.wide);
        if column + more > size.columns && column > 0 {
            rows.push(std::mem::take(&mut row));
            column = 0;
        }
        column += more;
        row.push_str(grapheme);
    }
    rows.push(row);
    if column >= size.columns {
        rows.push(String::new());
        column = 0;
    }
    (rows, column)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;

    const SIZE: Size = Size { columns: 80, rows: 24, wide: false, dumb: false };

    fn editor() -> Editor {
        let mut editor = Editor::new(History::default());
        editor.begin("> ", Mode::Recalled);
        editor
    }

    /// Types, and returns what is then left in the line, with `|` where the cursor stands.
    fn after(editor: &mut Editor, typed: &str) -> String {
        let mut keys = Keys::new();
        keys.push(typed);
        while let Some(key) = keys.next() {
            if let Some(Entered::Line(_)) = editor.press(key) {
                editor.begin("> ", Mode::Recalled);
            }
        }
        format!("{}|{}", &editor.text[..editor.cursor], &editor.text[editor.cursor..])
    }

    #[test]
    fn keys_edit_by_what_people_call_characters() {
        let mut editor = editor();
        assert_eq!(after(&mut editor, "chat:2:a👍🏽e\u{301}"), "chat:2:a👍🏽e\u{301}|");
        assert_eq!(after(&mut editor, "\x7f"), "chat:2:a👍🏽|");
        assert_eq!(after(&mut editor, "\x1b[D\x1b[3~"), "chat:2:a|");
        assert_eq!(after(&mut editor, "\x01\x1b[C\x06X"), "chX|at:2:a");
        assert_eq!(after(&mut editor, "\x05 two words\x17"), "chXat:2:a two |");
        assert_eq!(after(&mut editor, "\x1bb\x0b"), "chXat:2:a |");
        assert_eq!(after(&mut editor, "\x19!"), "chXat:2:a two !|");
        assert_eq!(after(&mut editor, "\x14"), "chXat:2:a two! |");
        assert_eq!(after(&mut editor, "\x15"), "|");
        assert_eq!(after(&mut editor, "\x14\x7f\x1b[3~\x1b[D\x1b[C\x17\x0bab\x02\x14"), "ba|");
    }

    #[test]
    fn earlier_lines_come_back_and_the_draft_is_kept() {
        let mut editor = editor();
        assert_eq!(after(&mut editor, "one\rtwo\rdraft\x1b[A"), "two|");
        assert_eq!(after(&mut editor, "\x1b[A\x1b[A\x1b[A"), "one|");
        assert_eq!(after(&mut editor, "\x1b[B\x1b[B\x1b[B"), "draft|");
        editor.begin("password:", Mode::Secret);
        assert_eq!(after(&mut editor, "\x1b[A\x10secret\x15"), "|");
        editor.begin("> ", Mode::Recalled);
        assert_eq!(after(&mut editor, "\x19"), "|", "a cut password is nowhere");
    }

    #[test]
    fn the_end_of_the_input_is_the_end_only_on_an_empty_line() {
        let mut editor = editor();
        assert_eq!(editor.press(Key::Eof), Some(Entered::EndOfInput));
        after(&mut editor, "ab\x01");
        assert_eq!(editor.press(Key::Eof), None);
        assert_eq!(editor.press(Key::Enter), Some(Entered::Line("b".into())));
    }

    #[test]
    fn it_draws_what_is_typed_and_no_password() {
        let mut editor = editor();
        after(&mut editor, "hi\x1b[D");
        assert_eq!(editor.draw(SIZE), "\r\x1b[J> hi\r\x1b[3C");
        editor.begin("password:", Mode::Secret);
        for c in "secret".chars() {
            editor.press(Key::Char(c));
            assert!(!editor.draw(SIZE).contains(c) || "password:".contains(c), "{c}");
        }
        assert_eq!(editor.finish("secret", SIZE), "\r\x1b[Jpassword:******\n");
    }

    #[test]
    fn a_line_of_several_rows_is_drawn_in_rows_and_erased_whole() {
        let size = Size { columns: 10, rows: 3, ..SIZE };
        let mut editor = editor();
        after(&mut editor, "12345678");
        assert_eq!(editor.draw(size), "\r\x1b[J> 12345678\n", "a full row leaves the cursor on the next");
        after(&mut editor, "中文字\x1b[D\x1b[D\x1b[D\x1b[D");
        assert_eq!(editor.draw(size), "\x1b[1A\r\x1b[J> 12345678\n中文字\x1b[1A\r\x1b[9C");
        assert_eq!(editor.erase(size), "\r\x1b[J");
        after(&mut editor, &format!("\x05{}", "x".repeat(40)));
        let drawn = editor.draw(size);
        assert_eq!(drawn.matches('\n').count(), 2, "no more than the screen has: {drawn:?}");
        assert!(editor.finish(&editor.text.clone(), size).contains("> 12345678\n中文字xxxx\n"));
    }

    #[test]
    fn a_dumb_terminal_gets_no_control_sequences() {
        let dumb = Size { dumb: true, ..SIZE };
        let mut editor = editor();
        let mut seen = editor.draw(dumb);
        for key in ["a", "b", "\x7f", "\x01", "c"] {
            after(&mut editor, key);
            seen += &editor.draw(dumb);
        }
        assert_eq!(seen, "> ab\x08 \x08\n> ca");
        assert_eq!(editor.erase(dumb), "\n");
        assert_eq!(editor.finish("ca", dumb), "> ca\n");
    }
}
