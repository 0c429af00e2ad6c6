//! An enrollment session: a person gives a finger to a device, scan by scan.
//!
//! ```text
//! ready ──▶ placing ──▶ capturing ──▶ processing ──▶ complete
//!   └──────────┴─────────────┴────────────┴────────▶ error, cancelled
//! ```
//!
//! Steps may be skipped forwards; a step back needs a higher `attempt`. Progress is 0, 33 or 66 by status, or,
//! when the session has `total_attempts`, 33 for each scan that is done; it never falls. A device has one
//! session at a time. A session whose device says nothing for its lease ends with `timeout`; like a job's,
//! that silence is judged lazily ([`Session::check_at`]).

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::{Context, Description, Outcome, RuleError, bounded, code, not_found};
use crate::event::{Class, Draft, EventType};
use crate::id::{Kind, SubjectId};

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("enrollments");
/// A step of a session.
pub static ENROLLMENT_PROGRESS: EventType = EventType::new("enrollment_progress");
/// The end of a session that succeeded.
pub static ENROLLMENT_COMPLETE: EventType = EventType::new("enrollment_complete");
/// The end of a session that failed.
pub static ENROLLMENT_ERROR: EventType = EventType::new("enrollment_error");
/// The end of a session that was given up.
pub static ENROLLMENT_CANCELLED: EventType = EventType::new("enrollment_cancelled");
/// What is fixed of enrollment sessions.
pub static DESCRIPTION: Description = Description {
    kind: KIND,
    noun: "Enrollment session",
    id_field: "session_id",
    event_types: &[
        &ENROLLMENT_PROGRESS,
        &ENROLLMENT_COMPLETE,
        &ENROLLMENT_ERROR,
        &ENROLLMENT_CANCELLED,
    ],
    statuses: &[
        "ready",
        "placing",
        "capturing",
        "processing",
        "complete",
        "error",
        "cancelled",
    ],
};
/// The longest `student_id`, in bytes.
pub const STUDENT_ID_MAX_BYTES: usize = 128;
/// The longest lease, in seconds.
pub const LEASE_MAX_SECS: u32 = 86_400;
/// The most scans that a session may need.
pub const ATTEMPTS_MAX: u32 = 100;

/// Why a session failed, with what people are told unless the device says it better.
pub const ERROR_CODES: [(&str, &str); 5] = [
    ("duplicate_finger", "This finger is enrolled already"),
    ("timeout", "The device did not answer in time"),
    ("device_offline", "The device is offline"),
    ("student_not_on_device", "The student is not on the device"),
    ("verification_failed", "The verification failed"),
];

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The device waits for the person.
    Ready,
    /// The finger is to be placed.
    Placing,
    /// The finger is being scanned.
    Capturing,
    /// A scan is being worked on.
    Processing,
    /// Enrolled.
    Complete,
    /// Failed, with a `code`.
    Error,
    /// Given up on request.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a session's life.
    pub const ALL: [Status; 7] = [
        Status::Ready,
        Status::Placing,
        Status::Capturing,
        Status::Processing,
        Status::Complete,
        Status::Error,
        Status::Cancelled,
    ];

    /// As it stands in messages and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Ready => "ready",
            Status::Placing => "placing",
            Status::Capturing => "capturing",
            Status::Processing => "processing",
            Status::Complete => "complete",
            Status::Error => "error",
            Status::Cancelled => "cancelled",
        }
    }

    /// Whether the session is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Status::Complete | Status::Error | Status::Cancelled)
    }

    /// Percent done when nobody says otherwise.
    fn progress(self) -> u8 {
        match self {
            Status::Ready => 0,
            Status::Placing => 33,
            Status::Complete => 100,
            _ => 66,
        }
    }

    fn default_message(self) -> &'static str {
        match self {
            Status::Ready => "Ready",
            Status::Placing => "Place the finger on the sensor",
            Status::Capturing => "Capturing",
            Status::Processing => "Processing",
            Status::Complete => "Enrollment complete",
            Status::Error => "Enrollment failed",
            Status::Cancelled => "Enrollment cancelled",
        }
    }
}

impl FromStr for Status {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Status, RuleError> {
        let found = Status::ALL.into_iter().find(|own| own.as_str() == text);
        found.ok_or_else(|| RuleError::Invalid {
            field: "status",
            expected: "is one of ready, placing, capturing, processing".into(),
        })
    }
}

