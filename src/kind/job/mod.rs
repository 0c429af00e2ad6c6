//! A job: a long piece of work that a worker reports on.
//!
//! ```text
//! pending ──▶ queued ──▶ in_progress ──▶ completed
//!    └───────────┴────────────┴────────▶ failed, cancelled ──retry──▶ queued (attempt + 1)
//! ```
//!
//! Steps may be skipped forwards: a worker without a queue starts a pending job, a progress report starts a job that is
//! not running yet, and one that is completed without having been started is told as `in_progress` first. `start` and
//! `progress` also make a job known if they name its `job_type`, so that one call is enough to report. Cancelling a running job only *asks*: the worker learns of it
//! in the answer to its next report and ends the job with `force`. A terminal status is final for its
//! attempt; `retry` opens a new attempt of a failed or cancelled job, and only that. A report on another attempt than the
//! present one has no effect, also one that does not say so, where it can be told ([`Reporters`]).
//!
//! Silence is measured in [uptime](crate::uptime) and judged lazily: [`Job::check_uptime`] is the next moment at which it
//! is worth looking: for silence, and for an estimate that has lapsed. A report moves it only when half of the time until
//! then is over, so that a busy job is never looked at, and its index entry rarely changes.

mod command;
mod estimate;
mod reporters;
mod rules;

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

pub use self::command::{Cancel, Command, Complete, Create, Fail, Note, Progress, Start};
pub use self::estimate::{Course, Estimator, Eta, EtaSource, History, Past};
pub use self::reporters::{REPORTERS_MAX, Reporters, SUB_MAX_BYTES, WORKER_MAX_BYTES};
pub use self::rules::apply;
use super::{Description, PLAIN_ERROR_CODE, RuleError, Subject, is_plain_name};
use crate::event::{Class, Draft, EventType, Payload, timestamp};
use crate::id::{Kind, SubjectId, is_visible};
use crate::uptime::Uptime;

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("jobs");
/// A job has no parts.
pub type Part = super::NoPart;
/// The type of every event of a job.
pub static JOB_PROGRESS: EventType = EventType::new("job_progress");
/// What is fixed of jobs.
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
    columns: &[],
};
/// The longest `job_type`, in bytes.
pub const TYPE_MAX_BYTES: usize = 64;

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Known, not yet handed to a queue.
    Pending,
    /// Waiting for a worker.
    Queued,
    /// A worker is at it.
    InProgress,
    /// Done, with a `result`.
    Completed,
    /// Ended by an `error`.
    Failed,
    /// Ended on request, with an `error` of code `cancelled`.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a job's life.
    pub const ALL: [Status; 6] = [
        Status::Pending,
        Status::Queued,
        Status::InProgress,
        Status::Completed,
        Status::Failed,
        Status::Cancelled,
    ];

    /// As it stands in messages and in the database.
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

    /// Whether the attempt is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Status::Completed | Status::Failed | Status::Cancelled)
    }

    /// What `message` says when nobody said anything.
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

impl FromStr for Status {
    type Err = RuleError;

