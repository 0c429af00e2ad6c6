//! The lifetime of a WebSocket connection: sending frames, receiving messages, keep-alive and closing. The [`Session`]
//! decides what is sent.
//!
//! One hand-written future drives all of this, so that an idle connection is a single small task. An event that wakes it
//! costs little more than its write: the socket and the signal that ends the server's tasks share a separate waker, and are
//! polled only if that was woken. The connection reads only while there is room for answers, so a client that sends
//! requests without reading the answers is slowed down, and its requests are not buffered.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::arrivals::Arrivals;
use super::attention::Attention;
use super::opening::Opening;
use super::socket::{End, Incoming, Socket};
use crate::alarm::Alarm;
use crate::app::SubscribeService;
use crate::config::{CLOSE_WAIT, WAITING_MESSAGES, WRITE_STALL};
use crate::http::idle_connections::InProgress;
use crate::session::{Dialect, Outbox, Outgoing, Session};
use crate::throttle::RateLimit;
use crate::wire::{self, Close, Control, Encoding, Framing};

enum Phase {
    Open,
    /// Our close frame is queued or sent. The peer has until this time to answer it.
    Closing(Instant),
    /// The connection is being shut down.
    Ending,
}

/// The socket as the outbox of a session.
struct Frames {
    socket: Socket,
    encoding: Encoding,
}

impl Outbox for Frames {
    fn has_room(&self) -> bool {
        self.socket.has_room()
    }

    fn send(&mut self, outgoing: Outgoing<'_>) {
        let frame = match outgoing {
            Outgoing::Event(event) => Arc::clone(wire::event(event, self.encoding)),
            Outgoing::Control(control) => wire::control(control, Framing::WebSocket).into(),
            Outgoing::Json(json) => wire::text_frame(json).into(),
            Outgoing::BarePong => wire::text_frame(b"pong").into(),
            Outgoing::Ping(cursor) => {
                let cursor = cursor.map(|cursor| cursor.to_string());
                return self.socket.ping(cursor.unwrap_or_default());
            }
        };
        self.socket.send(frame);
    }
}

/// A WebSocket connection.
pub(super) struct Connection {
    frames: Frames,
    /// None once the session has ended, or if the client was rejected at the start.
    session: Option<Session>,
    service: Arc<SubscribeService>,
    /// Messages that arrived while an earlier one is still being answered. Bounded by [`WAITING_MESSAGES`], the maximum size
    /// of a client's message, and one read of the socket.
    waiting: VecDeque<Incoming>,
    phase: Phase,
    arrivals: Arrivals,
    /// The client has exceeded the rate limit. It receives the error after its earlier messages are answered.
    is_rate_limited: bool,
    timer: Alarm,
    /// The waker of the socket and of `end`.
    attention: Attention,
    /// Resolves when the server ends its tasks.
    end: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Makes the request count as in progress, although Rocket drops the request itself at the upgrade.
    in_progress: Option<Arc<InProgress>>,
}

impl Connection {
    /// Makes the request count as in progress until the connection ends.
    pub(super) fn keeps(&mut self, in_progress: Option<Arc<InProgress>>) {
        self.in_progress = in_progress;
    }

    pub(super) fn new(
        socket: Socket,
        service: Arc<SubscribeService>,
        dialect: Dialect,
        encoding: Encoding,
        opening: Opening,
        end: CancellationToken,
    ) -> Connection {
        let mut connection = Connection {
            frames: Frames { socket, encoding },
            session: None,
            waiting: VecDeque::new(),
            phase: Phase::Open,
            arrivals: Arrivals::new(RateLimit::for_client_messages(service.settings())),
            is_rate_limited: false,
            timer: Alarm::at(Instant::now()),
            attention: Attention::new(),
            end: Box::pin(end.cancelled_owned()),
            service,
            in_progress: None,
        };
        match opening {
            Opening::Accepted(beginning, publishing) => {
                let service = Arc::clone(&connection.service);
                let session = Session::new(service, dialect, *beginning);
                connection.session = Some(match publishing {
                    Some(publishing) => session.with_publishing(publishing),
                    None => session,
                });
            }
            Opening::Rejected { error, code, close } => connection.reject(error, code, close),
        }
        connection
    }

