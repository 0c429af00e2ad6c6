//! Numbers of one type as those of another where the standard library has no fallible conversion.

/// A double without its fraction. Beyond the integer's range its nearest end; 0 for what is no number.
#[expect(
    clippy::cast_possible_truncation,
    reason = "`as` between these types saturates, which is what is asked for"
)]
pub(crate) const fn whole(double: f64) -> i64 {
    double as i64
}

/// The same, and 0 for what is below 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` between these types saturates, which is what is asked for"
)]
pub(crate) const fn whole_unsigned(double: f64) -> u64 {
    double as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_the_nearest_that_is_not() {
        assert_eq!([-1.9, 1.9, f64::NAN].map(whole), [-1, 1, 0]);
        assert_eq!([f64::MIN, f64::MAX].map(whole), [i64::MIN, i64::MAX]);
        assert_eq!([-1.9, 1.9, f64::NAN].map(whole_unsigned), [0, 1, 0]);
        assert_eq!(whole_unsigned(f64::INFINITY), u64::MAX);
    }
}
