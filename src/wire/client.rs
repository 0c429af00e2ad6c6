//! The messages of WebSocket clients: `{"type" or "action": "ping" | "subscribe" | "unsubscribe" | "auth" | "publish", …}`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

pub use super::json::InexactNumber;
use super::json::{self, JsonError};
use crate::config::{PUBLISH_ID_MAX_BYTES, Secret};
use crate::id::{Channel, Cursor, Kind, NameError};
use crate::kind::{self, TextOrNumber, characteristic, job};

/// A client's message.
#[derive(Debug, Clone)]
pub enum ClientMessage {
    /// The four letters `ping`, bare or as a JSON string.
    BarePing,
    /// `{"type": "ping"}`, with or without a `timestamp` to return.
    Ping {
        /// Returned in the pong, unchanged.
        timestamp: Option<Value>,
    },
    /// Subscribe to channels.
    Subscribe {
        /// The channels.
        channels: Vec<Channel>,
        /// The cursor to resume from. If absent, the channels begin with a snapshot.
        cursor: Option<Cursor>,
        /// The fields of the request, which the acknowledgement repeats.
        asked: Map<String, Value>,
    },
    /// Unsubscribe from channels.
    Unsubscribe {
        /// The channels.
        channels: Vec<Channel>,
        /// The fields of the request, which the acknowledgement repeats.
        asked: Map<String, Value>,
    },
    /// Replace the connection's token.
    Auth {
        /// The token.
        token: Secret,
    },
    /// Carry out a command.
    Publish {
        /// Repeated in the answer: a string or a number.
        id: Option<Value>,
        /// The fields of the command, as in a line of a batch.
        command: Map<String, Value>,
    },
}

/// The messages as JSON, for documents. [`ClientMessage::parse`] reads them. `action` means the same as `type`.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "it is only a schema")]
pub(super) enum ClientJson {
    /// Asks for a `pong`.
    #[schemars(example = serde_json::json!({ "type": "ping", "timestamp": 1_772_418_060_000_i64 }))]
    Ping {
        /// Any JSON, which the `pong` repeats.
        #[schemars(default)]
        timestamp: Value,
    },
    /// Subscribes to channels. Answered with `subscribed`, a snapshot or replay, and `ready`.
    #[schemars(example = serde_json::json!({ "type": "subscribe", "channels": ["jobs/42", "devices"] }))]
    Subscribe {
        #[schemars(flatten)]
        targets: Targets,
        /// The cursor to resume from. If absent, the channels begin with a snapshot.
        cursor: Option<String>,
    },
    /// Unsubscribes from channels. Answered with `unsubscribed`.
    #[schemars(example = serde_json::json!({ "type": "unsubscribe", "channels": ["devices"] }))]
    Unsubscribe {
        #[schemars(flatten)]
        targets: Targets,
    },
    /// Replaces the connection's token before it expires. Answered with `authenticated`.
    #[schemars(example = serde_json::json!({ "type": "auth", "token": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJtYXJpYSJ9.c2lnbmF0dXJl" }))]
    Auth {
        /// The token.
        token: String,
    },
    /// Carries out a command, with the fields of a line of a batch. Answered with `published`.
    #[schemars(example = serde_json::json!({ "type": "publish", "id": 7, "op": "jobs.progress", "job_id": "42", "progress": 42, "message": "Copying the timetable" }))]
    Publish {
        /// Repeated in the answer.
        #[schemars(default)]
        id: Option<TextOrNumber>,
        /// The command: `<collection>.<verb>`.
        op: String,
        #[schemars(flatten)]
        fields: Map<String, Value>,
    },
}

/// The channels that a message names, by at least one of these. A list may be given as its only item.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is only a schema")]
pub(super) struct Targets {
    /// Channels, as at the end of their URLs: `jobs`, `jobs/42`.
    channels: Option<OneOrMany<String>>,
    /// The channel of this job.
    job_id: Option<TextOrNumber>,
    /// The channel of this characteristic.
    characteristic_id: Option<TextOrNumber>,
    /// The channels of these characteristics.
    characteristic_ids: Option<OneOrMany<TextOrNumber>>,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "it is only a schema")]
enum OneOrMany<T> {
    Many(Vec<T>),
    One(T),
}

/// A message that is not valid. The client receives the text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ClientMessageError {
    /// The message is not a JSON object. Existing clients expect exactly this text.
    #[error("Invalid JSON format")]
    Malformed,
    /// The message is JSON, but its type is unknown.
    #[error(
        "Unknown message type; `type` must be ping, subscribe, unsubscribe, auth or, on /ws, publish"
    )]
    UnknownType,
    /// A field is missing or has the wrong type.
    #[error("{0}")]
    InvalidField(&'static str),
    /// A number would be rounded.
    #[error(transparent)]
    InexactNumber(#[from] InexactNumber),
    /// A channel, id or cursor is not well-formed.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl ClientMessageError {
    /// Returns the code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            ClientMessageError::Malformed => "invalid_json",
            ClientMessageError::UnknownType => "unknown_type",
            ClientMessageError::InvalidField(_) | ClientMessageError::InexactNumber(_) => {
                "invalid_field"
            }
            ClientMessageError::Name(NameError::Cursor) => "invalid_cursor",
            ClientMessageError::Name(_) => "invalid_channel",
        }
    }
}

