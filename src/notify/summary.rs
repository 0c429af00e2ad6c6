//! Summarises an event of any kind for a notification on a phone: one line of text, and its urgency.
//!
//! [`ntfy`](super::ntfy) and [`home_assistant`](super::home_assistant) each show a summary in their own way.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::notification::Notification;

/// How urgently a person should notice the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// The subject progresses as expected. No sound.
    Quiet,
    /// News.
    Normal,
    /// Someone should look at it now.
    Urgent,
}

/// The state of the subject, for the choice of an icon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// It failed, is offline, missed a run, or is out of control. A violation of severity `warning` or `info` is not [`Mark::Bad`].
    Bad,
    /// It is stalled or late.
    Warning,
    /// It is being worked on.
    Running,
    /// It succeeded, or is online, on time or in control.
    Good,
    /// Anything else.
    News,
}

/// The summary of an event.
pub(super) struct Summary {
    pub(super) urgency: Urgency,
    pub(super) mark: Mark,
    /// The status (or `stalled`), the percentage, and the error or message. A publisher's text never comes first, so the
    /// receiver cannot mistake it for one of its commands.
    pub(super) text: String,
    /// The percentage of a subject that is being worked on.
    pub(super) progress: Option<f64>,
    /// When it is expected to end.
    pub(super) eta_at: Option<DateTime<Utc>>,
    /// Whether the subject is a job or session that has not ended.
    pub(super) is_live: bool,
}

impl Summary {
    /// Summarises an event in a text of at most `max_bytes`.
    pub(super) fn of(notification: &Notification, max_bytes: usize) -> Summary {
        let details = &notification.details;
        let is_bad = matches!(
            notification.status,
            "failed" | "error" | "offline" | "missed" | "out_of_control"
        );
        let is_running = matches!(
            notification.status,
            "in_progress" | "ready" | "placing" | "capturing" | "processing"
        );
        let (urgency, mark) = match notification.status {
            _ if notification.severity.as_deref() == Some("warning") => {
                (Urgency::Normal, Mark::Warning)
            }
            _ if notification.severity.as_deref() == Some("info") => (Urgency::Normal, Mark::News),
            _ if is_bad => (Urgency::Urgent, Mark::Bad),
            _ if details.stalled || notification.status == "late" => {
                (Urgency::Urgent, Mark::Warning)
            }
            _ if is_running => (Urgency::Quiet, Mark::Running),
            "completed" | "complete" | "online" | "on_time" | "in_control" => {
                (Urgency::Normal, Mark::Good)
            }
            _ => (Urgency::Normal, Mark::News),
        };
        let mut text = match details.stalled {
            true => "stalled".to_owned(),
            false => notification.status.replace('_', " "),
        };
        let progress = details.progress.filter(|_| is_running);
        if let Some(progress) = progress {
            text.push_str(&format!(", {} %", progress.floor()));
        }
        let more = details.error.as_ref().or(details.message.as_ref());
        if let Some(more) = more.filter(|more| !more.is_empty()) {
            text.push_str(": ");
            text.push_str(more);
        }
        let mut end = text.len().min(max_bytes);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        Summary {
            urgency,
            mark,
            text,
            progress,
            eta_at: details.eta_at.filter(|_| is_running),
            is_live: is_running || matches!(notification.status, "pending" | "queued"),
        }
    }
}

/// Returns the title of the subject, or else its id.
pub(super) fn title(notification: &Notification) -> &str {
    notification
        .title
        .as_deref()
        .unwrap_or(&notification.subject)
}

/// Returns the tag that all notifications of a subject share, so that a phone replaces the last one: 32 hexadecimal
/// digits. It is a digest for two reasons: receivers accept fewer characters than ids can have, and not everyone who sees
/// the tag may see the id.
pub(super) fn subject_tag(notification: &Notification) -> String {
    let subject = format!(
        "{}\0{}\0{}",
        notification.school_id, notification.kind, notification.subject
    );
    let digest = Sha256::digest(subject.as_bytes());
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::EventDetails;

    #[test]
    fn only_a_critical_violation_is_urgent() {
        for (severity, urgency, mark) in [
            (None, Urgency::Urgent, Mark::Bad),
            (Some("critical"), Urgency::Urgent, Mark::Bad),
            (Some("warning"), Urgency::Normal, Mark::Warning),
            (Some("info"), Urgency::Normal, Mark::News),
        ] {
            let notification = Notification {
                id: "00c0ffee-7-ops".into(),
                school_id: 7,
                kind: "characteristics",
                subject: "temp-1".into(),
                title: None,
                event_type: "violation",
                status: "out_of_control",
                severity: severity.map(Into::into),
                at: DateTime::UNIX_EPOCH,
                details: EventDetails::default(),
                json: Vec::new(),
            };
            let summary = Summary::of(&notification, 1_000);
            assert_eq!((summary.urgency, summary.mark), (urgency, mark));
        }
    }
}
