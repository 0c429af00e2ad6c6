//! A characteristic: something that is measured repeatedly, under statistical process control.
//!
//! Each sample is evaluated by the control limits in force, which are given or computed from a *baseline* of the first
//! samples, and by the enabled rules ([`nelson`]): Nelson's eight rules, and one of the dispersion chart
//! ([`dispersion`]). A broken rule opens one violation for each run of samples that break it; a user acknowledges it with
//! a reason, and can withdraw the acknowledgement. The rules consider only samples that were evaluated by the same
//! limits. A sample that contains its publisher's own verdict is not evaluated here: the verdict is passed on. A sample
//! without a value is a gap.

mod command;
pub mod dispersion;
mod exact;
mod factors;
pub mod limits;
mod message;
pub mod nelson;
mod rules;
mod sampling;
mod setting;

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use num_bigint::BigInt;
use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use self::command::{
    Acknowledge, Command, NewSample, NewViolation, Register, RuleSetting, SetLimits,
};
use self::dispersion::{Chart, Dispersion};
use self::exact::BigRational;
use self::limits::ControlLimits;
use self::message::Details;
pub use self::message::{
    Ack, Collecting, Enveloped, InForce, Opened, Sample, limits_draft, payload_of, sample_draft,
    severity, violation_draft,
};
use self::nelson::Rule;
pub use self::rules::apply;
use super::{At, Description, PartOf, RuleError, StatusText, Subject, Texts};
use crate::event::{Draft, EventType, Fields};
use crate::id::{Kind, SUBJECT_ID_MAX_BYTES, SubjectId};

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("characteristics");
/// The parts of a characteristic are its violations.
pub type Part = Violation;
/// A measurement with its evaluation.
pub static SAMPLE: EventType = EventType::new::<Enveloped<Sample>>("sample");
/// A rule was broken.
pub static VIOLATION: EventType = EventType::new::<Enveloped<Opened>>("violation").beside_ticks();
/// A violation was acknowledged. Subscribers to any characteristic receive it.
pub static ACK_UPDATE: EventType = EventType::new::<Enveloped<Ack>>("ack_update")
    .beside_ticks()
    .wide();
/// The limits in force changed, or a baseline was started.
pub static CONTROL_LIMITS: EventType =
    EventType::new::<Enveloped<InForce>>("control_limits").beside_ticks();
/// The description of this kind.
pub static DESCRIPTION: Description = Description {
    kind: KIND,
    noun: "Characteristic",
    title: "Process control",
    id_field: "characteristic_id",
    other_ids: &["sample_id", "violation_id"],
    event_types: &[&SAMPLE, &VIOLATION, &ACK_UPDATE, &CONTROL_LIMITS],
    statuses: &[IN_CONTROL, OUT_OF_CONTROL],
    made_by: "put",
    verbs: &["samples", "violations", "limits"],
    details: Details::json_schema,
    columns: &[],
};
/// The last sample breaks no rule, or there is nothing to evaluate it by.
pub const IN_CONTROL: &str = "in_control";
/// The last sample breaks a rule.
pub const OUT_OF_CONTROL: &str = "out_of_control";
/// The longest id of a sample or a violation, in bytes. By default it consists of the characteristic's id and a number.
pub const PART_ID_MAX_BYTES: usize = SUBJECT_ID_MAX_BYTES + 21;
/// The longest `name`, `unit` or `rule_name`, in bytes.
pub const NAME_MAX_BYTES: usize = 256;
/// The maximum number of violations in a sample.
pub const SAMPLE_VIOLATIONS_MAX: usize = 32;
/// The maximum number of samples in a baseline.
pub const BASELINE_MAX: u32 = 100;
/// The default number of samples in a baseline.
pub const BASELINE_DEFAULT: u32 = 20;
/// The largest absolute value of a measurement: limits computed from such values do not overflow.
pub const VALUE_MAX: f64 = 1e300;

/// The severity of a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Severity {
    /// For information.
    Info,
    /// Needs attention.
    Warning,
    /// Needs action.
    Critical,
}

