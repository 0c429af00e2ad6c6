//! In what the WebSocket endpoints differ. Everything else is one implementation.

use std::time::Duration;

use crate::config::Settings;
use crate::wire::Close;
use crate::wire::form::Form;

/// What a bare text `ping` is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BarePing {
    /// `{"type":"pong"}`
    Pong,
    /// `pong`
    BarePong,
    /// An error, as for anything that is not a JSON object.
    Error,
}

/// An endpoint's ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    pub(super) bare_ping: BarePing,
    /// Whether a client that may not is told why by an `error` message before the close.
    pub(super) explains_refusal: bool,
    /// How a client that may not is closed.
    pub(super) refusal: Close,
    /// Whether `subscribed` and `unsubscribed` are sent.
    pub(super) acknowledges: bool,
    /// Whether `ready` is sent.
    pub(super) tells_ready: bool,
    /// Whether a `heartbeat` message follows a client's silence.
    pub(super) heartbeat_message: bool,
    /// Whether a snapshot is announced by `initial_state`.
    pub(super) announces_snapshot: bool,
    /// The form of events when the request does not say.
    pub(super) form: Form,
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
        tells_ready: true,
        heartbeat_message: false,
        announces_snapshot: false,
        form: Form::Standard,
        folds: true,
    };
    /// `/ws`
    pub(super) const MULTIPLEXED: Dialect = Dialect {
        bare_ping: BarePing::Error,
        refusal: Close::RefusedUnauthorized,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/samples`
    pub(super) const SAMPLES: Dialect = Dialect {
        tells_ready: false,
        form: Form::Flat,
        ..Dialect::MULTIPLEXED
    };
    /// `/progress/ws/<job_id>`
    pub(super) const JOB_PROGRESS: Dialect = Dialect {
        bare_ping: BarePing::Error,
        acknowledges: false,
        tells_ready: false,
        heartbeat_message: true,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/enrollment` and `/ws/device-status`
    pub(super) const SESSIONS_AND_DEVICES: Dialect = Dialect {
        explains_refusal: false,
        tells_ready: false,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/upload-progress`
    pub(super) const UPLOADS: Dialect = Dialect {
        bare_ping: BarePing::BarePong,
        announces_snapshot: true,
        form: Form::Upload,
        ..Dialect::SESSIONS_AND_DEVICES
    };

    /// Least time between two ticks when the request does not say.
    pub(super) fn tick(&self, settings: &Settings) -> Duration {
        Duration::from_millis(if self.folds { settings.tick_ms } else { 0 })
    }
}
