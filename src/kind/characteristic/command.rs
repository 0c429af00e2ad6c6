//! What can be asked of a characteristic. The fields are the bodies of the HTTP calls and of a batch's lines.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};

use super::dispersion::{Chart, Dispersion};
use super::{Characteristic, Method, Severity};
use crate::kind::{Body, CommandOf};

/// What can be asked of a characteristic. The fields are the bodies of the HTTP calls; unknown ones are refused.
#[derive(Debug, Clone)]
pub enum Command {
    /// Make it known, or describe it anew.
    Register(Register),
    /// Set limits, or begin a baseline.
    Limits(SetLimits),
    /// A measurement.
    Sample(NewSample),
    /// A violation that was found elsewhere.
    Violation(NewViolation),
    /// Acknowledge a violation.
    Acknowledge(Acknowledge),
    /// Take the acknowledgement of a violation back.
    Unacknowledge(Acknowledge),
}

/// Of a violation, by its number within the characteristic.
#[derive(Debug, Clone)]
pub struct Acknowledge {
    /// Its number within the characteristic.
    pub number: u64,
    /// Who.
    pub user: Arc<str>,
    /// Why it is well, or what is done about it; or why that does not hold.
    pub reason: String,
}

/// Body of `PUT /api/characteristics/<id>`. An absent field stays as it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Register {
    /// What people call it.
    pub name: Option<String>,
    /// Of its measurements.
    pub unit: Option<String>,
    /// Values in a sample, 1 to 25; it cannot change once there are samples.
    pub subgroup_size: Option<u32>,
    /// The rules that are switched on: numbers, or `{rule_id, severity}`.
    pub rules: Option<Vec<RuleSetting>>,
    /// Limits, as in `PUT …/limits`.
    #[serde(deserialize_with = "crate::kind::from_optional_object")]
    pub limits: Option<SetLimits>,
}

/// A rule to switch on.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a rule's number, or an object with `rule_id` and `severity`"
)]
pub enum RuleSetting {
    /// With its usual severity.
    Number(u8),
    /// With a severity of one's own.
    WithSeverity {
        /// Its number.
        rule_id: u8,
        /// How bad.
        severity: Severity,
    },
}

/// Body of `PUT /api/characteristics/<id>/limits`: the lines, or a method to compute them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SetLimits {
    /// The process mean.
    pub center_line: Option<f64>,
    /// Upper control limit; nothing if there is only a lower one.
    pub ucl: Option<f64>,
    /// Lower control limit; nothing if there is only an upper one.
    pub lcl: Option<f64>,
    /// Without lines `moving_range` (samples of one value), `xbar_r` or `xbar_s` (of several); with them how they were
    /// found.
    pub method: Option<Method>,
    /// Of how many samples from now on lines are computed.
    pub samples: Option<u32>,
    /// From how many samples the given lines were found.
    pub sample_count: Option<u32>,
    /// With lines: the chart of the variation, and its lines.
    #[serde(deserialize_with = "crate::kind::from_optional_object")]
    pub dispersion: Option<Dispersion>,
}

/// Body of `samples`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSample {
    /// The sample's id; `<characteristic id>.<number>` if absent.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    pub sample_id: Option<String>,
    /// The measurement, where a sample is one. Null is a gap: nothing was measured.
    #[serde(default, deserialize_with = "null_or_not")]
    pub value: Option<Option<f64>>,
    /// The measurements of a subgroup. Null, or nothing but nulls, is a gap.
    #[serde(default, deserialize_with = "null_or_not")]
    pub values: Option<Option<Vec<Option<f64>>>>,
    /// When it was taken; now if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_time")]
    pub timestamp: Option<DateTime<Utc>>,
    /// The publisher's verdict: the zone, in its own words. With any part of a verdict the sample is not judged here.
    #[serde(default)]
    pub zone: Option<String>,
    /// The publisher's verdict: whether the process is in control; if absent, whether there are no `violations`.
    #[serde(default)]
    pub in_control: Option<bool>,
    /// The publisher's verdict: what the sample opens.
    #[serde(default)]
    pub violations: Option<Vec<NewViolation>>,
}

/// Tells a field that is null from one that is absent.
fn null_or_not<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl NewSample {
    /// Whether the publisher has judged it.
    pub(super) fn is_judged(&self) -> bool {
        self.zone.is_some() || self.in_control.is_some() || self.violations.is_some()
    }
}

/// Body of `violations`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewViolation {
    /// The violation's id; `<characteristic id>.<number>` if absent.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    pub violation_id: Option<String>,
    /// Nelson's number, 101, or one's own.
    pub rule_id: u32,
    /// For people; the rules 1 to 8 and 101 have one of their own.
    #[serde(default)]
    pub rule_name: Option<String>,
    /// The dispersion chart, if it was found on one.
    #[serde(default)]
    pub chart: Option<Chart>,
    /// How bad.
    #[serde(default)]
    pub severity: Option<Severity>,
    /// The sample that shows it; the last one if absent, or the one that it comes with.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    pub sample_id: Option<String>,
    /// When it was found; now if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_time")]
    pub timestamp: Option<DateTime<Utc>>,
}

impl CommandOf<Characteristic> for Command {
    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Command, B::Error>> {
        Some(match verb {
            "put" => body.read().map(Command::Register),
            "limits" => body.read().map(Command::Limits),
            "samples" => body.read().map(Command::Sample),
            "violations" => body.read().map(Command::Violation),
            _ => return None,
        })
    }

    fn wants_part(&self) -> Option<u64> {
        match self {
            Command::Acknowledge(own) | Command::Unacknowledge(own) => Some(own.number),
            _ => None,
        }
    }

    fn names_parts(&self) -> Vec<&str> {
        let violations = match self {
            Command::Violation(violation) => std::slice::from_ref(violation),
            Command::Sample(sample) => sample.violations.as_deref().unwrap_or_default(),
            _ => &[],
        };
        let ids = violations.iter().map(|own| own.violation_id.as_deref());
        ids.flatten().collect()
    }
}
