//! A WebSocket connection's life: deliveries out, client messages in, signs of life, the farewell.
//!
//! One hand-written future drives everything, so that an idle connection is one small task. It reads only
//! while there is room for answers, so a client that asks and does not listen is slowed, not buffered.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::Utc;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::time::{Instant, Sleep, sleep};

use super::arrivals::Arrivals;
use super::dialect::{BarePing, Dialect};
use super::hears_acknowledgements;
use super::opening::Opening;
use super::socket::{End, Incoming, Socket};
use crate::auth::{Access, AuthError};
use crate::config::{
    CLOSE_WAIT, INITIAL_STATE_MAX, INITIAL_STATE_MAX_BYTES, WAITING_MESSAGES, WRITE_STALL,
};
use crate::event::Event;
use crate::id::{Channel, Cursor};
use crate::kind::{self, characteristic};
use crate::log::StoreError;
use crate::refusals::RequestSource;
use crate::service::Tidings;
use crate::subscribe::{Delivery, Subscription};
use crate::throttle::Pace;
use crate::wire::client::{ClientMessage, ClientMessageError};
use crate::wire::form::initial_uploads;
use crate::wire::{self, Close, Control, Encoding, Framing};

/// A `subscribe` whose subjects are being looked up.
struct Asking {
    looking: BoxFuture<'static, Result<Vec<Channel>, StoreError>>,
    channels: Vec<Channel>,
    cursor: Option<Cursor>,
    asked: Map<String, Value>,
}

/// A snapshot that is to be announced, as far as it has come.
#[derive(Default)]
struct Gathered {
    events: Vec<Arc<Event>>,
    /// Of their fields.
    bytes: usize,
}

enum Phase {
    Open,
    /// The close frame is queued or sent; its answer is waited for until then.
    Closing(Instant),
    /// The connection below is being shut down.
    Ending,
}

/// See the module's page.
pub(super) struct Session {
    socket: Socket,
    tidings: Arc<Tidings>,
    dialect: Dialect,
    encoding: Encoding,
    live: Option<(Access, Subscription)>,
    /// Where the client is, for the log. Nothing for one that was refused at the start.
    source: Option<RequestSource>,
    asking: Option<Box<Asking>>,
    /// Where the first `subscribe` that does not say itself goes on.
    from: Option<Cursor>,
    /// Messages that came in while one before them is still being answered. Bounded by [`WAITING_MESSAGES`], the size of a
    /// client's message, and one read of the socket.
    waiting: VecDeque<Incoming>,
    /// A `subscribe` or `unsubscribe` that waits until the one before it is acknowledged.
    parked: Option<ClientMessage>,
    phase: Phase,
    last_message: Instant,
    arrivals: Arrivals,
    /// The client has sent too many messages. It is told so once those before that are answered.
    is_too_fast: bool,
    rounds: Pin<Box<Sleep>>,
    /// Bounded by [`INITIAL_STATE_MAX`] and [`INITIAL_STATE_MAX_BYTES`].
    gathered: Option<Gathered>,
    /// What was announced and is told now.
    announced: VecDeque<Arc<Event>>,
}

impl Session {
    pub(super) fn new(
        socket: Socket,
        tidings: Arc<Tidings>,
        dialect: Dialect,
        encoding: Encoding,
        opening: Opening,
    ) -> Session {
        let mut session = Session {
            socket,
            dialect,
            encoding,
            live: None,
            source: None,
            asking: None,
            from: None,
            waiting: Default::default(),
            parked: None,
            phase: Phase::Open,
            last_message: Instant::now(),
            arrivals: Arrivals::new(Pace::of_client_messages(tidings.settings())),
            is_too_fast: false,
            rounds: Box::pin(sleep(Duration::ZERO)),
            gathered: dialect.announces_snapshot.then(Gathered::default),
            announced: VecDeque::new(),
            tidings,
        };
        match opening {
            Opening::Accepted {
                source,
                access,
                subscription,
                from,
            } => {
                session.live = Some((access, subscription));
                session.source = Some(source);
                session.from = from;
            }
            Opening::Refused { error, code, close } => {
                if let Some(message) = error {
                    session.send_control(&Control::Error {
                        code,
                        message,
                        channels: Vec::new(),
                    });
                }
                if close.retry_ms().is_some() {
                    session.say_closing(close);
                }
                session.begin_close(close);
            }
        }
        session
    }

