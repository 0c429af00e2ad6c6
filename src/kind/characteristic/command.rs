//! Commands to a characteristic. Their fields are the bodies of the HTTP requests and of a batch's lines.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::dispersion::{Chart, Dispersion};
use super::{Characteristic, Method, PART_ID_MAX_BYTES, Severity};
use crate::kind::{Body, CommandOf};

/// A command to a characteristic. The fields are the bodies of the HTTP requests; unknown fields are rejected.
#[derive(Debug, Clone)]
pub enum Command {
    /// Creates the characteristic or updates its description.
    Register(Register),
    /// Sets limits or starts a baseline.
    Limits(SetLimits),
    /// Adds a measurement.
    Sample(NewSample),
    /// Reports a violation that was detected elsewhere.
    Violation(NewViolation),
    /// Acknowledges a violation.
    Acknowledge(Acknowledge),
    /// Withdraws the acknowledgement of a violation.
    Unacknowledge(Acknowledge),
}

/// Identifies a violation, with the user and the reason.
#[derive(Debug, Clone)]
pub struct Acknowledge {
    /// Its number within the characteristic.
    pub number: u64,
    /// The user who acts.
    pub user: Arc<str>,
    /// Why the violation is acceptable, or what is done about it; for a withdrawal, why that no longer applies.
    pub reason: String,
}

/// Creates or changes a characteristic. A field that is left out keeps its value.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "name": "Diameter", "unit": "mm", "limits": { "center_line": 10.0, "ucl": 10.3, "lcl": 9.7 } }))]
pub struct Register {
    /// The display name.
    pub name: Option<String>,
    /// The unit of the measurements.
    pub unit: Option<String>,
    /// Values per sample, 1 to 25; it cannot change once there are samples.
    #[schemars(range(min = 1, max = 25))]
    pub subgroup_size: Option<u32>,
    /// The enabled rules: numbers, or `{rule_id, severity}`.
    pub rules: Option<Vec<RuleSetting>>,
    /// Limits, as in `PUT …/limits`.
    #[serde(deserialize_with = "crate::kind::from_optional_object")]
    pub limits: Option<SetLimits>,
}

/// A rule to enable.
#[derive(Debug, Clone, Copy, JsonSchema, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a rule's number, or an object with `rule_id` and `severity`"
)]
pub enum RuleSetting {
    /// With its default severity.
    Number(u8),
    /// With the given severity.
    WithSeverity {
        /// Its number.
        rule_id: u8,
        /// The severity.
        severity: Severity,
    },
}

/// Sets the control limits: the lines, or a method to compute them.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "center_line": 10.0, "ucl": 10.4, "lcl": 9.6 }))]
pub struct SetLimits {
    /// The process mean.
    pub center_line: Option<f64>,
    /// Upper control limit; absent if there is only a lower one.
    pub ucl: Option<f64>,
    /// Lower control limit; absent if there is only an upper one.
    pub lcl: Option<f64>,
    /// Without lines: `moving_range` (samples of one value), or `xbar_r` or `xbar_s` (samples of several). With lines:
    /// how they were computed.
    pub method: Option<Method>,
    /// The number of samples, from now on, from which the lines are computed.
    pub samples: Option<u32>,
    /// The number of samples from which the given lines were computed.
    pub sample_count: Option<u32>,
    /// With lines: the dispersion chart and its lines.
    #[serde(deserialize_with = "crate::kind::from_optional_object")]
    pub dispersion: Option<Dispersion>,
}

/// Adds a sample, which is evaluated against the control limits.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "value": 10.1 }))]
pub struct NewSample {
    /// The sample's id; `<characteristic id>.<number>` if absent.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    #[schemars(with = "Option<PartId>")]
    pub sample_id: Option<String>,
    /// The measurement, for samples of one value. Null is a gap: nothing was measured.
    #[serde(default, deserialize_with = "null_or_not")]
    pub value: Option<Option<f64>>,
    /// The measurements of a subgroup. Null, or only nulls, is a gap.
    #[serde(default, deserialize_with = "null_or_not")]
    pub values: Option<Option<Vec<Option<f64>>>>,
    /// When the sample was taken; now if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_time")]
    #[schemars(with = "Option<crate::kind::Time>")]
    pub timestamp: Option<DateTime<Utc>>,
    /// The publisher's verdict: the zone, as free text. A sample with any part of a verdict is not evaluated by the
    /// server.
    #[serde(default)]
    pub zone: Option<String>,
    /// The publisher's verdict: whether the process is in control; if absent, true if there are no `violations`.
    #[serde(default)]
    pub in_control: Option<bool>,
    /// The publisher's verdict: the violations that the sample opens.
    #[serde(default)]
    pub violations: Option<Vec<NewViolation>>,
}

/// The schema of the id of a sample or violation.
struct PartId;

crate::kind::unnamed_schema!(
    PartId,
    schemars::json_schema!({
        "type": ["string", "integer"],
        "minLength": 1,
        "maxLength": PART_ID_MAX_BYTES,
        "pattern": r"^[^\x00-\x1f\x7f-\x9f]+$",
    })
);

/// Distinguishes a field that is null from an absent one.
fn null_or_not<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl NewSample {
    /// Returns whether the sample contains a verdict of its publisher.
    pub(super) fn is_judged(&self) -> bool {
        self.zone.is_some() || self.in_control.is_some() || self.violations.is_some()
    }
}

/// Reports a violation that the publisher has found.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "rule_id": 1, "severity": "critical" }))]
pub struct NewViolation {
    /// The violation's id; `<characteristic id>.<number>` if absent.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    #[schemars(with = "Option<PartId>")]
    pub violation_id: Option<String>,
    /// The number of a Nelson rule, 101, or the publisher's own number.
    pub rule_id: u32,
    /// The rule's display name; rules 1 to 8 and 101 have a default.
    #[serde(default)]
    pub rule_name: Option<String>,
    /// The dispersion chart, if the violation was detected on one.
    #[serde(default)]
    pub chart: Option<Chart>,
    /// The severity.
    #[serde(default)]
    pub severity: Option<Severity>,
    /// The sample that shows the violation; if absent, the sample that contains this report, or else the last one.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    #[schemars(with = "Option<PartId>")]
    pub sample_id: Option<String>,
    /// When it was detected; now if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_time")]
    #[schemars(with = "Option<crate::kind::Time>")]
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
            Command::Acknowledge(acknowledge) | Command::Unacknowledge(acknowledge) => {
                Some(acknowledge.number)
            }
            _ => None,
        }
    }

    fn names_parts(&self) -> Vec<&str> {
        let violations = match self {
            Command::Violation(violation) => std::slice::from_ref(violation),
            Command::Sample(sample) => sample.violations.as_deref().unwrap_or_default(),
            _ => &[],
        };
        let ids = violations
            .iter()
            .map(|violation| violation.violation_id.as_deref());
        ids.flatten().collect()
    }
}
