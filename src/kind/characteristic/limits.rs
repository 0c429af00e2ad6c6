//! The limits and zones of a control chart, and how both are computed from in-control data.
//!
//! A Shewhart chart has a center line and two control limits three sigma away from it. Sigma is estimated from the
//! short-term variation only (moving ranges, or ranges or standard deviations within subgroups): the overall standard
//! deviation would include the very shifts that the chart is meant to show. The limits of the dispersion chart (MR, R or
//! S; see [`dispersion`](super::dispersion)), which monitors this variation, are computed from the same data.
//!
//! The zones C, B and A are the bands of one, two and three sigma. Points are compared with the lines between them
//! ([`Lines`]). These are computed exactly and rounded once, so that a point that is on a line in a calculation by hand
//! is on it here as well. The comparison has a tolerance of [`TOLERANCE`] sigma, so that rounding by the publisher does
//! not move a point off a line. A point on a line belongs to the inner zone; a point on the center line is on neither
//! side of it.
//!
//! The tests that examine several points are in [`nelson`](super::nelson). Not supported: attribute charts (p, np, c, u).

use std::cmp::Ordering;

use num_traits::Signed;
use serde::{Deserialize, Deserializer, Serialize};

use super::exact::{self, BigRational, Decimals, decimal, rounded};
use super::factors::{self, Factors, factors};
use super::{Collected, VALUE_MAX};

/// The largest subgroup for which there are factors.
pub const SUBGROUP_MAX: usize = *factors::SIZES.end();

/// The maximum distance, in sigma, at which a point counts as on a line, or two points count as equal.
pub const TOLERANCE: f64 = 1e-9;

/// The maximum relative error from rounding by a publisher.
const ROUNDING: f64 = 1e-14;

/// Center line and control limits, in the unit of the points on the chart.
///
/// `lcl <= center_line <= ucl`. The limits need not be symmetric: above the center line, one sigma is a third of the
/// distance to `ucl`; below it, a third of the distance to `lcl`. A missing limit is infinitely far away, and so are the
/// zones B and A of its side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ControlLimits {
    /// The process mean.
    pub center_line: f64,
    /// Upper control limit, three sigma above the center line.
    #[serde(deserialize_with = "or_above")]
    pub ucl: f64,
    /// Lower control limit, three sigma below the center line.
    #[serde(deserialize_with = "or_below")]
    pub lcl: f64,
}

/// Reads an upper limit. JSON has no infinity, so a missing limit is `null`.
fn or_above<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|line| line.unwrap_or(f64::INFINITY))
}

/// Reads a lower limit, as [`or_above`] reads an upper one.
fn or_below<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Option::<f64>::deserialize(deserializer).map(|line| line.unwrap_or(f64::NEG_INFINITY))
}

impl ControlLimits {
    /// Returns the upper control limit, if there is one.
    pub fn upper(&self) -> Option<f64> {
        Some(self.ucl).filter(|line| line.is_finite())
    }

    /// Returns the lower control limit, if there is one.
    pub fn lower(&self) -> Option<f64> {
        Some(self.lcl).filter(|line| line.is_finite())
    }

    /// Returns whether the limits coincide, or the center line coincides with the only limit, so that no point could be
    /// evaluated. A distance within rounding errors counts as none.
    pub fn are_without_width(&self) -> bool {
        let (upper, lower) = (
            self.upper().unwrap_or(self.center_line),
            self.lower().unwrap_or(self.center_line),
        );
        upper - lower <= ROUNDING * upper.abs().max(lower.abs())
    }

    /// Returns the lines with which points are compared.
    pub fn lines(&self) -> Lines {
        let sigmas = [self.ucl - self.center_line, self.center_line - self.lcl];
        let sigmas = sigmas.map(|width| width / 3.0).into_iter();
        let narrowest = sigmas
            .filter(|sigma| sigma.is_finite() && *sigma > 0.0)
            .reduce(f64::min);
        Lines {
            limits: *self,
            above: between(self.center_line, self.ucl),
            below: between(self.center_line, self.lcl),
            tolerance: TOLERANCE * narrowest.unwrap_or(0.0),
        }
    }

