//! A session with a client, without I/O: messages in, messages out.
//!
//! ```text
//! transport ──a client's message──▶ receive ─▶ answer: at once, or by poll_answer (while a subject is looked up,
//!     ▲                                         │      or the answer to an earlier message is still being sent)
//!     └──── Outbox::send ◀── poll_deliveries ◀──┴─ Subscription
//! ```
//!
//! A two-way transport reads its client's messages and passes them to [`Session::receive`] one by one. The session sends
//! its messages to the transport's [`Outbox`], in order, while the outbox has room. WebSocket is one such transport; another
//! transport adds its own framing, keep-alive and back pressure, and reuses everything in this module. A [`Dialect`]
//! describes how the endpoints differ.

mod dialect;
mod gathering;
mod publishing;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::Utc;
use futures_core::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::Instant;

pub use self::dialect::{BarePing, Dialect};
use self::gathering::Gathering;
pub use self::publishing::Publishing;
use crate::app::{SubscribeService, uncovered};
use crate::auth::{Access, AuthError, Role};
use crate::config::PIPELINE_END_WAIT;
use crate::event::Event;
use crate::hub::mailbox::Sink;
use crate::id::{Channel, Cursor};
use crate::kind::{self, characteristic};
use crate::log::StoreError;
use crate::rejections::RequestSource;
use crate::subscribe::{Item, Lease, Subscription};
use crate::wire::client::{ClientMessage, ClientMessageError};
use crate::wire::{self, Close, Control};