    /// Sends a client the reason for its rejection.
    fn reject(&mut self, error: Option<String>, code: &'static str, close: Close) {
        if let Some(message) = error {
            let channels = Vec::new();
            let error = Control::Error {
                code,
                message,
                channels,
                id: None,
            };
            self.frames.send(Outgoing::Control(&error));
        }
        if close.retry_ms().is_some() {
            let can_return = true;
            let closing = Control::Closing { close, can_return };
            self.frames.send(Outgoing::Control(&closing));
        }
        self.begin_close(close);
    }

    fn begin_close(&mut self, close: Close) {
        self.frames.socket.close(close);
        self.wait_for_close();
    }

    /// Ends the session. Further input is read and ignored.
    fn wait_for_close(&mut self) {
        self.session = None;
        self.waiting.clear();
        self.is_rate_limited = false;
        self.phase = Phase::Closing(Instant::now() + CLOSE_WAIT);
        self.timer.set(Instant::now() + CLOSE_WAIT);
    }

    /// Closes the connection, and ends the session if there is one.
    fn close(&mut self, close: Close) {
        if let Some(session) = &mut self.session {
            session.close(close, &mut self.frames);
        }
        self.begin_close(close);
    }

    /// Closes the connection if the session has ended.
    fn follow(&mut self) {
        if let Some(close) = self.session.as_ref().and_then(Session::ended) {
            self.begin_close(close);
        }
    }

    /// Queues deliveries while there is room. Returns whether they have ended the session.
    fn take_deliveries(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let Some(session) = &mut self.session else {
            return false;
        };
        session.poll_deliveries_at(cx, now, &mut self.frames);
        session.poll_published(cx, &mut self.frames);
        self.follow();
        self.session.is_none()
    }

