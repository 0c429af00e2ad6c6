//! The eight Nelson rules: whether the newest point completes or continues a pattern that is unlikely to occur by chance.
//! A ninth rule applies the first of them to the dispersion chart.
//!
//! Source: L. S. Nelson, "The Shewhart Control Chart – Tests for Special Causes", Journal of Quality Technology 16
//! (1984), pp. 237-239. For a process in control, each rule gives a false signal at fewer than five points in a thousand.
//!
//! A rule is only evaluated for the newest point. Evaluated at each new point, it is broken from the point that completes
//! the pattern to the last one that continues it. [`Lines::zone`] determines the zones of points, so the sigma above the
//! center line can differ from the one below. Not here: how limits are determined (see [`limits`](super::limits)), and
//! what happens when a rule is broken.

use std::cmp::Ordering;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::limits::{Lines, Zone};

/// The maximum number of points that any rule considers, including the newest one.
pub const WINDOW: usize = 15;

/// A test for special causes, with Nelson's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A point beyond a control limit.
    BeyondLimits = 1,
    /// Consecutive points on one side of the center line.
    OneSided = 2,
    /// Consecutive points that all rise, or all fall.
    Trend = 3,
    /// Consecutive points that alternately rise and fall.
    Alternation = 4,
    /// Two of three consecutive points beyond two sigma, on the same side.
    TwoOfThree = 5,
    /// Four of five consecutive points beyond one sigma, on the same side.
    FourOfFive = 6,
    /// Consecutive points within one sigma.
    Stratification = 7,
    /// Consecutive points beyond one sigma, on either side.
    Mixture = 8,
    /// Not one of Nelson's: rule 1, on the dispersion chart.
    Dispersion = 101,
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(self.number())
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rule, D::Error> {
        let number = u8::deserialize(deserializer)?;
        Rule::from_number(number).ok_or_else(|| serde::de::Error::custom("no rule has this number"))
    }
}

impl Rule {
    /// All rules, by number.
    pub const ALL: [Rule; 9] = [
        Rule::BeyondLimits,
        Rule::OneSided,
        Rule::Trend,
        Rule::Alternation,
        Rule::TwoOfThree,
        Rule::FourOfFive,
        Rule::Stratification,
        Rule::Mixture,
        Rule::Dispersion,
    ];

    /// Returns Nelson's number, 1 to 8; 101 is his rule 1 on the dispersion chart.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Returns the rule with this number.
    pub fn from_number(number: u8) -> Option<Rule> {
        Rule::ALL.into_iter().find(|rule| rule.number() == number)
    }

    /// Returns a short display name.
    pub const fn name(self) -> &'static str {
        match self {
            Rule::BeyondLimits => "Beyond 3 sigma",
            Rule::OneSided => "Nine on one side",
            Rule::Trend => "Six-point trend",
            Rule::Alternation => "Fourteen alternating",
            Rule::TwoOfThree => "Two of three beyond 2 sigma",
            Rule::FourOfFive => "Four of five beyond 1 sigma",
            Rule::Stratification => "Fifteen within 1 sigma",
            Rule::Mixture => "Eight outside 1 sigma",
            Rule::Dispersion => "Dispersion beyond limits",
        }
    }

    /// Returns a sentence that describes the pattern.
    pub const fn description(self) -> &'static str {
        match self {
            Rule::BeyondLimits => "One point is more than 3 sigma from the center line.",
            Rule::OneSided => "Nine points in a row are on the same side of the center line.",
            Rule::Trend => "Six points in a row are steadily increasing or decreasing.",
            Rule::Alternation => "Fourteen points in a row alternate up and down.",
            Rule::TwoOfThree => {
                "Two of three points in a row are more than 2 sigma from the center line, \
                 on the same side."
            }
            Rule::FourOfFive => {
                "Four of five points in a row are more than 1 sigma from the center line, \
                 on the same side."
            }
            Rule::Stratification => {
                "Fifteen points in a row are within 1 sigma of the center line, on either side."
            }
            Rule::Mixture => {
                "Eight points in a row are on both sides of the center line, \
                 none of them within 1 sigma."
            }
            Rule::Dispersion => {
                "One moving range, range or standard deviation is beyond a limit of its own chart."
            }
        }
    }

    /// Returns how many points the rule considers, including the newest one.
    pub const fn span(self) -> usize {
        match self {
            Rule::BeyondLimits | Rule::Dispersion => 1,
            Rule::OneSided => 9,
            Rule::Trend => 6,
            Rule::Alternation => 14,
            Rule::TwoOfThree => 3,
            Rule::FourOfFive => 5,
            Rule::Stratification => WINDOW,
            Rule::Mixture => 8,
        }
    }

    /// Returns the minimum number of points that can break the rule. Two points beyond 2 sigma are two of three, whatever
    /// the third is, and four beyond 1 sigma are four of five; the other rules need their whole span.
    pub const fn needs(self) -> usize {
        match self {
            Rule::TwoOfThree => 2,
            Rule::FourOfFive => 4,
            _ => self.span(),
        }
    }
}

