//! Control messages: what a connection receives in addition to events.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::event::timestamp;
use crate::id::{Cursor, SchoolId};

/// Why a cursor could not be honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetReason {
    /// Events after the cursor are no longer retained.
    Expired,
    /// The cursor belongs to another database, or to a state that this database has not reached.
    UnknownEpoch,
    /// There are more events after the cursor than a replay may contain.
    TooFarBehind,
    /// The log has another event or none at the cursor's place: the history that it belongs to was lost.
    HistoryChanged,
}

/// Why the server closes a stream. One table has the code, the reason, and whether to reconnect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Everything that was requested has been sent.
    Done,
    /// The server is shutting down. `retry_ms` spreads the reconnections of clients over time.
    ShuttingDown {
        /// How long this client should wait before it reconnects, in milliseconds.
        retry_ms: u32,
    },
    /// The credential has expired. The client can reconnect with a new one.
    TokenExpired,
    /// The client does not answer pings.
    Silent,
    /// The client violated the WebSocket protocol.
    ProtocolError,
    /// A client message was larger than allowed.
    MessageTooBig,
    /// The credential does not allow the stream.
    Rejected,
    /// Like `Rejected`, on `/ws` and `/ws/samples`, whose clients expect this code.
    RejectedUnauthorized,
    /// The store could not be read.
    InternalError,
    /// The client sent text that is not UTF-8.
    InvalidText,
    /// The request itself is not valid.
    InvalidRequest,
    /// The server cannot accept another stream now.
    TryAgainLater,
}

impl Close {
    /// Returns the WebSocket close code. Codes from 4000 are specific to this application.
    pub fn code(self) -> u16 {
        match self {
            Close::Done => 1000,
            Close::ShuttingDown { .. } => 1001,
            Close::ProtocolError => 1002,
            Close::Rejected => 1008,
            Close::InvalidText => 1007,
            Close::InvalidRequest => 1008,
            Close::TryAgainLater => 1013,
            Close::MessageTooBig => 1009,
            Close::InternalError => 1011,
            Close::RejectedUnauthorized => 4001,
            Close::TokenExpired => 4401,
            Close::Silent => 4408,
        }
    }

    /// Every reason. `ShuttingDown` stands for any `retry_ms`.
    pub const ALL: [Close; 12] = [
        Close::Done,
        Close::ShuttingDown { retry_ms: 0 },
        Close::ProtocolError,
        Close::InvalidText,
        Close::Rejected,
        Close::InvalidRequest,
        Close::MessageTooBig,
        Close::InternalError,
        Close::TryAgainLater,
        Close::RejectedUnauthorized,
        Close::TokenExpired,
        Close::Silent,
    ];

    /// Returns when a stream is closed for this reason.
    pub fn when(self) -> &'static str {
        match self {
            Close::Done => "everything has been sent, or the subject does not exist",
            Close::ShuttingDown { .. } => {
                "the server is shutting down; sent to every stream, also to one that opens during shutdown"
            }
            Close::ProtocolError => "the client violated the WebSocket protocol",
            Close::InvalidText => "the client sent text that is not UTF-8",
            Close::Rejected => {
                "the token does not allow the stream (`/progress/ws`, `/ws/enrollment`, `/ws/device-status`, `/ws/upload-progress`)"
            }
            Close::InvalidRequest => "the request is not valid; an `error` before it says why",
            Close::MessageTooBig => "a client message was larger than allowed",
            Close::InternalError => "the database could not be read",
            Close::TryAgainLater => "too many streams are open",
            Close::RejectedUnauthorized => {
                "the token does not allow the stream (`/ws`, `/ws/samples`)"
            }
            Close::TokenExpired => "the token or ticket has expired",
            Close::Silent => "the client did not answer pings for two heartbeat intervals",
        }
    }

    /// Returns the reason, for people and logs.
    pub fn reason(self) -> &'static str {
        match self {
            Close::Done => "done",
            Close::ShuttingDown { .. } => "the server is shutting down",
            Close::ProtocolError => "protocol error",
            Close::Rejected | Close::RejectedUnauthorized => "unauthorized",
            Close::MessageTooBig => "message too big",
            Close::InternalError => "internal error",
            Close::InvalidText => "text is not UTF-8",
            Close::InvalidRequest => "the request is not valid",
            Close::TryAgainLater => "try again later",
            Close::TokenExpired => "the token has expired",
            Close::Silent => "the client does not answer pings",
        }
    }

    /// Returns after how many milliseconds the client should reconnect. None if it should not.
    pub fn retry_ms(self) -> Option<u64> {
        match self {
            Close::ShuttingDown { retry_ms } => Some(retry_ms.into()),
            Close::TokenExpired => Some(0),
            Close::InternalError
            | Close::ProtocolError
            | Close::InvalidText
            | Close::Silent
            | Close::TryAgainLater => Some(5_000),
            Close::Done
            | Close::Rejected
            | Close::RejectedUnauthorized
            | Close::InvalidRequest
            | Close::MessageTooBig => None,
        }
    }
}

