//! Exact arithmetic on measurements.
//!
//! A measurement is a decimal: 0.1 is a tenth, although no double is exactly a tenth. So a number is read as its shortest
//! decimal notation (the one that JSON uses), is computed with as a fraction, and is rounded once, at the end, to the
//! nearest double. A result that is a short decimal on paper is therefore the same here: the mean of 0.72, 0.60, 0.85,
//! 0.58 and 0.60 is 0.67. Nothing overflows in between, and small numbers are not lost when they are added to large ones.
//!
//! Only roots are inexact, unless the argument is a square; they have [`ROOT_BITS`] bits, more than twice the precision
//! of a double.

use num_bigint::BigInt;
pub(super) use num_rational::BigRational;
use num_traits::{ToPrimitive, Zero};

/// Significant bits of a root.
const ROOT_BITS: u64 = 128;

/// Finite numbers as integer multiples of one power of ten.
pub(super) struct Decimals {
    multiples: Vec<BigInt>,
    exponent: i32,
}

impl Decimals {
    /// Reads finite numbers, each as its shortest decimal notation.
    pub(super) fn new(numbers: &[f64]) -> Decimals {
        let decimals: Vec<(i64, i32)> = numbers.iter().map(|x| digits(*x)).collect();
        let exponents = decimals.iter().map(|(_, exponent)| *exponent);
        let lowest = exponents.min().unwrap_or(0);
        let multiple = |(digits, exponent): (i64, i32)| digits * power_of_ten(exponent - lowest);
        Decimals {
            multiples: decimals.into_iter().map(multiple).collect(),
            exponent: lowest,
        }
    }

    /// Returns their sum.
    pub(super) fn total(&self) -> BigRational {
        scaled(self.multiples.iter().sum(), self.exponent)
    }

    /// Returns the mean of at least one number.
    pub(super) fn mean(&self) -> BigRational {
        let (numerator, denominator) = self.total().into_raw();
        BigRational::new_raw(numerator, denominator * self.multiples.len())
    }

    /// Returns the difference between the largest and the smallest; 0 if there are none.
    pub(super) fn range(&self) -> BigRational {
        let ends = self.multiples.iter().max().zip(self.multiples.iter().min());
        let range = ends.map_or(BigInt::zero(), |(highest, lowest)| highest - lowest);
        scaled(range, self.exponent)
    }

    /// Returns the sample variance of at least two numbers.
    pub(super) fn variance(&self) -> BigRational {
        let count = BigInt::from(self.multiples.len());
        let total: BigInt = self.multiples.iter().sum();
        let squares: BigInt = self.multiples.iter().map(|x| x * x).sum();
        let spread = &count * squares - &total * &total;
        scaled(spread, 2 * self.exponent) / (&count * (&count - 1))
    }
}

/// Reads a finite number as its shortest decimal notation.
pub(super) fn decimal(x: f64) -> BigRational {
    let (digits, exponent) = digits(x);
    scaled(digits.into(), exponent)
}

/// Returns the mean of fractions; `None` if there are none.
pub(super) fn mean(fractions: &[BigRational]) -> Option<BigRational> {
    let sum: BigRational = fractions.iter().sum();
    (!fractions.is_empty()).then(|| sum / BigInt::from(fractions.len()))
}

/// Returns the double nearest to a fraction.
pub(super) fn rounded(fraction: &BigRational) -> f64 {
    fraction.to_f64().expect("a fraction has a nearest double")
}

/// Returns the square root of a non-negative fraction.
pub(super) fn root(fraction: &BigRational) -> BigRational {
    let denominator = fraction.denom();
    // √(a / b) = √(a b) / b.
    let square = fraction.numer() * denominator;
    let whole = square.sqrt();
    if &whole * &whole == square {
        return BigRational::new(whole, denominator.clone());
    }
    let shift = ROOT_BITS.saturating_sub(square.bits() / 2);
    BigRational::new((square << (2 * shift)).sqrt(), denominator << shift)
}

/// Returns digits and a power of ten: a finite number's shortest decimal notation, which has at most 17 digits.
fn digits(x: f64) -> (i64, i32) {
    let text = format!("{x:e}");
    let parsed = text.split_once('e').and_then(|(mantissa, exponent)| {
        let (whole, decimals) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{decimals}").parse().ok()?;
        let exponent: i32 = exponent.parse().ok()?;
        Some((digits, exponent - i32::try_from(decimals.len()).ok()?))
    });
    parsed.expect("a measurement is finite")
}

fn scaled(multiple: BigInt, exponent: i32) -> BigRational {
    match exponent >= 0 {
        true => BigRational::from(multiple * power_of_ten(exponent)),
        // Not reduced: that would cost more than it saves.
        false => BigRational::new_raw(multiple, power_of_ten(-exponent)),
    }
}

fn power_of_ten(exponent: i32) -> BigInt {
    BigInt::from(10).pow(exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fraction(numerator: i64, denominator: i64) -> BigRational {
        BigRational::new(numerator.into(), denominator.into())
    }

    #[test]
    fn a_number_is_what_its_decimal_notation_says() {
        for (x, expected) in [
            (0.1, fraction(1, 10)),
            (-0.1, fraction(-1, 10)),
            (0.0, fraction(0, 1)),
            (-0.0, fraction(0, 1)),
            (74.03, fraction(7403, 100)),
            (1200.0, fraction(1200, 1)),
            (
                0.1 + 0.2,
                fraction(30_000_000_000_000_004, 100_000_000_000_000_000),
            ),
        ] {
            assert_eq!(decimal(x).reduced(), expected, "{x}");
        }
    }

    #[test]
    fn any_number_comes_back_from_its_fraction() {
        for x in [
            0.1,
            98.569_069_463_286_95,
            1e300,
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
            -1.0 / 3.0,
        ] {
            assert_eq!(rounded(&decimal(x)), x);
        }
    }

    #[test]
    fn sums_of_huge_and_tiny_numbers_lose_nothing() {
        let total = |numbers: &[f64]| rounded(&Decimals::new(numbers).total());
        assert_eq!(total(&[1e300, 1e-300, -1e300]), 1e-300);
        assert_eq!(total(&[f64::MAX, f64::MAX, -f64::MAX]), f64::MAX);
        assert_eq!(total(&[0.1; 10]), 1.0);
        assert_eq!(total(&[]), 0.0);
    }

    #[test]
    fn a_root_is_exact_of_a_square_and_the_nearest_double_otherwise() {
        assert_eq!(root(&fraction(49, 10_000)), fraction(7, 100));
        assert_eq!(root(&fraction(8, 18)), fraction(2, 3));
        assert_eq!(root(&fraction(0, 1)), fraction(0, 1));
        for whole in [2, 3, 5, 1_000_003] {
            // The processor rounds the root of an integer correctly.
            assert_eq!(rounded(&root(&fraction(whole, 1))), (whole as f64).sqrt());
        }
        let expected = "1.414213562373095048801688724e-150".parse();
        assert_eq!(Ok(rounded(&root(&decimal(2e-300)))), expected);
    }
}
