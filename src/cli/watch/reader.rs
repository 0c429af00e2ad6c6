//! Follows one scope, and reports what it reads. [`client::Watch`] connects, and reconnects from its cursor.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::changes::Changes;
use super::goal::{End, Goal};
use super::scope::Scope;
use crate::cli::client::failure;
use crate::cli::{Exit, Failure};
use crate::client::{self, Event, Watch};

/// The first delay before the state of the subject is requested again, which doubles each time.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How many messages are read before the terminal shows them.
pub(super) const READ_AHEAD: usize = 256;
/// The code with which the server closes a stream whose token has expired.
const TOKEN_EXPIRED: u64 = 4401;

/// What a reader sends.
pub(super) enum Update {
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
    /// Nobody reads standard output any more.
    Unread,
}

/// The reader of a scope.
pub(super) struct Reader {
    /// The index of its scope.
    pub(super) index: usize,
    pub(super) scope: Scope,
    pub(super) goal: Goal,
    pub(super) client: client::Client,
    /// The URL of the server.
    pub(super) url: String,
    pub(super) cursor: Option<String>,
    pub(super) updates: Sender<(usize, Update)>,
}

/// Why reading stops.
enum Stop {
    Ended(End),
    Failed(Failure),
    /// The receiver is gone.
    Unheard,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl Reader {
    /// Reads until the scope has nothing more to send.
    pub(super) async fn run(self) {
        let end = match self.read().await {
            Err(Stop::Ended(end)) => Ok(end),
            Err(Stop::Failed(failure)) => Err(failure),
            Ok(()) => Err(Failure::new(Exit::Failed, "closed by the server")),
            Err(Stop::Unheard) => return,
        };
        // Fails if the receiver is gone.
        let _ = self.send(Update::End(end)).await;
    }

    async fn send(&self, what: Update) -> Result<(), Stop> {
        let sent = self.updates.send((self.index, what)).await;
        sent.map_err(|_| Stop::Unheard)
    }

    fn watch(&self) -> Watch {
        // Repeat a snapshot that was cut off, because its rest alone would look like changes.
        let watch = self.client.watch(&self.scope.address).repeat_snapshot();
        match &self.cursor {
            Some(cursor) => watch.cursor(cursor).start(),
            None => watch.start(),
        }
    }

    async fn read(&self) -> Result<(), Stop> {
        let mut watch = self.watch();
        let mut changes = Changes::new();
        let (mut was_reached, mut is_lost) = (false, false);
        while let Some(event) = watch.next_event().await {
            match event.map_err(|error| failure(&self.url, error))? {
                Event::Message(message) | Event::Control(message) => {
                    self.take(Value::from(message), &mut changes).await?;
                }
                Event::Connected(_) => {
                    was_reached = true;
                    if std::mem::take(&mut is_lost) {
                        let notice = format!("reconnected to {}", self.url);
                        self.send(Update::Notice(notice)).await?;
                    }
                }
                Event::Lost {
                    error,
                    was_accepted,
                    pause,
                } => {
                    let failure = error.map(|error| failure(&self.url, error));
                    was_reached |= was_accepted;
                    // Another transport may work.
                    if pause.is_zero() && (is_lost || !was_reached) {
                        continue;
                    }
                    // If the server was never reached, the URL is probably wrong. Otherwise the server will return.
                    if !was_reached {
                        let failure = failure.unwrap_or_else(|| self.silent());
                        return Err(failure.into());
                    }
                    let problem = match failure {
                        Some(failure) if is_lost => failure.message,
                        _ => format!("connection to {} lost", self.url),
                    };
                    is_lost = true;
                    self.send(Update::Notice(trying_again(&problem, pause)))
                        .await?;
                }
            }
        }
        Ok(())
    }

    fn silent(&self) -> Failure {
        let problem = format!(
            "cannot reach {}: it does not answer, neither by an event stream nor by long poll",
            self.url
        );
        Failure::new(Exit::Unreachable, problem)
    }

    async fn take(&self, message: Value, changes: &mut Changes) -> Result<(), Stop> {
        let is_resumed = self.cursor.is_some() || changes.is_ready();
        // The acknowledgement of another characteristic's violation reaches this scope, too.
        let single = self.scope.single.as_ref();
        let is_own = single.is_none_or(|single| single.is_subject_of(&message));
        let is_change = changes.is_change(&message) && is_own;
        let end = self.goal.judge(&self.scope, &message, is_change);
        let is_ready = message["type"] == "ready";
        let closing = closing(&message);
        // A message that ends the watch always counts as a change.
        let is_change = is_change || end.is_some();
        self.send(Update::Message { message, is_change }).await?;
        match (end, closing) {
            (Some(end), _) => Err(Stop::Ended(end)),
            (None, Some(failure)) => Err(failure.into()),
            (None, None) if is_ready && is_resumed => self.check_state().await,
            (None, None) => Ok(()),
        }
    }

    /// Reads the state of the only subject. It may have ended before the cursor, and then no further message
    /// arrives.
    async fn check_state(&self) -> Result<(), Stop> {
        let Some(single) = &self.scope.single else {
            return Ok(());
        };
        let mut delay = RETRY;
        let subject = loop {
            let answer = self.client.get(&single.path()).await;
            match answer.map_err(|error| failure(&self.url, error)) {
                Ok(subject) => break subject,
                Err(failure) if failure.is_transient() => {
                    let notice = trying_again(&failure.message, delay);
                    self.send(Update::Notice(notice)).await?;
                }
                Err(failure) => return Err(failure.into()),
            }
            sleep(delay).await;
            delay = (delay * 2).min(RETRY_MAX);
        };
        let Some(end) = self.goal.judge(&self.scope, &subject, true) else {
            return Ok(());
        };
        self.send(Update::Message {
            message: subject,
            is_change: true,
        })
        .await?;
        Err(Stop::Ended(end))
    }
}

fn trying_again(problem: &str, pause: Duration) -> String {
    if pause.is_zero() {
        return format!("{problem}; trying again now");
    }
    let secs = pause.as_secs_f64().round().max(1.0);
    format!("{problem}; trying again in {secs} s")
}

/// Returns why the watch ends, if the message says that the server closes it for good.
fn closing(message: &Value) -> Option<Failure> {
    if message["type"] != "closing" {
        return None;
    }
    if message["code"] == TOKEN_EXPIRED {
        return Some(Failure::new(Exit::Denied, "the token has expired"));
    }
    let reason = message["reason"].as_str().unwrap_or("closed by the server");
    (message["reconnect"] == false).then(|| Failure::new(Exit::Failed, reason))
}
