//! What is told of a characteristic: drafts of events, in their envelope.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::dispersion::{Chart, Dispersion, Point};
use super::{
    ACK_UPDATE, Acknowledgement, CONTROL_LIMITS, Characteristic, Method, OUT_OF_CONTROL, SAMPLE,
    Severity, VIOLATION, Violation,
};
use crate::event::{Class, Draft, EventType};
use crate::id::SubjectId;

/// The fields of a characteristic's message: an envelope.
#[derive(Serialize)]
struct Envelope<P> {
    payload: P,
}

/// The same, as it is read.
#[derive(Deserialize)]
struct Enveloped<P> {
    payload: P,
}

pub(super) fn draft(
    event_type: &'static EventType,
    class: Class,
    status: &'static str,
    payload: impl Serialize,
) -> Draft {
    Draft {
        event_type,
        class,
        status,
        category: None,
        fields: serde_json::to_string(&Envelope { payload }).expect("a payload is JSON"),
    }
}

#[derive(Serialize)]
pub(super) struct SamplePayload<'a> {
    pub(super) sample_id: &'a str,
    pub(super) characteristic_id: &'a SubjectId,
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    pub(super) timestamp: DateTime<Utc>,
    /// Nothing of a gap, as `mean` and `zone`.
    pub(super) value: Option<f64>,
    pub(super) mean: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) range: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dispersion: Option<Point>,
    pub(super) zone: Option<&'a str>,
    pub(super) in_control: bool,
    /// `server` or `publisher`; nothing as long as there is nothing to judge it by.
    pub(super) judged_by: Option<&'static str>,
    /// The rules that it breaks, by number: also those of a run whose violation stands.
    pub(super) rules: Vec<u32>,
    pub(super) limits_version: Option<u32>,
    /// Those that this sample opened.
    pub(super) violations: Vec<ViolationPayload<'a>>,
}

#[derive(Serialize)]
pub(super) struct ViolationPayload<'a> {
    violation_id: Cow<'a, str>,
    characteristic_id: &'a SubjectId,
    sample_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chart: Option<Chart>,
    rule_id: u32,
    rule_name: &'a str,
    severity: Severity,
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    timestamp: DateTime<Utc>,
}

impl<'a> From<&'a Violation> for ViolationPayload<'a> {
    fn from(violation: &'a Violation) -> ViolationPayload<'a> {
        ViolationPayload {
            violation_id: violation.id(),
            characteristic_id: &violation.characteristic_id,
            sample_id: violation.sample_id.as_deref(),
            chart: violation.chart,
            rule_id: violation.rule_id,
            rule_name: &violation.rule_name,
            severity: violation.severity,
            timestamp: violation.at,
        }
    }
}

#[derive(Serialize)]
struct AckPayload<'a> {
    violation_id: Cow<'a, str>,
    characteristic_id: &'a SubjectId,
    acknowledged: bool,
    ack_user: Option<&'a str>,
    ack_reason: Option<&'a str>,
    user: &'a str,
    reason: &'a str,
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    timestamp: DateTime<Utc>,
}

#[derive(Serialize)]
struct LimitsPayload<'a> {
    characteristic_id: &'a SubjectId,
    center_line: Option<f64>,
    ucl: Option<f64>,
    lcl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dispersion: Option<Dispersion>,
    method: Option<&'a Method>,
    sample_count: u32,
    limits_version: Option<u32>,
    baseline: Option<BaselinePayload<'a>>,
}

#[derive(Serialize)]
struct BaselinePayload<'a> {
    method: &'a Method,
    samples: u32,
}

/// The limits in force as an event.
pub fn limits_draft(id: &SubjectId, characteristic: &Characteristic) -> Draft {
    let limits = characteristic.limits.as_ref();
    let chart = limits.map(|limits| limits.chart);
    let payload = LimitsPayload {
        characteristic_id: id,
        center_line: chart.map(|chart| chart.center_line),
        ucl: chart.and_then(|chart| chart.upper()),
        lcl: chart.and_then(|chart| chart.lower()),
        dispersion: limits.and_then(|limits| limits.dispersion),
        method: limits.map(|limits| &limits.method),
        sample_count: limits.map_or(0, |limits| limits.sample_count),
        limits_version: limits.map(|limits| limits.version),
        baseline: characteristic
            .baseline
            .as_ref()
            .map(|baseline| BaselinePayload {
                method: &baseline.method,
                samples: baseline.samples,
            }),
    };
    let status = characteristic.status();
    draft(&CONTROL_LIMITS, Class::Milestone, status, payload)
}

/// The last sample as an event, if there was one.
pub fn sample_draft(characteristic: &Characteristic) -> Option<Draft> {
    let last = characteristic.last_sample.as_ref()?;
    Some(Draft {
        event_type: &SAMPLE,
        class: Class::Milestone,
        status: last.status,
        category: None,
        fields: last.fields.to_string(),
    })
}

/// The value or mean that the fields of a sample's message tell; nothing of a gap.
pub fn sample_value(fields: &str) -> Option<f64> {
    #[derive(Deserialize)]
    struct Told {
        mean: Option<f64>,
    }
    let told = serde_json::from_str::<Enveloped<Told>>(fields).ok()?;
    told.payload.mean
}

/// A violation as an event.
pub fn violation_draft(violation: &Violation) -> Draft {
    let payload = ViolationPayload::from(violation);
    draft(&VIOLATION, Class::Milestone, OUT_OF_CONTROL, payload)
}

/// How bad the violation is that a message tells of, if it does.
pub fn severity(draft: &Draft) -> Option<Severity> {
    #[derive(Deserialize)]
    struct Told {
        severity: Severity,
    }
    if *draft.event_type != VIOLATION {
        return None;
    }
    let told = serde_json::from_str::<Enveloped<Told>>(&draft.fields).ok()?;
    Some(told.payload.severity)
}

/// That a violation is acknowledged as `act` says, or that `act` has taken that back.
pub(super) fn ack_draft(
    violation: &Violation,
    act: &Acknowledgement,
    status: &'static str,
) -> Draft {
    let ack = violation.acknowledgement.as_ref();
    let payload = AckPayload {
        violation_id: violation.id(),
        characteristic_id: &violation.characteristic_id,
        acknowledged: ack.is_some(),
        ack_user: ack.map(|ack| &*ack.user),
        ack_reason: ack.map(|ack| &*ack.reason),
        user: &act.user,
        reason: &act.reason,
        timestamp: act.at,
    };
    draft(&ACK_UPDATE, Class::Milestone, status, payload)
}
