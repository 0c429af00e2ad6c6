//! What can be asked of an enrollment session. The fields are the bodies of the HTTP calls and of a batch's lines.

use serde::Deserialize;

use super::Session;
use crate::id::SubjectId;
use crate::kind::{Body, CommandOf};

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
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    pub session_id: Option<SubjectId>,
    /// The device that takes the scans, if the session is to have one to itself.
    #[serde(default, deserialize_with = "crate::kind::optional_id_or_number")]
    pub device_id: Option<SubjectId>,
    /// Who is enrolled.
    #[serde(default, deserialize_with = "crate::kind::text_or_number")]
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
    /// Which scan this is, from 1. A status that lies before the present one counts the next scan by itself.
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
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Failure {
    /// For programs: one of [`ERROR_CODES`](super::ERROR_CODES) or the device's own; `error` if there is none.
    pub code: Option<String>,
    /// For people.
    #[serde(alias = "message")]
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

    /// The device that a session would have to itself.
    fn wants_holder(&self) -> Option<&str> {
        match self {
            Command::Start(start) => start.device_id.as_ref().map(SubjectId::as_str),
            _ => None,
        }
    }
}
