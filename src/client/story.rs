//! The state that a reader keeps between connections: cursor, duplicates, waits and the choice of the transport. Does no I/O.
//!
//! The `driver` opens each connection over [`Story::transport`] with [`Story::cursor`], and passes each message to
//! [`Story::receive`]. At the end of a connection, it calls the method for that kind of end, which returns what to do next.
//! `clients/vectors` tests the rules:
//!
//! 1. Each event is delivered once, in the order of the log.
//! 2. The cursor is that of the last event, `ready` or `heartbeat`, so that a new connection continues after it.
//! 3. A message that cannot be read ends the connection, and the next one starts before that message. Nothing is skipped.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::backoff::{Backoff, jittered};
use super::{ClientError, Message, Transport};

/// The interval of heartbeats until the server has announced it.
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(15);
/// The longest interval that a server may announce.
const HEARTBEAT_MAX_SECS: f64 = 3_600.0;
/// How long the first message may take. A proxy that buffers the stream holds it back.
const FIRST_MESSAGE: Duration = Duration::from_secs(10);
/// How long a poll waits for an event.
pub(super) const POLL_WAIT: Duration = Duration::from_secs(25);
/// Statuses after which a new connection is useless.
const PERMANENT: [u16; 4] = [400, 403, 404, 422];
/// Statuses with which a server or proxy says that it does not serve this transport.
const NO_SUCH_TRANSPORT: [u16; 3] = [406, 426, 501];
/// Rejected tokens in a row after which the reader gives up.
const UNAUTHORIZED_MAX: u32 = 3;
/// Accepted connections in a row without a message, after which the next transport is tried.
const EARLY_ENDS_MAX: u32 = 2;
/// How long a reader stays with another transport than the preferred one before a new connection tries that again.
const FALLBACK: Duration = Duration::from_secs(600);
/// How many events of a snapshot are remembered, so that they are not delivered again when the snapshot is repeated. Events
/// beyond this number are delivered again.
const REPEATED_MAX: usize = 10_000;
/// Close codes: nothing more to send, and the token has expired.
const CLOSED_DONE: u64 = 1000;
const CLOSED_TOKEN_EXPIRED: u64 = 4401;
/// Close codes after which a client may return, but not with a token that has expired by then: a fresh one helps.
const CLOSED_RENEWED: &[u64] = &[1001, 1002, 1007, 1011, 1013, CLOSED_TOKEN_EXPIRED, 4408];

/// A rejection of a request.
#[derive(Clone)]
pub(super) struct Rejection {
    pub(super) status: u16,
    pub(super) code: Option<String>,
    pub(super) detail: String,
    pub(super) retry_after: Duration,
}

impl Rejection {
    pub(super) fn into_error(self) -> ClientError {
        ClientError::Rejected {
            status: self.status,
            code: self.code,
            detail: self.detail,
            retry_after: self.retry_after,
        }
    }
}

/// What follows the end of a connection.
#[derive(Debug)]
pub(super) enum Next {
    /// Connect again after this pause.
    Connect(Duration),
    /// The server has nothing more to send.
    Done,
    /// A new connection is useless.
    GiveUp(ClientError),
}

/// What the application gets when a message arrives.
pub(super) enum Received {
    Message(Message),
    /// It is about the connection.
    Control(Message),
    Nothing,
}

pub(super) struct Story {
    cursor: Option<String>,
    heartbeat: Duration,
    /// Whether the current connection has brought a message.
    is_connected: bool,
    closing: Option<Message>,
    preferred: Vec<Transport>,
    /// Index into `preferred`.
    current: usize,
    fell_back_at: Option<Instant>,
    /// The transport that brought the last message.
    worked: Option<Transport>,
    /// How many transports in a row did not get through the network.
    unusable: usize,
    early_ends: u32,
    token_renews: bool,
    unauthorized: u32,
    backoff: Backoff,
    last_seq: u64,
    /// Whether a snapshot that was cut off is requested again from its start.
    repeats_snapshot: bool,
    /// Whether a snapshot is being read: since the start without a cursor, or since a `reset`, until `ready`.
    in_snapshot: bool,
    /// The number and the cursor of each event of the snapshot that was delivered, if it may be repeated.
    delivered: HashSet<(u64, Option<String>)>,
    /// Whether the next request continues where the last one ended.
    continues: bool,
    /// Whether `ready` was delivered since the start or the last `reset`.
    is_ready: bool,
    /// Whether the current connection has brought `ready`.
    was_ready: bool,
}