    fn send_control(&mut self, control: &Control) {
        self.socket
            .send(wire::control(control, Framing::WebSocket).into());
    }

    fn say_closing(&mut self, close: Close) {
        let can_return = true;
        let closing = match &self.live {
            Some((_, subscription)) => subscription.closing(close),
            None => Control::Closing { close, can_return },
        };
        self.send_control(&closing);
    }

    fn error(&mut self, code: &'static str, message: impl Into<String>) {
        self.refuse(code, None, message);
    }

    /// The same, because of a setting.
    fn refuse(
        &mut self,
        code: &'static str,
        limit: Option<&'static str>,
        message: impl Into<String>,
    ) {
        self.note(code, limit);
        self.send_control(&Control::Error {
            code,
            message: message.into(),
            channels: Vec::new(),
        });
    }

    fn note(&self, code: &'static str, limit: Option<&'static str>) {
        self.tidings.vitals().refused(code, limit);
        if let Some(source) = &self.source {
            self.tidings.refusals().request(source, code);
        }
    }

    /// The credential does not reach so far, or is none: the log is told why.
    fn deny(&mut self, code: &'static str, reason: &str) {
        self.tidings.vitals().refused(code, None);
        if let Some(source) = &self.source {
            self.tidings.refusals().credential(source, code, reason);
        }
        self.send_control(&Control::Error {
            code,
            message: reason.to_owned(),
            channels: Vec::new(),
        });
    }

    /// The client goes too far: it is told so, and may come back later.
    fn give_up(&mut self, code: &'static str, limit: &'static str, message: &str) {
        self.refuse(code, Some(limit), message);
        self.say_closing(Close::TryAgainLater);
        self.begin_close(Close::TryAgainLater);
    }

    fn begin_close(&mut self, close: Close) {
        self.socket.close(close);
        if let Some((_, subscription)) = &mut self.live {
            subscription.ends(close.reason());
        }
        self.live = None;
        self.asking = None;
        self.waiting.clear();
        // What still comes is read, and ignored.
        self.is_too_fast = false;
        self.parked = None;
        self.gathered = None;
        self.announced.clear();
        self.phase = Phase::Closing(Instant::now() + CLOSE_WAIT);
        self.rounds.as_mut().reset(Instant::now() + CLOSE_WAIT);
    }

    /// Queues deliveries while there is room. True if there were any.
    fn take_deliveries(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        if let Some((_, subscription)) = &mut self.live {
            // Whether there is room or not: what is not written yet is not for an ended credential.
            subscription.end_if_expired();
        }
        while self.socket.has_room() {
            if let Some(event) = self.announced.pop_front() {
                self.send_event(&event);
                any = true;
                continue;
            }
            let Some((_, subscription)) = &mut self.live else {
                break;
            };
            let Poll::Ready(delivery) = Pin::new(subscription).poll_next(cx) else {
                break;
            };
            any = true;
            match delivery {
                Some(Delivery::Event(event)) => self.take_event(event),
                Some(Delivery::Control(control)) => self.take_control(control),
                // The last delivery is `closing`, which has ended the subscription already.
                None => self.live = None,
            }
        }
        any
    }

    fn take_event(&mut self, event: Arc<Event>) {
        if event.snapshot
            && let Some(gathered) = &mut self.gathered
        {
            gathered.bytes += event.draft.fields.len();
            gathered.events.push(event);
            if gathered.events.len() == INITIAL_STATE_MAX
                || gathered.bytes > INITIAL_STATE_MAX_BYTES
            {
                self.announce();
            }
            return;
        }
        self.announce();
        if self.announced.is_empty() {
            self.send_event(&event);
        } else {
            self.announced.push_back(event);
        }
    }

    fn send_event(&mut self, event: &Arc<Event>) {
        self.socket
            .send(Arc::clone(wire::event(event, self.encoding)));
    }

    /// Announces the snapshot that has been gathered, and begins to tell it.
    fn announce(&mut self) {
        let Some(Gathered { events, .. }) = self.gathered.take() else {
            return;
        };
        if let Some(json) = initial_uploads(events.iter().map(|event| &**event)) {
            self.socket.send(wire::text_frame(&json).into());
        }
        self.announced.extend(events);
    }

    /// Sends what has been gathered before anything else is sent. Happens once, as a connection begins.
    fn tell_gathered(&mut self) {
        self.announce();
        while let Some(event) = self.announced.pop_front() {
            self.send_event(&event);
        }
    }

