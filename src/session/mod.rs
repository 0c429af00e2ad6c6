//! A conversation with a client, without I/O: messages in, messages out.
//!
//! ```text
//! transport ──a client's message──▶ receive ─▶ answer: at once, or poll_answer (a subject is looked up,
//!     ▲                                         │      or what was asked before is still being told)
//!     └──── Outbox::send ◀── poll_deliveries ◀──┴─ Subscription
//! ```
//!
//! A two-way transport reads its client's messages and gives them to [`Session::receive`] one by one; what there is to be told
//! goes into its [`Outbox`], in order, while that has room. WebSocket is one such transport; another would add its own
//! framing, signs of life and back pressure, and nothing of what is here. A [`Dialect`] says in what endpoints differ.

mod dialect;
mod gathering;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::Utc;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::Instant;

pub use self::dialect::{BarePing, Dialect};
use self::gathering::Gathering;
use crate::app::SubscribeService;
use crate::auth::{Access, AuthError};
use crate::event::Event;
use crate::id::{Channel, Cursor};
use crate::kind::{self, characteristic};
use crate::log::StoreError;
use crate::refusals::RequestSource;
use crate::subscribe::{Delivery, Subscription};
use crate::wire::client::{ClientMessage, ClientMessageError};
use crate::wire::{self, Close, Control};