/// A message to one connection in addition to events.
#[derive(Debug, Clone)]
pub enum Control {
    /// The first message: the parameters of the stream.
    Connected {
        /// The school.
        school: SchoolId,
        /// The channels.
        channels: Vec<String>,
        /// A cursor to resume from without a gap if the stream breaks now.
        cursor: Cursor,
        /// The most seconds between two messages, including heartbeats.
        heartbeat_secs: u64,
        /// When the credential expires.
        expires_at: Option<DateTime<Utc>>,
        /// Additional fields of the endpoint.
        also: Map<String, Value>,
    },
    /// The snapshot or replay is complete.
    Ready(Cursor),
    /// The cursor could not be honoured. A snapshot follows.
    Reset(ResetReason),
    /// Shows that the connection is alive.
    Heartbeat {
        /// Everything up to this cursor was delivered or is out of scope. None if no channel is subscribed.
        cursor: Option<Cursor>,
        /// The current time.
        at: DateTime<Utc>,
    },
    /// The server is about to close the stream.
    Closing {
        /// The reason.
        close: Close,
        /// If the client should reconnect: whether it can do so with its current credential.
        can_return: bool,
    },
    /// A client message was not valid or not allowed. The connection stays open.
    Error {
        /// The code, for programs.
        code: &'static str,
        /// The explanation, for people.
        message: String,
        /// The channels at fault, if any.
        channels: Vec<String>,
        /// The `id` of the message at fault, if it has one.
        id: Option<Value>,
    },
    /// The answer to a ping.
    Pong {
        /// The `timestamp` of the ping.
        timestamp: Option<Value>,
    },
    /// A new token was accepted.
    Authenticated {
        /// When the token expires.
        expires_at: Option<DateTime<Utc>>,
    },
    /// A `subscribe` was carried out.
    Subscribed {
        /// The fields of the request.
        asked: Map<String, Value>,
        /// Where the new channels begin. None if no channel is subscribed.
        cursor: Option<Cursor>,
    },
    /// An `unsubscribe` was carried out.
    Unsubscribed {
        /// The fields of the request.
        asked: Map<String, Value>,
        /// Where the channels ended. None if none was subscribed.
        cursor: Option<Cursor>,
    },
}

/// The answer to a command, for documents. It is written where results of batches are.
#[derive(JsonSchema)]
#[schemars(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "it is only a schema")]
pub(super) enum PublishedJson {
    /// A command was carried out or rejected, as its `status` says.
    Published {
        /// The `id` of the `publish`, if it had one.
        #[schemars(skip_serializing_if = "Option::is_none")]
        id: Option<crate::kind::TextOrNumber>,
        /// The status that an HTTP request would have had.
        status: u16,
        /// The event, if there is one.
        #[schemars(skip_serializing_if = "Option::is_none")]
        event: Option<Map<String, Value>>,
        /// The answer to a heartbeat.
        #[schemars(skip_serializing_if = "Option::is_none")]
        device: Option<Map<String, Value>>,
        /// Why the command was rejected.
        #[schemars(skip_serializing_if = "Option::is_none")]
        problem: Option<Map<String, Value>>,
    },
}

