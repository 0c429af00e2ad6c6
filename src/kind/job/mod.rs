//! A job: a long piece of work that a worker reports on.
//!
//! ```text
//! pending ──▶ queued ──▶ in_progress ──▶ completed
//!    └───────────┴────────────┴────────▶ failed, cancelled ──retry──▶ queued (attempt + 1)
//! ```
//!
//! Steps may be skipped forwards: a worker without a queue starts a pending job, and a progress report
//! starts a job that is not running yet. Cancelling a running job only *asks*: the worker learns of it
//! in the answer to its next report and ends the job with `force`. A terminal status is final for its
//! attempt; `retry` opens a new attempt of a failed or cancelled job, and only that.
//!
//! Silence is judged lazily: [`Job::check_at`] is the next time at which it is worth looking, and it is
//! not moved by every report, so that a busy job costs one look per stall period and no index churn.

mod command;

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value};

pub use self::command::{Cancel, Command, Complete, Create, Fail, Note, Progress};
pub use super::rate::Rate;
use super::{Context, Outcome, RuleError, bounded, rate};
use crate::event::{Class, Draft};
use crate::id::{Kind, SubjectId};

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("jobs");
/// The `type` of every event of a job.
pub const EVENT_NAME: &str = "job_progress";
/// What can stand in an event of a job as its name or status.
pub const NAMES: &[&str] = &[
    EVENT_NAME,
    "pending",
    "queued",
    "in_progress",
    "completed",
    "failed",
    "cancelled",
];
/// The longest `job_type`, in bytes.
pub const TYPE_MAX_BYTES: usize = 64;
/// The longest `error.code`, in bytes.
pub const CODE_MAX_BYTES: usize = 64;

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

