//! Messages, as the server sends them.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ClientError;

/// The largest message that is read. By default, events have at most about 840 KiB; a server can be configured for more.
pub(super) const MESSAGE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// A message of a stream: an event, `ready` or `reset`. Its fields are those of the JSON object.
#[derive(Debug, Clone, PartialEq)]
pub struct Message(Map<String, Value>);

impl Message {
    /// Parses a message: a JSON object with a `type`, and with a `cursor` if it has a `seq`.
    pub(super) fn parse(text: &str) -> Result<Message, ClientError> {
        let unreadable = |problem: String| ClientError::Unreadable(problem);
        let parsed = serde_json::from_str(text);
        Message::from_value(parsed.map_err(|error| unreadable(error.to_string()))?)
    }

    pub(super) fn from_value(value: Value) -> Result<Message, ClientError> {
        let unreadable = |problem: &str| ClientError::Unreadable(problem.to_owned());
        let Value::Object(fields) = value else {
            return Err(unreadable("a message is not a JSON object"));
        };
        let message = Message(fields);
        if !message.0.get("type").is_some_and(Value::is_string) {
            return Err(unreadable("a message has no `type`"));
        }
        if message.0.contains_key("seq") && (message.seq().is_none() || message.cursor().is_none())
        {
            return Err(unreadable("an event has no number or no cursor"));
        }
        Ok(message)
    }

    /// Returns the `type`, such as `job_progress`, `ready` or `reset`.
    pub fn message_type(&self) -> &str {
        self.get("type").as_str().unwrap_or_default()
    }

    /// Returns the event's number in the log of its school. Only events have one.
    pub fn seq(&self) -> Option<u64> {
        self.get("seq").as_u64()
    }

    /// Returns the cursor from which to continue after this message.
    pub fn cursor(&self) -> Option<&str> {
        self.get("cursor").as_str()
    }

    /// Whether this event is part of a snapshot of the current state, and not a change.
    pub fn is_snapshot(&self) -> bool {
        self.get("snapshot") == true
    }

    /// Returns a field. It is null if the message does not have it.
    pub fn get(&self, field: &str) -> &Value {
        self.0.get(field).unwrap_or(&Value::Null)
    }

    /// Returns all fields.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Converts the message to the application's own type.
    pub fn parse_as<T: DeserializeOwned>(self) -> Result<T, serde_json::Error> {
        serde_json::from_value(Value::Object(self.0))
    }
}

/// Returns the JSON object.
impl From<Message> for Value {
    fn from(message: Message) -> Value {
        Value::Object(message.0)
    }
}
