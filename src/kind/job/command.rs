//! What can be asked of a job. The fields are the bodies of the HTTP calls and of a batch's lines.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{Job, JobError, JobType, Status};
use crate::id::SubjectId;
use crate::kind::{Body, CommandOf, PLAIN_ERROR_CODE};

/// What can be asked of a job. The fields are the bodies of the HTTP calls; unknown ones are refused.
#[derive(Debug, Clone)]
pub enum Command {
    /// Make it known.
    Create(Create),
    /// Hand it to a queue.
    Queue(Note),
    /// Begin to work.
    Start(Start),
    /// Tell how far it is.
    Progress(Progress),
    /// End it well.
    Complete(Complete),
    /// End it badly.
    Fail(Fail),
    /// Ask a running one to stop; end a waiting one.
    Cancel(Cancel),
    /// Try a failed or cancelled one again.
    Retry(Note),
    /// Look whether it has been silent too long (the watchdog's own command).
    Check,
}

/// Body of `POST /api/jobs`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The job's id; made up (UUIDv7) if absent.
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    pub job_id: Option<SubjectId>,
    /// The job's type.
    pub job_type: JobType,
    /// `pending` (the default), `queued` or `in_progress`.
    #[serde(default)]
    pub status: Option<Status>,
    /// A word for people.
    #[serde(default)]
    pub message: Option<String>,
    /// Anything the producer wants to carry along.
    #[serde(default)]
    pub metadata: Option<Map<String, Value>>,
    /// Silent seconds before `stalled`; 0 is never.
    #[serde(default)]
    pub stall_after_secs: Option<u32>,
    /// Silent seconds before it is failed with code `timeout`; 0 is never.
    #[serde(default)]
    pub timeout_secs: Option<u32>,
}

impl Create {
    /// With nothing but its type.
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

/// Body of `queue` and `retry`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Note {
    /// A word for people.
    pub message: Option<String>,
    /// Merged into the job's metadata (RFC 7396, first level: `null` removes a key).
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `start`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Start {
    /// The attempt that is reported on; refused if it is not the present one.
    pub attempt: Option<u32>,
    /// Which worker reports, in its own words; the token's `sub` stands for it if absent.
    pub worker: Option<String>,
    /// Makes the job known if it is not yet.
    pub job_type: Option<JobType>,
    /// A word for people.
    pub message: Option<String>,
    /// Merged into the job's metadata.
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `progress`. An absent field stays as it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
    /// The attempt that is reported on; refused if it is not the present one.
    pub attempt: Option<u32>,
    /// Which worker reports, in its own words; the token's `sub` stands for it if absent.
    pub worker: Option<String>,
    /// Makes the job known, and starts it, if it is not yet.
    pub job_type: Option<JobType>,
    /// Percent done, 0 to 100; `null` for "cannot be told", as long as none was told.
    #[serde(deserialize_with = "present")]
    pub progress: Option<Option<f64>>,
    /// A word for people.
    pub message: Option<String>,
    /// Merged into the job's metadata.
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `complete`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Complete {
    /// The attempt that is reported on; refused if it is not the present one.
    pub attempt: Option<u32>,
    /// Which worker reports, in its own words; the token's `sub` stands for it if absent.
    pub worker: Option<String>,
    /// What the work came to: any JSON.
    pub result: Option<Value>,
    /// A word for people.
    pub message: Option<String>,
    /// Merged into the job's metadata.
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `fail`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    /// The attempt that is reported on; refused if it is not the present one.
    #[serde(default)]
    pub attempt: Option<u32>,
    /// Which worker reports, in its own words; the token's `sub` stands for it if absent.
    #[serde(default)]
    pub worker: Option<String>,
    /// What went wrong: `{code, message}`, or only the message.
    #[serde(deserialize_with = "error_or_message")]
    pub error: JobError,
    /// A word for people; the error's message if absent.
    #[serde(default)]
    pub message: Option<String>,
    /// Merged into the job's metadata.
    #[serde(default)]
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `cancel`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cancel {
    /// The attempt that is reported on; refused if it is not the present one.
    pub attempt: Option<u32>,
    /// Which worker reports, in its own words; the token's `sub` stands for it if absent.
    pub worker: Option<String>,
    /// A word for people, why.
    pub message: Option<String>,
    /// End a running job now: the worker's own confirmation, or an administrator's last resort.
    pub force: bool,
}

/// Tells `null` from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::<f64>::deserialize(deserializer).map(Some)
}

/// An error that says nothing but what went wrong gets a code that says no more.
fn error_or_message<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobError, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(message) => Ok(JobError {
            code: PLAIN_ERROR_CODE.into(),
            message: message.into(),
        }),
        error @ Value::Object(_) => JobError::deserialize(error).map_err(serde::de::Error::custom),
        _ => Err(serde::de::Error::custom(
            "`error` is an object with `code` and `message`, or a text",
        )),
    }
}

impl Command {
    /// The type that a report names, so that it may make the job known.
    pub(super) fn job_type(&self) -> Option<&JobType> {
        match self {
            Command::Start(start) => start.job_type.as_ref(),
            Command::Progress(report) => report.job_type.as_ref(),
            _ => None,
        }
    }

    /// The attempt that a report is about, if it says so.
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

    /// Which worker it is that reports, if it says so.
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

    /// Whether the one who sends it is a worker of the job. Others, too, may cancel it.
    pub(super) fn is_of_worker(&self) -> bool {
        matches!(
            self,
            Command::Start(_) | Command::Progress(_) | Command::Complete(_) | Command::Fail(_)
        )
    }

    /// Whether it is to be refused from a worker of an earlier attempt. Starting the job is how to join the present one.
    pub(super) fn is_fenced(&self) -> bool {
        match self {
            Command::Progress(_) | Command::Complete(_) | Command::Fail(_) => true,
            Command::Cancel(cancel) => cancel.force,
            _ => false,
        }
    }

    /// The verb, as in the URL.
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

    /// The type of a job that is about to run.
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
