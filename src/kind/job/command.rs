//! What can be asked of a job. The fields are the bodies of the HTTP calls and of a batch's lines.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{Job, JobError, JobType, Status};
use crate::id::SubjectId;
use crate::kind::{Body, CommandOf};

/// What can be asked of a job. The fields are the bodies of the HTTP calls; unknown ones are refused.
#[derive(Debug, Clone)]
pub enum Command {
    /// Make it known.
    Create(Create),
    /// Hand it to a queue.
    Queue(Note),
    /// Begin to work.
    Start(Note),
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

/// Body of `queue`, `start` and `retry`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Note {
    /// A word for people.
    pub message: Option<String>,
    /// Merged into the job's metadata (RFC 7396, first level: `null` removes a key).
    pub metadata: Option<Map<String, Value>>,
}

/// Body of `progress`. An absent field stays as it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Progress {
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
    /// What the work came to: any JSON.
    pub result: Option<Value>,
    /// A word for people.
    pub message: Option<String>,
}

/// Body of `fail`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    /// What went wrong.
    #[serde(deserialize_with = "crate::kind::from_object")]
    pub error: JobError,
    /// A word for people; the error's message if absent.
    #[serde(default)]
    pub message: Option<String>,
}

/// Body of `cancel`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cancel {
    /// A word for people, why.
    pub message: Option<String>,
    /// End a running job now: the worker's own confirmation, or an administrator's last resort.
    pub force: bool,
}

/// Tells `null` from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::<f64>::deserialize(deserializer).map(Some)
}

impl Command {
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
            (Command::Start(_) | Command::Progress(_), Some(job))
                if matches!(job.status, Status::Pending | Status::Queued) =>
            {
                Some(job.job_type.shared())
            }
            _ => None,
        }
    }
}
