//! In what the WebSocket endpoints differ. Everything else is one implementation.

use std::time::Duration;

use crate::config::Settings;
use crate::wire::Close;

/// What a bare text `ping` is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BarePing {
    /// `{"type":"pong"}`
    Pong,
    /// An error, as for anything that is not a JSON object.
    Error,
}

/// An endpoint's ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    pub(super) bare_ping: BarePing,
    /// Whether a refused client is told why by an `error` message before the close.
    pub(super) explains_refusal: bool,
    /// How a refused client is closed.
    pub(super) refusal: Close,
    /// Whether `ready`, `subscribed`, `unsubscribed` are sent.
    pub(super) acknowledges: bool,
    /// Whether a `heartbeat` message follows a client's silence.
    pub(super) heartbeat_message: bool,
    /// Whether ticks fold by time when the request does not say.
    folds: bool,
}

impl Dialect {
    /// `/events/…`
    pub(super) const EVENTS: Dialect = Dialect {
        bare_ping: BarePing::Pong,
        explains_refusal: true,
        refusal: Close::Refused,
        acknowledges: true,
        heartbeat_message: false,
        folds: true,
    };
    /// `/ws`
    pub(super) const MULTIPLEXED: Dialect = Dialect {
        bare_ping: BarePing::Error,
        refusal: Close::RefusedUnauthorized,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/progress/ws/<job_id>`
    pub(super) const JOB_PROGRESS: Dialect = Dialect {
        bare_ping: BarePing::Error,
        acknowledges: false,
        heartbeat_message: true,
        folds: false,
        ..Dialect::EVENTS
    };

    /// Least time between two ticks when the request does not say.
    pub(super) fn tick(&self, settings: &Settings) -> Duration {
        Duration::from_millis(if self.folds { settings.tick_ms } else { 0 })
    }
}
