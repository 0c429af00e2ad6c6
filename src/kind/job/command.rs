//! Commands to a job. Their fields are the bodies of the HTTP requests and of a batch's lines.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{Job, JobError, JobType, Status, WORKER_MAX_BYTES};
use crate::id::SubjectId;
use crate::kind::{Body, CommandOf, PLAIN_ERROR_CODE};

/// A command to a job. The fields are the bodies of the HTTP requests; unknown fields are rejected.
#[derive(Debug, Clone)]
pub enum Command {
    /// Creates the job.
    Create(Create),
    /// Hands the job to a queue.
    Queue(Note),
    /// Starts the job.
    Start(Start),
    /// Reports progress.
    Progress(Progress),
    /// Ends the job successfully.
    Complete(Complete),
    /// Ends the job with an error.
    Fail(Fail),
    /// Asks the worker of a running job to stop; ends a waiting job.
    Cancel(Cancel),
    /// Retries a failed or cancelled job.
    Retry(Note),
    /// Checks whether the job has been silent for too long (issued by the watchdog).
    Check,
}

/// Creates a job.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "job_id": "42", "job_type": "document", "metadata": { "title": "Annual report" } }))]
pub struct Create {
    /// The job's id; generated (UUIDv7) if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    #[schemars(with = "Option<crate::kind::IdOrNumber>")]
    pub job_id: Option<SubjectId>,
    /// The job's type.
    pub job_type: JobType,
    /// `pending` (the default), `queued` or `in_progress`.
    #[serde(default)]
    #[schemars(with = "Option<NewStatus>")]
    pub status: Option<Status>,
    /// A human-readable message.
    #[serde(default)]
    pub message: Option<String>,
    /// Arbitrary data of the producer.
    #[serde(default)]
    pub metadata: Option<Map<String, Value>>,
    /// The seconds of silence after which the job is `stalled`; 0 means never.
    #[serde(default)]
    pub stall_after_secs: Option<u32>,
    /// The seconds of silence after which the job fails with code `timeout`; 0 means never.
    #[serde(default)]
    pub timeout_secs: Option<u32>,
}

/// The schema of the status of a new job.
struct NewStatus;

crate::kind::unnamed_schema!(NewStatus, {
    let lower = [Status::Pending, Status::Queued, Status::InProgress].map(Status::as_str);
    let upper = lower.map(str::to_ascii_uppercase);
    crate::kind::one_of(lower.into_iter().chain(upper.iter().map(String::as_str)))
});

impl Create {
    /// Returns a command with only the job's type.
    pub(super) fn of_type(job_type: JobType) -> Create {
        Create {
            job_id: None,
            job_type,
            status: None,
            message: None,
            metadata: None,
            stall_after_secs: None,
            timeout_secs: None,
        }
    }
}

/// Puts the job into a queue: for the first time (`queue`), or again after it has ended (`retry`).
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "message": "Waiting for a worker" }))]
pub struct Note {
    /// A human-readable message.
    pub message: Option<String>,
    /// Merged into the job's metadata (RFC 7396, first level: `null` removes a key).
    pub metadata: Option<Map<String, Value>>,
}

/// Begins an attempt. With a `job_type`, a job that does not exist yet is created.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "worker": "host-1:4711", "message": "Reading" }))]
pub struct Start {
    /// The attempt that the report is about; rejected if it is not the current one.
    pub attempt: Option<u32>,
    /// The name by which the worker identifies itself; the token's `sub` if absent.
    #[schemars(length(min = 1, max = WORKER_MAX_BYTES))]
    pub worker: Option<String>,
    /// The job's type. If it is present and the job does not exist, the job is created.
    pub job_type: Option<JobType>,
    /// A human-readable message.
    pub message: Option<String>,
    /// Merged into the job's metadata.
    pub metadata: Option<Map<String, Value>>,
}

