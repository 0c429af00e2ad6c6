//! What is sent to one connection in addition to events.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::event::timestamp;
use crate::id::{Cursor, SchoolId};

/// Why a cursor could not be honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetReason {
    /// Events after it are no longer retained.
    Expired,
    /// It belongs to another database, or to a later state than this one has.
    UnknownEpoch,
    /// More events lie between than a replay may carry.
    TooFarBehind,
    /// The log has another event at its place, or none: the history that it comes from was lost.
    HistoryChanged,
}

/// Why the server ends a stream. One table: code, reason, and whether to come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Everything asked for was said.
    Done,
    /// The server stops; come back after `retry_ms`, which is spread over the clients.
    ShuttingDown {
        /// This client's own delay in milliseconds.
        retry_ms: u64,
    },
    /// The credential is over; come back with a fresh one.
    TokenExpired,
    /// The client answers no ping.
    Silent,
    /// The client broke the WebSocket protocol.
    ProtocolError,
    /// A client message was larger than allowed.
    MessageTooBig,
    /// The credential does not allow it.
    Refused,
    /// The same on `/ws` and `/ws/samples`, whose clients expect this code.
    RefusedUnauthorized,
    /// The store could not be read.
    InternalError,
    /// A text that is not UTF-8.
    InvalidText,
    /// The request itself is not valid.
    InvalidRequest,
    /// The server cannot take another stream now.
    TryAgainLater,
}

impl Close {
    /// The WebSocket close code; 4000 and above are the application's own.
    pub fn code(self) -> u16 {
        match self {
            Close::Done => 1000,
            Close::ShuttingDown { .. } => 1001,
            Close::ProtocolError => 1002,
            Close::Refused => 1008,
            Close::InvalidText => 1007,
            Close::InvalidRequest => 1008,
            Close::TryAgainLater => 1013,
            Close::MessageTooBig => 1009,
            Close::InternalError => 1011,
            Close::RefusedUnauthorized => 4001,
            Close::TokenExpired => 4401,
            Close::Silent => 4408,
        }
    }

    /// For people and logs.
    pub fn reason(self) -> &'static str {
        match self {
            Close::Done => "done",
            Close::ShuttingDown { .. } => "the server is shutting down",
            Close::ProtocolError => "protocol error",
            Close::Refused | Close::RefusedUnauthorized => "unauthorized",
            Close::MessageTooBig => "message too big",
            Close::InternalError => "internal error",
            Close::InvalidText => "a text that is not UTF-8",
            Close::InvalidRequest => "the request is not valid",
            Close::TryAgainLater => "try again later",
            Close::TokenExpired => "the token has expired",
            Close::Silent => "no sign of life",
        }
    }

    /// Whether, and after how many milliseconds, the client does well to come back.
    pub fn retry_ms(self) -> Option<u64> {
        match self {
            Close::ShuttingDown { retry_ms } => Some(retry_ms),
            Close::TokenExpired => Some(0),
            Close::InternalError
            | Close::ProtocolError
            | Close::InvalidText
            | Close::Silent
            | Close::TryAgainLater => Some(5_000),
            Close::Done
            | Close::Refused
            | Close::RefusedUnauthorized
            | Close::InvalidRequest
            | Close::MessageTooBig => None,
        }
    }
}

/// Everything that is sent to one connection in addition to events.
#[derive(Debug, Clone)]
pub enum Control {
    /// First: what was understood.
    Connected {
        /// Whose events these are.
        school: SchoolId,
        /// What is listened to.
        channels: Vec<String>,
        /// A cursor that loses nothing if the stream breaks right here.
        cursor: Cursor,
        /// At most this many seconds pass between signs of life.
        heartbeat_secs: u64,
        /// When the credential ends.
        expires_at: Option<DateTime<Utc>>,
        /// What an endpoint says beside.
        also: Map<String, Value>,
    },
    /// Snapshot or replay is complete.
    Ready(Cursor),
    /// The cursor could not be honoured; a snapshot follows.
    Reset(ResetReason),
    /// A sign of life.
    Heartbeat {
        /// Everything up to here was delivered or is out of scope. Nothing where no channel is listened to.
        cursor: Option<Cursor>,
        /// Now.
        at: DateTime<Utc>,
    },
    /// The server is about to close.
    Closing {
        /// Why.
        close: Close,
        /// Whether the client can come back with the credential that it has, if it does well to come back.
        can_return: bool,
    },
    /// A client message was not understood or not allowed. The connection goes on.
    Error {
        /// For programs.
        code: &'static str,
        /// For people.
        message: String,
        /// The channels that it is about, if it is about channels.
        channels: Vec<String>,
    },
    /// Reply to a ping.
    Pong {
        /// What the ping carried.
        timestamp: Option<Value>,
    },
    /// A fresh token was accepted.
    Authenticated {
        /// When it ends.
        expires_at: Option<DateTime<Utc>>,
    },
    /// A `subscribe` was carried out.
    Subscribed {
        /// What was asked, as it was asked.
        asked: Map<String, Value>,
        /// Where the new channels begin. Nothing where no channel is listened to.
        cursor: Option<Cursor>,
    },
    /// An `unsubscribe` was carried out.
    Unsubscribed {
        /// What was asked, as it was asked.
        asked: Map<String, Value>,
        /// Where the channels ended. Nothing where none was listened to.
        cursor: Option<Cursor>,
    },
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ControlJson<'a> {
    Connected {
        message: &'static str,
        school_id: SchoolId,
        channels: &'a [String],
        cursor: String,
        heartbeat_secs: u64,
        expires_at: Option<String>,
        #[serde(flatten)]
        also: &'a Map<String, Value>,
    },
    Ready {
        cursor: String,
    },
    Reset {
        reason: ResetReason,
    },
    Heartbeat {
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
        timestamp: String,
    },
    Closing {
        code: u16,
        reason: &'static str,
        reconnect: bool,
        retry_ms: u64,
    },
    Error {
        error: &'a str,
        message: &'a str,
        code: &'static str,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        channels: &'a [String],
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        timestamp: &'a Option<Value>,
    },
    Authenticated {
        expires_at: Option<String>,
    },
    Subscribed {
        #[serde(flatten)]
        asked: &'a Map<String, Value>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    },
    Unsubscribed {
        #[serde(flatten)]
        asked: &'a Map<String, Value>,
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

    /// Sets the cursor of messages that say where the reader stands on receiving them.
    pub fn stamp(&mut self, at: Option<Cursor>) {
        if let Control::Heartbeat { cursor, .. } | Control::Subscribed { cursor, .. } = self {
            *cursor = at;
        }
    }

    /// The message as a JSON object.
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
            } => ControlJson::Error {
                error: message,
                message,
                code,
                channels,
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
