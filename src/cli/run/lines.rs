//! Splits an output into lines as a person reads them on a terminal: without colours, and with each state of a line that is redrawn in
//! place. Knows nothing about progress.

use vte::{Params, Parser, Perform};

/// Maximum length of a line that is read, in bytes. The rest of a longer line is skipped.
pub(super) const LINE_MAX_BYTES: usize = 64 * 1024;
/// Maximum length of an escape sequence, in bytes. The parser keeps it in memory, and binary output can begin one that never ends.
const SEQUENCE_MAX_BYTES: usize = 64 * 1024;
/// How much is read at a time, in bytes.
const PART_BYTES: usize = 16 * 1024;
/// Maximum number of columns by which the cursor is moved to the right with spaces.
const FORWARD_MAX: u16 = 512;

/// What an output says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Said {
    /// A line, or one state of a line that is redrawn in place.
    Line { text: String, is_redrawn: bool },
    /// `OSC 9;4`, by which programs report their progress to a terminal.
    Taskbar(Taskbar),
}

/// The progress in an `OSC 9;4`: <https://learn.microsoft.com/windows/terminal/tutorials/progress-bar-sequences>.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taskbar {
    /// No progress is shown any more.
    Cleared,
    /// Percent.
    At(u8),
    /// Busy.
    Indeterminate,
}

/// Divides an output into lines.
#[derive(Default)]
pub(super) struct Lines {
    parser: Parser,
    page: Page,
    /// How many bytes have been read since a character or a sequence was completed.
    open_bytes: usize,
}

impl Lines {
    /// Reads the next bytes of the output. Passes each line that they end, in order.
    pub(super) fn read(&mut self, bytes: &[u8], mut each: impl FnMut(Said)) {
        for part in bytes.chunks(PART_BYTES) {
            self.read_part(part);
        }
        self.page.said.drain(..).for_each(&mut each);
    }

    fn read_part(&mut self, part: &[u8]) {
        let Some((last, others)) = part.split_last() else {
            return;
        };
        self.page.is_complete = false;
        self.parser.advance(&mut self.page, others);
        let is_any = std::mem::take(&mut self.page.is_complete);
        // Parse the last byte separately: `is_complete` then tells whether the part ends within a sequence or a character.
        self.parser.advance(&mut self.page, &[*last]);
        self.open_bytes = match is_any || self.page.is_complete {
            true => 0,
            false => self.open_bytes + part.len(),
        };
        if self.open_bytes > SEQUENCE_MAX_BYTES {
            self.parser = Parser::new();
            self.open_bytes = 0;
        }
    }

    /// Returns the line that has not ended yet. Used when the output pauses: many programs leave the cursor at the end of a bar.
    pub(super) fn pending(&self) -> Option<Said> {
        (!self.page.line.trim().is_empty()).then(|| Said::Line {
            text: self.page.line.clone(),
            is_redrawn: self.page.is_redrawn,
        })
    }

    /// Whether other output can be inserted here: not within an escape sequence or a character.
    pub(super) fn is_complete(&self) -> bool {
        self.page.is_complete
    }
}

/// The line at the cursor.
struct Page {
    line: String,
    /// Whether the line began at the place of an earlier one.
    is_redrawn: bool,
    /// Whether the last character was a carriage return, which starts a redrawn line unless a line feed follows.
    has_returned: bool,
    is_complete: bool,
    said: Vec<Said>,
}

impl Default for Page {
    fn default() -> Page {
        Page {
            line: String::new(),
            is_redrawn: false,
            has_returned: false,
            is_complete: true,
            said: Vec::new(),
        }
    }
}

impl Page {
    /// Ends the line. The next one is drawn over it, or below it.
    fn end(&mut self, is_next_over_it: bool) {
        self.has_returned = false;
        let is_redrawn = self.is_redrawn || is_next_over_it;
        let is_blank = self.line.trim().is_empty();
        if !is_blank || !is_redrawn {
            let text = std::mem::take(&mut self.line);
            self.said.push(Said::Line { text, is_redrawn });
        }
        self.line.clear();
        self.is_redrawn = is_next_over_it;
    }
}

impl Perform for Page {
    fn print(&mut self, character: char) {
        self.is_complete = true;
        if self.has_returned {
            self.end(true);
        }
        if self.line.len() < LINE_MAX_BYTES {
            self.line.push(character);
        }
    }

