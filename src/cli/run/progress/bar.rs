//! Bars and fractions of no known program: `[ 12/340] Linking`, `40/200`, `45%`, `[#####     ] 45%`, `Reading: 45% (9/20)`.
//!
//! A text can contain any number, so a number counts only where a bar has it: alone, at the beginning of a line, beside a drawn bar,
//! or in a line that is redrawn in place.

use super::number::{leading_fraction, leading_number, leading_percent, percent_of};
use super::{Family, Line, Reading};

/// The characters of drawn bars, other than ASCII.
const BLOCKS: &str = "█▉▊▋▌▍▎▏▓▒░■□▪▫━─╸╺╾╼●○◉⣿⣀⬛⬜▰▱";
/// The least number of equal characters that look like a bar.
const BAR_MIN: usize = 3;

/// Reads bars and fractions.
pub(super) struct Bar;

impl Family for Bar {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let text = line.text;
        let in_brackets = || {
            let (inner, _) = text.strip_prefix('[')?.split_once(']')?;
            whole(inner.trim())
        };
        let drawn = || {
            (line.is_redrawn || has_bar(text))
                .then(|| within(text))
                .flatten()
        };
        let percent = in_brackets()
            .or_else(|| whole(text))
            .or_else(|| leading(text))
            .or_else(drawn)?;
        Some(Reading::at(percent))
    }
}

/// Reads a text that is nothing but a fraction or a percentage.
fn whole(text: &str) -> Option<f64> {
    if let Some((part, whole, "")) = leading_fraction(text) {
        return percent_of(part, whole);
    }
    leading_percent(text).and_then(|(percent, rest)| rest.is_empty().then_some(percent))
}

/// Reads a fraction at the beginning of a line. Not a percentage: sentences begin with those.
fn leading(text: &str) -> Option<f64> {
    let (part, whole, rest) = leading_fraction(text)?;
    rest.starts_with([' ', '\t', ':', ','])
        .then(|| percent_of(part, whole))?
}

/// Whether a text has a drawn bar.
fn has_bar(text: &str) -> bool {
    let mut run = 0;
    let mut previous = '\0';
    for character in text.chars() {
        let is_of_bar = "#=".contains(character) || BLOCKS.contains(character);
        run = match is_of_bar {
            true if character == previous => run + 1,
            true => 1,
            false => 0,
        };
        if run >= BAR_MIN {
            return true;
        }
        previous = character;
    }
    // A bar that has hardly begun, or that is not made of equal characters: `[>      ]`, `|        |`.
    [('[', ']'), ('|', '|')].into_iter().any(|(open, close)| {
        let inner = text
            .split_once(open)
            .and_then(|(_, rest)| rest.split_once(close));
        inner.is_some_and(|(inner, _)| {
            let is_of_bar = |own: char| " .-#=>*o".contains(own) || BLOCKS.contains(own);
            inner.chars().count() > BAR_MIN && inner.chars().all(is_of_bar)
        })
    })
}

/// Reads the first percentage in a line, or else its first fraction.
fn within(text: &str) -> Option<f64> {
    let mut fraction = None;
    let mut before = ' ';
    for (at, character) in text.char_indices() {
        let begins = character.is_ascii_digit() && !(before.is_alphanumeric() || before == '.');
        let is_part = before == '/' || before == ':';
        before = character;
        if !begins || is_part {
            continue;
        }
        let rest = &text[at..];
        if let Some((percent, _)) = leading_percent(rest) {
            return Some(percent);
        }
        if fraction.is_none() {
            fraction = leading_fraction(rest)
                .and_then(|(part, whole, _)| percent_of(part, whole))
                .or_else(|| sizes(rest));
        }
    }
    fraction
}

/// Reads two sizes in the same unit: `1.2/3.4 MB`.
fn sizes(text: &str) -> Option<f64> {
    let (part, rest) = leading_number(text)?;
    let (whole, rest) = leading_number(rest.strip_prefix('/')?)?;
    let unit = rest.trim_start_matches(' ');
    let is_unit = unit.starts_with(|own: char| "kKMGTB".contains(own));
    is_unit.then(|| percent_of(part, whole))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_redrawn: bool) -> Option<f64> {
        let line = Line { text, is_redrawn };
        Bar.read(line)?.percent
    }

    #[test]
    fn the_number_of_a_bar_counts_and_any_other_number_does_not() {
        for (text, expected) in [
            ("[ 12/340] Linking", Some(12.0 / 3.4)),
            ("[45%] Building C object", Some(45.0)),
            ("40/200", Some(20.0)),
            ("40/200 Reading rows", Some(20.0)),
            ("45%", Some(45.0)),
            ("[#####     ] 50%", Some(50.0)),
            ("Reading |██▌  | 50% 3/6", Some(50.0)),
            ("[>         ]  1%", Some(1.0)),
            ("45% of all users are affected", None),
            ("disk usage is 93%", None),
            ("on 27/11/2026", None),
            ("27/11/2026 12:00 started", None),
            ("tests 12/340 passed", None),
            ("[2026-11-27 10:00] 45% used", None),
            ("[1/0]", None),
            ("usr/1/2", None),
        ] {
            assert_eq!(read(text, false), expected, "{text}");
        }
        for (text, expected) in [
            (
                "Receiving objects:  45% (450/1000), 1.20 MiB | 2.00 MiB/s",
                Some(45.0),
            ),
            ("Copying 12/340 files", Some(12.0 / 3.4)),
            ("   ━━━━━━━━ 1.5/3.0 MB 5.6 MB/s eta 0:00:01", Some(50.0)),
            ("Elapsed 00:01/00:02", None),
            ("Working...", None),
            ("/srv/1/2 copied", None),
        ] {
            assert_eq!(read(text.trim(), true), expected, "{text}");
        }
    }
}