/// Returns whether the newest of `points` breaks `rule`. The points are finite, oldest first. At most the last [`WINDOW`]
/// are considered; with fewer points than [`Rule::needs`], no rule is broken.
///
/// Points and lines belong to the chart of values or means, except for [`Rule::Dispersion`], where they belong to the
/// dispersion chart.
///
/// A point on the center line is on neither side of it and ends a run; of two equal points, neither is higher. [`Lines`]
/// defines which points are on a line, and which are equal.
pub fn is_broken(rule: Rule, points: &[f64], lines: &Lines) -> bool {
    if points.len() < rule.needs() {
        return false;
    }
    let seen = &points[points.len().saturating_sub(rule.span())..];
    let all = |test: fn(Zone) -> bool| seen.iter().all(|&x| test(lines.zone(x)));
    let all_move = |direction: Ordering| {
        seen.windows(2)
            .all(|pair| lines.compare(pair[1], pair[0]) == direction)
    };
    let all_on = |side: Ordering| seen.iter().all(|&x| lines.side(x) == side);
    let any_on = |side: Ordering| seen.iter().any(|&x| lines.side(x) == side);
    let newest_and = |count, test: fn(Zone) -> bool| {
        let mut hits = seen.iter().rev().map(|&x| test(lines.zone(x)));
        hits.next() == Some(true) && hits.filter(|&hit| hit).count() >= count
    };
    match rule {
        Rule::BeyondLimits | Rule::Dispersion => all(Zone::is_beyond),
        Rule::OneSided => all_on(Ordering::Greater) || all_on(Ordering::Less),
        Rule::Trend => all_move(Ordering::Greater) || all_move(Ordering::Less),
        Rule::Alternation => seen.windows(3).all(|three| is_turn(three, lines)),
        Rule::TwoOfThree => newest_and(1, is_above_two_sigma) || newest_and(1, is_below_two_sigma),
        Rule::FourOfFive => newest_and(3, is_above_one_sigma) || newest_and(3, is_below_one_sigma),
        // On a chart without width no variation is expected, so none can be missing; and without a limit on one side the
        // expected variation is unknown.
        Rule::Stratification => lines.expect_variation() && all(is_within_one_sigma),
        // On one side only, this would be a shift, which Nelson leaves to rules 2 and 6.
        Rule::Mixture => {
            all(|zone| !is_within_one_sigma(zone))
                && any_on(Ordering::Greater)
                && any_on(Ordering::Less)
        }
    }
}

/// Returns whether the middle one of three points is a strict peak or a strict trough.
fn is_turn(three: &[f64], lines: &Lines) -> bool {
    let first = lines.compare(three[1], three[0]);
    first != Ordering::Equal && lines.compare(three[1], three[2]) == first
}