/// What can be asked of a session. The fields are the bodies of the HTTP calls; unknown ones are refused.
#[derive(Debug, Clone)]
pub enum Command {
    /// Begin one on a device.
    Start(Start),
    /// Tell how far it is.
    Progress(Report),
    /// End it well.
    Complete(Complete),
    /// End it badly.
    Error(Failure),
    /// Give it up.
    Cancel(Cancel),
    /// Look whether it has been silent too long (the watchdog's own command).
    Check,
}

/// Body of `POST /api/enrollments`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The session's id; made up (UUIDv7) if absent.
    #[serde(default)]
    pub session_id: Option<SubjectId>,
    /// The device that takes the scans.
    #[serde(deserialize_with = "super::id_or_number")]
    pub device_id: SubjectId,
    /// Who is enrolled.
    #[serde(default, deserialize_with = "super::text_or_number")]
    pub student_id: Option<String>,
    /// How many scans it takes; progress then counts them.
    #[serde(default)]
    pub total_attempts: Option<u32>,
    /// A word for people.
    #[serde(default)]
    pub message: Option<String>,
    /// Silent seconds after which the session ends with `timeout`.
    #[serde(default)]
    pub lease_secs: Option<u32>,
}

/// Body of `progress`. An absent field stays as it is; any report renews the lease.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    /// `ready`, `placing`, `capturing` or `processing`.
    pub status: Option<String>,
    /// Percent done, 0 to 100, where the session does not count scans.
    pub progress: Option<f64>,
    /// A word for people.
    pub message: Option<String>,
    /// Which scan this is, from 1.
    pub attempt: Option<u32>,
    /// How many scans it takes.
    pub total_attempts: Option<u32>,
}

/// Body of `complete`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Complete {
    /// How good the template is, on the device's own scale.
    pub quality_score: Option<f64>,
    /// A word for people.
    pub message: Option<String>,
}

/// Body of `error`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// For programs: one of [`ERROR_CODES`] or the device's own.
    pub code: String,
    /// For people.
    #[serde(default, alias = "message")]
    pub error: Option<String>,
}

/// Body of `cancel`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cancel {
    /// A word for people, why.
    pub message: Option<String>,
}

impl Command {
    /// The device that a session would have to itself.
    pub(super) fn wants_holder(&self) -> Option<&str> {
        match self {
            Command::Start(start) => Some(start.device_id.as_str()),
            _ => None,
        }
    }

