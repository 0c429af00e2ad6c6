//! What is told of a characteristic: payloads of events, in their envelope.

use std::borrow::Cow;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::dispersion::{Chart, Dispersion, Point};
use super::{
    ACK_UPDATE, Acknowledgement, CONTROL_LIMITS, Characteristic, LastSample, Method,
    OUT_OF_CONTROL, SAMPLE, Severity, VIOLATION, Violation,
};
use crate::event::{Class, Draft, EventType, Payload};
use crate::id::SubjectId;

/// The fields of a characteristic's message: an envelope.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Enveloped<P> {
    /// What is told.
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

/// Returns what a draft or event tells, without the envelope: a [`Sample`], [`Opened`], [`Ack`] or [`InForce`].
pub fn told<P: 'static>(draft: &Draft) -> Option<&P>
where
    Enveloped<P>: Payload,
{
    let enveloped = draft.payload::<Enveloped<P>>()?;
    Some(&enveloped.payload)
}

/// What a `sample` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// Its id.
    pub sample_id: Arc<str>,
    /// Of which characteristic.
    pub characteristic_id: SubjectId,
    /// When it was taken.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    pub timestamp: DateTime<Utc>,
    /// The same as `mean`. Nothing of a gap, as `mean` and `zone`.
    pub value: Option<f64>,
    /// Its value, or the mean of its values.
    pub mean: Option<f64>,
    /// The range of its values, if it has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<f64>,
    /// Its point on the dispersion chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispersion: Option<Point>,
    /// Where it lies between the lines.
    pub zone: Option<Arc<str>>,
    /// Whether it breaks no rule.
    pub in_control: bool,
    /// `server` or `publisher`; nothing as long as there is nothing to judge it by.
    pub judged_by: Option<Cow<'static, str>>,
    /// The rules that it breaks, by number: also those of a run whose violation stands.
    #[serde(default)]
    pub rules: Vec<u32>,
    /// By which limits it was judged.
    pub limits_version: Option<u32>,
    /// Those that this sample opened.
    #[serde(default)]
    pub violations: Vec<Opened>,
}

/// What a `violation` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opened {
    /// Its id.
    pub violation_id: Arc<str>,
    /// Of which characteristic.
    pub characteristic_id: SubjectId,
    /// See [`Violation::sample_id`].
    pub sample_id: Option<Arc<str>>,
    /// See [`Violation::chart`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chart: Option<Chart>,
    /// See [`Violation::rule_id`].
    pub rule_id: u32,
    /// See [`Violation::rule_name`].
    pub rule_name: Arc<str>,
    /// See [`Violation::severity`].
    pub severity: Severity,
    /// When it was found.
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

/// What an `ack_update` tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ack {
    /// Of which violation.
    pub violation_id: Arc<str>,
    /// Of which characteristic.
    pub characteristic_id: SubjectId,
    /// Whether it is acknowledged now.
    pub acknowledged: bool,
    /// Who acknowledged it, if it is.
    pub ack_user: Option<Arc<str>>,
    /// Why.
    pub ack_reason: Option<Arc<str>>,
    /// Who acted.
    pub user: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
    /// When.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    pub timestamp: DateTime<Utc>,
}

/// What `control_limits` tell: the limits in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InForce {
    /// Of which characteristic.
    pub characteristic_id: SubjectId,
    /// The center line, if there are limits.
    pub center_line: Option<f64>,
    /// Upper control limit.
    pub ucl: Option<f64>,
    /// Lower control limit.
    pub lcl: Option<f64>,
    /// The chart of the variation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dispersion: Option<Dispersion>,
    /// Where they come from.
    pub method: Option<Method>,
    /// From how many samples.
    #[serde(default)]
    pub sample_count: u32,
    /// See [`Limits::version`](super::Limits::version).
    pub limits_version: Option<u32>,
    /// The baseline that is being collected.
    pub baseline: Option<Collecting>,
}

/// What is told of a baseline.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Collecting {
    /// How limits will be computed.
    pub method: Method,
    /// From how many samples.
    pub samples: u32,
}

pub(super) fn draft<P>(class: Class, status: &'static str, payload: P) -> Draft
where
    Enveloped<P>: Payload,
{
    Draft::new(class, status, Enveloped { payload })
}

/// The limits in force as an event.
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

/// The last sample as an event, if there was one.
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
    /// What was told of it.
    pub fn told(&self) -> Option<&Sample> {
        let enveloped = self.fields.payload::<Enveloped<Sample>>()?;
        Some(&enveloped.payload)
    }
}

/// A violation as an event.
pub fn violation_draft(violation: &Violation) -> Draft {
    draft(Class::Milestone, OUT_OF_CONTROL, Opened::from(violation))
}

/// How bad the violation is that a message tells of, if it does.
pub fn severity(draft: &Draft) -> Option<Severity> {
    told::<Opened>(draft).map(|opened| opened.severity)
}

/// That a violation is acknowledged as `act` says, or that `act` has taken that back.
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
