//! In what the WebSocket endpoints differ. Everything else is one implementation.

use std::time::Duration;

use super::params::Params;
use crate::config::Settings;
use crate::wire::form::Form;
use crate::wire::{Close, Encoding, Framing};

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
    pub(super) idle_heartbeat: bool,
    /// Whether a `heartbeat` message goes with each ping.
    pub(super) heartbeat_message: bool,
    /// Whether ids that are plain decimal integers are numbers; if that is not said, they are texts, and what a client
    /// asked for is acknowledged as it wrote it.
    pub(super) numeric_ids: Option<bool>,
    /// Whether a subject that had ended before the connection is left out, so that a page which comes back does not take
    /// its end for a second one.
    pub(super) leaves_out_ended: bool,
    /// Whether every connection hears of acknowledged violations, whatever it subscribes to.
    pub(super) hears_acknowledgements: bool,
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
        idle_heartbeat: false,
        heartbeat_message: false,
        numeric_ids: None,
        leaves_out_ended: false,
        hears_acknowledgements: false,
        announces_snapshot: false,
        form: Form::Standard,
        folds: true,
    };
    /// `/ws`
    pub(super) const MULTIPLEXED: Dialect = Dialect {
        bare_ping: BarePing::Error,
        refusal: Close::RefusedUnauthorized,
        hears_acknowledgements: true,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/samples`
    pub(super) const SAMPLES: Dialect = Dialect {
        tells_ready: false,
        form: Form::Flat,
        numeric_ids: Some(true),
        ..Dialect::MULTIPLEXED
    };
    /// `/progress/ws/<job_id>`
    pub(super) const JOB_PROGRESS: Dialect = Dialect {
        bare_ping: BarePing::Error,
        acknowledges: false,
        tells_ready: false,
        idle_heartbeat: true,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/enrollment`
    pub(super) const ENROLLMENTS: Dialect = Dialect {
        explains_refusal: false,
        leaves_out_ended: true,
        tells_ready: false,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/device-status`
    pub(super) const DEVICES: Dialect = Dialect {
        numeric_ids: Some(true),
        ..Dialect::ENROLLMENTS
    };
    /// `/ws/upload-progress`
    pub(super) const UPLOADS: Dialect = Dialect {
        bare_ping: BarePing::BarePong,
        announces_snapshot: true,
        form: Form::Upload,
        leaves_out_ended: false,
        ..Dialect::ENROLLMENTS
    };

    /// The same, with what the request asks for.
    pub(super) fn asked(self, params: &Params) -> Dialect {
        Dialect {
            heartbeat_message: params.heartbeat_message,
            numeric_ids: params.numeric_ids.or(self.numeric_ids),
            ..self
        }
    }

    /// How events are encoded for a request.
    pub(super) fn encoding(&self, params: &Params) -> Encoding {
        Encoding {
            numeric_ids: self.numeric_ids.unwrap_or(false),
            ..params.encoding(Framing::WebSocket, self.form)
        }
    }

    /// Least time between two ticks when the request does not say.
    pub(super) fn tick(&self, settings: &Settings) -> Duration {
        Duration::from_millis(if self.folds { settings.tick_ms } else { 0 })
    }
}
