//! Watches a scope: the builder says what to read and from where, and the watch returns what arrives. `driver` connects and reads.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use percent_encoding::percent_decode_str;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::driver::{Driver, Pace};
use super::item::{Event, Item};
use super::story::Story;
use super::{Client, ClientError, Message, Transport};

/// How many messages are read before the application asks for them.
const READ_AHEAD: usize = 16;
/// See [`WatchBuilder::poll_gap`].
const POLL_GAP: Duration = Duration::from_millis(100);
const POLL_GAP_MAX: Duration = Duration::from_secs(60);

/// What to watch, and from where. Created by [`Client::watch`].
pub struct WatchBuilder {
    client: Client,
    scope: String,
    query: Vec<(String, String)>,
    cursor: Option<String>,
    transports: Vec<Transport>,
    repeats_snapshot: bool,
    pace: Pace,
    poll_gap: Duration,
}

impl WatchBuilder {
    pub(super) fn new(client: Client, scope: &str) -> WatchBuilder {
        let scope = scope.trim_start_matches('/');
        let (path, query) = scope.split_once('?').unwrap_or((scope, ""));
        let decoded = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(name), decoded(value))
        });
        WatchBuilder {
            client,
            scope: path.to_owned(),
            query: query.collect(),
            cursor: None,
            transports: vec![Transport::EventStream, Transport::LongPoll],
            repeats_snapshot: false,
            pace: Pace::default(),
            poll_gap: POLL_GAP,
        }
    }

    /// Continues after this cursor instead of starting with the current state. An empty cursor counts as none.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<String>) -> WatchBuilder {
        self.cursor = Some(cursor.into());
        self
    }

    /// Adds a filter or an option to the URL, such as `job_type`, `status` or `tick_ms`. It can be repeated.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>, value: impl ToString) -> WatchBuilder {
        self.query.push((name.into(), value.to_string()));
        self
    }

    /// Tries these transports, in this order. An empty list counts as the default: SSE, then long poll.
    #[must_use]
    pub fn transports(mut self, transports: &[Transport]) -> WatchBuilder {
        if !transports.is_empty() {
            self.transports = transports.to_vec();
        }
        self
    }

    /// Sets the minimum time from the start of one long poll to the start of the next: 100 ms by default, at most a minute. Each
    /// event completes a poll, so this limits the rate of requests. Events in between arrive with the next poll, up to this much
    /// later. None is lost.
    #[must_use]
    pub fn poll_gap(mut self, gap: Duration) -> WatchBuilder {
        self.poll_gap = gap.min(POLL_GAP_MAX);
        self
    }

    /// If the connection is lost within a snapshot, requests the snapshot again from its start. By default the watch continues after
    /// the last message, and the rest of the present state arrives as events that are not marked as a snapshot. With this, all of
    /// it is marked. What was delivered is not delivered again, except what is beyond the first 10,000 messages of a snapshot.
    ///
    /// A watch that starts at a cursor has no snapshot, except after a `reset`. It always continues after the last message.
    #[must_use]
    pub fn repeat_snapshot(mut self) -> WatchBuilder {
        self.repeats_snapshot = true;
        self
    }

    #[cfg(test)]
    pub(super) fn pace(mut self, pace: Pace) -> WatchBuilder {
        self.pace = pace;
        self
    }

    /// Starts to read, in a task of the current Tokio runtime that ends when the [`Watch`] is dropped.
    pub fn start(self) -> Watch {
        let (sender, items) = mpsc::channel(READ_AHEAD);
        let mut story = Story::new(
            self.transports,
            self.cursor.clone(),
            self.client.credential.renews(),
        );
        if self.repeats_snapshot {
            story.repeat_snapshot();
        }
        let cursor = story.cursor().map(str::to_owned);
        let path = match self.scope.is_empty() {
            true => "/events".to_owned(),
            false => format!("/events/{}", self.scope),
        };
        let driver = Driver {
            client: self.client,
            path,
            query: self.query,
            pace: self.pace,
            poll_gap: self.poll_gap,
            story,
            is_up: false,
            items: sender,
        };
        Watch {
            items,
            cursor,
            task: tokio::spawn(driver.run()),
        }
    }
}

/// The messages of a scope: the present state as snapshots, `ready`, then each event, once and in order.
///
/// At a `reset`, discard what is known: a complete snapshot and another `ready` follow. The stream ends when the server has nothing
/// more to send, or after an error, which means that reconnecting is useless.
pub struct Watch {
    items: mpsc::Receiver<Item>,
    cursor: Option<String>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Returns the next message, or `None` at the end. It is cancel-safe: no message is lost.
    pub async fn next(&mut self) -> Option<Result<Message, ClientError>> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Like [`Watch::next`], but also returns changes of the connection: for programs that show whether they are connected, or that
    /// do not wait for a server that was never reached.
    pub async fn next_event(&mut self) -> Option<Result<Event, ClientError>> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Returns the cursor after the last message that was returned. Store it to continue there.
    pub fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, ClientError>>> {
        loop {
            return Poll::Ready(match ready!(self.poll_event(cx)) {
                Some(Ok(Event::Message(message))) => Some(Ok(message)),
                Some(Ok(_)) => continue,
                Some(Err(error)) => Some(Err(error)),
                None => None,
            });
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, ClientError>>> {
        loop {
            return Poll::Ready(match ready!(self.items.poll_recv(cx)) {
                Some(Item::Message(message, cursor)) => {
                    self.cursor = cursor;
                    Some(Ok(Event::Message(message)))
                }
                Some(Item::Control(message, cursor)) => {
                    self.cursor = cursor;
                    Some(Ok(Event::Control(message)))
                }
                Some(Item::State(event)) => Some(Ok(event)),
                Some(Item::Cursor(cursor)) => {
                    self.cursor = Some(cursor);
                    continue;
                }
                Some(Item::Failed(error)) => Some(Err(error)),
                None => None,
            });
        }
    }
}

impl Stream for Watch {
    type Item = Result<Message, ClientError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Message, ClientError>>> {
        self.poll_message(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
