//! The details of an event of any kind that matter to a person.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};

use super::job;
use crate::event::Draft;

/// The details of an event that matter to a person, for any kind.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct EventDetails {
    /// Percent complete, if it is known.
    pub progress: Option<f64>,
    /// The newest human-readable message.
    pub message: Option<String>,
    /// Why the subject failed.
    #[serde(default, deserialize_with = "error_message")]
    pub error: Option<String>,
    /// When the subject is expected to end.
    pub eta_at: Option<DateTime<Utc>>,
    /// Whether a running job has been silent for too long.
    #[serde(default)]
    pub stalled: bool,
}

impl EventDetails {
    /// Returns the details of an event. They come from the payload for a job, and from the fields of the message for
    /// any other kind.
    pub fn of(draft: &Draft) -> EventDetails {
        let Some(report) = draft.payload::<job::Report>() else {
            return serde_json::from_str(&draft.fields).unwrap_or_default();
        };
        EventDetails {
            progress: report.progress,
            message: Some(report.message.to_string()),
            error: report.error.as_ref().map(|error| error.message.to_string()),
            eta_at: report.eta_at,
            stalled: report.stalled,
        }
    }

    /// Returns only the progress.
    pub fn progress_of(draft: &Draft) -> Option<f64> {
        match draft.payload::<job::Report>() {
            Some(report) => report.progress,
            None => EventDetails::of(draft).progress,
        }
    }
}

/// Reads the error. That of an enrollment session is a text; other kinds may have an object with a `message`.
fn error_message<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Failure {
        Text(String),
        Coded { message: String },
    }
    let failure = Option::<Failure>::deserialize(deserializer)?;
    Ok(failure.map(|failure| match failure {
        Failure::Text(message) | Failure::Coded { message } => message,
    }))
}
