//! A characteristic: something that is measured again and again, under statistical process control.
//!
//! Each sample is judged by the control limits in force, which are given or computed from a *baseline* of the
//! first samples, and by those of the rules ([`nelson`]) that are switched on: the eight of Nelson, and one of the chart that
//! watches the variation ([`dispersion`]). A rule that is
//! broken opens a violation, once for each run of samples that break it; somebody acknowledges it, with a
//! reason, and may take that back. The rules look only at samples that the same limits have judged. A sample that comes
//! with its publisher's own verdict is not judged here: the verdict is passed on. One without a value is a gap.

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
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

pub use self::command::{
    Acknowledge, Command, NewSample, NewViolation, Register, RuleSetting, SetLimits,
};
use self::dispersion::{Chart, Dispersion};
use self::exact::BigRational;
use self::limits::ControlLimits;
pub use self::message::{
    Ack, Collecting, Enveloped, InForce, Opened, Sample, limits_draft, sample_draft, severity,
    told, violation_draft,
};
use self::nelson::Rule;
pub use self::rules::apply;
use super::{Description, PartOf, RuleError, Subject};
use crate::event::{Draft, EventType, Fields, timestamp};
use crate::id::{Kind, SUBJECT_ID_MAX_BYTES, SubjectId};

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("characteristics");
/// The violations of a characteristic are its parts.
pub type Part = Violation;
/// A measurement, judged.
pub static SAMPLE: EventType = EventType::new("sample");
/// A rule is broken.
pub static VIOLATION: EventType = EventType::new("violation").beside_ticks();
/// A violation is acknowledged. It is the concern of everyone who watches the process.
pub static ACK_UPDATE: EventType = EventType::new("ack_update").beside_ticks().wide();
/// Other limits are in force, or a baseline is begun.
pub static CONTROL_LIMITS: EventType = EventType::new("control_limits").beside_ticks();
/// What is fixed of characteristics.
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
    columns: &[],
};
/// The last sample breaks no rule, or there is nothing to judge it by.
pub const IN_CONTROL: &str = "in_control";
/// The last sample breaks a rule.
pub const OUT_OF_CONTROL: &str = "out_of_control";
/// The longest id of a sample or a violation, in bytes: as it is made of that of its characteristic and a number.
pub const PART_ID_MAX_BYTES: usize = SUBJECT_ID_MAX_BYTES + 21;
/// The longest `name`, `unit` or `rule_name`, in bytes.
pub const NAME_MAX_BYTES: usize = 256;
/// The most violations that a sample may come with.
pub const SAMPLE_VIOLATIONS_MAX: usize = 32;
/// The most samples that a baseline may take.
pub const BASELINE_MAX: u32 = 100;
/// Samples that a baseline takes when nobody says.
pub const BASELINE_DEFAULT: u32 = 20;
/// The largest measurement, up or down: limits that are computed from the largest still fit.
pub const VALUE_MAX: f64 = 1e300;

/// How bad a violation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// To be known.
    Info,
    /// To be looked at.
    Warning,
    /// To be acted on.
    Critical,
}

impl Severity {
    /// As it stands in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }

    /// Reads what [`Severity::as_str`] gives.
    pub fn parse(text: &str) -> Option<Severity> {
        [Severity::Info, Severity::Warning, Severity::Critical]
            .into_iter()
            .find(|own| own.as_str() == text)
    }

    /// A point beyond the limits is critical; the other patterns are warnings.
    fn usual(rule: Rule) -> Severity {
        match rule {
            Rule::BeyondLimits | Rule::Dispersion => Severity::Critical,
            _ => Severity::Warning,
        }
    }
}

impl<'de> Deserialize<'de> for Severity {
    /// In any case.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Severity, D::Error> {
        let text = String::deserialize(deserializer)?.to_ascii_lowercase();
        Severity::parse(&text).ok_or_else(|| {
            serde::de::Error::custom("a severity is `info`, `warning` or `critical`, in any case")
        })
    }
}

/// Where limits come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// From the publisher, who does not say how.
    Given,
    /// From the mean moving range of single values.
    MovingRange,
    /// From the mean range of subgroups.
    XbarR,
    /// From the mean standard deviation of subgroups.
    XbarS,
    /// Given, with the publisher's own name for the method.
    Named(Arc<str>),
}