    fn execute(&mut self, byte: u8) {
        self.is_complete = true;
        match byte {
            b'\n' => self.end(false),
            b'\r' => self.has_returned = true,
            b'\x08' => drop(self.line.pop()),
            b'\t' => self.line.push(' '),
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, params: &Params, intermediates: &[u8], _: bool, action: char) {
        self.is_complete = true;
        if !intermediates.is_empty() {
            return;
        }
        let first = params
            .iter()
            .next()
            .and_then(|first| first.first().copied());
        match (action, first.unwrap_or(0)) {
            // The cursor moves elsewhere, or the line is erased.
            ('A' | 'B' | 'E' | 'F' | 'G' | 'H' | 'd' | 'f', _) | ('J' | 'K', 1..) => self.end(true),
            ('C', columns) if self.line.len() < LINE_MAX_BYTES => {
                let columns = columns.clamp(1, FORWARD_MAX).into();
                self.line.extend(std::iter::repeat_n(' ', columns));
            }
            _ => {}
        }
    }

    fn osc_dispatch(&mut self, params: &[&[u8]], _: bool) {
        self.is_complete = true;
        let number = |at: usize| -> Option<u8> {
            let text = std::str::from_utf8(params.get(at)?).ok()?;
            text.parse().ok()
        };
        if params.first() != Some(&&b"9"[..]) || number(1) != Some(4) {
            return;
        }
        let taskbar = match (number(2), number(3)) {
            (Some(0), _) => Taskbar::Cleared,
            (Some(1), Some(percent @ 0..=100)) => Taskbar::At(percent),
            (Some(3), _) => Taskbar::Indeterminate,
            // Errors and warnings, with or without a percentage.
            (Some(2 | 4), Some(percent @ 1..=100)) => Taskbar::At(percent),
            _ => return,
        };
        self.said.push(Said::Taskbar(taskbar));
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], _: bool, byte: u8) {
        self.is_complete = true;
        // The cursor returns to where it was saved.
        if intermediates.is_empty() && byte == b'8' {
            self.end(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(parts: &[&str]) -> Vec<Said> {
        let mut lines = Lines::default();
        let mut said = Vec::new();
        for part in parts {
            lines.read(part.as_bytes(), |one| said.push(one));
        }
        said.extend(lines.pending());
        said
    }

    fn line(text: &str, is_redrawn: bool) -> Said {
        let text = text.to_owned();
        Said::Line { text, is_redrawn }
    }

    #[test]
    fn lines_are_what_a_person_sees_and_redrawn_ones_are_marked() {
        for (parts, expected) in [
            (&["a\r\nb\n"][..], vec![line("a", false), line("b", false)]),
            (&["\u{1b}[31mred\u{1b}[0m\n"], vec![line("red", false)]),
            (
                &["1%\r2%\r", "3%"],
                vec![line("1%", true), line("2%", true), line("3%", true)],
            ),
            (
                &["\r\u{1b}[2K1%", "\r\u{1b}[K2%\n"],
                vec![line("1%", true), line("2%", true)],
            ),
            (&["ä\u{1b}[3", "1mö\n"], vec![line("äö", false)]),
            (&["|\u{8}/\u{8}-\n"], vec![line("-", false)]),
            (
                &["\u{1b}7\u{1b}[24;0f[ 45%]\u{1b}8x\n"],
                vec![line("[ 45%]", true), line("x", true)],
            ),
        ] {
            assert_eq!(said(parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn the_progress_shown_by_a_terminal_is_read() {
        for (text, expected) in [
            ("\u{1b}]9;4;1;40\u{7}", Some(Taskbar::At(40))),
            ("\u{1b}]9;4;3\u{1b}\\", Some(Taskbar::Indeterminate)),
            ("\u{1b}]9;4;0;\u{7}", Some(Taskbar::Cleared)),
            ("\u{1b}]9;4;1;400\u{7}", None),
            ("\u{1b}]9;a notification\u{7}", None),
            ("\u{1b}]0;4;1;40\u{7}", None),
        ] {
            let expected = expected.map(Said::Taskbar);
            assert_eq!(said(&[text]), Vec::from_iter(expected), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_inserted_into_a_sequence_or_a_character() {
        for (text, is_complete) in [
            ("a", true),
            ("a\n", true),
            ("\u{1b}[31m", true),
            ("\u{1b}[31", false),
            ("\u{1b}", false),
            ("\u{1b}]0;title", false),
            ("\u{1b}]0;title\u{7}", true),
            ("\u{1b}Pq#0", false),
        ] {
            let mut lines = Lines::default();
            lines.read(text.as_bytes(), drop);
            assert_eq!(lines.is_complete(), is_complete, "{text:?}");
        }
        let mut lines = Lines::default();
        lines.read(&"é".as_bytes()[..1], drop);
        assert!(!lines.is_complete());
    }

    #[test]
    fn a_line_of_megabytes_takes_a_bounded_amount_of_memory() {
        let mut lines = Lines::default();
        let part = "x".repeat(1 << 20);
        for _ in 0..8 {
            lines.read(part.as_bytes(), drop);
        }
        assert!(lines.page.line.len() <= LINE_MAX_BYTES + 4);
    }

    #[test]
    fn a_sequence_that_never_ends_is_given_up() {
        let mut lines = Lines::default();
        let mut said = Vec::new();
        lines.read(b"\x1b]", drop);
        lines.read(&vec![b'x'; 2 * SEQUENCE_MAX_BYTES], drop);
        lines.read(b"\nafter\n", |one| said.push(one));
        assert!(said.contains(&line("after", false)), "{said:?}");
    }
}
