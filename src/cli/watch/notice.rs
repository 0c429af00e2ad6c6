//! Notices for the user, printed above the bars or on standard error. Any thread can print one.

use console::{Term, measure_text_width};
use indicatif::MultiProgress;

use crate::cli::terminal::{complain, plain};

/// Prints notices without truncating them.
#[derive(Clone)]
pub(super) struct Notices {
    /// The bars above which they are printed.
    pub(super) bars: Option<MultiProgress>,
}

impl Notices {
    pub(super) fn print(&self, text: &str) {
        let Some(bars) = &self.bars else {
            return complain(text);
        };
        let columns = usize::from(Term::stderr().size().1);
        // If the terminal cannot be written to, there is nowhere to report it.
        let _ = bars.println(wrapped(&plain(text), columns).join("\n"));
    }
}

/// Wraps text at `columns`. A row ends between words, or within a word that is wider than a row.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut rows = Vec::new();
    let mut row = String::new();
    for word in text.split(' ') {
        if !row.is_empty() {
            match measure_text_width(&row) + 1 + measure_text_width(word) <= columns {
                true => row.push(' '),
                false => rows.push(std::mem::take(&mut row)),
            }
        }
        for character in word.chars() {
            let width = measure_text_width(character.encode_utf8(&mut [0; 4]));
            if !row.is_empty() && measure_text_width(&row) + width > columns {
                rows.push(std::mem::take(&mut row));
            }
            row.push(character);
        }
    }
    rows.push(row);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_keeps_all_its_words_whatever_the_width() {
        let notice = "cannot reach https://a.very.long.name.example:8443/名簿名簿名簿名簿: refused; trying again in 16 s";
        for columns in [1, 2, 20, 60, 200] {
            let rows = wrapped(notice, columns);
            let is_within = |row: &String| measure_text_width(row) <= columns.max(2);
            assert!(rows.iter().all(is_within), "{rows:?}");
            let without_blanks = |text: &str| text.replace(' ', "");
            assert_eq!(without_blanks(&rows.concat()), without_blanks(notice));
        }
        let rows = wrapped(notice, 60);
        assert_eq!(rows.last().unwrap(), "refused; trying again in 16 s");
    }
}