impl Severity {
    /// Returns the name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }

    /// Parses the text that [`Severity::as_str`] returns.
    pub fn parse(text: &str) -> Option<Severity> {
        [Severity::Info, Severity::Warning, Severity::Critical]
            .into_iter()
            .find(|severity| severity.as_str() == text)
    }

    /// Returns a rule's default severity: critical for a point beyond the limits, a warning for the other patterns.
    fn usual(rule: Rule) -> Severity {
        match rule {
            Rule::BeyondLimits | Rule::Dispersion => Severity::Critical,
            _ => Severity::Warning,
        }
    }
}

impl<'de> Deserialize<'de> for Severity {
    /// Accepts any case.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Severity, D::Error> {
        let text = String::deserialize(deserializer)?.to_ascii_lowercase();
        Severity::parse(&text).ok_or_else(|| {
            serde::de::Error::custom("a severity is `info`, `warning` or `critical`, in any case")
        })
    }
}

/// How limits were determined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// Given by the publisher, without a method.
    Given,
    /// Computed from the mean moving range of single values.
    MovingRange,
    /// Computed from the mean range of subgroups.
    XbarR,
    /// Computed from the mean standard deviation of subgroups.
    XbarS,
    /// Given, with the publisher's own name for the method.
    Named(Arc<str>),
}

impl Method {
    /// Returns the name in messages and in the database.
    pub fn as_str(&self) -> &str {
        match self {
            Method::Given => "given",
            Method::MovingRange => "moving_range",
            Method::XbarR => "xbar_r",
            Method::XbarS => "xbar_s",
            Method::Named(name) => name,
        }
    }

    /// Returns whether it computes limits from a baseline.
    fn is_computed(&self) -> bool {
        matches!(self, Method::MovingRange | Method::XbarR | Method::XbarS)
    }

    /// Parses the text that [`Method::as_str`] returns.
    pub fn parse(text: &str) -> Method {
        let known = [
            Method::Given,
            Method::MovingRange,
            Method::XbarR,
            Method::XbarS,
        ];
        let found = known.into_iter().find(|method| method.as_str() == text);
        found.unwrap_or_else(|| Method::Named(text.into()))
    }
}

super::unnamed_schema!(
    Method,
    json_schema!({ "type": "string", "minLength": 1, "maxLength": NAME_MAX_BYTES })
);

impl Serialize for Method {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Method {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Method, D::Error> {
        String::deserialize(deserializer).map(|text| Method::parse(&text))
    }
}

/// Limits in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The lines.
    pub chart: ControlLimits,
    /// The dispersion chart, if there is one.
    pub dispersion: Option<Dispersion>,
    /// How they were determined.
    pub method: Method,
    /// The number of samples they are based on.
    pub sample_count: u32,
    /// 1, 2, 3, …: each sample contains the version by which it was evaluated.
    pub version: u32,
}

/// Samples that are being collected to compute limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The method that will compute the limits.
    pub method: Method,
    /// The number of samples to collect.
    pub samples: u32,
    /// The samples collected so far, in order.
    pub collected: Vec<Collected>,
}

/// What a baseline keeps of a sample: numbers from which the limits can be computed exactly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Collected {
    /// A sample. Its mean can be a recurring decimal (1/3); the sum from which it is computed is finite.
    Measured {
        /// The sum of its values: exact, unless it has more digits than a double.
        sum: f64,
        /// Their range or standard deviation, depending on the method; 0 for a single value.
        spread: f64,
    },
    /// Mean and range of a sample: the format of the first release.
    Summary(f64, f64),
    /// Nothing was measured.
    Gap,
}

impl Baseline {
    /// Returns how many samples have been collected, without gaps.
    pub fn measured(&self) -> usize {
        let is_gap = |entry: &&Collected| **entry == Collected::Gap;
        self.collected.len() - self.collected.iter().filter(is_gap).count()
    }

