//! A control chart's limits, its zones, and how both are computed from in-control data.
//!
//! A Shewhart chart has a center line and two control limits three sigma away from it. Sigma is
//! estimated from the short-term variation only (moving ranges, or ranges within subgroups): the
//! overall standard deviation would take in the very shifts that the chart shall show.
//!
//! The zones C, B and A are the bands of one, two and three sigma. They are found by comparison
//! with thresholds and never by division by sigma, so that a chart without any width is no special
//! case. The tests that look at several points are in [`nelson`](super::nelson). Not here: range
//! and standard deviation charts, and attribute charts (p, np, c, u).

/// The largest subgroup that the d2 constants are tabulated for.
pub const SUBGROUP_MAX: usize = 25;

/// How much rounding changes a number, at most, as a part of it.
const ROUNDING: f64 = 1e-12;

/// The smallest subgroup that has a range.
const SUBGROUP_MIN: usize = 2;

/// d2, the mean range of n values from a normal distribution of standard deviation 1, for n from
/// [`SUBGROUP_MIN`] to [`SUBGROUP_MAX`]: a mean range divided by d2(n) estimates sigma.
///
/// Source: ASTM MNL 7, "Manual on Presentation of Data and Control Chart Analysis", factors for
/// control limits; the same table is in D. C. Montgomery, "Introduction to Statistical Quality
/// Control", Appendix VI, "Factors for Constructing Variables Control Charts".
const D2: [f64; SUBGROUP_MAX - SUBGROUP_MIN + 1] = [
    1.128, 1.693, 2.059, 2.326, 2.534, 2.704, 2.847, 2.970, // 2 to 9
    3.078, 3.173, 3.258, 3.336, 3.407, 3.472, 3.532, 3.588, // 10 to 17
    3.640, 3.689, 3.735, 3.778, 3.819, 3.858, 3.895, 3.931, // 18 to 25
];

/// Center line and control limits, in the unit of the points on the chart.
///
/// `lcl <= center_line <= ucl`. The limits need not be symmetric: a sigma above the center line is a
/// third of the way to `ucl`, a sigma below it a third of the way to `lcl`. Where there is no limit on
/// one side, it is infinitely far away, and so are that side's zones B and A.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ControlLimits {
    /// The process mean.
    pub center_line: f64,
    /// Upper control limit, three sigma above the center line.
    pub ucl: f64,
    /// Lower control limit, three sigma below the center line.
    pub lcl: f64,
}

impl ControlLimits {
    /// The zone that the finite `x` lies in. A point on a boundary belongs to the inner zone, so
    /// that only a point past a control limit is beyond it; one on the center line is in the upper
    /// zone C.
    ///
    /// On a chart without width every point off the center line is beyond a limit.
    pub fn zone(&self, x: f64) -> Zone {
        if x > self.ucl {
            Zone::BeyondUcl
        } else if x > self.above(2.0) {
            Zone::ZoneAUpper
        } else if x > self.above(1.0) {
            Zone::ZoneBUpper
        } else if x >= self.center_line {
            Zone::ZoneCUpper
        } else if x >= self.below(1.0) {
            Zone::ZoneCLower
        } else if x >= self.below(2.0) {
            Zone::ZoneBLower
        } else if x >= self.lcl {
            Zone::ZoneALower
        } else {
            Zone::BeyondLcl
        }
    }

    /// The upper control limit, if there is one.
    pub fn upper(&self) -> Option<f64> {
        Some(self.ucl).filter(|line| line.is_finite())
    }

    /// The lower control limit, if there is one.
    pub fn lower(&self) -> Option<f64> {
        Some(self.lcl).filter(|line| line.is_finite())
    }

    /// Whether there is nothing between the limits, or between the center line and the only limit: nothing could be judged
    /// by them. What rounding makes of nothing counts as nothing.
    pub fn are_without_width(&self) -> bool {
        let (upper, lower) = (
            self.upper().unwrap_or(self.center_line),
            self.lower().unwrap_or(self.center_line),
        );
        upper - lower <= ROUNDING * upper.abs().max(lower.abs())
    }

    fn above(&self, sigmas: f64) -> f64 {
        self.center_line + (self.ucl - self.center_line) * sigmas / 3.0
    }

