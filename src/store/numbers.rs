//! The integers of SQL are signed; what is counted and numbered here never is.
//!
//! Numbers of events, and counts, are below 2^63: a cursor with a larger one cannot be read (`id.rs`), and settings are
//! bounded (`config/ranges.rs`).

/// A number as a column has it. One that no column can hold stands for the largest, as in "no limit".
pub(in crate::store) fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// A column that counts. Only a damaged database has less than nothing.
pub(in crate::store) fn unsigned(column: i64) -> u64 {
    u64::try_from(column).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_no_column_holds_is_the_largest_and_less_than_nothing_is_nothing() {
        assert_eq!(signed(7_usize), 7);
        assert_eq!(signed(u64::MAX), i64::MAX);
        assert_eq!(unsigned(7), 7);
        assert_eq!(unsigned(-1), 0);
    }
}