impl Method {
    /// As it stands in messages and in the database.
    pub fn as_str(&self) -> &str {
        match self {
            Method::Given => "given",
            Method::MovingRange => "moving_range",
            Method::XbarR => "xbar_r",
            Method::XbarS => "xbar_s",
            Method::Named(name) => name,
        }
    }

    /// Whether it computes limits from a baseline.
    fn is_computed(&self) -> bool {
        matches!(self, Method::MovingRange | Method::XbarR | Method::XbarS)
    }

    /// Reads what [`Method::as_str`] returns.
    pub fn parse(text: &str) -> Method {
        let known = [
            Method::Given,
            Method::MovingRange,
            Method::XbarR,
            Method::XbarS,
        ];
        let found = known.into_iter().find(|own| own.as_str() == text);
        found.unwrap_or_else(|| Method::Named(text.into()))
    }
}

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
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// The lines.
    pub chart: ControlLimits,
    /// The chart of the variation, if there is one.
    pub dispersion: Option<Dispersion>,
    /// Where they come from.
    pub method: Method,
    /// From how many samples.
    pub sample_count: u32,
    /// 1, 2, 3, …: samples say by which limits they were judged.
    pub version: u32,
}

/// Samples that are being collected to compute limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// How.
    pub method: Method,
    /// From how many.
    pub samples: u32,
    /// Those that are there, in their order.
    pub collected: Vec<Collected>,
}

/// What a baseline keeps of a sample: numbers from which its limits come out as on paper.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Collected {
    /// A sample. A mean may have no end as a decimal (1/3); the sum that it is made of has one.
    Measured {
        /// The sum of its values: exact, unless it has more digits than a double.
        sum: f64,
        /// Their range or standard deviation, whichever the method needs; 0 for a single value.
        spread: f64,
    },
    /// Mean and range of a sample: how the first edition kept it.
    Summary(f64, f64),
    /// Nothing was measured.
    Gap,
}

impl Baseline {
    /// How many samples are there, without gaps.
    pub fn measured(&self) -> usize {
        let is_gap = |own: &&Collected| **own == Collected::Gap;
        self.collected.len() - self.collected.iter().filter(is_gap).count()
    }

    /// Drops the oldest sample, and a gap that is then the first.
    fn forget_first(&mut self) {
        let count = match self.collected.get(1) {
            Some(Collected::Gap) => 2,
            _ => 1,
        };
        self.collected.drain(..count.min(self.collected.len()));
    }
}

impl Collected {
    /// The mean of a sample of so many values.
    fn mean(&self, size: usize) -> Option<BigRational> {
        match self {
            Collected::Measured { sum, .. } => Some(exact::decimal(*sum) / BigInt::from(size)),
            Collected::Summary(mean, _) => Some(exact::decimal(*mean)),
            Collected::Gap => None,
        }
    }

    /// The range or standard deviation of a sample.
    fn spread(&self) -> Option<f64> {
        match *self {
            Collected::Measured { spread, .. } | Collected::Summary(_, spread) => Some(spread),
            Collected::Gap => None,
        }
    }
}

/// A characteristic's whole state.
#[derive(Debug, Clone)]
pub struct Characteristic {
    /// What people call it.
    pub name: Option<Arc<str>>,
    /// Of its measurements.
    pub unit: Option<Arc<str>>,
    /// Values in a sample.
    pub subgroup_size: u32,
    /// The rules that are switched on.
    pub rules: Vec<(Rule, Severity)>,
    /// The limits in force.
    pub limits: Option<Limits>,
    /// The last version of limits that there was.
    pub limits_version: u32,
    /// The baseline that is being collected.
    pub baseline: Option<Baseline>,
    /// The last points that the limits in force have judged, oldest first, at most [`nelson::WINDOW`].
    pub recent: Vec<f64>,
    /// The rules that the last sample breaks, each with the number of its violation.
    pub runs: Vec<(Rule, u64)>,
    /// Whether the last sample was in control, if its publisher has judged it.
    pub publisher_in_control: Option<bool>,
    /// How many samples there were.
    pub sample_count: u64,
    /// How many violations there were: the number of the last one.
    pub violation_count: u64,
    /// The last sample.
    pub last_sample: Option<LastSample>,
    /// The event that told the limits, and when.
    pub told_limits: (u64, DateTime<Utc>),
    /// When it became known.
    pub created_at: DateTime<Utc>,
}

