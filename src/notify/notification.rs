//! What is delivered, and the interface of media.
//!
//! A [`Medium`] makes one attempt and reports its result. The runner decides which events are delivered, when to retry,
//! and what happens to undeliverable events. Nothing here keeps state.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use crate::config::{DELIVERY_CAUSE_MAX_CHARS, NOTIFICATION_TITLE_MAX_CHARS, RETRY_AFTER_MAX};
use crate::kind::EventDetails;

/// An event to be delivered.
#[derive(Debug, Clone)]
pub struct Notification {
    /// Unique for this event and notifier, and the same at every attempt, so that receivers can detect duplicates.
    /// ASCII without `.`, at most 128 bytes: `<epoch>-<school>-<seq>-<tag>-<notifier>`. The tag is derived from the
    /// event's time and content, because after a restore, another event may have the place of one that was delivered.
    pub id: String,
    /// The event's school.
    pub school_id: i64,
    /// The kind's collection: `jobs`, `enrollments`, `devices`, `characteristics`, `schedules`.
    pub kind: &'static str,
    /// The id of the subject, within its kind.
    pub subject: String,
    /// The subject's title, up to [`NOTIFICATION_TITLE_MAX_CHARS`]. Any text: nothing is encoded yet.
    pub title: Option<String>,
    /// The message's `type`.
    pub event_type: &'static str,
    /// The subject's status after the event.
    pub status: &'static str,
    /// The severity of a violation: `info`, `warning` or `critical`.
    pub severity: Option<String>,
    /// When the event happened.
    pub at: DateTime<Utc>,
    /// What the event says to a person.
    pub details: EventDetails,
    /// The event's message, a JSON object.
    pub json: Vec<u8>,
}

impl Notification {
    /// Returns `<kind>.<event_type>`, the `type` for receivers of several kinds.
    pub(crate) fn full_type(&self) -> String {
        format!("{}.{}", self.kind, self.event_type)
    }

    /// Returns the event's message verbatim, to be embedded without parsing and re-encoding it.
    pub(crate) fn event(&self) -> Result<&RawValue, DeliveryError> {
        serde_json::from_slice(&self.json).map_err(|_| not_json())
    }
}

/// Why an attempt failed, and what caused it. The text is for logs and operators: it never contains a secret, a token
/// or the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The receiver accepts nothing at present, regardless of the event. The whole school waits.
    #[error("{cause}")]
    Unavailable {
        /// The cause.
        cause: String,
        /// How long the receiver asks to wait. Until then, nothing is sent for any school.
        retry_after: Option<Duration>,
    },
    /// The receiver works and rejects this event. The events of its subject wait, and all others continue.
    #[error("{cause}")]
    Rejected {
        /// The receiver's answer.
        cause: String,
        /// How long the receiver asks to wait before the next attempt for this subject.
        retry_after: Option<Duration>,
    },
    /// The attempt failed, and either the receiver or the event may be the cause. Deliveries of other events will show
    /// which.
    #[error("{0}")]
    Failed(String),
    /// The event will never be accepted. It becomes a dead letter at once.
    #[error("{0}")]
    Permanent(String),
}

impl DeliveryError {
    /// Returns an error of a receiver that accepts nothing at present and does not say for how long.
    pub fn unavailable(cause: impl Into<String>) -> DeliveryError {
        DeliveryError::Unavailable {
            cause: cause.into(),
            retry_after: None,
        }
    }

    /// Returns an error of a receiver that rejects this event and does not say for how long.
    pub fn rejected(cause: impl Into<String>) -> DeliveryError {
        DeliveryError::Rejected {
            cause: cause.into(),
            retry_after: None,
        }
    }

    /// Returns how long the receiver asks to wait, up to the limit.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            DeliveryError::Unavailable { retry_after, .. }
            | DeliveryError::Rejected { retry_after, .. } => {
                retry_after.map(|asked| asked.min(RETRY_AFTER_MAX))
            }
            DeliveryError::Failed(_) | DeliveryError::Permanent(_) => None,
        }
    }
}

/// A way to deliver notifications.
///
/// An attempt ends by itself, within a time that its settings bound. It may have reached the receiver even if it
/// failed, because the answer may have been lost. It is then repeated with the same [`Notification::id`]: delivery is
/// at least once. Only one attempt runs at a time. A second one waits for the first.
#[async_trait]
pub trait Medium: Send + Sync {
    /// Returns the name of the medium: `webhook`, `email`, `mqtt`, `ntfy` or `home_assistant`.
    fn name(&self) -> &'static str;

    /// Makes one attempt.
    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError>;

    /// Called inside Tokio before the first attempt, and again if this node delivers again after
    /// [`stop`](Medium::stop).
    fn start(&self) {}

    /// Called after the last attempt, to disconnect: the server shuts down, or another node takes over.
    async fn stop(&self) {}
}

pub(crate) fn not_json() -> DeliveryError {
    DeliveryError::Permanent("the event is not JSON".into())
}

/// Returns a title of bounded length. `…` replaces the rest.
pub(crate) fn bounded_title(title: &str) -> String {
    let title = title.trim();
    if title.chars().count() <= NOTIFICATION_TITLE_MAX_CHARS {
        return title.to_owned();
    }
    let kept = title.chars().take(NOTIFICATION_TITLE_MAX_CHARS - 1);
    kept.collect::<String>().trim_end().to_owned() + "…"
}

/// Returns a peer's text in a form that is safe to log: one line of bounded length.
pub(crate) fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(DELIVERY_CAUSE_MAX_CHARS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_title_is_cut_between_characters() {
        assert_eq!(bounded_title(" Class list "), "Class list");
        let longest = "é".repeat(NOTIFICATION_TITLE_MAX_CHARS);
        assert_eq!(bounded_title(&longest), longest);
        let cut = bounded_title(&"é".repeat(600));
        assert_eq!(cut.chars().count(), NOTIFICATION_TITLE_MAX_CHARS);
        assert!(cut.ends_with("é…"), "{cut}");
    }

    #[test]
    fn what_a_peer_said_is_one_short_line() {
        assert_eq!(one_line("550 no\r\n250 yes"), "550 no  250 yes");
        assert_eq!(one_line(&"é".repeat(999)).chars().count(), 200);
    }
}
