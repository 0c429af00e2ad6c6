//! The forms of an event that existing clients expect, in addition to the standard one.
//!
//! *Flat* is the older form of a characteristic's messages, without the envelope. *Upload* presents a job as the progress of
//! a file. Both are built from the event's typed payload, once for each event (invariant 8). An event without such a form
//! keeps its standard one.

use std::borrow::Cow;

use indexmap::IndexMap;
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{example, schema, timestamp};
use crate::event::{Event, EventType};
use crate::id::SubjectId;
use crate::kind::characteristic::dispersion::{Chart, Dispersion};
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
    let reshaped = match form {
        Form::Flat if event.kind == characteristic::KIND => flat(event),
        Form::Upload if event.kind == job::KIND => upload(event),
        _ => None,
    };
    match reshaped {
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

/// Returns the schema of a message's own fields.
type FieldsOf = fn(&mut SchemaGenerator) -> schemars::Schema;

/// Returns the schemas of the messages of a form, other than the standard one.
pub(super) fn schemas(form: Form, generator: &mut SchemaGenerator) -> Vec<Value> {
    let fields: &[(&str, FieldsOf, &'static EventType)] = match form {
        Form::Standard => &[],
        Form::Flat => &[
            ("sample", FlatSample::json_schema, &characteristic::SAMPLE),
            (
                "violation",
                FlatOpened::json_schema,
                &characteristic::VIOLATION,
            ),
            (
                "ack_update",
                FlatAck::json_schema,
                &characteristic::ACK_UPDATE,
            ),
            (
                "limits_update",
                FlatLimits::json_schema,
                &characteristic::CONTROL_LIMITS,
            ),
        ],
        Form::Upload => &[(
            "progress_update",
            UploadFields::json_schema,
            &job::JOB_PROGRESS,
        )],
    };
    let schema = |(name, fields, event_type): &(&str, FieldsOf, &'static EventType)| {
        let fields = fields(generator);
        let mut schema = schema::message(name, &fields, generator);
        schema::set_example(&mut schema, example::of_type(event_type, form));
        schema
    };
    fields.iter().map(schema).collect()
}

fn flat(event: &Event) -> Option<Message> {
    if let Some(sample) = characteristic::payload_of::<Sample>(&event.draft) {
        return message("sample", FlatSample::from(sample));
    }
    if let Some(opened) = characteristic::payload_of::<Opened>(&event.draft) {
        let violation = FlatViolation::from(opened);
        return message("violation", FlatOpened { violation });
    }
    if let Some(ack) = characteristic::payload_of::<Ack>(&event.draft) {
        let fields = FlatAck {
            violation_id: &ack.violation_id,
            characteristic_id: &ack.characteristic_id,
            acknowledged: ack.acknowledged,
            ack_user: ack.ack_user.as_deref(),
            ack_reason: ack.ack_reason.as_deref(),
        };
        return message("ack_update", fields);
    }
    let limits = characteristic::payload_of::<InForce>(&event.draft)?;
    let fields = FlatLimits {
        characteristic_id: &limits.characteristic_id,
        ucl: limits.ucl,
        lcl: limits.lcl,
        center_line: limits.center_line,
        dispersion: limits.dispersion,
    };
    message("limits_update", fields)
}

/// A sample in the flat form.
#[derive(JsonSchema, Serialize)]
pub(super) struct FlatSample<'a> {
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// The sample itself.
    sample: FlatPoint<'a>,
    /// The violations that this sample opened.
    violations: Vec<FlatViolation<'a>>,
}

/// A violation in the flat form.
#[derive(JsonSchema, Serialize)]
pub(super) struct FlatOpened<'a> {
    /// The violation itself.
    violation: FlatViolation<'a>,
}

/// An acknowledgement, or its withdrawal, in the flat form.
#[derive(JsonSchema, Serialize)]
pub(super) struct FlatAck<'a> {
    /// The violation.
    violation_id: &'a str,
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// Whether the violation is acknowledged now.
    acknowledged: bool,
    /// The user who acknowledged it, if it is acknowledged.
    ack_user: Option<&'a str>,
    /// The reason for the acknowledgement.
    ack_reason: Option<&'a str>,
}