    fn action(&self) -> &'static str {
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

/// A session's whole state.
#[derive(Debug, Clone)]
pub struct Session {
    /// The device that takes the scans.
    pub device_id: SubjectId,
    /// Who is enrolled.
    pub student_id: Option<Arc<str>>,
    /// Where it stands.
    pub status: Status,
    /// Percent done.
    pub progress: u8,
    /// The newest word for people; of a failed session, what went wrong.
    pub message: Arc<str>,
    /// Which scan this is.
    pub attempt: Option<u32>,
    /// How many scans it takes.
    pub total_attempts: Option<u32>,
    /// How good the template is.
    pub quality_score: Option<f64>,
    /// Why it failed.
    pub error_code: Option<Arc<str>>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// When the device was last heard of.
    pub heard_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Silence in seconds before it ends.
    pub lease_secs: u32,
    /// The next time to look for silence; may be earlier than needed, never later.
    pub check_at: Option<DateTime<Utc>>,
}

/// The rules: what becomes of a session by a command, and what is told of it. Pure.
pub fn apply(
    id: &SubjectId,
    session: Option<&Session>,
    command: &Command,
    context: &Context<'_>,
) -> Result<Outcome<Session>, RuleError> {
    let (session, class) = match (command, session) {
        (Command::Start(start), None) => (started(start, context)?, Some(Class::Milestone)),
        (Command::Start(_), Some(_)) => {
            return Err(RuleError::AlreadyExists {
                noun: DESCRIPTION.noun,
                id: id.to_string(),
            });
        }
        (_, None) => return Err(not_found(KIND, id.as_str())),
        (Command::Check, Some(session)) => checked(session, context),
        (command, Some(session)) => changed(session, command, context)?,
    };
    let drafts = class.map(|class| draft(id, &session, class));
    Ok(Outcome::new(session, drafts.into_iter().collect()))
}

fn started(start: &Start, context: &Context<'_>) -> Result<Session, RuleError> {
    if let Some(holder) = context.holder {
        return Err(RuleError::Held {
            what: format!("device {}", start.device_id),
            holder: format!("session {holder}"),
        });
    }
    let lease_secs = start
        .lease_secs
        .unwrap_or(context.limits.enrollment_lease_secs);
    if !(1..=LEASE_MAX_SECS).contains(&lease_secs) {
        return Err(RuleError::Invalid {
            field: "lease_secs",
            expected: format!("is from 1 to {LEASE_MAX_SECS}"),
        });
    }
    let student_id = start.student_id.as_deref();
    let mut session = Session {
        device_id: start.device_id.clone(),
        student_id: student_id
            .map(|student| bounded("student_id", student, STUDENT_ID_MAX_BYTES))
            .transpose()?,
        status: Status::Ready,
        progress: 0,
        message: Status::Ready.default_message().into(),
        attempt: None,
        total_attempts: None,
        quality_score: None,
        error_code: None,
        created_at: context.now,
        heard_at: context.now,
        finished_at: None,
        lease_secs,
        check_at: None,
    };
    session.count(start.total_attempts.map(|_| 1), start.total_attempts)?;
    session.say(start.message.as_deref(), context)?;
    session.schedule_check(context.now);
    Ok(session)
}

/// The session afterwards, and the class of what happened.
fn changed(
    session: &Session,
    command: &Command,
    context: &Context<'_>,
) -> Result<(Session, Option<Class>), RuleError> {
    if session.status.is_terminal() {
        return Err(RuleError::Finished {
            status: session.status.as_str(),
        });
    }
    let mut next = session.clone();
    next.heard_at = context.now;
    let mut class = Class::Milestone;
    match command {
        Command::Start(_) | Command::Check => {
            return Err(RuleError::IllegalTransition {
                action: command.action(),
                status: session.status.as_str(),
            });
        }
        Command::Progress(report) => {
            next.advance(session, report, context)?;
            if (next.status, next.attempt) == (session.status, session.attempt) {
                class = Class::Tick;
            }
        }
        Command::Complete(complete) => {
            next.finish(Status::Complete, context.now);
            next.progress = Status::Complete.progress();
            next.quality_score = complete.quality_score;
            next.say(complete.message.as_deref(), context)?;
        }
        Command::Error(failure) => {
            next.finish(Status::Error, context.now);
            let code = code("code", &failure.code)?;
            let known = ERROR_CODES.iter().find(|(known, _)| **known == *code);
            if let Some((_, message)) = known {
                next.message = (*message).into();
            }
            next.error_code = Some(code);
            next.say(failure.error.as_deref(), context)?;
        }
        Command::Cancel(cancel) => {
            next.finish(Status::Cancelled, context.now);
            next.say(cancel.message.as_deref(), context)?;
        }
    }
    next.schedule_check(context.now);
    Ok((next, Some(class)))
}

/// What silence has done to a session.
fn checked(session: &Session, context: &Context<'_>) -> (Session, Option<Class>) {
    let mut next = session.clone();
    next.check_at = None;
    if session.status.is_terminal() {
        return (next, None);
    }
    // A device cannot be blamed for what it said while nobody was there to hear it.
    let heard_at = session.heard_at.max(context.since.min(context.now));
    if context.now - heard_at < TimeDelta::seconds(session.lease_secs.into()) {
        next.schedule_check(heard_at);
        return (next, None);
    }
    next.finish(Status::Error, context.now);
    next.error_code = Some("timeout".into());
    next.message = format!("No word from the device for {} seconds", session.lease_secs).into();
    (next, Some(Class::Milestone))
}

impl Session {
    /// The device, as long as the session has it to itself.
    pub(super) fn holds(&self) -> Option<&str> {
        (!self.status.is_terminal()).then(|| self.device_id.as_str())
    }

