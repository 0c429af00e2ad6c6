//! Follows one scope on a thread of its own: connects, reconnects from its cursor, and tells what it reads.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde_json::Value;

use super::changes::Changes;
use super::goal::{End, Goal};
use super::scope::Scope;
use crate::cli::client::{Client, Received};
use crate::cli::{Exit, Failure};

/// Silence after which a connection counts as lost, until the server announces the interval of its heartbeats.
const SILENCE: Duration = Duration::from_secs(60);
/// After that, the number of missed heartbeats after which it counts as lost.
const SILENT_HEARTBEATS: u32 = 3;
/// The first delay before reconnecting.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How many messages are read ahead of the terminal.
pub(super) const READ_AHEAD: usize = 256;

/// What a reader tells.
pub(super) enum Told {
    /// A message.
    Message {
        message: Value,
        /// Whether it is a change, and not only progress or what was known before; see [`Changes`].
        is_change: bool,
    },
    /// A sentence about the connection.
    Notice(String),
    /// Nothing follows.
    End(Result<End, Failure>),
}

/// The reader of a scope.
pub(super) struct Reader {
    /// Which of the scopes it is.
    pub(super) index: usize,
    pub(super) scope: Scope,
    pub(super) goal: Goal,
    pub(super) client: Client,
    /// The URL of the server.
    pub(super) url: String,
    pub(super) cursor: Option<String>,
    pub(super) told: SyncSender<(usize, Told)>,
}

/// Why reading stops.
enum Stop {
    Ended(End),
    Failed(Failure),
    /// Nobody listens any more.
    Unheard,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl Reader {
    /// Reads until the scope has nothing more to tell.
    pub(super) fn run(mut self) {
        let end = match self.read() {
            Stop::Ended(end) => Ok(end),
            Stop::Failed(failure) => Err(failure),
            Stop::Unheard => return,
        };
        // Fails if nobody listens any more.
        let _ = self.tell(Told::End(end));
    }

    fn tell(&self, what: Told) -> Result<(), Stop> {
        let sent = self.told.send((self.index, what));
        sent.map_err(|_| Stop::Unheard)
    }

    fn read(&mut self) -> Stop {
        let asked = self.cursor.clone();
        let mut changes = Changes::new();
        let mut connected_once = false;
        let mut is_lost = false;
        let mut delay = RETRY;
        loop {
            let problem = match self
                .client
                .events(&self.scope.address, self.cursor.as_deref())
            {
                Ok(events) => {
                    if std::mem::take(&mut is_lost)
                        && let Err(stop) =
                            self.tell(Told::Notice(format!("reconnected to {}", self.url)))
                    {
                        return stop;
                    }
                    connected_once = true;
                    delay = RETRY;
                    if let Err(stop) = self.follow(events, &mut changes, &mut delay) {
                        return stop;
                    }
                    if !changes.is_ready() {
                        // Resumed amid a snapshot, the rest of it would look like news.
                        self.cursor.clone_from(&asked);
                    }
                    format!("connection to {} lost", self.url)
                }
                // If the server was never reached, the URL is probably wrong. Otherwise the server will return.
                Err(failure) if !failure.is_passing() || !connected_once => {
                    return Stop::Failed(failure);
                }
                Err(failure) => failure.message,
            };
            is_lost = true;
            let notice = format!("{problem}; trying again in {} s", delay.as_secs());
            if let Err(stop) = self.tell(Told::Notice(notice)) {
                return stop;
            }
            std::thread::sleep(delay);
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    /// Reads a connection to its end.
    fn follow(
        &mut self,
        events: impl Iterator<Item = Received> + Send + 'static,
        changes: &mut Changes,
        delay: &mut Duration,
    ) -> Result<(), Stop> {
        let resumed = self.cursor.is_some();
        let mut silence = SILENCE;
        let (received, messages) = sync_channel(READ_AHEAD);
        // The thread ends with the connection, or when its messages are no longer received.
        std::thread::spawn(move || {
            let mut events = events;
            events
                .by_ref()
                .map(|event| received.send(event))
                .take_while(Result::is_ok)
                .for_each(drop)
        });
        loop {
            let Received {
                message,
                cursor: at,
            } = match messages.recv_timeout(silence) {
                Ok(received) => received,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(()),
            };
            self.cursor = at.or(self.cursor.take());
            let Some(message) = message else { continue };
            // The acknowledgement of another characteristic's violation reaches this scope, too.
            let is_own = self
                .scope
                .single
                .as_ref()
                .is_none_or(|single| single.is_subject_of(&message));
            let is_change = changes.is_change(&message) && is_own;
            let end = self.goal.judge(&self.scope, &message, is_change);
            let control = Control::of(&message);
            // What ends the watch is always a change for the user.
            self.tell(Told::Message {
                message,
                is_change: is_change || end.is_some(),
            })?;
            if let Some(end) = end {
                return Err(Stop::Ended(end));
            }
            match control {
                Control::Connected(heartbeat) => silence = heartbeat * SILENT_HEARTBEATS,
                Control::Ready if resumed => match self.look() {
                    // As a lost connection: nothing can be said of the subject yet.
                    Err(Stop::Failed(failure)) if failure.is_passing() => return Ok(()),
                    looked => looked?,
                },
                Control::Closing(Some(failure), _) => return Err(failure.into()),
                Control::Closing(None, retry) => *delay = retry,
                Control::Ready | Control::None => {}
            }
        }
    }

    /// Looks at the state of the only subject: it may have ended before the cursor. Then no further message arrives.
    fn look(&self) -> Result<(), Stop> {
        let Some(single) = &self.scope.single else {
            return Ok(());
        };
        let subject = self.client.get(&single.path())?;
        let Some(end) = self.goal.judge(&self.scope, &subject, true) else {
            return Ok(());
        };
        self.tell(Told::Message {
            message: subject,
            is_change: true,
        })?;
        Err(Stop::Ended(end))
    }
}

/// What a message says of the connection.
enum Control {
    None,
    /// The interval of heartbeats.
    Connected(Duration),
    Ready,
    /// Why the watch ends, or the delay before reconnecting.
    Closing(Option<Failure>, Duration),
}

impl Control {
    fn of(message: &Value) -> Control {
        match message["type"].as_str() {
            Some("connected") => {
                let secs = message["heartbeat_secs"].as_u64().unwrap_or(20);
                Control::Connected(Duration::from_secs(secs.clamp(1, 3_600)))
            }
            Some("ready") => Control::Ready,
            Some("closing") => {
                let failure = match message["reason"].as_str() {
                    _ if message["code"] == 4401 => {
                        Some(Failure::new(Exit::Denied, "the token has expired"))
                    }
                    reason if message["reconnect"] == false => {
                        let reason = reason.unwrap_or("closed by the server");
                        Some(Failure::new(Exit::Failed, reason))
                    }
                    _ => None,
                };
                let retry = message["retry_ms"].as_u64().unwrap_or(0);
                let retry = Duration::from_millis(retry).clamp(RETRY, RETRY_MAX);
                Control::Closing(failure, retry)
            }
            _ => Control::None,
        }
    }
}
