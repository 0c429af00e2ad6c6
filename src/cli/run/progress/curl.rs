//! curl: the rows of its table, which are redrawn below its heading. The bar of `curl -#` is read like any bar.

use super::{Family, Line, Reading};

/// The beginning of the heading.
const HEADING: &str = "% Total    % Received % Xferd";
/// The columns of a row.
const COLUMNS: usize = 12;

/// Reads curl's table.
#[derive(Default)]
pub(super) struct Curl {
    has_heading: bool,
}

impl Family for Curl {
    fn read(&mut self, line: Line<'_>) -> Option<Reading> {
        if line.text.starts_with(HEADING) {
            self.has_heading = true;
            return Some(Reading::default());
        }
        let columns: Vec<&str> = line.text.split_whitespace().collect();
        if !self.has_heading || columns.len() != COLUMNS || !columns[8..11].iter().all(is_clock) {
            return None;
        }
        let percent: f64 = columns[0].parse().ok()?;
        // A total size of 0 means unknown.
        let is_known = (0.0..=100.0).contains(&percent) && columns[1] != "0";
        let received = format!("{} of {} received", columns[3], columns[1]);
        Some(Reading {
            percent: is_known.then_some(percent),
            message: is_known.then_some(received),
        })
    }
}

/// Whether a column is a time such as `0:00:10`, or an unknown one (`--:--:--`).
fn is_clock(column: &&str) -> bool {
    column.split(':').count() == 3
}
