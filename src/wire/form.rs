//! The forms of an event that existing clients expect, in addition to the standard one.
//!
//! *Flat* is the older form of a characteristic's messages, without the envelope. *Upload* presents a job as the progress of
//! a file. Both are built from the event's typed payload, once for each event (invariant 8). An event without such a form
//! keeps its standard one.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::timestamp;
use crate::event::Event;
use crate::id::SubjectId;
use crate::kind::characteristic::dispersion::Chart;
use crate::kind::characteristic::{Ack, InForce, Opened, Sample};
use crate::kind::job::{Report, Status};
use crate::kind::{characteristic, job};
use crate::number::whole_unsigned;

/// The form of an event's fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// The form that the event's kind defines.
    #[default]
    Standard,
    /// A characteristic's messages without the envelope.
    Flat,
    /// A job as the progress of a file.
    Upload,
}

/// Returns the message's `type`, and a JSON object with the fields in addition to those that every event has.
pub(super) fn message_of(event: &Event, form: Form) -> (&'static str, Cow<'_, str>) {
    let other = match form {
        Form::Flat if event.kind == characteristic::KIND => flat(event),
        Form::Upload if event.kind == job::KIND => upload(event),
        _ => None,
    };
    match other {
        Some((name, fields)) => (name, fields.into()),
        None => (
            event.draft.event_type.name,
            event.draft.fields.as_str().into(),
        ),
    }
}

/// A message's `type`, and its own fields as JSON.
type Message = (&'static str, String);

fn message(name: &'static str, fields: impl Serialize) -> Option<Message> {
    let json = serde_json::to_string(&fields).expect("fields of a message are JSON");
    Some((name, json))
}

fn flat(event: &Event) -> Option<Message> {
    if let Some(sample) = characteristic::told::<Sample>(&event.draft) {
        return message("sample", FlatSample::from(sample));
    }
    if let Some(opened) = characteristic::told::<Opened>(&event.draft) {
        let violation = FlatViolation::from(opened);
        return message("violation", json!({ "violation": violation }));
    }
    if let Some(ack) = characteristic::told::<Ack>(&event.draft) {
        let fields = json!({
            "violation_id": ack.violation_id,
            "characteristic_id": ack.characteristic_id,
            "acknowledged": ack.acknowledged,
            "ack_user": ack.ack_user,
            "ack_reason": ack.ack_reason,
        });
        return message("ack_update", fields);
    }
    let limits = characteristic::told::<InForce>(&event.draft)?;
    let mut fields = json!({
        "characteristic_id": limits.characteristic_id,
        "ucl": limits.ucl,
        "lcl": limits.lcl,
        "center_line": limits.center_line,
    });
    if let Some(chart) = limits.dispersion {
        fields["dispersion"] = json!(chart);
    }
    message("limits_update", fields)
}

/// A sample in the flat form.
#[derive(Serialize)]
struct FlatSample<'a> {
    characteristic_id: &'a SubjectId,
    sample: FlatPoint<'a>,
    violations: Vec<FlatViolation<'a>>,
}

#[derive(Serialize)]
struct FlatPoint<'a> {
    id: &'a str,
    characteristic_id: &'a SubjectId,
    timestamp: String,
    mean: Option<f64>,
    zone: Option<&'a str>,
    in_control: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    dispersion: Option<&'a characteristic::dispersion::Point>,
}

impl<'a> From<&'a Sample> for FlatSample<'a> {
    fn from(sample: &'a Sample) -> FlatSample<'a> {
        FlatSample {
            characteristic_id: &sample.characteristic_id,
            sample: FlatPoint {
                id: &sample.sample_id,
                characteristic_id: &sample.characteristic_id,
                timestamp: timestamp(sample.timestamp),
                mean: sample.mean,
                zone: sample.zone.as_deref(),
                in_control: sample.in_control,
                dispersion: sample.dispersion.as_ref(),
            },
            violations: sample.violations.iter().map(FlatViolation::from).collect(),
        }
    }
}

/// A violation in the flat form: its id is in `id`, and its severity is in upper case.
#[derive(Serialize)]
struct FlatViolation<'a> {
    id: &'a str,
    characteristic_id: &'a SubjectId,
    sample_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chart: Option<Chart>,
    rule_id: u32,
    rule_name: &'a str,
    severity: String,
    timestamp: String,
}

impl<'a> From<&'a Opened> for FlatViolation<'a> {
    fn from(opened: &'a Opened) -> FlatViolation<'a> {
        FlatViolation {
            id: &opened.violation_id,
            characteristic_id: &opened.characteristic_id,
            sample_id: opened.sample_id.as_deref(),
            chart: opened.chart,
            rule_id: opened.rule_id,
            rule_name: &opened.rule_name,
            severity: opened.severity.as_str().to_ascii_uppercase(),
            timestamp: timestamp(opened.timestamp),
        }
    }
}

/// A job as the progress of a file.
#[derive(Serialize)]
struct UploadFields<'a> {
    processing_id: &'a SubjectId,
    file_id: Value,
    job_type: &'a str,
    status: &'static str,
    progress: u64,
    message: &'a str,
    /// True only for a success: pages remove a complete upload from view, and would remove an error with it.
    #[serde(rename = "isComplete")]
    is_complete: bool,
    error: Option<&'a str>,
    result: Option<&'a RawValue>,
}

fn upload(event: &Event) -> Option<Message> {
    let job = event.draft.payload::<Report>()?;
    let fields = UploadFields {
        processing_id: &job.job_id,
        file_id: file_id(job),
        job_type: job.job_type.as_str(),
        status: upload_status(job.status),
        progress: whole(job.progress),
        message: &job.message,
        is_complete: job.status == Status::Completed,
        error: job.error.as_ref().map(|error| &*error.message),
        result: job.result.as_deref(),
    };
    message("progress_update", fields)
}

fn upload_status(status: Status) -> &'static str {
    match status {
        Status::Pending | Status::Queued | Status::InProgress => "processing",
        Status::Completed => "completed",
        Status::Failed | Status::Cancelled => "error",
    }
}

/// Returns `metadata.file_id`, or else the job's id.
fn file_id(job: &Report) -> Value {
    #[derive(Deserialize)]
    struct Filed {
        file_id: Option<Value>,
    }
    let filed = serde_json::from_str::<Filed>(job.metadata.get()).ok();
    let own = filed.and_then(|filed| filed.file_id);
    own.unwrap_or_else(|| job.job_id.as_str().into())
}

/// Returns the progress as a whole number. Rounds down, so that 100 means completed.
fn whole(progress: Option<f64>) -> u64 {
    whole_unsigned(progress.unwrap_or(0.0))
}

/// Encodes `initial_state` for uploads: the progress of each file in progress. None if there is none.
pub fn initial_uploads<'a>(jobs: impl IntoIterator<Item = &'a Event>) -> Option<Vec<u8>> {
    let mut data = Map::new();
    let mut at = None;
    for event in jobs {
        let job = event.draft.payload::<Report>();
        if let Some(job) = job.filter(|job| !job.status.is_terminal()) {
            let key = match file_id(job) {
                Value::String(id) => id,
                other => other.to_string(),
            };
            data.insert(key, whole(job.progress).into());
            at = at.max(Some(event.at));
        }
    }
    let message = json!({"type": "initial_state", "timestamp": timestamp(at?), "data": data});
    Some(message.to_string().into_bytes())
}