    /// Returns the limits at distance `reach` on either side of a center line, rounded.
    fn symmetric(center_line: &BigRational, reach: &BigRational) -> ControlLimits {
        ControlLimits {
            center_line: rounded(center_line),
            ucl: rounded(&(center_line + reach)),
            lcl: rounded(&(center_line - reach)),
        }
    }

    /// Returns the limits that are `lower` and `upper` times a center line.
    fn proportional(center_line: &BigRational, (lower, upper): (f64, f64)) -> ControlLimits {
        ControlLimits {
            center_line: rounded(center_line),
            ucl: rounded(&(center_line * decimal(upper))),
            lcl: rounded(&(center_line * decimal(lower))),
        }
    }
}

/// Returns the lines at one and two sigma, each rounded to the nearest double.
fn between(center_line: f64, limit: f64) -> [f64; 2] {
    if limit.is_infinite() {
        return [limit; 2];
    }
    [
        mean(&[center_line, center_line, limit]),
        mean(&[center_line, limit, limit]),
    ]
}

/// A chart's lines, and how points are compared with them and with each other.
///
/// A point is on a line if it is the double nearest to the line, or at most [`TOLERANCE`] sigma away from it; sigma is
/// that of the narrower side. A chart without width has no tolerance, and every point off the center line is beyond a
/// limit.
#[derive(Debug, Clone, Copy)]
pub struct Lines {
    limits: ControlLimits,
    /// One and two sigma above the center line.
    above: [f64; 2],
    /// One and two sigma below the center line.
    below: [f64; 2],
    tolerance: f64,
}

impl Lines {
    /// Compares a finite point with a line or with another point: equal within the tolerance.
    pub fn compare(&self, x: f64, other: f64) -> Ordering {
        let distance = x - other;
        if distance > self.tolerance {
            Ordering::Greater
        } else if distance < -self.tolerance {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    }

    /// Returns on which side of the center line a finite point is; `Equal` means on neither.
    pub fn side(&self, x: f64) -> Ordering {
        self.compare(x, self.limits.center_line)
    }

    /// Returns the zone of a finite point. A point on a boundary belongs to the inner zone, so that only a point past a
    /// control limit is beyond it; a point on the center line is in the upper zone C.
    pub fn zone(&self, x: f64) -> Zone {
        let is_above = |line| self.compare(x, line) == Ordering::Greater;
        let is_below = |line| self.compare(x, line) == Ordering::Less;
        if is_above(self.limits.ucl) {
            Zone::BeyondUcl
        } else if is_below(self.limits.lcl) {
            Zone::BeyondLcl
        } else if is_above(self.above[1]) {
            Zone::ZoneAUpper
        } else if is_above(self.above[0]) {
            Zone::ZoneBUpper
        } else if is_below(self.below[1]) {
            Zone::ZoneALower
        } else if is_below(self.below[0]) {
            Zone::ZoneBLower
        } else if is_below(self.limits.center_line) {
            Zone::ZoneCLower
        } else {
            Zone::ZoneCUpper
        }
    }

    /// Returns whether the chart implies how much variation to expect: it has two limits, and they do not coincide.
    pub fn expect_variation(&self) -> bool {
        let is_two_sided = self.limits.upper().is_some() && self.limits.lower().is_some();
        is_two_sided && self.limits.lcl < self.limits.ucl
    }
}

/// Where a point lies on its chart, from top to bottom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Zone {
    /// Above the upper control limit.
    BeyondUcl,
    /// Above two sigma, up to the upper control limit.
    ZoneAUpper,
    /// Above one sigma, up to two.
    ZoneBUpper,
    /// From the center line up to one sigma.
    ZoneCUpper,
    /// Below the center line, down to one sigma.
    ZoneCLower,
    /// Below one sigma, down to two.
    ZoneBLower,
    /// Below two sigma, down to the lower control limit.
    ZoneALower,
    /// Below the lower control limit.
    BeyondLcl,
}