impl Story {
    /// Starts a reader. `transports` is not empty. `token_renews` says whether a new connection gets a new token.
    pub(super) fn new(
        transports: Vec<Transport>,
        cursor: Option<String>,
        token_renews: bool,
    ) -> Story {
        let cursor = cursor.filter(|cursor| !cursor.is_empty());
        Story {
            in_snapshot: cursor.is_none(),
            cursor,
            heartbeat: HEARTBEAT_DEFAULT,
            is_connected: false,
            closing: None,
            preferred: transports,
            current: 0,
            fell_back_at: None,
            worked: None,
            unusable: 0,
            early_ends: 0,
            token_renews,
            unauthorized: 0,
            backoff: Backoff::default(),
            last_seq: 0,
            repeats_snapshot: false,
            delivered: HashSet::new(),
            continues: false,
            is_ready: false,
            was_ready: false,
        }
    }

    /// Makes a snapshot that was cut off be requested again from its start. A reader that started from a cursor still continues
    /// from its cursor.
    pub(super) fn repeat_snapshot(&mut self) {
        self.repeats_snapshot = true;
    }

    pub(super) fn cursor(&self) -> Option<&str> {
        self.cursor.as_deref()
    }

    pub(super) fn transport(&self) -> Transport {
        self.preferred[self.current]
    }

    pub(super) fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Whether the server has said that it closes this connection.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Returns how long a poll waits for an event. The first one does not wait: its answer has the current state, even if that
    /// is empty.
    pub(super) fn poll_wait(&self) -> Duration {
        match self.is_ready {
            true => POLL_WAIT,
            false => Duration::ZERO,
        }
    }

    /// Returns how long a connection may be silent before it counts as dead.
    pub(super) fn silence(&self) -> Duration {
        match self.transport() {
            // The server answers the first poll without waiting for an event.
            Transport::LongPoll if !self.is_ready => FIRST_MESSAGE,
            // A proxy that buffers may hold back the white space that is the heartbeat of a poll.
            Transport::LongPoll => (self.heartbeat * 2).max(POLL_WAIT + FIRST_MESSAGE),
            Transport::EventStream if self.is_connected => self.heartbeat * 2,
            Transport::EventStream => FIRST_MESSAGE,
        }
    }

    /// Records that the next request is another poll, because the last one was complete.
    pub(super) fn continues(&mut self) {
        self.continues = true;
    }

    /// Begins a connection.
    pub(super) fn connecting(&mut self, now: Instant) {
        self.is_connected = false;
        self.closing = None;
        self.was_ready = false;
        let continues = std::mem::take(&mut self.continues);
        if self.repeats_snapshot && self.in_snapshot && !continues {
            (self.cursor, self.last_seq) = (None, 0);
        }
        if self.fell_back_at.is_some_and(|at| now - at >= FALLBACK) {
            self.current = 0;
            self.fell_back_at = None;
        }
    }

    /// Processes a message. Returns what the application gets.
    pub(super) fn receive(&mut self, message: Message) -> Received {
        self.is_connected = true;
        self.worked = Some(self.transport());
        (self.unusable, self.unauthorized, self.early_ends) = (0, 0, 0);
        if let Some(seq) = message.seq() {
            if seq <= self.last_seq {
                return Received::Nothing;
            }
            self.last_seq = seq;
            self.advance(&message);
            // An event that was delivered before is not progress, so it does not reset the backoff: a snapshot may be cut off
            // again and again.
            if self.was_delivered(seq, &message) {
                return Received::Nothing;
            }
            self.backoff.reset();
            return Received::Message(message);
        }
        match message.message_type() {
            "connected" => {
                let secs = message.get("heartbeat_secs").as_f64();
                let secs = secs.filter(|secs| *secs > 0.0);
                self.heartbeat = secs.map_or(HEARTBEAT_DEFAULT, |secs| {
                    Duration::from_secs_f64(secs.min(HEARTBEAT_MAX_SECS))
                });
                Received::Control(message)
            }
            "heartbeat" => {
                self.advance(&message);
                Received::Nothing
            }
            "ready" => {
                self.advance(&message);
                self.backoff.reset();
                self.was_ready = true;
                self.in_snapshot = false;
                self.delivered = HashSet::new();
                match std::mem::replace(&mut self.is_ready, true) {
                    true => Received::Control(message),
                    false => Received::Message(message),
                }
            }
            "reset" => {
                // A different history follows a reset, and its numbers may be lower.
                (self.cursor, self.last_seq, self.is_ready) = (None, 0, false);
                self.in_snapshot = true;
                self.delivered.clear();
                Received::Message(message)
            }
            "closing" => {
                self.closing = Some(message.clone());
                Received::Control(message)
            }
            _ => Received::Nothing,
        }
    }

