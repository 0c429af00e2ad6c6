//! Commands to an enrollment session. Their fields are the bodies of the HTTP requests and of a batch's lines.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{ATTEMPTS_MAX, LEASE_MAX_SECS, Session};
use crate::id::SubjectId;
use crate::kind::{Body, CODE_MAX_BYTES, CommandOf};

/// A command to a session. The fields are the bodies of the HTTP requests; unknown fields are rejected.
#[derive(Debug, Clone)]
pub enum Command {
    /// Starts a session on a device.
    Start(Start),
    /// Reports progress.
    Progress(Report),
    /// Ends the session successfully.
    Complete(Complete),
    /// Ends the session with an error.
    Error(Failure),
    /// Cancels the session.
    Cancel(Cancel),
    /// Checks whether the session has been silent for too long (issued by the watchdog).
    Check,
}

/// Creates a session.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "session_id": "42", "student_id": "4711", "total_attempts": 3 }))]
pub struct Start {
    /// The session's id; generated (UUIDv7) if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    #[schemars(with = "Option<crate::kind::IdOrNumber>")]
    pub session_id: Option<SubjectId>,
    /// The device that takes the scans, if the session needs exclusive use of one.
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    #[schemars(with = "Option<crate::kind::IdOrNumber>")]
    pub device_id: Option<SubjectId>,
    /// The student who is enrolled.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
    #[schemars(with = "Option<crate::kind::TextOrNumber>")]
    pub student_id: Option<String>,
    /// The number of scans required; progress then counts them.
    #[serde(default)]
    #[schemars(range(min = 1, max = ATTEMPTS_MAX))]
    pub total_attempts: Option<u32>,
    /// A human-readable message.
    #[serde(default)]
    pub message: Option<String>,
    /// The seconds of silence after which the session ends with `timeout`.
    #[serde(default)]
    #[schemars(range(min = 1, max = LEASE_MAX_SECS))]
    pub lease_secs: Option<u32>,
}

/// Reports what the scanner does. A field that is left out keeps its value; every report renews the lease.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "status": "capturing" }))]
pub struct Report {
    /// `ready`, `placing`, `capturing` or `processing`.
    #[schemars(extend("enum" = serde_json::json!(["ready", "placing", "capturing", "processing", null])))]
    pub status: Option<String>,
    /// Percent complete, 0 to 100, if the session does not count scans.
    #[schemars(range(min = 0, max = 100))]
    pub progress: Option<f64>,
    /// A human-readable message.
    pub message: Option<String>,
    /// The number of this scan, starting at 1. A status that precedes the current one starts the next scan even if this
    /// field is absent.
    #[schemars(range(min = 1, max = ATTEMPTS_MAX))]
    pub attempt: Option<u32>,
    /// The number of scans required.
    #[schemars(range(min = 1, max = ATTEMPTS_MAX))]
    pub total_attempts: Option<u32>,
}

/// Ends the session: the finger is enrolled.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "quality_score": 0.93 }))]
pub struct Complete {
    /// The quality of the template, on the device's own scale.
    pub quality_score: Option<f64>,
    /// A human-readable message.
    pub message: Option<String>,
}

/// Ends the session because of an error.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "code": "timeout" }))]
pub struct Failure {
    /// A machine-readable code, such as `timeout` or the device's own; `error` if absent.
    #[schemars(length(min = 1, max = CODE_MAX_BYTES))]
    pub code: Option<String>,
    /// A human-readable message.
    #[serde(alias = "message")]
    pub error: Option<String>,
}

/// Ends the session before it is complete.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "message": "The student has left" }))]
pub struct Cancel {
    /// A human-readable reason.
    pub message: Option<String>,
}

impl Command {
    pub(super) fn action(&self) -> &'static str {
        match self {
            Command::Start(_) => "start",
            Command::Progress(_) => "progress",
            Command::Complete(_) => "complete",
            Command::Error(_) => "fail",
            Command::Cancel(_) => "cancel",
            Command::Check => "check",
        }
    }
}

impl CommandOf<Session> for Command {
    fn check() -> Option<Command> {
        Some(Command::Check)
    }

    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Command, B::Error>> {
        Some(match verb {
            "create" => body.read().map(Command::Start),
            "progress" => body.read().map(Command::Progress),
            "complete" => body.read().map(Command::Complete),
            "error" => body.read().map(Command::Error),
            "cancel" => body.read().map(Command::Cancel),
            _ => return None,
        })
    }

    fn names(&self) -> Option<&SubjectId> {
        match self {
            Command::Start(start) => start.session_id.as_ref(),
            _ => None,
        }
    }

    /// Returns the device that a session would use exclusively.
    fn wants_holder(&self) -> Option<&str> {
        match self {
            Command::Start(start) => start.device_id.as_ref().map(SubjectId::as_str),
            _ => None,
        }
    }
}