/// The limits in force, in the flat form.
#[derive(JsonSchema, Serialize)]
pub(super) struct FlatLimits<'a> {
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// Upper control limit.
    ucl: Option<f64>,
    /// Lower control limit.
    lcl: Option<f64>,
    /// The center line, if there are limits.
    center_line: Option<f64>,
    /// The dispersion chart.
    #[serde(skip_serializing_if = "Option::is_none")]
    dispersion: Option<Dispersion>,
}

#[derive(JsonSchema, Serialize)]
struct FlatPoint<'a> {
    /// Its id.
    id: &'a str,
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// When it was taken.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    timestamp: String,
    /// The value, or the mean of the values.
    mean: Option<f64>,
    /// The zone between the lines in which it lies.
    zone: Option<&'a str>,
    /// Whether it breaks no rule.
    in_control: bool,
    /// Its point on the dispersion chart.
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
#[derive(JsonSchema, Serialize)]
struct FlatViolation<'a> {
    /// Its id.
    id: &'a str,
    /// The characteristic.
    characteristic_id: &'a SubjectId,
    /// The sample that shows it, if it is known.
    sample_id: Option<&'a str>,
    /// The dispersion chart, if it was detected on one.
    #[serde(skip_serializing_if = "Option::is_none")]
    chart: Option<Chart>,
    /// The number of a Nelson rule, 101, or the publisher's own number.
    rule_id: u32,
    /// The rule's display name.
    rule_name: &'a str,
    /// The severity, in upper case.
    severity: String,
    /// When it was detected.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
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
#[derive(JsonSchema, Serialize)]
pub(super) struct UploadFields<'a> {
    /// The job.
    processing_id: &'a SubjectId,
    /// `metadata.file_id` of the job, or else the job's id.
    file_id: Value,
    /// The job's type.
    job_type: &'a str,
    /// The status.
    #[schemars(extend("enum" = ["processing", "completed", "error"]))]
    status: &'static str,
    /// Percent complete, as an integer.
    #[schemars(range(min = 0, max = 100))]
    progress: u64,
    /// The newest human-readable message.
    message: &'a str,
    /// True only for a success: pages remove a complete upload from view, and would remove an error with it.
    #[serde(rename = "isComplete")]
    is_complete: bool,
    /// Why the job failed or was cancelled, once it has.
    error: Option<&'a str>,
    /// The worker's result, once the job is completed.
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
    let file_id = filed.and_then(|filed| filed.file_id);
    file_id.unwrap_or_else(|| job.job_id.as_str().into())
}

/// Returns the progress as a whole number. Rounds down, so that 100 means completed.
fn whole(progress: Option<f64>) -> u64 {
    whole_unsigned(progress.unwrap_or(0.0))
}

/// Encodes `initial_state` for uploads: the progress of each file in progress. None if there is none.
pub fn initial_uploads<'a>(jobs: impl IntoIterator<Item = &'a Event>) -> Option<Vec<u8>> {
    let mut data = IndexMap::new();
    let mut at = None;
    for event in jobs {
        let job = event.draft.payload::<Report>();
        if let Some(job) = job.filter(|job| !job.status.is_terminal()) {
            let key = match file_id(job) {
                Value::String(id) => id,
                other => other.to_string(),
            };
            data.insert(key, whole(job.progress));
            at = at.max(Some(event.at));
        }
    }
    let message = InitialState {
        r#type: INITIAL_STATE,
        timestamp: timestamp(at?),
        data,
    };
    Some(serde_json::to_vec(&message).expect("a message is JSON"))
}

/// The `type` of [`InitialState`].
pub(super) const INITIAL_STATE: &str = "initial_state";

/// The progress of each upload that is active when a connection begins.
#[derive(JsonSchema, Serialize)]
pub(super) struct InitialState {
    /// The message's type.
    r#type: &'static str,
    /// When the last of these changed.
    #[schemars(with = "chrono::DateTime<chrono::Utc>")]
    timestamp: String,
    /// Percent complete, by `file_id`.
    data: IndexMap<String, u64>,
}