/// The last sample, as it was told.
#[derive(Debug, Clone)]
pub struct LastSample {
    /// Its id.
    pub sample_id: Arc<str>,
    /// Its event.
    pub seq: u64,
    /// When it was told.
    pub at: DateTime<Utc>,
    /// The characteristic's status after it.
    pub status: &'static str,
    /// The fields of its message.
    pub fields: Fields,
}

/// A broken rule.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Of which characteristic.
    pub characteristic_id: SubjectId,
    /// 1, 2, 3, … within the characteristic.
    pub number: u64,
    /// The publisher's own id of it, which is then its id.
    pub own_id: Option<Arc<str>>,
    /// The sample that shows it, if it is known.
    pub sample_id: Option<Arc<str>>,
    /// The dispersion chart, if it was found on one.
    pub chart: Option<Chart>,
    /// Nelson's number, or somebody's own.
    pub rule_id: u32,
    /// For people.
    pub rule_name: Arc<str>,
    /// How bad.
    pub severity: Severity,
    /// When it was found.
    pub at: DateTime<Utc>,
    /// The event that told it.
    pub seq: u64,
    /// Who acknowledged it.
    pub acknowledgement: Option<Acknowledgement>,
}

/// Who acknowledged a violation, why and when.
#[derive(Debug, Clone)]
pub struct Acknowledgement {
    /// Who.
    pub user: Arc<str>,
    /// Why it is well, or what is done about it.
    pub reason: Arc<str>,
    /// When.
    pub at: DateTime<Utc>,
}

/// The id of a violation whose publisher gave it none: `<characteristic id>.<number>`. No publisher's own id has this form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViolationId {
    /// Of which characteristic.
    pub characteristic_id: SubjectId,
    /// Which of its violations.
    pub number: u64,
}

impl ViolationId {
    /// Reads an id. Nothing if it can be none.
    pub fn parse(text: &str) -> Option<ViolationId> {
        let (characteristic_id, digits) = text.rsplit_once('.')?;
        let number = digits.parse().ok()?;
        let id = ViolationId {
            characteristic_id: characteristic_id.parse().ok()?,
            number,
        };
        // One spelling for each: no leading zeros or signs.
        (id.to_string() == text).then_some(id)
    }
}

impl std::fmt::Display for ViolationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.characteristic_id, self.number)
    }
}

impl Violation {
    /// Its id.
    pub fn id(&self) -> Cow<'_, str> {
        match &self.own_id {
            Some(own) => Cow::Borrowed(own),
            None => Cow::Owned(format!("{}.{}", self.characteristic_id, self.number)),
        }
    }

    /// The same, to be kept.
    fn shared_id(&self) -> Arc<str> {
        match &self.own_id {
            Some(own) => Arc::clone(own),
            None => self.id().into(),
        }
    }
}

impl PartOf for Violation {
    fn number(&self) -> u64 {
        self.number
    }

    fn own_id(&self) -> Option<&Arc<str>> {
        self.own_id.as_ref()
    }
}

impl Characteristic {
    /// Whether the last sample breaks a rule.
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

    fn details(&self, id: &SubjectId) -> Value {
        let rule = |(rule, severity): &(Rule, Severity)| json!({"rule_id": rule.number(), "rule_name": rule.name(), "severity": severity});
        json!({
            "characteristic_id": id,
            "name": self.name,
            "unit": self.unit,
            "status": self.status(),
            "subgroup_size": self.subgroup_size,
            "rules": self.rules.iter().map(rule).collect::<Vec<_>>(),
            "limits_version": self.limits.as_ref().map(|limits| limits.version),
            "baseline_collected": self.baseline.as_ref().map(Baseline::measured),
            "sample_count": self.sample_count,
            "violation_count": self.violation_count,
            "created_at": timestamp(self.created_at),
        })
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
