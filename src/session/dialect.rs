//! In what the endpoints differ. Everything else is one implementation.

use std::time::Duration;

use crate::auth::Access;
use crate::config::Settings;
use crate::id::{Channel, SchoolId};
use crate::kind::characteristic;
use crate::wire::Close;
use crate::wire::form::Form;

/// What a bare text `ping` is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarePing {
    /// `{"type":"pong"}`
    Pong,
    /// `pong`
    BarePong,
    /// An error, as for anything that is not a JSON object.
    Error,
}

/// An endpoint's ways.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// What a bare text `ping` is answered with.
    pub bare_ping: BarePing,
    /// Whether a client that may not is told why by an `error` message before the close.
    pub explains_refusal: bool,
    /// How a client that may not is closed.
    pub refusal: Close,
    /// Whether `subscribed` and `unsubscribed` are sent.
    pub acknowledges: bool,
    /// Whether `ready` is sent.
    pub tells_ready: bool,
    /// Whether a `heartbeat` message follows a client's silence.
    pub idle_heartbeat: bool,
    /// Whether a `heartbeat` message goes with each ping.
    pub heartbeat_message: bool,
    /// Whether ids that are plain decimal integers are numbers; if that is not said, they are texts, and what a client
    /// asked for is acknowledged as it wrote it.
    pub numeric_ids: Option<bool>,
    /// Whether a subject that had ended before the connection is left out, so that a page which comes back does not take
    /// its end for a second one.
    pub leaves_out_ended: bool,
    /// Whether every connection hears of acknowledged violations, whatever it subscribes to.
    hears_acknowledgements: bool,
    /// Whether a snapshot is announced by `initial_state`.
    pub announces_snapshot: bool,
    /// The form of events when the request does not say.
    pub form: Form,
    /// Whether ticks fold by time when the request does not say.
    folds: bool,
}

impl Dialect {
    /// `/events/…`
    pub const EVENTS: Dialect = Dialect {
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
    pub const MULTIPLEXED: Dialect = Dialect {
        bare_ping: BarePing::Error,
        refusal: Close::RefusedUnauthorized,
        hears_acknowledgements: true,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/samples`
    pub const SAMPLES: Dialect = Dialect {
        tells_ready: false,
        form: Form::Flat,
        numeric_ids: Some(true),
        ..Dialect::MULTIPLEXED
    };
    /// `/progress/ws/<job_id>`
    pub const JOB_PROGRESS: Dialect = Dialect {
        bare_ping: BarePing::Error,
        acknowledges: false,
        tells_ready: false,
        idle_heartbeat: true,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/enrollment`
    pub const ENROLLMENTS: Dialect = Dialect {
        explains_refusal: false,
        leaves_out_ended: true,
        tells_ready: false,
        folds: false,
        ..Dialect::EVENTS
    };
    /// `/ws/device-status`
    pub const DEVICES: Dialect = Dialect {
        numeric_ids: Some(true),
        ..Dialect::ENROLLMENTS
    };
    /// `/ws/upload-progress`
    pub const UPLOADS: Dialect = Dialect {
        bare_ping: BarePing::BarePong,
        announces_snapshot: true,
        form: Form::Upload,
        leaves_out_ended: false,
        ..Dialect::ENROLLMENTS
    };

    /// Whether a connection with this credential hears of acknowledged violations whatever it subscribes to: it must reach a
    /// characteristic.
    pub fn hears_acknowledgements(&self, access: &Access, school: SchoolId) -> bool {
        let reaches_one = |channel: &Channel| match channel {
            Channel::School(own) => *own == school,
            Channel::Collection(kind) | Channel::Subject(kind, _) => *kind == characteristic::KIND,
        };
        let channels = access.channels.as_deref();
        self.hears_acknowledgements && channels.is_none_or(|own| own.iter().any(reaches_one))
    }

    /// Least time between two ticks when the request does not say.
    pub fn tick(&self, settings: &Settings) -> Duration {
        Duration::from_millis(if self.folds { settings.tick_ms } else { 0 })
    }
}