    /// Lower case, or all upper case as some existing clients send it.
    fn from_str(text: &str) -> Result<Status, RuleError> {
        let found = Status::ALL
            .into_iter()
            .find(|status| text == status.as_str() || text == status.as_str().to_ascii_uppercase());
        found.ok_or_else(|| {
            let names: Vec<_> = Status::ALL.iter().map(|status| status.as_str()).collect();
            RuleError::Invalid {
                field: "status",
                expected: format!("is one of {}", names.join(", ")),
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
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shared text.
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
                    "has 1 to {TYPE_MAX_BYTES} characters out of A-Z a-z 0-9 . _ : ~ -"
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

/// Why a job failed or was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobError {
    /// For programs: `timeout`, `cancelled`, or the worker's own; `error` if it gave none.
    #[serde(default = "plain_code")]
    pub code: Arc<str>,
    /// For people.
    pub message: Arc<str>,
}

fn plain_code() -> Arc<str> {
    PLAIN_ERROR_CODE.into()
}

/// How a finished job ended.
#[derive(Debug, Clone)]
pub enum End {
    /// Completed, with what the worker handed over (JSON, `null` if nothing).
    Result(Arc<RawValue>),
    /// Failed or cancelled.
    Error(JobError),
}

/// A job's whole state.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its type, for example `document`.
    pub job_type: JobType,
    /// Where it stands.
    pub status: Status,
    /// Percent done, or nothing if it cannot be told.
    pub progress: Option<f64>,
    /// The newest word for people.
    pub message: Arc<str>,
    /// The producer's own JSON object, compact.
    pub metadata: Arc<RawValue>,
    /// 1, and one more with every retry.
    pub attempt: u32,
    /// Who has reported.
    pub reporters: Arc<Reporters>,
    /// When it will be done, if that can be told.
    pub eta: Option<Eta>,
    /// Whether a running job has been silent for too long.
    pub stalled: bool,
    /// Whether the worker is asked to stop.
    pub cancel_requested: bool,
    /// How it ended; set exactly when `status` is terminal.
    pub end: Option<End>,
    /// When it became known.
    pub created_at: DateTime<Utc>,
    /// When the worker, or anyone who acted, was last heard of.
    pub heard_at: DateTime<Utc>,
    /// The same, as silence is measured.
    pub heard_uptime: Uptime,
    /// When this attempt started to run.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Silence in seconds before it is `stalled`; 0 is never.
    pub stall_after_secs: u32,
    /// Silence in seconds before it is failed; 0 is never.
    pub timeout_secs: u32,
    /// When to look for silence next, and whether the estimate holds; may be earlier than needed, never later.
    pub check_uptime: Option<Uptime>,
    /// What the end is estimated from, while it runs.
    pub estimator: Option<Box<Estimator>>,
    /// What one that is completed teaches of its type.
    pub past: Option<Past>,
}

impl Subject for Job {
    fn describe(&self, id: &SubjectId, now: DateTime<Utc>) -> Draft {
        let eta = self.eta.and_then(|eta| eta.as_of(now));
        told(id, self, eta, Class::Milestone)
    }

    fn text_bytes(&self) -> usize {
        let end = match &self.end {
            Some(End::Result(result)) => result.get().len(),
            Some(End::Error(error)) => error.message.len(),
            None => 0,
        };
        self.message.len() + self.metadata.get().len() + end
    }

    /// `metadata.title`, if that is a text of which something is seen.
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
        json!({
            "created_at": timestamp(self.created_at),
            "heard_at": timestamp(self.heard_at),
            "started_at": self.started_at.map(timestamp),
            "finished_at": self.finished_at.map(timestamp),
            "worker": self.reporters.worker(),
        })
    }

    fn is_over(&self) -> bool {
        self.status.is_terminal()
    }

    fn past(&self) -> Option<(Arc<str>, Past)> {
        self.past.map(|past| (self.job_type.shared(), past))
    }
}

/// What a `job_progress` tells: the job as it is then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Which job.
    pub job_id: SubjectId,
    /// See [`Job::job_type`].
    pub job_type: JobType,
    /// See [`Job::status`].
    pub status: Status,
    /// See [`Job::progress`].
    pub progress: Option<f64>,
    /// See [`Job::message`].
    pub message: Arc<str>,
    /// See [`Job::metadata`].
    pub metadata: Arc<RawValue>,
    /// See [`Job::attempt`].
    pub attempt: u32,
    /// See [`Eta::at`].
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    pub eta_at: Option<DateTime<Utc>>,
    /// See [`Eta::low_at`].
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    pub eta_low_at: Option<DateTime<Utc>>,
    /// See [`Eta::high_at`].
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    pub eta_high_at: Option<DateTime<Utc>>,
    /// See [`Eta::source`].
    pub eta_source: Option<EtaSource>,
    /// See [`Job::stalled`].
    #[serde(default)]
    pub stalled: bool,
    /// See [`Job::cancel_requested`].
    #[serde(default)]
    pub cancel_requested: bool,
    /// What the worker handed over, once the job is completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Arc<RawValue>>,
    /// Why the job failed or was cancelled, once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}

impl Payload for Report {
    const TYPE: &'static EventType = &JOB_PROGRESS;
}

/// What a job's state looks like as an event of `class`.
pub fn draft(id: &SubjectId, job: &Job, class: Class) -> Draft {
    told(id, job, job.eta, class)
}

fn told(id: &SubjectId, job: &Job, eta: Option<Eta>, class: Class) -> Draft {
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