    /// Drops the oldest sample, and the gap after it, if there is one.
    fn forget_first(&mut self) {
        let count = match self.collected.get(1) {
            Some(Collected::Gap) => 2,
            _ => 1,
        };
        self.collected.drain(..count.min(self.collected.len()));
    }
}

impl Collected {
    /// Returns the mean of a sample of `size` values.
    fn mean(&self, size: usize) -> Option<BigRational> {
        match self {
            Collected::Measured { sum, .. } => Some(exact::decimal(*sum) / BigInt::from(size)),
            Collected::Summary(mean, _) => Some(exact::decimal(*mean)),
            Collected::Gap => None,
        }
    }

    /// Returns the range or standard deviation of a sample.
    fn spread(&self) -> Option<f64> {
        match *self {
            Collected::Measured { spread, .. } | Collected::Summary(_, spread) => Some(spread),
            Collected::Gap => None,
        }
    }
}

/// The complete state of a characteristic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Characteristic {
    /// The display name.
    pub name: Option<Arc<str>>,
    /// The unit of its measurements.
    pub unit: Option<Arc<str>>,
    /// Values per sample.
    pub subgroup_size: u32,
    /// The enabled rules.
    pub rules: Vec<(Rule, Severity)>,
    /// The limits in force.
    pub limits: Option<Limits>,
    /// The highest version of limits so far.
    pub limits_version: u32,
    /// The baseline that is being collected.
    pub baseline: Option<Baseline>,
    /// The last points evaluated by the limits in force, oldest first, at most [`nelson::WINDOW`].
    pub recent: Vec<f64>,
    /// The rules that the last sample breaks, each with the number of its violation.
    pub runs: Vec<(Rule, u64)>,
    /// Whether the last sample was in control, if its publisher evaluated it.
    pub publisher_in_control: Option<bool>,
    /// The number of samples so far.
    pub sample_count: u64,
    /// The number of violations so far, which is the number of the last one.
    pub violation_count: u64,
    /// The last sample.
    pub last_sample: Option<LastSample>,
    /// The `seq` of the event that published the limits, and its time.
    #[serde(rename = "told_limits")]
    pub published_limits: (u64, DateTime<Utc>),
    /// When the characteristic was created.
    pub created_at: DateTime<Utc>,
}

/// The last sample, as it was published.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LastSample {
    /// Its id.
    pub sample_id: Arc<str>,
    /// The `seq` of its event.
    pub seq: u64,
    /// When it was published.
    pub at: DateTime<Utc>,
    /// The characteristic's status after it.
    #[serde(deserialize_with = "crate::kind::status_text")]
    pub status: StatusText,
    /// The fields of its message.
    pub fields: Fields,
}

/// A broken rule.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Violation {
    /// The characteristic.
    pub characteristic_id: SubjectId,
    /// 1, 2, 3, … within the characteristic.
    pub number: u64,
    /// The id that the publisher assigned to it, if any; it replaces the default id.
    pub own_id: Option<Arc<str>>,
    /// The sample that shows it, if it is known.
    pub sample_id: Option<Arc<str>>,
    /// The dispersion chart, if it was detected on one.
    pub chart: Option<Chart>,
    /// The number of a Nelson rule, 101, or the publisher's own number.
    pub rule_id: u32,
    /// The rule's display name.
    pub rule_name: Arc<str>,
    /// The severity.
    pub severity: Severity,
    /// When it was detected.
    pub at: DateTime<Utc>,
    /// The `seq` of its event.
    pub seq: u64,
    /// The acknowledgement, if there is one.
    pub acknowledgement: Option<Acknowledgement>,
}

/// Who acknowledged a violation, why and when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Acknowledgement {
    /// The user.
    pub user: Arc<str>,
    /// Why the violation is acceptable, or what is done about it.
    pub reason: Arc<str>,
    /// When the user acknowledged it.
    pub at: DateTime<Utc>,
}

/// The default id of a violation: `<characteristic id>.<number>`. Ids assigned by publishers cannot have this form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViolationId {
    /// The characteristic.
    pub characteristic_id: SubjectId,
    /// The number of the violation.
    pub number: u64,
}

