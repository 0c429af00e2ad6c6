//! Limits the log lines about repeated failures: the first failure is logged at once, and then the number of failures
//! at intervals. On a full disk, thousands of commits fail in a second, and each log line would need disk space, too.

use std::time::Instant;

use crate::config::FAILURES_LOG_PERIOD;

/// Counts consecutive failures of something.
#[derive(Default)]
pub(crate) struct Failures {
    /// `None` after a success.
    row: Option<Row>,
}

/// Failures without a success in between.
struct Row {
    count: u64,
    logged_at: Instant,
}

impl Failures {
    /// Records a failure. Returns the number of consecutive failures if it should be logged now.
    pub(crate) fn failed(&mut self, now: Instant) -> Option<u64> {
        let Some(row) = &mut self.row else {
            self.row = Some(Row {
                count: 1,
                logged_at: now,
            });
            return Some(1);
        };
        row.count += 1;
        if now.saturating_duration_since(row.logged_at) < FAILURES_LOG_PERIOD {
            return None;
        }
        row.logged_at = now;
        Some(row.count)
    }

    /// Records a success. Returns the number of failures before it, if there were any.
    pub(crate) fn worked(&mut self) -> Option<u64> {
        self.row.take().map(|row| row.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_reported_first_then_once_a_period_and_when_they_end() {
        let mut failures = Failures::default();
        let start = Instant::now();
        assert_eq!(failures.worked(), None);
        let reported: Vec<_> = (0..100).filter_map(|_| failures.failed(start)).collect();
        assert_eq!(reported, [1]);
        assert_eq!(failures.failed(start + FAILURES_LOG_PERIOD), Some(101));
        assert_eq!(failures.failed(start + FAILURES_LOG_PERIOD), None);
        assert_eq!(failures.worked(), Some(102));
        assert_eq!(failures.worked(), None);
        assert_eq!(failures.failed(start), Some(1), "another row");
    }
}
