//! An enrollment session: a person gives a finger to a device, scan by scan.
//!
//! ```text
//! ready ──▶ placing ──▶ capturing ──▶ processing ──▶ complete
//!   └──────────┴─────────────┴────────────┴────────▶ error, cancelled
//! ```
//!
//! Steps may be skipped forwards; a step back begins the next scan, a higher `attempt`. Progress is 0, 33 or 66 by status, or,
//! when the session has `total_attempts`, 33 for each scan that is done; it never falls. A device has one
//! session at a time. A session whose device says nothing for its lease ends with `timeout`; like a job's,
//! that silence is measured in [uptime](crate::uptime) and judged lazily ([`Session::check_uptime`]).

mod command;
mod rules;

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::command::{Cancel, Command, Complete, Failure, Report, Start};
pub use self::rules::apply;
use super::{Cell, Description, RuleError, Subject};
use crate::event::{Class, Draft, EventType, timestamp};
use crate::id::{Kind, SubjectId};
use crate::uptime::Uptime;

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("enrollments");
/// A session has no parts.
pub type Part = super::NoPart;
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
    title: "Enrollments",
    id_field: "session_id",
    other_ids: &[],
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
    made_by: "create",
    verbs: &["progress", "complete", "error", "cancel"],
    columns: &[
        "Student", "Device", "Status", "Progress", "Scan", "Message", "Begun",
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

/// A session's whole state.
#[derive(Debug, Clone)]
pub struct Session {
    /// The device that takes the scans, if the session has one to itself.
    pub device_id: Option<SubjectId>,
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
    /// The same, as silence is measured.
    pub heard_uptime: Uptime,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Silence in seconds before it ends.
    pub lease_secs: u32,
    /// When to look for silence next; may be earlier than needed, never later.
    pub check_uptime: Option<Uptime>,
}

impl Subject for Session {
    fn describe(&self, id: &SubjectId, _: DateTime<Utc>) -> Draft {
        draft(id, self, Class::Milestone)
    }

    fn text_bytes(&self) -> usize {
        self.student_id.as_deref().map_or(0, str::len) + self.message.len()
    }

    /// Whom it is for: the session has no name of its own.
    fn title(&self) -> Option<String> {
        let student = self.student_id.as_deref();
        student.map(|student| format!("student {student}"))
    }

    fn cells(&self) -> Vec<Vec<Cell>> {
        let scan = self.total_attempts.map(|total| {
            let scan = self.attempt.unwrap_or_default();
            Cell::Words(format!("{scan} of {total}"))
        });
        let device = self.device_id.as_ref();
        let code = self.error_code.as_deref();
        let quality = self.quality_score;
        let student = self.student_id.as_deref().unwrap_or("unknown");
        vec![
            vec![Cell::Name(student.into())],
            device
                .map(|id| Cell::Name(id.to_string()))
                .into_iter()
                .collect(),
            std::iter::once(Cell::Status(self.status.as_str()))
                .chain(code.map(|code| Cell::Name(code.into())))
                .collect(),
            vec![Cell::Percent(self.progress)],
            scan.into_iter().collect(),
            std::iter::once(Cell::Text(self.message.as_ref().into()))
                .chain(quality.map(|score| Cell::Measure("quality", score)))
                .collect(),
            vec![Cell::Time(Some(self.created_at))],
        ]
    }

    fn details(&self, _: &SubjectId) -> Value {
        json!({
            "created_at": timestamp(self.created_at),
            "heard_at": timestamp(self.heard_at),
            "finished_at": self.finished_at.map(timestamp),
            "lease_secs": self.lease_secs,
        })
    }

    fn is_over(&self) -> bool {
        self.status.is_terminal()
    }

    /// The device, as long as the session has it to itself.
    fn holds(&self) -> Option<&str> {
        let device = self
            .device_id
            .as_ref()
            .filter(|_| !self.status.is_terminal());
        device.map(SubjectId::as_str)
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
    device_id: Option<&'a SubjectId>,
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
        device_id: session.device_id.as_ref(),
        student_id: session.student_id.as_deref(),
        attempt: session.attempt,
        total_attempts: session.total_attempts,
    };
    Draft {
        event_type,
        class,
        status: session.status.as_str(),
        category: None,
        fields: serde_json::to_string(&fields)
            .expect("a session is JSON")
            .into(),
    }
}