/// Reports progress, a message or metadata, or only that the worker is alive. A field that is left out keeps its value.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "attempt": 1, "progress": 40, "message": "Page 4 of 10" }))]
pub struct Progress {
    /// The attempt that the report is about; rejected if it is not the current one.
    pub attempt: Option<u32>,
    /// The name by which the worker identifies itself; the token's `sub` if absent.
    #[schemars(length(min = 1, max = WORKER_MAX_BYTES))]
    pub worker: Option<String>,
    /// The job's type. If it is present and the job does not exist, the job is created and started.
    pub job_type: Option<JobType>,
    /// Percent complete, 0 to 100; `null` means unknown, as long as no progress above 0 has been reported.
    #[serde(deserialize_with = "present")]
    #[schemars(range(min = 0, max = 100))]
    pub progress: Option<Option<f64>>,
    /// A human-readable message.
    pub message: Option<String>,
    /// Merged into the job's metadata.
    pub metadata: Option<Map<String, Value>>,
}

/// Ends the attempt: the work is done.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "attempt": 1, "result": { "pages": 10 } }))]
pub struct Complete {
    /// The attempt that the report is about; rejected if it is not the current one.
    pub attempt: Option<u32>,
    /// The name by which the worker identifies itself; the token's `sub` if absent.
    #[schemars(length(min = 1, max = WORKER_MAX_BYTES))]
    pub worker: Option<String>,
    /// The result of the work: any JSON.
    pub result: Option<Value>,
    /// A human-readable message.
    pub message: Option<String>,
    /// Merged into the job's metadata.
    pub metadata: Option<Map<String, Value>>,
}

/// Ends the attempt because of an error.
#[derive(Debug, Clone, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[schemars(example = serde_json::json!({ "attempt": 1, "error": { "code": "no_paper", "message": "The printer has no paper" } }))]
pub struct Fail {
    /// The attempt that the report is about; rejected if it is not the current one.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// The name by which the worker identifies itself; the token's `sub` if absent.
    #[serde(default)]
    #[schemars(length(min = 1, max = WORKER_MAX_BYTES))]
    pub worker: Option<String>,
    /// The error: `{code, message, details}`, or only the message.
    #[serde(deserialize_with = "error_or_message")]
    #[schemars(with = "ErrorOrMessage")]
    pub error: JobError,
    /// A human-readable message; the error's message if absent.
    #[serde(default)]
    pub message: Option<String>,
    /// Merged into the job's metadata.
    #[serde(default)]
    pub metadata: Option<Map<String, Value>>,
}

/// Cancels the job. If it is in progress, its worker is asked to stop, unless `force` ends it at once.
#[derive(Debug, Clone, Default, JsonSchema, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(example = serde_json::json!({ "message": "No longer needed" }))]
pub struct Cancel {
    /// The attempt that the report is about; rejected if it is not the current one.
    pub attempt: Option<u32>,
    /// The name by which the worker identifies itself; the token's `sub` if absent.
    #[schemars(length(min = 1, max = WORKER_MAX_BYTES))]
    pub worker: Option<String>,
    /// A human-readable reason.
    pub message: Option<String>,
    /// Ends a running job at once. Sent by a worker that has stopped, or by an administrator who does not wait for it.
    pub force: bool,
}

/// Distinguishes `null` from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::<f64>::deserialize(deserializer).map(Some)
}

/// The schema of an error in a body.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[expect(
    dead_code,
    reason = "only its schema is used; `error_or_message` reads the field, with clearer error messages"
)]
enum ErrorOrMessage {
    /// The message.
    Message(String),
    /// Code and message.
    Error(JobError),
}

/// Reads an error. One that consists only of a message gets the default code.
fn error_or_message<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobError, D::Error> {
    deserializer.deserialize_any(ErrorVisitor)
}

struct ErrorVisitor;