/// The fields that name channels. A field may hold a list or a single item.
const TARGETS: [(&str, Option<Kind>); 4] = [
    ("channels", None),
    ("job_id", Some(job::KIND)),
    ("characteristic_id", Some(characteristic::KIND)),
    ("characteristic_ids", Some(characteristic::KIND)),
];

const INVALID_PUBLISH_ID: ClientMessageError =
    ClientMessageError::InvalidField("`id` must be a number, or a string of at most 128 bytes");

impl ClientMessage {
    /// Returns the `id` of a message that cannot be read as a whole, because a number in it would be rounded.
    pub fn id_of(text: &str) -> Option<Value> {
        let Named { id } = json::read_part(without_mark(text))?;
        match &id {
            Some(Value::String(text)) if text.len() > PUBLISH_ID_MAX_BYTES => None,
            Some(Value::String(_) | Value::Number(_)) => id,
            _ => None,
        }
    }

    /// Parses a text message.
    pub fn parse(text: &str) -> Result<ClientMessage, ClientMessageError> {
        let text = without_mark(text);
        if matches!(text.trim(), "ping" | "\"ping\"") {
            return Ok(ClientMessage::BarePing);
        }
        let mut object = match json::read(text) {
            Ok(Value::Object(object)) => object,
            Err(JsonError::Inexact(error)) => return Err(error.into()),
            Ok(_) | Err(_) => return Err(ClientMessageError::Malformed),
        };
        let name = object
            .get("type")
            .or_else(|| object.get("action"))
            .and_then(Value::as_str);
        match name {
            Some("ping") => Ok(ClientMessage::Ping {
                timestamp: object.remove("timestamp"),
            }),
            Some("subscribe") => {
                let cursor = match object.get("cursor") {
                    None | Some(Value::Null) => None,
                    Some(Value::String(text)) if text.is_empty() => None,
                    Some(Value::String(text)) => Some(text.parse()?),
                    Some(_) => {
                        return Err(ClientMessageError::InvalidField(
                            "`cursor` must be a string",
                        ));
                    }
                };
                let (channels, asked) = targets(&object)?;
                Ok(ClientMessage::Subscribe {
                    channels,
                    cursor,
                    asked,
                })
            }
            Some("unsubscribe") => {
                let (channels, asked) = targets(&object)?;
                Ok(ClientMessage::Unsubscribe { channels, asked })
            }
            Some("auth") => match object.remove("token") {
                Some(Value::String(token)) => Ok(ClientMessage::Auth {
                    token: token.into(),
                }),
                _ => Err(ClientMessageError::InvalidField("`token` must be a string")),
            },
            Some("publish") => {
                let named_by = if object.contains_key("type") {
                    "type"
                } else {
                    "action"
                };
                object.shift_remove(named_by);
                let id = match object.shift_remove("id") {
                    None | Some(Value::Null) => None,
                    Some(Value::String(id)) if id.len() > PUBLISH_ID_MAX_BYTES => {
                        return Err(INVALID_PUBLISH_ID);
                    }
                    Some(id @ (Value::String(_) | Value::Number(_))) => Some(id),
                    Some(_) => return Err(INVALID_PUBLISH_ID),
                };
                Ok(ClientMessage::Publish {
                    id,
                    command: object,
                })
            }
            _ => Err(ClientMessageError::UnknownType),
        }
    }
}

/// The part of a message by which its answer is recognised.
#[derive(Deserialize)]
struct Named {
    id: Option<Value>,
}

