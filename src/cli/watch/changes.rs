//! Decides which messages are changes: a new status, or anything else that the server never conflates. Progress within one status
//! is not a change.

use std::num::NonZeroUsize;

use lru::LruCache;
use serde_json::Value;

use super::goal::status;
use super::scope::id;
use crate::id::Kind;
use crate::kind::DESCRIPTIONS;

/// The number of subjects whose states are remembered: the most recent ones. The next message about a forgotten one counts as a
/// change, unless it is part of a snapshot.
const SUBJECTS_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not 0");
/// Fields whose change is a milestone, whatever the kind.
const FIELDS: [&str; 9] = [
    "attempt",
    "stalled",
    "cancel_requested",
    "flapping",
    "cron",
    "time_zone",
    "period_secs",
    "grace_secs",
    "max_run_secs",
];

/// What is known of the subjects of a stream.
pub(super) struct Changes {
    states: LruCache<(Kind, String), String>,
    /// Whether a snapshot or replay is complete. Differences in a later snapshot are then changes.
    is_ready: bool,
    /// Whether any subject was forgotten. From then on, an unknown subject in a snapshot is not necessarily new.
    has_forgotten: bool,
}

impl Changes {
    pub(super) fn new() -> Changes {
        Changes {
            states: LruCache::new(SUBJECTS_MAX),
            is_ready: false,
            has_forgotten: false,
        }
    }

    /// Whether a snapshot or replay is complete.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Records a message. Returns whether it is a change since the last one about its subject.
    pub(super) fn is_change(&mut self, message: &Value) -> bool {
        self.is_ready |= message["type"] == "ready";
        let Some((kind, id)) = subject(message) else {
            return false;
        };
        let is_snapshot = message["snapshot"] == true;
        let Some(status) = status(message) else {
            // For example a violation, or a device's information. In a snapshot, it is a repetition.
            return !is_snapshot;
        };
        let state = FIELDS
            .iter()
            .fold(status, |state, field| format!("{state} {}", message[field]));
        let has_violations = message["payload"]["violations"]
            .as_array()
            .is_some_and(|violations| !violations.is_empty());
        let has_room = self.states.len() < self.states.cap().get();
        let before = self.states.put((kind, id), state.clone());
        self.has_forgotten |= before.is_none() && !has_room;
        match (before, is_snapshot) {
            (Some(before), true) => before != state && self.is_ready,
            (None, true) => self.is_ready && !self.has_forgotten,
            (before, false) => before.is_none_or(|before| before != state) || has_violations,
        }
    }
}

/// Returns the kind and the id of the subject of an event. `None` for other messages.
pub(super) fn subject(message: &Value) -> Option<(Kind, String)> {
    let name = message["type"].as_str()?;
    let has_type = |description: &&&crate::kind::Description| {
        description
            .event_types
            .iter()
            .any(|event_type| event_type.name == name)
    };
    let kind = DESCRIPTIONS.iter().find(has_type)?.kind;
    id(message, kind).map(|id| (kind, id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_snapshot_repeats_of_more_subjects_than_are_remembered_is_no_change() {
        let mut changes = Changes::new();
        let job = |number: usize, is_snapshot: bool| json!({"type": "job_progress", "job_id": number.to_string(), "status": "failed", "snapshot": is_snapshot});
        let count = SUBJECTS_MAX.get() + 10;
        let snapshot =
            |changes: &mut Changes| (0..count).any(|number| changes.is_change(&job(number, true)));
        assert!(!snapshot(&mut changes));
        changes.is_change(&json!({"type": "ready"}));
        assert!(!snapshot(&mut changes), "after a reset");
        assert!(changes.is_change(&job(count, false)));
    }

    #[test]
    fn progress_within_a_status_is_no_change_and_what_a_snapshot_repeats_is_none() {
        let mut changes = Changes::new();
        let job = |id: &str, rest: Value| {
            let mut message =
                json!({"type": "job_progress", "job_id": id, "attempt": 1, "stalled": false});
            message
                .as_object_mut()
                .unwrap()
                .extend(rest.as_object().unwrap().clone());
            message
        };
        let violation = |rest: Value| {
            let mut message = json!({"type": "violation", "payload": {"characteristic_id": "c", "violation_id": "c.1"}});
            message
                .as_object_mut()
                .unwrap()
                .extend(rest.as_object().unwrap().clone());
            message
        };
        let snapshot = |status: &str| json!({"status": status, "snapshot": true});
        for (message, expected) in [
            (json!({"type": "connected"}), false),
            (job("a", snapshot("queued")), false),
            (violation(json!({"snapshot": true})), false),
            (json!({"type": "ready"}), false),
            (
                job("a", json!({"status": "in_progress", "progress": 0})),
                true,
            ),
            (
                job("a", json!({"status": "in_progress", "progress": 9})),
                false,
            ),
            (
                job("a", json!({"status": "in_progress", "stalled": true})),
                true,
            ),
            (job("b", json!({"status": "pending"})), true),
            (violation(json!({})), true),
            (json!({"type": "reset"}), false),
            (job("a", snapshot("completed")), true),
            (job("b", snapshot("pending")), false),
            (job("c", snapshot("failed")), true),
            (violation(json!({"snapshot": true})), false),
        ] {
            assert_eq!(changes.is_change(&message), expected, "{message}");
        }
    }
}