impl<'de> Deserialize<'de> for Status {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A job's type: a short name out of the alphabet of ids.
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
        match text.parse::<SubjectId>() {
            Ok(name) if text.len() <= TYPE_MAX_BYTES => Ok(JobType(name.as_str().into())),
            _ => Err(RuleError::Invalid {
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
    /// For programs: `timeout`, `cancelled`, or the worker's own.
    pub code: Arc<str>,
    /// For people.
    pub message: Arc<str>,
}

/// How a finished job ended.
#[derive(Debug, Clone)]
pub enum End {
    /// Completed, with what the worker handed over (JSON, `null` if nothing).
    Result(Arc<RawValue>),
    /// Failed or cancelled.
    Error(JobError),
}

/// Where an estimate of the end comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EtaSource {
    /// This attempt's own rate of progress.
    Rate,
    /// The median duration of recent jobs of the same type.
    History,
}

/// Estimated end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Eta {
    /// The estimated time of completion.
    pub at: DateTime<Utc>,
    /// What the estimate rests on.
    pub source: EtaSource,
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
    /// When the worker, or whoever acted, was last heard of.
    pub heard_at: DateTime<Utc>,
    /// When this attempt started to run.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Silence in seconds before it is `stalled`; 0 is never.
    pub stall_after_secs: u32,
    /// Silence in seconds before it is failed; 0 is never.
    pub timeout_secs: u32,
    /// The next time to look for silence; may be earlier than needed, never later.
    pub check_at: Option<DateTime<Utc>>,
    /// Median duration of its like, as known when it started.
    pub typical_secs: Option<f64>,
    /// How fast it runs.
    pub rate: Option<Rate>,
}

/// The rules: what becomes of a job by a command, and what is told of it. Pure.
pub fn apply(
    id: &SubjectId,
    job: Option<&Job>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Job>, RuleError> {
    let (job, class) = match (command, job) {
        (Command::Create(create), None) => (created(create, context)?, Some(Class::Milestone)),
        (Command::Create(_), Some(_)) => {
            return Err(RuleError::AlreadyExists {
                noun: "Job",
                id: id.to_string(),
            });
        }
        (_, None) => {
            return Err(RuleError::NotFound {
                noun: "Job",
                id: id.to_string(),
            });
        }
        (command, Some(job)) => changed(job, command, context)?,
    };
    let drafts = class
        .map(|class| draft(id, &job, class))
        .into_iter()
        .collect();
    Ok(Outcome { state: job, drafts })
}

fn created(create: &Create, context: &Context<'_>) -> Result<Job, RuleError> {
    let limits = context.limits;
    let status = create.status.unwrap_or(Status::Pending);
    if status.is_terminal() {
        return Err(RuleError::Invalid {
            field: "status",
            expected: "of a new job is pending, queued or in_progress".into(),
        });
    }
    let mut job = Job {
        job_type: create.job_type.clone(),
        status: Status::Pending,
        progress: Some(0.0),
        message: Status::Pending.default_message().into(),
        metadata: merged(
            None,
            create.metadata.clone().unwrap_or_default(),
            limits.metadata_bytes,
        )?,
        attempt: 1,
        eta: None,
        stalled: false,
        cancel_requested: false,
        end: None,
        created_at: context.now,
        heard_at: context.now,
        started_at: None,
        finished_at: None,
        stall_after_secs: create.stall_after_secs.unwrap_or(limits.stall_after_secs),
        timeout_secs: create.timeout_secs.unwrap_or(limits.timeout_secs),
        check_at: None,
        typical_secs: None,
        rate: None,
    };
    match status {
        Status::InProgress => job.start(context),
        other => job.enter(other),
    }
    job.say(create.message.as_deref(), context)?;
    Ok(job)
}

/// The job afterwards, and the class of what happened, if anything did.
fn changed(
    job: &Job,
    command: &Command,
    context: &Context<'_>,
) -> Result<(Job, Option<Class>), RuleError> {
    let illegal = || RuleError::IllegalTransition {
        action: command.action(),
        status: job.status.as_str(),
    };
    if let Command::Check = command {
        return Ok(checked(job, context));
    }
    if job.status.is_terminal()
        && !matches!(
            (command, job.status),
            (Command::Retry(_), Status::Failed | Status::Cancelled)
        )
    {
        return Err(RuleError::Finished {
            status: job.status.as_str(),
        });
    }
    let mut next = job.clone();
    next.heard_at = context.now;
    let mut class = Class::Milestone;
    match command {
        Command::Create(_) | Command::Check => return Err(illegal()),
        Command::Queue(note) => {
            if job.status != Status::Pending {
                return Err(illegal());
            }
            next.enter(Status::Queued);
            next.note(note, context)?;
        }
        Command::Start(note) => {
            if job.status == Status::InProgress {
                return Err(illegal());
            }
            next.start(context);
            next.note(note, context)?;
        }
        Command::Progress(report) => {
            if job.status != Status::InProgress {
                next.start(context);
            } else if !job.stalled {
                class = Class::Tick;
            }
            next.stalled = false;
            next.advance(report, context)?;
        }
        Command::Complete(complete) => {
            if job.status != Status::InProgress {
                return Err(illegal());
            }
            let result = to_raw_value(&complete.result).expect("a JSON value is JSON");
            next.finish(Status::Completed, End::Result(result.into()), context.now);
            next.progress = Some(100.0);
            next.say(complete.message.as_deref(), context)?;
        }
        Command::Fail(fail) => {
            let code = bounded("error.code", &fail.error.code, CODE_MAX_BYTES)?;
            if code.is_empty() {
                return Err(RuleError::Invalid {
                    field: "error.code",
                    expected: "is not empty".into(),
                });
            }
            let message = bounded(
                "error.message",
                &fail.error.message,
                context.limits.message_bytes,
            )?;
            let word = fail.message.as_deref().unwrap_or(&message).to_owned();
            next.finish(
                Status::Failed,
                End::Error(JobError { code, message }),
                context.now,
            );
            next.say(Some(&word), context)?;
        }
        Command::Cancel(cancel) => {
            if job.status == Status::InProgress && !cancel.force {
                if job.cancel_requested {
                    return Ok((job.clone(), None));
                }
                next.cancel_requested = true;
                // Whoever asks is not the worker: silence goes on being counted.
                next.heard_at = job.heard_at;
            } else {
                let message = cancel
                    .message
                    .as_deref()
                    .unwrap_or(Status::Cancelled.default_message());
                let message = bounded("message", message, context.limits.message_bytes)?;
                next.finish(
                    Status::Cancelled,
                    End::Error(JobError {
                        code: "cancelled".into(),
                        message,
                    }),
                    context.now,
                );
            }
            next.say(cancel.message.as_deref(), context)?;
        }
        Command::Retry(note) => {
            if !job.status.is_terminal() {
                return Err(illegal());
            }
            next.attempt = job.attempt.saturating_add(1);
            next.progress = Some(0.0);
            next.cancel_requested = false;
            next.end = None;
            next.started_at = None;
            next.finished_at = None;
            next.typical_secs = None;
            next.enter(Status::Queued);
            next.note(note, context)?;
        }
    }
    next.estimate(context.now);
    next.schedule_check(next.heard_at);
    Ok((next, Some(class)))
}

/// What silence has done to a job.
fn checked(job: &Job, context: &Context<'_>) -> (Job, Option<Class>) {
    let mut next = job.clone();
    next.check_at = None;
    if job.status != Status::InProgress {
        return (next, None);
    }
    // A worker cannot be blamed for what it said while nobody was there to hear it.
    let heard_at = job.heard_at.max(context.since.min(context.now));
    let silence = context.now - heard_at;
    let silent_for = |secs: u32| secs > 0 && silence >= TimeDelta::seconds(secs.into());
    if silent_for(job.timeout_secs) {
        let message: Arc<str> =
            format!("No word from the worker for {} seconds", job.timeout_secs).into();
        next.message = Arc::clone(&message);
        next.finish(
            Status::Failed,
            End::Error(JobError {
                code: "timeout".into(),
                message,
            }),
            context.now,
        );
        return (next, Some(Class::Milestone));
    }
    let stalls = !job.stalled && silent_for(job.stall_after_secs);
    if stalls {
        next.stalled = true;
        next.estimate(context.now);
    }
    next.schedule_check(heard_at);
    (next, stalls.then_some(Class::Milestone))
}

impl Job {
    /// Type and duration in seconds, if it completed.
    pub(super) fn duration(&self) -> Option<(Arc<str>, f64)> {
        let elapsed = self.finished_at? - self.started_at?;
        let completed = self.status == Status::Completed;
        completed.then(|| {
            (
                self.job_type.shared(),
                elapsed.num_milliseconds() as f64 / 1000.0,
            )
        })
    }

    fn enter(&mut self, status: Status) {
        self.status = status;
        self.message = status.default_message().into();
        self.stalled = false;
        self.rate = None;
        self.eta = None;
        self.check_at = None;
    }

    fn start(&mut self, context: &Context<'_>) {
        self.enter(Status::InProgress);
        self.started_at = Some(context.now);
        self.typical_secs = context.typical_secs;
        self.rate = self
            .progress
            .map(|progress| Rate::starting(progress, context.now));
        self.estimate(context.now);
        self.schedule_check(self.heard_at);
    }

    fn finish(&mut self, status: Status, end: End, now: DateTime<Utc>) {
        self.enter(status);
        self.end = Some(end);
        self.finished_at = Some(now);
    }

    fn note(&mut self, note: &Note, context: &Context<'_>) -> Result<(), RuleError> {
        self.say(note.message.as_deref(), context)?;
        self.merge(note.metadata.as_ref(), context)
    }

    fn say(&mut self, message: Option<&str>, context: &Context<'_>) -> Result<(), RuleError> {
        if let Some(message) = message {
            self.message = bounded("message", message, context.limits.message_bytes)?;
        }
        Ok(())
    }

    fn merge(
        &mut self,
        patch: Option<&Map<String, Value>>,
        context: &Context<'_>,
    ) -> Result<(), RuleError> {
        if let Some(patch) = patch {
            self.metadata = merged(
                Some(&self.metadata),
                patch.clone(),
                context.limits.metadata_bytes,
            )?;
        }
        Ok(())
    }

    fn advance(&mut self, report: &Progress, context: &Context<'_>) -> Result<(), RuleError> {
        match report.progress {
            None => {}
            Some(None) => {
                if let Some(current) = self.progress.filter(|&progress| progress > 0.0) {
                    return Err(RuleError::ProgressFell {
                        current,
                        asked: "null".into(),
                    });
                }
                self.progress = None;
                self.rate = None;
            }
            Some(Some(asked)) => {
                if !(0.0..=100.0).contains(&asked) {
                    return Err(RuleError::Invalid {
                        field: "progress",
                        expected: "is a number from 0 to 100, or null".into(),
                    });
                }
                let current = self.progress.unwrap_or(0.0);
                if asked < current {
                    return Err(RuleError::ProgressFell {
                        current,
                        asked: asked.to_string(),
                    });
                }
                // `-0.0` is in the range and not less than 0.0, and would print as `-0.0`.
                let asked = asked.abs();
                self.progress = Some(asked);
                self.rate
                    .get_or_insert(Rate::starting(asked, context.now))
                    .observe(asked, context.now);
            }
        }
        self.say(report.message.as_deref(), context)?;
        self.merge(report.metadata.as_ref(), context)
    }

    fn estimate(&mut self, now: DateTime<Utc>) {
        self.eta = None;
        if self.status != Status::InProgress {
            return;
        }
        let by_rate = || Some((self.rate?.finish(self.progress?, now)?, EtaSource::Rate));
        let by_history = || {
            let end = rate::after(self.started_at?, self.typical_secs?)?;
            (end > now).then_some((end, EtaSource::History))
        };
        self.eta = by_rate()
            .or_else(by_history)
            .map(|(at, source)| Eta { at, source });
    }

    fn schedule_check(&mut self, heard_at: DateTime<Utc>) {
        if self.status != Status::InProgress {
            self.check_at = None;
            return;
        }
        let in_secs = |secs: u32| (secs > 0).then(|| heard_at + TimeDelta::seconds(secs.into()));
        let stall = if self.stalled {
            None
        } else {
            in_secs(self.stall_after_secs)
        };
        let due = stall.into_iter().chain(in_secs(self.timeout_secs)).min();
        self.check_at = self.check_at.into_iter().chain(due).min();
    }
}

/// The object after a merge, within its bound.
fn merged(
    old: Option<&RawValue>,
    patch: Map<String, Value>,
    max_bytes: usize,
) -> Result<Arc<RawValue>, RuleError> {
    let mut object: Map<String, Value> = match old {
        Some(old) => serde_json::from_str(old.get()).expect("stored metadata is a JSON object"),
        None => Map::new(),
    };
    for (key, value) in patch {
        if value.is_null() {
            object.shift_remove(&key);
        } else {
            object.insert(key, value);
        }
    }
    let raw = to_raw_value(&object).expect("a JSON object is JSON");
    if raw.get().len() > max_bytes {
        return Err(RuleError::Invalid {
            field: "metadata",
            expected: format!("has at most {max_bytes} bytes in all"),
        });
    }
    Ok(raw.into())
}

/// A job's own fields in a message.
#[derive(Serialize)]
struct Fields<'a> {
    job_id: &'a str,
    job_type: &'a JobType,
    status: &'static str,
    progress: Option<f64>,
    message: &'a str,
    metadata: &'a RawValue,
    attempt: u32,
    eta_at: Option<DateTime<Utc>>,
    eta_source: Option<EtaSource>,
    stalled: bool,
    cancel_requested: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a JobError>,
}

/// What a job's state looks like as an event of `class`.
pub fn draft(id: &SubjectId, job: &Job, class: Class) -> Draft {
    let (result, error) = match &job.end {
        Some(End::Result(result)) => (Some(&**result), None),
        Some(End::Error(error)) => (None, Some(error)),
        None => (None, None),
    };
    let fields = Fields {
        job_id: id.as_str(),
        job_type: &job.job_type,
        status: job.status.as_str(),
        progress: job.progress,
        message: &job.message,
        metadata: &job.metadata,
        attempt: job.attempt,
        eta_at: job.eta.map(|eta| eta.at),
        eta_source: job.eta.map(|eta| eta.source),
        stalled: job.stalled,
        cancel_requested: job.cancel_requested,
        result,
        error,
    };
    Draft {
        name: EVENT_NAME,
        class,
        status: job.status.as_str(),
        category: Some(job.job_type.shared()),
        fields: serde_json::to_string(&fields).expect("a job is JSON"),
    }
}
