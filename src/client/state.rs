//! The present state of a scope, from the messages of its watch. Does no I/O.

use std::collections::BTreeMap;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::Message;

/// The characters that `encodeURIComponent` of JavaScript escapes, so that all clients have the same keys.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

/// The latest event of each part of each subject, by keys such as `jobs/42` and `devices/7#info`.
///
/// ```no_run
/// # async fn example(client: tidings::client::Client) -> Result<(), tidings::client::ClientError> {
/// let mut state = tidings::client::State::default();
/// let mut messages = client.watch("jobs").start();
/// while let Some(message) = messages.next().await {
///     state.apply(&message?);
///     println!("{} jobs", state.iter().count());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct State {
    events: BTreeMap<String, Message>,
}

impl State {
    /// Processes a message of a watch. A `reset` discards everything, because a complete snapshot follows.
    pub fn apply(&mut self, message: &Message) {
        if message.message_type() == "reset" {
            self.events.clear();
        }
        let Some(key) = key_of(message) else {
            return;
        };
        match is_over(message) {
            true => self.events.remove(&key),
            false => self.events.insert(key, message.clone()),
        };
    }

    /// Returns the latest event of this key. The id in it is percent-encoded, as by `encodeURIComponent`.
    pub fn get(&self, key: &str) -> Option<&Message> {
        self.events.get(key)
    }

    /// Returns the keys and their latest events, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Message)> {
        let events = self.events.iter();
        events.map(|(key, event)| (key.as_str(), event))
    }
}

/// Returns the key of the part of a subject that an event describes.
fn key_of(message: &Message) -> Option<String> {
    let (collection, field, part) = match message.message_type() {
        "job_progress" => ("jobs", "job_id", ""),
        "enrollment_progress"
        | "enrollment_complete"
        | "enrollment_error"
        | "enrollment_cancelled" => ("enrollments", "session_id", ""),
        "device_status_update" => ("devices", "device_id", ""),
        "device_info_update" => ("devices", "device_id", "#info"),
        "sample" => ("characteristics", "characteristic_id", "#sample"),
        "control_limits" => ("characteristics", "characteristic_id", "#limits"),
        "violation" | "ack_update" => ("violations", "violation_id", ""),
        "schedule_update" => ("schedules", "schedule_id", ""),
        _ => return None,
    };
    // With `?id_type=number` the id is a number.
    let id = match content(message, field) {
        Value::String(id) => id.clone(),
        id => id.to_string(),
    };
    Some(format!(
        "{collection}/{}{part}",
        utf8_percent_encode(&id, ESCAPED)
    ))
}

/// Whether an event removes its subject from the present state.
fn is_over(message: &Message) -> bool {
    match message.message_type() {
        "schedule_update" => content(message, "status") == "removed",
        "ack_update" => content(message, "acknowledged") == true,
        _ => false,
    }
}

/// Returns a field of the payload, or of the message if it has no payload.
fn content<'a>(message: &'a Message, field: &str) -> &'a Value {
    match message.get("payload") {
        Value::Null => message.get(field),
        payload => &payload[field],
    }
}
