//! Conversions between the integers of SQL, which are signed, and numbers and counts, which are never negative.
//!
//! Numbers of events, and counts, are below 2^63: a cursor with a larger number is rejected (`id.rs`), and settings are
//! bounded (`config/ranges.rs`).

/// Converts a number to a column's value. A number that is too large for a column, as in "no limit", becomes the largest.
pub(in crate::store) fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

/// Converts a column's value to a number. A negative value, which only a damaged database contains, becomes 0.
pub(in crate::store) fn unsigned(column: i64) -> u64 {
    u64::try_from(column).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_too_large_for_a_column_is_the_largest_and_a_negative_value_is_0() {
        assert_eq!(signed(7_usize), 7);
        assert_eq!(signed(u64::MAX), i64::MAX);
        assert_eq!(unsigned(7), 7);
        assert_eq!(unsigned(-1), 0);
    }
}
