//! The messages of a characteristic: payloads of events, in their envelope.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dispersion::{Chart, Dispersion, Point};
use super::{
    ACK_UPDATE, Acknowledgement, Baseline, CONTROL_LIMITS, Characteristic, LastSample, Method,
    OUT_OF_CONTROL, Rule, SAMPLE, Severity, VIOLATION, Violation,
};
use crate::event::{Class, Draft, EventType, Payload};
use crate::id::SubjectId;

/// The fields of a characteristic's message: an envelope.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
pub struct Enveloped<P> {
    /// The payload.
    pub payload: P,
}

impl Payload for Enveloped<Sample> {
    const TYPE: &'static EventType = &SAMPLE;
}

impl Payload for Enveloped<Opened> {
    const TYPE: &'static EventType = &VIOLATION;
}

impl Payload for Enveloped<Ack> {
    const TYPE: &'static EventType = &ACK_UPDATE;
}

impl Payload for Enveloped<InForce> {
    const TYPE: &'static EventType = &CONTROL_LIMITS;
}

/// Returns the payload of a draft or event, without the envelope: a [`Sample`], [`Opened`], [`Ack`] or [`InForce`].
pub fn payload_of<P: 'static>(draft: &Draft) -> Option<&P>
where
    Enveloped<P>: Payload,
{
    let enveloped = draft.payload::<Enveloped<P>>()?;
    Some(&enveloped.payload)
}

/// A measurement with its evaluation.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "SamplePayload")]
#[schemars(example = serde_json::json!({
    "sample_id": "bolt-diameter.118",
    "characteristic_id": "bolt-diameter",
    "timestamp": "2026-03-02T02:21:00.000Z",
    "value": 10.41,
    "mean": 10.41,
    "zone": "beyond_ucl",
    "in_control": false,
    "judged_by": "server",
    "rules": [1],
    "limits_version": 2,
    "violations": [{
        "violation_id": "bolt-diameter.9",
        "characteristic_id": "bolt-diameter",
        "sample_id": "bolt-diameter.118",
        "rule_id": 1,
        "rule_name": "Beyond 3 sigma",
        "severity": "critical",
        "timestamp": "2026-03-02T02:21:00.000Z",
    }],
}))]
pub struct Sample {
    /// Its id.
    pub sample_id: Arc<str>,
    /// The characteristic.
    pub characteristic_id: SubjectId,
    /// When it was taken.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    pub timestamp: DateTime<Utc>,
    /// The same as `mean`. In a gap, `value`, `mean` and `zone` are null.
    pub value: Option<f64>,
    /// The value, or the mean of the values.
    pub mean: Option<f64>,
    /// The range of the values, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<f64>,
    /// Its point on the dispersion chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispersion: Option<Point>,
    /// The zone between the lines in which it lies.
    pub zone: Option<Arc<str>>,
    /// Whether it breaks no rule.
    pub in_control: bool,
    /// `server` or `publisher`; null if there are no limits to evaluate it by.
    pub judged_by: Option<Cow<'static, str>>,
    /// The numbers of the rules that it breaks, including those whose violation an earlier sample of the same run has
    /// opened.
    #[serde(default)]
    pub rules: Vec<u32>,
    /// The version of the limits by which it was evaluated.
    pub limits_version: Option<u32>,
    /// The violations that this sample opened.
    #[serde(default)]
    pub violations: Vec<Opened>,
}

/// A broken rule.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "ViolationPayload")]
#[schemars(example = serde_json::json!({
    "violation_id": "bolt-diameter.9",
    "characteristic_id": "bolt-diameter",
    "sample_id": "bolt-diameter.118",
    "rule_id": 1,
    "rule_name": "Beyond 3 sigma",
    "severity": "critical",
    "timestamp": "2026-03-02T02:21:00.000Z",
}))]
pub struct Opened {
    /// Its id.
    pub violation_id: Arc<str>,
    /// The characteristic.
    pub characteristic_id: SubjectId,
    /// The sample that shows it, if it is known.
    pub sample_id: Option<Arc<str>>,
    /// The dispersion chart, if it was detected on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chart: Option<Chart>,
    /// The number of a Nelson rule, 101, or the publisher's own number.
    pub rule_id: u32,
    /// The rule's display name.
    pub rule_name: Arc<str>,
    /// The severity.
    pub severity: Severity,
    /// When it was detected.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    pub timestamp: DateTime<Utc>,
}