    fn advance(
        &mut self,
        before: &Session,
        report: &Report,
        context: &Context<'_>,
    ) -> Result<(), RuleError> {
        let status = match &report.status {
            Some(text) => text.parse()?,
            None => before.status,
        };
        if status.is_terminal() {
            return Err(RuleError::Invalid {
                field: "status",
                expected:
                    "is one of ready, placing, capturing, processing; an end has its own call"
                        .into(),
            });
        }
        self.count(report.attempt, report.total_attempts)?;
        if self.attempt < before.attempt {
            return Err(RuleError::Invalid {
                field: "attempt",
                expected: format!("is not below {}", before.attempt.unwrap_or(1)),
            });
        }
        if status < before.status && self.attempt == before.attempt {
            return Err(RuleError::IllegalTransition {
                action: "go back without a new attempt",
                status: before.status.as_str(),
            });
        }
        let told = match report.progress {
            Some(told) if (0.0..=100.0).contains(&told) => told as u8,
            Some(_) => {
                return Err(RuleError::Invalid {
                    field: "progress",
                    expected: "is a number from 0 to 100".into(),
                });
            }
            None => status.progress(),
        };
        let scans_done = self.attempt.map(|attempt| attempt.saturating_sub(1));
        let counted = scans_done.map(|done| done.min(2) as u8 * 33);
        let by_scans = counted.filter(|_| self.total_attempts.is_some());
        self.progress = before.progress.max(by_scans.unwrap_or(told));
        if status != before.status {
            self.message = status.default_message().into();
        }
        self.status = status;
        self.say(report.message.as_deref(), context)
    }

    /// Takes in which scan this is, of how many.
    fn count(&mut self, attempt: Option<u32>, total: Option<u32>) -> Result<(), RuleError> {
        self.attempt = attempt.or(self.attempt);
        self.total_attempts = total.or(self.total_attempts);
        let invalid = |field, most| RuleError::Invalid {
            field,
            expected: format!("is from 1 to {most}"),
        };
        let most = self.total_attempts.unwrap_or(ATTEMPTS_MAX);
        if !(1..=ATTEMPTS_MAX).contains(&most) {
            return Err(invalid("total_attempts", ATTEMPTS_MAX));
        }
        match self.attempt {
            Some(attempt) if !(1..=most).contains(&attempt) => Err(invalid("attempt", most)),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, status: Status, now: DateTime<Utc>) {
        self.status = status;
        self.message = status.default_message().into();
        self.finished_at = Some(now);
        self.check_at = None;
    }

    fn say(&mut self, message: Option<&str>, context: &Context<'_>) -> Result<(), RuleError> {
        if let Some(message) = message {
            self.message = bounded("message", message, context.limits.message_bytes)?;
        }
        Ok(())
    }

    fn schedule_check(&mut self, heard_at: DateTime<Utc>) {
        if !self.status.is_terminal() {
            let due = heard_at + TimeDelta::seconds(self.lease_secs.into());
            self.check_at = Some(self.check_at.map_or(due, |earlier| earlier.min(due)));
        }
    }
}

/// A session's own fields in a message.
#[derive(Serialize)]
struct Fields<'a> {
    session_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<u8>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quality_score: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    device_id: &'a SubjectId,
    student_id: Option<&'a str>,
    attempt: Option<u32>,
    total_attempts: Option<u32>,
}

/// What a session's state looks like as an event of `class`.
pub fn draft(id: &SubjectId, session: &Session, class: Class) -> Draft {
    let failed = session.status == Status::Error;
    let event_type = match session.status {
        Status::Complete => &ENROLLMENT_COMPLETE,
        Status::Error => &ENROLLMENT_ERROR,
        Status::Cancelled => &ENROLLMENT_CANCELLED,
        _ => &ENROLLMENT_PROGRESS,
    };
    let gave_up = failed || session.status == Status::Cancelled;
    let fields = Fields {
        session_id: id.as_str(),
        progress: (!gave_up).then_some(session.progress),
        status: session.status.as_str(),
        message: (!failed).then_some(&session.message),
        quality_score: (session.status == Status::Complete).then_some(session.quality_score),
        error: failed.then_some(&session.message),
        code: session.error_code.as_deref(),
        device_id: &session.device_id,
        student_id: session.student_id.as_deref(),
        attempt: session.attempt,
        total_attempts: session.total_attempts,
    };
    Draft {
        event_type,
        class,
        status: session.status.as_str(),
        category: None,
        fields: serde_json::to_string(&fields).expect("a session is JSON"),
    }
}
