//! A job: a long-running task on which a worker reports.
//!
//! ```text
//! pending ──▶ queued ──▶ in_progress ──▶ completed
//!    └───────────┴────────────┴────────▶ failed, cancelled ──retry──▶ queued (attempt + 1)
//! ```
//!
//! Steps can be skipped forwards: a worker without a queue starts a pending job, a progress report starts a job that is
//! not running yet, and a job that completes without having been started is first published as `in_progress`. `start` and
//! `progress` also create the job if they name its `job_type`, so that one call is enough to report. Cancelling a running
//! job is only a *request*: the worker sees it in the answer to its next report and ends the job with `force`. A terminal
//! status is final for its attempt; `retry`, and nothing else, starts a new attempt of a failed or cancelled job. A
//! report on an attempt other than the current one has no effect. This includes reports that do not name their attempt,
//! if the server can infer it ([`Reporters`]).
//!
//! Silence is measured in [uptime](crate::uptime) and checked lazily: [`Job::check_uptime`] is the next time at which to
//! check a job, for silence or for an estimate that has expired. A report postpones the check only if half of the time
//! until then has elapsed. So a busy job is never checked, and its index entry rarely changes.

mod command;
mod estimate;
mod reporters;
mod rules;

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::{JsonSchema, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

pub use self::command::{Cancel, Command, Complete, Create, Fail, Note, Progress, Start};
pub use self::estimate::{Course, Estimator, Eta, EtaSource, History, Past};
pub use self::reporters::{REPORTERS_MAX, Reporters, SUB_MAX_BYTES, WORKER_MAX_BYTES};
pub use self::rules::apply;
use super::{
    CODE_MAX_BYTES, Description, PLAIN_ERROR_CODE, RuleError, Subject, Texts, is_plain_name,
};
use crate::event::{Class, Draft, EventType, Payload};
use crate::id::{Kind, SubjectId, is_visible};
use crate::uptime::Uptime;

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("jobs");
/// Jobs have no parts.
pub type Part = super::NoPart;
/// The type of every event of a job.
pub static JOB_PROGRESS: EventType = EventType::new::<Report>("job_progress");
/// The description of this kind.
pub static DESCRIPTION: Description = Description {
    kind: KIND,
    noun: "Job",
    title: "Jobs",
    id_field: "job_id",
    other_ids: &["processing_id"],
    event_types: &[&JOB_PROGRESS],
    statuses: &[
        "pending",
        "queued",
        "in_progress",
        "completed",
        "failed",
        "cancelled",
    ],
    made_by: "create",
    verbs: &[
        "queue", "start", "progress", "complete", "fail", "cancel", "retry",
    ],
    details: Details::json_schema,
    columns: &[],
};
/// The longest `job_type`, in bytes.
pub const TYPE_MAX_BYTES: usize = 64;

/// A job's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Created, not yet handed to a queue.
    Pending,
    /// Waiting for a worker.
    Queued,
    /// A worker is working on it.
    InProgress,
    /// Completed, with a `result`.
    Completed,
    /// Failed, with an `error`.
    Failed,
    /// Cancelled on request, with an `error` of code `cancelled`.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a job's lifecycle.
    pub const ALL: [Status; 6] = [
        Status::Pending,
        Status::Queued,
        Status::InProgress,
        Status::Completed,
        Status::Failed,
        Status::Cancelled,
    ];

    /// Returns the name in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Queued => "queued",
            Status::InProgress => "in_progress",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
        }
    }

    /// Returns whether the attempt is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Cancelled)
    }

    /// Returns the default `message`.
    fn default_message(self) -> &'static str {
        match self {
            Status::Pending => "Pending",
            Status::Queued => "Queued",
            Status::InProgress => "In progress",
            Status::Completed => "Completed",
            Status::Failed => "Failed",
            Status::Cancelled => "Cancelled",
        }
    }
}

super::unnamed_schema!(Status, {
    let lower = Status::ALL.map(|status| status.as_str().to_owned());
    let upper = lower.clone().map(|name| name.to_ascii_uppercase());
    super::one_of(lower.iter().chain(&upper).map(String::as_str))
});

impl FromStr for Status {
    type Err = RuleError;

