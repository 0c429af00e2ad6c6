//! What the log is told of something that fails over and over: the first failure, then how many there have been, once in a
//! while. On a full disk thousands of commits fail in a second, and each line about one would need room, too.

use std::time::Instant;

use crate::config::FAILURES_LOG_PERIOD;

/// How often something has failed since it worked last.
#[derive(Default)]
pub(crate) struct Failures {
    /// None while it works.
    row: Option<Row>,
}

/// Failures without a success in between.
struct Row {
    count: u64,
    told_at: Instant,
}

impl Failures {
    /// Notes that it failed. Returns how often it has in a row, if that is to be told.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<u64> {
        let Some(row) = &mut self.row else {
            self.row = Some(Row {
                count: 1,
                told_at: now,
            });
            return Some(1);
        };
        row.count += 1;
        if now.saturating_duration_since(row.told_at) < FAILURES_LOG_PERIOD {
            return None;
        }
        row.told_at = now;
        Some(row.count)
    }

    /// Notes that it worked. Returns how often it had failed, if it had.
    pub(crate) fn worked(&mut self) -> Option<u64> {
        self.row.take().map(|row| row.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_told_at_first_then_once_a_period_and_when_they_are_over() {
        let mut failures = Failures::default();
        let start = Instant::now();
        assert_eq!(failures.worked(), None);
        let told: Vec<_> = (0..100).filter_map(|_| failures.failed(start)).collect();
        assert_eq!(told, [1]);
        assert_eq!(failures.failed(start + FAILURES_LOG_PERIOD), Some(101));
        assert_eq!(failures.failed(start + FAILURES_LOG_PERIOD), None);
        assert_eq!(failures.worked(), Some(102));
        assert_eq!(failures.worked(), None);
        assert_eq!(failures.failed(start), Some(1), "another row");
    }
}
