//! How many rows a window of a search has.

use std::time::Duration;

use crate::config::{READ_WINDOW, READ_WINDOW_ROWS, READ_WINDOW_ROWS_MIN};

/// Determines the rows per window, so that a window takes about [`READ_WINDOW`].
pub(in crate::store) struct Pace {
    pub(in crate::store) rows: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            rows: READ_WINDOW_ROWS / 4,
        }
    }
}

impl Pace {
    /// Adapts the rows to the time that a window took.
    pub(in crate::store) fn adapt(&mut self, took: Duration) {
        if took > READ_WINDOW {
            self.rows = (self.rows / 2).max(READ_WINDOW_ROWS_MIN);
        } else if took < READ_WINDOW / 2 {
            self.rows = (self.rows * 2).min(READ_WINDOW_ROWS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_made_smaller_when_its_rows_are_large_and_larger_when_they_are_small() {
        let mut pace = Pace::default();
        for _ in 0..10 {
            pace.adapt(Duration::ZERO);
        }
        assert_eq!(pace.rows, READ_WINDOW_ROWS);
        pace.adapt(READ_WINDOW * 3 / 4);
        assert_eq!(pace.rows, READ_WINDOW_ROWS, "about right");
        for _ in 0..20 {
            pace.adapt(READ_WINDOW * 2);
        }
        assert_eq!(pace.rows, READ_WINDOW_ROWS_MIN);
    }
}
