//! The messages of an enrollment session: one type for progress, and one for each way to end.

use schemars::JsonSchema;
use serde::Serialize;

use super::{
    ENROLLMENT_CANCELLED, ENROLLMENT_COMPLETE, ENROLLMENT_ERROR, ENROLLMENT_PROGRESS, Session,
    Status,
};
use crate::event::{Class, Draft};
use crate::id::SubjectId;
use crate::kind::PLAIN_ERROR_CODE;

/// A step of a session.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "EnrollmentProgress")]
#[schemars(example = serde_json::json!({
    "session_id": "42", "progress": 66, "status": "capturing", "message": "Capturing",
    "device_id": "reader-3", "student_id": "4711", "attempt": 3, "total_attempts": 3,
}))]
pub(super) struct Progressed<'a> {
    /// The session.
    session_id: &'a SubjectId,
    /// Percent complete.
    #[schemars(range(min = 0, max = 100))]
    progress: u8,
    /// The status.
    #[schemars(extend("enum" = Status::ALL.into_iter().filter(|status| !status.is_terminal()).collect::<Vec<_>>()))]
    status: Status,
    /// A human-readable message.
    message: &'a str,
    #[serde(flatten)]
    scan: Scan<'a>,
}

/// The end of a session that succeeded.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "EnrollmentComplete")]
#[schemars(example = serde_json::json!({
    "session_id": "42", "progress": 100, "status": "complete", "message": "Enrollment complete", "quality_score": 0.93,
    "device_id": "reader-3", "student_id": "4711", "attempt": 3, "total_attempts": 3,
}))]
pub(super) struct Completed<'a> {
    /// The session.
    session_id: &'a SubjectId,
    /// 100.
    #[schemars(range(min = 0, max = 100))]
    progress: u8,
    /// `complete`.
    #[schemars(extend("enum" = [Status::Complete]))]
    status: Status,
    /// A human-readable message.
    message: &'a str,
    /// The quality of the template, on the device's own scale.
    quality_score: Option<f64>,
    #[serde(flatten)]
    scan: Scan<'a>,
}

/// The end of a session that failed.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "EnrollmentError")]
#[schemars(example = serde_json::json!({
    "session_id": "42", "status": "error", "error": "The device did not answer in time", "code": "timeout",
    "device_id": "reader-3", "student_id": "4711", "attempt": 2, "total_attempts": 3,
}))]
pub(super) struct Failed<'a> {
    /// The session.
    session_id: &'a SubjectId,
    /// `error`.
    #[schemars(extend("enum" = [Status::Error]))]
    status: Status,
    /// A human-readable message.
    error: &'a str,
    /// A machine-readable code.
    code: &'a str,
    #[serde(flatten)]
    scan: Scan<'a>,
}

/// The end of a session that was cancelled.
#[derive(JsonSchema, Serialize)]
#[schemars(rename = "EnrollmentCancelled")]
#[schemars(example = serde_json::json!({
    "session_id": "42", "status": "cancelled", "message": "The student has left",
    "device_id": "reader-3", "student_id": "4711", "attempt": 1, "total_attempts": 3,
}))]
pub(super) struct Cancelled<'a> {
    /// The session.
    session_id: &'a SubjectId,
    /// `cancelled`.
    #[schemars(extend("enum" = [Status::Cancelled]))]
    status: Status,
    /// A human-readable reason.
    message: &'a str,
    #[serde(flatten)]
    scan: Scan<'a>,
}

/// Whose finger is scanned, where, and which scan this is.
#[derive(JsonSchema, Serialize)]
struct Scan<'a> {
    /// The device that takes the scans, if the session uses one exclusively.
    device_id: Option<&'a SubjectId>,
    /// The student who is enrolled.
    student_id: Option<&'a str>,
    /// The number of the current scan.
    attempt: Option<u32>,
    /// The number of scans required.
    total_attempts: Option<u32>,
}

/// Returns a session's state as an event of `class`.
pub fn draft(session_id: &SubjectId, session: &Session, class: Class) -> Draft {
    let scan = Scan {
        device_id: session.device_id.as_ref(),
        student_id: session.student_id.as_deref(),
        attempt: session.attempt,
        total_attempts: session.total_attempts,
    };
    let (status, progress, message) = (session.status, session.progress, &*session.message);
    let (event_type, fields) = match status {
        Status::Complete => {
            let fields = Completed {
                session_id,
                progress,
                status,
                message,
                quality_score: session.quality_score,
                scan,
            };
            (&ENROLLMENT_COMPLETE, serde_json::to_string(&fields))
        }
        Status::Error => {
            let fields = Failed {
                session_id,
                status,
                error: message,
                code: session.error_code.as_deref().unwrap_or(PLAIN_ERROR_CODE),
                scan,
            };
            (&ENROLLMENT_ERROR, serde_json::to_string(&fields))
        }
        Status::Cancelled => {
            let fields = Cancelled {
                session_id,
                status,
                message,
                scan,
            };
            (&ENROLLMENT_CANCELLED, serde_json::to_string(&fields))
        }
        Status::Ready | Status::Placing | Status::Capturing | Status::Processing => {
            let fields = Progressed {
                session_id,
                progress,
                status,
                message,
                scan,
            };
            (&ENROLLMENT_PROGRESS, serde_json::to_string(&fields))
        }
    };
    Draft {
        event_type,
        class,
        status: status.as_str(),
        category: None,
        fields: fields.expect("a session is JSON").into(),
    }
}