    /// Records an event of a snapshot. Returns whether an earlier connection has delivered it. The cursor distinguishes it from
    /// an event of another history with the same number.
    fn was_delivered(&mut self, seq: u64, message: &Message) -> bool {
        if !self.repeats_snapshot || !self.in_snapshot {
            return false;
        }
        // The rest of the text says what the connection awaits.
        let place = message.cursor().and_then(|cursor| cursor.split('.').next());
        let event = (seq, place.map(str::to_owned));
        if self.delivered.len() >= REPEATED_MAX {
            return self.delivered.contains(&event);
        }
        !self.delivered.insert(event)
    }

    fn advance(&mut self, message: &Message) {
        if let Some(cursor) = message.cursor() {
            self.cursor = Some(cursor.to_owned());
        }
    }

    /// The connection ended.
    pub(super) fn cut(&mut self) -> Next {
        let Some(closing) = self.closing.take() else {
            return Next::Connect(self.backoff.pause(Duration::ZERO));
        };
        let code = closing.get("code").as_u64().unwrap_or_default();
        let returns = closing.get("reconnect") == true;
        let retry = closing.get("retry_ms").as_u64();
        let retry = Duration::from_millis(retry.unwrap_or_default());
        if code == CLOSED_DONE && !returns {
            return Next::Done;
        }
        let is_renewed = self.token_renews && CLOSED_RENEWED.contains(&code);
        if !returns && !is_renewed {
            let reason = closing.get("reason").as_str().unwrap_or_default();
            return Next::GiveUp(ClientError::Closed {
                code,
                reason: reason.to_owned(),
            });
        }
        // A token that expires at once would cause a busy loop.
        Next::Connect(if code == CLOSED_TOKEN_EXPIRED && self.was_ready {
            retry
        } else if retry.is_zero() {
            self.backoff.pause(Duration::ZERO)
        } else {
            // The server already spreads `retry_ms` over its clients. Jitter also spreads them if all get the same value.
            jittered(retry, 1.2)
        })
    }

    /// The request was rejected.
    pub(super) fn rejected(&mut self, rejection: Rejection) -> Next {
        if NO_SUCH_TRANSPORT.contains(&rejection.status) {
            return self.unusable(Some(rejection.into_error()));
        }
        self.unauthorized = match rejection.status {
            401 => self.unauthorized + 1,
            _ => 0,
        };
        let tries = if self.token_renews {
            UNAUTHORIZED_MAX
        } else {
            1
        };
        // Once the stream has worked, a redirect may lead to a maintenance page, and is temporary.
        let is_elsewhere = is_redirect(rejection.status) && !self.is_ready;
        let is_permanent = PERMANENT.contains(&rejection.status) || is_elsewhere;
        if is_permanent || self.unauthorized >= tries {
            return Next::GiveUp(rejection.into_error());
        }
        Next::Connect(match self.unauthorized {
            1 => Duration::ZERO,
            _ => self.backoff.pause(rejection.retry_after),
        })
    }

    /// The connection is silent. Before the first message, that means that the transport is unusable, whether or not the head
    /// has arrived: a proxy may hold back even the head. But if the transport has worked before, the server may only be hanging.
    pub(super) fn silent(&mut self) -> Next {
        if self.is_connected {
            return self.cut();
        }
        match self.worked == Some(self.transport()) {
            true => self.ended_early(),
            false => self.unusable(None),
        }
    }

    /// An accepted connection ended without a message: a restart, or a proxy that cuts streams.
    pub(super) fn ended_early(&mut self) -> Next {
        self.early_ends += 1;
        match self.early_ends >= EARLY_ENDS_MAX {
            true => self.unusable(None),
            false => Next::Connect(self.backoff.pause(Duration::ZERO)),
        }
    }

    /// This transport does not get through the network. `why` is the server's reason, if it gave one.
    pub(super) fn unusable(&mut self, why: Option<ClientError>) -> Next {
        self.early_ends = 0;
        self.fell_back_at = Some(Instant::now());
        self.unusable += 1;
        self.current = (self.current + 1) % self.preferred.len();
        if self.unusable < self.preferred.len() {
            return Next::Connect(Duration::ZERO);
        }
        self.unusable = 0;
        match why {
            Some(why) => Next::GiveUp(why),
            None => Next::Connect(self.backoff.pause(Duration::ZERO)),
        }
    }
}

