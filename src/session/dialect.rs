//! How the WebSocket endpoints differ. All of them share one implementation.

use std::time::Duration;

use crate::auth::Access;
use crate::config::Settings;
use crate::id::{Channel, SchoolId};
use crate::kind::characteristic;
use crate::wire::Close;
use crate::wire::form::Form;

/// The answer to a bare text `ping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarePing {
    /// `{"type":"pong"}`
    Pong,
    /// `pong`
    BarePong,
    /// An error, as for any other message that is not a JSON object.
    Error,
}

/// The behaviour of one endpoint.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// What a bare text `ping` is answered with.
    pub bare_ping: BarePing,
    /// Whether an `error` message explains to an unauthorized client why its connection is closed.
    pub explains_rejection: bool,
    /// How the connection of an unauthorized client is closed.
    pub rejection: Close,
    /// Whether `subscribed` and `unsubscribed` are sent.
    pub acknowledges: bool,
    /// Whether `ready` is sent.
    pub sends_ready: bool,
    /// Whether a `heartbeat` message is sent after the client has been silent for a while.
    pub idle_heartbeat: bool,
    /// Whether a `heartbeat` message accompanies each ping.
    pub heartbeat_message: bool,
    /// Whether ids that are plain decimal integers are sent as numbers. If absent, they are sent as strings, and
    /// acknowledgements repeat the ids as the client wrote them.
    pub numeric_ids: Option<bool>,
    /// Whether to leave out subjects that reached their terminal state before the connection was opened. A page that
    /// reconnects would mistake such an event for a second end.
    pub omits_ended: bool,
    /// Whether every connection receives acknowledgements of violations, whatever it subscribes to.
    receives_acknowledgements: bool,
    /// Whether `publish` is accepted.
    pub publishes: bool,
    /// Whether `initial_state` precedes a snapshot.
    pub announces_snapshot: bool,
    /// The form of events if the request does not choose one.
    pub form: Form,
    /// Whether ticks are conflated over time if the request does not choose an interval.
    conflates: bool,
}

impl Dialect {
    /// `/events/…`
    pub const EVENTS: Dialect = Dialect {
        bare_ping: BarePing::Pong,
        explains_rejection: true,
        rejection: Close::Rejected,
        acknowledges: true,
        sends_ready: true,
        idle_heartbeat: false,
        heartbeat_message: false,
        numeric_ids: None,
        omits_ended: false,
        receives_acknowledgements: false,
        publishes: false,
        announces_snapshot: false,
        form: Form::Standard,
        conflates: true,
    };
    /// `/ws`
    pub const MULTIPLEXED: Dialect = Dialect {
        bare_ping: BarePing::Error,
        rejection: Close::RejectedUnauthorized,
        receives_acknowledgements: true,
        publishes: true,
        conflates: false,
        ..Dialect::EVENTS
    };
    /// `/ws/samples`
    pub const SAMPLES: Dialect = Dialect {
        publishes: false,
        sends_ready: false,
        form: Form::Flat,
        numeric_ids: Some(true),
        ..Dialect::MULTIPLEXED
    };
    /// `/progress/ws/<job_id>`
    pub const JOB_PROGRESS: Dialect = Dialect {
        bare_ping: BarePing::Error,
        acknowledges: false,
        sends_ready: false,
        idle_heartbeat: true,
        conflates: false,
        ..Dialect::EVENTS
    };
    /// `/ws/enrollment`
    pub const ENROLLMENTS: Dialect = Dialect {
        explains_rejection: false,
        omits_ended: true,
        sends_ready: false,
        conflates: false,
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
        omits_ended: false,
        ..Dialect::ENROLLMENTS
    };

    /// Whether a connection with this credential receives acknowledgements of violations whatever it subscribes to. The
    /// credential must reach a characteristic.
    pub fn receives_acknowledgements(&self, access: &Access, school: SchoolId) -> bool {
        let reaches_one = |channel: &Channel| match channel {
            Channel::School(channel_school) => *channel_school == school,
            Channel::Collection(kind) | Channel::Subject(kind, _) => *kind == characteristic::KIND,
        };
        let channels = access.channels.as_deref();
        self.receives_acknowledgements
            && channels.is_none_or(|channels| channels.iter().any(reaches_one))
    }

    /// Returns the shortest interval between two ticks if the request does not choose one.
    pub fn tick(&self, settings: &Settings) -> Duration {
        Duration::from_millis(if self.conflates {
            settings.tick_ms.get()
        } else {
            0
        })
    }
}