impl From<&Violation> for Opened {
    fn from(violation: &Violation) -> Opened {
        Opened {
            violation_id: violation.shared_id(),
            characteristic_id: violation.characteristic_id.clone(),
            sample_id: violation.sample_id.as_ref().map(Arc::clone),
            chart: violation.chart,
            rule_id: violation.rule_id,
            rule_name: Arc::clone(&violation.rule_name),
            severity: violation.severity,
            timestamp: violation.at,
        }
    }
}

/// An acknowledgement, or its withdrawal.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "AckPayload")]
#[schemars(example = serde_json::json!({
    "violation_id": "bolt-diameter.9",
    "characteristic_id": "bolt-diameter",
    "acknowledged": true,
    "ack_user": "maria",
    "ack_reason": "The tool was replaced",
    "user": "maria",
    "reason": "The tool was replaced",
    "timestamp": "2026-03-02T02:21:00.000Z",
}))]
pub struct Ack {
    /// The violation.
    pub violation_id: Arc<str>,
    /// The characteristic.
    pub characteristic_id: SubjectId,
    /// Whether the violation is acknowledged now.
    pub acknowledged: bool,
    /// The user who acknowledged it, if it is acknowledged.
    pub ack_user: Option<Arc<str>>,
    /// The reason for the acknowledgement.
    pub ack_reason: Option<Arc<str>>,
    /// The user who acted.
    pub user: Arc<str>,
    /// The reason for this action.
    pub reason: Arc<str>,
    /// When the user acted.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    pub timestamp: DateTime<Utc>,
}

/// The limits in force.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "LimitsPayload")]
#[schemars(example = serde_json::json!({
    "characteristic_id": "bolt-diameter",
    "center_line": 10.0,
    "ucl": 10.3,
    "lcl": 9.7,
    "method": "moving_range",
    "sample_count": 25,
    "limits_version": 2,
    "baseline": null,
}))]
pub struct InForce {
    /// The characteristic.
    pub characteristic_id: SubjectId,
    /// The center line, if there are limits.
    pub center_line: Option<f64>,
    /// Upper control limit.
    pub ucl: Option<f64>,
    /// Lower control limit.
    pub lcl: Option<f64>,
    /// The dispersion chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispersion: Option<Dispersion>,
    /// How the limits were determined.
    pub method: Option<Method>,
    /// The number of samples they are based on.
    #[serde(default)]
    pub sample_count: u32,
    /// 1, 2, 3, …: each sample contains the version by which it was evaluated.
    pub limits_version: Option<u32>,
    /// The baseline that is being collected.
    pub baseline: Option<Collecting>,
}

/// A baseline in a message.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "Baseline")]
pub struct Collecting {
    /// The method that will compute the limits.
    pub method: Method,
    /// The number of samples that it collects.
    pub samples: u32,
}

/// A characteristic's data that is not in the event of its limits.
#[derive(JsonSchema, Serialize)]
pub(super) struct Details<'a> {
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// The display name.
    name: Option<&'a str>,
    /// The unit of its measurements.
    unit: Option<&'a str>,
    /// `in_control` or `out_of_control`.
    status: &'static str,
    /// Values per sample.
    subgroup_size: u32,
    /// The enabled rules.
    rules: Vec<EnabledRule>,
    /// The version of the limits in force.
    limits_version: Option<u32>,
    /// The number of samples that the baseline has collected, if there is one.
    baseline_collected: Option<usize>,
    /// The number of samples so far.
    sample_count: u64,
    /// The number of violations so far.
    violation_count: u64,
    /// When it was created.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    created_at: DateTime<Utc>,
}

