//! The dispersion chart: moving ranges of single values (MR), or ranges (R) or standard deviations (S) within subgroups.
//! It has its own center line and limits, and each sample is a point on it as well as on the chart of the values or
//! means. Only one rule is usually applied to it: a point beyond its limits
//! ([`Rule::Dispersion`](super::nelson::Rule::Dispersion)).

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::invalid;
use super::limits::{self, ControlLimits, Zone, are_in_order};
use crate::kind::RuleError;

/// The type of a dispersion chart, by the meaning of its points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chart {
    /// Distances between successive single values.
    MovingRanges,
    /// Ranges of subgroups.
    Ranges,
    /// Standard deviations of subgroups.
    Deviations,
}

impl Chart {
    const ALL: [Chart; 3] = [Chart::MovingRanges, Chart::Ranges, Chart::Deviations];

    /// Returns the name in messages and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Chart::MovingRanges => "mr",
            Chart::Ranges => "r",
            Chart::Deviations => "s",
        }
    }

    /// Returns what its points are, for display.
    pub const fn points(self) -> &'static str {
        match self {
            Chart::MovingRanges => "Moving ranges",
            Chart::Ranges => "Ranges",
            Chart::Deviations => "Standard deviations",
        }
    }

    /// Parses the text that [`Chart::as_str`] returns.
    pub fn parse(text: &str) -> Option<Chart> {
        Chart::ALL.into_iter().find(|chart| chart.as_str() == text)
    }

    /// Returns the sample's point on this chart, if it has one. `previous` is the value measured immediately before.
    pub(super) fn point(self, values: &[f64], previous: Option<f64>) -> Option<f64> {
        match (self, values) {
            (Chart::MovingRanges, [value]) => Some(limits::range(&[previous?, *value])),
            (Chart::Ranges, [_, _, ..]) => Some(limits::range(values)),
            (Chart::Deviations, [_, _, ..]) => Some(limits::deviation(values)),
            _ => None,
        }
    }
}

crate::kind::unnamed_schema!(Chart, crate::kind::one_of(Chart::ALL.map(Chart::as_str)));

impl Serialize for Chart {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Chart {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Chart, D::Error> {
        let text = String::deserialize(deserializer)?;
        Chart::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("a dispersion chart is `mr`, `r` or `s`"))
    }
}

/// A dispersion chart: its type and its lines. Messages, the API and the database share this form.
#[derive(Debug, Clone, Copy, PartialEq, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dispersion {
    /// `mr`, `r` or `s`.
    pub chart: Chart,
    /// The mean of its points.
    pub center_line: f64,
    /// Upper control limit, if there is one.
    #[serde(default)]
    pub ucl: Option<f64>,
    /// Lower control limit, if there is one. No point is below 0.
    #[serde(default)]
    pub lcl: Option<f64>,
}

impl Dispersion {
    pub(super) fn new(chart: Chart, limits: &ControlLimits) -> Dispersion {
        Dispersion {
            chart,
            center_line: limits.center_line,
            ucl: limits.upper(),
            lcl: limits.lower(),
        }
    }

    /// Returns its lines.
    pub fn limits(&self) -> ControlLimits {
        ControlLimits {
            center_line: self.center_line,
            ucl: self.ucl.unwrap_or(f64::INFINITY),
            lcl: self.lcl.unwrap_or(f64::NEG_INFINITY),
        }
    }

    /// Returns the sample's point on this chart with its zone. `previous` is the value measured immediately before.
    pub(super) fn judge(&self, values: &[f64], previous: Option<f64>) -> Option<Point> {
        let value = self.chart.point(values, previous)?;
        Some(Point {
            chart: self.chart,
            value,
            zone: self.limits().lines().zone(value),
        })
    }

    /// Fails if a publisher cannot set this chart for samples of `size` values.
    pub(super) fn check(&self, size: u32) -> Result<(), RuleError> {
        let fits = match self.chart {
            Chart::MovingRanges => size == 1,
            Chart::Ranges | Chart::Deviations => size > 1,
        };
        if !fits {
            let expected =
                "must have the `chart` mr for samples of one value, and r or s for subgroups";
            return Err(invalid("dispersion", expected));
        }
        if !are_in_order(&self.limits()) {
            let expected = "must have a `center_line` with `ucl`, `lcl` or both, `ucl` above `lcl` and `center_line` between";
            return Err(invalid("dispersion", expected));
        }
        Ok(())
    }
}

/// A point on a dispersion chart, with its zone.
#[derive(Debug, Clone, Copy, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "DispersionPoint")]
pub struct Point {
    /// The type of chart.
    pub chart: Chart,
    /// The sample's moving range, range or standard deviation.
    pub value: f64,
    /// The zone between the chart's lines in which it lies.
    #[serde(serialize_with = "by_name", deserialize_with = "from_name")]
    pub zone: Zone,
}

fn by_name<S: Serializer>(zone: &Zone, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(zone.as_str())
}

fn from_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zone, D::Error> {
    let text = String::deserialize(deserializer)?;
    let zone = Zone::ALL.into_iter().find(|zone| zone.as_str() == text);
    zone.ok_or_else(|| serde::de::Error::custom("no zone has this name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_found_again_by_its_name() {
        for chart in Chart::ALL {
            assert_eq!(Chart::parse(chart.as_str()), Some(chart));
        }
        assert_eq!(Chart::parse("R"), None);
    }

    #[test]
    fn a_moving_range_needs_a_neighbour_and_a_range_a_subgroup() {
        assert_eq!(Chart::MovingRanges.point(&[0.3], Some(0.1)), Some(0.2));
        assert_eq!(Chart::MovingRanges.point(&[0.3], None), None);
        assert_eq!(Chart::Ranges.point(&[0.3, 0.1, 0.2], None), Some(0.2));
        assert_eq!(Chart::Deviations.point(&[0.3, 0.1, 0.2], None), Some(0.1));
        assert_eq!(Chart::Ranges.point(&[0.3], None), None);
        assert_eq!(Chart::MovingRanges.point(&[0.3, 0.1], Some(0.2)), None);
    }
}