    /// Parses lower case, or all upper case as some existing clients send it.
    fn from_str(text: &str) -> Result<Status, RuleError> {
        let found = Status::ALL
            .into_iter()
            .find(|status| text == status.as_str() || text == status.as_str().to_ascii_uppercase());
        found.ok_or_else(|| {
            let names: Vec<_> = Status::ALL.iter().map(|status| status.as_str()).collect();
            RuleError::Invalid {
                field: "status",
                expected: format!("must be one of {}", names.join(", ")),
            }
        })
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A job's type: a short name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct JobType(Arc<str>);

impl JobType {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the shared text.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl FromStr for JobType {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<JobType, RuleError> {
        match is_plain_name(text, TYPE_MAX_BYTES) && text != "." && text != ".." {
            true => Ok(JobType(text.into())),
            false => Err(RuleError::Invalid {
                field: "job_type",
                expected: format!(
                    "must have 1 to {TYPE_MAX_BYTES} characters from A-Z a-z 0-9 . _ : ~ -"
                ),
            }),
        }
    }
}

impl TryFrom<String> for JobType {
    type Error = RuleError;

    fn try_from(text: String) -> Result<JobType, RuleError> {
        text.parse()
    }
}

super::unnamed_schema!(JobType, {
    let pattern = format!("^[A-Za-z0-9._:~-]{{1,{TYPE_MAX_BYTES}}}$");
    json_schema!({ "type": "string", "pattern": pattern })
});

/// Why a job failed or was cancelled.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobError {
    /// A machine-readable code: `timeout`, `cancelled`, or the worker's own; `error` by default.
    #[serde(default = "plain_code")]
    #[schemars(length(min = 1, max = CODE_MAX_BYTES))]
    pub code: Arc<str>,
    /// A human-readable message.
    pub message: Arc<str>,
    /// Further details from the worker: any JSON, for example the last output of a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub details: Option<Arc<RawValue>>,
}

impl PartialEq for JobError {
    fn eq(&self, other: &JobError) -> bool {
        let details = |error: &JobError| {
            error
                .details
                .as_ref()
                .map(|details| details.get().to_owned())
        };
        self.code == other.code && self.message == other.message && details(self) == details(other)
    }
}

impl Eq for JobError {}

fn plain_code() -> Arc<str> {
    PLAIN_ERROR_CODE.into()
}

/// How a finished job ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum End {
    /// Completed, with the worker's result (JSON, `null` if absent).
    Result(Arc<RawValue>),
    /// Failed or cancelled.
    Error(JobError),
}

/// The complete state of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Its type, for example `document`.
    pub job_type: JobType,
    /// The status.
    pub status: Status,
    /// Percent complete, or `None` if unknown.
    pub progress: Option<f64>,
    /// The newest human-readable message.
    pub message: Arc<str>,
    /// The producer's JSON object, compact.
    pub metadata: Arc<RawValue>,
    /// 1, incremented with every retry.
    pub attempt: u32,
    /// The workers that have reported.
    pub reporters: Arc<Reporters>,
    /// When it is expected to be done, if an estimate is possible.
    pub eta: Option<Eta>,
    /// Whether a running job has been silent for too long.
    pub stalled: bool,
    /// Whether the worker is asked to stop.
    pub cancel_requested: bool,
    /// How it ended; set exactly when `status` is terminal.
    pub end: Option<End>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When the worker, or any other client that acted on it, was last heard from.
    pub heard_at: DateTime<Utc>,
    /// The same time in uptime, in which silence is measured.
    pub heard_uptime: Uptime,
    /// When this attempt started to run.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// The seconds of silence after which it is `stalled`; 0 means never.
    pub stall_after_secs: u32,
    /// The seconds of silence after which it fails; 0 means never.
    pub timeout_secs: u32,
    /// When to check next for silence and for an outdated estimate; may be earlier than necessary, never later.
    pub check_uptime: Option<Uptime>,
    /// The basis of the estimated end, while it runs.
    pub estimator: Option<Box<Estimator>>,
    /// The contribution of a completed job to the history of its type.
    pub past: Option<Past>,
}

impl Subject for Job {
    fn describe(&self, id: &SubjectId, now: DateTime<Utc>) -> Draft {
        let eta = self.eta.and_then(|eta| eta.as_of(now));
        state_draft(id, self, eta, Class::Milestone)
    }

    fn text_bytes(&self) -> usize {
        let end = match &self.end {
            Some(End::Result(result)) => result.get().len(),
            Some(End::Error(error)) => {
                error.message.len()
                    + error
                        .details
                        .as_ref()
                        .map_or(0, |details| details.get().len())
            }
            None => 0,
        };
        self.message.len() + self.metadata.get().len() + end
    }

    /// Returns `metadata.title`, if it is a text with visible characters.
    fn title(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Titled {
            title: Option<Value>,
        }
        let titled: Titled = serde_json::from_str(self.metadata.get()).ok()?;
        let title = titled.title?;
        let title = title.as_str().filter(|title| is_visible(title))?;
        Some(title.to_owned())
    }

    fn details(&self, _: &SubjectId) -> Value {
        let details = Details {
            created_at: self.created_at,
            heard_at: self.heard_at,
            started_at: self.started_at,
            finished_at: self.finished_at,
            worker: self.reporters.worker(),
        };
        serde_json::to_value(details).expect("details are JSON")
    }

    fn is_over(&self) -> bool {
        self.status.is_terminal()
    }