fn is_above_two_sigma(zone: Zone) -> bool {
    matches!(zone, Zone::BeyondUcl | Zone::ZoneAUpper)
}

fn is_below_two_sigma(zone: Zone) -> bool {
    matches!(zone, Zone::BeyondLcl | Zone::ZoneALower)
}

fn is_above_one_sigma(zone: Zone) -> bool {
    is_above_two_sigma(zone) || zone == Zone::ZoneBUpper
}

fn is_below_one_sigma(zone: Zone) -> bool {
    is_below_two_sigma(zone) || zone == Zone::ZoneBLower
}

fn is_within_one_sigma(zone: Zone) -> bool {
    matches!(zone, Zone::ZoneCUpper | Zone::ZoneCLower)
}

#[cfg(test)]
mod tests {
    use super::super::limits::ControlLimits;
    use super::*;

    /// The distance of a point from the line at 1, 2 or 3 that is just beyond the tolerance of 1e-9 sigma.
    const A_LITTLE: f64 = 1e-8;

    /// A point's value is its distance from the center line in sigma.
    const UNIT: ControlLimits = ControlLimits {
        center_line: 0.0,
        ucl: 3.0,
        lcl: -3.0,
    };

    /// One sigma is 1 above the center line and 2 below it.
    const LOPSIDED: ControlLimits = ControlLimits {
        center_line: 0.0,
        ucl: 3.0,
        lcl: -6.0,
    };

    /// Asserts that the rule is broken, or not, by `points` and by their mirror image alike.
    fn assert_broken(rule: Rule, points: &[f64], expected: bool) {
        let mirrored: Vec<f64> = points.iter().map(|x| -x).collect();
        for points in [points, &mirrored] {
            assert_eq!(
                is_broken(rule, points, &UNIT.lines()),
                expected,
                "{points:?}"
            );
        }
    }

    /// Asserts that the pattern breaks the rule, and no longer does without its oldest point.
    fn assert_just_enough(rule: Rule, points: &[f64]) {
        assert!((rule.needs()..=rule.span()).contains(&points.len()));
        assert_broken(rule, points, true);
        assert_broken(rule, &points[1..], false);
        // Earlier points do not change that.
        assert_broken(rule, &[&[0.0; 20], points].concat(), true);
    }

    /// Returns the points with one of them replaced.
    fn with(points: &[f64], index: usize, x: f64) -> Vec<f64> {
        let mut changed = points.to_vec();
        changed[index] = x;
        changed
    }

    #[test]
    fn rule_1_needs_one_point_beyond_a_limit() {
        assert_just_enough(Rule::BeyondLimits, &[3.0 + A_LITTLE]);
        assert_broken(Rule::BeyondLimits, &[3.0], false);
        assert_broken(Rule::BeyondLimits, &[9.0, 0.0], false);
    }

    #[test]
    fn rule_2_needs_nine_on_one_side() {
        let run = [0.1, 2.0, 0.1, 0.5, 0.4, 0.3, 0.2, 0.2, 0.1];
        assert_just_enough(Rule::OneSided, &run);
        for index in 0..run.len() {
            // A point on the center line is on neither side.
            assert_broken(Rule::OneSided, &with(&run, index, 0.0), false);
            assert_broken(Rule::OneSided, &with(&run, index, -0.1), false);
        }
    }

    #[test]
    fn rule_3_needs_six_steadily_rising_or_falling() {
        let trend = [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3];
        assert_just_enough(Rule::Trend, &trend);
        for index in 1..trend.len() {
            let level = with(&trend, index, trend[index - 1]);
            assert_broken(Rule::Trend, &level, false);
        }
    }