    fn below(&self, sigmas: f64) -> f64 {
        self.center_line - (self.center_line - self.lcl) * sigmas / 3.0
    }

    /// The limits three of these sigmas away from `center_line`, if they are numbers at all.
    fn symmetric(center_line: f64, sigma: f64) -> Option<ControlLimits> {
        let limits = ControlLimits {
            center_line,
            ucl: center_line + 3.0 * sigma,
            lcl: center_line - 3.0 * sigma,
        };
        // A center line that is not finite leaves no finite limit either.
        (limits.ucl.is_finite() && limits.lcl.is_finite()).then_some(limits)
    }
}

/// Where a point lies on its chart, from the top to the bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Zone {
    BeyondUcl,
    /// Above two sigma, up to the upper control limit.
    ZoneAUpper,
    /// Above one sigma, up to two.
    ZoneBUpper,
    /// From the center line up to one sigma.
    ZoneCUpper,
    ZoneCLower,
    ZoneBLower,
    ZoneALower,
    BeyondLcl,
}

impl Zone {
    /// All zones, from the top to the bottom.
    pub const ALL: [Zone; 8] = [
        Zone::BeyondUcl,
        Zone::ZoneAUpper,
        Zone::ZoneBUpper,
        Zone::ZoneCUpper,
        Zone::ZoneCLower,
        Zone::ZoneBLower,
        Zone::ZoneALower,
        Zone::BeyondLcl,
    ];

    /// The zone's name on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Zone::BeyondUcl => "beyond_ucl",
            Zone::ZoneAUpper => "zone_a_upper",
            Zone::ZoneBUpper => "zone_b_upper",
            Zone::ZoneCUpper => "zone_c_upper",
            Zone::ZoneCLower => "zone_c_lower",
            Zone::ZoneBLower => "zone_b_lower",
            Zone::ZoneALower => "zone_a_lower",
            Zone::BeyondLcl => "beyond_lcl",
        }
    }

    /// The zone of this name, as [`as_str`](Zone::as_str) gives it.
    pub fn parse(name: &str) -> Option<Zone> {
        Zone::ALL.into_iter().find(|zone| zone.as_str() == name)
    }
}

/// Limits of an individuals chart (X of an X-mR chart): sigma is the mean moving range of two
/// successive values over d2(2). Nothing for fewer than two values, nor if the result is not finite.
pub fn moving_range(values: &[f64]) -> Option<ControlLimits> {
    let ranges = values.windows(2).map(|pair| (pair[1] - pair[0]).abs());
    let mean_range = mean(ranges)?;
    ControlLimits::symmetric(mean(values.iter().copied())?, mean_range / d2(2)?)
}

/// Limits of an X-bar chart with sigma from the ranges (X-bar/R). Each item is the mean and the
/// range of one subgroup of `size` values. Nothing without a subgroup, for a `size` outside 2 to
/// [`SUBGROUP_MAX`], nor if the result is not finite.
pub fn xbar_r(subgroups: &[(f64, f64)], size: usize) -> Option<ControlLimits> {
    let grand_mean = mean(subgroups.iter().map(|&(mean, _)| mean))?;
    let mean_range = mean(subgroups.iter().map(|&(_, range)| range))?;
    // The mean of n values varies by the square root of n less than one value does.
    let sigma = mean_range / (d2(size)? * (size as f64).sqrt());
    ControlLimits::symmetric(grand_mean, sigma)
}

/// The arithmetic mean, or nothing of nothing. Take a subgroup's mean with it, too.
///
/// It sums distances from the first value: equal values have exactly that value as their mean. Ten
/// times 0.1 summed up plainly and divided by ten is less than 0.1, and on the chart without width
/// that equal values make, each of them would then be beyond a limit.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values = values.into_iter();
    let first = values.next()?;
    let (sum, count) = values.fold((0.0, 1.0), |(sum, count), value| {
        (sum + (value - first), count + 1.0)
    });
    Some(first + sum / count)
}

