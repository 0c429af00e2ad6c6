//! An enrollment session: a person presents a finger to a device, scan by scan.
//!
//! ```text
//! ready ──▶ placing ──▶ capturing ──▶ processing ──▶ complete
//!   └──────────┴─────────────┴────────────┴────────▶ error, cancelled
//! ```
//!
//! Steps can be skipped forwards; a step back starts the next scan, with a higher `attempt`. Progress is 0, 33 or 66 by
//! status. If the session has `total_attempts`, progress instead counts 33 for each completed scan. Progress never falls.
//! A device has one session at a time. A session whose device is silent for a whole lease ends with `timeout`. As with
//! jobs, the silence is measured in [uptime](crate::uptime) and checked lazily ([`Session::check_uptime`]).

mod command;
mod message;
mod rules;

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

pub use self::command::{Cancel, Command, Complete, Failure, Report, Start};
pub use self::message::draft;
use self::message::{Cancelled, Completed, Failed, Progressed};
pub use self::rules::apply;
use super::{Cell, Description, RuleError, Subject, Texts};
use crate::event::{Class, Draft, EventType};
use crate::id::{Kind, SubjectId};
use crate::uptime::Uptime;

/// The kind's name in URLs and channels.
pub const KIND: Kind = Kind::new("enrollments");
/// Sessions have no parts.
pub type Part = super::NoPart;
/// A step of a session.
pub static ENROLLMENT_PROGRESS: EventType = EventType::new::<Progressed<'_>>("enrollment_progress");
/// The end of a session that succeeded.
pub static ENROLLMENT_COMPLETE: EventType = EventType::new::<Completed<'_>>("enrollment_complete");
/// The end of a session that failed.
pub static ENROLLMENT_ERROR: EventType = EventType::new::<Failed<'_>>("enrollment_error");
/// The end of a session that was cancelled.
pub static ENROLLMENT_CANCELLED: EventType =
    EventType::new::<Cancelled<'_>>("enrollment_cancelled");
/// The description of this kind.
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
    details: Details::json_schema,
    columns: &[
        "Student", "Device", "Status", "Progress", "Scan", "Message", "Begun",
    ],
};
/// The longest `student_id`, in bytes.
pub const STUDENT_ID_MAX_BYTES: usize = 128;
/// The longest lease, in seconds.
pub const LEASE_MAX_SECS: u32 = 86_400;
/// The maximum number of scans in a session.
pub const ATTEMPTS_MAX: u32 = 100;

/// Why a session failed, with the message that users get unless the device sends its own.
pub const ERROR_CODES: [(&str, &str); 5] = [
    ("duplicate_finger", "This finger is enrolled already"),
    ("timeout", "The device did not answer in time"),
    ("device_offline", "The device is offline"),
    ("student_not_on_device", "The student is not on the device"),
    ("verification_failed", "The verification failed"),
];

/// A session's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The device is waiting for the person.
    Ready,
    /// The person must place the finger.
    Placing,
    /// The finger is being scanned.
    Capturing,
    /// A scan is being processed.
    Processing,
    /// The finger is enrolled.
    Complete,
    /// The session failed, with a `code`.
    Error,
    /// The session was cancelled on request.
    Cancelled,
}

impl Status {
    /// Every status, in the order of a session's lifecycle.
    pub const ALL: [Status; 7] = [
        Status::Ready,
        Status::Placing,
        Status::Capturing,
        Status::Processing,
        Status::Complete,
        Status::Error,
        Status::Cancelled,
    ];

    /// Returns the name in messages and in the database.
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

    /// Returns whether the session is over.
    pub fn is_terminal(self) -> bool {
        matches!(self, Status::Complete | Status::Error | Status::Cancelled)
    }

    /// Returns the default progress in percent.
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

super::unnamed_schema!(Status, super::one_of(Status::ALL.map(Status::as_str)));

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

impl FromStr for Status {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Status, RuleError> {
        let found = Status::ALL
            .into_iter()
            .find(|status| status.as_str() == text);
        found.ok_or_else(|| RuleError::Invalid {
            field: "status",
            expected: "must be one of ready, placing, capturing, processing".into(),
        })
    }
}

/// The complete state of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The device that takes the scans, if the session uses one exclusively.
    pub device_id: Option<SubjectId>,
    /// The student who is enrolled.
    pub student_id: Option<Arc<str>>,
    /// The status.
    pub status: Status,
    /// Percent complete.
    pub progress: u8,
    /// The newest human-readable message; for a failed session, the error.
    pub message: Arc<str>,
    /// The number of the current scan.
    pub attempt: Option<u32>,
    /// The number of scans required.
    pub total_attempts: Option<u32>,
    /// The quality of the template.
    pub quality_score: Option<f64>,
    /// The code of the error, if the session failed.
    pub error_code: Option<Arc<str>>,
    /// When the session started.
    pub created_at: DateTime<Utc>,
    /// When the device was last heard from.
    pub heard_at: DateTime<Utc>,
    /// The same in uptime, by which silence is measured.
    pub heard_uptime: Uptime,
    /// When the session ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// The seconds of silence after which it ends.
    pub lease_secs: u32,
    /// When to check for silence next; can be earlier than necessary, never later.
    pub check_uptime: Option<Uptime>,
}

impl Subject for Session {
    fn describe(&self, id: &SubjectId, _: DateTime<Utc>) -> Draft {
        draft(id, self, Class::Milestone)
    }

    fn text_bytes(&self) -> usize {
        self.student_id.as_deref().map_or(0, str::len) + self.message.len()
    }

    /// Returns the student whom the session enrolls, because a session has no name.
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
        let details = Details {
            created_at: self.created_at,
            heard_at: self.heard_at,
            finished_at: self.finished_at,
            lease_secs: self.lease_secs,
        };
        serde_json::to_value(details).expect("details are JSON")
    }

    fn is_over(&self) -> bool {
        self.status.is_terminal()
    }

    fn status(&self) -> &'static str {
        self.status.as_str()
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
        let texts = [&self.student_id, &self.error_code];
        let texts = texts.into_iter().flatten().map(|text| &**text);
        let device = self.device_id.as_ref().map(SubjectId::as_str);
        Texts {
            own: texts.chain(device).chain([&*self.message]).collect(),
            values: None,
        }
    }

    /// Returns the device while the session uses it exclusively.
    fn holds(&self) -> Option<&str> {
        let device = self
            .device_id
            .as_ref()
            .filter(|_| !self.status.is_terminal());
        device.map(SubjectId::as_str)
    }
}

/// A session's data that is not in its events.
#[derive(JsonSchema, Serialize)]
struct Details {
    /// When it started.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    created_at: DateTime<Utc>,
    /// When the device was last heard from.
    #[serde(serialize_with = "crate::kind::as_timestamp")]
    heard_at: DateTime<Utc>,
    /// When it ended.
    #[serde(serialize_with = "crate::kind::as_optional_timestamp")]
    finished_at: Option<DateTime<Utc>>,
    /// The seconds of silence after which it ends.
    lease_secs: u32,
}
