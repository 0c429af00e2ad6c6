//! What is delivered, and the contract of those who deliver it.
//!
//! A [`Medium`] makes one attempt and says how it ended. Whom an event concerns, when to try again and
//! what becomes of the undeliverable is the runner's; nothing here remembers anything.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use crate::config::{DELIVERY_CAUSE_MAX_CHARS, NOTIFICATION_TITLE_MAX_CHARS, RETRY_AFTER_MAX};

/// What is delivered.
#[derive(Debug, Clone)]
pub struct Notification {
    /// Unique for this event and notifier, the same at every attempt: to deduplicate by. ASCII without `.`,
    /// at most 128 bytes, `<epoch>-<school>-<seq>-<tag>-<notifier>`. The tag is made from the event's time and content:
    /// after a restore, another event may have the place of one that was delivered.
    pub id: String,
    /// Whose event it is.
    pub school_id: i64,
    /// The kind's collection: `jobs`, `enrollments`, `devices`, `characteristics`.
    pub kind: &'static str,
    /// The id of what changed, within its kind.
    pub subject: String,
    /// What people call it, as far as [`NOTIFICATION_TITLE_MAX_CHARS`] go. Any text: nothing is encoded yet.
    pub title: Option<String>,
    /// The message's `type`.
    pub event_type: &'static str,
    /// The subject's status after the event.
    pub status: &'static str,
    /// Of a violation: `warning` or `critical`.
    pub severity: Option<String>,
    /// When it happened.
    pub at: DateTime<Utc>,
    /// The event's message, a JSON object.
    pub json: Vec<u8>,
}

impl Notification {
    /// `<kind>.<event_type>`: the `type` that receivers of several kinds switch on.
    pub(crate) fn full_type(&self) -> String {
        format!("{}.{}", self.kind, self.event_type)
    }

    /// The event's message, as it is: to be put into another without being parsed and written again.
    pub(crate) fn event(&self) -> Result<&RawValue, DeliveryError> {
        serde_json::from_slice(&self.json).map_err(|_| not_json())
    }
}

/// Why an attempt failed, and whose fault that is. The text names the cause, for a log and for an operator: never a
/// secret, a token or the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeliveryError {
    /// The receiver takes nothing at present, whatever the event: everything of the school waits.
    #[error("{cause}")]
    Unavailable {
        /// What happened.
        cause: String,
        /// How long it asks to be left alone. Nothing of any school is tried before.
        retry_after: Option<Duration>,
    },
    /// The receiver works and refuses this event: the events of its subject wait, all others go on.
    #[error("{cause}")]
    Refused {
        /// What it answered.
        cause: String,
        /// How long to wait with this subject.
        retry_after: Option<Duration>,
    },
    /// It failed, and the receiver may be at fault as well as the event. How it takes other events will tell.
    #[error("{0}")]
    Failed(String),
    /// The event will never be taken: it is given up at once.
    #[error("{0}")]
    Permanent(String),
}

impl DeliveryError {
    /// The receiver takes nothing at present, and does not say for how long.
    pub fn unavailable(cause: impl Into<String>) -> DeliveryError {
        DeliveryError::Unavailable {
            cause: cause.into(),
            retry_after: None,
        }
    }

    /// The receiver refuses this event, and does not say when it would not.
    pub fn refused(cause: impl Into<String>) -> DeliveryError {
        DeliveryError::Refused {
            cause: cause.into(),
            retry_after: None,
        }
    }

    /// How long the receiver asks to wait, as far as that is heeded.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            DeliveryError::Unavailable { retry_after, .. }
            | DeliveryError::Refused { retry_after, .. } => {
                retry_after.map(|asked| asked.min(RETRY_AFTER_MAX))
            }
            DeliveryError::Failed(_) | DeliveryError::Permanent(_) => None,
        }
    }
}

/// A way to deliver.
///
/// An attempt ends by itself, within a time that its settings bound. It may have reached the receiver although
/// it failed (the answer was lost), and is then repeated with the same [`Notification::id`]: delivery is at
/// least once. One attempt at a time; a second one waits for the first.
#[async_trait]
pub trait Medium: Send + Sync {
    /// `webhook`, `email`, `mqtt`, or an application's own.
    fn name(&self) -> &'static str;

    /// Makes one attempt.
    async fn deliver(&self, notification: &Notification) -> Result<(), DeliveryError>;

    /// Called once, inside Tokio, before the first attempt.
    fn start(&self) {}

    /// Called once, after the last attempt: to say goodbye.
    async fn stop(&self) {}
}

pub(crate) fn not_json() -> DeliveryError {
    DeliveryError::Permanent("the event is not JSON".into())
}

/// The setting `timeout_secs`, checked.
pub(crate) fn attempt_timeout(secs: u64, most: u64) -> Result<Duration, String> {
    if (1..=most).contains(&secs) {
        Ok(Duration::from_secs(secs))
    } else {
        Err(format!("setting `timeout_secs` is not from 1 to {most}"))
    }
}

/// A title of bounded length; `…` stands for what is cut off.
pub(crate) fn bounded_title(title: &str) -> String {
    let title = title.trim();
    if title.chars().count() <= NOTIFICATION_TITLE_MAX_CHARS {
        return title.to_owned();
    }
    let kept = title.chars().take(NOTIFICATION_TITLE_MAX_CHARS - 1);
    kept.collect::<String>().trim_end().to_owned() + "…"
}

/// What a peer said, made fit for a log: one line of bounded length.
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
        let most = "é".repeat(NOTIFICATION_TITLE_MAX_CHARS);
        assert_eq!(bounded_title(&most), most);
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