    #[test]
    fn rule_4_needs_fourteen_alternating() {
        let run = [0.5, -0.5].repeat(7);
        assert_just_enough(Rule::Alternation, &run);
        for index in 1..run.len() {
            let level = with(&run, index, run[index - 1]);
            assert_broken(Rule::Alternation, &level, false);
        }
        // Alternation is between neighbours, not around the center line.
        let drifting: Vec<f64> = run
            .iter()
            .zip(0..)
            .map(|(x, i)| x + f64::from(i) / 2.0)
            .collect();
        assert_broken(Rule::Alternation, &drifting, true);
    }

    #[test]
    fn rule_5_needs_two_of_three_beyond_two_sigma_and_the_newest_among_them() {
        assert_just_enough(Rule::TwoOfThree, &[2.1, 0.0, 2.1]);
        assert_just_enough(Rule::TwoOfThree, &[2.1, 2.1]);
        assert_just_enough(Rule::TwoOfThree, &[2.1, -9.0, 9.0]);
        assert_broken(Rule::TwoOfThree, &[2.1, 2.1, 2.0], false);
        assert_broken(Rule::TwoOfThree, &[2.0, 2.0, 2.1], false);
        assert_broken(Rule::TwoOfThree, &[2.1, 0.0, -2.1], false);
        assert_broken(Rule::TwoOfThree, &[2.1, 0.0, 0.0, 2.1], false);
    }

    #[test]
    fn rule_6_needs_four_of_five_beyond_one_sigma_and_the_newest_among_them() {
        assert_just_enough(Rule::FourOfFive, &[1.1, 1.1, 0.0, 1.1, 1.1]);
        assert_just_enough(Rule::FourOfFive, &[1.1, 1.1, 1.1, 1.1]);
        assert_broken(Rule::FourOfFive, &[1.1, 1.1, 1.1], false);
        assert_just_enough(Rule::FourOfFive, &[1.1, 2.1, -9.0, 9.0, 1.1]);
        assert_broken(Rule::FourOfFive, &[1.1, 1.1, 1.1, 1.1, 1.0], false);
        assert_broken(Rule::FourOfFive, &[1.0, 1.1, 1.0, 1.1, 1.1], false);
        assert_broken(Rule::FourOfFive, &[1.1, 1.1, 0.0, -1.1, 1.1], false);
        assert_broken(Rule::FourOfFive, &[1.1, 0.0, 1.1, 0.0, 1.1, 1.1], false);
    }

    #[test]
    fn rule_7_needs_fifteen_within_one_sigma() {
        let mut run = [0.5; 15];
        assert_just_enough(Rule::Stratification, &run);
        // Points on the boundary or on the center line are within, on either side.
        (run[3], run[7], run[14]) = (1.0, 0.0, -1.0);
        assert_just_enough(Rule::Stratification, &run);
        for index in 0..run.len() {
            let out = with(&run, index, 1.0 + A_LITTLE);
            assert_broken(Rule::Stratification, &out, false);
        }
    }

    #[test]
    fn rule_8_needs_eight_off_zone_c_and_both_sides() {
        let run = [1.1, 1.1, 2.5, -1.1, 1.1, 9.0, 1.1, 1.1];
        assert_just_enough(Rule::Mixture, &run);
        for index in 0..run.len() {
            assert_broken(Rule::Mixture, &with(&run, index, 1.0), false);
        }
        assert_broken(Rule::Mixture, &with(&run, 3, 1.1), false);
    }