#[derive(JsonSchema, Serialize)]
#[schemars(inline)]
struct EnabledRule {
    /// Its number.
    rule_id: u8,
    /// The display name.
    rule_name: &'static str,
    /// The severity.
    severity: Severity,
}

impl<'a> Details<'a> {
    pub(super) fn of(id: &'a SubjectId, characteristic: &'a Characteristic) -> Details<'a> {
        let rule = |(rule, severity): &(Rule, Severity)| EnabledRule {
            rule_id: rule.number(),
            rule_name: rule.name(),
            severity: *severity,
        };
        Details {
            characteristic_id: id,
            name: characteristic.name.as_deref(),
            unit: characteristic.unit.as_deref(),
            status: characteristic.status(),
            subgroup_size: characteristic.subgroup_size,
            rules: characteristic.rules.iter().map(rule).collect(),
            limits_version: characteristic.limits.as_ref().map(|limits| limits.version),
            baseline_collected: characteristic.baseline.as_ref().map(Baseline::measured),
            sample_count: characteristic.sample_count,
            violation_count: characteristic.violation_count,
            created_at: characteristic.created_at,
        }
    }
}

pub(super) fn draft<P>(class: Class, status: &'static str, payload: P) -> Draft
where
    Enveloped<P>: Payload,
{
    Draft::new(class, status, Enveloped { payload })
}

/// Returns the limits in force as an event.
pub fn limits_draft(id: &SubjectId, characteristic: &Characteristic) -> Draft {
    let limits = characteristic.limits.as_ref();
    let chart = limits.map(|limits| limits.chart);
    let baseline = characteristic.baseline.as_ref();
    let payload = InForce {
        characteristic_id: id.clone(),
        center_line: chart.map(|chart| chart.center_line),
        ucl: chart.and_then(|chart| chart.upper()),
        lcl: chart.and_then(|chart| chart.lower()),
        dispersion: limits.and_then(|limits| limits.dispersion),
        method: limits.map(|limits| limits.method.clone()),
        sample_count: limits.map_or(0, |limits| limits.sample_count),
        limits_version: limits.map(|limits| limits.version),
        baseline: baseline.map(|baseline| Collecting {
            method: baseline.method.clone(),
            samples: baseline.samples,
        }),
    };
    draft(Class::Milestone, characteristic.status(), payload)
}

/// Returns the last sample as an event, if there is one.
pub fn sample_draft(characteristic: &Characteristic) -> Option<Draft> {
    let last = characteristic.last_sample.as_ref()?;
    Some(Draft {
        event_type: &SAMPLE,
        class: Class::Milestone,
        status: last.status,
        category: None,
        fields: last.fields.clone(),
    })
}

impl LastSample {
    /// Returns the payload of its message.
    pub fn payload(&self) -> Option<&Sample> {
        let enveloped = self.fields.payload::<Enveloped<Sample>>()?;
        Some(&enveloped.payload)
    }
}

/// Returns a violation as an event.
pub fn violation_draft(violation: &Violation) -> Draft {
    draft(Class::Milestone, OUT_OF_CONTROL, Opened::from(violation))
}

/// Returns the severity of the violation that a message reports, if it reports one.
pub fn severity(draft: &Draft) -> Option<Severity> {
    payload_of::<Opened>(draft).map(|opened| opened.severity)
}

/// Returns the event for an acknowledgement or its withdrawal. `act` says who did it, why and when.
pub(super) fn ack_draft(
    violation: &Violation,
    act: &Acknowledgement,
    status: &'static str,
) -> Draft {
    let ack = violation.acknowledgement.as_ref();
    let payload = Ack {
        violation_id: violation.shared_id(),
        characteristic_id: violation.characteristic_id.clone(),
        acknowledged: ack.is_some(),
        ack_user: ack.map(|ack| Arc::clone(&ack.user)),
        ack_reason: ack.map(|ack| Arc::clone(&ack.reason)),
        user: Arc::clone(&act.user),
        reason: Arc::clone(&act.reason),
        timestamp: act.at,
    };
    draft(Class::Milestone, status, payload)
}