    fn take_control(&mut self, mut control: Control) {
        if let Control::Heartbeat { cursor, .. } = &mut control {
            // What is not subscribed to yet has not been read either.
            *cursor = cursor.or(self.from);
        }
        match &control {
            // What is gathered will give a sign of life soon, and no cursor may go before it.
            Control::Heartbeat { .. }
                if self
                    .gathered
                    .as_ref()
                    .is_some_and(|own| !own.events.is_empty()) =>
            {
                return;
            }
            Control::Heartbeat { cursor, .. } => {
                // A message alone would show the client that we are alive, but not show us that the client is.
                let cursor = cursor.map(|cursor| cursor.to_string());
                self.socket.ping(cursor.unwrap_or_default());
                if !self.dialect.heartbeat_message {
                    return;
                }
            }
            Control::Ready(_) => {
                self.announce();
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
            Control::Subscribed { .. } | Control::Unsubscribed { .. } => self.tell_gathered(),
            Control::Reset(_) => {
                self.gathered = self.dialect.announces_snapshot.then(Gathered::default)
            }
            _ => {}
        }
        self.send_control(&control);
        if let Control::Closing { close, .. } = control {
            self.begin_close(close);
        }
    }

    /// Whether there is enough to be told before more is asked for.
    fn is_busy(&self) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|(_, subscription)| subscription.is_busy())
    }

    /// Answers messages while there is room. True if there were any.
    fn take_messages(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        self.arrivals.may_wait();
        if let Some(asking) = &mut self.asking {
            let Poll::Ready(missing) = asking.looking.as_mut().poll(cx) else {
                return Ok(false);
            };
            if let Some(asking) = self.asking.take() {
                self.subscribe(*asking, missing);
            }
            return Ok(true);
        }
        if !self.socket.has_room_for_answers() {
            return Ok(false);
        }
        if self.parked.is_none()
            && let Some(incoming) = self.waiting.pop_front()
        {
            self.receive(incoming);
            return Ok(true);
        }
        if !self.is_busy()
            && let Some(message) = self.parked.take()
        {
            self.carry_out(message);
            return Ok(true);
        }
        if self.is_too_fast && self.parked.is_none() {
            self.give_up(
                "too_fast",
                "client_messages_per_sec",
                "There are too many messages in too short a time",
            );
            return Ok(true);
        }
        // What is sent behind one that waits is read on: a ping of the protocol is answered at once, and a pong is heard.
        if !self.has_room_to_wait() {
            return Ok(false);
        }
        match self.socket.poll_read(cx) {
            Poll::Ready(Ok(incoming)) => {
                if let Phase::Open = self.phase {
                    self.take_up(incoming);
                    if self.socket.is_left() {
                        // The peer has said goodbye, and the answer is queued: nothing may follow it.
                        self.live = None;
                        self.phase = Phase::Closing(Instant::now() + CLOSE_WAIT);
                        self.rounds.as_mut().reset(Instant::now() + CLOSE_WAIT);
                    }
                }
                Ok(true)
            }
            Poll::Ready(Err(end)) => Err(end),
            Poll::Pending => {
                self.arrivals.are_read();
                Ok(false)
            }
        }
    }

    /// Lets messages wait for their answers, up to one too many.
    fn take_up(&mut self, incoming: Vec<Incoming>) {
        // Pings and pongs are the protocol's own.
        let said = incoming.into_iter();
        for own in said.filter(|own| !matches!(own, Incoming::Control)) {
            self.is_too_fast = self.is_too_fast || !self.arrivals.count();
            if self.is_too_fast {
                return;
            }
            self.waiting.push_back(own);
        }
    }

    /// Whether more may be read than is carried out.
    fn has_room_to_wait(&self) -> bool {
        let bytes = |own: &Incoming| match own {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(bytes) => bytes.len(),
            Incoming::Control => 0,
        };
        let most = self.tidings.settings().client_message_limit_bytes;
        !self.is_too_fast
            && self.waiting.len() < WAITING_MESSAGES
            && self.waiting.iter().map(bytes).sum::<usize>() < most
    }

    fn receive(&mut self, incoming: Incoming) {
        let text = match incoming {
            Incoming::Text(text) => text,
            Incoming::Binary(_) => return self.error("not_text", "Messages are text frames"),
            Incoming::Control => return,
        };
        self.last_message = Instant::now();
        match ClientMessage::parse(&text) {
            Ok(message) => self.carry_out(message),
            Err(error) => self.error(error.code(), error.to_string()),
        }
    }

    fn carry_out(&mut self, message: ClientMessage) {
        match message {
            ClientMessage::Subscribe { .. } | ClientMessage::Unsubscribe { .. }
                if self.is_busy() =>
            {
                self.parked = Some(message);
            }
            ClientMessage::BarePing => match self.dialect.bare_ping {
                BarePing::Pong => self.send_control(&Control::Pong { timestamp: None }),
                BarePing::BarePong => self.socket.send(wire::text_frame(b"pong").into()),
                BarePing::Error => {
                    let error = ClientMessageError::Malformed;
                    self.error(error.code(), error.to_string());
                }
            },
            ClientMessage::Ping { timestamp } => self.send_control(&Control::Pong { timestamp }),
            ClientMessage::Subscribe {
                channels,
                cursor,
                asked,
            } => self.ask(channels, cursor, asked),
            ClientMessage::Unsubscribe { channels, asked } => {
                let asked = self.acknowledged(asked);
                if let Some((_, subscription)) = &mut self.live {
                    subscription.unsubscribe(&channels, asked);
                }
            }
            ClientMessage::Auth { token } => self.renew(&token),
        }
    }

    /// Checks what may be heard at once, and begins to look whether it exists.
    fn ask(&mut self, channels: Vec<Channel>, cursor: Option<Cursor>, asked: Map<String, Value>) {
        let Some((access, subscription)) = &self.live else {
            return;
        };
        let scope = subscription.scope();
        let school = scope.school;
        let most = self.tidings.settings().channels_per_connection;
        let added = channels
            .iter()
            .filter(|channel| !scope.channels().contains(channel))
            .count();
        if scope.channels().len() + added > most {
            return self.refuse(
                "too_many_channels",
                Some("channels_per_connection"),
                format!("A connection has at most {most} channels"),
            );
        }
        let refused = channels
            .iter()
            .find_map(|channel| Some((channel, access.reach(school, channel).err()?)));
        if let Some((channel, error)) = refused {
            return match error {
                AuthError::NotFound => self.not_found(vec![channel.clone()]),
                _ => self.deny("forbidden", &error.to_string()),
            };
        }
        let asked = self.acknowledged(asked);
        let tidings = Arc::clone(&self.tidings);
        let wanted = channels.clone();
        let looking = Box::pin(async move {
            let mut missing = Vec::new();
            for channel in wanted {
                if let Channel::Subject(kind, id) = &channel
                    && !tidings.store().exists(school, *kind, id.clone()).await?
                {
                    missing.push(channel);
                }
            }
            Ok(missing)
        });
        self.asking = Some(Box::new(Asking {
            looking,
            channels,
            cursor,
            asked,
        }));
    }

    /// Listens to all that was asked for. What does not exist yet is named, and heard from its creation on.
    fn subscribe(&mut self, asking: Asking, missing: Result<Vec<Channel>, StoreError>) {
        match missing {
            Ok(missing) => {
                if !missing.is_empty() {
                    self.not_found(missing);
                }
                let Some((access, subscription)) = &mut self.live else {
                    return;
                };
                let from = match asking.channels.is_empty() {
                    true => None,
                    false => asking.cursor.or_else(|| self.from.take()),
                };
                let school = subscription.scope().school;
                let wide = hears_acknowledgements(&self.dialect, access, school)
                    .then_some(characteristic::KIND);
                let heard = subscription.scope().channels();
                let again: Vec<Channel> = asking
                    .channels
                    .iter()
                    .filter(|channel| heard.contains(channel))
                    .cloned()
                    .collect();
                subscription.subscribe(asking.channels, from, asking.asked, wide);
                if !self.dialect.acknowledges && !again.is_empty() {
                    // Without an acknowledgement, the state itself is the answer.
                    subscription.tell_again(again);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a subscription could not be looked up");
                self.error("unavailable", "The server cannot do this now");
            }
        }
    }

    /// What was asked, in the words of its acknowledgement.
    fn acknowledged(&self, asked: Map<String, Value>) -> Map<String, Value> {
        match self.dialect.numeric_ids {
            Some(numeric) => with_ids(asked, numeric),
            None => asked,
        }
    }

    fn not_found(&mut self, missing: Vec<Channel>) {
        let channels: Vec<String> = missing.iter().map(Channel::to_string).collect();
        let message = match missing.as_slice() {
            [Channel::Subject(kind, id)] => kind::not_found(*kind, id.as_str()).to_string(),
            _ => format!("Not found: {}", channels.join(", ")),
        };
        self.note("not_found", None);
        self.send_control(&Control::Error {
            code: "not_found",
            message,
            channels,
        });
    }

    /// Goes on with a fresh token, if it reaches as far as the old one is used.
    fn renew(&mut self, token: &str) {
        let Some((access, subscription)) = &mut self.live else {
            return;
        };
        let scope = subscription.scope();
        let fresh = self.tidings.keys().verify(token).and_then(|fresh| {
            fresh.school(Some(scope.school))?;
            scope
                .channels()
                .iter()
                .try_for_each(|channel| fresh.reach(scope.school, channel))?;
            Ok(fresh)
        });
        match fresh {
            Ok(fresh) => {
                let expires_at = fresh.expires_at;
                subscription.renew(expires_at);
                let school = subscription.scope().school;
                let hears = hears_acknowledgements(&self.dialect, &fresh, school);
                if !hears {
                    subscription.leave_wide();
                } else if self.from.is_none() {
                    subscription.hear_wide(characteristic::KIND);
                }
                *access = fresh;
                self.send_control(&Control::Authenticated { expires_at });
            }
            Err(AuthError::NotFound) => {
                let reason = "the token does not reach the school of this stream";
                self.deny("unauthorized", reason);
            }
            Err(error) => self.deny("unauthorized", &error.to_string()),
        }
    }

    /// Looks at the clock. False if the connection is to be given up.
    fn look_at_clock(&mut self, cx: &mut Context<'_>) -> bool {
        while self.rounds.as_mut().poll(cx).is_ready() {
            let settings = self.tidings.settings();
            let heartbeat = settings.heartbeat();
            let now = Instant::now();
            if let Phase::Closing(until) = self.phase {
                if until <= now {
                    return false;
                }
                self.rounds.as_mut().reset(until);
                continue;
            }
            if self.socket.stalled_for() >= WRITE_STALL {
                if let Some((_, subscription)) = &mut self.live {
                    subscription.ends("the client has taken nothing for too long");
                }
                return false;
            }
            // A peer that takes no byte cannot be asked for a sign of life; one that takes them must give it, unless it
            // is not listened to just now.
            let is_asked = self.socket.stalled_for().is_zero() && !self.is_busy();
            if is_asked && self.socket.silent_for() >= heartbeat * 2 {
                self.say_closing(Close::Silent);
                self.begin_close(Close::Silent);
                continue;
            }
            let mut next = now + heartbeat / 4;
            if self.dialect.idle_heartbeat {
                let silence = Duration::from_secs(settings.idle_heartbeat_secs);
                if self.last_message + silence <= now {
                    if let Some((_, subscription)) = &self.live {
                        let cursor = subscription.resume_cursor().or(self.from);
                        self.send_control(&Control::Heartbeat {
                            cursor,
                            at: Utc::now(),
                        });
                    }
                    self.last_message = now;
                }
                next = next.min(self.last_message + silence);
            }
            self.rounds.as_mut().reset(next);
        }
        true
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

impl Future for Session {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if let Phase::Ending = this.phase {
                return this.socket.poll_shutdown(cx);
            }
            if !this.look_at_clock(cx) {
                return Poll::Ready(());
            }
            let mut any = this.take_deliveries(cx);
            match this.take_messages(cx) {
                Ok(some) => any |= some,
                Err(End::Gone) => return Poll::Ready(()),
                Err(End::Broken(close)) => match this.phase {
                    Phase::Open => {
                        if let Close::MessageTooBig = close {
                            let limit = "client_message_limit_bytes";
                            this.note("too_big", Some(limit));
                        }
                        this.say_closing(close);
                        this.begin_close(close);
                        any = true;
                    }
                    // Our close is on its way already.
                    Phase::Closing(_) | Phase::Ending => any = true,
                },
            }
            let was_full = !this.socket.has_room();
            match this.socket.poll_write(cx) {
                // What waited for room has not been asked yet.
                Poll::Ready(Ok(())) => any |= was_full,
                Poll::Ready(Err(_)) => {
                    this.phase = Phase::Ending;
                    continue;
                }
                // Full: room is made only by writing, so there is nothing else to do.
                Poll::Pending if !this.socket.has_room_for_answers() => return Poll::Pending,
                Poll::Pending => {}
            }
            if !any {
                return Poll::Pending;
            }
        }
    }
}