impl<'de> Visitor<'de> for ErrorVisitor {
    type Value = JobError;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with `code`, `message` and optional `details`, or a text")
    }

    fn visit_str<E: serde::de::Error>(self, message: &str) -> Result<JobError, E> {
        Ok(JobError {
            code: PLAIN_ERROR_CODE.into(),
            message: message.into(),
            details: None,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, error: A) -> Result<JobError, A::Error> {
        JobError::deserialize(MapAccessDeserializer::new(error))
    }
}

impl Command {
    /// Returns the type that a report names, which allows it to create the job.
    pub(super) fn job_type(&self) -> Option<&JobType> {
        match self {
            Command::Start(start) => start.job_type.as_ref(),
            Command::Progress(report) => report.job_type.as_ref(),
            _ => None,
        }
    }

    /// Returns the attempt that a report names, if any.
    pub(super) fn attempt(&self) -> Option<u32> {
        match self {
            Command::Start(start) => start.attempt,
            Command::Progress(report) => report.attempt,
            Command::Complete(complete) => complete.attempt,
            Command::Fail(fail) => fail.attempt,
            Command::Cancel(cancel) => cancel.attempt,
            Command::Create(_) | Command::Queue(_) | Command::Retry(_) | Command::Check => None,
        }
    }

    /// Returns the worker that a report names, if any.
    pub(super) fn worker(&self) -> Option<&str> {
        match self {
            Command::Start(start) => start.worker.as_deref(),
            Command::Progress(report) => report.worker.as_deref(),
            Command::Complete(complete) => complete.worker.as_deref(),
            Command::Fail(fail) => fail.worker.as_deref(),
            Command::Cancel(cancel) => cancel.worker.as_deref(),
            Command::Create(_) | Command::Queue(_) | Command::Retry(_) | Command::Check => None,
        }
    }

    /// Returns whether this command makes its sender a worker of the job. Cancel does not: other clients can cancel as well.
    pub(super) fn is_of_worker(&self) -> bool {
        matches!(
            self,
            Command::Start(_) | Command::Progress(_) | Command::Complete(_) | Command::Fail(_)
        )
    }

    /// Returns whether it is rejected if it comes from a worker of an earlier attempt. A worker joins the current
    /// attempt with `start`.
    pub(super) fn is_fenced(&self) -> bool {
        match self {
            Command::Progress(_) | Command::Complete(_) | Command::Fail(_) => true,
            Command::Cancel(cancel) => cancel.force,
            _ => false,
        }
    }

    /// Returns the verb, as in the URL.
    pub fn action(&self) -> &'static str {
        match self {
            Command::Create(_) => "create",
            Command::Queue(_) => "queue",
            Command::Start(_) => "start",
            Command::Progress(_) => "progress",
            Command::Complete(_) => "complete",
            Command::Fail(_) => "fail",
            Command::Cancel(_) => "cancel",
            Command::Retry(_) => "retry",
            Command::Check => "check",
        }
    }
}

impl CommandOf<Job> for Command {
    fn check() -> Option<Command> {
        Some(Command::Check)
    }

    fn read<B: Body>(verb: &str, body: B) -> Option<Result<Command, B::Error>> {
        Some(match verb {
            "create" => body.read().map(Command::Create),
            "queue" => body.read().map(Command::Queue),
            "start" => body.read().map(Command::Start),
            "progress" => body.read().map(Command::Progress),
            "complete" => body.read().map(Command::Complete),
            "fail" => body.read().map(Command::Fail),
            "cancel" => body.read().map(Command::Cancel),
            "retry" => body.read().map(Command::Retry),
            _ => return None,
        })
    }

    fn names(&self) -> Option<&SubjectId> {
        match self {
            Command::Create(create) => create.job_id.as_ref(),
            _ => None,
        }
    }

    /// Returns the type of a job that is about to run.
    fn wants_history(&self, job: Option<&Job>) -> Option<Arc<str>> {
        match (self, job) {
            (Command::Create(create), None) if create.status == Some(Status::InProgress) => {
                Some(create.job_type.shared())
            }
            (command, None) => command.job_type().map(JobType::shared),
            (Command::Start(_) | Command::Progress(_), Some(job))
                if matches!(job.status, Status::Pending | Status::Queued) =>
            {
                Some(job.job_type.shared())
            }
            _ => None,
        }
    }
}