crate::kind::unnamed_schema!(Zone, crate::kind::one_of(Zone::ALL.map(Zone::as_str)));

impl Zone {
    /// All zones, from top to bottom.
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

    /// Returns whether it is past a control limit.
    pub const fn is_beyond(self) -> bool {
        matches!(self, Zone::BeyondUcl | Zone::BeyondLcl)
    }

    /// Returns the zone's name in messages and in the database.
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

    /// Returns the zone that [`as_str`](Zone::as_str) names.
    pub fn parse(name: &str) -> Option<Zone> {
        Zone::ALL.into_iter().find(|zone| zone.as_str() == name)
    }
}

/// The limits computed from a baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Charts {
    /// The limits of the values or means.
    pub location: ControlLimits,
    /// The limits of their moving ranges, ranges or standard deviations.
    pub dispersion: ControlLimits,
}

/// Returns the limits of an individuals chart and its moving ranges (I-MR): sigma is the mean moving range of two
/// successive values, divided by d2(2). A gap interrupts the moving ranges. Returns `None` if there is no moving range.
pub fn moving_range(collected: &[Collected]) -> Option<Charts> {
    let values: Vec<Option<BigRational>> = collected.iter().map(|sample| sample.mean(1)).collect();
    let ranges = values.windows(2).filter_map(|pair| match pair {
        [Some(earlier), Some(later)] => Some((later - earlier).abs()),
        _ => None,
    });
    let mean_range = exact::mean(&ranges.collect::<Vec<_>>())?;
    let values: Vec<BigRational> = values.into_iter().flatten().collect();
    let factors = factors(2)?;
    Some(Charts {
        location: ControlLimits::symmetric(
            &exact::mean(&values)?,
            &(three(&mean_range) / decimal(factors.d2)),
        ),
        dispersion: ControlLimits::proportional(&mean_range, factors.range),
    })
}

/// Returns the limits of the means and ranges of subgroups of `size` values (X-bar/R). Returns `None` if there are no
/// subgroups, or no factors for this size.
pub fn xbar_r(collected: &[Collected], size: usize) -> Option<Charts> {
    subgroups(collected, size, |factors| (factors.d2, factors.range))
}

/// Returns the limits of the means and standard deviations of subgroups of `size` values (X-bar/S): the distance of the
/// limits of the means is A3 = 3 / (c4 √n) times the mean standard deviation. Returns `None` if there are no subgroups,
/// or no factors for this size.
pub fn xbar_s(collected: &[Collected], size: usize) -> Option<Charts> {
    subgroups(collected, size, |factors| (factors.c4, factors.deviation))
}

/// Returns the limits for subgroups. `pick` selects the factor between mean dispersion and sigma, and the factors for the
/// limits of the dispersion chart.
fn subgroups(
    collected: &[Collected],
    size: usize,
    pick: fn(Factors) -> (f64, (f64, f64)),
) -> Option<Charts> {
    let (to_sigma, limit_factors) = pick(factors(size)?);
    let means: Vec<BigRational> = collected
        .iter()
        .filter_map(|sample| sample.mean(size))
        .collect();
    let spreads = collected.iter().filter_map(Collected::spread);
    let mean_spread = exact::mean(&spreads.map(decimal).collect::<Vec<_>>())?;
    // The standard deviation of the mean of n values is that of one value, divided by the square root of n.
    let single = three(&mean_spread) / decimal(to_sigma);
    let reach = exact::root(&(&single * &single / BigRational::from_integer(size.into())));
    Some(Charts {
        location: ControlLimits::symmetric(&exact::mean(&means)?, &reach),
        dispersion: ControlLimits::proportional(&mean_spread, limit_factors),
    })
}

fn three(fraction: &BigRational) -> BigRational {
    fraction * BigRational::from_integer(3.into())
}

/// Returns the sum of finite values, rounded once to the nearest double.
pub fn total(values: &[f64]) -> f64 {
    rounded(&Decimals::new(values).total())
}