/// A message to the client.
pub enum Outgoing<'a> {
    /// An event or a snapshot.
    Event(&'a Arc<Event>),
    /// Any other message.
    Control(&'a Control),
    /// A message that is already encoded: `initial_state`.
    Json(&'a [u8]),
    /// A bare `pong`, in place of a JSON message.
    BarePong,
    /// A keep-alive request that the client must answer. It carries the cursor, if there is one.
    Ping(Option<Cursor>),
}

/// Where a session sends its messages.
pub trait Outbox {
    /// Whether the outbox accepts more events. It always accepts answers, because each client message has only a few of them.
    fn has_room(&self) -> bool;

    /// Takes the next message.
    fn send(&mut self, outgoing: Outgoing<'_>);
}

/// The parameters of a new session.
pub struct Beginning {
    /// The client's address and user, for the log.
    pub source: RequestSource,
    /// The client's permissions.
    pub access: Access,
    /// The client's subscription.
    pub subscription: Subscription,
    /// The cursor from which the first `subscribe` without a cursor resumes.
    pub from: Option<Cursor>,
}

/// A `subscribe` whose subjects are being looked up in the store.
struct PendingSubscribe {
    lookup: BoxFuture<'static, Result<Vec<Channel>, StoreError>>,
    channels: Vec<Channel>,
    cursor: Option<Cursor>,
    asked: Map<String, Value>,
}

/// A client's message, and its size in bytes.
struct Message {
    content: ClientMessage,
    bytes: usize,
}

/// See the [module documentation](self).
pub struct Session {
    service: Arc<SubscribeService>,
    dialect: Dialect,
    source: RequestSource,
    access: Access,
    subscription: Subscription,
    /// In a box, because few sessions begin without a channel and with a cursor.
    from: Option<Box<Cursor>>,
    pending: Option<Box<PendingSubscribe>>,
    /// A `subscribe` or `unsubscribe` that waits until the previous one is acknowledged, or a `publish` that waits until there
    /// is room.
    held_message: Option<Box<Message>>,
    /// `None` if nothing can be published on this connection.
    publishing: Option<Box<dyn Publishing>>,
    /// The close message, held until the commands in progress are answered, but at most until this time.
    close_message: Option<Box<(Control, Instant)>>,
    last_message: Instant,
    /// Events of a snapshot that are held back until `initial_state` has announced them.
    gathering: Gathering,
    /// How the session ended. Nothing is sent after that.
    ended: Option<Close>,
}

impl Session {
    /// Begins a session.
    pub fn new(service: Arc<SubscribeService>, dialect: Dialect, beginning: Beginning) -> Session {
        let Beginning {
            source,
            access,
            subscription,
            from,
        } = beginning;
        Session {
            gathering: Gathering::new(dialect.announces_snapshot),
            service,
            dialect,
            source,
            access,
            subscription,
            from: from.map(Box::new),
            pending: None,
            held_message: None,
            publishing: None,
            close_message: None,
            last_message: Instant::now(),
            ended: None,
        }
    }

    /// Returns the session with `publishing`, which will carry out the client's commands.
    pub fn with_publishing(self, publishing: Box<dyn Publishing>) -> Session {
        Session {
            publishing: Some(publishing),
            ..self
        }
    }

    /// Returns the session, whose subscription its caller polls when it is [`due`](Session::due).
    pub(crate) fn timed_by_caller(mut self) -> Session {
        self.subscription.leave_timing_to_caller();
        self
    }

    /// When deliveries must be polled even if nothing wakes the task, provided that there is room. `None` if the session sees to
    /// that itself, or if no deliveries follow.
    pub(crate) fn due(&self) -> Option<Instant> {
        let is_open = self.ended.is_none() && self.close_message.is_none();
        is_open.then(|| self.subscription.due()).flatten()
    }

    /// Whether the client is allowed to publish on this connection.
    pub fn can_publish(&self) -> bool {
        self.publishing.is_some() && self.access.require(Role::Worker).is_ok()
    }

    /// Returns how the session ended, if it has.
    pub fn ended(&self) -> Option<Close> {
        self.ended
    }

    /// Returns the cursor from which the client would resume if its connection ended now.
    pub fn resume_cursor(&self) -> Option<Cursor> {
        let cursor = self.subscription.resume_cursor();
        cursor.or_else(|| self.from.as_deref().copied())
    }

    /// Whether earlier messages are unanswered. Meanwhile, later ones, such as pongs, may be unread.
    pub fn is_busy(&self) -> bool {
        self.subscription.is_busy() || self.has_held_message()
    }

    /// Whether a message waits for the answer to an earlier one. The transport must not pass another message meanwhile.
    pub fn has_held_message(&self) -> bool {
        self.held_message.is_some()
    }

    /// Takes a client's message. Must not be called while an earlier message waits. Returns whether the message is exempt
    /// from the rate limit on client messages: it is a command that the client may publish, or the session is closing.
    pub fn receive(&mut self, text: &str, out: &mut impl Outbox) -> bool {
        self.last_message = Instant::now();
        if self.close_message.is_some() {
            return true;
        }
        match ClientMessage::parse(text) {
            Ok(content) => {
                let is_command =
                    matches!(content, ClientMessage::Publish { .. }) && self.can_publish();
                let bytes = text.len();
                self.carry_out(Message { content, bytes }, out);
                is_command
            }
            Err(error) => {
                let id = match error {
                    ClientMessageError::InexactNumber(_) => ClientMessage::id_of(text),
                    _ => None,
                };
                self.reject_message(id, (error.code(), None), error.to_string(), out);
                false
            }
        }
    }

    /// Continues with a message that could not be answered at once. Returns pending while a subject is looked up; no other
    /// message may be passed meanwhile. Otherwise returns whether there was anything to do.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut impl Outbox) -> Poll<bool> {
        let Some(pending) = &mut self.pending else {
            return Poll::Ready(false);
        };
        let Poll::Ready(missing) = pending.lookup.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        if let Some(pending) = self.pending.take() {
            self.subscribe(*pending, missing, out);
        }
        Poll::Ready(true)
    }

    /// Carries out the waiting message, unless it must still wait. Returns whether one was carried out.
    pub fn resume(&mut self, out: &mut impl Outbox) -> bool {
        match self.held_message.take() {
            Some(message) if self.must_wait(&message) => {
                self.held_message = Some(message);
                false
            }
            Some(message) => {
                self.carry_out(*message, out);
                true
            }
            None => false,
        }
    }

    /// Whether a message must wait for the answers to earlier ones.
    fn must_wait(&self, message: &Message) -> bool {
        match message.content {
            ClientMessage::Subscribe { .. } | ClientMessage::Unsubscribe { .. } => {
                self.subscription.is_busy()
            }
            ClientMessage::Publish { .. } => {
                let publishing = self.publishing.as_ref();
                publishing.is_some_and(|publishing| !publishing.has_room())
            }
            _ => false,
        }
    }

    /// Sends deliveries while there is room. Returns whether there were any.
    pub fn poll_deliveries(&mut self, cx: &mut Context<'_>, out: &mut impl Outbox) -> bool {
        self.poll_deliveries_at(cx, Instant::now(), out)
    }

    /// Like [`poll_deliveries`](Session::poll_deliveries), with the current time.
    pub(crate) fn poll_deliveries_at(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        out: &mut impl Outbox,
    ) -> bool {
        let mut any = false;
        // Check even if there is no room: a client whose credential has expired must not receive what is still unsent.
        self.subscription.end_if_expired_by(now);
        while self.ended.is_none() && self.close_message.is_none() && out.has_room() {
            if let Some(event) = self.gathering.next_announced() {
                out.send(Outgoing::Event(&event));
                any = true;
                continue;
            }
            let Poll::Ready(item) = self.subscription.poll_item(cx, now) else {
                break;
            };
            any = true;
            match item {
                Some(Item::Event(event)) => self.gathering.take(event, out),
                Some(Item::Control(control)) => self.take_control(*control, out),
                // The last delivery is `closing`, which ends the session.
                None => break,
            }
        }
        any
    }

    /// Lends the client's sink to those who offer events, if nothing but live events can follow for now. These must be passed to the
    /// lease. Before anything else is done, [`Session::take_back`] must be called.
    pub(crate) fn lend(
        &mut self,
        cx: &mut Context<'_>,
        sink: &Arc<impl Sink + 'static>,
    ) -> Option<Lease> {
        let is_quiet = self.ended.is_none()
            && self.close_message.is_none()
            && self.pending.is_none()
            && self.held_message.is_none()
            && self.gathering.is_over();
        is_quiet.then(|| self.subscription.lend(cx, sink)).flatten()
    }

    /// Takes the client's sink back, and continues after the events that were written to it.
    pub(crate) fn take_back(&mut self, lease: Lease) {
        self.subscription.take_back(lease);
    }

    /// Sends the answers to commands while there is room. When all are sent, sends the close message that waits for them.
    /// Returns whether anything was sent.
    pub fn poll_published(&mut self, cx: &mut Context<'_>, out: &mut impl Outbox) -> bool {
        let mut any = false;
        while self.ended.is_none() && out.has_room() {
            let answer = match &mut self.publishing {
                Some(publishing) => publishing.poll_answer(cx, &self.access),
                None => Poll::Ready(None),
            };
            match answer {
                Poll::Ready(Some(json)) => out.send(Outgoing::Json(&json)),
                Poll::Ready(None) => return self.send_close_message(out) || any,
                Poll::Pending => return any,
            }
            any = true;
        }
        any
    }

    /// Sends a `heartbeat` if the client has been silent for too long, and the held close message when its time limit is
    /// reached. Returns when to call this again.
    pub fn poll_timers(&mut self, now: Instant, out: &mut impl Outbox) -> Option<Instant> {
        if let Some(close_message) = &self.close_message {
            let until = close_message.1;
            if now < until {
                return Some(until);
            }
            self.send_close_message(out);
            return None;
        }
        if !self.dialect.idle_heartbeat {
            return None;
        }
        let silence = Duration::from_secs(self.service.settings().idle_heartbeat_secs.get());
        if self.last_message + silence <= now {
            let cursor = self.resume_cursor();
            let at = Utc::now();
            out.send(Outgoing::Control(&Control::Heartbeat { cursor, at }));
            self.last_message = now;
        }
        Some(self.last_message + silence)
    }

    /// Sends the client an `error` for a rejected message. `limit` is the setting whose limit was reached, if any.
    pub fn reject(
        &mut self,
        code: &'static str,
        limit: Option<&'static str>,
        message: impl Into<String>,
        out: &mut impl Outbox,
    ) {
        self.reject_message(None, (code, limit), message.into(), out);
    }

    /// Rejects a message, with its `id` if it has one.
    fn reject_message(
        &self,
        id: Option<Value>,
        (code, limit): (&'static str, Option<&'static str>),
        message: String,
        out: &mut impl Outbox,
    ) {
        self.note(code, limit);
        let error = Control::Error {
            code,
            message,
            channels: Vec::new(),
            id,
        };
        out.send(Outgoing::Control(&error));
    }

    /// Records a rejected message in the metrics and the log.
    pub fn note(&self, code: &'static str, limit: Option<&'static str>) {
        self.service.note_rejection(Some(&self.source), code, limit);
    }

    /// Ends the session and sends the client the reason.
    pub fn close(&mut self, close: Close, out: &mut impl Outbox) {
        out.send(Outgoing::Control(&self.subscription.closing(close)));
        self.end(close);
    }

    /// Records why the transport ends the session, for the log. Does not end the session.
    pub fn set_end_reason(&mut self, reason: &'static str) {
        self.subscription.set_end_reason(reason);
    }

    fn end(&mut self, close: Close) {
        self.subscription.set_end_reason(close.reason());
        self.ended = Some(close);
    }

    /// Rejects a message because a credential is not valid or not sufficient.
    fn deny(&mut self, code: &'static str, reason: &str, out: &mut impl Outbox) {
        self.deny_message(None, code, reason, out);
    }

    /// Rejects a message, with its `id` if it has one, because a credential is not valid or not sufficient.
    fn deny_message(
        &mut self,
        id: Option<Value>,
        code: &'static str,
        reason: &str,
        out: &mut impl Outbox,
    ) {
        self.service.note_denial(Some(&self.source), code, reason);
        let error = Control::Error {
            code,
            message: reason.to_owned(),
            channels: Vec::new(),
            id,
        };
        out.send(Outgoing::Control(&error));
    }

    fn take_control(&mut self, mut control: Control, out: &mut impl Outbox) {
        if let Control::Heartbeat { cursor, .. } = &mut control {
            // No channel is subscribed yet, so nothing after `from` has been read.
            *cursor = cursor.or_else(|| self.from.as_deref().copied());
        }
        match &control {
            // The gathered events will soon be sent and keep the connection alive. A cursor must not overtake them.
            Control::Heartbeat { .. } if self.gathering.holds_any() => return,
            Control::Heartbeat { cursor, .. } => {
                // A `heartbeat` shows the client that the connection works, but not the server. The answer to a ping
                // shows it to the server.
                out.send(Outgoing::Ping(*cursor));
                if !self.dialect.heartbeat_message {
                    return;
                }
            }
            Control::Ready(_) => {
                self.gathering.announce(out);
                if !self.dialect.sends_ready {
                    return;
                }
            }
            Control::Subscribed { .. } | Control::Unsubscribed { .. }
                if !self.dialect.acknowledges =>
            {
                return;
            }
            // The cursor of an acknowledgement assumes that the client has received all gathered events.
            Control::Subscribed { .. } | Control::Unsubscribed { .. } => self.gathering.flush(out),
            Control::Reset(_) => self.gathering = Gathering::new(self.dialect.announces_snapshot),
            _ => {}
        }
        match (control, &mut self.publishing) {
            // What is being committed is answered first. The other commands have no effect.
            (control @ Control::Closing { .. }, Some(publishing)) => {
                publishing.stop();
                self.held_message = None;
                let until = Instant::now() + PIPELINE_END_WAIT;
                self.close_message = Some(Box::new((control, until)));
            }
            (control, _) => self.send_control(&control, out),
        }
    }

    fn send_control(&mut self, control: &Control, out: &mut impl Outbox) {
        out.send(Outgoing::Control(control));
        if let Control::Closing { close, .. } = control {
            self.end(*close);
        }
    }

    /// Sends the held close message, if there is one. Returns whether there was.
    fn send_close_message(&mut self, out: &mut impl Outbox) -> bool {
        let Some((control, _)) = self.close_message.take().map(|boxed| *boxed) else {
            return false;
        };
        self.send_control(&control, out);
        true
    }

    fn carry_out(&mut self, message: Message, out: &mut impl Outbox) {
        if self.must_wait(&message) {
            self.held_message = Some(Box::new(message));
            return;
        }
        let Message { content, bytes } = message;
        match content {
            ClientMessage::BarePing => match self.dialect.bare_ping {
                BarePing::Pong => {
                    let pong = Control::Pong { timestamp: None };
                    out.send(Outgoing::Control(&pong));
                }
                BarePing::BarePong => out.send(Outgoing::BarePong),
                BarePing::Error => {
                    let error = ClientMessageError::Malformed;
                    self.reject(error.code(), None, error.to_string(), out);
                }
            },
            ClientMessage::Ping { timestamp } => {
                out.send(Outgoing::Control(&Control::Pong { timestamp }));
            }
            ClientMessage::Subscribe {
                channels,
                cursor,
                asked,
            } => self.look_up(channels, cursor, asked, out),
            ClientMessage::Unsubscribe { channels, asked } => {
                let asked = self.acknowledged(asked);
                self.subscription.unsubscribe(&channels, asked);
            }
            ClientMessage::Auth { token } => self.renew(token.reveal(), out),
            ClientMessage::Publish { id, command } => self.publish(id, command, bytes, out),
        }
    }

    /// Passes a command on, if the endpoint and the credential allow it.
    fn publish(
        &mut self,
        id: Option<Value>,
        command: Map<String, Value>,
        bytes: usize,
        out: &mut impl Outbox,
    ) {
        let Some(publishing) = &mut self.publishing else {
            let error = ClientMessageError::UnknownType;
            return self.reject(error.code(), None, error.to_string(), out);
        };
        match self.access.require(Role::Worker) {
            Ok(()) => publishing.publish(&self.access, id, command, bytes),
            Err(error) => self.deny_message(id, "forbidden", &error.to_string(), out),
        }
    }

    /// Checks the limits and permissions of a `subscribe` at once, and starts to look up whether its subjects exist.
    fn look_up(
        &mut self,
        channels: Vec<Channel>,
        cursor: Option<Cursor>,
        asked: Map<String, Value>,
        out: &mut impl Outbox,
    ) {
        let scope = self.subscription.scope();
        let school = scope.school;
        let max_channels = self.service.settings().channels_per_connection.get();
        let present = scope.channels();
        let added = channels
            .iter()
            .filter(|channel| !present.contains(channel))
            .count();
        if present.len() + added > max_channels {
            let message = format!(
                "with these `channels`, this connection would have {} channels; at most {max_channels} are accepted",
                present.len() + added
            );
            let limit = Some("channels_per_connection");
            return self.reject("too_many_channels", limit, message, out);
        }
        if let Some((channel, error)) = uncovered(&self.access, school, &channels) {
            return match error {
                AuthError::NotFound => self.not_found(std::slice::from_ref(channel), out),
                _ => self.deny("forbidden", &error.to_string(), out),
            };
        }
        let asked = self.acknowledged(asked);
        let service = Arc::clone(&self.service);
        let wanted = channels.clone();
        self.pending = Some(Box::new(PendingSubscribe {
            lookup: Box::pin(async move { service.missing(school, &wanted).await }),
            channels,
            cursor,
            asked,
        }));
    }

    /// Subscribes to all requested channels. Reports those that do not exist yet; the client receives them once they do.
    fn subscribe(
        &mut self,
        pending: PendingSubscribe,
        missing: Result<Vec<Channel>, StoreError>,
        out: &mut impl Outbox,
    ) {
        match missing {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => self.not_found(&missing, out),
            Err(error) => {
                tracing::error!(%error, "the subjects of a `subscribe` could not be looked up");
                let message = "The server cannot look up these channels now; try again";
                return self.reject("unavailable", None, message, out);
            }
        }
        let from = match pending.channels.is_empty() {
            true => None,
            false => pending
                .cursor
                .or_else(|| self.from.take().map(|from| *from)),
        };
        let scope = self.subscription.scope();
        let wide = self
            .dialect
            .receives_acknowledgements(&self.access, scope.school);
        let present = scope.channels();
        let repeated = pending
            .channels
            .iter()
            .filter(|channel| present.contains(channel));
        let repeated: Vec<Channel> = repeated.cloned().collect();
        let wide = wide.then_some(characteristic::KIND);
        self.subscription
            .subscribe(pending.channels, from, pending.asked, wide);
        if !self.dialect.acknowledges && !repeated.is_empty() {
            // Without an acknowledgement, the current state is the answer.
            self.subscription.resend_state(repeated);
        }
    }

    /// Returns the fields of the request as the acknowledgement repeats them.
    fn acknowledged(&self, asked: Map<String, Value>) -> Map<String, Value> {
        match self.dialect.numeric_ids {
            Some(numeric) => with_ids(asked, numeric),
            None => asked,
        }
    }

    fn not_found(&mut self, missing: &[Channel], out: &mut impl Outbox) {
        const CODE: &str = "not_found";
        let channels: Vec<String> = missing.iter().map(Channel::to_string).collect();
        let message = match missing {
            [Channel::Subject(kind, id)] => kind::not_found(*kind, id.as_str()).to_string(),
            _ => format!("Not found: {}", channels.join(", ")),
        };
        self.note(CODE, None);
        let error = Control::Error {
            code: CODE,
            message,
            channels,
            id: None,
        };
        out.send(Outgoing::Control(&error));
    }

    /// Continues with a new token, if it covers everything that the connection is subscribed to.
    fn renew(&mut self, token: &str, out: &mut impl Outbox) {
        const CODE: &str = "unauthorized";
        let scope = self.subscription.scope();
        let school = scope.school;
        match self.service.renewed(token, scope) {
            Ok(fresh) => {
                let expires_at = fresh.expires_at;
                self.subscription.renew(expires_at);
                if !self.dialect.receives_acknowledgements(&fresh, school) {
                    self.subscription.unsubscribe_wide();
                } else if self.from.is_none() {
                    self.subscription.subscribe_wide(characteristic::KIND);
                }
                self.access = fresh;
                out.send(Outgoing::Control(&Control::Authenticated { expires_at }));
            }
            Err(AuthError::NotFound) => {
                let reason = "the token does not cover the school of this stream";
                self.deny(CODE, reason, out);
            }
            Err(error) => self.deny(CODE, &error.to_string(), out),
        }
    }
}

/// Returns the request's fields with ids converted to numbers where possible, or to strings.
fn with_ids(asked: Map<String, Value>, numeric: bool) -> Map<String, Value> {
    fn with_id(id: Value, numeric: bool) -> Value {
        match id {
            Value::Array(ids) => ids.into_iter().map(|id| with_id(id, numeric)).collect(),
            Value::String(text) if numeric => match wire::numeric_id(&text) {
                Some(number) => number.into(),
                None => text.into(),
            },
            Value::Number(number) if !numeric => number.to_string().into(),
            other => other,
        }
    }
    asked
        .into_iter()
        .map(|(field, id)| (field, with_id(id, numeric)))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_acknowledgement_has_ids_of_the_type_that_the_client_wants() {
        let asked = |ids: Value| {
            let Value::Object(asked) = json!({ "device_ids": ids }) else {
                unreachable!("it is an object")
            };
            asked
        };
        let mixed = json!(["7", 8, "door", "007"]);
        for (numeric, expected) in [
            (true, json!([7, 8, "door", "007"])),
            (false, json!(["7", "8", "door", "007"])),
        ] {
            assert_eq!(with_ids(asked(mixed.clone()), numeric), asked(expected));
        }
    }
}
