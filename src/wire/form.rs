//! The forms of an event that existing clients expect, in addition to the standard one.
//!
//! *Flat* is the older form of a characteristic's messages, without the envelope; *upload* tells a job as the
//! progress of a file. Both are made from the standard fields, once for each event (invariant 8); an event
//! that has no other form keeps its own.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::timestamp;
use crate::event::Event;
use crate::kind::{characteristic, job};

/// In what form an event's fields are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// As its kind tells it.
    #[default]
    Standard,
    /// A characteristic's messages without the envelope.
    Flat,
    /// A job as the progress of a file.
    Upload,
}

/// The message's `type` and the fields in addition to those that every event has: a JSON object.
pub(super) fn told(event: &Event, form: Form) -> (&'static str, Cow<'_, str>) {
    let other = match form {
        Form::Flat if event.kind == characteristic::KIND => flat(event),
        Form::Upload if event.kind == job::KIND => upload(event),
        _ => None,
    };
    match other {
        Some((name, fields)) => (name, fields.to_string().into()),
        None => (
            event.draft.event_type.name,
            event.draft.fields.as_str().into(),
        ),
    }
}

#[derive(Deserialize)]
struct Enveloped {
    payload: Map<String, Value>,
}

fn flat(event: &Event) -> Option<(&'static str, Value)> {
    let Enveloped { mut payload } = serde_json::from_str(&event.draft.fields).ok()?;
    let mut take = |name: &str| payload.remove(name).unwrap_or_default();
    let event_type = event.draft.event_type;
    Some(if *event_type == characteristic::SAMPLE {
        let violations = take("violations");
        let violations = violations.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut fields = json!({
            "characteristic_id": take("characteristic_id"),
            "sample": {
                "id": take("sample_id"),
                "characteristic_id": event.subject,
                "timestamp": take("timestamp"),
                "mean": take("mean"),
                "zone": take("zone"),
                "in_control": take("in_control"),
            },
            "violations": violations.iter().map(flat_violation).collect::<Vec<_>>(),
        });
        if let Some(point) = payload.remove("dispersion") {
            fields["sample"]["dispersion"] = point;
        }
        ("sample", fields)
    } else if *event_type == characteristic::VIOLATION {
        let violation = flat_violation(&Value::Object(payload));
        ("violation", json!({ "violation": violation }))
    } else if *event_type == characteristic::ACK_UPDATE {
        let fields = json!({
            "violation_id": take("violation_id"),
            "characteristic_id": take("characteristic_id"),
            "acknowledged": take("acknowledged"),
            "ack_user": take("ack_user"),
            "ack_reason": take("ack_reason"),
        });
        ("ack_update", fields)
    } else {
        let mut fields = json!({
            "characteristic_id": take("characteristic_id"),
            "ucl": take("ucl"),
            "lcl": take("lcl"),
            "center_line": take("center_line"),
        });
        if let Some(chart) = payload.remove("dispersion") {
            fields["dispersion"] = chart;
        }
        ("limits_update", fields)
    })
}

/// A violation as the older form has it: its id is its `id`, and its severity is in capitals.
fn flat_violation(violation: &Value) -> Value {
    let mut plain = Map::new();
    for (name, value) in violation.as_object().into_iter().flatten() {
        let (name, value) = match (name.as_str(), value) {
            ("violation_id", id) => ("id", id.clone()),
            ("severity", Value::String(severity)) => {
                ("severity", severity.to_ascii_uppercase().into())
            }
            (name, value) => (name, value.clone()),
        };
        plain.insert(name.to_owned(), value);
    }
    Value::Object(plain)
}

/// What of a job's fields an upload's progress is made of.
#[derive(Deserialize)]
struct JobFields<'a> {
    #[serde(borrow)]
    job_id: Cow<'a, str>,
    job_type: &'a str,
    status: &'a str,
    progress: Option<f64>,
    #[serde(borrow)]
    message: Cow<'a, str>,
    metadata: Map<String, Value>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<Value>,
}

fn upload(event: &Event) -> Option<(&'static str, Value)> {
    let job: JobFields<'_> = serde_json::from_str(&event.draft.fields).ok()?;
    let status = upload_status(job.status);
    let error = job.error.as_ref().map(|error| error["message"].clone());
    let fields = json!({
        "processing_id": job.job_id,
        "file_id": file_id(&job),
        "job_type": job.job_type,
        "status": status,
        "progress": whole(job.progress),
        "message": job.message,
        // Only a success: pages take an upload that is complete out of view, and an error with it.
        "isComplete": status == COMPLETED,
        "error": error,
        "result": job.result,
    });
    Some(("progress_update", fields))
}

const PROCESSING: &str = "processing";
const COMPLETED: &str = "completed";

fn upload_status(job_status: &str) -> &'static str {
    match job_status {
        "completed" => COMPLETED,
        "failed" | "cancelled" => "error",
        _ => PROCESSING,
    }
}

fn file_id(job: &JobFields<'_>) -> Value {
    let own = job.metadata.get("file_id").filter(|id| !id.is_null());
    own.cloned().unwrap_or_else(|| job.job_id.as_ref().into())
}

/// Progress as a whole number: done only when it is done.
fn whole(progress: Option<f64>) -> u64 {
    progress.unwrap_or(0.0).floor() as u64
}

/// `initial_state` of uploads: the progress of each file that is being worked on. Nothing if none is.
pub fn initial_uploads<'a>(jobs: impl IntoIterator<Item = &'a Event>) -> Option<Vec<u8>> {
    let mut data = Map::new();
    let mut at = None;
    for event in jobs {
        let job = serde_json::from_str::<JobFields<'_>>(&event.draft.fields);
        if let Some(job) = job
            .ok()
            .filter(|job| upload_status(job.status) == PROCESSING)
        {
            let key = match file_id(&job) {
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
