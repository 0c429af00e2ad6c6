//! The last part of an output, for a report of a failure.

use super::lines::{Lines, Said};

/// How much of the output is kept, in bytes.
pub(super) const TAIL_BYTES: usize = 64 * 1024;

/// The newest bytes of an output, and up to as many older ones, so that most new ones are only appended.
#[derive(Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        if self.0.len() + bytes.len() > 2 * TAIL_BYTES {
            let excess = self.0.len().saturating_sub(TAIL_BYTES - bytes.len());
            self.0.drain(..excess);
        }
        self.0.extend_from_slice(bytes);
    }

    /// Returns the output as text of at most [`TAIL_BYTES`], as a person has seen it: without colours, and with only the last state of lines
    /// that were redrawn.
    pub(super) fn text(&self) -> String {
        let bytes = &self.0[self.0.len().saturating_sub(TAIL_BYTES)..];
        let is_continuation = |byte: &&u8| (0x80..0xc0).contains(*byte);
        // Leave out a character that was cut.
        let cut = match bytes.len() < TAIL_BYTES {
            true => 0,
            false => bytes.iter().take(3).take_while(is_continuation).count(),
        };
        let mut lines: Vec<(String, bool)> = Vec::new();
        let mut add = |said| {
            if let Said::Line { text, is_redrawn } = said {
                if is_redrawn && lines.last().is_some_and(|(_, was_redrawn)| *was_redrawn) {
                    lines.pop();
                }
                lines.push((text.trim_end().to_owned(), is_redrawn));
            }
        };
        let mut reader = Lines::default();
        reader.read(&bytes[cut..], &mut add);
        reader.pending().into_iter().for_each(add);
        let lines: Vec<String> = lines.into_iter().map(|(line, _)| line).collect();
        let text = lines.join("\n");
        // The text can be longer than the bytes: a replacement character (U+FFFD) is longer than an invalid byte.
        let mut from = text.len().saturating_sub(TAIL_BYTES);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        text[from..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_kept_and_never_more() {
        let mut tail = Tail::default();
        tail.push(b"start ");
        for _ in 0..3 {
            tail.push(&[b'x'; TAIL_BYTES / 2]);
        }
        tail.push("é end".as_bytes());
        assert!(tail.0.len() <= 2 * TAIL_BYTES);
        let text = tail.text();
        assert!(text.ends_with("xé end") && !text.contains("start"));
        tail.push(&vec![0xff; TAIL_BYTES * 2]);
        assert!(tail.text().len() <= TAIL_BYTES);
    }

    #[test]
    fn the_text_is_what_a_person_has_seen() {
        let mut tail = Tail::default();
        tail.push(b"\x1b[1mone\x1b[0m\r\n\r\n 1%\r 2%\r 3%\nerror: \"x\"\n");
        assert_eq!(tail.text(), "one\n\n 3%\nerror: \"x\"");
    }

    #[test]
    fn a_character_that_was_cut_is_left_out() {
        let mut tail = Tail::default();
        tail.push("é".repeat(TAIL_BYTES).as_bytes());
        tail.push(b"x");
        assert!(tail.text().starts_with('é') && tail.text().ends_with("éx"));
    }
}