    /// Answers messages while there is room. Returns whether there were any.
    fn take_messages(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if let Some(session) = &mut self.session {
            match session.poll_answer(cx, &mut self.frames) {
                Poll::Ready(false) => {}
                Poll::Ready(true) => return Ok(true),
                Poll::Pending => return Ok(false),
            }
            if !self.frames.socket.has_room_for_answers() {
                return Ok(false);
            }
            if !session.has_held_message()
                && let Some(incoming) = self.waiting.pop_front()
            {
                let may_count = may_publish(session, &incoming);
                let is_free = receive(session, incoming, &mut self.frames);
                // A message that looked like a command was not counted when it arrived. If it was none, it counts now.
                if may_count && !is_free {
                    self.is_rate_limited = self.is_rate_limited || !self.arrivals.count();
                }
                return Ok(true);
            }
            if session.resume(&mut self.frames) {
                return Ok(true);
            }
            if self.is_rate_limited && !session.has_held_message() {
                let message =
                    "The connection sends messages too fast, and is closed; send fewer per second";
                let limit = Some("client_messages_per_sec");
                session.reject("too_fast", limit, message, &mut self.frames);
                self.close(Close::TryAgainLater);
                return Ok(true);
            }
        }
        if !self.frames.socket.is_readable() {
            return Ok(false);
        }
        // Continue to read while a message waits, so that pings are answered and pongs are noticed at once.
        if !self.frames.socket.has_room_for_answers() || !self.has_room_to_wait() {
            return Ok(false);
        }
        let mut socket_cx = Context::from_waker(self.attention.waker());
        match self.frames.socket.poll_read(&mut socket_cx) {
            Poll::Ready(Ok(incoming)) => {
                if let Phase::Open = self.phase {
                    self.enqueue(incoming);
                    if self.frames.socket.is_closed_by_peer() {
                        // The peer has sent its close frame, and our answer is queued. Nothing may follow it.
                        self.wait_for_close();
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

    /// Queues messages to be answered, up to the first one that exceeds the rate limit.
    fn enqueue(&mut self, incoming: Vec<Incoming>) {
        // Pings and pongs do not count as messages.
        let messages = incoming.into_iter();
        for message in messages.filter(|message| !matches!(message, Incoming::Control)) {
            // A command counts towards the rate limit of its user instead. A message that only looks like a command is
            // counted later, when it has been parsed.
            let session = self.session.as_ref();
            let counts = !session.is_some_and(|session| may_publish(session, &message));
            self.is_rate_limited = self.is_rate_limited || counts && !self.arrivals.count();
            if self.is_rate_limited {
                return;
            }
            self.waiting.push_back(message);
        }
    }

    /// Whether another message may wait for its answer.
    fn has_room_to_wait(&self) -> bool {
        let bytes = |message: &Incoming| match message {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(bytes) => bytes.len(),
            Incoming::Control => 0,
        };
        let max_bytes = self.service.settings().client_message_limit_bytes.get();
        !self.is_rate_limited
            && self.waiting.len() < WAITING_MESSAGES
            && self.waiting.iter().map(bytes).sum::<usize>() < max_bytes
    }

    /// Checks the socket and `end` if their waker was woken. Returns false if the server ends its tasks.
    fn poll_attention(&mut self, cx: &Context<'_>) -> bool {
        if !self.attention.take(cx) {
            return true;
        }
        self.frames.socket.woken();
        self.arrivals.may_wait();
        let mut cx = Context::from_waker(self.attention.waker());
        self.end.as_mut().poll(&mut cx).is_pending()
    }

    /// Checks the timers. Returns false if the connection must be dropped.
    fn poll_timers(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        while self.timer.poll(cx, now) {
            let heartbeat = self.service.settings().heartbeat();
            let now = Instant::now();
            if let Phase::Closing(until) = self.phase {
                if until <= now {
                    return false;
                }
                self.timer.set(until);
                continue;
            }
            let socket = &self.frames.socket;
            let is_stalled = socket.stalled_for() >= WRITE_STALL;
            // Whether the peer must have answered pings. A peer that takes no bytes cannot receive one. While the session
            // is busy, answers that have arrived may not have been read.
            let is_busy = self.session.as_ref().is_some_and(Session::is_busy);
            let is_asked = socket.stalled_for().is_zero() && !is_busy;
            if is_stalled {
                if let Some(session) = &mut self.session {
                    session.set_end_reason("the client has taken no bytes for too long");
                }
                return false;
            }
            if is_asked && socket.silent_for() >= heartbeat * 2 {
                self.close(Close::Silent);
                continue;
            }
            let mut next = now + heartbeat / 4;
            if let Some(session) = &mut self.session
                && let Some(due) = session.poll_timers(now, &mut self.frames)
            {
                next = next.min(due);
            }
            self.timer.set(next);
        }
        true
    }
}

/// Whether a message may be a command that the client is allowed to publish.
fn may_publish(session: &Session, incoming: &Incoming) -> bool {
    match incoming {
        Incoming::Text(text) => session.can_publish() && text.contains("\"publish\""),
        Incoming::Binary(_) | Incoming::Control => false,
    }
}

/// Passes a message on. Returns what [`Session::receive`] returns.
fn receive(session: &mut Session, incoming: Incoming, frames: &mut Frames) -> bool {
    match incoming {
        Incoming::Text(text) => session.receive(&text, frames),
        Incoming::Binary(_) => {
            session.reject("not_text", None, "Messages must be text frames", frames);
            false
        }
        Incoming::Control => false,
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.poll_attention(cx) {
            return Poll::Ready(());
        }
        let now = Instant::now();
        this.frames.socket.set_now(now);
        loop {
            if let Phase::Ending = this.phase {
                let mut socket_cx = Context::from_waker(this.attention.waker());
                return this.frames.socket.poll_shutdown(&mut socket_cx);
            }
            if !this.poll_timers(cx, now) {
                return Poll::Ready(());
            }
            let mut any = this.take_deliveries(cx, now);
            match this.take_messages(cx) {
                Ok(some) => any |= some,
                Err(End::Gone) => return Poll::Ready(()),
                Err(End::Broken(close)) => match this.phase {
                    Phase::Open => {
                        if let (Close::MessageTooBig, Some(session)) = (close, &this.session) {
                            session.note("too_big", Some("client_message_limit_bytes"));
                        }
                        this.close(close);
                        any = true;
                    }
                    // Our close frame is already queued.
                    Phase::Closing(_) | Phase::Ending => any = true,
                },
            }
            let was_full = !this.frames.socket.has_room();
            let mut socket_cx = Context::from_waker(this.attention.waker());
            match this.frames.socket.poll_write(&mut socket_cx) {
                // There was no room before, so the session may have more to send.
                Poll::Ready(Ok(())) => any |= was_full,
                Poll::Ready(Err(_)) => {
                    this.phase = Phase::Ending;
                    continue;
                }
                // No room for answers: only writing makes room, so there is nothing else to do.
                Poll::Pending if !this.frames.socket.has_room_for_answers() => {
                    return Poll::Pending;
                }
                Poll::Pending => {}
            }
            if !any {
                return Poll::Pending;
            }
        }
    }
}
