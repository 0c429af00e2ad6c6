//! The factors of control charts: how the range and the standard deviation of a small sample relate to sigma.
//!
//! Source: D. C. Montgomery, "Introduction to Statistical Quality Control", Appendix VI, "Factors for Constructing
//! Variables Control Charts"; ASTM MNL 7, "Manual on Presentation of Data and Control Chart Analysis", and the SPC manual
//! of the AIAG contain the same table. The factors are used as printed, so that limits match manual calculations.
//! Editions differ by one in the last digit of D3 and D4.

use std::ops::RangeInclusive;

/// The sizes of subgroups for which the factors are tabulated.
pub(super) const SIZES: RangeInclusive<usize> = 2..=25;

/// Factors for subgroups of one size.
#[derive(Debug, Clone, Copy)]
pub(super) struct Factors {
    /// The mean range of values from a normal distribution with a standard deviation of 1.
    pub(super) d2: f64,
    /// Their mean standard deviation.
    pub(super) c4: f64,
    /// D3 and D4: the limits of ranges, as multiples of their mean.
    pub(super) range: (f64, f64),
    /// B3 and B4: the limits of standard deviations, as multiples of their mean.
    pub(super) deviation: (f64, f64),
}

/// d2, c4, D3, D4, B3 and B4, by the size of the subgroup, starting at 2.
const TABLE: [[f64; 6]; 24] = [
    [1.128, 0.7979, 0.0, 3.267, 0.0, 3.267],
    [1.693, 0.8862, 0.0, 2.574, 0.0, 2.568],
    [2.059, 0.9213, 0.0, 2.282, 0.0, 2.266],
    [2.326, 0.9400, 0.0, 2.114, 0.0, 2.089],
    [2.534, 0.9515, 0.0, 2.004, 0.030, 1.970],
    [2.704, 0.9594, 0.076, 1.924, 0.118, 1.882],
    [2.847, 0.9650, 0.136, 1.864, 0.185, 1.815],
    [2.970, 0.9693, 0.184, 1.816, 0.239, 1.761],
    [3.078, 0.9727, 0.223, 1.777, 0.284, 1.716],
    [3.173, 0.9754, 0.256, 1.744, 0.321, 1.679],
    [3.258, 0.9776, 0.283, 1.717, 0.354, 1.646],
    [3.336, 0.9794, 0.307, 1.693, 0.382, 1.618],
    [3.407, 0.9810, 0.328, 1.672, 0.406, 1.594],
    [3.472, 0.9823, 0.347, 1.653, 0.428, 1.572],
    [3.532, 0.9835, 0.363, 1.637, 0.448, 1.552],
    [3.588, 0.9845, 0.378, 1.622, 0.466, 1.534],
    [3.640, 0.9854, 0.391, 1.608, 0.482, 1.518],
    [3.689, 0.9862, 0.403, 1.597, 0.497, 1.503],
    [3.735, 0.9869, 0.415, 1.585, 0.510, 1.490],
    [3.778, 0.9876, 0.425, 1.575, 0.523, 1.477],
    [3.819, 0.9882, 0.434, 1.566, 0.534, 1.466],
    [3.858, 0.9887, 0.443, 1.557, 0.545, 1.455],
    [3.895, 0.9892, 0.451, 1.548, 0.555, 1.445],
    [3.931, 0.9896, 0.459, 1.541, 0.565, 1.435],
];

/// Returns the factors for subgroups of this size; `None` for sizes outside [`SIZES`].
pub(super) fn factors(size: usize) -> Option<Factors> {
    let row = TABLE.get(size.checked_sub(*SIZES.start())?)?;
    let [
        d2,
        c4,
        range_lower,
        range_upper,
        deviation_lower,
        deviation_upper,
    ] = *row;
    Some(Factors {
        d2,
        c4,
        range: (range_lower, range_upper),
        deviation: (deviation_lower, deviation_upper),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(tabulated: f64, derived: f64, tolerance: f64, what: &str) {
        let distance = (tabulated - derived).abs();
        assert!(distance <= tolerance, "{what}: {tabulated} is {derived}");
    }

    /// Mean and standard deviation of the range of `size` standard normal values (d2 and d3), integrated by the midpoint
    /// rule: E[W] = ∫ 1 - F^n - (1 - F)^n, E[W²] = 2 ∫∫ 1 - F(y)^n - (1 - F(x))^n + (F(y) - F(x))^n over x < y. F, the
    /// distribution function, is accumulated in the same loop.
    fn integrated_range(size: usize) -> (f64, f64) {
        const STEP: f64 = 0.01;
        let power = i32::try_from(size).unwrap();
        let mut below = 0.0_f64;
        let mut distribution = Vec::new();
        for index in -800..800 {
            let x = (f64::from(index) + 0.5) * STEP;
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            distribution.push(below + density * STEP / 2.0);
            below += density * STEP;
        }
        let neither = |low: f64, high: f64| {
            1.0 - high.powi(power) - (1.0 - low).powi(power) + (high - low).powi(power)
        };
        let (mut mean, mut square) = (0.0, 0.0);
        for (index, high) in distribution.iter().enumerate() {
            mean += neither(*high, *high) * STEP;
            let before = distribution[..index].iter();
            let column: f64 = before.map(|low| neither(*low, *high)).sum();
            // In half of the cell on the diagonal, x < y.
            square += 2.0 * (column + neither(*high, *high) / 2.0) * STEP * STEP;
        }
        (mean, (square - mean * mean).sqrt())
    }

    #[test]
    fn each_tabulated_factor_of_ranges_is_what_the_normal_distribution_gives() {
        for size in SIZES {
            let factors = factors(size).unwrap();
            let (d2, d3) = integrated_range(size);
            assert_near(factors.d2, d2, 0.6e-3, "d2");
            // The printed D3 and D4 were computed from rounded factors.
            assert_near(factors.range.0, (1.0 - 3.0 * d3 / d2).max(0.0), 1e-3, "D3");
            assert_near(factors.range.1, 1.0 + 3.0 * d3 / d2, 1e-3, "D4");
        }
    }

    /// c4(2) = √(2 / π), and c4(n) c4(n + 1) = √((n - 1) / n).
    #[test]
    fn each_tabulated_factor_of_deviations_is_what_the_normal_distribution_gives() {
        let mut c4 = (2.0 / std::f64::consts::PI).sqrt();
        for size in SIZES {
            let factors = factors(size).unwrap();
            let reach = 3.0 * (1.0 - c4 * c4).sqrt() / c4;
            assert_near(factors.c4, c4, 0.5e-4, "c4");
            assert_near(factors.deviation.0, (1.0 - reach).max(0.0), 0.5e-3, "B3");
            assert_near(factors.deviation.1, 1.0 + reach, 0.5e-3, "B4");
            let count = size as f64;
            c4 = ((count - 1.0) / count).sqrt() / c4;
        }
    }

    #[test]
    fn there_are_factors_for_subgroups_of_2_to_25_only() {
        for size in [0, 1, 26, usize::MAX] {
            assert!(factors(size).is_none(), "{size}");
        }
        assert_eq!(SIZES.count(), TABLE.len());
    }
}