/// Something for the client.
pub enum Outgoing<'a> {
    /// An event or a snapshot.
    Event(&'a Arc<Event>),
    /// Any other message.
    Control(&'a Control),
    /// A message that is written already: `initial_state`.
    Json(&'a [u8]),
    /// A bare `pong`, in the place of a message.
    BarePong,
    /// A request for a sign of life, which carries the cursor, if there is one.
    Ping(Option<Cursor>),
}

/// Where a transport takes what is to be told.
pub trait Outbox {
    /// Whether more events may be told. Answers, of which each message has few, are taken at any time.
    fn has_room(&self) -> bool;

    /// Takes what is next.
    fn send(&mut self, outgoing: Outgoing<'_>);
}

/// How a conversation begins.
pub struct Beginning {
    /// Where the client is, for the log.
    pub source: RequestSource,
    /// What it may do.
    pub access: Access,
    /// What it listens to.
    pub subscription: Subscription,
    /// Where the first `subscribe` that does not say itself goes on.
    pub from: Option<Cursor>,
}

/// A `subscribe` whose subjects are being looked up.
struct Asking {
    looking: BoxFuture<'static, Result<Vec<Channel>, StoreError>>,
    channels: Vec<Channel>,
    cursor: Option<Cursor>,
    asked: Map<String, Value>,
}

/// See the module's page.
pub struct Session {
    service: Arc<SubscribeService>,
    dialect: Dialect,
    source: RequestSource,
    access: Access,
    subscription: Subscription,
    from: Option<Cursor>,
    asking: Option<Box<Asking>>,
    /// A `subscribe` or `unsubscribe` that waits until the one before it is acknowledged.
    parked: Option<ClientMessage>,
    last_message: Instant,
    gathering: Gathering,
    /// How it ended, once it did: nothing is told after that.
    ended: Option<Close>,
}

impl Session {
    /// Begins a conversation.
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
            from,
            asking: None,
            parked: None,
            last_message: Instant::now(),
            ended: None,
        }
    }

    /// How the conversation ended, if it did.
    pub fn ended(&self) -> Option<Close> {
        self.ended
    }

    /// Whether there is enough to be told before more is asked for.
    pub fn is_busy(&self) -> bool {
        self.subscription.is_busy()
    }

    /// Whether a message waits until what was asked before it is told. No other may be given meanwhile.
    pub fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Takes a client's message, when none before it waits.
    pub fn receive(&mut self, text: &str, out: &mut impl Outbox) {
        self.last_message = Instant::now();
        match ClientMessage::parse(text) {
            Ok(message) => self.carry_out(message, out),
            Err(error) => self.refuse(error.code(), None, error.to_string(), out),
        }
    }

    /// Goes on with a message that could not be answered at once. Ready with whether there was anything to be done; pending
    /// while a subject is looked up, when no other message may be given.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>, out: &mut impl Outbox) -> Poll<bool> {
        let Some(asking) = &mut self.asking else {
            return Poll::Ready(false);
        };
        let Poll::Ready(missing) = asking.looking.as_mut().poll(cx) else {
            return Poll::Pending;
        };
        if let Some(asking) = self.asking.take() {
            self.subscribe(*asking, missing, out);
        }
        Poll::Ready(true)
    }

    /// Carries out the message that waits, if it need not wait any more. True if it did.
    pub fn resume(&mut self, out: &mut impl Outbox) -> bool {
        if self.is_busy() {
            return false;
        }
        let Some(message) = self.parked.take() else {
            return false;
        };
        self.carry_out(message, out);
        true
    }

    /// Tells what there is to be told while there is room. True if there was anything.
    pub fn poll_deliveries(&mut self, cx: &mut Context<'_>, out: &mut impl Outbox) -> bool {
        let mut any = false;
        // Whether there is room or not: what is not written yet is not for an ended credential.
        self.subscription.end_if_expired();
        while self.ended.is_none() && out.has_room() {
            if let Some(event) = self.gathering.next_announced() {
                out.send(Outgoing::Event(&event));
                any = true;
                continue;
            }
            let Poll::Ready(delivery) = Pin::new(&mut self.subscription).poll_next(cx) else {
                break;
            };
            any = true;
            match delivery {
                Some(Delivery::Event(event)) => self.gathering.take(event, out),
                Some(Delivery::Control(control)) => self.take_control(control, out),
                // The last delivery is `closing`, which ends the conversation.
                None => break,
            }
        }
        any
    }

    /// Looks at the clock: a client that has been silent for long may be due a `heartbeat`. Returns when to look again.
    pub fn look_at_clock(&mut self, now: Instant, out: &mut impl Outbox) -> Option<Instant> {
        if !self.dialect.idle_heartbeat {
            return None;
        }
        let silence = Duration::from_secs(self.service.settings().idle_heartbeat_secs);
        if self.last_message + silence <= now {
            let cursor = self.subscription.resume_cursor().or(self.from);
            let at = Utc::now();
            out.send(Outgoing::Control(&Control::Heartbeat { cursor, at }));
            self.last_message = now;
        }
        Some(self.last_message + silence)
    }

    /// Tells the client that its message is refused: because of a setting, if one is named.
    pub fn refuse(
        &mut self,
        code: &'static str,
        limit: Option<&'static str>,
        message: impl Into<String>,
        out: &mut impl Outbox,
    ) {
        self.note(code, limit);
        let error = Control::Error {
            code,
            message: message.into(),
            channels: Vec::new(),
        };
        out.send(Outgoing::Control(&error));
    }

    /// Notes, for figures and log, that a message was refused.
    pub fn note(&self, code: &'static str, limit: Option<&'static str>) {
        self.service.note_refusal(Some(&self.source), code, limit);
    }

    /// Ends the conversation: the client is told why.
    pub fn close(&mut self, close: Close, out: &mut impl Outbox) {
        out.send(Outgoing::Control(&self.subscription.closing(close)));
        self.end(close);
    }

    /// Notes, for the log, why the transport lets go of the conversation.
    pub fn ends(&mut self, reason: &'static str) {
        self.subscription.ends(reason);
    }

    fn end(&mut self, close: Close) {
        self.subscription.ends(close.reason());
        self.ended = Some(close);
    }

    /// The credential does not reach so far, or is none.
    fn deny(&mut self, code: &'static str, reason: &str, out: &mut impl Outbox) {
        self.service.note_denial(Some(&self.source), code, reason);
        let error = Control::Error {
            code,
            message: reason.to_owned(),
            channels: Vec::new(),
        };
        out.send(Outgoing::Control(&error));
    }

    fn take_control(&mut self, mut control: Control, out: &mut impl Outbox) {
        if let Control::Heartbeat { cursor, .. } = &mut control {
            // What is not subscribed to yet has not been read either.
            *cursor = cursor.or(self.from);
        }
        match &control {
            // What is gathered will give a sign of life soon, and no cursor may go before it.
            Control::Heartbeat { .. } if self.gathering.holds_any() => return,
            Control::Heartbeat { cursor, .. } => {
                // A message alone would show the client that we are alive, but not show us that the client is.
                out.send(Outgoing::Ping(*cursor));
                if !self.dialect.heartbeat_message {
                    return;
                }
            }
            Control::Ready(_) => {
                self.gathering.announce(out);
                if !self.dialect.tells_ready {
                    return;
                }
            }
            Control::Subscribed { .. } | Control::Unsubscribed { .. }
                if !self.dialect.acknowledges =>
            {
                return;
            }
            // Its cursor is that of a reader who has had all that is gathered.
            Control::Subscribed { .. } | Control::Unsubscribed { .. } => self.gathering.flush(out),
            Control::Reset(_) => self.gathering = Gathering::new(self.dialect.announces_snapshot),
            _ => {}
        }
        out.send(Outgoing::Control(&control));
        if let Control::Closing { close, .. } = control {
            self.end(close);
        }
    }

    fn carry_out(&mut self, message: ClientMessage, out: &mut impl Outbox) {
        match message {
            ClientMessage::Subscribe { .. } | ClientMessage::Unsubscribe { .. }
                if self.is_busy() =>
            {
                self.parked = Some(message);
            }
            ClientMessage::BarePing => match self.dialect.bare_ping {
                BarePing::Pong => {
                    let pong = Control::Pong { timestamp: None };
                    out.send(Outgoing::Control(&pong));
                }
                BarePing::BarePong => out.send(Outgoing::BarePong),
                BarePing::Error => {
                    let error = ClientMessageError::Malformed;
                    self.refuse(error.code(), None, error.to_string(), out);
                }
            },
            ClientMessage::Ping { timestamp } => {
                out.send(Outgoing::Control(&Control::Pong { timestamp }));
            }
            ClientMessage::Subscribe {
                channels,
                cursor,
                asked,
            } => self.ask(channels, cursor, asked, out),
            ClientMessage::Unsubscribe { channels, asked } => {
                let asked = self.acknowledged(asked);
                self.subscription.unsubscribe(&channels, asked);
            }
            ClientMessage::Auth { token } => self.renew(&token, out),
        }
    }

    /// Checks what may be heard at once, and begins to look whether it exists.
    fn ask(
        &mut self,
        channels: Vec<Channel>,
        cursor: Option<Cursor>,
        asked: Map<String, Value>,
        out: &mut impl Outbox,
    ) {
        let scope = self.subscription.scope();
        let school = scope.school;
        let most = self.service.settings().channels_per_connection;
        let heard = scope.channels();
        let added = channels.iter().filter(|own| !heard.contains(own)).count();
        if heard.len() + added > most {
            let message = format!("A connection has at most {most} channels");
            let limit = Some("channels_per_connection");
            return self.refuse("too_many_channels", limit, message, out);
        }
        let refused = channels
            .iter()
            .find_map(|channel| Some((channel, self.access.reach(school, channel).err()?)));
        if let Some((channel, error)) = refused {
            return match error {
                AuthError::NotFound => self.not_found(std::slice::from_ref(channel), out),
                _ => self.deny("forbidden", &error.to_string(), out),
            };
        }
        let asked = self.acknowledged(asked);
        let service = Arc::clone(&self.service);
        let wanted = channels.clone();
        self.asking = Some(Box::new(Asking {
            looking: Box::pin(async move { service.missing(school, &wanted).await }),
            channels,
            cursor,
            asked,
        }));
    }

    /// Listens to all that was asked for. What does not exist yet is named, and heard from its creation on.
    fn subscribe(
        &mut self,
        asking: Asking,
        missing: Result<Vec<Channel>, StoreError>,
        out: &mut impl Outbox,
    ) {
        match missing {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => self.not_found(&missing, out),
            Err(error) => {
                tracing::error!(%error, "a subscription could not be looked up");
                let message = "The server cannot do this now";
                return self.refuse("unavailable", None, message, out);
            }
        }
        let from = match asking.channels.is_empty() {
            true => None,
            false => asking.cursor.or_else(|| self.from.take()),
        };
        let scope = self.subscription.scope();
        let wide = self
            .dialect
            .hears_acknowledgements(&self.access, scope.school);
        let heard = scope.channels();
        let again = asking.channels.iter().filter(|own| heard.contains(own));
        let again: Vec<Channel> = again.cloned().collect();
        let wide = wide.then_some(characteristic::KIND);
        self.subscription
            .subscribe(asking.channels, from, asking.asked, wide);
        if !self.dialect.acknowledges && !again.is_empty() {
            // Without an acknowledgement, the state itself is the answer.
            self.subscription.tell_again(again);
        }
    }

    /// What was asked, in the words of its acknowledgement.
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
        };
        out.send(Outgoing::Control(&error));
    }

    /// Goes on with a fresh token, if it reaches as far as the old one is used.
    fn renew(&mut self, token: &str, out: &mut impl Outbox) {
        const CODE: &str = "unauthorized";
        let scope = self.subscription.scope();
        let school = scope.school;
        match self.service.renewed(token, scope) {
            Ok(fresh) => {
                let expires_at = fresh.expires_at;
                self.subscription.renew(expires_at);
                if !self.dialect.hears_acknowledgements(&fresh, school) {
                    self.subscription.leave_wide();
                } else if self.from.is_none() {
                    self.subscription.hear_wide(characteristic::KIND);
                }
                self.access = fresh;
                out.send(Outgoing::Control(&Control::Authenticated { expires_at }));
            }
            Err(AuthError::NotFound) => {
                let reason = "the token does not reach the school of this stream";
                self.deny(CODE, reason, out);
            }
            Err(error) => self.deny(CODE, &error.to_string(), out),
        }
    }
}

/// What a client asked for with its ids as numbers, as far as they can be, or as texts.
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