/// Returns a text without a byte order mark, which is ignored.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn targets(
    object: &Map<String, Value>,
) -> Result<(Vec<Channel>, Map<String, Value>), ClientMessageError> {
    let mut channels = Vec::new();
    let mut asked = Map::new();
    for (field, kind) in TARGETS {
        let Some(value) = object.get(field) else {
            continue;
        };
        let items = match value {
            Value::Array(items) if field.ends_with('s') => items,
            one => std::slice::from_ref(one),
        };
        for item in items {
            let id = match item {
                Value::String(text) => text.clone(),
                Value::Number(number) if kind.is_some() && !number.is_f64() => number.to_string(),
                _ => {
                    return Err(ClientMessageError::InvalidField(
                        "`channels` must be strings, and ids strings or integers",
                    ));
                }
            };
            let channel = match kind {
                Some(kind) => Channel::Subject(kind, id.parse()?),
                None => kind::channel(&id)?,
            };
            if !channels.contains(&channel) {
                channels.push(channel);
            }
        }
        asked.insert(field.to_owned(), value.clone());
    }
    if asked.is_empty() {
        return Err(ClientMessageError::InvalidField(
            "the message names no channel: it must have `channels`, `job_id` or `characteristic_ids`",
        ));
    }
    Ok((channels, asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_and_action_singular_and_plural_mean_the_same() {
        for text in [
            r#"{"type":"subscribe","job_id":"42"}"#,
            r#"{"action":"subscribe","job_id":42}"#,
            r#"{"action":"subscribe","channels":["jobs/42","jobs/42"]}"#,
        ] {
            let Ok(ClientMessage::Subscribe { channels, .. }) = ClientMessage::parse(text) else {
                panic!("{text}");
            };
            assert_eq!(channels, [kind::channel("jobs/42").unwrap()], "{text}");
        }
    }

    #[test]
    fn debug_output_of_a_message_shows_no_token() {
        let message = ClientMessage::parse(r#"{"type":"auth","token":"hush"}"#);
        let Ok(ClientMessage::Auth { token }) = &message else {
            panic!("{message:?}");
        };
        assert_eq!(token.reveal(), "hush");
        assert!(!format!("{message:?}").contains("hush"));
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (text, code) in [
            ("", "invalid_json"),
            ("pong", "invalid_json"),
            ("[]", "invalid_json"),
            ("{", "invalid_json"),
            ("{}", "unknown_type"),
            (r#"{"type":"dance"}"#, "unknown_type"),
            (r#"{"type":7}"#, "unknown_type"),
            (r#"{"type":"auth"}"#, "invalid_field"),
            (
                r#"{"type":"ping","timestamp":18446744073709551616}"#,
                "invalid_field",
            ),
            (r#"{"type":"publish","id":[1]}"#, "invalid_field"),
            (r#"{"type":"subscribe"}"#, "invalid_field"),
            (r#"{"type":"subscribe","job_id":[1]}"#, "invalid_field"),
            (r#"{"type":"subscribe","job_id":1.5}"#, "invalid_field"),
            (r#"{"type":"subscribe","channels":null}"#, "invalid_field"),
            (r#"{"type":"subscribe","channels":[1]}"#, "invalid_field"),
            (
                r#"{"type":"subscribe","channels":["cats"]}"#,
                "invalid_channel",
            ),
            (
                r#"{"type":"subscribe","channels":["jobs"],"cursor":"x"}"#,
                "invalid_cursor",
            ),
        ] {
            let error = ClientMessage::parse(text).unwrap_err();
            assert_eq!(error.code(), code, "{text}");
        }
    }

    #[test]
    fn a_command_is_parsed_from_its_message() {
        for text in [
            r#"{"type":"publish","id":7,"op":"jobs.start","job_id":"a","action":"x"}"#,
            r#"{"op":"jobs.start","id":7,"job_id":"a","action":"x","type":"publish"}"#,
        ] {
            let Ok(ClientMessage::Publish { id, command }) = ClientMessage::parse(text) else {
                panic!("{text}");
            };
            assert_eq!(id, Some(7.into()), "{text}");
            let names: Vec<_> = command.keys().map(String::as_str).collect();
            assert_eq!(names, ["op", "job_id", "action"], "{text}");
        }
        let text = format!(r#"{{"action":"publish","id":"{}"}}"#, "x".repeat(129));
        assert!(ClientMessage::parse(&text).is_err());
    }

    #[test]
    fn a_lone_surrogate_in_a_message_is_the_replacement_character() {
        let text = r#"{"type":"subscribe","job_id":"a\ud800"}"#;
        let Ok(ClientMessage::Subscribe { channels, .. }) = ClientMessage::parse(text) else {
            panic!("{text}");
        };
        assert_eq!(channels, [kind::channel("jobs/a\u{fffd}").unwrap()]);
    }

    #[test]
    fn a_list_may_be_empty_or_its_only_item() {
        let channels = |text: &str| match ClientMessage::parse(text) {
            Ok(ClientMessage::Subscribe { channels, .. }) => channels,
            other => panic!("{text}: {other:?}"),
        };
        for text in [
            r#"{"type":"subscribe","characteristic_ids":7}"#,
            r#"{"type":"subscribe","characteristic_ids":"7"}"#,
            r#"{"type":"subscribe","channels":"characteristics/7"}"#,
        ] {
            let expected = kind::channel("characteristics/7").unwrap();
            assert_eq!(channels(text), [expected], "{text}");
        }
        assert_eq!(
            channels(r#"{"type":"subscribe","characteristic_ids":[]}"#),
            []
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = ClientMessage::parse(&text);
        }
    }
}