    /// A publisher that means 0.3 can send 0.1 + 0.2.
    #[test]
    fn what_a_publisher_rounds_is_on_the_line_and_equal_to_its_neighbour() {
        let lines = ControlLimits {
            center_line: 0.3,
            ucl: 0.6,
            lcl: 0.0,
        }
        .lines();
        let (on_the_line, on_the_sigma) = (0.1 + 0.2, 0.1 + 0.3);
        assert!(on_the_line > 0.3);
        assert!(!is_broken(Rule::OneSided, &[on_the_line; 9], &lines));
        assert!(!is_broken(Rule::FourOfFive, &[on_the_sigma; 5], &lines));
        assert!(is_broken(Rule::Stratification, &[on_the_sigma; 15], &lines));
        assert!(!is_broken(Rule::BeyondLimits, &[0.1 + 0.5 + 1e-16], &lines));
        let level = [-0.1, 0.0, 0.1, 0.2, 0.3, on_the_line];
        assert!(!is_broken(Rule::Trend, &level, &lines));
        let mut turns = [0.2, 0.3].repeat(7);
        assert!(is_broken(Rule::Alternation, &turns, &lines));
        turns[6] = on_the_line;
        assert!(!is_broken(Rule::Alternation, &turns, &lines));
    }

    #[test]
    fn a_pattern_stays_broken_while_it_goes_on() {
        let signs = [1.0, -1.0].repeat(20);
        let rising: Vec<f64> = (1..=40).map(f64::from).collect();
        let patterns = [
            (Rule::OneSided, vec![0.1; 40]),
            (Rule::Trend, rising),
            (Rule::Alternation, signs.clone()),
            (Rule::FourOfFive, vec![1.5; 40]),
            (Rule::Stratification, signs.clone()),
            (Rule::Mixture, signs.iter().map(|sign| sign * 1.5).collect()),
        ];
        for (rule, points) in patterns {
            for count in 0..=points.len() {
                assert_broken(rule, &points[..count], count >= rule.needs());
            }
        }
    }

    #[test]
    fn each_side_is_measured_in_its_own_sigma() {
        let broken = |rule, points: &[f64]| is_broken(rule, points, &LOPSIDED.lines());
        assert!(broken(Rule::BeyondLimits, &[3.5]));
        assert!(!broken(Rule::BeyondLimits, &[-3.5]));
        assert!(broken(Rule::TwoOfThree, &[2.5, 2.5]));
        assert!(!broken(Rule::TwoOfThree, &[-2.5, -2.5]));
        assert!(broken(Rule::FourOfFive, &[1.5; 5]));
        assert!(!broken(Rule::FourOfFive, &[-1.5; 5]));
        assert!(!broken(Rule::Stratification, &[1.5; 15]));
        assert!(broken(Rule::Stratification, &[-1.5; 15]));
    }

    #[test]
    fn a_chart_without_width_reports_departures_and_nothing_else() {
        let flat = ControlLimits {
            center_line: 5.0,
            ucl: 5.0,
            lcl: 5.0,
        }
        .lines();
        for rule in Rule::ALL {
            assert!(!is_broken(rule, &[5.0; 40], &flat), "{rule:?}");
        }
        assert!(is_broken(Rule::BeyondLimits, &[5.0, 5.1], &flat));
        assert!(is_broken(Rule::OneSided, &[5.1; 9], &flat));
    }

    #[test]
    fn no_rule_looks_back_further_than_the_window() {
        assert_eq!(Rule::ALL.map(Rule::span).into_iter().max(), Some(WINDOW));
        for rule in Rule::ALL {
            assert!(!is_broken(rule, &[], &UNIT.lines()), "{rule:?}");
        }
    }

    #[test]
    fn a_rule_is_found_again_by_its_number() {
        for (rule, number) in Rule::ALL.into_iter().zip((1..=8).chain([101])) {
            assert_eq!(rule.number(), number);
            assert_eq!(Rule::from_number(number), Some(rule));
        }
        for stranger in [0, 9, 100, u8::MAX] {
            assert_eq!(Rule::from_number(stranger), None);
        }
    }

    #[test]
    fn no_two_rules_share_a_name_or_a_description() {
        let texts: Vec<&str> = Rule::ALL
            .into_iter()
            .flat_map(|rule| [rule.name(), rule.description()])
            .collect();
        for (index, text) in texts.iter().enumerate() {
            assert!(!texts[..index].contains(text), "{text}");
        }
    }
}