/// Returns the arithmetic mean of at least one finite value, rounded once to the nearest double. The mean of decimals is
/// the same as in a calculation by hand.
pub fn mean(values: &[f64]) -> f64 {
    rounded(&Decimals::new(values).mean())
}

/// Returns the difference between the largest and the smallest of finite values.
pub fn range(values: &[f64]) -> f64 {
    rounded(&Decimals::new(values).range())
}

/// Returns the sample standard deviation of at least two finite values.
pub fn deviation(values: &[f64]) -> f64 {
    rounded(&exact::root(&Decimals::new(values).variance()))
}

/// Returns whether the lines of a chart are in order, within the range of measurements, and not all equal.
pub(super) fn are_in_order(chart: &ControlLimits) -> bool {
    let given = [Some(chart.center_line), chart.upper(), chart.lower()];
    let fit = given.iter().flatten().all(|line| line.abs() <= VALUE_MAX);
    let in_order = chart.lcl <= chart.center_line && chart.center_line <= chart.ucl;
    in_order && fit && !chart.are_without_width()
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

    fn singles(values: &[f64]) -> Vec<Collected> {
        let single = |value: &f64| Collected::Measured {
            sum: *value,
            spread: 0.0,
        };
        values.iter().map(single).collect()
    }

    /// Returns these subgroups with their ranges or standard deviations.
    fn summaries(subgroups: &[[f64; 5]], spread: fn(&[f64]) -> f64) -> Vec<Collected> {
        let summary = |values: &[f64; 5]| Collected::Measured {
            sum: total(values),
            spread: spread(values),
        };
        subgroups.iter().map(summary).collect()
    }

    fn individuals(values: &[f64]) -> ControlLimits {
        moving_range(&singles(values)).unwrap().location
    }

    fn assert_near(actual: f64, published: f64, tolerance: f64) {
        assert!(
            (actual - published).abs() <= tolerance,
            "{actual} instead of {published}"
        );
    }

    #[test]
    fn individuals_chart_of_the_nist_handbook_is_reproduced() {
        let limits = individuals(&FLOWRATE);
        assert_near(limits.center_line, 50.81, 1e-9);
        assert_near(limits.ucl, 55.8041, 5e-5);
        assert_near(limits.lcl, 45.8159, 5e-5);
        // The handbook considers this process in control: no point is outside.
        for x in FLOWRATE {
            let zone = limits.lines().zone(x);
            assert!(!matches!(zone, Zone::BeyondUcl | Zone::BeyondLcl), "{x}");
        }
    }

    #[test]
    fn piston_ring_charts_of_montgomery_are_reproduced() {
        let charts = xbar_r(&summaries(&PISTON_RINGS[..25], range), 5).unwrap();
        let limits = charts.location;
        assert_near(limits.center_line, 74.001176, 1e-9);
        assert_near(limits.ucl, 74.01430, 5e-6);
        assert_near(limits.lcl, 73.98805, 5e-6);
        let ranges = charts.dispersion;
        assert_eq!((ranges.center_line, ranges.lcl), (0.02276, 0.0));
        assert_near(ranges.ucl, 0.04812, 1e-5);
        let charts = xbar_s(&summaries(&PISTON_RINGS[..25], deviation), 5).unwrap();
        let limits = charts.location;
        assert_near(limits.center_line, 74.001176, 1e-9);
        // X-bar-bar ± A3 S-bar, with S-bar from the R package qcc.
        assert_near(limits.ucl, 74.001176 + 1.427 * 0.009240037, 1e-5);
        assert_near(limits.lcl, 74.001176 - 1.427 * 0.009240037, 1e-5);
        let deviations = charts.dispersion;
        assert_near(deviations.center_line, 0.009240037, 1e-9);
        assert_near(deviations.ucl, 2.089 * 0.009240037, 1e-8);
        assert_eq!(deviations.lcl, 0.0);
    }

    #[test]
    fn piston_rings_leave_control_at_subgroups_37_to_39() {
        let limits = xbar_r(&summaries(&PISTON_RINGS[..25], range), 5).unwrap();
        let lines = limits.location.lines();
        let beyond: Vec<usize> = PISTON_RINGS
            .iter()
            .zip(1..)
            .filter(|(values, _)| lines.zone(mean(*values)) == Zone::BeyondUcl)
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
            assert_eq!(LOPSIDED.lines().zone(x), zone, "{x}");
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
            assert_eq!(LOPSIDED.lines().zone(x), inner, "{x}");
            let further = 2.0 * TOLERANCE;
            let outwards = if x > LOPSIDED.center_line {
                x + further
            } else {
                x - further
            };
            assert_eq!(LOPSIDED.lines().zone(outwards), outer, "{outwards}");
        }
        assert_eq!(LOPSIDED.lines().zone(10.0), Zone::ZoneCUpper);
        assert_eq!(LOPSIDED.lines().zone(10.0 - 1e-8), Zone::ZoneCLower);
    }

    #[test]
    fn a_chart_without_width_has_only_its_center_line_within_limits() {
        let flat = individuals(&[5.0, 5.0, 5.0]);
        assert_eq!((flat.lcl, flat.center_line, flat.ucl), (5.0, 5.0, 5.0));
        let lines = flat.lines();
        assert_eq!(lines.zone(5.0), Zone::ZoneCUpper);
        assert_eq!(lines.zone(5.0_f64.next_up()), Zone::BeyondUcl);
        assert_eq!(lines.zone(5.0_f64.next_down()), Zone::BeyondLcl);
    }

    #[test]
    fn equal_values_are_never_beyond_the_limits_they_make() {
        for count in 2..100 {
            let lines = individuals(&vec![0.1; count]).lines();
            assert_eq!(lines.zone(0.1), Zone::ZoneCUpper, "{count} values");
            let subgroups = summaries(&vec![[0.1; 5]; count], range);
            let lines = xbar_r(&subgroups, 5).unwrap().location.lines();
            assert_eq!(lines.zone(0.1), Zone::ZoneCUpper, "{count} subgroups");
        }
    }

    /// Tests a sigma that is tiny compared with the mean, one that is huge, and one close to zero.
    #[test]
    fn points_on_lines_of_any_magnitude_are_on_them_and_their_neighbours_are_not() {
        for (center_line, sigma) in [
            (1e6, 1e-6),
            (1e15, 0.25),
            (0.0, 1e299),
            (-1e300, 1e298),
            (0.0, 1e-300),
            (1e300, 1e285),
        ] {
            let limits = ControlLimits {
                center_line,
                ucl: center_line + 3.0 * sigma,
                lcl: center_line - 3.0 * sigma,
            };
            let lines = limits.lines();
            for (line, inner, outer) in [
                (limits.ucl, Zone::ZoneAUpper, Zone::BeyondUcl),
                (lines.above[1], Zone::ZoneBUpper, Zone::ZoneAUpper),
                (lines.above[0], Zone::ZoneCUpper, Zone::ZoneBUpper),
            ] {
                assert_eq!(lines.zone(line), inner, "{line}");
                let further = line.next_up().max(line + 1e-8 * sigma);
                assert_eq!(lines.zone(further), outer, "{further}");
            }
            assert_eq!(lines.side(center_line), Ordering::Equal);
        }
    }

    #[test]
    fn an_individuals_chart_needs_two_values() {
        assert_eq!(moving_range(&[]), None);
        assert_eq!(moving_range(&singles(&[1.0])), None);
        let limits = individuals(&[1.0, 1.0 + 1.128]);
        assert_near(limits.ucl - limits.center_line, 3.0, 1e-12);
        assert_near(limits.center_line - limits.lcl, 3.0, 1e-12);
    }

    #[test]
    fn a_gap_is_no_value_and_has_no_moving_range_on_either_side() {
        let mut values = singles(&[1.0, 2.0, 12.0, 15.0]);
        values.insert(2, Collected::Gap);
        let charts = moving_range(&values).unwrap();
        assert_eq!(charts.location.center_line, 7.5);
        assert_eq!(charts.dispersion.center_line, 2.0);
        let apart = [values[0], Collected::Gap, values[1]];
        assert_eq!(moving_range(&apart), None);
        let subgroups = [
            Collected::Summary(1.0, 1.0),
            Collected::Gap,
            Collected::Summary(3.0, 2.0),
        ];
        let charts = xbar_r(&subgroups, 5).unwrap();
        assert_eq!(charts.location.center_line, 2.0);
        assert_eq!(charts.dispersion.center_line, 1.5);
    }

    #[test]
    fn a_subgroup_chart_needs_a_subgroup_of_tabulated_size() {
        let unit = [Collected::Summary(1.0, 1.0)];
        for chart in [xbar_r, xbar_s] {
            assert_eq!(chart(&[], 5), None);
            for size in [0, 1, SUBGROUP_MAX + 1, usize::MAX] {
                assert_eq!(chart(&unit, size), None, "{size}");
            }
            for size in 2..=SUBGROUP_MAX {
                assert!(chart(&unit, size).is_some(), "{size}");
            }
        }
    }

    #[test]
    fn limits_of_means_agree_with_the_tabulated_a2_and_a3() {
        // A2 = 3 / (d2 √n), A3 = 3 / (c4 √n); Montgomery, Appendix VI.
        let tabulated = [
            (2, 1.880, 2.659),
            (3, 1.023, 1.954),
            (5, 0.577, 1.427),
            (10, 0.308, 0.975),
            (15, 0.223, 0.789),
            (20, 0.180, 0.680),
            (25, 0.153, 0.606),
        ];
        let unit = [Collected::Summary(0.0, 1.0)];
        for (size, a2, a3) in tabulated {
            for (chart, factor) in [(xbar_r(&unit, size), a2), (xbar_s(&unit, size), a3)] {
                let limits = chart.unwrap().location;
                assert_near(limits.ucl, factor, 1e-3);
                assert_eq!(limits.lcl, -limits.ucl);
            }
        }
    }

    /// Uses the largest values that a characteristic accepts; see `VALUE_MAX`.
    #[test]
    fn limits_of_the_largest_values_are_finite() {
        let ends = [1e300, -1e300];
        let charts = [
            moving_range(&singles(&ends)),
            xbar_r(&[Collected::Summary(1e300, 2e300)], 2),
            xbar_s(&[Collected::Summary(-1e300, 2e300)], 2),
        ];
        for chart in charts {
            let Charts {
                location,
                dispersion,
            } = chart.unwrap();
            for limits in [location, dispersion] {
                assert!(limits.upper().is_some() && limits.lower().is_some());
                assert!(limits.lines().expect_variation());
            }
        }
        assert_eq!((mean(&ends), range(&ends)), (0.0, 2e300));
    }

    #[test]
    fn what_has_a_decimal_form_on_paper_has_it_here() {
        assert_eq!(mean(&[0.72, 0.60, 0.85, 0.58, 0.60]), 0.67);
        assert_eq!(range(&[0.3, 0.1, 0.2]), 0.2);
        assert_eq!(deviation(&[0.1, 0.2, 0.3]), 0.1);
        assert_eq!(total(&[0.1, 0.2]), 0.3);
        // The means are thirds. Their sums are finite decimals, so the mean of the means is one as well.
        let thirds = [[0.1, 0.1, 0.2], [0.2, 0.2, 0.1]].map(|values| Collected::Measured {
            sum: total(&values),
            spread: range(&values),
        });
        let charts = xbar_r(&thirds, 3).unwrap();
        assert_eq!(charts.location.center_line, 0.15);
        assert_eq!(charts.dispersion.ucl, 0.2574);
        let limits = individuals(&[0.1, 0.1 + 1.128]);
        assert_eq!((limits.ucl, limits.lcl), (3.664, -2.336));
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