impl ViolationId {
    /// Parses an id. Returns `None` if it cannot be one.
    pub fn parse(text: &str) -> Option<ViolationId> {
        let (characteristic_id, digits) = text.rsplit_once('.')?;
        let number = digits.parse().ok()?;
        let id = ViolationId {
            characteristic_id: characteristic_id.parse().ok()?,
            number,
        };
        // Each id has only one spelling: no leading zeros or signs.
        (id.to_string() == text).then_some(id)
    }
}

impl std::fmt::Display for ViolationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.characteristic_id, self.number)
    }
}

impl Violation {
    /// Returns its id.
    pub fn id(&self) -> Cow<'_, str> {
        match &self.own_id {
            Some(id) => Cow::Borrowed(id),
            None => Cow::Owned(format!("{}.{}", self.characteristic_id, self.number)),
        }
    }

    /// Returns its id as a shared string.
    fn shared_id(&self) -> Arc<str> {
        match &self.own_id {
            Some(id) => Arc::clone(id),
            None => self.id().into(),
        }
    }
}

impl PartOf for Violation {
    fn subject(&self) -> &SubjectId {
        &self.characteristic_id
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn own_id(&self) -> Option<&Arc<str>> {
        self.own_id.as_ref()
    }

    fn seq(&self) -> u64 {
        self.seq
    }

    fn closed_at(&self) -> Option<DateTime<Utc>> {
        self.acknowledgement
            .as_ref()
            .map(|acknowledgement| acknowledgement.at)
    }

    fn current(&self) -> (At, Draft) {
        ((self.seq, self.at), violation_draft(self))
    }
}

impl Characteristic {
    /// Returns whether the last sample breaks a rule.
    pub fn status(&self) -> &'static str {
        match self.publisher_in_control.unwrap_or(self.runs.is_empty()) {
            true => IN_CONTROL,
            false => OUT_OF_CONTROL,
        }
    }
}

impl Subject for Characteristic {
    fn describe(&self, id: &SubjectId, _: DateTime<Utc>) -> Draft {
        limits_draft(id, self)
    }

    fn text_bytes(&self) -> usize {
        let texts = [&self.name, &self.unit].into_iter().flatten();
        texts.map(|text| text.len()).sum()
    }

    fn title(&self) -> Option<String> {
        self.name.as_deref().map(Into::into)
    }

    fn status(&self) -> &'static str {
        Characteristic::status(self)
    }

    fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    fn places(&self, _: u64) -> [Option<u64>; 2] {
        let sample = self.last_sample.as_ref();
        [Some(self.published_limits.0), sample.map(|last| last.seq)]
    }

    fn current(&self, id: &SubjectId, _: At, _: DateTime<Utc>) -> Vec<(At, Draft)> {
        let mut current = vec![(self.published_limits, limits_draft(id, self))];
        let sample = self.last_sample.as_ref().zip(sample_draft(self));
        current.extend(sample.map(|(last, draft)| ((last.seq, last.at), draft)));
        current
    }

    /// A sample is superseded only by a later sample.
    fn superseding(&self, _: u64) -> Option<(u64, &'static str)> {
        self.last_sample
            .as_ref()
            .map(|last| (last.seq, last.status))
    }

    fn texts(&self) -> Texts<'_> {
        Texts {
            own: self.name.as_deref().into_iter().collect(),
            values: None,
        }
    }

    fn details(&self, id: &SubjectId) -> Value {
        serde_json::to_value(Details::of(id, self)).expect("details are JSON")
    }
}

fn invalid(field: &'static str, expected: impl Into<String>) -> RuleError {
    RuleError::Invalid {
        field,
        expected: expected.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_violation_id_has_one_spelling() {
        for text in ["a.1", "a.b.12", "7.3", "a..1"] {
            assert_eq!(ViolationId::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "a", "a.", ".1", "a.01", "a.+1", "a.-1", "a.x", "a\n.1"] {
            assert_eq!(ViolationId::parse(text), None, "{text}");
        }
    }
}