/// Whether this status is a redirect. The client does not follow it, because its token is for one server.
fn is_redirect(status: u16) -> bool {
    (300..400).contains(&status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(message: serde_json::Value) -> Message {
        Message::from_value(message).unwrap()
    }

    fn job(seq: u64) -> Message {
        message(json!({"type": "job_progress", "seq": seq, "cursor": format!("e-{seq}-t")}))
    }

    fn story(begin: Option<&str>) -> Story {
        let begin = begin.map(str::to_owned);
        let mut story = Story::new(vec![Transport::EventStream], begin, false);
        story.repeat_snapshot();
        story
    }

    #[test]
    fn a_snapshot_that_is_to_be_repeated_begins_again_and_delivers_only_what_is_new() {
        let mut story = story(None);
        for (first, second) in [(2, 4), (2, 5)] {
            story.connecting(Instant::now());
            assert_eq!(story.cursor(), None);
            let is_first = second == 4;
            let received = story.receive(job(first));
            assert_eq!(matches!(received, Received::Message(_)), is_first);
            assert!(matches!(story.receive(job(second)), Received::Message(_)));
            assert!(matches!(story.cut(), Next::Connect(_)));
        }
        story.connecting(Instant::now());
        story.receive(job(2));
        // A poll may be full before the snapshot is complete.
        story.continues();
        story.connecting(Instant::now());
        assert_eq!(story.cursor(), Some("e-2-t"));
        assert!(matches!(story.receive(job(2)), Received::Nothing));
        // Another history, with an event of the same number.
        let other_history = json!({"type": "job_progress", "seq": 4, "cursor": "f-4-t"});
        assert!(matches!(
            story.receive(message(other_history)),
            Received::Message(_)
        ));
        // The log has grown since.
        let grown = json!({"type": "job_progress", "seq": 5, "cursor": "e-5-t.9.u"});
        assert!(matches!(story.receive(message(grown)), Received::Nothing));
        story.receive(message(json!({"type": "ready", "cursor": "e-5-t"})));
        story.connecting(Instant::now());
        assert_eq!(story.cursor(), Some("e-5-t"));
        assert!(matches!(story.receive(job(4)), Received::Nothing));
    }

    #[test]
    fn a_transport_that_has_worked_is_given_up_only_after_several_silent_connections() {
        let both = vec![Transport::EventStream, Transport::LongPoll];
        let mut new = Story::new(both.clone(), None, false);
        new.connecting(Instant::now());
        assert!(matches!(new.silent(), Next::Connect(Duration::ZERO)));
        assert_eq!(new.transport(), Transport::LongPoll, "it never worked");
        let mut story = Story::new(both, None, false);
        story.connecting(Instant::now());
        story.receive(job(2));
        assert!(matches!(story.silent(), Next::Connect(_)), "a cut");
        for _ in 1..EARLY_ENDS_MAX {
            story.connecting(Instant::now());
            assert!(matches!(story.silent(), Next::Connect(pause) if !pause.is_zero()));
            assert_eq!(story.transport(), Transport::EventStream);
        }
        story.connecting(Instant::now());
        assert!(matches!(story.silent(), Next::Connect(Duration::ZERO)));
        assert_eq!(story.transport(), Transport::LongPoll);
    }

    #[test]
    fn pauses_start_over_after_an_event_that_was_not_yet_delivered() {
        let mut story = story(None);
        let mut pauses = Vec::new();
        for last in [2, 2, 2, 2, 3] {
            story.connecting(Instant::now());
            story.receive(job(2));
            story.receive(job(last));
            let Next::Connect(pause) = story.cut() else {
                panic!("it goes on");
            };
            pauses.push(pause.as_secs());
        }
        // With jitter, up to half as much again.
        assert!(pauses[0] < 2 && pauses[3] >= 8, "{pauses:?}");
        assert!(pauses[4] < 2, "{pauses:?}");
    }

    #[test]
    fn what_is_read_from_a_cursor_continues_after_what_was_delivered_even_before_ready() {
        let mut story = story(Some("e-1-t"));
        story.connecting(Instant::now());
        assert_eq!(story.cursor(), Some("e-1-t"));
        story.receive(job(2));
        assert!(matches!(story.cut(), Next::Connect(_)));
        story.connecting(Instant::now());
        assert_eq!(story.cursor(), Some("e-2-t"));
        assert!(matches!(story.receive(job(2)), Received::Nothing));
        // What follows a reset is a snapshot, which is not requested from the cursor that caused the reset.
        story.receive(message(json!({"type": "reset"})));
        assert!(matches!(story.receive(job(2)), Received::Message(_)));
        story.connecting(Instant::now());
        assert_eq!(story.cursor(), None);
        assert!(matches!(story.receive(job(2)), Received::Nothing));
    }
}
