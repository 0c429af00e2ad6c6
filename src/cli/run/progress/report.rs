//! Reads what a script reports on purpose: `40/200 Reading rows`, `40 of 200`, `20%`, `20`, or only a message.

use super::figure::{Figure, Value};
use super::stated;

/// Reads a text that a script reports. Returns the percentage with which it begins, and the message. If the number is not progress, all
/// of the text is the message.
pub(super) fn report(text: &str) -> (Option<f64>, &str) {
    let text = text.trim();
    if let Some(figure) = Figure::leading(text) {
        let is_in_words = matches!(
            figure.value,
            Value::Count {
                is_in_words: true,
                ..
            }
        );
        let is_word = figure.after.starts_with(char::is_alphanumeric);
        return match figure.value.percent().filter(|_| figure.is_reported()) {
            Some(_) if is_word => (None, text),
            // `rows` says less than `40 of 200 rows`.
            Some(percent) if is_in_words && !figure.is_alone() => (Some(percent), text),
            Some(percent) => {
                let message = figure.after.trim_start().trim_start_matches(':');
                (Some(percent), message.trim_start())
            }
            None => (None, text),
        };
    }
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => (Some(percent), ""),
        _ => (None, text),
    }
}

/// Reads the arguments of a report. If the first one is only a number, it is the progress, and the others are the message. Otherwise all
/// of them are one text.
pub(in crate::cli) fn reported(first: &str, others: &str) -> (Option<f64>, String) {
    let words = format!("{} {others}", first.trim());
    let words = words.trim();
    // `40 of 200` can be three arguments.
    let continues = Figure::leading(words)
        .is_some_and(|figure| words.len() - figure.after.len() > first.trim().len());
    if !continues && let (Some(percent), "") = report(first) {
        return (Some(percent), others.trim().to_owned());
    }
    let (percent, message) = report(words);
    (percent.or_else(|| stated(words)), message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reports_a_fraction_a_percentage_or_a_message() {
        for (text, expected) in [
            ("40/200 Reading rows", (Some(20.0), "Reading rows")),
            ("40/200: Reading rows", (Some(20.0), "Reading rows")),
            ("15/50 Reading rows", (Some(30.0), "Reading rows")),
            (
                "40/200 Running the tests",
                (Some(20.0), "Running the tests"),
            ),
            ("1,500/3,000", (Some(50.0), "")),
            ("3/10", (Some(30.0), "")),
            ("3 of 10", (Some(30.0), "")),
            ("20%", (Some(20.0), "")),
            ("20% Reading rows", (Some(20.0), "Reading rows")),
            ("20%Reading", (None, "20%Reading")),
            ("40 of 200 rows", (Some(20.0), "40 of 200 rows")),
            (" 12.5 % done", (Some(12.5), "done")),
            ("12,5 %", (Some(12.5), "")),
            ("12,5\u{202f}%", (Some(12.5), "")),
            ("1,050%", (None, "1,050%")),
            ("7", (Some(7.0), "")),
            ("300/200 x", (None, "300/200 x")),
            ("0/0", (None, "0/0")),
            ("101%", (None, "101%")),
            ("27/11/2026", (None, "27/11/2026")),
            ("Reading 3/4", (None, "Reading 3/4")),
            ("NaN", (None, "NaN")),
            ("-1", (None, "-1")),
        ] {
            assert_eq!(report(text), expected, "{text}");
        }
    }

    #[test]
    fn a_date_a_measure_or_a_statement_is_only_a_message() {
        for text in [
            "3/4 inch pipes",
            "15/16 inch pipes",
            "11/28 backup started",
            "11/28: backup started",
            "3 of 10 files failed",
            "2 of 3 people agree",
            "150 of 200 people agree",
            "150/200 of the people agree",
            "100% of users agree",
            "45% used",
            "40/200 failed",
            "2/8 (running)",
        ] {
            assert_eq!(reported(text, ""), (None, text.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_number_that_is_an_argument_of_its_own_counts_whatever_follows() {
        for (first, others, percent, message) in [
            ("40/200", "Reading rows", Some(20.0), "Reading rows"),
            ("3/4", "inch pipes", Some(75.0), "inch pipes"),
            ("32%", "of all rows", Some(32.0), "of all rows"),
            ("31", "Reading rows", Some(31.0), "Reading rows"),
            ("30", "of 100", Some(30.0), ""),
            ("30", "of 100 rows", Some(30.0), "30 of 100 rows"),
            ("3", "of 10 files failed", None, "3 of 10 files failed"),
            ("20", "% Reading rows", Some(20.0), "Reading rows"),
            ("Step", "3/10", Some(30.0), "Step 3/10"),
            ("(3/10)", "Reading rows", Some(30.0), "(3/10) Reading rows"),
            ("Files:", "90%", None, "Files: 90%"),
        ] {
            let expected = (percent, message.to_owned());
            assert_eq!(reported(first, others), expected, "{first} {others}");
        }
    }
}
