//! What a watch receives.

use std::time::Duration;

use super::{ClientError, Message, Transport};

/// What [`Watch::next_event`](super::Watch::next_event) returns: a message, or a change of the connection.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A message, which [`Watch::next`](super::Watch::next) returns, too.
    Message(Message),
    /// A message about the connection: `connected`, `closing`, or the `ready` of a later connection.
    Control(Message),
    /// A connection is up: its first message follows.
    Connected(Transport),
    /// A connection was lost, or could not be made.
    Lost {
        /// Why. `None` if it ended or became silent without an error.
        error: Option<ClientError>,
        /// Whether the server had accepted the request. If it never does, the URL is probably wrong.
        was_accepted: bool,
        /// The pause before the next try. Zero if that follows at once, for example over another transport.
        pause: Duration,
    },
}

/// What the driver sends to the watch.
pub(super) enum Item {
    Message(Message, Option<String>),
    Control(Message, Option<String>),
    /// Any other change of the connection.
    State(Event),
    /// The cursor has moved without a message for the application.
    Cursor(String),
    Failed(ClientError),
}
