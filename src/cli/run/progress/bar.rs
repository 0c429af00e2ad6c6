//! Bars and counts of unknown programs: `[ 12/340] Linking`, `40/200`, `40 of 200`, `Step 3/10`, `45%`, `Progress: 45%`, `[#####     ]
//! 45%`.
//!
//! A text can contain any number, so a number counts only where bars have theirs: alone, in brackets at one end of a line, after a label
//! that names progress, next to a drawn bar, or in a line that is redrawn in place. A fraction that could also be a date or a measure
//! (`3/10`, `3/4 inch`) counts once it has grown towards the same total.

use super::figure::{Certainty, Figure, Value, without_log_prefix};
use super::number::{leading_number, percent_of};
use super::{Family, Line, Reading};

/// The characters of drawn bars, other than ASCII.
const BLOCKS: &str = "█▉▊▋▌▍▎▏▓▒░■□▪▫━─╸╺╾╼●○◉⣿⣀⬛⬜▰▱";
/// The least number of equal characters that look like a bar.
const BAR_MIN: usize = 3;

/// Reads bars and counts.
#[derive(Default)]
pub(super) struct Bar {
    /// The newest count.
    last: Option<Count>,
}

/// A count, by which the next one of the same total is recognised.
struct Count {
    /// The text before it in its line, without digits.
    label: String,
    part: f64,
    whole: f64,
}

impl Family for Bar {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        let text = without_log_prefix(line.text);
        let percent = self.counted(text).or_else(|| {
            (line.is_redrawn || has_bar(text))
                .then(|| within(text, line.is_redrawn))
                .flatten()
        })?;
        Some(Reading::at(percent))
    }
}

impl Bar {
    /// Reads the first figure that is certainly progress, by itself or because it is higher than the last count.
    fn counted(&mut self, text: &str) -> Option<f64> {
        let mut is_first_count = true;
        for figure in Figure::all(text) {
            let mut certainty = figure.certainty();
            if let Value::Count { part, whole, .. } = figure.value
                && std::mem::take(&mut is_first_count)
                && certainty != Certainty::No
                && self.grows(figure.before, part, whole)
            {
                certainty = Certainty::Sure;
            }
            if certainty == Certainty::Sure {
                return figure.value.percent();
            }
        }
        None
    }

    /// Whether a count is higher than the last one, with the same label and total. Remembers it as the last one.
    fn grows(&mut self, before: &str, part: f64, whole: f64) -> bool {
        let label: String = before.chars().filter(|c| !c.is_ascii_digit()).collect();
        let grows = self.last.as_ref().is_some_and(|last| {
            last.label == label && last.whole.total_cmp(&whole).is_eq() && last.part < part
        });
        self.last = Some(Count { label, part, whole });
        grows
    }
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
            let is_of_bar = |c: char| " .-#=>*o".contains(c) || BLOCKS.contains(c);
            inner.chars().count() > BAR_MIN && inner.chars().all(is_of_bar)
        })
    })
}

/// Reads the first percentage in a line, or else its first fraction. A line that is not redrawn can also be a heading of words.
fn within(text: &str, is_redrawn: bool) -> Option<f64> {
    let figures = || Figure::all(text).filter(|figure| is_redrawn || !figure.is_in_sentence());
    let percent = figures().find(|figure| matches!(figure.value, Value::Percent(_)));
    let figure = percent.or_else(|| {
        let is_fraction = |figure: &Figure<'_>| {
            matches!(figure.value, Value::Count { is_in_words, .. } if is_redrawn || !is_in_words)
        };
        figures().find(is_fraction)
    });
    match figure {
        Some(figure) => figure.value.percent(),
        None => text
            .char_indices()
            .filter(|(at, c)| c.is_ascii_digit() && text[..*at].ends_with(' '))
            .find_map(|(at, _)| sizes(&text[at..])),
    }
}