    fn past(&self) -> Option<(Arc<str>, Past)> {
        self.past.map(|past| (self.job_type.shared(), past))
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
    }

    fn category(&self) -> Option<&str> {
        Some(self.job_type.as_str())
    }

    fn is_stalled(&self) -> bool {
        self.stalled
    }

    fn finished_at(&self) -> Option<DateTime<Utc>> {
        self.finished_at
    }

    fn created_at(&self) -> DateTime<Utc> {
        self.created_at
    }

    fn check_uptime(&self) -> Option<Uptime> {
        self.check_uptime
    }

    fn texts(&self) -> Texts<'_> {
        let error = match &self.end {
            Some(End::Error(error)) => Some([&*error.code, &*error.message]),
            Some(End::Result(_)) | None => None,
        };
        let texts = std::iter::once(&*self.message).chain(error.into_iter().flatten());
        Texts {
            own: texts.collect(),
            values: Some(&self.metadata),
        }
    }
}

/// A job's data that is not in its events.
#[derive(JsonSchema, Serialize)]
struct Details<'a> {
    /// When it was created.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    created_at: DateTime<Utc>,
    /// When the worker, or any other client that acted on it, was last heard from.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    heard_at: DateTime<Utc>,
    /// When this attempt started to run.
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    finished_at: Option<DateTime<Utc>>,
    /// The worker that reported last in this attempt, if its reports name it.
    worker: Option<&'a str>,
}

/// The state of a job at the time of the event.
#[derive(Debug, Clone, JsonSchema, Serialize, Deserialize)]
#[schemars(rename = "JobProgress")]
#[schemars(example = serde_json::json!({
    "job_id": "42",
    "job_type": "backup",
    "status": "in_progress",
    "progress": 42.0,
    "message": "Copying the timetable",
    "metadata": { "title": "Nightly backup" },
    "attempt": 1,
    "eta_at": "2026-03-02T02:50:00.000Z",
    "eta_low_at": "2026-03-02T02:44:00.000Z",
    "eta_high_at": "2026-03-02T02:58:00.000Z",
    "eta_source": "rate",
    "stalled": false,
    "cancel_requested": false,
}))]
pub struct Report {
    /// The job.
    pub job_id: SubjectId,
    /// Its type, for example `document`.
    pub job_type: JobType,
    /// The status.
    pub status: Status,
    /// Percent complete, 0 to 100; null if unknown.
    #[schemars(range(min = 0, max = 100))]
    pub progress: Option<f64>,
    /// The newest human-readable message.
    pub message: Arc<str>,
    /// The producer's own data.
    #[schemars(with = "serde_json::Map<String, Value>")]
    pub metadata: Arc<RawValue>,
    /// 1, incremented with every retry.
    pub attempt: u32,
    /// When the job is expected to be done; null if no estimate is possible.
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    pub eta_at: Option<DateTime<Utc>>,
    /// The beginning of the 80 % interval around `eta_at`.
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    pub eta_low_at: Option<DateTime<Utc>>,
    /// The end of the 80 % interval around `eta_at`.
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    pub eta_high_at: Option<DateTime<Utc>>,
    /// What the estimate is based on.
    pub eta_source: Option<EtaSource>,
    /// Whether the running job has been silent for too long.
    #[serde(default)]
    pub stalled: bool,
    /// Whether the worker is asked to stop.
    #[serde(default)]
    pub cancel_requested: bool,
    /// The worker's result, once the job is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Arc<RawValue>>,
    /// Why the job failed or was cancelled, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}

impl Payload for Report {
    const TYPE: &'static EventType = &JOB_PROGRESS;
}

/// Returns a job's state as an event of `class`.
pub fn draft(id: &SubjectId, job: &Job, class: Class) -> Draft {
    state_draft(id, job, job.eta, class)
}

fn state_draft(id: &SubjectId, job: &Job, eta: Option<Eta>, class: Class) -> Draft {
    let (result, error) = match &job.end {
        Some(End::Result(result)) => (Some(Arc::clone(result)), None),
        Some(End::Error(error)) => (None, Some(error.clone())),
        None => (None, None),
    };
    let report = Report {
        job_id: id.clone(),
        job_type: job.job_type.clone(),
        status: job.status,
        progress: job.progress,
        message: Arc::clone(&job.message),
        metadata: Arc::clone(&job.metadata),
        attempt: job.attempt,
        eta_at: eta.map(|eta| eta.at),
        eta_low_at: eta.map(|eta| eta.low_at),
        eta_high_at: eta.map(|eta| eta.high_at),
        eta_source: eta.map(|eta| eta.source),
        stalled: job.stalled,
        cancel_requested: job.cancel_requested,
        result,
        error,
    };
    Draft {
        category: Some(job.job_type.shared()),
        ..Draft::new(class, job.status.as_str(), report)
    }
}