fn d2(size: usize) -> Option<f64> {
    D2.get(size.checked_sub(SUBGROUP_MIN)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One sigma is 1 above the center line and 2 below it.
    const LOPSIDED: ControlLimits = ControlLimits {
        center_line: 10.0,
        ucl: 13.0,
        lcl: 4.0,
    };

    /// NIST/SEMATECH e-Handbook of Statistical Methods, 6.3.2.2 "Individuals Control Charts",
    /// https://www.itl.nist.gov/div898/handbook/pmc/section3/pmc322.htm: flowrate of ten batches.
    const FLOWRATE: [f64; 10] = [49.6, 47.6, 49.9, 51.3, 47.8, 51.2, 52.6, 52.4, 53.6, 52.1];

    /// Inside diameters of forged piston rings in mm: D. C. Montgomery, "Introduction to
    /// Statistical Quality Control", 2nd ed. (1991), pp. 206-213; `pistonrings` in the R package
    /// qcc. Copied from sampledata/pistonrings.csv of pyspc 0.4 on PyPI. Rows 1 to 25 are the
    /// in-control data, rows 26 to 40 were taken afterwards.
    const PISTON_RINGS: [[f64; 5]; 40] = [
        [74.03, 74.002, 74.019, 73.992, 74.008],
        [73.995, 73.992, 74.001, 74.011, 74.004],
        [73.988, 74.024, 74.021, 74.005, 74.002],
        [74.002, 73.996, 73.993, 74.015, 74.009],
        [73.992, 74.007, 74.015, 73.989, 74.014],
        [74.009, 73.994, 73.997, 73.985, 73.993],
        [73.995, 74.006, 73.994, 74.0, 74.005],
        [73.985, 74.003, 73.993, 74.015, 73.988],
        [74.008, 73.995, 74.009, 74.005, 74.004],
        [73.998, 74.0, 73.99, 74.007, 73.995],
        [73.994, 73.998, 73.994, 73.995, 73.99],
        [74.004, 74.0, 74.007, 74.0, 73.996],
        [73.983, 74.002, 73.998, 73.997, 74.012],
        [74.006, 73.967, 73.994, 74.0, 73.984],
        [74.012, 74.014, 73.998, 73.999, 74.007],
        [74.0, 73.984, 74.005, 73.998, 73.996],
        [73.994, 74.012, 73.986, 74.005, 74.007],
        [74.006, 74.01, 74.018, 74.003, 74.0],
        [73.984, 74.002, 74.003, 74.005, 73.997],
        [74.0, 74.01, 74.013, 74.02, 74.003],
        [73.988, 74.001, 74.009, 74.005, 73.996],
        [74.004, 73.999, 73.99, 74.006, 74.009],
        [74.01, 73.989, 73.99, 74.009, 74.014],
        [74.015, 74.008, 73.993, 74.0, 74.01],
        [73.982, 73.984, 73.995, 74.017, 74.013],
        [74.012, 74.015, 74.03, 73.986, 74.0],
        [73.995, 74.01, 73.99, 74.015, 74.001],
        [73.987, 73.999, 73.985, 74.0, 73.99],
        [74.008, 74.01, 74.003, 73.991, 74.006],
        [74.003, 74.0, 74.001, 73.986, 73.997],
        [73.994, 74.003, 74.015, 74.02, 74.004],
        [74.008, 74.002, 74.018, 73.995, 74.005],
        [74.001, 74.004, 73.99, 73.996, 73.998],
        [74.015, 74.0, 74.016, 74.025, 74.0],
        [74.03, 74.005, 74.0, 74.016, 74.012],
        [74.001, 73.99, 73.995, 74.01, 74.024],
        [74.015, 74.02, 74.024, 74.005, 74.019],
        [74.035, 74.01, 74.012, 74.015, 74.026],
        [74.017, 74.013, 74.036, 74.025, 74.026],
        [74.01, 74.005, 74.029, 74.0, 74.02],
    ];

    /// Mean and range of each of these subgroups.
    fn summaries(subgroups: &[[f64; 5]]) -> Vec<(f64, f64)> {
        let summary = |values: &[f64; 5]| {
            let top = values.iter().copied().fold(f64::MIN, f64::max);
            let bottom = values.iter().copied().fold(f64::MAX, f64::min);
            (mean(*values).unwrap(), top - bottom)
        };
        subgroups.iter().map(summary).collect()
    }

    fn assert_near(actual: f64, published: f64, tolerance: f64) {
        assert!(
            (actual - published).abs() <= tolerance,
            "{actual} instead of {published}"
        );
    }

    #[test]
    fn individuals_chart_of_the_nist_handbook_is_reproduced() {
        let limits = moving_range(&FLOWRATE).unwrap();
        assert_near(limits.center_line, 50.81, 1e-9);
        assert_near(limits.ucl, 55.8041, 5e-5);
        assert_near(limits.lcl, 45.8159, 5e-5);
        // The handbook finds this process in control: no point is outside.
        for x in FLOWRATE {
            let zone = limits.zone(x);
            assert!(!matches!(zone, Zone::BeyondUcl | Zone::BeyondLcl), "{x}");
        }
    }

    #[test]
    fn piston_ring_chart_of_montgomery_is_reproduced() {
        let in_control = summaries(&PISTON_RINGS[..25]);
        let mean_range = mean(in_control.iter().map(|&(_, range)| range)).unwrap();
        assert_near(mean_range, 0.02276, 1e-9);
        let limits = xbar_r(&in_control, 5).unwrap();
        assert_near(limits.center_line, 74.001176, 1e-9);
        assert_near(limits.ucl, 74.01430, 5e-6);
        assert_near(limits.lcl, 73.98805, 5e-6);
    }

    #[test]
    fn piston_rings_leave_control_at_subgroups_37_to_39() {
        let limits = xbar_r(&summaries(&PISTON_RINGS[..25]), 5).unwrap();
        let beyond: Vec<usize> = summaries(&PISTON_RINGS)
            .iter()
            .zip(1..)
            .filter(|((mean, _), _)| limits.zone(*mean) == Zone::BeyondUcl)
            .map(|(_, number)| number)
            .collect();
        assert_eq!(beyond, [37, 38, 39]);
    }

    #[test]
    fn each_zone_reaches_to_its_own_sigma_on_either_side() {
        let expected = [
            (13.5, Zone::BeyondUcl),
            (12.5, Zone::ZoneAUpper),
            (11.5, Zone::ZoneBUpper),
            (10.5, Zone::ZoneCUpper),
            (9.0, Zone::ZoneCLower),
            (7.0, Zone::ZoneBLower),
            (5.0, Zone::ZoneALower),
            (3.0, Zone::BeyondLcl),
        ];
        for (x, zone) in expected {
            assert_eq!(LOPSIDED.zone(x), zone, "{x}");
        }
    }

    #[test]
    fn a_point_on_a_boundary_belongs_to_the_inner_zone() {
        let expected = [
            (13.0, Zone::ZoneAUpper, Zone::BeyondUcl),
            (12.0, Zone::ZoneBUpper, Zone::ZoneAUpper),
            (11.0, Zone::ZoneCUpper, Zone::ZoneBUpper),
            (8.0, Zone::ZoneCLower, Zone::ZoneBLower),
            (6.0, Zone::ZoneBLower, Zone::ZoneALower),
            (4.0, Zone::ZoneALower, Zone::BeyondLcl),
        ];
        for (x, inner, outer) in expected {
            assert_eq!(LOPSIDED.zone(x), inner, "{x}");
            let outwards = if x > LOPSIDED.center_line {
                x.next_up()
            } else {
                x.next_down()
            };
            assert_eq!(LOPSIDED.zone(outwards), outer, "{outwards}");
        }
        assert_eq!(LOPSIDED.zone(10.0), Zone::ZoneCUpper);
        assert_eq!(LOPSIDED.zone(10.0_f64.next_down()), Zone::ZoneCLower);
    }

    #[test]
    fn a_chart_without_width_has_only_its_center_line_within_limits() {
        let flat = moving_range(&[5.0, 5.0, 5.0]).unwrap();
        assert_eq!((flat.lcl, flat.center_line, flat.ucl), (5.0, 5.0, 5.0));
        assert_eq!(flat.zone(5.0), Zone::ZoneCUpper);
        assert_eq!(flat.zone(5.0_f64.next_up()), Zone::BeyondUcl);
        assert_eq!(flat.zone(5.0_f64.next_down()), Zone::BeyondLcl);
    }

    #[test]
    fn equal_values_are_never_beyond_the_limits_they_make() {
        for count in 2..100 {
            let limits = moving_range(&vec![0.1; count]).unwrap();
            assert_eq!(limits.zone(0.1), Zone::ZoneCUpper, "{count} values");
            let limits = xbar_r(&vec![(0.1, 0.0); count], 5).unwrap();
            assert_eq!(limits.zone(0.1), Zone::ZoneCUpper, "{count} subgroups");
        }
    }

    #[test]
    fn an_individuals_chart_needs_two_values() {
        assert_eq!(moving_range(&[]), None);
        assert_eq!(moving_range(&[1.0]), None);
        let limits = moving_range(&[1.0, 1.0 + 1.128]).unwrap();
        assert_near(limits.ucl - limits.center_line, 3.0, 1e-12);
        assert_near(limits.center_line - limits.lcl, 3.0, 1e-12);
    }

    #[test]
    fn a_subgroup_chart_needs_a_subgroup_of_tabulated_size() {
        assert_eq!(xbar_r(&[], 5), None);
        for size in [0, 1, SUBGROUP_MAX + 1, usize::MAX] {
            assert_eq!(xbar_r(&[(1.0, 1.0)], size), None, "{size}");
        }
        for size in SUBGROUP_MIN..=SUBGROUP_MAX {
            assert!(xbar_r(&[(1.0, 1.0)], size).is_some(), "{size}");
        }
    }

    /// The mean range of `size` standard normal values: the integral of 1 - F^n - (1 - F)^n, F being
    /// the distribution function, which is summed up along the way (midpoint rule).
    fn integrated_d2(size: usize) -> f64 {
        const STEP: f64 = 1e-3;
        let power = i32::try_from(size).unwrap();
        let (mut below, mut sum) = (0.0_f64, 0.0);
        for i in -8000..8000 {
            let x = (f64::from(i) + 0.5) * STEP;
            let density = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
            let f = below + density * STEP / 2.0;
            below += density * STEP;
            sum += (1.0 - f.powi(power) - (1.0 - f).powi(power)) * STEP;
        }
        sum
    }

    #[test]
    fn each_tabulated_d2_is_the_rounded_mean_range() {
        for size in SUBGROUP_MIN..=SUBGROUP_MAX {
            assert_near(d2(size).unwrap(), integrated_d2(size), 0.5e-3);
        }
    }

    #[test]
    fn limits_from_ranges_agree_with_the_tabulated_a2() {
        // A2 = 3 / (d2 sqrt(n)), Montgomery, Appendix VI.
        let tabulated = [
            (2, 1.880),
            (3, 1.023),
            (5, 0.577),
            (10, 0.308),
            (15, 0.223),
            (20, 0.180),
            (25, 0.153),
        ];
        for (size, a2) in tabulated {
            let limits = xbar_r(&[(0.0, 1.0)], size).unwrap();
            assert_near(limits.ucl, a2, 1e-3);
            assert_near(limits.lcl, -a2, 1e-3);
        }
    }

    #[test]
    fn limits_that_are_not_finite_are_no_limits() {
        assert_eq!(moving_range(&[f64::MAX, f64::MIN]), None);
        assert_eq!(moving_range(&[f64::MAX, 0.0]), None);
        assert_eq!(moving_range(&[1.0, f64::NAN]), None);
        assert_eq!(moving_range(&[1.0, f64::INFINITY]), None);
        assert_eq!(xbar_r(&[(f64::MAX, 1e308)], 2), None);
        assert_eq!(xbar_r(&[(f64::MIN, 1e308)], 2), None);
        assert_eq!(xbar_r(&[(0.0, f64::MAX)], 2), None);
        assert_eq!(xbar_r(&[(f64::NAN, 1.0)], 5), None);
        assert_eq!(xbar_r(&[(1.0, f64::INFINITY)], 5), None);
    }

    #[test]
    fn a_zone_is_found_again_by_its_name() {
        for zone in Zone::ALL {
            assert_eq!(Zone::parse(zone.as_str()), Some(zone));
        }
        assert_eq!(Zone::BeyondUcl.as_str(), "beyond_ucl");
        assert_eq!(Zone::ZoneAUpper.as_str(), "zone_a_upper");
        for stranger in ["", "Beyond_Ucl", "zone_d_upper", "zone_a"] {
            assert_eq!(Zone::parse(stranger), None, "{stranger}");
        }
    }
}
