//! What can be asked of a characteristic. The fields are the bodies of the HTTP calls and of a batch's lines.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Deserialize;

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
    Acknowledge {
        /// Its number within the characteristic.
        number: u64,
        /// Who.
        user: Arc<str>,
        /// Why it is well, or what is done about it.
        reason: String,
    },
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
        /// Nelson's number.
        rule_id: u8,
        /// How bad.
        severity: Severity,
    },
}

/// Body of `PUT /api/characteristics/<id>/limits`: the three lines, or a method to compute them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SetLimits {
    /// The process mean.
    pub center_line: Option<f64>,
    /// Upper control limit.
    pub ucl: Option<f64>,
    /// Lower control limit.
    pub lcl: Option<f64>,
    /// `moving_range` (samples of one value) or `xbar_r` (of several).
    pub method: Option<Method>,
    /// Of how many samples from now on.
    pub samples: Option<u32>,
}

/// Body of `samples`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSample {
    /// The sample's id; `<characteristic id>.<number>` if absent.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    pub sample_id: Option<String>,
    /// The measurement, where a sample is one.
    #[serde(default)]
    pub value: Option<f64>,
    /// The measurements of a subgroup.
    #[serde(default)]
    pub values: Option<Vec<f64>>,
    /// When it was taken; now if absent.
    #[serde(default)]
    pub timestamp: Option<DateTime<Utc>>,
}

/// Body of `violations`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewViolation {
    /// Nelson's number, or one's own.
    pub rule_id: u32,
    /// For people; a Nelson rule has one of its own.
    #[serde(default)]
    pub rule_name: Option<String>,
    /// How bad.
    #[serde(default)]
    pub severity: Option<Severity>,
    /// The sample that shows it; the last one if absent.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    pub sample_id: Option<String>,
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

    fn wants_violation(&self) -> Option<u64> {
        match self {
            Command::Acknowledge { number, .. } => Some(*number),
            _ => None,
        }
    }
}