/// Reads two sizes in the same unit: `1.2/3.4 MB`.
fn sizes(text: &str) -> Option<f64> {
    let (part, rest) = leading_number(text)?;
    let (whole, rest) = leading_number(rest.strip_prefix('/')?)?;
    let unit = rest.trim_start_matches(' ');
    let is_unit = unit.starts_with(|c: char| "kKMGTB".contains(c));
    is_unit.then(|| percent_of(part, whole))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, is_redrawn: bool) -> Option<f64> {
        let line = Line { text, is_redrawn };
        Bar::default().read(line)?.percent
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
            ("=== 45% of users agree ===", None),
            ("### 100% of users", None),
            ("===== 3/4 inch =====", None),
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

    #[test]
    fn a_count_or_percentage_by_itself_or_after_a_label_that_names_progress_counts() {
        for (text, expected) in [
            ("40 of 200", 20.0),
            ("40 out of 200", 20.0),
            ("3 of 10", 30.0),
            ("40 of 200 rows", 20.0),
            ("40 of 200: customers.csv", 20.0),
            ("(3/10)", 30.0),
            ("(3/10) Installing tidings", 30.0),
            ("(3 of 10)", 30.0),
            ("(45%)", 45.0),
            ("[3 of 10]", 30.0),
            ("1,500 of 3,000", 50.0),
            ("0/10", 0.0),
            ("40/50", 80.0),
            ("12,5 %", 12.5),
            ("12,5%", 12.5),
            ("45\u{a0}%", 45.0),
            ("45% done", 45.0),
            ("45% complete.", 45.0),
            ("45% (450/1000)", 45.0),
            ("45%, 10 s left", 45.0),
            ("Processed files: 3/10", 30.0),
            ("Processed files: 45%", 45.0),
            ("Files processed: 3/10", 30.0),
            ("Files processed: 45%", 45.0),
            ("Total files: 3/10", 30.0),
            ("Total files processed: 3/10", 30.0),
            ("[3/10] Running the tests", 30.0),
            ("Step 3/10: Running the tests", 30.0),
            ("Step 3/10: running", 30.0),
            ("Step 3/10", 30.0),
            ("Step 3/10 : RUN make", 30.0),
            ("STEP 3/10: RUN make", 30.0),
            ("step 3 of 10", 30.0),
            ("Step #3 of 10 - build", 30.0),
            ("Epoch 3/10", 30.0),
            ("Page 3/10...", 30.0),
            ("Progress: 45%", 45.0),
            ("progress 45%", 45.0),
            ("Progress: 12,5 %", 12.5),
            ("Progress: 40/200", 20.0),
            ("Progress: 45% complete", 45.0),
            ("Overall progress = 45.5%", 45.5),
            ("Done: 45%", 45.0),
            ("Progress:45%", 45.0),
            ("progress=45%", 45.0),
            ("Iteration 12/50, loss=0.3", 24.0),
            (">>> 40/200 <<<", 20.0),
            ("Completed 40 of 200", 20.0),
            ("Processed 40 of 200 rows", 20.0),
            ("Copying big.iso... 45%", 45.0),
            ("Processing file 3 of 10: a.txt", 30.0),
            ("Uploading (3/50)", 6.0),
            ("[download]  45.2% of 10.00MiB at 1.00MiB/s ETA 00:05", 45.2),
            ("tests/test_rows.py ......    [ 45%]", 45.0),
            ("2026-11-27 10:00:01,123 INFO Step 3/10", 30.0),
            ("INFO:root:Progress: 45%", 45.0),
            ("[10:00:01] 45%", 45.0),
            ("tests/test_memory.py::test_load FAILED [ 45%]", 45.0),
            ("=> [3/10] RUN make", 30.0),
            ("- 45%", 45.0),
            ("shred: secret: pass 1/5 (random)...", 20.0),
        ] {
            assert_eq!(read(text, false), Some(expected), "{text}");
        }
    }

    #[test]
    fn numbers_of_a_sentence_a_date_a_measure_a_version_or_a_path_do_not_count() {
        for text in [
            "Failed files: 3/10",
            "Remaining rows: 40/200",
            "Files: 45% used",
            "Files 45%",
            "Files: 45%",
            "Rows: 40/200",
            "Batches: 3 of 10",
            "Requests: 45/60",
            "Requests: 45/60 allowed",
            "Blocks: 87%",
            "Modules: 92.3%",
            "Partitions: 80%",
            "Total partitions: 80%",
            "lines=350/400",
            "Total lines: 350/400",
            "Jobs: 2/8 (running)",
            "Step 150/200 running",
            "Tests: 10/12",
            "Rows: 3/4 are valid",
            "Tests: 12/340 passed",
            "Tests: 93%",
            "Lines        : 87.5% ( 350/400 )",
            "150 of 200 remaining",
            "160/200 left",
            "3 of 4 failed",
            "5 of 5 errors",
            "Running at 45%",
            "Throttling CPU to 45%",
            "Charging: 45%",
            "Building coverage: 87%",
            "Retrying 2/20",
            "CPU [45%]",
            "Coverage [93%]",
            "3/4 inch",
            "3/4\"",
            "27/64 drill",
            "11/28",
            "11/28 backup started",
            "Backup of 11/28",
            "Starting 11/28",
            "Meeting on Friday (11/28)",
            "28/11/2026",
            "2026/11/28",
            "about 3/4 of all users agree",
            "2/3 of them",
            "150/200 of the people agree",
            "3 of 4 people agree",
            "they ate 3 of 4 pies",
            "100% of users agree",
            "100% cotton",
            "45% off",
            "up by 45%",
            "+45%",
            "-45%",
            "Disk usage: 93%",
            "CPU: 45%",
            "Warning: 45%",
            "Remaining: 45%",
            "Using 45% of memory",
            "Coverage 93%",
            "version 3/4",
            "Python 3.11/3.12",
            "HTTP/1.1 200",
            "v1/2",
            "/srv/40/200",
            "src/40/200 copied",
            "https://tidings.example/40/200",
            "192.168.0.1/24",
            "24/7 support",
            "50/50 split",
            "40/200.5",
            "101%",
            "1,050%",
        ] {
            assert_eq!(read(text, false), None, "{text}");
        }
    }

    #[test]
    fn a_count_that_can_be_something_else_counts_once_it_grows() {
        let read = |texts: &[&str]| -> Vec<Option<f64>> {
            let mut bar = Bar::default();
            let mut percents = Vec::new();
            for text in texts {
                let line = Line {
                    text,
                    is_redrawn: false,
                };
                percents.push(bar.read(line).and_then(|reading| reading.percent));
            }
            percents
        };
        assert_eq!(read(&["1/8", "2/8", "3/8"]), [None, Some(25.0), Some(37.5)]);
        assert_eq!(read(&["0/8", "1/8"]), [Some(0.0), Some(12.5)]);
        assert_eq!(
            read(&["tests 3/40 passed", "tests 4/40 passed"]),
            [None, Some(10.0)]
        );
        assert_eq!(
            read(&["#5 [stage-1 1/4] FROM", "#6 [stage-1 2/4] RUN"]),
            [None, Some(50.0)]
        );
        assert_eq!(read(&["Rows: 40/200", "Rows: 41/200"]), [None, Some(20.5)]);
        assert_eq!(read(&["rows=1/8", "rows=2/8"]), [None, Some(25.0)]);
        for texts in [
            ["Jobs: 2/8 (running)", "Jobs: 3/8 (running)"],
            ["Blocks: 87%", "Blocks: 88%"],
            ["3/4 inch", "7/8 inch"],
            ["3/4 inch", "3/4 inch"],
            ["on 11/28", "on 11/29"],
            ["Sent 3/4 pages", "Read 4/4 pages"],
            ["4/8 left", "3/8 left"],
        ] {
            assert_eq!(read(&texts), [None, None], "{texts:?}");
        }
    }
}