#[derive(JsonSchema, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ControlJson<'a> {
    /// The first message: the parameters of the stream.
    Connected {
        /// A greeting, for people.
        message: &'static str,
        /// The school.
        school_id: SchoolId,
        /// The channels.
        channels: &'a [String],
        /// A cursor to resume from without a gap if the stream breaks now.
        cursor: String,
        /// The most seconds between two messages, including heartbeats.
        heartbeat_secs: u64,
        /// When the credential expires; null if it does not.
        #[schemars(with = "Option<DateTime<Utc>>")]
        expires_at: Option<String>,
        #[serde(flatten)]
        also: &'a Map<String, Value>,
    },
    /// The snapshot or replay is complete. What follows is live.
    Ready {
        /// The place up to which everything was sent.
        cursor: String,
    },
    /// The cursor could not be honoured. A snapshot follows.
    Reset {
        /// Why.
        reason: ResetReason,
    },
    /// Shows that the connection is alive.
    Heartbeat {
        /// Everything up to this cursor was delivered or is out of scope. Absent if no channel is subscribed.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
        /// The current time.
        #[schemars(with = "DateTime<Utc>")]
        timestamp: String,
    },
    /// The server is about to close the stream.
    Closing {
        /// The WebSocket close code.
        code: u16,
        /// The reason, for people.
        reason: &'static str,
        /// Whether the client should reconnect.
        reconnect: bool,
        /// After how many milliseconds it should.
        retry_ms: u64,
    },
    /// A client message was not valid or not allowed. The connection stays open.
    Error {
        /// The explanation, for people.
        error: &'a str,
        /// The same.
        message: &'a str,
        /// The code, for programs.
        code: &'static str,
        /// The channels at fault, if any.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        channels: &'a [String],
        /// The `id` of the `publish` that was rejected, if it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: &'a Option<Value>,
    },
    /// The answer to a ping.
    Pong {
        /// The `timestamp` of the ping, if it had one.
        #[serde(skip_serializing_if = "Option::is_none")]
        timestamp: &'a Option<Value>,
    },
    /// A new token was accepted.
    Authenticated {
        /// When the token expires; null if it does not.
        #[schemars(with = "Option<DateTime<Utc>>")]
        expires_at: Option<String>,
    },
    /// A `subscribe` was carried out. Repeats its `channels`, `job_id`, `characteristic_id` and `characteristic_ids`.
    Subscribed {
        #[serde(flatten)]
        asked: &'a Map<String, Value>,
        /// Where the new channels begin. Absent if no channel is subscribed.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    },
    /// An `unsubscribe` was carried out. Repeats its `channels`, `job_id`, `characteristic_id` and `characteristic_ids`.
    Unsubscribed {
        #[serde(flatten)]
        asked: &'a Map<String, Value>,
        /// Where the channels ended. Absent if none was subscribed.
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    },
}

impl Control {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Control::Connected { .. } => "connected",
            Control::Ready(_) => "ready",
            Control::Reset(_) => "reset",
            Control::Heartbeat { .. } => "heartbeat",
            Control::Closing { .. } => "closing",
            Control::Error { .. } => "error",
            Control::Pong { .. } => "pong",
            Control::Authenticated { .. } => "authenticated",
            Control::Subscribed { .. } => "subscribed",
            Control::Unsubscribed { .. } => "unsubscribed",
        }
    }

    /// Sets the cursor of messages that report the position of their reader at delivery.
    pub fn stamp(&mut self, at: Option<Cursor>) {
        if let Control::Heartbeat { cursor, .. } | Control::Subscribed { cursor, .. } = self {
            *cursor = at;
        }
    }

    /// Encodes the message as a JSON object.
    pub fn json(&self) -> Vec<u8> {
        let json = match self {
            Control::Connected {
                school,
                channels,
                cursor,
                heartbeat_secs,
                expires_at,
                also,
            } => ControlJson::Connected {
                message: "Connected",
                school_id: *school,
                channels,
                cursor: cursor.to_string(),
                heartbeat_secs: *heartbeat_secs,
                expires_at: expires_at.map(timestamp),
                also,
            },
            Control::Ready(cursor) => ControlJson::Ready {
                cursor: cursor.to_string(),
            },
            Control::Reset(reason) => ControlJson::Reset { reason: *reason },
            Control::Heartbeat { cursor, at } => ControlJson::Heartbeat {
                cursor: cursor.map(|cursor| cursor.to_string()),
                timestamp: timestamp(*at),
            },
            Control::Closing { close, can_return } => ControlJson::Closing {
                code: close.code(),
                reason: close.reason(),
                reconnect: *can_return && close.retry_ms().is_some(),
                retry_ms: close.retry_ms().unwrap_or(0),
            },
            Control::Error {
                code,
                message,
                channels,
                id,
            } => ControlJson::Error {
                error: message,
                message,
                code,
                channels,
                id,
            },
            Control::Pong { timestamp } => ControlJson::Pong { timestamp },
            Control::Authenticated { expires_at } => ControlJson::Authenticated {
                expires_at: expires_at.map(timestamp),
            },
            Control::Subscribed { asked, cursor } => ControlJson::Subscribed {
                asked,
                cursor: cursor.map(|cursor| cursor.to_string()),
            },
            Control::Unsubscribed { asked, cursor } => ControlJson::Unsubscribed {
                asked,
                cursor: cursor.map(|cursor| cursor.to_string()),
            },
        };
        serde_json::to_vec(&json).expect("a control message is JSON")
    }
}
